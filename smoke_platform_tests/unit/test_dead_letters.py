"""A dead letter's facts, its correction, and the index that keeps one letter an identity."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.adapters import dead_letters
from smoke_platform.adapters.dead_letters import LetterFilter, LetterIndex, Replayer
from smoke_platform.adapters.kafka import partition_of
from smoke_platform.domain.dead_letters import (
    REMEDIES,
    Correction,
    DeadLetter,
    corrected,
    explained,
    hex_dump,
    parse_correction,
    printable,
    read_letter,
    rejected_again,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.landing import letter_headers
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.readings import CANONICAL_NAME, ReadingRejected, RejectReason

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
GOOD = {"device_id": "a", "event_time": "2022-06-09T00:00:00Z", "temperature_c": 20.5}


def letter(
    message: int,
    *,
    reason: str = "not_json",
    offset: int = 0,
    partition: int = 0,
    seconds: float = 0,
    key: bytes | None = b"a",
    value: bytes | None = b"{",
    source: int = 0,
) -> DeadLetter:
    moment = NOW + timedelta(seconds=seconds)
    identity = MessageId("t", source, message)
    return DeadLetter(identity, reason, "", "", "readings", moment, key, None, value, partition, offset)


# -- facts -----------------------------------------------------------------------------------------------


def test_what_landing_writes_is_read_back() -> None:
    """Or a letter is shown with facts that are not its own."""
    own, origin = MessageId("Zt3", 2, 99), MessageId("Zt3", 1, 17)
    headers = letter_headers(
        ReadingRejected(RejectReason.OUT_OF_RANGE, "raw_h2", "-1"),
        origin,
        topic="readings",
        append_time_ms=1_777_636_800_123,
        key=b"hall \xff",
        replayed_as=own,
    )
    found = read_letter(headers, b"{}", partition=3, offset=5, appended_ms=1)
    assert (found.identity, found.replayed_as, found.key) == (origin, own, b"hall \xff")
    assert (found.reason, found.field, found.detail, found.topic) == ("out_of_range", "raw_h2", "-1", "readings")
    assert found.append_time == datetime(2026, 5, 1, 12, 0, 0, 123_000, tzinfo=UTC)
    assert found.device == "hall �"


@given(st.lists(st.tuples(st.sampled_from(["reason", "append_time", "offset", "key"]), st.binary(max_size=9))))
def test_headers_of_any_bytes_are_read(headers: list[tuple[str, bytes]]) -> None:
    """Or one strange letter keeps all others from being listed."""
    found = read_letter(headers, None, partition=0, offset=1, appended_ms=-1)
    assert found.identity is None
    assert found.append_time.tzinfo is not None


def test_every_reason_is_explained() -> None:
    """Or the reason added last tells nobody what to do."""
    assert set(REMEDIES) == set(RejectReason)
    assert explained("out_of_range") == REMEDIES[RejectReason.OUT_OF_RANGE]
    assert "does not know" in explained("some_new_one")[0]


# -- corrections -----------------------------------------------------------------------------------------


def test_without_a_correction_the_bytes_are_the_original_ones() -> None:
    """A replay must send what came, to the byte, also where it is no JSON."""
    for value in (b"\x00\xff", b'{ "a": 1.10 }', b"", None):
        assert corrected(value, parse_correction([], [])) == value


def test_a_corrected_field_replaces_every_spelling_of_it() -> None:
    """Otherwise the message holds the field twice with different values, and is rejected for that."""
    sent = json.dumps({**GOOD, "Temperature[C]": 999, "PM2.5": -1, "note": "x"}).encode()
    fixed = corrected(sent, parse_correction(["Temperature[C]=21.5"], ["pm2_5"]))
    assert fixed is not None
    assert json.loads(fixed) == {"device_id": "a", "event_time": GOOD["event_time"], "temperature_c": 21.5, "note": "x"}
    assert rejected_again(fixed, NOW) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("21.5", 21.5), ("hall-1", "hall-1"), ('"7"', "7"), ("true", True), ("", ""), ("a=b", "a=b"), ("null", None)],
)
def test_values_are_read_as_people_mean_them(text: str, value: Any) -> None:
    """A number must not become a text, nor a device's name an error."""
    assert parse_correction([f"device_id={text}"], []).sets == {"device_id": value}


def test_corrections_that_make_no_sense_are_named() -> None:
    """A mistyped name would leave the field as it is, and the reading rejected again."""
    with pytest.raises(SmokeError, match="temprature"):
        parse_correction(["temprature=1"], [])
    with pytest.raises(SmokeError, match="no equals sign"):
        parse_correction(["temperature_c"], [])
    with pytest.raises(SmokeError, match="both set and dropped"):
        parse_correction(["UTC=1"], ["event_time"])
    with pytest.raises(SmokeError, match="no JSON object"):
        corrected(b"[1]", parse_correction([], ["co_ppm"]))


names = st.sampled_from([*CANONICAL_NAME, "unknown"])
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))


@given(st.dictionaries(names, plain, max_size=6), st.dictionaries(st.sampled_from(["raw_h2", "UTC"]), plain), names)
def test_a_correction_changes_its_fields_and_no_other(fields: dict[str, Any], sets: dict[str, Any], drop: str) -> None:
    """Or mending one field spoils another one that was right."""
    changes = {CANONICAL_NAME[name]: value for name, value in sets.items()}
    drops = frozenset({CANONICAL_NAME[drop]} - set(changes)) if drop in CANONICAL_NAME else frozenset()
    fixed = corrected(json.dumps(fields).encode(), Correction(changes, drops))
    assert fixed is not None
    kept = {n: v for n, v in fields.items() if CANONICAL_NAME.get(n) not in drops | set(changes)}
    assert repr(json.loads(fixed)) == repr({**kept, **changes})


