"""The alarms as people see them, read from ``smoke_alarms``, and what people ask of them, written to
``smoke_alarm_commands``.

Belongs here: a view of the topic that stays current, acknowledged commands, an alarm's full audit trail from Kafka and
the lake. Does not: which record holds and what is kept (``domain.alarm_board``), words (``domain.alarm_words``), what a
command does (the detector), the command line and the API.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from confluent_kafka import KafkaError, KafkaException, Producer

from smoke_platform.adapters.kafka import BrokerUnreachable, DeliveryFailed, TopicMissing, partition_of, unreachable
from smoke_platform.adapters.kafka_bulk import (
    MODEST_FETCH_SETTINGS,
    POLL_MESSAGES,
    BulkConsumer,
    KafkaUnreachable,
    MessageBatch,
    TopicFacts,
    TopicWatcher,
)
from smoke_platform.adapters.lake import Lake
from smoke_platform.domain.alarm_board import Board, Occurrence, Wanted, in_order
from smoke_platform.domain.alarms import (
    AlarmCommand,
    AlarmRecord,
    Event,
    Evidence,
    Kind,
    State,
    Verdict,
    alarm_key,
    decode_record,
    encode,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.offsets import advanced, after
from smoke_platform.domain.topics import ALARM_COMMANDS, ALARMS
from smoke_platform.settings import Settings

log = logging.getLogger(__name__)

#: One poll of the client: the longest time until a change is seen.
POLL_S = 0.05
#: Records that are taken while others wait to ask: about two milliseconds of work.
MOST_LOCKED = 500
#: How often the topic is asked for its end, and whether it is still the same one.
LOOK_EVERY_S = 2.0
#: Pause before another try where the broker does not answer or the topic is missing.
RETRY_S = 0.5
#: How long one question to the broker may take.
ASK_S = 3.0
#: How long sending may take, a broker's restart included.
SEND_TIMEOUT_S = 30.0
#: Asked again for the number of partitions after this long.
METADATA_S = 5.0
#: Rows of one audit trail.
MOST_TRAIL = 10_000


class View(NamedTuple):
    """All alarms at one moment; nothing in it changes any more.

    Attributes:
        version: rises with each change.
        records: what is kept, in the order in which people see it.
        counts: (kind, state, severity) -> how many; those that are over are left out.
    """

    version: int
    records: tuple[AlarmRecord, ...]
    counts: Mapping[tuple[Kind, State, str], int]


class AlarmLog:
    """The alarms, kept current by a thread. Start it with ``start`` or as a context manager; end it.

    Reading begins at the topic's start, goes on through restarts of the broker, and begins anew where the topic is made
    anew; what was known holds until that has been read as a whole. All methods may be called from any thread.

    Args:
        settings: which broker.
        topic: another one than the platform's, for tests.
    """

    def __init__(self, settings: Settings, *, topic: str = ALARMS) -> None:
        self._brokers = settings.brokers
        self._topic = topic
        self._stop = threading.Event()
        self._moved = threading.Condition()
        # Behind the condition, all of these.
        self._board = Board()
        self._view: View | None = None
        self._facts: TopicFacts | None = None
        self._reached: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._ready = False
        self._fault: SmokeError | None = SmokeError("the alarm log has not begun to read")
        self._unreadable = 0
        self._thread = threading.Thread(target=self._follow, name="alarm-log", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends reading; what was read stays there to be asked for."""
        self._stop.set()
        self._thread.join(ASK_S * 2)

    # -- asking ------------------------------------------------------------------------------------------
    def view(self) -> View:
        """Everything that is kept, in the order in which people see it; worked out once for each version."""
        with self._moved:
            if self._view is None or self._view.version != self._board.sequence:
                held, counts = self._board.held(), dict(self._board.counts)
                version = self._board.sequence
            else:
                return self._view
        # Sorting takes a while in a flood, and must not keep the reader waiting.
        made = View(version, tuple(in_order(held)), counts)
        with self._moved:
            if self._view is None or self._view.version < made.version:
                self._view = made
        return made

    def records(self, wanted: Wanted | None = None) -> list[AlarmRecord]:
        """What holds of the alarms that are wanted (all live ones by default), the most pressing first."""
        return (wanted or Wanted()).chosen(self.view().records)

    def get(self, device_id: str, kind: Kind) -> AlarmRecord | None:
        """What holds of that device and kind; ``None`` where it never had such an alarm, or long ago."""
        with self._moved:
            return self._board.get(device_id, kind)

    def by_id(self, alarm_id: str) -> AlarmRecord | None:
        """The latest record of the alarm with this id, live or over; ``None`` where nothing of it is kept."""
        with self._moved:
            found = self._board.by_id(alarm_id)
            if found is not None:
                return found
            past = self._board.last(alarm_id=alarm_id, limit=1)
        return past[0].record if past else None

    def history(self, device_id: str, kind: Kind, limit: int = 100) -> list[Occurrence]:
        """The latest records of a device and kind that are in memory, oldest first."""
        with self._moved:
            return self._board.last(key=(device_id, kind), limit=limit)

    def since(self, version: int, limit: int = 500) -> tuple[list[Occurrence], bool]:
        """The records after that version, oldest first, and whether some are no longer in memory."""
        with self._moved:
            return self._board.since(version, limit)

    def answer(self, command_id: str) -> AlarmRecord | None:
        """The record to which a command has led, refusals among them; ``None`` until there is one."""
        with self._moved:
            return self._board.answer(command_id)

    def counts(self) -> Counter[tuple[Kind, State, str]]:
        """(kind, state, severity) -> how many there are now; those that are over are left out."""
        with self._moved:
            return Counter(self._board.counts)

    @property
    def version(self) -> int:
        """Rises with each record taken."""
        return self._board.sequence

    @property
    def ready(self) -> bool:
        """Whether the whole topic has been read, as it was when reading began."""
        return self._ready

    @property
    def partitions(self) -> int | None:
        """How many the topic has; ``None`` where it was never seen."""
        facts = self._facts
        return None if facts is None else len(facts.partitions)

    @property
    def behind(self) -> int | None:
        """Offsets that are in the topic and not read yet, as of the last look; ``None`` where that is not known."""
        with self._moved:
            if not self._ready or self._fault is not None:
                return None
            return sum(max(0, end - self._reached.get(number, 0)) for number, end in self._ends.items())

    @property
    def fault(self) -> SmokeError | None:
        """Why it is not current; ``None`` while it is."""
        return self._fault

    @property
    def unreadable(self) -> int:
        """Messages that were no records; they are passed over."""
        return self._unreadable

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits until it is ready, at most ``timeout_s``; says whether it is."""
        with self._moved:
            return self._moved.wait_for(lambda: self._ready, timeout_s)

    def require_ready(self, timeout_s: float = 15.0) -> None:
        """As ``wait_ready``.

        Raises:
            SmokeError: where it takes longer, with the reason.
        """
        if not self.wait_ready(timeout_s):
            raise self._fault or BrokerUnreachable(f"topic {self._topic} was not read within {timeout_s:g} s")

    def wait_change(self, version: int, timeout_s: float) -> bool:
        """Waits until ``version`` is no longer the present one; says whether it is not."""
        with self._moved:
            return self._moved.wait_for(lambda: self._board.sequence != version, timeout_s)

    def wait_answer(self, command_id: str, timeout_s: float) -> AlarmRecord | None:
        """Waits for the record to which a command leads; ``None`` where none came in time."""
        with self._moved:
            self._moved.wait_for(lambda: self._board.answer(command_id) is not None, timeout_s)
            return self._board.answer(command_id)

    # -- reading, on a thread of its own ------------------------------------------------------------------
    def _follow(self) -> None:
        said = ""
        while not self._stop.is_set():
            try:
                require_listener(self._brokers)
                self._read(TopicWatcher(self._brokers, self._topic))
                said = ""
            except SmokeError as fault:
                self._note(fault)
                if fault.message != said:
                    log.warning("the alarm log is not current: %s", fault.message)
                    said = fault.message
            self._stop.wait(RETRY_S)

    def _note(self, fault: SmokeError | None) -> None:
        with self._moved:
            self._fault = fault

    def _read(self, watcher: TopicWatcher) -> None:
        """Reads the topic from its start and follows it until it is another one.

        Raises:
            SmokeError: when the broker does not answer, or the topic is missing or lost what was to be read next.
        """
        facts = watcher.facts(ASK_S)
        if facts is None:
            raise TopicMissing(f"there is no topic {self._topic}", "run `smoke topics create`, or start the detector")
        watermarks = watcher.watermarks(facts.partitions, ASK_S)
        reached = {number: low for number, (low, _) in watermarks.items()}
        # What was known of a topic that is gone, or was read up to a fault, holds until this one is whole.
        board = Board(self._board.sequence + 1)
        whole = False
        looked = time.monotonic()
        with BulkConsumer(self._brokers, self._topic, reached, MODEST_FETCH_SETTINGS) as consumer:
            while not self._stop.is_set():
                if not whole and all(reached[number] >= high for number, (_, high) in watermarks.items()):
                    whole = True
                    with self._moved:
                        self._board, self._facts, self._view = board, facts, None
                        self._reached = dict(reached)
                        self._ends = {number: high for number, (_, high) in watermarks.items()}
                        self._ready, self._fault = True, None
                        self._moved.notify_all()
                batch = consumer.take(POLL_S, MOST_LOCKED if whole else POLL_MESSAGES)
                reached = advanced(reached, after(batch.partitions, batch.offsets, batch.ends))
                if not whole:
                    self._take(batch, board)
                elif len(batch) or batch.ends:
                    with self._moved:
                        self._take(batch, board)
                        self._reached = dict(reached)
                        self._moved.notify_all()
                if whole and time.monotonic() - looked >= LOOK_EVERY_S:
                    if self._is_another(watcher, facts):
                        return
                    looked = time.monotonic()

    def _take(self, batch: MessageBatch, board: Board) -> None:
        for row, value in enumerate(batch.values):
            place = batch.partitions[row], batch.offsets[row]
            try:
                board.take(*place, batch.append_times_ms[row], batch.key_of(row), value)
            except SmokeError as error:
                self._unreadable += 1
                log.warning("%s, partition %s, offset %s: %s", self._topic, *place, error.message)

    def _is_another(self, watcher: TopicWatcher, facts: TopicFacts) -> bool:
        try:
            found = watcher.facts(ASK_S)
            ends = watcher.watermarks(facts.partitions, ASK_S) if found == facts else {}
        except KafkaUnreachable as fault:
            # It may be restarting; the consumer goes on by itself once it is back.
            self._note(fault)
            return False
        if found != facts:
            self._note(SmokeError(f"topic {self._topic} was made anew", "it is being read again"))
            return True
        with self._moved:
            self._ends = {number: high for number, (_, high) in ends.items()}
            self._fault = None
        return False


def require_listener(brokers: str) -> None:
    """Asks whether anything listens at one of the brokers' addresses: the client itself would wait out its time.

    Raises:
        BrokerUnreachable: where nothing does.
    """
    for address in brokers.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with socket.create_connection((host.rpartition("://")[2].strip("[]"), int(port)), timeout=1.0):
                return
        except (OSError, ValueError):
            continue
    raise unreachable(brokers)


# -- commands ------------------------------------------------------------------------------------------------


class AlarmCommands:
    """Sends commands to the detector. May be used from several threads.

    Args:
        settings: which broker.
        topic: another one than the platform's, for tests.
    """

    def __init__(self, settings: Settings, *, topic: str = ALARM_COMMANDS) -> None:
        self._brokers = settings.brokers
        self._topic = topic
        self._lock = threading.Lock()
        self._producer: Any = None
        self._partitions = 0
        self._asked = float("-inf")

    def send(self, command: AlarmCommand, partition: int | None = None) -> tuple[int, int]:
        """Returns the partition and offset of the command once the broker has it.

        Args:
            partition: of the readings that the alarm rests on. By default that of the device's readings; a pipeline
                alarm is of no device, and its record says where it belongs.

        Raises:
            SmokeError: where the broker does not answer or refuses.
        """
        return self.send_all([(command, partition)])[0]

    def send_all(self, commands: Sequence[tuple[AlarmCommand, int | None]]) -> list[tuple[int, int]]:
        """As ``send``, for many at once; where it raises, some may have been sent."""
        with self._lock:
            partitions = self._count()
            places: dict[int, tuple[int, int]] = {}
            failures: list[str] = []
            try:
                for row, (command, partition) in enumerate(commands):
                    self._produce(row, command, partition, partitions, places, failures)
                self._producer.flush(SEND_TIMEOUT_S + 1)
            except KafkaException as error:
                failures.append(str(error))
            if len(places) == len(commands):
                return [places[row] for row in range(len(commands))]
            # A client that has given up on a message may have given up for good.
            self._producer = None
        raise DeliveryFailed(
            f"{len(commands) - len(places)} of {len(commands)} commands were not acknowledged by topic {self._topic}: "
            f"{failures[0] if failures else 'no answer'}",
            "check the topic with `smoke topics list` and the broker with `smoke status`, then try again",
        )

    def _produce(
        self,
        row: int,
        command: AlarmCommand,
        partition: int | None,
        partitions: int,
        places: dict[int, tuple[int, int]],
        failures: list[str],
    ) -> None:
        place = partition_of(command.device_id, partitions) if partition is None else partition
        if not 0 <= place < partitions:
            raise SmokeError(
                f"partition {place} of topic {self._topic} does not exist, it has {partitions}",
                "compare the topics' partitions: smoke topics list",
            )

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                failures.append(error.str())
            else:
                places[row] = message.partition(), message.offset()

        while True:
            try:
                self._producer.produce(
                    self._topic, encode(command), command.device_id.encode(), place, on_delivery=delivered
                )
                break
            except BufferError:
                self._producer.poll(0.1)
        self._producer.poll(0)

    def _count(self) -> int:
        """How many partitions there are; makes the producer where there is none."""
        if self._producer is not None and time.monotonic() - self._asked < METADATA_S:
            return self._partitions
        require_listener(self._brokers)
        if self._producer is None:
            self._producer = Producer(
                {
                    "bootstrap.servers": self._brokers,
                    "client.id": "smoke-alarm-commands",
                    "acks": "all",
                    "enable.idempotence": True,
                    "message.timeout.ms": round(SEND_TIMEOUT_S * 1000),
                    # Somebody waits for it.
                    "linger.ms": 0,
                    "reconnect.backoff.max.ms": 500,
                    "allow.auto.create.topics": False,
                    "log_level": 2,
                }
            )
        try:
            found = self._producer.list_topics(self._topic, timeout=10).topics[self._topic]
        except KafkaException as error:
            raise unreachable(self._brokers, error.args[0].str()) from None
        if found.error is not None or not found.partitions:
            raise TopicMissing(f"there is no topic {self._topic}", "run `smoke topics create`, or start the detector")
        self._partitions, self._asked = len(found.partitions), time.monotonic()
        return self._partitions


def wait_for(alarm_log: AlarmLog, command_id: str, timeout_s: float) -> AlarmRecord | None:
    """The record with which the detector has answered a command; ``None`` where none came within ``timeout_s``."""
    return alarm_log.wait_answer(command_id, timeout_s)


# -- the audit trail ---------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A record of an audit trail.

    Attributes:
        place: (topic id of ``smoke_alarms``, partition, offset); the topic id is empty where it is not known.
        append_ms: when the broker took it; -1 where unknown.
    """

    place: tuple[str, int, int]
    append_ms: int
    record: AlarmRecord


