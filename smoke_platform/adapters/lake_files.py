"""Files of a Delta table that one process writes and another commits.

Belongs here: writing Parquet below a table's folder, what its commit has to say about each file, and which of the files
a reader needs. Does not: the commit (``streaming.landing.LandedTable``), what the rows are, which process does what
(``streaming.spark_tasks``).

A file that no commit names is invisible to every reader, and the next vacuum deletes it. So whoever writes files may
die at any moment, or do so twice.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction

#: A longer text is left out of a file's statistics: a cut one would have to be cut upwards for a greatest value.
LONGEST_TEXT = 100
#: Delta has no unsigned numbers.
_SIGNED: Mapping[pl.DataType, pl.DataType] = {
    pl.UInt8(): pl.Int8(),
    pl.UInt16(): pl.Int16(),
    pl.UInt32(): pl.Int32(),
    pl.UInt64(): pl.Int64(),
}


class WrittenFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that waits for its commit.

    Attributes:
        path: below the table's folder.
        size: in bytes.
        day_column, day: partition column and its value, ISO.
        rows: how many.
        stats: of the columns that readers filter by, as Delta's JSON.
        written_ms: epoch milliseconds.
    """

    path: str
    size: int
    day_column: str
    day: str
    rows: int
    stats: str
    written_ms: int

    def action(self) -> AddAction:
        return AddAction(self.path, self.size, {self.day_column: self.day}, self.written_ms, True, self.stats)


@dataclass(frozen=True, slots=True)
class FileShape:
    """How a table's files are written.

    Attributes:
        address: folder or object-store URL of the table.
        day: its partition column, a date; it is part of the path and not of the file.
        indexed: columns whose extremes stand in the commit, so that readers skip files.
        compression: by pyarrow's name; ``lz4`` is what Parquet calls LZ4_RAW.
        dictionaries: columns whose values repeat; ``None`` for all.
    """

    address: str
    day: str
    indexed: tuple[str, ...]
    compression: str = "zstd"
    dictionaries: tuple[str, ...] | None = None


def write_files(rows: pl.DataFrame, shape: FileShape) -> list[WrittenFile]:
    """Writes the rows, one file for each day among them; they belong to the table only when they are committed.

    Args:
        rows: with the columns of the table.
    """
    files = []
    for (day,), part in rows.partition_by(shape.day, as_dict=True, maintain_order=True).items():
        assert isinstance(day, date)  # noqa: S101 - tells the type checker what the column holds
        files.append(_write(part.drop(shape.day), day, shape))
    return files


def _write(rows: pl.DataFrame, day: date, shape: FileShape) -> WrittenFile:
    path = f"{shape.day}={day.isoformat()}/part-{uuid.uuid4()}.{shape.compression}.parquet"
    signed = [pl.col(name).cast(_SIGNED[kind]) for name, kind in rows.schema.items() if kind in _SIGNED]
    table = rows.with_columns(signed).to_arrow(compat_level=pl.CompatLevel.oldest())
    options: dict[str, Any] = {
        "compression": shape.compression,
        "compression_level": 1 if shape.compression == "zstd" else None,
        "use_dictionary": True if shape.dictionaries is None else list(shape.dictionaries),
        "write_statistics": [name for name in shape.indexed if name in rows.columns],
        # Readers go by the table's schema.
        "store_schema": False,
    }
    if "://" in shape.address:
        size = _write_object(table, shape.address, path, options)
    else:
        target = Path(shape.address) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target, **options)
        size = target.stat().st_size
    return WrittenFile(
        path=path,
        size=size,
        day_column=shape.day,
        day=day.isoformat(),
        rows=rows.height,
        stats=json.dumps(statistics(rows, shape.indexed)),
        written_ms=int(time.time() * 1000),
    )


def _write_object(table: Any, address: str, path: str, options: Mapping[str, Any]) -> int:
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import PyFileSystem

    # The same access, with the same settings from the environment, as for every other table of the lake.
    store = PyFileSystem(DeltaStorageHandler(address))
    with store.open_output_stream(path) as stream:
        pq.write_table(table, stream, **options)
    return int(store.get_file_info(path).size)


def statistics(rows: pl.DataFrame, indexed: tuple[str, ...]) -> dict[str, Any]:
    """Number of rows, and of each indexed column least and greatest value and the number of nulls, as Delta has them.

    >>> statistics(pl.DataFrame({"offset": [7, 5, None]}), ("offset",))
    {'numRecords': 3, 'minValues': {'offset': 5}, 'maxValues': {'offset': 7}, 'nullCount': {'offset': 1}}
    """
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for name in indexed:
        if name not in rows.columns:
            continue
        column = rows[name]
        nulls[name] = column.null_count()
        low, high = _plain(column.min()), _plain(column.max())
        if low is None or high is None or max(len(str(low)), len(str(high))) > LONGEST_TEXT:
            continue
        least[name], greatest[name] = low, high
    return {"numRecords": rows.height, "minValues": least, "maxValues": greatest, "nullCount": nulls}


def files_of(table: DeltaTable, column: str, ranges: Sequence[tuple[Any, Any]]) -> list[tuple[str, int]]:
    """The table's files that may hold a row whose ``column`` lies in one of the ranges, each with its number of rows.

    Args:
        column: of times or whole numbers, by which files are skipped.
        ranges: from the first up to, not including, the second.

    Returns:
        (full path or address, rows), in the order of paths.
    """
    actions = pl.DataFrame(pa.table(table.get_add_actions(flatten=True)))
    low, high = f"min.{column}", f"max.{column}"
    if low in actions.columns and high in actions.columns:
        greatest = pl.col(high)
        if actions.schema[high].is_temporal():
            greatest = greatest + timedelta(milliseconds=1)  # it may have been cut to milliseconds
        overlaps = pl.any_horizontal((pl.col(low) < end) & (greatest >= begin) for begin, end in ranges)
        actions = actions.filter(overlaps.fill_null(value=True))
    root = table.table_uri.removeprefix("file://").rstrip("/")
    rows = actions.select("path", "num_records").sort("path").iter_rows()
    return [(f"{root}/{path}", count or 0) for path, count in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else value
