"""Readings that are in the lake twice: found by marks of what was measured, then compared reading by reading.

Belongs here: marks -> stretches that look alike, two stretches -> what of them is equal. Does not: how marks come about
(``domain.history_summary``), reading the stretches (``adapters.history_tables``).

A recording that is played again has other times, may go by another name, may lie across midnight, and somebody may have
put another temperature into it. So nothing but the other sensors' values is compared, in their order. Marks only say
where to look: what is reported was counted on the readings themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.history_summary import (
    FAMILIES,
    MARK_ROWS,
    anchors,
    family_matrix,
    row_hashes,
    run_hashes,
)
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES

#: Shorter stretches repeat by chance (a device that says the same thing a few times).
LEAST_REPEATED_ROWS: Final = 60
#: Marks of one stretch lie no further apart than this, in the first as in the copy; for a device that reports once a
#: minute it is 720 readings.
STRETCH_GAP: Final = timedelta(hours=12)
#: The first may step back by so much (its order is not quite the copy's) before it counts as played from its start.
LARGEST_STEP_BACK: Final = timedelta(minutes=10)
#: Sensors that must agree, and move, before two stretches are called a copy.
LEAST_AGREEING: Final = 3
#: A sensor agrees when it is equal in this share of the readings.
AGREEING_SHARE: Final = 0.99
#: Ways in which two stretches may be laid beside each other; each dropped reading costs one.
MOST_SHIFTS: Final = 64

_Rows = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


def candidates(anchors: pl.DataFrame, coarseness: int = 1) -> pl.DataFrame:
    """Stretches of readings whose marks have been seen before, the best supported first.

    Each mark is laid beside its earliest sighting, so that of a recording that was played five times the later four
    repeat the first.

    Args:
        anchors: ``history_summary.ANCHORS_SCHEMA``.
        coarseness: the anchors are one in so many of those there were.

    Returns:
        ``first_source, first_device, first_from, first_to``, the same of ``copy_``, and ``marks``, how many agree. The
        times are those of anchors: the stretches may begin earlier and end later.
    """
    seen = anchors.filter(pl.len().over("family", "mark") > 1).sort("event_time", "source", "device_id")
    places = seen.select(
        "family",
        "mark",
        copy_source="source",
        copy_device="device_id",
        copy_time="event_time",
        **{
            f"first_{short}": pl.col(name).first().over("family", "mark")
            for short, name in (("source", "source"), ("device", "device_id"), ("time", "event_time"))
        },
    )
    devices = ("first_source", "first_device", "copy_source", "copy_device")
    lag = pl.col("copy_time") - pl.col("first_time")
    itself = (
        (pl.col("first_device") == pl.col("copy_device"))
        & (pl.col("first_source") == pl.col("copy_source"))
        & (lag == pl.duration())
    )
    pairs = places.filter(~itself).sort(*devices, "copy_time", "first_time")
    breaks = (
        pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in devices)
        | (pl.col("copy_time").diff() > STRETCH_GAP * coarseness)
        | ~pl.col("first_time").diff().is_between(-LARGEST_STEP_BACK, STRETCH_GAP * coarseness)
    )
    stretches = (
        pairs.with_columns(stretch=breaks.fill_null(True).cum_sum())
        .group_by("stretch")
        .agg(
            *(pl.first(name) for name in devices),
            *(pl.col(f"{which}_time").min().alias(f"{which}_from") for which in ("first", "copy")),
            *(pl.col(f"{which}_time").max().alias(f"{which}_to") for which in ("first", "copy")),
            pl.len().cast(pl.Int64).alias("marks"),
        )
        .drop("stretch")
    )
    return stretches.sort("marks", *devices, "copy_from", descending=[True, *(False for _ in devices), False])


@dataclass(frozen=True)
class Copy:
    """A stretch of readings that repeats an earlier one, as counted.

    Attributes:
        first_device, first_from, first_to: whose readings came first in event time, and from when to when.
        copy_device, copy_from, copy_to: whose are equal to them.
        rows: how many readings were found equal in at least one family of sensors, in runs.
        lag: from a reading to its copy, the least and the greatest.
        equal: sensor -> in how many of the rows both have the same value.
        measured: sensor -> in how many of the rows either has one.
        labels_equal: rows with the same label, ``None`` where none has one.
        whole: ``False`` where the stretches are longer than what was compared.
    """

    first_source: str
    first_device: str
    first_from: datetime
    first_to: datetime
    copy_source: str
    copy_device: str
    copy_from: datetime
    copy_to: datetime
    rows: int
    lag: tuple[timedelta, timedelta]
    equal: Mapping[str, int]
    measured: Mapping[str, int]
    labels_equal: int | None
    whole: bool

    @property
    def agreeing(self) -> tuple[str, ...]:
        """Sensors equal in (nearly) all readings, by ``AGREEING_SHARE``."""
        return tuple(name for name, n in self.measured.items() if n and self.equal[name] >= AGREEING_SHARE * n)

    @property
    def differing(self) -> tuple[str, ...]:
        """Sensors that were measured and are not equal."""
        return tuple(name for name, n in self.measured.items() if n and name not in self.agreeing)

    def covers(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of ``candidates`` is a piece of this copy."""
        return (
            (self.first_source, self.first_device) == (row["first_source"], row["first_device"])
            and (self.copy_source, self.copy_device) == (row["copy_source"], row["copy_device"])
            and self.copy_from <= row["copy_from"]
            and self.copy_to >= row["copy_to"]
        )


