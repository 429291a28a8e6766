"""How the simulated world's readings are distributed beside recorded ones.

Belongs here: what is compared and how (quantiles, Kolmogorov-Smirnov distances, noise, rank correlations of pairs),
what is doubtful about the recordings themselves, and what both together say. Does not: the simulation (``simulator``),
reading files (``recordings``), the page (``adapters.marginals_page``).

Clean air and smoke are compared apart, since how often there is smoke is chosen in a simulation and chance in a
recording. Marginals show whether levels, ranges and relations are plausible. They don't show that a simulated fire runs
as a real one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.history_summary import CLEAN_PM2_5
from smoke_platform.domain.readings import ALL_SENSOR_NAMES
from smoke_platform.domain.simulator import simulate

#: Quantiles of the tables and figures.
QUANTILES: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
#: Fewer rows of a state on either side are not compared.
LEAST_ROWS: Final = 100
#: Share of the simulated rows that bounds "within the simulated range" on both sides.
_TAIL: Final = 0.005
#: Distances from which a sensor is named as differing: at 0.3 nearly a third of the rows lie elsewhere.
LARGE_DISTANCE: Final = 0.3
#: A sensor has noise: its second differences add up to a third of the first ones at least. As the history judges it.
_SMOOTH: Final = 1 / 3
#: Rows that a stretch has at least for such judgements.
_LEAST_STRETCH: Final = 200
#: PM2.5 above which a label that says "no fire" is doubtful, ug/m3, as the history has it.
_SMOKE_PM2_5: Final = 100.0
#: Changes of correlation that are named.
_LARGE_CHANGE: Final = 0.5

_STATES: Final[Mapping[str, pl.Expr]] = {
    "clean air": pl.col("pm2_5") <= CLEAN_PM2_5,
    "smoke": pl.col("pm2_5") > CLEAN_PM2_5,
}
STATES: Final = tuple(_STATES)

DISTANCE_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "state": pl.String,
    "sensor": pl.String,
    "distance": pl.Float64,
    "outside": pl.Float64,
    "simulated_noise": pl.Float64,
    "recorded_noise": pl.Float64,
}
QUANTILE_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "state": pl.String,
    "sensor": pl.String,
    "quantile": pl.Float64,
    "simulated": pl.Float64,
    "recorded": pl.Float64,
}
PAIR_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "state": pl.String,
    "first": pl.String,
    "second": pl.String,
    "simulated": pl.Float64,
    "recorded": pl.Float64,
}


@dataclass(frozen=True, slots=True)
class Doubts:
    """What the recordings themselves give reason to doubt.

    Attributes:
        rows: as they came; ``copies``: those that repeat an earlier row in everything but time and temperature.
        smooth: (recording, sensor) of signals too smooth for a sensor.
        fires: rows labelled as fire; ``fires_in_clean_air``: those with PM2.5 of at most ``CLEAN_PM2_5``.
        smoke_without_fire: rows labelled as none with PM2.5 above 100 ug/m3.
    """

    rows: int
    copies: int
    smooth: tuple[tuple[str, str], ...]
    fires: int
    fires_in_clean_air: int
    smoke_without_fire: int


@dataclass(frozen=True, slots=True)
class Marginals:
    """Both worlds beside each other.

    Attributes:
        rows: state -> (simulated, recorded) rows compared.
        devices: (simulated, recorded) devices.
        distances: ``DISTANCE_SCHEMA``. ``distance`` is that of Kolmogorov and Smirnov, 0 (alike) to 1 (apart);
            ``outside`` the share of recorded rows beyond the middle 99% of the simulated ones; noise the usual step
            from reading to reading over sqrt(2), in the sensor's unit, median over devices.
        quantiles: ``QUANTILE_SCHEMA``.
        pairs: ``PAIR_SCHEMA``: rank correlations within a device, median over devices.
        doubts: about the recordings.
    """

    rows: Mapping[str, tuple[int, int]]
    devices: tuple[int, int]
    distances: pl.DataFrame
    quantiles: pl.DataFrame
    pairs: pl.DataFrame
    doubts: Doubts


#: What is simulated for a comparison: so many devices for an hour, at these hours of a day, once a second.
COMPARED_DEVICES: Final = 48
_HOURS: Final = (1, 7, 13, 19)
_FIRES, _NUISANCES = 6.0, 6.0


def simulated_for_comparison(seed: int = 7, devices: int = COMPARED_DEVICES) -> pl.DataFrame:
    """Readings of the simulated world at four times of a day, as many devices each time."""
    frames = [
        simulate(
            devices,
            datetime(2025, 3, 10, hour, tzinfo=UTC),
            3600,
            seed,
            fires_per_device_day=_FIRES,
            nuisances_per_device_day=_NUISANCES,
            first_device=place * devices,
        )
        for place, hour in enumerate(_HOURS)
    ]
    return pl.concat(frames)


def ks_distance(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Greatest difference of the two empirical distribution functions, 0 to 1 (Kolmogorov and Smirnov).

    >>> ks_distance(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    1.0
    """
    first, second = np.sort(first), np.sort(second)
    both = np.concatenate([first, second])
    gap = np.searchsorted(first, both, side="right") / len(first) - np.searchsorted(second, both, side="right") / len(
        second
    )
    return float(np.abs(gap).max())


