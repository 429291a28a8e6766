"""Training, the API and the detector give a model the very same numbers for the same readings, to the bit.

What each of them hands to its model is caught where a model would score it, so nothing here calls the kernel itself.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from smoke_platform.adapters import feature_tables
from smoke_platform.adapters.kafka import partition_of
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.domain.detection import Batch, Engine
from smoke_platform.domain.features import FEATURE_COUNT, Features, cold, feature_matrix, features_of_frame
from smoke_platform.domain.recordings import RecordingFile
from smoke_platform.domain.simulator import simulate
from smoke_platform.serving.predictor import Predictor
from smoke_platform.serving.requests import MOST_READINGS
from smoke_platform.streaming.producer import encode_readings
from smoke_platform_tests.monitoring_lake import as_landed

PARTITIONS = 3
NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)


class Listener:
    """Stands where a model would, and keeps what it is asked to score."""

    version = "listener"
    threshold = 0.5

    def __init__(self) -> None:
        self._seen: list[Features] = []

    def score(self, rows: Features) -> np.ndarray[Any, np.dtype[np.float64]]:
        self._seen.append(rows.copy())
        return np.zeros(len(rows))

    @property
    def rows(self) -> Features:
        return np.concatenate([np.empty((0, FEATURE_COUNT), np.float32), *self._seen])


def detector_features(frame: pl.DataFrame, cuts: np.random.Generator) -> Features:
    """What the detector's model sees of the frame's readings, in their order, polled in pieces of random sizes."""
    devices, values = encode_readings(frame)
    appended = (frame["event_time"].dt.timestamp("ms") + 50).to_list()
    engine, listener = Engine("t0"), Listener()
    for partition in range(PARTITIONS):
        engine.add_partition(partition)
    low = 0
    while low < len(values):
        high = min(len(values), low + int(cuts.integers(1, 400)))
        places = range(low, high)
        engine.take(
            Batch(
                list(values[low:high]),
                [device.encode() for device in devices[low:high]],
                [partition_of(device, PARTITIONS) for device in devices[low:high]],
                # Rising within each partition; that there are gaps is as in a compacted log.
                list(places),
                appended[low:high],
            ),
            listener,
        )
        low = high
    return listener.rows


def api_features(frame: pl.DataFrame) -> Features:
    """What the API's model sees of one device's readings, sent as one list to ``POST /predict``."""
    listener = Listener()
    predictor = Predictor(SimpleNamespace(current=listener))  # type: ignore[arg-type] # all that it asks of a watcher
    _, values = encode_readings(frame)
    asyncio.run(predictor.predict([json.loads(value) for value in values]))
    return listener.rows


def assert_same_bits(one: Features, other: Features) -> None:
    assert one.dtype == other.dtype == np.float32
    assert one.shape == other.shape
    differing = np.argwhere(one.view(np.uint32) != other.view(np.uint32))
    assert not len(differing), f"{len(differing)} numbers differ, first at row, feature {differing[0].tolist()}"


def check_api(frame: pl.DataFrame, expected: Features) -> None:
    """The API against ``expected``, for each device's first readings, as many as one request may hold."""
    numbered = frame.with_row_index("place")
    for _, readings in numbered.group_by("device_id", maintain_order=True):
        first = readings.head(MOST_READINGS)
        assert_same_bits(api_features(first.drop("place")), expected[first["place"].to_numpy()])


def test_the_same_bits_on_a_simulated_recording(tmp_path: Path) -> None:
    """A model must be asked in production what it was trained on; otherwise its figures say nothing of its alarms."""
    recording = simulate(
        5, NOON, 1500, 11, fires_per_device_day=12.0, missing_share=0.05, faults_per_device_day=24.0
    ).sort("event_time", "device_id")
    landed = as_landed(recording)
    lake = Lake(str(tmp_path))
    lake.append(READINGS, landed, partition_by=["event_date"])
    feature_tables.build_day(lake, NOON.date())
    stored = lake.scan(feature_tables.FEATURES).collect()
    key = ["topic_id", "partition", "offset"]
    training = feature_matrix(landed.select(key).join(stored, on=key, how="left", maintain_order="left"))

    assert_same_bits(detector_features(recording, np.random.default_rng(1)), training)
    check_api(recording, training)
    assert 0 < cold(training).mean() < 0.9, "the recording must show both cold and warm devices"


@pytest.mark.parametrize("seed", [1])
def test_the_same_bits_on_the_public_recordings(needs_data: Path, seed: int) -> None:
    """The simulator leaves out what real sensors do: jumps, saturation, restarts of the clock."""
    file = needs_data / "kaggle_smoke" / "smoke_detection_iot.csv"
    recording = pl.concat(RecordingFile(file, lambda row: pytest.fail(str(row))).chunks())
    training = feature_matrix(features_of_frame(recording))

    assert_same_bits(detector_features(recording, np.random.default_rng(seed)), training)
    check_api(recording, training)
