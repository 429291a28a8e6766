"""The alarms over HTTP: what stands, what happened, commands, a stream, and whether anybody judges the readings.

Belongs here: what the alarm endpoints answer, their metrics, the question after the detector's health. Does not: the
routes (``serving.app``), which record holds (``domain.alarm_board``), how commands travel (``adapters.alarm_log``).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any, Self

import anyio.to_thread
import msgspec
from anyio import CapacityLimiter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from smoke_platform.adapters.alarm_log import AlarmCommands, AlarmLog, Entry, joined, read_lake
from smoke_platform.adapters.lake import Lake
from smoke_platform.domain.alarm_board import Occurrence, Wanted, is_complete
from smoke_platform.domain.alarm_words import as_time, event_words, make_command, outcome, state_words, why
from smoke_platform.domain.alarms import LIVE, AlarmRecord, Event, Kind, Severity, State, Verb, Verdict
from smoke_platform.domain.errors import SmokeError
from smoke_platform.serving.requests import RequestFault, decode
from smoke_platform.settings import Settings

#: Alarms in one answer; the number of all stands beside them.
MOST_ALARMS = 1000
#: Records of one history.
MOST_HISTORY = 1000
#: How long a command waits for the detector's answer before it is called queued.
ANSWER_S = 5.0
#: How often it is looked for one.
LOOK_S = 0.02
#: Streams at once, how often each looks for news, and how often it says that it lives.
MOST_STREAMS = 50
STREAM_S = 0.1
HEARTBEAT_S = 15.0
#: The detector's health is asked for at most this often, and waited for this long.
HEALTH_FRESH_S = 1.0
HEALTH_TIMEOUT_S = 1.0
#: An alarm log that is further behind shows an old state.
MOST_BEHIND = 1000
#: A detector that is further behind, in readings and in seconds of work, raises alarms late.
MOST_LAG, MOST_LAG_S = 2_000, 2.0
_log = logging.getLogger(__name__)


# -- what is answered --------------------------------------------------------------------------------------------


class AlarmView(msgspec.Struct, kw_only=True):
    """One alarm after one event.

    Attributes:
        alarm_id: empty where there is no alarm, such as for a device that is shelved while all is well.
        live: whether somebody should look at it.
        state_words, what, why: for people.
        since: when it was raised, by the broker's clock.
        at: when the latest event happened, by the broker's clock.
        measured_at: the device's clock at the latest event, where a reading led to it.
        cause: offset of the causing reading in ``partition`` of the readings' topic with the id ``topic_id``.
    """

    alarm_id: str
    device_id: str
    kind: Kind
    severity: str
    peak: str
    state: State
    live: bool
    acknowledged: bool
    event: Event
    state_words: str
    what: str
    why: str
    since: datetime | None
    at: datetime | None
    measured_at: datetime | None
    until: datetime | None
    by: str
    reason: str
    verdict: Verdict | None
    repeats: int
    site: str
    room: str
    rules: tuple[str, ...]
    score: float | None
    threshold: float | None
    model_version: str | None
    values: dict[str, float]
    first_offset: int
    last_offset: int
    topic_id: str
    partition: int
    cause: int
    revision: int
    command_id: str


class AlarmPage(msgspec.Struct, kw_only=True):
    """Alarms, the most pressing first: by severity, those that nobody has acknowledged, the newest.

    Attributes:
        ready: whether the alarm log has been read; while it is not, nothing can be said.
        matching: how many fit, of which ``alarms`` holds those from ``offset`` on.
        counts: of all live alarms by severity, kind and state, whatever the filters; ``aside``: shelved or disabled.
    """

    ready: bool
    version: int
    matching: int
    offset: int
    counts: dict[str, Any]
    alarms: list[AlarmView]


class History(msgspec.Struct, kw_only=True):
    """What happened to an alarm, oldest first.

    Attributes:
        complete: whether it goes back to the raising without a hole.
    """

    alarm_id: str
    complete: bool
    records: list[AlarmView]


class CommandAnswer(msgspec.Struct, kw_only=True):
    """What came of a command.

    Attributes:
        status: ``done`` or ``queued``: no detector has answered yet, and the command waits for one in Kafka.
        partition, offset: where it stands.
    """

    status: str
    detail: str
    command_id: str
    partition: int
    offset: int
    alarm: AlarmView | None = None


def shown(record: AlarmRecord) -> AlarmView:
    """A record as it is answered."""
    evidence = record.evidence
    return AlarmView(
        alarm_id=record.alarm_id,
        device_id=record.device_id,
        kind=record.kind,
        severity=record.severity,
        peak=record.peak,
        state=record.state,
        live=record.state in LIVE,
        acknowledged=record.acknowledged,
        event=record.event,
        state_words=state_words(record),
        what=event_words(record),
        why=why(record),
        since=as_time(record.raised_at),
        at=as_time(record.at),
        measured_at=as_time(record.event_time),
        until=as_time(record.until),
        by=record.by,
        reason=record.reason,
        verdict=record.verdict,
        repeats=record.repeats,
        site=record.site,
        room=record.room,
        rules=evidence.rules,
        score=evidence.score,
        threshold=evidence.threshold,
        model_version=evidence.model_version,
        values=evidence.values,
        first_offset=evidence.first_offset,
        last_offset=evidence.last_offset,
        topic_id=record.topic_id,
        partition=record.partition,
        cause=record.cause,
        revision=record.revision,
        command_id=record.command_id,
    )


# -- the desk ----------------------------------------------------------------------------------------------------


class AlarmDesk:
    """Everything behind the alarm endpoints; belongs to one event loop. Use it as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self.log = AlarmLog(settings)
        self.detector = DetectorProbe(settings)
        self._commands = AlarmCommands(settings)
        self._lake = Lake(settings.lake)
        self._streams = 0
        self._history_slots = CapacityLimiter(2)
        self._command_slots = CapacityLimiter(8)

    def __enter__(self) -> Self:
        self.log.start()
        return self

    def __exit__(self, *_fault: object) -> None:
        self.log.stop()

    # -- seeing ------------------------------------------------------------------------------------------
    async def page(self, wanted: Wanted, limit: int, offset: int) -> AlarmPage:
        """The alarms that are wanted, from ``offset`` on, at most ``limit``."""
        # A flood has to be sorted, and predictions wait for this thread's loop.
        return await anyio.to_thread.run_sync(self._page, wanted, limit, offset)

    def _page(self, wanted: Wanted, limit: int, offset: int) -> AlarmPage:
        view = self.log.view()
        chosen = wanted.chosen(view.records)
        counts: dict[str, Any] = {"live": 0, "unacknowledged": 0, "aside": 0, "severity": {}, "kind": {}, "state": {}}
        for (kind, state, severity), number in view.counts.items():
            if state not in LIVE:
                counts["aside"] += number
                continue
            counts["live"] += number
            for name, label in (("severity", severity), ("kind", kind.value), ("state", state.value)):
                counts[name][label] = counts[name].get(label, 0) + number
        counts["unacknowledged"] = sum(it.state in LIVE and not it.acknowledged for it in view.records)
        return AlarmPage(
            ready=self.log.ready,
            version=view.version,
            matching=len(chosen),
            offset=offset,
            counts=counts,
            alarms=[shown(record) for record in chosen[offset : offset + limit]],
        )

    def of_device(self, device_id: str) -> list[AlarmView]:
        """What is kept of a device, one for each kind that ever had an alarm."""
        return [shown(found) for kind in Kind if (found := self.log.get(device_id, kind)) is not None]

    async def one(self, alarm_id: str) -> AlarmRecord:
        """The latest record of an alarm, from memory or else from the lake.

        Raises:
            RequestFault: 404 where it is not known.
        """
        found = self.log.by_id(alarm_id)
        if found is None:
            landed = await self._landed(alarm_id, 1)
            found = landed[-1].record if landed else None
        if found is None:
            raise RequestFault(
                404, "no_such_alarm", "no alarm with this id is known", "GET /alarms?state=all lists those there are"
            )
        return found

    async def history(self, alarm_id: str, limit: int) -> History:
        """The records of one alarm: what has landed in the lake and what is still in memory.

        Raises:
            RequestFault: 404 where it is not known.
        """
        found = await self.one(alarm_id)
        recent = self.log.history(found.device_id, found.kind, MOST_HISTORY)
        landed = await self._landed(alarm_id, limit)
        trail = [it.record for it in joined(landed, [_entry(it) for it in recent]) if it.record.alarm_id == alarm_id]
        return History(
            alarm_id=alarm_id, complete=is_complete(trail), records=[shown(record) for record in trail[-limit:]]
        )

    async def _landed(self, alarm_id: str, limit: int) -> list[Entry]:
        def read() -> list[Entry]:
            return read_lake(self._lake, alarm_id=alarm_id, limit=limit)

        try:
            return await anyio.to_thread.run_sync(read, limiter=self._history_slots)
        except Exception:  # noqa: BLE001 - deltalake, polars and the object store raise what they like
            # What is in memory is worth showing without it; ``complete`` says that something is missing.
            _log.exception("the history of alarms could not be read from the lake")
            return []

    async def status(self) -> dict[str, Any]:
        """Whether what is shown is current, and whether the readings are judged at all."""
        detector = await self.detector.look()
        behind, fault = self.log.behind, self.log.fault
        partitions = self.log.partitions
        current = behind is not None and behind <= MOST_BEHIND
        doubt = uncertainty(detector, partitions)
        problems = []
        if not self.log.ready:
            problems.append(f"The alarms have not been read yet: {_told(fault, 'reading is under way')}.")
        elif fault is not None:
            problems.append(f"The list may be old: {_told(fault, '')}.")
        elif not current:
            problems.append(f"The list is {behind:,} records behind.")
        if doubt:
            problems.append(doubt)
        return {
            "current": current,
            "judging": partitions is not None and not doubt,
            "problems": problems,
            "log": {"ready": self.log.ready, "behind": behind, "unreadable": self.log.unreadable,
                    "fault": fault.message if fault else ""},
            "detector": detector,
        }  # fmt: skip

    # -- handling ----------------------------------------------------------------------------------------
    async def command(self, found: AlarmRecord | None, device_id: str, kind: Kind, body: bytes) -> CommandAnswer:
        """Sends the command in ``body`` and waits a while for the detector.

        Args:
            found: the alarm that is meant; ``None`` for what has none, such as a device to be shelved.

        Raises:
            RequestFault: 400 or 422 for a body that is no command, 409 for a refusal, 503 without a broker.
        """
        fields = CommandBody.of(decode(body))
        now = time.time()
        try:
            command = make_command(
                fields.verb,
                device_id,
                kind,
                by=fields.by,
                now=now,
                reason=fields.reason,
                until=fields.end(now),
                verdict=fields.verdict,
                alarm_id=found.alarm_id if found else "",
            )
        except SmokeError as error:
            field = error.message.partition(":")[0]
            raise RequestFault(422, "command", error.message, error.remedy, field=field) from None
        known = found or self.log.get(device_id, kind)
        partition = known.partition if known else None
        try:
            place = await anyio.to_thread.run_sync(
                self._commands.send, command, partition, limiter=self._command_slots
            )  # fmt: skip
        except SmokeError as error:
            raise RequestFault(503, "not_sent", error.message, error.remedy) from None
        deadline = time.monotonic() + ANSWER_S
        while (record := self.log.answer(command.command_id)) is None and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)
        if record is None:
            detail = "no detector has answered yet; the command stands in Kafka and is carried out as soon as one runs"
            return CommandAnswer(
                status="queued", detail=detail, command_id=command.command_id, partition=place[0], offset=place[1]
            )
        if record.event is Event.REFUSED:
            raise RequestFault(
                409, "refused", outcome(record, fields.verb), "look at the alarm again: it may have changed meanwhile"
            )
        return CommandAnswer(
            status="done",
            detail=outcome(record, fields.verb),
            command_id=command.command_id,
            partition=place[0],
            offset=place[1],
            alarm=shown(record),
        )

    # -- following ---------------------------------------------------------------------------------------
    def stream(self, wanted: Wanted, after: int | None) -> AsyncIterator[bytes]:
        """Server-sent events: ``alarm`` for each record, ``reset`` where some were missed, comments as heartbeats.

        Args:
            after: version after which to begin; by default now.

        Raises:
            RequestFault: 503 where there are too many streams.
        """
        if self._streams >= MOST_STREAMS:
            raise RequestFault(
                503, "too_many_streams", f"{MOST_STREAMS} streams are open", "ask GET /alarms every second instead"
            )
        return self._stream(wanted, self.log.version if after is None else after)

    async def _stream(self, wanted: Wanted, after: int) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            # A cursor of another life of this service may lie ahead of all that comes.
            cursor = min(after, self.log.version)
            gap_told = cursor != after
            yield b"retry: 2000\n\n" + (_event("reset", cursor, {"version": cursor}) if gap_told else b"")
            spoke = time.monotonic()
            while True:
                found, gap = self.log.since(cursor)
                if gap:
                    cursor = self.log.version
                    yield _event("reset", cursor, {"version": cursor})
                    spoke = time.monotonic()
                    continue
                if found:
                    cursor = found[-1].sequence
                    records = [(it.sequence, it.record) for it in found]
                    lines = [_event("alarm", at, shown(it)) for at, it in records if wanted.chosen([it])]
                    if lines:
                        yield b"".join(lines)
                        spoke = time.monotonic()
                elif time.monotonic() - spoke >= HEARTBEAT_S:
                    yield b": alive\n\n"
                    spoke = time.monotonic()
                await asyncio.sleep(STREAM_S)
        finally:
            self._streams -= 1


