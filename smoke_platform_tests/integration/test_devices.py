"""The device registry on a real broker: current, never overruled by a first reading, whole after a restart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from smoke_platform.adapters.device_registry import DeviceRegistry
from smoke_platform.adapters.kafka import ensure_topics, partition_of
from smoke_platform.cli.main import root
from smoke_platform.domain.devices import OPERATOR, Device, encode, first_seen
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings
from smoke_platform_tests.waiting import wait_for

pytestmark = pytest.mark.integration

PARTITIONS = 3
BY_HAND = Device(device_id="a", site="north", source=OPERATOR, updated_at=1.0)
BY_READING = first_seen("a", ["pm2_5"], 2.0)


def send(settings: Settings, topic: str, *messages: tuple[str, bytes | None]) -> None:
    """Writes (device id, value) messages as another program would."""
    producer = Producer({"bootstrap.servers": settings.brokers, "acks": "all"})
    for key, value in messages:
        producer.produce(topic, value, key.encode(), partition_of(key, PARTITIONS))
    assert producer.flush(30) == 0


def records(settings: Settings, topic: str) -> dict[int, list[tuple[bytes, bytes | None]]]:
    """Partition -> (key, value) of its records, in the order of the log."""
    consumer = Consumer({"bootstrap.servers": settings.brokers, "group.id": "test", "enable.partition.eof": True})
    found: dict[int, list[tuple[bytes, bytes | None]]] = {number: [] for number in range(PARTITIONS)}
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in found])
        ends = 0
        deadline = time.monotonic() + 30
        while ends < PARTITIONS:
            assert time.monotonic() < deadline
            for message in consumer.consume(1000, 0.2):
                if message.error() is not None:
                    ends += 1
                else:
                    found[message.partition()].append((message.key(), message.value()))
    finally:
        consumer.close()
    return found


@pytest.fixture
def settings(tmp_path: Path, broker: EmbeddedBroker, settings_for: Callable[..., Settings]) -> Settings:
    return settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers)


@pytest.fixture
def topic(make_topic: Callable[..., str]) -> str:
    return make_topic(partitions=PARTITIONS, cleanup_policy="compact", message_timestamp_type="LogAppendTime")


@pytest.fixture
def registry(settings: Settings, topic: str) -> Iterator[DeviceRegistry]:
    with DeviceRegistry(settings, topic=topic) as made:
        made.require_ready()
        yield made


def test_what_is_put_is_there_in_the_partition_of_the_readings(
    registry: DeviceRegistry, settings: Settings, topic: str
) -> None:
    """A detector that owns a device's readings must find its entry in the same partition, and find it at once."""
    entries = [Device(device_id=f"d{number}", site="s", source=OPERATOR) for number in range(500)]
    before = registry.version
    assert registry.put(entries) == 500
    assert registry.version > before
    assert registry.get("d7") == entries[7]
    assert registry.get("stranger") == Device(device_id="stranger")
    assert "stranger" not in registry.devices()
    for number, messages in records(settings, topic).items():
        assert {partition_of(key, PARTITIONS) for key, _ in messages} <= {number}
    with DeviceRegistry(settings, topic=topic) as another:
        another.require_ready()
        assert another.devices() == registry.devices() == {entry.device_id: entry for entry in entries}


def test_a_snapshot_does_not_change_and_the_version_says_when_to_look(
    registry: DeviceRegistry, settings: Settings, topic: str
) -> None:
    """The detector looks once a second; it must neither miss a change nor see one half."""
    snapshot, version = registry.devices(), registry.version
    send(settings, topic, ("a", encode(BY_HAND)))
    wait_for(lambda: registry.version > version)
    assert snapshot == {}
    assert registry.devices() == {"a": BY_HAND}
    version = registry.version
    send(settings, topic, ("a", None))
    wait_for(lambda: registry.version > version)
    assert registry.devices() == {}


