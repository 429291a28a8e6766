"""Windows of past days, computed anew from the lake.

Belongs here: what ``smoke windows rebuild`` does. Does not: the engine that appends windows as readings land
(``streaming.windows``), the command line.

A landing run computes by itself the windows of all that ever landed. This is for days whose windows are doubted: rows
that are missing are appended. Rows that say something else than the readings do, at the same number of readings, are
from another definition of the statistics, or of the devices' intervals; they are replaced only when that is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import polars as pl

from smoke_platform.adapters.kafka_bulk import TopicWatcher
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake
from smoke_platform.adapters.lease import Lease
from smoke_platform.adapters.windows import WINDOW_KEY, WINDOWS, WRITTEN_AT, WindowTable, intervals_of, stamped
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.windows import DEFAULT, WINDOW_SCHEMA, compute
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import lease_path
from smoke_platform.streaming.windows import WindowCut

#: Readings that are computed at once, about.
_ROWS_AT_ONCE = 500_000
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
    return cut


def _day(lake: Lake, cut: WindowCut, day: date, *, replace: bool) -> Rebuilt:
    found = Rebuilt(day)
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    computed = pl.concat(list(_computed(cut, begin, begin + _DAY)))
    found.windows = computed.height
    known = WindowTable(lake).between(begin, begin + _DAY)
    compared = computed.join(known.select(*WINDOW_KEY, known="revision"), on=WINDOW_KEY, how="left")
    missing = compared.filter(pl.col("known").is_null() | (pl.col("revision") > pl.col("known"))).drop("known")
    found.beyond = compared.filter(pl.col("revision") < pl.col("known")).height
    same = compared.filter(pl.col("revision") == pl.col("known")).drop("known")
    differing = _differing(same, known)
    found.differing, found.appended = differing.height, missing.height
    if replace and differing.height:
        mended = pl.concat([missing, differing])
        kept = known.join(mended, on=WINDOW_KEY, how="anti")
        lake.replace_where(WINDOWS, pl.concat([kept, stamped(mended, datetime.now(UTC))]), {PARTITION_COLUMN: day})
        found.replaced = differing.height
        cut.table.refresh()
    elif missing.height:
        cut.append_rows(missing)
    return found


def _computed(cut: WindowCut, begin: datetime, end: datetime) -> Iterator[pl.DataFrame]:
    """The windows that start between, without those that are still awaited."""
    yield pl.DataFrame(schema=WINDOW_SCHEMA)
    awaited = cut.open.awaited().select("device_id", "begin")
    for first, until in _pieces(cut, begin, end):
        rows = cut.past.at(first, until + DEFAULT.length)
        wanted = DEFAULT.touched(rows).filter(pl.col("window_start").is_between(first, until, closed="left"))
        over = wanted.join(awaited, on="device_id", how="left").filter(
            pl.col("begin").is_null() | (pl.col("window_start") < pl.col("begin"))
        )
        if over.height:
            yield compute(rows, intervals_s=cut.intervals(), windows=over.select(WINDOW_KEY))


def _pieces(cut: WindowCut, begin: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The time between as pieces that hold about ``_ROWS_AT_ONCE`` readings each; a window starts at each edge."""
    minutes = max(1, int((end - begin) / DEFAULT.slide))
    a_minute = max(1, cut.past.count(begin, end) // minutes)
    step = max(1, _ROWS_AT_ONCE // a_minute) * DEFAULT.slide
    while begin < end:
        yield begin, min(end, begin + step)
        begin += step


def _differing(computed: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The rows that say something else than those of the same window in the table."""
    pairs = computed.join(known.drop(WRITTEN_AT), on=WINDOW_KEY, how="inner", suffix="_known")
    others = [name for name in WINDOW_SCHEMA if name not in WINDOW_KEY]
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_known")) for name in others)
    return pairs.filter(~same).select(list(WINDOW_SCHEMA))
