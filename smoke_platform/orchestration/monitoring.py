"""The monitoring assets: drift, data quality, model performance and history, with their checks, jobs and schedules.

Belongs here: how a monitor's outcome becomes a materialisation and check results, and when each runs. Does not: what
the monitors do (``monitors``, ``drift_monitor``, ``performance_monitor``) and compute (``domain``), training anew
(``retraining``).
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg  # its annotations are looked at when assets are made, so none is postponed here

from smoke_platform.adapters.dead_letters import count_by_reason
from smoke_platform.domain.errors import SmokeError
from smoke_platform.orchestration import drift_monitor, names, partitions, performance_monitor
from smoke_platform.orchestration.drift_monitor import drift_report
from smoke_platform.orchestration.monitors import (
    NotEvaluated,
    Outcome,
    Verdict,
    data_quality,
    quality_window,
    summary_markdown,
    whole_history,
)
from smoke_platform.orchestration.performance_monitor import model_performance
from smoke_platform.settings import Settings

Step = Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]

CHECKS: dict[dg.AssetKey, tuple[str, ...]] = {
    names.DRIFT_REPORT: drift_monitor.CHECKS,
    names.DATA_QUALITY: (
        "score_at_least_70",
        "completeness_at_least_90",
        "no_stale_devices",
        "sensors_plausible",
        "rejects_below_10",
    ),
    names.MODEL_PERFORMANCE: performance_monitor.CHECKS,
    names.HISTORY: ("no_repeated_recordings",),
}


def definitions(settings: Settings) -> dg.Definitions:
    """Assets, checks, jobs and schedules of the subject."""
    assets = [_drift_asset(settings), _quality_asset(settings), _performance_asset(settings), _history_asset(settings)]
    jobs = {
        key: dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(key),
            tags=names.BATCH_TAGS,
            executor_def=dg.in_process_executor,
            description=description,
        )
        for key, name, description in (
            (names.DRIFT_REPORT, names.JOB_DRIFT, "Compare a day's features with the champion's training data"),
            (names.DATA_QUALITY, names.JOB_QUALITY, "Judge the readings of the last 24 hours"),
            (
                names.MODEL_PERFORMANCE,
                names.JOB_PERFORMANCE,
                "Judge the logged scores of known truth, and probe the API",
            ),
            (names.HISTORY, names.JOB_HISTORY, "What the whole lake says: trends, rhythms, copies, ageing, causes"),
        )
    }
    schedules = [
        _drift_schedule(settings, jobs[names.DRIFT_REPORT]),
        _schedule("data_quality_schedule", jobs[names.DATA_QUALITY], "0 */6 * * *", settings),
        _schedule("model_performance_schedule", jobs[names.MODEL_PERFORMANCE], "0 */12 * * *", settings),
        _schedule("history_schedule", jobs[names.HISTORY], "0 3 * * 0", settings),
    ]
    return dg.Definitions(assets=assets, jobs=list(jobs.values()), schedules=schedules)


# -- assets ------------------------------------------------------------------------------------------------------


def _spec(key: dg.AssetKey, description: str, deps: Sequence[dg.AssetDep], **more: Any) -> dict[str, Any]:
    """Arguments of ``multi_asset`` for one asset that may have nothing to tell.

    Skippable and ``can_subset``, because only then may asset and checks be left out where nothing could be judged.
    """
    spec = dg.AssetSpec(
        key, group_name=names.GROUP_MONITORING, description=description, deps=deps, skippable=True, **more
    )
    checks = [dg.AssetCheckSpec(name, asset=key) for name in CHECKS[key]]
    return {"name": key.path[-1], "specs": [spec], "check_specs": checks, "can_subset": True}


def _drift_asset(settings: Settings) -> dg.AssetsDefinition:
    daily = partitions.daily(settings)

    @dg.multi_asset(
        **_spec(
            names.DRIFT_REPORT,
            "How far a day's features have moved from those the champion was trained on",
            [dg.AssetDep(names.FEATURES), dg.AssetDep(names.CHAMPION_MODEL)],
            partitions_def=daily,
            kinds={"evidently"},
        ),
    )
    def drift_report_asset(context: dg.AssetExecutionContext) -> Step:
        day = date.fromisoformat(context.partition_key)
        yield from tell(context, settings, names.DRIFT_REPORT, drift_report(settings, day, datetime.now(UTC)))

    return drift_report_asset


def _quality_asset(settings: Settings) -> dg.AssetsDefinition:
    deps = [
        dg.AssetDep(names.READINGS, partition_mapping=dg.AllPartitionMapping()),
        dg.AssetDep(names.TOPIC_DEAD_LETTERS),
    ]

    @dg.multi_asset(
        **_spec(
            names.DATA_QUALITY,
            "How much of the expected arrived, whole, valid, plausible, once",
            deps,
            kinds={"polars"},
        )
    )
    def data_quality_asset(context: dg.AssetExecutionContext) -> Step:
        now = datetime.now(UTC)
        outcome = data_quality(settings, now, lambda: _rejected(context, settings, now))
        yield from tell(context, settings, names.DATA_QUALITY, outcome)

    return data_quality_asset


def _rejected(context: dg.AssetExecutionContext, settings: Settings, now: datetime) -> dict[str, int] | None:
    """Dead letters of the window by reason; ``None``, and a warning, where the topic can't be read."""
    try:
        return count_by_reason(settings.brokers, settings.topic_dead_letters, *quality_window(now))
    except SmokeError as error:
        context.log.warning(f"dead letters are not counted: {error}")
        return None


