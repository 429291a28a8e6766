"""The weekly history in one process and on a standalone cluster: the same figures, and true things said.

Two lakes: the public recordings, and 30 simulated days with one device whose particle sensor ages and one that repeats
another one's week. Both are told in this process and on a master with two workers, and must agree in every figure.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import polars as pl

from smoke_platform.adapters.lake import Lake
from smoke_platform.domain import history_words
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.history import History
from smoke_platform.domain.recordings import RecordingFile
from smoke_platform.domain.simulator import simulate
from smoke_platform.settings import Settings, load_settings
from smoke_platform.streaming import history
from smoke_platform.verification.run import private_settings
from smoke_platform.verification.spark_cluster import standalone
from smoke_platform_tests.history_parts import same
from smoke_platform_tests.monitoring_lake import as_landed

START = datetime(2026, 3, 2, tzinfo=UTC)
DAYS, DEVICES, INTERVAL_S, SEED = 30, 8, 10.0, 7
WORKERS, CORES = 2, 1
#: Small parts, so that both workers have some of every day.
PART_ROWS = 25_000
#: What the aged sensor gains a day, as a share of what it measures.
AGEING_A_DAY = 0.02
AGED, FIRST, COPY = "sim-0003", "sim-0001", "copied"


def suite() -> dict[str, Any]:
    """The history of the public recordings and of 30 simulated days, in one process and on a cluster."""
    home = Path(tempfile.mkdtemp(prefix="smoke-history-"))
    settings = load_settings()
    file = settings.data_dir / "kaggle_smoke" / "smoke_detection_iot.csv" if settings.data_dir else None
    if file is None or not file.is_file():
        raise SmokeError(
            "the proof of the history tells the public recordings, which are not part of the project",
            "set SMOKE_DATA_DIR to the folder that holds kaggle_smoke/smoke_detection_iot.csv",
        )
    base = private_settings(home / "cluster", settings)
    try:
        with standalone(base, base.api_port, base.dagster_port, workers=WORKERS, cores=CORES, memory="2g") as cluster:
            runs = []
            for name, days in (("recordings", [_recordings(file)]), ("simulated", _simulated())):
                click.echo(f"  {name}: landing", err=True)
                readings = 0
                for number, day in enumerate(days):
                    for place in ("local", "spark"):
                        Lake(str(home / name / place / "lake")).append("readings", as_landed(day), ["event_date"])
                    readings += day.height
                    if number % 10 == 9:
                        click.echo(f"  {name}: {number + 1} days landed", err=True)
                runs.append({"lake": name, "readings": readings, **_told(home / name, settings, cluster.url, name)})
            alive = sum(worker.poll() is None for worker in cluster.workers)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return {
        "ok": all(run["ok"] for run in runs) and alive == WORKERS,
        "cluster": {"workers": WORKERS, "cores_each": CORES, "workers_alive_at_the_end": alive},
        "simulated": {"days": DAYS, "devices": DEVICES, "interval_s": INTERVAL_S, "seed": SEED},
        "runs": runs,
    }


def _recordings(file: Path) -> pl.DataFrame:
    faults: list[Any] = []
    return pl.concat(list(RecordingFile(file, faults.append).chunks())).drop("recording")


def _simulated() -> Any:
    """A frame for each day; ``copied`` repeats the first device's first week three weeks later."""
    for number in range(DAYS):
        start = START + timedelta(days=number)
        day = simulate(DEVICES, start, 86_400, SEED, interval_s=INTERVAL_S)
        gain = 1.0 + AGEING_A_DAY * number
        day = day.with_columns(
            pl.when(pl.col("device_id") == AGED).then(pl.col(name) * gain).otherwise(pl.col(name)).alias(name)
            for name in ("pm1_0", "pm2_5")
        )
        if number >= 21 and number < 28:
            source = simulate(1, start - timedelta(days=21), 86_400, SEED, interval_s=INTERVAL_S)
            day = pl.concat(
                [day, source.with_columns(pl.lit(COPY).alias("device_id"), pl.col("event_time") + timedelta(days=21))]
            )
        yield day


def _told(home: Path, settings: Settings, master: str, name: str) -> dict[str, Any]:
    here, local_s = _tell(_settings(home / "local", settings, "local", master))
    there, spark_s = _tell(_settings(home / "spark", settings, "spark", master))
    differing = same(here[0].as_dict(), there[0].as_dict())
    sentences = history_words.sentences(there[0])
    missing = _unsaid(name, there[0], sentences)
    for fault in (*differing[:5], *missing):
        click.echo(f"  FAULT {name}: {fault}", err=True)
    return {
        "ok": not differing and not missing and there[1].engine == "spark",
        "days": there[1].days,
        "parts": {"local": here[1].parts, "spark": there[1].parts},
        "seconds": {"local": round(local_s, 1), "spark": round(spark_s, 1)},
        "figures_that_differ": differing[:20],
        "not_said": missing,
        "sentences": sentences[:12],
    }


def _settings(home: Path, settings: Settings, engine: str, master: str) -> Settings:
    more = {"SMOKE_HOME": str(home), "SMOKE_HISTORY_ENGINE": engine, "SMOKE_CACHE_DIR": str(settings.cache_dir)}
    if engine == "spark":
        more |= {"SPARK_MASTER": master, "SPARK_UI_PORT": "0", "SMOKE_HISTORY_PART_ROWS": str(PART_ROWS)}
    return load_settings(more, env_file=home / "no.env")


def _tell(settings: Settings) -> tuple[tuple[History, history.Effort], float]:
    began = time.monotonic()
    told = history.tell(settings)
    if told is None:
        raise SmokeError("nothing has landed")
    return told, time.monotonic() - began


def _unsaid(name: str, told: History, sentences: list[str]) -> list[str]:
    """What the history must have noticed and did not."""
    copies = {(copy.copy_device, copy.first_device): copy.rows for copy in told.copies}
    if name == "recordings":
        wanted = {("csv-recording-2", "csv-recording-1"): 24_994, ("csv-recording-5", "csv-recording-4"): 5_744}
        return [] if copies == wanted else [f"copies are {copies}, not {wanted}"]
    aged = told.ageing.filter(pl.col("ages"))["device_id"].unique().to_list()
    unsaid = []
    if list(copies) != [(COPY, FIRST)]:
        unsaid.append(f"copies are {copies}, not of {FIRST} by {COPY} alone")
    if AGED not in aged:
        unsaid.append(f"{AGED} ages, found were {aged}")
    if not any(COPY in sentence for sentence in sentences):
        unsaid.append("no sentence names the copy")
    return unsaid
