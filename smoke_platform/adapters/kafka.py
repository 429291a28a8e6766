"""Kafka as the platform uses it: topics made and compared, watermarks, identities, acknowledged producing.

Belongs here: everything that talks to a broker on the control plane or writes messages. Does not: what the topics
are (``domain.topics``), bulk reading of offset ranges (the landing), what a message means (``domain``).

Two clients by role. ``ReadingProducer`` (kafka-python) carries the messages one at a time; ``BulkReadingProducer``
(confluent-kafka) loads files at several times its rate. Both put a device into the same partition (murmur2), wait
for all in-sync replicas, write each message once in spite of retries, and count what the broker acknowledged.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition, errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.partitioner.default import murmur2

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.topics import TopicProblem, TopicSpec, TopicState, blocking, compare, topic_specs
from smoke_platform.settings import Settings

log = logging.getLogger(__name__)
# The client's own remarks (a coordinator that still loads, a lost connection) are for programs that keep a log.
_client_log = log.getChild("librdkafka")
_client_log.addHandler(logging.NullHandler())

#: How long a one-shot command waits for a broker before it says that there is none.
CONNECT_TIMEOUT_S = 10.0
#: Messages that are sent and not yet acknowledged; beyond it ``send`` waits. About 300 bytes each.
MAX_IN_FLIGHT = 50_000
#: Kinds of failure that are kept with their text; further kinds are only counted.
MOST_FAILURE_KINDS = 20

#: The thread that waits for acknowledgements looks this often whether it is still wanted.
REPORT_S = 0.2

AcknowledgedCallback = Callable[[int, int], None]


class BrokerUnreachable(SmokeError):
    """No broker answered in time. A program that runs for ever tries again; a command ends."""


class TopicMissing(SmokeError):
    """The topic does not exist (yet)."""


class DeliveryFailed(SmokeError):
    """Messages were not acknowledged; they may or may not stand in the topic."""


def unreachable(brokers: str, detail: str = "") -> BrokerUnreachable:
    """The fault with what to do about it; ``detail`` in the client's words."""
    return BrokerUnreachable(
        f"no Kafka broker answers at {brokers}{f' ({detail})' if detail else ''}",
        "start the embedded one with `smoke up` (or `smoke kafka`), or set KAFKA_BOOTSTRAP_SERVERS to yours",
    )


@contextmanager
def _speaking(brokers: str) -> Iterator[None]:
    """Turns the client's network errors into one that names the setting."""
    try:
        yield
    except (
        errors.KafkaTimeoutError,
        errors.KafkaConnectionError,
        errors.NodeNotReadyError,
        errors.MetadataEmptyBrokerList,
        errors.RequestTimedOutError,
        errors.NetworkExceptionError,
        errors.StaleMetadata,
        errors.Cancelled,
    ) as error:
        raise unreachable(brokers, str(error) or type(error).__name__) from None


