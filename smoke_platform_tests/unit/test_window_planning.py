"""Windows planned from minutes: the same ones at the same moments as those planned from the readings themselves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import polars as pl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smoke_platform.domain.window_emission import OpenWindows, revisions
from smoke_platform.domain.window_planning import (
    HEARD,
    MINUTES,
    WaitingWindows,
    heard_of,
    merged_heard,
    merged_minutes,
    minutes_of,
    windows_of,
)
from smoke_platform.domain.windows import compute
from smoke_platform_tests import window_oracle
from smoke_platform_tests.unit.test_window_emission import Lake, Sent, courses, landed, run, streams


@dataclass
class Planned(Lake):
    """The lake of ``test_window_emission`` with the planner in front of it, and the other engine's beside it."""

    def __post_init__(self) -> None:
        self.open: WaitingWindows = self._planner()  # type: ignore[assignment] # the same questions, other answers

    def _planner(self) -> WaitingWindows:
        return WaitingWindows(self.appended, self.minutes)

    def minutes(self, devices: pl.DataFrame) -> pl.DataFrame:
        rows = self.readings.head(self.taken).join(devices, on="device_id")
        wanted = rows.filter(pl.col("event_time").is_between("begin", "clock"))
        return minutes_of(wanted.lazy()).collect()

    def take(self, count: int) -> None:
        batch = self.readings.slice(self.taken, count)
        # In two parts, as two tasks report it.
        halves = batch.head(batch.height // 2), batch.slice(batch.height // 2)
        self.open.take(
            merged_minutes(*(minutes_of(half.lazy()).collect() for half in halves)),
            merged_heard(*(heard_of(half.lazy()).collect() for half in halves)),
        )
        self.taken += batch.height

    def append(self, until: datetime | None, *, crash: bool = False) -> pl.DataFrame:
        due = self.open.due(until)
        rows = compute(self.readings.head(self.taken).filter(~pl.col("late")), windows=due)
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
        self.taken = self.positions
        self.open = self._planner()  # type: ignore[assignment]
        if marked and self.positions and self.since is None:
            return
        rows = self.readings.head(self.taken)
        if marked and self.since is not None:
            rows = rows.filter(pl.col("ingest_time") >= self.since)
        self.open.restore(
            heard_of(rows.lazy()).collect(), minutes_of(rows.lazy()).collect(), everything=not marked or not self.since
        )


@given(streams(), courses)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
# A device comes back after it was forgotten, with a reading for a window that was appended by silence.
@example(
    [Sent("a", 0, 100), Sent("a", 0, 130), Sent("a", 0, 110, 3000)],
    [("take", 2), ("append", 1), ("crash", 0), ("take", 1), ("append", 0)],
)
# The clock of a forgotten device is far ahead of the readings that another partition brings.
@example(
    [Sent("a", 0, 5000), Sent("a", 0, 4700), Sent("a", 1, 4600, 3000), Sent("a", 1, 4700, 5), Sent("a", 1, 4990, 5)],
    [("take", 2), ("append", 1), ("take", 1), ("append", 0), ("crash", 0), ("take", 1), ("append", 0)],
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
)
# A device comes back to a window that silence has ended, and after a crash it must still be known that it stands there.
@example(
    [Sent("a", 0, 100), Sent("a", 0, 130), Sent("a", 0, 140, 3000), Sent("a", 0, 150)],
    [("take", 2), ("append", 1), ("take", 1), ("append", 0), ("crash", 0), ("take", 1), ("append", 0)],
)
# Of a device that comes back some windows are appended at once and others wait; a start must count both right.
@example(
    [Sent("a", 0, 100), Sent("a", 0, 300, 3000)],
    [("take", 1), ("append", 1), ("take", 1), ("append", 0), ("crash", 0)],
)
def test_any_cut_and_any_crash_append_what_the_oracle_says(sent: list[Sent], course: list[tuple[str, int]]) -> None:
    """Spark's windows must not depend on its batches, nor on when a driver dies; and no row may come twice."""
    lake = Planned(landed(sent))
    done = run(lake, course)
    assert done.appended == window_oracle.emissions(done.landings)
    live = [row for row in lake.readings.to_dicts() if not row["late"]]
    assert window_oracle.differences(lake.windows().to_dicts(), window_oracle.windows(live)) == []
    assert lake.versions().height == lake.versions().unique().height


@given(streams(), st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=20))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_both_engines_append_the_same_windows_at_the_same_moments(
    sent: list[Sent], steps: list[tuple[int, bool]]
) -> None:
    """A change of engine must change nothing that an operator sees, the moment of a window included."""
    readings = landed(sent)
    planned, held = Planned(readings), Lake(readings)
    for count, silence in steps:
        planned.take(count)
        held.take(count)
        until = held.until() if silence else None
        key = ["device_id", "window_start"]
        assert isinstance(held.open, OpenWindows)
        assert planned.open.due(until).sort(key).equals(held.open.due(until).select(key).sort(key))
        planned.append(until)
        held.append(until)
        assert planned.open.silent_at() == held.open.silent_at()
        # The other engine keeps readings for a while that it no longer needs.
        oldest, of_the_other = planned.open.oldest(), held.open.oldest()
        assert oldest is None or (of_the_other is not None and oldest >= of_the_other)
        assert planned.open.devices == held.open.devices


@given(streams())
@settings(deadline=None)
def test_a_windows_revision_is_the_number_of_its_readings(sent: list[Sent]) -> None:
    """What waits is found by comparing revisions; one that is counted wrongly is never appended, or for ever."""
    readings = landed(sent).filter(~pl.col("late"))
    key = ["device_id", "window_start"]
    counted = windows_of(minutes_of(readings.lazy()).collect()).sort(key)
    assert counted.select(*key, "revision").equals(revisions(readings).sort(key).select(*key, "revision"))


def test_nothing_taken_means_nothing_due() -> None:
    """A run that finds an empty lake must not stumble over it."""
    waiting = WaitingWindows(lambda _: pl.DataFrame(), lambda _: pl.DataFrame(schema=dict(MINUTES)))
    waiting.take(pl.DataFrame(schema=dict(MINUTES)), pl.DataFrame(schema=dict(HEARD)))
    assert (waiting.due().height, waiting.waiting, waiting.oldest(), waiting.silent_at()) == (0, 0, None, None)
