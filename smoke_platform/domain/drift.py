"""Drift: how far the readings of a day have moved from those the champion was trained on.

Belongs here: the distances, what counts as drifted (a column, a sensor, a device, the fleet), which rows are compared,
and what is kept of a stream too long to hold. Does not: the drawn report (``adapters.reports``), reading tables and
telling anybody (``orchestration``).

Distances, not significance tests: readings a second apart are nearly copies of one another, so a p-value that counts
them as independent calls every difference of every day significant. One method is fixed for all sample sizes.

``distance``  first Wasserstein distance / max(standard deviation of the reference, 0.001): how far the mass has to be
              carried, in spreads of the reference.  Ramdas, Garcia, Cuturi, "On Wasserstein two-sample testing", 2017.
              Evidently's named test ``wasserstein``.
``ks``        Kolmogorov-Smirnov statistic, the greatest gap between the two distribution functions, 0..1. It doesn't
              see how far, but it doesn't mind outliers either; it is reported beside and decides nothing.
``missing``   share of values that were not measured. A sensor that falls silent leaves no distribution to compare, and
              so is judged by this share alone.
``jensen_shannon``  of two shares (called fire, labelled fire): the root of the mean divergence from their middle, in
              natural units.  Lin, "Divergence measures based on the Shannon entropy", 1991. Evidently's named test
              ``jensenshannon``.

Compared are *quiet* rows, those that the model doesn't call fire: training data hold many fires on purpose, and a day
without one would otherwise be called drifted for its peace. How much of the day the model calls fire is a figure of
its own: readings that drift into what looks like fire leave the quiet rows and show there. For the same reason a share
of fires counts as drifted only where it has risen.

Devices are judged one by one against the same snapshot. Where no more than half of them are odd, the odd ones are
named and the fleet is judged by the others: one broken device is no reason to train anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from smoke_platform.domain.features import RAISED_BY_FIRE
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

Values = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]

METHOD = "wasserstein / standard deviation of the reference"
#: Spreads of the reference that a column's mass may be carried before it counts as drifted.
DISTANCE_THRESHOLD = 0.5
#: Jensen-Shannon distance of two shares; Evidently's own for this test.
SHARE_THRESHOLD = 0.1
#: The share of missing values may differ by this much.
MISSING_THRESHOLD = 0.3
#: The same floor as Evidently's, so that the numbers agree.
SMALLEST_SPREAD = 0.001
#: Fewer values on one side say nothing about a distribution.
LEAST_VALUES = 100
#: From this share of drifted columns on, the fleet counts as drifted.
DRIFTED_SHARE_LIMIT = 0.3
#: The same of one device: a room of its own, and a sensor that it hasn't got, make up to 23% of the columns of an
#: ordinary one differ (40 simulated devices, one day).
DEVICE_SHARE_LIMIT = 0.35
#: A day of which the model calls this much fire is one to look at, whatever training was like.
FIRE_SHARE_LIMIT = 0.2
#: Fewer rows or hours of a device differ from training by the time of day alone.
DEVICE_LEAST_ROWS = 300
DEVICE_LEAST_HOURS = 6


# -- one column --------------------------------------------------------------------------------------------------


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
class Ordered:
    """A column's measured values in rising order, so that it is sorted once however often it is compared.

    Attributes:
        values: finite, float32 or float64, shape (n,).
        rows: all of them, those without a value included.
        mean, spread: of the values; the standard deviation with its floor. NaN without any value.
    """

    values: Values
    rows: int
    mean: float
    spread: float

    @property
    def missing(self) -> float:
        """Share of the rows without a value, 0..1."""
        return 1.0 - len(self.values) / self.rows if self.rows else 0.0


def ordered(values: Values) -> Ordered:
    """Sorts a column, float ``[n]``; what is not finite counts as not measured."""
    placed = np.sort(values)
    low, high = np.searchsorted(placed, [-np.inf], side="right")[0], np.searchsorted(placed, [np.inf])[0]
    measured = placed[low:high]
    if not len(measured):
        return Ordered(measured, len(values), float("nan"), float("nan"))
    mean = float(measured.mean(dtype=np.float64))
    spread = max(float(measured.std(dtype=np.float64)), SMALLEST_SPREAD)
    return Ordered(measured, len(values), mean, spread)


def wasserstein(a: Values, b: Values) -> float:
    """First Wasserstein distance of two samples, in their unit: the area between their distribution functions."""
    return _distances(np.sort(a), np.sort(b))[0]


def kolmogorov_smirnov(a: Values, b: Values) -> float:
    """Greatest distance between the distribution functions of two samples, 0..1."""
    return _distances(np.sort(a), np.sort(b))[1]


def _distances(a: Values, b: Values) -> tuple[float, float]:
    """Wasserstein and Kolmogorov-Smirnov of two samples in rising order, both exact.

    With F of ``a`` and G of ``b``: between two neighbours l, r of ``a`` F is constant, c, and G rises, so G passes c at
    most once, at its quantile s. With H the integral of G the area there is c(s-l) - (H(s)-H(l)) before it and
    (H(r)-H(s)) - c(r-s) after it. H follows from running sums of ``b``, so that each value of ``a`` is looked up once
    and nothing is merged.
    """
    if len(a) > len(b):
        a, b = b, a
    n, m = len(a), len(b)
    below, upto = np.searchsorted(b, a, side="left"), np.searchsorted(b, a, side="right")
    steps = np.arange(1, n + 1)
    ks = max(float(np.max(steps / n - upto / m)), float(np.max(below / m - (steps - 1) / n)), 0.0)
    # Sums of numbers near zero lose least.
    centre = float(a[n // 2])
    points = a.astype(np.float64) - centre
    others = b.astype(np.float64) - centre
    running = np.concatenate([[0.0], np.cumsum(others)])
    integral = (upto * points - running[upto]) / m
    level = steps[:-1] / n
    rank = -(-steps[:-1] * m // n) - 1
    left, right = points[:-1], points[1:]
    passing = others[rank]
    inside = (passing > left) & (passing < right)
    split = np.clip(passing, left, right)
    at_ends = np.where(passing <= left, integral[:-1], integral[1:])
    at_split = np.where(inside, (rank * split - running[rank]) / m, at_ends)
    between = level * (2 * split - left - right) - 2 * at_split + integral[:-1] + integral[1:]
    last = (running[-1] - running[upto[-1]] - points[-1] * (m - upto[-1])) / m
    return max(float(integral[0] + np.sum(between) + last), 0.0), ks


# -- a column that is too long to hold ---------------------------------------------------------------------------


class Tally:
    """What is kept of any number of values so that their distance from one reference is known within bounds.

    The values are counted and summed up to each of the reference's own values, the knots. Between two knots the
    reference's distribution function is constant, c. Wherever the stream's doesn't pass c there, count and sum give the
    area exactly; so they do beyond both ends, however heavy the tails. Where it passes c, between l and r and from p to
    q, the area is known to within (q - p)(r - l)/2: a rising function with the known mean lies between the constant
    and the step at the ends, and the absolute value is convex. The bounds are as wide as the sum of these, which is
    what ``bounds`` gives; they are narrow because few values lie between two neighbours of a training sample.

    Parts are added in any order and number: ``add`` on one of a part, ``merge`` of two give the same as all at once.
    Memory: 24 bytes a knot, nothing for each value.
    """

    def __init__(self, reference: Ordered, extra: Floats | None = None) -> None:
        """``extra``: more knots; they narrow the bounds where they are laid."""
        self.reference = reference
        own = reference.values.astype(np.float64)
        self._knots = np.unique(own if extra is None else np.concatenate([own, extra]))
        self._level = np.searchsorted(own, self._knots, side="right") / max(len(own), 1)
        self._below = np.zeros(len(self._knots), dtype=np.int64)
        self._upto = np.zeros(len(self._knots), dtype=np.int64)
        #: Of the values below each knot, the sum of what they are above the reference's mean.
        self._sum_below = np.zeros(len(self._knots))
        self._sum = 0.0
        self.rows = 0
        self.measured = 0

    def add(self, values: Values) -> None:
        """Takes some values, float ``[n]``; what is not finite counts as not measured."""
        part = ordered(values)
        self.rows += part.rows
        self.measured += len(part.values)
        if not len(part.values) or not len(self._knots):
            return
        wide = part.values.astype(np.float64)
        below = np.searchsorted(wide, self._knots, side="left")
        running = np.concatenate([[0.0], np.cumsum(wide - self.reference.mean)])
        self._below += below
        self._upto += np.searchsorted(wide, self._knots, side="right")
        self._sum_below += running[below]
        self._sum += float(running[-1])

    def merge(self, other: Tally) -> Self:
        """Takes what another one of the same knots has counted."""
        self.rows += other.rows
        self.measured += other.measured
        self._below += other._below
        self._upto += other._upto
        self._sum_below += other._sum_below
        self._sum += other._sum
        return self

    @property
    def comparable(self) -> bool:
        return min(len(self.reference.values), self.measured) >= LEAST_VALUES

    @property
    def mean(self) -> float | None:
        if not self.measured or not len(self._knots):
            return None
        return self.reference.mean + self._sum / self.measured

    @property
    def ks(self) -> float:
        """Exact: within a gap the stream's distribution function is farthest from the constant at one of the ends."""
        before = np.concatenate([[0.0], self._level[:-1]])
        ends = np.abs(self._upto / self.measured - self._level), np.abs(self._below / self.measured - before)
        return float(max(ends[0].max(), ends[1].max()))

    def bounds(self) -> tuple[float, float]:
        """Least and greatest distance that the values may have, in spreads of the reference."""
        least, most = self._gaps()
        m, knots = self.measured, self._knots - self.reference.mean
        below = (self._below[0] * knots[0] - self._sum_below[0]) / m
        upto_last = self._sum_below[-1] + knots[-1] * (self._upto[-1] - self._below[-1])
        above = (self._sum - upto_last - knots[-1] * (m - self._upto[-1])) / m
        tails = float(below + above)
        spread = self.reference.spread
        low, high = (max(tails + float(area.sum()), 0.0) / spread for area in (least, most))
        return low, high

    def _gaps(self) -> tuple[Floats, Floats]:
        """Least and greatest area between the two distribution functions in each gap between knots, in the unit."""
        m, knots = self.measured, self._knots - self.reference.mean
        left, right, level = knots[:-1], knots[1:], self._level[:-1]
        width = right - left
        low, high = self._upto[:-1] / m, self._below[1:] / m
        within = self._below[1:] - self._upto[:-1]
        upto = self._sum_below[:-1] + left * (self._upto[:-1] - self._below[:-1])
        # The area below the stream's distribution function, of which rounding must not make more than there is.
        extra = np.clip((within * right - (self._sum_below[1:] - upto)) / m, 0.0, within * width / m)
        area = low * width + extra
        least = np.abs(area - level * width)
        passes = (low < level) & (high > level)
        spans = np.where(passes, high - low, 1.0)
        most = ((high * width - area) * (level - low) + extra * (high - level)) / spans
        return least, np.where(passes, np.maximum(most, least), least)

    @property
    def undecided(self) -> bool:
        """Whether the threshold lies between the bounds."""
        if not self.comparable:
            return False
        least, most = self.bounds()
        return least < DISTANCE_THRESHOLD <= most

    def finer(self, parts: int = 64) -> Tally:
        """An empty one with each gap that leaves something open cut into ``parts``, to be given all values again.

        Of the pieces of a gap one at most is passed, so that (q - p)(r - l)/2 is at least ``parts`` times as small.
        """
        least, most = self._gaps()
        open_gaps = np.flatnonzero(most > least)
        left, right = self._knots[open_gaps], self._knots[open_gaps + 1]
        cuts = np.linspace(left, right, parts + 1)[1:-1]
        return Tally(self.reference, np.concatenate([self._knots, cuts.ravel()]))

    def drift(self, column: str) -> ColumnDrift:
        """The column's drift; the distance is the middle of the bounds."""
        comparable = self.comparable
        return ColumnDrift(
            column=column,
            distance=sum(self.bounds()) / 2 if comparable else None,
            ks=self.ks if comparable else None,
            missing_reference=self.reference.missing,
            missing_current=1.0 - self.measured / self.rows if self.rows else 0.0,
            mean_reference=self.reference.mean if len(self.reference.values) else None,
            mean_current=self.mean,
        )