def _entry(occurrence: Occurrence) -> Entry:
    return Entry(("", occurrence.partition, occurrence.offset), occurrence.append_ms, occurrence.record)


def _event(name: str, version: int, data: Any) -> bytes:
    # JSON from msgspec holds no line break, which would end the field.
    return b"event: %s\nid: %d\ndata: %s\n\n" % (name.encode(), version, msgspec.json.encode(data))


def _told(fault: SmokeError | None, otherwise: str) -> str:
    return otherwise if fault is None else fault.message


class CommandBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a command.

    Attributes:
        verb: what to do.
        by: who asks.
        reason: why; required to snooze, shelve, disable, comment and for a verdict.
        until: end of a snooze or shelf, ISO 8601 with a zone or epoch seconds.
        for_s: its length in seconds, in place of ``until``.
        verdict: of a verdict.
    """

    verb: Verb
    by: str
    reason: str = ""
    until: datetime | float | None = None
    for_s: float | None = None
    verdict: Verdict | None = None

    @classmethod
    def of(cls, payload: Any) -> CommandBody:
        try:
            return msgspec.convert(payload, cls)
        except msgspec.ValidationError as error:
            text = str(error)
            field = text.rpartition("`$.")[2].rstrip("`") if "`$." in text else ""
            raise RequestFault(
                422, "command", text, "GET /docs shows the body of a command", field=field
            ) from None  # fmt: skip

    def end(self, now: float) -> float | None:
        """Epoch seconds.

        Raises:
            RequestFault: where both are given, or a time has no zone.
        """
        if self.until is not None and self.for_s is not None:
            raise RequestFault(422, "command", "until and for_s exclude one another", "send one", field="until")
        if self.for_s is not None:
            return now + self.for_s if math.isfinite(self.for_s) else math.nan
        if isinstance(self.until, datetime):
            if self.until.tzinfo is None:
                raise RequestFault(422, "command", "until: a time without a zone", "append Z for UTC", field="until")
            return self.until.timestamp()
        return self.until


# -- the detector ------------------------------------------------------------------------------------------------


class DetectorProbe:
    """Asks the detector how it is; many who ask at once cost one question."""

    def __init__(self, settings: Settings) -> None:
        self._url = f"{settings.detector_url}/health"
        self._seen: dict[str, Any] | None = None
        self._at = -HEALTH_FRESH_S
        self._asking: asyncio.Task[dict[str, Any]] | None = None

    async def look(self) -> dict[str, Any]:
        """``state`` (running, restoring, waiting, unreachable, odd), ``lag``, ``partitions``, ``judging``, ``detail``.

        ``judging``: it runs, has partitions and is not far behind. Only then does "no alarm" mean anything.
        """
        if self._seen is not None and time.monotonic() - self._at < HEALTH_FRESH_S:
            return self._seen
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> dict[str, Any]:
        import httpx

        try:
            try:
                async with httpx.AsyncClient(timeout=HEALTH_TIMEOUT_S, trust_env=False) as client:
                    answer = await client.get(self._url)
                self._seen = judged(answer.json())
            except httpx.HTTPError:
                self._seen = _unknown(
                    "unreachable", f"No detector answers at {self._url}: whether there is a fire is not known"
                )
            except ValueError:
                self._seen = _unknown("odd", f"What answers at {self._url} is no detector")
            self._at = time.monotonic()
            return self._seen
        finally:
            self._asking = None


def judged(health: Any) -> dict[str, Any]:
    """What a detector's health report means."""
    if not isinstance(health, dict) or health.get("state") not in ("running", "restoring", "waiting"):
        return _unknown("odd", "The detector's health report is not understood")
    state, lag = health["state"], health.get("lag")
    partitions = [number for number in _list(health.get("partitions")) if isinstance(number, int)]
    rate = health.get("readings_per_second")
    allowed = max(MOST_LAG, MOST_LAG_S * rate if isinstance(rate, int | float) else 0.0)
    detail = ""
    if state != "running":
        detail = f"The detector is {state}: readings are not judged yet"
    elif not partitions:
        detail = "The detector has no partitions: it judges nothing"
    elif not isinstance(lag, int):
        detail = "The detector does not say how far behind it is"
    elif lag > allowed:
        detail = f"The detector is {lag:,} readings behind: alarms come late"
    return {
        "state": state,
        "lag": lag if isinstance(lag, int) else None,
        "partitions": partitions,
        "model_version": health.get("model_version"),
        "judging": not detail,
        "detail": detail,
    }


