"""``smoke doctor``: that each fault is found and comes with its remedy."""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from click.testing import CliRunner

from smoke_platform.cli.main import root
from smoke_platform.local import doctor
from smoke_platform.local.jars import BROKER
from smoke_platform.settings import Settings

SettingsFor = Callable[..., Settings]


def found(settings: Settings, name: str) -> doctor.Check:
    """The check of this name."""
    return next(check for check in doctor.examine(settings) if check.name == name)


def test_a_sound_machine_has_no_fault(tmp_path: Path, settings_for: SettingsFor) -> None:
    """A doctor that finds faults where there are none is soon ignored."""
    checks = doctor.examine(settings_for(tmp_path))
    assert [check for check in checks if check.outcome == "fail"] == []
    assert {"Python", "Packages", "Java", "Disk", "Memory", "Open files"} <= {check.name for check in checks}


def test_every_fault_comes_with_its_remedy(
    tmp_path: Path, settings_for: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault without a remedy leaves a newcomer where they were."""
    settings = settings_for(tmp_path, SMOKE_CACHE_DIR=tmp_path / "cache")
    BROKER.folder(settings.cache_dir).mkdir(parents=True)
    (BROKER.folder(settings.cache_dir) / next(iter(BROKER.expected()))).write_bytes(b"not a jar")

    class Usage(NamedTuple):
        total: int = 10**9
        used: int = 10**9
        free: int = 10**6

    class Memory(NamedTuple):
        available: int = 10**8

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage())
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(resource, "getrlimit", lambda _limit: (256, 512))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "find_java", _no_java)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", settings.api_port))
        listener.listen()
        checks = {check.name: check for check in doctor.examine(settings)}
    ill = {name for name, check in checks.items() if check.outcome != "ok"}
    assert ill == {"Java", "Kafka's jars", f"Port {settings.api_port}", "Disk", "Memory", "Open files"}
    assert all(checks[name].remedy for name in ill)
    assert "SMOKE_API_PORT" in checks[f"Port {settings.api_port}"].remedy
    assert str(os.getpid()) in checks[f"Port {settings.api_port}"].found


def _no_java() -> Any:
    from smoke_platform.adapters.java import find_java

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smoke_platform.adapters.java.candidates", lambda _environment: iter(()))
        return find_java()


@pytest.mark.parametrize(
    ("version", "outcome"), [("1.2.3", "ok"), ("0.9", "fail"), (None, "fail")], ids=["right", "old", "missing"]
)
def test_packages_are_held_against_the_requirements(
    tmp_path: Path, settings_for: SettingsFor, monkeypatch: pytest.MonkeyPatch, version: str | None, outcome: str
) -> None:
    """After a pull the environment may be older than the code; the import error that follows names nothing."""

    def installed(_name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: ["some-package>=1", "tool>=3 ; extra == 'dev'"])
    monkeypatch.setattr(importlib.metadata, "version", installed)
    check = found(settings_for(tmp_path), "Packages")
    assert check.outcome == outcome
    assert ("some-package" in check.found) == (outcome == "fail")


def test_the_command_fails_where_something_hinders(
    tmp_path: Path, settings_for: SettingsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`smoke doctor && smoke up` in a script rests on the exit code."""
    settings = settings_for(tmp_path)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)

    class Plenty(NamedTuple):
        available: int = 10**11

    # What the other tests leave free is not what is asked here.
    monkeypatch.setattr(psutil, "virtual_memory", Plenty)
    assert CliRunner().invoke(root, ["doctor"]).exit_code == 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", settings.dagster_port))
        listener.listen()
        answer = CliRunner().invoke(root, ["doctor", "--json"])
    assert answer.exit_code == 1
    content = json.loads(answer.stdout)
    assert content["healthy"] is False
    assert [check["name"] for check in content["checks"] if check["outcome"] == "fail"] == [
        f"Port {settings.dagster_port}"
    ]


@pytest.mark.parametrize("command", ["up", "down", "status", "logs", "doctor", "kafka"])
def test_every_command_shows_an_example(command: str) -> None:
    """A person looks at the example before they read the options."""
    answer = CliRunner().invoke(root, [command, "--help"])
    assert answer.exit_code == 0
    assert f"smoke {command}" in answer.output.partition("Example:")[2]
