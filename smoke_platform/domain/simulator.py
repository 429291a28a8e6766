"""Simulated smoke detectors in simulated rooms: what they report, and the truth about what happened there.

Belongs here: the physics (room air, weather, occupancy, fires, nuisances, the sensors themselves), its constants
with their reasons, and the ground truth. Does not: sending anything (``streaming.producer``), features, models.

The world is a pure function of (seed, device, time). Whatever is random is drawn from a generator that is seeded
with the place it belongs to (a device, a device's slot of time, a device's block of samples), never from one that
runs on. So a device behaves alike whether it is simulated alone or among thousands, in one go or in pieces, and a
live simulator that is restarted goes on in the same world without having kept anything.

The first version is reasoned, not fitted: orders of magnitude and relations between the channels come from the
sources named at each constant. What it leaves out: air flow between rooms, sensors ageing, and repeated fires in
one room within two hours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from smoke_platform.domain.readings import ALL_SENSOR_NAMES, Source

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# -- what a random number belongs to ---------------------------------------------------------------------
_OF_DEVICE, _OF_FIRES, _OF_NUISANCES, _OF_FAULTS, _OF_NOISE, _OF_WEATHER = range(6)


def _draw(seed: int, *place: int) -> np.random.Generator:
    # Negative parts (times before 1970) are folded, since a seed sequence takes only naturals.
    return np.random.default_rng([seed, *(part if part >= 0 else 2**62 - part for part in place)])


# -- air -------------------------------------------------------------------------------------------------
_DAY_S = 86_400.0
#: Standard atmosphere: pressure at sea level, and the height over which it falls to 1/e.
_SEA_LEVEL_HPA, _SCALE_HEIGHT_M = 1013.25, 8_434.0
#: The atmosphere's semidiurnal tide at middle latitudes: some 0.5 hPa, maxima at about 10 and 22 h solar time.
_TIDE_HPA, _TIDE_PEAK_S = 0.5, 10 * 3600.0
#: Weather is an AR(1) process with hourly steps; highs and lows pass in some days, with a spread of 7 hPa.
_WEATHER_STEP_S, _WEATHER_STEPS_PER_DAY, _WEATHER_MEMORY_H = 3600.0, 24, 36.0
_WEATHER_PRESSURE_HPA, _WEATHER_TEMPERATURE_K, _WEATHER_VAPOUR = 7.0, 0.8, 0.10
#: The AR(1) is summed as its moving average and cut off after five memories, where 0.7% is left.
_WEATHER_TERMS = int(5 * _WEATHER_MEMORY_H)
#: Outdoor air's volume share of CO2, below which a gas sensor's equivalent never reports (SGP30: "400 ppm").
_ECO2_FLOOR_PPM = 400.0
#: People at rest in a room raise CO2 by some 500 ppm at ordinary ventilation (about 7 l/s and person).
_OCCUPANCY_ECO2_PPM, _OCCUPANCY_TVOC_PPB = 500.0, 60.0
_OCCUPANCY_TEMPERATURE_K, _OCCUPANCY_VAPOUR_HPA = 0.5, 1.0
#: Density times heat capacity of air, kJ/(m3 K).
_AIR_HEAT = 1.2


def saturation_vapour_pressure(temperature_c: Array | float) -> Any:
    """Over water, hPa; Magnus formula with the constants of Sonntag (1990), good to 0.1% from -45 to 60 degC."""
    return 6.112 * np.exp(17.62 * temperature_c / (243.12 + temperature_c))


# -- particles -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ParticleMode:
    """A lognormal size distribution as an optical sensor sees it, from 0.3 um on.

    The sensor reports mass up to 1.0 and 2.5 um, and numbers in the bins 0.3-0.5, 0.5-1.0 and 1.0-2.5 um (the
    public recordings' NC0.5 > NC1.0 > NC2.5 are such bins, not sums).

    Attributes:
        count_median_um: median diameter by number, um.
        spread: geometric standard deviation.
        density: g/cm3.
    """

    count_median_um: float
    spread: float
    density: float

    def per_mass(self) -> tuple[float, float, float, float]:
        """PM1.0, NC0.5, NC1.0, NC2.5 for one ug/m3 of PM2.5 (Hatch-Choate: a lognormal's mass is lognormal too)."""
        width = math.log(self.spread)
        shift = 3 * width * width

        def number(low: float, high: float) -> float:
            return _normal_cdf(math.log(high / self.count_median_um) / width) - _normal_cdf(
                math.log(low / self.count_median_um) / width
            )

        # Mass of one particle per cm3: pi/6 rho d^3, um3/cm3 times g/cm3 is ug/m3.
        whole = math.pi / 6 * self.density * math.exp(3 * math.log(self.count_median_um) + 4.5 * width * width)

        def mass(low: float, high: float) -> float:
            return whole * (
                _normal_cdf((math.log(high / self.count_median_um) - shift) / width)
                - _normal_cdf((math.log(low / self.count_median_um) - shift) / width)
            )

        fine = mass(0.3, 2.5)
        return mass(0.3, 1.0) / fine, number(0.3, 0.5) / fine, number(0.5, 1.0) / fine, number(1.0, 2.5) / fine


def _normal_cdf(value: float) -> float:
    return 0.5 * (1.0 + math.erf(value / math.sqrt(2.0)))


#: Accumulation-mode haze of room air.
_BACKGROUND = ParticleMode(0.20, 1.7, 1.6)
#: Smouldering makes larger, liquid particles (0.2-0.4 um); flames make fine soot of low effective density
#: (Mulholland, SFPE Handbook, "Smoke Production and Properties").
_SMOULDER_SMOKE = ParticleMode(0.28, 1.8, 1.1)
_SOOT = ParticleMode(0.17, 1.9, 1.0)
#: Cooking fume and tobacco: fine droplets (Wallace 2006; Klepeis 2003).
_FUME = ParticleMode(0.15, 1.8, 0.95)
_TOBACCO = ParticleMode(0.22, 1.6, 1.1)
#: House dust and droplets: their mass is coarse, yet by number the fine ones lead in what the sensor reports.
_DUST = ParticleMode(0.38, 2.0, 2.0)
_DROPLETS = ParticleMode(0.36, 1.9, 1.0)


# -- fires -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class FireFamily:
    """One way of burning. Ranges are (low, high), drawn uniformly for each fire.

    Attributes:
        growth: t-squared coefficient in kW/s2 (NFPA 72: slow 0.0029, medium 0.0117, fast 0.0469, ultra-fast
            0.1876), or 0 for smouldering, which grows along a logistic.
        peak_kw: heat release at which it stays until it is put out.
        burn_s: from ignition to extinction.
        heat: effective heat of combustion, kJ/g.
        smoke_yield, co_yield, voc_yield: g per g burnt (Tewarson, SFPE Handbook; smouldering after Bukowski).
        h2_per_co: volume of hydrogen for one of CO; both come from incomplete combustion.
        delay_s: until the smoke reaches the ceiling at the detector; little buoyancy, long delay.
        mode: particle sizes.
    """

    name: str
    growth: float
    peak_kw: tuple[float, float]
    burn_s: tuple[float, float]
    heat: float
    smoke_yield: float
    co_yield: float
    voc_yield: float
    h2_per_co: float
    delay_s: tuple[float, float]
    mode: ParticleMode


#: After the test fires of EN 54-7 (TF1 to TF6), and a cable.
FIRE_FAMILIES: Final = (
    FireFamily("flaming_wood", 0.0117, (30, 150), (240, 900), 13.0, 0.015, 0.005, 0.003, 0.3, (8, 40), _SOOT),
    FireFamily("smouldering_wood", 0, (1.5, 4.0), (900, 2400), 6.0, 0.12, 0.15, 0.06, 0.3, (60, 240), _SMOULDER_SMOKE),
    FireFamily(
        "smouldering_cotton", 0, (1.0, 3.0), (700, 2000), 6.0, 0.08, 0.20, 0.03, 0.4, (60, 240), _SMOULDER_SMOKE
    ),
    FireFamily("flaming_polyurethane", 0.0469, (40, 200), (180, 600), 18.0, 0.13, 0.03, 0.010, 0.3, (6, 30), _SOOT),
    FireFamily("flaming_heptane", 0.1876, (40, 150), (120, 420), 41.0, 0.037, 0.010, 0.002, 0.2, (5, 25), _SOOT),
    FireFamily("flaming_alcohol", 0.1876, (30, 100), (120, 420), 26.0, 0.0008, 0.001, 0.004, 0.2, (5, 25), _SOOT),
    FireFamily("overheated_cable", 0, (0.8, 2.5), (600, 1800), 8.0, 0.10, 0.08, 0.05, 0.3, (40, 180), _SMOULDER_SMOKE),
)
#: How often each burns, relatively: wood and textiles lead in homes, liquids are rare (after NFPA's home
#: structure fire reports; the order matters, not the figure).
_FIRE_WEIGHTS = np.array([0.22, 0.20, 0.20, 0.15, 0.06, 0.05, 0.12])
#: One episode of a kind in one slot of time at most; each fits into its slot with all its smoke.
_FIRE_SLOT_S, _NUISANCE_SLOT_S = 7200, 3600
#: Episodes are over when this many time constants of decay have passed.
_DECAYS = 5.0

#: From when on a fire counts as detectable at the device, on noise-free values: 25 ug/m3 of smoke is some
#: hundredth of what a smoke alarm needs, 2 K a tenth of what a heat detector needs, 5 ppm of CO a sixth of
#: the lowest alarm level of EN 50291. The truth is about the fire, not about any sensor's threshold.
DETECTABLE_SMOKE_UG_M3, DETECTABLE_HEAT_K, DETECTABLE_CO_PPM = 25.0, 2.0, 5.0


@dataclass(frozen=True, slots=True)
class NuisanceFamily:
    """Something that looks like a fire to one sensor or another. Amplitudes are ranges at the device.

    Attributes:
        on_s: how long the source is on.
        rise_s, decay_s: time constants of filling the room and of airing it.
        pm2_5, tvoc, co, heat_k, vapour_hpa: amplitudes in ug/m3, ppb, ppm, K, hPa.
        h2: hydrogen in ppm.
    """

    name: str
    on_s: tuple[float, float]
    rise_s: float
    decay_s: tuple[float, float]
    pm2_5: tuple[float, float]
    tvoc: tuple[float, float]
    co: tuple[float, float]
    heat_k: tuple[float, float]
    vapour_hpa: tuple[float, float]
    h2: tuple[float, float]
    mode: ParticleMode


_NONE = (0.0, 0.0)
#: Amplitudes after indoor measurements: cooking and toast (Wallace 2004, 2006), cigarettes and incense (Klepeis;
#: Jetter 2002), candles (Fine 1999), sprays and cleaners (up to tens of ppm of VOC beside the user).
NUISANCE_FAMILIES: Final = (
    NuisanceFamily(
        "cooking", (300, 1500), 180, (150, 400), (40, 600), (300, 4000), (0, 4), (0.3, 2.5), (1, 5), (0, 0.3), _FUME
    ),
    NuisanceFamily(
        "burnt_toast", (90, 300), 45, (150, 350), (200, 2500), (300, 2500), (2, 15), (0.2, 1), (0.2, 1), (0.1, 2), _FUME
    ),
    NuisanceFamily(
        "shower_steam", (240, 900), 120, (200, 400), (10, 300), (0, 60), _NONE, (0.5, 3), (6, 18), _NONE, _DROPLETS
    ),
    NuisanceFamily(
        "aerosol_spray", (5, 30), 8, (90, 260), (50, 900), (2000, 40000), _NONE, _NONE, (0, 0.5), (0, 0.1), _DROPLETS
    ),
    NuisanceFamily(
        "cigarette", (240, 480), 90, (200, 400), (60, 700), (150, 900), (1, 8), _NONE, _NONE, (0.05, 0.6), _TOBACCO
    ),
    NuisanceFamily("dust", (60, 900), 40, (60, 240), (50, 1500), (0, 30), _NONE, _NONE, _NONE, _NONE, _DUST),
    NuisanceFamily(
        "candles", (600, 1500), 240, (200, 400), (5, 80), (20, 150), (0, 1), (0.1, 0.6), _NONE, _NONE, _FUME
    ),
    NuisanceFamily(
        "cleaning_agent", (60, 600), 40, (150, 400), (0, 15), (1000, 20000), _NONE, _NONE, (0, 1), (0, 0.1), _DROPLETS
    ),
    NuisanceFamily(
        "incense", (600, 1500), 240, (200, 400), (80, 800), (100, 600), (1, 6), _NONE, _NONE, (0.05, 0.4), _TOBACCO
    ),
)


# -- rooms and devices -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class RoomType:
    """What a room is like: mean temperature, daily swing, humidity, particle background, nuisances' weights."""

    name: str
    temperature_c: float
    swing_k: float
    humidity_pct: float
    pm2_5: float
    nuisance_weights: tuple[float, ...]


#: Weights in the order of NUISANCE_FAMILIES.
ROOM_TYPES: Final = (
    RoomType("kitchen", 21.5, 1.5, 48, 6.0, (8, 3, 0, 0.5, 0.3, 0.3, 0.5, 2, 0.2)),
    RoomType("living_room", 21.5, 1.2, 44, 5.0, (2, 0.3, 0, 0.5, 2, 1, 2, 1, 1.5)),
    RoomType("bedroom", 19.5, 1.3, 48, 4.0, (0.3, 0, 0.5, 2, 1, 1, 1, 1, 1)),
    RoomType("bathroom", 22.0, 1.0, 58, 4.0, (0, 0, 8, 5, 0.3, 0.2, 0.3, 2, 0)),
    RoomType("hallway", 20.0, 1.4, 46, 5.0, (1, 0.5, 0.8, 0.5, 0.7, 1, 0.2, 1, 0.3)),
    RoomType("workshop", 17.5, 3.5, 50, 12.0, (0, 0, 0, 2, 1.5, 8, 0, 2, 0)),
)

#: Group of sensors that share a chip and fail together -> their places in ALL_SENSOR_NAMES.
_CHIPS: Final = {
    "climate": ("temperature_c", "humidity_pct"),
    "gas": ("tvoc_ppb", "eco2_ppm", "raw_h2", "raw_ethanol"),
    "pressure": ("pressure_hpa",),
    "particles": ("pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5"),
}
#: SGP30 data sheet: ln(c / c_ref) = (s_ref - s_out) / 512, in ticks.
_MOX_TICKS = 512.0
#: Clean-air ticks as the public recordings show them, and the clean-air concentrations of the data sheet, ppm.
_RAW_H2_CLEAN, _RAW_ETHANOL_CLEAN = 13_300.0, 20_400.0
_H2_CLEAN_PPM, _ETHANOL_CLEAN_PPM = 0.5, 0.4
#: The chip's output saturates here (data sheet: 60,000 ppb and ppm).
_GAS_LIMIT = 60_000.0
#: Optical particle sensors go blind far above their specified 1,000 ug/m3.
_PM_LIMIT, _NC_LIMIT = 30_000.0, 60_000.0
#: Mean molar mass of the vapours of a fire, g/mol, and the molar volume of air at 25 degC, l/mol.
_VOC_MOLAR_MASS, _CO_MOLAR_MASS, _MOLAR_VOLUME = 80.0, 28.0, 24.45
#: Samples whose noise is drawn at once.
_BLOCK = 256
_NOISE_CHANNELS = 13
#: Decimals a sensor reports.
_DECIMALS: Final = {
    "temperature_c": 2,
    "humidity_pct": 2,
    "tvoc_ppb": 0,
    "eco2_ppm": 0,
    "raw_h2": 0,
    "raw_ethanol": 0,
    "pressure_hpa": 2,
    "pm1_0": 2,
    "pm2_5": 2,
    "nc0_5": 2,
    "nc1_0": 2,
    "nc2_5": 3,
    "co_ppm": 1,
}
#: Periods of the slow, irregular drift of room air, s: from a door's opening to an afternoon.
_DRIFT_PERIODS = np.array([397.0, 1_103.0, 3_607.0, 12_007.0])
_DRIFT_CHANNELS = 4

FIRES_PER_DEVICE_DAY = 1.0
NUISANCES_PER_DEVICE_DAY = 4.0
MISSING_SHARE = 0.002
FAULTS_PER_DEVICE_DAY = 0.5


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """What a simulated world is like.

    Attributes:
        seed: of everything.
        interval_s: between two readings of a device.
        fires_per_device_day: at most 12 (one in a slot of two hours).
        nuisances_per_device_day: at most 24 (one in a slot of an hour).
        missing_share: share of single readings that never arrive.
        faults_per_device_day: spells in which a sensor chip or the whole device is silent; at most 24.

    Raises:
        ValueError: naming the value that is out of range.
    """

    seed: int = 7
    interval_s: float = 1.0
    fires_per_device_day: float = FIRES_PER_DEVICE_DAY
    nuisances_per_device_day: float = NUISANCES_PER_DEVICE_DAY
    missing_share: float = MISSING_SHARE
    faults_per_device_day: float = FAULTS_PER_DEVICE_DAY

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0, 2**63)
        _within("interval_s", self.interval_s, 0.001, 3600)
        _within("fires_per_device_day", self.fires_per_device_day, 0, _DAY_S / _FIRE_SLOT_S)
        _within("nuisances_per_device_day", self.nuisances_per_device_day, 0, _DAY_S / _NUISANCE_SLOT_S)
        _within("missing_share", self.missing_share, 0, 0.9)
        _within("faults_per_device_day", self.faults_per_device_day, 0, 24)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low:g} to {high:g}")


