"""The dead-letter topic as a store: letters counted, found, and their messages sent again.

Belongs here: reading the topic, one letter an identity, and replaying into the readings' topic. Does not: sending
letters (``adapters.kafka_bulk``; landing alone does), what makes a message one (``domain.readings``), a letter's facts
and corrections (``domain.dead_letters``).

Millions of letters may lie in the topic. A search goes through all of them once and keeps 40 bytes of each letter
that it looks for; the letters themselves are read again where they are wanted. Several letters of one identity (landing
sent it twice, or its replay failed) have the same key and so stand in one partition, where the last one counts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.adapters.kafka import ReadingProducer, partition_of
from smoke_platform.adapters.kafka_bulk import (
    MODEST_FETCH_SETTINGS,
    BulkConsumer,
    KafkaUnreachable,
    MessageBatch,
    OffsetLost,
    TopicWatcher,
)
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.domain.dead_letters import Correction, DeadLetter, corrected, read_letter, rejected_again
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.landing import REPLAY_HEADER
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.readings import CANONICAL_NAME

#: Letters read at most for a count; where a flood of them came, the rest is counted without its reasons.
MOST_LETTERS = 200_000
UNREAD = "not_read"
#: How long a broker may take for its first answer, and between two letters.
_FIRST_ANSWER_S = 10.0
_SILENCE_S = 30.0
_POLL = 2_000
#: Rows of the index that are packed together, and packs after which repeated and unwanted ones are thrown out.
_CHUNK_ROWS = 20_000
_TIDY_CHUNKS = 25
#: Letters that a replay names when it did not send them.
MOST_EXAMPLES = 10
#: Letters that lie closer together are read in one go, the ones in between included.
_NEAR = 5_000

_ROW = np.dtype(
    [
        ("source", "i4"),  # index of (topic id, partition) of the message; -1 where the letter names none
        ("message", "i8"),  # its offset
        ("partition", "i4"),  # where the letter stands
        ("offset", "i8"),
        ("at", "i8"),  # append time of the message, milliseconds
        ("reason", "i2"),
        ("wanted", "?"),
    ],
    align=True,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters are looked for; an empty filter takes all.

    Attributes:
        since, until: append time of the message in [since, until); with a zone.
        device: key of the message.
    """

    reasons: frozenset[str] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    device: str | None = None

    def takes(self, letter: DeadLetter) -> bool:
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (self.since is None or letter.append_time >= self.since)
            and (self.until is None or letter.append_time < self.until)
            and (self.device is None or letter.device == self.device)
        )


class LetterIndex:
    """Where the letters stand that a search found, one an identity.

    Attributes:
        unread: letters that were not looked at, because of a limit.
    """

    def __init__(self, filter_: LetterFilter) -> None:
        self._filter = filter_
        self._sources: dict[tuple[str, int], int] = {}
        self._reasons: dict[str, int] = {}
        self._tidied = np.empty(0, _ROW)
        self._chunks: list[npt.NDArray[Any]] = []
        self._fresh: list[tuple[Any, ...]] = []
        self.unread = 0

    def add(self, letter: DeadLetter) -> None:
        """Takes note of a letter; those of a partition come in the order of their offsets."""
        identity = letter.identity
        source = -1
        if identity is not None:
            place = (identity.topic_id, identity.partition)
            source = self._sources.setdefault(place, len(self._sources))
        self._fresh.append(
            (
                source,
                # A letter without an identity is one of its own.
                letter.offset if identity is None else identity.offset,
                letter.partition,
                letter.offset,
                round(letter.append_time.timestamp() * 1000),
                self._reasons.setdefault(letter.reason, len(self._reasons)),
                self._filter.takes(letter),
            )
        )
        if len(self._fresh) >= _CHUNK_ROWS:
            self._pack()
            # As much as there is already, so that each row is sorted a few times and not once a chunk.
            if sum(map(len, self._chunks)) >= max(_TIDY_CHUNKS * _CHUNK_ROWS, len(self._tidied)):
                self._tidy()

    def _pack(self) -> None:
        self._chunks.append(np.array(self._fresh, _ROW))
        self._fresh = []

    def _tidy(self) -> None:
        if self._fresh:
            self._pack()
        if not self._chunks:
            return
        rows = np.concatenate([self._tidied, *self._chunks])
        self._chunks = []
        # Within a partition a later letter replaces an earlier one; equal identities are always in one partition.
        rows = rows[np.lexsort((rows["offset"], rows["message"], rows["partition"], rows["source"]))]
        last = np.ones(len(rows), bool)
        if len(rows) > 1:
            same = np.ones(len(rows) - 1, bool)
            for name in ("source", "partition", "message"):
                same &= rows[name][1:] == rows[name][:-1]
            last[:-1] = ~same
        # What is not wanted has by now replaced whatever was there before it.
        self._tidied = rows[last & rows["wanted"]]

    @property
    def rows(self) -> npt.NDArray[Any]:
        self._tidy()
        return self._tidied

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self) -> dict[str, int]:
        """Reason -> identities, the most frequent first."""
        names = {number: name for name, number in self._reasons.items()}
        numbers, counts = np.unique(self.rows["reason"], return_counts=True)
        found = Counter({names[int(n)]: int(count) for n, count in zip(numbers, counts, strict=True)})
        return dict(found.most_common())

    def landed(self, landed: Mapping[tuple[str, int], npt.NDArray[np.int64]]) -> npt.NDArray[np.bool_]:
        """bool[n]: whether each letter's message is a reading in the lake by now.

        Args:
            landed: (topic id, partition) -> offsets, as ``landed_replays`` gives them.
        """
        rows = self.rows
        found = np.zeros(len(rows), bool)
        for place, number in self._sources.items():
            if place in landed:
                of_source = rows["source"] == number
                found[of_source] = np.isin(rows["message"][of_source], landed[place])
        return found

    def newest(self, most: int) -> npt.NDArray[Any]:
        """The rows of the letters whose messages came last, newest first."""
        rows = self.rows
        order = np.lexsort((rows["offset"], rows["partition"], rows["at"]))[::-1]
        return rows[order[:most]]


