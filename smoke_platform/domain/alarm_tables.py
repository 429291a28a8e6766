"""The tables of policies and transitions as they stand in ``docs/alarms.md``.

Belongs here: their layout. Does not: what they say (``domain.alarm_policies``, ``domain.alarm_machine``).

``python -m smoke_platform.domain.alarm_tables docs/alarms.md`` writes them into the page; a test compares the two.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from smoke_platform.domain.alarm_machine import ROWS, Transition
from smoke_platform.domain.alarm_policies import POLICIES, Policy
from smoke_platform.domain.alarms import Severity, State
from smoke_platform.domain.errors import SmokeError

DIAGRAM, TRANSITIONS_TABLE, POLICIES_TABLE = "diagram of alarms", "table of transitions", "table of policies"


def diagram() -> str:
    """The live states as a mermaid diagram; shelf, verdict, comments and refusals would touch every state."""
    aside = {State.SHELVED, State.DISABLED}
    lines = ["stateDiagram-v2", "    [*] --> normal"]
    arrows: dict[tuple[State, State], list[str]] = {}
    for row in ROWS:
        for before in row.before:
            after = row.after or before
            if len(row.before) < len(State) and not {before, after} & aside:
                names = arrows.setdefault((before, after), [])
                if row.event.value not in names:
                    names.append(row.event.value)
    lines += [f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in arrows.items()]
    lines += [
        "    normal --> shelved: shelved, from any state",
        "    normal --> disabled: disabled, from any state",
        "    shelved --> normal: unshelved",
        "    disabled --> normal: enabled",
    ]
    return "\n".join(["```mermaid", *lines, "```"])


def transitions() -> str:
    """One line for each row of the machine's table."""
    return _table(
        ("in state", "event", "then", "when"),
        ((_states(row), f"`{row.event}`", f"`{row.after}`" if row.after else "the same", row.when) for row in ROWS),
    )


def policies() -> str:
    """One column for each kind."""
    lines: Sequence[tuple[str, Mapping[str, str]]] = [(kind.value, _told(policy)) for kind, policy in POLICIES.items()]
    names = list(lines[0][1])
    return _table(
        ("", *(f"`{kind}`" for kind, _ in lines)), ((name, *(told[name] for _, told in lines)) for name in names)
    )


def _told(policy: Policy) -> dict[str, str]:
    return {
        "condition must last (event time)": _time(policy.on_delay_s),
        "must be gone for (event time)": _time(policy.off_delay_s),
        "afterwards": _afterwards(policy),
        "reminders, not acknowledged": _by_severity(
            {
                severity: _pauses(pauses) + (", and so on" if policy.keeps_repeating else "")
                for severity, pauses in policy.repeats.items()
            }
        ),
        "becomes worse, not acknowledged": _by_severity(
            {
                severity: f"{escalation.to.label} after {_time(escalation.after_s)}"
                for severity, escalation in policy.escalations.items()
            }
        ),
        "longest snooze": _by_severity({key: _time(value) for key, value in policy.longest_snooze_s.items()}),
        "longest shelf": _time(policy.longest_shelf_s),
    }


def _afterwards(policy: Policy) -> str:
    latched = ""
    if policy.latches_from is not None:
        latched = f"{policy.latches_from.label} and worse: latched until reset; others: "
    if not policy.needs_acknowledgement:
        return f"{latched}closed"
    closing = "" if math.isinf(policy.auto_close_s) else f" or for {_time(policy.auto_close_s)}"
    return f"{latched}cleared until acknowledged{closing}"


def _pauses(pauses: Sequence[float]) -> str:
    """Equal pauses in a row as one, with their number."""
    runs: list[tuple[float, int]] = []
    for pause in pauses:
        if runs and runs[-1][0] == pause:
            runs[-1] = (pause, runs[-1][1] + 1)
        else:
            runs.append((pause, 1))
    return ", ".join(_time(pause) if count == 1 else f"{count} x {_time(pause)}" for pause, count in runs)


def _by_severity(told: Mapping[Severity, str]) -> str:
    """Severities of which the same is told are named together; none are named where it is told of all."""
    groups: dict[str, list[str]] = {}
    for severity in sorted(told):
        groups.setdefault(told[severity], []).append(severity.label)
    if not groups:
        return "-"
    if len(told) == len(Severity) and len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{' and '.join(names)}: {text}" for text, names in groups.items())


def _states(row: Transition) -> str:
    if len(row.before) == len(State):
        return "any"
    missing = [state for state in State if state not in row.before]
    if len(missing) == 1:
        return f"any but `{missing[0]}`"
    return ", ".join(f"`{state}`" for state in row.before)


def _time(seconds: float) -> str:
    if seconds == 0:
        return "-"
    for unit, length in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def marked(name: str, content: str) -> str:
    """A part of the page between its marks."""
    return f"<!-- {name}: begin -->\n\n{content}\n\n<!-- {name}: end -->"


def parts() -> dict[str, str]:
    """Name -> content of the parts of the page that are written from the code."""
    return {DIAGRAM: diagram(), TRANSITIONS_TABLE: transitions(), POLICIES_TABLE: policies()}


def write(page: Path) -> None:
    """Puts each part between its marks.

    Raises:
        SmokeError: where marks are missing.
    """
    text = page.read_text(encoding="utf-8")
    for name, content in parts().items():
        before, begin, rest = text.partition(f"<!-- {name}: begin -->")
        _, end, after = rest.partition(f"<!-- {name}: end -->")
        if not begin or not end:
            raise SmokeError(f"{page} does not hold the marks of {name!r}", "put them where it belongs")
        text = before + marked(name, content) + after
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
