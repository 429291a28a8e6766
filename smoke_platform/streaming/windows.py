"""Engine ``local``: windows beside the landing of readings, from ``lake/readings`` to ``lake/window_statistics``.

Belongs here: the thread that takes what has landed, computes the windows that are due and commits them with the
positions of the readings they rest on. Does not: which windows are due (``domain.window_emission``), the statistics
(``domain.windows``), reading the table (``adapters.windows``), the command line.

It works in the run that lands the readings, on one thread of its own, and is told of each commit. A batch that begins
where this engine stands is taken from memory; where it does not, because the engine was slower and the queue was full
or because it has just started, the readings are read from the lake. So landing never waits for the windows.

Exactly once rests on the same rule as in landing: positions stand in the same Delta commit as the rows. A position says
up to where the readings are reflected: each window that was due by then stands in the table. What was open is found
again after a start among the readings that landed since the mark ``ROWS_SINCE``, which each commit moves along.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import polars as pl
from deltalake import DeltaTable

from smoke_platform.adapters.kafka_bulk import KafkaUnreachable, TopicFacts, TopicWatcher
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake, writer_properties
from smoke_platform.adapters.windows import (
    INDEXED,
    ROW_KEY,
    WINDOW_COLUMNS,
    WINDOW_KEY,
    WINDOW_TABLE_SCHEMA,
    WINDOWS,
    WRITTEN_AT,
    Intervals,
    TakenReadings,
    stamped,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.offsets import advanced
from smoke_platform.domain.window_emission import TAKEN_COLUMNS, OpenWindows
from smoke_platform.domain.windows import DEFAULT, compute
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import (
    TABLE_CONFIGURATION,
    Fenced,
    LandedBatch,
    LandedTable,
    LandingReport,
    TableShape,
    committed_positions,
    stamps_folder,
)

log = logging.getLogger(__name__)

#: Readings that wait in memory at most; what comes beyond is read from the lake.
MOST_WAITING_ROWS = 400_000
#: Readings that are read from the lake at once.
CHUNK_ROWS = 1_000_000
#: When about so many windows are due they are appended before more readings are taken. Of devices that report once a
#: minute there are as many windows as readings, and a window takes as much memory as 15 readings.
MOST_DUE = 100_000
#: Positions alone are committed this long after they have moved: a start then reads no more than that again.
POSITIONS_EVERY_S = 60.0
#: How often the log's end is asked for, by which silence is judged.
ENDS_EVERY_S = 15.0
INTERVALS_EVERY_S = 60.0
#: After a fault the state is built anew from the lake: after this time, then after twice as long, and so on.
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0
#: A step that takes longer is taken for stuck. The slowest one is the first look at a large lake.
STUCK_S = 900.0
_WAKE_S = 0.5

#: Numbers that are committed with the rows. When the first of the readings landed that a start has to read again, epoch
#: ms, 0 for none; it holds where ``STATE_OF`` names the topic and the positions of the commit.
ROWS_SINCE = "windows/rows-since"
STATE_OF = "windows/state-of"
#: When silence makes the next window due, epoch ms, 0 where none waits: then somebody has to look.
SILENCE_AT = "windows/silence-at"
#: The topic that was landed when the readings of all others had been taken.
OTHERS_DONE = "windows/others-done"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

WINDOWS_SHAPE = TableShape(
    WINDOWS,
    WINDOW_TABLE_SCHEMA,
    PARTITION_COLUMN,
    {**TABLE_CONFIGURATION, "delta.dataSkippingStatsColumns": ",".join(INDEXED)},
    writer_properties(),
)


def is_wanted(settings: Settings) -> bool:
    """Whether windows are computed beside the landing of the readings: engine ``spark`` does it by itself."""
    return str(getattr(settings, "engine", "local")) == "local"


@dataclass(slots=True)
class WindowTally:
    """What was appended since the tally began.

    Attributes:
        windows: rows, of which ``corrections`` are of windows whose readings had left memory.
        version: the table's after it.
        positions: partition -> offset up to which the readings are reflected.
        behind: readings' offsets that have landed and are not reflected yet.
        newest_end: the latest end of an appended window.
        fault: what keeps the engine from working, empty where nothing does.
    """

    windows: int = 0
    corrections: int = 0
    commits: int = 0
    version: int = -1
    positions: dict[int, int] = field(default_factory=dict)
    behind: int = 0
    newest_end: datetime | None = None
    fault: str = ""

    def add(self, other: WindowTally) -> None:
        self.windows += other.windows
        self.corrections += other.corrections
        self.commits += other.commits
        self.version = max(self.version, other.version)
        self.positions = other.positions or self.positions
        if other.newest_end is not None:
            self.newest_end = max(self.newest_end or other.newest_end, other.newest_end)


# -- one topic's readings --------------------------------------------------------------------------------


class WindowCut:
    """The windows as far as the readings of one topic are taken.

    Args:
        accepted: values of ``STATE_OF`` that hold beside the one of this topic's positions.
        closed: partition -> offset after the last reading, of a topic that gets no more of them. Its readings may have
            been taken under other names, so each row is looked for in the table before it is appended.
        taken: topic id -> positions, of all topics; for a closed one. Where none are given, all others were taken.
    """

    def __init__(
        self,
        settings: Settings,
        facts: TopicFacts,
        intervals: Callable[[], Mapping[str, float]],
        now: Callable[[], datetime],
        *,
        accepted: Collection[int] = (),
        closed: Mapping[int, int] | None = None,
        taken: Mapping[str, Mapping[int, int]] | None = None,
    ) -> None:
        lake = Lake(settings.lake)
        self.facts = facts
        self.intervals = intervals
        self._now = now
        self._closed = closed
        self.table = LandedTable(lake, facts, WINDOWS_SHAPE, stamps=stamps_folder(settings))
        self.positions = {number: place or 0 for number, place in self.table.positions.items()}
        self._committed = dict(self.positions)
        self._committed_at = time.monotonic()
        self._last_written = _EPOCH
        self._rows_at_once = CHUNK_ROWS
        everything = {**(taken or {}), facts.topic_id: self.positions}
        self.past = TakenReadings(lake.open(READINGS), lambda: self.table.snapshot, everything)
        self.open = OpenWindows(self.past)
        self._restore({fingerprint(facts.topic_id, self.positions), *accepted})

    @property
    def moved(self) -> bool:
        """Whether readings were taken that no commit reflects."""
        return self.positions != self._committed

    @property
    def full(self) -> bool:
        """Whether what is due ought to be appended before more is taken."""
        return self.open.surely_due >= MOST_DUE

    def _restore(self, accepted: Collection[int]) -> None:
        landed = self.landed()
        ahead = {number: place for number, place in self.positions.items() if place > landed.get(number, 0)}
        if ahead:
            number, place = next(iter(ahead.items()))
            raise SmokeError(
                f"lake/{WINDOWS} reflects partition {number} up to {place}, lake/{READINGS} ends at "
                f"{landed.get(number, 0)}: the readings were replaced by older ones",
                f"remove lake/{WINDOWS}; it is computed anew from the readings",
            )
        since: datetime | None = None
        if self.table.mark(STATE_OF) in accepted:
            mark = self.table.mark(ROWS_SINCE)
            if mark == 0:
                return
            since = _EPOCH + timedelta(milliseconds=mark)
        self.open.restore(*self.past.since(since))

    # -- taking ------------------------------------------------------------------------------------------
    def landed(self) -> dict[int, int]:
        """Partition -> offset up to which the readings have landed."""
        if self._closed is not None:
            return dict(self._closed)
        found = committed_positions(self.past.refresh(), self.facts)
        return {number: place or 0 for number, place in found.items()}

    def fits(self, batch: LandedBatch) -> bool:
        """Whether a batch begins exactly where this stands."""
        return all(batch.begins.get(number) == self.positions.get(number, 0) for number in batch.positions)

    def has(self, batch: LandedBatch) -> bool:
        """Whether everything of a batch was taken."""
        return all(self.positions.get(number, 0) >= place for number, place in batch.positions.items())

    def take(self, batch: LandedBatch) -> None:
        """Takes a batch from memory; it must fit."""
        if batch.rows.num_rows:
            rows = pl.from_arrow(batch.rows.select(list(TAKEN_COLUMNS)))
            assert isinstance(rows, pl.DataFrame)  # noqa: S101 - tells the type checker what a table becomes
            self.open.take(rows)
        self.positions.update(batch.positions)

    def take_from_lake(self, ends: Mapping[int, int]) -> bool:
        """Takes the next readings from the lake, and says whether more are left.

        They are at most about ``CHUNK_ROWS``, and no more than make ``MOST_DUE`` windows due.

        Args:
            ends: partition -> offset up to which, as ``landed`` gave it.
        """
        behind = {number: end for number, end in ends.items() if end > self.positions.get(number, 0)}
        if not behind:
            return False
        until = self._stepped(behind)
        rows = self.past.between(self.facts.topic_id, self.positions, until)
        while (due := _due_of(rows)) > MOST_DUE and self._rows_at_once > len(behind):
            self._rows_at_once //= 2
            until = self._stepped(behind)
            rows = rows.filter(pl.col("offset") < pl.col("partition").replace_strict(until, return_dtype=pl.Int64))
        if due <= MOST_DUE // 4:
            self._rows_at_once = min(CHUNK_ROWS, 2 * self._rows_at_once)
        self.open.take(rows)
        self.positions.update(until)
        return until != behind

    def _stepped(self, behind: Mapping[int, int]) -> dict[int, int]:
        step = max(1, self._rows_at_once // len(behind))
        return {number: min(end, self.positions.get(number, 0) + step) for number, end in behind.items()}

    # -- appending ---------------------------------------------------------------------------------------
    def append(self, until: datetime | None, *, positions_too: bool = False) -> WindowTally | None:
        """Appends the windows that are due; ``None`` where nothing was to be committed.

        Args:
            until: as ``OpenWindows.due`` has it.
            positions_too: whether positions that have moved are committed although no window is due.

        Raises:
            Fenced: another writer has gone on.
        """
        due = self.open.due(until)
        late = time.monotonic() - self._committed_at > POSITIONS_EVERY_S
        if due.is_empty() and not (self.moved and late) and not positions_too:
            return None
        rows = self._computed(due)
        self.open.settle(due)
        marks = {
            STATE_OF: fingerprint(self.facts.topic_id, self.positions),
            ROWS_SINCE: as_ms(self.open.oldest()),
            SILENCE_AT: as_ms(self.open.silent_at()),
        }
        # A moment of silence that has become another must not stand: it is what a run is started for.
        if due.is_empty() and not self.moved and marks[SILENCE_AT] == self.table.mark(SILENCE_AT):
            return None
        version = self._commit(rows, marks)
        return WindowTally(
            windows=rows.height,
            corrections=int((~due["held"]).sum()),
            commits=1,
            version=version,
            positions=dict(self.positions),
            newest_end=rows["window_end"].max(),  # type: ignore[arg-type] # of a time column
        )

    def append_rows(self, rows: pl.DataFrame) -> int:
        """Appends windows whatever is due; positions stay where they are. Returns the table's version."""
        return self._commit(stamped(rows, self._next_moment()), {})

    def finish_others(self) -> None:
        """Notes that the readings of all other topics were taken."""
        if not self.others_are_done():
            nothing = pl.DataFrame(schema=WINDOW_COLUMNS)
            self._commit(nothing, {OTHERS_DONE: fingerprint(self.facts.topic_id, {})})

    def others_are_done(self) -> bool:
        """Whether the readings of all topics that landed before this one were taken."""
        return self.table.mark(OTHERS_DONE) == fingerprint(self.facts.topic_id, {})

    def _computed(self, due: pl.DataFrame) -> pl.DataFrame:
        intervals = self.intervals()
        found = [compute(rows, intervals_s=intervals, windows=windows) for rows, windows in self.open.batches(due)]
        rows = pl.concat(found) if found else pl.DataFrame(schema=WINDOW_COLUMNS).drop(WRITTEN_AT)
        if rows.height != due.height:
            # Each window that is due has a reading, or it would not be due: committing less would lose it for good.
            raise RuntimeError(f"{due.height} windows are due, {rows.height} were computed")
        if self._closed is not None and rows.height:
            rows = self._new_only(rows)
        return stamped(rows, self._next_moment())

    def _new_only(self, rows: pl.DataFrame) -> pl.DataFrame:
        known = self.past.appended(rows.group_by("device_id").agg(pl.col("window_start").min().alias("begin"))).select(
            *WINDOW_KEY, appended="revision"
        )
        return (
            rows.join(known, on=WINDOW_KEY, how="left", maintain_order="left")
            .filter(pl.col("appended").is_null() | (pl.col("revision") > pl.col("appended")))
            .drop("appended")
        )

    def _next_moment(self) -> datetime:
        # Rising from commit to commit, so that a reader who follows the table misses none.
        self._last_written = max(self._now(), self._last_written + timedelta(microseconds=1))
        return self._last_written

    def _commit(self, rows: pl.DataFrame, marks: Mapping[str, int]) -> int:
        stored = rows.select(list(WINDOW_COLUMNS)).to_arrow(compat_level=pl.CompatLevel.oldest())
        version = self.table.commit(stored, self.positions, marks=marks)
        self._committed = dict(self.positions)
        self._committed_at = time.monotonic()
        self.table.tidy(set(rows[PARTITION_COLUMN].unique()))
        return version


