"""Which alarm is told when: routes, groups and windows under a clock of the test's own, texts, configuration."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.adapters.notifier import AppriseChannel
from smoke_platform.domain.alarms import AlarmRecord, Event, Evidence, Kind, Severity, State
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.notifications import (
    GATHER_S,
    MOST_NAMED,
    URGENT,
    WINDOW_S,
    Message,
    Plan,
    Post,
    Retry,
    Route,
    Words,
    clean,
    decode_message,
    decode_snapshot,
    default_plan,
    encode_message,
    parse_urls,
    plan_of,
)

TOPIC = "alarms-1"
WORDS = Words(ZoneInfo("UTC"), "http://here/#alarms")
#: The limit of the platform, from the alarm to the attempt to deliver it.
CRITICAL_LIMIT_S = 10.0


def record(
    device: str = "kitchen-1",
    event: Event = Event.RAISED,
    state: State = State.ACTIVE,
    severity: str = "high",
    position: int = 1,
    **other: Any,
) -> AlarmRecord:
    """An alarm's record; ``position`` makes it newer."""
    values: dict[str, Any] = {
        "kind": Kind.FIRE,
        "alarm_id": f"id-{device}",
        "revision": position,
        "topic_id": "readings-1",
        "partition": 0,
        "cause": 1,
        "at": 1_700_000_000.0,
        "raised_at": 1_700_000_000.0,
        "site": "hq",
        **other,
    }
    return AlarmRecord(device_id=device, event=event, state=state, severity=severity, position=position, **values)


def plan(*channels: str, **other: Any) -> Plan:
    document = {"channels": {name: {} for name in channels}, "routes": [{"channels": list(channels)}], **other}
    return plan_of(document, set(channels), "notify.yaml")


def post(*channels: str, **other: Any) -> Post:
    return Post(plan(*(channels or ("ops",)), **other), chance=lambda: 0.5)


def send_all(box: Post, now: float) -> list[Message]:
    """Forms what is due and has everything accepted."""
    box.form(now)
    sent = []
    for channel in box.plan.channels:
        while message := box.next_urgent(channel, now) or box.next_other(channel, now):
            box.begin(message)
            box.accepted(message, now)
            sent.append(message)
    return sent


# -- what is told when ---------------------------------------------------------------------------------------
def test_a_critical_alarm_goes_out_at_once() -> None:
    """Somebody would learn of a fire late."""
    box = post()
    box.take(record(severity="critical"), 0, 0, 100.0)
    (message,) = send_all(box, 100.0)
    assert message.urgent
    assert WORDS.title(message) == "CRITICAL fire: kitchen-1 (site hq)"


def test_later_critical_alarms_are_merged_and_still_in_time() -> None:
    """A message for each of a hundred fires would be read by nobody, and waiting too long helps nobody."""
    box = post()
    box.take(record("a", severity="critical"), 0, 0, 100.0)
    send_all(box, 100.0)
    box.take(record("b", severity="critical"), 0, 1, 100.1)
    box.take(record("c", severity="critical"), 0, 2, 104.0)
    assert send_all(box, 104.0) == []
    (message,) = send_all(box, box.waits_until())
    assert [note.device_id for note in message.notes] == ["b", "c"]
    assert message.formed_at <= 100.1 + CRITICAL_LIMIT_S - 1


def test_a_flood_becomes_one_message_per_group_and_window() -> None:
    """An operator can take one alarm in ten minutes."""
    box = post(group_by=["site", "kind"])
    sent = []
    for number in range(1000):
        now = 100.0 + number * 0.06
        box.take(record(f"d{number}", site=f"s{number % 2}"), 0, number, now)
        sent += send_all(box, now)
    assert len(sent) == 2
    rest = send_all(box, 100.0 + GATHER_S + WINDOW_S + 1)
    assert len(rest) == 2
    assert sum(len(message.notes) for message in sent + rest) == 1000


