"""Dead letters as people handle them: the facts of one, the reasons in words, corrections of the original message.

Belongs here: reading the headers that ``domain.landing.letter_headers`` writes, what each reason means and what helps,
changing fields of a JSON message. Does not: why a message is rejected (``domain.readings``), finding letters and
replaying them (``adapters.dead_letters``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.readings import CANONICAL_NAME, ReadingRejected, RejectReason, parse_reading

#: Of a letter whose headers name no reason, which no program of this platform writes.
UNKNOWN = "unknown"

#: Reason -> (what it means, what helps).
REMEDIES: Mapping[str, tuple[str, str]] = {
    RejectReason.NOT_JSON: (
        "The message is no JSON text in UTF-8, or holds more than one value.",
        "Mend the sender. Such bytes cannot be corrected field by field, so they stay here until they expire.",
    ),
    RejectReason.SCHEMA_VERSION: (
        "The message says that it follows another version of the schema.",
        "Update the platform to one that reads it, then replay; if the version alone is wrong: --set schema_version=1.",
    ),
    RejectReason.MISSING_FIELD: (
        "A field that every reading needs is not there.",
        "Replay with the field: --set NAME=VALUE.",
    ),
    RejectReason.WRONG_TYPE: (
        "A field has another type or form than a reading's, or is given twice with different values.",
        "Replay with a right value (--set NAME=VALUE), or without the field if it is optional (--drop NAME).",
    ),
    RejectReason.NOT_FINITE: (
        "A number is NaN or infinite: the sensor measured nothing.",
        "Replay without the field: --drop NAME.",
    ),
    RejectReason.OUT_OF_RANGE: (
        "A number lies outside what is physically possible.",
        "Replay without the field (--drop NAME), or with the true value if you know it (--set NAME=VALUE).",
    ),
    RejectReason.TIMESTAMP: (
        "The event time is before 2000, or was in the future when the message arrived.",
        "A time that has come by now can be replayed as it is; else set the true one: --set event_time=...Z.",
    ),
}
_OTHER = ("The letter names a reason that this version does not know.", "Look at its bytes and its detail.")


def explained(reason: str) -> tuple[str, str]:
    """What a reason means, and what helps."""
    return REMEDIES.get(reason, _OTHER)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One letter as it stands in the topic.

    Attributes:
        identity: of the message that it is about (of the first one, where that message was a replay); ``None`` where
            the headers name none, which no program of this platform writes.
        reason, field, detail, topic: as landing wrote them; empty where they are missing.
        append_time: when the broker appended the message that was judged; the letter's own where that is not known.
        key: of the message, usually the device's id.
        replayed_as: the message that was judged, where it is a replay that failed again.
        value: the message's bytes.
        partition, offset: of the letter in its own topic.
    """

    identity: MessageId | None
    reason: str
    field: str
    detail: str
    topic: str
    append_time: datetime
    key: bytes | None
    replayed_as: MessageId | None
    value: bytes | None
    partition: int
    offset: int

    @property
    def device(self) -> str:
        """The message's key as text, empty where it had none."""
        return "" if self.key is None else self.key.decode("utf-8", "replace")


def read_letter(
    headers: Iterable[tuple[str, Any]] | None,
    value: bytes | None,
    *,
    partition: int,
    offset: int,
    appended_ms: int,
) -> DeadLetter:
    """The letter that these headers and bytes are.

    Args:
        appended_ms: the letter's own append time, milliseconds since 1970; negative where it is not known.
    """
    raw = {name: found for name, found in headers or () if isinstance(found, bytes)}
    texts = {name: found.decode("utf-8", "replace") for name, found in raw.items()}
    identity = MessageId.parse("/".join(texts.get(name, "") for name in ("topic_id", "partition", "offset")))
    return DeadLetter(
        identity=identity,
        reason=texts.get("reason", UNKNOWN),
        field=texts.get("field", ""),
        detail=texts.get("detail", ""),
        topic=texts.get("topic", ""),
        append_time=_moment(texts.get("append_time"), appended_ms),
        key=raw.get("key"),
        replayed_as=MessageId.parse(texts.get("replayed_as", "")),
        value=value,
        partition=partition,
        offset=offset,
    )


def _moment(text: str | None, fallback_ms: int) -> datetime:
    if text is not None:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            pass  # not ours; the letter's own time is as good as it gets
        else:
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return datetime.fromtimestamp(max(0, fallback_ms) / 1000, UTC)


