"""``smoke verify``: starts a platform, feeds it, harms it if asked to, and says what it found.

Belongs here: the order of the proof's steps and the judgement of each. Does not: comparisons (``evidence``),
bad messages (``poison``), kills (``harm``), how any part works.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from smoke_platform.adapters.kafka import (
    AcknowledgedOffsets,
    Cluster,
    ReadingProducer,
    specs_for,
    topic_id,
    watermarks,
)
from smoke_platform.adapters.kafka_bulk import BulkConsumer, KafkaUnreachable
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.lease import probe
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import ALL_SENSOR_NAMES
from smoke_platform.local.ports import free_ports
from smoke_platform.local.programs import environment as program_environment
from smoke_platform.local.supervisor import Platform
from smoke_platform.orchestration import names
from smoke_platform.settings import Settings, load_settings
from smoke_platform.streaming.landing import StandingProbe, lease_path
from smoke_platform.verification.dagster_http import DagsterHttp, Run
from smoke_platform.verification.evidence import IDENTITY, compare_sets, differing_columns, wrong_reasons
from smoke_platform.verification.harm import Harm, Target
from smoke_platform.verification.input import VALUES, Feed, csv_feed, simulated_feed
from smoke_platform.verification.poison import poisoned_messages
from smoke_platform.verification.scenes import Scenes

Say = Callable[[str], None]

#: The longest that a step may take before it is called failed, in seconds; each is many times what was measured.
LANDING_DEADLINE_S = 180.0
RUN_DEADLINE_S = 600.0
TRAINING_DEADLINE_S = 900.0
ALARM_DEADLINE_S = 120.0
#: Of the device whose alarm is looked for, one a second: enough to know what is normal, and more than rules ask for.
CALM_READINGS, BURNING_READINGS = 30, 15
#: A replay with kills is stretched to this many seconds a kill. Its last part trickles until all are made, for so long
#: at most: a streaming run to be killed is there only while readings come.
KILL_SPACING_S = 8.0
HELD_BACK_SHARE = 0.1
HELD_BACK_S = 300.0
KILLED = ("streaming run", "broker", "Dagster daemon")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to prove and with what; see ``smoke verify --help``."""

    csv_file: Path | None = None
    poison: int = 1000
    kills: int = 0
    seed: int = 1
    running: bool = False
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the result: what was looked at, whether it is as it must be, and what was found."""

    what: str
    ok: bool
    found: str
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"what": self.what, "ok": self.ok, "found": self.found, **self.facts}


def prove(plan: Plan, settings: Settings, say: Say) -> list[Finding]:
    """Carries the plan out and returns every finding, the bad ones included.

    Args:
        settings: of the running platform; a private one takes only the cache and the example data from them.
        say: takes a line about each step, as it comes.
    """
    feed = csv_feed(plan.csv_file) if plan.csv_file else simulated_feed(devices=20, seconds=300, seed=plan.seed)
    if plan.running:
        return _Proof(plan, settings, feed, say).of_running()
    home = Path(tempfile.mkdtemp(prefix="smoke-verify-"))
    private = private_settings(home, settings)
    platform = Platform(private, tether=True)
    began = time.monotonic()
    try:
        say(f"starting a private platform in {home}")
        platform.up()
        say(f"up after {time.monotonic() - began:.0f} s")
        return _Proof(plan, private, feed, say).of_private(platform)
    finally:
        platform.down()
        if plan.keep:
            say(f"left as it was: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)


def private_settings(home: Path, settings: Settings, **overrides: str) -> Settings:
    """Settings of a platform of its own: in ``home``, on free ports, without the simulator."""
    parts = ("KAFKA", "KAFKA_CONTROLLER", "API", "DAGSTER", "DAGSTER_GRPC", "DETECTOR", "NOTIFY")
    environment = {
        "SMOKE_HOME": str(home),
        "SMOKE_CACHE_DIR": str(settings.cache_dir),
        "SMOKE_SIMULATE": "false",
        **{f"SMOKE_{part}_PORT": str(port) for part, port in zip(parts, free_ports(len(parts)), strict=True)},
        **overrides,
    }
    return load_settings(environment, home / "no.env")


class _Proof:
    """One proof under way: the steps share the feed, the settings and the findings so far."""

    def __init__(self, plan: Plan, settings: Settings, feed: Feed, say: Say) -> None:
        self.plan = plan
        self.settings = settings
        self.feed = feed
        self.say = say
        self.findings: list[Finding] = []
        self.lake = Lake(settings.lake)
        self.dagster = DagsterHttp(f"http://127.0.0.1:{settings.dagster_port}")
        self.harm: Harm | None = None

    # -- the two courses ---------------------------------------------------------------------------------
    def of_private(self, platform: Platform) -> list[Finding]:
        harm = self.harm = Harm(self._targets(platform), self.plan.kills, self.plan.seed, say=self.say)
        with self._step("readings flow"):
            harm.start()
            sent = self._produce(self.settings, harm)
            harm.stop()
            if self.plan.kills:
                counts = {name: sum(kill.target == name for kill in harm.done) for name in KILLED}
                self._add(
                    "kill -9 while readings flowed",
                    len(harm.done) == self.plan.kills,
                    ", ".join(f"{count} x {name}" for name, count in counts.items()),
                    kills=[asdict(kill) for kill in harm.done],
                )
            self._await_landed(self.settings)
            self._judge_landing(self.settings, self.lake, sent)
        with self._step("model"):
            self._judge_model(TRAINING_DEADLINE_S)
        with self._step("warehouse"):
            self._judge_features()
        with self._step("prediction"):
            self._judge_prediction()
        with self._step("drift"):
            self._judge_drift(self.feed.days[-1].isoformat())
        with self._step("alarm"):
            self._judge_alarm()
        with self._step("Dagster runs"):
            self._judge_runs(self.dagster.runs())
        return self.findings

    def of_running(self) -> list[Finding]:
        with self._step("landing with a topic and a table of its own"), self._apart() as apart:
            sent = self._produce(apart, None)
            self._land_by_hand(apart)
            self._judge_landing(apart, Lake(apart.lake), sent)
        with self._step("readings of the running platform"):
            self._judge_live()
        with self._step("model"):
            self._judge_model(TRAINING_DEADLINE_S)
        with self._step("prediction"):
            self._judge_prediction()
        with self._step("drift"):
            today = datetime.now(UTC).date().isoformat()
            batch = self._launch(names.JOB_BATCH, today)
            if batch is not None:
                self._judge_drift(today)
        with self._step("Dagster runs"):
            self._judge_runs([run for run in self.dagster.runs() if run.tags.get("smoke/caused_by") == "verify"])
        return self.findings

    # -- feeding -----------------------------------------------------------------------------------------
    def _produce(self, settings: Settings, harm: Harm | None) -> _Sent:
        """Sends readings and poison, mixed, and returns what the broker acknowledged of each."""
        readings, poison = AcknowledgedOffsets(), AcknowledgedOffsets()
        chance = random.Random(self.plan.seed)  # noqa: S311 - a seeded, repeatable choice, not a secret
        bad = list(poisoned_messages(self.plan.poison, self.plan.seed))
        share = len(bad) / max(1, self.feed.readings.height)
        # With kills the replay is stretched so that they fall into it and not behind it.
        pause = KILL_SPACING_S * self.plan.kills / max(1, self.feed.readings.height)
        topic = settings.topic_readings
        # Asked before anything is killed: afterwards the broker may just be coming back.
        identity = topic_id(settings, topic)
        good_producer = ReadingProducer(settings.brokers, topic, on_acknowledged=readings.add, delivery_timeout_s=None)
        bad_producer = ReadingProducer(settings.brokers, topic, on_acknowledged=poison.add, delivery_timeout_s=None)
        self.say(f"sending {self.feed.readings.height:,} readings and {len(bad):,} bad messages")
        began = time.monotonic()
        left = iter(bad)
        owed = 0.0
        held_back = max(1, round(self.feed.readings.height * HELD_BACK_SHARE))
        for number, (device, value) in enumerate(self.feed.messages()):
            if harm is not None and number >= self.feed.readings.height - held_back:
                harm.wait(HELD_BACK_S / held_back)
            good_producer.send(device, value)
            owed += share * chance.uniform(0.0, 2.0)
            while owed >= 1.0:
                owed -= 1.0
                for message, _ in itertools.islice(left, 1):
                    bad_producer.send(f"poison-{number % 97}", message)
            behind = began + pause * number - time.monotonic()
            if behind > 0.05:
                time.sleep(behind)
        for message, _ in left:
            bad_producer.send("poison-last", message)
        for producer in (good_producer, bad_producer):
            producer.flush(LANDING_DEADLINE_S)
            producer.raise_failures()
        counts = (good_producer.counts, bad_producer.counts)
        for producer in (good_producer, bad_producer):
            producer.close()
        self.say(f"acknowledged: {readings.distinct:,} readings, {poison.distinct:,} bad messages")
        self._add(
            "every message acknowledged",
            counts[0].sent == readings.distinct == readings.count and counts[1].sent == poison.distinct == poison.count,
            f"{counts[0].sent:,} readings sent = {readings.distinct:,} acknowledged; "
            f"{counts[1].sent:,} bad messages sent = {poison.distinct:,} acknowledged",
        )
        return _Sent(
            _identities(readings, identity),
            _identities(poison, identity),
            {value: str(reason) for value, reason in bad},
        )

    def _targets(self, platform: Platform) -> list[Target]:
        def program(name: str) -> Callable[[], tuple[int, str] | None]:
            def find() -> tuple[int, str] | None:
                pid = platform.pids().get(name)
                return None if pid is None else (pid, "")

            return find

        def streaming_run() -> tuple[int, str] | None:
            state = probe(lease_path(self.settings))
            return (state.beat.pid, state.beat.run_id) if state.held and state.beat else None

        return [
            Target(KILLED[0], streaming_run),
            Target(KILLED[1], program("kafka")),
            Target(KILLED[2], program("daemon")),
        ]

    # -- landing -----------------------------------------------------------------------------------------
    def _await_landed(self, settings: Settings) -> None:
        """Waits until the committed positions have reached the log's ends."""
        deadline = time.monotonic() + LANDING_DEADLINE_S
        probing = StandingProbe(settings)
        behind: dict[int, int] = {}
        while time.monotonic() < deadline:
            with contextlib.suppress(KafkaUnreachable):  # it may be coming back from a kill
                behind = {number: lag for number, lag in probing.standing().lag.items() if lag}
                if not behind:
                    return
            time.sleep(0.5)
        raise SmokeError(
            f"{sum(behind.values()):,} messages have not landed after {LANDING_DEADLINE_S:.0f} s",
            "see `smoke land status`",
        )

    def _land_by_hand(self, settings: Settings) -> None:
        command = [str(Path(sys.executable).with_name("smoke")), "land", "run", "--once"]
        answer = subprocess.run(
            command,
            env=program_environment(settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=LANDING_DEADLINE_S,
        )
        if answer.returncode != 0:
            raise SmokeError(f"landing failed: {answer.stderr.strip()[-500:]}")

    def _judge_landing(self, settings: Settings, lake: Lake, sent: _Sent) -> None:
        topic = topic_id(settings, settings.topic_readings)
        landed = lake.scan(READINGS).filter(pl.col("topic_id") == topic).collect()
        readings = compare_sets(sent.readings, landed)
        self._add("acknowledged readings = landed readings", readings.equal, readings.sentence(), **asdict(readings))

        joined = landed.select(*self.feed.key, *VALUES)
        together = self.feed.expected.join(joined, on=list(self.feed.key), how="full", suffix="_found", coalesce=True)
        changed = differing_columns(together, VALUES)
        height = together.height
        equal = not changed and height == self.feed.expected.height == landed.height
        self._add(
            f"landed values = {self.feed.name}, value by value",
            equal,
            f"{height:,} rows x {len(VALUES)} columns equal"
            if equal
            else f"different: {changed or f'{height:,} rows'}",
        )

        letters = read_letters(settings, topic)
        expected = sent.poison
        poison = compare_sets(expected, letters.unique(subset=list(IDENTITY)))
        self._add("acknowledged bad messages = dead letters", poison.equal, poison.sentence(), **asdict(poison))
        reasons = wrong_reasons(letters.with_columns(sent.reason_of(letters["value"]).alias("reason")), letters)
        by_reason = letters.unique(subset=list(IDENTITY)).group_by("reason").len().sort("reason")
        self._add(
            "each dead letter has the right reason",
            reasons.is_empty(),
            ", ".join(f"{reason} {count}" for reason, count in by_reason.iter_rows())
            if reasons.is_empty()
            else f"{reasons.height} wrong, e.g. {reasons.row(0, named=True)}",
        )

    def _judge_live(self) -> None:
        today = datetime.now(UTC).date()
        rows = self.lake.scan(READINGS).filter(pl.col("event_date") == today)
        newest = rows.select(pl.col("ingest_time").max()).collect().item()
        age = (datetime.now(UTC) - newest).total_seconds() if newest else float("inf")
        fresh = age < 60 or not self.settings.simulate
        self._add("the running platform lands its own readings", fresh, f"newest row {age:.1f} s ago")

    # -- the later stages --------------------------------------------------------------------------------
    def _launch(self, job: str, partition: str | None) -> Run | None:
        what = f"{job}{f' for {partition}' if partition else ''}"
        self.say(f"running {what}")
        run = self.dagster.wait(self.dagster.launch(job, partition), RUN_DEADLINE_S)
        if run.status != "SUCCESS":
            self._add(f"Dagster run of {what}", False, f"{run.status}: {self.dagster.failure_of(run.run_id)}")
            return None
        return run

    def _judge_features(self) -> None:
        for day in self.feed.days:
            self._launch(names.JOB_BATCH, day.isoformat())
        wanted = self.feed.expected["event_time"].dt.date().value_counts().sort("event_time")
        days = pl.col("event_date").is_in(self.feed.days)
        rows = self.lake.scan("features").filter(days).select(pl.len()).collect().item()
        self._add(
            "feature rows = landed readings",
            rows == self.feed.expected.height,
            f"{rows:,} rows on {wanted.height} UTC day(s)",
        )
        files = sorted(self.settings.marts_dir.rglob("*.parquet"))
        published = {file.parent.name for file in files}
        minutes = sum(
            pl.scan_parquet(file).select(pl.col("readings").sum()).collect().item() or 0
            for file in files
            if file.parent.name == "fct_device_minute"
        )
        self._add(
            "marts published, their counts add up",
            minutes == self.feed.expected.height,
            f"{', '.join(sorted(published))}; fct_device_minute holds {minutes:,} readings",
        )

    def _judge_model(self, deadline_s: float) -> None:
        champion_file = self.settings.models_dir / "champion.json"
        deadline = time.monotonic() + deadline_s
        while not champion_file.is_file():
            if time.monotonic() > deadline:
                raise SmokeError(
                    f"there is no champion after {deadline_s:.0f} s", "see the training job in Dagster's UI"
                )
            time.sleep(1.0)
        champion = json.loads(champion_file.read_text(encoding="utf-8"))
        metrics = champion["metrics"]
        good = metrics["accuracy"] >= self.settings.gate_min_accuracy and metrics["f1"] >= self.settings.gate_min_f1
        self._add(
            "champion passed the gate",
            good or bool(champion.get("forced")),
            f"version {champion['version']}, trained on {champion['trained_on']} data, {metrics['validation']}: "
            f"accuracy {metrics['accuracy']:.4f}, F1 {metrics['f1']:.4f} "
            f"(a random split would have said {metrics['random_split_accuracy']:.4f})",
            version=champion["version"],
            metrics=metrics,
        )

    def _judge_prediction(self) -> None:
        reading = self.feed.readings.row(0, named=True)
        body = {name: reading[name] for name in ALL_SENSOR_NAMES if reading[name] is not None}
        url = f"{self.settings.api_url}/predict"
        version = json.loads((self.settings.models_dir / "champion.json").read_text(encoding="utf-8"))["version"]
        # The API looks for a new champion once in a while; the proof waits as a client would.
        deadline = time.monotonic() + 30
        while True:
            answer = httpx.post(url, json=body, timeout=10, trust_env=False)
            if answer.status_code == httpx.codes.OK or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        content = answer.json()
        served = answer.status_code == httpx.codes.OK and content["model_version"] == str(version)
        found = f"HTTP {answer.status_code}: {content}"
        if answer.status_code == httpx.codes.OK:
            model = content["model_version"]
            found = f"{content['label']}, probability {content['probability']:.4f}, model version {model}"
        self._add("prediction over HTTP by the champion", served, found)

    def _judge_alarm(self) -> None:
        """A device reports calmly and then burns; its alarm must be seen where an operator looks.

        Only on a private platform: on a running one somebody would be called.
        """
        device = f"verify-{secrets.token_hex(4)}"
        scenes, turns = Scenes(self.plan.seed), CALM_READINGS + BURNING_READINGS
        began = datetime.now(UTC) - timedelta(seconds=turns)
        producer = ReadingProducer(self.settings.brokers, self.settings.topic_readings)
        for turn in range(turns):
            moment = began + timedelta(seconds=turn)
            producer.send(device, scenes.message(device, moment, turn, burning=turn >= CALM_READINGS))
        producer.flush(ALARM_DEADLINE_S)
        producer.raise_failures()
        producer.close()
        acknowledged = time.monotonic()
        query = {"device": device, "kind": "fire", "state": "live"}
        alarms: list[dict[str, Any]] = []
        while not alarms and time.monotonic() - acknowledged < ALARM_DEADLINE_S:
            answer = httpx.get(f"{self.settings.api_url}/alarms", params=query, timeout=60, trust_env=False)
            alarms = answer.raise_for_status().json()["alarms"]
            time.sleep(0.05)
        seconds = time.monotonic() - acknowledged
        self._add(
            "a fire is one alarm, seen over HTTP",
            len(alarms) == 1,
            f"{alarms[0]['severity']}, {seconds:.1f} s after the fire's last reading was acknowledged"
            if len(alarms) == 1
            else f"{len(alarms)} alarms after {seconds:.0f} s",
        )

    def _judge_drift(self, day: str) -> None:
        if self._launch(names.JOB_DRIFT, day) is None:
            return
        reports = sorted((self.settings.reports_dir / "drift").glob("*.html"), key=lambda file: file.stat().st_mtime)
        self._add(
            "drift report",
            bool(reports),
            f"{reports[-1]} ({reports[-1].stat().st_size / 1e6:.1f} MB)" if reports else "no report was written",
        )

    def _judge_runs(self, runs: list[Run]) -> None:
        """Every finished run is green.

        With kills those that were hit are left out, and streaming runs that ended because the broker or the daemon was
        killed beneath them: they are named, and one that came later must be green.
        """
        killed = {kill.run_id for kill in self.harm.done if kill.run_id} if self.harm else set()
        finished = [run for run in runs if run.finished]
        judged = [run for run in finished if run.run_id not in killed]
        taken_along = _taken_along(finished) if killed else set()
        judged = [run for run in judged if run.run_id not in taken_along]
        failed = [run for run in judged if run.status != "SUCCESS"]
        by_job = Counter(run.job for run in judged)
        excepted = f", but the {len(killed)} that were killed" if killed else ""
        if with_them := len(taken_along - killed):
            excepted += f" and {with_them} that the kills took along"
        self._add(
            "every Dagster run is green" + excepted,
            not failed and bool(judged),
            ", ".join(f"{job} {count}" for job, count in sorted(by_job.items()))
            if not failed
            else "; ".join(
                f"{run.job} {run.partition} {run.status}: {self.dagster.failure_of(run.run_id)}" for run in failed
            ),
        )

    # -- bookkeeping -------------------------------------------------------------------------------------
    def _add(self, what: str, ok: bool, found: str, **facts: Any) -> None:
        self.findings.append(Finding(what, ok, found, facts))
        self.say(f"{'ok ' if ok else 'NOT'} {what}: {found}")

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """A step that cannot be carried out is a bad finding, and the next step is tried all the same."""
        try:
            yield
        except (SmokeError, httpx.HTTPError, OSError, KeyError) as error:
            self._add(name, False, f"{type(error).__name__}: {error}")

    @contextmanager
    def _apart(self) -> Iterator[Settings]:
        """Settings of a topic and tables of their own beside the running platform's, removed afterwards."""
        home = Path(tempfile.mkdtemp(prefix="smoke-verify-"))
        apart = load_settings(
            {
                "SMOKE_HOME": str(home),
                "SMOKE_CACHE_DIR": str(self.settings.cache_dir),
                "KAFKA_BOOTSTRAP_SERVERS": self.settings.brokers,
                "KAFKA_TOPIC_SMOKE": f"smoke_verify_{secrets.token_hex(4)}",
                "SMOKE_KAFKA_PARTITIONS": str(self.settings.kafka_partitions),
                "SMOKE_KAFKA_REPLICATION": str(self.settings.kafka_replication),
            },
            home / "no.env",
        )
        own = (apart.topic_readings, apart.topic_dead_letters)
        with Cluster(apart.brokers) as cluster:
            cluster.create([spec for spec in specs_for(apart) if spec.name in own])
            try:
                yield apart
            finally:
                cluster.delete(own)
                shutil.rmtree(home, ignore_errors=True)


def _taken_along(runs: list[Run]) -> set[str]:
    """Ids of the streaming runs that are not green, where a later one is; ``runs`` newest first."""
    streaming = [run for run in runs if run.job == names.JOB_LANDING]
    later = list(itertools.dropwhile(lambda run: run.status != "SUCCESS", streaming))
    return {run.run_id for run in later if run.status != "SUCCESS"}


@dataclass(frozen=True, slots=True)
class _Sent:
    """What the broker acknowledged: identities of readings and of bad messages, and each bad message's reason."""

    readings: pl.DataFrame
    poison: pl.DataFrame
    reasons: dict[bytes, str]

    def reason_of(self, values: pl.Series) -> pl.Series:
        return pl.Series([self.reasons.get(value, "no such message was sent") for value in values], dtype=pl.String)


def _identities(offsets: AcknowledgedOffsets, topic: str) -> pl.DataFrame:
    schema = {"partition": pl.Int32, "offset": pl.Int64}
    frame = pl.DataFrame(list(offsets.pairs()), schema=schema, orient="row")
    return frame.select(pl.lit(topic).alias("topic_id"), "partition", "offset")


def read_letters(settings: Settings, topic: str) -> pl.DataFrame:
    """Every record of the dead-letter topic about the topic with this id: ``IDENTITY``, reason, value."""
    ends = watermarks(settings, settings.topic_dead_letters)
    rows = []
    todo = {number: high for number, (low, high) in ends.items() if high > low}
    with BulkConsumer(settings.brokers, settings.topic_dead_letters, {n: ends[n][0] for n in todo}) as consumer:
        deadline = time.monotonic() + LANDING_DEADLINE_S
        while todo:
            if time.monotonic() > deadline:
                raise SmokeError(f"partitions {sorted(todo)} of the dead letters could not be read to their end")
            batch = consumer.take(0.5)
            for row, value in enumerate(batch.values):
                facts = {name: (text or b"").decode("utf-8", "replace") for name, text in batch.headers.get(row, [])}
                rows.append(
                    (facts["topic_id"], int(facts["partition"]), int(facts["offset"]), facts["reason"], value or b"")
                )
                number = batch.partitions[row]
                if number in todo and batch.offsets[row] + 1 >= todo[number]:
                    del todo[number]
    schema = {"topic_id": pl.String, "partition": pl.Int32, "offset": pl.Int64, "reason": pl.String, "value": pl.Binary}
    return pl.DataFrame(rows, schema=schema, orient="row").filter(pl.col("topic_id") == topic)
