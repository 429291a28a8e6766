"""The one definition of a reading: what is accepted, what is refused, and with which reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smoke_platform.domain.readings import (
    ALL_SENSOR_NAMES,
    ALL_SENSORS,
    CANONICAL_NAME,
    EARLIEST_EVENT_TIME,
    LARGEST_CLOCK_LEAD,
    LARGEST_SEQUENCE,
    SENSOR_BY_NAME,
    Reading,
    ReadingRejected,
    RejectReason,
    Source,
    first_fault,
    json_schema,
    parse_reading,
    reading_from_mapping,
)
from smoke_platform_tests.strategies import append_times, json_values, near_readings, readings

GOOD: dict[str, Any] = {"device_id": "a", "event_time": "2026-01-01T00:00:00Z", "pm2_5": 4.5}
APPENDED = datetime(2026, 1, 1, tzinfo=UTC)


def rejected(message: Any, append_time: datetime | None = None) -> ReadingRejected:
    """The refusal of a message that is given as bytes or as what JSON makes of it."""
    value = message if isinstance(message, bytes | None) else json.dumps(message).encode()
    with pytest.raises(ReadingRejected) as raised:
        parse_reading(value, append_time=append_time)
    return raised.value


def changed(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


@given(readings)
def test_what_is_written_reads_back_bit_by_bit(reading: Reading) -> None:
    """A reading that changes on its way through Kafka is another reading."""
    assert parse_reading(reading.to_json()) == reading


@given(readings, st.data())
def test_aliases_mean_the_same_as_canonical_names(reading: Reading, data: st.DataObject) -> None:
    """A device that speaks the dataset's names must not need a translator."""
    message = json.loads(reading.to_json())
    names: dict[str, list[str]] = {}
    for name, canonical in CANONICAL_NAME.items():
        names.setdefault(canonical, []).append(name)
    renamed = {data.draw(st.sampled_from(names[name])): value for name, value in message.items()}
    assert reading_from_mapping(renamed) == reading


@given(near_readings(), append_times)
def test_any_message_is_a_reading_or_has_a_reason_from_the_list(message: dict[str, Any], when: datetime | None) -> None:
    """One message that raises anything else stops landing for everybody."""
    value = json.dumps(message).encode()
    reading, fault = judged(value, when)
    if fault is not None:
        assert fault.reason in RejectReason
        assert fault.detail
        str(fault).encode()
    if reading is not None:
        assert parse_reading(reading.to_json(), append_time=when) == reading
        for name, number in reading.sensors.items():
            assert SENSOR_BY_NAME[name].low <= number <= SENSOR_BY_NAME[name].high
        assert reading.sensors


def judged(value: bytes, when: datetime | None) -> tuple[Reading | None, ReadingRejected | None]:
    try:
        return parse_reading(value, append_time=when), None
    except ReadingRejected as fault:
        return None, fault


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff\xfe{")
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 100_000)
@example(b'{"a":' * 50_000)
@example(b"1" * 5_000)
@example(b'{"device_id":"\\ud800"}')
def test_any_bytes_are_refused_in_order(value: bytes) -> None:
    """Whatever arrives on an open topic must be answered with a reason."""
    fault = rejected(value)
    assert fault.reason in RejectReason
    str(fault).encode()


@given(json_values.filter(lambda value: not isinstance(value, dict)))
def test_what_is_no_object_is_of_the_wrong_type(value: Any) -> None:
    """JSON that is no object is told apart from what is no JSON."""
    assert rejected(json.dumps(value).encode()).reason is RejectReason.WRONG_TYPE


