"""Alarms replayed and counted: against the detector itself, by hand, and by brute force."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.domain import alarm_evaluation as evaluation
from smoke_platform.domain import features
from smoke_platform.domain.alarm_evaluation import THRESHOLDS, Watched
from smoke_platform.domain.alarm_outcomes import AlarmOutcomes, EpisodeOutcome
from smoke_platform.domain.alarm_replay import FIRE_ALARM, alarm_begins
from smoke_platform.domain.alarms import Event, Kind, Severity
from smoke_platform.domain.detection import Batch, Engine
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, Reading
from smoke_platform.domain.simulator import simulate

NOTHING = np.empty((0, features.FEATURE_COUNT), dtype=np.float32)


def watch_of(
    episode: list[str | None], label: list[bool], *, device: list[str] | None = None, step_s: float = 1.0
) -> Watched:
    """Readings a second apart; an episode's kind is its name's first word."""
    count = len(episode)
    names = device or ["a"] * count
    seconds = np.array([step_s * names[:place].count(name) for place, name in enumerate(names)])
    ids = pl.Series(episode, dtype=pl.String)
    kind = ids.str.split(" ").list.first()
    matrix = np.full((count, features.FEATURE_COUNT), np.nan, dtype=np.float32)
    return evaluation.watched(pl.Series(names), seconds, np.array(label), ids, kind, kind, matrix)


def walk(seed: int, count: int, devices: int) -> tuple[Watched, np.ndarray]:
    """Scores that wander across the thresholds, and linger between raising and clearing."""
    rng = np.random.default_rng(seed)
    names = sorted(f"d{rng.integers(devices)}" for _ in range(count))
    episode, label = [], []
    for place in range(count):
        stretch = place // 9 % 4
        episode.append((None, f"fire {place // 36}", None, f"nuisance {place // 36}")[stretch])
        label.append(stretch == 1 and place % 9 > 2)
    watch = watch_of(episode, label, device=names, step_s=float(rng.choice([0.5, 1.0, 30.0])))
    steps = rng.normal(0, 1.0, count).cumsum()
    return watch, 1.0 / (1.0 + np.exp(-np.mod(steps, 12.0) + 4.0))


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.5, 0.9, 0.99]))
@settings(max_examples=80, deadline=None)
def test_the_fast_rule_is_the_detectors_rule(seed: int, threshold: float) -> None:
    """A threshold would be chosen for alarms that the detector does not raise."""
    watch, scores = walk(seed, 150, 3)
    levels = evaluation.replay(watch, scores, threshold, sensors=False)
    fast = evaluation.model_rule(watch.slots, watch.seconds, scores / threshold)
    assert np.array_equal(levels.model >= FIRE_ALARM, fast)
    assert np.array_equal(levels.model, levels.together)
    assert not levels.rules.any()
    one_each = evaluation.replay(watch, scores, np.full(len(watch), threshold), sensors=False)
    assert np.array_equal(levels.model, one_each.model)


class GasModel:
    """Scores by the gas alone."""

    version = "3"
    threshold = 0.6

    def score(self, rows: features.Features) -> np.ndarray:
        level = rows[:, features.FEATURE_NAMES.index("tvoc_ppb")].astype(np.float64)
        return np.where(np.isnan(level), 0.1, level / (level + 2_000.0))


@pytest.mark.parametrize("model", [None, GasModel()], ids=["rules", "with a model"])
def test_replayed_alarms_are_those_that_the_detector_raises(model: GasModel | None) -> None:
    """Figures that come of another logic than the detector's say nothing about the detector."""
    frame = simulate(
        3, datetime(2024, 1, 5, tzinfo=UTC), 7_200, 4, fires_per_device_day=12, nuisances_per_device_day=20
    )
    matrix = features.feature_matrix(features.features_of_frame(frame))
    watch = evaluation.watched(
        frame["device_id"],
        features.event_seconds(frame),
        frame["fire_alarm"].to_numpy(),
        frame["event_id"],
        frame["event_kind"],
        frame["event_family"],
        matrix,
        features.sensor_matrix(frame),
    )
    scores = None if model is None else model.score(matrix)
    levels = evaluation.replay(watch, scores, 0.6, sensors=True)
    without = evaluation.replay(watch, None, sensors=True)
    assert np.array_equal(levels.rules >= FIRE_ALARM, without.together >= FIRE_ALARM)
    places = alarm_begins(watch.slots, watch.seconds, levels.together)
    replayed = {(watch.devices[watch.slots[place]], watch.seconds[place]) for place in places}

    engine = Engine("Zt3")
    engine.add_partition(0)
    batch = Batch()
    for offset, row in enumerate(frame.iter_rows(named=True)):
        values = {name: row[name] for name in ALL_SENSOR_NAMES if row[name] is not None}
        at_ms = int(row["event_time"].timestamp() * 1000)
        batch.values.append(Reading(row["device_id"], row["event_time"], values, None, offset).to_json())
        batch.keys.append(row["device_id"].encode())
        batch.partitions.append(0)
        batch.offsets.append(offset)
        batch.append_times_ms.append(at_ms)
    raised: set[tuple[str, float]] = set()
    sounding: dict[str, bool] = {}
    for low in range(0, len(batch.values), 5_000):
        for record in engine.take(batch.part(low, low + 5_000), model).records:
            if record.kind is not Kind.FIRE:
                continue
            if record.event in (Event.RAISED, Event.RETURNED):
                sounding[record.device_id] = False
            loud = Severity[record.severity.upper()] >= FIRE_ALARM
            if record.event in (Event.RAISED, Event.RETURNED, Event.ESCALATED) and loud:
                if not sounding[record.device_id]:
                    raised.add((record.device_id, record.event_time))
                sounding[record.device_id] = True
    assert replayed == raised
    assert len(replayed) >= 2


