"""Batch decoding decides exactly as the message-by-message parser does."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smoke_platform.domain import decoding, live_decoding
from smoke_platform.domain.decoding import DECODED_SCHEMA, decode_batch
from smoke_platform.domain.features import event_seconds, sensor_matrix
from smoke_platform.domain.live_decoding import append_moment, decode_arrays
from smoke_platform.domain.readings import (
    ALL_SENSOR_NAMES,
    CANONICAL_NAME,
    Reading,
    ReadingRejected,
    RejectReason,
    parse_reading,
)

APPENDED_MS = 1_654_733_331_000
GOOD = Reading(
    "kitchen", datetime(2022, 6, 9, 0, 8, 51, tzinfo=UTC), {"temperature_c": 20.5, "raw_h2": 12306.0}, sequence=3
).to_json()

Decision = tuple[object, ...] | tuple[RejectReason, str, str]


def one_by_one(values: list[bytes | None], appended: list[int]) -> list[Decision]:
    """The oracle: each message through ``parse_reading`` alone."""
    decisions: list[Decision] = []
    for value, append_ms in zip(values, appended, strict=True):
        try:
            reading = parse_reading(value, append_time=append_moment(append_ms))
        except ReadingRejected as reject:
            decisions.append(refusal(reject))
            continue
        sensors = tuple(reading.sensors.get(name) for name in ALL_SENSOR_NAMES)
        decisions.append(
            (
                reading.device_id,
                reading.event_time,
                *sensors,
                reading.fire_alarm,
                reading.sequence,
                reading.schema_version,
                str(reading.source),
            )
        )
    return decisions


def refusal(reject: ReadingRejected) -> Decision:
    return reject.reason, reject.field, reject.detail


def in_a_batch(values: list[bytes | None], appended: list[int]) -> list[Decision]:
    frame, rejects = decode_batch(values, appended)
    assert frame.schema == pl.Schema(DECODED_SCHEMA)
    assert frame["row"].is_sorted()
    decisions: dict[int, Decision] = {row: refusal(reject) for row, reject in rejects}
    assert len(decisions) == len(rejects)
    for row, *rest in frame.iter_rows():
        assert row not in decisions
        decisions[row] = tuple(rest)
    return [decisions[place] for place in range(len(values))]


# Tokens on which JSON readers disagree, and the values at the edges of what a reading may hold.
NUMBERS = [
    "0",
    "-0",
    "-0.0",
    "1",
    "20.5",
    "1e2",
    "1E+2",
    "1e999",
    "-1e999",
    "1e-400",
    "5e-324",
    "01",
    "1.",
    ".5",
    "+1",
    "0x10",
    "NaN",
    "-Infinity",
    "Infinity",
    "65535",
    "65535.0000001",
    "100000",
    "-60",
    "300",
    "300.00000000000006",
    "1.0",
    "9007199254740992",
    "9007199254740993",
    "9223372036854775808",
    "18446744073709551616",
    "123456789012345678901",
    "0.1",
    "2.2250738585072011e-308",
    "179769313486231580793e289",
    "1" + "0" * 400,
    "100000.00000000001",
    "1e5.5",
    "1_000",
    "- 1",
    "1 2",
]
OTHERS = [
    "true",
    "false",
    "null",
    "nul",
    '"1"',
    '"0"',
    '""',
    '" "',
    '"x"',
    '"5"',
    "[]",
    "[1]",
    "{}",
    '{"a":1}',
    '"\\ud800"',
    '"a\\u0000"',
    '"caf\\u00e9"',
    '"café"',
    '"a\tb"',
    '"a\nb"',
    '"]"',
    '"}\\n{"',
    '"device"',
    '"csv"',
    '"simulator"',
    '"mqtt"',
    '"\\u0064evice"',
    '"' + "d" * 128 + '"',
    '"' + "d" * 129 + '"',
    '"a b"',
    '" a"',
    '"a\u00a0"',
    '"true"',
    '"\\"device_id\\":\\""',
]
TIMES = [
    '"2022-06-09T00:08:51Z"',
    '"2022-06-09T00:08:51.5Z"',
    '"2022-06-09T00:08:51.123456Z"',
    '"2022-06-09T00:08:51.1234567Z"',
    '"2022-06-09T00:08:51+00:00"',
    '"2022-06-09T02:08:51+02:00"',
    '"2022-06-09T00:08:51"',
    '"2022-06-09 00:08:51Z"',
    '"20220609T000851Z"',
    '"2022-06-09"',
    '"2022-6-9T0:8:51Z"',
    '"2022-06-09T00:08:60Z"',
    '"2022-06-09T24:00:00Z"',
    '"2022-02-30T00:00:00Z"',
    '"0000-01-01T00:00:00Z"',
    '"1999-12-31T23:59:59Z"',
    '"2000-01-01T00:00:00Z"',
    '"9999-12-31T23:59:59Z"',
    '"2022-06-09T00:13:51Z"',
    '"2022-06-09T00:13:51.000001Z"',
    '"2022-06-09T00:13:52Z"',
    '"2022-06-09t00:08:51z"',
    '"2022-06-09T00:08:51.Z"',
    '"2022-06-09T00:08Z"',
    '"2022-W23-4T00:08:51Z"',
    '"0001-01-01T00:00:00+23:59"',
    '"\u0662\u0660\u0662\u0662-06-09T00:08:51Z"',
    "1654733331",
    "1654733331.25",
    "946684799",
    "946684800",
    "1e10",
    "-1",
    "1e300",
    "253402300800",
    "true",
    '"1654733331"',
    '"2022-06-09T00:08:51Z\\n"',
]
NAMES = [*CANONICAL_NAME, "unknown", "", "UTC ", "temperature_C", "\\u0064evice_id"]

tokens = st.sampled_from(NUMBERS + OTHERS + TIMES) | st.floats().map(repr) | st.integers().map(str)
pairs = st.tuples(st.sampled_from(NAMES), tokens)
spaces = st.sampled_from(["", "", "", " ", "\t", "\n", "\r", "\u00a0", "\x0b"])


@st.composite
def nearly_readings(draw: st.DrawFn) -> bytes:
    """A reading with a few things changed, at the level of the text."""
    fields = {
        "device_id": f'"d{draw(st.integers(0, 3))}"',
        "event_time": draw(st.sampled_from(TIMES)) if draw(st.booleans()) else TIMES[0],
        draw(st.sampled_from(ALL_SENSOR_NAMES)): draw(st.sampled_from(NUMBERS)) if draw(st.booleans()) else "400",
        "schema_version": "1",
    }
    for name in draw(st.lists(st.sampled_from(list(fields)), max_size=1)):
        del fields[name]
    items = list(fields.items()) + draw(st.lists(pairs, max_size=2))
    space = draw(spaces)
    text = "{" + ",".join(f'{space}"{name}":{value}' for name, value in items) + space + "}"
    return (draw(st.sampled_from(["", "", "", "", " ", "\n", "\ufeff"])) + text).encode("utf-8", "surrogatepass")


messages = st.one_of(
    st.just(GOOD),
    nearly_readings(),
    nearly_readings(),
    nearly_readings(),
    st.binary(max_size=20),
    st.none(),
    st.just(GOOD + GOOD),
    st.just(GOOD + b"\n" + GOOD),
    st.sampled_from(
        [b"", b"\n", b"{}", b"[]", b"null", b"5", GOOD[:-1], GOOD + b"x", GOOD[:9] + b"\xff" + GOOD[9:], b"[" * 100_000]
    ),
    st.binary(min_size=1, max_size=1).flatmap(
        lambda byte: st.integers(0, len(GOOD) - 1).map(lambda at: GOOD[:at] + byte + GOOD[at + 1 :])
    ),
)
append_times = st.sampled_from([-1, APPENDED_MS])


@settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(messages, append_times), min_size=1, max_size=5))
def test_batch_decides_as_the_single_parser(batch: list[tuple[bytes | None, int]]) -> None:
    """A reading must not land or be refused depending on which messages happened to arrive with it."""
    values, appended = [value for value, _ in batch], [at for _, at in batch]
    assert in_a_batch(values, appended) == one_by_one(values, appended)


@settings(max_examples=700, deadline=None)
@given(nearly_readings(), nearly_readings(), append_times)
@example(
    b'{"device_id":5,"event_time":"2022-06-09T00:08:51Z","raw_h2":1}',
    b'{"device_id":"a","device_id":"b","event_time":"2022-06-09T00:08:51Z","raw_h2":1}',
    -1,
)
def test_fast_paths_never_accept_what_the_parser_refuses(one: bytes, other: bytes, appended: int) -> None:
    """Two odd messages must not cancel out in the certificate of the vectorised path."""
    values: list[bytes | None] = [one, other]
    assert in_a_batch(values, [appended] * 2) == one_by_one(values, [appended] * 2)


@settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(messages, append_times), max_size=5))
def test_arrays_hold_what_the_batch_holds(batch: list[tuple[bytes | None, int]]) -> None:
    """The detector must raise alarms from the very readings that the lake keeps, no more, no fewer, no others."""
    values, appended = [value for value, _ in batch], [at for _, at in batch]
    frame, rejects = decode_batch(values, appended)
    arrays, refused = decode_arrays(values, appended)
    assert [(row, why.reason, why.field) for row, why in refused] == [
        (row, why.reason, why.field) for row, why in rejects
    ]
    assert arrays.rows.tolist() == frame["row"].to_list()
    assert arrays.device_ids == frame["device_id"].to_list()
    assert arrays.event_time_s.tolist() == event_seconds(frame).tolist()
    np.testing.assert_array_equal(arrays.sensors, sensor_matrix(frame))


def test_arrays_take_the_short_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a poll costs milliseconds before the first reading is looked at, and alarms come late."""
    monkeypatch.setattr(live_decoding, "parse_reading", None)
    start = datetime(2022, 6, 9, tzinfo=UTC)
    sent = [Reading(f"d{n}", start, {"pm2_5": n / 3, "co_ppm": None}, None, n) for n in range(20)]  # type: ignore[dict-item] # as a null
    arrays, rejects = decode_arrays([reading.to_json() for reading in sent], [-1] * len(sent))
    assert not rejects
    assert arrays.device_ids == [reading.device_id for reading in sent]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-60, 300) | st.floats(-1e-300, 1e-300), min_size=1, max_size=40))
