"""Engine ``spark`` with a real Spark and a real broker: the same rows as engine ``local``, whatever dies or changes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import psutil
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from smoke_platform.adapters.kafka import Cluster
from smoke_platform.adapters.kafka_bulk import TopicWatcher
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.lease import LeaseHeld, kill_holder, probe
from smoke_platform.adapters.scorer import OnnxScorer, read_champion
from smoke_platform.adapters.spark import close_session, open_session
from smoke_platform.adapters.spark_scratch import Scratch
from smoke_platform.adapters.windows import WINDOWS
from smoke_platform.cli.main import root
from smoke_platform.domain import features, rules
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.lake_records import RECORD_TABLES
from smoke_platform.domain.landing import REPLAY_HEADER
from smoke_platform.domain.readings import Reading
from smoke_platform.domain.recordings import RecordingFile
from smoke_platform.domain.simulator import simulate
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.orchestration import landing as orchestration
from smoke_platform.orchestration import names
from smoke_platform.settings import Settings
from smoke_platform.streaming import spark_scores
from smoke_platform.streaming.landing import (
    Fenced,
    LandedTable,
    Landing,
    LandingReport,
    LostReadings,
    StandingProbe,
    accept_loss,
    lease_path,
)
from smoke_platform.streaming.producer import encode_readings
from smoke_platform.streaming.records_landing import PREDICTIONS_TABLE, readings_mark, record_shape
from smoke_platform.streaming.spark_landing import SparkLanding
from smoke_platform.streaming.spark_windows import SparkWindows
from smoke_platform.streaming.windows import WindowEngine, WindowTally
from smoke_platform_tests import window_oracle as oracle
from smoke_platform_tests.scorer_models import logistic_model, publish
from smoke_platform_tests.spark_parts import START, check, landed, letters, produce, register, rough_stream, windows
from smoke_platform_tests.waiting import wait_for

pytestmark = pytest.mark.integration

PARTITIONS = 3
#: `make prove` runs more of them, with other seeds.
KILLS = 3
SEED = int(os.environ.get("PROVE_SEED", "1"))
#: `make prove SUITE=spark` runs this file on a cluster.
MASTER = os.environ.get("PROVE_SPARK_MASTER", "local[2]")


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]) -> Iterator[Any]:
    """One session for all tests of this file: it takes ten seconds to start."""
    session = open_session(settings_for(tmp_path_factory.mktemp("spark"), **SPARK), "tests")
    yield session
    close_session(session)


SPARK = {
    "SPARK_MASTER": MASTER,
    "SPARK_CORES": 2,
    "SPARK_UI_PORT": 0,
    "SPARK_BATCH_SECONDS": 0.1,
    "SMOKE_WINDOW_SECONDS": 0.05,
}


@pytest.fixture
def platform(
    tmp_path: Path, broker: EmbeddedBroker, make_topic: Callable[..., str], settings_for: Callable[..., Settings]
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
        SPARK_BATCH_ROWS=4000,
        **SPARK,
    )
    make_topic(partitions=2, name=settings.topic_dead_letters, max_message_bytes=16 * 1024 * 1024)
    return settings


def on_spark(settings: Settings, spark: Any, **arguments: Any) -> LandingReport:
    """Lands what is there on Spark, with windows."""
    return SparkLanding(settings, "test", once=True, spark=spark, **arguments).run()


def locally(settings: Settings) -> LandingReport:
    """The same on engine ``local``."""
    return Landing(settings, "test", once=True, companions=[WindowEngine(settings)]).run()


def test_the_same_rows_as_engine_local(platform: Settings, spark: Any, tmp_path: Path) -> None:
    """Whoever moves to Spark must find the same readings, windows and dead letters as before."""
    other = platform.model_copy(update={"home": tmp_path / "other"})
    # One device reports every ten seconds, one is taken away before most of its windows are over.
    for each in (platform, other):
        register(each, "a-slow-one", 10.0)
    rare = [Reading("a-slow-one", START + timedelta(seconds=at), {"pm2_5": at / 7}) for at in range(0, 700, 10)]
    gone = [Reading("gone", START + timedelta(seconds=at), {"raw_h2": at / 7}) for at in range(90)]
    produce(platform, [*rough_stream(SEED), *((one.device_id, one.to_json()) for one in (*rare, *gone))])
    intervals_s = {"a-slow-one": 10.0}
    report = on_spark(platform, spark)
    check(platform, intervals_s=intervals_s)
    rejected = letters(platform)
    twin = locally(other)
    check(other, intervals_s=intervals_s)
    assert landed(platform).equals(landed(other))
    assert windows(platform).equals(windows(other))
    assert windows(platform)["device_id"].to_list().count("gone") == 1
    assert letters(platform) == rejected
    assert report.total().late > 0
    assert (report.total(), report.reasons, report.positions) == (twin.total(), twin.reasons, twin.positions)
    assert (report.ended, report.commits > 1) == ("caught up", True)

    def later() -> datetime:
        return datetime.now(UTC) + timedelta(minutes=11)

    landing = SparkLanding(platform, "test", once=True, spark=spark)
    landing._windows = SparkWindows(platform, now=later)
    landing.run()
    Landing(other, "test", once=True, companions=[WindowEngine(other, now=later)]).run()
    for each in (platform, other):
        check(each, silent=True, intervals_s=intervals_s)
    assert windows(platform).equals(windows(other))
    assert windows(platform)["device_id"].to_list().count("gone") == 6


def test_both_engines_and_the_definition_agree_on_the_real_recordings(
    platform: Settings, spark: Any, tmp_path: Path, needs_data: Path
) -> None:
    """Every window of the public recordings, from a real broker: or it all holds for simulated days only."""
    settings = platform.model_copy(update={"spark_batch_rows": 20_000, "batch_rows": 5_000})
    other = settings.model_copy(update={"home": tmp_path / "other"})
    recording = RecordingFile(needs_data / "kaggle_smoke" / "smoke_detection_iot.csv", on_bad_row=pytest.fail)
    keys, values = encode_readings(pl.concat(list(recording.chunks())))
    produce(settings, list(zip(keys, values, strict=True)))
    on_spark(settings, spark)
    locally(other)
    for each in (settings, other):
        check(each)
    assert landed(settings).height == len(values)
    found = windows(settings)
    assert found.equals(windows(other))
    in_time = landed(settings).filter(~pl.col("late"))
    over = {(device, start) for device, start in found.select("device_id", "window_start").iter_rows()}
    expected = {key: row for key, row in oracle.windows(in_time.to_dicts()).items() if key in over}
    assert len(expected) == found.height > 1000
    assert oracle.differences(found.iter_rows(named=True), expected) == []


def test_it_tells_how_far_the_windows_are_and_which_it_corrected(
    platform: Settings, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster would show 0 behind and 0 corrections for ever, whatever stands still and whatever comes late."""

    def land_seconds(*seconds: int) -> WindowTally:
        readings = [Reading("d", START + timedelta(seconds=second), {"pm2_5": 1.0}) for second in seconds]
        produce(platform, [("d", reading.to_json()) for reading in readings])
        landing = SparkLanding(platform, "test", once=True, spark=spark)
        with suppress(ArithmeticError):
            landing.run()
        return landing.drain_windows()

    told = land_seconds(*range(0, 400, 5))
    # Windows that ended at 1, ... 6 minutes.
    assert (told.windows, told.corrections, told.behind) == (6, 0, 0)
    # Three of those hold the reading that comes late; two new ones end meanwhile.
    told = land_seconds(201, *range(400, 500, 5))
    assert (told.windows, told.corrections, told.behind) == (5, 3, 0)
    with monkeypatch.context() as patch:
        patch.setattr(SparkWindows, "_computed", lambda *_: 1 / 0)
        told = land_seconds(*range(500, 600, 5))
        assert (told.windows, told.behind, told.fault) == (0, 20, "division by zero")
    told = land_seconds(*range(600, 610, 5))
    assert (told.windows, told.behind) == (2, 0)


