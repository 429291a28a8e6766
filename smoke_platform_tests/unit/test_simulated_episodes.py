"""Simulated fires and nuisances: each leaves its mark, truth lies within the episode, distance and room matter."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from smoke_platform.adapters import feature_tables
from smoke_platform.domain import simulator
from smoke_platform.domain.levels import SMOKE_ALARM
from smoke_platform.domain.simulated_devices import LIFE_YEARS, Air, Device, device_of, measured, noise_of
from smoke_platform.domain.simulated_fires import FIRE_FAMILIES, FireCurve, fire_curve, products
from smoke_platform.domain.simulated_nuisances import NUISANCE_FAMILIES
from smoke_platform.domain.simulated_rooms import ROOM_TYPES, Room, gathered, room_of, transport_lag
from smoke_platform.domain.simulator import SimulationSettings, episodes, simulate

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = 86_400
SEED = 3
DEVICES = 80
FIRES = SimulationSettings(SEED, 2.0, 12, 0, missing_share=0, faults_per_device_day=0)
NUISANCES = SimulationSettings(SEED, 2.0, 0, 24, missing_share=0, faults_per_device_day=0)
FAMILY = {family.name: family for family in FIRE_FAMILIES}
#: As tall and large as a bedroom.
BEDROOM = Room(ROOM_TYPES[2], 14.0, 2.5, 0.5, 0.6, 0.5, door_open=False)
#: The room of the standard's test fires, which are watched until it has filled.
FIRE_ROOM = Room(ROOM_TYPES[1], 70.0, 4.0, 0.3, 0.9, 0.5, door_open=False)


@pytest.fixture(scope="module")
def truth() -> pl.DataFrame:
    """Every fire and every nuisance of eighty devices in a day, each kind in a world of its own."""
    return pl.concat([episodes(world, 0, DEVICES, START, DAY) for world in (FIRES, NUISANCES)])


def traces(truth: pl.DataFrame, family: str, most: int = 6) -> list[pl.DataFrame]:
    """Readings through some episodes of a family, from two minutes before on."""
    found = []
    for one in truth.filter((pl.col("family") == family) & (pl.col("ignition") > START)).head(most).to_dicts():
        world = FIRES if one["kind"] == "fire" else NUISANCES
        begin = one["ignition"] - timedelta(seconds=120)
        frame = simulate(
            1,
            begin,
            (one["end"] - begin).total_seconds(),
            SEED,
            interval_s=world.interval_s,
            fires_per_device_day=world.fires_per_device_day,
            nuisances_per_device_day=world.nuisances_per_device_day,
            missing_share=0,
            faults_per_device_day=0,
            first_device=int(one["device_id"].removeprefix("sim-")) - 1,
        )
        # The episode before may not have cleared when this one begins; then there is no quiet air to compare with.
        if frame.filter(pl.col("event_time") < one["ignition"])["event_id"].null_count() >= 50:
            found.append(frame.filter(pl.col("event_id").is_null() | (pl.col("event_id") == one["event_id"])))
    assert found, family
    return found


def rise(frame: pl.DataFrame, sensor: str) -> float:
    """How far a sensor goes beyond what it was in the quiet two minutes before."""
    quiet = frame.head(55)[sensor].mean()
    highest = frame[sensor].max()
    assert isinstance(quiet, float)
    assert isinstance(highest, float)
    return highest - quiet


@pytest.mark.parametrize(
    ("family", "sensor", "least", "bounded", "most"),
    [
        ("shower_steam", "humidity_pct", 5.0, "tvoc_ppb", 400),
        ("humidifier", "humidity_pct", 3.0, "temperature_c", 1.0),
        ("hair_dryer", "temperature_c", 1.5, "pm2_5", 200),
        ("solvent", "tvoc_ppb", 2_000.0, "pm2_5", 60),
        ("cleaning_agent", "tvoc_ppb", 700.0, "pm2_5", 60),
        ("aerosol_spray", "tvoc_ppb", 1_500.0, "temperature_c", 1.0),
        ("dust", "pm2_5", 30.0, "tvoc_ppb", 300),
        ("vacuum_cleaner", "pm2_5", 5.0, "tvoc_ppb", 400),
        ("candle", "pm2_5", 2.0, "temperature_c", 2.5),
        ("cigarette", "pm2_5", 25.0, "temperature_c", 1.0),
        ("incense", "pm2_5", 40.0, "temperature_c", 1.0),
        ("toast", "pm2_5", 80.0, "temperature_c", 5.0),
        ("frying", "pm2_5", 40.0, "temperature_c", 12.0),
        ("cooking", "pm2_5", 8.0, "temperature_c", 8.0),
        ("outdoor_grill", "pm2_5", 20.0, "temperature_c", 1.0),
    ],
)
def test_every_nuisance_has_its_signature(
    truth: pl.DataFrame, family: str, sensor: str, least: float, bounded: str, most: float
) -> None:
    """A model that learns steam as dust will cry wolf in every bathroom."""
    for frame in traces(truth, family, 3):
        assert rise(frame, sensor) >= least
        assert rise(frame, bounded) <= most


def test_strong_toast_and_frying_are_as_dense_as_what_alarms_react_to(truth: pl.DataFrame) -> None:
    """Nuisances that no smoke alarm would mistake teach nothing."""
    for family in ("toast", "frying"):
        assert max(rise(frame, "pm2_5") for frame in traces(truth, family, 40)) > SMOKE_ALARM


def test_steam_reaches_the_optical_sensor(truth: pl.DataFrame) -> None:
    """Steam that only raises humidity would be told from smoke at a glance."""
    assert max(rise(frame, "pm2_5") for frame in traces(truth, "shower_steam", 20)) > 300


def test_dust_is_coarse_and_smoke_is_fine(truth: pl.DataFrame) -> None:
    """The one thing by which particles alone tell them apart."""

    def coarse(family: str) -> float:
        shares = []
        for frame in traces(truth, family):
            # Below the density at which two particles in the beam count as one large one.
            seen = frame.filter((pl.col("pm2_5") > 60) & (pl.col("pm2_5") < 800))
            if seen.height:
                shares.append(seen.select((pl.col("nc2_5") / pl.col("pm2_5")).median()).item())
        return float(np.median(shares))

    assert coarse("dust") > 2 * coarse("cigarette")
    assert coarse("dust") > 2 * coarse("smouldering_cotton")


def test_smouldering_gives_co_and_little_heat_where_flames_give_heat(truth: pl.DataFrame) -> None:
    """Heat detectors sleep through smouldering; a simulation in which they don't would praise them."""
    with_co = [frame for frame in traces(truth, "smouldering_cotton", 16) if frame["co_ppm"].null_count() == 0]
    assert with_co
    assert all(rise(frame, "co_ppm") > 10 for frame in with_co)
    assert np.median([rise(frame, "temperature_c") for frame in traces(truth, "smouldering_cotton", 8)]) < 3
    assert np.median([rise(frame, "temperature_c") for frame in traces(truth, "flaming_wood", 8)]) > 12


