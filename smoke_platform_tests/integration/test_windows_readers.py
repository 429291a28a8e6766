"""Who reads windows: the HTTP API, the command line, the metrics; over a real lake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from smoke_platform.adapters.lake import READINGS, READINGS_COLUMNS, READINGS_SCHEMA, Lake
from smoke_platform.adapters.windows import WINDOW_COLUMNS, WINDOWS, WindowTable, open_windows, stamped
from smoke_platform.cli import windows as commands
from smoke_platform.cli.main import root
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.windows import ROW_COLUMNS, STATISTICS, compute
from smoke_platform.settings import Settings
from smoke_platform.streaming.windows import WINDOWS_SHAPE
from smoke_platform_tests.integration.test_api import Served, serving

pytestmark = pytest.mark.integration

ODD = "hall/<b>3"


@cache
def now() -> datetime:
    """When the device's clock stood at 20 seconds past the minute.

    Asked first when the tests run: this file was read many minutes before, in which a device would have fallen silent.
    """
    return datetime.now(UTC).replace(second=20, microsecond=0)


def first_reading() -> datetime:
    return now() - timedelta(seconds=960)


def readings(device: str, *, first: datetime | None = None, seconds: int = 961, value: float = 21.0) -> pl.DataFrame:
    """One reading a second, landed as it was measured; temperature and PM2.5 alone are measured."""
    times = [(first or first_reading()) + timedelta(seconds=second) for second in range(seconds)]
    rows = [
        {
            "event_date": moment.date(),
            "device_id": device,
            "event_time": moment,
            "temperature_c": value + number % 3,
            "pm2_5": float(number % 7),
            "late": False,
            "topic_id": "t",
            "topic": "smoke_sensor_data",
            "partition": 0,
            "offset": number,
            "append_time": moment,
            "ingest_time": moment,
        }
        for number, moment in enumerate(times)
    ]
    empty = pl.from_arrow(READINGS_SCHEMA.empty_table())
    assert isinstance(empty, pl.DataFrame)
    return pl.concat([empty, pl.DataFrame(rows, schema_overrides=_KINDS)], how="diagonal_relaxed").select(
        READINGS_COLUMNS
    )


_TIME = pl.Datetime("us", "UTC")
_KINDS = {"event_time": _TIME, "append_time": _TIME, "ingest_time": _TIME, "partition": pl.Int32}


def fill(lake: Lake, frame: pl.DataFrame, *, written_at: datetime | None = None) -> pl.DataFrame:
    """Puts readings into the lake, and the windows that are over on their device's clock."""
    lake.append(READINGS, pl.from_arrow(frame.to_arrow().cast(READINGS_SCHEMA)), ["event_date"])  # type: ignore[arg-type]
    over = compute(frame.select(ROW_COLUMNS)).filter(pl.col("window_end") <= frame["event_time"].max())
    lake.create(WINDOWS, WINDOWS_SHAPE.schema, [WINDOWS_SHAPE.day], WINDOWS_SHAPE.configuration)
    lake.append(WINDOWS, stamped(over, written_at or now()))
    return over


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]) -> Iterator[Served]:
    """A service whose lake has windows of two devices that report now, and of one that did an hour ago."""
    settings = settings_for(tmp_path_factory.mktemp("windows-api"))
    lake = Lake(settings.lake)
    fill(lake, readings("attic"))
    fill(lake, readings(ODD, value=60.0))
    fill(lake, readings("gone", first=first_reading() - timedelta(hours=1)), written_at=now() - timedelta(hours=1))
    # Of one window of the attic an earlier revision, as it stood before a reading came.
    (row,) = WindowTable(lake).of_device("attic", limit=3).tail(1).to_dicts()
    older = {
        **row,
        "revision": row["revision"] - 1,
        "temperature_c_mean": -1.0,
        "written_at": now() - timedelta(minutes=3),
    }
    lake.append(WINDOWS, pl.DataFrame([older], schema=WINDOW_COLUMNS), ["event_date"])
    with serving(settings) as served:
        yield served


