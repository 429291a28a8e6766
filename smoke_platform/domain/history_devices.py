"""What the hours of a device say once all of its days are together: its days, its rhythm, and hours unlike its others.

Belongs here: the hours of some devices -> rows a day, sums a local hour, patterns of deviation, signals too odd to be
measured. Does not: comparing devices with each other (``domain.history_trends``), readings
(``domain.history_summary``).

Devices are independent here, so that they can be worked on anywhere in any number; what comes out is merged by adding
or by putting together.

Rare patterns, the method: each device is compared with itself. For each sensor its hourly means (on a log scale where
values spread over decades) have a median and a MAD; an hour deviates where it lies ``LEAST_Z`` or more robust standard
deviations away. The sensors' deviations are put together by what they sense ("heat up, particles up"), and such
patterns are counted over all devices: rare ones are those that hardly ever occur. The bound is set so that Gaussian
noise would give less than one deviation in the whole lake; real air is not Gaussian, so the list is cut off as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.quality import RESTLESS_SENSORS
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

#: A quiet baseline is the median of a day's hourly medians; fewer hours are not a day.
LEAST_HOURS_FOR_BASELINE: Final = 6
#: A rhythm is read off days of which so many hours are there.
LEAST_HOURS_OF_WHOLE_DAY: Final = 20
#: A device is compared with itself from so many hours on, each of at least so many readings.
LEAST_HOURS_TO_JUDGE: Final = 48
LEAST_READINGS_OF_HOUR: Final = 30
#: Robust standard deviations from which on an hour deviates, at the least.
LEAST_Z: Final = 6.0
#: Examples of a pattern that one bucket hands on.
EXAMPLES: Final = 3
#: A measured signal trembles: the sum of its bends (second differences) is of the order of the sum of its steps. Those
#: of the public recordings lie between 0.36 and 1.7, two computed curves among them at 0.02 and 0.07.
SMOOTH_BELOW: Final = 0.15
LEAST_STEPS_TO_JUDGE: Final = 600

#: What senses what; a deviation is named by its group. Raw gas signals fall where gas rises.
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "heat": ("temperature_c",),
    "humidity": ("humidity_pct",),
    "gas": ("tvoc_ppb", "eco2_ppm", "raw_h2", "raw_ethanol"),
    "pressure": ("pressure_hpa",),
    "particles": ("pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5"),
    "carbon monoxide": ("co_ppm",),
}
_FALLING: Final = ("raw_h2", "raw_ethanol")
#: Compared on a log scale: values spread over decades.
_LOGARITHMIC: Final = ("tvoc_ppb", "eco2_ppm", "pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5", "co_ppm")
#: Smaller spreads are a sensor at rest or its resolution; on the log scale 0.05 is 5%.
_LEAST_SPREAD: Final[Mapping[str, float]] = {
    "temperature_c": 0.1,
    "humidity_pct": 0.5,
    "raw_h2": 10.0,
    "raw_ethanol": 10.0,
    "pressure_hpa": 0.3,
}
_GAUSSIAN: Final = 1.4826

_Floats = npt.NDArray[np.float64]

PATTERNS_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "source": pl.String(),
    "pattern": pl.String(),
    "hours": pl.Int64(),
    "devices": pl.Int64(),
}
EXAMPLES_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "source": pl.String(),
    "pattern": pl.String(),
    "device_id": pl.String(),
    "hour": pl.Datetime("us", "UTC"),
    "z": pl.Float64(),
    "fires": pl.Int64(),
    "evidence": pl.String(),
}
JUDGED_SCHEMA: Final[Mapping[str, pl.DataType]] = {"source": pl.String(), "hours": pl.Int64(), "devices": pl.Int64()}
ODD_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "source": pl.String(),
    "device_id": pl.String(),
    "event_date": pl.Date(),
    "sensor": pl.String(),
    "kind": pl.String(),
    "value": pl.Float64(),
    "rows": pl.Int64(),
}


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """What the hours of some devices say.

    Attributes:
        days: a row for each source, device and local day: rows, fires, and ``n``, ``mean``, ``min``, ``max`` and
            ``baseline`` of each sensor.
        rhythm: a row for each source, local day and hour: rows, fires, and of each sensor ``n`` and ``sum`` of the
            readings, ``an`` and ``asum`` of the hours' deviations from the mean of their device's whole day.
        patterns: ``PATTERNS_SCHEMA``: how many hours of how many devices deviate in just this way.
        examples: ``EXAMPLES_SCHEMA``: of each pattern the strongest hours.
        judged: ``JUDGED_SCHEMA``: what patterns were looked for in.
        odd: ``ODD_SCHEMA``: UTC days of a device with a signal that stands still (``constant``, its value) or is too
            smooth to be measured (``smooth``, bends / steps).
    """

    days: pl.DataFrame
    rhythm: pl.DataFrame
    patterns: pl.DataFrame
    examples: pl.DataFrame
    judged: pl.DataFrame
    odd: pl.DataFrame


def least_z(device_hours: int) -> float:
    """Robust standard deviations from which on an hour deviates, for a lake of so many device-hours."""
    tests = max(1, device_hours * len(ALL_SENSOR_NAMES))
    return max(LEAST_Z, NormalDist().inv_cdf(1 - 0.25 / tests))


def summarise_devices(hours: pl.DataFrame, days: pl.DataFrame, z: float = LEAST_Z) -> DeviceSummary:
    """What the hours of some devices say.

    Args:
        hours: ``history_summary.HOURS_SCHEMA`` and ``event_date``, all rows of these devices.
        days: ``history_summary.DAYS_SCHEMA`` and ``event_date``, the same.
        z: see ``least_z``.
    """
    hours = hours.sort("source", "device_id", "hour", "local_hour")
    patterns, examples, judged = _patterns(hours, z)
    return DeviceSummary(_local_days(hours), _rhythm(hours), patterns, examples, judged, _odd(hours, days))


def _means() -> list[pl.Expr]:
    return [
        pl.when(pl.col(f"{name}_n") > 0).then(pl.col(f"{name}_sum") / pl.col(f"{name}_n")).alias(f"{name}_mean")
        for name in ALL_SENSOR_NAMES
    ]


def _local_days(hours: pl.DataFrame) -> pl.DataFrame:
    return (
        hours.group_by("source", "device_id", pl.col("local_date").alias("day"), maintain_order=True)
        .agg(
            pl.col("rows", "fires").sum(),
            *(pl.col(f"{name}_n").sum() for name in ALL_SENSOR_NAMES),
            *(pl.col(f"{name}_sum").sum() for name in ALL_SENSOR_NAMES),
            *(pl.col(f"{name}_min").min() for name in ALL_SENSOR_NAMES),
            *(pl.col(f"{name}_max").max() for name in ALL_SENSOR_NAMES),
            *(
                pl.when(pl.col(f"{name}_median").count() >= LEAST_HOURS_FOR_BASELINE)
                .then(pl.col(f"{name}_median").median())
                .alias(f"{name}_baseline")
                for name in ALL_SENSOR_NAMES
            ),
        )
        .with_columns(_means())
        .drop(f"{name}_sum" for name in ALL_SENSOR_NAMES)
    )


def _rhythm(hours: pl.DataFrame) -> pl.DataFrame:
    day = ("source", "device_id", "local_date")
    # A local hour may come in two rows where the zone is off by half an hour.
    local = hours.group_by(*day, "weekday", "local_hour", maintain_order=True).agg(
        pl.col("rows", "fires").sum(), pl.col("^.*_(n|sum)$").sum()
    )
    whole = pl.len().over(day) >= LEAST_HOURS_OF_WHOLE_DAY
    with_means = local.with_columns(_means())
    deviations = {
        name: pl.when(whole).then(pl.col(f"{name}_mean") - pl.col(f"{name}_mean").mean().over(day))
        for name in ALL_SENSOR_NAMES
    }
    return (
        with_means.with_columns(expr.alias(f"{name}_deviation") for name, expr in deviations.items())
        .group_by("source", "local_date", "weekday", "local_hour")
        .agg(
            pl.col("rows", "fires").sum(),
            pl.col("^.*_(n|sum)$").sum(),
            *(pl.col(f"{name}_deviation").count().cast(pl.Int64).alias(f"{name}_an") for name in ALL_SENSOR_NAMES),
            *(pl.col(f"{name}_deviation").sum().alias(f"{name}_asum") for name in ALL_SENSOR_NAMES),
        )
        .sort("source", "local_date", "local_hour")
    )


# -- patterns ----------------------------------------------------------------------------------------------------


def _patterns(hours: pl.DataFrame, z: float) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    found: list[tuple[Any, ...]] = []
    judged: dict[str, tuple[int, int]] = {}
    usable = hours.filter(pl.col("rows") >= LEAST_READINGS_OF_HOUR)
    for (source, device), group in usable.group_by("source", "device_id", maintain_order=True):
        if group.height < LEAST_HOURS_TO_JUDGE:
            continue
        before = judged.get(str(source), (0, 0))
        judged[str(source)] = (before[0] + group.height, before[1] + 1)
        found += _deviating(str(source), str(device), group, z)
    columns = dict(EXAMPLES_SCHEMA)
    deviating = pl.DataFrame(found, schema=columns, orient="row")
    kind = ("source", "pattern")
    patterns = deviating.group_by(kind).agg(
        pl.len().cast(pl.Int64).alias("hours"), pl.col("device_id").n_unique().cast(pl.Int64).alias("devices")
    )
    strongest = deviating.sort("z", "device_id", "hour", descending=[True, False, False])
    return (
        patterns.select(list(PATTERNS_SCHEMA)).sort(kind),
        strongest.group_by(kind, maintain_order=True)
        .head(EXAMPLES)
        .select(list(columns))
        .sort(kind, maintain_order=True),
        pl.DataFrame(
            [(source, *counts) for source, counts in sorted(judged.items())], schema=dict(JUDGED_SCHEMA), orient="row"
        ),
    )


def _deviating(source: str, device: str, hours: pl.DataFrame, z: float) -> list[tuple[Any, ...]]:
    means = hours.select(_means()).to_numpy().astype(np.float64, copy=False)
    scores, usual = _scores(means)
    rows = []
    for place in np.flatnonzero((np.abs(scores) >= z).any(axis=1)):
        words, sensors = _named(scores[place], z)
        evidence = [
            {
                "sensor": ALL_SENSOR_NAMES[sensor],
                "mean": _rounded(means[place, sensor]),
                "usual": _rounded(usual[sensor]),
                "z": round(float(scores[place, sensor]), 1),
            }
            for sensor in sensors
        ]
        hour, fires = hours["hour"][int(place)], hours["fires"][int(place)]
        strength = float(np.nanmax(np.abs(scores[place])))
        rows.append((source, ", ".join(words), device, hour, strength, fires, json.dumps(evidence)))
    return rows


def _scores(means: _Floats) -> tuple[_Floats, _Floats]:
    """Robust z of each hour and sensor (NaN where there is none), and the device's usual hourly mean of each sensor."""
    scores = np.full(means.shape, np.nan)
    usual = np.full(means.shape[1], np.nan)
    for place, name in enumerate(ALL_SENSOR_NAMES):
        column = means[:, place]
        present = ~np.isnan(column)
        if present.sum() < LEAST_HOURS_TO_JUDGE:
            continue
        scaled = np.log1p(column[present]) if name in _LOGARITHMIC else column[present]
        middle = np.median(scaled)
        spread = max(_GAUSSIAN * float(np.median(np.abs(scaled - middle))), _LEAST_SPREAD.get(name, 0.05))
        scores[present, place] = (scaled - middle) / spread
        usual[place] = np.median(column[present])
    return scores, usual


