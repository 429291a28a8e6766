"""Alarms and commands in words, and commands out of what a person typed. Pure.

Belongs here: the same sentences for the command line, the API and the console; the checks of a command before it is
sent. Does not: whether a command makes sense in an alarm's state (the detector decides, ``domain.alarm_machine``),
notifications (``domain.notifications``).
"""

from __future__ import annotations

import math
import re
import unicodedata
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from smoke_platform.domain.alarms import AlarmCommand, AlarmRecord, Event, Kind, State, Verb, Verdict
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.rules import FAULTS, RULES

LONGEST_NAME = 200
LONGEST_REASON = 1_000
#: A snooze or shelf is at most this long: what is set aside for longer is to be disabled, which shows as such.
LONGEST_S = 90 * 86_400.0

#: Rule -> what it means. A fault's name says more than its meaning: which sensor.
_MEANINGS: Final[Mapping[str, str]] = {
    **{rule.name: f"{rule.name}: {rule.meaning}" for rule in RULES},
    **{fault.name: f"{fault.family.replace('_', ' ')} {fault.sensor}".strip() for fault in FAULTS},
    "data_quality": "",
    "silent": "",
    "silent_group": "",
}
_OF_A_KIND: Final[Mapping[Kind, str]] = {
    Kind.FIRE: "signs of a fire",
    Kind.SENSOR_FAULT: "a sensor does not work as it should",
    Kind.OFFLINE: "the device has stopped to report",
    Kind.DATA_QUALITY: "too little of what it sends can be used",
    Kind.PIPELINE: "more than half of the devices here fell silent at once",
}
_NEEDS_REASON = frozenset({Verb.SHELVE, Verb.DISABLE, Verb.SNOOZE, Verb.VERDICT, Verb.COMMENT})
_NEEDS_UNTIL = frozenset({Verb.SHELVE, Verb.SNOOZE})
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_MOST_MEANINGS = 4


def why(record: AlarmRecord) -> str:
    """What led to the alarm, in one line: rules in words, then the model's score."""
    evidence = record.evidence
    names = [name for name in evidence.rules if name != "model"]
    parts = [words for name in names[:_MOST_MEANINGS] if (words := _MEANINGS.get(name, printable(name)))]
    if len(names) > _MOST_MEANINGS:
        parts.append(f"{len(names)} rules in all")
    if evidence.score is not None and record.kind is Kind.FIRE:
        limit = "" if evidence.threshold is None else f", threshold {evidence.threshold:.2f}"
        parts.append(f"model {evidence.score:.2f}{limit}")
    return "; ".join(parts) or (_OF_A_KIND[record.kind] if record.alarm_id else "")


def kind_words(kind: Kind) -> str:
    return kind.value.replace("_", " ")


def place(record: AlarmRecord) -> str:
    """Site and room as far as known."""
    return " / ".join(part for part in (record.site, record.room) if part)


def state_words(record: AlarmRecord) -> str:
    """The state, and until when where it ends by itself."""
    if record.until is not None and record.state in (State.SNOOZED, State.SHELVED):
        return f"{record.state.value} until {moment(record.until)}"
    seen = record.acknowledged and record.state not in (State.ACKNOWLEDGED, State.NORMAL)
    return f"{record.state.value}, acknowledged" if seen else record.state.value


def event_words(record: AlarmRecord) -> str:
    """What happened, by whom and why."""
    verdict = record.verdict if record.event is Event.VERDICT else None
    what = record.event.value if verdict is None else f"verdict {verdict.value.replace('_', ' ')}"
    by = f" by {printable(record.by)}" if record.by else ""
    reason = f": {printable(record.reason, LONGEST_REASON)}" if record.reason else ""
    return f"{what}{by}{reason}"


def outcome(record: AlarmRecord, verb: Verb) -> str:
    """What the detector answered to a command, in a sentence."""
    name = f"{kind_words(record.kind)} alarm of {printable(record.device_id)}"
    if record.event is Event.REFUSED:
        return f"refused for the {name}: {printable(record.reason, LONGEST_REASON)}"
    done = {Verb.VERDICT: "the verdict is noted", Verb.COMMENT: "the comment is noted"}.get(verb)
    if done is not None:
        return f"{done}; the {name} is {state_words(record)}"
    return f"done: the {name} is now {'over' if record.state is State.NORMAL else state_words(record)}"


