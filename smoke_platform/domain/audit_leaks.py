"""Cheaters: tiny models of one column each, that ought not to be able to tell a fire, and how well they do.

Belongs here: the columns, the one-dimensional classifier, its two ways of validation and their chance levels, and which
scores are a finding. Does not: which recordings are copies of each other (``audit_copies``), models that are meant
(``adapters.trainer``).

The classifier cuts a column into at most ``MOST_INTERVALS`` intervals, as a decision tree with one feature does
(Breiman and others, Classification and Regression Trees, 1984: best first, Gini impurity), with both classes weighted
alike. Its score is balanced accuracy, the mean of the shares of fire and of quiet rows that it gets right, so that 0.5
is chance however rare fires are.

Values are counted into bins once; whatever is fitted and judged after that are counts, so that cross-validation costs a
pass over the rows and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.audit_findings import CheaterScore, Finding, named
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

#: Rows that cheaters are fitted to and judged on, a regular sample of all.
MOST_ROWS: Final = 200_000
#: Three intervals of time reproduce the label of the public recordings; eight can mark four fires, so that no clock can
#: learn by heart a set with enough of them.
MOST_INTERVALS: Final = 8
#: A value's place is known to a thousandth of the rows; finer would only resolve where exactly a label switches.
BINS: Final = 1024
#: Folds of either validation; fewer where there are fewer recordings.
FOLDS: Final = 5
#: An interval holds at least this share of all weight: less is a row learnt by heart.
LEAST_LEAF: Final = 0.002

#: A column without physics that tells nine of ten rows of either class is the label in disguise.
LEAK_RANDOM: Final = 0.9
#: ... and one that tells 0.7 of them in recordings it has never seen carries a habit that fires do not have. In clean
#: sets of two dozen fires each such columns came to 0.66 by chance, ...
LEAK_HELD_OUT: Final = 0.7
#: ... which is no more than 0.04 above what labels turned at random give.
LEAK_MARGIN: Final = 0.05
#: A sensor is called a recogniser where it tells 0.75 at random, ...
RECOGNISER_RANDOM: Final = 0.75
#: ... no more than 0.6 of recordings it has not seen, which is near chance, ...
RECOGNISER_HELD_OUT: Final = 0.6
#: ... and has lost at least 0.2 between the two.
RECOGNISER_LOSS: Final = 0.2
#: Times that labels are shuffled or turned; a score above all 19 has a chance of 1 in 20 by itself, and is asked only
#: of columns whose score is high already.
PERMUTATIONS: Final = 19
PERMUTATION_SEED: Final = 20_220_609

#: A room's pressure does not tell of a fire: doors, lifts and weather move it more (NFPA 72 knows no such detector).
NOT_PHYSICAL: Final = ("pressure_hpa",)
#: Names that a person knows the column by.
KNOWN_AS: Final[Mapping[str, str]] = {
    "event_time": "event_time (UTC)",
    "hour_of_day": "hour of day",
    "sequence": "sequence (CNT)",
    "row_index": "row index",
    "place": "place in the recording",
    "device_id": "device identity",
    "missing": "which sensors are missing",
    "source": "source",
}

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Column:
    """A column in bins.

    Attributes:
        codes: int64 ``[n]``, the bin of each row.
        ordered: whether bins lie in order, so that intervals of them mean something; else each is for itself.
    """

    name: str
    physical: bool
    codes: _Ints
    bins: int
    ordered: bool
    judge_held_out: bool


def scores(frame: pl.DataFrame, groups: Mapping[str, str]) -> list[CheaterScore]:
    """The score of each column, the best at random first.

    Args:
        frame: ``recording, device_id, event_time, fire_alarm, place`` and the sensors; optionally ``sequence``,
            ``row_index`` and ``source``. Each recording's rows one after the other, in order of time.
        groups: recording -> what is held out as one, so that a copy is not judged by its original.
    """
    frame = frame.gather_every(max(1, -(-frame.height // MOST_ROWS)))
    label = frame["fire_alarm"].to_numpy().astype(np.bool_)
    if frame.is_empty() or label.all() or not label.any():
        return []
    chance = np.random.default_rng(PERMUTATION_SEED)
    random = chance.integers(0, FOLDS, frame.height)
    held_out = _folds_of_groups(frame["recording"], groups)
    starts = np.flatnonzero(frame["recording"].rle_id().diff().fill_null(1).to_numpy() != 0)
    found = []
    for column in _columns(frame):
        score = CheaterScore(
            column=column.name,
            physical=column.physical,
            random=_validated(column, label, random),
            held_out=None if held_out is None or not column.judge_held_out else _validated(column, label, held_out),
        )
        found.append(_with_chance(score, column, label, random, held_out, starts, chance))
    return sorted(found, key=lambda score: -score.random)


def _with_chance(
    score: CheaterScore,
    column: _Column,
    label: _Flags,
    random: _Ints,
    held_out: _Ints | None,
    starts: _Ints,
    chance: np.random.Generator,
) -> CheaterScore:
    """The score with its chance levels, which are asked only where it is high enough to matter."""
    if score.random >= LEAK_RANDOM if not score.physical else _loses(score):
        most = max(_validated(column, chance.permutation(label), random) for _ in range(PERMUTATIONS))
        score = replace(score, shuffled=most)
    if held_out is not None and score.held_out is not None and not score.physical and score.held_out >= LEAK_HELD_OUT:
        most = max(_validated(column, _turned(label, starts, chance), held_out) for _ in range(PERMUTATIONS))
        score = replace(score, shifted=most)
    return score


def findings(found: Sequence[CheaterScore], rows: int) -> list[Finding]:
    """What of the scores is a finding.

    Args:
        rows: how many readings the scores stand for.
    """
    physical = [score for score in found if score.physical]
    best = max(physical, key=lambda score: score.random, default=None)
    told = [_leak(score, best, rows) for score in found if _leaks(score)]
    recognisers = [score for score in physical if _recognises(score)]
    if recognisers:
        told.append(_recogniser(recognisers, rows))
    return told


def _leaks(score: CheaterScore) -> bool:
    at_random = score.random >= LEAK_RANDOM and score.random > (score.shuffled or 0.0)
    unseen = (
        score.held_out is not None
        and score.held_out >= LEAK_HELD_OUT
        and score.held_out > (score.shifted or 0.0) + LEAK_MARGIN
    )
    return not score.physical and (at_random or unseen)


def _recognises(score: CheaterScore) -> bool:
    return _loses(score) and score.random > (score.shuffled or 0.0)


def _loses(score: CheaterScore) -> bool:
    return (
        score.held_out is not None
        and score.random >= RECOGNISER_RANDOM
        and score.held_out <= RECOGNISER_HELD_OUT
        and score.random - score.held_out >= RECOGNISER_LOSS
    )


def _leak(score: CheaterScore, best: CheaterScore | None, rows: int) -> Finding:
    name = KNOWN_AS.get(score.column, score.column)
    evidence: dict[str, object] = {"balanced_accuracy_random_split": score.random}
    if score.held_out is not None:
        evidence["recordings_held_out"] = score.held_out
    if score.shuffled is not None:
        evidence["labels_shuffled_at_most"] = score.shuffled
    if score.shifted is not None:
        evidence["labels_turned_at_most"] = score.shifted
    if best is not None:
        evidence["best_sensor"] = f"{best.column} {best.random:.3f}"
    right = max(score.random, score.held_out or 0.0)
    return Finding(
        "leaks",
        score.column,
        "blocking",
        f"{name} alone tells the label: at most {MOST_INTERVALS} intervals of it get {right:.1%} of fire and quiet "
        "rows right, and no fire moves it",
        evidence,
        f"A model that sees {name}, or anything that goes with it, recognises when and where a row was taken; its "
        "figures say nothing about fires.",
        rows=rows,
    )


def _recogniser(found: Sequence[CheaterScore], rows: int) -> Finding:
    worst = found[0]
    return Finding(
        "leaks",
        "recognised_recording",
        "blocking",
        f"{named([score.column for score in found])} {'tells' if len(found) == 1 else 'tell'} the label at random and "
        "lose it when whole recordings are held out",
        {
            score.column: f"{score.random:.3f} at random, {score.held_out:.3f} held out"
            for score in found
            if score.held_out is not None
        },
        f"A random split rewards recognising the recording: {worst.column} alone falls from {worst.random:.3f} to "
        f"{worst.held_out:.3f}. Figures of a random split on these data are worthless.",
        rows=rows,
    )


# -- columns -----------------------------------------------------------------------------------------------------


def _columns(frame: pl.DataFrame) -> list[_Column]:
    time = frame["event_time"]
    found = [
        _in_bins("event_time", time.dt.epoch("us").cast(pl.Float64)),
        _in_bins("hour_of_day", (time.dt.hour().cast(pl.Float64) + time.dt.minute() / 60.0)),
    ]
    sequence = frame["sequence"] if "sequence" in frame.columns else pl.Series([None] * frame.height, dtype=pl.Int64)
    same = bool((sequence == frame["place"]).fill_null(False).all())
    if sequence.null_count() < frame.height:
        found.append(_in_bins("sequence", sequence.cast(pl.Float64)))
    if not same:
        found.append(_in_bins("place", frame["place"].cast(pl.Float64)))
    if "row_index" in frame.columns:
        found.append(_in_bins("row_index", frame["row_index"].cast(pl.Float64)))
    found.append(_by_name("device_id", frame["device_id"], judge_held_out=False))
    missing = frame.select(
        pl.sum_horizontal(
            pl.col(name).is_null().cast(pl.Int64) * 2**place for place, name in enumerate(ALL_SENSOR_NAMES)
        ).cast(pl.String)
    ).to_series()
    found.append(_by_name("missing", missing, judge_held_out=True))
    if "source" in frame.columns:
        found.append(_by_name("source", frame["source"].fill_null(""), judge_held_out=True))
    found += [
        _in_bins(name, frame[name], physical=name not in NOT_PHYSICAL)
        for name in ALL_SENSOR_NAMES
        if frame[name].null_count() < frame.height
    ]
    return [column for column in found if column.bins > 1]


def _in_bins(name: str, values: pl.Series, *, physical: bool = False) -> _Column:
    """Bins of about equally many rows; null is one of its own, below all."""
    numbers = values.to_numpy().astype(np.float64)
    present = numbers[~np.isnan(numbers)]
    places = np.linspace(0, 1, BINS + 1)[1:-1]
    cuts: _Floats = np.unique(np.quantile(present, places, method="lower")) if len(present) else np.zeros(0)
    codes = np.searchsorted(cuts, numbers, side="left").astype(np.int64) + 1
    codes[np.isnan(numbers)] = 0
    return _Column(name, physical, codes, len(cuts) + 2, True, True)


def _by_name(name: str, values: pl.Series, *, judge_held_out: bool) -> _Column:
    codes = values.rank("dense").cast(pl.Int64).to_numpy() - 1
    return _Column(name, False, codes, int(codes.max()) + 1, False, judge_held_out)


def _folds_of_groups(recordings: pl.Series, groups: Mapping[str, str]) -> _Ints | None:
    """A fold for each row, the largest groups dealt first; ``None`` where there is nothing to hold out."""
    counts = recordings.value_counts().sort("count", recordings.name, descending=[True, False])
    size: dict[str, int] = {}
    for name, count in counts.iter_rows():
        group = groups.get(name, name)
        size[group] = size.get(group, 0) + count
    folds = min(FOLDS, len(size))
    if folds < 2:
        return None
    load = [0] * folds
    fold_of: dict[str, int] = {}
    for group in sorted(size, key=lambda name: (-size[name], name)):
        fold_of[group] = load.index(min(load))
        load[fold_of[group]] += size[group]
    names = recordings.unique().to_list()
    of_name = [fold_of[groups.get(name, name)] for name in names]
    return recordings.replace_strict(names, of_name, return_dtype=pl.Int64).to_numpy()


# -- the classifier ----------------------------------------------------------------------------------------------


def _validated(column: _Column, label: _Flags, folds: _Ints) -> float:
    """Balanced accuracy over the rows of all folds, each judged by what was fitted to the others."""
    count = int(folds.max()) + 1
    places = (folds * column.bins + column.codes) * 2 + label
    counts = np.bincount(places, minlength=count * column.bins * 2).reshape(count, column.bins, 2).astype(np.float64)
    total = counts.sum(axis=0)
    right = np.zeros(2)
    for held in counts:
        fire = _fitted(total - held, column.ordered)
        right += (held[~fire, 0].sum(), held[fire, 1].sum())
    return float(np.mean(right / total.sum(axis=0)))


def _fitted(counts: _Floats, ordered: bool) -> _Flags:
    """For each bin whether it is called fire. ``counts``: quiet and fire rows, ``[bins, 2]``."""
    sums = counts.sum(axis=0)
    if not sums.all():
        return np.full(len(counts), bool(sums[1] > 0))
    weights = counts / sums
    if not ordered:
        return np.asarray(weights[:, 1] > weights[:, 0])
    called = np.zeros(len(counts), dtype=np.bool_)
    running = np.concatenate((np.zeros((1, 2)), np.cumsum(weights, axis=0)))
    leaves = [(0, len(counts))]
    splits = {leaves[0]: _best_cut(running, *leaves[0])}
    while len(leaves) < MOST_INTERVALS:
        leaf = max(leaves, key=lambda one: splits[one][0])
        gain, cut = splits[leaf]
        if gain <= 1e-12:
            break
        leaves.remove(leaf)
        for part in ((leaf[0], cut), (cut, leaf[1])):
            leaves.append(part)
            splits[part] = _best_cut(running, *part)
    for begin, end in leaves:
        quiet, fire = running[end] - running[begin]
        called[begin:end] = fire > quiet
    return called


def _best_cut(running: _Floats, begin: int, end: int) -> tuple[float, int]:
    """(how much impurity the best cut takes away, the first bin after it)."""
    if end - begin < 2:
        return 0.0, end
    left = running[begin + 1 : end] - running[begin]
    right = running[end] - running[begin + 1 : end]
    gains = _impurity((running[end] - running[begin])[None, :])[0] - _impurity(left) - _impurity(right)
    small = np.minimum(left.sum(axis=1), right.sum(axis=1)) < 2 * LEAST_LEAF
    gains[small] = 0.0
    place = int(np.argmax(gains))
    return float(gains[place]), begin + 1 + place


def _impurity(weights: _Floats) -> _Floats:
    """Gini impurity times weight: 2 q f / (q + f)."""
    whole = weights.sum(axis=1)
    return np.asarray(2 * weights[:, 0] * weights[:, 1] / np.where(whole > 0, whole, 1.0))


def _turned(label: _Flags, starts: _Ints, chance: np.random.Generator) -> _Flags:
    """The labels of each recording, turned by a chance amount: as many fires, as long, at other times."""
    ends = np.append(starts[1:], len(label))
    turned = label.copy()
    for begin, end in zip(starts, ends, strict=True):
        turned[begin:end] = np.roll(label[begin:end], int(chance.integers(0, end - begin)))
    return turned
