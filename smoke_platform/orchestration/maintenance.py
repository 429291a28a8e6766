"""Keeping the platform's own house: old runs leave Dagster's store.

Belongs here: the pruning job and its schedule. Does not: retention of Kafka (topic settings), of reports
(``adapters.reports``), of ticks (``dagster.yaml``), compaction of tables (their writers).

Dagster keeps every run for ever, some 18 KB each. A run that stands for the present state is kept whatever its age:
the one that made the newest materialisation of an asset or of one of its partitions, since without it Dagster would
call a day that was built long ago missing, and the last one that touched an asset at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg  # its annotations are looked at when ops are made, so none is postponed here
from dagster._core.storage.event_log import SqliteEventLogStorage  # nothing public tells a file for each run

from smoke_platform.orchestration import names
from smoke_platform.settings import Settings

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
#: Runs asked for at once, and deleted by one run of the job at most: the next day goes on.
CHUNK = 500
MOST_RUNS = 5_000
#: A report's draft older than this was left by a run that was killed.
DRAFT_AGE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What pruning did: runs deleted, runs kept although they are old, and whether more are left for the next time."""

    deleted: int
    kept: int
    more: bool


def definitions(settings: Settings) -> dg.Definitions:
    """The pruning job and its schedule."""

    @dg.op(name="prune_event_log", description="Delete finished runs that are older than SMOKE_EVENT_LOG_DAYS")
    def prune_event_log(context: dg.OpExecutionContext) -> None:
        cutoff = datetime.now(UTC) - timedelta(days=settings.event_log_days)
        pruned = prune_runs(context.instance, cutoff)
        drafts = sweep_drafts(settings.reports_dir, datetime.now(UTC) - DRAFT_AGE)
        context.log.info(
            f"{pruned.deleted} runs from before {cutoff:%Y-%m-%d %H:%M} UTC deleted, {pruned.kept} kept for their state"
        )
        context.add_output_metadata(
            {
                "runs_deleted": pruned.deleted,
                "old_runs_kept": pruned.kept,
                "more_left": pruned.more,
                "drafts_removed": drafts,
                "cutoff": cutoff.isoformat(),
            }
        )

    @dg.job(
        name=names.JOB_PRUNE,
        tags=names.BATCH_TAGS,
        executor_def=dg.in_process_executor,
        description="Delete finished runs that are older than SMOKE_EVENT_LOG_DAYS",
    )
    def prune_job() -> None:
        prune_event_log()

    schedule = dg.ScheduleDefinition(
        name="prune_event_log_schedule",
        job=prune_job,
        cron_schedule="0 4 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return dg.Definitions(jobs=[prune_job], schedules=[schedule])


def prune_runs(instance: dg.DagsterInstance, cutoff: datetime, *, most: int = MOST_RUNS, chunk: int = CHUNK) -> Pruned:
    """Deletes finished runs created before ``cutoff`` (with a zone) with their events and logs, the oldest first.

    Never an unfinished run, and never one of ``runs_of_present_state``.

    Args:
        most: how many at most; a store that has grown for long is worked off over some days.
        chunk: how many are asked for at once.
    """
    state = runs_of_present_state(instance, chunk)
    outdated: list[str] = []
    kept, cursor, more = 0, None, False
    old = dg.RunsFilter(statuses=FINISHED, created_before=cutoff)
    while not more:
        # All are collected before any is deleted: a page begins after the run that the last one ended with.
        records = instance.get_run_records(old, limit=chunk, ascending=True, cursor=cursor)
        for record in records:
            run_id = record.dagster_run.run_id
            if run_id in state:
                kept += 1
            elif len(outdated) < most:
                outdated.append(run_id)
            else:
                more = True
                break
        if len(records) < chunk:
            break
        cursor = records[-1].dagster_run.run_id
    for run_id in outdated:
        _delete(instance, run_id)
    return Pruned(len(outdated), kept, more)


def runs_of_present_state(instance: dg.DagsterInstance, chunk: int = CHUNK) -> set[str]:
    """Runs that made the newest materialisation of an asset or partition, or were the last to touch an asset."""
    found: set[str] = set()
    keys = list(instance.get_asset_keys())
    for record in instance.get_asset_records(keys):
        entry = record.asset_entry
        newest = (entry.last_materialization_record, entry.last_observation_record)
        found |= {event.run_id for event in newest if event is not None}
        if entry.last_run_id:
            found.add(entry.last_run_id)
    for key in keys:
        latest = instance.event_log_storage.get_latest_storage_id_by_partition(
            key, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        found |= _runs_of_events(instance, key, sorted(latest.values()), chunk)
    return found


def _runs_of_events(instance: dg.DagsterInstance, key: dg.AssetKey, ids: Sequence[int], chunk: int) -> set[str]:
    runs: set[str] = set()
    for first in range(0, len(ids), chunk):
        some = ids[first : first + chunk]
        events = instance.fetch_materializations(dg.AssetRecordsFilter(key, storage_ids=some), limit=len(some))
        runs |= {event.run_id for event in events.records}
    return runs


def _delete(instance: dg.DagsterInstance, run_id: str) -> None:
    instance.delete_run(run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        # SQLite has a file for each run, which Dagster empties but leaves behind.
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(storage.path_for_shard(run_id) + suffix).unlink(missing_ok=True)


def sweep_drafts(reports_dir: Path, before: datetime) -> int:
    """Removes half-written reports that a killed run left; returns how many."""
    drafts = [file for file in reports_dir.glob("*/.*") if file.is_file()]
    outdated = [file for file in drafts if file.stat().st_mtime < before.timestamp()]
    for file in outdated:
        file.unlink(missing_ok=True)
    return len(outdated)
