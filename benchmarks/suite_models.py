"""Models: the drift verdict beside Evidently's, and a full retrain beside a grid search of scikit-learn.

Evidently is measured from the same frames to its verdict and page, once it is imported. The grid is the one that is
often published for the public dataset (890 fits); a seeded piece of it is run and the rest extrapolated, which the
figure's name says.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure
from smoke_platform.adapters import feature_tables, model_lifecycle
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.registry import Registry
from smoke_platform.adapters.reports import DrawnDrift, draw_drift
from smoke_platform.domain import drift, features
from smoke_platform.settings import load_settings

SEED = 20_220_601
COLUMNS, ROWS = 15, 100_000
CASES, CASES_AT_ONCE = 1_000, 50
PUBLIC_ROWS = 62_630
FOLDS = 5
#: 3 trees x 3 depths x 3 splits x 3 leaves x 2 features, and 4 C x 2 penalties x 2 solvers, each in 5 folds.
FOREST_FITS, LINEAR_FITS = 162 * FOLDS, 16 * FOLDS

Column = np.ndarray[Any, np.dtype[np.float32]]


def run() -> list[Figure]:
    """Measures and returns the suite's figures."""
    # Its import takes seconds and is nobody's verdict.
    warm = {"x": np.arange(200, dtype=np.float32)}
    _evidently(warm, warm)
    return [*_drift(), *_agreement(), *_retrain()]


def _evidently(reference: dict[str, Column], current: dict[str, Column]) -> DrawnDrift:
    limits = {"threshold": drift.DISTANCE_THRESHOLD, "drifted_share": drift.DRIFTED_SHARE_LIMIT}
    return draw_drift(reference, current, list(reference), **limits)


# -- the verdict -------------------------------------------------------------------------------------------------


def _drift() -> list[Figure]:
    chance = np.random.default_rng(SEED)
    pairs = [_case(chance, ROWS, number) for number in range(COLUMNS)]
    reference, current = ({f"c{n:02}": pair[side] for n, pair in enumerate(pairs)} for side in (0, 1))
    ours, streamed = [], []
    for _ in range(5):
        began = time.perf_counter()
        found = drift.compare(reference, current, list(reference))
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        tallies = {name: _streamed(reference[name], current[name]) for name in reference}
        in_parts = {name for name, tally in tallies.items() if tally.drift(name).drifted}
        streamed.append(time.perf_counter() - began)
    began = time.perf_counter()
    drawn = _evidently(reference, current)
    peer_s = time.perf_counter() - began
    theirs = {name for name, far in drawn.distances.items() if far >= drift.DISTANCE_THRESHOLD}
    if not theirs == set(found.drifted) == in_parts:
        raise AssertionError(f"Evidently says {sorted(theirs)}, we say {sorted(found.drifted)} and {sorted(in_parts)}")
    what = f"drift verdict, {COLUMNS} columns x {ROWS:,} rows a side"
    peer = "Evidently's full run on the same frames, imported before"
    value = statistics.median(ours)
    return [
        Figure("P10.drift", f"{what}, exact", value, "s", peer, peer_s, "<= 0.5 s", value <= 0.5),
        Figure("P10.drift.stream", f"{what}, in ten parts with bounds", statistics.median(streamed), "s", peer, peer_s),
    ]


def _streamed(reference: Column, current: Column) -> drift.Tally:
    tally = drift.Tally(drift.ordered(reference))
    for part in np.array_split(current, 10):
        tally.add(part)
    return tally


# -- the same verdict --------------------------------------------------------------------------------------------


