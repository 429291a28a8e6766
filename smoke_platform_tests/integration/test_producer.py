"""Producing end to end on a real broker: files value by value, lines, the simulator, and a broker that dies."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, TopicPartition

from smoke_platform.adapters.kafka import (
    AcknowledgedOffsets,
    BulkReadingProducer,
    Cluster,
    ReadingProducer,
)
from smoke_platform.cli.produce import produce
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import CANONICAL_NAME, SENSOR_NAMES, parse_reading
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.streaming.producer import open_producer
from smoke_platform_tests.waiting import wait_for

pytestmark = pytest.mark.integration
SMOKE = [sys.executable, "-c", "from smoke_platform.cli.main import main; main()"]
HEADER = (
    ",UTC,Temperature[C],Humidity[%],TVOC[ppb],eCO2[ppm],Raw H2,Raw Ethanol,Pressure[hPa],"
    "PM1.0,PM2.5,NC0.5,NC1.0,NC2.5,CNT,Fire Alarm"
)


def read_all(brokers: str, topic: str) -> dict[tuple[int, int], Any]:
    """Every message of a topic by its (partition, offset)."""
    with Cluster(brokers) as cluster:
        marks = cluster.watermarks(topic)
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": uuid.uuid4().hex})
    consumer.assign([TopicPartition(topic, partition, low) for partition, (low, _) in marks.items()])
    wanted = sum(high - low for low, high in marks.values())
    found: dict[tuple[int, int], Any] = {}
    deadline = time.monotonic() + 60
    try:
        while len(found) < wanted:
            assert time.monotonic() < deadline, f"{len(found)} of {wanted} messages after 60 s"
            for message in consumer.consume(5000, timeout=0.2):
                assert message.error() is None
                found[message.partition(), message.offset()] = message
    finally:
        consumer.close()
    return found


@pytest.fixture
def smoke(tmp_path: Path, broker: EmbeddedBroker) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs the real command against the test's broker."""

    def run(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*SMOKE, *arguments],
            input=stdin,
            capture_output=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            env={
                **os.environ,
                "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
                "SMOKE_HOME": str(tmp_path / "home"),
                **environment,
            },
        )

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as text:
        return list(csv.DictReader(text))


def assert_equals_file(messages: dict[tuple[int, int], Any], rows: list[dict[str, str]]) -> None:
    """Each row of the file is one message, equal value by value; per device in the file's order."""
    readings = [parse_reading(messages[place].value()) for place in sorted(messages)]
    by_key = {(reading.event_time.timestamp(), reading.sequence): reading for reading in readings}
    assert len(readings) == len(rows) == len(by_key)
    for row in rows:
        reading = by_key[float(row["UTC"]), int(row["CNT"])]
        expected = {CANONICAL_NAME[name]: value for name, value in row.items() if name in CANONICAL_NAME}
        assert {name: reading.sensors[name] for name in SENSOR_NAMES} == {
            name: float(expected[name]) for name in SENSOR_NAMES
        }
        assert reading.fire_alarm == (row["Fire Alarm"] == "1")
        assert reading.source == "csv"
    for device in {reading.device_id for reading in readings}:
        own = [reading.sequence for reading in readings if reading.device_id == device]
        assert own == sorted(own, key=lambda value: value or 0)


def write_recordings(path: Path, seed: int = 1) -> None:
    """Two short recordings with awkward decimals, in the dataset's format: CRLF and an unnamed index."""
    rng = random.Random(seed)  # noqa: S311 - test data, no secret
    lines = [HEADER]
    index = 0
    for start, length in ((1_654_733_331, 120), (1_654_761_343, 80)):
        for count in range(length):
            values = [
                round(rng.uniform(-20, 60), 3),
                round(rng.uniform(0, 100), 2),
                rng.randrange(60_001),
                rng.randrange(400, 60_001),
                rng.randrange(20_000),
                rng.randrange(22_000),
                round(rng.uniform(930, 940), 3),
                *(rng.choice([0.0, 1e-05, 0.1 + 0.2, round(rng.uniform(0, 60_000), 3)]) for _ in range(5)),
            ]
            lines.append(",".join(map(repr, [index, start + count, *values, count, rng.randrange(2)])))
            index += 1
    path.write_bytes("\r\n".join([*lines, ""]).encode())


