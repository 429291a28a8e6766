"""The tables of rules, levels and faults as they stand in ``docs/alarms.md``.

Belongs here: their layout. Does not: the limits (``domain.rules``, ``domain.levels``, ``domain.faults``).

``python -m smoke_platform.domain.rule_tables docs/alarms.md`` writes them into the page; a test holds the two together.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.rules import FAULTS, LEVELS, RULES, Rule

BEGIN, END = "<!-- tables of the rules: begin -->", "<!-- tables of the rules: end -->"


def tables() -> str:
    """Markdown, from the first heading to the last row."""
    rules = _table(
        ("rule", "severity", "raises at", "clears below", "for", "readings", "meaning", "source"),
        (
            (
                f"`{rule.name}`",
                rule.severity.name,
                _limits(rule, raises=True),
                _limits(rule, raises=False),
                _duration(rule.persist_s),
                str(rule.readings or "-"),
                rule.meaning,
                rule.source,
            )
            for rule in RULES
        ),
    )
    levels = _table(
        ("sensor", "unit", "LOW", "MEDIUM", "HIGH", "CRITICAL", "source"),
        (
            (
                f"`{level.sensor}`",
                level.unit,
                *(
                    " or ".join(
                        [f">= {_number(limit)}"] * math.isfinite(limit)
                        + ([f"<= {_number(level.low[k])}"] if level.low and k < len(level.low) else [])
                    )
                    or "-"
                    for k, limit in enumerate(level.high)
                ),
                level.source,
            )
            for level in LEVELS
        ),
    )
    faults = _table(
        ("fault", "severity", "raises at", "until", "for", "readings", "meaning"),
        (
            (
                f"`{fault.name}`",
                fault.severity.name,
                "no change"
                if fault.family == "stuck"
                else f"{'>=' if fault.direction > 0 else '<='} {_number(fault.raises_at)} {fault.unit}",
                "it moves"
                if fault.family == "stuck"
                else f"{'<' if fault.direction > 0 else '>'} {_number(fault.holds_from)} {fault.unit}",
                _duration(fault.persist_s),
                str(fault.readings),
                fault.meaning,
            )
            for fault in FAULTS
        ),
    )
    return (
        f"### Rules for a fire\n\n{rules}\n\n### Levels of single values\n\n{levels}\n\n### Sensor faults\n\n{faults}"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["-"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _limits(rule: Rule, *, raises: bool) -> str:
    if raises:
        return (
            " and ".join(f"{term.signal} {_number(term.raises_at)} {term.unit}".rstrip() for term in rule.terms) or "-"
        )
    return " or ".join(f"{term.signal} {_number(term.clears_below)}" for term in rule.terms) or "-"


def _number(value: float) -> str:
    return f"{value:,g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds == 0:
        return "-"
    if seconds < 300:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 7_200 else f"{seconds / 3_600:g} h"


def write(page: Path) -> None:
    """Puts the tables between the two marks of the page.

    Raises:
        SmokeError: where the marks are missing.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SmokeError(f"{page} does not hold the marks {BEGIN} and {END}", "put them where the tables belong")
    page.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/alarms.md"))