def test_what_is_rejected_again_is_known_beforehand() -> None:
    """A replay that fails again only makes another letter."""
    future = json.dumps({**GOOD, "event_time": "2026-05-01T13:00:00Z"}).encode()
    assert rejected_again(json.dumps({**GOOD, "raw_h2": math.nan}).encode(), NOW).reason == "not_finite"  # type: ignore[union-attr] # it is one
    assert rejected_again(future, NOW).reason == "timestamp"  # type: ignore[union-attr] # it is one
    assert rejected_again(future, NOW + timedelta(hours=1)) is None


# -- showing ---------------------------------------------------------------------------------------------


def test_bytes_are_shown_as_text_or_as_a_dump() -> None:
    """Control characters from a broken device must not reach somebody's terminal."""
    assert printable('{"a":"é"}'.encode()) == '{"a":"é"}'
    assert printable(b"\x1b[2J").startswith("00000000  1b 5b 32 4a")
    assert printable(b"\xff").startswith("00000000  ff")
    assert (printable(None), printable(b"")) == ("(no value)", "(empty)")
    assert printable(b"x" * 5000).endswith("... 904 bytes more")


@given(st.binary(min_size=1, max_size=100))
def test_a_dump_holds_every_byte(value: bytes) -> None:
    """Or the byte that breaks the message is the one that is not shown."""
    lines = hex_dump(value).splitlines()
    assert bytes.fromhex("".join(line[10:58] for line in lines)) == value


# -- the index -------------------------------------------------------------------------------------------


def test_a_letter_that_was_sent_twice_counts_once_and_by_its_last_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Identities are what people count; after a replay that failed otherwise the last verdict holds."""
    monkeypatch.setattr(dead_letters, "_CHUNK_ROWS", 1)
    monkeypatch.setattr(dead_letters, "_TIDY_CHUNKS", 2)
    index = LetterIndex(LetterFilter(reasons=frozenset({"not_json"})))
    for each in (
        letter(1, offset=0),
        letter(1, offset=1),
        letter(2, offset=2),
        letter(3, offset=3, reason="timestamp"),
        letter(2, offset=4, reason="timestamp"),
        letter(3, offset=5),
        letter(3, offset=6, source=1),
    ):
        index.add(each)
    assert index.counts() == {"not_json": 3}
    assert sorted(index.rows["offset"].tolist()) == [1, 5, 6]
    assert index.landed({("t", 1): np.array([3]), ("u", 0): np.array([1])}).sum() == 1


letters_strategy = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["not_json", "timestamp"]), st.integers(0, 3)), max_size=40
)


@given(letters_strategy, st.integers(1, 7))
def test_the_index_agrees_with_a_plain_dictionary(found: Sequence[tuple[int, str, int]], tidy: int) -> None:
    """Cleaning up while reading must not change what is found."""
    index = LetterIndex(LetterFilter(reasons=frozenset({"timestamp"}), since=NOW + timedelta(seconds=1)))
    plain_index: dict[int, DeadLetter] = {}
    for offset, (message, reason, seconds) in enumerate(found):
        each = letter(message, reason=reason, offset=offset, seconds=seconds)
        plain_index[message] = each
        index.add(each)
        if offset % tidy == 0:
            assert len(index) >= 0  # counting tidies
    wanted = [one for one in plain_index.values() if one.reason == "timestamp" and one.append_time > NOW]
    wanted.sort(key=lambda one: (one.append_time, one.offset), reverse=True)
    assert index.newest(100)["offset"].tolist() == [one.offset for one in wanted]
    assert index.newest(2)["offset"].tolist() == [one.offset for one in wanted[:2]]


# -- replaying -------------------------------------------------------------------------------------------


class Sent:
    """Stands for the client: takes note of what would go out."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, ...]] = []

    def send(self, key: Any, value: Any, *, partition: int, headers: Any) -> None:
        self.messages.append((key, value, partition, headers))


def test_a_replay_carries_the_identity_and_goes_where_the_device_is() -> None:
    """In another partition the reading would miss its device's state; without the identity it would land twice."""
    sent = Sent()
    good = json.dumps(GOOD).encode()
    replayer = Replayer(sent, 6, {("t", 0): np.array([7])}, parse_correction([], []))  # type: ignore[arg-type] # a stand-in
    replayer.replay(letter(5, value=good, key=b"hall-1"))
    replayer.replay(letter(6, value=good, key=None, source=8))
    replayer.replay(letter(7, value=good))
    replayer.replay(letter(8, value=b"{"))
    header = "smoke-replay-of"
    assert sent.messages == [
        (b"hall-1", good, partition_of("hall-1", 6), [(header, b"t/0/5")]),
        (None, good, 2, [(header, b"t/8/6")]),
    ]
    report = replayer.report
    assert (report.sent, report.already, dict(report.hopeless)) == (2, 1, {"not_json": 1})
    assert "would be rejected again" in report.examples["t/0/8"]


def test_a_reading_that_gets_another_device_goes_to_that_device() -> None:
    """A device's readings stand in one partition, also the ones that got their name late."""
    sent = Sent()
    replayer = Replayer(sent, 6, {}, parse_correction(["device_id=kitchen-2"], []))  # type: ignore[arg-type] # a stand-in
    replayer.replay(letter(5, value=json.dumps({**GOOD, "device_id": 5}).encode(), key=b"wrong"))
    assert sent.messages[0][0::2] == (b"kitchen-2", partition_of("kitchen-2", 6))
