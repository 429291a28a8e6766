"""Drift: how far the readings of a day have moved from those the champion was trained on.

Belongs here: the two distances, what counts as drifted, which rows are compared. Does not: the drawn report
(``adapters.reports``), reading tables, telling anybody (``orchestration.monitoring``).

Distances, not significance tests: readings a second apart are nearly copies of one another, so a p-value that counts
them as independent calls every difference of every day significant. One method is fixed for all sample sizes.

``distance``  first Wasserstein distance / max(standard deviation of the reference, 0.001): how far the mass has to be
              carried, in spreads of the reference.  Ramdas, Garcia, Cuturi, "On Wasserstein two-sample testing", 2017.
``ks``        Kolmogorov-Smirnov statistic, the greatest gap between the two distribution functions, 0..1. It doesn't
              see how far, but it doesn't mind outliers either; it is reported beside and decides nothing.
``missing``   share of values that were not measured. A sensor that falls silent leaves no distribution to compare, and
              so is judged by this share alone.

Compared are *quiet* rows, those that the model doesn't call fire: training data hold many fires on purpose, and a day
without one would otherwise be called drifted for its peace. How much of the day the model calls fire is a figure of
its own: readings that drift into what looks like fire leave the quiet rows and show there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating[Any]]

#: Spreads of the reference that a column's mass may be carried before it counts as drifted.
DISTANCE_THRESHOLD = 0.5
#: The share of missing values may differ by this much.
MISSING_THRESHOLD = 0.3
#: The same floor as Evidently's, so that the numbers agree.
SMALLEST_SPREAD = 0.001
#: Fewer values on one side say nothing about a distribution.
LEAST_VALUES = 100


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """One column of the comparison; distances are ``None`` where a side has too few values."""

    column: str
    distance: float | None
    ks: float | None
    missing_reference: float
    missing_current: float
    mean_reference: float | None
    mean_current: float | None

    @property
    def cause(self) -> Literal["distribution", "missing"] | None:
        """Why the column counts as drifted, or ``None`` where it doesn't."""
        if abs(self.missing_current - self.missing_reference) > MISSING_THRESHOLD:
            return "missing"
        if self.distance is not None and self.distance >= DISTANCE_THRESHOLD:
            return "distribution"
        return None

    @property
    def drifted(self) -> bool:
        return self.cause is not None


@dataclass(frozen=True, slots=True)
class DriftSummary:
    """The comparison as a whole.

    Attributes:
        columns: the most drifted first.
        reference_rows: quiet rows of the training snapshot; ``current_rows``: of the day's sample.
        fire_share_reference: share of the snapshot that the model calls fire; ``fire_share_current``: of the day.
    """

    columns: tuple[ColumnDrift, ...]
    reference_rows: int
    current_rows: int
    fire_share_reference: float
    fire_share_current: float

    @property
    def drifted(self) -> tuple[str, ...]:
        return tuple(column.column for column in self.columns if column.drifted)

    @property
    def share(self) -> float:
        """Drifted columns / columns that can be judged (those with values on either side), 0..1."""
        judged = [c for c in self.columns if c.drifted or c.distance is not None]
        return len(self.drifted) / len(judged) if judged else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "method": "wasserstein / standard deviation of the reference",
            "distance_threshold": DISTANCE_THRESHOLD,
            "missing_threshold": MISSING_THRESHOLD,
            "share_of_drifted_columns": self.share,
            "drifted_columns": list(self.drifted),
            "reference_rows": self.reference_rows,
            "current_rows": self.current_rows,
            "fire_share_reference": self.fire_share_reference,
            "fire_share_current": self.fire_share_current,
            "columns": [{**asdict(column), "cause": column.cause} for column in self.columns],
        }


def compare(
    reference: Mapping[str, Values],
    current: Mapping[str, Values],
    columns: Sequence[str],
    *,
    fire_share_reference: float = 0.0,
    fire_share_current: float = 0.0,
) -> DriftSummary:
    """Compares two samples column by column.

    Args:
        reference: column -> values of the quiet rows of the training snapshot, NaN where not measured.
        current: the same of the day.
        columns: which to compare; both sides have them.
    """
    found = [_column(name, np.asarray(reference[name]), np.asarray(current[name])) for name in columns]
    found.sort(key=lambda c: (not c.drifted, -(c.distance if c.distance is not None else -1.0), c.column))
    return DriftSummary(
        columns=tuple(found),
        reference_rows=len(reference[columns[0]]) if columns else 0,
        current_rows=len(current[columns[0]]) if columns else 0,
        fire_share_reference=fire_share_reference,
        fire_share_current=fire_share_current,
    )


def _column(name: str, reference: Values, current: Values) -> ColumnDrift:
    a, b = _measured(reference), _measured(current)
    comparable = min(len(a), len(b)) >= LEAST_VALUES
    return ColumnDrift(
        column=name,
        distance=wasserstein(a, b) / max(float(a.std()), SMALLEST_SPREAD) if comparable else None,
        ks=kolmogorov_smirnov(a, b) if comparable else None,
        missing_reference=_missing(reference, a),
        missing_current=_missing(current, b),
        mean_reference=float(a.mean()) if len(a) else None,
        mean_current=float(b.mean()) if len(b) else None,
    )


def _measured(values: Values) -> npt.NDArray[np.float64]:
    wide = values.astype(np.float64)
    return wide[np.isfinite(wide)]


def _missing(values: Values, measured: Values) -> float:
    return 1.0 - len(measured) / len(values) if len(values) else 0.0


def wasserstein(a: Values, b: Values) -> float:
    """First Wasserstein distance of two samples, in their unit: the area between their distribution functions."""
    points = np.sort(np.concatenate([a, b]))
    below_a, below_b = _distribution(a, points[:-1]), _distribution(b, points[:-1])
    return float(np.sum(np.abs(below_a - below_b) * np.diff(points)))


def kolmogorov_smirnov(a: Values, b: Values) -> float:
    """Greatest distance between the distribution functions of two samples, 0..1."""
    points = np.concatenate([a, b])
    return float(np.max(np.abs(_distribution(a, points) - _distribution(b, points))))


def _distribution(sample: Values, points: Values) -> npt.NDArray[np.float64]:
    return np.searchsorted(np.sort(sample), points, side="right") / len(sample)