def _named(scores: _Floats, z: float) -> tuple[list[str], list[int]]:
    """The groups that deviate, and how; and the deviating sensors, the strongest first."""
    words = []
    for group, sensors in GROUPS.items():
        places = [ALL_SENSOR_NAMES.index(name) for name in sensors]
        strongest = max(places, key=lambda place: np.nan_to_num(abs(scores[place])))
        if np.nan_to_num(abs(scores[strongest])) >= z:
            rises = (scores[strongest] > 0) != (ALL_SENSOR_NAMES[strongest] in _FALLING)
            words.append(f"{group} {'up' if rises else 'down'}")
    sensors_in_order = np.argsort(-np.nan_to_num(np.abs(scores)), kind="stable")
    return words, [int(place) for place in sensors_in_order if np.nan_to_num(abs(scores[place])) >= z][:4]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


# -- odd signals -------------------------------------------------------------------------------------------------


def _odd(hours: pl.DataFrame, days: pl.DataFrame) -> pl.DataFrame:
    key = ("source", "device_id", "event_date")
    extremes = hours.group_by(key).agg(
        *(pl.col(f"{name}_n").sum() for name in RESTLESS_SENSORS),
        *(pl.col(f"{name}_min").min() for name in RESTLESS_SENSORS),
        *(pl.col(f"{name}_max").max() for name in RESTLESS_SENSORS),
    )
    frames = [
        extremes.filter(
            (pl.col(f"{name}_n") >= LEAST_STEPS_TO_JUDGE) & (pl.col(f"{name}_min") == pl.col(f"{name}_max"))
        ).select(
            *key,
            sensor=pl.lit(name),
            kind=pl.lit("constant"),
            value=pl.col(f"{name}_min"),
            rows=pl.col(f"{name}_n"),
        )
        for name in RESTLESS_SENSORS
    ]
    ratios = {name: pl.col(f"{name}_bend_sum") / pl.col(f"{name}_step_sum") for name in ALL_SENSOR_NAMES}
    frames += [
        days.filter(
            (pl.col(f"{name}_steps") >= LEAST_STEPS_TO_JUDGE)
            & (pl.col(f"{name}_step_sum") > 0)
            & (ratio < SMOOTH_BELOW)
        ).select(*key, sensor=pl.lit(name), kind=pl.lit("smooth"), value=ratio, rows=pl.col(f"{name}_steps"))
        for name, ratio in ratios.items()
    ]
    return (
        pl.concat(frames)
        .select(pl.col(name).cast(kind) for name, kind in ODD_SCHEMA.items())
        .sort("kind", "source", "device_id", "sensor", "event_date")
    )
