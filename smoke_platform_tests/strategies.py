"""Hypothesis strategies for readings and for messages that are not quite readings.

Belongs here: what several parts' property tests draw from. Does not: strategies of one part.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from smoke_platform.domain.readings import (
    ALL_SENSOR_NAMES,
    CANONICAL_NAME,
    LARGEST_SEQUENCE,
    LONGEST_DEVICE_ID,
    SENSOR_BY_NAME,
    Reading,
    Source,
)

device_ids = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=LONGEST_DEVICE_ID).filter(
        lambda text: text.isprintable() and text == text.strip()
    ),
)
#: Microseconds of every time that a reading may carry and Python can print.
event_times = st.integers(946_684_800_000_000, 4_102_444_800_000_000).map(
    lambda microseconds: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
)
sources = st.sampled_from(list(Source))
sequences = st.one_of(st.none(), st.integers(0, LARGEST_SEQUENCE))
labels = st.sampled_from([None, True, False])


def sensor_value(name: str) -> st.SearchStrategy[float]:
    """A value that the sensor may report, its limits included."""
    sensor = SENSOR_BY_NAME[name]
    return st.one_of(st.floats(sensor.low, sensor.high, allow_nan=False), st.sampled_from([sensor.low, sensor.high]))


@st.composite
def sensor_values(draw: st.DrawFn) -> dict[str, float]:
    """At least one sensor, in the order of the schema."""
    fitted = draw(st.sets(st.sampled_from(ALL_SENSOR_NAMES), min_size=1))
    return {name: draw(sensor_value(name)) for name in ALL_SENSOR_NAMES if name in fitted}


readings = st.builds(
    Reading,
    device_id=device_ids,
    event_time=event_times,
    sensors=sensor_values(),
    fire_alarm=labels,
    sequence=sequences,
    source=sources,
)

#: Anything that JSON can hold.
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**25), 10**25),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "1999-12-31T00:00:00Z", "", "device", "1"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)

#: Names under which fields enter, and some that are nobody's.
field_names = st.one_of(st.sampled_from(list(CANONICAL_NAME)), st.text(max_size=8))


@st.composite
def near_readings(draw: st.DrawFn) -> dict[str, Any]:
    """A message that is a reading but for some fields that were removed, replaced or added."""
    reading = draw(readings)
    message: dict[str, Any] = {
        "device_id": reading.device_id,
        "event_time": draw(st.sampled_from([reading.event_time.isoformat(), reading.event_time.timestamp()])),
        **reading.sensors,
        "fire_alarm": reading.fire_alarm,
        "sequence": reading.sequence,
        "source": str(reading.source),
        "schema_version": 1,
    }
    for name in draw(st.lists(st.sampled_from(sorted(message)), max_size=2)):
        message.pop(name, None)
    message.update(draw(st.dictionaries(field_names, json_values, max_size=3)))
    return message


#: When a broker appended a message: around now and long after any reading.
append_times = st.one_of(st.none(), event_times, st.just(datetime(2200, 1, 1, tzinfo=UTC)))
