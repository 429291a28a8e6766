"""The life of an alarm: single rules by example, all of them together by random walks against a model."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from proofs.suite_machine import WALK_STEPS, Walk, random_policy, random_walk
from smoke_platform.domain import alarm_tables
from smoke_platform.domain.alarm_machine import (
    POLICIES,
    ROWS,
    TRANSITIONS,
    Alarm,
    Escalation,
    Observation,
    Policy,
    Subject,
    obey,
    observe,
    pack,
    pass_time,
    restore,
    unpack,
)
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

PAGE = Path(__file__).resolve().parents[2] / "docs" / "alarms.md"
LOW, MEDIUM, HIGH, CRITICAL = Severity


class Story:
    """One alarm of a device that is heard once a second; both clocks agree."""

    def __init__(self, kind: Kind = Kind.FIRE, policy: Policy | None = None) -> None:
        self.subject = Subject("kitchen-1", kind, "Zt3", 2, "house", "kitchen")
        self.policy = policy or POLICIES[kind]
        self.alarm, self.now, self.offset, self.commands = Alarm(), 1000.0, 100, 0
        self.records: list[AlarmRecord] = []

    def read(self, level: int = 0, *, seconds: int = 1, hold: bool = False, late_s: float = 0.0) -> list[Event]:
        """The events of so many readings, each a second after the last one."""
        told: list[Event] = []
        for _ in range(seconds):
            self.now, self.offset = self.now + 1.0, self.offset + 1
            seen = Observation(event_time=self.now - late_s, at=self.now, offset=self.offset, level=level, hold=hold)
            told += self._keep(observe(self.alarm, self.subject, seen, self.policy))
        return told

    def silence(self, level: int) -> list[Event]:
        """What time says of the newest reading."""
        seen = Observation(event_time=self.now, at=self.now, offset=self.offset, level=level, position=self.offset)
        return self._keep(observe(self.alarm, self.subject, seen, self.policy))

    def wait(self, seconds: float) -> list[Event]:
        self.now += seconds
        return self._keep(pass_time(self.alarm, self.subject, self.now, self.offset, self.policy))

    def ask(self, verb: Verb, **fields: object) -> list[Event]:
        self.commands += 1
        command = AlarmCommand(
            **{
                "command_id": f"c{self.commands}",
                "verb": verb,
                "device_id": "kitchen-1",
                "kind": self.subject.kind,
                "by": "ann",
                "at": self.now,
                "reason": "because",
                **fields,
            }
        )
        return self._keep(obey(self.alarm, self.subject, command, self.commands, self.now, self.offset, self.policy))

    def _keep(self, step: tuple[Alarm, tuple[AlarmRecord, ...]]) -> list[Event]:
        self.alarm, records = step
        self.records += records
        return [record.event for record in records]

    @property
    def state(self) -> State:
        return self.alarm.state


# -- a fire ----------------------------------------------------------------------------------------------


def test_a_fire_lives_from_its_first_reading_to_the_reset():
    """An operator would see another alarm than there is."""
    story = Story()
    assert story.read() == []
    assert story.read(HIGH) == [Event.RAISED]
    assert story.read(HIGH, seconds=10) == []
    assert story.read(CRITICAL) == [Event.ESCALATED]
    assert story.ask(Verb.ACKNOWLEDGE) == [Event.ACKNOWLEDGED]
    assert story.read(seconds=60) == []
    assert story.read() == [Event.LATCHED]
    assert story.read(seconds=1000) == []
    assert story.ask(Verb.RESET) == [Event.RESET]
    assert story.state is State.NORMAL
    assert story.alarm.quiet


def test_a_record_tells_what_led_to_the_alarm_and_whose_it_is():
    """A replay would give the alarm another id, and nobody could look up the readings behind it."""
    story = Story()
    evidence = Evidence(rules=("heat_static",), first_offset=7, last_offset=7, values={"temperature_c": 71.0})
    seen = Observation(event_time=50.0, at=51.0, offset=7, level=CRITICAL, evidence=evidence)
    _, (record,) = observe(Alarm(), story.subject, seen, story.policy)
    assert record.alarm_id == alarm_id("kitchen-1", Kind.FIRE, MessageId("Zt3", 2, 7))
    assert (record.cause, record.position, record.revision) == (7, 7, 1)
    assert (record.event_time, record.at, record.raised_event_time, record.raised_at) == (50.0, 51.0, 50.0, 51.0)
    assert (record.severity, record.peak, record.site, record.room) == ("critical", "critical", "house", "kitchen")
    assert record.evidence == evidence


def test_an_alarm_does_not_follow_every_reading_down():
    """One that went down and up again would have to be acknowledged with every flicker."""
    story = Story()
    story.read(CRITICAL)
    story.ask(Verb.ACKNOWLEDGE)
    assert story.read(HIGH, seconds=5) + story.read(CRITICAL, seconds=5) == []
    assert (story.alarm.severity, story.state) == (CRITICAL, State.ACKNOWLEDGED)


def test_what_is_worse_than_what_was_seen_has_to_be_seen_again():
    """A smouldering waste bin that somebody acknowledged could burn the house down in silence."""
    story = Story()
    story.read(HIGH)
    story.ask(Verb.SNOOZE, until=story.now + 600.0)
    assert story.read(CRITICAL) == [Event.ESCALATED]
    assert story.state is State.ACTIVE
    assert story.alarm.until == math.inf
    story.ask(Verb.ACKNOWLEDGE)
    story.read(seconds=61)
    assert story.alarm.acknowledged
    assert story.read(HIGH) == [Event.RETURNED]
    assert not story.alarm.acknowledged
    assert (story.alarm.severity, story.alarm.peak) == (HIGH, CRITICAL)


def test_a_reset_while_it_burns_is_refused():
    """A person could end an alarm whose fire goes on."""
    story = Story()
    story.read(HIGH)
    assert story.ask(Verb.RESET) == [Event.REFUSED]
    assert "still holds" in story.records[-1].reason
    assert story.state is State.ACTIVE


# -- delays ----------------------------------------------------------------------------------------------


def _policy(**changes: object) -> Policy:
    plain = {name: getattr(POLICIES[Kind.SENSOR_FAULT], name) for name in Policy.__slots__}
    return Policy(**{**plain, **changes})


def test_a_limit_for_clearing_keeps_an_alarm_and_never_raises_one():
    """Hysteresis would raise alarms at the lower limit, or alarms would chatter around the upper one."""
    story = Story(policy=_policy(off_delay_s=5.0))
    assert story.read(hold=True, seconds=100) == []
    assert story.alarm == Alarm()
    story.read(MEDIUM)
    assert story.read(hold=True, seconds=100) == []
    assert story.read(seconds=6) == [Event.CLEARED]


def test_the_on_delay_counts_one_stretch_from_its_first_reading():
    """Single findings hours apart would add up to an alarm, or the alarm would not tell where it began."""
    story = Story(policy=_policy(on_delay_s=10.0))
    assert story.read(MEDIUM, seconds=10) == []
    assert story.read() == []
    assert story.alarm == Alarm()
    first = story.offset + 1
    assert story.read(MEDIUM, seconds=5) + story.read(hold=True, seconds=5) == []
    assert story.read(MEDIUM) == [Event.RAISED]
    assert (story.records[-1].evidence.first_offset, story.records[-1].cause) == (first, story.offset)


def test_readings_that_come_late_do_not_run_the_off_delay():
    """A device that sends an hour of its buffer would clear its fault at once."""
    story = Story(policy=_policy(off_delay_s=60.0))
    story.read(MEDIUM)
    story.read(late_s=3600.0)
    assert story.read(seconds=58) == []
    assert story.read() == [Event.CLEARED]


# -- what time does --------------------------------------------------------------------------------------


def test_reminders_of_a_critical_fire_become_rarer_and_do_not_end():
    """A fire that nobody has seen would fall silent, or drown everything else."""
    story = Story()
    story.read(CRITICAL)
    times = [story.now]
    for _ in range(15):
        assert story.wait(story.alarm.due_at - story.now) == [Event.REPEATED]
        times.append(story.now)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[:6] == [60.0, 60.0, 60.0, 60.0, 60.0, 300.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 3600.0
    assert story.alarm.repeats == 15
    story.ask(Verb.ACKNOWLEDGE)
    assert story.wait(1e7) == []


def test_after_an_outage_of_hours_there_is_one_reminder():
    """A detector that starts again would send all it has missed."""
    story = Story()
    story.read(CRITICAL)
    story.alarm = restore(story.records[-1])
    assert story.wait(36_000.0) == [Event.REPEATED]
    assert story.wait(1.0) == []


def test_a_fire_that_nobody_acknowledges_becomes_critical():
    """A fire alarm at night would wait with the warnings."""
    story = Story()
    story.read(HIGH)
    assert story.wait(299.0) == []
    assert story.wait(1.0) == [Event.ESCALATED]
    assert story.alarm.severity == CRITICAL
    assert "300 s" in story.records[-1].reason
    warning = Story()
    warning.read(MEDIUM)
    assert warning.wait(1e6) == []


def test_an_escalation_that_the_policy_no_longer_has_is_left_out():
    """A detector with a new policy could not start from the state that an old one saved."""
    story = Story(policy=_policy(escalations={LOW: Escalation(5.0, HIGH)}, repeats={}))
    story.read(LOW)
    after, records = pass_time(story.alarm, story.subject, story.now + 5.0, story.offset, _policy(escalations={}))
    assert records == () or records[0].event is Event.REPEATED
    assert after.escalate_at == math.inf


def test_what_is_over_closes_as_its_kind_says():
    """Lists of alarms would fill with what nobody has to look at."""
    offline = Story(Kind.OFFLINE)
    assert offline.silence(HIGH) == [Event.RAISED]
    assert offline.read(seconds=61) == [Event.CLEARED]
    assert offline.wait(3599.0) == []
    assert offline.wait(1.0) == [Event.CLOSED]
    seen = Story(Kind.OFFLINE)
    seen.silence(HIGH)
    seen.ask(Verb.ACKNOWLEDGE)
    assert seen.read(seconds=61) == [Event.CLOSED]
    quality = Story(Kind.DATA_QUALITY)
    quality.read(LOW)
    assert quality.read(seconds=301) == [Event.CLOSED]


def test_silence_is_found_at_a_position_that_the_alarm_knows():
    """After a comment on a lonely device's alarm its silence would never be told."""
    story = Story(Kind.OFFLINE)
    story.read()
    story.ask(Verb.SHELVE, until=story.now + 10.0)
    story.ask(Verb.UNSHELVE)
    assert story.alarm.position == story.offset
    assert story.silence(HIGH) == [Event.RAISED]


