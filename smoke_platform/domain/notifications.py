"""Which alarm is told to whom, when, and in which words: routes, groups, time windows, retries, texts.

Belongs here: all of notifications that needs neither a clock of its own nor a network; the caller brings the time
(epoch seconds) and says what became of each attempt. Does not: how a channel is reached (``adapters.notifier``), the
reading of ``smoke_alarms`` and the threads (``streaming.notify``).

An alarm that is to be told becomes a note in a bucket of each channel its routes name. What is critical goes into the
channel's urgent bucket, everything else into the bucket of its group. A bucket that is due becomes a message; a message
is tried until it is accepted or ends as a dead letter, and its content stays the same meanwhile (but for alarms that
somebody has acknowledged), so that a receiver may tell a repeated message by its id.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Literal
from zoneinfo import ZoneInfo

import msgspec

from smoke_platform.domain.alarms import AlarmRecord, Event, Kind, Severity, State
from smoke_platform.domain.errors import SmokeError

#: Not critical: at most one message in this time, channel and group. EEMUA 191: one alarm in ten minutes is what an
#: operator can take.
WINDOW_S = 600.0
#: The first message of a group that was quiet waits this long, so that what belongs together arrives together.
GATHER_S = 5.0
#: Critical alarms that follow a critical message are merged for this long. The limit from alarm to receipt is 10 s; the
#: rest is for the way.
URGENT_EVERY_S = 7.0
#: More alarms than this are counted, not named.
MOST_NAMED = 50
#: What is no longer an alarm is remembered this long, so that a late record of a paused detector is still known as old.
FORGET_S = 3600.0
#: Longest device id, site and room in a message; a reading's device id may have 256 characters.
LONGEST_NAME = 64
STATE_VERSION = 1

Key = tuple[str, Kind]
#: Where a note waits: the values of the grouping fields, or the urgent bucket.
Group = tuple[str, ...]
#: The latter is longer than any group can be, so that no site is taken for it.
URGENT: Group = ("urgent", "", "", "")

_CHANNEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_TOLD_EVENTS = frozenset({Event.RAISED, Event.ESCALATED, Event.REPEATED, Event.RETURNED})
#: These tell only if the condition holds again (or still): the alarm was set aside and is back.
_BACK_EVENTS = frozenset({Event.WOKEN, Event.UNSHELVED, Event.ENABLED})
_OVER_EVENTS = frozenset({Event.CLEARED, Event.LATCHED, Event.CLOSED, Event.RESET})
_ASIDE = frozenset({State.SNOOZED, State.SHELVED, State.DISABLED})
#: States in which an alarm that nobody has acknowledged is told when the notifier starts for the first time.
_STANDING = frozenset({State.ACTIVE, State.CLEARED, State.LATCHED})


# -- the plan: channels and routes -----------------------------------------------------------------------


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which alarms go to which channels; every field must fit.

    Attributes:
        channels: names.
        min_severity, max_severity: both included.
        kinds: ``domain.alarms.Kind``; empty: all.
        sites: shell patterns such as ``plant-*``; a site that is not known is the empty text, which ``*`` fits.
        events: of those that tell (raised, escalated, repeated, returned, woken, unshelved, enabled); empty: all.
    """

    channels: tuple[str, ...]
    min_severity: str = "low"
    max_severity: str = "critical"
    kinds: tuple[Kind, ...] = ()
    sites: tuple[str, ...] = ("*",)
    events: tuple[Event, ...] = ()

    def fits(self, note: Note) -> bool:
        """Whether a note goes this way."""
        return (
            Severity.of(self.min_severity) <= note.severity <= Severity.of(self.max_severity)
            and (not self.kinds or note.kind in self.kinds)
            and (not self.events or note.event in self.events)
            and any(fnmatchcase(note.site, pattern) for pattern in self.sites)
        )


class ChannelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A channel: ``url`` (its Apprise URL comes from the settings, never from a file), ``console`` or ``log``."""

    type: Literal["url", "console", "log"] = "url"


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a message that was not accepted is tried again.

    Attributes:
        attempts: after so many it is a dead letter.
        first_s, longest_s: pause after the first failure, doubled each time up to the longest; half of it is chance.
        deadline_s: an attempt that takes longer has failed.
        give_up_s: a message older than this is a dead letter however many attempts are left.
    """

    attempts: int = 12
    first_s: float = 2.0
    longest_s: float = 120.0
    deadline_s: float = 15.0
    give_up_s: float = 1800.0

    def pause(self, failures: int, chance: float) -> float:
        """Seconds until the next attempt.

        Args:
            failures: attempts that have failed, from 1.
            chance: from [0, 1).
        """
        whole = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return whole * (0.5 + 0.5 * chance)


class _PlanFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    channels: dict[str, ChannelSpec]
    routes: tuple[Route, ...]
    group_by: tuple[Literal["site", "room", "kind"], ...] = ("site",)
    retry: Retry = Retry()


@dataclass(frozen=True)
class Plan:
    """Channels, routes, grouping and retries, checked.

    Attributes:
        group_by: alarms that agree in these fields share a message; empty: one message for all.
    """

    channels: Mapping[str, ChannelSpec]
    routes: tuple[Route, ...]
    group_by: tuple[str, ...] = ("site",)
    retry: Retry = field(default_factory=Retry)

    def channels_for(self, note: Note) -> list[str]:
        """Names of the channels that a note goes to, each once."""
        return list(dict.fromkeys(name for route in self.routes if route.fits(note) for name in route.channels))

    def group_of(self, note: Note) -> Group:
        return tuple(str(getattr(note, name)) for name in self.group_by)


def default_plan(url_names: Iterable[str]) -> Plan:
    """Without a configuration file: console, log and every channel that has a URL get everything."""
    channels = {"console": ChannelSpec("console"), "log": ChannelSpec("log")}
    for name in url_names:
        if name in channels:
            raise SmokeError(f"SMOKE_NOTIFY_URLS: the name {name} is taken by a built-in channel", "use another name")
        channels[name] = ChannelSpec("url")
    return Plan(channels, (Route(channels=tuple(channels)),))


def plan_of(document: Any, url_names: Collection[str], source: str) -> Plan:
    """The plan that a configuration file describes.

    Args:
        document: the file's content as dictionaries, lists and scalars.
        url_names: channels for which there is a URL.
        source: the file's name, for complaints.

    Raises:
        SmokeError: naming the field at fault.
    """
    remedy = "see docs/notifications.md and deploy/notify.example.yaml for the fields"
    try:
        parsed = msgspec.convert(document, _PlanFile)
    except msgspec.ValidationError as error:
        raise SmokeError(f"{source}: {error}".replace("`$.", "`").replace("`$`", "the file"), remedy) from None
    for name, spec in parsed.channels.items():
        check_channel_name(name, f"{source}: channels")
        if spec.type == "url" and name not in url_names:
            raise SmokeError(f"{source}: channels.{name} has no URL", f"set SMOKE_NOTIFY_URLS={name}=<Apprise URL>")
    if unused := sorted(set(url_names) - {name for name, spec in parsed.channels.items() if spec.type == "url"}):
        raise SmokeError(
            f"SMOKE_NOTIFY_URLS names {', '.join(unused)}, which {source} does not have as a channel of type url",
            f"add it below channels, or take it out; channels are {', '.join(parsed.channels) or 'none'}",
        )
    if not parsed.channels or not parsed.routes:
        raise SmokeError(f"{source}: channels and routes must not be empty", remedy)
    for number, route in enumerate(parsed.routes):
        _check_route(route, f"{source}: routes[{number}]", parsed.channels)
    retry = parsed.retry
    for name, value, low, high in (
        ("attempts", retry.attempts, 1, 100),
        ("first_s", retry.first_s, 0.1, 3600),
        ("longest_s", retry.longest_s, retry.first_s, 3600),
        ("deadline_s", retry.deadline_s, 1, 120),
        ("give_up_s", retry.give_up_s, 1, 86_400),
    ):
        if not low <= value <= high:
            raise SmokeError(f"{source}: retry.{name}: {value} is not between {low:g} and {high:g}")
    return Plan(dict(parsed.channels), parsed.routes, tuple(dict.fromkeys(parsed.group_by)), retry)