def test_the_engines_take_turns(platform: Settings, spark: Any) -> None:
    """An engine is changed while readings come in; nothing may be lost or doubled, no window computed in part."""
    stream = rough_stream(SEED + 1)
    sending = threading.Thread(
        target=lambda: [produce(platform, stream[low : low + 400]) for low in range(0, len(stream), 400)]
    )
    sending.start()
    try:
        for engine in (locally, lambda settings: on_spark(settings, spark), locally):
            before = landed(platform).height
            engine(platform)
            wait_for(
                lambda before=before: not sending.is_alive() or sum(StandingProbe(platform).standing().lag.values()) > 0
            )
            assert landed(platform).height >= before
    finally:
        sending.join()
    on_spark(platform, spark)
    locally(platform)
    check(platform)


def test_a_checkpoint_may_vanish_at_any_time(platform: Settings, spark: Any) -> None:
    """What Spark believes about its progress lies on a scratch disk; only the table may decide."""
    stream = rough_stream(SEED + 2, seconds=400)
    produce(platform, stream[: len(stream) // 2])

    def remove(_progress: Any) -> None:
        for folder in (platform.home / "spark").glob("checkpoint-*"):
            shutil.rmtree(folder, ignore_errors=True)

    settings = platform.model_copy(update={"spark_batch_rows": 300})
    try:
        SparkLanding(settings, "test", once=True, spark=spark, on_commit=remove).run()
    except SmokeError:
        assert landed(platform).height > 0  # it noticed; whatever it had committed counts
    produce(platform, stream[len(stream) // 2 :])
    on_spark(platform, spark)
    check(platform)


def test_a_stale_position_is_refused(platform: Settings, spark: Any) -> None:
    """A driver that was thought dead and comes back must not double what its successor landed."""
    produce(platform, rough_stream(SEED, devices=1, seconds=60))
    landing = SparkLanding(platform, "first", once=True, spark=spark)
    commit = LandedTable.commit_files
    overtaken: list[bool] = []

    def late(table: LandedTable, *arguments: Any, **named: Any) -> int:
        if table.shape.name == READINGS and not overtaken:
            # Meanwhile another one, that does not ask for the lease, lands the same messages.
            overtaken.append(True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("smoke_platform.streaming.landing.lease_path", lambda _: platform.home / "other.lease")
                locally(platform)
        return commit(table, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LandedTable, "commit_files", late)
        with pytest.raises(Fenced, match="another writer has landed"):
            landing.run()
    assert overtaken
    check(platform)


def test_nothing_is_committed_past_a_letter_that_was_not_acknowledged(platform: Settings, spark: Any) -> None:
    """Between commit and letter a crash would lose the reject for good, so the letter comes first, here too."""
    with Cluster(platform.brokers) as cluster:
        cluster.alter(platform.topic_dead_letters, {"max.message.bytes": "100"})
        produce(platform, [("a", b"no reading" * 20), *rough_stream(SEED, devices=1, seconds=30)])
        with pytest.raises(SmokeError, match="dead letters were not acknowledged"):
            on_spark(platform, spark)
        assert landed(platform).is_empty()
        assert not probe(lease_path(platform)).held
        cluster.alter(platform.topic_dead_letters, {"max.message.bytes": str(16 * 1024 * 1024)})
    on_spark(platform, spark)
    check(platform)


def test_a_lost_range_stops_it_with_the_same_words(platform: Settings, spark: Any) -> None:
    """Readings that Kafka deleted before they were landed must never be skipped in silence."""
    readings = [(key, value) for key, value in rough_stream(SEED, devices=1, seconds=200) if value]
    produce(platform, readings[:50], partition=0)
    on_spark(platform, spark)
    produce(platform, readings[50:150], partition=0)
    admin = AdminClient({"bootstrap.servers": platform.brokers})

    def delete_before(offset: int) -> None:
        (deleted,) = admin.delete_records([TopicPartition(platform.topic_readings, 0, offset)]).values()
        deleted.result(30)

    delete_before(70)
    with pytest.raises(LostReadings, match="partition 0, offsets 50 to 69"):
        on_spark(platform, spark)

    # And where they vanish after the run has looked.
    accept_loss(platform)
    started = SparkLanding._started
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparkLanding, "_started", lambda landing: (delete_before(150), started(landing))[1])
        with pytest.raises(LostReadings, match="partition 0, offsets 70 to 149"):
            on_spark(platform, spark)


def test_offsets_without_messages_are_passed(platform: Settings, spark: Any) -> None:
    """Transactions leave offsets that hold nothing; a lag that never ends would start run after run."""
    producer = Producer({"bootstrap.servers": platform.brokers, "transactional.id": f"t-{platform.topic_readings}"})
    producer.init_transactions(30)
    values = [value for _, value in rough_stream(SEED, devices=1, seconds=40) if value][:30]
    for first, end in ((0, producer.commit_transaction), (10, producer.abort_transaction)):
        producer.begin_transaction()
        for value in values[first : first + 10]:
            producer.produce(platform.topic_readings, value, partition=0)
        producer.flush(30)
        end(30)
    # Commit and abort return before the broker has written their markers, two beside the twenty messages.
    watcher = TopicWatcher(platform.brokers, platform.topic_readings)
    wait_for(lambda: watcher.watermarks([0])[0][1] == 22)
    report = on_spark(platform, spark)
    assert report.positions[0] == 22
    assert sum(StandingProbe(platform).standing().lag.values()) == 0
    assert on_spark(platform, spark).commits == 0


def test_a_letter_that_is_replayed_into_two_partitions_lands_once(platform: Settings, spark: Any) -> None:
    """Two tasks see one replay each and know nothing of one another."""
    produce(platform, [("a", b"broken")], partition=0)
    report = on_spark(platform, spark)
    ((_, found, _),) = letters(platform)
    identity = b"/".join(found[name] for name in ("topic_id", "partition", "offset"))
    mended = next(
        message for message in rough_stream(SEED, devices=1, seconds=30) if message[1] and len(message[1]) > 50
    )
    for partition in (2, 1, 1):
        produce(platform, [mended], headers=[(REPLAY_HEADER, identity)], partition=partition)
    report = on_spark(platform, spark)
    assert report.total().repeats == 2
    assert landed(platform).select("partition", "offset", "replay_of").rows() == [(1, 0, identity.decode())]
    produce(platform, [mended], headers=[(REPLAY_HEADER, identity)], partition=0)
    assert on_spark(platform, spark).total().repeats == 1


def test_one_run_at_a_time_whatever_the_engine(platform: Settings, spark: Any) -> None:
    """Two engines at work at once would only waste each other's time; the second is told who is at work."""
    stop = threading.Event()
    running = SparkLanding(platform, "on-spark", stop=stop, spark=spark, windows=False)
    ended: list[LandingReport] = []
    thread = threading.Thread(target=lambda: ended.append(running.run()))
    produce(platform, rough_stream(SEED, devices=1, seconds=30))
    thread.start()
    try:
        wait_for(lambda: landed(platform).height > 0)
        with pytest.raises(LeaseHeld, match="on-spark"):
            locally(platform)
    finally:
        stop.set()
        thread.join(180)
    assert [report.ended for report in ended] == ["stopped"]
    assert not probe(lease_path(platform)).held


DRIVER = """
import sys
from smoke_platform.cli.main import main
sys.argv = ["smoke", "spark", "run", "--once"]
main()
"""


def start_driver(settings: Settings) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **settings.environment()}
    return subprocess.Popen([sys.executable, "-c", DRIVER], env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.timeout(900)  # four starts of a driver: ten seconds each, or minutes where others have the processors
def test_kill_at_any_moment_loses_and_doubles_nothing(platform: Settings, spark: Any) -> None:
    """kill -9 of the driver while executors write files, letters are sent, readings and windows are committed."""
    rng = random.Random(SEED)  # noqa: S311 - reproducible on purpose
    produce(platform, rough_stream(SEED + 3, seconds=800))
    standing_of = StandingProbe(platform)
    waiting = [sum(standing_of.standing().lag.values())]
    for number in range(KILLS):
        driver = start_driver(platform.model_copy(update={"spark_batch_rows": 800}))
        try:
            # The first dies before its first commit, the others some commits later.
            target = waiting[-1] - (0 if number == 0 else rng.randrange(1, 1500))
            wait_for(lambda: probe(lease_path(platform)).held, 300)
            wait_for(lambda goal=target: sum(standing_of.standing().lag.values()) <= goal, 300)
            time.sleep(rng.random() * 0.8)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        waiting.append(sum(standing_of.standing().lag.values()))
    assert waiting[-1] < waiting[0]
    on_spark(platform, spark)
    check(platform)
    assert not list((platform.home / "spark").glob("checkpoint-*")), "what a killed run left is still there"
    scratch = platform.home / "spark" / "tmp"
    # Each has removed what the one before it left.
    assert len(list(scratch.glob("run-*"))) == 1
    Scratch(scratch).remove()
    assert not list(scratch.glob("run-*"))


def place_of(rows: pl.DataFrame) -> list[tuple[int, int]]:
    return sorted(rows.select("partition", "offset").iter_rows())


def scored_by_hand(readings: pl.DataFrame, day: date, scorer: OnnxScorer) -> dict[tuple[int, int], tuple[Any, ...]]:
    """(score, level, hits) of a day's readings by the detector's kernels, device by device."""
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    taken = readings.filter(pl.col("event_time") >= begin - timedelta(minutes=15)).sort("offset")
    found = {}
    for rows in taken.partition_by("partition", "device_id"):
        times, sensors = features.event_seconds(rows), features.sensor_matrix(rows)
        seen = features.one_device_features(times, sensors)
        scores = scorer.score(seen)
        slots = np.zeros(rows.height, dtype=np.int64)
        verdicts = rules.evaluate(rules.RuleState(1), slots, times, sensors, seen, scores, scorer.threshold)
        answers = zip(scores.tolist(), verdicts.fire_level.tolist(), verdicts.hits.tolist(), strict=True)
        for place, moment, answer in zip(place_in_order(rows), rows["event_time"], answers, strict=True):
            if moment >= begin:
                found[place] = answer
    return found


def place_in_order(rows: pl.DataFrame) -> list[tuple[int, int]]:
    return list(rows.select("partition", "offset").iter_rows())


def test_scores_are_those_of_the_kernels_and_the_first_one_stays(
    platform: Settings, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A month without a detector is scored afterwards; what the detector has said meanwhile must stand."""
    day = date(2026, 11, 2)
    # From before the quarter of an hour that warms the features up, so that something must be left out.
    frame = simulate(2, datetime(2026, 11, 1, 23, 42, tzinfo=UTC), 1500, SEED, missing_share=0.05)
    keys, values = encode_readings(frame.sort("event_time", "device_id"))
    produce(platform, list(zip(keys, values, strict=True)))
    SparkLanding(platform, "test", once=True, spark=spark, windows=False).run()
    readings = landed(platform)
    of_day = readings.filter(pl.col("event_date") == day)
    publish(platform.models_dir, 7, logistic_model({"pm2_5": 0.05, "temperature_c_rise": 1.0}, -0.5))
    scorer = OnnxScorer.load(platform.models_dir, read_champion(platform.models_dir))
    expected = scored_by_hand(readings, day, scorer)
    facts = TopicWatcher(platform.brokers, platform.topic_readings).facts()
    assert facts is not None
    table = next(table for table in RECORD_TABLES if table.name == PREDICTIONS_TABLE)

    def detector_says(place: tuple[int, int]) -> None:
        """One prediction as landing commits it."""
        row = {**dict.fromkeys(table.schema), "topic_id": facts.topic_id, "partition": place[0], "offset": place[1]}
        row.update({"append_date": day, "model_version": "detector", "score": 0.25, "level": 0, "hits": 0})
        rows = pl.DataFrame([row], schema=table.schema).to_arrow(compat_level=pl.CompatLevel.oldest())
        mark = readings_mark(facts.cluster_id, facts.topic_id, place[0])
        landing = LandedTable(Lake(platform.lake), facts, record_shape(table))
        landing.commit(rows, {}, marks={mark: max(landing.mark(mark), place[1] + 1)})

    before, meanwhile = place_of(of_day)[5], place_of(of_day)[-5]
    detector_says(before)
    scored = spark_scores._Scoring._scored
    times: list[int] = []

    def overtaken(job: Any, *arguments: Any) -> Any:
        parts = scored(job, *arguments)
        times.append(len(times))
        if len(times) == 1:
            detector_says(meanwhile)
        return parts

    monkeypatch.setattr(spark_scores._Scoring, "_scored", overtaken)
    report = spark_scores.score_days(platform, spark, day, day)
    rows = Lake(platform.lake).scan(PREDICTIONS_TABLE).collect()
    assert len(times) == 2
    assert place_of(rows) == place_of(of_day)
    assert report.days == {day.isoformat(): of_day.height - 2}
    mine = rows.filter(pl.col("model_version") == "7")
    answers = mine.select("score", "level", "hits").iter_rows()
    found = dict(zip(place_in_order(mine), answers, strict=True))
    assert found == {place: answer for place, answer in expected.items() if place not in (before, meanwhile)}
    assert set(mine["feature_version"]) == {features.FEATURE_SET_VERSION}
    assert spark_scores.score_days(platform, spark, day, day).rows == 0


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as ephemeral:
        yield ephemeral


@pytest.mark.timeout(900)  # two starts of a driver
def test_dagster_starts_it_shows_what_it_does_and_starts_it_again(
    platform: Settings, instance: dg.DagsterInstance
) -> None:
    """An operator sees the same assets and checks with either engine, and a dead driver is replaced without a hand."""
    settings = platform.model_copy(update={"engine": "spark", "stream_idle_seconds": 4.0})
    job = orchestration.definitions(settings).resolve_job_def(names.JOB_LANDING)
    supervisor = orchestration.Supervisor(settings)
    produce(settings, rough_stream(SEED + 4, devices=3, seconds=700))
    assert supervisor.step(instance).kind is orchestration.Kind.REQUEST

    def kill() -> None:
        # A driver starts in ten seconds, or in a minute where others have the processors.
        wait_for(lambda: (found := probe(lease_path(settings))).held and found.beat is not None, 300)
        beat = probe(lease_path(settings)).beat
        assert beat is not None
        assert beat.pid != os.getpid()
        kill_holder(beat)

    killer = threading.Thread(target=kill)
    killer.start()
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    killer.join()
    assert not result.success
    assert "ended with code -9" in str(result.failure_data_for_node("land_readings"))
    assert supervisor.step(instance).kind is orchestration.Kind.REQUEST

    # It may have landed something before it died.
    before = (landed(settings).height, windows(settings).height) if Lake(settings.lake).exists(WINDOWS) else (0, 0)
    result = job.execute_in_process(instance=instance)
    assert result.success
    check(settings)
    shown: dict[Any, int] = {}
    for event in result.all_events:
        if event.is_step_materialization:
            found = event.step_materialization_data.materialization
            shown[found.asset_key] = shown.get(found.asset_key, 0) + int(found.metadata["rows"].value)
    assert shown[names.READINGS] == landed(settings).height - before[0]
    assert shown[names.WINDOWS] == windows(settings).height - before[1]
    assert {check.check_name for check in result.get_asset_check_evaluations() if check.passed} >= {
        orchestration.CHECK_IDENTITIES,
        orchestration.CHECK_WINDOWS,
    }
    assert supervisor.step(instance).kind is orchestration.Kind.LEAVE


PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""
CHILD = """
import os, time
from smoke_platform.orchestration.spark_child import leave_with
leave_with(os.getppid())
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_driver_does_not_outlive_the_run_that_started_it() -> None:
    """It would hold the lease, so that no other run could start, and nobody would see what it does."""
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()

    def is_gone() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:  # also of one that ends between the two
            return True

    wait_for(is_gone, 60)


def test_status_says_what_runs_and_what_is_missing(platform: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator asks before a night of waiting, not after it."""
    produce(platform, rough_stream(SEED, devices=1, seconds=20))
    environment = {**platform.environment(), "SMOKE_ENGINE": "spark"}
    answer = CliRunner().invoke(root, ["spark", "status", "--json"], env=environment)
    shown = json.loads(answer.output)
    assert (shown["engine"], shown["master"], shown["running"], shown["fault"]) == ("spark", MASTER, False, None)
    assert shown["lag"] > 0
    # What waits for the windows has to have landed.
    Landing(platform, "without windows", once=True).run()
    answer = CliRunner().invoke(root, ["spark", "status", "--json"], env=environment)
    shown = json.loads(answer.output)
    assert (shown["lag"], shown["windows"]["behind"] > 0) == (0, True)
    assert shown["jars"].startswith("complete")
    assert shown["java"].startswith(("17", "21"))
    monkeypatch.setattr("smoke_platform.adapters.java.SPARK_JAVAS", (999,))
    answer = CliRunner().invoke(root, ["spark", "status"], env=environment)
    assert "Spark needs a full JDK 999" in answer.output
    assert "messages wait to be landed" in answer.output
    assert "readings that have landed are not reflected yet" in answer.output


def test_what_spark_need_not_be_started_for_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute of Java, or a page of it, before the word that something was left out or mistyped."""

    def started(*_: Any, **__: Any) -> Any:
        raise AssertionError("Spark was started")

    monkeypatch.setattr("smoke_platform.adapters.spark.open_session", started)
    monkeypatch.setattr(os, "execvpe", started)
    environment = {"SMOKE_HOME": str(tmp_path)}
    for master in ("http://x:1", "spark://x", "spark://x:1/", "x:1"):
        answer = CliRunner().invoke(root, ["spark", "worker", master], env=environment)
        assert (answer.exit_code, "spark://HOST:PORT" in answer.output) == (2, True)
    with pytest.raises(AssertionError, match="was started"):
        CliRunner().invoke(
            root, ["spark", "worker", "spark://a-1:7077,b.c:7078"], env=environment, catch_exceptions=False
        )
    for days, word in ((["2026-11-02"], "champion"), (["2026-11-02", "--to", "2026-11-01"], "exchange the two days")):
        answer = CliRunner().invoke(root, ["spark", "score", "--from", *days], env=environment)
        assert isinstance(answer.exception, SmokeError)
        assert word in str(answer.exception)
