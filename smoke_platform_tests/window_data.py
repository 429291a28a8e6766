"""Windows, predictions and alarms in the lake, and what the mart of windows must make of them, counted one by one.

Belongs here: what the tests of that mart share. Does not: anything of the platform but the kernel of windows; the
oracle knows nothing of dbt.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl

from smoke_platform.adapters.lake import PARTITION_COLUMN, Lake
from smoke_platform.adapters.windows import WINDOWS
from smoke_platform.domain.lake_records import DAY, RECORD_TABLES
from smoke_platform.domain.windows import compute
from smoke_platform_tests import warehouse_data as data

_TABLES = {table.name: table for table in RECORD_TABLES}
WRITTEN = datetime(2022, 6, 20, tzinfo=UTC)


def around_midnight(day: date, count: int, seed: int, *, first_offset: int = 0) -> pl.DataFrame:
    """Rows of ``lake/readings`` from five minutes before the end of ``day`` to five minutes after it."""
    rows = data.random_readings(day, count, seed, first_offset=first_offset)
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    into_day_us = pl.col("event_time").dt.epoch("us") % 600_000_000
    moment = pl.lit(midnight - timedelta(minutes=5)) + pl.duration(microseconds=into_day_us)
    moved = rows.with_columns(moment.cast(pl.Datetime("us", "UTC")).alias("event_time"))
    return moved.with_columns(
        pl.col("event_time").dt.date().alias(PARTITION_COLUMN),
        pl.col("event_time").alias("append_time"),
        pl.col("event_time").alias("ingest_time"),
    )


def windows_of(rows: pl.DataFrame) -> pl.DataFrame:
    """The windows that the readings of ``rows`` which came in time make."""
    return compute(rows.filter(~pl.col("late")))


def land_windows(lake: Lake, windows: pl.DataFrame, written_at: datetime = WRITTEN) -> None:
    """Appends rows to ``lake/window_statistics``."""
    moment = pl.lit(written_at, pl.Datetime("us", "UTC")).alias("written_at")
    lake.append(WINDOWS, windows.with_columns(moment), [PARTITION_COLUMN])


def land_predictions(lake: Lake, rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Lands a prediction of most of the readings, in several files, and returns them."""
    chance = np.random.default_rng(seed)
    judged = rows.sample(fraction=0.7, seed=seed)
    score = np.where(chance.random(judged.height) < 0.2, np.nan, chance.random(judged.height))
    schema = _TABLES["predictions"].schema
    found = judged.select(
        pl.col("append_time").dt.date().alias(DAY),
        *data.IDENTITY,
        pl.Series("score", score).fill_nan(None),
        pl.Series("hits", chance.integers(0, 8, judged.height)),
    )
    absent = [pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in found.columns]
    frame = found.with_columns(absent).select(list(schema)).cast(dict(schema))
    for part in frame.sort("offset").iter_slices(max(frame.height // 4, 1)):
        lake.append("predictions", part, [DAY])
    return frame


def land_alarms(lake: Lake, alarms: list[tuple[str, str, str, datetime | None]], day: date) -> None:
    """Lands records (device, alarm id, event, when the alarm was raised) that the broker appended on ``day``."""
    schema = _TABLES["alarms"].schema
    names = ("device_id", "alarm_id", "event", "raised_event_time")
    given = pl.DataFrame(alarms, schema={name: schema[name] for name in names}, orient="row")
    absent = [pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in (*names, DAY)]
    lake.append("alarms", given.with_columns(pl.lit(day).alias(DAY), *absent).select(list(schema)), [DAY])


def joined(
    windows: pl.DataFrame,
    rows: pl.DataFrame,
    predictions: pl.DataFrame | None = None,
    alarms: list[tuple[str, str, str, datetime | None]] | None = None,
) -> pl.DataFrame:
    """What the mart adds to each of the windows, found by looking at every reading and alarm."""
    in_time = rows.filter(~pl.col("late")).sort(data.IDENTITY)
    counting = in_time.unique(data.KEY, keep="first", maintain_order=True)
    verdicts = {} if predictions is None else {row[:3]: row[3:] for row in _verdicts(predictions).iter_rows()}
    raised: dict[tuple[str, str], datetime] = {}
    for device, alarm_id, _, moment in alarms or []:
        if alarm_id and moment is not None:
            raised[device, alarm_id] = min(moment, raised.get((device, alarm_id), moment))
    found = []
    for device, start, end in windows.select("device_id", "window_start", "window_end").iter_rows():
        inside = pl.col("device_id").eq(device) & pl.col("event_time").is_between(start, end, closed="left")
        known = [verdicts.get(row) for row in counting.filter(inside).select(data.IDENTITY).iter_rows()]
        judged = [verdict for verdict in known if verdict is not None]
        scores = [score for score, _ in judged if score is not None]
        found.append(
            {
                "device_id": device,
                "window_start": start,
                "late_count": rows.filter(inside, pl.col("late")).height,
                "judged_count": len(judged),
                "score_mean": sum(scores) / len(scores) if scores else None,
                "score_max": max(scores, default=None),
                "rule_hits": sum(hits.bit_count() for _, hits in judged) if judged else None,
                "alarm_count": sum(name == device and start <= at < end for (name, _), at in raised.items()),
            }
        )
    return pl.DataFrame(found, schema_overrides={"score_mean": pl.Float64, "score_max": pl.Float64})


def _verdicts(predictions: pl.DataFrame) -> pl.DataFrame:
    return predictions.select(*data.IDENTITY, "score", "hits")
