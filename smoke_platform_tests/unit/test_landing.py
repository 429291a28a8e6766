"""Landing's decisions: lateness, replays, letters, batches, compaction, and the supervisor's."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.adapters.lease import Beat, LeaseState
from smoke_platform.domain.landing import (
    CLOCK_SCHEMA,
    REPLAY_HEADER,
    BatchPlan,
    CompactionPlan,
    DeviceClocks,
    letter_headers,
    repeated,
    replayed,
)
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.readings import ReadingRejected, RejectReason
from smoke_platform.orchestration.landing import (
    FRUITLESS_RUNS,
    LONGEST_STARTING_S,
    LONGEST_WAIT_S,
    STALE_S,
    STARTING_S,
    Action,
    Kind,
    Surroundings,
    UnfinishedRun,
    decide,
    patience_s,
    starting_patience_s,
    watch,
)

START = datetime(2022, 6, 9, tzinfo=UTC)
ALLOWED = timedelta(minutes=10)

# -- lateness --------------------------------------------------------------------------------------------

messages = st.lists(st.tuples(st.integers(0, 1), st.sampled_from("ab"), st.integers(0, 60)), max_size=40)


def frame(rows: list[tuple[int, str, int]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "partition": pl.Series([number for number, _, _ in rows], dtype=pl.Int32),
            "device_id": pl.Series([device for _, device, _ in rows], dtype=pl.String),
            "event_time": pl.Series(
                [START + timedelta(minutes=minute) for _, _, minute in rows], dtype=pl.Datetime("us", "UTC")
            ),
        }
    )


@settings(max_examples=300, deadline=None)
@given(messages, st.lists(st.integers(1, 7), max_size=10))
def test_lateness_depends_on_the_log_and_not_on_the_batches(rows: list[tuple[int, str, int]], cuts: list[int]) -> None:
    """Landing again after a crash, with other batches, must give every reading the same verdict."""
    greatest: dict[tuple[int, str], int] = {}
    expected = []
    for number, device, minute in rows:
        expected.append(greatest.get((number, device), minute) - minute > 10)
        greatest[number, device] = max(minute, greatest.get((number, device), minute))

    clocks = DeviceClocks(ALLOWED)
    verdicts: list[bool] = []
    left = rows
    for size in [*cuts, len(rows)]:
        verdicts += clocks.judge(frame(left[:size])).to_list()
        left = left[size:]
        # As a new run does: the clocks come from the lake.
        clocks = DeviceClocks(ALLOWED, clocks.frame)
    assert verdicts == expected
    found = {(number, device): clock for number, device, clock in clocks.frame.select(list(CLOCK_SCHEMA)).iter_rows()}
    assert found == {place: START + timedelta(minutes=minute) for place, minute in greatest.items()}


def test_exactly_the_allowed_delay_is_not_late() -> None:
    """The setting says "further behind", and readers of the lake rely on the boundary."""
    clocks = DeviceClocks(ALLOWED)
    rows = frame([(0, "a", 20), (0, "a", 10), (0, "a", 9), (1, "a", 0), (0, "b", 0)])
    assert clocks.judge(rows).to_list() == [False, False, True, False, False]


# -- replays and letters ---------------------------------------------------------------------------------

identities = st.builds(MessageId, st.just("t"), st.integers(0, 1), st.integers(0, 5))


@given(st.dictionaries(st.integers(0, 20), identities), st.sets(identities))
def test_one_row_an_identity(replays: dict[int, MessageId], landed: set[MessageId]) -> None:
    """An operator who replays a dead letter twice must not get the reading twice."""
    again = repeated(replays, landed)
    kept = [identity for row, identity in sorted(replays.items()) if row not in again]
    assert len(kept) == len(set(kept))
    assert not set(kept) & landed
    assert set(kept) | landed == set(replays.values()) | landed


def test_only_well_formed_replay_headers_count() -> None:
    """A stranger's header must not make a reading vanish."""
    headers: dict[int, list[tuple[str, bytes | None]]] = {
        0: [(REPLAY_HEADER, b"t/1/7")],
        1: [(REPLAY_HEADER, b"\xff")],
        2: [(REPLAY_HEADER, None), ("other", b"t/1/7")],
    }
    assert replayed(headers) == {0: MessageId("t", 1, 7)}


