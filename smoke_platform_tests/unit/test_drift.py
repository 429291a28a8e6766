"""Drift: the distances against other implementations, and what counts as drifted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from smoke_platform.domain import drift
from smoke_platform.domain.features import FEATURE_NAMES
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)
NAN = float("nan")


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_distances_agree_with_scipy(a: list[float], b: list[float]) -> None:
    """Or the numbers in the check aren't what their names say."""
    one, other = np.array(a), np.array(b)
    assert drift.wasserstein(one, other) == pytest.approx(stats.wasserstein_distance(one, other), rel=1e-9, abs=1e-6)
    assert drift.kolmogorov_smirnov(one, other) == pytest.approx(
        stats.ks_2samp(one, other, method="asymp").statistic, abs=1e-12
    )


def _sample(shift: float = 0.0, seed: int = 0, missing: float = 0.0, rows: int = 3000) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    values = chance.normal(shift, 1.0, rows).astype(np.float32)
    values[chance.random(rows) < missing] = NAN
    return {"x": values}


def test_a_shift_is_found_and_none_is_not() -> None:
    """Or a day like any other wakes somebody, or a sensor that has moved does not."""
    assert drift.compare(_sample(), _sample(seed=1), ["x"]).share == 0.0
    found = drift.compare(_sample(), _sample(1.0, seed=1), ["x"])
    assert found.share == 1.0
    assert found.columns[0].cause == "distribution"
    assert found.columns[0].distance == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("rows", [200, 999, 1001, 20_000])
def test_the_verdict_does_not_depend_on_the_number_of_rows(rows: int) -> None:
    """Or a report changes its mind at a thousand rows."""
    for shift, drifted in ((0.0, False), (0.25, False), (1.0, True)):
        found = drift.compare(_sample(rows=rows), _sample(shift, seed=1, rows=rows), ["x"])
        assert bool(found.drifted) is drifted


def test_a_sensor_that_falls_silent_has_drifted() -> None:
    """Or the model goes on with a blind eye and the report, having nothing to compare, is green."""
    for gone in (_sample(missing=1.0), _sample(missing=0.6)):
        found = drift.compare(_sample(), gone, ["x"])
        assert found.columns[0].cause == "missing"
        assert found.share == 1.0


def test_what_was_never_measured_is_not_judged() -> None:
    """Or a sensor that no device has dilutes the share of drifted columns."""
    never = {"x": np.full(500, NAN)}
    found = drift.compare({**_sample(), "y": never["x"]}, {**_sample(2.0), "y": never["x"]}, ["x", "y"])
    assert found.share == 1.0
    assert [column.column for column in found.columns] == ["x", "y"]


def test_a_constant_column_does_not_divide_by_zero() -> None:
    """Or clean air (TVOC at 0 all day) breaks the report."""
    still = {"x": np.zeros(500)}
    assert drift.compare(still, still, ["x"]).columns[0].distance == 0.0
    assert drift.compare(still, {"x": np.ones(500)}, ["x"]).drifted == ("x",)


# -- streams -----------------------------------------------------------------------------------------------------

#: Few different values, so that atoms and equal knots come up, or any.
STREAM = st.one_of(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=80), VALUES)


