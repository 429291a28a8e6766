"""Statistics of overlapping windows over sorted rows, in arrays.

Belongs here: the arithmetic of ``domain.windows`` on numbers: moments, slopes and order statistics of ranges of rows.
Does not: readings, devices, quality, frames.

Rows are sorted, and a window is a range of them. Time is cut into panes as long as the windows' slide; a window is a
whole number of panes, and a ``Stretch`` lays the panes of a run of rows on a grid, the empty ones included.

*Moments* are summed within each pane and then joined: pairs of panes, pairs of pairs, and so on, and each window is put
together from such powers of two (60 panes are 4 + 8 + 16 + 32), so the cost grows with the logarithm of the panes in a
window. Each sum counts from the first value of its own rows, and joining adds squares and takes none away (Chan, Golub
and LeVeque 1983), so that a large offset costs no digits.

*Order statistics* are exact. Rows are ranked once, up to 1,024 at a time, and a window sorts its 16-bit ranks, some
five times as fast as its values; where windows overlap too little for that to pay, it sorts the values.

Every number depends on the rows of its window alone, in their order, to the bit: panes and their joining are aligned to
the window's start, each sum has an order of its own, and order statistics are not rounded but for the interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Ranks = npt.NDArray[np.uint16]
Flags = npt.NDArray[np.bool_]

#: Rows that are ranked together: their places take ten bits of a 32-bit key, the value the other 22.
_BLOCK_ROWS: Final = 1024
_PLACE_BITS: Final = 10
_GREATEST_STEP: Final = float((1 << (32 - _PLACE_BITS)) - 1)
#: Greater than every rank.
_NO_RANK: Final = np.iinfo(np.uint16).max
#: Ranking pays from here on: so many rows in windows for each row (measured).
_LEAST_OVERLAP: Final = 3.0
#: Sorted at once: stays in the processor's cache.
_BATCH_BYTES: Final = 1 << 19
_US_PER_MINUTE: Final = 60_000_000.0


@dataclass(frozen=True, slots=True)
class _Run:
    """Of the runs of panes that begin at each place of the grid: mean from the run's origin, sums of squares."""

    count: Floats
    mean: Floats
    square: Floats


class _Join(NamedTuple):
    """What joining pairs of neighbouring runs of panes takes.

    Attributes:
        share: rows of the second by rows of both; 0 where there are none.
        harmonic: product of the rows of the two by their sum.
        apart: mean time of the second less that of the first, in microseconds.
    """

    share: Floats
    harmonic: Floats
    apart: Floats


class _Step(NamedTuple):
    """One step from panes to windows, at runs of a power of two.

    Attributes:
        width: panes of a run.
        at: int64 ``[w]``, where on the grid the run begins that is appended to each window; ``None``: none is.
        append: joins the windows so far with these; ``None`` where they begin with them.
        double: joins each run with the one after it; ``None`` in the last step.
    """

    width: int
    at: Integers | None
    append: _Join | None
    double: _Join | None


class _Times(NamedTuple):
    """What depends on the rows' times only: since their pane's first row and its sum; the steps; squares by window."""

    elapsed: Floats
    of_pane: Floats
    steps: list[_Step]
    square: Floats


class _Blocks(NamedTuple):
    """Rows that are ranked together.

    Attributes:
        first: int64 ``[b]``, each block's first row.
        rows: of a block.
        of_window: int64 ``[w]``, a block that holds all of the window.
    """

    first: Integers
    rows: int
    of_window: Integers


class _Batch(NamedTuple):
    """Windows that are sorted together, and where their order statistics then stand in the flat array.

    Attributes:
        windows: which.
        start: int64 ``[b]``, first element of each in the flat array.
        length: elements of the longest.
        beyond: bool ``[b, length]``, elements that belong to the next window; ``None`` where all are equally long.
        places: int64 ``[percents + between, b]``, the element at or below each order statistic, then the one above.
        part: float64 ``[between, b]``, how far from the one to the other.
        base: int64 ``[b]``, what a rank is counted from.
    """

    windows: Integers | slice
    start: Integers
    length: int
    beyond: Flags | None
    places: Integers
    part: Floats
    base: Integers


