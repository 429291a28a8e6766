"""The warehouse: dbt's surroundings, the marts that readers get, and what the lake's log says about its days.

Belongs here: the profile and manifest of the dbt project, publishing and reading marts, the record of which days are
built from which version of the lake. Does not: the models' columns (``adapters.warehouse_schema``) and SQL
(``dbt_project``), when to build (``domain.day_builds``), Dagster. dbt and DuckDB are imported where they are used.

DuckDB's file has one writer: only steps in the pool ``warehouse`` open it. Everybody else reads the published marts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version as installed_version
from pathlib import Path

import polars as pl
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSystem, FileType, PyFileSystem

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake
from smoke_platform.adapters.warehouse_schema import MARTS, PROJECT_DIR, polars_schema
from smoke_platform.adapters.windows import WINDOWS
from smoke_platform.domain.day_builds import Arrival
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings

#: What dbt left of this many builds is kept (manifest, log and results of each: about 1 MB).
KEPT_RUNS = 20
#: The tables whose new rows make a day due. The others are read as they are when it is built.
FOLLOWED: tuple[str, ...] = (READINGS, WINDOWS)
#: Beyond this many unseen commits the files of the table are looked at instead of each commit.
MOST_COMMITS = 5_000
#: Environment variables of dbt_project and its plugin.
FIRST_DAY = "WAREHOUSE_FIRST_DAY"
LAST_DAY = "WAREHOUSE_LAST_DAY"
_PARSED = "partial_parse.msgpack"
_THREADS = 2
_MEMORY = "1GB"


# -- dbt's surroundings ------------------------------------------------------------------------------------------


def dbt_home(settings: Settings) -> Path:
    """Folder of dbt's profile, manifest, logs and docs: nothing is written into the checkout."""
    return settings.home / "dbt"


def target_dir(settings: Settings) -> Path:
    return dbt_home(settings) / "target"


def dbt_executable() -> Path:
    """The ``dbt`` that was installed with this platform."""
    return Path(sys.executable).with_name("dbt")


def build_environment(first: date, last: date) -> dict[str, str]:
    """What tells dbt the days of a build, from ``first`` to ``last``, both included."""
    return {FIRST_DAY: first.isoformat(), LAST_DAY: last.isoformat()}


def new_target(settings: Settings, name: str) -> Path:
    """A folder for what one build leaves, with what spares dbt from parsing the project; removes the oldest ones."""
    runs = target_dir(settings) / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    old = sorted(runs.iterdir(), key=lambda path: path.stat().st_mtime)[: -KEPT_RUNS + 1]
    for path in old:
        shutil.rmtree(path)
    target = runs / name
    target.mkdir(exist_ok=True)
    shutil.copyfile(target_dir(settings) / _PARSED, target / _PARSED)
    return target


def days_between(first: date, last: date) -> list[date]:
    """The days from ``first`` to ``last``, both included; none where ``last`` is earlier."""
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def prepare(settings: Settings) -> Path:
    """Makes profile and manifest where they are missing or older than the project; quick when they are not.

    Returns:
        The manifest's path.

    Raises:
        SmokeError: when the project can't be parsed, with what dbt says.
    """
    manifest = target_dir(settings) / "manifest.json"
    seal = target_dir(settings) / "fingerprint"
    fingerprint = _fingerprint(settings)
    if _is_current(manifest, seal, fingerprint):
        return manifest
    with _exclusive(dbt_home(settings) / "prepare.lock"):
        if _is_current(manifest, seal, fingerprint):
            return manifest
        _replace(dbt_home(settings) / "profiles.yml", _profile(settings))
        settings.warehouse_file.parent.mkdir(parents=True, exist_ok=True)
        fresh = dbt_home(settings) / "parsing"
        shutil.rmtree(fresh, ignore_errors=True)
        _dbt(["parse"], settings, fresh)
        target_dir(settings).mkdir(parents=True, exist_ok=True)
        for name in (_PARSED, "manifest.json"):
            (fresh / name).replace(target_dir(settings) / name)
        _replace(seal, fingerprint)
        shutil.rmtree(fresh)
    return manifest


def build(settings: Settings, first: date, last: date) -> None:
    """Builds and tests the days from ``first`` to ``last`` (both included) without Dagster; only in its pool.

    Raises:
        SmokeError: when a model or a test fails, with what dbt says; these days can't be published then.
    """
    prepare(settings)
    began_at, seen, days = datetime.now(UTC), log_positions(Lake(settings.lake)), days_between(first, last)
    begin_build(settings, days)
    target = new_target(settings, f"{first}-{began_at:%Y%m%dT%H%M%S%f}")
    _dbt(["build"], settings, target, build_environment(first, last))
    finish_build(settings, days, seen, began_at)


