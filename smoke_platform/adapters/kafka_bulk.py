"""Kafka in bulk: reading whole ranges of offsets, and sending dead letters, both with confluent-kafka.

Belongs here: the consumer that landing reads with, the dead letters' producer, a topic's identity as one client sees
it. Does not: the control plane (``adapters.kafka``), what a message means (``domain``), where positions are kept (they
are committed with the rows; no consumer group stores an offset here).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.topics import DEAD_LETTER_REQUEST_BYTES

#: Messages that one call takes from the client's queue; larger ones make the pauses between two heartbeats longer.
POLL_MESSAGES = 10_000
#: How long the broker may take to acknowledge a dead letter, its restart included.
ACKNOWLEDGE_TIMEOUT_S = 60.0

#: Read-ahead of the consumer. Measured: more than this costs memory and gains nothing on a local broker.
FETCH_SETTINGS: Mapping[str, Any] = {
    "queued.min.messages": 100_000,
    "queued.max.messages.kbytes": 131_072,
    "fetch.wait.max.ms": 50,
    "fetch.queue.backoff.ms": 5,
}


#: For a topic that is small or read without hurry: little memory, and few questions to the broker while it is quiet.
MODEST_FETCH_SETTINGS: Mapping[str, Any] = {
    "queued.min.messages": 10_000,
    "queued.max.messages.kbytes": 8_192,
    "fetch.wait.max.ms": 500,
    "fetch.queue.backoff.ms": 20,
}

_URL_ALPHABET = str.maketrans("+/", "-_")


_STALE_LEADER = frozenset(
    {KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.NOT_LEADER_FOR_PARTITION}
)


class KafkaUnreachable(SmokeError):
    """The broker did not answer in time."""

    @classmethod
    def of(cls, brokers: str, why: str = "") -> Self:
        """The fault with what to do about it; ``why`` in the client's words."""
        return cls(
            f"the broker {brokers} does not answer{': ' if why else ''}{why}",
            "check that it runs (`smoke status`), or set KAFKA_BOOTSTRAP_SERVERS to one that does; nothing is lost "
            "meanwhile",
        )


class OffsetLost(SmokeError):
    """The log no longer holds the offset that was to be read next."""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic as it is now: the cluster's id, its own id (base64url), and its partitions' numbers."""

    cluster_id: str
    topic_id: str
    partitions: tuple[int, ...]


@dataclass(slots=True)
class MessageBatch:
    """Messages in the order in which they came: within a partition in the order of offsets, partitions mixed.

    Attributes:
        values, partitions, offsets, append_times_ms: one entry a message. Append time is -1 where unknown.
        headers: index -> headers, of those messages alone that have any.
        ends: partition -> offset of the log's end, for partitions whose end was reached after these messages.
        messages: the client's own objects, one a message.
    """

    values: list[bytes | None] = field(default_factory=list)
    partitions: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    append_times_ms: list[int] = field(default_factory=list)
    headers: dict[int, list[tuple[str, bytes | None]]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    messages: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    def extend(self, later: MessageBatch) -> None:
        """Adds messages that came later."""
        self.headers.update({row + len(self): found for row, found in later.headers.items()})
        self.values += later.values
        self.partitions += later.partitions
        self.offsets += later.offsets
        self.append_times_ms += later.append_times_ms
        self.messages += later.messages
        self.ends.update(later.ends)

    def key_of(self, row: int) -> bytes | None:
        key = self.messages[row].key()
        return key if key is None or isinstance(key, bytes) else str(key).encode()


class TopicWatcher:
    """Asks for a topic's identity, again and again over one connection."""

    def __init__(self, brokers: str, topic: str) -> None:
        self._brokers = brokers
        self.topic = topic
        self._admin = self._client()

    def _client(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self._brokers, "log_level": 0, "reconnect.backoff.max.ms": 500})

    def facts(self, timeout_s: float = 10.0) -> TopicFacts | None:
        """The topic as it is now, ``None`` where there is none.

        Raises:
            KafkaUnreachable: when the broker does not answer within ``timeout_s``.
        """
        try:
            topics = self._admin.describe_topics(TopicCollection([self.topic]), request_timeout=timeout_s)
            cluster = self._admin.describe_cluster(request_timeout=timeout_s).result(timeout_s)
            described = topics[self.topic].result(timeout_s)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            raise KafkaUnreachable.of(self._brokers, error.args[0].str()) from None
        except (TimeoutError, FutureTimeoutError):
            raise KafkaUnreachable.of(self._brokers) from None
        return TopicFacts(
            str(cluster.cluster_id),
            # Kafka's own tools print ids in the alphabet for URLs; this client does not, and a slash in an id would
            # make identities unreadable.
            str(described.topic_id).translate(_URL_ALPHABET).rstrip("="),
            tuple(sorted(part.id for part in described.partitions)),
        )

    def watermarks(self, partitions: Sequence[int], timeout_s: float = 10.0) -> dict[int, tuple[int, int]]:
        """Partition -> (first offset still there, offset after the last).

        Raises:
            KafkaUnreachable: when the broker does not answer within ``timeout_s``.
        """
        from confluent_kafka.admin import OffsetSpec

        low = self._offsets(partitions, OffsetSpec.earliest(), timeout_s)
        high = self._offsets(partitions, OffsetSpec.latest(), timeout_s)
        return {partition: (low[partition], high[partition]) for partition in partitions}

    def offsets_at(self, partitions: Sequence[int], moment: datetime, timeout_s: float = 10.0) -> dict[int, int]:
        """Partition -> first offset that was appended at this moment or later; without those that have none.

        Raises:
            KafkaUnreachable: when the broker does not answer within ``timeout_s``.
        """
        from confluent_kafka.admin import OffsetSpec

        spec = OffsetSpec.for_timestamp(max(0, math.floor(moment.timestamp() * 1000)))
        found = self._offsets(partitions, spec, timeout_s)
        return {partition: offset for partition, offset in found.items() if offset >= 0}

    def _offsets(self, partitions: Sequence[int], spec: Any, timeout_s: float) -> dict[int, int]:
        asked = dict.fromkeys((TopicPartition(self.topic, partition) for partition in partitions), spec)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answers = self._admin.list_offsets(asked, request_timeout=timeout_s)
                return {place.partition: answer.result(timeout_s).offset for place, answer in answers.items()}
            except KafkaException as error:
                fault = error.args[0]
                if fault.code() not in _STALE_LEADER or time.monotonic() > deadline:
                    raise KafkaUnreachable.of(self._brokers, fault.str()) from None
            except (TimeoutError, FutureTimeoutError):
                raise KafkaUnreachable.of(self._brokers) from None
            # After a restart of the broker this client asks with the leader's old epoch, again and again; only a new
            # client learns the new one. For a moment the broker itself may be behind.
            time.sleep(0.1)
            self._admin = self._client()


