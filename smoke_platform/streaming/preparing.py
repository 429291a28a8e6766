"""From messages to rows of ``lake/readings`` and dead letters: what every engine that lands readings does with a batch.

Belongs here: decoding, lateness, replays, the stored columns and what is counted, for the messages of one topic. Does
not: where messages come from, sending letters, committing (``streaming.landing``, ``streaming.spark_landing``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from smoke_platform.adapters.kafka_bulk import Letter, MessageBatch
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS_COLUMNS
from smoke_platform.domain.decoding import decode_batch
from smoke_platform.domain.landing import DeviceClocks, letter_headers, repeated, replayed
from smoke_platform.domain.offsets import MessageId


@dataclass(slots=True)
class PartitionTally:
    """What was landed of one partition since the tally began. Offsets are -1 while there is none."""

    rows: int = 0
    rejects: int = 0
    late: int = 0
    repeats: int = 0
    first_offset: int = -1
    last_offset: int = -1
    newest_append_ms: int = -1

    def add(self, other: PartitionTally) -> None:
        self.rows += other.rows
        self.rejects += other.rejects
        self.late += other.late
        self.repeats += other.repeats
        if self.first_offset < 0:
            self.first_offset = other.first_offset
        self.last_offset = max(self.last_offset, other.last_offset)
        self.newest_append_ms = max(self.newest_append_ms, other.newest_append_ms)


@dataclass(slots=True)
class Prepared:
    """What a batch of messages comes to.

    Attributes:
        rows: columns ``READINGS_COLUMNS``, in the order of the messages.
        letters: of the rejects; to be acknowledged before the rows are committed.
        tallies: partition -> what was counted.
        reasons: reason of a reject -> how many.
        replays: of the readings that were landed, those that mend a dead letter: (partition, offset) -> its identity.
    """

    rows: pl.DataFrame
    letters: list[Letter]
    tallies: dict[int, PartitionTally]
    reasons: dict[str, int]
    replays: dict[tuple[int, int], MessageId]


class Preparer:
    """Prepares one topic's messages, batch after batch; within a partition they come in the order of offsets.

    Args:
        topic, topic_id: where the messages come from.
        clocks: by which readings are late; moved on here.
        landed_replays: gives the identities that were replayed and have landed; asked only when a replay comes.
    """

    def __init__(
        self, topic: str, topic_id: str, clocks: DeviceClocks, landed_replays: Callable[[], set[MessageId]]
    ) -> None:
        self._topic = topic
        self._topic_id = topic_id
        self.clocks = clocks
        self._landed_replays = landed_replays
        self._replayed: set[MessageId] | None = None

    def prepare(self, batch: MessageBatch, now: datetime) -> Prepared:
        """Decides about each message.

        Args:
            now: the time of landing, UTC.
        """
        decoded, rejects = decode_batch(batch.values, batch.append_times_ms)
        places = pl.DataFrame(
            [
                pl.Series("partition", batch.partitions, dtype=pl.Int32),
                pl.Series("offset", batch.offsets, dtype=pl.Int64),
                pl.Series("append_ms", batch.append_times_ms, dtype=pl.Int64),
            ]
        )
        rows = pl.concat(
            [decoded, places if decoded.height == places.height else places[decoded["row"]]], how="horizontal"
        )
        rows = rows.with_columns(self.clocks.judge(rows))
        replays = replayed(batch.headers)
        again = self._repeats(rows, replays) if replays else set()
        if again:
            repeats = rows.filter(pl.col("row").is_in(list(again)))
            rows = rows.filter(~pl.col("row").is_in(list(again)))
        else:
            repeats = rows.clear()
        origin = (
            pl.Series("replay_of", [str(replays[row]) if row in replays else None for row in rows["row"]], pl.String)
            if replays
            else pl.lit(None, dtype=pl.String).alias("replay_of")
        )
        stored = rows.with_columns(
            origin,
            pl.col("event_time").dt.date().alias(PARTITION_COLUMN),
            pl.lit(self._topic).alias("topic"),
            pl.lit(self._topic_id).alias("topic_id"),
            pl.when(pl.col("append_ms") >= 0)
            .then(pl.from_epoch("append_ms", time_unit="ms"))
            .cast(pl.Datetime("us"))
            .dt.replace_time_zone("UTC")
            .alias("append_time"),
            pl.lit(now.astimezone(UTC)).cast(pl.Datetime("us", "UTC")).alias("ingest_time"),
        ).select(READINGS_COLUMNS)
        reasons: dict[str, int] = {}
        for _, reject in rejects:
            reasons[str(reject.reason)] = reasons.get(str(reject.reason), 0) + 1
        return Prepared(
            rows=stored,
            letters=[self._letter(batch, row, reject, replays.get(row)) for row, reject in rejects],
            tallies=_tallies(places, rows, repeats, [row for row, _ in rejects]),
            reasons=reasons,
            replays={(batch.partitions[row], batch.offsets[row]): replays[row] for row in rows["row"] if row in replays}
            if replays
            else {},
        )

    def _letter(self, batch: MessageBatch, row: int, reject: Any, origin: MessageId | None) -> Letter:
        own = MessageId(self._topic_id, batch.partitions[row], batch.offsets[row])
        identity = origin or own
        headers = letter_headers(
            reject,
            identity,
            topic=self._topic,
            append_time_ms=batch.append_times_ms[row],
            key=batch.key_of(row),
            replayed_as=own if origin else None,
        )
        return Letter(str(identity).encode(), batch.values[row], headers)

    def _repeats(self, rows: pl.DataFrame, replays: Mapping[int, MessageId]) -> set[int]:
        if self._replayed is None:
            self._replayed = self._landed_replays()
        readings = set(rows["row"].to_list())
        accepted = {row: identity for row, identity in replays.items() if row in readings}
        again = repeated(accepted, self._replayed)
        self._replayed.update(accepted.values())
        return again


def stored_replays(readings: pl.LazyFrame) -> set[MessageId]:
    """The identities that ``lake/readings`` has replays of. Files without any are skipped by their statistics."""
    stored = readings.select("replay_of").filter(pl.col("replay_of").is_not_null()).collect()
    return {found for text in stored.to_series() if (found := MessageId.parse(text)) is not None}


def _tallies(
    places: pl.DataFrame, rows: pl.DataFrame, repeats: pl.DataFrame, rejected: list[int]
) -> dict[int, PartitionTally]:
    tallies = {
        number: PartitionTally(first_offset=first, last_offset=last, newest_append_ms=newest)
        for number, first, last, newest in places.group_by("partition")
        .agg(pl.col("offset").min(), pl.col("offset").max().alias("last"), pl.col("append_ms").max())
        .iter_rows()
    }
    for number, count, late in rows.group_by("partition").agg(pl.len(), pl.col("late").sum()).iter_rows():
        tallies[number].rows, tallies[number].late = count, late
    for number, count in repeats.group_by("partition").agg(pl.len()).iter_rows():
        tallies[number].repeats = count
    for row in rejected:
        tallies[places["partition"][row]].rejects += 1
    return tallies
