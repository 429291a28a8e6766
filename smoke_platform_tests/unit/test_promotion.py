"""The gate, the history of champions, the way back and retention, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.domain.paired_comparison import PairedComparison, PairedCount, PairedDelay, sign_test
from smoke_platform.domain.promotion import (
    CHAMPION_TOLERANCE,
    CONDITIONS,
    DELAY_TOLERANCE_S,
    LEAST_FIRES,
    ORIGIN,
    PARITY_LARGEST_DIFFERENCE,
    PARITY_LARGEST_SHARE,
    Audit,
    Change,
    Figures,
    Limits,
    LivePerformance,
    Parity,
    RollbackLimits,
    audit_of,
    champions_before,
    judge,
    outdated,
    rollback_decision,
    rollback_targets,
    unknown_origin,
    withdrawn,
)

LIMITS = Limits(min_accuracy=0.80, min_f1=0.75)


def count(
    worse: int = 0, better: int = 0, *, both: int = 1, episodes: int = 200, low: float | None = None
) -> PairedCount:
    """Errors where the two disagree on ``worse + better`` episodes; ``low`` of the interval, else a guess of it."""
    spread = 2 * math.sqrt(worse + better)
    least = worse - better - spread if better else 0.0
    return PairedCount(
        episodes=episodes,
        candidate=both + worse,
        champion=both + better,
        worse=worse,
        better=better,
        low=least if low is None else low,
        high=worse - better + spread,
        p_worse=sign_test(worse, better),
        only_candidate=tuple(f"fire-{place}" for place in range(worse)),
    )


def paired(
    misses: PairedCount | None = None, false_alarms: PairedCount | None = None, delay: PairedDelay | None = None
) -> PairedComparison:
    return PairedComparison(
        misses or count(), false_alarms or count(), delay or PairedDelay(100, 0.0, 0.0, -0.1, 0.1), 30.0
    )


GOOD = Figures(
    accuracy=0.95,
    f1=0.90,
    parity=Parity(rows=100_000, rows_with_nan=30_000, largest_difference=2e-7, beyond_tolerance=0),
    latency_us=12.0,
    feature_version="1-a",
    platform_feature_version="1-a",
    holdout_f1=0.91,
    champion_f1=0.90,
    audit=Audit(clean=True),
    paired=paired(),
)
share = st.floats(0, 1)
figures = st.builds(
    Figures,
    accuracy=share,
    f1=share,
    parity=st.builds(
        Parity,
        rows=st.integers(0, 300_000),
        rows_with_nan=st.integers(0, 1_000),
        largest_difference=st.floats(0, 1),
        beyond_tolerance=st.integers(0, 100),
    ),
    latency_us=st.floats(0, 5_000),
    feature_version=st.sampled_from(["1-a", "1-b"]),
    platform_feature_version=st.just("1-a"),
    holdout_f1=st.none() | share,
    champion_f1=st.none() | share,
    audit=st.sampled_from([None, Audit(True), Audit(True, 1), Audit(False, 2, ("leaks: the hour tells the label",))]),
    unknown=st.sampled_from([(), ("seed", "trained_on.fingerprint")]),
    paired=st.none()
    | st.builds(
        paired,
        misses=st.builds(count, st.integers(0, 9), st.integers(0, 9), episodes=st.sampled_from([5, 30, 500])),
        false_alarms=st.builds(count, st.integers(0, 40), st.integers(0, 9), episodes=st.sampled_from([0, 30, 500])),
        delay=st.sampled_from(
            [PairedDelay(0), PairedDelay(9, 9.0, 9.0, 1.0, 20.0), PairedDelay(9, 9.0, 9.0, -1.0, 20.0)]
        ),
    ),
    uncompared=st.sampled_from(["", "no rows are held out"]),
)


def plain_misses(candidate: Figures) -> bool:
    if candidate.paired is None:
        return not candidate.uncompared
    found = candidate.paired.misses
    if found.episodes < LEAST_FIRES:
        return False
    if found.more <= 0:
        return True
    by_chance = found.low <= 0 and found.better > 0
    return by_chance and found.more <= found.episodes // 100


def plain_false_alarms(candidate: Figures) -> bool:
    if candidate.paired is None:
        return not candidate.uncompared
    found = candidate.paired.false_alarms
    return found.more <= 0 or (found.low <= 0 and found.more <= max(1, found.episodes // 20))


def plain_delay(candidate: Figures) -> bool:
    if candidate.paired is None:
        return not candidate.uncompared
    delay = candidate.paired.delay
    return delay.mean is None or delay.low is None or delay.low <= 0 or delay.mean <= DELAY_TOLERANCE_S


def test_a_good_candidate_passes() -> None:
    """A gate that nothing passes leaves the platform without a model."""
    assert judge(GOOD, LIMITS).passed
    assert judge(replace(GOOD, champion_f1=None, holdout_f1=None, paired=None), LIMITS).passed
    assert {condition.name for condition in judge(GOOD, LIMITS).conditions} == set(CONDITIONS)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"accuracy": 0.79}, "accuracy"),
        ({"f1": 0.74}, "f1"),
        ({"f1": float("nan")}, "f1"),
        ({"parity": replace(GOOD.parity, rows=99_999)}, "parity_rows"),
        ({"parity": replace(GOOD.parity, rows_with_nan=0)}, "parity_nan_rows"),
        ({"parity": replace(GOOD.parity, beyond_tolerance=11)}, "parity_share"),
        ({"parity": replace(GOOD.parity, largest_difference=0.11)}, "parity_largest"),
        ({"parity": replace(GOOD.parity, largest_difference=float("inf"))}, "parity_largest"),
        ({"latency_us": 1_001.0}, "latency"),
        ({"feature_version": "1-b"}, "features"),
        ({"holdout_f1": 0.80}, "champion"),
        ({"audit": None}, "audit"),
        ({"audit": Audit(False, 2, ("leaks: the hour tells the label",))}, "audit"),
        ({"audit": Audit(True, 1)}, "audit"),
        ({"unknown": ("seed",)}, "origin"),
        ({"paired": paired(misses=count(1))}, "misses"),
        ({"paired": paired(misses=count(1, episodes=10_000))}, "misses"),
        ({"paired": paired(misses=count(9, 6, low=-4.0))}, "misses"),
        ({"paired": paired(misses=count(3, 2, low=1.0))}, "misses"),
        ({"paired": paired(misses=count(episodes=LEAST_FIRES - 1))}, "misses"),
        ({"paired": paired(false_alarms=count(12, 1, low=3.0))}, "false_alarms"),
        ({"paired": paired(false_alarms=count(16, 5, low=-1.0))}, "false_alarms"),
        ({"paired": paired(delay=PairedDelay(90, 20.0, 18.0, 9.0, 30.0))}, "delay"),
    ],
)
def test_each_condition_refuses_alone_and_says_so(changed: dict[str, object], name: str) -> None:
    """Whoever is refused must learn which condition failed and by how much."""
    verdict = judge(replace(GOOD, **changed), LIMITS)  # type: ignore[arg-type]  # the names are those of the fields
    assert not verdict.passed
    assert [condition.name for condition in verdict.conditions if not condition.passed] == [name]
    assert len(verdict.reasons) == 1
    assert "required" in verdict.reasons[0] or "allowed" in verdict.reasons[0]
    assert all(condition.shortfall == 0 for condition in verdict.conditions if condition.passed)
    assert any(not condition.shortfall <= 0 for condition in verdict.conditions)


@pytest.mark.parametrize(
    "chance",
    [
        paired(misses=count(3, 2, episodes=200)),
        paired(misses=count(0, 4)),
        paired(false_alarms=count(1)),
        paired(false_alarms=count(7, 5, low=-4.0)),
        paired(delay=PairedDelay(90, 20.0, 2.0, -4.0, 44.0)),
        paired(delay=PairedDelay(0)),
    ],
)
def test_what_chance_explains_does_not_refuse(chance: PairedComparison) -> None:
    """A gate that takes every coincidence for a loss would keep the first champion for ever."""
    assert judge(replace(GOOD, paired=chance), LIMITS).passed


def test_where_the_fires_could_not_be_compared_the_champion_stays() -> None:
    """A candidate must not pass because nobody could look at its misses."""
    verdict = judge(replace(GOOD, paired=None, uncompared="the simulated set is gone"), LIMITS)
    assert [c.name for c in verdict.conditions if not c.passed] == ["misses", "false_alarms", "delay"]
    assert "the simulated set is gone" in verdict.reasons[0]


def test_a_refusal_for_misses_names_the_fires() -> None:
    """Whoever is refused must be able to look at the very fires that were missed."""
    (reason,) = judge(replace(GOOD, paired=paired(misses=count(2))), LIMITS).reasons
    assert reason.startswith("fires missed: 3, the champion 1 in the same 200 episodes, so +2")
    assert "of them fire-0, fire-1" in reason
    assert reason.endswith("at most +0 is allowed (2 off)")


def test_a_manifest_tells_where_the_model_comes_from() -> None:
    """A model whose data and code nobody can name again can be neither checked nor made anew."""
    manifest: dict[str, object] = {
        "trained_on": {"kind": "simulated", "table": "t", "delta_version": 0, "fingerprint": "f"},
        "validation": {"grouped": {"f1": 0.9}},
        **{name: "x" for name in ORIGIN if "." not in name},
        "seed": 0,
    }
    assert unknown_origin(manifest) == ()
    assert unknown_origin({**manifest, "code_version": "", "trained_on": {"kind": "csv"}}) == (
        "code_version",
        "trained_on.table",
        "trained_on.delta_version",
        "trained_on.fingerprint",
    )


def test_an_audit_is_read_as_the_manifest_has_it() -> None:
    """An audit that is misread would let a model of leaking data through."""
    finding = {"check": "leaks", "finding": "the hour tells the label", "severity": "blocking"}
    note = {"check": "balance", "finding": "few fires", "severity": "note"}
    found = audit_of({"audit": {"clean": False, "blocking": 1, "findings": [note, finding]}})
    assert found == Audit(False, 1, ("leaks: the hour tells the label",))
    assert audit_of({}) is None
    assert audit_of({"audit": {"clean": "yes"}}) is None
    assert audit_of({"audit": None}) is None


def test_a_refusal_says_by_how_much() -> None:
    """An operator decides on a retraining by how far the candidate is off."""
    (reason,) = judge(replace(GOOD, f1=0.70), LIMITS).reasons
    assert reason == "grouped F1 of the fire class: 0.7, at least 0.75 is required (0.05 off)"


@settings(deadline=None)
@given(figures)
def test_gate_agrees_with_its_plain_statement(candidate: Figures) -> None:
    """The gate passes exactly what the documents promise, whatever the combination of figures."""
    mine = candidate.f1 if candidate.holdout_f1 is None else candidate.holdout_f1
    expected = (
        candidate.accuracy >= 0.80
        and candidate.f1 >= 0.75
        and candidate.parity.rows >= 100_000
        and candidate.parity.rows_with_nan > 0
        and candidate.parity.beyond_tolerance <= PARITY_LARGEST_SHARE * candidate.parity.rows
        and candidate.parity.largest_difference <= PARITY_LARGEST_DIFFERENCE
        and candidate.latency_us <= 1_000
        and candidate.feature_version == "1-a"
        and (candidate.champion_f1 is None or mine >= candidate.champion_f1 - CHAMPION_TOLERANCE)
        and candidate.audit == Audit(True)
        and not candidate.unknown
        and plain_misses(candidate)
        and plain_false_alarms(candidate)
        and plain_delay(candidate)
    )
    verdict = judge(candidate, LIMITS)
    assert verdict.passed == expected
    assert bool(verdict.reasons) == (not expected)
    assert all((condition.shortfall > 0) == (not condition.passed) for condition in verdict.conditions)


@settings(deadline=None)
@given(figures, st.floats(0, 1))
def test_a_better_candidate_is_never_refused_for_being_better(candidate: Figures, gain: float) -> None:
    """Improving a figure must not turn a pass into a refusal."""
    better = replace(
        candidate,
        accuracy=min(1.0, candidate.accuracy + gain),
        f1=min(1.0, candidate.f1 + gain),
        holdout_f1=None if candidate.holdout_f1 is None else min(1.0, candidate.holdout_f1 + gain),
        latency_us=candidate.latency_us * (1 - gain),
        parity=replace(candidate.parity, largest_difference=candidate.parity.largest_difference * (1 - gain)),
    )
    if judge(candidate, LIMITS).passed:
        assert judge(better, LIMITS).passed


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), max_size=20))
def test_rollbacks_walk_back_and_never_to_and_fro(history: list[int]) -> None:
    """Two rollbacks in a row must not end at the bad model again."""
    chain = champions_before(history)
    assert len(set(chain)) == len(chain)
    assert chain[-1:] == tuple(history[-1:])
    if len(chain) >= 2:
        assert champions_before([*history, chain[-2]]) == chain[:-1]


# -- rolling back by itself ----------------------------------------------------------------------------------

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
ROLLBACK = RollbackLimits()


def live(champion: int, accuracy: float = 0.95, recall: float | None = 0.9, report: str = "r1", **more: int) -> object:
    return LivePerformance(
        report, champion, NOW, more.get("rows", 5_000), more.get("fires", 500), accuracy, recall, 0.01
    )


def change(
    version: int, previous: int | None, action: str = "promote", *, hours_ago: float = 100, **more: object
) -> Change:
    return Change(version, previous, action, NOW - timedelta(hours=hours_ago), **more)  # type: ignore[arg-type]


TWO = [change(1, None), change(2, 1)]


def decide(latest: object, changes: Sequence[Change] = TWO, earlier: dict[int, object] | None = None):  # type: ignore[no-untyped-def]
    champion = changes[-1].version
    return rollback_decision(latest, champion, changes, earlier or {}, ROLLBACK, NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("latest", "earlier", "word"),
    [
        (live(2, accuracy=0.60), {}, "accuracy 0.6000 is below 0.7"),
        (live(2, accuracy=float("nan")), {}, "accuracy nan"),
        (live(2, recall=0.30), {}, "recall 0.3000 is below 0.5"),
        (live(2, accuracy=0.84), {1: live(1, accuracy=0.95)}, "below version 1's 0.9500"),
        (live(2, recall=0.65), {1: live(1, recall=0.90)}, "below version 1's 0.9000"),
    ],
)
def test_a_fallen_champion_is_rolled_back(latest: object, earlier: dict[int, object], word: str) -> None:
    """A model that fails on live fires must not go on watching over people until somebody reads a report."""
    decision = decide(latest, earlier=earlier)
    assert decision.targets == (1,)
    assert decision.fallen
    assert word in decision.reason


@pytest.mark.parametrize(
    ("latest", "earlier"),
    [
        (live(2), {1: live(1)}),
        (live(2, accuracy=0.86), {1: live(1, accuracy=0.95)}),
        (live(2, accuracy=0.80), {1: live(1, accuracy=0.95, rows=100)}),
        (live(2, recall=0.10, fires=20), {}),
        (live(2, recall=None, fires=0), {1: live(1)}),
        (live(2, accuracy=0.10, rows=50), {}),
        (live(1, accuracy=0.10), {}),
    ],
)
def test_too_little_or_too_small_a_fall_changes_nothing(latest: object, earlier: dict[int, object]) -> None:
    """A handful of odd readings, or a report of another version, must not throw out a good model."""
    decision = decide(latest, earlier=earlier)
    assert decision.targets == ()
    assert not decision.fallen


def test_a_report_leads_to_one_step_and_a_step_to_a_pause() -> None:
    """A fleet whose world has changed would be taken back through all its models in an hour."""
    rolled = [
        change(1, None),
        change(2, 1),
        change(3, 2),
        change(2, 3, "rollback", hours_ago=1, automatic=True, report="r1"),
    ]
    again = decide(live(2, accuracy=0.1, report="r1"), rolled)
    assert (again.targets, again.fallen) == ((), True)
    assert "already led" in again.reason
    soon = decide(live(2, accuracy=0.1, report="r2"), rolled)
    assert (soon.targets, soon.fallen) == ((), True)
    assert "too recent" in soon.reason
    later = [replace(entry, at=entry.at - timedelta(hours=25)) for entry in rolled]
    assert decide(live(2, accuracy=0.1, report="r2"), later).targets == (1,)


def test_without_an_earlier_champion_the_fall_is_told_all_the_same() -> None:
    """Nothing can be done about an only model's failure, but somebody has to know."""
    decision = decide(live(1, accuracy=0.1), [change(1, None)])
    assert (decision.targets, decision.fallen) == ((), True)
    assert "no earlier champion" in decision.reason


