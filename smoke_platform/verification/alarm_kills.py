"""``kill -9`` in the middle of a fire: every fire raises one alarm, the right one, and soon after the restart.

Belongs here: the devices that burn, whom to kill and when, what is read back and how it is judged. Does not: the
detector, the broker, or how either recovers; a victim is started again at once, as a supervisor would.

What is right is told by ``domain.detection`` itself, run once over the whole log of readings in one undisturbed
process. Rules alone decide, on both sides: when a model becomes available is a matter of the moment, not of the log.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np

from smoke_platform.adapters.kafka import ensure_topics, partition_of, topic_id, watermarks
from smoke_platform.adapters.kafka_bulk import BulkConsumer
from smoke_platform.domain.alarms import LIVE, AlarmRecord, Event, Kind, decode_record
from smoke_platform.domain.detection import Batch, Engine
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.topics import ALARMS
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.local.ports import free_ports
from smoke_platform.settings import Settings
from smoke_platform.verification.run import Say, private_settings
from smoke_platform.verification.scenes import Scenes

#: Readings a second of each device, and how many fires there are around each kill.
RATE = 4.0
FIRES_A_KILL = 3
#: Goals, in seconds: after the restart of the killed one; after the kill where others take over (the group notices an
#: absence after its session's 6 s).
AFTER_RESTART_S = 2.0
AFTER_TAKE_OVER_S = 8.0
#: Devices report calmly for this long before the first fire, so that their baselines are known.
CALM_S = 5.0
#: A fire that has not been raised by then is missed.
MISSED_AFTER_S = 30.0
START_DEADLINE_S = 180.0
#: A detector ends by itself where its client does not fetch (``detector.STALLED_S``): seen once in dozens of starts.
ENDS_AT_MOST = 2


@dataclass(frozen=True, slots=True)
class KillPlan:
    """One run: a platform of its own.

    Attributes:
        replicas: detectors that share the partitions.
        victims: who is killed, in turn: ``detector`` (restarted at once), ``absent`` (a detector whose partitions the
            others must take over; it comes back afterwards), ``broker``.
    """

    seed: int
    kills: int
    replicas: int
    victims: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Each burns at most once, since a fire alarm stays until it is reset. Some spare ones, to have a choice."""
        return self.kills * FIRES_A_KILL + 6 * self.replicas


@dataclass(slots=True)
class KillReport:
    """One kill and what followed.

    Attributes:
        victim: as in the plan, with the name of the replica.
        back_at: when the victim was started again, of the broker when it served again; the kill where others take over.
        recovery_s: from ``back_at`` to the first alarm that was due after the kill, the goal's measure. An alarm whose
            reading came later than ``back_at`` counts from that reading.
        slowest_s: the same of the last of them.
    """

    number: int
    victim: str
    killed_at: float
    back_at: float
    devices: list[str]
    bound_s: float
    recovery_s: float | None = None
    slowest_s: float | None = None
    due_after_kill: int = 0


@dataclass(slots=True)
class KillFindings:
    """What a run found; ``faults`` is empty where all is as it must be."""

    plan: KillPlan
    fires: int = 0
    readings: int = 0
    replays: int = 0
    other_alarms: dict[str, int] = field(default_factory=dict)
    ended_by_themselves: int = 0
    kills: list[KillReport] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        recoveries = [kill.recovery_s for kill in self.kills if kill.recovery_s is not None]
        return {
            **asdict(self.plan),
            "ok": self.ok,
            "fires": self.fires,
            "readings": self.readings,
            "replays": self.replays,
            "other_alarms": self.other_alarms,
            "detectors_that_ended_by_themselves": self.ended_by_themselves,
            "recovery_median_s": round(float(np.median(recoveries)), 3) if recoveries else None,
            "recovery_max_s": round(max(recoveries), 3) if recoveries else None,
            "faults": self.faults,
            "kill_reports": [_rounded(asdict(kill)) for kill in self.kills],
        }


def _rounded(report: dict[str, Any]) -> dict[str, Any]:
    began = report.pop("killed_at")
    report["back_after_s"] = report.pop("back_at") - began
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in report.items()}


