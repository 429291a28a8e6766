"""What is kept of one part of one day: hours of each device, sums of each source, marks by which copies are found.

Belongs here: a part's readings -> small rows that can be put beside those of any other part of any day. Does not: which
parts there are and how they are read (``adapters.history_tables``), what the rows say once they are together
(``domain.history`` and its siblings).

A part holds some devices of one UTC day, each of them whole, so that medians are exact, repeats of a reading are seen,
and consecutive readings stand side by side. Everything that leaves it is a sum, an extreme, a count or an hour's row.

Marks: content-defined sampling. A reading is an anchor when a hash of what it measured has certain bits, whenever it
was and wherever it stands; the anchor's mark is a hash of it and the readings after it. Equal readings give equal
marks, so a copy shows as the same marks at another device or time, wherever midnight falls. There are two marks, of
sensors that have none in common (``FAMILIES``) and neither with temperature or time: a copy in which one channel was
changed keeps the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Final
from zlib import crc32

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES

#: Raised when any of the rows below would come out otherwise: stored ones are then made anew.
SUMMARY_VERSION: Final = 1

#: Devices are dealt to so many buckets by a hash of their id, so that one bucket's hours are read without the rest.
BUCKETS: Final = 256

#: Sensors whose readings make a mark. Temperature is in none.
FAMILIES: Final[tuple[tuple[str, ...], ...]] = (
    ("tvoc_ppb", "eco2_ppm", "raw_h2", "raw_ethanol"),
    ("humidity_pct", "pressure_hpa", "pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5"),
)
#: One reading in so many is an anchor.
ANCHOR_EVERY: Final = 64
#: Readings that a mark covers, the anchor the first of them.
MARK_ROWS: Final = 16
#: Fewer different readings among them say nothing: a sensor that stands still repeats itself without being a copy.
LEAST_DIFFERENT: Final = 8

#: A label is doubtful where fire is claimed in such clean air, or none in such smoke, in ug/m3 of PM2.5.
CLEAN_PM2_5: Final = 10.0
SMOKY_PM2_5: Final = 100.0

#: Sums of squares lose digits where the mean is far from zero, so each sensor is counted from a usual value.
ORIGIN: Final[Mapping[str, float]] = {
    "temperature_c": 20.0,
    "humidity_pct": 50.0,
    "eco2_ppm": 400.0,
    "raw_h2": 12_900.0,
    "raw_ethanol": 19_700.0,
    "pressure_hpa": 980.0,
}
PAIRS: Final = tuple(combinations_with_replacement(SENSOR_NAMES, 2))

_TIME = pl.Datetime("us", "UTC")
#: Columns of a part's readings.
COLUMNS: Final = (
    *("device_id", "source", "event_time", "sequence", "topic_id", "partition", "offset", "late", "fire_alarm"),
    *ALL_SENSOR_NAMES,
)
_IDENTITY = ("source", "device_id", "event_time", "sequence")

HOURS_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "source": pl.String(),
    "device_id": pl.String(),
    "bucket": pl.Int16(),
    "hour": _TIME,
    "local_date": pl.Date(),
    "weekday": pl.Int8(),
    "local_hour": pl.Int8(),
    "rows": pl.Int64(),
    "fires": pl.Int64(),
    **{
        f"{name}_{what}": pl.Int64() if what == "n" else pl.Float64()
        for name in ALL_SENSOR_NAMES
        for what in ("n", "sum", "min", "max", "median")
    },
}
DAYS_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "source": pl.String(),
    "device_id": pl.String(),
    "bucket": pl.Int16(),
    **dict.fromkeys(
        ("rows", "duplicates", "late", "labelled", "fires", "fires_in_clean_air", "smoke_without_fire"), pl.Int64()
    ),
    "first_event": _TIME,
    "last_event": _TIME,
    **{
        f"{name}_{what}": pl.Int64() if what == "steps" else pl.Float64()
        for name in ALL_SENSOR_NAMES
        for what in ("steps", "step_sum", "bend_sum")
    },
}
MOMENTS_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "source": pl.String(),
    "n": pl.Int64(),
    **{f"s_{name}": pl.Float64() for name in SENSOR_NAMES},
    **{f"p_{a}_{b}": pl.Float64() for a, b in PAIRS},
    **{f"w_{a}_{b}": pl.Float64() for a, b in PAIRS},
}
ANCHORS_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "source": pl.String(),
    "device_id": pl.String(),
    "event_time": _TIME,
    "family": pl.Int8(),
    "mark": pl.Int64(),
}


@dataclass(frozen=True, slots=True)
class PartSummary:
    """What is kept of a part.

    Attributes:
        hours: ``HOURS_SCHEMA``: a row for each source, device and UTC hour (two where a local hour begins within it).
        days: ``DAYS_SCHEMA``: a row for each source and device. ``step_sum`` and ``bend_sum`` are of the absolute first
            and second differences between consecutive readings.
        moments: ``MOMENTS_SCHEMA``: a row for each source: sums ``s_`` and sums of products ``p_`` of the readings in
            which all twelve sensors are, counted from ``ORIGIN``; ``w_`` are sums of products within each device.
        anchors: ``ANCHORS_SCHEMA``.
    """

    hours: pl.DataFrame
    days: pl.DataFrame
    moments: pl.DataFrame
    anchors: pl.DataFrame


def bucket_of(device_id: str) -> int:
    """The device's bucket, 0 to ``BUCKETS - 1``; the same everywhere and for ever."""
    return crc32(device_id.encode()) % BUCKETS


