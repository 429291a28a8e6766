"""Trains the model that scores readings, and exports it as ONNX.

Belongs here: the algorithms compared, fitting, the export, the grouped validation, the figures for the gate. Does not:
which rows to train on (``adapters.feature_tables``), the figures' formulas (``domain.evaluation``), the decision to
promote (``domain.promotion``), keeping versions (``adapters.registry``).

The ONNX file is the model: whatever is chosen or reported here is computed from the outputs of an exported model and
never from scikit-learn's. Validation is nested: in each outer fold, whole groups are held out, and everything that is
chosen (algorithm, threshold) is chosen inside the remaining ones.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

import smoke_platform
from smoke_platform.adapters.feature_tables import Examples, Progress, silent
from smoke_platform.domain import alarm_evaluation, evaluation, features, simulator
from smoke_platform.domain.alarm_outcomes import AlarmOutcomes
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.promotion import PARITY_LEAST_ROWS, Figures, Parity

#: Threads that forests and bulk scoring may use; the detector and the broker live on the same machine.
THREADS = 2
#: Boosting's OpenMP threads wait for one another by spinning: two of them on two busy cores took twice as long as one
#: (26 s instead of 14 s, measured), and one gives the same bits on every machine.
OPENMP_THREADS = 1
#: ONNX operator sets of the exported graph; onnxruntime has known both for years.
OPSETS = {"": 18, "ai.onnx.ml": 3}
IR_VERSION = 8
OUTER_FOLDS = 4
#: Part of the training groups by which algorithm and threshold are chosen: one in so many.
INNER_FOLDS = 4
#: One training row in so many is repeated as if it stood alone, without memory, so that the model can answer to a
#: single reading and to a device it has just met.
COLD_EVERY = 4
#: Algorithms whose F1 is this close count as equal; the one listed first is then taken.
EQUAL_F1 = 0.002
REFERENCE_ROWS = 5_000
#: Share of a held-out row's values that are blanked in the rows made for parity.
_BLANKED = 0.15

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]


# -- the algorithms ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Algorithm:
    """A way to fit.

    Attributes:
        imputed: missing values are filled and flagged inside the exported graph.
        double: computed in float64 inside it; in float32 a linear model's sum of 94 terms is off by more than 1e-6.
    """

    name: str
    imputed: bool
    double: bool
    parameters: dict[str, Any]
    make: Callable[[int, dict[str, Any]], Any]


def _logistic_regression(seed: int, parameters: dict[str, Any]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(random_state=seed, **parameters))


def _random_forest(seed: int, parameters: dict[str, Any]) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(random_state=seed, n_jobs=THREADS, **parameters)


def _hist_gradient_boosting(seed: int, parameters: dict[str, Any]) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=seed, early_stopping=False, **parameters)


#: Simplest first. Class weights make up for how rare fire is.
ALGORITHMS: tuple[Algorithm, ...] = (
    Algorithm(
        "logistic_regression",
        True,
        True,
        {"C": 0.1, "class_weight": "balanced", "max_iter": 400, "tol": 1e-3},
        _logistic_regression,
    ),
    Algorithm(
        "hist_gradient_boosting",
        False,
        False,
        {
            "max_iter": 40,
            "learning_rate": 0.2,
            "max_bins": 63,
            "max_leaf_nodes": 31,
            "min_samples_leaf": 40,
            "l2_regularization": 1.0,
            "class_weight": "balanced",
        },
        _hist_gradient_boosting,
    ),
    Algorithm(
        "random_forest",
        True,
        False,
        {
            "n_estimators": 25,
            "max_depth": 12,
            "min_samples_leaf": 10,
            "max_features": "sqrt",
            "class_weight": "balanced_subsample",
        },
        _random_forest,
    ),
)


# -- one fitted model ----------------------------------------------------------------------------------------
@dataclass
class Fitted:
    """A trained estimator and the ONNX model made of it."""

    algorithm: Algorithm
    estimator: Any
    fill: features.Features | None
    artifact: bytes
    fit_seconds: float

    def trained_probability(self, matrix: features.Features) -> Floats:
        """What scikit-learn says; for the parity with ``score`` only."""
        rows = _inputs(self.algorithm, matrix, self.fill)
        answer: Floats = self.estimator.predict_proba(rows)[:, 1].astype(np.float64)
        return answer

    @cached_property
    def model(self) -> OnnxModel:
        return OnnxModel(self.artifact)


class OnnxModel:
    """An exported model, for scoring many rows at once while training."""

    def __init__(self, artifact: bytes, threads: int = THREADS) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])

    def score(self, matrix: features.Features, chunk: int = 50_000) -> Floats:
        """Fire probability, float64 ``[n]``, of float32 ``[n, F]``."""
        parts = [
            self._session.run(["probabilities"], {"features": matrix[low : low + chunk]})[0][:, 1]
            for low in range(0, len(matrix), chunk)
        ]
        return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)

    def single_row_latency_us(self, row: features.Features, repeats: int = 300) -> float:
        """Median microseconds to score one row, float32 ``[1, F]``."""
        taken = []
        for _ in range(repeats + 20):
            began = time.perf_counter_ns()
            self._session.run(["probabilities"], {"features": row})
            taken.append(time.perf_counter_ns() - began)
        return float(np.median(taken[20:])) / 1000


def fit(algorithm: Algorithm, matrix: features.Features, label: Booleans, seed: int) -> Fitted:
    """Fits and exports. The same rows and seed give the same ONNX bytes.

    Raises:
        SmokeError: when only one class is there to learn from.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no type information

    if label.all() or not label.any():
        raise SmokeError("the training rows are all of one class", "train on a source that has fires and quiet air")
    fill = _medians(matrix) if algorithm.imputed else None
    estimator = algorithm.make(seed, algorithm.parameters)
    began = time.perf_counter()
    with threadpool_limits(OPENMP_THREADS):
        estimator.fit(_inputs(algorithm, matrix, fill), label)
    took = time.perf_counter() - began
    return Fitted(algorithm, estimator, fill, export(estimator, fill), took)


