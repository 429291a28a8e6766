"""Files of readings: every row is read exactly or named, recordings are told apart, replays never collide."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.domain import recordings
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import (
    ALL_SENSOR_NAMES,
    CANONICAL_NAME,
    ReadingRejected,
    parse_reading,
    reading_from_mapping,
)
from smoke_platform.domain.recordings import READING_SCHEMA, BadRow, RecordingFile, Replay, ReplayTime
from smoke_platform.streaming.producer import encode_readings
from smoke_platform_tests.strategies import readings, sensor_value

NAMES = ["UTC", "Temperature[C]", "PM2.5", "CNT", "Fire Alarm"]
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def write(path: Path, rows: list[list[Any]], names: list[str] = NAMES) -> Path:
    """A file as the public dataset is: CRLF, an unnamed index column first."""
    with path.open("w", newline="") as text:
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(["", *names])
        writer.writerows([[number, *row] for number, row in enumerate(rows)])
    return path


def read(path: Path, **options: Any) -> tuple[pl.DataFrame, list[BadRow]]:
    bad: list[BadRow] = []
    frames = list(RecordingFile(path, bad.append, **options).chunks())
    return pl.concat(frames) if frames else pl.DataFrame(), bad


def simple(count: int, start: int = 1_654_733_331, first: int = 0) -> list[list[Any]]:
    return [[start + number, 20.0 + number, 0.5, first + number, number % 2] for number in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


numbers_or_not = st.one_of(
    st.sampled_from(["", " 20.5 ", "20,5", "nan", "NaN", "inf", "1e3", "1e999", "0x1", "1_000", "-0", "warm", "0.1"]),
    st.floats().map(repr),
    st.integers(-(10**30), 10**30).map(str),
    st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=6),
)
rows_of_texts = st.lists(
    st.tuples(
        st.one_of(
            st.integers(1_600_000_000, 1_700_000_000).map(str),
            st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01 00:00", "1654733331.5", "-1", ""]),
            numbers_or_not,
        ),
        numbers_or_not,
        st.one_of(sensor_value("pm2_5").map(repr), numbers_or_not),
        st.one_of(st.integers(0, 2**53 + 2).map(str), numbers_or_not),
        st.sampled_from(["0", "1", "true", "FALSE", "", "2", "yes"]),
    ),
    min_size=1,
    max_size=6,
)


@given(rows_of_texts)
@settings(max_examples=300, deadline=None)
def test_rows_are_read_as_the_definition_of_a_reading_says(folder: Path, rows: list[tuple[str, ...]]) -> None:
    """The quick way through a column must not accept, change or refuse what a single message would not."""
    path = write(folder / "drawn.csv", [list(row) for row in rows])
    frame, bad = read(path)
    expected: list[dict[str, Any]] = []
    refused: list[int] = []
    for place, row in enumerate(rows):
        message: dict[str, Any] = {"device_id": "csv"}
        for name, text in zip(NAMES, map(str.strip, row), strict=True):
            if text:
                message[name] = as_number(text) if name != "Fire Alarm" else as_label(text)
        try:
            reading = reading_from_mapping(message)
        except ReadingRejected:
            refused.append(place + 2)
        else:
            sensors = {name: reading.sensors.get(name) for name in ("temperature_c", "pm2_5")}
            labels = {"fire_alarm": reading.fire_alarm, "sequence": reading.sequence}
            expected.append({"event_time": reading.event_time, **sensors, **labels})
    assert [row.line for row in bad] == refused
    found = frame.select("event_time", "temperature_c", "pm2_5", "fire_alarm", "sequence").to_dicts()
    # Compared as numbers: -0 in a text is -0.0 to one parser and 0 to another, and equal to both.
    assert found == expected


def as_number(text: str) -> Any:
    """What a person who reads the text would take it for; Python's own underscores are no numbers to others."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and abs(number) <= 2**53 else number


def as_label(text: str) -> Any:
    return {"true": True, "false": False}.get(text.lower(), text)


