"""``smoke windows``: see the windows, follow them as they are appended, compute past days anew.

Belongs here: options and the way results are shown. Does not: the engine (``streaming.windows``), reading the table
(``adapters.windows``), a window in words (``domain.window_words``).
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smoke_platform.domain.alarm_words import printable
from smoke_platform.domain.alarms import Severity
from smoke_platform.settings import load_settings

if TYPE_CHECKING:
    from smoke_platform.adapters.windows import WindowTable

#: How often the table is looked at for new windows.
FOLLOW_S = 0.5
#: The line of a window over all devices waits until none has got it for so many looks of the engine, ...
QUIET_LOOKS = 2
#: ... and no longer than this after the first: devices that report once a minute end it all through a minute.
LONGEST_WAIT_S = 60.0
#: So many windows over all devices are read at once, and the lines of so many are remembered.
WINDOWS_AT_ONCE = 100
LINES_REMEMBERED = 10_000
#: Without a device and a time: the devices that got a window within so long before the newest one.
LATELY = timedelta(minutes=10)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
device_option = click.option("--device", "device_id", help="This device alone.")
_MOMENT = click.DateTime(
    ["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"]
)
_DAY = click.DateTime(["%Y-%m-%d"])


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option("-f", "--follow", is_flag=True, help="Print a line for each window from now on, until Ctrl-C.")
@device_option
@json_option
@click.pass_context
def windows(ctx: click.Context, follow: bool, device_id: str | None, as_json: bool) -> None:
    """See the windows: statistics of each device's readings over five minutes, a new window each minute.

    \b
    Example:
      smoke windows --follow                   one line for each window over all devices
      smoke windows --follow --device hall-3   one line for each window of a device
      smoke windows list --device hall-3       its newest windows

    A line over all devices waits for those that end the window some seconds later. Where one comes later still, or is
    corrected, the line is printed again, marked "(updated)"; a corrected window of one device is marked "Corrected".
    """
    if ctx.invoked_subcommand is not None:
        if follow or device_id or as_json:
            raise click.UsageError("--follow, --device and --json before a command belong to `smoke windows --follow`")
        return
    if not follow:
        if device_id or as_json:
            raise click.UsageError("--device and --json need --follow, or a command such as `smoke windows list`")
        click.echo(ctx.get_help())
        return
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    for line in _lines(device_id, stop, as_json=as_json):
        click.echo(line)
        sys.stdout.flush()


def _lines(device_id: str | None, stop: threading.Event, *, as_json: bool) -> Iterator[str]:
    """A line for each window that is appended from now on: of the device, or over all devices."""
    from smoke_platform.adapters.lake import Lake
    from smoke_platform.adapters.windows import WINDOW_COLUMNS, WINDOW_KEY, WRITTEN_AT, WindowTable
    from smoke_platform.domain.window_words import COLUMNS

    settings = load_settings()
    table = WindowTable(Lake(settings.lake))
    last = table.last_written() or datetime.now(UTC)
    overall = _Summaries(table, last, QUIET_LOOKS * settings.window_seconds)
    one = _OfDevice(table)
    columns: Collection[str] = (*WINDOW_KEY, WRITTEN_AT)
    if as_json:
        columns = WINDOW_COLUMNS
    elif device_id is not None:
        columns = (*COLUMNS, WRITTEN_AT)
    version: int | None = None
    click.echo("Following; a line comes within two minutes of readings. Ctrl-C ends it.", err=True)
    while not stop.wait(FOLLOW_S):
        newest = table.version()
        if newest != version:
            version = newest
            rows = table.written_after(last, columns, device_id)
            written = rows[WRITTEN_AT].max()
            if isinstance(written, datetime):
                last = written
            order = ("window_start", "device_id", "revision")
            if as_json:
                yield from (json.dumps(_document(row)) for row in rows.sort(order).to_dicts())
            elif device_id is not None:
                yield from one.lines(device_id, rows.sort(order))
            else:
                overall.touch(rows["window_start"].unique().to_list(), monotonic())
        yield from overall.lines(monotonic())


class _OfDevice:
    """The lines of one device's windows."""

    def __init__(self, table: WindowTable) -> None:
        self._table = table
        self._printed: set[datetime] = set()

    def lines(self, device_id: str, rows: pl.DataFrame) -> Iterator[str]:
        """The lines of these rows; a window that has been in the table before is marked as corrected."""
        from smoke_platform.domain.window_words import window_line

        known = self._table.revisions(rows["window_start"].unique().to_list(), ("window_start", "revision"), device_id)
        first = dict(known.group_by("window_start").agg(pl.col("revision").min()).iter_rows())
        for row in rows.to_dicts():
            start = row["window_start"]
            corrected = start in self._printed or row["revision"] > first.get(start, row["revision"])
            self._printed.add(start)
            yield window_line(row) + (", Corrected" if corrected else "")


