"""Data quality: the score, what it rests on, and what must not move it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.domain import quality
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.simulator import simulate
from smoke_platform_tests.monitoring_lake import as_landed, simulated

START = datetime(2026, 3, 2, tzinfo=UTC)
HOURS = 3
END = START + timedelta(hours=HOURS)
#: What the simulated devices send is nearly whole: they drop a reading or a sensor now and then.
STEP_S = 10


def room(devices: int = 3, hours: float = HOURS, seed: int = 7) -> pl.DataFrame:
    """Landed readings of quiet simulated rooms."""
    return as_landed(simulated(devices, START, hours, seed, fires_per_device_day=0, nuisances_per_device_day=0))


def assess(
    frame: pl.DataFrame, end: datetime = END, rejected: Mapping[str, int] | None = None, **more: Any
) -> quality.QualityReport:
    hours = quality.hourly_statistics(frame.lazy()).collect()
    found = quality.assess(hours, START, end, rejected={} if rejected is None else rejected, **more)
    assert found is not None
    return found


def test_a_healthy_fleet_scores_near_100() -> None:
    """Or operators learn to ignore the score."""
    found = assess(room())
    assert found.score.score > 98
    assert found.stale == ()
    assert (found.stuck, found.inconsistent, found.duplicates) == (0, 0, 0)


def test_the_score_is_the_product_of_its_factors() -> None:
    """Or the documented formula and the number shown differ."""
    score = quality.QualityScore(0.9, 0.8, 0.7, 0.6, 0.5)
    assert score.score == pytest.approx(100 * 0.9 * 0.8 * 0.7 * 0.6 * 0.5)
    assert quality.QualityScore(0.9, 0.8, None, 0.6, 0.5).score == pytest.approx(100 * 0.9 * 0.8 * 0.6 * 0.5)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 39), min_size=25), st.lists(st.integers(1, 3), min_size=40, max_size=40))
def test_completeness_agrees_with_counting(keep: set[int], copies: list[int]) -> None:
    """Or lost readings are not seen: the figure is what a person would count by hand."""
    rows = [
        {"device_id": "d", "event_time": START + timedelta(seconds=2 * place), "sequence": place}
        for place in range(40)
        for _ in range(copies[place])
        if place in keep
    ]
    frame = _bare(rows)
    found = assess(frame, START + timedelta(seconds=80), intervals_s={"d": 2.0})
    span = max(keep) - min(keep) + 1
    assert found.expected == span
    assert found.score.completeness == pytest.approx(len(keep) / span)
    assert found.duplicates == len(rows) - len(keep)
    assert found.score.uniqueness == pytest.approx(len(keep) / len(rows))


def _bare(rows: list[dict[str, Any]]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema_overrides={"event_time": pl.Datetime("us", "UTC")})
    return frame.with_columns(
        append_time=pl.col("event_time") + pl.duration(milliseconds=50),
        late=pl.lit(False),
        partition=pl.lit(0),
        co_ppm=pl.lit(None, pl.Float64),
        **{name: pl.lit(20.0) + pl.int_range(pl.len()) % 7 for name in SENSOR_NAMES},
    ).with_columns(pm2_5=pl.col("pm1_0") + 1)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.0, 0.8), st.floats(0.0, 0.8), st.integers(0, 2**32 - 1))
def test_losing_more_never_raises_the_score(one: float, other: float, seed: int) -> None:
    """Or an operator who sees the score rise believes that things got better."""
    less, more = sorted((one, other))
    frame = room(devices=2, hours=1)
    chance = np.random.default_rng(seed).random(frame.height)
    end = START + timedelta(hours=1)
    device_intervals = {device: float(STEP_S) for device in frame["device_id"].unique()}
    scores = [
        assess(_lose(frame, chance, share), end, intervals_s=device_intervals).score.completeness
        for share in (less, more)
    ]
    assert scores[1] <= scores[0] + 1e-12


def _lose(frame: pl.DataFrame, chance: np.ndarray[Any, Any], share: float) -> pl.DataFrame:
    # Each device's first and last reading stay: how long it reported is another matter than how much got lost.
    time = pl.col("event_time")
    ends = (time == time.min().over("device_id")) | (time == time.max().over("device_id"))
    return frame.filter(pl.Series(chance >= share) | frame.select(ends).to_series())


@pytest.mark.parametrize("fault", ["lost", "null", "rejected", "stuck", "inconsistent", "doubled"])
def test_each_fault_lowers_the_score_the_more_of_it_there_is(fault: str) -> None:
    """Or one kind of fault stays unseen."""
    frame = room()
    scores = [_with_fault(frame, fault, share).score.score for share in (0.0, 0.2, 0.6)]
    assert scores[0] > scores[1] > scores[2]


def _with_fault(frame: pl.DataFrame, fault: str, share: float) -> quality.QualityReport:
    count = int(frame.height * share)
    head = frame.with_row_index("row").select(pl.col("row") < count).to_series()
    if fault == "lost":
        intervals = {device: float(STEP_S) for device in frame["device_id"].unique()}
        return assess(
            frame.filter(~pl.Series(np.random.default_rng(0).random(frame.height) < share)), intervals_s=intervals
        )
    if fault == "null":
        return assess(frame.with_columns(pl.when(~head).then(pl.col("humidity_pct")).alias("humidity_pct")))
    if fault == "rejected":
        return assess(frame, rejected={"not_json": count})
    if fault == "inconsistent":
        return assess(frame.with_columns(pm1_0=pl.when(head).then(pl.col("pm2_5") * 2 + 1).otherwise(pl.col("pm1_0"))))
    if fault == "doubled":
        return assess(pl.concat([frame, frame.head(count)]))
    device = pl.col("device_id").rank("dense") <= round(share * 5)
    # One reading every 10 s is too few an hour to judge; a second fleet beside the first makes them one a second.
    return assess(_every_second().with_columns(temperature_c=pl.when(device).then(21.5).otherwise("temperature_c")))


def _every_second() -> pl.DataFrame:
    return as_landed(
        simulate(3, START, HOURS * 3600, 7, interval_s=2.0, fires_per_device_day=0, nuisances_per_device_day=0)
    )


def test_fire_lowers_nothing() -> None:
    """Or the platform calls its data bad exactly when it matters most."""
    burning = simulate(4, START, HOURS * 3600, 15, interval_s=2.0, fires_per_device_day=12, nuisances_per_device_day=0)
    assert burning["fire_alarm"].mean() > 0.1
    quiet = simulate(4, START, HOURS * 3600, 15, interval_s=2.0, fires_per_device_day=0, nuisances_per_device_day=0)
    with_fire, without = assess(as_landed(burning)), assess(as_landed(quiet))
    assert with_fire.score.plausibility == 1.0
    assert with_fire.score.score == pytest.approx(without.score.score, abs=0.1)


@pytest.mark.parametrize(
    ("sensor", "value"), [("tvoc_ppb", 60_000.0), ("eco2_ppm", 60_000.0), ("tvoc_ppb", 0.0), ("pm2_5", 0.0)]
)
def test_a_channel_at_its_floor_or_ceiling_is_not_stuck(sensor: str, value: float) -> None:
    """Or clean air, or thick smoke, is taken for a broken sensor."""
    frame = _every_second().with_columns(pl.lit(value).alias(sensor))
    if sensor == "pm2_5":
        frame = frame.with_columns(pm1_0=pl.lit(0.0))
    found = assess(frame)
    assert (found.stuck, found.inconsistent) == (0, 0)


def test_a_device_that_falls_silent_is_named() -> None:
    """Or a dead detector is found at the fire."""
    frame = room()
    dead = sorted(frame["device_id"].unique())[0]
    cut = START + timedelta(hours=1, minutes=30)
    found = assess(frame.filter((pl.col("device_id") != dead) | (pl.col("event_time") < cut)))
    assert found.stale == (dead,)
    assert found.devices["device_id"][0] == dead
    assert found.devices["completeness"][0] == pytest.approx(0.5, abs=0.02)


def test_a_device_that_was_there_yesterday_is_missed_today() -> None:
    """Or a detector that died at night leaves no trace in the morning's report."""
    yesterday = room(devices=2).with_columns(
        pl.col("event_time") - timedelta(days=1),
        pl.col("append_time") - timedelta(days=1),
        device_id=pl.lit("gone"),
    )
    known = quality.known_devices(yesterday.unique("event_time").lazy()).collect()
    found = assess(room(devices=1), known=known)
    assert found.stale == ("gone",)
    assert found.score.completeness == pytest.approx(0.5, abs=0.02)