# -- corrections -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Correction:
    """What to change in a message before it is sent again.

    Attributes:
        sets: field -> new value. It replaces the field under whatever name it was sent.
        drops: fields to leave out.
    """

    sets: Mapping[str, Any]
    drops: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.sets or self.drops)


def parse_correction(sets: Sequence[str], drops: Sequence[str]) -> Correction:
    """The correction that ``--set NAME=VALUE`` and ``--drop NAME`` ask for.

    A value is read as JSON where it is some, else as text: ``21.5`` is a number, ``hall-1`` a text, ``'"7"'`` one too.

    Raises:
        SmokeError: for a name that is not a reading's, no equals sign, or a field both set and dropped.

    >>> parse_correction(["temperature_c=21.5", "device_id=hall-1"], ["PM2.5"])
    Correction(sets={'temperature_c': 21.5, 'device_id': 'hall-1'}, drops=frozenset({'pm2_5'}))
    """
    changes: dict[str, Any] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise SmokeError(f"--set {text}: there is no equals sign", "write --set NAME=VALUE")
        changes[_field(name.strip(), "--set")] = _value(value)
    dropped = frozenset(_field(name.strip(), "--drop") for name in drops)
    if both := sorted(dropped & set(changes)):
        raise SmokeError(f"{', '.join(both)}: both set and dropped", "name a field in one of --set and --drop")
    return Correction(changes, dropped)


def _field(name: str, option: str) -> str:
    if name not in CANONICAL_NAME:
        known = ", ".join(dict.fromkeys(CANONICAL_NAME.values()))
        raise SmokeError(f"{option} {name!r}: a reading has no such field", f"it has {known}")
    return CANONICAL_NAME[name]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def corrected(value: bytes | None, correction: Correction) -> bytes | None:
    """The message with its correction; byte for byte as it was where there is none.

    Raises:
        SmokeError: where the message is no JSON object, so that it has no fields.
    """
    if not correction:
        return value
    message = json_object(value)
    if message is None:
        raise SmokeError(
            "the message is no JSON object, so that --set and --drop find no fields in it",
            "replay it without them, or send the reading anew with `smoke produce stdin`",
        )
    gone = correction.drops | set(correction.sets)
    kept = {name: found for name, found in message.items() if CANONICAL_NAME.get(name) not in gone}
    # NaN is written as it came where nobody corrected it; landing then rejects it once more.
    return json.dumps({**kept, **correction.sets}, separators=(",", ":")).encode()


def json_object(value: bytes | None) -> dict[str, Any] | None:
    """The message's fields under the names it has them, ``None`` where it is no JSON object."""
    if value is None:
        return None
    try:
        message = json.loads(value.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def rejected_again(value: bytes | None, now: datetime) -> ReadingRejected | None:
    """Why landing would reject these bytes once more if they were sent now, ``None`` where it would take them."""
    try:
        parse_reading(value, append_time=now)
    except ReadingRejected as reject:
        return reject
    return None


# -- showing ---------------------------------------------------------------------------------------------


def printable(value: bytes | None, most: int = 4096) -> str:
    """The bytes as text where they are printable UTF-8, else as a hex dump; the first ``most`` bytes of them."""
    if value is None:
        return "(no value)"
    if not value:
        return "(empty)"
    shown = value[:most]
    rest = f"\n... {len(value) - most:,} bytes more" if len(value) > most else ""
    try:
        # A cut in the middle of a character is the cut's fault, not the message's.
        text = shown.decode("utf-8") if len(value) <= most else value.decode("utf-8")[:most]
    except UnicodeDecodeError:
        return hex_dump(shown) + rest
    if all(char.isprintable() or char in "\n\t" for char in text):
        return text + rest
    return hex_dump(shown) + rest


def hex_dump(value: bytes) -> str:
    """Offset, sixteen bytes and their ASCII characters a line.

    >>> hex_dump(bytes(range(60, 70)))
    '00000000  3c 3d 3e 3f 40 41 42 43  44 45                    |<=>?@ABCDE|'
    """
    lines = []
    for start in range(0, len(value), 16):
        part = value[start : start + 16]
        halves = "  ".join(" ".join(f"{byte:02x}" for byte in half).ljust(23) for half in (part[:8], part[8:]))
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:08x}  {halves}  |{text}|")
    return "\n".join(lines)
