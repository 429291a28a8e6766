"""Windows: what the readings of a device said in five minutes, a new window each minute. The one definition.

Belongs here: which windows there are, the columns of a window, order and duplicates, the statistics, data quality and
level of a window. Does not: when a window is written (``domain.window_emission``), reading and writing tables
(``streaming.windows``, ``adapters``), a window in words (``domain.window_words``).

A window is a function of the readings in it and of nothing else: neither the order in which rows are handed over, nor
which other rows, devices or windows come with them changes a bit of it. So two engines that call this module with the
same readings write the same rows, however each of them cut the stream.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.devices import DEFAULT_INTERVAL_S
from smoke_platform.domain.levels import levels
from smoke_platform.domain.quality import INCONSISTENCY_TOLERANCE, RESTLESS_SENSORS
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES
from smoke_platform.domain.window_kernel import Flags, Floats, Integers, Stretch

_TIME = pl.Datetime("us", "UTC")
_PLAIN_TIME = pl.Datetime("us")
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
#: Order statistic -> its place between the least value (0) and the greatest (100).
PERCENTS: Final[Mapping[str, int]] = {"min": 0, "max": 100, "median": 50, "p05": 5, "p25": 25, "p75": 75, "p95": 95}
#: Nothing for a window with a single value, or values of a single moment.
_OF_SEVERAL: Final = frozenset({"std", "variance", "slope_per_min"})

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

#: Readings that one thread works on at a time: their arrays stay in the processor's cache.
_CHUNK_ROWS = 1 << 15
#: Windows that become a frame together.
_GROUP_WINDOWS = 1 << 15


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

    def touched(self, rows: pl.DataFrame, by: str = "device_id") -> pl.DataFrame:
        """The windows in which these readings are.

        Args:
            rows: columns event_time and ``by``, which names the device.

        Returns:
            ``by``, window_start; sorted, each once.
        """
        slide_us = self.slide_s * _US
        number = pl.col("number")
        # Each slide that has a reading brings the windows that hold it and not the slide before it which has one.
        before = number.shift(1).over(by)
        return (
            rows.select(by, number=pl.col("event_time").dt.epoch("us") // slide_us)
            .unique()
            .sort(by, "number")
            .select(
                by,
                window_start=pl.int_ranges(
                    pl.max_horizontal(number - self.windows_per_reading, before) + 1, number + 1
                ),
            )
            .explode("window_start")
            .with_columns((pl.col("window_start") * slide_us).cast(_PLAIN_TIME).dt.replace_time_zone("UTC"))
        )


DEFAULT: Final = WindowSpec()


def compute(
    rows: pl.DataFrame,
    spec: WindowSpec = DEFAULT,
    intervals_s: Mapping[str, float] | None = None,
    windows: pl.DataFrame | None = None,
    *,
    threads: int | None = None,
) -> pl.DataFrame:
    """The windows of these readings.

    Args:
        rows: ``ROW_COLUMNS`` of readings that are not late, in any order; all readings of the windows asked for.
        spec: which windows there are.
        intervals_s: device -> seconds between its reports; one second for the others.
        windows: device_id and window_start of the windows wanted; ``None``: of all that hold a reading.
        threads: at most so many; ``None``: one for each processor, up to four.

    Returns:
        Columns of ``WINDOW_SCHEMA``, sorted by device_id and window_start. A window without a reading has no row.
    """
    empty = pl.DataFrame(schema=WINDOW_SCHEMA)
    if rows.is_empty():
        return empty
    ordered = _Ordered.of(rows)
    found = _Windows.of(ordered, spec, windows)
    readings = _Readings.of(rows, ordered, spec, intervals_s or {})
    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        return pl.concat([empty, *(_frame(readings, group, pool) for group in found.groups())])


@dataclass(frozen=True, slots=True)
class _Ordered:
    """The readings by device and ``ORDER``.

    Attributes:
        names: of the devices, in order.
        taken: places in the frame of the readings that are no duplicates; ``None`` where that is all of them as is.
        device, time: int64 of these readings, index into ``names`` and microseconds since 1970.
        duplicates: int64, the readings up to each of these that are duplicates, one longer than the readings;
            ``None`` where there are none.
    """

    names: pl.Series
    taken: Integers | None
    device: Integers
    time: Integers
    duplicates: Integers | None

    @classmethod
    def of(cls, rows: pl.DataFrame) -> _Ordered:
        names = rows["device_id"].unique().sort()
        device = rows["device_id"].cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
        time = rows["event_time"].cast(_TIME).to_physical().to_numpy()
        earliest = int(time.min())
        span = int(time.max()) - earliest + 1
        order: Integers | None
        if len(names) * span < 1 << 62:
            key = device * span + (time - earliest)
            order = None if (key[1:] >= key[:-1]).all() else np.argsort(key)
            if order is not None:
                key = key[order]
            same = key[1:] == key[:-1]
        else:
            order = np.lexsort((time, device))
            same = (device[order][1:] == device[order][:-1]) & (time[order][1:] == time[order][:-1])
        if same.any():
            return cls._without_duplicates(rows, names, device, time, order, same)
        if order is None:
            return cls(names, None, device, time, None)
        return cls(names, order, device[order], time[order], None)

    @classmethod
    def _without_duplicates(
        cls,
        rows: pl.DataFrame,
        names: pl.Series,
        device: Integers,
        time: Integers,
        order: Integers | None,
        same: Flags,
    ) -> _Ordered:
        """Orders the readings of one device and moment by the rest of ``ORDER``, and takes out the duplicates."""
        order = np.arange(len(device)) if order is None else order
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        among = rows.select(name for name in ORDER if name != "event_time")[order[tied]]
        # Moments in their order: what is tied are neighbours in ``order``.
        among.insert_column(0, pl.Series("moment", np.cumsum(~np.append(False, same))[tied]))
        among = among.with_row_index("place").sort(pl.exclude("place"), nulls_last=False)
        order = order.copy()
        order[tied] = order[tied][among["place"].to_numpy()]
        repeats = among.select(
            pl.col("moment").eq(pl.col("moment").shift(1)).fill_null(value=False)
            & pl.col("sequence").eq_missing(pl.col("sequence").shift(1))
        ).to_series()
        repeated = np.zeros(len(order), dtype=np.bool_)
        repeated[tied] = repeats.to_numpy()
        kept = order[~repeated]
        # Of each reading that is kept, the duplicates before it; these follow the reading that they repeat.
        before = np.append(np.cumsum(repeated)[~repeated], repeated.sum())
        return cls(names, kept, device[kept], time[kept], before)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the readings with all windows that hold any of them; ``stretch`` counts from the first of each."""

    rows: slice
    windows: slice
    stretch: Stretch


