"""What the tests of seeing and handling alarms share: records written by hand, and somebody who obeys commands.

The one who obeys stands in for the detector: it reads real commands from a real topic and writes real records, by the
simplest rules there are, so that these tests hold however the detector judges.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

from smoke_platform.adapters.kafka import ensure_topics, partition_of
from smoke_platform.domain.alarms import (
    AlarmCommand,
    AlarmRecord,
    Event,
    Evidence,
    Kind,
    State,
    Verb,
    alarm_id,
    alarm_key,
    decode_command,
    encode,
)
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.topics import ALARM_COMMANDS, ALARMS
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings
from smoke_platform_tests.conftest import CACHE_DIR

TOPIC_ID = "Zt3"
PARTITIONS = 6

#: What a command leads to: event and state after it.
_EFFECTS: dict[Verb, tuple[Event, State | None]] = {
    Verb.ACKNOWLEDGE: (Event.ACKNOWLEDGED, State.ACKNOWLEDGED),
    Verb.RESET: (Event.RESET, State.NORMAL),
    Verb.SNOOZE: (Event.SNOOZED, State.SNOOZED),
    Verb.WAKE: (Event.WOKEN, State.ACTIVE),
    Verb.SHELVE: (Event.SHELVED, State.SHELVED),
    Verb.UNSHELVE: (Event.UNSHELVED, State.NORMAL),
    Verb.DISABLE: (Event.DISABLED, State.DISABLED),
    Verb.ENABLE: (Event.ENABLED, State.NORMAL),
    Verb.VERDICT: (Event.VERDICT, None),
    Verb.COMMENT: (Event.COMMENTED, None),
}


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Waits until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


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


def obeyed(command: AlarmCommand, held: AlarmRecord | None) -> AlarmRecord:
    """The record to which a command leads: refused where there is no alarm, or another one than was meant."""
    before = held or record(
        command.device_id, command.kind, alarm_id="", state=State.NORMAL, severity="low", revision=0
    )
    facts: dict[str, Any] = {"by": command.by, "reason": command.reason, "command_id": command.command_id}
    meant = command.verb in (Verb.SHELVE, Verb.DISABLE) or (
        before.state is not State.NORMAL and command.alarm_id in ("", before.alarm_id)
    )
    if not meant:
        return later(before, Event.REFUSED, **facts)
    event, state = _EFFECTS[command.verb]
    return later(
        before,
        event,
        **facts,
        state=state or before.state,
        until=command.until,
        verdict=command.verdict or before.verdict,
        acknowledged=before.acknowledged or command.verb is Verb.ACKNOWLEDGE,
    )


class Obeying:
    """Answers every command on a thread of its own; ``commands`` are those it has seen, with their partitions."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._ready = threading.Event()
        self.commands: list[tuple[int, AlarmCommand]] = []
        self.held: dict[tuple[str, Kind], AlarmRecord] = {}
        self._thread = threading.Thread(target=self._run)

    def knows(self, *records: AlarmRecord) -> None:
        """These alarms stand."""
        self.held |= {(each.device_id, each.kind): each for each in records}

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
                    self._obey(message.partition(), decode_command(message.value()))
        finally:
            consumer.close()

    def _obey(self, partition: int, command: AlarmCommand) -> None:
        self.commands.append((partition, command))
        answer = obeyed(command, self.held.get((command.device_id, command.kind)))
        self.held[command.device_id, command.kind] = answer
        write(self._settings, answer)

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
    ensure_topics(settings)
