"""The feature kernel against a plain re-statement of its definition, reading by reading."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.domain import features as kernel
from smoke_platform.domain.readings import ALL_SENSOR_NAMES
from smoke_platform.domain.simulator import simulate

EPOCH = 1_700_000_000.0
NAN = math.nan


class PlainDevice:
    """One device, one reading at a time, in Python's own floats: the oracle."""

    def __init__(self) -> None:
        self.clock = -math.inf
        self.tracks: dict[str, dict[str, float]] = {}

    def take(self, now: float, reading: dict[str, float]) -> list[float]:
        if now >= self.clock:
            self.clock = now
            for name in kernel.TRACKED_NAMES:
                if not math.isnan(reading[name]):
                    self._follow(name, now, reading[name])
        return self._describe(now, reading)

    def _follow(self, name: str, now: float, value: float) -> None:
        track = self.tracks.get(name)
        if track is None or now - track["last"] > kernel.RESET_GAP_S:
            self.tracks[name] = {"last": now, "start": now, "F": value, "M": value, "S": value, "A": 0.0}
            return
        elapsed, age = now - track["last"], now - track["start"]
        slow_before = track["S"]
        for letter, tau in (("F", kernel.FAST_S), ("M", kernel.MEDIUM_S), ("S", kernel.SLOW_S)):
            weight = elapsed / max(min(age, tau) + elapsed, 1e-9)
            track[letter] += weight * (value - track[letter])
        track["A"] += weight * (abs(value - slow_before) - track["A"])
        track["last"] = now

    def _describe(self, now: float, x: dict[str, float]) -> list[float]:
        rise, score, rate = {}, {}, {}
        for tracked in kernel.TRACKED:
            name, track = tracked.sensor, self.tracks.get(tracked.sensor)
            known = (
                track is not None
                and track["last"] >= track["start"] + kernel.WARM_S
                and abs(now - track["last"]) <= kernel.HOLD_S
            )
            if track is None or not known:
                rise[name] = score[name] = rate[name] = NAN
                continue
            rise[name] = track["F"] - track["S"]
            z = rise[name] / (track["A"] + tracked.floor)
            score[name] = z / (1.0 + abs(z))
            rate[name] = (track["F"] - track["M"]) * (60.0 / (kernel.MEDIUM_S - kernel.FAST_S))

        def least(one: float, other: float) -> float:
            return NAN if math.isnan(one) or math.isnan(other) else min(one, other)

        raised = [score[name] for name in kernel.RAISED_BY_FIRE if not math.isnan(score[name])]
        return [
            *(x[name] for name in kernel.CURRENT),
            x["pm1_0"] / (x["pm2_5"] + 1.0),
            x["nc2_5"] / (x["nc0_5"] + 1.0),
            *rise.values(),
            *score.values(),
            *rate.values(),
            least(score["pm2_5"], score["tvoc_ppb"]),
            least(score["pm2_5"], score["temperature_c"]),
            least(score["pm2_5"], score["co_ppm"]),
            score["temperature_c"] - score["humidity_pct"],
            float(sum(value > kernel.RAISED_SCORE for value in raised)) if raised else NAN,
        ]


def bits(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values).tobytes()


def plain(slots: np.ndarray, times: np.ndarray, sensors: np.ndarray) -> np.ndarray:
    devices: dict[int, PlainDevice] = {}
    rows = [
        devices.setdefault(int(slot), PlainDevice()).take(
            float(now), dict(zip(ALL_SENSOR_NAMES, map(float, values), strict=True))
        )
        for slot, now, values in zip(slots, times, sensors, strict=True)
    ]
    answer = np.array(rows, dtype=np.float64).reshape(len(slots), kernel.FEATURE_COUNT).astype(np.float32)
    answer += np.float32(0)
    answer[np.isnan(answer)] = np.float32(np.nan)
    return answer


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Readings of a few devices: irregular and late times, repeats, long gaps, missing sensors."""
    count = draw(st.integers(1, 120))
    devices = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    slots = rng.integers(0, devices, count)
    steps = rng.choice([0.0, 0.3, 1.0, 7.0, 31.0, 400.0, 901.0, -1.0, -20.0, -4000.0], count)
    times = EPOCH + np.cumsum(steps)
    sensors = rng.choice([0.0, -0.0, 1.0, 3.5], (count, 13)) + rng.random((count, 13)) * rng.choice([0, 50, 9000])
    sensors[rng.random((count, 13)) < draw(st.sampled_from([0.0, 0.1, 0.9]))] = np.nan
    return slots.astype(np.int64), times, sensors


@given(streams())
@settings(max_examples=150, deadline=None)
def test_kernel_says_what_its_definition_says(stream: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Vectorising must not change one bit, or training and the documents describe different features."""
    slots, times, sensors = stream
    got = kernel.step(kernel.FeatureState(), slots, times, sensors)
    expected = plain(slots, times, sensors)
    assert bits(got) == bits(expected), np.argwhere(got.view(np.uint32) != expected.view(np.uint32))