def test_a_first_reading_never_overrules_an_entry(
    registry: DeviceRegistry, settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's site and interval must survive a detector that sees the device for the first time."""
    assert registry.put([BY_READING]) == 1
    take = registry._take

    def slowly(*arguments: Any) -> None:
        time.sleep(0.3)
        take(*arguments)

    # A reader that is behind: the operator's entry is in the topic and has not been read.
    monkeypatch.setattr(registry, "_take", slowly)
    send(settings, topic, ("c", encode(Device(device_id="c", source=OPERATOR))), ("a", encode(BY_HAND)))
    assert registry.put([BY_READING, first_seen("b", [], 3.0), first_seen("c", [], 3.0)]) == 1
    assert registry.get("a") == BY_HAND
    assert registry.get("b").source == "first_seen"


def test_an_entry_that_comes_between_look_and_write_is_written_again(
    registry: DeviceRegistry, settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The detector has looked, the operator enters the device, the detector writes: the operator's must stay."""
    write = registry._write
    between = [("a", encode(BY_HAND))]

    def too_late(*arguments: Any) -> dict[int, int]:
        while between:
            send(settings, topic, between.pop())
        return write(*arguments)

    monkeypatch.setattr(registry, "_write", too_late)
    assert registry.put([BY_READING]) == 1
    assert registry.get("a") == BY_HAND
    log = records(settings, topic)[partition_of("a", PARTITIONS)]
    assert [value for _, value in log] == [encode(BY_HAND), encode(BY_READING), encode(BY_HAND)]


def test_an_entry_that_was_overlaid_in_a_race_is_written_again(
    registry: DeviceRegistry, settings: Settings, topic: str
) -> None:
    """Compaction keeps a key's last record only: an operator's entry below a first reading's would vanish for good."""
    send(settings, topic, ("a", encode(BY_HAND)), ("a", encode(BY_READING)), ("z", encode(first_seen("z", [], 1.0))))
    wait_for(lambda: "z" in registry.devices())
    assert registry.get("a") == BY_HAND
    registry.put([BY_READING])
    last = records(settings, topic)[partition_of("a", PARTITIONS)]
    assert [value for key, value in last if key == b"a"][-1] == encode(BY_HAND)


def test_an_unreadable_entry_is_passed_over(registry: DeviceRegistry, settings: Settings, topic: str) -> None:
    """One bad message must not keep the entries behind it from being known."""
    other = encode(Device(device_id="b"))
    send(settings, topic, ("a", b"\xff{"), ("a", other), ("", other), ("a", encode(BY_HAND)))
    wait_for(lambda: registry.devices() == {"a": BY_HAND} and registry.unreadable == 3)


def test_a_topic_made_anew_is_read_anew(
    registry: DeviceRegistry, settings: Settings, topic: str, make_topic: Callable[..., str]
) -> None:
    """Devices of a topic that is gone must not stay for ever, and those of its successor must not be missed."""
    registry.put([BY_HAND])
    admin = AdminClient({"bootstrap.servers": settings.brokers})
    admin.delete_topics([topic])[topic].result(30)
    wait_for(lambda: topic not in admin.list_topics(timeout=10).topics)
    make_topic(partitions=PARTITIONS, name=topic, cleanup_policy="compact")
    new = Device(device_id="new", source=OPERATOR)
    send(settings, topic, ("new", encode(new)))
    wait_for(lambda: registry.devices() == {"new": new})


def test_a_missing_topic_is_named_and_waited_for(
    settings: Settings, make_topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person learns which command is missing; a detector that was there first goes on once the topic is made."""
    name = f"later-{time.monotonic_ns()}"
    with DeviceRegistry(settings, topic=name) as early:
        wait_for(lambda: early._fault is not None)
        with pytest.raises(SmokeError, match="smoke topics create"):
            early.require_ready(0.1)
        make_topic(partitions=PARTITIONS, name=name)
        assert early.wait_ready(30)
        assert early.put([BY_HAND]) == 1


def test_the_broker_dies_and_comes_back(
    tmp_path: Path, free_port: Callable[[], int], cache_dir: Path, settings_for: Callable[..., Settings]
) -> None:
    """A detector runs for months; its view of the devices must outlive every restart of the broker."""
    own = EmbeddedBroker(tmp_path / "broker", free_port(), free_port(), cache_dir)
    own.prepare()
    own.start()
    settings = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=own.bootstrap_servers)
    try:
        ensure_topics(settings)
        with DeviceRegistry(settings) as registry:
            registry.put([BY_HAND])
            own.kill()
            done: list[Any] = []
            waiting = threading.Thread(
                target=lambda: done.append(registry.put([Device(device_id="b", source=OPERATOR)])), daemon=True
            )
            own.start()
            waiting.start()
            waiting.join(60)
            assert done == [1]
            assert set(registry.devices()) == {"a", "b"}
            _commands_round_trip(settings, tmp_path)
    finally:
        own.stop()


def _commands_round_trip(settings: Settings, folder: Path) -> None:
    def smoke(*words: str, fine: bool = True) -> Any:
        answer = CliRunner().invoke(root, ["devices", *words], env=settings.environment())
        assert (answer.exit_code == 0) == fine, (answer.output, answer.exception)
        return answer

    smoke("set", "c", "--site", "south", "--interval", "2.5", "--sensors", "CO[ppm],pm2_5", "--out-of-service")
    shown = json.loads(smoke("show", "c", "--json").stdout)
    assert shown.pop("updated_at") > 1e9
    assert shown == {
        "device_id": "c",
        "site": "south",
        "room": "",
        "type": "",
        "interval_s": 2.5,
        "sensors": ["pm2_5", "co_ppm"],
        "in_service": False,
        "source": "operator",
    }
    smoke("set", "c", "--room", "attic")
    assert json.loads(smoke("show", "c", "--json").stdout)["site"] == "south"

    listed = smoke("list", "--csv").stdout
    file = folder / "devices.csv"
    file.write_text(listed)
    assert json.loads(smoke("import", str(file), "--json").stdout) == {"imported": 3, "new": 0}
    assert smoke("list", "--csv").stdout == listed
    assert [one["device_id"] for one in json.loads(smoke("list", "--site", "south", "--json").stdout)] == ["c"]
    assert "attic" in smoke("list").stdout
    assert {one["source"] for one in json.loads(smoke("list", "--json").stdout)} == {"import"}

    file.write_text("device_id,interval_s\nx,1\nc,soon\n")
    assert "line 3, interval_s: 'soon' is no number" in str(smoke("import", str(file), fine=False).exception)
    assert "there is no device 'x'" in str(smoke("show", "x", fine=False).exception)
