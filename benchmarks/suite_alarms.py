"""Alarms: from a reading's acknowledgement to its alarm's, beside bare echoes, Quix Streams and Bytewax.

Broker, load, observer and what is measured share this machine's cores, so the ratios say more than the milliseconds.
One process after the other does the work on the same load; rounds of all of them alternate, and each figure is the
median over its rounds. Latency counts from the acknowledgement of the reading that completes the alarm's condition, as
the load's process learns of it: a bare echo's acknowledgement may come before that, which makes its latency negative.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
import numpy as np
import psutil

from benchmarks.alarms_load import LoadSpec, write_spec
from benchmarks.alarms_spec import ChildSpec
from benchmarks.figures import Figure
from benchmarks.peers import peer_python
from smoke_platform.adapters.kafka import Cluster, ensure_topics, specs_for, topic_id
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.topics import ALARMS
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.local.ports import free_ports
from smoke_platform.settings import Settings, load_settings
from smoke_platform.verification.run import private_settings

ROOT = Path(__file__).resolve().parents[1]

#: The load that the goals speak of: readings a second, devices, share of readings that raise an alarm.
RATE, DEVICES, RAISING = 10_000, 1_000, 0.01
ROUNDS, PEER_ROUNDS = 3, 1
WARM_S, FIRE_S = 4.0, 10.0
#: Readings of its fire that a device sends until its alarm is due, and some more.
READINGS_OF_FIRE = 6
#: What has not come this long after the load's end is counted as having taken at least as long.
PATIENCE_S = 15.0
#: A new broker compiles itself for this long; what is measured then is the compiler.
BROKER_WARM_S = 15.0
#: The peers do not tell when they have their partitions.
PEER_START_S = 8.0
#: Rates that are tried for the highest sustainable one, and what that means: nothing waits for long at the end.
LADDER = (12_500, 15_000, 17_500, 20_000, 25_000, 30_000)
SUSTAINED_MS = 250.0
ECHO, PLAIN_ECHO = "bare echo, same clients and settings", "bare echo by kafka-python alone"
_ECHOES = ("echo", "plain-echo")


@dataclass(frozen=True, slots=True)
class Round:
    """One measured round.

    Attributes:
        acknowledged_ms: latency until the alarm's acknowledgement, where the process can tell; else empty.
        seen_ms: latency until a consumer had the alarm. An alarm that never came counts with the time waited for it.
        missing: alarms that never came.
        last_ms: median of ``acknowledged_ms`` (or ``seen_ms``) in the last fifth of the fires.
        cpu_us: processor time a reading in microseconds; ``peak_mib``: of memory.
        rate: achieved by the load, readings a second.
    """

    acknowledged_ms: list[float]
    seen_ms: list[float]
    missing: int
    last_ms: float
    cpu_us: float
    peak_mib: float
    rate: float


def run() -> list[Figure]:
    """Measures and returns the suite's figures; trains a start-up model of its own first."""
    with tempfile.TemporaryDirectory(prefix="smoke-bench-") as folder, ExitStack() as stack:
        home = Path(folder)
        settings = private_settings(home, load_settings(), SMOKE_DETECTOR_PORT=str(free_ports(1)[0]))
        _train(settings)
        broker = EmbeddedBroker(home / "kafka", settings.kafka_port, settings.kafka_controller_port, settings.cache_dir)
        broker.prepare()
        broker.start()
        stack.callback(broker.stop)
        bench = _Bench(settings, peer_python(settings.cache_dir, "Quix Streams and Bytewax"))
        bench.round("echo", RATE, DEVICES, warm_s=BROKER_WARM_S, fire_s=1.0)
        return [*_at_goal(bench), *_at_rates(bench), *_curve(bench), *_highest(bench)]


