"""Landing as Dagster sees it: topics and landed tables as assets, the streaming job, its supervising sensor.

Belongs here: when a landing run is started, taken for dead or left alone, and what of it is shown. Does not: landing
itself (``streaming.landing``, ``streaming.records_landing``), pausing by command (``cli.landing``).

The sensor is the supervisor. It trusts the lease that the kernel holds for the run's process, never the run's status:
a run whose code server died with it stays STARTED for ever. The sensor's decision is the pure function ``decide``.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import dagster as dg

from smoke_platform.adapters.kafka_bulk import KafkaUnreachable
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.lease import Beat, LeaseHeld, LeaseState, kill_holder, probe
from smoke_platform.adapters.windows import LEVEL_COLUMNS, WindowTable, conspicuous
from smoke_platform.domain.alarms import Severity
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.lake_records import RECORD_TABLES
from smoke_platform.orchestration import names, partitions
from smoke_platform.orchestration.spark import SparkRun
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import (
    Audit,
    Companion,
    Fenced,
    Landing,
    LandingReport,
    Progress,
    Standing,
    StandingProbe,
    audit,
    lease_path,
    paused,
)
from smoke_platform.streaming.preparing import PartitionTally
from smoke_platform.streaming.records_landing import RecordsLanding, RecordsProbe, RecordTally
from smoke_platform.streaming.windows import (
    WindowAudit,
    WindowEngine,
    WindowsProbe,
    WindowTally,
    audit_windows,
)

#: A holder that has not been heard of for this long is stuck; more than the slowest commit.
STALE_S = 15.0
#: A process needs this long at most from its launch to its first heartbeat; on an overloaded machine longer, so each
#: run that did not get that far gives the next one twice the time.
STARTING_S = 20.0
LONGEST_STARTING_S = 160.0
#: A tick watches this long, in these steps: a new one comes only 5 s after the last began.
WATCH_S = 4.0
STEP_S = 0.2
#: Alarms and predictions are asked for less often: four topics, and seconds do not matter to them.
RECORDS_EVERY_S = 2.0
#: After this many runs in a row that committed nothing, the next waits: a cause that a restart does not mend.
FRUITLESS_RUNS = 3
LONGEST_WAIT_S = 300.0
#: One materialisation a partition, not one a batch: an event costs 4.5 KB of storage that is kept for weeks.
MATERIALISE_EVERY_S = 30.0

CHECK_IDENTITIES = "each_message_once"
CHECK_WINDOWS = "each_window_once"
CHECK_LEVELS = "window_means_below_high"
#: A window that was written this long ago at most is one of now.
LEVELS_WITHIN = timedelta(minutes=10)
#: Devices that a check names; the number of all stands beside them.
MOST_NAMED = 50


# -- the decision ----------------------------------------------------------------------------------------


class Kind(StrEnum):
    LEAVE = "leave"
    WAIT = "wait"
    KILL = "kill"
    FAIL = "fail"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Action:
    """What to do now, and why. ``run_ids`` for FAIL, ``beat`` for KILL."""

    kind: Kind
    reason: str
    run_ids: tuple[str, ...] = ()
    beat: Beat | None = None


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """A landing run that Dagster takes to be unfinished; ``age_s`` is the time since its last change of status."""

    run_id: str
    queued: bool
    age_s: float


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What speaks for or against a new run.

    Attributes:
        lag: messages to land, ``None`` where the broker does not say.
        fault: what a person has to mend first, or an empty string.
        paused: why landing is paused, ``None`` where it is not.
        fruitless: runs that failed since landing last committed anything.
        last_failure_s: time since the last of them failed.
    """

    lag: int | None
    fault: str = ""
    paused: str | None = None
    fruitless: int = 0
    last_failure_s: float = 0.0