def test_a_short_trial_is_not_missed_afterwards() -> None:
    """Or an hour after a trial of a thousand devices the platform is called broken."""
    trial = room(devices=5, hours=0.25)
    assert quality.known_devices(trial.lazy()).collect().is_empty()
    found = assess(trial)
    assert found.stale == ()
    assert found.score.completeness > 0.97


def test_a_replay_of_the_past_is_judged_by_its_own_span() -> None:
    """Or a recording of 2022, replayed today in a minute, counts as silent ever since."""
    frame = room().with_columns(append_time=pl.lit(END + timedelta(days=900), pl.Datetime("us", "UTC")))
    found = assess(frame, END + timedelta(days=900, minutes=1))
    assert found.stale == ()
    assert found.score.completeness > 0.97


def test_parts_read_one_after_the_other_give_the_same_report() -> None:
    """Or a fleet too large for one pass gets another score than a small one."""
    frame = room(devices=6)
    whole = quality.hourly_statistics(frame.lazy()).collect()
    parts = pl.concat(
        quality.hourly_statistics(frame.lazy().filter(pl.col("partition") == number)).collect() for number in range(3)
    )
    one, other = (quality.assess(hours, START, END, rejected={"not_json": 3}) for hours in (whole, parts))
    assert one is not None
    assert other is not None
    assert one.as_dict() == other.as_dict()


def test_nothing_expected_and_nothing_arrived_is_no_report() -> None:
    """Or an empty platform shows a score of 100 for no readings."""
    empty = quality.hourly_statistics(room().head(0).lazy()).collect()
    assert quality.assess(empty, START, END, rejected={}) is None


def test_what_one_device_sends_too_often_does_not_stand_in_for_another() -> None:
    """Or a chatty detector hides a dead one."""
    frame = room(devices=2)
    first, second = sorted(frame["device_id"].unique())
    halved = frame.filter((pl.col("device_id") != second) | (pl.col("event_time").dt.minute() % 2 == 0))
    found = assess(halved, intervals_s={first: 2.0 * STEP_S, second: float(STEP_S)})
    assert found.readings > 0.98 * found.expected
    assert found.score.completeness == pytest.approx(2 / 3, abs=0.02)
