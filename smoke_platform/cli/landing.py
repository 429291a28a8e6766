"""``smoke land``: look at the landing of readings, pause and resume it, run it by hand, accept a loss.

Belongs here: options and the way results are shown. Does not: the landing itself (``streaming.landing``).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from smoke_platform.adapters.lease import probe
from smoke_platform.settings import Settings, load_settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def land() -> None:
    """Show, pause, resume or run the landing of readings in the lake.

    \b
    Example:
      smoke land status          how far landing is
      smoke land pause           stop it, until `smoke land resume`
    """


@land.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show who is landing, how far it is, and what is in its way.

    \b
    Example:
      smoke land status
      smoke land status --json | jq .lag
    """
    from smoke_platform.streaming.landing import StandingProbe, lease_path, paused
    from smoke_platform.streaming.records_landing import RecordsProbe

    settings = load_settings()
    standing = StandingProbe(settings).standing(10.0)
    records = RecordsProbe(settings).standings(10.0)
    lease = probe(lease_path(settings))
    beat = lease.beat
    lag = standing.lag
    why_paused = paused(settings)
    fault = standing.fault
    facts: dict[str, Any] = {
        "topic": settings.topic_readings,
        "topic_id": standing.topic_id,
        "running": lease.held,
        "run_id": beat.run_id if beat and lease.held else None,
        "pid": beat.pid if beat and lease.held else None,
        "beat_age_s": round(time.time() - beat.at, 1) if beat and lease.held else None,
        "paused": why_paused,
        "fault": str(fault) if fault else None,
        "lag": sum(lag.values()),
        "partitions": [
            {"partition": number, "position": standing.positions[number], "start": low, "end": high, "lag": lag[number]}
            for number, (low, high) in sorted(standing.watermarks.items())
        ],
        "records": {
            name: {"lag": sum(each.lag.values()), "fault": str(each.fault) if each.fault else None}
            for name, each in records.items()
        },
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    console = Console()
    if standing.topic_id is None:
        console.print(f"There is no topic {settings.topic_readings}; make it with `smoke topics create`.")
    table = Table(title=f"Landing of {settings.topic_readings} (topic id {standing.topic_id})")
    for name in ("partition", "position", "log start", "log end", "lag"):
        table.add_column(name, justify="right")
    for row in facts["partitions"]:
        table.add_row(*(f"{row[name]:,}" for name in ("partition", "position", "start", "end", "lag")))
    console.print(table)
    if lease.held and beat:
        console.print(f"Run {beat.run_id} (process {beat.pid}) is landing; last heard {facts['beat_age_s']} s ago.")
    else:
        console.print("No run is landing.")
    if why_paused is not None:
        console.print(f"[yellow]Paused:[/yellow] {why_paused}. Go on with `smoke land resume`.")
    waiting = ", ".join(f"{name} {each['lag']:,}" for name, each in facts["records"].items())
    console.print(f"Other messages that wait to be landed: {waiting}.")
    for found in (fault, *(each.fault for each in records.values())):
        if found:
            console.print(f"[red]Stopped:[/red] {found}")


@land.command()
@click.option("--reason", default="", help="Shown to whoever asks why nothing lands.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when the running batch has landed.")
def pause(reason: str, wait: bool) -> None:
    """Stop landing after its current batch and keep it stopped. Readings wait in Kafka.

    \b
    Example:
      smoke land pause --reason "moving the lake"
    """
    from smoke_platform.streaming import landing

    settings = load_settings()
    landing.pause(settings, reason or f"by hand, {datetime.now(UTC).isoformat(timespec='seconds')}")
    deadline = time.monotonic() + 60
    while wait and probe(landing.lease_path(settings)).held:
        if time.monotonic() > deadline:
            click.echo("Paused; the running batch has not ended after 60 s, see `smoke land status`.")
            sys.exit(1)
        time.sleep(0.1)
    click.echo("Landing is paused. Go on with `smoke land resume`.")


@land.command()
def resume() -> None:
    """Let landing go on after a pause.

    \b
    Example:
      smoke land resume
    """
    from smoke_platform.streaming import landing

    there = landing.resume(load_settings())
    click.echo("Landing goes on within seconds." if there else "Landing was not paused.")


@land.command()
@click.option("--once", is_flag=True, help="Land what is there now, then end.")
@click.option("--records", is_flag=True, help="Beside the readings: alarms, commands, predictions, devices.")
@click.option("--windows", is_flag=True, help="Beside the readings: the windows' statistics.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run(once: bool, records: bool, windows: bool, as_json: bool) -> None:
    """Land in this terminal, without Dagster. Ctrl-C ends it after the current batch.

    \b
    Example:
      smoke land run --once
      smoke land run --records --windows
    """
    from smoke_platform.streaming.landing import Companion, Landing
    from smoke_platform.streaming.records_landing import RecordsLanding
    from smoke_platform.streaming.windows import WindowEngine

    settings = load_settings()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    topics = RecordsLanding(settings) if records else None
    engine = WindowEngine(settings) if windows else None
    companions: list[Companion] = [each for each in (topics, engine) if each is not None]
    report = Landing(settings, f"by-hand-{os.getpid()}", once=once, stop=stop, companions=companions).run()
    beside = topics.drain() if topics else {}
    appended = engine.drain() if engine else None
    total = report.total()
    if as_json:
        summary = {**asdict(report), "total": asdict(total), "rows_per_s": total.rows / max(report.seconds, 1e-9)}
        if topics:
            summary["records"] = {name: asdict(tally) for name, tally in beside.items()}
        if appended:
            summary["windows"] = asdict(appended)
        click.echo(json.dumps(summary, indent=2, default=str))
        return
    _show(settings, report, total)
    for name, tally in beside.items():
        click.echo(f"lake/{name}: {tally.rows:,} rows of {tally.messages:,} messages, {tally.unreadable:,} unreadable")
    if appended:
        click.echo(f"lake/window_statistics: {appended.windows:,} windows in {appended.commits:,} commits")


def _show(settings: Settings, report: Any, total: Any) -> None:
    console = Console()
    table = Table(title=f"Landed from {settings.topic_readings} in {report.seconds:.1f} s, {report.commits} commits")
    for name in ("partition", "rows", "rejected", "late", "repeated", "first offset", "last offset"):
        table.add_column(name, justify="right")
    for name, tally in [*sorted(report.partitions.items()), ("all", total)]:
        first, last = ("", "") if name == "all" else (f"{tally.first_offset:,}", f"{tally.last_offset:,}")
        counts = (f"{count:,}" for count in (tally.rows, tally.rejects, tally.late, tally.repeats))
        table.add_row(str(name), *counts, first, last)
    console.print(table)
    if report.reasons:
        console.print("Rejected: " + ", ".join(f"{count:,} {name}" for name, count in sorted(report.reasons.items())))
    console.print(f"Ended: {report.ended}.")


@land.command("accept-loss")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def accept_loss(yes: bool, as_json: bool) -> None:
    """Go on although messages were deleted from Kafka before they were landed; the ranges are recorded.

    \b
    Example:
      smoke land accept-loss
    """
    from smoke_platform.domain.offsets import described
    from smoke_platform.streaming import landing, records_landing

    settings = load_settings()
    found = {"readings": landing.StandingProbe(settings).standing(10.0)}
    found.update(records_landing.RecordsProbe(settings).standings(10.0))
    for name, standing in found.items():
        if standing.lost and not yes:
            click.confirm(f"Give up {described(standing.lost)} of {name}?", abort=True)
    given_up = landing.accept_loss(settings)
    others = records_landing.accept_loss(settings)
    if as_json:
        click.echo(
            json.dumps(
                [
                    *(asdict(each) for each in given_up),
                    *({"table": name, **asdict(each)} for name, ranges in others.items() for each in ranges),
                ]
            )
        )
        return
    if not given_up and not others:
        click.echo("Nothing was lost; nothing was changed.")
    for name, ranges in {"readings": given_up, **others}.items():
        if ranges:
            click.echo(f"Given up of {name}: {described(ranges)}.")
