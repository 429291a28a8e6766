"""Landing on a real broker, a real lake and a real Dagster instance: nothing lost, nothing twice, whatever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from smoke_platform.adapters.kafka import Cluster, ensure_topics
from smoke_platform.adapters.kafka_bulk import TopicFacts, TopicWatcher
from smoke_platform.adapters.lake import READINGS, READINGS_COLUMNS, READINGS_SCHEMA, Lake
from smoke_platform.adapters.lease import LeaseHeld, probe
from smoke_platform.cli.main import root
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.landing import REPLAY_HEADER, CompactionPlan
from smoke_platform.domain.readings import Reading, RejectReason, Source
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.orchestration import landing as orchestration
from smoke_platform.orchestration import names
from smoke_platform.settings import Settings
from smoke_platform.streaming import landing
from smoke_platform.streaming.landing import (
    Companion,
    Fenced,
    LandedBatch,
    LandedTable,
    Landing,
    LandingReport,
    LostReadings,
    StandingProbe,
)
from smoke_platform_tests.waiting import wait_for

pytestmark = pytest.mark.integration

START = datetime(2022, 6, 9, tzinfo=UTC)
PARTITIONS = 3
#: `make prove` runs more of them, with other seeds.
KILLS = int(os.environ.get("PROVE_LANDING_KILLS", "6"))
SEED = int(os.environ.get("PROVE_SEED", "1"))

POISON: dict[RejectReason, list[bytes | None]] = {
    RejectReason.NOT_JSON: [b"\x00\xff", None, b"", b'{"device_id":"a"', b"{}{}"],
    RejectReason.SCHEMA_VERSION: [b'{"schema_version":2}'],
    RejectReason.MISSING_FIELD: [b"{}", b'{"device_id":"a","event_time":"2022-06-09T00:00:00Z"}'],
    RejectReason.WRONG_TYPE: [b"[]", b'{"device_id":5,"event_time":"2022-06-09T00:00:00Z","raw_h2":1}'],
    RejectReason.NOT_FINITE: [b'{"device_id":"a","event_time":"2022-06-09T00:00:00Z","raw_h2":NaN}'],
    RejectReason.OUT_OF_RANGE: [b'{"device_id":"a","event_time":"2022-06-09T00:00:00Z","raw_h2":-1}'],
    RejectReason.TIMESTAMP: [
        b'{"device_id":"a","event_time":"1999-06-09T00:00:00Z","raw_h2":1}',
        b'{"device_id":"a","event_time":"2999-06-09T00:00:00Z","raw_h2":1}',
    ],
}

Place = tuple[int, int]


def reading(number: int, device: str | None = None, **sensors: float) -> Reading:
    moment = START + timedelta(seconds=number)
    values = sensors or {"temperature_c": number % 100 / 7, "raw_h2": 12_000.0}
    return Reading(device or f"d{number % 5}", moment, values, number % 2 == 0, number, Source.SIMULATOR)


def produce(
    brokers: str,
    topic: str,
    messages: list[tuple[str, bytes | None]],
    headers: list[tuple[str, bytes]] | None = None,
) -> list[Place]:
    """Sends (key, value) pairs; returns the acknowledged places, in the order of the messages."""
    places: dict[int, Place] = {}
    producer = Producer({"bootstrap.servers": brokers, "acks": "all", "enable.idempotence": True, "linger.ms": 5})
    for index, (key, value) in enumerate(messages):

        def acknowledged(error: Any, message: Any, index: int = index) -> None:
            assert error is None, error
            places[index] = (message.partition(), message.offset())

        producer.produce(topic, value, key.encode(), headers=headers, on_delivery=acknowledged)
        producer.poll(0)
    assert producer.flush(60) == 0
    return [places[index] for index in range(len(messages))]


def readings(count: int, start: int = 0) -> list[tuple[str, bytes | None]]:
    return [(one.device_id, one.to_json()) for one in map(reading, range(start, start + count))]


def landed(settings: Settings) -> pl.DataFrame:
    return Lake(settings.lake).scan(READINGS).collect()


def landed_places(settings: Settings, topic_id: str | None = None) -> list[Place]:
    rows = landed(settings)
    if topic_id is not None:
        rows = rows.filter(pl.col("topic_id") == topic_id)
    return sorted(rows.select("partition", "offset").iter_rows())


def letters(settings: Settings) -> list[tuple[dict[str, bytes], bytes | None]]:
    """(headers, value) of the dead letters."""
    consumer = Consumer({"bootstrap.servers": settings.brokers, "group.id": "test", "enable.partition.eof": True})
    topic = settings.topic_dead_letters
    found = []
    try:
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
                    found.append((dict(message.headers() or []), message.value()))
    finally:
        consumer.close()
    return found


def land_once(settings: Settings, run_id: str = "test") -> LandingReport:
    return Landing(settings, run_id, once=True).run()


class InBackground:
    """A landing in a thread of its own."""

    def __init__(self, settings: Settings, *companions: Companion) -> None:
        self.stop = threading.Event()
        self.report: LandingReport | None = None
        self.error: BaseException | None = None
        self._landing = Landing(settings, "background", stop=self.stop, companions=companions)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.report = self._landing.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def __enter__(self) -> InBackground:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join()

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(180)
        assert not self._thread.is_alive()


@pytest.fixture
def platform(
    tmp_path: Path,
    broker: EmbeddedBroker,
    make_topic: Callable[..., str],
    settings_for: Callable[..., Settings],
) -> Settings:
    """Settings of a platform with a topic and a lake of its own, and small, quick batches."""
    topic = make_topic(partitions=PARTITIONS, message_timestamp_type="LogAppendTime")
    settings = settings_for(
        tmp_path,
        KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers,
        KAFKA_TOPIC_SMOKE=topic,
        SMOKE_KAFKA_PARTITIONS=PARTITIONS,
        SMOKE_BATCH_SECONDS=0.05,
        SMOKE_BATCH_ROWS=700,
    )
    make_topic(partitions=2, name=settings.topic_dead_letters, max_message_bytes=16 * 1024 * 1024)
    return settings


def test_every_message_lands_or_becomes_a_dead_letter(platform: Settings) -> None:
    """The heart of the platform: nothing lost, nothing twice, each reject with its bytes and its reason."""
    rng = random.Random(SEED)  # noqa: S311 - reproducible on purpose
    sent = readings(4000)
    expected: dict[bytes, tuple[RejectReason, bytes | None]] = {}
    for reason, values in POISON.items():
        for number, value in enumerate(values):
            for _ in range(9):
                key = f"{reason}-{number}"
                expected[key.encode()] = (reason, value)
                sent.insert(rng.randrange(len(sent)), (key, value))
    places = produce(platform.brokers, platform.topic_readings, sent)
    report = land_once(platform)

    good = {place for place, (key, _) in zip(places, sent, strict=True) if key.encode() not in expected}
    bad = {place: key.encode() for place, (key, _) in zip(places, sent, strict=True) if place not in good}
    found = landed_places(platform)
    assert len(found) == len(set(found))
    assert set(found) == good
    post = {(int(h["partition"]), int(h["offset"])): (h, v) for h, v in letters(platform)}
    assert set(post) == set(bad)
    for place, (headers, value) in post.items():
        reason, original = expected[bad[place]]
        assert headers["reason"].decode() == reason
        assert headers["topic"].decode() == platform.topic_readings
        assert headers["topic_id"].decode() == report.topic_id
        assert headers["key"] == bad[place]
        assert {"field", "detail", "append_time"} <= set(headers)
        assert value == original
    assert sum(report.reasons.values()) == len(bad)
    again = land_once(platform)
    assert (again.ended, again.total().rows, again.commits) == ("caught up", 0, 0)


def test_values_arrive_as_they_were_sent(platform: Settings) -> None:
    """A reading in the lake must be the reading of the device, to the last bit and microsecond."""
    sent = [
        Reading(
            "a", START + timedelta(microseconds=1), {"pm2_5": 0.1 + 0.2, "co_ppm": 5e-324}, None, None, Source.MQTT
        ),
        Reading("a", START, dict.fromkeys(("raw_h2", "tvoc_ppb"), 400.0), True, 2**53, Source.CSV),
    ]
    before = datetime.now(UTC) - timedelta(seconds=5)
    produce(platform.brokers, platform.topic_readings, [("a", one.to_json()) for one in sent])
    land_once(platform)
    rows = landed(platform).sort("offset")
    assert tuple(rows.columns) == READINGS_COLUMNS
    for row, one in zip(rows.iter_rows(named=True), sent, strict=True):
        assert {name: row[name] for name in one.sensors} == dict(one.sensors)
        assert (row["device_id"], row["event_time"], row["event_date"]) == ("a", one.event_time, one.event_time.date())
        assert (row["fire_alarm"], row["sequence"], row["source"]) == (one.fire_alarm, one.sequence, str(one.source))
        assert before < row["append_time"] <= row["ingest_time"] + timedelta(seconds=1)
        assert (row["topic"], row["replay_of"], row["late"]) == (platform.topic_readings, None, False)


WRITER = """
import sys
from smoke_platform.cli.main import main
sys.argv = ["smoke", "land", "run"]
main()
"""


def start_writer(settings: Settings) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **settings.environment()}
    return subprocess.Popen([sys.executable, "-c", WRITER], env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.timeout(900)  # each writer is a program of its own, which starts slowly where others have the processors
def test_kill_at_any_moment_loses_and_doubles_nothing(platform: Settings) -> None:
    """kill -9 of the writer, again and again, while it reads, sends letters, writes files and commits."""
    rng = random.Random(SEED)  # noqa: S311 - reproducible on purpose
    sent = readings(12_000)
    for number in range(0, len(sent), 50):
        sent[number] = ("bad", b"no reading")
    places = produce(platform.brokers, platform.topic_readings, sent)
    bad = {place for place, (key, _) in zip(places, sent, strict=True) if key == "bad"}
    standing_of = StandingProbe(platform)
    moved = 0
    for _ in range(KILLS):
        before = sum(standing_of.standing().lag.values())
        writer = start_writer(platform.model_copy(update={"batch_rows": 150}))
        try:
            # Sometimes before the first commit, sometimes many commits later.
            target = max(0, before - rng.choice([0, 1, 500, 1500]))
            wait_for(lambda goal=target: sum(standing_of.standing().lag.values()) <= goal)
            time.sleep(rng.random() * 0.1)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        moved += before - sum(standing_of.standing().lag.values())
    assert moved > 0
    land_once(platform)
    found = landed_places(platform)
    post = {(int(h["partition"]), int(h["offset"])) for h, _ in letters(platform)}
    assert len(found) == len(set(found))
    assert post == bad
    assert set(found) == set(places) - bad


def test_nothing_is_committed_past_a_letter_that_was_not_acknowledged(platform: Settings) -> None:
    """Between commit and letter a crash would lose the reject for good, so the letter comes first."""
    with Cluster(platform.brokers) as cluster:
        cluster.alter(platform.topic_dead_letters, {"max.message.bytes": "100"})
        # The reject is in the first batch; those behind it are decoded and waiting when its letter fails.
        sent = [("a", b"no reading" * 20), *readings(2000)]
        produce(platform.brokers, platform.topic_readings, sent)
        with pytest.raises(SmokeError, match="dead letters were not acknowledged"):
            land_once(platform.model_copy(update={"batch_rows": 10}))
        assert landed(platform).is_empty()
        assert sum(StandingProbe(platform).standing().lag.values()) == len(sent)
        cluster.alter(platform.topic_dead_letters, {"max.message.bytes": str(16 * 1024 * 1024)})
    land_once(platform)
    assert landed(platform).height == 2000
    assert len(letters(platform)) == 1


def test_interruption_at_any_commit_leaves_whole_batches(platform: Settings) -> None:
    """Dagster ends a run by an exception in the middle of anything; lease and positions must be left in order."""

    class Interrupted(BaseException):
        pass

    seen = 0

    def interrupt(_progress: landing.Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise Interrupted

    settings = platform.model_copy(update={"batch_rows": 50})
    places = produce(settings.brokers, settings.topic_readings, readings(1000))
    with pytest.raises(Interrupted):
        Landing(settings, "interrupted", once=True, on_commit=interrupt).run()
    assert not probe(landing.lease_path(settings)).held
    found = landed_places(settings)
    assert 150 <= len(found) < 1000
    land_once(settings)
    assert landed_places(settings) == sorted(places)


def test_second_writer_is_refused_by_the_table_itself(platform: Settings) -> None:
    """A writer that was thought dead and comes back must not double what its successor landed."""
    produce(platform.brokers, platform.topic_readings, readings(10))
    facts = TopicWatcher(platform.brokers, platform.topic_readings).facts()
    assert facts is not None
    lake = Lake(platform.lake)
    first, second = LandedTable(lake, facts), LandedTable(lake, facts)
    row = pl.DataFrame([{"event_date": START.date(), "partition": 0, "offset": 0}]).with_columns(
        pl.col("partition").cast(pl.Int32)
    )
    empty = pl.from_arrow(READINGS_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    rows = pl.concat([empty, row], how="diagonal").to_arrow()
    first.commit(rows, {0: 1})
    with pytest.raises(Fenced, match="partition 0 up to 1"):
        second.commit(rows, {0: 1})
    # Another partition meets no conflict, but the writer learns of the other from its own next snapshot.
    third = LandedTable(lake, facts)
    first.commit(rows, {1: 1})
    with pytest.raises(Fenced):
        third.commit(rows.slice(0, 0), {2: 1})
    assert lake.scan(READINGS).collect().height == 2


class StartsWith:
    """A companion that does nothing but hold its run up until the other one has opened the table, too."""

    def __init__(self, both: threading.Barrier) -> None:
        self._both = both

    def start(self, facts: TopicFacts) -> None:
        self._both.wait(120)

    def landed(self, batch: LandedBatch) -> None: ...

    def check(self) -> None: ...

    @property
    def quiet(self) -> bool:
        return True

    @property
    def stuck(self) -> bool:
        return False

    def stop(self, *, finish: bool = False) -> None: ...

    def ended(self, timeout_s: float) -> bool:
        return True


def test_two_runs_at_once_land_everything_once(platform: Settings) -> None:
    """Two hosts that share a lake have two leases: then the table alone keeps order."""
    places = produce(platform.brokers, platform.topic_readings, readings(20_000))
    other = platform.model_copy(update={"home": platform.home.parent / "other", "lake_url": platform.lake})
    both = threading.Barrier(2)
    runs = [InBackground(platform, StartsWith(both)), InBackground(other, StartsWith(both))]
    standing_of = StandingProbe(platform)
    with runs[0], runs[1]:
        # Each may fence the other, and then neither goes on.
        wait_for(
            lambda: (
                all(run.has_ended for run in runs)
                or (any(run.has_ended for run in runs) and sum(standing_of.standing().lag.values()) == 0)
            )
        )
    land_once(platform)
    assert landed_places(platform) == sorted(places)
    assert all(run.error is None or isinstance(run.error, Fenced) for run in runs)
    assert any(isinstance(run.error, Fenced) for run in runs)


def test_a_run_ends_for_want_of_readings_only_where_none_wait(
    platform: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first fetch that takes longer than the idle time would end run after run, and nothing would ever land."""
    take = landing.BulkConsumer.take
    nothing_yet = iter(range(5))

    def slow(consumer: landing.BulkConsumer, *arguments: Any) -> landing.MessageBatch:
        if next(nothing_yet, None) is not None:
            time.sleep(0.05)
            return landing.MessageBatch()
        return take(consumer, *arguments)

    monkeypatch.setattr(landing.BulkConsumer, "take", slow)
    produce(platform.brokers, platform.topic_readings, readings(10))
    report = Landing(platform.model_copy(update={"stream_idle_seconds": 0.01}), "test").run()
    assert (report.ended, report.total().rows) == ("idle", 10)


