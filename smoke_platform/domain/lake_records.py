"""Alarms, commands, predictions and devices as rows of the lake: which columns, and how a message becomes rows. Pure.

Belongs here: the tables' columns, message -> row, what of the predictions is new, the latest entry of each device. Does
not: reading topics and committing (``streaming.records_landing``), the messages themselves (``domain.alarms``,
``domain.predictions``, ``domain.devices``).

Each table has the place of the message that a row comes from as ``record_topic_id``, ``record_partition`` and
``record_offset``. In a prediction ``topic_id``, ``partition`` and ``offset`` are those of the reading, as in
``lake/readings``; in an alarm ``topic_id`` and ``partition`` are those of the readings, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import polars as pl

from smoke_platform.domain import alarms, devices, predictions
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.topics import ALARM_COMMANDS, ALARMS, DEVICES, PREDICTIONS

#: Partition column of these tables: the UTC day on which the broker appended the message. Devices' clocks may say
#: anything, the broker's rises.
DAY = "append_date"
_TIME = pl.Datetime("us", "UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Epoch seconds of the year 10000, which no time type of ours reaches.
_END_OF_TIME = 253_402_300_800.0

#: Offsets are 64 bits wide; a mark is one more than an offset.
_END_OF_LOG = 1 << 62

Columns = Mapping[str, pl.DataType]

_PLACE: Columns = {
    "record_topic_id": pl.String(),
    "record_partition": pl.Int32(),
    "record_offset": pl.Int64(),
    "append_time": _TIME,
    "ingest_time": _TIME,
}


class Message(NamedTuple):
    """A message where it stands; ``append_ms`` is -1 where the broker gives none."""

    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class RecordTable:
    """A table that is landed from a topic of its own.

    Attributes:
        name, topic: ``lake/<name>`` from this topic.
        columns: of the message's content, without day and place.
        to_row: (key, value) -> column -> value.
        lists: columns that ``to_row`` gives as lists of one length, one row an element.
        indexed: columns by which readers find rows; files without them are skipped.
        what: the messages in a word, for errors and docs.
    """

    name: str
    topic: str
    columns: Columns
    to_row: Callable[[bytes | None, bytes | None], dict[str, Any]]
    indexed: tuple[str, ...]
    what: str
    lists: tuple[str, ...] = ()

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """All columns, in the order in which they are stored."""
        return {DAY: pl.Date(), **self.columns, **_PLACE}


# -- alarms ----------------------------------------------------------------------------------------------

ALARM_COLUMNS: Columns = {
    "device_id": pl.String(),
    "kind": pl.String(),
    "alarm_id": pl.String(),
    "event": pl.String(),
    "state": pl.String(),
    "severity": pl.String(),
    "peak": pl.String(),
    "revision": pl.Int64(),
    "topic_id": pl.String(),
    "partition": pl.Int32(),
    "cause": pl.Int64(),
    "position": pl.Int64(),
    "command_offset": pl.Int64(),
    "acknowledged": pl.Boolean(),
    "holds": pl.Boolean(),
    "event_time": _TIME,
    "at": _TIME,
    "raised_event_time": _TIME,
    "raised_at": _TIME,
    "repeats": pl.Int32(),
    "until": _TIME,
    "by": pl.String(),
    "reason": pl.String(),
    "command_id": pl.String(),
    "verdict": pl.String(),
    "site": pl.String(),
    "room": pl.String(),
    "rules": pl.List(pl.String()),
    "first_offset": pl.Int64(),
    "last_offset": pl.Int64(),
    "score": pl.Float64(),
    "threshold": pl.Float64(),
    "model_version": pl.String(),
    "feature_version": pl.String(),
    "sensor_values": pl.String(),
    "version": pl.Int32(),
}

_SHARED_WITH_EVIDENCE = ("first_offset", "last_offset", "score", "threshold", "model_version", "feature_version")


def _alarm(_key: bytes | None, value: bytes | None) -> dict[str, Any]:
    record = alarms.decode_record(_present(value))
    evidence = record.evidence
    row = {name: getattr(record, name, None) for name in ALARM_COLUMNS if name not in _SHARED_WITH_EVIDENCE}
    row.update({name: getattr(evidence, name) for name in _SHARED_WITH_EVIDENCE})
    row["rules"] = list(evidence.rules)
    row["sensor_values"] = msgspec.json.encode(dict(sorted(evidence.values.items()))).decode()
    for name in ("event_time", "at", "raised_event_time", "raised_at", "until"):
        row[name] = _time(name, row[name])
    return row


# -- commands --------------------------------------------------------------------------------------------

COMMAND_COLUMNS: Columns = {
    "command_id": pl.String(),
    "verb": pl.String(),
    "device_id": pl.String(),
    "kind": pl.String(),
    "by": pl.String(),
    "at": _TIME,
    "reason": pl.String(),
    "alarm_id": pl.String(),
    "until": _TIME,
    "verdict": pl.String(),
    "version": pl.Int32(),
}


def _command(_key: bytes | None, value: bytes | None) -> dict[str, Any]:
    command = alarms.decode_command(_present(value))
    row = {name: getattr(command, name) for name in COMMAND_COLUMNS}
    for name in ("at", "until"):
        row[name] = _time(name, row[name])
    return row


# -- predictions -----------------------------------------------------------------------------------------

PREDICTION_COLUMNS: Columns = {
    "topic_id": pl.String(),
    "partition": pl.Int32(),
    "offset": pl.Int64(),
    "score": pl.Float64(),
    "level": pl.Int8(),
    "hits": pl.Int64(),
    "model_version": pl.String(),
    "threshold": pl.Float64(),
    "feature_version": pl.String(),
    "at": _TIME,
}
#: What makes a prediction: one row a reading, however often a restarted detector publishes it.
READING = ("topic_id", "partition", "offset")


def _prediction(_key: bytes | None, value: bytes | None) -> dict[str, Any]:
    record = predictions.decode(_present(value))
    offsets = record.offsets
    if not offsets:
        raise SmokeError("offsets: a prediction record without any")
    if MessageId.parse(f"{record.topic_id}/0/0") is None:
        raise SmokeError(f"topic_id: {record.topic_id!r} is no topic id")
    if offsets[0] < 0 or any(later <= earlier for earlier, later in pairwise(offsets)):
        raise SmokeError("offsets: must rise, from 0 or later")
    if offsets[-1] >= _END_OF_LOG:
        raise SmokeError(f"offsets: {offsets[-1]} is no offset")
    return {
        "topic_id": record.topic_id,
        "partition": record.partition,
        "offset": offsets,
        "score": record.scores or [None] * len(offsets),
        "level": record.levels,
        "hits": record.hits,
        "model_version": record.model_version,
        "threshold": record.threshold,
        "feature_version": record.feature_version,
        "at": _time("at", record.at),
    }


def first_of_each(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows without those that repeat the reading of an earlier row."""
    return rows.unique(READING, keep="first", maintain_order=True)


