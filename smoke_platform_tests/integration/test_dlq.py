"""``smoke dlq`` on a real broker with the real landing: found once, replayed, and landed once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from smoke_platform.adapters.dead_letters import LetterFilter, LetterReader
from smoke_platform.adapters.kafka import Cluster, ReadingProducer, partition_of
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.cli.main import root
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import Landing

pytestmark = pytest.mark.integration

PARTITIONS = 3
START = datetime(2022, 6, 9, tzinfo=UTC)


@pytest.fixture
def platform(
    tmp_path: Path,
    broker: EmbeddedBroker,
    make_topic: Callable[..., str],
    settings_for: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """A platform with topics and a lake of its own, on whose settings the command line runs in this process."""
    settings = settings_for(
        tmp_path,
        KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers,
        KAFKA_TOPIC_SMOKE=make_topic(partitions=PARTITIONS, message_timestamp_type="LogAppendTime"),
        SMOKE_KAFKA_PARTITIONS=PARTITIONS,
        SMOKE_BATCH_SECONDS=0.05,
    )
    make_topic(partitions=PARTITIONS, name=settings.topic_dead_letters, max_message_bytes=16 * 1024 * 1024)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    return settings


def smoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(root, list(arguments))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def answer(*arguments: str, code: int = 0) -> Any:
    return json.loads(smoke(*arguments, "--json", code=code).stdout)


def message(number: int, **fields: Any) -> bytes:
    moment = (START + timedelta(seconds=number)).isoformat()
    return json.dumps({"device_id": f"d{number % 5}", "event_time": moment, "raw_h2": 1.0, **fields}).encode()


def produce(settings: Settings, messages: list[tuple[str, bytes]]) -> None:
    producer = ReadingProducer(settings.brokers, settings.topic_readings)
    for key, value in messages:
        producer.send(key, value)
    producer.flush()
    producer.raise_failures()
    producer.close()


def land(settings: Settings) -> None:
    Landing(settings, "test", once=True).run()


def landed(settings: Settings) -> pl.DataFrame:
    return Lake(settings.lake).scan(READINGS).collect()


def messages_in(settings: Settings, topic: str) -> int:
    with Cluster(settings.brokers) as cluster:
        return sum(high - low for low, high in cluster.watermarks(topic).values())


def test_a_corrected_reading_lands_once_however_often_it_is_replayed(platform: Settings) -> None:
    """The way from a reject to a row: listed, corrected, replayed twice before landing sees either, one row."""
    produce(platform, [("hall-1", message(0, device_id="hall-1", temperature_c=999)), ("x", b"\x00\x1b broken")])
    land(platform)
    found = answer("dlq", "list")
    assert found["reasons"] == {"out_of_range": 1, "not_json": 1}
    (mine,) = [each for each in found["shown"] if each["key"] == "hall-1"]
    identity = mine["identity"]
    assert (mine["field"], mine["state"]) == ("temperature_c", "open")

    text = smoke("dlq", "replay", identity, "--yes", code=1).output
    assert "would be rejected again" in text
    assert "--drop NAME" in text
    assert messages_in(platform, platform.topic_readings) == 2

    for _ in range(2):
        assert answer("dlq", "replay", identity, "--set", "temperature_c=21.5", "--yes")["replayed"] == 1
    land(platform)
    (row,) = landed(platform).iter_rows(named=True)
    assert (row["replay_of"], row["temperature_c"], row["raw_h2"], row["device_id"]) == (identity, 21.5, 1.0, "hall-1")
    assert row["partition"] == partition_of("hall-1", PARTITIONS)

    again = answer("dlq", "replay", identity, "--set", "temperature_c=22", "--yes")
    assert (again["replayed"], again["already_landed"]) == (0, 1)
    land(platform)
    assert landed(platform).height == 1
    assert "landed as a reading of hall-1" in smoke("dlq", "show", identity).output
    assert answer("dlq", "show", identity)["landed"]["offset"] == row["offset"]
    assert answer("dlq", "list")["landed"] == 1


def test_show_tells_reason_remedy_and_bytes(platform: Settings) -> None:
    """What helps must stand beside the fault, and binary rubbish must not reach the terminal."""
    produce(platform, [("hall-1", b"\x1b[2J\xff")])
    land(platform)
    (only,) = answer("dlq", "list")["shown"]
    text = smoke("dlq", "show", only["identity"]).output
    assert "00000000  1b 5b 32 4a ff" in text
    assert "\x1b" not in text
    assert "cannot be corrected" in text
    assert "No replay" in text


def test_a_replay_that_fails_again_is_the_same_letter(platform: Settings) -> None:
    """One message is one letter, with its last verdict; else every attempt would swell the list."""
    produce(platform, [("d1", message(1, raw_h2=-1))])
    land(platform)
    (only,) = answer("dlq", "list")["shown"]
    smoke("dlq", "replay", only["identity"], "--set", "event_time=1999-01-01T00:00:00Z", "--drop", "raw_h2",
          "--set", "co_ppm=1", "--anyway", "--yes")  # fmt: skip
    land(platform)
    found = answer("dlq", "list")
    assert (found["letters"], found["reasons"]) == (1, {"timestamp": 1})
    (now,) = found["shown"]
    assert (now["identity"], now["state"]) == (only["identity"], "rejected-again")
    assert answer("dlq", "list", "--reason", "out_of_range")["letters"] == 0
    shown = answer("dlq", "show", only["identity"])
    assert [each["reason"] for each in shown["letters"]] == ["out_of_range", "timestamp"]
    assert "rejected again: timestamp" in smoke("dlq", "show", only["identity"]).output


def test_filters_choose_by_reason_time_and_device(platform: Settings) -> None:
    """A replay of the wrong letters is worse than none."""
    produce(platform, [(f"d{n % 5}", message(n, raw_h2=-1)) for n in range(10)])
    land(platform)
    time.sleep(0.01)  # so that the moment below lies between two milliseconds, not to wait for anything
    between = datetime.now(UTC).isoformat()
    produce(platform, [("d1", b"no reading")] * 3)
    land(platform)
    assert answer("dlq", "list", "--device", "d1")["reasons"] == {"not_json": 3, "out_of_range": 2}
    assert answer("dlq", "list", "--until", between)["reasons"] == {"out_of_range": 10}
    assert answer("dlq", "list", "--since", between)["reasons"] == {"not_json": 3}
    assert answer("dlq", "list", "--since", "2h", "--reason", "not_json", "--device", "d2")["letters"] == 0
    newest = answer("dlq", "list", "--limit", "4")["shown"]
    assert [each["reason"] for each in newest] == ["not_json"] * 3 + ["out_of_range"]
    dry = answer("dlq", "replay", "--device", "d1", "--reason", "out_of_range", "--set", "raw_h2=2", "--dry-run")
    assert dry["replayed"] == 2
    assert messages_in(platform, platform.topic_readings) == 13
    assert answer("dlq", "replay", "--reason", "out_of_range", "--drop", "raw_h2", "--set", "co_ppm=0", "--yes") == {
        **dry,
        "replayed": 10,
        "dry_run": False,
    }
    land(platform)
    assert landed(platform).height == 10


REPLAY = """
import sys
from smoke_platform.adapters import dead_letters
from smoke_platform.cli.main import main
usual, count = dead_letters.Replayer.replay, 0
def replay(self, letter):
    global count
    usual(self, letter)
    count += 1
    if count % 100 == 0:
        self._producer.flush()
        print(count, flush=True)
