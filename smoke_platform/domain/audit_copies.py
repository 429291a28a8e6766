"""Recordings that are there twice: row for row, or moved, stretched, rescaled and with noise put over them.

Belongs here: the findings of the family ``duplicates``, and which recordings are one piece of evidence. Does not: exact
copies themselves (``domain.history_copies``, which the weekly history uses too).

A near-copy has no equal reading, so it is found by its movement. Of each recording the steps from one mean of
``BLOCK_ROWS`` readings to the next are taken, for some sensors that sense different things, and of each step what the
steps before it did not foretell (an autoregression, fitted by least squares): what is left of independent recordings is
white noise, whatever slow habits their rooms share. Two recordings are laid beside each other at every shift (by
Fourier transform) and Pearson's r over what overlaps is read off. A copy has a high r in several sensors at one and the
same shift, also with another gain and offset, at twice or half the pace, and under noise as large as the sensor's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.audit_findings import Finding, named
from smoke_platform.domain.history_copies import Copy, copies_among
from smoke_platform.domain.history_summary import row_hashes
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES

#: Stretches that are compared row by row; a set with more copies is refused without counting them all.
MOST_COMPARED: Final = 60
#: Copies of a kind that are told one by one: a file that was replayed all night gives hundreds.
MOST_TOLD: Final = 10
#: One sensor for each thing that is sensed: those of one chip say the same and are no independent witnesses.
WITNESSES: Final = ("temperature_c", "humidity_pct", "raw_ethanol", "pressure_hpa", "pm2_5")
#: Long enough to average added noise, short enough that a recording of half an hour has steps to tell it by.
BLOCK_ROWS: Final = 8
#: Steps that overlap at least: with fewer, high values of r come by chance.
LEAST_STEPS: Final = 100
#: Copies under noise as large as the sensor's own have an r of 0.5 to 0.75; ...
LEAST_R: Final = 0.4
#: ... and r has to be so many times 1 / sqrt(steps), its spread between independent recordings: three sensors at once,
#: over all shifts of all pairs of 24 recordings, came to 5 where like fires lay upon each other.
LEAST_SPREADS: Final = 7.0
#: Sensors that must agree at one shift.
LEAST_WITNESSES: Final = 3
#: What is left of a step counts up to so many of its usual sizes, so that a single fire does not decide.
CLIP: Final = 3.0
#: Steps that the autoregression looks back.
LOOK_BACK: Final = 6
#: A witness that stands still in more than half of its steps is none.
LEAST_MOVING: Final = 0.5
#: Blocks of a recording that are looked at: 9 hours at 1 Hz.
MOST_BLOCKS: Final = 4096
#: Pairs of recordings that are laid beside each other: those of 78.
MOST_PAIRS: Final = 3003
#: The second recording played at so many times the first one's pace, as rows of a block; and where blocks begin.
_PACES: Final = ((1, 1), (2, 1), (1, 2))
_PHASES: Final = (0, BLOCK_ROWS // 2)
#: Equal readings of different recordings count as copied rows from this share of a recording on: chance makes fewer.
LEAST_COPIED_SHARE: Final = 0.005
#: A reading with fewer measured sensors is equal to others by chance.
LEAST_MEASURED: Final = 6

_Floats = npt.NDArray[np.float64]


@dataclass
class Duplicates:
    """What is there twice.

    Attributes:
        group: recording -> the recording whose evidence it is; its own name where it repeats none.
        limits: what was not compared, in sentences.
    """

    findings: list[Finding] = field(default_factory=list)
    group: dict[str, str] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)

    def join(self, one: str, other: str) -> None:
        """Makes two recordings one piece of evidence."""
        old, new = self.group[other], self.group[one]
        self.group = {name: new if group == old else group for name, group in self.group.items()}


def duplicates(frame: pl.DataFrame) -> Duplicates:
    """Copies of recordings, near-copies, and rows that several recordings share.

    Args:
        frame: ``recording, event_time, fire_alarm, place``, all sensors and optionally ``row_index``; each recording's
            rows one after the other, in order of time.
    """
    found = Duplicates(group={name: name for name in frame["recording"].unique().sort().to_list()})
    renamed = frame.select(
        "event_time", "fire_alarm", *ALL_SENSOR_NAMES, source=pl.lit("audit"), device_id=pl.col("recording")
    )
    copies, left = copies_among(renamed, MOST_COMPARED)
    if left:
        found.limits.append(f"{left:,} more stretches look like copies and were not compared.")
    for copy in copies:
        found.join(copy.first_device, copy.copy_device)
    alike = list(_near_copies(frame, found))
    for _, pair in alike:
        found.join(*pair)
    found.findings += _told([_copied(copy, frame) for copy in copies], "repeat others row for row")
    found.findings += _told([near for near, _ in alike], "move as others do")
    found.findings += _copied_rows(frame, found)
    return found


def _told(found: list[Finding], do: str) -> list[Finding]:
    """The first findings of a kind, and one in place of all the rest."""
    if len(found) <= MOST_TOLD:
        return found
    rest = found[MOST_TOLD:]
    names = tuple(sorted({finding.recordings[1] for finding in rest}))
    rows = sum(finding.rows for finding in rest)
    more = replace(
        rest[0],
        finding=f"{len(rest)} more stretches, of {named(names)}, {do}",
        evidence={"stretches": len(rest), "rows": rows},
        recordings=names,
        rows=rows,
    )
    return [*found[:MOST_TOLD], more]


# -- row for row -------------------------------------------------------------------------------------------------


def _copied(copy: Copy, frame: pl.DataFrame) -> Finding:
    itself = copy.first_device == copy.copy_device
    low, high = (lag.total_seconds() for lag in copy.lag)
    of_copy = frame.filter(pl.col("recording") == copy.copy_device).height
    differing = ["time", *copy.differing] if (low, high) != (0, 0) else list(copy.differing)
    what = "a part of itself" if itself else copy.first_device
    return Finding(
        "duplicates",
        "copied_recording",
        "blocking",
        f"{copy.copy_device} repeats {what} row for row: {copy.rows:,} readings are equal in all but "
        f"{' and '.join(differing) or 'the name'}",
        {
            "first": _place(frame, copy.first_device, copy.first_from, copy.first_to),
            "copy": _place(frame, copy.copy_device, copy.copy_from, copy.copy_to),
            "rows": copy.rows,
            "share_of_the_copy": copy.rows / of_copy,
            "labels_equal": copy.labels_equal if copy.labels_equal is not None else "unlabelled",
            "equal_in": list(copy.agreeing),
            "lag_s": low if low == high else [low, high],
        },
        "A copy is no second piece of evidence: with one half of it in training and the other in validation a model is "
        "asked what it has just been told.",
        (copy.first_device, copy.copy_device),
        copy.rows,
    )


def _place(frame: pl.DataFrame, recording: str, begin: datetime, end: datetime) -> str:
    """Where a stretch is: its rows in the file where there is one, and its times."""
    rows = ""
    if "row_index" in frame.columns:
        span = frame.filter(
            pl.col("recording") == recording, pl.col("event_time").is_between(pl.lit(begin), pl.lit(end))
        )["row_index"]
        rows = f"rows {int(span[0])}-{int(span[-1])}, "
    return f"{recording} ({rows}{begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC)"


def _copied_rows(frame: pl.DataFrame, known: Duplicates) -> list[Finding]:
    """Equal readings in recordings that are not known to be copies of one another."""
    matrix = frame.select(SENSOR_NAMES).to_numpy().astype(np.float64, copy=False)
    telling = (~np.isnan(matrix)).sum(axis=1) >= LEAST_MEASURED
    names = list(known.group)
    rows = frame.select(
        "recording",
        group=pl.col("recording").replace_strict(names, [known.group[name] for name in names], return_dtype=pl.String),
    ).with_columns(hash=pl.Series(row_hashes(matrix)))
    shared = rows.filter(pl.Series(telling)).filter(pl.col("group").n_unique().over("hash") > 1)
    if shared.is_empty():
        return []
    sizes = frame["recording"].value_counts(name="size")
    counted = shared["recording"].value_counts(name="shared").join(sizes, on="recording")
    many = counted.filter(pl.col("shared") >= LEAST_COPIED_SHARE * pl.col("size")).sort("shared", descending=True)
    if many.height < 2:
        return []
    concerned, total = many["recording"].to_list(), int(many["shared"].sum())
    return [
        Finding(
            "duplicates",
            "copied_rows",
            "blocking",
            f"{total:,} readings of {named(concerned)} stand in several recordings, equal in every sensor",
            {"rows": total, "share_of_largest": float(many["shared"][0] / many["size"][0]), "recordings": concerned},
            "Rows that are in training and in validation are remembered, not understood.",
            tuple(concerned),
            total,
        )
    ]


# -- by movement -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Movement:
    """What a recording's steps did not foretell, ``[witnesses, steps]``: its spectrum, usual size, and how many."""

    spectrum: npt.NDArray[np.complex128]
    size: _Floats
    steps: int


