"""The life of one alarm as a pure state machine: what an observation, a command or time does to it.

Belongs here: the alarm of one (device, kind) as a value, the policy of each kind, the legal transitions, the three
functions that step an alarm and say so in records, the alarm as it is saved and put back. Does not: what makes an alarm
(``domain.rules``, ``domain.silence``), the messages (``domain.alarms``), clocks, Kafka, who is told.

Each function takes an alarm and gives the alarm after it with the records to write; the same arguments give the same
answer, so readings that are replayed lead to the same alarms with the same ids.

States and verbs are the union of three models: ANSI/ISA-18.2-2016 (unacknowledged, acknowledged, returned to normal
unacknowledged, latched, shelved, out of service), OPC UA part 9 (latched until a reset; a time-limited shelf), AWS IoT
Events (active, acknowledged, snoozed, disabled, latched). ThingsBoard adds what stays beside the state: severity,
acknowledgement and clearing are independent of one another, and comments belong to an alarm.

Two clocks are at work. On- and off-delays run on event time, as the device tells it, and never run backwards: an
observation older than the newest seen counts as that one. All that people wait for (snooze, shelf, repeats, automatic
closing) runs on ``at``, the clock of the broker's append times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import msgspec

from smoke_platform.domain.alarms import (
    LIVE,
    AlarmCommand,
    AlarmRecord,
    Event,
    Evidence,
    Kind,
    Severity,
    State,
    Verb,
    Verdict,
    alarm_id,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.offsets import MessageId

__all__ = [
    "POLICIES",
    "TRANSITIONS",
    "Alarm",
    "Escalation",
    "Observation",
    "Policy",
    "Subject",
    "obey",
    "observe",
    "pack",
    "pass_time",
    "restore",
    "unpack",
]

_NEVER: Final = math.inf
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0
_LOW, _MEDIUM, _HIGH, _CRITICAL = Severity

#: Command ids that an alarm remembers. A producer that sends a command again does so within seconds.
COMMANDS_REMEMBERED = 8


# -- policies --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Escalation:
    """An alarm that nobody acknowledges for ``after_s`` while its condition holds becomes ``to``."""

    after_s: float
    to: Severity


@dataclass(frozen=True, slots=True)
class Policy:
    """How alarms of one kind behave. Times in seconds.

    Attributes:
        on_delay_s: event time for which a condition must hold before it raises an alarm.
        off_delay_s: event time for which it must be gone before it counts as over.
        latching: whether an alarm stays after its condition is over until it is reset by hand.
        needs_acknowledgement: whether one that is over stays until somebody has seen it (of kinds that do not latch).
        auto_close_s: one that is over and was not acknowledged closes by itself after this time.
        repeats: severity -> pauses between the reminders of an alarm that is not acknowledged; none: no reminders.
        keeps_repeating: whether the last pause goes on for ever; otherwise the reminders end with it.
        escalations: severity -> what becomes of one that is not acknowledged.
        longest_snooze_s: severity -> longest snooze; none: it can't be snoozed.
        longest_shelf_s: longest shelf.
    """

    on_delay_s: float
    off_delay_s: float
    latching: bool
    needs_acknowledgement: bool
    auto_close_s: float
    repeats: Mapping[Severity, tuple[float, ...]]
    keeps_repeating: bool
    escalations: Mapping[Severity, Escalation]
    longest_snooze_s: Mapping[Severity, float]
    longest_shelf_s: float


def _all(seconds: float) -> Mapping[Severity, float]:
    return dict.fromkeys(Severity, seconds)


#: Sources. ISA-18.2 (clause 10, basic alarm design) and EEMUA 191: on- and off-delays and deadbands against chattering,
#: off-delays of the order of a minute; shelving only with a time limit; about one alarm in ten minutes is what an
#: operator can take, so only what needs somebody now is repeated, and ever more rarely. EN 54-2: a fire alarm stays
#: until it is reset by hand. The figures beyond these are choices of this project.
POLICIES: Final[Mapping[Kind, Policy]] = MappingProxyType(
    {
        Kind.FIRE: Policy(
            on_delay_s=0.0,  # the rules have their own persistence
            off_delay_s=60.0,
            latching=True,
            needs_acknowledgement=True,
            auto_close_s=_NEVER,
            repeats={
                _HIGH: (300.0, 600.0, 1800.0, 3600.0),
                _CRITICAL: (60.0, 60.0, 60.0, 60.0, 60.0, 300.0, 300.0, 300.0, 600.0, 1800.0, 3600.0),
            },
            keeps_repeating=True,  # a fire that nobody has seen must not fall silent
            escalations={_HIGH: Escalation(300.0, _CRITICAL)},
            longest_snooze_s={_LOW: _HOUR, _MEDIUM: _HOUR, _HIGH: 900.0, _CRITICAL: 300.0},
            longest_shelf_s=8 * _HOUR,  # one shift
        ),
        Kind.SENSOR_FAULT: Policy(
            on_delay_s=10.0,
            off_delay_s=300.0,
            latching=False,
            needs_acknowledgement=True,
            auto_close_s=_DAY,
            repeats={_HIGH: (_HOUR, 4 * _HOUR), _CRITICAL: (_HOUR, 4 * _HOUR)},
            keeps_repeating=False,
            escalations={_LOW: Escalation(_DAY, _MEDIUM)},
            longest_snooze_s=_all(_DAY),
            longest_shelf_s=7 * _DAY,
        ),
        Kind.OFFLINE: Policy(
            on_delay_s=0.0,  # a device is called silent only after two missed reports
            off_delay_s=60.0,
            latching=False,
            needs_acknowledgement=True,
            auto_close_s=_HOUR,
            repeats={_HIGH: (_HOUR, 4 * _HOUR), _CRITICAL: (_HOUR, 4 * _HOUR)},
            keeps_repeating=False,
            escalations={},
            longest_snooze_s=_all(_DAY),
            longest_shelf_s=30 * _DAY,
        ),
        Kind.DATA_QUALITY: Policy(
            # Data quality is an average over many messages, and one that is no reading has no time of its own on which
            # a delay could run.
            on_delay_s=0.0,
            off_delay_s=300.0,
            latching=False,
            needs_acknowledgement=False,
            auto_close_s=0.0,
            repeats={},
            keeps_repeating=False,
            escalations={_LOW: Escalation(_DAY, _MEDIUM)},
            longest_snooze_s=_all(_DAY),
            longest_shelf_s=30 * _DAY,
        ),
        Kind.PIPELINE: Policy(
            on_delay_s=0.0,
            off_delay_s=10.0,
            latching=False,
            needs_acknowledgement=True,
            auto_close_s=_HOUR,
            repeats={_HIGH: (300.0, 900.0, _HOUR), _CRITICAL: (300.0, 900.0, _HOUR)},
            keeps_repeating=False,
            escalations={},
            longest_snooze_s=_all(_HOUR),
            longest_shelf_s=_DAY,
        ),
    }
)


# -- what goes in and out --------------------------------------------------------------------------------


class Subject(msgspec.Struct, frozen=True):
    """Whose alarm it is: what a record says beside the alarm itself."""

    device_id: str
    kind: Kind
    topic_id: str
    partition: int
    site: str = ""
    room: str = ""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What was found about a condition at one moment.

    Attributes:
        event_time: the device's clock, epoch seconds.
        at: the broker's clock (append time), or the detector's where no message led to it; epoch seconds.
        offset: of the reading that it rests on; it becomes part of an alarm's id.
        level: 0 none, else a ``Severity``.
        hold: not asserted, but a limit for clearing is still exceeded (hysteresis).
        evidence: what led to ``level``.
        position: offset of the newest reading of the partition that has been taken. Negative: it is ``offset``, which
            is a reading being judged; such a one is ignored where the alarm knows it. What time itself led to (silence)
            says it, and is ignored only where the alarm knows something newer.
    """

    event_time: float
    at: float
    offset: int
    level: int
    hold: bool = False
    evidence: Evidence = Evidence()
    position: int = -1