# -- shelved and disabled --------------------------------------------------------------------------------


def test_a_fire_that_burns_when_its_shelf_ends_is_raised_at_once():
    """Work with a torch would hide the fire that it lit."""
    story = Story()
    assert story.ask(Verb.SHELVE, until=story.now + 1000.0) == [Event.SHELVED]
    assert story.read(HIGH, seconds=30) == []
    cause = story.offset
    assert story.read(hold=True, seconds=30) == []
    assert story.wait(1000.0) == [Event.UNSHELVED, Event.RAISED]
    assert (story.state, story.alarm.cause, story.alarm.severity) == (State.ACTIVE, cause, HIGH)


def test_a_fire_that_came_and_went_under_a_shelf_is_in_the_record_of_its_end():
    """What happened while nobody looked would be nowhere."""
    story = Story()
    story.ask(Verb.DISABLE)
    story.read(CRITICAL, seconds=5)
    last = story.offset
    story.read(seconds=61)
    assert story.ask(Verb.ENABLE) == [Event.ENABLED]
    assert story.state is State.NORMAL
    assert (story.records[-1].peak, story.records[-1].evidence.last_offset) == ("critical", last)


def test_an_alarm_set_aside_and_put_back_by_the_same_reading_is_the_same_alarm():
    """One fire would be counted twice."""
    story = Story()
    story.read(HIGH)
    first = story.alarm.alarm_id
    story.ask(Verb.SHELVE, until=story.now + 60.0)
    assert story.ask(Verb.UNSHELVE) == [Event.UNSHELVED, Event.RETURNED]
    assert story.alarm.alarm_id == first


