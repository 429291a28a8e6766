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

from smoke_platform.settings import Settings
from smoke_platform.streaming.history_work import Frames, Mapper, Piece

_SCHEMA = "piece long, name string, frame binary"
_ARROW = pa.schema([("piece", pa.int64()), ("name", pa.string()), ("frame", pa.binary())])


@contextmanager
def on_spark(settings: Settings) -> Iterator[Mapper]:
    """A mapper on a Spark session of its own, which ends with it."""
    with _session(settings) as spark:
        yield lambda pieces: _map(spark, pieces)


@contextmanager
def _session(settings: Settings) -> Iterator[Any]:
    import os
    import sys

    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable

    builder = SparkSession.builder.appName("smoke history").master("local[*]")
    for name, value in {
        "spark.ui.enabled": "false",
        "spark.pyspark.python": sys.executable,
        "spark.executorEnv.POLARS_MAX_THREADS": "1",
        "spark.executorEnv.OMP_NUM_THREADS": "1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.log.level": "WARN",
    }.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def _map(spark: Any, pieces: Sequence[Piece]) -> list[Frames]:
    if not pieces:
        return []
    work = list(pieces)

    def do(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield _packed(number, work[number].do())

    # As many partitions as numbers: a piece a task.
    answers = spark.range(0, len(work), 1, len(work)).mapInArrow(do, _SCHEMA).toArrow()
    found: list[Frames] = [{} for _ in work]
    for piece, name, packed in zip(*(answers[column].to_pylist() for column in _ARROW.names), strict=True):
        found[piece][name] = pl.read_ipc(io.BytesIO(packed))
    return found


def _packed(number: int, frames: Frames) -> pa.RecordBatch:
    packed = []
    for frame in frames.values():
        buffer = io.BytesIO()
        frame.write_ipc(buffer, compression="zstd")
        packed.append(buffer.getvalue())
    columns = [pa.array([number] * len(frames), pa.int64()), pa.array(list(frames)), pa.array(packed, pa.binary())]
    return pa.RecordBatch.from_arrays(columns, schema=_ARROW)
