"""The pieces of work that the weekly history consists of, each to be done anywhere.

Belongs here: what a piece is, and doing it: read a bounded share of the lake, give back a few rows. Does not: how the
pieces are made up (``streaming.history``) and spread over processes (``streaming.history_spark``), the figures
(``domain``).

A piece knows the lake's address and nothing else of the platform: a Spark executor has no settings of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

import polars as pl

from smoke_platform.adapters.history_tables import HistoryTables, day_of_predictions, part_of_day
from smoke_platform.adapters.lake import Lake
from smoke_platform.domain import history_alarms, history_devices, history_summary

#: Frames by name; what they are called is known to who made the piece.
Frames = dict[str, pl.DataFrame]


@dataclass(frozen=True, slots=True)
class PartOfDay:
    """Summarise one part of a day's readings."""

    lake: str
    zone: str
    version: int
    day: date
    part: int
    parts: int

    def do(self) -> Frames:
        readings = part_of_day(Lake(self.lake), self.version, self.day, self.part, self.parts)
        found = history_summary.summarise(readings, self.zone)
        return {"hours": found.hours, "days": found.days, "moments": found.moments, "anchors": found.anchors}


@dataclass(frozen=True, slots=True)
class DayOfPredictions:
    """Count the rules that hit on a day."""

    lake: str
    version: int
    day: date

    def do(self) -> Frames:
        return {
            "hits": history_alarms.summarise_predictions(day_of_predictions(Lake(self.lake), self.version, self.day))
        }


@dataclass(frozen=True, slots=True)
class Buckets:
    """Put together all days of the devices in some buckets."""

    lake: str
    zone: str
    first: int
    last: int
    z: float

    def do(self) -> Frames:
        tables = HistoryTables(Lake(self.lake), self.zone)
        hours, days = tables.hours(self.first, self.last), tables.days(self.first, self.last)
        found = history_devices.summarise_devices(hours, days, self.z)
        return {
            "days": found.days,
            "rhythm": found.rhythm,
            "patterns": found.patterns,
            "examples": found.examples,
            "judged": found.judged,
            "odd": found.odd,
        }


Piece = PartOfDay | DayOfPredictions | Buckets
#: Does pieces somewhere, and gives back what came of each, in their order.
Mapper = Callable[[Sequence[Piece]], list[Frames]]


def in_process(pieces: Sequence[Piece]) -> list[Frames]:
    """Does the pieces here, one after the other."""
    return [piece.do() for piece in pieces]