def run(plan: KillPlan, home: Path, settings: Settings, say: Say) -> KillFindings:
    """Carries the plan out in ``home`` and judges it.

    Args:
        settings: of which the cache is used; everything else is private.
    """
    home.mkdir(parents=True, exist_ok=True)
    private = private_settings(home, settings, SMOKE_KAFKA_PARTITIONS="6")
    findings = KillFindings(plan)
    with ExitStack() as stack:
        broker = EmbeddedBroker(home / "kafka", private.kafka_port, private.kafka_controller_port, private.cache_dir)
        broker.prepare()
        broker.start()
        stack.callback(broker.stop)
        ensure_topics(private, timeout_s=60.0)
        replicas = [_Replica(private, f"d{number}") for number in range(plan.replicas)]
        for replica in replicas:
            stack.callback(replica.end)
            replica.start()
        _wait_until_shared(private, replicas)
        fleet = stack.enter_context(_Fleet(private, plan))
        watch = stack.enter_context(_Watch(private))
        time.sleep(CALM_S)
        for number in range(plan.kills):
            report = _one_kill(plan, number, private, broker, replicas, fleet, watch)
            findings.kills.append(report)
            away_s = report.back_at - report.killed_at
            say(f"kill {number + 1} of {plan.kills}: {report.victim}, back after {away_s:.1f} s")
        fleet.stop()
        findings.ended_by_themselves = sum(replica.ended_by_itself for replica in replicas)
        _judge(findings, private, fleet)
    return findings


# -- the course --------------------------------------------------------------------------------------------------
def _one_kill(
    plan: KillPlan,
    number: int,
    settings: Settings,
    broker: EmbeddedBroker,
    replicas: list[_Replica],
    fleet: _Fleet,
    watch: _Watch,
) -> KillReport:
    chance = random.Random(plan.seed * 1_000 + number)  # noqa: S311 - a seeded, repeatable choice, not a secret
    victim = plan.victims[number % len(plan.victims)]
    replica = replicas[chance.randrange(len(replicas))]
    reach = set(range(settings.kafka_partitions)) if victim == "broker" else set(replica.wait_for_partitions())
    devices = fleet.choose(FIRES_A_KILL, reach, chance)
    kill_at = time.time() + 4.2
    # Raised before the kill, begun but not raised yet, and begun about when it happens: rules need 2 s of fire.
    begins = (chance.uniform(-4.0, -2.6), chance.uniform(-1.9, -0.2), chance.uniform(-0.2, 1.5))
    for device, begin in zip(devices, begins, strict=True):
        fleet.burn(device, kill_at + begin)
    time.sleep(max(0.0, kill_at - time.time()))
    report = KillReport(number, victim, time.time(), 0.0, devices, AFTER_RESTART_S)
    if victim == "broker":
        broker.kill()
        broker.start()
        report.back_at = time.time()
    elif victim == "detector":
        report.victim = replica.member
        replica.kill()
        report.back_at = time.time()
        replica.start()
    else:
        report.victim, report.bound_s = f"{replica.member}, absent", AFTER_TAKE_OVER_S
        replica.kill()
        report.back_at = report.killed_at
    watch.wait_for(devices, MISSED_AFTER_S)
    if victim == "absent":
        replica.start()
        _wait_until_shared(settings, replicas)
    return report


def _wait_until_shared(settings: Settings, replicas: list[_Replica]) -> None:
    """Until the replicas together hold every partition once."""
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        held = sorted(number for replica in replicas for number in replica.partitions())
        if held == list(range(settings.kafka_partitions)) and all(replica.partitions() for replica in replicas):
            return
        for replica in replicas:
            replica.must_run()
        if time.monotonic() > deadline:
            raise SmokeError(f"the detectors hold the partitions {held} after {START_DEADLINE_S:g} s")
        time.sleep(0.1)


