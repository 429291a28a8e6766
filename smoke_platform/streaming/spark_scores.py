"""Scores in bulk on Spark: the champion's word on readings that have none, day by day, into ``lake/predictions``.

Belongs here: the driver: which readings have no prediction, one job a day, the commit beside a landing that goes on.
Does not: what executors do (``streaming.spark_score_tasks``), the model (``adapters.scorer``), the live path
(``streaming.detector``).

What a score equals: each device begins blank ``LOOK_BACK`` before the day and takes its readings as they arrived, so
the features are those of a detector that was started then. One that has run for longer remembers more; its baselines
reach back half an hour. That a device's clock was set back is not looked for.

A reading has one prediction, the first that was committed. The same marks that keep landing from writing a second one
keep this from it: whoever commits on an outdated table is refused and looks again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import polars as pl
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError

from smoke_platform.adapters.jars import Progress, silent
from smoke_platform.adapters.kafka_bulk import TopicWatcher
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.lake_files import FileShape, WrittenFile, files_of
from smoke_platform.adapters.scorer import OnnxScorer, read_champion
from smoke_platform.adapters.spark import parallelism
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.lake_records import DAY, READING, RECORD_TABLES
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import topic_facts
from smoke_platform.streaming.records_landing import PREDICTIONS_TABLE, readings_mark, record_shape
from smoke_platform.streaming.spark_reading import REPORT_SCHEMA, from_ipc, gather, to_ipc
from smoke_platform.streaming.spark_score_tasks import (
    COLUMNS,
    RUNS,
    Model,
    ScoredPart,
    ScoreTask,
    in_runs,
    joined_runs,
    read_runs,
    score_readings,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

#: So long before the day a device's readings are taken: as the detector looks back where it has no saved state.
LOOK_BACK = timedelta(minutes=15)
#: Tries of a commit before it is given up; landing commits predictions every few seconds.
COMMIT_TRIES = 20
_TABLE = next(table for table in RECORD_TABLES if table.name == PREDICTIONS_TABLE)


@dataclass(slots=True)
class ScoreReport:
    """What was done: readings scored on each day, by which model; ``version`` of the table after it."""

    model_version: str
    days: dict[str, int] = field(default_factory=dict)
    version: int = -1

    @property
    def rows(self) -> int:
        return sum(self.days.values())


def model_for(settings: Settings, first: date, last: date) -> Model:
    """The champion for these UTC days; what can be refused without Spark is refused here.

    Raises:
        ModelRefused: there is no champion, or it can't be used.
        SmokeError: the days are none.
    """
    if last < first:
        raise SmokeError(f"the range ends on {last}, before it begins on {first}", "exchange the two days")
    return _champion(settings.models_dir)


def score_days(
    settings: Settings,
    spark: SparkSession,
    first: date,
    last: date,
    telling: Progress = silent,
    model: Model | None = None,
) -> ScoreReport:
    """Scores the readings of these UTC days, both included, that have no prediction yet.

    Args:
        model: what ``model_for`` gave; it is looked for here where none is given.

    Raises:
        ModelRefused: there is no champion, or it can't be used.
        SmokeError: no readings, no broker to name the cluster, or the table changes faster than it can be committed to.
    """
    model = model or model_for(settings, first, last)
    lake = Lake(settings.lake)
    readings = lake.open(READINGS)
    shape = record_shape(_TABLE)
    lake.create(shape.name, shape.schema, [shape.day], shape.configuration)
    cluster_id = topic_facts(settings, TopicWatcher(settings.brokers, settings.topic_readings)).cluster_id
    job = _Scoring(spark, lake, readings, model, cluster_id)
    report = ScoreReport(str(model.champion.version))
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        telling(f"scoring {day}")
        report.days[day.isoformat()] = job.score(day)
    report.version = lake.version(PREDICTIONS_TABLE)
    return report


def _champion(models_dir: Path) -> Model:
    """The champion, verified as everywhere else, with the very bytes that were verified."""
    champion = read_champion(models_dir)
    scorer = OnnxScorer.load(models_dir, champion)
    artifact = (models_dir / champion.path).read_bytes()
    if hashlib.sha256(artifact).hexdigest() != champion.sha256:
        raise SmokeError(f"model {champion.version} was changed while it was read", "try again")
    return Model(champion=champion, manifest=dict(scorer.manifest), artifact=artifact)


class _Scoring:
    def __init__(self, spark: SparkSession, lake: Lake, readings: DeltaTable, model: Model, cluster_id: str) -> None:
        self._spark = spark
        self._lake = lake
        self._readings = readings
        self._model = msgspec.msgpack.encode(model)
        self._cluster_id = cluster_id
        self._shape = FileShape(lake.address(PREDICTIONS_TABLE), DAY, (*_TABLE.indexed, "record_offset"))

    def score(self, day: date) -> int:
        """Scores one day; gives the number of new predictions."""
        while True:
            table = self._lake.open(PREDICTIONS_TABLE)
            parts = self._scored(day, table)
            files = [file for part in parts for file in part.files]
            if not files or self._committed(files, joined_runs([from_ipc(part.runs, RUNS) for part in parts]), table):
                return sum(part.rows for part in parts)
            log.info("%s: the detector's own scores came meanwhile; the day is scored again without them", day)

    def _scored(self, day: date, table: DeltaTable) -> list[ScoredPart]:
        begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
        span = (begin - LOOK_BACK, begin + timedelta(days=1))
        files = files_of(self._readings, "event_time", [span])
        if not files:
            return []
        task = ScoreTask(self._shape, tuple(_TABLE.schema), day, datetime.now(UTC))
        readings = gather(self._spark, files, COLUMNS, [span], late=True)
        context = self._spark.sparkContext
        model, scored = context.broadcast(self._model), context.broadcast(to_ipc(self._known(table)))

        def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return score_readings(task, model.value, scored.value, batches)

        try:
            return _parts(readings.frames.mapInArrow(score, REPORT_SCHEMA).collect())
        finally:
            model.destroy()
            scored.destroy()

    def _known(self, table: DeltaTable) -> pl.DataFrame:
        """The readings that have a prediction, as runs: few, for the detector scores one after the other."""
        slots = parallelism(self._spark)
        paths = table.file_uris()
        files = [paths[number::slots] for number in range(slots)]

        def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return read_runs(files, batches)

        parts = _parts(self._spark.range(0, slots, 1, slots).mapInArrow(read, REPORT_SCHEMA).collect())
        return joined_runs([from_ipc(part.runs, RUNS) for part in parts])

    def _committed(self, files: Sequence[WrittenFile], runs: pl.DataFrame, before: DeltaTable) -> bool:
        """Commits the files; not, where one of their readings has got a prediction since ``before``."""
        old = set(before.file_uris())
        greatest = runs.group_by("topic_id", "partition").agg(pl.col("end").max())
        for _ in range(COMMIT_TRIES):
            table = self._lake.open(PREDICTIONS_TABLE)
            fresh = sorted(set(table.file_uris()) - old)
            if fresh:
                places = pl.scan_parquet(fresh, hive_partitioning=False).select(READING).collect()
                if in_runs(places, runs).any():
                    return False
            marks = {
                name: max(end, table.transaction_version(name) or 0)
                for topic_id, partition, end in greatest.iter_rows()
                for name in (readings_mark(self._cluster_id, topic_id, partition),)
            }
            moment = int(datetime.now(UTC).timestamp() * 1000)
            try:
                table.create_write_transaction(
                    [file.action() for file in files],
                    "append",
                    table.schema(),
                    [DAY],
                    commit_properties=CommitProperties(
                        app_transactions=[Transaction(name, mark, moment) for name, mark in marks.items()]
                    ),
                )
            except CommitFailedError as refusal:
                log.info("commit refused: %s", refusal)
                continue
            return True
        raise SmokeError(
            f"lake/{PREDICTIONS_TABLE} changed before each of {COMMIT_TRIES} tries to commit",
            "nothing was written; try again when less is being landed",
        )


def _parts(rows: Sequence[object]) -> list[ScoredPart]:
    parts = [msgspec.msgpack.decode(bytes(row.report), type=ScoredPart) for row in rows]  # type: ignore[attr-defined]
    for part in parts:
        if part.fault is not None:
            raise SmokeError(*part.fault)
    return parts
