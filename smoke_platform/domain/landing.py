"""What landing decides about readings and rejects: lateness, replays, dead letters, when a batch is full.

Belongs here: those decisions, free of any broker or table. Does not: whether a message is a reading
(``domain.readings``), positions (``domain.offsets``), the loop that carries it out (``streaming.landing``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.readings import ReadingRejected

#: On a message that is sent again after its dead letter was looked at: the identity of the first, as ``MessageId``
#: writes it. Landing keeps one row per identity, however often it is replayed.
REPLAY_HEADER = "smoke-replay-of"

#: Columns of the devices' clocks: greatest event time so far, per partition and device.
CLOCK_SCHEMA: dict[str, pl.DataType] = {
    "partition": pl.Int32(),
    "device_id": pl.String(),
    "clock": pl.Datetime("us", "UTC"),
}
_BY = ["partition", "device_id"]


class DeviceClocks:
    """The greatest event time of each device so far, by which a reading is judged to be late.

    A reading is late when its event time is more than ``allowed`` behind the greatest event time that its device has
    at lower offsets of the same partition. The verdict depends on the log alone, not on how it is cut into batches:
    offsets of two partitions have no order, so a device that writes to two of them (a producer without keys) has a
    clock in each.

    Args:
        allowed: how far behind a reading may be.
        clocks: what is known already (columns of ``CLOCK_SCHEMA``).
    """

    def __init__(self, allowed: timedelta, clocks: pl.DataFrame | None = None) -> None:
        self._allowed = allowed
        self._clocks = pl.DataFrame(schema=CLOCK_SCHEMA) if clocks is None else clocks.select(list(CLOCK_SCHEMA))
        self._greatest: datetime | None = self._clocks["clock"].max()  # type: ignore[assignment] # of a time column

    @property
    def frame(self) -> pl.DataFrame:
        """The clocks, one row per partition and device."""
        return self._clocks

    def judge(self, readings: pl.DataFrame) -> pl.Series:
        """Whether each reading is late; afterwards the clocks include these readings.

        Args:
            readings: columns partition, device_id, event_time; within a partition in the order of offsets.
        """
        if readings.is_empty():
            return pl.Series("late", [], dtype=pl.Boolean)
        earliest, greatest = readings.select(
            pl.col("event_time").min(), pl.col("event_time").max().alias("greatest")
        ).row(0)
        self._greatest = greatest if self._greatest is None else max(self._greatest, greatest)
        if self._greatest - earliest <= self._allowed:
            # No reading is that far behind any clock: the usual case, and far cheaper.
            late = pl.repeat(value=False, n=readings.height, dtype=pl.Boolean, eager=True).alias("late")
        else:
            late = self._compare(readings)
        fresh = readings.group_by(_BY).agg(pl.col("event_time").max().alias("clock"))
        self._clocks = pl.concat([self._clocks, fresh]).group_by(_BY).agg(pl.col("clock").max())
        return late

    def _compare(self, readings: pl.DataFrame) -> pl.Series:
        within_batch = pl.col("event_time").cum_max().shift(1).over(_BY)
        return (
            readings.lazy()
            .select(*_BY, "event_time")
            .join(self._clocks.lazy(), on=_BY, how="left", maintain_order="left")
            .with_columns(clock=pl.max_horizontal("clock", within_batch))
            .select(late=(pl.col("clock") - pl.col("event_time") > self._allowed).fill_null(value=False))
            .collect()
            .to_series()
        )


def replayed(headers: Mapping[int, Iterable[tuple[str, bytes | None]]]) -> dict[int, MessageId]:
    """Row -> the identity that a replayed message carries. A header that is no identity counts as none."""
    found: dict[int, MessageId] = {}
    for row, entries in headers.items():
        for name, value in entries:
            if name == REPLAY_HEADER and value is not None:
                identity = MessageId.parse(value.decode("utf-8", "replace"))
                if identity is not None:
                    found[row] = identity
    return found


def repeated(replays: Mapping[int, MessageId], landed: Collection[MessageId]) -> set[int]:
    """Rows whose identity has landed before, or that repeat an earlier row; these are not landed again.

    Args:
        replays: row -> identity, for the rows that are readings; rows of a partition in the order of offsets.
        landed: identities that were replayed and have landed.
    """
    seen = set(landed)
    again: set[int] = set()
    for row, identity in sorted(replays.items()):
        if identity in seen:
            again.add(row)
        seen.add(identity)
    return again


def letter_headers(
    reject: ReadingRejected,
    identity: MessageId,
    *,
    topic: str,
    append_time_ms: int,
    key: bytes | None,
    replayed_as: MessageId | None = None,
) -> list[tuple[str, bytes]]:
    """The facts about a dead letter. Its identity is (topic_id, partition, offset): two letters with the same are one.

    Args:
        identity: of the message; of the first message where this one is its replay.
        replayed_as: the message that was read, where it is a replay.
    """
    headers = {
        "reason": str(reject.reason),
        "field": reject.field,
        # A reading is a line in a terminal and a header, not a place for megabytes.
        "detail": reject.detail[:500],
        "topic": topic,
        "topic_id": identity.topic_id,
        "partition": str(identity.partition),
        "offset": str(identity.offset),
    }
    if append_time_ms >= 0:
        moment = datetime.fromtimestamp(append_time_ms // 1000, UTC).replace(microsecond=append_time_ms % 1000 * 1000)
        headers["append_time"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if replayed_as is not None:
        headers["replayed_as"] = str(replayed_as)
    encoded = [(name, text.encode("utf-8", "replace")) for name, text in headers.items()]
    return encoded if key is None else [*encoded, ("key", key)]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """When a micro-batch is handed on: full, or old enough while the writer is free.

    While the writer is busy a batch goes on growing, so batches get larger exactly when many readings come in; at
    ``rows`` the reading waits, which bounds memory to three batches (growing, decoding, being written).
    """

    rows: int
    seconds: float

    def due(self, rows: int, age_s: float, *, writer_free: bool) -> bool:
        """Whether a batch of ``rows`` messages, the oldest taken ``age_s`` ago, is to be handed on now."""
        return rows > 0 and (rows >= self.rows or (writer_free and age_s >= self.seconds))


@dataclass(frozen=True, slots=True)
class CompactionPlan:
    """Which days' files are worth rewriting as fewer.

    Small files are merged up to ``small_bytes`` as soon as ``small_files`` of them have gathered in a day; a day that
    no recent commit touched is merged up to ``large_bytes``. So a file is rewritten a bounded number of times.
    """

    small_files: int = 60
    small_bytes: int = 8 << 20
    large_files: int = 4
    large_bytes: int = 128 << 20
    days_at_once: int = 8

    def chosen(self, files: pl.DataFrame, touched: Collection[object]) -> list[tuple[object, int]]:
        """(day, target size) of what to compact now, the day with most files first.

        Args:
            files: columns day, size (bytes), one row per live file.
            touched: days that got rows since the last compaction.
        """
        chosen: list[tuple[object, int, int]] = []
        for day, small, medium in (
            files.group_by("day")
            .agg(
                (pl.col("size") < self.small_bytes).sum().alias("small"),
                (pl.col("size") < self.large_bytes).sum().alias("medium"),
            )
            .iter_rows()
        ):
            if day not in touched and medium >= self.large_files:
                chosen.append((day, self.large_bytes, medium))
            elif small >= self.small_files:
                chosen.append((day, self.small_bytes, small))
        chosen.sort(key=lambda entry: (-entry[2], str(entry[0])))
        return [(day, target) for day, target, _ in chosen[: self.days_at_once]]