class _Replica:
    """One detector process, under one name however often it is started."""

    def __init__(self, settings: Settings, member: str) -> None:
        self.member = member
        (self._port,) = free_ports(1)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SMOKE_", "KAFKA_"))},
            **settings.environment(),
        }
        self._log = settings.home / f"{member}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.ended_by_itself = 0

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("smoke")), "detect", "--member", self.member]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self._port)], env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def must_run(self) -> None:
        """Starts one that has ended by itself again, as its supervisor would.

        Raises:
            SmokeError: with the last line of its log where it has ended more than ``ENDS_AT_MOST`` times.
        """
        if self._process is not None and self._process.poll() is not None:
            self.ended_by_itself += 1
            if self.ended_by_itself <= ENDS_AT_MOST:
                self.start()
                return
            lines = self._log.read_text("utf-8", "replace").splitlines() or ["it left no log"]
            raise SmokeError(f"detector {self.member} ended with {self._process.returncode}: {lines[-1]}")

    def partitions(self) -> list[int]:
        """Those that it holds now, as far as it tells."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=2.0).json()
        except (httpx.HTTPError, ValueError):
            return []
        return [int(number) for number in answer["partitions"]] if answer["state"] == "running" else []

    def wait_for_partitions(self) -> list[int]:
        deadline = time.monotonic() + START_DEADLINE_S
        while not (held := self.partitions()):
            self.must_run()
            if time.monotonic() > deadline:
                raise SmokeError(f"detector {self.member} holds no partition after {START_DEADLINE_S:g} s")
            time.sleep(0.05)
        return held


class _Fleet:
    """Devices that report from a thread of this process, through any outage; some of them burn when they are told."""

    def __init__(self, settings: Settings, plan: KillPlan) -> None:
        self._settings = settings
        self._scenes = Scenes(plan.seed)
        self.devices = [f"proof-{number:03d}" for number in range(plan.devices)]
        self._partition = {name: partition_of(name, settings.kafka_partitions) for name in self.devices}
        self._burns_from: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report, name="fleet", daemon=True)
        self.acknowledged = 0
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        if not self._thread.is_alive() and not self._stop.is_set():
            self.failures.append("the devices stopped reporting in the middle of the run")
        self._stop.set()
        self._thread.join(90)

    @property
    def burnt(self) -> list[str]:
        return list(self._burns_from)

    def choose(self, count: int, partitions: set[int], chance: random.Random) -> list[str]:
        """Devices of these partitions that have not burnt yet."""
        fresh = [name for name in self.devices if name not in self._burns_from and self._partition[name] in partitions]
        if len(fresh) < count:
            raise SmokeError(f"only {len(fresh)} devices of the partitions {sorted(partitions)} have not burnt yet")
        return chance.sample(fresh, count)

    def burn(self, device: str, begin: float) -> None:
        """From ``begin`` (epoch seconds) on this device reports a fire."""
        self._burns_from[device] = begin

    def _report(self) -> None:
        from confluent_kafka import KafkaError, Message, Producer

        def note(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self.acknowledged += 1
            else:
                self.failures.append(str(error))

        producer = Producer(
            {
                "bootstrap.servers": self._settings.brokers,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 1,
                "message.timeout.ms": 0,
                "partitioner": "murmur2_random",
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 200,
                "retry.backoff.ms": 20,
                "log_level": 0,
                "on_delivery": note,
            }
        )
        began, sent, topic = time.time(), 0, self._settings.topic_readings
        while not self._stop.is_set():
            # Every device in turn, evenly: reading k of device i is due at (k + i / n) / RATE.
            due = began + sent / (RATE * len(self.devices))
            if (ahead := due - time.time()) > 0:
                producer.poll(0)
                time.sleep(min(ahead, 0.01))
                continue
            turn, place = divmod(sent, len(self.devices))
            device, now = self.devices[place], time.time()
            burning = now >= self._burns_from.get(device, np.inf)
            moment = datetime.fromtimestamp(now, UTC)
            value = self._scenes.message(device, moment, turn, burning=burning, salt=place)
            producer.produce(topic, value, device.encode())
            sent += 1
        left = producer.flush(60)
        if left:
            self.failures.append(f"{left} readings were never acknowledged")


class _Watch:
    """Follows the alarms while they come, to know when a fire has been raised."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._raised: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def wait_for(self, devices: list[str], deadline_s: float) -> None:
        """Until every device has been raised, or the time is over: what is missing is found by the judgement."""
        deadline = time.monotonic() + deadline_s
        while not self._raised.issuperset(devices) and time.monotonic() < deadline:
            if not self._thread.is_alive():
                raise SmokeError("the alarms' topic can no longer be read; the reason stands above")
            time.sleep(0.05)

    def _follow(self) -> None:
        starts = dict.fromkeys(range(self._settings.kafka_partitions), 0)
        with BulkConsumer(self._settings.brokers, ALARMS, starts) as consumer:
            while not self._stop.is_set():
                for value in consumer.take(0.2).values:
                    if value is not None:
                        record = decode_record(value)
                        if record.kind is Kind.FIRE and record.event is Event.RAISED:
                            self._raised.add(record.device_id)


# -- the judgement -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Appended:
    """A record of the alarms' topic and when the broker appended it, epoch seconds."""

    record: AlarmRecord
    at: float


def _judge(findings: KillFindings, settings: Settings, fleet: _Fleet) -> None:
    faults = findings.faults
    faults += fleet.failures[:3]
    expected, appended = _oracle(settings)
    findings.readings = sum(map(len, appended.values()))
    if findings.readings != fleet.acknowledged:
        faults.append(f"{fleet.acknowledged} readings were acknowledged and {findings.readings} stand in the log")
    if missing := sorted(set(fleet.burnt) - set(expected)):
        faults.append(f"no rule sees the fires of {', '.join(missing)}: the proof itself is wrong")
    by_device: dict[str, list[Appended]] = defaultdict(list)
    others: dict[str, int] = defaultdict(int)
    for each in _alarms(settings):
        if each.record.kind is Kind.FIRE:
            by_device[each.record.device_id].append(each)
        elif each.record.event is Event.RAISED:
            others[str(each.record.kind)] += 1
    findings.other_alarms = dict(others)
    findings.fires = len(fleet.burnt)
    if strangers := sorted(set(by_device) - set(fleet.burnt)):
        faults.append(f"devices that never burnt have a fire alarm: {', '.join(strangers[:5])}")
    first: dict[str, Appended] = {}
    for device in fleet.burnt:
        if device in expected:
            faults += faults_of(device, by_device[device], expected[device])
        raised = [found for found in by_device[device] if found.record.event is Event.RAISED]
        if raised:
            first[device] = raised[0]
            findings.replays += len(raised) - 1
    for kill in findings.kills:
        _measure(kill, first, appended)
        if kill.recovery_s is not None and kill.recovery_s > kill.bound_s:
            faults.append(
                f"kill {kill.number + 1} ({kill.victim}): first alarm after {kill.recovery_s:.2f} s, "
                f"the bound is {kill.bound_s:g} s"
            )


