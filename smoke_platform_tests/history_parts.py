"""What the tests of the history share: readings whose answer is known, and the history of a frame without a lake."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl

from smoke_platform.domain import history, history_alarms
from smoke_platform.domain.history_copies import STRETCH_GAP, candidates, compare
from smoke_platform.domain.history_devices import least_z, summarise_devices
from smoke_platform.domain.history_summary import COLUMNS, PartSummary, in_order, summarise
from smoke_platform.domain.readings import SENSOR_NAMES

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")


def readings(
    start: datetime = MONDAY,
    days: float = 1,
    *,
    device: str = "d",
    source: str = "device",
    peak: int = 17,
    every_s: int = 60,
    seed: int = 0,
    **columns: pl.Expr,
) -> pl.DataFrame:
    """A reading every ``every_s``; the temperature is highest at ``peak`` o'clock UTC, all else is noise."""
    count = int(days * 86_400 / every_s)
    chance = np.random.default_rng([seed, crc32(device.encode())])
    frame = pl.DataFrame(
        {"event_time": pl.Series([start + timedelta(seconds=every_s * row) for row in range(count)]).cast(TIME)}
    ).with_columns(
        device_id=pl.lit(device),
        source=pl.lit(source),
        fire_alarm=pl.lit(False),
        sequence=pl.int_range(pl.len(), dtype=pl.Int64),
        **{name: pl.Series(chance.normal(100, 1, count).round(2)) for name in SENSOR_NAMES},
        co_ppm=pl.lit(None, pl.Float64),
    )
    hour = pl.col("event_time").dt.hour() + pl.col("event_time").dt.minute() / 60 - (peak + 0.5)
    noise = pl.Series(chance.normal(0, 0.05, count))
    return frame.with_columns(temperature_c=20 + 5 * (hour * (2 * math.pi / 24)).cos() + noise).with_columns(**columns)


def landed(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns that only landing knows, where the frame lacks them."""
    known: dict[str, Any] = {
        "sequence": pl.lit(None, pl.Int64),
        "late": pl.lit(False),
        "topic_id": pl.lit("t"),
        "partition": pl.lit(0, pl.Int32),
        "offset": pl.int_range(pl.len(), dtype=pl.Int64),
    }
    return frame.with_columns(**{name: expr for name, expr in known.items() if name not in frame.columns})


def history_of(
    frame: pl.DataFrame,
    zone: str = "UTC",
    *,
    parts: int = 1,
    sites: Mapping[str, str] | None = None,
    alarms: pl.DataFrame | None = None,
    hits: pl.DataFrame | None = None,
) -> history.History:
    """The history of readings in memory, cut into days and parts as the lake is."""
    frame = landed(frame).select(COLUMNS)
    part = pl.Series([crc32(device.encode()) % parts for device in frame["device_id"].to_list()])
    found: list[tuple[Any, PartSummary]] = []
    for (day, _), rows in frame.with_columns(part=part).group_by(pl.col("event_time").dt.date(), "part"):
        found.append((day, summarise(rows.drop("part"), zone)))

    def together(name: str) -> pl.DataFrame:
        return pl.concat([getattr(summary, name).with_columns(event_date=pl.lit(day)) for day, summary in found])

    hours, days = together("hours"), together("days")
    pieces = [
        summarise_devices(hours.filter(mine), days.filter(mine), least_z(hours.height))
        for mine in (pl.col("bucket") % parts == number for number in range(parts))
        if hours.filter(mine).height
    ]
    ordered = in_order(frame)
    copies = []
    for row in candidates(together("anchors")).iter_rows(named=True):
        if not any(copy.covers(row) for copy in copies):
            copy = compare(*(_stretch(ordered, row, which) for which in ("first", "copy")), row)
            copies += [] if copy is None else [copy]
    material = history.Material(
        overview=history.overview(days.lazy()).collect(),
        moments=together("moments").drop("event_date"),
        devices=history.merge_devices(pieces),
        copies=copies,
        unexplored=0,
        alarms=alarms,
        hits=hits,
        sites=sites or {},
    )
    return history.merge(material, zone)


def _stretch(ordered: pl.DataFrame, row: Mapping[str, Any], which: str) -> pl.DataFrame:
    span = row[f"{which}_from"] - STRETCH_GAP, row[f"{which}_to"] + STRETCH_GAP
    return ordered.filter(
        pl.col("device_id") == row[f"{which}_device"], pl.col("event_time").is_between(*(pl.lit(end) for end in span))
    )


def alarm_rows(**columns: Any) -> pl.DataFrame:
    """Rows of ``history_alarms.ALARMS_SCHEMA``."""
    return pl.DataFrame(columns, schema=dict(history_alarms.ALARMS_SCHEMA))


def same(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two plain values differ; floats may by 1e-12 of themselves or of 1, whichever is more."""
    if isinstance(one, float) and isinstance(other, float):
        close = one == other or math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)
        return [] if close else [f"{path}: {one} {other}"]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [fault for key in one for fault in same(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            fault for row, pair in enumerate(zip(one, other, strict=True)) for fault in same(*pair, f"{path}/{row}")
        ]
    return [] if one == other and type(one) is type(other) else [f"{path}: {one!r} {other!r}"]
