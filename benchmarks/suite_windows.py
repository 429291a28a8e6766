"""Window statistics: readings a second of both engines beside Bytewax, Pathway and Spark's own functions, by slide too.

All compute the same columns (``domain.windows.WINDOW_SCHEMA``) from the same readings, and the results of each are
compared with the kernel's on a sample of devices; a run whose results differ is an error, not a figure. The readings
lie on disk: both engines, Bytewax and Spark read the Parquet files of ``lake/readings``, Pathway the same rows as CSV.
There is no broker. The clock runs from the first reading that is asked for to the last window, so starts of processes,
of Spark's session and of its workers do not count. The engines write their windows to ``lake/window_statistics`` and
commit them; the peers keep theirs in memory. Memory is that of the process and all its children, shared pages counted
once.

Engine local is measured as it works when readings come faster than it takes them, reading the lake in large portions;
``P3.commits`` is the same engine told of each commit of a landing, ``P3.live`` told of each second.

The engines use what cores there are. Bytewax and Pathway are measured with one worker, as which both were fastest here;
``P3.bytewax_two`` are two independent Bytewax processes with half of the devices each.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import polars as pl
import psutil

from benchmarks.figures import Figure
from benchmarks.peers import peer_python
from benchmarks.windows_input import READINGS_A_COMMIT, Input, prepare
from benchmarks.windows_spec import NOT_TO_BE_HAD, WindowsSpec
from smoke_platform.adapters.windows import WINDOWS
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.windows import WINDOW_SCHEMA, WindowSpec, compute
from smoke_platform.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, SPARK_ROUNDS, SLIDE_ROUNDS = 3, 2, 2
#: Devices -> minutes of readings, one a second: enough that the windows at both ends do not decide.
MINUTES = {100: 60.0, 1_000: 20.0, 10_000: 6.0}
PATHWAY_MINUTES, LIVE_MINUTES = 8.0, 3.0
#: A run that takes longer is given up, and said.
PATIENCE_S = 150
#: Pathway holds each reading once for every window that it is in.
PATHWAY_BYTES_A_READING = 6_000
BYTEWAX, PATHWAY = "Bytewax 0.21.1, fold_window", "Pathway 0.33.0, all readings at once"
SPARK = "engine spark, local[*]"
SPARK_SQL = "Spark's own window() and groupBy, local[*]"
#: By how much two results may differ, of max(1, |x|).
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Run:
    """What one process did; ``readings`` in ``seconds``, ``cpu_s`` of its own processor time, peak of all memory."""

    readings: int
    windows: int
    seconds: float
    cpu_s: float
    peak_mib: float

    @property
    def rate(self) -> float:
        return self.readings / self.seconds


def run() -> list[Figure]:
    """Measures and returns the suite's figures."""
    cache = load_settings().cache_dir
    python = peer_python(cache, "Bytewax and Pathway")
    with tempfile.TemporaryDirectory(prefix="smoke-bench-") as folder:
        bench = _Bench(Path(folder), python)
        parts = (_at_goal, _beside_pathway, _by_slide, _by_devices, _live)
        return [figure for part in parts for figure in part(bench)]


