"""What a proof feeds the platform, and what must come out of it, read apart from the platform's own parser."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSORS, Reading, Source
from smoke_platform.domain.recordings import RecordingFile

#: Columns that must come out exactly as they went in.
VALUES = (*ALL_SENSOR_NAMES, "fire_alarm")


@dataclass(frozen=True, slots=True)
class Feed:
    """Readings to send and what must be found of them.

    Attributes:
        readings: device_id, event_time, sequence, source and ``VALUES``, in the order in which they are sent.
        expected: ``key`` and ``VALUES``; the rows that must be found in the lake.
        key: columns that tell one row from all others.
    """

    name: str
    readings: pl.DataFrame
    expected: pl.DataFrame
    key: tuple[str, ...]

    @property
    def days(self) -> list[date]:
        """The UTC days of event time."""
        return sorted(self.expected["event_time"].dt.date().unique().to_list())

    def messages(self) -> Iterator[tuple[str, bytes]]:
        """Device and message of each reading."""
        for row in self.readings.iter_rows(named=True):
            reading = Reading(
                device_id=row["device_id"],
                event_time=row["event_time"],
                sensors={name: row[name] for name in ALL_SENSOR_NAMES if row[name] is not None},
                fire_alarm=row["fire_alarm"],
                sequence=row["sequence"],
                source=Source(row["source"]),
            )
            yield reading.device_id, reading.to_json()


def simulated_feed(devices: int, seconds: int, seed: int) -> Feed:
    """Simulated devices at noon of yesterday, the last UTC day that is complete; the simulator is the truth."""
    from smoke_platform.domain.simulator import simulate

    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1)
    frame = simulate(devices, noon, seconds, seed, fires_per_device_day=12.0).sort("event_time", "device_id")
    key = ("device_id", "event_time", "sequence")
    columns = [*key, *VALUES]
    return Feed(
        f"{devices} simulated devices, {seconds} s", frame.select(*columns, "source"), frame.select(columns), key
    )


def csv_feed(file: Path) -> Feed:
    """The recordings of a file in the dataset's format.

    What is sent goes through the producer's own reader; what is expected is read by Polars' CSV reader, so that a
    fault of the former shows.

    Raises:
        SmokeError: where a row of the file is no reading, or two rows cannot be told apart.
    """
    expected = _expected_of_csv(file)
    key = ("event_time", "sequence")
    if expected.select(key).is_duplicated().any():
        raise SmokeError(f"{file.name} has rows with the same UTC and CNT", "a proof needs rows that can be told apart")
    bad: list[str] = []
    readings = pl.concat(RecordingFile(file, lambda row: bad.append(str(row))).chunks())
    if bad:
        raise SmokeError(f"{file.name}: {len(bad)} rows are no readings, e.g. {bad[0]}", "correct or remove them")
    return Feed(file.name, readings, expected, key)


def _expected_of_csv(file: Path) -> pl.DataFrame:
    source: Path | io.BytesIO = file
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            source = io.BytesIO(archive.read(archive.namelist()[0]))
    frame = pl.read_csv(source)
    time = pl.from_epoch(pl.col("UTC"), time_unit="s").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return frame.select(
        time.alias("event_time"),
        pl.col("CNT").cast(pl.Int64).alias("sequence"),
        *(pl.col(sensor.aliases[0]).cast(pl.Float64).alias(sensor.name) for sensor in SENSORS),
        pl.lit(None, dtype=pl.Float64).alias("co_ppm"),
        (pl.col("Fire Alarm") == 1).alias("fire_alarm"),
    )