@dataclass(frozen=True)
class Stretch:
    """Panes and windows of a run of sorted rows. Every row belongs to a pane.

    Attributes:
        time: int64 ``[n]``, microseconds, not falling within neighbouring panes.
        pane_row: int64 ``[p]``, first row of each pane that has any.
        pane_place: int64 ``[p]``, where that pane is on the grid; rising.
        grid: number of panes on the grid.
        window_place: int64 ``[w]``, where each window's first pane is on the grid.
        low, high: int64 ``[w]``, each window's rows are ``low:high``, at least one; neither falls.
        panes: of a window.
        percents: the order statistics, such as 50 for the median; 0 and 100 are minimum and maximum.
    """

    time: Integers
    pane_row: Integers
    pane_place: Integers
    grid: int
    window_place: Integers
    low: Integers
    high: Integers
    panes: int
    percents: Sequence[int]

    def only(self, rows: Flags) -> tuple[Stretch, Flags]:
        """The same with some of the rows, and which windows have any of them.

        Args:
            rows: bool ``[n]``, at least one.
        """
        before = np.concatenate(([0], np.cumsum(rows)))
        pane_row, pane_end = before[self.pane_row], before[np.append(self.pane_row[1:], len(rows))]
        low, high = before[self.low], before[self.high]
        panes, windows = pane_end > pane_row, high > low
        left = Stretch(
            time=self.time[rows],
            pane_row=pane_row[panes],
            pane_place=self.pane_place[panes],
            grid=self.grid,
            window_place=self.window_place[windows],
            low=low[windows],
            high=high[windows],
            panes=self.panes,
            percents=self.percents,
        )
        return left, windows

    # -- moments -------------------------------------------------------------------------------------------------

    def moments(self, values: Floats) -> tuple[Floats, Floats, Floats]:
        """Mean, variance (n - 1; NaN for one row) and slope per minute (NaN where all rows have one time), ``[w]``.

        Args:
            values: float64 ``[n]``, finite.
        """
        times = self._times
        first = values[self.pane_row]
        beyond = values - np.repeat(first, self._rows)
        total = self._sum(beyond)
        pane_mean = total / self._rows
        squares = self._sum(beyond * beyond) - total * pane_mean
        beyond *= times.elapsed
        products = self._sum(beyond) - times.of_pane * pane_mean

        origin = first[self._next_pane]
        opening = origin[self.window_place]
        run = self._on_grid(pane_mean), self._on_grid(np.maximum(squares, 0.0)), self._on_grid(products)
        window = run
        for width, at, append, double in times.steps:
            if at is not None:
                piece = run[0][at], run[1][at], run[2][at]
                window = piece if append is None else _joined(append, window, piece, origin[at] - opening)
            if double is not None:
                one, other = _pairs(len(run[0]), width)
                run = _joined(
                    double,
                    (run[0][one], run[1][one], run[2][one]),
                    (run[0][other], run[1][other], run[2][other]),
                    origin[other] - origin[one],
                )
        mean, square, product = window
        count = self.high - self.low
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.where(count > 1, square / (count - 1), np.nan)
            slope = np.where(times.square > 0.0, product / times.square * _US_PER_MINUTE, np.nan)
        return values[self.low] + mean, variance, slope

    @cached_property
    def _rows(self) -> Integers:
        """Of each pane that has any."""
        return np.diff(np.append(self.pane_row, len(self.time)))

    @cached_property
    def _next_pane(self) -> Integers:
        """For each place of the grid the pane at it, or the first after it that has rows.

        An empty pane counts from that pane's first row: joined with what follows it changes nothing, and what the runs
        from a place count from is the first value after it.
        """
        following = np.searchsorted(self.pane_place, np.arange(self.grid))
        return np.minimum(following, len(self.pane_place) - 1)

    def _sum(self, of_rows: Floats) -> Floats:
        # Each pane by itself, so that its sum does not depend on its neighbours.
        return np.add.reduceat(of_rows, self.pane_row)

    def _on_grid(self, of_panes: Floats | Integers) -> Floats:
        answer = np.zeros(self.grid)
        answer[self.pane_place] = of_panes
        return answer

    @cached_property
    def _times(self) -> _Times:
        first = self.time[self.pane_row]
        elapsed = (self.time - np.repeat(first, self._rows)).astype(np.float64)
        total = self._sum(elapsed)
        mean = total / self._rows
        square = np.maximum(self._sum(elapsed * elapsed) - total * mean, 0.0)
        # Whole microseconds of this millennium are exact in a float, and so are their differences.
        origin = first.astype(np.float64)[self._next_pane]

        run = _Run(self._on_grid(self._rows), self._on_grid(mean), self._on_grid(square))
        opening = origin[self.window_place]
        window = run
        steps: list[_Step] = []
        width, covered = 1, 0
        while True:
            at, append, double = None, None, None
            if self.panes & width:
                at = self.window_place + covered
                piece = _Run(run.count[at], run.mean[at], run.square[at])
                if covered:
                    append, window = _join(window, piece, origin[at] - opening)
                else:
                    window = piece
                covered += width
            if covered < self.panes:
                one, other = _pairs(len(run.count), width)
                double, run = _join(
                    _Run(run.count[one], run.mean[one], run.square[one]),
                    _Run(run.count[other], run.mean[other], run.square[other]),
                    origin[other] - origin[one],
                )
            steps.append(_Step(width, at, append, double))
            if double is None:
                return _Times(elapsed, total, steps, window.square)
            width *= 2

    # -- order statistics ----------------------------------------------------------------------------------------

    def order_statistics(self, values: Floats, answer: Floats) -> None:
        """The value at each of ``percents`` of each window, into ``answer`` ``[percents, w]``; between two linear.

        Args:
            values: float64 ``[n]``, finite.
        """
        ascending, ranks = (None, None) if self._blocks is None else _rank(values, self._blocks)
        between = self._between
        for batch in self._batches:
            if ranks is None or ascending is None:
                found = _sorted(values, batch, np.inf).take(batch.places)
            else:
                found = ascending.take(_sorted(ranks, batch, _NO_RANK).take(batch.places) + batch.base)
            below, above = found[: len(self.percents)], found[len(self.percents) :]
            above -= below[between]
            above *= batch.part
            below[between] += above
            answer[:, batch.windows] = below

    @cached_property
    def _between(self) -> slice:
        """Those of ``percents`` that may lie between two values: all but the least and the greatest."""
        inner = [place for place, percent in enumerate(self.percents) if 0 < percent < 100]
        return slice(inner[0], inner[-1] + 1) if inner else slice(0)

    @cached_property
    def _blocks(self) -> _Blocks | None:
        """Where ranking pays."""
        lengths = self.high - self.low
        if lengths.max(initial=0) > _BLOCK_ROWS or lengths.sum() <= _LEAST_OVERLAP * len(self.time):
            return None
        begins = [0]
        while (following := self._first_beyond(begins[-1])) < len(self.low):
            begins.append(following)
        begin, end = np.array(begins), np.array([*begins[1:], len(self.low)])
        first = self.low[begin]
        rows = int((self.high[end - 1] - first).max())
        return _Blocks(first, rows, np.repeat(np.arange(len(begin)), end - begin))

    def _first_beyond(self, window: int) -> int:
        """The first window that does not fit into a block which begins with this one."""
        return int(np.searchsorted(self.high, self.low[window] + _BLOCK_ROWS, side="right"))

    def _places(self, length: Integers, longest: int) -> tuple[Integers, Floats]:
        """``places`` and ``part`` of a batch of windows with so many rows."""
        row = np.arange(len(length)) * longest
        # In whole numbers, since 0.05 is no float: (length - 1) * percent / 100.
        below, rest = np.divmod((length - 1) * np.array(self.percents)[:, None], 100)
        above = np.minimum(below[self._between] + 1, length - 1)
        return np.concatenate((below, above)) + row, rest[self._between] / 100.0

    @cached_property
    def _batches(self) -> list[_Batch]:
        lengths = self.high - self.low
        start, base = self.low, np.zeros(len(lengths), np.int64)
        if self._blocks is not None:
            base = self._blocks.of_window * self._blocks.rows
            start = self.low - self._blocks.first[self._blocks.of_window] + base
        most = _BATCH_BYTES // (8 if self._blocks is None else 2)
        even = bool((lengths == lengths[0]).all())
        order = np.argsort(lengths, kind="stable")
        batches = []
        begin = 0
        while begin < len(lengths):
            # As many as the longest of them allows, which is the last.
            end = begin + max(1, most // int(lengths[order[begin]]))
            end = begin + max(1, most // int(lengths[order[min(end, len(order)) - 1]]))
            end = min(end, len(order))
            windows: slice | Integers = slice(begin, end) if even else order[begin:end]
            length = lengths[windows]
            longest = int(length.max())
            beyond = None if (length == longest).all() else np.arange(longest) >= length[:, None]
            batches.append(
                _Batch(windows, start[windows], longest, beyond, *self._places(length, longest), base[windows])
            )
            begin = end
        return batches


def _pairs(places: int, width: int) -> tuple[slice, slice]:
    """Of so many places of the grid with runs that long: those of the first runs of all pairs, and of the second."""
    return slice(places - width), slice(width, places)


def _join(first: _Run, second: _Run, between: Floats) -> tuple[_Join, _Run]:
    """Joins runs; ``between`` is from the origin of each first one to that of the second."""
    count = first.count + second.count
    share = second.count / np.maximum(count, 1.0)
    harmonic = first.count * share
    apart = between + (second.mean - first.mean)
    joined = _Run(count, first.mean + apart * share, first.square + second.square + apart * apart * harmonic)
    return _Join(share, harmonic, apart), joined


def _joined(
    join: _Join, first: tuple[Floats, Floats, Floats], second: tuple[Floats, Floats, Floats], between: Floats
) -> tuple[Floats, Floats, Floats]:
    """Mean, squares and products of the runs joined; ``between`` is from the origin of each first to the second's."""
    apart = between + (second[0] - first[0])
    weighted = apart * join.harmonic
    return (
        first[0] + apart * join.share,
        first[1] + second[1] + apart * weighted,
        first[2] + second[2] + join.apart * weighted,
    )


def _stretches(flat: npt.NDArray[Any], start: Integers, length: int) -> npt.NDArray[Any]:
    """``length`` elements from each ``start`` on, ``[b, length]``; what follows the end is anything."""
    short = int(start.max()) + length - len(flat)
    if short > 0:
        flat = np.concatenate((flat, np.full(short, flat[-1])))
    # sliding_window_view without its checks, which take longer than the copy.
    every: npt.NDArray[Any] = np.ndarray((len(flat) - length + 1, length), flat.dtype, flat, 0, flat.strides * 2)
    return every[start]


def _sorted(flat: npt.NDArray[Any], batch: _Batch, greatest: float) -> npt.NDArray[Any]:
    """The elements of each window in ascending order, flat."""
    elements = _stretches(flat, batch.start, batch.length)
    if batch.beyond is not None:
        elements[batch.beyond] = greatest
    elements.sort(axis=1)
    return elements.reshape(-1)


def _rank(values: Floats, among: _Blocks) -> tuple[Floats, Ranks]:
    """The values of each block in ascending order, and the rank of each row in its block, both flat ``[b * rows]``.

    One sort of 32-bit keys: a block's values in steps of 2**-22 of its range, and the place. Where two values within
    a step come out in the wrong order, which is seen, the block is sorted again by the values themselves.
    """
    first, rows = among.first, among.rows
    blocks = _stretches(values, first, rows)
    least = blocks.min(axis=1, keepdims=True)
    span = blocks.max(axis=1, keepdims=True) - least
    steps = blocks - least
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        steps *= np.where(span > 0.0, _GREATEST_STEP / span, 0.0)
        keys = steps.astype(np.uint32)
    keys <<= _PLACE_BITS
    keys |= np.arange(rows, dtype=np.uint32)
    keys.sort(axis=1)
    keys &= (1 << _PLACE_BITS) - 1
    places = keys.astype(np.int64)
    offset = (np.arange(len(first)) * rows)[:, None]
    places += offset
    ascending = blocks.reshape(-1).take(places)
    wrong = np.flatnonzero(~(ascending[:, 1:] >= ascending[:, :-1]).all(axis=1))
    if len(wrong):
        places[wrong] = np.argsort(blocks[wrong], axis=1, kind="stable") + offset[wrong]
        ascending[wrong] = blocks.reshape(-1).take(places[wrong])
    ranks = np.empty(places.size, np.uint16)
    ranks[places] = np.arange(rows, dtype=np.uint16)
    return ascending.reshape(-1), ranks
