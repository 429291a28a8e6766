"""The weekly history over the whole lake: which work there is, who does it, and putting it together.

Belongs here: days that have changed -> pieces of work -> summaries in the lake -> the history -> its report. Does not:
the figures (``domain.history`` and its siblings), the tables (``adapters.history_tables``), the page
(``adapters.history_page``).

First each part of each day that has changed since it was last summarised is read once, and leaves hours, sums and marks
in the lake; a run that dies loses no more than the parts it was at. Then the hours of each device are put together over
all days. Both go through a mapper, on Spark or in this process, and give the same numbers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Literal

from smoke_platform.adapters import history_page
from smoke_platform.adapters.history_tables import (
    ANCHORS,
    DAYS,
    HITS,
    HOURS,
    MOMENTS,
    PREDICTIONS,
    DayOfTable,
    HistoryTables,
)
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.reports import ReportStore, StoredReport
from smoke_platform.domain import history, history_words
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.history_devices import DeviceSummary, least_z
from smoke_platform.domain.history_summary import BUCKETS, PartSummary
from smoke_platform.domain.lake_records import DAY
from smoke_platform.settings import Settings
from smoke_platform.streaming.history_work import Buckets, DayOfPredictions, Mapper, PartOfDay, Piece, in_process

log = logging.getLogger(__name__)

Engine = Literal["auto", "spark", "local"]

#: Pieces that one job has: their rows are in this process at once, and are lost with it.
PIECES_AT_ONCE = 64
#: Hours of devices that one piece takes: some 250 MB.
HOURS_PER_PIECE = 400_000


@dataclass(frozen=True, slots=True)
class Effort:
    """What a run took.

    Attributes:
        engine: ``spark`` or ``local``; ``why``: in words.
        days: of readings in the lake; ``days_read``: how many of them were read, the others had not changed.
        parts: of days that were read.
    """

    engine: str
    why: str
    days: int
    days_read: int
    parts: int
    seconds: float

    @property
    def sentence(self) -> str:
        where = "on Spark" if self.engine == "spark" else "in one process"
        return (
            f"Made {where} ({self.why}) in {self.seconds:.0f} s: {self.days_read} of {self.days} days had changed and "
            f"were read, in {self.parts} parts."
        )


@dataclass(frozen=True, slots=True)
class Told:
    """A history, what it took, and the report that was stored of it."""

    history: history.History
    effort: Effort
    report: StoredReport


def run(settings: Settings, now: datetime, engine: Engine | None = None) -> Told | None:
    """Makes the history, and stores it as a report and in ``lake/history_findings``.

    Args:
        now: when, with a zone.
        engine: in place of the setting.

    Returns:
        ``None`` where no reading has landed yet.

    Raises:
        SmokeError: ``spark`` is asked for and can't be had.
    """
    found = tell(settings, engine)
    if found is None:
        return None
    told, effort = found
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    tables = HistoryTables(Lake(settings.lake), settings.timezone)
    tables.write_findings(stamp, history_page.findings(told, stamp, now), settings.report_retention)
    store = ReportStore(settings.reports_dir, settings.report_retention)
    data = {**told.as_dict(), "sentences": history_words.sentences(told), "effort": asdict(effort)}
    report = store.write("history", history_page.history_page(told, effort.sentence), data, moment=now)
    return Told(told, effort, report)


def tell(settings: Settings, engine: Engine | None = None) -> tuple[history.History, Effort] | None:
    """The history of the whole lake; ``None`` where no reading has landed yet.

    Args:
        engine: in place of the setting.

    Raises:
        SmokeError: ``spark`` is asked for and can't be had.
    """
    began = time.monotonic()
    tables = HistoryTables(Lake(settings.lake), settings.timezone)
    readings = tables.snapshot(READINGS)
    if readings is None or not readings.days:
        return None
    with mapper(settings, engine or settings.history_engine) as (kind, why, do):
        days_read, parts = _refresh_readings(settings, tables, do)
        _refresh_hits(settings, tables, do)
        devices = _devices(settings, tables, do)
    if devices is None:
        return None
    copies, unexplored = tables.copies()
    material = history.Material(
        overview=tables.overview(),
        moments=tables.moments(),
        devices=devices,
        copies=copies,
        unexplored=unexplored,
        alarms=tables.alarms(),
        hits=tables.hits(),
        sites=tables.sites(),
    )
    told = history.merge(material, settings.timezone)
    return told, Effort(kind, why, len(readings.days), days_read, parts, time.monotonic() - began)


@contextmanager
def mapper(settings: Settings, engine: Engine) -> Iterator[tuple[str, str, Mapper]]:
    """(``spark`` or ``local``, why, the mapper). ``auto`` is Spark, and this process where Spark can't be had.

    Raises:
        SmokeError: ``spark`` is asked for and can't be had.
    """
    if engine == "local":
        yield "local", "as set", in_process
        return
    from smoke_platform.streaming.history_spark import on_spark

    with ExitStack() as stack:
        try:
            do = stack.enter_context(on_spark(settings))
        except SmokeError as fault:
            if engine == "spark":
                raise
            log.warning("history: goes without Spark: %s", fault)
            yield "local", f"without Spark: {fault.message}", in_process
        else:
            yield "spark", settings.spark_master, do


# -- days ---------------------------------------------------------------------------------------------


def _refresh_readings(settings: Settings, tables: HistoryTables, do: Mapper) -> tuple[int, int]:
    """Summarises the days of readings that have changed; returns (days, parts)."""
    snapshot = tables.snapshot(READINGS)
    known = tables.stored(DAYS)
    if snapshot is None:
        return 0, 0
    tables.forget((HOURS, ANCHORS, MOMENTS, DAYS), known.keys() - snapshot.days.keys())
    stale = [day for day, entry in snapshot.days.items() if known.get(day) != entry.fingerprint]
    done = 0
    for days in _rounds({day: _parts(settings, snapshot.days[day]) for day in stale}):
        # Looked at anew for each round, so that no round reads files that were vacuumed during an earlier one.
        now = tables.snapshot(READINGS)
        if now is None:
            break
        pieces = [
            PartOfDay(settings.lake, settings.timezone, now.version, day, part, parts)
            for day, parts in days.items()
            if day in now.days
            for part in range(parts)
        ]
        log.info("history: summarising %d parts of %s to %s", len(pieces), min(days), max(days))
        found: dict[date, list[PartSummary]] = {}
        for piece, frames in zip(pieces, do(pieces), strict=True):
            found.setdefault(piece.day, []).append(PartSummary(**frames))
        tables.write_summaries({day: (now.days[day].fingerprint, summaries) for day, summaries in found.items()})
        done += len(pieces)
    return len(stale), done


def _parts(settings: Settings, day: DayOfTable) -> int:
    """Into how many parts a day is cut; one whose files do not tell its rows is taken for a large one."""
    rows = 100 * settings.history_part_rows if day.rows is None else day.rows
    return max(1, math.ceil(rows / settings.history_part_rows))


def _rounds(parts: Mapping[date, int]) -> Iterator[dict[date, int]]:
    """The days in groups of about ``PIECES_AT_ONCE`` parts, each day in one group."""
    group: dict[date, int] = {}
    for day, count in sorted(parts.items()):
        if group and sum(group.values()) + count > PIECES_AT_ONCE:
            yield group
            group = {}
        group[day] = count
    if group:
        yield group


def _refresh_hits(settings: Settings, tables: HistoryTables, do: Mapper) -> None:
    snapshot = tables.snapshot(PREDICTIONS, DAY)
    if snapshot is None:
        return
    known = tables.stored(HITS)
    tables.forget((HITS,), known.keys() - snapshot.days.keys())
    stale = {day: 1 for day, entry in snapshot.days.items() if known.get(day) != entry.fingerprint}
    for days in _rounds(stale):
        now = tables.snapshot(PREDICTIONS, DAY)
        if now is None:
            break
        pieces = [DayOfPredictions(settings.lake, now.version, day) for day in days if day in now.days]
        found = zip(pieces, do(pieces), strict=True)
        tables.write_hits({piece.day: (now.days[piece.day].fingerprint, frames["hits"]) for piece, frames in found})


# -- devices --------------------------------------------------------------------------------------------


def _devices(settings: Settings, tables: HistoryTables, do: Mapper) -> DeviceSummary | None:
    hours = tables.rows_of(HOURS)
    if not hours:
        return None
    z = least_z(hours)
    pieces: Sequence[Piece] = [
        Buckets(settings.lake, settings.timezone, first, last, z)
        for first, last in _ranges(min(BUCKETS, math.ceil(hours / HOURS_PER_PIECE)))
    ]
    parts: list[DeviceSummary] = []
    for first in range(0, len(pieces), PIECES_AT_ONCE):
        parts += [DeviceSummary(**frames) for frames in do(pieces[first : first + PIECES_AT_ONCE])]
    return history.merge_devices(parts)


def _ranges(pieces: int) -> list[tuple[int, int]]:
    """(first, last) bucket of each piece."""
    bounds = [round(number * BUCKETS / pieces) for number in range(pieces + 1)]
    return [(first, end - 1) for first, end in pairwise(bounds)]
