"""The warehouse in Dagster: dbt's models with their tests, the published marts, and when a day is built.

Belongs here: assets, checks, job, schedule and sensor of the warehouse. Does not: SQL (``dbt_project``), what a build
reads and publishes (``adapters.warehouse``), which days are due (``domain.day_builds``), the features
(``orchestration.models``), which the batch job computes before it builds.
"""

import json
import os
import secrets
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version as installed_version
from typing import Any, cast

import dagster as dg
from packaging.version import Version

from smoke_platform.adapters import warehouse
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.warehouse import BuildRecord, LogPosition
from smoke_platform.adapters.warehouse_schema import MARTS, PROJECT_DIR, WORK_TABLES
from smoke_platform.adapters.windows import WINDOWS
from smoke_platform.domain.day_builds import Arrival, Asked, DayBuilds, Policy, Waiting
from smoke_platform.orchestration import names, partitions
from smoke_platform.settings import Settings

# dagster-dbt imports dbt-core where it finds it and does without where it does not. All that is used of it here works
# without, and every run of every job would pay 1.7 s for the import.
_DBT_CORE = "dbt.version"
_is_loaded = _DBT_CORE in sys.modules
if not _is_loaded:
    sys.modules[_DBT_CORE] = None  # type: ignore[assignment]  # None is how Python marks what must not be imported
try:
    from dagster_dbt import DagsterDbtTranslator, DbtCliResource, dbt_assets
finally:
    if not _is_loaded:
        del sys.modules[_DBT_CORE]

PUBLISHED = dg.AssetKey(["warehouse", "marts"])
DOCUMENTATION = dg.AssetKey(["warehouse", "documentation"])
DAY_SENSOR = "day_sensor"
DAILY_SCHEDULE = "batch_daily"

#: Tag of a run that the sensor asks for: the versions of the followed tables that the run sees at least, as JSON.
SEEN_TAG = "smoke/lake_versions"
#: What dbt calls a source -> the asset that writes it.
_SOURCES = {
    READINGS: names.READINGS,
    WINDOWS: names.WINDOWS,
    "features": names.FEATURES,
    "predictions": names.RECORDS["predictions"],
    "alarms": names.RECORDS["alarms"],
}
TICK_S = 30
#: A day that received nothing for this long is built without waiting for more.
QUIET = timedelta(seconds=30)
#: A day without a build gets its first one after this long, even while it keeps receiving.
FIRST_PATIENCE = timedelta(seconds=60)
#: Builds under way at once; the pool lets one at a time into the warehouse.
MOST_BUILDS = 4

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class DbtCommand(DbtCliResource):  # type: ignore[misc]  # dagster-dbt ships no type information
    """dbt as it is installed with the platform.

    The base class asks ``dbt --version`` before every build, which looks for newer versions on the internet, and
    imports dbt's adapter into the Dagster process, which only its ``fetch_*`` methods need.
    """

    @property
    def _cli_version(self) -> Version:
        return Version(installed_version("dbt-core"))

    def _initialize_dbt_core_adapter(self, args: Sequence[str]) -> Any:
        return None


