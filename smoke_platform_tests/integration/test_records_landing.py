"""Alarms, commands, predictions and devices on a real broker and a real lake: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from smoke_platform.adapters.kafka import ensure_topics, partition_of
from smoke_platform.adapters.kafka_bulk import TopicFacts
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.lease import probe
from smoke_platform.cli.main import root
from smoke_platform.domain import alarms, devices, predictions
from smoke_platform.domain.alarms import AlarmCommand, AlarmRecord, Event, Evidence, Kind, State, Verb
from smoke_platform.domain.devices import Device
from smoke_platform.domain.lake_records import DAY, RECORD_TABLES, UNREADABLE, RecordTable, latest_devices
from smoke_platform.domain.predictions import PredictionRecord
from smoke_platform.domain.topics import ALARMS
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.orchestration import landing as orchestration
from smoke_platform.orchestration import names
from smoke_platform.settings import Settings
from smoke_platform.streaming import records_landing
from smoke_platform.streaming.landing import (
    LandedBatch,
    LandedTable,
    Landing,
    LandingReport,
    LostReadings,
    lease_path,
)
from smoke_platform.streaming.records_landing import RecordsLanding, RecordsProbe
from smoke_platform_tests.waiting import wait_for

pytestmark = pytest.mark.integration

PARTITIONS = 3
SEED = int(os.environ.get("PROVE_SEED", "1"))
KILLS = int(os.environ.get("PROVE_RECORDS_KILLS", "4"))
NOW = 1_700_000_000.25

Tables = Mapping[str, RecordTable]
Sent = tuple[int, bytes | None, bytes | None]


def alarm(number: int, device: str = "d0") -> Sent:
    record = AlarmRecord(
        device_id=device,
        kind=Kind.FIRE,
        alarm_id=f"a{number}",
        event=Event.RAISED,
        state=State.ACTIVE,
        severity="high",
        revision=number,
        topic_id="readings-id",
        partition=partition_of(device, PARTITIONS),
        cause=number,
        position=number,
        at=NOW + number,
        event_time=NOW + number,
        evidence=Evidence(rules=("pm2_5_high", "model"), score=0.1 + 0.2, values={"pm2_5": 12.5}),
    )
    return record.partition, alarms.alarm_key(device, Kind.FIRE), alarms.encode(record)


def command(number: int) -> Sent:
    asked = AlarmCommand(
        command_id=f"c{number}", verb=Verb.ACKNOWLEDGE, device_id="d0", kind=Kind.FIRE, by="ann", at=NOW
    )
    return partition_of("d0", PARTITIONS), b"d0", alarms.encode(asked)


def prediction(first: int, count: int, partition: int = 0, scored: bool = True, topic_id: str = "readings-id") -> Sent:
    record = PredictionRecord(
        topic_id=topic_id,
        partition=partition,
        offsets=list(range(first, first + count)),
        scores=[offset / 1e6 for offset in range(first, first + count)] if scored else [],
        levels=[offset % 5 for offset in range(first, first + count)],
        hits=[2**31] * count,
        feature_version="f1",
        at=NOW,
        model_version="m1" if scored else None,
        threshold=0.5 if scored else None,
    )
    return partition, None, predictions.encode(record)


def device(number: int, **fields: Any) -> Sent:
    entry = Device(device_id=f"d{number}", updated_at=NOW, **fields)
    return partition_of(entry.device_id, PARTITIONS), entry.device_id.encode(), devices.encode(entry)


def send(settings: Settings, table: RecordTable, messages: list[Sent]) -> list[tuple[int, int]]:
    """Returns the acknowledged (partition, offset) of each, in the order of the messages."""
    places: dict[int, tuple[int, int]] = {}
    producer = Producer({"bootstrap.servers": settings.brokers, "acks": "all", "enable.idempotence": True})
    for index, (partition, key, value) in enumerate(messages):

        def acknowledged(error: Any, message: Any, index: int = index) -> None:
            assert error is None, error
            places[index] = (message.partition(), message.offset())

        producer.produce(table.topic, value, key, partition, on_delivery=acknowledged)
        producer.poll(0)
    assert producer.flush(60) == 0
    return [places[index] for index in range(len(messages))]


def rows(settings: Settings, name: str) -> pl.DataFrame:
    return Lake(settings.lake).scan(name).sort("record_partition", "record_offset").collect()


def places(settings: Settings, name: str) -> list[tuple[int, int]]:
    if not Lake(settings.lake).exists(name):
        return []
    return sorted(rows(settings, name).select("record_partition", "record_offset").iter_rows())


def offsets(settings: Settings, partition: int = 0) -> list[int]:
    return sorted(rows(settings, "predictions").filter(pl.col("partition") == partition)["offset"])


def land_once(settings: Settings, tables: Tables) -> LandingReport:
    return Landing(
        settings, "test", once=True, companions=[RecordsLanding(settings, tables=list(tables.values()))]
    ).run()


@pytest.fixture
def tables(make_topic: Callable[..., str]) -> dict[str, RecordTable]:
    """The tables, each from a topic of this test's own."""
    return {
        table.name: replace(table, topic=make_topic(partitions=PARTITIONS, message_timestamp_type="LogAppendTime"))
        for table in RECORD_TABLES
    }