@dataclass(frozen=True, slots=True)
class _Windows:
    """The windows, by device and start.

    Attributes:
        device: int64 ``[w]``, index into the ordered readings' ``names``.
        start: int64 ``[w]``, microseconds since 1970.
        low, high: int64 ``[w]``, its readings that are no duplicates are ``low:high`` in order.
        parts: one after the other they hold all windows.
    """

    device: Integers
    start: Integers
    low: Integers
    high: Integers
    parts: list[_Part]

    def groups(self) -> Iterator[_Windows]:
        """The same in groups of parts; beside its result ``compute`` holds the numbers of one group."""
        parts: list[_Part] = []
        for part in self.parts:
            parts.append(part)
            first, last = parts[0].windows.start, part.windows.stop
            if last - first >= _GROUP_WINDOWS or part is self.parts[-1]:
                inside = slice(first, last)
                moved = [
                    replace(each, windows=slice(each.windows.start - first, each.windows.stop - first))
                    for each in parts
                ]
                yield _Windows(self.device[inside], self.start[inside], self.low[inside], self.high[inside], moved)
                parts = []

    @classmethod
    def of(cls, ordered: _Ordered, spec: WindowSpec, wanted: pl.DataFrame | None) -> _Windows:
        panes, slide_us = spec.windows_per_reading, spec.slide_s * _US
        number = ordered.time // slide_us
        fresh = np.append(True, (number[1:] != number[:-1]) | (ordered.device[1:] != ordered.device[:-1]))
        pane_row = np.flatnonzero(fresh)
        number, device = number[pane_row], ordered.device[pane_row]

        # Panes so far apart that no window holds both of them belong to different runs. On the grid a run has as many
        # empty panes before and after it as windows that begin before it and end after it take.
        gap = np.diff(number)
        apart = np.append(True, (device[1:] != device[:-1]) | (gap > panes))
        place = np.cumsum(np.append(panes - 1, np.where(apart[1:], 2 * panes - 1, gap)))
        run = np.flatnonzero(apart)
        run_last = np.append(run[1:], len(number)) - 1
        run_windows = number[run_last] - number[run] + panes
        window_run = np.repeat(np.arange(len(run)), run_windows)
        nth = np.arange(len(window_run)) - np.repeat(np.cumsum(run_windows) - run_windows, run_windows)
        window_number = number[run][window_run] - (panes - 1) + nth
        window_device = device[run][window_run]
        if wanted is not None:
            chosen = np.flatnonzero(_chosen(ordered.names, window_device, window_number * slide_us, wanted))
            window_run, nth = window_run[chosen], nth[chosen]
            window_number, window_device = window_number[chosen], window_device[chosen]
        run_place = place[run] - (panes - 1)
        window_place = run_place[window_run] + nth

        grid = int(place[-1]) + panes
        rows_before = np.zeros(grid + 1, np.int64)
        rows_before[place + 1] = np.diff(np.append(pane_row, len(ordered.time)))
        np.cumsum(rows_before, out=rows_before)
        low, high = rows_before[window_place], rows_before[window_place + panes]
        if wanted is not None:
            moved, grid = _without_needless(grid, place, window_place, panes)
            place, window_place, run_place = moved[place], moved[window_place], moved[run_place]

        # Whole runs of panes together, some _CHUNK_ROWS readings at a time.
        chunk = pane_row[run] // _CHUNK_ROWS
        begun = np.append(True, chunk[1:] != chunk[:-1])
        begin, offsets = run[begun], run_place[begun]
        window_begin = np.searchsorted(window_place, offsets)
        parts = []
        for first, last, offset, beyond, window_first, window_last in zip(
            begin,
            np.append(begin[1:], len(number)),
            offsets,
            np.append(offsets[1:], grid),
            window_begin,
            np.append(window_begin[1:], len(window_place)),
            strict=True,
        ):
            if window_first == window_last:
                continue
            row, end = int(pane_row[first]), int(pane_row[last]) if last < len(number) else len(ordered.time)
            windows = slice(int(window_first), int(window_last))
            stretch = Stretch(
                time=ordered.time[row:end],
                pane_row=pane_row[first:last] - row,
                pane_place=place[first:last] - offset,
                grid=int(beyond - offset),
                window_place=window_place[windows] - offset,
                low=low[windows] - row,
                high=high[windows] - row,
                panes=panes,
                percents=tuple(PERCENTS.values()),
            )
            parts.append(_Part(slice(row, end), windows, stretch))
        return cls(window_device, window_number * slide_us, low, high, parts)


