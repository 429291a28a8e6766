"""Data quality: how much of what the devices should have reported arrived, whole, valid and plausible.

Belongs here: the figures per device and for a window, the score, what counts as stuck or inconsistent. Does not:
reading tables or topics (``adapters``), thresholds at which somebody is told (``orchestration.monitoring``), how far
readings have moved from the training data (``domain.drift``).

The score is the share of the expected information that can be used, times 100::

    score = 100 * completeness * measured * validity * plausibility * uniqueness

``completeness``  distinct readings / readings expected at each device's reporting interval
``measured``      values present / values expected of the sensors that a device has (a null is "not measured")
``validity``      readings accepted / messages received (the rest are dead letters)
``plausibility``  1 - implausible values / values present
``uniqueness``    distinct readings / readings stored

A product, not a mean: a mean lets one part that is worthless hide behind four good ones. No factor looks at how high a
value is, so a fire, which is large but real, cannot lower the score; a stuck sensor is one that does not move at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from smoke_platform.domain.devices import DEFAULT_INTERVAL_S
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

#: Sensors whose own noise never leaves them constant for an hour. Gas and particle channels are not among them: they
#: rest at a floor in clean air (TVOC 0, eCO2 400) and at a ceiling in smoke.
RESTLESS_SENSORS = ("temperature_c", "humidity_pct", "raw_h2", "raw_ethanol", "pressure_hpa")
#: An hour with fewer readings says too little about whether a sensor moves.
LEAST_READINGS_TO_JUDGE = 600
#: PM1.0 is a part of PM2.5; a hundredth is left for the rounding of each.
INCONSISTENCY_TOLERANCE = 0.01
#: A device whose newest reading arrived within this of its event time follows the clock; others replay the past.
LIVE_WITHIN = timedelta(hours=1)
#: A device's silence counts against it once it has reported for this long; a short trial is not missed afterwards.
ESTABLISHED_AFTER = timedelta(hours=1)
#: A device that has been silent for this long at the window's end is stale.
STALE_AFTER = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class QualityScore:
    """The factors (0..1, ``None`` where unknown) and the score (0..100) that is their product."""

    completeness: float
    measured: float
    validity: float | None
    plausibility: float
    uniqueness: float

    @property
    def score(self) -> float:
        product = 100.0 * self.completeness * self.measured * self.plausibility * self.uniqueness
        return product if self.validity is None else product * self.validity


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Data quality of one window.

    Attributes:
        score: factors and score.
        readings: rows stored; ``duplicates`` of them repeat (device, event time, sequence).
        expected: readings that the devices' intervals call for.
        rejected: dead letters of the window by reason, or ``None`` where the topic could not be read.
        stale: devices that follow the clock and have been silent for ``STALE_AFTER``.
        devices: one row a device, worst completeness first.
    """

    window_start: datetime
    window_end: datetime
    score: QualityScore
    readings: int
    expected: int
    duplicates: int
    late: int
    rejected: Mapping[str, int] | None
    stuck: int
    inconsistent: int
    stale: tuple[str, ...]
    devices: pl.DataFrame

    def as_dict(self, *, device_rows: int = 200) -> dict[str, Any]:
        """Plain values for JSON; of the devices the ``device_rows`` worst."""
        return {
            "window_start": self.window_start.isoformat(),
            "window_end": self.window_end.isoformat(),
            "score": round(self.score.score, 3),
            "formula": "100 * completeness * measured * validity * plausibility * uniqueness",
            "factors": asdict(self.score),
            "readings": self.readings,
            "expected": self.expected,
            "duplicates": self.duplicates,
            "late": self.late,
            "rejected": None if self.rejected is None else dict(self.rejected),
            "stuck_sensor_hours": self.stuck,
            "inconsistent_values": self.inconsistent,
            "device_count": self.devices.height,
            "stale_devices": list(self.stale[:device_rows]),
            "stale_device_count": len(self.stale),
            "devices": self.devices.head(device_rows).to_dicts(),
        }


