"""The windows by brute force, in plain Python: what both engines are held against.

Belongs here: duplicates, statistics, quality and level of a window, which readings are late, and which windows are
appended when, each written down as the definition says it and with no thought for speed. Does not: anything of
``domain.windows`` or ``domain.window_emission``, which it judges; of the platform it knows the sensors' names and the
limits of the levels. Sums are of whole numbers (a float is a whole number over a power of two), so they are exact.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from smoke_platform.domain.levels import LEVELS
from smoke_platform.domain.readings import SENSOR_NAMES

Row = Mapping[str, Any]
#: (device, start of the window)
Key = tuple[str, datetime]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
ALLOWED_LATENESS = timedelta(minutes=10)
SILENCE = timedelta(minutes=10)
TOLERANCE = 1e-9
RESTLESS = ("temperature_c", "humidity_pct", "raw_h2", "raw_ethanol", "pressure_hpa")
#: Columns that hold whole numbers, times and names: these are compared for equality, all others by ``close``.
_EXACT_ENDS = ("_count", "_time", "_missing", "window_start", "window_end", "device_id", "event_date", "revision")


# -- statistics --------------------------------------------------------------------------------------------------


def in_order(row: Row) -> tuple[Any, ...]:
    """Sort key of a device's readings; a missing sequence comes before every other."""
    sequence = -1 if row["sequence"] is None else row["sequence"]
    return (row["event_time"], sequence, row["topic_id"], row["partition"], row["offset"])


def windows(
    rows: Iterable[Row],
    *,
    length_s: int = 300,
    slide_s: int = 60,
    intervals_s: Mapping[str, float] | None = None,
) -> dict[Key, dict[str, Any]]:
    """Every window that holds a reading, with the columns of ``lake/window_statistics`` (without ``written_at``).

    Args:
        rows: readings that are not late, with the columns that ``domain.windows.compute`` needs. ``None`` and NaN mean
            "not measured".
        intervals_s: device -> seconds between its reports, one second for the others.
    """
    length, slide = timedelta(seconds=length_s), timedelta(seconds=slide_s)
    members: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        for start in starts(row["event_time"], length, slide):
            members[row["device_id"], start].append(row)
    return {key: _window(key, members[key], length, (intervals_s or {}).get(key[0], 1.0)) for key in sorted(members)}


def starts(event_time: datetime, length: timedelta, slide: timedelta) -> Iterator[datetime]:
    """The starts of the windows [start, start + length) that hold this moment."""
    start = EPOCH + (event_time - EPOCH) // slide * slide
    while start + length > event_time:
        yield start
        start -= slide


