"""Sending readings: frames encoded, paced, handed to a producer, and counted when the broker acknowledges them.

Belongs here: the long-running and the one-shot producing programs without their command line. Does not: the clients
(``adapters.kafka``), the simulated world (``domain.simulator``), files (``domain.recordings``), options and
tables (``cli.produce``).
"""

from __future__ import annotations

import bisect
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Final

import polars as pl

from smoke_platform.adapters.kafka import (
    AcknowledgedCallback,
    BrokerUnreachable,
    BulkReadingProducer,
    ReadingProducer,
    TopicMissing,
)
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SCHEMA_VERSION, ReadingRejected, parse_reading
from smoke_platform.domain.simulator import LiveSimulator
from smoke_platform.settings import Settings

log = logging.getLogger(__name__)

Producer = ReadingProducer | BulkReadingProducer
#: Readings per second from which the bulk client is taken; kafka-python alone manages some 30,000 on one core.
BULK_RATE = 20_000.0
#: A paced producer looks at the clock this often: short enough to look even, long enough to cost nothing.
TICK_S = 0.02
#: A live producer that has fallen behind further than this (the broker was away) goes on with the present: a
#: detector's own memory holds about a minute.
LONGEST_BACKLOG_S = 60.0
_BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
_MESSAGE_COLUMNS: Final = ("device_id", "event_time", *ALL_SENSOR_NAMES, "fire_alarm", "sequence", "source")


@dataclass
class ProduceReport:
    """What a producing program did.

    Attributes:
        sent, acknowledged, failed: messages handed in, confirmed by the broker, refused or given up.
        bad: rows or lines that were no readings and were not sent.
        skipped: live readings that were never sent because the broker was away too long.
        failures: text of each kind of failure -> how often.
        bad_examples: the first of the bad rows.
    """

    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    bad: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    bad_examples: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Acknowledged messages per second."""
        return self.acknowledged / self.seconds if self.seconds > 0 else 0.0


def encode_readings(frame: pl.DataFrame) -> tuple[list[str], list[bytes]]:
    """Keys and messages of a frame of readings, one each a row.

    Numbers are written so that they read back bit by bit; what was not measured is left out.

    Args:
        frame: has ``device_id`` and ``event_time``, and any of the sensors, ``fire_alarm``, ``sequence``, ``source``.
    """
    kept = [
        name for name in _MESSAGE_COLUMNS if name in frame.columns and frame[name].null_count() < max(1, frame.height)
    ]
    fields = [
        # Whole seconds have no fraction, others as many digits as they need.
        pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ") if name == "event_time" else pl.col(name)
        for name in kept
    ]
    # The last field is never null, so each null has a comma behind it; within a text the quotation marks are escaped.
    message = (
        pl.struct(*fields, pl.lit(SCHEMA_VERSION).alias("schema_version"))
        .struct.json_encode()
        .str.replace_all(r'"[a-z0-9_]+":null,', "")
        .cast(pl.Binary)
    )
    return frame["device_id"].to_list(), frame.select(message.alias("value"))["value"].to_list()


def open_producer(
    settings: Settings,
    *,
    rate: float | None,
    topic: str | None = None,
    forever: bool = False,
    stop: threading.Event | None = None,
    on_acknowledged: AcknowledgedCallback | None = None,
) -> Producer | None:
    """The client that suits the rate; waits for a broker without end where ``forever``.

    Args:
        rate: messages per second, ``None`` for as fast as it goes.
        forever: never give up a message, and wait for the broker and the topic.

    Returns:
        ``None`` where ``stop`` was set while waiting.

    Raises:
        BrokerUnreachable: unless ``forever``.
        SmokeError: where the topic is missing, unless ``forever``.
    """
    client = BulkReadingProducer if rate is None or rate > BULK_RATE else ReadingProducer
    stop = stop or threading.Event()
    attempt = 0
    while not stop.is_set():
        try:
            return client(
                settings.brokers,
                topic or settings.topic_readings,
                on_acknowledged=on_acknowledged,
                delivery_timeout_s=None if forever else 60.0,
                stop=stop,
            )
        except (BrokerUnreachable, TopicMissing) as error:
            if not forever:
                raise
            pause = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
            log.warning("%s; next attempt in %g s", error.message, pause)
            attempt += 1
            stop.wait(pause)
    return None


def finish(producer: Producer, report: ProduceReport, started: float, *, deadline_s: float = 60.0) -> ProduceReport:
    """Waits for the outstanding acknowledgements and closes the client.

    Raises:
        DeliveryFailed: where messages are still under way after ``deadline_s``.
    """
    try:
        producer.flush(deadline_s)
    finally:
        producer.close(deadline_s=2.0)
        tally(producer, report, started)
    return report


def tally(producer: Producer, report: ProduceReport, started: float) -> ProduceReport:
    """Brings the report's counts up to date."""
    counts = producer.counts
    report.sent, report.acknowledged, report.failed = counts.sent, counts.acknowledged, counts.failed
    report.failures = producer.failures
    report.seconds = time.monotonic() - started
    return report


