"""Features and models in Dagster: the feature table, the training set, the candidate, the gate, the champion.

Belongs here: assets, checks, job, schedule and the sensor that trains a first model. Does not: the features
(``domain.features``), training (``adapters.trainer``), the gate (``domain.promotion``), the registry
(``adapters.registry``), the audit of what is trained on (``orchestration.audit``), whose checks do block the candidate,
what watches models that are in use (``orchestration.model_watch``).

The gate's checks on the candidate show what it lacks; they do not block. A refusal is a result and not a fault: the
champion's step reads the verdict itself, leaves the champion alone and the run is green. Only where there is no
champion at all does a refusal fail the run, because then nothing scores the readings.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg

from smoke_platform.adapters import evaluation_page, feature_tables, model_lifecycle
from smoke_platform.adapters.feature_tables import TrainingWorld
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.registry import Registry, headline, read_champion
from smoke_platform.domain import features, promotion
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.promotion import Condition, Verdict
from smoke_platform.orchestration import names, partitions
from smoke_platform.settings import Settings

#: Checks of the candidate, by the name of the gate's condition.
GATE_CHECKS = promotion.CONDITIONS
#: Two runs that write days of one table must not commit at once.
POOL_FEATURES = "lake_features"
STARTUP_SENSOR = "startup_training_sensor"
TICK_S = 10
FIRST_RETRY_S = 60.0
LONGEST_RETRY_S = 3_600.0

Step = Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]


def definitions(settings: Settings, world: TrainingWorld | None = None) -> dg.Definitions:
    """Assets, checks, job, schedule and sensor of the subject; ``world`` makes the simulated set smaller in tests."""
    job = dg.define_asset_job(
        names.JOB_TRAINING,
        selection=dg.AssetSelection.assets(
            names.SIMULATED_READINGS,
            names.DATA_AUDIT,
            names.CANDIDATE_MODEL,
            names.CHAMPION_MODEL,
            names.CHALLENGER_MODEL,
        ),
        tags=names.BATCH_TAGS,
        executor_def=dg.in_process_executor,
        description="Audit the data, train a candidate, take it on if it passes the gate; remove old versions.",
    )
    hours = settings.training_interval_hours
    schedule = dg.ScheduleDefinition(
        name="training_schedule",
        target=job,
        cron_schedule="0 2 * * *" if hours == 24 else f"0 */{hours} * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return dg.Definitions(
        assets=[_features(settings), _simulated(settings, world), _candidate(settings), _champion(settings)],
        jobs=[job],
        schedules=[schedule],
        sensors=[_startup_sensor(settings, job)],
    )


# -- assets ------------------------------------------------------------------------------------------------------


def _features(settings: Settings) -> dg.AssetsDefinition:
    with warnings.catch_warnings():
        # The policy's name is marked as beta; a backfill without it would start a process for each day.
        warnings.filterwarnings("ignore", message=".*backfill_policy.*", category=dg.BetaWarning)

        @dg.asset(
            key=names.FEATURES,
            group_name=names.GROUP_FEATURES,
            deps=[dg.AssetDep(names.READINGS, partition_mapping=dg.AllPartitionMapping())],
            partitions_def=partitions.daily(settings),
            backfill_policy=dg.BackfillPolicy.single_run(),
            pool=POOL_FEATURES,
            kinds={"deltalake", "polars"},
            description="The model's features of every reading, by the kernel that also scores it.",
            code_version=features.FEATURE_SET_VERSION,
        )
        def lake_features(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
            lake = Lake(settings.lake)
            days = [feature_tables.build_day(lake, date.fromisoformat(key)) for key in sorted(context.partition_keys)]
            return dg.MaterializeResult(
                metadata={
                    "dagster/row_count": sum(day.rows for day in days),
                    "devices": max(day.devices for day in days),
                    "warm_up_rows": sum(day.warm_up_rows for day in days),
                    "duplicates": sum(day.duplicates for day in days),
                    "delta_version": days[-1].version,
                    "feature_version": features.FEATURE_SET_VERSION,
                }
            )

    return lake_features


def _simulated(settings: Settings, world: TrainingWorld | None) -> dg.AssetsDefinition:
    @dg.asset(
        key=names.SIMULATED_READINGS,
        group_name=names.GROUP_MODELS,
        kinds={"deltalake", "polars"},
        description="The simulated training set, with its truth and its features. None of it was ever measured.",
    )
    def simulated_readings(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        built = model_lifecycle.prepare_simulated(settings, world, context.log.info)
        lake = Lake(settings.lake)
        return dg.MaterializeResult(
            metadata={
                "built": built,
                "readings_delta_version": lake.version(feature_tables.SIMULATED_READINGS),
                "features_delta_version": lake.version(feature_tables.SIMULATED_FEATURES),
                "feature_version": features.FEATURE_SET_VERSION,
                "statement": feature_tables.SIMULATED_STATEMENT,
            }
        )

    return simulated_readings


def _candidate(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        key=names.CANDIDATE_MODEL,
        group_name=names.GROUP_MODELS,
        deps=[
            dg.AssetDep(names.SIMULATED_READINGS),
            dg.AssetDep(names.DATA_AUDIT),
            dg.AssetDep(names.TRAINING_EXAMPLES, partition_mapping=dg.AllPartitionMapping()),
        ],
        check_specs=[
            dg.AssetCheckSpec(
                f"gate_{name}",
                asset=names.CANDIDATE_MODEL,
                description=f"The gate's condition {name!r}",
                blocking=False,
            )
            for name in GATE_CHECKS
        ],
        pool=names.POOL_REGISTRY,
        kinds={"scikitlearn", "onnx", "mlflow"},
        description="A newly trained version, validated on held-out groups and judged by the gate.",
    )
    def candidate_model(context: dg.AssetExecutionContext) -> Step:
        registry = Registry(settings)
        candidate = model_lifecycle.train_candidate(settings, registry, progress=context.log.info)
        verdict = model_lifecycle.judge(settings, registry, candidate.number)
        told = evaluation_page.find(settings, candidate.number)
        report = {"evaluation": dg.MetadataValue.path(str(told))} if told else {}
        yield dg.MaterializeResult(
            metadata={**_candidate_metadata(candidate.number, candidate.manifest, verdict), **report}
        )
        yield from _check_results(verdict)

    return candidate_model


def _champion(settings: Settings) -> dg.AssetsDefinition:
    specs = [
        dg.AssetSpec(
            key,
            deps=[names.CANDIDATE_MODEL],
            group_name=names.GROUP_MODELS,
            kinds={"mlflow", "onnx"},
            description=description,
            skippable=True,
        )
        for key, description in (
            (names.CHAMPION_MODEL, "The version that scores the readings, published in models/champion.json."),
            (names.CHALLENGER_MODEL, "A version that is watched in shadow first, published in models/challenger.json."),
        )
    ]

    @dg.multi_asset(name="champion_model", specs=specs, pool=names.POOL_REGISTRY)
    def champion_model(context: dg.AssetExecutionContext) -> Step:
        registry = Registry(settings)
        context.log.info(registry.reconcile())
        number = _latest_candidate(context)
        try:
            advance = model_lifecycle.advance(settings, registry, number)
        except model_lifecycle.GateRefused as refusal:
            if registry.champion() is None:
                raise dg.Failure(str(refusal), allow_retries=False) from None
            context.log.warning(f"{refusal.message}; the champion stays")
            return
        context.log.info(f"version {number}: {advance.outcome}: {advance.reason}")
        if advance.published is not None:
            key = names.CHAMPION_MODEL if advance.outcome == "champion" else names.CHALLENGER_MODEL
            yield dg.MaterializeResult(asset_key=key, metadata=published_metadata(advance.published))
        _prune(context, settings, registry)

    return champion_model


def _prune(context: dg.AssetExecutionContext, settings: Settings, registry: Registry) -> None:
    gone = model_lifecycle.prune(settings, registry)
    if gone:
        context.log.info(f"versions removed (SMOKE_MODEL_RETENTION): {', '.join(map(str, gone))}")


def _latest_candidate(context: dg.AssetExecutionContext) -> int:
    event = context.instance.get_latest_materialization_event(names.CANDIDATE_MODEL)
    if event is None or event.asset_materialization is None:
        raise SmokeError("there is no candidate to promote", "materialise models/candidate first")
    return int(str(event.asset_materialization.metadata["version"].value))


def _candidate_metadata(number: int, manifest: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    trained_on = manifest["trained_on"]
    return {
        "version": number,
        "gate": "passed" if verdict.passed else "refused",
        "reasons": dg.MetadataValue.md("\n".join(f"* {reason}" for reason in verdict.reasons) or "none"),
        "algorithm": manifest["algorithm"],
        "threshold": manifest["threshold"],
        **_plain(headline(manifest)),
        "trained_on": trained_on["kind"],
        "statement": trained_on["statement"],
        "rows": trained_on["rows"],
        "fingerprint": trained_on["fingerprint"],
        "sha256": manifest["sha256"],
        "training_seconds": manifest["training_seconds"],
        "manifest": dg.MetadataValue.json(manifest),
    }


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if isinstance(value, (str, int, float))}


def published_metadata(published: dict[str, Any]) -> dict[str, Any]:
    """What is shown of a champion or challenger with its materialisation."""
    named = ("version", "sha256", "threshold", "trained_on", "feature_version", "published_at", "action", "reason")
    return {**{name: published[name] for name in named}, **_plain(published["metrics"])}


def _check_results(verdict: Verdict) -> Iterator[dg.AssetCheckResult]:
    """One result for each declared check; a condition that could not be judged passes and says so."""
    judged = {condition.name: condition for condition in verdict.conditions}
    for name in GATE_CHECKS:
        condition = judged.get(name) or Condition(name, True, "", "", 0.0, "not judged: there is no champion beside it")
        yield dg.AssetCheckResult(
            asset_key=names.CANDIDATE_MODEL,
            check_name=f"gate_{name}",
            passed=condition.passed,
            severity=dg.AssetCheckSeverity.ERROR,
            description=condition.sentence,
            metadata={"value": condition.value, "limit": condition.limit, "shortfall": condition.shortfall},
        )


# -- the first model -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run of the training job; ``ended`` is ``None`` while it is unfinished."""

    run_id: str
    ended: datetime | None