def decide(
    lease: LeaseState,
    runs: Sequence[UnfinishedRun],
    around: Surroundings,
    now: float,
    starting_s: float = STARTING_S,
) -> Action:
    """What the supervisor does.

    Args:
        lease: who holds it, and the last heartbeat.
        runs: the job's unfinished runs; only looked at when nobody holds the lease.
        around: only looked at when no run is under way.
        now: epoch seconds.
        starting_s: how long a run may take until it holds the lease.
    """
    beat = lease.beat
    if lease.held:
        if beat is not None and now - beat.at > STALE_S:
            return Action(Kind.KILL, f"process {beat.pid} has been silent for {now - beat.at:.0f} s", beat=beat)
        return Action(Kind.LEAVE, "landing is at work")

    dead = tuple(run.run_id for run in runs if not run.queued and _is_dead(run, beat, now, starting_s))
    if dead:
        return Action(Kind.FAIL, f"its process is gone: {', '.join(dead)}", run_ids=dead)
    if runs:
        return Action(Kind.WAIT, f"run {runs[0].run_id} is about to start or to end")

    return _start_or_not(around)


def _start_or_not(around: Surroundings) -> Action:
    if around.paused is not None:
        action = Action(Kind.LEAVE, f"landing is paused: {around.paused}")
    elif around.fault:
        action = Action(Kind.LEAVE, around.fault)
    elif around.lag is None:
        action = Action(Kind.LEAVE, "the broker does not answer")
    elif around.lag <= 0:
        action = Action(Kind.LEAVE, "nothing to land")
    elif around.last_failure_s < (wait := patience_s(around.fruitless)):
        action = Action(Kind.WAIT, f"{around.fruitless} runs failed and landed nothing; the next waits {wait:g} s")
    else:
        action = Action(Kind.REQUEST, f"{around.lag} messages to land")
    return action


def _is_dead(run: UnfinishedRun, beat: Beat | None, now: float, starting_s: float) -> bool:
    """Whether a run that nobody holds the lease for is gone, rather than just starting or just ending."""
    if beat is not None and beat.run_id == run.run_id:
        return not beat.ended or now - beat.at > starting_s
    return run.age_s > starting_s


def starting_patience_s(fruitless: int) -> float:
    """How long a run may take to start after so many fruitless ones.

    With a fixed bound a machine too busy to start a run in time would end every one of them, and never land again.
    """
    return min(LONGEST_STARTING_S, STARTING_S * 2.0 ** min(fruitless, 10))


def patience_s(fruitless: int) -> float:
    """How long the next run waits after so many fruitless ones: not at all at first, then doubling up to 300 s."""
    if fruitless < FRUITLESS_RUNS:
        return 0.0
    return min(LONGEST_WAIT_S, 5.0 * 2.0 ** min(fruitless - FRUITLESS_RUNS, 10))


