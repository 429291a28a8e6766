"""Which days are built when: the decision against a simulation, and the Delta log against what was done to it."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake
from smoke_platform.adapters.warehouse import (
    NO_TABLE,
    BuildRecord,
    LogPosition,
    arrivals_of_commit,
    arrivals_since,
    log_position,
)
from smoke_platform.adapters.windows import WINDOWS
from smoke_platform.domain.day_builds import LONGEST_BACK_OFF, Arrival, DayBuilds, Policy, Versions

NOON = datetime(2022, 6, 20, 12, tzinfo=UTC)
DAYS = [date(2022, 6, 9) + timedelta(days=number) for number in range(4)]
POLICY = Policy(
    quiet=timedelta(seconds=30), patience=timedelta(minutes=10), first_patience=timedelta(minutes=1), limit=2
)


def _after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def _due(builds: DayBuilds, now: datetime, built: frozenset[date] = frozenset()) -> list[date]:
    return builds.due(now=now, under_way=frozenset(), built=built, policy=POLICY)


def test_a_day_that_still_receives_is_left_until_it_is_quiet() -> None:
    """Without it a replay of five days would build each of them many times while it passes."""
    builds = DayBuilds().with_arrivals(Arrival(DAYS[0], READINGS, version, _after(version)) for version in range(10))
    assert _due(builds, _after(20)) == []
    assert _due(builds, _after(9 + 30)) == [DAYS[0]]


def test_a_new_platform_sees_its_first_day_within_a_minute() -> None:
    """Without it a newcomer whose devices never fall silent would see an empty warehouse for ten minutes."""
    builds = DayBuilds().with_arrivals(Arrival(DAYS[0], READINGS, second, _after(second)) for second in range(600))
    assert _due(builds, _after(60)) == [DAYS[0]]
    assert _due(builds, _after(60), built=frozenset(DAYS)) == []
    assert _due(builds, _after(600), built=frozenset(DAYS)) == [DAYS[0]]


def test_a_reading_a_minute_does_not_build_the_day_every_minute() -> None:
    """Without it slow devices would keep the warehouse building all the time."""
    builds, requests = DayBuilds(), 0
    built: dict[date, Versions] = {}
    for minute in range(60):
        builds = builds.with_arrivals([Arrival(DAYS[0], READINGS, minute, _after(60 * minute))])
        now = _after(60 * minute + 40)
        builds = builds.without_built(built, now, POLICY)
        due = _due(builds, now, frozenset(built))
        builds = builds.after_asking(due, now)
        requests += len(due)
        built.update({day: {READINGS: minute} for day in due})
    assert requests == 6


def test_a_build_that_keeps_failing_is_tried_ever_more_rarely_but_for_ever() -> None:
    """Without it a poisoned day would take every slot, or would never be built again after it is mended."""
    builds = DayBuilds().with_arrivals([Arrival(DAYS[0], READINGS, 1, NOON)])
    asked_at = []
    now = NOON
    while now < NOON + timedelta(days=3):
        now += timedelta(seconds=30)
        builds = builds.without_built({}, now, POLICY)
        if _due(builds, now):
            asked_at.append(now)
            builds = builds.after_asking([DAYS[0]], now)
    gaps = [later - earlier for earlier, later in pairwise(asked_at)]
    assert gaps[:3] == [timedelta(minutes=10), timedelta(minutes=20), timedelta(minutes=40)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST_BACK_OFF
    assert len(asked_at) < 20


def test_a_success_ends_the_waiting_after_failures() -> None:
    """Without it a day that failed in the morning would be built every six hours only, for the rest of the day."""
    builds = DayBuilds().with_arrivals([Arrival(DAYS[0], READINGS, 1, NOON)])
    for _ in range(5):
        builds = builds.after_asking([DAYS[0]], NOON)
    builds = builds.with_arrivals([Arrival(DAYS[0], READINGS, 2, _after(600))]).without_built(
        {DAYS[0]: {READINGS: 1}}, _after(600), POLICY
    )
    assert _due(builds, _after(600 + 30), frozenset(DAYS)) == [DAYS[0]]


def test_a_day_waits_until_a_build_has_seen_every_table() -> None:
    """Without it the windows that are computed after a day's build would never reach its mart."""
    builds = DayBuilds().with_arrivals([Arrival(DAYS[0], READINGS, 5, NOON), Arrival(DAYS[0], WINDOWS, 3, NOON)])
    for seen, due in (({READINGS: 5}, True), ({READINGS: 5, WINDOWS: 2}, True), ({READINGS: 9, WINDOWS: 3}, False)):
        left = builds.without_built({DAYS[0]: seen}, _after(60), POLICY)
        assert _due(left, _after(60), frozenset(DAYS)) == ([DAYS[0]] if due else []), seen
    # A correction of yesterday's last window, brought by today's first readings.
    later = DayBuilds().with_arrivals([Arrival(DAYS[0], WINDOWS, 4, _after(600))])
    built = {DAYS[0]: {READINGS: 9, WINDOWS: 3}}
    assert _due(later.without_built(built, _after(700), POLICY), _after(700), frozenset(DAYS)) == [DAYS[0]]


