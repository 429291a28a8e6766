"""History: what the whole lake says about trends, seasons and which sensors move together.

Belongs here: the summary of one day, and the merging of any number of them. Does not: which days there are and how
they are read (``orchestration.monitoring``), the drawn report (``adapters.reports``).

Everything rests on sums that can be added: a day is read once and leaves a few rows, so memory grows with devices and
days but not with readings, and days can be summarised anywhere in any order.

Hours and weekdays are those of event time in a given zone. Correlations are between sensors only: the label is what
they ought to tell, not one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import polars as pl

from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES

#: Sums of squares lose digits where the mean is far from zero, so each sensor is counted from a usual value.
_ORIGIN = {
    "temperature_c": 20.0,
    "humidity_pct": 50.0,
    "eco2_ppm": 400.0,
    "raw_h2": 12_900.0,
    "raw_ethanol": 19_700.0,
    "pressure_hpa": 980.0,
}
_PAIRS = tuple(combinations_with_replacement(SENSOR_NAMES, 2))
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
#: A slope through fewer days is a rumour.
LEAST_DAYS_FOR_TREND = 3
#: Correlations are reported as strong from here on.
STRONG_CORRELATION = 0.7
#: Shorter stretches repeat by chance (a device that says the same thing a few times).
LEAST_REPEATED_ROWS = 60


@dataclass(frozen=True, slots=True)
class DaySummary:
    """What is kept of one day.

    Attributes:
        devices: a row for each source and device: rows, fires, mean, min and max of each sensor, and ``fingerprint``.
        hours: a row for each source, weekday (1 = Monday) and hour: rows, fires, and n and sum of each sensor.
        moments: a row for each source: ``n``, sums and sums of products of the rows in which all twelve sensors are.
    """

    day: date
    devices: pl.DataFrame
    hours: pl.DataFrame
    moments: pl.DataFrame


def summarise_day(readings: pl.LazyFrame, day: date, zone: str = "UTC") -> DaySummary:
    """The summary of one day's readings.

    Args:
        readings: columns of ``lake/readings``, of that day only.
        day: UTC day of event time.
        zone: of the hours and weekdays, such as ``Europe/Vienna``.
    """
    local = pl.col("event_time").dt.convert_time_zone(zone)
    burning = pl.col("fire_alarm").fill_null(False).sum().cast(pl.Int64).alias("fires")
    rows = pl.len().cast(pl.Int64).alias("rows")
    devices = readings.group_by("source", "device_id").agg(
        rows,
        burning,
        # An order-free sum, so that a copy has the same one however it arrived.
        pl.struct(ALL_SENSOR_NAMES).hash(seed=0).sum().alias("fingerprint"),
        *(pl.col(name).mean().alias(f"mean_{name}") for name in ALL_SENSOR_NAMES),
        *(pl.col(name).min().alias(f"min_{name}") for name in ALL_SENSOR_NAMES),
        *(pl.col(name).max().alias(f"max_{name}") for name in ALL_SENSOR_NAMES),
    )
    hours = readings.group_by("source", local.dt.weekday().alias("weekday"), local.dt.hour().alias("hour")).agg(
        rows,
        burning,
        *(pl.col(name).count().cast(pl.Int64).alias(f"n_{name}") for name in ALL_SENSOR_NAMES),
        *(pl.col(name).sum().alias(f"sum_{name}") for name in ALL_SENSOR_NAMES),
    )
    complete = readings.filter(pl.all_horizontal(pl.col(name).is_not_null() for name in SENSOR_NAMES))
    shifted = {name: pl.col(name) - _ORIGIN.get(name, 0.0) for name in SENSOR_NAMES}
    moments = complete.group_by("source").agg(
        pl.len().cast(pl.Int64).alias("n"),
        *(shifted[name].sum().alias(f"s_{name}") for name in SENSOR_NAMES),
        *((shifted[a] * shifted[b]).sum().alias(f"p_{a}_{b}") for a, b in _PAIRS),
    )
    frames = pl.collect_all([devices, hours, moments], engine="streaming")
    return DaySummary(
        day,
        *(
            frame.sort(pl.selectors.by_name("source", "device_id", "weekday", "hour", require_all=False))
            for frame in frames
        ),
    )


@dataclass(frozen=True, slots=True)
class History:
    """The merged history.

    Attributes:
        days: a row for each source, device and day: rows, fires, and mean, min, max of each sensor.
        by_hour: a row for each source and hour 0..23 that has readings: rows, fires, mean of each sensor.
        by_weekday: the same for each weekday, 1 = Monday.
        trends: a row for each source, device and sensor with enough days: slope of the daily mean, in units a day.
        correlations: a row for each source and pair of sensors: Pearson's r over ``rows`` readings.
        repeated: groups of device-days that hold the very same readings.
    """

    zone: str
    days: pl.DataFrame
    by_hour: pl.DataFrame
    by_weekday: pl.DataFrame
    trends: pl.DataFrame
    correlations: pl.DataFrame
    repeated: pl.DataFrame

    def peak_hour(self, source: str, sensor: str) -> int | None:
        """The hour 0..23 with the highest mean of ``sensor``, or ``None`` where it was never measured."""
        return _peak(self.by_hour, "hour", source, sensor)

    def peak_weekday(self, source: str, sensor: str) -> str | None:
        """The name of the weekday with the highest mean of ``sensor``."""
        number = _peak(self.by_weekday, "weekday", source, sensor)
        return None if number is None else WEEKDAYS[number - 1]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the findings, and the tables they come from but for the days of each device."""
        sources = self.days["source"].unique().sort().to_list()
        return {
            "zone": self.zone,
            "rows": int(self.days["rows"].sum()),
            "first_day": str(self.days["day"].min()) if self.days.height else None,
            "last_day": str(self.days["day"].max()) if self.days.height else None,
            "sources": {source: self._findings(source) for source in sources},
            "repeated_recordings": self.repeated.head(50)
            .with_columns(pl.col("fingerprint").cast(pl.String))
            .to_dicts(),
            "by_hour": self.by_hour.to_dicts(),
            "by_weekday": self.by_weekday.to_dicts(),
        }

    def _findings(self, source: str) -> dict[str, Any]:
        mine = pl.col("source") == source
        days = self.days.filter(mine)
        return {
            "rows": int(days["rows"].sum()),
            "fire_rows": int(days["fires"].sum()),
            "devices": days["device_id"].n_unique(),
            "days": days["day"].n_unique(),
            "peak_hour": {name: self.peak_hour(source, name) for name in ALL_SENSOR_NAMES},
            "peak_weekday": {name: self.peak_weekday(source, name) for name in ALL_SENSOR_NAMES},
            "strongest_correlations": self.correlations.filter(mine).head(10).to_dicts(),
            "steepest_trends": self.trends.filter(mine).head(20).to_dicts(),
        }


