"""Windows of past days, computed anew from the lake.

Belongs here: what ``smoke windows rebuild`` does. Does not: the engine that appends windows as readings land
(``streaming.windows``), the command line.

A landing run computes by itself the windows of all that ever landed. This is for days whose windows are doubted: rows
that are missing are appended. Rows that say something else than the readings do, at the same number of readings, are
from another definition of the statistics, or of the devices' intervals; they are replaced only when that is asked for.

A day is worked on piece by piece, each a commit of its own: a day of a fleet does not fit into memory. Whoever stops it
in between has the first pieces mended, and starts it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import polars as pl

from smoke_platform.adapters.kafka_bulk import TopicWatcher
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake, sql_condition, sql_literal
from smoke_platform.adapters.lease import Lease
from smoke_platform.adapters.windows import (
    ROW_KEY,
    WINDOW_KEY,
    WINDOWS,
    WRITTEN_AT,
    WindowTable,
    intervals_of,
    stamped,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.windows import DEFAULT, WINDOW_SCHEMA, compute
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import lease_path
from smoke_platform.streaming.windows import WindowCut

#: A piece holds about so many readings; a window counts as ten, because its row has ten times the columns.
_ROWS_AT_ONCE = 500_000
_READINGS_PER_WINDOW = 10
#: A piece is at least so long, since the readings of its first windows are read for the piece before it, too. Where
#: that is more than can be held it is cut by device.
_LEAST_LENGTH = timedelta(minutes=10)
#: From the start of a piece's last window to the end of its readings, less one slide.
_OVERLAP = DEFAULT.length - DEFAULT.slide
_DAY = timedelta(days=1)


@dataclass(slots=True)
class Rebuilt:
    """What was found of one day.

    Attributes:
        windows: that are over, computed from the readings.
        appended: of them that were missing, or rest on more readings than the table said.
        differing: that rest on as many readings and say something else.
        replaced: of those, written anew.
        beyond: in the table, resting on more readings than there are; they are left alone.
    """

    day: date
    windows: int = 0
    appended: int = 0
    differing: int = 0
    replaced: int = 0
    beyond: int = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """The windows that start between, of the devices from the first to the last of these by name."""

    begin: datetime
    end: datetime
    devices: tuple[str, str]

    def condition(self, day: date) -> str:
        """The piece as SQL has it."""
        first, last = (sql_literal(device_id) for device_id in self.devices)
        return (
            f"{sql_condition({PARTITION_COLUMN: day})} AND window_start >= {sql_literal(self.begin)} "
            f"AND window_start < {sql_literal(self.end)} AND device_id >= {first} AND device_id <= {last}"
        )


def rebuild(
    settings: Settings,
    first: date,
    last: date,
    *,
    replace: bool = False,
    on_day: Callable[[Rebuilt], None] = lambda _: None,
) -> list[Rebuilt]:
    """Computes the windows that start on the days from ``first`` to ``last``, and mends the table.

    Args:
        replace: write rows anew that say something else at the same number of readings.
        on_day: called after each day.

    Raises:
        LeaseHeld: landing is running.
        SmokeError: there are no readings or no windows yet, or the engine has readings to catch up with.
    """
    with Lease(lease_path(settings), f"rebuild-windows-{os.getpid()}"):
        lake = Lake(settings.lake)
        cut = _cut(settings, lake)
        done = []
        day = first
        while day <= last:
            done.append(_day(lake, cut, day, replace=replace))
            on_day(done[-1])
            day += _DAY
        return done


def _cut(settings: Settings, lake: Lake) -> WindowCut:
    remedy = "let landing run: it computes the windows of all that has landed"
    if not (lake.exists(READINGS) and lake.exists(WINDOWS)):
        raise SmokeError("there are no windows yet", remedy)
    facts = TopicWatcher(settings.brokers, settings.topic_readings).facts()
    if facts is None:
        raise SmokeError(f"there is no topic {settings.topic_readings!r}", "make it with `smoke topics create`")
    cut = WindowCut(settings, facts, lambda: intervals_of(lake), lambda: datetime.now(UTC))
    if not cut.others_are_done():
        raise SmokeError(f"topic {settings.topic_readings} was made anew, and what landed before is not done", remedy)
    behind = sum(max(0, end - cut.positions.get(number, 0)) for number, end in cut.landed().items())
    if behind:
        raise SmokeError(f"{behind:,} readings have landed that the windows do not reflect yet", remedy)
    return cut


def _day(lake: Lake, cut: WindowCut, day: date, *, replace: bool) -> Rebuilt:
    found = Rebuilt(day)
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    awaited = cut.open.awaited().select("device_id", "begin")
    for piece in _pieces(cut, begin, begin + _DAY):
        computed = _computed(cut, piece, awaited)
        if computed.height:
            found.windows += computed.height
            _mend(lake, cut, piece, computed, found, replace=replace)
    return found


def _mend(lake: Lake, cut: WindowCut, piece: _Piece, computed: pl.DataFrame, found: Rebuilt, *, replace: bool) -> None:
    """Appends what is missing of a piece, replaces what differs, and counts both."""
    table = WindowTable(lake)
    known = table.between(piece.begin, piece.end, ROW_KEY, piece.devices)
    compared = computed.join(known.rename({"revision": "known"}), on=WINDOW_KEY, how="left")
    missing = compared.filter(pl.col("known").is_null() | (pl.col("revision") > pl.col("known"))).drop("known")
    same = compared.filter(pl.col("revision") == pl.col("known")).drop("known")
    differing = _differing(same, table.rows_of(same.select(ROW_KEY)))
    found.beyond += computed.height - missing.height - same.height
    found.appended += missing.height
    found.differing += differing.height
    if replace and differing.height:
        mended = pl.concat([missing, differing])
        kept = table.rows_of(known.join(mended, on=WINDOW_KEY, how="anti"))
        rows = pl.concat([kept, stamped(mended, datetime.now(UTC))])
        lake.replace_where(WINDOWS, rows, piece.condition(piece.begin.date()))
        found.replaced += differing.height
        cut.table.refresh()
    elif missing.height:
        cut.append_rows(missing)


def _computed(cut: WindowCut, piece: _Piece, awaited: pl.DataFrame) -> pl.DataFrame:
    """The windows of a piece, without those that are still awaited."""
    rows = cut.past.at(piece.begin, piece.end + _OVERLAP, piece.devices)
    wanted = DEFAULT.touched(rows).filter(pl.col("window_start").is_between(piece.begin, piece.end, closed="left"))
    over = wanted.join(awaited, on="device_id", how="left").filter(
        pl.col("begin").is_null() | (pl.col("window_start") < pl.col("begin"))
    )
    if over.is_empty():
        return pl.DataFrame(schema=WINDOW_SCHEMA)
    return compute(rows, intervals_s=cut.intervals(), windows=over.select(WINDOW_KEY))


def _pieces(cut: WindowCut, begin: datetime, end: datetime) -> Iterator[_Piece]:
    """The windows that start between, as pieces of ``_ROWS_AT_ONCE``; a window starts at each edge."""
    counted = cut.past.counts(begin, end + _OVERLAP, pl.col("event_time").dt.truncate(DEFAULT.slide))
    a_slide = dict(counted.iter_rows())
    while begin < end:
        until, held = begin, 0
        ahead = begin
        while until < end:
            # The readings of the window that would be the piece's last one, as far as they are not held already.
            while ahead <= until + _OVERLAP:
                held += a_slide.get(ahead, 0)
                ahead += DEFAULT.slide
            if held > _ROWS_AT_ONCE and until >= begin + _LEAST_LENGTH:
                break
            until += DEFAULT.slide
        for devices in _shares(cut, begin, until):
            yield _Piece(begin, until, devices)
        begin = until


def _shares(cut: WindowCut, begin: datetime, until: datetime) -> Iterator[tuple[str, str]]:
    """The devices that have readings then, as ranges by name whose readings and windows can be held."""
    counted = cut.past.counts(begin, until + _OVERLAP, pl.col("device_id"))
    windows = pl.min_horizontal(pl.col("len") * DEFAULT.windows_per_reading, (until - begin) // DEFAULT.slide)
    weight = pl.col("len") + windows * _READINGS_PER_WINDOW
    shares = counted.group_by((weight.cum_sum() - 1) // _ROWS_AT_ONCE, maintain_order=True)
    yield from shares.agg(first=pl.col("by").first(), last=pl.col("by").last()).select("first", "last").iter_rows()


def _differing(computed: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The rows that say something else than those of the same window in the table."""
    pairs = computed.join(known.drop(WRITTEN_AT), on=WINDOW_KEY, how="inner", suffix="_known")
    others = [name for name in WINDOW_SCHEMA if name not in WINDOW_KEY]
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_known")) for name in others)
    return pairs.filter(~same).select(list(WINDOW_SCHEMA))