# -- all columns -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DriftSummary:
    """The comparison as a whole.

    Attributes:
        columns: the most drifted first.
        reference_rows: quiet rows of the training snapshot; ``current_rows``: of the day.
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
            "method": METHOD,
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
    reference: Mapping[str, Values | Ordered],
    current: Mapping[str, Values | Ordered],
    columns: Sequence[str],
    *,
    fire_share_reference: float = 0.0,
    fire_share_current: float = 0.0,
) -> DriftSummary:
    """Compares two samples column by column, exactly.

    Args:
        reference: column -> values of the quiet rows of the training snapshot, NaN where not measured.
        current: the same of the day.
        columns: which to compare; both sides have them.
    """
    pairs = [(name, _in_order(reference[name]), _in_order(current[name])) for name in columns]
    return summarise(
        [_column(name, before, now) for name, before, now in pairs],
        reference_rows=pairs[0][1].rows if pairs else 0,
        current_rows=pairs[0][2].rows if pairs else 0,
        fire_share_reference=fire_share_reference,
        fire_share_current=fire_share_current,
    )


def summarise(
    columns: Sequence[ColumnDrift],
    *,
    reference_rows: int,
    current_rows: int,
    fire_share_reference: float = 0.0,
    fire_share_current: float = 0.0,
) -> DriftSummary:
    """The columns as one comparison, the most drifted first."""
    found = sorted(columns, key=lambda c: (not c.drifted, -(c.distance if c.distance is not None else -1.0), c.column))
    return DriftSummary(tuple(found), reference_rows, current_rows, fire_share_reference, fire_share_current)


def _in_order(values: Values | Ordered) -> Ordered:
    return values if isinstance(values, Ordered) else ordered(np.asarray(values))


def _column(name: str, reference: Ordered, current: Ordered) -> ColumnDrift:
    distance = ks = None
    if min(len(reference.values), len(current.values)) >= LEAST_VALUES:
        carried, ks = _distances(reference.values, current.values)
        distance = carried / reference.spread
    return ColumnDrift(
        column=name,
        distance=distance,
        ks=ks,
        missing_reference=reference.missing,
        missing_current=current.missing,
        mean_reference=reference.mean if len(reference.values) else None,
        mean_current=current.mean if len(current.values) else None,
    )


# -- shares ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShareDrift:
    """How often something is so, in training and now.

    Attributes:
        name: of what, in words.
        reference, current: shares, 0..1.
        rows: of the day that can tell.
    """

    name: str
    reference: float
    current: float
    rows: int

    @property
    def distance(self) -> float:
        return jensen_shannon(self.reference, self.current)

    @property
    def drifted(self) -> bool:
        """Only a rise counts: training has more fires than life on purpose."""
        return self.rows >= LEAST_VALUES and self.current > self.reference and self.distance >= SHARE_THRESHOLD

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "distance": self.distance, "threshold": SHARE_THRESHOLD, "drifted": self.drifted}


def jensen_shannon(p: float, q: float) -> float:
    """Jensen-Shannon distance of two shares (each of "so" and "not so"), 0..sqrt(ln 2)."""

    def divergence(share: float, middle: float) -> float:
        # Half of the smallest number there is becomes 0: what such a share adds is nothing that could be told.
        return share * float(np.log(share / middle)) if share > 0 and middle > 0 else 0.0

    middle = (p + q) / 2
    total = sum(divergence(s, middle) + divergence(1 - s, 1 - middle) for s in (p, q))
    return float(np.sqrt(max(total, 0.0) / 2))


# -- sensors -----------------------------------------------------------------------------------------------------

_OF_SEVERAL: Mapping[str, tuple[str, ...]] = {
    "fine_fraction": ("pm1_0", "pm2_5"),
    "coarse_fraction": ("nc0_5", "nc2_5"),
    "smoke_and_gas": ("pm2_5", "tvoc_ppb"),
    "smoke_and_heat": ("pm2_5", "temperature_c"),
    "smoke_and_co": ("pm2_5", "co_ppm"),
    "dry_heat": ("temperature_c", "humidity_pct"),
    "raised_sensors": RAISED_BY_FIRE,
}
_MEMORIES = ("_rise", "_score", "_rate")


def sensors_of(feature: str) -> tuple[str, ...]:
    """The sensors that a feature is made of.

    Raises:
        ValueError: for what is no feature.
    """
    if feature in _OF_SEVERAL:
        return _OF_SEVERAL[feature]
    name = next((feature.removesuffix(end) for end in _MEMORIES if feature.endswith(end)), feature)
    if name not in ALL_SENSOR_NAMES:
        raise ValueError(f"{feature!r} is no feature of a sensor")
    return (name,)


@dataclass(frozen=True, slots=True)
class SensorDrift:
    """The features that one sensor alone makes.

    Attributes:
        drifted: those that have drifted; ``features``: all that can be judged.
        worst: the one farthest away and its ``distance``, ``None`` where none can be compared.
        missing_change: greatest change of the share of missing values.
        silent: whether a feature is missing far more often than in training.
    """

    sensor: str
    drifted: tuple[str, ...]
    features: int
    worst: str | None
    distance: float | None
    missing_change: float
    silent: bool


def by_sensor(summary: DriftSummary) -> tuple[SensorDrift, ...]:
    """The summary's columns grouped by sensor, the sensor with most drifted features first."""
    groups: dict[str, list[ColumnDrift]] = {}
    for column in summary.columns:
        sensors = sensors_of(column.column)
        if len(sensors) == 1:
            groups.setdefault(sensors[0], []).append(column)
    found = [_sensor(name, columns) for name, columns in groups.items()]
    return tuple(sorted(found, key=lambda s: (-len(s.drifted), -(s.distance or 0.0), s.sensor)))