dead_letters.Replayer.replay = replay
sys.argv = ["smoke", "dlq", "replay", "--reason", "not_finite", "--drop", "co_ppm", "--yes"]
main()
"""


def test_kill_in_the_middle_of_a_replay_lands_every_reading_once(platform: Settings) -> None:
    """kill -9 leaves some sent and some not; running it again, while landing runs, must give one row each."""
    total = 3000
    produce(platform, [(f"d{n % 5}", message(n, co_ppm=float("nan"), sequence=n)) for n in range(total)])
    land(platform)
    for _ in range(2):
        environment = {**os.environ, **platform.environment()}
        replay = subprocess.Popen([sys.executable, "-c", REPLAY], env=environment, stdout=subprocess.PIPE)
        assert replay.stdout is not None
        sent = 0
        for line in replay.stdout:
            sent = int(line)
            if sent >= 700:
                break
        replay.send_signal(signal.SIGKILL)
        replay.wait()
        replay.stdout.close()
        assert sent >= 700
    stop = threading.Event()
    lander = threading.Thread(target=lambda: Landing(platform, "beside", stop=stop).run())
    lander.start()
    try:
        smoke("dlq", "replay", "--reason", "not_finite", "--drop", "co_ppm", "--yes")
    finally:
        stop.set()
        lander.join(60)
    assert not lander.is_alive()
    land(platform)
    rows = landed(platform)
    assert sorted(rows["sequence"]) == list(range(total))
    assert rows["replay_of"].n_unique() == total
    assert messages_in(platform, platform.topic_readings) > 2 * total


def test_what_was_not_replayed_is_named_and_makes_the_command_fail(platform: Settings) -> None:
    """A script must notice that nothing happened, and a person must read why."""
    nowhere = "Zt3YQ0bNTCe8y7sTq2bXfw/0/17"
    assert f"there is no dead letter {nowhere}" in smoke("dlq", "replay", nowhere, "--yes", code=1).stderr
    result = CliRunner().invoke(root, ["dlq", "show", "17"])
    assert "is no identity" in str(result.exception)
    assert "--reason" in smoke("dlq", "replay", "--yes", code=2).stderr
    assert "neither a time" in smoke("dlq", "list", "--since", "yesterday", code=2).stderr
    assert "No dead letters" in smoke("dlq", "list").output
    produce(platform, [("d1", b"no reading")])
    land(platform)
    smoke("dlq", "replay", "--reason", "not_json", "--anyway", code=1)  # nobody says yes
    assert messages_in(platform, platform.topic_readings) == 1
    assert (
        "no JSON object" in smoke("dlq", "replay", "--reason", "not_json", "--drop", "co_ppm", "--yes", code=1).stderr
    )


def test_a_broker_that_is_down_is_named_with_its_remedy(
    platform: Settings, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or "no dead letters" is read where nobody could look."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
    result = CliRunner().invoke(root, ["dlq", "list"])
    assert isinstance(result.exception, SmokeError)
    assert "KAFKA_BOOTSTRAP_SERVERS" in result.exception.remedy


def test_only_the_letters_that_are_shown_are_read_again(platform: Settings) -> None:
    """Letters that lie far apart are fetched from where they are, and each only once."""
    produce(platform, [(f"d{n}", b"no reading") for n in range(500)])
    land(platform)
    reader = LetterReader(platform.brokers, platform.topic_dead_letters)
    seen: list[tuple[int, int]] = []
    index = reader.find(LetterFilter(), progress=lambda done, total: seen.append((done, total)))
    assert (len(index), seen[-1]) == (500, (500, 500))
    rows = index.newest(500)[::50]
    found = [(letter.partition, letter.offset) for letter in reader.letters(rows)]
    assert sorted(found) == sorted((int(row["partition"]), int(row["offset"])) for row in rows)
    assert reader.find(LetterFilter(), most=40).unread == 460
