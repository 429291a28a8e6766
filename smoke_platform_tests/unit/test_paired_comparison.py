"""Two detectors on the same fires: differences, intervals and tests against plain enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.domain.alarm_outcomes import AlarmOutcomes, EpisodeOutcome
from smoke_platform.domain.paired_comparison import PairedComparison, compare, sign_test

TAIL = 0.025
#: 10,000 draws leave a quantile within this of the true one (five standard errors).
NOISE = 5 * np.sqrt(TAIL * (1 - TAIL) / 10_000)


def fires(alarmed: Sequence[bool], devices: int = 1, delays: Sequence[float] | None = None) -> list[EpisodeOutcome]:
    """One outcome for each flag; ``devices`` in a row saw the same fire."""
    return [
        EpisodeOutcome(
            episode=f"fire-{place // devices}",
            kind="fire",
            family="wood",
            device=f"d{place % devices}",
            alarmed=flag,
            delay_s=(delays[place] if delays else 10.0) if flag else None,
        )
        for place, flag in enumerate(alarmed)
    ]


def nuisances(alarmed: Sequence[bool]) -> list[EpisodeOutcome]:
    return [EpisodeOutcome(f"n-{place}", "nuisance", "toast", "d0", flag) for place, flag in enumerate(alarmed)]


def outcomes(*episodes: EpisodeOutcome, quiet_alarms: int = 0, days: float = 10.0) -> AlarmOutcomes:
    return AlarmOutcomes(tuple(episodes), quiet_alarms, days)


def of_fires(candidate: Sequence[bool], champion: Sequence[bool], devices: int = 1) -> PairedComparison:
    return compare(outcomes(*fires(candidate, devices)), outcomes(*fires(champion, devices)))


flags = st.lists(st.booleans(), max_size=40)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=5)


@settings(deadline=None)
@given(pairs)
def test_the_interval_is_that_of_all_redrawings(seen: list[tuple[bool, bool]]) -> None:
    """An interval that is too narrow would call chance a loss, one too wide a loss chance."""
    found = of_fires([mine for mine, _ in seen], [theirs for _, theirs in seen]).misses
    differences = [int(not mine) - int(not theirs) for mine, theirs in seen]
    totals = np.array([sum(draw) for draw in itertools.product(differences, repeat=len(differences))])
    for value, tail in ((found.low, TAIL), (found.high, 1 - TAIL)):
        assert (totals < value).mean() <= tail + NOISE
        assert (totals <= value).mean() >= tail - NOISE


@given(st.integers(0, 9), st.integers(0, 9))
def test_the_sign_test_counts_all_ways_to_disagree(worse: int, better: int) -> None:
    """A wrong probability would let a detector through that is worse beyond chance."""
    ways = list(itertools.product((0, 1), repeat=worse + better))
    assert sign_test(worse, better) == pytest.approx(sum(sum(way) >= worse for way in ways) / len(ways))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40), st.integers(1, 3))
def test_counts_are_those_of_the_disagreements(seen: list[tuple[bool, bool]], devices: int) -> None:
    """A fire that three devices saw must count once where chance is judged, and three times where misses are."""
    found = of_fires([mine for mine, _ in seen], [theirs for _, theirs in seen], devices).misses
    net: dict[int, int] = {}
    for place, (mine, theirs) in enumerate(seen):
        net[place // devices] = net.get(place // devices, 0) + int(not mine) - int(not theirs)
    assert found.episodes == len(net)
    assert found.candidate == sum(not mine for mine, _ in seen)
    assert found.more == sum(net.values())
    assert found.worse == sum(difference > 0 for difference in net.values())
    assert found.better == sum(difference < 0 for difference in net.values())
    assert len(found.only_candidate) == found.worse
    assert found.low <= found.high


@settings(deadline=None)
@given(flags, flags, st.integers(0, 20), st.integers(0, 20))
def test_swapping_the_two_turns_every_difference_round(
    mine: list[bool], theirs: list[bool], quiet: int, other_quiet: int
) -> None:
    """A comparison that favours whoever stands first would keep or replace champions by their place."""
    count = min(len(mine), len(theirs))
    first = outcomes(*fires(mine[:count]), *nuisances(mine[:count]), quiet_alarms=quiet)
    second = outcomes(*fires(theirs[:count]), *nuisances(theirs[:count]), quiet_alarms=other_quiet)
    there, back = compare(first, second), compare(second, first)
    for one, other in ((there.misses, back.misses), (there.false_alarms, back.false_alarms)):
        assert (one.more, one.worse, one.better) == (-other.more, other.better, other.worse)
    assert there.false_alarms.candidate == sum(mine[:count]) + quiet


def test_the_same_outcomes_give_the_same_interval() -> None:
    """A verdict that changes when it is asked again is no verdict."""
    mine, theirs = [True, False, True, False] * 10, [True, True, False, False] * 10
    assert of_fires(mine, theirs) == of_fires(mine, theirs)


def test_a_disagreement_in_one_direction_says_so() -> None:
    """The interval of a one-sided difference reaches down to 0 whatever happened; nobody may take that for chance."""
    one_more = of_fires([True] * 24 + [False], [True] * 25).misses
    assert (one_more.more, one_more.one_sided, one_more.beyond_chance) == (1, True, False)
    many_more = of_fires([True] * 15 + [False] * 10, [True] * 25).misses
    assert many_more.beyond_chance
    balanced = of_fires([False, True, *[True] * 20], [True, False, *[True] * 20]).misses
    assert (balanced.more, balanced.one_sided) == (0, False)
    assert balanced.low < 0 < balanced.high


def test_delays_are_compared_on_fires_that_both_saw() -> None:
    """A detector that sees more of the slow fires would look slower than one that misses them."""
    mine = outcomes(*fires([True, True, True], delays=[20.0, 30.0, 900.0]))
    theirs = outcomes(*fires([True, True, False], delays=[10.0, 24.0, 0.0]))
    delay = compare(mine, theirs).delay
    assert (delay.fires, delay.mean, delay.median) == (2, 8.0, 8.0)
    assert delay.low is not None
    assert delay.high is not None
    assert 6.0 <= delay.low <= 8.0 <= delay.high <= 10.0
    assert compare(outcomes(), outcomes()).delay.mean is None


def test_more_alarms_in_quiet_air_weigh_like_nuisances() -> None:
    """A detector that cries in quiet rooms would pass because no nuisance was near."""
    found = compare(outcomes(quiet_alarms=12), outcomes(quiet_alarms=2)).false_alarms
    assert (found.more, found.worse, found.better) == (10, 10, 0)
    assert found.beyond_chance
    same = compare(outcomes(quiet_alarms=500), outcomes(quiet_alarms=500)).false_alarms
    assert (same.more, same.low, same.high, same.p_worse) == (0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("mine", "theirs", "fault"),
    [
        (outcomes(*fires([True])), outcomes(*fires([True, True])), "fire-1 at d0"),
        (outcomes(*fires([True]), *fires([True])), outcomes(*fires([True])), "is there twice"),
        (outcomes(days=1.0), outcomes(days=2.0), "quiet time differs"),
        (outcomes(*nuisances([True])), outcomes(*fires([True])), "the episodes differ"),
    ],
)
def test_what_was_not_met_by_both_is_not_compared(mine: AlarmOutcomes, theirs: AlarmOutcomes, fault: str) -> None:
    """Outcomes of different fires would make a paired comparison out of an unpaired one."""
    with pytest.raises(ValueError, match=fault):
        compare(mine, theirs)