def device_name(number: int) -> str:
    """The id of the simulated device with this number, which counts from 0: ``sim-0001`` is the first."""
    return f"sim-{number + 1:04d}"


@dataclass(frozen=True)
class _Device:
    """Everything about a device and its room that does not change."""

    room: RoomType
    altitude_m: float
    day_shift_s: float
    temperature_c: float
    swing_k: float
    vapour_hpa: float
    heating_k: float
    heating_period_s: float
    tvoc_ppb: float
    pm2_5: float
    morning_s: float
    evening_s: float
    has_co: bool
    bias: Array
    drift_phase: Array


@lru_cache(maxsize=20_000)
def _device(seed: int, number: int) -> _Device:
    rng = _draw(seed, _OF_DEVICE, number)
    room = ROOM_TYPES[int(rng.integers(len(ROOM_TYPES)))]
    temperature = room.temperature_c + rng.normal(0, 1.0)
    humidity = float(np.clip(room.humidity_pct + rng.normal(0, 6), 20, 75))
    return _Device(
        room=room,
        altitude_m=float(rng.uniform(0, 700)),
        # Sites lie within some time zones, and rooms face different ways.
        day_shift_s=float(rng.normal(0, 2 * 3600)),
        temperature_c=float(temperature),
        swing_k=float(room.swing_k * rng.uniform(0.6, 1.4)),
        vapour_hpa=float(humidity / 100 * saturation_vapour_pressure(temperature)),
        heating_k=float(rng.uniform(0.05, 0.35)),
        heating_period_s=float(rng.uniform(900, 2700)),
        tvoc_ppb=float(rng.lognormal(math.log(70), 0.5)),
        pm2_5=float(room.pm2_5 * rng.lognormal(0, 0.4)),
        morning_s=float(rng.normal(7.5 * 3600, 2400)),
        evening_s=float(rng.normal(18 * 3600, 3600)),
        has_co=bool(rng.random() < 0.5),
        bias=rng.standard_normal(_NOISE_CHANNELS),
        drift_phase=rng.uniform(0, 2 * math.pi, (_DRIFT_CHANNELS, len(_DRIFT_PERIODS))),
    )


