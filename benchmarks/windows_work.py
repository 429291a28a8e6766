"""The statistics of a window as the peers compute them: NumPy on the readings of one device and window.

Written to be fast for what it is: one call a window, all sensors at once, one sort of them, no dictionary and no frame.
It is a second implementation of ``domain.windows``, whose results it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.levels import LEVELS
from smoke_platform.domain.quality import INCONSISTENCY_TOLERANCE, RESTLESS_SENSORS
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.windows import (
    LEAST_READINGS_FROZEN,
    LEAST_RESTLESS_FROZEN,
    STATISTICS,
    WINDOW_SCHEMA,
)

LENGTH_US = 300_000_000
#: Readings that a device with a report a second should send in a window.
EXPECTED = 300
#: A reading as the peers carry it: event time in microseconds, sequence, label, sensors. NaN: not there.
COLUMNS = ("event_time", "sequence", "fire_alarm", *SENSOR_NAMES)
WIDTH = len(COLUMNS)

Floats = npt.NDArray[np.float64]

_SENSORS = np.arange(len(SENSOR_NAMES))
_SHARES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])[:, None]
_PM1, _PM25 = SENSOR_NAMES.index("pm1_0"), SENSOR_NAMES.index("pm2_5")
_RESTLESS = [SENSOR_NAMES.index(name) for name in RESTLESS_SENSORS]
_HIGH = np.full((4, len(SENSOR_NAMES)), np.inf)
_LOW = np.full((2, len(SENSOR_NAMES)), -np.inf)
for _level in LEVELS:
    if _level.sensor in SENSOR_NAMES:
        _HIGH[:, SENSOR_NAMES.index(_level.sensor)] = _level.high
        if _level.low is not None:
            _LOW[:, SENSOR_NAMES.index(_level.sensor)] = _level.low

#: (window start in us, readings with duplicates, the scalars from record_count on, statistics [15, 12]).
Window = tuple[int, int, tuple[Any, ...], Floats]


def packed(rows: pl.DataFrame) -> Floats:
    """The rows of ``lake/readings`` as float64 [n, ``WIDTH``]."""
    return (
        rows.select(
            pl.col("event_time").dt.epoch("us").cast(pl.Float64),
            pl.col("sequence", "fire_alarm").cast(pl.Float64),
            *SENSOR_NAMES,
        )
        .fill_null(float("nan"))
        .to_numpy(order="c")
    )


def window_of(rows: Floats, start_us: int) -> Window:
    """One window.

    Args:
        rows: [n, ``WIDTH``], n >= 1, in the order in which they were appended to the log.
    """
    landed = len(rows)
    rows = _without_duplicates(rows)
    n, time = len(rows), rows[:, 0]
    values = np.ascontiguousarray(rows[:, 3:].T)
    present = ~np.isnan(values)
    count = present.sum(1)
    statistics = _statistics(values, present, count, (time - start_us) / 60e6)
    mean, least, greatest = statistics[0], statistics[3], statistics[4]
    total, fitted = int(count.sum()), int((count > 0).sum())
    implausible = int((values[_PM1] > values[_PM25] * (1 + INCONSISTENCY_TOLERANCE) + INCONSISTENCY_TOLERANCE).sum())
    still = n >= LEAST_READINGS_FROZEN and (least == greatest).sum() == fitted
    if still and (count[_RESTLESS] >= LEAST_READINGS_FROZEN).sum() >= LEAST_RESTLESS_FROZEN:
        implausible = total
    completeness = min(1.0, n / EXPECTED)
    validity = total / (n * fitted) if fitted else 1.0
    plausibility = 1.0 - (implausible / total if total else 0.0)
    silent_s = (start_us + LENGTH_US - time[-1]) / 1e6 - 1.0
    freshness = 1.0 - min(1.0, max(0.0, silent_s / 300.0))
    levels = np.maximum((mean >= _HIGH).sum(0), (mean <= _LOW).sum(0))
    level = int(levels.max())
    label = rows[:, 2]
    scalars = (
        n, landed - n, EXPECTED, completeness, int((~np.isnan(label)).sum()), int((label == 1).sum()), int(time[0]),
        int(time[-1]), 100.0 * completeness * validity * plausibility * freshness, validity, plausibility, freshness,
        level, SENSOR_NAMES[int(levels.argmax())] if level else None,
    )  # fmt: skip
    return start_us, landed, scalars, statistics


def _without_duplicates(rows: Floats) -> Floats:
    """In the order of event time and sequence, of several with the same the first; at once where nothing is amiss."""
    time = rows[:, 0]
    if (time[1:] > time[:-1]).all():
        return rows
    sequence = np.nan_to_num(rows[:, 1], nan=-np.inf)
    order = np.lexsort((sequence, time))
    time, sequence = time[order], sequence[order]
    first = np.ones(len(rows), bool)
    first[1:] = (time[1:] != time[:-1]) | (sequence[1:] != sequence[:-1])
    kept: Floats = rows[order[first]]
    return kept


def _statistics(
    values: Floats, present: npt.NDArray[np.bool_], count: npt.NDArray[np.int64], minutes: Floats
) -> Floats:
    """``STATISTICS`` by sensor, [15, 12]; ``values`` is [12, n], ``minutes`` since the window's begin."""
    n = len(minutes)
    whole = int(count.min()) == n
    ascending = np.sort(values, axis=1)
    last = np.maximum(count - 1, 0)
    with np.errstate(all="ignore"):
        filled = values if whole else np.where(present, values, 0.0)
        mean = filled.sum(1) / count
        centred = filled - mean[:, None]
        if whole:
            x = minutes - minutes.mean()
            spread = np.full(len(count), x @ x)
            together = centred @ x
            opening, closing = values[:, 0], values[:, -1]
        else:
            centred = np.where(present, centred, 0.0)
            x = (minutes - ((present @ minutes) / count)[:, None]) * present
            spread = np.einsum("ij,ij->i", x, x)
            together = np.einsum("ij,ij->i", x, centred)
            opening = values[_SENSORS, present.argmax(1)]
            closing = values[_SENSORS, n - 1 - present[:, ::-1].argmax(1)]
        variance = np.einsum("ij,ij->i", centred, centred) / np.where(count > 1, count - 1, np.nan)
        place = _SHARES * last
        low = place.astype(np.int64)
        below = ascending[_SENSORS, low]
        percentile = below + (ascending[_SENSORS, np.minimum(low + 1, last)] - below) * (place - low)
        least, greatest = ascending[:, 0], ascending[_SENSORS, last]
        slope = np.where(spread > 0, together / spread, np.nan)
    p05, p25, median, p75, p95 = percentile
    return np.stack(
        (
            mean, np.sqrt(variance), variance, least, greatest, median, p05, p25, p75, p95, greatest - least, opening,
            closing, slope, n - count,
        )
    )  # fmt: skip


def frame_of(found: Iterable[tuple[str, Window]]) -> pl.DataFrame:
    """Windows (device, window) in the columns of ``domain.windows.WINDOW_SCHEMA``; for comparing, not measured."""
    rows: list[Sequence[Any]] = []
    for device, (start_us, landed, scalars, statistics) in found:
        flat = statistics.T.ravel().tolist()
        rows.append((start_us, device, start_us, start_us + LENGTH_US, landed, *scalars, *flat))
    frame = pl.DataFrame(rows, schema=list(WINDOW_SCHEMA), orient="row", infer_schema_length=None)
    times = {name for name, kind in WINDOW_SCHEMA.items() if isinstance(kind, pl.Datetime)}
    return frame.with_columns(
        *(pl.col(name).cast(pl.Datetime("us")).dt.replace_time_zone("UTC") for name in times),
        pl.col("event_date").cast(pl.Datetime("us")).dt.date(),
        *(
            pl.col(f"{sensor}_{statistic}").cast(pl.Float64).fill_nan(None).cast(WINDOW_SCHEMA[f"{sensor}_{statistic}"])
            for sensor in SENSOR_NAMES
            for statistic in STATISTICS
        ),
    ).cast(dict(WINDOW_SCHEMA))
