"""The input of the windows suite: a lake of readings as landing would have left it.

Belongs here: simulated readings, how they are disordered, the table, the CSV for whoever cannot read it. Does not:
measuring.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.windows_spec import CLUSTER_ID, TOPIC_ID, WindowsSpec
from smoke_platform.adapters.kafka_bulk import TopicFacts
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS_SCHEMA, Lake
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.simulator import simulate
from smoke_platform.settings import load_settings
from smoke_platform.streaming.landing import LandedTable

START = datetime(2026, 3, 1, 10, tzinfo=UTC)
PARTITIONS = 4
#: Readings that one commit lands: what a second brings when landing catches up.
READINGS_A_COMMIT = 50_000
#: Share of readings that come up to ``LONGEST_DELAY`` after their neighbours, and of those that come twice.
DELAYED, TWICE = 0.001, 0.001
LONGEST_DELAY = timedelta(seconds=30)
#: Simulating costs more a device than a reading; more devices repeat the first ones under other names.
SIMULATED_DEVICES = 1_000


@dataclass(frozen=True, slots=True)
class Input:
    """A lake on disk.

    Attributes:
        home: of the platform whose lake it is.
        files: its Parquet files, as they landed.
        readings: rows, duplicates among them.
        rows: those of the sample's devices.
        sample: some devices, whose windows are compared.
    """

    home: Path
    files: list[str]
    readings: int
    rows: pl.DataFrame
    sample: list[str]

    def spec(self, result: Path, *, slide_s: int = 60, share: tuple[int, int] = (0, 1)) -> WindowsSpec:
        """What a process is told; its result goes to ``result``."""
        return WindowsSpec(
            home=str(self.home),
            files=self.files,
            csv=str(self.home / "readings.csv"),
            partitions=PARTITIONS,
            sample=self.sample,
            result=str(result),
            slide_s=slide_s,
            share=share,
        )


def prepare(home: Path, devices: int, minutes: float, *, csv: bool = False) -> Input:
    """Simulates the readings and lands them below ``home``."""
    rows = readings(devices, minutes)
    lake = Lake(load_settings({"SMOKE_HOME": str(home)}, home / "no.env").lake)
    table = LandedTable(lake, TopicFacts(CLUSTER_ID, TOPIC_ID, tuple(range(PARTITIONS))))
    files: list[str] = []
    for part in rows.iter_slices(READINGS_A_COMMIT):
        ends = dict(part.group_by("partition").agg(pl.col("offset").max() + 1).iter_rows())
        table.commit(part.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(READINGS_SCHEMA), ends)
        files += sorted(set(lake.open("readings").file_uris()) - set(files))
    if csv:
        _write_csv(rows, home / "readings.csv")
    names = rows["device_id"].unique().sort().to_list()
    sample = names[:: max(1, len(names) // 20)]
    return Input(home, files, rows.height, rows.filter(pl.col("device_id").is_in(sample)), sample)


def readings(devices: int, minutes: float) -> pl.DataFrame:
    """Rows of ``lake/readings`` in the order in which they arrive: some are delayed, some come twice, none is late."""
    world = simulate(min(devices, SIMULATED_DEVICES), START, minutes * 60, 7)
    fleet = pl.concat(
        [
            world.with_columns(pl.format("{}-{}", "device_id", pl.lit(number)).alias("device_id"))
            for number in range(-(-devices // SIMULATED_DEVICES))
        ]
    )
    chance = np.random.default_rng(7)
    delay_us = np.where(
        chance.random(fleet.height) < DELAYED,
        chance.integers(1, LONGEST_DELAY // timedelta(microseconds=1), fleet.height),
        0,
    )
    fleet = fleet.with_columns(append_time=pl.col("event_time") + pl.duration(microseconds=pl.Series(delay_us)))
    again = fleet.sample(round(fleet.height * TWICE), seed=7).with_columns(pl.col("append_time") + timedelta(seconds=1))
    partition = (pl.col("device_id").hash(7) % PARTITIONS).cast(pl.Int32)
    return (
        pl.concat([fleet, again])
        .sort("append_time", "device_id", maintain_order=True)
        .with_columns(
            pl.col("event_time").dt.date().alias(PARTITION_COLUMN),
            pl.lit(None, pl.Float64).alias("co_ppm") if "co_ppm" not in fleet.columns else pl.col("co_ppm"),
            pl.lit(1, pl.Int32).alias("schema_version"),
            pl.lit(value=False).alias("late"),
            pl.lit("smoke_sensor_data").alias("topic"),
            pl.lit(TOPIC_ID).alias("topic_id"),
            partition.alias("partition"),
            pl.col("append_time").alias("ingest_time"),
            pl.lit(None, pl.String).alias("replay_of"),
        )
        .with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over("partition").alias("offset"))
        .select(READINGS_SCHEMA.names)
    )


def _write_csv(rows: pl.DataFrame, file: Path) -> None:
    rows.select(
        "device_id",
        pl.int_range(pl.len(), dtype=pl.Int64).alias("place"),
        pl.col("event_time").dt.epoch("us"),
        "sequence",
        pl.col("fire_alarm").cast(pl.Int8),
        *SENSOR_NAMES,
    ).write_csv(file)
