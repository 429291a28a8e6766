"""Whether a candidate may become champion, to which version a rollback leads, and which versions are kept.

Belongs here: the gate's conditions as one pure function, the history of promotions as a stack, when the champion is
rolled back by itself, retention. Does not: measuring the figures (``domain.evaluation``, ``adapters.trainer``,
``domain.paired_comparison``), keeping versions and publishing (``adapters.registry``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from smoke_platform.domain.paired_comparison import PairedComparison, PairedCount

#: The ONNX model may differ from the trained one by this much ...
PARITY_TOLERANCE = 1e-6
#: ... but for this share of the rows, where a value falls just on a tree's split,
PARITY_LARGEST_SHARE = 1e-4
#: ... and never by more than this.
PARITY_LARGEST_DIFFERENCE = 0.1
#: Parity is judged on at least this many rows.
PARITY_LEAST_ROWS = 100_000
#: Scoring one row may take this long: the alarm path has milliseconds in all.
LATENCY_BUDGET_US = 1_000.0
#: A candidate may fall behind the champion by this much: less is noise of the held-out set.
CHAMPION_TOLERANCE = 0.005
#: Fires on which candidate and champion are compared at least. Without a miss on 20 fires a detector may still miss one
#: in seven (95%), so that fewer say next to nothing.
LEAST_FIRES = 20
#: A candidate that misses more fires than the champion is refused unless it misses at most this share more and chance
#: explains it; the share keeps a row of candidates from falling back by a little each.
EXTRA_MISSES = 0.01
#: The same for nuisances taken for fire, where one more is always within reach of chance.
EXTRA_FALSE_ALARMS = 0.05
#: Seconds by which alarms may come later on average before it counts.
DELAY_TOLERANCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the gate asks for; accuracy and F1 are settings, the rest are properties of the platform."""

    min_accuracy: float
    min_f1: float
    parity_rows: int = PARITY_LEAST_ROWS
    latency_us: float = LATENCY_BUDGET_US
    least_fires: int = LEAST_FIRES


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the exported model is from the trained one, on the same rows.

    Attributes:
        rows: compared, of which ``rows_with_nan`` lack at least one sensor.
        largest_difference: of the fire probability.
        beyond_tolerance: rows that differ by more than ``PARITY_TOLERANCE``.
    """

    rows: int
    rows_with_nan: int
    largest_difference: float
    beyond_tolerance: int

    @property
    def share_beyond(self) -> float:
        return self.beyond_tolerance / self.rows if self.rows else 1.0


@dataclass(frozen=True, slots=True)
class Audit:
    """What the audit of the training data found: how many findings forbid training on them, and their sentences."""

    clean: bool
    blocking: int = 0
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of a candidate; every figure comes from the outputs of its ONNX model.

    Attributes:
        accuracy: per reading, pooled over held-out groups.
        f1: of the fire class, on the same rows.
        latency_us: median time to score one row.
        holdout_f1: on the groups that no version trains on; ``None`` where there are none.
        champion_f1: of the present champion on those very rows; ``None`` where there is no champion to compare.
        audit: of the data that it was trained on; ``None`` where they were not audited.
        unknown: what its manifest does not say of its origin (``unknown_origin``).
        paired: candidate and champion on the same fires; ``None`` where there is no champion to compare with.
        uncompared: why they could not be compared although there is a champion; empty where they were.
        feature_version: of the features it was trained on.
        platform_feature_version: of the features the platform computes.
    """

    accuracy: float
    f1: float
    parity: Parity
    latency_us: float
    feature_version: str
    platform_feature_version: str
    holdout_f1: float | None = None
    champion_f1: float | None = None
    audit: Audit | None = None
    unknown: tuple[str, ...] = ()
    paired: PairedComparison | None = None
    uncompared: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of the gate. ``shortfall`` is how far the value is on the wrong side, 0 where it is not."""

    name: str
    passed: bool
    value: float | str
    limit: float | str
    shortfall: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer; it passes only when every condition does."""

    conditions: tuple[Condition, ...]

    @property
    def passed(self) -> bool:
        return all(condition.passed for condition in self.conditions)

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence for each condition that failed."""
        return tuple(condition.sentence for condition in self.conditions if not condition.passed)

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "conditions": [asdict(condition) for condition in self.conditions]}


def judge(figures: Figures, limits: Limits) -> Verdict:
    """The gate. A figure that is not a number fails its condition; one that cannot be judged is left out."""
    judged = (condition(figures, limits) for condition in _CONDITIONS.values())
    return Verdict(tuple(condition for condition in judged if condition is not None))


# -- where a version comes from ----------------------------------------------------------------------------------

#: What a manifest must say, so that a model can be traced to its data and code and be made again.
ORIGIN = (
    "sha256",
    "feature_sha256",
    "feature_version",
    "feature_names",
    "threshold",
    "seed",
    "code_version",
    "created_at",
    "trained_on.kind",
    "trained_on.table",
    "trained_on.delta_version",
    "trained_on.fingerprint",
    "validation.grouped",
)


def unknown_origin(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of ``ORIGIN`` that a manifest lacks or leaves empty."""
    return tuple(name for name in ORIGIN if _entry(manifest, name) in (None, "", [], {}))


