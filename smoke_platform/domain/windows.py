"""Windows: what the readings of a device said in five minutes, a new window each minute. The one definition.

Belongs here: which windows there are, the columns of a window, order and duplicates, the statistics, data quality and
level of a window. Does not: when a window is written (``domain.window_emission``), reading and writing tables
(``streaming.windows``, ``adapters``), a window in words (``domain.window_words``).

A window is a function of the readings in it and of nothing else: neither the order in which rows are handed over, nor
which other rows, devices or windows come with them changes a bit of it. So two engines that call this module with the
same readings write the same rows, however each of them cut the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.levels import levels
from smoke_platform.domain.quality import INCONSISTENCY_TOLERANCE, RESTLESS_SENSORS
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES

_TIME = pl.Datetime("us", "UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = 1_000_000

#: Of each sensor, in this order.
STATISTICS: Final[tuple[str, ...]] = (
    "mean",
    "std",
    "variance",
    "min",
    "max",
    "median",
    "p05",
    "p25",
    "p75",
    "p95",
    "range",
    "first",
    "last",
    "slope_per_min",
    "missing",
)
#: Statistic -> the share of the values at or below it, in percent.
PERCENTILES: Final[Mapping[str, int]] = {"p05": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95}

#: Columns of a window, in the order of ``lake/window_statistics``.
WINDOW_SCHEMA: Final[dict[str, pl.DataType]] = {
    "event_date": pl.Date(),
    "device_id": pl.String(),
    "window_start": _TIME,
    "window_end": _TIME,
    "revision": pl.Int64(),
    "record_count": pl.Int64(),
    "duplicate_count": pl.Int64(),
    "expected_count": pl.Int64(),
    "completeness": pl.Float64(),
    "label_count": pl.Int64(),
    "fire_label_count": pl.Int64(),
    "first_event_time": _TIME,
    "last_event_time": _TIME,
    "quality_score": pl.Float64(),
    "validity": pl.Float64(),
    "plausibility": pl.Float64(),
    "freshness": pl.Float64(),
    "level": pl.UInt8(),
    "level_sensor": pl.String(),
    **{
        f"{sensor}_{statistic}": pl.Int64() if statistic == "missing" else pl.Float64()
        for sensor in SENSOR_NAMES
        for statistic in STATISTICS
    },
}

#: Order of the readings of a device; a missing sequence comes first.
ORDER: Final[tuple[str, ...]] = ("event_time", "sequence", "topic_id", "partition", "offset")
#: What ``compute`` needs of a reading; other columns are ignored.
ROW_COLUMNS: Final[tuple[str, ...]] = ("device_id", *ORDER, *SENSOR_NAMES, "fire_alarm")

#: A device whose every sensor repeats one value over at least so many readings is frozen ...
LEAST_READINGS_FROZEN = 60
#: ... where at least so many of the sensors that always move (``quality.RESTLESS_SENSORS``) are among them.
LEAST_RESTLESS_FROZEN = 2
DEFAULT_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """Which windows there are: [start, start + length), a start at each multiple of ``slide_s`` since 1970 (UTC).

    Attributes:
        length_s, slide_s: whole seconds; the length is a multiple of the slide.

    Raises:
        ValueError: where it is not.
    """

    length_s: int = 300
    slide_s: int = 60

    def __post_init__(self) -> None:
        if self.slide_s < 1 or self.length_s < 1 or self.length_s % self.slide_s:
            raise ValueError(f"a window of {self.length_s} s can't slide by {self.slide_s} s: use a whole part of it")

    @property
    def length(self) -> timedelta:
        return timedelta(seconds=self.length_s)

    @property
    def slide(self) -> timedelta:
        return timedelta(seconds=self.slide_s)

    @property
    def windows_per_reading(self) -> int:
        return self.length_s // self.slide_s

    def open_from(self, clock: datetime) -> datetime:
        """The start of the earliest window that is open (its end is after ``clock``).

        Readings of the device from before it are needed by no open window.
        """
        slides = (clock - self.length - _EPOCH) // self.slide + 1
        return _EPOCH + slides * self.slide

    def starts(self, event_time: datetime) -> list[datetime]:
        """The starts of the windows that hold this moment, earliest first."""
        first = self.open_from(event_time)
        return [first + step * self.slide for step in range(self.windows_per_reading)]

    def touched(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The windows in which these readings are.

        Args:
            rows: columns device_id and event_time.

        Returns:
            device_id, window_start; sorted, each once.
        """
        panes = rows.select("device_id", pl.col("event_time").dt.epoch("us") // (self.slide_s * _US)).unique()
        steps = pl.Series("step", range(self.windows_per_reading), dtype=pl.Int64)
        return (
            panes.join(steps.to_frame(), how="cross")
            .select(
                "device_id",
                window_start=((pl.col("event_time") - pl.col("step")) * (self.slide_s * _US))
                .cast(pl.Datetime("us"))
                .dt.replace_time_zone("UTC"),
            )
            .unique()
            .sort("device_id", "window_start")
        )


DEFAULT: Final = WindowSpec()


def without_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows in order, with ``duplicate``: whether an earlier one has the same device, event time and sequence.

    Args:
        rows: columns device_id and ``ORDER``; two readings without a sequence have the same.

    Returns:
        All rows, sorted by device and ``ORDER``.
    """
    ordered = rows.sort("device_id", *ORDER, nulls_last=False)
    same = pl.all_horizontal(
        pl.col(name).eq_missing(pl.col(name).shift(1)) for name in ("device_id", "event_time", "sequence")
    )
    return ordered.with_columns(duplicate=same & (pl.int_range(pl.len()) > 0))


def compute(
    rows: pl.DataFrame,
    spec: WindowSpec = DEFAULT,
    intervals_s: Mapping[str, float] | None = None,
    windows: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The windows of these readings.

    Args:
        rows: ``ROW_COLUMNS`` of readings that are not late, in any order; all readings of the windows asked for.
        spec: which windows there are.
        intervals_s: device -> seconds between its reports; one second for the others.
        windows: device_id and window_start of the windows wanted; ``None``: of all that hold a reading.

    Returns:
        Columns of ``WINDOW_SCHEMA``, sorted by device_id and window_start. A window without a reading has no row.
    """
    wanted = spec.touched(rows)
    if windows is not None:
        wanted = wanted.join(windows.select("device_id", "window_start"), on=["device_id", "window_start"], how="semi")
    ordered = without_duplicates(rows.select(ROW_COLUMNS))
    found = []
    for (device_id,), group in ordered.group_by("device_id", maintain_order=True):
        interval_s = (intervals_s or {}).get(str(device_id), DEFAULT_INTERVAL_S)
        for start in wanted.filter(device_id=device_id)["window_start"]:
            inside = group.filter(pl.col("event_time").is_between(start, start + spec.length, closed="left"))
            found.append(_window(inside, str(device_id), start, spec, interval_s))
    return pl.DataFrame(found, schema=WINDOW_SCHEMA).sort("device_id", "window_start")


def _window(rows: pl.DataFrame, device_id: str, start: datetime, spec: WindowSpec, interval_s: float) -> dict[str, Any]:
    distinct = rows.filter(~pl.col("duplicate"))
    count = distinct.height
    minutes = (distinct["event_time"] - start).dt.total_microseconds().to_numpy() / (60.0 * _US)
    values = distinct.select(pl.col(SENSOR_NAMES).cast(pl.Float64).fill_null(np.nan)).to_numpy()
    sensors = {name: _statistics(minutes, values[:, place]) for place, name in enumerate(SENSOR_NAMES)}
    last: datetime = distinct["event_time"][-1]
    expected = max(1, spec.length_s * _US // max(1, round(interval_s * _US)))
    present = {name: count - int(found["missing"] or 0) for name, found in sensors.items()}
    fitted = sum(n > 0 for n in present.values())
    total = sum(present.values())
    completeness = min(1.0, count / expected)
    validity = total / (count * fitted) if fitted else 1.0
    plausibility = 1.0 - (_implausible(distinct, sensors, present) / total if total else 0.0)
    silent_s = (start + spec.length - last) / timedelta(seconds=1) - interval_s
    freshness = 1.0 - min(1.0, max(0.0, silent_s / spec.length_s))
    means = np.full((1, len(ALL_SENSOR_NAMES)), np.nan)
    for name, found in sensors.items():
        if found["mean"] is not None:
            means[0, ALL_SENSOR_NAMES.index(name)] = found["mean"]
    level = levels(means)[0]
    return {
        "event_date": start.date(),
        "device_id": device_id,
        "window_start": start,
        "window_end": start + spec.length,
        "revision": rows.height,
        "record_count": count,
        "duplicate_count": rows.height - count,
        "expected_count": expected,
        "completeness": completeness,
        "label_count": int(distinct["fire_alarm"].count()),
        "fire_label_count": int(distinct["fire_alarm"].sum()),
        "first_event_time": distinct["event_time"][0],
        "last_event_time": last,
        "quality_score": 100.0 * completeness * validity * plausibility * freshness,
        "validity": validity,
        "plausibility": plausibility,
        "freshness": freshness,
        "level": int(level.max()),
        "level_sensor": ALL_SENSOR_NAMES[int(level.argmax())] if level.any() else None,
        **{f"{name}_{statistic}": value for name, found in sensors.items() for statistic, value in found.items()},
    }


def _implausible(
    rows: pl.DataFrame, sensors: Mapping[str, Mapping[str, float | None]], present: Mapping[str, int]
) -> int:
    total = sum(present.values())
    constant = all(found["min"] == found["max"] for found in sensors.values())
    restless = sum(present[name] >= LEAST_READINGS_FROZEN for name in RESTLESS_SENSORS)
    if constant and restless >= LEAST_RESTLESS_FROZEN:
        return total
    limit = pl.col("pm2_5") * (1 + INCONSISTENCY_TOLERANCE) + INCONSISTENCY_TOLERANCE
    return int(rows.select((pl.col("pm1_0") > limit).sum()).item())


def _statistics(minutes: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    measured = ~np.isnan(values)
    x, t = values[measured], minutes[measured]
    n = len(x)
    answer: dict[str, float | None] = dict.fromkeys(STATISTICS)
    answer["missing"] = len(values) - n
    if n == 0:
        return answer
    ascending = np.sort(x)
    mean = x[0] + (x - x[0]).sum() / n
    answer["mean"] = float(mean)
    if n > 1:
        variance = float(np.square(x - mean).sum() / (n - 1))
        answer["variance"], answer["std"] = variance, float(np.sqrt(variance))
    for name, percent in PERCENTILES.items():
        low, part = divmod((n - 1) * percent, 100)
        high = min(low + 1, n - 1)
        answer[name] = float(ascending[low] + (part / 100) * (ascending[high] - ascending[low]))
    answer["min"], answer["max"] = float(ascending[0]), float(ascending[-1])
    answer["range"] = float(ascending[-1] - ascending[0])
    answer["first"], answer["last"] = float(x[0]), float(x[-1])
    if t[0] != t[-1]:
        centred = t - t.mean()
        answer["slope_per_min"] = float((centred * (x - mean)).sum() / np.square(centred).sum())
    return answer
