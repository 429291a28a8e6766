"""The detector: reads every reading as it arrives and writes the alarms that follow from it.

Belongs here: the loop around ``domain.detection``: what is given up and put back at a rebalance, when state is saved,
when a device may be called silent. Does not: what an alarm is (``domain``), who holds which partition
(``streaming.detector_group``), the messages of the state topic (``adapters.detector_state``), what is counted
(``streaming.detector_metrics``).

One thread does it all but the sending, since an alarm that waits for others is late. An alarm is durable when the
broker has acknowledged its record; a device's state is saved only when every record that it has led to is.

Two clients share the work. kafka-python is the group's member: it says which partitions are this replica's, and keeps
the checkpoints. ``adapters.kafka_live`` fetches, in a fraction of the processor time.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Message

from smoke_platform.adapters.detector_state import Checkpoint, StateReader, decode_checkpoint, encode_checkpoint
from smoke_platform.adapters.device_registry import DeviceRegistry
from smoke_platform.adapters.kafka import BrokerUnreachable, ensure_topics
from smoke_platform.adapters.kafka_bulk import KafkaUnreachable, OffsetLost
from smoke_platform.adapters.kafka_live import LiveConsumer, Place
from smoke_platform.adapters.scorer import ChampionWatcher
from smoke_platform.domain.alarms import decode_command
from smoke_platform.domain.detection import Batch, Engine
from smoke_platform.domain.devices import Device
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.topics import ALARM_COMMANDS
from smoke_platform.settings import Settings
from smoke_platform.streaming.detector_group import Membership
from smoke_platform.streaming.detector_metrics import DetectorMetrics
from smoke_platform.streaming.detector_output import FAREWELL_S, Outputs

log = logging.getLogger(__name__)

#: Messages of one poll. More would let the first of them wait for the last while a backlog is worked off.
POLL_MESSAGES = 2_000
#: How long a thread may keep the interpreter while another one waits: the one that waits may bring an acknowledgement.
SWITCH_S = 0.0005
#: The loop looks after everything but readings this often.
TICK_S = 0.05
SWEEP_S = 0.2
REGISTRY_S = 1.0
#: The broker is asked for the log's ends this often; an answer also shows that silence is not its own.
PROBE_S = 0.5
#: An answer that takes longer counts as none.
SLOW_ANSWER_S = 1.0
#: A detector that reads nothing for so long while readings wait is started anew.
STALLED_S = 5.0
#: Without any saved state readings are taken from this long ago: a fire that has just begun is not missed.
LOOK_BACK_S = 900.0


class Detector:
    """One replica.

    Args:
        settings: which broker, model and registry.
        member: name in the group; two replicas must not share one.
        trace: a file that gets a line for each alarm whose raising was acknowledged: partition and offset of the
            causing reading, and the moment in nanoseconds since the epoch. For benchmarks.
    """

    def __init__(self, settings: Settings, member: str, *, trace: Path | None = None) -> None:
        self._settings = settings
        self._member = member
        self._stop = threading.Event()
        self.metrics = DetectorMetrics()
        self._trace = trace
        self._listening: dict[int, float] = {}
        self._held: dict[int, _Held] = {}
        self._reached, self._moved_at = -1, 0.0

    def stop(self) -> None:
        """Asks ``run`` to end; safe from a signal's handler."""
        self._stop.set()

    def run(self) -> None:
        """Detects until ``stop``.

        Raises:
            SmokeError: where waiting does not help, such as another replica of the same name.
        """
        sys.setswitchinterval(SWITCH_S)
        with ChampionWatcherSoon(self._settings.models_dir) as champion:
            self._champion = champion
            while not self._stop.is_set() and not self._connected_once():
                self.metrics.state = "waiting"
                self._stop.wait(0.2)

    def _connected_once(self) -> bool:
        """Connects and detects until ``stop``; ``False`` where the broker fell silent before it began."""
        settings = self._settings
        self._reader = self._connect()
        begun = False
        try:
            topic_id = self._reader.topic_id()
            self._engine = Engine(topic_id)
            with (
                Outputs(settings, self.metrics, self._trace, self._stop) as self._out,
                DeviceRegistry(settings) as self._registry,
                _Probe(self._reader) as self._probe,
                LiveConsumer(settings.brokers, f"smoke-detector-{self._member}-readings") as self._live,
            ):
                self._known_registry = -1
                with Membership(
                    settings.brokers,
                    f"smoke-detector-{settings.topic_readings}",
                    self._member,
                    (settings.topic_readings, ALARM_COMMANDS),
                    self._out.alarms.flush,
                    self._stop,
                ) as self._group:
                    begun = True
                    self._loop()
                    self._farewell()
        except (BrokerUnreachable, KafkaUnreachable) as error:
            if begun:
                raise
            log.warning("the broker fell silent while this detector started: %s", error)
            return False
        return True

    # -- connecting --------------------------------------------------------------------------------------

    def _connect(self) -> StateReader:
        """Waits for the broker and for the topics."""
        reader = StateReader(self._settings.brokers, self._settings.topic_readings)
        told = False
        while not self._stop.is_set():
            try:
                if missing := reader.missing():
                    log.info("making the topics %s", ", ".join(missing))
                    ensure_topics(self._settings)
                return reader
            except SmokeError as error:
                if not told:
                    log.warning("waiting for Kafka: %s", error)
                    told = True
                self.metrics.state = "waiting"
                self._stop.wait(0.2)
        raise SmokeError("stopped before any broker answered")

    # -- partitions --------------------------------------------------------------------------------------

    def lost(self) -> None:
        """Others may hold the partitions by now, so nothing known of them counts."""
        self._live.assign({})
        for partition in self._engine.partitions:
            self._let_go(partition)
        # Nor is there anything left of which to take a picture.
        self._out.begin_snapshots([])
        self._probe.partitions = []

    def assigned(self, readings: set[int], commands: set[int]) -> None:
        """After a rebalance: lets go what others have, keeps what stayed, puts back what is new."""
        if readings != commands:
            raise SmokeError(
                f"the partitions of {self._settings.topic_readings} and {ALARM_COMMANDS} are not the same ones",
                "run `smoke topics list`: both must have the same number of partitions",
            )
        for partition in set(self._engine.partitions) - readings:
            self._let_go(partition)
        fresh = sorted(readings - set(self._engine.partitions))
        if fresh:
            self._put_back(fresh)
        positions: dict[Place, int] = {}
        for partition in readings:
            held = self._held[partition]
            held.commands.clear()
            positions[self._settings.topic_readings, partition] = self._engine.newest(partition) + 1
            positions[ALARM_COMMANDS, partition] = held.commands_position
        self._live.assign(positions)
        self._out.begin_snapshots(sorted(readings))
        self._probe.partitions = sorted(readings)
        # Nothing is read while the group decides, which takes longer than ``STALLED_S`` where a replica is lost.
        self._moved_at = time.monotonic()

    def _let_go(self, partition: int) -> None:
        self._engine.drop_partition(partition)
        self._held.pop(partition, None)
        self._listening.pop(partition, None)

    def _put_back(self, partitions: list[int]) -> None:
        self.metrics.state = "restoring"
        began = time.monotonic()
        for partition in partitions:
            self._engine.add_partition(partition)
        restored = self._reader.restore(self._engine, {number: self._checkpoint(number) for number in partitions})
        for partition, found in restored.items():
            position = found.position
            if position is None:
                position = self._group.first_since(partition, time.time() - LOOK_BACK_S)
            if found.lost:
                log.warning(
                    "partition %d: %d readings were deleted from the log before they were judged", partition, found.lost
                )
            self._engine.start_at(partition, position)
            self._held[partition] = _Held(found.commands)
            self._out.found_chunks(partition, found.chunks)
            self._out.alarms.start_at(partition, found.alarms)
        seconds = time.monotonic() - began
        self.metrics.restored(seconds, sum(found.devices for found in restored.values()))
        log.info(
            "partitions %s: %d devices and %d alarm records put back in %.2f s",
            ", ".join(map(str, partitions)),
            sum(found.devices for found in restored.values()),
            sum(found.records for found in restored.values()),
            seconds,
        )

    def _checkpoint(self, partition: int) -> Checkpoint | None:
        text = self._group.committed(partition)
        return None if text is None else decode_checkpoint(text, self._engine.topic_id)

    # -- the loop ----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        next_tick = 0.0
        # What was made until here stays: the collector need not look through it while readings wait.
        gc.collect()
        gc.freeze()
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK_S
                self._follow_group()
                with self._group.judging:
                    if not self._group.undecided:
                        self._tick(now)
            if not self._held or self._group.undecided:
                self._stop.wait(max(0.0, next_tick - time.monotonic()))
                continue
            try:
                messages = self._live.take(max(0.0, next_tick - now), POLL_MESSAGES)
            except OffsetLost as loss:
                log.warning("%s: the state of the partitions is put back anew from what is there", loss)
                held = set(self._held)
                self.lost()
                self.assigned(held, held)
                continue
            if messages:
                with self._group.judging:
                    # What is not judged now is fetched again by whoever holds its partition then.
                    if not self._group.undecided:
                        self._take(messages)

    def _follow_group(self) -> None:
        """Does what the group has decided."""
        changes = self._group.changes()
        for change in changes:
            if change is None:
                self.lost()
            else:
                self.assigned(change[self._settings.topic_readings], change[ALARM_COMMANDS])
        if changes:
            self._group.decided()

    def _take(self, messages: Sequence[Message]) -> None:
        """Judges readings, keeps commands for the next tick."""
        topics = list(map(Message.topic, messages))
        if topics.count(self._settings.topic_readings) != len(topics):
            for message in messages:
                if message.topic() == ALARM_COMMANDS:
                    self._held[message.partition()].commands.append(message)
            messages = [message for message in messages if message.topic() != ALARM_COMMANDS]
        if messages:
            self._judge(
                Batch(
                    # Unbound methods through map take a third of the time of loops, and this runs for each reading.
                    values=list(map(Message.value, messages)),
                    keys=list(map(Message.key, messages)),
                    partitions=list(map(Message.partition, messages)),
                    offsets=list(map(Message.offset, messages)),
                    append_times_ms=[stamp[1] for stamp in map(Message.timestamp, messages)],
                )
            )

    def _judge(self, batch: Batch) -> None:
        began = time.perf_counter()
        scorer = self._champion.current
        outcome = self._engine.take(batch, scorer)
        for record in outcome.records:
            self._out.alarms.publish(record)
        if len(outcome.offsets):
            self._out.add_predictions(outcome, self._engine.topic_id, scorer)
        self.metrics.judged(outcome, time.perf_counter() - began, batch.append_times_ms)

    def _tick(self, now: float) -> None:
        self._obey()
        self._out.tick(now, self._engine, {number: held.commands_position for number, held in self._held.items()})
        if self._due("sweep", now, SWEEP_S):
            self._listen()
            self._sweep()
        if self._due("registry", now, REGISTRY_S):
            self._follow_registry()
            self.metrics.observe(self._engine, self._champion, self._probe.lag(self._engine))
            self._require_progress(now)
        if checkpoints := self._out.whole_snapshot():
            self._commit(checkpoints)

    def _require_progress(self, now: float) -> None:
        """Ends a detector that reads nothing though readings wait; its supervisor starts it anew within seconds.

        The client was seen to spin without fetching, once in dozens of starts right after topics had been made anew.

        Raises:
            SmokeError: where nothing was read for ``STALLED_S`` while the broker answers and the log is longer.
        """
        reached = sum(map(self._engine.newest, self._engine.partitions))
        waiting = self._probe.lag(self._engine) if self._probe.answers else 0
        if not waiting or reached != self._reached:
            self._reached, self._moved_at = reached, now
        elif now - self._moved_at > STALLED_S:
            raise SmokeError(
                f"nothing was read for {STALLED_S:g} s though {waiting} readings wait",
                "the detector ends so that it is started anew; nothing is lost, it goes on where it was",
            )

    def _due(self, what: str, now: float, every_s: float) -> bool:
        times: dict[str, float] = self.__dict__.setdefault("_times", {})
        if now < times.get(what, 0.0):
            return False
        times[what] = now + every_s
        return True

    def _obey(self) -> None:
        for partition, held in self._held.items():
            while held.commands and not self._engine.replaying(partition):
                message = held.commands.popleft()
                try:
                    command = decode_command(message.value() or b"")
                except SmokeError as error:
                    log.warning(
                        "command at offset %d of partition %d is left out: %s", message.offset(), partition, error
                    )
                else:
                    at = message.timestamp()[1] / 1000.0
                    for record in self._engine.obey(partition, message.offset(), command, at):
                        self._out.alarms.publish(record)
                held.commands_position = message.offset() + 1

    def _listen(self) -> None:
        """Notes since when each partition has been read to its end while the broker answered."""
        if not self._probe.answers:
            self._listening.clear()
            self.metrics.state = "waiting"
            return
        now = time.time()
        for partition, end in self._probe.ends.items():
            if partition not in self._held:
                continue
            if self._engine.newest(partition) + 1 < end or self._engine.replaying(partition):
                # Behind: what was appended meanwhile may be from any device. The probe's view may be old by half a
                # second, in which a live stream moves on, so that only a real backlog ends listening.
                if end - self._engine.newest(partition) - 1 > self.metrics.recent_per_second:
                    self._listening.pop(partition, None)
            else:
                self._listening.setdefault(partition, now)
        self.metrics.state = "running" if self._held else "waiting"

    def _sweep(self) -> None:
        now = time.time()
        if self._engine.overdue(now, self._listening) and not self._confirmed():
            return
        for record in self._engine.sweep(now, self._listening):
            self._out.alarms.publish(record)

    def _confirmed(self) -> bool:
        """Asks the broker, before anyone is called silent, whether there is nothing left to be read of them."""
        try:
            ends = self._reader.ends(sorted(self._listening))
        except KafkaUnreachable:
            self._listening.clear()
            return False
        behind = [number for number, end in ends.items() if self._engine.newest(number) + 1 < end]
        return not behind

    def _follow_registry(self) -> None:
        if self._registry.version != self._known_registry:
            self._known_registry = self._registry.version
            self._engine.use_registry(self._registry.devices())
        if self._registry.ready:
            moment = time.time()
            fresh = self._engine.new_devices().items()
            entries = [Device(device_id=name, sensors=sensors, updated_at=moment) for name, sensors in fresh]
            self._out.register(self._registry, entries)

    def _commit(self, checkpoints: Mapping[int, Checkpoint], *, wait: bool = False) -> None:
        """Tells the group where a restart begins."""
        self._group.commit(
            {
                number: (found.position, encode_checkpoint(found))
                for number, found in checkpoints.items()
                if number in self._held
            },
            wait=wait,
        )

    def _farewell(self) -> None:
        """A clean end saves everything, so that the next start has nothing to replay."""
        deadline = time.monotonic() + FAREWELL_S
        try:
            self._out.alarms.flush(FAREWELL_S)
            self._out.begin_snapshots(self._engine.partitions)
            checkpoints: dict[int, Checkpoint] = {}
            while not checkpoints and self._engine.partitions and time.monotonic() < deadline:
                commands = {number: held.commands_position for number, held in self._held.items()}
                self._out.tick(time.monotonic(), self._engine, commands, everything=True)
                checkpoints = self._out.whole_snapshot()
            if checkpoints:
                self._commit(checkpoints, wait=True)
        except SmokeError as error:
            log.warning("ended without a last snapshot: %s", error)


