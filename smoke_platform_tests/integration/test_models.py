"""Features and models in Dagster: real runs on an ephemeral instance, a real lake and a real registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from smoke_platform.adapters import feature_tables, model_lifecycle, trainer
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, READINGS_SCHEMA, Lake
from smoke_platform.adapters.registry import Registry, publish
from smoke_platform.domain import features
from smoke_platform.domain.audit_findings import FAMILIES
from smoke_platform.domain.readings import ALL_SENSOR_NAMES
from smoke_platform.domain.simulator import simulate
from smoke_platform.orchestration import audit, models, names
from smoke_platform.orchestration.models import TrainingRun, startup_decision
from smoke_platform.settings import Settings
from smoke_platform_tests.integration.small_models import QUICK, WORLD

pytestmark = pytest.mark.integration

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
DAY = date(2024, 3, 2)


def readings(start: datetime, hours: float, devices: int = 3) -> pl.DataFrame:
    """Landed readings of simulated devices, in order of arrival."""
    frame = simulate(devices, start, hours * 3600, 11, interval_s=5.0).sort("event_time", maintain_order=True)
    count = frame.height
    return (
        frame.drop("event_kind", "event_family", "event_id")
        .select(
            pl.col("event_time").dt.date().alias(PARTITION_COLUMN),
            pl.all(),
            pl.lit(1, pl.Int32).alias("schema_version"),
            pl.lit(False).alias("late"),
            pl.lit("smoke_sensor_data").alias("topic"),
            pl.lit("T1").alias("topic_id"),
            pl.lit(0, pl.Int32).alias("partition"),
            pl.Series("offset", np.arange(count)),
            pl.col("event_time").alias("append_time"),
            pl.col("event_time").alias("ingest_time"),
            pl.lit(None, pl.String).alias("replay_of"),
        )
        .select(READINGS_SCHEMA.names)
    )


def test_a_day_of_features_is_what_the_detector_would_have_seen(tmp_path: Path) -> None:
    """Training and alarm path must see the same numbers, bit for bit, once the warm-up covers the history."""
    lake = Lake(f"{tmp_path}/lake")
    frame = readings(datetime(2024, 3, 1, 21, tzinfo=UTC), 8)
    lake.append(READINGS, frame, (PARTITION_COLUMN,))
    built = feature_tables.build_day(lake, DAY)
    stored = lake.scan(feature_tables.FEATURES).filter(pl.col(PARTITION_COLUMN) == DAY).collect().sort("offset")
    slots = (frame["device_id"].rank("dense").cast(pl.Int64) - 1).to_numpy()
    expected = features.step(
        features.FeatureState(), slots, features.event_seconds(frame), features.sensor_matrix(frame)
    )
    of_day = (frame[PARTITION_COLUMN] == DAY).to_numpy()
    assert built.rows == stored.height == int(of_day.sum())
    assert built.warm_up_rows == int((~of_day).sum())
    assert features.feature_matrix(stored).tobytes() == expected[of_day].tobytes()
    assert not set(ALL_SENSOR_NAMES) & set(stored.columns) - set(features.FEATURE_NAMES)


def test_building_a_day_again_replaces_it_and_duplicates_count_once(tmp_path: Path) -> None:
    """A rebuilt day must not double its rows, nor may a device that repeats itself."""
    lake = Lake(f"{tmp_path}/lake")
    frame = readings(datetime(2024, 3, 2, 1, tzinfo=UTC), 1)
    lake.append(READINGS, frame, (PARTITION_COLUMN,))
    first = feature_tables.build_day(lake, DAY)
    again = frame.head(40).with_columns(pl.col("offset") + frame.height)
    lake.append(READINGS, again, (PARTITION_COLUMN,))
    second = feature_tables.build_day(lake, DAY)
    assert (second.rows, second.duplicates) == (first.rows, 40)
    assert lake.scan(feature_tables.FEATURES).select(pl.len()).collect().item() == first.rows
    assert feature_tables.build_day(lake, DAY + timedelta(days=9)).rows == 0


def subject(settings: Settings, world: feature_tables.TrainingWorld | None = None) -> dg.Definitions:
    """Models, and the audit that their job asks first."""
    return dg.Definitions.merge(models.definitions(settings, world), audit.definitions(settings))


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]
) -> tuple[Settings, dg.Definitions]:
    # How good a model of so small a set is, is not the subject.
    settings = settings_for(tmp_path_factory.mktemp("platform"), SMOKE_GATE_MIN_F1=0.5)
    return settings, subject(settings, WORLD)


def test_training_job_brings_a_champion_and_a_refused_one_leaves_it_alone(
    platform: tuple[Settings, dg.Definitions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an empty platform one run must lead to a served model; a later, poor one must not replace it."""
    settings, definitions = platform
    monkeypatch.setattr(trainer.train, "__kwdefaults__", {**(trainer.train.__kwdefaults__ or {}), "algorithms": QUICK})
    job = definitions.resolve_job_def(names.JOB_TRAINING)
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance)
        assert result.success
        champion = Registry(settings).champion()
        assert champion is not None
        assert champion["version"] == 1
        assert models.usable_champion(settings)
        checks = {event.check_name: event.passed for event in result.get_asset_check_evaluations()}
        asked = [*(f"audit_{family}" for family in FAMILIES), *(f"gate_{name}" for name in models.GATE_CHECKS)]
        assert checks == dict.fromkeys(asked, True)
        assert Registry(settings).manifest(1)["audit"]["clean"] is True

        # A gate that nothing can pass stands for a poor candidate: real figures, refused for real.
        monkeypatch.setattr(
            model_lifecycle,
            "limits",
            lambda _settings: replace(model_lifecycle.Limits(0.8, 0.75), min_f1=1.01, least_fires=1),
        )
        refused = job.execute_in_process(instance=instance)
        assert refused.success
        failed = [event.check_name for event in refused.get_asset_check_evaluations() if not event.passed]
        assert "gate_f1" in failed
    assert (Registry(settings).champion() or {})["version"] == 1
    assert Registry(settings).version(2).gate == "refused"
    assert "F1" in Registry(settings).version(2).reasons[0]


