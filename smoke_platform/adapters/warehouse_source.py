"""The dbt-duckdb plugin through which the warehouse reads the lake's Delta tables.

Belongs here: what dbt loads by this module's name. Does not: anything the platform's own processes import (dbt is
slow to import). DuckDB's own Delta reader is an extension that is downloaded at run time, and the plugin that comes
with dbt-duckdb opens the whole table; this one hands DuckDB an Arrow dataset of the files of the days being built,
which works alike on folders and object stores, and an empty one where nothing has been landed yet.
"""

from __future__ import annotations

import os
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.adapters.duckdb.utils import SourceConfig

from smoke_platform.adapters.lake import PARTITION_COLUMN, Lake
from smoke_platform.adapters.warehouse import FIRST_DAY, LAST_DAY, days_between
from smoke_platform.adapters.warehouse_schema import SOURCES


class Plugin(BasePlugin):
    """Gives dbt the sources of ``models/sources.yml``.

    The profile names the ``lake`` (folder or URL), the environment the first and the last day of the build.
    """

    def initialize(self, config: dict[str, Any]) -> None:
        self._lake = Lake(str(config["lake"]))

    def load(self, source_config: SourceConfig) -> pads.Dataset:
        first, last = (date.fromisoformat(os.environ[name]) for name in (FIRST_DAY, LAST_DAY))
        return window_dataset(self._lake, source_config.identifier, first, last)

    def default_materialization(self) -> str:
        return "view"


def window_dataset(lake: Lake, name: str, first: date, last: date) -> pads.Dataset:
    """The rows of ``lake/name`` from ``first`` to ``last``, read when asked for; empty where there is no table.

    Columns that the table does not have are null, as old rows lack the columns of a newer schema.
    """
    schema = SOURCES[name]
    if not lake.exists(name):
        return pads.dataset(schema.empty_table())
    days = [day.isoformat() for day in days_between(first, last)]
    dataset: pads.Dataset = lake.open(name).to_pyarrow_dataset(partitions=[(PARTITION_COLUMN, "in", days)])
    if not isinstance(dataset, pads.FileSystemDataset) or not dataset.files:
        return pads.dataset(schema.empty_table())
    return dataset.replace_schema(_readable(schema, dataset.schema))


def _readable(schema: pa.Schema, stored: pa.Schema) -> pa.Schema:
    """``schema`` with the stored type of each column that is stored, since a dataset can't cast all of them."""
    return pa.schema([stored.field(field.name) if field.name in stored.names else field for field in schema])
