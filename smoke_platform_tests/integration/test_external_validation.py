"""External validation with real ONNX models: which one scores, and what Dagster is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from smoke_platform.adapters import external_validation
from smoke_platform.adapters.scorer import ModelRefused
from smoke_platform.domain.errors import SmokeError
from smoke_platform.orchestration import external_validation as asset
from smoke_platform.orchestration import names
from smoke_platform.settings import Settings
from smoke_platform_tests import scorer_models
from smoke_platform_tests.fire_tests import smoke_from, write_activations, write_fire, write_recording
from smoke_platform_tests.monitoring_lake import report_data

pytestmark = pytest.mark.integration


@dataclass
class Told:
    materialised: Mapping[str, Any] | None
    observed: Mapping[str, Any] | None
    checks: Mapping[str, tuple[bool, dg.AssetCheckSeverity]]


def materialise(settings: Settings) -> Told:
    with dg.DagsterInstance.ephemeral() as instance:
        assets = list(asset.definitions(settings).assets or [])
        result = dg.materialize(assets, instance=instance)  # type: ignore[arg-type]
        assert result.success
        materialised = observed = None
        checks = {}
        for event in result.all_events:
            if event.is_step_materialization:
                found = event.step_materialization_data.materialization.metadata
                materialised = {name: value.value for name, value in found.items()}
            elif event.event_type is dg.DagsterEventType.ASSET_OBSERVATION:
                found = event.asset_observation_data.asset_observation.metadata
                observed = {name: value.value for name, value in found.items()}
            elif event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                evaluation = event.asset_check_evaluation_data
                checks[evaluation.check_name] = (evaluation.passed, evaluation.severity)
    return Told(materialised, observed, checks)


def publish(settings: Settings, version: int = 1, bias: float = -9.0) -> None:
    """A champion that never takes anything for fire, unless ``bias`` says otherwise."""
    scorer_models.publish(settings.models_dir, version, scorer_models.logistic_model({}, bias))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / external_validation.FOLDER
    folder.mkdir(parents=True)
    write_fire(folder)
    return folder


def test_without_data_or_champion_nothing_is_red_or_green(
    tmp_path: Path, settings_for: Callable[..., Settings], data: Path
) -> None:
    """Or every platform without the example data has a failed check, or a tick that nothing stands behind."""
    for settings, why in (
        (settings_for(tmp_path), "SMOKE_DATA_DIR is not set"),
        (settings_for(tmp_path, SMOKE_DATA_DIR=tmp_path), "holds no folder nist_smoke_alarms"),
        (settings_for(tmp_path, SMOKE_DATA_DIR=data.parent), "no champion"),
    ):
        told = materialise(settings)
        assert (told.materialised, told.checks) == (None, {})
        assert told.observed is not None
        assert told.observed["evaluated"] is False
        assert why in told.observed["reason"]


def test_the_champion_s_shares_are_checked_and_reported(
    tmp_path: Path, settings_for: Callable[..., Settings], data: Path
) -> None:
    """Or a model that hears fires later than the one before is promoted without anybody being told."""
    settings = settings_for(tmp_path, SMOKE_DATA_DIR=data.parent)
    publish(settings)
    told = materialise(settings)
    warn, error = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
    assert told.checks == {
        "photoelectric_won_at_least_90": (True, warn),
        "ionisation_won_at_least_50": (False, warn),
        "no_alarm_before_ignition": (True, error),
    }
    assert told.materialised is not None
    assert told.materialised["photoelectric_won"] == 1.0
    assert told.materialised["model"] == "the rules and model version 1"
    assert Path(told.materialised["file"]).is_file()
    assert report_data(settings, "external-validation")["before_ignition"] == 0


def test_an_alarm_before_ignition_fails_gravely_and_a_kind_without_pairs_is_not_judged(
    tmp_path: Path, settings_for: Callable[..., Settings], data: Path
) -> None:
    """Or a model that takes clean air for fire wins every pair and passes."""
    write_recording(data / "NIST_Smoke_Alarms_FIRE1.csv", {"SMA_1": smoke_from(40)})
    write_activations(data, {"FIRE1-Pho1A": 90})
    settings = settings_for(tmp_path, SMOKE_DATA_DIR=data.parent)
    publish(settings, bias=9.0)
    told = materialise(settings)
    assert {name: passed for name, (passed, _) in told.checks.items()} == {
        "photoelectric_won_at_least_90": False,
        "no_alarm_before_ignition": False,
    }
    assert told.checks["no_alarm_before_ignition"][1] is dg.AssetCheckSeverity.ERROR


def test_without_a_champion_the_start_up_model_is_trained_first_and_only_then(
    tmp_path: Path, settings_for: Callable[..., Settings], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the first call on a new platform fails, or every call trains for minutes."""
    settings = settings_for(tmp_path)
    trained: list[str] = []

    def train(chosen: Settings, progress: Any) -> None:
        progress("training")
        publish(chosen, version=4)

    monkeypatch.setattr(external_validation, "_train", train)
    for _ in range(2):
        outcome = external_validation.run(data, settings, progress=trained.append)
        assert outcome.validation.model == "the rules and model version 4"
    assert trained.count("training") == 1
    # Neither asks for a model: a broken folder is told first, and the rules need none.
    trained.clear()
    elsewhere = settings_for(tmp_path / "elsewhere")
    with pytest.raises(SmokeError, match="is no folder"):
        external_validation.run(tmp_path / "none", elsewhere, progress=trained.append)
    assert external_validation.choose(elsewhere, "rules") is None
    assert trained == []


def test_a_champion_that_was_tampered_with_is_refused(
    tmp_path: Path, settings_for: Callable[..., Settings], data: Path
) -> None:
    """Or somebody's file is validated under the champion's name, or a new model is trained over it in silence."""
    settings = settings_for(tmp_path)
    publish(settings)
    model = settings.models_dir / "1" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(ModelRefused):
        external_validation.run(data, settings)


def test_the_asset_hangs_below_the_champion(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """Or nobody sees that a new champion makes the validation old."""
    graph = asset.definitions(settings_for(tmp_path)).resolve_asset_graph()
    assert graph.get(names.EXTERNAL_VALIDATION).parent_keys == {names.CHAMPION_MODEL}
