"""What tests and proofs of engine ``spark`` share: a rough stream of readings, and the comparison of two lakes.

Belongs here: input that has everything that goes wrong, and what must be true afterwards. Does not: fixtures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from confluent_kafka import Consumer, Producer, TopicPartition

from smoke_platform.adapters.kafka_bulk import TopicWatcher
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.windows import WINDOW_KEY, WINDOWS, WindowTable
from smoke_platform.domain.lake_records import RECORD_TABLES
from smoke_platform.domain.simulator import simulate
from smoke_platform.domain.windows import compute
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import committed_positions
from smoke_platform.streaming.producer import encode_readings
from smoke_platform_tests.window_judge import faults_of_windows

START = datetime(2026, 11, 1, 10, tzinfo=UTC)
POISON: tuple[bytes | None, ...] = (b"\x00\xff", None, b"{}", b"[]", b'{"device_id":"d","event_time":"no","raw_h2":1}')

Message = tuple[str, bytes | None]


def rough_stream(seed: int, *, devices: int = 5, seconds: int = 1000) -> list[Message]:
    """(key, value) of simulated readings, with late, early, doubled and skewed ones and messages that are none."""
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    frame = simulate(devices, START, seconds, seed, missing_share=0.05, fires_per_device_day=12.0)
    # One device's clock runs 200 s ahead, another's 15 minutes behind from the middle on.
    names = [*sorted(frame["device_id"].unique()), "none"]
    shift = pl.duration(seconds=200), pl.duration(seconds=-900)
    middle = START + timedelta(seconds=seconds // 2)
    frame = frame.with_columns(
        event_time=pl.when(pl.col("device_id") == names[0])
        .then(pl.col("event_time") + shift[0])
        .when((pl.col("device_id") == names[1]) & (pl.col("event_time") >= middle))
        .then(pl.col("event_time") + shift[1])
        .otherwise("event_time"),
        order=pl.col("event_time"),
    ).sort("order", "device_id")
    keys, values = encode_readings(frame.drop("order"))
    sent: list[tuple[float, str, bytes | None]] = []
    for place, (key, value) in enumerate(zip(keys, values, strict=True)):
        at = float(place)
        draw = rng.random()
        if draw < 0.02:
            at += rng.uniform(1, 60) * devices  # out of order, still in time
        elif draw < 0.03:
            at += rng.uniform(600, 900) * devices  # late, by the end of the stream at least
        sent.append((at, key, value))
        if rng.random() < 0.02:
            sent.append((at + rng.uniform(0, 400) * devices, key, value))
        if rng.random() < 0.01:
            sent.append((at, key, rng.choice(POISON)))
    return [(key, value) for _, key, value in sorted(sent, key=lambda entry: entry[0])]


def produce(
    settings: Settings,
    messages: list[Message],
    *,
    headers: list[tuple[str, bytes]] | None = None,
    partition: int | None = None,
) -> None:
    """Sends the messages and waits until each is acknowledged."""
    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": settings.brokers, "acks": "all", "linger.ms": 5})
    where = {} if partition is None else {"partition": partition}
    for key, value in messages:
        producer.produce(
            settings.topic_readings,
            value,
            key.encode(),
            headers=headers,
            on_delivery=lambda error, _: failed.append(error) if error else None,
            **where,
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    assert failed == []


def landed(settings: Settings) -> pl.DataFrame:
    """All readings in the lake, by partition and offset, without when they were landed."""
    lake = Lake(settings.lake)
    if not lake.exists(READINGS):
        return pl.DataFrame()
    return lake.scan(READINGS).drop("ingest_time").sort("topic_id", "partition", "offset").collect()


def register(settings: Settings, device: str, interval_s: float) -> None:
    """Enters a device that reports so often into ``lake/devices``, as landing does with the registry's topic."""
    (table,) = [each for each in RECORD_TABLES if each.name == "devices"]
    entry = {"device_id": device, "interval_s": interval_s, "removed": False, "source": "operator"}
    places = {"record_topic_id": "x", "record_offset": 0, "record_partition": 0}
    known = pl.DataFrame([entry | places], schema_overrides=table.schema)
    blank = pl.DataFrame(schema=table.schema)
    rows = pl.concat([blank, known], how="diagonal").select(list(table.schema))
    Lake(settings.lake).append("devices", rows, ["append_date"])