def test_an_acknowledged_alarm_is_not_told_any_more() -> None:
    """Whoever has seen it would be called again for nothing."""
    box = post()
    box.take(record(), 0, 0, 100.0)
    acknowledged = record(event=Event.ACKNOWLEDGED, state=State.ACKNOWLEDGED, position=2, acknowledged=True)
    box.take(acknowledged, 0, 1, 101.0)
    assert send_all(box, 200.0) == []
    assert box.withdrawn["ops"] == 1
    assert box.unsettled() == {}


@pytest.mark.parametrize("state", [State.LATCHED, State.CLEARED])
def test_an_acknowledged_alarm_whose_condition_is_over_is_not_told(state: State) -> None:
    """Somebody who has a latched alarm in hand would be called again."""
    box = post()
    box.take(record(), 0, 0, 100.0)
    box.take(record(event=Event(state.value), state=state, position=2), 0, 1, 101.0)
    box.take(record(event=Event.ACKNOWLEDGED, state=state, position=3, acknowledged=True), 0, 2, 102.0)
    assert send_all(box, 200.0) == []


def test_the_end_of_what_was_told_is_news_also_after_an_acknowledgement() -> None:
    """Others than the one who acknowledged would go on worrying."""
    box = post()
    box.take(record(severity="critical"), 0, 0, 100.0)
    send_all(box, 100.0)
    box.take(record(event=Event.CLEARED, state=State.CLEARED, severity="critical", position=2), 0, 1, 101.0)
    acknowledged = record(
        event=Event.ACKNOWLEDGED, state=State.CLEARED, severity="critical", position=3, acknowledged=True
    )
    box.take(acknowledged, 0, 2, 102.0)
    (message,) = send_all(box, 200.0)
    assert WORDS.title(message) == "Over: 1 alarm at hq"


def test_what_was_acknowledged_leaves_a_message_that_waits_for_its_next_attempt() -> None:
    """A channel that comes back after an outage would tell of alarms that are long in hand."""
    box = post()
    box.take(record("a", severity="critical"), 0, 0, 100.0)
    box.take(record("b", severity="critical"), 0, 1, 100.0)
    (message,) = box.form(100.0)
    box.begin(message)
    box.refused(message, "down", 101.0)
    box.take(record("a", Event.SNOOZED, State.SNOOZED, "critical", 2), 0, 2, 102.0)
    assert [note.device_id for note in message.notes] == ["b"]
    box.take(record("b", Event.SHELVED, State.SHELVED, "critical", 2), 0, 3, 102.0)
    assert list(box.messages()) == []


@pytest.mark.parametrize(
    ("event", "state", "told"),
    [
        (Event.RAISED, State.ACTIVE, True),
        (Event.REPEATED, State.ACTIVE, True),
        (Event.RETURNED, State.ACTIVE, True),
        (Event.WOKEN, State.ACTIVE, True),
        (Event.WOKEN, State.CLEARED, False),
        (Event.UNSHELVED, State.ACTIVE, True),
        (Event.UNSHELVED, State.NORMAL, False),
        (Event.COMMENTED, State.ACTIVE, False),
        (Event.VERDICT, State.ACTIVE, False),
        (Event.REFUSED, State.ACTIVE, False),
        (Event.SNOOZED, State.SNOOZED, False),
        (Event.ESCALATED, State.SNOOZED, True),
        (Event.ESCALATED, State.SHELVED, False),
        (Event.CLEARED, State.CLEARED, False),
        (Event.CLOSED, State.NORMAL, False),
    ],
)
def test_which_events_tell(event: Event, state: State, told: bool) -> None:
    """People would be called for a comment, or not be called for an alarm that is back."""
    box = post()
    box.take(record(event=event, state=state), 0, 0, 100.0)
    assert bool(send_all(box, 200.0)) is told


def test_an_escalation_to_critical_is_told_at_once_and_once() -> None:
    """A smouldering fire that breaks out must not wait for the end of its group's window."""
    box = post()
    box.take(record(), 0, 0, 100.0)
    box.take(record(event=Event.ESCALATED, severity="critical", position=2), 0, 1, 101.0)
    (message,) = send_all(box, 101.0)
    assert message.urgent
    assert send_all(box, 2000.0) == []


