"""The detector's clients on a real broker: prompt fetching and acknowledging, the group, what a lost range does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from smoke_platform.adapters.detector_state import Checkpoint
from smoke_platform.adapters.kafka import BulkReadingProducer, ensure_topics
from smoke_platform.adapters.kafka_bulk import OffsetLost
from smoke_platform.adapters.kafka_live import LiveConsumer
from smoke_platform.domain.detection import CHUNK_DEVICES, Batch, Engine
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings
from smoke_platform.streaming import detector_group
from smoke_platform.streaming.detector_group import Membership
from smoke_platform.streaming.detector_metrics import DetectorMetrics
from smoke_platform.streaming.detector_output import Outputs
from smoke_platform.verification.scenes import Scenes

pytestmark = pytest.mark.integration

DEADLINE_S = 120.0


def send(broker: EmbeddedBroker, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
    for value in values:
        producer.produce(topic, value, b"d", partition=partition)
    assert producer.flush(DEADLINE_S) == 0


def taken(consumer: LiveConsumer, count: int) -> list[tuple[str, int, int, bytes]]:
    """(topic, partition, offset, value) of the next ``count`` messages."""
    found: list[tuple[str, int, int, bytes]] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count and time.monotonic() < deadline:
        found += [(m.topic(), m.partition(), m.offset(), m.value()) for m in consumer.take(0.1, 100)]
    return found


def wait_for(what: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


def test_messages_come_from_the_given_offsets_and_an_assignment_replaces_the_last_one(
    broker: EmbeddedBroker, make_topic: Callable[..., str]
) -> None:
    """After a rebalance a detector would judge readings of partitions that others hold, or skip some of its own."""
    topic, other = make_topic(2), make_topic(1)
    send(broker, topic, [b"a", b"b", b"c"])
    send(broker, topic, [b"x"], partition=1)
    send(broker, other, [b"o"])
    with LiveConsumer(broker.bootstrap_servers, "test") as consumer:
        consumer.assign({(topic, 0): 1, (other, 0): 0})
        assert sorted(taken(consumer, 3)) == sorted([(topic, 0, 1, b"b"), (topic, 0, 2, b"c"), (other, 0, 0, b"o")])
        consumer.assign({(topic, 1): 0})
        send(broker, topic, [b"d"])
        assert taken(consumer, 1) == [(topic, 1, 0, b"x")]
        assert consumer.take(0.3, 100) == []
        consumer.assign({})
        assert consumer.take(0.1, 100) == []


def test_a_lost_range_is_told_and_not_jumped_over(broker: EmbeddedBroker, make_topic: Callable[..., str]) -> None:
    """Readings deleted before they were judged would be skipped without a word, and the state be kept as whole."""
    topic = make_topic(1)
    send(broker, topic, [b"a", b"b", b"c"])
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for answer in admin.delete_records([TopicPartition(topic, 0, 2)]).values():
        answer.result(DEADLINE_S)
    with LiveConsumer(broker.bootstrap_servers, "test") as consumer:
        consumer.assign({(topic, 0): 0})
        with pytest.raises(OffsetLost, match=topic):
            taken(consumer, 1)


def test_reading_goes_on_by_itself_after_the_broker_was_killed(
    tmp_path: Path, free_port: Callable[[], int], cache_dir: Path
) -> None:
    """A detector that stays deaf after a restart of the broker raises no alarm and says nothing."""
    own = EmbeddedBroker(tmp_path / "broker", free_port(), free_port(), cache_dir)
    own.prepare()
    own.start()
    try:
        admin = AdminClient({"bootstrap.servers": own.bootstrap_servers})
        admin.create_topics([NewTopic("t", num_partitions=1, replication_factor=1)])["t"].result(DEADLINE_S)
        acknowledged: list[tuple[int, int]] = []
        producer = BulkReadingProducer(
            own.bootstrap_servers,
            "t",
            on_acknowledged=lambda partition, offset: acknowledged.append((partition, offset)),
            delivery_timeout_s=None,
            linger_ms=0,
            at_once=True,
        )
        with LiveConsumer(own.bootstrap_servers, "test") as consumer:
            consumer.assign({("t", 0): 0})
            producer.send("d", b"before", partition=0)
            assert [value for *_, value in taken(consumer, 1)] == [b"before"]
            own.kill()
            producer.send("d", b"while away", partition=0)
            own.start()
            assert [value for *_, value in taken(consumer, 1)] == [b"while away"]
            wait_for(lambda: len(acknowledged) == 2, "the record sent during the outage was not acknowledged")
        assert acknowledged == [(0, 0), (0, 1)]
        producer.close()
    finally:
        own.stop()


def test_an_acknowledgement_is_told_without_being_asked_for(
    broker: EmbeddedBroker, make_topic: Callable[..., str]
) -> None:
    """The detector saves no state before it knows that its alarms are durable, and it does not ask."""
    topic = make_topic(1)
    acknowledged = threading.Event()
    producer = BulkReadingProducer(
        broker.bootstrap_servers, topic, on_acknowledged=lambda *_place: acknowledged.set(), linger_ms=0, at_once=True
    )
    producer.send("d", b"alarm", partition=0)
    assert acknowledged.wait(DEADLINE_S)
    assert producer.counts.acknowledged == 1
    assert producer.counts.in_flight == 0
    producer.close()


class Member:
    """A member as the detector drives it, with what its group told it."""

    def __init__(self, broker: EmbeddedBroker, topics: list[str], name: str, group: str) -> None:
        self.flushed: list[float] = []
        self.stop = threading.Event()
        self.membership = Membership(broker.bootstrap_servers, group, name, topics, self.flushed.append, self.stop)
        self.held: dict[str, set[int]] = {}

    def follow(self) -> dict[str, set[int]]:
        """Takes in what has changed, as the loop does; returns what is held."""
        for change in self.membership.changes():
            self.held = change or {}
            self.membership.decided()
        return self.held


@pytest.fixture
def members(broker: EmbeddedBroker, make_topic: Callable[..., str]) -> Iterator[Callable[[str], Member]]:
    topics = [make_topic(4), make_topic(4)]
    made: list[Member] = []

    def make(name: str) -> Member:
        member = Member(broker, topics, name, f"group-{topics[0]}")
        made.append(member)
        member.membership.__enter__()
        return member

    yield make
    for member in made:
        member.membership.__exit__(None, None, None)


def test_nobody_judges_between_two_decisions_of_the_group(members: Callable[[str], Member]) -> None:
    """Two replicas that judge the same partition raise each alarm twice, and the slower one's records come too late."""
    first = members("first")
    wait_for(lambda: sorted(map(len, first.follow().values())) == [4, 4], "the only member did not get all")
    assert not first.membership.undecided
    second = members("second")
    wait_for(lambda: first.membership.undecided, "the member judges on while the group decides anew")
    wait_for(lambda: bool(first.flushed), "partitions were given up before their alarms were acknowledged")
    wait_for(lambda: sorted(map(len, first.follow().values())) == [2, 2], "the first member kept all")
    wait_for(lambda: sorted(map(len, second.follow().values())) == [2, 2], "the second member got nothing")
    for one, other in zip(first.held.values(), second.held.values(), strict=True):
        assert not one & other
    assert not first.membership.undecided