class LetterReader:
    """Reads the dead-letter topic, each time from the places that are asked for.

    Raises:
        KafkaUnreachable: from every method, when no broker answers in time.
    """

    def __init__(self, brokers: str, topic: str) -> None:
        self._brokers = brokers
        self._topic = topic
        self._watcher = TopicWatcher(brokers, topic)

    def partitions(self, timeout_s: float = _FIRST_ANSWER_S) -> tuple[int, ...]:
        """The topic's partitions; none where it does not exist, as before the first `smoke topics create`."""
        facts = self._watcher.facts(timeout_s)
        return () if facts is None else facts.partitions

    def find(
        self,
        filter_: LetterFilter,
        *,
        partitions: Sequence[int] | None = None,
        most: int | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> LetterIndex:
        """Goes through the letters and notes those that the filter takes.

        Args:
            partitions: only these.
            most: letters that are read; those beyond it are counted as unread.
            timeout_s: for the whole; without it as long as letters keep coming.
            progress: called with (letters read, letters in all).
        """
        index = LetterIndex(filter_)
        clock = _Clock(timeout_s)
        numbers = self.partitions(clock.left(_FIRST_ANSWER_S)) if partitions is None else tuple(partitions)
        if not numbers:
            return index
        marks = self._watcher.watermarks(numbers, clock.left(_FIRST_ANSWER_S))
        begins = {number: low for number, (low, _) in marks.items()}
        if filter_.since is not None:
            # A letter is appended after the message that it is about, so none of the window lies before this place.
            found = self._watcher.offsets_at(numbers, filter_.since, clock.left(_FIRST_ANSWER_S))
            begins = {number: max(begins[number], found.get(number, marks[number][1])) for number in numbers}
        spans = {number: (begins[number], marks[number][1]) for number in numbers}
        index.unread = sum(max(0, end - begin) for begin, end in spans.values())
        total = index.unread
        for batch, passed in self._read(spans, clock, most):
            for letter in _letters(batch):
                index.add(letter)
            index.unread -= passed
            if progress is not None:
                progress(total - index.unread, total)
        return index

    def letters(self, rows: npt.NDArray[Any]) -> Iterator[DeadLetter]:
        """The letters that stand at these places of an index, partition by partition, each as it is read."""
        for number in np.unique(rows["partition"]):
            offsets = np.sort(rows["offset"][rows["partition"] == number])
            gaps = np.flatnonzero(np.diff(offsets) > _NEAR) + 1
            for part in np.split(offsets, gaps):
                chosen = set(part.tolist())
                span = {int(number): (int(part[0]), int(part[-1]) + 1)}
                for batch, _ in self._read(span, _Clock(None), None):
                    for letter in _letters(batch):
                        if letter.offset in chosen:
                            yield letter

    def _read(
        self, spans: Mapping[int, tuple[int, int]], clock: _Clock, most: int | None
    ) -> Iterator[tuple[MessageBatch, int]]:
        """Batches within the spans, each with the number of offsets that it moved on by."""
        reached = {number: begin for number, (begin, end) in spans.items() if begin < end}
        if not reached:
            return
        read = 0
        with BulkConsumer(self._brokers, self._topic, reached, MODEST_FETCH_SETTINGS) as consumer:
            while reached and (most is None or read < most):
                batch = self._take(consumer, clock, _POLL if most is None else min(_POLL, most - read))
                read += len(batch)
                passed = 0
                after = {number: offset + 1 for number, offset in zip(batch.partitions, batch.offsets, strict=True)}
                for number, place in (*after.items(), *batch.ends.items()):
                    if number in reached:
                        end = spans[number][1]
                        moved = min(max(place, reached[number]), end)
                        passed += moved - reached[number]
                        reached[number] = moved
                        if moved >= end:
                            del reached[number]
                yield _within(batch, spans), passed

    def _take(self, consumer: BulkConsumer, clock: _Clock, most: int) -> MessageBatch:
        silent_until = time.monotonic() + _SILENCE_S
        while True:
            try:
                batch = consumer.take(min(1.0, clock.left(1.0)), most)
            except OffsetLost:
                raise SmokeError(
                    f"letters of topic {self._topic} expired while they were read", "run the command again"
                ) from None
            if len(batch) or batch.ends:
                return batch
            if time.monotonic() > silent_until:
                raise KafkaUnreachable(
                    f"no letter of topic {self._topic} came for {_SILENCE_S:g} s from {self._brokers}",
                    "check that the broker runs (`smoke status`)",
                )


class _Clock:
    """A deadline for several steps; without a time each step has its own."""

    def __init__(self, timeout_s: float | None) -> None:
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def left(self, most: float) -> float:
        if self._deadline is None:
            return most
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise KafkaUnreachable("the broker did not answer in time")
        return min(left, most)


def _within(batch: MessageBatch, spans: Mapping[int, tuple[int, int]]) -> MessageBatch:
    """The batch without what was appended after the look at the log's end."""
    keep = [
        row
        for row, (number, offset) in enumerate(zip(batch.partitions, batch.offsets, strict=True))
        if offset < spans[number][1]
    ]
    if len(keep) == len(batch):
        return batch
    return MessageBatch(
        values=[batch.values[row] for row in keep],
        partitions=[batch.partitions[row] for row in keep],
        offsets=[batch.offsets[row] for row in keep],
        append_times_ms=[batch.append_times_ms[row] for row in keep],
        headers={place: batch.headers[row] for place, row in enumerate(keep) if row in batch.headers},
    )


def _letters(batch: MessageBatch) -> Iterator[DeadLetter]:
    for row in range(len(batch)):
        yield read_letter(
            batch.headers.get(row),
            batch.values[row],
            partition=batch.partitions[row],
            offset=batch.offsets[row],
            appended_ms=batch.append_times_ms[row],
        )


def count_by_reason(
    brokers: str, topic: str, start: datetime, end: datetime, *, most: int = MOST_LETTERS, timeout_s: float = 30.0
) -> dict[str, int]:
    """Reason -> messages that the broker appended to the readings' topic in [start, end) and that were no readings.

    A letter that was sent twice (its sender died before it knew) counts once, by the message's identity.

    Args:
        start, end: with a zone.
        most: letters that are read; those beyond it count under ``not_read``, repeats and later ones included.
        timeout_s: for the whole.

    Raises:
        KafkaUnreachable: no broker answers in time.
        SmokeError: the topic can't be read.
    """
    index = LetterReader(brokers, topic).find(LetterFilter(since=start, until=end), most=most, timeout_s=timeout_s)
    counts = index.counts()
    if index.unread:
        counts[UNREAD] = index.unread
    return counts


def letters_of(reader: LetterReader, identity: MessageId, progress: Progress | None = None) -> list[DeadLetter]:
    """Every letter with this identity, oldest first: the first verdict and those on its replays."""
    numbers = reader.partitions()
    if not numbers:
        return []
    likely = partition_of(str(identity), len(numbers))
    for chosen in ([likely], [number for number in numbers if number != likely]):
        finder = _Finder(identity=identity)
        index = reader.find(finder, partitions=chosen, progress=progress)
        if len(index):
            return sorted(finder.found, key=lambda letter: (letter.partition, letter.offset))
    return []


@dataclass(frozen=True, slots=True)
class _Finder(LetterFilter):
    """A filter for one identity, which keeps its letters: there are as many as there were attempts."""

    identity: MessageId | None = None
    found: list[DeadLetter] = field(default_factory=list)

    def takes(self, letter: DeadLetter) -> bool:
        if letter.identity != self.identity:
            return False
        self.found.append(letter)
        return True


# -- what became of them ---------------------------------------------------------------------------------


def landed_replays(lake: Lake) -> dict[tuple[str, int], npt.NDArray[np.int64]]:
    """(topic id, partition) -> offsets of the messages that were replayed and are readings in the lake by now."""
    if not lake.exists(READINGS):
        return {}
    stored = lake.scan(READINGS).select("replay_of").filter(pl.col("replay_of").is_not_null()).collect()
    found: dict[tuple[str, int], list[int]] = {}
    for text in stored.to_series():
        identity = MessageId.parse(text)
        if identity is not None:
            found.setdefault((identity.topic_id, identity.partition), []).append(identity.offset)
    return {place: np.array(offsets, np.int64) for place, offsets in found.items()}


def landed_reading(lake: Lake, identity: MessageId) -> dict[str, Any] | None:
    """The reading that the replay of this message became, ``None`` where none has landed."""
    if not lake.exists(READINGS):
        return None
    rows = (
        lake.scan(READINGS)
        .filter(pl.col("replay_of") == str(identity))
        .select("device_id", "event_time", "topic_id", "partition", "offset", "ingest_time", "late")
        .head(1)
        .collect()
    )
    return rows.row(0, named=True) if rows.height else None


# -- replaying -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ReplayReport:
    """What a replay did.

    Attributes:
        sent: messages that were handed to the broker, acknowledged: those it has.
        already: letters whose message had landed, which were left out.
        hopeless: letters that landing would reject again, which were left out; reason -> count.
        refused: letters that could not be sent at all; text -> count.
        examples: identity -> why, of the first ones that were not sent.
    """

    sent: int = 0
    acknowledged: int = 0
    already: int = 0
    hopeless: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        """Letters that should have been replayed and were not."""
        return self.hopeless.total() + self.refused.total() + self.sent - self.acknowledged

    def explain(self, letter: DeadLetter, why: str) -> None:
        if len(self.examples) < MOST_EXAMPLES:
            self.examples[str(letter.identity or f"letter {letter.partition}/{letter.offset}")] = why


class Replayer:
    """Sends the messages of letters to the readings' topic again, each with the identity of the first.

    Landing keeps one row an identity however often it is sent, so a replay that broke off is simply run again.

    Args:
        producer: of the readings' topic; ``None`` for a dry run.
        partitions: of the readings' topic.
        landed: as ``landed_replays`` gives them.
        anyway: also send what landing would reject again.
    """

    def __init__(
        self,
        producer: ReadingProducer | None,
        partitions: int,
        landed: Mapping[tuple[str, int], npt.NDArray[np.int64]],
        correction: Correction,
        *,
        anyway: bool = False,
    ) -> None:
        self.report = ReplayReport()
        self._producer = producer
        self._partitions = partitions
        self._landed = {place: set(offsets.tolist()) for place, offsets in landed.items()}
        self._correction = correction
        self._anyway = anyway

    def replay(self, letter: DeadLetter) -> None:
        """Sends one letter's message unless it is of no use; the report says what was done."""
        report, identity = self.report, letter.identity
        if identity is None:
            report.refused["the letter names no message"] += 1
            report.explain(letter, "its headers name no message, so that landing could not tell it from another")
            return
        if identity.offset in self._landed.get((identity.topic_id, identity.partition), ()):
            report.already += 1
            return
        try:
            value = corrected(letter.value, self._correction)
        except SmokeError as error:
            report.refused[error.message] += 1
            report.explain(letter, error.message)
            return
        if not self._anyway and (reject := rejected_again(value, datetime.now(UTC))) is not None:
            report.hopeless[str(reject.reason)] += 1
            report.explain(letter, f"would be rejected again: {reject}")
            return
        report.sent += 1
        if self._producer is None:
            return
        key, partition = self._place(letter, identity)
        headers = [(REPLAY_HEADER, str(identity).encode())]
        self._producer.send(key, value, partition=partition, headers=headers)

    def _place(self, letter: DeadLetter, identity: MessageId) -> tuple[bytes | None, int]:
        """Key and partition: the original ones, or those of the device that the correction names."""
        device = self._correction.sets.get(CANONICAL_NAME["device_id"])
        key = device.encode() if isinstance(device, str) else letter.key
        if key is not None:
            return key, partition_of(key, self._partitions)
        return None, identity.partition % self._partitions

    def finish(self) -> None:
        """Waits until the broker has everything.

        Raises:
            DeliveryFailed: where it does not take some; ``report`` then says how many it has.
        """
        if self._producer is None:
            self.report.acknowledged = self.report.sent
            return
        try:
            self._producer.flush()
            self._producer.raise_failures()
        finally:
            self.report.acknowledged = self._producer.counts.acknowledged
