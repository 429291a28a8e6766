"""The bare echo beside the detector: the same client and settings, one message in a hundred answered, and no work.

What the detector takes beyond this is its own; what this takes is the broker's, the client's and the machine's.
Started as ``python -m benchmarks.alarms_echo SPEC.json``; ends on SIGTERM.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.alarms_spec import ChildSpec
from smoke_platform.domain.alarms import AlarmRecord, Event, Kind, State, encode
from smoke_platform.streaming.detector import BUSY_FROM, CONSUMER_SETTINGS, FETCH_BUSY, FETCH_CALM, REJOIN_S

#: As the detector sets up the producer of its alarms.
PRODUCER: dict[str, Any] = {
    "acks": "all",
    "enable_idempotence": True,
    "compression_type": "lz4",
    "linger_ms": 0,
    "metrics_enabled": False,
}
POLL_MS = 50
SWITCH_S = 0.0005
#: One message of so many is answered.
ANSWERED = 100


def echo(spec: ChildSpec) -> None:
    """Consumes, answers, and notes when each answer was acknowledged, until it is told to end."""
    from kafka import KafkaConsumer, KafkaProducer

    sys.setswitchinterval(SWITCH_S)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    producer = KafkaProducer(bootstrap_servers=spec.brokers, **PRODUCER)
    fetch = FETCH_BUSY if spec.rate >= BUSY_FROM else FETCH_CALM
    consumer = KafkaConsumer(
        bootstrap_servers=spec.brokers, group_id=spec.group, group_instance_id="echo", **{**CONSUMER_SETTINGS, **fetch}
    )
    consumer.subscribe([spec.topic])
    rejoin_at = time.monotonic() + REJOIN_S
    while not consumer.assignment() and not stopping:
        consumer.poll(POLL_MS)
        if time.monotonic() > rejoin_at:
            # As the detector does: a group that was formed while its topic was being made may stay without partitions.
            consumer.unsubscribe()
            consumer.subscribe([spec.topic])
            rejoin_at = time.monotonic() + REJOIN_S
    Path(spec.ready).touch()
    gc.collect()
    gc.freeze()
    with Path(spec.trace).open("w", encoding="ascii") as trace:

        def note(partition: int, offset: int) -> Any:
            def acknowledged(_metadata: Any) -> None:
                trace.write(f"{partition} {offset} {time.time_ns()}\n")

            return acknowledged

        while not stopping:
            for place, messages in consumer.poll(POLL_MS).items():
                for message in messages:
                    if message.offset % ANSWERED == 0:
                        value = _answer(place.partition, message.offset)
                        sent = producer.send(spec.alarms, value, message.key, partition=place.partition)
                        sent.add_callback(note(place.partition, message.offset))
        producer.flush(10)
        producer.close(5)
    consumer.close(autocommit=False)


def _answer(partition: int, offset: int) -> bytes:
    """A record as long as an alarm's."""
    return encode(
        AlarmRecord(
            device_id="echo",
            kind=Kind.FIRE,
            alarm_id="0" * 20,
            event=Event.RAISED,
            state=State.ACTIVE,
            severity="critical",
            revision=1,
            topic_id="0" * 22,
            partition=partition,
            cause=offset,
            position=offset,
            at=1.0,
            reason="x" * 450,
        )
    )


if __name__ == "__main__":
    echo(ChildSpec.read(Path(sys.argv[1])))
