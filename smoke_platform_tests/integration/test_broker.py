"""The embedded broker with a real process: what a power failure, a taken port and a changed jar do to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from smoke_platform.adapters import java
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local.broker import EmbeddedBroker, is_ready
from smoke_platform.local.jars import BROKER
from smoke_platform.settings import Settings

pytestmark = pytest.mark.integration

SMOKE = str(Path(sys.executable).with_name("smoke"))


@pytest.fixture
def own_broker(tmp_path: Path, free_port: Callable[[], int], cache_dir: Path) -> Iterator[EmbeddedBroker]:
    """A broker that a test may kill, in a folder with a name that is hard to read."""
    broker = EmbeddedBroker(tmp_path / "käfka ☂", free_port(), free_port(), cache_dir)
    yield broker
    broker.stop()


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """Waits for a condition, with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


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


def end_of(consumer: Consumer, place: TopicPartition) -> int:
    """The offset after the last one; a broker that has just started leads its partitions a moment later."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return int(consumer.get_watermark_offsets(place, timeout=20)[1])
        except KafkaException as error:
            if error.args[0].code() != KafkaError.NOT_LEADER_FOR_PARTITION or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


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
        ends = {number: end_of(consumer, TopicPartition(topic, number)) for number in range(partitions)}
        consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        found: set[tuple[int, int, bytes]] = set()
        deadline = time.monotonic() + 120
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


def test_a_stopped_broker_can_be_moved_to_other_ports(
    own_broker: EmbeddedBroker, free_port: Callable[[], int], cache_dir: Path
) -> None:
    """The remedy for a taken port is a setting; what was kept must be there at the new one."""
    own_broker.start()
    pid = own_broker.pid
    admin = AdminClient({"bootstrap.servers": own_broker.bootstrap_servers, "log_level": 0})
    admin.create_topics([NewTopic("moved", 2, 1)])["moved"].result(30)
    acknowledged = produce(own_broker, "moved", [b"a", b"b"])
    own_broker.stop()
    assert pid is not None
    assert not psutil.pid_exists(pid)
    moved = EmbeddedBroker(own_broker.home, free_port(), free_port(), cache_dir)
    try:
        moved.start()
        assert consume(moved, "moved", 2) == acknowledged
    finally:
        moved.stop()


def test_a_topic_is_not_made_by_a_typing_slip(broker: EmbeddedBroker) -> None:
    """A misspelt topic would swallow readings that nobody lands."""
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0, "message.timeout.ms": 2000})
    errors: list[object] = []
    producer.produce("smoke_sensor_dta", b"x", on_delivery=lambda error, _message: errors.append(error))
    producer.flush(10)
    assert len(errors) == 1
    assert errors[0] is not None
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    assert "smoke_sensor_dta" not in admin.list_topics(timeout=10).topics


@pytest.mark.parametrize("which", ["port", "controller_port"])
def test_a_taken_port_names_its_setting(own_broker: EmbeddedBroker, which: str) -> None:
    """Otherwise a person reads a Java stack trace and does not know what to set."""
    setting = {"port": "SMOKE_KAFKA_PORT", "controller_port": "SMOKE_KAFKA_CONTROLLER_PORT"}[which]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", getattr(own_broker, which)))
        listener.listen()
        with pytest.raises(SmokeError, match=rf"{getattr(own_broker, which)}[\s\S]*{setting} "):
            own_broker.start()
    assert own_broker.pid is None


def test_a_second_broker_on_the_same_folder_is_refused(
    own_broker: EmbeddedBroker, free_port: Callable[[], int], cache_dir: Path
) -> None:
    """Two brokers that write one log destroy it, and Kafka itself does not keep the second one out in time."""
    own_broker.start()
    second = EmbeddedBroker(own_broker.home, free_port(), free_port(), cache_dir)
    with pytest.raises(SmokeError, match="another broker"):
        second.start()
    until(lambda: is_ready(own_broker.bootstrap_servers), "the first one goes on")
    own_broker.kill()
    own_broker.start()  # the kernel has dropped the lock of the killed one


def test_a_changed_jar_is_refused(tmp_path: Path, free_port: Callable[[], int], cache_dir: Path) -> None:
    """Code that somebody slipped into the cache would run with all rights of the user."""
    BROKER.ensure(cache_dir)
    mine = tmp_path / "cache"
    shutil.copytree(BROKER.folder(cache_dir), BROKER.folder(mine), copy_function=os.link)
    victim = BROKER.folder(mine) / "jose4j-0.9.6.jar"
    content = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    broker = EmbeddedBroker(tmp_path / "kafka", free_port(), free_port(), mine)
    with pytest.raises(SmokeError, match=r"jose4j[\s\S]*refused[\s\S]*remove"):
        broker.prepare()
    assert not broker.formatted


def test_a_jar_that_was_added_is_not_loaded(tmp_path: Path, cache_dir: Path) -> None:
    """The class path is the list's, not whatever lies in the folder."""
    BROKER.ensure(cache_dir)
    mine = tmp_path / "cache"
    shutil.copytree(BROKER.folder(cache_dir), BROKER.folder(mine), copy_function=os.link)
    (BROKER.folder(mine) / "aaa-evil.jar").write_bytes(b"PK")
    assert {path.name for path in BROKER.ensure(mine)} == set(BROKER.expected())


