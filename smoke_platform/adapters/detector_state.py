"""The detector's state in Kafka: saved chunks written and read back, and the alarms' records since then.

Belongs here: the messages of ``smoke_detector_state`` as they travel, reading a compacted partition to its present
end, finding where a partition's readings go on. Does not: what the state means (``domain.detection``), when it is saved
(``streaming.detector``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import monotonic

import msgspec

from smoke_platform.adapters.kafka_bulk import BulkConsumer, TopicWatcher
from smoke_platform.domain.alarms import decode_record
from smoke_platform.domain.detection import DeviceChunk, Engine
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.topics import ALARM_COMMANDS, ALARMS, DETECTOR_STATE, PREDICTIONS

log = logging.getLogger(__name__)

#: How long one topic may take to be read back, broker's restart included.
READ_TIMEOUT_S = 60.0

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(DeviceChunk)


class StateUnreadable(SmokeError):
    """The saved state could not be read back in time."""


def chunk_key(partition: int, chunk: int) -> bytes:
    """The key of a chunk in the compacted topic."""
    return f"{partition}/{chunk}".encode()


def encode_chunk(chunk: DeviceChunk) -> bytes:
    """The chunk as it travels: MessagePack, since it is mostly bytes."""
    return _ENCODER.encode(chunk)


def decode_chunk(value: bytes) -> DeviceChunk | None:
    """The chunk that ``encode_chunk`` wrote; ``None`` for what another version of this program wrote."""
    try:
        return _DECODER.decode(value)
    except msgspec.MsgspecError:
        return None


class Checkpoint(msgspec.Struct, kw_only=True, frozen=True):
    """Where a restart of a partition begins: the places at which its last whole snapshot was begun.

    It travels as the metadata of the group's committed offset. A device's state may be newer than this: each chunk says
    up to which reading it reaches. A device that is in no chunk was first seen after this.

    Attributes:
        topic_id: of the readings' topic; the offsets of another one mean nothing.
        position: offset of the first reading that is to be taken again.
        state: offset in the state's topic from which on every chunk stands.
        alarms: offset in the alarms' topic; what stands below it is part of every chunk.
        commands: offset of the first command that may not have been carried out.
    """

    topic_id: str
    position: int
    state: int
    alarms: int
    commands: int


def encode_checkpoint(checkpoint: Checkpoint) -> str:
    """The checkpoint as the group keeps it."""
    return msgspec.json.encode(checkpoint).decode()


def decode_checkpoint(text: str, topic_id: str) -> Checkpoint | None:
    """What ``encode_checkpoint`` wrote; ``None`` for anything else, and for that of another topic."""
    try:
        found = msgspec.json.decode(text, type=Checkpoint)
    except msgspec.MsgspecError:
        return None
    return found if found.topic_id == topic_id else None


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back of a partition, and where it goes on.

    Attributes:
        position: of the readings; ``None`` where nothing says so.
        commands: of the commands.
        alarms: end of the alarms' partition as it was read.
        devices, records: how many devices, and alarms' records, came back.
        chunks: numbers of the chunks that stand in the topic.
        lost: readings that the log no longer holds.
    """

    position: int | None
    commands: int
    alarms: int
    devices: int
    records: int
    chunks: frozenset[int]
    lost: int


