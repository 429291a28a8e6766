"""A window in words: the line that a person reads in a terminal or a log. Pure.

Belongs here: the line for one device's window, and for one window over many devices. Does not: the statistics
themselves (``domain.windows``), following the table (``cli.windows``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl

from smoke_platform.domain.alarm_words import printable
from smoke_platform.domain.alarms import Severity
from smoke_platform.domain.readings import SENSOR_BY_NAME

#: Sensor -> its name in the line, and digits after the point. The others would make the line longer than a screen.
_SHOWN: Final[Mapping[str, tuple[str, int]]] = {
    "temperature_c": ("Temp", 1),
    "humidity_pct": ("Humidity", 1),
    "tvoc_ppb": ("TVOC", 0),
    "eco2_ppm": ("eCO2", 0),
    "pm2_5": ("PM2.5", 1),
}
#: Columns that the line of one window needs.
COLUMNS: Final[tuple[str, ...]] = (
    "device_id",
    "window_start",
    "window_end",
    "revision",
    "record_count",
    "quality_score",
    "fire_label_count",
    "level",
    "level_sensor",
    *(f"{sensor}_mean" for sensor in _SHOWN),
)


def window_line(window: Mapping[str, Any]) -> str:
    """The line of one device's window.

    ``Window Analytics (10:00:00 - 10:05:00): Records: 297, Temp: 26.8 degC, ..., Quality: 99, Device: hall-3``

    Args:
        window: a row of ``COLUMNS``.
    """
    means = {sensor: window[f"{sensor}_mean"] for sensor in _SHOWN}
    parts = [_count(window["record_count"]), *_means(means), f"Quality: {window['quality_score']:.0f}"]
    parts += _fire(window["fire_label_count"])
    if window["level"]:
        sensor = window["level_sensor"]
        parts.append(f"Level: {Severity(window['level']).name} ({_SHOWN.get(sensor, (sensor, 0))[0]})")
    parts.append(f"Device: {printable(window['device_id'])}")
    return f"{_heading(window['window_start'], window['window_end'])} {', '.join(parts)}"


def summary_line(windows: pl.DataFrame) -> str:
    """The line of one window over all its devices.

    Means are over readings: a device that reported ten times as often counts ten times.

    Args:
        windows: ``COLUMNS``, at least one row, all of the same window.
    """
    row = windows.row(0, named=True)
    counts = windows["record_count"].to_list()
    means = {sensor: _weighted(windows[f"{sensor}_mean"].to_list(), counts) for sensor in _SHOWN}
    quality = _weighted(windows["quality_score"].to_list(), [1] * windows.height) or 0.0
    parts = [_count(sum(counts)), *_means(means), f"Quality: {quality:.0f}"]
    parts += _fire(int(windows["fire_label_count"].sum()))
    for level in sorted(Severity, reverse=True):
        at = int((windows["level"] == int(level)).sum())
        if at:
            parts.append(f"{level.name}: {at:,}")
    parts.append(f"Devices: {windows.height:,}")
    return f"{_heading(row['window_start'], row['window_end'])} {', '.join(parts)}"


def _heading(start: datetime, end: datetime) -> str:
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    return f"Window Analytics ({start:%H:%M:%S} - {end:%H:%M:%S}):"


def _count(records: int) -> str:
    return f"Records: {records:,}"


def _fire(labels: int) -> list[str]:
    return [f"Fire labels: {labels:,}"] if labels else []


def _means(means: Mapping[str, float | None]) -> list[str]:
    return [
        f"{_SHOWN[sensor][0]}: {mean:,.{_SHOWN[sensor][1]}f} {SENSOR_BY_NAME[sensor].unit}"
        for sensor, mean in means.items()
        if mean is not None
    ]


def _weighted(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    if not pairs:
        return None
    return math.fsum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