@pytest.fixture
def platform(
    tmp_path: Path, broker: EmbeddedBroker, make_topic: Callable[..., str], settings_for: Callable[..., Settings]
) -> Settings:
    topic = make_topic(partitions=PARTITIONS, message_timestamp_type="LogAppendTime")
    settings = settings_for(
        tmp_path,
        KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers,
        KAFKA_TOPIC_SMOKE=topic,
        SMOKE_KAFKA_PARTITIONS=PARTITIONS,
        SMOKE_BATCH_SECONDS=0.05,
    )
    make_topic(partitions=1, name=settings.topic_dead_letters)
    return settings


def test_every_record_becomes_a_row_and_every_other_message_is_kept(platform: Settings, tables: Tables) -> None:
    """The audit trail: each thing that happened to an alarm is in the lake once, and no bad message hides another."""
    poison: list[Sent] = [(0, b"k", b"\xff\x00"), (1, None, None), (0, b"k", b'{"revision":1e99}'), (2, b"k", b"[]")]
    sent = {
        "alarms": [alarm(0), *poison, alarm(1, "d1"), alarm(2)],
        "alarm_commands": [*poison, command(0), command(1)],
        "predictions": [prediction(0, 4), *poison, prediction(4, 2, scored=False), prediction(0, 3, partition=1)],
        "devices": [device(0, site="north"), *poison, device(1, source="operator")],
    }
    acknowledged = {name: send(platform, tables[name], messages) for name, messages in sent.items()}
    land_once(platform, tables)

    bad = rows(platform, UNREADABLE)
    for name, messages in sent.items():
        expected = {
            place: message for place, message in zip(acknowledged[name], messages, strict=True) if message in poison
        }
        mine = bad.filter(pl.col("topic") == tables[name].topic)
        # A device entry without a value removes a device, and its key must say which.
        kept = {(row["record_partition"], row["record_offset"]): (row["key"], row["value"]) for row in mine.to_dicts()}
        assert kept == {place: message[1:] for place, message in expected.items()}
        good = {place for place in acknowledged[name] if place not in expected}
        assert set(places(platform, name)) == good
        if name != "predictions":
            assert len(places(platform, name)) == len(good)
    assert bad["fault"].str.len_chars().min() > 5

    first = rows(platform, "alarms").filter(pl.col("alarm_id") == "a0").row(0, named=True)
    assert (first["kind"], first["event"], first["state"], first["severity"]) == ("fire", "raised", "active", "high")
    assert first["at"] == datetime.fromtimestamp(NOW, UTC)
    assert (first["rules"], first["score"]) == (["pm2_5_high", "model"], 0.1 + 0.2)
    assert json.loads(first["sensor_values"]) == {"pm2_5": 12.5}
    assert first["verdict"] is None
    assert offsets(platform) == [0, 1, 2, 3, 4, 5]
    assert offsets(platform, 1) == [0, 1, 2]
    scored = rows(platform, "predictions").filter(pl.col("partition") == 0).sort("offset")
    assert scored["score"].to_list() == [0.0, 1e-6, 2e-6, 3e-6, None, None]
    assert scored["level"].to_list() == [0, 1, 2, 3, 4, 0]
    assert set(scored["hits"]) == {2**31}
    entries = latest_devices(Lake(platform.lake).scan("devices")).collect()
    assert dict(entries.select("device_id", "site").iter_rows()) == {"d0": "north", "d1": ""}

    before = {name: Lake(platform.lake).version(name) for name in (*sent, UNREADABLE)}
    land_once(platform, tables)
    assert {name: Lake(platform.lake).version(name) for name in before} == before


