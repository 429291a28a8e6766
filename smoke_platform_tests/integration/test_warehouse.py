"""The warehouse on real Delta tables, dbt and DuckDB: what it holds, how it is rebuilt, what is published."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from smoke_platform.adapters import warehouse
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake
from smoke_platform.adapters.warehouse_schema import (
    DAILY,
    EXAMPLES,
    MARTS,
    MINUTE,
    PROJECT_DIR,
    WINDOW,
    polars_schema,
    project_files,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings
from smoke_platform_tests import warehouse_data as data

DAYS = [date(2022, 6, 9), date(2022, 6, 10), date(2022, 6, 11), date(2022, 6, 12)]
MISSING = DAYS[2]
pytestmark = pytest.mark.integration


@dataclass
class Built:
    """A warehouse of four days, of which the third has no readings, and the rows it was built from."""

    settings: Settings
    lake: Lake
    rows: dict[date, pl.DataFrame] = field(default_factory=dict)


@pytest.fixture(scope="module")
def built(settings_for: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory) -> Built:
    settings = settings_for(tmp_path_factory.mktemp("warehouse"))
    it = Built(settings, Lake(settings.lake))
    for number, day in enumerate(DAYS):
        if day != MISSING:
            it.rows[day] = data.random_readings(day, 1_500, data.SEED + number, first_offset=10_000 * number)
            data.land(it.lake, it.rows[day])
            data.write_features(it.lake, day)
    warehouse.build(settings, DAYS[0], DAYS[-1])
    warehouse.publish_marts(settings, DAYS)
    return it


def _assert_day(it: Built, day: date) -> None:
    """The published marts of the day equal what Polars makes of its rows."""
    mart = lambda name: warehouse.read_mart(it.settings, name, day, day).collect()  # noqa: E731 - used three times below
    for name, expected in ((MINUTE, data.minute_facts(it.rows[day])), (DAILY, data.daily_facts(it.rows[day]))):
        got = mart(name)
        assert got.schema == polars_schema(name)
        assert_frame_equal(got, expected, check_column_order=False, check_row_order=False, rel_tol=1e-12)
    features = it.lake.scan("features").filter(pl.col(PARTITION_COLUMN) == day).collect()
    expected = data.examples(it.rows[day], features).select(polars_schema(EXAMPLES).names())
    got = mart(EXAMPLES).sort(data.IDENTITY)
    assert got.schema == polars_schema(EXAMPLES)
    assert_frame_equal(got, expected, rel_tol=0, abs_tol=0)
    assert 0 < got.height < it.rows[day].height


@pytest.mark.parametrize("day", [day for day in DAYS if day != MISSING])
def test_the_marts_hold_what_an_oracle_computes(built: Built, day: date) -> None:
    """Without it a wrong join, a lost duplicate or a misplaced minute would go into every chart and model."""
    _assert_day(built, day)


def test_a_day_without_readings_is_no_fault_and_has_no_file(built: Built) -> None:
    """Without it a silent day would stop the days after it."""
    assert not any(warehouse.mart_file(built.settings, mart, MISSING).exists() for mart in MARTS)
    assert warehouse.read_mart(built.settings, MINUTE, MISSING, MISSING).collect().is_empty()
    assert MISSING in warehouse.published_builds(built.settings)
    whole = warehouse.read_mart(built.settings, DAILY).select("event_date").collect()
    assert sorted(set(whole["event_date"])) == sorted(built.rows)


def test_more_rows_change_their_day_only_and_readers_never_see_half_of_it(built: Built) -> None:
    """Without it a console that reads during a build would show half a day, and builds would read the whole lake."""
    day, other = DAYS[1], DAYS[3]
    marts = [mart for mart in MARTS if warehouse.mart_file(built.settings, mart, other).exists()]
    others = {mart: warehouse.mart_file(built.settings, mart, other).stat().st_mtime_ns for mart in marts}
    assert {*MARTS} - {*marts} == {WINDOW}  # no engine has computed any
    before = warehouse.read_mart(built.settings, MINUTE, day, day).collect()

    more = data.random_readings(day, 400, 99, first_offset=90_000)
    # The same reading once more, under an identity that sorts before the one that counted so far.
    again = built.rows[day].head(50).with_columns(pl.lit("a-topic-that-sorts-first").alias("topic_id"))
    built.rows[day] = pl.concat([built.rows[day], more, again])
    data.land(built.lake, pl.concat([more, again]))
    data.write_features(built.lake, day)

    seen: list[pl.DataFrame] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(warehouse.read_mart(built.settings, MINUTE, day, day).collect())
            done.wait(0.05)

    reader = threading.Thread(target=read)
    reader.start()
    # A build that read another day's files would fail: they are not there.
    hidden = sorted(Path(built.lake.address(READINGS)).glob(f"{PARTITION_COLUMN}={other}/*.parquet"))
    assert hidden
    for path in hidden:
        path.rename(path.with_suffix(".hidden"))
    try:
        warehouse.build(built.settings, day, day)
        warehouse.publish_marts(built.settings, [day])
    finally:
        done.set()
        reader.join()
        for path in hidden:
            path.with_suffix(".hidden").rename(path)

    _assert_day(built, day)
    after = warehouse.read_mart(built.settings, MINUTE, day, day).collect()
    assert len(seen) > 10
    assert all(frame.equals(before) or frame.equals(after) for frame in seen)
    assert others == {mart: warehouse.mart_file(built.settings, mart, other).stat().st_mtime_ns for mart in marts}


def test_building_twice_gives_the_same_and_a_day_that_lost_its_rows_loses_its_facts(built: Built) -> None:
    """Without it a repeated build would double its rows, and withdrawn readings would live on in the marts."""
    same, emptied = DAYS[0], DAYS[3]
    before = {mart: warehouse.read_mart(built.settings, mart, same, same).collect() for mart in MARTS}
    condition = {PARTITION_COLUMN: emptied}
    built.lake.replace_where(READINGS, built.rows.pop(emptied).head(0), condition, [PARTITION_COLUMN])
    warehouse.build(built.settings, DAYS[0], DAYS[-1])
    warehouse.publish_marts(built.settings, DAYS)
    for mart in MARTS:
        again = warehouse.read_mart(built.settings, mart, same, same).collect()
        assert_frame_equal(again, before[mart], rel_tol=1e-12)
        assert warehouse.read_mart(built.settings, mart, emptied, emptied).collect().is_empty()


def test_a_platform_without_any_reading_builds_and_documents(
    settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    """Without it the first morning of a new platform would be red, and its marts would have no columns."""
    settings = settings_for(tmp_path)
    warehouse.build(settings, DAYS[0], DAYS[0])
    assert warehouse.publish_marts(settings, [DAYS[0]]) == dict.fromkeys(MARTS, 0)
    for mart in MARTS:
        assert warehouse.read_mart(settings, mart).collect_schema() == polars_schema(mart)
    page = warehouse.docs(settings).read_text(encoding="utf-8")
    assert "fct_device_minute" in page
    assert '<script src="http' not in page
    assert '<link rel="stylesheet" href="http' not in page


def test_what_was_not_built_to_the_end_is_not_published(settings_for: Callable[..., Settings], tmp_path: Path) -> None:
    """Without it a build that was killed half-way would be published by the next step that comes along."""
    settings = settings_for(tmp_path)
    with pytest.raises(SmokeError, match="no complete build of 2022-06-09"):
        warehouse.publish_marts(settings, [DAYS[0]])
    with pytest.raises(SmokeError, match="no mart 'nonsense'"):
        warehouse.read_mart(settings, "nonsense")


def test_nothing_is_written_into_the_checkout_and_a_second_preparation_is_free(built: Built) -> None:
    """Without it an installed platform, or one of several homes, would write where it may not or overwrite another."""
    manifest = warehouse.prepare(built.settings)
    made = manifest.stat().st_mtime_ns
    assert warehouse.prepare(built.settings).stat().st_mtime_ns == made
    strange = [path for path in PROJECT_DIR.rglob("*") if path.name in ("target", "logs", "dbt_packages", ".user.yml")]
    assert strange == []
    assert list((PROJECT_DIR.parent / "smoke_platform").glob("*.duckdb")) == []


def test_the_written_dbt_files_are_current() -> None:
    """Without it a sensor's range or a feature's name could change and the warehouse would test the old one."""
    for name, text in project_files().items():
        written = (PROJECT_DIR / name).read_text(encoding="utf-8")
        assert written == text, f"{name} is not current: run python -m smoke_platform.adapters.warehouse_schema"


def test_a_broken_project_says_what_dbt_says(
    settings_for: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a typing slip in a model would end as a bare exit code."""
    copy = tmp_path / "dbt_project"
    subprocess.run(["cp", "-r", str(PROJECT_DIR), str(copy)], check=True)
    (copy / "models" / "facts" / "fct_device_daily.sql").write_text("select {{ ref('nowhere') }}")
    monkeypatch.setattr(warehouse, "PROJECT_DIR", copy)
    with pytest.raises(SmokeError, match="nowhere"):
        warehouse.prepare(settings_for(tmp_path))