def hourly_statistics(readings: pl.LazyFrame) -> pl.LazyFrame:
    """One row a device and hour of event time, from which everything else follows.

    Duplicates share their event time, hence their row here, so statistics of parts of the readings can be
    concatenated as long as each device is whole in one part (as it is in a Kafka partition).

    Args:
        readings: columns of ``lake/readings``.
    """
    inconsistent = pl.col("pm1_0") > pl.col("pm2_5") * (1 + INCONSISTENCY_TOLERANCE) + INCONSISTENCY_TOLERANCE
    gaps_s = pl.col("event_time").sort().diff().dt.total_microseconds() / 1e6
    return readings.group_by("device_id", pl.col("event_time").dt.truncate("1h").alias("hour")).agg(
        pl.len().cast(pl.Int64).alias("rows"),
        pl.struct("event_time", "sequence").n_unique().cast(pl.Int64).alias("distinct_rows"),
        gaps_s.filter(gaps_s > 0).median().alias("interval_s"),
        pl.col("event_time").min().alias("first_event"),
        pl.col("event_time").max().alias("last_event"),
        pl.col("append_time").max().alias("last_append"),
        pl.col("late").sum().cast(pl.Int64).alias("late"),
        inconsistent.sum().cast(pl.Int64).alias("inconsistent"),
        *(pl.col(name).count().cast(pl.Int64).alias(f"n_{name}") for name in ALL_SENSOR_NAMES),
        *((pl.col(name).min() == pl.col(name).max()).alias(f"constant_{name}") for name in RESTLESS_SENSORS),
    )


def device_statistics(
    hours: pl.DataFrame,
    window_start: datetime,
    window_end: datetime,
    known: pl.DataFrame | None = None,
    intervals_s: Mapping[str, float] | None = None,
) -> pl.DataFrame:
    """One row a device: readings, expected readings, values, implausible values.

    Args:
        hours: ``hourly_statistics`` of the readings that arrived in the window.
        known: devices that followed the clock before the window (columns device_id, interval_s), so that one that
            has fallen silent altogether is missed.
        intervals_s: reporting interval where it is known; else the median gap between a device's readings.
    """
    stuck_hours = [
        (pl.col(f"constant_{name}").fill_null(False) & (pl.col(f"n_{name}") >= LEAST_READINGS_TO_JUDGE))
        for name in RESTLESS_SENSORS
    ]
    devices = hours.group_by("device_id").agg(
        pl.col("rows").sum(),
        pl.col("distinct_rows").sum(),
        pl.col("interval_s").median(),
        pl.col("first_event").min(),
        pl.col("last_event").max(),
        (pl.col("last_append").max() - pl.col("last_event").max() <= LIVE_WITHIN).alias("live"),
        pl.col("late").sum(),
        pl.col("inconsistent").sum(),
        pl.sum_horizontal(flag.cast(pl.Int64) for flag in stuck_hours).sum().alias("stuck_hours"),
        pl.sum_horizontal(
            pl.when(flag).then(pl.col(f"n_{name}")).otherwise(0)
            for name, flag in zip(RESTLESS_SENSORS, stuck_hours, strict=True)
        )
        .sum()
        .alias("stuck_values"),
        pl.sum_horizontal(pl.col(f"n_{name}").sum() for name in ALL_SENSOR_NAMES).alias("values"),
        pl.sum_horizontal((pl.col(f"n_{name}").sum() > 0).cast(pl.Int64) for name in ALL_SENSOR_NAMES).alias("fitted"),
    )
    devices = _with_silent(devices.with_columns(known=pl.lit(False)), known)
    given = pl.DataFrame(
        {"device_id": list(intervals_s or {}), "given_s": [float(v) for v in (intervals_s or {}).values()]},
        schema={"device_id": pl.String, "given_s": pl.Float64},
    )
    time = pl.Datetime("us", "UTC")
    start, end = pl.lit(window_start, time), pl.lit(window_end, time)
    established = pl.col("known") | (pl.col("last_event") - pl.col("first_event") >= ESTABLISHED_AFTER)
    return (
        devices.join(given, on="device_id", how="left")
        .with_columns(interval_s=pl.coalesce("given_s", "interval_s").fill_null(DEFAULT_INTERVAL_S))
        .with_columns(
            since=pl.when(pl.col("known") & pl.col("live")).then(start).otherwise(pl.col("first_event")),
            until=pl.when(pl.col("live") & established)
            .then(pl.max_horizontal(end, pl.col("last_event")))
            .otherwise(pl.col("last_event")),
        )
        .with_columns(
            expected=((pl.col("until") - pl.col("since")).dt.total_microseconds() / 1e6 / pl.col("interval_s"))
            .floor()
            .cast(pl.Int64)
            .clip(lower_bound=0)
            + pl.when(pl.col("until") == pl.col("last_event")).then(1).otherwise(0)
        )
        .with_columns(
            expected=pl.max_horizontal("expected", pl.lit(1, pl.Int64)),
            stale=pl.col("live") & established & (end - pl.col("last_event") > STALE_AFTER),
        )
        .with_columns(
            completeness=pl.min_horizontal(pl.lit(1.0), pl.col("distinct_rows") / pl.col("expected")),
            expected_values=pl.col("rows") * pl.col("fitted"),
            implausible=pl.min_horizontal(pl.col("stuck_values") + pl.col("inconsistent"), pl.col("values")),
        )
        .drop("given_s", "since", "until")
        .sort("completeness", "device_id")
    )