def test_an_escalation_of_an_acknowledged_alarm_is_told() -> None:
    """What was acknowledged was less bad."""
    box = post()
    box.take(record(event=Event.ACKNOWLEDGED, state=State.ACKNOWLEDGED, acknowledged=True), 0, 0, 100.0)
    box.take(record(event=Event.ESCALATED, severity="critical", position=2), 0, 1, 101.0)
    assert len(send_all(box, 101.0)) == 1


def test_the_end_of_what_was_told_is_a_line_of_the_next_summary() -> None:
    """Somebody would drive to a place where all is well; and the end alone must not open the window early."""
    box = post()
    box.take(record(severity="critical"), 0, 0, 100.0)
    send_all(box, 100.0)
    box.take(record(event=Event.CLEARED, state=State.CLEARED, severity="critical", position=2), 0, 1, 110.0)
    box.take(record(event=Event.CLOSED, state=State.NORMAL, severity="critical", position=3), 0, 2, 111.0)
    (message,) = send_all(box, 120.0)
    assert WORDS.title(message) == "Over: 1 alarm at hq"
    assert send_all(box, 5000.0) == []


def test_what_is_over_before_it_was_told_is_still_told() -> None:
    """An alarm that nobody ever heard of would be lost."""
    box = post()
    box.take(record(), 0, 0, 100.0)
    box.take(record(event=Event.CLOSED, state=State.NORMAL, position=2), 0, 1, 101.0)
    (message,) = send_all(box, 200.0)
    assert "over" in WORDS.body(message)
    assert send_all(box, 5000.0) == []


def test_a_record_older_than_the_known_one_is_ignored() -> None:
    """A paused detector that writes again would raise an alarm that is long acknowledged."""
    box = post()
    box.take(record(event=Event.ACKNOWLEDGED, state=State.ACKNOWLEDGED, position=9, acknowledged=True), 0, 0, 100.0)
    assert not box.take(record(severity="critical", position=5), 0, 1, 101.0)
    assert send_all(box, 200.0) == []
    # The readings' topic was made anew: what comes later in the log counts.
    assert box.take(record(severity="critical", position=1, topic_id="readings-2"), 0, 2, 102.0)
    assert len(send_all(box, 200.0)) == 1


def test_the_first_start_tells_only_what_stands() -> None:
    """A week of old alarms would be sent to everybody, or a fire that burns now to nobody."""
    box = post()
    past = [
        record("burns", severity="critical"),
        record("seen"),
        record("seen", Event.ACKNOWLEDGED, State.ACKNOWLEDGED, position=2, acknowledged=True),
        record("gone"),
        record("gone", Event.CLOSED, State.NORMAL, position=2),
        record("cleared"),
        record("cleared", Event.CLEARED, State.CLEARED, position=2),
    ]
    for offset, each in enumerate(past):
        box.take(each, 0, offset, 100.0, past=True)
    box.tell_standing(101.0)
    told = {note.device_id for message in send_all(box, 200.0) for note in message.notes}
    assert told == {"burns", "cleared"}


def test_a_clock_that_was_set_back_does_not_silence_a_group() -> None:
    """After a wrong clock was mended, a group would be silent for as long as it was wrong."""
    box = post()
    box.take(record("a"), 0, 0, 90_000.0)
    assert len(send_all(box, 90_010.0)) == 1
    box.take(record("b"), 0, 1, 1000.0)
    send_all(box, 1000.0)
    assert len(send_all(box, 1000.0 + WINDOW_S)) == 1


# -- failures and restarts -----------------------------------------------------------------------------------
def test_a_message_that_nobody_takes_ends_as_a_dead_letter() -> None:
    """It would be tried for ever, or vanish."""
    box = post(retry={"attempts": 3})
    box.take(record(severity="critical"), 0, 7, 100.0)
    now = 100.0
    (message,) = box.form(now)
    for last in (False, False, True):
        now = max(now, message.due)
        assert (box.next_urgent("ops", now) or box.next_other("ops", now)) is message
        box.begin(message)
        assert box.unsettled() == {0: 7}
        assert box.refused(message, "down", now) is last
    assert box.unsettled() == {}
    assert decode_message(encode_message(message), "file") == message


