"""Which windows are due, planned from minutes of readings instead of the readings themselves. Pure.

Belongs here: the same rule as in ``domain.window_emission``, for an engine that holds no readings: it knows in which
minutes a device got any, and reads the readings themselves when a window is computed. Does not: the statistics
(``domain.windows``), who reads and computes (``streaming.spark_windows``).

Memory is a row for each device and one for each of its last minutes, however many readings there are in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import polars as pl

from smoke_platform.domain.window_emission import SILENCE, first_open
from smoke_platform.domain.windows import DEFAULT, WindowSpec

_TIME = pl.Datetime("us", "UTC")

#: Minutes of devices that got readings which are not late: how many, and when the first of them landed.
MINUTES: Mapping[str, pl.DataType] = {
    "device_id": pl.String(),
    "minute": _TIME,
    "readings": pl.Int64(),
    "landed": _TIME,
}
#: What was heard of each device: greatest event time (late readings left out; null where there are only such), and when
#: its newest reading was appended.
HEARD: Mapping[str, pl.DataType] = {"device_id": pl.String(), "clock": _TIME, "heard": _TIME}
#: A window by its name.
WINDOW: Mapping[str, pl.DataType] = {"device_id": pl.String(), "window_start": _TIME}
_KEY = list(WINDOW)

#: Columns device_id, begin -> ``window_emission.APPENDED`` of the windows that start there or later.
Appended = Callable[[pl.DataFrame], pl.DataFrame]
#: Columns device_id, begin, clock -> ``MINUTES`` of what was taken of each device in this time, ``clock`` included.
PastMinutes = Callable[[pl.DataFrame], pl.DataFrame]


def minutes_of(rows: pl.LazyFrame, spec: WindowSpec = DEFAULT) -> pl.LazyFrame:
    """``MINUTES`` of readings (device_id, event_time, late, ingest_time)."""
    return (
        rows.filter(~pl.col("late"))
        .group_by("device_id", minute=pl.col("event_time").dt.truncate(spec.slide))
        .agg(pl.len().cast(pl.Int64).alias("readings"), pl.col("ingest_time").min().alias("landed"))
    )


def heard_of(rows: pl.LazyFrame) -> pl.LazyFrame:
    """``HEARD`` of readings (device_id, event_time, late, append_time, ingest_time)."""
    return rows.group_by("device_id").agg(
        pl.col("event_time").filter(~pl.col("late")).max().alias("clock"),
        pl.coalesce("append_time", "ingest_time").max().alias("heard"),
    )


def merged_minutes(*frames: pl.DataFrame) -> pl.DataFrame:
    """The frames (``MINUTES``) as one, each minute of a device once."""
    return (
        pl.concat([pl.DataFrame(schema=dict(MINUTES)), *frames])
        .group_by("device_id", "minute")
        .agg(pl.col("readings").sum(), pl.col("landed").min())
    )


def merged_heard(*frames: pl.DataFrame) -> pl.DataFrame:
    """The frames (``HEARD``) as one, each device once."""
    return (
        pl.concat([pl.DataFrame(schema=dict(HEARD)), *frames])
        .group_by("device_id")
        .agg(pl.col("clock").max(), pl.col("heard").max())
    )


def windows_of(minutes: pl.DataFrame, spec: WindowSpec = DEFAULT) -> pl.DataFrame:
    """The windows that these minutes (``MINUTES``) lie in, with ``revision``: the readings that fall into each."""
    begins = [pl.col("minute") - step * spec.slide for step in range(spec.windows_per_reading)]
    return (
        minutes.select("device_id", "readings", window_start=pl.concat_list(begins))
        .explode("window_start")
        .group_by(_KEY)
        .agg(pl.col("readings").sum().alias("revision"))
    )


class WaitingWindows:
    """The windows that have readings of which the table does not know yet.

    Args:
        appended: what the table has of some devices' windows.
        past_minutes: what was taken before the batch that is being taken.
    """

    def __init__(self, appended: Appended, past_minutes: PastMinutes, spec: WindowSpec = DEFAULT) -> None:
        self._appended = appended
        self._past_minutes = past_minutes
        self._spec = spec
        self._devices = pl.DataFrame(schema=dict(HEARD))
        #: Of each device the minutes of its open windows.
        self._minutes = pl.DataFrame(schema=dict(MINUTES))
        self._waiting = pl.DataFrame(schema=dict(WINDOW))
        #: Windows that were appended although they are not over, because their device had been silent.
        self._early = pl.DataFrame(schema=dict(WINDOW))
        self._until: datetime | None = None

    # -- asking ------------------------------------------------------------------------------------------
    @property
    def devices(self) -> int:
        """Devices that are remembered."""
        return self._devices.height

    @property
    def waiting(self) -> int:
        """Windows that have readings of which the table does not know yet."""
        return self._waiting.height

    def oldest(self) -> datetime | None:
        """When the first of the readings landed that a start has to look at again; ``None`` where there are none."""
        found = self._minutes["landed"].min()
        return found if isinstance(found, datetime) else None

    def silent_at(self) -> datetime | None:
        """When silence makes the next windows due, should nothing more come; ``None`` where none waits."""
        heard = self._devices.join(self._waiting, on="device_id", how="semi")["heard"].min()
        return heard + SILENCE if isinstance(heard, datetime) else None

    # -- taking ------------------------------------------------------------------------------------------
    def take(self, minutes: pl.DataFrame, heard: pl.DataFrame) -> None:
        """Notes what a batch of readings brought: ``MINUTES`` and ``HEARD`` of it, each device and minute once."""
        if heard.is_empty():
            return
        live = heard.filter(pl.col("clock").is_not_null())
        self._meet(live.join(self._devices, on="device_id", how="anti"), minutes)
        # A late reading says that the device lives, and nothing else.
        known = heard.join(self._devices.select("device_id"), on="device_id", how="semi")
        self._devices = merged_heard(self._devices, known.select(list(HEARD)))
        self._waiting = pl.concat([self._waiting, windows_of(minutes, self._spec).select(_KEY)]).unique()
        self._keep(merged_minutes(self._minutes, minutes.select(list(MINUTES))))

    def _meet(self, strangers: pl.DataFrame, minutes: pl.DataFrame) -> None:
        """Enters devices that are not remembered, with what the past has of them.

        Whoever is not remembered has no window that waits: all its readings stand in windows that were appended. So the
        latest of these windows tell its clock.
        """
        if strangers.is_empty():
            return
        first = minutes.group_by("device_id").agg(first_open(pl.col("minute").min(), self._spec).alias("begin"))
        appended = self._appended(strangers.select("device_id").join(first, on="device_id", how="inner"))
        known = appended.group_by("device_id").agg(pl.col("last_event_time").max().alias("before"))
        entered = strangers.join(known, on="device_id", how="left")
        returned = entered.select(
            "device_id", begin=first_open(pl.max_horizontal("before", "clock"), self._spec), clock="before"
        ).filter(pl.col("clock") >= pl.col("begin"))
        if returned.height:
            self._minutes = merged_minutes(self._minutes, self._past_minutes(returned).select(list(MINUTES)))
        self._devices = pl.concat(
            [
                self._devices,
                entered.select("device_id", clock=pl.max_horizontal("before", "clock"), heard=pl.lit(None, _TIME)),
            ]
        )
        # They stand in the table: whatever comes to them makes them due.
        self._early = pl.concat([self._early, appended.select(_KEY)]).unique()

    def _keep(self, minutes: pl.DataFrame) -> None:
        """Keeps the minutes in which open windows of remembered devices lie."""
        floors = self._devices.select("device_id", floor=first_open(pl.col("clock"), self._spec))
        self._minutes = (
            minutes.join(floors, on="device_id", how="inner")
            .filter(pl.col("minute") >= pl.col("floor"))
            .select(list(MINUTES))
        )

    # -- what is due -------------------------------------------------------------------------------------
    def due(self, until: datetime | None = None) -> pl.DataFrame:
        """The windows (``WINDOW``) that are to be appended now, the earliest first.

        Args:
            until: everything that was appended to the log up to this moment has been taken; silence is judged by it,
                and not at all where it is not known.
        """
        self._until = until
        return (
            self._waiting.join(self._devices, on="device_id", how="inner")
            .join(self._early.with_columns(early=pl.lit(value=True)), on=_KEY, how="left")
            .filter((pl.col("window_start") + self._spec.length <= pl.col("clock")) | self._silent() | pl.col("early"))
            .select(_KEY)
            .sort("window_start", "device_id")
        )

    def _silent(self) -> pl.Expr:
        if self._until is None:
            return pl.lit(value=False)
        return (pl.col("heard") < self._until - SILENCE).fill_null(value=False)

    def settle(self, due: pl.DataFrame) -> None:
        """Forgets what need not be known any longer, now that these windows (of ``due``) are going to be appended."""
        self._waiting = self._waiting.join(due, on=_KEY, how="anti")
        over = self._devices.filter(self._silent()).join(self._waiting, on="device_id", how="anti")
        self._devices = self._devices.join(over, on="device_id", how="anti")
        floors = self._devices.select("device_id", floor=first_open(pl.col("clock"), self._spec))
        self._early = (
            self._early.join(floors, on="device_id", how="inner")
            .filter(pl.col("window_start") >= pl.col("floor"))
            .select(_KEY)
        )
        self._keep(self._minutes)

    # -- after a start -----------------------------------------------------------------------------------
    def restore(self, heard: pl.DataFrame, minutes: pl.DataFrame, *, everything: bool) -> None:
        """Begins with what was taken before.

        Args:
            heard: the devices of these readings.
            minutes: of these readings.
            everything: whether these are all readings there are, so that windows of any time may wait; else those that
                landed since ``oldest`` of the last commit, and only windows that are open may.
        """
        known = heard.filter(pl.col("clock").is_not_null()).select(list(HEARD))
        floors = known.select("device_id", floor=first_open(pl.col("clock"), self._spec))
        begins = (
            minutes.group_by("device_id").agg(first_open(pl.col("minute").min(), self._spec).alias("begin"))
            if everything
            else floors.select("device_id", begin="floor")
        )
        begins = begins.join(known, on="device_id", how="semi")
        compared = (
            windows_of(minutes, self._spec)
            .join(self._appended(begins), on=_KEY, how="full", coalesce=True, suffix="_appended")
            .join(begins, on="device_id", how="inner")
            .filter(pl.col("window_start") >= pl.col("begin"))
            .with_columns(pl.col("revision", "revision_appended").fill_null(0))
        )
        # More was appended than is known here: the device was forgotten when that was committed, and some of its
        # readings had landed long before. It is met anew when it is heard of.
        partly = compared.filter(pl.col("revision") < pl.col("revision_appended"))
        self._devices = known.join(partly, on="device_id", how="anti")
        more = compared.filter(pl.col("revision") > pl.col("revision_appended"))
        self._waiting = more.join(self._devices, on="device_id", how="semi").select(_KEY)
        there = compared.filter(pl.col("revision_appended") > 0)
        self._early = there.join(self._devices, on="device_id", how="semi").select(_KEY)
        self._keep(minutes.select(list(MINUTES)))
