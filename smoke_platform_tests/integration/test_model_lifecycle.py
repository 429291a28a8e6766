"""Challengers, the way back, retention and swaps under load: a real registry, a real lake, real Dagster, real HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from click.testing import CliRunner

from proofs.suite_lifecycle import Plan, prove
from smoke_platform.adapters import model_lifecycle, model_replay, shadow, trainer
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.registry import CHALLENGER_FILE, Registry, publish, read_champion, read_changes
from smoke_platform.adapters.scorer import ModelRefused
from smoke_platform.cli.models import models as command
from smoke_platform.domain import promotion
from smoke_platform.domain.alarm_outcomes import AlarmOutcomes, EpisodeOutcome
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.promotion import Figures, Parity
from smoke_platform.orchestration import model_watch, names
from smoke_platform.settings import Settings
from smoke_platform_tests.monitoring_lake import BIAS, WEIGHTS, as_landed, simulated
from smoke_platform_tests.registry_parts import add, registry_of
from smoke_platform_tests.scorer_models import logistic_model

pytestmark = pytest.mark.integration

#: Tells simulated fires from quiet rooms; calls nothing fire; calls everything fire.
GOOD = logistic_model(WEIGHTS, BIAS)
BLIND = logistic_model(bias=-5.0)
NERVOUS = logistic_model(bias=5.0)
#: The simulator tells the same of the same hours. In some others the blind model misses no fire, or nobody burns.
START = datetime(2024, 5, 15, 6, tzinfo=UTC)


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a lake with five hours of simulated readings, fires among them."""
    folder = tmp_path_factory.mktemp("lake")
    lake = Lake(f"{folder}/lake")
    frame = simulated(6, START, 5, fires_per_device_day=8.0, nuisances_per_device_day=4.0)
    lake.append("readings", as_landed(frame), partition_by=["event_date"])
    return lake.root


@pytest.fixture
def settings(tmp_path: Path, landed: str, settings_for: Callable[..., Settings]) -> Settings:
    return settings_for(tmp_path, SMOKE_LAKE_URL=landed, SMOKE_SHADOW_HOURS=20)


def since(registry: Registry, moment: datetime) -> None:
    """Says that the challenger has been one since ``moment``, as a test cannot wait for hours of readings."""
    entry = registry.challenger() or {}
    publish(registry.models_dir, {**entry, "published_at": moment.isoformat()}, CHALLENGER_FILE)


# -- the challenger ------------------------------------------------------------------------------------------


def test_windows_follow_one_another_and_every_reading_counts_once(settings: Settings) -> None:
    """Readings that are counted twice, or never, would promote or drop a challenger on made-up evidence."""
    registry = registry_of(settings, GOOD, logistic_model(WEIGHTS, BIAS - 0.5))
    registry.promote(1, reason="first")
    assert shadow.watch(settings, START) == "no version is watched in shadow"
    registry.challenge(2, reason="a test")
    since(registry, START)
    first = shadow.watch(settings, START + timedelta(hours=2))
    second = shadow.watch(settings, START + timedelta(hours=6))
    assert isinstance(first, shadow.Watched)
    assert isinstance(second, shadow.Watched)
    landed = Lake(settings.lake).scan("readings").select(pl.len()).collect().item()
    assert first.window.readings + second.window.readings == second.so_far.readings == landed
    assert second.so_far.device_hours == pytest.approx(30.0, abs=0.2)
    assert second.so_far.champion_alarms > 0
    assert second.so_far.known == landed
    assert "nothing has arrived" in str(shadow.watch(settings, START + timedelta(hours=6)))
    page = second.report.page.read_text("utf-8")
    assert "Version 2 beside champion 1" in page
    assert "<svg" in page
    registry.challenge(2, reason="anew")
    since(registry, START - timedelta(minutes=1))
    anew = shadow.watch(settings, START + timedelta(hours=2))
    assert isinstance(anew, shadow.Watched)
    assert anew.so_far == first.window


