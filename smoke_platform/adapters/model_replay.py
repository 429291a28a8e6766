"""Live readings of the lake, scored with any version, after the fact.

Belongs here: which readings of which devices are taken and how many, their features, the replay of a model on them.
Does not: what the replays are compared for (``adapters.shadow``), rules and alarms (``domain.alarm_replay``), the
model's verification (``adapters.scorer``).

Nothing here touches the alarm path. A second model inside the detector would take its time from the first one, and a
fault of it would be a fault of the detector; a comparison an hour later loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.scorer import OnnxScorer
from smoke_platform.domain import alarm_replay, features
from smoke_platform.domain.alarm_replay import Readings, Replay
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

#: Readings that are compared at most; beyond, whole devices are left out. Each takes some 300 bytes.
MOST_READINGS = 500_000
#: As long as the window of the performance monitor.
KNOWN_HOURS = 12.0
#: Rows given to a model at once.
_CHUNK_ROWS = 50_000
_SEED = 20_240_501
_TIME = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class LiveReadings:
    """Readings that arrived between two moments, in the order of arrival, after those that warm their devices up.

    Attributes:
        start, end: of the broker's append time, UTC.
        devices: names by slot.
        readings: ``counted`` are those between the moments.
        truth: float64 ``[n]``: 1 where it burns, 0 where it does not, NaN where nobody knows.
        all_devices: how many there were; the others were left out for their number.
    """

    start: datetime
    end: datetime
    devices: tuple[str, ...]
    readings: Readings
    truth: npt.NDArray[np.float64]
    all_devices: int


def load(lake: Lake, start: datetime, end: datetime, *, most: int = MOST_READINGS) -> LiveReadings | None:
    """The readings that arrived from ``start`` up to, not including, ``end``; ``None`` where there are none.

    Each device starts blank ``features.WARM_UP_S`` before ``start``, as a day of ``lake/features`` does. Where more
    than ``most`` arrived, devices are chosen by a hash of their names, so that a device is in all windows or none.
    """
    if not lake.exists(READINGS):
        return None
    arrived = pl.col("append_time")
    within = lake.scan(READINGS).filter(arrived >= pl.lit(start, _TIME), arrived < pl.lit(end, _TIME))
    counts = within.group_by("device_id").agg(pl.len()).collect(engine="streaming")
    if counts.is_empty():
        return None
    chosen = _chosen(counts, most)
    frame = (
        lake.scan(READINGS)
        .filter(
            arrived >= pl.lit(start - timedelta(seconds=features.WARM_UP_S), _TIME),
            arrived < pl.lit(end, _TIME),
            pl.col("device_id").is_in(chosen),
        )
        .select("device_id", "event_time", "sequence", "fire_alarm", *_ARRIVAL, *ALL_SENSOR_NAMES)
        .collect(engine="streaming")
        .sort(*_ARRIVAL)
        .unique(["device_id", "event_time", "sequence"], keep="first", maintain_order=True)
    )
    return _prepared(frame, start, end, counts.height)


def load_known(lake: Lake, hours: float = KNOWN_HOURS) -> LiveReadings | None:
    """The readings of the ``hours`` that end with the newest one of known truth; ``None`` where there is none."""
    if not lake.exists(READINGS):
        return None
    known = lake.scan(READINGS).filter(pl.col("fire_alarm").is_not_null())
    newest: datetime | None = known.select(pl.col("append_time").max()).collect(engine="streaming").item()
    if newest is None:
        return None
    return load(lake, newest - timedelta(hours=hours), newest + timedelta(microseconds=1))


_ARRIVAL = ("append_time", "topic_id", "partition", "offset")


def _chosen(counts: pl.DataFrame, most: int) -> list[str]:
    ordered = counts.sort(pl.col("device_id").hash(seed=_SEED))
    # One device at least: a comparison of none would say that nothing differs.
    kept = ordered.filter((pl.col("len").cum_sum() <= most) | (pl.int_range(pl.len()) == 0))
    return kept["device_id"].to_list()


def _prepared(frame: pl.DataFrame, start: datetime, end: datetime, all_devices: int) -> LiveReadings:
    devices = tuple(frame["device_id"].unique().sort().to_list())
    slots = (frame["device_id"].rank("dense").cast(pl.Int64) - 1).to_numpy()
    readings = Readings(
        slots=slots,
        seconds=features.event_seconds(frame),
        sensors=features.sensor_matrix(frame),
        features=features.feature_matrix(features.features_of_frame(frame)),
        counted=(frame["append_time"] >= start).to_numpy(),
    )
    truth = frame["fire_alarm"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return LiveReadings(start, end, devices, readings, truth, all_devices)


def replay(live: LiveReadings, scorer: OnnxScorer) -> Replay:
    """What a model would have said of the readings, and where its alarms would have begun."""
    matrix = live.readings.features
    parts = [scorer.score(matrix[low : low + _CHUNK_ROWS]) for low in range(0, len(matrix), _CHUNK_ROWS)]
    return alarm_replay.replay(live.readings, np.concatenate(parts), scorer.threshold)
