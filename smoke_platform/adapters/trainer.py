"""Trains the model that scores readings.

Belongs here: the comparison of algorithms, the grouped validation, the choice of a threshold, the figures for the gate.
Does not: fitting one model and its export (``adapters.fitting``), which rows to train on (``adapters.feature_tables``),
the figures' formulas (``domain.evaluation``), the decision to promote (``domain.promotion``), keeping versions
(``adapters.registry``).

The ONNX file is the model: whatever is chosen or reported here is computed from the outputs of an exported model and
never from scikit-learn's. Validation is nested: in each outer fold, whole groups are held out, and everything that is
chosen (algorithm, parameters, threshold) is chosen inside the remaining ones. There, whole families of fires and
nuisances are held out as well, so that what is chosen is what does well on a fire of a kind that was never seen.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

import smoke_platform
from smoke_platform.adapters.feature_tables import Examples, Progress, silent
from smoke_platform.adapters.fitting import ALGORITHMS, OPENMP_THREADS, THREADS, Algorithm, Fitted, OnnxModel, fit
from smoke_platform.domain import alarm_evaluation, evaluation, features, simulator
from smoke_platform.domain.alarm_evaluation import Chosen, Watched
from smoke_platform.domain.alarm_outcomes import AlarmOutcomes
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.promotion import PARITY_LEAST_ROWS, Figures, Parity

OUTER_FOLDS = 4
#: Folds by which algorithm, parameters (on the first) and threshold (on all) are chosen within the training groups.
INNER_FOLDS = 4
#: With fewer families of fires none can be held out: what is left would be one way of burning.
LEAST_FAMILIES = 4
#: One training row in so many is repeated as if it stood alone, without memory, so that the model can answer to a
#: single reading and to a device it has just met.
COLD_EVERY = 4
#: One in so many is repeated as if its device had been built without some of the chips.
LACKING_EVERY = 4
_GAS = ("tvoc_ppb", "eco2_ppm", "raw_h2", "raw_ethanol")
_CLIMATE = ("temperature_c", "humidity_pct")
_NUMBERS = ("nc0_5", "nc1_0", "nc2_5")
_PARTICLES = ("pm1_0", "pm2_5", *_NUMBERS)
#: What such a device lacks; each in turn. One has but temperature, PM2.5 and CO, as a plain multi-sensor alarm.
LACKING: tuple[tuple[str, ...], ...] = (
    _GAS,
    ("co_ppm",),
    (*_GAS, "co_ppm"),
    _CLIMATE,
    _PARTICLES,
    (*_GAS, "humidity_pct"),
    (*_GAS, "humidity_pct", "pm1_0", *_NUMBERS),
    (*_GAS, "humidity_pct", "co_ppm", "pm1_0", *_NUMBERS),
    (*_GAS, "humidity_pct", *_PARTICLES),
)
#: Algorithms whose F1 is this close count as equal; the one listed first is then taken.
EQUAL_F1 = 0.002
REFERENCE_ROWS = 5_000
IMPORTANCE_ROWS = 30_000
#: Share of a held-out row's values that are blanked in the rows made for parity.
_BLANKED = 0.15

#: Sensors whose weight in the answers is measured together.
SENSOR_GROUPS: dict[str, tuple[str, ...]] = {
    "temperature": ("temperature_c",),
    "humidity": ("humidity_pct",),
    "gas": _GAS,
    "particles": _PARTICLES,
    "CO": ("co_ppm",),
}

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
_Asked = TypeVar("_Asked")

#: In each outer fold and for the final model: every candidate, the chosen one on the other inner folds and on all rows.
FITS_OF_A_TRAINING = (OUTER_FOLDS + 1) * (sum(len(one.grid) for one in ALGORITHMS) + INNER_FOLDS) + 1


# -- choosing ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Choice:
    """An algorithm and a threshold, chosen on groups that the compared models had not seen, then fitted to all.

    Attributes:
        threshold: for alarms, and what is served.
        for_readings: the threshold of the greatest F1, by which readings are judged one by one.
        for_single: the same of readings that stand alone, whose scores never come near that for alarms.
        compared: figures of each candidate, by its name.
        budget: how the threshold came about; ``None`` where readings could not be replayed.
    """

    fitted: Fitted
    threshold: float
    for_readings: float
    for_single: float
    compared: dict[str, dict[str, Any]] = field(default_factory=dict)
    budget: Chosen | None = None


@dataclass(frozen=True)
class _Inner:
    """Folds within the training groups.

    In fold k neither the groups nor the families of fold k are learnt from; it is checked on the episodes of those
    families, at whichever device, and on the quiet air of those groups. So each reading is checked once.
    """

    of_group: Integers
    of_family: Integers

    def learnt(self, fold: int) -> Booleans:
        return np.asarray((self.of_group != fold) & (self.of_family != fold))

    def checked(self, fold: int) -> Booleans:
        return np.asarray(np.where(self.of_family >= 0, self.of_family == fold, self.of_group == fold))


def _inner(examples: Examples, seed: int) -> tuple[_Inner, dict[str, int]]:
    """The folds of the rows, and the fold of each family; without families where too few are known."""
    of_group = evaluation.group_folds(examples.group.tolist(), examples.label, INNER_FOLDS, seed)
    known = pl.DataFrame({"kind": examples.kind, "family": examples.family}).drop_nulls().unique()
    fires = known.filter(pl.col("kind") == "fire")["family"].to_list()
    if len(fires) < LEAST_FAMILIES:
        return _Inner(of_group, np.full(len(examples), -1)), {}
    rng = np.random.default_rng(seed)
    folds: dict[str, int] = {}
    for kind in ("fire", "nuisance"):
        names = sorted(known.filter(pl.col("kind") == kind)["family"].to_list())
        for place, number in enumerate(rng.permutation(len(names)).tolist()):
            folds[names[number]] = place % INNER_FOLDS
    return _Inner(of_group, _family_folds(examples.family, folds)), folds


def _family_folds(family: pl.Series, folds: dict[str, int]) -> Integers:
    of_family: Integers = family.replace_strict(folds, default=-1, return_dtype=pl.Int64).fill_null(-1).to_numpy()
    return of_family


def choose(
    examples: Examples,
    seed: int,
    progress: Progress = silent,
    algorithms: Sequence[Algorithm] = ALGORITHMS,
    watch: Watched | None = None,
) -> Choice:
    """Compares the candidates on the first inner fold, sets the threshold on all of them, fits the best to all rows.

    Args:
        watch: all readings of the rows' devices; read anew where it is not given. The threshold is that of the budget
            of false alarms; where there are no such readings, that of the greatest F1.
    """
    inner, families = _inner(examples, seed)
    if watch is None and examples.full_rate is not None:
        watch = examples.full_rate.watched(examples.device.unique().to_list())
    candidates = [candidate for algorithm in algorithms for candidate in algorithm.candidates()]
    learn, check = examples.only(inner.learnt(0)), examples.only(inner.checked(0))
    progress(f"comparing {len(candidates)} candidates, fitted to {len(learn):,} rows")
    rows = _training_rows(learn)
    fits = _at_once(lambda candidate: fit(candidate, *rows, seed), candidates)
    compared = {
        f"{candidate.name}-{place}": {**_compared(fitted, check), "parameters": candidate.parameters}
        for place, (candidate, fitted) in enumerate(zip(candidates, fits, strict=True))
    }
    best = max(entry["f1"] for entry in compared.values())
    place = next(place for place, entry in enumerate(compared.values()) if entry["f1"] >= best - EQUAL_F1)
    chosen = candidates[place]
    progress(f"fitting {chosen.name} to the other folds and to all {len(examples):,} rows")
    folds = range(int(inner.of_group.max()) + 1)
    others = [examples.only(inner.learnt(fold)) for fold in folds[1:]]
    *rest, final = _at_once(lambda part: fit(chosen, *_training_rows(part), seed), [*others, examples])
    models = [fits[place], *rest]
    threshold, budget = _threshold(examples, inner, families, models, watch)
    for_readings = float(list(compared.values())[place]["threshold"])
    alone = fits[place].model.score(features.as_cold(check.matrix))
    for_single = evaluation.best_threshold(check.label, alone, check.weight)
    return Choice(final, threshold, for_readings, for_single, compared, budget)


def _compared(fitted: Fitted, check: Examples) -> dict[str, Any]:
    probability = fitted.model.score(check.matrix)
    threshold = evaluation.best_threshold(check.label, probability, check.weight)
    counts = evaluation.confusion(check.label, probability >= threshold, check.weight)
    return {
        "f1": round(counts.f1, 6),
        "accuracy": round(counts.accuracy, 6),
        "threshold": round(threshold, 6),
        "fit_seconds": round(fitted.fit_seconds, 3),
    }


def _threshold(
    examples: Examples, inner: _Inner, families: dict[str, int], models: Sequence[Fitted], watch: Watched | None
) -> tuple[float, Chosen | None]:
    """By the scores of models that have seen neither a reading's family nor, in quiet air, its group."""
    if watch is None:
        scores = np.empty(len(examples))
        for fold, fitted in enumerate(models):
            rows = inner.checked(fold)
            scores[rows] = fitted.model.score(examples.matrix[rows])
        return evaluation.best_threshold(examples.label, scores, examples.weight), None
    fold_of = dict(zip(examples.device.to_list(), inner.of_group.tolist(), strict=True))
    of_device = np.array([fold_of.get(name, -1) for name in watch.devices])[watch.slots]
    of_episode = np.array([*(families.get(episode.family, -1) for episode in watch.episodes), -1])
    parts = _Inner(of_device, of_episode[watch.episode])
    scores = np.zeros(len(watch))
    for fold, fitted in enumerate(models):
        rows = parts.checked(fold)
        scores[rows] = fitted.model.score(watch.matrix[rows])
    chosen = alarm_evaluation.threshold_for_budget(watch, scores)
    return chosen.threshold, chosen