class Translator(DagsterDbtTranslator):  # type: ignore[misc]  # dagster-dbt ships no type information
    """dbt's names in the platform's asset graph."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        if dbt_resource_props["resource_type"] == "source":
            return _SOURCES[dbt_resource_props["name"]]
        return dg.AssetKey(["warehouse", dbt_resource_props["name"]])

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        return names.GROUP_FEATURES

    def get_partition_mapping(
        self, dbt_resource_props: Mapping[str, Any], dbt_parent_resource_props: Mapping[str, Any]
    ) -> dg.PartitionMapping | None:
        # Readings are partitioned by Kafka partition; a day may come from any of them.
        if self.get_asset_key(dbt_parent_resource_props) == names.READINGS:
            return dg.AllPartitionMapping()
        return None


def definitions(settings: Settings) -> dg.Definitions:
    """Assets, batch job, schedule and sensor of the warehouse; parses the dbt project where that is out of date."""
    assets = [_models(settings), _marts(settings), _documentation(settings)]
    job = dg.define_asset_job(
        names.JOB_BATCH,
        selection=dg.AssetSelection.assets(
            names.FEATURES,
            *(dg.AssetKey(["warehouse", model]) for model in (*WORK_TABLES, *MARTS)),
            PUBLISHED,
        ),
        tags=names.BATCH_TAGS,
        # One process for all steps: a process of its own for each costs more than the work of a small day.
        executor_def=dg.in_process_executor,
        description="Features, warehouse and marts of one UTC day.",
    )
    command = DbtCommand(
        project_dir=str(PROJECT_DIR),
        profiles_dir=str(warehouse.dbt_home(settings)),
        dbt_executable=str(warehouse.dbt_executable()),
    )
    return dg.Definitions(
        assets=assets,
        jobs=[job],
        schedules=[_schedule(settings)],
        sensors=[_sensor(settings)],
        resources={"dbt": command},
    )


# -- assets ------------------------------------------------------------------------------------------------------


def _models(settings: Settings) -> dg.AssetsDefinition:
    manifest = warehouse.prepare(settings)

    @dbt_assets(  # type: ignore[untyped-decorator]  # dagster-dbt ships no type information
        manifest=manifest,
        name="warehouse_models",
        partitions_def=partitions.daily(settings),
        dagster_dbt_translator=Translator(),
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=names.POOL_WAREHOUSE,
    )
    def warehouse_models(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
        days = _days(context)
        began_at = datetime.now(UTC)
        seen = _seen(context, warehouse.log_positions(Lake(settings.lake)))
        warehouse.begin_build(settings, days)
        target = warehouse.new_target(settings, f"{days[0]}-{context.run.run_id[:8]}-{began_at:%H%M%S%f}")
        with _environment(warehouse.build_environment(days[0], days[-1])):
            invocation = dbt.cli(["build"], context=context, target_path=target)
        yield from invocation.stream()
        if not context.is_subset:
            warehouse.finish_build(settings, days, seen, began_at)

    return cast(dg.AssetsDefinition, warehouse_models)


def _marts(settings: Settings) -> dg.AssetsDefinition:
    with warnings.catch_warnings():
        # The policy's name is marked as beta; a backfill without it would start a process for each day.
        warnings.filterwarnings("ignore", message=".*backfill_policy.*", category=dg.BetaWarning)

        @dg.asset(
            key=PUBLISHED,
            group_name=names.GROUP_FEATURES,
            deps=[dg.AssetKey(["warehouse", model]) for model in MARTS],
            partitions_def=partitions.daily(settings),
            backfill_policy=dg.BackfillPolicy.single_run(),
            pool=names.POOL_WAREHOUSE,
            kinds={"duckdb", "parquet"},
            description="The facts and training examples as Parquet, a file for each day, for every other program.",
        )
        def marts(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
            rows = warehouse.publish_marts(settings, _days(context))
            return dg.MaterializeResult(
                metadata={
                    "dagster/row_count": sum(rows.values()),
                    **{f"rows_{mart}": count for mart, count in rows.items()},
                    "folder": dg.MetadataValue.path(str(settings.marts_dir)),
                }
            )

    return marts


def _documentation(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        key=DOCUMENTATION,
        group_name=names.GROUP_FEATURES,
        deps=[PUBLISHED],
        pool=names.POOL_WAREHOUSE,
        kinds={"dbt", "html"},
        description="dbt's documentation of sources, models, columns and tests, as one HTML page.",
    )
    def documentation() -> dg.MaterializeResult[Any]:
        page = warehouse.docs(settings)
        return dg.MaterializeResult(metadata={"page": dg.MetadataValue.path(str(page))})

    return documentation


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a child process started inside: dagster-dbt hands on those of this process only."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _days(context: dg.AssetExecutionContext) -> list[date]:
    window = context.partition_time_window
    return warehouse.days_between(window.start.date(), (window.end - timedelta(days=1)).date())


def _seen(context: dg.AssetExecutionContext, now: Mapping[str, LogPosition]) -> dict[str, LogPosition]:
    """What every step of the run has seen: the features were computed before dbt looked at the lake."""
    asked = {
        name: LogPosition(*position) for name, position in json.loads(context.run.tags.get(SEEN_TAG, "{}")).items()
    }
    return {
        name: min(position, asked[name], key=lambda each: each.version)
        if name in asked and asked[name].table_id == position.table_id
        else position
        for name, position in now.items()
    }


# -- when --------------------------------------------------------------------------------------------------------


def _schedule(settings: Settings) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=DAILY_SCHEDULE,
        job_name=names.JOB_BATCH,
        cron_schedule="0 6 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        tags=names.BATCH_TAGS,
        description="Finishes the last complete UTC day.",
    )
    def batch_daily(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        day = (context.scheduled_execution_time.astimezone(UTC) - timedelta(days=1)).date()
        return dg.RunRequest(run_key=f"daily/{day}", partition_key=day.isoformat())

    return batch_daily


def _sensor(settings: Settings) -> dg.SensorDefinition:
    policy = Policy(QUIET, timedelta(minutes=settings.build_minutes), FIRST_PATIENCE, MOST_BUILDS)

    @dg.sensor(
        name=DAY_SENSOR,
        job_name=names.JOB_BATCH,
        minimum_interval_seconds=TICK_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Builds the days that received readings or windows since their last build.",
    )
    def day_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return evaluate(settings, policy, context.cursor, _under_way(context.instance), datetime.now(UTC))

    return day_sensor


def evaluate(
    settings: Settings, policy: Policy, cursor: str | None, under_way: frozenset[date], now: datetime
) -> dg.SensorResult:
    """One tick: reads what the lake's log says since ``cursor``, and requests the builds that are due."""
    memory = Memory.from_cursor(cursor)
    built = warehouse.published_builds(settings)
    positions: dict[str, LogPosition] = {}
    arrivals: list[Arrival] = []
    for name in warehouse.FOLLOWED:
        positions[name], found = warehouse.arrivals_since(Lake(settings.lake), name, memory.positions.get(name), built)
        arrivals += [arrival for arrival in found if arrival.day >= settings.first_day]
    anew = [name for name, before in memory.positions.items() if before.table_id != positions[name].table_id]
    versions = {day: _versions(record, positions) for day, record in built.items()}
    built_before = frozenset(day for day, seen in versions.items() if READINGS in seen)
    builds = memory.builds.without_tables(anew).with_arrivals(arrivals).without_built(versions, now, policy)
    due = builds.due(now=now, under_way=under_way, built=built_before, policy=policy)
    builds = builds.after_asking(due, now)
    requests = [_request(memory.origin, positions, day, builds.asked[day]) for day in due]
    reason = f"{len(builds.waiting)} days wait, {len(under_way)} builds are under way"
    known = {name: position for name, position in positions.items() if position != warehouse.NO_TABLE}
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else dg.SkipReason(reason),
        cursor=Memory(memory.origin, known, builds).to_cursor(),
    )


