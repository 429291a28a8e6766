"""A challenger in shadow: where alarms begin, what is counted, and what is decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.domain.alarm_policies import POLICIES
from smoke_platform.domain.alarm_replay import Readings, Replay, alarm_begins, replay, watched_days
from smoke_platform.domain.alarms import Kind, Severity
from smoke_platform.domain.features import FEATURE_COUNT
from smoke_platform.domain.readings import ALL_SENSOR_NAMES
from smoke_platform.domain.shadow import ShadowFigures, challenger_decision, compare

OFF = POLICIES[Kind.FIRE].off_delay_s
HIGH = int(Severity.HIGH)


def readings(slots: list[int], seconds: list[float], counted: list[bool] | None = None) -> Readings:
    count = len(slots)
    return Readings(
        slots=np.array(slots, dtype=np.int64),
        seconds=np.array(seconds, dtype=np.float64),
        sensors=np.full((count, len(ALL_SENSOR_NAMES)), np.nan),
        features=np.full((count, FEATURE_COUNT), np.nan, dtype=np.float32),
        counted=np.array(counted or [True] * count, dtype=np.bool_),
    )


def one_by_one(slots: list[int], seconds: list[float], level: list[int]) -> list[int]:
    """Where alarms begin, told reading by reading, with the timers of the alarm path."""
    begins, sounds, gone = [], {}, {}
    for row, slot in enumerate(slots):
        if level[row]:
            gone.pop(slot, None)
            if level[row] >= HIGH and not sounds.get(slot):
                sounds[slot] = True
                begins.append(row)
        elif seconds[row] - gone.setdefault(slot, seconds[row]) >= OFF:
            sounds[slot] = False
    return begins


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([1.0, 5.0, 30.0, 59.0, 60.0, 300.0]), st.integers(0, 4)),
        max_size=60,
    )
)
def test_alarms_begin_where_a_reader_of_every_reading_says(rows: list[tuple[int, float, int]]) -> None:
    """Skipping the quiet readings for speed must not join two alarms, split one, or lose one."""
    slots = [slot for slot, *_ in rows]
    seconds = np.cumsum([step for _, step, _ in rows]).tolist()
    level = [entry[2] for entry in rows]
    found = alarm_begins(np.array(slots, dtype=np.int64), np.array(seconds), np.array(level, dtype=np.uint8))
    assert found.tolist() == one_by_one(slots, seconds, level)


def test_a_model_that_calls_fire_raises_an_alarm_by_the_rules() -> None:
    """The comparison must go through persistence and limits of the alarm path, not through single scores."""
    count = 60
    given_readings = readings([0] * count, [float(second) for second in range(count)])
    scores = np.zeros(count)
    scores[10] = 0.99
    assert len(replay(given_readings, scores, 0.5).begins) == 0
    scores[20:50] = 0.99
    found = replay(given_readings, scores, 0.5)
    assert len(found.begins) == 1
    assert 20 < found.begins[0] < 50
    warm = replace(given_readings, counted=np.arange(count) > found.begins[0])
    assert len(replay(warm, scores, 0.5).begins) == 0


def test_time_watched_leaves_out_silence() -> None:
    """A device that was off for a day would count as a day without alarms."""
    found = watched_days(readings([0, 0, 0, 1, 1], [0.0, 30.0, 90_000.0, 0.0, 60.0]))
    assert found == pytest.approx(90.0 / 86_400)


def test_both_sides_are_counted_on_the_same_readings() -> None:
    """A report that mixes up the two would promote the worse one."""
    given_readings = readings([0] * 4 + [1] * 4, [0.0, 1000.0, 2000.0, 3000.0] * 2)
    truth = np.array([np.nan, 1.0, 0.0, np.nan, 0.0, 0.0, np.nan, np.nan])
    champion = _replay([0.1, 0.9, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1], [1, 3])
    challenger = _replay([0.1, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1, np.nan], [2, 3])
    found = compare(given_readings, champion, challenger, truth)
    figures = found.figures
    assert (figures.readings, figures.unscored) == (8, 1)
    assert (figures.champion_calls, figures.challenger_calls, figures.call_disagreements) == (2, 2, 2)
    assert (figures.only_champion, figures.only_challenger) == (1, 1)
    assert (figures.only_champion_in_fire, figures.only_challenger_in_quiet) == (1, 1)
    assert (figures.known, figures.known_fires, figures.champion_right, figures.challenger_right) == (4, 1, 4, 2)
    assert (figures.detection("champion"), figures.detection("challenger")) == (1.0, pytest.approx(1 / 3))
    assert found.disagreements == ((1, "champion"), (2, "challenger"))
    assert sum(found.classes) == 7


def _replay(scores: list[float], begins: list[int]) -> Replay:
    given_scores = np.array(scores)
    return Replay(given_scores, given_scores >= 0.5, np.array(begins, dtype=np.int64))


def test_an_alarm_a_little_later_is_the_same_alarm() -> None:
    """A challenger that alarms later has not missed the fire, and its delay must be seen."""
    given_readings = readings([0] * 5 + [1], [0.0, 10.0, 60.0, 5000.0, 9000.0, 0.0])
    truth = np.array([1.0, 1.0, np.nan, np.nan, np.nan, 1.0])
    found = compare(given_readings, _replay([0.9] * 6, [0, 3]), _replay([0.9] * 6, [1, 2, 4, 5]), truth).figures
    assert (found.only_champion, found.only_challenger, found.only_challenger_in_fire) == (1, 3, 1)
    assert (found.both_in_fire, found.later_in_fire_s) == (1, 10.0)


@given(st.builds(ShadowFigures, readings=st.integers(0, 9), only_champion=st.integers(0, 9)), st.integers(0, 9))
def test_windows_add_up_and_survive_their_report(figures: ShadowFigures, count: int) -> None:
    """The sums stand in the last report: what is lost there is lost for the decision."""
    total = figures + ShadowFigures(readings=count)
    assert total.readings == figures.readings + count
    assert ShadowFigures.of(total.as_dict()) == total
    assert ShadowFigures.of({**total.as_dict(), "unknown": 1}) == total


EVEN = ShadowFigures(device_hours=30.0, only_champion=1, only_challenger=1)
ENOUGH = ShadowFigures(readings=90_000, device_hours=30.0, champion_alarms=4, challenger_alarms=4)


@pytest.mark.parametrize(
    ("figures", "action", "word"),
    [
        (ENOUGH, "promote", "30.0 of 24 device-hours"),
        (replace(ENOUGH, device_hours=23.9), "watch", "23.9 of 24"),
        (replace(ENOUGH, device_hours=1.0, unscored=1), "drop", "no usable probability"),
        (replace(ENOUGH, device_hours=1.0, only_champion=1, only_champion_in_fire=1), "drop", "known fires"),
        (replace(EVEN, only_champion_in_fire=1, only_challenger_in_fire=1), "promote", ""),
        (replace(ENOUGH, device_hours=1.0, only_challenger=6), "drop", "sign test"),
        (replace(ENOUGH, only_challenger=4), "promote", ""),
        (replace(ENOUGH, both_in_fire=4, later_in_fire_s=41.0), "drop", "10.2 s later"),
        (replace(ENOUGH, both_in_fire=4, later_in_fire_s=39.0), "promote", ""),
        (replace(ENOUGH, only_champion=9), "watch", "peace or blindness"),
        (replace(ENOUGH, only_champion=9, only_champion_in_quiet=9), "promote", ""),
        (replace(ENOUGH, only_challenger=9, only_challenger_in_fire=9), "promote", ""),
    ],
)  # fmt: skip
def test_what_becomes_of_a_challenger(figures: ShadowFigures, action: str, word: str) -> None:
    """A challenger that misses fires or cries wolf must never become champion, and a good one not wait for ever."""
    decision = challenger_decision(figures, 24.0)
    assert decision.action == action
    assert word in decision.reason
