"""The proof of the alarm machine: random observations, commands and time against a model of another make.

Belongs here: the model, the walk that steps machine and model side by side and checks what must always be true, the
suite. Does not: the machine (``smoke_platform.domain.alarm_machine``), tests of single rules.

The model keeps no state of the machine's: an alarm is a handful of facts that are independent of one another (open,
acknowledged, snoozed, set aside), and whether its condition holds is looked up in the whole list of what was observed.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from smoke_platform.domain import alarm_machine as machine
from smoke_platform.domain.alarm_machine import TRANSITIONS, Alarm, Escalation, Observation, Policy, Subject
from smoke_platform.domain.alarm_policies import NEVER, POLICIES
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
    decode_record,
    encode,
)
from smoke_platform.domain.offsets import MessageId

STEPS = 1_200_000
SEEDS = 60
WALK_STEPS = 250
#: Of the policies of a seed half are the platform's, half are drawn.
_DELAYS = (0.0, 0.0, 1.0, 5.0, 30.0)
_CONDITION, _OVER = "condition", "over"


class Wrong(AssertionError):
    """The machine did what it must not do."""


def demand(fact: bool, what: str, *details: object) -> None:
    """Raises ``Wrong`` unless ``fact``."""
    if not fact:
        raise Wrong(what + "".join(f"\n  {detail!r}" for detail in details))


# -- the model -------------------------------------------------------------------------------------------


@dataclass
class Model:
    """What an alarm should be, told by facts.

    Attributes:
        seen: (event time, level, hold, offset) of each observation since the condition last began or ended.
        holds: whether the condition holds.
        aside: shelved or disabled.
        told_at: when something was last said or changed that starts the pauses of reminders.
        sounding_since, over_since: when it became (again) active and unacknowledged, or over.
    """

    subject: Subject
    policy: Policy
    seen: list[tuple[float, int, bool, int]] = field(default_factory=list)
    holds: bool = False
    worst: int = 0
    gravest: int = 0
    last_asserted: int = -1
    open: bool = False
    acknowledged: bool = False
    snoozed_until: float | None = None
    aside: State | None = None
    shelved_until: float | None = None
    identity: str = ""
    repeats: int = 0
    told_at: float = 0.0
    sounding_since: float = 0.0
    over_since: float = 0.0
    verdict: Verdict | None = None
    taken: set[str] = field(default_factory=set)

    @property
    def state(self) -> State:
        if self.aside is not None:
            return self.aside
        if not self.open:
            return State.NORMAL
        if not self.holds:
            return State.LATCHED if self._latches else State.CLEARED
        if self.snoozed_until is not None:
            return State.SNOOZED
        return State.ACKNOWLEDGED if self.acknowledged else State.ACTIVE

    @property
    def _latches(self) -> bool:
        limit = self.policy.latches_from
        return limit is not None and self.gravest >= limit

    # -- observations ------------------------------------------------------------------------------------

    def observe(self, seen: Observation) -> list[Event]:
        self.seen.append((seen.event_time, seen.level, seen.hold, seen.offset))
        change = self._condition()
        if change == _OVER:
            self.holds, self.seen = False, []
            return self._over(seen.at)
        if change == _CONDITION:
            # What led to it stays as the time below which nothing counts.
            self.holds, self.worst, self.last_asserted = True, seen.level, seen.offset
            self.seen = [(max(moment for moment, *_ in self.seen), 1, False, seen.offset)]
            if self.aside is not None:
                return []
            return self._sound(Event.RETURNED if self.open else self._named(), seen.at)
        if self.holds and seen.level:
            worse, self.worst = seen.level > self.worst, max(self.worst, seen.level)
            if self.aside is not None or worse:
                self.last_asserted = seen.offset
            if worse and self.aside is None:
                return self._sound(Event.ESCALATED, seen.at)
        return []

    def _condition(self) -> str:
        """Whether the condition begins or ends with the newest observation, from the list of all."""
        clock, times = -math.inf, []
        for moment, *_ in self.seen:
            clock = max(clock, moment)
            times.append(clock)
        first = len(self.seen)
        if self.holds:
            while first and not self.seen[first - 1][1] and not self.seen[first - 1][2]:
                first -= 1
            ended = first < len(self.seen) and times[-1] - times[first] >= self.policy.off_delay_s
            return _OVER if ended else ""
        while first and (self.seen[first - 1][1] or self.seen[first - 1][2]):
            first -= 1
        while first < len(self.seen) and not self.seen[first][1]:
            first += 1  # a limit for clearing alone begins nothing
        # What was before has no say: the device's clock may have been set anew.
        self.seen = self.seen[first:]
        if not self.seen or not self.seen[-1][1]:
            return ""
        began = self.seen[0][0]
        return _CONDITION if max(moment for moment, *_ in self.seen) - began >= self.policy.on_delay_s else ""

    def _named(self) -> Event:
        """Opens an alarm after the newest assertion."""
        identity = alarm_id(
            self.subject.device_id,
            self.subject.kind,
            MessageId(self.subject.topic_id, self.subject.partition, self.last_asserted),
        )
        again, self.identity, self.open = identity == self.identity, identity, True
        if not again:
            self.verdict = None
        return Event.RETURNED if again else Event.RAISED

    def _sound(self, event: Event, at: float) -> list[Event]:
        self.acknowledged, self.snoozed_until, self.repeats = False, None, 0
        self.told_at = self.sounding_since = at
        self.gravest = self.worst if event is Event.RAISED else max(self.gravest, self.worst)
        return [event]

    def _over(self, at: float) -> list[Event]:
        if self.aside is not None:
            return []
        self.snoozed_until = None
        if self._latches:
            self.told_at = at
            return [Event.LATCHED]
        if self.acknowledged or not self.policy.needs_acknowledgement:
            self.open = False
            return [Event.CLOSED]
        self.over_since = at
        return [Event.CLEARED]

    # -- time --------------------------------------------------------------------------------------------

    def due(self) -> list[tuple[float, Event]]:
        """What time will do, with the moment of each."""
        found: list[tuple[float, Event]] = []
        state, severity = self.state, Severity(self.worst) if self.worst else None
        if state is State.SHELVED and self.shelved_until is not None:
            found.append((self.shelved_until, Event.UNSHELVED))
        if state is State.SNOOZED and self.snoozed_until is not None:
            found.append((self.snoozed_until, Event.WOKEN))
        if state is State.CLEARED:
            found.append((self.over_since + self.policy.auto_close_s, Event.CLOSED))
        if state in (State.ACTIVE, State.LATCHED) and not self.acknowledged and severity is not None:
            escalation = self.policy.escalations.get(severity)
            if state is State.ACTIVE and escalation is not None:
                found.append((self.sounding_since + escalation.after_s, Event.ESCALATED))
            pauses = self.policy.repeats.get(severity, ())
            if pauses and (self.repeats < len(pauses) or self.policy.keeps_repeating):
                found.append((self.told_at + pauses[min(self.repeats, len(pauses) - 1)], Event.REPEATED))
        return [(moment, event) for moment, event in found if moment != NEVER]

    def pass_time(self, at: float) -> list[Event]:
        ready = [event for moment, event in self.due() if moment <= at]
        if not ready:
            return []
        event = ready[0]
        if event is Event.UNSHELVED:
            return self._release(event, at)
        if event is Event.WOKEN:
            return self._wake(at)
        if event is Event.CLOSED:
            self.open = False
            return [event]
        if event is Event.ESCALATED:
            self.worst = self.policy.escalations[Severity(self.worst)].to
            return self._sound(event, at)
        self.repeats, self.told_at = self.repeats + 1, at
        return [event]

    def _wake(self, at: float) -> list[Event]:
        self.snoozed_until, self.told_at, self.sounding_since = None, at, at
        return [Event.WOKEN]

    def _release(self, event: Event, at: float) -> list[Event]:
        self.aside = self.shelved_until = None
        self.open = False
        return [event, *self._sound(self._named(), at)] if self.holds else [event]

    # -- commands ----------------------------------------------------------------------------------------

    def obey(self, command: AlarmCommand, at: float) -> list[Event]:
        self.taken.add(command.command_id)
        if not self._sensible(command, at):
            return [Event.REFUSED]
        return getattr(self, f"on_{command.verb.value}")(command, at)  # type: ignore[no-any-return] # one for each verb

    def _sensible(self, command: AlarmCommand, at: float) -> bool:
        alive = self.open and self.aside is None
        asks = command.by.strip() != ""
        why = command.reason.strip() != ""
        if not asks or (command.alarm_id and command.alarm_id != self.identity):
            return False
        until = command.until if command.until is not None and math.isfinite(command.until) else -math.inf
        shelf, slack = self.policy.longest_shelf_s, machine.CLOCKS_DIFFER_S
        snooze = self.policy.longest_snooze_s.get(Severity(self.worst), 0.0) if self.worst else 0.0
        return {
            Verb.ACKNOWLEDGE: alive and not self.acknowledged,
            Verb.RESET: alive and not self.holds,
            Verb.SNOOZE: alive and self.holds and why and bool(snooze) and at < until <= at + snooze + slack,
            Verb.WAKE: alive and self.snoozed_until is not None,
            Verb.SHELVE: self.aside is not State.DISABLED and why and at < until <= at + shelf + slack,
            Verb.UNSHELVE: self.aside is State.SHELVED,
            Verb.DISABLE: self.aside is not State.DISABLED and why,
            Verb.ENABLE: self.aside is State.DISABLED,
            Verb.VERDICT: why and bool(self.identity) and command.verdict is not None,
            Verb.COMMENT: why and (bool(self.identity) or self.aside is not None),
        }[command.verb]

    def on_acknowledge(self, _command: AlarmCommand, _at: float) -> list[Event]:
        self.acknowledged, self.snoozed_until, self.repeats = True, None, 0
        if self.holds or self._latches:
            return [Event.ACKNOWLEDGED]
        self.open = False
        return [Event.ACKNOWLEDGED, Event.CLOSED]

    def on_reset(self, _command: AlarmCommand, _at: float) -> list[Event]:
        self.open, self.acknowledged = False, True
        return [Event.RESET]

    def on_snooze(self, command: AlarmCommand, _at: float) -> list[Event]:
        self.snoozed_until = command.until
        return [Event.SNOOZED]

    def _set_aside(self) -> None:
        if not self.open and self.aside is None:
            self.identity, self.verdict, self.acknowledged, self.repeats, self.worst = "", None, False, 0, 0
            self.gravest = 0
        self.open, self.snoozed_until = False, None

    def on_shelve(self, command: AlarmCommand, _at: float) -> list[Event]:
        self._set_aside()
        self.aside, self.shelved_until = State.SHELVED, command.until
        return [Event.SHELVED]

    def on_disable(self, _command: AlarmCommand, _at: float) -> list[Event]:
        self._set_aside()
        self.aside, self.shelved_until = State.DISABLED, None
        return [Event.DISABLED]

    def on_unshelve(self, _command: AlarmCommand, at: float) -> list[Event]:
        return self._release(Event.UNSHELVED, at)

    def on_enable(self, _command: AlarmCommand, at: float) -> list[Event]:
        return self._release(Event.ENABLED, at)

    def on_verdict(self, command: AlarmCommand, _at: float) -> list[Event]:
        self.verdict = command.verdict
        return [Event.VERDICT]

    def on_comment(self, _command: AlarmCommand, _at: float) -> list[Event]:
        return [Event.COMMENTED]

    def on_wake(self, _command: AlarmCommand, at: float) -> list[Event]:
        return self._wake(at)


# -- machine and model side by side ----------------------------------------------------------------------

#: Fields that a record tells; timers begin anew, and what is pending or going is not in it.
_SAME = (
    *("state", "severity", "peak", "holds", "acknowledged", "revision", "position", "command_offset", "alarm_id"),
    *("cause", "raised_event_time", "raised_at", "repeats", "until", "verdict", "evidence"),
)
_TIMERS = ("repeat_at", "escalate_at", "close_at")
#: How an alarm may end: by hand, by an automatic closing, or because nobody needs to look at it any more.
_ENDS = frozenset({Event.CLOSED, Event.RESET})
_FAR = 1e15


class Walk:
    """One alarm stepped by machine and model; every step checks all that must hold.

    Attributes:
        now: the broker's and the detector's clock.
        clock: the device's.
        offset: of the newest reading.
        counts: how often each (state, event, state) was seen.
    """

    def __init__(self, subject: Subject, policy: Policy) -> None:
        self.subject, self.policy = subject, policy
        self.alarm, self.model = Alarm(), Model(subject, policy)
        self.now, self.clock, self.offset, self.command_offset = 1_000.0, 5_000.0, -1, -1
        self.observations: list[Observation] = []
        self.records: list[AlarmRecord] = []
        self.raised: set[str] = set()
        self.counts: Counter[tuple[State, Event, State]] = Counter()
        self.steps = 0

    def observe(self, level: int, hold: bool, *, passes: float, device_passes: float, by_time: bool = False) -> None:
        """A new reading, or (``by_time``) what time says of the newest one."""
        self.now += passes
        self.clock = max(0.0, self.clock + device_passes)
        if not by_time:
            self.offset += 1
        seen = Observation(
            event_time=self.clock,
            at=self.now,
            offset=self.offset,
            level=level,
            hold=hold,
            evidence=Evidence(rules=(f"rule-{level}",), first_offset=self.offset, last_offset=self.offset),
            position=self.offset if by_time else -1,
        )
        before = self.alarm
        after, records = machine.observe(before, self.subject, seen, self.policy)
        self.observations.append(seen)
        self._check(before, after, records, self.model.observe(seen))
        again, more = machine.observe(after, self.subject, seen, self.policy)
        if records and not by_time:
            demand(again is after and not more, "a reading that a record rests on was judged twice", seen, more)

    def observe_again(self, index: int) -> None:
        """An earlier reading is delivered once more; the alarm's records say that it is known."""
        seen = self.observations[index % len(self.observations)]
        if seen.position < 0 and seen.offset <= self.alarm.position:
            after, records = machine.observe(self.alarm, self.subject, seen, self.policy)
            demand(after is self.alarm and not records, "a repeated reading changed an alarm", seen, records)

    def obey(self, command: AlarmCommand, *, passes: float) -> None:
        """A command, and the same one again at its own and at a later offset."""
        self.now += passes
        self.command_offset += 1
        before = self.alarm
        taken_before = command.command_id in self.model.taken
        after, records = self._obey(before, command, self.command_offset)
        if taken_before:
            demand(after is before and not records, "a command was carried out twice", command, records)
            return
        expected = self.model.obey(command, self.now)
        named = [record for record in records if record.command_id]
        demand(len(named) == 1 and named[0] is records[0], "a command has not exactly one record", command, records)
        demand(records[0].by == command.by, "a record does not say who asked", command, records)
        if expected == [Event.REFUSED]:
            same = {"command_offset": before.command_offset, "revision": before.revision, "position": before.position}
            undone = msgspec.structs.replace(after, commands=before.commands, **same)
            demand(undone == before and records[0].reason != "", "a refused command changed something", command, after)
        self._check(before, after, records, expected)
        for offset in (self.command_offset, self.command_offset + 1):
            again, more = self._obey(after, command, offset)
            demand(again is after and not more, "a command was carried out twice", command, more)

    def _obey(self, alarm: Alarm, command: AlarmCommand, offset: int) -> machine.Step:
        return machine.obey(alarm, self.subject, command, offset, self.now, self.offset, self.policy)

    def pass_time(self, passes: float, *, until_due: bool = False) -> None:
        """Time passes, or it becomes exactly the moment at which something is due."""
        self.now += passes
        if until_due and self.alarm.due_at < _FAR:
            self.now = max(self.now, self.alarm.due_at)
        before = self.alarm
        after, records = machine.pass_time(before, self.subject, self.now, self.offset, self.policy)
        self._check(before, after, records, self.model.pass_time(self.now))
        demand(bool(records) == (before.due_at <= self.now), "due_at does not say when time does something", before)
        # One step at a time: closing one thing may leave another that is due already, but never for ever.
        for _ in range(4):
            if self.alarm.due_at > self.now:
                return
            after, records = machine.pass_time(self.alarm, self.subject, self.now, self.offset, self.policy)
            self._check(self.alarm, after, records, self.model.pass_time(self.now))
        raise Wrong(f"time does not come to an end: {self.alarm!r}")

    # -- what must always hold ---------------------------------------------------------------------------

    def _check(self, before: Alarm, after: Alarm, records: Sequence[AlarmRecord], expected: Sequence[Event]) -> None:
        self.steps += 1
        model = self.model
        told = [record.event for record in records]
        demand(told == list(expected), f"events {told}, expected {list(expected)}", before, after)
        demand(after.state is model.state, f"state {after.state}, expected {model.state}", before, records)
        demand(after.holds == model.holds, f"holds: {after.holds}, expected {model.holds}", before, after)
        if after.state in LIVE:
            demand(after.acknowledged == model.acknowledged, "acknowledgement differs", before, after)
            demand(after.severity == model.worst, f"severity {after.severity}, expected {model.worst}", before, after)
            demand(after.repeats == model.repeats, "number of reminders differs", before, after)
        demand(after.alarm_id == model.identity, "identity differs", before, after)
        demand(after.verdict == model.verdict, "verdict differs", before, after)
        demand(after.due_at == min((moment for moment, _ in model.due()), default=NEVER), "due_at differs", after)
        demand(after.peak >= after.severity, "peak is not the worst", after)
        self._check_records(before, after, records)
        if (
            before.acknowledged
            and before.state in LIVE
            and after.state in LIVE
            and before.alarm_id == after.alarm_id
            and not {Event.ESCALATED, Event.RETURNED} & set(told)
        ):
            demand(after.acknowledged, "an acknowledgement was lost", before, after, told)
        if before.state in LIVE and after.state is State.NORMAL:
            demand(bool(_ENDS & set(told)), "an alarm ended without a reason", before, told)
        self._check_saving(after, records)
        if after.quiet:
            self._check_quiet(after)
        self.alarm = after

    def _check_records(self, before: Alarm, after: Alarm, records: Sequence[AlarmRecord]) -> None:
        state, revision, position = before.state, before.revision, before.position
        for record in records:
            step = (state, record.event, record.state)
            demand(step in TRANSITIONS, f"illegal transition {step}", before, after)
            self.counts[step] += 1
            demand(record.revision == revision + 1, "revisions have a gap", before, record)
            demand(record.order > (position, revision), "a later record is not the newer one", before, record)
            if record.event is Event.RAISED:
                demand(record.alarm_id not in self.raised, "an alarm was raised twice", before, record)
                cause = MessageId(self.subject.topic_id, self.subject.partition, record.cause)
                identity = alarm_id(self.subject.device_id, self.subject.kind, cause)
                demand(record.alarm_id == identity, "an alarm's id is not that of its cause", record)
                self.raised.add(record.alarm_id)
            state, revision, position = record.state, record.revision, record.position
        demand((after.state, after.revision, after.position) == (state, revision, position), "no record of it", after)
        self.records.extend(records)

    def _check_saving(self, alarm: Alarm, records: Sequence[AlarmRecord]) -> None:
        demand(machine.unpack(machine.pack(alarm)) == alarm, "a saved alarm is not the same", alarm)
        if not records:
            return
        back = machine.restore(decode_record(encode(records[-1])), self.policy)
        for name in _SAME:
            demand(getattr(back, name) == getattr(alarm, name), f"{name} is not restored", alarm, back)
        for name in _TIMERS:
            here, there = getattr(alarm, name), getattr(back, name)
            demand((here == NEVER) == (there == NEVER) and there >= here, f"{name} is not restored", alarm, back)

    def _check_quiet(self, alarm: Alarm) -> None:
        calm = Observation(event_time=_FAR, at=_FAR, offset=self.offset + 1, level=0)
        seen, records = machine.observe(alarm, self.subject, calm, self.policy)
        later, more = machine.pass_time(alarm, self.subject, _FAR, self.offset + 1, self.policy)
        demand(seen is alarm and later is alarm and not records and not more, "a quiet alarm is not quiet", alarm)

    def crash(self, index: int) -> None:
        """A detector starts from one of the records and takes all readings again."""
        if not self.records:
            return
        index %= len(self.records)
        alarm = machine.restore(self.records[index], self.policy)
        known = {record.alarm_id for record in self.records[: index + 1] if record.event is Event.RAISED}
        for seen in self.observations:
            if seen.position >= 0:
                continue  # silence is found anew, not read again
            after, records = machine.observe(alarm, self.subject, seen, self.policy)
            if seen.offset <= alarm.position:
                demand(after is alarm and not records, "a replayed reading was judged again", seen, records)
            for record in records:
                twice = record.event is Event.RAISED and record.alarm_id in known
                demand(not twice, "an alarm was raised again by a replay", alarm, record)
            alarm = after

    def replay(self, chance: random.Random) -> None:
        """The readings alone, without commands and time: from any record on the end is exactly the same."""
        readings = [seen for seen in self.observations if seen.position < 0]
        end, records = self._fold(Alarm(), readings)
        for _ in range(min(3, len(records))):
            first = chance.randrange(len(records))
            again, more = self._fold(machine.restore(records[first], self.policy), readings)
            demand(again == end and more == records[first + 1 :], "a replay ends differently", end, again)

    def _fold(self, alarm: Alarm, readings: Sequence[Observation]) -> tuple[Alarm, list[AlarmRecord]]:
        records: list[AlarmRecord] = []
        for seen in readings:
            alarm, found = machine.observe(alarm, self.subject, seen, self.policy)
            records.extend(found)
        return alarm, records