def _check_route(route: Route, place: str, channels: Collection[str]) -> None:
    if not route.channels:
        raise SmokeError(f"{place}.channels is empty", f"name some of {', '.join(channels)}")
    for name in route.channels:
        if name not in channels:
            raise SmokeError(f"{place}.channels: unknown channel {name!r}", f"channels are {', '.join(channels)}")
    limits = []
    for name in ("min_severity", "max_severity"):
        try:
            limits.append(Severity.of(getattr(route, name)))
        except SmokeError as error:
            raise SmokeError(f"{place}.{name}: {error.message}", error.remedy) from None
    if limits[0] > limits[1]:
        raise SmokeError(f"{place}: min_severity is above max_severity, so that nothing fits")
    for event in route.events:
        if event not in _TOLD_EVENTS | _BACK_EVENTS:
            legal = ", ".join(sorted(_TOLD_EVENTS | _BACK_EVENTS))
            raise SmokeError(f"{place}.events: {event} is never told by itself", f"use some of {legal}")


def check_channel_name(name: str, place: str) -> None:
    """Raises ``SmokeError`` unless ``name`` can stand in metrics and on the command line."""
    if not _CHANNEL_NAME.fullmatch(name):
        raise SmokeError(f"{place}: {clean(name)!r} is no name of a channel", "use a-z, 0-9, _ and -, at most 40")


def parse_urls(text: str) -> dict[str, str]:
    """Channel -> Apprise URL, from ``name=url`` pairs between white space. Complaints never quote a URL.

    Raises:
        SmokeError: for a pair that is none, or a name that comes twice.
    """
    found: dict[str, str] = {}
    for number, pair in enumerate(text.split(), start=1):
        name, separator, url = pair.partition("=")
        # Without a name, what stands before the first "=" may be part of a secret; so the number is named instead.
        if not separator or not _CHANNEL_NAME.fullmatch(name) or "://" not in url:
            raise SmokeError(
                f"SMOKE_NOTIFY_URLS: entry {number} is not name=url",
                "write name=url pairs with white space between, such as ops=jsons://host/path",
            )
        if name in found:
            raise SmokeError(f"SMOKE_NOTIFY_URLS names {name} twice", "give each URL a channel of its own")
        found[name] = url
    return found


# -- notes and messages ----------------------------------------------------------------------------------


class Note(msgspec.Struct, frozen=True, array_like=True):
    """What a message says of one alarm, and where in ``smoke_alarms`` it stands.

    Attributes:
        since: when it was raised, by the device's clock if known, epoch seconds.
        over: its condition has ended.
        times: how many of its records this note stands for.
    """

    alarm_id: str
    device_id: str
    kind: Kind
    severity: Severity
    event: Event
    state: State
    site: str
    room: str
    since: float
    rules: tuple[str, ...]
    score: float | None
    threshold: float | None
    partition: int
    offset: int
    over: bool = False
    times: int = 1

    @property
    def key(self) -> Key:
        return self.device_id, self.kind

    @property
    def urgent(self) -> bool:
        return self.severity is Severity.CRITICAL and not self.over


def note_of(record: AlarmRecord, partition: int, offset: int) -> Note:
    """The note of a record at its place in ``smoke_alarms``.

    Raises:
        SmokeError: for a severity that there is not.
    """
    since = next(
        time for time in (record.raised_event_time, record.raised_at, record.event_time, record.at) if time is not None
    )
    return Note(
        record.alarm_id,
        record.device_id,
        record.kind,
        Severity.of(record.severity),
        record.event,
        record.state,
        record.site,
        record.room,
        since,
        record.evidence.rules,
        record.evidence.score,
        record.evidence.threshold,
        partition,
        offset,
        over=record.state in (State.CLEARED, State.LATCHED, State.NORMAL),
    )