# -- commands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "field", "value"),
    [
        *((verb, "by", " ") for verb in Verb),
        *((verb, "reason", "") for verb in (Verb.SNOOZE, Verb.SHELVE, Verb.DISABLE, Verb.VERDICT, Verb.COMMENT)),
        *((verb, "until", value) for verb in (Verb.SNOOZE, Verb.SHELVE) for value in (None, math.inf, 1.0, 1e12)),
        (Verb.VERDICT, "verdict", None),
        (Verb.ACKNOWLEDGE, "alarm_id", "another"),
    ],
)
def test_a_command_that_lacks_something_is_refused_by_the_name_of_the_field(verb, field, value):
    """An alarm could be set aside for ever, for no reason or by nobody."""
    story = Story()
    story.read(HIGH)
    fields = {"until": story.now + 60.0, "verdict": Verdict.TEST, field: value}
    assert story.ask(verb, **fields) == [Event.REFUSED]
    assert story.records[-1].reason.startswith(f"{field}: ")
    assert story.state is State.ACTIVE


def test_a_critical_fire_can_be_snoozed_for_minutes_only():
    """Somebody could silence a fire for the night."""
    story = Story()
    story.read(CRITICAL)
    assert story.ask(Verb.SNOOZE, until=story.now + 3600.0) == [Event.REFUSED]
    assert "300 s at most" in story.records[-1].reason
    assert story.ask(Verb.SNOOZE, until=story.now + 300.0) == [Event.SNOOZED]
    assert story.wait(300.0) == [Event.WOKEN]
    assert story.state is State.ACTIVE