# -- random walks ----------------------------------------------------------------------------------------


def random_policy(chance: random.Random) -> Policy:
    """A policy as none of the platform's need be, with short times so that all of them are reached."""

    def some(value: Callable[[Severity], Any]) -> dict[Severity, Any]:
        return {severity: value(severity) for severity in Severity if chance.random() < 0.6}

    def pause() -> float:
        return chance.choice((5.0, 30.0, 200.0))

    worse = some(lambda severity: Escalation(pause(), Severity(min(4, severity + chance.randint(1, 3)))))
    worse.pop(Severity.CRITICAL, None)
    return Policy(
        on_delay_s=chance.choice(_DELAYS),
        off_delay_s=chance.choice(_DELAYS),
        latches_from=chance.choice((None, *Severity)),
        needs_acknowledgement=chance.random() < 0.7,
        auto_close_s=chance.choice((0.0, 50.0, 500.0, NEVER)),
        repeats=some(lambda _: tuple(pause() for _ in range(chance.randint(1, 3)))),
        keeps_repeating=chance.random() < 0.5,
        escalations=worse,
        longest_snooze_s=some(lambda _: chance.choice((100.0, 1000.0))),
        longest_shelf_s=chance.choice((100.0, 1000.0)),
    )


def random_command(chance: random.Random, walk: Walk, number: int) -> AlarmCommand:
    """A command that fits the present state more often than not; some lack a field."""
    fitting = {
        State.NORMAL: (Verb.SHELVE, Verb.DISABLE, Verb.VERDICT, Verb.COMMENT),
        State.ACTIVE: (Verb.ACKNOWLEDGE, Verb.SNOOZE, Verb.SHELVE, Verb.DISABLE, Verb.RESET),
        State.ACKNOWLEDGED: (Verb.SNOOZE, Verb.SHELVE, Verb.VERDICT),
        State.CLEARED: (Verb.ACKNOWLEDGE, Verb.RESET, Verb.SHELVE),
        State.LATCHED: (Verb.RESET, Verb.ACKNOWLEDGE, Verb.DISABLE),
        State.SNOOZED: (Verb.WAKE, Verb.ACKNOWLEDGE, Verb.SNOOZE, Verb.SHELVE),
        State.SHELVED: (Verb.UNSHELVE, Verb.SHELVE, Verb.DISABLE),
        State.DISABLED: (Verb.ENABLE, Verb.ENABLE, Verb.COMMENT),
    }[walk.alarm.state]
    verb = chance.choice(fitting) if chance.random() < 0.7 else chance.choice(tuple(Verb))
    known = chance.random() < 0.02 and number > 0
    return AlarmCommand(
        command_id=f"c{chance.randint(max(0, number - 4), number - 1) if known else number}",
        verb=verb,
        device_id=walk.subject.device_id,
        kind=walk.subject.kind,
        by=chance.choice(("ann", "bob", "ann", "bob", "ann", "bob", " ")),
        at=walk.now,
        reason="" if chance.random() < 0.08 else "as agreed",
        alarm_id=chance.choice(("", "", "", walk.alarm.alarm_id, "another")) if chance.random() < 0.5 else "",
        until=None if chance.random() < 0.1 else walk.now + chance.choice((-5.0, 20.0, 60.0, 130.0, 400.0, 1e7)),
        verdict=None if chance.random() < 0.2 else chance.choice(tuple(Verdict)),
    )


