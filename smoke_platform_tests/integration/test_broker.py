"""The embedded broker with a real process: what a power failure, a taken port and a changed jar do to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from smoke_platform.local.broker import EmbeddedBroker

pytestmark = pytest.mark.integration


@pytest.fixture
def own_broker(tmp_path: Path, free_port: Callable[[], int], cache_dir: Path) -> Iterator[EmbeddedBroker]:
    """A broker that a test may kill."""
    broker = EmbeddedBroker(tmp_path / "kafka", free_port(), free_port(), cache_dir)
    yield broker
    broker.stop()


def produce(broker: EmbeddedBroker, topic: str, values: list[bytes]) -> set[tuple[int, int, bytes]]:
    """Sends the values and gives (partition, offset, value) of those that the broker acknowledged."""
    acknowledged: set[tuple[int, int, bytes]] = set()
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "acks": "all", "log_level": 0})
    for value in values:
        producer.produce(
            topic,
            value,
            on_delivery=lambda error, message: (
                acknowledged.add((message.partition(), message.offset(), message.value())) if error is None else None
            ),
        )
    assert producer.flush(30) == 0
    return acknowledged


def consume(broker: EmbeddedBroker, topic: str, partitions: int) -> set[tuple[int, int, bytes]]:
    """Everything that the topic holds."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": "reader",
            "log_level": 0,
            "enable.auto.commit": False,
        }
    )
    try:
        ends = {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=20)[1]
            for number in range(partitions)
        }
        consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        found: set[tuple[int, int, bytes]] = set()
        deadline = time.monotonic() + 30
        while len(found) < sum(ends.values()) and time.monotonic() < deadline:
            for message in consumer.consume(10_000, 0.2):
                assert message.error() is None
                found.add((message.partition(), message.offset(), message.value()))
        return found
    finally:
        consumer.close()


def test_killed_broker_keeps_every_acknowledged_message(own_broker: EmbeddedBroker) -> None:
    """Without it a power failure would lose readings that devices were told are safe."""
    own_broker.start()
    admin = AdminClient({"bootstrap.servers": own_broker.bootstrap_servers, "log_level": 0})
    admin.create_topics([NewTopic("kept", 3, 1)])["kept"].result(30)
    acknowledged: set[tuple[int, int, bytes]] = set()
    for round_number in range(3):
        acknowledged |= produce(own_broker, "kept", [b"%d-%d" % (round_number, n) for n in range(5_000)])
        own_broker.kill()
        own_broker.start()
    assert len(acknowledged) == 15_000
    assert consume(own_broker, "kept", 3) == acknowledged