def _entry(manifest: Mapping[str, Any], name: str) -> Any:
    found: Any = manifest
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def audit_of(manifest: Mapping[str, Any]) -> Audit | None:
    """The audit as the manifest has it, or ``None`` where the data were not audited or nobody can read what it says."""
    found = manifest.get("audit")
    if not isinstance(found, Mapping) or not isinstance(found.get("clean"), bool):
        return None
    findings = [entry for entry in found.get("findings") or () if isinstance(entry, Mapping)]
    grave = [entry for entry in findings if entry.get("severity") == "blocking"] or findings
    return Audit(
        clean=found["clean"],
        blocking=int(found.get("blocking") or 0),
        findings=tuple(f"{entry.get('check', '')}: {entry.get('finding', '')}" for entry in grave),
    )


# -- the conditions ----------------------------------------------------------------------------------------------


def _origin(figures: Figures, _: Limits) -> Condition:
    missing = figures.unknown
    sentence = f"where it comes from: the manifest lacks {', '.join(missing) or 'nothing'}; nothing is allowed to lack"
    return Condition("origin", not missing, len(missing), 0, float(len(missing)), sentence)


def _audit(figures: Figures, _: Limits) -> Condition:
    audit = figures.audit
    if audit is None:
        return Condition("audit", False, "none", "clean", 1.0, "the data were not audited; a clean audit is required")
    if audit.clean and not audit.blocking:
        return Condition("audit", True, "clean", "clean", 0.0, "audit of the data: clean")
    count = max(audit.blocking, 1)
    told = "; ".join(audit.findings[:3]) or "no sentence was given"
    sentence = f"audit of the data: {count} blocking finding(s), none is allowed: {told}"
    return Condition("audit", False, float(count), 0.0, float(count), sentence)


def _champion(figures: Figures, _: Limits) -> Condition | None:
    if figures.champion_f1 is None:
        return None
    candidate = figures.f1 if figures.holdout_f1 is None else figures.holdout_f1
    least = figures.champion_f1 - CHAMPION_TOLERANCE
    return _at_least("champion", candidate, least, "F1 beside the champion's on the same rows")


def _misses(figures: Figures, limits: Limits) -> Condition | None:
    if figures.paired is None:
        return _uncompared("misses", figures)
    found = figures.paired.misses
    if found.episodes < limits.least_fires:
        what = "fires on which candidate and champion were compared"
        return _at_least("misses", found.episodes, limits.least_fires, what)
    return _no_worse("misses", "fires missed", found, more_misses_allowed(found))


def _false_alarms(figures: Figures, _: Limits) -> Condition | None:
    if figures.paired is None:
        return _uncompared("false_alarms", figures)
    found = figures.paired.false_alarms
    return _no_worse("false_alarms", "false alarms", found, more_false_alarms_allowed(found))