def test_one_model_beside_itself_differs_in_nothing(settings: Settings) -> None:
    """A comparison that invents differences would drop every challenger."""
    registry = registry_of(settings, GOOD, GOOD)
    registry.promote(1, reason="first")
    registry.challenge(2, reason="a test")
    since(registry, START)
    found = shadow.watch(settings, START + timedelta(hours=6))
    assert isinstance(found, shadow.Watched)
    so_far = found.so_far
    assert (so_far.call_disagreements, so_far.only_champion, so_far.only_challenger) == (0, 0, 0)
    assert so_far.difference_sum == 0.0
    assert found.decision.action == "promote"


def test_more_devices_than_fit_are_left_out_whole(settings: Settings) -> None:
    """Half a device's readings would have no history and no alarms."""
    lake = Lake(settings.lake)
    some = model_replay.load(lake, START, START + timedelta(hours=5), most=4_000)
    assert some is not None
    assert (len(some.devices), some.all_devices) == (2, 6)
    everything = model_replay.load(lake, START, START + timedelta(hours=5))
    assert everything is not None
    assert set(some.devices) < set(everything.devices)
    counts = {device: int((everything.readings.slots == slot).sum()) for slot, device in enumerate(everything.devices)}
    assert len(some.readings) == sum(counts[device] for device in some.devices)


@pytest.fixture
def shadow_job(settings: Settings) -> Iterator[tuple[dg.JobDefinition, dg.DagsterInstance]]:
    definitions = model_watch.definitions(settings)
    with dg.DagsterInstance.ephemeral() as instance:
        yield definitions.resolve_job_def(names.JOB_SHADOW), instance


Job = tuple[dg.JobDefinition, dg.DagsterInstance]


def judged_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's figures without a training set; the gate itself stays as it is."""
    monkeypatch.setattr(model_lifecycle, "_held_out", lambda *_: [1])
    monkeypatch.setattr(trainer, "figures", lambda *_: Figures(0.95, 0.9, Parity(10**5, 9, 0.0, 0), 5.0, "1", "1"))
    episodes = tuple(EpisodeOutcome(f"f{place}", "fire", "wood", "d", True, 10.0) for place in range(40))
    monkeypatch.setattr(model_lifecycle, "held_out_outcomes", lambda *_: AlarmOutcomes(episodes, 0, 30.0))


def test_a_good_challenger_becomes_champion_after_its_time(
    settings: Settings, shadow_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night's training would stay in the shadow for ever, or reach the alarm path without having been watched."""
    judged_as_good(monkeypatch)
    registry = registry_of(settings, GOOD)
    assert model_lifecycle.advance(settings, registry, 1).outcome == "champion"
    add(registry, logistic_model(WEIGHTS, BIAS - 0.1))
    add(registry, GOOD)
    assert model_lifecycle.advance(settings, registry, 2).outcome == "challenger"
    assert model_lifecycle.advance(settings, registry, 3).outcome == "waits"
    assert (registry.champion() or {})["version"] == 1
    since(registry, START)
    job, instance = shadow_job
    result = job.execute_in_process(instance=instance)
    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == ("challenger_no_worse", True)
    assert (registry.champion() or {})["version"] == 2
    assert registry.challenger() is None
    assert read_changes(settings.models_dir)[-1].automatic
    told = instance.get_latest_materialization_event(names.CHAMPION_MODEL)
    assert told is not None
    assert told.asset_materialization is not None
    assert told.asset_materialization.metadata["version"].value == 2


@pytest.mark.parametrize("poor", [BLIND, NERVOUS], ids=["blind", "nervous"])
def test_a_poor_challenger_is_dropped_and_the_champion_stays(settings: Settings, shadow_job: Job, poor: bytes) -> None:
    """A model that misses live fires, or cries wolf, must not reach the alarm path whatever its validation said."""
    registry = registry_of(settings, GOOD, poor)
    registry.promote(1, reason="first")
    registry.challenge(2, reason="a test")
    since(registry, START)
    job, instance = shadow_job
    result = job.execute_in_process(instance=instance)
    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert registry.challenger() is None
    assert (registry.champion() or {})["version"] == 1


def test_a_tampered_challenger_is_dropped(settings: Settings, shadow_job: Job) -> None:
    """A changed file must not be scored, not even where it raises no alarm: it would be promoted next."""
    registry = registry_of(settings, GOOD, GOOD)
    registry.promote(1, reason="first")
    registry.challenge(2, reason="a test")
    (settings.models_dir / "2" / "model.onnx").write_bytes(BLIND)
    with pytest.raises(ModelRefused):
        shadow.watch(settings, START + timedelta(hours=5))
    job, instance = shadow_job
    assert job.execute_in_process(instance=instance).success
    assert registry.challenger() is None
    assert (registry.champion() or {})["version"] == 1


def test_no_run_is_asked_for_without_a_challenger(settings: Settings) -> None:
    """Twenty-four empty runs a day would bury the ones that matter."""
    schedule = model_watch.definitions(settings).resolve_schedule_def("shadow_comparison_schedule")
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance, scheduled_execution_time=START)
        assert not schedule.evaluate_tick(context).run_requests
        registry = registry_of(settings, GOOD, GOOD)
        registry.promote(1, reason="first")
        registry.challenge(2, reason="a test")
        assert schedule.evaluate_tick(context).run_requests