@given(st.integers(1, 200), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_and_are_bounded(failures: int, chance: float) -> None:
    """A channel that is down would be hammered, or never tried again."""
    retry = Retry()
    whole = min(retry.longest_s, retry.first_s * 2 ** (failures - 1))
    assert whole / 2 <= retry.pause(failures, chance) <= whole


def test_a_restart_keeps_windows_and_what_waits() -> None:
    """A crash in a flood would bring a second message, or lose what was gathered."""
    box = post()
    box.take(record("a"), 0, 0, 100.0)
    send_all(box, 105.0)
    box.take(record("b"), 0, 1, 106.0)
    box.take(record("c", severity="critical"), 1, 4, 106.0)
    (unsent,) = box.form(106.0)
    box.begin(unsent)
    saved = box.snapshot(TOPIC, {0: 2, 1: 5}, 106.0)
    again = post()
    snapshot = decode_snapshot(saved, "state")
    assert snapshot.positions == {0: 2, 1: 5}
    assert again.restore(snapshot, TOPIC, 110.0) == []
    assert [message.message_id for message in send_all(again, 110.0)] == [unsent.message_id]
    assert send_all(again, 105.0 + WINDOW_S - 1) == []
    (late,) = send_all(again, 105.0 + WINDOW_S)
    assert [note.device_id for note in late.notes] == ["b"]
    assert not again.take(record("b"), 0, 1, 800.0), "read again from the committed position"


def test_a_channel_that_was_taken_out_leaves_dead_letters() -> None:
    """What waited for it would vanish with the next start."""
    box = post("ops", "old")
    box.take(record("a", severity="critical"), 0, 0, 100.0)
    box.form(100.0)
    box.take(record("b"), 0, 1, 100.0)
    again = post("ops")
    orphans = again.restore(decode_snapshot(box.snapshot(TOPIC, {}, 101.0), "state"), TOPIC, 102.0)
    assert sorted(note.device_id for message in orphans for note in message.notes) == ["a", "b"]
    assert {message.channel for message in orphans} == {"old"}


def test_a_state_of_another_version_is_refused_with_a_remedy() -> None:
    """A half-understood state would tell wrong things in silence."""
    for value in (b"", b"{}", b'{"version":99,"topic_id":"","positions":{},"held":[],"channels":{}}'):
        with pytest.raises(SmokeError, match=r"state\.json"):
            decode_snapshot(value, "state.json")


DEVICES = [f"d{number}" for number in range(6)]
STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 120.0),
        st.sampled_from(DEVICES),
        st.sampled_from(["raise", "raise", "raise", "escalate", "acknowledge", "clear", "close", "return", "repeat"]),
        st.sampled_from(["low", "high", "critical"]),
    ),
    min_size=1,
    max_size=60,
)


