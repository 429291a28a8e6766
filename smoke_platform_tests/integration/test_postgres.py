"""The server mode's stores: Dagster's instance and the model registry on a real PostgreSQL.

Needs PostgreSQL's server binaries (Debian: postgresql); reported as skipped without them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "only-for-this-test"  # noqa: S105 - guards a throw-away server on loopback


@dataclass(frozen=True)
class Postgres:
    port: int

    def environment(self) -> dict[str, str]:
        return {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(self.port),
            "POSTGRES_DB": "smoke",
            "POSTGRES_USER": "smoke",
            "POSTGRES_PASSWORD": PASSWORD,
        }


def _as_server_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory, free_port) -> Iterator[Postgres]:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        pytest.skip("PostgreSQL's server binaries are not installed (Debian: postgresql)")
    home = tmp_path_factory.mktemp("postgres")
    if os.geteuid() == 0:
        shutil.chown(home, "postgres")
        # pytest makes its temporary folders private to root; the server's user must pass through them.
        for parent in (home, *home.parents):
            if parent.is_relative_to("/tmp") and parent != Path("/tmp"):  # noqa: S108 - compares, opens nothing
                parent.chmod(parent.stat().st_mode | 0o055)
    home.chmod(0o700)
    data, port = home / "data", free_port()
    secret = home / "secret"
    secret.write_text(PASSWORD, encoding="utf-8")
    if os.geteuid() == 0:
        shutil.chown(secret, "postgres")
    tool = binaries[-1]
    subprocess.run(
        _as_server_user(
            [str(tool / "initdb"), "-D", str(data), "-U", "smoke", "--pwfile", str(secret), "-A", "scram-sha-256"]
        ),
        check=True,
        capture_output=True,
        cwd="/",
    )
    server = subprocess.Popen(
        _as_server_user([str(tool / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(home)]),
        stdout=subprocess.DEVNULL,
        stderr=(home / "server.log").open("wb") if os.geteuid() else subprocess.DEVNULL,
        cwd="/",
    )
    try:
        _create_database(port)
        yield Postgres(port)
    finally:
        server.terminate()
        server.wait(30)


def _create_database(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            link = psycopg2.connect(host="127.0.0.1", port=port, user="smoke", password=PASSWORD, dbname="postgres")
            break
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    link.autocommit = True
    with link.cursor() as cursor:
        cursor.execute("CREATE DATABASE smoke")
    link.close()


@pytest.mark.integration
def test_the_server_modes_instance_keeps_runs_and_events_in_postgresql(postgres, tmp_path, monkeypatch):
    """In docker-compose the web server, the daemon and the runs would not see each other's events."""
    for name, value in postgres.environment().items():
        monkeypatch.setenv(name, value)
    shutil.copy(ROOT / "deploy" / "dagster.yaml", tmp_path / "dagster.yaml")

    @dg.asset
    def landed() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"rows": 3})

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert dg.materialize([landed], instance=instance).success
    with dg.DagsterInstance.from_config(str(tmp_path)) as reopened:
        event = reopened.get_latest_materialization_event(dg.AssetKey("landed"))
        assert event is not None
        assert event.asset_materialization.metadata["rows"].value == 3
        assert "postgres" in type(reopened.event_log_storage).__module__


def test_the_server_modes_settings_differ_from_the_embedded_ones_in_storage_alone():
    """An embedded platform that works would say nothing about the composed one."""
    embedded = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    server = yaml.safe_load((ROOT / "deploy" / "dagster.yaml").read_text(encoding="utf-8"))
    embedded.pop("storage", None)
    assert "postgres" in server.pop("storage")
    assert embedded == server
