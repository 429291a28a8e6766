"""The life of one alarm as a pure state machine: what an observation, a command or time does to it.

Belongs here: the alarm of one (device, kind) as a value, the legal transitions, the three functions that step an alarm
and tell it in records, the alarm as it is saved and put back. Does not: what makes an alarm (``domain.rules``,
``domain.silence``), delays and limits of each kind (``domain.alarm_policies``), the messages (``domain.alarms``),
clocks, Kafka, who is told.

Each function takes an alarm and gives the alarm after it with the records to write. The same arguments give the same
answer, so readings that are replayed lead to the same alarms with the same ids.

States and commands are the union of what is usual. ANSI/ISA-18.2-2016: unacknowledged, acknowledged, returned to normal
unacknowledged, latched, shelved, out of service. OPC UA part 9 (4.8, 5.8): latched until a reset, a shelf with an end.
AWS IoT Events: active, acknowledged, snoozed, disabled, latched. ThingsBoard: severity, acknowledgement and clearing
are independent of one another, and comments belong to an alarm.

Two clocks are at work. On- and off-delays run on event time, as the device tells it, and never run backwards: an
observation older than the newest seen counts as that one. What people wait for (snooze, shelf, reminders, escalation,
automatic closing) runs on ``at``, the clock of the broker's append times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from smoke_platform.domain.alarm_policies import NEVER, POLICIES, Escalation, Policy
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
    "Transition",
    "obey",
    "observe",
    "pack",
    "pass_time",
    "restore",
    "unpack",
]

#: Command ids that an alarm remembers. A producer that sends a command again does so within seconds.
COMMANDS_REMEMBERED = 8
#: The sender of a command tells an end by its own clock, which may be this far ahead of the broker's.
CLOCKS_DIFFER_S = 60.0


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
        position: offset of the newest reading of the partition that has been taken. Negative: it is ``offset``, for the
            reading itself is judged; such an observation is ignored where the alarm knows that reading. What time led
            to (silence) says it, and is ignored only where the alarm knows something newer.
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

    After an alarm is over its id, severity, peak, evidence and verdict stay until the next one or a shelf, since a
    verdict often comes later.

    Attributes:
        severity: while the condition holds the worst asserted since it began: an alarm that followed every reading down
            and up again would have to be acknowledged each time. 0 where there was none.
        peak: the worst since the alarm was raised, or since it was shelved.
        holds: whether the condition is taken to hold, the off-delay included; followed while shelved or disabled too.
        revision: of the latest record.
        position, command_offset: as in ``AlarmRecord``.
        cause: offset of the reading that raised it; -1 where there is none.
        until: end of a snooze or shelf; inf where there is none.
        repeat_at, escalate_at, close_at: when time itself does something next; inf where it does not.
        pending_since, pending_first: event time and offset at which a condition began that has not passed the on-delay;
            inf and -1 where there is none.
        gone_since: event time since which a condition that holds has been gone; inf where it is not.
        newest: newest event time seen since the condition began; -inf where it neither holds nor is pending.
        commands: ids of the latest commands.
        evidence: of the raising, or of what made it worse or brought it back; ``last_offset`` is that reading. While
            shelved or disabled: of the reading that asserted the condition last.
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
    until: float = NEVER
    repeat_at: float = NEVER
    escalate_at: float = NEVER
    close_at: float = NEVER
    pending_since: float = NEVER
    pending_first: int = -1
    gone_since: float = NEVER
    newest: float = -NEVER
    verdict: Verdict | None = None
    commands: tuple[str, ...] = ()
    evidence: Evidence = Evidence()

    @property
    def due_at(self) -> float:
        """Before this moment ``pass_time`` does nothing; inf: it never does."""
        return min(self.until, self.repeat_at, self.escalate_at, self.close_at)

    @property
    def quiet(self) -> bool:
        """Whether neither an observation of level 0 without hold nor time changes anything."""
        return not self.holds and self.pending_since == NEVER and self.due_at == NEVER


Step = tuple[Alarm, tuple[AlarmRecord, ...]]


# -- the machine -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transition:
    """Rows of the table of transitions: in any of ``before`` the event leads to ``after``, or nowhere for ``None``."""

    before: tuple[State, ...]
    event: Event
    after: State | None
    when: str


_NORMAL, _ACTIVE, _ACKNOWLEDGED, _CLEARED, _LATCHED, _SNOOZED, _SHELVED, _DISABLED = State
_HOLDING = (_ACTIVE, _ACKNOWLEDGED, _SNOOZED)
_ASIDE = (_SHELVED, _DISABLED)

#: All that can happen, row by row as ``docs/alarms.md`` shows it.
ROWS: Final[tuple[Transition, ...]] = (
    Transition(
        (_NORMAL,), Event.RAISED, _ACTIVE, "the condition was asserted for the on-delay, or holds after a shelf"
    ),
    Transition((_NORMAL,), Event.RETURNED, _ACTIVE, "the same, by the very reading that raised the last alarm"),
    Transition((_CLEARED, _LATCHED), Event.RETURNED, _ACTIVE, "the condition was asserted anew for the on-delay"),
    Transition(
        _HOLDING, Event.ESCALATED, _ACTIVE, "asserted at a greater severity; what was acknowledged no longer is"
    ),
    Transition((_ACTIVE,), Event.ESCALATED, _ACTIVE, "nobody acknowledged it for long"),
    Transition((_ACTIVE, _LATCHED), Event.REPEATED, None, "nobody acknowledged it for a while"),
    Transition((_ACTIVE, _SNOOZED), Event.ACKNOWLEDGED, _ACKNOWLEDGED, "command `acknowledge`"),
    Transition((_LATCHED,), Event.ACKNOWLEDGED, _LATCHED, "command `acknowledge`; it still has to be reset"),
    Transition((_CLEARED,), Event.ACKNOWLEDGED, _CLEARED, "command `acknowledge`; `closed` follows at once"),
    Transition(_HOLDING, Event.LATCHED, _LATCHED, "gone for the off-delay; alarms that latch"),
    Transition((_ACTIVE, _SNOOZED), Event.CLEARED, _CLEARED, "gone for the off-delay, not acknowledged"),
    Transition(_HOLDING, Event.CLOSED, _NORMAL, "gone for the off-delay, acknowledged or with no need of it"),
    Transition((_CLEARED,), Event.CLOSED, _NORMAL, "it was acknowledged, or nobody did for long"),
    Transition((_CLEARED, _LATCHED), Event.RESET, _NORMAL, "command `reset`"),
    Transition(_HOLDING, Event.SNOOZED, _SNOOZED, "command `snooze`"),
    Transition((_SNOOZED,), Event.WOKEN, _ACTIVE, "command `wake` or the time is over; not acknowledged"),
    Transition((_SNOOZED,), Event.WOKEN, _ACKNOWLEDGED, "command `wake` or the time is over; acknowledged before"),
    Transition(tuple(each for each in State if each is not _DISABLED), Event.SHELVED, _SHELVED, "command `shelve`"),
    Transition((_SHELVED,), Event.UNSHELVED, _NORMAL, "command `unshelve` or the time is over"),
    Transition(tuple(each for each in State if each is not _DISABLED), Event.DISABLED, _DISABLED, "command `disable`"),
    Transition((_DISABLED,), Event.ENABLED, _NORMAL, "command `enable`"),
    Transition(tuple(State), Event.VERDICT, None, "command `verdict`; of the latest alarm, also after it is over"),
    Transition(tuple(State), Event.COMMENTED, None, "command `comment`"),
    Transition(tuple(State), Event.REFUSED, None, "any command that makes no sense in this state"),
)

#: Every legal (state, event, state).
TRANSITIONS: Final[frozenset[tuple[State, Event, State]]] = frozenset(
    (before, row.event, row.after or before) for row in ROWS for before in row.before
)


class _Cause(msgspec.Struct, frozen=True):
    """Why a step is taken, and under which policy. Its fields are those of the record."""

    subject: Subject
    policy: Policy
    at: float
    position: int
    event_time: float | None = None
    command: AlarmCommand | None = None


_NOTHING: tuple[AlarmRecord, ...] = ()


# -- observations ----------------------------------------------------------------------------------------


def observe(alarm: Alarm, subject: Subject, observation: Observation, policy: Policy) -> Step:
    """The alarm after an observation.

    Returns:
        The alarm, the very same object where nothing changed, and the records that follow.
    """
    known = observation.offset <= alarm.position if observation.position < 0 else observation.position < alarm.position
    if known:
        return alarm, _NOTHING
    if observation.level:
        return _asserted(alarm, subject, observation, policy)
    if observation.hold:
        return _held(alarm, observation), _NOTHING
    if alarm.holds:
        return _gone(alarm, subject, observation, policy)
    if alarm.pending_since != NEVER:
        return msgspec.structs.replace(alarm, pending_since=NEVER, pending_first=-1, newest=-NEVER), _NOTHING
    return alarm, _NOTHING


def _asserted(alarm: Alarm, subject: Subject, seen: Observation, policy: Policy) -> Step:
    now = max(seen.event_time, alarm.newest)
    if not alarm.holds:
        since = min(alarm.pending_since, now)
        first = seen.offset if alarm.pending_first < 0 else alarm.pending_first
        if now - since < policy.on_delay_s:
            return msgspec.structs.replace(alarm, pending_since=since, pending_first=first, newest=now), _NOTHING
        return _begun(alarm, _cause(subject, seen, policy, now), seen, first)
    worse = seen.level > alarm.severity
    if alarm.state in _ASIDE:
        followed = msgspec.structs.replace(
            alarm,
            severity=max(alarm.severity, seen.level),
            peak=max(alarm.peak, seen.level),
            gone_since=NEVER,
            newest=now,
            evidence=_evidence(seen, alarm.evidence.first_offset),
        )
        return followed, _NOTHING
    if not worse:
        if now == alarm.newest and alarm.gone_since == NEVER:
            return alarm, _NOTHING
        return msgspec.structs.replace(alarm, gone_since=NEVER, newest=now), _NOTHING
    risen = msgspec.structs.replace(
        alarm,
        severity=seen.level,
        gone_since=NEVER,
        newest=now,
        evidence=_evidence(seen, alarm.evidence.first_offset),
    )
    return _sounding(risen, _cause(subject, seen, policy, now), Event.ESCALATED)


def _begun(alarm: Alarm, cause: _Cause, seen: Observation, first: int) -> Step:
    """The condition holds from here on."""
    began = msgspec.structs.replace(
        alarm,
        holds=True,
        severity=seen.level,
        pending_since=NEVER,
        pending_first=-1,
        newest=cause.event_time,
        evidence=_evidence(seen, first),
    )
    if alarm.state in _ASIDE:
        return msgspec.structs.replace(began, peak=max(alarm.peak, seen.level)), _NOTHING
    if alarm.state is _NORMAL:
        return _raised(began, cause)
    return _sounding(began, cause, Event.RETURNED)


def _raised(alarm: Alarm, cause: _Cause) -> Step:
    """A new alarm of a condition that holds; the last one again where the same reading led to it."""
    subject, offset = cause.subject, alarm.evidence.last_offset
    identity = alarm_id(subject.device_id, subject.kind, MessageId(subject.topic_id, subject.partition, offset))
    if identity == alarm.alarm_id:
        return _sounding(alarm, cause, Event.RETURNED)
    new = msgspec.structs.replace(
        alarm,
        alarm_id=identity,
        cause=offset,
        peak=alarm.severity,
        raised_event_time=cause.event_time,
        raised_at=cause.at,
        verdict=None,
    )
    return _sounding(new, cause, Event.RAISED)


def _sounding(alarm: Alarm, cause: _Cause, event: Event, reason: str = "") -> Step:
    """Active, with everything about it still to be done."""
    active = msgspec.structs.replace(
        alarm, state=_ACTIVE, peak=max(alarm.peak, alarm.severity), acknowledged=False, repeats=0, until=NEVER
    )
    return _entered(active, cause, event, reason)


def _held(alarm: Alarm, seen: Observation) -> Alarm:
    """Neither asserted nor gone: what holds goes on, what has not begun does not begin by it."""
    if not alarm.holds and alarm.pending_since == NEVER:
        return alarm
    now = max(seen.event_time, alarm.newest)
    if now == alarm.newest and alarm.gone_since == NEVER:
        return alarm
    return msgspec.structs.replace(alarm, gone_since=NEVER, newest=now)


def _gone(alarm: Alarm, subject: Subject, seen: Observation, policy: Policy) -> Step:
    now = max(seen.event_time, alarm.newest)
    since = min(alarm.gone_since, now)
    if now - since < policy.off_delay_s:
        if since == alarm.gone_since and now == alarm.newest:
            return alarm, _NOTHING
        return msgspec.structs.replace(alarm, gone_since=since, newest=now), _NOTHING
    over = msgspec.structs.replace(alarm, holds=False, gone_since=NEVER, newest=-NEVER)
    if alarm.state in _ASIDE:
        return over, _NOTHING
    cause = _cause(subject, seen, policy, now)
    if policy.latches(alarm.peak):
        return _entered(msgspec.structs.replace(over, state=_LATCHED, until=NEVER), cause, Event.LATCHED)
    if alarm.acknowledged or not policy.needs_acknowledgement:
        return _closed(over, cause, Event.CLOSED)
    return _entered(msgspec.structs.replace(over, state=_CLEARED, until=NEVER), cause, Event.CLEARED)


def _cause(subject: Subject, seen: Observation, policy: Policy, now: float) -> _Cause:
    return _Cause(subject, policy, seen.at, seen.offset if seen.position < 0 else seen.position, now)


def _evidence(seen: Observation, first: int) -> Evidence:
    """The observation's evidence as the alarm's, which began at offset ``first``."""
    evidence = seen.evidence
    first = seen.offset if first < 0 else first
    if evidence.first_offset == first and evidence.last_offset == seen.offset:
        return evidence
    return msgspec.structs.replace(evidence, first_offset=first, last_offset=seen.offset)


# -- time ------------------------------------------------------------------------------------------------


def pass_time(alarm: Alarm, subject: Subject, at: float, position: int, policy: Policy) -> Step:
    """The alarm when it is ``at`` on the detector's clock; afterwards ``due_at`` lies beyond.

    However long nobody asked, only one reminder is given.

    Args:
        at: epoch seconds.
        position: offset of the newest reading of the partition that has been taken.
    """
    if at < alarm.due_at:
        return alarm, _NOTHING
    cause = _Cause(subject, policy, at, position)
    if at >= alarm.until:
        return _woken(alarm, cause) if alarm.state is _SNOOZED else _released(alarm, cause, Event.UNSHELVED)
    if at >= alarm.close_at:
        return _closed(alarm, cause, Event.CLOSED)
    if at >= alarm.escalate_at:
        escalation = policy.escalations.get(Severity(alarm.severity))
        if escalation is not None:
            worse = msgspec.structs.replace(alarm, severity=int(escalation.to))
            return _sounding(worse, cause, Event.ESCALATED, f"not acknowledged for {escalation.after_s:g} s")
        # It was saved when the policy was another.
        alarm = msgspec.structs.replace(alarm, escalate_at=NEVER)
        return pass_time(alarm, subject, at, position, policy)
    repeats = alarm.repeats + 1
    repeat_at = _next_repeat(policy, alarm.severity, repeats, at)
    return _written(msgspec.structs.replace(alarm, repeats=repeats, repeat_at=repeat_at), cause, Event.REPEATED)


def _timers(alarm: Alarm, policy: Policy, at: float) -> dict[str, float]:
    """When time does something to an alarm that entered its state ``at``, snooze and shelf aside."""
    repeat_at = escalate_at = close_at = NEVER
    if alarm.state in (_ACTIVE, _LATCHED) and not alarm.acknowledged:
        repeat_at = _next_repeat(policy, alarm.severity, alarm.repeats, at)
        escalation = policy.escalations.get(Severity(alarm.severity))
        if alarm.state is _ACTIVE and escalation is not None:
            escalate_at = at + escalation.after_s
    elif alarm.state is _CLEARED:
        # One that was acknowledged is only just not closed yet.
        close_at = at if alarm.acknowledged else at + policy.auto_close_s
    return {"repeat_at": repeat_at, "escalate_at": escalate_at, "close_at": close_at}


def _next_repeat(policy: Policy, severity: int, repeats: int, at: float) -> float:
    pauses = policy.repeats.get(Severity(severity), ())
    if repeats < len(pauses):
        return at + pauses[repeats]
    return at + pauses[-1] if pauses and policy.keeps_repeating else NEVER


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
    where it makes no sense. What follows from it (an alarm that closes, one that is raised at the end of a shelf) is a
    record of its own.

    Args:
        command_offset: of the command in its topic.
        at: when it was appended, epoch seconds.
        position: offset of the newest reading of the partition that has been taken.
    """
    if command_offset <= alarm.command_offset or command.command_id in alarm.commands:
        return alarm, _NOTHING
    commands = (*alarm.commands, command.command_id)[-COMMANDS_REMEMBERED:]
    taken = msgspec.structs.replace(alarm, command_offset=command_offset, commands=commands)
    cause = _Cause(subject, policy, at, position, command=command)
    refusal = _incomplete(command) or _inapplicable(alarm, command) or _too_long(alarm, command, at, policy)
    if refusal:
        return _written(taken, cause, Event.REFUSED, refusal)
    return _ACTIONS[command.verb](taken, cause, command)


