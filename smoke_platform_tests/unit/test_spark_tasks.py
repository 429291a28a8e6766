"""What runs on executors, without Spark: batches of any size give the rows that one batch gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.domain.lake_records import READING
from smoke_platform.domain.landing import CLOCK_SCHEMA, DeviceClocks
from smoke_platform.domain.offsets import ranges_of
from smoke_platform.orchestration.spark_messages import Fault, Message, decode, encode
from smoke_platform.streaming import spark_tasks
from smoke_platform.streaming.landing import Fenced, LandedTable, LandingReport, Progress
from smoke_platform.streaming.preparing import PartitionTally
from smoke_platform.streaming.records_landing import RecordTally
from smoke_platform.streaming.spark_landing import readings_files
from smoke_platform.streaming.spark_reading import ReadTask, bucket_of, from_ipc, gathered, read_readings
from smoke_platform.streaming.spark_score_tasks import RUNS, in_runs, joined_runs, runs_of
from smoke_platform.streaming.spark_tasks import LandedPart, LandingTask, land_messages
from smoke_platform.streaming.windows import WindowTally
from smoke_platform_tests.spark_parts import rough_stream
from smoke_platform_tests.unit.test_lake_files import FACTS

NOW = datetime(2026, 11, 2, tzinfo=UTC)
_MESSAGES = pa.schema(
    [
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("headers", pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))),
    ]
)


def messages(partitions: int = 2) -> pa.Table:
    """A rough stream as Spark hands it over: partition after partition, each in the order of offsets."""
    rows: list[dict[str, Any]] = []
    counts = [0] * partitions
    for place, (key, value) in enumerate(rough_stream(1, devices=3, seconds=900)):
        number = sum(key.encode()) % partitions
        moment = NOW + timedelta(milliseconds=place)
        row = {"key": key.encode(), "value": value, "partition": number, "offset": counts[number], "timestamp": moment}
        rows.append({**row, "headers": None})
        counts[number] += 1
    return pa.Table.from_pylist(sorted(rows, key=lambda row: (row["partition"], row["offset"])), _MESSAGES)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Takes the place of the dead letters' topic."""
    sent: list[Any] = []

    class Producer:
        def send(self, batch: list[Any]) -> None:
            sent.extend(batch)

    monkeypatch.setattr(spark_tasks, "_letters", lambda _brokers, _topic: Producer())
    return sent


def cut(table: pa.Table, seed: int) -> Iterator[pa.RecordBatch]:
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    low = 0
    while low < table.num_rows:
        count = rng.randrange(1, 400)
        yield table.slice(low, count).combine_chunks().to_batches()[0]
        low += count


def landed(lake: Lake, table: pa.Table, seed: int, positions: dict[int, int]) -> tuple[pl.DataFrame, LandedPart]:
    """The rows after one task has landed the messages, and what it reports."""
    held = LandedTable(lake, FACTS)
    task = LandingTask(
        "", "topic", "topic", "letters", readings_files(lake), held.version, positions, timedelta(minutes=10), NOW
    )
    (report,) = land_messages(task, b"", cut(table, seed))
    part = msgspec.msgpack.decode(report.column("report")[0].as_py(), type=LandedPart)
    held.commit_files(part.files, {})
    return lake.scan(READINGS).sort("partition", "offset").collect(), part


def test_rows_do_not_depend_on_how_spark_cuts_the_messages(tmp_path: Path, letters: list[Any]) -> None:
    """Lateness is decided in the order of offsets; the size of an Arrow batch is no part of it."""
    table = messages()
    one, first = landed(Lake(str(tmp_path / "a")), table, 1, {})
    letters_of_one = [letter.key for letter in letters]
    letters.clear()
    other, second = landed(Lake(str(tmp_path / "b")), table, 2, {})
    assert one.equals(other)
    assert one["late"].sum() > 0
    assert letters_of_one == [letter.key for letter in letters]
    assert len(letters) == sum(first.reasons.values()) > 0
    assert first.tallies == second.tallies
    assert one.height + len(letters) == table.num_rows
    expected = DeviceClocks(timedelta(minutes=10))
    expected.judge(one.select("partition", "device_id", "event_time"))
    key = ["partition", "device_id"]
    assert from_ipc(first.clocks, CLOCK_SCHEMA).sort(key).equals(expected.frame.sort(key).select(list(CLOCK_SCHEMA)))


