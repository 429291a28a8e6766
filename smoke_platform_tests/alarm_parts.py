"""What the tests of seeing and handling alarms share: records written by hand, and somebody who obeys commands.

The one who obeys is as much of the detector as a command needs: it reads commands from their topic, takes the alarm
through its real state machine and writes the records.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from smoke_platform.adapters.kafka import ensure_topics, partition_of
from smoke_platform.domain.alarm_machine import POLICIES, Alarm, Subject, obey, restore
from smoke_platform.domain.alarms import (
    AlarmCommand,
    AlarmRecord,
    Event,
    Evidence,
    Kind,
    State,
    alarm_id,
    alarm_key,
    decode_command,
    encode,
)
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.topics import ALARM_COMMANDS, ALARMS
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.serving import alarms as serving_alarms
from smoke_platform.settings import Settings
from smoke_platform_tests.conftest import CACHE_DIR

TOPIC_ID = "Zt3"
PARTITIONS = 6


def until(condition: Callable[[], Any], seconds: float = 90.0) -> None:
    """Waits until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def patient_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """For modules that import it: the API waits for a slow answer, since how fast a busy machine is proves nothing."""
    monkeypatch.setattr(serving_alarms, "ANSWER_S", 60.0)
    monkeypatch.setattr(serving_alarms, "HEALTH_TIMEOUT_S", 30.0)


def record(device_id: str = "kitchen-1", kind: Kind = Kind.FIRE, **fields: Any) -> AlarmRecord:
    """A raised fire alarm, but for what ``fields`` say otherwise."""
    place = MessageId(TOPIC_ID, partition_of(device_id, PARTITIONS), fields.get("cause", 17))
    at = fields.get("at", time.time())
    values: dict[str, Any] = {
        "device_id": device_id,
        "kind": kind,
        "alarm_id": alarm_id(device_id, kind, place),
        "event": Event.RAISED,
        "state": State.ACTIVE,
        "severity": "high",
        "peak": fields.get("severity", "high"),
        "revision": 1,
        "topic_id": TOPIC_ID,
        "partition": place.partition,
        "cause": place.offset,
        "position": place.offset,
        "at": at,
        "raised_at": at,
        "evidence": Evidence(rules=("heat",), first_offset=15, last_offset=17, values={"temperature_c": 61.5}),
    }
    return AlarmRecord(**(values | fields))


def later(before: AlarmRecord, event: Event, **fields: Any) -> AlarmRecord:
    """The next record of the same alarm."""
    changes = {"event": event, "revision": before.revision + 1, "position": before.position + 1, "at": before.at + 1}
    return msgspec.structs.replace(before, **{**changes, "by": "", "reason": "", "command_id": "", **fields})


def write(settings: Settings, *records: AlarmRecord, topic: str = ALARMS) -> None:
    """Writes the records as the detector would, and returns when the broker has them."""
    producer = Producer({"bootstrap.servers": settings.brokers, "acks": "all", "linger.ms": 5})
    for each in records:
        producer.produce(topic, encode(each), alarm_key(each.device_id, each.kind), each.partition)
    assert producer.flush(60) == 0


class Obeying:
    """Answers every command on a thread of its own; ``commands`` are those it has seen, with their partitions."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._ready = threading.Event()
        self.commands: list[tuple[int, AlarmCommand]] = []
        self.held: dict[tuple[str, Kind], Alarm] = {}
        self._thread = threading.Thread(target=self._run)

    def knows(self, *records: AlarmRecord) -> None:
        """These alarms stand."""
        self.held |= {(each.device_id, each.kind): restore(each) for each in records}

    def _run(self) -> None:
        consumer = Consumer({"bootstrap.servers": self._settings.brokers, "group.id": "obeying"})
        try:
            marks = {number: consumer.get_watermark_offsets(TopicPartition(ALARM_COMMANDS, number), timeout=30)[1]
                     for number in range(PARTITIONS)}  # fmt: skip
            consumer.assign([TopicPartition(ALARM_COMMANDS, number, end) for number, end in marks.items()])
            self._ready.set()
            while not self._stop.is_set():
                for message in consumer.consume(500, 0.05):
                    assert message.error() is None, message.error()
                    self._obey(message.partition(), message.offset(), decode_command(message.value()))
        finally:
            consumer.close()

    def _obey(self, partition: int, offset: int, command: AlarmCommand) -> None:
        self.commands.append((partition, command))
        key = command.device_id, command.kind
        subject = Subject(*key, TOPIC_ID, partition)
        before = self.held.get(key, Alarm())
        position = max(0, before.position)
        self.held[key], records = obey(before, subject, command, offset, time.time(), position, POLICIES[command.kind])
        write(self._settings, *records)

    def __enter__(self) -> Obeying:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_fault: object) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def private_broker(folder: Path, free_port: Callable[[], int]) -> Iterator[EmbeddedBroker]:
    """A broker of the test's own: the topics' names are fixed, and other tests use them too."""
    embedded = EmbeddedBroker(folder, free_port(), free_port(), CACHE_DIR)
    embedded.prepare()
    embedded.start()
    try:
        yield embedded
    finally:
        embedded.stop()


def make_topics(settings: Settings) -> None:
    ensure_topics(settings, timeout_s=60.0)