def test_second_run_on_the_same_machine_waits_outside(platform: Settings) -> None:
    """A run started by hand beside Dagster's is told who is at work."""
    produce(platform.brokers, platform.topic_readings, readings(10))
    with InBackground(platform):
        wait_for(lambda: Lake(platform.lake).exists(READINGS) and len(landed_places(platform)) == 10)
        with pytest.raises(LeaseHeld, match="background"):
            land_once(platform)


def test_broker_dies_and_comes_back(
    tmp_path: Path, free_port: Callable[[], int], cache_dir: Path, settings_for: Callable[..., Settings]
) -> None:
    """A broker's kill -9 interrupts landing, and no hand is needed to go on."""
    own = EmbeddedBroker(tmp_path / "broker", free_port(), free_port(), cache_dir)
    own.prepare()
    own.start()
    settings = settings_for(
        tmp_path, KAFKA_BOOTSTRAP_SERVERS=own.bootstrap_servers, SMOKE_BATCH_SECONDS=0.05, SMOKE_BATCH_ROWS=300
    )
    try:
        ensure_topics(settings)
        places = produce(settings.brokers, settings.topic_readings, readings(8000))
        with InBackground(settings) as run:
            wait_for(lambda: Lake(settings.lake).exists(READINGS) and len(landed_places(settings)) > 0)
            own.kill()
            own.start()
            places += produce(settings.brokers, settings.topic_readings, [*readings(2000, 8000), ("x", b"poison")])
            wait_for(lambda: len(landed_places(settings)) >= 10_000, 60)
            assert run.error is None
        assert landed_places(settings) == sorted(places[:-1])
        assert [(int(h["partition"]), int(h["offset"])) for h, _ in letters(settings)] == [places[-1]]
    finally:
        own.stop()