@pytest.mark.parametrize("kind", ["csv", "gz", "zip"])
def test_a_file_arrives_value_by_value(
    kind: str, tmp_path: Path, broker: EmbeddedBroker, make_topic: Callable[..., str], smoke: Any
) -> None:
    """A replay that rounds or drops a value makes every later comparison worthless."""
    plain = tmp_path / "recording.csv"
    write_recordings(plain)
    path = plain
    if kind == "gz":
        path = tmp_path / "recording.csv.gz"
        path.write_bytes(gzip.compress(plain.read_bytes()))
    elif kind == "zip":
        path = tmp_path / "recording.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(plain, "recording.csv")
    topic = make_topic(partitions=3)
    done = smoke("produce", "csv", str(path), "--topic", topic, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["acknowledged"] == 200
    messages = read_all(broker.bootstrap_servers, topic)
    assert {message.key() for message in messages.values()} == {b"csv-recording-1", b"csv-recording-2"}
    assert_equals_file(messages, rows_of(plain))


def test_the_public_dataset_arrives_value_by_value(
    needs_data: Path, broker: EmbeddedBroker, make_topic: Callable[..., str], smoke: Any
) -> None:
    """The file everybody tries first: 62,630 rows in five recordings."""
    path = needs_data / "kaggle_smoke" / "smoke_detection_iot.csv"
    topic = make_topic(partitions=6)
    done = smoke("produce", "csv", str(path), "--topic", topic, "--json")
    assert done.returncode == 0, done.stderr
    messages = read_all(broker.bootstrap_servers, topic)
    assert len({message.key() for message in messages.values()}) == 5
    assert_equals_file(messages, rows_of(path))


def test_a_bad_row_is_named_counted_and_not_sent(
    tmp_path: Path, broker: EmbeddedBroker, make_topic: Callable[..., str], smoke: Any
) -> None:
    """A row that quietly disappears, or quietly becomes something else, is a lie about the file."""
    path = tmp_path / "bad.csv"
    path.write_bytes(
        f"{HEADER}\r\n"
        "0,1654733331,20.0,57.36,0,400,12306,18520,939.735,0.0,0.0,0.0,0.0,0.0,0,0\r\n"
        "1,1654733332,warm,57.36,0,400,12306,18520,939.735,0.0,0.0,0.0,0.0,0.0,1,0\r\n"
        "2,1654733333,20.0,157.36,0,400,12306,18520,939.735,0.0,0.0,0.0,0.0,0.0,2,0\r\n"
        "3,1654733334,20.0\r\n".encode()
    )
    topic = make_topic()
    done = smoke("produce", "csv", str(path), "--topic", topic, "--json")
    outcome = json.loads(done.stdout)
    assert done.returncode == 1
    assert (outcome["sent"], outcome["acknowledged"], outcome["bad"]) == (1, 1, 3)
    shown = " | ".join(outcome["bad_examples"])
    assert "line 3, temperature_c: wrong_type" in shown
    assert "line 4, humidity_pct: out_of_range: 157.36" in shown
    assert "line 5: 3 fields, the header has 16" in shown
    assert smoke("produce", "csv", str(path), "--topic", topic, "--skip-bad").returncode == 0
    assert len(read_all(broker.bootstrap_servers, topic)) == 2


def test_stdin_sends_lines_and_names_the_bad_ones(
    broker: EmbeddedBroker, make_topic: Callable[..., str], smoke: Any
) -> None:
    """The way a shell script feeds the platform; raw is the way to try the dead letters out."""
    good = b'{"device_id":"a","event_time":"2026-01-01T00:00:00Z","PM2.5":4.50}'
    lines = good + b"\n\nnonsense\n" + good.replace(b"4.50", b'"x"') + b"\r\n"
    topic = make_topic()
    done = smoke("produce", "stdin", "--topic", topic, stdin=lines)
    assert done.returncode == 1
    assert b"line 3: not_json" in done.stderr
    assert b"line 4: wrong_type: pm2_5" in done.stderr
    assert [message.value() for message in read_all(broker.bootstrap_servers, topic).values()] == [good]
    raw = make_topic()
    done = smoke("produce", "stdin", "--raw", "--topic", raw, stdin=b"nonsense\n\xff\xfe\n" + good + b"\n")
    assert done.returncode == 0, done.stderr
    sent = read_all(broker.bootstrap_servers, raw)
    assert [sent[place].value() for place in sorted(sent)] == [b"nonsense", b"\xff\xfe", good]
    assert [sent[place].key() for place in sorted(sent)] == [None, None, b"a"]


def test_simulated_history_is_sent_whole_and_ends_now(
    broker: EmbeddedBroker, make_topic: Callable[..., str], smoke: Any
) -> None:
    """Readings from the future would be dead letters, and a gap at a stretch's seam would be a loss."""
    topic = make_topic(partitions=3)
    options = ("--devices", "30", "--seconds", "100", "--rate", "max", "--seed", "3", "--json", "--topic", topic)
    began = time.time()
    done = smoke("produce", "simulate", *options)
    assert done.returncode == 0, done.stderr
    messages = read_all(broker.bootstrap_servers, topic)
    assert json.loads(done.stdout)["acknowledged"] == len(messages)
    readings = [parse_reading(message.value()) for message in messages.values()]
    # The simulator's faults silence a device now and then, and it depends on the time which one.
    heard = {reading.device_id for reading in readings}
    assert heard <= {f"sim-{number:04d}" for number in range(1, 31)}
    assert len(heard) >= 28
    assert 0.8 < len(readings) / 3000 <= 1
    newest = max(reading.event_time for reading in readings).timestamp()
    assert began - 10 < newest <= time.time()
    keys = {(reading.device_id, reading.event_time, reading.sequence) for reading in readings}
    assert len(keys) == len(readings)


def test_no_broker_ends_a_command_with_a_clear_word(smoke: Any, free_port: Callable[[], int]) -> None:
    """The most frequent mistake of a newcomer is that nothing runs."""
    done = smoke("topics", "list", KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert b"KAFKA_BOOTSTRAP_SERVERS" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.fixture
def own_broker(tmp_path: Path, free_port: Callable[[], int], cache_dir: Path) -> Iterator[EmbeddedBroker]:
    """A broker that a test may kill."""
    embedded = EmbeddedBroker(tmp_path / "broker", free_port(), free_port(), cache_dir)
    embedded.prepare()
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.mark.parametrize("client", [ReadingProducer, BulkReadingProducer])
def test_a_killed_broker_neither_loses_nor_doubles(
    client: type[ReadingProducer] | type[BulkReadingProducer], own_broker: EmbeddedBroker
) -> None:
    """What was acknowledged is there after kill -9, what was under way arrives once, and the program goes on."""
    from smoke_platform.domain.topics import TopicSpec

    with Cluster(own_broker.bootstrap_servers) as cluster:
        cluster.create([TopicSpec("readings", 3, 1)])
    acknowledged = AcknowledgedOffsets()
    producer = client(
        own_broker.bootstrap_servers,
        "readings",
        on_acknowledged=acknowledged.add,
        delivery_timeout_s=None,
        max_in_flight=2_000,
    )
    stop = threading.Event()
    sent = 0

    def send() -> None:
        nonlocal sent
        while not stop.is_set():
            producer.send(f"device-{sent % 20}", str(sent).encode())
            sent += 1
            if sent % 20 == 0:
                time.sleep(0.002)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(2):
            wait_for(lambda before=acknowledged.count: acknowledged.count > before + 2_000)
            own_broker.kill()
            own_broker.start()
            wait_for(lambda before=acknowledged.count: acknowledged.count > before + 2_000)
    finally:
        stop.set()
        sender.join(60)
    producer.flush(60)
    producer.close()
    assert producer.counts.failed == 0, producer.failures
    assert producer.counts.acknowledged == sent == acknowledged.distinct
    found = read_all(own_broker.bootstrap_servers, "readings")
    assert set(acknowledged.pairs()) == set(found)
    assert sorted(int(message.value()) for message in found.values()) == list(range(sent))


def test_the_live_simulator_waits_for_its_broker_and_stops_cleanly(
    tmp_path: Path, free_port: Callable[[], int], cache_dir: Path
) -> None:
    """All programs start together, so the broker may come later; stopping must not lose what is under way."""
    embedded = EmbeddedBroker(tmp_path / "broker", free_port(), free_port(), cache_dir)
    embedded.prepare()
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": embedded.bootstrap_servers,
        "SMOKE_HOME": str(tmp_path / "home"),
    }
    arguments = ["produce", "simulate", "--devices", "20", "--forever", "--json"]
    program = subprocess.Popen(
        [*SMOKE, *arguments], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        embedded.start()
        subprocess.run([*SMOKE, "topics", "create"], env=environment, cwd=tmp_path, check=True, capture_output=True)
        topic = "smoke_sensor_data"
        with Cluster(embedded.bootstrap_servers) as cluster:
            wait_for(lambda: sum(high for _, high in cluster.watermarks(topic).values()) >= 60)
        program.send_signal(signal.SIGTERM)
        output, errors = program.communicate(timeout=120)
        assert program.returncode == 0, errors
        outcome = json.loads(output)
        messages = read_all(embedded.bootstrap_servers, topic)
        assert outcome["acknowledged"] == outcome["sent"] == len(messages)
        readings = [parse_reading(message.value()) for message in messages.values()]
        # A fault of the simulator may silence a device just now.
        heard = {reading.device_id for reading in readings}
        assert heard <= {f"sim-{number:04d}" for number in range(1, 21)}
        assert len(heard) >= 18
        assert all(abs(reading.event_time.timestamp() - time.time()) < 120 for reading in readings)
        assert all(int(reading.event_time.timestamp()) == reading.sequence for reading in readings)
    finally:
        program.kill()
        program.wait(10)
        embedded.stop()


def test_waiting_for_a_broker_ends_when_told(settings_for: Any, tmp_path: Path, free_port: Callable[[], int]) -> None:
    """`smoke down` while the broker is away must not hang."""
    settings = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}")
    stop = threading.Event()
    stop.set()
    assert open_producer(settings, rate=20, forever=True, stop=stop) is None


def test_a_compressed_loop_plays_on_until_it_is_stopped(
    tmp_path: Path, broker: EmbeddedBroker, make_topic: Callable[..., str]
) -> None:
    """A demo runs for hours from a short file: each pass has new times, and Ctrl-C ends it with its table."""
    path = tmp_path / "recording.csv"
    write_recordings(path)
    topic = make_topic(partitions=3)
    program = subprocess.Popen(
        [
            *SMOKE,
            "produce",
            "csv",
            str(path),
            "--time",
            "compressed",
            "--speed=200",
            "--loop",
            "--topic",
            topic,
            "--json",
        ],
        env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "SMOKE_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        with Cluster(broker.bootstrap_servers) as cluster:
            wait_for(lambda: sum(high for _, high in cluster.watermarks(topic).values()) > 450)
        program.send_signal(signal.SIGINT)
        output, errors = program.communicate(timeout=120)
    finally:
        program.kill()
        program.wait(10)
    assert program.returncode == 0, errors
    readings = [parse_reading(message.value()) for message in read_all(broker.bootstrap_servers, topic).values()]
    assert json.loads(output)["acknowledged"] == len(readings)
    assert len({(reading.device_id, reading.event_time, reading.sequence) for reading in readings}) == len(readings)
    assert all(abs(reading.event_time.timestamp() - time.time()) < 300 for reading in readings)


def test_options_that_contradict_are_refused(tmp_path: Path) -> None:
    """An option that is silently ignored makes a test of something else."""
    path = tmp_path / "recording.csv"
    write_recordings(path)
    for arguments in (
        ("simulate", "--forever", "--seconds", "5"),
        ("simulate", "--rate", "5", "--interval", "2"),
        ("simulate", "--rate", "0"),
        ("csv", str(path), "--time", "now", "--rate", "5"),
    ):
        refused = CliRunner().invoke(produce, arguments)
        assert refused.exit_code == 2, arguments
        assert "Error" in refused.output
    with pytest.raises(SmokeError, match="there is no file"):
        CliRunner().invoke(produce, ["csv", str(tmp_path / "none.csv")], catch_exceptions=False)