class Message(msgspec.Struct, array_like=True):
    """One message of one channel until it is accepted or given up.

    Attributes:
        message_id: stays the same over all attempts and restarts.
        group: ``URGENT`` for critical alarms.
        due: not tried before, epoch seconds.
        under_way: an attempt runs now.
    """

    message_id: str
    channel: str
    group: Group
    notes: list[Note]
    formed_at: float
    due: float
    attempts: int = 0
    under_way: bool = False
    last_error: str = ""

    @property
    def urgent(self) -> bool:
        return self.group == URGENT

    @property
    def tone(self) -> Literal["failure", "warning", "info"]:
        """How bad it is in the words of notification services, which choose colours and sounds by it."""
        if self.urgent:
            return "failure"
        return "info" if all(note.over for note in self.notes) else "warning"


class _Bucket(msgspec.Struct, array_like=True):
    """Notes that wait. ``first_at``: since when; ``last``: when this bucket's latest message was done with."""

    notes: dict[str, Note] = msgspec.field(default_factory=dict)
    first_at: float = 0.0
    last: float | None = None


class _Held(msgspec.Struct, array_like=True):
    """The newest record of a (device, kind); ``told``, ``ended``: channels that know of this alarm, and of its end."""

    order: tuple[int, int]
    topic_id: str
    note: Note
    acknowledged: bool
    seen_at: float
    told: list[str] = msgspec.field(default_factory=list)
    ended: list[str] = msgspec.field(default_factory=list)


class _ChannelState(msgspec.Struct):
    buckets: list[tuple[Group, _Bucket]]
    messages: list[Message]


class Snapshot(msgspec.Struct):
    """All that must survive a restart.

    Attributes:
        topic_id: of ``smoke_alarms``; another one means that ``positions`` and ``held`` are of a topic that is gone.
        positions: partition -> next offset to read.
    """

    version: int
    topic_id: str
    positions: dict[int, int]
    held: list[_Held]
    channels: dict[str, _ChannelState]


_SNAPSHOTS = msgspec.json.Decoder(Snapshot)
_DEAD = msgspec.json.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """A dead letter as it is kept."""
    return msgspec.json.encode(message)


def decode_message(value: bytes, place: str) -> Message:
    """The message that ``encode_message`` wrote.

    Raises:
        SmokeError: naming ``place``.
    """
    try:
        return _DEAD.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SmokeError(f"{place} is no dead letter: {error}", "delete the file if it is not one of ours") from None


