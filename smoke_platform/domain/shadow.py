"""A challenger beside the champion on live readings: how they differ, and what becomes of the challenger.

Belongs here: the figures of one comparison, their sums over several, the decision. Does not: reading and scoring
(``adapters.model_replay``), reports and schedules (``orchestration.model_watch``), the gate (``domain.promotion``),
which a challenger has passed before it is watched and passes again before it is promoted.

Live readings seldom come with the truth. What is known without it: how often the two call fire, raise alarms, and
disagree. A challenger that raises alarms which the champion does not is either more watchful or more nervous; where no
fire is known to have burnt, more alarms are taken for nervousness, and the decision waits for evidence beyond chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from smoke_platform.domain.alarm_replay import Readings, Replay, watched_days
from smoke_platform.domain.paired_comparison import sign_test

Floats = npt.NDArray[np.float64]

HOURS_PER_DAY = 24.0
#: An alarm of one and the next one of the other, at the same device within this time, are the same alarm.
SAME_ALARM_S = 600.0
#: Alarms in known fires may come so much later on average, in seconds.
LATER_S = 10.0
#: Chance below which more alarms, or more missed ones, are taken for real.
SIGNIFICANT = 0.025
#: Score differences are counted in this many equal classes from 0 to 1.
CLASSES = 20


@dataclass(frozen=True, slots=True)
class ShadowFigures:
    """Challenger and champion on the same live readings; every field is a sum, so that windows can be added.

    Attributes:
        readings: compared; ``device_hours`` is the time they stand for.
        unscored: readings to which the challenger gave no probability within 0..1.
        champion_calls, challenger_calls: readings called fire; ``call_disagreements`` by one of the two only.
        champion_alarms, challenger_alarms: fire alarms begun, rules included.
        only_champion, only_challenger: alarms that the other did not raise within ``SAME_ALARM_S``.
        both_in_fire: alarms of both at readings known to be of fire; ``later_in_fire_s``: by how much the challenger's
            came later, seconds summed.
        known: readings with known truth, ``known_fires`` of them of fire; the rest as the names say.
        only_champion_in_fire: of ``only_champion``, those at readings known to be of fire: what the challenger missed.
        only_challenger_in_quiet: of ``only_challenger``, those at readings known not to be of fire.
        difference_sum: of |challenger's - champion's probability|.
    """

    readings: int = 0
    device_hours: float = 0.0
    unscored: int = 0
    champion_calls: int = 0
    challenger_calls: int = 0
    call_disagreements: int = 0
    champion_alarms: int = 0
    challenger_alarms: int = 0
    only_champion: int = 0
    only_challenger: int = 0
    known: int = 0
    known_fires: int = 0
    champion_right: int = 0
    challenger_right: int = 0
    champion_fires_called: int = 0
    challenger_fires_called: int = 0
    only_champion_in_fire: int = 0
    only_challenger_in_fire: int = 0
    only_champion_in_quiet: int = 0
    only_challenger_in_quiet: int = 0
    both_in_fire: int = 0
    later_in_fire_s: float = 0.0
    difference_sum: float = 0.0

    def __add__(self, other: ShadowFigures) -> ShadowFigures:
        return ShadowFigures(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(ShadowFigures)))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ShadowFigures:
        """The figures that ``as_dict`` wrote; fields that an older version did not have are 0."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def per_device_day(self, count: int) -> float | None:
        """A count for each device-day, ``None`` without any time."""
        days = self.device_hours / HOURS_PER_DAY
        return count / days if days > 0 else None

    def detection(self, side: Literal["champion", "challenger"]) -> float | None:
        """Balanced accuracy on readings of known truth, 0..1; plain accuracy where they are all of one class."""
        right, fires_called = (
            (self.champion_right, self.champion_fires_called)
            if side == "champion"
            else (self.challenger_right, self.challenger_fires_called)
        )
        quiet = self.known - self.known_fires
        if not self.known:
            return None
        if not quiet or not self.known_fires:
            return right / self.known
        return (fires_called / self.known_fires + (right - fires_called) / quiet) / 2


@dataclass(frozen=True, slots=True)
class ShadowWindow:
    """One comparison.

    Attributes:
        figures: of the window.
        classes: how many readings' scores differ by how much, ``CLASSES`` equal steps from 0 to 1.
        disagreements: rows at which an alarm of only one of the two began, and whose it was.
    """

    figures: ShadowFigures
    classes: tuple[int, ...]
    disagreements: tuple[tuple[int, Literal["champion", "challenger"]], ...]