def _due_of(rows: pl.DataFrame) -> int:
    """About how many windows these readings (``TAKEN_COLUMNS``) make due."""
    touched = DEFAULT.touched(rows.filter(~pl.col("late")))
    return touched.height - DEFAULT.windows_per_reading * touched["device_id"].n_unique()


def fingerprint(topic_id: str, positions: Mapping[int, int]) -> int:
    """A number that two different topics or positions do not share; it fits a mark, and is never 0."""
    text = f"{topic_id} {sorted((number, place) for number, place in positions.items() if place)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1 | 1


def as_ms(moment: datetime | None) -> int:
    return 0 if moment is None else max(1, int((moment - _EPOCH) / timedelta(milliseconds=1)))


# -- the engine ------------------------------------------------------------------------------------------


class WindowEngine:
    """The companion of a landing run that appends windows; see ``streaming.landing.Companion`` for what is promised.

    A fault of its own does not end the run, which goes on landing: it is logged, told by ``drain``, and the state is
    built anew from the lake. Only another writer ends the run. Where the run is to finish what is there, a fault is
    raised.

    Args:
        settings: which lake, which broker.
        now: the present, UTC.
    """

    def __init__(self, settings: Settings, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._settings = settings
        self._every_s = settings.window_seconds
        self._now = now
        self._intervals = Intervals(Lake(settings.lake), every_s=INTERVALS_EVERY_S, monotonic=time.monotonic).current
        self._stop = threading.Event()
        self._finish = threading.Event()
        self._news = threading.Condition()
        self._waiting: deque[LandedBatch] = deque()
        self._waiting_rows = 0
        self._landed: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._quiet = False
        self._step: float | None = None
        self._fenced: Fenced | None = None
        self._fault: BaseException | None = None
        self._tally = WindowTally()
        self._thread = threading.Thread(target=self._run, name="windows", daemon=True)

    # -- as a companion ----------------------------------------------------------------------------------
    def start(self, facts: TopicFacts) -> None:
        self._facts = facts
        self._thread.start()

    def landed(self, batch: LandedBatch) -> None:
        with self._news:
            self._landed = advanced({**batch.begins, **self._landed}, batch.positions)
            self._quiet = False
            if self._waiting_rows + batch.rows.num_rows <= MOST_WAITING_ROWS:
                self._waiting.append(batch)
                self._waiting_rows += batch.rows.num_rows
            # Else it is read from the lake: what is taken next does not begin where the engine stands.
            self._news.notify()

    def check(self) -> None:
        if self._fenced is not None:
            raise self._fenced
        if self._fault is not None and self._finish.is_set():
            raise self._fault

    @property
    def quiet(self) -> bool:
        return self._quiet

    @property
    def stuck(self) -> bool:
        step = self._step
        return step is not None and time.monotonic() - step > STUCK_S

    def stop(self, *, finish: bool = False) -> None:
        (self._finish if finish else self._stop).set()
        with self._news:
            self._news.notify()

    def ended(self, timeout_s: float) -> bool:
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def drain(self) -> WindowTally:
        """What was appended since the last call, and how far behind the engine is now."""
        with self._news:
            drained, self._tally = self._tally, WindowTally()
            drained.behind = sum(max(0, place - self._reached.get(number, 0)) for number, place in self._landed.items())
        drained.fault = str(self._fenced or self._fault or "")
        return drained

    # -- the thread --------------------------------------------------------------------------------------
    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            begun = time.monotonic()
            try:
                self._work()
            except Fenced as fence:
                self._fenced = fence
            except BaseException as fault:  # told by drain(); landing goes on without the windows
                was_finishing = self._finish.is_set()
                self._fault, self._quiet = fault, False
                pause = min(LONGEST_PAUSE_S, 2 * pause) if time.monotonic() - begun < 2 * pause else FIRST_PAUSE_S
                log.exception("windows are not appended; another try, from the lake, follows in %.0f s", pause)
                with self._news:
                    self._waiting.clear()
                    self._waiting_rows = 0
                    self._news.wait_for(lambda: self._stop.is_set() or self._finish.is_set(), pause)
                if self._stop.is_set() or was_finishing:
                    return
                continue
            finally:
                self._step = None
            return

    def _work(self) -> None:
        """Appends windows until the run ends."""
        self._mark_step()
        accepted = self._take_other_topics()
        cut = WindowCut(self._settings, self._facts, self._intervals, self._now, accepted=accepted)
        if self._stop.is_set():
            return
        cut.finish_others()
        self._reached = dict(cut.positions)
        ends = cut.landed()
        with self._news:
            self._landed = advanced({**ends, **self._landed}, ends)
        heard = Heard(self._settings, self._facts, self._now)
        looked = time.monotonic()
        while True:
            self._mark_step()
            gap = self._take_waiting(cut) or any(place > cut.positions.get(number, 0) for number, place in ends.items())
            if gap:
                ends = cut.landed()
                cut.take_from_lake(ends)
            self._reached = dict(cut.positions)
            caught_up = self._has_all(cut)
            ending = self._stop.is_set() or (self._finish.is_set() and caught_up)
            if ending or gap or cut.full or time.monotonic() - looked >= self._every_s:
                looked = time.monotonic()
                until = heard.until(cut.positions) if caught_up else None
                self._append(cut, until, positions_too=ending)
                self._fault = None
                with self._news:
                    # Nothing may land between the look and what is said of it.
                    self._quiet = caught_up and self._has_all(cut)
            self._step = None
            if ending:
                return
            if not gap:
                self._await_news()

    def _mark_step(self) -> None:
        self._step = time.monotonic()

    def _await_news(self) -> None:
        with self._news:
            if not (self._waiting or self._stop.is_set()):
                self._news.wait(min(_WAKE_S, self._every_s))

    def _has_all(self, cut: WindowCut) -> bool:
        with self._news:
            return not self._waiting and all(
                cut.positions.get(number, 0) >= place for number, place in self._landed.items()
            )

    def _take_waiting(self, cut: WindowCut) -> bool:
        """Takes the batches that wait; says whether readings are missing that have to be read from the lake."""
        while not self._stop.is_set():
            with self._news:
                if not self._waiting:
                    return any(place > cut.positions.get(number, 0) for number, place in self._landed.items())
                batch = self._waiting.popleft()
                self._waiting_rows -= batch.rows.num_rows
            if cut.has(batch):
                continue
            if not cut.fits(batch):
                return True
            cut.take(batch)
            if cut.full:
                break
        return False

    def _append(self, cut: WindowCut, until: datetime | None, *, positions_too: bool = False) -> None:
        self._mark_step()
        tally = cut.append(until, positions_too=positions_too)
        if tally is not None:
            with self._news:
                self._tally.add(tally)

    def _take_other_topics(self) -> set[int]:
        """Takes what is left of the readings of topics that landed before the present one.

        Only the first run after a change of the topic has to look for them.

        Returns:
            Values of ``STATE_OF`` that hold now.
        """
        lake = Lake(self._settings.lake)
        table = LandedTable(lake, self._facts, WINDOWS_SHAPE)
        if table.mark(OTHERS_DONE) == fingerprint(self._facts.topic_id, {}):
            return set()
        readings = TakenReadings(lake.open(READINGS), lambda: table.snapshot, {})
        ends = {name: found for name, found in readings.topics().items() if name != self._facts.topic_id}
        # Which cluster a topic belonged to is not known; ids of topics are never used twice, so any will do.
        named = {name: replace(self._facts, topic_id=name, partitions=tuple(sorted(ends[name]))) for name in ends}
        taken = {name: _known(committed_positions(table.snapshot, facts)) for name, facts in named.items()}
        taken[self._facts.topic_id] = _known(table.positions)
        for name, closed in ends.items():
            if all(taken[name].get(number, 0) >= end for number, end in closed.items()):
                continue
            accepted = {fingerprint(each, positions) for each, positions in taken.items()}
            cut = WindowCut(
                self._settings,
                named[name],
                self._intervals,
                self._now,
                accepted=accepted,
                closed=closed,
                taken=taken,
            )
            while not self._stop.is_set():
                more = cut.take_from_lake(closed)
                self._append(cut, None, positions_too=not more)
                if not more:
                    break
            taken[name] = dict(cut.positions)
        return {fingerprint(each, positions) for each, positions in taken.items()}


def _known(positions: Mapping[int, int | None]) -> dict[int, int]:
    return {number: place or 0 for number, place in positions.items()}


class Heard:
    """Up to when everything that was appended to the topic has been taken, by which silence is judged.

    The log's end is asked for now and then; when all before it has been taken, that is true of the moment of asking.
    """

    def __init__(self, settings: Settings, facts: TopicFacts, now: Callable[[], datetime]) -> None:
        self._watcher = TopicWatcher(settings.brokers, settings.topic_readings)
        self._facts = facts
        self._now = now
        self._asked = -ENDS_EVERY_S
        self._goal: tuple[datetime, dict[int, int]] | None = None
        self._until: datetime | None = None

    def until(self, positions: Mapping[int, int]) -> datetime | None:
        """That moment, given what has been taken; ``None`` where it is not known."""
        self._reach(positions)
        if self._goal is None and time.monotonic() - self._asked >= ENDS_EVERY_S:
            self._asked = time.monotonic()
            moment = self._now()
            try:
                ends = self._watcher.watermarks(self._facts.partitions, 5.0)
            except KafkaUnreachable as away:
                log.warning("silence of devices is not judged: %s", away.message)
                return self._until
            self._goal = moment, {number: high for number, (_, high) in ends.items()}
            self._reach(positions)
        return self._until

    def _reach(self, positions: Mapping[int, int]) -> None:
        if self._goal is not None and all(positions.get(number, 0) >= end for number, end in self._goal[1].items()):
            self._until, self._goal = self._goal[0], None


# -- where things stand ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WindowsStanding:
    """How far the windows are, against what has landed.

    Attributes:
        topic_id: ``None`` where the topic does not exist.
        positions: partition -> offset up to which the readings are reflected.
        landed: partition -> offset up to which they have landed.
        silence_at: when silence makes the next window due, ``None`` where none waits.
        version: the table's, -1 where there is none.
    """

    topic_id: str | None
    positions: dict[int, int] = field(default_factory=dict)
    landed: dict[int, int] = field(default_factory=dict)
    silence_at: datetime | None = None
    version: int = -1

    @property
    def behind(self) -> int:
        """Offsets that have landed and are not reflected yet."""
        return sum(max(0, place - self.positions.get(number, 0)) for number, place in self.landed.items())

    @property
    def ahead(self) -> int:
        """Offsets that are reflected and have not landed, which must not be."""
        return sum(max(0, place - self.landed.get(number, 0)) for number, place in self.positions.items())

    def waiting(self, now: datetime) -> int:
        """What a landing run has to do for the windows: readings to take, or windows that silence has ended."""
        return self.behind or int(self.silence_at is not None and now > self.silence_at)


class WindowsProbe:
    """Tells how far the windows are, again and again at little cost. For one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._watcher = TopicWatcher(settings.brokers, settings.topic_readings)
        self._lake = Lake(settings.lake)
        self._tables: dict[str, DeltaTable] = {}

    def standing(self, timeout_s: float = 3.0) -> WindowsStanding:
        """Where the windows stand now.

        Raises:
            KafkaUnreachable: when the broker does not answer within ``timeout_s``.
        """
        facts = self._watcher.facts(timeout_s)
        if facts is None:
            return WindowsStanding(None)
        # The windows first: what lands meanwhile must not make them look ahead of the readings.
        windows, readings = self._table(WINDOWS), self._table(READINGS)
        silence = windows.transaction_version(SILENCE_AT) if windows is not None else None
        return WindowsStanding(
            facts.topic_id,
            {} if windows is None else _known(committed_positions(windows, facts)),
            {} if readings is None else _known(committed_positions(readings, facts)),
            _EPOCH + timedelta(milliseconds=silence) if silence else None,
            -1 if windows is None else int(windows.version()),
        )

    def _table(self, name: str) -> DeltaTable | None:
        known = self._tables.get(name)
        if known is not None:
            known.update_incremental()
            return known
        if not self._lake.exists(name):
            return None
        self._tables[name] = self._lake.open(name)
        return self._tables[name]


# -- looking at the table --------------------------------------------------------------------------------

#: A look at the table for doubles goes back so far by the time of writing, at most.
AUDITED = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class WindowAudit:
    """Rows that were looked at; how many say a window at a revision again; offsets reflected that have not landed."""

    rows: int = 0
    doubles: int = 0
    ahead: int = 0


def audit_windows(settings: Settings, report: LandingReport | None, since: datetime) -> WindowAudit:
    """Looks in the table for the rows that were written at ``since`` or later, ``AUDITED`` ago at most."""
    lake = Lake(settings.lake)
    if report is None or not lake.exists(WINDOWS):
        return WindowAudit()
    table = lake.open(WINDOWS)
    facts = TopicFacts(report.cluster_id, report.topic_id, tuple(report.positions))
    landed = _known(committed_positions(lake.open(READINGS), facts))
    ahead = sum(max(0, place - landed[number]) for number, place in _known(committed_positions(table, facts)).items())
    key = list(ROW_KEY)
    rows = pl.scan_delta(table)
    written = rows.filter(pl.col(WRITTEN_AT) >= max(since, datetime.now(UTC) - AUDITED)).select(key).collect()
    first = written["window_start"].min()
    if not isinstance(first, datetime):
        return WindowAudit(ahead=ahead)
    # Against all of the same windows: the first of a double may have been written long before.
    known = rows.filter(pl.col(PARTITION_COLUMN) >= first.date(), pl.col("window_start") >= first).select(key)
    counts = known.join(written.lazy().unique(), on=key, how="semi").group_by(key).len()
    doubles = counts.filter(pl.col("len") > 1).select(pl.len()).collect().item()
    return WindowAudit(written.height, int(doubles), ahead)
