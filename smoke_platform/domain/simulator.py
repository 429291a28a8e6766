"""Simulated smoke detectors in simulated rooms: what they report, and the truth about what happened there.

Belongs here: what a simulated world is asked for and answers: settings, frames of readings, the list of episodes, the
live simulator. Does not: the physics, which has a module for each part (``SOURCE_MODULES``); sending anything
(``streaming.producer``), features, models.

The world is a pure function of (seed, device, time): see ``simulated_draws``. So a device behaves alike whether it is
simulated alone or among thousands, in one go or in pieces, and a live simulator that is restarted goes on in the same
world without having kept anything.

It is reasoned, and fitted where the public recordings are the better evidence (levels and ratios of sensors in clean
air and in dense smoke; ``simulated_devices``). What it leaves out: air flow between rooms, the housing's delay, ageing
of smoke on its way, sensors that stick, and repeated fires in one room within two hours. ``docs/simulator.md`` has the
families with their sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from smoke_platform.domain.readings import ALL_SENSOR_NAMES, Source
from smoke_platform.domain.simulated_air import DAY_S, ParticleMode, saturation_vapour_pressure
from smoke_platform.domain.simulated_devices import Air, device_of, fall_silent, measured, noise_of
from smoke_platform.domain.simulated_draws import Array, Mask
from smoke_platform.domain.simulated_episodes import (
    DETECTABLE_CO_PPM,
    DETECTABLE_HEAT_K,
    DETECTABLE_SMOKE_UG_M3,
    FIRE_SLOT_S,
    NUISANCE_SLOT_S,
    Episode,
    device_name,
    episodes_at,
)
from smoke_platform.domain.simulated_fires import FIRE_FAMILIES, FireFamily
from smoke_platform.domain.simulated_nuisances import NUISANCE_FAMILIES, NuisanceFamily
from smoke_platform.domain.simulated_rooms import ROOM_TYPES, RoomType, alpert_temperature_rise, room_of

__all__ = [
    "DETECTABLE_CO_PPM",
    "DETECTABLE_HEAT_K",
    "DETECTABLE_SMOKE_UG_M3",
    "EPISODE_SCHEMA",
    "FIRE_FAMILIES",
    "FRAME_SCHEMA",
    "NUISANCE_FAMILIES",
    "ROOM_TYPES",
    "SOURCE_MODULES",
    "FireFamily",
    "LiveSimulator",
    "NuisanceFamily",
    "ParticleMode",
    "RoomType",
    "SimulationSettings",
    "alpert_temperature_rise",
    "device_name",
    "episodes",
    "saturation_vapour_pressure",
    "simulate",
    "source_code",
]

#: The modules of this package that decide what a simulated world is, this one last.
SOURCE_MODULES: Final = (
    "simulated_draws",
    "simulated_air",
    "simulated_rooms",
    "simulated_fires",
    "simulated_nuisances",
    "simulated_episodes",
    "simulated_devices",
    "simulator",
)


def source_code() -> bytes:
    """The text of ``SOURCE_MODULES``, by whose hash stored rows know whether they are of the present world."""
    return b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in SOURCE_MODULES)


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
        _within("fires_per_device_day", self.fires_per_device_day, 0, DAY_S / FIRE_SLOT_S)
        _within("nuisances_per_device_day", self.nuisances_per_device_day, 0, DAY_S / NUISANCE_SLOT_S)
        _within("missing_share", self.missing_share, 0, 0.9)
        _within("faults_per_device_day", self.faults_per_device_day, 0, 24)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low:g} to {high:g}")


# -- a device's readings ---------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Rows:
    kept: Mask
    sensors: dict[str, Array]
    burning: Mask
    event: NDArray[np.int32]
    episodes: list[Episode]


def _rows(world: SimulationSettings, number: int, moments: Array, first: int) -> _Rows:
    """One device's samples ``first``, ``first + 1``, ... at ``moments`` (epoch seconds, ascending)."""
    device = device_of(world.seed, number)
    noise, uniform = noise_of(world.seed, number, first, len(moments))
    found = _episodes(world, number, float(moments[0]), float(moments[-1]))
    air = Air.quiet(device, moments)
    burning = np.zeros(len(moments), dtype=bool)
    event = np.full(len(moments), -1, dtype=np.int32)
    for place, episode in enumerate(found):
        air.add(episode, moments, noise[:, 12])
        event[(moments >= episode.start) & (moments <= episode.end)] = place
        burning |= (moments >= episode.onset) & (moments <= episode.out)
    sensors = measured(world.seed, device, moments, noise, air)
    kept = uniform >= world.missing_share
    fall_silent(world.seed, world.faults_per_device_day, number, moments, sensors, kept)
    return _Rows(kept, sensors, burning, event, found)


def _episodes(world: SimulationSettings, number: int, first: float, last: float) -> list[Episode]:
    return episodes_at(world.seed, world.fires_per_device_day, world.nuisances_per_device_day, number, first, last)


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


#: Columns of ``episodes``.
EPISODE_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "device_id": pl.String,
    "event_id": pl.String,
    "kind": pl.String,
    "family": pl.String,
    "ignition": pl.Datetime("us", "UTC"),
    "onset": pl.Datetime("us", "UTC"),
    "out": pl.Datetime("us", "UTC"),
    "end": pl.Datetime("us", "UTC"),
    "distance_m": pl.Float64,
    "room": pl.String,
}


def episodes(
    world: SimulationSettings, first_device: int, devices: int, start: datetime, seconds: float
) -> pl.DataFrame:
    """The truth about every fire and nuisance that touches a stretch of time, whole, also where it reaches beyond.

    Args:
        world: of which ``seed`` and the two rates matter.
        first_device: number of the first device, from 0 on.
        start: with a zone.

    Returns:
        ``EPISODE_SCHEMA``, ordered by device and time: ``event_id`` and ``family`` as in ``simulate``; ``ignition``
        (or when a nuisance's source is switched on); ``onset``, when the fire becomes detectable at the device: smoke
        of ``DETECTABLE_SMOKE_UG_M3``, warming by ``DETECTABLE_HEAT_K`` or CO of ``DETECTABLE_CO_PPM``, without noise
        and whatever sensors the device has; null for nuisances and for fires that never do; ``out``, when the source
        has gone out as the device sees it, so that ``fire_alarm`` is true from ``onset`` to ``out``; ``end``, when the
        air is clear again; ``distance_m``, horizontally; ``room``, its type.

    Raises:
        ValueError: for a start without a zone or a number of devices that is out of range.
    """
    _within("devices", devices, 1, 1_000_000)
    if start.tzinfo is None:
        raise ValueError("start has no time zone")
    first = start.timestamp()
    rows = []
    for number in range(first_device, first_device + devices):
        room = room_of(world.seed, number).type.name
        found = [one for one in _episodes(world, number, first, first + seconds) if one.start < first + seconds]
        for one in sorted(found, key=lambda one: one.start):
            rows.append(
                (
                    device_name(number),
                    one.event_id,
                    one.kind,
                    one.family,
                    _moment(one.start),
                    _moment(one.onset) if math.isfinite(one.onset) else None,
                    _moment(one.out),
                    _moment(one.end),
                    one.distance_m,
                    room,
                )
            )
    return pl.DataFrame(rows, schema=EPISODE_SCHEMA, orient="row")


def _moment(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


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