def _train(settings: Settings) -> None:
    command = [str(Path(sys.executable).with_name("smoke")), "models", "train"]
    environment = {**os.environ, **settings.environment()}
    answer = subprocess.run(command, env=environment, cwd=settings.home, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SmokeError(f"the start-up model was not trained: {answer.stderr.strip()[-500:]}")


# -- figures -----------------------------------------------------------------------------------------------------
def _at_goal(bench: _Bench) -> list[Figure]:
    """10,000 readings a second: ours, the echo and the peers in turn."""
    found: dict[str, list[Round]] = {}
    for number in range(ROUNDS):
        for what in ("ours", *_ECHOES, "quix", "bytewax"):
            if what in ("ours", *_ECHOES) or (bench.peers and number < PEER_ROUNDS):
                found.setdefault(what, []).append(bench.round(what, RATE, DEVICES))
    ours, echo, plain = found["ours"], found["echo"], found["plain-echo"]
    at = f"{RATE:,} readings/s, {DEVICES:,} devices, {RAISING:.0%} raising"
    p50, p99, most = (_median(ours, quantile) for quantile in (50, 99, 100))
    echo50, echo99, echo_most = (_median(echo, quantile) for quantile in (50, 99, 100))
    figures = [
        Figure("P1", f"reading -> alarm p99, {at}", p99, "ms", ECHO, echo99, "<= 1.5x", p99 <= 1.5 * echo99),
        Figure("P1.p99", "the same against its bound", p99, "ms", ECHO, echo99, "<= 7 ms", p99 <= 7.0),
        Figure("P1.p50", "the same, p50", p50, "ms", ECHO, echo50, "<= 3 ms", p50 <= 3.0),
        Figure("P1.max", "the same, max", most, "ms", ECHO, echo_most),
        *_beside_plain(ours, plain),
        Figure("P1.missing", "alarms that did not come", float(sum(each.missing for each in ours)), "alarms"),
        Figure("P1.cpu", "processor time a reading", _cpu(ours), "us", ECHO, _cpu(echo)),
        Figure("P1.load", "readings a second that the load achieved", _rate(ours), "1/s", ECHO, _rate(echo)),
    ]
    seen = _median(ours, 99, seen=True)
    for what, peer in (("quix", "Quix Streams 3.28.1"), ("bytewax", "Bytewax 0.21.1")):
        rounds = found.get(what)
        if rounds:
            theirs = _median(rounds, 99, seen=True)
            late = f", {sum(each.missing for each in rounds)} never came" if any(e.missing for e in rounds) else ""
            name = f"reading -> alarm seen by a consumer, p99, {at}"
            figures += [
                Figure(f"P1.{what}", name, seen, "ms", peer + late, theirs, "<= 0.5x", seen <= 0.5 * theirs),
                Figure(
                    f"P1.{what}.p50", "the same, p50", _median(ours, 50, seen=True), "ms", peer,
                    _median(rounds, 50, seen=True),
                ),
                Figure(f"P1.{what}.cpu", "processor time a reading", _cpu(ours), "us", peer, _cpu(rounds)),
            ]  # fmt: skip
    return figures


def _beside_plain(ours: list[Round], plain: list[Round]) -> list[Figure]:
    """The same latencies beside an echo by the client that the detector does not fetch with."""
    p99, theirs = _median(ours, 99), _median(plain, 99)
    return [
        Figure("P1.plain", "reading -> alarm p99", p99, "ms", PLAIN_ECHO, theirs, "<= 1.5x", p99 <= 1.5 * theirs),
        Figure("P1.plain.p50", "the same, p50", _median(ours, 50), "ms", PLAIN_ECHO, _median(plain, 50)),
        Figure("P1.plain.cpu", "processor time a reading", _cpu(ours), "us", PLAIN_ECHO, _cpu(plain)),
    ]


def _at_rates(bench: _Bench) -> list[Figure]:
    """Lower rates, where the peers too may keep up."""
    figures = []
    for rate in (1_000, 5_000):
        ours, echo = bench.round("ours", rate, DEVICES), bench.round("echo", rate, DEVICES)
        for quantile, label in ((50, "p50"), (99, "p99"), (100, "max")):
            mine, theirs = _quantile([ours], quantile), _quantile([echo], quantile)
            name = f"reading -> alarm {label}, {rate:,} readings/s, {DEVICES:,} devices"
            figures.append(Figure(f"P1.{rate // 1000}k.{label}", name, mine, "ms", ECHO, theirs))
        if rate == 1_000 and bench.peers:
            for what, peer in (("quix", "Quix Streams 3.28.1"), ("bytewax", "Bytewax 0.21.1")):
                theirs = _quantile([bench.round(what, rate, DEVICES)], 99, seen=True)
                mine = _quantile([ours], 99, seen=True)
                name = f"reading -> alarm seen by a consumer, p99, {rate:,} readings/s"
                figures.append(Figure(f"P1.1k.{what}", name, mine, "ms", peer, theirs))
    return figures


def _curve(bench: _Bench) -> list[Figure]:
    """One reading a second and device, from 100 to 10,000 devices."""
    figures = []
    for devices in (100, 1_000, 3_000, 10_000):
        found = bench.round("ours", devices, devices)
        key, at = f"P1.devices{devices}", f"{devices:,} devices, a reading a second each"
        figures += [
            Figure(f"{key}.p99", f"reading -> alarm p99, {at}", _quantile([found], 99), "ms"),
            Figure(f"{key}.cpu", f"processor time a reading, {at}", found.cpu_us, "us"),
            Figure(f"{key}.memory", f"peak memory of the detector, {at}", found.peak_mib, "MiB"),
        ]
    return figures


def _highest(bench: _Bench) -> list[Figure]:
    """The ladder's highest rung at which nothing piles up; the load's process is on the same cores."""
    highest = float(RATE)
    for rate in LADDER:
        found = bench.round("ours", rate, DEVICES)
        if found.missing or found.last_ms > SUSTAINED_MS or found.rate < 0.98 * rate:
            break
        highest = found.rate
    name = f"highest rate of {LADDER[0]:,} to {LADDER[-1]:,} readings/s at which nothing piles up"
    return [Figure("P1.sustained", name, highest, "readings/s")]


def _quantile(rounds: Sequence[Round], quantile: float, *, seen: bool = False) -> float:
    return _median(rounds, quantile, seen=seen)


def _median(rounds: Sequence[Round], quantile: float, *, seen: bool = False) -> float:
    """Median over the rounds of a quantile of each."""
    values = [each.seen_ms if seen else each.acknowledged_ms for each in rounds]
    return float(statistics.median(np.percentile(latencies, quantile) for latencies in values))


def _cpu(rounds: Sequence[Round]) -> float:
    return statistics.median(each.cpu_us for each in rounds)


def _rate(rounds: Sequence[Round]) -> float:
    return statistics.median(each.rate for each in rounds)


# -- one round ---------------------------------------------------------------------------------------------------
class _Bench:
    """Runs rounds on one broker, each on topics of its own."""

    def __init__(self, settings: Settings, peers: str | None) -> None:
        self.peers = peers
        self._settings = settings
        self._number = 0

    def round(self, what: str, rate: int, devices: int, *, warm_s: float = WARM_S, fire_s: float = FIRE_S) -> Round:
        """Lets ``what`` (ours, echo, plain-echo, quix, bytewax) answer to a load."""
        self._number += 1
        folder = self._settings.home / f"round-{self._number:02d}-{what}"
        folder.mkdir()
        click.echo(f"  {what}: {rate:,} readings/s, {devices:,} devices", err=True)
        child = self._prepare(folder, plain=what == "plain-echo")
        load = LoadSpec(
            brokers=child.brokers,
            topic=child.topic,
            rate=rate,
            devices=devices,
            warm_seconds=warm_s,
            fire_seconds=fire_s,
            tail_seconds=READINGS_OF_FIRE * devices / rate + 0.2,
            fires=min(devices, round(rate * fire_s * RAISING)),
            seed=self._number,
            acknowledged=str(folder / "acknowledged.npy"),
            go=str(folder / "go"),
        )
        with ExitStack() as stack:
            loader = _start(stack, [sys.executable, "-m", "benchmarks.alarms_load"], load_file := folder / "load.json")
            write_spec(load, load_file)
            _start(stack, [sys.executable, "-m", "benchmarks.alarms_observer"], folder / "child.json")
            process = self._start_measured(stack, what, folder)
            self._wait_ready(what, process, child)
            (folder / "go").touch()
            return self._measure(what, process, loader, load, child)

    def _prepare(self, folder: Path, *, plain: bool) -> ChildSpec:
        settings = self._settings
        with Cluster(settings.brokers) as cluster:
            cluster.delete([spec.name for spec in specs_for(settings)])
        ensure_topics(settings)
        child = ChildSpec(
            brokers=settings.brokers,
            topic=settings.topic_readings,
            topic_id=topic_id(settings, settings.topic_readings),
            partitions=settings.kafka_partitions,
            alarms=ALARMS,
            group=folder.name,
            models=str(settings.models_dir),
            trace=str(folder / "trace"),
            ready=str(folder / "ready"),
            plain=plain,
        )
        child.write(folder / "child.json")
        return child

    def _start_measured(self, stack: ExitStack, what: str, folder: Path) -> subprocess.Popen[str]:
        file = folder / "child.json"
        if what == "ours":
            smoke = str(Path(sys.executable).with_name("smoke"))
            command = [smoke, "detect", "--member", folder.name, "--trace", str(folder / "trace")]
            return _start(stack, command, None, self._settings.environment())
        python = sys.executable if what in _ECHOES else self.peers
        if python is None:
            raise SmokeError("the peers are not installed")
        return _start(stack, [python, "-m", f"benchmarks.alarms_{what.removeprefix('plain-')}"], file)

    def _wait_ready(self, what: str, process: subprocess.Popen[str], child: ChildSpec) -> None:
        began = time.monotonic()
        while time.monotonic() - began < 60:
            if process.poll() is not None:
                raise SmokeError(f"{what} ended with {process.returncode} before it was measured")
            if what == "ours" and self._holds_all(child.partitions):
                return
            if what in _ECHOES and Path(child.ready).exists():
                return
            if what not in ("ours", *_ECHOES) and time.monotonic() - began > PEER_START_S:
                return
            time.sleep(0.1)
        log = self._settings.home / "detector.log"
        told = log.read_text("utf-8", "replace").splitlines() if what == "ours" and log.exists() else []
        raise SmokeError("\n".join([f"{what} was not ready within 60 s", *told[-5:]]))

    def _holds_all(self, partitions: int) -> bool:
        try:
            answer = httpx.get(f"http://127.0.0.1:{self._settings.detector_port}/health", timeout=2.0).json()
        except (httpx.HTTPError, ValueError):
            return False
        return bool(answer["state"] == "running" and len(answer["partitions"]) == partitions)

    def _measure(
        self,
        what: str,
        process: subprocess.Popen[str],
        loader: subprocess.Popen[str],
        load: LoadSpec,
        child: ChildSpec,
    ) -> Round:
        measured = psutil.Process(process.pid)
        time.sleep(load.warm_seconds)
        before = measured.cpu_times()
        time.sleep(load.fire_seconds)
        after = measured.cpu_times()
        cpu_s = (after.user + after.system) - (before.user + before.system)
        told, _ = loader.communicate(timeout=180)
        if loader.returncode:
            raise SmokeError(f"the load ended with {loader.returncode}")
        report = json.loads(told)
        if report["failed"]:
            raise SmokeError(f"readings were not acknowledged: {report['failed'][0]}")
        seen_file = Path(f"{child.trace}.seen")
        if what not in _ECHOES:
            _wait_for_lines(seen_file, load.fires)
        if process.poll() is not None:
            raise SmokeError(f"{what} ended with {process.returncode} while it was measured")
        waited_ns = time.time_ns()
        peak = int(Path(f"/proc/{process.pid}/status").read_text("ascii").split("VmHWM:")[1].split()[0]) / 1024
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        # When each reading was acknowledged; the first seconds are warm-up.
        moments = {(p, o): at for p, o, at in np.load(load.acknowledged).tolist()}
        first = min(moments.values()) + load.warm_seconds * 1e9
        traced, seen = (_latencies(file, moments, first) for file in (Path(child.trace), seen_file))
        missing = 0
        if what not in _ECHOES:
            missing = max(0, load.fires - len(seen))
            # Which reading it was is not known here: every one of them waited at least since the load's end.
            seen += [(waited_ns, (waited_ns - max(moments.values())) / 1e6)] * missing
        by_time = [latency for _, latency in sorted(traced or seen)]
        return Round(
            acknowledged_ms=[latency for _, latency in traced],
            seen_ms=[latency for _, latency in seen],
            missing=missing,
            last_ms=statistics.median(by_time[-max(1, len(by_time) // 5) :]),
            cpu_us=cpu_s / (load.rate * load.fire_seconds) * 1e6,
            peak_mib=peak,
            rate=float(report["rate"]),
        )


def _start(
    stack: ExitStack, command: list[str], argument: Path | None, settings: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A process that ends with the round at the latest."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SMOKE_", "KAFKA_"))}
    environment |= {"PYTHONPATH": str(ROOT), **(settings or {})}
    log = stack.enter_context((Path(settings["SMOKE_HOME"]) / "detector.log").open("ab")) if settings else None
    process = subprocess.Popen(
        [*command, *([str(argument)] if argument else [])],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE if command[-1].endswith("alarms_load") else subprocess.DEVNULL,
        stderr=log,
        text=True,
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait_for_lines(file: Path, count: int) -> None:
    """Until the file has so many lines, or has not grown for ``PATIENCE_S``."""
    grown, lines = time.monotonic(), 0
    while lines < count and time.monotonic() - grown < PATIENCE_S:
        time.sleep(0.2)
        now = file.read_text("ascii").count("\n") if file.exists() else 0
        if now > lines:
            grown, lines = time.monotonic(), now


def _latencies(file: Path, moments: dict[tuple[int, int], int], first: float) -> list[tuple[int, float]]:
    """(when the causing reading was acknowledged, latency in ms) of each answered reading after the warm-up."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text("ascii").splitlines():
        partition, offset, at = map(int, line.split())
        acknowledged = moments.get((partition, offset))
        if acknowledged is not None and acknowledged >= first:
            found.append((acknowledged, (at - acknowledged) / 1e6))
    return found
