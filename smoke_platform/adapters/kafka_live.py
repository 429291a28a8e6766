"""Messages as soon as they are appended: a consumer for programs that have to answer within milliseconds.

Belongs here: fetching assigned partitions with little delay, and what its errors mean. Does not: who holds which
partition (a kafka-python group member decides that), reading ranges in bulk (``adapters.kafka_bulk``).

confluent-kafka does the fetching because kafka-python spends as long on a poll of some messages as the detector spends
on judging them, on two threads that wait for each other: measured in ``benchmarks/results/alarms.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from smoke_platform.adapters.kafka_bulk import OffsetLost
from smoke_platform.domain.errors import SmokeError

#: (topic, partition).
Place = tuple[str, int]

#: The broker answers a fetch as soon as there is anything; the wait only bounds how often an idle client asks, and how
#: long a new assignment may have to wait for the answer to the last question.
_SETTINGS: Mapping[str, Any] = {
    "fetch.min.bytes": 1,
    "fetch.wait.max.ms": 100,
    # How soon the client asks again when its queue was full for a moment; by default it stays away for a second.
    "fetch.queue.backoff.ms": 1,
    "queued.max.messages.kbytes": 16_384,
    "socket.nagle.disable": True,
    "check.crcs": True,
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 200,
    "retry.backoff.ms": 50,
    "topic.metadata.refresh.fast.interval.ms": 100,
    "allow.auto.create.topics": False,
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # Anything else would jump over a lost range, or back to the start, without a word.
    "auto.offset.reset": "error",
    "isolation.level": "read_uncommitted",
    "log_level": 2,
}

_ENDING = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)


class LiveConsumer:
    """Reads the partitions it is told to, as their messages arrive. For one thread; it joins no group.

    Args:
        brokers: host:port, with commas in between.
        client_id: name in the broker's log.
    """

    def __init__(self, brokers: str, client_id: str) -> None:
        self._consumer = Consumer(
            # The client insists on a group's name; none is joined and no offset is stored under it.
            {"bootstrap.servers": brokers, "client.id": client_id, "group.id": client_id, **_SETTINGS}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def assign(self, positions: Mapping[Place, int]) -> None:
        """Reads these partitions from now on, and no others; what was fetched before is thrown away.

        Args:
            positions: (topic, partition) -> offset of the first message to read.
        """
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in sorted(positions.items())])

    def take(self, timeout_s: float, most: int) -> list[Message]:
        """The messages that are there, at most ``most``; waits at most ``timeout_s`` for the first one.

        Within a partition they come in the order of offsets.

        Raises:
            OffsetLost: when the log no longer holds a partition's position.
            SmokeError: for an error that waiting does not mend.
        """
        # ``consume`` alone would wait for its time to be over or its list to be full.
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        found = [first, *self._consumer.consume(most - 1, 0)] if most > 1 else [first]
        if set(map(type, map(Message.error, found))) != {type(None)}:
            found = [message for message in found if not _is_event(message)]
        return found

    def close(self) -> None:
        self._consumer.close()


def _is_event(message: Message) -> bool:
    """Whether this tells of the client's state instead of being a message; raises for what it cannot mend."""
    error = message.error()
    if error is None:
        return False
    place = f"topic {message.topic()}, partition {message.partition()}"
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise OffsetLost(f"{place}: {error.str()}")
    if error.fatal() or error.code() in _ENDING:
        raise SmokeError(f"reading {place}: {error.str()}")
    return True