def _sensor(name: str, columns: Sequence[ColumnDrift]) -> SensorDrift:
    known = [(c.distance, c.column) for c in columns if c.distance is not None]
    distance, worst = max(known, default=(None, None))
    changes = [c.missing_current - c.missing_reference for c in columns]
    return SensorDrift(
        sensor=name,
        drifted=tuple(c.column for c in columns if c.drifted),
        features=sum(c.drifted or c.distance is not None for c in columns),
        worst=worst,
        distance=distance,
        missing_change=max(changes, key=abs),
        silent=max(changes) > MISSING_THRESHOLD,
    )


# -- devices -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceDrift:
    """A device beside the champion's training snapshot.

    Attributes:
        rows: of the day; ``hours``: of the day that they touch.
        share: of its columns that have drifted; ``None`` where it has too few quiet rows.
        sensors: those with drifted features, the worst first.
        fire_share: of its rows that the model calls fire.
    """

    device: str
    rows: int
    hours: int
    share: float | None
    sensors: tuple[str, ...]
    fire_share: float

    @property
    def odd(self) -> bool:
        return self.share is not None and (self.share >= DEVICE_SHARE_LIMIT or self.fire_share >= FIRE_SHARE_LIMIT)


def of_device(device: str, summary: DriftSummary | None, *, rows: int, hours: int, fire_share: float) -> DeviceDrift:
    """What a device's summary says; ``None`` for a device that has too little to be judged by."""
    if summary is None or hours < DEVICE_LEAST_HOURS or rows < DEVICE_LEAST_ROWS:
        return DeviceDrift(device, rows, hours, None, (), fire_share)
    sensors = tuple(sensor.sensor for sensor in by_sensor(summary) if sensor.drifted)
    return DeviceDrift(device, rows, hours, summary.share, sensors, fire_share)


