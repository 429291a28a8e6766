"""Live performance: which readings a verdict covers, whose truth counts, fires and alarms as episodes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from smoke_platform.domain import live_performance as live

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def _at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def _record(event: str, seconds: float | None, **more: Any) -> dict[str, Any]:
    return {
        "device_id": "d",
        "kind": "fire",
        "alarm_id": "a",
        "event": event,
        "severity": "high",
        "revision": 0,
        "topic_id": "t",
        "event_time": None if seconds is None else _at(seconds),
        "holds": event in ("raised", "returned", "escalated", "acknowledged"),
        "verdict": None,
        "model_version": "3",
        **more,
    }


def _holds(*records: dict[str, Any]) -> list[live.Hold]:
    rows = [{**record, "revision": number} for number, record in enumerate(records)]
    frame = pl.DataFrame(rows, schema_overrides={"event_time": pl.Datetime("us", "UTC"), "verdict": pl.String})
    # Records land in any order.
    return live.holds_of(frame.reverse())


def test_a_verdict_covers_the_alarm_without_its_off_delay() -> None:
    """Or the quiet minute that an alarm waits for before it is over counts as burning."""
    holds = _holds(_record("raised", 0), _record("latched", 360), _record("verdict", None, verdict="true_alarm"))
    assert [(hold.begins, hold.ends, hold.truth) for hold in holds] == [(_at(0), _at(300), True)]
    rows = pl.DataFrame(
        {
            "device_id": ["d", "d", "d", "d", "e"],
            "event_time": [_at(-1), _at(0), _at(300), _at(301), _at(100)],
            "source": ["device"] * 5,
            "fire_alarm": pl.Series([None] * 5, dtype=pl.Boolean),
        }
    )
    found = live.with_truth(rows, holds).sort("device_id", "event_time")
    assert found["truth"].to_list() == [None, True, True, None, None]
    assert found["verdict_truth"].to_list() == [None, True, True, None, None]


def test_an_alarm_that_comes_back_has_two_stretches_and_one_verdict() -> None:
    """Or the quiet time between two bursts of one alarm counts as burning."""
    holds = _holds(
        _record("raised", 0),
        _record("latched", 160),
        _record("returned", 500),
        _record("verdict", None, verdict="false_alarm"),
        _record("latched", 660),
    )
    assert [(hold.begins, hold.ends, hold.truth) for hold in holds] == [
        (_at(0), _at(100), False),
        (_at(500), _at(600), False),
    ]
    assert live.judged_alarms(holds)["all"] == live.JudgedAlarms(0, 1, 0, 0)


@pytest.mark.parametrize("verdict", ["test", "unknown", None])
def test_a_verdict_that_says_nothing_labels_nothing(verdict: str | None) -> None:
    """Or a test of the siren is taken for a fire, or for a false alarm."""
    holds = _holds(_record("raised", 0), _record("latched", 160), _record("verdict", None, verdict=verdict))
    assert [hold.truth for hold in holds] == [None]
    judged = live.judged_alarms(holds)
    assert all(entry.precision is None for entry in judged.values())


def test_a_standing_alarm_is_covered_up_to_its_newest_record() -> None:
    """Or a fire that still burns while it is judged has no label, or one for ever."""
    holds = _holds(
        _record("raised", 0), _record("acknowledged", 200), _record("verdict", 240, verdict="true_alarm", holds=True)
    )
    assert [(hold.ends, hold.covered_until) for hold in holds] == [(None, _at(240))]


def test_the_simulator_is_not_overruled_and_a_recording_is() -> None:
    """Or an operator's slip makes a simulated fire none, or a recording's wrong label stands for ever."""
    holds = _holds(_record("raised", 0), _record("latched", 160), _record("verdict", None, verdict="false_alarm"))
    rows = pl.DataFrame(
        {
            "device_id": ["d", "d"],
            "event_time": [_at(10), _at(20)],
            "source": ["simulator", "csv"],
            "fire_alarm": [True, True],
        }
    )
    found = live.with_truth(rows, holds)
    assert found["truth"].to_list() == [True, False]
    assert found["truth_source"].to_list() == ["simulator", "operator"]


def test_a_warning_is_no_fire_alarm_until_it_becomes_one() -> None:
    """Or the delay is measured to a hint that nobody is woken for."""
    holds = _holds(_record("raised", 0, severity="medium"), _record("escalated", 30), _record("latched", 160))
    assert [hold.alarmed_at for hold in holds] == [_at(30)]
    assert _holds(_record("raised", 0, severity="low"), _record("closed", 90, severity="low"))[0].alarmed_at is None


def _minutes(*labels: tuple[float, bool]) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "device_id": ["d"] * len(labels),
            "event_time": [_at(seconds) for seconds, _ in labels],
            "fire_alarm": [label for _, label in labels],
        }
    )
    return live.minutes_of(frame.lazy()).collect()


def test_a_fire_begins_where_its_onset_was_seen() -> None:
    """Or a window that opens amid a fire makes its alarm look instant, or missing."""
    labels = [(second, 300 <= second <= 600 or second >= 1500) for second in range(0, 2000, 10)]
    fires = live.fires_of(_minutes(*labels))
    assert [(fire.onset, fire.last) for fire in fires] == [(_at(300), _at(600)), (_at(1500), _at(1990))]
    amid = [(second, second <= 600) for second in range(0, 2000, 10)]
    assert live.fires_of(_minutes(*amid)) == []


def test_alarms_are_counted_by_fire_and_by_device_day() -> None:
    """Or a fire that was slept through is lost among a thousand quiet readings that were right."""
    labels = [(s, 300 <= s <= 600 or 1200 <= s <= 1500) for s in range(0, 3600, 10)]
    holds = _holds(
        _record("raised", 340),
        _record("latched", 700),
        _record("raised", 3000, alarm_id="b"),
        _record("latched", 3100, alarm_id="b"),
    )
    found = live.alarm_figures(live.outcomes(_minutes(*labels), holds))
    assert (found.fires, found.missed, found.median_delay_s, found.false_alarms) == (2, 1, 40.0, 1)
    assert found.caught == 0.5
    quiet_minutes = 60 - 12
    assert found.quiet_device_days == pytest.approx(quiet_minutes / 1440)
    assert found.false_alarms_per_device_day == pytest.approx(1440 / quiet_minutes)


def test_an_alarm_that_stood_before_the_fire_has_no_delay() -> None:
    """Or a detector that cries all day is the fastest of all."""
    labels = [(s, 300 <= s <= 600) for s in range(0, 1200, 10)]
    found = live.outcomes(_minutes(*labels), _holds(_record("raised", 10), _record("latched", 900)))
    assert [(outcome.alarmed, outcome.delay_s) for outcome in found.episodes] == [(True, None)]
    assert live.alarm_figures(live.outcomes(_minutes(*labels), [])).missed == 1
