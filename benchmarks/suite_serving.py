"""Serving: ``/predict`` beside an endpoint of the same application that does nothing, in the same run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.http_load import Load, api_with_nothing, predict_beside_nothing
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import load_settings

REQUESTS = 20_000
PEER = "an endpoint that does nothing, same application"


def run() -> list[Figure]:
    """Measures and returns the suite's figures; trains a start-up model of its own first."""
    with tempfile.TemporaryDirectory(prefix="smoke-bench-") as folder:
        home = Path(folder)
        _train(home)
        with api_with_nothing(home) as url:
            one = predict_beside_nothing(url, REQUESTS)
            eight = predict_beside_nothing(url, REQUESTS, connections=8)
        failed = sum(load.failed for loads in (one, eight) for load in loads.values())
        if failed:
            raise SmokeError(f"{failed} requests failed, so there is nothing to compare")
        return [
            *_figures("P4", "one client", one, goal=True),
            *_figures("P4.clients8", "8 clients", eight, goal=False),
        ]


def _train(home: Path) -> None:
    environment = {**os.environ, **load_settings({"SMOKE_HOME": str(home)}, home / "no.env").environment()}
    command = [str(Path(sys.executable).with_name("smoke")), "models", "train"]
    answer = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SmokeError(f"the start-up model was not trained: {answer.stderr.strip()[-500:]}")


def _figures(key: str, who: str, loads: dict[str, Load], *, goal: bool) -> list[Figure]:
    ours, nothing = loads["predict"], loads["nothing"]
    met = ours.p99_ms <= 1.5 * nothing.p99_ms if goal else None
    return [
        Figure(key, f"/predict p99, {who}", ours.p99_ms, "ms", PEER, nothing.p99_ms, "<= 1.5x" if goal else None, met),
        Figure(f"{key}.p50", f"/predict p50, {who}", ours.p50_ms, "ms", PEER, nothing.p50_ms),
        Figure(f"{key}.rate", f"/predict, {who}", ours.per_second, "requests/s", PEER, nothing.per_second),
    ]
