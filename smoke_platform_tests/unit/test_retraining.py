"""The decision to train anew because of drift, alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from smoke_platform.orchestration.retraining import FoundDrift, TrainingRun, retraining_decision

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = timedelta(hours=24)
DRIFT = [FoundDrift("drift_within_limits", NOW - timedelta(hours=1), "3", "half of the features")]


def _run(hours_ago: float, *, finished: bool = True, for_drift: bool = False) -> TrainingRun:
    return TrainingRun(f"run-{hours_ago}", NOW - timedelta(hours=hours_ago), finished, for_drift)


def test_drift_asks_for_a_run() -> None:
    """Or a fleet of new sensors is judged by an old model for ever."""
    assert retraining_decision(DRIFT, "3", [], DAY, NOW) is None
    # What others have trained before does not stand in the way, not even this morning.
    assert retraining_decision(DRIFT, "3", [_run(10), _run(30, for_drift=True)], DAY, NOW) is None


@pytest.mark.parametrize(
    ("drift", "champion", "runs", "cooldown", "why"),
    [
        ([], "3", [], DAY, "no drift"),
        (DRIFT, None, [], DAY, "no champion"),
        (DRIFT, "4", [], DAY, "4 is served since"),
        (DRIFT, "3", [_run(2, finished=False)], DAY, "run run-2 is training"),
        (DRIFT, "3", [_run(0.5)], DAY, "after the drift was found"),
        (DRIFT, "3", [_run(23, for_drift=True)], DAY, "cooling down until 2026-03-02 13:00"),
        (DRIFT, "3", [], timedelta(0), "switched off"),
    ],
)
def test_each_reason_not_to_train_is_said(
    drift: list[FoundDrift], champion: str | None, runs: list[TrainingRun], cooldown: timedelta, why: str
) -> None:
    """Or the platform trains around the clock on one bad day, or an operator cannot tell why it doesn't."""
    answer = retraining_decision(drift, champion, runs, cooldown, NOW)
    assert answer is not None
    assert why in answer


def test_the_cool_down_ends() -> None:
    """Or drift is answered once and never again."""
    late = [_run(24, for_drift=True)]
    assert retraining_decision(DRIFT, "3", late, DAY, NOW) is None
    assert retraining_decision(DRIFT, "3", late, DAY, NOW - timedelta(seconds=1)) is not None