def _acknowledge(alarm: Alarm, cause: _Cause, _command: AlarmCommand) -> Step:
    state = _ACKNOWLEDGED if alarm.holds else alarm.state
    seen = msgspec.structs.replace(alarm, state=state, acknowledged=True, repeats=0, until=NEVER)
    after, records = _entered(seen, cause, Event.ACKNOWLEDGED)
    if state is not _CLEARED:
        return after, records
    closed, more = _closed(after, _unasked(cause), Event.CLOSED)
    return closed, records + more


def _reset(alarm: Alarm, cause: _Cause, _command: AlarmCommand) -> Step:
    return _closed(msgspec.structs.replace(alarm, acknowledged=True), cause, Event.RESET)


def _snooze(alarm: Alarm, cause: _Cause, command: AlarmCommand) -> Step:
    return _entered(msgspec.structs.replace(alarm, state=_SNOOZED, until=command.until), cause, Event.SNOOZED)


def _wake(alarm: Alarm, cause: _Cause, _command: AlarmCommand) -> Step:
    return _woken(alarm, cause)


def _shelve(alarm: Alarm, cause: _Cause, command: AlarmCommand) -> Step:
    shelved = msgspec.structs.replace(_without_past(alarm), state=_SHELVED, until=command.until)
    return _entered(shelved, cause, Event.SHELVED)


