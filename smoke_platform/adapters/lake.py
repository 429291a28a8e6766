"""The lake: Delta tables below one folder or object-store URL, and the storage schema of the readings.

Belongs here: opening, scanning, appending and replacing tables; the Arrow schema of ``lake/readings`` and of what
shares its columns, and of the tables whose columns the domain names. Does not: when and what to write
(``streaming.landing``, the asset modules), Kafka positions as such (``domain.offsets``). Every writer but landing goes
through ``append`` and ``replace_where``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable, Schema, WriterProperties, write_deltalake
from deltalake.exceptions import TableNotFoundError

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

READINGS = "readings"
PARTITION_COLUMN = "event_date"

_TIME = pa.timestamp("us", "UTC")

#: Storage schema of ``lake/readings``. (topic_id, partition, offset) identifies a row; ``replay_of`` is the identity of
#: the dead letter that a replayed message repairs ("topic id/partition/offset"), null for all others.
READINGS_SCHEMA: pa.Schema = pa.schema(
    [
        (PARTITION_COLUMN, pa.date32()),
        ("device_id", pa.string()),
        ("event_time", _TIME),
        *((name, pa.float64()) for name in ALL_SENSOR_NAMES),
        ("fire_alarm", pa.bool_()),
        ("sequence", pa.int64()),
        ("schema_version", pa.int32()),
        ("source", pa.string()),
        ("late", pa.bool_()),
        ("topic", pa.string()),
        ("topic_id", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("append_time", _TIME),
        ("ingest_time", _TIME),
        ("replay_of", pa.string()),
    ]
)
READINGS_COLUMNS: tuple[str, ...] = tuple(READINGS_SCHEMA.names)


def storage_schema(columns: Mapping[str, pl.DataType]) -> pa.Schema:
    """The Arrow schema of a table with these columns, as a frame of them is written."""
    return pl.DataFrame(schema=dict(columns)).to_arrow(compat_level=pl.CompatLevel.oldest()).schema


class Lake:
    """The Delta tables below ``root``, a folder or an object-store URL.

    An object store's credentials come from the environment, as deltalake documents them.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def address(self, name: str) -> str:
        """Folder or URL of the table ``name``, such as ``readings``."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        address = self.address(name)
        if "://" not in address and not (Path(address) / "_delta_log").is_dir():
            return False
        return DeltaTable.is_deltatable(address)

    def open(self, name: str) -> DeltaTable:
        """The table at its latest version.

        Raises:
            SmokeError: when there is no such table yet.
        """
        try:
            return DeltaTable(self.address(name))
        except TableNotFoundError:
            raise SmokeError(
                f"there is no table {name!r} in the lake {self.root}", "it appears when its first rows are written"
            ) from None

    def scan(self, name: str) -> pl.LazyFrame:
        """The table's rows at its latest version, read lazily; filters on ``event_date`` skip whole files.

        Raises:
            SmokeError: when there is no such table yet.
        """
        return pl.scan_delta(self.open(name))

    def version(self, name: str) -> int:
        """The table's latest version, or -1 where there is no such table yet."""
        return int(self.open(name).version()) if self.exists(name) else -1

    def create(
        self,
        name: str,
        schema: pa.Schema,
        partition_by: Sequence[str] = (),
        configuration: Mapping[str, str | None] | None = None,
    ) -> DeltaTable:
        """Makes the table if it isn't there, and opens it; two that do so at once agree on one table."""
        DeltaTable.create(
            self.address(name),
            Schema.from_arrow(schema),
            mode="ignore",
            partition_by=list(partition_by),
            configuration=dict(configuration or {}),
        )
        return self.open(name)

    def append(self, name: str, frame: pl.DataFrame, partition_by: Sequence[str] = ()) -> int:
        """Adds the rows of ``frame`` in one commit; makes the table with the frame's schema if it isn't there.

        Returns:
            The version of the table after the commit.
        """
        self._create_like(name, frame, partition_by)
        table = self.open(name)
        write_deltalake(table, frame.to_arrow(), mode="append", writer_properties=writer_properties())
        return int(table.version())

    def replace_where(
        self,
        name: str,
        frame: pl.DataFrame,
        predicate: str | Mapping[str, Any],
        partition_by: Sequence[str] = (),
        properties: WriterProperties | None = None,
    ) -> int:
        """Replaces the rows that meet ``predicate`` by those of ``frame``, in one commit: readers see old or new.

        Args:
            predicate: SQL such as ``event_date = '2022-06-09'``, or column -> value, all of which must be equal.
            frame: every row must meet the predicate; may be empty, which only removes rows.
            properties: of the Parquet files, in place of ``writer_properties``.

        Returns:
            The version of the table after the commit.
        """
        self._create_like(name, frame, partition_by)
        table = self.open(name)
        condition = predicate if isinstance(predicate, str) else sql_condition(predicate)
        write_deltalake(
            table,
            frame.to_arrow(),
            mode="overwrite",
            predicate=condition,
            writer_properties=properties or writer_properties(),
        )
        return int(table.version())

    def _create_like(self, name: str, frame: pl.DataFrame, partition_by: Sequence[str]) -> None:
        if not self.exists(name):
            self.create(name, frame.head(0).to_arrow().schema, partition_by)


def sql_condition(values: Mapping[str, Any]) -> str:
    """``column = 'value' AND ...`` for literals of the types that partition columns have (text, dates, integers).

    >>> sql_condition({"event_date": date(2022, 6, 9), "source": "o'hara"})
    "event_date = '2022-06-09' AND source = 'o''hara'"
    """
    return " AND ".join(f"{column} = {sql_literal(value)}" for column, value in values.items())


def sql_literal(value: Any) -> str:
    """A value of such a type, or a moment, as SQL has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, date):
        return f"'{value.isoformat()}'"
    return "'" + str(value).replace("'", "''") + "'"


def writer_properties() -> WriterProperties:
    """Parquet settings of batch-written tables: zstd at its fastest level."""
    return WriterProperties(compression="ZSTD", compression_level=1)
