"""Spreads the history's pieces of work over Spark's executors.

Belongs here: a piece a task, and the way of its rows back. Does not: the pieces (``streaming.history_work``), the
session (``adapters.spark``).

Each task runs a Python process that reads its share of the lake itself, by Polars and deltalake, and sends back rows of
a few kilobytes as Arrow: no reading passes through the JVM or the driver. So executors need the platform installed and
the lake within reach, and little memory of Spark's own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import pyarrow as pa

from smoke_platform.adapters.spark import EXECUTOR_WITHIN_S, session
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings
from smoke_platform.streaming.history_work import Frames, Mapper, Piece

_LONGEST_CAUSE = 500
_SCHEMA = "piece long, name string, frame binary"
_ARROW = pa.schema([("piece", pa.int64()), ("name", pa.string()), ("frame", pa.binary())])


@contextmanager
def on_spark(settings: Settings, executor_within_s: float = EXECUTOR_WITHIN_S) -> Iterator[Mapper]:
    """A mapper on a Spark session of its own, which ends with it.

    Args:
        executor_within_s: how long to wait for the first executor of a cluster; the landing may have all of them.

    Raises:
        SmokeError: there is no JDK for Spark, Spark does not start, or the cluster has nothing to spare.
    """
    with session(settings, "smoke history", kafka=False, executor_within_s=executor_within_s) as spark:
        yield lambda pieces: _map(spark, pieces)


def _map(spark: Any, pieces: Sequence[Piece]) -> list[Frames]:
    if not pieces:
        return []
    work = list(pieces)

    def do(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield _packed(number, work[number].do())

    from pyspark.errors import PySparkException

    try:
        # As many partitions as numbers: a piece a task.
        answers = spark.range(0, len(work), 1, len(work)).mapInArrow(do, _SCHEMA).toArrow()
    except PySparkException as fault:
        raise SmokeError(
            f"a piece of the history failed on Spark: {_cause(str(fault))}",
            "`smoke history run --engine local` computes the same in one process, and shows whether it is the data or "
            "Spark: a file that a worker can't find must lie where all of them reach it (SMOKE_LAKE_URL)",
        ) from fault
    found: list[Frames] = [{} for _ in work]
    for piece, name, packed in zip(*(answers[column].to_pylist() for column in _ARROW.names), strict=True):
        found[piece][name] = pl.read_ipc(io.BytesIO(packed))
    return found


def _cause(text: str) -> str:
    """What a Python process on an executor died of, out of Spark's account of it: the last line of its traceback."""
    lines = text.split("JVM stacktrace", 1)[0].splitlines()
    told = [line.strip() for line in lines if line and not line[0].isspace() and "SQLSTATE" not in line]
    return (told or ["for no reason that Spark tells"])[-1][:_LONGEST_CAUSE]


def _packed(number: int, frames: Frames) -> pa.RecordBatch:
    packed = []
    for frame in frames.values():
        buffer = io.BytesIO()
        frame.write_ipc(buffer, compression="zstd")
        packed.append(buffer.getvalue())
    columns = [pa.array([number] * len(frames), pa.int64()), pa.array(list(frames)), pa.array(packed, pa.binary())]
    return pa.RecordBatch.from_arrays(columns, schema=_ARROW)