#: What a device shows for a while: chances of (nothing, hold, asserted), and the severities of the last.
_MOODS: tuple[tuple[tuple[float, float, float], tuple[int, ...]], ...] = (
    ((1.0, 0.0, 0.0), (1,)),
    ((0.0, 0.05, 0.95), (3, 3, 3, 4)),
    ((0.1, 0.1, 0.8), (1, 2, 3, 4)),
    ((0.3, 0.4, 0.3), (1, 2)),
    ((0.5, 0.0, 0.5), (2,)),
)


def random_walk(seed: int, steps: int) -> Walk:
    """One alarm's life of so many steps, and its replays.

    Raises:
        Wrong: where the machine does what it must not.
    """
    chance = random.Random(seed)  # noqa: S311 - a proof has to be repeatable, not secret
    kind = chance.choice(tuple(Kind))
    policy = POLICIES[kind] if chance.random() < 0.5 else random_policy(chance)
    walk = Walk(Subject(f"device-{seed % 7}", kind, "Zt3", seed % 3), policy)
    scale = chance.choice((0.2, 1.0, 1.0, 10.0))
    mood, commands = _MOODS[0], 0
    while walk.steps < steps:
        if chance.random() < 0.07:
            mood = chance.choice(_MOODS)
        what = chance.random()
        passes = chance.choice((0.0, 1.0, 1.0, 2.0, 7.0, 40.0, 100.0)) * scale
        if what < 0.60 or not walk.observations:
            kind_of = chance.choices((0, 1, 2), weights=mood[0])[0]
            level = chance.choice(mood[1]) if kind_of == 2 else 0
            late = chance.random() < 0.08
            walk.observe(
                level,
                kind_of == 1,
                passes=passes,
                device_passes=-chance.choice((1.0, 20.0, 300.0)) if late else passes,
                # Silence is found of the newest reading, and ended by the next.
                by_time=level > 0 and walk.offset >= 0 and chance.random() < 0.05,
            )
        elif what < 0.78:
            walk.pass_time(passes, until_due=chance.random() < 0.3)
        elif what < 0.96:
            walk.obey(random_command(chance, walk, commands), passes=passes)
            commands += 1
        elif what < 0.98:
            walk.observe_again(chance.randrange(1000))
        elif chance.random() < 0.3:
            walk.crash(chance.randrange(1000))
    walk.replay(chance)
    return walk