def test_letter_says_all_about_the_message() -> None:
    """Whoever opens a dead letter must see why it is one and where it came from."""
    reject = ReadingRejected(RejectReason.OUT_OF_RANGE, "pm1_0", "x" * 9999)
    found = dict(
        letter_headers(
            reject,
            MessageId("t", 3, 7),
            topic="smoke_sensor_data",
            append_time_ms=1_654_733_331_005,
            key=b"\xff",
            replayed_as=MessageId("t", 4, 9),
        )
    )
    assert len(found.pop("detail")) == 500
    assert found == {
        "reason": b"out_of_range",
        "field": b"pm1_0",
        "topic": b"smoke_sensor_data",
        "topic_id": b"t",
        "partition": b"3",
        "offset": b"7",
        "append_time": b"2022-06-09T00:08:51.005Z",
        "replayed_as": b"t/4/9",
        "key": b"\xff",
    }


# -- batches and files -----------------------------------------------------------------------------------


@given(st.integers(0, 300), st.floats(0, 5), st.booleans())
def test_a_batch_is_never_empty_nor_larger_than_it_must(rows: int, age: float, free: bool) -> None:
    """Readings become visible within the batch's time, and memory stays bounded."""
    due = BatchPlan(rows=100, seconds=1.0).due(rows, age, writer_free=free)
    assert due == (rows >= 100 or (rows > 0 and age >= 1.0 and free))


def test_compaction_takes_crowded_days_and_finished_ones() -> None:
    """Files of one second each must not pile up, and large ones not be rewritten for ever."""
    plan = CompactionPlan(small_files=3, small_bytes=10, large_files=2, large_bytes=100, days_at_once=2)
    crowded, finished, done = date(2022, 6, 1), date(2022, 6, 2), date(2022, 6, 3)
    files = pl.DataFrame(
        {"day": [crowded] * 4 + [finished] * 2 + [done] * 3, "size": [5, 5, 5, 50, 50, 60, 100, 120, 150]}
    )
    assert plan.chosen(files, {crowded}) == [(crowded, 10), (finished, 100)]
    assert plan.chosen(files, {crowded, finished}) == [(crowded, 10)]
    assert plan.chosen(files.clear(), set()) == []


# -- the supervisor --------------------------------------------------------------------------------------

NOW = 1_000_000.0
beats = st.none() | st.builds(
    Beat,
    run_id=st.sampled_from(["r1", "r2", "by-hand"]),
    pid=st.just(1),
    started=st.just(0.0),
    at=st.floats(NOW - 60, NOW),
    ended=st.booleans(),
)
leases = st.builds(LeaseState, held=st.booleans(), beat=beats)
runs = st.lists(
    st.builds(UnfinishedRun, run_id=st.sampled_from(["r1", "r2", "r3"]), queued=st.booleans(), age_s=st.floats(0, 60)),
    max_size=2,
    unique_by=lambda run: run.run_id,
)
surroundings = st.builds(
    Surroundings,
    lag=st.none() | st.integers(0, 5),
    fault=st.sampled_from(["", "lost"]),
    paused=st.none() | st.just("by hand"),
    fruitless=st.integers(0, 12),
    last_failure_s=st.floats(0, 400),
)


