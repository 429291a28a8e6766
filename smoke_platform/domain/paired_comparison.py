"""Two detectors on the same fires: what only one of them misses, takes for fire, or sees later.

Belongs here: pairing the outcomes of candidate and champion, their differences with intervals and exact tests. Does
not: how outcomes come about (``domain.alarm_outcomes``, ``domain.alarm_replay``), what difference is still accepted
(``domain.promotion``).

Both detectors have met the very same episodes, so what counts is where they disagree: the many fires that both see say
nothing about which one is better. Chance is judged in two ways:

* *Interval*: whole episodes are drawn anew, with replacement, as often as there are (bootstrap). A fire seen by three
  devices is one draw, since the three share its smoke. The seed is fixed: the same outcomes give the same interval.
* *Sign test* (McNemar's, exact): if both were equally good, each episode on which they disagree would speak for either
  with equal chance.

Where all disagreements point one way the interval begins at 0 whatever happened, because no draw can show the other
way. ``one_sided`` says so; to call such a difference chance would be wishful.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smoke_platform.domain.alarm_outcomes import AlarmOutcomes, EpisodeOutcome

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 20_240_501


@dataclass(frozen=True, slots=True)
class PairedCount:
    """Errors of one kind that both detectors made on the same episodes.

    Attributes:
        episodes: how many there were; a fire counts once however many devices saw it.
        candidate, champion: errors of each.
        worse, better: episodes on which the candidate, or the champion, made more errors; in quiet air, alarms that one
            of them raised beyond the other's number.
        low, high: of candidate - champion, 95% interval.
        p_worse: chance that so many of the disagreements or more speak against a candidate that is as good; 1 where
            there are none.
        only_candidate: episodes on which the candidate made more errors, by name.
    """

    episodes: int
    candidate: int
    champion: int
    worse: int
    better: int
    low: float
    high: float
    p_worse: float
    only_candidate: tuple[str, ...] = ()

    @property
    def more(self) -> int:
        """How many more errors the candidate made; negative where it made fewer."""
        return self.candidate - self.champion

    @property
    def one_sided(self) -> bool:
        """Whether the candidate is worse and no disagreement points the other way, so that the interval is silent."""
        return self.worse > 0 and self.better == 0

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves out that both are equally good."""
        return self.low > 0.0