def marks_of(rows: pl.DataFrame) -> dict[tuple[str, int], int]:
    """(topic id, partition) of the readings -> offset after the greatest one among the rows."""
    grouped = rows.group_by("topic_id", "partition").agg(pl.col("offset").max() + 1)
    return {(topic_id, partition): mark for topic_id, partition, mark in grouped.iter_rows()}


def below_marks(rows: pl.DataFrame, marks: Mapping[tuple[str, int], int]) -> pl.DataFrame:
    """The readings (columns ``READING``) of the rows that may have landed before: those below their mark.

    A mark alone does not say that everything below it has landed: a detector that was paused may publish what it took
    before its successor comes that far. So what is below has to be looked for in the table.
    """
    if not marks:
        return rows.clear().select(READING)
    known = pl.DataFrame(
        [(topic_id, partition, mark) for (topic_id, partition), mark in marks.items()],
        schema={"topic_id": pl.String, "partition": pl.Int32, "mark": pl.Int64},
        orient="row",
    )
    return (
        rows.select(READING)
        .join(known, on=["topic_id", "partition"], how="inner")
        .filter(pl.col("offset") < pl.col("mark"))
        .select(READING)
    )


# -- devices ---------------------------------------------------------------------------------------------

DEVICE_COLUMNS: Columns = {
    "device_id": pl.String(),
    "site": pl.String(),
    "room": pl.String(),
    "type": pl.String(),
    "interval_s": pl.Float64(),
    "sensors": pl.List(pl.String()),
    "in_service": pl.Boolean(),
    "source": pl.String(),
    "updated_at": _TIME,
    "removed": pl.Boolean(),
}


def _device(key: bytes | None, value: bytes | None) -> dict[str, Any]:
    device_id, entry = devices.decode_message(key, value)
    if entry is None:
        return {**dict.fromkeys(DEVICE_COLUMNS), "device_id": device_id, "removed": True}
    row = {name: getattr(entry, name) for name in DEVICE_COLUMNS if name != "removed"}
    row["sensors"] = list(entry.sensors)
    row["updated_at"] = _time("updated_at", entry.updated_at)
    return {**row, "removed": False}