# -- episodes --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Episode:
    """One fire or nuisance at one device, in closed form. ``start`` and ``end`` include delay and decay."""

    kind: str
    family: str
    event_id: str
    start: float
    end: float
    reaches: float
    on_s: float
    decay_s: float
    shape: tuple[str, float, float]
    pm2_5: float
    tvoc: float
    co: float
    h2: float
    heat_k: float
    vapour_hpa: float
    mode: ParticleMode

    def strength(self, moments: Array) -> Array:
        """Share of its peak at the device, 0 to 1, at each moment (epoch seconds)."""
        age = moments - self.reaches
        source = np.clip(age, 0.0, self.on_s)
        grown = self._grown(source)
        after = np.maximum(age - self.on_s, 0.0)
        # The decay reaches zero at the end, not at infinity, so that no episode ends with a jump.
        left = math.exp(-_DECAYS)
        cleared = np.maximum((np.exp(-after / self.decay_s) - left) / (1 - left), 0.0)
        return np.asarray(np.where(age <= 0, 0.0, grown * cleared))

    def _grown(self, age: Array) -> Array:
        form, first, second = self.shape
        if form == "t_squared":
            # Concentrations and temperature rise in the ceiling jet go with Q^(2/3) (Alpert).
            return np.asarray(np.minimum(1.0, first * age * age / second) ** (2 / 3))
        if form == "logistic":
            floor = 1.0 / (1.0 + math.exp(first / second))
            return np.asarray((1.0 / (1.0 + np.exp(-(age - first) / second)) - floor) / (1.0 - floor))
        return np.asarray((1.0 - np.exp(-age / first)) / (1.0 - math.exp(-self.on_s / first)))


