"""``smoke spark``: run engine ``spark`` by hand, see how it stands, score the past, start a cluster's processes.

Belongs here: options and the way results are shown. Does not: the jobs themselves (``streaming.spark_landing``,
``streaming.spark_scores``), the session (``adapters.spark``).
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from rich.console import Console

from smoke_platform.settings import Settings, load_settings

#: What a worker joins; several where there are masters in reserve. Anything else is a Java exception.
_MASTERS = re.compile(r"spark://[A-Za-z0-9._-]+:\d{1,5}(,[A-Za-z0-9._-]+:\d{1,5})*")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def spark() -> None:
    """Land readings and compute windows on Spark, for when one machine is outgrown.

    \b
    Example:
      smoke spark status              whether Spark can run here, and what it does
      smoke spark run --once          land what is there on Spark, then end
    """


@spark.command()
@click.option("--once", is_flag=True, help="Land what is there now, then end.")
@click.option("--windows/--no-windows", default=True, show_default=True, help="Append windows after each batch.")
@click.option("--records", is_flag=True, help="Beside the readings: alarms, commands, predictions, devices.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run(once: bool, windows: bool, records: bool, as_json: bool) -> None:
    """Land on Spark in this terminal, without Dagster. Ctrl-C ends it after the current batch.

    \b
    Example:
      smoke spark run --once
      SPARK_MASTER=spark://host:7077 smoke spark run --records
    """
    from smoke_platform.streaming.records_landing import RecordsLanding
    from smoke_platform.streaming.spark_landing import SparkLanding

    settings = load_settings()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    topics = RecordsLanding(settings) if records else None
    landing = SparkLanding(
        settings,
        f"by-hand-{os.getpid()}",
        once=once,
        stop=stop,
        windows=windows,
        companions=[topics] if topics else [],
        telling=lambda line: click.echo(line, err=True),
    )
    report = landing.run()
    appended = landing.drain_windows()
    total = report.total()
    if as_json:
        summary = {**asdict(report), "total": asdict(total), "rows_per_s": total.rows / max(report.seconds, 1e-9)}
        summary["windows"] = asdict(appended)
        if topics:
            summary["records"] = {name: asdict(tally) for name, tally in topics.drain().items()}
        click.echo(json.dumps(summary, indent=2, default=str))
        return
    click.echo(
        f"{total.rows:,} readings landed in {report.commits:,} commits and {report.seconds:.1f} s, "
        f"{total.rejects:,} messages rejected, {total.late:,} readings late"
    )
    click.echo(f"lake/window_statistics: {appended.windows:,} windows in {appended.commits:,} commits")
    click.echo(f"Ended: {report.ended}.")


@spark.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show which engine is chosen, whether Spark can run here, and how far landing and windows are.

    \b
    Example:
      smoke spark status
    """
    facts = _status(load_settings())
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    console = Console()
    console.print(f"Engine: {facts['engine']} (SMOKE_ENGINE). Master: {facts['master']}.")
    console.print(f"Java: {facts['java']}" if facts["java"] else f"[red]{facts['java_fault']}[/red]")
    console.print(f"Jars of the Kafka connector: {facts['jars']}.")
    if facts["running"]:
        console.print(
            f"Run {facts['run_id']} (process {facts['pid']}) is landing; last heard {facts['beat_age_s']} s ago."
        )
        if facts["ui"]:
            console.print(f"Spark's UI: {facts['ui']}")
    else:
        console.print("No run is landing.")
    if facts["broker_fault"]:
        console.print(f"[red]{facts['broker_fault']}[/red]")
        return
    console.print(f"{facts['lag']:,} messages wait to be landed.")
    if facts["fault"]:
        console.print(f"[red]Stopped:[/red] {facts['fault']}")
    windows = facts["windows"]
    console.print(f"Windows: {windows['behind']:,} readings that have landed are not reflected yet.")
    if windows["silence_at"]:
        console.print(f"Open windows end by silence from {windows['silence_at']} on.")


