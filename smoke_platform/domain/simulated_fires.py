"""Simulated fires: ways of burning after the test fires of EN 54-7, and what each gives off as it grows.

Belongs here: families with their growth, yields and sources; the curve of one fire at a device. Does not: when and
where fires happen (``simulated_episodes``), how rooms fill (``simulated_rooms``).

The families are named after what burns. EN 54-7 burns its test fires (TF1 to TF6, TF8 in later editions) in a room of
10 m x 7 m x 4 m with the detectors at 3 m; here they burn, smaller or larger, in rooms of dwellings. What is said of
the standard is from memory of its descriptions (fuel, ignition, order of magnitude of time and density), not quoted.
Yields are grams per gram burnt: for flames after Tewarson ("Generation of Heat and Gaseous, Liquid, and Solid Products
in Fires", SFPE Handbook), for smouldering after Mulholland ("Smoke Production and Properties", SFPE Handbook) and
Bukowski; growth coefficients after NFPA 72. Whatever else has no source is marked as judgement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from smoke_platform.domain.simulated_air import (
    AIR_HEAT,
    CO_MOLAR_MASS,
    MOLAR_VOLUME,
    SMOULDER_SMOKE,
    SOOT,
    VAPOUR_HPA_PER_G,
    VOC_MOLAR_MASS,
    ParticleMode,
)
from smoke_platform.domain.simulated_draws import Array
from smoke_platform.domain.simulated_rooms import (
    CONVECTED,
    Room,
    alpert_temperature_rise,
    gathered,
    jet_content,
    transport_lag,
)

Growth = Literal["t_squared", "pool", "hot_plate", "front"]


@dataclass(frozen=True, slots=True)
class FireFamily:
    """One way of burning. Ranges are (low, high), drawn uniformly for each fire.

    Attributes:
        test: the test fire of EN 54-7 that it is after, or empty.
        growth: how the rate of burning rises to its peak.
            ``t_squared``: with the square of time, ``pace`` in kW/s2 (NFPA 72: slow 0.0029, medium 0.0117, fast
            0.0469, ultra-fast 0.1876). ``pool``: towards the peak with the time constant ``pace`` in s, as a pan of
            liquid warms up. ``hot_plate``: a plate warms linearly for ``pace`` s to 600 degC and the fuel on it
            pyrolyses about 400 degC. ``front``: a glowing front spreads in width and depth, so with the square of
            time, for ``pace`` s.
        pace: range of the growth's parameter.
        peak_kw: heat release at which it stays until it is put out or burnt out. Less than the standard's fires,
            which have ten times the volume of a dwelling's room to fill; what is looked for is a fire that begins
            (judgement).
        burn_s: from ignition to extinction.
        heat: effective heat of combustion, kJ/g.
        plate_kw: heat of the hot plate or conductor, which carries the smoke but gives off none.
        smoke_yield, co_yield, voc_yield: g per g burnt. Vapours: Tewarson's hydrocarbons for flames; pyrolysis gives
            off a tenth and more of the fuel as vapours (judgement, and towards the recordings, whose gas sensor is at
            its limit in most of the smoke).
        h2_per_co: volume of hydrogen for one of CO; both come from incomplete combustion (judgement).
        lag_s: what cold smoke takes longer than a plume's transport does, at 3 m: without buoyancy it stops below warm
            air and spreads slowly (judgement).
        mode: particle sizes.
        weight: how often it burns, relatively.
        source: where the figures come from.
    """

    name: str
    test: str
    growth: Growth
    pace: tuple[float, float]
    peak_kw: tuple[float, float]
    burn_s: tuple[float, float]
    heat: float
    plate_kw: float
    smoke_yield: float
    co_yield: float
    voc_yield: float
    h2_per_co: float
    lag_s: tuple[float, float]
    mode: ParticleMode
    weight: float
    source: str


#: Weights: wood and textiles lead in homes, liquids are rare (after NFPA's home structure fire reports; the order
#: matters, not the figure).
FIRE_FAMILIES: Final = (
    FireFamily(
        name="flaming_wood",
        test="TF1",
        growth="t_squared",
        pace=(0.002, 0.015),
        peak_kw=(8, 70),
        burn_s=(240, 900),
        heat=13.0,
        plate_kw=0,
        smoke_yield=0.015,
        co_yield=0.005,
        voc_yield=0.008,
        h2_per_co=0.3,
        lag_s=(0, 10),
        mode=SOOT,
        weight=0.20,
        source="TF1: crib of beech sticks lit by spirit. Yields, heat: Tewarson, wood; growth: NFPA 72, slow to medium",
    ),
    FireFamily(
        name="smouldering_wood",
        test="TF2",
        growth="hot_plate",
        pace=(400, 900),
        peak_kw=(0.12, 0.7),
        burn_s=(900, 2400),
        heat=12.0,
        plate_kw=2.0,
        smoke_yield=0.10,
        co_yield=0.12,
        voc_yield=0.15,
        h2_per_co=0.3,
        lag_s=(10, 90),
        mode=SMOULDER_SMOKE,
        weight=0.17,
        source=(
            "TF2: beech sticks on a plate of 2 kW that reaches 600 degC in about 11 min. Smoke yield: Mulholland, "
            "0.03 to 0.17 for pyrolysing wood; CO: judgement from Tewarson's smouldering wood"
        ),
    ),
    FireFamily(
        name="smouldering_cotton",
        test="TF3",
        growth="front",
        pace=(600, 1800),
        peak_kw=(0.12, 0.6),
        burn_s=(900, 2400),
        heat=8.0,
        plate_kw=0,
        smoke_yield=0.09,
        co_yield=0.20,
        voc_yield=0.08,
        h2_per_co=0.4,
        lag_s=(30, 150),
        mode=SMOULDER_SMOKE,
        weight=0.18,
        source=(
            "TF3: 90 wicks of cotton, about 0.2 g/s in all, glowing. Smoke: Mulholland, 0.03 to 0.17 for "
            "cellulose; CO: Bukowski, smouldering cotton 0.1 to 0.3; CO leads and there is little heat"
        ),
    ),
    FireFamily(
        name="flaming_polyurethane",
        test="TF4",
        growth="t_squared",
        pace=(0.008, 0.045),
        peak_kw=(8, 60),
        burn_s=(120, 420),
        heat=18.0,
        plate_kw=0,
        smoke_yield=0.08,
        co_yield=0.03,
        voc_yield=0.02,
        h2_per_co=0.3,
        lag_s=(0, 8),
        mode=SOOT,
        weight=0.14,
        source=(
            "TF4: three mats of soft foam. CO and heat: Tewarson, flexible foams; smoke 0.08: between Mulholland "
            "(below 0.04) and Tewarson (0.13 to 0.23), which gives three times the density that ends TF4; growth: "
            "NFPA 72, medium to fast"
        ),
    ),
    FireFamily(
        name="flaming_heptane",
        test="TF5",
        growth="pool",
        pace=(15, 60),
        peak_kw=(8, 50),
        burn_s=(120, 420),
        heat=41.0,
        plate_kw=0,
        smoke_yield=0.037,
        co_yield=0.010,
        voc_yield=0.002,
        h2_per_co=0.2,
        lag_s=(0, 5),
        mode=SOOT,
        weight=0.05,
        source="TF5: a tray of n-heptane with a little toluene, 33 cm square, about 100 kW. Yields and heat: Tewarson",
    ),
    FireFamily(
        name="flaming_alcohol",
        test="TF6",
        growth="pool",
        pace=(15, 60),
        peak_kw=(8, 50),
        burn_s=(120, 420),
        heat=26.0,
        plate_kw=0,
        smoke_yield=0.0008,
        co_yield=0.001,
        voc_yield=0.004,
        h2_per_co=0.2,
        lag_s=(0, 5),
        mode=SOOT,
        weight=0.05,
        source="TF6: a tray of methylated spirit, hardly any smoke. Yields and heat: Tewarson, ethanol",
    ),
    FireFamily(
        name="low_temperature_smoke",
        test="TF8",
        growth="pool",
        pace=(150, 400),
        peak_kw=(1.0, 5.0),
        burn_s=(500, 1200),
        heat=38.0,
        plate_kw=0,
        smoke_yield=0.10,
        co_yield=0.04,
        voc_yield=0.010,
        h2_per_co=0.2,
        lag_s=(5, 40),
        mode=SOOT,
        weight=0.06,
        source=(
            "TF8: 170 g of decalene in a pan 12 cm square: much black smoke, little heat. Heat: Tewarson, "
            "hydrocarbons; smoke: judgement, between aliphatic (0.04) and aromatic (0.18) fuels"
        ),
    ),
    FireFamily(
        name="overheated_cable",
        test="",
        growth="hot_plate",
        pace=(300, 900),
        peak_kw=(0.06, 0.5),
        burn_s=(600, 1800),
        heat=14.0,
        plate_kw=0.3,
        smoke_yield=0.10,
        co_yield=0.06,
        voc_yield=0.08,
        h2_per_co=0.3,
        lag_s=(30, 150),
        mode=SMOULDER_SMOKE,
        weight=0.15,
        source=(
            "a conductor that chars its insulation, as in the tests of BS 6266. Yields: Tewarson, PVC (smoke "
            "0.17, CO 0.06 when flaming); less smoke from pyrolysis: judgement"
        ),
    ),
)

#: Walls and ceiling cool the layer with this time constant; judgement, from layers that follow a fire within a minute.
_WALLS_S: Final = 50.0
#: Points of a fire's curve while it burns.
_POINTS: Final = 200
#: Water that burning frees, g per g (hydrogen in wood and fuels: 0.5 to 1.4); flames only, since pyrolysis adds little.
_WATER_YIELD: Final = 0.5
#: Plate temperatures, degC: room, final, at which half of the pyrolysis rate is reached, and its spread.
_PLATE: Final = (20.0, 600.0, 400.0, 40.0)


def growth(family: FireFamily, pace: float, peak_kw: float, age_s: Array) -> Array:
    """Heat release in kW of the fuel (not of the plate) at ages from ignition on."""
    if family.growth == "t_squared":
        return np.asarray(np.minimum(pace * age_s * age_s, peak_kw))
    if family.growth == "pool":
        return np.asarray(peak_kw * (1 - np.exp(-age_s / pace)))
    if family.growth == "front":
        return np.asarray(peak_kw * np.minimum(age_s / pace, 1.0) ** 2)
    cold, hot, half, spread = _PLATE
    plate = cold + (hot - cold) * np.minimum(age_s / pace, 1.0)
    floor = 1 / (1 + np.exp((half - cold) / spread))
    return np.asarray(peak_kw * (1 / (1 + np.exp((half - plate) / spread)) - floor) / (1 - floor))


@dataclass(frozen=True, slots=True)
class FireCurve:
    """One fire at one device while it burns, from the moment on at which its smoke reaches the device.

    Attributes:
        lag_s: from ignition to that moment.
        age_s: ascending, from 0 to the end of burning, ``[points]``.
        burnt: what was burnt, as content of the air at the device, g/m3 ``[points]``; products are yields of it.
        heat_k: temperature rise of the air at the device ``[points]``.
    """

    lag_s: float
    age_s: Array
    burnt: Array
    heat_k: Array


def fire_curve(
    family: FireFamily, room: Room, distance_m: float, *, pace: float, peak_kw: float, burn_s: float, cold_lag_s: float
) -> FireCurve:
    """A fire in a room: what the ceiling jet brings and what gathers in the layer.

    Args:
        distance_m: horizontally, from the fire to the device.
        cold_lag_s: as ``FireFamily.lag_s``, for 3 m.
    """
    # Dense in the beginning, where fires grow.
    age = burn_s * np.linspace(0.0, 1.0, _POINTS) ** 1.5
    fuel_kw = growth(family, pace, peak_kw, age)
    rate = fuel_kw / family.heat
    warmth = np.minimum(age / pace, 1.0) if family.growth == "hot_plate" else 0.0
    carried = fuel_kw + family.plate_kw * warmth
    height = room.height_m
    rise = alpert_temperature_rise(carried, distance_m, height)
    arrives = rise**2 / (rise**2 + room.stratified_k**2)
    content = arrives * jet_content(rate, carried, distance_m, height) + gathered(
        age, rate, room.layer_stays_s(peak_kw + family.plate_kw), room.layer_m3
    )
    heat = arrives * rise + gathered(age, CONVECTED * carried / AIR_HEAT, _WALLS_S, room.layer_m3)
    lag = transport_lag(0.25 * peak_kw, distance_m, height) + cold_lag_s * distance_m / 3.0
    return FireCurve(lag, age, content, heat)


@dataclass(frozen=True, slots=True)
class Products:
    """What 1 g/m3 of burnt fuel adds to the air: ug/m3, ppb, ppm, ppm, hPa."""

    pm2_5: float
    tvoc: float
    co: float
    h2: float
    vapour_hpa: float


def products(family: FireFamily, smoke: float = 1.0, gases: float = 1.0) -> Products:
    """Products of a family; ``smoke`` and ``gases`` scale its yields, for no two fires burn alike."""
    co = family.co_yield * gases * 1000 * MOLAR_VOLUME / CO_MOLAR_MASS
    flames = family.growth in ("t_squared", "pool")
    return Products(
        pm2_5=family.smoke_yield * smoke * 1e6,
        tvoc=family.voc_yield * gases * 1e6 * MOLAR_VOLUME / VOC_MOLAR_MASS,
        co=co,
        h2=co * family.h2_per_co,
        vapour_hpa=_WATER_YIELD * VAPOUR_HPA_PER_G if flames else 0.0,
    )
