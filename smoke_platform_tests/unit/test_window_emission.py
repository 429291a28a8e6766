"""When windows are appended: the table by highest revision is the same however readings are cut, whatever crashes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.window_emission import (
    APPENDED,
    TAKEN_COLUMNS,
    OpenWindows,
    first_open,
    merged,
    revisions,
    summary_of,
    within,
)
from smoke_platform.domain.windows import ROW_COLUMNS, WindowSpec, compute
from smoke_platform_tests import window_oracle

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
        return self.readings.head(self.taken).filter(~pl.col("late")).select(*ROW_COLUMNS, "ingest_time")

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
        self.open.restore(summary, live.select(*ROW_COLUMNS, "ingest_time"))

    def windows(self) -> pl.DataFrame:
        """The table by highest revision."""
        rows = pl.concat(self.table)
        return (
            rows.sort("revision").unique(["device_id", "window_start"], keep="last").sort("device_id", "window_start")
        )

    def versions(self) -> pl.DataFrame:
        return pl.concat(self.table).select("device_id", "window_start", "revision")


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


@dataclass
class Course:
    """What was committed in the course of a run, moment by moment: by the engine, and what the oracle is told of it."""

    appended: list[dict[window_oracle.Key, int]] = field(default_factory=list)
    landings: list[window_oracle.Landing] = field(default_factory=list)

    def commit(self, lake: Lake, until: datetime | None) -> None:
        fresh = lake.readings.slice(lake.positions, lake.taken - lake.positions).to_dicts()
        rows = lake.append(until)
        self.landings.append(window_oracle.Landing(fresh, until))
        revisions = rows.select("device_id", "window_start", "revision").iter_rows() if rows.height else ()
        self.appended.append({(device, start): revision for device, start, revision in revisions})


def run(lake: Lake, course: list[tuple[str, int]]) -> Course:
    done = Course()
    for step, number in course:
        if step == "take":
            lake.take(number)
        elif step == "append":
            done.commit(lake, lake.until() if number else None)
        elif step == "crash in a commit":
            lake.append(lake.until(), crash=True)
        else:
            lake.restart(marked=step == "crash")
    lake.take(lake.readings.height)
    done.commit(lake, lake.until())
    return done


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
# A device comes back to a window that silence has ended, and after a crash it must still be known that it stands there.
@example(
    [Sent("a", 0, 100), Sent("a", 0, 130), Sent("a", 0, 140, 3000), Sent("a", 0, 150)],
    [("take", 2), ("append", 1), ("take", 1), ("append", 0), ("crash", 0), ("take", 1), ("append", 0)],
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
    done = run(lake, course)
    readings = lake.readings.to_dicts()
    assert [row["late"] for row in readings] == window_oracle.lateness(readings)
    assert done.appended == window_oracle.emissions(done.landings)
    live = [row for row in readings if not row["late"]]
    assert window_oracle.differences(lake.windows().to_dicts(), window_oracle.windows(live)) == []
    versions = lake.versions()
    assert versions.height == versions.unique().height, "a window was appended twice at one revision"


def test_spans_of_a_device_are_put_together_and_those_of_others_are_not() -> None:
    """A correction would read the lake once for each of five windows that hold the same readings."""
    spans = pl.DataFrame(
        [("a", at(60), at(360)), ("b", at(0), at(300)), ("a", at(0), at(300)), ("a", at(900), at(1200))],
        schema={"device_id": pl.String, "begin": _TIME, "end": _TIME},
        orient="row",
    )
    together = merged(spans)
    assert together.rows() == [("a", at(0), at(360)), ("a", at(900), at(1200)), ("b", at(0), at(300))]
    rows = pl.DataFrame(
        [("a", at(0)), ("a", at(360)), ("a", at(1199)), ("b", at(300)), ("c", at(0))],
        schema={"device_id": pl.String, "event_time": _TIME},
        orient="row",
    )
    assert within(rows, together).sort("event_time").rows() == [("a", at(0)), ("a", at(1199))]
    assert merged(spans.clear()).is_empty()


_PLACES = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 60))


@given(st.lists(_PLACES, max_size=30), st.lists(st.tuples(_PLACES, st.integers(1, 20)), max_size=8))
def test_rows_are_in_the_spans_that_hold_them(rows: list[tuple[str, int]], spans: list[tuple[Any, int]]) -> None:
    """A correction would be computed from some of its readings, or from some of them twice."""
    frame = pl.DataFrame(
        [(device, at(second)) for device, second in rows],
        schema={"device_id": pl.String, "event_time": _TIME},
        orient="row",
    )
    asked = pl.DataFrame(
        [(device, at(begin), at(begin + length)) for (device, begin), length in spans],
        schema={"device_id": pl.String, "begin": _TIME, "end": _TIME},
        orient="row",
    )
    held = [
        (device, at(second))
        for device, second in rows
        if any(device == other and begin <= second < begin + length for (other, begin), length in spans)
    ]
    assert sorted(within(frame, merged(asked)).rows()) == sorted(held)


def test_no_more_windows_are_surely_due_than_are_due() -> None:
    """Or the engine looks for windows to append where none is due, again and again, and takes nothing in between."""
    opened = OpenWindows(_Nothing())
    for first in range(0, 3_600, 400):
        opened.take(landed([Sent(device, 0, second) for second in range(first, first + 400, 40) for device in "ab"]))
        due = opened.due().height
        assert due - 2 * 5 <= opened.surely_due <= due
    assert opened.surely_due > 100
    opened.settle(opened.due())
    assert opened.surely_due == 0


class _Nothing:
    """A past in which there was nothing."""

    def rows(self, _spans: pl.DataFrame) -> pl.DataFrame:
        raise AssertionError("nothing has to be read again")

    def appended(self, _since: pl.DataFrame) -> pl.DataFrame:
        return pl.DataFrame(schema=dict(APPENDED))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.sampled_from([(300, 60), (300, 5), (60, 60)]))
def test_windows_touched_are_those_of_the_definition(seconds: list[int], shape: tuple[int, int]) -> None:
    """Two notions of which windows hold a reading would leave windows that no row is ever appended for."""
    spec = WindowSpec(*shape)
    rows = pl.DataFrame(
        {"device_id": "a", "event_time": [at(second) for second in seconds]}, schema_overrides={"event_time": _TIME}
    )
    expected = spec.touched(rows)
    counted = revisions(rows, spec).sort("device_id", "window_start")
    assert counted.select("device_id", "window_start").equals(expected)
    assert counted["revision"].sum() == len(seconds) * spec.windows_per_reading
    firsts = rows.select(first=first_open(pl.col("event_time"), spec))["first"].to_list()
    assert firsts == [min(window_oracle.starts(at(second), spec.length, spec.slide)) for second in seconds]


def test_memory_is_bounded_by_devices_and_windows_however_long_it_runs() -> None:
    """A process that holds a little more each hour is killed by the kernel one night."""
    lake = Lake(
        landed([Sent(device, 0, second, 0 if device != "a" else 1) for second in range(5000) for device in "abc"])
    )
    most = 0
    while lake.taken < lake.readings.height:
        lake.take(90)
        lake.append(lake.until() if lake.taken < lake.readings.height else None)
        most = max(most, lake.open.held)
    # Five minutes and what a batch brings, and the tenth of slack; three devices, one reading a second each.
    assert most <= 1.2 * 3 * 330 + 90
    assert lake.open.devices == 3
    lake.append(lake.readings["append_time"].max() + timedelta(hours=1))
    assert (lake.open.devices, lake.open.waiting, lake.open.oldest(), lake.open.silent_at()) == (0, 0, None, None)
