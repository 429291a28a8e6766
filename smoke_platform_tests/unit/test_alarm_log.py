"""The board of alarms, their words and the checks of commands: what people are shown must be what holds."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.domain.alarm_board import GROUPS, Board, Wanted, in_order, is_complete, states_of
from smoke_platform.domain.alarm_words import duration, event_words, make_command, moment, outcome, printable, why
from smoke_platform.domain.alarms import LIVE, AlarmRecord, Event, Evidence, Kind, State, Verb, Verdict, encode
from smoke_platform.domain.errors import SmokeError
from smoke_platform_tests.alarm_parts import later, record

DEVICES = ("a", "b", "c/fire")


def take(board: Board, *records: AlarmRecord) -> list[bool]:
    first = board.sequence
    return [
        board.take(0, first + place, 0, f"{each.device_id}/{each.kind}".encode(), encode(each))
        for place, each in enumerate(records)
    ]


RECORDS = st.builds(
    record,
    st.sampled_from(DEVICES),
    st.sampled_from([Kind.FIRE, Kind.OFFLINE]),
    state=st.sampled_from(list(State)),
    severity=st.sampled_from(["low", "critical"]),
    topic_id=st.sampled_from(["old", "new"]),
    position=st.integers(0, 5),
    revision=st.integers(1, 3),
    command_id=st.sampled_from(["", "k1", "k2"]),
)


@given(st.lists(RECORDS, max_size=60), st.integers(1, 3))
def test_the_board_holds_the_newest_of_each_whatever_comes(records: list[AlarmRecord], most_closed: int) -> None:
    """A late record of a paused detector would show an alarm that is over, or hide one that stands."""
    board = Board(most_closed=most_closed)
    expected: dict[tuple[str, Kind], AlarmRecord] = {}
    taken = 0
    for each in records:
        before = expected.get((each.device_id, each.kind))
        newer = before is None or before.topic_id != each.topic_id or each.order > before.order
        assert take(board, each) == [newer]
        if newer:
            expected[each.device_id, each.kind] = each
            taken += 1
        held = {(it.device_id, it.kind): it for it in board.held()}
        standing = {key: it for key, it in expected.items() if it.state is not State.NORMAL}
        assert {key: it for key, it in held.items() if it.state is not State.NORMAL} == standing
        assert held.items() <= expected.items()
        assert len(held) - len(standing) <= most_closed
        assert sum(board.counts.values()) == len(standing)
        assert all(number > 0 for number in board.counts.values())
        for found in held.values():
            by_id = board.by_id(found.alarm_id)
            assert by_id is not None
            assert by_id.alarm_id == found.alarm_id
    assert board.sequence == taken
    assert board.stale == len(records) - taken


@given(st.lists(RECORDS, max_size=40), st.integers(0, 45), st.integers(1, 10))
def test_what_happened_since_is_complete_or_says_that_it_is_not(
    records: list[AlarmRecord], since: int, most_events: int
) -> None:
    """A follower that misses an alarm without a word is worse than none."""
    board = Board(most_events=most_events)
    take(board, *records)
    found, gap = board.since(since)
    sequences = [each.sequence for each in found]
    assert sequences == sorted(sequences)
    if not gap:
        assert sequences == list(range(since + 1, board.sequence + 1))
    else:
        assert sequences == list(range(board.sequence - most_events + 1, board.sequence + 1))


def test_an_old_record_stays_old_after_its_alarm_is_no_longer_kept() -> None:
    """An alarm that is over must not come back to life because the list of those that are over is short."""
    board = Board(most_closed=1)
    raised = record("a")
    over = later(raised, Event.CLOSED, state=State.NORMAL)
    take(board, raised, over, record("b", state=State.NORMAL), record("c", state=State.NORMAL))
    assert board.get("a", Kind.FIRE) is None
    assert take(board, raised) == [False]
    assert board.counts == {}
    assert take(board, later(over, Event.RAISED, state=State.ACTIVE)) == [True]


def test_answers_history_and_tombstones_are_found() -> None:
    """Whoever waits for an answer must get his own; a record that was deleted must not stand for ever."""
    board = Board(most_answers=2)
    first = record("a")
    answers = [later(first, Event.REFUSED, revision=number, command_id=f"k{number}") for number in (2, 3, 4)]
    take(board, first, record("b"), *answers)
    assert board.answer("k2") is None
    assert board.answer("k4") == answers[2]
    assert [it.record for it in board.last(key=("a", Kind.FIRE), limit=2)] == answers[1:]
    assert [it.record for it in board.last(alarm_id=first.alarm_id)] == [first, *answers]
    assert board.take(0, 9, 0, b"a/fire", None) is True
    assert board.take(0, 10, 0, b"no kind", None) is False
    assert [it.device_id for it in board.held()] == ["b"]
    with pytest.raises(SmokeError, match="alarm record"):
        board.take(0, 11, 0, b"a/fire", b"{}")


def test_the_worst_and_newest_that_nobody_has_seen_comes_first() -> None:
    """In a flood only the top of the list is read."""
    records = [
        record("low", severity="low", raised_at=9.0),
        record("odd", severity="?", raised_at=9.0),
        record("over", severity="critical", state=State.NORMAL, raised_at=9.0),
        record("old", severity="critical", raised_at=1.0),
        record("seen", severity="critical", acknowledged=True, raised_at=5.0),
        record("new", severity="critical", raised_at=2.0),
    ]
    assert [it.device_id for it in in_order(records)] == ["new", "old", "seen", "low", "odd", "over"]


def test_filters_let_through_what_is_wanted() -> None:
    """A filter that hides a live alarm is dangerous; one that shows everything is useless."""
    one = record("Kitchen-1", site="north")
    shelved = record("kitchen-2", state=State.SHELVED)
    offline = record("attic", Kind.OFFLINE, severity="low")
    every = [one, shelved, offline]
    assert Wanted().chosen(every) == [one, offline]
    assert Wanted(states_of("aside")).chosen(every) == [shelved]
    assert Wanted(states_of("shelved")).chosen(every) == [shelved]
    assert Wanted(GROUPS["all"], device="KITCHEN").chosen(every) == [one, shelved]
    assert Wanted(kind=Kind.OFFLINE).chosen(every) == Wanted(severity="low").chosen(every) == [offline]
    assert Wanted(site="north").chosen(every) == [one]
    assert Wanted(site="").chosen(every) == [offline]
    with pytest.raises(SmokeError, match="state"):
        states_of("loud")


def test_a_trail_with_a_hole_is_not_called_complete() -> None:
    """An audit that looks whole and is not misleads an inquiry."""
    first = record()
    second, third = later(first, Event.ACKNOWLEDGED), later(later(first, Event.CLEARED), Event.CLOSED)
    assert is_complete([first, second, third])
    assert not is_complete([first, third])
    assert not is_complete([second, third])
    assert not is_complete([])
    assert is_complete([later(first, Event.SHELVED, revision=1)])
    assert is_complete([third, later(third, Event.RAISED)]), "only the latest alarm counts"


def test_words_say_why_and_what_came_of_it() -> None:
    """Somebody who is woken at night must not have to look rules up."""
    fire = record(evidence=Evidence(rules=("heat_rise", "model"), score=0.913, threshold=0.5))
    assert why(fire) == "heat_rise: it becomes hot fast; model 0.91, threshold 0.50"
    assert why(record(kind=Kind.OFFLINE, evidence=Evidence(rules=("silent",)))) == "the device has stopped to report"
    assert "stuck temperature_c" in why(
        record(kind=Kind.SENSOR_FAULT, evidence=Evidence(rules=("stuck_temperature_c",)))
    )
    refused = later(fire, Event.REFUSED, reason="it is acknowledged already")
    assert outcome(refused, Verb.ACKNOWLEDGE) == "refused for the fire alarm of kitchen-1: it is acknowledged already"
    snoozed = later(fire, Event.SNOOZED, state=State.SNOOZED, until=0.0, by="ann", reason="there\nnow")
    assert outcome(snoozed, Verb.SNOOZE) == (
        "done: the fire alarm of kitchen-1 is now snoozed until 1970-01-01 00:00:00Z"
    )
    assert event_words(snoozed) == "snoozed by ann: there?now"
    judged = later(fire, Event.VERDICT, verdict=Verdict.FALSE_ALARM, by="ann")
    assert event_words(judged) == "verdict false alarm by ann"
    assert moment(1e300) == ""
    assert printable("a\x1b[31m\u202eb" * 99, 8) == "a?[31m?…"


@given(st.text(max_size=12))
def test_a_duration_is_positive_or_refused(text: str) -> None:
    """A mistyped duration must not silence an alarm for a moment, or for ever."""
    with contextlib.suppress(SmokeError):
        assert duration(text) > 0
    assert duration("1d2h3m4s") == 93_784.0


@pytest.mark.parametrize(
    ("verb", "fields", "field"),
    [
        (Verb.ACKNOWLEDGE, {"by": "  "}, "by"),
        (Verb.ACKNOWLEDGE, {"by": "x" * 201}, "by"),
        (Verb.ACKNOWLEDGE, {"by": "\ud800"}, "by"),
        (Verb.ACKNOWLEDGE, {"until": 2000.0}, "until"),
        (Verb.ACKNOWLEDGE, {"verdict": Verdict.TEST}, "verdict"),
        (Verb.COMMENT, {"reason": "x" * 1001}, "reason"),
        (Verb.SHELVE, {"until": 2000.0}, "reason"),
        (Verb.SNOOZE, {"reason": "r"}, "until"),
        (Verb.SNOOZE, {"reason": "r", "until": 999.0}, "until"),
        (Verb.SNOOZE, {"reason": "r", "until": math.nan}, "until"),
        (Verb.SHELVE, {"reason": "r", "until": 1e12}, "until"),
        (Verb.VERDICT, {"reason": "r"}, "verdict"),
    ],
)
def test_a_command_that_lacks_something_is_not_sent(verb: Verb, fields: dict[str, Any], field: str) -> None:
    """The detector would refuse it later, when the person has gone on to something else."""
    with pytest.raises(SmokeError, match=field) as caught:
        make_command(verb, "a", Kind.FIRE, now=1000.0, **{"by": "ann", **fields})
    assert caught.value.remedy


def test_each_command_has_an_id_of_its_own() -> None:
    """Two commands under one id would be carried out once."""
    made = [make_command(Verb.SNOOZE, "a", Kind.FIRE, by=" ann ", now=1000.0, reason="r", until=1060.0) for _ in "ab"]
    assert made[0].command_id != made[1].command_id
    assert made[0].by == "ann"
    assert msgspec.structs.replace(made[0], command_id=made[1].command_id) == made[1]
    assert State.SHELVED not in LIVE