def test_outcomes_are_those_counted_by_hand() -> None:
    """An alarm before the first labelled reading, after the fire, or that goes on for a minute has to count right."""
    episode: list[str | None] = [None] * 5 + ["fire 1"] * 20 + [None] * 100 + ["nuisance 2"] * 10 + ["fire 3"] * 5
    episode += [None] * 80 + ["fire 4"] * 5
    label = (
        [False] * 5 + [False] * 5 + [True] * 10 + [False] * 95 + [False] * 20 + [True] * 5 + [False] * 80 + [True] * 5
    )
    watch = watch_of(episode, label)
    levels = np.zeros(len(watch), dtype=np.uint8)
    levels[14:18] = 3
    levels[50] = 3  # within the off-delay, so it is the alarm of the fire that goes on
    levels[115:117] = 2
    levels[117] = 3
    levels[130] = 2
    levels[200] = 4
    found = evaluation.outcomes(watch, levels)
    assert [(one.episode, one.alarmed, one.delay_s) for one in found.episodes] == [
        ("fire 1", True, 4.0),
        ("nuisance 2", False, None),
        ("fire 3", False, None),
    ], "fire 4 is cut off by the end and is nobody's failure"
    assert found.quiet_alarms == 2
    assert found.quiet_device_days * 86_400 == pytest.approx(4 + 99 + 79)

    late = np.zeros(len(watch), dtype=np.uint8)
    late[21] = 3
    assert not evaluation.outcomes(watch, late).episodes[0].alarmed, "the fire was over"
    early = np.zeros(len(watch), dtype=np.uint8)
    early[7] = 4
    assert evaluation.outcomes(watch, early).episodes[0].delay_s == 0.0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_threshold_is_the_one_that_trying_all_would_choose(seed: int) -> None:
    """Leaving out readings that do not matter must not change the choice, or alarms come too late or for nothing."""
    watch, scores = walk(seed, 400, 4)
    rules = np.where(np.random.default_rng(seed).random(len(watch)) < 0.01, 3, 0).astype(np.uint8)
    if seed % 2:
        watch = dataclasses.replace(watch, unaided=rules)
    else:
        rules[:] = 0
    before = evaluation.outcomes(watch, rules)
    known = {one.episode for one in before.of("nuisance") if one.alarmed}
    counts = []
    for threshold in THRESHOLDS:
        asserted = evaluation.model_rule(watch.slots, watch.seconds, scores / threshold)
        found = evaluation.outcomes(watch, np.maximum(rules, asserted.astype(np.uint8) * np.uint8(FIRE_ALARM)))
        alarmed = sum(one.alarmed and one.episode not in known for one in found.of("nuisance"))
        counts.append((len(found.missed), alarmed, max(0, found.quiet_alarms - before.quiet_alarms)))
    most = evaluation.NUISANCE_SHARE * (len(before.of("nuisance")) - len(known))
    worst = [tuple(max(one[kind] for one in counts[place:]) for kind in (1, 2)) for place in range(len(counts))]
    counts = [(missed, *others) for (missed, _, _), others in zip(counts, worst, strict=True)]
    costs = [
        math.inf if quiet else evaluation.FIRE_WORTH * missed + max(0.0, alarmed - most)
        for missed, alarmed, quiet in counts
    ]
    expected = len(costs) - 1 if min(costs) == math.inf else costs.index(min(costs))
    chosen = evaluation.threshold_for_budget(watch, scores)
    assert chosen.threshold == pytest.approx(float(THRESHOLDS[expected]))
    assert (chosen.missed, chosen.nuisances_alarmed, chosen.quiet_alarms) == counts[expected]


