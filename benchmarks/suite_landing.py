"""Landing: rows a second beside a bare poll loop, time until a reading is queryable, rates of the producers.

The broker, the load and what is measured share this machine's cores, so the ratios say more than the rates.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.progress import track

from benchmarks.figures import Figure
from smoke_platform.adapters.kafka import BulkReadingProducer, Cluster, ReadingProducer, specs_for
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.simulator import simulate
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings, load_settings
from smoke_platform.streaming.producer import encode_readings
from smoke_platform.verification.run import private_settings

#: Enough that starts and ends of the processes do not decide.
ROWS = 1_500_000
ROUNDS = 3
#: Live load of the freshness figure: readings a second, and for how long.
LIVE_RATE = 1_000
LIVE_SECONDS = 30


def run() -> list[Figure]:
    """Measures and returns the suite's figures."""
    with tempfile.TemporaryDirectory(prefix="smoke-bench-") as folder, ExitStack() as stack:
        home = Path(folder)
        base = private_settings(home, load_settings())
        broker = EmbeddedBroker(home / "kafka", base.kafka_port, base.kafka_controller_port, base.cache_dir)
        broker.prepare()
        broker.start()
        stack.callback(broker.stop)
        messages = _messages(ROWS)
        figures = _producers(base, messages)
        filled = _with(base, "filled", home / "filled")
        _make_topic(filled)
        _fill(filled, messages)
        figures += _landing(filled, home, len(messages))
        figures += _queryable(_with(base, "live", home / "live"), messages)
        return figures


def _messages(count: int) -> list[tuple[str, bytes]]:
    devices = 1_000
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    frame = simulate(devices, start, count / devices, 7).sort("event_time", "device_id")
    return list(zip(*encode_readings(frame), strict=True))


def _with(base: Settings, topic: str, home: Path) -> Settings:
    environment = {**base.environment(), "SMOKE_HOME": str(home), "KAFKA_TOPIC_SMOKE": topic}
    environment["KAFKA_BOOTSTRAP_SERVERS"] = base.brokers
    return load_settings(environment, Path(os.devnull))


def _make_topic(settings: Settings) -> None:
    own = (settings.topic_readings, settings.topic_dead_letters)
    with Cluster(settings.brokers) as cluster:
        cluster.create([spec for spec in specs_for(settings) if spec.name in own])


def _fill(settings: Settings, messages: list[tuple[str, bytes]]) -> None:
    producer = BulkReadingProducer(settings.brokers, settings.topic_readings)
    for device, value in messages:
        producer.send(device, value)
    producer.flush(120)
    producer.raise_failures()
    producer.close()


# -- producers -------------------------------------------------------------------------------------------
def _producers(base: Settings, messages: list[tuple[str, bytes]]) -> list[Figure]:
    few = messages[:100_000]

    def ours(kind: type[ReadingProducer] | type[BulkReadingProducer]) -> Callable[[Settings], None]:
        def produce(settings: Settings) -> None:
            producer = kind(settings.brokers, settings.topic_readings)
            for device, value in few:
                producer.send(device, value)
            producer.flush(120)
            producer.raise_failures()
            producer.close()

        return produce

    def bare_kafka_python(settings: Settings) -> None:
        from kafka import KafkaProducer

        producer = KafkaProducer(
            bootstrap_servers=settings.brokers, compression_type="lz4", linger_ms=10, batch_size=131072
        )
        for device, value in few:
            producer.send(settings.topic_readings, value, device.encode())
        producer.flush(120)
        producer.close()

    def bare_confluent(settings: Settings) -> None:
        from confluent_kafka import Producer

        options = {"enable.idempotence": True, "compression.type": "lz4", "linger.ms": 20, "batch.size": 524288}
        producer = Producer({"bootstrap.servers": settings.brokers, **options})
        for number, (device, value) in enumerate(few):
            producer.produce(settings.topic_readings, value, device)
            if number % 50_000 == 49_999:
                producer.poll(0)
        producer.flush(120)

    def rate(name: str, produce: Callable[[Settings], None]) -> float:
        settings = _with(base, name, base.home / name)
        _make_topic(settings)
        began = time.perf_counter()
        produce(settings)
        return len(few) / (time.perf_counter() - began)

    figures = []
    for key, what, kind, bare, peer in (
        ("P2.producer", "producer, messages one at a time", ReadingProducer, bare_kafka_python, "bare kafka-python"),
        ("P2.bulk_producer", "producer, loads", BulkReadingProducer, bare_confluent, "bare confluent-kafka"),
    ):
        pairs = [(rate(f"{key}.{n}", ours(kind)), rate(f"{key}.bare.{n}", bare)) for n in range(3)]  # type: ignore[arg-type] # two kinds of one shape
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        figures.append(Figure(key, f"{what}: acknowledged and counted", mine, "messages/s", peer, theirs))
    return figures


# -- landing ---------------------------------------------------------------------------------------------
def _child(what: str, settings: Settings) -> subprocess.Popen[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SMOKE_", "KAFKA_"))},
        **settings.environment(),
    }
    command = [sys.executable, "-m", "benchmarks.landing_child", what]
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=root)


