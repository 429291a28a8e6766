"""The mart of windows on real Delta tables, dbt and DuckDB: which row holds, what is joined, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from smoke_platform.adapters import warehouse
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.warehouse_schema import WINDOW, polars_schema
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings
from smoke_platform_tests import warehouse_data as data
from smoke_platform_tests import window_data as more

DAY = date(2022, 6, 9)
NEXT = DAY + timedelta(days=1)
MIDNIGHT = datetime(2022, 6, 10, tzinfo=UTC)
KEY = ["device_id", "window_start"]
pytestmark = pytest.mark.integration


@dataclass
class Built:
    """Readings of a morning and around midnight with their windows, written as a stream brought them."""

    settings: Settings
    lake: Lake
    rows: pl.DataFrame
    windows: pl.DataFrame

    def mart(self) -> pl.DataFrame:
        warehouse.build(self.settings, DAY, DAY)
        warehouse.publish_marts(self.settings, [DAY])
        return warehouse.read_mart(self.settings, WINDOW).collect()

    def of_the_day(self) -> pl.DataFrame:
        return self.windows.filter(pl.col("event_date") == DAY)


@pytest.fixture(scope="module")
def built(settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Built:
    settings = settings_for(tmp_path_factory.mktemp("windows"))
    lake = Lake(settings.lake)
    morning = data.random_readings(DAY, 400, data.SEED).filter(pl.col("event_time").dt.hour() < 2)
    rows = pl.concat([morning, more.around_midnight(DAY, 300, 5, first_offset=10_000)])
    data.land(lake, rows)
    windows = more.windows_of(rows)
    # Half of the readings came first; the windows that the others changed were written again. The order in which a
    # table's rows are read means nothing.
    early = more.windows_of(rows.filter(pl.col("offset") % 2 == 0))
    corrected = _changed(windows, early)
    assert 0 < corrected.height < windows.height
    more.land_windows(lake, corrected, more.WRITTEN + timedelta(hours=1))
    more.land_windows(lake, early)
    return Built(settings, lake, rows, windows)


def _changed(windows: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    return windows.join(before.select(*KEY, "revision"), on=[*KEY, "revision"], how="anti")


def _assert_mart(got: pl.DataFrame, windows: pl.DataFrame, facts: pl.DataFrame) -> None:
    expected = windows.join(facts, on=KEY, how="left", validate="1:1")
    assert got.schema == polars_schema(WINDOW)
    columns = got.columns
    assert_frame_equal(got, expected.select(columns).cast(dict(got.schema)).sort(KEY), rel_tol=1e-12)


def test_the_latest_revision_of_each_window_is_there_before_anything_else_has_landed(built: Built) -> None:
    """Without it a corrected window would show its first values, or a new platform would have no windows at all."""
    unwindowed = data.random_readings(DAY, 30, 77, first_offset=30_000).with_columns(device_id=pl.lit("unwindowed"))
    data.land(built.lake, unwindowed)
    got = built.mart()
    _assert_mart(got, built.of_the_day(), more.joined(built.of_the_day(), built.rows))
    assert got["late_count"].sum() > 0
    assert got["duplicate_count"].sum() > 0
    assert got.filter(pl.col("window_end") > MIDNIGHT).height > 0
    assert set(got["judged_count"]) == {0}
    assert set(got["alarm_count"]) == {0}
    assert got["score_mean"].null_count() == got["rule_hits"].null_count() == got.height
    # An engine that is behind or switched off stops nothing, but it is told.
    [log] = (warehouse.target_dir(built.settings) / "runs").glob("*/dbt.log")
    assert re.search(r"WARN \d+ fct_device_window_is_complete", log.read_text("utf-8"))


def test_corrections_across_midnight_build_the_day_anew_with_its_scores_hits_and_alarms(built: Built) -> None:
    """Without it the windows across midnight would stay as they were, or a fire's alarm would stand in another one."""
    seen, record = warehouse.log_positions(built.lake), warehouse.published_builds(built.settings)
    rows = more.around_midnight(DAY, 60, 9, first_offset=20_000).filter(pl.col("event_time") >= MIDNIGHT)
    data.land(built.lake, rows)
    built.rows = pl.concat([built.rows, rows])
    windows = more.windows_of(built.rows)
    more.land_windows(built.lake, _changed(windows, built.windows), more.WRITTEN + timedelta(hours=2))
    built.windows = windows
    for table, days in (("readings", {NEXT}), ("window_statistics", {DAY, NEXT})):
        _, arrivals = warehouse.arrivals_since(built.lake, table, seen[table], record)
        assert {arrival.day for arrival in arrivals} == days

    predictions = more.land_predictions(built.lake, built.rows, 3)
    device, inside = built.of_the_day().select(KEY).row(0)
    alarms = [
        (device, "a", "raised", inside),
        (device, "a", "raised", inside),  # a detector that was paused wrote it once more
        (device, "a", "escalated", inside),
        (device, "b", "raised", MIDNIGHT - timedelta(microseconds=1)),
        (device, "c", "acknowledged", MIDNIGHT + timedelta(minutes=1)),
        (device, "", "shelved", inside),  # no alarm, only a device taken out of service
        (device, "d", "raised", None),  # fell silent: no reading led to it
        ("device-unknown", "e", "raised", inside),
    ]
    more.land_alarms(built.lake, alarms[:5], DAY)
    more.land_alarms(built.lake, alarms[5:], NEXT)
    got = built.mart()
    _assert_mart(got, built.of_the_day(), more.joined(built.of_the_day(), built.rows, predictions, alarms))
    assert got["judged_count"].sum() > got["score_mean"].count() > 0
    assert got["alarm_count"].max() > 0
    assert 0 < got.filter(pl.col("judged_count") == 0).height < got.height


def test_windows_that_no_readings_account_for_stop_the_build(built: Built) -> None:
    """Without it a window that counted readings twice would reach every chart."""
    doubled = built.of_the_day().head(1).with_columns(pl.col("revision") + 1, pl.col("duplicate_count") + 1)
    more.land_windows(built.lake, doubled)
    with pytest.raises(SmokeError, match="fct_device_window_rests_on_readings"):
        built.mart()


def test_only_files_that_can_matter_are_read(built: Built) -> None:
    """Without it each build would read every prediction that was ever made."""
    from smoke_platform.adapters.warehouse_source import Snapshot

    files = {path.name for path in Path(built.lake.address("predictions")).rglob("*.parquet")}
    far = more.around_midnight(NEXT, 50, 4, first_offset=900_000)
    more.land_predictions(built.lake, far, 1)
    dataset = Snapshot(built.lake, DAY, DAY).dataset("predictions")
    assert {Path(name).name for name in dataset.files} == files
    assert Snapshot(built.lake, DAY - timedelta(days=9), DAY - timedelta(days=9)).dataset("alarms").count_rows() == 0