class World:
    """A ``Post`` in a simulated world: channels fail as they like, time passes in steps, the process dies at will."""

    def __init__(self, seed: int, failing: float, crashes: float) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a simulation
        self.failing, self.crashes = failing, crashes
        self.plan = plan("ops", "mail", group_by=["site"], retry={"attempts": 4, "longest_s": 60})
        self.box = Post(self.plan, self.chance.random)
        self.now = 1_000_000.0
        self.offset = 0
        self.position: dict[str, int] = defaultdict(int)
        #: (channel, alarm id) -> since when it is to be told, or absent once it was tried, withdrawn or over.
        self.critical_since: dict[tuple[str, str], float] = {}
        self.owed: set[tuple[str, str]] = set()
        self.named: set[tuple[str, str]] = set()
        self.received: dict[tuple[str, tuple[str, ...]], list[tuple[float, str]]] = defaultdict(list)

    def step(self, device: str, what: str, severity: str) -> None:
        event, state = {
            "raise": (Event.RAISED, State.ACTIVE),
            "escalate": (Event.ESCALATED, State.ACTIVE),
            "acknowledge": (Event.ACKNOWLEDGED, State.ACKNOWLEDGED),
            "clear": (Event.CLEARED, State.CLEARED),
            "close": (Event.CLOSED, State.NORMAL),
            "return": (Event.RETURNED, State.ACTIVE),
            "repeat": (Event.REPEATED, State.ACTIVE),
        }[what]
        self.position[device] += 1
        alarm_id = f"id-{device}"
        made = record(
            device,
            event,
            state,
            severity,
            self.position[device],
            acknowledged=what == "acknowledge",
            site=f"s{ord(device[-1]) % 2}",
        )
        self.box.take(made, 0, self.offset, self.now)
        self.offset += 1
        for channel in self.plan.channels:
            place = (channel, alarm_id)
            if what == "acknowledge":
                self.owed.discard(place)
                self.critical_since.pop(place, None)
            elif event in (Event.RAISED, Event.ESCALATED, Event.RETURNED, Event.REPEATED):
                self.owed.add(place)
                if severity == "critical":
                    self.critical_since.setdefault(place, self.now)
                else:
                    self.critical_since.pop(place, None)  # the newer record says that it is less bad

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            self.tick()
            if self.now >= until:
                return
            self.now = min(until, max(self.now + 0.1, min(self.box.waits_until(), self.now + 30)))

    def tick(self) -> None:
        self.box.form(self.now)
        saved = self.box.snapshot(TOPIC, {0: self.offset}, self.now)
        for channel in self.plan.channels:
            while message := self.box.next_urgent(channel, self.now) or self.box.next_other(channel, self.now):
                self.box.begin(message)
                for note in message.notes:
                    since = self.critical_since.pop((channel, note.alarm_id), self.now)
                    assert self.now - since <= CRITICAL_LIMIT_S
                taken = self.chance.random() >= self.failing
                if taken or self.chance.random() < 0.3:  # accepted, but the answer may be lost
                    self.received[(channel, message.group)].append((self.now, message.message_id))
                    self.name(message)
                if self.chance.random() < self.crashes:
                    self.box = Post(self.plan, self.chance.random)
                    self.box.restore(decode_snapshot(saved, "state"), TOPIC, self.now)
                    return
                if taken:
                    self.box.accepted(message, self.now)
                elif self.box.refused(message, "down", self.now):
                    self.name(message)
                saved = self.box.snapshot(TOPIC, {0: self.offset}, self.now)

    def name(self, message: Message) -> None:
        for note in message.notes:
            self.owed.discard((message.channel, note.alarm_id))
            self.named.add((message.channel, note.alarm_id))

    def check_late(self) -> None:
        late = {place: since for place, since in self.critical_since.items() if self.now - since > CRITICAL_LIMIT_S}
        assert late == {}


