"""The audit of what training would use: reading it, keeping the report, drawing it.

Belongs here: which readings of the lake stand behind a kind of training data, a CSV file's readings, the report as JSON
and as a page. Does not: the checks (``domain.data_audit``), the choice of the kind (``adapters.feature_tables``), when
an audit is made (``orchestration.audit``).

What is audited are readings, not features: a feature table has lost the clock, the pressure and the order in which a
recording's rows came, and with them most of what gives a label away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import polars as pl

from smoke_platform.adapters import feature_tables, svg
from smoke_platform.adapters.feature_tables import REAL_SOURCES, SIMULATED_READINGS, Progress, silent
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.reports import ReportStore, Section, StoredReport, page, to_json
from smoke_platform.domain import audit_copies, audit_labels, audit_leaks, audit_signals, data_audit
from smoke_platform.domain.audit_findings import FAMILIES, AuditReport, RecordingRow
from smoke_platform.domain.audit_leaks import KNOWN_AS
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, Source
from smoke_platform.domain.recordings import BadRow, RecordingFile
from smoke_platform.settings import Settings

#: Kind of the reports in the store.
REPORT: Final = "audit"
#: Recordings that a figure shows.
MOST_DRAWN: Final = 40

_COLUMNS: Final = ("device_id", "event_time", "sequence", "source", "fire_alarm", *ALL_SENSOR_NAMES)


# -- what is looked at -------------------------------------------------------------------------------------------


def audit_source(settings: Settings, kind: str = "auto", progress: Progress = silent) -> AuditReport:
    """The audit of the labelled readings that training would use.

    The report in the store is given again where it is of the same version of the same table by the same checks.

    Args:
        kind: ``devices``, ``csv``, ``simulated``, or ``auto`` for what training would choose.

    Raises:
        SmokeError: when there is no such table, or nothing to train on.
    """
    chosen = feature_tables.training_kind(settings) if kind == "auto" else kind
    lake = Lake(settings.lake)
    table = SIMULATED_READINGS if chosen == "simulated" else READINGS
    origin = {"table": f"lake/{table}", "delta_version": lake.version(table), "checks": checks_version()}
    kept = _kept(settings, chosen, origin)
    if kept is not None:
        progress("the audit of these readings is at hand")
        return kept
    progress(f"auditing the readings of lake/{table}, {chosen}")
    frame, limits = _of_lake(lake, table, chosen)
    report = data_audit.audit(frame, chosen, origin)
    return AuditReport.from_dict({**report.as_dict(), "limits": (*limits, *report.limits)})


def _kept(settings: Settings, kind: str, origin: Mapping[str, Any]) -> AuditReport | None:
    stored = ReportStore(settings.reports_dir, settings.report_retention).latest(REPORT)
    if stored is None or stored.get("kind") != kind or stored.get("origin") != origin:
        return None
    return AuditReport.from_dict(stored)


@cache
def checks_version() -> str:
    """Names the checks: any change of theirs is another version."""
    digest = hashlib.sha256()
    for module in (data_audit, audit_copies, audit_labels, audit_leaks, audit_signals):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def _of_lake(lake: Lake, table: str, kind: str) -> tuple[pl.DataFrame, list[str]]:
    """The kind's labelled readings, each once, with the column ``recording`` as training groups them."""
    rows = lake.scan(table).filter(pl.col("fire_alarm").is_not_null())
    if kind != "simulated":
        sources = [str(Source.CSV)] if kind == "csv" else [str(source) for source in REAL_SOURCES]
        rows = rows.filter(pl.col("source").is_in(sources) & ~pl.col("late"))
    sizes = dict(rows.group_by("device_id").len().collect().iter_rows())
    devices = data_audit.that_fit(sizes)
    limits = []
    if len(devices) < len(sizes) or sum(sizes[name] for name in devices) > data_audit.MOST_READINGS:
        limits.append(f"{len(devices)} of {len(sizes)} devices were looked at: {sum(sizes.values()):,} readings.")
    chosen = rows.filter(pl.col("device_id").is_in(devices)).select(_COLUMNS).head(data_audit.MOST_READINGS).collect()
    unique = chosen.unique(["device_id", "event_time", "sequence"], keep="first", maintain_order=True)
    if kind == "csv":
        return data_audit.with_recordings(unique), limits
    return unique.with_columns(recording=pl.col("device_id")), limits


def audit_file(path: Path, progress: Progress = silent) -> AuditReport:
    """The audit of a recording file, which needs no platform.

    Args:
        path: as ``domain.recordings.RecordingFile`` takes it.

    Raises:
        SmokeError: for a file that cannot be read, or without a label in it.
    """
    bad: list[BadRow] = []
    file = RecordingFile(path, bad.append)
    frames = list(file.chunks())
    frame = pl.concat(frames) if frames else pl.DataFrame()
    if frame.is_empty() or frame["fire_alarm"].null_count() == frame.height:
        raise SmokeError(f"{path} has no labelled reading", "the audit needs a column fire_alarm (or Fire Alarm)")
    progress(f"auditing {frame.height:,} readings of {path.name}")
    indexed = frame.drop("recording").with_columns(row_index=pl.int_range(pl.len(), dtype=pl.Int64))
    report = data_audit.audit(data_audit.with_recordings(indexed), path.name, {"file": str(path)})
    told = (f"{len(bad):,} rows of the file are no readings and were left out, the first: {bad[0]}.",) if bad else ()
    return AuditReport.from_dict({**report.as_dict(), "limits": (*told, *report.limits)})


# -- as a page ---------------------------------------------------------------------------------------------------


