"""Simulated nuisances: what looks like a fire to one sensor or another and is none.

Belongs here: families with their amplitudes and sources, and how an amplitude follows from strength, distance and room.
Does not: which rooms have which (``simulated_rooms.ROOM_TYPES``), when they happen (``simulated_episodes``).

Amplitudes are what a device 2 m away in a room of 30 m3 gets. They are orders of magnitude from indoor measurements, as
remembered from the works named, read as ranges over mild and strong episodes; where nothing was measured at a ceiling
they are judgement. They are meant to be nasty: strong toast and frying are as dense as smoke that a smoke alarm has to
report (some 3,000 to 12,000 ug/m3), a bathroom's steam reaches the optical sensor as droplets, solvents drive the gas
sensor to its limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smoke_platform.domain.simulated_air import (
    DROPLETS,
    DUST,
    FINE_DUST,
    FUME,
    SMOULDER_SMOKE,
    TOBACCO,
    ParticleMode,
)
from smoke_platform.domain.simulated_rooms import Room

Range = tuple[float, float]
_NONE: Final = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class NuisanceFamily:
    """One kind of nuisance. Amplitudes are (mild, strong) at 2 m in 30 m3.

    Attributes:
        on_s: how long the source is on.
        rise_s, decay_s: time constants of filling the room and of airing it.
        pm2_5, tvoc, co, h2, heat_k, vapour_hpa: amplitudes in ug/m3, ppb, ppm, ppm, K, hPa.
        mode: particle sizes.
        near: 0 to 1, how much of it is a plume or jet that thins with distance; the rest has mixed with the room.
        least_m: nearest that it comes to the device.
        gusts: spread of the logarithm of its flicker; what an open window lets in comes in gusts.
        source: where the figures come from.
    """

    name: str
    on_s: Range
    rise_s: Range
    decay_s: Range
    pm2_5: Range
    tvoc: Range
    co: Range
    h2: Range
    heat_k: Range
    vapour_hpa: Range
    mode: ParticleMode
    near: float
    least_m: float
    source: str
    gusts: float = 0.12


NUISANCE_FAMILIES: Final = (
    NuisanceFamily(
        name="toast",
        on_s=(90, 300),
        rise_s=(30, 70),
        decay_s=(150, 350),
        pm2_5=(150, 15_000),
        tvoc=(200, 4_000),
        co=(1, 25),
        h2=(0.1, 3),
        heat_k=(0.2, 1.5),
        vapour_hpa=(0.2, 1),
        mode=SMOULDER_SMOKE,
        near=0.6,
        least_m=1.0,
        source=(
            "Wallace 2004: toast some 100 to 1,000 ug/m3 in the room; burnt black, as dense as what alarms have "
            "to report (the commonest nuisance alarm of kitchens): judgement, as is the CO of charring"
        ),
    ),
    NuisanceFamily(
        name="frying",
        on_s=(240, 1200),
        rise_s=(60, 180),
        decay_s=(150, 350),
        pm2_5=(80, 8_000),
        tvoc=(300, 6_000),
        co=(0, 6),
        h2=(0, 0.6),
        heat_k=(0.4, 4),
        vapour_hpa=(1, 6),
        mode=FUME,
        near=0.6,
        least_m=1.0,
        source=(
            "Wallace 2006, He 2004: frying 100 to 1,000 ug/m3 in kitchens; beyond the smoke point of the oil "
            "several times as much; heat and vapour above the stove: judgement"
        ),
    ),
    NuisanceFamily(
        name="cooking",
        on_s=(300, 1500),
        rise_s=(120, 240),
        decay_s=(150, 400),
        pm2_5=(20, 500),
        tvoc=(200, 3_000),
        co=(0, 4),
        h2=(0, 0.3),
        heat_k=(0.3, 2.5),
        vapour_hpa=(1, 7),
        mode=FUME,
        near=0.4,
        least_m=1.0,
        source="Wallace 2006: boiling, baking and gas flames, tens to some hundred ug/m3; gas stoves some ppm of CO",
    ),
    NuisanceFamily(
        name="shower_steam",
        on_s=(240, 900),
        rise_s=(60, 180),
        decay_s=(200, 400),
        pm2_5=(5, 4_000),
        tvoc=(0, 60),
        co=_NONE,
        h2=_NONE,
        heat_k=(0.5, 4),
        vapour_hpa=(5, 20),
        mode=DROPLETS,
        near=0.3,
        least_m=1.0,
        source=(
            "air of 38 degC at saturation holds 66 hPa; mixed into a bathroom 5 to 20 hPa are left, where "
            "droplets form and scatter as smoke does: judgement, from alarms outside bathroom doors"
        ),
    ),
    NuisanceFamily(
        name="candle",
        on_s=(600, 1500),
        rise_s=(180, 300),
        decay_s=(200, 400),
        pm2_5=(3, 150),
        tvoc=(10, 150),
        co=(0, 1.5),
        h2=(0, 0.05),
        heat_k=(0.1, 0.8),
        vapour_hpa=(0, 0.3),
        mode=FUME,
        near=0.3,
        least_m=1.0,
        source=(
            "Fine 1999, Pagels 2009: some ug/m3 while burning steadily, a hundred and more when sooting or just put out"
        ),
    ),
    NuisanceFamily(
        name="cigarette",
        on_s=(240, 480),
        rise_s=(60, 120),
        decay_s=(200, 400),
        pm2_5=(40, 1_200),
        tvoc=(100, 1_000),
        co=(0.5, 8),
        h2=(0.05, 0.6),
        heat_k=_NONE,
        vapour_hpa=_NONE,
        mode=TOBACCO,
        near=0.6,
        least_m=0.8,
        source="Klepeis 2003: 10 to 14 mg of particles and 50 to 70 mg of CO for each: some 300 ug/m3 in 30 m3",
    ),
    NuisanceFamily(
        name="incense",
        on_s=(600, 1500),
        rise_s=(180, 300),
        decay_s=(200, 400),
        pm2_5=(60, 1_500),
        tvoc=(80, 700),
        co=(1, 8),
        h2=(0.05, 0.5),
        heat_k=_NONE,
        vapour_hpa=_NONE,
        mode=TOBACCO,
        near=0.5,
        least_m=1.0,
        source="Jetter 2002: 7 to 200 mg of particles an hour and stick, with more CO than a cigarette",
    ),
    NuisanceFamily(
        name="aerosol_spray",
        on_s=(4, 30),
        rise_s=(5, 12),
        decay_s=(90, 260),
        pm2_5=(50, 5_000),
        tvoc=(2_000, 50_000),
        co=_NONE,
        h2=(0, 0.1),
        heat_k=_NONE,
        vapour_hpa=(0, 0.5),
        mode=DROPLETS,
        near=0.7,
        least_m=0.6,
        source="some g/s of propellant and droplets: 1 g in 30 m3 is 33 mg/m3, of which most is vapour; judgement",
    ),
    NuisanceFamily(
        name="dust",
        on_s=(60, 900),
        rise_s=(20, 60),
        decay_s=(60, 240),
        pm2_5=(40, 3_000),
        tvoc=(0, 30),
        co=_NONE,
        h2=_NONE,
        heat_k=_NONE,
        vapour_hpa=_NONE,
        mode=DUST,
        near=0.5,
        least_m=1.0,
        source="sweeping and sanding: hundreds to thousands of ug/m3, coarse (Abt 2000; workshops: judgement)",
    ),
    NuisanceFamily(
        name="humidifier",
        on_s=(900, 1800),
        rise_s=(180, 400),
        decay_s=(150, 300),
        pm2_5=(20, 1_500),
        tvoc=(0, 20),
        co=_NONE,
        h2=_NONE,
        heat_k=(-0.8, -0.1),
        vapour_hpa=(1, 7),
        mode=FINE_DUST,
        near=0.4,
        least_m=1.0,
        source=(
            "Highsmith 1988, Umezawa 2013: ultrasonic humidifiers leave the salts of tap water in the air, some "
            "hundred to over 1,000 ug/m3; 300 g/h of water; evaporation cools"
        ),
    ),
    NuisanceFamily(
        name="hair_dryer",
        on_s=(120, 600),
        rise_s=(20, 60),
        decay_s=(60, 200),
        pm2_5=(2, 60),
        tvoc=(20, 800),
        co=_NONE,
        h2=(0, 0.1),
        heat_k=(1.5, 14),
        vapour_hpa=(0, 2),
        mode=FINE_DUST,
        near=0.8,
        least_m=0.6,
        source=(
            "1 to 2 kW of hot air: 2 kW in 30 m3 for 5 min are 16 K without walls; hair's dust and sprays: judgement"
        ),
    ),
    NuisanceFamily(
        name="vacuum_cleaner",
        on_s=(180, 1200),
        rise_s=(60, 180),
        decay_s=(120, 300),
        pm2_5=(8, 350),
        tvoc=(0, 60),
        co=_NONE,
        h2=_NONE,
        heat_k=(0.1, 0.8),
        vapour_hpa=_NONE,
        mode=FINE_DUST,
        near=0.3,
        least_m=0.8,
        source="Knibbs 2012: exhaust and stirred-up dust, tens to some hundred ug/m3; 1 kW of motor heat",
    ),
    NuisanceFamily(
        name="outdoor_grill",
        on_s=(600, 1800),
        rise_s=(60, 180),
        decay_s=(100, 280),
        pm2_5=(40, 3_500),
        tvoc=(50, 1_500),
        co=(0.5, 20),
        h2=(0.05, 1.5),
        heat_k=_NONE,
        vapour_hpa=(0, 0.5),
        mode=SMOULDER_SMOKE,
        near=0.0,
        least_m=1.5,
        source=(
            "charcoal smoke through an open window: wood smoke's mixture thinned a hundred to a thousand times; "
            "judgement"
        ),
        gusts=0.35,
    ),
    NuisanceFamily(
        name="solvent",
        on_s=(120, 1200),
        rise_s=(60, 200),
        decay_s=(150, 400),
        pm2_5=(0, 15),
        tvoc=(3_000, 90_000),
        co=_NONE,
        h2=(0, 0.3),
        heat_k=_NONE,
        vapour_hpa=_NONE,
        mode=DROPLETS,
        near=0.6,
        least_m=0.8,
        source="paint, glue, nail varnish: 10 g evaporated in 30 m3 are 330 mg/m3, about 100 ppm",
    ),
    NuisanceFamily(
        name="cleaning_agent",
        on_s=(60, 600),
        rise_s=(30, 80),
        decay_s=(150, 400),
        pm2_5=(0, 20),
        tvoc=(800, 20_000),
        co=_NONE,
        h2=(0, 0.1),
        heat_k=_NONE,
        vapour_hpa=(0, 1),
        mode=DROPLETS,
        near=0.5,
        least_m=0.8,
        source="Nazaroff and Weschler 2004: up to tens of ppm of vapours beside the user",
    ),
)

_AT_M, _IN_M3 = 2.0, 30.0


def amplitude(limits: Range, size: float) -> float:
    """From mild (``size`` 0) to strong (1): along a geometric scale, since episodes spread over decades.

    Where the mild end is no positive number the scale is linear.
    """
    low, high = limits
    if low > 0 and high / low > 3:
        return float(low * (high / low) ** size)
    return low + (high - low) * size


def share_at(family: NuisanceFamily, room: Room, distance_m: float) -> float:
    """What a device gets of the amplitude: the near part falls with distance, the rest with the room's volume."""
    near = min(_AT_M / distance_m, 2.5)
    mixed = min(_IN_M3 / (room.area_m2 * room.height_m), 2.5)
    return family.near * near + (1 - family.near) * mixed