def _disable(alarm: Alarm, cause: _Cause, _command: AlarmCommand) -> Step:
    disabled = msgspec.structs.replace(_without_past(alarm), state=_DISABLED, until=NEVER)
    return _entered(disabled, cause, Event.DISABLED)


def _unshelve(alarm: Alarm, cause: _Cause, _command: AlarmCommand) -> Step:
    return _released(alarm, cause, Event.UNSHELVED)


def _enable(alarm: Alarm, cause: _Cause, _command: AlarmCommand) -> Step:
    return _released(alarm, cause, Event.ENABLED)


def _judge(alarm: Alarm, cause: _Cause, command: AlarmCommand) -> Step:
    return _written(msgspec.structs.replace(alarm, verdict=command.verdict), cause, Event.VERDICT)


def _comment(alarm: Alarm, cause: _Cause, _command: AlarmCommand) -> Step:
    return _written(alarm, cause, Event.COMMENTED)


_ACTIONS: Final[Mapping[Verb, Callable[[Alarm, _Cause, AlarmCommand], Step]]] = {
    Verb.ACKNOWLEDGE: _acknowledge,
    Verb.RESET: _reset,
    Verb.SNOOZE: _snooze,
    Verb.WAKE: _wake,
    Verb.SHELVE: _shelve,
    Verb.UNSHELVE: _unshelve,
    Verb.DISABLE: _disable,
    Verb.ENABLE: _enable,
    Verb.VERDICT: _judge,
    Verb.COMMENT: _comment,
}