def store(settings: Settings, report: AuditReport, moment: datetime) -> StoredReport:
    """Keeps the report with its page, for the API to hand out and for the next audit to find."""
    kept = ReportStore(settings.reports_dir, settings.report_retention)
    return kept.write(REPORT, audit_page(report), report.as_dict(), moment=moment, label=report.kind)


def to_text(report: AuditReport) -> str:
    """The report as JSON; ``from_text`` reads it."""
    return to_json(report.as_dict())


def from_text(text: str) -> AuditReport:
    """The report that ``to_text`` wrote.

    Raises:
        SmokeError: for other JSON.
    """
    try:
        return AuditReport.from_dict(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise SmokeError(f"this is no audit report: {error}") from None


def headline(report: AuditReport) -> str:
    """The verdict in a line."""
    notes = len(report.findings) - len(report.blocking)
    told = f"{len(report.blocking)} blocking finding{'' if len(report.blocking) == 1 else 's'}, {notes} to note"
    return "clean" if not report.findings else f"clean, {notes} to note" if report.clean else told


def audit_page(report: AuditReport) -> str:
    """The page, complete in itself."""
    return page(
        "Data audit",
        f"{report.rows:,} labelled readings in {len(report.recordings)} recordings, {report.kind}",
        headline(report),
        [
            _verdict(report),
            _findings(report),
            _cheaters(report),
            _labels(report),
            _copies(report),
            _recordings(report),
            Section("How it was made", None, "; ".join(f"{name} {value}" for name, value in report.origin.items())),
        ],
    )


def _verdict(report: AuditReport) -> Section:
    lines = [f"{found.finding}. {found.consequence}" for found in report.blocking]
    if report.clean:
        lines = ["Nothing was found that would make a model of these readings one of something else than fires."]
    told = {found.family for found in report.blocking}
    kept = [f"{name}: {promise}" for name, promise in FAMILIES.items() if name not in told]
    held = f"Not contradicted: {'; '.join(kept)}." if kept else ""
    return Section("What it says", None, held, lines=[*lines, *report.limits])


def _findings(report: AuditReport) -> Section:
    rows = [
        {
            "check": f"{found.family}.{found.check}",
            "severity": found.severity,
            "rows": found.rows,
            "evidence": found.evidence_text,
        }
        for found in report.findings
    ]
    return Section("Findings and their evidence", rows, "Blocking: the gate refuses a model of these data.")


def _cheaters(report: AuditReport) -> Section:
    names = {score.column: KNOWN_AS.get(score.column, score.column) for score in report.scores}
    rows = [
        {
            "column": names[score.column],
            "sensor of a fire": score.physical,
            "random split": score.random,
            "recordings held out": score.held_out,
            "labels shuffled": score.shuffled,
            "labels turned": score.shifted,
        }
        for score in report.scores
    ]
    bars = [(f"{names[score.column]}, {score.random:.3f}", 100 * score.random) for score in report.scores]
    note = (
        f"Each column alone, cut into at most {audit_leaks.MOST_INTERVALS} intervals. Balanced accuracy: 0.5 is "
        "chance. A column that no fire moves ought to stay near it."
    )
    figure = svg.bars("Balanced accuracy of single columns at a random split, in percent", bars) if bars else ""
    return Section("Cheaters: what a single column tells of the label", rows, note, figure)


def _labels(report: AuditReport) -> Section:
    drawn = report.recordings[:MOST_DRAWN]
    rows = [
        (row.name, 0.0, _hours(row, row.end), [(_hours(row, begin), _hours(row, end)) for begin, end in row.spans])
        for row in drawn
    ]
    figure = svg.tracks("Label over the hours of each recording; coloured: fire", rows, " h") if rows else ""
    more = len(report.recordings) - len(drawn)
    return Section("The label over time", None, f"{more} more recordings are not drawn." if more else "", figure)


def _hours(row: RecordingRow, moment: datetime) -> float:
    return (moment - row.begin).total_seconds() / 3600


def _copies(report: AuditReport) -> Section:
    span = {row.name: (row.begin.timestamp(), row.end.timestamp()) for row in report.recordings}
    pairs = [one for one in report.of("duplicates") if len(one.recordings) == 2 and set(one.recordings) <= set(span)]
    bars = [
        (f"{name}{' (copy)' if place else ''}", *span[name], number)
        for number, found in enumerate(pairs[: MOST_DRAWN // 2])
        for place, name in enumerate(found.recordings)
    ]
    rows = [{"copy": found.recordings[1], "of": found.recordings[0], "readings": found.rows} for found in pairs]
    if not bars:
        return Section("Copies", rows)
    low, high = min(bar[1] for bar in bars), max(bar[2] for bar in bars)
    places = [low + (high - low) * part / 4 for part in range(5)]
    labels = [(moment, datetime.fromtimestamp(moment, UTC).strftime("%d %b %H:%M")) for moment in places]
    return Section("Copies", rows, "One colour a pair.", svg.spans("Recordings and their copies", bars, labels))


def _recordings(report: AuditReport) -> Section:
    rows = [
        {
            "recording": row.name,
            "begin (UTC)": f"{row.begin:%Y-%m-%d %H:%M:%S}",
            "end (UTC)": f"{row.end:%Y-%m-%d %H:%M:%S}",
            "rows": row.rows,
            "rows of the file": "-" if row.first_row is None else f"{row.first_row}-{row.last_row}",
            "labelled fire": row.fire_rows,
            "fires": row.fires,
            "label switches": row.switches,
            "same as": row.same_as or "-",
        }
        for row in report.recordings[: 4 * MOST_DRAWN]
    ]
    return Section("Recordings", rows, "Held out as one: a recording and whatever repeats it.")
