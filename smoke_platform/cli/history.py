"""``smoke history``: makes the history of the whole lake by hand, and shows the newest one.

Belongs here: options, and how findings are shown. Does not: the history itself (``streaming.history``), its schedule
(``orchestration.monitoring``).
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, cast

import click

from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import load_settings

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def history() -> None:
    """Tell what the whole lake says: trends, rhythms, copies, ageing.

    \b
    Example:
      smoke history run
      smoke history show --json | jq .repeated_recordings
    """


@history.command()
@click.option(
    "--engine",
    type=click.Choice(["auto", "spark", "local"]),
    help="What it runs on; default: SMOKE_HISTORY_ENGINE. auto: Spark wherever a JDK for it is found.",
)
@JSON_OPTION
def run(engine: str | None, as_json: bool) -> None:
    """Make the history now, as the schedule does on Sundays at 03:00.

    Days that have not changed since the last time are not read again.

    \b
    Example:
      smoke history run
      smoke history run --engine local --json | jq -r '.sentences[]'
    """
    from smoke_platform.streaming import history as program

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The gateway to the JVM tells of each connection.
    logging.getLogger("py4j").setLevel(logging.ERROR)
    told = program.run(load_settings(), datetime.now(UTC), cast("program.Engine | None", engine))
    if told is None:
        raise SmokeError("no reading has landed yet", "`smoke produce` sends some, the platform lands them")
    data: dict[str, Any] = json.loads(told.report.data.read_text("utf-8"))
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    _print(data)
    click.echo(f"\n{told.effort.sentence}\n{told.report.page}")


@history.command()
@JSON_OPTION
def show(as_json: bool) -> None:
    """Show the newest history.

    \b
    Example:
      smoke history show
      smoke history show --json | jq '.sources.device.ageing'
    """
    from smoke_platform.adapters.reports import ReportStore

    settings = load_settings()
    data = ReportStore(settings.reports_dir, settings.report_retention).latest("history")
    if data is None:
        raise SmokeError("there is no history yet", "`smoke history run` makes one")
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        _print(data)


def _print(data: dict[str, Any]) -> None:
    click.echo(f"{data['rows']:,} readings, {data['first_day']} to {data['last_day']} ({data['zone']})\n")
    for sentence in data["sentences"]:
        click.echo(f"- {sentence}")