def _without_needless(grid: int, place: Integers, window_place: Integers, panes: int) -> tuple[Integers, int]:
    """Leaves those places off a grid that are in no window and have no readings.

    Returns:
        Where each place is now, int64 ``[grid]`` (one that is left off: where the next one is); how many are left.
    """
    ends = np.bincount(window_place + panes, minlength=grid + 1)[:grid]
    needed = np.cumsum(np.bincount(window_place, minlength=grid) - ends) > 0
    needed[place] = True
    return np.cumsum(needed) - needed, int(needed.sum())


def _chosen(names: pl.Series, device: Integers, start: Integers, wanted: pl.DataFrame) -> Flags:
    """Which of the windows are wanted."""
    keys = pl.DataFrame({"device": device, "start": start})
    others = wanted.select(
        pl.col("device_id").cast(pl.Enum(names), strict=False).to_physical().cast(pl.Int64).alias("device"),
        pl.col("window_start").cast(_TIME).to_physical().alias("start"),
    ).with_columns(wanted=True)
    joined = keys.join(others.unique(), on=["device", "start"], how="left", maintain_order="left")
    return joined["wanted"].fill_null(value=False).to_numpy()


@dataclass(frozen=True, slots=True)
class _Readings:
    """What the windows are made of.

    Attributes:
        columns: float64, of each sensor as in the frame; NaN where nothing was measured.
        duplicates, labels, fires, contradictions: how many of the ordered readings before each of them are or have
            such, int64, one longer than the readings; ``None`` where none does.
        interval: int64, of each device, in microseconds.
    """

    ordered: _Ordered
    spec: WindowSpec
    columns: list[Floats]
    duplicates: Integers | None
    labels: Integers | None
    fires: Integers | None
    contradictions: Integers | None
    interval: Integers

    @classmethod
    def of(cls, rows: pl.DataFrame, ordered: _Ordered, spec: WindowSpec, intervals_s: Mapping[str, float]) -> _Readings:
        def before(flags: npt.NDArray[Any]) -> Integers | None:
            if not flags.any():
                return None
            return np.append(0, np.cumsum(flags if ordered.taken is None else flags[ordered.taken], dtype=np.int64))

        columns = [rows[name].cast(pl.Float64).to_numpy() for name in SENSOR_NAMES]
        pm1_0, pm2_5 = (columns[SENSOR_NAMES.index(name)] for name in ("pm1_0", "pm2_5"))
        label = rows["fire_alarm"].cast(pl.Boolean)
        interval = [max(1, round(intervals_s.get(name, DEFAULT_INTERVAL_S) * _US)) for name in ordered.names]
        return cls(
            ordered=ordered,
            spec=spec,
            columns=columns,
            duplicates=ordered.duplicates,
            labels=before(label.is_not_null().to_numpy()),
            fires=before(label.fill_null(value=False).to_numpy()),
            contradictions=before(pm1_0 > pm2_5 * (1 + INCONSISTENCY_TOLERANCE) + INCONSISTENCY_TOLERANCE),
            interval=np.array(interval, np.int64),
        )

    def statistics(self, found: _Windows, pool: ThreadPoolExecutor) -> tuple[Floats, Integers]:
        """The statistics of each sensor but for ``missing``, float64 ``[12, 14, w]``, NaN for none; and ``missing``."""
        values = np.empty((len(SENSOR_NAMES), len(STATISTICS) - 1, len(found.start)))
        missing = np.zeros((len(SENSOR_NAMES), len(found.start)), np.int64)
        taken = self.ordered.taken

        def work(part: _Part) -> None:
            for place, column in enumerate(self.columns):
                measured = column[part.rows] if taken is None else column.take(taken[part.rows])
                _of_sensor(measured, part.stretch, values[place, :, part.windows], missing[place, part.windows])

        if len(found.parts) == 1:
            work(found.parts[0])
        else:
            list(pool.map(work, found.parts))
        return values, missing