class Post:
    """The notes and messages of all channels, from an alarm's record to the accepted message.

    Not safe for use from several threads.

    Args:
        plan: channels, routes, grouping.
        chance: gives a number from [0, 1) for the pauses.
    """

    def __init__(self, plan: Plan, chance: Callable[[], float] = random.random) -> None:
        self.plan = plan
        self.withdrawn: Counter[str] = Counter()
        self._chance = chance
        self._held: dict[Key, _Held] = {}
        self._buckets: dict[str, dict[Group, _Bucket]] = {name: {} for name in plan.channels}
        self._where: dict[str, dict[Key, Group]] = {name: {} for name in plan.channels}
        self._messages: dict[str, dict[str, Message]] = {name: {} for name in plan.channels}

    # -- alarms in ---------------------------------------------------------------------------------------
    def take(self, record: AlarmRecord, partition: int, offset: int, now: float, *, past: bool = False) -> bool:
        """Takes one record of ``smoke_alarms``.

        Args:
            partition, offset: where it stands there.
            past: only remember it; ``tell_standing`` follows.

        Returns:
            False where a newer record is known.

        Raises:
            SmokeError: for a severity that there is not.
        """
        note = note_of(record, partition, offset)
        known = self._held.get(note.key)
        if not note.alarm_id and known is not None and note.event in _OVER_EVENTS:
            note = msgspec.structs.replace(note, alarm_id=known.note.alarm_id)
        if known is not None and known.topic_id == record.topic_id and record.order <= known.order:
            return False
        held = _Held(record.order, record.topic_id, note, record.acknowledged, now)
        if known is not None and known.note.alarm_id == note.alarm_id:
            held.told, held.ended = known.told, known.ended
        self._held[note.key] = held
        if not past:
            self._judge(held, now)
        return True

    def tell_standing(self, now: float) -> None:
        """Tells every alarm that stands and that nobody has acknowledged: what the first start ever has to say."""
        for held in self._held.values():
            note = held.note
            if note.alarm_id and note.state in _STANDING and not held.acknowledged and not held.told:
                # To a route it is an alarm that is raised, whatever happened to it last. One that is over and was not
                # acknowledged is as urgent as it was.
                self._tell(msgspec.structs.replace(note, event=Event.RAISED), now, urgent=_is_critical(note))

    def _judge(self, held: _Held, now: float) -> None:
        note = held.note
        aside = note.state in _ASIDE or note.state is State.ACKNOWLEDGED or note.event is Event.ACKNOWLEDGED
        if note.event is Event.ESCALATED and note.alarm_id and note.state not in (State.SHELVED, State.DISABLED):
            held.ended = []
            self._tell(note, now, urgent=_is_critical(note))  # worse than what was acknowledged or snoozed
        elif aside or note.event is Event.RESET:
            self._withdraw(note.key, now)
            if note.event is Event.RESET:
                self._end(held, now)
        elif note.event in _OVER_EVENTS:
            self._end(held, now)
        elif note.alarm_id and not held.acknowledged:
            back = note.event in _BACK_EVENTS and note.state is State.ACTIVE
            if note.event in _TOLD_EVENTS or back:
                held.ended = []
                self._tell(note, now, urgent=_is_critical(note))

    def _tell(self, note: Note, now: float, *, urgent: bool) -> None:
        for channel in self.plan.channels_for(note):
            self._put(channel, note, URGENT if urgent else self.plan.group_of(note), now)

    def _end(self, held: _Held, now: float) -> None:
        """The alarm is over: what waits says so, and what has been told is followed by a line."""
        note = msgspec.structs.replace(held.note, over=True)
        for channel in self.plan.channels:
            group = self._where[channel].get(note.key)
            if group is not None:
                waiting = self._buckets[channel][group].notes
                before = waiting[_slot(note.key)]
                if before.alarm_id == note.alarm_id:
                    waiting[_slot(note.key)] = msgspec.structs.replace(before, over=True, state=note.state)
                    # Where an earlier message told of it, this line is its end.
                    if channel in held.told and channel not in held.ended:
                        held.ended.append(channel)
            elif channel in held.told and channel not in held.ended:
                held.ended.append(channel)
                self._put(channel, note, self.plan.group_of(note), now)

    def _put(self, channel: str, note: Note, group: Group, now: float) -> None:
        before = self._take_out(channel, note.key)
        if before is not None:
            # The earliest place is kept: everything from there on is still to be told.
            first = min((before.partition, before.offset), (note.partition, note.offset))
            note = msgspec.structs.replace(
                note, times=before.times + 1, partition=first[0], offset=first[1], over=note.over
            )
        bucket = self._buckets[channel].setdefault(group, _Bucket())
        if not bucket.notes:
            bucket.first_at = now
        bucket.notes[_slot(note.key)] = note
        self._where[channel][note.key] = group

    def _take_out(self, channel: str, key: Key) -> Note | None:
        group = self._where[channel].pop(key, None)
        return None if group is None else self._buckets[channel][group].notes.pop(_slot(key))

    def _withdraw(self, key: Key, now: float) -> None:
        """Somebody has seen the alarm or has set it aside: what was not sent yet is not sent."""
        for channel in self.plan.channels:
            group = self._where[channel].get(key)
            if group is not None:
                waiting = self._buckets[channel][group].notes[_slot(key)]
                # The end of what was told is still news to whoever was told.
                if not (waiting.over and channel in self._held[key].told):
                    self._take_out(channel, key)
                    self.withdrawn[channel] += 1
            for message in [each for each in self._messages[channel].values() if not each.under_way]:
                kept = [note for note in message.notes if note.key != key or note.over]
                if len(kept) < len(message.notes):
                    self.withdrawn[channel] += len(message.notes) - len(kept)
                    message.notes = kept
                    if not message.attempts and channel in (held := self._held[key]).told:
                        held.told.remove(channel)
                    if not kept:
                        # A failed attempt may have been accepted all the same, so the window runs.
                        self._settle(message, now if message.attempts else None)

    # -- messages out ------------------------------------------------------------------------------------
    def form(self, now: float) -> list[Message]:
        """Makes messages of the buckets that are due. Save the snapshot before you send one."""
        formed = []
        for channel, buckets in self._buckets.items():
            busy = {message.group for message in self._messages[channel].values()}
            for message in self._messages[channel].values():
                message.due = min(message.due, now + self.plan.retry.longest_s)
            for group, bucket in list(buckets.items()):
                # Where the clock was set back, the group would else be silent for as long.
                bucket.first_at = min(bucket.first_at, now)
                bucket.last = None if bucket.last is None else min(bucket.last, now)
                if not bucket.notes:
                    if bucket.last is None or now - bucket.last >= WINDOW_S:
                        del buckets[group]
                    continue
                if self._due(group, bucket) > now or (group != URGENT and group in busy):
                    continue
                formed.append(self._form(channel, group, bucket, now))
        return formed

    def _form(self, channel: str, group: Group, bucket: _Bucket, now: float) -> Message:
        notes = sorted(bucket.notes.values(), key=lambda note: (note.over, -note.severity, note.since, note.device_id))
        bucket.notes = {}
        if group == URGENT:
            bucket.last = now
        for note in notes:
            del self._where[channel][note.key]
            held = self._held.get(note.key)
            if held is not None and held.note.alarm_id == note.alarm_id and channel not in held.told:
                held.told.append(channel)
                if note.over:
                    held.ended.append(channel)
        facts = [channel, *group, repr(now), *(f"{note.alarm_id}/{note.event}" for note in notes)]
        message_id = hashlib.sha256("\x1f".join(facts).encode()).hexdigest()[:16]
        message = Message(message_id, channel, group, notes, now, now)
        self._messages[channel][message_id] = message
        return message

    @staticmethod
    def _due(group: Group, bucket: _Bucket) -> float:
        wait, every = (0.0, URGENT_EVERY_S) if group == URGENT else (GATHER_S, WINDOW_S)
        return max(bucket.first_at + wait, -math.inf if bucket.last is None else bucket.last + every)

    def next_urgent(self, channel: str, now: float) -> Message | None:
        """The oldest critical message that was never tried. It waits for nothing that is under way."""
        return self._next(channel, now, lambda message: message.urgent and message.attempts == 0)

    def next_other(self, channel: str, now: float) -> Message | None:
        """The message to try when no other attempt than first critical ones is under way: critical before the rest."""
        return self._next(channel, now, lambda message: not message.urgent or message.attempts > 0)

    def _next(self, channel: str, now: float, fits: Callable[[Message], bool]) -> Message | None:
        ready = [
            message
            for message in self._messages[channel].values()
            if not message.under_way and message.due <= now and fits(message)
        ]
        return min(ready, key=lambda message: (not message.urgent, message.due, message.formed_at), default=None)

    def begin(self, message: Message) -> None:
        """An attempt starts."""
        message.under_way = True
        message.attempts += 1

    def accepted(self, message: Message, now: float) -> bool:
        """The channel took it. False where it was settled before (an attempt that had been given up on)."""
        if message.message_id not in self._messages[message.channel]:
            return False
        self._settle(message, now)
        return True

    def refused(self, message: Message, why: str, now: float) -> bool:
        """The attempt failed, or took too long. True: the message is a dead letter now; keep it, then go on."""
        if message.message_id not in self._messages[message.channel]:
            return False
        message.under_way = False
        message.last_error = why
        retry = self.plan.retry
        if message.attempts >= retry.attempts or now - message.formed_at >= retry.give_up_s:
            self._settle(message, now)
            return True
        message.due = now + retry.pause(message.attempts, self._chance())
        return False

    def _settle(self, message: Message, now: float | None) -> None:
        del self._messages[message.channel][message.message_id]
        # The window runs from the moment a message is done with. What was refused may have been received all the
        # same (the answer was lost), so it counts too.
        if not message.urgent and now is not None:
            self._buckets[message.channel].setdefault(message.group, _Bucket()).last = now

    # -- looking -----------------------------------------------------------------------------------------
    def waits_until(self) -> float:
        """When ``form`` or an attempt may next have something to do; infinity where nothing waits."""
        times = []
        for channel, buckets in self._buckets.items():
            busy = {message.group for message in self._messages[channel].values()} - {URGENT}
            times += [
                self._due(group, bucket) for group, bucket in buckets.items() if bucket.notes and group not in busy
            ]
        times += [message.due for message in self.messages() if not message.under_way]
        return min(times, default=math.inf)

    def messages(self) -> Iterator[Message]:
        """Every message that is neither accepted nor given up."""
        for messages in self._messages.values():
            yield from messages.values()

    def pending(self, channel: str) -> tuple[int, int]:
        """How many messages are to be delivered, and how many alarms wait for the next ones."""
        waiting = sum(len(bucket.notes) for bucket in self._buckets[channel].values())
        return len(self._messages[channel]), waiting

    def unsettled(self) -> dict[int, int]:
        """Partition -> lowest offset of ``smoke_alarms`` that some channel has not been told yet."""
        lowest: dict[int, int] = {}
        notes = [note for message in self.messages() for note in message.notes]
        notes += [
            note for buckets in self._buckets.values() for bucket in buckets.values() for note in bucket.notes.values()
        ]
        for note in notes:
            lowest[note.partition] = min(note.offset, lowest.get(note.partition, note.offset))
        return lowest

    # -- across a restart --------------------------------------------------------------------------------
    def snapshot(self, topic_id: str, positions: Mapping[int, int], now: float) -> bytes:
        """Everything that must survive, as JSON. What ended more than an hour ago is forgotten here."""
        gone = [
            key for key, held in self._held.items() if held.note.state is State.NORMAL and now - held.seen_at > FORGET_S
        ]
        for key in gone:
            del self._held[key]
        channels = {
            name: _ChannelState(list(self._buckets[name].items()), list(self._messages[name].values()))
            for name in self.plan.channels
        }
        return msgspec.json.encode(
            Snapshot(STATE_VERSION, topic_id, dict(positions), list(self._held.values()), channels)
        )

    def restore(self, snapshot: Snapshot, topic_id: str, now: float) -> list[Message]:
        """Goes on where a snapshot ends. Positions and alarms of another topic id are left aside, windows are kept.

        Returns:
            Messages of channels that the plan does not have any more: dead letters.
        """
        if snapshot.topic_id == topic_id:
            self._held = {held.note.key: held for held in snapshot.held}
        orphans: list[Message] = []
        for name, state in snapshot.channels.items():
            for message in state.messages:
                message.under_way = False
            if name in self.plan.channels:
                self._buckets[name] = dict(state.buckets)
                if URGENT in self._buckets[name]:
                    self._buckets[name][URGENT].last = None  # the restart has cost time; no fire waits longer for it
                self._messages[name] = {message.message_id: message for message in state.messages}
                self._where[name] = {
                    note.key: group for group, bucket in state.buckets for note in bucket.notes.values()
                }
                continue
            orphans += state.messages
            for group, bucket in state.buckets:
                if bucket.notes:
                    facts = "\x1f".join([name, *group, repr(now)])
                    message_id = hashlib.sha256(facts.encode()).hexdigest()[:16]
                    orphans.append(Message(message_id, name, group, list(bucket.notes.values()), now, now))
        for message in orphans:
            message.last_error = "the channel is no longer configured"
        return orphans