def docs(settings: Settings) -> Path:
    """Writes the project's documentation as one HTML file; opens the warehouse, so only in its pool.

    Returns:
        The page's path.

    Raises:
        SmokeError: when dbt fails, with what it says.
    """
    prepare(settings)
    folder = dbt_home(settings) / "documenting"
    shutil.rmtree(folder, ignore_errors=True)
    today = datetime.now(UTC).date()
    _dbt(["docs", "generate", "--static"], settings, folder, build_environment(today, today))
    page = dbt_home(settings) / "docs" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    (folder / "static_index.html").replace(page)
    shutil.rmtree(folder)
    return page


def _profile(settings: Settings) -> str:
    """dbt's profile; JSON is YAML, and its strings may hold what dbt renders."""
    profile = {
        "smoke": {
            "target": "local",
            "outputs": {
                "local": {
                    "type": "duckdb",
                    "path": str(settings.warehouse_file),
                    "schema": "warehouse",
                    # dbt-duckdb registers sources in a dictionary that its other threads read: with more than one,
                    # a build now and then ends with "dictionary changed size". DuckDB itself uses all of _THREADS.
                    "threads": 1,
                    # A file held by another process is tried again: someone may look at it by hand.
                    "retries": {"connect_attempts": 5, "retryable_exceptions": ["IOException"]},
                    # Set once, on connecting: dbt repeats what stands in "settings" on every cursor, and DuckDB
                    # refuses the folder for spilling a second time once it has spilled.
                    "config_options": {
                        "memory_limit": _MEMORY,
                        "threads": _THREADS,
                        "temp_directory": str(settings.warehouse_file.with_name("spill")),
                        "preserve_insertion_order": "false",
                        # Everything needed is built in; nothing is to be fetched while building.
                        "autoinstall_known_extensions": "false",
                        "autoload_known_extensions": "false",
                    },
                    "settings": {"TimeZone": "UTC"},
                    "plugins": [
                        {
                            "module": "smoke_platform.adapters.warehouse_source",
                            "config": {"lake": _absolute(settings.lake)},
                        }
                    ],
                }
            },
        }
    }
    return json.dumps(profile, indent=2) + "\n"


def _absolute(lake: str) -> str:
    """dbt runs in the project's folder, so a relative folder would be another one there."""
    return lake if "://" in lake else str(Path(lake).absolute())


def _fingerprint(settings: Settings) -> str:
    digest = hashlib.sha256()
    for package in ("dbt-core", "dbt-duckdb", "duckdb"):
        digest.update(f"{package} {installed_version(package)}\n".encode())
    digest.update(_profile(settings).encode())
    for path in sorted(path for path in PROJECT_DIR.rglob("*") if path.suffix in (".sql", ".yml", ".md")):
        digest.update(f"{path.relative_to(PROJECT_DIR)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_current(manifest: Path, seal: Path, fingerprint: str) -> bool:
    return manifest.is_file() and seal.is_file() and seal.read_text(encoding="utf-8") == fingerprint


def _dbt(
    arguments: Sequence[str], settings: Settings, target: Path, environment: Mapping[str, str] | None = None
) -> None:
    command = [str(dbt_executable()), "--no-use-colors", *arguments]
    command += ["--project-dir", str(PROJECT_DIR), "--profiles-dir", str(dbt_home(settings))]
    command += ["--target-path", str(target), "--log-path", str(target)]
    surroundings = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT_DIR, env=surroundings)
    if done.returncode != 0:
        raise SmokeError(
            f"dbt {arguments[0]} failed:\n{(done.stdout + done.stderr).strip()}", f"its log is {target / 'dbt.log'}"
        )


# -- the record of builds ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A version of a table; its id tells a table that was made anew from the one before. -1 of no id: no table yet."""

    table_id: str
    version: int


