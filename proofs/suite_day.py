"""The weekly history over a day of 100 million readings, on a standalone cluster of one executor and then of two.

Two executors must need clearly less time than one, come to the same figures, count every reading, and take none of the
day for a copy of another part of it. Simulating so much would take longer than telling it: forty devices are simulated,
and the others are these with every sensor's gain changed by half a per mille more each time, so that no reading is like
another. The lake has a file for each hour with all devices in it, as the compaction of landing leaves it.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen
from typing import Any

import click
import polars as pl
import psutil

from smoke_platform.adapters.history_tables import ANCHORS, DAYS, HITS, HOURS, MOMENTS
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.history import History
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.simulator import simulate
from smoke_platform.settings import Settings, load_settings
from smoke_platform.streaming import history
from smoke_platform.verification.run import private_settings
from smoke_platform.verification.spark_cluster import standalone
from smoke_platform_tests.history_parts import same
from smoke_platform_tests.monitoring_lake import as_landed

START = datetime(2026, 3, 2, tzinfo=UTC)
SIMULATED, TIMES, SEED = 40, 29, 7
SECONDS = 86_400
#: By how much a sensor's gain differs from one repetition of the devices to the next.
GAIN_STEP = 0.0005
EXECUTORS = (2, 1)
#: So many times as fast two executors have to be at least.
LEAST_SPEED_UP = 1.5
WORKER_MEMORY = "2g"


def suite() -> dict[str, Any]:
    """A day of 100 million readings, by two executors and by one."""
    home = Path(tempfile.mkdtemp(prefix="smoke-day-"))
    base = private_settings(home / "cluster", load_settings())
    try:
        lake = Lake(str(home / "platform" / "lake"))
        readings = _land(lake)
        size = sum(file.stat().st_size for file in (home / "platform" / "lake" / READINGS).rglob("*.parquet"))
        runs, told = [], []
        for executors in EXECUTORS:
            click.echo(f"  {readings:,} readings by {executors} executor(s) of one core", err=True)
            run, found = _tell(home / "platform", base, executors)
            click.echo(f"  {run}", err=True)
            runs.append(run)
            told.append(found)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    differing = same(told[0].as_dict(), told[1].as_dict())
    faults = [fault for found in told for fault in _faults(found, readings)]
    speed_up = round(runs[1]["seconds"] / runs[0]["seconds"], 2)
    if speed_up < LEAST_SPEED_UP:
        faults.append(f"two executors are {speed_up} times as fast as one, not {LEAST_SPEED_UP}")
    for fault in (*differing[:5], *faults):
        click.echo(f"  FAULT {fault}", err=True)
    return {
        "ok": not differing and not faults,
        "day": {
            "readings": readings,
            "devices": SIMULATED * TIMES,
            "simulated_devices": SIMULATED,
            "mib": round(size / 2**20),
            "seed": SEED,
        },
        "runs": runs,
        "speed_up": speed_up,
        "figures_that_differ": differing[:20],
        "faults": faults,
    }


def _land(lake: Lake) -> int:
    """Writes the day; returns how many readings it has."""
    began = time.monotonic()
    day = simulate(SIMULATED, START, SECONDS, SEED)
    readings = 0
    for hour in range(24):
        begin = START + timedelta(hours=hour)
        inside = pl.col("event_time").is_between(begin, begin + timedelta(hours=1), closed="left")
        rows = as_landed(pl.concat([_other(day.filter(inside), number) for number in range(TIMES)]))
        lake.append(READINGS, rows, ["event_date"])
        readings += rows.height
        click.echo(f"  {readings:,} readings have landed after {time.monotonic() - began:.0f} s", err=True)
    return readings


def _other(rows: pl.DataFrame, number: int) -> pl.DataFrame:
    """The same devices under other names and with other gains."""
    gain = 1.0 + GAIN_STEP * number
    return rows.with_columns(
        pl.format("{}-{}", "device_id", pl.lit(number)).alias("device_id"),
        *(pl.col(name) * gain for name in SENSOR_NAMES),
    )


def _tell(home: Path, base: Settings, executors: int) -> tuple[dict[str, Any], History]:
    for table in (HOURS, DAYS, MOMENTS, ANCHORS, HITS):
        shutil.rmtree(home / "lake" / table, ignore_errors=True)
    with standalone(
        base, base.api_port, base.dagster_port, workers=executors, cores=1, memory=WORKER_MEMORY
    ) as cluster:
        settings = load_settings(
            {
                "SMOKE_HOME": str(home),
                "SMOKE_HISTORY_ENGINE": "spark",
                "SMOKE_CACHE_DIR": str(base.cache_dir),
                "SPARK_MASTER": cluster.url,
                "SPARK_UI_PORT": "0",
            },
            env_file=home / "no.env",
        )
        with _TaskMemory(cluster.workers) as memory:
            began = time.monotonic()
            told = history.tell(settings)
            seconds = time.monotonic() - began
    if told is None:
        raise SmokeError("nothing has landed")
    return {
        "executors": executors,
        "parts": told[1].parts,
        "seconds": round(seconds, 1),
        "largest_task_mib": memory.largest_mib,
    }, told[0]


def _faults(told: History, readings: int) -> list[str]:
    """What the history says wrongly."""
    faults = []
    counted = int(told.overview["rows"].sum())
    if counted != readings:
        faults.append(f"{counted:,} readings are told, not {readings:,}")
    if told.copies:
        faults.append(f"copies are told where there are none: {told.copies[:3]}")
    return faults


class _TaskMemory:
    """The most memory that one Python process of these workers took, in MiB; looked at each half second."""

    def __init__(self, workers: Sequence[Popen[bytes]]) -> None:
        self._workers = workers
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="task-memory", daemon=True)
        self.largest_mib = 0

    def __enter__(self) -> _TaskMemory:
        self._thread.start()
        return self

    def __exit__(self, *_fault: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            for worker in self._workers:
                # Processes end while they are looked at.
                with suppress(psutil.Error):
                    for process in psutil.Process(worker.pid).children(recursive=True):
                        with suppress(psutil.Error):
                            if process.name().startswith("python"):
                                self.largest_mib = max(self.largest_mib, process.memory_info().rss >> 20)