def _near_copies(frame: pl.DataFrame, known: Duplicates) -> Iterator[tuple[Finding, tuple[str, str]]]:
    first_of = sorted(set(known.group.values()))
    sizes = dict(frame["recording"].value_counts().iter_rows())
    longest = sorted((name for name in first_of if sizes[name] >= BLOCK_ROWS * (LEAST_STEPS + 1)), key=_by_size(sizes))
    most = int((1 + np.sqrt(1 + 8 * MOST_PAIRS)) / 2)
    if len(longest) > most:
        known.limits.append(
            f"Near-copies were looked for among the {most} longest of {len(longest)} independent recordings."
        )
    chosen = sorted(longest[:most])
    if len(chosen) < 2:
        return
    parts = frame.select("recording", *WITNESSES).partition_by("recording", as_dict=True, include_key=False)
    matrices = [parts[name,].to_numpy().astype(np.float64)[: MOST_BLOCKS * BLOCK_ROWS] for name in chosen]
    length = 2 ** int(np.ceil(np.log2(2 * max(len(matrix) for matrix in matrices) / BLOCK_ROWS + 2)))
    for one, other, best in _alike(matrices, length):
        yield _near(chosen[one], chosen[other], best, sizes), (chosen[one], chosen[other])


def _by_size(sizes: Mapping[str, int]) -> Any:
    return lambda name: (-sizes[name], name)