def in_order(readings: pl.DataFrame) -> pl.DataFrame:
    """The readings of each source and device in their order, without those that repeat an earlier one.

    The order is that of event time, sequence, topic id, partition, offset; a repeat has the same device, event time and
    sequence.
    """
    # Numbers in place of the texts, and places in place of whole rows: a fifth of the time.
    keys = readings.select(
        pl.struct("source", "device_id").rank("dense").alias("device"),
        *("event_time", "sequence"),
        pl.col("topic_id").rank("dense"),
        *("partition", "offset"),
    )
    ordered = readings[keys.select(pl.arg_sort_by(keys.columns, nulls_last=False)).to_series()]
    # Repeats stand beside each other now, which is cheaper to see than with a table of all that have been.
    same = [pl.col(name).eq_missing(pl.col(name).shift()) for name in _IDENTITY]
    return ordered.filter((pl.int_range(pl.len()) == 0) | ~pl.all_horizontal(same))


def summarise(readings: pl.DataFrame, zone: str = "UTC") -> PartSummary:
    """The summary of one part.

    Args:
        readings: ``COLUMNS``, of one UTC day, in any order; each device that occurs, as a whole.
        zone: of the hours and weekdays, such as ``Europe/Vienna``.
    """
    stored = readings.group_by("source", "device_id").agg(pl.len().cast(pl.Int64).alias("stored"))
    rows = in_order(readings)
    matrix = rows.select(SENSOR_NAMES).to_numpy().astype(np.float64, copy=False)
    return PartSummary(
        hours=_hours(rows, zone),
        days=_days(rows, stored),
        moments=_moments(rows, matrix),
        anchors=_anchors(rows, matrix),
    )


def _with_bucket(frame: pl.DataFrame) -> pl.DataFrame:
    devices = frame["device_id"].unique().to_list()
    buckets = [bucket_of(device) for device in devices]
    return frame.with_columns(bucket=pl.col("device_id").replace_strict(devices, buckets, return_dtype=pl.Int16))