WRITER = """
import json, sys, time
from dataclasses import replace
from smoke_platform.domain.lake_records import RECORD_TABLES
from smoke_platform.settings import load_settings
from smoke_platform.streaming import records_landing
from smoke_platform.streaming.landing import LandedTable, Landing

commit = LandedTable.commit


def slow(*arguments, **options):
    # Else everything may have landed before the test has looked once.
    time.sleep(0.05)
    return commit(*arguments, **options)


LandedTable.commit = slow
topics = json.loads(sys.argv[1])
records_landing.MESSAGES_AT_ONCE = records_landing.MOST_MESSAGES = 40
settings = load_settings()
tables = [replace(table, topic=topics[table.name]) for table in RECORD_TABLES]
Landing(settings, "writer", companions=[records_landing.RecordsLanding(settings, tables=tables)]).run()
"""


def test_kill_at_any_moment_loses_and_doubles_nothing(platform: Settings, tables: Tables) -> None:
    """kill -9 of the run, again and again, while it keeps bad messages, writes files and commits."""
    rng = random.Random(SEED)  # noqa: S311 - reproducible on purpose
    sent: dict[str, list[Sent]] = {
        "alarms": [alarm(number, f"d{number % 9}") for number in range(1500)],
        "alarm_commands": [command(number) for number in range(200)],
        # A detector that restarts publishes again what it had published since its last snapshot.
        "predictions": [prediction(first, 20, partition) for partition in range(2) for first in [*range(0, 6000, 20)]],
        "devices": [device(number) for number in range(300)],
    }
    sent["predictions"][100:100] = sent["predictions"][60:100]
    acknowledged: dict[str, list[tuple[int, int]]] = {}
    bad: dict[str, set[tuple[int, int]]] = {}
    for name, messages in sent.items():
        for _ in range(20):
            messages.insert(rng.randrange(len(messages)), (rng.randrange(PARTITIONS), b"x", b"poison"))
        acknowledged[name] = send(platform, tables[name], messages)
        bad[name] = {
            place for place, message in zip(acknowledged[name], messages, strict=True) if message[2] == b"poison"
        }
    standings = RecordsProbe(platform, list(tables.values()))

    def waiting() -> int:
        return sum(sum(each.lag.values()) for each in standings.standings().values())

    topics = json.dumps({name: table.topic for name, table in tables.items()})
    cut_short = 0
    for _ in range(KILLS):
        before = waiting()
        writer = subprocess.Popen([sys.executable, "-c", WRITER, topics], env={**os.environ, **platform.environment()})
        try:
            goal = max(0, before - rng.choice([1, 100, 400]))
            wait_for(lambda goal=goal: waiting() <= goal)
            time.sleep(rng.random() * 0.1)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        cut_short += 0 < waiting() < before
    assert cut_short > 0
    land_once(platform, tables)
    for name in sent:
        kept = rows(platform, UNREADABLE).filter(pl.col("topic") == tables[name].topic)
        assert sorted(kept.select("record_partition", "record_offset").iter_rows()) == sorted(bad[name])
        if name != "predictions":
            assert places(platform, name) == sorted(set(acknowledged[name]) - bad[name])
    assert [offsets(platform, partition) for partition in range(2)] == [list(range(6000))] * 2


