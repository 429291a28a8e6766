"""Whether a candidate may become champion, and to which version a rollback leads.

Belongs here: the gate's conditions as one pure function, the history of promotions as a stack. Does not: measuring
the figures (``domain.evaluation``, ``adapters.trainer``), keeping versions and publishing (``adapters.registry``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Limits:
    """What the gate asks for; accuracy and F1 are settings, the rest are properties of the platform."""

    min_accuracy: float
    min_f1: float
    parity_rows: int = PARITY_LEAST_ROWS
    latency_us: float = LATENCY_BUDGET_US


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
class Figures:
    """What was measured of a candidate; every figure comes from the outputs of its ONNX model.

    Attributes:
        accuracy: per reading, pooled over held-out groups.
        f1: of the fire class, on the same rows.
        latency_us: median time to score one row.
        holdout_f1: on the groups that no version trains on; ``None`` where there are none.
        champion_f1: of the present champion on those very rows; ``None`` where there is no champion to compare.
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
    """The gate. A figure that is not a number fails its condition."""
    parity = figures.parity
    conditions = [
        _at_least("accuracy", figures.accuracy, limits.min_accuracy, "grouped accuracy"),
        _at_least("f1", figures.f1, limits.min_f1, "grouped F1 of the fire class"),
        _at_least("parity_rows", parity.rows, limits.parity_rows, "rows compared for parity"),
        _at_least("parity_nan_rows", parity.rows_with_nan, 1, "of them rows with missing sensors"),
        _at_most(
            "parity_share", parity.share_beyond, PARITY_LARGEST_SHARE, "share of rows beyond the parity tolerance"
        ),
        _at_most(
            "parity_largest", parity.largest_difference, PARITY_LARGEST_DIFFERENCE, "largest difference of parity"
        ),
        _at_most("latency", figures.latency_us, limits.latency_us, "microseconds to score one row"),
        _same("features", figures.feature_version, figures.platform_feature_version, "feature version"),
    ]
    if figures.champion_f1 is not None:
        candidate = figures.f1 if figures.holdout_f1 is None else figures.holdout_f1
        least = figures.champion_f1 - CHAMPION_TOLERANCE
        conditions.append(_at_least("champion", candidate, least, "F1 beside the champion's on the same rows"))
    return Verdict(tuple(conditions))


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