class Alarm(msgspec.Struct, frozen=True, array_like=True):
    """What is known of the alarm of one (device, kind). ``Alarm()``: nothing yet.

    After an alarm is over its id, severity, peak, evidence and verdict stay until the next one, since a verdict often
    comes later.

    Attributes:
        severity: while the condition holds the worst that was asserted since it began: an alarm that went up and down
            with every reading would be acknowledged anew each time. 0 where there was none.
        peak: the worst since the alarm was raised.
        holds: whether the condition is taken to hold, the off-delay included; also followed while shelved or disabled.
        revision: of the latest record.
        position, command_offset: as in ``AlarmRecord``.
        cause: offset of the reading that raised it; -1 where there is none.
        until: end of a snooze or shelf; inf where there is none.
        repeat_at, escalate_at, close_at: when time itself does something next; inf where it does not.
        pending_since, pending_first: event time and offset at which a condition began that has not passed the on-delay;
            inf and -1 where there is none.
        gone_since: event time since which the condition has been gone; inf while it holds.
        newest: newest event time seen while a delay could run.
        trigger, trigger_time: offset and event time of the reading that asserted the condition last, as far as that
            matters: the raising, and each one while shelved or disabled.
        commands: ids of the latest commands.
    """

    state: State = State.NORMAL
    severity: int = 0
    peak: int = 0
    holds: bool = False
    acknowledged: bool = False
    revision: int = 0
    position: int = -1
    command_offset: int = -1
    alarm_id: str = ""
    cause: int = -1
    raised_event_time: float | None = None
    raised_at: float | None = None
    repeats: int = 0
    until: float = _NEVER
    repeat_at: float = _NEVER
    escalate_at: float = _NEVER
    close_at: float = _NEVER
    pending_since: float = _NEVER
    pending_first: int = -1
    gone_since: float = _NEVER
    newest: float = -_NEVER
    trigger: int = -1
    trigger_time: float = -_NEVER
    verdict: Verdict | None = None
    commands: tuple[str, ...] = ()
    evidence: Evidence = Evidence()

    @property
    def due_at(self) -> float:
        """Before this moment ``pass_time`` does nothing; inf: it never does by itself."""
        return min(self.until, self.repeat_at, self.escalate_at, self.close_at)

    @property
    def quiet(self) -> bool:
        """Whether neither an observation of level 0 without hold nor time changes anything."""
        return not self.holds and self.pending_since == _NEVER and self.due_at == _NEVER