def merge(summaries: list[DaySummary], zone: str = "UTC") -> History:
    """Puts the summaries of days together; ``zone`` is the one they were made with.

    Raises:
        ValueError: for no summaries.
    """
    if not summaries:
        raise ValueError("no day to merge: summarise at least one")
    days = pl.concat([s.devices.with_columns(day=pl.lit(s.day)) for s in summaries]).sort("source", "device_id", "day")
    hours = pl.concat([s.hours for s in summaries])
    moments = pl.concat([s.moments for s in summaries]).group_by("source").agg(pl.all().sum()).sort("source")
    return History(
        zone=zone,
        days=days.drop("fingerprint"),
        by_hour=_season(hours, "hour"),
        by_weekday=_season(hours, "weekday"),
        trends=_trends(days),
        correlations=_correlations(moments),
        repeated=_repeated(days),
    )


def _season(hours: pl.DataFrame, by: str) -> pl.DataFrame:
    return (
        hours.group_by("source", by)
        .agg(
            pl.col("rows", "fires").sum(),
            *(
                pl.when(pl.col(f"n_{name}").sum() > 0)
                .then(pl.col(f"sum_{name}").sum() / pl.col(f"n_{name}").sum())
                .alias(name)
                for name in ALL_SENSOR_NAMES
            ),
        )
        .sort("source", by)
    )


