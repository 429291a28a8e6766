"""``lake/window_statistics`` as its readers see it, and the readings in the lake that its windows rest on.

Belongs here: the table's schema, windows by device and time at their latest revision, the window that is still open,
what a writer has to look up (``TakenReadings``). Does not: the statistics (``domain.windows``), when a window is
appended (``domain.window_emission``), writing (``streaming.windows``), words for people (``domain.window_words``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake, storage_schema
from smoke_platform.domain.lake_records import latest_devices
from smoke_platform.domain.window_emission import (
    APPENDED,
    SUMMARY,
    TAKEN_COLUMNS,
    first_open,
    merged,
    summary_of,
)
from smoke_platform.domain.windows import DEFAULT, ROW_COLUMNS, WINDOW_SCHEMA, compute

WINDOWS = "window_statistics"
WRITTEN_AT = "written_at"
DEVICES = "devices"
_TIME = pl.Datetime("us", "UTC")
#: What makes a window; its row is the one of the highest revision.
WINDOW_KEY = ("device_id", "window_start")
_LENGTH = timedelta(seconds=DEFAULT.length_s)

#: Storage schema of ``lake/window_statistics``: the statistics, and when the row was written.
WINDOW_COLUMNS: dict[str, pl.DataType] = {**WINDOW_SCHEMA, WRITTEN_AT: _TIME}
WINDOW_TABLE_SCHEMA: pa.Schema = storage_schema(WINDOW_COLUMNS)
#: What readers look for; files without it are skipped.
INDEXED = ("device_id", "window_start", "window_end", "revision", "last_event_time", "level", WRITTEN_AT)

#: A device that landed anything within this time is one that reports: it has an open window.
LIVE = timedelta(minutes=5)
#: What ``conspicuous`` looks at.
LEVEL_COLUMNS = (*WINDOW_KEY, "window_end", "revision", "level", "level_sensor")
#: What names a row of the table. Which ones are wanted is asked by these first: all columns of a day of a fleet do not
#: fit into memory.
ROW_KEY = (*WINDOW_KEY, "revision")
#: Days of event time that are looked through at first for the newest windows; then twice as many, and so on.
_FIRST_DAYS = 2
#: The level of a mean from which on a window is worth naming: HIGH.
CONSPICUOUS = 3
#: Ranges of event time in one question to the lake; more are put together.
_MOST_RANGES = 8


def latest(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Of each window the row of the highest revision."""
    return rows.sort("revision").unique(WINDOW_KEY, keep="last")


