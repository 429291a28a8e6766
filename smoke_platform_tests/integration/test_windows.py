"""Engine ``local`` on a real broker and a real lake: each window once, whatever is late, doubled, killed or slow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from smoke_platform.adapters.kafka_bulk import TopicWatcher
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.lease import probe
from smoke_platform.adapters.windows import WINDOW_KEY, WINDOWS, WindowTable
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.landing import CompactionPlan
from smoke_platform.domain.readings import Reading, Source
from smoke_platform.domain.windows import compute
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.orchestration import landing as orchestration
from smoke_platform.orchestration import names
from smoke_platform.settings import Settings
from smoke_platform.streaming import landing, windows_rebuild
from smoke_platform.streaming import windows as engine
from smoke_platform.streaming.landing import Fenced, LandedTable, Landing, LandingReport, committed_positions
from smoke_platform.streaming.windows import (
    WINDOWS_SHAPE,
    WindowAudit,
    WindowEngine,
    WindowsProbe,
    WindowsStanding,
    audit_windows,
)
from smoke_platform.streaming.windows_rebuild import rebuild
from smoke_platform_tests.spark_parts import kernel_windows, register
from smoke_platform_tests.waiting import wait_for
from smoke_platform_tests.window_judge import faults_of_windows

pytestmark = pytest.mark.integration

START = datetime(2026, 11, 1, 10, tzinfo=UTC)
PARTITIONS = 3


def reading(device: str, second: float, value: float | None = None, sequence: int | None = None) -> Reading:
    """A reading ``second`` seconds after ``START``."""
    sensors = {"temperature_c": 20 + second % 7 if value is None else value, "pm2_5": second % 11}
    return Reading(device, START + timedelta(seconds=second), sensors, None, sequence, Source.SIMULATOR)


def stream(devices: int, seconds: Iterable[int], device: str = "d") -> list[Reading]:
    """A reading a second of each device, in the order in which they are taken."""
    return [reading(f"{device}{number}", second) for second in seconds for number in range(devices)]


def produce(settings: Settings, readings: Iterable[Reading], partition: int | None = None) -> None:
    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": settings.brokers, "acks": "all", "linger.ms": 5})
    where = {} if partition is None else {"partition": partition}
    for one in readings:
        producer.produce(
            settings.topic_readings,
            one.to_json(),
            one.device_id.encode(),
            on_delivery=lambda error, _: failed.append(error) if error else None,
            **where,
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    assert failed == []


def land(settings: Settings, *, later: timedelta = timedelta(0)) -> LandingReport:
    """Lands what is there, with its windows; ``later``: by a clock that is so far ahead."""
    windows = WindowEngine(settings, now=lambda: datetime.now(UTC) + later)
    return Landing(settings, "test", once=True, companions=[windows]).run()


class InBackground:
    """A landing with its windows in a thread of its own."""

    def __init__(
        self,
        settings: Settings,
        *,
        later: timedelta = timedelta(0),
        on_commit: Callable[[landing.Progress], None] | None = None,
    ) -> None:
        self.stop = threading.Event()
        self.windows = WindowEngine(settings, now=lambda: datetime.now(UTC) + later)
        self.error: BaseException | None = None
        self.report: LandingReport | None = None
        self._landing = Landing(settings, "background", stop=self.stop, on_commit=on_commit, companions=[self.windows])
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

    def join(self) -> None:
        self._thread.join(180)
        assert not self._thread.is_alive()

    def done_with(self, count: int) -> bool:
        """Whether so many readings have landed and nothing is left to do for their windows."""
        # Both at once: a batch can be seen in the lake before the engine is told of it, and until then it is quiet.
        with self.windows._news:
            return sum(self.windows._landed.values()) == count and self.windows.quiet


def readings(settings: Settings) -> pl.DataFrame:
    return Lake(settings.lake).scan(READINGS).collect()


def _landed(settings: Settings) -> int:
    return readings(settings).height if Lake(settings.lake).exists(READINGS) else 0


def rows(settings: Settings) -> pl.DataFrame:
    """All rows of the table of windows, every revision."""
    lake = Lake(settings.lake)
    return lake.scan(WINDOWS).sort(*WINDOW_KEY, "revision").collect() if lake.exists(WINDOWS) else pl.DataFrame()


def windows(settings: Settings) -> pl.DataFrame:
    return WindowTable(Lake(settings.lake)).between(None, None).drop("written_at").sort(WINDOW_KEY)


def check(settings: Settings, *, silent: bool = False) -> pl.DataFrame:
    """Each window that is due stands in the table, with the statistics of all its readings, each revision once.

    Held to the brute force, and beside it, to the bit, to the kernel.
    """
    assert faults_of_windows(settings, silent=silent) == []
    assert windows(settings).equals(kernel_windows(settings, silent=silent))
    every = rows(settings)
    assert every.height == every.unique([*WINDOW_KEY, "revision"]).height
    facts = TopicWatcher(settings.brokers, settings.topic_readings).facts()
    assert facts is not None
    lake = Lake(settings.lake)
    assert committed_positions(lake.open(WINDOWS), facts) == {
        number: place or 0 for number, place in committed_positions(lake.open(READINGS), facts).items()
    }
    return every


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
        SMOKE_BATCH_ROWS=400,
        SMOKE_WINDOW_SECONDS=0.05,
    )
    make_topic(partitions=1, name=settings.topic_dead_letters)
    return settings


def test_every_window_that_is_over_is_appended_once(platform: Settings) -> None:
    """The heart of it: the windows of what has landed, with the statistics of all their readings and of no others."""
    sent = stream(4, range(700))
    sent[900:900] = [reading("d1", 100), reading("d1", 100)]  # said twice again
    sent.append(reading("d1", 50))  # late: 11 minutes behind
    produce(platform, sent)
    report = land(platform)
    assert report.total().late == 1
    every = check(platform)
    # Windows that end by 10:11:39, the device's clock; each has one row, for nothing came out of order ...
    assert every.filter(pl.col("device_id") == "d2").height == 11
    # ... and the doubles are counted, not averaged.
    mine = every.filter(pl.col("device_id") == "d1", pl.col("window_start") == START)
    assert mine.select("record_count", "duplicate_count", "revision").rows() == [(300, 2, 302)]
    before = Lake(platform.lake).version(WINDOWS)
    land(platform)
    assert Lake(platform.lake).version(WINDOWS) == before


def test_a_run_goes_on_where_the_one_before_stopped(platform: Settings) -> None:
    """Runs end every hour; a window whose readings two runs have landed has the readings of both."""
    sent = stream(3, range(800))
    for first in range(0, len(sent), 311):
        produce(platform, sent[first : first + 311])
        land(platform)
    every = check(platform)
    assert every.height == every.unique(WINDOW_KEY).height


def test_a_reading_that_comes_after_its_window_corrects_it(platform: Settings) -> None:
    """A device that was offline for minutes sends what it kept: the windows it belongs to must have it."""
    produce(platform, [*stream(2, range(240)), *stream(1, range(240, 700)), *stream(1, range(240, 700), "other")])
    land(platform)
    # The second device comes back: its clock stood at 4 minutes, so this is all in time, and it closes windows.
    produce(platform, stream(2, range(240, 700))[1::2])
    # A reading out of order by more than five minutes, but not by ten, belongs to windows that are over.
    produce(platform, [reading("d0", 140.5, 99.0), reading("d0", 700)])
    land(platform)
    every = check(platform)
    corrected = every.filter(pl.col("device_id") == "d0", pl.col("window_start") == START)
    assert corrected["revision"].to_list() == [300, 301]
    assert corrected["temperature_c_max"].to_list() == [26.0, 99.0]


def test_silence_ends_the_windows_of_a_device(platform: Settings) -> None:
    """The last five minutes of a device that has been taken away, or burnt, would never be seen."""
    produce(platform, stream(2, range(400)))
    land(platform)
    check(platform)
    land(platform, later=timedelta(minutes=9))
    check(platform)
    land(platform, later=timedelta(minutes=11))
    check(platform, silent=True)
    # It comes back within a window that is appended already: a higher revision of it.
    produce(platform, [reading("d0", 410), reading("d0", 460), reading("d0", 900)])
    land(platform)
    every = rows(platform).filter(pl.col("device_id") == "d0", pl.col("window_start") == START + timedelta(minutes=5))
    assert (every["revision"][0], every["revision"][-1]) == (100, 102)
    land(platform, later=timedelta(minutes=30))
    check(platform, silent=True)


def test_silence_is_not_judged_while_readings_wait(platform: Settings) -> None:
    """After an outage of an hour every device would be taken for silent, its windows appended again and again."""
    produce(platform, stream(3, range(900)))

    def some_windows_first(_progress: landing.Progress) -> None:
        # Or all may have landed before the engine looks for the first time, and it never looks while readings wait.
        if _landed(platform) >= 1350:
            wait_for(lambda: not rows(platform).is_empty())

    settings = platform.model_copy(update={"batch_rows": 50})
    with InBackground(settings, later=timedelta(hours=1), on_commit=some_windows_first) as run:
        wait_for(lambda: run.done_with(2700))
        assert run.windows.drain().commits > 1
    assert run.error is None
    check(platform, silent=True)
    # By their clocks, or by silence when everything had been taken; before that, they would have grown afterwards.
    assert rows(platform).height == windows(platform).height


def test_topic_made_anew_goes_on_with_what_is_known(platform: Settings, make_topic: Callable[..., str]) -> None:
    """Offsets begin at 0 again. The same readings once more are duplicates, and what had not been taken is not lost."""
    topic = platform.topic_readings
    sent = stream(2, range(500))
    produce(platform, sent)
    Landing(platform, "without windows", once=True).run()
    admin = AdminClient({"bootstrap.servers": platform.brokers})
    admin.delete_topics([topic])[topic].result(30)
    wait_for(lambda: topic not in admin.list_topics(timeout=10).topics)
    make_topic(partitions=PARTITIONS, name=topic, message_timestamp_type="LogAppendTime")
    produce(platform, [*sent, *stream(2, range(500, 1000))])
    land(platform)
    check(platform)
    assert readings(platform)["topic_id"].n_unique() == 2
    found = windows(platform).filter(pl.col("window_start") == START)
    assert found.select("record_count", "duplicate_count").rows() == [(300, 300)] * 2
    produce(platform, stream(2, range(1000, 1100)))
    land(platform)
    check(platform)


def test_a_slow_engine_never_holds_up_landing(platform: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings must land whatever becomes of the statistics; those are made up for from the lake."""
    gate = threading.Event()

    def blocked(*arguments: Any, **options: Any) -> pl.DataFrame:
        assert gate.wait(240)
        return compute(*arguments, **options)

    monkeypatch.setattr(engine, "compute", blocked)
    monkeypatch.setattr(engine, "MOST_WAITING_ROWS", 1000)
    sent = stream(3, range(900))
    with InBackground(platform) as run:
        produce(platform, sent[:1500])
        wait_for(lambda: _landed(platform) == 1500)
        wait_for(lambda: run.windows._step is not None)
        produce(platform, sent[1500:2400])
        wait_for(lambda: _landed(platform) == 2400)
        assert run.windows._waiting_rows <= 1000
        # What comes when there is room again begins further on than the engine stands: it is not the next batch.
        monkeypatch.setattr(engine, "MOST_WAITING_ROWS", 10**6)
        produce(platform, sent[2400:])
        wait_for(lambda: _landed(platform) == len(sent))
        assert rows(platform).is_empty()
        gate.set()
        wait_for(lambda: run.done_with(len(sent)))
        assert run.windows.drain().behind == 0
    check(platform)