def _status(settings: Settings) -> dict[str, Any]:
    from smoke_platform.adapters.java import find_jdk
    from smoke_platform.adapters.kafka_bulk import KafkaUnreachable
    from smoke_platform.adapters.lease import probe
    from smoke_platform.adapters.spark_jars import CONNECTOR
    from smoke_platform.domain.errors import SmokeError
    from smoke_platform.streaming.landing import StandingProbe, lease_path
    from smoke_platform.streaming.windows import WindowsProbe

    facts: dict[str, Any] = {"engine": settings.engine, "master": settings.spark_master}
    try:
        java = find_jdk()
        facts.update({"java": f"{java.major}, from {java.origin} ({java.command})", "java_fault": None})
    except SmokeError as fault:
        facts.update({"java": None, "java_fault": str(fault)})
    folder = CONNECTOR.folder(settings.cache_dir)
    try:
        CONNECTOR.check(folder, CONNECTOR.expected())
        facts["jars"] = f"complete, in {folder}"
    except SmokeError as fault:
        facts["jars"] = fault.message if folder.is_dir() else "not in the cache yet; the first run fetches 10 MB"
    lease = probe(lease_path(settings))
    beat = lease.beat if lease.held else None
    mine = beat is not None and settings.engine == "spark"
    facts.update(
        {
            "running": lease.held,
            "run_id": beat.run_id if beat else None,
            "pid": beat.pid if beat else None,
            "beat_age_s": round(time.time() - beat.at, 1) if beat else None,
            "ui": f"http://{settings.near_host}:{settings.spark_ui_port}" if mine and settings.spark_ui_port else None,
        }
    )
    facts.update({"lag": None, "fault": None, "broker_fault": None, "windows": None})
    try:
        standing = StandingProbe(settings).standing(10.0)
        windows = WindowsProbe(settings).standing(10.0)
    except KafkaUnreachable as away:
        facts["broker_fault"] = str(away)
        return facts
    facts["lag"] = sum(standing.lag.values())
    facts["fault"] = str(standing.fault) if standing.fault else None
    facts["windows"] = {
        "behind": windows.behind,
        "silence_at": windows.silence_at.isoformat(timespec="seconds") if windows.silence_at else None,
        "table_version": windows.version,
    }
    return facts


_DAY = click.DateTime(["%Y-%m-%d"])


@spark.command()
@click.option("--from", "first", type=_DAY, required=True, help="First UTC day.")
@click.option("--to", "last", type=_DAY, help="Last UTC day; the first where none is given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def score(first: datetime, last: datetime | None, as_json: bool) -> None:
    """Score the readings of these days that have no prediction, with the champion; landing may go on meanwhile.

    \b
    Example:
      smoke spark score --from 2022-06-08 --to 2022-06-13
    """
    from smoke_platform.adapters.spark import session
    from smoke_platform.streaming.spark_scores import model_for, score_days

    settings = load_settings()
    # Before Spark, which takes half a minute to start.
    model = model_for(settings, first.date(), (last or first).date())

    def telling(line: str) -> None:
        click.echo(line, err=True)

    with session(settings, "smoke score", progress=telling) as opened:
        report = score_days(settings, opened, first.date(), (last or first).date(), telling, model)
    if as_json:
        click.echo(json.dumps({**asdict(report), "rows": report.rows}, indent=2))
        return
    for day, rows in report.days.items():
        click.echo(f"{day}: {rows:,} readings scored by model {report.model_version}")


@spark.command()
@click.option("--host", help="Address to listen on; SMOKE_BIND_HOST where none is given.")
@click.option("--port", type=click.IntRange(1, 65535), default=7077, show_default=True)
@click.option("--ui-port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one.")
def master(host: str | None, port: int, ui_port: int) -> None:
    """Run the master of a standalone cluster in this terminal.

    \b
    Example:
      smoke spark master --host 10.0.0.5
    """
    from smoke_platform.adapters.spark import cluster_environment, master_command

    settings = load_settings()
    command = master_command(host or settings.bind_host, port, ui_port)
    # The command becomes the master: whoever stops it reaches Java.
    os.execvpe(command[0], command, cluster_environment(settings))  # noqa: S606 - a program of our own choice


@spark.command()
@click.argument("master_url")
@click.option("--host", help="Address by which master and driver reach it; SMOKE_BIND_HOST where none is given.")
@click.option("--ui-port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0: any free one.")
@click.option("--cores", type=click.IntRange(1), help="Cores it offers; all where none are given.")
@click.option("--memory", default="", help="Memory it offers, such as 4g; all but 1 GB where none is given.")
def worker(master_url: str, host: str | None, ui_port: int, cores: int | None, memory: str) -> None:
    """Run a worker of a standalone cluster in this terminal; it joins MASTER_URL.

    \b
    Example:
      smoke spark worker spark://10.0.0.5:7077 --host 10.0.0.6 --cores 4 --memory 8g
    """
    from smoke_platform.adapters.spark import cluster_environment, worker_command

    if not _MASTERS.fullmatch(master_url):
        raise click.BadParameter(
            f"{master_url!r} is no master: it is spark://HOST:PORT, as `smoke spark master` was started",
            param_hint="MASTER_URL",
        )
    settings = load_settings()
    command = worker_command(settings, master_url, host or settings.bind_host, ui_port, cores=cores, memory=memory)
    os.execvpe(command[0], command, cluster_environment(settings))  # noqa: S606 - a program of our own choice