@dataclass(frozen=True, slots=True)
class _Best:
    """The shift at which two recordings move most alike: r of each witness, the second's rows behind the first's."""

    r: _Floats
    shift_rows: int
    steps: int
    pace: float


def _alike(matrices: Sequence[_Floats], length: int) -> Iterator[tuple[int, int, _Best]]:
    """Pairs of recordings that move alike in enough witnesses."""
    best: dict[tuple[int, int], _Best] = {}
    seen: dict[tuple[int, int], list[_Movement]] = {}

    def movements(rows: int, phase: int) -> list[_Movement]:
        if (rows, phase) not in seen:
            seen[rows, phase] = [_movement(matrix, rows, phase, length) for matrix in matrices]
        return seen[rows, phase]

    for first_blocks, second_blocks in _PACES:
        for phase in _PHASES if first_blocks == second_blocks else (0,):
            rows = BLOCK_ROWS * first_blocks
            firsts, seconds = movements(rows, 0), movements(BLOCK_ROWS * second_blocks, phase)
            for one, other in combinations(range(len(matrices)), 2):
                found = _laid(firsts[one], seconds[other], first_blocks / second_blocks, phase, rows)
                before = best.get((one, other))
                if found is not None and (before is None or found.r.sum() > before.r.sum()):
                    best[one, other] = found
    for (one, other), found in sorted(best.items()):
        yield one, other, found