def decode_snapshot(value: bytes, place: str) -> Snapshot:
    """The snapshot that ``Post.snapshot`` wrote.

    Raises:
        SmokeError: naming ``place``.
    """
    remedy = "move it away: alarms that stand are then told again, and time windows begin anew"
    try:
        snapshot = _SNAPSHOTS.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SmokeError(f"{place} is not a state of the notifier: {error}", remedy) from None
    if snapshot.version != STATE_VERSION:
        raise SmokeError(f"{place} has version {snapshot.version}, this program writes {STATE_VERSION}", remedy)
    return snapshot


def _is_critical(note: Note) -> bool:
    return note.severity is Severity.CRITICAL


def _slot(key: Key) -> str:
    # A kind holds no slash, so the last one separates.
    return f"{key[0]}/{key[1]}"


# -- words -----------------------------------------------------------------------------------------------


def clean(text: str, longest: int = LONGEST_NAME) -> str:
    """``text`` as it may stand in a message: one line, printable, not too long, no mention and no link of its own.

    A device names itself, so its id may hold anything: line breaks, control characters, a chat's ``<!channel>``.
    """
    safe = "".join(
        _DISARMED.get(character, character)
        if unicodedata.category(character)[0] not in "CZ" or character == " "
        else "?"
        for character in text[: longest + 1]
    )
    return safe if len(safe) <= longest else safe[: longest - 1] + "…"