def _hours(rows: pl.DataFrame, zone: str) -> pl.DataFrame:
    local = pl.col("event_time").dt.convert_time_zone(zone)
    hours = rows.group_by(
        "source",
        "device_id",
        pl.col("event_time").dt.truncate("1h").alias("hour"),
        local.dt.date().alias("local_date"),
        local.dt.weekday().alias("weekday"),
        local.dt.hour().alias("local_hour"),
    ).agg(
        pl.len().cast(pl.Int64).alias("rows"),
        pl.col("fire_alarm").fill_null(False).sum().cast(pl.Int64).alias("fires"),
        *(pl.col(name).count().cast(pl.Int64).alias(f"{name}_n") for name in ALL_SENSOR_NAMES),
        *(pl.col(name).sum().alias(f"{name}_sum") for name in ALL_SENSOR_NAMES),
        *(pl.col(name).min().alias(f"{name}_min") for name in ALL_SENSOR_NAMES),
        *(pl.col(name).max().alias(f"{name}_max") for name in ALL_SENSOR_NAMES),
        *(pl.col(name).median().alias(f"{name}_median") for name in ALL_SENSOR_NAMES),
    )
    return _shaped(_with_bucket(hours), HOURS_SCHEMA).sort("bucket", "source", "device_id", "hour", "local_hour")


