"""Alarms, commands, predictions and devices as rows: any message becomes rows or is kept as it came."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.adapters.lake import storage_schema
from smoke_platform.domain import alarms, devices, predictions
from smoke_platform.domain.alarms import AlarmCommand, AlarmRecord, Evidence
from smoke_platform.domain.devices import Device, Roll
from smoke_platform.domain.lake_records import (
    DAY,
    RECORD_TABLES,
    UNREADABLE_SCHEMA,
    Message,
    RecordTable,
    below_marks,
    decode_messages,
    first_of_each,
    latest_devices,
    marks_of,
)
from smoke_platform.domain.predictions import PredictionRecord
from smoke_platform.domain.topics import topic_specs

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TABLES = {table.name: table for table in RECORD_TABLES}

whole = st.integers(-3, 2**63 - 1) | st.integers(-(2**80), 2**80)
moments = st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 4e9)
VALID: dict[str, bytes] = {
    "alarms": alarms.encode(
        AlarmRecord(
            device_id="d",
            kind=alarms.Kind.FIRE,
            alarm_id="a",
            event=alarms.Event.RAISED,
            state=alarms.State.ACTIVE,
            severity="high",
            revision=1,
            topic_id="t",
            partition=0,
            cause=1,
            position=1,
            at=5.0,
        )
    ),
    "alarm_commands": alarms.encode(
        AlarmCommand(
            command_id="c", verb=alarms.Verb.RESET, device_id="d", kind=alarms.Kind.FIRE, by="ann", at=5.0, until=7.5
        )
    ),
    "predictions": predictions.encode(
        PredictionRecord(
            topic_id="t",
            partition=0,
            offsets=[1, 2],
            scores=[0.5, 0.25],
            levels=[1, 0],
            hits=[0, 3],
            feature_version="f",
            at=5.0,
        )
    ),
    "devices": devices.encode(Device(device_id="d")),
}


def decoded(table: RecordTable, *values: bytes | None, key: bytes = b"d") -> tuple[pl.DataFrame, pl.DataFrame]:
    messages = [Message(0, offset, 1000 * offset, key, value) for offset, value in enumerate(values)]
    return decode_messages(table, "T", messages, NOW)


@settings(max_examples=400)
@given(
    st.sampled_from(RECORD_TABLES),
    st.dictionaries(
        st.sampled_from(
            [*{field for value in VALID.values() for field in msgspec.json.decode(value)}, "until", "evidence", "score"]
        ),
        whole | moments | st.text(max_size=3) | st.none() | st.lists(whole | moments, max_size=3),
        max_size=2,
    ),
    st.binary(max_size=20) | st.none(),
)
def test_every_message_is_a_row_or_kept_with_its_bytes(
    table: RecordTable, odd: dict[str, Any], rubbish: bytes | None
) -> None:
    """A message that crashed landing would stop the alarms of everybody, again and again."""
    strange = msgspec.json.encode({**msgspec.json.decode(VALID[table.name]), **odd})
    rows, bad = decoded(table, VALID[table.name], strange, rubbish)
    per_message = rows["record_offset"].unique().to_list() + bad["record_offset"].to_list()
    assert sorted(per_message) == [0, 1, 2]
    assert 0 not in bad["record_offset"].to_list()
    kept = dict(bad.select("record_offset", "value").iter_rows())
    assert all(kept[offset] == value for offset, value in ((1, strange), (2, rubbish)) if offset in kept)
    assert all(bad["fault"].str.len_chars() > 0)
    assert dict(rows.schema) == table.schema
    assert dict(bad.schema) == dict(UNREADABLE_SCHEMA)


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("alarms", "revision", 2**63),
        ("alarms", "partition", 2**31),
        ("alarms", "at", 1e300),
        ("alarms", "until", -1.0),
        ("alarm_commands", "at", 253_402_300_800.0),
        ("predictions", "offsets", [2, 1]),
        ("predictions", "offsets", [1, 1]),
        ("predictions", "offsets", [-1, 1]),
        ("predictions", "offsets", [1, 2**62]),
        ("predictions", "levels", [1, 128]),
        ("predictions", "hits", [1, -(2**64)]),
        ("predictions", "topic_id", "a/b"),
        ("devices", "updated_at", 1e17),
    ],
)
def test_what_fits_no_column_is_named(table: str, field: str, value: Any) -> None:
    """Whoever wrote it must see which field it was."""
    odd = msgspec.json.encode({**msgspec.json.decode(VALID[table]), field: value})
    rows, bad = decoded(TABLES[table], odd)
    assert rows.is_empty()
    assert field.rstrip("s") in bad["fault"][0]


def test_an_alarm_keeps_every_field() -> None:
    """An audit trail with a field missing is none."""
    record = AlarmRecord(
        device_id="d",
        kind=alarms.Kind.OFFLINE,
        alarm_id="a",
        event=alarms.Event.VERDICT,
        state=alarms.State.SHELVED,
        severity="low",
        revision=7,
        topic_id="t",
        partition=3,
        cause=11,
        position=13,
        at=1.5,
        command_offset=17,
        acknowledged=True,
        event_time=2.5,
        raised_event_time=3.5,
        raised_at=4.5,
        peak="critical",
        repeats=19,
        until=5.5,
        by="ann",
        reason="because",
        command_id="c",
        verdict=alarms.Verdict.FALSE_ALARM,
        site="s",
        room="r",
        holds=True,
        evidence=Evidence(
            rules=("x", "y"),
            first_offset=23,
            last_offset=29,
            score=0.75,
            threshold=0.5,
            model_version="m",
            feature_version="f",
            values={"b": 2.0, "a": 1.0},
        ),
    )
    (row,) = decoded(TABLES["alarms"], alarms.encode(record))[0].to_dicts()
    evidence = msgspec.to_builtins(record.evidence)
    assert row.pop("sensor_values") == '{"a":1.0,"b":2.0}'
    for name, value in {
        **{field: getattr(record, field) for field in AlarmRecord.__struct_fields__},
        **evidence,
    }.items():
        if name in ("evidence", "values"):
            continue
        found = row[name]
        if isinstance(found, datetime):
            found = found.timestamp()
        assert found == (list(value) if isinstance(value, tuple) else value), name
    assert row[DAY] == date(1970, 1, 1)
    assert (row["record_topic_id"], row["record_partition"], row["record_offset"]) == ("T", 0, 0)
    assert row["append_time"] == datetime(1970, 1, 1, tzinfo=UTC)
    assert row["ingest_time"] == NOW


def test_a_message_without_append_time_lands_today() -> None:
    """A topic that somebody made without append times would land under no day at all."""
    frame, _ = decode_messages(TABLES["devices"], "T", [Message(0, 1, -1, b"d", VALID["devices"])], NOW)
    assert (frame[DAY][0], frame["append_time"][0]) == (NOW.date(), None)


def test_a_removed_device_is_a_row_too() -> None:
    """The history must say when a device was taken off the list."""
    rows, bad = decoded(TABLES["devices"], VALID["devices"], None)
    assert bad.is_empty()
    assert rows.select("device_id", "removed").rows() == [("d", False), ("d", True)]


def test_each_table_has_a_topic_of_the_platform_and_storable_columns() -> None:
    """A table whose topic nobody makes would stay empty for ever."""
    assert {table.topic for table in RECORD_TABLES} <= {spec.name for spec in topic_specs()}
    for table in RECORD_TABLES:
        assert storage_schema(table.schema).names == list(table.schema)
        assert set(table.indexed) <= set(table.schema)


# -- one prediction a reading ----------------------------------------------------------------------------

published = st.lists(
    st.tuples(st.sampled_from(["t", "u"]), st.integers(0, 1), st.integers(0, 30), st.integers(1, 8)), max_size=12
)


@given(published, st.integers(1, 5))
def test_what_is_not_below_a_mark_has_never_landed(polls: list[tuple[str, int, int, int]], at_once: int) -> None:
    """A prediction that is taken for new must be new, and none may be lost, however detectors overlap."""
    marks: dict[tuple[str, int], int] = {}
    landed: set[tuple[str, int, int]] = set()
    everything: set[tuple[str, int, int]] = set()
    for start in range(0, len(polls), at_once):
        rows = pl.DataFrame(
            [
                (topic_id, partition, offset)
                for topic_id, partition, first, count in polls[start : start + at_once]
                for offset in range(first, first + count)
            ],
            schema={"topic_id": pl.String, "partition": pl.Int32, "offset": pl.Int64},
            orient="row",
        )
        everything |= set(rows.iter_rows())
        fresh = first_of_each(rows)
        assert fresh.height == len(set(rows.iter_rows()))
        suspects = set(below_marks(fresh, marks).iter_rows())
        new = set(fresh.iter_rows()) - (suspects & landed)
        assert not new & landed
        landed |= new
        for place, mark in marks_of(fresh).items():
            marks[place] = max(mark, marks.get(place, 0))
    assert landed == everything


# -- the latest entry of each device ---------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.none() | st.tuples(st.sampled_from([devices.FIRST_SEEN, devices.OPERATOR]), st.integers(0, 5)),
        ),
        max_size=12,
    )
)
def test_the_table_gives_the_entries_that_the_registry_gives(steps: list[tuple[str, tuple[str, int] | None]]) -> None:
    """A report on devices must not contradict the detector."""
    roll = Roll.empty()
    messages = [Message(0, 0, 0, b"gone", devices.encode(Device(device_id="gone")))]
    earlier, _ = decode_messages(TABLES["devices"], "older-topic", messages, NOW - timedelta(days=1))
    messages = []
    for offset, (name, content) in enumerate(steps):
        entry = Device(device_id=name, source=content[0], updated_at=content[1]) if content else None
        roll.take(name, entry)
        messages.append(Message(0, offset, 0, name.encode(), devices.encode(entry) if entry else None))
    history, bad = decode_messages(TABLES["devices"], "T", messages, NOW)
    assert bad.is_empty()
    found = latest_devices(pl.concat([history, earlier]).lazy()).collect()
    if not steps:
        assert found["device_id"].to_list() == ["gone"]
        return
    assert dict(found.select("device_id", "source").iter_rows()) == {
        name: entry.source for name, entry in roll.devices.items()
    }
    times = {row["device_id"]: row["updated_at"].timestamp() for row in found.to_dicts()}
    assert times == {name: entry.updated_at for name, entry in roll.devices.items()}