def _without_past(alarm: Alarm) -> Alarm:
    """Without the last alarm where that is over: a shelf that begins later is no part of its life."""
    if alarm.state is not _NORMAL:
        return alarm
    return Alarm(
        revision=alarm.revision,
        position=alarm.position,
        command_offset=alarm.command_offset,
        pending_since=alarm.pending_since,
        pending_first=alarm.pending_first,
        newest=alarm.newest,
        commands=alarm.commands,
    )


def _woken(alarm: Alarm, cause: _Cause) -> Step:
    state = _ACKNOWLEDGED if alarm.acknowledged else _ACTIVE
    return _entered(msgspec.structs.replace(alarm, state=state, until=NEVER), cause, Event.WOKEN)


def _released(alarm: Alarm, cause: _Cause, event: Event) -> Step:
    """The end of a shelf or of being disabled; where the condition holds an alarm is raised at once."""
    normal, records = _closed(alarm, cause, event)
    if not alarm.holds:
        return normal, records
    holding = msgspec.structs.replace(normal, holds=True, newest=alarm.newest, gone_since=alarm.gone_since)
    moment = alarm.newest if math.isfinite(alarm.newest) else None
    raised, more = _raised(holding, msgspec.structs.replace(_unasked(cause), event_time=moment))
    return raised, records + more


