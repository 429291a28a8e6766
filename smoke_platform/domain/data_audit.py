"""The audit of training data: whether a model of these readings would be one of fires.

Belongs here: which checks there are, in which order they work upon each other, and the report. Does not: the checks
themselves (``audit_copies``, ``audit_leaks``, ``audit_signals``, ``audit_labels``), the shape of what they find
(``audit_findings``), where readings come from (``adapters.data_audit``), who refuses whom (``domain.promotion``).

Copies are found first: whatever holds recordings out after that holds a recording and its copies out together.

Cost is bounded: copies, signals and labels are a pass over the rows in Polars and NumPy; cheaters see a sample
(``audit_leaks.MOST_ROWS``), near-copies a bounded number of recordings. More than ``MOST_READINGS`` are cut to whole
recordings, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from zlib import crc32

import polars as pl

from smoke_platform.domain import audit_labels, audit_leaks, audit_signals
from smoke_platform.domain.audit_copies import duplicates
from smoke_platform.domain.audit_findings import FAMILIES, AuditReport, Finding, RecordingRow
from smoke_platform.domain.features import RESET_GAP_S
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

#: Readings that are looked at: those of 23 detectors' days at 1 Hz, some 300 MB in memory.
MOST_READINGS: Final = 2_000_000
#: Stretches of fire that the report keeps of a recording, for its drawing.
MOST_SPANS: Final = 40


def with_recordings(frame: pl.DataFrame) -> pl.DataFrame:
    """The readings with a column ``recording``: a device's, until it was silent for ``features.RESET_GAP_S``.

    Named after the device, and its start where a device has several.

    Args:
        frame: ``device_id, event_time``.
    """
    ordered = frame.sort("device_id", "event_time", maintain_order=True)
    silence = pl.col("event_time").diff().over("device_id") > timedelta(seconds=RESET_GAP_S)
    numbered = ordered.with_columns(part=silence.fill_null(False).cum_sum().over("device_id"))
    start = pl.col("event_time").min().over("device_id", "part").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    several = pl.col("part").max().over("device_id") > 0
    name = pl.when(several).then(pl.concat_str("device_id", pl.lit("@"), start)).otherwise("device_id")
    return numbered.with_columns(recording=name).drop("part")


def audit(frame: pl.DataFrame, kind: str = "", origin: Mapping[str, Any] | None = None) -> AuditReport:
    """Looks at labelled readings and says what is wrong with them.

    Args:
        frame: ``device_id, event_time`` (with a zone), ``fire_alarm`` and any of the sensors; optionally ``sequence``,
            ``source``, ``row_index`` (int, the row of the file) and ``recording`` (what is to be held out as one;
            without it as in ``with_recordings``). Rows without a label are left out.
        kind: what the readings are, for the report.
        origin: where they are from, for the report.

    Returns:
        The report; without a labelled row it has the one finding that there is none.
    """
    rows, limits = _prepared(frame)
    if rows.is_empty():
        return AuditReport(kind, 0, (_nothing(),), (), (), (), dict(origin or {}))
    copies = duplicates(rows)
    table = _recordings(rows)
    scores = audit_leaks.scores(rows, copies.group)
    found = [
        *copies.findings,
        *audit_leaks.findings(scores, rows.height),
        *audit_labels.physics(rows),
        *audit_signals.synthetic(rows),
        *audit_signals.stuck(rows),
        *audit_labels.balance(rows),
        *audit_labels.coverage(rows, copies.group, table),
    ]
    order = list(FAMILIES)
    found.sort(key=lambda finding: (not finding.blocking, order.index(finding.family)))
    return AuditReport(
        kind=kind,
        rows=rows.height,
        findings=tuple(found),
        recordings=tuple(_listed(row, copies.group) for row in table.iter_rows(named=True)),
        scores=tuple(scores),
        limits=(*limits, *copies.limits),
        origin=dict(origin or {}),
    )


def _nothing() -> Finding:
    return Finding(
        "coverage",
        "no_labelled_rows",
        "blocking",
        "There is no labelled reading",
        {"rows": 0},
        "There is nothing to train on.",
    )


def _prepared(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Labelled rows with every column the checks ask for, each recording's together in order of time."""
    rows = frame.filter(pl.col("fire_alarm").is_not_null())
    rows = rows.with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in ALL_SENSOR_NAMES if name not in rows.columns
    ).with_columns(pl.col(name).cast(pl.Float64) for name in ALL_SENSOR_NAMES)
    if "recording" not in rows.columns:
        rows = with_recordings(rows)
    rows = rows.with_columns(pl.col("recording").cast(pl.String))
    limits = []
    if rows.height > MOST_READINGS:
        rows, told = _cut(rows)
        limits.append(told)
    by = [name for name in ("recording", "event_time", "sequence", "row_index") if name in rows.columns]
    ordered = rows.sort(by, maintain_order=True)
    return ordered.with_columns(place=pl.int_range(pl.len(), dtype=pl.Int64).over("recording")), limits