def test_topic_made_anew_is_landed_from_its_start(platform: Settings, make_topic: Callable[..., str]) -> None:
    """Offsets begin at 0 again: by number alone the new readings would be taken for landed ones."""
    topic = platform.topic_readings
    produce(platform.brokers, topic, readings(600))
    with InBackground(platform) as run:
        wait_for(lambda: Lake(platform.lake).exists(READINGS) and len(landed_places(platform)) == 600)
        admin = AdminClient({"bootstrap.servers": platform.brokers})
        admin.delete_topics([topic])[topic].result(30)
        wait_for(lambda: topic not in admin.list_topics(timeout=10).topics)
        make_topic(partitions=PARTITIONS, name=topic, message_timestamp_type="LogAppendTime")
        # More than before, so that the old positions point into the middle of the new log.
        produce(platform.brokers, topic, readings(1500, 10_000))
        run.join()
    assert run.error is None or isinstance(run.error, SmokeError)
    report = land_once(platform)
    rows = landed(platform)
    assert rows.group_by("topic_id").len().height == 2
    assert sorted(rows.filter(pl.col("topic_id") == report.topic_id)["sequence"]) == list(range(10_000, 11_500))
    assert sorted(rows.filter(pl.col("topic_id") != report.topic_id)["sequence"]) == list(range(600))


