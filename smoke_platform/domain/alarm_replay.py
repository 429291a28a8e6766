"""What alarms a model would have raised on live readings: its scores through the rules, after the fact.

Belongs here: rules over readings in the order in which they came, where fire alarms begin, the time watched. Does not:
reading the lake and scoring (``adapters.model_replay``), outcomes of episodes of known truth, the life of an alarm
after it began (``domain.alarm_machine``): whether somebody acknowledges it depends on people and not on the model.

A fire alarm begins when the rules, the model's among them, first assert HIGH or worse; below that it is a warning. It
is over when nothing of MEDIUM or worse has been asserted for the off-delay of fire alarms, as in the alarm path.
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

SECONDS_PER_DAY = 86_400.0
#: A device that reported nothing for longer was not watching; the time does not count as quiet time.
LONGEST_STEP_S = 60.0


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
    begins = alarm_begins(readings.slots, readings.seconds, verdicts.fire_level, verdicts.fire_hold)
    return Replay(scores, scores >= threshold, begins[readings.counted[begins]])


def alarm_begins(slots: Integers, seconds: Floats, level: npt.NDArray[np.uint8], hold: Flags) -> Integers:
    """Rows at which a fire alarm begins, rising.

    Args:
        slots, seconds: int64 and float64 ``[n]``, device and event time of each reading.
        level: uint8 ``[n]``, the worst severity asserted after it.
        hold: bool ``[n]``, whether MEDIUM or worse is still asserted.
    """
    off_delay = POLICIES[Kind.FIRE].off_delay_s
    sounding: set[int] = set()
    gone: dict[int, float] = {}
    begins: list[int] = []
    # Nearly all readings assert nothing: those of a device whose alarm sounds are all that is looked at beside.
    matters = (level > 0) | hold
    busy = np.isin(slots, np.unique(slots[level >= Severity.HIGH]))
    for row in np.flatnonzero(busy & (matters | _after(slots, matters))).tolist():
        slot, now = int(slots[row]), float(seconds[row])
        if slot in gone and now - gone[slot] >= off_delay:
            sounding.discard(slot)
            del gone[slot]
        if matters[row]:
            gone.pop(slot, None)
            if level[row] >= Severity.HIGH and slot not in sounding:
                sounding.add(slot)
                begins.append(row)
        elif slot in sounding:
            gone.setdefault(slot, now)
    return np.array(begins, dtype=np.int64)


def _after(slots: Integers, matters: Flags) -> Flags:
    """The readings that are their device's first after one that mattered."""
    order = np.argsort(slots, kind="stable")
    ordered, of_device = matters[order], slots[order]
    follows = np.zeros(len(slots), dtype=np.bool_)
    follows[1:] = ordered[:-1] & ~ordered[1:] & (of_device[1:] == of_device[:-1])
    answer = np.empty_like(follows)
    answer[order] = follows
    return answer


def watched_days(readings: Readings) -> float:
    """Device-days that the counted readings stand for: from each to its device's next."""
    order = np.lexsort((readings.seconds, readings.slots))
    slots, seconds = readings.slots[order], readings.seconds[order]
    step = np.where(slots[1:] == slots[:-1], seconds[1:] - seconds[:-1], 0.0)
    step = np.append(np.where(step <= LONGEST_STEP_S, step, 0.0), 0.0)
    return float(step[readings.counted[order]].sum() / SECONDS_PER_DAY)
