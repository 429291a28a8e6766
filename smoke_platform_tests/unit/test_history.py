"""History: seasons, trends, correlations and repeats on data whose answer is known."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from smoke_platform.domain import history
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES
from smoke_platform_tests.monitoring_lake import as_landed, simulated

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)


def readings(
    start: datetime = MONDAY,
    days: int = 1,
    *,
    device: str = "d",
    source: str = "device",
    peak: int = 17,
    **columns: pl.Expr,
) -> pl.DataFrame:
    """One reading a minute; the temperature is highest at ``peak`` o'clock UTC, all else is noise."""
    minutes = pl.int_range(days * 1440, eager=True)
    time = pl.Series("event_time", [start + timedelta(minutes=int(m)) for m in minutes]).cast(pl.Datetime("us", "UTC"))
    chance = np.random.default_rng(0)
    frame = pl.DataFrame({"event_time": time}).with_columns(
        device_id=pl.lit(device),
        source=pl.lit(source),
        fire_alarm=pl.lit(False),
        **{name: pl.Series(chance.normal(100, 1, len(minutes))) for name in SENSOR_NAMES},
        co_ppm=pl.lit(None, pl.Float64),
    )
    hour = pl.col("event_time").dt.hour() + pl.col("event_time").dt.minute() / 60 - (peak + 0.5)
    return frame.with_columns(temperature_c=20 + 5 * (hour * (2 * math.pi / 24)).cos()).with_columns(**columns)


def summarise(frame: pl.DataFrame, zone: str = "UTC") -> history.History:
    days = frame["event_time"].dt.date().unique().sort()
    of_day = [
        history.summarise_day(frame.lazy().filter(pl.col("event_time").dt.date() == day), day, zone) for day in days
    ]
    return history.merge(of_day, zone)


@pytest.mark.parametrize("peak", [0, 3, 17, 23])
def test_the_peak_hour_is_the_hour_of_the_peak(peak: int) -> None:
    """Or somebody plans by an hour that is an artefact (seconds read as nanoseconds put every peak at midnight)."""
    assert summarise(readings(days=3, peak=peak)).peak_hour("device", "temperature_c") == peak


def test_hours_and_weekdays_are_those_of_the_zone() -> None:
    """Or a peak at five in the afternoon is reported as four."""
    found = summarise(readings(days=3, peak=17), "Europe/Vienna")
    assert found.peak_hour("device", "temperature_c") == 18
    late = readings(peak=17, humidity_pct=pl.when(pl.col("event_time").dt.hour() == 23).then(90.0).otherwise(10.0))
    assert summarise(late, "Europe/Vienna").peak_weekday("device", "humidity_pct") == "Tuesday"
    assert summarise(late, "UTC").peak_weekday("device", "humidity_pct") == "Monday"


def test_the_peak_weekday_is_found() -> None:
    """Or weekly habits of a building are read off the wrong day."""
    day = pl.col("event_time").dt.weekday()
    week = readings(days=14, raw_h2=pl.when(day == 6).then(50.0).otherwise(40.0))
    assert summarise(week).peak_weekday("device", "raw_h2") == "Saturday"


def test_a_sensor_that_is_not_fitted_has_no_season() -> None:
    """Or CO peaks at midnight in buildings without a CO sensor."""
    found = summarise(readings())
    assert found.peak_hour("device", "co_ppm") is None
    assert found.as_dict()["sources"]["device"]["peak_weekday"]["co_ppm"] is None


def test_a_trend_is_the_slope_of_the_daily_means() -> None:
    """Or a sensor that drifts by a unit a day is not told from one that jitters."""
    rising = readings(days=5, pressure_hpa=900 + 1.5 * (pl.col("event_time").dt.ordinal_day() - 61).cast(pl.Float64))
    found = summarise(rising).trends.filter(pl.col("sensor") == "pressure_hpa").row(0, named=True)
    assert found["slope_per_day"] == pytest.approx(1.5)
    assert found["days"] == 5
    assert summarise(readings(days=2)).trends.is_empty()


def test_correlations_agree_with_numpy() -> None:
    """Or sums over days lose what the readings say."""
    frame = as_landed(simulated(3, MONDAY, 48))
    found = summarise(frame)
    rows = frame.drop_nulls(SENSOR_NAMES)
    expected = np.corrcoef(rows.select(SENSOR_NAMES).to_numpy().T)
    pairs = {(row["sensor"], row["other"]): row["r"] for row in found.correlations.iter_rows(named=True)}
    assert len(pairs) == 66
    for (a, b), r in pairs.items():
        assert r == pytest.approx(expected[SENSOR_NAMES.index(a), SENSOR_NAMES.index(b)], abs=1e-6)
    assert found.correlations["rows"][0] == rows.height


def test_the_label_is_not_among_its_own_indicators() -> None:
    """Or the report's best indicator of fire is that there is a fire."""
    found = summarise(as_landed(simulated(3, MONDAY, 6, fires_per_device_day=12)))
    assert set(found.correlations["sensor"]) | set(found.correlations["other"]) <= set(SENSOR_NAMES)


def test_a_sensor_that_never_moves_has_no_correlation() -> None:
    """Or rounding is reported as a law of nature."""
    found = summarise(readings(pressure_hpa=pl.lit(940.0)))
    assert not (pl.Series(["pressure_hpa"]).is_in(found.correlations["sensor"].to_list())).any()


def test_a_recording_sent_twice_is_noticed() -> None:
    """Or training and validation hold the same readings under two names."""
    once = readings()
    copy = once.with_columns(device_id=pl.lit("copy")).sample(fraction=1.0, shuffle=True, seed=1)
    other = readings(peak=3, device="other")
    found = summarise(pl.concat([once, copy, other]))
    assert found.repeated.height == 1
    assert found.repeated["where"][0].to_list() == ["copy on 2026-03-02", "d on 2026-03-02"]
    assert summarise(pl.concat([once, other])).repeated.is_empty()


def test_sources_are_kept_apart() -> None:
    """Or what the simulator was told to do is reported as a habit of real buildings."""
    both = pl.concat([readings(peak=5), readings(peak=15, device="s", source="simulator")])
    found = summarise(both)
    assert found.peak_hour("device", "temperature_c") == 5
    assert found.peak_hour("simulator", "temperature_c") == 15


def test_the_mean_of_days_weighs_readings() -> None:
    """Or a day with ten readings counts as much as one with ten thousand."""
    few = readings(MONDAY, temperature_c=pl.lit(10.0)).head(10)
    many = readings(MONDAY + timedelta(days=1), temperature_c=pl.lit(20.0)).head(30)
    found = summarise(pl.concat([few, many]))
    midnight = found.by_hour.filter(pl.col("hour") == 0).row(0, named=True)
    assert midnight["temperature_c"] == pytest.approx((10 * 10 + 30 * 20) / 40)
    assert found.days["day"].to_list() == [date(2026, 3, 2), date(2026, 3, 3)]
    assert set(ALL_SENSOR_NAMES) <= set(found.by_hour.columns)
