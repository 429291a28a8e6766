"""From readings to alarms: what every device remembers, and one step of it for a batch of messages.

Belongs here: the slots in which devices keep their state, the order decode -> features -> score -> rules -> alarm, and
the state as it is saved and put back. Does not: what a feature, a rule, silence or an alarm is (``domain.features``,
``domain.rules``, ``domain.silence``, ``domain.alarm_machine``), Kafka, files, clocks: time comes in with the messages
or as an argument.

The same messages give the same alarms however they are cut into batches, and after a restart: a device's saved state
says up to which offset it reaches, an alarm's record says the same of the alarm, and what lies at or below it is not
judged again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from smoke_platform.domain import alarm_machine, features, rules, silence
from smoke_platform.domain.alarm_machine import POLICIES, Alarm, Observation, Subject
from smoke_platform.domain.alarms import AlarmCommand, AlarmRecord, Evidence, Kind, Severity, State
from smoke_platform.domain.devices import DEFAULT_INTERVAL_S, Device
from smoke_platform.domain.features import FeatureState
from smoke_platform.domain.live_decoding import decode_arrays
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, ReadingRejected, RejectReason
from smoke_platform.domain.rules import RuleState, Verdicts

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: The kinds of alarm that a device can have, in the order of the columns below.
KINDS: tuple[Kind, ...] = (Kind.FIRE, Kind.SENSOR_FAULT, Kind.DATA_QUALITY, Kind.OFFLINE)
_COLUMN = {kind: column for column, kind in enumerate(KINDS)}
_OFFLINE = _COLUMN[Kind.OFFLINE]

#: A device's clock counts as set back after this many readings in a row, this far behind it, in seconds. One may
#: run ahead by minutes before its readings are refused, so minutes of deafness are what this bounds.
CLOCK_SET_BACK_READINGS = 10
CLOCK_SET_BACK_S = 30.0

#: Devices whose state one process keeps, and one snapshot message holds.
MOST_DEVICES = 200_000
CHUNK_DEVICES = 128


class Scorer(Protocol):
    """What the detector needs of a model."""

    version: str
    threshold: float

    def score(self, rows: features.Features) -> Floats:
        """Fire probability of each row of features."""
        ...


@dataclass(slots=True)
class Batch:
    """Messages of the readings' topic; within a partition in the order of offsets. All lists have one length."""

    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    partitions: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    append_times_ms: list[int] = field(default_factory=list)

    def part(self, first: int, end: int | None) -> Batch:
        """The messages from ``first`` up to, not including, ``end``."""
        chosen = slice(first, end)
        return Batch(
            self.values[chosen],
            self.keys[chosen],
            self.partitions[chosen],
            self.offsets[chosen],
            self.append_times_ms[chosen],
        )


@dataclass(slots=True)
class Outcome:
    """What a batch led to.

    Attributes:
        records: of alarms, in the order in which they came about.
        partitions, offsets, scores, levels, hits: one entry for each reading; scores empty without a model.
        rejects: messages that were no readings, by reason.
        skipped: readings that the restored state already knew.
    """

    records: list[AlarmRecord]
    partitions: Integers
    offsets: Integers
    scores: Floats
    levels: npt.NDArray[np.uint8]
    hits: npt.NDArray[np.uint32]
    rejects: Counter[RejectReason]
    skipped: int = 0


class DeviceChunk(msgspec.Struct, kw_only=True, frozen=True):
    """Saved state of some devices of one partition: a message of ``smoke_detector_state``.

    Attributes:
        chunk: number within the partition; with the partition the message's key.
        feature_version, rules_version: definitions of the two tables; state of another definition is left out.
        ids: devices, empty where a place is free.
        features, rules: their tables' rows, float64, little-endian.
        heard: append time of the last message of each, epoch seconds; ``last``: its offset.
        behind: int64, how many readings in a row were far behind each one's clock.
        known: offset up to which each one's state reaches. Beyond ``last`` where others' messages came after it; beyond
            the partition's newest while a replay is under way.
        alarms: (place in ``ids``, kind, packed alarm).
        groups: (name, packed alarm) of the pipeline alarms, in chunk 0.
    """

    topic_id: str
    partition: int
    chunk: int
    feature_version: str
    rules_version: str
    ids: list[str]
    features: bytes
    rules: bytes
    heard: bytes
    last: bytes
    known: bytes
    behind: bytes
    alarms: list[tuple[int, str, bytes]]
    groups: list[tuple[str, bytes]]


