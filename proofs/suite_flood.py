"""A flood of alarms: 10,000 in a minute, written into a real broker and delivered to a real web server.

Shown: no group gets a second message that is not critical within ten minutes, no critical alarm is received later than
10 s after it stood in the topic, none is missing; also when the notifier is killed in the middle (the 10 s then leave
out the time from the kill until it runs again; the delay with it stands beside).
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from smoke_platform.adapters.kafka import Cluster, ReadingProducer, ensure_topics, partition_of
from smoke_platform.domain.alarms import AlarmRecord, Event, Kind, Severity, State, alarm_key, encode
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.notifications import WINDOW_S
from smoke_platform.domain.topics import ALARMS
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings, load_settings
from smoke_platform.verification.run import private_settings

ALARM_COUNT = 10_000
SECONDS = 60.0
CRITICAL_SHARE = 0.01
#: No critical alarm is received later than this after the broker appended it.
CRITICAL_LIMIT_S = 10.0
SITES = 5
CHANNEL = "ops"
KINDS = (Kind.FIRE, Kind.SENSOR_FAULT, Kind.OFFLINE, Kind.DATA_QUALITY)
#: (seed, how often the notifier is killed with SIGKILL).
RUNS = ((1, 0), (2, 2))
_PATIENCE_S = 180.0

Say = Callable[[str], None]


class _Receiver:
    """A web server that keeps what it is sent and when."""

    def __init__(self) -> None:
        self.received: list[tuple[float, str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                at = time.time()
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.received.append((at, content["title"], content["message"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's own name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Notifier:
    """``smoke notify run`` as a process that can be killed."""

    def __init__(self, settings: Settings, urls: str) -> None:
        self._settings = settings
        self._environment = {**os.environ, **settings.environment(), "SMOKE_NOTIFY_URLS": urls}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = settings.home / "notify.log"

    def start(self) -> None:
        command = [str(Path(sys.executable).parent / "smoke"), "notify", "run"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, cwd=self._settings.home, stdout=log, stderr=log
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)

    def health(self) -> dict[str, Any]:
        """What it says of itself; empty while it does not answer."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self._settings.notify_port}/health", timeout=2, trust_env=False)
        except httpx.HTTPError:
            return {}
        return dict(answer.json())

    def wait_for(self, what: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            health = self.health()
            if health and condition(health):
                return health
            if time.monotonic() > deadline:
                tail = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise SmokeError(f"the notifier was not {what} within {_PATIENCE_S:g} s: {health}\n{tail}")
            time.sleep(0.1)


def _alarms(seed: int, count: int) -> list[AlarmRecord]:
    chance = random.Random(seed)  # noqa: S311 - a seeded flood
    critical = set(chance.sample(range(count), round(count * CRITICAL_SHARE)))
    made = []
    for number in range(count):
        severity = (
            Severity.CRITICAL if number in critical else chance.choice((Severity.LOW, Severity.MEDIUM, Severity.HIGH))
        )
        made.append(
            AlarmRecord(
                device_id=f"flood-{number:05d}",
                kind=Kind.FIRE if severity is Severity.CRITICAL else chance.choice(KINDS),
                alarm_id=f"{seed:04x}{number:016x}",
                event=Event.RAISED,
                state=State.ACTIVE,
                severity=severity.label,
                revision=1,
                topic_id="flood",
                partition=0,
                cause=number,
                position=number,
                at=time.time(),
                site=f"site-{number % SITES}",
                room=f"room-{number % 40}",
            )
        )
    return made


def _until_ready(notifier: _Notifier, outage: list[float]) -> None:
    notifier.wait_for("running again", lambda health: health["state"] in ("running", "failing"))
    outage[1] = time.time()


def _append_times(brokers: str, partitions: int, wanted: int) -> dict[str, float]:
    """Alarm id -> when the broker appended it, epoch seconds."""
    from kafka import KafkaConsumer, TopicPartition

    from smoke_platform.domain.alarms import decode_record

    consumer = KafkaConsumer(bootstrap_servers=brokers, auto_offset_reset="earliest", enable_auto_commit=False)
    consumer.assign([TopicPartition(ALARMS, partition) for partition in range(partitions)])
    found: dict[str, float] = {}
    deadline = time.monotonic() + _PATIENCE_S
    while len(found) < wanted and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=500).values():
            for each in records:
                found[decode_record(each.value).alarm_id] = each.timestamp / 1000
    consumer.close()
    return found


