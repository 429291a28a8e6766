"""Fire tests in NIST's format as tests write them: a folder with a fire that comes at a known time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

Signal = Callable[[float], float | None]

TIMES = [2.0 * step for step in range(61)]


def air(_time: float) -> float:
    return 0.0


def smoke_from(start: float, per_second: float = 0.004) -> Signal:
    """Optical density that grows from ``start`` on: after 3 s it is that of a smoke alarm."""
    return lambda time: max(0.0, time - start) * per_second


def room(time: float) -> float:
    """A room's temperature as a thermocouple has it."""
    return 21.0 + 0.1 * (int(time) % 3)


def warming(start: float) -> Signal:
    return lambda time: room(time) + max(0.0, time - start) * 0.3


def write_recording(
    file: Path, columns: Mapping[str, Signal], times: list[float] | None = None, end: str = "\n"
) -> None:
    rows = [",".join(["TIME", *columns])]
    for time in TIMES:
        cells = [f"{time:.2E}"]
        for signal in columns.values():
            value = signal(time)
            cells.append("" if value is None else f"{value:.4E}")
        rows.append(",".join(cells))
    file.write_bytes((end.join(rows) + end).encode())


def write_activations(folder: Path, times: Mapping[str, object], end: str = "\n") -> None:
    """``Activation_Times.csv``; a ``None`` is an empty cell."""
    cells = ["" if value is None else str(value) for value in times.values()]
    text = ",".join(["Act", *times]) + end + ",".join(["-1", *cells]) + end
    (folder / "Activation_Times.csv").write_bytes(text.encode())


def write_fire(folder: Path, *, end: str = "\n") -> None:
    """A test FIRE1 with smoke from 40 s on at place A, and place B where nothing comes."""
    write_recording(
        folder / "NIST_Smoke_Alarms_FIRE1.csv",
        {
            "TCA_1": room,
            "SMA_1": smoke_from(40),
            "GASA_1": lambda time: 0.0002 + max(0.0, time - 40) * 1e-5,
            "GASA_3": lambda _: 0.06,
            "TCB_1": room,
            "SMB_1": air,
            "Ion1A": lambda _: 5.0,
        },
        end=end,
    )
    write_activations(folder, {"FIRE1-Ion1A": 44, "FIRE1-Pho1A": 90, "FIRE1-Ion1B": 100, "FIRE1-Pho1B": -1}, end=end)