def moment(epoch_s: float | None) -> str:
    """A time as people read it, UTC."""
    at = as_time(epoch_s)
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}Z"


def as_time(epoch_s: float | None) -> datetime | None:
    """A time as a program reads it; ``None`` for what is no time, since a message may hold any number."""
    if epoch_s is None:
        return None
    try:
        return datetime.fromtimestamp(epoch_s, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def age(seconds: float) -> str:
    """
    >>> age(75), age(7200), age(200_000)
    ('75 s', '2 h', '2 d')
    """
    for unit, size, up_to in (("s", 1, 90), ("min", 60, 5_400), ("h", 3_600, 172_800)):
        if seconds < up_to:
            return f"{max(0, round(seconds / size))} {unit}"
    return f"{round(seconds / 86_400)} d"


def printable(text: str, longest: int = LONGEST_NAME) -> str:
    """``text`` in one line without control characters: a device names itself, and a terminal obeys what it is sent."""
    safe = "".join(
        character if character == " " or unicodedata.category(character)[0] not in "CZ" else "?"
        for character in text[: longest + 1]
    )
    return safe if len(safe) <= longest else safe[: longest - 1] + "…"


# -- commands ------------------------------------------------------------------------------------------------


def duration(text: str) -> float:
    """Seconds of ``30m``, ``8h``, ``1h30m``, ``2d``, ``45s``.

    >>> duration("1h30m")
    5400.0

    Raises:
        SmokeError: for anything else, and for nothing at all.
    """
    found = _DURATION.fullmatch(text.strip().lower()) if text.isascii() else None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    total = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if total <= 0:
        raise SmokeError(f"for: {printable(text)!r} is no duration", "write it as 30m, 8h, 1h30m or 2d")
    return total


def make_command(
    verb: Verb,
    device_id: str,
    kind: Kind,
    *,
    by: str,
    now: float,
    reason: str = "",
    until: float | None = None,
    verdict: Verdict | None = None,
    alarm_id: str = "",
) -> AlarmCommand:
    """A command with an id of its own.

    Args:
        now: epoch seconds.

    Raises:
        SmokeError: naming what is missing or too long.
    """
    by, reason = by.strip(), reason.strip()
    if not by:
        raise SmokeError("by: nobody is named", "say who asks: the audit trail has to")
    if len(by) > LONGEST_NAME or len(reason) > LONGEST_REASON:
        field, longest = ("by", LONGEST_NAME) if len(by) > LONGEST_NAME else ("reason", LONGEST_REASON)
        raise SmokeError(f"{field}: longer than {longest} characters", "shorten it")
    try:
        f"{by}{reason}{device_id}".encode()
    except UnicodeEncodeError:
        raise SmokeError("by, reason or device: holds what is no character", "write it in UTF-8") from None
    if not device_id:
        raise SmokeError("device: none is named", "`smoke alarms list` shows the alarms there are")
    if verb in _NEEDS_REASON and not reason:
        raise SmokeError(f"reason: to {verb.value} needs one", "say why: who comes after you has to know")
    if verb in _NEEDS_UNTIL:
        if until is None:
            raise SmokeError(f"until: to {verb.value} needs an end", "say for how long")
        if not math.isfinite(until) or not now < until <= now + LONGEST_S:
            raise SmokeError(
                "until: the end must lie in the future, at most 90 days from now",
                "to take an alarm out of service for good, disable it",
            )
    elif until is not None:
        raise SmokeError(f"until: to {verb.value} has no end", "leave it out")
    if (verb is Verb.VERDICT) != (verdict is not None):
        raise SmokeError(
            "verdict: " + ("missing" if verb is Verb.VERDICT else f"does not belong to {verb.value}"),
            "a verdict is one of " + ", ".join(each.value for each in Verdict),
        )
    return AlarmCommand(
        command_id=uuid.uuid4().hex,
        verb=verb,
        device_id=device_id,
        kind=kind,
        by=by,
        at=now,
        reason=reason,
        alarm_id=alarm_id,
        until=until,
        verdict=verdict,
    )