Step = tuple[Alarm, tuple[AlarmRecord, ...]]
_NONE: tuple[AlarmRecord, ...] = ()
_LABELS = ("low", *(severity.label for severity in Severity))

#: Every legal (state, event, state). Nothing else can happen; the tests hold the machine and the document to it.
TRANSITIONS: Final[frozenset[tuple[State, Event, State]]] = frozenset(
    {
        (State.NORMAL, Event.RAISED, State.ACTIVE),
        # The same reading leads to the same alarm: it is back rather than raised twice.
        (State.NORMAL, Event.RETURNED, State.ACTIVE),
        (State.ACTIVE, Event.ESCALATED, State.ACTIVE),
        (State.ACTIVE, Event.REPEATED, State.ACTIVE),
        (State.ACTIVE, Event.ACKNOWLEDGED, State.ACKNOWLEDGED),
        (State.ACTIVE, Event.SNOOZED, State.SNOOZED),
        (State.ACTIVE, Event.LATCHED, State.LATCHED),
        (State.ACTIVE, Event.CLEARED, State.CLEARED),
        (State.ACTIVE, Event.CLOSED, State.NORMAL),
        (State.ACKNOWLEDGED, Event.ESCALATED, State.ACTIVE),
        (State.ACKNOWLEDGED, Event.SNOOZED, State.SNOOZED),
        (State.ACKNOWLEDGED, Event.LATCHED, State.LATCHED),
        (State.ACKNOWLEDGED, Event.CLOSED, State.NORMAL),
        (State.SNOOZED, Event.ESCALATED, State.ACTIVE),
        (State.SNOOZED, Event.SNOOZED, State.SNOOZED),
        (State.SNOOZED, Event.WOKEN, State.ACTIVE),
        (State.SNOOZED, Event.WOKEN, State.ACKNOWLEDGED),
        (State.SNOOZED, Event.ACKNOWLEDGED, State.ACKNOWLEDGED),
        (State.SNOOZED, Event.LATCHED, State.LATCHED),
        (State.SNOOZED, Event.CLEARED, State.CLEARED),
        (State.SNOOZED, Event.CLOSED, State.NORMAL),
        (State.CLEARED, Event.RETURNED, State.ACTIVE),
        (State.CLEARED, Event.ACKNOWLEDGED, State.CLEARED),
        (State.CLEARED, Event.RESET, State.NORMAL),
        (State.CLEARED, Event.CLOSED, State.NORMAL),
        (State.LATCHED, Event.RETURNED, State.ACTIVE),
        (State.LATCHED, Event.REPEATED, State.LATCHED),
        (State.LATCHED, Event.ACKNOWLEDGED, State.LATCHED),
        (State.LATCHED, Event.RESET, State.NORMAL),
        (State.SHELVED, Event.SHELVED, State.SHELVED),
        (State.SHELVED, Event.UNSHELVED, State.NORMAL),
        (State.SHELVED, Event.DISABLED, State.DISABLED),
        (State.DISABLED, Event.ENABLED, State.NORMAL),
        *((state, Event.SHELVED, State.SHELVED) for state in LIVE | {State.NORMAL}),
        *((state, Event.DISABLED, State.DISABLED) for state in LIVE | {State.NORMAL}),
        *((state, event, state) for state in State for event in (Event.VERDICT, Event.COMMENTED, Event.REFUSED)),
    }
)