@settings(max_examples=200, deadline=None)
@given(STREAM, STREAM, st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_stream_in_parts_is_as_far_away_as_all_at_once(a, b, parts, chance) -> None:
    """Or a day that does not fit into memory gets another verdict than the same day on a larger machine."""
    reference, values = drift.ordered(np.array(a)), np.array(b)
    whole, merged = drift.Tally(reference), drift.Tally(reference)
    whole.add(values)
    chance.shuffle(b)
    for part in np.array_split(np.array(b), parts):
        other = drift.Tally(reference)
        other.add(part)
        merged.merge(other)
    exact = drift.wasserstein(reference.values, values) / reference.spread
    scale = (np.abs(values).max() + np.abs(reference.values).max()) / reference.spread
    for tally in (whole, merged):
        least, most = tally.bounds()
        assert least - 1e-9 * scale <= exact <= most + 1e-9 * scale
        assert tally.ks == pytest.approx(drift.kolmogorov_smirnov(reference.values, values), abs=1e-12)
        # What the docstring proves: half of the mass of each gap times its width.
        assert most - least <= np.diff(np.unique(reference.values)).sum() / 2 / reference.spread + 1e-9 * scale


@settings(max_examples=100, deadline=None)
@given(VALUES, VALUES)
def test_finer_knots_close_in_on_the_exact_distance(a: list[float], b: list[float]) -> None:
    """Or a column near the threshold is judged by chance."""
    reference, values = drift.ordered(np.array(a)), np.array(b)
    tally = drift.Tally(reference)
    tally.add(values)
    exact = drift.wasserstein(reference.values, values) / reference.spread
    scale = (np.abs(values).max() + np.abs(reference.values).max() + 1) / reference.spread
    for _ in range(3):
        tally = tally.finer()
        tally.add(values)
    assert sum(tally.bounds()) / 2 == pytest.approx(exact, abs=1e-5 * scale)


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.49, 0.52, 2.0])
def test_a_stream_against_a_training_sample_is_decided(shift: float) -> None:
    """Or the bounds are too wide to be of use at the sizes that occur."""
    chance = np.random.default_rng(5)
    reference = drift.ordered(np.clip(chance.normal(0, 1, 5_000), -1, None).astype(np.float32))
    values = np.clip(chance.normal(shift, 1.0, 200_000), -1, None).astype(np.float32)
    tally = drift.Tally(reference)
    for part in np.array_split(values, 7):
        tally.add(part)
    least, most = tally.bounds()
    assert most - least < 0.001
    exact = drift.compare({"x": reference}, {"x": values}, ["x"]).columns[0]
    assert tally.drift("x").distance == pytest.approx(exact.distance, abs=0.001)
    assert tally.drift("x").mean_current == pytest.approx(exact.mean_current, rel=1e-6, abs=1e-6)


def test_what_is_not_measured_is_counted_in_a_stream_too() -> None:
    """Or a sensor that falls silent in a large fleet is not missed."""
    reference = drift.ordered(_sample()["x"])
    tally = drift.Tally(reference)
    tally.add(np.full(1000, NAN))
    tally.add(_sample(seed=1, rows=200)["x"])
    found = tally.drift("x")
    assert found.missing_current == pytest.approx(1000 / 1200)
    assert found.cause == "missing"
    never = drift.Tally(drift.ordered(np.full(500, NAN)))
    never.add(np.ones(500))
    assert never.drift("x").cause == "missing"


# -- shares ------------------------------------------------------------------------------------------------------


#: Not any floats: of two that differ in their last bit scipy says NaN.
SHARES = st.integers(0, 10**6).map(lambda n: n / 10**6)


@settings(max_examples=100, deadline=None)
@given(SHARES, SHARES)
def test_the_distance_of_shares_agrees_with_scipy(p: float, q: float) -> None:
    """Or the limit that is Evidently's own is held against another number."""
    expected = distance.jensenshannon([p, 1 - p], [q, 1 - q])
    assert drift.jensen_shannon(p, q) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("share", [5e-324, 1e-323, 1e-310, 1e-17])
def test_a_share_next_to_nothing_has_a_distance(share: float) -> None:
    """Or a model that has all but stopped to call fire takes the report down instead of being told of."""
    assert drift.jensen_shannon(0.0, share) == pytest.approx(0.0, abs=1e-7)
    assert drift.jensen_shannon(share, 0.0) == pytest.approx(0.0, abs=1e-7)
    assert drift.jensen_shannon(share, share) == 0.0
    assert drift.jensen_shannon(1.0, 1.0 - max(share, 2.0**-53)) == pytest.approx(0.0, abs=1e-7)


def test_only_more_fire_than_in_training_is_drift() -> None:
    """Or every peaceful day is drift, for training is full of fires on purpose."""
    assert not drift.ShareDrift("x", 0.2, 0.0, 1000).drifted
    assert drift.ShareDrift("x", 0.0, 0.2, 1000).drifted
    assert not drift.ShareDrift("x", 0.0, 0.2, 10).drifted