def _of_sensor(values: Floats, stretch: Stretch, answer: Floats, missing: Integers) -> None:
    """The statistics of one sensor in the windows of a stretch, into ``answer`` ``[14, w]`` and ``missing`` ``[w]``."""
    measured = ~np.isnan(values)
    if measured.all():
        _of_values(values, stretch, answer)
        return
    answer[:] = np.nan
    missing[:] = stretch.high - stretch.low
    if measured.any():
        rest, windows = stretch.only(measured)
        if windows.any():
            some = np.empty((len(answer), len(rest.low)))
            _of_values(values[measured], rest, some)
            answer[:, windows] = some
            missing[windows] -= rest.high - rest.low


def _of_values(values: Floats, stretch: Stretch, answer: Floats) -> None:
    answer[0], answer[2], answer[-1] = stretch.moments(values)
    answer[1] = np.sqrt(answer[2])
    least, greatest = answer[3], answer[4]
    stretch.order_statistics(values, answer[3 : 3 + len(PERCENTS)])
    answer[-4] = greatest - least
    answer[-3], answer[-2] = values[stretch.low], values[stretch.high - 1]


def _frame(readings: _Readings, found: _Windows, pool: ThreadPoolExecutor) -> pl.DataFrame:
    """Columns of ``WINDOW_SCHEMA``."""
    ordered, values, missing = readings.ordered, *readings.statistics(found, pool)

    def counted(before: Integers | None) -> Integers:
        """How many of each window's readings."""
        if before is None:
            return np.zeros(len(found.low), np.int64)
        inside: Integers = before[found.high] - before[found.low]
        return inside

    count = found.high - found.low
    duplicates = counted(readings.duplicates)
    first, last = ordered.time[found.low], ordered.time[found.high - 1]

    length_us = readings.spec.length_s * _US
    interval = readings.interval[found.device]
    expected = np.maximum(length_us // interval, 1)
    completeness = np.minimum(count / expected, 1.0)
    present = count - missing
    total = present.sum(axis=0)
    possible = count * (present > 0).sum(axis=0)
    validity = np.where(possible > 0, total / np.maximum(possible, 1), 1.0)
    restless = sum(
        (present[SENSOR_NAMES.index(name)] >= LEAST_READINGS_FROZEN).astype(np.int64) for name in RESTLESS_SENSORS
    )
    least, greatest = values[:, STATISTICS.index("min")], values[:, STATISTICS.index("max")]
    constant = ~(least < greatest).any(axis=0)
    implausible = np.where(constant & (restless >= LEAST_RESTLESS_FROZEN), total, counted(readings.contradictions))
    plausibility = 1.0 - implausible / np.maximum(total, 1)
    freshness = 1.0 - np.clip((found.start + length_us - last - interval) / length_us, 0.0, 1.0)

    means = np.full((len(count), len(ALL_SENSOR_NAMES)), np.nan)
    means[:, [ALL_SENSOR_NAMES.index(name) for name in SENSOR_NAMES]] = values[:, STATISTICS.index("mean")].T
    level = levels(means)
    highest, sensor = level.max(axis=1), level.argmax(axis=1)

    start = pl.Series(found.start).cast(_PLAIN_TIME)
    columns: dict[str, pl.Series | npt.NDArray[Any]] = {
        "event_date": start.cast(pl.Date),
        "device_id": ordered.names[found.device],
        "window_start": found.start,
        "window_end": found.start + length_us,
        "revision": count + duplicates,
        "record_count": count,
        "duplicate_count": duplicates,
        "expected_count": expected,
        "completeness": completeness,
        "label_count": counted(readings.labels),
        "fire_label_count": counted(readings.fires),
        "first_event_time": first,
        "last_event_time": last,
        "quality_score": 100.0 * completeness * validity * plausibility * freshness,
        "validity": validity,
        "plausibility": plausibility,
        "freshness": freshness,
        "level": highest,
        "level_sensor": pl.Series(ALL_SENSOR_NAMES)[np.where(highest > 0, sensor, 0)].set(
            pl.Series(highest == 0), None
        ),
    }
    for place, name in enumerate(SENSOR_NAMES):
        empty = bool((present[place] == 0).any())
        for statistic, of_windows in zip(STATISTICS, values[place], strict=False):
            series = pl.Series(of_windows)
            columns[f"{name}_{statistic}"] = series.fill_nan(None) if empty or statistic in _OF_SEVERAL else series
        columns[f"{name}_missing"] = missing[place]
    return pl.DataFrame([pl.Series(name, columns[name]).cast(kind) for name, kind in WINDOW_SCHEMA.items()])
