"""The weekly history on real Delta tables: what is read again, both engines, the page, the command, the real data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from smoke_platform.adapters import history_tables
from smoke_platform.adapters.history_tables import FINDINGS, HistoryTables
from smoke_platform.adapters.lake import Lake, storage_schema
from smoke_platform.cli.main import root
from smoke_platform.domain.alarms import encode as encode_alarm
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.lake_records import RECORD_TABLES
from smoke_platform.domain.recordings import RecordingFile
from smoke_platform.settings import Settings
from smoke_platform.streaming import history as program
from smoke_platform.streaming import history_spark
from smoke_platform.verification.spark_cluster import standalone
from smoke_platform_tests.alarm_parts import record
from smoke_platform_tests.history_parts import MONDAY, same
from smoke_platform_tests.monitoring_lake import as_landed, report_data, simulated

pytestmark = pytest.mark.integration

NOW = datetime(2026, 3, 8, 3, tzinfo=UTC)


def land(settings: Settings, frame: pl.DataFrame) -> None:
    Lake(settings.lake).append("readings", as_landed(frame), partition_by=["event_date"])


def land_records(settings: Settings) -> None:
    """Two alarms, a day of predictions, and sites for the devices."""
    lake = Lake(settings.lake)
    place = {"record_topic_id": "t", "record_partition": 0, "append_time": MONDAY, "ingest_time": MONDAY}
    shapes = {table.name: table for table in RECORD_TABLES}
    alarms = [
        {**shapes["alarms"].to_row(None, encode_alarm(record(device, cause=cause))), **place, "record_offset": cause}
        for device, cause in (("sim-0001", 5), ("sim-0002", 6))
    ]
    predictions = [
        {"topic_id": "t", "partition": 0, "offset": n, "score": 0.1 * n, "level": 0, "hits": n % 4, "threshold": 0.5}
        | {"model_version": "7", "feature_version": "f", "at": MONDAY, **place, "record_offset": n}
        for n in range(10)
    ]
    devices = [
        {"device_id": f"sim-{n + 1:04d}", "site": "north" if n % 2 else "south", "removed": False, "source": "import"}
        | {**place, "record_offset": n}
        for n in range(6)
    ]
    for name, rows in (("alarms", alarms), ("predictions", predictions), ("devices", devices)):
        columns = shapes[name].schema
        frame = pl.DataFrame([{**dict.fromkeys(columns), **row, "append_date": MONDAY.date()} for row in rows], columns)
        lake.create(name, storage_schema(columns), ["append_date"])
        lake.append(name, frame)


@pytest.fixture
def settings(tmp_path: Path, settings_for: Callable[..., Settings]) -> Settings:
    return settings_for(tmp_path, SMOKE_HISTORY_ENGINE="local", SMOKE_REPORT_RETENTION="2")


def told(settings: Settings, engine: program.Engine | None = None) -> tuple[dict[str, Any], program.Effort]:
    found = program.tell(settings, engine)
    assert found is not None
    return found[0].as_dict(), found[1]


def test_only_days_that_changed_are_read_again(settings: Settings) -> None:
    """Or every Sunday takes longer than the one before, until one takes a week; or a late reading is never counted."""
    frame = simulated(3, MONDAY, 72)
    second, third = (pl.col("event_time") >= pl.lit(MONDAY + timedelta(days=day)) for day in (1, 2))
    land(settings, frame.filter(~third))
    assert told(settings)[1].days_read == 2
    assert told(settings)[1].days_read == 0
    land(settings, frame.filter(third))
    grown, effort = told(settings)
    assert (effort.days, effort.days_read) == (3, 1)
    assert grown["rows"] == frame.height
    # The same from nothing says the same.
    for name in ("history_hours", "history_days", "history_anchors", "history_moments"):
        Lake(settings.lake).open(name).delete()
    fresh, effort = told(settings)
    assert effort.days_read == 3
    assert same(grown, fresh) == []
    # A day that is removed from the lake is forgotten.
    Lake(settings.lake).open("readings").delete("event_date = '2026-03-03'")
    left, effort = told(settings)
    assert (effort.days, effort.days_read) == (2, 0)
    assert left["rows"] == frame.filter(~second | third).height


def test_another_zone_is_another_history(
    settings: Settings, tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """Or after a change of the zone half of the hours are those of the old one."""
    land(settings, simulated(2, MONDAY, 48))
    told(settings)
    moved = settings_for(tmp_path, SMOKE_TIMEZONE="Asia/Kathmandu")
    found, effort = told(moved, "local")
    assert effort.days_read == 2
    assert found["last_day"] == date(2026, 3, 4)


def test_many_parts_on_spark_equal_one_process(
    settings: Settings, tmp_path: Path, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the history of a lake that has outgrown one machine is another one, and a fault there a page of Java."""
    land(settings, simulated(6, MONDAY, 60, fires_per_device_day=4))
    land_records(settings)
    here, effort = told(settings)
    assert (effort.engine, effort.parts) == ("local", 3)
    for name in ("history_hours", "history_days", "history_anchors", "history_moments", "history_hits"):
        Lake(settings.lake).open(name).delete()
    spread = settings_for(tmp_path, SMOKE_HISTORY_PART_ROWS="25000", SPARK_MASTER="local[2]", SPARK_UI_PORT="0")
    # On this machine there is no executor to be waited for.
    with history_spark.on_spark(spread, executor_within_s=0.0) as do:
        # One session for all of it: a second JVM would cost as much as the test.
        monkeypatch.setattr(history_spark, "on_spark", lambda _settings: nullcontext(do))
        there, effort = told(spread, "auto")
        assert (effort.engine, effort.why, effort.parts) == ("spark", "local[2]", 3 + 3 + 2)
        nowhere = program.PartOfDay(settings.lake + "/nowhere", "UTC", 0, MONDAY.date(), 0, 1)
        with pytest.raises(SmokeError, match=r"failed on Spark: .*(nowhere|[Nn]ot ?[Ff]ound)") as fault:
            do([nowhere])
        assert len(fault.value.message) < 700
    assert same(here, there) == []
    assert here["alarms"]["causes"][0]["cause"] == "heat"
    assert here["predictions"]["models"][0]["readings"] == 10


