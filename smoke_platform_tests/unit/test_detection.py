"""The engine: the same alarms however messages are cut into batches, and through any restart."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smoke_platform.adapters.detector_state import decode_chunk, encode_chunk
from smoke_platform.domain import detection, features
from smoke_platform.domain.alarms import AlarmCommand, AlarmRecord, Event, Kind, State, Verb
from smoke_platform.domain.detection import Batch, Engine, Outcome
from smoke_platform.domain.devices import Device
from smoke_platform.domain.readings import Reading, RejectReason

TOPIC = "Zt3-topic"
PARTITIONS = 3
START = datetime(2026, 3, 1, tzinfo=UTC)
START_S = START.timestamp()
CALM = {
    "temperature_c": 21.0,
    "humidity_pct": 45.0,
    "tvoc_ppb": 80.0,
    "eco2_ppm": 420.0,
    "raw_h2": 13_000.0,
    "raw_ethanol": 19_800.0,
    "pressure_hpa": 1_003.0,
    "pm1_0": 2.0,
    "pm2_5": 3.0,
    "nc0_5": 15.0,
    "nc1_0": 2.0,
    "nc2_5": 0.5,
}

Message = tuple[int, int, bytes, bytes, int]


class SmokeModel:
    """Scores by the particles alone, so that its answer is plain to see."""

    version = "7"
    threshold = 0.5

    def score(self, rows: features.Features) -> np.ndarray:
        level = rows[:, features.FEATURE_NAMES.index("pm2_5")].astype(np.float64)
        return np.where(np.isnan(level), 0.1, np.clip(level / 4_000.0, 0.0, 1.0))


@functools.cache
def recording(seed: int = 3, seconds: int = 150, devices: int = 7) -> tuple[Message, ...]:
    """Messages (partition, offset, key, value, append time in ms): calm air, fires, an odd message now and then."""
    chance = random.Random(seed)  # noqa: S311 - a recording, repeatable
    next_offset: dict[int, int] = defaultdict(int)
    burning = {device: chance.randrange(60, 110) for device in range(0, devices, 2)}
    found: list[Message] = []
    for second in range(seconds):
        for device in range(devices):
            name = f"d{device}"
            partition = device % PARTITIONS
            sensors = {sensor: value * (1 + chance.gauss(0, 0.0005)) for sensor, value in CALM.items()}
            age = second - burning.get(device, 10_000)
            if 0 < age < 60:
                sensors["pm2_5"] += 200.0 * age
                sensors["pm1_0"] += 180.0 * age
                sensors["temperature_c"] += 0.6 * age
            value = Reading(name, datetime.fromtimestamp(START_S + second, UTC), sensors, None, second).to_json()
            if chance.random() < 0.02:
                value = value[: chance.randrange(len(value))]
            at = round((START_S + second) * 1000) + device
            found.append((partition, next_offset[partition], name.encode(), value, at))
            next_offset[partition] += 1
    return tuple(found)


def batch_of(messages: tuple[Message, ...] | list[Message]) -> Batch:
    batch = Batch()
    for partition, offset, key, value, at in messages:
        batch.partitions.append(partition)
        batch.offsets.append(offset)
        batch.keys.append(key)
        batch.values.append(value)
        batch.append_times_ms.append(at)
    return batch


def engine() -> Engine:
    made = Engine(TOPIC)
    for partition in range(PARTITIONS):
        made.add_partition(partition)
    return made


@functools.cache
def undisturbed() -> tuple[tuple[AlarmRecord, ...], tuple[float, ...]]:
    """What one engine that is never disturbed makes of the recording, message by message."""
    machine = engine()
    records: list[AlarmRecord] = []
    scores: list[float] = []
    for message in recording():
        outcome = machine.take(batch_of([message]), SmokeModel())
        records += outcome.records
        scores += outcome.scores.tolist()
    return tuple(records), tuple(scores)


def by_alarm(records: list[AlarmRecord] | tuple[AlarmRecord, ...]) -> dict[tuple[str, Kind], list[AlarmRecord]]:
    found: dict[tuple[str, Kind], list[AlarmRecord]] = defaultdict(list)
    for record in records:
        found[record.device_id, record.kind].append(record)
    return dict(found)


def test_every_fire_of_the_recording_is_raised_once_and_no_calm_device_is() -> None:
    """The point of it all: whose room burns is told, once, and nobody else's."""
    raised = [record for record in undisturbed()[0] if record.kind is Kind.FIRE and record.event is Event.RAISED]
    assert sorted(record.device_id for record in raised) == ["d0", "d2", "d4", "d6"]
    assert len({record.alarm_id for record in raised}) == 4
    for record in raised:
        assert record.evidence.rules
        assert record.evidence.model_version == "7"
        assert record.evidence.values["pm2_5"] > 100
        assert record.evidence.last_offset == record.cause == record.position


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 120), min_size=1, max_size=12))
def test_alarms_do_not_depend_on_how_messages_are_cut_into_polls(sizes: list[int]) -> None:
    """Whether a reading came alone or with a backlog must not decide about an alarm."""
    machine, records, scores = engine(), [], []
    left = list(recording())
    for size in itertools.cycle(sizes):
        if not left:
            break
        outcome = machine.take(batch_of(left[:size]), SmokeModel())
        del left[:size]
        records += outcome.records
        scores += outcome.scores.tolist()
    assert by_alarm(records) == by_alarm(undisturbed()[0])
    assert scores == list(undisturbed()[1])


