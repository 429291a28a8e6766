"""The windows' proof: each engine is killed at ten seeded moments, the local one in three runs."""

from __future__ import annotations

import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from smoke_platform.settings import load_settings
from smoke_platform.verification.window_kills import WindowKillPlan, run
from smoke_platform_tests.window_judge import faults_of_windows

#: Each run is a platform of its own. An engine that is to be proved has plans here and its commands in
#: ``verification.window_kills.CONTENDERS``.
PLANS = (
    *(WindowKillPlan(engine="local", seed=seed, kills=10) for seed in (1, 2, 3)),
    # Spark takes ten seconds to start each time.
    WindowKillPlan(engine="spark", seed=1, kills=10, patience_s=600.0),
)

#: Beside the kernel: the windows of the first devices by brute force, those whose readings are late and doubled.
DEFINITION = partial(faults_of_windows, over_only=True, most=12_000)


def suite() -> dict[str, Any]:
    """The engine that appends windows is killed in the middle: its table equals that of an undisturbed run."""
    runs = []
    for plan in PLANS:
        began = time.monotonic()
        home = Path(tempfile.mkdtemp(prefix="smoke-window-kills-"))
        try:
            findings = run(
                plan, home, load_settings(), lambda text: click.echo(f"  {text}", err=True), definition=DEFINITION
            )
        finally:
            shutil.rmtree(home, ignore_errors=True)
        for fault in findings.faults:
            click.echo(f"  FAULT {fault}", err=True)
        runs.append({"took_s": round(time.monotonic() - began, 1), **findings.as_dict()})
    return {
        "ok": all(run["ok"] for run in runs),
        "kills": sum(len(run["kill_reports"]) for run in runs),
        "engines": sorted({run["engine"] for run in runs}),
        "runs": runs,
    }