def _at_once(make: Callable[[_Asked], Fitted], asked: Sequence[_Asked]) -> list[Fitted]:
    """As many at a time as there are threads; each fit is by itself, so that the order does not matter."""
    # Imported before there are threads: two that import parts of scikit-learn at once find it half made.
    import sklearn.ensemble
    import sklearn.linear_model
    import sklearn.pipeline  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no type information

    # Here as well as in each fit: the first to end would otherwise lift the limit for the others.
    with threadpool_limits(OPENMP_THREADS), ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(make, asked))


def _training_rows(examples: Examples) -> tuple[features.Features, Booleans]:
    alone = slice(None, None, COLD_EVERY)
    parts = [examples.matrix, features.as_cold(examples.matrix[alone])]
    labels = [examples.label, examples.label[alone]]
    for number, sensors in enumerate(LACKING):
        some = slice(number * LACKING_EVERY, None, len(LACKING) * LACKING_EVERY)
        parts.append(features.without(examples.matrix[some], sensors))
        labels.append(examples.label[some])
    return np.concatenate(parts), np.concatenate(labels)


# -- training ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trained:
    """What training hands to the registry: the model, what is to be known of it, and its reference rows.

    Attributes:
        curves: of the grouped validation, for the page (``domain.evaluation.curves``).
    """

    artifact: bytes
    manifest: dict[str, Any]
    reference: pl.DataFrame
    curves: dict[str, Any] = field(default_factory=dict)


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
    watch = None
    if examples.full_rate is not None:
        progress("reading every reading of the training devices, to replay their alarms")
        watch = examples.full_rate.watched(learning.device.unique().to_list())
    grouped, scored = _validate(learning, seed, progress, algorithms, watch)
    progress("choosing the final model")
    choice = choose(learning, seed, progress, algorithms, watch)
    progress("measuring the flattering random split, for comparison")
    flattering = random_split(learning, choice.fitted.algorithm, seed)
    measured_on = held if len(held) else learning
    progress("comparing the exported model with the trained one")
    parity = _parity(choice.fitted, measured_on.matrix, seed, parity_rows)
    threshold, single = round(choice.threshold, 6), round(choice.for_single, 6)
    sha256 = hashlib.sha256(choice.fitted.artifact).hexdigest()
    manifest: dict[str, Any] = {
        "sha256": sha256,
        "algorithm": choice.fitted.algorithm.name,
        "parameters": choice.fitted.algorithm.parameters,
        "feature_version": features.FEATURE_SET_VERSION,
        "feature_sha256": features.FEATURE_SET_HASH,
        "feature_names": list(features.FEATURE_NAMES),
        "threshold": threshold,
        "threshold_single": single,
        "trained_on": {
            **examples.origin,
            **learning.counts(),
            "cold_copies_one_in": COLD_EVERY,
            "held_out": held.counts() if len(held) else None,
        },
        "validation": {
            **grouped,
            "random_split": flattering,
            "holdout": _holdout(choice.fitted.model, threshold, single, held),
            "compared": choice.compared,
            "threshold": None if choice.budget is None else asdict(choice.budget),
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
    reference = _reference(learning, choice.fitted.model, threshold, seed)
    progress("drawing curves and importances")
    curves = evaluation.curves(learning.label, scored, learning.weight)
    manifest["validation"]["brier"] = curves["brier"]
    manifest["validation"]["importances"] = importances(choice.fitted.model, threshold, measured_on, seed)
    return Trained(choice.fitted.artifact, manifest, reference, curves)


def _validate(
    examples: Examples, seed: int, progress: Progress, algorithms: Sequence[Algorithm], watch: Watched | None
) -> tuple[dict[str, Any], Floats]:
    """The nested, grouped validation: every row is scored by a model that has seen nothing of its group.

    Readings are judged one by one at the threshold of the greatest F1: that for alarms lies above it, because a reading
    of a fire that has hardly begun may be let pass, and a false alarm may not. How readings fare at that one stands
    beside it.

    Returns:
        The figures, and each row's score, float64 ``[n]``.
    """
    fold = evaluation.group_folds(examples.group.tolist(), examples.label, OUTER_FOLDS, seed)
    called, served = np.zeros(len(examples), dtype=np.bool_), np.zeros(len(examples), dtype=np.bool_)
    scored = np.zeros(len(examples))
    ratio = np.full(0 if watch is None else len(watch), np.nan)
    folds = []
    for number in range(int(fold.max()) + 1):
        progress(f"validation on held-out groups, fold {number + 1} of {int(fold.max()) + 1}")
        rows = fold == number
        learning, held = examples.only(~rows), examples.only(rows)
        seen = None if watch is None else watch.of(learning.device.unique().to_list())
        choice = choose(learning, seed, algorithms=algorithms, watch=seen)
        scored[rows] = choice.fitted.model.score(held.matrix)
        called[rows] = scored[rows] >= choice.for_readings
        served[rows] = scored[rows] >= choice.threshold
        if watch is not None:
            unseen = np.isin(watch.devices, held.device.unique().to_list())[watch.slots]
            ratio[unseen] = choice.fitted.model.score(watch.matrix[unseen]) / choice.threshold
        counts = evaluation.confusion(held.label, called[rows], held.weight)
        folds.append(
            {
                "groups": len(np.unique(held.group)),
                "rows": len(held),
                "algorithm": choice.fitted.algorithm.name,
                "threshold": round(choice.for_readings, 6),
                "threshold_for_alarms": round(choice.threshold, 6),
                **counts.as_dict(),
            }
        )
    pooled = evaluation.confusion(examples.label, called, examples.weight)
    answer: dict[str, Any] = {
        "kind": f"{len(folds)} folds grouped by {examples.origin.get('grouped_by', 'group')}",
        "grouped": pooled.as_dict(),
        "grouped_at_threshold": evaluation.confusion(examples.label, served, examples.weight).as_dict(),
        "folds": folds,
    }
    if examples.kind.null_count() < len(examples.kind):
        answer["episodes"] = evaluation.episodes(
            examples.episode.to_list(), examples.kind.to_list(), examples.label, called, examples.seconds
        )
    if watch is not None:
        levels = alarm_evaluation.replay(watch, ratio, sensors=False).model
        answer["alarms"] = alarm_evaluation.summary(alarm_evaluation.outcomes(watch, levels), seed)
    return answer, scored


def importances(model: OnnxModel, threshold: float, held: Examples, seed: int) -> dict[str, float]:
    """How much of F1 is lost when a group of sensors is that of another reading (Breiman 2001), by group.

    The features of one chip are exchanged together: what one of them says, the others of the chip repeat.
    """
    rng = np.random.default_rng(seed)
    places = np.sort(rng.choice(len(held), size=min(IMPORTANCE_ROWS, len(held)), replace=False))
    matrix, label, weight = held.matrix[places], held.label[places], held.weight[places]
    before = evaluation.confusion(label, model.score(matrix) >= threshold, weight).f1
    answer = {}
    for name, sensors in SENSOR_GROUPS.items():
        columns = [place for place, feature in enumerate(features.FEATURE_NAMES) if features.rests_on(feature, sensors)]
        mixed = matrix.copy()
        mixed[:, columns] = matrix[rng.permutation(len(matrix))][:, columns]
        after = evaluation.confusion(label, model.score(mixed) >= threshold, weight).f1
        answer[name] = round(before - after, 6)
    return answer


def random_split(examples: Examples, algorithm: Algorithm, seed: int) -> dict[str, Any]:
    """The figure that is often published: rows of the same minute on both sides of the split."""
    fold = evaluation.random_folds(len(examples), OUTER_FOLDS, seed)
    learn, check = examples.only(fold != 0), examples.only(fold == 0)
    probability = fit(algorithm, *_training_rows(learn), seed).model.score(check.matrix)
    threshold = evaluation.best_threshold(check.label, probability, check.weight)
    counts = evaluation.confusion(check.label, probability >= threshold, check.weight)
    return {"warning": "flattering: neighbouring readings on both sides; not used by the gate", **counts.as_dict()}


def _holdout(model: OnnxModel, threshold: float, single: float, held: Examples) -> dict[str, Any] | None:
    """Figures on the groups that no version trains on; also as if each of their readings stood alone."""
    if not len(held):
        return None
    called = model.score(held.matrix) >= threshold
    alone = model.score(features.as_cold(held.matrix)) >= single
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
    if held.full_rate is not None:
        watch = held.full_rate.watched(held.device.unique().to_list(), sensors=True)
        answer["alarms"] = {
            name: alarm_evaluation.summary(found) for name, found in detectors(watch, model, threshold).items()
        }
    return answer


def detectors(watch: Watched, model: OnnxModel, threshold: float) -> dict[str, AlarmOutcomes]:
    """What the model's rule does alone, what the other rules do without a model, and what all do together."""
    replayed = alarm_evaluation.replay(watch, model.score(watch.matrix), threshold, sensors=True)
    levels = {"model": replayed.model, "rules": replayed.rules, "together": replayed.together}
    return {name: alarm_evaluation.outcomes(watch, found) for name, found in levels.items()}


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
    return alarm_evaluation.outcomes(watch, alarm_evaluation.replay(watch, scores, threshold, sensors=False).model)


def code_version() -> str:
    """Version of the package and a hash of the modules that decide what a model is."""
    root = Path(smoke_platform.__file__).parent
    digest = hashlib.sha256()
    for name in (
        "adapters/feature_tables.py",
        "adapters/fitting.py",
        "adapters/trainer.py",
        "domain/alarm_evaluation.py",
        "domain/alarm_replay.py",
        "domain/evaluation.py",
        "domain/features.py",
        "domain/rules.py",
        *(f"domain/{name}.py" for name in simulator.SOURCE_MODULES),
    ):
        digest.update((root / name).read_bytes())
    return f"{smoke_platform.__version__}+{digest.hexdigest()[:12]}"


def _libraries() -> dict[str, str]:
    names = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy", "polars")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