def test_black_smoke_without_heat_and_heat_without_smoke(truth: pl.DataFrame) -> None:
    """The two test fires that show what a detector with one sensor misses."""
    decalene, alcohol = traces(truth, "low_temperature_smoke"), traces(truth, "flaming_alcohol")
    assert all(rise(frame, "pm2_5") > SMOKE_ALARM for frame in decalene)
    assert np.median([rise(frame, "temperature_c") for frame in decalene]) < 15
    assert all(rise(frame, "temperature_c") > 8 for frame in alcohol)
    yields = [rise(frame, "pm2_5") / rise(frame, "temperature_c") for frame in alcohol]
    assert max(yields) < min(rise(frame, "pm2_5") / rise(frame, "temperature_c") for frame in decalene)


# -- truth ---------------------------------------------------------------------------------------------------
def test_onset_lies_within_its_episode(truth: pl.DataFrame) -> None:
    """Delays of detection are counted from the onset: one before ignition or after the end would make nonsense."""
    fires = truth.filter(pl.col("kind") == "fire")
    assert fires["onset"].null_count() < 0.02 * fires.height
    seen = fires.drop_nulls("onset")
    for earlier, later in (("ignition", "onset"), ("onset", "out"), ("out", "end")):
        assert (seen[earlier] <= seen[later]).all()
    assert truth.filter(pl.col("kind") == "nuisance")["onset"].null_count() == truth.height - fires.height
    assert truth["distance_m"].min() >= 0.5  # type: ignore[operator]  # a float column's minimum