def _performance_asset(settings: Settings) -> dg.AssetsDefinition:
    deps = [
        dg.AssetDep(names.FEATURES, partition_mapping=dg.AllPartitionMapping()),
        dg.AssetDep(names.CHAMPION_MODEL),
        *(dg.AssetDep(names.RECORDS[name]) for name in ("alarms", "predictions")),
    ]

    @dg.multi_asset(
        **_spec(
            names.MODEL_PERFORMANCE,
            "What was logged of readings of known truth, fires and alarms, and the API's answers",
            deps,
            kinds={"onnx"},
        )
    )
    def model_performance_asset(context: dg.AssetExecutionContext) -> Step:
        yield from tell(context, settings, names.MODEL_PERFORMANCE, model_performance(settings, datetime.now(UTC)))

    return model_performance_asset


def _history_asset(settings: Settings) -> dg.AssetsDefinition:
    deps = [
        dg.AssetDep(names.READINGS, partition_mapping=dg.AllPartitionMapping()),
        *(dg.AssetDep(names.RECORDS[name]) for name in ("alarms", "predictions", "devices")),
    ]

    @dg.multi_asset(
        **_spec(
            names.HISTORY,
            "Trends, rhythms, correlations, rare patterns, ageing, copies and causes of alarms over the whole lake",
            deps,
            kinds={"pyspark", "polars"},
        )
    )
    def history_asset(context: dg.AssetExecutionContext) -> Step:
        yield from tell(context, settings, names.HISTORY, whole_history(settings, datetime.now(UTC)))

    return history_asset


# -- telling -----------------------------------------------------------------------------------------------------


def tell(
    context: dg.AssetExecutionContext, settings: Settings, key: dg.AssetKey, outcome: Outcome | NotEvaluated
) -> Step:
    """Turns an outcome into events; where nothing could be judged, an observation says why and no check is marked."""
    if isinstance(outcome, NotEvaluated):
        context.log.warning(f"{key.to_user_string()} not evaluated: {outcome.reason}")
        partition = context.partition_key if context.has_partition_key else None
        context.log_event(
            dg.AssetObservation(key, partition=partition, metadata={"evaluated": False, "reason": outcome.reason})
        )
        return
    for name, why in outcome.unjudged.items():
        context.log.warning(f"check {name} not evaluated: {why}")
    if key in context.selected_asset_keys:
        yield dg.MaterializeResult(asset_key=key, metadata=_metadata(settings, outcome))
    selected = {check.name for check in context.selected_asset_check_keys}
    for verdict in outcome.verdicts:
        if verdict.name in selected:
            yield _check_result(key, verdict)


def _check_result(key: dg.AssetKey, verdict: Verdict) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=verdict.name,
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity[verdict.severity],
        description=verdict.description,
        metadata=dict(verdict.numbers),
    )


def _metadata(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    return {
        # A browser opens no file:// link from a page that came over HTTP, so the API hands the reports out.
        "report": dg.MetadataValue.url(settings.api_url + outcome.report.route),
        "file": dg.MetadataValue.path(str(outcome.report.page)),
        "summary": dg.MetadataValue.md(summary_markdown(outcome)),
        "reports_removed": outcome.report.removed,
        **outcome.numbers,
    }


# -- schedules ---------------------------------------------------------------------------------------------------


def _schedule(name: str, job: Any, cron: str, settings: Settings) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=cron,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def _drift_schedule(settings: Settings, job: Any) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="drift_schedule",
        job=job,
        # Half an hour after the batch, which finishes the day's features.
        cron_schedule="30 6 * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Drift of the last complete UTC day",
    )
    def drift_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        day = last_complete_day(context.scheduled_execution_time)
        if day < settings.first_day:
            return dg.SkipReason(f"{day} is before SMOKE_FIRST_DAY ({settings.first_day})")
        return dg.RunRequest(partition_key=day.isoformat())

    return drift_schedule


def last_complete_day(moment: datetime) -> date:
    """The UTC day before the one that ``moment`` (with a zone) lies in."""
    return moment.astimezone(UTC).date() - timedelta(days=1)