def test_parts_are_about_equal_and_hold_each_device_whole() -> None:
    """Or one executor gets half of the fleet and runs out of memory, or a device is counted twice."""
    counts = {f"d{number}": 3600 for number in range(97)} | {"chatty": 30_000, "rare": 1}
    parts = history_tables.dealt(counts, 10)
    assert sorted(device for part in parts for device in part) == sorted(counts)
    sizes = [sum(counts[device] for device in part) for part in parts]
    assert max(sizes) - min(sizes) <= 3600
    assert history_tables.dealt(dict(reversed(counts.items())), 10) == parts


def test_without_a_jdk_it_goes_on_and_says_so(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a machine without a JDK never has a history, or nobody knows that it was made without Spark."""

    def refuse(*_args: Any, **_more: Any) -> Any:
        raise SmokeError("Spark needs a full JDK", "install one")

    monkeypatch.setattr(history_spark, "session", refuse)
    land(settings, simulated(1, MONDAY, 24))
    _, effort = told(settings, "auto")
    assert (effort.engine, effort.why) == ("local", "without Spark: Spark needs a full JDK")
    assert "without Spark" in effort.sentence
    with pytest.raises(SmokeError, match="full JDK"):
        told(settings, "spark")


def test_a_cluster_without_a_core_to_spare_does_not_hold_it_up(
    tmp_path: Path,
    settings_for: Callable[..., Settings],
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Or the report of Sunday waits for ever behind the landing, which has all cores, and nobody is told."""
    settings = settings_for(tmp_path, SPARK_UI_PORT="0")
    with standalone(settings, free_port(), free_port(), workers=0) as cluster:
        monkeypatch.setattr(history_spark, "on_spark", partial(history_spark.on_spark, executor_within_s=2.0))
        busy = settings.model_copy(update={"spark_master": cluster.url})
        with program.mapper(busy, "auto") as (engine, why, _):
            assert engine == "local"
            assert "no executor within 2 s" in why
    assert "set SPARK_CORES" in caplog.text


def test_the_report_is_complete_in_itself_and_bounded(settings: Settings) -> None:
    """Or it is empty without a network, or a year of reports fills the disk."""
    land(settings, simulated(3, MONDAY, 24 * 6, fires_per_device_day=3))
    land_records(settings)
    runs = [program.run(settings, NOW + timedelta(days=7 * week)) for week in range(3)]
    assert len(list((settings.reports_dir / "history").glob("*.html"))) == 2
    last = runs[-1]
    assert last is not None
    page = last.report.page.read_text("utf-8")
    assert not re.search(r"<script|<link|src=|href=|url\(|@import", page)
    assert page.count("<svg") >= 4
    for heading in ("What it says", "Repeated recordings", "Top causes of alarms", "Trends of sites (simulator)"):
        assert f"<h2>{heading}</h2>" in page
    data: Any = report_data(settings, "history")
    assert data["effort"]["days_read"] == 0
    assert data["sentences"][0] == "No recording of the lake repeats another one."
    findings = Lake(settings.lake).scan(FINDINGS).collect()
    assert findings["run"].n_unique() == 2
    newest = findings.filter(pl.col("run") == findings["run"].max())
    kinds = {"source", "trend", "site_trend", "daily_rhythm", "correlation", "alarm_cause", "rule_hits"}
    assert kinds <= set(newest["kind"])
    trend = newest.filter(pl.col("kind") == "trend").sort("place").row(0, named=True)
    assert json.loads(trend["detail"])["device_id"] == trend["device_id"]
    assert trend["value"] == last.history.trends["slope_per_day"][0]


def test_marks_are_thinned_out_alike(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a lake of years has more marks than memory, or thinning loses the copies."""
    once = simulated(1, MONDAY, 40)
    again = once.with_columns(pl.col("event_time") + timedelta(days=2), device_id=pl.lit("copy"))
    land(settings, pl.concat([once, again]))
    monkeypatch.setattr(history_tables, "MOST_ANCHORS", 200)
    found, _ = told(settings)
    [copy] = found["repeated_recordings"]
    assert copy["rows"] == once.height
    monkeypatch.setattr(history_tables, "LONGEST_COMPARED", timedelta(hours=20))
    [copies, _] = HistoryTables(Lake(settings.lake), "UTC").copies()
    assert [copy.whole for copy in copies] == [False]
    assert copies[0].rows < once.height


def test_the_command_runs_shows_and_helps(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the history can only be had on Sundays."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    for words in (["history", "--help"], ["history", "run", "--help"], ["history", "show", "--help"]):
        shown = CliRunner().invoke(root, words)
        assert (shown.exit_code, "Example:" in shown.output) == (0, True)
    empty = CliRunner().invoke(root, ["history", "run"])
    assert isinstance(empty.exception, SmokeError)
    land(settings, simulated(1, MONDAY, 24))
    made = CliRunner().invoke(root, ["history", "run", "--engine", "local"])
    assert made.exit_code == 0, made.output
    assert "Source simulator" in made.output
    shown = CliRunner().invoke(root, ["history", "show", "--json"])
    assert json.loads(shown.output)["effort"]["engine"] == "local"


def test_the_copies_in_the_public_recordings_are_named(settings: Settings, needs_data: Path) -> None:
    """Or the report passes over what a careful reader finds in the data: B and E repeat A and D."""
    faults: list[Any] = []
    file = RecordingFile(needs_data / "kaggle_smoke" / "smoke_detection_iot.csv", faults.append)
    land(settings, pl.concat(list(file.chunks())).drop("recording"))
    assert not faults
    made = program.run(settings, NOW)
    assert made is not None
    # In the file's order: A, B, C, D, E.
    copies = {(copy.copy_device, copy.first_device): copy for copy in made.history.copies}
    assert set(copies) == {("csv-recording-2", "csv-recording-1"), ("csv-recording-5", "csv-recording-4")}
    b, e = copies["csv-recording-2", "csv-recording-1"], copies["csv-recording-5", "csv-recording-4"]
    assert (b.rows, e.rows) == (24_994, 5_744)
    for copy, equal in ((b, 0), (e, 2)):
        assert copy.differing == ("temperature_c",)
        assert len(copy.agreeing) == 11
        assert copy.equal["temperature_c"] == equal
        assert copy.labels_equal == copy.rows
        assert copy.lag[0] == copy.lag[1]
    assert str(b.copy_from) == "2022-06-09 07:55:43+00:00"
    assert str(e.first_to) == "2022-06-08 19:52:10+00:00"
    smooth = made.history.odd.select("device_id", "sensor", "kind").rows()
    assert smooth == [(f"csv-recording-{number}", "temperature_c", "smooth") for number in (1, 5)]
    page = made.report.page.read_text("utf-8")
    assert "30,738 of the 62,630 readings of source csv, 49%, are copies." in page
    assert "99.1% of its readings labelled as fire have PM2.5 of at most 10 ug/m3" in page