def test_definitions_load_and_schedule_what_they_promise(settings_for: Callable[..., Settings], tmp_path: Path) -> None:
    """An interval of 24 hours means 02:00 every day; an operator who switches auto-training off means it."""
    daily = subject(settings_for(tmp_path))
    assert daily.resolve_schedule_def("training_schedule").cron_schedule == "0 2 * * *"
    often = subject(
        settings_for(
            tmp_path, ML_TRAINING_INTERVAL_HOURS=6, ML_AUTO_TRAIN_ON_STARTUP=False, SMOKE_TIMEZONE="Asia/Tokyo"
        )
    )
    assert often.resolve_schedule_def("training_schedule").cron_schedule == "0 */6 * * *"
    assert often.resolve_schedule_def("training_schedule").execution_timezone == "Asia/Tokyo"
    assert often.resolve_sensor_def(models.STARTUP_SENSOR).default_status == dg.DefaultSensorStatus.STOPPED
    assert daily.resolve_sensor_def(models.STARTUP_SENSOR).default_status == dg.DefaultSensorStatus.RUNNING


def test_startup_sensor_asks_for_one_run_and_then_stops(settings_for: Callable[..., Settings], tmp_path: Path) -> None:
    """A new platform trains its first model by itself, once."""
    settings = settings_for(tmp_path)
    sensor = subject(settings).resolve_sensor_def(models.STARTUP_SENSOR)
    with dg.DagsterInstance.ephemeral() as instance:
        asked = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
        assert asked.run_requests is not None
        assert len(asked.run_requests) == 1
        assert asked.run_requests[0].run_key is None
        settings.models_dir.mkdir(parents=True)
        (settings.models_dir / "model.onnx").write_bytes(b"x")
        publish(
            settings.models_dir,
            {"version": 1, "path": "model.onnx", "feature_version": features.FEATURE_SET_VERSION},
        )
        done = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
        assert not done.run_requests
        assert "there is a champion" in (done.skip_message or "")
        publish(settings.models_dir, {"version": 1, "path": "model.onnx", "feature_version": "0-older"})
        assert sensor.evaluate_tick(dg.build_sensor_context(instance=instance)).run_requests


def test_startup_training_waits_longer_after_each_run_in_vain() -> None:
    """A training that cannot succeed must not run in a hot loop, nor twice at once."""
    assert startup_decision(True, [], NOW) == "there is a champion"
    assert startup_decision(False, [], NOW) is None
    assert "is training" in (startup_decision(False, [TrainingRun("a", None)], NOW) or "")
    for failures, wait in ((1, 60), (2, 120), (3, 240), (9, 3600)):
        runs = [TrainingRun(str(number), NOW - timedelta(hours=number)) for number in range(failures)]
        assert startup_decision(False, runs, NOW + timedelta(seconds=wait - 1)) is not None
        assert startup_decision(False, runs, NOW + timedelta(seconds=wait)) is None
