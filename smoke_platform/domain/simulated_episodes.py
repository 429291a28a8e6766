"""Simulated episodes: when a fire or a nuisance happens at a device, and the truth about it.

Belongs here: drawing episodes in their slots of time, their course at the device, when a fire becomes detectable there.
Does not: families (``simulated_fires``, ``simulated_nuisances``), sensors (``simulated_devices``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from smoke_platform.domain.simulated_air import DAY_S, ParticleMode
from smoke_platform.domain.simulated_draws import Array, Of, draw
from smoke_platform.domain.simulated_fires import FIRE_FAMILIES, fire_curve, products
from smoke_platform.domain.simulated_nuisances import NUISANCE_FAMILIES, amplitude, share_at
from smoke_platform.domain.simulated_rooms import distance_m, room_of

#: One episode of a kind in one slot of time at most; each fits into its slot with all its smoke.
FIRE_SLOT_S, NUISANCE_SLOT_S = 7200, 3600
#: Episodes are over when this many time constants of decay have passed.
_DECAYS: Final = 5.0
#: Points of a curve after the source has gone out, and of a nuisance while it is on.
_POINTS_OF_DECAY, _POINTS_OF_RISE = 60, 80
#: Whoever finds a fire puts it out and airs the room: time constant, s.
_AIRING_S: Final = (60.0, 250.0)
#: The walls keep a little of the heat: it goes faster than the smoke, which only fresh air takes away.
_COOLING_S: Final = 50.0
#: More than this a closed room's air does not feed for long: of 3 MJ/m3 of air a third can be used, which lasts for
#: eleven minutes.
_MOST_KW_PER_M3: Final = 1.5
#: No device hangs right above a fire, which would burn it before it had reported anything.
_LEAST_M: Final = 0.5
#: Spread of the logarithm of a fire's yields: smoke and gases of real fires of one kind differ by a third.
_YIELD_SPREAD: Final = 0.3

#: From when on a fire counts as detectable at the device, on noise-free values: 25 ug/m3 of smoke is some
#: hundredth of what a smoke alarm needs, 2 K a tenth of what a heat detector needs, 5 ppm of CO a sixth of
#: the lowest alarm level of EN 50291. The truth is about the fire, not about any sensor's threshold.
DETECTABLE_SMOKE_UG_M3, DETECTABLE_HEAT_K, DETECTABLE_CO_PPM = 25.0, 2.0, 5.0

#: Slots that are remembered of each kind, most of them empty: a fleet as large as that is drawn once in its slot. A
#: fire's curve takes 6 kB.
_SLOTS_KEPT: Final = 20_000

_FIRE_WEIGHTS = np.array([family.weight for family in FIRE_FAMILIES])
_FIRE_SHARES = _FIRE_WEIGHTS / _FIRE_WEIGHTS.sum()


def device_name(number: int) -> str:
    """The id of the simulated device with this number, which counts from 0: ``sim-0001`` is the first."""
    return f"sim-{number + 1:04d}"


@dataclass(frozen=True, slots=True)
class Episode:
    """One fire or nuisance at one device.

    Attributes:
        kind: ``fire`` or ``nuisance``.
        start: ignition, or when the source is switched on; epoch seconds, as all moments here.
        reaches: when the first of it comes to the device.
        out: when the source has gone out, as the device sees it.
        end: when the air is as if it had not been.
        onset: fires: when they become detectable at the device (``DETECTABLE_...``); infinite where they never do,
            and for nuisances.
        moments, share, heat: the course at the device, from ``reaches`` to ``end``; the share of the greatest content
            (0 to 1) and the temperature rise in K, linear in between.
        pm2_5, tvoc, co, h2, vapour_hpa: at the greatest content, in ug/m3, ppb, ppm, ppm, hPa.
    """

    kind: str
    family: str
    event_id: str
    start: float
    reaches: float
    out: float
    end: float
    onset: float
    distance_m: float
    moments: Array
    share: Array
    heat: Array
    pm2_5: float
    tvoc: float
    co: float
    h2: float
    vapour_hpa: float
    mode: ParticleMode
    gusts: float


def _with_decay(
    age: Array, share: Array, heat: Array, decay_s: float, cooling_s: float
) -> tuple[Array, Array, Array, float]:
    """The course with what is left after the source has gone out, which reaches zero at the end and not at infinity."""
    after = _DECAYS * decay_s * np.linspace(0.0, 1.0, _POINTS_OF_DECAY + 1)[1:]
    left = math.exp(-_DECAYS)
    cleared = np.maximum((np.exp(-after / decay_s) - left) / (1 - left), 0.0)
    # Heat ends with the smoke at the latest, so that neither ends with a jump.
    cooled = np.exp(-after / cooling_s) * np.minimum(1.0, cleared * math.exp(1))
    return (
        np.concatenate([age, age[-1] + after]),
        np.concatenate([share, share[-1] * cleared]),
        np.concatenate([heat, heat[-1] * cooled]),
        float(age[-1] + after[-1]),
    )


def _first_crossing(moments: Array, values: Array, limit: float) -> float:
    """When a course that does not fall first reaches a limit, or infinity."""
    over = np.flatnonzero(values >= limit)
    if len(over) == 0:
        return math.inf
    place = int(over[0])
    if place == 0:
        return float(moments[0])
    before, after = values[place - 1], values[place]
    return float(moments[place - 1] + (moments[place] - moments[place - 1]) * (limit - before) / (after - before))


@lru_cache(maxsize=_SLOTS_KEPT)
def fire_in_slot(seed: int, per_day: float, number: int, slot: int) -> Episode | None:
    """The fire of a device in a slot of two hours, if there is one."""
    rng = draw(seed, Of.FIRES, number, slot)
    if rng.random() >= per_day * FIRE_SLOT_S / DAY_S:
        return None
    room = room_of(seed, number)
    family = FIRE_FAMILIES[int(rng.choice(len(FIRE_FAMILIES), p=_FIRE_SHARES))]
    distance = distance_m(room, rng, _LEAST_M)
    most = _MOST_KW_PER_M3 * room.area_m2 * room.height_m
    curve = fire_curve(
        family,
        room,
        distance,
        pace=rng.uniform(*family.pace),
        peak_kw=min(rng.uniform(*family.peak_kw), most),
        burn_s=rng.uniform(*family.burn_s),
        cold_lag_s=rng.uniform(*family.lag_s),
    )
    made = products(family, *np.exp(_YIELD_SPREAD * rng.standard_normal(2)).tolist())
    greatest = float(curve.burnt.max())
    age, share, heat, lasts = _with_decay(
        curve.age_s, curve.burnt / greatest, curve.heat_k, rng.uniform(*_AIRING_S), _COOLING_S
    )
    start = slot * FIRE_SLOT_S + rng.uniform(0, max(1.0, FIRE_SLOT_S - lasts - curve.lag_s))
    reaches = start + curve.lag_s
    moments = reaches + age
    burning = len(curve.age_s)
    onset = min(
        _first_crossing(moments[:burning], values[:burning], limit)
        for values, limit in (
            (share * made.pm2_5 * greatest, DETECTABLE_SMOKE_UG_M3),
            (heat, DETECTABLE_HEAT_K),
            (share * made.co * greatest, DETECTABLE_CO_PPM),
        )
    )
    return Episode(
        kind="fire",
        family=family.name,
        event_id=f"{device_name(number)}/fire/{slot * FIRE_SLOT_S}",
        start=float(start),
        reaches=float(reaches),
        out=float(moments[burning - 1]),
        end=float(moments[-1]),
        onset=onset,
        distance_m=distance,
        moments=moments,
        share=share,
        heat=heat,
        pm2_5=made.pm2_5 * greatest,
        tvoc=made.tvoc * greatest,
        co=made.co * greatest,
        h2=made.h2 * greatest,
        vapour_hpa=made.vapour_hpa * greatest,
        mode=family.mode,
        gusts=0.12,
    )


@lru_cache(maxsize=64)
def _nuisance_shares(room_type: str, nuisances: tuple[tuple[str, float], ...]) -> Array:
    weights = dict(nuisances)
    unknown = weights.keys() - {family.name for family in NUISANCE_FAMILIES}
    if unknown:
        raise ValueError(f"{room_type} weighs nuisances that there are none of: {sorted(unknown)}")
    shares = np.array([weights.get(family.name, 0.0) for family in NUISANCE_FAMILIES])
    return np.asarray(shares / shares.sum())


@lru_cache(maxsize=_SLOTS_KEPT)
def nuisance_in_slot(seed: int, per_day: float, number: int, slot: int) -> Episode | None:
    """The nuisance of a device in a slot of an hour, if there is one."""
    rng = draw(seed, Of.NUISANCES, number, slot)
    if rng.random() >= per_day * NUISANCE_SLOT_S / DAY_S:
        return None
    room = room_of(seed, number)
    shares = _nuisance_shares(room.type.name, tuple(room.type.nuisances.items()))
    family = NUISANCE_FAMILIES[int(rng.choice(len(NUISANCE_FAMILIES), p=shares))]
    distance = distance_m(room, rng, family.least_m)
    on, rise, decay = rng.uniform(*family.on_s), rng.uniform(*family.rise_s), rng.uniform(*family.decay_s)
    # Most episodes are mild, some are strong; the channels of one go together.
    size = rng.beta(1.2, 2.0)
    here = share_at(family, room, distance)
    spreads = rng.uniform(0.7, 1.3, 6)
    pm2_5, tvoc, co, h2, heat_k, vapour_hpa = (
        float(amplitude(limits, size) * spread * here)
        for limits, spread in zip(
            (family.pm2_5, family.tvoc, family.co, family.h2, family.heat_k, family.vapour_hpa), spreads, strict=True
        )
    )
    # What is near is seen at once, what is far after some seconds of air moving at about 0.1 m/s.
    reaches_after = float(distance / 0.1)
    since_on = on * np.linspace(0.0, 1.0, _POINTS_OF_RISE) ** 1.5
    grown = 1 - np.exp(-since_on / rise)
    age, share, heat, lasts = _with_decay(since_on, grown / grown[-1], heat_k * grown / grown[-1], decay, decay)
    start = slot * NUISANCE_SLOT_S + rng.uniform(0, max(1.0, NUISANCE_SLOT_S - lasts - reaches_after))
    moments = start + reaches_after + age
    return Episode(
        kind="nuisance",
        family=family.name,
        event_id=f"{device_name(number)}/nuisance/{slot * NUISANCE_SLOT_S}",
        start=float(start),
        reaches=float(moments[0]),
        out=float(moments[_POINTS_OF_RISE - 1]),
        end=float(moments[-1]),
        onset=math.inf,
        distance_m=distance,
        moments=moments,
        share=share,
        heat=heat,
        pm2_5=pm2_5,
        tvoc=tvoc,
        co=co,
        h2=h2,
        vapour_hpa=vapour_hpa,
        mode=family.mode,
        gusts=family.gusts,
    )


def episodes_at(
    seed: int, fires_per_day: float, nuisances_per_day: float, number: int, first: float, last: float
) -> list[Episode]:
    """The episodes of a device that touch ``first`` to ``last``; nuisances before fires, so that a fire wins."""
    found: list[Episode] = []
    for make, rate, length in (
        (nuisance_in_slot, nuisances_per_day, NUISANCE_SLOT_S),
        (fire_in_slot, fires_per_day, FIRE_SLOT_S),
    ):
        for slot in range(math.floor(first / length), math.floor(last / length) + 1):
            episode = make(seed, rate, number, slot)
            if episode is not None and episode.start <= last and episode.end >= first:
                found.append(episode)
    return found