def test_a_table_made_anew_is_not_waited_for_by_its_old_versions() -> None:
    """Without it a table of windows that was deleted and computed again would have its days built for ever."""
    builds = DayBuilds().with_arrivals([Arrival(day, WINDOWS, 900, NOON) for day in DAYS[:2]])
    builds = builds.with_arrivals([Arrival(DAYS[0], READINGS, 5, NOON)]).after_asking([DAYS[1]], NOON)
    left = builds.without_tables([WINDOWS])
    assert set(left.waiting) == {DAYS[0]}
    assert left.waiting[DAYS[0]].versions == {READINGS: 5}
    again = left.with_arrivals([Arrival(DAYS[1], WINDOWS, 0, _after(60))])
    assert not again.without_built({day: {READINGS: 5, WINDOWS: 0} for day in DAYS}, _after(60), POLICY).waiting


def test_a_day_that_has_not_begun_waits_for_its_partition() -> None:
    """Without it a clock a minute ahead at midnight would ask for a partition that Dagster does not have yet."""
    tomorrow = NOON.date() + timedelta(days=1)
    builds = DayBuilds().with_arrivals([Arrival(tomorrow, READINGS, 1, NOON)])
    assert _due(builds, _after(600)) == []
    assert _due(builds, _after(86_400)) == [tomorrow]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), ticks=st.integers(20, 120))
def test_no_row_stays_unbuilt_and_no_day_is_built_twice_for_nothing(seed: int, ticks: int) -> None:
    """Whatever arrives, fails or takes long: in the end every day is built from its latest rows, within the limits."""
    chance = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    builds = DayBuilds()
    latest: dict[tuple[date, str], int] = {}  # the oracle: version of the last rows of each day in each table
    built: dict[date, Versions] = {}
    running: dict[date, tuple[Versions, int, bool]] = {}  # day -> (versions it sees, tick of its end, its success)
    asked_at: dict[date, datetime] = {}
    versions, tick = dict.fromkeys((READINGS, WINDOWS), 0), 0

    def unbuilt(day: date) -> bool:
        return any(built.get(key[0], {}).get(key[1], -1) < latest[key] for key in latest if key[0] == day)

    while tick < ticks or any(unbuilt(day) for day in DAYS) or running:
        tick += 1
        assert tick < ticks + 4_000, "a day is never built"
        now = _after(30 * tick)
        if tick < ticks:
            arrivals = []
            for _ in range(chance.randint(0, 3)):
                table, day = chance.choice([READINGS, WINDOWS]), chance.choice(DAYS)
                versions[table] += 1
                latest[day, table] = versions[table]
                arrivals.append(Arrival(day, table, versions[table], now - timedelta(seconds=chance.randint(0, 29))))
            chance.shuffle(arrivals)
            builds = builds.with_arrivals(arrivals)
        for day, (seen, end, succeeds) in list(running.items()):
            if end <= tick:
                del running[day]
                if succeeds:
                    built[day] = seen
        builds = builds.without_built(built, now, POLICY)
        due = builds.due(now=now, under_way=frozenset(running), built=frozenset(built), policy=POLICY)
        builds = builds.after_asking(due, now)

        assert len(due) + len(running) <= POLICY.limit
        for day in due:
            assert day not in running
            assert unbuilt(day), "asked for a day that no rows have reached since its build"
            assert day not in asked_at or now - asked_at[day] >= POLICY.patience
            asked_at[day] = now
            running[day] = (dict(versions), tick + chance.randint(1, 6), tick >= ticks or chance.random() < 0.7)
    assert not builds.waiting or set(builds.without_built(built, now, POLICY).waiting) == set()


def _rows(day: date, count: int, offset: int = 0) -> pl.DataFrame:
    return pl.DataFrame({PARTITION_COLUMN: [day] * count, "offset": list(range(offset, offset + count))})


def _days_in(arrivals: list[Arrival]) -> dict[date, int]:
    latest: dict[date, int] = {}
    for arrival in arrivals:
        latest[arrival.day] = max(latest.get(arrival.day, -1), arrival.version)
    return latest