@given(STEPS, st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.2]))
@settings(max_examples=120, deadline=None)
def test_bounds_hold_whatever_happens(
    steps: Sequence[tuple[float, str, str, str]], seed: int, failing: float, crashes: float
) -> None:
    """Any alarms, failures and crashes: one message per window and group, no critical one late, none lost."""
    world = World(seed, failing, crashes)
    for wait, device, what, severity in steps:
        world.step(device, what, severity)
        for _ in range(int(wait // 9) + 1):
            world.pass_time(min(wait, 9.0))
            world.check_late()
    world.crashes = 0.0
    world.pass_time(4000.0)
    for (_, group), times in world.received.items():
        if group == URGENT:
            continue
        # A message that is sent again after a lost answer or a crash has its old id: it is the same message.
        firsts: dict[str, float] = {}
        lasts: dict[str, float] = {}
        for at, message_id in times:
            firsts.setdefault(message_id, at)
            lasts[message_id] = at
        ordered = sorted(firsts, key=firsts.__getitem__)
        for earlier, later in pairwise(ordered):
            assert firsts[later] - lasts[earlier] >= WINDOW_S - 1e-6
    assert world.owed == set(), "an alarm in no message, in no dead letter, and not acknowledged"
    assert world.box.unsettled() == {}
    assert list(world.box.messages()) == []


# -- words ---------------------------------------------------------------------------------------------------
def test_a_message_says_what_is_needed_at_night() -> None:
    """Whoever is woken must know what, where, since when and where to look."""
    box = post()
    evidence = Evidence(rules=("heat_rise", "model"), score=0.983, threshold=0.5)
    box.take(record(severity="critical", room="kitchen", evidence=evidence), 0, 0, 100.0)
    (message,) = box.form(100.0)
    words = Words(ZoneInfo("Europe/Vienna"), "http://here/#alarms")
    body = words.body(message)
    for needed in (
        "CRITICAL fire: kitchen-1 (site hq, room kitchen)",
        "2023-11-14 22:13:20 UTC (23:13:20 Europe/Vienna)",
        "rules heat_rise, model",
        "score 0.98 (threshold 0.50)",
        "alarm id-kitchen-1",
        "http://here/#alarms",
        message.message_id,
    ):
        assert needed in body


def test_many_alarms_are_counted_and_the_worst_are_named() -> None:
    """A message of thousands of lines is refused by most services, and read by nobody."""
    box = post()
    for number in range(500):
        box.take(record(f"low-{number}", severity="low"), 0, number, 100.0)
    box.take(record("worst", severity="high"), 0, 500, 100.0)
    (message,) = send_all(box, 105.0)
    body = WORDS.body(message)
    assert WORDS.title(message) == "501 alarms (500 LOW, 1 HIGH) at hq"
    assert body.count("alarm id-") == MOST_NAMED
    assert "alarm id-worst" in body
    assert f"and {501 - MOST_NAMED} more" in body
    assert len(body) < 16_000


@given(st.text(max_size=300))
def test_names_cannot_break_a_message(name: str) -> None:
    """A device names itself: it could forge lines, call a whole chat, or fill the message."""
    shown = clean(name)
    assert len(shown) <= 64
    assert "".join(shown.splitlines()) == shown
    assert not set(shown) & set("<>@`*[]\\\r\n\x1b\u202e")


# -- configuration -------------------------------------------------------------------------------------------
def test_routes_choose_by_severity_kind_site_and_event() -> None:
    """The wrong people would be woken."""
    document = {
        "channels": {"night": {}, "office": {}, "log": {"type": "log"}},
        "routes": [
            {"channels": ["night"], "min_severity": "critical", "kinds": ["fire"], "sites": ["plant-*"]},
            {"channels": ["office", "log"], "max_severity": "high", "events": ["raised"]},
        ],
        "group_by": [],
    }
    chosen = plan_of(document, {"night", "office"}, "notify.yaml")
    box = Post(chosen)

    def told(**values: Any) -> set[str]:
        box = Post(chosen)
        box.take(record(**values), 0, 0, 100.0)
        return {message.channel for message in send_all(box, 200.0)}

    assert told(severity="critical", site="plant-7") == {"night"}
    assert told(severity="critical", site="hq") == set()
    assert told(severity="critical", site="plant-7", kind=Kind.SENSOR_FAULT) == set()
    assert told(severity="low") == {"office", "log"}
    assert told(severity="low", event=Event.REPEATED) == set()
    assert box.plan.group_by == ()


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (None, "object"),
        ({"channels": {"ops": {}}}, "routes"),
        ({"channels": {"ops": {}}, "routes": []}, "routes"),
        ({"channels": {"ops": {"url": "json://secret"}}, "routes": [{"channels": ["ops"]}]}, "url"),
        ({"channels": {"ops": {"type": "fax"}}, "routes": [{"channels": ["ops"]}]}, "type"),
        ({"channels": {"Ops!": {}}, "routes": [{"channels": ["ops"]}]}, "Ops"),
        ({"channels": {"ops": {}}, "routes": [{"channels": ["opps"]}]}, r"routes\[0\]\.channels"),
        ({"channels": {"ops": {}}, "routes": [{"channels": []}]}, r"routes\[0\]\.channels"),
        ({"channels": {"ops": {}}, "routes": [{"channels": ["ops"], "min_severity": "bad"}]}, "min_severity"),
        ({"channels": {"ops": {}}, "routes": [{"channels": ["ops"], "kinds": ["smoke"]}]}, r"routes\[0\]\.kinds"),
        ({"channels": {"ops": {}}, "routes": [{"channels": ["ops"], "events": ["closed"]}]}, "events"),
        ({"channels": {"ops": {}}, "routes": [{"channels": ["ops"], "site": "x"}]}, "site"),
        (
            {"channels": {"ops": {}}, "routes": [{"channels": ["ops"], "min_severity": "high", "max_severity": "low"}]},
            "max_severity",
        ),
        ({"channels": {"ops": {}}, "routes": [{"channels": ["ops"]}], "retry": {"attempts": 0}}, "attempts"),
        ({"channels": {"ops": {}}, "routes": [{"channels": ["ops"]}], "group_by": ["colour"]}, "group_by"),
        ({"channels": {"ops": {}, "b": {}}, "routes": [{"channels": ["ops"]}]}, r"channels\.b"),
        ({"channels": {"log": {"type": "log"}}, "routes": [{"channels": ["log"]}]}, "ops"),
    ],
)
def test_a_fault_in_the_configuration_is_named(document: Any, named: str) -> None:
    """A mistyped route would send a fire's alarm nowhere, and nobody would know."""
    with pytest.raises(SmokeError, match=named) as caught:
        plan_of(document, {"ops"}, "notify.yaml")
    assert "notify.yaml" in str(caught.value)


