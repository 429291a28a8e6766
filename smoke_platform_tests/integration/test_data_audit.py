"""The audit on a lake, in Dagster and before training: what is refused, what is kept, what a person is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from smoke_platform.adapters import data_audit, evaluation_page, feature_tables, model_lifecycle, trainer, warehouse
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, READINGS_SCHEMA, Lake
from smoke_platform.adapters.registry import Registry, publish
from smoke_platform.domain.audit_findings import FAMILIES
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.recordings import RecordingFile
from smoke_platform.orchestration import audit, models, names
from smoke_platform.settings import Settings
from smoke_platform_tests.audit_data import clean, of, renamed
from smoke_platform_tests.integration.small_models import QUICK
from smoke_platform_tests.monitoring_lake import as_landed

pytestmark = pytest.mark.integration

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


def landed(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """The readings as landing writes them."""
    return frame.select(
        pl.col("event_time").dt.date().alias(PARTITION_COLUMN),
        pl.exclude("recording", "source"),
        source=pl.lit(source),
        schema_version=pl.lit(1, pl.Int32),
        late=pl.lit(False),
        topic=pl.lit("smoke_sensor_data"),
        topic_id=pl.lit("T1"),
        partition=pl.lit(0, pl.Int32),
        offset=pl.int_range(pl.len(), dtype=pl.Int64),
        append_time=pl.col("event_time"),
        ingest_time=pl.col("event_time"),
        replay_of=pl.lit(None, pl.String),
    ).select(READINGS_SCHEMA.names)


def replayed() -> pl.DataFrame:
    """Four recordings of which one is there twice."""
    frame = clean(fleets=2, devices=2)
    return pl.concat([frame, renamed(of(frame, frame["recording"][0]))])


@pytest.fixture
def platform(tmp_path: Path, settings_for: Callable[..., Settings]) -> Settings:
    """A platform whose lake holds replayed recordings that are not clean."""
    settings = settings_for(tmp_path, SMOKE_LAKE_URL=tmp_path / "lake")
    Lake(settings.lake).append(READINGS, landed(replayed(), "csv"), (PARTITION_COLUMN,))
    return settings


@pytest.fixture
def trainable(platform: Settings) -> Settings:
    """The same with a clean simulated set beside them."""
    simulated = clean().drop("recording").with_columns(pl.col("event_time").dt.date().alias(PARTITION_COLUMN))
    Lake(platform.lake).append(feature_tables.SIMULATED_READINGS, simulated)
    return platform


def test_each_kind_is_audited_by_its_own_readings(trainable: Settings) -> None:
    """Or copies in a replayed file keep the simulated set from being trained on, or are overlooked behind it."""
    simulated = data_audit.audit_source(trainable, "simulated")
    assert simulated.clean, [found.finding for found in simulated.blocking]
    assert simulated.rows == clean().height
    csv = data_audit.audit_source(trainable, "csv")
    assert {found.check for found in csv.of("duplicates")} == {"copied_recording"}
    assert csv.rows == replayed().height
    assert not data_audit.audit_source(trainable, "devices").rows
    assert [found.check for found in data_audit.audit_source(trainable, "devices").findings] == ["no_labelled_rows"]


def test_a_report_at_hand_is_not_made_again_until_the_table_changes(platform: Settings) -> None:
    """Or every training pays for the same audit, or new readings are trained on under an old verdict."""
    heard: list[str] = []
    first = data_audit.audit_source(platform, "csv", heard.append)
    stored = data_audit.store(platform, first, NOW)
    assert stored.page.read_text("utf-8").startswith("<!doctype html>")
    again = data_audit.audit_source(platform, "csv", heard.append)
    assert again == first
    assert ["at hand" in one for one in heard] == [False, True]
    Lake(platform.lake).append(READINGS, landed(renamed(clean(fleets=1, devices=1), "new"), "csv"))
    more = data_audit.audit_source(platform, "csv", heard.append)
    assert more.rows > first.rows
    assert "at hand" not in heard[-1]


def test_a_model_of_csv_readings_carries_the_reasons_against_it(
    trainable: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the gate cannot tell a model of copies from one of fires."""
    kept: list[dict[str, Any]] = []

    class Kept(Registry):
        def register(self, artifact: bytes, manifest: dict[str, Any], reference: pl.DataFrame) -> int:
            kept.append(manifest)
            return len(kept)

        def manifest(self, version: int) -> dict[str, Any]:
            return kept[version - 1]

    class Few(list[int]):
        def __init__(self, kind: str) -> None:
            self.origin = {"kind": kind, "groups": 5}

    # What is trained does not matter here, only what is said of the data.
    monkeypatch.setattr(feature_tables, "load_examples", lambda _settings, source="auto": Few(source))
    monkeypatch.setattr(trainer, "train", lambda *_arguments: trainer.Trained(b"", {}, pl.DataFrame()))
    monkeypatch.setattr(evaluation_page, "write", lambda *_arguments: None)
    bad = model_lifecycle.train_candidate(trainable, Kept(trainable), source="csv").manifest["audit"]
    assert bad["clean"] is False
    assert bad["blocking"] == sum(reason["severity"] == "blocking" for reason in bad["findings"]) > 0
    told = next(reason for reason in bad["findings"] if reason["check"] == "duplicates.copied_recording")
    assert set(told) == {"check", "finding", "evidence", "consequence", "severity"}
    assert "another repeats" in told["finding"]
    assert model_lifecycle.train_candidate(trainable, Kept(trainable), source="simulated").manifest["audit"]["clean"]


