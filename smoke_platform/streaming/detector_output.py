"""What the detector writes: alarms' records, scores, snapshots of its state, first-seen devices.

Belongs here: the producers, what of it the broker has, and when a snapshot is whole. Does not: what is written
(``domain.detection``), the loop (``streaming.detector``).

Alarms have a producer of their own, which sends each record at once and has a thread that waits for acknowledgements.
All use confluent-kafka, whose work is done outside Python's lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from smoke_platform.adapters.detector_state import Checkpoint, chunk_key, encode_chunk
from smoke_platform.adapters.device_registry import DeviceRegistry
from smoke_platform.adapters.kafka import AcknowledgedCallback, BulkReadingProducer
from smoke_platform.domain import predictions
from smoke_platform.domain.alarms import AlarmRecord, Event, alarm_key, encode
from smoke_platform.domain.detection import Engine, Outcome
from smoke_platform.domain.devices import Device
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.features import FEATURE_SET_VERSION
from smoke_platform.domain.topics import ALARMS, DETECTOR_STATE, PREDICTIONS
from smoke_platform.settings import Settings
from smoke_platform.streaming.detector_metrics import DetectorMetrics

log = logging.getLogger(__name__)

#: Scores are published together for this long: a record a poll would cost more than the scoring.
PREDICTIONS_S = 0.1
#: How long a clean end may take to write what is left.
FAREWELL_S = 5.0


def alarm_producer(
    brokers: str, on_acknowledged: AcknowledgedCallback, stop: threading.Event | None = None
) -> BulkReadingProducer:
    """The producer of the alarms; benchmarks measure their bare echo with the same."""
    return BulkReadingProducer(
        brokers,
        ALARMS,
        on_acknowledged=on_acknowledged,
        # For ever: a record that is given up is an alarm that nobody sees.
        delivery_timeout_s=None,
        linger_ms=0,
        client_id="smoke-detector-alarms",
        stop=stop,
        at_once=True,
    )


class AlarmPublisher:
    """Writes alarms' records and knows which of them the broker has."""

    def __init__(self, brokers: str, metrics: DetectorMetrics, trace: Path | None, stop: threading.Event) -> None:
        self._metrics = metrics
        self._pending: dict[int, deque[AlarmRecord]] = {}
        self._end: dict[int, int] = {}
        self._trace = trace.open("a", encoding="ascii") if trace is not None else None
        self._producer = alarm_producer(brokers, self._acknowledged, stop)

    def start_at(self, partition: int, position: int) -> None:
        """Says that every record of a partition below ``position`` is part of the state."""
        self._end[partition] = position
        self._pending[partition] = deque()

    def publish(self, record: AlarmRecord) -> None:
        self._pending[record.partition].append(record)
        self._producer.send(alarm_key(record.device_id, record.kind), encode(record), partition=record.partition)

    def settled(self, partition: int) -> bool:
        """Whether the broker has every record of a partition."""
        return not self._pending[partition]

    def end(self, partition: int) -> int:
        """Below this offset of the alarms' topic every record stands that the state has led to."""
        return self._end[partition]

    def check(self) -> None:
        """Raises where a record was refused: going on would save a state whose alarm nobody sees."""
        if self._producer.counts.failed:
            self._producer.raise_failures()

    def flush(self, deadline_s: float) -> None:
        self._producer.flush(deadline_s)
        self.check()

    def close(self) -> None:
        self._producer.close(FAREWELL_S)
        if self._trace is not None:
            self._trace.close()

    def _acknowledged(self, partition: int, offset: int) -> None:
        # On the client's thread. A partition's records are acknowledged in the order in which they were sent.
        moment = time.time_ns()
        record = self._pending[partition].popleft()
        self._end[partition] = max(self._end[partition], offset + 1)
        self._metrics.acknowledged(record, moment / 1e9)
        if self._trace is not None and record.event is Event.RAISED:
            self._trace.write(f"{record.partition} {record.cause} {moment}\n")
            self._trace.flush()