def alpert_temperature_rise(heat_kw: float, radius_m: float, height_m: float) -> float:
    """Steady ceiling-jet temperature rise in K (Alpert 1972), for a radius beyond 0.18 times the height."""
    return float(5.38 * (heat_kw / radius_m) ** (2 / 3) / height_m)


@lru_cache(maxsize=50_000)
def _fire(world: SimulationSettings, number: int, slot: int) -> _Episode | None:
    rng = _draw(world.seed, _OF_FIRES, number, slot)
    if rng.random() >= world.fires_per_device_day * _FIRE_SLOT_S / _DAY_S:
        return None
    family = FIRE_FAMILIES[int(rng.choice(len(FIRE_FAMILIES), p=_FIRE_WEIGHTS / _FIRE_WEIGHTS.sum()))]
    peak = rng.uniform(*family.peak_kw)
    burn = rng.uniform(*family.burn_s)
    radius, height = rng.uniform(0.8, 6.0), rng.uniform(2.3, 3.2)
    delay = rng.uniform(*family.delay_s) * radius / 3.0
    decay = rng.uniform(150, 400)
    heat = alpert_temperature_rise(peak, radius, height)
    # Heat and combustion products are carried by the same flow, so in the ceiling jet the one gives the others:
    # grams of a product per m3 = yield / (share of heat that is convected x heat of combustion) x rho cp x dT.
    burnt = _AIR_HEAT * heat / (0.7 * family.heat)
    co = burnt * family.co_yield * 1000 * _MOLAR_VOLUME / _CO_MOLAR_MASS
    lasts = delay + burn + _DECAYS * decay
    start = slot * _FIRE_SLOT_S + rng.uniform(0, max(1.0, _FIRE_SLOT_S - lasts))
    middle = burn * rng.uniform(0.3, 0.6)
    shape = ("t_squared", family.growth, peak) if family.growth else ("logistic", middle, burn * rng.uniform(0.05, 0.1))
    return _Episode(
        kind="fire",
        family=family.name,
        event_id=f"{device_name(number)}/fire/{slot * _FIRE_SLOT_S}",
        start=float(start),
        end=float(start + lasts),
        reaches=float(start + delay),
        on_s=float(burn),
        decay_s=float(decay),
        shape=(shape[0], float(shape[1]), float(shape[2])),
        pm2_5=float(burnt * family.smoke_yield * 1e6),
        tvoc=float(burnt * family.voc_yield * 1e6 * _MOLAR_VOLUME / _VOC_MOLAR_MASS),
        co=float(co),
        h2=float(co * family.h2_per_co),
        heat_k=float(heat),
        # Burning a gram of wood or fuel frees about half a gram of water; 1 g/m3 is 1.36 hPa.
        vapour_hpa=float(burnt * 0.5 * 1.36) if family.growth else 0.0,
        mode=family.mode,
    )