@settings(max_examples=1000)
@given(leases, runs, surroundings)
def test_supervisor_never_doubles_kills_or_forgets(
    lease: LeaseState, unfinished: list[UnfinishedRun], around: Surroundings
) -> None:
    """The supervisor's promises, whatever it sees."""
    action = decide(lease, unfinished, around, NOW)
    silent = lease.beat is not None and NOW - lease.beat.at > STALE_S
    # A second run is never started beside a living or a waiting one.
    if action.kind is Kind.REQUEST:
        assert not lease.held
        assert not unfinished
        assert around.lag
        assert around.paused is None
        assert not around.fault
    # Only a holder that has gone silent is killed.
    assert (action.kind is Kind.KILL) == (lease.held and silent)
    # A run is failed only when nobody holds the lease, and a queued or fresh one is not.
    for run_id in action.run_ids:
        assert not lease.held
        (run,) = [run for run in unfinished if run.run_id == run_id]
        assert not run.queued
        own = lease.beat is not None and lease.beat.run_id == run_id
        assert run.age_s > STARTING_S or own
    # Nothing is forgotten: with readings to land and nothing in the way, there is a run or one is asked for.
    if not lease.held and not unfinished and around.lag and not around.fault and around.paused is None:
        waits = around.last_failure_s < patience_s(around.fruitless)
        assert action.kind is (Kind.WAIT if waits else Kind.REQUEST)


def test_run_killed_right_after_its_start_is_replaced_at_once() -> None:
    """The 20 s for a start are for a run that has not been heard of; one that beat and vanished is dead."""
    beat = Beat(run_id="r1", pid=1, started=0.0, at=NOW - 1)
    action = decide(LeaseState(held=False, beat=beat), [UnfinishedRun("r1", False, 3.0)], Surroundings(None), NOW)
    assert action.run_ids == ("r1",)


def test_run_that_just_gave_the_lease_back_is_left_to_finish() -> None:
    """Between the end of landing and Dagster's own end of the run lie some tenths of a second."""
    beat = Beat(run_id="r1", pid=1, started=0.0, at=NOW - 1, ended=True)
    lease = LeaseState(held=False, beat=beat)
    assert decide(lease, [UnfinishedRun("r1", False, 3000.0)], Surroundings(None), NOW).kind is Kind.WAIT
    late = NOW + STARTING_S + 1
    assert decide(lease, [UnfinishedRun("r1", False, 3000.0)], Surroundings(None), late).kind is Kind.FAIL


@given(st.integers(0, 1000))
def test_patience_grows_and_ends(fruitless: int) -> None:
    """A cause that a restart does not mend must not fill the event log, nor keep landing away for hours."""
    assert patience_s(fruitless) <= patience_s(fruitless + 1) <= LONGEST_WAIT_S
    assert (patience_s(fruitless) == 0) == (fruitless < FRUITLESS_RUNS)


def test_watch_asks_for_a_run_as_soon_as_it_may() -> None:
    """Within one tick a dead run is failed and the next one requested."""
    steps = iter([Action(Kind.LEAVE, ""), Action(Kind.FAIL, "", ("r",)), Action(Kind.REQUEST, "")])
    slept: list[float] = []
    assert watch(lambda: next(steps), slept.append).kind is Kind.REQUEST
    assert len(slept) == 1


def test_a_machine_too_busy_to_start_a_run_in_time_lands_all_the_same():
    """Each run would be declared dead just before it got to work, for ever."""
    slow = 70.0
    fruitless = 0
    while starting_patience_s(fruitless) < slow:
        late = UnfinishedRun("slow", queued=False, age_s=starting_patience_s(fruitless) + 1)
        action = decide(LeaseState(held=False, beat=None), [late], Surroundings(1), NOW, starting_patience_s(fruitless))
        assert action.kind is Kind.FAIL
        fruitless += 1
    about_to_work = UnfinishedRun("slow", queued=False, age_s=slow)
    assert (
        decide(
            LeaseState(held=False, beat=None), [about_to_work], Surroundings(1), NOW, starting_patience_s(fruitless)
        ).kind
        is Kind.WAIT
    )
    assert starting_patience_s(1000) == LONGEST_STARTING_S
