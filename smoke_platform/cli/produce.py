"""``smoke produce``: send readings from a file, a simulator or standard input.

Belongs here: options, progress and the final table. Does not: the sending itself (``streaming.producer``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import Source
from smoke_platform.domain.recordings import BadRow, RecordingFile, Replay, ReplayTime
from smoke_platform.domain.simulator import LiveSimulator, SimulationSettings, simulate
from smoke_platform.settings import Settings, load_settings
from smoke_platform.streaming.producer import (
    LONGEST_BACKLOG_S,
    Producer,
    ProduceReport,
    finish,
    live_frames,
    open_producer,
    send_frames,
    send_lines,
    send_when_due,
    tally,
)

log = logging.getLogger(__name__)

#: Bad rows that are shown one by one; further ones are counted.
MOST_BAD_SHOWN = 20
#: How often a producer without a terminal says how far it is.
REPORT_EVERY_S = 60.0


class _Rate(click.ParamType[float]):
    """A positive number, or ``max`` (infinite)."""

    name = "number|max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if value == "max":
            return math.inf
        try:
            rate = float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor max", param, ctx)
        if not (math.isfinite(rate) and rate > 0):
            self.fail(f"{value!r} is not above 0", param, ctx)
        return rate


rate_option = click.option("--rate", type=_Rate(), help="Readings per second in all, or max.")
topic_option = click.option("--topic", help="Another topic than the one that the settings name.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON, without progress.")


@click.group()
def produce() -> None:
    """Send readings: from a CSV file, a simulator or standard input.

    \b
    Example:
      smoke produce simulate --devices 20 --forever
      smoke produce csv smoke_detection_iot.csv
    """


@produce.command(name="csv")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--devices", type=click.IntRange(1), help="Deal the rows to so many devices (default: one a recording).")
@click.option(
    "--time",
    "mode",
    type=click.Choice([mode.value for mode in ReplayTime]),
    default="original",
    show_default=True,
    help="Event times: as in the file, starting now, or starting now and --speed times as fast.",
)
@click.option("--speed", type=float, default=60.0, show_default=True, help="For --time compressed.")
@rate_option
@click.option("--loop", is_flag=True, help="Again and again, with times and sequence shifted.")
@click.option("--skip-bad", is_flag=True, help="Exit with 0 although rows were left out.")
@click.option("--source", type=click.Choice([str(source) for source in Source]), default="csv", show_default=True)
@topic_option
@json_option
def produce_csv(
    file: Path,
    devices: int | None,
    mode: str,
    speed: float,
    rate: float | None,
    loop: bool,
    skip_bad: bool,
    source: str,
    topic: str | None,
    as_json: bool,
) -> None:
    """Send a recording in the public dataset's format (.csv, .gz or .zip).

    With original times the rows go out in the file's order, as fast as --rate allows (max where none is given). With
    --time now or compressed each goes out when its new event time comes.

    \b
    Example:
      smoke produce csv smoke_detection_iot.csv
      smoke produce csv smoke_detection_iot.csv.gz --time compressed --speed 60 --loop
    """
    replay = Replay(ReplayTime(mode), speed, datetime.now(UTC), parallel=devices is None)
    paced = replay.mode is not ReplayTime.ORIGINAL
    if paced and rate is not None:
        raise click.UsageError("--rate goes with --time original; else the event times set the pace (--speed)")
    settings = load_settings()
    bad = _BadRows(f"{file}, ", as_json)
    recording = RecordingFile(file, bad.add, devices=devices, source=Source(source))
    chunks = recording.chunks()
    first = next(chunks, None)  # a file that is no recording is named before a broker is asked for

    def whole() -> Iterator[pl.DataFrame]:
        frames = [] if first is None else [first, *chunks]
        if frames:
            passes = replay.passes(pl.concat(frames))
            yield next(passes)
            if loop:
                yield from passes

    def in_order() -> Iterator[pl.DataFrame]:
        if first is not None:
            yield first
        yield from chunks

    with _Run(
        settings, topic, math.inf if rate is None and not paced else rate or 0.0, as_json, label=file.name
    ) as run:
        run.bad = bad
        if paced:
            send_when_due(run.producer, whole(), stop=run.stop, progress=run.advance)
        else:
            send_frames(
                run.producer,
                whole() if loop else in_order(),
                rate=None if rate is None or math.isinf(rate) else rate,
                stop=run.stop,
                progress=run.advance,
            )
    if recording.unknown and not as_json:
        click.echo(f"note: ignored columns {', '.join(recording.unknown)}", err=True)
    run.end(skip_bad=skip_bad)


@produce.command(name="simulate")
@click.option("--devices", type=click.IntRange(1, 1_000_000), help="How many (default: SMOKE_SIMULATE_DEVICES).")
@click.option(
    "--first-device",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of the first; the embedded platform's own simulator has those from 1 on.",
)
@click.option("--interval", type=click.FloatRange(0.001, 3600), help="Seconds between a device's readings (default 1).")
@rate_option
@click.option("--seed", type=click.IntRange(0), help="Of the world (default: SMOKE_SIMULATE_SEED).")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="How long (default 60).")
@click.option("--forever", is_flag=True, help="Without end; survives outages of the broker.")
@click.option(
    "--fires", type=click.FloatRange(0, 12), help="Per device and day (default: one somewhere in 10 minutes)."
)
@click.option("--nuisances", type=click.FloatRange(0, 24), help="Per device and day (default 8).")
@topic_option
@json_option
def produce_simulate(
    devices: int | None,
    first_device: int,
    interval: float | None,
    rate: float | None,
    seed: int | None,
    seconds: float | None,
    forever: bool,
    fires: float | None,
    nuisances: float | None,
    topic: str | None,
    as_json: bool,
) -> None:
    """Send the readings of simulated devices, with the truth about fires as their label.

    Readings leave as their time comes. With --rate max the last --seconds are sent at once, as history.

    \b
    Example:
      smoke produce simulate --devices 100 --first-device 1001 --seconds 60
      smoke produce simulate --devices 1000 --rate 5000 --forever
      smoke produce simulate --devices 50 --seconds 3600 --rate max
    """
    history = rate is not None and math.isinf(rate)
    if forever and (seconds is not None or history):
        raise click.UsageError("--forever goes neither with --seconds nor with --rate max")
    if rate is not None and interval is not None and not history:
        raise click.UsageError("--rate and --interval say the same thing: name one")
    settings = load_settings()
    count = devices or settings.simulate_devices
    period = interval or (1.0 if rate is None or history else count / rate)
    try:
        world = SimulationSettings(
            seed=settings.simulate_seed if seed is None else seed,
            interval_s=period,
            # 144 ten-minute stretches a day, at most one fire in a device's slot of two hours.
            fires_per_device_day=min(12.0, 144 / count) if fires is None else fires,
            nuisances_per_device_day=8.0 if nuisances is None else nuisances,
        )
    except ValueError as error:
        raise SmokeError(str(error), "give other --rate, --interval or --devices") from None
    lasts = seconds or 60.0
    target = math.inf if history else count / period
    label = f"{count:,} simulated device{'s' if count > 1 else ''}"
    total = None if forever else math.ceil(count * lasts / period)
    with _Run(settings, topic, target, as_json, label=label, forever=forever, total=total) as run:
        if run.stopped_early:
            pass
        elif history:
            frames = _history(count, world, lasts, first_device - 1)
            send_frames(run.producer, frames, rate=None, stop=run.stop, progress=run.advance)
        else:
            simulator = LiveSimulator(count, world, first_device=first_device - 1)
            send_when_due(
                run.producer,
                live_frames(simulator, run.stop, run.skipped),
                stop=run.stop,
                until=math.inf if forever else time.time() + lasts,
                longest_backlog_s=LONGEST_BACKLOG_S,
                progress=run.advance,
                on_skipped=run.skipped,
            )
    run.end()


def _history(count: int, world: SimulationSettings, seconds: float, first_device: int) -> Iterator[pl.DataFrame]:
    """The last ``seconds`` of the fleet, in stretches that bound the memory, each ordered by time."""
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=seconds)
    stretch = max(world.interval_s, math.floor(LiveSimulator.MOST_ROWS / count) * world.interval_s)
    done = 0.0
    while done < seconds:
        length = min(stretch, seconds - done)
        yield simulate(
            count,
            begin + timedelta(seconds=done),
            length,
            world.seed,
            interval_s=world.interval_s,
            fires_per_device_day=world.fires_per_device_day,
            nuisances_per_device_day=world.nuisances_per_device_day,
            first_device=first_device,
        ).sort("event_time", maintain_order=True)
        done += length


@produce.command(name="stdin")
@click.option("--raw", is_flag=True, help="Send every line as it is, also what is no reading.")
@topic_option
@json_option
def produce_stdin(raw: bool, topic: str | None, as_json: bool) -> None:
    """Send JSON lines from standard input; a line that is no reading is named and not sent.

    \b
    Example:
      echo '{"device_id": "hall-1", "event_time": "2026-05-01T12:00:00Z", "pm2_5": 4.2}' | smoke produce stdin
    """
    settings = load_settings()
    bad = _BadRows("", as_json)
    with (
        _Run(settings, topic, 0.0, as_json, label="standard input", interrupts=True) as run,
        # Waiting for a line notices nothing else, so a signal has to break it off.
        contextlib.suppress(KeyboardInterrupt),
    ):
        run.bad = bad
        send_lines(
            run.producer,
            sys.stdin.buffer,
            raw=raw,
            stop=run.stop,
            on_bad_line=lambda number, why: bad.add(BadRow(number, "", why)),
            progress=run.advance,
        )
    run.end()


class _BadRows:
    """Shows the first bad rows and counts them all."""

    def __init__(self, prefix: str, quiet: bool) -> None:
        self._prefix = prefix
        self._quiet = quiet
        self.count = 0
        self.examples: list[str] = []

    def add(self, bad: BadRow) -> None:
        self.count += 1
        if len(self.examples) < MOST_BAD_SHOWN:
            self.examples.append(f"{self._prefix}{bad}")
            if not self._quiet:
                click.echo(f"{self._prefix}{bad}", err=True)
        elif len(self.examples) == MOST_BAD_SHOWN and self.count == MOST_BAD_SHOWN + 1 and not self._quiet:
            click.echo("further bad rows are only counted", err=True)


class _Run:
    """One producing program from its client to its final table: signals, progress, counts, exit code."""

    def __init__(
        self,
        settings: Settings,
        topic: str | None,
        rate: float,
        as_json: bool,
        *,
        label: str,
        forever: bool = False,
        interrupts: bool = False,
        total: int | None = None,
    ) -> None:
        self.stop = threading.Event()
        self.report = ProduceReport()
        self.bad = _BadRows("", as_json)
        self.stopped_early = False
        self._settings = settings
        self._topic = topic
        self._rate = None if math.isinf(rate) else rate
        self._as_json = as_json
        self._label = label
        self._forever = forever
        self._interrupts = interrupts
        self._total = total
        self._producer: Producer | None = None
        self._started = self._spoke = time.monotonic()
        self._handlers: dict[int, Any] = {}
        self._progress: Progress | None = None

    @property
    def producer(self) -> Producer:
        if self._producer is None:
            raise RuntimeError("stopped before the broker was there")
        return self._producer

    def __enter__(self) -> _Run:
        if self._forever:
            logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._on_signal)
        self._producer = open_producer(
            self._settings, rate=self._rate, topic=self._topic, forever=self._forever, stop=self.stop
        )
        self.stopped_early = self._producer is None
        self._started = time.monotonic()
        if not self._as_json and sys.stderr.isatty():
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(self._label, total=self._total)
        return self

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        again = self.stop.is_set()
        self.stop.set()
        if self._interrupts or again:
            raise KeyboardInterrupt

    def advance(self, count: int) -> None:
        """Shows that ``count`` more were handed in."""
        if self._progress is not None:
            self._progress.advance(self._task, count)
        elif self._forever and time.monotonic() - self._spoke >= REPORT_EVERY_S:
            self._spoke = time.monotonic()
            counts = self.producer.counts
            click.echo(
                f"{self._label}: {counts.acknowledged:,} acknowledged, {counts.in_flight:,} under way, "
                f"{counts.failed:,} failed, {self.report.skipped:,} skipped"
            )

    def skipped(self, count: int) -> None:
        """Counts live readings that were passed over after an outage."""
        self.report.skipped += count
        log.warning("%d readings were passed over: the broker was away for more than %g s", count, LONGEST_BACKLOG_S)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        try:
            if self._producer is not None:
                if kind is None:
                    finish(self._producer, self.report, self._started, deadline_s=10.0 if self._forever else 90.0)
                else:
                    self._producer.close(deadline_s=2.0)
                    tally(self._producer, self.report, self._started)
        finally:
            if self._progress is not None:
                self._progress.stop()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def end(self, *, skip_bad: bool = False) -> None:
        """Prints the outcome; exits with 1 where a message failed or a row was bad."""
        report = self.report
        report.bad, report.bad_examples = self.bad.count, self.bad.examples
        if self._as_json:
            click.echo(json.dumps({**asdict(report), "rate": report.rate}))
        else:
            table = Table(box=None, pad_edge=False)
            for title in ("sent", "acknowledged", "failed", "bad rows", "seconds", "per second"):
                table.add_column(title, justify="right")
            table.add_row(
                f"{report.sent:,}",
                f"{report.acknowledged:,}",
                f"{report.failed:,}",
                f"{report.bad:,}",
                f"{report.seconds:.1f}",
                f"{report.rate:,.0f}",
            )
            Console().print(table)
            for text, count in report.failures.items():
                click.echo(f"{count} x {text}", err=True)
        if report.failed or (report.bad and not skip_bad):
            _exit_failed()


def _exit_failed() -> NoReturn:
    sys.exit(1)