@given(st.lists(readings, min_size=1, max_size=5))
@settings(deadline=None)
def test_encoded_frames_read_back_bit_by_bit(drawn: list[Any]) -> None:
    """The quick encoder must write what ``Reading.to_json`` means."""
    frame = pl.DataFrame(
        [
            {
                "device_id": reading.device_id,
                "event_time": reading.event_time,
                **{name: reading.sensors.get(name) for name in ALL_SENSOR_NAMES},
                "fire_alarm": reading.fire_alarm,
                "sequence": reading.sequence,
                "source": str(reading.source),
            }
            for reading in drawn
        ],
        schema=READING_SCHEMA,
    )
    keys, values = encode_readings(frame)
    assert keys == [reading.device_id for reading in drawn]
    assert [parse_reading(value) for value in values] == drawn


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".zip"])
def test_packed_files_read_like_plain_ones(tmp_path: Path, suffix: str) -> None:
    """Recordings are passed around packed."""
    plain = write(tmp_path / "plain.csv", simple(50))
    path = tmp_path / f"packed{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(plain, "inner.csv")
            archive.writestr("readme.txt", "no data")
    else:
        path.write_bytes(gzip.compress(plain.read_bytes()) if suffix == ".csv.gz" else plain.read_bytes())
    assert read(path)[0].equals(read(plain)[0])


def test_recordings_are_told_apart_by_their_counter_and_by_jumps_in_time(tmp_path: Path) -> None:
    """Rows of two recordings under one device would make a device that is in two rooms."""
    start = 1_654_733_331
    rows = [
        *simple(10, start),
        *simple(10, start + 12),  # the counter starts again, although time goes on
        *simple(10, start + 5_000, first=10),  # time jumps, although the counter goes on
        *simple(10, start - 90_000, first=20),  # and back
        *simple(10, start - 90_000 + 200, first=30),  # a gap of minutes within a recording
    ]
    frame, bad = read(write(tmp_path / "several.csv", rows))
    assert not bad
    assert frame["recording"].to_list() == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 20
    assert frame["device_id"].unique(maintain_order=True).to_list() == [f"csv-recording-{n}" for n in (1, 2, 3, 4)]


