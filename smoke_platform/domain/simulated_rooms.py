"""Simulated rooms: what they are like, where things stand in them, and how they fill with what a source gives off.

Belongs here: types of rooms with their nuisances' weights, a device's own room, the ceiling jet, the layer below the
ceiling, exchange of air. Does not: what the sources are (``simulated_fires``, ``simulated_nuisances``), the air of a
room in which nothing happens (``simulated_air``).

A source feeds the device in two ways. The ceiling jet brings what is being given off at this moment, thinned by the air
that the plume has drawn in; it falls with distance. The layer below the ceiling gathers what has been given off so far;
it falls with the room's volume and is the same everywhere in the room.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from smoke_platform.domain.simulated_air import AIR_HEAT
from smoke_platform.domain.simulated_draws import Array, Of, draw


@dataclass(frozen=True, slots=True)
class RoomType:
    """What a kind of room is like.

    Attributes:
        temperature_c, swing_k, humidity_pct, pm2_5: mean temperature, daily swing, humidity, particles in ug/m3.
        area_m2, height_m: ranges of floor area and ceiling height.
        nuisances: family -> how often, relatively; what is not named never happens here.
    """

    name: str
    temperature_c: float
    swing_k: float
    humidity_pct: float
    pm2_5: float
    area_m2: tuple[float, float]
    height_m: tuple[float, float]
    nuisances: Mapping[str, float]


#: Sizes, temperatures and frequencies are judgement: dwellings of the present day, a workshop beside the house. The
#: particle background is that of a sensor in still air, a little above the public recordings (median 1.9 ug/m3); the 5
#: to 15 ug/m3 that surveys of occupied homes give (Wallace 2006) come of what people do, which is simulated apart.
ROOM_TYPES: Final = (
    RoomType(
        name="kitchen",
        temperature_c=21.5,
        swing_k=1.5,
        humidity_pct=48,
        pm2_5=3.2,
        area_m2=(7, 20),
        height_m=(2.3, 2.7),
        nuisances={
            "cooking": 5,
            "frying": 4,
            "toast": 4,
            "humidifier": 0.2,
            "candle": 0.4,
            "cigarette": 0.3,
            "dust": 0.3,
            "aerosol_spray": 0.6,
            "cleaning_agent": 2,
            "vacuum_cleaner": 0.8,
            "outdoor_grill": 0.5,
            "incense": 0.2,
        },
    ),
    RoomType(
        name="living_room",
        temperature_c=21.5,
        swing_k=1.2,
        humidity_pct=44,
        pm2_5=2.4,
        area_m2=(15, 45),
        height_m=(2.3, 3.2),
        nuisances={
            "cooking": 1.5,
            "frying": 0.7,
            "toast": 0.5,
            "candle": 2,
            "cigarette": 2,
            "incense": 1.2,
            "humidifier": 1.5,
            "vacuum_cleaner": 1.5,
            "outdoor_grill": 1,
            "dust": 1,
            "aerosol_spray": 0.5,
            "cleaning_agent": 1,
            "solvent": 0.4,
        },
    ),
    RoomType(
        name="bedroom",
        temperature_c=19.5,
        swing_k=1.3,
        humidity_pct=48,
        pm2_5=2.0,
        area_m2=(9, 22),
        height_m=(2.3, 2.8),
        nuisances={
            "aerosol_spray": 2,
            "hair_dryer": 1.5,
            "humidifier": 2,
            "vacuum_cleaner": 1.2,
            "candle": 1,
            "cigarette": 1,
            "incense": 1,
            "dust": 1,
            "shower_steam": 0.6,
            "cooking": 0.3,
            "outdoor_grill": 0.5,
            "solvent": 0.5,
            "cleaning_agent": 0.7,
        },
    ),
    RoomType(
        name="bathroom",
        temperature_c=22.0,
        swing_k=1.0,
        humidity_pct=58,
        pm2_5=2.0,
        area_m2=(4, 12),
        height_m=(2.3, 2.6),
        nuisances={
            "shower_steam": 8,
            "aerosol_spray": 4,
            "hair_dryer": 4,
            "cleaning_agent": 2,
            "cigarette": 0.3,
            "candle": 0.4,
            "dust": 0.2,
            "solvent": 0.5,
        },
    ),
    RoomType(
        name="hallway",
        temperature_c=20.0,
        swing_k=1.4,
        humidity_pct=46,
        pm2_5=2.2,
        area_m2=(4, 18),
        height_m=(2.3, 3.0),
        nuisances={
            "cooking": 1.2,
            "frying": 1,
            "toast": 1.2,
            "shower_steam": 1.5,
            "vacuum_cleaner": 1.5,
            "dust": 1,
            "aerosol_spray": 0.7,
            "cigarette": 0.6,
            "cleaning_agent": 1,
            "outdoor_grill": 0.4,
            "candle": 0.2,
            "incense": 0.3,
            "hair_dryer": 0.2,
        },
    ),
    RoomType(
        name="workshop",
        temperature_c=17.5,
        swing_k=3.5,
        humidity_pct=50,
        pm2_5=5.0,
        area_m2=(14, 60),
        height_m=(2.4, 4.0),
        nuisances={
            "dust": 8,
            "solvent": 4,
            "aerosol_spray": 2,
            "cigarette": 1.2,
            "vacuum_cleaner": 2,
            "outdoor_grill": 0.5,
            "cleaning_agent": 1,
        },
    ),
)


#: Share of the heat that the plume carries; the rest is radiated (Tewarson: 0.6 to 0.8 for what burns in homes).
CONVECTED: Final = 0.7
#: kg/m3 at 20 degC.
AIR_DENSITY: Final = 1.2


@dataclass(frozen=True, slots=True)
class Room:
    """A device's room.

    Attributes:
        air_changes_per_h: while nobody has opened a window.
        layer_share: of the room's height, how much the layer below the ceiling takes up.
        stratified_k: by how much the air below the ceiling is warmer than that below; a plume whose jet would be less
            warm stops under it, and its smoke comes to the device only with what gathers in the room.
        door_open: whether the layer can flow off into the next room.
    """

    type: RoomType
    area_m2: float
    height_m: float
    air_changes_per_h: float
    layer_share: float
    stratified_k: float
    door_open: bool

    @property
    def layer_m3(self) -> float:
        """Volume that what is given off gathers in."""
        return self.area_m2 * self.height_m * self.layer_share

    def layer_stays_s(self, heat_kw: float) -> float:
        """How long what has come into the layer stays there on average, s.

        Air is exchanged slowly; through an open door the layer flows off as fast as the plume feeds it (a zone model's
        steady state, with the plume's flow after Zukoski: 0.071 Qc^(1/3) z^(5/3) kg/s).
        """
        rate = self.air_changes_per_h / 3600
        if self.door_open:
            rise = 0.5 * self.height_m  # half of the way up is clear
            flow = 0.071 * (CONVECTED * heat_kw) ** (1 / 3) * rise ** (5 / 3) / AIR_DENSITY
            rate += flow / self.layer_m3
        return 1 / rate

    @property
    def reach_m(self) -> float:
        """Radius of a disc as large as the floor, with the device above its middle."""
        return math.sqrt(self.area_m2 / math.pi)


@lru_cache(maxsize=20_000)
def room_of(seed: int, number: int) -> Room:
    """The room of the device with this number."""
    rng = draw(seed, Of.ROOM, number)
    kind = ROOM_TYPES[int(rng.integers(len(ROOM_TYPES)))]
    return Room(
        type=kind,
        area_m2=float(rng.uniform(*kind.area_m2)),
        height_m=float(rng.uniform(*kind.height_m)),
        # Dwellings with closed windows: median about 0.5 an hour (Murray and Burmaster 1995).
        air_changes_per_h=float(np.clip(rng.lognormal(math.log(0.5), 0.5), 0.1, 2.0)),
        # A smoke layer comes down to about the door's lintel and then fills the room; judgement.
        layer_share=float(rng.uniform(0.45, 0.8)),
        # Heated rooms: some tenths of a kelvin a metre; judgement.
        stratified_k=float(rng.uniform(0.3, 1.5)),
        door_open=bool(rng.random() < 0.6),
    )


def distance_m(room: Room, rng: np.random.Generator, least: float) -> float:
    """Horizontal distance of a source to the device: anywhere on the floor, but not nearer than ``least``."""
    return max(least, room.reach_m * math.sqrt(rng.random()))


# -- plume and ceiling jet -------------------------------------------------------------------------------
def alpert_temperature_rise(heat_kw: float | Array, radius_m: float, height_m: float) -> Array:
    """Steady ceiling-jet temperature rise in K (Alpert 1972) for a heat release in kW.

    Beyond 0.18 times the height the jet cools with distance; nearer, the plume itself strikes the device.
    """
    heat = np.asarray(heat_kw, dtype=float)
    if radius_m / height_m <= 0.18:
        return np.asarray(16.9 * heat ** (2 / 3) / height_m ** (5 / 3))
    return np.asarray(5.38 * (heat / radius_m) ** (2 / 3) / height_m)


def transport_lag(heat_kw: float, radius_m: float, height_m: float) -> float:
    """Seconds from the source up the plume and along the ceiling to the device (Mowrer 1990)."""
    flow = max(heat_kw, 1e-3) ** (1 / 3)
    plume, jet = 0.67 * height_m ** (4 / 3) / flow, radius_m ** (11 / 6) / (1.2 * flow * height_m**0.5)
    return float(plume + jet)


def jet_content(given_g_s: Array, heat_kw: Array, radius_m: float, height_m: float) -> Array:
    """g/m3 in the ceiling jet of what a source with this heat release gives off, g/s.

    Heat and products are carried by the same flow, so the one's dilution is the other's: content = given off /
    convected heat x rho cp x temperature rise.
    """
    heat = np.maximum(heat_kw, 1e-3)
    rise = alpert_temperature_rise(heat, radius_m, height_m)
    return np.asarray(AIR_HEAT * rise * given_g_s / (CONVECTED * heat))


def gathered(age_s: Array, given: Array, loss_s: float, volume: float) -> Array:
    """What has gathered in a volume: d(content)/dt = given / volume - content / loss_s, from nothing on.

    Args:
        age_s: ascending, from the beginning.
        given: per second, at those ages; taken as linear in between.
        loss_s: time constant of the loss, by exchange of air or to the walls.
    """
    content = np.zeros_like(given)
    steps = np.diff(age_s)
    keep = np.exp(-steps / loss_s)
    fed = (1 - keep) * loss_s * 0.5 * (given[1:] + given[:-1]) / volume
    total = 0.0
    for place, (left, more) in enumerate(zip(keep.tolist(), fed.tolist(), strict=True), start=1):
        total = total * left + more
        content[place] = total
    return content