_HOLDING = frozenset({State.ACTIVE, State.ACKNOWLEDGED, State.SNOOZED})
_ASIDE = frozenset({State.SHELVED, State.DISABLED})


# -- observations ----------------------------------------------------------------------------------------


def observe(alarm: Alarm, subject: Subject, observation: Observation, policy: Policy) -> Step:
    """The alarm after an observation.

    Returns:
        The alarm, the very same object where nothing changed, and the records that follow.
    """
    if observation.position < 0:
        if observation.offset <= alarm.position:
            return alarm, _NONE
    elif observation.position < alarm.position:
        return alarm, _NONE
    if observation.level:
        return _asserted(alarm, subject, observation, policy)
    if observation.hold:
        return _held(alarm, observation), _NONE
    return _gone(alarm, subject, observation, policy)


def _asserted(alarm: Alarm, subject: Subject, seen: Observation, policy: Policy) -> Step:
    now = max(seen.event_time, alarm.newest)
    if not alarm.holds:
        since = min(alarm.pending_since, now)
        first = seen.offset if alarm.pending_first < 0 else alarm.pending_first
        if now - since >= policy.on_delay_s:
            return _begun(alarm, subject, seen, policy, now, first)
        return msgspec.structs.replace(alarm, pending_since=since, pending_first=first, newest=now), _NONE
    if alarm.state in _ASIDE:
        worst = max(alarm.severity, seen.level)
        return msgspec.structs.replace(
            alarm,
            severity=worst,
            peak=max(alarm.peak, worst),
            gone_since=_NEVER,
            newest=now,
            trigger=seen.offset,
            trigger_time=seen.event_time,
            evidence=seen.evidence,
        ), _NONE
    if seen.level > alarm.severity:
        return _step(
            alarm,
            subject,
            Event.ESCALATED,
            seen.at,
            _place(seen),
            event_time=seen.event_time,
            state=State.ACTIVE,
            severity=seen.level,
            peak=max(alarm.peak, seen.level),
            acknowledged=False,
            repeats=0,
            gone_since=_NEVER,
            newest=now,
            evidence=_joined(alarm, seen),
            **_timers(policy, State.ACTIVE, seen.level, False, 0, seen.at),
        )
    if now == alarm.newest and alarm.gone_since == _NEVER:
        return alarm, _NONE
    return msgspec.structs.replace(alarm, gone_since=_NEVER, newest=now), _NONE


def _begun(alarm: Alarm, subject: Subject, seen: Observation, policy: Policy, now: float, first: int) -> Step:
    """The condition holds from here on."""
    evidence = seen.evidence
    if 0 <= first < evidence.first_offset:
        evidence = msgspec.structs.replace(evidence, first_offset=first)
    began = msgspec.structs.replace(
        alarm,
        holds=True,
        pending_since=_NEVER,
        pending_first=-1,
        gone_since=_NEVER,
        newest=now,
        trigger=seen.offset,
        trigger_time=seen.event_time,
        severity=seen.level,
        evidence=evidence,
    )
    if alarm.state in _ASIDE:
        return msgspec.structs.replace(began, peak=max(alarm.peak, seen.level)), _NONE
    if alarm.state is State.NORMAL:
        return _raised(began, subject, policy, seen.at, _place(seen))
    return _step(
        began,
        subject,
        Event.RETURNED,
        seen.at,
        _place(seen),
        event_time=seen.event_time,
        state=State.ACTIVE,
        peak=max(alarm.peak, seen.level),
        acknowledged=False,
        repeats=0,
        **_timers(policy, State.ACTIVE, seen.level, False, 0, seen.at),
    )


def _raised(alarm: Alarm, subject: Subject, policy: Policy, at: float, position: int) -> Step:
    """A new alarm of a condition that holds, or the last one again where the same reading led to it."""
    identity = alarm_id(
        subject.device_id, subject.kind, MessageId(subject.topic_id, subject.partition, max(alarm.trigger, -1))
    )
    timers = _timers(policy, State.ACTIVE, alarm.severity, False, 0, at)
    again = identity == alarm.alarm_id
    if again:
        return _step(
            alarm,
            subject,
            Event.RETURNED,
            at,
            position,
            event_time=alarm.trigger_time,
            state=State.ACTIVE,
            peak=max(alarm.peak, alarm.severity),
            acknowledged=False,
            repeats=0,
            **timers,
        )
    return _step(
        alarm,
        subject,
        Event.RAISED,
        at,
        position,
        event_time=alarm.trigger_time,
        state=State.ACTIVE,
        alarm_id=identity,
        cause=alarm.trigger,
        peak=alarm.severity,
        acknowledged=False,
        repeats=0,
        raised_event_time=alarm.trigger_time,
        raised_at=at,
        verdict=None,
        **timers,
    )


