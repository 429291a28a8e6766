"""Landing of alarms, commands, predictions and device entries, beside the landing of the readings.

Belongs here: the loop that takes these messages from their topics and commits them, each once. Does not: what a message
is as a row (``domain.lake_records``), the table with its positions (``streaming.landing.LandedTable``), when a run is
started (``orchestration.landing``).

It works in the run that lands the readings, on one thread of its own, so one lease keeps all tables to one writer. What
is true of the readings is true here: the positions stand in the same Delta commit as the rows, and nowhere else.

A message that cannot be read is kept with its bytes in ``lake/unreadable_records``, committed before the position moves
past it, with a position of its own: a crash in between does not write it twice.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pyarrow as pa

from smoke_platform.adapters.kafka_bulk import (
    MODEST_FETCH_SETTINGS,
    BulkConsumer,
    KafkaUnreachable,
    MessageBatch,
    OffsetLost,
    TopicFacts,
    TopicWatcher,
)
from smoke_platform.adapters.lake import Lake, storage_schema, writer_properties
from smoke_platform.adapters.lease import Lease
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.lake_records import (
    DAY,
    READING,
    RECORD_TABLES,
    UNREADABLE,
    UNREADABLE_SCHEMA,
    Message,
    RecordTable,
    below_marks,
    decode_messages,
    first_of_each,
    marks_of,
)
from smoke_platform.domain.offsets import OffsetRange, advanced, after, start_points
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import (
    TABLE_CONFIGURATION,
    LandedBatch,
    LandedTable,
    Outdated,
    Standing,
    StandingProbe,
    TableShape,
    fault_of,
    give_up_lost,
    lease_path,
    stamps_folder,
)

log = logging.getLogger(__name__)

PREDICTIONS_TABLE = "predictions"
#: Time between two looks at the topics; what came in between is one commit a table.
ROUND_S = 5.0
#: One poll of the client, and the first one, before which it has to connect.
POLL_S = 0.1
OPENING_S = 1.0
#: A commit holds no more rows and no more messages than this, so that memory stays bounded.
MOST_ROWS = 200_000
MOST_MESSAGES = 20_000
MESSAGES_AT_ONCE = 2_000
#: How long the broker may be away before a commit that needs its word gives up; its restart takes less.
TOPIC_TIMEOUT_S = 60.0
#: A round that takes longer is taken for stuck. The slowest step is the first compaction of a large day.
STUCK_S = 300.0


@dataclass(slots=True)
class RecordTally:
    """What was landed in one table since the tally began.

    Attributes:
        repeats: predictions of readings that had one already.
        version: the table's after it.
        more: whether messages were left for the next commit.
    """

    rows: int = 0
    messages: int = 0
    unreadable: int = 0
    repeats: int = 0
    version: int = -1
    more: bool = False

    def add(self, other: RecordTally) -> None:
        self.rows += other.rows
        self.messages += other.messages
        self.unreadable += other.unreadable
        self.repeats += other.repeats
        self.version = max(self.version, other.version)


def record_shape(table: RecordTable) -> TableShape:
    """The table as it is stored."""
    return _shape(table.name, table.schema, (*table.indexed, "record_partition", "record_offset"))


def _shape(name: str, columns: Mapping[str, pl.DataType], indexed: Sequence[str]) -> TableShape:
    configuration = {**TABLE_CONFIGURATION, "delta.dataSkippingStatsColumns": ",".join(indexed)}
    return TableShape(name, storage_schema(columns), DAY, configuration, writer_properties())


def unreadable_shape() -> TableShape:
    return _shape(UNREADABLE, UNREADABLE_SCHEMA, ("topic", "record_partition", "record_offset", "append_time"))


@dataclass(slots=True)
class _Taken:
    rows: pl.DataFrame
    unreadable: pl.DataFrame
    messages: int
    positions: dict[int, int]
    more: bool


class _Stream:
    """One topic and its table."""

    def __init__(self, settings: Settings, table: RecordTable, stop: threading.Event) -> None:
        self._settings = settings
        self.table = table
        self._stop = stop
        self._lake = Lake(settings.lake)
        self._watcher = TopicWatcher(settings.brokers, table.topic)
        self._consumer: BulkConsumer | None = None
        self._bad: LandedTable | None = None
        self._reached: dict[int, int] = {}
        self._opening = False
        self._forgotten: date | None = None

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._bad = None

    def land(self) -> RecordTally | None:
        """Lands what is there, at most one commit's worth; ``None`` where there is nothing.

        Raises:
            Fenced: another writer has gone on.
            LostReadings: the log no longer holds what was to be landed next.
            KafkaUnreachable: the broker does not answer; another call goes on.
        """
        if self._consumer is None and not self._open():
            return None
        taken = self._take()
        positions = {number: place for number, place in taken.positions.items() if place > self._reached[number]}
        if not positions:
            return None
        if not self._same_topic():
            # What was taken may be of either; the new one is read from its start.
            self.close()
            return None
        tally = RecordTally(messages=taken.messages, unreadable=taken.unreadable.height, more=taken.more)
        if taken.unreadable.height:
            self._keep(taken.unreadable)
        while True:
            rows, marks = taken.rows, dict[str, int]()
            if self._one_per_reading:
                rows, marks = self._new_predictions(rows)
            try:
                tally.version = self._landed.commit(_stored(rows), positions, marks=marks)
                break
            except Outdated:
                log.info("lake/%s: readings were scored meanwhile; what is new is looked for again", self.table.name)
        tally.rows, tally.repeats = rows.height, taken.rows.height - rows.height
        self._reached = advanced(self._reached, positions)
        self._landed.tidy(set(rows[DAY].unique()))
        self._clear_out()
        return tally

    def ends(self) -> dict[int, int]:
        """Partition -> the log's end now; empty where there is no topic.

        Raises:
            KafkaUnreachable: the broker does not answer.
        """
        facts = self._watcher.facts(5.0)
        if self._consumer is not None and facts != self._facts:
            self.close()
            self._reached = {}
        if facts is None:
            return {}
        return {number: high for number, (_, high) in self._watcher.watermarks(facts.partitions, 5.0).items()}

    def has_landed(self, ends: Mapping[int, int]) -> bool:
        """Whether everything before these offsets has landed."""
        return all(self._reached.get(number, 0) >= end for number, end in ends.items())

    @property
    def _one_per_reading(self) -> bool:
        return self.table.name == PREDICTIONS_TABLE

    # -- reading -----------------------------------------------------------------------------------------
    def _open(self) -> bool:
        facts = self._watcher.facts(5.0)
        if facts is None:
            return False
        watermarks = self._watcher.watermarks(facts.partitions, 5.0)
        self._facts = facts
        self._landed = LandedTable(self._lake, facts, record_shape(self.table), stamps=stamps_folder(self._settings))
        points = start_points(self._landed.positions, watermarks)
        if fault := fault_of(points, self.table.what):
            raise fault
        self._reached = dict(points.positions)
        self._consumer = BulkConsumer(self._settings.brokers, self.table.topic, self._reached, MODEST_FETCH_SETTINGS)
        self._opening = True
        return True

    def _take(self) -> _Taken:
        now = datetime.now(UTC)
        positions = dict(self._reached)
        found = [decode_messages(self.table, self._facts.topic_id, [], now)]
        messages = rows = 0
        more = True
        while more and rows < MOST_ROWS and messages < MOST_MESSAGES:
            chunk = self._poll()
            positions = advanced(positions, after(chunk.partitions, chunk.offsets, chunk.ends))
            found.append(decode_messages(self.table, self._facts.topic_id, _messages(chunk), now))
            messages += len(chunk)
            rows += found[-1][0].height
            # A full poll holds events of the client beside messages, so it may be a few messages short.
            more = len(chunk) > MESSAGES_AT_ONCE // 2
        return _Taken(
            pl.concat([rows for rows, _ in found]), pl.concat([bad for _, bad in found]), messages, positions, more
        )

    def _poll(self) -> MessageBatch:
        assert self._consumer is not None  # noqa: S101 - land() has opened it
        deadline = time.monotonic() + (OPENING_S if self._opening else 0.0)
        self._opening = False
        try:
            while True:
                chunk = self._consumer.take(POLL_S, MESSAGES_AT_ONCE)
                if len(chunk) or chunk.ends or time.monotonic() >= deadline:
                    return chunk
        except SmokeError as fault:
            if not self._same_topic():
                return MessageBatch()  # ends() sees it, too, and closes
            if isinstance(fault, OffsetLost):
                points = start_points(self._landed.positions, self._watcher.watermarks(self._facts.partitions))
                raise fault_of(points, self.table.what) or fault from None
            raise

    def _same_topic(self) -> bool:
        """Whether every message read so far came from the topic that was opened: ids are never used again."""
        deadline = time.monotonic() + TOPIC_TIMEOUT_S
        while True:
            try:
                return self._watcher.facts(5.0) == self._facts
            except KafkaUnreachable:
                if time.monotonic() > deadline or self._stop.wait(POLL_S):
                    raise

    # -- committing --------------------------------------------------------------------------------------
    def _keep(self, unreadable: pl.DataFrame) -> None:
        """Commits what could not be read, but what was committed before a crash."""
        if self._bad is None:
            self._bad = LandedTable(self._lake, self._facts, unreadable_shape())
        known = {number: place or 0 for number, place in self._bad.positions.items()}
        begin = pl.col("record_partition").replace_strict(known, return_dtype=pl.Int64)
        new = unreadable.filter(pl.col("record_offset") >= begin)
        if new.is_empty():
            return
        ends = new.group_by("record_partition").agg(pl.col("record_offset").max() + 1)
        self._bad.commit(_stored(new), dict(ends.iter_rows()))
        self._bad.tidy(set(new[DAY].unique()))
        log.warning("%s: %s messages cannot be read; they are in lake/%s", self.table.topic, new.height, UNREADABLE)

    def _new_predictions(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        """The rows of readings that have none yet, and the marks to be committed with them."""
        fresh = first_of_each(rows)
        greatest = marks_of(fresh)
        names = {place: readings_mark(self._facts.cluster_id, *place) for place in greatest}
        known = {place: self._landed.mark(name) for place, name in names.items()}
        suspects = below_marks(fresh, known)
        if suspects.height:
            # Only after a restart of the detector, or while a paused one comes back.
            landed = (
                self._landed.rows()
                .filter(
                    pl.col("topic_id").is_in(suspects["topic_id"].unique().to_list()),
                    pl.col("partition").is_in(suspects["partition"].unique().to_list()),
                    pl.col("offset").is_between(suspects["offset"].min(), suspects["offset"].max()),
                )
                .select(READING)
                .collect(engine="streaming")
            )
            fresh = fresh.join(landed, on=READING, how="anti", maintain_order="left")
        # All of them, moved or not: whoever scores the same readings at this moment is refused, or refuses this.
        return fresh, {names[place]: max(mark, known[place]) for place, mark in greatest.items()}

    # -- files -------------------------------------------------------------------------------------------
    def _clear_out(self) -> None:
        today = datetime.now(UTC).date()
        if self._one_per_reading and self._forgotten != today:
            self._forgotten = today
            self._landed.forget_before(today - timedelta(days=self._settings.prediction_days))
        self._landed.vacuum_when_due()


def readings_mark(cluster_id: str, topic_id: str, partition: int) -> str:
    """Name of the mark in ``lake/predictions`` that lies after the greatest offset of a partition that has any."""
    return f"{cluster_id}/readings/{topic_id}/{partition}"


def _stored(rows: pl.DataFrame) -> pa.Table:
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())


def _messages(batch: MessageBatch) -> Iterator[Message]:
    for row, value in enumerate(batch.values):
        yield Message(batch.partitions[row], batch.offsets[row], batch.append_times_ms[row], batch.key_of(row), value)


class RecordsLanding:
    """The companion of a landing run; see ``streaming.landing.Companion`` for what its methods promise.

    Args:
        settings: which broker, which lake.
        tables: what is landed.
        every_s: time between two looks at the topics.
    """

    def __init__(
        self, settings: Settings, *, tables: Sequence[RecordTable] = RECORD_TABLES, every_s: float = ROUND_S
    ) -> None:
        self._stop = threading.Event()
        self._finish = threading.Event()
        self._wake = threading.Event()
        self._streams = [_Stream(settings, table, self._stop) for table in tables]
        self._every_s = every_s
        self._error: BaseException | None = None
        self._quiet = False
        self._step: float | None = None
        self._tallies: dict[str, RecordTally] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="landing-records", daemon=True)

    def start(self, facts: TopicFacts) -> None:
        self._thread.start()

    def landed(self, batch: LandedBatch) -> None:
        """Readings are nothing to it."""

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    @property
    def quiet(self) -> bool:
        return self._quiet

    @property
    def stuck(self) -> bool:
        step = self._step
        return step is not None and time.monotonic() - step > STUCK_S

    def stop(self, *, finish: bool = False) -> None:
        (self._finish if finish else self._stop).set()
        self._wake.set()

    def ended(self, timeout_s: float) -> bool:
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def drain(self) -> dict[str, RecordTally]:
        """Table -> what was landed since the last call; tables that got nothing are left out."""
        with self._lock:
            drained, self._tallies = self._tallies, {}
        return drained

    def round(self) -> bool:
        """Lands what is there in every topic; says whether nothing is left.

        Raises:
            Fenced: another writer has gone on.
            LostReadings: a log no longer holds what was to be landed next.
            KafkaUnreachable: the broker does not answer.
        """
        more = True
        while more and not self._stop.is_set():
            # One commit each in turn: a long backlog of predictions does not keep an alarm waiting.
            more = False
            for stream in self._streams:
                self._step = time.monotonic()
                tally = stream.land()
                if tally is not None:
                    more |= tally.more
                    with self._lock:
                        self._tallies.setdefault(stream.table.name, RecordTally()).add(tally)
        return self._have_landed(self._ends())

    def _ends(self) -> list[dict[int, int]]:
        return [stream.ends() for stream in self._streams]

    def _have_landed(self, ends: Sequence[Mapping[int, int]]) -> bool:
        return all(stream.has_landed(each) for stream, each in zip(self._streams, ends, strict=True))

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and not self._finish.is_set():
                try:
                    self._quiet = self.round()
                except KafkaUnreachable as away:
                    # A broker that restarts is waited for, as the client itself does.
                    self._quiet = False
                    log.warning("alarms and predictions wait: %s", away.message)
                self._step = None
                self._wake.wait(self._every_s)
            goal = self._ends() if self._finish.is_set() else []
            while not self._stop.is_set() and self._finish.is_set() and not self._have_landed(goal):
                self.round()
        except BaseException as error:  # noqa: BLE001 - handed to the run's thread by check()
            self._error = error
        finally:
            self._step = None
            self.close()


class RecordsProbe:
    """Tells how far the landing of each table is; its connections are kept. For one thread at a time."""

    def __init__(self, settings: Settings, tables: Sequence[RecordTable] = RECORD_TABLES) -> None:
        self._probes = {
            table.name: StandingProbe(settings, topic=table.topic, table=table.name, what=table.what)
            for table in tables
        }

    def standings(self, timeout_s: float = 3.0) -> dict[str, Standing]:
        """Table -> where its landing stands now.

        Raises:
            KafkaUnreachable: when the broker does not answer within ``timeout_s``.
        """
        return {name: probe.standing(timeout_s) for name, probe in self._probes.items()}


def accept_loss(
    settings: Settings, tables: Sequence[RecordTable] = RECORD_TABLES
) -> dict[str, tuple[OffsetRange, ...]]:
    """As ``streaming.landing.accept_loss``, for these tables: table -> the ranges that are given up.

    Raises:
        LeaseHeld: landing is running.
        LostReadings: a log ends before a position, which this does not mend.
    """
    given_up: dict[str, tuple[OffsetRange, ...]] = {}
    with Lease(lease_path(settings), f"accept-loss-{os.getpid()}"):
        for table in tables:
            watcher = TopicWatcher(settings.brokers, table.topic)
            facts = watcher.facts()
            if facts is not None:
                landed = LandedTable(Lake(settings.lake), facts, record_shape(table))
                lost = give_up_lost(landed, facts, watcher, table.what)
                if lost:
                    given_up[table.name] = lost
    return given_up