def _window(key: Key, members: list[Row], length: timedelta, interval_s: float) -> dict[str, Any]:
    device_id, start = key
    distinct: list[Row] = []
    seen = set()
    for row in sorted(members, key=in_order):
        if (row["event_time"], row["sequence"]) not in seen:
            seen.add((row["event_time"], row["sequence"]))
            distinct.append(row)
    count = len(distinct)
    labels = [row["fire_alarm"] for row in distinct if row["fire_alarm"] is not None]
    measured = {
        name: [
            ((row["event_time"] - start) // MICROSECOND, float(row[name]))
            for row in distinct
            if row[name] is not None and not math.isnan(row[name])
        ]
        for name in SENSOR_NAMES
    }
    first, last = distinct[0]["event_time"], distinct[-1]["event_time"]
    answer: dict[str, Any] = {
        "event_date": start.date(),
        "device_id": device_id,
        "window_start": start,
        "window_end": start + length,
        "revision": len(members),
        "record_count": count,
        "duplicate_count": len(members) - count,
        "label_count": len(labels),
        "fire_label_count": sum(bool(label) for label in labels),
        "first_event_time": first,
        "last_event_time": last,
        **_quality(distinct, measured, start + length - last, length, interval_s),
    }
    for name in SENSOR_NAMES:
        for statistic, value in statistics(measured[name]).items():
            answer[f"{name}_{statistic}"] = value
        answer[f"{name}_missing"] = count - len(measured[name])
    answer["level"], answer["level_sensor"] = _level({name: answer[f"{name}_mean"] for name in SENSOR_NAMES})
    return answer


def statistics(measured: Sequence[tuple[int, float]]) -> dict[str, float | None]:
    """Of one sensor, but for ``missing``.

    Args:
        measured: (microseconds after the window's start, value), in order.
    """
    names = [
        "mean",
        "std",
        "variance",
        "min",
        "max",
        "median",
        "p05",
        "p25",
        "p75",
        "p95",
        "range",
        "first",
        "last",
        "slope_per_min",
    ]
    answer: dict[str, float | None] = dict.fromkeys((*names, "slope_per_min"))
    if not measured:
        return answer
    times = [moment for moment, _ in measured]
    values = [value for _, value in measured]
    n = len(values)
    # value = whole / scale, exactly.
    scale = max(value.as_integer_ratio()[1] for value in values)
    wholes = [value.as_integer_ratio()[0] * (scale // value.as_integer_ratio()[1]) for value in values]
    sum_x, sum_t = sum(wholes), sum(times)
    answer["mean"] = float(Fraction(sum_x, n * scale))
    if n > 1:
        variance = Fraction(n * sum(x * x for x in wholes) - sum_x * sum_x, n * (n - 1) * scale * scale)
        answer["variance"], answer["std"] = float(variance), math.sqrt(variance)
    spread = n * sum(t * t for t in times) - sum_t * sum_t
    if spread:
        shared = n * sum(t * x for t, x in zip(times, wholes, strict=True)) - sum_t * sum_x
        answer["slope_per_min"] = float(Fraction(shared * 60_000_000, spread * scale))
    ascending = sorted(values)
    for name, share in (("p05", 5), ("p25", 25), ("median", 50), ("p75", 75), ("p95", 95)):
        place = Fraction((n - 1) * share, 100)
        below, above = Fraction(ascending[math.floor(place)]), Fraction(ascending[math.ceil(place)])
        answer[name] = float(below + (place - math.floor(place)) * (above - below))
    answer["min"], answer["max"] = ascending[0], ascending[-1]
    answer["range"] = float(Fraction(ascending[-1]) - Fraction(ascending[0]))
    answer["first"], answer["last"] = values[0], values[-1]
    return answer


def _quality(
    distinct: Sequence[Row],
    measured: Mapping[str, Sequence[tuple[int, float]]],
    before_end: timedelta,
    length: timedelta,
    interval_s: float,
) -> dict[str, Any]:
    count = len(distinct)
    length_us, interval_us = length // MICROSECOND, max(1, round(interval_s * 1e6))
    expected = max(1, length_us // interval_us)
    values = sum(len(each) for each in measured.values())
    fitted = [name for name in SENSOR_NAMES if measured[name]]
    constant = all(len({value for _, value in measured[name]}) == 1 for name in fitted)
    restless = [name for name in RESTLESS if len(measured[name]) >= 60]
    if constant and len(restless) >= 2:
        implausible = values
    else:
        implausible = sum(
            row["pm1_0"] is not None and row["pm2_5"] is not None and row["pm1_0"] > row["pm2_5"] * (1 + 0.01) + 0.01
            for row in distinct
        )
    completeness = min(Fraction(1), Fraction(count, expected))
    validity = Fraction(values, count * len(fitted)) if fitted else Fraction(1)
    plausibility = 1 - Fraction(implausible, values) if values else Fraction(1)
    stale = Fraction(before_end // MICROSECOND - interval_us, length_us)
    freshness = 1 - min(Fraction(1), max(Fraction(0), stale))
    return {
        "expected_count": expected,
        "completeness": float(completeness),
        "quality_score": float(100 * completeness * validity * plausibility * freshness),
        "validity": float(validity),
        "plausibility": float(plausibility),
        "freshness": float(freshness),
    }


def _levels_of(sensor: str, mean: float) -> int:
    for level in LEVELS:
        if level.sensor == sensor:
            rising = sum(mean >= limit for limit in level.high)
            falling = 0 if level.low is None else sum(mean <= limit for limit in level.low)
            return max(rising, falling)
    return 0


def _level(means: Mapping[str, float | None]) -> tuple[int, str | None]:
    of_sensor = {name: 0 if mean is None else _levels_of(name, mean) for name, mean in means.items()}
    highest = max(of_sensor.values())
    return highest, next((name for name in SENSOR_NAMES if of_sensor[name] == highest > 0), None)


# -- comparing ---------------------------------------------------------------------------------------------------


def close(one: float | None, other: float | None) -> bool:
    """Equal to 1e-9 x max(1, |x|); nothing equals nothing only."""
    if one is None or other is None:
        return one is None and other is None
    return abs(one - other) <= TOLERANCE * max(1.0, abs(other))


def _slope_close(row: Row, want: Row, sensor: str) -> bool:
    """As ``close``; where the readings lie within a minute, relative to their range in that time.

    A slope is a difference of values by one of times, so that of readings a millisecond apart the last digit of a value
    is a slope of its own.
    """
    column = f"{sensor}_slope_per_min"
    found, value = row[column], want[column]
    if found is None or value is None:
        return found is None and value is None
    minutes = (want["last_event_time"] - want["first_event_time"]) / timedelta(minutes=1)
    extent = max(abs(want[f"{sensor}_min"]), abs(want[f"{sensor}_max"]))
    scale = max(1.0, abs(value), extent / minutes if 0 < minutes < 1 else 0.0)
    return bool(abs(found - value) <= TOLERANCE * scale)


def differences(found: Iterable[Row], expected: Mapping[Key, Row], *, most: int = 20) -> list[str]:
    """What differs, in words; an empty list where the windows are the same.

    Args:
        found: rows of the windows, each window once.
        expected: what ``windows`` says.
        most: so many lines at most.
    """
    lines: list[str] = []
    rows: dict[Key, Row] = {}
    for row in found:
        key = (row["device_id"], row["window_start"])
        if key in rows:
            lines.append(f"{_name(key)}: twice")
        rows[key] = row
    lines += [f"{_name(key)}: missing" for key in expected if key not in rows]
    lines += [f"{_name(key)}: holds no reading" for key in rows if key not in expected]
    for key, want in expected.items():
        row = rows.get(key)
        if row is None or len(lines) >= most:
            continue
        for column, value in want.items():
            if column in ("level", "level_sensor"):
                continue
            if column.endswith(_EXACT_ENDS):
                same = row[column] == value
            elif column.endswith("_slope_per_min"):
                same = _slope_close(row, want, column.removesuffix("_slope_per_min"))
            else:
                same = close(row[column], value)
            if not same:
                lines.append(f"{_name(key)}: {column} is {row[column]!r} instead of {value!r}")
        if not _level_agrees(row, want):
            lines.append(f"{_name(key)}: level is {row['level']} of {row['level_sensor']}, not {want['level']}")
    return lines[:most]


def _name(key: Key) -> str:
    return f"{key[0]} {key[1]:%Y-%m-%d %H:%M:%S}"


def _level_agrees(row: Row, want: Row) -> bool:
    """Whether the level follows from the means, where a mean may be off by the tolerance and so lie beyond a limit."""
    if (row["level"], row["level_sensor"]) == (want["level"], want["level_sensor"]):
        return True
    near = {
        name: {_levels_of(name, mean + sign * TOLERANCE * max(1.0, abs(mean))) for sign in (-1, 0, 1)}
        for name in SENSOR_NAMES
        if (mean := want[f"{name}_mean"]) is not None
    }
    level, sensor = row["level"], row["level_sensor"]
    if any(min(of_sensor) > level for of_sensor in near.values()):
        return False
    if sensor is None:
        return bool(level == 0)
    before = SENSOR_NAMES[: SENSOR_NAMES.index(sensor)]
    return level in near.get(sensor, ()) and not any(min(near[name]) >= level for name in before if name in near)


# -- when --------------------------------------------------------------------------------------------------------


def lateness(rows: Sequence[Row], allowed: timedelta = ALLOWED_LATENESS) -> list[bool]:
    """Which readings are late: more than ``allowed`` behind their device's greatest event time at lower offsets.

    Args:
        rows: with topic_id, partition, offset, device_id, event_time; in any order.
    """
    return [
        any(
            other["event_time"] - row["event_time"] > allowed
            for other in rows
            if other["offset"] < row["offset"]
            and all(other[name] == row[name] for name in ("topic_id", "partition", "device_id"))
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Landing:
    """What has happened at one moment of the engine.

    Attributes:
        rows: readings that have landed since the moment before, with ``late`` and ``append_time`` besides the columns
            that ``windows`` needs.
        now: by which silence is judged; ``None``: by nothing, no device is silent.
        waiting: devices of which readings stand in the topic that have not landed; ``None``: it may be any of them.
    """

    rows: Sequence[Row]
    now: datetime | None = None
    waiting: Collection[str] | None = field(default_factory=tuple)


def emissions(landings: Iterable[Landing], *, length_s: int = 300, slide_s: int = 60) -> list[dict[Key, int]]:
    """For each moment the windows to be appended, with their revisions.

    A window that holds readings is due when its end is not after its device's clock (the greatest event time of all
    its readings so far), when its device is silent (its newest reading was appended more than ten minutes ago and none
    waits), or when it was appended before. It is appended where its revision has grown.
    """
    length, slide = timedelta(seconds=length_s), timedelta(seconds=slide_s)
    so_far: list[Row] = []
    appended: dict[Key, int] = {}
    answer = []
    for landing in landings:
        so_far += landing.rows
        revisions: dict[Key, int] = defaultdict(int)
        for row in so_far:
            if not row["late"]:
                for start in starts(row["event_time"], length, slide):
                    revisions[row["device_id"], start] += 1
        now: dict[Key, int] = {}
        for key, revision in revisions.items():
            device_id, start = key
            own = [row for row in so_far if row["device_id"] == device_id]
            passed = start + length <= max(row["event_time"] for row in own)
            silent = (
                landing.now is not None
                and landing.waiting is not None
                and device_id not in landing.waiting
                and landing.now - max(row["append_time"] for row in own) > SILENCE
            )
            if (passed or silent or key in appended) and revision > appended.get(key, 0):
                now[key] = revision
        appended.update(now)
        answer.append(now)
    return answer
