"""The warehouse through a real Dagster instance: assets, checks, blocking, the sensor's requests."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from smoke_platform.adapters import warehouse
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake
from smoke_platform.adapters.warehouse_schema import MARTS, MINUTE, STAGING, WINDOW, WORK_TABLES
from smoke_platform.domain.day_builds import Policy
from smoke_platform.orchestration import names, partitions
from smoke_platform.orchestration import warehouse as orchestration
from smoke_platform.settings import Settings
from smoke_platform_tests import warehouse_data as data
from smoke_platform_tests import window_data

DAY = date(2022, 6, 9)
POLICY = Policy(timedelta(0), timedelta(minutes=10), timedelta(minutes=1), 4)
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def settings(settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(tmp_path_factory.mktemp("dagster-warehouse"))


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    home = tmp_path_factory.mktemp("dagster-home")
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@pytest.fixture(scope="module")
def loaded(settings: Settings) -> dg.Definitions:
    """The warehouse's definitions beside stand-ins for the two assets that other subjects own."""

    @dg.asset(
        key=names.FEATURES,
        partitions_def=partitions.daily(settings),
        deps=[dg.AssetDep(names.READINGS, partition_mapping=dg.AllPartitionMapping())],
    )
    def features(context: dg.AssetExecutionContext) -> None:
        data.write_features(Lake(settings.lake), date.fromisoformat(context.partition_key))

    readings = dg.AssetSpec(names.READINGS, partitions_def=partitions.kafka(settings))
    return dg.Definitions.merge(orchestration.definitions(settings), dg.Definitions(assets=[features, readings]))


def _run(loaded: dg.Definitions, instance: dg.DagsterInstance, day: date, **tags: str) -> dg.ExecuteInProcessResult:
    job = loaded.resolve_job_def(names.JOB_BATCH)
    return job.execute_in_process(
        instance=instance, partition_key=day.isoformat(), raise_on_error=False, tags=dict(tags)
    )


def _checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {check.check_name: bool(check.passed) for check in result.get_asset_check_evaluations()}


def test_a_day_is_built_checked_published_and_then_left_alone_until_a_poisoned_row_stops_it(
    loaded: dg.Definitions, instance: dg.DagsterInstance, settings: Settings
) -> None:
    """Without it a row that no landing could have accepted would reach every reader of the marts."""
    lake = Lake(settings.lake)
    rows = data.random_readings(DAY, 800, data.SEED)
    data.land(lake, rows)
    # Those across the midnight before belong to another day, which is due as well.
    windows = window_data.windows_of(rows).filter(pl.col(PARTITION_COLUMN) == DAY)
    window_data.land_windows(lake, windows)
    now = datetime.now(UTC) + timedelta(seconds=1)
    first = orchestration.evaluate(settings, POLICY, None, frozenset(), now)
    [request] = first.run_requests or []
    assert request.partition_key == DAY.isoformat()

    result = _run(loaded, instance, DAY, **request.tags)
    assert result.success
    checks = _checks(result)
    assert len(checks) >= 22
    assert set(checks.values()) == {True}
    assert result.asset_materializations_for_node("warehouse__marts")[0].metadata["rows_fct_device_minute"].value > 0
    for model in (*WORK_TABLES, *MARTS):
        key = dg.AssetKey(["warehouse", model])
        assert instance.get_materialized_partitions(key) == {DAY.isoformat()}
    assert warehouse.read_mart(settings, MINUTE).collect().height == data.minute_facts(rows).height

    later = now + timedelta(hours=1)
    second = orchestration.evaluate(settings, POLICY, first.cursor, frozenset(), later)
    assert not second.run_requests

    # Windows that are corrected make the day due by themselves: their readings may be of another day.
    window_data.land_windows(lake, windows.head(1))
    due = orchestration.evaluate(settings, POLICY, second.cursor, frozenset(), later)
    assert [request.partition_key for request in due.run_requests or []] == [DAY.isoformat()]
    # A cursor of the time before windows were followed costs a look at the tables' files, and no more.
    old = json.dumps({"origin": "x", "position": {"table_id": "x", "version": 3}, "waiting": {}, "asked": {}})
    again = orchestration.evaluate(settings, POLICY, old, frozenset(), later)
    assert [request.partition_key for request in again.run_requests or []] == [DAY.isoformat()]

    published = {mart: warehouse.mart_file(settings, mart, DAY).read_bytes() for mart in MARTS}
    poison = data.random_readings(DAY, 1, 5, first_offset=90_000).with_columns(temperature_c=1e6)
    lake.append(READINGS, poison, [PARTITION_COLUMN])
    third = orchestration.evaluate(settings, POLICY, second.cursor, frozenset(), later + timedelta(seconds=1))
    [request] = third.run_requests or []
    result = _run(loaded, instance, DAY, **request.tags)
    assert not result.success
    assert _checks(result)["stg_readings_is_physically_possible"] is False
    assert not result.asset_materializations_for_node("warehouse__marts")
    assert published == {mart: warehouse.mart_file(settings, mart, DAY).read_bytes() for mart in MARTS}

    # The failed day is asked for again, under another key, and not before its back-off is over.
    soon = orchestration.evaluate(settings, POLICY, third.cursor, frozenset(), later + timedelta(minutes=9))
    assert not soon.run_requests
    again = orchestration.evaluate(settings, POLICY, soon.cursor, frozenset(), later + timedelta(minutes=11))
    [retry] = again.run_requests or []
    assert retry.partition_key == DAY.isoformat()
    assert retry.run_key != request.run_key
    assert not orchestration.evaluate(
        settings, POLICY, soon.cursor, frozenset({DAY}), later + timedelta(minutes=11)
    ).run_requests


