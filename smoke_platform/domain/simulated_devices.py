"""Simulated smoke detectors: what their sensors make of the air, and how they age, stray and fall silent.

Belongs here: a device's own constants, bias, noise, ageing, saturation, resolution, spells of silence. Does not: the
air (``simulated_air``, ``simulated_episodes``), frames of readings (``simulator``).

The levels and ratios marked as fitted were read from the public recordings (five recordings of one device, half of them
copies), since a measurement is better evidence than a reason. All else is after data sheets, from memory, or judgement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from smoke_platform.domain import simulated_air as air_physics
from smoke_platform.domain.simulated_air import DAY_S, SIZE_CALIBRATION, drift, saturation_vapour_pressure, weather
from smoke_platform.domain.simulated_draws import Array, Mask, Of, draw
from smoke_platform.domain.simulated_episodes import Episode
from smoke_platform.domain.simulated_rooms import Room, room_of

#: Outdoor air's volume share of CO2, below which a gas sensor's equivalent never reports (SGP30: "400 ppm").
_ECO2_FLOOR_PPM = 400.0
#: People at rest in a room raise CO2 by some 500 ppm at ordinary ventilation (about 7 l/s and person); of that the chip
#: shows a part only, since it takes its value from hydrogen (recordings: three quarters below 435 ppm, fitted).
_OCCUPANCY_ECO2_PPM, _OCCUPANCY_TVOC_PPB = 300.0, 60.0
_OCCUPANCY_TEMPERATURE_K, _OCCUPANCY_VAPOUR_HPA = 0.5, 1.0

#: Group of sensors that share a chip and fail together.
_CHIPS: Final = {
    "climate": ("temperature_c", "humidity_pct"),
    "gas": ("tvoc_ppb", "eco2_ppm", "raw_h2", "raw_ethanol"),
    "pressure": ("pressure_hpa",),
    "particles": ("pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5"),
}
#: SGP30 data sheet: ln(c / c_ref) = (s_ref - s_out) / 512, in ticks.
_MOX_TICKS = 512.0
#: Ticks in clean air, fitted: the public recordings' raw H2 has its median at 12,950, raw ethanol lies at about 20,600
#: where TVOC is near 0 and at 19,460 where it is 1,070 ppb. The same pairs give the ethanol of clean air, which the
#: data sheet has at 0.4 ppm. One device was recorded; how chips scatter is judgement.
_RAW_H2_CLEAN, _RAW_ETHANOL_CLEAN = 13_000.0, 20_600.0
_RAW_H2_SCATTER, _RAW_ETHANOL_SCATTER = 150.0, 250.0
_H2_CLEAN_PPM, _ETHANOL_CLEAN_PPM = 0.5, 0.15
#: TVOC of rooms, ppb: median and spread of the logarithm. Fitted to the recordings (medians 128 and 1,065 of the two
#: that lie in clean air), whose one room is not all rooms.
_TVOC_PPB, _TVOC_SPREAD = 300.0, 1.0
#: The chip's output saturates here (data sheet: 60,000 ppb and ppm).
_GAS_LIMIT = 60_000.0
#: Optical particle sensors go blind far above their specified 1,000 ug/m3; limits as in the recordings.
_PM_LIMIT, _NC_LIMIT = 45_000.0, 60_000.0
#: In dense smoke two small particles in the beam at once are taken for one large one: PM1.0 and NC0.5 level off and
#: NC2.5 shoots up. Half-values in ug/m3 of PM2.5, and how much NC2.5 gains for 1 ug/m3; fitted to the smoke in the
#: recordings (up to 45,000 ug/m3), which these follow to about a third.
_COINCIDENCE_PM1, _COINCIDENCE_NC05, _COINCIDENCE_NC25, _COINCIDENCE_GAIN = 22_000.0, 11_000.0, 11_000.0, 0.7
#: Spread of a reading from second to second, fitted to the quiet stretches of the recordings.
_NOISE_PM, _NOISE_SIZE, _NOISE_PRESSURE_HPA, _NOISE_TICKS = 0.012, 0.002, 0.004, 5.0
_NOISE_TVOC, _NOISE_ECO2 = 0.012, 0.004
#: Samples whose noise is drawn at once.
_BLOCK = 256
_BIASES, _NOISES = 14, 14
#: Decimals a sensor reports.
_DECIMALS: Final = {
    "temperature_c": 2,
    "humidity_pct": 2,
    "tvoc_ppb": 0,
    "eco2_ppm": 0,
    "raw_h2": 0,
    "raw_ethanol": 0,
    "pressure_hpa": 3,
    "pm1_0": 2,
    "pm2_5": 2,
    "nc0_5": 2,
    "nc1_0": 2,
    "nc2_5": 3,
    "co_ppm": 1,
}

# -- ageing ----------------------------------------------------------------------------------------------
#: A smoke alarm is to be replaced after ten years (NFPA 72; EN 14604's makers alike): then its age begins anew.
LIFE_YEARS: Final = 10.0
_YEAR_S = 365.25 * DAY_S
#: Change in a year, each times a number drawn for the device. Climate and pressure: long-term drift of the data sheets
#: of SHT3x (0.03 K, 0.25 %RH a year) and BMP3xx (0.33 hPa a year), taken as a spread of a third of it for pressure.
_AGE_TEMPERATURE_K, _AGE_HUMIDITY_PCT, _AGE_PRESSURE_HPA = 0.03, 0.25, 0.1
#: Metal oxide: its baseline wanders (either way, ticks), and siloxanes and dirt take some of its response (share).
#: Judgement; the data sheet gives 1.3% of the signal.
_AGE_MOX_TICKS, _AGE_MOX_RESPONSE = 25.0, 0.02
#: Particles: SPS30's data sheet bounds the drift by 1.25 ug/m3 and 1.25% a year. A fan that tires and a laser that
#: dims see less; dust in the chamber scatters where nothing is.
_AGE_PM_UG_M3, _AGE_PM_RESPONSE = 0.08, 0.0125
#: Electrochemical CO cells dry out: makers give less than 5% a year, 2% is usual.
_AGE_CO_RESPONSE = 0.02


@dataclass(frozen=True)
class Device:
    """Everything about a device and its room that does not change.

    Attributes:
        bias: unit normal numbers, one a channel; ``ageing``: alike, for its drift; ``wear``: 0.4 to 1.6, for what
            only gets less.
        age_s: of the device at the epoch.
    """

    room: Room
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
    ageing: Array
    wear: Array
    age_s: float
    drift_phase: Array

    def age_years(self, moments: Array) -> Array:
        """Age at each moment (epoch seconds), 0 to ``LIFE_YEARS``."""
        return np.asarray(np.mod(self.age_s + moments, LIFE_YEARS * _YEAR_S) / _YEAR_S)


@lru_cache(maxsize=20_000)
def device_of(seed: int, number: int) -> Device:
    """The device with this number."""
    rng = draw(seed, Of.DEVICE, number)
    room = room_of(seed, number)
    kind = room.type
    temperature = kind.temperature_c + rng.normal(0, 1.0)
    humidity = float(np.clip(kind.humidity_pct + rng.normal(0, 6), 20, 75))
    return Device(
        room=room,
        altitude_m=float(rng.uniform(0, 700)),
        # Sites lie within some time zones, and rooms face different ways.
        day_shift_s=float(rng.normal(0, 2 * 3600)),
        temperature_c=float(temperature),
        swing_k=float(kind.swing_k * rng.uniform(0.6, 1.4)),
        vapour_hpa=float(humidity / 100 * saturation_vapour_pressure(temperature)),
        heating_k=float(rng.uniform(0.05, 0.35)),
        heating_period_s=float(rng.uniform(900, 2700)),
        tvoc_ppb=float(rng.lognormal(math.log(_TVOC_PPB), _TVOC_SPREAD)),
        pm2_5=float(kind.pm2_5 * rng.lognormal(0, 0.6)),
        morning_s=float(rng.normal(7.5 * 3600, 2400)),
        evening_s=float(rng.normal(18 * 3600, 3600)),
        has_co=bool(rng.random() < 0.5),
        bias=rng.standard_normal(_BIASES),
        ageing=rng.standard_normal(_BIASES),
        wear=rng.uniform(0.4, 1.6, 3),
        age_s=float(rng.uniform(0, LIFE_YEARS * _YEAR_S)),
        drift_phase=rng.uniform(0, 2 * math.pi, (air_physics.DRIFT_CHANNELS, len(air_physics.DRIFT_PERIODS))),
    )


def noise_of(seed: int, number: int, first: int, count: int) -> tuple[Array, Array]:
    """Unit normal noise (count, channels) and a uniform number per sample, drawn in fixed blocks."""
    normal, uniform = [], []
    for block in range(first // _BLOCK, (first + count - 1) // _BLOCK + 1):
        rng = draw(seed, Of.NOISE, number, block)
        low, high = max(0, first - block * _BLOCK), min(_BLOCK, first + count - block * _BLOCK)
        normal.append(rng.standard_normal((_BLOCK, _NOISES))[low:high])
        uniform.append(rng.random(_BLOCK)[low:high])
    return np.concatenate(normal), np.concatenate(uniform)


@dataclass(frozen=True, slots=True)
class Air:
    """What is in the room's air at the device beyond its daily cycle. Particles: PM2.5, PM1.0, NC0.5, NC1.0, NC2.5.

    All ``[n]``, particles ``[5, n]``; units as the sensors'.
    """

    heat: Array
    vapour: Array
    tvoc: Array
    co: Array
    h2: Array
    particles: Array

    @classmethod
    def quiet(cls, device: Device, moments: Array) -> Air:
        """With nothing but the room's own particles, as the sensor's calibration has them."""
        background = device.pm2_5 * np.exp(0.45 * drift(device.drift_phase[0], moments))
        heat, vapour, tvoc, co, h2 = np.zeros((5, len(moments)))
        return cls(heat, vapour, tvoc, co, h2, np.array([1.0, *SIZE_CALIBRATION])[:, None] * background)

    def add(self, episode: Episode, moments: Array, turbulence: Array) -> None:
        """Adds, in place, what an episode brings at ``moments`` (ascending); turbulence is unit normal."""
        low, high = np.searchsorted(moments, (episode.moments[0], episode.moments[-1]))
        if low == high:
            return
        here = slice(low, high)
        share = np.interp(moments[here], episode.moments, episode.share)
        # Turbulent mixing makes whatever arrives flicker.
        flicker = share * np.exp(episode.gusts * turbulence[here])
        self.heat[here] += np.interp(moments[here], episode.moments, episode.heat)
        self.vapour[here] += episode.vapour_hpa * share
        self.tvoc[here] += episode.tvoc * flicker
        self.co[here] += episode.co * share
        self.h2[here] += episode.h2 * flicker
        self.particles[:, here] += np.array([1.0, *episode.mode.reported()])[:, None] * (episode.pm2_5 * flicker)


def measured(seed: int, device: Device, moments: Array, noise: Array, air: Air) -> dict[str, Array]:
    """What the device's sensors make of the air: bias, ageing, noise, saturation and resolution.

    Args:
        moments: epoch seconds, ascending ``[n]``.
        noise: unit normal ``[n, channels]``.

    Returns:
        Each sensor's readings ``[n]``; NaN where the device has no such sensor.
    """
    weather_pressure, weather_temperature, weather_vapour = weather(seed, moments)
    solar = np.mod(moments - device.day_shift_s, DAY_S)
    occupied = air_physics.occupied(device.morning_s, device.evening_s, solar)
    bias, ageing, wear = device.bias, device.ageing, device.wear
    age = device.age_years(moments)

    temperature = (
        device.temperature_c
        # Room air is warmest in the middle of the afternoon.
        + device.swing_k * np.cos(2 * math.pi * (solar - 15 * 3600) / DAY_S)
        + device.heating_k * np.sin(2 * math.pi * moments / device.heating_period_s)
        + air_physics.WEATHER_TEMPERATURE_K * weather_temperature
        + 0.15 * drift(device.drift_phase[1], moments)
        + _OCCUPANCY_TEMPERATURE_K * occupied
        + air.heat
    )
    # A room holds its water: relative humidity falls where temperature rises.
    vapour = (
        device.vapour_hpa * np.exp(air_physics.WEATHER_VAPOUR * weather_vapour)
        + _OCCUPANCY_VAPOUR_HPA * occupied
        + air.vapour
    )
    humidity = 100 * vapour / saturation_vapour_pressure(temperature)
    pressure = (
        air_physics.SEA_LEVEL_HPA * math.exp(-device.altitude_m / air_physics.SCALE_HEIGHT_M)
        + air_physics.WEATHER_PRESSURE_HPA * weather_pressure
        + air_physics.TIDE_HPA * np.cos(4 * math.pi * (solar - air_physics.TIDE_PEAK_S) / DAY_S)
    )

    tvoc = device.tvoc_ppb * np.exp(0.4 * drift(device.drift_phase[2], moments))
    tvoc += _OCCUPANCY_TVOC_PPB * occupied + air.tvoc
    hydrogen = _H2_CLEAN_PPM * np.exp(0.08 * drift(device.drift_phase[3], moments)) + 0.05 * tvoc / 1000 + air.h2
    ethanol = _ETHANOL_CLEAN_PPM + tvoc / 1000
    # Warm and moist air lowers a metal oxide's resistance; the chip's raw signals are not compensated.
    climate = -6.0 * (temperature - 21.0) - 2.0 * (vapour - 11.0)
    response = 1 - _AGE_MOX_RESPONSE * wear[0] * age
    raw_h2 = (
        _RAW_H2_CLEAN
        + _RAW_H2_SCATTER * bias[4]
        + _AGE_MOX_TICKS * ageing[4] * age
        - _MOX_TICKS * response * np.log(hydrogen / _H2_CLEAN_PPM)
        + climate
        + _NOISE_TICKS * noise[:, 4]
    )
    raw_ethanol = (
        _RAW_ETHANOL_CLEAN
        + _RAW_ETHANOL_SCATTER * bias[5]
        + _AGE_MOX_TICKS * ageing[5] * age
        - _MOX_TICKS * response * np.log(ethanol / _ETHANOL_CLEAN_PPM)
        + climate
        + _NOISE_TICKS * noise[:, 5]
    )
    # The chip takes its CO2 equivalent from hydrogen, which people breathe out as well.
    eco2 = (
        _ECO2_FLOOR_PPM
        + _OCCUPANCY_ECO2_PPM * occupied * (1 + 0.1 * bias[3])
        + 500 * response * np.maximum(hydrogen / _H2_CLEAN_PPM - 1.1, 0.0) ** 0.9
    ) * (1 + _NOISE_ECO2 * noise[:, 3])

    readings = {
        "temperature_c": np.clip(
            temperature + 0.4 * bias[0] + _AGE_TEMPERATURE_K * ageing[0] * age + 0.03 * noise[:, 0], -40, 125
        ),
        "humidity_pct": np.clip(
            humidity + 1.5 * bias[1] + _AGE_HUMIDITY_PCT * ageing[1] * age + 0.12 * noise[:, 1], 0, 100
        ),
        "tvoc_ppb": np.clip(tvoc * response * (1 + 0.1 * bias[2] + _NOISE_TVOC * noise[:, 2]), 0, _GAS_LIMIT),
        "eco2_ppm": np.clip(eco2, _ECO2_FLOOR_PPM, _GAS_LIMIT),
        "raw_h2": np.clip(raw_h2, 0, 65_535),
        "raw_ethanol": np.clip(raw_ethanol, 0, 65_535),
        "pressure_hpa": np.clip(
            pressure + 0.5 * bias[6] + _AGE_PRESSURE_HPA * ageing[6] * age + _NOISE_PRESSURE_HPA * noise[:, 6],
            300,
            1100,
        ),
        **_particles(device, age, noise, air.particles),
    }
    if device.has_co:
        # An electrochemical cell: cannot go below zero, drifts by some tenths of a ppm.
        seen = air.co * (1 - _AGE_CO_RESPONSE * wear[2] * age)
        readings["co_ppm"] = np.clip(seen + 0.2 * abs(bias[8]) + 0.15 * noise[:, 13], 0, 5_000)
    else:
        readings["co_ppm"] = np.full(len(moments), np.nan)
    # Adding zero turns -0.0, which rounding may leave, into 0.0.
    return {name: np.round(values, _DECIMALS[name]) + 0.0 for name, values in readings.items()}


def _particles(device: Device, age: Array, noise: Array, there: Array) -> dict[str, Array]:
    """The particle sensor's five values of what is there ``[5, n]``; they keep their order whatever happens."""
    # One laser sees all sizes, so most of its noise is common to them.
    gain = (1 + 0.05 * device.bias[7] + _NOISE_PM * noise[:, 7]) * (1 - _AGE_PM_RESPONSE * device.wear[1] * age)
    dirt = _AGE_PM_UG_M3 * abs(device.ageing[7]) * age
    calibration = np.array([1.0, *SIZE_CALIBRATION])[:, None]
    seen = np.maximum(there * np.maximum(gain, 0.1) + calibration * dirt, 0.0)
    pm2_5, pm1_0, nc0_5, nc1_0, nc2_5 = seen * (1 + _NOISE_SIZE * noise[:, 7:12].T)
    dense = pm2_5 * pm2_5
    nc2_5 = nc2_5 + _COINCIDENCE_GAIN * pm2_5 * dense / (dense + _COINCIDENCE_NC25**2)
    nc0_5 = np.minimum(nc0_5 / (1 + pm2_5 / _COINCIDENCE_NC05), _NC_LIMIT)
    nc1_0 = np.minimum(nc1_0, nc0_5)
    pm1_0 = pm1_0 / (1 + pm2_5 / _COINCIDENCE_PM1)
    pm2_5 = np.minimum(pm2_5, _PM_LIMIT)
    return {
        "pm1_0": np.minimum(pm1_0, pm2_5),
        "pm2_5": pm2_5,
        "nc0_5": nc0_5,
        "nc1_0": nc1_0,
        "nc2_5": np.minimum(nc2_5, nc1_0),
    }


def fall_silent(
    seed: int, faults_per_day: float, number: int, moments: Array, sensors: dict[str, Array], kept: Mask
) -> None:
    """Silences a chip, or the whole device, for a spell; ``sensors`` and ``kept`` are changed in place."""
    for hour in range(math.floor(moments[0] / 3600), math.floor(moments[-1] / 3600) + 1):
        rng = draw(seed, Of.FAULTS, number, hour)
        if rng.random() >= faults_per_day / 24:
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
