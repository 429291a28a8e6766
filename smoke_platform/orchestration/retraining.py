"""Training anew because of drift: the sensor, and the decision whether a run is worth asking for.

Belongs here: what of the drift checks counts, the cool-down, whether training would see other data than the champion
did. Does not: the checks (``drift_monitor``), the training job (``models``), whether its result is promoted (the gate).

A model that is trained on the same rows with the same seed is the same model, byte by byte: where the training data
have not changed, drift can't be cured by training, and the sensor says so instead of running. What cures it then is
labelled readings of the devices that have drifted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from smoke_platform.adapters import feature_tables, model_lifecycle
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.registry import MANIFEST, read_champion
from smoke_platform.domain.errors import SmokeError
from smoke_platform.orchestration import names
from smoke_platform.orchestration.drift_monitor import FLEET_CHECKS
from smoke_platform.settings import Settings

SENSOR = "drift_retraining_sensor"
TICK_S = 60
#: Tag of the runs that this sensor has asked for; the cool-down looks for it in the runs' history.
CAUSE_TAG = "smoke/cause"
CAUSE = "drift"
#: Runs of the training job that are looked at, the newest.
RUNS = 50
#: Records of a check that are looked through for the newest that was judged.
HISTORY = 30


@dataclass(frozen=True, slots=True)
class FoundDrift:
    """A drift check of the fleet that has failed and was not judged again since.

    Attributes:
        check: its name.
        at: when it was judged.
        champion: the version that the day was compared with.
        description: what it said.
    """

    check: str
    at: datetime
    champion: str
    description: str


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run of the training job; ``for_drift``: whether drift asked for it."""

    run_id: str
    began: datetime
    finished: bool
    for_drift: bool


def retraining_decision(
    drift: Sequence[FoundDrift], champion: str | None, runs: Sequence[TrainingRun], cooldown: timedelta, now: datetime
) -> str | None:
    """Why not to train anew now, or ``None`` where it may be worth it.

    Args:
        drift: failed checks of the fleet; a single odd device fails none of them.
        champion: the version that is served, ``None`` where there is none.
        runs: of the training job, in any order.
        cooldown: zero switches training for drift off.
    """
    if not cooldown:
        return "training for drift is switched off (SMOKE_DRIFT_RETRAIN_COOLDOWN_HOURS=0)"
    if not drift:
        return "no drift of the fleet has been found"
    if champion is None:
        return "there is no champion; the start-up sensor trains a first one"
    present = [found for found in drift if found.champion == champion]
    if not present:
        return f"the drift was found with champion {drift[0].champion}, {champion} is served since"
    return _against(runs, max(found.at for found in present), cooldown, now)


def _against(runs: Sequence[TrainingRun], found_at: datetime, cooldown: timedelta, now: datetime) -> str | None:
    """What in the runs' history speaks against one more."""
    unfinished = [run.run_id for run in runs if not run.finished]
    if unfinished:
        return f"run {unfinished[0]} is training"
    since = [run.run_id for run in runs if run.began >= found_at]
    if since:
        return f"run {since[0]} was trained after the drift was found; the next drift report judges anew"
    asked = max((run.began for run in runs if run.for_drift), default=None)
    if asked is None or now >= asked + cooldown:
        return None
    due = asked + cooldown
    return f"drift asked for a run at {asked:%Y-%m-%d %H:%M} UTC; cooling down until {due:%Y-%m-%d %H:%M} UTC"


# -- what training would see -------------------------------------------------------------------------------------


def same_training_data(settings: Settings) -> str | None:
    """Why training would see just the rows that the champion was trained on; ``None`` where it would see others.

    Reads the rows to train on, so it is asked only when all else speaks for a run.

    Raises:
        SmokeError: for a champion file that is none.
    """
    champion = read_champion(settings.models_dir)
    if champion is None:
        return None
    manifest_file = (settings.models_dir / str(champion["path"])).with_name(MANIFEST)
    trained_on: dict[str, Any] = json.loads(manifest_file.read_bytes()).get("trained_on", {})
    lake = Lake(settings.lake)
    try:
        kind, fingerprint = _would_train_on(settings, lake)
    except SmokeError:
        return None  # nothing to train on yet: the job makes its set first
    if fingerprint != trained_on.get("fingerprint"):
        return None
    remedy = (
        "; simulated readings know nothing of the drift: label readings of the devices that have drifted"
        if kind == "simulated"
        else "; training becomes worth it when more labelled readings arrive"
    )
    return (
        f"training would see the very rows that champion {champion['version']} was trained on ({kind}, Delta version "
        f"{trained_on.get('delta_version')}, fingerprint {str(fingerprint)[:12]}) and give the same model{remedy}"
    )


