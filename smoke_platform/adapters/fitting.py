"""One model: the algorithms that a model can be of, fitting one, and its export as ONNX.

Belongs here: parameters, how missing values and values are prepared, the exported graph, scoring with it while
training. Does not: which rows, which algorithm, which threshold (``adapters.trainer``), scoring live readings with a
published model (``adapters.scorer``).
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from smoke_platform.domain import features
from smoke_platform.domain.errors import SmokeError

#: Threads that forests and bulk scoring may use; the detector and the broker live on the same machine.
THREADS = 2
#: Boosting's OpenMP threads wait for one another by spinning: two of them on two busy cores took twice as long as one
#: (26 s instead of 14 s, measured), and one gives the same bits on every machine.
OPENMP_THREADS = 1
#: ONNX operator sets of the exported graph; onnxruntime has known both for years.
OPSETS = {"": 18, "ai.onnx.ml": 3}
IR_VERSION = 8

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Edges = tuple[features.Features, ...]
#: The converter and the warnings' filters are not made for several threads.
_EXPORTING = threading.Lock()


#: More of these never speaks against a fire. Boosting may not learn that it does, as it would from the few nuisances
#: that happen to be hotter than the fires beside them.
SIGNS_OF_FIRE = frozenset(
    {
        "pm2_5",
        "pm2_5_rise",
        "pm2_5_score",
        "co_ppm",
        "co_ppm_rise",
        "co_ppm_score",
        "temperature_c_rise",
        "temperature_c_score",
        "temperature_c_rate",
        "smoke_and_gas",
        "smoke_and_heat",
        "smoke_and_co",
        "dry_heat",
        "raised_sensors",
    }
)


# -- the algorithms ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Algorithm:
    """A way to fit.

    Attributes:
        imputed: missing values are filled and flagged inside the exported graph.
        double: computed in float64 inside it; in float32 a linear model's sum of 94 terms is off by more than 1e-6.
        binned: fitted to the place of each value among its feature's ``max_bins`` weighted quantiles (``_edges``).
        grid: changes of the parameters that are tried.
    """

    name: str
    imputed: bool
    double: bool
    parameters: dict[str, Any]
    make: Callable[[int, dict[str, Any]], Any]
    grid: tuple[dict[str, Any], ...] = ({},)
    binned: bool = False

    def candidates(self) -> list[Algorithm]:
        """One for each change of the grid, which then has none of its own."""
        return [replace(self, parameters={**self.parameters, **change}, grid=({},)) for change in self.grid]


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

    given = dict(parameters)
    monotonic = given.pop("monotonic", False)
    signs = [int(monotonic and name in SIGNS_OF_FIRE) for name in features.FEATURE_NAMES]
    return HistGradientBoostingClassifier(random_state=seed, early_stopping=False, monotonic_cst=signs, **given)


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
            "max_iter": 60,
            "learning_rate": 0.2,
            "max_bins": 63,
            "max_leaf_nodes": 8,
            "min_samples_leaf": 40,
            "l2_regularization": 1.0,
            "class_weight": "balanced",
            "monotonic": True,
        },
        _hist_gradient_boosting,
        ({}, {"max_leaf_nodes": 4, "max_iter": 80}),
        binned=True,
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
    """A trained estimator and the ONNX model made of it.

    Attributes:
        fill: what stands for a missing value, float32 ``[F]``; ``None`` where it is left missing.
        edges: of each feature's bins, as ``_edges`` has them; ``None`` where values are taken as they are.
        fit_seconds: to prepare the rows and to fit; the export is not in it.
    """

    algorithm: Algorithm
    estimator: Any
    fill: features.Features | None
    edges: Edges | None
    artifact: bytes
    fit_seconds: float

    def trained_probability(self, matrix: features.Features) -> Floats:
        """What scikit-learn says; for the parity with ``score`` only."""
        rows = _inputs(self.algorithm, matrix, self.fill, self.edges)
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
    began = time.perf_counter()
    fill = _medians(matrix) if algorithm.imputed else None
    edges = _edges(matrix, label, algorithm.parameters["max_bins"]) if algorithm.binned else None
    estimator = algorithm.make(seed, algorithm.parameters)
    with threadpool_limits(OPENMP_THREADS):
        estimator.fit(_never_measured_as_constant(_inputs(algorithm, matrix, fill, edges)), label)
    took = time.perf_counter() - began
    with _EXPORTING:
        artifact = export(estimator, fill, edges)
    return Fitted(algorithm, estimator, fill, edges, artifact, took)


def _never_measured_as_constant(rows: Any) -> Any:
    """Columns without any value become 0: boosting cannot bin what holds nothing, and never splits on a constant."""
    empty = np.isnan(rows).all(axis=0)
    return np.where(empty, rows.dtype.type(0), rows) if empty.any() else rows


def _medians(matrix: features.Features) -> features.Features:
    known = ~np.isnan(matrix).all(axis=0)
    fill = np.zeros(matrix.shape[1], dtype=np.float32)
    fill[known] = np.nanmedian(matrix[:, known], axis=0)
    return fill


def _inputs(
    algorithm: Algorithm, matrix: features.Features, fill: features.Features | None, edges: Edges | None
) -> Any:
    rows = matrix if fill is None else _filled(matrix, fill)
    if edges is not None:
        rows = _places(rows, edges)
    return rows.astype(np.float64) if algorithm.double else rows


def _edges(matrix: features.Features, label: Booleans, bins: int) -> Edges:
    """Upper edges of at most ``bins`` bins of each feature, all but the last one's, rising.

    They are the quantiles of values in which both classes weigh the same, so that the rare fires get half of the bins.
    scikit-learn finds the same, but sorts each column anew for each quantile: that was two thirds of a fit's time.
    """
    weight = np.where(label, 1.0 / max(label.sum(), 1), 1.0 / max((~label).sum(), 1))
    shares = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    found = []
    for column in matrix.T:
        known = np.flatnonzero(~np.isnan(column))
        order = known[np.argsort(column[known], kind="stable")]
        values = column[order]
        distinct = values[np.flatnonzero(np.diff(values, prepend=np.float32(-np.inf)))]
        if len(distinct) > bins:
            total = np.cumsum(weight[order])
            found.append(np.unique(values[np.searchsorted(total, shares * total[-1])]))
        else:
            found.append(distinct[:-1])
    return tuple(found)


def _places(matrix: features.Features, edges: Edges) -> features.Features:
    """Of each value the bin that it falls in, as float32; missing values stay missing."""
    places = np.empty_like(matrix)
    for place, (column, above) in enumerate(zip(matrix.T, edges, strict=True)):
        places[:, place] = np.where(np.isnan(column), np.float32(np.nan), np.searchsorted(above, column))
    return places


def _filled(matrix: features.Features, fill: features.Features) -> features.Features:
    missing = np.isnan(matrix)
    return np.concatenate([np.where(missing, fill, matrix), missing.astype(np.float32)], axis=1)


def export(estimator: Any, fill: features.Features | None, edges: Edges | None = None) -> bytes:
    """The ONNX model of a fitted estimator: input ``features``, output ``probabilities`` ``[n, 2]``.

    Where ``edges`` are given, the estimator's limits are places among them and become values again.
    Where ``fill`` is given, the graph first replaces NaN by it and appends one flag per feature. It is written out
    here because the converter drops the flags of scikit-learn's imputer without a word.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    inner = "features" if fill is None else "filled"
    nodes, initializers = _linear(estimator, inner) if hasattr(estimator, "steps") else _converted(estimator, inner)
    if edges is not None:
        _as_values(nodes, edges)
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


def _as_values(nodes: Sequence[Any], edges: Edges) -> None:
    """Turns the limits of trees from places into values: at most in bin k is at most the upper edge of bin k."""
    for node in nodes:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        of = {attribute.name: attribute for attribute in node.attribute}
        limits = of["nodes_values"].floats
        for place, (feature, mode) in enumerate(
            zip(of["nodes_featureids"].ints, of["nodes_modes"].strings, strict=True)
        ):
            if mode == b"BRANCH_LEQ":
                limit, above = limits[place], edges[feature]
                # Beyond the last edge is where a tree tells measured from missing.
                limits[place] = above[int(limit)] if limit < len(above) else np.inf
            elif mode != b"LEAF":
                raise ValueError(f"a tree compares by {mode!r}, which is not known here")


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