def test_a_crash_between_the_two_commits_keeps_a_bad_message_once(
    platform: Settings, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad messages are committed first, in a table of their own; the second try must know."""
    commit = LandedTable.commit

    def fail(self: LandedTable, *arguments: Any, **options: Any) -> int:
        if self.shape.name == "alarms":
            raise OSError("the disk is full")
        return commit(self, *arguments, **options)

    send(platform, tables["alarms"], [alarm(0), (0, b"k", b"poison"), alarm(1)])
    monkeypatch.setattr(LandedTable, "commit", fail)
    with pytest.raises(OSError, match="the disk is full"):
        land_once(platform, tables)
    assert not probe(lease_path(platform)).held
    assert (rows(platform, UNREADABLE).height, places(platform, "alarms")) == (1, [])
    monkeypatch.undo()
    send(platform, tables["alarms"], [(0, b"k", b"more poison")])
    land_once(platform, tables)
    assert rows(platform, UNREADABLE)["value"].to_list() == [b"poison", b"more poison"]
    assert len(places(platform, "alarms")) == 2


def test_one_prediction_a_reading_whoever_publishes_it_and_when(platform: Settings, tables: Tables) -> None:
    """A restarted detector repeats itself, and a paused one may come back and publish ahead of its successor."""
    table = tables["predictions"]
    send(platform, table, [prediction(0, 10), prediction(5, 10), prediction(15, 5)])
    land_once(platform, tables)
    assert offsets(platform) == list(range(20))
    # The paused one comes back with 30 to 39, which it took before its successor has come that far.
    send(platform, table, [prediction(10, 12), prediction(30, 10), prediction(22, 8), prediction(30, 12)])
    land_once(platform, tables)
    assert offsets(platform) == list(range(42))
    # The same in batches of their own, and of another topic of readings.
    for first, count in ((50, 10), (42, 6), (45, 7), (0, 60)):
        send(platform, table, [prediction(first, count), prediction(first, count, topic_id="made-anew")])
        land_once(platform, tables)
    known = rows(platform, "predictions")
    assert sorted(known.filter(pl.col("topic_id") == "readings-id")["offset"]) == list(range(60))
    assert sorted(known.filter(pl.col("topic_id") == "made-anew")["offset"]) == list(range(60))
    assert known["score"].to_list() == [offset / 1e6 for offset in known["offset"]]


def test_a_far_offset_hides_no_prediction(platform: Settings, tables: Tables) -> None:
    """One record with a nonsensical offset must not make landing take all later ones for repeats."""
    send(platform, tables["predictions"], [prediction(10**15, 1)])
    land_once(platform, tables)
    send(platform, tables["predictions"], [prediction(0, 5)])
    land_once(platform, tables)
    assert offsets(platform) == [0, 1, 2, 3, 4, 10**15]


def test_topics_made_anew_are_landed_from_their_start(
    platform: Settings, tables: Tables, make_topic: Callable[..., str]
) -> None:
    """Offsets begin at 0 again: by number alone the new alarms would be taken for landed ones."""
    table = tables["alarms"]
    send(platform, table, [alarm(number) for number in range(30)])
    companion = RecordsLanding(platform, tables=[table])
    try:
        wait_for(lambda: companion.round() and len(places(platform, "alarms")) == 30)
        admin = AdminClient({"bootstrap.servers": platform.brokers})
        admin.delete_topics([table.topic])[table.topic].result(30)
        wait_for(lambda: table.topic not in admin.list_topics(timeout=10).topics)
        make_topic(partitions=PARTITIONS, name=table.topic, message_timestamp_type="LogAppendTime")
        # More than before, so that the old position points into the middle of the new log.
        send(platform, table, [alarm(number) for number in range(100, 180)])
        wait_for(lambda: companion.round() and len(places(platform, "alarms")) >= 110)
    finally:
        companion.close()
    known = rows(platform, "alarms")
    assert sorted(known["revision"]) == [*range(30), *range(100, 180)]
    assert known["record_topic_id"].n_unique() == 2


def test_nothing_is_committed_when_the_topic_is_another_one_by_then(
    platform: Settings, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client may go on reading in the topic's successor without a word; its offsets mean other messages."""
    table = tables["alarms"]
    companion = RecordsLanding(platform, tables=[table])
    try:
        assert companion.round()
        (stream,) = companion._streams
        facts = stream._watcher.facts()
        assert facts is not None
        send(platform, table, [alarm(0)])
        monkeypatch.setattr(stream._watcher, "facts", lambda *_: replace(facts, topic_id="another"))
        wait_for(lambda: stream.land() is None and stream._consumer is None)
        monkeypatch.undo()
        assert places(platform, "alarms") == []
        wait_for(lambda: companion.round() and len(places(platform, "alarms")) == 1)
    finally:
        companion.close()


def test_lost_records_stop_the_run_until_they_are_accepted(
    platform: Settings, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alarms that Kafka deleted before they were landed must never be skipped in silence."""
    everything = list(tables.values())
    monkeypatch.setattr(orchestration, "RecordsProbe", lambda settings: RecordsProbe(settings, everything))
    number = alarm(0)[0]
    send(platform, tables["alarms"], [alarm(0)] * 5)
    land_once(platform, tables)
    send(platform, tables["alarms"], [alarm(1)] * 10)
    admin = AdminClient({"bootstrap.servers": platform.brokers})
    (deleted,) = admin.delete_records([TopicPartition(tables["alarms"].topic, number, 8)]).values()
    deleted.result(30)
    with pytest.raises(LostReadings, match=f"alarm records were deleted .* partition {number}, offsets 5 to 7"):
        land_once(platform, tables)
    with dg.DagsterInstance.ephemeral() as instance:
        assert "lake/alarms: alarm records were deleted" in orchestration.Supervisor(platform).step(instance).reason
        (given_up,) = records_landing.accept_loss(platform, everything)["alarms"]
        assert (given_up.first, given_up.end) == (5, 8)
        assert orchestration.Supervisor(platform).step(instance).kind is orchestration.Kind.REQUEST
    land_once(platform, tables)
    assert [offset for _, offset in places(platform, "alarms")] == [*range(5), *range(8, 15)]


def test_an_alarm_alone_starts_a_run_which_waits_for_it(
    platform: Settings, tables: Tables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An operator's command comes while no reading does; it must land all the same, and be seen in Dagster."""
    everything = list(tables.values())
    monkeypatch.setattr(orchestration, "RecordsProbe", lambda settings: RecordsProbe(settings, everything))
    monkeypatch.setattr(orchestration, "RecordsLanding", lambda settings: RecordsLanding(settings, tables=everything))
    settings = platform.model_copy(update={"stream_idle_seconds": 0.01})
    supervisor = orchestration.Supervisor(settings)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        assert supervisor.step(instance).reason == "nothing to land"
        send(settings, tables["alarm_commands"], [command(0), (0, b"", b"poison")])
        supervisor = orchestration.Supervisor(settings)
        assert supervisor.step(instance).kind is orchestration.Kind.REQUEST
        result = (
            orchestration.definitions(settings).resolve_job_def(names.JOB_LANDING).execute_in_process(instance=instance)
        )
        assert result.success
        assert len(places(settings, "alarm_commands")) == 1
        (shown,) = [
            event.step_materialization_data.materialization
            for event in result.all_events
            if event.is_step_materialization
        ]
        assert shown.asset_key == names.RECORDS["alarm_commands"]
        values = {name: entry.value for name, entry in shown.metadata.items()}
        assert (values["rows"], values["unreadable"]) == (1, 1)
        assert orchestration.Supervisor(settings).step(instance).reason == "nothing to land"


def test_a_fault_of_the_records_is_the_runs_fault(platform: Settings, tables: Tables) -> None:
    """A run that lands readings while alarms stand still would look healthy for days."""
    companion = RecordsLanding(platform, tables=list(tables.values()), every_s=0.05)
    # Another writer has gone on; it is noticed at the next commit.
    send(platform, tables["alarms"], [alarm(0)])
    other = RecordsLanding(platform, tables=[tables["alarms"]])
    companion._streams[0]._open()
    # A new consumer may need more than one round before it is given anything.
    wait_for(lambda: other.round() and len(places(platform, "alarms")) == 1)
    with pytest.raises(Exception, match="another writer has landed partition"):
        Landing(platform, "test", companions=[companion]).run()
    assert not probe(lease_path(platform)).held
    assert len(places(platform, "alarms")) == 1


class Busy:
    """A companion that has work until it was asked some times."""

    def __init__(self) -> None:
        self.asked = 0
        self.log: list[str] = []

    def start(self, facts: TopicFacts) -> None:
        self.log.append("start")

    def landed(self, batch: LandedBatch) -> None: ...

    def check(self) -> None: ...

    @property
    def quiet(self) -> bool:
        self.asked += 1
        return self.asked > 10

    @property
    def stuck(self) -> bool:
        return False

    def stop(self, *, finish: bool = False) -> None:
        self.log.append("finish" if finish else "stop")

    def ended(self, timeout_s: float) -> bool:
        return True


def test_a_run_for_want_of_readings_ends_only_when_alarms_have_landed(platform: Settings) -> None:
    """A long backlog of predictions would otherwise need a new run every minute."""
    busy = Busy()
    report = Landing(platform.model_copy(update={"stream_idle_seconds": 0.01}), "test", companions=[busy]).run()
    assert (report.ended, busy.asked) == ("idle", 11)
    assert busy.log[:2] == ["start", "stop"]


def test_old_predictions_leave_the_lake_and_others_stay(platform: Settings, tables: Tables) -> None:
    """A prediction a reading fills any disk; alarms are kept for ever."""
    send(platform, tables["predictions"], [prediction(0, 5)])
    send(platform, tables["alarms"], [alarm(0)])
    land_once(platform, tables)
    lake = Lake(platform.lake)
    today = datetime.now(UTC).date()
    for name, age in (("predictions", 90), ("predictions", 91), ("alarms", 4000)):
        old = rows(platform, name).head(1).with_columns(pl.lit(today - timedelta(days=age), pl.Date).alias(DAY))
        lake.append(name, old.with_columns(record_offset=pl.lit(-age, pl.Int64)), [DAY])
    send(platform, tables["predictions"], [prediction(5, 1)])
    send(platform, tables["alarms"], [alarm(1)])
    land_once(platform, tables)
    ages = {(today - day).days for (day,) in rows(platform, "predictions").select(DAY).iter_rows()}
    assert 91 not in ages
    assert 90 in ages
    assert min(row[0] for row in rows(platform, "alarms").select(DAY).iter_rows()) < date(2026, 1, 1)
    assert [row for row in offsets(platform) if row > 0] == [1, 2, 3, 4, 5]


def test_the_broker_dies_and_comes_back(
    tmp_path: Path, free_port: Callable[[], int], cache_dir: Path, settings_for: Callable[..., Settings]
) -> None:
    """A broker's kill -9 interrupts the landing of alarms, and no hand is needed to go on; so does the command."""
    own = EmbeddedBroker(tmp_path / "broker", free_port(), free_port(), cache_dir)
    own.prepare()
    own.start()
    settings = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=own.bootstrap_servers)
    table = next(table for table in RECORD_TABLES if table.topic == ALARMS)
    try:
        ensure_topics(settings)
        companion = RecordsLanding(settings, every_s=0.05)
        companion.start(TopicFacts("cluster", "readings-id", (0,)))
        try:
            send(settings, table, [alarm(0)])
            wait_for(lambda: len(places(settings, "alarms")) == 1)
            own.kill()
            own.start()
            send(settings, table, [alarm(1)])
            wait_for(lambda: len(places(settings, "alarms")) == 2, 60)
            companion.check()
        finally:
            companion.stop()
            assert companion.ended(60)
        send(settings, table, [alarm(2)])
        environment = settings.environment()
        shown = CliRunner().invoke(root, ["land", "status", "--json"], env=environment)
        assert json.loads(shown.stdout)["records"]["alarms"] == {"lag": 1, "fault": None}
        landed = CliRunner().invoke(root, ["land", "run", "--once", "--records", "--json"], env=environment)
        assert json.loads(landed.stdout)["records"]["alarms"]["rows"] == 1
        assert Lake(settings.lake).exists(READINGS)
    finally:
        own.stop()