def _medians(matrix: features.Features) -> features.Features:
    known = ~np.isnan(matrix).all(axis=0)
    fill = np.zeros(matrix.shape[1], dtype=np.float32)
    fill[known] = np.nanmedian(matrix[:, known], axis=0)
    return fill


def _inputs(algorithm: Algorithm, matrix: features.Features, fill: features.Features | None) -> Any:
    rows = matrix if fill is None else _filled(matrix, fill)
    return rows.astype(np.float64) if algorithm.double else rows


def _filled(matrix: features.Features, fill: features.Features) -> features.Features:
    missing = np.isnan(matrix)
    return np.concatenate([np.where(missing, fill, matrix), missing.astype(np.float32)], axis=1)


def export(estimator: Any, fill: features.Features | None) -> bytes:
    """The ONNX model of a fitted estimator: input ``features``, output ``probabilities`` ``[n, 2]``.

    Where ``fill`` is given, the graph first replaces NaN by it and appends one flag per feature. It is written out
    here because the converter drops the flags of scikit-learn's imputer without a word.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    inner = "features" if fill is None else "filled"
    nodes, initializers = _linear(estimator, inner) if hasattr(estimator, "steps") else _converted(estimator, inner)
    if fill is not None:
        nodes = [
            helper.make_node("IsNaN", ["features"], ["missing"]),
            helper.make_node("Where", ["missing", "fill", "features"], ["known"]),
            helper.make_node("Cast", ["missing"], ["flags"], to=TensorProto.FLOAT),
            helper.make_node("Concat", ["known", "flags"], [inner], axis=1),
            *nodes,
        ]
        initializers = [numpy_helper.from_array(fill, "fill"), *initializers]
    graph = helper.make_graph(
        nodes,
        "smoke_fire",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, features.FEATURE_COUNT])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
        initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS.items()],
        ir_version=IR_VERSION,
        producer_name="smoke-platform",
    )
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _converted(estimator: Any, inner: str) -> tuple[list[Any], list[Any]]:
    """Nodes and initializers of a tree model, from ``inner`` to ``probabilities``."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    with warnings.catch_warnings():
        # The converter hands booleans to an integer field, which the protobuf library means to refuse one day.
        warnings.filterwarnings("ignore", message=".*Expected an int, got a boolean", category=DeprecationWarning)
        converted = to_onnx(
            estimator,
            name="smoke_fire",
            initial_types=[(inner, FloatTensorType([None, estimator.n_features_in_]))],
            options={"zipmap": False},
            target_opset=OPSETS,
        )
    return list(converted.graph.node), list(converted.graph.initializer)