def _with_silent(devices: pl.DataFrame, known: pl.DataFrame | None) -> pl.DataFrame:
    """Marks devices that were known before, and adds those of them of which nothing arrived."""
    if known is None or known.is_empty():
        return devices
    silent = known.join(devices, on="device_id", how="anti").select(
        "device_id",
        "interval_s",
        last_event=pl.col("last_event"),
        first_event=pl.col("last_event"),
        live=pl.lit(True),
        known=pl.lit(True),
    )
    seen = devices.with_columns(known=pl.col("device_id").is_in(known["device_id"].to_list()))
    zeroes = pl.selectors.integer()
    return pl.concat([seen, silent], how="diagonal").with_columns(zeroes.fill_null(0))


def known_devices(readings: pl.LazyFrame) -> pl.LazyFrame:
    """The established devices of an earlier window that followed the clock, for ``device_statistics``.

    Args:
        readings: device_id, event_time and append_time of the readings that arrived in that earlier window.
    """
    gaps_s = pl.col("event_time").sort().diff().dt.total_microseconds() / 1e6
    return (
        readings.group_by("device_id")
        .agg(
            gaps_s.filter(gaps_s > 0).median().fill_null(DEFAULT_INTERVAL_S).alias("interval_s"),
            pl.col("event_time").min().alias("first_event"),
            pl.col("event_time").max().alias("last_event"),
            pl.col("append_time").max().alias("last_append"),
        )
        .filter(
            (pl.col("last_append") - pl.col("last_event") <= LIVE_WITHIN)
            & (pl.col("last_event") - pl.col("first_event") >= ESTABLISHED_AFTER)
        )
        .select("device_id", "interval_s", "last_event")
    )


def assess(
    hours: pl.DataFrame,
    window_start: datetime,
    window_end: datetime,
    *,
    rejected: Mapping[str, int] | None,
    known: pl.DataFrame | None = None,
    intervals_s: Mapping[str, float] | None = None,
) -> QualityReport | None:
    """The quality of a window, or ``None`` where no device reported and none was expected to.

    Args:
        hours: ``hourly_statistics`` of the readings that arrived in the window.
        rejected: dead letters of the window by reason; ``None`` leaves validity unknown and out of the score.
        known: see ``device_statistics``.
        intervals_s: see ``device_statistics``.
    """
    devices = device_statistics(hours, window_start, window_end, known, intervals_s)
    if devices.is_empty():
        return None
    total = {name: int(devices[name].sum()) for name in devices.select(pl.selectors.integer()).columns}
    bad = sum(rejected.values()) if rejected is not None else 0
    # A device's surplus (a clock that jumped) must not make up for what another lacks.
    arrived = int(devices.select(pl.min_horizontal("distinct_rows", "expected").sum()).item())
    score = QualityScore(
        completeness=arrived / total["expected"],
        measured=_share(total["values"], total["expected_values"]),
        validity=None if rejected is None else _share(total["rows"], total["rows"] + bad),
        plausibility=1.0 - (total["implausible"] / total["values"] if total["values"] else 0.0),
        uniqueness=_share(total["distinct_rows"], total["rows"]),
    )
    return QualityReport(
        window_start=window_start,
        window_end=window_end,
        score=score,
        readings=total["rows"],
        expected=total["expected"],
        duplicates=total["rows"] - total["distinct_rows"],
        late=total["late"],
        rejected=rejected,
        stuck=total["stuck_hours"],
        inconsistent=total["inconsistent"],
        stale=tuple(devices.filter("stale").sort("last_event")["device_id"]),
        devices=devices,
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
