"""What alarms did to fires, to nuisances and to quiet air: the outcomes by which detectors are compared.

Belongs here: the outcome of one episode and the plain sums over them. Does not: how alarms come about
(``domain.detection``), folds and figures per reading (``domain.evaluation``), the comparison of two detectors on the
same episodes (``domain.paired_comparison``), files and plots.

The unit is the episode and the device-day, never the reading: readings a second apart are all but copies, so that
thousands of them are the evidence of one fire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DAYS_PER_YEAR = 365.25


@dataclass(frozen=True, slots=True)
class EpisodeOutcome:
    """What happened to one fire or nuisance.

    Attributes:
        episode: its id, the same for every detector that is compared on it.
        family: of burning or of disturbance.
        device: that saw it; a fire seen by two devices is two outcomes.
        alarmed: whether a fire alarm began between onset and end.
        delay_s: from onset to that alarm, ``None`` without one.
    """

    episode: str
    kind: Literal["fire", "nuisance"]
    family: str
    device: str
    alarmed: bool
    delay_s: float | None = None


@dataclass(frozen=True, slots=True)
class AlarmOutcomes:
    """The outcomes of one detector on one set of episodes.

    Attributes:
        episodes: each once.
        quiet_alarms: fire alarms that began outside of any episode.
        quiet_device_days: time in which they could, in days of 86,400 s summed over devices.
    """

    episodes: tuple[EpisodeOutcome, ...]
    quiet_alarms: int
    quiet_device_days: float

    def of(self, kind: Literal["fire", "nuisance"]) -> tuple[EpisodeOutcome, ...]:
        return tuple(outcome for outcome in self.episodes if outcome.kind == kind)

    @property
    def missed(self) -> tuple[EpisodeOutcome, ...]:
        """Fires without an alarm."""
        return tuple(outcome for outcome in self.of("fire") if not outcome.alarmed)

    @property
    def false_alarms(self) -> int:
        """Nuisances that were taken for fire, and alarms in quiet air."""
        return sum(outcome.alarmed for outcome in self.of("nuisance")) + self.quiet_alarms

    @property
    def quiet_alarms_per_device_year(self) -> float:
        """Infinite where there was no quiet time to judge by."""
        years = self.quiet_device_days / DAYS_PER_YEAR
        return self.quiet_alarms / years if years > 0 else float("inf")
