"""Recordings: files in the public dataset's format, read into readings row by row and checked.

Belongs here: reading CSV (plain, .gz, .zip), naming what is wrong with a row, telling the recordings in a file apart,
and shifting their time for a replay. Does not: sending (``streaming.producer``), what a reading is
(``domain.readings``), labels' quality.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import polars as pl

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import (
    ALL_SENSOR_NAMES,
    ALL_SENSORS,
    CANONICAL_NAME,
    EARLIEST_EVENT_TIME,
    LARGEST_SEQUENCE,
    LONGEST_DEVICE_ID,
    ReadingRejected,
    Source,
    reading_from_mapping,
)

#: Rows that are read, checked and handed on at once: bounds memory, and is large enough to be quick.
CHUNK_ROWS = 20_000
#: Devices of this kind report every second; a longer silence means that somebody recorded anew.
LONGEST_GAP_S = 600.0
#: A clock may be set back a little while a recording runs.
LARGEST_STEP_BACK_S = 60.0

#: Columns of a frame of readings, in the order in which a message has them.
READING_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "device_id": pl.String,
    "event_time": pl.Datetime("us", "UTC"),
    **dict.fromkeys(ALL_SENSOR_NAMES, pl.Float64),
    "fire_alarm": pl.Boolean,
    "sequence": pl.Int64,
    "source": pl.String,
}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no reading.

    Attributes:
        line: number of the line in the file on which the row ends, counting from 1.
        field: canonical name of the field at fault, or an empty string for the row as a whole.
        detail: reason, what was found, what is expected.
    """

    line: int
    field: str
    detail: str

    def __str__(self) -> str:
        return f"line {self.line}{f', {self.field}' if self.field else ''}: {self.detail}"


class ReplayTime(StrEnum):
    """What event time replayed readings carry."""

    ORIGINAL = "original"
    NOW = "now"
    COMPRESSED = "compressed"


@contextmanager
def _text_of(path: Path) -> Iterator[io.TextIOBase]:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".csv")]
                if len(names) != 1:
                    raise SmokeError(
                        f"{path} holds {len(names)} CSV files, expected one", "unpack it and name the file you mean"
                    )
                with archive.open(names[0]) as raw:
                    yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        elif path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as text:
                yield text
        else:
            with path.open(encoding="utf-8-sig", newline="") as text:
                yield text
    except FileNotFoundError:
        raise SmokeError(f"there is no file {path}") from None
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError) as error:
        raise SmokeError(f"{path} is damaged: {error}", "fetch it again") from None
    except UnicodeDecodeError as error:
        raise SmokeError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise SmokeError(f"{path} cannot be read: {error.strerror or error}") from None


