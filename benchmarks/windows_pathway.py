"""The windows in Pathway: sliding windows by device, their readings gathered by a reducer, NumPy on each window.

All readings are there from the beginning (mode ``static``), which is its fastest: each window is computed once, while
a stream would compute it anew with each commit. It reads the rows as CSV, since its reader of Delta tables asks for a
licence key and it has none for Parquet files. Results stay in memory. Started in the peers' environment as
``python -m benchmarks.windows_pathway SPEC.json``.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.windows_spec import Measured, WindowsSpec
from benchmarks.windows_work import LENGTH_US, WIDTH, Window, frame_of, window_of
from smoke_platform.domain.readings import SENSOR_NAMES

_PACK = struct.Struct(f"<{WIDTH + 1}d").pack
_NAN = float("nan")


def run(spec: WindowsSpec) -> None:
    """Computes the windows and says how long it took."""
    import pathway as pw

    measured = Measured()
    found: list[tuple[str, Window]] = []

    # The types are given by hand: the engine would look for those of annotations in this module.
    @pw.udf(deterministic=True, return_type=bytes)  # type: ignore[untyped-decorator] # not installed where types are checked
    def pack(place: int, *values: float | None) -> bytes:
        return _PACK(place, *(_NAN if value is None else value for value in values))

    @pw.udf(deterministic=True, return_type=pw.PyObjectWrapper)  # type: ignore[untyped-decorator] # as above
    def statistics(start_us: int, kept: Any) -> Any:
        rows = np.frombuffer(b"".join(kept)).reshape(-1, WIDTH + 1)
        # The engine keeps no order: the place in the log says which of two copies came first.
        return pw.PyObjectWrapper(window_of(rows[rows[:, 0].argsort(), 1:], start_us))

    schema = pw.schema_from_types(
        device_id=str, place=int, event_time=int, sequence=int | None, fire_alarm=int | None,
        **dict.fromkeys(SENSOR_NAMES, float | None),
    )  # fmt: skip
    rows = pw.io.csv.read(spec.csv, schema=schema, mode="static")
    values = (rows.event_time, rows.sequence, rows.fire_alarm, *(rows[name] for name in SENSOR_NAMES))
    kept = rows.select(rows.device_id, rows.event_time, reading=pack(rows.place, *values))
    window = pw.temporal.sliding(hop=spec.slide_s * 1_000_000, duration=LENGTH_US, origin=0)
    windows = kept.windowby(kept.event_time, window=window, instance=kept.device_id).reduce(
        device=pw.this._pw_instance, start_us=pw.this._pw_window_start, kept=pw.reducers.tuple(pw.this.reading)
    )
    results = windows.select(windows.device, window=statistics(windows.start_us, windows.kept))

    def on_change(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        assert is_addition
        found.append((row["device"], row["window"].value))

    pw.io.subscribe(results, on_change=on_change)
    measured.begin()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    measured.windows = len(found)
    print(measured.answer(), flush=True)
    sample = set(spec.sample)
    frame_of(each for each in found if each[0] in sample).write_ipc(spec.result)


if __name__ == "__main__":
    run(WindowsSpec.read(Path(sys.argv[1])))
