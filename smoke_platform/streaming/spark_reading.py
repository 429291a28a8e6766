"""Readings of the lake on Spark: read file by file, and brought together device by device.

Belongs here: the first step of every job that needs all of a device's readings in one place. Does not: what is done
with them (``streaming.spark_window_tasks``, ``streaming.spark_score_tasks``).

Between the two steps Spark carries the readings to where their device's others are. They travel as whole frames in
Arrow's own format, one for each bucket of devices, so that Spark moves bytes and never looks at a row. Files are opened
by the same library, with the same access to object stores, as everywhere else in the platform.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import polars as pl
import pyarrow as pa

from smoke_platform.adapters.spark import parallelism

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: Column of what a task gives back to the driver: one row a task, or none.
REPORT_SCHEMA = "report binary"
#: Columns of what the first step gives to the second.
FRAMES_SCHEMA = "bucket int, frame binary"
#: Readings of one bucket, about: what a task of the second step has in memory.
BUCKET_ROWS = 250_000
#: Devices are named in the question to the files up to this many; beyond it, all are read and sorted out afterwards.
MOST_NAMED_DEVICES = 2_000

Range = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class ReadTask:
    """Which readings are wanted.

    Attributes:
        files: for each task the files that it reads.
        columns: of ``lake/readings``, device_id among them.
        ranges: event times, from the first up to, not including, the second; a reading is in one of them.
        late: whether late readings are wanted, too.
        devices: these alone, ``None`` for all.
        buckets: into how many the devices are divided.
    """

    files: Sequence[Sequence[str]]
    columns: Sequence[str]
    ranges: Sequence[Range]
    late: bool
    devices: Sequence[str] | None
    buckets: int


def read_readings(task: ReadTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Reads the files of the tasks whose numbers come (column ``id``), and yields the readings by bucket."""
    wanted = pl.any_horizontal(
        (pl.col("event_time") >= begin) & (pl.col("event_time") < end) for begin, end in task.ranges
    )
    if not task.late:
        wanted = wanted & ~pl.col("late")
    if task.devices is not None:
        wanted = wanted & pl.col("device_id").is_in(list(task.devices))
    for batch in batches:
        for number in batch.column("id").to_pylist():
            if task.files[number]:
                scan = pl.scan_parquet(list(task.files[number]), hive_partitioning=False)
                rows = scan.filter(wanted).select(task.columns).collect()
                yield from _by_bucket(rows, task.buckets)


def _by_bucket(rows: pl.DataFrame, buckets: int) -> Iterator[pa.RecordBatch]:
    for (bucket,), part in (
        rows.with_columns(_bucket=bucket_of(buckets)).partition_by("_bucket", as_dict=True, include_key=False).items()
    ):
        yield pa.RecordBatch.from_arrays(
            [pa.array([bucket], pa.int32()), pa.array([to_ipc(part)], pa.binary())], ["bucket", "frame"]
        )


def bucket_of(buckets: int) -> pl.Expr:
    """The bucket of a device, from 0; the same in every process."""
    return (pl.col("device_id").hash(seed=0) % buckets).cast(pl.Int32)


def gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pl.DataFrame]]:
    """The buckets of one task of the second step (``FRAMES_SCHEMA``) with their readings."""
    frames: dict[int, list[bytes]] = {}
    for batch in batches:
        for bucket, frame in zip(batch.column("bucket").to_pylist(), batch.column("frame").to_pylist(), strict=True):
            frames.setdefault(bucket, []).append(frame)
    for bucket in sorted(frames):
        yield bucket, pl.concat([pl.read_ipc(frame) for frame in frames.pop(bucket)])


@dataclass(frozen=True, slots=True)
class Gathering:
    """Both steps' layout: ``frames`` has one partition for each of the ``buckets``."""

    frames: DataFrame
    buckets: int


def gather(
    spark: SparkSession,
    files: Sequence[tuple[str, int]],
    columns: Sequence[str],
    ranges: Sequence[Range],
    *,
    late: bool,
    devices: Sequence[str] | None = None,
) -> Gathering:
    """The readings of these files, each device's in one place; on the driver.

    Args:
        files: path and number of rows of each.
        columns, ranges, late: as in ``ReadTask``.
        devices: those wanted, where not all are.
    """
    slots = parallelism(spark)
    task = ReadTask(
        files=[[path for path, _ in files[number::slots]] for number in range(slots)],
        columns=tuple(columns),
        ranges=tuple(ranges),
        late=late,
        devices=None if devices is None or len(devices) > MOST_NAMED_DEVICES else tuple(devices),
        buckets=max(slots, -(-sum(rows for _, rows in files) // BUCKET_ROWS)),
    )

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return read_readings(task, batches)

    read_frames = spark.range(0, slots, 1, slots).mapInArrow(read, FRAMES_SCHEMA)
    return Gathering(read_frames.repartitionById(task.buckets, "bucket"), task.buckets)


# -- what travels ----------------------------------------------------------------------------------------


def to_ipc(frame: pl.DataFrame) -> bytes:
    """The frame as Arrow IPC, compressed; no bytes for no rows."""
    if frame.is_empty():
        return b""
    sink = pa.BufferOutputStream()
    frame.write_ipc(sink, compression="lz4", compat_level=pl.CompatLevel.oldest())
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_ipc(data: bytes, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The frame that ``to_ipc`` wrote."""
    if not data:
        return pl.DataFrame(schema=dict(schema))
    return pl.read_ipc(data).cast(pl.Schema(dict(schema)))


def report_of(part: msgspec.Struct) -> pa.RecordBatch:
    """One row with a task's report (``REPORT_SCHEMA``)."""
    return pa.RecordBatch.from_arrays([pa.array([msgspec.msgpack.encode(part)], pa.binary())], ["report"])
