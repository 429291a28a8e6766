"""``smoke verify``: the proof of the platform, on a private one or on the running one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from smoke_platform.settings import load_settings


@click.command()
@click.option("--running", is_flag=True, help="Prove the platform that runs, with a topic and tables of its own.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Readings from this file, compared value by value; else simulated ones.",
)
@click.option("--poison", type=click.IntRange(min=0), default=1000, show_default=True, help="Bad messages mixed in.")
@click.option(
    "--kills",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="`kill -9` so often, in turn of the streaming run, the broker and the Dagster daemon, while readings flow.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the poison and of the kills' moments.")
@click.option("--keep", is_flag=True, help="Leave the private platform's folder for a look at it.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(running: bool, csv_file: Path | None, poison: int, kills: int, seed: int, keep: bool, as_json: bool) -> None:
    """Prove the platform end to end and print what was found.

    A private platform in a temporary folder, on free ports and without the simulator, is started, fed, looked at
    and stopped. Exits with 1 when any finding is not as it must be.

    \b
    Example:
      smoke verify
      smoke verify --csv recordings.csv --poison 1000 --kills 9
      smoke verify --running
    """
    from smoke_platform.verification.run import Plan, prove

    console = Console(stderr=True)
    plan = Plan(csv_file=csv_file, poison=poison, kills=kills, seed=seed, running=running, keep=keep)
    if running and kills:
        raise click.UsageError("--kills harms the platform, so it goes with a private one only: drop --running")
    findings = prove(plan, load_settings(), lambda text: console.print(f"[dim]{text}[/dim]", highlight=False))
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        table = Table(title="smoke verify", title_justify="left")
        for heading in ("", "what", "found"):
            table.add_column(heading, overflow="fold")
        for finding in findings:
            table.add_row("[green]ok[/green]" if finding.ok else "[red]NOT[/red]", finding.what, finding.found)
        Console().print(table)
    wrong = sum(not finding.ok for finding in findings)
    if wrong:
        console.print(f"[red]{wrong} of {len(findings)} findings are not as they must be[/red]")
        sys.exit(1)
