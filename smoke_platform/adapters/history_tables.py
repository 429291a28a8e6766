"""The history's tables in the lake, and the reading of what they are made from.

Belongs here: which days of which table have changed since they were summarised, one part of a day's readings, the
summaries as Delta tables, the stretches that look like copies. Does not: what a summary is (``domain.history_summary``
and its siblings), who works on which part (``streaming.history``).

Tables, a partition a day, below the lake:

    history_hours      a row for each device and hour: count, sum, least, greatest and median of each sensor
    history_days       a row for each device and day: duplicates, late readings, labels, how the signals move
    history_anchors    marks by which copies are found
    history_moments    sums of products of each source, by which correlations are found
    history_hits       which rules hit how many readings, of each day of predictions
    history_findings   what the reports said, a row a finding, a partition a run

A day that has not changed is not read again: ``history_days`` and ``history_hits`` keep a fingerprint of the files that
a day consisted of, and are written last.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable, WriterProperties

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake, storage_schema
from smoke_platform.domain import history, history_alarms, history_copies, history_summary
from smoke_platform.domain.history_summary import PartSummary
from smoke_platform.domain.lake_records import DAY, latest_devices

HOURS, DAYS, MOMENTS, ANCHORS = "history_hours", "history_days", "history_moments", "history_anchors"
HITS, FINDINGS = "history_hits", "history_findings"
ALARMS, PREDICTIONS, DEVICES = "alarms", "predictions", "devices"

_FINGERPRINT: Mapping[str, pl.DataType] = {"fingerprint": pl.String()}
#: Table -> its columns after the day.
SCHEMAS: Final[Mapping[str, Mapping[str, pl.DataType]]] = {
    HOURS: history_summary.HOURS_SCHEMA,
    ANCHORS: history_summary.ANCHORS_SCHEMA,
    MOMENTS: history_summary.MOMENTS_SCHEMA,
    DAYS: {**history_summary.DAYS_SCHEMA, **_FINGERPRINT},
    HITS: {**history_alarms.HITS_SCHEMA, **_FINGERPRINT},
}
#: Rows of an hours file are sorted by bucket; groups of so few let a reader skip the other buckets.
_HOURS_GROUP_ROWS = 8_192
_TIME = pl.Datetime("us", "UTC")

FINDINGS_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "run": pl.String(),
    "made_at": _TIME,
    "kind": pl.String(),
    "place": pl.Int32(),
    **dict.fromkeys(("source", "site", "device_id", "sensor", "other"), pl.String()),
    **dict.fromkeys(("value", "low", "high"), pl.Float64()),
    "unit": pl.String(),
    "rows": pl.Int64(),
    "since": _TIME,
    "until": _TIME,
    "detail": pl.String(),
}

#: Marks that are compared at once; beyond it every second, fourth, ... one is left out, the same in every copy.
MOST_ANCHORS = 4_000_000
#: Stretches that are compared reading by reading, and how long a stretch is looked at.
MOST_COMPARED = 100
LONGEST_COMPARED = timedelta(days=8)


@dataclass(frozen=True, slots=True)
class DayOfTable:
    """A day of a table as it stands: its rows (``None`` where its files do not tell) and what names its files."""

    day: date
    rows: int | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A table at one version, by day."""

    version: int
    days: Mapping[date, DayOfTable]


