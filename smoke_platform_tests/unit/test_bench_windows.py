"""The windows suite's own arithmetic: what its peers compute is what the platform computes."""

from __future__ import annotations

import polars as pl
import pytest

from benchmarks.suite_windows import differing
from benchmarks.windows_input import readings
from benchmarks.windows_work import LENGTH_US, frame_of, packed, window_of
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.windows import compute


def _rows() -> pl.DataFrame:
    """Readings of five devices: in order, delayed, twice, with gaps, with a sensor missing, one frozen, one sparse."""
    rows = readings(5, 7)
    names = rows["device_id"].unique().sort().to_list()
    device = pl.col("device_id")
    return (
        rows.filter(
            ~(device.eq(names[1]) & (pl.col("offset") % 3 == 0)), ~(device.eq(names[4]) & (pl.col("offset") % 170 != 0))
        )
        .with_columns(
            pl.when(device == names[2]).then(None).otherwise("tvoc_ppb").alias("tvoc_ppb"),
            pl.when(device.eq(names[0]) & (pl.col("offset") % 7 == 0)).then(None).otherwise("pm2_5").alias("pm2_5"),
        )
        .with_columns(pl.when(device == names[3]).then(21.0).otherwise(name).alias(name) for name in SENSOR_NAMES)
    )


def _of_peers(rows: pl.DataFrame) -> pl.DataFrame:
    found = []
    for (device,), mine in rows.sort("offset").group_by("device_id"):
        values = packed(mine)
        minutes = (values[:, 0] // 60_000_000).astype(int)
        for start in sorted({minute - back for minute in minutes.tolist() for back in range(5)}):
            start_us = start * 60_000_000
            inside = (values[:, 0] >= start_us) & (values[:, 0] < start_us + LENGTH_US)
            if inside.any():
                found.append((str(device), window_of(values[inside], start_us)))
    return frame_of(found)


def test_the_peers_compute_every_column_of_every_window() -> None:
    """Without it a peer that does less, or something else, would be the measure of the engines."""
    rows = _rows()
    expected = compute(rows)
    assert expected["duplicate_count"].sum() > 0
    assert expected["plausibility"].min() == 0  # the frozen device
    assert differing(_of_peers(rows), expected) == []


@pytest.mark.parametrize("column", ["record_count", "pm2_5_p95", "level_sensor", "tvoc_ppb_mean"])
def test_a_result_that_differs_is_named(column: str) -> None:
    """Without it the suite would print a rate of wrong results."""
    expected = compute(_rows())
    wrong = expected.with_columns(
        pl.when(pl.int_range(pl.len()) == 3)
        .then(pl.lit("pm1_0") if column == "level_sensor" else pl.col(column).fill_null(0.0) * 1.001 + 1)
        .otherwise(column)
        .cast(expected.schema[column])
        .alias(column)
    )
    assert differing(wrong, expected) == [f"{column} of 1 windows"]
    assert differing(expected.head(3), expected) == [f"3 windows instead of {expected.height}, or others"]
