"""The seeded kills of the alarms' proof, a few of them: detector, broker, and a replica that others stand in for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smoke_platform.settings import Settings
from smoke_platform.verification import alarm_kills
from smoke_platform.verification.alarm_kills import KillPlan


@pytest.mark.parametrize(
    "plan",
    [
        KillPlan(seed=11, kills=2, replicas=1, victims=("detector", "broker")),
        KillPlan(seed=12, kills=1, replicas=2, victims=("absent",)),
    ],
    ids=["restarted", "taken-over"],
)
def test_a_fire_during_a_kill_is_raised_once(
    plan: KillPlan, tmp_path: Path, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fire would be missed, or raised twice, because a process died at the wrong moment."""
    # How soon is the long proof's matter: here other tests have the processors.
    monkeypatch.setattr(alarm_kills, "AFTER_RESTART_S", 60.0)
    monkeypatch.setattr(alarm_kills, "AFTER_TAKE_OVER_S", 60.0)
    findings = alarm_kills.run(plan, tmp_path / "proof", settings_for(tmp_path), lambda _text: None)
    assert findings.faults == []
    assert len(findings.kills) == plan.kills
    assert findings.fires == plan.kills * alarm_kills.FIRES_A_KILL
    assert any(kill.due_after_kill for kill in findings.kills), "every fire was raised before its kill"