@pytest.mark.parametrize(
    ("message", "reason", "field"),
    [
        (None, RejectReason.NOT_JSON, ""),
        (b"{", RejectReason.NOT_JSON, ""),
        (b"\xc3\x28", RejectReason.NOT_JSON, ""),
        (changed(schema_version=2), RejectReason.SCHEMA_VERSION, "schema_version"),
        (changed(schema_version="1"), RejectReason.SCHEMA_VERSION, "schema_version"),
        (changed(schema_version=True), RejectReason.SCHEMA_VERSION, "schema_version"),
        (changed(device_id=None), RejectReason.MISSING_FIELD, "device_id"),
        (changed(device_id=""), RejectReason.MISSING_FIELD, "device_id"),
        (changed(event_time=None), RejectReason.MISSING_FIELD, "event_time"),
        (changed(pm2_5=None), RejectReason.MISSING_FIELD, "sensors"),
        (changed(device_id=7), RejectReason.WRONG_TYPE, "device_id"),
        (changed(device_id=" a"), RejectReason.WRONG_TYPE, "device_id"),
        (changed(device_id="a\n"), RejectReason.WRONG_TYPE, "device_id"),
        (changed(device_id="x" * 129), RejectReason.WRONG_TYPE, "device_id"),
        (changed(event_time="yesterday"), RejectReason.WRONG_TYPE, "event_time"),
        (changed(event_time="2026-01-01T00:00:00"), RejectReason.WRONG_TYPE, "event_time"),
        (changed(event_time=True), RejectReason.WRONG_TYPE, "event_time"),
        (changed(pm2_5="4.5"), RejectReason.WRONG_TYPE, "pm2_5"),
        (changed(pm2_5=True), RejectReason.WRONG_TYPE, "pm2_5"),
        (changed(pm2_5=[1]), RejectReason.WRONG_TYPE, "pm2_5"),
        (changed(fire_alarm="yes"), RejectReason.WRONG_TYPE, "fire_alarm"),
        (changed(fire_alarm=2), RejectReason.WRONG_TYPE, "fire_alarm"),
        (changed(sequence=1.5), RejectReason.WRONG_TYPE, "sequence"),
        (changed(source="cloud"), RejectReason.WRONG_TYPE, "source"),
        (changed(source=["csv"]), RejectReason.WRONG_TYPE, "source"),
        (changed(**{"PM2.5": 5.0}), RejectReason.WRONG_TYPE, "pm2_5"),
        (changed(pm2_5=float("nan")), RejectReason.NOT_FINITE, "pm2_5"),
        (changed(pm2_5=float("-inf")), RejectReason.NOT_FINITE, "pm2_5"),
        (b'{"device_id":"a","event_time":1767225600,"pm2_5":1e999}', RejectReason.NOT_FINITE, "pm2_5"),
        (changed(event_time=float("nan")), RejectReason.NOT_FINITE, "event_time"),
        (changed(sequence=float("inf")), RejectReason.NOT_FINITE, "sequence"),
        (changed(fire_alarm=float("nan")), RejectReason.NOT_FINITE, "fire_alarm"),
        (changed(device_id=float("nan")), RejectReason.NOT_FINITE, "device_id"),
        (changed(pm2_5=-0.001), RejectReason.OUT_OF_RANGE, "pm2_5"),
        (changed(pm2_5=10**24), RejectReason.OUT_OF_RANGE, "pm2_5"),
        (changed(sequence=-1), RejectReason.OUT_OF_RANGE, "sequence"),
        (changed(sequence=LARGEST_SEQUENCE + 1), RejectReason.OUT_OF_RANGE, "sequence"),
        (changed(sequence=10**30), RejectReason.OUT_OF_RANGE, "sequence"),
        (changed(event_time="1999-12-31T23:59:59Z"), RejectReason.TIMESTAMP, "event_time"),
        (changed(event_time=10**19), RejectReason.TIMESTAMP, "event_time"),
        (changed(event_time="0001-01-01T00:00:00+23:59"), RejectReason.TIMESTAMP, "event_time"),
        (changed(event_time="2026-01-01T00:05:01Z"), RejectReason.TIMESTAMP, "event_time"),
    ],
)
def test_each_reason_is_given_for_what_it_names(message: Any, reason: RejectReason, field: str) -> None:
    """Somebody with a faulty device acts on the reason; a wrong one sends him elsewhere."""
    fault = rejected(message, APPENDED)
    assert (fault.reason, fault.field) == (reason, field)


def test_a_number_of_many_digits_is_infinite_and_quickly_so() -> None:
    """Python refuses to read integers of more than 4,300 digits with an error of its own."""
    value = b'{"device_id":"a","event_time":1767225600,"pm2_5":' + b"9" * 500_000 + b"}"
    assert rejected(value).reason is RejectReason.NOT_FINITE


