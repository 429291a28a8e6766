"""Windows on Spark: after each batch of readings the windows that are due, into ``lake/window_statistics``.

Belongs here: what is known between two batches, what a start looks up, the job and its commit. Does not: which windows
are due (``domain.window_planning``), what executors do (``streaming.spark_window_tasks``), engine ``local``
(``streaming.windows``), with which it shares the table, the positions and the marks: either goes on where the other
ended.

The driver knows the minutes in which devices got readings, and no reading. The executors read what a window rests on
from the lake, so a window says what the lake says, be its readings new or a correction of last year.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from smoke_platform.adapters.kafka_bulk import TopicFacts
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake
from smoke_platform.adapters.lake_files import FileShape, WrittenFile, files_of
from smoke_platform.adapters.windows import INDEXED, WINDOWS, Intervals, TakenReadings, event_ranges, pruned
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.window_planning import (
    HEARD,
    MINUTES,
    WINDOW,
    WaitingWindows,
    heard_of,
    merged_heard,
    merged_minutes,
    minutes_of,
)
from smoke_platform.domain.windows import DEFAULT, ROW_COLUMNS
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import Fenced, LandedTable, committed_positions, stamps_folder
from smoke_platform.streaming.spark_reading import REPORT_SCHEMA, from_ipc, gather, to_ipc
from smoke_platform.streaming.spark_tasks import LandedPart
from smoke_platform.streaming.spark_window_tasks import ComputedPart, ComputeTask, compute_windows
from smoke_platform.streaming.windows import (
    FIRST_PAUSE_S,
    INTERVALS_EVERY_S,
    LONGEST_PAUSE_S,
    OTHERS_DONE,
    POSITIONS_EVERY_S,
    ROWS_SINCE,
    SILENCE_AT,
    STATE_OF,
    WINDOWS_SHAPE,
    Heard,
    WindowTally,
    as_ms,
    fingerprint,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

#: Windows that one job computes at most; more are several jobs.
WINDOWS_AT_ONCE = 200_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Lookups(TakenReadings):
    """The same questions to the lake as engine ``local`` asks, answered in minutes instead of readings."""

    def all(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """``HEARD`` and ``MINUTES`` of all readings of all topics."""
        return self._summary(pl.scan_delta(self._readings))

    def landed_since(self, moment: datetime) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The same of those that were taken and landed at ``moment`` or later."""
        rows = pruned(self._readings, f"ingest_time >= '{moment.isoformat()}'")
        if rows is None:
            return pl.DataFrame(schema=dict(HEARD)), pl.DataFrame(schema=dict(MINUTES))
        return self._summary(rows.filter(pl.col("ingest_time") >= moment, self._is_taken()))

    def behind(self, topic_id: str, begins: Mapping[int, int]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The same of a topic's readings from these positions on."""
        rows = pruned(self._readings, " OR ".join(f"offset >= {place}" for place in begins.values()))
        if rows is None:
            return pl.DataFrame(schema=dict(HEARD)), pl.DataFrame(schema=dict(MINUTES))
        parts = [(pl.col("partition") == number) & (pl.col("offset") >= place) for number, place in begins.items()]
        return self._summary(rows.filter(pl.col("topic_id") == topic_id, pl.any_horizontal(*parts)))

    def minutes(self, devices: pl.DataFrame) -> pl.DataFrame:
        """``window_planning.PastMinutes``."""
        rows = self.rows(devices.select("device_id", "begin", end=pl.col("clock") + timedelta(microseconds=1)))
        found = rows.join(devices, on="device_id", how="inner").filter(
            pl.col("event_time").is_between("begin", "clock")
        )
        return minutes_of(found.lazy().with_columns(late=pl.lit(value=False))).collect().select(list(MINUTES))

    def standing(self, due: pl.DataFrame) -> int:
        """How many of these windows (``window_planning.WINDOW``) stand in the table, at whatever revision.

        Of the files that hold these times two columns are read: little beside the readings that the windows rest on.
        """
        start = pl.col("window_start")
        ranges = list(event_ranges(due.select("device_id", begin=start, end=start + DEFAULT.slide)))
        found = pl.scan_delta(self._windows()).filter(
            pl.any_horizontal(
                (start >= begin) & (start < end) & pl.col(PARTITION_COLUMN).is_between(begin.date(), end.date())
                for begin, end in ranges
            )
        )
        there = found.select(list(WINDOW)).join(due.lazy(), on=list(WINDOW), how="semi").unique()
        return int(there.select(pl.len()).collect(engine="streaming").item())

    @staticmethod
    def _summary(rows: pl.LazyFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        heard = heard_of(rows).collect(engine="streaming").select(list(HEARD))
        return heard, minutes_of(rows).collect(engine="streaming").select(list(MINUTES))


class SparkWindows:
    """The windows beside a landing run on Spark. All of it is called while no batch is being landed.

    A fault of its own does not end the landing: it is logged, told by ``drain``, and everything is looked up anew after
    a pause. Only another writer ends the run, and, where the run is to finish what is there, any fault.

    Args:
        settings: which lake, which broker.
        now: the present, UTC.
        alive: called after each portion of what may take long.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._alive = alive
        self._now = now
        self._lake = Lake(settings.lake)
        self._intervals = Intervals(self._lake, every_s=INTERVALS_EVERY_S, monotonic=time.monotonic).current
        self._state: _State | None = None
        self._looked = 0.0
        self._pause = FIRST_PAUSE_S
        self._resting_until = 0.0
        self._tally = WindowTally()
        self._telling = threading.Lock()
        self._fault = ""
        #: Partition -> offset up to which the readings have landed, and up to which the table reflects them (of none
        #: before the first look at it).
        self._landed: dict[int, int] = {}
        self._reflected: dict[int, int] = {}

    def start(self, spark: SparkSession, facts: TopicFacts) -> None:
        """Says where to compute, and of which topic."""
        self._spark, self._facts = spark, facts
        self._heard = Heard(self._settings, facts, self._now)

    def take(self, parts: Sequence[LandedPart], positions: Mapping[int, int]) -> None:
        """Notes what a commit of readings has landed; ``positions`` after it, of all partitions."""
        with self._telling:
            self._landed = dict(positions)
        if self._state is not None:
            state = self._state
            self._guarded(lambda: state.take(parts, positions), finish=False)

    @property
    def is_due(self) -> bool:
        """Whether it is time to look: not more often than ``SMOKE_WINDOW_SECONDS``."""
        now = time.monotonic()
        return now >= self._resting_until and now - self._looked >= self._settings.window_seconds

    def append(self, *, finish: bool = False, strict: bool = False) -> None:
        """Appends the windows that are due.

        Args:
            finish: the run ends, so that positions are committed although no window is due.
            strict: whether a fault is raised.
        """
        self._guarded(lambda: self._append(finish), finish=strict)
        self._looked = time.monotonic()

    def drain(self) -> WindowTally:
        """What was appended since the last call, and how far behind the windows are now."""
        with self._telling:
            drained, self._tally = self._tally, WindowTally()
            drained.behind = sum(max(0, end - self._reflected.get(number, end)) for number, end in self._landed.items())
        drained.fault = self._fault
        return drained

    def _guarded(self, work: Callable[[], Any], *, finish: bool) -> None:
        try:
            work()
        except Exception as fault:
            self._state = None
            if finish or isinstance(fault, Fenced):
                raise
            self._fault = str(fault)
            self._resting_until = time.monotonic() + self._pause
            log.exception("windows are not appended; another try from the lake follows in %.0f s", self._pause)
            self._pause = min(LONGEST_PAUSE_S, 2 * self._pause)
        else:
            if self._state is not None:
                self._fault, self._pause = "", FIRST_PAUSE_S

    def _append(self, finish: bool) -> None:
        if self._state is None:
            self._state = _State(self._settings, self._lake, self._facts)
            with self._telling:
                self._landed, self._reflected = dict(self._state.positions), self._state.committed
        state = self._state
        due = state.waiting.due(self._heard.until(state.positions))
        if due.is_empty() and not state.wants_commit(finish=finish):
            # The table says all there is to say of these readings, though its positions follow later.
            with self._telling:
                self._reflected = dict(state.positions)
            return
        done = WindowTally(commits=1)
        files: list[WrittenFile] = []
        for first in range(0, due.height, WINDOWS_AT_ONCE):
            self._alive()
            written, part = self._computed(state, due.slice(first, WINDOWS_AT_ONCE))
            files += written
            done.add(part)
        done.corrections = state.standing(due)
        # All in one commit: the positions promise every window that was due by then.
        state.waiting.settle(due)
        done.version = state.commit(files)
        done.positions = dict(state.positions)
        with self._telling:
            self._tally.add(done)
            self._reflected = dict(state.positions)

    def _computed(self, state: _State, due: pl.DataFrame) -> tuple[list[WrittenFile], WindowTally]:
        """Lets the executors compute these windows."""
        spans = due.select("device_id", begin="window_start", end=pl.col("window_start") + DEFAULT.length)
        ranges = list(event_ranges(spans))
        readings = gather(
            self._spark,
            state.files(ranges),
            ROW_COLUMNS,
            ranges,
            late=False,
            devices=due["device_id"].unique().to_list(),
        )
        task = ComputeTask(
            shape=FileShape(self._lake.address(WINDOWS), PARTITION_COLUMN, INDEXED),
            buckets=readings.buckets,
            written_at=state.next_moment(self._now()),
        )
        context = self._spark.sparkContext
        wanted = context.broadcast(to_ipc(due))
        intervals = context.broadcast(dict(self._intervals()))

        def compute(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return compute_windows(task, wanted.value, intervals.value, batches)

        try:
            rows = readings.frames.mapInArrow(compute, REPORT_SCHEMA).collect()
        finally:
            wanted.destroy()
            intervals.destroy()
        parts = [msgspec.msgpack.decode(bytes(row.report), type=ComputedPart) for row in rows]
        windows = sum(part.windows for part in parts)
        if windows != due.height:
            # Each window that is due has a reading, or it would not be due: committing less would lose it for good.
            raise RuntimeError(f"{due.height} windows are due, {windows} were computed")
        ends = [part.newest_end for part in parts if part.newest_end is not None]
        return [file for part in parts for file in part.files], WindowTally(windows=windows, newest_end=max(ends))


class _State:
    """What is known of the windows at some positions, and the hold on their table."""

    def __init__(self, settings: Settings, lake: Lake, facts: TopicFacts) -> None:
        self._facts = facts
        self._table = LandedTable(lake, facts, WINDOWS_SHAPE, stamps=stamps_folder(settings))
        self._taken: dict[int, int] = {number: place or 0 for number, place in self._table.positions.items()}
        self._lookups = _Lookups(lake.open(READINGS), lambda: self._table.snapshot, {facts.topic_id: self._taken})
        self.waiting = WaitingWindows(self._lookups.appended, self._lookups.minutes)
        self._last_written = _EPOCH
        self._committed_at = time.monotonic()
        self._committed = dict(self._taken)
        self._begin()

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> offset up to which the readings were taken."""
        return self._taken

    @property
    def committed(self) -> dict[int, int]:
        """The positions that stand in the table."""
        return dict(self._committed)

    def standing(self, due: pl.DataFrame) -> int:
        """How many of the windows that are due were appended before."""
        return 0 if due.is_empty() else self._lookups.standing(due)

    def _begin(self) -> None:
        landed = self._landed()
        ahead = {number: place for number, place in self._taken.items() if place > landed.get(number, 0)}
        if ahead:
            number, place = next(iter(ahead.items()))
            raise SmokeError(
                f"lake/{WINDOWS} reflects partition {number} up to {place}, lake/{READINGS} ends at "
                f"{landed.get(number, 0)}: the readings were replaced by older ones",
                f"remove lake/{WINDOWS}; it is computed anew from the readings",
            )
        topic_id = self._facts.topic_id
        noted = self._table.mark(STATE_OF) == fingerprint(topic_id, self._taken)
        if noted and self._table.mark(OTHERS_DONE) == fingerprint(topic_id, {}):
            since = self._table.mark(ROWS_SINCE)
            if since:
                moment = _EPOCH + timedelta(milliseconds=since)
                heard, minutes = self._lookups.landed_since(moment)
                self.waiting.restore(heard, minutes, everything=False)
            heard, minutes = self._lookups.behind(topic_id, self._taken)
            self.waiting.take(minutes, heard)
        else:
            # Of another topic, or after somebody has changed a table: each window of the lake is compared.
            heard, minutes = self._lookups.all()
            self.waiting.restore(heard, minutes, everything=True)
        self._taken.update(landed)

    def _landed(self) -> dict[int, int]:
        found = committed_positions(self._lookups.refresh(), self._facts)
        return {number: place or 0 for number, place in found.items()}

    def take(self, parts: Sequence[LandedPart], positions: Mapping[int, int]) -> None:
        """Notes what was landed up to these positions. The lake has it already; ``minutes`` leaves it out by them."""
        heard = merged_heard(*(from_ipc(part.heard, HEARD) for part in parts))
        minutes = merged_minutes(*(from_ipc(part.minutes, MINUTES) for part in parts))
        self.waiting.take(minutes, heard)
        self._taken.update(positions)

    def wants_commit(self, *, finish: bool) -> bool:
        """Whether positions alone, or marks, are to be committed."""
        moved = self._taken != self._committed
        unmarked = self._table.mark(OTHERS_DONE) != fingerprint(self._facts.topic_id, {})
        return unmarked or (moved and (finish or time.monotonic() - self._committed_at > POSITIONS_EVERY_S))

    def commit(self, files: Sequence[WrittenFile]) -> int:
        """Commits files with the positions whose windows are all among them or were appended before."""
        topic_id = self._facts.topic_id
        marks = {
            STATE_OF: fingerprint(topic_id, self._taken),
            ROWS_SINCE: as_ms(self.waiting.oldest()),
            SILENCE_AT: as_ms(self.waiting.silent_at()),
            OTHERS_DONE: fingerprint(topic_id, {}),
        }
        version = self._table.commit_files(files, self._taken, marks=marks)
        self._committed = dict(self._taken)
        self._committed_at = time.monotonic()
        self._table.tidy({datetime.fromisoformat(file.day).date() for file in files})
        return version

    def next_moment(self, now: datetime) -> datetime:
        """Rising from commit to commit, so that a reader who follows the table misses none."""
        self._last_written = max(now, self._last_written + timedelta(microseconds=1))
        return self._last_written

    def files(self, ranges: Sequence[tuple[datetime, datetime]]) -> list[tuple[str, int]]:
        """The files of the readings that may hold any of these event times, with their numbers of rows."""
        return files_of(self._lookups.refresh(), "event_time", ranges)