class RecordingFile:
    """A file of readings; iterate over ``chunks``.

    Args:
        path: CSV, or .gz or .zip of one. The header has the dataset's column names or canonical ones, in any
            order; an unnamed index column and unknown columns are ignored.
        on_bad_row: called for each row that is no reading; the row is left out.
        devices: ``None``: a device per recording (``csv-recording-1``, ...), or the file's own ``device_id``
            column. Otherwise the rows are dealt in turn to that many devices (``csv-device-1``, ...) and
            ``sequence`` is the row's number, so that rows that share time and CNT stay apart.
        source: what the readings say of their origin.

    Attributes:
        unknown: column names of the file that were ignored.
        rows, bad: counted so far.
        recordings: how many were found so far.
    """

    def __init__(
        self,
        path: Path,
        on_bad_row: Callable[[BadRow], None],
        *,
        devices: int | None = None,
        source: Source = Source.CSV,
    ) -> None:
        if devices is not None and devices < 1:
            raise SmokeError(f"{devices} devices", "name at least 1")
        self.path = path
        self.devices = devices
        self.source = source
        self.unknown: list[str] = []
        self.rows = self.bad = self.recordings = 0
        self._on_bad_row = on_bad_row
        self._last: tuple[int | None, float | None] = (None, None)

    def chunks(self) -> Iterator[pl.DataFrame]:
        """The file's readings in its order.

        Yields:
            Frames of at most ``CHUNK_ROWS`` rows: ``READING_SCHEMA`` and ``recording`` (int32, from 1).

        Raises:
            SmokeError: for a file that cannot be read or has no usable header.
        """
        self.rows = self.bad = self.recordings = 0
        self._last = (None, None)
        with _text_of(self.path) as text:
            reader = csv.reader(text)
            header = next(reader, [])
            places = self._places(header)
            rows: list[list[str]] = []
            lines: list[int] = []
            try:
                for row in reader:
                    if not row:
                        continue
                    if len(row) != len(header):
                        self._report(BadRow(reader.line_num, "", f"{len(row)} fields, the header has {len(header)}"))
                        continue
                    rows.append(row)
                    lines.append(reader.line_num)
                    if len(rows) == CHUNK_ROWS:
                        yield self._frame(rows, lines, places)
                        rows, lines = [], []
            except csv.Error as error:
                raise SmokeError(f"{self.path}, line {reader.line_num}: {error}") from None
            if rows:
                yield self._frame(rows, lines, places)

    def _places(self, header: Sequence[str]) -> dict[str, int]:
        places: dict[str, int] = {}
        self.unknown = []
        for place, name in enumerate(header):
            canonical = CANONICAL_NAME.get(name.strip())
            if canonical is None:
                if name.strip():
                    self.unknown.append(name)
            elif canonical in places:
                raise SmokeError(f"{self.path}: two columns give {canonical}: {header[places[canonical]]!r}, {name!r}")
            else:
                places[canonical] = place
        missing = [] if "event_time" in places else ["a time (UTC or event_time)"]
        if not any(name in places for name in ALL_SENSOR_NAMES):
            missing.append("a sensor (" + ", ".join(sensor.aliases[0] for sensor in ALL_SENSORS[:3]) + ", ...)")
        if missing:
            raise SmokeError(
                f"{self.path}, line 1: no column for {' nor for '.join(missing)}; "
                f"found {', '.join(header) or 'nothing'}",
                "the first line has to hold the dataset's column names or the canonical ones",
            )
        return places

    def _report(self, bad: BadRow) -> None:
        self.bad += 1
        self._on_bad_row(bad)

    def _frame(self, rows: list[list[str]], lines: list[int], places: Mapping[str, int]) -> pl.DataFrame:
        columns = list(zip(*rows, strict=True))
        raw = pl.DataFrame(
            {name: pl.Series(columns[place], dtype=pl.String) for name, place in places.items()}
        ).with_columns(pl.all().str.strip_chars().replace("", None))
        parsed = raw.select(
            _event_time(raw) if name == "event_time" else _COLUMN[name](pl.col(name)).alias(name)
            for name in raw.columns
            if name in _COLUMN or name == "event_time"
        )
        # Whatever the quick way cannot read with certainty is judged by the one definition of a reading.
        doubtful = parsed.select(
            pl.any_horizontal(
                [pl.col(name).is_null() & raw[name].is_not_null() for name in parsed.columns]
                + [pl.col("event_time").is_null()]
                + [pl.all_horizontal([pl.col(name).is_null() for name in parsed.columns if name in ALL_SENSOR_NAMES])]
                + ([_unusual_device(raw["device_id"])] if "device_id" in raw.columns else [])
                + ([raw["schema_version"].ne_missing("1")] if "schema_version" in raw.columns else [])
            )
        ).to_series()
        checked = {name: parsed[name].to_list() for name in parsed.columns} if doubtful.any() else {}
        accepted: list[int] = []
        for place in doubtful.arg_true().to_list():
            try:
                reading = _judged(raw.row(place, named=True))
            except ReadingRejected as fault:
                self._report(BadRow(lines[place], fault.field, f"{fault.reason}: {fault.detail}"))
                continue
            accepted.append(place)
            for name, values in checked.items():
                values[place] = reading.sensors.get(name) if name in ALL_SENSOR_NAMES else getattr(reading, name)
        if checked:
            parsed = pl.DataFrame(
                [pl.Series(name, values, dtype=parsed.schema[name]) for name, values in checked.items()]
            )
        good = ~doubtful | pl.Series(range(len(rows))).is_in(accepted)
        return self._complete(parsed.with_columns(raw.select(pl.col("^device_id$"))), good)

    def _complete(self, parsed: pl.DataFrame, good: pl.Series) -> pl.DataFrame:
        parsed = parsed.filter(good)
        recording = self._recordings(parsed)
        first = self.rows
        self.rows += parsed.height
        number = pl.Series(range(first, self.rows), dtype=pl.Int64)
        frame = parsed.select(
            [
                (pl.col(name) if name in parsed.columns else pl.lit(None)).cast(dtype).alias(name)
                for name, dtype in READING_SCHEMA.items()
            ]
        ).with_columns(source=pl.lit(str(self.source)), recording=pl.Series(recording, dtype=pl.Int32))
        if self.devices is not None:
            return frame.with_columns(
                device_id=pl.concat_str(pl.lit("csv-device-"), (number % self.devices + 1).cast(pl.String)),
                sequence=number,
            )
        if "device_id" in parsed.columns:
            return frame
        return frame.with_columns(
            device_id=pl.concat_str(pl.lit("csv-recording-"), pl.col("recording").cast(pl.String))
        )

    def _recordings(self, parsed: pl.DataFrame) -> list[int]:
        """The number of the recording that each row belongs to; goes on from the chunk before."""
        moments = parsed["event_time"].dt.epoch("us").to_list()
        sequences = parsed["sequence"].to_list() if "sequence" in parsed.columns else [None] * parsed.height
        numbers: list[int] = []
        last_sequence, last_moment = self._last
        for sequence, moment_us in zip(sequences, moments, strict=True):
            moment = moment_us / 1e6
            if _starts_anew(last_sequence, last_moment, sequence, moment):
                self.recordings += 1
            numbers.append(self.recordings)
            last_moment = moment
            last_sequence = sequence if sequence is not None else last_sequence
        self._last = (last_sequence, last_moment)
        return numbers