def more_misses_allowed(found: PairedCount) -> int:
    """How many more fires than the champion a candidate may miss, of those that both met.

    None, unless chance explains it: the interval reaches down to 0 *and* there are fires that only the champion missed.
    Where every disagreement speaks against the candidate the interval cannot say otherwise, and lives are not to depend
    on what it cannot say. What chance explains is still at most one fire in a hundred.
    """
    return 0 if found.beyond_chance or found.one_sided else math.floor(EXTRA_MISSES * found.episodes)


def more_false_alarms_allowed(found: PairedCount) -> int:
    """How many more false alarms: what chance explains, and at most one more for each twenty nuisances, but one."""
    return 0 if found.beyond_chance else max(1, math.floor(EXTRA_FALSE_ALARMS * found.episodes))


def _no_worse(name: str, what: str, found: PairedCount, allowed: int) -> Condition:
    more = found.more
    passed = more <= allowed
    shortfall = 0.0 if passed else float(more - allowed)
    named = f", of them {', '.join(found.only_candidate[:3])}" if found.only_candidate and not passed else ""
    sentence = (
        f"{what}: {found.candidate}, the champion {found.champion} in the same {found.episodes} episodes, so {more:+d} "
        f"(95% interval {found.low:+g} to {found.high:+g}; {found.worse} episodes worse, {found.better} better, sign "
        f"test {found.p_worse:.2g}{named}); at most {allowed:+d} is allowed"
    )
    return Condition(name, passed, more, allowed, shortfall, _with_shortfall(sentence, passed, shortfall))


def _delay(figures: Figures, _: Limits) -> Condition | None:
    if figures.paired is None:
        return _uncompared("delay", figures)
    delay = figures.paired.delay
    if delay.mean is None or delay.low is None:
        return None
    # A mean above the tolerance that chance explains says nothing; the misses are judged anyway.
    value = delay.mean if delay.low > 0 else min(delay.mean, DELAY_TOLERANCE_S)
    what = f"seconds by which alarms come later than the champion's ({delay.fires} fires seen by both)"
    return _at_most("delay", value, DELAY_TOLERANCE_S, what)


def _uncompared(name: str, figures: Figures) -> Condition | None:
    if not figures.uncompared:
        return None
    sentence = f"{name.replace('_', ' ')} beside the champion's: not compared ({figures.uncompared}); it is required"
    return Condition(name, False, "not compared", "compared", 1.0, sentence)


#: Every condition of the gate in the order in which it is told, ``None`` where there is nothing to judge by.
_CONDITIONS: Mapping[str, Callable[[Figures, Limits], Condition | None]] = {
    "origin": _origin,
    "audit": _audit,
    "accuracy": lambda f, limits: _at_least("accuracy", f.accuracy, limits.min_accuracy, "grouped accuracy"),
    "f1": lambda f, limits: _at_least("f1", f.f1, limits.min_f1, "grouped F1 of the fire class"),
    "parity_rows": lambda f, limits: _at_least(
        "parity_rows", f.parity.rows, limits.parity_rows, "rows compared for parity"
    ),
    "parity_nan_rows": lambda f, _: _at_least(
        "parity_nan_rows", f.parity.rows_with_nan, 1, "of them rows with missing sensors"
    ),
    "parity_share": lambda f, _: _at_most(
        "parity_share", f.parity.share_beyond, PARITY_LARGEST_SHARE, "share of rows beyond the parity tolerance"
    ),
    "parity_largest": lambda f, _: _at_most(
        "parity_largest", f.parity.largest_difference, PARITY_LARGEST_DIFFERENCE, "largest difference of parity"
    ),
    "latency": lambda f, limits: _at_most("latency", f.latency_us, limits.latency_us, "microseconds to score one row"),
    "features": lambda f, _: _same("features", f.feature_version, f.platform_feature_version, "feature version"),
    "champion": _champion,
    "misses": _misses,
    "false_alarms": _false_alarms,
    "delay": _delay,
}
#: Names of the conditions; each is an asset check of the candidate.
CONDITIONS: tuple[str, ...] = tuple(_CONDITIONS)