def _versions(record: BuildRecord, positions: Mapping[str, LogPosition]) -> dict[str, int]:
    """What a build has seen of the tables that are still the same."""
    return {
        name: record.position(name).version
        for name, position in positions.items()
        if record.position(name).table_id == position.table_id
    }


def _request(origin: str, positions: Mapping[str, LogPosition], day: date, asked: Asked) -> dg.RunRequest:
    # Dagster drops a key that it has seen, for ever and without a word: a build that failed is asked for under a
    # new one, and so is everything after the cursor was reset (origin).
    versions = "/".join(f"{name}-{version}" for name, version in sorted(asked.versions.items()))
    seen = json.dumps({name: astuple(position) for name, position in positions.items()})
    return dg.RunRequest(
        run_key=f"{origin}/{day}/{versions}/{asked.at.timestamp():.0f}",
        partition_key=day.isoformat(),
        tags={**names.BATCH_TAGS, SEEN_TAG: seen},
    )


def _under_way(instance: dg.DagsterInstance) -> frozenset[date]:
    """Days of batch runs that have not ended, those of backfills over a range included."""
    runs = instance.get_runs(dg.RunsFilter(job_name=names.JOB_BATCH, statuses=_UNFINISHED))
    days: set[date] = set()
    for run in runs:
        key = run.tags.get("dagster/partition")
        first = run.tags.get("dagster/asset_partition_range_start", key)
        last = run.tags.get("dagster/asset_partition_range_end", key)
        if first and last:
            days.update(warehouse.days_between(date.fromisoformat(first), date.fromisoformat(last)))
    return frozenset(days)


class Memory:
    """The sensor's cursor: where the logs were read to, and what waits."""

    def __init__(self, origin: str, positions: Mapping[str, LogPosition], builds: DayBuilds) -> None:
        self.origin = origin
        self.positions = positions
        self.builds = builds

    @staticmethod
    def from_cursor(cursor: str | None) -> "Memory":
        data = json.loads(cursor or "{}")
        if "positions" not in data:
            # There is none, or it is of the time when only the readings were followed: the tables' files say as much.
            return Memory(secrets.token_hex(4), {}, DayBuilds())
        moment = datetime.fromisoformat
        waiting = {
            date.fromisoformat(day): Waiting(versions, moment(since), moment(last))
            for day, (versions, since, last) in data["waiting"].items()
        }
        asked = {
            date.fromisoformat(day): Asked(versions, moment(at), tries)
            for day, (versions, at, tries) in data["asked"].items()
        }
        positions = {name: LogPosition(*position) for name, position in data["positions"].items()}
        return Memory(data["origin"], positions, DayBuilds(waiting, asked))

    def to_cursor(self) -> str:
        return json.dumps(
            {
                "origin": self.origin,
                "positions": {name: astuple(position) for name, position in self.positions.items()},
                "waiting": {
                    day.isoformat(): [wait.versions, wait.since.isoformat(), wait.last.isoformat()]
                    for day, wait in sorted(self.builds.waiting.items())
                },
                "asked": {
                    day.isoformat(): [ask.versions, ask.at.isoformat(), ask.tries]
                    for day, ask in sorted(self.builds.asked.items())
                },
            }
        )
