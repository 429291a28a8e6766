"""Topics and producers against a real broker: made once, compared, never changed in silence, counted truly."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from smoke_platform.adapters.kafka import (
    AcknowledgedOffsets,
    BrokerUnreachable,
    BulkReadingProducer,
    Cluster,
    DeliveryFailed,
    ReadingProducer,
    TopicMissing,
    ensure_topics,
    partition_of,
    specs_for,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.topics import DEAD_LETTER_REQUEST_BYTES, READING_MAX_BYTES, TopicSpec, topic_specs
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings

pytestmark = pytest.mark.integration
Producer = type[ReadingProducer] | type[BulkReadingProducer]
both_clients = pytest.mark.parametrize("client", [ReadingProducer, BulkReadingProducer])


@pytest.fixture
def settings(tmp_path: Path, broker: EmbeddedBroker, settings_for: Callable[..., Settings]) -> Settings:
    """Settings whose readings topic is new, so that tests do not see one another's messages."""
    return settings_for(
        tmp_path,
        KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers,
        KAFKA_TOPIC_SMOKE=f"readings-{uuid.uuid4().hex[:8]}",
        SMOKE_KAFKA_PARTITIONS=3,
    )


@pytest.fixture(scope="module")
def cluster(broker: EmbeddedBroker) -> Iterator[Cluster]:
    # Some tests keep the broker busy on purpose.
    with Cluster(broker.bootstrap_servers, timeout_s=120.0) as connection:
        yield connection


@pytest.fixture
def no_platform_topics(cluster: Cluster) -> Iterator[None]:
    """The topics with fixed names are removed before and after, since all tests share a broker."""
    names = [spec.name for spec in topic_specs()]
    cluster.delete(names)
    yield
    cluster.delete(names)


def read_all(broker: EmbeddedBroker, cluster: Cluster, topic: str) -> dict[tuple[int, int], Any]:
    """Every message of a topic by its (partition, offset)."""
    marks = cluster.watermarks(topic)
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": uuid.uuid4().hex})
    consumer.assign([TopicPartition(topic, partition, low) for partition, (low, _) in marks.items()])
    wanted = sum(high - low for low, high in marks.values())
    found: dict[tuple[int, int], Any] = {}
    try:
        deadline = time.monotonic() + 30
        while len(found) < wanted:
            assert time.monotonic() < deadline, f"{len(found)} of {wanted} messages after 30 s"
            messages = consumer.consume(1000, timeout=0.2)
            found.update({(message.partition(), message.offset()): message for message in messages})
    finally:
        consumer.close()
    return found


@pytest.mark.usefixtures("no_platform_topics")
def test_topics_are_made_once_with_their_configuration(settings: Settings, cluster: Cluster) -> None:
    """Retention by event time would delete a replay of old readings; a second start must change nothing."""
    first = ensure_topics(settings)
    assert set(first.created) == {spec.name for spec in specs_for(settings)}
    states = cluster.describe(first.created)
    for spec in specs_for(settings):
        state = states[spec.name]
        assert state.partitions == 3
        assert {key: state.config[key] for key in spec.config} == dict(spec.config)
        assert state.config["message.timestamp.type"] == "LogAppendTime"
    again = ensure_topics(settings)
    assert (again.created, again.altered, again.problems) == ([], [], [])
    assert cluster.describe(first.created) == states


@pytest.mark.usefixtures("no_platform_topics")
def test_an_unfit_topic_is_reported_and_left_alone(settings: Settings, cluster: Cluster) -> None:
    """Silently added partitions would move a device's readings; a silently changed timestamp type deletes data."""
    cluster.create([TopicSpec(settings.topic_readings, 1, 1, {"message.timestamp.type": "CreateTime"})])
    before = cluster.describe([settings.topic_readings])
    with pytest.raises(SmokeError) as raised:
        ensure_topics(settings)
    text = str(raised.value)
    assert "has 1 partitions" in text
    assert "SMOKE_KAFKA_PARTITIONS=1" in text
    assert "message.timestamp.type is CreateTime" in text
    assert "smoke topics create --alter" in text
    assert cluster.describe([settings.topic_readings]) == before


