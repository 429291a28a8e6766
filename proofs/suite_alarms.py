"""The alarms' proof: kills in the middle of a fire, in three seeded runs."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from smoke_platform.settings import load_settings
from smoke_platform.verification.alarm_kills import AFTER_RESTART_S, AFTER_TAKE_OVER_S, KillPlan, run

#: Each run is a platform of its own: one detector, three that share the partitions, and one again.
PLANS = (
    KillPlan(seed=1, kills=18, replicas=1, victims=("detector", "broker")),
    KillPlan(seed=2, kills=24, replicas=3, victims=("detector", "detector", "absent", "broker")),
    KillPlan(seed=3, kills=18, replicas=1, victims=("detector", "detector", "broker")),
)


def prove() -> dict[str, Any]:
    """Fires while the detector, one of three replicas and the broker are killed: each raised once, and soon."""
    runs = []
    for plan in PLANS:
        began = time.monotonic()
        home = Path(tempfile.mkdtemp(prefix="smoke-kills-"))
        try:
            findings = run(plan, home, load_settings(), lambda text: click.echo(f"  {text}", err=True))
        finally:
            shutil.rmtree(home, ignore_errors=True)
        for fault in findings.faults:
            click.echo(f"  FAULT {fault}", err=True)
        runs.append({"seconds": round(time.monotonic() - began, 1), **findings.as_dict()})
    return {
        "ok": all(run["ok"] for run in runs),
        "kills": sum(len(run["kill_reports"]) for run in runs),
        "bounds_s": {"after the restart": AFTER_RESTART_S, "take-over by the others": AFTER_TAKE_OVER_S},
        "runs": runs,
    }
