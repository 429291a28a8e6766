"""The windows by Spark's own functions: ``window()``, ``groupBy``, aggregates and array functions.

As a team would write them on Spark without engine ``spark``: no Python on the executors, none of the platform's kernel.
The job is a batch over all readings, the most favourable cut. A window's values are gathered and sorted for the order
statistics, which took a quarter less than ``percentile``; that is aggregated apart from the rest and joined to it,
because an aggregate that keeps objects takes Spark's generated code from all others of its ``groupBy``. Results stay in
memory. The session is warm, the query is not: Spark generates and compiles its code within the time. Started as
``python -m benchmarks.windows_sparksql SPEC.json``.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import polars as pl

from benchmarks.windows_spec import NOT_TO_BE_HAD, Measured, WindowsSpec
from benchmarks.windows_work import EXPECTED, LENGTH_US
from smoke_platform.adapters.spark import session
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.levels import LEVELS
from smoke_platform.domain.quality import INCONSISTENCY_TOLERANCE, RESTLESS_SENSORS
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.windows import LEAST_READINGS_FROZEN, LEAST_RESTLESS_FROZEN, ORDER, PERCENTS, WINDOW_SCHEMA
from smoke_platform.settings import load_settings

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

LENGTH_S = LENGTH_US // 1_000_000
#: A multiple of the cores, which Spark may join; the heap holds the windows.
CONFIGURATION = {"spark.sql.shuffle.partitions": "8", "spark.driver.memory": "4g"}


def windows(spark: SparkSession, spec: WindowsSpec) -> DataFrame:
    """All windows, columns of ``domain.windows.WINDOW_SCHEMA``."""
    from pyspark.sql import functions as f

    key = ("device_id", "window")
    readings = _readings(spark, spec)
    statistics = readings.groupBy(*key).agg(
        f.count("*").alias("revision"),
        f.count_if("kept").alias("record_count"),
        f.count("fire_alarm").alias("label_count"),
        f.count_if(f.col("fire_alarm")).alias("fire_label_count"),
        f.min("event_time").alias("first_event_time"),
        f.max("event_time").alias("last_event_time"),
        f.count_if(f.col("pm1_0") > f.col("pm2_5") * (1 + INCONSISTENCY_TOLERANCE) + INCONSISTENCY_TOLERANCE).alias(
            "contradictions"
        ),
        *(column for name in SENSOR_NAMES for column in _of_sensor(name)),
    )
    gathered = readings.groupBy(*key).agg(*(f.sort_array(f.collect_list(name)).alias(name) for name in SENSOR_NAMES))
    ordered = gathered.select(*key, *(_percentiles(f.col(name)).alias(name) for name in SENSOR_NAMES))
    return _rows(statistics.join(ordered, list(key)))


def _percentiles(ascending: Column) -> Column:
    """An array with the value at each of ``PERCENTS``, between two linear; nulls where there are no values."""
    from pyspark.sql import functions as f

    last = f.size(ascending) - 1

    def at(share: Column) -> Column:
        place = last * share
        below = f.floor(place).cast("int")
        value = f.get(ascending, below)
        return value + (f.get(ascending, f.least(below + 1, last)) - value) * (place - below)

    # Written out for each share, the projection would be longer than Java allows.
    return f.transform(f.array(*(f.lit(percent / 100) for percent in PERCENTS.values())), at)


def _readings(spark: SparkSession, spec: WindowsSpec) -> DataFrame:
    """A row for each reading and window; the values of duplicates are null, and ``kept`` is false."""
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    order = Window.partitionBy("device_id").orderBy(*(f.asc_nulls_first(name) for name in ORDER))
    repeated = (f.col("event_time") == f.lag("event_time").over(order)) & f.col("sequence").eqNullSafe(
        f.lag("sequence").over(order)
    )
    rows = (
        spark.read.parquet(*spec.files)
        .repartition("device_id")
        .withColumns({"place": f.row_number().over(order), "kept": ~f.coalesce(repeated, f.lit(False))})
    )
    kept = f.col("kept")
    return rows.select(
        "device_id",
        f.window("event_time", f"{LENGTH_S} seconds", f"{spec.slide_s} seconds").alias("window"),
        "event_time",
        "place",
        "kept",
        f.when(kept, f.col("fire_alarm")).alias("fire_alarm"),
        *(f.when(kept & ~f.isnan(name), f.col(name)).alias(name) for name in SENSOR_NAMES),
    ).withColumn("minutes", (f.unix_micros("event_time") - f.unix_micros("window.start")) / 60e6)


def _of_sensor(name: str) -> Iterable[Column]:
    from pyspark.sql import functions as f

    value = f.col(name)
    place = f.when(value.isNotNull(), f.col("place"))
    aggregates = {
        "n": f.count(value),
        "mean": f.avg(value),
        "variance": f.var_samp(value),
        "slope_per_min": f.regr_slope(value, f.col("minutes")),
        "first": f.min_by(value, place),
        "last": f.max_by(value, place),
    }
    return (column.alias(f"{name}_{what}") for what, column in aggregates.items())


def _rows(found: DataFrame) -> DataFrame:
    """Quality, level and what follows from other columns."""
    from pyspark.sql import functions as f

    def each(column: Callable[[str], Column]) -> list[Column]:
        return [column(name) for name in SENSOR_NAMES]

    def together(columns: Iterable[Column], join: Callable[[Any, Any], Any] = operator.add) -> Column:
        joined: Column = reduce(join, columns)
        return joined

    of_sensors: dict[str, Column] = {}
    for name in SENSOR_NAMES:
        for place, what in enumerate(PERCENTS):
            of_sensors[f"{name}_{what}"] = f.get(f.col(name), f.lit(place))
        of_sensors[f"{name}_std"] = f.sqrt(f"{name}_variance")
        of_sensors[f"{name}_missing"] = f.col("record_count") - f.col(f"{name}_n")
    found = found.withColumns(of_sensors)
    constant = together(
        each(lambda name: f.coalesce(f.col(f"{name}_max") == f.col(f"{name}_min"), f.lit(True))), operator.and_
    )
    restless = together((f.col(f"{name}_n") >= LEAST_READINGS_FROZEN).cast("int") for name in RESTLESS_SENSORS)
    found = found.withColumns(
        {
            **{f"{name}_range": f.col(f"{name}_max") - f.col(f"{name}_min") for name in SENSOR_NAMES},
            **{f"{name}_level": _level(name) for name in SENSOR_NAMES},
            "total": together(each(lambda name: f.col(f"{name}_n"))),
            "fitted": together(each(lambda name: (f.col(f"{name}_n") > 0).cast("long"))),
            "frozen": constant & (restless >= LEAST_RESTLESS_FROZEN),
        }
    )
    implausible = f.when(f.col("frozen"), f.col("total")).otherwise(f.col("contradictions"))
    silent_s = (f.unix_micros("window.end") - f.unix_micros("last_event_time")) / 1e6 - 1.0
    found = found.withColumns(
        {
            "event_date": f.to_date("window.start"),
            "window_start": f.col("window.start"),
            "window_end": f.col("window.end"),
            "duplicate_count": f.col("revision") - f.col("record_count"),
            "expected_count": f.lit(EXPECTED),
            "completeness": f.least(f.lit(1.0), f.col("record_count") / EXPECTED),
            "validity": f.when(
                f.col("fitted") > 0, f.col("total") / (f.col("record_count") * f.col("fitted"))
            ).otherwise(1.0),
            "plausibility": 1.0 - f.when(f.col("total") > 0, implausible / f.col("total")).otherwise(0.0),
            "freshness": 1.0 - f.least(f.lit(1.0), f.greatest(f.lit(0.0), silent_s / LENGTH_S)),
            "level": f.greatest(*each(lambda name: f.col(f"{name}_level"))),
        }
    )
    sensor = f.when(f.col("level") == 0, f.lit(None).cast("string"))
    for name in SENSOR_NAMES:
        sensor = sensor.when(f.col(f"{name}_level") == f.col("level"), f.lit(name))
    factors = (f.col(name) for name in ("completeness", "validity", "plausibility", "freshness"))
    return found.withColumns({"level_sensor": sensor, "quality_score": 100.0 * together(factors, operator.mul)}).select(
        *WINDOW_SCHEMA
    )


def _level(sensor: str) -> Column:
    """The level of a sensor's mean, 0 to 4."""
    from pyspark.sql import functions as f

    mean = f.col(f"{sensor}_mean")
    found = f.lit(0)
    for level in (level for level in LEVELS if level.sensor == sensor):
        reached = sum((f.when(mean >= limit, 1).otherwise(0) for limit in level.high), f.lit(0))
        sunk = sum((f.when(mean <= limit, 1).otherwise(0) for limit in level.low or ()), f.lit(0))
        found = f.greatest(reached, sunk)
    return found


def main(spec: WindowsSpec) -> None:
    """Measures, prints, and writes the sample."""
    settings = load_settings({"SMOKE_HOME": spec.home}, Path(spec.home) / "no.env")
    measured = Measured()
    try:
        with session(settings, "windows by Spark's own functions", more=CONFIGURATION, kafka=False) as spark:
            spark.range(4, numPartitions=4).groupBy("id").count().collect()
            measured.begin()
            found = windows(spark, spec).persist()
            measured.windows = found.count()
            measured.end()
            measured.readings = spark.read.parquet(*spec.files).count()
            sample = found.where(found["device_id"].isin(spec.sample)).toArrow()
    except SmokeError as error:
        click.echo(error.message, err=True)
        sys.exit(NOT_TO_BE_HAD)
    print(measured.answer(), flush=True)
    rows = pl.from_arrow(sample)
    assert isinstance(rows, pl.DataFrame)
    rows.select(pl.col(name).cast(kind) for name, kind in WINDOW_SCHEMA.items()).write_ipc(spec.result)


if __name__ == "__main__":
    main(WindowsSpec.read(Path(sys.argv[1])))
