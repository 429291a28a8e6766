"""``smoke up, down, status, logs, doctor, kafka``: the embedded platform from a terminal.

Belongs here: options, tables, spinners and exit codes. Does not: anything that a program could not call as well
(``smoke_platform.local``).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from smoke_platform.domain.errors import SmokeError
from smoke_platform.local.broker import java_environment
from smoke_platform.local.supervisor import Platform, ProgramStatus, platform_broker
from smoke_platform.settings import Settings, load_settings

#: Of lines that follow one another quickly, a log that nobody watches gets one in so many seconds.
PLAIN_INTERVAL_S = 5.0


class _Terminal:
    """Steps as spinners on a terminal, as plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.description}"),
                TextColumn("[dim]{task.fields[note]}[/]"),
                console=console,
            )

    def __enter__(self) -> _Terminal:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_fault: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        started = time.monotonic()
        progress = self._progress
        if progress is None:
            spoken = started

            def plainly(line: str) -> None:
                nonlocal spoken
                if time.monotonic() - spoken >= PLAIN_INTERVAL_S:
                    spoken = time.monotonic()
                    self._plain(f"  {line}")

            yield plainly
            self._plain(f"{title}: done in {time.monotonic() - started:.1f} s")
            return
        task = progress.add_task(title, total=1, note="")
        yield lambda line: progress.update(task, note=line)
        progress.update(task, completed=1, note=f"{time.monotonic() - started:.1f} s")

    def _plain(self, line: str) -> None:
        with self._lock:
            click.echo(line)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the programs as JSON, without progress.")
def up(as_json: bool) -> None:
    """Start the embedded platform and say where everything is.

    Sets up what is missing on the way. Where everything runs already, nothing is changed.

    \b
    Example:
      smoke up
      SMOKE_API_PORT=5055 SMOKE_SIMULATE=false smoke up
    """
    settings = load_settings()
    platform = Platform(settings)
    if as_json:
        _print_json(settings, platform.up())
        return
    console = _console()
    with _Terminal(console) as terminal:
        statuses = platform.up(terminal)
    console.print(_table(statuses))
    command = os.path.relpath(sys.argv[0])  # as it can be typed here, on PATH or not
    console.print(
        f"State is in {settings.home}. [bold]{command} down[/] stops it, [bold]{command} logs[/] shows what it says."
    )


@click.command()
def down() -> None:
    """Stop the embedded platform; nothing of it is left running.

    \b
    Example:
      smoke down
    """
    platform = Platform(load_settings())
    if not platform.is_supervised() and not platform.processes():
        click.echo("Nothing runs.")
        return
    started = time.monotonic()
    for line in platform.down():
        click.echo(line)
    click.echo(f"Stopped in {time.monotonic() - started:.1f} s.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the programs as JSON.")
def status(as_json: bool) -> None:
    """Show what runs, since when, and whether it is healthy.

    Exits with 0 if every program runs and answers, else with 1.

    \b
    Example:
      smoke status
      smoke status --json | jq '.programs[] | select(.well | not)'
    """
    settings = load_settings()
    statuses = Platform(settings).status()
    if as_json:
        _print_json(settings, statuses)
    else:
        _console().print(_table(statuses))
    if not all(entry.well for entry in statuses):
        sys.exit(1)


@click.command()
@click.argument("program", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=40, show_default=True, help="Last lines to show.")
def logs(program: str | None, follow: bool, lines: int) -> None:
    """Show or follow the logs of the platform's programs; all of them where PROGRAM is left out.

    \b
    Example:
      smoke logs api -n 100
      smoke logs --follow
    """
    from smoke_platform.local.logs import choose, last_lines
    from smoke_platform.local.logs import follow as follow_logs

    settings = load_settings()
    files = choose(settings, program)
    width = max(map(len, files))

    def show(name: str, line: str) -> None:
        click.echo(line if program else f"{click.style(f'{name:<{width}}', fg='cyan')} {line}")

    if not any(path.is_file() for path in files.values()) and not follow:
        raise SmokeError(f"there are no logs in {settings.logs_dir}", "smoke up starts the platform")
    for name, path in files.items():
        for line in last_lines(path, lines):
            show(name, line)
    if follow:
        try:
            for name, line in follow_logs(files):
                show(name, line)
        except KeyboardInterrupt:
            return


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(as_json: bool) -> None:
    """Check Java, ports, disk, memory and versions; name each remedy.

    Exits with 1 if something would hinder the platform; warnings do not count.

    \b
    Example:
      smoke doctor
      smoke doctor --json
    """
    from smoke_platform.local.doctor import examine

    checks = examine(load_settings())
    healthy = all(check.outcome != "fail" for check in checks)
    if as_json:
        click.echo(json.dumps({"healthy": healthy, "checks": [check.__dict__ for check in checks]}, indent=2))
    else:
        marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}
        table = Table(box=None, pad_edge=False)
        for heading in ("", "What", "Found", "Remedy"):
            table.add_column(heading, overflow="fold")
        for check in checks:
            table.add_row(marks[check.outcome], check.name, check.found, check.remedy)
        _console().print(table)
    if not healthy:
        sys.exit(1)


@click.command()
def kafka() -> None:
    """Run the embedded Kafka broker alone, in the foreground, until it is stopped.

    Ctrl-C or SIGTERM stops it cleanly. Its log is in SMOKE_HOME/kafka/logs. Topics are not made here: smoke topics.

    \b
    Example:
      smoke kafka
      SMOKE_KAFKA_PORT=19092 SMOKE_KAFKA_CONTROLLER_PORT=19093 smoke kafka
    """
    settings = load_settings()
    broker = platform_broker(settings)
    broker.prepare(lambda line: click.echo(line, err=True))
    broker.lock_folder()
    broker.require_ports()
    click.echo(f"Kafka at {broker.bootstrap_servers}, log in {broker.log_file}", err=True)
    sys.stderr.flush()
    command = broker.command()
    # The broker takes this process's place, so whoever stops or kills this process reaches it and nothing is orphaned.
    os.execve(command[0], command, java_environment())  # noqa: S606 - our own command line


def _print_json(settings: Settings, statuses: list[ProgramStatus]) -> None:
    content = {
        "home": str(settings.home),
        "well": all(entry.well for entry in statuses),
        "programs": [entry.as_dict() for entry in statuses],
    }
    click.echo(json.dumps(content, indent=2))


def _console() -> Console:
    """The terminal; where the output goes elsewhere, wide enough that no table is broken."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def _table(statuses: list[ProgramStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("Program", "State", "Where", "Pid", "Up", "Memory"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("Pid", "Up", "Memory") else "left")
    table.add_column("", overflow="fold")
    for entry in statuses:
        colour = "green" if entry.well else "red" if entry.state != "STARTING" else "yellow"
        state = entry.state.lower() if entry.healthy is not False or entry.pid is None else "not answering"
        table.add_row(
            entry.name,
            f"[{colour}]{state}[/]",
            entry.address,
            "" if entry.pid is None else str(entry.pid),
            "" if entry.uptime_s is None else _duration(entry.uptime_s),
            "" if entry.rss_mb is None else f"{entry.rss_mb:.0f} MB",
            entry.detail or entry.purpose,
        )
    return table


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