# -- the way back --------------------------------------------------------------------------------------------


def report(instance: dg.DagsterInstance, champion: int, **changes: Any) -> None:
    """A performance report as the monitor leaves it."""
    figures = {"accuracy": 0.9, "recall": 0.9, "false_alarm_rate": 0.02, "rows": 9_000, "fires": 900, "health": 80.0}
    metadata = {"champion": str(champion), **figures, **changes}
    instance.report_runless_asset_event(dg.AssetMaterialization(names.MODEL_PERFORMANCE, metadata=metadata))


def review(settings: Settings, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """What the sensor asks for, done."""
    definitions = model_watch.definitions(settings)
    sensor = definitions.resolve_sensor_def(model_watch.ROLLBACK_SENSOR)
    asked = sensor.evaluate_tick(dg.build_sensor_context(instance))
    assert asked.run_requests
    assert len(asked.run_requests) == 1
    return definitions.resolve_job_def(names.JOB_ROLLBACK).execute_in_process(instance=instance)


def test_a_champion_that_falls_is_rolled_back_once_and_for_good(settings: Settings) -> None:
    """A model that fails on live fires must go by itself, and the two must not take turns for ever."""
    registry = registry_of(settings, BLIND, GOOD, BLIND)
    for number in (1, 2, 3):
        registry.promote(number, reason="a test")
    with dg.DagsterInstance.ephemeral() as instance:
        report(instance, 3)
        assert review(settings, instance).success
        assert (registry.champion() or {})["version"] == 3
        report(instance, 3, accuracy=0.62, recall=0.1)
        result = review(settings, instance)
        assert result.success
        champion = registry.champion() or {}
        assert (champion["version"], champion["automatic"]) == (2, True)
        assert "recall 0.1000 is below 0.5" in champion["reason"]
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [dg.AssetCheckKey(names.CHAMPION_MODEL, model_watch.CHECK_LIVE)]
        )
        (evaluation,) = [entry.event.dagster_event.event_specific_data for entry in record.values()]  # type: ignore[union-attr]
        assert not evaluation.passed
        # The same report again, and a new one soon after: nothing more happens by itself.
        definitions = model_watch.definitions(settings)
        assert definitions.resolve_job_def(names.JOB_ROLLBACK).execute_in_process(instance=instance).success
        report(instance, 2, accuracy=0.1)
        assert review(settings, instance).success
        assert (registry.champion() or {})["version"] == 2
        assert promotion.withdrawn(read_changes(settings.models_dir)) == {3}
        assert model_lifecycle.advance(settings, registry, 3).outcome == "waits"


def test_an_earlier_version_that_is_no_better_is_no_remedy(settings: Settings) -> None:
    """When the world has changed for all models alike, going back only loses the newer one."""
    registry = registry_of(settings, BLIND, GOOD)
    registry.promote(1, reason="a test")
    registry.promote(2, reason="a test")
    with dg.DagsterInstance.ephemeral() as instance:
        report(instance, 2, accuracy=0.1)
        assert review(settings, instance).success
    assert (registry.champion() or {})["version"] == 2