NO_TABLE = LogPosition("", -1)


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """From which versions of the followed tables a day was built, and when that build began (ISO, UTC)."""

    day: str
    tables: Mapping[str, LogPosition]
    began_at: str

    def position(self, name: str) -> LogPosition:
        """What the build has seen of the table ``name``."""
        return self.tables.get(name, NO_TABLE)

    @staticmethod
    def from_json(text: str) -> BuildRecord:
        data = json.loads(text)
        # A record of the time when only the readings were followed.
        tables = data.get("tables") or {READINGS: {key: data[key] for key in ("table_id", "version")}}
        return BuildRecord(
            data["day"], {name: LogPosition(**position) for name, position in tables.items()}, data["began_at"]
        )

    def to_json(self) -> str:
        tables = {
            name: {"table_id": position.table_id, "version": position.version} for name, position in self.tables.items()
        }
        return json.dumps({"day": self.day, "tables": tables, "began_at": self.began_at})


def begin_build(settings: Settings, days: Sequence[date]) -> None:
    """Withdraws the permission to publish ``days`` until ``finish_build`` gives it."""
    for day in days:
        _permit(settings, day).unlink(missing_ok=True)


def finish_build(settings: Settings, days: Sequence[date], seen: Mapping[str, LogPosition], began_at: datetime) -> None:
    """Notes that all models of ``days`` were built and passed their tests, so that they may be published.

    Args:
        settings: where the warehouse is.
        days: the days of the build.
        seen: table -> what the build has read of it at least.
        began_at: UTC.
    """
    for day in days:
        _replace(_permit(settings, day), BuildRecord(day.isoformat(), seen, began_at.isoformat()).to_json())


