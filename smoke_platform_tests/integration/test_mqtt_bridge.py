"""The MQTT bridge between Debian's mosquitto and a real Kafka broker: at least once, whoever dies."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from smoke_platform.adapters.kafka import ensure_topics, partition_of
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.mqtt import MqttRefused
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.topics import READING_MAX_BYTES
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import Landing
from smoke_platform.streaming.mqtt_bridge import Bridge
from smoke_platform_tests.waiting import wait_for

pytestmark = pytest.mark.integration

PARTITIONS = 3
SEED = int(os.environ.get("PROVE_SEED", "1"))
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
USER, SECRET = "bridge", "not the default"


class Mosquitto:
    """A broker of its own, with its sessions on disk."""

    def __init__(self, folder: Path, port: int, *extra: str) -> None:
        self.folder = folder
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        # The broker would give up its rights to a user that cannot write here.
        (folder / "mosquitto.conf").write_text(
            "\n".join(
                [
                    f"listener {port} 127.0.0.1",
                    "user root",
                    "persistence true",
                    f"persistence_location {folder}/",
                    "max_queued_messages 0",
                    "max_inflight_messages 0",
                    *extra,
                    "",
                ]
            )
        )

    def start(self) -> None:
        assert MOSQUITTO is not None
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self.folder / "mosquitto.conf")], stdout=log, stderr=subprocess.STDOUT
        )
        log.close()
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def mosquitto(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Mosquitto]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (Debian: apt-get install mosquitto)")
    started = Mosquitto(tmp_path / "mosquitto", free_port(), "allow_anonymous true")
    started.start()
    yield started
    started.stop()


class Publisher:
    """A device, or all of them: QoS 1, and knows what its broker has acknowledged."""

    def __init__(self, port: int) -> None:
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion

        self._client = Client(CallbackAPIVersion.VERSION2, "", protocol=MQTTv5)
        self._client.max_inflight_messages_set(200)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        wait_for(self._client.is_connected)
        self.wait([self._client.publish(topic, payload, qos, retain)])

    def publish_many(self, messages: list[tuple[str, bytes]]) -> None:
        wait_for(self._client.is_connected)
        self.wait([self._client.publish(topic, payload, 1) for topic, payload in messages])

    @staticmethod
    def wait(under_way: list[Any]) -> None:
        deadline = time.monotonic() + 120
        for info in under_way:
            info.wait_for_publish(max(0.1, deadline - time.monotonic()))
            assert info.is_published()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def publisher(mosquitto: Mosquitto) -> Iterator[Publisher]:
    opened = Publisher(mosquitto.port)
    yield opened
    opened.close()


@pytest.fixture
def platform(
    tmp_path: Path,
    broker: EmbeddedBroker,
    mosquitto: Mosquitto,
    make_topic: Callable[..., str],
    settings_for: Callable[..., Settings],
) -> Settings:
    settings = settings_for(
        tmp_path,
        KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers,
        KAFKA_TOPIC_SMOKE=make_topic(
            partitions=PARTITIONS, message_timestamp_type="LogAppendTime", max_message_bytes=READING_MAX_BYTES
        ),
        SMOKE_KAFKA_PARTITIONS=PARTITIONS,
        SMOKE_MQTT_URL=f"mqtt://127.0.0.1:{mosquitto.port}",
        SMOKE_MQTT_RECEIVE_MAXIMUM=50,
        SMOKE_BATCH_SECONDS=0.05,
    )
    make_topic(partitions=PARTITIONS, name=settings.topic_dead_letters, max_message_bytes=16 * 1024 * 1024)
    return settings


class Running:
    """A bridge in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        self.stop = threading.Event()
        self.bridge = Bridge(settings, self.stop)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.bridge.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def until(self, condition: Callable[[], bool]) -> None:
        wait_for(lambda: self.error is not None or condition())
        assert self.error is None, repr(self.error)

    def connected(self, times: int = 1) -> None:
        self.until(lambda: self.bridge.counts.connected and self.bridge.counts.connections >= times)