# -- sensors and devices -----------------------------------------------------------------------------------------


def test_every_feature_belongs_to_its_sensors() -> None:
    """Or a new feature drifts without any sensor's name."""
    for name in FEATURE_NAMES:
        assert set(drift.sensors_of(name)) <= set(ALL_SENSOR_NAMES)
    assert drift.sensors_of("pm2_5_rise") == ("pm2_5",)
    assert drift.sensors_of("smoke_and_gas") == ("pm2_5", "tvoc_ppb")
    with pytest.raises(ValueError, match="shoe_size"):
        drift.sensors_of("shoe_size")


def _features(rows: int = 400, **shifts: float) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(len(shifts))
    return {name: chance.normal(shifts.get(name, 0.0), 1.0, rows) for name in FEATURE_NAMES}


def test_drift_is_told_by_sensor() -> None:
    """Or an operator reads forty-seven names of features and does not know which sensor to change."""
    now = _features(tvoc_ppb=3.0, tvoc_ppb_rise=2.0, smoke_and_gas=5.0)
    now["co_ppm"][:] = NAN
    sensors = drift.by_sensor(drift.compare(_features(), now, FEATURE_NAMES))
    first = sensors[0]
    assert (first.sensor, set(first.drifted), first.worst) == ("tvoc_ppb", {"tvoc_ppb", "tvoc_ppb_rise"}, "tvoc_ppb")
    silent = [sensor.sensor for sensor in sensors if sensor.silent]
    assert silent == ["co_ppm"]
    assert all(not sensor.drifted for sensor in sensors if sensor.sensor not in ("tvoc_ppb", "co_ppm"))


def _device(name: str, share: float | None) -> drift.DeviceDrift:
    return drift.DeviceDrift(name, 1000, 24, share, (), 0.0)


@pytest.mark.parametrize(
    ("shares", "odd"),
    [
        ([0.9, 0.0, 0.1], ("d0",)),
        ([0.9, 0.9, 0.1], ()),
        ([0.9], ()),
        ([0.9, 0.0], ("d0",)),
        ([0.9, None, None], ()),
        ([0.0, 0.1], ()),
    ],
)
def test_one_odd_device_is_told_from_a_fleet_that_has_drifted(shares: list[float | None], odd: tuple[str, ...]) -> None:
    """Or a broken device trains the model anew, or a fleet that has drifted is taken for a heap of broken devices."""
    assert drift.odd_ones([_device(f"d{number}", share) for number, share in enumerate(shares)]) == odd


def test_a_device_is_not_judged_by_an_hour() -> None:
    """Or a device that was switched on at noon is odd because it is noon."""
    summary = drift.compare(_features(), _features(tvoc_ppb=9.0), FEATURE_NAMES)
    assert drift.of_device("d", summary, rows=1000, hours=2, fire_share=0.0).share is None
    assert drift.of_device("d", summary, rows=1000, hours=24, fire_share=0.0).share is not None
    assert drift.of_device("d", None, rows=1000, hours=24, fire_share=0.0).share is None


def test_the_signs_of_drift_are_told_apart() -> None:
    """Or four reasons to worry count as one."""
    reference = {name: drift.ordered(values) for name, values in {**_features(), "prediction": np.zeros(400)}.items()}
    tally = drift.FleetTally(reference)
    now = {**_features(**dict.fromkeys(FEATURE_NAMES, 3.0)), "prediction": np.full(400, 0.4)}
    tally.add(now, rows=600, called=200, labelled=600, labelled_fires=500)
    day = tally.day(fire_share_reference=0.02, label_share_reference=0.02, devices=[_device("a", 1.0)], odd=["a"])
    assert day.indicators == ("data", "scores", "calls", "target", "fire share", "odd devices")
    assert tally.fire_share == pytest.approx(1 / 3)
    assert day.as_dict()["devices"][0]["odd"] is True
    calm = drift.FleetTally(reference)
    calm.add({**_features(), "prediction": np.zeros(400)}, rows=400, called=0, labelled=0, labelled_fires=0)
    assert calm.day(fire_share_reference=0.02, label_share_reference=0.02, devices=[], odd=[]).indicators == ()
