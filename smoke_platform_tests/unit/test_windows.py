"""Windows: the statistics against a brute force of their own, and what must not change a bit of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.window_words import summary_line, window_line
from smoke_platform.domain.windows import ROW_COLUMNS, STATISTICS, WINDOW_SCHEMA, WindowSpec, compute

START = datetime(2026, 3, 2, 10, tzinfo=UTC)
ROW_SCHEMA: dict[str, Any] = {
    "device_id": pl.String(),
    "event_time": pl.Datetime("us", "UTC"),
    "sequence": pl.Int64(),
    "topic_id": pl.String(),
    "partition": pl.Int32(),
    "offset": pl.Int64(),
    **dict.fromkeys(SENSOR_NAMES, pl.Float64()),
    "fire_alarm": pl.Boolean(),
}
assert tuple(ROW_SCHEMA) == ROW_COLUMNS


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    filled = [{"topic_id": "t", "partition": 0, "offset": place, **row} for place, row in enumerate(rows)]
    return pl.DataFrame([{name: row.get(name) for name in ROW_SCHEMA} for row in filled], schema=ROW_SCHEMA)


def minute_of_heat(device_id: str = "hall-3", seconds: int = 300) -> pl.DataFrame:
    """Once a second, one degree more each minute; a humidity that is not measured."""
    return frame(
        [
            {
                "device_id": device_id,
                "event_time": START + timedelta(seconds=second),
                "sequence": second,
                "temperature_c": 20.0 + second / 60.0,
                "pressure_hpa": 980.25,
                "fire_alarm": second >= 240,
            }
            for second in range(seconds)
        ]
    )


def test_a_ramp_has_the_statistics_that_can_be_worked_out_by_hand() -> None:
    """Or every figure that people see about their rooms is wrong."""
    found = compute(minute_of_heat(), windows=pl.DataFrame({"device_id": ["hall-3"], "window_start": [START]}))
    row = found.row(0, named=True)
    assert found.schema == pl.Schema(WINDOW_SCHEMA)
    assert (row["record_count"], row["duplicate_count"], row["revision"], row["expected_count"]) == (300, 0, 300, 300)
    assert (row["label_count"], row["fire_label_count"], row["level"], row["level_sensor"]) == (300, 60, 0, None)
    assert row["temperature_c_slope_per_min"] == pytest.approx(1.0, abs=1e-9)
    assert row["temperature_c_median"] == pytest.approx(20.0 + 149.5 / 60)
    assert row["temperature_c_p05"] == pytest.approx(20.0 + 14.95 / 60)
    assert row["temperature_c_variance"] == pytest.approx((300 * 301 / 12) / 3600)
    assert (row["temperature_c_first"], row["temperature_c_min"]) == (20.0, 20.0)
    assert row["temperature_c_range"] == pytest.approx(299 / 60)
    assert (row["pressure_hpa_variance"], row["pressure_hpa_slope_per_min"]) == (0.0, 0.0)
    assert row["humidity_pct_missing"] == 300
    assert all(row[f"humidity_pct_{name}"] is None for name in STATISTICS if name != "missing")
    assert row["quality_score"] == 100.0


def test_each_reading_is_in_five_windows() -> None:
    """Or a minute is missing from the picture, or counted twice."""
    found = compute(minute_of_heat(seconds=1))
    assert found["window_start"].to_list() == [START - timedelta(minutes=4 - step) for step in range(5)]
    assert found["record_count"].to_list() == [1] * 5
    assert found["temperature_c_variance"].to_list() == [None] * 5
    assert found["temperature_c_slope_per_min"].to_list() == [None] * 5


def test_the_earliest_reading_still_needed_is_the_start_of_the_earliest_open_window() -> None:
    """Or the engine forgets rows of a window that it has yet to write, or never forgets any."""
    spec = WindowSpec()
    assert spec.open_from(START) == START - timedelta(minutes=4)
    assert spec.open_from(START - timedelta(microseconds=1)) == START - timedelta(minutes=5)
    assert spec.open_from(START + timedelta(seconds=59)) == START - timedelta(minutes=4)


def test_a_window_in_words() -> None:
    """The line that people follow in a terminal."""
    windows = pl.concat([compute(minute_of_heat(name)) for name in ("hall-3", "hall-4")])
    full = windows.filter(window_start=START)
    assert window_line(full.row(0, named=True)) == (
        "Window Analytics (10:00:00 - 10:05:00): Records: 300, Temp: 22.5 degC, Quality: 100, Fire labels: 60, "
        "Device: hall-3"
    )
    assert summary_line(full) == (
        "Window Analytics (10:00:00 - 10:05:00): Records: 600, Temp: 22.5 degC, Quality: 100, Fire labels: 120, "
        "Devices: 2"
    )