@pytest.mark.usefixtures("no_platform_topics")
def test_alter_mends_the_configuration_when_asked(settings: Settings, cluster: Cluster) -> None:
    """The remedy that the message names has to work."""
    wrong = {"message.timestamp.type": "CreateTime", "segment.ms": "3600000"}
    cluster.create([TopicSpec(settings.topic_readings, 3, 1, wrong)])
    report = ensure_topics(settings, alter=True)
    assert report.altered == [settings.topic_readings]
    config = cluster.describe([settings.topic_readings])[settings.topic_readings].config
    assert config["message.timestamp.type"] == "LogAppendTime"
    assert config["segment.ms"] == "3600000", "what the platform has no opinion on stays"


def test_topic_and_cluster_ids_are_those_that_other_clients_see(
    broker: EmbeddedBroker, cluster: Cluster, make_topic: Callable[..., str]
) -> None:
    """Landing stores them with each row; two spellings of one id would read as two topics."""
    from smoke_platform.adapters.kafka_bulk import TopicWatcher

    # Ids are random, and the characters that clients spell differently occur in one of two.
    for _ in range(5):
        topic = make_topic(partitions=2)
        facts = TopicWatcher(broker.bootstrap_servers, topic).facts()
        assert facts is not None
        assert cluster.topic_id(topic) == facts.topic_id
        assert cluster.cluster_id() == facts.cluster_id
    cluster.delete([topic])
    with pytest.raises(SmokeError, match="smoke topics create"):
        cluster.topic_id(topic)


def test_a_deleted_topic_is_gone_when_the_call_returns(cluster: Cluster, make_topic: Callable[..., str]) -> None:
    """Who makes a topic anew right after would be told that it is there, and write into one that vanishes."""
    topic = make_topic(partitions=2)
    busy = TopicSpec(f"busy-{uuid.uuid4().hex[:8]}", 300, 1, {})
    try:
        # Not waited for: while the broker makes its files, it hears of nothing else.
        assert cluster._create_one(busy)
        cluster.delete([topic])
        with pytest.raises(TopicMissing, match="smoke topics create"):
            cluster.topic_id(topic)
    finally:
        cluster.delete([busy.name])


def test_an_altered_topic_is_as_asked_when_the_call_returns(cluster: Cluster, make_topic: Callable[..., str]) -> None:
    """`smoke topics create --alter` would say that what it has just changed is not as the platform needs it."""
    topic = make_topic(partitions=2)
    busy = TopicSpec(f"busy-{uuid.uuid4().hex[:8]}", 300, 1, {})
    try:
        assert cluster._create_one(busy)
        cluster.alter(topic, {"retention.ms": "1234567"})
        assert cluster.describe([topic])[topic].config["retention.ms"] == "1234567"
    finally:
        cluster.delete([busy.name])


def test_an_unreachable_broker_is_named_in_bounded_time(free_port: Callable[[], int]) -> None:
    """A command that hangs, or dies with a stack trace, tells nobody which setting is wrong."""
    with pytest.raises(BrokerUnreachable, match="KAFKA_BOOTSTRAP_SERVERS"):
        Cluster(f"127.0.0.1:{free_port()}", timeout_s=0.5)
    with pytest.raises(BrokerUnreachable, match="KAFKA_BOOTSTRAP_SERVERS"):
        ReadingProducer(f"127.0.0.1:{free_port()}", "any", connect_timeout_s=0.5)


