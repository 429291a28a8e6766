"""The proof of engine ``spark`` on a real cluster: a standalone master and two workers on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click

from smoke_platform.settings import load_settings
from smoke_platform.verification.run import private_settings
from smoke_platform.verification.spark_cluster import standalone
from smoke_platform.verification.window_kills import WindowKillPlan, run
from smoke_platform_tests.window_judge import faults_of_windows

ROOT = Path(__file__).resolve().parents[1]
TESTS = "smoke_platform_tests/integration/test_spark.py"
WORKERS, CORES = 2, 2
PLAN = WindowKillPlan(engine="spark", seed=2, kills=4, seconds=1500, patience_s=600.0)


def suite() -> dict[str, Any]:
    """Engine spark on a master and two workers: its tests, and kills of the driver."""
    home = Path(tempfile.mkdtemp(prefix="smoke-spark-"))
    settings = load_settings()
    private = private_settings(home, settings)
    try:
        # Both ports are free ones that private_settings has found for parts that do not run here.
        with standalone(
            private, private.api_port, private.dagster_port, workers=WORKERS, cores=CORES, memory="3g"
        ) as cluster:
            tests = _tests(home, cluster.url)
            click.echo(f"  {tests['passed']} of {tests['run']} tests passed on the cluster", err=True)
            began = time.monotonic()
            findings = run(
                PLAN,
                home / "kills",
                settings,
                lambda text: click.echo(f"  {text}", err=True),
                {"SPARK_MASTER": cluster.url, "SPARK_CORES": "2", "SPARK_BATCH_ROWS": "1800"},
                partial(faults_of_windows, over_only=True, most=12_000),
            )
            kills = {"took_s": round(time.monotonic() - began, 1), **findings.as_dict()}
            alive = sum(worker.poll() is None for worker in cluster.workers)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for fault in findings.faults:
        click.echo(f"  FAULT {fault}", err=True)
    return {
        "ok": tests["ok"] and findings.ok and alive == WORKERS,
        "cluster": {"workers": WORKERS, "cores_each": CORES, "workers_alive_at_the_end": alive},
        "tests": tests,
        "kills": kills,
    }


def _tests(home: Path, master: str) -> dict[str, Any]:
    """Runs the tests of the engine with this master; what ``make test`` runs on ``local[2]``."""
    began = time.monotonic()
    report = home / "tests.xml"
    # Each test may wait for the executors of a driver of its own.
    command = [sys.executable, "-m", "pytest", TESTS, "-q", f"--junitxml={report}", "--timeout=600"]
    code = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PROVE_SPARK_MASTER": master}, stdout=sys.stderr, check=False
    ).returncode
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - pytest has just written it
    bad = [case.get("name") for case in cases if any(child.tag in ("failure", "error") for child in case)]
    return {
        "ok": code == 0,
        "run": len(cases),
        "passed": len(cases) - len(bad),
        "failed": bad,
        "seconds": round(time.monotonic() - began, 1),
    }
