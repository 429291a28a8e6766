"""The bare echo beside the detector: one message in a hundred answered, and no work.

With the detector's own clients and settings: what the detector takes beyond this is its own; what this takes is the
broker's, the clients' and the machine's. Or with kafka-python alone, which is what the detector's clients are up
against.

Started as ``python -m benchmarks.alarms_echo SPEC.json``; ends on SIGTERM.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from benchmarks.alarms_spec import ChildSpec
from smoke_platform.adapters.kafka_live import LiveConsumer
from smoke_platform.domain.alarms import AlarmRecord, Event, Kind, State, encode
from smoke_platform.streaming.detector import POLL_MESSAGES, SWITCH_S, TICK_S
from smoke_platform.streaming.detector_output import FAREWELL_S, alarm_producer

#: One message of so many is answered.
ANSWERED = 100

Note = Callable[[int, int], None]


def echo(spec: ChildSpec) -> None:
    """Consumes, answers, and notes when each answer was acknowledged, until it is told to end."""
    sys.setswitchinterval(SWITCH_S)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    with Path(spec.trace).open("w", encoding="ascii") as trace:

        def note(partition: int, offset: int) -> None:
            trace.write(f"{partition} {offset} {time.time_ns()}\n")

        (_by_kafka_python if spec.plain else _by_the_same)(spec, stopping, note)


def _by_the_same(spec: ChildSpec, stopping: list[int], note: Note) -> None:
    """With the detector's own clients."""
    #: Of each partition the readings whose answers are under way, in order.
    pending: dict[int, deque[int]] = {number: deque() for number in range(spec.partitions)}
    producer = alarm_producer(spec.brokers, lambda partition, _offset: note(partition, pending[partition].popleft()))
    with LiveConsumer(spec.brokers, "echo") as consumer:
        consumer.assign({(spec.topic, number): 0 for number in range(spec.partitions)})
        _begin(spec)
        while not stopping:
            for message in consumer.take(TICK_S, POLL_MESSAGES):
                partition, offset = message.partition(), message.offset()
                message.value()
                message.timestamp()
                if offset % ANSWERED == 0:
                    pending[partition].append(offset)
                    producer.send(message.key(), _answer(partition, offset), partition=partition)
        producer.close(FAREWELL_S)


def _by_kafka_python(spec: ChildSpec, stopping: list[int], note: Note) -> None:
    """With kafka-python alone: the fetch gathers for a millisecond, which gave it the lowest latency."""
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition

    producer = KafkaProducer(
        bootstrap_servers=spec.brokers,
        acks="all",
        enable_idempotence=True,
        compression_type="lz4",
        linger_ms=0,
        metrics_enabled=False,
    )
    consumer = KafkaConsumer(
        bootstrap_servers=spec.brokers,
        enable_auto_commit=False,
        max_poll_records=POLL_MESSAGES,
        fetch_min_bytes=65_536,
        fetch_max_wait_ms=1,
        metrics_enabled=False,
    )
    places = [TopicPartition(spec.topic, number) for number in range(spec.partitions)]
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    _begin(spec)
    while not stopping:
        for place, messages in consumer.poll(round(TICK_S * 1000)).items():
            for message in messages:
                if message.offset % ANSWERED == 0:
                    value = _answer(place.partition, message.offset)
                    sent = producer.send(spec.alarms, value, message.key, partition=place.partition)
                    sent.add_callback(lambda sent, offset=message.offset: note(sent.partition, offset))
    producer.flush(10)
    producer.close(5)
    consumer.close(autocommit=False)


def _begin(spec: ChildSpec) -> None:
    Path(spec.ready).touch()
    gc.collect()
    gc.freeze()


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