class Outputs:
    """Everything that the detector writes: alarms, scores, snapshots, first-seen devices."""

    def __init__(self, settings: Settings, metrics: DetectorMetrics, trace: Path | None, stop: threading.Event) -> None:
        self._metrics = metrics
        self._seconds = settings.snapshot_seconds
        made: dict[str, Any] = {}

        def alarms() -> None:
            made["alarms"] = AlarmPublisher(settings.brokers, metrics, trace, stop)

        def state() -> None:
            made["state"] = BulkReadingProducer(
                settings.brokers,
                DETECTOR_STATE,
                on_acknowledged=self._saved,
                delivery_timeout_s=None,
                client_id="smoke-detector-state",
                stop=stop,
            )

        def scores() -> None:
            made["scores"] = BulkReadingProducer(
                settings.brokers,
                PREDICTIONS,
                delivery_timeout_s=None,
                client_id="smoke-detector-predictions",
                stop=stop,
            )

        _at_once([alarms, state, scores])
        self.alarms: AlarmPublisher = made["alarms"]
        self._state: BulkReadingProducer = made["state"]
        self._scores: BulkReadingProducer = made["scores"]
        self._gathered: dict[int, _Scores] = {}
        self._publish_at = 0.0
        self._registering: threading.Thread | None = None
        self._unregistered: list[Device] = []
        # The snapshot under way: chunks still to be written, and of each partition the place of its first chunk.
        self._left: Iterator[tuple[int, int]] = iter(())
        self._ahead: tuple[int, int] | None = None
        self._under_way: dict[int, int] = {}
        self._begins: dict[int, int] = {}
        #: Of each partition the positions of readings, alarms and commands at which the snapshot was begun.
        self._begun_at: dict[int, tuple[int, int, int]] = {}
        self._topic_id = ""
        self._written_out = False
        self._next_chunk = 0.0
        self._pause = 0.0
        #: partition -> chunks that stand in the topic though the state has fewer by now.
        self._stale: dict[int, set[int]] = {}
        self._partitions: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.alarms.close()
        for producer in (self._scores, self._state):
            producer.close(2.0)
        if self._registering is not None:
            self._registering.join(5.0)

    # -- scores ------------------------------------------------------------------------------------------

    def add_predictions(self, outcome: Outcome, topic_id: str, scorer: Any) -> None:
        """Keeps what was thought of some readings until the next publishing."""
        version = None if scorer is None else scorer.version
        threshold = None if scorer is None else scorer.threshold
        for partition in sorted(set(outcome.partitions.tolist())):
            chosen = outcome.partitions == partition
            gathered = self._gathered.get(partition)
            if gathered is not None and gathered.model_version != version:
                self._publish_scores(partition, topic_id)
                gathered = None
            if gathered is None:
                gathered = self._gathered[partition] = _Scores(version, threshold)
            gathered.offsets += outcome.offsets[chosen].tolist()
            gathered.levels += outcome.levels[chosen].tolist()
            gathered.hits += outcome.hits[chosen].tolist()
            if len(outcome.scores):
                gathered.scores += outcome.scores[chosen].tolist()

    def _publish_scores(self, partition: int, topic_id: str) -> None:
        gathered = self._gathered.pop(partition)
        record = predictions.PredictionRecord(
            topic_id=topic_id,
            partition=partition,
            offsets=gathered.offsets,
            scores=gathered.scores,
            levels=gathered.levels,
            hits=gathered.hits,
            feature_version=FEATURE_SET_VERSION,
            at=time.time(),
            model_version=gathered.model_version,
            threshold=gathered.threshold,
        )
        self._scores.send(None, predictions.encode(record), partition=partition)

    # -- snapshots ---------------------------------------------------------------------------------------

    def begin_snapshots(self, partitions: list[int]) -> None:
        """Begins a snapshot of these partitions from its first chunk; one under way is given up."""
        self._partitions = partitions
        self._left, self._ahead, self._written_out = iter(()), None, False

    def found_chunks(self, partition: int, chunks: frozenset[int]) -> None:
        """Says which chunks of a partition stand in the topic; those that are not written again are deleted."""
        self._stale[partition] = set(chunks)

    def tick(self, now: float, engine: Engine, commands: Mapping[int, int], *, everything: bool = False) -> None:
        """Publishes scores that are due and writes as many chunks as the time since the last tick asks for."""
        self.alarms.check()
        if now >= self._publish_at:
            self._publish_at = now + PREDICTIONS_S
            for partition in list(self._gathered):
                self._publish_scores(partition, engine.topic_id)
        self._scores.poll()
        self._state.poll()
        for producer in (self._scores, self._state):
            if producer.counts.failed:
                producer.raise_failures()
        if not self._partitions or self._written_out:
            return
        if self._ahead is None:
            # What was given up may still be under way; its acknowledgements must not count for the next one.
            if any(self._under_way.values()) or not all(map(self.alarms.settled, self._partitions)):
                return
            self._begins = {}
            self._topic_id = engine.topic_id
            chunks = [(number, chunk) for number in self._partitions for chunk in range(engine.chunk_count(number))]
            self._pause = self._seconds / len(chunks)
            self._left = iter(chunks)
            self._ahead = next(self._left, None)
            self._next_chunk = max(self._next_chunk, now - self._pause)
            for number in self._partitions:
                self._begun_at[number] = (engine.newest(number) + 1, self.alarms.end(number), commands[number])
                self._delete_stale(number, engine.chunk_count(number))
        while self._ahead is not None and (everything or now >= self._next_chunk):
            partition, chunk = self._ahead
            if not self.alarms.settled(partition):
                return
            saved = engine.export(partition, chunk)
            self._under_way[partition] = self._under_way.get(partition, 0) + 1
            self._state.send(chunk_key(partition, chunk), encode_chunk(saved), partition=partition)
            self._next_chunk += self._pause
            self._ahead = next(self._left, None)
        self._written_out = self._ahead is None

    def _delete_stale(self, partition: int, count: int) -> None:
        for chunk in [chunk for chunk in self._stale.get(partition, ()) if chunk >= count]:
            self._stale[partition].discard(chunk)
            self._under_way[partition] = self._under_way.get(partition, 0) + 1
            self._state.send(chunk_key(partition, chunk), None, partition=partition)

    def whole_snapshot(self) -> dict[int, Checkpoint]:
        """Partition -> its checkpoint, once all of a snapshot stands in the topic; the next one begins then."""
        if not self._written_out:
            return {}
        self._state.poll()
        if any(self._under_way.values()):
            return {}
        checkpoints = {
            number: Checkpoint(
                topic_id=self._topic_id, position=position, state=begin, alarms=alarms, commands=commands
            )
            for number, begin in self._begins.items()
            for position, alarms, commands in (self._begun_at[number],)
        }
        self.begin_snapshots(self._partitions)
        self._metrics.saved()
        return checkpoints

    def _saved(self, partition: int, offset: int) -> None:
        self._begins.setdefault(partition, offset)
        self._under_way[partition] = self._under_way.get(partition, 0) - 1

    # -- devices -----------------------------------------------------------------------------------------

    def register(self, registry: DeviceRegistry, devices: Sequence[Device]) -> None:
        """Enters first-seen devices, away from the loop; what could not be entered is tried again the next time."""
        self._unregistered += devices
        if not self._unregistered or (self._registering is not None and self._registering.is_alive()):
            return
        entries, self._unregistered = self._unregistered, []

        def put() -> None:
            try:
                registry.put(entries)
            except SmokeError as error:
                log.warning("%d new devices could not be entered yet: %s", len(entries), error)
                self._unregistered += entries

        self._registering = threading.Thread(target=put, name="register", daemon=True)
        self._registering.start()


class _Scores:
    """Scores of one partition and one model that wait to be published."""

    __slots__ = ("hits", "levels", "model_version", "offsets", "scores", "threshold")

    def __init__(self, model_version: str | None, threshold: float | None) -> None:
        self.model_version = model_version
        self.threshold = threshold
        self.offsets: list[int] = []
        self.scores: list[float] = []
        self.levels: list[int] = []
        self.hits: list[int] = []


def _at_once(tasks: Sequence[Callable[[], None]]) -> None:
    """Runs tasks side by side and raises what the first failing one raised."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(tasks)) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()
