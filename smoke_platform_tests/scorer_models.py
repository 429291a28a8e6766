"""Small real ONNX models, published as the registry publishes them, for tests of whatever scores."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from smoke_platform.domain import features


def logistic_model(weights: dict[str, float] | None = None, bias: float = 0.0, *, width: int | None = None) -> bytes:
    """An ONNX model with sigmoid(bias + weights * features), a missing feature counting as 0."""
    columns = width if width is not None else len(features.FEATURE_NAMES)
    vector = np.zeros((columns, 1), dtype=np.float32)
    for name, weight in (weights or {}).items():
        vector[features.FEATURE_NAMES.index(name), 0] = weight
    nodes = [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "features"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["fire"]),
        helper.make_node("Sub", ["one", "fire"], ["no_fire"]),
        helper.make_node("Concat", ["no_fire", "fire"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    constants = {
        "zero": np.float32([0.0]),
        "one": np.float32([1.0]),
        "bias": np.float32([bias]),
        "weights": vector,
    }
    graph = helper.make_graph(
        nodes,
        "logistic",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, columns])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def publish(
    models_dir: Path, version: int, artifact: bytes, manifest_changes: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """Publishes ``artifact`` as champion by atomic rename; ``changes`` override fields of champion.json.

    Returns:
        What champion.json holds now.
    """
    folder = models_dir / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(artifact)
    described = {
        "version": version,
        "sha256": hashlib.sha256(artifact).hexdigest(),
        "feature_version": features.FEATURE_SET_VERSION,
        "feature_names": list(features.FEATURE_NAMES),
        "threshold": 0.5,
        "algorithm": "logistic test model",
        "trained_on": {"kind": "simulated", "statement": "a test", "rows": 10, "devices": 2, "fires": 1},
    }
    manifest = json.dumps({**described, **(manifest_changes or {})}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    entry = {
        **{name: described[name] for name in ("version", "sha256", "feature_version", "feature_names", "threshold")},
        "path": f"{version}/model.onnx",
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "trained_on": "simulated",
        "metrics": {"accuracy": 0.9, "f1": 0.8, "validation": "5 folds grouped by device_id"},
        "published_at": datetime.now(UTC).isoformat(),
        "previous": None,
        "action": "promote",
        "reason": "a test",
        "forced": False,
        **changes,
    }
    publish_entry(models_dir, entry)
    return entry


def publish_entry(models_dir: Path, entry: dict[str, Any]) -> None:
    """Replaces champion.json by atomic rename."""
    scratch = models_dir / "champion.json.new"
    scratch.write_text(json.dumps(entry))
    scratch.rename(models_dir / "champion.json")
