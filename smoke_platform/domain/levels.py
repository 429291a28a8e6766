"""How bad one value of one sensor is, taken alone: LOW, MEDIUM, HIGH, CRITICAL.

Belongs here: the table of single-value limits and the level of a value. Does not: alarms. A level colours a value on a
screen and puts it in words; what raises an alarm is a rule (``domain.rules``), which asks for persistence, hysteresis
and, where one sensor alone can be fooled, for a second one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_BY_NAME


@dataclass(frozen=True, slots=True)
class Level:
    """The limits of one sensor, in its unit; a value at or beyond a limit has that level.

    Attributes:
        high: rising limits of LOW, MEDIUM, HIGH, CRITICAL.
        low: falling limits of LOW and MEDIUM, where too little is worth a word as well; cold and dry air are never a
            fire, so there are no others.
    """

    sensor: str
    high: tuple[float, float, float, float]
    source: str
    low: tuple[float, float] | None = None

    @property
    def unit(self) -> str:
        return SENSOR_BY_NAME[self.sensor].unit


#: From optical density to mass: D dB/m is ln(10)/10 D 1/m, over the mass-specific extinction coefficient.
EXTINCTION_M2_PER_G = 8.7


def smoke_of_obscuration(decibel_per_metre: float) -> float:
    """Mass of flaming smoke that dims light by so much, in ug/m3.

    Extinction 8.7 m2/g: Mulholland and Croarkin (2000), red light, flames. Smouldering smoke and the infrared light of
    alarms extinguish less for each gram, so that the same obscuration is more mass: the figure errs to the early side.
    """
    return float(np.log(10.0) / 10.0 * decibel_per_metre / EXTINCTION_M2_PER_G * 1e6)


#: Smoke at 0.05, 0.1 and 0.2 dB/m rounded to two digits: 1,323, 2,647 and 5,293 ug/m3.
SMOKE_WARNING, SMOKE_ALARM, SMOKE_DENSE = 1_300.0, 2_600.0, 5_300.0

_SMOKE_SOURCE = (
    "LOW: 24 h limit of the US EPA. The others: 0.05, 0.1 and 0.2 dB/m, the span in "
    "which smoke alarms after EN 14604 and EN 54-7 respond, at 8.7 m2/g (Mulholland and Croarkin 2000)"
)

LEVELS: Final[tuple[Level, ...]] = (
    Level(
        "temperature_c",
        (40.0, 50.0, 54.0, 65.0),
        "HIGH and CRITICAL: static response of EN 54-5 class A1. The others: judgement",
        (0.0, -20.0),
    ),
    Level("humidity_pct", (80.0, 95.0, np.inf, np.inf), "judgement: mould, condensation; never a fire", (15.0, 5.0)),
    Level(
        "tvoc_ppb",
        (1_000.0, 5_000.0, 20_000.0, 60_000.0),
        "LOW: about 3 mg/m3, level 4 of the German indoor air guide values; CRITICAL: the chip's own limit. Judgement",
    ),
    Level(
        "eco2_ppm",
        (1_000.0, 5_000.0, 15_000.0, 30_000.0),
        "LOW: indoor air (Pettenkofer); MEDIUM and CRITICAL: 8 h and 15 min occupational limits (CO2). HIGH: judgement",
    ),
    Level("pm1_0", (35.0, SMOKE_WARNING, SMOKE_ALARM, SMOKE_DENSE), "as pm2_5: smoke is fine"),
    Level("pm2_5", (35.0, SMOKE_WARNING, SMOKE_ALARM, SMOKE_DENSE), _SMOKE_SOURCE),
    Level(
        "co_ppm",
        (30.0, 50.0, 100.0, 300.0),
        "test levels of EN 50291-1: 30 must not alarm within 2 h, 50 must in 60 to 90 min, 100 in 10 to 40, 300 in 3",
    ),
)

_HIGH = np.full((4, len(ALL_SENSOR_NAMES)), np.inf)
_LOW = np.full((2, len(ALL_SENSOR_NAMES)), -np.inf)
for _level in LEVELS:
    _place = ALL_SENSOR_NAMES.index(_level.sensor)
    _HIGH[:, _place] = _level.high
    if _level.low is not None:
        _LOW[:, _place] = _level.low


def levels(sensors: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The level of each value, 0 (none) to 4 (CRITICAL).

    Args:
        sensors: float64 ``[n, 13]`` in the order of ``readings.ALL_SENSOR_NAMES``; NaN means not measured.

    Returns:
        uint8 ``[n, 13]``; 0 where nothing was measured, and for sensors without limits.
    """
    rising = sum((sensors >= limits).astype(np.uint8) for limits in _HIGH)
    falling = sum((sensors <= limits).astype(np.uint8) for limits in _LOW)
    answer: npt.NDArray[np.uint8] = np.maximum(rising, falling)
    return answer
