"""When windows are appended: the table by highest revision is the same however readings are cut, whatever crashes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import polars as pl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.window_emission import (
    APPENDED,
    READING_COLUMNS,
    SILENCE,
    TAKEN_COLUMNS,
    OpenWindows,
    first_open,
    summary_of,
)
from smoke_platform.domain.windows import compute

START = datetime(2026, 11, 1, 10, tzinfo=UTC)
LATENESS = timedelta(minutes=10)
_TIME = pl.Datetime("us", "UTC")
_SCHEMA: dict[str, pl.DataType] = {
    "device_id": pl.String(),
    "event_time": _TIME,
    "sequence": pl.Int64(),
    "topic_id": pl.String(),
    "partition": pl.Int32(),
    "offset": pl.Int64(),
    **dict.fromkeys(SENSOR_NAMES, pl.Float64()),
    "fire_alarm": pl.Boolean(),
    "late": pl.Boolean(),
    "append_time": _TIME,
    "ingest_time": _TIME,
}


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Sent:
    """A reading: device, partition, seconds of its event time, and of the append time since the one before."""

    device: str
    partition: int
    event_s: int
    wait_s: int = 1
    sequence: int | None = None


def landed(sent: list[Sent], topic_id: str = "t", from_s: float = 0.0) -> pl.DataFrame:
    """The rows of lake/readings, in the order of landing, late ones marked as landing marks them."""
    clocks: dict[tuple[int, str], datetime] = {}
    offsets: dict[int, int] = {}
    rows = []
    append = at(from_s)
    for one in sent:
        append += timedelta(seconds=one.wait_s)
        moment = at(one.event_s)
        clock = clocks.get((one.partition, one.device))
        offset = offsets.get(one.partition, 0)
        offsets[one.partition] = offset + 1
        rows.append(
            {
                "device_id": one.device,
                "event_time": moment,
                "sequence": one.sequence,
                "topic_id": topic_id,
                "partition": one.partition,
                "offset": offset,
                "temperature_c": float(len(rows)),
                "fire_alarm": None,
                "late": clock is not None and clock - moment > LATENESS,
                "append_time": append,
                "ingest_time": append + timedelta(seconds=0.5),
            }
        )
        clocks[one.partition, one.device] = max(clock or moment, moment)
    return pl.DataFrame(rows, schema=_SCHEMA)


@dataclass
class Lake:
    """Readings and windows as they stand in the lake, and the engine in front of it: what a crash leaves behind."""

    readings: pl.DataFrame
    taken: int = 0
    positions: int = 0
    since: datetime | None = None
    table: list[pl.DataFrame] = field(default_factory=list)
    most_held: int = 20_000
    slack_rows: int = 0

    def __post_init__(self) -> None:
        self.open = OpenWindows(self, most_held=self.most_held, slack_rows=self.slack_rows)

    # -- window_emission.Past
    def rows(self, spans: pl.DataFrame) -> pl.DataFrame:
        return self.readings.head(self.taken).filter(~pl.col("late")).select(*READING_COLUMNS, "ingest_time")

    def appended(self, since: pl.DataFrame) -> pl.DataFrame:
        if not self.table:
            return pl.DataFrame(schema=dict(APPENDED))
        found = self.windows().join(since, on="device_id").filter(pl.col("window_start") >= pl.col("begin"))
        return found.select(list(APPENDED))

    # -- the engine
    def take(self, count: int) -> None:
        batch = self.readings.slice(self.taken, count)
        self.open.take(batch.select(TAKEN_COLUMNS))
        self.taken += batch.height

    def until(self) -> datetime | None:
        """Up to just before the next reading everything has been taken."""
        if self.taken == self.readings.height:
            return self.readings["append_time"][-1] + timedelta(days=1) if self.taken else None
        return self.readings["append_time"][self.taken] - timedelta(microseconds=1)

    def append(self, until: datetime | None, *, crash: bool = False) -> pl.DataFrame:
        due = self.open.due(until)
        frames = [compute(rows, windows=windows) for rows, windows in self.open.batches(due)]
        rows = pl.concat(frames) if frames else pl.DataFrame(schema={"device_id": pl.String})
        assert rows.height == due.height
        self.open.settle(due)
        if crash:
            self.restart()
            return rows
        if rows.height:
            self.table.append(rows)
        self.positions, self.since = self.taken, self.open.oldest()
        return rows

    def restart(self, *, marked: bool = True) -> None:
        """Everything in memory is gone; what was committed is read again."""
        self.taken = self.positions
        self.open = OpenWindows(self, most_held=self.most_held, slack_rows=self.slack_rows)
        if marked and self.positions and self.since is None:
            return
        rows = self.readings.head(self.taken)
        if marked and self.since is not None:
            rows = rows.filter(pl.col("ingest_time") >= self.since)
        summary = summary_of(rows.lazy()).collect()
        live = rows.filter(~pl.col("late")).join(summary, on="device_id")
        live = live.filter(pl.col("event_time") >= first_open(pl.col("clock")))
        self.open.restore(summary, live.select(*READING_COLUMNS, "ingest_time"))

    def windows(self) -> pl.DataFrame:
        """The table by highest revision."""
        rows = pl.concat(self.table)
        return (
            rows.sort("revision").unique(["device_id", "window_start"], keep="last").sort("device_id", "window_start")
        )

    def versions(self) -> pl.DataFrame:
        return pl.concat(self.table).select("device_id", "window_start", "revision")


def expected(readings: pl.DataFrame) -> pl.DataFrame:
    """The table when everything has been taken and every device is silent."""
    return compute(readings.filter(~pl.col("late")))


# -- any cut, any crash ----------------------------------------------------------------------------------

#: (device, partition, seconds its clock moves, seconds until it is appended, sequence)
_moves = st.tuples(
    st.sampled_from(["a", "a", "b", "c"]),
    st.sampled_from([0, 0, 0, 1]),
    st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 60, 300, -1, -60, -299, -400, -601, 900, 80_000])),
    st.sampled_from([0, 1, 1, 5, 60, 590, 601, 3000]),
    st.sampled_from([None, 1, 2]),
)


@st.composite
def streams(draw: st.DrawFn) -> list[Sent]:
    """Readings of devices whose clocks go on, stand still, jump, and go back; mostly close together."""
    clocks: dict[str, int] = {}
    found = []
    for device, partition, move, wait, sequence in draw(st.lists(_moves, min_size=1, max_size=60)):
        clocks[device] = max(0, clocks.get(device, 1000) + move)
        found.append(Sent(device, partition, clocks[device], wait, sequence))
    return found


takes = st.tuples(st.just("take"), st.integers(1, 12))
appends = st.tuples(st.just("append"), st.sampled_from([0, 1]))
crashes = st.tuples(st.sampled_from(["crash", "crash in a commit", "start without the mark"]), st.just(0))
courses = st.lists(st.one_of(takes, takes, appends, appends, crashes), max_size=40)


def run(lake: Lake, course: list[tuple[str, int]]) -> None:
    for step, number in course:
        if step == "take":
            lake.take(number)
        elif step == "append":
            _only_what_is_due(lake, lake.append(lake.until() if number else None), silence=bool(number))
        elif step == "crash in a commit":
            lake.append(lake.until(), crash=True)
        else:
            lake.restart(marked=step == "crash")
    lake.take(lake.readings.height)
    lake.append(lake.until())


def _only_what_is_due(lake: Lake, rows: pl.DataFrame, *, silence: bool) -> None:
    """No window is appended before its end on its device's clock, but for silence."""
    known = lake.readings.head(lake.taken)
    for device_id, end in rows.select("device_id", "window_end").iter_rows() if rows.height else ():
        mine = known.filter(pl.col("device_id") == device_id)
        clock, heard = mine.filter(~pl.col("late"))["event_time"].max(), mine["append_time"].max()
        until = lake.until()
        assert end <= clock or (silence and until is not None and heard < until - SILENCE)


