"""Pruning of Dagster's store, on a real SQLite instance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from smoke_platform.orchestration import maintenance, names
from smoke_platform.settings import Settings

pytestmark = pytest.mark.integration
LATER = timedelta(minutes=1)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as found:
        yield found


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
def parted() -> None:
    """An asset whose partitions must stay known."""


@dg.op
def work() -> None:
    """Leaves nothing that anybody needs later."""


@dg.job
def chore() -> None:
    work()


def _run_chore(instance: dg.DagsterInstance) -> str:
    return chore.execute_in_process(instance=instance).run_id


def test_old_runs_go_with_their_files(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """Or the disk of a platform that runs for months fills with the log of runs that nobody looks at."""
    runs = [_run_chore(instance) for _ in range(5)]
    files = [next(tmp_path.rglob(f"{run}.db")) for run in runs]

    pruned = maintenance.prune_runs(instance, datetime.now(UTC) + LATER, chunk=2)

    assert (pruned.deleted, pruned.more) == (5, False)
    assert instance.get_runs_count() == 0
    assert not [file for file in files if file.exists()]


def test_recent_and_unfinished_runs_stay(instance: dg.DagsterInstance) -> None:
    """Or pruning takes away a run that still lands readings."""
    started = instance.create_run_for_job(chore, status=dg.DagsterRunStatus.STARTED)
    queued = instance.create_run_for_job(chore, status=dg.DagsterRunStatus.NOT_STARTED)
    old = _run_chore(instance)
    between = datetime.now(UTC)
    recent = _run_chore(instance)

    maintenance.prune_runs(instance, between)
    assert {run.run_id for run in instance.get_runs()} == {started.run_id, queued.run_id, recent}
    assert maintenance.prune_runs(instance, datetime.now(UTC) + LATER).deleted == 1
    assert {run.run_id for run in instance.get_runs()} == {started.run_id, queued.run_id}
    assert old


def test_present_state_survives(instance: dg.DagsterInstance) -> None:
    """Or a day that was built long ago shows as missing, and a sensor builds it all over again."""
    for key in ("a", "a", "b", "a"):
        assert dg.materialize([parted], instance=instance, partition_key=key).success

    pruned = maintenance.prune_runs(instance, datetime.now(UTC) + LATER, chunk=3)

    assert (pruned.deleted, pruned.kept) == (2, 2)
    assert instance.get_materialized_partitions(dg.AssetKey("parted")) == {"a", "b"}
    assert instance.get_latest_materialization_event(dg.AssetKey("parted")) is not None


def test_one_run_of_the_job_deletes_a_bounded_number(instance: dg.DagsterInstance) -> None:
    """Or the first pruning of a store that was never pruned holds it for hours."""
    runs = [_run_chore(instance) for _ in range(5)]
    first = maintenance.prune_runs(instance, datetime.now(UTC) + LATER, most=3, chunk=2)
    assert (first.deleted, first.more) == (3, True)
    assert {run.run_id for run in instance.get_runs()} == set(runs[3:])
    second = maintenance.prune_runs(instance, datetime.now(UTC) + LATER, most=3, chunk=2)
    assert (second.deleted, second.more) == (2, False)


def test_the_job_says_what_it_did(
    instance: dg.DagsterInstance, tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """Or an operator can't tell a job that prunes from one that only runs."""
    settings = settings_for(tmp_path / "home", SMOKE_EVENT_LOG_DAYS="0.00000001")
    draft = settings.reports_dir / "drift" / ".half.html.1"
    draft.parent.mkdir(parents=True)
    draft.write_text("half")
    two_days_ago = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    os.utime(draft, (two_days_ago, two_days_ago))
    _run_chore(instance)

    defs = maintenance.definitions(settings)
    result = defs.resolve_job_def(names.JOB_PRUNE).execute_in_process(instance=instance)

    said: dict[str, Any] = {}
    for event in result.all_events:
        if event.is_successful_output:
            said = {name: value.value for name, value in event.step_output_data.metadata.items()}
    assert (said["runs_deleted"], said["drafts_removed"]) == (1, 1)
    assert not draft.exists()
    assert [run.job_name for run in instance.get_runs()] == [names.JOB_PRUNE]


def test_pruning_is_on_by_default(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """Or nobody switches it on before the disk is full."""
    settings = settings_for(tmp_path, SMOKE_TIMEZONE="Europe/Vienna")
    schedule = maintenance.definitions(settings).resolve_schedule_def("prune_event_log_schedule")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 4 * * *", "Europe/Vienna")