def test_a_verdict_can_be_given_after_the_alarm_is_over():
    """Whether it was a real fire is known only when it is out; models are judged by it."""
    story = Story()
    assert story.ask(Verb.VERDICT, verdict=Verdict.TRUE_ALARM) == [Event.REFUSED]
    story.read(HIGH)
    first = story.alarm.alarm_id
    story.read(seconds=61)
    story.ask(Verb.RESET)
    assert story.ask(Verb.VERDICT, verdict=Verdict.FALSE_ALARM, alarm_id=first) == [Event.VERDICT]
    assert (story.records[-1].alarm_id, story.records[-1].verdict) == (first, Verdict.FALSE_ALARM)
    assert story.read(HIGH) == [Event.RAISED]
    assert story.alarm.verdict is None


def test_a_command_sent_twice_is_carried_out_once():
    """A retry of the producer would acknowledge an alarm that nobody has seen."""
    story = Story()
    story.read(HIGH)
    story.ask(Verb.ACKNOWLEDGE, command_id="one")
    story.read(CRITICAL)
    assert story.ask(Verb.ACKNOWLEDGE, command_id="one") == []
    assert story.state is State.ACTIVE


def test_a_command_says_who_asked_and_what_follows_does_not():
    """The audit trail would name a person for what the platform did."""
    story = Story(Kind.OFFLINE)
    story.silence(HIGH)
    story.read(seconds=61)
    assert story.ask(Verb.ACKNOWLEDGE) == [Event.ACKNOWLEDGED, Event.CLOSED]
    acknowledged, closed = story.records[-2:]
    assert (acknowledged.by, acknowledged.command_id, acknowledged.reason) == ("ann", "c1", "because")
    assert (closed.by, closed.command_id, closed.reason) == ("", "", "")


# -- saved and put back ----------------------------------------------------------------------------------


def test_a_death_between_the_two_records_of_one_command_leaves_nothing_half_done():
    """An acknowledged alarm would stay in the list, or a fire under a shelf that ended would be forgotten."""
    story = Story(Kind.OFFLINE)
    story.silence(HIGH)
    story.read(seconds=61)
    story.ask(Verb.ACKNOWLEDGE)
    story.alarm = restore(story.records[-2])
    assert story.state is State.CLEARED
    assert story.wait(0.0) == [Event.CLOSED]
    fire = Story()
    fire.ask(Verb.DISABLE)
    fire.read(HIGH)
    fire.ask(Verb.ENABLE)
    fire.alarm = restore(fire.records[-2])
    assert fire.state is State.NORMAL
    assert fire.read(HIGH) == [Event.RAISED]


def test_a_shelved_alarm_put_back_from_its_record_still_knows_its_fire():
    """A restart during a shelf would forget that it burns."""
    story = Story()
    story.read(HIGH, seconds=5)
    story.ask(Verb.SHELVE, until=story.now + 100.0)
    story.alarm = restore(story.records[-1])
    assert story.alarm.holds
    story.read(hold=True)
    assert story.wait(100.0)[0] is Event.UNSHELVED
    assert story.state is State.ACTIVE


def test_what_is_no_saved_alarm_is_refused():
    """A damaged snapshot would end the detector with a stack trace."""
    story = Story()
    story.read(HIGH)
    assert unpack(pack(story.alarm)) == story.alarm
    for damaged in (b"", b"\xff", pack(story.alarm)[:-1], msgspec.msgpack.encode(["burning"])):
        with pytest.raises(SmokeError, match="saved alarm"):
            unpack(damaged)


# -- all of it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_random_lives_are_those_of_the_model(seed):
    """Any illegal step, lost acknowledgement or double alarm; ``make prove SUITE=machine`` takes a million steps."""
    walk = random_walk(seed, WALK_STEPS)
    assert walk.steps >= WALK_STEPS