def test_a_tampered_earlier_version_is_passed_over(settings: Settings) -> None:
    """A rollback to a changed file would leave a restarted detector without a model."""
    registry = registry_of(settings, GOOD, GOOD, BLIND)
    for number in (1, 2, 3):
        registry.promote(number, reason="a test")
    (settings.models_dir / "2" / "model.onnx").write_bytes(BLIND)
    with dg.DagsterInstance.ephemeral() as instance:
        report(instance, 3, recall=0.0)
        assert review(settings, instance).success
    assert (registry.champion() or {})["version"] == 1


def test_a_report_without_figures_asks_for_nothing(settings: Settings) -> None:
    """A report that could judge nothing must not take a champion down, nor the sensor."""
    registry_of(settings, GOOD).promote(1, reason="a test")
    sensor = model_watch.definitions(settings).resolve_sensor_def(model_watch.ROLLBACK_SENSOR)
    with dg.DagsterInstance.ephemeral() as instance:
        report(instance, 1, accuracy="none")
        assert not sensor.evaluate_tick(dg.build_sensor_context(instance)).run_requests


def test_an_operator_who_switches_the_rollback_off_means_it(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """SMOKE_AUTO_ROLLBACK=false would be read and ignored."""
    off = model_watch.definitions(settings_for(tmp_path, SMOKE_AUTO_ROLLBACK=False))
    status = off.resolve_sensor_def(model_watch.ROLLBACK_SENSOR).default_status
    assert status == dg.DefaultSensorStatus.STOPPED


# -- registry: provenance, challengers, retention ------------------------------------------------------------


def test_what_no_service_would_take_in_is_never_published(settings: Settings) -> None:
    """The services would serve the old model on, and after their next restart none at all."""
    registry = registry_of(settings, GOOD)
    registry.promote(1, reason="first")
    add(registry, GOOD, feature_version="0-older")
    add(registry, b"not a model")
    for number in (2, 3):
        with pytest.raises(SmokeError):
            registry.promote(number, reason="a test", forced=True)
        with pytest.raises(SmokeError):
            registry.challenge(number, reason="a test")
    assert (read_champion(settings.models_dir) or {})["version"] == 1
    assert registry.challenger() is None


def test_old_versions_go_and_what_is_needed_stays(settings: Settings) -> None:
    """The disk would fill with a model a night; and a pruned way back is no way back."""
    registry = registry_of(settings, *[logistic_model(bias=float(number)) for number in range(9)])
    for number in (1, 2, 3, 4, 5):
        registry.promote(number, reason="a test")
    registry.challenge(7, reason="a test")
    (settings.models_dir / "run-leftover").mkdir()
    assert registry.prune(1) == [1, 6, 8]
    assert [version.number for version in registry.versions()] == [9, 7, 5, 4, 3, 2]
    assert sorted(path.name for path in settings.models_dir.iterdir() if path.name.isdigit()) == list("234579")
    assert registry.prune(1) == []
    assert registry.rollback(reason="a test")["version"] == 4
    with pytest.raises(SmokeError, match="no version 1"):
        registry.rollback(1, reason="a test")
    assert add(registry, GOOD) == 10
    (settings.models_dir / "8").mkdir()
    assert registry.prune(2) == [5]
    assert not (settings.models_dir / "8").exists()


def test_the_registry_keeps_one_challenger_and_its_alias(settings: Settings) -> None:
    """MLflow's pages would name a challenger that is none, or the platform not start over a damaged file."""
    registry = registry_of(settings, GOOD, GOOD, GOOD)
    with pytest.raises(SmokeError, match="no champion to watch it beside"):
        registry.challenge(1, reason="a test")
    registry.promote(1, reason="first")
    with pytest.raises(SmokeError, match="champion already"):
        registry.challenge(1, reason="a test")
    registry.challenge(2, reason="a test")
    registry.challenge(3, reason="a test")
    client = registry._open()
    assert int(client.get_model_version_by_alias("smoke-fire", "challenger").version) == 3
    assert [version.number for version in registry.versions() if version.challenger] == [3]
    registry.promote(3, reason="a test")
    assert registry.challenger() is None
    assert "challenger" not in client.get_registered_model("smoke-fire").aliases
    assert registry.history() == [1, 3]
    (settings.models_dir / CHALLENGER_FILE).write_text("{")
    assert "champion in both places" in registry.reconcile()
    (settings.models_dir / "champion.json").unlink()
    (settings.models_dir / "3" / "model.onnx").write_bytes(BLIND)
    assert "cannot be published again" in registry.reconcile()


def test_commands_compare_and_set_challengers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator decides by the same fires, and scripts read what the commands print."""
    registry = registry_of(settings, GOOD, logistic_model(WEIGHTS, BIAS - 1), GOOD)
    registry.promote(1, reason="first")
    monkeypatch.setenv("SMOKE_HOME", str(settings.home))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(model_lifecycle, "_held_out", lambda *_: [1])
    seen = iter([True, False] * 9)
    monkeypatch.setattr(
        model_lifecycle,
        "held_out_outcomes",
        lambda *_: AlarmOutcomes((EpisodeOutcome("f1", "fire", "wood", "d", next(seen)),), 0, 3.0),
    )
    runner = CliRunner()

    def call(*words: str) -> Any:
        result = runner.invoke(command, [*words, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    told = call("compare", "2")
    assert (told["version"], told["other"]) == (2, 1)
    assert told["paired"]["misses"]["champion"] == 1
    assert told["figures"]["2"]["F1"] == 0.9
    assert "fires missed" in runner.invoke(command, ["compare", "3", "2"], catch_exceptions=False).output
    assert call("challenger", "2")["action"] == "challenge"
    assert call("challenger")["version"] == 2
    assert "2 ?" in runner.invoke(command, ["list"], catch_exceptions=False).output
    assert call("show", "2")["challenger"] is True
    assert call("challenger", "--clear") == {"cleared": 2}
    assert call("challenger", "--clear") == {"cleared": None}
    with pytest.raises(SmokeError, match="no version is watched"):
        runner.invoke(command, ["challenger"], catch_exceptions=False)


def test_a_candidate_that_misses_more_of_the_same_fires_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A better F1 must not buy a missed fire."""
    judged_as_good(monkeypatch)
    registry = registry_of(settings, GOOD, BLIND)
    registry.promote(1, reason="first")
    fires = [EpisodeOutcome(f"f{place}", "fire", "wood", "d", True, 10.0) for place in range(40)]
    worse = [replace(fires[0], alarmed=False, delay_s=None), *fires[1:]]
    monkeypatch.setattr(
        model_lifecycle,
        "held_out_outcomes",
        lambda artifact, *_: AlarmOutcomes(tuple(worse if artifact == BLIND else fires), 0, 30.0),
    )
    with pytest.raises(model_lifecycle.GateRefused, match="fires missed: 1, the champion 0"):
        model_lifecycle.promote(settings, registry, 2, reason="a test")
    entry = registry.version(2)
    assert (entry.gate, len(entry.reasons)) == ("refused", 1)
    assert "f0" in entry.reasons[0]
    number = add(registry, GOOD, audit=None)
    with pytest.raises(model_lifecycle.GateRefused, match="the data were not audited"):
        model_lifecycle.promote(settings, registry, number, reason="a test")
    assert (registry.champion() or {})["version"] == 1


# -- under load ----------------------------------------------------------------------------------------------


def test_promotion_rollback_and_tampering_under_load_cost_no_request() -> None:
    """Whoever asks while models change must get an answer, wholly of one good model."""
    found = prove(Plan(per_second=100, seconds=4.0, changes=4, connections=4))
    assert found["failures"] == []
    assert (found["promotions"], found["rollbacks"]) == (2, 2)
    assert set(found["answers_by_version"]) == {"1", "2"}
    assert found["tampered"]["refused_by_api"] == "hash_mismatch"
    assert "not what was registered" in found["tampered"]["refused_by_registry"]
    assert found["tampered"]["served_meanwhile"] == "1"
