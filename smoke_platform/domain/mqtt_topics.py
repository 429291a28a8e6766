"""MQTT's side of a reading: from topic and payload to messages of the readings' topic in Kafka.

Belongs here: patterns of topics with a place for the device's id, what is put into a payload. Does not: talking MQTT
(``adapters.mqtt``), the loop (``streaming.mqtt_bridge``), whether a message is a reading (``domain.readings``, which
landing asks).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import Source

PLACE = "{device_id}"
#: Longest topic of MQTT, bytes of UTF-8 (MQTT 5, section 1.5.4).
LONGEST_TOPIC = 65_535
#: As a payload's device id where topic and payload name two. It is no text, so that landing rejects the message, and
#: the dead letter shows both.
TOPIC_SAYS, PAYLOAD_SAYS = "topic", "payload"


@dataclass(frozen=True, slots=True)
class TopicPattern:
    """A topic filter in which one level may be ``{device_id}``.

    Attributes:
        text: as it was written.
        filter: what is subscribed to; the device's level is a ``+`` in it.
    """

    text: str
    filter: str
    _levels: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> TopicPattern:
        """The pattern that a text says.

        Raises:
            SmokeError: for a text that is no topic filter, or in which ``{device_id}`` is not one whole level.

        >>> TopicPattern.parse("site/+/{device_id}/#").filter
        'site/+/+/#'
        """
        levels = tuple(text.split("/"))
        complaint = _complaint(text, levels)
        if complaint:
            raise SmokeError(
                f"SMOKE_MQTT_TOPICS: {text!r}: {complaint}", f"write it such as sensors/{PLACE}/readings or site/+/#"
            )
        return cls(text, text.replace(PLACE, "+"), levels)

    def matches(self, topic: str) -> bool:
        """Whether the broker delivers messages of this topic for the pattern's filter (MQTT 5, section 4.7)."""
        levels = topic.split("/")
        if topic.startswith("$") and self._levels[0] in ("+", "#", PLACE):
            return False  # topics of the broker itself
        for place, wanted in enumerate(self._levels):
            if wanted == "#":
                return True  # it stands for its parent as well, and for everything below
            if place >= len(levels):
                return False
            if wanted not in ("+", PLACE, levels[place]):
                return False
        # "a/#" is also delivered for "a": the loop above ran out of topic only where "#" was next.
        return len(levels) == len(self._levels)

    def device_of(self, topic: str) -> str | None:
        """The device's id in a topic that matches; ``None`` where it has no place or the level is empty."""
        if PLACE not in self._levels:
            return None
        return topic.split("/")[self._levels.index(PLACE)] or None


def _complaint(text: str, levels: tuple[str, ...]) -> str:
    if not text or "\0" in text or len(text.encode("utf-8", "surrogatepass")) > LONGEST_TOPIC:
        return f"a topic has 1 to {LONGEST_TOPIC} bytes and no zero character"
    if text.startswith("$share/"):
        return "shared subscriptions are not used, because a session belongs to one bridge"
    if text.count(PLACE) > 1:
        return f"{PLACE} stands in it more than once"
    complaints = (_level_complaint(level, place == len(levels) - 1) for place, level in enumerate(levels))
    return next(filter(None, complaints), "")


def _level_complaint(level: str, last: bool) -> str:
    if PLACE in level and level != PLACE:
        return f"{PLACE} must be a whole level, between two slashes"
    if level != PLACE and ("{" in level or "}" in level):
        return f"the only name in braces is {PLACE}"
    if "#" in level and (level != "#" or not last):
        return "# must be the whole last level"
    if "+" in level and level != "+":
        return "+ must be a whole level"
    return ""


def parse_patterns(text: str) -> tuple[TopicPattern, ...]:
    """Several patterns with commas in between.

    Raises:
        SmokeError: where one is none.
    """
    return tuple(TopicPattern.parse(part.strip()) for part in text.split(","))


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message for the readings' topic: its key (the device's id, ``None`` where nobody names one) and its bytes."""

    key: str | None
    value: bytes
    mismatch: bool = False


def outgoing(device: str | None, payload: bytes) -> Iterator[Outgoing]:
    """The messages that one MQTT message stands for: one, or one for each element of a JSON array.

    - An object gets the topic's ``device_id`` where it has none, and the source ``mqtt`` where it has none or says
      ``device``; other sources (a simulator that publishes) stay, because training must tell them from real devices.
    - An object that names another device than its topic gets a ``device_id`` that landing rejects. Either of the two
      may be the wrong one, and a reading that counts for the wrong room is worse than one in the dead letters.
    - Everything else goes as it is, for landing to judge.

    Args:
        device: the id in the topic, if any.
    """
    try:
        message = json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict):
        yield _object(device, message)
    elif isinstance(message, list) and message:
        for element in message:
            if isinstance(element, dict):
                yield _object(device, element)
            else:
                yield Outgoing(device, _dump(element))
    else:
        yield Outgoing(device, payload)


def _object(device: str | None, message: dict[str, Any]) -> Outgoing:
    own = message.get("device_id")
    mismatch = device is not None and own not in (None, "", device)
    if mismatch:
        message["device_id"] = {TOPIC_SAYS: device, PAYLOAD_SAYS: own}
    elif device is not None:
        message["device_id"] = device
    if message.get("source") in (None, Source.DEVICE.value):
        message["source"] = Source.MQTT.value
    key = device if device is not None else own if isinstance(own, str) and own else None
    return Outgoing(key, _dump(message), mismatch)


def _dump(message: Any) -> bytes:
    # Escapes keep lone surrogates, which JSON may hold and UTF-8 may not; NaN stays what it was.
    return json.dumps(message, separators=(",", ":")).encode()