def _draw(chance: np.random.Generator, family: int, rows: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    if family == 0:
        return chance.normal(20.0, 3.0, rows)
    if family == 1:
        return chance.lognormal(1.0, 0.8, rows)
    if family == 2:
        return 5.0 * chance.standard_t(2.2, rows)
    if family == 3:
        return chance.poisson(2.0, rows).astype(np.float64)
    if family == 4:
        # A gas sensor in clean air: at its floor most of the time.
        return np.clip(chance.normal(-30.0, 100.0, rows), 0.0, None)
    return chance.uniform(400.0, 460.0, rows)


def _case(chance: np.random.Generator, rows: int, number: int) -> tuple[Column, Column]:
    """Training and day of one case: six families, moved in mean, scale or shape, by sizes around the limit and none."""
    family = number % 6
    before, now = (_draw(chance, family, rows) for _ in range(2))
    spread = max(float(before.std()), drift.SMALLEST_SPREAD)
    # A third lies close to the limit, where two implementations would differ first.
    size = chance.uniform(0.4, 0.6) if number % 3 == 0 else float(np.exp(chance.uniform(np.log(0.01), np.log(4.0))))
    kind = chance.integers(0, 4)
    if kind == 1:
        now = now + (1 if chance.random() < 0.5 else -1) * size * spread
    elif kind == 2:
        now = now.mean() + (now - now.mean()) * (1 + size)
    elif kind == 3:
        moved = chance.random(rows) < min(size / 3, 1.0)
        now = np.where(moved, now + 3 * spread, now)
    if family == 3:
        now = np.round(now)
    return before.astype(np.float32), now.astype(np.float32)


def _agreement() -> list[Figure]:
    chance = np.random.default_rng(SEED + 1)
    same = in_parts = drifted = near = 0
    for first in range(0, CASES, CASES_AT_ONCE):
        rows = int(chance.choice([300, 1_001, 2_000, 4_000]))
        pairs = {f"c{n}": _case(chance, rows, n) for n in range(first, first + CASES_AT_ONCE)}
        reference, current = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
        drawn = _evidently(reference, current)
        found = set(drift.compare(reference, current, list(pairs)).drifted)
        for name, (before, now) in pairs.items():
            theirs = drawn.distances[name] >= drift.DISTANCE_THRESHOLD
            drifted += theirs
            near += abs(drawn.distances[name] - drift.DISTANCE_THRESHOLD) < 0.1
            same += theirs == (name in found)
            in_parts += theirs == _streamed(before, now).drift(name).drifted
    what = f"same verdict as Evidently's named test, {CASES:,} cases: {drifted} drifted, {near} within 0.1 of the limit"
    goal = ">= 99%"
    return [
        Figure("P10.drift.agreement", what, 100 * same / CASES, "%", goal=goal, met=same >= 0.99 * CASES),
        Figure(
            "P10.drift.agreement.stream",
            "the same, in ten parts with bounds, without a second pass",
            100 * in_parts / CASES,
            "%",
            goal=goal,
            met=in_parts >= 0.99 * CASES,
        ),
    ]


# -- training ----------------------------------------------------------------------------------------------------


def _retrain() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="smoke-bench-") as folder:
        home = Path(folder)
        settings = load_settings({"SMOKE_HOME": str(home)}, home / "no.env")
        registry = Registry(settings)
        registry.migrate()
        began = time.perf_counter()
        model_lifecycle.prepare_simulated(settings)
        candidate = model_lifecycle.train_candidate(settings, registry)
        verdict = model_lifecycle.judge(settings, registry, candidate.number)
        ours = time.perf_counter() - began
        matrix, label, of = _grid_rows(Lake(settings.lake))
    forest, linear = _forest_seconds(matrix, label), _linear_seconds(matrix, label)
    cores = os.cpu_count() or 1
    # One linear fit keeps one core busy, so that as many run at once as there are cores.
    peer_s = statistics.mean(forest) * FOREST_FITS + statistics.mean(linear) * LINEAR_FITS / cores
    ran = len(forest) + len(linear)
    peer = (
        f"scikit-learn's grid of {FOREST_FITS + LINEAR_FITS} fits on {len(label):,} x {matrix.shape[1]} {of}, {cores} "
        f"cores; {ran} fits run, the others extrapolated"
    )
    gate = "passed the gate" if verdict.passed else "was refused by the gate"
    name = f"full retrain: simulate, validate, compare, export, judge; the candidate {gate}"
    return [
        Figure("P10.retrain", name, ours, "s", peer, peer_s),
        Figure("P10.retrain.forest", "the grid: one forest, all cores, mean", statistics.mean(forest), "s"),
        Figure("P10.retrain.linear", "the grid: one logistic regression, one core, mean", statistics.mean(linear), "s"),
    ]


def _grid_rows(lake: Lake) -> tuple[Column, np.ndarray[Any, np.dtype[np.bool_]], str]:
    """The public dataset where it is at hand, else as many rows of the simulated set."""
    folder = os.environ.get("SMOKE_DATA_DIR", "")
    file = Path(folder) / "kaggle_smoke" / "smoke_detection_iot.csv"
    if folder and file.is_file():
        table = np.genfromtxt(file, delimiter=",", skip_header=1, dtype=np.float64)
        return table[:, 1:-1].astype(np.float32), table[:, -1] > 0, "of the public dataset"
    examples = feature_tables.simulated_examples(lake)
    fires = np.flatnonzero(examples.label)
    places = np.random.default_rng(SEED).permutation(len(examples))[: PUBLIC_ROWS - len(fires)]
    chosen = np.resize(np.union1d(places, fires), PUBLIC_ROWS)
    matrix = np.nan_to_num(examples.matrix[chosen][:, : len(features.CURRENT) + 5])
    return matrix, examples.label[chosen], "of the simulated set"


def _forest_seconds(matrix: Column, label: np.ndarray[Any, np.dtype[np.bool_]]) -> list[float]:
    """Every size and depth of the grid once, the rest of the parameters drawn."""
    from sklearn.ensemble import RandomForestClassifier

    chance = np.random.default_rng(SEED)
    grid = [
        {
            "n_estimators": [trees],
            "max_depth": [depth],
            "min_samples_split": [int(chance.choice([2, 5, 10]))],
            "min_samples_leaf": [int(chance.choice([1, 2, 4]))],
            "max_features": [str(chance.choice(["sqrt", "log2"]))],
        }
        for trees in (100, 200, 300)
        for depth in (10, 20, None)
    ]
    return list(_seconds(RandomForestClassifier(random_state=SEED, n_jobs=-1), grid, matrix, label))


def _linear_seconds(matrix: Column, label: np.ndarray[Any, np.dtype[np.bool_]]) -> list[float]:
    """Every solver and penalty once, C drawn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    chance = np.random.default_rng(SEED)
    grid = [
        {"C": [float(chance.choice([0.1, 1.0, 10.0, 100.0]))], "l1_ratio": [ratio], "solver": [solver]}
        for ratio in (0.0, 1.0)
        for solver in ("liblinear", "saga")
    ]
    scaled = StandardScaler().fit_transform(matrix)
    return list(_seconds(LogisticRegression(max_iter=1000, random_state=SEED), grid, scaled, label))


def _seconds(
    estimator: Any, grid: list[dict[str, list[Any]]], matrix: Column, label: np.ndarray[Any, np.dtype[np.bool_]]
) -> Iterator[float]:
    """Seconds of one fold's fit and score of each parameter set, as GridSearchCV measures them itself."""
    import warnings

    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    fold = next(iter(StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(matrix, label)))
    for parameters in grid:
        search = GridSearchCV(estimator, parameters, cv=[fold], refit=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that saga has not converged costs the grid nothing
            search.fit(matrix, label)
        yield float(search.cv_results_["mean_fit_time"][0] + search.cv_results_["mean_score_time"][0])
