"""How good a model is: figures per reading and per fire, thresholds, and folds that do not cheat.

Belongs here: pure functions of labels, probabilities, weights and groups. Does not: fitting or running a model
(``adapters.trainer``), the decision to promote (``domain.promotion``).

Folds are made of whole groups (a device, a recording, an episode): readings a second apart are all but copies of one
another, so that a random split puts the answer into the training set and measures memory instead of skill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smoke_platform.domain.promotion import PARITY_TOLERANCE, Parity

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

#: One group of so many is never trained on by any version.
HOLDOUT_EVERY = 5


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of readings (weighted where a row stands for several); fire is the positive class."""

    true_fire: float
    false_fire: float
    missed_fire: float
    true_quiet: float

    @property
    def total(self) -> float:
        return self.true_fire + self.false_fire + self.missed_fire + self.true_quiet

    @property
    def accuracy(self) -> float:
        return _share(self.true_fire + self.true_quiet, self.total)

    @property
    def precision(self) -> float:
        return _share(self.true_fire, self.true_fire + self.false_fire)

    @property
    def recall(self) -> float:
        return _share(self.true_fire, self.true_fire + self.missed_fire)

    @property
    def f1(self) -> float:
        return _share(2 * self.true_fire, 2 * self.true_fire + self.false_fire + self.missed_fire)

    def as_dict(self) -> dict[str, float]:
        """Figures and counts, rounded for people."""
        return {
            "accuracy": round(self.accuracy, 6),
            "f1": round(self.f1, 6),
            "precision": round(self.precision, 6),
            "recall": round(self.recall, 6),
            "true_fire": round(self.true_fire),
            "false_fire": round(self.false_fire),
            "missed_fire": round(self.missed_fire),
            "true_quiet": round(self.true_quiet),
        }


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def confusion(label: Booleans, called: Booleans, weight: Floats | None = None) -> Confusion:
    """Counts of the four outcomes; all arrays ``[n]``, each row counting ``weight`` times."""
    weights = np.ones(len(label)) if weight is None else weight
    return Confusion(
        true_fire=float(weights[label & called].sum()),
        false_fire=float(weights[~label & called].sum()),
        missed_fire=float(weights[label & ~called].sum()),
        true_quiet=float(weights[~label & ~called].sum()),
    )


def best_threshold(label: Booleans, probability: Floats, weight: Floats | None = None) -> float:
    """The probability from which on to call fire so that F1 is greatest.

    Of equally good thresholds the middle of the widest gap between two probabilities, which is furthest from both
    classes; within 0.01..0.99, so that a reading can always fall on either side. 0.5 where there is no fire.
    """
    if not label.any():
        return 0.5
    weights = np.ones(len(label)) if weight is None else weight
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    caught = np.cumsum(np.where(label[order], weights[order], 0.0))
    called = np.cumsum(weights[order])
    f1 = 2 * caught / (called + weights[label].sum())
    # A threshold lies between two different probabilities: inside a run of equal ones it cannot cut.
    below = np.append(ranked[1:], 0.0)
    usable = ranked > below
    if not usable.any():
        return 0.5
    best = f1[usable].max()
    places = np.flatnonzero(usable & (f1 >= best - 1e-12))
    widest = places[np.argmax(ranked[places] - below[places])]
    return float(np.clip((ranked[widest] + below[widest]) / 2, 0.01, 0.99))


#: Bins of the calibration, by probability, and points of a curve that is drawn.
CALIBRATION_BINS = 10
CURVE_POINTS = 120


def curves(label: Booleans, probability: Floats, weight: Floats) -> dict[str, Any]:
    """ROC, precision and recall, calibration and Brier score of held-out rows; all arrays ``[n]``.

    Returns:
        ``roc``: (false alarm share, recall), ``pr``: (recall, precision), each from the highest threshold down;
        ``roc_area``, ``pr_area``: the area below (trapezia; step function, which is the average precision);
        ``calibration``: of each bin that is not empty the mean probability, the share that burns and its weight;
        ``brier``: weighted mean of (probability - label) squared (Brier 1950).
    """
    order = np.argsort(-probability, kind="stable")
    ranked, fire, weights = probability[order], label[order], weight[order]
    last = np.append(ranked[1:] < ranked[:-1], True) if len(ranked) else np.empty(0, dtype=np.bool_)
    caught, wrong = np.cumsum(weights * fire)[last], np.cumsum(weights * ~fire)[last]
    fires, quiet = float(weights[fire].sum()), float(weights[~fire].sum())
    recall = caught / fires if fires else np.zeros_like(caught)
    false_share = wrong / quiet if quiet else np.zeros_like(wrong)
    precision = caught / np.maximum(caught + wrong, 1e-12)
    bins = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    mass = np.bincount(bins, weights=weight, minlength=CALIBRATION_BINS)
    said = np.bincount(bins, weights=weight * probability, minlength=CALIBRATION_BINS)
    burnt = np.bincount(bins, weights=weight * label, minlength=CALIBRATION_BINS)
    filled = np.flatnonzero(mass)
    shown = np.unique(np.linspace(0, len(recall) - 1, min(CURVE_POINTS, len(recall))).astype(np.int64))
    # Half of the points by rank and half by what is caught: nearly all of the curve lies in the first few rows.
    by_recall = np.searchsorted(recall, np.linspace(0.0, 1.0, CURVE_POINTS))
    shown = np.unique(np.concatenate([shown, np.minimum(by_recall, len(recall) - 1)]))
    return {
        "roc": [(float(false_share[place]), float(recall[place])) for place in shown],
        "pr": [(float(recall[place]), float(precision[place])) for place in shown],
        "roc_area": round(float(np.trapezoid(np.append(0.0, recall), np.append(0.0, false_share))), 6),
        "pr_area": round(float((np.diff(recall, prepend=0.0) * precision).sum()), 6),
        "calibration": [
            (float(said[place] / mass[place]), float(burnt[place] / mass[place]), float(mass[place]))
            for place in filled
        ],
        "brier": round(float((weight * (probability - label) ** 2).sum() / weight.sum()), 6),
    }