def odd_ones(devices: Sequence[DeviceDrift]) -> tuple[str, ...]:
    """The devices that are odd among others; none where more than half of them are, for then it is the fleet."""
    judged = [device for device in devices if device.share is not None]
    odd = [device.device for device in judged if device.odd]
    return tuple(odd) if 2 * len(odd) <= len(judged) else ()


# -- the day -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DayDrift:
    """A day beside the champion's training snapshot.

    Attributes:
        data: features of the fleet's quiet rows, those of odd devices left out.
        scores: the champion's scores of the same rows.
        called: share of all those devices' rows that the champion calls fire.
        target: share of labelled rows that are fire; ``None`` where there are no labels on a side.
        devices: the oddest first.
        odd: of them those that are odd among others.
    """

    data: DriftSummary
    scores: ColumnDrift
    called: ShareDrift
    target: ShareDrift | None
    devices: tuple[DeviceDrift, ...]
    odd: tuple[str, ...]

    @property
    def data_drifted(self) -> bool:
        return self.data.share >= DRIFTED_SHARE_LIMIT

    @property
    def prediction_drifted(self) -> bool:
        return self.scores.drifted or self.called.drifted

    @property
    def target_drifted(self) -> bool:
        return self.target is not None and self.target.drifted

    @property
    def silent_sensors(self) -> tuple[str, ...]:
        return tuple(sensor.sensor for sensor in by_sensor(self.data) if sensor.silent)

    @property
    def indicators(self) -> tuple[str, ...]:
        """Which of the signs of drift are there; the health of the model counts them."""
        signs = {
            "data": self.data_drifted,
            "scores": self.scores.drifted,
            "calls": self.called.drifted,
            "target": self.target_drifted,
            "fire share": self.called.current >= FIRE_SHARE_LIMIT,
            "silent sensors": bool(self.silent_sensors),
            "odd devices": bool(self.odd),
        }
        return tuple(name for name, there in signs.items() if there)

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.data.as_dict(),
            "data_drifted": self.data_drifted,
            "prediction": {
                "method": METHOD,
                "drifted": self.prediction_drifted,
                "scores": asdict(self.scores),
                "called": self.called.as_dict(),
            },
            "target": None if self.target is None else self.target.as_dict(),
            "sensors": [asdict(sensor) for sensor in by_sensor(self.data)],
            "devices": [{**asdict(device), "odd": device.device in self.odd} for device in self.devices],
            "odd_devices": list(self.odd),
            "indicators": list(self.indicators),
        }


