"""The alarms as they stand, worked out of the records of ``smoke_alarms`` one after another: which one holds, what is
counted, what happened lately. Pure.

Belongs here: what is kept of each (device, kind) and for how long, the order in which people see alarms, filters.
Does not: the reading of the topic (``adapters.alarm_log``), words (``domain.alarm_words``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, NamedTuple

from smoke_platform.domain.alarms import LIVE, AlarmRecord, Event, Kind, Severity, State, decode_record
from smoke_platform.domain.errors import SmokeError

#: Alarms that are over are kept whole up to this number; all others always.
MOST_CLOSED = 10_000
#: Of alarms that are no longer kept whole, the order of the last record is, so that a late one is known as old.
MOST_MARKS = 200_000
#: Records of the latest past, as bytes: about 500 each.
MOST_EVENTS = 20_000
#: Answers to commands, for those who wait for one.
MOST_ANSWERS = 10_000

Key = tuple[str, Kind]

#: Out of service by an operator's word.
ASIDE = frozenset({State.SHELVED, State.DISABLED})
#: Filters of states that go by a name of their own.
GROUPS: dict[str, frozenset[State]] = {"live": LIVE, "aside": ASIDE, "all": frozenset(State)}


class Occurrence(NamedTuple):
    """A record where it stands in the log of ``smoke_alarms``.

    Attributes:
        sequence: rises by one with each record that was taken.
        append_ms: the broker's clock, milliseconds since the epoch; -1 where unknown.
        value: the record as it travelled.
    """

    sequence: int
    key: Key
    partition: int
    offset: int
    append_ms: int
    value: bytes

    @property
    def record(self) -> AlarmRecord:
        return decode_record(self.value)


class Board:
    """What holds of every (device, kind).

    Args:
        sequence: of the last record before these, so that a board that follows another one counts on.
        most_closed, most_marks, most_events, most_answers: how much of what is over is kept.
    """

    def __init__(
        self,
        sequence: int = 0,
        *,
        most_closed: int = MOST_CLOSED,
        most_marks: int = MOST_MARKS,
        most_events: int = MOST_EVENTS,
        most_answers: int = MOST_ANSWERS,
    ) -> None:
        self.sequence = sequence
        self.stale = 0
        #: (kind, state, severity) -> how many there are now, those without an alarm left out.
        self.counts: Counter[tuple[Kind, State, str]] = Counter()
        self._held: dict[Key, AlarmRecord] = {}
        self._closed: OrderedDict[Key, None] = OrderedDict()
        self._marks: OrderedDict[Key, tuple[str, tuple[int, int]]] = OrderedDict()
        self._key_of_id: dict[str, Key] = {}
        self._events: deque[Occurrence] = deque(maxlen=most_events)
        self._answers: OrderedDict[str, AlarmRecord] = OrderedDict()
        self._most_closed, self._most_marks, self._most_answers = most_closed, most_marks, most_answers

    # -- taking ------------------------------------------------------------------------------------------
    def take(self, partition: int, offset: int, append_ms: int, key: bytes | None, value: bytes | None) -> bool:
        """Takes the next message of the topic; says whether anything has changed.

        A record that is not newer than the one that holds is left aside: a detector that has lost its partition may
        still write.

        Raises:
            SmokeError: for a message that is no record.
        """
        if value is None:
            return self._forget(_key(key))
        record = decode_record(value)
        name = (record.device_id, record.kind)
        if self._is_stale(name, record):
            self.stale += 1
            return False
        self.sequence += 1
        self._hold(name, record)
        self._events.append(Occurrence(self.sequence, name, partition, offset, append_ms, value))
        if record.command_id:
            self._answers[record.command_id] = record
            if len(self._answers) > self._most_answers:
                self._answers.popitem(last=False)
        return True

    def _is_stale(self, name: Key, record: AlarmRecord) -> bool:
        held = self._held.get(name)
        mark = (held.topic_id, held.order) if held is not None else self._marks.get(name)
        return mark is not None and mark[0] == record.topic_id and record.order <= mark[1]

    def _hold(self, name: Key, record: AlarmRecord) -> None:
        self._let_go(name)
        self._marks.pop(name, None)
        self._held[name] = record
        if record.alarm_id:
            self._key_of_id[record.alarm_id] = name
        if record.state is not State.NORMAL:
            self.counts[record.kind, record.state, record.severity] += 1
            return
        self._closed[name] = None
        if len(self._closed) > self._most_closed:
            oldest, _ = self._closed.popitem(last=False)
            gone = self._let_go(oldest)
            assert gone is not None  # noqa: S101 - whatever is closed is held
            self._marks[oldest] = (gone.topic_id, gone.order)
            if len(self._marks) > self._most_marks:
                self._marks.popitem(last=False)

    def _let_go(self, name: Key) -> AlarmRecord | None:
        held = self._held.pop(name, None)
        if held is None:
            return None
        self._closed.pop(name, None)
        if self._key_of_id.get(held.alarm_id) == name:
            del self._key_of_id[held.alarm_id]
        if held.state is not State.NORMAL:
            place = (held.kind, held.state, held.severity)
            self.counts[place] -= 1
            if not self.counts[place]:
                del self.counts[place]
        return held

    def _forget(self, name: Key | None) -> bool:
        if name is None or self._let_go(name) is None:
            return False
        self.sequence += 1
        return True

    # -- asking ------------------------------------------------------------------------------------------
    def get(self, device_id: str, kind: Kind) -> AlarmRecord | None:
        """What holds of that device and kind; ``None`` where nothing is kept."""
        return self._held.get((device_id, kind))

    def by_id(self, alarm_id: str) -> AlarmRecord | None:
        """What holds of the alarm with this id; ``None`` where another one of its device and kind took its place."""
        key = self._key_of_id.get(alarm_id)
        return None if key is None else self._held[key]

    def answer(self, command_id: str) -> AlarmRecord | None:
        """The record to which a command has led."""
        return self._answers.get(command_id)

    def held(self) -> list[AlarmRecord]:
        """Everything that is kept whole, in no order."""
        return list(self._held.values())

    def last(self, *, key: Key | None = None, alarm_id: str = "", limit: int = 100) -> list[Occurrence]:
        """The latest records, oldest first: of a (device, kind), or of an alarm that may long be over."""
        found: Iterator[Occurrence] = reversed(self._events)
        if key is not None:
            found = (event for event in found if event.key == key)
        if alarm_id:
            needle = alarm_id.encode()
            # The bytes first: to decode what cannot be it would take a hundred times as long.
            found = (event for event in found if needle in event.value and event.record.alarm_id == alarm_id)
        return list(islice(found, limit))[::-1]

    def since(self, sequence: int, limit: int = 500) -> tuple[list[Occurrence], bool]:
        """The records after that one, oldest first, and whether some in between are no longer kept."""
        oldest = self._events[0].sequence if self._events else self.sequence + 1
        if sequence >= self.sequence:
            return [], False
        missed = min(self.sequence - sequence, len(self._events))
        found = list(islice(reversed(self._events), missed))[::-1]
        return [event for event in found if event.sequence > sequence][:limit], sequence + 1 < oldest


def _key(key: bytes | None) -> Key | None:
    """The (device, kind) that ``alarms.alarm_key`` wrote."""
    try:
        device_id, _, kind = (key or b"").decode().rpartition("/")
        return device_id, Kind(kind)
    except ValueError:
        return None


# -- what people look for ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which alarms somebody wants to see; what is empty or ``None`` lets all through.

    Attributes:
        states: such as ``GROUPS["live"]``.
        device: a part of the device's id, whatever the case.
    """

    states: Collection[State] = LIVE
    site: str | None = None
    kind: Kind | None = None
    severity: str | None = None
    device: str = ""

    def chosen(self, records: Iterable[AlarmRecord]) -> list[AlarmRecord]:
        """Those of ``records`` that are wanted, in their order."""
        part = self.device.casefold()
        return [
            record
            for record in records
            if record.state in self.states
            and (self.site is None or record.site == self.site)
            and (self.kind is None or record.kind is self.kind)
            and (self.severity is None or record.severity == self.severity)
            and (not part or part in record.device_id.casefold())
        ]


