"""Model performance: figures against scikit-learn, and the health score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from smoke_platform.domain import performance
from smoke_platform.domain.performance import Probe

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.floats(0.05, 0.95))
def test_figures_agree_with_scikit_learn(rows: list[tuple[float, bool]], threshold: float) -> None:
    """Or an operator compares these figures with training's and they mean something else."""
    probability = np.array([row[0] for row in rows])
    truth = np.array([row[1] for row in rows])
    found = performance.figures(probability, truth, threshold)
    called = probability >= threshold
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, called))
    if truth.any():
        assert found.recall == pytest.approx(metrics.recall_score(truth, called))
        assert found.f1 == pytest.approx(metrics.f1_score(truth, called, zero_division=0))
    else:
        assert found.recall is None
        assert found.f1 is None
    if called.any():
        assert found.precision == pytest.approx(metrics.precision_score(truth, called))
    if not truth.all():
        assert found.false_alarm_rate == pytest.approx(np.mean(called[~truth]))
    if truth.any() and not truth.all():
        assert found.detection == pytest.approx(metrics.balanced_accuracy_score(truth, called))


def test_each_source_has_its_own_figures() -> None:
    """Or success on simulated fires is taken for success on recorded ones."""
    probability = np.array([0.9, 0.1, 0.1, 0.1])
    truth = np.array([True, False, True, True])
    found = performance.figures_by_source(probability, truth, ["simulator", "simulator", "csv", "csv"], 0.5)
    assert (found["simulator"].accuracy, found["csv"].accuracy) == (1.0, 0.0)


def test_each_row_is_judged_by_the_threshold_of_its_own_model() -> None:
    """Or a score that was an alarm under yesterday's model counts as none under today's."""
    probability, truth = np.array([0.6, 0.6]), np.array([True, False])
    lines = np.array([0.5, 0.7])
    assert performance.figures(probability, truth, lines).accuracy == 1.0
    found = performance.figures_by_source(probability, truth, ["a", "b"], lines)
    assert (found["a"].accuracy, found["b"].accuracy) == (1.0, 1.0)


def test_latency_is_of_all_rows() -> None:
    """Or the slowest scores, those that matter, leave no trace."""
    found = performance.latency(np.arange(101, dtype=float))
    assert found is not None
    assert (found.rows, found.median_s, found.p95_s, found.p99_s) == (101, 50.0, 95.0, 99.0)
    assert performance.latency(np.empty(0)) is None


def test_figures_of_nothing_are_refused() -> None:
    """Or a division by zero becomes an accuracy."""
    with pytest.raises(ValueError, match="0"):
        performance.figures(np.array([]), np.array([], dtype=bool), 0.5)


def _perfect() -> performance.Figures:
    return performance.figures(np.array([1.0, 0.0]), np.array([True, False]), 0.5)


def test_health_follows_its_formula() -> None:
    """Or the documented formula and the number shown differ."""
    quick = [Probe("/health", 0.05), Probe("/predict/sample", 0.05)]
    assert performance.health(_perfect(), quick).score == pytest.approx(100.0)
    slow = [Probe("/health", 5.0)]
    assert performance.health(_perfect(), slow).score == pytest.approx(100 * 0.70 / 0.85)
    half = [Probe("/health", 0.05), Probe("/health", None, "refused")]
    assert performance.health(_perfect(), half).score == pytest.approx(100 * 0.80 / 0.85)
    wrong = performance.figures(np.array([0.0, 1.0]), np.array([True, False]), 0.5)
    assert performance.health(wrong, quick).score == pytest.approx(100 * 0.35 / 0.85)
    assert performance.health(_perfect(), quick, caught=0.0).score == pytest.approx(85.0)
    assert performance.health(_perfect(), quick, caught=1.0, scoring_seconds=5.0).score == pytest.approx(85.0)


def test_what_was_not_measured_is_named_and_leaves_its_weight() -> None:
    """Or an API that is down counts as a quick one, or a model without truth as a good one."""
    down = performance.health(_perfect(), [Probe("/health", None, "refused")])
    assert down.unmeasured == ("alarms", "responsiveness")
    assert down.score == pytest.approx(100 * (0.50 + 0.10) / 0.70)
    blind = performance.health(None, [Probe("/health", 0.05)])
    assert blind.score is None
    assert blind.unmeasured == ("detection", "alarms", "confidence")
