"""What is wrong with a sensor, and how good a device's data is: the tables of limits.

Belongs here: the faults, their limits and reasons, the formula of data quality. Does not: the arithmetic over readings
(``domain.rules``, which works fire rules and these out in one pass), silence of a whole device (``domain.detection``).

All limits here are judgement, held against recordings of sensors that work; no standard covers them. They are wide on
purpose: a fault is looked into by day, and no fault stops a rule from raising a fire alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smoke_platform.domain.alarms import Severity
from smoke_platform.domain.readings import SENSOR_BY_NAME


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which a sensor can be wrong.

    Attributes:
        name: as it stands in an alarm's evidence.
        family: stuck, drifting, noisy or out_of_range.
        sensor: whose fault; empty where a message does not say.
        severity: MEDIUM where the device may miss a fire, LOW else.
        raises_at: in ``unit``; for ``drifting`` a negative sign of ``direction`` means at or below.
        holds_from: while the quantity is beyond this the fault is not over.
        persist_s, readings: how long the condition must have lasted, and in how many readings.
    """

    name: str
    family: str
    sensor: str
    severity: Severity
    raises_at: float
    holds_from: float
    unit: str
    persist_s: float
    readings: int
    meaning: str
    direction: int = 1


#: A value that repeats to the last digit for an hour of at least 60 readings. In recordings of working sensors the
#: longest repetition of the sensors below is 38 readings.
STUCK_S, STUCK_READINGS = 3_600.0, 60
#: Sensors that always move a little in their last digit. Gas equivalents rest on their lower bound for hours in clean
#: air, and counts of coarse particles on zero, so that these say nothing.
MOVING: Final[tuple[str, ...]] = (
    "temperature_c",
    "humidity_pct",
    "raw_h2",
    "raw_ethanol",
    "pressure_hpa",
    "nc0_5",
)
_BLIND: Final = frozenset({"temperature_c", "raw_h2", "nc0_5"})

#: Mean zigzag per reading beyond which a sensor is noisy: some ten times what working sensors show.
NOISE_LIMITS: Final[dict[str, float]] = {
    "temperature_c": 0.5,
    "humidity_pct": 1.5,
    "raw_h2": 150.0,
    "raw_ethanol": 150.0,
    "pressure_hpa": 0.5,
}
#: Readings over which zigzag, and the three shares of data quality, are averaged (exponentially).
NOISE_READINGS = 64.0
#: One reading's zigzag counts as no more than this many limits, so that it takes dozens of them.
NOISE_CAP = 4.0
#: A sensor is back in order below this share of its limit.
NOISE_HOLD = 0.5

#: A value drifts when it has been beyond a limit, without once coming back, for this long: no fire lasts so long.
DRIFT_S, DRIFT_READINGS = 6 * 3_600.0, 60

#: A message refused because a value was out of range or no number counts one; each good reading takes this off.
OUT_OF_RANGE_LEAK = 0.05
OUT_OF_RANGE_RAISE, OUT_OF_RANGE_HOLD, OUT_OF_RANGE_MOST = 3.0, 1.0, 10.0


def _drift(sensor: str, direction: int, raises_at: float, holds_from: float, meaning: str) -> Fault:
    name = f"drifting_{sensor}_{'high' if direction > 0 else 'low'}"
    unit = SENSOR_BY_NAME[sensor].unit
    severity = Severity.MEDIUM if sensor != "humidity_pct" else Severity.LOW
    return Fault(
        name, "drifting", sensor, severity, raises_at, holds_from, unit, DRIFT_S, DRIFT_READINGS, meaning, direction
    )


DRIFTING: Final[tuple[Fault, ...]] = (
    _drift("pm2_5", 1, 500.0, 250.0, "the optical chamber is dirty: no room is full of smoke for six hours unnoticed"),
    _drift("tvoc_ppb", 1, 20_000.0, 10_000.0, "the gas chip's baseline is lost"),
    _drift("eco2_ppm", 1, 15_000.0, 7_500.0, "the gas chip's baseline is lost"),
    _drift("co_ppm", 1, 20.0, 10.0, "the cell's zero is lost"),
    _drift("humidity_pct", 1, 99.9, 98.0, "the humidity sensor is wet or broken"),
    _drift("humidity_pct", -1, 1.0, 2.0, "the humidity sensor is broken"),
    _drift("temperature_c", -1, -35.0, -30.0, "colder than any place such a device works in"),
)
STUCK: Final[tuple[Fault, ...]] = tuple(
    Fault(
        f"stuck_{sensor}",
        "stuck",
        sensor,
        Severity.MEDIUM if sensor in _BLIND else Severity.LOW,
        0.0,
        0.0,
        SENSOR_BY_NAME[sensor].unit,
        STUCK_S,
        STUCK_READINGS,
        "the same value to the last digit, from a sensor that always moves",
    )
    for sensor in MOVING
)
NOISY: Final[tuple[Fault, ...]] = tuple(
    Fault(
        f"noisy_{sensor}",
        "noisy",
        sensor,
        Severity.LOW,
        limit,
        limit * NOISE_HOLD,
        SENSOR_BY_NAME[sensor].unit,
        0.0,
        int(NOISE_READINGS / NOISE_CAP),
        "mean zigzag: of two steps in opposite directions the smaller one",
    )
    for sensor, limit in NOISE_LIMITS.items()
)
OUT_OF_RANGE: Final = Fault(
    "out_of_range",
    "out_of_range",
    "",
    Severity.MEDIUM,
    OUT_OF_RANGE_RAISE,
    OUT_OF_RANGE_HOLD,
    "messages",
    0.0,
    int(OUT_OF_RANGE_RAISE),
    f"messages refused for such values, less {OUT_OF_RANGE_LEAK:g} for each good reading",
)

#: In the order of the bits of ``Verdicts.faults``.
FAULTS: Final[tuple[Fault, ...]] = (*DRIFTING, *STUCK, *NOISY, OUT_OF_RANGE)

#: quality = (1 - missing) (1 - rejected) (1 - late): shares of the fitted sensors that are missing, of messages that
#: were no readings, and of readings older than the device's newest; each averaged over QUALITY_READINGS messages.
QUALITY_READINGS = 128.0
#: Below these the quality is LOW, MEDIUM, HIGH; from QUALITY_HOLD on it is good again.
QUALITY_LEVELS: Final[tuple[float, float, float]] = (0.75, 0.50, 0.25)
QUALITY_HOLD = 0.85