class StateReader:
    """Reads partitions' state back. Its connections stay open, so that a rebalance costs no new ones."""

    def __init__(self, brokers: str, readings: str) -> None:
        self._brokers = brokers
        self._topics = {
            name: TopicWatcher(brokers, name)
            for name in (readings, ALARMS, ALARM_COMMANDS, DETECTOR_STATE, PREDICTIONS)
        }
        self._readings = readings

    def topic_id(self) -> str:
        """The id of the readings' topic.

        Raises:
            SmokeError: where there is no such topic.
        """
        facts = self._topics[self._readings].facts()
        if facts is None:
            raise SmokeError(f"there is no topic {self._readings}", "run `smoke topics create`")
        return facts.topic_id

    def missing(self) -> list[str]:
        """Names of the topics that are not there.

        Raises:
            KafkaUnreachable: where no broker answers.
        """
        return [name for name, watcher in self._topics.items() if watcher.facts() is None]

    def ends(self, partitions: list[int]) -> dict[int, int]:
        """Partition -> offset after the last reading, as the broker says now."""
        return {number: high for number, (_, high) in self._topics[self._readings].watermarks(partitions, 2.0).items()}

    def restore(self, engine: Engine, checkpoints: Mapping[int, Checkpoint | None]) -> dict[int, Restored]:
        """Puts partitions' devices and alarms into ``engine``, which holds these partitions, blank.

        Args:
            checkpoints: partition -> where to begin; ``None``: with everything that is there.

        Raises:
            StateUnreadable: where the broker does not give it all in time.
        """
        partitions = sorted(checkpoints)
        standing, devices = self._restore_devices(engine, _begin(checkpoints, "state"))
        records = self._restore_alarms(engine, _begin(checkpoints, "alarms"))
        marks = {name: self._topics[name].watermarks(partitions) for name in (self._readings, ALARMS, ALARM_COMMANDS)}
        restored: dict[int, Restored] = {}
        for partition, checkpoint in checkpoints.items():
            low, high = marks[self._readings][partition]
            wanted = None if checkpoint is None else checkpoint.position
            restored[partition] = Restored(
                position=None if wanted is None else min(max(wanted, low), high),
                commands=_within(0 if checkpoint is None else checkpoint.commands, marks[ALARM_COMMANDS][partition]),
                alarms=marks[ALARMS][partition][1],
                devices=devices[partition],
                records=records[partition],
                chunks=frozenset(standing[partition]),
                lost=0 if wanted is None else max(0, low - wanted),
            )
        return restored

    def _restore_devices(self, engine: Engine, begin: Mapping[int, int]) -> tuple[dict[int, set[int]], dict[int, int]]:
        """Of each partition the chunks that stand in the topic, and how many devices came back."""
        chunks: dict[int, dict[int, DeviceChunk]] = {number: {} for number in begin}
        standing: dict[int, set[int]] = {number: set() for number in begin}
        for partition, key, value in self._read(DETECTOR_STATE, begin):
            number = _chunk_number(key)
            chunk = None if value is None else decode_chunk(value)
            if value is None:
                standing[partition].discard(number)
            else:
                standing[partition].add(number)
            if chunk is None or chunk.topic_id != engine.topic_id:
                chunks[partition].pop(number, None)
            else:
                chunks[partition][number] = chunk
        devices = dict.fromkeys(begin, 0)
        for partition, found in chunks.items():
            # In rising order: places are given anew, so that a device only ever moves to a lower chunk, which the next
            # snapshot writes first.
            for number, chunk in sorted(found.items()):
                try:
                    devices[partition] += engine.restore(chunk)
                except (ValueError, msgspec.MsgspecError) as error:
                    log.warning("chunk %d of partition %d is left out: %s", number, partition, error)
        return standing, devices

    def _restore_alarms(self, engine: Engine, begin: Mapping[int, int]) -> dict[int, int]:
        """How many records of each partition were taken in."""
        records = dict.fromkeys(begin, 0)
        for partition, _, value in self._read(ALARMS, begin):
            if value is None:
                continue
            try:
                engine.restore_record(decode_record(value))
            except (SmokeError, ValueError) as error:
                # A restart must not fail for what somebody else wrote there; the landing keeps its bytes.
                log.warning("a message of %s, partition %d, is left out: %s", ALARMS, partition, error)
            else:
                records[partition] += 1
        return records

    def _read(self, topic: str, begin: Mapping[int, int]) -> Iterator[tuple[int, bytes, bytes | None]]:
        """(partition, key, value) of everything from ``begin`` to the present end of each partition."""
        marks = self._topics[topic].watermarks(sorted(begin))
        positions = {number: min(max(begin[number], low), high) for number, (low, high) in marks.items()}
        left = {number for number, (_, high) in marks.items() if positions[number] < high}
        if not left:
            return
        deadline = monotonic() + READ_TIMEOUT_S
        with BulkConsumer(self._brokers, topic, {number: positions[number] for number in left}) as consumer:
            while left:
                if monotonic() > deadline:
                    raise StateUnreadable(
                        f"topic {topic} could not be read to its end within {READ_TIMEOUT_S:g} s",
                        "check the broker (`smoke status`); the detector tries again when it is restarted",
                    )
                batch = consumer.take(0.05)
                for row, value in enumerate(batch.values):
                    partition = batch.partitions[row]
                    if batch.offsets[row] < marks[partition][1]:
                        yield partition, batch.key_of(row) or b"", value
                    if batch.offsets[row] >= marks[partition][1] - 1:
                        left.discard(partition)
                # A compacted partition may end before its last offset; then the client says that it is at the end.
                left -= {number for number, end in batch.ends.items() if end >= marks[number][1]}


def _begin(checkpoints: Mapping[int, Checkpoint | None], name: str) -> dict[int, int]:
    return {number: 0 if found is None else int(getattr(found, name)) for number, found in checkpoints.items()}


def _within(position: int, marks: tuple[int, int]) -> int:
    return min(max(position, marks[0]), marks[1])


def _chunk_number(key: bytes) -> int:
    text = key.rpartition(b"/")[2]
    return int(text) if text.isdigit() else -1