class HistoryTables:
    """The history's tables of one lake."""

    def __init__(self, lake: Lake, zone: str) -> None:
        self.lake = lake
        self._salt = f"{history_summary.SUMMARY_VERSION}/{zone}"

    # -- what there is, and what is stale ------------------------------------------------------------------------

    def snapshot(self, name: str, day_column: str = PARTITION_COLUMN) -> Snapshot | None:
        """The days of a table now; ``None`` where there is no such table."""
        if not self.lake.exists(name):
            return None
        table = self.lake.open(name)
        files = pa.table(table.get_add_actions(flatten=True))
        by_day: dict[date, list[tuple[str, int | None]]] = {}
        columns = (files[column].to_pylist() for column in (f"partition.{day_column}", "path", "num_records"))
        for day, path, rows in zip(*columns, strict=True):
            if day is not None:
                by_day.setdefault(day, []).append((path, rows))
        return Snapshot(
            int(table.version()),
            {day: self._day(day, found) for day, found in sorted(by_day.items())},
        )

    def _day(self, day: date, files: list[tuple[str, int | None]]) -> DayOfTable:
        digest = hashlib.sha256("\n".join([self._salt, *sorted(path for path, _ in files)]).encode())
        counts = [rows for _, rows in files]
        total = None if None in counts else sum(rows for rows in counts if rows is not None)
        return DayOfTable(day, total, digest.hexdigest()[:32])

    def stored(self, name: str) -> dict[date, str]:
        """Day -> fingerprint that it had when it was summarised; ``name`` is ``DAYS`` or ``HITS``."""
        if not self.lake.exists(name):
            return {}
        rows = self.lake.scan(name).select(PARTITION_COLUMN, "fingerprint").unique().collect()
        return dict(rows.iter_rows())

    def rows_of(self, name: str) -> int:
        """How many rows a table of the history has."""
        if not self.lake.exists(name):
            return 0
        return int(self.lake.scan(name).select(pl.len()).collect(engine="streaming").item())

    # -- writing -------------------------------------------------------------------------------------------------

    def write_summaries(self, days: Mapping[date, tuple[str, Sequence[PartSummary]]]) -> None:
        """Replaces the summaries of days: day -> (fingerprint, summaries of its parts)."""
        for name, attribute in ((HOURS, "hours"), (ANCHORS, "anchors"), (MOMENTS, "moments"), (DAYS, "days")):
            frames = [
                getattr(part, attribute).with_columns(event_date=pl.lit(day), fingerprint=pl.lit(fingerprint))
                for day, (fingerprint, parts) in days.items()
                for part in parts
            ]
            self._replace(name, frames, days)

    def write_hits(self, days: Mapping[date, tuple[str, pl.DataFrame]]) -> None:
        """Replaces the counts of days of predictions: day -> (fingerprint, ``history_alarms.HITS_SCHEMA``)."""
        frames = [
            hits.with_columns(event_date=pl.lit(day), fingerprint=pl.lit(fingerprint))
            for day, (fingerprint, hits) in days.items()
        ]
        self._replace(HITS, frames, days)

    def forget(self, names: Sequence[str], days: Iterable[date]) -> None:
        """Removes days that are no longer in the table they were made from."""
        gone = sorted(days)
        for name in names if gone else ():
            self._replace(name, [], gone)

    def _replace(self, name: str, frames: Sequence[pl.DataFrame], days: Iterable[date]) -> None:
        columns = {PARTITION_COLUMN: pl.Date(), **SCHEMAS[name]}
        rows = pl.concat([pl.DataFrame(schema=columns), *(frame.select(list(columns)) for frame in frames)])
        order = [PARTITION_COLUMN, *(key for key in ("bucket", "source", "device_id", "hour") if key in columns)]
        predicate = _among(PARTITION_COLUMN, [day.isoformat() for day in sorted(days)])
        properties = WriterProperties(
            compression="ZSTD", compression_level=1, max_row_group_size=_HOURS_GROUP_ROWS if name == HOURS else None
        )
        self.lake.create(name, storage_schema(columns), [PARTITION_COLUMN])
        self.lake.replace_where(name, rows.sort(order, maintain_order=True), predicate, [PARTITION_COLUMN], properties)

    def write_findings(self, run: str, rows: pl.DataFrame, keep: int) -> None:
        """Adds what a report said, and removes all but the newest ``keep`` runs."""
        self.lake.create(FINDINGS, storage_schema(FINDINGS_SCHEMA), ["run"])
        self.lake.append(FINDINGS, rows.select(pl.col(name).cast(kind) for name, kind in FINDINGS_SCHEMA.items()))
        table = self.lake.open(FINDINGS)
        runs = sorted({str(part["run"]) for part in table.partitions()} | {run})
        if runs[:-keep]:
            table.delete(_among("run", runs[:-keep]))
        for name in (*SCHEMAS, FINDINGS):
            if self.lake.exists(name):
                # What no version of the last week names; readers of these tables are short.
                self.lake.open(name).vacuum(dry_run=False)

    # -- reading what was summarised -----------------------------------------------------------------------------

    def hours(self, first: int, last: int) -> pl.DataFrame:
        """``history_hours`` of the buckets ``first`` to ``last``."""
        return self._of_buckets(HOURS, first, last)

    def days(self, first: int, last: int) -> pl.DataFrame:
        """``history_days`` of the buckets ``first`` to ``last``."""
        return self._of_buckets(DAYS, first, last)

    def _of_buckets(self, name: str, first: int, last: int) -> pl.DataFrame:
        return self.lake.scan(name).filter(pl.col("bucket").is_between(first, last)).collect(engine="streaming")

    def overview(self) -> pl.DataFrame:
        return history.overview(self.lake.scan(DAYS)).collect(engine="streaming")

    def moments(self) -> pl.DataFrame:
        return self.lake.scan(MOMENTS).select(list(history_summary.MOMENTS_SCHEMA)).collect()

    def hits(self) -> pl.DataFrame | None:
        """``None`` where no prediction has landed yet."""
        return (
            self.lake.scan(HITS).select(list(history_alarms.HITS_SCHEMA)).collect() if self.lake.exists(HITS) else None
        )

    def alarms(self) -> pl.DataFrame | None:
        """``None`` where no alarm has landed yet."""
        if not self.lake.exists(ALARMS):
            return None
        return history_alarms.alarms_of(self.lake.scan(ALARMS)).collect(engine="streaming")

    def sites(self) -> dict[str, str]:
        """Device id -> site, of the devices that have an entry."""
        if not self.lake.exists(DEVICES):
            return {}
        entries = latest_devices(self.lake.scan(DEVICES)).select("device_id", pl.col("site").fill_null("")).collect()
        return dict(entries.iter_rows())

    # -- copies --------------------------------------------------------------------------------------------------

    def copies(self) -> tuple[list[history_copies.Copy], int]:
        """The copies in the lake, compared reading by reading; and how many likely ones were left, beyond a bound."""
        coarseness = 1
        while self.rows_of(ANCHORS) > MOST_ANCHORS * coarseness:
            coarseness *= 2
        anchors = self.lake.scan(ANCHORS).filter((pl.col("mark") & (coarseness - 1)) == 0)
        likely = history_copies.candidates(
            anchors.select(list(history_summary.ANCHORS_SCHEMA)).collect(engine="streaming"), coarseness
        )
        margin = history_copies.STRETCH_GAP * coarseness
        return history_copies.confirmed(likely, lambda row: self._compared(row, margin), MOST_COMPARED)

    def _compared(self, row: Mapping[str, Any], margin: timedelta) -> history_copies.Copy | None:
        sides, whole = [], True
        for which in ("first", "copy"):
            whole &= row[f"{which}_to"] - row[f"{which}_from"] <= LONGEST_COMPARED
            start = row[f"{which}_from"] - margin
            end = min(row[f"{which}_to"] + margin, row[f"{which}_from"] + LONGEST_COMPARED)
            readings = (
                self.lake.scan(READINGS)
                .filter(
                    pl.col(PARTITION_COLUMN).is_between(start.date(), end.date()),
                    pl.col("event_time").is_between(pl.lit(start, _TIME), pl.lit(end, _TIME)),
                    pl.col("device_id") == row[f"{which}_device"],
                    pl.col("source") == row[f"{which}_source"],
                )
                .select(history_summary.COLUMNS)
                .collect(engine="streaming")
            )
            sides.append(history_summary.in_order(readings))
        first, copy = sides
        return history_copies.compare(first, copy, row, whole=whole)