@lru_cache(maxsize=50_000)
def _nuisance(world: SimulationSettings, number: int, slot: int) -> _Episode | None:
    rng = _draw(world.seed, _OF_NUISANCES, number, slot)
    if rng.random() >= world.nuisances_per_device_day * _NUISANCE_SLOT_S / _DAY_S:
        return None
    weights = np.asarray(_device(world.seed, number).room.nuisance_weights)
    family = NUISANCE_FAMILIES[int(rng.choice(len(NUISANCE_FAMILIES), p=weights / weights.sum()))]
    on, decay = rng.uniform(*family.on_s), rng.uniform(*family.decay_s)
    # Amplitudes spread over decades: most episodes are mild, some are strong; the channels of one go together.
    size = rng.beta(1.2, 2.0)

    def amplitude(limits: tuple[float, float]) -> float:
        low, high = limits
        return float((low + (high - low) * size) * rng.uniform(0.7, 1.3))

    lasts = on + _DECAYS * decay
    start = slot * _NUISANCE_SLOT_S + rng.uniform(0, max(1.0, _NUISANCE_SLOT_S - lasts))
    return _Episode(
        kind="nuisance",
        family=family.name,
        event_id=f"{device_name(number)}/nuisance/{slot * _NUISANCE_SLOT_S}",
        start=float(start),
        end=float(start + lasts),
        reaches=float(start),
        on_s=float(on),
        decay_s=float(decay),
        shape=("saturating", float(family.rise_s), 0.0),
        pm2_5=amplitude(family.pm2_5),
        tvoc=amplitude(family.tvoc),
        co=amplitude(family.co),
        h2=amplitude(family.h2),
        heat_k=amplitude(family.heat_k),
        vapour_hpa=amplitude(family.vapour_hpa),
        mode=family.mode,
    )


def _episodes(world: SimulationSettings, number: int, first: float, last: float) -> list[_Episode]:
    """The episodes of a device that touch ``first`` to ``last``; nuisances before fires, so that a fire wins."""
    found: list[_Episode] = []
    for make, length in ((_nuisance, _NUISANCE_SLOT_S), (_fire, _FIRE_SLOT_S)):
        for slot in range(math.floor(first / length), math.floor(last / length) + 1):
            episode = make(world, number, slot)
            if episode is not None and episode.start <= last and episode.end >= first:
                found.append(episode)
    return found


# -- weather and drift -----------------------------------------------------------------------------------
@lru_cache(maxsize=4_000)
def _weather_shocks(seed: int, day: int) -> Array:
    return np.asarray(_draw(seed, _OF_WEATHER, day).standard_normal((_WEATHER_STEPS_PER_DAY, 3)))