def _measured(what: str, settings: Settings) -> dict[str, Any]:
    child = _child(what, settings)
    answer, _ = child.communicate(timeout=600)
    if child.returncode:
        raise RuntimeError(f"{what} ended with {child.returncode}")
    return dict(json.loads(answer))


def _landing(filled: Settings, home: Path, rows: int) -> list[Figure]:
    found: dict[str, list[dict[str, Any]]] = {"bare": [], "tuned": [], "ours": []}
    for number in track(range(ROUNDS), "landing beside the bare loops", transient=True):
        fresh = load_settings({**filled.environment(), "SMOKE_HOME": str(home / f"landing-{number}")}, Path(os.devnull))
        for what, results in found.items():
            results.append(_measured(what, fresh))
            if results[-1]["rows"] != rows:
                raise SmokeError(f"{what} took {results[-1]['rows']} of {rows} messages")
    rate = {
        what: statistics.median(each["rows"] / each["seconds"] for each in results) for what, results in found.items()
    }
    memory = {what: statistics.median(each["peak_mib"] for each in results) for what, results in found.items()}
    bare = "bare consume(10000) loop that counts, client as it comes"
    tuned = "bare consume(10000) loop that counts, client tuned as landing's"
    what = "landing: decoded, checked, committed exactly once"
    ours = rate["ours"]
    return [
        Figure("P2", what, ours, "rows/s", bare, rate["bare"], ">= 0.9x", ours >= 0.9 * rate["bare"]),
        Figure("P2.expected", what, ours, "rows/s", bare, rate["bare"], ">= 0.7x", ours >= 0.7 * rate["bare"]),
        Figure("P2.tuned", what, ours, "rows/s", tuned, rate["tuned"], ">= 0.7x", ours >= 0.7 * rate["tuned"]),
        Figure("P2.memory", "peak memory of landing", memory["ours"], "MiB", bare, memory["bare"]),
    ]


# -- freshness -------------------------------------------------------------------------------------------
def _queryable(settings: Settings, messages: list[tuple[str, bytes]]) -> list[Figure]:
    _make_topic(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    naive = _child("naive", settings)
    landing = subprocess.Popen(
        [str(Path(sys.executable).with_name("smoke")), "land", "run"],
        env={**os.environ, **settings.environment()},
        stdout=subprocess.DEVNULL,
    )
    try:
        with _live_load(settings, messages):
            ours, theirs = _watch(settings)
    finally:
        (settings.home / "stop").touch()
        landing.terminate()
        landing.wait(60)
        naive.wait(60)
    figures = []
    for quantile, goal in ((50, None), (99, 2.0)):
        mine, peer = (float(np.percentile(delays, quantile)) for delays in (ours, theirs))
        figures.append(
            Figure(
                "P5" if quantile == 99 else f"P5.p{quantile}",
                f"appended to Kafka -> read by another process, p{quantile}, {LIVE_RATE:,} readings/s",
                mine,
                "s",
                "naive writer: json.loads, a Parquet file a second, nothing exactly once",
                peer,
                None if goal is None else f"<= {goal:g} s",
                None if goal is None else mine <= goal,
            )
        )
    return figures


@contextmanager
def _live_load(settings: Settings, messages: list[tuple[str, bytes]]) -> Iterator[None]:
    import threading

    stop = threading.Event()

    def load() -> None:
        producer = ReadingProducer(settings.brokers, settings.topic_readings)
        began, sent = time.perf_counter(), 0
        while not stop.is_set():
            for device, value in messages[sent : sent + LIVE_RATE // 50]:
                producer.send(device, value)
            sent += LIVE_RATE // 50
            time.sleep(max(0.0, began + sent / LIVE_RATE - time.perf_counter()))
        producer.flush(30)
        producer.close()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch(settings: Settings) -> tuple[list[float], list[float]]:
    """Delays of all rows that became readable while we looked, ten times a second, in both tables."""
    lake, ours, theirs = Lake(settings.lake), [], []
    seen_files: set[str] = set()
    table = None
    # The first seconds hold the starts of both programs, which are no part of a steady state.
    warm_until = time.monotonic() + 10
    end = warm_until + LIVE_SECONDS
    known: set[str] = set()
    newest = 0.0
    while time.monotonic() < end:
        warm = time.monotonic() >= warm_until
        if table is None and lake.exists(READINGS):
            table = lake.open(READINGS)
        if table is not None:
            table.update_incremental()
            fresh = [uri for uri in table.file_uris() if uri not in known]
            known.update(fresh)
            for uri in fresh:
                moments = pl.read_parquet(uri, columns=["append_time"], hive_partitioning=False)["append_time"]
                now = time.time()
                appended_s = moments.dt.timestamp("us").to_numpy() / 1e6
                # A compacted file is new, its rows are not.
                appended_s = appended_s[appended_s > newest]
                newest = max(newest, appended_s.max(initial=newest))
                if warm:
                    ours += (now - appended_s).tolist()
        for file in (settings.home / "naive").glob("*.parquet"):
            if file.name not in seen_files:
                seen_files.add(file.name)
                appended = pl.read_parquet(file, columns=["append_ms"])["append_ms"]
                now = time.time()
                if warm:
                    theirs += [now - moment / 1e3 for moment in appended]
        time.sleep(0.1)
    return ours, theirs
