"""Versions of small real models in a real registry, for tests of whatever chooses among them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from smoke_platform.adapters.registry import Registry
from smoke_platform.domain import features
from smoke_platform.settings import Settings, load_settings


def manifest(artifact: bytes, **changes: Any) -> dict[str, Any]:
    """A manifest that names everything the gate asks for, with good figures."""
    figures = {"accuracy": 0.95, "f1": 0.9, "precision": 0.9, "recall": 0.9}
    return {
        "sha256": hashlib.sha256(artifact).hexdigest(),
        "algorithm": "logistic test model",
        "parameters": {},
        "feature_version": features.FEATURE_SET_VERSION,
        "feature_sha256": features.FEATURE_SET_HASH,
        "feature_names": list(features.FEATURE_NAMES),
        "threshold": 0.5,
        "trained_on": {
            "kind": "simulated",
            "statement": "a test",
            "rows": 10,
            "groups": 2,
            "table": "lake/simulated_features",
            "delta_version": 0,
            "fingerprint": "f" * 64,
        },
        "validation": {
            "kind": "a test",
            "grouped": figures,
            "random_split": figures,
            "parity": {
                "rows": 100_000,
                "rows_with_nan": 30_000,
                "largest_difference": 1e-7,
                "beyond_tolerance": 0,
            },
            "latency_us": 5.0,
            "size_bytes": len(artifact),
        },
        "audit": {"clean": True, "blocking": 0, "findings": []},
        "seed": 7,
        "code_version": "0+test",
        "created_at": datetime.now(UTC).isoformat(),
        **changes,
    }


def registry_of(settings: Settings, *artifacts: bytes) -> Registry:
    """A new registry whose versions 1, 2, ... are these models."""
    store = Path(settings.registry_uri.removeprefix("sqlite:///"))
    store.parent.mkdir(parents=True)
    shutil.copy(_empty_store(), store)
    registry = Registry(settings)
    for artifact in artifacts:
        add(registry, artifact)
    return registry


def add(registry: Registry, artifact: bytes, **changes: Any) -> int:
    """Registers one more version; ``changes`` override entries of its manifest."""
    return registry.register(artifact, manifest(artifact, **changes), pl.DataFrame({"probability": [0.5]}))


@cache
def _empty_store() -> Path:
    """MLflow's store without any version: making one takes seconds, copying it nothing."""
    folder = Path(tempfile.mkdtemp(prefix="smoke-registry-"))
    settings = load_settings({"SMOKE_HOME": str(folder)}, folder / "no.env")
    Registry(settings).migrate()
    return Path(settings.registry_uri.removeprefix("sqlite:///"))