def _held(alarm: Alarm, seen: Observation) -> Alarm:
    """Neither asserted nor gone: what holds goes on, what has not begun does not begin by it."""
    if not alarm.holds and alarm.pending_since == _NEVER:
        return alarm
    now = max(seen.event_time, alarm.newest)
    if now == alarm.newest and alarm.gone_since == _NEVER:
        return alarm
    return msgspec.structs.replace(alarm, gone_since=_NEVER, newest=now)


def _gone(alarm: Alarm, subject: Subject, seen: Observation, policy: Policy) -> Step:
    if not alarm.holds:
        if alarm.pending_since == _NEVER:
            return alarm, _NONE
        return msgspec.structs.replace(alarm, pending_since=_NEVER, pending_first=-1, newest=_rest(alarm)), _NONE
    now = max(seen.event_time, alarm.newest)
    since = min(alarm.gone_since, now)
    if now - since < policy.off_delay_s:
        if since == alarm.gone_since and now == alarm.newest:
            return alarm, _NONE
        return msgspec.structs.replace(alarm, gone_since=since, newest=now), _NONE
    over = msgspec.structs.replace(alarm, holds=False, gone_since=_NEVER, newest=now)
    if alarm.state in _ASIDE:
        return msgspec.structs.replace(over, severity=0, newest=-_NEVER), _NONE
    if policy.latching:
        event, state = Event.LATCHED, State.LATCHED
    elif alarm.acknowledged or not policy.needs_acknowledgement:
        return _closed(over, subject, Event.CLOSED, seen.at, _place(seen), event_time=seen.event_time)
    else:
        event, state = Event.CLEARED, State.CLEARED
    return _step(
        over,
        subject,
        event,
        seen.at,
        _place(seen),
        event_time=seen.event_time,
        state=state,
        until=_NEVER,
        **_timers(policy, state, alarm.severity, alarm.acknowledged, alarm.repeats, seen.at),
    )


def _rest(alarm: Alarm) -> float:
    """Event time to remember where no delay runs: a live alarm's; without one a device's clock may be set anew."""
    return alarm.newest if alarm.state in LIVE else -_NEVER


def _joined(alarm: Alarm, seen: Observation) -> Evidence:
    """The evidence of a worse observation, beginning where the alarm's does."""
    first = alarm.evidence.first_offset
    if 0 <= first < seen.evidence.first_offset:
        return msgspec.structs.replace(seen.evidence, first_offset=first)
    return seen.evidence


def _place(seen: Observation) -> int:
    return seen.offset if seen.position < 0 else seen.position


# -- time ------------------------------------------------------------------------------------------------


def pass_time(alarm: Alarm, subject: Subject, at: float, position: int, policy: Policy) -> Step:
    """The alarm when it is ``at`` on the detector's clock; afterwards ``due_at`` lies beyond.

    However long nobody asked, a reminder is due once.

    Args:
        at: epoch seconds.
        position: offset of the newest reading of the partition that has been taken.
    """
    if at < alarm.due_at:
        return alarm, _NONE
    if at >= alarm.until:
        if alarm.state is State.SNOOZED:
            return _woken(alarm, subject, at, position, policy)
        return _released(alarm, subject, Event.UNSHELVED, at, position, policy)
    if at >= alarm.close_at:
        return _closed(alarm, subject, Event.CLOSED, at, position)
    if at >= alarm.escalate_at:
        escalation = policy.escalations[Severity(alarm.severity)]
        return _step(
            alarm,
            subject,
            Event.ESCALATED,
            at,
            position,
            reason=f"not acknowledged for {escalation.after_s:g} s",
            severity=int(escalation.to),
            peak=max(alarm.peak, int(escalation.to)),
            repeats=0,
            **_timers(policy, State.ACTIVE, int(escalation.to), False, 0, at),
        )
    repeats = alarm.repeats + 1
    return _step(
        alarm,
        subject,
        Event.REPEATED,
        at,
        position,
        repeats=repeats,
        repeat_at=_next_repeat(policy, alarm.severity, repeats, at),
    )