def stamped(rows: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    """Windows as they are stored when they are written at this moment."""
    return rows.with_columns(pl.lit(moment).cast(_TIME).alias(WRITTEN_AT)).select(list(WINDOW_COLUMNS))


def _typed(rows: pl.LazyFrame, columns: Collection[str] = tuple(WINDOW_COLUMNS)) -> pl.LazyFrame:
    # Delta knows no unsigned numbers: what is stored as one comes back with a sign.
    return rows.select(pl.col(name).cast(WINDOW_COLUMNS[name]) for name in columns)


def _none(columns: Collection[str] = tuple(WINDOW_COLUMNS)) -> pl.DataFrame:
    return pl.DataFrame(schema={name: WINDOW_COLUMNS[name] for name in columns})


# -- reading windows -------------------------------------------------------------------------------------


class WindowTable:
    """Windows as they stand in the lake, each at its latest revision. Every call sees the table as it is then."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def exists(self) -> bool:
        """Whether any window was ever appended."""
        return self._lake.exists(WINDOWS)

    def of_device(
        self, device_id: str, since: datetime | None = None, until: datetime | None = None, limit: int | None = None
    ) -> pl.DataFrame:
        """A device's windows, the newest first.

        Args:
            since, until: windows that start at ``since`` or later and before ``until``.
            limit: so many of them at most, the newest.

        Returns:
            Columns of ``WINDOW_COLUMNS``.
        """
        if limit is not None:
            return self.newest(since, until, limit, device_id)
        if not self.exists():
            return _none()
        mine = _between(self._lake.scan(WINDOWS), since, until).filter(pl.col("device_id") == device_id)
        return _typed(latest(mine).sort("window_start", descending=True)).collect()

    def newest(
        self, since: datetime | None, until: datetime | None, limit: int, device_id: str | None = None
    ) -> pl.DataFrame:
        """The newest windows that start at ``since`` or later and before ``until``: newest first, then by device.

        Args:
            limit: so many of them at most.
            device_id: of this device alone.
        """
        if not self.exists():
            return _none()
        table = self._lake.open(WINDOWS)
        rows = _between(pl.scan_delta(table), since, until)
        if device_id is not None:
            rows = rows.filter(pl.col("device_id") == device_id)
        return self.rows_of(_newest_keys(rows, _days(table), limit))

    def newest_of_each(self, since: datetime | None, limit: int) -> pl.DataFrame:
        """The newest window of each device that got one written after ``since``, by device; of ``limit`` devices."""
        keys = self.written_after(since, ROW_KEY)
        newest = keys.sort("window_start", "revision").unique("device_id", keep="last")
        return self.rows_of(newest.sort("device_id").head(limit)).sort("device_id")

    def rows_of(self, keys: pl.DataFrame) -> pl.DataFrame:
        """The rows of these windows: newest first, then by device.

        Args:
            keys: device_id, window_start, revision; no more of them than fit into memory with all their columns.
        """
        if keys.is_empty():
            return _none()
        days = keys["window_start"].dt.date().unique()
        candidates = self._lake.scan(WINDOWS).filter(
            pl.col(PARTITION_COLUMN).is_in(days.implode()),
            pl.col("window_start").is_between(keys["window_start"].min(), keys["window_start"].max()),
            pl.col("device_id").is_in(keys["device_id"].unique().implode()),
        )
        rows = _typed(candidates).join(keys.lazy(), on=list(ROW_KEY), how="semi")
        # Streaming: the candidates may be many more than the rows, such as where the newest windows are years apart.
        found = rows.collect(engine="streaming").unique(WINDOW_KEY, keep="any")
        return found.sort("window_start", "device_id", descending=[True, False])

    def between(
        self,
        since: datetime | None,
        until: datetime | None,
        columns: Collection[str] = tuple(WINDOW_COLUMNS),
        devices: tuple[str, str] | None = None,
    ) -> pl.DataFrame:
        """The windows of all devices that start at ``since`` or later and before ``until``, by time and device.

        With all its columns a day of a hundred devices takes a gigabyte: ask for few, or for little time.

        Args:
            columns: those of ``WINDOW_COLUMNS`` that are wanted.
            devices: of the devices from the first to the last of these, by name.
        """
        if not self.exists():
            return _none(columns)
        rows = _between(self._lake.scan(WINDOWS), since, until)
        if devices is not None:
            rows = rows.filter(_named_between(*devices))
        return _typed(latest(rows.select({*columns, *ROW_KEY})).sort("window_start", "device_id"), columns).collect()

    def revisions(
        self, starts: Collection[datetime], columns: Collection[str], device_id: str | None = None
    ) -> pl.DataFrame:
        """The rows, of all revisions, of the windows with these starts: of all devices, or of one.

        Args:
            columns: those of ``WINDOW_COLUMNS`` that are wanted.
        """
        if not (starts and self.exists()):
            return _none(columns)
        rows = self._lake.scan(WINDOWS).filter(
            pl.col(PARTITION_COLUMN).is_in({start.astimezone(UTC).date() for start in starts}),
            pl.col("window_start").is_between(min(starts), max(starts)),
            pl.col("window_start").is_in(pl.Series(sorted(starts), dtype=_TIME).implode()),
        )
        if device_id is not None:
            rows = rows.filter(pl.col("device_id") == device_id)
        return _typed(rows, columns).collect()

    def knows(self, device_id: str) -> bool:
        """Whether the device has any window."""
        if not self.exists():
            return False
        rows = self._lake.scan(WINDOWS).filter(pl.col("device_id") == device_id)
        return not rows.select("device_id").head(1).collect().is_empty()

    def written_after(
        self,
        moment: datetime | None,
        columns: Collection[str] = tuple(WINDOW_COLUMNS),
        device_id: str | None = None,
    ) -> pl.DataFrame:
        """The rows, of all revisions, that were written after ``moment``, in the order of writing.

        Args:
            columns: those of ``WINDOW_COLUMNS`` that are wanted; ten minutes of a fleet are large with all of them.
            device_id: of this device alone.
        """
        if not self.exists():
            return _none(columns)
        rows = self._lake.scan(WINDOWS)
        if moment is not None:
            rows = rows.filter(pl.col(WRITTEN_AT) > moment)
        if device_id is not None:
            rows = rows.filter(pl.col("device_id") == device_id)
        needed = {*columns, WRITTEN_AT, *WINDOW_KEY}
        return _typed(rows.select(needed).sort(WRITTEN_AT, *reversed(WINDOW_KEY)), columns).collect()

    def last_written(self) -> datetime | None:
        """When the newest row was written, ``None`` where there is none."""
        if not self.exists():
            return None
        found = self._lake.scan(WINDOWS).select(pl.col(WRITTEN_AT).max()).collect().item()
        return found if isinstance(found, datetime) else None

    def version(self) -> int:
        """The table's version, -1 where there is no table."""
        return self._lake.version(WINDOWS)


def conspicuous(rows: pl.DataFrame, least: int = CONSPICUOUS) -> pl.DataFrame:
    """The devices whose newest window among the rows has a mean at level ``least`` or beyond, the worst first.

    Args:
        rows: ``LEVEL_COLUMNS``.

    Returns:
        Columns device_id, window_start, window_end, level, level_sensor.
    """
    newest = rows.sort("window_start", "revision").unique("device_id", keep="last")
    found = newest.filter(pl.col("level") >= least).sort(["level", "device_id"], descending=[True, False])
    return found.select("device_id", "window_start", "window_end", "level", "level_sensor")


def _between(rows: pl.LazyFrame, since: datetime | None, until: datetime | None) -> pl.LazyFrame:
    if since is not None:
        rows = rows.filter(pl.col("window_start") >= since, pl.col(PARTITION_COLUMN) >= since.astimezone(UTC).date())
    if until is not None:
        rows = rows.filter(pl.col("window_start") < until, pl.col(PARTITION_COLUMN) <= until.astimezone(UTC).date())
    return rows


def _named_between(first: str, last: str) -> pl.Expr:
    return pl.col("device_id").is_between(pl.lit(first), pl.lit(last))


def _days(table: DeltaTable) -> list[date]:
    """The days that the table has rows of, the newest first."""
    return sorted({date.fromisoformat(str(part[PARTITION_COLUMN])) for part in table.partitions()}, reverse=True)


def _newest_keys(rows: pl.LazyFrame, days: list[date], limit: int) -> pl.DataFrame:
    """``ROW_KEY`` of the newest windows, at most ``limit``: day after day backwards, until there are enough."""
    found = [_none(ROW_KEY)]
    missing = limit
    first, count = 0, _FIRST_DAYS
    while first < len(days) and missing > 0:
        span = days[first : first + count]
        some = rows.filter(pl.col(PARTITION_COLUMN).is_between(span[-1], span[0]))
        starts = some.group_by("window_start").len().collect(engine="streaming").sort("window_start", descending=True)
        while not starts.is_empty() and missing > 0:
            # These hold as many rows as windows are missing; of a corrected one there are several, so look again.
            taken = starts.filter(pl.col("len").cum_sum() - pl.col("len") < missing)["window_start"]
            newest = latest(some.filter(pl.col("window_start").is_between(taken.min(), taken.max())).select(ROW_KEY))
            found.append(_typed(newest.sort("window_start", "device_id", descending=[True, False]), ROW_KEY).collect())
            missing -= found[-1].height
            starts = starts.slice(len(taken))
        first, count = first + count, count * 2
    return pl.concat(found).head(limit)


# -- the window that is open -----------------------------------------------------------------------------


def open_windows(
    lake: Lake, device_id: str | None = None, *, now: datetime, intervals_s: Mapping[str, float] | None = None
) -> pl.DataFrame:
    """The window of each device that is appended next: computed now from the newest readings, and still growing.

    Only devices that landed anything within ``LIVE`` have one.

    Args:
        device_id: this device alone.

    Returns:
        Columns of ``domain.windows.WINDOW_SCHEMA``, by device.
    """
    empty = pl.DataFrame(schema=WINDOW_SCHEMA)
    if not lake.exists(READINGS):
        return empty
    table = lake.open(READINGS)
    chosen = pl.lit(value=True) if device_id is None else pl.col("device_id") == device_id
    # By landing time, not event time: a replay of old readings is live, too.
    recent = pruned(table, f"ingest_time >= '{(now - LIVE).isoformat()}'")
    if recent is None:
        return empty
    clocks = (
        recent.filter(chosen, pl.col("ingest_time") >= now - LIVE, ~pl.col("late"))
        .group_by("device_id")
        .agg(pl.col("event_time").max().alias("clock"))
        .with_columns(begin=first_open(pl.col("clock")))
        .collect()
    )
    if clocks.is_empty():
        return empty
    spans = clocks.select("device_id", "begin", end=pl.col("begin") + _LENGTH)
    rows = _event_times(pl.scan_delta(table), spans).filter(~pl.col("late")).select(ROW_COLUMNS).collect()
    wanted = clocks.select("device_id", window_start="begin")
    return compute(rows, intervals_s=intervals_s, windows=wanted)


# -- reporting intervals ---------------------------------------------------------------------------------


class Intervals:
    """The reporting intervals of the devices, from ``lake/devices``; looked up again when the table has changed.

    Args:
        every_s: how often it is looked whether it has.
        monotonic: the clock for it.
    """

    def __init__(self, lake: Lake, *, every_s: float, monotonic: Callable[[], float]) -> None:
        self._lake = lake
        self._every_s = every_s
        self._monotonic = monotonic
        self._looked = -every_s
        self._version = -1
        self._known: dict[str, float] = {}

    def current(self) -> Mapping[str, float]:
        """Device id -> interval in seconds; devices without an entry have the default."""
        if self._monotonic() - self._looked >= self._every_s:
            self._looked = self._monotonic()
            version = self._lake.version(DEVICES)
            if version != self._version:
                self._known = intervals_of(self._lake)
                self._version = version
        return self._known


def intervals_of(lake: Lake) -> dict[str, float]:
    """Device id -> reporting interval in seconds, as ``lake/devices`` has it."""
    if not lake.exists(DEVICES):
        return {}
    entries = latest_devices(lake.scan(DEVICES)).select("device_id", "interval_s").collect()
    return {device_id: interval for device_id, interval in entries.iter_rows() if interval is not None}


# -- what a writer looks up ------------------------------------------------------------------------------

#: Topic id -> partition -> offset up to which its readings were taken.
Taken = Mapping[str, Mapping[int, int]]


class TakenReadings:
    """The readings in the lake that were taken so far, and the windows that were appended: ``window_emission.Past``.

    Args:
        readings: ``lake/readings``; it is refreshed here.
        windows: gives the table of windows as it is now.
        taken: of these topics; it may change as more is taken. Readings of other topics were all taken.
    """

    def __init__(self, readings: DeltaTable, windows: Callable[[], DeltaTable], taken: Taken) -> None:
        self._readings = readings
        self._windows = windows
        self.taken = taken

    def refresh(self) -> DeltaTable:
        """Sees what has landed meanwhile."""
        self._readings.update_incremental()
        return self._readings

    def rows(self, spans: pl.DataFrame) -> pl.DataFrame:
        self.refresh()
        columns = [*ROW_COLUMNS, "ingest_time"]
        return (
            _event_times(pl.scan_delta(self._readings), spans)
            .filter(~pl.col("late"), self._is_taken())
            .select(columns)
            .collect()
        )

    def appended(self, since: pl.DataFrame) -> pl.DataFrame:
        if since.is_empty():
            return pl.DataFrame(schema=dict(APPENDED))
        begin = since["begin"].min()
        assert isinstance(begin, datetime)  # noqa: S101 - of a time column that is not empty
        found = (
            _between(pl.scan_delta(self._windows()), begin, None)
            .filter(pl.col("device_id").is_in(since["device_id"].implode()))
            .select(list(APPENDED))
            .join(since.lazy(), on="device_id", how="inner")
            .filter(pl.col("window_start") >= pl.col("begin"))
        )
        return latest(found).select(list(APPENDED)).collect()

    def between(self, topic_id: str, begin: Mapping[int, int], end: Mapping[int, int]) -> pl.DataFrame:
        """The readings of a topic between these positions, late ones included: columns ``TAKEN_COLUMNS``."""
        ranges = {number: (begin.get(number, 0), place) for number, place in end.items()}
        rows = pruned(
            self._readings, " OR ".join(f"(offset >= {low} AND offset < {high})" for low, high in ranges.values())
        )
        if rows is None:
            return pl.DataFrame(schema=pl.scan_delta(self._readings).select(TAKEN_COLUMNS).collect_schema())
        offset = pl.col("offset")
        return (
            rows.filter(
                pl.col("topic_id") == topic_id,
                pl.any_horizontal(
                    (pl.col("partition") == number) & (offset >= low) & (offset < high)
                    for number, (low, high) in ranges.items()
                ),
            )
            .select(TAKEN_COLUMNS)
            .collect()
        )

    def since(self, moment: datetime | None) -> tuple[pl.DataFrame, pl.DataFrame]:
        """What ``OpenWindows.restore`` takes: of the readings that were taken and landed at ``moment`` or later.

        Args:
            moment: ``None`` for all readings.
        """
        columns = [*ROW_COLUMNS, "ingest_time"]
        condition = "" if moment is None else f"ingest_time >= '{moment.isoformat()}'"
        found = pruned(self._readings, condition)
        if found is None:
            schema = pl.scan_delta(self._readings).select(columns).collect_schema()
            return pl.DataFrame(schema=dict(SUMMARY)), pl.DataFrame(schema=schema)
        if moment is not None:
            found = found.filter(pl.col("ingest_time") >= moment)
        taken = found.filter(self._is_taken())
        summary = summary_of(taken).collect(engine="streaming").select(list(SUMMARY))
        floors = summary.drop_nulls("clock").select("device_id", floor=first_open(pl.col("clock")))
        if floors.is_empty():
            return summary, found.select(columns).head(0).collect()
        lowest = floors["floor"].min()
        rows = (
            taken.filter(~pl.col("late"), pl.col("event_time") >= lowest)
            .join(floors.lazy(), on="device_id", how="inner")
            .filter(pl.col("event_time") >= pl.col("floor"))
            .select(columns)
            .collect(engine="streaming")
        )
        return summary, rows

    def at(self, begin: datetime, end: datetime, devices: tuple[str, str] | None = None) -> pl.DataFrame:
        """The readings that were taken and are not late, by event time; columns ``ROW_COLUMNS``.

        Args:
            devices: of the devices from the first to the last of these, by name; ``None``: of all.
        """
        rows = self._at(begin, end)
        if devices is not None:
            rows = rows.filter(_named_between(*devices))
        return rows.select(ROW_COLUMNS).collect()

    def counts(self, begin: datetime, end: datetime, by: pl.Expr) -> pl.DataFrame:
        """How many of the readings that ``at`` would give there are of each ``by``, in its order: columns by, len."""
        return self._at(begin, end).group_by(by.alias("by")).len().collect(engine="streaming").sort("by")

    def _at(self, begin: datetime, end: datetime) -> pl.LazyFrame:
        return pl.scan_delta(self._readings).filter(
            pl.col(PARTITION_COLUMN).is_between(begin.date(), end.date()),
            pl.col("event_time").is_between(begin, end, closed="left"),
            ~pl.col("late"),
            self._is_taken(),
        )

    def topics(self) -> dict[str, dict[int, int]]:
        """Topic id -> partition -> offset after the last reading, of all topics that ever landed."""
        found = (
            pl.scan_delta(self._readings)
            .group_by("topic_id", "partition")
            .agg(pl.col("offset").max() + 1)
            .collect(engine="streaming")
        )
        topics: dict[str, dict[int, int]] = {}
        for topic_id, partition, end in found.iter_rows():
            topics.setdefault(topic_id, {})[partition] = end
        return topics

    def _is_taken(self) -> pl.Expr:
        named = pl.col("topic_id").is_in(list(self.taken))
        parts = [
            (pl.col("topic_id") == topic_id) & (pl.col("partition") == number) & (pl.col("offset") < place)
            for topic_id, positions in self.taken.items()
            for number, place in positions.items()
        ]
        return pl.any_horizontal(~named, *parts)


def pruned(table: DeltaTable, condition: str) -> pl.LazyFrame | None:
    """The rows of the files that may hold any for which ``condition`` (SQL) is true; ``None`` where there are none.

    For columns by which files are skipped and which are no partition columns; those are not among the columns.
    """
    files = table.file_uris(file_pruning_predicate=condition) if condition else table.file_uris()
    return pl.scan_parquet(files, hive_partitioning=False) if files else None


def _event_times(rows: pl.LazyFrame, spans: pl.DataFrame) -> pl.LazyFrame:
    """The rows of the devices of the spans, files skipped by their times; more rows than lie in the spans."""
    ranges = list(event_ranges(spans))
    return rows.filter(
        pl.col("device_id").is_in(spans["device_id"].unique().implode()),
        pl.any_horizontal(
            (pl.col("event_time") >= begin)
            & (pl.col("event_time") < end)
            & pl.col(PARTITION_COLUMN).is_between(begin.date(), end.date())
            for begin, end in ranges
        ),
    )


def event_ranges(spans: pl.DataFrame) -> Iterator[tuple[datetime, datetime]]:
    """The times of all spans as few ranges that cover them, in UTC."""
    times = merged(spans.select(pl.lit("all").alias("device_id"), "begin", "end"))
    if times.height > _MOST_RANGES:
        # The widest gaps are worth a range of their own.
        gaps = (times["begin"] - times["end"].shift(1)).dt.total_seconds().fill_null(0)
        cut = gaps.rank("ordinal", descending=True) < _MOST_RANGES
        times = (
            times.with_columns(part=cut.cast(pl.Int32).cum_sum())
            .group_by("part", maintain_order=True)
            .agg(pl.col("begin").min(), pl.col("end").max())
        )
    for begin, end in times.select("begin", "end").iter_rows():
        yield begin.astimezone(UTC), end.astimezone(UTC)
