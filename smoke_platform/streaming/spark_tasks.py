"""What Spark's executors do with readings: land a partition's messages as files of ``lake/readings``.

Belongs here: functions from Arrow batches to Arrow batches, and the small records by which they tell the driver what
they did. Does not: the driver (``streaming.spark_landing``), the decisions themselves (``streaming.preparing`` and the
domain), any call of Spark's: everything here runs, and is tested, without a session.

An executor keeps nothing between two tasks. What it needs of the past comes with the task; what the next task needs of
it goes back to the driver.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from smoke_platform.adapters.kafka_bulk import DeadLetterProducer, MessageBatch
from smoke_platform.adapters.lake_files import FileShape, WrittenFile, write_files
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.landing import CLOCK_SCHEMA, DeviceClocks
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.window_planning import heard_of, merged_heard, merged_minutes, minutes_of
from smoke_platform.streaming.preparing import PartitionTally, Preparer, stored_replays
from smoke_platform.streaming.spark_reading import from_ipc, report_of, to_ipc

#: Columns of the messages as the task takes them, in this order.
MESSAGE_COLUMNS = ("key", "value", "partition", "offset", "timestamp", "headers")
#: Readings of one file at most; a task with more writes several.
FILE_ROWS = 500_000


class LandedPart(msgspec.Struct, kw_only=True):
    """What a task has done; see ``streaming.preparing.Prepared`` for the parts of the same name.

    Attributes:
        clocks: devices' clocks after it, of those that got readings (``domain.landing.CLOCK_SCHEMA``, Arrow IPC).
        minutes, heard: of ``domain.window_planning``, of what was landed, Arrow IPC.
        replays: (partition, offset, identity).
        fault: message and remedy of what kept it from finishing; then nothing of it may be committed.
    """

    files: list[WrittenFile] = msgspec.field(default_factory=list)
    tallies: dict[int, PartitionTally] = msgspec.field(default_factory=dict)
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
    clocks: bytes = b""
    minutes: bytes = b""
    heard: bytes = b""
    replays: list[tuple[int, int, str]] = msgspec.field(default_factory=list)
    fault: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class LandingTask:
    """What a task has to know.

    Attributes:
        brokers, topic, topic_id, dead_letters: where the messages come from, and where rejects go.
        shape: of the table's files.
        version: of the table, whose positions these are.
        positions: partition -> offset of the first message to land; lower ones have landed.
        lateness: how far behind its device's clock a reading may be.
        now: the time of landing.
        elsewhere: partition -> identities of dead letters whose replay another partition of this batch has.
    """

    brokers: str
    topic: str
    topic_id: str
    dead_letters: str
    shape: FileShape
    version: int
    positions: Mapping[int, int]
    lateness: timedelta
    now: datetime
    elsewhere: Mapping[int, frozenset[str]] = field(default_factory=dict)


def land_messages(task: LandingTask, clocks: bytes, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Lands the messages of whole partitions: writes files and sends dead letters.

    Args:
        clocks: the devices' clocks at ``task.positions`` (``CLOCK_SCHEMA``, Arrow IPC), of these partitions at least.
        batches: ``MESSAGE_COLUMNS``; each partition's messages in the order of offsets and in no other task.

    Yields:
        One batch of one row, a ``LandedPart``; none where there was no message.
    """
    lander = _Lander(task, clocks)
    try:
        for batch in batches:
            lander.take(batch)
        part = lander.finish()
    except SmokeError as fault:
        # Told to the driver, which tells it to a person; Spark would only try again and wrap it in two languages.
        part = LandedPart(fault=(fault.message, fault.remedy))
    yield report_of(part)


class _SparkMessages(MessageBatch):
    """A batch whose keys come as a column."""

    keys: pa.Array

    def key_of(self, row: int) -> bytes | None:
        key: bytes | None = self.keys[row].as_py()
        return key