def test_the_example_is_a_legal_plan() -> None:
    """Whoever copies it would start with a fault."""
    from pathlib import Path

    import yaml

    example = Path(__file__).resolve().parents[2] / "deploy" / "notify.example.yaml"
    document = yaml.safe_load(example.read_text(encoding="utf-8"))
    names = {name for name, channel in document["channels"].items() if (channel or {}).get("type", "url") == "url"}
    assert set(plan_of(document, names, "example").channels) >= names


@given(st.text(max_size=60))
def test_complaints_about_urls_never_quote_them(text: str) -> None:
    """A password would stand in a log."""
    secret = "hunter2secret"  # noqa: S105 - a made-up one, looked for in the complaint
    with pytest.raises(SmokeError) as caught:
        parse_urls(f"{text} ops=json://user:{secret}@host/x ops=json://user:{secret}@host/x")
    assert secret not in str(caught.value)


def test_a_url_that_apprise_does_not_know_is_refused_without_quoting_it() -> None:
    """The mistake would be found at the first fire."""
    with pytest.raises(SmokeError, match="channel ops") as caught:
        AppriseChannel("ops", "nosuch://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


def test_what_a_service_says_is_shown_without_the_urls_secrets() -> None:
    """Tokens would stand in logs, in health answers and in dead letters."""
    channel = AppriseChannel("ops", "jsons://user:hunter2@example.org/tokentoken?+X-Key=abcdef")
    said = channel.redacted("https://user:hunter2@example.org/tokentoken failed, abcdef\nline two")
    assert "example.org" in said
    assert "failed" in said
    assert not any(secret in said for secret in ("user", "hunter2", "tokentoken", "abcdef", "\n"))


def test_without_a_file_every_channel_gets_everything() -> None:
    """The embedded platform must tell of alarms without any configuration."""
    chosen = default_plan({"ops"})
    assert set(chosen.channels) == {"console", "log", "ops"}
    assert chosen.routes == (Route(channels=("console", "log", "ops")),)
    with pytest.raises(SmokeError, match="console"):
        default_plan({"console"})


def test_severity_is_compared_by_how_bad_it_is() -> None:
    """Compared as words, high would lie below low."""
    assert Severity.LOW < Severity.HIGH < Severity.CRITICAL
