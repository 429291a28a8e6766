"""What Spark's executors do to score readings that nobody has scored: features, model, rules, files.

Belongs here: functions from Arrow batches to Arrow batches, and which offsets have a prediction already. Does not: what
a feature, a score or a rule is (``domain.features``, ``adapters.scorer``, ``domain.rules``), how the readings get here
(``streaming.spark_reading``), the driver (``streaming.spark_scores``).
"""

from __future__ import annotations

import functools
import hashlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from smoke_platform.adapters.lake_files import FileShape, WrittenFile, write_files
from smoke_platform.adapters.scorer import Champion, OnnxScorer
from smoke_platform.domain import features, rules
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.lake_records import DAY, PREDICTION_COLUMNS, READING
from smoke_platform.domain.readings import ALL_SENSOR_NAMES
from smoke_platform.streaming.spark_reading import from_ipc, gathered, report_of, to_ipc

#: What is needed of a reading.
COLUMNS = ("device_id", "event_time", *READING, *ALL_SENSOR_NAMES)
#: Offsets of a partition from ``first`` up to, not including, ``end``.
RUNS: dict[str, pl.DataType] = {
    "topic_id": pl.String(),
    "partition": pl.Int32(),
    "first": pl.Int64(),
    "end": pl.Int64(),
}
_BY = ["topic_id", "partition"]
#: Readings whose features are in memory at once.
_CHUNK_ROWS = 50_000


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A verified model as it travels to the executors."""

    champion: Champion
    manifest: dict[str, Any]
    artifact: bytes


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """What a task has to know.

    Attributes:
        shape: of the predictions' files.
        columns: of the predictions, in the order of the table.
        day: UTC; readings of this day are scored, earlier ones only warm up.
        now: the moment that the predictions carry.
    """

    shape: FileShape
    columns: Sequence[str]
    day: date
    now: datetime


class ScoredPart(msgspec.Struct, kw_only=True):
    """What a task has done: its files, how many readings they score, and which offsets (``RUNS``, Arrow IPC)."""

    files: list[WrittenFile] = msgspec.field(default_factory=list)
    rows: int = 0
    runs: bytes = b""
    fault: tuple[str, str] | None = None


def runs_of(places: pl.DataFrame) -> pl.DataFrame:
    """Offsets (columns ``READING``) as the fewest ``RUNS``; doubles count once."""
    begins = pl.col("offset") != pl.col("offset").shift(1).over(_BY) + 1
    return (
        places.select(READING)
        .unique()
        .sort(READING)
        .with_columns(run=begins.fill_null(value=True).cum_sum())
        .group_by(*_BY, "run", maintain_order=True)
        .agg(pl.col("offset").min().alias("first"), (pl.col("offset").max() + 1).alias("end"))
        .select(list(RUNS))
        .cast(pl.Schema(RUNS))
    )


def joined_runs(runs: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Runs that may overlap or touch, as the fewest."""
    every = pl.concat([pl.DataFrame(schema=RUNS), *runs]).sort(*_BY, "first", "end")
    before = pl.col("end").cum_max().shift(1).over(_BY)
    return (
        every.with_columns(run=(pl.col("first") > before).fill_null(value=True).cum_sum())
        .group_by(*_BY, "run", maintain_order=True)
        .agg(pl.col("first").min(), pl.col("end").max())
        .select(list(RUNS))
    )


def in_runs(places: pl.DataFrame, runs: pl.DataFrame) -> npt.NDArray[np.bool_]:
    """Which of the offsets (columns ``READING``) lie in a run, bool ``[n]``; the runs neither overlap nor touch."""
    if runs.is_empty():
        return np.zeros(places.height, dtype=np.bool_)
    found = (
        places.select(READING)
        .with_row_index("row")
        .sort("offset")
        .join_asof(runs.sort("first"), left_on="offset", right_on="first", by=_BY, check_sortedness=False)
        .sort("row")
    )
    answer: npt.NDArray[np.bool_] = (
        found.select((pl.col("offset") < pl.col("end")).fill_null(value=False)).to_series().to_numpy()
    )
    return answer