# -- what the decision looks at --------------------------------------------------------------------------

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class Supervisor:
    """Looks, decides and acts, for one platform. Its connections outlive the tick."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lease = lease_path(settings)
        self._probe: StandingProbe | None = None
        self._records: RecordsProbe | None = None
        self._windows: WindowsProbe | None = None
        self._records_seen: tuple[float, int, str] | None = None
        self._one_at_a_time = threading.Lock()

    def step(self, instance: dg.DagsterInstance) -> Action:
        """Looks and decides; KILL and FAIL are carried out, REQUEST is left to the caller."""
        with self._one_at_a_time:
            lease = probe(self._lease)
            runs = [] if lease.held else self._unfinished(instance)
            around = Surroundings(None) if lease.held or runs else self._around(instance, lease)
            starting_s = starting_patience_s(self._fruitless(instance, lease)[0] if runs else 0)
            action = decide(lease, runs, around, time.time(), starting_s)
            if action.kind is Kind.KILL and action.beat is not None:
                kill_holder(action.beat)
            for run_id in action.run_ids:
                self._fail(instance, run_id)
            return action

    def _unfinished(self, instance: dg.DagsterInstance) -> list[UnfinishedRun]:
        records = instance.get_run_records(dg.RunsFilter(job_name=names.JOB_LANDING, statuses=_UNFINISHED), limit=50)
        now = datetime.now(UTC)
        return [
            UnfinishedRun(
                record.dagster_run.run_id,
                record.dagster_run.status == dg.DagsterRunStatus.QUEUED,
                (now - record.update_timestamp.astimezone(UTC)).total_seconds(),
            )
            for record in records
        ]

    def _around(self, instance: dg.DagsterInstance, lease: LeaseState) -> Surroundings:
        why_paused = paused(self._settings)
        if why_paused is not None:
            return Surroundings(None, paused=why_paused)
        try:
            self._probe = self._probe or StandingProbe(self._settings)
            standing = self._probe.standing()
            records_lag, records_fault = self._of_records()
        except KafkaUnreachable:
            return Surroundings(None)
        if standing.topic_id is None:
            return Surroundings(None, f"there is no topic {self._settings.topic_readings}: run `smoke topics create`")
        fruitless, ago = self._fruitless(instance, lease)
        fault = str(standing.fault or records_fault)
        waiting = sum(standing.lag.values()) + records_lag
        return Surroundings(waiting, fault, fruitless=fruitless, last_failure_s=ago)

    def _of_records(self) -> tuple[int, str]:
        """What else waits to be done, messages of the other topics above all, and what keeps them from it."""
        now = time.monotonic()
        if self._records_seen is None or now - self._records_seen[0] >= RECORDS_EVERY_S:
            self._records = self._records or RecordsProbe(self._settings)
            found = self._records.standings()
            faults = [f"lake/{name}: {standing.fault}" for name, standing in found.items() if standing.fault]
            waiting = sum(sum(standing.lag.values()) for standing in found.values()) + self._of_windows()
            self._records_seen = (now, waiting, "; ".join(faults))
        return self._records_seen[1:]

    def _of_windows(self) -> int:
        """What waits for the windows: readings that have landed, or the end of windows whose devices are silent."""
        self._windows = self._windows or WindowsProbe(self._settings)
        return self._windows.standing().waiting(datetime.now(UTC))

    def _fruitless(self, instance: dg.DagsterInstance, lease: LeaseState) -> tuple[int, float]:
        since = lease.beat.progressed if lease.beat else 0.0
        horizon = max(since, time.time() - 2 * LONGEST_WAIT_S)
        records = instance.get_run_records(
            dg.RunsFilter(
                job_name=names.JOB_LANDING,
                statuses=[dg.DagsterRunStatus.FAILURE],
                created_after=datetime.fromtimestamp(horizon, UTC),
            ),
            limit=20,
        )
        ends = [record.end_time for record in records if record.end_time is not None]
        return len(records), time.time() - max(ends, default=0.0)

    @staticmethod
    def _fail(instance: dg.DagsterInstance, run_id: str) -> None:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, "The process of this run is gone; landing goes on in another run.")


def watch(look: Callable[[], Action], sleep: Callable[[float], None] = time.sleep) -> Action:
    """Looks again and again for one tick, until a run is to be requested; the last action otherwise."""
    deadline = time.monotonic() + WATCH_S
    while True:
        action = look()
        if action.kind is Kind.REQUEST or time.monotonic() >= deadline:
            return action
        if action.kind not in (Kind.KILL, Kind.FAIL):
            sleep(STEP_S)


# -- what is shown ---------------------------------------------------------------------------------------


class _Bulletin:
    """Gathers what was landed and logs it as materialisations, now and then."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        settings: Settings,
        standing: Callable[[], Standing],
        records: Callable[[], dict[str, RecordTally]],
        windows: Callable[[], WindowTally] | None,
    ) -> None:
        self._context = context
        self._records = records
        self._windows = windows
        self._levels = _Levels(settings)
        self._known = set(partitions.kafka(settings).get_partition_keys())
        self._standing = standing
        self._tallies: dict[int, PartitionTally] = {}
        self._version = -1
        self._due = time.monotonic()

    def take(self, progress: Progress) -> None:
        self._version = progress.version
        for number, tally in progress.partitions.items():
            self._tallies.setdefault(number, PartitionTally()).add(tally)
        if time.monotonic() >= self._due:
            self.publish()

    def publish(self) -> None:
        """Logs a materialisation for each partition, and each other table, that got anything since the last time."""
        self._due = time.monotonic() + MATERIALISE_EVERY_S
        for name, landed in self._records().items():
            self._context.log_event(dg.AssetMaterialization(names.RECORDS[name], metadata=_record_metadata(landed)))
        self._publish_windows()
        if not self._tallies:
            return
        lag: dict[int, int] = {}
        try:
            lag = self._standing().lag
        except KafkaUnreachable:
            self._context.log.warning("the broker does not answer: lag is left out of the materialisations")
        for number, tally in sorted(self._tallies.items()):
            if str(number) not in self._known:
                self._context.log.warning(
                    "partition %s is landed, but SMOKE_KAFKA_PARTITIONS does not count it", number
                )
                continue
            self._context.log_event(
                dg.AssetMaterialization(
                    names.READINGS, partition=str(number), metadata=_metadata(tally, lag.get(number), self._version)
                )
            )
        self._tallies.clear()

    def _publish_windows(self) -> None:
        if self._windows is None:
            return
        appended = self._windows()
        if appended.fault:
            self._context.log.error("windows are not appended: %s", appended.fault)
        if not appended.windows:
            return
        self._context.log_event(dg.AssetMaterialization(names.WINDOWS, metadata=_window_metadata(appended)))
        if self._levels.have_changed():
            # In between, too: an hour is long for somebody who looks whether anything is out of order.
            found = self._levels.result()
            self._context.log_event(
                dg.AssetCheckEvaluation(
                    asset_key=names.WINDOWS,
                    check_name=CHECK_LEVELS,
                    passed=found.passed,
                    severity=found.severity,
                    metadata=found.metadata,
                    description=found.description,
                )
            )