def test_numbers_are_read_to_the_last_bit(numbers: list[float]) -> None:
    """The lake must hold the very value that the device sent."""
    values: list[bytes | None] = [
        b'{"device_id":"a","event_time":"2022-06-09T00:08:51Z","temperature_c":%s}' % repr(number).encode()
        for number in numbers
    ]
    frame, rejects = decode_batch(values, [-1] * len(values))
    assert not rejects
    assert frame["temperature_c"].to_list() == numbers


def test_usual_messages_take_the_vectorised_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fast path landing falls far behind the broker, and no other test would notice."""
    monkeypatch.setattr(decoding, "_strict", None)
    monkeypatch.setattr(decoding, "_decide_each", None)
    start = datetime(2022, 6, 9, tzinfo=UTC)
    sent = [
        Reading(f"d{n % 7}", start + timedelta(seconds=n / 4), {"pm2_5": n / 3, "co_ppm": 0.0}, n % 2 == 0, n)
        for n in range(2000)
    ]
    frame, rejects = decode_batch([reading.to_json() for reading in sent], [-1] * len(sent))
    assert not rejects
    assert frame["event_time"].to_list() == [reading.event_time for reading in sent]
    assert frame["pm2_5"].to_list() == [reading.sensors["pm2_5"] for reading in sent]
    assert frame["fire_alarm"].to_list() == [reading.fire_alarm for reading in sent]


def test_one_bad_message_among_many_is_found_with_its_index() -> None:
    """A dead letter must point at the message that caused it, not at its neighbour."""
    values: list[bytes | None] = [GOOD] * 3000
    values[1999] = None
    values[2500] = json.dumps({"device_id": "a"}).encode()
    frame, rejects = decode_batch(values, [-1] * len(values))
    assert [(row, reject.reason) for row, reject in rejects] == [
        (1999, RejectReason.NOT_JSON),
        (2500, RejectReason.MISSING_FIELD),
    ]
    assert frame["row"].to_list() == [row for row in range(3000) if row not in (1999, 2500)]


def test_an_empty_batch_is_an_empty_frame() -> None:
    """A poll that brought nothing is no error."""
    frame, rejects = decode_batch([], [])
    assert frame.schema == pl.Schema(DECODED_SCHEMA)
    assert rejects == []


def test_messages_with_nulls_come_back_in_their_places() -> None:
    """Half of all devices may send null for a sensor they lack; their readings would be swapped with others'."""
    values = [
        b'{"device_id":"d%d","event_time":"2022-06-09T00:08:51Z","temperature_c":%d,"co_ppm":%s}'
        % (number, number % 100, b"null" if number % 3 else b"1.5")
        for number in range(2_000)
    ]
    values[7] = b"null"
    values[11] = None  # a tombstone is no message, yet it has a place
    frame, rejects = decode_batch(values, [-1] * len(values))
    assert [row for row, _ in rejects] == [7, 11]
    assert frame["row"].to_list() == [row for row in range(2_000) if row not in (7, 11)]
    assert frame["device_id"].to_list() == [f"d{row}" for row in frame["row"]]
    assert frame["co_ppm"].is_null().to_list() == [row % 3 != 0 for row in frame["row"]]