def _at_least(name: str, value: float, limit: float, what: str) -> Condition:
    passed = value >= limit
    shortfall = 0.0 if passed else limit - value
    sentence = f"{what}: {value:.6g}, at least {limit:.6g} is required"
    return Condition(name, passed, value, limit, shortfall, _with_shortfall(sentence, passed, shortfall))


def _at_most(name: str, value: float, limit: float, what: str) -> Condition:
    passed = value <= limit
    shortfall = 0.0 if passed else value - limit
    sentence = f"{what}: {value:.6g}, at most {limit:.6g} is allowed"
    return Condition(name, passed, value, limit, shortfall, _with_shortfall(sentence, passed, shortfall))


def _same(name: str, value: str, limit: str, what: str) -> Condition:
    passed = value == limit
    return Condition(name, passed, value, limit, 0.0 if passed else 1.0, f"{what}: {value}, required is {limit}")


def _with_shortfall(sentence: str, passed: bool, shortfall: float) -> str:
    return sentence if passed else f"{sentence} ({shortfall:.6g} off)"


def champions_before(history: Iterable[int]) -> tuple[int, ...]:
    """The versions that a rollback can go back through, oldest first, the present champion last.

    Args:
        history: every version that was made champion, in order, rollbacks included.

    A version that becomes champion again takes back what came after it, so that two rollbacks in a row lead two
    champions back and not to and fro:

    >>> champions_before([1, 2, 3, 2])
    (1, 2)
    >>> champions_before([1, 2, 2, 5])
    (1, 2, 5)
    """
    stack: list[int] = []
    for version in history:
        if version in stack:
            del stack[stack.index(version) + 1 :]
        else:
            stack.append(version)
    return tuple(stack)