def _timers(policy: Policy, state: State, severity: int, acknowledged: bool, repeats: int, at: float) -> dict[str, Any]:
    """When time does something to an alarm that entered a state ``at``; it no longer is snoozed or shelved."""
    repeat_at = escalate_at = close_at = _NEVER
    if not acknowledged and state in (State.ACTIVE, State.LATCHED):
        repeat_at = _next_repeat(policy, severity, repeats, at)
        if state is State.ACTIVE and severity in policy.escalations:
            escalate_at = at + policy.escalations[Severity(severity)].after_s
    elif state is State.CLEARED:
        # Acknowledged, it is only just not closed yet.
        close_at = at if acknowledged else at + policy.auto_close_s
    return {"until": _NEVER, "repeat_at": repeat_at, "escalate_at": escalate_at, "close_at": close_at}


def _next_repeat(policy: Policy, severity: int, repeats: int, at: float) -> float:
    pauses = policy.repeats.get(Severity(severity), ())
    if repeats < len(pauses):
        return at + pauses[repeats]
    return at + pauses[-1] if pauses and policy.keeps_repeating else _NEVER


# -- commands --------------------------------------------------------------------------------------------


def obey(
    alarm: Alarm,
    subject: Subject,
    command: AlarmCommand,
    command_offset: int,
    at: float,
    position: int,
    policy: Policy,
) -> Step:
    """The alarm after an operator's command.

    A command that was taken before gives nothing. Any other gives one record that names it, ``REFUSED`` with the reason
    where it makes no sense; what follows from it (an alarm that closes, one that is raised at the end of a shelf) is a
    record of its own.

    Args:
        command_offset: of the command in its topic.
        at: when it was appended, epoch seconds.
        position: offset of the newest reading of the partition that has been taken.
    """
    if command_offset <= alarm.command_offset or command.command_id in alarm.commands:
        return alarm, _NONE
    taken = msgspec.structs.replace(
        alarm,
        command_offset=command_offset,
        commands=(*alarm.commands, command.command_id)[-COMMANDS_REMEMBERED:],
    )
    refusal = _refusal(alarm, command, at, policy)
    if refusal:
        return _step(taken, subject, Event.REFUSED, at, position, command=command, reason=refusal)
    return _carried_out(taken, subject, command, at, position, policy)


def _carried_out(
    alarm: Alarm, subject: Subject, command: AlarmCommand, at: float, position: int, policy: Policy
) -> Step:
    verb = command.verb
    if verb is Verb.ACKNOWLEDGE:
        state = State.ACKNOWLEDGED if alarm.holds else alarm.state
        seen, records = _step(
            alarm,
            subject,
            Event.ACKNOWLEDGED,
            at,
            position,
            command=command,
            state=state,
            acknowledged=True,
            repeats=0,
            **_timers(policy, state, alarm.severity, True, 0, at),
        )
        if state is not State.CLEARED:
            return seen, records
        closed, more = _closed(seen, subject, Event.CLOSED, at, position)
        return closed, records + more
    if verb is Verb.RESET:
        return _closed(alarm, subject, Event.RESET, at, position, command=command, acknowledged=True)
    if verb is Verb.SNOOZE:
        return _step(
            alarm, subject, Event.SNOOZED, at, position, command=command, state=State.SNOOZED, **_silent(command.until)
        )
    if verb is Verb.WAKE:
        return _woken(alarm, subject, at, position, policy, command)
    if verb in (Verb.SHELVE, Verb.DISABLE):
        shelve = verb is Verb.SHELVE
        return _step(
            alarm if alarm.state is not State.NORMAL else _forgotten(alarm),
            subject,
            Event.SHELVED if shelve else Event.DISABLED,
            at,
            position,
            command=command,
            state=State.SHELVED if shelve else State.DISABLED,
            **_silent(command.until if shelve else None),
        )
    if verb is Verb.UNSHELVE:
        return _released(alarm, subject, Event.UNSHELVED, at, position, policy, command)
    if verb is Verb.ENABLE:
        return _released(alarm, subject, Event.ENABLED, at, position, policy, command)
    if verb is Verb.VERDICT:
        return _step(alarm, subject, Event.VERDICT, at, position, command=command, verdict=command.verdict)
    return _step(alarm, subject, Event.COMMENTED, at, position, command=command)


def _silent(until: float | None) -> dict[str, Any]:
    return {
        "until": _NEVER if until is None else until,
        "repeat_at": _NEVER,
        "escalate_at": _NEVER,
        "close_at": _NEVER,
    }


def _forgotten(alarm: Alarm) -> Alarm:
    """Without the last alarm, which is over: a shelf begun after it is none of its life."""
    return msgspec.structs.replace(
        alarm,
        severity=0,
        peak=0,
        acknowledged=False,
        alarm_id="",
        cause=-1,
        raised_event_time=None,
        raised_at=None,
        repeats=0,
        trigger=-1,
        trigger_time=-_NEVER,
        verdict=None,
        evidence=Evidence(),
    )