class _Summaries:
    """The lines of windows over all their devices, which end a window at different seconds, in several commits.

    Args:
        began: what was written until then is known already.
        quiet_s: a line waits until its window has got nothing for so long.
    """

    def __init__(self, table: WindowTable, began: datetime, quiet_s: float) -> None:
        self._table = table
        self._began = began
        self._quiet_s = quiet_s
        #: Start of a window whose line waits -> when it was touched first and last.
        self._waiting: dict[datetime, tuple[float, float]] = {}
        self._printed: dict[datetime, str] = {}

    def touch(self, starts: Collection[datetime], now: float) -> None:
        """Notes that rows of these windows were written."""
        for start in starts:
            self._waiting[start] = (self._waiting.get(start, (now, now))[0], now)

    def lines(self, now: float) -> Iterator[str]:
        """The lines that have waited long enough, by time, without those that say what they said before."""
        due = sorted(
            start
            for start, (first, last) in self._waiting.items()
            if now - last >= self._quiet_s or now - first >= LONGEST_WAIT_S
        )
        for place in range(0, len(due), WINDOWS_AT_ONCE):
            yield from self._read(due[place : place + WINDOWS_AT_ONCE])

    def _read(self, starts: list[datetime]) -> Iterator[str]:
        from smoke_platform.adapters.windows import WINDOW_KEY, WRITTEN_AT
        from smoke_platform.domain.window_words import COLUMNS, summary_line

        rows = self._table.revisions(starts, (*COLUMNS, WRITTEN_AT)).sort("window_start", "device_id", "revision")
        for start in starts:
            del self._waiting[start]
        for (start,), same in rows.group_by("window_start", maintain_order=True):
            assert isinstance(start, datetime)  # noqa: S101 - of a time column
            line = summary_line(same.unique(WINDOW_KEY, keep="last", maintain_order=True))
            before = self._printed.pop(start, None)
            self._printed[start] = line
            if line != before:
                known = before is not None or same.filter(pl.col(WRITTEN_AT) <= self._began).height
                yield f"{line} (updated)" if known else line
        while len(self._printed) > LINES_REMEMBERED:
            del self._printed[next(iter(self._printed))]


@windows.command("list")
@device_option
@click.option("--since", type=_MOMENT, help="Windows that start then or later (UTC).")
@click.option("--until", type=_MOMENT, help="Windows that start before (UTC).")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="So many at most.")
@click.option("--open/--no-open", "with_open", default=True, show_default=True, help="With the window not over yet.")
@json_option
def list_windows(
    device_id: str | None, since: datetime | None, until: datetime | None, limit: int, with_open: bool, as_json: bool
) -> None:
    """List windows, the newest first: of one device, or the newest one of each device that got any lately.

    \b
    Example:
      smoke windows list
      smoke windows list --device hall-3 --since 2026-11-01T10:00 --limit 60
      smoke windows list --json | jq '.[].level'
    """
    from smoke_platform.adapters.lake import Lake
    from smoke_platform.adapters.windows import WRITTEN_AT, WindowTable, intervals_of, open_windows

    lake = Lake(load_settings().lake)
    table = WindowTable(lake)
    since, until = _utc(since), _utc(until)
    if device_id is not None:
        found = table.of_device(device_id, since, until, limit)
        if with_open:
            growing = open_windows(lake, device_id, now=datetime.now(UTC), intervals_s=intervals_of(lake)).filter(
                pl.lit(value=True) if since is None else pl.col("window_start") >= since,
                pl.lit(value=True) if until is None else pl.col("window_start") < until,
            )
            growing = growing.with_columns(pl.lit(None, found.schema[WRITTEN_AT]).alias(WRITTEN_AT))
            found = pl.concat([growing, found]).unique(["device_id", "window_start"], keep="first", maintain_order=True)
    elif since is not None or until is not None:
        found = table.newest(since, until, limit)
    else:
        last = table.last_written()
        found = table.newest_of_each(last - LATELY if last is not None else None, limit)
    found = found.head(limit)
    if as_json:
        click.echo(json.dumps([_document(row) for row in found.to_dicts()], indent=2))
        return
    if found.is_empty():
        click.echo(_nothing(device_id, since, until, known=device_id is None or table.knows(device_id)))
        return
    Console().print(_table(found, device_id))


def _nothing(device_id: str | None, since: datetime | None, until: datetime | None, *, known: bool) -> str:
    """Why there is nothing to be listed: which option matched nothing.

    Args:
        known: whether the device has any window.
    """
    if device_id is not None and not known:
        return (
            f"No window of a device {printable(device_id)!r}. `smoke windows list` names those that got one lately; "
            "the first of a device is over five minutes after its first reading."
        )
    bounds = [
        f"{words} {moment:%Y-%m-%d %H:%M:%S} UTC"
        for words, moment in (("at or after", since), ("before", until))
        if moment is not None
    ]
    if bounds:
        owner = "" if device_id is None else f" of {printable(device_id)}"
        return f"No window{owner} starts {' and '.join(bounds)}."
    return "No windows. The first of a device is over five minutes after its first reading."