def in_kafka(settings: Settings) -> list[tuple[bytes | None, bytes | None, int]]:
    """(key, value, partition) of all messages in the readings' topic."""
    consumer = Consumer({"bootstrap.servers": settings.brokers, "group.id": "test", "enable.partition.eof": True})
    found = []
    try:
        topic = settings.topic_readings
        numbers = list(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
        ends = 0
        deadline = time.monotonic() + 120
        while ends < len(numbers):
            assert time.monotonic() < deadline
            for message in consumer.consume(1000, 0.2):
                if message.error() is not None:
                    ends += 1
                else:
                    found.append((message.key(), message.value(), message.partition()))
    finally:
        consumer.close()
    return found


def reading(number: int, **fields: Any) -> bytes:
    moment = datetime(2022, 6, 9, tzinfo=UTC) + timedelta(seconds=number)
    return json.dumps({"UTC": moment.timestamp(), "Raw H2": 1.0, "CNT": number, **fields}).encode()


def topic_of(number: int) -> str:
    return f"sensors/d{number % 7}/readings"


def sequences(settings: Settings) -> list[int]:
    return sorted(json.loads(value or b"{}").get("CNT", -1) for _, value, _ in in_kafka(settings))


def test_readings_of_mqtt_devices_land(platform: Settings, publisher: Publisher) -> None:
    """What devices really speak: the id in the topic, their own field names; and what is no reading is not lost."""
    with Running(platform) as running:
        running.connected()
        publisher.publish("sensors/hall-1/readings", reading(0, **{"PM2.5": 4.5}))
        publisher.publish("sensors/hall-1/readings", b"[" + reading(1) + b"," + reading(2) + b"]")
        publisher.publish("sensors/sim-1/readings", reading(3, source="simulator"))
        publisher.publish("sensors/hall-2/readings", reading(4, device_id="hall-1"))
        publisher.publish("sensors/hall-2/readings", b"\x00 no reading")
        publisher.publish("sensors/hall-2/readings", b"")
        publisher.publish("other/hall-2/readings", reading(5))
        running.until(lambda: running.bridge.counts.acknowledged == 6)
    for key, _, partition in in_kafka(platform):
        assert key is not None
        assert partition == partition_of(key, PARTITIONS)
    Landing(platform, "test", once=True).run()
    rows = Lake(platform.lake).scan(READINGS).sort("sequence").collect()
    assert rows.select("device_id", "source", "sequence", "pm2_5").rows() == [
        ("hall-1", "mqtt", 0, 4.5),
        ("hall-1", "mqtt", 1, None),
        ("hall-1", "mqtt", 2, None),
        ("sim-1", "simulator", 3, None),
    ]
    from smoke_platform.adapters.dead_letters import LetterFilter, LetterReader

    reader = LetterReader(platform.brokers, platform.topic_dead_letters)
    letters = list(reader.letters(reader.find(LetterFilter()).rows))
    assert sorted((letter.device, letter.reason, letter.value == b"\x00 no reading") for letter in letters) == [
        ("hall-2", "not_json", False),
        ("hall-2", "not_json", True),
        ("hall-2", "wrong_type", False),
    ]
    (two_names,) = [letter for letter in letters if letter.reason == "wrong_type"]
    assert two_names.field == "device_id"
    assert json.loads(two_names.value or b"")["device_id"] == {"topic": "hall-2", "payload": "hall-1"}


def start_bridge(settings: Settings) -> subprocess.Popen[bytes]:
    code = "import sys; from smoke_platform.cli.main import main; sys.argv = ['smoke', 'mqtt-bridge']; main()"
    environment = {**os.environ, **settings.environment()}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_kill_of_the_bridge_and_restart_of_mosquitto_lose_nothing(
    platform: Settings, mosquitto: Mosquitto, publisher: Publisher
) -> None:
    """A reading that mosquitto has taken must reach Kafka, whatever dies in between, and however often."""
    with Running(platform) as running:  # makes the session; a broker keeps nothing for a client it has never seen
        running.connected()
    rng = random.Random(SEED)  # noqa: S311 - reproducible on purpose
    sent = 0
    for blow in range(4):
        # Before the bridge is there: how far it gets while they are published is chance.
        publisher.publish_many([(topic_of(n), reading(n)) for n in range(sent, sent + 1500)])
        goal = len(in_kafka(platform)) + rng.choice([1, 300, 700])
        bridge = start_bridge(platform)
        try:
            sent += 1500
            if blow % 2:
                mosquitto.stop()
                mosquitto.start()
            wait_for(lambda goal=goal: len(in_kafka(platform)) >= goal)
        finally:
            bridge.send_signal(signal.SIGKILL)
            bridge.communicate()
    with Running(platform) as running:
        wait_for(lambda: set(sequences(platform)) == set(range(sent)))
        running.until(lambda: running.bridge.counts.acknowledged >= running.bridge.counts.received)
        # Everything is acknowledged by now: a further bridge gets nothing.
    with Running(platform) as last:
        last.connected()
        publisher.publish(topic_of(sent), reading(sent))
        last.until(lambda: last.bridge.counts.acknowledged == 1)
    assert last.bridge.counts.redelivered == 0


def test_while_kafka_is_away_nothing_is_acknowledged(
    tmp_path: Path,
    mosquitto: Mosquitto,
    publisher: Publisher,
    free_port: Callable[[], int],
    cache_dir: Path,
    settings_for: Callable[..., Settings],
) -> None:
    """An acknowledged message that only the bridge's memory holds dies with it; and that memory must be bounded."""
    own = EmbeddedBroker(tmp_path / "broker", free_port(), free_port(), cache_dir)
    own.prepare()
    own.start()
    settings = settings_for(
        tmp_path,
        KAFKA_BOOTSTRAP_SERVERS=own.bootstrap_servers,
        SMOKE_MQTT_URL=f"mqtt://127.0.0.1:{mosquitto.port}",
        SMOKE_MQTT_RECEIVE_MAXIMUM=50,
    )
    try:
        ensure_topics(settings)
        with Running(settings) as running:
            running.connected()
            counts = running.bridge.counts
            publisher.publish_many([(topic_of(n), reading(n)) for n in range(100)])
            running.until(lambda: counts.acknowledged == 100)
            own.stop()
            publisher.publish_many([(topic_of(n), reading(n)) for n in range(100, 1000)])
            running.until(lambda: counts.in_flight() >= 50)
            for number in range(200):
                publisher.publish(topic_of(number), reading(number, lost=True), qos=0)
            running.until(lambda: counts.lost_qos0 > 0)
            assert counts.acknowledged == 100
            assert counts.in_flight() <= 51
            # A second loss on top: the connection to mosquitto, while Kafka is away.
            mosquitto.stop()
            mosquitto.start()
            running.until(lambda: not counts.connected)
            own.start()
            wait_for(lambda: set(sequences(settings)) == set(range(1000)))
            running.until(lambda: counts.in_flight() == 0)
        assert counts.acknowledged >= 1000
    finally:
        own.stop()


def test_a_stop_sends_what_is_under_way_and_leaves_the_rest(platform: Settings, publisher: Publisher) -> None:
    """A restart for an update is an everyday thing: it must neither lose nor hang."""
    bridge = start_bridge(platform)
    assert bridge.stdout is not None
    try:
        lines = iter(bridge.stdout.readline, b"")
        assert any(b"connected to mqtt://" in line for line in lines)
        publisher.publish_many([(topic_of(n), reading(n)) for n in range(2000)])
        bridge.send_signal(signal.SIGTERM)
        rest, _ = bridge.communicate(timeout=60)
    finally:
        bridge.kill()
        bridge.wait()
    assert bridge.returncode == 0
    assert b"Stopped." in rest
    with Running(platform) as running:
        wait_for(lambda: set(sequences(platform)) == set(range(2000)))
        running.until(lambda: running.bridge.counts.acknowledged >= running.bridge.counts.received)


def test_a_message_too_large_for_kafka_does_not_stop_the_others(platform: Settings, publisher: Publisher) -> None:
    """One device gone mad must not silence all; its message is seen in the dead letters."""
    with Running(platform) as running:
        running.connected()
        publisher.publish("sensors/mad/readings", random.Random(SEED).randbytes(3_000_000))  # noqa: S311 - no secret
        publisher.publish("sensors/d1/readings", reading(1))
        running.until(lambda: running.bridge.counts.acknowledged == 2)
        assert running.bridge.counts.truncated == 1
    assert sorted(key or b"" for key, _, _ in in_kafka(platform)) == [b"d1", b"mad"]


def test_a_topic_that_was_deleted_is_waited_for(
    platform: Settings, publisher: Publisher, make_topic: Callable[..., str]
) -> None:
    """A refusal by Kafka that no patience mends must not cost a message either."""
    from confluent_kafka.admin import AdminClient

    topic = platform.topic_readings
    with Running(platform) as running:
        running.connected()
        publisher.publish(topic_of(1), reading(1))
        running.until(lambda: running.bridge.counts.acknowledged == 1)
        admin = AdminClient({"bootstrap.servers": platform.brokers})
        admin.delete_topics([topic])[topic].result(30)
        wait_for(lambda: topic not in admin.list_topics(timeout=10).topics)
        publisher.publish_many([(topic_of(n), reading(n)) for n in range(2, 30)])
        running.until(lambda: running.bridge.counts.received >= 2)
        assert running.bridge.counts.acknowledged == 1
        make_topic(partitions=PARTITIONS, name=topic, message_timestamp_type="LogAppendTime")
        wait_for(lambda: set(sequences(platform)) == set(range(2, 30)), 120)


def test_retained_readings_are_not_taken_for_new_ones(platform: Settings, publisher: Publisher) -> None:
    """A fire of last year that a topic retains must not ring today."""
    publisher.publish("sensors/d1/readings", reading(1), retain=True)
    with Running(platform) as running:
        running.connected()
        publisher.publish("sensors/d1/readings", reading(2), retain=True)
        running.until(lambda: running.bridge.counts.acknowledged == 1)
    assert sequences(platform) == [2]


def test_metrics_are_served(platform: Settings, publisher: Publisher, free_port: Callable[[], int]) -> None:
    """Without them nobody sees that messages stop coming."""
    from urllib.request import urlopen

    port = free_port()
    with Running(platform.model_copy(update={"mqtt_metrics_port": port})) as running:
        running.connected()
        publisher.publish("sensors/d1/readings", reading(1))
        running.until(lambda: running.bridge.counts.acknowledged == 1)
        text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    assert "smoke_mqtt_acknowledged_total 1.0" in text
    assert "smoke_mqtt_connected 1.0" in text
    assert "smoke_mqtt_in_flight 0.0" in text


def test_two_bridges_with_one_name_are_told(platform: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """They throw one another out for ever, and every message comes twice; mosquitto itself does not say why."""
    with Running(platform) as first, Running(platform) as second:

        def told() -> bool:
            refused = any(isinstance(each.error, MqttRefused) for each in (first, second))
            return refused or "needs a SMOKE_MQTT_CLIENT_ID of its own" in caplog.text

        wait_for(told)


def make_certificates(folder: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=test authority")  # fmt: skip
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=x")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
            "server.pem", "-days", "2", "-extfile", "names")  # fmt: skip


def test_tls_and_account(platform: Settings, tmp_path: Path, free_port: Callable[[], int]) -> None:
    """A wrong password or certificate must be named, not tried for ever; the right ones must work."""
    if shutil.which("openssl") is None or shutil.which("mosquitto_passwd") is None:
        pytest.skip("openssl or mosquitto_passwd is not installed")
    make_certificates(tmp_path)
    passwords, rights = tmp_path / "passwords", tmp_path / "rights"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), USER, SECRET], check=True, capture_output=True)
    rights.write_text(f"user {USER}\ntopic read sensors/#\n")
    for path in (passwords, rights):
        path.chmod(0o600)
    port = free_port()
    secured = Mosquitto(
        tmp_path / "secured",
        port,
        f"cafile {tmp_path}/ca.pem",
        f"certfile {tmp_path}/server.pem",
        f"keyfile {tmp_path}/server.key",
        "allow_anonymous false",
        f"password_file {passwords}",
        f"acl_file {rights}",
    )
    from pydantic import SecretStr

    good = platform.model_copy(
        update={
            "mqtt_url": f"mqtts://127.0.0.1:{port}",
            "mqtt_ca_file": tmp_path / "ca.pem",
            "mqtt_user": USER,
            "mqtt_password": SecretStr(SECRET),
        }
    )

    def refused(**changes: Any) -> str:
        running = Running(good.model_copy(update=changes))
        with running:
            wait_for(lambda: running.error is not None)
        assert isinstance(running.error, MqttRefused)
        assert SECRET not in str(running.error)
        return str(running.error)

    secured.start()
    try:
        with Running(good) as running:
            running.connected()
        assert "SMOKE_MQTT_CA_FILE" in refused(mqtt_ca_file=None)
        assert "SMOKE_MQTT_PASSWORD" in refused(mqtt_password=SecretStr("guessed"))
        assert "SMOKE_MQTT_USER" in refused(mqtt_user="", mqtt_password=None)
    finally:
        secured.stop()


def test_settings_that_cannot_be_meant_are_named(platform: Settings) -> None:
    """A mistyped address must end the program at once, not let it wait in silence."""
    stop = threading.Event()
    for changes, word in (
        ({"mqtt_url": ""}, "SMOKE_MQTT_URL is not set"),
        ({"mqtt_url": "http://x"}, "SMOKE_MQTT_URL"),
        ({"mqtt_url": "mqtt://me:secret@x"}, "SMOKE_MQTT_PASSWORD"),
        ({"mqtt_topics": "a/#/b"}, "SMOKE_MQTT_TOPICS"),
    ):
        with pytest.raises(SmokeError, match=word):
            Bridge(platform.model_copy(update=changes), stop)


def test_an_absent_mqtt_broker_is_waited_for(platform: Settings, mosquitto: Mosquitto) -> None:
    """After a power cut the bridge may be there first."""
    mosquitto.stop()
    with Running(platform) as running:
        running.until(lambda: running.bridge.counts.kafka_up)
        mosquitto.start()
        running.connected()
