"""What Spark's executors do for windows: compute those that are due from a device's readings, and write them.

Belongs here: a function from Arrow batches to Arrow batches. Does not: which windows are due
(``domain.window_planning``), the statistics (``domain.windows``), how the readings get here
(``streaming.spark_reading``), the driver (``streaming.spark_windows``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec
import polars as pl
import pyarrow as pa

from smoke_platform.adapters.lake_files import FileShape, WrittenFile, write_files
from smoke_platform.adapters.windows import WINDOW_COLUMNS, WRITTEN_AT
from smoke_platform.domain.window_planning import WINDOW
from smoke_platform.domain.windows import compute
from smoke_platform.streaming.spark_reading import bucket_of, from_ipc, gathered, report_of


class ComputedPart(msgspec.Struct, kw_only=True):
    """What a task has done: its files, how many windows are in them, and the latest end."""

    files: list[WrittenFile] = msgspec.field(default_factory=list)
    windows: int = 0
    newest_end: datetime | None = None


@dataclass(frozen=True, slots=True)
class ComputeTask:
    """How windows are computed and written.

    Attributes:
        shape: of the table's files.
        buckets: into how many the devices are divided.
        written_at: the moment that the rows carry.
    """

    shape: FileShape
    buckets: int
    written_at: datetime


def compute_windows(
    task: ComputeTask, due: bytes, intervals_s: Mapping[str, float], batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Computes the windows of whole buckets and writes them.

    Args:
        due: the windows wanted (``window_planning.WINDOW``, Arrow IPC), of these buckets at least.
        intervals_s: device -> seconds between its reports.
        batches: ``spark_reading.FRAMES_SCHEMA``; all frames of a bucket and none of it in another task.

    Yields:
        One batch of one row, a ``ComputedPart``.
    """
    part = ComputedPart()
    wanted: pl.DataFrame | None = None
    for bucket, rows in gathered(batches):
        wanted = from_ipc(due, WINDOW) if wanted is None else wanted
        windows = wanted.filter(bucket_of(task.buckets) == bucket)
        found = compute(rows, intervals_s=intervals_s, windows=windows).with_columns(
            pl.lit(task.written_at).cast(pl.Datetime("us", "UTC")).alias(WRITTEN_AT)
        )
        if found.is_empty():
            continue
        part.files += write_files(found.select(list(WINDOW_COLUMNS)), task.shape)
        part.windows += found.height
        end = found["window_end"].max()
        assert isinstance(end, datetime)  # noqa: S101 - tells the type checker what the column holds
        part.newest_end = end if part.newest_end is None else max(part.newest_end, end)
    yield report_of(part)
