"""The quick way into the API decides exactly as the domain's reading schema does."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from smoke_platform.domain.readings import ALL_SENSOR_NAMES, CANONICAL_NAME, ReadingRejected, reading_from_mapping
from smoke_platform.serving import examples, requests
from smoke_platform.serving.requests import RequestFault

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**17, max_value=10**400)
    | st.floats()
    | st.text(max_size=8)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
MESSAGES = st.dictionaries(st.sampled_from(sorted(CANONICAL_NAME)) | st.text(max_size=5), VALUES, max_size=6)


def _comparable(value: Any) -> Any:
    """The value with what the two decoders may differ in evened out: huge integers are floats to the careful one."""
    if isinstance(value, dict):
        return {name: _comparable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_comparable(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**19:
        return float(value) if abs(value) < 10**308 else math.inf if value > 0 else -math.inf
    return value


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
@example(body=b'{"a": NaN}')
@example(body=b'"\\ud800"')
@example(body=b"[" * 5000)
def test_the_quick_decoder_takes_what_the_careful_one_takes(body: bytes) -> None:
    """A body that landing accepts and the API refuses (or the other way round) would be two schemas."""
    outcomes = []
    for decode in (requests.decode, requests.decode_carefully):
        try:
            outcomes.append(repr(_comparable(decode(body))).split(" object at ")[0])
        except RequestFault as fault:
            outcomes.append(f"{fault.status} {fault.reason}")
    assert outcomes[0] == outcomes[1]


@settings(max_examples=300, deadline=None)
@given(message=MESSAGES)
def test_a_reading_for_prediction_is_judged_by_the_domain(message: dict[str, Any]) -> None:
    """Predictions that judged fields by rules of their own would accept what landing dead-letters."""
    completed = dict(message)
    if completed.get("device_id") is None:
        completed["device_id"] = "someone"
    if completed.get("event_time") is None and completed.get("UTC") is None:
        completed["event_time"] = "2026-01-01T00:00:00Z"
    expected: tuple[str, Any]
    try:
        expected = ("taken", dict(reading_from_mapping(completed).sensors))
    except ReadingRejected as fault:
        expected = (str(fault.reason), fault.field)
    except OverflowError:
        expected = ("not_finite", "")
    try:
        answer: tuple[str, Any] = ("taken", dict(requests.one_reading(message).sensors))
    except RequestFault as fault:
        answer = (fault.reason, fault.field if fault.remedy else "no remedy")
    assert answer == expected


def test_examples_are_readings_and_differ() -> None:
    """The documented payloads are what newcomers copy: they must be valid and show two different things."""
    quiet, fire = examples.sample(), examples.fire_scenario()
    for message in (quiet, *fire):
        assert set(reading_from_mapping(message).sensors) == set(ALL_SENSOR_NAMES)
    assert fire[0] != fire[-1]
    assert fire[-1]["pm2_5"] > 100 * quiet["pm2_5"]
    assert fire[-1]["temperature_c"] > quiet["temperature_c"] + 1