@given(start=st.integers(1_700_000_000, 1_800_000_000), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_label_is_true_from_onset_until_the_fire_is_out(start: int, seed: int) -> None:
    """Two truths about one fire would leave it open which of them a figure rests on."""
    begin = datetime.fromtimestamp(start, UTC)
    world = SimulationSettings(seed, 10.0, 12, 0, missing_share=0, faults_per_device_day=0)
    told = episodes(world, 5, 1, begin, 7200)
    frame = simulate(
        1,
        begin,
        7200,
        seed,
        interval_s=10,
        fires_per_device_day=12,
        nuisances_per_device_day=0,
        missing_share=0,
        faults_per_device_day=0,
        first_device=5,
    )
    moments = frame["event_time"]
    expected = np.zeros(frame.height, dtype=bool)
    for row in told.drop_nulls("onset").to_dicts():
        expected |= ((moments >= row["onset"]) & (moments <= row["out"])).to_numpy()
    assert frame["fire_alarm"].to_list() == expected.tolist()
    assert set(frame["event_id"].drop_nulls()) <= set(told["event_id"])


def test_episodes_are_the_same_alone_and_among_many(truth: pl.DataFrame) -> None:
    """The truth about a device must not depend on who else is asked about, or in which stretches."""
    alone = episodes(FIRES, 41, 1, START, DAY)
    assert_frame_equal(alone, truth.filter((pl.col("device_id") == "sim-0042") & (pl.col("kind") == "fire")))
    halves = pl.concat(
        [
            episodes(FIRES, 41, 1, START, DAY / 2),
            episodes(FIRES, 41, 1, START + timedelta(seconds=DAY / 2), DAY / 2),
        ]
    ).unique("event_id", maintain_order=True)
    assert_frame_equal(alone, halves)
    with pytest.raises(ValueError, match="time zone"):
        episodes(FIRES, 0, 1, datetime(2026, 1, 1), 60)  # noqa: DTZ001  # the missing zone is the point


# -- rooms and distances -------------------------------------------------------------------------------------
def curve(family: str, room: Room = BEDROOM, distance_m: float = 2.0) -> FireCurve:
    """A middling fire of the family."""
    one = FAMILY[family]
    return fire_curve(
        one,
        room,
        distance_m,
        pace=float(np.mean(one.pace)),
        peak_kw=float(np.mean(one.peak_kw)),
        burn_s=float(np.mean(one.burn_s)),
        cold_lag_s=float(np.mean(one.lag_s)),
    )


@given(
    family=st.sampled_from(sorted(FAMILY)),
    near=st.floats(0.5, 5.0),
    further=st.floats(0.1, 5.0),
    area=st.floats(5.0, 60.0),
)
@settings(max_examples=60, deadline=None)
def test_fires_thin_out_with_distance_and_in_larger_rooms(
    family: str, near: float, further: float, area: float
) -> None:
    """Or the place of a detector would not matter."""
    room = replace(BEDROOM, area_m2=area)
    here, there = curve(family, room, near), curve(family, room, near + further)
    assert (there.burnt <= here.burnt + 1e-12).all()
    assert (there.heat_k <= here.heat_k + 1e-9).all()
    assert there.lag_s >= here.lag_s
    larger = curve(family, replace(room, area_m2=area * 1.5), near)
    assert (larger.burnt <= here.burnt + 1e-12).all()
    aired = curve(family, replace(room, door_open=True), near)
    assert (aired.burnt <= here.burnt + 1e-12).all()
    # While it burns nothing falls: the onset is one moment.
    assert (np.diff(here.burnt) >= -1e-12).all()
    assert (np.diff(here.heat_k) >= -1e-9).all()


@given(loss=st.floats(20, 5000), given_off=st.floats(0.01, 10), volume=st.floats(5, 300))
def test_a_steady_source_fills_a_room_exponentially(loss: float, given_off: float, volume: float) -> None:
    """The textbook's well-mixed room."""
    age = np.linspace(0, 3000, 151)
    found = gathered(age, np.full(151, given_off), loss, volume)
    assert found == pytest.approx(given_off * loss / volume * (1 - np.exp(-age / loss)), rel=1e-9)


def test_smoke_takes_longer_from_afar_and_from_small_fires() -> None:
    """Transport along the ceiling takes seconds for flames."""
    assert transport_lag(50, 2, 2.5) < transport_lag(5, 2, 2.5) < transport_lag(5, 4, 2.5)
    assert 0.5 < transport_lag(100, 3, 4) < 10


@pytest.mark.parametrize(
    ("family", "peak_kw", "pace", "burn_s", "extinction", "density"),
    [
        ("smouldering_wood", 2.4, 660, 800, 4.4, 2.0),
        ("smouldering_cotton", 1.6, 600, 750, 4.4, 2.0),
        ("flaming_polyurethane", 40, 0.005, 160, 6.0, 1.5),
        ("flaming_heptane", 90, 30, 170, 6.0, 1.1),
        ("low_temperature_smoke", 8, 200, 700, 6.0, 1.7),
    ],
)
def test_the_standards_fires_fill_the_standards_room_in_order_of_magnitude(
    family: str, peak_kw: float, pace: float, burn_s: float, extinction: float, density: float
) -> None:
    """Yields, jet and layer together: EN 54-7 ends its fires at these densities (dB/m, remembered) at about this time.

    Extinction in m2/g at the standard's near infrared: less than the 8.7 of soot in visible light.
    """
    one = FAMILY[family]
    made = fire_curve(one, FIRE_ROOM, 3.0, pace=pace, peak_kw=peak_kw, burn_s=burn_s, cold_lag_s=0)
    smoke = float(made.burnt[-1]) * products(one).pm2_5 / 1e6
    found = 10 / math.log(10) * extinction * smoke
    assert density / 3.5 < found < density * 3.5


def test_rooms_weigh_only_nuisances_that_there_are_and_all_of_them() -> None:
    """A slip in a name would silently take a nuisance out of the world."""
    names = {family.name for family in NUISANCE_FAMILIES}
    weighed = {name for room in ROOM_TYPES for name, weight in room.nuisances.items() if weight > 0}
    assert weighed == names
    assert all(name.isidentifier() and name.islower() for name in names | set(FAMILY))


# -- ageing --------------------------------------------------------------------------------------------------
def readings(device: Device, co_ppm: float = 50.0, smoke: float = 200.0) -> dict[str, float]:
    """Means of a device in air with some smoke and carbon monoxide."""
    moments = START.timestamp() + np.arange(512.0)
    noise, _ = noise_of(SEED, 1, 0, 512)
    air = Air.quiet(device, moments)
    air.co[:] = co_ppm
    air.tvoc[:] = 5_000.0
    air.particles[:] += smoke
    return {name: float(values.mean()) for name, values in measured(SEED, device, moments, noise, air).items()}


def test_old_devices_see_less_and_have_wandered() -> None:
    """A model that has only seen new sensors is surprised by every old one."""
    number = next(number for number in range(100) if device_of(SEED, number).has_co)
    device = device_of(SEED, number)
    year = 365.25 * DAY
    now = START.timestamp()
    new, old = (replace(device, age_s=age * year - now) for age in (0.01, 9.9))
    assert new.age_years(np.array([now]))[0] == pytest.approx(0.01)
    fresh, worn = readings(new), readings(old)
    assert worn["co_ppm"] < 0.95 * fresh["co_ppm"]
    assert worn["tvoc_ppb"] < 0.97 * fresh["tvoc_ppb"]
    assert abs(worn["raw_h2"] - fresh["raw_h2"]) > 3
    assert worn["temperature_c"] != fresh["temperature_c"]
    # It is replaced at the end of its life.
    assert replace(device, age_s=(LIFE_YEARS + 0.01) * year - now).age_years(np.array([now]))[0] < 0.02


@given(moment=st.floats(-1e9, 4e9), number=st.integers(0, 1000))
def test_no_device_is_older_than_its_life(moment: float, number: int) -> None:
    """The world goes on for ever; devices don't."""
    assert 0 <= device_of(SEED, number).age_years(np.array([moment]))[0] <= LIFE_YEARS
    assert room_of(SEED, number) == device_of(SEED, number).room


# -- versions ------------------------------------------------------------------------------------------------
def test_every_part_of_the_simulator_counts_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of yesterday's physics would be trained on as if they were today's."""
    folder = Path(simulator.__file__).parent
    parts = {file.stem for file in folder.glob("simulated_*.py")} | {"simulator"}
    assert set(simulator.SOURCE_MODULES) == parts
    before = feature_tables.TrainingWorld().key()
    code = simulator.source_code()
    for part in parts:
        assert (folder / f"{part}.py").read_bytes() in code
    monkeypatch.setattr(simulator, "source_code", lambda: code + b"#")
    assert feature_tables.TrainingWorld().key() != before


def test_the_documents_name_every_family() -> None:
    """A reader looks a family up where its sources stand."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "simulator.md").read_text("utf-8")
    assert [name for name in (*FAMILY, *(one.name for one in NUISANCE_FAMILIES)) if f"`{name}`" not in text] == []