def _among(column: str, values: Sequence[str]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


# -- one part of a day -------------------------------------------------------------------------------------------


def part_of_day(lake: Lake, version: int, day: date, part: int, parts: int) -> pl.DataFrame:
    """The readings of a day that are part ``part`` of ``parts``: those of some devices, each of them whole.

    The devices are dealt out so that the parts are about equal, by counts that each task takes of the same version: no
    task has to tell another.

    Args:
        version: of ``lake/readings``, so that all parts of a day are of one moment.

    Returns:
        ``history_summary.COLUMNS``.
    """
    of_day = pl.scan_delta(DeltaTable(lake.address(READINGS), version=version)).filter(pl.col(PARTITION_COLUMN) == day)
    if parts > 1:
        counts = of_day.group_by("device_id").len().collect(engine="streaming")
        of_day = of_day.filter(pl.col("device_id").is_in(dealt(dict(counts.iter_rows()), parts)[part]))
    return of_day.select(history_summary.COLUMNS).collect(engine="streaming")


def dealt(counts: Mapping[str, int], parts: int) -> list[list[str]]:
    """The devices of each part: the largest first, each to the part that has least so far.

    >>> dealt({"a": 3, "b": 2, "c": 2, "d": 1}, 2)
    [['a', 'd'], ['b', 'c']]
    """
    found: list[list[str]] = [[] for _ in range(parts)]
    heap = [(0, part) for part in range(parts)]
    for device, rows in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        taken, part = heapq.heappop(heap)
        found[part].append(device)
        heapq.heappush(heap, (taken + rows, part))
    return found


def day_of_predictions(lake: Lake, version: int, day: date) -> pl.LazyFrame:
    """The predictions that were appended on a day."""
    return pl.scan_delta(DeltaTable(lake.address(PREDICTIONS), version=version)).filter(pl.col(DAY) == day)