def _table(rows: pl.DataFrame, device_id: str | None) -> Table:
    title = f"Windows of {printable(device_id)}" if device_id is not None else "Newest windows"
    shown = Table(title=Text(title))
    for name, justify in (
        ("device", "left"),
        ("window (UTC)", "left"),
        ("records", "right"),
        ("whole", "right"),
        ("quality", "right"),
        ("temp", "right"),
        ("humid", "right"),
        ("PM2.5", "right"),
        ("level", "left"),
        ("revision", "right"),
    ):
        shown.add_column(name, justify=justify)  # type: ignore[arg-type] # one of rich's words
    for row in rows.to_dicts():
        level = f"{Severity(row['level']).name} {row['level_sensor']}" if row["level"] else ""
        shown.add_row(
            Text(printable(row["device_id"])),
            f"{row['window_start']:%m-%d %H:%M}-{row['window_end']:%H:%M}",
            f"{row['record_count']:,}",
            f"{row['completeness']:.0%}",
            f"{row['quality_score']:.0f}",
            *(_number(row[f"{sensor}_mean"]) for sensor in ("temperature_c", "humidity_pct", "pm2_5")),
            level,
            f"{row['revision']:,}" if row["written_at"] is not None else "open",
        )
    return shown


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _document(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: times in ISO 8601, and whether the window is open."""
    plain = {name: value.isoformat() if isinstance(value, (date, datetime)) else value for name, value in row.items()}
    return {**plain, "open": row["written_at"] is None}


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@windows.command()
@click.option("--from", "first", type=_DAY, required=True, help="First UTC day, YYYY-MM-DD.")
@click.option("--to", "last", type=_DAY, help="Last UTC day; the first one where it is left out.")
@click.option("--replace", is_flag=True, help="Write rows anew that say something else of the same readings.")
@json_option
def rebuild(first: datetime, last: datetime | None, replace: bool, as_json: bool) -> None:
    """Compute the windows of past days anew from the lake, and append what is missing.

    Landing computes by itself the windows of all that ever landed; this is for days whose windows are doubted. It
    needs landing to stand still: `smoke land pause` before, `smoke land resume` after it.

    \b
    Example:
      smoke windows rebuild --from 2026-11-01 --to 2026-11-07
    """
    from smoke_platform.streaming.windows_rebuild import Rebuilt
    from smoke_platform.streaming.windows_rebuild import rebuild as compute_anew

    days = (first.date(), (last or first).date())
    if days[1] < days[0]:
        raise click.UsageError("--to is before --from")

    def told(day: Rebuilt) -> None:
        if as_json:
            return
        changed = f"{day.appended:,} appended"
        if day.differing:
            changed += f", {day.replaced:,} of {day.differing:,} that differ replaced"
        if day.beyond:
            changed += f", {day.beyond:,} rest on more readings than the lake has"
        click.echo(f"{day.day}: {day.windows:,} windows, {changed}")

    done = compute_anew(load_settings(), *days, replace=replace, on_day=told)
    if as_json:
        click.echo(json.dumps([{**asdict(day), "day": day.day.isoformat()} for day in done], indent=2))
    elif any(day.differing > day.replaced for day in done):
        click.echo("Rows that differ were left as they are; --replace writes them anew.")


@windows.command()
@json_option
def status(as_json: bool) -> None:
    """Show how far the windows are behind the readings that have landed.

    \b
    Example:
      smoke windows status
    """
    from smoke_platform.adapters.lake import Lake
    from smoke_platform.adapters.windows import WindowTable
    from smoke_platform.streaming.windows import WindowsProbe, is_wanted

    settings = load_settings()
    standing = WindowsProbe(settings).standing(10.0)
    table = WindowTable(Lake(settings.lake))
    last = table.last_written()
    facts: dict[str, Any] = {
        "beside_landing": is_wanted(settings),
        "topic_id": standing.topic_id,
        "behind": standing.behind,
        "silence_at": standing.silence_at.isoformat() if standing.silence_at else None,
        "last_written": last.isoformat() if last else None,
        "table_version": standing.version,
        "partitions": [
            {"partition": number, "position": standing.positions.get(number, 0), "landed": landed}
            for number, landed in sorted(standing.landed.items())
        ],
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    console = Console()
    shown = Table(title=f"Windows of {settings.topic_readings} (topic id {standing.topic_id})")
    for name in ("partition", "position", "landed"):
        shown.add_column(name, justify="right")
    for row in facts["partitions"]:
        shown.add_row(*(f"{row[name]:,}" for name in ("partition", "position", "landed")))
    console.print(shown)
    console.print(f"{standing.behind:,} readings that have landed are not reflected yet.")
    console.print(f"The newest window was appended at {last:%Y-%m-%d %H:%M:%S} UTC." if last else "No window yet.")
    if standing.silence_at is not None:
        console.print(f"Open windows end by silence from {standing.silence_at:%Y-%m-%d %H:%M:%S} UTC on.")
    if not facts["beside_landing"]:
        console.print("They are computed by the engine of SMOKE_ENGINE, not beside the landing of the readings.")
