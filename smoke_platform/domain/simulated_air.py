"""The air of simulated rooms while nothing happens there, and the sizes of what may float in it.

Belongs here: weather, the slow drift of room air, people coming and going, vapour, particle size distributions. Does
not: rooms (``simulated_rooms``), what burns or disturbs (``simulated_fires``, ``simulated_nuisances``), sensors
(``simulated_devices``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from smoke_platform.domain.simulated_draws import Array, Of, draw

DAY_S = 86_400.0
#: Standard atmosphere: pressure at sea level, and the height over which it falls to 1/e.
SEA_LEVEL_HPA, SCALE_HEIGHT_M = 1013.25, 8_434.0
#: The atmosphere's semidiurnal tide at middle latitudes: some 0.5 hPa, maxima at about 10 and 22 h solar time.
TIDE_HPA, TIDE_PEAK_S = 0.5, 10 * 3600.0
#: Weather is an AR(1) process with hourly steps; highs and lows pass in some days, with a spread of 7 hPa.
_WEATHER_STEP_S, _WEATHER_STEPS_PER_DAY, _WEATHER_MEMORY_H = 3600.0, 24, 36.0
WEATHER_PRESSURE_HPA, WEATHER_TEMPERATURE_K, WEATHER_VAPOUR = 7.0, 0.8, 0.10
#: The AR(1) is summed as its moving average and cut off after five memories, where 0.7% is left.
_WEATHER_TERMS = int(5 * _WEATHER_MEMORY_H)
#: Density times heat capacity of air, kJ/(m3 K).
AIR_HEAT: Final = 1.2
#: Molar mass of carbon monoxide, mean molar mass of a fire's vapours, g/mol; molar volume of air at 25 degC, l/mol.
CO_MOLAR_MASS, VOC_MOLAR_MASS, MOLAR_VOLUME = 28.0, 80.0, 24.45
#: 1 g/m3 of water vapour, hPa at room temperature.
VAPOUR_HPA_PER_G: Final = 1.36
#: Periods of the slow, irregular drift of room air, s: from a door's opening to an afternoon.
DRIFT_PERIODS: Final = np.array([397.0, 1_103.0, 3_607.0, 12_007.0])
DRIFT_CHANNELS: Final = 4


def saturation_vapour_pressure(temperature_c: Array | float) -> Any:
    """Over water, hPa; Magnus formula with the constants of Sonntag (1990), good to 0.1% from -45 to 60 degC."""
    return 6.112 * np.exp(17.62 * temperature_c / (243.12 + temperature_c))


# -- particles -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ParticleMode:
    """A lognormal size distribution of particles from 0.3 um on, and how much of it a small optical sensor resolves.

    The sensor reports mass up to 1.0 and 2.5 um, and numbers in the bins 0.3-0.5, 0.5-1.0 and 1.0-2.5 um (the
    public recordings' NC0.5 > NC1.0 > NC2.5 are such bins, not sums).

    Attributes:
        count_median_um: median diameter by number, um.
        spread: geometric standard deviation.
        density: g/cm3.
        resolved: 0 to 1, how far the sensor's ratios follow these sizes (``reported``).
    """

    count_median_um: float
    spread: float
    density: float
    resolved: float = 0.1

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

    def reported(self) -> tuple[float, float, float, float]:
        """As ``per_mass``, as the sensor reports it: mostly its calibration, a little of what is there."""
        return tuple(  # type: ignore[return-value]  # four, as both of them are
            fixed + self.resolved * (own - fixed) for fixed, own in zip(SIZE_CALIBRATION, self.per_mass(), strict=True)
        )


#: PM1.0, NC0.5, NC1.0, NC2.5 for 1 ug/m3 of PM2.5 as the particle sensor of the public recordings (SPS30) has them in
#: clean air and in thin smoke alike, to the third digit: fitted. It does not size particles but spreads one scattering
#: signal over its calibration aerosol (after Kuula et al. 2020 and Tryner et al. 2020, who find its size resolution
#: poor beyond about 1 um). Coarse events do show in the recordings, as excess NC2.5; hence ``resolved``.
SIZE_CALIBRATION: Final = (0.962, 6.624, 1.033, 0.0232)


def _normal_cdf(value: float) -> float:
    return 0.5 * (1.0 + math.erf(value / math.sqrt(2.0)))


#: Smouldering makes larger, liquid particles (0.2-0.4 um); flames make fine soot of low effective density
#: (Mulholland, SFPE Handbook, "Smoke Production and Properties").
SMOULDER_SMOKE: Final = ParticleMode(0.28, 1.8, 1.1)
SOOT: Final = ParticleMode(0.17, 1.9, 1.0)
#: Cooking fume and tobacco: fine droplets (Wallace 2006; Klepeis 2003). Charring food smokes as smouldering wood does.
FUME: Final = ParticleMode(0.15, 1.8, 0.95)
TOBACCO: Final = ParticleMode(0.22, 1.6, 1.1)
#: House dust and droplets: their mass is coarse, yet by number the fine ones lead in what the sensor reports.
DUST: Final = ParticleMode(0.38, 2.0, 2.0, 0.7)
DROPLETS: Final = ParticleMode(0.36, 1.9, 1.0, 0.5)
#: The salts that a humidifier's droplets leave when they dry, and what passes a vacuum cleaner's filter.
FINE_DUST: Final = ParticleMode(0.25, 1.8, 1.8, 0.2)


# -- weather and drift -----------------------------------------------------------------------------------
@lru_cache(maxsize=4_000)
def _weather_shocks(seed: int, day: int) -> Array:
    return np.asarray(draw(seed, Of.WEATHER, day).standard_normal((_WEATHER_STEPS_PER_DAY, 3)))


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


def weather(seed: int, moments: Array) -> tuple[Array, Array, Array]:
    """Pressure, temperature and vapour (each unit variance) at ascending moments, between the hourly steps linear."""
    first = math.floor(moments[0] / _WEATHER_STEP_S)
    last = math.floor(moments[-1] / _WEATHER_STEP_S) + 1
    steps = np.arange(first, last + 1) * _WEATHER_STEP_S
    values = np.array([_weather_at(seed, step) for step in range(first, last + 1)])
    pressure, temperature, vapour = (np.interp(moments, steps, values[:, column]) for column in range(3))
    return pressure, temperature, vapour


def drift(phases: Array, moments: Array) -> Array:
    """Slow irregular change with unit variance: some sines whose periods share no multiple, from these phases on."""
    angles = 2 * math.pi * moments[:, None] / DRIFT_PERIODS + phases
    return np.asarray(np.sin(angles).sum(axis=1) * math.sqrt(2 / len(DRIFT_PERIODS)))


def occupied(morning_s: float, evening_s: float, second_of_day: Array) -> Array:
    """0 to 1: people are there in the morning and in the evening, and come and go within a quarter of an hour."""

    def present(since: float, until: float) -> Array:
        return np.asarray(
            1 / (1 + np.exp(-np.clip((second_of_day - since) / 400, -30, 30)))
            - 1 / (1 + np.exp(-np.clip((second_of_day - until) / 400, -30, 30)))
        )

    morning = present(morning_s - 1800, morning_s + 3600)
    evening = present(evening_s, min(evening_s + 5 * 3600, 23.5 * 3600))
    return np.asarray(np.clip(morning + evening, 0, 1))