class BulkConsumer:
    """Reads a topic's partitions from given positions onward; close it, or use it as a context manager.

    Args:
        positions: partition -> offset of the first message to read.
        fetch: how far to read ahead, in the client's names.
    """

    def __init__(
        self, brokers: str, topic: str, positions: Mapping[int, int], fetch: Mapping[str, Any] = FETCH_SETTINGS
    ) -> None:
        self._topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                # The client insists on a name; no group is joined and no offset is stored under it.
                "group.id": "smoke-landing",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                # Anything else would jump over a lost range, or back to the start, without a word.
                "auto.offset.reset": "error",
                "isolation.level": "read_uncommitted",
                "reconnect.backoff.max.ms": 500,
                "log_level": 2,
                **fetch,
            }
        )
        self._consumer.assign([TopicPartition(topic, number, offset) for number, offset in sorted(positions.items())])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self, timeout_s: float, most: int = POLL_MESSAGES) -> MessageBatch:
        """The messages that are there, at most ``most``, or those that come within ``timeout_s``.

        Raises:
            OffsetLost: when the log no longer holds a partition's position.
            SmokeError: for an error that waiting does not mend.
        """
        messages = self._consumer.consume(min(most, POLL_MESSAGES), timeout_s)
        batch = MessageBatch()
        if not messages:
            return batch
        # Unbound methods through map: a third of the time of the loops that they stand for, and this runs per message.
        if set(map(type, map(Message.error, messages))) != {type(None)}:
            messages = [message for message in messages if not self._is_event(message, batch)]
        batch.messages = messages
        batch.values = list(map(Message.value, messages))
        batch.partitions = list(map(Message.partition, messages))
        batch.offsets = list(map(Message.offset, messages))
        batch.append_times_ms = [stamp[1] for stamp in map(Message.timestamp, messages)]
        headers = list(map(Message.headers, messages))
        if headers.count(None) != len(headers):
            batch.headers = {row: found for row, found in enumerate(headers) if found}
        return batch

    def _is_event(self, message: Any, batch: MessageBatch) -> bool:
        error = message.error()
        if error is None:
            return False
        if error.code() == KafkaError._PARTITION_EOF:
            batch.ends[message.partition()] = message.offset()
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise OffsetLost(f"topic {self._topic}, partition {message.partition()}: {error.str()}")
        elif error.fatal() or error.code() in (
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError._UNKNOWN_PARTITION,
            KafkaError._UNKNOWN_TOPIC,
            KafkaError.UNKNOWN_TOPIC_OR_PART,
        ):
            raise SmokeError(f"reading topic {self._topic}: {error.str()}")
        # Else the client is between two brokers, says so, and tries again by itself.
        return True

    def close(self) -> None:
        self._consumer.close()


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: its key is the identity of the message, its value the original bytes; headers hold the facts."""

    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]


class DeadLetterProducer:
    """Sends dead letters and waits until the broker has them."""

    def __init__(self, brokers: str, topic: str) -> None:
        self._topic = topic
        self._producer = Producer(
            {
                "bootstrap.servers": brokers,
                "acks": "all",
                "enable.idempotence": True,
                "message.timeout.ms": round(ACKNOWLEDGE_TIMEOUT_S * 1000),
                "message.max.bytes": DEAD_LETTER_REQUEST_BYTES,
                "compression.type": "lz4",
                "linger.ms": 5,
                "partitioner": "murmur2_random",
                "reconnect.backoff.max.ms": 500,
                "log_level": 2,
            }
        )

    def send(self, letters: Sequence[Letter]) -> None:
        """Returns when each letter is acknowledged by all replicas in sync.

        Raises:
            SmokeError: when one is not; some of the others may have been written, and are sent again by the next try.
        """
        failures: list[str] = []

        def delivered(error: KafkaError | None, _message: Any) -> None:
            if error is not None:
                failures.append(error.str())

        deadline = time.monotonic() + ACKNOWLEDGE_TIMEOUT_S + 5
        for letter in letters:
            while True:
                try:
                    self._producer.produce(
                        self._topic, letter.value, letter.key, headers=letter.headers, on_delivery=delivered
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
        left = self._producer.flush(max(0.1, deadline - time.monotonic()))
        if failures or left:
            raise SmokeError(
                f"{len(failures) + left} of {len(letters)} dead letters were not acknowledged by topic {self._topic}: "
                f"{failures[0] if failures else 'no answer'}",
                "nothing was lost and nothing landed; check the topic with `smoke topics` and the broker",
            )
