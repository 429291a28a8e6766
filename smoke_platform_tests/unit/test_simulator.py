"""The simulated world: legal readings, truth that fits what happens, the same world however it is asked for."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_BY_NAME, reading_from_mapping
from smoke_platform.domain.simulator import (
    DETECTABLE_HEAT_K,
    FIRE_FAMILIES,
    FRAME_SCHEMA,
    NUISANCE_FAMILIES,
    LiveSimulator,
    ParticleMode,
    SimulationSettings,
    device_name,
    saturation_vapour_pressure,
    simulate,
)

START = datetime(2026, 3, 1, 5, 30, tzinfo=UTC)
DAY = 86_400
starts = st.integers(978_307_200, 2_208_988_800).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@pytest.fixture(scope="module")
def busy_day() -> pl.DataFrame:
    """Twelve devices through a day with as many fires and nuisances as there can be."""
    return simulate(12, START, DAY, 11, interval_s=5, fires_per_device_day=12, nuisances_per_device_day=24)


def test_frame_has_the_promised_columns(busy_day: pl.DataFrame) -> None:
    """Training and landing address the columns by name and type."""
    assert dict(busy_day.schema) == FRAME_SCHEMA
    assert busy_day.select("device_id", "event_time").is_duplicated().sum() == 0
    assert_frame_equal(busy_day, busy_day.sort("device_id", "event_time"))


@given(
    seed=st.integers(0, 2**63),
    start=starts,
    interval=st.sampled_from([0.25, 1.0, 7.0, 60.0]),
    fires=st.sampled_from([0.0, 12.0]),
)
@settings(max_examples=25, deadline=None)
def test_every_simulated_row_is_a_legal_reading(seed: int, start: datetime, interval: float, fires: float) -> None:
    """A simulated reading that the platform rejects would fill the dead letters of every demo."""
    frame = simulate(
        2, start, 400 * interval, seed, interval_s=interval, fires_per_device_day=fires, nuisances_per_device_day=24
    )
    for row in frame.drop("event_kind", "event_family", "event_id").iter_rows(named=True):
        reading = reading_from_mapping(row)
        assert reading.device_id == row["device_id"]
        assert reading.event_time == row["event_time"]


def test_ranges_hold_through_the_fiercest_day(busy_day: pl.DataFrame) -> None:
    """Fires drive the channels to their limits; beyond them the reading would be rejected."""
    for name in ALL_SENSOR_NAMES:
        values = busy_day[name].drop_nulls()
        assert not values.is_nan().any()
        assert values.min() >= SENSOR_BY_NAME[name].low  # type: ignore[operator]  # a float column's minimum
        assert values.max() <= SENSOR_BY_NAME[name].high  # type: ignore[operator]  # a float column's maximum


def test_particles_keep_their_order(busy_day: pl.DataFrame) -> None:
    """Mass up to 1.0 um cannot exceed mass up to 2.5 um, and a model would learn such nonsense."""
    seen = busy_day.drop_nulls("pm2_5")
    assert (seen["pm1_0"] <= seen["pm2_5"]).all()
    assert (seen["nc0_5"] >= seen["nc1_0"]).all()
    assert (seen["nc1_0"] >= seen["nc2_5"]).all()


@given(
    median=st.floats(0.1, 0.4),
    spread=st.floats(1.3, 2.0),
    density=st.floats(0.5, 3.0),
)
def test_mass_and_number_come_from_one_lognormal(median: float, spread: float, density: float) -> None:
    """The closed form must agree with adding up the distribution particle by particle."""
    pm1_0, *numbers = ParticleMode(median, spread, density).per_mass()
    edges = np.geomspace(0.3, 2.5, 40_001)
    middle = np.sqrt(edges[1:] * edges[:-1])
    width = math.log(spread)
    share = (
        np.exp(-0.5 * (np.log(middle / median) / width) ** 2)
        / (width * math.sqrt(2 * math.pi))
        * np.log(edges[1:] / edges[:-1])
    )
    mass = share * math.pi / 6 * density * middle**3
    bins = [(0.3, 0.5), (0.5, 1.0), (1.0, 2.5)]
    expected = [share[(middle >= low) & (middle < high)].sum() / mass.sum() for low, high in bins]
    assert pm1_0 == pytest.approx(mass[middle < 1.0].sum() / mass.sum(), rel=1e-3)
    assert numbers == pytest.approx(expected, rel=2e-3, abs=1e-9)


@given(seed=st.integers(0, 2**40), start=starts)
@settings(max_examples=10, deadline=None)
def test_the_same_seed_gives_the_same_world_and_another_seed_another(seed: int, start: datetime) -> None:
    """A proof that names its seed must be repeatable."""
    once, again, other = (simulate(2, start, 120, which) for which in (seed, seed, seed + 1))
    assert_frame_equal(once, again)
    assert not once.equals(other)


@given(cut=st.integers(1, 1799), start=starts, seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_pieces_equal_the_whole(cut: int, start: datetime, seed: int) -> None:
    """A live simulator asks minute by minute; seams in the world would be learned by a model as fires."""
    options = {"fires_per_device_day": 12, "nuisances_per_device_day": 24}
    whole = simulate(2, start, 1800, seed, **options)
    pieces = pl.concat(
        [
            simulate(2, start, cut, seed, **options),
            simulate(2, start + timedelta(seconds=cut), 1800 - cut, seed, **options),
        ]
    ).sort("device_id", "event_time")
    assert_frame_equal(whole, pieces)


def test_a_device_is_the_same_alone_and_in_a_fleet() -> None:
    """Adding devices to a demo must not change what those already there do."""
    fleet = simulate(5, START, 300, 7)
    alone = simulate(1, START, 300, 7, first_device=3)
    assert_frame_equal(fleet.filter(pl.col("device_id") == "sim-0004"), alone)


def test_truth_is_about_fires_and_only_about_fires(busy_day: pl.DataFrame) -> None:
    """A label on a nuisance, or on a clear room, would teach the model false alarms."""
    assert busy_day.filter("fire_alarm")["event_kind"].unique().to_list() == ["fire"]
    assert busy_day.filter(pl.col("event_kind").is_null())["fire_alarm"].sum() == 0
    per_event = (
        busy_day.filter(pl.col("event_kind") == "fire")
        .group_by("event_id", maintain_order=True)
        .agg(pl.col("fire_alarm"), pl.col("device_id").n_unique(), pl.col("event_family").n_unique())
    )
    assert per_event["device_id"].max() == 1
    assert per_event["event_family"].max() == 1
    for labels in per_event["fire_alarm"]:
        changes = int((labels.cast(pl.Int8).diff().fill_null(0) != 0).sum())
        assert changes <= 2, "a fire's label goes on once and off once"


def test_every_family_comes_up(busy_day: pl.DataFrame) -> None:
    """A family that never burns is never learned."""
    names = {family.name for family in (*FIRE_FAMILIES, *NUISANCE_FAMILIES)}
    many = simulate(60, START, DAY, 3, interval_s=60, fires_per_device_day=12, nuisances_per_device_day=24)
    assert set(many["event_family"].drop_nulls()) == names
    assert set(busy_day["event_family"].drop_nulls()) <= names


def test_a_labelled_fire_moves_the_sensors(busy_day: pl.DataFrame) -> None:
    """Truth without any trace in the channels could not be learned by anything."""
    warmer = pl.col("temperature_c") - pl.col("temperature_c").first().over("event_id")
    burning = busy_day.with_columns(warmer=warmer).filter("fire_alarm").drop_nulls("pm2_5")
    trace = (pl.col("pm2_5") > 15) | (pl.col("co_ppm") > 3) | (pl.col("warmer") > 1.2)
    assert burning.height > 1000
    assert burning.select(trace.mean()).item() > 0.99
    assert DETECTABLE_HEAT_K > 0


def test_no_fires_when_none_are_asked_for() -> None:
    """A load test wants quiet devices."""
    calm = simulate(3, START, DAY, 5, interval_s=30, fires_per_device_day=0, nuisances_per_device_day=0)
    assert calm["event_kind"].null_count() == calm.height
    assert not calm["fire_alarm"].any()


def test_rate_of_fires_is_as_asked() -> None:
    """Twenty devices with 7.2 fires a day each are what makes one every ten minutes."""
    frame = simulate(
        40,
        START.replace(hour=0, minute=0),
        5 * DAY,
        1,
        interval_s=300,
        fires_per_device_day=7.2,
        nuisances_per_device_day=0,
    )
    fires = frame["event_id"].drop_nulls().n_unique()
    assert 40 * 5 * 7.2 * 0.9 < fires < 40 * 5 * 7.2 * 1.1


def test_humidity_falls_when_the_room_warms() -> None:
    """The relation that a real room shows every day."""
    calm = simulate(8, START, 2 * DAY, 2, interval_s=60, fires_per_device_day=0, nuisances_per_device_day=0)
    for _, room in calm.drop_nulls("temperature_c").group_by("device_id"):
        assert room.select(pl.corr("temperature_c", "humidity_pct")).item() < -0.2


def test_vapour_pressure_at_the_boiling_and_the_freezing_point() -> None:
    """A slip in the constants would shift every humidity."""
    assert saturation_vapour_pressure(0.0) == pytest.approx(6.11, abs=0.01)
    assert saturation_vapour_pressure(20.0) == pytest.approx(23.4, abs=0.1)


def test_dropouts_are_null_by_chip_and_never_everything(busy_day: pl.DataFrame) -> None:
    """Features have to cope with missing sensors, so the simulator must show them."""
    frame = simulate(20, START, DAY, 4, interval_s=10, faults_per_device_day=24)
    assert frame["pm2_5"].null_count() > 0
    assert frame["temperature_c"].null_count() > 0
    for name in ("pm1_0", "nc0_5", "nc2_5"):
        assert (frame[name].is_null() == frame["pm2_5"].is_null()).all()
    some = frame.select(pl.any_horizontal(pl.col(ALL_SENSOR_NAMES).is_not_null())).to_series()
    assert some.all()
    assert frame.height < 20 * DAY / 10, "some readings never arrive"


@pytest.mark.parametrize(
    ("name", "value"),
    [("fires_per_device_day", 13), ("nuisances_per_device_day", 25), ("interval_s", 0), ("seed", -1)],
)
def test_an_impossible_setting_is_named(name: str, value: float) -> None:
    """The command's message has to say which option is wrong."""
    with pytest.raises(ValueError, match=name):
        SimulationSettings(**{name: value})  # type: ignore[arg-type]  # the parameter is the point