#: Chats read these as markup or as a call to everybody.
_DISARMED = {"<": "‹", ">": "›", "@": "＠", "`": "'", "*": "∗", "[": "(", "]": ")", "\\": "/"}  # noqa: RUF001 - look-alikes on purpose


@dataclass(frozen=True)
class Words:
    """How messages are written.

    Attributes:
        zone: the second of the two times.
        link: the console's page of alarms.
    """

    zone: ZoneInfo
    link: str

    def title(self, message: Message) -> str:
        """One line: the worst, how many, where."""
        live = [note for note in message.notes if not note.over or message.urgent]
        over = len(message.notes) - len(live)
        if not live:
            return f"Over: {_counted(over, 'alarm')}{self._where(message)}"
        if len(live) == 1:
            note = live[0]
            text = f"{_label(note)} {_kind(note)}: {clean(note.device_id)}{_place(note)}"
        elif message.urgent:
            text = f"CRITICAL: {len(live)} alarms ({_counts(_kind(note) for note in live)})"
        else:
            text = f"{len(live)} alarms ({_counts(_label(note) for note in live)}){self._where(message)}"
        return f"{text}; {over} over" if over else text

    def body(self, message: Message) -> str:
        """What a person needs who is woken by it; the first ``MOST_NAMED`` alarms by name."""
        notes = message.notes
        live = [note for note in notes if not note.over or message.urgent]
        lines = []
        if len(notes) > 1:
            if live:
                lines.append(
                    f"{_counted(len(live), 'alarm')}: {_counts(_label(note) for note in live)}; "
                    f"{_counts(_kind(note) for note in live)}"
                )
            if len(notes) > len(live):
                lines.append(f"Over: {_counted(len(notes) - len(live), 'alarm')}")
            lines.append("")
        for note in notes[:MOST_NAMED]:
            lines += self._about(note)
        if len(notes) > MOST_NAMED:
            lines.append(f"and {len(notes) - MOST_NAMED} more, not named here")
        lines += ["", f"All alarms: {self.link}", f"Message {message.message_id}"]
        return "\n".join(lines)

    def _about(self, note: Note) -> list[str]:
        what = "over" if note.over else str(note.event)
        times = f", {note.times} changes" if note.times > 1 else ""
        found = [f"rules {', '.join(clean(rule) for rule in note.rules)}"] if note.rules else []
        if note.score is not None:
            limit = "" if note.threshold is None else f" (threshold {note.threshold:.2f})"
            found.append(f"score {note.score:.2f}{limit}")
        return [
            f"{_label(note)} {_kind(note)}: {clean(note.device_id)}{_place(note)}",
            f"  {what}{times}; since {self._time(note.since)}",
            f"  {'; '.join([*found, f'alarm {note.alarm_id}'])}",
        ]

    def _time(self, at: float) -> str:
        try:
            moment = datetime.fromtimestamp(at, UTC)
        except (ValueError, OverflowError, OSError):
            return "an unknown time"
        text = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
        return text if self.zone.key == "UTC" else f"{text} ({moment.astimezone(self.zone):%H:%M:%S} {self.zone.key})"

    @staticmethod
    def _where(message: Message) -> str:
        sites = {note.site for note in message.notes}
        if len(sites) != 1:
            return f" at {len(sites)} sites"
        (site,) = sites
        return f" at {clean(site)}" if site else ""


def _label(note: Note) -> str:
    return note.severity.label.upper()


def _kind(note: Note) -> str:
    return note.kind.replace("_", " ")


def _place(note: Note) -> str:
    parts = [f"{name} {clean(value)}" for name, value in (("site", note.site), ("room", note.room)) if value]
    return f" ({', '.join(parts)})" if parts else ""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())
