"""When a window's row is appended, and what has to be kept in memory until then. Pure.

Belongs here: the devices' clocks, which windows wait and which are due, which rows are held for them, what a start
rebuilds. Does not: the statistics (``domain.windows``), reading and committing (``streaming.windows``).

A window is appended when its end passes on its device's clock, or when the device has been silent for ``SILENCE``; and
again, with a higher revision, as soon as a reading falls into it afterwards. A revision is the number of readings that
the window rests on, so what the table says by highest revision does not depend on how the readings were cut into
batches, nor on crashes in between. ``docs/stream-processing.md`` tells it at length.

Memory holds the readings of windows that are not due: for each device those of its last five minutes. Whatever else is
asked for, a correction of a window that was appended long ago above all, is read from the past (``Past``), which has
every reading that was taken. A device that fell silent and whose windows are all appended is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Protocol

import polars as pl

from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.windows import DEFAULT, ROW_COLUMNS, WindowSpec

#: A device of which nothing was appended for this long is taken to be silent; its windows wait no longer.
SILENCE = timedelta(minutes=10)
#: Readings of one device that are held at most. A device whose clock stands still puts all of them into one window,
#: for ever; beyond this, they are read from the past when they are needed.
MOST_HELD_OF_A_DEVICE = 20_000
#: Readings that are handed to the statistics at once, about: memory, and the time for which the processors are taken.
ROWS_AT_ONCE = 250_000
#: Windows that are read from the past at once.
WINDOWS_AT_ONCE = 1_000
#: Small frames of held readings are put together when there are this many.
_SMALL_FRAMES = 32
_SMALL_ROWS = 200_000
#: Readings that are no longer needed stay in memory until there are this many times as many as were needed before, and
#: so many: looking for them costs a pass over all.
_SLACK = 1.2
SLACK_ROWS = 20_000

_TIME = pl.Datetime("us", "UTC")

#: Columns of the readings that ``OpenWindows.take`` is given.
TAKEN_COLUMNS: tuple[str, ...] = (*ROW_COLUMNS, "late", "append_time", "ingest_time")

_HELD = ("code", "event_time", "sequence", "topic", "partition", "offset", *SENSOR_NAMES, "fire_alarm", "ingest_time")
_DEVICES: Mapping[str, pl.DataType] = {
    "device_id": pl.String(),
    "code": pl.UInt32(),
    # The greatest event time of its readings, late ones left out.
    "clock": _TIME,
    # When its newest reading was appended, late ones included.
    "heard": _TIME,
    # From this event time on all its readings are held; null where none are, because they are too many.
    "held_from": _TIME,
    # When the first of those landed that are not held although windows wait for them.
    "since": _TIME,
}
_WAITING: Mapping[str, pl.DataType] = {"code": pl.UInt32(), "window_start": _TIME}
#: (device, event times from ``begin`` up to, not including, ``end``).
SPAN: Mapping[str, pl.DataType] = {"device_id": pl.String(), "begin": _TIME, "end": _TIME}
#: A window as it was appended last.
APPENDED: Mapping[str, pl.DataType] = {
    "device_id": pl.String(),
    "window_start": _TIME,
    "revision": pl.Int64(),
    "last_event_time": _TIME,
}
#: A device in what a start reads: greatest event time (late ones left out) and time of the newest append.
SUMMARY: Mapping[str, pl.DataType] = {"device_id": pl.String(), "clock": _TIME, "heard": _TIME}


class Past(Protocol):
    """What was taken and appended so far: the readings in the lake, and the table of windows."""

    def rows(self, spans: pl.DataFrame) -> pl.DataFrame:
        """The readings that were taken and are not late in these spans (``SPAN``), each once.

        Returns:
            Columns ``ROW_COLUMNS`` and ``ingest_time``, in any order of rows. Readings outside the spans may be
            among them.
        """

    def appended(self, since: pl.DataFrame) -> pl.DataFrame:
        """The windows of these devices that were appended and start at ``begin`` or later, by highest revision.

        Args:
            since: columns device_id, begin.

        Returns:
            Columns of ``APPENDED``.
        """


# -- arithmetic of windows -------------------------------------------------------------------------------


def first_open(time: pl.Expr, spec: WindowSpec = DEFAULT) -> pl.Expr:
    """The start of the earliest window that is not over at ``time``; it is also the earliest that holds ``time``."""
    return (time - spec.length).dt.truncate(spec.slide) + spec.slide


def merged(spans: pl.DataFrame) -> pl.DataFrame:
    """Spans (``SPAN``) of which no two of a device overlap or touch, covering the same."""
    if spans.is_empty():
        return spans
    before = pl.col("end").cum_max().shift(1).over("device_id")
    return (
        spans.sort("device_id", "begin", "end")
        .with_columns(run=((pl.col("begin") > before).fill_null(value=False)).cum_sum().over("device_id"))
        .group_by("device_id", "run", maintain_order=True)
        .agg(pl.col("begin").min(), pl.col("end").max())
        .select("device_id", "begin", "end")
    )


def within(rows: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """The rows (device_id, event_time, ...) that lie in one of the spans, which must be ``merged``."""
    # The one span that could hold a row is the last that begins before it; a join with all spans of the device would
    # multiply its rows by them. Sorting is dear, so it is done for the devices asked for alone.
    asked = rows.join(spans, on="device_id", how="semi").sort("event_time")
    found = asked.join_asof(
        spans.sort("begin"),
        left_on="event_time",
        right_on="begin",
        by="device_id",
        strategy="backward",
        check_sortedness=False,
    )
    return found.filter(pl.col("event_time") < pl.col("end")).select(rows.columns)


def revisions(rows: pl.DataFrame, spec: WindowSpec = DEFAULT) -> pl.DataFrame:
    """The revision of each window that readings fall into, which is how many do.

    Args:
        rows: columns device_id and event_time; no late readings.

    Returns:
        Columns device_id, window_start, revision.
    """
    return (
        rows.group_by("device_id", window_start=pl.col("event_time").dt.truncate(spec.slide))
        .agg(pl.len().cast(pl.Int64).alias("revision"))
        .select("device_id", "revision", window_start=_starts(spec))
        .explode("window_start")
        .group_by("device_id", "window_start")
        .agg(pl.col("revision").sum())
    )


def _starts(spec: WindowSpec) -> pl.Expr:
    """The starts of all windows that hold a time whose own slide begins at ``window_start``."""
    return pl.concat_list([pl.col("window_start") - index * spec.slide for index in range(spec.windows_per_reading)])


# -- what is open ----------------------------------------------------------------------------------------


class OpenWindows:
    """The windows that wait to be appended, and the readings that are held for them.

    Readings come in batches; which windows are due may be asked at any time. What is due is computed from ``batches``,
    committed, and then ``settle``d. After a crash a new one is made and ``restore``d.

    Args:
        past: where everything that was taken can be read. While ``take`` runs it must not hold the batch that is being
            taken; while ``batches`` and ``settle`` run it must hold all that were.
        spec: which windows.
        most_held: readings that are held of one device at most.
        slack_rows: readings that may stay in memory although nothing needs them any more.
    """

    def __init__(
        self,
        past: Past,
        spec: WindowSpec = DEFAULT,
        *,
        most_held: int = MOST_HELD_OF_A_DEVICE,
        slack_rows: int = SLACK_ROWS,
    ) -> None:
        self._past = past
        self._spec = spec
        self._most_held = most_held
        self._slack_rows = slack_rows
        self._devices = pl.DataFrame(schema=dict(_DEVICES))
        self._waiting = pl.DataFrame(schema=dict(_WAITING))
        # Windows that were appended although they are not over, because their device had been silent.
        self._early = pl.DataFrame(schema=dict(_WAITING))
        self._frames: list[pl.DataFrame] = []
        self._topics: dict[str, int] = {}
        self._next_code = 0
        self._held_before = 0
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

    @property
    def surely_due(self) -> int:
        """So many of them are due at least: of each device no more are open than hold one moment."""
        return max(0, self._waiting.height - self._spec.windows_per_reading * self._devices.height)

    @property
    def held(self) -> int:
        """Readings in memory."""
        return sum(frame.height for frame in self._frames)

    @property
    def held_bytes(self) -> int:
        """What the readings in memory take, in bytes."""
        return sum(int(frame.estimated_size()) for frame in self._frames)

    def oldest(self) -> datetime | None:
        """When the first of the readings landed that a start has to read again; ``None`` where there are none."""
        times = [*(frame["ingest_time"].min() for frame in self._frames), self._devices["since"].min()]
        return min((time for time in times if isinstance(time, datetime)), default=None)

    def silent_at(self) -> datetime | None:
        """When silence makes the next windows due, should nothing more come; ``None`` where none waits."""
        heard = self._devices.join(self._waiting, on="code", how="semi")["heard"].min()
        return heard + SILENCE if isinstance(heard, datetime) else None

    def awaited(self) -> pl.DataFrame:
        """The devices that are remembered, and from which on their windows are not over: code, device_id, begin."""
        return self._devices.select("code", "device_id", begin=first_open(pl.col("clock"), self._spec))

    # -- taking readings ---------------------------------------------------------------------------------
    def take(self, rows: pl.DataFrame) -> None:
        """Notes the readings of a batch.

        Args:
            rows: columns ``TAKEN_COLUMNS``, late readings included.
        """
        if rows.is_empty():
            return
        live = rows.filter(~pl.col("late"))
        seen = live.group_by("device_id").agg(
            pl.col("event_time").min().alias("first"), pl.col("event_time").max().alias("last")
        )
        # A late reading says that the device lives, and nothing else.
        heard = rows.group_by("device_id").agg(_appended().max().alias("now"))
        self._meet(seen.join(self._devices, on="device_id", how="anti"))
        self._devices = (
            self._devices.join(seen.select("device_id", "last"), on="device_id", how="left")
            .join(heard, on="device_id", how="left")
            .with_columns(clock=pl.max_horizontal("clock", "last"), heard=pl.max_horizontal("heard", "now"))
            .select(list(_DEVICES))
        )
        if live.is_empty():
            return
        coded = live.join(self._devices.select("device_id", "code", "held_from"), on="device_id", how="inner")
        self._waiting = pl.concat([self._waiting, self._spec.touched(coded, "code")]).unique()
        self._hold(coded.filter(pl.col("event_time") >= pl.col("held_from")))

    def _meet(self, strangers: pl.DataFrame) -> None:
        """Enters devices that are not remembered (columns device_id, first, last), with what the past has of them.

        Whoever is not remembered has no window that waits: all its readings stand in windows that were appended. So the
        latest of these windows tell its clock.
        """
        if strangers.is_empty():
            return
        begin = first_open(pl.col("first"), self._spec).alias("begin")
        appended = self._past.appended(strangers.select("device_id", begin))
        known = appended.group_by("device_id").agg(pl.col("last_event_time").max().alias("clock"))
        entered = strangers.join(known, on="device_id", how="left").with_columns(
            heard=pl.lit(None, _TIME),
            held_from=pl.when(pl.col("clock").is_null())
            .then(first_open(pl.col("first"), self._spec))
            .otherwise(first_open(pl.max_horizontal("clock", "last"), self._spec)),
        )
        self._enter(entered)
        self._note_early(appended)
        returned = entered.filter(pl.col("clock") >= pl.col("held_from"))
        if returned.height:
            self._recall(returned.select("device_id", begin="held_from", clock="clock"))

    def _enter(self, devices: pl.DataFrame) -> None:
        """Adds devices (columns device_id, clock, heard, held_from) to those that are remembered."""
        codes = pl.Series("code", range(self._next_code, self._next_code + devices.height), dtype=pl.UInt32)
        self._next_code += devices.height
        entered = devices.with_columns(codes, since=pl.lit(None, _TIME)).select(list(_DEVICES))
        self._devices = pl.concat([self._devices, entered])

    def _note_early(self, appended: pl.DataFrame) -> None:
        """Notes windows (device_id, window_start) that stand in the table: whatever comes to them makes them due."""
        coded = appended.join(self._devices.select("device_id", "code"), on="device_id", how="inner")
        self._early = pl.concat([self._early, coded.select(list(_WAITING))]).unique()

    def _recall(self, devices: pl.DataFrame) -> None:
        """Takes what the past has of these devices (columns device_id, begin, clock) into memory."""
        beyond = pl.col("clock") + timedelta(microseconds=1)
        spans = devices.select("device_id", "begin", end=beyond)
        found = within(self._past.rows(spans), spans)
        self._hold(found.join(self._devices.select("device_id", "code"), on="device_id", how="inner"))

    def _hold(self, rows: pl.DataFrame) -> None:
        """Keeps readings (columns ``ROW_COLUMNS``, ingest_time and code)."""
        if rows.is_empty():
            return
        for topic in rows["topic_id"].unique().to_list():
            self._topics.setdefault(topic, len(self._topics))
        topic = pl.col("topic_id").replace_strict(self._topics, return_dtype=pl.UInt32).alias("topic")
        self._frames.append(rows.with_columns(topic).select(_HELD))
        small = [frame for frame in self._frames if frame.height < _SMALL_ROWS]
        if len(small) >= _SMALL_FRAMES:
            large = [frame for frame in self._frames if frame.height >= _SMALL_ROWS]
            self._frames = [*large, pl.concat(small, rechunk=True)]

    # -- what is due -------------------------------------------------------------------------------------
    def due(self, until: datetime | None = None) -> pl.DataFrame:
        """The windows that are to be appended now.

        Args:
            until: everything that was appended to the log up to this moment has been taken; silence is judged by it,
                and not at all where it is not known.

        Returns:
            Columns code, device_id, window_start, held (whether its readings are in memory).
        """
        self._until = until
        end = pl.col("window_start") + self._spec.length
        return (
            self._waiting.join(self._devices, on="code", how="inner")
            .join(self._early.with_columns(early=pl.lit(value=True)), on=["code", "window_start"], how="left")
            .filter((end <= pl.col("clock")) | self._silent() | pl.col("early"))
            .select(
                "code",
                "device_id",
                "window_start",
                held=(pl.col("window_start") >= pl.col("held_from")).fill_null(value=False),
            )
        )

    def _silent(self) -> pl.Expr:
        if self._until is None:
            return pl.lit(value=False)
        return (pl.col("heard") < self._until - SILENCE).fill_null(value=False)

    def batches(self, due: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """What the statistics need for the windows that are due, in portions.

        Args:
            due: what ``due`` gave.

        Yields:
            The readings (``ROW_COLUMNS``) and the windows (device_id, window_start) to be computed from them.
        """
        yield from self._from_memory(due.filter("held"))
        elsewhere = due.filter(~pl.col("held")).sort("window_start", "device_id")
        length = self._spec.length
        for windows in elsewhere.iter_slices(WINDOWS_AT_ONCE):
            spans = merged(windows.select("device_id", begin="window_start", end=pl.col("window_start") + length))
            rows = within(self._past.rows(spans), spans)
            yield rows.select(ROW_COLUMNS), windows.select("device_id", "window_start")

    def _from_memory(self, due: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        if due.is_empty():
            return
        codes = due["code"].unique().sort()
        rows_each = max(1, self.held // max(1, self._devices.height))
        step = max(1, ROWS_AT_ONCE // rows_each)
        length = self._spec.length
        names = self._devices.select("code", "device_id")
        topics = {number: name for name, number in self._topics.items()}
        topic_id = pl.col("topic").replace_strict(topics, return_dtype=pl.String).alias("topic_id")
        for first in range(0, len(codes), step):
            low, high = codes[first], codes[min(first + step, len(codes)) - 1]
            windows = due.filter(pl.col("code").is_between(low, high))
            begin, end = windows.select(pl.col("window_start").min(), pl.col("window_start").max().alias("end")).row(0)
            wanted = pl.col("code").is_between(low, high) & pl.col("event_time").is_between(
                begin, end + length, closed="left"
            )
            rows = pl.concat([frame.filter(wanted) for frame in self._frames])
            rows = rows.join(names, on="code", how="inner").with_columns(topic_id)
            yield rows.select(ROW_COLUMNS), windows.select("device_id", "window_start")

    # -- after appending ---------------------------------------------------------------------------------
    def settle(self, due: pl.DataFrame) -> None:
        """Forgets what need not be held any longer, now that these windows (of ``due``) are going to be appended."""
        self._waiting = self._waiting.join(due, on=["code", "window_start"], how="anti")
        over = self._devices.filter(self._silent()).join(self._waiting, on="code", how="anti")
        self._devices = self._devices.join(over, on="code", how="anti")
        self._early = (
            self._early.join(self.awaited(), on="code", how="inner")
            .filter(pl.col("window_start") >= pl.col("begin"))
            .select(list(_WAITING))
        )
        floor = first_open(pl.col("clock"), self._spec)
        crowded = self._devices.filter(pl.col("held_from").is_null()).join(due, on="code", how="semi")
        self._devices = self._devices.with_columns(held_from=pl.max_horizontal("held_from", floor)).with_columns(
            held_from=pl.when(pl.col("since").is_null()).then("held_from")
        )
        if self._devices.is_empty() or self.held > _SLACK * self._held_before + self._slack_rows:
            self._prune()
        self._leave_crowded()
        if crowded.height:
            self._hold_again(crowded)

    def _prune(self) -> None:
        """Lets go of readings that no open window needs."""
        kept = self._devices.select("code", "held_from")
        lowest = kept["held_from"].min()
        frames = []
        for frame in self._frames:
            if not isinstance(lowest, datetime) or frame["event_time"].max() < lowest:  # type: ignore[operator] # times
                continue
            rows = frame.join(kept, on="code", how="inner").filter(pl.col("event_time") >= pl.col("held_from"))
            if rows.height:
                frames.append(rows.select(_HELD))
        self._frames = frames
        self._held_before = self.held

    def _leave_crowded(self) -> None:
        """Lets go of the readings of devices that have more than one device may hold."""
        if self._crowded().is_empty():
            return
        self._prune()
        crowded = self._crowded()
        if crowded.is_empty():
            return
        self._frames = [rows for frame in self._frames if (rows := frame.join(crowded, on="code", how="anti")).height]
        self._note_since(crowded)

    def _crowded(self) -> pl.DataFrame:
        """Devices that hold too much: columns code, first (when their earliest reading landed)."""
        counts = [frame.group_by("code").agg(pl.len(), pl.col("ingest_time").min()) for frame in self._frames]
        if self.held <= self._most_held or not counts:
            return pl.DataFrame(schema={"code": pl.UInt32, "first": _TIME})
        return (
            pl.concat(counts)
            .group_by("code")
            .agg(pl.col("len").sum(), pl.col("ingest_time").min().alias("first"))
            .filter(pl.col("len") > self._most_held)
            .select("code", "first")
        )

    def _note_since(self, crowded: pl.DataFrame) -> None:
        """Marks devices (columns code, first) as not held; ``first`` is when their earliest reading landed."""
        self._devices = (
            self._devices.join(crowded, on="code", how="left")
            .with_columns(
                since=pl.min_horizontal("since", "first"),
                held_from=pl.when(pl.col("first").is_null()).then("held_from"),
            )
            .select(list(_DEVICES))
        )

    def _hold_again(self, crowded: pl.DataFrame) -> None:
        """Looks whether devices whose windows went on have become few enough readings to be held."""
        known = self._devices.join(crowded, on="code", how="semi").select(
            "device_id", "code", "clock", begin=first_open(pl.col("clock"), self._spec)
        )
        if known.is_empty():
            return
        spans = known.select("device_id", "begin", end=pl.col("clock") + timedelta(microseconds=1))
        found = within(self._past.rows(spans), spans).join(known.select("device_id", "code"), on="device_id")
        few = found.group_by("code").len().filter(pl.col("len") <= self._most_held)
        self._hold(found.join(few, on="code", how="semi"))
        fits = pl.col("code").is_in(few["code"].implode())
        self._devices = self._devices.with_columns(
            since=pl.when(~fits).then("since"),
            held_from=pl.when(fits).then(first_open(pl.col("clock"), self._spec)).otherwise("held_from"),
        )

    # -- after a start -----------------------------------------------------------------------------------
    def restore(self, summary: pl.DataFrame, rows: pl.DataFrame) -> None:
        """Begins with what was taken before, as far as it landed since ``oldest`` of the last commit.

        Args:
            summary: the devices of these readings, columns of ``SUMMARY``.
            rows: of these readings those that are not late and stand in a window that is not due by the summary's
                clock; columns ``ROW_COLUMNS`` and ``ingest_time``.
        """
        known = summary.filter(pl.col("clock").is_not_null()).with_columns(
            held_from=first_open(pl.col("clock"), self._spec)
        )
        counts = revisions(rows, self._spec)
        appended = self._past.appended(known.select("device_id", begin="held_from"))
        compared = (
            counts.join(appended, on=["device_id", "window_start"], how="full", coalesce=True, suffix="_appended")
            .join(known.select("device_id", "held_from"), on="device_id", how="inner")
            .filter(pl.col("window_start") >= pl.col("held_from"))
            .with_columns(pl.col("revision", "revision_appended").fill_null(0))
        )
        # More was appended than is known here: the device was forgotten when that was committed, and some of its
        # readings had landed long before. It is met anew when it is heard of.
        partly = compared.filter(pl.col("revision") < pl.col("revision_appended"))
        known = known.join(partly, on="device_id", how="anti")
        self._enter(known)
        codes = self._devices.select("device_id", "code")
        more = compared.filter(pl.col("revision") > pl.col("revision_appended"))
        self._waiting = more.join(codes, on="device_id", how="inner").select(list(_WAITING))
        self._note_early(compared.filter(pl.col("revision_appended") > 0))
        self._hold(rows.join(codes, on="device_id", how="inner"))
        self._leave_crowded()


def _appended() -> pl.Expr:
    """When a reading was appended to the log; landing's own time where the log does not say."""
    return pl.coalesce("append_time", "ingest_time")


def summary_of(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The devices of these readings (device_id, event_time, late, append_time, ingest_time) as ``SUMMARY``."""
    return rows.group_by("device_id").agg(
        pl.col("event_time").filter(~pl.col("late")).max().alias("clock"), _appended().max().alias("heard")
    )
