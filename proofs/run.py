"""``make prove``: runs the long proofs and writes ``proofs/results/<suite>.json`` with their seeds.

Example:
    python -m proofs.run landing
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from proofs import (
    suite_alarms,
    suite_day,
    suite_flood,
    suite_history,
    suite_lifecycle,
    suite_machine,
    suite_models,
    suite_spark,
    suite_windows,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import load_settings
from smoke_platform.verification.run import Plan, prove

RESULTS = Path(__file__).with_name("results")
#: Each seed is a run of its own: another private platform, other moments of the kills.
LANDING_SEEDS = (1, 2, 3)
LANDING_KILLS = 9
LANDING_POISON = 1000


def landing() -> dict[str, Any]:
    """The public recordings replayed while the streaming run, the broker and the daemon are killed in turn."""
    settings = load_settings()
    file = settings.data_dir / "kaggle_smoke" / "smoke_detection_iot.csv" if settings.data_dir else None
    if file is None or not file.is_file():
        raise SmokeError(
            "the landing proof replays the public recordings, which are not part of the project",
            "set SMOKE_DATA_DIR to the folder that holds kaggle_smoke/smoke_detection_iot.csv",
        )
    runs = []
    for seed in LANDING_SEEDS:
        began = time.monotonic()
        plan = Plan(csv_file=file, poison=LANDING_POISON, kills=LANDING_KILLS, seed=seed)
        findings = prove(plan, settings, lambda text: click.echo(f"  {text}", err=True))
        runs.append(
            {
                "seed": seed,
                "kills": LANDING_KILLS,
                "poison": LANDING_POISON,
                "seconds": round(time.monotonic() - began, 1),
                "ok": all(finding.ok for finding in findings),
                "findings": [_portable(finding.as_dict()) for finding in findings],
            }
        )
    return {"ok": all(run["ok"] for run in runs), "runs": runs}


def _portable(finding: dict[str, Any]) -> dict[str, Any]:
    """The finding without the temporary folder that is gone with the private platform."""
    return {**finding, "found": re.sub(r"\S*/smoke-verify-[^/\s]+/", "", finding["found"])}


SUITES: dict[str, Callable[[], dict[str, Any]]] = {
    "landing": landing,
    "alarms": suite_alarms.prove,
    "flood": suite_flood.suite,
    "machine": suite_machine.suite,
    "models": suite_models.suite,
    "lifecycle": suite_lifecycle.suite,
    "windows": suite_windows.suite,
    "spark": suite_spark.suite,
    "history": suite_history.suite,
    "day": suite_day.suite,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("suites", nargs=-1, type=click.Choice(sorted(SUITES)))
def main(suites: tuple[str, ...]) -> None:
    """Run the long proofs SUITES (all where none is named); exits with 1 when one of them fails.

    \b
    Example:
      python -m proofs.run landing
    """
    good = True
    for name in suites or tuple(SUITES):
        click.echo(f"== {name}: {(SUITES[name].__doc__ or '').strip()}", err=True)
        result = {"suite": name, "proved_at": datetime.now(UTC).isoformat(timespec="seconds"), **SUITES[name]()}
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{name}.json"
        file.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
        click.echo(f"{name}: {'proved' if result['ok'] else 'FAILED'}; written: {file.name}")
        good = good and bool(result["ok"])
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    try:
        main()
    except SmokeError as error:
        click.echo(f"prove: {error}", err=True)
        sys.exit(1)