def test_classes_are_kept_for_quicker_starts(broker: EmbeddedBroker, cache_dir: Path) -> None:
    """Without them a start costs twice the processor time, and a killed broker is back too late on a busy machine."""
    kept = [option for option in broker.command() if option.startswith("-XX:SharedArchiveFile=")]
    found = java.find_java()
    if not (found.home / "lib" / "server" / "classes.jsa").is_file():
        assert kept == []  # this Java, such as the one that pip brings, has nothing to build on
        return
    archive = Path(kept[0].partition("=")[2])
    assert archive.parent == cache_dir
    assert broker.pid is not None
    assert str(archive) in Path(f"/proc/{broker.pid}/maps").read_text(encoding="utf-8")


SMALL_FETCH = """
import sys
from dataclasses import replace
from pathlib import Path
from smoke_platform.local.jars import BROKER
modules = (("net.sf.jopt-simple", "jopt-simple", "5.0.4"),)
print(*replace(BROKER, modules=modules, lock_file=Path(sys.argv[2])).ensure(Path(sys.argv[1])))
"""


def test_processes_that_fetch_at_once_share_one_download(tmp_path: Path) -> None:
    """Two tests or platforms that start on a fresh machine must not break each other's cache."""
    name = "jopt-simple-5.0.4.jar"
    lock = tmp_path / "small.lock"
    lock.write_text(f"{name} {BROKER.expected()[name]}\n", encoding="utf-8")
    command = [sys.executable, "-c", SMALL_FETCH, str(tmp_path / "cache"), str(lock)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [racer.communicate(timeout=120) for racer in racers]
    if any("could not be downloaded" in errors for _, errors in answers):
        pytest.skip("no network: the repository of the jars can't be reached")
    assert [racer.returncode for racer in racers] == [0, 0, 0], answers
    assert {output.strip() for output, _ in answers} == {str(BROKER.folder(tmp_path / "cache") / name)}
    left = {path.name for path in (tmp_path / "cache").iterdir()} - {"trust"}
    assert left == {BROKER.folder(tmp_path).name, f"{BROKER.folder(tmp_path).name}.lock"}


def test_a_download_that_is_not_the_listed_one_is_refused(tmp_path: Path) -> None:
    """Something between here and the repository that changes files must not get its code to run."""
    name = "jopt-simple-5.0.4.jar"
    lock = tmp_path / "small.lock"
    lock.write_text(f"{name} {'0' * 64}\n", encoding="utf-8")
    command = [sys.executable, "-c", SMALL_FETCH, str(tmp_path / "cache"), str(lock)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "could not be downloaded" in answer.stderr:
        pytest.skip("no network: the repository of the jars can't be reached")
    assert answer.returncode != 0
    assert "refused" in answer.stderr
    assert not BROKER.folder(tmp_path / "cache").exists()


def test_java_reads_the_trust_store_that_we_write(tmp_path: Path) -> None:
    """A trust store that Java finds broken would cost every download, and only behind a company's certificate."""
    bundle = next(path for path in java.SYSTEM_BUNDLES if path.is_file())
    store = java.trust_store_of(bundle, tmp_path)
    keytool = java.find_java().home / "bin" / "keytool"
    answer = subprocess.run(
        [keytool, "-list", "-keystore", store, "-storetype", "jks", "-storepass", java.STORE_PASSWORD],
        capture_output=True,
        text=True,
        check=True,
    )
    certificates = bundle.read_text(encoding="utf-8").count("BEGIN CERTIFICATE")
    assert answer.stdout.count("trustedCertEntry") == certificates


def test_a_broker_does_not_outlive_the_killed_process_that_started_it(
    tmp_path: Path, free_port: Callable[[], int], cache_dir: Path
) -> None:
    """A test run that is killed would leave a broker behind, and the next one another."""
    program = (
        "import sys, time; from pathlib import Path; from smoke_platform.local.broker import EmbeddedBroker\n"
        "b = EmbeddedBroker(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])); b.start()\n"
        "print(b.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "k"), str(free_port()), str(free_port()), str(cache_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    until(lambda: not alive(pid), "it ends")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_smoke_kafka_is_the_broker_itself(
    tmp_path: Path, settings_for: Callable[..., Settings], how: signal.Signals
) -> None:
    """Whoever stops or kills the command must reach the broker: an orphan would hold the port and the data."""
    settings = settings_for(tmp_path)
    surroundings = {**os.environ, **settings.environment()}
    with subprocess.Popen([SMOKE, "kafka"], env=surroundings, cwd=tmp_path, stderr=subprocess.DEVNULL) as command:
        try:
            until(lambda: is_ready(settings.brokers), "smoke kafka is ready", 180)
            assert "kafka.Kafka" in psutil.Process(command.pid).cmdline()
            assert not psutil.Process(command.pid).children()
        finally:
            command.send_signal(how)
            command.wait(120)
    assert not is_ready(settings.brokers)
    with pytest.raises(KafkaException):
        AdminClient({"bootstrap.servers": settings.brokers, "log_level": 0}).list_topics(timeout=1)
    log = (settings.home / "kafka" / "logs" / "server.log").read_text(encoding="utf-8")
    assert ("shut down completed" in log) == (how is signal.SIGTERM)