def read_runs(files: Sequence[Sequence[str]], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The readings that have a prediction in the files of the tasks whose numbers come (column ``id``), as runs."""
    for batch in batches:
        for number in batch.column("id").to_pylist():
            if files[number]:
                places = pl.scan_parquet(list(files[number]), hive_partitioning=False).select(READING).collect()
                yield report_of(ScoredPart(runs=to_ipc(runs_of(places))))


def score_readings(
    task: ScoreTask, model: bytes, scored: bytes, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Scores the readings of whole buckets that have no prediction, and writes the predictions.

    Args:
        model: a ``Model``.
        scored: the readings that have one (``RUNS``, Arrow IPC).
        batches: ``spark_reading.FRAMES_SCHEMA`` with ``COLUMNS``; all frames of a bucket and none in another task.

    Yields:
        One batch of one row, a ``ScoredPart``.
    """
    part = ScoredPart()
    runs = []
    try:
        for _, rows in gathered(batches):
            predictions = predict(rows, _scorer(model), task.day, from_ipc(scored, RUNS), task.now)
            if predictions.height:
                stored = predictions.with_columns(
                    pl.lit(task.now.date()).alias(DAY),
                    pl.lit(task.now).cast(pl.Datetime("us", "UTC")).alias("append_time"),
                    pl.lit(task.now).cast(pl.Datetime("us", "UTC")).alias("ingest_time"),
                    # No message of the detector brought it.
                    pl.lit(None, pl.String).alias("record_topic_id"),
                    pl.lit(None, pl.Int32).alias("record_partition"),
                    pl.lit(None, pl.Int64).alias("record_offset"),
                )
                part.files += write_files(stored.select(list(task.columns)), task.shape)
                part.rows += predictions.height
                runs.append(runs_of(predictions))
        part.runs = to_ipc(joined_runs(runs))
    except SmokeError as fault:
        part = ScoredPart(fault=(fault.message, fault.remedy))
    yield report_of(part)


def predict(rows: pl.DataFrame, scorer: OnnxScorer, day: date, scored: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Scores and rule hits of a day's readings, each device from a blank state at its first row.

    The kernels are the detector's. A device's rows are taken in the order of offsets, partition by partition, late
    ones and duplicates included, as the detector takes them.

    Args:
        rows: ``COLUMNS``; all readings of some devices, of the day and of what is to warm them up.
        scored: readings that have a prediction (``RUNS``): they move the state on and are left out.

    Returns:
        Columns of ``domain.lake_records.PREDICTION_COLUMNS``, by topic, partition and offset.
    """
    ordered = rows.sort(READING)
    slots = ordered.select(pl.struct("topic_id", "partition", "device_id").rank("dense")).to_series()
    numbers = slots.cast(pl.Int64).to_numpy() - 1
    times, sensors = features.event_seconds(ordered), features.sensor_matrix(ordered)
    state, rule_state = features.FeatureState(), rules.RuleState()
    scores = np.empty(ordered.height)
    levels = np.empty(ordered.height, dtype=np.int8)
    hits = np.empty(ordered.height, dtype=np.int64)
    for low in range(0, ordered.height, _CHUNK_ROWS):
        some = slice(low, low + _CHUNK_ROWS)
        seen = features.step(state, numbers[some], times[some], sensors[some])
        scores[some] = scorer.score(seen)
        verdicts = rules.evaluate(
            rule_state, numbers[some], times[some], sensors[some], seen, scores[some], scorer.threshold
        )
        levels[some], hits[some] = verdicts.fire_level, verdicts.hits
    wanted = (ordered["event_time"].dt.date() == day).to_numpy() & ~in_runs(ordered, scored)
    return (
        ordered.select(READING)
        .with_columns(
            score=pl.Series(scores),
            level=pl.Series(levels, dtype=pl.Int8),
            hits=pl.Series(hits),
            model_version=pl.lit(scorer.version),
            threshold=pl.lit(scorer.threshold),
            feature_version=pl.lit(features.FEATURE_SET_VERSION),
            at=pl.lit(now).cast(pl.Datetime("us", "UTC")),
        )
        .filter(pl.Series(wanted))
        .select(list(PREDICTION_COLUMNS))
        .cast(pl.Schema(dict(PREDICTION_COLUMNS)))
    )


@functools.lru_cache(maxsize=2)
def _scorer(model: bytes) -> OnnxScorer:
    """The model, made once in a process, from bytes whose hash is looked at again where they are used."""
    found = msgspec.msgpack.decode(model, type=Model)
    if hashlib.sha256(found.artifact).hexdigest() != found.champion.sha256:
        raise SmokeError(
            f"model {found.champion.version} did not reach the executor on {socket.gethostname()} as it left the "
            "driver",
            "nothing was written for this day: run it again; if it comes again on this machine, take its worker out of "
            "the cluster and have its memory tested",
        )
    return OnnxScorer(found.champion, found.manifest, found.artifact)