def _starts_anew(last_sequence: int | None, last_moment: float | None, sequence: int | None, moment: float) -> bool:
    if last_moment is None:
        return True
    if sequence is not None and last_sequence is not None and sequence < last_sequence:
        return True
    return not -LARGEST_STEP_BACK_S <= moment - last_moment <= LONGEST_GAP_S


def _judged(row: Mapping[str, str | None]) -> Any:
    """The row as ``domain.readings`` judges it, with the texts that are numbers made numbers.

    Raises:
        ReadingRejected: with the reason.
    """
    message: dict[str, Any] = {name: _value(name, text) for name, text in row.items() if text is not None}
    if "device_id" not in row:
        message["device_id"] = "csv"
    message.pop("source", None)
    return reading_from_mapping(message)


def _value(name: str, text: str) -> Any:
    if name in ("device_id", "source"):
        return text
    if name == "fire_alarm":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and abs(number) <= 2**53 else number


def _sensor(low: float, high: float) -> Callable[[pl.Expr], pl.Expr]:
    def parse(text: pl.Expr) -> pl.Expr:
        number = text.cast(pl.Float64, strict=False)
        return pl.when(number.is_between(low, high)).then(number)

    return parse


def _label(text: pl.Expr) -> pl.Expr:
    return text.str.to_lowercase().replace_strict(
        {"0": False, "1": True, "false": False, "true": True}, default=None, return_dtype=pl.Boolean
    )


def _whole(text: pl.Expr) -> pl.Expr:
    number = text.cast(pl.Int64, strict=False)
    return pl.when(number.is_between(0, LARGEST_SEQUENCE)).then(number)


_COLUMN: Final[dict[str, Callable[[pl.Expr], pl.Expr]]] = {
    **{sensor.name: _sensor(sensor.low, sensor.high) for sensor in ALL_SENSORS},
    "fire_alarm": _label,
    "sequence": _whole,
}


def _event_time(raw: pl.DataFrame) -> pl.Series:
    """Whole epoch seconds the quick way; anything else is left null and judged row by row."""
    seconds = raw["event_time"].cast(pl.Int64, strict=False)
    seconds = seconds.set(~seconds.is_between(EARLIEST_EVENT_TIME.timestamp(), 253_402_300_799).fill_null(False), None)
    return (seconds * 1_000_000).cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias("event_time")


def _unusual_device(names: pl.Series) -> pl.Series:
    plain = names.str.contains(rf"^[\x21-\x7e]{{1,{LONGEST_DEVICE_ID}}}$")
    return ~plain.fill_null(False)


# -- replay time -----------------------------------------------------------------------------------------


@dataclass
class Replay:
    """Gives replayed readings their event time, so that nothing collides, however often the file is played.

    Args:
        mode: original times; times that start now; or times that start now and run ``speed`` times as fast.
        now: when the replay starts.
        parallel: whether recordings are devices of their own, which then all start together. Otherwise they
            follow one another without the gaps.

    With ``NOW`` and ``COMPRESSED``, a reading is due when its event time comes. Each pass through the file (0, 1, ...)
    shifts time and sequence by a whole length of the file.
    """

    mode: ReplayTime
    speed: float = 1.0
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    parallel: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise SmokeError(f"speed {self.speed}", "name a number above 0")

    def passes(self, frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """The whole file's readings, pass after pass without end, each ordered as they are to be sent."""
        if frame.is_empty():
            return
        tape = self._tape(frame)
        interval_us = max(1, round(1_000_000 / (self.speed if self.mode is ReplayTime.COMPRESSED else 1.0)))
        span_us = _span_us(tape) + interval_us
        sequences = int(frame.select(pl.col("sequence").max().fill_null(0)).item()) + 1
        shift = 0
        while True:
            yield tape.with_columns(
                pl.col("event_time") + pl.duration(microseconds=shift * span_us),
                pl.col("sequence") + shift * sequences,
            )
            shift += 1

    def _tape(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.mode is ReplayTime.ORIGINAL:
            return frame
        since = (pl.col("event_time") - pl.col("event_time").min().over("recording")).dt.total_microseconds()
        if not self.parallel:
            lengths = (
                frame.group_by("recording", maintain_order=True)
                .agg((pl.col("event_time").max() - pl.col("event_time").min()).dt.total_microseconds().alias("length"))
                .with_columns(start=(pl.col("length") + 1_000_000).cum_sum().shift(1, fill_value=0))
            )
            starts = pl.col("recording").replace_strict(lengths["recording"], lengths["start"], return_dtype=pl.Int64)
            since = since + starts
        speed = self.speed if self.mode is ReplayTime.COMPRESSED else 1.0
        start = self.now.astimezone(UTC).replace(microsecond=0)
        shifted = pl.lit(start).cast(pl.Datetime("us", "UTC")) + pl.duration(
            microseconds=(since / speed).floor().cast(pl.Int64)
        )
        return frame.with_columns(event_time=shifted).sort("event_time", maintain_order=True)


def _span_us(frame: pl.DataFrame) -> int:
    low, high = frame.select(pl.col("event_time").min().alias("a"), pl.col("event_time").max().alias("b")).row(0)
    length: timedelta = high - low
    return length // timedelta(microseconds=1)