@given(streams(), courses, st.sampled_from([20_000, 3]), st.sampled_from([0, 20]))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
# A device comes back after it was forgotten, with a reading for a window that was appended by silence.
@example(
    [Sent("a", 0, 100), Sent("a", 0, 130), Sent("a", 0, 110, 3000)],
    [("take", 2), ("append", 1), ("crash", 0), ("take", 1), ("append", 0)],
    20_000,
    0,
)
# The clock of a forgotten device is far ahead of the readings that another partition brings.
@example(
    [Sent("a", 0, 5000), Sent("a", 0, 4700), Sent("a", 1, 4600, 3000), Sent("a", 1, 4700, 5), Sent("a", 1, 4990, 5)],
    [("take", 2), ("append", 1), ("take", 1), ("append", 0), ("crash", 0), ("take", 1), ("append", 0)],
    20_000,
    0,
)
# Of a forgotten device a start reads the later reading, because another device has to be read again from there.
@example(
    [
        Sent("a", 0, 100),
        Sent("b", 0, 100),
        Sent("a", 0, 130),
        Sent("b", 0, 110, 500),
        Sent("b", 0, 120, 200),
        Sent("a", 0, 140),
    ],
    [("take", 5), ("append", 1), ("crash", 0), ("take", 1), ("append", 0)],
    20_000,
    0,
)
# A device has so many readings in its open windows that they are not held; then more come.
@example(
    [Sent("a", 0, 100), Sent("a", 0, 110), Sent("a", 0, 120), Sent("a", 0, 130), Sent("a", 0, 140), Sent("a", 0, 900)],
    [("take", 4), ("append", 0), ("append", 0), ("take", 1), ("append", 0), ("take", 1), ("append", 0)],
    3,
    0,
)
def test_any_cut_and_any_crash_give_the_same_table(
    sent: list[Sent], course: list[tuple[str, int]], most_held: int, slack_rows: int
) -> None:
    """Statistics would depend on when a process happened to be restarted, and nobody could ever check them."""
    lake = Lake(landed(sent), most_held=most_held, slack_rows=slack_rows)
    run(lake, course)
    assert lake.windows().equals(expected(lake.readings))
    versions = lake.versions()
    assert versions.height == versions.unique().height, "a window was appended twice at one revision"