def _linear(pipeline: Any, inner: str) -> tuple[list[Any], list[Any]]:
    """Nodes and initializers of scaler and logistic regression, as one weighted sum in float64."""
    from onnx import TensorProto, helper, numpy_helper

    scaler, regression = pipeline[0], pipeline[1]
    weight = regression.coef_[0] / scaler.scale_
    offset = regression.intercept_ - (weight * scaler.mean_).sum()
    nodes = [
        helper.make_node("Cast", [inner], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["wide", "weight"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["fire"]),
        helper.make_node("Sub", ["one", "fire"], ["quiet"]),
        helper.make_node("Concat", ["quiet", "fire"], ["both"], axis=1),
        helper.make_node("Cast", ["both"], ["probabilities"], to=TensorProto.FLOAT),
    ]
    arrays = {"weight": weight.reshape(-1, 1), "offset": offset.reshape(1), "one": np.ones(1)}
    return nodes, [numpy_helper.from_array(array.astype(np.float64), name) for name, array in arrays.items()]


# -- choosing ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Choice:
    """An algorithm and a threshold, chosen on groups that the compared models had not seen, then fitted to all."""

    fitted: Fitted
    threshold: float
    compared: dict[str, dict[str, float]] = field(default_factory=dict)


def choose(
    examples: Examples, seed: int, progress: Progress = silent, algorithms: Sequence[Algorithm] = ALGORITHMS
) -> Choice:
    """Compares the algorithms on one inner grouped split, and fits the best to all rows given."""
    fold = evaluation.group_folds(examples.group.tolist(), examples.label, INNER_FOLDS, seed)
    learn, check = examples.only(fold != 0), examples.only(fold == 0)
    compared: dict[str, dict[str, float]] = {}
    thresholds: dict[str, float] = {}
    for algorithm in algorithms:
        progress(f"fitting {algorithm.name} to {len(learn):,} rows")
        fitted = fit(algorithm, *_training_rows(learn), seed)
        probability = fitted.model.score(check.matrix)
        threshold = evaluation.best_threshold(check.label, probability, check.weight)
        counts = evaluation.confusion(check.label, probability >= threshold, check.weight)
        thresholds[algorithm.name] = threshold
        compared[algorithm.name] = {
            "f1": round(counts.f1, 6),
            "accuracy": round(counts.accuracy, 6),
            "threshold": round(threshold, 6),
            "fit_seconds": round(fitted.fit_seconds, 3),
        }
    best = max(entry["f1"] for entry in compared.values())
    chosen = next(algorithm for algorithm in algorithms if compared[algorithm.name]["f1"] >= best - EQUAL_F1)
    progress(f"fitting {chosen.name} to all {len(examples):,} rows")
    return Choice(fit(chosen, *_training_rows(examples), seed), thresholds[chosen.name], compared)


def _training_rows(examples: Examples) -> tuple[features.Features, Booleans]:
    alone = slice(None, None, COLD_EVERY)
    matrix = np.concatenate([examples.matrix, features.as_cold(examples.matrix[alone])])
    return matrix, np.concatenate([examples.label, examples.label[alone]])


# -- training ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trained:
    """What training hands to the registry: the model, what is to be known of it, and its reference rows."""

    artifact: bytes
    manifest: dict[str, Any]
    reference: pl.DataFrame


def train(
    examples: Examples,
    seed: int,
    progress: Progress = silent,
    *,
    parity_rows: int = PARITY_LEAST_ROWS,
    algorithms: Sequence[Algorithm] = ALGORITHMS,
) -> Trained:
    """Validates by groups, chooses, fits, exports, and measures everything that the gate asks for.

    Args:
        examples: rows of the groups held out for ever are only measured on.
        seed: of folds and estimators; the same rows and seed give the same ONNX bytes.
        progress: told in words what goes on.
        parity_rows: rows on which the exported model is compared with the trained one, at least.
        algorithms: those compared, simplest first.

    Raises:
        SmokeError: when there are too few groups, or one class only.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    learning, held = examples.only(~examples.holdout), examples.only(examples.holdout)
    groups = np.unique(learning.group)
    if len(groups) < 3:
        raise SmokeError(
            f"{len(groups)} group(s) to train on: grouped validation needs at least three",
            "add recordings or devices, or train on the simulated set",
        )
    grouped = _validate(learning, seed, progress, algorithms)
    progress("choosing the final model")
    choice = choose(learning, seed, progress, algorithms)
    progress("measuring the flattering random split, for comparison")
    random_split = _random_split(learning, choice.fitted.algorithm, seed)
    measured_on = held if len(held) else learning
    progress("comparing the exported model with the trained one")
    parity = _parity(choice.fitted, measured_on.matrix, seed, parity_rows)
    threshold = round(choice.threshold, 6)
    sha256 = hashlib.sha256(choice.fitted.artifact).hexdigest()
    manifest: dict[str, Any] = {
        "sha256": sha256,
        "algorithm": choice.fitted.algorithm.name,
        "parameters": choice.fitted.algorithm.parameters,
        "feature_version": features.FEATURE_SET_VERSION,
        "feature_sha256": features.FEATURE_SET_HASH,
        "feature_names": list(features.FEATURE_NAMES),
        "threshold": threshold,
        "trained_on": {
            **examples.origin,
            **learning.counts(),
            "cold_copies_one_in": COLD_EVERY,
            "held_out": held.counts() if len(held) else None,
        },
        "validation": {
            **grouped,
            "random_split": random_split,
            "holdout": _holdout(choice.fitted.model, threshold, held),
            "compared": choice.compared,
            "parity": parity_as_dict(parity),
            "latency_us": round(choice.fitted.model.single_row_latency_us(measured_on.matrix[:1]), 2),
            "size_bytes": len(choice.fitted.artifact),
        },
        "seed": seed,
        "code_version": code_version(),
        "libraries": _libraries(),
        "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "training_seconds": round(time.perf_counter() - began, 1),
        "training_cpu_seconds": round(time.process_time() - cpu_began, 1),
    }
    return Trained(choice.fitted.artifact, manifest, _reference(learning, choice.fitted.model, threshold, seed))


def _validate(examples: Examples, seed: int, progress: Progress, algorithms: Sequence[Algorithm]) -> dict[str, Any]:
    """The nested, grouped validation: every row is scored by a model that has seen nothing of its group."""
    fold = evaluation.group_folds(examples.group.tolist(), examples.label, OUTER_FOLDS, seed)
    called = np.zeros(len(examples), dtype=np.bool_)
    folds = []
    for number in range(int(fold.max()) + 1):
        progress(f"validation on held-out groups, fold {number + 1} of {int(fold.max()) + 1}")
        rows = fold == number
        choice = choose(examples.only(~rows), seed, algorithms=algorithms)
        held = examples.only(rows)
        called[rows] = choice.fitted.model.score(held.matrix) >= choice.threshold
        counts = evaluation.confusion(held.label, called[rows], held.weight)
        folds.append(
            {
                "groups": len(np.unique(held.group)),
                "rows": len(held),
                "algorithm": choice.fitted.algorithm.name,
                "threshold": round(choice.threshold, 6),
                **counts.as_dict(),
            }
        )
    pooled = evaluation.confusion(examples.label, called, examples.weight)
    answer: dict[str, Any] = {
        "kind": f"{len(folds)} folds grouped by {examples.origin.get('grouped_by', 'group')}",
        "grouped": pooled.as_dict(),
        "folds": folds,
    }
    if examples.kind.null_count() < len(examples.kind):
        answer["episodes"] = evaluation.episodes(
            examples.episode.to_list(), examples.kind.to_list(), examples.label, called, examples.seconds
        )
    return answer


def _random_split(examples: Examples, algorithm: Algorithm, seed: int) -> dict[str, Any]:
    """The figure that is often published: rows of the same minute on both sides of the split."""
    fold = evaluation.random_folds(len(examples), OUTER_FOLDS, seed)
    learn, check = examples.only(fold != 0), examples.only(fold == 0)
    probability = fit(algorithm, *_training_rows(learn), seed).model.score(check.matrix)
    threshold = evaluation.best_threshold(check.label, probability, check.weight)
    counts = evaluation.confusion(check.label, probability >= threshold, check.weight)
    return {"warning": "flattering: neighbouring readings on both sides; not used by the gate", **counts.as_dict()}


def _holdout(model: OnnxModel, threshold: float, held: Examples) -> dict[str, Any] | None:
    """Figures on the groups that no version trains on; also as if each of their readings stood alone."""
    if not len(held):
        return None
    called = model.score(held.matrix) >= threshold
    alone = model.score(features.as_cold(held.matrix)) >= threshold
    answer: dict[str, Any] = {
        "groups": len(np.unique(held.group)),
        "rows": len(held),
        **evaluation.confusion(held.label, called, held.weight).as_dict(),
        "single_readings": evaluation.confusion(held.label, alone, held.weight).as_dict(),
    }
    if held.kind.null_count() < len(held.kind):
        answer["episodes"] = evaluation.episodes(
            held.episode.to_list(), held.kind.to_list(), held.label, called, held.seconds
        )
    return answer


def _parity(fitted: Fitted, matrix: features.Features, seed: int, least_rows: int) -> Parity:
    """Exported against trained, on the rows given, as single readings, and with values blanked at random."""
    rng = np.random.default_rng(seed)
    # Half of them as they are, as far as they reach; the others lack values.
    sample = matrix[rng.permutation(len(matrix))[: max(least_rows // 2, 1)]]
    blanked = matrix[rng.integers(0, len(matrix), max(least_rows - len(sample), len(sample) // 4))]
    blanked = np.where(rng.random(blanked.shape) < _BLANKED, np.float32(np.nan), blanked).astype(np.float32)
    rows = np.concatenate([sample, features.as_cold(sample[: len(sample) // 4]), blanked])
    places = [features.FEATURE_NAMES.index(name) for name in features.CURRENT]
    lacking = int(np.isnan(rows[:, places]).any(axis=1).sum())
    return evaluation.parity(fitted.trained_probability(rows), fitted.model.score(rows), lacking)


def parity_as_dict(parity: Parity) -> dict[str, Any]:
    return {
        "rows": parity.rows,
        "rows_with_nan": parity.rows_with_nan,
        "largest_difference": parity.largest_difference,
        "beyond_tolerance": parity.beyond_tolerance,
    }


def _reference(examples: Examples, model: OnnxModel, threshold: float, seed: int) -> pl.DataFrame:
    """A bounded sample of the training rows as readings come in life: drawn by the number each row stands for."""
    rng = np.random.default_rng(seed)
    share = examples.weight / examples.weight.sum()
    size = min(REFERENCE_ROWS, len(examples))
    places = np.sort(rng.choice(len(examples), size=size, replace=False, p=share))
    matrix = examples.matrix[places]
    probability = model.score(matrix)
    return pl.DataFrame(
        {
            "device_id": examples.device.gather(places),
            "event_time": pl.Series((examples.seconds[places] * 1e6).astype(np.int64))
            .cast(pl.Datetime("us"))
            .dt.replace_time_zone("UTC"),
            "label": examples.label[places],
            "sample_weight": examples.weight[places],
            **{name: matrix[:, place] for place, name in enumerate(features.FEATURE_NAMES)},
            "probability": probability,
            "called": probability >= threshold,
        }
    )


# -- for the gate --------------------------------------------------------------------------------------------
def figures(
    manifest: dict[str, Any], artifact: bytes, held: Examples | None, champion: tuple[bytes, float] | None
) -> Figures:
    """What the gate judges, of a registered version.

    Args:
        manifest, artifact: of the candidate.
        held: rows that neither model was trained on, on which both are compared; ``None`` leaves the comparison out.
        champion: model and threshold of the present champion, if it sees the same features.
    """
    validation = manifest["validation"]
    answer = Figures(
        accuracy=validation["grouped"]["accuracy"],
        f1=validation["grouped"]["f1"],
        parity=Parity(**validation["parity"]),
        latency_us=validation["latency_us"],
        feature_version=manifest["feature_version"],
        platform_feature_version=features.FEATURE_SET_VERSION,
    )
    if held is None or champion is None or not len(held):
        return answer
    return replace(
        answer,
        holdout_f1=_f1(artifact, manifest["threshold"], held),
        champion_f1=_f1(champion[0], champion[1], held),
    )


def _f1(artifact: bytes, threshold: float, held: Examples) -> float:
    called = OnnxModel(artifact).score(held.matrix) >= threshold
    return evaluation.confusion(held.label, called, held.weight).f1


def held_out_outcomes(artifact: bytes, threshold: float, examples: Examples) -> AlarmOutcomes:
    """What the fire alarms of the rule ``model`` do to the fires, nuisances and quiet air of these rows.

    Two models that are given the same rows are judged on the same episodes.

    Args:
        artifact: ONNX model. threshold: its own.
        examples: every reading of groups that the model was not trained on, such as
            ``examples.only(examples.holdout)`` of ``feature_tables.load_examples``.
    """
    watch = examples.watched()
    scores = OnnxModel(artifact).score(watch.matrix)
    return alarm_evaluation.outcomes(watch, alarm_evaluation.replay(watch, scores, threshold, sensors=False))


def code_version() -> str:
    """Version of the package and a hash of the modules that decide what a model is."""
    root = Path(smoke_platform.__file__).parent
    digest = hashlib.sha256()
    for name in (
        "adapters/feature_tables.py",
        "adapters/trainer.py",
        "domain/alarm_evaluation.py",
        "domain/evaluation.py",
        "domain/features.py",
        *(f"domain/{name}.py" for name in simulator.SOURCE_MODULES),
    ):
        digest.update((root / name).read_bytes())
    return f"{smoke_platform.__version__}+{digest.hexdigest()[:12]}"


def _libraries() -> dict[str, str]:
    names = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy", "polars")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
