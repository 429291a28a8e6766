"""``kill -9`` of what appends windows: the table equals that of an undisturbed run, and each window is there once.

Belongs here: the readings that are sent (late, doubled, out of order, from clocks that are wrong), when the process is
killed, what is compared. Does not: the engines, or how they recover. An engine is a pair of commands (``Contender``);
one more engine is one more entry of ``CONTENDERS``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from smoke_platform.adapters.kafka import BulkReadingProducer, ensure_topics
from smoke_platform.adapters.kafka_bulk import TopicWatcher
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.windows import ROW_KEY, WINDOW_KEY, WINDOWS, WRITTEN_AT, WindowTable
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import Reading, Source
from smoke_platform.domain.windows import compute
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings, load_settings
from smoke_platform.streaming.landing import StandingProbe
from smoke_platform.streaming.windows import WindowsProbe, WindowsStanding
from smoke_platform.verification.run import Say, private_settings

PARTITIONS = 3
PATIENCE_S = 120.0
START = datetime(2026, 11, 1, 10, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine as the proof runs it.

    Attributes:
        work: arguments of ``smoke`` that land readings and append windows until they are killed.
        finish: that do what is there and end.
        environment: in addition to the platform's own.
    """

    name: str
    work: tuple[str, ...]
    finish: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


CONTENDERS: Mapping[str, Contender] = {
    "local": Contender("local", ("land", "run", "--windows"), ("land", "run", "--once", "--windows")),
    "spark": Contender(
        "spark",
        ("spark", "run"),
        ("spark", "run", "--once"),
        {
            "SPARK_MASTER": "local[2]",
            "SPARK_UI_PORT": "0",
            "SPARK_BATCH_SECONDS": "0.1",
            "SPARK_BATCH_ROWS": "900",
            "SMOKE_STREAM_IDLE_SECONDS": "600",
        },
    ),
}


@dataclass(frozen=True, slots=True)
class WindowKillPlan:
    """One run: a platform of its own. Everything that is left to chance comes from ``seed``.

    A process that does nothing for ``patience_s`` is at fault, not slow. Spark may take a minute to start.
    """

    engine: str
    seed: int
    kills: int
    devices: int = 12
    seconds: int = 3600
    patience_s: float = PATIENCE_S


@dataclass(slots=True)
class WindowKill:
    """One kill: how far things were. ``reflected`` and ``landed`` are offsets, ``sent`` those in the topic."""

    number: int
    alive_s: float
    sent: int
    landed: int
    reflected: int
    rows: int


@dataclass(slots=True)
class WindowFindings:
    """What a run found; ``faults`` is empty where all is as it must be."""

    plan: WindowKillPlan
    readings: int = 0
    late: int = 0
    windows: int = 0
    rows: int = 0
    corrected: int = 0
    undisturbed_rows: int = 0
    kills: list[WindowKill] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.plan),
            "ok": self.ok,
            "readings": self.readings,
            "late": self.late,
            "windows": self.windows,
            "rows": self.rows,
            "corrected": self.corrected,
            "undisturbed_rows": self.undisturbed_rows,
            "faults": self.faults,
            "kill_reports": [{**asdict(kill), "alive_s": round(kill.alive_s, 3)} for kill in self.kills],
        }