def _would_train_on(settings: Settings, lake: Lake) -> tuple[str, str | None]:
    """Kind and fingerprint of the rows; no fingerprint where the job would simulate them anew first."""
    origin = feature_tables.load_examples(settings).origin
    kind = str(origin["kind"])
    if kind == "simulated" and not feature_tables.is_current(lake, model_lifecycle.training_world(settings)):
        return kind, None
    return kind, str(origin["fingerprint"])


def data_state(settings: Settings, drift: Sequence[FoundDrift]) -> str:
    """Changes whenever the answer of ``same_training_data`` may change; cheap to ask for at every tick."""
    simulated = Lake(settings.lake).version(feature_tables.SIMULATED_FEATURES)
    champion = read_champion(settings.models_dir)
    marts = sorted((str(file), file.stat().st_mtime_ns) for file in _marts(settings.marts_dir))
    return json.dumps(
        [
            simulated,
            marts,
            None if champion is None else champion["version"],
            [found.at.isoformat() for found in drift],
        ]
    )


def _marts(folder: Path) -> list[Path]:
    return list((folder / "training_examples").glob("*.parquet"))


# -- Dagster -----------------------------------------------------------------------------------------------------


def found_drift(instance: dg.DagsterInstance) -> list[FoundDrift]:
    """The checks of the fleet whose latest result is a failure."""
    found = []
    for name in FLEET_CHECKS:
        key = dg.AssetCheckKey(names.DRIFT_REPORT, name)
        # A run that had too little to judge leaves a record without an evaluation: what was judged before stands.
        records = instance.event_log_storage.get_asset_check_execution_history(key, limit=HISTORY)
        latest = next((record for record in records if record.evaluation is not None), None)
        if latest is None or latest.evaluation is None or latest.event is None or latest.evaluation.passed:
            continue
        champion = latest.evaluation.metadata.get("champion")
        moment = datetime.fromtimestamp(latest.event.timestamp, UTC)
        version = "" if champion is None else str(champion.value)
        found.append(FoundDrift(name, moment, version, latest.evaluation.description or ""))
    return found


def training_runs(instance: dg.DagsterInstance) -> list[TrainingRun]:
    """The latest runs of the training job, whoever asked for them."""
    records = instance.get_run_records(dg.RunsFilter(job_name=names.JOB_TRAINING), limit=RUNS)
    return [
        TrainingRun(
            record.dagster_run.run_id,
            record.create_timestamp.replace(tzinfo=UTC),
            record.dagster_run.is_finished,
            record.dagster_run.tags.get(CAUSE_TAG) == CAUSE,
        )
        for record in records
    ]


def definitions(settings: Settings) -> dg.Definitions:
    """The sensor; its job is one of ``models``."""
    return dg.Definitions(sensors=[_sensor(settings)])


def _sensor(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name=SENSOR,
        job_name=names.JOB_TRAINING,
        minimum_interval_seconds=TICK_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Trains anew where the fleet has drifted, with a cool-down, if training would see other data.",
    )
    def drift_retraining(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        champion = read_champion(settings.models_dir)
        served = None if champion is None else str(champion["version"])
        drift = found_drift(context.instance)
        cooldown = timedelta(hours=settings.drift_retrain_cooldown_hours)
        why_not = retraining_decision(drift, served, training_runs(context.instance), cooldown, datetime.now(UTC))
        if why_not:
            return dg.SkipReason(why_not)
        # No run key: a key is remembered for ever. What has been read in vain is not read again before it changes.
        state = data_state(settings, drift)
        seen = json.loads(context.cursor or "{}")
        same = seen["why"] if seen.get("state") == state else same_training_data(settings)
        if same:
            context.update_cursor(json.dumps({"state": state, "why": same}))
            return dg.SkipReason(same)
        tags = {CAUSE_TAG: CAUSE, "smoke/drift": ", ".join(found.check for found in drift)}
        return dg.SensorResult(run_requests=[dg.RunRequest(tags=tags)])

    return drift_retraining