Progress = Callable[[int], None]


def send_frames(
    producer: Producer,
    frames: Iterable[pl.DataFrame],
    *,
    rate: float | None,
    stop: threading.Event,
    progress: Progress = lambda _sent: None,
) -> None:
    """Sends frames of readings one after the other, at an even rate or as fast as it goes; returns when ``stop``."""
    start = time.monotonic()
    sent = 0
    for frame in frames:
        for keys, values in _slices(frame):
            for key, value in zip(keys, values, strict=True):
                if rate is not None and sent >= (time.monotonic() - start) * rate:
                    _pause(producer, stop, max(TICK_S, sent / rate - (time.monotonic() - start)))
                if stop.is_set():
                    return
                producer.send(key, value)
                sent += 1
            progress(len(keys))


def send_when_due(
    producer: Producer,
    frames: Iterable[pl.DataFrame],
    *,
    stop: threading.Event,
    until: float = math.inf,
    longest_backlog_s: float = math.inf,
    progress: Progress = lambda _sent: None,
    on_skipped: Progress = lambda _count: None,
) -> None:
    """Sends each reading when the clock reaches its event time; frames are ordered by time.

    Args:
        until: epoch seconds; readings from then on are not sent.
        longest_backlog_s: once the sender is further behind than this, it passes over what is in the past.
        on_skipped: told how many readings were passed over.
    """
    for frame in _ahead(frames):
        due = frame["event_time"].dt.epoch("us").to_list()
        keys, values = encode_readings(frame)
        place = 0
        while place < len(due):
            now = time.time()
            if stop.is_set() or due[place] / 1e6 >= until:
                return
            wait = due[place] / 1e6 - now
            if wait > 0:
                _pause(producer, stop, min(wait, 1.0) if wait > TICK_S else TICK_S)
                continue
            if -wait > longest_backlog_s:
                fresh = bisect.bisect_left(due, now * 1e6, lo=place)
                on_skipped(fresh - place)
                place = fresh
                continue
            first = place
            while place < len(due) and due[place] / 1e6 <= now and not stop.is_set():
                producer.send(keys[place], values[place])
                place += 1
            progress(place - first)


def _slices(frame: pl.DataFrame, rows: int = 10_000) -> Iterator[tuple[list[str], list[bytes]]]:
    for part in frame.iter_slices(rows):
        yield encode_readings(part)


def _ahead(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Makes the next frame while this one is sent, so that no second waits for the simulator."""
    source = iter(frames)
    with ThreadPoolExecutor(1, thread_name_prefix="simulator") as pool:
        upcoming = pool.submit(next, source, None)
        while (frame := upcoming.result()) is not None:
            upcoming = pool.submit(next, source, None)
            yield frame


def _pause(producer: Producer, stop: threading.Event, seconds: float) -> None:
    if isinstance(producer, BulkReadingProducer):
        producer.poll()
    stop.wait(seconds)


def live_frames(
    simulator: LiveSimulator, stop: threading.Event, on_skipped: Progress = lambda _count: None
) -> Iterator[pl.DataFrame]:
    """The simulator's chunks from now on; after an outage it goes on with the present."""
    interval = simulator.interval_of(time.time()) + 1
    count = simulator.chunk_intervals()
    while not stop.is_set():
        behind = simulator.interval_of(time.time() - LONGEST_BACKLOG_S) - interval
        if behind > 0:
            on_skipped(behind * simulator.devices)
            interval += behind
        yield simulator.intervals(interval, count)
        interval += count


def send_lines(
    producer: Producer,
    lines: IO[bytes],
    *,
    raw: bool,
    stop: threading.Event,
    on_bad_line: Callable[[int, str], None],
    progress: Progress = lambda _sent: None,
) -> None:
    """Sends JSON lines as they are; a line that is no reading is reported and not sent, unless ``raw``.

    Args:
        raw: send every line, also those that are no readings (to try the dead letters out).
    """
    for number, line in enumerate(lines, start=1):
        if stop.is_set():
            return
        value = line.rstrip(b"\r\n")
        if raw:
            producer.send(_key_of(value), value)
        elif not value.strip():
            continue
        else:
            try:
                reading = parse_reading(value, append_time=datetime.now(UTC))
            except ReadingRejected as fault:
                on_bad_line(number, str(fault))
                continue
            producer.send(reading.device_id, value)
        progress(1)


def _key_of(value: bytes) -> str | None:
    """The device id of a message that may be anything; ``None`` lets the client choose the partition."""
    try:
        message = json.loads(value)
    except (ValueError, RecursionError):
        return None
    device = message.get("device_id") if isinstance(message, dict) else None
    return device if isinstance(device, str) and device else None