def uncertainty(detector: dict[str, Any], partitions: int | None) -> str:
    """Why readings may not be judged, in a sentence; empty where all of them are.

    Args:
        detector: what ``DetectorProbe.look`` gave.
        partitions: how many there are, ``None`` where that is not known.
    """
    if not detector["judging"]:
        return f"{detector['detail']}."
    held = set(detector["partitions"])
    if partitions is None or held >= set(range(partitions)):
        return ""
    return (
        f"The detector that is asked judges {len(held)} of {partitions} partitions; whether another one judges the "
        "rest is not known here."
    )


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _unknown(state: str, detail: str) -> dict[str, Any]:
    return {"state": state, "lag": None, "partitions": [], "model_version": None, "judging": False, "detail": detail}


# -- metrics -----------------------------------------------------------------------------------------------------


class AlarmMetrics(Collector):
    """Reads the alarm log's own counts when asked. Labels come from closed lists, whatever a record says."""

    def __init__(self, log: AlarmLog) -> None:
        self._log = log

    def collect(self) -> Iterable[Metric]:
        counts = self._log.counts()
        severities = [severity.label for severity in Severity]
        alarms = GaugeMetricFamily(
            "smoke_alarms", "Alarms that are not over", labels=["kind", "state", "severity"]
        )  # fmt: skip
        totals = dict.fromkeys(
            (
                (kind.value, state.value, severity)
                for kind in Kind
                for state in State
                if state is not State.NORMAL
                for severity in severities
            ),
            0,
        )
        for (kind, state, severity), number in counts.items():
            place = kind.value, state.value, severity if severity in severities else "other"
            totals[place] = totals.get(place, 0) + number
        for labels, number in totals.items():
            alarms.add_metric(labels, number)
        yield alarms
        yield GaugeMetricFamily("smoke_alarm_log_ready", "1 once the alarm log has been read", float(self._log.ready))
        behind = self._log.behind
        yield GaugeMetricFamily(
            "smoke_alarm_log_lag_records",
            "Alarm records not read yet; NaN where that is not known",
            math.nan if behind is None else float(behind),
        )
        yield CounterMetricFamily(
            "smoke_alarm_log_unreadable", "Messages in the alarms' topic that are no records", self._log.unreadable
        )