def test_lost_range_stops_landing_until_it_is_accepted(platform: Settings) -> None:
    """Readings that Kafka deleted before they were landed must never be skipped in silence."""
    topic = platform.topic_readings
    produce(platform.brokers, topic, [("a", value) for _, value in readings(50)])
    land_once(platform)
    places = produce(platform.brokers, topic, [("a", value) for _, value in readings(100, 50)])
    (number,) = {place[0] for place in places}
    admin = AdminClient({"bootstrap.servers": platform.brokers})
    (deleted,) = admin.delete_records([TopicPartition(topic, number, 70)]).values()
    deleted.result(30)
    with pytest.raises(LostReadings, match=f"partition {number}, offsets 50 to 69"):
        land_once(platform)
    supervisor = orchestration.Supervisor(platform)
    with dg.DagsterInstance.ephemeral() as instance:
        assert "offsets 50 to 69" in supervisor.step(instance).reason
        environment = platform.environment()
        shown = CliRunner().invoke(root, ["land", "accept-loss", "--yes", "--json"], env=environment)
        assert json.loads(shown.output) == [{"partition": number, "first": 50, "end": 70}]
        assert supervisor.step(instance).kind is orchestration.Kind.REQUEST
    land_once(platform)
    assert [offset for _, offset in landed_places(platform)] == [*range(50), *range(70, 150)]
    notes = [
        entry["smoke_accepted_loss"]
        for entry in Lake(platform.lake).open(READINGS).history()
        if "smoke_accepted_loss" in entry
    ]
    assert len(notes) == 1