def windows(settings: Settings) -> pl.DataFrame:
    """The windows at their latest revision, without when they were written."""
    return WindowTable(Lake(settings.lake)).between(None, None).drop("written_at").sort(WINDOW_KEY)


def kernel_windows(
    settings: Settings, *, silent: bool = False, intervals_s: Mapping[str, float] | None = None
) -> pl.DataFrame:
    """What the engines' own kernel makes of all that has landed, in one go; as ``check`` says."""
    taken = landed(settings).filter(~pl.col("late"))
    clocks = taken.group_by("device_id").agg(pl.col("event_time").max().alias("clock"))
    found = compute(taken, intervals_s=intervals_s).join(clocks, on="device_id")
    due = found if silent else found.filter(pl.col("window_end") <= pl.col("clock"))
    return due.drop("clock").sort(WINDOW_KEY)


def letters(settings: Settings) -> list[tuple[tuple[int, int], dict[str, bytes], bytes | None]]:
    """(place of the message, headers, value) of the dead letters, those that were sent twice once."""
    consumer = Consumer({"bootstrap.servers": settings.brokers, "group.id": "test", "enable.partition.eof": True})
    topic = settings.topic_dead_letters
    found = {}
    try:
        numbers = list(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
        ends = 0
        deadline = time.monotonic() + 120
        while ends < len(numbers):
            assert time.monotonic() < deadline, "the dead letters' end was not reached"
            for message in consumer.consume(1000, 0.2):
                if message.error() is not None:
                    ends += 1
                    continue
                headers = dict(message.headers() or [])
                place = int(headers["partition"]), int(headers["offset"])
                found[place] = (place, headers, message.value())
    finally:
        consumer.close()
    return [found[place] for place in sorted(found)]


def check(settings: Settings, *, silent: bool = False, intervals_s: Mapping[str, float] | None = None) -> None:
    """Each message is in the lake or among the dead letters, once; windows say what the readings say, each once.

    Which windows, and what they say, is held to the brute force; beside it, to the bit, to the kernel.

    Args:
        silent: whether silence has ended all windows of all devices.
        intervals_s: device -> seconds between its reports, as the registry has it.
    """
    facts = TopicWatcher(settings.brokers, settings.topic_readings).facts()
    assert facts is not None
    ends = {n: high for n, (_, high) in TopicWatcher(settings.brokers, settings.topic_readings).watermarks(
        facts.partitions
    ).items()}  # fmt: skip
    lake = Lake(settings.lake)
    for name in (READINGS, WINDOWS):
        assert {n: p or 0 for n, p in committed_positions(lake.open(name), facts).items()} == ends, name
    places = [tuple(place) for place in landed(settings).select("partition", "offset").iter_rows()]
    assert len(places) == len(set(places)), "a reading is in the lake twice"
    bad = {place for place, _, _ in letters(settings)}
    assert not bad & set(places)
    assert bad | set(places) == {(n, offset) for n, end in ends.items() for offset in range(end)}
    assert faults_of_windows(settings, silent=silent, intervals_s=intervals_s) == []
    found, wanted = windows(settings), kernel_windows(settings, silent=silent, intervals_s=intervals_s)
    names = [*WINDOW_KEY, "revision"]
    assert found.select(names).equals(wanted.select(names))
    assert found.equals(wanted)
    every = lake.scan(WINDOWS).select(names).collect()
    assert every.height == every.unique().height, "a window was appended twice"
