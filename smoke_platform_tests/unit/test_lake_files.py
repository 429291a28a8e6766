"""Files that executors write and the driver commits: what a commit says of them must be true of them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from smoke_platform.adapters.kafka_bulk import TopicFacts
from smoke_platform.adapters.lake import READINGS, READINGS_COLUMNS, READINGS_SCHEMA, Lake
from smoke_platform.adapters.lake_files import LONGEST_TEXT, FileShape, files_of, statistics, write_files
from smoke_platform.streaming.landing import Fenced, LandedTable, Outdated
from smoke_platform.streaming.spark_landing import planned_ends, readings_files

START = datetime(2026, 11, 1, 23, 59, 58, 123456, tzinfo=UTC)
FACTS = TopicFacts("cluster", "topic", (0, 1))


def readings(count: int, start: datetime = START) -> pl.DataFrame:
    """A reading a second of one device, from two seconds before midnight on."""
    empty = pl.from_arrow(READINGS_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    moments = [start + timedelta(seconds=second) for second in range(count)]
    rows = pl.DataFrame(
        {
            "event_date": [moment.date() for moment in moments],
            "device_id": ["gerät 1"] * count,
            "event_time": moments,
            "temperature_c": [float(second) for second in range(count)],
            "late": [False] * count,
            "partition": pl.Series([0] * count, dtype=pl.Int32),
            "offset": range(count),
        }
    )
    return pl.concat([empty, rows], how="diagonal_relaxed").select(READINGS_COLUMNS)


def test_a_committed_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """Every value of every reading passes through here when the engine is spark."""
    lake = Lake(str(tmp_path))
    table = LandedTable(lake, FACTS)
    files = write_files(readings(5), readings_files(lake))
    assert [file.day for file in files] == ["2026-11-01", "2026-11-02"]
    version = table.commit_files(files, {0: 5}, {"note": "x"}, {"mark": 7})
    assert (table.version, table.positions, table.mark("mark")) == (version, {0: 5, 1: None}, 7)
    assert lake.scan(READINGS).sort("offset").collect().equals(readings(5))
    lake.open(READINGS).optimize.compact()
    assert lake.scan(READINGS).sort("offset").collect().equals(readings(5))


def test_a_file_that_was_not_committed_is_not_there(tmp_path: Path) -> None:
    """A task that dies after it has written, or runs twice, must leave no row behind."""
    lake = Lake(str(tmp_path))
    table = LandedTable(lake, FACTS)
    write_files(readings(5), readings_files(lake))
    table.commit_files([], {0: 5})
    assert lake.scan(READINGS).collect().is_empty()


def test_a_stale_writer_of_files_is_fenced(tmp_path: Path) -> None:
    """The commit of files must be refused on an outdated snapshot as the other way of writing is."""
    lake = Lake(str(tmp_path))
    first, second = LandedTable(lake, FACTS), LandedTable(lake, FACTS)
    shape = readings_files(lake)
    first.commit_files(write_files(readings(3), shape), {0: 3})
    with pytest.raises(Fenced, match="partition 0 up to 3"):
        second.commit_files(write_files(readings(3), shape), {0: 3})
    assert lake.scan(READINGS).collect().height == 3


def test_a_mark_that_another_has_moved_refuses_the_commit(tmp_path: Path) -> None:
    """Two that add rows for the same readings at once would each believe to be the first."""
    lake = Lake(str(tmp_path))
    first, second = LandedTable(lake, FACTS), LandedTable(lake, FACTS)
    rows = readings(1).to_arrow()
    first.commit(rows, {}, marks={"m": 5})
    with pytest.raises(Outdated):
        second.commit(rows, {}, marks={"m": 5})
    second.commit(rows, {}, marks={"m": 6})
    assert lake.scan(READINGS).collect().height == 2


def test_only_files_that_may_hold_the_time_are_read(tmp_path: Path) -> None:
    """A window of five minutes must not read a year; and a file that holds the moment must never be left out."""
    lake = Lake(str(tmp_path))
    table = LandedTable(lake, FACTS)
    shape = readings_files(lake)
    for hour in range(3):
        start = START.replace(hour=10) + timedelta(hours=hour)
        table.commit_files(write_files(readings(4, start), shape), {})
    # One that the other engine wrote: its greatest time is cut to milliseconds.
    cut = START.replace(hour=20, microsecond=123999)
    table.commit(readings(1, cut).to_arrow(), {})
    delta = lake.open(READINGS)

    def rows(begin: datetime, end: datetime) -> list[int]:
        return [count for _, count in files_of(delta, "event_time", [(begin, end)])]

    first = START.replace(hour=10)
    assert rows(first, first + timedelta(hours=9)) == [4, 4, 4]
    assert rows(first - timedelta(hours=1), first) == []
    assert rows(first + timedelta(seconds=3), first + timedelta(seconds=9)) == [4]
    assert rows(cut, cut + timedelta(microseconds=1)) == [1]
    assert len(files_of(delta, "offset", [(2, 3)])) == 3
    assert all(Path(path).is_file() for path, _ in files_of(delta, "event_time", [(first, cut)]))


def test_unsigned_numbers_are_stored_as_delta_knows_them(tmp_path: Path) -> None:
    """Delta has no unsigned numbers; a file that has some breaks every later read of the table."""
    rows = pl.DataFrame({"day": [date(2026, 11, 1)], "level": pl.Series([4], dtype=pl.UInt8)})
    (file,) = write_files(rows, FileShape(str(tmp_path), "day", ("level",)))
    assert pl.read_parquet(tmp_path / file.path).schema == {"level": pl.Int8()}


def test_statistics_leave_out_what_they_cannot_say() -> None:
    """A text that was cut would make readers skip a file that has what they look for."""
    rows = pl.DataFrame({"a": [None, None], "b": ["x" * (LONGEST_TEXT + 1), "a"], "t": [START, START]})
    found = statistics(rows.with_columns(pl.col("a").cast(pl.Int64)), ("a", "b", "t", "absent"))
    assert found == {
        "numRecords": 2,
        "minValues": {"t": "2026-11-01T23:59:58.123456Z"},
        "maxValues": {"t": "2026-11-01T23:59:58.123456Z"},
        "nullCount": {"a": 2, "b": 0, "t": 0},
    }


def test_the_plan_of_a_batch_is_read_for_this_topic_alone() -> None:
    """The position is moved to what Spark planned; another topic's numbers would lose or double readings."""
    plan = 'v1\n{"batchWatermarkMs":0,"conf":{}}\n{"smoke":{"0":12,"10":3}}'
    assert planned_ends(plan, "smoke") == {0: 12, 10: 3}
    with pytest.raises(Exception, match="says nothing of topic other"):
        planned_ends(plan, "other")