def test_a_fault_of_the_windows_leaves_landing_alone(platform: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that cannot be computed must not keep readings from landing; it is told, and tried again."""
    mended = threading.Event()

    def faulty(*arguments: Any, **options: Any) -> pl.DataFrame:
        if not mended.is_set():
            raise ArithmeticError("no such number")
        return compute(*arguments, **options)

    monkeypatch.setattr(engine, "compute", faulty)
    monkeypatch.setattr(engine, "FIRST_PAUSE_S", 0.3)
    monkeypatch.setattr(engine, "LONGEST_PAUSE_S", 0.3)
    produce(platform, stream(2, range(600)))
    with InBackground(platform) as run:
        wait_for(lambda: run.windows.drain().fault == "no such number")
        assert not run.windows.quiet
        mended.set()
        wait_for(lambda: run.done_with(1200))
        assert run.windows.drain().fault == ""
    assert run.error is None
    check(platform)
    # By hand, where everything is to be done, it is a fault of the run, and what has landed stays.
    monkeypatch.setattr(engine, "compute", lambda *_, **__: 1 / 0)
    produce(platform, stream(2, range(600, 900)))
    with pytest.raises(ZeroDivisionError):
        land(platform)
    assert readings(platform).height == 1800
    assert not probe(landing.lease_path(platform)).held


def test_another_writer_of_windows_ends_the_run(platform: Settings) -> None:
    """Two hosts that share a lake have two leases; each window must come from one of them."""
    produce(platform, stream(2, range(400)))
    land(platform)
    facts = TopicWatcher(platform.brokers, platform.topic_readings).facts()
    assert facts is not None
    with InBackground(platform) as run:
        wait_for(lambda: run.windows.quiet)
        other = LandedTable(Lake(platform.lake), facts, WINDOWS_SHAPE)
        other.commit(WINDOWS_SHAPE.schema.empty_table(), {0: 10**6})
        produce(platform, stream(2, range(400, 800)))
        run.join()
    assert isinstance(run.error, Fenced)


def test_readings_older_than_the_windows_are_a_fault(platform: Settings) -> None:
    """Readings restored from an old backup beside newer windows would be taken for reflected by them."""
    produce(platform, stream(1, range(400)))
    land(platform)
    facts = TopicWatcher(platform.brokers, platform.topic_readings).facts()
    assert facts is not None
    ahead = LandedTable(Lake(platform.lake), facts, WINDOWS_SHAPE)
    ahead.commit(WINDOWS_SHAPE.schema.empty_table(), {0: 10**6})
    with pytest.raises(Exception, match="reflects partition 0 up to 1000000"):
        land(platform)


def test_files_stay_few_and_rows_the_same(platform: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit every few seconds is thousands of files a day, which readers open one by one."""
    monkeypatch.setattr(landing, "TIDY_EVERY_COMMITS", 5)
    monkeypatch.setattr(landing, "CompactionPlan", lambda: CompactionPlan(small_files=5))
    sent = stream(2, range(1500))
    with InBackground(platform) as run:
        for first in range(0, len(sent), 120):
            produce(platform, sent[first : first + 120])
            there = min(first + 120, len(sent))
            wait_for(lambda there=there: run.done_with(there))
    table = Lake(platform.lake).open(WINDOWS)
    assert table.version() > 15
    assert len(table.file_uris()) < 10
    check(platform)


def test_reporting_intervals_come_from_the_registry(platform: Settings) -> None:
    """A device that reports every ten seconds would be taken for one that loses nine readings of ten."""
    register(platform, "d0", 10.0)
    produce(platform, stream(2, range(0, 700, 10)))
    land(platform)
    assert faults_of_windows(platform, intervals_s={"d0": 10.0}) == []
    found = windows(platform).filter(pl.col("window_start") == START)
    assert found.select("device_id", "expected_count", "completeness").rows() == [("d0", 30, 1.0), ("d1", 300, 0.1)]


def test_a_rebuild_appends_what_is_missing_and_nothing_else(platform: Settings) -> None:
    """A day whose windows are doubted, or were removed, must be had again from the readings."""
    produce(platform, stream(3, range(1000)))
    land(platform)
    day = START.date()
    (whole,) = rebuild(platform, day, day)
    assert (whole.appended, whole.differing, whole.beyond) == (0, 0, 0)
    assert whole.windows == rows(platform).height
    lake = Lake(platform.lake)
    lake.open(WINDOWS).delete("device_id = 'd1' AND window_start >= '2026-11-01T10:03:00Z'")
    assert rebuild(platform, day, day)[0].appended > 0
    check(platform)
    # What is said of a window at the same number of readings is replaced only when that is wanted.
    lake.open(WINDOWS).update({"temperature_c_mean": "0.0"}, predicate="device_id = 'd2'")
    assert rebuild(platform, day, day)[0].differing > 0
    assert set(windows(platform).filter(pl.col("device_id") == "d2")["temperature_c_mean"]) == {0.0}
    (mended,) = rebuild(platform, day, day, replace=True)
    assert mended.replaced == mended.differing > 0
    check(platform)
    # Landing goes on with what was rebuilt.
    produce(platform, stream(3, range(1000, 1200)))
    land(platform)
    check(platform)


def test_a_rebuild_holds_a_piece_of_the_day_at_once(platform: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of a thousand devices takes thirty gigabytes at once, and the machine that lands has none of them left."""
    produce(platform, stream(4, range(0, 4000, 4), device="it's hall/<"))
    land(platform)
    day = START.date()
    lake = Lake(platform.lake)
    lake.open(WINDOWS).delete("device_id = 'it''s hall/<1'")
    lake.open(WINDOWS).update({"temperature_c_mean": "0.0"}, predicate="device_id >= 'it''s hall/<2'")
    held: list[tuple[int, int]] = []

    def computed(taken: pl.DataFrame, *arguments: Any, **named: Any) -> pl.DataFrame:
        held.append((taken.height, named["windows"].height))
        return compute(taken, *arguments, **named)

    read: list[int] = []
    for name in ("rows_of", "between"):
        monkeypatch.setattr(WindowTable, name, _sized(getattr(WindowTable, name), read))
    monkeypatch.setattr(windows_rebuild, "compute", computed)
    monkeypatch.setattr(windows_rebuild, "_ROWS_AT_ONCE", 500)
    (found,) = rebuild(platform, day, day, replace=True)
    assert (found.windows, found.beyond) == (4 * 66, 0)
    assert (found.appended, found.differing, found.replaced) == (66, 132, 132)
    assert sum(windows for _, windows in held) == found.windows
    # A device's ten minutes are 210 readings and count 310 with their windows.
    assert max(taken + 10 * windows for taken, windows in held) <= 500 + 310
    assert max(read) <= max(windows for _, windows in held) < found.windows // 4
    monkeypatch.undo()
    check(platform)
    assert rebuild(platform, day, day)[0].appended == 0


def _sized(method: Callable[..., pl.DataFrame], heights: list[int]) -> Callable[..., pl.DataFrame]:
    """The method, which notes how many rows it gave."""

    def called(*arguments: Any, **named: Any) -> pl.DataFrame:
        found = method(*arguments, **named)
        heights.append(found.height)
        return found

    return called


def test_a_rebuild_waits_for_readings_that_the_windows_do_not_reflect(platform: Settings) -> None:
    """`0 windows, 0 appended` of a day whose readings were not taken yet reads as if there were nothing to mend."""
    produce(platform, stream(2, range(400)))
    land(platform)
    produce(platform, stream(2, range(400, 800)))
    Landing(platform, "without windows", once=True).run()
    with pytest.raises(SmokeError, match="800 readings have landed that the windows do not reflect yet") as refused:
        rebuild(platform, START.date(), START.date())
    assert "let landing run" in refused.value.remedy
    land(platform)
    assert rebuild(platform, START.date(), START.date())[0].appended == 0


def test_levels_are_looked_up_in_few_columns(platform: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thirty seconds of landing: with all columns a fleet's ten minutes take more memory than its readings."""
    produce(platform, [reading("hot", second, 60.0) for second in range(400)])
    land(platform)
    widths: list[int] = []
    original = WindowTable.written_after

    def read(table: WindowTable, *arguments: Any) -> pl.DataFrame:
        found = original(table, *arguments)
        widths.append(found.width)
        return found

    monkeypatch.setattr(WindowTable, "written_after", read)
    levels = orchestration._Levels(platform)
    assert levels.have_changed()
    assert levels.result().metadata["devices"].value == 1
    assert max(widths) <= 6


def test_what_waits_for_the_windows_is_told(platform: Settings) -> None:
    """Without it nobody would start a run to end the windows of devices that fell silent."""
    standing = WindowsProbe(platform)
    now = datetime.now(UTC)
    assert standing.standing().waiting(now) == 0
    produce(platform, stream(2, range(400)))
    Landing(platform, "without windows", once=True).run()
    assert standing.standing().waiting(now) == 800
    land(platform)
    found = standing.standing()
    assert (found.behind, found.ahead, found.waiting(now)) == (0, 0, 0)
    assert found.silence_at is not None
    assert timedelta(minutes=9) < found.silence_at - now < timedelta(minutes=11)
    assert found.waiting(now + timedelta(minutes=12)) == 1
    land(platform, later=timedelta(minutes=12))
    found = standing.standing()
    assert (found.silence_at, found.waiting(now + timedelta(hours=1))) == (None, 0)


def test_dagster_shows_windows_and_names_who_is_hot(platform: Settings, tmp_path: Path) -> None:
    """An operator looks at Dagster: what was appended, that it is right, and which devices are out of the ordinary."""
    settings = platform.model_copy(update={"stream_idle_seconds": 0.5})
    hot = [reading("hot<b>", second, 60.0) for second in range(700)]
    produce(settings, [*stream(2, range(700)), *hot])
    supervisor = orchestration.Supervisor(settings)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as instance:
        job = orchestration.definitions(settings).resolve_job_def(names.JOB_LANDING)
        result = job.execute_in_process(instance=instance)
        assert result.success
        shown = [
            event.step_materialization_data.materialization
            for event in result.all_events
            if event.is_step_materialization
            and event.step_materialization_data.materialization.asset_key == names.WINDOWS
        ]
        values = [{name: entry.value for name, entry in each.metadata.items()} for each in shown]
        assert sum(each["rows"] for each in values) == rows(settings).height == 33
        # A run that takes long tells the windows in several parts, and where they stand only beside windows.
        assert 0 < sum(values[-1]["positions"].values()) <= 2100
        assert sum(WindowsProbe(settings).standing().positions.values()) == 2100
        checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
        assert checks[orchestration.CHECK_WINDOWS].passed
        assert checks[orchestration.CHECK_WINDOWS].metadata["rows_looked_at"].value == 33
        named = checks[orchestration.CHECK_LEVELS]
        assert (named.passed, named.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert named.metadata["named"].value == ["hot<b>"]
        # Nothing waits now; in eleven minutes silence ends what is open, and somebody has to do it.
        assert supervisor.step(instance).reason == "nothing to land"
        later = orchestration.Supervisor(settings)
        now = datetime.now(UTC) + timedelta(minutes=11)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WindowsProbe, "standing", _as_of(now, WindowsProbe.standing))
            assert later.step(instance).kind is orchestration.Kind.REQUEST


def _as_of(now: datetime, standing: Callable[..., WindowsStanding]) -> Callable[..., WindowsStanding]:
    """What the probe says, as it will look at ``now``."""

    def shifted(probe: WindowsProbe, *arguments: Any) -> WindowsStanding:
        found = standing(probe, *arguments)
        ago = now - datetime.now(UTC)
        return replace(found, silence_at=found.silence_at - ago if found.silence_at else None)

    return shifted


def test_the_audit_sees_a_double(platform: Settings) -> None:
    """A check that overlooks a window appended twice is worth nothing."""
    produce(platform, stream(2, range(400)))
    began = datetime.now(UTC)
    report = land(platform)
    assert audit_windows(platform, report, began) == WindowAudit(rows(platform).height, 0, 0)
    Lake(platform.lake).append(WINDOWS, rows(platform).tail(2))
    assert audit_windows(platform, report, began).doubles == 2
    report.positions = {0: 0}
    facts = TopicWatcher(platform.brokers, platform.topic_readings).facts()
    assert facts is not None
    LandedTable(Lake(platform.lake), facts, WINDOWS_SHAPE).commit(WINDOWS_SHAPE.schema.empty_table(), {0: 10**6})
    assert audit_windows(platform, report, began).ahead > 0