def compare(first: pl.DataFrame, copy: pl.DataFrame, likely: Mapping[str, Any], *, whole: bool = True) -> Copy | None:
    """Lays the readings of one stretch beside those of another, and counts what is equal.

    Args:
        first, copy: columns ``source, device_id, event_time, fire_alarm`` and the sensors, of one device each, in
            their order, with what is around the stretches. The two may overlap.
        likely: the row of ``candidates``. How the two lie beside each other is found within its times; what is equal
            around them is counted too.
        whole: see ``Copy``.

    Returns:
        ``None`` where they are no copy: fewer than ``LEAST_REPEATED_ROWS`` rows, or fewer than ``LEAST_AGREEING``
        sensors that agree and move.
    """
    sides = [frame.select(SENSOR_NAMES).to_numpy().astype(np.float64, copy=False) for frame in (first, copy)]
    hashes = [[row_hashes(family_matrix(side, family)) for side in sides] for family in FAMILIES]
    times = [frame["event_time"].to_physical().to_numpy() for frame in (first, copy)]
    itself = all(likely[f"first_{name}"] == likely[f"copy_{name}"] for name in ("source", "device"))
    cores = [
        frame.select(pl.col("event_time").is_between(likely[f"{which}_from"], likely[f"{which}_to"])).to_series()
        for frame, which in ((first, "first"), (copy, "copy"))
    ]
    shifts = _shifts(hashes, [np.flatnonzero(core.to_numpy()) for core in cores])
    here, there = _aligned(hashes, times, shifts, itself)
    if itself and len(here):
        # What comes after the copy began is a copy itself, of the same first.
        before = times[0][here] < times[1][there].min()
        here, there = here[before], there[before]
    if len(here) < LEAST_REPEATED_ROWS:
        return None
    left, right = first[here], copy[there]
    measured = {name: int((left[name].is_not_null() | right[name].is_not_null()).sum()) for name in ALL_SENSOR_NAMES}
    equal = {name: int((left[name] == right[name]).sum()) for name in ALL_SENSOR_NAMES}
    lags = right["event_time"] - left["event_time"]
    labelled = bool(left["fire_alarm"].is_not_null().any() or right["fire_alarm"].is_not_null().any())
    shortest, longest = lags.min(), lags.max()
    found = Copy(
        *_span(left),
        *_span(right),
        rows=len(here),
        lag=(shortest, longest),  # type: ignore[arg-type] # durations: there are rows
        equal=equal,
        measured=measured,
        labels_equal=int(left["fire_alarm"].eq_missing(right["fire_alarm"]).sum()) if labelled else None,
        whole=whole,
    )
    moving = [name for name in found.agreeing if left[name].n_unique() > MARK_ROWS // 2]
    return found if len(moving) >= LEAST_AGREEING else None


def copies_among(readings: pl.DataFrame, most: int) -> tuple[list[Copy], int]:
    """The copies among readings that are in memory as a whole.

    Args:
        readings: ``source, device_id, event_time, fire_alarm`` and the sensors; each device's in their order, one
            device after the other.
        most: stretches to compare at most, the best supported first.

    Returns:
        The copies, and how many stretches look alike and were not compared.
    """
    devices = readings.partition_by("source", "device_id", as_dict=True)

    def compared(row: Mapping[str, Any]) -> Copy | None:
        first, later = (devices[row[f"{which}_source"], row[f"{which}_device"]] for which in ("first", "copy"))
        return compare(first, later, row)

    return confirmed(candidates(anchors(readings)), compared, most)


def confirmed(
    likely: pl.DataFrame, compared: Callable[[Mapping[str, Any]], Copy | None], most: int
) -> tuple[list[Copy], int]:
    """The copies among stretches that look alike.

    Args:
        likely: what ``candidates`` gave.
        compared: compares one of them reading by reading.
        most: stretches to compare at most, the best supported first.

    Returns:
        The copies, and how many stretches no copy that was found covers, and that were not compared.
    """
    found: list[Copy] = []
    left = 0
    for row in likely.iter_rows(named=True):
        if any(copy.covers(row) for copy in found):
            continue
        if most == 0:
            left += 1
            continue
        most -= 1
        copy = compared(row)
        found += [] if copy is None else [copy]
    return found, left


def _span(rows: pl.DataFrame) -> tuple[str, str, datetime, datetime]:
    source, device = rows.select("source", "device_id").row(0)
    begin, end = rows["event_time"].min(), rows["event_time"].max()
    return source, device, begin, end  # type: ignore[return-value] # times: there are rows


def _aligned(
    hashes: list[list[npt.NDArray[np.uint64]]], times: list[_Rows], shifts: list[int], itself: bool
) -> tuple[_Rows, _Rows]:
    """Rows of the first and of the copy that belong together, each at most once."""
    taken_here = np.zeros(len(times[0]), dtype=np.bool_)
    taken_there = np.zeros(len(times[1]), dtype=np.bool_)
    here, there = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for shift in shifts:
        start, stop = max(0, -shift), min(len(times[0]), len(times[1]) - shift)
        rows = np.arange(start, stop)
        if not len(rows):
            continue
        same = np.zeros(len(rows), dtype=np.bool_)
        for first, copy in hashes:
            same |= first[rows] == copy[rows + shift]
        if itself:
            same &= times[0][rows] != times[1][rows + shift]
        rows = rows[_in_runs(same, MARK_ROWS)]
        rows = rows[~taken_here[rows] & ~taken_there[rows + shift]]
        taken_here[rows] = taken_there[rows + shift] = True
        here.append(rows)
        there.append(rows + shift)
    left, right = np.concatenate(here), np.concatenate(there)
    order = np.argsort(left, kind="stable")
    return left[order], right[order]


def _shifts(hashes: list[list[npt.NDArray[np.uint64]]], cores: list[_Rows]) -> list[int]:
    """By how many rows the copy stands after the first, the most frequent shift first; ``cores`` are rows of each."""
    votes: dict[int, int] = {}
    for first, copy in hashes:
        runs = []
        for side, core in zip((first, copy), cores, strict=True):
            starts = core[core <= len(side) - MARK_ROWS]
            marks, telling = run_hashes(side, starts)
            frame = pl.DataFrame({"mark": marks[telling], "row": starts[telling]})
            runs.append(frame.unique("mark", keep="first", maintain_order=True))
        both = runs[0].join(runs[1], on="mark", suffix="_copy")
        counts = both.select((pl.col("row_copy") - pl.col("row")).alias("shift")).group_by("shift").len()
        for shift, count in counts.iter_rows():
            votes[shift] = votes.get(shift, 0) + count
    return sorted(votes, key=lambda shift: (-votes[shift], abs(shift), shift))[:MOST_SHIFTS]


def _in_runs(flags: _Flags, least: int) -> _Flags:
    """The flags that stand in a run of at least ``least``."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    kept = np.zeros(len(flags), dtype=np.bool_)
    for begin, end in edges.reshape(-1, 2):
        if end - begin >= least:
            kept[begin:end] = True
    return kept