def _peak(season: pl.DataFrame, by: str, source: str, sensor: str) -> int | None:
    found = season.filter(pl.col("source") == source, pl.col(sensor).is_not_null()).sort(
        sensor, by, descending=[True, False]
    )
    return int(found[by][0]) if found.height else None


def _trends(days: pl.DataFrame) -> pl.DataFrame:
    """Least-squares slope of the daily mean of each sensor, in its unit a day; ``spreads`` a day orders them."""
    long = (
        days.unpivot(
            on=[f"mean_{name}" for name in ALL_SENSOR_NAMES],
            index=["source", "device_id", "day"],
            variable_name="sensor",
            value_name="mean",
        )
        .drop_nulls("mean")
        .with_columns(pl.col("sensor").str.strip_prefix("mean_"), x=pl.col("day").cast(pl.Int32).cast(pl.Float64))
    )
    x, y = pl.col("x") - pl.col("x").mean(), pl.col("mean") - pl.col("mean").mean()
    return (
        long.group_by("source", "device_id", "sensor")
        .agg(
            pl.len().alias("days"),
            ((x * y).sum() / (x * x).sum()).alias("slope_per_day"),
            pl.col("mean").std().alias("spread"),
        )
        .filter(pl.col("days") >= LEAST_DAYS_FOR_TREND)
        .with_columns(spreads_per_day=pl.when(pl.col("spread") > 0).then(pl.col("slope_per_day") / pl.col("spread")))
        .sort(
            pl.col("spreads_per_day").abs(),
            "source",
            "device_id",
            "sensor",
            descending=[True, False, False, False],
            nulls_last=True,
        )
    )


def _correlations(moments: pl.DataFrame) -> pl.DataFrame:
    """Pearson's r of each pair of sensors; a sensor that never moves has none."""
    found: list[dict[str, Any]] = []
    for row in moments.iter_rows(named=True):
        n = row["n"]
        mean = {name: row[f"s_{name}"] / n for name in SENSOR_NAMES}
        covariance = {(a, b): row[f"p_{a}_{b}"] / n - mean[a] * mean[b] for a, b in _PAIRS}
        for a, b in _PAIRS:
            scale = covariance[a, a] * covariance[b, b]
            # Of a constant sensor only rounding is left; a correlation with it would be made of that.
            moves = all(covariance[s, s] > 1e-12 * max(1.0, row[f"p_{s}_{s}"] / n) for s in (a, b))
            if a != b and moves:
                r = float(np.clip(covariance[a, b] / np.sqrt(scale), -1.0, 1.0))
                found.append({"source": row["source"], "sensor": a, "other": b, "r": r, "rows": n})
    schema = {"source": pl.String, "sensor": pl.String, "other": pl.String, "r": pl.Float64, "rows": pl.Int64}
    return pl.DataFrame(found, schema=schema).sort(
        pl.col("r").abs(), "source", "sensor", "other", descending=[True, False, False, False]
    )


def _repeated(days: pl.DataFrame) -> pl.DataFrame:
    """Device-days with equal readings: a recording sent twice under other names or dates, which training must not
    take for independent evidence. Copies are found where they fill the same UTC day from midnight to midnight or lie
    whole within one."""
    return (
        days.filter(pl.col("rows") >= LEAST_REPEATED_ROWS)
        .group_by("fingerprint", "rows")
        .agg(
            pl.len().alias("copies"),
            pl.concat_str("device_id", pl.lit(" on "), pl.col("day").cast(pl.String)).sort().alias("where"),
        )
        .filter(pl.col("copies") > 1)
        .sort("rows", "fingerprint", descending=True)
    )
