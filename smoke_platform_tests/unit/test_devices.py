"""Entries of the device registry: which of two holds, what a message and a file may say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.domain.devices import (
    CSV_COLUMNS,
    FIRST_SEEN,
    IMPORT,
    OPERATOR,
    Device,
    Roll,
    changed,
    decode,
    decode_message,
    encode,
    first_seen,
    holding,
    parse_sensors,
    read_csv,
    worth_writing,
    write_csv,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES

# One line each: a CSV cell is stripped, so texts here neither begin nor end with a blank.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), max_size=12)
entries = st.builds(
    Device,
    device_id=st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8),
    site=texts,
    room=texts,
    type=texts,
    interval_s=st.floats(min_value=0.001, max_value=86_400),
    sensors=st.sets(st.sampled_from(ALL_SENSOR_NAMES), min_size=1).map(
        lambda found: tuple(name for name in ALL_SENSOR_NAMES if name in found)
    ),
    in_service=st.booleans(),
    source=st.sampled_from([FIRST_SEEN, OPERATOR, IMPORT]),
    updated_at=st.floats(min_value=0, max_value=4e9),
)


@given(entries)
def test_an_entry_arrives_as_it_was_sent(entry: Device) -> None:
    """What an operator sets must be what the detector reads."""
    assert decode(encode(entry)) == entry
    assert decode_message(entry.device_id.encode(), encode(entry)) == (entry.device_id, entry)


@given(st.binary() | st.from_regex(rb'\{"device_id":"[a-z]{0,3}"(,"(interval_s|site|sensors)":[^,]{0,9})?\}'))
def test_a_strange_message_is_refused_and_never_crashes(value: bytes) -> None:
    """One bad message must not end the detector that reads the registry."""
    try:
        device = decode(value)
    except SmokeError:
        return
    assert 0 < device.interval_s <= 86_400
    assert device.device_id


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        (b"a", b'{"device_id":"b"}', "device_id"),
        (b"a", b'{"device_id":"a","interval_s":0}', "interval_s"),
        (b"a", b'{"device_id":"a","interval_s":86401}', "interval_s"),
        (b"a", b'{"device_id":"a","sensors":["nose"]}', "sensors"),
        (b"a", b'{"device_id":"a","sensors":[]}', "sensors"),
        (b"a", b'{"device_id":"a","site":5}', "site"),
        (b"a", b'{"device_id":"a","room":"' + b"x" * 201 + b'"}', "room"),
        (b"", b'{"device_id":""}', "key"),
        (None, b'{"device_id":"a"}', "key"),
        (b"\xff", b'{"device_id":"a"}', "key"),
    ],
)
def test_a_fault_names_its_field(key: bytes | None, value: bytes, field: str) -> None:
    """Whoever wrote the entry must see what to mend."""
    with pytest.raises(SmokeError, match=field):
        decode_message(key, value)


def test_an_entry_by_first_reading_has_the_sensors_that_were_seen() -> None:
    """A device without a CO sensor must not be reported for its missing CO."""
    assert first_seen("a", ["pm2_5", "temperature_c"], 5.0).sensors == ("temperature_c", "pm2_5")
    assert first_seen("a", [], 5.0).sensors == SENSOR_NAMES
    assert worth_writing(None, first_seen("a", [], 5.0))
    assert not worth_writing(first_seen("a", [], 1.0), first_seen("a", [], 5.0))
    assert worth_writing(first_seen("a", [], 1.0), Device(device_id="a", source=OPERATOR))


logs = st.lists(
    st.tuples(st.sampled_from("ab"), st.none() | st.tuples(st.sampled_from([FIRST_SEEN, OPERATOR]), st.integers(0, 3)))
)


def _log(steps: list[tuple[str, tuple[str, int] | None]]) -> list[tuple[str, Device | None]]:
    return [(name, Device(device_id=name, source=it[0], updated_at=it[1]) if it else None) for name, it in steps]


@given(logs)
def test_readers_agree_and_a_first_reading_never_overrules(steps: list[tuple[str, tuple[str, int] | None]]) -> None:
    """An operator who took a device out of service must not find it back in service."""
    roll = Roll.empty()
    for name, entry in _log(steps):
        before = roll.devices.get(name)
        moved = roll.take(name, entry)
        after = roll.devices.get(name)
        assert moved == (before != after)
        if before is not None and before.source == OPERATOR and entry is not None and entry.source == FIRST_SEEN:
            assert after is before
        assert after == holding(before, entry)
    for name in "ab":
        mine = [entry for key, entry in _log(steps) if key == name]
        last_removed = max((place for place, entry in enumerate(mine) if entry is None), default=-1)
        since = [entry for entry in mine[last_removed + 1 :] if entry is not None]
        chosen = [entry for entry in since if entry.source == OPERATOR] or since
        assert roll.devices.get(name) == (chosen[-1] if chosen else None)


@given(logs)
def test_writing_what_was_overlaid_again_outlives_compaction(steps: list[tuple[str, tuple[str, int] | None]]) -> None:
    """Compaction keeps the last record of a key: after the overlaid entries are written again it loses nothing."""
    log = _log(steps)
    roll = Roll.empty()
    for name, entry in log:
        roll.take(name, entry)
    known = dict(roll.devices)
    log += [(name, entry) for name, entry in roll.overlaid.items()]
    compacted = Roll.empty()
    for name, entry in dict(log).items():
        compacted.take(name, entry)
    assert compacted.devices == known
    assert not compacted.overlaid


@given(st.lists(entries, unique_by=lambda entry: entry.device_id))
def test_a_file_of_devices_is_read_as_it_was_written(devices: list[Device]) -> None:
    """A list that was saved, edited in one cell and imported must change that cell alone."""
    read = [
        changed(None, device_id, changes, source=entry.source, at=entry.updated_at)
        for (_, device_id, changes), entry in zip(read_csv(write_csv(devices)), devices, strict=True)
    ]
    assert read == devices


def test_a_column_that_is_not_there_leaves_its_field_alone() -> None:
    """A file of rooms must not put every device back into service."""
    known = Device(device_id="a", site="north", in_service=False, interval_s=5.0)
    ((line, device_id, changes),) = read_csv("\ufeffdevice_id,room,interval_s\n\na , attic ,\n")
    assert (line, device_id) == (3, "a")
    assert changed(known, device_id, changes, source=IMPORT, at=9.0) == Device(
        device_id="a", site="north", room="attic", in_service=False, source=IMPORT, updated_at=9.0
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the file is empty"),
        ("site\nnorth\n", "line 1: there is no column 'device_id'"),
        ("device_id,colour\na,red\n", "line 1: unknown column 'colour'"),
        ("device_id,site,site\na,b,c\n", "line 1: column 'site' comes twice"),
        ("device_id,site\na\n", "line 2: 1 cells, the header has 2"),
        ("device_id,site\n,x\n", "line 2, device_id"),
        ("device_id,interval_s\na,1\nb,-3\n", "line 3, interval_s: -3"),
        ("device_id,interval_s\na,nan\n", "line 2, interval_s: nan"),
        ("device_id,in_service\na,maybe\n", "line 2, in_service: 'maybe'"),
        ("device_id,sensors\na,pm2_5 nose\n", "line 2, sensors: unknown nose"),
        ("device_id\na\nb\na\n", "line 4, device_id: 'a' stands in line 2 too"),
        ('device_id,site\na,"x\n', "line 2"),
    ],
)
def test_a_fault_in_a_file_names_line_and_field(text: str, complaint: str) -> None:
    """In a file of 10,000 devices a person must find the one that is wrong."""
    with pytest.raises(SmokeError, match=complaint.replace("(", r"\(")):
        list(read_csv(text))


@given(st.text(max_size=60) | st.lists(st.sampled_from([*CSV_COLUMNS, ",", "\n", '"', "a", "1"])).map("".join))
def test_any_file_is_read_or_refused(text: str) -> None:
    """A spreadsheet saved in another format ends in a message, not in a stack trace."""
    try:
        read = list(read_csv(text))
    except SmokeError:
        return
    for _, device_id, changes in read:
        assert device_id
        assert set(changes) <= set(CSV_COLUMNS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pm2_5,temperature_c", ("temperature_c", "pm2_5")),
        ("PM2.5; Raw H2", ("raw_h2", "pm2_5")),
        ("pm2_5 co_ppm pm2_5", ("pm2_5", "co_ppm")),
    ],
)
def test_sensors_are_named_as_anywhere_else(text: str, expected: tuple[str, ...]) -> None:
    """The data set's own names are accepted wherever a name enters."""
    assert parse_sensors(text) == expected


def test_no_sensor_at_all_is_refused() -> None:
    """A device without sensors would never be looked at again."""
    changes: dict[str, Any] = {"sensors": ()}
    with pytest.raises(SmokeError, match="sensors"):
        changed(None, "a", changes, source=OPERATOR, at=0.0)
    with pytest.raises(SmokeError, match="sensors"):
        parse_sensors(" , ")
