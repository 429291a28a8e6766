"""The MQTT bridge: every message that an MQTT broker holds for it goes to Kafka, and only then is acknowledged.

Belongs here: the loop between the two brokers, what is under way between them, metrics. Does not: talking MQTT
(``adapters.mqtt``), what goes to Kafka for a message (``domain.mqtt_topics``), whether it is a reading (landing says).

Three threads: paho's takes messages off the wire, this one hands them to Kafka's client, one hears what Kafka has and
acknowledges, in the order in which the messages came. While Kafka is away nothing is acknowledged; the MQTT broker
stops at the receive maximum, so memory is bounded, and keeps the rest. After a lost connection nothing is asked for
again before Kafka has what is under way: otherwise each connection would bring the same messages once more into memory.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from smoke_platform.adapters.kafka import BrokerUnreachable, Cluster, TopicMissing, partition_of
from smoke_platform.adapters.mqtt import Incoming, MqttConnection, MqttRefused, MqttUnreachable, parse_url
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.mqtt_topics import outgoing, parse_patterns
from smoke_platform.domain.topics import TopicState
from smoke_platform.settings import Settings

log = logging.getLogger(__name__)
_client_log = log.getChild("librdkafka")
_client_log.addHandler(logging.NullHandler())

#: Pauses between attempts, for either broker.
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
#: A connection that lasts so long is steady; after so many others in a row something is wrong with the settings.
STEADY_S = 10.0
SHORT_ONES = 2
REPORT_EVERY_S = 60.0
#: How long a stop waits for Kafka to acknowledge what is under way.
DRAIN_S = 10.0
_WAIT_S = 0.1
#: Kafka's client keeps at most this much; beyond it, handing over waits.
_BUFFER_KB = 262_144
#: What a record needs beside key and value: headers, lengths, the batch around it.
_RECORD_OVERHEAD = 4096
#: Of a message that was too large for the topic: how many bytes it had.
BYTES_HEADER = "smoke-mqtt-bytes"


@dataclass(slots=True)
class Counts:
    """What the bridge has done since its start; each number is changed by one thread only."""

    received: int = 0
    redelivered: int = 0
    forwarded: int = 0
    acknowledged: int = 0
    lost_qos0: int = 0
    mismatches: int = 0
    truncated: int = 0
    unmatched: int = 0
    connections: int = 0
    connected: bool = False
    kafka_up: bool = False
    in_flight: Callable[[], int] = field(default=lambda: 0)


_METRICS = (
    ("counter", "received", "Messages taken from the MQTT broker"),
    ("counter", "redelivered", "Of these, messages that it had sent before"),
    ("counter", "forwarded", "Messages that Kafka has acknowledged"),
    ("counter", "acknowledged", "Messages that were acknowledged to the MQTT broker"),
    ("counter", "lost_qos0", "Messages of QoS 0 for which there was no room"),
    ("counter", "mismatches", "Messages whose topic and payload name two devices"),
    ("counter", "truncated", "Messages too large for Kafka's topic, of which the beginning was sent"),
    ("counter", "unmatched", "Messages of topics that no pattern matches"),
    ("counter", "connections", "Connections to the MQTT broker"),
    ("gauge", "connected", "1 while connected to the MQTT broker"),
    ("gauge", "kafka_up", "1 while Kafka takes messages"),
    ("gauge", "in_flight", "Messages that Kafka has not acknowledged yet"),
)


@dataclass(slots=True)
class _Held:
    """An MQTT message on its way; ``left`` of its messages are not in Kafka yet."""

    number: int | None
    left: int


class Ledger:
    """Messages of one connection, acknowledged in the order in which they came, as MQTT asks for (5, section 4.6).

    Args:
        acknowledge: called with a message's number once Kafka has it and all before it.
    """

    def __init__(self, acknowledge: Callable[[int], None]) -> None:
        self._acknowledge = acknowledge
        self._held: deque[_Held] = deque()
        self._lock = threading.Lock()

    def hold(self, number: int | None, parts: int) -> _Held:
        """Takes note of a message that goes to Kafka in so many parts."""
        held = _Held(number, parts)
        with self._lock:
            self._held.append(held)
        return held

    def delivered(self, held: _Held) -> None:
        """One part of it is in Kafka."""
        with self._lock:
            held.left -= 1
            while self._held and self._held[0].left == 0:
                number = self._held.popleft().number
                if number is not None:
                    self._acknowledge(number)

    def __len__(self) -> int:
        return len(self._held)


class KafkaLink:
    """Kafka's client while it works; one that has failed is replaced as a whole.

    Attributes:
        fault: why a message was refused, ``None`` while all goes well. An outage is no fault: the client waits it out.
    """

    def __init__(self, brokers: str, state: TopicState, counts: Counts) -> None:
        from confluent_kafka import Producer

        self.fault: str | None = None
        self._topic = state.name
        self._partitions = state.partitions
        self.largest = int(state.config["max.message.bytes"]) - _RECORD_OVERHEAD
        self._counts = counts
        self._closed = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": brokers,
                "client.id": "smoke-mqtt-bridge",
                "acks": "all",
                "enable.idempotence": True,
                "compression.type": "lz4",
                "partitioner": "murmur2_random",
                "linger.ms": 2,
                "batch.size": min(128 * 1024, self.largest),
                "message.max.bytes": self.largest + _RECORD_OVERHEAD,
                "queue.buffering.max.kbytes": _BUFFER_KB,
                # Never given up: a message that was would have to be asked for again, behind those that came after it.
                "message.timeout.ms": 0,
                "reconnect.backoff.max.ms": 1000,
                "allow.auto.create.topics": False,
                "error_cb": self._note_error,
            },
            logger=_client_log,
        )
        self._set_up(True)
        self._thread = threading.Thread(target=self._listen, name="mqtt-bridge-kafka", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        self._producer.purge()
        self._producer.flush(1.0)

    def _listen(self) -> None:
        while not self._closed.is_set():
            self._producer.poll(_WAIT_S)

    def _note_error(self, error: Any) -> None:
        from confluent_kafka import KafkaError

        # All else is told by the reports on messages, or mends itself.
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._set_up(False)

    def _set_up(self, up: bool) -> None:
        if up != self._counts.kafka_up:
            self._counts.kafka_up = up
            log.log(
                logging.INFO if up else logging.WARNING,
                "Kafka takes messages" if up else "no Kafka broker answers; the MQTT broker keeps what comes",
            )

    def __len__(self) -> int:
        return len(self._producer)

    def send(
        self,
        key: bytes | None,
        value: bytes,
        headers: list[tuple[str, bytes]],
        on_delivered: Callable[[], None],
        wanted: Callable[[], bool],
    ) -> None:
        """Hands a message over; waits for room while ``wanted``, and otherwise leaves it."""
        from confluent_kafka import KafkaException

        def reported(error: Any, _message: Any) -> None:
            if self._closed.is_set():
                return  # given up together with this client; the MQTT broker still has it
            if error is not None:
                self.fault = self.fault or f"topic {self._topic}: {error.str()}"
                return
            self._set_up(True)
            self._counts.forwarded += 1
            on_delivered()

        options: dict[str, Any] = {} if key is None else {"partition": partition_of(key, self._partitions)}
        while wanted() and self.fault is None:
            try:
                self._producer.produce(self._topic, value, key, headers=headers, on_delivery=reported, **options)
            except BufferError:
                time.sleep(0.01)  # the other thread makes room
            except KafkaException as error:
                self.fault = f"topic {self._topic}: {error.args[0].str()}"
            else:
                return


class Bridge:
    """Takes messages from the MQTT broker to Kafka until ``stop`` is set.

    Raises:
        SmokeError: from the constructor, for settings that cannot be meant.
    """

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self.counts = Counts()
        self._settings = settings
        self._stop = stop
        self._address = parse_url(settings.mqtt_url)
        self._patterns = parse_patterns(settings.mqtt_topics)
        self._spoke = time.monotonic()
        self._spoken: dict[str, float] = {}

    def run(self) -> None:
        """Runs until the stop.

        Raises:
            MqttRefused: where the MQTT broker refuses the first connection, or another client takes the session over.
            SmokeError: where the port for metrics is taken.
        """
        with _metrics_server(self._settings, self.counts):
            attempt = 0
            while not self._stop.is_set():
                state = self._await_topic()
                if state is None:
                    return
                with KafkaLink(self._settings.brokers, state, self.counts) as link:
                    self.counts.in_flight = link.__len__
                    forwarded = self.counts.forwarded
                    self._serve(link)
                self.counts.kafka_up = False
                if link.fault is not None:
                    log.error("Kafka refuses messages: %s; nothing is acknowledged until it takes them", link.fault)
                    attempt = self._pause(attempt if forwarded == self.counts.forwarded else 0)

    def _pause(self, attempt: int) -> int:
        self._stop.wait(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
        return attempt + 1

    def _await_topic(self) -> TopicState | None:
        attempt = 0
        topic = self._settings.topic_readings
        while not self._stop.is_set():
            try:
                with Cluster(self._settings.brokers) as cluster:
                    states = cluster.describe([topic])
                if topic in states:
                    return states[topic]
                raise TopicMissing(f"there is no topic {topic}", "run `smoke topics create`")
            except (BrokerUnreachable, TopicMissing) as error:
                log.warning("%s; trying again", error.message)
                attempt = self._pause(attempt)
        return None

    # -- MQTT --------------------------------------------------------------------------------------------
    def _serve(self, link: KafkaLink) -> None:
        attempt = 0
        while not self._stop.is_set() and link.fault is None:
            if len(link):
                # Of the last connection: see the head of this module.
                self._stop.wait(_WAIT_S)
                self._report()
                continue
            inbox: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
            try:
                connection = MqttConnection(
                    self._settings, [pattern.filter for pattern in self._patterns], self._taker(inbox, link)
                )
            except (MqttUnreachable, MqttRefused) as error:
                if isinstance(error, MqttRefused) and not self.counts.connections:
                    raise
                log.warning("%s; trying again", error.message)
                attempt = self._pause(attempt)
                continue
            self._note_connection(connection)
            begun = time.monotonic()
            try:
                self._relay(connection, inbox, link)
            finally:
                self.counts.connected = False
                connection.close()
            if connection.fault is not None:
                raise connection.fault
            if not self._stop.is_set() and link.fault is None:
                why = connection.why()
                if isinstance(why, MqttRefused):
                    raise why
                if time.monotonic() - begun >= STEADY_S:
                    attempt = 0
                log.warning("%s; connecting again%s", why.message, self._hint if attempt >= SHORT_ONES else "")
                attempt = self._pause(attempt)

    @property
    def _hint(self) -> str:
        # Not every broker says that a session was taken over; mosquitto 2.0 just ends the connection.
        return (
            f". The last connections were all short: does another client use the name "
            f"{self._settings.mqtt_client_id!r}? Each bridge needs a SMOKE_MQTT_CLIENT_ID of its own"
        )

    def _taker(self, inbox: queue.SimpleQueue[Incoming], link: KafkaLink) -> Callable[[Incoming], None]:
        most = self._settings.mqtt_receive_maximum

        def take(message: Incoming) -> None:
            # The receive maximum holds for acknowledged messages alone; of the others nobody expects to have all.
            if message.number is None and inbox.qsize() + len(link) >= most:
                self.counts.lost_qos0 += 1
            else:
                inbox.put(message)

        return take

    def _note_connection(self, connection: MqttConnection) -> None:
        counts = self.counts
        if counts.connections and not connection.resumed:
            log.warning(
                "%s has lost the session: what was published while the bridge was away is gone; does the broker keep "
                "its sessions on disk?",
                self._address,
            )
        log.info(
            "connected to %s as %s, %s session, topics %s",
            self._address,
            self._settings.mqtt_client_id,
            "resumed" if connection.resumed else "new",
            ", ".join(pattern.text for pattern in self._patterns),
        )
        counts.connections += 1
        counts.connected = True

    def _relay(self, connection: MqttConnection, inbox: queue.SimpleQueue[Incoming], link: KafkaLink) -> None:
        ledger = Ledger(lambda number: self._acknowledge(connection, number))

        def wanted() -> bool:
            return not self._stop.is_set() and connection.alive and connection.fault is None and link.fault is None

        while wanted():
            self._report()
            try:
                message = inbox.get(timeout=_WAIT_S)
            except queue.Empty:
                continue
            self._forward(message, ledger, link, wanted)
        if self._stop.is_set():
            # What came after the stop stays with the MQTT broker; what Kafka takes in time is acknowledged.
            deadline = time.monotonic() + DRAIN_S
            while len(link) and link.fault is None and time.monotonic() < deadline:
                time.sleep(0.01)

    def _acknowledge(self, connection: MqttConnection, number: int) -> None:
        self.counts.acknowledged += connection.acknowledge(number)

    def _forward(self, message: Incoming, ledger: Ledger, link: KafkaLink, wanted: Callable[[], bool]) -> None:
        counts = self.counts
        counts.received += 1
        counts.redelivered += message.again
        pattern = next((each for each in self._patterns if each.matches(message.topic)), None)
        if pattern is None:
            counts.unmatched += 1
            self._say(
                "no pattern of SMOKE_MQTT_TOPICS matches topic %r, to which the session was subscribed before; "
                "another SMOKE_MQTT_CLIENT_ID begins a new session",
                message.topic,
            )
        device = None if pattern is None else pattern.device_of(message.topic)
        parts = list(outgoing(device, message.payload))
        held = ledger.hold(message.number, len(parts))
        for part in parts:
            if part.mismatch:
                counts.mismatches += 1
                self._say("a message on topic %r names another device; it will be a dead letter", message.topic)
            key = None if part.key is None else part.key.encode("utf-8", "replace")
            value, headers = part.value, []
            room = link.largest - len(key or b"")
            if len(value) > room:
                counts.truncated += 1
                self._say("a message of %d bytes on topic %r is too large for Kafka", len(value), message.topic)
                headers = [(BYTES_HEADER, str(len(value)).encode())]
                value = value[:room]
            link.send(key, value, headers, lambda: ledger.delivered(held), wanted)

    # -- telling -----------------------------------------------------------------------------------------
    def _say(self, text: str, *arguments: object) -> None:
        """A warning, once a minute of each kind."""
        now = time.monotonic()
        if now - self._spoken.get(text, -REPORT_EVERY_S) >= REPORT_EVERY_S:
            self._spoken[text] = now
            log.warning(text, *arguments)

    def _report(self) -> None:
        if time.monotonic() - self._spoke >= REPORT_EVERY_S:
            self._spoke = time.monotonic()
            log.info("%s", self.summary())

    def summary(self) -> str:
        """How far the bridge is, in one line."""
        counts = self.counts
        return (
            f"{counts.received:,} messages received, {counts.forwarded:,} in Kafka, {counts.acknowledged:,} "
            f"acknowledged, {counts.in_flight():,} under way; {counts.redelivered:,} came again, "
            f"{counts.mismatches:,} with two devices, {counts.lost_qos0:,} of QoS 0 lost"
        )


@contextmanager
def _metrics_server(settings: Settings, counts: Counts) -> Iterator[None]:
    if settings.mqtt_metrics_port == 0:
        yield
        return
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_collector(counts))
    try:
        server, thread = start_http_server(settings.mqtt_metrics_port, settings.bind_host, registry)
    except OSError as error:
        raise SmokeError(
            f"port {settings.mqtt_metrics_port} of {settings.bind_host} cannot be used: {error.strerror}",
            "choose another with SMOKE_MQTT_METRICS_PORT, or 0 for none",
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _collector(counts: Counts) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}

    class Numbers(Collector):
        def collect(self) -> Sequence[Metric]:
            found = []
            for kind, name, text in _METRICS:
                value = getattr(counts, name)
                found.append(kinds[kind](f"smoke_mqtt_{name}", text, value=value() if callable(value) else value))
            return found

    return Numbers()
