"""The vocabulary of alarms and how an alarm travels: kinds, severities, states, events, records, commands.

Belongs here: the closed lists, the record and the command as messages, an alarm's identity, which of two records is
newer. Does not: when an alarm changes (``domain.alarm_machine``), what makes one (``domain.rules``), where the messages
go (``adapters``, ``streaming``).

A record says all that is known of one alarm after one event, so that the latest of a (device, kind) is the whole truth
and the records in their order are the audit trail.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum, StrEnum
from typing import Any

import msgspec

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.offsets import MessageId

RECORD_VERSION = 1


class Kind(StrEnum):
    """What an alarm is about. A device has at most one live alarm of each kind."""

    FIRE = "fire"
    SENSOR_FAULT = "sensor_fault"
    OFFLINE = "offline"
    DATA_QUALITY = "data_quality"
    #: Not of a device: more than half of a partition or site fell silent at once. Its ``device_id`` names which,
    #: as ``pipeline:<site>`` or ``pipeline:partition-<n>``.
    PIPELINE = "pipeline"


class Severity(IntEnum):
    """How bad it is; greater is worse. Messages carry the name in lower case."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4

    @property
    def label(self) -> str:
        return self.name.lower()

    @classmethod
    def of(cls, label: str) -> Severity:
        """The severity of that name.

        Raises:
            SmokeError: for any other, listing the legal ones.
        """
        try:
            return cls[label.upper()]
        except KeyError:
            legal = ", ".join(severity.label for severity in cls)
            raise SmokeError(f"unknown severity {label!r}", f"use one of {legal}") from None


class State(StrEnum):
    """Where an alarm is in its life; ``docs/alarms.md`` draws the machine."""

    #: No alarm.
    NORMAL = "normal"
    #: Raised, nobody has acknowledged it, its condition holds.
    ACTIVE = "active"
    #: Somebody has seen it, its condition holds.
    ACKNOWLEDGED = "acknowledged"
    #: Its condition is over, nobody has acknowledged it.
    CLEARED = "cleared"
    #: Its condition is over, but an alarm of this kind stays until it is reset by hand.
    LATCHED = "latched"
    #: Silent until a time, unless it becomes worse.
    SNOOZED = "snoozed"
    #: Taken out of service until a time, with a reason.
    SHELVED = "shelved"
    #: Taken out of service until it is enabled again, with a reason.
    DISABLED = "disabled"


#: States in which somebody should look: the alarm is neither over nor set aside.
LIVE = frozenset({State.ACTIVE, State.ACKNOWLEDGED, State.CLEARED, State.LATCHED, State.SNOOZED})


class Event(StrEnum):
    """What happened to an alarm; each is one record."""

    RAISED = "raised"
    ESCALATED = "escalated"  # its severity rose
    REPEATED = "repeated"  # nobody has acknowledged it for a while
    ACKNOWLEDGED = "acknowledged"
    CLEARED = "cleared"
    LATCHED = "latched"
    RETURNED = "returned"  # the condition is back before the alarm was closed
    RESET = "reset"
    SNOOZED = "snoozed"
    WOKEN = "woken"
    SHELVED = "shelved"
    UNSHELVED = "unshelved"
    DISABLED = "disabled"
    ENABLED = "enabled"
    CLOSED = "closed"  # over, and nobody needs to look any more
    VERDICT = "verdict"  # an operator says whether it was a true alarm
    COMMENTED = "commented"
    REFUSED = "refused"  # a command that made no sense in this state; kept, for the audit


class Verb(StrEnum):
    """What an operator can ask for."""

    ACKNOWLEDGE = "acknowledge"
    RESET = "reset"
    SNOOZE = "snooze"
    WAKE = "wake"
    SHELVE = "shelve"
    UNSHELVE = "unshelve"
    DISABLE = "disable"
    ENABLE = "enable"
    VERDICT = "verdict"
    COMMENT = "comment"


class Verdict(StrEnum):
    """What an operator found: the label from which models are judged later."""

    TRUE_ALARM = "true_alarm"
    FALSE_ALARM = "false_alarm"
    TEST = "test"
    UNKNOWN = "unknown"