def compare(simulated: pl.DataFrame, recorded: pl.DataFrame) -> Marginals:
    """Compares readings of the simulated world with recorded ones.

    Copies in the recordings are left out, and so is a sensor of a recording whose signal no sensor gives.

    Args:
        simulated, recorded: ``device_id``, ``event_time``, the sensors (null where not measured), and ``fire_alarm``
            where it is known; ``recording``, where there is one, is taken for the device.

    Raises:
        SmokeError: where the recordings have no particles to tell clean air from smoke by, or too few rows.
    """
    kept, doubts = _examined(recorded)
    if kept["pm2_5"].null_count() == kept.height:
        raise SmokeError(
            "the recordings have no pm2_5, so that clean air and smoke can't be told apart",
            "name a file with a column PM2.5 or pm2_5",
        )
    distances: list[tuple[Any, ...]] = []
    quantiles: list[tuple[Any, ...]] = []
    pairs: list[tuple[Any, ...]] = []
    rows: dict[str, tuple[int, int]] = {}
    for state, chosen in _STATES.items():
        ours, theirs = simulated.filter(chosen), kept.filter(chosen)
        rows[state] = (ours.height, theirs.height)
        if min(ours.height, theirs.height) < LEAST_ROWS:
            continue
        seen = [name for name in ALL_SENSOR_NAMES if _enough(ours, name) and _enough(theirs, name)]
        for name in seen:
            first, second = (frame[name].drop_nulls().to_numpy() for frame in (ours, theirs))
            low, high = np.quantile(first, (_TAIL, 1 - _TAIL))
            outside = float(((second < low) | (second > high)).mean())
            distances.append(
                (state, name, ks_distance(first, second), outside, _noise(ours, name), _noise(theirs, name))
            )
            quantiles += [
                (state, name, level, float(mine), float(other))
                for level, mine, other in zip(
                    QUANTILES, np.quantile(first, QUANTILES), np.quantile(second, QUANTILES), strict=True
                )
            ]
        mine, other = _correlations(ours, seen), _correlations(theirs, seen)
        pairs += [(state, *pair, mine.get(pair), other.get(pair)) for pair in _pairs(seen)]
    if not distances:
        raise SmokeError(f"fewer than {LEAST_ROWS} rows to compare", "name a longer recording")
    return Marginals(
        rows=rows,
        devices=(simulated["device_id"].n_unique(), recorded["device_id"].n_unique()),
        distances=pl.DataFrame(distances, schema=DISTANCE_SCHEMA, orient="row"),
        quantiles=pl.DataFrame(quantiles, schema=QUANTILE_SCHEMA, orient="row"),
        pairs=pl.DataFrame(pairs, schema=PAIR_SCHEMA, orient="row"),
        doubts=doubts,
    )


def _enough(frame: pl.DataFrame, name: str) -> bool:
    return frame.height - frame[name].null_count() >= LEAST_ROWS


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    return [(first, second) for place, first in enumerate(names) for second in names[place + 1 :]]


def _noise(frame: pl.DataFrame, name: str) -> float | None:
    """Usual step between neighbours: 1.4826 times the median of its size is a standard deviation, if it is normal."""
    steps = frame.group_by("device_id").agg((pl.col(name).diff().abs().median() * 1.4826 / 2**0.5).alias("step"))
    value = steps["step"].median()
    return float(value) if isinstance(value, (int, float)) else None


def _correlations(frame: pl.DataFrame, names: list[str]) -> dict[tuple[str, str], float]:
    """Rank correlation of each pair within a device, or levels of devices would pass for relations; median of those."""
    found: dict[tuple[str, str], list[float]] = {}
    for _, own in frame.select("device_id", *names).group_by("device_id"):
        if own.height < _LEAST_STRETCH:
            continue
        # A null takes part in no pair; its rank is set to the middle, which moves a correlation towards 0.
        ranks = own.select(pl.col(names).rank()).fill_null(strategy="mean").to_numpy()
        centred = ranks - ranks.mean(axis=0)
        norms = np.sqrt((centred * centred).sum(axis=0))
        with np.errstate(invalid="ignore", divide="ignore"):
            matrix = centred.T @ centred / np.outer(norms, norms)
        for first, second in _pairs(names):
            value = matrix[names.index(first), names.index(second)]
            if np.isfinite(value):
                found.setdefault((first, second), []).append(float(value))
    return {pair: float(np.median(values)) for pair, values in found.items()}


