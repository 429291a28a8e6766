"""What an audit of training data finds: findings, and the report they stand in.

Belongs here: the shape of a finding, of a cheater's score and of the report; both ways between it and plain values.
Does not: the checks (``domain.data_audit``, ``audit_copies``, ``audit_leaks``, ``audit_signals``, ``audit_labels``),
reading the data and the drawn page (``adapters.data_audit``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

#: Families of checks, in the order in which a person reads them.
FAMILIES: Final[Mapping[str, str]] = {
    "duplicates": "no recording and no reading is there twice",
    "leaks": "nothing but the sensors of a fire tells the label",
    "physics": "the label says what smoke and gas say",
    "synthetic": "every signal was measured",
    "stuck": "every sensor moves",
    "balance": "both classes are there in numbers that can be learnt from",
    "coverage": "there are enough independent fires to hold some out",
}

#: ``blocking``: a model of these data must not score anybody's readings. ``note``: worth knowing.
Severity = Literal["blocking", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with the data, or worth knowing.

    Attributes:
        family: of ``FAMILIES``.
        check: name of the check within the family, such as ``copied_recording``.
        finding: what is so, in a sentence.
        evidence: name -> number, text or list of them.
        consequence: what comes of it for a model, in a sentence.
        recordings: those concerned, all of them where there are none.
        rows: how many readings are concerned.
    """

    family: str
    check: str
    severity: Severity
    finding: str
    evidence: Mapping[str, Any]
    consequence: str
    recordings: tuple[str, ...] = ()
    rows: int = 0

    @property
    def blocking(self) -> bool:
        return self.severity == "blocking"

    @property
    def evidence_text(self) -> str:
        """The evidence in one line."""
        return "; ".join(f"{name.replace('_', ' ')} {_told(value)}" for name, value in self.evidence.items())

    def as_reason(self) -> dict[str, str]:
        """As a model's manifest has it: all in words."""
        return {
            "check": f"{self.family}.{self.check}",
            "severity": self.severity,
            "finding": self.finding,
            "evidence": self.evidence_text,
            "consequence": self.consequence,
        }


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_told(entry) for entry in value) or "none"
    return str(value)


@dataclass(frozen=True, slots=True)
class CheaterScore:
    """How well a single column tells the label.

    Attributes:
        column: its name.
        physical: whether it is a sensor that a fire moves.
        random: balanced accuracy, 0..1, where rows are held out at random; 0.5 is chance.
        held_out: the same where whole independent recordings are held out, ``None`` where that means nothing (one
            recording, or a column that names it).
        shuffled: the most that ``random`` reaches when the labels are shuffled, ``None`` where it was not asked.
        shifted: the most that ``held_out`` reaches when each recording's labels are turned by a chance amount,
            ``None`` where it was not asked.
    """

    column: str
    physical: bool
    random: float
    held_out: float | None
    shuffled: float | None = None
    shifted: float | None = None


@dataclass(frozen=True, slots=True)
class RecordingRow:
    """A recording as the report lists it.

    Attributes:
        first_row, last_row: in the file, from 0; ``None`` where the data are no file.
        same_as: the recording it repeats, or an empty string.
        spans: (begin, end) of the stretches labelled fire, the longest of them where there are many.
    """

    name: str
    device_id: str
    begin: datetime
    end: datetime
    rows: int
    fire_rows: int
    fires: int
    switches: int
    first_row: int | None
    last_row: int | None
    same_as: str
    spans: tuple[tuple[datetime, datetime], ...]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What the audit found.

    Attributes:
        kind: what was looked at: ``devices``, ``csv``, ``simulated`` or a file's name.
        rows: labelled readings that were looked at.
        findings: the blocking ones first, then by family.
        recordings: in order of time.
        scores: of single columns, the best at random first.
        limits: what was not looked at, in sentences.
        origin: where the readings are from: table, version and the like.
    """

    kind: str
    rows: int
    findings: tuple[Finding, ...]
    recordings: tuple[RecordingRow, ...]
    scores: tuple[CheaterScore, ...]
    limits: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def blocking(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.blocking)

    @property
    def clean(self) -> bool:
        """Whether a model may be trained on the data alone."""
        return not self.blocking

    def of(self, family: str, check: str = "") -> list[Finding]:
        """The findings of a family, or of one check in it."""
        return [found for found in self.findings if found.family == family and check in ("", found.check)]

    def for_manifest(self) -> dict[str, Any]:
        """What a model's manifest keeps of it, for the gate."""
        return {
            "clean": self.clean,
            "blocking": len(self.blocking),
            "kind": self.kind,
            "rows": self.rows,
            "findings": [finding.as_reason() for finding in self.findings],
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values; times stay times."""
        return {**asdict(self), "clean": self.clean, "blocking": len(self.blocking)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AuditReport:
        """The report that ``as_dict`` gave, also after JSON.

        Raises:
            KeyError: where a part is missing.
        """
        return cls(
            kind=data["kind"],
            rows=data["rows"],
            findings=tuple(
                Finding(**{**entry, "recordings": tuple(entry["recordings"])}) for entry in data["findings"]
            ),
            recordings=tuple(_recording(entry) for entry in data["recordings"]),
            scores=tuple(CheaterScore(**entry) for entry in data["scores"]),
            limits=tuple(data["limits"]),
            origin=dict(data["origin"]),
        )


def _recording(entry: Mapping[str, Any]) -> RecordingRow:
    spans = tuple((_moment(begin), _moment(end)) for begin, end in entry["spans"])
    return RecordingRow(**{**entry, "begin": _moment(entry["begin"]), "end": _moment(entry["end"]), "spans": spans})


def _moment(value: datetime | str) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def named(names: Sequence[str], most: int = 6) -> str:
    """Names in a sentence, the first of many.

    >>> named(["a", "b"]), named(["a", "b", "c"], 2)
    ('a and b', 'a, b and 1 more')
    """
    shown = list(names[:most])
    rest = [f"{len(names) - most} more"] if len(names) > most else []
    parts = shown + rest
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "none"