def flood(settings: Settings, seed: int, kills: int, count: int, seconds: float, say: Say = print) -> dict[str, Any]:
    """One flood on the broker of ``settings``, whose alarms' topic must be empty.

    Args:
        settings: of a private platform; its notifier is started and stopped here.
        kills: how often the notifier is killed and started again, evenly over the flood.
        count, seconds: so many alarms in that time.

    Returns:
        What was found, with ``ok``.
    """
    receiver = _Receiver()
    settings.home.mkdir(parents=True, exist_ok=True)
    notifier = _Notifier(settings, f"{CHANNEL}=json://127.0.0.1:{receiver.port}/hook")
    alarms = _alarms(seed, count)
    critical = {alarm.alarm_id for alarm in alarms if alarm.severity == Severity.CRITICAL.label}
    try:
        notifier.start()
        notifier.wait_for("ready", lambda health: health["state"] == "running")
        producer = ReadingProducer(settings.brokers, ALARMS, linger_ms=0)
        outages: list[list[float]] = []
        watchers: list[threading.Thread] = []
        strikes = [count * (number + 1) // (kills + 1) for number in range(kills)]
        began = time.monotonic()
        for number, alarm in enumerate(alarms):
            if number in strikes:
                say(f"kill -9 after {number:,} alarms")
                outages.append([time.time(), math.inf])
                notifier.kill()
                notifier.start()
                watchers.append(threading.Thread(target=_until_ready, args=(notifier, outages[-1]), daemon=True))
                watchers[-1].start()
            wait = began + number * seconds / count - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            partition = partition_of(alarm.device_id, settings.kafka_partitions)
            producer.send(alarm_key(alarm.device_id, alarm.kind), encode(alarm), partition=partition)
        producer.flush(30)
        producer.raise_failures()
        took = time.monotonic() - began
        producer.close()
        named: set[str] = set()
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and not critical <= named:
            named = {found for _, _, text in receiver.received for found in re.findall(r"alarm ([0-9a-f]{20})", text)}
            time.sleep(0.2)
        for watcher in watchers:
            watcher.join(_PATIENCE_S)
        appended = _append_times(settings.brokers, settings.kafka_partitions, count)
        # What the notifier has not read yet it cannot tell, so the alarms are counted until none is missing.
        while True:
            health = notifier.wait_for(
                "done", lambda health: health["lag"] == 0 and health["channels"][CHANNEL]["pending"] == 0
            )
            waiting = health["channels"][CHANNEL]["waiting_alarms"]
            judged = _judged(receiver.received, critical, appended, outages, count, waiting)
            if judged["not_critical"]["lost"] <= 0 or time.monotonic() > deadline:
                break
            time.sleep(0.2)
    finally:
        notifier.kill()
        receiver.close()
    return {
        "seed": seed,
        "kills": kills,
        "alarms": count,
        "critical": len(critical),
        "seconds": round(took, 1),
        **judged,
    }


def _judged(
    received: list[tuple[float, str, str]],
    critical: set[str],
    appended: dict[str, float],
    outages: list[list[float]],
    count: int,
    waiting: int,
) -> dict[str, Any]:
    first: dict[str, float] = {}
    urgent: dict[str, int] = {}
    summaries: dict[str, dict[str, float]] = defaultdict(dict)
    counted_at: list[float] = []
    told = 0
    repeated = 0
    for at, title, text in received:
        message_id = re.findall(r"Message ([0-9a-f]{16})", text)[0]
        size = int(found[1]) if (found := re.match(r"(?:CRITICAL: )?(\d+) alarms", title)) else 1
        again = message_id in urgent or any(message_id in ids for ids in summaries.values())
        repeated += again
        if title.startswith("CRITICAL"):
            urgent[message_id] = size
            for alarm_id in re.findall(r"alarm ([0-9a-f]{20})", text):
                first.setdefault(alarm_id, at)
            if "not named here" in text:
                counted_at.append(at)
        else:
            group = re.findall(r"site-\d+", title)[0]
            summaries[group].setdefault(message_id, at)
            told += 0 if again else size
    named = len(critical & first.keys())
    # A message names 50 and counts the rest. Which those are it does not say, so the latest such message is taken.
    if counted_at and sum(urgent.values()) >= len(critical):
        for alarm_id in critical - first.keys():
            first[alarm_id] = max(counted_at)
    delays = sorted(first[alarm_id] - appended[alarm_id] for alarm_id in critical & first.keys())
    # Without the time from a kill until the notifier said again that it runs; with it is the other figure.
    dead: list[tuple[float, float]] = []
    for start, end in outages:
        dead.append((max(start, dead[-1][1]) if dead else start, end))
    running = [
        first[alarm_id]
        - appended[alarm_id]
        - sum(max(0.0, min(end, first[alarm_id]) - max(start, appended[alarm_id])) for start, end in dead)
        for alarm_id in critical & first.keys()
    ]
    most = max(
        (
            sum(1 for other in ids.values() if start <= other < start + WINDOW_S)
            for ids in summaries.values()
            for start in ids.values()
        ),
        default=0,
    )
    missing = sorted(critical - first.keys())
    lost = count - len(critical) - told - waiting
    return {
        "messages_received": len(received),
        "messages_sent_again": repeated,
        "urgent_messages": len(urgent),
        "groups": len(summaries),
        "most_summaries_in_a_window": most,
        "summaries_by_group": dict(sorted(Counter({group: len(ids) for group, ids in summaries.items()}).items())),
        "seconds_from_kill_to_running": [round(end - start, 1) for start, end in outages],
        "critical_named": named,
        "critical_named_or_counted": len(critical) - len(missing),
        "critical_missing": missing,
        "critical_delay_s": {
            "p50": round(delays[len(delays) // 2], 3) if delays else None,
            "max": round(delays[-1], 3) if delays else None,
            "max_while_the_notifier_ran": round(max(running), 3) if running else None,
            "limit": CRITICAL_LIMIT_S,
        },
        "not_critical": {"told": told, "wait_for_the_next_window": waiting, "lost": lost},
        "ok": not missing and most <= 1 and lost == 0 and bool(delays) and max(running) <= CRITICAL_LIMIT_S,
    }


def suite(say: Say = print) -> dict[str, Any]:
    """10,000 alarms in a minute: one message a group and ten minutes, every critical alarm within 10 s."""
    runs = []
    for seed, kills in RUNS:
        with tempfile.TemporaryDirectory(prefix="smoke-flood-") as folder:
            settings = private_settings(Path(folder) / "home", load_settings())
            broker = EmbeddedBroker(
                Path(folder) / "broker", settings.kafka_port, settings.kafka_controller_port, settings.cache_dir
            )
            broker.prepare()
            broker.start()
            try:
                ensure_topics(settings)
                with Cluster(settings.brokers) as cluster:
                    cluster.topic_id(ALARMS)
                runs.append(flood(settings, seed, kills, ALARM_COUNT, SECONDS, say))
            finally:
                broker.stop()
        say(json.dumps(runs[-1]))
    return {"ok": all(run["ok"] for run in runs), "runs": runs}