def _closed(alarm: Alarm, cause: _Cause, event: Event) -> Step:
    normal = msgspec.structs.replace(
        alarm,
        state=_NORMAL,
        holds=False,
        gone_since=NEVER,
        newest=-NEVER if alarm.pending_since == NEVER else alarm.newest,
        until=NEVER,
    )
    return _entered(normal, cause, event)


def _unasked(cause: _Cause) -> _Cause:
    """What follows from a command without being what it asked for."""
    return msgspec.structs.replace(cause, command=None)


# -- which commands make no sense ------------------------------------------------------------------------

_NEEDS_REASON = frozenset({Verb.SNOOZE, Verb.SHELVE, Verb.DISABLE, Verb.VERDICT, Verb.COMMENT})
_NEEDS_UNTIL = frozenset({Verb.SNOOZE, Verb.SHELVE})
_NEEDS_LIVE = frozenset({Verb.ACKNOWLEDGE, Verb.RESET, Verb.SNOOZE, Verb.WAKE})


def _incomplete(command: AlarmCommand) -> str:
    """Which field is missing, or an empty text."""
    if not command.by.strip():
        return "by: missing; it says who asks"
    if command.verb in _NEEDS_REASON and not command.reason.strip():
        return f"reason: missing; {command.verb.value} requires one"
    if command.verb in _NEEDS_UNTIL and (command.until is None or not math.isfinite(command.until)):
        return f"until: missing; {command.verb.value} requires an end"
    if command.verb is Verb.VERDICT and command.verdict is None:
        return "verdict: missing"
    return ""