def _days(rows: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    fire, smoke = pl.col("fire_alarm"), pl.col("pm2_5")
    days = rows.group_by("source", "device_id").agg(
        pl.len().cast(pl.Int64).alias("rows"),
        pl.col("late").sum().cast(pl.Int64),
        fire.count().cast(pl.Int64).alias("labelled"),
        fire.fill_null(False).sum().cast(pl.Int64).alias("fires"),
        (fire & (smoke <= CLEAN_PM2_5)).sum().cast(pl.Int64).alias("fires_in_clean_air"),
        (~fire & (smoke > SMOKY_PM2_5)).sum().cast(pl.Int64).alias("smoke_without_fire"),
        pl.col("event_time").min().alias("first_event"),
        pl.col("event_time").max().alias("last_event"),
        *(expr for name in ALL_SENSOR_NAMES for expr in steps_and_bends(name)),
    )
    joined = days.join(stored, on=["source", "device_id"], nulls_equal=True)
    counted = joined.with_columns(duplicates=pl.col("stored") - pl.col("rows"))
    return _shaped(_with_bucket(counted), DAYS_SCHEMA).sort("bucket", "source", "device_id")


def steps_and_bends(name: str) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Of one sensor's readings in their order: ``_steps``, how many consecutive pairs there are, and ``_step_sum`` and
    ``_bend_sum``, the sums of the absolute first and second differences, in the sensor's unit.
    """
    step = pl.col(name).diff()
    return (
        step.count().cast(pl.Int64).alias(f"{name}_steps"),
        step.abs().sum().alias(f"{name}_step_sum"),
        step.diff().abs().sum().alias(f"{name}_bend_sum"),
    )


def _shaped(frame: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    return frame.select(pl.col(name).cast(kind) for name, kind in schema.items())


# -- moments -----------------------------------------------------------------------------------------------------


def _moments(rows: pl.DataFrame, matrix: npt.NDArray[np.float64]) -> pl.DataFrame:
    whole = np.flatnonzero(~np.isnan(matrix).any(axis=1))
    origin = np.array([ORIGIN.get(name, 0.0) for name in SENSOR_NAMES])
    found: dict[str, tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}
    for source, first, last in _devices(rows):
        shifted = matrix[whole[np.searchsorted(whole, first) : np.searchsorted(whole, last)]] - origin
        if not len(shifted):
            continue
        centred = shifted - shifted.mean(axis=0)
        n, sums, products, within = found.get(source, (0, np.zeros(12), np.zeros((12, 12)), np.zeros((12, 12))))
        found[source] = (
            n + len(shifted),
            sums + shifted.sum(axis=0),
            products + shifted.T @ shifted,
            within + centred.T @ centred,
        )
    places = [(SENSOR_NAMES.index(a), SENSOR_NAMES.index(b)) for a, b in PAIRS]
    records = [
        (source, n, *sums, *(products[place] for place in places), *(within[place] for place in places))
        for source, (n, sums, products, within) in sorted(found.items())
    ]
    return pl.DataFrame(records, schema=dict(MOMENTS_SCHEMA), orient="row")


def _devices(rows: pl.DataFrame) -> list[tuple[str, int, int]]:
    """(source, first row, row after the last) of each device, of rows that are in order."""
    if rows.is_empty():
        return []
    spans = rows.select(pl.struct("source", "device_id").rle_id().alias("run"), "source", pl.row_index("row"))
    grouped = spans.group_by("run", maintain_order=True).agg(pl.first("source"), pl.min("row"), pl.len())
    return [(source, row, row + length) for _, source, row, length in grouped.iter_rows()]


# -- marks -------------------------------------------------------------------------------------------------------

_Hashes = npt.NDArray[np.uint64]
_ODD, _TURN = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_NAN_BITS = np.float64("nan").view(np.uint64)


def row_hashes(matrix: npt.NDArray[np.float64]) -> _Hashes:
    """A hash of each row by value: NaN is one value, and so is zero whatever its sign. float64 ``[n, k]``."""
    hashes = np.full(len(matrix), _TURN, dtype=np.uint64)
    for place in range(matrix.shape[1]):
        column = matrix[:, place] + 0.0
        bits = np.where(np.isnan(column), _NAN_BITS, column.view(np.uint64))
        hashes = _mixed((hashes ^ bits) * _ODD)
    return hashes


def _mixed(values: _Hashes) -> _Hashes:
    values = (values ^ (values >> np.uint64(32))) * _TURN
    return np.asarray(values ^ (values >> np.uint64(29)))


def run_hashes(hashes: _Hashes, starts: npt.NDArray[np.int64]) -> tuple[_Hashes, npt.NDArray[np.bool_]]:
    """A hash of the ``MARK_ROWS`` rows from each start on, and whether enough of them differ.

    Args:
        hashes: of the rows.
        starts: each at most ``len(hashes) - MARK_ROWS``.
    """
    runs = hashes[starts[:, None] + np.arange(MARK_ROWS)]
    combined = np.zeros(len(starts), dtype=np.uint64)
    for place in range(MARK_ROWS):
        combined = _mixed((combined ^ runs[:, place]) * _ODD)
    different = (np.diff(np.sort(runs, axis=1), axis=1) != 0).sum(axis=1) + 1
    return combined, different >= LEAST_DIFFERENT


def family_matrix(matrix: npt.NDArray[np.float64], family: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """The columns of a family out of those of ``SENSOR_NAMES``."""
    return matrix[:, [SENSOR_NAMES.index(name) for name in family]]


def anchors(rows: pl.DataFrame) -> pl.DataFrame:
    """The marks of readings: ``ANCHORS_SCHEMA``.

    Args:
        rows: ``source, device_id, event_time`` and the sensors; the readings of a device in their order, one after the
            other.
    """
    return _anchors(rows, rows.select(SENSOR_NAMES).to_numpy().astype(np.float64, copy=False))


def _anchors(rows: pl.DataFrame, matrix: npt.NDArray[np.float64]) -> pl.DataFrame:
    ends = np.zeros(len(matrix), dtype=np.int64)
    for _, first, last in _devices(rows):
        ends[first:last] = last
    frames = []
    for number, family in enumerate(FAMILIES):
        hashes = row_hashes(family_matrix(matrix, family))
        chosen = np.flatnonzero((hashes >> np.uint64(40)) % np.uint64(ANCHOR_EVERY) == 0)
        # A run that a device's last reading cuts off is not one.
        chosen = chosen[chosen + MARK_ROWS <= ends[chosen]]
        marks, telling = run_hashes(hashes, chosen)
        frames.append(
            rows[chosen[telling]]
            .select("source", "device_id", "event_time")
            .with_columns(family=pl.lit(number, pl.Int8), mark=pl.Series(marks[telling].view(np.int64), dtype=pl.Int64))
        )
    return _shaped(pl.concat(frames), ANCHORS_SCHEMA)