def compare(readings: Readings, champion: Replay, challenger: Replay, truth: npt.NDArray[np.float64]) -> ShadowWindow:
    """Compares two models' replays of the same readings.

    Args:
        truth: float64 ``[n]``: 1 where it burns, 0 where it does not, NaN where nobody knows.
    """
    counted = readings.counted
    pairs = _same_alarms(readings, champion.begins, challenger.begins)
    only_champion = np.setdiff1d(champion.begins, [mine for mine, _ in pairs]).astype(np.int64)
    only_challenger = np.setdiff1d(challenger.begins, [its for _, its in pairs]).astype(np.int64)
    known, burning = counted & ~np.isnan(truth), counted & (truth == 1.0)
    usable = np.isfinite(challenger.scores) & (challenger.scores >= 0.0) & (challenger.scores <= 1.0)
    difference = np.abs(challenger.scores - champion.scores)[counted & usable]
    right = truth == 1.0
    in_fire = [(mine, its) for mine, its in pairs if burning[mine] or burning[its]]
    figures = ShadowFigures(
        readings=int(counted.sum()),
        device_hours=watched_days(readings) * HOURS_PER_DAY,
        unscored=int((counted & ~usable).sum()),
        champion_calls=int((champion.called & counted).sum()),
        challenger_calls=int((challenger.called & counted).sum()),
        call_disagreements=int(((champion.called != challenger.called) & counted).sum()),
        champion_alarms=len(champion.begins),
        challenger_alarms=len(challenger.begins),
        only_champion=len(only_champion),
        only_challenger=len(only_challenger),
        known=int(known.sum()),
        known_fires=int(burning.sum()),
        champion_right=int((known & (champion.called == right)).sum()),
        challenger_right=int((known & (challenger.called == right)).sum()),
        champion_fires_called=int((burning & champion.called).sum()),
        challenger_fires_called=int((burning & challenger.called).sum()),
        only_champion_in_fire=int(burning[only_champion].sum()),
        only_challenger_in_fire=int(burning[only_challenger].sum()),
        only_champion_in_quiet=int((known & ~burning)[only_champion].sum()),
        only_challenger_in_quiet=int((known & ~burning)[only_challenger].sum()),
        both_in_fire=len(in_fire),
        later_in_fire_s=float(sum(readings.seconds[its] - readings.seconds[mine] for mine, its in in_fire)),
        difference_sum=float(difference.sum()),
    )
    classes = np.histogram(difference, bins=CLASSES, range=(0.0, 1.0))[0]
    rows: list[tuple[int, Literal["champion", "challenger"]]] = [
        *((int(row), "champion") for row in only_champion),
        *((int(row), "challenger") for row in only_challenger),
    ]
    return ShadowWindow(figures, tuple(int(count) for count in classes), tuple(sorted(rows)))


def _same_alarms(
    readings: Readings, champion: npt.NDArray[np.int64], challenger: npt.NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Alarms of both that are the same, as rows (champion's, challenger's): the closest first, each in one pair."""
    close = sorted(
        (gap, mine, its)
        for slot in np.intersect1d(readings.slots[champion], readings.slots[challenger]).tolist()
        for mine in champion[readings.slots[champion] == slot].tolist()
        for its in challenger[readings.slots[challenger] == slot].tolist()
        if (gap := abs(float(readings.seconds[mine] - readings.seconds[its]))) <= SAME_ALARM_S
    )
    taken: set[tuple[str, int]] = set()
    pairs = []
    for _, mine, its in close:
        if ("champion", mine) not in taken and ("challenger", its) not in taken:
            taken |= {("champion", mine), ("challenger", its)}
            pairs.append((mine, its))
    return pairs


# -- the decision ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChallengerDecision:
    """What becomes of a challenger, and why, in a sentence."""

    action: Literal["promote", "watch", "drop"]
    reason: str


def challenger_decision(so_far: ShadowFigures, least_device_hours: float) -> ChallengerDecision:
    """Whether to promote a challenger, to go on watching it, or to drop it.

    It is dropped as soon as it is known to be worse, and promoted only after its time; in between it is watched. What
    counts against it: readings it could not score; alarms in known fires that only the champion raised, if they are
    more than those that only it raised (one is enough: a fire is not chance); alarms in known fires that come later by
    more than ``LATER_S`` on average; more alarms than the champion's where
    no fire is known, beyond chance (sign test over the alarms that only one of the two raised). Fewer alarms beyond
    chance may be peace or blindness: where nobody knows the truth, a person has to decide, and it is watched on.

    Args:
        so_far: the sums over all windows since it became challenger.
        least_device_hours: that it is watched for.
    """
    fault = _fault(so_far)
    if fault:
        return ChallengerDecision("drop", fault)
    seen, missed = so_far.only_challenger_in_fire, so_far.only_champion_in_fire
    more, fewer = so_far.only_challenger - seen, so_far.only_champion - missed
    watched = (
        f"{so_far.device_hours:.1f} of {least_device_hours:g} device-hours watched; of known fires the champion alone "
        f"alarmed at {missed}, the challenger alone at {seen}; where no fire is known it alone raised {more} alarms, "
        f"the champion alone {fewer}"
    )
    unexplained = fewer - so_far.only_champion_in_quiet
    if sign_test(unexplained, more) < SIGNIFICANT:
        return ChallengerDecision("watch", f"{watched}: that may be peace or blindness, and a person has to decide")
    return ChallengerDecision("watch" if so_far.device_hours < least_device_hours else "promote", watched)


def _fault(so_far: ShadowFigures) -> str:
    """What is known against a challenger, in a sentence; empty where nothing is."""
    if so_far.unscored:
        return f"it gave no usable probability for {so_far.unscored} readings"
    seen, missed = so_far.only_challenger_in_fire, so_far.only_champion_in_fire
    if missed > seen:
        return f"of known fires the champion alone alarmed at {missed}, the challenger alone at {seen}"
    later = so_far.later_in_fire_s / so_far.both_in_fire if so_far.both_in_fire else 0.0
    if later > LATER_S:
        return f"in {so_far.both_in_fire} known fires its alarms came {later:.1f} s later on average"
    more, fewer = so_far.only_challenger - seen, so_far.only_champion - missed
    chance = sign_test(more, fewer)
    if chance < SIGNIFICANT:
        return (
            f"where no fire is known it alone raised {more} alarms, the champion alone {fewer} (sign test {chance:.2g})"
        )
    return ""