def _refusal(alarm: Alarm, command: AlarmCommand, at: float, policy: Policy) -> str:
    """Why a command makes no sense, or an empty text."""
    return _incomplete(command) or _inapplicable(alarm, command) or _too_long(alarm, command, at, policy)


_NEEDS_REASON = frozenset({Verb.SNOOZE, Verb.SHELVE, Verb.DISABLE, Verb.VERDICT, Verb.COMMENT})
_NEEDS_UNTIL = frozenset({Verb.SNOOZE, Verb.SHELVE})
_NEEDS_LIVE = frozenset({Verb.ACKNOWLEDGE, Verb.RESET, Verb.SNOOZE, Verb.WAKE})


def _incomplete(command: AlarmCommand) -> str:
    if not command.by.strip():
        return "by: missing; say who asks"
    if command.verb in _NEEDS_REASON and not command.reason.strip():
        return f"reason: missing; it is required to {_WORDS[command.verb]}"
    if command.verb in _NEEDS_UNTIL and (command.until is None or not math.isfinite(command.until)):
        return f"until: missing; it is required to {_WORDS[command.verb]}"
    if command.verb is Verb.VERDICT and command.verdict is None:
        return "verdict: missing"
    return ""


_WORDS = {**{verb: verb.value for verb in Verb}, Verb.VERDICT: "give a verdict"}


def _inapplicable(alarm: Alarm, command: AlarmCommand) -> str:  # noqa: PLR0911 - one return for each reason
    verb, state = command.verb, alarm.state
    if command.alarm_id and command.alarm_id != alarm.alarm_id:
        return f"alarm_id: {command.alarm_id} is not the present alarm, {alarm.alarm_id or 'there is none'}"
    if verb in _NEEDS_LIVE and state not in LIVE:
        return f"there is no live alarm to {verb.value}: it is {state.value}"
    if verb is Verb.ACKNOWLEDGE and alarm.acknowledged:
        return "it is acknowledged already"
    if verb is Verb.RESET and alarm.holds:
        return "its condition still holds; acknowledge or snooze it instead"
    if verb is Verb.SNOOZE and not alarm.holds:
        return "its condition is over; acknowledge or reset it instead"
    if verb is Verb.WAKE and state is not State.SNOOZED:
        return f"it is not snoozed but {state.value}"
    if verb is Verb.UNSHELVE and state is not State.SHELVED:
        return f"it is not shelved but {state.value}"
    if verb is Verb.ENABLE and state is not State.DISABLED:
        return f"it is not disabled but {state.value}"
    if verb in (Verb.SHELVE, Verb.DISABLE) and state is State.DISABLED:
        return "it is disabled; enable it first"
    if verb is Verb.VERDICT and not alarm.alarm_id:
        return "there is no alarm to judge"
    if verb is Verb.COMMENT and not alarm.alarm_id and state is State.NORMAL:
        return "there is no alarm to comment on"
    return ""


def _too_long(alarm: Alarm, command: AlarmCommand, at: float, policy: Policy) -> str:
    if command.verb not in _NEEDS_UNTIL or command.until is None:
        return ""
    if command.until <= at:
        return "until: lies in the past"
    if command.verb is Verb.SHELVE:
        longest, what = policy.longest_shelf_s, f"{command.kind.value} alarm may be shelved"
    else:
        severity = Severity(alarm.severity)
        longest, what = (
            policy.longest_snooze_s.get(severity, 0.0),
            f"{severity.label} {command.kind.value} alarm may be snoozed",
        )
    if not longest:
        return f"no {what}"
    return f"until: a {what} for {longest:g} s at most" if command.until - at > longest else ""


def _woken(
    alarm: Alarm, subject: Subject, at: float, position: int, policy: Policy, command: AlarmCommand | None = None
) -> Step:
    state = State.ACKNOWLEDGED if alarm.acknowledged else State.ACTIVE
    return _step(
        alarm,
        subject,
        Event.WOKEN,
        at,
        position,
        command=command,
        state=state,
        **_timers(policy, state, alarm.severity, alarm.acknowledged, alarm.repeats, at),
    )


def _released(
    alarm: Alarm,
    subject: Subject,
    event: Event,
    at: float,
    position: int,
    policy: Policy,
    command: AlarmCommand | None = None,
) -> Step:
    """The end of a shelf or of being disabled; an alarm is raised at once where the condition holds."""
    normal, records = _closed(alarm, subject, event, at, position, command=command)
    if not alarm.holds:
        return normal, records
    raised, more = _raised(
        msgspec.structs.replace(normal, holds=True, newest=alarm.newest, gone_since=alarm.gone_since),
        subject,
        policy,
        at,
        position,
    )
    return raised, records + more


