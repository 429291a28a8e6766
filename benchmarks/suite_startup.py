"""Start-up: from ``up`` to the first landed reading, a second ``up``, and the memory of each process."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.figures import Figure
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.local.supervisor import Platform
from smoke_platform.settings import Settings, load_settings
from smoke_platform.verification.run import private_settings

FIRST_READING_S = 180.0
#: Long enough for the start-up training to be over, so that its memory is seen.
WATCHED_S = 240.0


def run() -> list[Figure]:
    """Measures and returns the suite's figures."""
    home = Path(tempfile.mkdtemp(prefix="smoke-bench-"))
    settings = private_settings(home, load_settings(), SMOKE_SIMULATE="true")
    bare = _bare_broker(home / "bare", settings)
    platform = Platform(settings, tether=True)
    try:
        began = time.monotonic()
        platform.up()
        up = time.monotonic() - began
        landed = _first_reading(settings, began)
        again = time.monotonic()
        platform.up()
        again = time.monotonic() - again
        peaks = _peaks(platform, WATCHED_S)
    finally:
        platform.down()
        shutil.rmtree(home, ignore_errors=True)
    peer = "the broker alone, formatted and started"
    return [
        Figure("P9", "`up` in an empty folder -> first landed reading", landed, "s", peer, bare),
        Figure("P9.up", "`up` in an empty folder (dependencies and jars are there)", up, "s", peer, bare),
        Figure("P9.again", "a second `up`", again, "s", "the first one", up),
        *(
            Figure(f"P9.memory.{name}", f"peak memory of {name} and its children", peak, "MiB")
            for name, peak in sorted(peaks.items())
            if name != "all"
        ),
        Figure("P9.memory", "largest sum over all processes at one moment", peaks["all"], "MiB"),
    ]


def _bare_broker(home: Path, settings: Settings) -> float:
    broker = EmbeddedBroker(home, settings.kafka_port, settings.kafka_controller_port, settings.cache_dir)
    began = time.monotonic()
    broker.prepare()
    broker.start()
    seconds = time.monotonic() - began
    broker.stop()
    return seconds


def _first_reading(settings: Settings, began: float) -> float:
    lake = Lake(settings.lake)
    while time.monotonic() - began < FIRST_READING_S:
        if lake.exists(READINGS) and lake.open(READINGS).file_uris():
            return time.monotonic() - began
        time.sleep(0.1)
    raise SmokeError(f"no reading has landed after {FIRST_READING_S:.0f} s")


def _peaks(platform: Platform, seconds: float) -> dict[str, float]:
    """Peak of each program with its children, in MiB of proportional memory (shared pages are counted once)."""
    peaks: dict[str, float] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now: dict[str, float] = {}
        for name, pid in platform.pids().items():
            try:
                program = psutil.Process(pid)
                family = [program, *program.children(recursive=True)]
                now[name] = sum(each.memory_full_info().pss for each in family) / 2**20
            except psutil.NoSuchProcess:
                continue  # it ended while we looked
        now["all"] = sum(now.values())
        peaks = {name: max(peaks.get(name, 0.0), now.get(name, 0.0)) for name in {*peaks, *now}}
        time.sleep(1.0)
    return peaks
