"""The seeded kills of the alarms' proof, one of each kind: a replica, one that others stand in for, the broker."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from smoke_platform.adapters.kafka import ensure_topics
from smoke_platform.domain.alarms import AlarmRecord, Event, Kind, State, alarm_id
from smoke_platform.domain.offsets import MessageId
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings
from smoke_platform.verification import alarm_kills
from smoke_platform.verification.alarm_kills import KillPlan
from smoke_platform.verification.run import private_settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

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


def test_a_frozen_detector_loses_its_partitions_and_comes_back(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """It once ended on the snapshot of what it had lost; on a machine that freezes it nobody would have noticed."""
    settings = private_settings(tmp_path / "platform", settings_for(tmp_path))
    settings.home.mkdir()
    with ExitStack() as stack:
        broker = EmbeddedBroker(
            tmp_path / "kafka", settings.kafka_port, settings.kafka_controller_port, settings.cache_dir
        )
        broker.prepare()
        broker.start()
        stack.callback(broker.stop)
        ensure_topics(settings)
        replicas = [alarm_kills._Replica(settings, f"d{number}") for number in range(2)]
        for replica in replicas:
            stack.callback(replica.end)
            replica.start()
        alarm_kills._wait_until_shared(settings, replicas)
        frozen, other = replicas
        assert frozen._process is not None
        frozen._process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 120
        while len(other.partitions()) < settings.kafka_partitions:
            assert time.monotonic() < deadline, "the other one did not take over"
            time.sleep(0.1)
        frozen._process.send_signal(signal.SIGCONT)
        alarm_kills._wait_until_shared(settings, replicas)


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