def _inapplicable(alarm: Alarm, command: AlarmCommand) -> str:
    """Why a command makes no sense in this state, or an empty text."""
    verb, state = command.verb, alarm.state
    if command.alarm_id and command.alarm_id != alarm.alarm_id:
        present = f"the latest is {alarm.alarm_id}" if alarm.alarm_id else "there is none"
        return f"alarm_id: {command.alarm_id} is not the latest alarm; {present}"
    if verb in _NEEDS_LIVE and state not in LIVE:
        return f"there is no live alarm to {verb.value}; the state is {state.value}"
    reasons = {
        Verb.ACKNOWLEDGE: (alarm.acknowledged, "it is acknowledged already"),
        Verb.RESET: (alarm.holds, "its condition still holds; acknowledge or snooze it"),
        Verb.SNOOZE: (not alarm.holds, "its condition is over; acknowledge or reset it"),
        Verb.WAKE: (state is not _SNOOZED, f"it is not snoozed; the state is {state.value}"),
        Verb.SHELVE: (state is _DISABLED, "it is disabled; enable it first"),
        Verb.UNSHELVE: (state is not _SHELVED, f"it is not shelved; the state is {state.value}"),
        Verb.DISABLE: (state is _DISABLED, "it is disabled already"),
        Verb.ENABLE: (state is not _DISABLED, f"it is not disabled; the state is {state.value}"),
        Verb.VERDICT: (not alarm.alarm_id, "there is no alarm to judge"),
        Verb.COMMENT: (not alarm.alarm_id and state is _NORMAL, "there is no alarm to comment on"),
    }
    applies, reason = reasons[verb]
    return reason if applies else ""