@both_clients
def test_acknowledged_is_what_the_broker_holds(
    client: Producer, broker: EmbeddedBroker, cluster: Cluster, make_topic: Callable[..., str]
) -> None:
    """`verify` compares these sets; one message more or less in the count hides a loss."""
    topic = make_topic(partitions=3)
    acknowledged = AcknowledgedOffsets()
    producer = client(broker.bootstrap_servers, topic, on_acknowledged=acknowledged.add, max_in_flight=500)
    for number in range(3000):
        producer.send(f"device-{number % 40}", str(number).encode())
    producer.flush(30)
    producer.close()
    counts = producer.counts
    assert (counts.sent, counts.acknowledged, counts.failed, counts.in_flight) == (3000, 3000, 0, 0)
    found = read_all(broker, cluster, topic)
    assert set(acknowledged.pairs()) == set(found)
    assert acknowledged.count == acknowledged.distinct == 3000
    assert sorted(int(message.value()) for message in found.values()) == list(range(3000))


def test_both_clients_put_a_device_into_the_same_partition(
    broker: EmbeddedBroker, cluster: Cluster, make_topic: Callable[..., str]
) -> None:
    """Order per device, and the detector's state per partition, rest on it."""
    keys = [f"sim-{number:04d}" for number in range(150)] + ["csv-recording-1", "höhle-7", "x" * 128, "a"]
    where: list[dict[bytes, int]] = []
    for client in (ReadingProducer, BulkReadingProducer):
        topic = make_topic(partitions=7)
        producer = client(broker.bootstrap_servers, topic)
        for key in keys:
            producer.send(key, b"{}")
        producer.flush(30)
        producer.close()
        where.append({message.key(): place[0] for place, message in read_all(broker, cluster, topic).items()})
    assert where[0] == where[1] == {key.encode(): partition_of(key, 7) for key in keys}


@both_clients
def test_a_refused_message_is_counted_and_explained(
    client: Producer, broker: EmbeddedBroker, make_topic: Callable[..., str]
) -> None:
    """One oversized message must neither vanish nor take the others with it."""
    topic = make_topic(max_message_bytes=5_000)
    acknowledged = AcknowledgedOffsets()
    producer = client(
        broker.bootstrap_servers, topic, on_acknowledged=acknowledged.add, linger_ms=0, max_request_bytes=10_000_000
    )
    producer.send("a", b"small")
    producer.flush(30)
    producer.send("a", os.urandom(20_000))
    producer.flush(30)
    producer.send("a", b"small again")
    producer.flush(30)
    producer.close()
    assert (producer.counts.acknowledged, producer.counts.failed) == (2, 1)
    (text,) = producer.failures
    assert f"topic {topic}, partition 0" in text
    assert "max.message.bytes" in text
    with pytest.raises(DeliveryFailed, match="1 of 3"):
        producer.raise_failures()


@both_clients
def test_a_missing_topic_is_named(client: Producer, broker: EmbeddedBroker) -> None:
    """A topic made by accident has one partition and the wrong timestamps."""
    with pytest.raises(SmokeError, match="smoke topics create"):
        client(broker.bootstrap_servers, "no-such-topic")


@pytest.mark.usefixtures("no_platform_topics")
def test_the_largest_reading_fits_into_a_dead_letter(settings: Settings, broker: EmbeddedBroker) -> None:
    """A message that cannot be dead-lettered would stop landing for ever."""
    ensure_topics(settings)
    body = os.urandom(READING_MAX_BYTES - 200)
    readings = ReadingProducer(broker.bootstrap_servers, settings.topic_readings)
    readings.send("a", body)
    readings.flush(30)
    readings.close()
    assert readings.counts.acknowledged == 1
    letters = ReadingProducer(
        broker.bootstrap_servers, settings.topic_dead_letters, max_request_bytes=DEAD_LETTER_REQUEST_BYTES
    )
    letters.send("a", body, partition=2, headers=[("reason", b"not_json"), ("detail", b"x" * 4000)])
    letters.flush(30)
    letters.close()
    assert letters.counts.acknowledged == 1, letters.failures
