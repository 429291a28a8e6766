"""One measured process of the landing suite: the bare poll loop, the landing, or a naive writer as a peer.

Each prints one line of JSON: rows, seconds (from the first connection to the last row), peak memory in MiB.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smoke_platform.settings import Settings, load_settings


def bare(settings: Settings, tuning: Mapping[str, Any] | None = None) -> tuple[int, float]:
    """confluent-kafka's ``consume(10000)`` in a loop that only counts; ``tuning`` changes the client's settings."""
    from confluent_kafka import Consumer, TopicPartition

    from smoke_platform.adapters.kafka_bulk import TopicWatcher

    began = time.perf_counter()
    watcher = TopicWatcher(settings.brokers, settings.topic_readings)
    facts = watcher.facts()
    assert facts is not None
    ends = watcher.watermarks(facts.partitions)
    goal = sum(high - low for low, high in ends.values())
    consumer = Consumer(
        {"bootstrap.servers": settings.brokers, "group.id": "bench", "enable.auto.commit": False, **(tuning or {})}
    )
    consumer.assign([TopicPartition(settings.topic_readings, number, low) for number, (low, _) in ends.items()])
    count = 0
    while count < goal:
        count += len(consumer.consume(10_000, 0.1))
    consumer.close()
    return count, time.perf_counter() - began


def tuned(settings: Settings) -> tuple[int, float]:
    """The same loop with the settings that landing gives its client."""
    from smoke_platform.adapters.kafka_bulk import FETCH_SETTINGS

    return bare(settings, FETCH_SETTINGS)


def ours(settings: Settings) -> tuple[int, float]:
    """The landing, from an empty table to the log's end: decoded, checked, committed with positions."""
    from smoke_platform.streaming.landing import Landing

    report = Landing(settings, f"bench-{os.getpid()}", once=True).run()
    return report.total().rows, report.seconds


def naive(settings: Settings) -> tuple[int, float]:
    """What one writes on the first day: json.loads a message, a Parquet file a second, no positions, until stopped."""
    import json as plain

    import pyarrow as pa
    import pyarrow.parquet as pq
    from confluent_kafka import Consumer, TopicPartition

    folder = settings.home / "naive"
    folder.mkdir(parents=True, exist_ok=True)
    consumer = Consumer({"bootstrap.servers": settings.brokers, "group.id": "naive", "enable.auto.commit": False})
    consumer.assign([TopicPartition(settings.topic_readings, n, 0) for n in range(settings.kafka_partitions)])
    stop = settings.home / "stop"
    rows, number, total = [], 0, 0
    began = due = time.perf_counter()
    while not stop.exists():
        for message in consumer.consume(10_000, 0.1):
            if message.error() is None:
                rows.append({**plain.loads(message.value()), "append_ms": message.timestamp()[1]})
        if rows and time.perf_counter() >= due:
            half = folder / f"{number}.tmp"
            pq.write_table(pa.Table.from_pylist(rows), half)
            half.rename(folder / f"{number:06d}.parquet")
            due, number, total, rows = time.perf_counter() + settings.batch_seconds, number + 1, total + len(rows), []
    consumer.close()
    return total, time.perf_counter() - began


def main(what: str) -> None:
    count, seconds = {"bare": bare, "tuned": tuned, "ours": ours, "naive": naive}[what](
        load_settings(env_file=Path(os.devnull))
    )
    print(json.dumps({"rows": count, "seconds": seconds, "peak_mib": round(_peak_mib(), 1)}))


def _peak_mib() -> float:
    # getrusage would do, but its peak survives exec: it begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main(sys.argv[1])