def suite(steps: int = STEPS, seeds: int = SEEDS) -> dict[str, Any]:
    """At least a million random transitions of alarms, each checked against a model and what must always hold."""
    began = time.monotonic()
    counts: Counter[tuple[State, Event, State]] = Counter()
    taken = walks = raised = 0
    runs: list[dict[str, Any]] = []
    for seed in range(1, seeds + 1):
        wrong, done = "", 0
        while done < steps / seeds and not wrong:
            try:
                walk = random_walk(seed * 1_000_000 + walks, WALK_STEPS)
            except Wrong as error:
                wrong = f"seed {seed * 1_000_000 + walks}: {error}"
                break
            counts.update(walk.counts)
            done, walks, raised = done + walk.steps, walks + 1, raised + len(walk.raised)
        taken += done
        runs.append({"seed": seed, "transitions": done, "ok": not wrong, **({"wrong": wrong} if wrong else {})})
    missing = sorted(" ".join(step) for step in TRANSITIONS - counts.keys())
    return {
        "ok": all(run["ok"] for run in runs) and not missing,
        "transitions": taken,
        "records": sum(counts.values()),
        "alarms_raised": raised,
        "walks": walks,
        "seconds": round(time.monotonic() - began, 1),
        "never_seen": missing,
        "seen": {" ".join(step): counts[step] for step in sorted(counts)},
        "runs": runs,
    }