# -- figures -----------------------------------------------------------------------------------------------------
def _at_goal(bench: _Bench) -> list[Figure]:
    """1,000 devices, everything in turn."""
    given = bench.input(1_000)
    ours: list[Run] = []
    theirs: list[Run] = []
    for _ in range(ROUNDS):
        ours += bench.ours("local", given)
        theirs += bench.peer("bytewax", given)
    spark = _rounds(SPARK_ROUNDS, lambda: bench.ours("spark", given))
    spark_sql = bench.spark_sql(given)
    commits = bench.ours("commits", given)
    panes, two = bench.peer("bytewax", given, "panes"), bench.two_bytewax(given)
    if not ours:
        raise SmokeError("engine local was not measured")
    rate = _rate(ours)
    at = f"1,000 devices, {given.readings:,} readings, {len(WINDOW_SCHEMA)} columns"
    what = f"window statistics, engine local, {at}"
    figures: list[Figure] = []
    if theirs:
        peer = _rate(theirs)
        figures += [
            Figure("P3", what, rate, "events/s", BYTEWAX, peer, ">= 5x", rate >= 5 * peer),
            Figure("P3.cpu", "processor time a reading", _cpu(ours), "us", BYTEWAX, _cpu(theirs)),
            Figure("P3.memory", "peak memory, engine local", _memory(ours), "MiB", BYTEWAX, _memory(theirs)),
        ]
    else:
        figures.append(Figure("P3", what, rate, "events/s", goal=">= 5x"))
    for key, others, label, times in (
        ("spark", spark, SPARK, 10),
        ("spark_sql", spark_sql, SPARK_SQL, 10),
        ("bytewax_two", two, "Bytewax, two processes, half of the devices each", None),
        ("bytewax_panes", panes, "Bytewax, tumbling panes put together by hand", None),
    ):
        if others:
            peer = _rate(others)
            goal = (None, None) if times is None else (f">= {times}x", rate >= times * peer)
            figures.append(Figure(f"P3.{key}", what, rate, "events/s", label, peer, *goal))
            figures.append(
                Figure(f"P3.{key}.memory", "peak memory, engine local", _memory(ours), "MiB", label, _memory(others))
            )
    if commits and theirs:
        name = f"engine local, told of each commit of {READINGS_A_COMMIT:,} readings"
        figures.append(Figure("P3.commits", name, _rate(commits), "events/s", BYTEWAX, _rate(theirs)))
    return figures


def _beside_pathway(bench: _Bench) -> list[Figure]:
    """Fewer readings: Pathway takes its time and holds each reading five times."""
    given = bench.input(1_000, minutes=PATHWAY_MINUTES, csv=True)
    theirs, ours = bench.pathway(given), bench.ours("local", given)
    bench.drop(given)
    if not theirs or not ours:
        return []
    name = f"window statistics, engine local, 1,000 devices, {given.readings:,} readings"
    return [
        Figure("P3.pathway", name, _rate(ours), "events/s", PATHWAY, _rate(theirs)),
        Figure("P3.pathway.memory", "peak memory, engine local", _memory(ours), "MiB", PATHWAY, _memory(theirs)),
    ]


def _by_devices(bench: _Bench) -> list[Figure]:
    """Other numbers of devices."""
    figures = []
    for devices in (100, 10_000):
        given = bench.input(devices)
        ours, theirs = bench.ours("local", given), bench.peer("bytewax", given)
        spark = bench.ours("spark", given)
        key, at = f"P3.devices{devices}", f"{devices:,} devices, {given.readings:,} readings"
        for runs, suffix, label in ((theirs, "", BYTEWAX), (spark, ".spark", SPARK)):
            if ours and runs:
                name = f"engine local, {at}"
                figures += [
                    Figure(f"{key}{suffix}", name, _rate(ours), "events/s", label, _rate(runs)),
                    Figure(
                        f"{key}{suffix}.memory", "peak memory, engine local", _memory(ours), "MiB", label, _memory(runs)
                    ),
                ]
        bench.drop(given)
    return figures


def _by_slide(bench: _Bench) -> list[Figure]:
    """Twelve times as many windows from the same readings."""
    given = bench.input(1_000)
    fine: list[Run] = []
    coarse: list[Run] = []
    for _ in range(SLIDE_ROUNDS):
        coarse += bench.ours("core", given)
        fine += bench.ours("core", given, slide_s=5)
    if not fine or not coarse:
        return []
    costs = [statistics.median(each.seconds / each.readings * 1e6 for each in runs) for runs in (fine, coarse)]
    name = f"time a reading at a slide of 5 s ({fine[0].windows:,} windows), without tables"
    peer = f"slide of 60 s ({coarse[0].windows:,} windows)"
    return [
        Figure("P3.slide", name, costs[0], "us", peer, costs[1], "<= 1.2x", costs[0] <= 1.2 * costs[1]),
        Figure(
            "P3.slide.window", "time a window at a slide of 5 s", _per_window(fine), "us", peer, _per_window(coarse)
        ),
        Figure("P3.slide.memory", "peak memory at a slide of 5 s", _memory(fine), "MiB", peer, _memory(coarse)),
    ]


