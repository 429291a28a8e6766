"""A small lake and champion made of simulated readings, for tests of the monitors."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import polars as pl

from smoke_platform.adapters.lake import READINGS_SCHEMA, Lake
from smoke_platform.adapters.scorer import OnnxScorer, read_champion
from smoke_platform.domain.features import FEATURE_NAMES, feature_matrix, features_of_frame
from smoke_platform.domain.lake_records import ALARM_COLUMNS, DAY, READING
from smoke_platform.domain.simulator import simulate
from smoke_platform.settings import Settings
from smoke_platform_tests import scorer_models

INTERVAL_S = 10.0
#: Fire where fine particles and gas rise together: crude, but it tells simulated fires from quiet rooms.
WEIGHTS = {"smoke_and_gas": 12.0}
BIAS = -5.0


def simulated(devices: int, start: datetime, hours: float, seed: int = 7, **more: Any) -> pl.DataFrame:
    """Readings as the simulator tells them, one every 10 s."""
    return simulate(devices, start, int(hours * 3600), seed, interval_s=INTERVAL_S, **more)


def as_landed(frame: pl.DataFrame, delay: timedelta = timedelta(milliseconds=50)) -> pl.DataFrame:
    """The readings as landing stores them, appended to the topic ``delay`` after their event time."""
    arrived = pl.col("event_time") + pl.lit(delay)
    full = frame.sort("event_time", "device_id").with_columns(
        event_date=pl.col("event_time").dt.date(),
        schema_version=pl.lit(1, pl.Int32),
        late=pl.lit(False),
        topic=pl.lit("smoke_sensor_data"),
        topic_id=pl.lit("t0"),
        partition=(pl.col("device_id").hash(seed=1) % 3).cast(pl.Int32),
        offset=pl.int_range(pl.len(), dtype=pl.Int64),
        append_time=arrived,
        ingest_time=arrived,
        replay_of=pl.lit(None, pl.String),
    )
    return full.select(READINGS_SCHEMA.names)


def land(settings: Settings, frame: pl.DataFrame) -> None:
    """Writes ``lake/readings`` and, by the kernel, ``lake/features``."""
    lake = Lake(settings.lake)
    lake.append("readings", frame, partition_by=["event_date"])
    lake.append("features", features_of_frame(frame.sort("device_id", "event_time")), partition_by=["event_date"])


def publish_champion(settings: Settings, reference: pl.DataFrame | None, version: int = 1) -> OnnxScorer:
    """Publishes a real ONNX champion, with its training snapshot if ``reference`` (readings) is given."""
    scorer_models.publish(settings.models_dir, version, scorer_models.logistic_model(WEIGHTS, BIAS))
    scorer = OnnxScorer.load(settings.models_dir, read_champion(settings.models_dir))
    if reference is not None:
        features = features_of_frame(reference.sort("device_id", "event_time"))
        probability = scorer.score(np.ascontiguousarray(feature_matrix(features)))
        snapshot = features.select("device_id", *FEATURE_NAMES, label="fire_alarm").with_columns(
            probability=probability, called=probability >= scorer.threshold
        )
        snapshot.write_parquet((settings.models_dir / scorer.champion.path).parent / "reference.parquet")
    return scorer


def log_predictions(settings: Settings, frame: pl.DataFrame, scores: pl.Series | float, version: str = "1") -> None:
    """Writes ``lake/predictions`` for landed readings, each scored 0.2 s after its arrival."""
    at = pl.col("append_time") + pl.lit(timedelta(milliseconds=200))
    rows = frame.select(
        pl.col("append_time").dt.date().alias(DAY),
        *READING,
        (pl.lit(scores) if isinstance(scores, float) else scores).cast(pl.Float64).alias("score"),
        pl.lit(0, pl.Int8).alias("level"),
        pl.lit(0, pl.Int64).alias("hits"),
        pl.lit(version).alias("model_version"),
        pl.lit(0.5).alias("threshold"),
        pl.lit("f").alias("feature_version"),
        at.alias("at"),
    )
    Lake(settings.lake).append("predictions", rows, partition_by=[DAY])


def log_alarm(settings: Settings, device: str, begins: datetime, ends: datetime, verdict: str | None = None) -> None:
    """Writes a fire alarm of ``lake/alarms``: raised, over after ``ends`` and the off-delay, judged by an operator."""
    base = {"device_id": device, "kind": "fire", "alarm_id": f"{device}-{begins:%H%M%S}", "topic_id": "t0"}
    over = ends + timedelta(seconds=60)
    # Revisions rise over the whole life of a device's alarms.
    first = int(begins.timestamp())
    records = [
        {"event": "raised", "revision": first, "event_time": begins, "holds": True, "verdict": None},
        {"event": "latched", "revision": first + 1, "event_time": over, "holds": False, "verdict": None},
    ]
    if verdict is not None:
        records.append(
            {"event": "verdict", "revision": first + 2, "event_time": None, "holds": False, "verdict": verdict}
        )
    columns = {DAY: pl.Date(), **ALARM_COLUMNS}
    rows = [
        {
            **dict.fromkeys(columns),
            **base,
            "severity": "high",
            "model_version": "1",
            DAY: datetime.now(UTC).date(),
            **record,
        }
        for record in records
    ]
    Lake(settings.lake).append("alarms", pl.DataFrame(rows, schema=columns, orient="row"), partition_by=[DAY])


@cache
def today() -> datetime:
    """Midnight of the day on which the tests began: a run over midnight has one today."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def report_data(settings: Settings, kind: str) -> dict[str, object]:
    """What the newest report of a kind says."""
    newest = sorted((settings.reports_dir / kind).glob("2*.json"))[-1]
    found: dict[str, object] = json.loads(newest.read_text("utf-8"))
    return found