def test_bounds_are_the_exact_ones() -> None:
    """Nothing missed in 135 fires is not a miss rate of zero, and a year without a false alarm is not never."""
    assert evaluation.upper_share(0, 135) == pytest.approx(1 - 0.05 ** (1 / 135))
    assert evaluation.upper_share(2, 10) == pytest.approx(0.5069, abs=1e-4)  # R: binom.test(2, 10, alt = "l")
    assert evaluation.upper_share(10, 10) == 1.0
    assert evaluation.upper_count(0) == pytest.approx(-math.log(0.05))
    assert evaluation.upper_count(3) == pytest.approx(7.7537, abs=1e-4)  # chi-squared: qchisq(0.95, 8) / 2


def fires(*delays: float | None) -> AlarmOutcomes:
    found = [
        EpisodeOutcome(f"fire {place}", "fire", "wood", "a", delay is not None, delay)
        for place, delay in enumerate(delays)
    ]
    return AlarmOutcomes(tuple(found), 0, 2.0)


def test_intervals_are_of_whole_fires_and_a_missed_one_is_late_for_ever() -> None:
    """Five devices that saw one fire are one fire; a median that leaves out the missed ones flatters."""
    one = EpisodeOutcome("fire 0", "fire", "wood", "a", True, 30.0)
    same = AlarmOutcomes((one,) * 5, 0, 1.0)
    assert evaluation.resampled(same, 1)["median_delay_s"] == (30.0, 30.0)
    found = evaluation.summary(fires(10.0, 20.0, None))
    assert (found["fires"], found["missed"], found["median_delay_s"], found["p90_delay_s"]) == (3, 1, 20.0, None)
    low, high = found["intervals_95"]["missed_share"]
    assert low == 0.0
    assert high == 1.0
    assert found["false_alarms_per_device_year"] == 0.0
    assert found["false_alarms_per_device_year_upper_95"] == pytest.approx(2.9957 / (2 / 365.25), rel=1e-3)
    assert evaluation.joined([fires(1.0), fires(None)]).quiet_device_days == 4.0


def test_readings_out_of_order_are_refused() -> None:
    """Persistence over readings in a wrong order is nonsense that looks like a figure."""
    with pytest.raises(ValueError, match="not ordered"):
        evaluation.watched(
            pl.Series(["b", "a"]),
            np.zeros(2),
            np.zeros(2, dtype=bool),
            *(pl.Series([None, None], dtype=pl.String),) * 3,
            matrix=np.zeros((2, features.FEATURE_COUNT), dtype=np.float32),
        )
