"""The scorer believes nothing that was not verified, and a running program gets new champions without a restart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from smoke_platform.adapters.scorer import ChampionWatcher, ModelRefused, OnnxScorer, Refusal, read_champion
from smoke_platform.domain import features
from smoke_platform_tests.scorer_models import logistic_model, publish, publish_entry

WIDTH = len(features.FEATURE_NAMES)


def _until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def _load(models_dir: Path) -> OnnxScorer:
    return OnnxScorer.load(models_dir, read_champion(models_dir))


def test_scores_are_those_of_the_model(tmp_path: Path) -> None:
    """A scorer that reads the wrong column or type would turn every answer around."""
    publish(tmp_path, 1, logistic_model({"pm2_5": 0.02, "temperature_c": -0.1}, 0.5))
    rows = np.random.default_rng(3).normal(10.0, 30.0, (500, WIDTH)).astype(np.float32)
    rows[::7, features.FEATURE_NAMES.index("pm2_5")] = np.nan
    filled = np.nan_to_num(rows.astype(np.float64))
    logit = 0.5 + 0.02 * filled[:, features.FEATURE_NAMES.index("pm2_5")]
    logit -= 0.1 * filled[:, features.FEATURE_NAMES.index("temperature_c")]
    answer = _load(tmp_path).score(rows)
    assert answer.dtype == np.float64
    np.testing.assert_allclose(answer, 1.0 / (1.0 + np.exp(-logit)), atol=1e-6)


def _changed_artifact(models_dir: Path) -> None:
    publish(models_dir, 1, logistic_model())
    (models_dir / "1" / "model.onnx").write_bytes(logistic_model(bias=9.0))


def _changed_manifest(models_dir: Path) -> None:
    publish(models_dir, 1, logistic_model())
    place = models_dir / "1" / "manifest.json"
    place.write_text(place.read_text() + " ")


def _only_labels(models_dir: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["features"], ["label"], axis=1, keepdims=0)],
        "labels",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, WIDTH])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, [None])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    publish(models_dir, 1, model.SerializeToString())


def _no_probabilities(models_dir: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["features"], ["scores"])],
        "identity",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, WIDTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, WIDTH])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    publish(models_dir, 1, model.SerializeToString())


def _manifest_of_other_features(models_dir: Path) -> None:
    publish(models_dir, 1, logistic_model(), manifest_changes={"feature_version": "0-old"})


def _manifest_of_another_artifact(models_dir: Path) -> None:
    publish(models_dir, 1, logistic_model(), manifest_changes={"sha256": "0" * 64})


def _manifest_of_other_definitions(models_dir: Path) -> None:
    publish(models_dir, 1, logistic_model(), manifest_changes={"feature_sha256": "0" * 64})


def _another_number(models_dir: Path) -> None:
    entry = publish(models_dir, 1, logistic_model())
    publish_entry(models_dir, {**entry, "version": 2})


def _with(**changes: Any) -> Callable[[Path], None]:
    def prepare(models_dir: Path) -> None:
        publish(models_dir, 1, logistic_model(), **changes)

    return prepare


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda models_dir: None, Refusal.NO_CHAMPION),
        (_changed_artifact, Refusal.HASH_MISMATCH),
        (_changed_manifest, Refusal.HASH_MISMATCH),
        (_manifest_of_another_artifact, Refusal.HASH_MISMATCH),
        (_with(sha256="0" * 64), Refusal.HASH_MISMATCH),
        (_with(feature_version="0-old"), Refusal.FEATURE_MISMATCH),
        (_with(feature_names=list(features.FEATURE_NAMES[::-1])), Refusal.FEATURE_MISMATCH),
        (_manifest_of_other_features, Refusal.FEATURE_MISMATCH),
        (_manifest_of_other_definitions, Refusal.FEATURE_MISMATCH),
        (_another_number, Refusal.HASH_MISMATCH),
        (_with(threshold=0.99), Refusal.HASH_MISMATCH),
        (_with(path="../secret/model.onnx"), Refusal.UNREADABLE),
        (_with(path="/etc/hostname"), Refusal.UNREADABLE),
        (_with(path="9/model.onnx"), Refusal.UNREADABLE),
        (_with(threshold=1.5), Refusal.UNREADABLE),
        (_with(threshold="high"), Refusal.UNREADABLE),
        (lambda models_dir: publish(models_dir, 1, b"not a model"), Refusal.BAD_MODEL),
        (lambda models_dir: publish(models_dir, 1, logistic_model(width=3)), Refusal.BAD_MODEL),
        (_only_labels, Refusal.BAD_MODEL),
        (_no_probabilities, Refusal.BAD_MODEL),
    ],
)
def test_what_is_not_verified_is_refused(tmp_path: Path, prepare: Callable[[Path], object], reason: Refusal) -> None:
    """A tampered, mismatched or broken model that scores would raise or silence alarms at random."""
    models_dir = tmp_path / "models"
    models_dir.mkdir()
    prepare(models_dir)
    with pytest.raises(ModelRefused) as refusal:
        _load(models_dir)
    assert refusal.value.reason is reason
    watcher = ChampionWatcher(models_dir)
    assert watcher.current is None
    assert watcher.status.refused_reason is reason
    assert watcher.status.refused_detail


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["version", "sha256", "path", "manifest_sha256", "feature_version", "threshold", "metrics"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers()),
    ).map(lambda entry: json.dumps(entry).encode())
)
def test_any_champion_file_is_survived(tmp_path: Path, content: bytes) -> None:
    """A half-written or foreign champion.json that raised in the watch would freeze the model in silence."""
    (tmp_path / "champion.json").write_bytes(content)
    watcher = ChampionWatcher(tmp_path)
    assert watcher.current is None
    assert watcher.status.refused_reason is not None


def test_the_last_good_model_stays_until_a_good_one_comes(tmp_path: Path) -> None:
    """A bad promotion must cost nothing: the old model serves on, the reason is told, the next good one gets in."""
    publish(tmp_path, 1, logistic_model(bias=-1.0))
    watcher = ChampionWatcher(tmp_path)
    first = watcher.current
    publish(tmp_path, 2, b"rubbish")
    assert not watcher.check()
    assert watcher.current is first
    assert watcher.status.version == "1"
    assert watcher.status.refused_reason is Refusal.BAD_MODEL
    assert watcher.status.refused_version == "2"
    assert not watcher.check()
    assert watcher.status.refusals == {Refusal.BAD_MODEL: 1}, "a refusal is counted once, not at every look"
    publish(tmp_path, 3, logistic_model(bias=1.0))
    assert watcher.check()
    assert watcher.status.version == "3"
    assert watcher.status.refused_reason is None
    assert watcher.status.swaps == 2


def test_an_artifact_tampered_with_in_place_is_noticed(tmp_path: Path) -> None:
    """A file changed after it was loaded would be refused at the next start: an operator must learn of it before."""
    publish(tmp_path, 1, logistic_model())
    watcher = ChampionWatcher(tmp_path)
    artifact = tmp_path / "1" / "model.onnx"
    good = artifact.read_bytes()
    artifact.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert not watcher.check()
    assert watcher.status.refused_reason is Refusal.HASH_MISMATCH
    assert watcher.current is not None
    artifact.write_bytes(good)
    assert watcher.check()
    assert watcher.status.swaps == 1, "the same model was verified again, not swapped"


def test_an_artifact_that_comes_after_its_champion_file_is_taken_in(tmp_path: Path) -> None:
    """On a slow shared folder the small file may be seen first; the model must not stay refused for ever."""
    entry = publish(tmp_path, 1, logistic_model())
    artifact = tmp_path / "1" / "model.onnx"
    away = tmp_path / "away"
    artifact.rename(away)
    watcher = ChampionWatcher(tmp_path)
    assert watcher.current is None
    away.rename(artifact)
    assert watcher.check()
    assert watcher.status.version == str(entry["version"])


def test_readers_see_whole_models_while_the_watch_swaps_them(tmp_path: Path) -> None:
    """A reader that got one model's name with another's score would put wrong evidence into every report."""
    models = {version: logistic_model(bias=float(version) - 3.0) for version in range(1, 6)}
    expected = {str(version): 1.0 / (1.0 + np.exp(3.0 - version)) for version in models}
    publish(tmp_path, 1, models[1])
    row = np.zeros((1, WIDTH), dtype=np.float32)
    wrong: list[tuple[str, float]] = []
    seen: set[str] = set()
    done = threading.Event()
    with ChampionWatcher(tmp_path, poll_seconds=0.002) as watcher:

        def read() -> None:
            while not done.is_set():
                scorer = watcher.current
                assert scorer is not None
                score = float(scorer.score(row)[0])
                seen.add(scorer.version)
                if abs(score - expected[scorer.version]) > 1e-6:
                    wrong.append((scorer.version, score))

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for version in (2, 3, 4, 5, 1, 5):
                publish(tmp_path, version, models[version])
                # Until a reader has used it, too: on a busy machine they may all miss a model that is gone again.
                _until(lambda v=str(version): watcher.status.version == v and v in seen)  # type: ignore[misc] # binds the loop's value
        finally:
            done.set()
            for reader in readers:
                reader.join()
    assert not wrong
    assert seen == set(expected)


def test_forced_check_verifies_again_without_any_change(tmp_path: Path) -> None:
    """`reload` would otherwise answer from memory when an operator asks for a fresh look."""
    entry = publish(tmp_path, 1, logistic_model())
    watcher = ChampionWatcher(tmp_path)
    assert watcher.check(force=True)
    assert watcher.status.swaps == 1
    publish_entry(tmp_path, {**entry, "action": "rollback"})
    assert watcher.check(force=True)
    assert watcher.current is not None
    assert watcher.current.champion.action == "rollback"