def _closed(
    alarm: Alarm,
    subject: Subject,
    event: Event,
    at: float,
    position: int,
    *,
    event_time: float | None = None,
    command: AlarmCommand | None = None,
    acknowledged: bool | None = None,
) -> Step:
    return _step(
        alarm,
        subject,
        event,
        at,
        position,
        event_time=event_time,
        command=command,
        state=State.NORMAL,
        holds=False,
        gone_since=_NEVER,
        newest=-_NEVER if alarm.pending_since == _NEVER else alarm.newest,
        acknowledged=alarm.acknowledged if acknowledged is None else acknowledged,
        **_silent(None),
    )


# -- records ---------------------------------------------------------------------------------------------


def _step(
    alarm: Alarm,
    subject: Subject,
    event: Event,
    at: float,
    position: int,
    *,
    event_time: float | None = None,
    command: AlarmCommand | None = None,
    reason: str = "",
    **changes: Any,
) -> Step:
    """The alarm with the changes, one revision on, and the record of it."""
    after = msgspec.structs.replace(
        alarm, revision=alarm.revision + 1, position=max(alarm.position, position), **changes
    )
    return after, (
        AlarmRecord(
            device_id=subject.device_id,
            kind=subject.kind,
            alarm_id=after.alarm_id,
            event=event,
            state=after.state,
            severity=_LABELS[after.severity],
            revision=after.revision,
            topic_id=subject.topic_id,
            partition=subject.partition,
            cause=after.cause,
            position=after.position,
            at=at,
            command_offset=after.command_offset,
            acknowledged=after.acknowledged,
            event_time=event_time,
            raised_event_time=after.raised_event_time,
            raised_at=after.raised_at,
            peak=_LABELS[after.peak] if after.peak else "",
            repeats=after.repeats,
            until=after.until if after.until != _NEVER else None,
            by="" if command is None else command.by,
            reason=reason or ("" if command is None else command.reason),
            command_id="" if command is None else command.command_id,
            verdict=after.verdict,
            site=subject.site,
            room=subject.room,
            evidence=after.evidence,
            holds=after.holds,
        ),
    )


# -- saving ----------------------------------------------------------------------------------------------

_PACKER = msgspec.msgpack.Encoder()
_UNPACKER = msgspec.msgpack.Decoder(Alarm)


def pack(alarm: Alarm) -> bytes:
    """The alarm for a snapshot, exactly."""
    return _PACKER.encode(alarm)


def unpack(value: bytes) -> Alarm:
    """The alarm that ``pack`` wrote.

    Raises:
        SmokeError: for anything else.
    """
    try:
        return _UNPACKER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SmokeError(f"not a valid saved alarm: {error}") from None


def restore(record: AlarmRecord, policy: Policy | None = None) -> Alarm:
    """The alarm that a record read back from Kafka describes.

    A record does not tell what had begun and not yet happened, so that begins anew, on the safe side: an on- or
    off-delay with the next observation, a reminder or automatic closing at the record's time. Of the commands only the
    record's own is known by its id; all are by their offset.

    Args:
        policy: of its kind, if not the usual one.
    """
    policy = policy or POLICIES[record.kind]
    severity = int(Severity.of(record.severity))
    aside = record.state in _ASIDE
    holds = record.holds or record.state in _HOLDING
    if aside and not holds and not record.alarm_id:
        severity = 0
    trigger = max(record.cause, record.evidence.last_offset) if aside else record.cause
    moment = record.event_time if record.event_time is not None else record.raised_event_time
    if record.state in (State.SNOOZED, State.SHELVED, State.DISABLED):
        timers = _silent(record.until)
    else:
        timers = _timers(policy, record.state, severity, record.acknowledged, record.repeats, record.at)
    return Alarm(
        state=record.state,
        severity=severity,
        peak=int(Severity.of(record.peak)) if record.peak else 0,
        holds=holds,
        acknowledged=record.acknowledged,
        revision=record.revision,
        position=record.position,
        command_offset=record.command_offset,
        alarm_id=record.alarm_id,
        cause=record.cause,
        raised_event_time=record.raised_event_time,
        raised_at=record.raised_at,
        repeats=record.repeats,
        newest=-_NEVER if moment is None or not holds else moment,
        trigger=trigger,
        trigger_time=-_NEVER if moment is None else moment,
        verdict=record.verdict,
        commands=(record.command_id,) if record.command_id else (),
        evidence=record.evidence,
        **timers,
    )
