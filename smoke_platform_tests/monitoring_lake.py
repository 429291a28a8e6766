"""A small lake and champion made of simulated readings, for tests of the monitors."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from smoke_platform.adapters.lake import READINGS_SCHEMA, Lake
from smoke_platform.adapters.scorer import OnnxScorer, read_champion
from smoke_platform.domain.features import FEATURE_NAMES, feature_matrix, features_of_frame
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
        snapshot = features.select(*FEATURE_NAMES, "fire_alarm").with_columns(probability=probability)
        snapshot.write_parquet((settings.models_dir / scorer.champion.path).parent / "reference.parquet")
    return scorer


def today() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def report_data(settings: Settings, kind: str) -> dict[str, object]:
    """What the newest report of a kind says."""
    newest = sorted((settings.reports_dir / kind).glob("2*.json"))[-1]
    found: dict[str, object] = json.loads(newest.read_text("utf-8"))
    return found