def published_builds(settings: Settings) -> dict[date, BuildRecord]:
    """Day -> the build whose marts are published."""
    folder = settings.marts_dir / "builds"
    records = [BuildRecord.from_json(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {date.fromisoformat(record.day): record for record in records}


def _permit(settings: Settings, day: date) -> Path:
    return settings.warehouse_file.parent / "builds" / f"{day.isoformat()}.json"


# -- marts -------------------------------------------------------------------------------------------------------


def mart_file(settings: Settings, mart: str, day: date) -> Path:
    """The Parquet file of one mart and day; absent where the day has no rows."""
    return settings.marts_dir / mart / f"{day.isoformat()}.parquet"


def publish_marts(settings: Settings, days: Sequence[date]) -> dict[str, int]:
    """Writes the marts of ``days`` from the warehouse as Parquet, each file replaced at once; only in its pool.

    A reader that has a file open keeps the old one.

    Returns:
        Mart -> rows published.

    Raises:
        SmokeError: when a day's last build did not come to its end, or a test failed in it.
    """
    import duckdb

    permits = {day: _permit(settings, day) for day in days}
    missing = [day.isoformat() for day, permit in permits.items() if not permit.is_file()]
    if missing:
        raise SmokeError(
            f"no complete build of {', '.join(missing)} to publish",
            "look at the failed checks of the warehouse's assets, then build these days again",
        )
    rows = dict.fromkeys(MARTS, 0)
    with duckdb.connect(str(settings.warehouse_file), read_only=True) as connection:
        connection.execute("set TimeZone = 'UTC'")
        for day in days:
            for mart in MARTS:
                rows[mart] += _publish(connection, settings, mart, day)
            _replace(settings.marts_dir / "builds" / f"{day.isoformat()}.json", permits[day].read_text("utf-8"))
    return rows


def read_mart(settings: Settings, mart: str, first: date | None = None, last: date | None = None) -> pl.LazyFrame:
    """The published rows of ``mart`` from ``first`` to ``last`` (UTC days, both included; ``None``: no bound).

    Columns that an older file lacks are null. Empty, with the mart's columns, where nothing is published.

    Raises:
        SmokeError: for a name that is no mart.
    """
    if mart not in MARTS:
        raise SmokeError(f"there is no mart {mart!r}", f"the marts are {', '.join(MARTS)}")
    schema = polars_schema(mart)
    files = [
        path
        for path in sorted((settings.marts_dir / mart).glob("*.parquet"))
        if (first is None or path.stem >= first.isoformat()) and (last is None or path.stem <= last.isoformat())
    ]
    if not files:
        return pl.LazyFrame(schema=schema)
    return pl.scan_parquet(files, schema=schema, missing_columns="insert", extra_columns="ignore")


def _publish(connection: object, settings: Settings, mart: str, day: date) -> int:
    path = mart_file(settings, mart, day)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ", ".join(f'"{name}"' for name in polars_schema(mart))
    ordered = ("device_id", "minute", "window_start", "event_time", "topic_id", "partition", "offset")
    order = ", ".join(f'"{name}"' for name in ordered if name in polars_schema(mart))
    half = path.with_name(f".{path.name}.{os.getpid()}")
    # Mart and day are ours, not input; COPY takes no parameters.
    query = f"select {columns} from warehouse.{mart} where event_date = date '{day}' order by {order}"  # noqa: S608
    copy = f"copy ({query}) to '{_sql_text(half)}' (format parquet, compression zstd, row_group_size 122880)"
    rows = int(connection.execute(copy).fetchone()[0])  # type: ignore[attr-defined]  # DuckDB is imported lazily
    if rows:
        half.replace(path)
    else:
        half.unlink()
        path.unlink(missing_ok=True)
    return rows


def _sql_text(path: Path) -> str:
    return str(path).replace("'", "''")


# -- what the lake's log says ------------------------------------------------------------------------------------


def log_position(lake: Lake, name: str) -> LogPosition:
    """The latest version of the table ``name``."""
    if not lake.exists(name):
        return NO_TABLE
    table = lake.open(name)
    return LogPosition(str(table.metadata().id), int(table.version()))


def log_positions(lake: Lake) -> dict[str, LogPosition]:
    """Table -> its latest version, of those that are followed."""
    return {name: log_position(lake, name) for name in FOLLOWED}


def arrivals_since(
    lake: Lake, name: str, position: LogPosition | None, built: Mapping[date, BuildRecord]
) -> tuple[LogPosition, list[Arrival]]:
    """Which days of the table ``name`` received rows after ``position``, by the table's own log.

    Compaction rewrites files without bringing rows and is no arrival. Where the commits in between are gone, are too
    many, or nothing is known yet, each day counts that has a file younger than its build.

    Returns:
        The new position, and the arrivals.
    """
    now = log_position(lake, name)
    if now.version < 0:
        return now, []
    table = lake.open(name)
    table.load_as_version(now.version)
    if position is not None and position.table_id == now.table_id:
        if position.version >= now.version:
            return now, []
        if now.version - position.version <= MOST_COMMITS:
            commits = _read_commits(table, name, position.version + 1, now.version)
            if commits is not None:
                return now, commits
    return now, _arrivals_by_file(table, name, now, built)


def _read_commits(table: DeltaTable, name: str, first: int, last: int) -> list[Arrival] | None:
    """The arrivals of the commits from ``first`` to ``last``, or ``None`` where one of them has been cleaned up."""
    log: FileSystem = PyFileSystem(DeltaStorageHandler.from_table(table._table))
    found: list[Arrival] = []
    for version in range(first, last + 1):
        path = f"_delta_log/{version:020d}.json"
        if log.get_file_info(path).type != FileType.File:
            return None
        with log.open_input_file(path) as file:
            found += arrivals_of_commit(file.read(), name, version)
    return found


def arrivals_of_commit(commit: bytes, name: str, version: int) -> list[Arrival]:
    """The days to which one commit (lines of JSON) to the table ``name`` added rows, or from which it removed some."""
    actions = [json.loads(line) for line in commit.splitlines() if line.strip()]
    changes = [
        action[kind]
        for action in actions
        for kind in ("add", "remove")
        if kind in action and action[kind].get("dataChange", True)
    ]
    times = [action["commitInfo"]["timestamp"] for action in actions if "timestamp" in action.get("commitInfo", {})]
    days = {change.get("partitionValues", {}).get(PARTITION_COLUMN) for change in changes} - {None}
    stamp = times[0] if times else max((change.get("modificationTime", 0) for change in changes), default=0)
    at = datetime.fromtimestamp(stamp / 1000, UTC)
    return [Arrival(date.fromisoformat(day), name, version, at) for day in sorted(days)]


def _arrivals_by_file(
    table: DeltaTable, name: str, now: LogPosition, built: Mapping[date, BuildRecord]
) -> list[Arrival]:
    files = pl.DataFrame(table.get_add_actions(flatten=True))
    latest = files.group_by(pl.col(f"partition.{PARTITION_COLUMN}").alias("day")).agg(
        pl.col("modification_time").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").max()
    )
    return [
        Arrival(day, name, now.version, at)
        for day, at in latest.sort("day").iter_rows()
        if day not in built
        or built[day].position(name).table_id != now.table_id
        or at >= datetime.fromisoformat(built[day].began_at)
    ]


# -- files -------------------------------------------------------------------------------------------------------


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds an operating-system lock on ``path``; the kernel drops it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(text, encoding="utf-8")
    half.replace(path)