class FleetTally:
    """The columns of many rows, each as a ``Tally``, with the champion's scores and the shares of fire beside them.

    Args:
        reference: column -> values of the quiet rows of the snapshot, in order; among them ``SCORE``.
    """

    SCORE = "prediction"

    def __init__(self, reference: Mapping[str, Ordered]) -> None:
        self.columns = {name: Tally(side) for name, side in reference.items()}
        self.compared_rows = 0
        self.rows = 0
        self.called = 0
        self.labelled = 0
        self.labelled_fires = 0

    def add(
        self, compared: Mapping[str, Values], *, rows: int, called: int, labelled: int, labelled_fires: int
    ) -> None:
        """Takes some rows: the columns of those compared; how many there are, are called fire, have a label, burn."""
        for name, tally in self.columns.items():
            tally.add(compared[name])
        self.compared_rows += len(compared[self.SCORE])
        self.rows += rows
        self.called += called
        self.labelled += labelled
        self.labelled_fires += labelled_fires

    def merge(self, other: FleetTally) -> Self:
        """Takes what another one of the same reference has taken."""
        for name, tally in self.columns.items():
            tally.merge(other.columns[name])
        self.compared_rows += other.compared_rows
        self.rows += other.rows
        self.called += other.called
        self.labelled += other.labelled
        self.labelled_fires += other.labelled_fires
        return self

    @property
    def undecided(self) -> tuple[str, ...]:
        """Columns whose bounds have the threshold in between: they need a second, finer pass."""
        return tuple(name for name, tally in self.columns.items() if tally.undecided)

    @property
    def fire_share(self) -> float:
        return self.called / self.rows if self.rows else 0.0

    def day(
        self,
        *,
        fire_share_reference: float,
        label_share_reference: float | None,
        devices: Sequence[DeviceDrift],
        odd: Sequence[str],
    ) -> DayDrift:
        """What the rows say, beside the snapshot's shares of called and of labelled fire."""
        found = {name: tally.drift(name) for name, tally in self.columns.items()}
        scores = found.pop(self.SCORE)
        target = None
        if label_share_reference is not None and self.labelled:
            share = self.labelled_fires / self.labelled
            target = ShareDrift("labelled fire", label_share_reference, share, self.labelled)
        return DayDrift(
            data=summarise(
                list(found.values()),
                reference_rows=self.columns[self.SCORE].reference.rows,
                current_rows=self.compared_rows,
                fire_share_reference=fire_share_reference,
                fire_share_current=self.fire_share,
            ),
            scores=scores,
            called=ShareDrift("called fire", fire_share_reference, self.fire_share, self.rows),
            target=target,
            devices=tuple(sorted(devices, key=lambda d: (d.device not in odd, -(d.share or -1.0), d.device))),
            odd=tuple(odd),
        )
