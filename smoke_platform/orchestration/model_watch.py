"""Watching the models in use: the challenger in shadow, and the way back when the champion's performance falls.

Belongs here: the asset, checks, jobs, schedule and sensor of both. Does not: the comparison (``adapters.shadow``), the
decisions (``domain.shadow``, ``domain.promotion``), what is done about them (``adapters.model_lifecycle``), training
(``orchestration.models``), the performance report that the sensor waits for (``orchestration.monitoring``).
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg  # its annotations are looked at when assets are made, so none is postponed here

from smoke_platform.adapters import model_lifecycle, shadow
from smoke_platform.adapters.registry import Registry, read_challenger, read_champion, read_changes
from smoke_platform.adapters.reports import markdown_table
from smoke_platform.adapters.scorer import ModelRefused
from smoke_platform.domain.promotion import (
    LivePerformance,
    RollbackDecision,
    RollbackLimits,
    rollback_decision,
    rollback_targets,
)
from smoke_platform.orchestration import names
from smoke_platform.orchestration.models import published_metadata
from smoke_platform.settings import Settings

ROLLBACK_SENSOR = "rollback_sensor"
TICK_S = 30
CHECK_LIVE = "live_performance"
CHECK_CHALLENGER = "challenger_no_worse"
#: Performance reports looked through for the figures of earlier champions.
REPORTS_BACK = 100

Step = Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]


def definitions(settings: Settings) -> dg.Definitions:
    """Asset, checks, jobs, schedule and sensor of the subject."""
    shadow_job = dg.define_asset_job(
        names.JOB_SHADOW,
        selection=dg.AssetSelection.assets(names.SHADOW_COMPARISON),
        tags=names.BATCH_TAGS,
        executor_def=dg.in_process_executor,
        description="Compare the challenger with the champion on the readings that arrived since the last time",
    )
    rollback_job = _rollback_job(settings)
    return dg.Definitions(
        assets=[_shadow_comparison(settings)],
        asset_checks=[_live_check(settings)],
        jobs=[shadow_job, rollback_job],
        schedules=[_shadow_schedule(settings, shadow_job)],
        sensors=[_rollback_sensor(settings, rollback_job)],
    )


# -- the challenger ----------------------------------------------------------------------------------------------


def _shadow_comparison(settings: Settings) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name="shadow_comparison",
        specs=[
            dg.AssetSpec(
                names.SHADOW_COMPARISON,
                deps=[
                    dg.AssetDep(names.READINGS, partition_mapping=dg.AllPartitionMapping()),
                    dg.AssetDep(names.CHALLENGER_MODEL),
                    dg.AssetDep(names.CHAMPION_MODEL),
                ],
                group_name=names.GROUP_MODELS,
                kinds={"onnx", "polars"},
                description="Challenger and champion on the same live readings, and what becomes of the challenger.",
                skippable=True,
            )
        ],
        check_specs=[dg.AssetCheckSpec(CHECK_CHALLENGER, asset=names.SHADOW_COMPARISON)],
        can_subset=True,
        pool=names.POOL_REGISTRY,
    )
    def shadow_comparison(context: dg.AssetExecutionContext) -> Step:
        found = _watched(context, settings)
        if isinstance(found, str):
            context.log.info(found)
            return
        yield dg.MaterializeResult(asset_key=names.SHADOW_COMPARISON, metadata=_shadow_metadata(settings, found))
        yield dg.AssetCheckResult(
            asset_key=names.SHADOW_COMPARISON,
            check_name=CHECK_CHALLENGER,
            passed=found.decision.action != "drop",
            severity=dg.AssetCheckSeverity.WARN,
            description=found.decision.reason,
        )
        _act(context, settings, found)

    return shadow_comparison


def _watched(context: dg.AssetExecutionContext, settings: Settings) -> shadow.Watched | str:
    """The comparison; a challenger whose files must not be believed is dropped."""
    try:
        return shadow.watch(settings, datetime.now(UTC))
    except ModelRefused as refusal:
        challenger = read_challenger(settings.models_dir) or {}
        if refusal.version != str(challenger.get("version")):
            raise
        Registry(settings).drop_challenger(reason=refusal.message)
        context.log.error(f"the challenger is dropped: {refusal.message}")
        return refusal.message


def _act(context: dg.AssetExecutionContext, settings: Settings, found: shadow.Watched) -> None:
    registry = Registry(settings)
    try:
        advance = model_lifecycle.act_on(settings, registry, found.decision, int(found.challenger))
    except model_lifecycle.GateRefused as refusal:
        context.log.warning(f"{refusal.message}; it is no challenger any more, the champion stays")
        return
    if advance is None:
        context.log.info(f"version {found.challenger} is watched on: {found.decision.reason}")
        return
    context.log.info(f"version {found.challenger}: {advance.outcome}: {advance.reason}")
    if advance.published is not None:
        context.log_event(dg.AssetMaterialization(names.CHAMPION_MODEL, metadata=published_metadata(advance.published)))


def _shadow_metadata(settings: Settings, found: shadow.Watched) -> dict[str, Any]:
    so_far = found.so_far
    return {
        "report": dg.MetadataValue.url(settings.api_url + found.report.route),
        "file": dg.MetadataValue.path(str(found.report.page)),
        "summary": dg.MetadataValue.md(markdown_table(shadow.sides(so_far))),
        "decision": found.decision.action,
        "reason": found.decision.reason,
        "challenger": found.challenger,
        "champion": found.champion,
        "device_hours": so_far.device_hours,
        "readings": so_far.readings,
        "challenger_alarms": so_far.challenger_alarms,
        "champion_alarms": so_far.champion_alarms,
        "only_challenger": so_far.only_challenger,
        "only_champion": so_far.only_champion,
    }


def _shadow_schedule(settings: Settings, job: Any) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="shadow_comparison_schedule",
        job=job,
        # Twenty past, when neither training nor a monitor begins. An hour of readings is soon compared.
        cron_schedule="20 * * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Compares the challenger with the champion; asks for no run where there is no challenger.",
    )
    def shadow_comparison_schedule(_context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if read_challenger(settings.models_dir) is None:
            return dg.SkipReason("no version is watched in shadow")
        return dg.RunRequest()

    return shadow_comparison_schedule


# -- the way back ------------------------------------------------------------------------------------------------


def _rollback_sensor(settings: Settings, job: Any) -> dg.SensorDefinition:
    enabled = settings.auto_rollback

    @dg.asset_sensor(
        name=ROLLBACK_SENSOR,
        asset_key=names.MODEL_PERFORMANCE,
        job=job,
        minimum_interval_seconds=TICK_S,
        default_status=dg.DefaultSensorStatus.RUNNING if enabled else dg.DefaultSensorStatus.STOPPED,
        description="Has each new performance report reviewed: whether the champion has fallen, and what to do then.",
    )
    def rollback_sensor(
        context: dg.SensorEvaluationContext, asset_event: dg.EventLogEntry
    ) -> dg.RunRequest | dg.SkipReason:
        _, latest = _decide(settings, context.instance)
        # A report leads to one run, whatever becomes of it.
        return dg.RunRequest(run_key=latest.report) if latest else dg.SkipReason("the report lacks a figure")

    return rollback_sensor


def _rollback_job(settings: Settings) -> dg.JobDefinition:
    @dg.op(
        name="review_performance",
        pool=names.POOL_REGISTRY,
        description="Makes the champion before champion again where the present one has fallen and it does better",
    )
    def review_performance(context: dg.OpExecutionContext) -> None:
        # Decided here and not by the sensor: in between somebody may have promoted another version.
        decision, latest = _decide(settings, context.instance)
        reason = decision.reason
        if latest is not None and decision.targets:
            done = model_lifecycle.roll_back(settings, Registry(settings), decision, latest.report)
            reason = done.reason
            if done.published is not None:
                metadata = published_metadata(done.published)
                context.log_event(dg.AssetMaterialization(names.CHAMPION_MODEL, metadata=metadata))
        (context.log.error if decision.fallen else context.log.info)(reason)
        context.log_event(_live_evaluation(decision, latest, reason))  # type: ignore[arg-type]  # it takes checks, too

    @dg.job(
        name=names.JOB_ROLLBACK,
        tags=names.BATCH_TAGS,
        executor_def=dg.in_process_executor,
        description="Review the newest performance report, and roll a fallen champion back",
    )
    def rollback_job() -> None:
        review_performance()

    return rollback_job


def _live_check(settings: Settings) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=names.CHAMPION_MODEL,
        name=CHECK_LIVE,
        description="Whether the champion does on live readings of known truth what it did before",
    )
    def live_performance(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        decision, _ = _decide(settings, context.instance)
        return dg.AssetCheckResult(
            passed=not decision.fallen, severity=dg.AssetCheckSeverity.ERROR, description=decision.reason
        )

    return live_performance


def _live_evaluation(
    decision: RollbackDecision, latest: LivePerformance | None, reason: str
) -> dg.AssetCheckEvaluation:
    told = {} if latest is None else {"version": latest.champion, "accuracy": latest.accuracy, "rows": latest.rows}
    return dg.AssetCheckEvaluation(
        check_name=CHECK_LIVE,
        asset_key=names.CHAMPION_MODEL,
        passed=not decision.fallen,
        severity=dg.AssetCheckSeverity.ERROR,
        description=reason,
        metadata={name: dg.MetadataValue.float(float(value)) for name, value in told.items()},
    )


def _decide(settings: Settings, instance: dg.DagsterInstance) -> tuple[RollbackDecision, LivePerformance | None]:
    """The decision on the newest performance report, and that report."""
    reports = performances(instance)
    champion = read_champion(settings.models_dir)
    if not reports or champion is None:
        return RollbackDecision((), "there is no champion, or no report of its performance"), None
    changes = read_changes(settings.models_dir)
    earlier = {report.champion: report for report in reversed(reports) if report.champion in rollback_targets(changes)}
    decision = rollback_decision(
        reports[0], int(champion["version"]), changes, earlier, RollbackLimits(), datetime.now(UTC)
    )
    return decision, reports[0]


def performances(instance: dg.DagsterInstance, limit: int = REPORTS_BACK) -> list[LivePerformance]:
    """The latest performance reports, the newest first; such as lack a figure that is needed are left out."""
    found = instance.fetch_materializations(names.MODEL_PERFORMANCE, limit=limit).records
    reports = (_performance(record) for record in found)
    return [report for report in reports if report is not None]


def _performance(record: dg.EventLogRecord) -> LivePerformance | None:
    if record.asset_materialization is None:
        return None
    told = {name: entry.value for name, entry in record.asset_materialization.metadata.items()}
    try:
        return LivePerformance(
            report=str(record.storage_id),
            champion=int(str(told["champion"])),
            at=datetime.fromtimestamp(record.timestamp, UTC),
            rows=int(told["rows"]),  # type: ignore[arg-type]  # metadata are of many types; another one is caught
            fires=int(told["fires"]),  # type: ignore[arg-type]
            accuracy=float(told["accuracy"]),  # type: ignore[arg-type]
            recall=_optional(told.get("recall")),
            false_alarm_rate=_optional(told.get("false_alarm_rate")),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
