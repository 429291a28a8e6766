"""MQTT's topics and payloads as messages for Kafka, and the order in which they are acknowledged."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from smoke_platform.adapters.mqtt import Address, parse_url
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.mqtt_topics import PLACE, Outgoing, TopicPattern, outgoing, parse_patterns
from smoke_platform.domain.readings import ReadingRejected, Source, parse_reading
from smoke_platform.settings import Settings
from smoke_platform.streaming.mqtt_bridge import Ledger

NOW = datetime(2026, 5, 1, tzinfo=UTC)
GOOD = {"event_time": "2022-06-09T00:00:00Z", "raw_h2": 1.0}

level = st.sampled_from(["", "a", "b", "$sys", "hall 1", "ä"])
pattern_level = st.one_of(level, st.just("+"))
topics = st.lists(level, min_size=1, max_size=5).map("/".join).filter(bool)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    levels = draw(st.lists(pattern_level, min_size=1, max_size=4))
    if draw(st.booleans()):
        levels[draw(st.integers(0, len(levels) - 1))] = PLACE
    if draw(st.booleans()):
        levels.append("#")
    return "/".join(levels) or "x"


# -- topics ----------------------------------------------------------------------------------------------


@given(patterns(), topics)
def test_a_pattern_matches_what_its_filter_subscribes_to(text: str, topic: str) -> None:
    """A message that the broker delivers and no pattern matches would lose its device."""
    pattern = TopicPattern.parse(text)
    assert PLACE not in pattern.filter
    assert pattern.matches(topic) == topic_matches_sub(pattern.filter, topic)


@given(patterns(), topics)
def test_the_device_is_the_level_of_its_place(text: str, topic: str) -> None:
    """A reading of the wrong device rings in the wrong room."""
    pattern = TopicPattern.parse(text)
    if not pattern.matches(topic):
        return
    expression = "/".join(
        "(?P<id>[^/]*)" if each == PLACE else "[^/]*" if each == "+" else re.escape(each)
        for each in text.removesuffix("#").rstrip("/").split("/")
    )
    found = re.match(expression, topic)
    if PLACE not in text:
        assert pattern.device_of(topic) is None
    elif not text.startswith(("/", "#")) and found is not None and "//" not in text + topic:
        assert pattern.device_of(topic) == (found["id"] or None)


@given(st.text(st.sampled_from("ab/+#{}$device_id"), max_size=12))
def test_any_text_is_a_pattern_or_is_refused_by_name(text: str) -> None:
    """A mistyped setting must end in a message, never in a subscription that the broker cuts off."""
    complaint, subscribed = "", ""
    try:
        subscribed = TopicPattern.parse(text).filter
    except SmokeError as error:
        complaint = error.message
    assert "SMOKE_MQTT_TOPICS" in complaint if not subscribed else not complaint
    assert "{" not in subscribed
    assert all(each in ("+", "#") or not set(each) & set("+#") for each in subscribed.split("/"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "1 to 65535"),
        ("a/#/b", "last level"),
        ("a/b#", "last level"),
        ("a/b+", "whole level"),
        ("dev-{device_id}", "whole level"),
        ("{device_id}/{device_id}", "more than once"),
        ("{device}/x", "only name"),
        ("$share/g/x", "shared"),
        ("a\0", "zero character"),
    ],
)
def test_what_is_wrong_with_a_pattern_is_said(text: str, complaint: str) -> None:
    """Nobody guesses it from a broker's silence."""
    with pytest.raises(SmokeError, match=complaint):
        TopicPattern.parse(text)


def test_several_patterns_and_the_default() -> None:
    """Sites with two generations of devices have two patterns; the default must be one."""
    first, second = parse_patterns("sensors/{device_id}/readings, old/+/#")
    assert first.device_of("sensors/hall-1/readings") == "hall-1"
    assert second.matches("old/x")
    assert parse_patterns(Settings().mqtt_topics)[0].filter == "sensors/+/readings"


# -- payloads --------------------------------------------------------------------------------------------


def only(device: str | None, payload: bytes) -> Outgoing:
    (message,) = outgoing(device, payload)
    return message


def test_the_topics_device_and_the_source_are_put_in() -> None:
    """A device that tells its name by its topic alone would be rejected for the missing field."""
    message = only("hall-1", json.dumps(GOOD).encode())
    reading = parse_reading(message.value, append_time=NOW)
    assert (message.key, reading.device_id, reading.source) == ("hall-1", "hall-1", Source.MQTT)
    assert parse_reading(only("a", json.dumps({**GOOD, "source": "device"}).encode()).value).source is Source.MQTT
    # Simulated readings must not be trained on as real ones.
    assert parse_reading(only("a", json.dumps({**GOOD, "source": "simulator"}).encode()).value).source == "simulator"