def _windows(api: Served, device: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = api.client.get(f"/devices/{device}/windows", params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.json()["device_id"] == device
    found: list[dict[str, Any]] = answer.json()["windows"]
    return found


def test_windows_come_newest_first_with_the_open_one_marked(api: Served) -> None:
    """A chart that takes the growing window for a finished one shows a dip at its right end for ever."""
    found = _windows(api, "attic", limit=5)
    assert [each["open"] for each in found] == [True, False, False, False, False]
    starts = [datetime.fromisoformat(each["window_start"]) for each in found]
    assert starts == [now().replace(second=0) - timedelta(minutes=4 + back) for back in range(5)]
    growing, over = found[0], found[1]
    assert (growing["record_count"], growing["written_at"]) == (261, None)
    assert (over["record_count"], over["revision"], over["completeness"]) == (300, 300, 1.0)
    assert set(over["sensors"]) == {"temperature_c", "pm2_5"}
    assert list(over["sensors"]["temperature_c"]) == list(STATISTICS)
    assert over["sensors"]["temperature_c"]["mean"] == pytest.approx(22.0)
    assert (over["level"], over["level_sensor"]) == ("none", None)
    assert [each["open"] for each in _windows(api, "attic", limit=2, open=False)] == [False, False]


def test_each_window_is_answered_at_its_latest_revision(api: Served) -> None:
    """A correction that nobody sees is none."""
    found = _windows(api, "attic", limit=4)
    assert all(each["sensors"]["temperature_c"]["mean"] > 0 for each in found)
    assert len({each["window_start"] for each in found}) == 4


def test_times_choose_among_the_windows(api: Served) -> None:
    """An investigation asks for the quarter of an hour before an alarm, in whatever zone its author lives."""
    since = now().replace(second=0) - timedelta(minutes=10)
    until = since + timedelta(minutes=3)
    wanted = [since + timedelta(minutes=back) for back in (2, 1, 0)]
    found = _windows(api, "attic", since=since.isoformat(), until=until.isoformat())
    assert [datetime.fromisoformat(each["window_start"]) for each in found] == wanted
    east = (since + timedelta(hours=2)).replace(tzinfo=None).isoformat() + "+02:00"
    naive = until.replace(tzinfo=None).isoformat()
    assert _windows(api, "attic", since=east, until=naive) == found
    assert _windows(api, "attic", since=(now() + timedelta(days=1)).isoformat()) == []


def test_a_device_of_any_name_has_its_windows_and_a_level(api: Served) -> None:
    """Device ids are what somebody once flashed: slashes and brackets among them."""
    over = _windows(api, ODD, limit=2)[1]
    assert (over["level"], over["level_sensor"]) == ("high", "temperature_c")


def test_a_device_that_is_gone_has_no_open_window(api: Served) -> None:
    """What it measured an hour ago is not what is in the air now."""
    found = _windows(api, "gone")
    assert len(found) == 16
    assert not any(each["open"] for each in found)


@pytest.mark.parametrize(
    ("path", "status", "reason", "field"),
    [
        ("/devices/nobody/windows", 404, "no_such_device", "device_id"),
        ("/devices/attic/windows?limit=0", 422, "parameter", "limit"),
        ("/devices/attic/windows?limit=100000", 422, "parameter", "limit"),
        ("/devices/attic/windows?since=yesterday", 422, "parameter", "since"),
        ("/devices/attic/windows?since=2026-11-02T00:00:00Z&until=2026-11-01T00:00:00Z", 422, "parameter", "until"),
        ("/devices/attic/windows?open=perhaps", 422, "parameter", "open"),
    ],
)
def test_faults_name_what_is_wrong(api: Served, path: str, status: int, reason: str, field: str) -> None:
    """Somebody who writes a client must not have to read our source."""
    answer = api.client.get(path)
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"], error["field"]) == (status, reason, field)
    assert error["detail"]
    assert error["remedy"]


def test_a_lake_without_windows_is_no_fault(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """A platform that was started a minute ago has none, and a device that is known by its readings is no stranger."""
    settings = settings_for(tmp_path)
    with serving(settings) as served:
        assert served.client.get("/devices/a/windows").status_code == 404
        assert "smoke_window_rows 0.0" in served.client.get("/metrics").text
        lake = Lake(settings.lake)
        frame = readings("a", first=datetime.now(UTC) - timedelta(seconds=30), seconds=30)
        lake.append(READINGS, pl.from_arrow(frame.to_arrow().cast(READINGS_SCHEMA)), ["event_date"])  # type: ignore[arg-type]
        (growing,) = served.client.get("/devices/a/windows").json()["windows"]
        assert (growing["open"], growing["record_count"]) == (True, 30)


def test_metrics_and_description_name_the_windows(api: Served) -> None:
    """An alert on windows that stand still needs to know when the last one was written."""
    text = api.client.get("/metrics").text
    rows = Lake(api.settings.lake).scan(WINDOWS).select(pl.len()).collect().item()
    assert f"smoke_window_rows {float(rows)}" in text
    (line,) = [line for line in text.splitlines() if line.startswith("smoke_window_written_timestamp_seconds ")]
    assert float(line.split()[1]) == pytest.approx(now().timestamp())
    described = api.client.get("/openapi.json").json()["paths"]["/devices/{device_id}/windows"]["get"]
    assert set(described["responses"]) == {"200", "404", "422"}
    schema = described["responses"]["200"]["content"]["application/json"]["schema"]
    window = schema["properties"]["windows"]["items"]["properties"]
    assert set(window) == set(_windows(api, "attic", limit=1)[0])


def test_open_windows_are_those_of_all_who_report(api: Served) -> None:
    """The wall display shows every device that is alive, whatever day its readings are of."""
    lake = Lake(api.settings.lake)
    found = open_windows(lake, now=now())
    assert found["device_id"].to_list() == ["attic", ODD]
    assert set(found["record_count"]) == {261}
    assert open_windows(lake, now=now() + timedelta(hours=1)).is_empty()
    assert found.schema == open_windows(lake, now=now() + timedelta(hours=1)).schema


# -- the command line ------------------------------------------------------------------------------------


def _smoke(api: Served, *arguments: str) -> str:
    result = CliRunner().invoke(root, ["windows", *arguments], env={**api.settings.environment(), "COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_lists_what_the_api_answers(api: Served) -> None:
    """A script and a person ask for the same windows."""
    found = json.loads(_smoke(api, "list", "--device", "attic", "--limit", "3", "--json"))
    assert [each["open"] for each in found] == [True, False, False]
    assert found[1]["temperature_c_mean"] == pytest.approx(22.0)
    assert set(found[0]) == {*WINDOW_COLUMNS, "open"}
    assert "open" in _smoke(api, "list", "--device", "attic")
    newest = json.loads(_smoke(api, "list", "--json"))
    assert [each["device_id"] for each in newest] == ["attic", ODD]
    assert "HIGH temperature_c" in _smoke(api, "list")
    since = (now() - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
    assert {each["device_id"] for each in json.loads(_smoke(api, "list", "--since", since, "--json"))} == {"attic", ODD}


def test_the_newest_windows_are_found_by_few_columns(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty windows since this morning took half a gigabyte: the day of all devices with all columns."""
    collected: list[tuple[int, int]] = []
    original = pl.LazyFrame.collect

    def collect(lazy: pl.LazyFrame, *arguments: Any, **named: Any) -> Any:
        found = original(lazy, *arguments, **named)
        collected.append(found.shape)
        return found

    table = WindowTable(Lake(api.settings.lake))
    since = now() - timedelta(hours=3)
    every = table.between(since, None).sort("window_start", "device_id", descending=[True, False])
    monkeypatch.setattr(pl.LazyFrame, "collect", collect)
    found = json.loads(_smoke(api, "list", "--since", since.strftime("%Y-%m-%dT%H:%M"), "--limit", "7", "--json"))
    monkeypatch.undo()
    assert [(each["device_id"], each["window_start"]) for each in found] == [
        (device_id, start.isoformat()) for device_id, start in every.head(7).select("device_id", "window_start").rows()
    ]
    assert every.height > 40
    assert max(height for height, width in collected if width > 3) <= 7
    # Keys are looked up of so many windows as are wanted, and of the others of the last minute.
    assert max(height for height, width in collected if width == 3) <= 7 + 2
    # Revisions are no windows: with the two of one of the attic's there must be as many as were asked for.
    assert table.newest(since, None, 9).equals(every.head(9))
    assert table.newest(None, None, 1000).height == table.between(None, None).height


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--device", "nobody"), "No window of a device 'nobody'."),
        (
            ("--device", "attic", "--since", "2035-01-02"),
            "No window of attic starts at or after 2035-01-02 00:00:00 UTC.",
        ),
        (("--since", "2035-01-02", "--until", "2036-01-02"), "and before 2036-01-02 00:00:00 UTC."),
    ],
)
def test_a_list_of_nothing_names_the_option_that_matched_nothing(
    api: Served, arguments: tuple[str, ...], expected: str
) -> None:
    """Who mistypes a device waits five minutes for its first window; an open window is not of next year."""
    assert expected in _smoke(api, "list", *arguments)


def test_the_open_window_is_listed_where_its_start_is_asked_for(api: Served) -> None:
    """The same question gets the same windows from the API and from the command."""
    until = (now() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
    found = json.loads(_smoke(api, "list", "--device", "attic", "--until", until, "--limit", "2", "--json"))
    assert [each["open"] for each in found] == [True, False]


def test_a_device_alone_is_refused(api: Served) -> None:
    """Help and success, where windows of a device were wanted, end a script as if it had got them."""
    result = CliRunner().invoke(root, ["windows", "--device", "attic"], env=api.settings.environment())
    assert result.exit_code == 2
    assert "--follow" in result.output


#: Of two devices one window each, of the same time.
def _one_window() -> pl.DataFrame:
    first = first_reading().replace(second=0)
    frames = [compute(readings(name, first=first, seconds=301).select(ROW_COLUMNS)) for name in ("a", "b")]
    return stamped(pl.concat(frames).filter(pl.col("window_start") == first), now())


def test_a_line_is_of_all_devices_of_its_window(tmp_path: Path) -> None:
    """Devices end a minute at different seconds: a line for each commit shows a fleet of one device, over and over."""
    lake = Lake(str(tmp_path))
    rows = _one_window()
    table = WindowTable(lake)
    lines = commands._Summaries(table, now() - timedelta(minutes=1), 10.0)
    start = rows["window_start"].unique().to_list()

    def at(second: float, appended: pl.DataFrame | None = None) -> list[str]:
        if appended is not None:
            lake.append(WINDOWS, appended, ["event_date"])
            lines.touch(start, second)
        return list(lines.lines(second))

    assert at(0, rows.head(1)) == []
    assert at(8, rows.tail(1)) == []
    assert at(17) == []
    (line,) = at(18)
    assert "Records: 600," in line
    assert line.endswith("Devices: 2")
    # A correction is told with all devices again, if the line says something else.
    more = rows.tail(1).with_columns(revision=pl.lit(301, pl.Int64), record_count=pl.lit(301, pl.Int64))
    assert at(100, more) == []
    (line,) = at(110)
    assert "Records: 601," in line
    assert line.endswith("Devices: 2 (updated)")
    at(200, more.with_columns(revision=pl.lit(302, pl.Int64)))
    assert at(300) == []
    # Who reports once a minute ends it at any second, and must not keep the line for ever.
    for second in range(400, 460, 5):
        assert at(second, more.with_columns(revision=pl.lit(second, pl.Int64), record_count=pl.lit(1, pl.Int64))) == []
    assert len(at(460)) == 1


def test_following_prints_each_window_as_it_is_appended(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """The line that a person watches: of one device or of all, once for each window, and when it is corrected."""
    # The line over all devices waits for two times this: both devices must be seen within it, however slow it goes.
    settings = settings_for(tmp_path, SMOKE_WINDOW_SECONDS=5)
    lake = Lake(settings.lake)
    rows = _one_window()
    earlier = rows.with_columns(
        pl.col("window_start", "window_end") - timedelta(minutes=1),
        written_at=pl.lit(datetime.now(UTC) - timedelta(hours=1)),
    )
    lake.append(WINDOWS, earlier, ["event_date"])
    followers = [_Follower(settings, *arguments) for arguments in ((), ("--device", "b"), ("--device", "b", "--json"))]
    try:
        for each in followers:
            each.wait_until_ready()
        for device in ("a", "b"):
            of_device = rows.filter(pl.col("device_id") == device)
            lake.append(WINDOWS, of_device.with_columns(written_at=pl.lit(datetime.now(UTC))))
            time.sleep(0.7)
        overall, one, document = (each.line() for each in followers)
        begin, end = (f"{first_reading().replace(second=0) + timedelta(minutes=add):%H:%M:%S}" for add in (0, 5))
        assert overall.startswith(f"Window Analytics ({begin} - {end}): Records: 600, Temp: 22.0 degC")
        assert overall.endswith("Devices: 2")
        assert "Records: 300" in one
        assert one.endswith("Device: b")
        assert (json.loads(document)["device_id"], json.loads(document)["revision"]) == ("b", 300)
        # Of a window that stood there before anybody followed.
        corrected = earlier.tail(1).with_columns(
            written_at=pl.lit(datetime.now(UTC)), revision=pl.lit(301, pl.Int64), record_count=pl.lit(301, pl.Int64)
        )
        lake.append(WINDOWS, corrected)
        assert followers[1].line().endswith("Device: b, Corrected")
        overall = followers[0].line()
        assert "Records: 601" in overall
        assert overall.endswith("Devices: 2 (updated)")
    finally:
        codes = [each.end() for each in followers]
    assert codes == [0, 0, 0]


class _Follower:
    """``smoke windows --follow`` as a process of its own."""

    def __init__(self, settings: Settings, *arguments: str) -> None:
        command = [str(Path(sys.executable).with_name("smoke")), "windows", "--follow", *arguments]
        environment = {**os.environ, **settings.environment()}
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def wait_until_ready(self) -> None:
        assert self._process.stderr is not None
        assert self._process.stderr.readline().startswith("Following")

    def line(self) -> str:
        assert self._process.stdout is not None
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append(self._process.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        reader.join(90)
        assert found, "no line came"
        return found[0].rstrip("\n")

    def end(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(30)


def test_options_of_following_are_refused_before_other_commands(api: Served) -> None:
    """`smoke windows --device x list` would list every device without a word."""
    result = CliRunner().invoke(root, ["windows", "--device", "attic", "list"], env=api.settings.environment())
    assert result.exit_code == 2
    assert "--follow" in result.output


def test_sensors_that_measured_nothing_are_left_out(api: Served) -> None:
    """Ten columns of nulls for each of twelve sensors hide the one that somebody looks for."""
    assert len(_windows(api, "attic", limit=1)[0]["sensors"]) == 2 < len(SENSOR_NAMES)