def states_of(name: str) -> frozenset[State]:
    """The states of a group (live, aside, all) or of one state's name.

    Raises:
        SmokeError: for any other, listing the legal ones.
    """
    try:
        return GROUPS.get(name) or frozenset({State(name)})
    except ValueError:
        legal = ", ".join([*GROUPS, *(state.value for state in State)])
        raise SmokeError(f"state: there is no {name!r}", f"use one of {legal}") from None


def rank(severity: str) -> int:
    """Greater is worse; 0 for a name that is none, so that one odd record spoils no list."""
    return Severity.__members__.get(severity.upper(), 0)


def in_order(records: Iterable[AlarmRecord]) -> list[AlarmRecord]:
    """Live ones first, then by severity, then those that nobody has acknowledged, then the newest first."""

    def place(record: AlarmRecord) -> tuple[Any, ...]:
        since = record.raised_at if record.raised_at is not None else record.at
        return record.state not in LIVE, -rank(record.severity), record.acknowledged, -since, record.device_id

    return sorted(records, key=place)


def is_complete(trail: Sequence[AlarmRecord]) -> bool:
    """Whether no record is missing between the latest raising and the last of ``trail``, which begins at the oldest."""
    raised = [row for row, record in enumerate(trail) if record.event is Event.RAISED]
    first = raised[-1] if raised else 0
    last = trail[first:]
    begins = bool(last) and (bool(raised) or last[0].revision == 1)
    return begins and all(later.revision == earlier.revision + 1 for earlier, later in pairwise(last))