def group_folds(groups: Sequence[str], label: Booleans, folds: int, seed: int) -> Integers:
    """Which fold each row is held out in, int64 ``[n]``; all rows of a group share one.

    Groups with fire and groups without are dealt out separately, largest first, each to the fold that has least so
    far, so that every fold has both classes where there are enough groups. The seed only breaks ties.

    Raises:
        ValueError: for fewer groups than two; with fewer groups than ``folds``, each group is a fold.
    """
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} group(s): grouped validation needs at least two")
    folds = min(folds, len(names))
    fires = np.bincount(index, weights=label, minlength=len(names))
    sizes = np.bincount(index, minlength=len(names))
    shuffled = np.random.default_rng(seed).permutation(len(names))
    fold_of = np.empty(len(names), dtype=np.int64)
    load_fire, load_all = np.zeros(folds), np.zeros(folds)
    for place in sorted(shuffled, key=lambda number: (-fires[number], -sizes[number])):
        least = np.lexsort((load_all, load_fire))[0] if fires[place] else np.argmin(load_all)
        fold_of[place] = least
        load_fire[least] += fires[place]
        load_all[least] += sizes[place]
    return fold_of[index]


def random_folds(rows: int, folds: int, seed: int) -> Integers:
    """Folds drawn by row, as is often published; only for the figure that shows how much it flatters."""
    return np.random.default_rng(seed).permutation(rows) % folds


def in_holdout(group: str) -> bool:
    """Whether no version may ever train on this group; depends on its name alone, so that all versions agree."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) % HOLDOUT_EVERY == 0


def parity(expected: Floats, exported: Floats, rows_with_nan: int) -> Parity:
    """How far the exported model's probabilities are from the trained one's; both ``[n]``."""
    difference = np.abs(expected - exported)
    broken = ~np.isfinite(difference)
    return Parity(
        rows=len(difference),
        rows_with_nan=rows_with_nan,
        largest_difference=float("inf") if broken.any() else float(difference.max(initial=0.0)),
        beyond_tolerance=int((broken | (difference > PARITY_TOLERANCE)).sum()),
    )


def episodes(
    episode: Sequence[str | None], kind: Sequence[str | None], label: Booleans, called: Booleans, seconds: Floats
) -> dict[str, Any]:
    """What happened to each fire and each nuisance, beside the figures per reading.

    Args:
        episode: ``[n]``, which fire or nuisance a reading belongs to, ``None`` for quiet air.
        kind: ``[n]``, "fire" or "nuisance".
        label: ``[n]``, whether the reading is truly of a fire.
        called: ``[n]``, whether the model calls it fire.
        seconds: ``[n]``, event time.

    Returns:
        Fires seen (called at least once while they burn) of all, median seconds to the first call, nuisances
        mistaken for fire (at least one reading called) of all.
    """
    names = np.asarray([name or "" for name in episode], dtype=str)
    kinds = np.asarray([name or "" for name in kind], dtype=str)
    delays: list[float] = []
    fires = mistaken = nuisances = 0
    for name in np.unique(names[names != ""]):
        rows = names == name
        if (kinds[rows] == "fire").any():
            burning = rows & label
            if not burning.any():
                continue
            fires += 1
            hits = seconds[burning & called]
            if len(hits):
                delays.append(float(hits.min() - seconds[burning].min()))
        else:
            nuisances += 1
            mistaken += bool((called & rows).any())
    return {
        "fires": fires,
        "fires_seen": len(delays),
        "median_seconds_to_first_call": float(np.median(delays)) if delays else None,
        "nuisances": nuisances,
        "nuisances_mistaken": mistaken,
    }