def latest_devices(history: pl.LazyFrame) -> pl.LazyFrame:
    """The entry of each device that holds, out of ``lake/devices``: ``domain.devices.holding`` over the whole table.

    Of a topic that was made anew only the newest counts, as for every reader of it.
    """
    by_hand = pl.col("source") != devices.FIRST_SEEN
    removed_at = pl.col("record_offset").filter(pl.col("removed")).max().over("device_id")
    return (
        history.filter(pl.col("record_topic_id") == pl.col("record_topic_id").sort_by("ingest_time").last())
        .sort("record_offset")
        .filter(removed_at.is_null() | (pl.col("record_offset") > removed_at))
        .filter(by_hand | ~by_hand.any().over("device_id"))
        .unique("device_id", keep="last", maintain_order=True)
    )


# -- all of them -----------------------------------------------------------------------------------------

RECORD_TABLES: tuple[RecordTable, ...] = (
    RecordTable("alarms", ALARMS, ALARM_COLUMNS, _alarm, ("device_id", "kind", "at", "append_time"), "alarm records"),
    RecordTable(
        "alarm_commands",
        ALARM_COMMANDS,
        COMMAND_COLUMNS,
        _command,
        ("device_id", "at", "append_time"),
        "alarm commands",
    ),
    RecordTable(
        "predictions",
        PREDICTIONS,
        PREDICTION_COLUMNS,
        _prediction,
        ("topic_id", "partition", "offset", "append_time"),
        "prediction records",
        lists=("offset", "score", "level", "hits"),
    ),
    RecordTable("devices", DEVICES, DEVICE_COLUMNS, _device, ("device_id", "append_time"), "device entries"),
)

#: Messages that are none of the above: the bytes as they came, and why they could not be read.
UNREADABLE = "unreadable_records"
UNREADABLE_SCHEMA: Columns = {
    DAY: pl.Date(),
    "topic": pl.String(),
    "key": pl.Binary(),
    "value": pl.Binary(),
    "fault": pl.String(),
    **_PLACE,
}


def decode_messages(
    table: RecordTable, topic_id: str, messages: Iterable[Message], now: datetime
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The messages as rows of the table, and those that are none as rows of ``unreadable_records``.

    Args:
        topic_id: of the messages' own topic.
        now: the time of landing, UTC.
    """
    rows: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for message in messages:
        place = _place(topic_id, message, now)
        try:
            content = table.to_row(message.key, message.value)
            _require_fitting(content, table.columns)
        except SmokeError as error:
            bad.append(
                {"topic": table.topic, "key": message.key, "value": message.value, "fault": error.message, **place}
            )
        else:
            rows.append({**content, **place})
    schema = {name: pl.List(kind) if name in table.lists else kind for name, kind in table.schema.items()}
    frame = _frame(rows, schema)
    if table.lists:
        frame = frame.explode(table.lists)
    return frame, _frame(bad, UNREADABLE_SCHEMA)


def _frame(rows: list[dict[str, Any]], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    return pl.DataFrame(
        [pl.Series(name, [row[name] for row in rows], dtype=kind, strict=True) for name, kind in schema.items()]
    )


def _place(topic_id: str, message: Message, now: datetime) -> dict[str, Any]:
    appended = _EPOCH + timedelta(milliseconds=message.append_ms) if message.append_ms >= 0 else None
    return {
        DAY: (appended or now).date(),
        "record_topic_id": topic_id,
        "record_partition": message.partition,
        "record_offset": message.offset,
        "append_time": appended,
        "ingest_time": now,
    }


def _present(value: bytes | None) -> bytes:
    if value is None:
        raise SmokeError("a message without a value")
    return value


def _time(name: str, seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    if not 0 <= seconds < _END_OF_TIME:
        raise SmokeError(f"{name}: {seconds} is no time in epoch seconds")
    return _EPOCH + timedelta(seconds=seconds)


#: Whole numbers may be of any size in a message, not in a column.
_BITS: Mapping[type, int] = {pl.Int8: 8, pl.Int32: 32, pl.Int64: 64}


def _require_fitting(row: Mapping[str, Any], columns: Columns) -> None:
    for name, kind in columns.items():
        bits = _BITS.get(type(kind))
        value = row[name]
        if bits is None or value is None:
            continue
        bound = 1 << (bits - 1)
        low, high = (min(value), max(value)) if isinstance(value, list) else (value, value)
        if low < -bound or high >= bound:
            raise SmokeError(f"{name}: a number of more than {bits} bits")