@given(streams(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_split_into_batches_gives_the_same_bits(
    stream: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    """The detector's batches differ from the training job's: the scores of one reading must not."""
    slots, times, sensors = stream
    whole_state = kernel.FeatureState()
    whole = kernel.step(whole_state, slots, times, sensors)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(slots)), max_size=6)))
    state, parts = kernel.FeatureState(), []
    for low, high in zip([0, *cuts], [*cuts, len(slots)], strict=True):
        moved = kernel.FeatureState()
        known = np.arange(state.capacity)
        moved.restore(known, state.export(known).copy())
        state = moved
        parts.append(kernel.step(state, slots[low:high], times[low:high], sensors[low:high]))
    assert bits(np.concatenate(parts)) == bits(whole)
    used = np.unique(slots)
    assert bits(state.export(used)) == bits(whole_state.export(used))


@given(streams(), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_any_interleaving_of_devices_gives_the_same_bits(
    stream: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int
) -> None:
    """A neighbour's readings between two of mine must not change my features."""
    slots, times, sensors = stream
    whole = kernel.step(kernel.FeatureState(), slots, times, sensors)
    keys = np.random.default_rng(seed).random(len(slots))
    for slot in np.unique(slots):  # random ranks, but each device's own order kept
        keys[slots == slot] = np.sort(keys[slots == slot])
    order = np.argsort(keys)
    renamed = (slots.max() - slots)[order]
    other = kernel.step(kernel.FeatureState(), renamed, times[order], sensors[order])
    assert bits(other) == bits(whole[order])


@pytest.mark.parametrize("devices", [1, 7, 31, 2_047, 2_049, 5_003])
def test_the_bits_do_not_depend_on_length_or_alignment(devices: int) -> None:
    """Vector instructions with a tail or an odd address must round as the plain ones do."""
    rng = np.random.default_rng(devices)
    state, lone = kernel.FeatureState(devices), kernel.FeatureState(1)
    watched = devices // 2
    for second in range(80):
        padded = rng.random(devices * 13 + 1) * 40.0
        sensors = padded[1:].reshape(devices, 13)
        times = np.full(devices, EPOCH + second)
        whole = kernel.step(state, np.arange(devices), times, sensors)
        alone = kernel.step(lone, np.zeros(1, dtype=np.int64), times[:1], sensors[watched : watched + 1].copy())
        assert bits(whole[watched]) == bits(alone[0])


def test_a_late_reading_leaves_the_state_alone() -> None:
    """A reading that arrives late must not pull a device's baseline back in time."""
    rng = np.random.default_rng(1)
    state = kernel.FeatureState(1)
    slots = np.zeros(100, dtype=np.int64)
    kernel.step(state, slots, EPOCH + np.arange(100.0), rng.random((100, 13)))
    before = bits(state.table)
    kernel.step(state, slots[:1], np.array([EPOCH + 50.0]), np.full((1, 13), 9_000.0))
    kernel.step(state, slots[:1], np.array([EPOCH + 99.0]), np.full((1, 13), 9_000.0))
    assert bits(state.table) == before


def test_a_single_reading_is_what_a_new_device_says_first() -> None:
    """`/predict` with one reading must agree with a detector that meets the device for the first time."""
    sensors = np.random.default_rng(3).random((5, 13)) * 100
    sensors[2, 4] = np.nan
    single = kernel.single_reading_features(sensors)
    assert bits(single) == bits(kernel.step(kernel.FeatureState(), np.arange(5), np.full(5, EPOCH), sensors))
    assert kernel.cold(single).all()
    assert bits(kernel.as_cold(single)) == bits(single)


def test_a_fire_shows_in_every_feature_meant_to_show_it() -> None:
    """Smoke, heat, gas and CO that rise together must stand out, or no model can see a fire early."""
    seconds = 2_000
    sensors = np.random.default_rng(5).normal(0, 0.1, (seconds, 13)) + 20.0
    place = {name: index for index, name in enumerate(ALL_SENSOR_NAMES)}
    onset = seconds - 90
    for name in kernel.RAISED_BY_FIRE:
        sensors[onset:, place[name]] += np.linspace(0, 300, 90)
    sensors[onset:, place["humidity_pct"]] -= np.linspace(0, 10, 90)
    got = kernel.one_device_features(EPOCH + np.arange(seconds), sensors)
    feature = {name: got[:, index] for index, name in enumerate(kernel.FEATURE_NAMES)}
    assert feature["raised_sensors"][onset - 1] == 0
    assert feature["raised_sensors"][-1] == len(kernel.RAISED_BY_FIRE)
    for name in ("smoke_and_gas", "smoke_and_heat", "smoke_and_co", "dry_heat"):
        assert feature[name][-1] > 0.8, name
        assert abs(feature[name][onset - 1]) < 0.5, name
    # The ramp's slope is 200 a minute; after 90 s of it two low passes of 10 and 60 s show 0.73 of that.
    assert feature["pm2_5_rate"][-1] == pytest.approx(146.0, rel=0.05)


def test_warm_up_is_as_good_as_promised() -> None:
    """A day's partition that is built with its warm-up must agree with one that saw everything before."""
    length = int(kernel.WARM_UP_S)
    rng = np.random.default_rng(9)
    sensors = np.concatenate([np.full((3_000, 13), 80.0), 20 + rng.random((length + 60, 13))])
    times = EPOCH + np.arange(float(len(sensors)))
    full = kernel.one_device_features(times, sensors)[-60:]
    short = kernel.one_device_features(times[3_000:], sensors[3_000:])[-60:]
    rises = [place for place, name in enumerate(kernel.FEATURE_NAMES) if name.endswith("_rise")]
    # exp(-8) of the 60 units by which the states differed, and of the implicit step a little more.
    assert np.nanmax(np.abs(full[:, rises] - short[:, rises])) < 60 * math.exp(-8) * 1.05


def test_a_long_gap_starts_anew_exactly() -> None:
    """After a long silence the old baseline is worthless; what follows must not depend on it at all."""
    rng = np.random.default_rng(2)
    sensors = rng.random((400, 13))
    times = EPOCH + np.concatenate([np.arange(200.0), 200.0 + kernel.RESET_GAP_S + np.arange(200.0)])
    assert bits(kernel.one_device_features(times, sensors)[200:]) == bits(
        kernel.one_device_features(times[200:], sensors[200:])
    )


def test_frame_and_kernel_agree_in_any_chunking() -> None:
    """The table `lake/features` must hold the kernel's numbers, NaN as NaN and in the frame's order."""
    rng = np.random.default_rng(4)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    frame = pl.DataFrame(
        {
            "device_id": [f"d{number % 3}" for number in range(300)],
            "event_time": [start + timedelta(seconds=number // 3) for number in range(300)],
            "sequence": list(range(300)),
            **{name: rng.random(300) for name in ALL_SENSOR_NAMES if name != "co_ppm"},
        }
    ).with_columns(
        pl.when(pl.col("sequence") % 7 == 0).then(None).otherwise(pl.col("pm2_5")).alias("pm2_5"),
        pl.col("event_time").dt.cast_time_unit("us"),
    )
    whole, parts = kernel.features_of_frame(frame), kernel.features_of_frame(frame, chunk_rows=41)
    assert bits(kernel.feature_matrix(whole)) == bits(kernel.feature_matrix(parts))
    slots = np.arange(300) % 3
    sensors = kernel.sensor_matrix(frame)
    assert np.isnan(sensors[:, ALL_SENSOR_NAMES.index("co_ppm")]).all()
    expected = kernel.step(kernel.FeatureState(), slots, kernel.event_seconds(frame), sensors)
    assert bits(kernel.feature_matrix(whole)) == bits(expected)
    assert whole["feature_version"].unique().to_list() == [kernel.FEATURE_SET_VERSION]
    assert "pressure_hpa" not in whole.columns
    assert kernel.features_of_frame(frame.head(0)).height == 0


def test_state_of_another_definition_is_refused() -> None:
    """A snapshot from before an upgrade must not be read as if its columns meant the same."""
    with pytest.raises(ValueError, match="numbers a device"):
        kernel.FeatureState(1).restore(np.array([0]), np.zeros((1, 3)))


def test_every_feature_is_named_once_and_leaks_nothing() -> None:
    """A feature that tells the recording apart makes the validation a fantasy."""
    assert len(set(kernel.FEATURE_NAMES)) == kernel.FEATURE_COUNT == 12 + 3 * len(kernel.TRACKED) + 5
    forbidden = ("pressure", "utc", "time", "sequence", "device")
    assert not [name for name in kernel.FEATURE_NAMES if any(word in name for word in forbidden)]
    assert "raw_h2" not in kernel.FEATURE_NAMES


@pytest.mark.parametrize(
    "absent",
    [("tvoc_ppb", "eco2_ppm", "raw_h2", "raw_ethanol"), ("temperature_c", "humidity_pct"), ("pm2_5",), ("co_ppm",)],
    ids=lambda names: names[0],
)
def test_rows_without_a_chip_are_those_of_a_device_that_never_had_it(absent: tuple[str, ...]) -> None:
    """A model would be trained for a device that lacks a chip on numbers that such a device never sends."""
    frame = simulate(3, datetime(2024, 1, 5, tzinfo=UTC), 2_000, 4, fires_per_device_day=12, faults_per_device_day=24)
    whole = kernel.feature_matrix(kernel.features_of_frame(frame))
    lacking = frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in absent)
    expected = kernel.feature_matrix(kernel.features_of_frame(lacking))
    assert kernel.without(whole, absent).tobytes() == expected.tobytes()
    changed = ~((whole == expected) | (np.isnan(whole) & np.isnan(expected))).all(axis=0)
    rests = [kernel.rests_on(name, absent) for name in kernel.FEATURE_NAMES]
    assert not (changed & ~np.array(rests)).any()