class _Levels:
    """The devices whose newest window has a mean at level HIGH or CRITICAL; alarms are the detector's alone."""

    def __init__(self, settings: Settings) -> None:
        self._table = WindowTable(Lake(settings.lake))
        self._told: set[tuple[str, int]] | None = None
        self._found: list[dict[str, Any]] = []

    def have_changed(self) -> bool:
        """Looks at the table; says whether it is other devices, or other levels, than were told last."""
        found = conspicuous(self._table.written_after(datetime.now(UTC) - LEVELS_WITHIN, LEVEL_COLUMNS))
        self._found = found.to_dicts()
        standing = {(row["device_id"], row["level"]) for row in self._found}
        changed = standing != (self._told or set())
        self._told = standing
        return changed

    def result(self) -> dg.AssetCheckResult:
        """What was found by the last look."""
        named = self._found[:MOST_NAMED]
        lines = [
            f"| {row['device_id']} | {Severity(row['level']).name} | {row['level_sensor']} "
            f"| {row['window_end']:%Y-%m-%d %H:%M} |"
            for row in named
        ]
        table = "\n".join(["| device | level | sensor | until |", "| --- | --- | --- | --- |", *lines])
        return dg.AssetCheckResult(
            asset_key=names.WINDOWS,
            check_name=CHECK_LEVELS,
            passed=not self._found,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={
                "devices": len(self._found),
                "named": dg.MetadataValue.json([row["device_id"] for row in named]),
                "windows": dg.MetadataValue.md(table if named else "none"),
            },
            description="Means of the newest windows against the levels of the rules; alarms are the detector's.",
        )


def _window_metadata(appended: WindowTally) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "rows": appended.windows,
        "corrections": appended.corrections,
        "commits": appended.commits,
        "behind": appended.behind,
        "positions": dg.MetadataValue.json({str(number): place for number, place in appended.positions.items()}),
        "table_version": appended.version,
    }
    if appended.newest_end is not None:
        facts["newest_end"] = appended.newest_end.isoformat()
    return facts


