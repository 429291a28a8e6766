"""Random readings in the lake and what the warehouse must make of them, computed again with Polars.

Belongs here: what the warehouse's tests share. Does not: anything of the platform; the oracle knows nothing of dbt.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, READINGS_SCHEMA, Lake
from smoke_platform.domain.features import features_of_frame
from smoke_platform.domain.readings import ALL_SENSORS

KEY = ["device_id", "event_time", "sequence"]
IDENTITY = ["topic_id", "partition", "offset"]
SEED = 20220609


def random_readings(day: date, count: int, seed: int, *, first_offset: int = 0) -> pl.DataFrame:
    """``count`` rows of ``lake/readings`` on ``day``: few devices, gaps, repeated, late, unlabelled and null values."""
    chance = np.random.default_rng(seed)
    distinct = max(count * 9 // 10, 1)
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    seconds = chance.choice(20_000, distinct, replace=distinct > 20_000) + chance.choice([0, 0.25, 0.5], distinct)
    columns: dict[str, object] = {
        "device_id": [f"device-{number}" for number in chance.integers(0, 4, distinct)],
        "event_time": [begin + timedelta(seconds=float(second)) for second in seconds],
        "sequence": [None if chance.random() < 0.2 else int(value) for value in chance.integers(0, 3, distinct)],
    }
    frame = pl.DataFrame(columns, schema_overrides={"event_time": pl.Datetime("us", "UTC"), "sequence": pl.Int64})
    frame = pl.concat([frame, frame.sample(count - distinct, seed=seed, with_replacement=True)]).sample(
        fraction=1.0, shuffle=True, seed=seed
    )
    for sensor in ALL_SENSORS:
        low, high = max(sensor.low, -10.0), min(sensor.high, 1_000.0)
        values = np.where(chance.random(count) < 0.1, np.nan, chance.uniform(low, high, count))
        frame = frame.with_columns(pl.Series(sensor.name, values).fill_nan(None))
    label = [[None, True, False][number] for number in chance.integers(0, 3, count)]
    return frame.with_columns(
        pl.lit(day).alias(PARTITION_COLUMN),
        pl.Series("fire_alarm", label, pl.Boolean),
        pl.lit(1, pl.Int32).alias("schema_version"),
        pl.Series("source", chance.choice(["csv", "device", "simulator"], count)),
        pl.Series("late", chance.random(count) < 0.1),
        pl.lit("smoke_sensor_data").alias("topic"),
        pl.Series("topic_id", chance.choice(["old", "new"], count)),
        pl.Series("partition", chance.integers(0, 3, count), pl.Int32),
        pl.Series("offset", np.arange(first_offset, first_offset + count)),
        pl.col("event_time").alias("append_time"),
        pl.col("event_time").alias("ingest_time"),
        pl.lit(None, pl.String).alias("replay_of"),
    ).select(READINGS_SCHEMA.names)


def land(lake: Lake, rows: pl.DataFrame) -> None:
    """Appends the rows to ``lake/readings`` in several files."""
    for part in rows.iter_slices(max(rows.height // 3, 1)):
        lake.append(READINGS, part, [PARTITION_COLUMN])


def write_features(lake: Lake, day: date) -> None:
    """Writes the day's feature rows, those of repeated readings too, so that the warehouse has to leave them out."""
    rows = lake.scan(READINGS).filter(pl.col(PARTITION_COLUMN) == day).collect().sort("event_time")
    kept = [PARTITION_COLUMN, *KEY, "source", *IDENTITY, "fire_alarm", *(sensor.name for sensor in ALL_SENSORS)]
    lake.replace_where("features", features_of_frame(rows.select(kept)), {PARTITION_COLUMN: day}, [PARTITION_COLUMN])


def staged(rows: pl.DataFrame) -> pl.DataFrame:
    """What counts of the rows, with ``copies``."""
    first = rows.sort(IDENTITY).group_by(KEY, maintain_order=True).first()
    return first.join(rows.group_by(KEY).agg(pl.len().alias("copies")), on=KEY, nulls_equal=True)


def _facts() -> list[pl.Expr]:
    facts = [
        pl.len().cast(pl.Int64).alias("readings"),
        (pl.col("copies").cast(pl.Int64) - 1).sum().alias("duplicate_readings"),
        pl.col("late").sum().cast(pl.Int64).alias("late_readings"),
        pl.col("fire_alarm").count().cast(pl.Int64).alias("labelled_readings"),
        pl.col("fire_alarm").sum().cast(pl.Int64).alias("fire_readings"),
        pl.col("fire_alarm").cast(pl.Float64).mean().alias("fire_share"),
        pl.col("event_time").min().alias("first_event_time"),
        pl.col("event_time").max().alias("last_event_time"),
    ]
    for sensor in ALL_SENSORS:
        value = pl.col(sensor.name)
        facts += [
            value.mean().alias(f"{sensor.name}_mean"),
            value.min().alias(f"{sensor.name}_min"),
            value.max().alias(f"{sensor.name}_max"),
            value.null_count().cast(pl.Int64).alias(f"{sensor.name}_nulls"),
        ]
    return facts


def minute_facts(rows: pl.DataFrame) -> pl.DataFrame:
    """What ``fct_device_minute`` must hold for the rows."""
    return (
        staged(rows)
        .group_by(PARTITION_COLUMN, "device_id", pl.col("event_time").dt.truncate("1m").alias("minute"))
        .agg(_facts())
        .sort("device_id", "minute")
    )


def daily_facts(rows: pl.DataFrame) -> pl.DataFrame:
    """What ``fct_device_daily`` must hold for the rows."""
    second = pl.col("event_time").dt.truncate("1s")
    return (
        staged(rows)
        .group_by(PARTITION_COLUMN, "device_id")
        .agg(
            *_facts(),
            pl.col("event_time").dt.truncate("1m").n_unique().cast(pl.Int64).alias("minutes_with_data"),
            second.n_unique().cast(pl.Int64).alias("seconds_with_data"),
            ((second.max() - second.min()).dt.total_seconds() + 1).alias("expected_readings"),
        )
        .with_columns(
            (pl.col("seconds_with_data") / pl.col("expected_readings")).alias("completeness"),
            (pl.col("seconds_with_data") / 86_400).alias("day_completeness"),
        )
        .sort("device_id")
    )


def examples(rows: pl.DataFrame, features: pl.DataFrame, gap_s: float = 900) -> pl.DataFrame:
    """What ``training_examples`` must hold, its recordings found by walking each device's readings."""
    kept = staged(rows).filter(~pl.col("late"))
    begins: dict[tuple[str, int, int], str] = {}
    for device in kept.partition_by("device_id"):
        begin = before = None
        for row in device.sort("event_time").iter_rows(named=True):
            if before is None or (row["event_time"] - before).total_seconds() > gap_s:
                begin = row["event_time"]
            before = row["event_time"]
            begins[row["topic_id"], row["partition"], row["offset"]] = f"{begin:%Y-%m-%dT%H:%M:%SZ}"
    known = pl.DataFrame(
        [(*identity, begin) for identity, begin in begins.items()],
        schema={"topic_id": pl.String, "partition": pl.Int32, "offset": pl.Int64, "begin": pl.String},
        orient="row",
    )
    group = pl.col("source") + ":" + pl.col("device_id")
    return (
        features.filter(pl.col("fire_alarm").is_not_null() & (pl.col("source") != "simulator"))
        .join(known, on=IDENTITY)
        .with_columns(
            group.alias("group_id"),
            (group + "@" + pl.col("begin")).alias("recording_id"),
            pl.col("fire_alarm").alias("label"),
        )
        .sort(IDENTITY)
    )
