"""The sensor that trains anew because of drift, on a real Dagster instance, lake and champion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from smoke_platform.adapters import feature_tables, model_lifecycle
from smoke_platform.adapters.feature_tables import TrainingWorld
from smoke_platform.adapters.lake import Lake
from smoke_platform.orchestration import names, retraining
from smoke_platform.orchestration.build import build_definitions
from smoke_platform.orchestration.drift_monitor import FLEET_CHECKS
from smoke_platform.settings import Settings
from smoke_platform_tests import scorer_models

pytestmark = pytest.mark.integration

SMALL = TrainingWorld(fleets=2, devices_per_fleet=2, hours=0.2)


@pytest.fixture
def settings(tmp_path: Path, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = settings_for(tmp_path)
    monkeypatch.setattr(model_lifecycle, "training_world", lambda _settings: SMALL)
    feature_tables.build_simulated(Lake(made.lake), SMALL)
    return made


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def _champion(settings: Settings, fingerprint: str, version: int = 1) -> None:
    trained_on = {"kind": "simulated", "fingerprint": fingerprint, "delta_version": 0}
    model = scorer_models.logistic_model()
    scorer_models.publish(settings.models_dir, version, model, {"trained_on": trained_on})


def _judge(instance: dg.DagsterInstance, passed: bool, name: str = FLEET_CHECKS[0], champion: str = "1") -> None:
    """Tells Dagster what a drift report's check found."""
    evaluation = dg.AssetCheckEvaluation(
        asset_key=names.DRIFT_REPORT,
        check_name=name,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"champion": dg.MetadataValue.text(champion)},
        description="half of the features have drifted",
    )
    instance.report_runless_asset_event(evaluation)


def _tick(settings: Settings, instance: dg.DagsterInstance, cursor: str | None = None) -> tuple[Any, str | None]:
    sensor: Any = next(iter(retraining.definitions(settings).sensors or []))
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        return sensor(context), context.cursor


def _fingerprint(settings: Settings) -> str:
    return str(feature_tables.load_examples(settings).origin["fingerprint"])


def test_drift_of_the_fleet_asks_for_one_training_run(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Or drift is a yellow mark that changes nothing, or a training run every minute."""
    _champion(settings, "of other rows")
    assert isinstance(_tick(settings, instance)[0], dg.SkipReason)
    _judge(instance, True)
    assert isinstance(_tick(settings, instance)[0], dg.SkipReason)
    _judge(instance, False)
    answer, _ = _tick(settings, instance)
    assert isinstance(answer, dg.SensorResult)
    (request,) = answer.run_requests or []
    assert request.run_key is None
    # The daemon makes the run; from then on the runs' history speaks against another one.
    run = instance.create_run_for_job(_training_job(), tags=dict(request.tags))
    waiting, _ = _tick(settings, instance)
    assert f"run {run.run_id} is training" in waiting.skip_message
    instance.report_run_canceled(run)
    after, _ = _tick(settings, instance)
    assert "after the drift was found" in after.skip_message
    _judge(instance, False, FLEET_CHECKS[1])
    cooling, _ = _tick(settings, instance)
    assert "cooling down" in cooling.skip_message


def test_drift_that_training_cannot_cure_is_not_trained_on(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Or every day brings the same model anew, byte by byte, and the drift is said to be dealt with."""
    _champion(settings, _fingerprint(settings))
    _judge(instance, False)
    answer, cursor = _tick(settings, instance)
    assert isinstance(answer, dg.SkipReason)
    assert "the very rows that champion 1 was trained on" in (answer.skip_message or "")
    assert "label readings" in (answer.skip_message or "")
    again, _ = _tick(settings, instance, cursor)
    assert isinstance(again, dg.SkipReason)
    assert again.skip_message == answer.skip_message


def test_unchanged_rows_are_not_read_at_every_tick(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a sensor reads the whole training set once a minute for as long as the drift lasts."""
    _champion(settings, _fingerprint(settings))
    _judge(instance, False)
    _, cursor = _tick(settings, instance)
    real, read = feature_tables.load_examples, []
    monkeypatch.setattr(feature_tables, "load_examples", lambda *args: read.append(1) or real(*args))
    _tick(settings, instance, cursor)
    assert read == []
    # A changed set is looked at, and is a reason to train.
    changed = TrainingWorld(fleets=2, devices_per_fleet=2, hours=0.2, seed=9)
    feature_tables.build_simulated(Lake(settings.lake), changed)
    monkeypatch.setattr(model_lifecycle, "training_world", lambda _settings: changed)
    answer, _ = _tick(settings, instance, cursor)
    assert isinstance(answer, dg.SensorResult)
    assert read == [1]


def test_drift_of_an_earlier_champion_is_forgotten(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Or a champion that was trained on the drifted readings is trained anew for its predecessor's drift."""
    _champion(settings, "of other rows", version=2)
    _judge(instance, False)
    answer, _ = _tick(settings, instance)
    assert "2 is served since" in answer.skip_message


def test_the_sensor_runs_by_default_and_finds_its_job(settings: Settings) -> None:
    """Or drift waits for somebody to switch the sensor on, or asks for a job that is not there."""
    repository = build_definitions(settings).get_repository_def()
    sensor = repository.get_sensor_def(retraining.SENSOR)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert [target.job_name for target in sensor.targets] == [names.JOB_TRAINING]
    assert repository.has_job(names.JOB_TRAINING)


def _training_job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None:
        return

    @dg.job(name=names.JOB_TRAINING)
    def training() -> None:
        nothing()

    return training
