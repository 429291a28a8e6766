"""The page of a version: what a person reads before a model is let loose on fires."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smoke_platform.adapters import evaluation_page
from smoke_platform.domain import alarm_evaluation, evaluation
from smoke_platform.domain.alarm_outcomes import AlarmOutcomes, EpisodeOutcome
from smoke_platform.settings import Settings


def manifest() -> dict[str, Any]:
    """Of a model that missed one of three fires and took a <toast> for one."""
    found = AlarmOutcomes(
        (
            EpisodeOutcome("1", "fire", "wood", "a", True, 12.0),
            EpisodeOutcome("2", "fire", "wood", "a", True, 34.0),
            EpisodeOutcome("3", "fire", "alcohol", "b", False),
            EpisodeOutcome("4", "nuisance", "<toast>", "b", True),
        ),
        2,
        1.5,
    )
    alarms = alarm_evaluation.summary(found)
    counts = evaluation.confusion(np.array([True, False]), np.array([True, True])).as_dict()
    return {
        "sha256": "ab",
        "algorithm": "random_forest",
        "threshold": 0.25,
        "created_at": "2024-05-01T02:03:04Z",
        "trained_on": {"statement": "Simulated only."},
        "validation": {
            "kind": "4 folds",
            "grouped": counts,
            "grouped_at_threshold": counts,
            "random_split": counts,
            "holdout": {**counts, "single_readings": counts, "alarms": {"model": alarms, "rules": alarms}},
            "alarms": alarms,
            "threshold": {"within_budget": None, "without_miss": 0.3},
            "importances": {"gas": 0.1, "CO": -0.01},
            "compared": {"a-0": {"f1": 0.9, "accuracy": 0.9, "fit_seconds": 1.0}},
        },
    }


def test_the_page_says_what_was_missed_and_what_was_alarmed_for_nothing() -> None:
    """Whoever decides about a model must not have to look for its failures."""
    curves = evaluation.curves(np.array([True, False, True]), np.array([0.9, 0.4, 0.3]), np.ones(3))
    text = evaluation_page.render(3, manifest(), curves)
    assert "1 of 3 fires missed, 3 false alarms" in text
    assert "Simulated only." in text
    assert "none is within the budget" in text
    assert "&lt;toast&gt;" in text
    assert re.search(r"alcohol</td><td>1</td><td>1</td><td>-</td>", text), "a missed fire has no delay"
    for figure in ("ROC", "Precision and recall", "Calibration"):
        assert f"<title>{figure}</title>" in text


def test_a_version_without_replayed_alarms_has_a_page_too(
    settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    """Recordings of real devices do not tell their episodes; training on them must not fail for want of a table."""
    lacking = manifest()
    for name in ("alarms", "threshold", "importances"):
        del lacking["validation"][name]
    lacking["validation"]["holdout"] = None
    settings = settings_for(tmp_path)
    assert evaluation_page.find(settings, 12) is None
    told = evaluation_page.write(settings, 12, lacking, {})
    assert evaluation_page.find(settings, 12) == told.page
    assert evaluation_page.find(settings, 2) is None
    assert "F1 0.6667 per reading" in told.page.read_text("utf-8")


@pytest.mark.parametrize("name", ["alarms", "holdout"])
def test_the_page_needs_no_other_server(name: str) -> None:
    """A page that loads something from elsewhere tells others who looks at it, and is empty without a network."""
    assert manifest()["validation"][name]
    assert not re.search(r"<script|src=|href=|url\(", evaluation_page.render(1, manifest(), {}))
