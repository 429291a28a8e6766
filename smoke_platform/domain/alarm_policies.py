"""How alarms of each kind behave: delays, latching, reminders, how long they may be set aside. One table.

Belongs here: the policies, their reasons and sources. Does not: what is done by them (``domain.alarm_machine``), the
limits that make an alarm (``domain.rules``).

Sources. ANSI/ISA-18.2-2016 and EEMUA 191: on- and off-delays and hysteresis against chattering; a shelf has an end;
about one alarm in ten minutes is what an operator can take, so only what needs somebody now is repeated, and ever more
rarely. EN 54-2: a fire alarm stays until it is reset by hand. The figures themselves are choices of this project.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from smoke_platform.domain.alarms import Kind, Severity

NEVER: Final = math.inf
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0
_LOW, _MEDIUM, _HIGH, _CRITICAL = Severity


@dataclass(frozen=True, slots=True)
class Escalation:
    """An alarm that nobody acknowledges for ``after_s`` seconds while its condition holds becomes ``to``."""

    after_s: float
    to: Severity


@dataclass(frozen=True, slots=True)
class Policy:
    """How alarms of one kind behave. Times in seconds.

    Attributes:
        on_delay_s: event time for which a condition must be asserted before it raises an alarm.
        off_delay_s: event time for which it must be gone before it counts as over.
        latches_from: an alarm whose worst severity was this or more stays after its condition is over until it is
            reset by hand; None: none does.
        needs_acknowledgement: whether one that is over stays until somebody has seen it; for alarms that do not latch.
        auto_close_s: one that is over and that nobody acknowledges closes by itself after this time.
        repeats: severity -> pauses between the reminders of an alarm that nobody acknowledges; none: no reminders.
        keeps_repeating: whether the last pause goes on for ever; otherwise the reminders end with it.
        escalations: severity -> what becomes of one that nobody acknowledges.
        longest_snooze_s: severity -> longest snooze; none: it can't be snoozed.
        longest_shelf_s: longest shelf.
    """

    on_delay_s: float
    off_delay_s: float
    latches_from: Severity | None
    needs_acknowledgement: bool
    auto_close_s: float
    repeats: Mapping[Severity, tuple[float, ...]]
    keeps_repeating: bool
    escalations: Mapping[Severity, Escalation]
    longest_snooze_s: Mapping[Severity, float]
    longest_shelf_s: float

    def latches(self, peak: int) -> bool:
        """Whether an alarm with this worst severity stays until it is reset."""
        return self.latches_from is not None and peak >= self.latches_from


def _all(seconds: float) -> Mapping[Severity, float]:
    return dict.fromkeys(Severity, seconds)


#: On-delays are 0: rules, faults, quality and silence have persistence of their own, and a message that is no reading
#: has no time on which a delay could run.
POLICIES: Final[Mapping[Kind, Policy]] = MappingProxyType(
    {
        Kind.FIRE: Policy(
            on_delay_s=0.0,
            off_delay_s=_MINUTE,
            # EN 54-2: a fire alarm stays until it is reset by hand. A warning is no fire alarm.
            latches_from=_HIGH,
            needs_acknowledgement=True,
            auto_close_s=_DAY,
            repeats={
                # Warnings (LOW, MEDIUM) are told once.
                _HIGH: (5 * _MINUTE, 10 * _MINUTE, 30 * _MINUTE, _HOUR),
                _CRITICAL: (*[_MINUTE] * 5, *[5 * _MINUTE] * 3, 10 * _MINUTE, 30 * _MINUTE, _HOUR),
            },
            # A fire that nobody has seen must not fall silent.
            keeps_repeating=True,
            # What is critical is told at once instead of once in ten minutes. Warnings stay warnings: nobody's looking
            # makes no fire of them.
            escalations={_HIGH: Escalation(5 * _MINUTE, _CRITICAL)},
            longest_snooze_s={_LOW: _HOUR, _MEDIUM: _HOUR, _HIGH: 15 * _MINUTE, _CRITICAL: 5 * _MINUTE},
            # A shift: who shelved it is still there when it ends.
            longest_shelf_s=8 * _HOUR,
        ),
        Kind.SENSOR_FAULT: Policy(
            on_delay_s=0.0,
            off_delay_s=5 * _MINUTE,
            latches_from=None,
            needs_acknowledgement=True,
            auto_close_s=_DAY,
            repeats={_HIGH: (_HOUR, 4 * _HOUR), _CRITICAL: (_HOUR, 4 * _HOUR)},
            keeps_repeating=False,
            escalations={_LOW: Escalation(_DAY, _MEDIUM)},
            longest_snooze_s=_all(_DAY),
            longest_shelf_s=7 * _DAY,
        ),
        Kind.OFFLINE: Policy(
            on_delay_s=0.0,
            off_delay_s=_MINUTE,
            latches_from=None,
            needs_acknowledgement=True,
            auto_close_s=_HOUR,
            repeats={_HIGH: (_HOUR, 4 * _HOUR), _CRITICAL: (_HOUR, 4 * _HOUR)},
            keeps_repeating=False,
            escalations={},
            longest_snooze_s=_all(_DAY),
            longest_shelf_s=30 * _DAY,
        ),
        Kind.DATA_QUALITY: Policy(
            on_delay_s=0.0,
            off_delay_s=5 * _MINUTE,
            latches_from=None,
            # Nobody has to do anything about data that were bad for a while.
            needs_acknowledgement=False,
            auto_close_s=0.0,
            repeats={},
            keeps_repeating=False,
            escalations={_LOW: Escalation(_DAY, _MEDIUM)},
            longest_snooze_s=_all(_DAY),
            longest_shelf_s=30 * _DAY,
        ),
        Kind.PIPELINE: Policy(
            on_delay_s=0.0,
            off_delay_s=10.0,
            latches_from=None,
            needs_acknowledgement=True,
            auto_close_s=_HOUR,
            repeats={_HIGH: (5 * _MINUTE, 15 * _MINUTE, _HOUR), _CRITICAL: (5 * _MINUTE, 15 * _MINUTE, _HOUR)},
            keeps_repeating=False,
            escalations={},
            longest_snooze_s=_all(_HOUR),
            longest_shelf_s=_DAY,
        ),
    }
)