def _metadata(tally: PartitionTally, lag: int | None, version: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "rows": tally.rows,
        "first_offset": tally.first_offset,
        "last_offset": tally.last_offset,
        "rejects": tally.rejects,
        "late": tally.late,
        "repeats": tally.repeats,
        "table_version": version,
    }
    if lag is not None:
        facts["lag"] = lag
        newest = tally.newest_append_ms / 1000
        facts["seconds_behind"] = round(max(0.0, time.time() - newest), 3) if lag and newest > 0 else 0.0
    return facts


def _record_metadata(landed: RecordTally) -> dict[str, Any]:
    return {
        "rows": landed.rows,
        "messages": landed.messages,
        "unreadable": landed.unreadable,
        "repeats": landed.repeats,
        "table_version": landed.version,
    }


def check_result(found: Audit) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=names.READINGS,
        check_name=CHECK_IDENTITIES,
        passed=found.doubles == 0 and found.beyond == 0,
        metadata={"rows_looked_at": found.rows, "doubles": found.doubles, "beyond_position": found.beyond},
        description="Among the rows that this run landed last.",
    )


def window_check_result(found: WindowAudit) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=names.WINDOWS,
        check_name=CHECK_WINDOWS,
        passed=found.doubles == 0 and found.ahead == 0,
        metadata={"rows_looked_at": found.rows, "doubles": found.doubles, "ahead_of_readings": found.ahead},
        description="Among the rows that this run appended last.",
    )


# -- definitions -----------------------------------------------------------------------------------------


def definitions(settings: Settings) -> dg.Definitions:
    """Assets, job and sensor of landing."""
    topics = [
        dg.AssetSpec(
            names.TOPIC_READINGS,
            description=f"Kafka topic {settings.topic_readings}: readings as devices send them.",
            group_name=names.GROUP_LANDING,
            kinds={"kafka"},
        ),
        dg.AssetSpec(
            names.TOPIC_DEAD_LETTERS,
            deps=[names.TOPIC_READINGS],
            description=f"Kafka topic {settings.topic_dead_letters}: messages that are no readings, with the reason.",
            group_name=names.GROUP_LANDING,
            kinds={"kafka"},
        ),
        *(
            dg.AssetSpec(
                names.TOPICS_OF_RECORDS[table.name],
                description=f"Kafka topic {table.topic}: {table.what}.",
                group_name=names.GROUP_LANDING,
                kinds={"kafka"},
            )
            for table in RECORD_TABLES
        ),
    ]
    job = dg.define_asset_job(
        names.JOB_LANDING,
        selection=dg.AssetSelection.assets(names.READINGS, *names.RECORDS.values(), names.WINDOWS),
        # With another executor the step is a process of its own and lands rows after its run is FAILED.
        executor_def=dg.in_process_executor,
        description="Lands readings in micro-batches until the topic is idle; started by the landing sensor.",
        # The sensor restarts; a retry beside it would be a second supervisor.
        run_tags={**names.LANDING_TAGS, "dagster/max_retries": "0"},
        tags=names.LANDING_TAGS,
    )
    return dg.Definitions(
        assets=[*topics, _readings(settings)], jobs=[job], sensors=[_sensor(settings, Supervisor(settings), job)]
    )


