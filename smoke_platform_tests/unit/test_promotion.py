"""The gate and the history of champions, as pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.domain.promotion import (
    CHAMPION_TOLERANCE,
    PARITY_LARGEST_DIFFERENCE,
    PARITY_LARGEST_SHARE,
    Figures,
    Limits,
    Parity,
    champions_before,
    judge,
)

LIMITS = Limits(min_accuracy=0.80, min_f1=0.75)
GOOD = Figures(
    accuracy=0.95,
    f1=0.90,
    parity=Parity(rows=100_000, rows_with_nan=30_000, largest_difference=2e-7, beyond_tolerance=0),
    latency_us=12.0,
    feature_version="1-a",
    platform_feature_version="1-a",
    holdout_f1=0.91,
    champion_f1=0.90,
)
share = st.floats(0, 1)
figures = st.builds(
    Figures,
    accuracy=share,
    f1=share,
    parity=st.builds(
        Parity,
        rows=st.integers(0, 300_000),
        rows_with_nan=st.integers(0, 1_000),
        largest_difference=st.floats(0, 1),
        beyond_tolerance=st.integers(0, 100),
    ),
    latency_us=st.floats(0, 5_000),
    feature_version=st.sampled_from(["1-a", "1-b"]),
    platform_feature_version=st.just("1-a"),
    holdout_f1=st.none() | share,
    champion_f1=st.none() | share,
)


def test_a_good_candidate_passes() -> None:
    """A gate that nothing passes leaves the platform without a model."""
    assert judge(GOOD, LIMITS).passed
    assert judge(replace(GOOD, champion_f1=None, holdout_f1=None), LIMITS).passed


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"accuracy": 0.79}, "accuracy"),
        ({"f1": 0.74}, "f1"),
        ({"f1": float("nan")}, "f1"),
        ({"parity": replace(GOOD.parity, rows=99_999)}, "parity_rows"),
        ({"parity": replace(GOOD.parity, rows_with_nan=0)}, "parity_nan_rows"),
        ({"parity": replace(GOOD.parity, beyond_tolerance=11)}, "parity_share"),
        ({"parity": replace(GOOD.parity, largest_difference=0.11)}, "parity_largest"),
        ({"parity": replace(GOOD.parity, largest_difference=float("inf"))}, "parity_largest"),
        ({"latency_us": 1_001.0}, "latency"),
        ({"feature_version": "1-b"}, "features"),
        ({"holdout_f1": 0.80}, "champion"),
    ],
)
def test_each_condition_refuses_alone_and_says_so(changed: dict[str, object], name: str) -> None:
    """Whoever is refused must learn which condition failed and by how much."""
    verdict = judge(replace(GOOD, **changed), LIMITS)  # type: ignore[arg-type]  # the names are those of the fields
    assert not verdict.passed
    assert [condition.name for condition in verdict.conditions if not condition.passed] == [name]
    assert len(verdict.reasons) == 1
    assert "required" in verdict.reasons[0] or "allowed" in verdict.reasons[0]


def test_a_refusal_says_by_how_much() -> None:
    """An operator decides on a retraining by how far the candidate is off."""
    (reason,) = judge(replace(GOOD, f1=0.70), LIMITS).reasons
    assert reason == "grouped F1 of the fire class: 0.7, at least 0.75 is required (0.05 off)"


@settings(deadline=None)
@given(figures)
def test_gate_agrees_with_its_plain_statement(candidate: Figures) -> None:
    """The gate passes exactly what the documents promise, whatever the combination of figures."""
    mine = candidate.f1 if candidate.holdout_f1 is None else candidate.holdout_f1
    expected = (
        candidate.accuracy >= 0.80
        and candidate.f1 >= 0.75
        and candidate.parity.rows >= 100_000
        and candidate.parity.rows_with_nan > 0
        and candidate.parity.beyond_tolerance <= PARITY_LARGEST_SHARE * candidate.parity.rows
        and candidate.parity.largest_difference <= PARITY_LARGEST_DIFFERENCE
        and candidate.latency_us <= 1_000
        and candidate.feature_version == "1-a"
        and (candidate.champion_f1 is None or mine >= candidate.champion_f1 - CHAMPION_TOLERANCE)
    )
    verdict = judge(candidate, LIMITS)
    assert verdict.passed == expected
    assert bool(verdict.reasons) == (not expected)
    assert all((condition.shortfall > 0) == (not condition.passed) for condition in verdict.conditions)


@settings(deadline=None)
@given(figures, st.floats(0, 1))
def test_a_better_candidate_is_never_refused_for_being_better(candidate: Figures, gain: float) -> None:
    """Improving a figure must not turn a pass into a refusal."""
    better = replace(
        candidate,
        accuracy=min(1.0, candidate.accuracy + gain),
        f1=min(1.0, candidate.f1 + gain),
        holdout_f1=None if candidate.holdout_f1 is None else min(1.0, candidate.holdout_f1 + gain),
        latency_us=candidate.latency_us * (1 - gain),
        parity=replace(candidate.parity, largest_difference=candidate.parity.largest_difference * (1 - gain)),
    )
    if judge(candidate, LIMITS).passed:
        assert judge(better, LIMITS).passed


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), max_size=20))
def test_rollbacks_walk_back_and_never_to_and_fro(history: list[int]) -> None:
    """Two rollbacks in a row must not end at the bad model again."""
    chain = champions_before(history)
    assert len(set(chain)) == len(chain)
    assert chain[-1:] == tuple(history[-1:])
    if len(chain) >= 2:
        assert champions_before([*history, chain[-2]]) == chain[:-1]