# -- rolling back by itself --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LivePerformance:
    """What a performance report said of the champion on live readings of known truth.

    Attributes:
        report: identifies the report; each one leads to one step back at most.
        champion: the version that was judged.
        rows: readings of known truth, of which ``fires`` are of fires.
        recall, false_alarm_rate: ``None`` where there was no fire, or nothing but fire.
    """

    report: str
    champion: int
    at: datetime
    rows: int
    fires: int
    accuracy: float
    recall: float | None = None
    false_alarm_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One change of champion: what was published, instead of which version, by whom.

    Attributes:
        automatic: whether no person asked for it.
        report: the performance report that led to it, for a rollback that nobody asked for.
    """

    version: int
    previous: int | None
    action: str
    at: datetime
    automatic: bool = False
    report: str = ""


@dataclass(frozen=True, slots=True)
class RollbackLimits:
    """When a champion is rolled back although nobody asked.

    Attributes:
        min_accuracy, min_recall: on live readings; below either it has failed outright.
        worse_accuracy, worse_recall: so far below the earlier champion's own live figure it counts as fallen.
        least_rows, least_fires: readings, and of them readings of fires, below which nothing is concluded.
        cool_down: no second step by itself before this time has passed.
    """

    min_accuracy: float = 0.70
    min_recall: float = 0.50
    worse_accuracy: float = 0.10
    worse_recall: float = 0.20
    least_rows: int = 2_000
    least_fires: int = 200
    cool_down: timedelta = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class RollbackDecision:
    """Whether to roll back, why or why not, and to which versions, the one to try first in front.

    Attributes:
        fallen: whether the champion's performance has fallen, also where nothing can be done about it.
    """

    targets: tuple[int, ...]
    reason: str
    fallen: bool = False


def rollback_decision(
    latest: LivePerformance,
    champion: int,
    changes: Sequence[Change],
    earlier: Mapping[int, LivePerformance],
    limits: RollbackLimits,
    now: datetime,
) -> RollbackDecision:
    """Whether the champion's live performance asks for the one before it.

    Never to and fro: a version that was rolled back by itself is no target, a report leads to one step at most, and
    after a step nothing happens by itself for ``limits.cool_down``, in which the earlier version makes its own report.

    Args:
        latest: the newest report.
        champion: the version that is published now.
        changes: of champion, the oldest first.
        earlier: the newest live report of each earlier champion, as far as there is one.
        now: with a zone, as all times here are.
    """
    if latest.champion != champion:
        return RollbackDecision((), f"the report is of version {latest.champion}, the champion is {champion}")
    if latest.rows < limits.least_rows:
        return RollbackDecision((), f"{latest.rows} readings of known truth; {limits.least_rows} say enough")
    targets = rollback_targets(changes)
    fault = _fall(latest, earlier.get(targets[0]) if targets else None, limits)
    if not fault:
        return RollbackDecision((), f"version {champion} does well enough: accuracy {latest.accuracy:.4f}")
    hindrance = _hindrance(latest, changes, targets, limits, now)
    if hindrance:
        return RollbackDecision((), f"{fault}; {hindrance}", fallen=True)
    return RollbackDecision(targets, fault, fallen=True)


def _hindrance(
    latest: LivePerformance,
    changes: Sequence[Change],
    targets: Sequence[int],
    limits: RollbackLimits,
    now: datetime,
) -> str:
    """Why nothing is done about a fallen champion; empty where something can be."""
    steps = [change for change in changes if change.automatic and change.action == "rollback"]
    if any(change.report == latest.report for change in steps):
        return "this report has already led to a rollback"
    rest = max((change.at + limits.cool_down for change in steps), default=now)
    if now < rest:
        return f"the last rollback by itself is too recent, the next may come from {rest:%Y-%m-%d %H:%M} UTC on"
    return "" if targets else "there is no earlier champion to go back to"


def _fall(latest: LivePerformance, before: LivePerformance | None, limits: RollbackLimits) -> str:
    """In what the champion has fallen; empty where it has not."""
    faults = []
    if not latest.accuracy >= limits.min_accuracy:
        faults.append(f"accuracy {latest.accuracy:.4f} is below {limits.min_accuracy:g}")
    recall = latest.recall if latest.fires >= limits.least_fires else None
    if recall is not None and not recall >= limits.min_recall:
        faults.append(f"recall {recall:.4f} is below {limits.min_recall:g}")
    if before is not None and before.rows >= limits.least_rows:
        gap = before.accuracy - latest.accuracy
        if gap > limits.worse_accuracy:
            faults.append(f"accuracy is {gap:.4f} below version {before.champion}'s {before.accuracy:.4f}")
        known = before.recall is not None and before.fires >= limits.least_fires
        if recall is not None and known and before.recall is not None and before.recall - recall > limits.worse_recall:
            faults.append(
                f"recall is {before.recall - recall:.4f} below version {before.champion}'s {before.recall:.4f}"
            )
    rows = f" on {latest.rows} live readings, {latest.fires} of them of fires"
    return f"version {latest.champion}: {' and '.join(faults)}{rows}" if faults else ""


def withdrawn(changes: Iterable[Change]) -> frozenset[int]:
    """Versions that were rolled back by themselves and that no person has made champion again since."""
    answer: set[int] = set()
    for change in changes:
        if change.automatic and change.action == "rollback" and change.previous is not None:
            answer.add(change.previous)
        elif not change.automatic and change.action in ("promote", "rollback"):
            answer.discard(change.version)
    return frozenset(answer)


def rollback_targets(changes: Sequence[Change]) -> tuple[int, ...]:
    """Earlier champions to which a rollback may lead by itself, the nearest first."""
    chain = champions_before(change.version for change in changes)
    refused = withdrawn(changes)
    return tuple(version for version in reversed(chain[:-1]) if version not in refused)


# -- retention ---------------------------------------------------------------------------------------------------

#: Earlier champions that are kept however old they are, so that a rollback finds its way.
ROLLBACK_STEPS = 3


def outdated(versions: Collection[int], protected: Iterable[int], history: Iterable[int], keep: int) -> tuple[int, ...]:
    """Versions that may go, the oldest first.

    Args:
        versions: numbers of all versions.
        protected: such as champion and challenger.
        history: every version that was made champion, in order.
        keep: how many of the newest versions stay, at least 1.
    """
    chain = champions_before(history)
    stay = {*sorted(versions)[-keep:], *protected, *chain[-1 - ROLLBACK_STEPS :]}
    return tuple(sorted(set(versions) - stay))