class _Lander:
    def __init__(self, task: LandingTask, clocks: bytes) -> None:
        self._task = task
        self._known = from_ipc(clocks, CLOCK_SCHEMA)
        self._preparers: dict[int, Preparer] = {}
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0
        self._clocks: list[pl.DataFrame] = []
        self._minutes: list[pl.DataFrame] = []
        self._heard: list[pl.DataFrame] = []
        self._part = LandedPart()

    def take(self, batch: pa.RecordBatch) -> None:
        partitions = batch.column("partition").to_numpy()
        # A task may have several partitions one after the other, and a batch the end of one and the begin of the next.
        edges = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), len(partitions)]
        for low, high in itertools.pairwise(edges):
            if high > low:
                self._take_of(int(partitions[low]), batch.slice(low, high - low))

    def _take_of(self, partition: int, batch: pa.RecordBatch) -> None:
        begin = self._task.positions.get(partition, 0)
        if batch.column("offset")[0].as_py() < begin:
            batch = batch.filter(pc.greater_equal(batch.column("offset"), begin))
        if not batch.num_rows:
            return
        prepared = self._preparer(partition).prepare(_messages(batch), self._task.now)
        rows = prepared.rows
        if prepared.letters:
            _letters(self._task.brokers, self._task.dead_letters).send(prepared.letters)
        for number, tally in prepared.tallies.items():
            self._part.tallies.setdefault(number, PartitionTally()).add(tally)
        for reason, count in prepared.reasons.items():
            self._part.reasons[reason] = self._part.reasons.get(reason, 0) + count
        self._part.replays += [(*place, str(identity)) for place, identity in prepared.replays.items()]
        if rows.height:
            self._minutes.append(minutes_of(rows.lazy()).collect())
            self._heard.append(heard_of(rows.lazy()).collect())
            self._waiting.append(rows)
            self._waiting_rows += rows.height
        if self._waiting_rows >= FILE_ROWS:
            self._flush()

    def _preparer(self, partition: int) -> Preparer:
        if partition not in self._preparers:
            known = self._known.filter(pl.col("partition") == partition)
            self._preparers[partition] = Preparer(
                self._task.topic,
                self._task.topic_id,
                DeviceClocks(self._task.lateness, known),
                functools.partial(self._landed_replays, partition),
            )
        return self._preparers[partition]

    def _landed_replays(self, partition: int) -> set[MessageId]:
        table = DeltaTable(self._task.shape.address, version=self._task.version)
        elsewhere = {MessageId.parse(text) for text in self._task.elsewhere.get(partition, ())}
        return stored_replays(pl.scan_delta(table)) | {identity for identity in elsewhere if identity is not None}

    def _flush(self) -> None:
        if self._waiting:
            self._part.files += write_files(pl.concat(self._waiting), self._task.shape)
        self._waiting, self._waiting_rows = [], 0

    def finish(self) -> LandedPart:
        self._flush()
        # Only what has changed goes back: a device that was not heard has the clock it had.
        after = [preparer.clocks.frame for preparer in self._preparers.values()]
        clocks = pl.concat([pl.DataFrame(schema=CLOCK_SCHEMA), *after]).join(
            self._known, on=list(CLOCK_SCHEMA), how="anti"
        )
        self._part.clocks = to_ipc(clocks)
        self._part.minutes = to_ipc(merged_minutes(*self._minutes))
        self._part.heard = to_ipc(merged_heard(*self._heard))
        return self._part


def _messages(batch: pa.RecordBatch) -> MessageBatch:
    appended = batch.column("timestamp").cast(pa.int64()).to_numpy()
    headers = batch.column("headers")
    found = _SparkMessages(
        values=batch.column("value").to_pylist(),
        partitions=batch.column("partition").to_pylist(),
        offsets=batch.column("offset").to_pylist(),
        # Spark's times are in microseconds, Kafka's in milliseconds; -1 is no time in both.
        append_times_ms=(appended // 1000).tolist(),
    )
    found.keys = batch.column("key")
    if headers.null_count < len(headers):
        found.headers = {
            row: [(entry["key"], entry["value"]) for entry in headers[row].as_py()]
            for row in np.flatnonzero(headers.is_valid().to_numpy(zero_copy_only=False)).tolist()
        }
    return found


@functools.lru_cache(maxsize=4)
def _letters(brokers: str, topic: str) -> DeadLetterProducer:
    """One producer a process: it is used by task after task."""
    return DeadLetterProducer(brokers, topic)