def test_what_has_landed_is_left_out(tmp_path: Path, letters: list[Any]) -> None:
    """Spark begins where its checkpoint says; the table's position alone decides."""
    table = messages()
    rows, part = landed(Lake(str(tmp_path)), table, 3, {0: 100, 1: 10**6})
    assert rows["offset"].min() >= 100
    assert set(rows["partition"]) == {0} == set(part.tallies)
    assert part.tallies[0].first_offset == 100


def test_a_reading_of_a_device_is_in_one_bucket_only(tmp_path: Path) -> None:
    """A window computed from half of its readings is wrong and looks right."""
    start = datetime(2026, 11, 1, tzinfo=UTC)
    rows = pl.DataFrame(
        {
            "device_id": [f"d{number % 17}" for number in range(500)],
            "event_time": [start + timedelta(seconds=number) for number in range(500)],
            "late": [number % 50 == 0 for number in range(500)],
        }
    )
    paths = []
    for number in range(5):
        paths.append(str(tmp_path / f"{number}.parquet"))
        rows[number::5].write_parquet(paths[-1])
    span = (start + timedelta(seconds=100), start + timedelta(seconds=400))
    task = ReadTask([paths[:2], [], paths[2:]], ("device_id", "event_time"), [span], False, None, 4)
    batches = list(read_readings(task, iter([pa.RecordBatch.from_pydict({"id": [0, 1, 2]})])))
    found = dict(gathered(iter(batches)))
    together = pl.concat(list(found.values())).sort("event_time")
    wanted = rows.filter(~pl.col("late"), pl.col("event_time").is_between(*span, closed="left"))
    assert together.equals(wanted.select("device_id", "event_time"))
    for bucket, frame in found.items():
        assert set(frame.select(bucket_of(4)).to_series()) == {bucket}
    named = ReadTask([paths], ("device_id",), [span], True, ("d3",), 4)
    some = pl.concat(
        [frame for _, frame in gathered(read_readings(named, iter([pa.RecordBatch.from_pydict({"id": [0]})])))]
    )
    assert set(some["device_id"]) == {"d3"}
    assert some.height > wanted.filter(pl.col("device_id") == "d3").height - 1


places = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2), st.integers(0, 60)), max_size=80)


def frame(found: list[tuple[str, int, int]]) -> pl.DataFrame:
    return pl.DataFrame(found, schema=dict(zip(READING, (pl.String, pl.Int32, pl.Int64), strict=True)), orient="row")


@given(places, places, places)
def test_offsets_as_runs_are_the_same_offsets(
    some: list[tuple[str, int, int]], more: list[tuple[str, int, int]], asked: list[tuple[str, int, int]]
) -> None:
    """A reading that is taken for scored is never scored; one taken for new gets a second prediction."""
    runs = joined_runs([runs_of(frame(some)), runs_of(frame(more))])
    assert runs.schema == RUNS
    known = set(some) | set(more)
    assert in_runs(frame(asked), runs).tolist() == [place in known for place in asked]
    for topic, number in {(topic, number) for topic, number, _ in known}:
        offsets = [offset for t, n, offset in known if (t, n) == (topic, number)]
        mine = runs.filter(topic_id=topic, partition=number).sort("first").select("first", "end").rows()
        assert mine == [(one.first, one.end) for one in ranges_of(number, offsets)]


def test_what_the_child_tells_arrives_as_it_was() -> None:
    """Counts that Dagster shows come from another process; a fault must keep its kind, which decides what follows."""
    message = Message(
        progress=Progress(3, {1: PartitionTally(rows=2, first_offset=5)}, {"not_json": 1}),
        records={"alarms": RecordTally(rows=1, version=4)},
        windows=WindowTally(windows=3, positions={0: 4}, newest_end=NOW),
        report=LandingReport("c", "t", "idle", positions={2: 8}),
        fault=Fault.of(Fenced("another", "leave it")),
    )
    told = decode(msgspec.json.decode(msgspec.json.encode(encode(message))))
    assert told == message
    assert told.fault is not None
    error = told.fault.error()
    assert (type(error), error.message, error.remedy) == (Fenced, "another", "leave it")
    assert "ZeroDivisionError" in Fault.of(ZeroDivisionError("x")).error().message