class Cluster:
    """One connection for questions about a cluster and changes to its topics; use it as a context manager.

    Raises:
        BrokerUnreachable: from the constructor and from every method, after ``timeout_s`` at the latest.
    """

    def __init__(self, brokers: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self.brokers = brokers
        self._timeout_s = timeout_s
        with _speaking(brokers):
            self._admin = KafkaAdminClient(
                bootstrap_servers=brokers.split(","),
                client_id="smoke-control",
                bootstrap_timeout_ms=round(timeout_s * 1000),
                request_timeout_ms=round(timeout_s * 1000),
                reconnect_backoff_max_ms=1000,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._admin.close()

    def cluster_id(self) -> str:
        """The id that the cluster was formatted with; another one means other data."""
        with _speaking(self.brokers):
            return str(self._admin.describe_cluster()["cluster_id"])

    def topics(self) -> list[str]:
        """Names of all topics but Kafka's own."""
        with _speaking(self.brokers):
            return sorted(name for name in self._admin.list_topics() if not name.startswith("__"))

    def describe(self, names: Iterable[str]) -> dict[str, TopicState]:
        """The named topics as they are; those that do not exist are left out."""
        with _speaking(self.brokers):
            found = self._known(list(names))
            if not found:
                return {}
            resources = [ConfigResource(ConfigResourceType.TOPIC, topic["name"]) for topic in found]
            configs = self._admin.describe_configs(resources, config_filter="all")["topic"]
        return {
            topic["name"]: TopicState(
                name=topic["name"],
                topic_id=_topic_id_text(topic["topic_id"]),
                partitions=len(topic["partitions"]),
                replication=min((len(part["replica_nodes"]) for part in topic["partitions"]), default=0),
                config={
                    key: entry["value"] for key, entry in configs[topic["name"]].items() if entry["value"] is not None
                },
            )
            for topic in found
        }

    def topic_id(self, name: str) -> str:
        """The id that the broker gave this topic when it was made: base64url, as Kafka's own tools print it.

        Raises:
            TopicMissing: where the topic does not exist.
        """
        with _speaking(self.brokers):
            return _topic_id_text(self._one(name)["topic_id"])

    def watermarks(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition -> (first offset still there, offset after the last).

        Raises:
            TopicMissing: where the topic does not exist.
        """
        with _speaking(self.brokers):
            places = [TopicPartition(topic, part["partition_index"]) for part in self._one(topic)["partitions"]]
            low = self._admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
            high = self._admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
        return {place.partition: (low[place].offset, high[place].offset) for place in sorted(places)}

    def given_to(self, group: str, instance: str) -> tuple[bool, set[tuple[str, int]]]:
        """Whether a consumer group has decided who gets what, and the (topic, partition) of one static member.

        Raises:
            BrokerUnreachable: also where the group's coordinator is not ready to answer.
        """
        with _speaking(self.brokers):
            try:
                found = self._admin.describe_groups([group])[group]
            except errors.RetriableError as error:
                raise unreachable(self.brokers, str(error)) from None
        if found["error"] is not None:
            raise unreachable(self.brokers, found["error"])
        places = {
            (topic["topic"], number)
            for member in found["members"]
            if member["group_instance_id"] == instance and member["member_assignment"]
            for topic in member["member_assignment"]["assigned_partitions"]
            for number in topic["partitions"]
        }
        return found["group_state"] in ("Stable", "Empty"), places

    def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Makes those of ``specs`` that do not exist, and waits until each partition has a leader.

        Returns:
            The names of the topics that this call made.

        Raises:
            SmokeError: where the broker refuses one, with its reason.
        """
        with _speaking(self.brokers):
            there = set(self._admin.list_topics())
            made = [spec.name for spec in specs if spec.name not in there and self._create_one(spec)]
            self._admin.wait_for_topics([spec.name for spec in specs], timeout_ms=round(self._timeout_s * 1000))
        return made

    def _create_one(self, spec: TopicSpec) -> bool:
        try:
            self._admin.create_topics(
                {
                    spec.name: {
                        "num_partitions": spec.partitions,
                        "replication_factor": spec.replication,
                        "configs": dict(spec.config),
                    }
                }
            )
        except errors.TopicAlreadyExistsError:
            return False  # another process was quicker; the comparison that follows judges what it made
        except errors.InvalidReplicationFactorError:
            raise SmokeError(
                f"topic {spec.name} cannot have {spec.replication} replicas on this cluster",
                "set SMOKE_KAFKA_REPLICATION to at most the number of brokers",
            ) from None
        except errors.AuthorizationError:
            raise SmokeError(
                f"not allowed to create topic {spec.name} at {self.brokers}",
                f"have it made with {spec.partitions} partitions and {_config_text(spec.config)}",
            ) from None
        except errors.BrokerResponseError as error:
            if isinstance(error, errors.RetriableError):
                raise
            raise SmokeError(f"the broker refuses to create topic {spec.name}: {error}") from None
        return True

    def alter(self, topic: str, config: Mapping[str, str]) -> None:
        """Sets broker-side configuration of an existing topic, and waits until the broker tells of it.

        What is not named stays as it is.

        Raises:
            SmokeError: where the broker refuses, or tells of other values after the time limit of this connection.
        """
        deadline = time.monotonic() + self._timeout_s
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict(config))
        with _speaking(self.brokers):
            outcome = self._admin.alter_configs([resource])["topic"][topic]
        if outcome != "OK":
            raise SmokeError(f"the broker refuses to change topic {topic}: {outcome}")
        # As with a deleted one: the controller answers before the brokers know.
        while (state := self.describe([topic]).get(topic)) is not None and not config.items() <= state.config.items():
            if time.monotonic() >= deadline:
                raise SmokeError(
                    f"{self.brokers} does not tell of the changed topic {topic} after {self._timeout_s:g} s",
                    "look into the broker's log; `smoke topics list` shows the topics as they are",
                )
            time.sleep(0.02)

    def delete(self, names: Sequence[str]) -> None:
        """Deletes topics with their messages, and waits until the broker no longer tells of them.

        One that does not exist is no fault; nor is one that somebody has made anew under its name meanwhile.

        Raises:
            SmokeError: where the broker still tells of one after the time limit of this connection.
        """
        deadline = time.monotonic() + self._timeout_s
        with _speaking(self.brokers):
            doomed = {topic["topic_id"]: topic["name"] for topic in self._known(list(names))}
            if not doomed:
                return
            self._admin.delete_topics(list(doomed.values()))
            # The controller answers before the brokers know: one that is busy tells of the topic for seconds.
            while left := [topic for topic in self._known(list(doomed.values())) if topic["topic_id"] in doomed]:
                if time.monotonic() >= deadline:
                    raise SmokeError(
                        f"{self.brokers} tells of the deleted topic {left[0]['name']} after {self._timeout_s:g} s",
                        "look into the broker's log; `smoke topics list` shows which topics are there",
                    )
                time.sleep(0.02)

    def _known(self, names: list[str]) -> list[Any]:
        # Asked for none, a broker tells of all.
        return [topic for topic in self._admin.describe_topics(names) if topic["error_code"] == 0] if names else []

    def _one(self, name: str) -> Any:
        found = self._known([name])
        if not found:
            raise _no_such_topic(name)
        return found[0]


def _topic_id_text(topic_id: Any) -> str:
    # The client gives the hexadecimal form; Kafka's own tools and librdkafka print base64url without padding.
    return base64.urlsafe_b64encode(uuid.UUID(str(topic_id)).bytes).decode().rstrip("=")


def _no_such_topic(name: str) -> TopicMissing:
    return TopicMissing(f"there is no topic {name}", "run `smoke topics create`")


def _config_text(config: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in config.items())


# -- what the settings ask for ---------------------------------------------------------------------------


def specs_for(settings: Settings) -> tuple[TopicSpec, ...]:
    """The topics that these settings ask for."""
    return topic_specs(
        settings.topic_readings,
        settings.topic_dead_letters,
        partitions=settings.kafka_partitions,
        replication=settings.kafka_replication,
        retention_days=settings.kafka_retention_days,
    )


@dataclass(frozen=True)
class TopicReport:
    """What ``ensure_topics`` did and found.

    Attributes:
        created: names of the topics it made.
        altered: names of the topics whose configuration it changed (only when told to).
        problems: differences that do not keep the platform from working, such as another retention.
    """

    created: list[str]
    altered: list[str]
    problems: list[TopicProblem]


def ensure_topics(settings: Settings, *, alter: bool = False, timeout_s: float = CONNECT_TIMEOUT_S) -> TopicReport:
    """Makes the platform's topics where they are missing; safe to call again and from several processes.

    Args:
        alter: change the configuration of existing topics to what is expected. Partitions are never changed.

    Raises:
        SmokeError: where an existing topic differs in a way with which data would be lost or misplaced; it
            lists each with its remedy. Without ``alter`` nothing existing is ever changed.
    """
    specs = specs_for(settings)
    altered: list[str] = []
    with Cluster(settings.brokers, timeout_s=timeout_s) as cluster:
        created = cluster.create(specs)
        states = cluster.describe(spec.name for spec in specs)
        if alter:
            for spec in specs:
                state = states[spec.name]
                wrong = {key: value for key, value in spec.config.items() if state.config.get(key) != value}
                if wrong:
                    cluster.alter(spec.name, wrong)
                    altered.append(spec.name)
            states = cluster.describe(spec.name for spec in specs)
    problems = [problem for spec in specs for problem in compare(spec, states[spec.name])]
    if worst := blocking(problems):
        raise SmokeError("existing topics are not as the platform needs them:\n" + "\n".join(map(str, worst)))
    return TopicReport(created, altered, problems)


def describe_topics(settings: Settings, names: Iterable[str] | None = None) -> dict[str, TopicState]:
    """The platform's topics (or the named ones) as they are; missing ones are left out."""
    with Cluster(settings.brokers) as cluster:
        return cluster.describe(names if names is not None else [spec.name for spec in specs_for(settings)])


def watermarks(settings: Settings, topic: str) -> dict[int, tuple[int, int]]:
    """Partition -> (first offset still there, offset after the last). Often? Keep a ``Cluster`` open instead."""
    with Cluster(settings.brokers) as cluster:
        return cluster.watermarks(topic)


def cluster_id(settings: Settings) -> str:
    """The id that the cluster was formatted with."""
    with Cluster(settings.brokers) as cluster:
        return cluster.cluster_id()


def topic_id(settings: Settings, topic: str) -> str:
    """The id that the broker gave this topic when it was made."""
    with Cluster(settings.brokers) as cluster:
        return cluster.topic_id(topic)


# -- producing -------------------------------------------------------------------------------------------


class AcknowledgedOffsets:
    """The set of acknowledged (partition, offset) pairs, as ranges: a few bytes for millions of messages.

    Give its ``add`` to a producer as ``on_acknowledged``; read it after ``flush``.
    """

    def __init__(self) -> None:
        self._ranges: dict[int, list[list[int]]] = {}
        self.count = 0

    def add(self, partition: int, offset: int) -> None:
        ranges = self._ranges.setdefault(partition, [])
        self.count += 1
        if ranges and ranges[-1][1] == offset:
            ranges[-1][1] = offset + 1
        else:
            ranges.append([offset, offset + 1])

    def ranges(self) -> dict[int, list[tuple[int, int]]]:
        """Partition -> ascending, disjoint, half-open ranges of offsets."""
        merged: dict[int, list[tuple[int, int]]] = {}
        for partition, ranges in sorted(self._ranges.items()):
            out: list[tuple[int, int]] = []
            for low, high in sorted((low, high) for low, high in ranges):
                if out and low <= out[-1][1]:
                    out[-1] = (out[-1][0], max(out[-1][1], high))
                else:
                    out.append((low, high))
            merged[partition] = out
        return merged

    @property
    def distinct(self) -> int:
        """How many different messages were acknowledged; less than ``count`` means one was counted twice."""
        return sum(high - low for ranges in self.ranges().values() for low, high in ranges)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Every (partition, offset), ascending."""
        for partition, ranges in self.ranges().items():
            for low, high in ranges:
                for offset in range(low, high):
                    yield partition, offset

    def __contains__(self, place: tuple[int, int]) -> bool:
        return any(low <= place[1] < high for low, high in self._ranges.get(place[0], []))


@dataclass(frozen=True)
class ProducerCounts:
    """How many messages were handed in, acknowledged, refused, and are still under way."""

    sent: int
    acknowledged: int
    failed: int
    in_flight: int


@dataclass
class _Failures:
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> None:
        if text in self.kinds or len(self.kinds) < MOST_FAILURE_KINDS:
            self.kinds[text] = self.kinds.get(text, 0) + 1


class _CountingProducer:
    """What both producers share: the counts, the bound on messages under way, the texts of failures."""

    def __init__(
        self,
        brokers: str,
        topic: str,
        on_acknowledged: AcknowledgedCallback | None,
        most: int,
        stop: threading.Event | None,
    ) -> None:
        self.brokers = brokers
        self.topic = topic
        self._on_acknowledged = on_acknowledged
        self._most = most
        self._stop = stop or threading.Event()
        self._lock = threading.Lock()
        self._room = threading.Event()
        self._sent = 0
        self._acknowledged = 0
        self._failed = 0
        self._failures = _Failures()

    @property
    def counts(self) -> ProducerCounts:
        with self._lock:
            under_way = self._sent - self._acknowledged - self._failed
            return ProducerCounts(self._sent, self._acknowledged, self._failed, under_way)

    @property
    def failures(self) -> dict[str, int]:
        """Text of a failure, with topic, partition and remedy -> how often; bounded."""
        with self._lock:
            return dict(self._failures.kinds)

    def _under_way(self) -> int:
        return self._sent - self._acknowledged - self._failed

    def _acknowledge(self, partition: int, offset: int) -> None:
        with self._lock:
            self._acknowledged += 1
            if self._on_acknowledged is not None:
                self._on_acknowledged(partition, offset)
        self._room.set()

    def _fail(self, error: BaseException | str, partition: int | None) -> None:
        with self._lock:
            self._failed += 1
            self._failures.add(_explain(error, self.topic, partition))
        self._room.set()

    def raise_failures(self) -> None:
        """Raises ``DeliveryFailed`` with every kind of failure, where there was any."""
        kinds = self.failures
        if kinds:
            raise DeliveryFailed(
                f"{self.counts.failed} of {self.counts.sent} messages were not acknowledged:\n"
                + "\n".join(f"{count} x {text}" for text, count in kinds.items())
            )


def _explain(error: BaseException | str, topic: str, partition: int | None) -> str:
    place = f"topic {topic}" + ("" if partition is None or partition < 0 else f", partition {partition}")
    text = str(error) or type(error).__name__
    name = error if isinstance(error, str) else type(error).__name__
    remedy = next((remedy for mark, remedy in _REMEDIES if mark in f"{name} {text}"), "see the broker's log")
    return f"{place}: {text}\n  -> {remedy}"


_REMEDIES = (
    ("TooLarge", "send smaller messages, or raise max.message.bytes of the topic"),
    ("MSG_SIZE", "send smaller messages, or raise max.message.bytes of the topic"),
    ("UnknownTopic", "run `smoke topics create`"),
    ("UNKNOWN_TOPIC", "run `smoke topics create`"),
    ("UNKNOWN_PARTITION", "run `smoke topics create`"),
    ("Authorization", "give this client the right to write to the topic"),
    ("AUTHORIZATION", "give this client the right to write to the topic"),
    ("NotEnoughReplicas", "start the missing brokers, or lower the topic's min.insync.replicas"),
    ("NOT_ENOUGH_REPLICAS", "start the missing brokers, or lower the topic's min.insync.replicas"),
    ("Timeout", "check that the broker at KAFKA_BOOTSTRAP_SERVERS runs (`smoke status`)"),
    ("TIMED_OUT", "check that the broker at KAFKA_BOOTSTRAP_SERVERS runs (`smoke status`)"),
    ("expired", "check that the broker at KAFKA_BOOTSTRAP_SERVERS runs (`smoke status`)"),
)


class ReadingProducer(_CountingProducer):
    """Writes messages with kafka-python, one at a time, and counts what the broker acknowledged.

    Args:
        brokers, topic: where to; the topic must exist.
        on_acknowledged: called with (partition, offset) for each acknowledged message, on the client's thread.
        max_in_flight: ``send`` waits while this many are under way, so memory is bounded.
        delivery_timeout_s: a message that is not acknowledged by then has failed. ``None``: never give up; the
            client goes on trying through any outage, and idempotence keeps the retries from doubling.
        connect_timeout_s: bound on the constructor.
        max_request_bytes: largest message before compression; ``None``: what the topic takes.
        stop: once it is set, ``send`` no longer waits for room: it leaves the message unsent and uncounted.

    Raises:
        BrokerUnreachable: from the constructor.
        TopicMissing: from the constructor.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        *,
        on_acknowledged: AcknowledgedCallback | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        delivery_timeout_s: float | None = 60.0,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        linger_ms: int = 10,
        max_request_bytes: int | None = None,
        client_id: str = "smoke-producer",
        stop: threading.Event | None = None,
    ) -> None:
        super().__init__(brokers, topic, on_acknowledged, max_in_flight, stop)
        state = _existing_topic(brokers, topic, connect_timeout_s)
        self._partitions = state.partitions
        limit = int(state.config["max.message.bytes"])
        delivery_ms = _FOR_EVER_MS if delivery_timeout_s is None else max(1, round(delivery_timeout_s * 1000))
        self._config: dict[str, Any] = {
            "bootstrap_servers": brokers.split(","),
            "client_id": client_id,
            "acks": "all",
            "enable_idempotence": True,
            "compression_type": "lz4",
            "linger_ms": linger_ms,
            "batch_size": min(128 * 1024, limit),
            "max_request_size": max_request_bytes or limit,
            "delivery_timeout_ms": delivery_ms,
            "request_timeout_ms": min(10_000, delivery_ms),
            "bootstrap_timeout_ms": round(connect_timeout_s * 1000),
            "max_block_ms": round(connect_timeout_s * 1000),
            "reconnect_backoff_max_ms": 1000,
            "retry_backoff_ms": 200,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        self._suspect = False
        with _speaking(brokers):
            self._producer = KafkaProducer(**self._config)

    def send(
        self,
        key: str | bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Hands one message in; waits while ``max_in_flight`` are under way. Failures are counted, not raised.

        Args:
            key: the device's id; it decides the partition unless ``partition`` is given.
        """
        while self._under_way() >= self._most:
            if self._stop.is_set():
                return
            self._room.clear()
            self._room.wait(0.05)
        if self._suspect:
            self._renew_if_broken()
        with self._lock:
            self._sent += 1
        raw_key = key.encode() if isinstance(key, str) else key
        try:
            future = self._producer.send(
                self.topic, value=value, key=raw_key, partition=partition, headers=list(headers)
            )
        except (errors.KafkaError, ValueError) as error:
            self._fail(error, partition)
            return
        future.add_callback(self._on_success)
        future.add_errback(self._on_failure, raw_key, partition)

    def _on_success(self, metadata: Any) -> None:
        self._acknowledge(metadata.partition, metadata.offset)

    def _on_failure(self, key: bytes | None, partition: int | None, error: BaseException) -> None:
        if partition is None and key is not None:
            partition = partition_of(key, self._partitions)
        self._suspect = True
        self._fail(error, partition)

    def _renew_if_broken(self) -> None:
        """Replaces a client that has given up.

        kafka-python 3.0 counts any refusal that a retry cannot mend, such as a message that is too large, as the
        end of an idempotent producer: it then fails every later message as well.
        """
        self._suspect = False
        manager = self._producer._transaction_manager
        if manager is not None and manager.has_fatal_error():
            log.warning("the producer gave up (%s); starting a new one", manager.last_error)
            self._producer.close(timeout=1.0)
            with _speaking(self.brokers):
                self._producer = KafkaProducer(**self._config)

    def flush(self, deadline_s: float = 60.0) -> None:
        """Waits until every message is acknowledged or has failed.

        Raises:
            DeliveryFailed: where some are still under way after ``deadline_s``.
        """
        try:
            self._producer.flush(timeout=deadline_s)
        except errors.KafkaTimeoutError:
            raise _not_flushed(self, deadline_s) from None

    def close(self, deadline_s: float = 10.0) -> None:
        """Ends the client; what is still under way after ``deadline_s`` counts as failed."""
        self._producer.close(timeout=deadline_s)


class BulkReadingProducer(_CountingProducer):
    """As ``ReadingProducer``, with confluent-kafka: for loads beyond some 20,000 messages a second.

    Args:
        at_once: acknowledgements are reported by a thread of its own as soon as they come, instead of in ``send``,
            ``poll`` and ``flush``; and a lost connection is sought again without the usual pauses.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        *,
        on_acknowledged: AcknowledgedCallback | None = None,
        max_in_flight: int = 200_000,
        delivery_timeout_s: float | None = 60.0,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        linger_ms: int = 20,
        max_request_bytes: int | None = None,
        client_id: str = "smoke-bulk-producer",
        stop: threading.Event | None = None,
        at_once: bool = False,
    ) -> None:
        from confluent_kafka import Producer

        super().__init__(brokers, topic, on_acknowledged, max_in_flight, stop)
        limit = _largest_message(brokers, topic, connect_timeout_s)
        self._producer = Producer(
            {
                "bootstrap.servers": brokers,
                "client.id": client_id,
                "acks": "all",
                "enable.idempotence": True,
                "compression.type": "lz4",
                # librdkafka's own default sends some keys elsewhere than kafka-python and the Java client do.
                "partitioner": "murmur2_random",
                "linger.ms": linger_ms,
                "batch.size": min(512 * 1024, limit),
                "message.max.bytes": max(1000, max_request_bytes or limit),
                "queue.buffering.max.messages": max_in_flight,
                "message.timeout.ms": 0 if delivery_timeout_s is None else max(1, round(delivery_timeout_s * 1000)),
                "reconnect.backoff.max.ms": 200 if at_once else 1000,
                "allow.auto.create.topics": False,
                **({"reconnect.backoff.ms": 20, "socket.nagle.disable": True} if at_once else {}),
            },
            logger=_client_log,
        )
        self._ended = threading.Event()
        self._reporter: threading.Thread | None = None
        if at_once:
            self._reporter = threading.Thread(target=self._report, name=f"{client_id}-reports", daemon=True)
            self._reporter.start()

    def _report(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(REPORT_S)

    def send(
        self,
        key: str | bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """As ``ReadingProducer.send``."""
        from confluent_kafka import KafkaException

        options: dict[str, Any] = {} if partition is None else {"partition": partition}
        if headers:
            options["headers"] = list(headers)
        # Before it is handed in: its report may come at once, on another thread.
        self._sent += 1
        while True:
            try:
                self._producer.produce(self.topic, value=value, key=key, on_delivery=self._delivered, **options)
            except BufferError:
                if self._stop.is_set():
                    self._sent -= 1
                    return
                self._producer.poll(0.05)
                continue
            except KafkaException as error:
                self._fail(str(error), partition)
            break
        if self._reporter is None and self._sent % 256 == 0:
            self._producer.poll(0)

    def _delivered(self, error: Any, message: Any) -> None:
        if error is None:
            self._acknowledge(message.partition(), message.offset())
        else:
            self._fail(f"{error.name()}: {error.str()}", message.partition())

    def poll(self) -> None:
        """Lets the client report acknowledgements; call it while nothing is sent."""
        self._producer.poll(0)

    def flush(self, deadline_s: float = 60.0) -> None:
        """As ``ReadingProducer.flush``."""
        deadline = time.monotonic() + deadline_s
        while self._producer.flush(max(0.0, min(1.0, deadline - time.monotonic()))) > 0:
            if time.monotonic() >= deadline:
                raise _not_flushed(self, deadline_s)

    def close(self, deadline_s: float = 10.0) -> None:
        """As ``ReadingProducer.close``."""
        if self._producer.flush(deadline_s) > 0:
            self._producer.purge()
            self._producer.flush(1.0)
        self._ended.set()
        if self._reporter is not None:
            self._reporter.join(2 * REPORT_S)


#: Messages under way are kept this long where the producer never gives up: longer than any outage.
_FOR_EVER_MS = 365 * 86_400_000


def partition_of(key: bytes | str, partitions: int) -> int:
    """The partition that a message with this key goes to: murmur2, as the Java client's default partitioner."""
    raw = key.encode() if isinstance(key, str) else key
    return int((murmur2(raw) & 0x7FFFFFFF) % partitions)


def _existing_topic(brokers: str, topic: str, timeout_s: float) -> TopicState:
    with Cluster(brokers, timeout_s=timeout_s) as cluster:
        states = cluster.describe([topic])
    if topic not in states:
        raise _no_such_topic(topic)
    return states[topic]


def _largest_message(brokers: str, topic: str, timeout_s: float) -> int:
    """``max.message.bytes`` of a topic, asked of the client that will send to it."""
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient, ConfigResource

    admin = AdminClient({"bootstrap.servers": brokers}, logger=_client_log)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    try:
        found = admin.describe_configs([resource], request_timeout=timeout_s)[resource].result(timeout_s + 1.0)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise _no_such_topic(topic) from None
        raise unreachable(brokers, error.args[0].str()) from None
    except TimeoutError as error:
        raise unreachable(brokers, str(error)) from None
    return int(found["max.message.bytes"].value)


def _not_flushed(producer: _CountingProducer, deadline_s: float) -> DeliveryFailed:
    counts = producer.counts
    return DeliveryFailed(
        f"{counts.in_flight} of {counts.sent} messages to topic {producer.topic} are not acknowledged "
        f"after {deadline_s:g} s",
        f"check that the broker at {producer.brokers} (KAFKA_BOOTSTRAP_SERVERS) runs (`smoke status`)",
    )
