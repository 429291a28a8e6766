"""What alarms a model would have raised on live readings: its scores through the rules, after the fact.

Belongs here: rules over readings in the order in which they came, where fire alarms begin, the time watched. Does not:
reading the lake and scoring (``adapters.model_replay``), outcomes of episodes of known truth, the life of an alarm
after it began (``domain.alarm_machine``): whether somebody acknowledges it depends on people and not on the model.

A fire alarm begins when the rules, the model's among them, first assert HIGH or worse; below that it is a warning. It
is over when nothing has been asserted for the off-delay of fire alarms, as in the alarm path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smoke_platform.domain import rules
from smoke_platform.domain.alarm_policies import POLICIES
from smoke_platform.domain.alarms import Kind, Severity
from smoke_platform.domain.features import Features

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.uint8]

#: A fire alarm is one of this severity or a worse one; below it are warnings.
FIRE_ALARM = Severity.HIGH
SECONDS_PER_DAY = 86_400.0
#: A device that reported nothing for longer was not watching; the time does not count as quiet time.
LONGEST_STEP_S = 60.0
_OFF_DELAY_S = POLICIES[Kind.FIRE].off_delay_s


@dataclass(frozen=True, slots=True)
class Readings:
    """Readings of several devices in the order in which they came, as arrays of one length ``n``.

    Attributes:
        slots: int64, which device, 0 to D - 1.
        seconds: float64, event time, epoch seconds.
        sensors: float64 ``[n, 13]``, in the order of ``readings.ALL_SENSOR_NAMES``.
        features: float32 ``[n, F]``, of these readings.
        counted: bool, false for those that only warm the devices up.
    """

    slots: Integers
    seconds: Floats
    sensors: Floats
    features: Features
    counted: Flags

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class Replay:
    """One model on ``Readings``.

    Attributes:
        scores: float64 ``[n]``, fire probability.
        called: bool ``[n]``, whether the probability reaches the model's threshold.
        begins: rows at which a fire alarm began, rising; only counted ones.
    """

    scores: Floats
    called: Flags
    begins: Integers


def replay(readings: Readings, scores: Floats, threshold: float) -> Replay:
    """Takes the readings through the rules with a model's scores, each device from a blank state.

    Args:
        scores: float64 ``[n]``, the model's fire probability of each reading.
        threshold: the model's own.
    """
    state = rules.RuleState(int(readings.slots.max()) + 1 if len(readings) else 0)
    verdicts = rules.evaluate(
        state, readings.slots, readings.seconds, readings.sensors, readings.features, scores, threshold
    )
    begins = alarm_begins(readings.slots, readings.seconds, verdicts.fire_level)
    return Replay(scores, scores >= threshold, begins[readings.counted[begins]])


def alarm_begins(slots: Integers, seconds: Floats, levels: Levels) -> Integers:
    """Rows at which a fire alarm begins, rising.

    As in ``domain.alarm_machine`` with an operator who resets at once: a warning that becomes worse begins a fire alarm
    at that moment, one that falls back to a warning goes on, and it is over at a reading that finds nothing asserted
    for the off-delay.

    Args:
        slots, seconds: ``[n]``, device and event time of each reading; a device's readings as they came.
        levels: uint8 ``[n]``, the worst severity that is asserted after each.
    """
    order = np.argsort(slots, kind="stable")
    slots, seconds, levels = slots[order], seconds[order], levels[order]
    places = np.flatnonzero(levels > 0)
    if not len(places):
        return places
    before, after = places[:-1], places[1:]
    off_for = seconds[after - 1] - seconds[np.minimum(before + 1, after - 1)]
    over = (slots[after] != slots[before]) | ((after - before > 1) & (off_for >= _OFF_DELAY_S))
    alarm = np.concatenate([[0], np.cumsum(over)])
    loud = levels[places] >= FIRE_ALARM
    _, first = np.unique(alarm[loud], return_index=True)
    return np.sort(order[places[loud][first]])


def watched_s(slots: Integers, seconds: Floats) -> Floats:
    """Seconds from each reading to its device's next, ``[n]``; 0 after its last one and where it then fell silent.

    Args:
        slots, seconds: ``[n]``, device and event time, in any order.
    """
    order = np.lexsort((seconds, slots))
    step = np.where(np.diff(slots[order]) == 0, np.diff(seconds[order]), 0.0)
    answer = np.zeros(len(slots))
    answer[order[:-1]] = np.where(step <= LONGEST_STEP_S, step, 0.0)
    return answer


def watched_days(readings: Readings) -> float:
    """Device-days that the counted readings stand for: from each to its device's next."""
    return float(watched_s(readings.slots, readings.seconds)[readings.counted].sum() / SECONDS_PER_DAY)