class AlarmLife(RuleBasedStateMachine):
    """The same walk with hypothesis at the wheel, so that what fails is shown in the fewest steps."""

    @initialize(kind=st.sampled_from(Kind), policy=st.none() | st.randoms(use_true_random=False))
    def begin(self, kind, policy):
        chosen = POLICIES[kind] if policy is None else random_policy(policy)
        self.walk = Walk(Subject("kitchen-1", kind, "Zt3", 0), chosen)
        self.commands = 0

    @rule(
        level=st.sampled_from([0, 0, *Severity]),
        hold=st.booleans(),
        passes=st.sampled_from([0.0, 1.0, 6.0, 60.0, 400.0]),
        late_s=st.sampled_from([0.0, 0.0, 0.0, 1.0, 500.0]),
    )
    def read(self, level, hold, passes, late_s):
        self.walk.observe(level, hold, passes=passes, device_passes=passes - late_s)

    @precondition(lambda self: self.walk.offset >= 0)
    @rule(level=st.sampled_from(Severity))
    def silence(self, level):
        self.walk.observe(level, False, passes=1.0, device_passes=1.0, by_time=True)

    @rule(passes=st.sampled_from([0.0, 1.0, 60.0, 4000.0]), until_due=st.booleans())
    def wait(self, passes, until_due):
        self.walk.pass_time(passes, until_due=until_due)

    @rule(
        verb=st.sampled_from(Verb),
        until_s=st.sampled_from([None, -1.0, 30.0, 90.0, 1e6]),
        verdict=st.sampled_from([None, *Verdict]),
        said=st.sampled_from([True, True, True, False]),
        wrong=st.sampled_from([False, False, False, True]),
        back=st.sampled_from([0, 0, 0, 1, 3]),
    )
    def ask(self, verb, until_s, verdict, said, wrong, back):
        number = max(0, self.commands - back)
        self.commands += 1
        command = AlarmCommand(
            command_id=f"c{number}",
            verb=verb,
            device_id="kitchen-1",
            kind=self.walk.subject.kind,
            by="ann",
            at=self.walk.now,
            reason="because" if said else "",
            alarm_id="another" if wrong else "",
            until=None if until_s is None else self.walk.now + until_s,
            verdict=verdict,
        )
        self.walk.obey(command, passes=0.0)

    @precondition(lambda self: self.walk.observations)
    @rule(index=st.integers(0, 100))
    def start_again(self, index):
        self.walk.observe_again(index)
        self.walk.crash(index)


TestAlarmLife = AlarmLife.TestCase
TestAlarmLife.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# -- tables and page -------------------------------------------------------------------------------------


def test_the_page_shows_the_machine_as_it_is():
    """A reader would look for states and limits that the platform does not have."""
    page = PAGE.read_text(encoding="utf-8")
    for name, content in alarm_tables.parts().items():
        assert alarm_tables.marked(name, content) in page, (
            "run: python -m smoke_platform.domain.alarm_tables docs/alarms.md"
        )


def test_no_row_of_the_table_says_what_another_says():
    """The page would show one transition with two meanings; waking and escalating have two on purpose."""
    steps = [(before, row.event, row.after or before) for row in ROWS for before in row.before]
    twice = {step for step in steps if steps.count(step) > 1}
    assert twice == {(State.ACTIVE, Event.ESCALATED, State.ACTIVE)}
    assert set(steps) == TRANSITIONS


def test_an_alarm_leaves_the_live_states_only_in_the_ways_that_were_meant():
    """A new row of the table could let alarms vanish."""
    leaving = {(event, after) for before, event, after in TRANSITIONS if before in LIVE and after not in LIVE}
    assert leaving == {
        (Event.CLOSED, State.NORMAL),
        (Event.RESET, State.NORMAL),
        (Event.SHELVED, State.SHELVED),
        (Event.DISABLED, State.DISABLED),
    }


@pytest.mark.parametrize("kind", Kind)
def test_policies_are_possible(kind):
    """A pause of zero would write reminders without end; an escalation could make things better."""
    policy = POLICIES[kind]
    assert all(pause > 0 for pauses in policy.repeats.values() for pause in pauses)
    assert all(list(pauses) == sorted(pauses) for pauses in policy.repeats.values())
    assert all(step.to > severity and step.after_s > 0 for severity, step in policy.escalations.items())
    assert 0 < policy.longest_shelf_s < math.inf
    assert min(policy.on_delay_s, policy.off_delay_s, policy.auto_close_s) >= 0