def test_a_client_that_the_group_disagrees_with_is_replaced(
    members: Callable[[str], Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that holds what others hold, too, raises alarms twice; one that holds nothing misses them."""
    monkeypatch.setattr(detector_group, "CHECK_S", 0.1)
    member = members("first")
    wait_for(lambda: sorted(map(len, member.follow().values())) == [4, 4], "the only member did not get all")
    membership, client = member.membership, member.membership._consumer
    held = {(topic, number) for topic, numbers in member.held.items() for number in numbers}
    wait_for(lambda: membership._given() == (True, held), "the group tells something else than the client")
    with monkeypatch.context() as patch:
        patch.setattr(detector_group, "DIFFERS_S", 0.5)
        patch.setattr(membership, "_given", lambda: (True, set()))
        wait_for(lambda: membership._consumer is not client, "the client was kept")
        assert membership.undecided
    member.held.clear()
    wait_for(lambda: sorted(map(len, member.follow().values())) == [4, 4], "the new client did not get all")
    assert not membership.undecided


def test_a_checkpoint_comes_back_as_it_was_committed(members: Callable[[str], Member]) -> None:
    """A restart would begin at another place than the one up to which the state was saved."""
    member = members("first")
    wait_for(lambda: sorted(map(len, member.follow().values())) == [4, 4], "the only member did not get all")
    membership = member.membership
    assert membership.committed(2) is None

    def kept() -> bool:
        try:
            membership.commit({2: (0, "a text")}, wait=True)
        except SmokeError:
            # A group whose topics were just made may decide once more.
            return False
        return True

    wait_for(kept, "the group never kept a checkpoint")
    assert membership.committed(2) == "a text"

    def kept_later() -> bool:
        membership.commit({2: (0, "a later one")})
        return membership.committed(2) == "a later one"

    wait_for(kept_later, "what was committed on its way never arrived")


def test_snapshots_become_whole_again_after_one_was_given_up(
    tmp_path: Path, broker: EmbeddedBroker, settings_for: Callable[..., Settings]
) -> None:
    """After a rebalance in the middle of a snapshot none would ever be whole, and each restart read ever more again."""
    settings = settings_for(
        tmp_path,
        KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers,
        KAFKA_TOPIC_SMOKE=f"test-{tmp_path.name}",
        SMOKE_SNAPSHOT_SECONDS=0.05,
    )
    ensure_topics(settings)
    engine, scenes, partitions = Engine("topic"), Scenes(1), [0, 1]
    devices = [f"d{number}" for number in range(2 * CHUNK_DEVICES)]
    for number in partitions:
        engine.add_partition(number)
        moment = datetime.now(UTC)
        values: list[bytes | None] = [scenes.message(name, moment, 0, burning=False) for name in devices]
        count = len(values)
        engine.take(Batch(values, [None] * count, [number] * count, list(range(count)), [0] * count), None)
    with Outputs(settings, DetectorMetrics(), None, threading.Event()) as out:
        for number in partitions:
            out.alarms.start_at(number, 0)
        out.begin_snapshots(partitions)
        commands = dict.fromkeys(partitions, 0)
        out.tick(time.monotonic(), engine, commands, everything=True)
        out.begin_snapshots(partitions)  # as a rebalance does, while what was written is still under way
        for _ in range(3):
            found: dict[int, Checkpoint] = {}
            deadline = time.monotonic() + DEADLINE_S
            while not found:
                assert time.monotonic() < deadline, "the snapshot never became whole"
                out.tick(time.monotonic(), engine, commands)
                found = out.whole_snapshot()
            assert sorted(found) == partitions
            assert all(place.position == len(devices) for place in found.values())