# -- doubts ------------------------------------------------------------------------------------------------------
def _examined(recorded: pl.DataFrame) -> tuple[pl.DataFrame, Doubts]:
    """The recordings without copies and without signals that no sensor gives, and what was found."""
    if "recording" in recorded.columns:
        recorded = recorded.with_columns(pl.col("recording").cast(pl.String).alias("device_id"))
    marks = [name for name in ALL_SENSOR_NAMES if name != "temperature_c"]
    # Sensors that rest repeat by chance in short; a row of all channels at once does not.
    unique = recorded.unique(marks, keep="first", maintain_order=True)
    smooth = []
    kept = unique
    for (device,), own in recorded.group_by("device_id", maintain_order=True):
        for name in ALL_SENSOR_NAMES:
            if _too_smooth(own[name]):
                smooth.append((str(device), name))
                hidden = pl.col("device_id") == device
                kept = kept.with_columns(pl.when(~hidden).then(pl.col(name)).alias(name))
    fire = pl.col("fire_alarm").fill_null(value=False)
    quiet = ~pl.col("fire_alarm").fill_null(value=True)
    counts = recorded.select(
        fires=fire.sum(),
        fires_in_clean_air=(fire & (pl.col("pm2_5") <= CLEAN_PM2_5)).sum(),
        smoke_without_fire=(quiet & (pl.col("pm2_5") > _SMOKE_PM2_5)).sum(),
    ).row(0, named=True)
    return kept, Doubts(recorded.height, recorded.height - unique.height, tuple(smooth), **counts)


def _too_smooth(values: pl.Series) -> bool:
    present = values.drop_nulls().to_numpy()
    if len(present) < _LEAST_STRETCH:
        return False
    steps = np.diff(present)
    moved = np.abs(steps).sum()
    return bool(moved > 0 and np.abs(np.diff(steps)).sum() < _SMOOTH * moved)


# -- words -------------------------------------------------------------------------------------------------------
def sentences(found: Marginals) -> list[str]:
    """What the comparison says, and what it can't."""
    lines = []
    for state in STATES:
        ours, theirs = found.rows[state]
        own = found.distances.filter(pl.col("state") == state)
        if own.height == 0:
            lines.append(f"{state}: {ours:,} simulated and {theirs:,} recorded rows, too few to compare.")
            continue
        far = own.filter(pl.col("distance") >= LARGE_DISTANCE).sort("distance", descending=True)
        outside = own.filter(pl.col("outside") > 0.05).sort("outside", descending=True)
        lines.append(
            f"{state}: {ours:,} simulated rows beside {theirs:,} recorded ones. "
            + (
                "Distributions differ most in "
                + ", ".join(f"{name} ({value:.2f})" for name, value in far.head(5).select("sensor", "distance").rows())
                + "."
                if far.height
                else f"No sensor's distributions are further apart than {LARGE_DISTANCE}."
            )
        )
        if outside.height:
            lines.append(
                f"{state}: beyond the middle 99% of the simulated readings lie "
                + ", ".join(
                    f"{share:.0%} of {name}" for name, share in outside.head(5).select("sensor", "outside").rows()
                )
                + "."
            )
        changed = found.pairs.filter(
            (pl.col("state") == state) & ((pl.col("simulated") - pl.col("recorded")).abs() >= _LARGE_CHANGE)
        )
        if changed.height:
            worst = changed.sort((pl.col("simulated") - pl.col("recorded")).abs(), descending=True).row(0, named=True)
            lines.append(
                f"{state}: {changed.height} of {found.pairs.filter(pl.col('state') == state).height} pairs of sensors "
                f"are related otherwise, most of all {worst['first']} and {worst['second']} "
                f"({worst['simulated']:.2f} simulated, {worst['recorded']:.2f} recorded)."
            )
    return [*lines, *_doubtful(found)]


def _doubtful(found: Marginals) -> list[str]:
    doubts = found.doubts
    lines = []
    if doubts.copies:
        lines.append(
            f"{doubts.copies:,} of {doubts.rows:,} recorded rows repeat an earlier one in everything but time and "
            "temperature; they were left out."
        )
    if doubts.smooth:
        named = ", ".join(f"{name} of {device}" for device, name in doubts.smooth)
        lines.append(f"Too smooth for a sensor, so computed by somebody, and left out: {named}.")
    if doubts.fires and doubts.fires_in_clean_air:
        lines.append(
            f"{doubts.fires_in_clean_air / doubts.fires:.1%} of the rows labelled as fire have PM2.5 of at most "
            f"{CLEAN_PM2_5:g} ug/m3: states were told apart by particles, not by the label."
        )
    if doubts.smoke_without_fire:
        lines.append(
            f"{doubts.smoke_without_fire:,} rows with more than {_SMOKE_PM2_5:g} ug/m3 are labelled as no fire."
        )
    simulated, recorded = found.devices
    lines.append(
        f"The simulation has {simulated} rooms and devices, the recordings {recorded} at few places: a recording that "
        "lies within the simulated range supports it, differing shapes alone don't refute it."
    )
    return lines