def read_topic(settings: Settings, device_id: str, *, topic: str = ALARMS, partition: int | None = None) -> list[Entry]:
    """Every record about a device that stands in Kafka, oldest first: its partition is read from start to end.

    Raises:
        SmokeError: when the broker does not answer or the topic is missing.
    """
    require_listener(settings.brokers)
    watcher = TopicWatcher(settings.brokers, topic)
    facts = watcher.facts(ASK_S)
    if facts is None:
        raise TopicMissing(f"there is no topic {topic}", "run `smoke topics create`, or start the detector")
    place = partition_of(device_id, len(facts.partitions)) if partition is None else partition
    low, high = watcher.watermarks([place], ASK_S)[place]
    keys = {alarm_key(device_id, kind) for kind in Kind}
    found: list[Entry] = []
    position, deadline = low, time.monotonic() + 60.0
    with BulkConsumer(settings.brokers, topic, {place: low}) as consumer:
        while position < high:
            if time.monotonic() > deadline:
                raise BrokerUnreachable(f"partition {place} of topic {topic} was not read to its end within 60 s")
            batch = consumer.take(0.2)
            position = advanced({place: position}, after(batch.partitions, batch.offsets, batch.ends))[place]
            for row, value in enumerate(batch.values):
                if value is None or batch.key_of(row) not in keys:
                    continue
                try:
                    record = decode_record(value)
                except SmokeError as error:
                    log.warning("%s, partition %s, offset %s: %s", topic, place, batch.offsets[row], error.message)
                    continue
                identity = facts.topic_id, place, batch.offsets[row]
                found.append(Entry(identity, batch.append_times_ms[row], record))
    return found