class Evidence(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """What led to an alarm.

    Attributes:
        rules: names of the rules that hit (``domain.rules``), the model's among them as ``model``.
        first_offset, last_offset: the readings of this device that it rests on, in the causing partition.
        score: the model's fire probability of the last of them; ``None`` without a model.
        threshold: the model's own threshold.
        model_version, feature_version: what scored.
        values: sensor -> value of the last reading, as far as measured.
    """

    rules: tuple[str, ...] = ()
    first_offset: int = -1
    last_offset: int = -1
    score: float | None = None
    threshold: float | None = None
    model_version: str | None = None
    feature_version: str = ""
    values: dict[str, float] = msgspec.field(default_factory=dict)


class AlarmRecord(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """One alarm after one event: a message of ``smoke_alarms``, and a row of ``lake/alarms``.

    Times are epoch seconds, UTC. Offsets are those of the readings' topic unless said otherwise.

    Attributes:
        device_id, kind: whose alarm; together the message's key.
        alarm_id: the same however often the readings are replayed; that of the last alarm where it is over; empty where
            there is none (a device that is shelved while all is well).
        event, state, severity: what happened, and what is the case after it. ``severity`` is the name in lower case;
            ``low`` where there is no alarm.
        revision: counts the records of this (device, kind) from 1.
        topic_id, partition: of the readings.
        cause: offset of the reading that raised the alarm, -1 where there is no alarm.
        position: offset of the newest reading of the partition that had been taken when this happened. A restored
            detector does not repeat what stands at or below it.
        command_offset: of the newest command on this (device, kind), in ``smoke_alarm_commands``; -1 for none.
        acknowledged: whether somebody has seen this alarm, whatever its state is now.
        event_time: the device's clock when it happened; ``None`` where no reading led to it.
        at: the broker's clock (append time) of the reading or command that led to it, or the detector's where time
            itself did.
        raised_event_time, raised_at: the same two of the raising.
        peak: worst severity so far.
        repeats: how often it was repeated since it was raised, acknowledged or escalated.
        until: when a snooze or shelf ends; ``None`` where there is none.
        by, reason: who asked for it and why, as the command says; empty where nobody did.
        command_id: of that command.
        verdict: the operator's latest, if any.
        site, room: from the device registry.
        holds: whether the condition is taken to hold, its off-delay included; followed while shelved or disabled too.
    """

    device_id: str
    kind: Kind
    alarm_id: str
    event: Event
    state: State
    severity: str
    revision: int
    topic_id: str
    partition: int
    cause: int
    position: int
    at: float
    command_offset: int = -1
    acknowledged: bool = False
    event_time: float | None = None
    raised_event_time: float | None = None
    raised_at: float | None = None
    peak: str = ""
    repeats: int = 0
    until: float | None = None
    by: str = ""
    reason: str = ""
    command_id: str = ""
    verdict: Verdict | None = None
    site: str = ""
    room: str = ""
    evidence: Evidence = Evidence()
    holds: bool = False
    version: int = RECORD_VERSION

    @property
    def order(self) -> tuple[int, int]:
        """Of two records of one (device, kind) on the same topic id the one with the greater order is newer.

        A detector that was paused and has lost its partition may still write: what it writes rests on an older
        position.
        """
        return self.position, self.revision


class AlarmCommand(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """What an operator asks for: a message of ``smoke_alarm_commands``, keyed by device.

    Attributes:
        command_id: unique; the same one twice is carried out once.
        verb: what to do.
        device_id, kind: to whose alarm.
        by: who asks. Required.
        reason: why. Required to shelve, disable and snooze, for a verdict and a comment.
        alarm_id: if given, only this alarm is meant, and the command is refused where another one is live.
        until: end of a snooze or shelf, epoch seconds. Required for these two.
        verdict: required for a verdict.
        at: the sender's clock, epoch seconds.
    """

    command_id: str
    verb: Verb
    device_id: str
    kind: Kind
    by: str
    at: float
    reason: str = ""
    alarm_id: str = ""
    until: float | None = None
    verdict: Verdict | None = None
    version: int = RECORD_VERSION


def alarm_id(device_id: str, kind: Kind, cause: MessageId) -> str:
    """An alarm's identity: the first 20 hex digits of a SHA-256 over device, kind and the causing message.

    >>> alarm_id("kitchen-1", Kind.FIRE, MessageId("Zt3", 0, 17))
    '1ca4cd48cb4e2fec2daf'
    """
    return hashlib.sha256("\x1f".join((device_id, kind, str(cause))).encode()).hexdigest()[:20]


def alarm_key(device_id: str, kind: Kind) -> bytes:
    """The key of a record in the compacted topic. A kind holds no slash, so the last one separates."""
    return f"{device_id}/{kind}".encode()


_RECORDS = msgspec.json.Decoder(AlarmRecord)
_COMMANDS = msgspec.json.Decoder(AlarmCommand)
_ENCODER = msgspec.json.Encoder()


def encode(message: AlarmRecord | AlarmCommand) -> bytes:
    """The message as it travels: JSON, what is at its default left out."""
    return _ENCODER.encode(message)


def decode_record(value: bytes) -> AlarmRecord:
    """The record that ``encode`` wrote.

    Raises:
        SmokeError: naming the field at fault.
    """
    return _decode(_RECORDS, value, "alarm record")  # type: ignore[no-any-return] # the decoder's own type


def decode_command(value: bytes) -> AlarmCommand:
    """The command that ``encode`` wrote.

    Raises:
        SmokeError: naming the field at fault.
    """
    return _decode(_COMMANDS, value, "alarm command")  # type: ignore[no-any-return] # the decoder's own type


def _decode(decoder: msgspec.json.Decoder[Any], value: bytes, what: str) -> Any:
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SmokeError(f"not a valid {what}: {error}", "see docs/alarms.md for the message's fields") from None