def _too_long(alarm: Alarm, command: AlarmCommand, at: float, policy: Policy) -> str:
    """What is wrong with the end of a snooze or shelf, or an empty text."""
    if command.verb not in _NEEDS_UNTIL or command.until is None:
        return ""
    if command.until <= at:
        return "until: lies in the past"
    longest = policy.longest_shelf_s
    if command.verb is Verb.SNOOZE:
        severity = Severity(alarm.severity)
        longest = policy.longest_snooze_s.get(severity, 0.0)
        if not longest:
            return f"a {severity.label} alarm of this kind can't be snoozed"
    if command.until - at <= longest + CLOCKS_DIFFER_S:
        return ""
    return f"until: {command.verb.value} is allowed for {longest:g} s at most"


# -- records ---------------------------------------------------------------------------------------------

#: Where there is no alarm a record still says a severity: the least.
_LABELS = (Severity.LOW.label, *(severity.label for severity in Severity))


def _entered(alarm: Alarm, cause: _Cause, event: Event, reason: str = "") -> Step:
    """The alarm with its timers set for the state it is in now, and the record."""
    timers = _timers(alarm, cause.policy, cause.at)
    return _written(msgspec.structs.replace(alarm, **timers), cause, event, reason)


def _written(alarm: Alarm, cause: _Cause, event: Event, reason: str = "") -> Step:
    """The alarm one revision on, and the record."""
    after = msgspec.structs.replace(alarm, revision=alarm.revision + 1, position=max(alarm.position, cause.position))
    subject, command = cause.subject, cause.command
    record = AlarmRecord(
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
        at=cause.at,
        command_offset=after.command_offset,
        acknowledged=after.acknowledged,
        event_time=cause.event_time,
        raised_event_time=after.raised_event_time,
        raised_at=after.raised_at,
        peak=_LABELS[after.peak] if after.peak else "",
        repeats=after.repeats,
        until=None if after.until == NEVER else after.until,
        by="" if command is None else command.by,
        reason=reason or ("" if command is None else command.reason),
        command_id="" if command is None else command.command_id,
        verdict=after.verdict,
        site=subject.site,
        room=subject.room,
        evidence=after.evidence,
        holds=after.holds,
    )
    return after, (record,)


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

    A record does not tell what had begun and not yet happened, so that begins anew on the safe side: an on- or
    off-delay with the next observation, reminders, escalation and automatic closing at the record's time. Of the
    commands only the record's own is known by its id; the earlier ones are by their offset.

    Args:
        policy: of its kind, where it is not the usual one.

    Raises:
        SmokeError: for a severity that there is not.
    """
    holds = record.state in _HOLDING or (record.state in _ASIDE and record.holds)
    moment = record.raised_event_time if record.event_time is None else record.event_time
    alarm = Alarm(
        state=record.state,
        severity=int(Severity.of(record.severity)) if record.peak else 0,
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
        until=NEVER if record.until is None else record.until,
        newest=moment if holds and moment is not None else -NEVER,
        verdict=record.verdict,
        commands=(record.command_id,) if record.command_id else (),
        evidence=record.evidence,
    )
    return msgspec.structs.replace(alarm, **_timers(alarm, policy or POLICIES[record.kind], record.at))