def faults_of(device: str, records: list[Appended], expected: AlarmRecord) -> list[str]:
    """What is wrong with one device's fire alarm."""
    raised = [each.record for each in records if each.record.event is Event.RAISED]
    if not raised:
        return [f"{device}: its fire was missed"]
    faults = []
    ids = {each.record.alarm_id for each in records if each.record.alarm_id}
    if len(ids) > 1:
        faults.append(f"{device}: {len(ids)} alarms instead of one: {', '.join(sorted(ids))}")
    if any(record != raised[0] for record in raised[1:]):
        faults.append(f"{device}: raised {len(raised)} times, and not as exact repetitions")
    wanted = (expected.partition, expected.cause, expected.alarm_id)
    found = (raised[0].partition, raised[0].cause, raised[0].alarm_id)
    if found != wanted:
        faults.append(f"{device}: raised by (partition, offset, alarm) {found}; an undisturbed run says {wanted}")
    newest = raised[0]
    for each in records:
        if each.record.order > newest.order:
            newest = each.record
    if newest.state not in LIVE or newest.alarm_id != expected.alarm_id:
        faults.append(f"{device}: its newest record says {newest.state} of alarm {newest.alarm_id or '-'}")
    return faults


def _measure(kill: KillReport, first: dict[str, Appended], appended: dict[int, dict[int, float]]) -> None:
    """Fills in how long the alarms that were due after the kill took."""
    delays = []
    for device in kill.devices:
        found = first.get(device)
        if found is None or found.at < kill.killed_at:
            continue
        due = max(kill.back_at, appended[found.record.partition].get(found.record.cause, kill.back_at))
        delays.append(max(0.0, found.at - due))
    kill.due_after_kill = len(delays)
    kill.recovery_s, kill.slowest_s = (min(delays), max(delays)) if delays else (None, None)


def _oracle(settings: Settings) -> tuple[dict[str, AlarmRecord], dict[int, dict[int, float]]]:
    """What one undisturbed run over the whole log raises: device -> its fire alarm; and when each reading came."""
    engine = Engine(topic_id(settings, settings.topic_readings))
    for partition in range(settings.kafka_partitions):
        engine.add_partition(partition)
        engine.start_at(partition, 0)
    raised: dict[str, AlarmRecord] = {}
    appended: dict[int, dict[int, float]] = defaultdict(dict)
    for batch in _log(settings, settings.topic_readings):
        for record in engine.take(batch, None).records:
            if record.kind is Kind.FIRE and record.event is Event.RAISED:
                raised.setdefault(record.device_id, record)
        for partition, offset, moment in zip(batch.partitions, batch.offsets, batch.append_times_ms, strict=True):
            appended[partition][offset] = moment / 1000.0
    return raised, appended


def _alarms(settings: Settings) -> Iterator[Appended]:
    for batch in _log(settings, ALARMS):
        for value, moment in zip(batch.values, batch.append_times_ms, strict=True):
            if value is not None:
                yield Appended(decode_record(value), moment / 1000.0)


def _log(settings: Settings, topic: str) -> Iterator[Batch]:
    """A topic from its first message to its present end."""
    ends = watermarks(settings, topic)
    todo = {number: high for number, (low, high) in ends.items() if high > low}
    with BulkConsumer(settings.brokers, topic, {number: ends[number][0] for number in todo}) as consumer:
        deadline = time.monotonic() + START_DEADLINE_S
        while todo:
            if time.monotonic() > deadline:
                raise SmokeError(f"partitions {sorted(todo)} of {topic} could not be read to their end")
            found = consumer.take(0.2)
            batch = Batch(
                list(found.values),
                [None] * len(found.values),
                list(found.partitions),
                list(found.offsets),
                list(found.append_times_ms),
            )
            for partition, offset in zip(batch.partitions, batch.offsets, strict=True):
                if partition in todo and offset + 1 >= todo[partition]:
                    del todo[partition]
            if batch.values:
                yield batch