class Log:
    """A stand-in for the broker: what was written, and who reads it back. It keeps what a real one keeps."""

    def __init__(self) -> None:
        self.records: dict[int, list[AlarmRecord]] = {number: [] for number in range(PARTITIONS)}
        self.chunks: dict[tuple[int, int], bytes] = {}
        self.checkpoints: dict[int, tuple[int, int]] = {}
        self._left: dict[int, list[int]] = {}
        self._begun: dict[int, tuple[int, int]] = {}

    def write(self, outcome: Outcome) -> None:
        for record in outcome.records:
            self.records[record.partition].append(record)

    def snapshot(self, machine: Engine, partition: int) -> None:
        """Writes the next chunk of a partition's snapshot, and the checkpoint after the last one."""
        if not self._left.get(partition):
            self._left[partition] = list(range(machine.chunk_count(partition)))
            self._begun[partition] = (machine.newest(partition) + 1, len(self.records[partition]))
        chunk = self._left[partition].pop(0)
        self.chunks[partition, chunk] = encode_chunk(machine.export(partition, chunk))
        if not self._left[partition]:
            self.checkpoints[partition] = self._begun[partition]

    def restored(self) -> tuple[Engine, dict[int, int]]:
        """A new engine with everything put back, and where each partition goes on."""
        machine, positions = engine(), {}
        self._left.clear()
        for partition in range(PARTITIONS):
            position, alarms = self.checkpoints.get(partition, (0, 0))
            for (number, _), value in sorted(self.chunks.items()):
                if number == partition:
                    chunk = decode_chunk(value)
                    assert chunk is not None
                    machine.restore(chunk)
            for record in self.records[partition][alarms:]:
                machine.restore_record(record)
            machine.start_at(partition, position)
            positions[partition] = position
        return machine, positions


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.booleans())
def test_no_restart_misses_an_alarm_or_raises_it_twice(seed: int, small_chunks: bool) -> None:
    """A detector that dies in the middle of a fire must neither forget the fire nor wake people again."""
    chance = random.Random(seed)  # noqa: S311 - repeatable
    with pytest.MonkeyPatch.context() as patch:
        if small_chunks:
            patch.setattr(detection, "CHUNK_DEVICES", 1)
        log, machine, positions = Log(), engine(), dict.fromkeys(range(PARTITIONS), 0)
        deaths = 0
        while True:
            left = [message for message in recording() if message[1] >= positions[message[0]]]
            died = False
            while left and not died:
                size = chance.randint(1, 60)
                log.write(machine.take(batch_of(left[:size]), SmokeModel()))
                del left[:size]
                if chance.random() < 0.5:
                    log.snapshot(machine, chance.randrange(PARTITIONS))
                died = deaths < 6 and chance.random() < 0.08
            if not died:
                break
            deaths += 1
            machine, positions = log.restored()
        written = [record for records in log.records.values() for record in records]
        expected = by_alarm(undisturbed()[0])
        for key, records in by_alarm(written).items():
            raised = [record.alarm_id for record in records if record.event is Event.RAISED]
            assert raised == [record.alarm_id for record in expected[key] if record.event is Event.RAISED]
            assert [record.order for record in records] == sorted({record.order for record in records})
            assert records[-1].state is expected[key][-1].state
            assert records[-1].severity == expected[key][-1].severity
        assert by_alarm(written).keys() == expected.keys()


def dated(messages: tuple[Message, ...], device: bytes, days: float, first: int) -> list[Message]:
    """The messages with one device's clock set back from its message ``first`` on."""
    changed: list[Message] = []
    for partition, offset, key, value, at in messages:
        if key == device and offset >= first and _is_json(value):
            fields = json.loads(value)
            moment = datetime.fromisoformat(fields["event_time"]).timestamp() - days * 86_400
            fields["event_time"] = datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
            value = json.dumps(fields).encode()  # noqa: PLW2901 - the message as it is sent
        changed.append((partition, offset, key, value, at))
    return changed