class _Held:
    """What is kept of a partition beside the engine's state."""

    __slots__ = ("commands", "commands_position")

    def __init__(self, commands_position: int) -> None:
        self.commands_position = commands_position
        self.commands: deque[Any] = deque()


class ChampionWatcherSoon:
    """A champion watcher that is made in a thread of its own, since the model's runtime takes a while to load.

    Until it is there, the rules alone decide; a restart in the middle of a fire does not wait for the model.
    """

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._watcher: ChampionWatcher | None = None
        self._thread = threading.Thread(target=self._make, name="champion", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join(10.0)
        if self._watcher is not None:
            self._watcher.stop()

    def _make(self) -> None:
        self._watcher = ChampionWatcher(self._models_dir).start()

    @property
    def watcher(self) -> ChampionWatcher | None:
        return self._watcher

    @property
    def current(self) -> Any:
        """The model to score with, ``None`` while there is none."""
        return None if self._watcher is None else self._watcher.current


class _Probe:
    """Asks the broker for the readings' ends again and again, in a thread of its own.

    Attributes:
        partitions: which ones to ask for.
        ends: the last answer.
        answers: whether the last question was answered.
    """

    def __init__(self, reader: StateReader) -> None:
        self._reader = reader
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="probe", daemon=True)
        self.partitions: list[int] = []
        self.ends: dict[int, int] = {}
        self.answers = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def lag(self, engine: Engine) -> int:
        """Readings that stand in the log and are not judged, as of the last answer."""
        return sum(max(0, end - engine.newest(number) - 1) for number, end in self.ends.items())

    def _ask(self) -> None:
        while not self._stop.wait(PROBE_S):
            partitions = self.partitions
            if not partitions:
                continue
            began = time.monotonic()
            try:
                self.ends = self._reader.ends(partitions)
            except KafkaUnreachable as error:
                if self.answers:
                    log.warning("%s", error)
                self.answers = False
            else:
                # An answer that came late is one for which the broker was away, and the devices' way to it as well.
                self.answers = time.monotonic() - began < SLOW_ANSWER_S