def _movement(matrix: _Floats, rows: int, phase: int, length: int) -> _Movement:
    blocks = max(0, len(matrix) - phase) // rows
    cut = matrix[phase : phase + blocks * rows].reshape(blocks, rows, -1)
    present = ~np.isnan(cut)
    means = np.where(present, cut, 0.0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    known = np.asarray(present.any(axis=1))
    steps = np.where(known[1:] & known[:-1], np.diff(means, axis=0), 0.0).T
    left = np.stack([_unforetold(witness) for witness in steps])
    return _Movement(np.fft.rfft(left, length, axis=-1), np.sqrt((left**2).mean(axis=1)), left.shape[1])


def _unforetold(steps: _Floats) -> _Floats:
    """What of each step the ones before it do not foretell, in usual sizes; zeros where the sensor stands still."""
    left = np.zeros(len(steps))
    moving = steps != 0
    if len(steps) < LEAST_STEPS or moving.mean() < LEAST_MOVING:
        return left
    scaled = np.clip(steps / np.median(np.abs(steps[moving])), -2 * CLIP, 2 * CLIP)
    before = np.stack([scaled[LOOK_BACK - back : -back] for back in range(1, LOOK_BACK + 1)], axis=1)
    now = scaled[LOOK_BACK:]
    # By the normal equations: six unknowns, and a tenth of the time of a decomposition.
    squares = before.T @ before + 1e-6 * len(before) * np.eye(LOOK_BACK)
    rest = now - before @ np.linalg.solve(squares, before.T @ now)
    # 1.4826 times the median absolute deviation is the standard deviation of normal noise.
    left[LOOK_BACK:] = np.clip(rest / max(1.4826 * float(np.median(np.abs(rest))), 1e-9), -CLIP, CLIP)
    return left


def _laid(first: _Movement, second: _Movement, pace: float, phase: int, block: int) -> _Best | None:
    """The best shift of the second along the first, ``None`` where no shift makes enough witnesses agree."""
    length = 2 * (first.spectrum.shape[-1] - 1)
    shift = np.arange(length)
    shift[length // 2 :] -= length
    overlap = np.minimum(first.steps, second.steps + shift) - np.maximum(0, shift)
    products = np.fft.irfft(first.spectrum * np.conj(second.spectrum), length, axis=-1)
    r = products / (np.maximum(first.size * second.size, 1e-9)[:, None] * np.maximum(overlap, 1))
    least = np.maximum(LEAST_R, LEAST_SPREADS / np.sqrt(np.maximum(overlap, 1)))
    agreeing = ((r >= least) & (overlap >= LEAST_STEPS)).sum(axis=0)
    if agreeing.max() < LEAST_WITNESSES:
        return None
    place = int(np.argmax(np.where(agreeing == agreeing.max(), r.sum(axis=0), -np.inf)))
    return _Best(r[:, place], int(shift[place]) * block - phase, int(overlap[place]), pace)


def _near(first: str, copy: str, best: _Best, sizes: Mapping[str, int]) -> Finding:
    agreeing = {name: float(r) for name, r in zip(WITNESSES, best.r, strict=True) if r >= LEAST_R}
    pace = "" if best.pace == 1 else f", played at {best.pace:g} times the pace"
    shift = f", {abs(best.shift_rows)} rows apart" if best.shift_rows else ""
    return Finding(
        "duplicates",
        "near_copy",
        "blocking",
        f"{copy} moves as {first} does{pace}{shift}: {named(list(agreeing))} take the same steps",
        {
            **{f"r_of_{name}": r for name, r in agreeing.items()},
            "steps_compared": best.steps,
            "shift_rows": best.shift_rows,
            "pace": best.pace,
        },
        "One is the other, altered: noise, gain or pace make it look new, and a split over the two measures memory.",
        (first, copy),
        min(sizes[first], sizes[copy]),
    )