@pytest.mark.parametrize("size", [1, 13, 2_000])
def test_a_fire_is_found_though_the_clock_was_set_back(size: int) -> None:
    """A detector that forgot the date at a power cut must still be heard, whatever year it says."""
    messages = dated(recording(), b"d0", 1_500.0, first=30)
    machine, records = engine(), []
    for begin in range(0, len(messages), size):
        records += machine.take(batch_of(messages[begin : begin + size]), SmokeModel()).records
    found = {(record.device_id, record.cause) for record in records if record.kind is Kind.FIRE}
    assert {device for device, _ in found} == {"d0", "d2", "d4", "d6"}
    raised = {record.device_id: record.cause for record in undisturbed()[0] if record.event is Event.RAISED}
    assert dict(found)["d0"] - raised["d0"] < 30


def test_a_late_reading_says_nothing_about_now() -> None:
    """A reading that was held up for an hour must not stop or start an alarm."""
    late = [
        message for message in dated(recording(), b"d0", 0.1, first=0) if message[2] == b"d0" and _is_json(message[3])
    ]
    mixed: list[Message] = []
    shift: dict[int, int] = defaultdict(int)
    for partition, offset, key, value, at in recording():
        mixed.append((partition, offset + shift[partition], key, value, at))
        if key == b"d0" and late:
            shift[partition] += 1
            mixed.append((partition, offset + shift[partition], key, late.pop(0)[3], at))
    found = engine().take(batch_of(mixed), SmokeModel()).records
    assert fires(found) == fires(undisturbed()[0])


def fires(records: Iterable[AlarmRecord]) -> list[tuple[str, float | None]]:
    """Who burns, and since when on the device's clock."""
    raised = [record for record in records if record.kind is Kind.FIRE and record.event is Event.RAISED]
    return sorted((record.device_id, record.event_time) for record in raised)


def test_a_device_out_of_service_raises_nothing() -> None:
    """A device that is being built in or repaired must not call the fire brigade."""
    machine = engine()
    machine.use_registry({name: Device(device_id=name, in_service=False) for name in ("d0", "d2")})
    outcome = machine.take(batch_of(recording()), SmokeModel())
    assert {record.device_id for record in outcome.records if record.kind is Kind.FIRE} == {"d4", "d6"}


def test_site_and_room_stand_in_the_alarm() -> None:
    """Somebody has to know where to run."""
    machine = engine()
    machine.use_registry({"d0": Device(device_id="d0", site="mill", room="boiler")})
    outcome = machine.take(batch_of(recording()), SmokeModel())
    (record,) = [record for record in outcome.records if record.device_id == "d0" and record.event is Event.RAISED]
    assert (record.site, record.room) == ("mill", "boiler")


def test_without_a_model_the_rules_find_the_fires() -> None:
    """A missing or refused model must not leave a building without alarms."""
    outcome = engine().take(batch_of(recording()), None)
    raised = {
        record.device_id
        for record in outcome.records
        if record.kind is Kind.FIRE and record.severity in ("high", "critical")
    }
    assert raised == {"d0", "d2", "d4", "d6"}
    assert len(outcome.scores) == 0
    assert all(record.evidence.score is None for record in outcome.records)


def test_rejects_are_counted_by_reason() -> None:
    """A device that sends rubbish must show in the metrics, though it lands elsewhere."""
    outcome = engine().take(batch_of(recording()), None)
    broken = sum(not _is_json(value) for _, _, _, value, _ in recording())
    assert outcome.rejects[RejectReason.NOT_JSON] == broken
    assert len(outcome.offsets) == len(recording()) - broken


def _is_json(value: bytes) -> bool:
    try:
        json.loads(value)
    except ValueError:
        return False
    return True


def listening(now: float) -> dict[int, float]:
    return dict.fromkeys(range(PARTITIONS), now - 3_600.0)


def play(machine: Engine, first: int, end: int, without: bytes = b"") -> list[AlarmRecord]:
    """Takes the recording second by second, with a sweep after each; gives what was said about silence."""
    said: list[AlarmRecord] = []
    for second in range(first, end):
        low, high = (START_S + second) * 1000, (START_S + second + 1) * 1000
        heard = [message for message in recording() if low <= message[4] < high and message[2] != without]
        said += machine.take(batch_of(heard), None).records
        said += machine.sweep(high / 1000, listening(high / 1000))
    return [record for record in said if record.kind in (Kind.OFFLINE, Kind.PIPELINE)]


