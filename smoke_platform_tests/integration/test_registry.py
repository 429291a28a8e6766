"""The registry on a real MLflow store in SQLite, with a real trained model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from smoke_platform.adapters.external_validation import choose
from smoke_platform.adapters.registry import Registry, publish, read_champion
from smoke_platform.adapters.scorer import OnnxScorer
from smoke_platform.adapters.scorer import read_champion as read_for_scoring
from smoke_platform.cli.models import models as command
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings
from smoke_platform_tests.integration.small_models import small_model

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]) -> Registry:
    """A registry with three versions of one model, the first two of which became champion in turn."""
    registry = Registry(settings_for(tmp_path_factory.mktemp("registry")))
    registry.migrate()
    trained = small_model()
    for number in (1, 2, 3):
        assert registry.register(trained.artifact, trained.manifest, trained.reference) == number
    registry.promote(1, reason="first")
    registry.promote(2, reason="second")
    return registry


def alias(registry: Registry) -> int:
    return int(registry._open().get_model_version_by_alias("smoke-fire", "champion").version)


def test_the_scorer_takes_what_the_registry_publishes(store: Registry) -> None:
    """Detector and API must be able to use a champion as it comes from the registry."""
    scorer = OnnxScorer.load(store.models_dir, read_for_scoring(store.models_dir))
    assert scorer.version == str(store.champion()["version"])  # type: ignore[index]  # the fixture made one


def test_any_version_can_be_validated_before_it_is_champion(store: Registry) -> None:
    """Or a candidate must be promoted to learn what it is worth on recorded fires."""
    settings = store._settings
    scorer = choose(settings, "3")
    assert isinstance(scorer, OnnxScorer)
    assert (scorer.version, scorer.threshold) == ("3", small_model().manifest["threshold"])
    with pytest.raises(SmokeError, match="99"):
        choose(settings, "99")


def test_versions_come_with_what_is_known_of_them(store: Registry) -> None:
    """An operator compares versions by their grouped figures and must see what each was trained on."""
    found = store.versions()
    assert [version.number for version in found] == [3, 2, 1]
    grouped = small_model().manifest["validation"]["grouped"]
    assert found[0].metrics["f1"] == pytest.approx(grouped["f1"])
    assert found[0].trained_on == "simulated"
    assert found[0].whole
    store.note_verdict(3, False, ("grouped F1 too low",))
    assert (store.version(3).gate, store.version(3).reasons) == ("refused", ("grouped F1 too low",))


def test_rollback_goes_back_in_the_file_and_in_the_alias(store: Registry) -> None:
    """After a rollback the services and MLflow must name the same version, the one before."""
    assert store.rollback(reason="false alarms")["version"] == 1
    assert (read_champion(store.models_dir) or {})["action"] == "rollback"
    assert alias(store) == 1
    with pytest.raises(SmokeError, match="no earlier champion"):
        store.rollback(reason="again")
    with pytest.raises(SmokeError, match="never champion"):
        store.rollback(3, reason="never was")
    store.promote(2, reason="back to the second")
    assert store.history()[-3:] == [2, 1, 2]


def test_a_crash_between_file_and_alias_is_mended(store: Registry) -> None:
    """A power cut between the two steps of a promotion must not leave two champions."""
    served = int((store.champion() or {})["version"])
    other = 1 if served == 2 else 2
    store._open().set_registered_model_alias("smoke-fire", "champion", str(other))
    assert "moved the alias" in store.reconcile()
    assert alias(store) == served
    kept = (store.models_dir / "champion.json").read_bytes()
    (store.models_dir / "champion.json").unlink()
    assert "published version" in store.reconcile()
    assert json.loads(kept)["version"] == (store.champion() or {})["version"]


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_changed_file_is_refused_and_the_champion_stays(store: Registry, name: str) -> None:
    """A tampered model or manifest must never become champion."""
    place = store.models_dir / "3" / name
    kept, before = place.read_bytes(), store.champion()
    try:
        place.write_bytes(kept[:-2] + bytes([kept[-2] ^ 1]) + kept[-1:])
        with pytest.raises(SmokeError, match="not what was registered"):
            store.promote(3, reason="try")
        assert not store.version(3).whole
    finally:
        place.write_bytes(kept)
    assert store.champion() == before


def test_a_manifest_of_another_model_is_refused(store: Registry) -> None:
    """Artifact and manifest that were mixed up must not become a version."""
    trained = small_model()
    with pytest.raises(SmokeError, match="the manifest describes"):
        store.register(trained.artifact + b"x", trained.manifest, trained.reference)


def test_nothing_that_could_run_is_stored(store: Registry) -> None:
    """A pickle in the registry is code that somebody will load one day."""
    files = [path.name for path in store.models_dir.parent.rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib", ".skops", ".py"))]
    content = (store.models_dir / "1" / "model.onnx").read_bytes()
    assert hashlib.sha256(content).hexdigest() == small_model().manifest["sha256"]


def test_readers_always_see_a_whole_champion(tmp_path: Path) -> None:
    """A detector that reads while a promotion is written must see the old or the new champion, never a part."""
    padding = {"feature_names": ["x" * 50] * 400}
    publish(tmp_path, {"version": 0, **padding})
    seen: set[int] = set()
    faults: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                champion: Any = read_champion(tmp_path)
                assert len(champion["feature_names"]) == 400
                seen.add(champion["version"])
            except Exception as error:  # noqa: BLE001 - whatever a reader meets is the failure looked for
                faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in range(1, 150):
        publish(tmp_path, {"version": version, **padding})
    done.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert len(seen) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["champion.json"]


def test_command_shows_and_changes_the_champion(store: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts read `smoke models ... --json`, and an operator rolls back with one command."""
    monkeypatch.setenv("SMOKE_HOME", str(store.models_dir.parent))
    runner = CliRunner()

    def call(*words: str) -> Any:
        result = runner.invoke(command, [*words, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert [entry["number"] for entry in call("list")] == [3, 2, 1]
    assert call("show", "3")["sha256"] == small_model().manifest["sha256"]
    assert call("champion")["version"] == 2
    assert call("rollback")["version"] == 1
    assert call("promote", "2", "--force", "--reason", "site test")["forced"] is True
    assert "Version 2 (champion)" in runner.invoke(command, ["show", "2"]).output
    with pytest.raises(SmokeError, match="needs a reason"):
        runner.invoke(command, ["promote", "3", "--force"], catch_exceptions=False)
