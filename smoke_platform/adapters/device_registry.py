"""The device registry in its compacted topic ``smoke_devices``: read whole, followed, written to.

Belongs here: a view of the topic that stays current, and acknowledged writes to it. Does not: what an entry is and
which of two holds (``domain.devices``), the entries' history (``lake/devices``), the command line (``cli.devices``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Producer

from smoke_platform.adapters.kafka import BrokerUnreachable, DeliveryFailed, TopicMissing, partition_of
from smoke_platform.adapters.kafka_bulk import (
    MODEST_FETCH_SETTINGS,
    BulkConsumer,
    KafkaUnreachable,
    MessageBatch,
    TopicFacts,
    TopicWatcher,
)
from smoke_platform.domain.devices import Device, Roll, decode_message, encode, worth_writing
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.offsets import advanced, after
from smoke_platform.domain.topics import DEVICES
from smoke_platform.settings import Settings

log = logging.getLogger(__name__)

#: One poll of the client: the longest time until a change is seen.
POLL_S = 0.1
#: How often the topic is asked whether it is still the same one.
LOOK_EVERY_S = 5.0
#: Pause before another try where the broker does not answer or the topic is missing.
RETRY_S = 0.5
#: How long ``put`` may take, a broker's restart included.
PUT_TIMEOUT_S = 30.0
#: An entry by first reading may come between a person's entry and its reading; each round mends those it finds.
MOST_ROUNDS = 5


class DeviceRegistry:
    """What is known of every device. It begins to read when it is made; end it, or use it as a context manager.

    Reading goes on through restarts of the broker, and begins anew where the topic is made anew. All methods may be
    called from any thread.

    Args:
        settings: which broker.
        topic: another one than the platform's, for tests.
    """

    def __init__(self, settings: Settings, *, topic: str = DEVICES) -> None:
        self._brokers = settings.brokers
        self._topic = topic
        self._stop = threading.Event()
        self._moved = threading.Condition()
        self._writing = threading.Lock()
        self._watcher = TopicWatcher(settings.brokers, topic)
        self._producer: Any = None
        # Replaced as a whole, never changed, so that readers need no lock. Behind the condition: the rest.
        self._devices: Mapping[str, Device] = MappingProxyType({})
        self._version = 0
        self._facts: TopicFacts | None = None
        self._reached: dict[int, int] = {}
        self._overlaid: dict[str, Device] = {}
        self._ready = False
        self._fault: SmokeError | None = None
        self._unreadable = 0
        self._thread = threading.Thread(target=self._follow, name="device-registry", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- asking ------------------------------------------------------------------------------------------
    def get(self, device_id: str) -> Device:
        """The device's entry, the defaults where there is none."""
        return self._devices.get(device_id) or Device(device_id=device_id)

    def devices(self) -> Mapping[str, Device]:
        """Device id -> entry, as of now: it does not change any more. Unknown devices are not in it."""
        return self._devices

    @property
    def version(self) -> int:
        """Rises with each change of ``devices()``."""
        return self._version

    @property
    def unreadable(self) -> int:
        """Messages that were no entries; they are passed over."""
        return self._unreadable

    @property
    def ready(self) -> bool:
        """Whether the whole topic has been read, as it was when reading began."""
        return self._ready

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits until it is ready, at most ``timeout_s``; says whether it is."""
        with self._moved:
            return self._moved.wait_for(lambda: self._ready, timeout_s)

    def require_ready(self, timeout_s: float = 10.0) -> None:
        """As ``wait_ready``.

        Raises:
            SmokeError: where it takes longer, with the reason.
        """
        if not self.wait_ready(timeout_s):
            raise self._fault or BrokerUnreachable(f"topic {self._topic} was not read within {timeout_s:g} s")

    def stop(self) -> None:
        """Ends reading; what was read stays there to be asked for."""
        self._stop.set()
        self._thread.join(10.0)

    # -- writing -----------------------------------------------------------------------------------------
    def put(self, devices: Iterable[Device], *, on_written: Callable[[], None] | None = None) -> int:
        """Writes entries and returns when they are acknowledged and ``devices()`` shows what holds now.

        An entry by first reading is left out where the device has any. Should a person's entry come in between, it is
        written again, so that compaction keeps it.

        Args:
            on_written: called after each entry that was acknowledged.

        Returns:
            How many of ``devices`` were written.

        Raises:
            SmokeError: where the broker does not answer or refuses; some entries may have been written.
        """
        wanted = {device.device_id: device for device in devices}
        deadline = time.monotonic() + PUT_TIMEOUT_S
        with self._writing:
            self.require_ready(PUT_TIMEOUT_S)
            facts = self._catch_up(deadline)
            known = self._devices
            chosen = [entry for entry in wanted.values() if worth_writing(known.get(entry.device_id), entry)]
            replaced = {entry.device_id for entry in chosen}
            batch = chosen + [entry for name, entry in self._holding_below().items() if name not in replaced]
            for _ in range(MOST_ROUNDS):
                if not batch:
                    break
                self._wait_for(facts, self._write(facts, batch, on_written), deadline)
                batch = list(self._holding_below().values())
            return len(chosen)

    def _holding_below(self) -> dict[str, Device]:
        with self._moved:
            return dict(self._overlaid)

    def _catch_up(self, deadline: float) -> TopicFacts:
        """Waits until everything that is in the topic now has been read."""
        with self._moved:
            facts = self._facts
        if facts is None:
            raise self._fault or TopicMissing(f"there is no topic {self._topic}", "run `smoke topics create`")
        while True:
            try:
                watermarks = self._watcher.watermarks(facts.partitions, 5.0)
                break
            except KafkaUnreachable:
                # A broker that has just come back refuses what it will answer a moment later.
                if time.monotonic() > deadline or self._stop.wait(0.1):
                    raise
        self._wait_for(facts, {number: high for number, (_, high) in watermarks.items()}, deadline)
        return facts

    def _wait_for(self, facts: TopicFacts, positions: Mapping[int, int], deadline: float) -> None:
        def there() -> bool:
            return self._facts != facts or all(
                self._reached.get(number, 0) >= place for number, place in positions.items()
            )

        with self._moved:
            if not self._moved.wait_for(there, max(0.0, deadline - time.monotonic())):
                raise self._fault or BrokerUnreachable(f"topic {self._topic} was not read to its end in time")
            if self._facts != facts:
                raise SmokeError(f"topic {self._topic} was made anew while it was written to", "try again")

    def _write(self, facts: TopicFacts, entries: list[Device], on_written: Callable[[], None] | None) -> dict[int, int]:
        """Writes the entries; returns partition -> position after them."""
        producer = self._producer or self._new_producer()
        failures: list[str] = []
        ends: dict[int, int] = {}
        written = 0

        def delivered(error: KafkaError | None, message: Any) -> None:
            nonlocal written
            if error is not None:
                failures.append(error.str())
                return
            ends[message.partition()] = max(ends.get(message.partition(), 0), message.offset() + 1)
            written += 1
            if on_written is not None:
                on_written()

        try:
            for entry in entries:
                # The partition of the device's readings; the topics have as many.
                place = partition_of(entry.device_id, len(facts.partitions))
                while True:
                    try:
                        producer.produce(
                            self._topic, encode(entry), entry.device_id.encode(), place, on_delivery=delivered
                        )
                        break
                    except BufferError:
                        producer.poll(0.1)
                producer.poll(0)
            producer.flush(PUT_TIMEOUT_S + 1)
        except KafkaException as error:
            failures.append(str(error))
        if written < len(entries):
            # A client that has given up on a message may have given up for good.
            self._producer = None
            raise DeliveryFailed(
                f"{len(entries) - written} of {len(entries)} device entries were not acknowledged by topic "
                f"{self._topic}: {failures[0] if failures else 'no answer'}",
                "check the topic with `smoke topics list` and the broker with `smoke status`, then try again",
            )
        self._producer = producer
        return ends

    def _new_producer(self) -> Any:
        return Producer(
            {
                "bootstrap.servers": self._brokers,
                "client.id": "smoke-devices",
                "acks": "all",
                "enable.idempotence": True,
                "message.timeout.ms": round(PUT_TIMEOUT_S * 1000),
                "compression.type": "lz4",
                "linger.ms": 5,
                "reconnect.backoff.max.ms": 500,
                "allow.auto.create.topics": False,
                "log_level": 2,
            }
        )

    # -- reading, on a thread of its own ------------------------------------------------------------------
    def _follow(self) -> None:
        said = ""
        while not self._stop.is_set():
            try:
                self._read()
            except SmokeError as fault:
                self._note(fault)
                if fault.message != said:
                    log.warning("the device registry is not current: %s", fault.message)
                    said = fault.message
            self._stop.wait(RETRY_S)

    def _note(self, fault: SmokeError | None) -> None:
        with self._moved:
            self._fault = fault

    def _read(self) -> None:
        """Reads the topic from its start and follows it until it is another one.

        Raises:
            SmokeError: when the broker does not answer, or the topic is missing or lost what was to be read next.
        """
        facts = self._watcher.facts()
        if facts is None:
            raise TopicMissing(f"there is no topic {self._topic}", "run `smoke topics create`")
        watermarks = self._watcher.watermarks(facts.partitions)
        reached = {number: low for number, (low, _) in watermarks.items()}
        roll = Roll.empty()
        fresh = True
        looked = time.monotonic()
        with BulkConsumer(self._brokers, self._topic, reached, MODEST_FETCH_SETTINGS) as consumer:
            while not self._stop.is_set():
                behind = any(reached[number] < high for number, (_, high) in watermarks.items())
                if fresh and not behind:
                    # Only as a whole: what was known of a topic that is gone holds until then.
                    self._publish(facts, reached, roll)
                    fresh = False
                batch = consumer.take(POLL_S)
                self._take(batch, roll)
                before, reached = reached, advanced(reached, after(batch.partitions, batch.offsets, batch.ends))
                fresh = fresh or reached != before
                if time.monotonic() - looked >= LOOK_EVERY_S:
                    looked = time.monotonic()
                    if self._is_another(facts):
                        return

    def _take(self, batch: MessageBatch, roll: Roll) -> None:
        for row, value in enumerate(batch.values):
            try:
                roll.take(*decode_message(batch.key_of(row), value))
            except SmokeError as error:
                self._unreadable += 1
                log.warning(
                    "%s, partition %s, offset %s: %s",
                    self._topic,
                    batch.partitions[row],
                    batch.offsets[row],
                    error.message,
                )

    def _publish(self, facts: TopicFacts, reached: Mapping[int, int], roll: Roll) -> None:
        with self._moved:
            if roll.devices != self._devices:
                self._devices = MappingProxyType(dict(roll.devices))
                self._version += 1
            self._facts = facts
            self._reached = dict(reached)
            self._overlaid = dict(roll.overlaid)
            self._ready = True
            self._fault = None
            self._moved.notify_all()

    def _is_another(self, facts: TopicFacts) -> bool:
        try:
            found = self._watcher.facts(2.0)
        except KafkaUnreachable as fault:
            # It may be restarting; the consumer goes on by itself once it is back.
            self._note(fault)
            return False
        self._note(None)
        return found != facts