def test_recordings_do_not_depend_on_how_the_file_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording's start may fall on a chunk's first row."""
    path = write(tmp_path / "cut.csv", [*simple(7), *simple(9), *simple(5)])
    whole, _ = read(path)
    for rows in (1, 2, 3, 7, 16):
        monkeypatch.setattr(recordings, "CHUNK_ROWS", rows)
        assert read(path)[0].equals(whole)


def test_a_file_without_a_counter_is_one_recording(tmp_path: Path) -> None:
    """CNT is optional: time alone tells recordings apart then."""
    path = tmp_path / "plain.csv"
    path.write_text("event_time,pm2_5\n2026-01-01T00:00:00Z,1\n2026-01-01T00:00:01Z,2\n2026-01-02T00:00:00Z,3\n")
    frame, bad = read(path)
    assert not bad
    assert frame["recording"].to_list() == [1, 1, 2]
    assert frame["sequence"].null_count() == 3


def test_dealt_rows_keep_their_time_and_never_collide(tmp_path: Path) -> None:
    """The way to make many devices of one file; a collision would be dropped as a duplicate."""
    path = write(tmp_path / "dealt.csv", [*simple(30), *simple(30)])
    frame, _ = read(path, devices=4)
    assert frame["device_id"].head(5).to_list() == [f"csv-device-{number}" for number in (1, 2, 3, 4, 1)]
    assert not frame.select("device_id", "event_time", "sequence").is_duplicated().any()
    assert frame["event_time"].equals(read(path)[0]["event_time"])


def test_a_device_column_is_taken_as_it_is(tmp_path: Path) -> None:
    """A file of several devices must not become one."""
    path = tmp_path / "devices.csv"
    path.write_text("device_id,UTC,PM2.5\nhall,1654733331,1\nkitchen,1654733331,2\n,1654733332,3\n")
    frame, bad = read(path)
    assert frame["device_id"].to_list() == ["hall", "kitchen"]
    assert [(row.line, row.field) for row in bad] == [(4, "device_id")]


def test_a_bad_row_names_line_and_field(tmp_path: Path) -> None:
    """Somebody has to find it in a file of a million lines."""
    rows = simple(4)
    rows[1][1] = "warm"
    rows[2][2] = "NaN"
    frame, bad = read(write(tmp_path / "bad.csv", rows))
    assert frame.height == 2
    assert [str(row) for row in bad] == [
        "line 3, temperature_c: wrong_type: str instead of a number in degC",
        "line 4, pm2_5: not_finite: not a finite number",
    ]


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    """Rows of a later format may mean something else by the same names."""
    path = tmp_path / "versions.csv"
    path.write_text("UTC,PM2.5,schema_version\n1654733331,1,1\n1654733332,1,2\n1654733333,1,\n")
    frame, bad = read(path)
    assert frame.height == 2
    assert [(row.line, row.field) for row in bad] == [(3, "schema_version")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column for a time"),
        ("UTC,CNT\n1,2\n", "a sensor"),
        ("PM2.5,CNT\n1,2\n", "a time"),
        ("UTC,PM2.5,pm2_5\n1,2,3\n", "two columns give pm2_5"),
    ],
)
def test_a_header_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    """The wrong file is the most frequent fault, and must not end in a million bad rows."""
    path = tmp_path / "header.csv"
    path.write_text(text)
    with pytest.raises(SmokeError, match=message):
        read(path)


@pytest.mark.parametrize("name", ["missing.csv", "damaged.csv.gz", "damaged.zip", "latin.csv", "folder.csv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """No stack trace for a wrong path."""
    path = tmp_path / name
    if name.startswith("damaged"):
        path.write_bytes(b"no archive")
    elif name.startswith("latin"):
        path.write_bytes("UTC,PM2.5,Höhe\n1,2,3\n".encode("latin-1"))
    elif name.startswith("folder"):
        path.mkdir()
    with pytest.raises(SmokeError, match=name):
        read(path)


def test_a_zip_with_two_files_asks_which(tmp_path: Path) -> None:
    """Taking the first one would be a guess."""
    path = tmp_path / "two.zip"
    buffer = io.StringIO()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", buffer.getvalue())
        archive.writestr("b.csv", buffer.getvalue())
    with pytest.raises(SmokeError, match="2 CSV files"):
        read(path)


@given(
    mode=st.sampled_from(list(ReplayTime)),
    speed=st.sampled_from([0.5, 1.0, 60.0, 977.0]),
    devices=st.sampled_from([None, 1, 3]),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_loops_never_collide(
    folder: Path, mode: ReplayTime, speed: float, devices: int | None, lengths: list[int]
) -> None:
    """A second pass that repeats (device, time, sequence) would be dropped as duplicates."""
    # Each begins later than the one before: rows that share time and CNT within a file are the file's own copies.
    rows = [row for place, length in enumerate(lengths) for row in simple(length, 1_654_733_331 + 100 * place)]
    frame, _ = read(write(folder / "loop.csv", rows), devices=devices)
    replay = Replay(mode, speed, NOW, parallel=devices is None)
    passes = replay.passes(frame)
    played = pl.concat([next(passes) for _ in range(3)])
    assert played.height == 3 * frame.height
    assert not played.select("device_id", "event_time", "sequence").is_duplicated().any()
    if mode is not ReplayTime.ORIGINAL:
        assert played["event_time"][0] == NOW
        assert played["event_time"].is_sorted()


def test_compressed_time_runs_faster_and_closes_the_gaps(tmp_path: Path) -> None:
    """A day of recordings is to be seen in minutes."""
    path = write(tmp_path / "day.csv", [*simple(61), *simple(61, start=1_654_900_000)])
    frame, _ = read(path)
    together = next(Replay(ReplayTime.COMPRESSED, 60, NOW).passes(frame))
    assert (together["event_time"].max() - NOW).total_seconds() == 1.0  # type: ignore[operator]  # a datetime
    dealt, _ = read(path, devices=2)
    in_turn = next(Replay(ReplayTime.NOW, 1.0, NOW, parallel=False).passes(dealt))
    assert (in_turn["event_time"].max() - NOW).total_seconds() == 121.0  # type: ignore[operator]  # a datetime


def test_every_column_of_the_dataset_has_a_place() -> None:
    """The aliases come from the one definition of a reading."""
    assert {CANONICAL_NAME[name] for name in NAMES} <= set(READING_SCHEMA) | {"event_time"}