def run(
    plan: WindowKillPlan,
    home: Path,
    settings: Settings,
    say: Say,
    environment: Mapping[str, str] | None = None,
    definition: Callable[[Settings], list[str]] | None = None,
) -> WindowFindings:
    """Carries the plan out in ``home`` and judges it.

    Args:
        settings: of which the cache is used; everything else is private.
        environment: of the engine, in addition to its contender's.
        definition: says what is wrong with the table of the killed one without the engines' kernel, which the
            judgement here computes with.
    """
    home.mkdir(parents=True, exist_ok=True)
    contender = CONTENDERS[plan.engine]
    contender = replace(contender, environment={**contender.environment, **(environment or {})})
    private = private_settings(
        home,
        settings,
        SMOKE_KAFKA_PARTITIONS=str(PARTITIONS),
        # Many small batches and commits, so that a kill meets each of their steps.
        SMOKE_BATCH_SECONDS="0.05",
        SMOKE_BATCH_ROWS="300",
        SMOKE_WINDOW_SECONDS="0.1",
    )
    findings = WindowFindings(plan)
    with ExitStack() as stack:
        broker = EmbeddedBroker(home / "kafka", private.kafka_port, private.kafka_controller_port, private.cache_dir)
        broker.prepare()
        broker.start()
        stack.callback(broker.stop)
        ensure_topics(private, timeout_s=60.0)
        producer = BulkReadingProducer(private.brokers, private.topic_readings)
        stack.callback(producer.close)
        stream = stream_of(plan)
        standing = WindowsProbe(private)
        share = -(-len(stream) // plan.kills)
        for number in range(plan.kills):
            if 0 < number == plan.kills - 1:
                # So that what is sent now and is minutes old corrects windows, however little was done at the kills.
                _finish(contender, private, plan.patience_s)
            _send(producer, stream[number * share : (number + 1) * share])
            findings.kills.append(_one_kill(plan, number, contender, private, standing))
            say(f"kill {number + 1} of {plan.kills}: {findings.kills[-1]}")
        _finish(contender, private, plan.patience_s)
        undisturbed = load_settings(private.environment(), home / "no.env", SMOKE_HOME=str(home / "undisturbed"))
        _finish(contender, undisturbed, plan.patience_s)
        findings.readings = len(stream)
        _judge(findings, private, undisturbed)
        if definition is not None:
            findings.faults += [f"by definition: {fault}" for fault in definition(private)]
    return findings


# -- what is sent ------------------------------------------------------------------------------------------------


def stream_of(plan: WindowKillPlan) -> list[Reading]:
    """The readings in the order in which they are sent.

    Of the devices one sends readings again and again that are minutes old (its windows are corrected), one sends
    everything twice, one leaves readings out, one's clock is an hour behind and jumps, and one is later than allowed.
    """
    chance = random.Random(plan.seed)  # noqa: S311 - reproducible on purpose
    found = []
    for second in range(plan.seconds):
        for number in range(plan.devices):
            offset = -3600.0 if number == 3 and second < plan.seconds // 2 else 0.0
            if number == 2 and chance.random() < 0.3:
                continue
            one = _reading(number, second + offset, chance)
            found.append(one)
            if number == 1:
                found.append(one)
            if number == 0 and second > 600 and chance.random() < 0.02:
                found.append(_reading(number, second - chance.uniform(300, 590), chance))
            if number == 4 and second > 900 and chance.random() < 0.02:
                found.append(_reading(number, second - chance.uniform(610, 850), chance))
    return found


def _reading(number: int, second: float, chance: random.Random) -> Reading:
    sensors = {
        "temperature_c": round(chance.gauss(22, 1), 2),
        "humidity_pct": round(chance.uniform(30, 60), 1),
        "pm2_5": round(chance.uniform(0, 40), 1),
    }
    moment = START + timedelta(microseconds=round(second * 1e6))
    return Reading(f"device-{number}", moment, sensors, chance.random() < 0.1, None, Source.SIMULATOR)


def _send(producer: BulkReadingProducer, readings: list[Reading]) -> None:
    for one in readings:
        producer.send(one.device_id, one.to_json())
    producer.flush()
    producer.raise_failures()


# -- the course --------------------------------------------------------------------------------------------------


def _one_kill(
    plan: WindowKillPlan, number: int, contender: Contender, settings: Settings, probe: WindowsProbe
) -> WindowKill:
    """Starts the engine, and kills it at a moment that the seed chooses: of its landing or of its windows."""
    chance = random.Random(plan.seed * 1_000 + number)  # noqa: S311 - reproducible on purpose
    sent = sum(high for _, high in StandingProbe(settings).standing(10.0).watermarks.values())
    before = probe.standing(10.0)
    began = time.monotonic()
    process = _start(contender.work, contender, settings)
    try:
        # Sometimes before the first commit, sometimes while the last windows of what is there are appended.
        share = chance.choice([0.0, 0.05, 0.2, 0.4, 0.6, 0.8])
        of_windows = chance.random() < 0.5
        goal = _done(before, of_windows=of_windows) + round(share * (sent - _done(before, of_windows=of_windows)))
        for found in _watch(probe, process, plan.patience_s):
            if share == 0.0 or _done(found, of_windows=of_windows) >= goal:
                break
        time.sleep(chance.uniform(0.0, 3.0 if share == 0.0 else 0.1))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    after = probe.standing(10.0)
    table = Lake(settings.lake)
    rows = table.scan(WINDOWS).select(pl.len()).collect().item() if table.exists(WINDOWS) else 0
    alive = time.monotonic() - began
    return WindowKill(number, alive, sent, sum(after.landed.values()), sum(after.positions.values()), int(rows))


def _done(standing: WindowsStanding, *, of_windows: bool) -> int:
    return sum((standing.positions if of_windows else standing.landed).values())


def _watch(probe: WindowsProbe, process: subprocess.Popen[bytes], patience_s: float) -> Iterator[WindowsStanding]:
    deadline = time.monotonic() + patience_s
    while True:
        yield probe.standing(10.0)
        if process.poll() is not None:
            raise SmokeError(f"the engine ended by itself with {process.returncode}")
        if time.monotonic() > deadline:
            raise SmokeError(f"the engine has not come as far as it should in {patience_s:g} s")
        time.sleep(0.02)


def _start(arguments: tuple[str, ...], contender: Contender, settings: Settings) -> subprocess.Popen[bytes]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SMOKE_", "KAFKA_"))}
    environment = {**own, **settings.environment(), **contender.environment}
    command = [str(Path(sys.executable).with_name("smoke")), *arguments]
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "engine.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _finish(contender: Contender, settings: Settings, patience_s: float) -> None:
    process = _start(contender.finish, contender, settings)
    try:
        code = process.wait(patience_s * 2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise SmokeError(f"{' '.join(contender.finish)} did not end in {patience_s * 2:g} s") from None
    if code:
        raise SmokeError(f"{' '.join(contender.finish)} ended with {code}; see {settings.home / 'engine.log'}")


# -- the judgement -----------------------------------------------------------------------------------------------


def _judge(findings: WindowFindings, killed: Settings, undisturbed: Settings) -> None:
    readings = Lake(killed.lake).scan(READINGS).collect()
    findings.late = int(readings["late"].sum())
    places = readings.select("topic_id", "partition", "offset")
    if places.height != findings.readings or places.unique().height != findings.readings:
        findings.faults.append(
            f"{findings.readings} readings were sent, {places.height} landed, {places.unique().height} distinct ones"
        )
    taken = readings.filter(~pl.col("late"))
    clocks = taken.group_by("device_id").agg(pl.col("event_time").max().alias("clock"))
    expected = _over(compute(taken), clocks)
    tables = {"killed": killed, "undisturbed": undisturbed}
    found = {name: WindowTable(Lake(each.lake)).between(None, None).drop(WRITTEN_AT) for name, each in tables.items()}
    for name, rows in found.items():
        findings.faults += [f"{name}: {fault}" for fault in faults_of(_over(rows, clocks), expected)]
        findings.faults += [f"{name}: {fault}" for fault in _of_table(tables[name])]
    findings.faults += [
        f"killed against undisturbed: {fault}"
        for fault in faults_of(_over(found["killed"], clocks), _over(found["undisturbed"], clocks))
    ]
    every = Lake(killed.lake).scan(WINDOWS).select(*WINDOW_KEY).collect()
    findings.windows, findings.rows = every.unique().height, every.height
    findings.corrected = int((every.group_by(WINDOW_KEY).len()["len"] > 1).sum())
    findings.undisturbed_rows = Lake(undisturbed.lake).scan(WINDOWS).select(pl.len()).collect().item()


def _over(rows: pl.DataFrame, clocks: pl.DataFrame) -> pl.DataFrame:
    """The windows that are over on their device's clock; others may have been ended by silence, or not yet."""
    over = rows.join(clocks, on="device_id").filter(pl.col("window_end") <= pl.col("clock"))
    return over.drop("clock").sort(WINDOW_KEY)


def faults_of(found: pl.DataFrame, expected: pl.DataFrame) -> list[str]:
    """What is wrong with windows by latest revision, each window at most once in either frame."""
    faults = []
    missing = expected.join(found, on=WINDOW_KEY, how="anti")
    strange = found.join(expected, on=WINDOW_KEY, how="anti")
    if missing.height:
        faults.append(f"{missing.height} windows are missing, such as {missing.row(0)[1:3]}")
    if strange.height:
        faults.append(f"{strange.height} windows should not be there, such as {strange.row(0)[1:3]}")
    pairs = found.join(expected, on=WINDOW_KEY, how="inner", suffix="_expected")
    for name in expected.columns:
        if name not in WINDOW_KEY:
            unequal = pairs.filter(~pl.col(name).eq_missing(pl.col(f"{name}_expected")))
            if unequal.height:
                row = unequal.select("device_id", "window_start", name, f"{name}_expected").row(0)
                faults.append(f"{unequal.height} windows differ in {name}, such as {row}")
    return faults


def _of_table(settings: Settings) -> list[str]:
    """What is wrong with a table as a whole: a revision twice, or positions that are not those of the readings."""
    faults = []
    rows = Lake(settings.lake).scan(WINDOWS).select(ROW_KEY).collect()
    if doubles := rows.height - rows.unique().height:
        faults.append(f"{doubles} rows say a window at a revision again")
    standing = WindowsProbe(settings).standing(10.0)
    if standing.behind or standing.ahead:
        faults.append(f"positions are {standing.behind} behind and {standing.ahead} ahead of the readings'")
    if TopicWatcher(settings.brokers, settings.topic_readings).facts() is None:
        faults.append("the topic is gone")
    return faults