class Engine:
    """All devices of the partitions that one detector holds.

    Args:
        topic_id: of the readings' topic; part of every alarm's identity.
    """

    def __init__(self, topic_id: str) -> None:
        self.topic_id = topic_id
        self._features = FeatureState()
        self._rules = RuleState()
        self._slot: dict[int, dict[str, int]] = {}
        #: partition -> slots by place, -1 where free; places are never moved, since a chunk is some consecutive ones.
        self._places: dict[int, list[int]] = {}
        self._holes: dict[int, list[int]] = {}
        self._newest: dict[int, int] = {}
        #: partition -> position of the newest record that was put back; until then a replay is under way.
        self._written: dict[int, int] = {}
        self._ids: list[str] = []
        self._free: list[int] = []
        self._alarms: dict[tuple[int, int], Alarm] = {}
        self._groups: dict[tuple[int, str], Alarm] = {}
        self._devices: Mapping[str, Device] = {}
        self._sites: list[str] = [""]
        self._site_numbers: dict[str, int] = {"": 0}
        self._columns = _Columns(0)
        #: Devices that no registry entry is known of, with what they measured first; taken by ``new_devices``.
        self._unknown: dict[str, tuple[str, ...]] = {}

    # -- partitions --------------------------------------------------------------------------------------

    @property
    def partitions(self) -> list[int]:
        return sorted(self._slot)

    @property
    def device_count(self) -> int:
        return sum(map(len, self._slot.values()))

    def newest(self, partition: int) -> int:
        """Offset of the newest reading taken of a partition, -1 before the first."""
        return self._newest.get(partition, -1)

    def add_partition(self, partition: int) -> None:
        """Begins with nothing known of a partition."""
        self.drop_partition(partition)
        self._slot[partition], self._places[partition], self._holes[partition] = {}, [], []
        self._newest[partition] = self._written[partition] = -1

    def start_at(self, partition: int, position: int) -> None:
        """Says that the next message to be taken of a partition has this offset."""
        self._newest[partition] = position - 1

    def replaying(self, partition: int) -> bool:
        """Whether records stand written that rest on readings still to be taken again.

        Until then neither commands nor time may change an alarm: what they led to would count as older.
        """
        return self._newest[partition] < self._written[partition]

    def drop_partition(self, partition: int) -> None:
        """Forgets a partition and its devices."""
        for slot in self._slot.pop(partition, {}).values():
            self._release(slot)
        for known in (self._places, self._holes, self._newest, self._written):
            known.pop(partition, None)
        self._groups = {key: alarm for key, alarm in self._groups.items() if key[0] != partition}

    # -- readings ----------------------------------------------------------------------------------------

    def take(self, batch: Batch, scorer: Scorer | None) -> Outcome:
        """Judges messages and moves the state on.

        Args:
            batch: messages of partitions that were added.
            scorer: the model of this moment; without one the rules alone decide.
        """
        decoded, refused = decode_arrays(batch.values, batch.append_times_ms)
        rows = decoded.rows
        partitions = np.array(batch.partitions, dtype=np.int64)[rows]
        slots = self._slots_of(decoded.device_ids, partitions.tolist(), decoded.sensors)
        refusals = self._known_refusals(batch, refused)
        if refusals and len(batch.values) > 1 and not {slot for _, slot, _ in refusals}.isdisjoint(slots.tolist()):
            # A device's good and bad messages must be taken in their order.
            middle = len(batch.values) // 2
            return _joined(self.take(batch.part(0, middle), scorer), self.take(batch.part(middle, None), scorer))
        times, sensors = decoded.event_time_s, decoded.sensors
        behind = self._behind(slots, times)
        if behind.any() and _repeated(slots[behind], slots):
            middle = len(batch.values) // 2
            return _joined(self.take(batch.part(0, middle), scorer), self.take(batch.part(middle, None), scorer))
        offsets = np.array(batch.offsets, dtype=np.int64)[rows]
        appended = np.array(batch.append_times_ms, dtype=np.float64)[rows] / 1000.0
        fresh = offsets > self._columns.known[slots]
        skipped = 0
        if not fresh.all():
            skipped = int((~fresh).sum())
            partitions, offsets, appended = partitions[fresh], offsets[fresh], appended[fresh]
            times, sensors, slots, behind = times[fresh], sensors[fresh], slots[fresh], behind[fresh]
        records = self._refuse(batch, refusals)
        scores = np.empty(0)
        levels, hits = np.empty(0, np.uint8), np.empty(0, np.uint32)
        if len(slots):
            self._follow_clocks(slots, behind)
            rows_of_features = features.step(self._features, slots, times, sensors)
            scores = _scores(scorer, rows_of_features)
            threshold = None if scorer is None else scorer.threshold
            verdicts = rules.evaluate(self._rules, slots, times, sensors, rows_of_features, scores, threshold)
            # Of a device's several readings the last one counts: NumPy assigns in order.
            self._columns.heard[slots] = appended
            self._columns.last[slots] = self._columns.known[slots] = offsets
            self._columns.offline[slots] = False
            records += self._observe(partitions, offsets, appended, times, sensors, slots, scores, verdicts, scorer)
            levels, hits = verdicts.fire_level, verdicts.hits
        # Within a partition offsets rise, so that the last one of each is the newest.
        for partition, offset in dict(zip(batch.partitions, batch.offsets, strict=True)).items():
            self._newest[partition] = max(self._newest[partition], offset)
        return Outcome(
            records=records,
            partitions=partitions,
            offsets=offsets,
            scores=scores if scorer is not None else np.empty(0),
            levels=levels,
            hits=hits,
            rejects=Counter(reject.reason for _, reject in refused),
            skipped=skipped,
        )

    def _behind(self, slots: Integers, times: Floats) -> Flags:
        """Which readings are far behind their device's clock, be it by an earlier one or by one of this batch."""
        clocks = self._features.clocks(slots)
        if len(slots) and times.min() < times.max() - CLOCK_SET_BACK_S:
            newest = np.full(int(slots.max()) + 1, -np.inf)
            np.maximum.at(newest, slots, times)
            clocks = np.maximum(clocks, newest[slots])
        behind: Flags = times < clocks - CLOCK_SET_BACK_S
        return behind

    def _follow_clocks(self, slots: Integers, behind: Flags) -> None:
        """Forgets a device whose clock was set back, so that its readings count again.

        A single old reading is late and says nothing about now. When nothing but old ones come, the clock is another
        one: a detector whose clock fails must not be deaf for as long as it was wrong.
        """
        columns = self._columns
        if not behind.any():
            columns.behind[slots] = 0
            return
        columns.behind[slots[~behind]] = 0
        late = slots[behind]
        columns.behind[late] += 1
        anew = late[columns.behind[late] >= CLOCK_SET_BACK_READINGS]
        if len(anew):
            self._features.clear(anew)
            self._rules.clear(anew)
            columns.behind[anew] = 0

    def _observe(
        self,
        partitions: Integers,
        offsets: Integers,
        appended: Floats,
        times: Floats,
        sensors: Floats,
        slots: Integers,
        scores: Floats,
        verdicts: Verdicts,
        scorer: Scorer | None,
    ) -> list[AlarmRecord]:
        """Steps the alarms that these readings may concern; the others are nearly all."""
        levels = np.zeros((len(slots), len(KINDS)), dtype=np.uint8)
        holds = np.zeros((len(slots), len(KINDS)), dtype=np.bool_)
        levels[:, 0], holds[:, 0] = verdicts.fire_level, verdicts.fire_hold
        levels[:, 1], holds[:, 1] = verdicts.fault_level, verdicts.fault_hold
        levels[:, 2], holds[:, 2] = verdicts.quality_level, verdicts.quality_hold
        in_service = self._columns.in_service[slots]
        if not in_service.all():
            levels[~in_service], holds[~in_service] = 0, False
        concerned = (levels > 0) | holds | self._columns.busy[slots]
        if not concerned.any():
            return []
        records: list[AlarmRecord] = []
        for row in np.flatnonzero(concerned.any(axis=1)).tolist():
            slot, partition, offset = int(slots[row]), int(partitions[row]), int(offsets[row])
            for column in np.flatnonzero(concerned[row] | self._columns.busy[slot]).tolist():
                level, hold = int(levels[row, column]), bool(holds[row, column])
                evidence = _NO_EVIDENCE
                if level and self._is_news(slot, column, level):
                    evidence = self._evidence(column, row, offset, slots, offsets, sensors, scores, verdicts, scorer)
                observation = Observation(
                    # Silence is told by the broker's clock, since a silent device has none.
                    event_time=float(appended[row] if column == _OFFLINE else times[row]),
                    at=float(appended[row]),
                    offset=offset,
                    level=level,
                    hold=hold,
                    evidence=evidence,
                )
                records += self._step(slot, partition, column, observation)
        return records

    def _is_news(self, slot: int, column: int, level: int) -> bool:
        """Whether the alarm would keep the evidence of a level: not of one that burns at least as badly already."""
        alarm = self._alarms.get((slot, column), _BLANK)
        return not alarm.holds or level > alarm.severity or alarm.state not in _SOUNDING

    def _step(self, slot: int, partition: int, column: int, observation: Observation) -> Sequence[AlarmRecord]:
        before = self._alarms.get((slot, column), _BLANK)
        after, records = alarm_machine.observe(
            before, self._subject(slot, partition, column), observation, POLICIES[KINDS[column]]
        )
        if after is not before:
            self._keep(slot, column, after)
        return records

    def _evidence(
        self,
        column: int,
        row: int,
        offset: int,
        slots: Integers,
        offsets: Integers,
        sensors: Floats,
        scores: Floats,
        verdicts: Verdicts,
        scorer: Scorer | None,
    ) -> Evidence:
        kind = KINDS[column]
        if kind is Kind.FIRE:
            names = rules.rule_names(int(verdicts.hits[row]))
        elif kind is Kind.SENSOR_FAULT:
            names = rules.fault_names(int(verdicts.faults[row]))
        else:
            names = (_QUALITY_RULE,)
        values = {
            name: value
            for name, value in zip(ALL_SENSOR_NAMES, sensors[row].tolist(), strict=True)
            if value == value  # noqa: PLR0124 - NaN
        }
        return Evidence(
            rules=tuple(names),
            first_offset=offset,
            last_offset=offset,
            score=None if scorer is None or kind is not Kind.FIRE else float(scores[row]),
            threshold=None if scorer is None or kind is not Kind.FIRE else scorer.threshold,
            model_version=None if scorer is None or kind is not Kind.FIRE else scorer.version,
            feature_version=features.FEATURE_SET_VERSION if kind is Kind.FIRE else "",
            values=values,
        )

    def _known_refusals(
        self, batch: Batch, refused: list[tuple[int, ReadingRejected]]
    ) -> list[tuple[int, int, RejectReason]]:
        """(row, slot, reason) of the messages that are no readings and whose key names a device that is known."""
        found: list[tuple[int, int, RejectReason]] = []
        for row, reject in refused:
            key = batch.keys[row]
            slot = None if key is None else self._slot[batch.partitions[row]].get(key.decode("utf-8", "replace"))
            if slot is not None and batch.offsets[row] > self._columns.known[slot]:
                found.append((row, slot, reject.reason))
        return found

    def _refuse(self, batch: Batch, refusals: list[tuple[int, int, RejectReason]]) -> list[AlarmRecord]:
        """Even a message that is no reading says that its device lives, and how well."""
        records: list[AlarmRecord] = []
        for row, slot, reason in refusals:
            if self._columns.last[slot] < 0:
                # Of a device that has not been heard yet nothing is known, as of any other name in a key.
                continue
            verdicts = rules.reject(self._rules, np.array([slot]), [reason])
            offset, partition, at = batch.offsets[row], batch.partitions[row], batch.append_times_ms[row] / 1000.0
            self._columns.last[slot] = self._columns.known[slot] = offset
            self._columns.heard[slot] = at
            if not self._columns.in_service[slot]:
                continue
            for kind, level, hold, names in (
                (
                    Kind.SENSOR_FAULT,
                    int(verdicts.fault_level[0]),
                    bool(verdicts.fault_hold[0]),
                    rules.fault_names(int(verdicts.faults[0])),
                ),
                (
                    Kind.DATA_QUALITY,
                    int(verdicts.quality_level[0]),
                    bool(verdicts.quality_hold[0]),
                    (_QUALITY_RULE,),
                ),
            ):
                # Only what raises: a message that could not be read does not say that a fault is over.
                if level:
                    evidence = Evidence(rules=tuple(names), first_offset=offset, last_offset=offset)
                    # Its own time can't be trusted, so the device's newest stands for it, or the broker's.
                    clock = self._features.clock(slot)
                    moment = clock if clock > -np.inf else at
                    observation = Observation(
                        event_time=float(moment), at=at, offset=offset, level=level, hold=hold, evidence=evidence
                    )
                    records += self._step(slot, partition, _COLUMN[kind], observation)
        return records

    # -- commands and time -------------------------------------------------------------------------------

    def obey(self, partition: int, offset: int, command: AlarmCommand, at: float) -> Sequence[AlarmRecord]:
        """Carries out an operator's command.

        Args:
            partition, offset: of the command.
            at: when it was appended, epoch seconds.
        """
        position = self.newest(partition)
        if command.kind is Kind.PIPELINE:
            key = (partition, command.device_id)
            before = self._groups.get(key, _BLANK)
            after, records = alarm_machine.obey(
                before, self._group_subject(*key), command, offset, at, position, POLICIES[Kind.PIPELINE]
            )
            self._groups[key] = after
            return records
        slot = self._slot[partition].get(command.device_id)
        if slot is None:
            # A device can be shelved before its first reading comes.
            slot = self._new_slot(partition, command.device_id, None)
        column = _COLUMN[command.kind]
        before = self._alarms.get((slot, column), _BLANK)
        after, records = alarm_machine.obey(
            before, self._subject(slot, partition, column), command, offset, at, position, POLICIES[command.kind]
        )
        if after is not before:
            self._keep(slot, column, after)
        return records

    def sweep(self, now: float, listening_since: Mapping[int, float]) -> list[AlarmRecord]:
        """What time itself leads to: silence, ends of snoozes and shelves, repeats.

        Args:
            now: epoch seconds on the clock that the broker's append times come from.
            listening_since: partition -> since when the detector has been at the end of its log; silence before that is
                the detector's own. A partition that is behind is left out, and nobody of it is called silent.
        """
        records = self._silence(now, listening_since)
        due = self._columns.due[: len(self._ids)]
        for slot, column in np.argwhere(due <= now).tolist():
            partition = int(self._columns.partition[slot])
            if partition not in listening_since:
                continue
            before = self._alarms[slot, column]
            after, found = alarm_machine.pass_time(
                before,
                self._subject(slot, partition, column),
                now,
                self.newest(partition),
                POLICIES[KINDS[column]],
            )
            self._keep(slot, column, after)
            records += found
        for key, before in list(self._groups.items()):
            if before.due_at <= now and key[0] in listening_since:
                after, found = alarm_machine.pass_time(
                    before, self._group_subject(*key), now, self.newest(key[0]), POLICIES[Kind.PIPELINE]
                )
                self._groups[key] = after
                records += found
        return records

    def device_states(self) -> tuple[int, int]:
        """(devices that report, devices that are silent)."""
        columns = self._columns.first(len(self._ids))
        seen = columns.last >= 0
        offline = int((columns.offline & seen).sum())
        return int(seen.sum()) - offline, offline

    def overdue(self, now: float, listening_since: Mapping[int, float]) -> bool:
        """Whether ``sweep`` would find a device silent that is not known to be."""
        quiet_s, columns = self._quiet_for(now, listening_since)
        return bool((silence.overdue(quiet_s, columns.interval) & ~columns.offline).any())

    def _quiet_for(self, now: float, listening_since: Mapping[int, float]) -> tuple[Floats, _Columns]:
        """Seconds without a message of each slot while the detector listened; -inf where nobody is to be missed."""
        columns = self._columns.first(len(self._ids))
        since = np.full(max([*self._slot, *listening_since, -1]) + 2, np.inf)
        for partition, moment in listening_since.items():
            since[partition] = moment
        quiet = now - np.maximum(columns.heard, since[columns.partition])
        quiet[~columns.in_service | (columns.last < 0)] = -np.inf
        return quiet, columns

    def _silence(self, now: float, listening_since: Mapping[int, float]) -> list[AlarmRecord]:
        quiet_s, columns = self._quiet_for(now, listening_since)
        open_groups = {name: partition for (partition, name), alarm in self._groups.items() if alarm.holds}
        found = silence.judge(
            quiet_s, columns.interval, columns.offline, columns.partition, columns.site, self._sites, open_groups
        )
        records: list[AlarmRecord] = []
        for group in found.groups:
            partition = group.partition if group.partition >= 0 else open_groups[group.name]
            records += self._observe_group(partition, group, now)
        for slot in found.gone.tolist():
            records += self._observe_silence(slot, now, _OFFLINE_SEVERITY)
        for slot in found.back.tolist():
            records += self._observe_silence(slot, now, 0)
        return records

    def _observe_silence(self, slot: int, now: float, level: int) -> Sequence[AlarmRecord]:
        partition, last = int(self._columns.partition[slot]), int(self._columns.last[slot])
        self._columns.offline[slot] = level > 0
        observation = Observation(
            event_time=now,
            at=now,
            offset=last,
            level=level,
            hold=False,
            evidence=Evidence(rules=("silent",), first_offset=last, last_offset=last) if level else _NO_EVIDENCE,
            position=self.newest(partition),
        )
        return self._step(slot, partition, _OFFLINE, observation)

    def _observe_group(self, partition: int, group: silence.Group, now: float) -> Sequence[AlarmRecord]:
        key = (partition, group.name)
        newest = self.newest(partition)
        before = self._groups.get(key, _BLANK)
        values = {"silent_devices": float(group.missing), "devices": float(group.members)}
        observation = Observation(
            event_time=now,
            at=now,
            offset=newest,
            level=_PIPELINE_SEVERITY if group.down else 0,
            hold=False,
            evidence=Evidence(rules=("silent_group",), first_offset=newest, last_offset=newest, values=values),
            position=newest,
        )
        after, records = alarm_machine.observe(before, self._group_subject(*key), observation, POLICIES[Kind.PIPELINE])
        self._groups[key] = after
        return records

    # -- the registry ------------------------------------------------------------------------------------

    def use_registry(self, devices: Mapping[str, Device]) -> None:
        """Takes in what is known of the devices: interval, site, service."""
        self._devices = devices
        for slot, device_id in enumerate(self._ids):
            if device_id:
                self._apply_registry(slot, device_id)

    def new_devices(self) -> dict[str, tuple[str, ...]]:
        """Devices that the registry does not know, with the sensors of their first reading; each is told once."""
        unknown, self._unknown = self._unknown, {}
        return {device_id: sensors for device_id, sensors in unknown.items() if device_id not in self._devices}

    def _apply_registry(self, slot: int, device_id: str) -> None:
        device = self._devices.get(device_id)
        columns = self._columns
        columns.interval[slot] = DEFAULT_INTERVAL_S if device is None else device.interval_s
        columns.in_service[slot] = device is None or device.in_service
        site = "" if device is None else device.site
        if site not in self._site_numbers:
            self._site_numbers[site] = len(self._sites)
            self._sites.append(site)
        columns.site[slot] = self._site_numbers[site]

    # -- slots -------------------------------------------------------------------------------------------

    def _slots_of(self, device_ids: list[str], partitions: list[int], sensors: Floats) -> Integers:
        slots = np.empty(len(device_ids), dtype=np.int64)
        for row, (device_id, partition) in enumerate(zip(device_ids, partitions, strict=True)):
            slot = self._slot[partition].get(device_id)
            if slot is None:
                slot = self._new_slot(partition, device_id, sensors[row])
            slots[row] = slot
        return slots

    def _new_slot(self, partition: int, device_id: str, sensors: Floats | None) -> int:
        if not self._free and len(self._ids) >= MOST_DEVICES:
            self._make_room()
        if self._free:
            slot = self._free.pop()
            self._ids[slot] = device_id
        else:
            slot = len(self._ids)
            self._ids.append(device_id)
            self._columns.ensure(slot + 1)
            self._features.ensure(slot + 1)
            self._rules.ensure(slot + 1)
        self._slot[partition][device_id] = slot
        places = self._places[partition]
        if self._holes[partition]:
            places[self._holes[partition].pop()] = slot
        else:
            places.append(slot)
        self._columns.partition[slot] = partition
        self._apply_registry(slot, device_id)
        if sensors is not None and device_id not in self._devices:
            fitted = tuple(name for name, value in zip(ALL_SENSOR_NAMES, sensors, strict=True) if not np.isnan(value))
            self._unknown[device_id] = fitted
        return slot

    def _release(self, slot: int) -> None:
        """Frees a slot; its place in the partition stays with the caller."""
        slots = np.array([slot])
        self._features.clear(slots)
        self._rules.clear(slots)
        self._columns.clear(slot)
        self._ids[slot] = ""
        self._free.append(slot)
        for column in range(len(KINDS)):
            self._alarms.pop((slot, column), None)

    def _make_room(self) -> None:
        """Forgets the hundredth part of the devices that was not heard for longest.

        Only a flood of invented device ids leads here; a device with a live fire alarm is kept.
        """
        columns = self._columns.first(len(self._ids))
        order = np.argsort(columns.heard, kind="stable")
        burning = {slot for (slot, column), alarm in self._alarms.items() if column == 0 and alarm.holds}
        chosen = [slot for slot in order.tolist() if slot not in burning][: max(1, MOST_DEVICES // 100)]
        doomed = set(chosen)
        for partition, places in self._places.items():
            for place, slot in enumerate(places):
                if slot in doomed:
                    places[place] = -1
                    self._holes[partition].append(place)
                    del self._slot[partition][self._ids[slot]]
        for slot in chosen:
            self._release(slot)

    def _keep(self, slot: int, column: int, alarm: Alarm) -> None:
        self._alarms[slot, column] = alarm
        self._columns.busy[slot, column] = not alarm.quiet
        self._columns.due[slot, column] = alarm.due_at

    def _put_back(self, slot: int, column: int, alarm: Alarm) -> None:
        self._keep(slot, column, alarm)
        if column == _OFFLINE:
            self._columns.offline[slot] = alarm.holds

    def _subject(self, slot: int, partition: int, column: int) -> Subject:
        device_id = self._ids[slot]
        device = self._devices.get(device_id)
        site, room = ("", "") if device is None else (device.site, device.room)
        return Subject(device_id, KINDS[column], self.topic_id, partition, site, room)

    def _group_subject(self, partition: int, name: str) -> Subject:
        return Subject(name, Kind.PIPELINE, self.topic_id, partition)

    # -- saving ------------------------------------------------------------------------------------------

    def chunk_count(self, partition: int) -> int:
        """How many chunks a partition's state has; at least one, so that its position is kept without devices."""
        return max(1, -(-len(self._places[partition]) // CHUNK_DEVICES))

    def export(self, partition: int, chunk: int) -> DeviceChunk:
        """A chunk of a partition's state as it is now."""
        places = self._places[partition][chunk * CHUNK_DEVICES : (chunk + 1) * CHUNK_DEVICES]
        taken = np.array([slot for slot in places if slot >= 0], dtype=np.int64)
        columns = self._columns
        alarms: list[tuple[int, str, bytes]] = []
        for place, slot in enumerate(slot for slot in places if slot >= 0):
            for column, kind in enumerate(KINDS):
                alarm = self._alarms.get((slot, column))
                if alarm is not None:
                    alarms.append((place, kind.value, alarm_machine.pack(alarm)))
        groups = [
            (name, alarm_machine.pack(alarm)) for (home, name), alarm in self._groups.items() if home == partition
        ]
        return DeviceChunk(
            topic_id=self.topic_id,
            partition=partition,
            chunk=chunk,
            feature_version=features.FEATURE_SET_VERSION,
            rules_version=rules.RULES_VERSION,
            ids=[self._ids[slot] for slot in taken.tolist()],
            features=self._features.export(taken).astype("<f8").tobytes(),
            rules=self._rules.export(taken).astype("<f8").tobytes(),
            heard=columns.heard[taken].astype("<f8").tobytes(),
            last=columns.last[taken].astype("<i8").tobytes(),
            known=np.maximum(columns.known[taken], self.newest(partition)).astype("<i8").tobytes(),
            behind=columns.behind[taken].astype("<i8").tobytes(),
            alarms=alarms,
            groups=groups if chunk == 0 else [],
        )

    def restore(self, chunk: DeviceChunk) -> int:
        """Puts a saved chunk back; what is known already of a device and newer stays.

        Returns:
            The number of devices that it brought.
        """
        if chunk.topic_id != self.topic_id:
            return 0
        heard, last, known = (
            np.frombuffer(column, kind)
            for column, kind in ((chunk.heard, "<f8"), (chunk.last, "<i8"), (chunk.known, "<i8"))
        )
        wanted: list[int] = []
        slots: list[int] = []
        for place, device_id in enumerate(chunk.ids):
            slot = self._slot[chunk.partition].get(device_id)
            if slot is not None and self._columns.known[slot] >= known[place]:
                continue
            wanted.append(place)
            slots.append(self._new_slot(chunk.partition, device_id, None) if slot is None else slot)
        rows, chosen = np.array(slots, dtype=np.int64), np.array(wanted, dtype=np.int64)
        if len(rows):
            if chunk.feature_version == features.FEATURE_SET_VERSION:
                table = np.frombuffer(chunk.features, "<f8").reshape(len(chunk.ids), -1)
                self._features.restore(rows, table[chosen])
            if chunk.rules_version == rules.RULES_VERSION:
                table = np.frombuffer(chunk.rules, "<f8").reshape(len(chunk.ids), -1)
                self._rules.restore(rows, table[chosen])
            self._columns.heard[rows] = heard[chosen]
            self._columns.last[rows] = last[chosen]
            self._columns.known[rows] = known[chosen]
            self._columns.behind[rows] = np.frombuffer(chunk.behind, "<i8")[chosen]
        slot_at = dict(zip(wanted, slots, strict=True))
        for place, kind, packed in chunk.alarms:
            if place in slot_at:
                self._put_back(slot_at[place], _COLUMN[Kind(kind)], alarm_machine.unpack(packed))
        for name, packed in chunk.groups:
            self._groups[chunk.partition, name] = alarm_machine.unpack(packed)
        return len(rows)

    def restore_record(self, record: AlarmRecord) -> None:
        """Puts an alarm back as a record says, where that is newer than what is known of it."""
        if record.topic_id != self.topic_id or record.partition not in self._slot:
            return
        self._written[record.partition] = max(self._written[record.partition], record.position)
        if record.kind is Kind.PIPELINE:
            key = (record.partition, record.device_id)
            if _older(self._groups.get(key, _BLANK), record):
                self._groups[key] = alarm_machine.restore(record)
            return
        slot = self._slot[record.partition].get(record.device_id)
        if slot is None:
            slot = self._new_slot(record.partition, record.device_id, None)
        column = _COLUMN[record.kind]
        if _older(self._alarms.get((slot, column), _BLANK), record):
            self._put_back(slot, column, alarm_machine.restore(record))

    def alarms(self) -> Iterator[tuple[str, Kind, Alarm]]:
        """(device or group, kind, alarm) of everything that is not as new."""
        for (slot, column), alarm in self._alarms.items():
            yield self._ids[slot], KINDS[column], alarm
        for (_, name), alarm in self._groups.items():
            yield name, Kind.PIPELINE, alarm


_SOUNDING = frozenset({State.ACTIVE, State.ACKNOWLEDGED, State.SNOOZED})
_BLANK = Alarm()
_NO_EVIDENCE = Evidence()
_QUALITY_RULE = "data_quality"
_OFFLINE_SEVERITY = int(Severity.HIGH)
_PIPELINE_SEVERITY = int(Severity.CRITICAL)


def _repeated(some: Integers, slots: Integers) -> bool:
    """Whether one of ``some`` occurs more than once in ``slots``."""
    found, counts = np.unique(slots, return_counts=True)
    return not set(some.tolist()).isdisjoint(found[counts > 1].tolist())


def _joined(first: Outcome, second: Outcome) -> Outcome:
    return Outcome(
        records=first.records + second.records,
        partitions=np.concatenate([first.partitions, second.partitions]),
        offsets=np.concatenate([first.offsets, second.offsets]),
        scores=np.concatenate([first.scores, second.scores]),
        levels=np.concatenate([first.levels, second.levels]),
        hits=np.concatenate([first.hits, second.hits]),
        rejects=first.rejects + second.rejects,
        skipped=first.skipped + second.skipped,
    )


def _older(alarm: Alarm, record: AlarmRecord) -> bool:
    return (alarm.position, alarm.revision) < record.order


def _scores(scorer: Scorer | None, rows: features.Features) -> Floats:
    return np.full(len(rows), np.nan) if scorer is None else scorer.score(rows)


class _Columns:
    """What is kept of each slot beside features and rules, as arrays that grow by half."""

    __slots__ = (
        "behind",
        "busy",
        "due",
        "heard",
        "in_service",
        "interval",
        "known",
        "last",
        "offline",
        "partition",
        "site",
    )

    def __init__(self, capacity: int) -> None:
        self.partition: Integers = np.zeros(capacity, dtype=np.int64)
        self.site: Integers = np.zeros(capacity, dtype=np.int64)
        self.interval: Floats = np.full(capacity, DEFAULT_INTERVAL_S)
        self.in_service: Flags = np.ones(capacity, dtype=np.bool_)
        self.heard: Floats = np.full(capacity, -np.inf)
        #: Offset of the device's newest message, -1 for none.
        self.last: Integers = np.full(capacity, -1, dtype=np.int64)
        #: What lies at or below this offset is in the device's state.
        self.known: Integers = np.full(capacity, -1, dtype=np.int64)
        #: How many readings in a row were far behind the device's clock.
        self.behind: Integers = np.zeros(capacity, dtype=np.int64)
        #: Whether the device is known to be silent.
        self.offline: Flags = np.zeros(capacity, dtype=np.bool_)
        #: By kind: whether a reading without any finding still concerns the alarm, and when time does.
        self.busy: Flags = np.zeros((capacity, len(KINDS)), dtype=np.bool_)
        self.due: Floats = np.full((capacity, len(KINDS)), np.inf)

    def ensure(self, capacity: int) -> None:
        missing = capacity - len(self.heard)
        if missing > 0:
            blank = _Columns(max(missing, len(self.heard) // 2))
            for name in self.__slots__:
                setattr(self, name, np.concatenate([getattr(self, name), getattr(blank, name)]))

    def clear(self, slot: int) -> None:
        blank = _Columns(1)
        for name in self.__slots__:
            getattr(self, name)[slot] = getattr(blank, name)[0]

    def first(self, count: int) -> _Columns:
        """Views of the first ``count`` entries."""
        view = _Columns(0)
        for name in self.__slots__:
            setattr(view, name, getattr(self, name)[:count])
        return view