#: One way to fail for each reason that may stand beside others.
FAULTS: dict[RejectReason, dict[str, Any]] = {
    RejectReason.SCHEMA_VERSION: {"schema_version": 9},
    RejectReason.MISSING_FIELD: {"device_id": None},
    RejectReason.WRONG_TYPE: {"raw_h2": "x"},
    RejectReason.NOT_FINITE: {"tvoc_ppb": float("nan")},
    RejectReason.OUT_OF_RANGE: {"humidity_pct": 101},
    RejectReason.TIMESTAMP: {"event_time": 1},
}


@given(st.sets(st.sampled_from(list(FAULTS)), min_size=1), st.randoms())
def test_of_several_faults_the_first_in_the_list_is_given(faults: set[RejectReason], rng: Any) -> None:
    """Otherwise the reason would depend on the order of the fields, and counts by reason would mean nothing."""
    fields = [*GOOD.items(), *(pair for reason in faults for pair in FAULTS[reason].items())]
    merged = dict(fields)
    order = list(merged)
    rng.shuffle(order)
    assert rejected({name: merged[name] for name in order}).reason is min(faults, key=list(RejectReason).index)


def test_a_field_that_comes_twice_with_the_same_value_is_no_fault() -> None:
    """A gateway that adds canonical names beside its own is common and harmless."""
    assert reading_from_mapping(changed(**{"PM2.5": 4.5})).sensors == {"pm2_5": 4.5}


def test_null_and_unknown_fields_are_passed_over() -> None:
    """Null is "not measured", and a newer device may say more than this platform knows."""
    assert reading_from_mapping(changed(co_ppm=None, battery=3.1)).sensors == {"pm2_5": 4.5}


@given(st.sampled_from(ALL_SENSORS), st.booleans())
def test_limits_belong_to_the_range(sensor: Any, low: bool) -> None:
    """The public recordings stand at some of the limits."""
    limit = sensor.low if low else sensor.high
    assert reading_from_mapping({**GOOD, sensor.name: limit}).sensors[sensor.name] == limit


@given(st.integers(-600, 600))
def test_the_future_is_refused_from_five_minutes_on_and_the_past_never(seconds: int) -> None:
    """Clocks differ a little; a reading from next week would hold back every window."""
    message = changed(event_time=(APPENDED + timedelta(seconds=seconds)).isoformat())
    if timedelta(seconds=seconds) > LARGEST_CLOCK_LEAD:
        assert rejected(message, APPENDED).reason is RejectReason.TIMESTAMP
    else:
        assert reading_from_mapping(message, append_time=APPENDED).event_time == APPENDED + timedelta(seconds=seconds)
    assert reading_from_mapping(message).event_time == APPENDED + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00.000000Z", "20260101T000000Z", 1_767_225_600, 1_767_225_600.0],
)
def test_spellings_of_one_moment(text: Any) -> None:
    """Every device has its own way to write a time."""
    assert reading_from_mapping(changed(event_time=text)).event_time == APPENDED


def test_the_earliest_moment_is_accepted() -> None:
    """The bound is part of the range."""
    assert reading_from_mapping(changed(event_time=EARLIEST_EVENT_TIME.isoformat())).event_time == EARLIEST_EVENT_TIME


@pytest.mark.parametrize(("label", "truth"), [(0, False), (1, True), ("0", False), ("1", True), (1.0, True)])
def test_spellings_of_the_label(label: Any, truth: bool) -> None:
    """The dataset has 0 and 1, JSON has true and false."""
    assert reading_from_mapping({**GOOD, "Fire Alarm": label}).fire_alarm is truth


def test_defaults_of_a_bare_reading() -> None:
    """A device that says nothing of itself is a device."""
    reading = reading_from_mapping(GOOD)
    assert (reading.source, reading.schema_version, reading.sequence, reading.fire_alarm) == (
        Source.DEVICE,
        1,
        None,
        None,
    )


def test_the_schema_names_every_field() -> None:
    """Device makers build from it."""
    schema = json_schema()
    assert set(schema["properties"]) == set(CANONICAL_NAME.values())
    assert {option["required"][0] for option in schema["anyOf"]} == set(ALL_SENSOR_NAMES)


def test_first_fault_of_none_is_none() -> None:
    """The prediction endpoint asks it for messages without a device."""
    assert first_fault([]) is None
    timestamp = ReadingRejected(RejectReason.TIMESTAMP, "event_time", "x")
    missing = ReadingRejected(RejectReason.MISSING_FIELD, "device_id", "x")
    assert first_fault([timestamp, missing]) is missing
