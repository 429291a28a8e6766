"""One measured figure, the machine it was measured on, and how a suite's results are written.

Belongs here: the format of ``benchmarks/results/<suite>.json`` and of the printed table. Does not: any
measuring.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")
_VERSIONS = ("dagster", "duckdb", "polars", "deltalake", "kafka-python", "confluent-kafka", "onnxruntime", "fastapi")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure beside its peer.

    Attributes:
        id: stable name, such as ``P2`` or ``P2.memory``.
        value: ours, in ``unit``; ``peer_value`` the peer's in the same unit and run.
        goal: the bound that ``ratio`` (or, where there is no peer, ``value``) is held against, in words.
        met: whether it was; ``None`` where no goal is set.
    """

    id: str
    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    goal: str | None = None
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """Value / peer's value."""
        return None if not self.peer_value else self.value / self.peer_value


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    memory = psutil.virtual_memory().total / 2**30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    ).stdout.strip()
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "cpu": _cpu_model(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _VERSIONS},
        "commit": commit,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def write(suite: str, figures: Sequence[Figure], described: dict[str, object]) -> Path:
    """Writes the suite's results and returns the file."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{suite}.json"
    rows = [{**asdict(figure), "ratio": figure.ratio} for figure in figures]
    file.write_text(json.dumps({"machine": described, "figures": rows}, indent=2) + "\n", encoding="utf-8")
    return file


def show(suite: str, figures: Sequence[Figure]) -> None:
    """Prints the suite's table."""
    table = Table(title=f"{suite} (each figure beside a peer in the same run)")
    for heading in ("id", "what", "ours", "unit", "peer", "peer's", "ratio", "goal", "met"):
        table.add_column(heading, justify="right" if heading in ("ours", "peer's", "ratio") else "left")
    for figure in figures:
        table.add_row(
            figure.id,
            figure.name,
            _short(figure.value),
            figure.unit,
            figure.peer or "",
            _short(figure.peer_value),
            _short(figure.ratio),
            figure.goal or "",
            {True: "yes", False: "NO", None: ""}[figure.met],
        )
    Console(width=160).print(table)


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