def read_lake(lake: Lake, *, device_id: str = "", alarm_id: str = "", limit: int = MOST_TRAIL) -> list[Entry]:
    """The records about a device, or of one alarm, that have landed in ``lake/alarms``, oldest first.

    At most the latest ``limit``; none where nothing has landed yet.
    """
    if not lake.exists("alarms"):
        return []
    import polars as pl

    asked = pl.lit(True)
    if device_id:
        asked &= pl.col("device_id") == device_id
    if alarm_id:
        asked &= pl.col("alarm_id") == alarm_id
    rows = lake.scan("alarms").filter(asked).sort("append_time", "record_offset").tail(limit).collect()
    return [_entry(row) for row in rows.iter_rows(named=True)]


def _entry(row: Mapping[str, Any]) -> Entry:
    # What the table does not have, or had not when the row was written, is at its default.
    fields: dict[str, Any] = {name: row[name] for name in _PLAIN if row.get(name) is not None}
    for name in _TIMES:
        fields[name] = None if row[name] is None else row[name].timestamp()
    evidence = Evidence(
        rules=tuple(row["rules"] or ()),
        values=json.loads(row["sensor_values"] or "{}"),
        **{name: row[name] for name in _ABOUT},
    )
    record = AlarmRecord(
        kind=Kind(row["kind"]),
        event=Event(row["event"]),
        state=State(row["state"]),
        verdict=None if row["verdict"] is None else Verdict(row["verdict"]),
        evidence=evidence,
        **fields,
    )
    appended = row["append_time"]
    place = row["record_topic_id"], row["record_partition"], row["record_offset"]
    return Entry(place, -1 if appended is None else round(appended.timestamp() * 1000), record)


_TIMES = ("event_time", "at", "raised_event_time", "raised_at", "until")
_ABOUT = ("first_offset", "last_offset", "score", "threshold", "model_version", "feature_version")
_PLAIN = tuple(
    name
    for name in AlarmRecord.__struct_fields__
    if name not in (*_TIMES, "kind", "event", "state", "verdict", "evidence")
)


def joined(*sources: Sequence[Entry]) -> list[Entry]:
    """One trail out of several that may overlap: each record once, in the order of the log.

    A place without a topic id is that of any source which knows it.
    """
    ids = {place.place[0] for source in sources for place in source} - {""}
    unnamed = next(iter(ids)) if len(ids) == 1 else ""
    found: dict[tuple[str, int, int], Entry] = {}
    for source in sources:
        for entry in source:
            topic_id, partition, offset = entry.place
            found.setdefault((topic_id or unnamed, partition, offset), entry)
    return [entry for _, entry in sorted(found.items(), key=lambda each: (each[1].append_ms, each[0][1:]))]
