"""The windows as a Bytewax dataflow: readings keyed by device, folded into sliding windows, NumPy when one closes.

A reading travels as bytes, since joining 300 of them is the cheapest way to an array. The wait is the platform's
allowed lateness. Recovery is off, results stay in memory. Started in the peers' environment as
``python -m benchmarks.windows_bytewax SPEC.json [panes]``: with ``panes`` each reading is folded once, into windows of
the slide's length, of which a second step puts sliding ones together.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.windows_spec import Measured, WindowsSpec
from benchmarks.windows_work import COLUMNS, LENGTH_US, WIDTH, Window, frame_of, packed, window_of

LATENESS = timedelta(minutes=10)
ORIGIN = datetime(2020, 1, 1, tzinfo=UTC)
ORIGIN_US = int(ORIGIN.timestamp()) * 1_000_000
AT_ONCE = 20_000


def run(spec: WindowsSpec, *, panes: bool) -> None:
    """Computes the windows and says how long it took."""
    import bytewax.operators as op
    import bytewax.operators.windowing as win
    from bytewax.dataflow import Dataflow
    from bytewax.inputs import DynamicSource, StatelessSourcePartition
    from bytewax.outputs import DynamicSink, StatelessSinkPartition
    from bytewax.testing import run_main

    measured = Measured()
    found: list[tuple[str, Window]] = []
    slide_us = spec.slide_s * 1_000_000
    each = LENGTH_US // slide_us

    class Files(StatelessSourcePartition):  # type: ignore[misc] # not installed where types are checked
        def __init__(self) -> None:
            self._files = iter(spec.files)
            self._rows = pl.DataFrame()

        def next_batch(self) -> list[tuple[str, tuple[datetime, bytes]]]:
            measured.begin()
            if self._rows.is_empty():
                file = next(self._files, None)
                if file is None:
                    raise StopIteration
                self._rows = _of_share(pl.read_parquet(file, columns=["device_id", *COLUMNS]), spec)
            rows, self._rows = self._rows.head(AT_ONCE), self._rows.slice(AT_ONCE)
            measured.readings += rows.height
            data, size = packed(rows).tobytes(), WIDTH * 8
            keyed = zip(rows["device_id"].to_list(), rows["event_time"].to_list(), strict=True)
            return [
                (device, (at, data[place : place + size]))
                for place, (device, at) in zip(range(0, len(data), size), keyed, strict=True)
            ]

    class Input(DynamicSource):  # type: ignore[misc] # not installed where types are checked
        def build(self, _step: str, _number: int, _count: int) -> Files:
            return Files()

    class Memory(StatelessSinkPartition):  # type: ignore[misc] # not installed where types are checked
        def write_batch(self, items: list[tuple[str, Window]]) -> None:
            found.extend(items)

    class Output(DynamicSink):  # type: ignore[misc] # not installed where types are checked
        def build(self, _step: str, _number: int, _count: int) -> Memory:
            return Memory()

    def append(kept: list[bytes], reading: tuple[datetime, bytes]) -> list[bytes]:
        kept.append(reading[1])
        return kept

    def merge(one: list[bytes], other: list[bytes]) -> list[bytes]:
        return one + other

    def windowed(name: str, windower: Any) -> Any:
        clock = win.EventClock(itemgetter(0), wait_for_system_duration=LATENESS)
        return win.fold_window(name, readings, clock, windower, list, append, merge, ordered=False).down

    def computed(keyed: tuple[str, tuple[int, list[bytes]]]) -> tuple[str, Window]:
        device, (number, kept) = keyed
        return device, window_of(_rows(kept), ORIGIN_US + number * slide_us)

    class Panes(op.StatefulBatchLogic):  # type: ignore[misc] # not installed where types are checked
        """Puts sliding windows together from panes, which come in order."""

        def __init__(self) -> None:
            self._panes: dict[int, bytes] = {}
            self._next: int | None = None

        def on_batch(self, values: list[tuple[int, list[bytes]]]) -> tuple[list[Window], bool]:
            windows: list[Window] = []
            for number, kept in values:
                self._panes[number] = b"".join(kept)
                windows += self._up_to(number)
            return windows, False

        def on_eof(self) -> tuple[list[Window], bool]:
            return self._up_to(max(self._panes) + each - 1) if self._panes else [], True

        def _up_to(self, last: int) -> list[Window]:
            begin = min(self._panes) - each + 1 if self._next is None else self._next
            windows = []
            for number in range(begin, last - each + 2):
                inside = [self._panes[pane] for pane in range(number, number + each) if pane in self._panes]
                if inside:
                    windows.append(window_of(_rows(inside), ORIGIN_US + number * slide_us))
            self._next = last - each + 2
            self._panes = {pane: rows for pane, rows in self._panes.items() if pane >= self._next}
            return windows

        def snapshot(self) -> None:
            """Nothing: recovery is off."""

    flow = Dataflow("windows")
    readings = op.input("readings", flow, Input())
    slide, length = timedelta(seconds=spec.slide_s), timedelta(microseconds=LENGTH_US)
    if panes:
        folded = windowed("panes", win.TumblingWindower(length=slide, align_to=ORIGIN))
        windows = op.stateful_batch("windows", folded, lambda _resume: Panes())
    else:
        folded = windowed("windows", win.SlidingWindower(length=length, offset=slide, align_to=ORIGIN))
        windows = op.map("statistics", folded, computed)
    op.output("memory", windows, Output())
    run_main(flow)
    measured.windows = len(found)
    print(measured.answer(), flush=True)
    sample = set(spec.sample)
    frame_of(each for each in found if each[0] in sample).write_ipc(spec.result)


def _rows(kept: list[bytes]) -> Any:
    return np.frombuffer(b"".join(kept)).reshape(-1, WIDTH)


def _of_share(rows: pl.DataFrame, spec: WindowsSpec) -> pl.DataFrame:
    number, count = spec.share
    return rows if count == 1 else rows.filter(pl.col("device_id").hash(0) % count == number)


if __name__ == "__main__":
    run(WindowsSpec.read(Path(sys.argv[1])), panes="panes" in sys.argv[2:])