def test_bad_data_stop_the_training_run_and_leave_the_champion(
    platform: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a night's training on copies replaces the model that works, or stops and nobody learns why."""
    monkeypatch.setattr(feature_tables, "training_kind", lambda _settings, source="auto": "csv")
    monkeypatch.setattr(model_lifecycle, "prepare_simulated", lambda *_arguments: False)
    champion = {"version": 1, "path": "model.onnx", "feature_version": "1"}
    platform.models_dir.mkdir(parents=True)
    publish(platform.models_dir, champion)
    before = (platform.models_dir / "champion.json").read_bytes()
    definitions = dg.Definitions.merge(models.definitions(platform), audit.definitions(platform))
    job = definitions.resolve_job_def(names.JOB_TRAINING)
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        assert not result.success
        found = {event.check_name: event for event in result.get_asset_check_evaluations()}
        assert set(found) == set(audit.CHECKS) == {f"audit_{family}" for family in FAMILIES}
        failed = {name for name, event in found.items() if not event.passed}
        assert {"audit_duplicates", "audit_coverage"} <= failed
        assert "audit_stuck" not in failed
        assert found["audit_duplicates"].blocking
        told = found["audit_duplicates"].description or ""
        assert "another repeats" in told
        assert "the champion stays" in told
        assert instance.get_latest_materialization_event(names.CANDIDATE_MODEL) is None
        event = instance.get_latest_materialization_event(names.DATA_AUDIT)
        assert event is not None
        assert event.asset_materialization is not None
        route = str(event.asset_materialization.metadata["report"].value)
    assert (platform.reports_dir / data_audit.REPORT / route.rsplit("/", 1)[1]).is_file()
    assert (platform.models_dir / "champion.json").read_bytes() == before


def test_clean_data_let_training_go_on(trainable: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the audit stands in the way of every training, and no platform gets a first model."""
    asked = []

    def train(*_arguments: Any, **_options: Any) -> None:
        asked.append(True)
        raise SmokeError("far enough")

    monkeypatch.setattr(feature_tables, "training_kind", lambda _settings, source="auto": "simulated")
    monkeypatch.setattr(model_lifecycle, "prepare_simulated", lambda *_arguments: False)
    monkeypatch.setattr(model_lifecycle, "train_candidate", train)
    definitions = dg.Definitions.merge(models.definitions(trainable), audit.definitions(trainable))
    with dg.DagsterInstance.ephemeral() as instance:
        job = definitions.resolve_job_def(names.JOB_TRAINING)
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    found = {event.check_name: event.passed for event in result.get_asset_check_evaluations()}
    assert found == dict.fromkeys(audit.CHECKS, True)
    assert asked == [True]


def test_an_audit_without_a_table_names_what_is_missing(settings_for: Callable[..., Settings], tmp_path: Path) -> None:
    """Or a person who audits before anything was landed sees a stack trace."""
    with pytest.raises(SmokeError, match="no table 'simulated_readings'"):
        data_audit.audit_source(settings_for(tmp_path), "simulated")


def test_a_model_of_the_public_recordings_is_refused_with_the_reasons(
    tmp_path: Path, settings_for: Callable[..., Settings], needs_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a platform that is fed with the file that everybody has gets a model that knows recordings, not fires."""
    settings = settings_for(tmp_path)
    lake = Lake(settings.lake)
    file = RecordingFile(needs_data / "kaggle_smoke" / "smoke_detection_iot.csv", on_bad_row=pytest.fail)
    lake.append(READINGS, as_landed(pl.concat(list(file.chunks())).drop("recording")), (PARTITION_COLUMN,))
    days = sorted(lake.scan(READINGS).select(pl.col(PARTITION_COLUMN).unique()).collect()[PARTITION_COLUMN].to_list())
    for day in days:
        feature_tables.build_day(lake, day)
    warehouse.build(settings, days[0], days[-1])
    warehouse.publish_marts(settings, days)
    registry = Registry(settings)
    registry.migrate()
    monkeypatch.setattr(trainer.train, "__kwdefaults__", {**(trainer.train.__kwdefaults__ or {}), "algorithms": QUICK})
    candidate = model_lifecycle.train_candidate(settings, registry, source="csv")
    verdict = model_lifecycle.judge(settings, registry, candidate.number)
    assert not verdict.passed
    [reason] = [reason for reason in verdict.reasons if reason.startswith("audit of the data")]
    assert "repeats" in reason
    checks = {found["check"] for found in candidate.manifest["audit"]["findings"]}
    assert {"duplicates.copied_recording", "leaks.event_time", "leaks.sequence", "leaks.pressure_hpa"} <= checks
    assert {"physics.fire_in_clean_air", "synthetic.computed_signal"} & checks
    with pytest.raises(model_lifecycle.GateRefused, match="audit of the data"):
        model_lifecycle.promote(settings, registry, candidate.number, reason="test")
    assert registry.champion() is None