def _cut(rows: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Whole recordings, by a hash of their names, as many as fit; of a single one that is too long, its start."""
    sizes = dict(rows["recording"].value_counts().iter_rows())
    kept = that_fit(sizes)
    told = f"{len(kept)} of {len(sizes)} recordings were looked at: {rows.height:,} readings are more than fit."
    chosen = rows.filter(pl.col("recording").is_in(kept)).sort("recording", "event_time", maintain_order=True)
    return chosen.head(MOST_READINGS), told


def that_fit(sizes: Mapping[str, int]) -> list[str]:
    """Of recordings (or devices) with so many readings the ones to look at, at least one: chosen by a hash of their
    names, so that the choice is the same every night."""
    chosen: list[str] = []
    room = MOST_READINGS
    for name in sorted(sizes, key=lambda one: (crc32(one.encode()), one)):
        if sizes[name] <= room or not chosen:
            chosen.append(name)
            room -= sizes[name]
    return chosen


def _recordings(rows: pl.DataFrame) -> pl.DataFrame:
    """A row for each recording, in order of time."""
    indexed = "row_index" in rows.columns
    runs = (
        rows.with_columns(run=pl.struct("recording", "fire_alarm").rle_id())
        .group_by("run", maintain_order=True)
        .agg(
            pl.first("recording", "fire_alarm"),
            pl.len().alias("length"),
            pl.col("event_time").first().alias("begin"),
            pl.col("event_time").last().alias("end"),
        )
    )
    fires = (
        runs.filter("fire_alarm")
        .group_by("recording")
        .agg(
            pl.len().alias("fires"),
            pl.col("length").max().alias("longest_fire"),
            pl.struct("begin", "end").sort_by("length", descending=True).head(MOST_SPANS).alias("spans"),
        )
    )
    switches = runs.group_by("recording").agg((pl.len() - 1).cast(pl.Int64).alias("switches"))
    counted = rows.group_by("recording").agg(
        pl.first("device_id"),
        pl.len().alias("rows"),
        pl.col("fire_alarm").sum().cast(pl.Int64).alias("fire_rows"),
        pl.col("event_time").min().alias("begin"),
        pl.col("event_time").max().alias("end"),
        (pl.col("row_index").min() if indexed else pl.lit(None, pl.Int64)).alias("first_row"),
        (pl.col("row_index").max() if indexed else pl.lit(None, pl.Int64)).alias("last_row"),
    )
    hours = (pl.col("end") - pl.col("begin")).dt.total_microseconds() / 3.6e9
    return (
        counted.join(fires, on="recording", how="left")
        .join(switches, on="recording")
        .with_columns(pl.col("fires", "longest_fire").fill_null(0), hours=hours)
        .sort("begin", "recording")
    )


def _listed(row: Mapping[str, Any], group: Mapping[str, str]) -> RecordingRow:
    spans: list[tuple[datetime, datetime]] = sorted((one["begin"], one["end"]) for one in row["spans"] or [])
    name = row["recording"]
    return RecordingRow(
        name=name,
        device_id=row["device_id"],
        begin=row["begin"],
        end=row["end"],
        rows=row["rows"],
        fire_rows=row["fire_rows"],
        fires=row["fires"],
        switches=row["switches"],
        first_row=row["first_row"],
        last_row=row["last_row"],
        same_as="" if group[name] == name else group[name],
        spans=tuple(spans),
    )