def test_the_log_tells_which_days_received_rows_and_ignores_compaction(tmp_path: Path) -> None:
    """Without it each compaction of a finished hour would build its day again."""
    lake = Lake(str(tmp_path / "lake"))
    assert arrivals_since(lake, READINGS, None, {}) == (NO_TABLE, [])
    for number in range(3):
        lake.append(READINGS, _rows(DAYS[0], 2, number), [PARTITION_COLUMN])
    start, arrivals = arrivals_since(lake, READINGS, None, {})
    assert set(_days_in(arrivals)) == {DAYS[0]}

    both = pl.concat([_rows(DAYS[1], 2), _rows(DAYS[2], 1)])
    version = lake.append(READINGS, both, [PARTITION_COLUMN])
    lake.open(READINGS).optimize.compact()
    position, arrivals = arrivals_since(lake, READINGS, start, {})
    assert position == log_position(lake, READINGS)
    assert position.version == version + 1
    assert _days_in(arrivals) == {DAYS[1]: version, DAYS[2]: version}

    removed = lake.replace_where(READINGS, _rows(DAYS[2], 0), {PARTITION_COLUMN: DAYS[2]}, [PARTITION_COLUMN])
    position, arrivals = arrivals_since(lake, READINGS, position, {})
    assert _days_in(arrivals) == {DAYS[2]: removed}
    assert arrivals_since(lake, READINGS, position, {}) == (position, [])


def test_a_log_that_was_cleaned_up_costs_builds_but_no_rows(tmp_path: Path) -> None:
    """Without it a sensor that slept through the log's retention would never see the rows of that time."""
    lake = Lake(str(tmp_path / "lake"))
    lake.append(READINGS, _rows(DAYS[0], 2), [PARTITION_COLUMN])
    start, _ = arrivals_since(lake, READINGS, None, {})
    began = datetime.now(UTC).isoformat()
    built = {day: BuildRecord(day.isoformat(), {READINGS: start}, began) for day in DAYS[:2]}
    lake.append(READINGS, _rows(DAYS[1], 2), [PARTITION_COLUMN])
    lake.append(READINGS, _rows(DAYS[2], 2), [PARTITION_COLUMN])
    lake.open(READINGS).create_checkpoint()
    (tmp_path / "lake" / READINGS / "_delta_log" / f"{start.version + 1:020d}.json").unlink()
    position, arrivals = arrivals_since(lake, READINGS, start, built)
    assert _days_in(arrivals) == {DAYS[1]: position.version, DAYS[2]: position.version}


def test_a_table_made_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    """Without it a lake that was deleted and filled again would wait until it reached the old version."""
    old, new = Lake(str(tmp_path / "old")), Lake(str(tmp_path / "new"))
    for number in range(5):
        old.append(READINGS, _rows(DAYS[0], 1, number), [PARTITION_COLUMN])
    position, _ = arrivals_since(old, READINGS, None, {})
    built = {DAYS[1]: BuildRecord(DAYS[1].isoformat(), {READINGS: position}, "2100-01-01T00:00:00+00:00")}
    new.append(READINGS, _rows(DAYS[1], 1), [PARTITION_COLUMN])
    assert set(_days_in(arrivals_since(new, READINGS, position, built)[1])) == {DAYS[1]}


def test_a_commit_without_rows_is_no_arrival() -> None:
    """Without it every change of the table's properties would build days again."""
    commit = b'{"commitInfo":{"timestamp":1700000000000}}\n{"metaData":{"id":"x"}}\n{"txn":{"appId":"a","version":3}}\n'
    assert arrivals_of_commit(commit, READINGS, 4) == []


def test_a_day_built_before_windows_were_followed_is_built_for_its_windows(tmp_path: Path) -> None:
    """Without it a platform that was updated would stop at the records of its old builds, or never show a window."""
    old = '{"day": "2022-06-09", "table_id": "abc", "version": 7, "began_at": "2100-01-01T00:00:00+00:00"}'
    record = BuildRecord.from_json(old)
    assert record.position(READINGS) == LogPosition("abc", 7)
    assert record.position(WINDOWS) == NO_TABLE
    assert BuildRecord.from_json(record.to_json()) == record
    lake = Lake(str(tmp_path / "lake"))
    lake.append(WINDOWS, _rows(DAYS[0], 2), [PARTITION_COLUMN])
    assert set(_days_in(arrivals_since(lake, WINDOWS, None, {DAYS[0]: record})[1])) == {DAYS[0]}
