"""Figures, thresholds and folds against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.domain import evaluation


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities (with ties) and weights."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 40))
    label = rng.random(count) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    probability = np.round(0.02 + 0.96 * rng.random(count), draw(st.integers(1, 3)))
    return label, probability, rng.integers(1, 5, count).astype(float)


@given(scored())
@settings(deadline=None)
def test_figures_are_those_of_counting_one_by_one(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """The gate rests on these figures; a weighted row must count as the readings it stands for."""
    label, probability, weight = case
    called = probability >= 0.5
    repeated = [
        (bool(fire), bool(call))
        for fire, call, times in zip(label, called, weight, strict=True)
        for _ in range(int(times))
    ]
    counts = evaluation.confusion(label, called, weight)
    right = sum(fire == call for fire, call in repeated)
    hits = sum(fire and call for fire, call in repeated)
    assert counts.accuracy == pytest.approx(right / len(repeated))
    fires, calls = sum(fire for fire, _ in repeated), sum(call for _, call in repeated)
    assert counts.f1 == pytest.approx(2 * hits / (fires + calls) if fires + calls else 0.0)
    assert counts.recall == pytest.approx(hits / fires if fires else 0.0)
    assert counts.precision == pytest.approx(hits / calls if calls else 0.0)


@given(scored())
@settings(max_examples=60, deadline=None)
def test_no_threshold_does_better_than_the_chosen_one(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """A threshold off its optimum misses fires or cries wolf for nothing."""
    label, probability, weight = case
    chosen = evaluation.best_threshold(label, probability, weight)
    assert 0.01 <= chosen <= 0.99
    if not label.any():
        return
    best = max(
        evaluation.confusion(label, probability >= threshold, weight).f1
        for threshold in np.unique(np.append(probability.clip(0.01, 0.99), (0.01, 0.99)))
    )
    assert evaluation.confusion(label, probability >= chosen, weight).f1 >= best - 1e-9


@given(st.integers(2, 30), st.integers(2, 6), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_group_is_never_on_both_sides(groups: int, folds: int, seed: int) -> None:
    """One device in training and validation makes the validation a fantasy."""
    rng = np.random.default_rng(seed)
    names = [f"d{number}" for number in rng.integers(0, groups, 300)]
    names += ["d0", "d1"]
    label = rng.random(len(names)) < 0.3
    fold = evaluation.group_folds(names, label, folds, seed)
    assert (fold == evaluation.group_folds(names, label, folds, seed)).all()
    for name in set(names):
        assert len(set(fold[np.array(names) == name])) == 1
    assert set(fold) == set(range(min(folds, len(set(names)))))


def test_every_fold_has_fires_where_there_are_enough() -> None:
    """A fold without fire says nothing about missed fires."""
    names = [f"d{number:02}" for number in range(20) for _ in range(50)]
    label = np.array([number < 5 and reading > 25 for number in range(20) for reading in range(50)])
    fold = evaluation.group_folds(names, label, 5, seed=1)
    assert all(label[fold == number].any() for number in range(5))


def test_one_group_is_refused() -> None:
    """With one recording there is no honest validation, and the error must say so."""
    with pytest.raises(ValueError, match="at least two"):
        evaluation.group_folds(["a"] * 5, np.zeros(5, dtype=bool), 5, 1)


def test_parity_counts_what_is_off_and_what_is_no_number() -> None:
    """A NaN from the exported model must not slip through as 'no difference'."""
    found = evaluation.parity(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2 + 2e-6, np.nan]), rows_with_nan=1)
    assert (found.rows, found.beyond_tolerance, found.largest_difference) == (3, 2, float("inf"))


def test_episodes_are_told_apart_from_readings() -> None:
    """A model may be right on most readings and still sleep through a whole fire."""
    episode = ["f1", "f1", "f1", "f2", "f2", "n1", "n1", None]
    kind = ["fire"] * 5 + ["nuisance"] * 2 + [None]
    label = np.array([False, True, True, True, True, False, False, False])
    called = np.array([True, False, True, False, False, False, True, True])
    found = evaluation.episodes(episode, kind, label, called, np.arange(8.0))
    assert found == {
        "fires": 2,
        "fires_seen": 1,
        "median_seconds_to_first_call": 1.0,
        "nuisances": 1,
        "nuisances_mistaken": 1,
    }


def test_the_holdout_is_a_fifth_and_always_the_same() -> None:
    """Versions can only be compared on groups that none of them was trained on."""
    held = [evaluation.in_holdout(f"device-{number}") for number in range(5_000)]
    assert 0.17 < np.mean(held) < 0.23
    assert held[:50] == [evaluation.in_holdout(f"device-{number}") for number in range(50)]


@given(scored())
@settings(max_examples=60, deadline=None)
def test_curves_are_those_of_trying_every_threshold(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """A curve that is drawn wrong makes a model look better than it is."""
    label, probability, weight = case
    found = evaluation.curves(label, probability, weight)
    assert found["brier"] == pytest.approx(np.average((probability - label) ** 2, weights=weight), abs=1e-6)
    assert sum(mass for _, _, mass in found["calibration"]) == pytest.approx(weight.sum())
    burnt = sum(share * mass for _, share, mass in found["calibration"])
    assert burnt == pytest.approx(weight[label].sum())
    if not label.any() or label.all():
        return
    counts = [evaluation.confusion(label, probability >= threshold, weight) for threshold in np.unique(probability)]
    expected = {(round(one.recall, 9), round(one.precision, 9)) for one in counts}
    assert {(round(x, 9), round(y, 9)) for x, y in found["pr"]} == expected
    # Probability that a burning reading has a greater score than a quiet one, ties counting half.
    fire, quiet = probability[label], probability[~label]
    above = (fire[:, None] > quiet) + 0.5 * (fire[:, None] == quiet)
    pairs = weight[label][:, None] * weight[~label]
    assert found["roc_area"] == pytest.approx((above * pairs).sum() / pairs.sum(), abs=1e-5)