def test_a_silent_device_is_offline_once_and_back_when_it_reports_again() -> None:
    """A detector that dies must be told once, and must not stay on the list when it reports again."""
    machine = engine()
    assert play(machine, 0, 20) == []
    gone = play(machine, 20, 40, without=b"d1")
    assert [(record.device_id, record.kind, record.event) for record in gone] == [("d1", Kind.OFFLINE, Event.RAISED)]
    assert machine.device_states() == (6, 1)
    back = play(machine, 40, 150)
    assert [(record.device_id, record.event) for record in back] == [("d1", Event.CLEARED)]
    assert machine.device_states() == (7, 0)


def test_a_device_that_falls_silent_again_is_told_again() -> None:
    """A detector with a loose contact must be told each time, not only the first."""
    machine = engine()
    told = play(machine, 0, 20) + play(machine, 20, 30, without=b"d1") + play(machine, 30, 100)
    told += play(machine, 100, 130, without=b"d1")
    assert [record.event for record in told] == [Event.RAISED, Event.CLEARED, Event.RETURNED]
    assert len({record.alarm_id for record in told}) == 1


def test_everybody_silent_is_one_pipeline_alarm_and_nobody_is_offline() -> None:
    """When the producer dies, one line says so instead of a thousand dead detectors."""
    machine = engine()
    machine.take(batch_of(recording()), None)
    end = max(message[4] for message in recording()) / 1000
    said = machine.sweep(end + 1, listening(end))
    assert not [record for record in said if record.kind in (Kind.OFFLINE, Kind.PIPELINE)]
    said = machine.sweep(end + 4, listening(end)) + machine.sweep(end + 5, listening(end))
    assert [(record.device_id, record.severity) for record in said if record.kind in (Kind.OFFLINE, Kind.PIPELINE)] == [
        ("pipeline:all/0", "critical")
    ]


def test_a_detector_that_has_just_come_calls_nobody_silent() -> None:
    """Its own absence must not be taken for the devices'."""
    machine = engine()
    machine.take(batch_of(recording()), None)
    much_later = max(message[4] for message in recording()) / 1000 + 9_000
    said = machine.sweep(much_later, dict.fromkeys(range(PARTITIONS), much_later - 1.0)) + machine.sweep(much_later, {})
    assert not [record for record in said if record.kind in (Kind.OFFLINE, Kind.PIPELINE)]


def command(verb: Verb, device: str, **fields: object) -> AlarmCommand:
    given = {"command_id": "c1", "kind": Kind.FIRE, "by": "night shift", "at": START_S, **fields}
    return AlarmCommand(verb=verb, device_id=device, **given)  # type: ignore[arg-type] # of mixed types


def test_an_acknowledgement_is_kept_through_a_restart() -> None:
    """Who has acknowledged an alarm must not be asked again because a process was restarted."""
    log, machine = Log(), engine()
    log.write(machine.take(batch_of(recording()), SmokeModel()))
    for partition in range(PARTITIONS):
        log.snapshot(machine, partition)
    for record in machine.obey(0, 0, command(Verb.ACKNOWLEDGE, "d0"), START_S + 200):
        log.records[0].append(record)
    assert log.records[0][-1].acknowledged
    again, _ = log.restored()
    (alarm,) = [alarm for name, kind, alarm in again.alarms() if name == "d0" and kind is Kind.FIRE]
    assert alarm.acknowledged
    assert list(again.obey(0, 0, command(Verb.ACKNOWLEDGE, "d0"), START_S + 201)) == []


def test_a_device_can_be_shelved_before_its_first_reading() -> None:
    """Maintenance is planned before a device is switched on."""
    machine = engine()
    (record,) = machine.obey(0, 5, command(Verb.SHELVE, "d0", until=START_S + 10_000, reason="painting"), START_S - 100)
    assert record.state is State.SHELVED
    outcome = machine.take(batch_of(recording()), SmokeModel())
    assert "d0" not in {found.device_id for found in outcome.records if found.event is Event.RAISED}


def test_state_is_bounded_and_a_burning_device_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of invented device names must neither fill the memory nor push out a fire."""
    monkeypatch.setattr(detection, "MOST_DEVICES", 50)
    machine = engine()
    machine.take(batch_of(recording()), SmokeModel())
    flood = [
        (1, 10_000 + n, b"x", Reading(f"x{n}", START, CALM).to_json(), round(START_S * 1000) + 1_000_000 + n)
        for n in range(500)
    ]
    machine.take(batch_of(flood), None)
    assert machine.device_count <= 50
    burning = {name for name, kind, alarm in machine.alarms() if kind is Kind.FIRE and alarm.state is State.ACTIVE}
    assert {"d0", "d2", "d4", "d6"} >= burning
    assert machine.chunk_count(1) >= 1