def test_offsets_without_messages_are_passed(platform: Settings) -> None:
    """Aborted and committed transactions leave offsets that hold nothing; landing must not wait for them for ever."""
    topic = platform.topic_readings
    producer = Producer({"bootstrap.servers": platform.brokers, "transactional.id": f"t-{topic}"})
    producer.init_transactions(30)
    for start, end in (
        (0, producer.commit_transaction),
        (10, producer.abort_transaction),
        (20, producer.commit_transaction),
    ):
        producer.begin_transaction()
        for one in map(reading, range(start, start + 10)):
            producer.produce(topic, one.to_json(), partition=0)
        producer.flush(30)
        end(30)
    # Commit and abort return before the broker has written their markers, three beside the thirty messages.
    watcher = TopicWatcher(platform.brokers, topic)
    wait_for(lambda: watcher.watermarks([0])[0][1] == 33)
    report = land_once(platform)
    assert report.total().rows == 30
    standing_of = StandingProbe(platform)
    assert sum(standing_of.standing().lag.values()) == 0
    land_once(platform)
    assert sorted(landed(platform)["sequence"]) == list(range(30))


def test_replayed_letter_lands_once(platform: Settings) -> None:
    """An operator mends a rejected message and sends it again, perhaps twice: one row, which names its letter."""
    topic = platform.topic_readings
    (place,) = produce(platform.brokers, topic, [("a", b"broken")])
    report = land_once(platform)
    ((headers, _),) = letters(platform)
    identity = b"/".join(headers[name] for name in ("topic_id", "partition", "offset"))
    assert identity.decode() == f"{report.topic_id}/{place[0]}/{place[1]}"
    mended = [("a", reading(1).to_json())]
    header = [(REPLAY_HEADER, identity)]
    produce(platform.brokers, topic, [*mended, *mended], header)
    assert land_once(platform).total().repeats == 1
    produce(platform.brokers, topic, [*mended, ("a", b"still broken")], header)
    assert land_once(platform).total().repeats == 1
    assert landed(platform)["replay_of"].to_list() == [identity.decode()]
    # The replay that is still broken is the same letter, not a further one.
    found = {(h["topic_id"], h["partition"], h["offset"]) for h, _ in letters(platform)}
    assert len(found) == 1


