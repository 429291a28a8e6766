"""A whole private platform, brought up once for this module: up, status, logs, what kills it, and down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from smoke_platform.domain.errors import SmokeError
from smoke_platform.local.broker import is_ready
from smoke_platform.local.programs import required_ports
from smoke_platform.local.supervisor import Platform
from smoke_platform.settings import Settings

# Bringing a platform up is given five minutes, on top of what is waited for afterwards.
pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

SMOKE = str(Path(sys.executable).with_name("smoke"))
NAMES = ["kafka", "detector", "code_server", "daemon", "webserver", "api", "notify", "simulator"]


def smoke(settings: Settings, *arguments: str, **surroundings: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a person would, with these settings in its environment."""
    values = {**os.environ, **settings.environment(), **surroundings}
    return subprocess.run(
        [SMOKE, *arguments],
        env=values,
        cwd=settings.home.parent,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def until(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """Waits for a condition, with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def platform(settings_for: Callable[..., Settings]) -> Iterator[Platform]:
    """A platform with two simulated devices that trains nothing; its home's path is longer than a socket's may be."""
    folder = Path(tempfile.mkdtemp(prefix="smoke-e2e-", dir="/var/tmp")) / ("a-rather-long-name-of-a-folder-" * 3)
    folder.mkdir()
    settings = settings_for(folder, SMOKE_SIMULATE_DEVICES=2, ML_AUTO_TRAIN_ON_STARTUP="false")
    private = Platform(settings, tether=True)
    try:
        private.up()
        yield private
    finally:
        private.down()
        shutil.rmtree(folder.parent, ignore_errors=True)


def test_up_leaves_everything_running(platform: Platform) -> None:
    """After `up` a person opens the console and Dagster; both must be there, with the code loaded."""
    assert [entry.name for entry in platform.status()] == NAMES
    # Each look gives a program a few seconds to answer, which a busy machine may need for one that has just come up.
    until(lambda: all(entry.well for entry in platform.status()), "everything is well")
    assert set(platform.pids()) == set(NAMES)
    assert httpx.get(f"{platform.settings.api_url}/health", trust_env=False).status_code == 200
    information = httpx.get(f"http://127.0.0.1:{platform.settings.dagster_port}/server_info", trust_env=False)
    assert "dagster_webserver_version" in information.json()


def test_a_second_up_changes_nothing(platform: Platform) -> None:
    """`make up` is what people type when they are not sure; it must not restart what works."""
    before = platform.pids()
    answer = smoke(platform.settings, "up", "--json")
    assert answer.returncode == 0, answer.stderr
    assert {entry["name"]: entry["pid"] for entry in json.loads(answer.stdout)["programs"]} == before
    assert platform.pids() == before


def test_up_with_other_settings_says_so(platform: Platform) -> None:
    """Otherwise a person changes a setting, sees `up` succeed, and wonders why nothing has changed."""
    answer = smoke(platform.settings, "up", SMOKE_SIMULATE_DEVICES="3")
    assert answer.returncode == 1
    assert "SMOKE_SIMULATE_DEVICES=3 (runs with 2)" in answer.stderr
    assert "smoke down" in answer.stderr


def test_status_and_logs_tell_what_runs(platform: Platform) -> None:
    """A script reads the JSON and the exit code, a person the table."""
    answers: list[subprocess.CompletedProcess[str]] = []

    def well() -> bool:
        answers.append(smoke(platform.settings, "status", "--json"))
        return answers[-1].returncode == 0

    until(well, "the exit code says that everything is well")
    programs: list[dict[str, Any]] = json.loads(answers[-1].stdout)["programs"]
    assert [entry["name"] for entry in programs] == NAMES
    assert all(entry["well"] and entry["pid"] and entry["rss_mb"] > 1 for entry in programs)
    table = smoke(platform.settings, "status").stdout
    assert f"http://127.0.0.1:{platform.settings.api_port}" in table
    assert "Kafka Server started" in smoke(platform.settings, "logs", "kafka", "-n", "1000").stdout
    assert smoke(platform.settings, "logs", "supervisord").stdout.count("spawned") >= len(NAMES)


def test_doctor_knows_its_own_ports(platform: Platform) -> None:
    """A platform that runs must not be reported as a fault of the machine."""
    answer = smoke(platform.settings, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(answer.stdout)["checks"]}
    for _, port, _, _ in required_ports(platform.settings):
        assert checks[f"Port {port}"]["outcome"] == "ok"
        assert "this platform" in checks[f"Port {port}"]["found"]


@pytest.mark.parametrize("name", ["kafka", "detector", "code_server", "api"])
def test_a_killed_program_comes_back_by_itself(platform: Platform, name: str) -> None:
    """Nobody sits beside it at night."""
    victim = platform.pids()[name]
    os.kill(victim, signal.SIGKILL)
    until(lambda: platform.pids().get(name) not in (victim, None), f"{name} is started again")
    until(lambda: all(entry.well for entry in platform.status()), "everything is well again", 120)


def test_up_recovers_what_a_killed_supervisor_left(platform: Platform) -> None:
    """The programs live on without it; the next `up` must not trip over their ports, and none may be left over."""
    before = {process.pid for process in platform.processes()}
    supervisor = platform.supervisor_pid()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not platform.is_supervised(), "the supervisor is dead")
    until(lambda: is_ready(platform.settings.brokers), "the broker has outlived its supervisor")
    platform.up()
    until(lambda: all(entry.well for entry in platform.status()), "everything is well again")
    after = {process.pid for process in platform.processes()}
    assert not before & after


def test_down_leaves_nothing(platform: Platform) -> None:
    """A process that stays holds a port or the data, and the next `up` fails."""
    marked = platform.processes()
    assert len(marked) > len(NAMES)
    answer = smoke(platform.settings, "down")
    assert answer.returncode == 0, answer.stderr
    assert platform.processes() == []
    assert not [process for process in marked if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert smoke(platform.settings, "status").returncode == 1
    assert "Nothing runs" in smoke(platform.settings, "down").stdout
    for host, port, _, _ in required_ports(platform.settings):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))


def test_a_taken_port_stops_up_before_anything_is_started(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """Half a platform is harder to understand than none."""
    private = Platform(settings_for(tmp_path))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", private.settings.dagster_port))
        listener.listen()
        with pytest.raises(SmokeError, match=rf"{private.settings.dagster_port}[\s\S]*SMOKE_DAGSTER_PORT"):
            private.up()
    assert private.processes() == []


def test_a_failed_set_up_leaves_nothing_running(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """The next `up` would otherwise take the half that runs for a platform that is set up."""
    private = Platform(settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1"), tether=True)
    with pytest.raises(SmokeError, match=r"127\.0\.0\.1:1[\s\S]*KAFKA_BOOTSTRAP_SERVERS"):
        private.up()
    assert private.processes() == []
    assert not private.is_supervised()


def test_a_platform_does_not_outlive_the_killed_process_that_holds_its_tether(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """A proof that is killed would leave a whole platform behind."""
    settings = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", SMOKE_SIMULATE=False)
    program = (
        "import time; from smoke_platform.local.supervisor import Platform\n"
        "from smoke_platform.settings import load_settings\n"
        "p = Platform(load_settings(), tether=True); p.settings.run_dir.mkdir(parents=True); p._write_files()\n"
        "p._start_supervisor(); p._start('api'); print('started', flush=True); time.sleep(600)"
    )
    surroundings = {**os.environ, **settings.environment()}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=surroundings, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "started\n"
            private = Platform(settings)
            until(lambda: len(private.processes()) >= 2, "supervisor and API run")
        finally:
            # Whatever was found: it sleeps for ten minutes, and leaving this block waits for it.
            parent.kill()
    until(lambda: private.processes() == [], "everything has ended")
