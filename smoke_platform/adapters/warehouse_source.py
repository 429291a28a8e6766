"""The dbt-duckdb plugin through which the warehouse reads the lake's Delta tables.

Belongs here: what dbt loads by this module's name. Does not: anything the platform's own processes import (dbt is
slow to import). DuckDB's own Delta reader is an extension that is downloaded at run time, and the plugin that comes
with dbt-duckdb opens the whole table; this one hands DuckDB an Arrow dataset of the files of the days being built,
which works alike on folders and object stores, and an empty one where nothing has been landed yet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.adapters.duckdb.utils import SourceConfig
from deltalake import DeltaTable

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake
from smoke_platform.adapters.warehouse import FIRST_DAY, LAST_DAY, days_between
from smoke_platform.adapters.warehouse_schema import SOURCES, WINDOW_REACH, LakeSource
from smoke_platform.domain.lake_records import DAY


class Plugin(BasePlugin):
    """Gives dbt the sources of ``models/sources.yml``.

    The profile names the ``lake`` (folder or URL), the environment the first and the last day of the build.
    """

    def initialize(self, config: dict[str, Any]) -> None:
        self._lake = Lake(str(config["lake"]))
        self._snapshot: Snapshot | None = None

    def load(self, source_config: SourceConfig) -> pads.Dataset:
        if self._snapshot is None:
            first, last = (date.fromisoformat(os.environ[name]) for name in (FIRST_DAY, LAST_DAY))
            self._snapshot = Snapshot(self._lake, first, last)
        return self._snapshot.dataset(source_config.identifier)

    def default_materialization(self) -> str:
        return "view"


class Snapshot:
    """The lake's tables as they are now, for the days from ``first`` to ``last``, both included.

    All are opened at once and in the order of ``SOURCES``: a table that is written from the readings must not be newer
    than they are.
    """

    def __init__(self, lake: Lake, first: date, last: date) -> None:
        self._tables = {name: lake.open(name) if lake.exists(name) else None for name in SOURCES}
        self._first, self._last = first, last
        self._spans: list[Span] | None = None

    def dataset(self, name: str) -> pads.Dataset:
        """The rows of the source ``name`` that these days may need, read when asked for; empty without a table.

        Whole files are left out by day, and by the readings of these days where a table is kept by arrival: what is
        read still has to be filtered. Columns that the table does not have are null, as old rows lack the columns of
        a newer schema.
        """
        source, table = SOURCES[name], self._tables[name]
        if table is None:
            return pads.dataset(source.schema.empty_table())
        files = self._predicate(name, source)
        if not files:
            return pads.dataset(source.schema.empty_table())
        dataset: pads.Dataset = table.to_pyarrow_dataset(file_pruning_predicate=files)
        if not isinstance(dataset, pads.FileSystemDataset) or not dataset.files:
            return pads.dataset(source.schema.empty_table())
        return dataset.replace_schema(_readable(source.schema, dataset.schema))

    def _predicate(self, name: str, source: LakeSource) -> list[Any]:
        """Which files to read, as deltalake wants it: all of these hold, or (lists of lists) one of them does."""
        if not source.by_arrival:
            days = days_between(self._first, self._last + timedelta(days=source.days_after))
            return [(PARTITION_COLUMN, "in", [day.isoformat() for day in days])]
        if self._spans is None:
            self._spans = spans_of_readings(self._tables[READINGS], self._first, self._last)
        if not self._spans:
            return []
        if "offset" not in source.schema.names:
            return [(DAY, ">=", min(span.arrived for span in self._spans))]
        return [
            [
                (DAY, ">=", span.arrived),
                ("topic_id", "=", span.topic_id),
                ("partition", "=", span.partition),
                ("offset", ">=", span.first),
                ("offset", "<=", span.last),
            ]
            for span in self._spans
        ]


@dataclass(frozen=True, slots=True)
class Span:
    """Where the readings of some days stand in the log: offsets, both included, and the day the first one arrived."""

    topic_id: str
    partition: int
    first: int
    last: int
    arrived: date


def spans_of_readings(table: DeltaTable | None, first: date, last: date) -> list[Span]:
    """The spans of the readings that windows beginning from ``first`` to ``last`` hold, one a topic and partition.

    Predictions and alarms follow their reading, so nothing that arrived before it is about it. Late readings are in no
    window; one of them would stretch a span over all that came since its day.
    """
    if table is None:
        return []
    source = SOURCES[READINGS]
    days = days_between(first, last + timedelta(days=source.days_after))
    end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1) + WINDOW_REACH
    rows = (
        pl.scan_delta(table)
        .filter(pl.col(PARTITION_COLUMN).is_in(days), ~pl.col("late"), pl.col("event_time") < end)
        .group_by("topic_id", "partition")
        .agg(
            pl.col("offset").min().alias("first"),
            pl.col("offset").max().alias("last"),
            pl.col("append_time").min().dt.date().alias("arrived"),
        )
        .sort("topic_id", "partition")
        .collect(engine="streaming")
    )
    return [Span(*row) for row in rows.iter_rows()]


def _readable(schema: pa.Schema, stored: pa.Schema) -> pa.Schema:
    """``schema`` with the stored type of each column that is stored, since a dataset can't cast all of them."""
    return pa.schema([stored.field(field.name) if field.name in stored.names else field for field in schema])