@pytest.mark.parametrize("cached", [True, False])
def test_clocks_survive_the_run(platform: Settings, cached: bool) -> None:
    """A reading is late or not whatever run lands it, with the clocks' cache or without."""
    topic = platform.topic_readings
    produce(platform.brokers, topic, [("a", reading(7200, "a").to_json())])
    land_once(platform)
    produce(platform.brokers, topic, [("a", reading(7201, "a").to_json())])
    land_once(platform)
    if not cached:
        for file in (platform.home / "landing").glob("clocks-*"):
            file.unlink()
    late, fine = reading(7201 - 601, "a"), reading(7201 - 600, "a")
    produce(platform.brokers, topic, [("a", late.to_json()), ("a", fine.to_json()), ("a", reading(0, "b").to_json())])
    assert land_once(platform).total().late == 1
    rows = landed(platform).sort("offset")
    assert rows["late"].to_list() == [False, False, True, False, False]


def test_files_stay_few_and_rows_the_same(platform: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit a second is 86,400 files a day; readers open every one of them."""
    monkeypatch.setattr(landing, "TIDY_EVERY_COMMITS", 25)
    monkeypatch.setattr(landing, "CompactionPlan", lambda: CompactionPlan(small_files=20))
    settings = platform.model_copy(update={"batch_rows": 20})
    places = produce(settings.brokers, settings.topic_readings, readings(2400))
    report = land_once(settings)
    assert report.commits > 100
    table = Lake(settings.lake).open(READINGS)
    assert len(table.file_uris()) < 60
    assert landed_places(settings) == sorted(places)
    more = produce(settings.brokers, settings.topic_readings, readings(100, 2400))
    land_once(settings)
    assert landed_places(settings) == sorted(places + more)


def test_pause_ends_the_run_and_resume_goes_on(platform: Settings) -> None:
    """A run that is terminated would be started again at once, so there is a switch."""
    environment = platform.environment()
    produce(platform.brokers, platform.topic_readings, readings(5))
    with InBackground(platform) as run, dg.DagsterInstance.ephemeral() as instance:
        wait_for(lambda: Lake(platform.lake).exists(READINGS) and len(landed_places(platform)) == 5)
        assert CliRunner().invoke(root, ["land", "pause", "--reason", "moving house"], env=environment).exit_code == 0
        run.join()
        assert run.report is not None
        assert run.report.ended == "paused"
        produce(platform.brokers, platform.topic_readings, readings(5, 5))
        supervisor = orchestration.Supervisor(platform)
        assert "moving house" in supervisor.step(instance).reason
        shown = json.loads(CliRunner().invoke(root, ["land", "status", "--json"], env=environment).output)
        assert (shown["paused"], shown["lag"], shown["running"]) == ("moving house", 5, False)
        assert CliRunner().invoke(root, ["land", "resume"], env=environment).exit_code == 0
        assert supervisor.step(instance).kind is orchestration.Kind.REQUEST


def test_run_by_hand_says_what_it_did(platform: Settings) -> None:
    """A script that lands once reads the counts."""
    produce(platform.brokers, platform.topic_readings, [*readings(40), ("x", b"{}")])
    result = CliRunner().invoke(root, ["land", "run", "--once", "--json"], env=platform.environment())
    shown = json.loads(result.output)
    assert (shown["total"]["rows"], shown["total"]["rejects"], shown["ended"]) == (40, 1, "caught up")
    assert shown["reasons"] == {"missing_field": 1}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as ephemeral:
        yield ephemeral


def test_job_shows_what_it_landed(platform: Settings, instance: dg.DagsterInstance) -> None:
    """In Dagster's UI each partition says how many rows, which offsets, what lag."""
    settings = platform.model_copy(update={"stream_idle_seconds": 0.5})
    definitions = orchestration.definitions(settings)
    dg.Definitions.validate_loadable(definitions)
    sensor = definitions.resolve_sensor_def("landing_sensor") if hasattr(definitions, "resolve_sensor_def") else None
    places = produce(settings.brokers, settings.topic_readings, [*readings(300), ("d0", b"junk")])
    supervisor = orchestration.Supervisor(settings)
    assert supervisor.step(instance).kind is orchestration.Kind.REQUEST
    job = definitions.resolve_job_def(names.JOB_LANDING)
    result = job.execute_in_process(instance=instance)
    assert result.success
    shown: dict[str, dict[str, Any]] = {}
    for event in result.all_events:
        if event.is_step_materialization:
            found = event.step_materialization_data.materialization
            if found.asset_key == names.WINDOWS:
                continue
            assert found.asset_key == names.READINGS
            assert found.partition is not None
            mine = shown.setdefault(found.partition, {"rows": 0, "rejects": 0})
            values = {name: entry.value for name, entry in found.metadata.items()}
            mine["rows"] += values["rows"]
            mine["rejects"] += values["rejects"]
            mine.update({name: values[name] for name in ("last_offset", "lag", "seconds_behind")})
    expected = {str(number) for number, _ in places}
    assert set(shown) == expected
    assert sum(entry["rows"] for entry in shown.values()) == 300
    assert sum(entry["rejects"] for entry in shown.values()) == 1
    assert all(entry["lag"] == 0 for entry in shown.values())
    checks = result.get_asset_check_evaluations()
    assert {check.check_name: check.passed for check in checks} == {
        orchestration.CHECK_IDENTITIES: True,
        orchestration.CHECK_WINDOWS: True,
        orchestration.CHECK_LEVELS: True,
    }
    assert supervisor.step(instance).reason == "nothing to land"
    assert sensor is None or sensor.minimum_interval_seconds == 1


def test_sensor_requests_a_run_without_a_key(platform: Settings, instance: dg.DagsterInstance) -> None:
    """A run key would refuse for ever the range whose first run failed."""
    produce(platform.brokers, platform.topic_readings, readings(3))
    definitions = orchestration.definitions(platform)
    sensor = next(one for one in definitions.sensors or [] if isinstance(one, dg.SensorDefinition))
    context = dg.build_sensor_context(instance=instance)
    for _ in range(2):
        data = sensor.evaluate_tick(context)
        assert [request.run_key for request in data.run_requests or []] == [None]


def test_sensor_fails_the_run_of_a_dead_process_and_asks_for_another(
    platform: Settings, instance: dg.DagsterInstance
) -> None:
    """A run whose process and code server died together stays STARTED for ever; landing must not wait for it."""
    produce(platform.brokers, platform.topic_readings, readings(3))
    definitions = orchestration.definitions(platform)
    job = definitions.resolve_job_def(names.JOB_LANDING)
    run = instance.create_run_for_job(job)
    instance.report_engine_event("starting", run)
    instance.handle_new_event(_started(run))
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom smoke_platform.adapters.lease import Lease\n"
        "with Lease(Path(sys.argv[1]), sys.argv[2]):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(landing.lease_path(platform)), run.run_id], stdout=subprocess.PIPE
    )
    supervisor = orchestration.Supervisor(platform)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert supervisor.step(instance).kind is orchestration.Kind.LEAVE
    finally:
        holder.kill()
        holder.wait()
    assert supervisor.step(instance).kind is orchestration.Kind.FAIL
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status == dg.DagsterRunStatus.FAILURE
    assert supervisor.step(instance).kind is orchestration.Kind.REQUEST


def _started(run: Any) -> Any:
    from dagster._core.events import DagsterEvent, DagsterEventType
    from dagster._core.events.log import EventLogEntry

    event = DagsterEvent(event_type_value=DagsterEventType.RUN_START.value, job_name=run.job_name, message="started")
    return EventLogEntry(
        error_info=None,
        level=20,
        user_message="",
        run_id=run.run_id,
        timestamp=time.time(),
        job_name=run.job_name,
        dagster_event=event,
    )