def _readings(settings: Settings) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name="land_readings",
        specs=[
            dg.AssetSpec(
                names.READINGS,
                deps=[names.TOPIC_READINGS],
                description="Delta table of all readings, each exactly once. Partitions are those of the topic.",
                group_name=names.GROUP_LANDING,
                kinds={"deltalake"},
                skippable=True,
                partitions_def=partitions.kafka(settings),
                freshness_policy=dg.FreshnessPolicy.time_window(
                    fail_window=timedelta(hours=1), warn_window=timedelta(minutes=15)
                ),
            ),
            *(
                dg.AssetSpec(
                    names.RECORDS[table.name],
                    deps=[names.TOPICS_OF_RECORDS[table.name]],
                    description=f"Delta table of all {table.what}, each exactly once.",
                    group_name=names.GROUP_LANDING,
                    kinds={"deltalake"},
                    skippable=True,
                )
                for table in RECORD_TABLES
            ),
            dg.AssetSpec(
                names.WINDOWS,
                deps=[names.READINGS],
                description="Delta table of the statistics of five minutes, a window each minute and device.",
                group_name=names.GROUP_LANDING,
                kinds={"deltalake", "polars"},
                skippable=True,
            ),
        ],
        check_specs=[
            dg.AssetCheckSpec(
                CHECK_IDENTITIES,
                asset=names.READINGS,
                description="No (topic_id, partition, offset) is in the table twice or beyond its position.",
            ),
            dg.AssetCheckSpec(
                CHECK_WINDOWS,
                asset=names.WINDOWS,
                description="No (device_id, window_start, revision) is there twice, no position beyond landing's.",
            ),
            dg.AssetCheckSpec(
                CHECK_LEVELS,
                asset=names.WINDOWS,
                description="No device's newest window has a mean at level HIGH or CRITICAL. It names them, no more.",
            ),
        ],
    )
    def land_readings(context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult]:
        began = datetime.now(UTC)
        standing = StandingProbe(settings).standing
        if settings.engine == "spark":
            remote = SparkRun(context, settings)
            bulletin = _Bulletin(context, settings, standing, remote.drain_records, remote.drain_windows)
            report = _land(context, bulletin, remote.run)
        else:
            records, windows = RecordsLanding(settings), WindowEngine(settings)
            bulletin = _Bulletin(context, settings, standing, records.drain, windows.drain)
            report = _land(context, bulletin, _here(context, settings, [records, windows]))
        bulletin.publish()
        if report is not None:
            total = report.total()
            context.log.info(
                "%s: %s rows, %s rejects, %s commits", report.ended, total.rows, total.rejects, report.commits
            )
        yield check_result(audit(settings, report))
        yield window_check_result(audit_windows(settings, report, began))
        levels = _Levels(settings)
        levels.have_changed()
        yield levels.result()

    return land_readings


#: Lands until there is a reason to end; told of each commit, and asks now and then whether it is still wanted.
_Engine = Callable[[Callable[[Progress], None], Callable[[], bool]], LandingReport]


def _here(context: dg.AssetExecutionContext, settings: Settings, companions: Sequence[Companion]) -> _Engine:
    """Engine ``local``, in this process."""

    def run(on_commit: Callable[[Progress], None], wanted: Callable[[], bool]) -> LandingReport:
        return Landing(settings, context.run.run_id, on_commit=on_commit, wanted=wanted, companions=companions).run()

    return run


def _land(context: dg.AssetExecutionContext, bulletin: _Bulletin, engine: _Engine) -> LandingReport | None:
    run_id = context.run.run_id

    def still_started() -> bool:
        run = context.instance.get_run_by_id(run_id)
        return run is not None and run.status == dg.DagsterRunStatus.STARTED

    try:
        return engine(bulletin.take, still_started)
    except LeaseHeld as held:
        context.log.warning(str(held))
        return None
    except Fenced as fence:
        raise dg.Failure(str(fence), allow_retries=False) from fence
    except SmokeError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _sensor(settings: Settings, supervisor: Supervisor, job: Any) -> dg.SensorDefinition:
    @dg.sensor(
        name="landing_sensor",
        job=job,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Keeps a landing run alive while there is anything to land. `smoke land pause` stops it.",
    )
    def landing_sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        action = watch(lambda: supervisor.step(context.instance))
        if action.kind is Kind.REQUEST:
            # No run_key: it would refuse for ever a range whose run has failed.
            return dg.RunRequest(tags=names.LANDING_TAGS)
        return dg.SkipReason(action.reason)

    return landing_sensor