@lru_cache(maxsize=4_000)
def _weather_at(seed: int, step: int) -> tuple[float, float, float]:
    """Pressure, temperature and vapour at an hourly step, each with unit variance."""
    keep = math.exp(-1.0 / _WEATHER_MEMORY_H)
    steps = np.arange(step - _WEATHER_TERMS + 1, step + 1)
    days = np.unique(steps // _WEATHER_STEPS_PER_DAY)
    shocks = np.concatenate([_weather_shocks(seed, int(day)) for day in days])
    shocks = shocks[steps - int(days[0]) * _WEATHER_STEPS_PER_DAY]
    weights = keep ** np.arange(_WEATHER_TERMS - 1, -1, -1) * math.sqrt(1 - keep * keep)
    pressure, temperature, vapour = weights @ shocks
    return float(pressure), float(temperature), float(vapour)


def _weather(seed: int, moments: Array) -> tuple[Array, Array, Array]:
    first = math.floor(moments[0] / _WEATHER_STEP_S)
    last = math.floor(moments[-1] / _WEATHER_STEP_S) + 1
    steps = np.arange(first, last + 1) * _WEATHER_STEP_S
    values = np.array([_weather_at(seed, step) for step in range(first, last + 1)])
    pressure, temperature, vapour = (np.interp(moments, steps, values[:, column]) for column in range(3))
    return pressure, temperature, vapour


def _drift(device: _Device, channel: int, moments: Array) -> Array:
    """Slow irregular change with unit variance: some sines whose periods share no multiple."""
    angles = 2 * math.pi * moments[:, None] / _DRIFT_PERIODS + device.drift_phase[channel]
    return np.asarray(np.sin(angles).sum(axis=1) * math.sqrt(2 / len(_DRIFT_PERIODS)))


def _occupied(device: _Device, second_of_day: Array) -> Array:
    """0 to 1: people are there in the morning and in the evening, and come and go within a quarter of an hour."""

    def present(since: float, until: float) -> Array:
        return np.asarray(
            1 / (1 + np.exp(-np.clip((second_of_day - since) / 400, -30, 30)))
            - 1 / (1 + np.exp(-np.clip((second_of_day - until) / 400, -30, 30)))
        )

    morning = present(device.morning_s - 1800, device.morning_s + 3600)
    evening = present(device.evening_s, min(device.evening_s + 5 * 3600, 23.5 * 3600))
    return np.asarray(np.clip(morning + evening, 0, 1))


# -- a device's readings ---------------------------------------------------------------------------------
def _noise(seed: int, number: int, first: int, count: int) -> tuple[Array, Array]:
    """Unit normal noise (count, channels) and a uniform number per sample, drawn in fixed blocks."""
    normal, uniform = [], []
    for block in range(first // _BLOCK, (first + count - 1) // _BLOCK + 1):
        rng = _draw(seed, _OF_NOISE, number, block)
        low, high = max(0, first - block * _BLOCK), min(_BLOCK, first + count - block * _BLOCK)
        normal.append(rng.standard_normal((_BLOCK, _NOISE_CHANNELS))[low:high])
        uniform.append(rng.random(_BLOCK)[low:high])
    return np.concatenate(normal), np.concatenate(uniform)


@dataclass(frozen=True, slots=True)
class _Rows:
    kept: Mask
    sensors: dict[str, Array]
    burning: Mask
    event: NDArray[np.int32]
    episodes: list[_Episode]


def _rows(world: SimulationSettings, number: int, moments: Array, first: int) -> _Rows:
    """One device's samples ``first``, ``first + 1``, ... at ``moments`` (epoch seconds, ascending)."""
    device = _device(world.seed, number)
    noise, uniform = _noise(world.seed, number, first, len(moments))
    episodes = _episodes(world, number, float(moments[0]), float(moments[-1]))

    heat, vapour, tvoc, co, h2 = (np.zeros_like(moments) for _ in range(5))
    background = device.pm2_5 * np.exp(0.35 * _drift(device, 0, moments))
    particles = background[:, None] * np.array([1.0, *_BACKGROUND.per_mass()])
    burning = np.zeros(len(moments), dtype=bool)
    event = np.full(len(moments), -1, dtype=np.int32)
    for place, episode in enumerate(episodes):
        strength = episode.strength(moments)
        # Turbulent mixing makes whatever arrives flicker.
        flicker = strength * np.exp(0.12 * noise[:, 12])
        heat += episode.heat_k * strength
        vapour += episode.vapour_hpa * strength
        tvoc += episode.tvoc * flicker
        co += episode.co * strength
        h2 += episode.h2 * flicker
        particles += (episode.pm2_5 * flicker)[:, None] * np.array([1.0, *episode.mode.per_mass()])
        event[(moments >= episode.start) & (moments <= episode.end)] = place
        if episode.kind == "fire":
            detectable = (
                (episode.pm2_5 * strength >= DETECTABLE_SMOKE_UG_M3)
                | (episode.heat_k * strength >= DETECTABLE_HEAT_K)
                | (episode.co * strength >= DETECTABLE_CO_PPM)
            )
            burning |= detectable & (moments <= episode.reaches + episode.on_s)

    sensors = _measured(world, device, moments, noise, _Air(heat, vapour, tvoc, co, h2, particles))
    kept = uniform >= world.missing_share
    _apply_faults(world, number, moments, sensors, kept)
    return _Rows(kept, sensors, burning, event, episodes)


@dataclass(frozen=True, slots=True)
class _Air:
    """What episodes add to the room's air at the device; particles are PM2.5, PM1.0, NC0.5, NC1.0, NC2.5."""

    heat: Array
    vapour: Array
    tvoc: Array
    co: Array
    h2: Array
    particles: Array


def _measured(world: SimulationSettings, device: _Device, moments: Array, noise: Array, air: _Air) -> dict[str, Array]:
    """What the device's sensors make of the air: bias, response, noise, saturation and resolution."""
    weather_pressure, weather_temperature, weather_vapour = _weather(world.seed, moments)
    solar = np.mod(moments - device.day_shift_s, _DAY_S)
    occupied = _occupied(device, solar)
    bias = device.bias

    temperature = (
        device.temperature_c
        # Room air is warmest in the middle of the afternoon.
        + device.swing_k * np.cos(2 * math.pi * (solar - 15 * 3600) / _DAY_S)
        + device.heating_k * np.sin(2 * math.pi * moments / device.heating_period_s)
        + _WEATHER_TEMPERATURE_K * weather_temperature
        + 0.15 * _drift(device, 1, moments)
        + _OCCUPANCY_TEMPERATURE_K * occupied
        + air.heat
    )
    # A room holds its water: relative humidity falls where temperature rises.
    vapour = (
        device.vapour_hpa * np.exp(_WEATHER_VAPOUR * weather_vapour) + _OCCUPANCY_VAPOUR_HPA * occupied + air.vapour
    )
    humidity = 100 * vapour / saturation_vapour_pressure(temperature)
    pressure = (
        _SEA_LEVEL_HPA * math.exp(-device.altitude_m / _SCALE_HEIGHT_M)
        + _WEATHER_PRESSURE_HPA * weather_pressure
        + _TIDE_HPA * np.cos(4 * math.pi * (solar - _TIDE_PEAK_S) / _DAY_S)
    )

    tvoc = device.tvoc_ppb * np.exp(0.4 * _drift(device, 2, moments)) + _OCCUPANCY_TVOC_PPB * occupied + air.tvoc
    hydrogen = _H2_CLEAN_PPM * np.exp(0.08 * _drift(device, 3, moments)) + 0.05 * tvoc / 1000 + air.h2
    ethanol = _ETHANOL_CLEAN_PPM + tvoc / 1000
    # Warm and moist air lowers a metal oxide's resistance; the chip's raw signals are not compensated.
    climate = -6.0 * (temperature - 21.0) - 2.0 * (vapour - 11.0)
    raw_h2 = _RAW_H2_CLEAN + 150 * bias[4] - _MOX_TICKS * np.log(hydrogen / _H2_CLEAN_PPM) + climate + 6 * noise[:, 4]
    raw_ethanol = (
        _RAW_ETHANOL_CLEAN
        + 200 * bias[5]
        - _MOX_TICKS * np.log(ethanol / _ETHANOL_CLEAN_PPM)
        + climate
        + 6 * noise[:, 5]
    )
    # The chip takes its CO2 equivalent from hydrogen, which people breathe out as well.
    eco2 = (
        _ECO2_FLOOR_PPM
        + _OCCUPANCY_ECO2_PPM * occupied * (1 + 0.1 * bias[3])
        + 500 * np.maximum(hydrogen / _H2_CLEAN_PPM - 1.1, 0.0) ** 0.9
    ) * (1 + 0.02 * noise[:, 3])

    # One laser sees all sizes, so most of its noise is common to them.
    common = 1 + 0.05 * bias[7] + 0.04 * noise[:, 7]
    particles = np.maximum(air.particles * np.maximum(common, 0.1)[:, None], 0.0)
    own = 1 + 0.01 * noise[:, 7:12]
    particles = particles * np.maximum(own, 0.5)
    pm2_5, pm1_0, nc0_5, nc1_0, nc2_5 = particles.T
    pm2_5, nc0_5 = np.minimum(pm2_5, _PM_LIMIT), np.minimum(nc0_5, _NC_LIMIT)
    nc1_0 = np.minimum(nc1_0, nc0_5)

    measured = {
        "temperature_c": np.clip(temperature + 0.4 * bias[0] + 0.03 * noise[:, 0], -40, 125),
        "humidity_pct": np.clip(humidity + 1.5 * bias[1] + 0.1 * noise[:, 1], 0, 100),
        "tvoc_ppb": np.clip(tvoc * (1 + 0.1 * bias[2] + 0.02 * noise[:, 2]), 0, _GAS_LIMIT),
        "eco2_ppm": np.clip(eco2, _ECO2_FLOOR_PPM, _GAS_LIMIT),
        "raw_h2": np.clip(raw_h2, 0, 65_535),
        "raw_ethanol": np.clip(raw_ethanol, 0, 65_535),
        "pressure_hpa": np.clip(pressure + 0.5 * bias[6] + 0.03 * noise[:, 6], 300, 1100),
        "pm1_0": np.minimum(pm1_0, pm2_5),
        "pm2_5": pm2_5,
        "nc0_5": nc0_5,
        "nc1_0": nc1_0,
        "nc2_5": np.minimum(nc2_5, nc1_0),
    }
    if device.has_co:
        # An electrochemical cell: cannot go below zero, drifts by some tenths of a ppm.
        measured["co_ppm"] = np.clip(air.co + 0.2 * abs(bias[8]) + 0.15 * noise[:, 6], 0, 5_000)
    else:
        measured["co_ppm"] = np.full(len(moments), np.nan)
    # Adding zero turns -0.0, which rounding may leave, into 0.0.
    return {name: np.round(values, _DECIMALS[name]) + 0.0 for name, values in measured.items()}


def _apply_faults(
    world: SimulationSettings, number: int, moments: Array, sensors: dict[str, Array], kept: Mask
) -> None:
    """Silences a chip, or the whole device, for a spell; ``sensors`` and ``kept`` are changed in place."""
    for hour in range(math.floor(moments[0] / 3600), math.floor(moments[-1] / 3600) + 1):
        rng = _draw(world.seed, _OF_FAULTS, number, hour)
        if rng.random() >= world.faults_per_device_day / 24:
            continue
        since = hour * 3600 + rng.uniform(0, 3000)
        spell = (moments >= since) & (moments < since + rng.uniform(10, 300))
        # Half of the faults are the radio's, so that nothing arrives.
        chip = str(rng.choice(list(_CHIPS))) if rng.random() < 0.5 else ""
        if chip:
            for name in _CHIPS[chip]:
                sensors[name][spell] = np.nan
        else:
            kept &= ~spell


# -- frames ----------------------------------------------------------------------------------------------
FRAME_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "device_id": pl.String,
    "event_time": pl.Datetime("us", "UTC"),
    **dict.fromkeys(ALL_SENSOR_NAMES, pl.Float64),
    "fire_alarm": pl.Boolean,
    "sequence": pl.Int64,
    "source": pl.String,
    "event_kind": pl.String,
    "event_family": pl.String,
    "event_id": pl.String,
}


def _frame(world: SimulationSettings, number: int, moments_us: NDArray[np.int64], first: int) -> pl.DataFrame:
    rows = _rows(world, number, moments_us / 1e6, first)
    kinds, families, ids = (
        pl.Series([getattr(episode, name) for episode in rows.episodes], dtype=pl.String)
        for name in ("kind", "family", "event_id")
    )
    place = pl.Series(rows.event)
    place = place.set(place < 0, None)
    keep = pl.Series(rows.kept)
    return pl.DataFrame(
        {
            "device_id": pl.repeat(device_name(number), len(moments_us), dtype=pl.String, eager=True),
            "event_time": pl.Series(moments_us).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            **{name: pl.Series(rows.sensors[name]).fill_nan(None) for name in ALL_SENSOR_NAMES},
            "fire_alarm": pl.Series(rows.burning),
            "sequence": pl.Series(np.arange(first, first + len(moments_us), dtype=np.int64)),
            "source": pl.repeat(str(Source.SIMULATOR), len(moments_us), dtype=pl.String, eager=True),
            "event_kind": kinds.gather(place),
            "event_family": families.gather(place),
            "event_id": ids.gather(place),
        },
        schema=FRAME_SCHEMA,
    ).filter(keep)


def simulate(
    devices: int,
    start: datetime,
    seconds: float,
    seed: int,
    *,
    interval_s: float = 1.0,
    fires_per_device_day: float = FIRES_PER_DEVICE_DAY,
    nuisances_per_device_day: float = NUISANCES_PER_DEVICE_DAY,
    missing_share: float = MISSING_SHARE,
    faults_per_device_day: float = FAULTS_PER_DEVICE_DAY,
    first_device: int = 0,
) -> pl.DataFrame:
    """What ``devices`` detectors report from ``start`` on, with the truth.

    Args:
        start: with a zone. A device reports at ``start``, ``start + interval_s``, ...
        seconds: how long; the end is not included.
        first_device: number of the first device, to simulate a fleet in parts.

    Returns:
        Columns of ``FRAME_SCHEMA``, ordered by device and time: ``device_id``, ``event_time``, the sensors (null =
        not measured), ``fire_alarm`` (truth: a fire burns and its products have reached the device), ``sequence``
        (number of the interval since 1970, so that runs that follow one another never collide), ``source``,
        and ``event_kind`` (fire or nuisance), ``event_family``, ``event_id`` from ignition until the smoke has
        cleared, null else. Where a nuisance and a fire overlap, the fire is named.

    Raises:
        ValueError: naming the argument that is out of range, or a start without a zone.
    """
    world = SimulationSettings(
        seed, interval_s, fires_per_device_day, nuisances_per_device_day, missing_share, faults_per_device_day
    )
    _within("devices", devices, 1, 1_000_000)
    if start.tzinfo is None:
        raise ValueError("start has no time zone")
    moments, first = _grid(start, seconds, interval_s)
    if len(moments) == 0:
        return pl.DataFrame(schema=FRAME_SCHEMA)
    return pl.concat([_frame(world, first_device + number, moments, first) for number in range(devices)])


def _grid(start: datetime, seconds: float, interval_s: float) -> tuple[NDArray[np.int64], int]:
    since = start.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    start_us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    interval_us = round(interval_s * 1e6)
    count = math.ceil(seconds * 1e6 / interval_us)
    return start_us + np.arange(count, dtype=np.int64) * interval_us, start_us // interval_us


class LiveSimulator:
    """The same world on the clock: devices report one after the other, evenly spread over the interval.

    It holds no state but its settings and a bounded cache, so it may be asked for any stretch of time, and after a
    restart the sequence numbers and the world go on where the clock stands.

    Args:
        devices: how many; at most a million.
        world: seed, rates and interval.
        first_device: number of the first one, so that two simulators on one platform do not speak for the same.
    """

    #: Rows that one chunk has at most, which bounds its memory to some 100 MB.
    MOST_ROWS = 200_000

    def __init__(self, devices: int, world: SimulationSettings, *, first_device: int = 0) -> None:
        _within("devices", devices, 1, 1_000_000)
        _within("first_device", first_device, 0, 10_000_000)
        self.devices = devices
        self.first_device = first_device
        self.world = world
        self._interval_us = round(world.interval_s * 1e6)

    def chunk_intervals(self) -> int:
        """How many intervals a chunk should have: a minute's worth, fewer for a large fleet."""
        minute = math.ceil(60 / self.world.interval_s)
        return max(1, min(minute, self.MOST_ROWS // self.devices))

    def interval_of(self, moment: float) -> int:
        """Number of the interval that holds ``moment`` (epoch seconds)."""
        return math.floor(moment * 1e6) // self._interval_us

    def intervals(self, first: int, count: int) -> pl.DataFrame:
        """All readings of the intervals ``first`` to ``first + count - 1``, ordered by time; columns as ``simulate``.

        ``sequence`` is the interval's number. (device_id, event_time, sequence) never repeats.
        """
        grid = np.arange(first, first + count, dtype=np.int64) * self._interval_us
        frames = [
            _frame(self.world, self.first_device + number, grid + number * self._interval_us // self.devices, first)
            for number in range(self.devices)
        ]
        return pl.concat(frames).sort("event_time", maintain_order=True)

    def since(self, moment: float) -> Iterator[pl.DataFrame]:
        """Chunk after chunk from the interval that holds ``moment`` on, without end."""
        first, count = self.interval_of(moment), self.chunk_intervals()
        while True:
            yield self.intervals(first, count)
            first += count