def test_live_readings_are_spread_and_never_repeat() -> None:
    """All devices in the same millisecond would be a load no fleet makes; a repeat would be dropped as a duplicate."""
    live = LiveSimulator(20, SimulationSettings(missing_share=0, faults_per_device_day=0))
    now = START.timestamp() + 0.4
    chunks = live.since(now)
    first, second = next(chunks), next(chunks)
    both = pl.concat([first, second])
    assert both["event_time"].is_sorted()
    assert both.height == 2 * 20 * live.chunk_intervals()
    assert both.select("device_id", "event_time", "sequence").is_duplicated().sum() == 0
    gaps = first.head(20)["event_time"].diff().drop_nulls().unique().to_list()
    assert gaps == [timedelta(milliseconds=50)]
    restarted = next(live.since(now + 30))
    assert restarted["sequence"][0] == first["sequence"][0] + 30
    assert_frame_equal(
        restarted.filter(pl.col("sequence") < second["sequence"][0]),
        first.filter(pl.col("sequence") >= restarted["sequence"][0]),
    )


def test_a_live_chunk_is_bounded_for_a_large_fleet() -> None:
    """The simulator runs for ever beside everything else; its memory must not grow with the fleet's square."""
    live = LiveSimulator(5_000, SimulationSettings())
    assert live.chunk_intervals() * 5_000 <= LiveSimulator.MOST_ROWS


def test_device_names_are_stable() -> None:
    """Dashboards and the registry address devices by name."""
    assert [device_name(0), device_name(9999)] == ["sim-0001", "sim-10000"]


def test_two_live_simulators_share_no_device() -> None:
    """A load test beside the platform's own simulator must not speak for its devices."""
    world = SimulationSettings(missing_share=0, faults_per_device_day=0)
    second = LiveSimulator(3, world, first_device=20).intervals(1_767_225_600, 2)
    assert set(second["device_id"]) == {"sim-0021", "sim-0022", "sim-0023"}