def test_without_a_device_in_the_topic_the_payload_names_it() -> None:
    """Gateways that publish for many devices on one topic."""
    message = only(None, json.dumps({**GOOD, "device_id": "hall-1"}).encode())
    assert (message.key, parse_reading(message.value).device_id) == ("hall-1", "hall-1")
    assert only(None, b"{}").key is None


def test_two_names_are_rejected_and_both_are_seen() -> None:
    """Whoever guesses may put a fire into the wrong room."""
    message = only("hall-1", json.dumps({**GOOD, "device_id": "hall-2"}).encode())
    assert message.mismatch
    assert message.key == "hall-1"
    with pytest.raises(ReadingRejected) as caught:
        parse_reading(message.value)
    assert (caught.value.reason, caught.value.field) == ("wrong_type", "device_id")
    assert json.loads(message.value)["device_id"] == {"topic": "hall-1", "payload": "hall-2"}
    assert not only("hall-1", json.dumps({**GOOD, "device_id": "hall-1"}).encode()).mismatch


@given(st.binary(max_size=20) | st.sampled_from([b"[]", b"7", b"null", b'"x"', b"{}{}", b"[" * 100_000, b"9" * 5000]))
def test_what_is_no_object_goes_as_it_is(payload: bytes) -> None:
    """Landing judges it; the dead letter must hold the very bytes."""
    if not _is_container(payload):
        assert only("d", payload) == Outgoing("d", payload)


def _is_container(payload: bytes) -> bool:
    try:
        found = json.loads(payload.decode())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) or (isinstance(found, list) and bool(found))


json_values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4))
fields = st.dictionaries(
    st.sampled_from(["raw_h2", "Raw H2", "UTC", "event_time", "device_id", "source", "x"]), json_values
)


@given(fields, st.sampled_from([None, "d", "hall 1"]))
def test_nothing_but_device_and_source_changes(message: dict[str, Any], device: str | None) -> None:
    """Every number must arrive as it was measured, NaN included, and the verdict must stay the same."""
    sent = only(device, json.dumps(message).encode())
    found = json.loads(sent.value)
    for name, value in message.items():
        if name not in ("device_id", "source"):
            assert repr(found[name]) == repr(value)
    assert set(found) - set(message) <= {"device_id", "source"}


@given(st.lists(fields | json_values, min_size=1, max_size=5))
def test_an_array_is_one_message_for_each_element(elements: list[Any]) -> None:
    """Devices that were offline send what they kept in one go; one bad element must not take the others with it."""
    found = list(outgoing("d", json.dumps(elements).encode()))
    assert len(found) == len(elements)
    for element, message in zip(elements, found, strict=True):
        assert message == only("d", json.dumps(element).encode()) if isinstance(element, dict) else True
        assert message.key == "d"


# -- acknowledgements ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_messages_are_acknowledged_in_order_and_only_when_kafka_has_them(sizes: list[int], rng: Any) -> None:
    """An acknowledgement too early loses the message with the next crash."""
    acknowledged: list[int] = []
    ledger = Ledger(acknowledged.append)
    held = [ledger.hold(number if number % 3 else None, max(1, size)) for number, size in enumerate(sizes)]
    deliveries = [number for number, size in enumerate(sizes) for _ in range(max(1, size))]
    rng.shuffle(deliveries)
    left = {number: max(1, size) for number, size in enumerate(sizes)}
    for number in deliveries:
        ledger.delivered(held[number])
        left[number] -= 1
        done = next((each for each in range(len(sizes)) if left[each]), len(sizes))
        assert acknowledged == [each for each in range(done) if each % 3]
    assert len(ledger) == 0


# -- addresses -------------------------------------------------------------------------------------------


def test_addresses() -> None:
    """The usual ports, with and without TLS, and IPv6."""
    assert parse_url("mqtt://host") == Address("host", 1883, tls=False)
    assert parse_url("mqtts://host/") == Address("host", 8883, tls=True)
    assert parse_url("mqtt://[::1]:99").port == 99
    for wrong in ("", "host:1883", "tcp://host", "mqtt://", "mqtt://h:x", "mqtt://h:99999", "mqtt://h/path"):
        with pytest.raises(SmokeError, match="SMOKE_MQTT_URL"):
            parse_url(wrong)
    with pytest.raises(SmokeError) as caught:
        parse_url("mqtt://me:secret@host")
    assert "secret" not in str(caught.value)
