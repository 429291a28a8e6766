"""The seeded kills of the alarms' proof, one of each kind: a replica, one that others stand in for, the broker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smoke_platform.domain.alarms import AlarmRecord, Event, Kind, State, alarm_id
from smoke_platform.domain.offsets import MessageId
from smoke_platform.settings import Settings
from smoke_platform.verification import alarm_kills
from smoke_platform.verification.alarm_kills import KillPlan

PLAN = KillPlan(seed=11, kills=3, replicas=2, victims=("detector", "absent", "broker"))


def test_a_fire_during_a_kill_is_raised_once(
    tmp_path: Path, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fire would be missed, or raised twice, because a process died at the wrong moment."""
    # How soon is the long proof's matter: here other tests have the processors.
    monkeypatch.setattr(alarm_kills, "AFTER_RESTART_S", 120.0)
    monkeypatch.setattr(alarm_kills, "AFTER_TAKE_OVER_S", 120.0)
    monkeypatch.setattr(alarm_kills, "MISSED_AFTER_S", 120.0)
    findings = alarm_kills.run(PLAN, tmp_path / "proof", settings_for(tmp_path), lambda _text: None)
    assert findings.faults == []
    assert len(findings.kills) == PLAN.kills
    assert findings.fires == PLAN.kills * alarm_kills.FIRES_A_KILL
    assert any(kill.due_after_kill for kill in findings.kills), "every fire was raised before its kill"


def raised(cause: int, *, event: Event = Event.RAISED, state: State = State.ACTIVE, position: int = 0) -> AlarmRecord:
    return AlarmRecord(
        device_id="d",
        kind=Kind.FIRE,
        alarm_id=alarm_id("d", Kind.FIRE, MessageId("t", 0, cause)),
        event=event,
        state=state,
        severity="critical",
        revision=1,
        topic_id="t",
        partition=0,
        cause=cause,
        position=position or cause,
        at=1.0,
    )


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([raised(7)], None),
        ([raised(7), raised(7)], None),
        ([], "missed"),
        ([raised(7), raised(9)], "2 alarms instead of one"),
        ([raised(7), raised(7, position=8)], "not as exact repetitions"),
        ([raised(9)], "an undisturbed run says"),
        ([raised(7), raised(7, event=Event.CLOSED, state=State.NORMAL, position=9)], "its newest record says normal"),
    ],
    ids=["right", "repeated", "missed", "doubled", "altered", "wrong cause", "closed"],
)
def test_the_judgement_sees_each_fault(records: list[AlarmRecord], fault: str | None) -> None:
    """A proof that overlooks a missed or doubled alarm proves nothing."""
    appended = [alarm_kills.Appended(record, 1.0) for record in records]
    found = alarm_kills.faults_of("d", appended, raised(7))
    assert bool(found) == (fault is not None)
    assert fault is None or any(fault in text for text in found), found