@dataclass(frozen=True, slots=True)
class PairedDelay:
    """Seconds by which the candidate's alarm came later, over the fires that both saw.

    Attributes:
        fires: that both saw, by whichever device.
        mean, median: of the differences, ``None`` where no fire was seen by both.
        low, high: of the mean, 95% interval.
    """

    fires: int
    mean: float | None = None
    median: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Candidate and champion on the same episodes."""

    misses: PairedCount
    false_alarms: PairedCount
    delay: PairedDelay
    quiet_device_days: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(candidate: AlarmOutcomes, champion: AlarmOutcomes, *, seed: int = SEED) -> PairedComparison:
    """Compares two detectors that met the same episodes.

    Args:
        candidate, champion: outcomes on the same fires and nuisances of the same devices.
        seed: of the intervals.

    Raises:
        ValueError: when the episodes are not the same, one is there twice, or the quiet time differs.
    """
    mine, theirs = _by_key(candidate), _by_key(champion)
    if mine.keys() != theirs.keys():
        strange = sorted(f"{episode} at {device}" for _, episode, device in mine.keys() ^ theirs.keys())
        raise ValueError(f"the episodes differ, first of all {', '.join(strange[:3])}")
    if not math.isclose(candidate.quiet_device_days, champion.quiet_device_days, rel_tol=1e-6, abs_tol=1e-9):
        raise ValueError(f"quiet time differs: {candidate.quiet_device_days:g} and {champion.quiet_device_days:g} days")
    rng = np.random.default_rng(seed)
    fires = {key: (int(not mine[key].alarmed), int(not theirs[key].alarmed)) for key in mine if key[0] == "fire"}
    nuisances = {key: (int(mine[key].alarmed), int(theirs[key].alarmed)) for key in mine if key[0] == "nuisance"}
    return PairedComparison(
        misses=_count(fires, rng),
        false_alarms=_count(nuisances, rng, candidate.quiet_alarms, champion.quiet_alarms),
        delay=_delay(mine, theirs, rng),
        quiet_device_days=candidate.quiet_device_days,
    )


_Key = tuple[str, str, str]


def _by_key(outcomes: AlarmOutcomes) -> dict[_Key, EpisodeOutcome]:
    answer: dict[_Key, EpisodeOutcome] = {}
    for outcome in outcomes.episodes:
        key = (outcome.kind, outcome.episode, outcome.device)
        if key in answer:
            raise ValueError(f"episode {outcome.episode} at {outcome.device} is there twice")
        answer[key] = outcome
    return answer


def _count(
    errors: Mapping[_Key, tuple[int, int]], rng: np.random.Generator, quiet_candidate: int = 0, quiet_champion: int = 0
) -> PairedCount:
    net: dict[str, int] = defaultdict(int)
    for (_, episode, _), (mine, theirs) in errors.items():
        net[episode] += mine - theirs
    differences = np.array(list(net.values()), dtype=np.int64)
    # Of the alarms in quiet air only the numbers are known. As many as both raised count as shared: the least
    # disagreement that the numbers allow, so that what one raises beyond the other weighs most.
    excess = quiet_candidate - quiet_champion
    totals = _redrawn_totals(differences, rng)
    if excess:
        totals = totals + math.copysign(1, excess) * rng.poisson(abs(excess), RESAMPLES)
    low, high = _interval(totals)
    worse = int((differences > 0).sum()) + max(excess, 0)
    better = int((differences < 0).sum()) + max(-excess, 0)
    return PairedCount(
        episodes=len(net),
        candidate=sum(mine for mine, _ in errors.values()) + quiet_candidate,
        champion=sum(theirs for _, theirs in errors.values()) + quiet_champion,
        worse=worse,
        better=better,
        low=low,
        high=high,
        p_worse=sign_test(worse, better),
        only_candidate=tuple(sorted(episode for episode, difference in net.items() if difference > 0)),
    )


def _redrawn_totals(differences: npt.NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Totals of as many draws with replacement, ``[RESAMPLES]``."""
    if not len(differences):
        return np.zeros(RESAMPLES)
    # Episodes of one difference are alike, so that drawing how many of each kind come is the same as drawing episodes.
    values, counts = np.unique(differences, return_counts=True)
    drawn = rng.multinomial(len(differences), counts / len(differences), size=RESAMPLES)
    totals: Floats = (drawn @ values).astype(np.float64)
    return totals


def _interval(totals: Floats) -> tuple[float, float]:
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(totals, [tail, 1.0 - tail], method="inverted_cdf")
    return float(low), float(high)


def sign_test(worse: int, better: int) -> float:
    """Chance of ``worse`` or more heads in ``worse + better`` throws of a fair coin.

    >>> sign_test(3, 0), sign_test(0, 0)
    (0.125, 1.0)
    """
    count = worse + better
    return sum(math.comb(count, heads) for heads in range(worse, count + 1)) / (1 << count)


def _delay(
    mine: Mapping[_Key, EpisodeOutcome], theirs: Mapping[_Key, EpisodeOutcome], rng: np.random.Generator
) -> PairedDelay:
    of_fire: dict[str, list[float]] = defaultdict(list)
    for key, outcome in mine.items():
        other = theirs[key]
        if key[0] == "fire" and outcome.delay_s is not None and other.delay_s is not None:
            of_fire[key[1]].append(outcome.delay_s - other.delay_s)
    differences = np.array([_mean(values) for values in of_fire.values()])
    count = len(differences)
    if not count:
        return PairedDelay(0)
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES // 5)
    low, high = _interval(drawn @ differences / count)
    return PairedDelay(count, float(differences.mean()), float(np.median(differences)), low, high)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