def test_a_person_may_bring_back_what_was_rolled_back_by_itself() -> None:
    """Only the platform is barred from it, not the operator."""
    changes = [change(1, None), change(2, 1), change(1, 2, "rollback", automatic=True, report="r")]
    assert withdrawn(changes) == {2}
    assert withdrawn([*changes, change(2, 1, automatic=True)]) == {2}
    assert withdrawn([*changes, change(2, 1)]) == frozenset()


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.lists(st.integers(1, 40), max_size=30))
def test_it_never_goes_to_and_fro(accuracies: list[float], hours: list[int]) -> None:
    """Two models that both fail on live readings would take turns for ever."""
    changes = [change(number, number - 1 or None, hours_ago=1_000 - number) for number in range(1, 6)]
    now, before = NOW, ROLLBACK
    for place, accuracy in enumerate(accuracies):
        now += timedelta(hours=hours[place % len(hours)] if hours else 12)
        champion = changes[-1].version
        latest = LivePerformance(str(place), champion, now, 5_000, 500, accuracy, 0.9)
        decision = rollback_decision(latest, champion, changes, {}, before, now)
        if decision.targets:
            changes.append(Change(decision.targets[0], champion, "rollback", now, True, latest.report))
    steps = [entry for entry in changes if entry.automatic]
    assert [entry.version for entry in steps] == sorted({entry.version for entry in steps}, reverse=True)
    assert all(later.at - sooner.at >= ROLLBACK.cool_down for sooner, later in pairwise(steps))
    assert len({entry.report for entry in steps}) == len(steps)


# -- retention -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.sets(st.integers(1, 40)),
    st.sets(st.integers(1, 40), max_size=2),
    st.lists(st.integers(1, 40), max_size=20),
    st.integers(1, 12),
)
def test_retention_keeps_what_is_in_use_and_the_way_back(
    versions: set[int], protected: set[int], history: list[int], keep: int
) -> None:
    """A pruned champion would leave a restarted detector without a model, a pruned earlier one no way back."""
    gone = set(outdated(versions, protected, history, keep))
    chain = champions_before(history)
    assert gone <= versions
    assert not gone & (protected | set(chain[-4:]) | set(sorted(versions)[-keep:]))
    assert len(versions - gone) <= keep + len(protected) + 4
    assert gone | set(sorted(versions)[-keep:]) | protected | set(chain[-4:]) >= versions


def test_rollback_targets_leave_out_what_was_withdrawn() -> None:
    """A version that was rolled back by itself is no remedy."""
    changes = [change(1, None), change(2, 1), change(1, 2, "rollback", automatic=True), change(3, 1), change(4, 3)]
    assert rollback_targets(changes) == (3, 1)
