"""Positions in a log: what has been taken, where to go on, what is missing. Arithmetic alone.

Belongs here: identities of messages, start points, lost ranges, gaps, lag. Does not: where positions are stored
(``streaming.landing`` commits them with the rows) or how they are asked for (``adapters.kafka_bulk``).

A position is the offset of the next message to take, as everywhere in Kafka. Offsets grow but need not be contiguous:
compaction and transactions leave gaps, so a position says nothing about how many messages lie before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_IDENTITY = re.compile(r"^([A-Za-z0-9_-]{1,64})/(\d{1,9})/(\d{1,18})$")


@dataclass(frozen=True, order=True, slots=True)
class MessageId:
    """The one message in the world with this topic id, partition and offset.

    A topic that was deleted and made anew has another id, so its offsets are not mistaken for the old ones.
    """

    topic_id: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic_id}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> MessageId | None:
        """The identity that ``str`` wrote, or ``None`` where the text is none.

        >>> MessageId.parse("Zt3/0/17")
        MessageId(topic_id='Zt3', partition=0, offset=17)
        >>> MessageId.parse("17") is None
        True
        """
        found = _IDENTITY.fullmatch(text) if text.isascii() else None
        return cls(found[1], int(found[2]), int(found[3])) if found else None


@dataclass(frozen=True, order=True, slots=True)
class OffsetRange:
    """Offsets from ``first`` up to, not including, ``end`` of one partition."""

    partition: int
    first: int
    end: int

    def __str__(self) -> str:
        return f"partition {self.partition}, offsets {self.first} to {self.end - 1} ({self.end - self.first})"


def app_id(cluster_id: str, topic_id: str, partition: int) -> str:
    """Name under which a partition's position is committed with the rows (a Delta application transaction)."""
    return f"{cluster_id}/{topic_id}/{partition}"


@dataclass(frozen=True, slots=True)
class StartPoints:
    """Where reading goes on.

    Attributes:
        positions: partition -> offset of the next message to take.
        lost: ranges that were deleted from the log before they were taken.
        beyond: partitions whose position lies behind the log's end, as (partition, position, end): the log lost
            messages that had been taken, and new ones would be mistaken for them.
    """

    positions: dict[int, int]
    lost: tuple[OffsetRange, ...]
    beyond: tuple[tuple[int, int, int], ...]


def start_points(committed: Mapping[int, int | None], watermarks: Mapping[int, tuple[int, int]]) -> StartPoints:
    """Compares the committed positions with what the log holds.

    Args:
        committed: partition -> position, or ``None`` where nothing was ever taken: it begins at the log's start.
        watermarks: partition -> (first offset still there, offset after the last), for every partition there is.

    Where something was lost, the position stands at the log's start; whether to go on from there is not decided here.
    """
    positions: dict[int, int] = {}
    lost: list[OffsetRange] = []
    beyond: list[tuple[int, int, int]] = []
    for partition, (low, high) in sorted(watermarks.items()):
        position = committed.get(partition)
        if position is None:
            positions[partition] = low
        elif position < low:
            lost.append(OffsetRange(partition, position, low))
            positions[partition] = low
        else:
            if position > high:
                beyond.append((partition, position, high))
            positions[partition] = position
    return StartPoints(positions, tuple(lost), tuple(beyond))


def after(partitions: Sequence[int], offsets: Sequence[int], ends: Mapping[int, int]) -> dict[int, int]:
    """Partition -> position after these messages.

    Args:
        partitions, offsets: one entry a message, each partition in the order of offsets.
        ends: partition -> end of the log, where it was reached after the messages: offsets in between hold none.

    >>> after([0, 1, 0], [4, 9, 7], {1: 12})
    {0: 8, 1: 12}
    """
    positions = {partition: offset + 1 for partition, offset in zip(partitions, offsets, strict=True)}
    for partition, end in ends.items():
        positions[partition] = max(positions.get(partition, 0), end)
    return positions


def advanced(positions: Mapping[int, int], further: Mapping[int, int]) -> dict[int, int]:
    """The positions, moved to ``further`` where that is further on; a position never goes back."""
    return {partition: max(position, further.get(partition, position)) for partition, position in positions.items()}


def lag(positions: Mapping[int, int], watermarks: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """Partition -> offsets between position and the log's end, counted from the log's start where that is later."""
    return {
        partition: max(0, high - max(low, positions.get(partition, low)))
        for partition, (low, high) in watermarks.items()
    }


def ranges_of(partition: int, offsets: Iterable[int]) -> list[OffsetRange]:
    """The offsets as the fewest ranges, in ascending order; doubles count once."""
    ranges: list[OffsetRange] = []
    first = end = None
    for offset in sorted(set(offsets)):
        if end is None or offset != end:
            if first is not None and end is not None:
                ranges.append(OffsetRange(partition, first, end))
            first = offset
        end = offset + 1
    if first is not None and end is not None:
        ranges.append(OffsetRange(partition, first, end))
    return ranges


def described(ranges: Sequence[OffsetRange], most: int = 5) -> str:
    """The first ``most`` ranges in words, and how many more there are."""
    shown = "; ".join(str(each) for each in ranges[:most])
    return shown if len(ranges) <= most else f"{shown}; and {len(ranges) - most} more"