def _live(bench: _Bench) -> list[Figure]:
    """Told of each second, as beside a landing that keeps up."""
    given = bench.input(1_000, minutes=LIVE_MINUTES)
    found = bench.ours("live", given)
    bench.drop(given)
    if not found:
        return []
    share = found[0].cpu_s / (LIVE_MINUTES * 60)
    return [Figure("P3.live", "cores that 1,000 readings/s take, a commit a second", share, "cores")]


def _rounds(count: int, work: Callable[[], list[Run]]) -> list[Run]:
    return [found for _ in range(count) for found in work()]


def _rate(runs: Sequence[Run]) -> float:
    return statistics.median(each.rate for each in runs)


def _cpu(runs: Sequence[Run]) -> float:
    return statistics.median(each.cpu_s / each.readings * 1e6 for each in runs)


def _memory(runs: Sequence[Run]) -> float:
    return statistics.median(each.peak_mib for each in runs)


def _per_window(runs: Sequence[Run]) -> float:
    return statistics.median(each.seconds / each.windows * 1e6 for each in runs)


# -- one run -----------------------------------------------------------------------------------------------------
class _Bench:
    """Runs processes on inputs, and holds their results against the kernel's."""

    def __init__(self, folder: Path, peers: str | None) -> None:
        self._folder = folder
        self._peers = peers
        self._number = 0
        self._inputs: dict[tuple[int, float], Input] = {}

    def input(self, devices: int, *, minutes: float | None = None, csv: bool = False) -> Input:
        """So many devices; the same for each call."""
        length = minutes or MINUTES[devices]
        key = (devices, length)
        if key not in self._inputs:
            click.echo(f"  readings of {devices:,} devices, {length:g} minutes", err=True)
            self._inputs[key] = prepare(self._folder / f"input-{devices}-{length:g}", devices, length, csv=csv)
        return self._inputs[key]

    def drop(self, given: Input) -> None:
        """Frees the disk of an input that is not needed again."""
        self._inputs = {key: each for key, each in self._inputs.items() if each is not given}
        shutil.rmtree(given.home)

    def ours(self, what: str, given: Input, *, slide_s: int = 60) -> list[Run]:
        """An engine of the platform; nothing where it did not come to its end in time."""
        shutil.rmtree(given.home / "lake" / WINDOWS, ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.windows_child", what]
        return self._measured(f"engine {what}", [command], [given.spec(self._result(), slide_s=slide_s)], given)

    def peer(self, name: str, given: Input, *more: str) -> list[Run]:
        """A peer; nothing where it could not be installed."""
        if self._peers is None:
            return []
        command = [self._peers, "-m", f"benchmarks.windows_{name}"]
        label = " ".join((name, *more))
        return self._measured(label, [command], [given.spec(self._result())], given, *more)

    def spark_sql(self, given: Input) -> list[Run]:
        """Spark without the platform's kernel; nothing where there is no JDK."""
        command = [sys.executable, "-m", "benchmarks.windows_sparksql"]
        return self._measured("Spark's own functions", [command], [given.spec(self._result())], given)

    def pathway(self, given: Input) -> list[Run]:
        """Pathway, where the machine has the memory for it."""
        needed = given.readings * PATHWAY_BYTES_A_READING
        if psutil.virtual_memory().available < needed:
            click.echo(f"  Pathway is left out: it would need {needed / 2**30:.0f} GiB of memory", err=True)
            return []
        return self.peer("pathway", given)

    def two_bytewax(self, given: Input) -> list[Run]:
        """Two processes at once, each with half of the devices."""
        if self._peers is None:
            return []
        command = [self._peers, "-m", "benchmarks.windows_bytewax"]
        specs = [given.spec(self._result(), share=(number, 2)) for number in range(2)]
        return self._measured("bytewax, two processes", [command] * 2, specs, given)

    def _result(self) -> Path:
        self._number += 1
        return self._folder / f"result-{self._number:02d}.arrow"

    def _measured(
        self, label: str, commands: Sequence[list[str]], specs: Sequence[WindowsSpec], given: Input, *more: str
    ) -> list[Run]:
        click.echo(f"  {label}: {given.readings:,} readings", err=True)
        children = []
        for command, spec in zip(commands, specs, strict=True):
            file = Path(f"{spec.result}.json")
            spec.write(file)
            children.append(_started([*command, str(file), *more]))
        memory = _MemoryWatch([child.pid for child in children])
        try:
            told = [child.communicate(timeout=PATIENCE_S) for child in children]
        except subprocess.TimeoutExpired:
            click.echo(f"  {label} was not done after {PATIENCE_S} s and is left out", err=True)
            return []
        finally:
            for child in children:
                _end(child)
            peak_mib = memory.peak_mib()
        for child, (_, errors) in zip(children, told, strict=True):
            if child.returncode == NOT_TO_BE_HAD:
                click.echo(f"  {label} is left out: {errors.strip()[-300:]}", err=True)
                return []
            if child.returncode:
                raise SmokeError(f"{label} ended with {child.returncode}: {errors.strip()[-1500:]}")
        answers = [json.loads([line for line in out.splitlines() if line.startswith("{")][-1]) for out, _ in told]
        found = pl.concat([pl.read_ipc(spec.result) for spec in specs])
        self._compare(label, found, given, specs[0].slide_s)
        return [
            Run(
                readings=given.readings,
                windows=sum(answer["windows"] for answer in answers),
                seconds=max(answer["ended"] for answer in answers) - min(answer["began"] for answer in answers),
                cpu_s=sum(answer["cpu_s"] for answer in answers),
                peak_mib=peak_mib,
            )
        ]

    def _compare(self, label: str, found: pl.DataFrame, given: Input, slide_s: int) -> None:
        differences = differing(found, compute(given.rows, WindowSpec(slide_s=slide_s)))
        if differences:
            raise SmokeError(f"{label} computed something else: {'; '.join(differences[:3])}")


def differing(found: pl.DataFrame, expected: pl.DataFrame) -> list[str]:
    """In what two tables of windows differ, in words; nothing where all columns of all windows agree."""
    key = ["device_id", "window_start"]
    found, expected = found.sort(key), expected.sort(key)
    if not found.select(key).equals(expected.select(key)):
        return [f"{found.height} windows instead of {expected.height}, or others"]
    differences = []
    for name, kind in WINDOW_SCHEMA.items():
        mine, right = found[name], expected[name]
        if kind.is_float():
            apart = (mine - right).abs() > TOLERANCE * right.abs().clip(lower_bound=1.0)
            wrong = (apart.fill_null(value=False) | (mine.is_null() != right.is_null())).sum()
        else:
            wrong = mine.ne_missing(right).sum()
        if wrong:
            differences.append(f"{name} of {wrong} windows")
    return differences


def _started(command: list[str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SMOKE_", "KAFKA_"))}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _end(child: subprocess.Popen[str]) -> None:
    """Ends a child that did not end, with what it started."""
    if child.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    child.communicate()


class _MemoryWatch:
    """Looks at the memory of processes and their children, a few times a second."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._peak_kib = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak_mib(self) -> float:
        """The greatest sum seen; ends the watch."""
        self._over.set()
        self._thread.join()
        return self._peak_kib / 1024

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            pids = list(self._pids)
            for pid in self._pids:
                with suppress(psutil.NoSuchProcess):
                    pids += [child.pid for child in psutil.Process(pid).children(recursive=True)]
            self._peak_kib = max(self._peak_kib, sum(map(_shared_kib, pids)))


def _shared_kib(pid: int) -> int:
    """Proportional set size: a page that several processes share counts once in their sum."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