def startup_decision(usable_champion: bool, runs: Sequence[TrainingRun], now: datetime) -> str | None:
    """Why not to ask for a training run now, or ``None`` to ask for one.

    Args:
        usable_champion: whether the champion sees the features that the platform computes.
        runs: those of the training job, newest first. As there is no usable champion, each finished one was in vain,
            and the wait after it doubles: 1 minute, 2, 4, at most an hour.
    """
    if usable_champion:
        return "there is a champion"
    unfinished = [run.run_id for run in runs if run.ended is None]
    if unfinished:
        return f"run {unfinished[0]} is training"
    ends = [run.ended for run in runs if run.ended is not None]
    if not ends:
        return None
    wait = timedelta(seconds=min(FIRST_RETRY_S * 2 ** min(len(ends) - 1, 10), LONGEST_RETRY_S))
    due = max(ends) + wait
    return None if now >= due else f"{len(ends)} run(s) brought no champion; the next one is due at {due:%H:%M:%S} UTC"


_UNFINISHED = frozenset(
    {
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    }
)


def training_runs(instance: dg.DagsterInstance, limit: int = 10) -> list[TrainingRun]:
    """The latest runs of the training job, newest first."""
    records = instance.get_run_records(dg.RunsFilter(job_name=names.JOB_TRAINING), limit=limit)
    return [
        TrainingRun(
            record.dagster_run.run_id,
            None
            if record.dagster_run.status in _UNFINISHED
            else datetime.fromtimestamp(record.end_time or record.create_timestamp.timestamp(), UTC),
        )
        for record in records
    ]


def _startup_sensor(settings: Settings, job: Any) -> dg.SensorDefinition:
    enabled = settings.auto_train_on_startup

    @dg.sensor(
        name=STARTUP_SENSOR,
        job=job,
        minimum_interval_seconds=TICK_S,
        default_status=dg.DefaultSensorStatus.RUNNING if enabled else dg.DefaultSensorStatus.STOPPED,
        description="Trains a first model where there is no usable champion; waits longer after each run in vain.",
    )
    def startup_training(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        # No run key: a key is remembered for ever, and the run after a failed one would never be made.
        why_not = startup_decision(usable_champion(settings), training_runs(context.instance), datetime.now(UTC))
        return dg.SkipReason(why_not) if why_not else dg.SensorResult(run_requests=[dg.RunRequest()])

    return startup_training


def usable_champion(settings: Settings) -> bool:
    """Whether a champion is published whose features are those the platform computes."""
    try:
        champion = read_champion(settings.models_dir)
    except SmokeError:
        return False
    if champion is None or champion.get("feature_version") != features.FEATURE_SET_VERSION:
        return False
    return (settings.models_dir / str(champion.get("path"))).is_file()
