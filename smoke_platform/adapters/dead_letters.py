"""Dead letters counted by reason for a window of time.

Belongs here: reading the dead-letter topic's headers. Does not: sending letters (``adapters.kafka_bulk``), what makes a
message one (``domain.readings``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from smoke_platform.adapters.kafka_bulk import KafkaUnreachable
from smoke_platform.domain.errors import SmokeError

#: Letters read at most; where a flood of them came, the rest is counted without its reasons.
MOST_LETTERS = 200_000
UNREAD = "not_read"
_POLL = 10_000
#: How long a broker may take for its first answer.
_FIRST_ANSWER_S = 10.0


def count_by_reason(
    brokers: str, topic: str, start: datetime, end: datetime, *, most: int = MOST_LETTERS, timeout_s: float = 30.0
) -> dict[str, int]:
    """Reason -> messages that the broker appended to the readings' topic in [start, end) and that were no readings.

    A letter that was sent twice (its sender died before it knew) counts once, by its key, the message's identity.

    Args:
        start, end: with a zone.
        most: letters that are read; those beyond it count under ``not_read``, repeats and later ones included.
        timeout_s: for the whole.

    Raises:
        KafkaUnreachable: no broker answers in time.
        SmokeError: the topic can't be read.
    """
    deadline = time.monotonic() + timeout_s
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            # A client must name a group; without subscription and commit it never joins it.
            "group.id": "smoke-monitoring",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    try:
        places, ends = _places(consumer, topic, start, deadline)
        if not places:
            return {}
        consumer.assign(places)
        begins = {place.partition: place.offset for place in places}
        return _Count(begins, ends, start, end).run(consumer, most, deadline)
    except KafkaException as error:
        raise KafkaUnreachable(f"reading topic {topic} from {brokers}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _places(
    consumer: Consumer, topic: str, start: datetime, deadline: float
) -> tuple[list[TopicPartition], dict[int, int]]:
    """Where to begin in each partition that has letters of the window, and where each of them ends."""
    described = consumer.list_topics(topic, timeout=min(_FIRST_ANSWER_S, _left(deadline))).topics[topic]
    if described.error is not None:
        if described.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return [], {}  # it is made with the platform's topics; until then nothing was rejected
        raise SmokeError(f"topic {topic}: {described.error.str()}", "look at it with `smoke topics`")
    moment = int(start.timestamp() * 1000)
    # A letter is appended after the message that it is about, so none of the window lies before this place.
    asked = [TopicPartition(topic, number, moment) for number in described.partitions]
    found = consumer.offsets_for_times(asked, timeout=_left(deadline))
    places, ends = [], {}
    for place in found:
        if place.error is not None:
            raise KafkaException(place.error)
        end = consumer.get_watermark_offsets(TopicPartition(topic, place.partition), timeout=_left(deadline))[1]
        if 0 <= place.offset < end:
            places.append(place)
            ends[place.partition] = end
    return places, ends


@dataclass(slots=True)
class _Count:
    reached: dict[int, int]
    ends: dict[int, int]
    start: datetime
    end: datetime
    counts: Counter[str] = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)

    def run(self, consumer: Consumer, most: int, deadline: float) -> dict[str, int]:
        read = 0
        while read < most and any(self.reached[number] < self.ends[number] for number in self.ends):
            messages = consumer.consume(min(_POLL, most - read), timeout=min(1.0, _left(deadline)))
            for message in messages:
                if message.error() is not None:
                    raise KafkaException(message.error())
                self._add(message)
            read += len(messages)
        unread = sum(max(0, end - self.reached[number]) for number, end in self.ends.items())
        if unread:
            self.counts[UNREAD] += unread
        return dict(self.counts)

    def _add(self, message: Any) -> None:
        number, offset = message.partition(), message.offset()
        self.reached[number] = offset + 1
        headers = _headers(message.headers())
        key = message.key() or f"{number}/{offset}".encode()
        if key in self.seen or not _within(headers.get("append_time"), self.start, self.end):
            return
        self.seen.add(key)
        self.counts[headers.get("reason", "unknown")] += 1


def _headers(found: Iterable[tuple[str, Any]] | None) -> dict[str, str]:
    return {name: value.decode("utf-8", "replace") for name, value in found or () if isinstance(value, bytes)}


def _within(append_time: str | None, start: datetime, end: datetime) -> bool:
    """Whether the message that the letter is about came in the window; without its time, the letter's place decides."""
    return append_time is None or start <= datetime.fromisoformat(append_time) < end


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise KafkaUnreachable("the broker did not answer in time")
    return left
