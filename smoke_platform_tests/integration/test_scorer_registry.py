"""What the registry publishes is what the scorer believes: the two agree on files, fields and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from smoke_platform.adapters.registry import Registry
from smoke_platform.adapters.scorer import ChampionWatcher, Refusal
from smoke_platform.domain import features
from smoke_platform.settings import Settings
from smoke_platform_tests.scorer_models import logistic_model

pytestmark = pytest.mark.integration


def _manifest(artifact: bytes) -> dict[str, Any]:
    figures = {"accuracy": 0.9, "f1": 0.8, "precision": 0.8, "recall": 0.8}
    return {
        "sha256": hashlib.sha256(artifact).hexdigest(),
        "algorithm": "logistic test model",
        "parameters": {},
        "feature_version": features.FEATURE_SET_VERSION,
        "feature_names": list(features.FEATURE_NAMES),
        "threshold": 0.4,
        "trained_on": {"kind": "simulated", "rows": 10},
        "validation": {"grouped": figures, "random_split": figures, "kind": "a test"},
        "seed": 7,
        "code_version": "0",
    }


def test_promotion_rollback_and_tampering_reach_the_scorer(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """A field that one side renames would leave every service without a model after the next promotion."""
    settings = settings_for(tmp_path)
    registry = Registry(settings)
    registry.migrate()
    reference = pl.DataFrame({"probability": [0.5]})
    versions = []
    for bias in (-1.0, 1.0):
        artifact = logistic_model(bias=bias)
        versions.append(registry.register(artifact, _manifest(artifact), reference))
    watcher = ChampionWatcher(settings.models_dir)
    assert watcher.status.refused_reason is Refusal.NO_CHAMPION

    row = np.full((1, features.FEATURE_COUNT), np.nan, dtype=np.float32)
    for number, bias in ((versions[0], -1.0), (versions[1], 1.0)):
        registry.promote(number, reason="a test")
        assert watcher.check(), watcher.status.refused_detail
        assert watcher.current is not None
        assert watcher.current.version == str(number)
        assert watcher.current.threshold == 0.4
        assert watcher.current.score(row)[0] == pytest.approx(1.0 / (1.0 + np.exp(-bias)), abs=1e-6)
    registry.rollback(reason="a test")
    assert watcher.check()
    assert watcher.status.version == str(versions[0])

    artifact_file = settings.models_dir / str(versions[0]) / "model.onnx"
    artifact_file.write_bytes(logistic_model(bias=5.0))
    assert not watcher.check()
    assert watcher.status.refused_reason is Refusal.HASH_MISMATCH
    assert watcher.status.version == str(versions[0])