def test_a_range_of_days_is_one_run(loaded: dg.Definitions, instance: dg.DagsterInstance, settings: Settings) -> None:
    """Without it a backfill of a year would start 365 processes."""
    days = [DAY + timedelta(days=number) for number in range(10, 13)]
    for number, day in enumerate(days):
        data.land(Lake(settings.lake), data.random_readings(day, 60, number))
    keys = [dg.AssetKey(["warehouse", name]) for name in (*WORK_TABLES, *MARTS, "marts")]
    assets = {id(asset): asset for asset in (loaded.resolve_assets_def(key) for key in keys)}
    tags = {
        "dagster/asset_partition_range_start": days[0].isoformat(),
        "dagster/asset_partition_range_end": days[-1].isoformat(),
    }
    result = dg.materialize(list(assets.values()), instance=instance, tags=tags)
    assert result.success
    assert set(days) <= set(warehouse.published_builds(settings))
    published = warehouse.read_mart(settings, MINUTE, days[0], days[-1]).collect()
    assert sorted(set(published["event_date"])) == days


def test_the_graph_joins_the_lake_and_the_job_selects_the_whole_chain(loaded: dg.Definitions) -> None:
    """Without it the warehouse would hang beside the graph, and the batch job would build on yesterday's features."""
    graph = loaded.resolve_asset_graph()
    staging = graph.get(dg.AssetKey(["warehouse", STAGING]))
    assert staging.parent_keys == {names.READINGS}
    assert isinstance(graph.get_partition_mapping(staging.key, names.READINGS), dg.AllPartitionMapping)
    windows = graph.get(dg.AssetKey(["warehouse", WINDOW]))
    minutes = graph.get(dg.AssetKey(["warehouse", "stg_window_minutes"]))
    assert windows.parent_keys == {names.WINDOWS, names.RECORDS["alarms"], minutes.key}
    assert minutes.parent_keys == {names.READINGS, names.RECORDS["predictions"]}
    examples = graph.get(names.TRAINING_EXAMPLES)
    assert examples.parent_keys == {names.FEATURES, staging.key}
    assert {staging.group_name, examples.group_name} == {names.GROUP_FEATURES}
    assert {"dbt", "duckdb"} <= set(staging.kinds)
    nodes = {node.name for node in loaded.resolve_job_def(names.JOB_BATCH).nodes}
    assert {"lake__features", "warehouse_models", "warehouse__marts"} == nodes
    for key in (STAGING, "marts", "documentation"):
        assert loaded.resolve_assets_def(dg.AssetKey(["warehouse", key])).op.pool == names.POOL_WAREHOUSE


def test_the_morning_schedule_finishes_the_last_complete_utc_day(
    loaded: dg.Definitions, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    """Without it a platform east of Greenwich would build a day that is not over, or skip one."""
    schedule = loaded.get_schedule_def(orchestration.DAILY_SCHEDULE)
    assert (schedule.cron_schedule, schedule.default_status) == ("0 6 * * *", dg.DefaultScheduleStatus.RUNNING)
    for local, expected in (("2022-06-10T06:00:00+00:00", "2022-06-09"), ("2022-06-10T06:00:00+12:00", "2022-06-08")):
        context = dg.build_schedule_context(
            repository_def=loaded.get_repository_def(), scheduled_execution_time=datetime.fromisoformat(local)
        )
        [request] = schedule.evaluate_tick(context).run_requests or []
        assert request.partition_key == expected


def test_the_sensor_runs_without_a_lake_and_survives_a_reset_cursor(
    loaded: dg.Definitions, instance: dg.DagsterInstance, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    """Without it the sensor would fail on a fresh platform, and a reset cursor would reuse keys that Dagster drops."""
    private = settings_for(tmp_path)
    empty = orchestration.evaluate(private, POLICY, None, frozenset(), datetime.now(UTC))
    assert not empty.run_requests
    data.land(Lake(private.lake), data.random_readings(DAY, 10, 1))
    data.land(Lake(private.lake), data.random_readings(date(2001, 1, 1), 10, 1))  # before the first partition
    # Taken only now: what landed must not lie in its future, however long it took to land.
    now = datetime.now(UTC) + timedelta(seconds=5)
    one = orchestration.evaluate(private, POLICY, empty.cursor, frozenset(), now)
    other = orchestration.evaluate(private, POLICY, None, frozenset(), now)
    keys = [request.run_key for result in (one, other) for request in result.run_requests or []]
    assert len(set(keys)) == 2
    assert json.loads(one.cursor or "{}")["asked"].keys() == {DAY.isoformat()}

    sensor = loaded.get_sensor_def(orchestration.DAY_SENSOR)
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    with dg.build_sensor_context(instance=instance, definitions=loaded) as context:
        assert sensor.evaluate_tick(context).cursor


def test_loading_the_code_location_does_not_import_dbt() -> None:
    """Without it every run of every job, and every reload, would take two seconds longer to start."""
    code = (
        "import sys, smoke_platform.orchestration.warehouse\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'dbt'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
