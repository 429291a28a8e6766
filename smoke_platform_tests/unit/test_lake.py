"""The lake's tables: made, appended to, replaced in part."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from deltalake.exceptions import DeltaError

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, READINGS_COLUMNS, READINGS_SCHEMA, Lake
from smoke_platform.domain.errors import SmokeError

DAYS = pl.DataFrame({"event_date": [date(2022, 1, 1), date(2022, 1, 2)], "x": [1.0, 2.0], "s": ["a", None]})


def test_append_makes_the_table_and_adds_to_it(tmp_path: Path) -> None:
    """A first run on an empty lake must work as any later one."""
    lake = Lake(str(tmp_path))
    assert not lake.exists("days")
    assert lake.version("days") == -1
    lake.append("days", DAYS, [PARTITION_COLUMN])
    lake.append("days", DAYS, [PARTITION_COLUMN])
    assert lake.scan("days").collect().height == 4
    assert lake.open("days").metadata().partition_columns == [PARTITION_COLUMN]


def test_replace_where_touches_only_what_it_names(tmp_path: Path) -> None:
    """Building one day again must not lose or double another day."""
    lake = Lake(str(tmp_path))
    lake.replace_where("days", DAYS, "true", [PARTITION_COLUMN])
    for _ in range(2):
        again = DAYS.head(1).with_columns(x=pl.lit(9.0))
        lake.replace_where("days", again, {PARTITION_COLUMN: date(2022, 1, 1)}, [PARTITION_COLUMN])
    assert sorted(lake.scan("days").collect()["x"]) == [2.0, 9.0]
    lake.replace_where("days", DAYS.head(0), {PARTITION_COLUMN: date(2022, 1, 2)}, [PARTITION_COLUMN])
    assert lake.scan("days").collect()["x"].to_list() == [9.0]


def test_replace_where_refuses_rows_of_another_day(tmp_path: Path) -> None:
    """A row outside the replaced part would be doubled by the next build of its own day."""
    lake = Lake(str(tmp_path))
    lake.append("days", DAYS, [PARTITION_COLUMN])
    with pytest.raises(DeltaError):
        lake.replace_where("days", DAYS.tail(1), {PARTITION_COLUMN: date(2022, 1, 1)}, [PARTITION_COLUMN])


def test_missing_table_is_named(tmp_path: Path) -> None:
    """Asked for a table that has no rows yet, a person learns which one and when it comes."""
    with pytest.raises(SmokeError, match="readings"):
        Lake(str(tmp_path)).scan(READINGS)


def test_readings_schema_survives_storage(tmp_path: Path) -> None:
    """Readers rely on the column types of lake/readings; times stay UTC to the microsecond."""
    lake = Lake(str(tmp_path))
    table = lake.create(READINGS, READINGS_SCHEMA, [PARTITION_COLUMN])
    lake.create(READINGS, READINGS_SCHEMA, [PARTITION_COLUMN])
    assert table.version() == 0
    moment = datetime(2022, 6, 9, 0, 8, 51, 123456, tzinfo=UTC)
    frame = pl.from_arrow(READINGS_SCHEMA.empty_table())
    assert isinstance(frame, pl.DataFrame)
    row = pl.DataFrame(
        [{"event_date": moment.date(), "device_id": "a", "event_time": moment, "offset": 1}], schema=frame.schema
    )
    lake.append(READINGS, row, [PARTITION_COLUMN])
    stored = lake.scan(READINGS).collect()
    assert tuple(stored.columns) == READINGS_COLUMNS
    assert stored["event_time"].to_list() == [moment]
    assert stored.schema["event_time"] == pl.Datetime("us", "UTC")
