"""docker-compose.yml and what it hands to its services: checked by compose itself, Dagster itself, and the settings.

Needs the plain ``docker-compose`` (Debian: docker-compose); what asks it is reported as skipped without it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from smoke_platform import __version__
from smoke_platform.cli.main import root
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local.jars import KAFKA_VERSION
from smoke_platform.settings import legal_names, load_settings

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "p@ss:w/rd only here"  # noqa: S105 - an awkward one, for this test alone
OURS = (
    *("topics", "registry", "dagster-code", "dagster-webserver", "dagster-daemon"),
    *("producer", "detector", "notify", "api", "mqtt-bridge", "spark-master", "spark-worker"),
)
#: They describe the embedded platform, or are ports on the host's side.
NOT_PASSED_ON = {
    "SMOKE_CACHE_DIR",
    "SMOKE_DATA_DIR",
    "SMOKE_KAFKA_PORT",
    "SMOKE_KAFKA_CONTROLLER_PORT",
    "SMOKE_API_PORT",
    "SMOKE_DAGSTER_GRPC_PORT",
    "SMOKE_DETECTOR_PORT",
    "SMOKE_NOTIFY_PORT",
}


def _only_for(setting: str) -> str:
    """The one service that gets this setting; empty where all do."""
    if setting.startswith("SMOKE_MQTT_"):
        return "mqtt-bridge"
    if setting.startswith("SMOKE_NOTIFY_"):
        return "notify"
    return {"SMOKE_API_TOKEN": "api", "SMOKE_DETECTOR_MEMBER": "detector"}.get(setting, "")


def _ask_compose(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed (Debian: apt-get install docker-compose)")
    return subprocess.run(
        [program, "--project-name", "smoke", "--file", str(ROOT / "docker-compose.yml"), *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        # Not the project's folder: a .env that lies there must not decide this test.
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@functools.lru_cache(maxsize=1)
def _rendered() -> dict[str, Any]:
    answer = _ask_compose({"POSTGRES_PASSWORD": PASSWORD}, "config")
    assert answer.returncode == 0, answer.stderr
    rendered: dict[str, Any] = yaml.safe_load(answer.stdout)
    return rendered


def _services() -> dict[str, Any]:
    services: dict[str, Any] = _rendered()["services"]
    return services


def test_compose_takes_the_file_and_has_every_part() -> None:
    """A file that compose refuses is found out by the first person who deploys it."""
    assert {"kafka", "postgres", *OURS} <= set(_services())
    assert set(_rendered()["volumes"]) == {"smoke", "dagster-logs", "kafka", "postgres", "prometheus", "mosquitto"}


def test_no_password_means_no_start() -> None:
    """A default password is one that everybody knows."""
    answer = _ask_compose({}, "config")
    assert answer.returncode != 0
    assert "set POSTGRES_PASSWORD in .env" in answer.stderr


def test_no_secret_stands_in_any_file_of_the_deployment() -> None:
    """Whatever is committed or baked into an image is public."""
    files = [ROOT / "docker-compose.yml", *(path for path in (ROOT / "deploy").rglob("*") if path.is_file())]
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            found = re.search(r"(?i)(password|token|secret)\s*[:=]\s*(?P<value>\S+)", line.split("#")[0])
            assert found is None or found["value"].startswith(("${", '"$')), f"{path.name}: {line}"
    for name, service in _services().items():
        for word in json.dumps([service.get("command"), service.get("healthcheck")]).split():
            assert PASSWORD.split(maxsplit=1)[0] not in word, f"{name} shows the password in the list of processes"


def test_ports_are_bound_to_this_machine_alone() -> None:
    """An open Kafka or Dagster port on a company's network is an open door."""
    published = {name: service["ports"] for name, service in _services().items() if service.get("ports")}
    assert published["api"] == ["127.0.0.1:5000:5000/tcp"]
    assert published["dagster-webserver"] == ["127.0.0.1:3000:3000/tcp"]
    assert published["kafka"] == ["127.0.0.1:9092:9092/tcp"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert "postgres" not in published


@pytest.mark.parametrize("name", OURS)
def test_services_of_ours_are_confined_and_come_back(name: str) -> None:
    """Without limits one service takes the others down; without a restart policy a crash is for ever."""
    service = _services()[name]
    assert service["image"] == f"smoke-platform:{__version__}"
    assert service["restart"] in ("unless-stopped", "on-failure")
    assert service["cap_drop"] == ["ALL"]
    assert {"mem_limit", "cpus"} <= set(service)
    assert "container_name" not in service
    mounts = [volume if isinstance(volume, str) else f"{volume['source']}:{volume['target']}"
              for volume in service["volumes"]]  # fmt: skip
    assert any(mount.startswith("smoke:/var/lib/smoke") for mount in mounts), "the lake is shared"


def test_services_wait_for_what_they_need() -> None:
    """Started in any order, half of them would fail until somebody starts them again."""
    waits = {
        name: {other: entry["condition"] for other, entry in service.get("depends_on", {}).items()}
        for name, service in _services().items()
    }
    assert waits["topics"] == {"kafka": "service_healthy"}
    assert waits["registry"]["postgres"] == "service_healthy"
    assert waits["dagster-code"] == {"registry": "service_completed_successfully"}
    for name in ("dagster-webserver", "dagster-daemon"):
        assert waits[name] == {"dagster-code": "service_healthy"}
    for name in ("producer", "detector", "notify", "api", "mqtt-bridge"):
        assert waits[name] == {"topics": "service_completed_successfully"}
    assert waits["spark-worker"] == {"spark-master": "service_healthy"}
    awaited = {other for entry in waits.values() for other, how in entry.items() if how == "service_healthy"}
    for name in awaited | {"api", "dagster-daemon", "dagster-webserver"}:
        assert _services()[name]["healthcheck"]["test"], name


@pytest.mark.parametrize("name", OURS)
def test_the_services_settings_are_legal_and_complete(name: str) -> None:
    """A setting that is not passed on, or that the program refuses, is noticed only in production."""
    environment = {key: str(value) for key, value in _services()[name]["environment"].items()}
    settings = load_settings(environment, env_file=Path("/nonexistent"))
    assert settings.mode == "server"
    assert settings.brokers == "kafka:19092"
    assert settings.registry_uri == "postgresql://smoke:p%40ss%3Aw%2Frd%20only%20here@postgres:5432/smoke_mlflow"
    others = {setting for setting in legal_names() if _only_for(setting) not in ("", name)}
    expected = set(legal_names()) - NOT_PASSED_ON - others
    assert set(environment) == expected


@pytest.mark.parametrize("name", OURS)
def test_the_commands_exist(name: str) -> None:
    """A renamed command would leave its service in a restart loop."""
    words = _services()[name]["command"]
    words = words.split() if isinstance(words, str) else list(words)
    if words[0] != "smoke":
        assert words[0] in ("dagster", "dagster-webserver", "dagster-daemon")
        return
    command: Any = root
    context = command.make_context("smoke", ["--help"], resilient_parsing=True)
    arguments = words[1:]
    while hasattr(command, "get_command"):
        found = command.get_command(context, arguments[0])
        assert found is not None, f"there is no command {arguments[0]!r}"
        command, arguments = found, arguments[1:]
    command.make_context(command.name, arguments)


def test_spark_finds_its_machines_and_its_driver() -> None:
    """A worker that joins another name, or executors that cannot reach the driver, wait for ever without an error."""
    services = _services()
    master = str(services["spark-master"]["command"])
    assert "--host spark-master --port 7077" in master
    assert "spark://spark-master:7077" in str(services["spark-worker"]["command"])
    assert services["dagster-code"]["environment"]["SPARK_DRIVER_HOST"] == "dagster-code"
    assert services["dagster-code"]["ports"] == ["127.0.0.1:4040:4040/tcp"]
    # The landing never gives back what it takes; of a worker's cores one is left to the weekly history.
    assert (
        0
        < int(services["dagster-code"]["environment"]["SPARK_CORES"])
        < int(str(services["spark-worker"]["command"]).split("--cores ")[1].split()[0])
    )
    assert {services[name]["image"] for name in ("dagster-code", "spark-worker")} == {f"smoke-platform:{__version__}"}
    # The driver's Java and the executors' Python are those of the one image.
    assert "openjdk-17-jre-headless" in (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert services["spark-master"]["profiles"] == services["spark-worker"]["profiles"] == ["spark"]
    published = {name for name, service in services.items() if "7077" in str(service.get("ports", ""))}
    assert not published, "whoever reaches the master can run code on its workers"


def test_kafka_is_the_version_that_is_tested_here() -> None:
    """The embedded broker's tests say something about production only if it is the same Kafka."""
    assert _services()["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert _services()["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_server_mode_demands_a_password() -> None:
    """Started by hand, the server mode must not fall back to a store without one."""
    with pytest.raises(SmokeError, match="POSTGRES_PASSWORD"):
        load_settings({"SMOKE_MODE": "server", "KAFKA_BOOTSTRAP_SERVERS": "kafka:19092"}, Path("/nonexistent"))


def test_both_dagster_files_are_equal_but_for_the_storage() -> None:
    """What was tuned in one mode and forgotten in the other fails in the other only."""
    embedded = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    server = yaml.safe_load((ROOT / "deploy" / "dagster.yaml").read_text(encoding="utf-8"))
    storage = server.pop("storage")
    assert embedded == server
    database = storage["postgres"]["postgres_db"]
    assert {key: value["env"] for key, value in database.items()} == {
        "hostname": "POSTGRES_HOST",
        "port": "POSTGRES_PORT",
        "db_name": "POSTGRES_DB",
        "username": "POSTGRES_USER",
        "password": "POSTGRES_PASSWORD",
    }


def test_dagster_takes_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key that Dagster does not know stops every Dagster service at its start."""
    from dagster._core.instance.config import dagster_instance_config
    from dagster._core.instance.ref import InstanceRef

    for name, value in {
        "POSTGRES_HOST": "db", "POSTGRES_PORT": "5432", "POSTGRES_DB": "smoke", "POSTGRES_USER": "smoke",
        "POSTGRES_PASSWORD": PASSWORD,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    shutil.copy(ROOT / "deploy" / "dagster.yaml", tmp_path / "dagster.yaml")
    config, _ = dagster_instance_config(str(tmp_path))
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] == 10
    reference = InstanceRef.from_dir(str(tmp_path))
    assert reference.storage_data is not None
    assert reference.storage_data.class_name == "DagsterPostgresStorage"
    workspace = yaml.safe_load((ROOT / "deploy" / "workspace.yaml").read_text(encoding="utf-8"))
    server = workspace["load_from"][0]["grpc_server"]
    assert server["host"] in _services()
    assert str(server["port"]) in str(_services()["dagster-code"]["command"])


def test_the_image_installs_from_the_lock_and_runs_without_root() -> None:
    """An unpinned or privileged image is another program each time it is built."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    final = text.rsplit("\nFROM ", 1)[1]
    assert text.count("--require-hashes") == 2
    assert re.search(r"^USER smoke$", final, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
              for word in line.split()[:-1] if not word.startswith("--")]  # fmt: skip
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, f"{source} is not sent to the builder"


def test_alerts_use_metrics_that_exist(tmp_path: Path) -> None:
    """An alert on a metric that nobody exports never fires."""
    from prometheus_client import generate_latest

    from smoke_platform.serving.app import create_app
    from smoke_platform.streaming.detector_metrics import DetectorMetrics

    app = create_app(load_settings({"SMOKE_HOME": str(tmp_path)}, Path("/nonexistent")))
    telemetry = app.state.telemetry
    telemetry.observe("/predict", "POST", 200, 0.001)
    texts = [telemetry.exposition().decode(), generate_latest(DetectorMetrics().registry).decode()]
    exported = {name for text in texts for name in re.findall(r"^(\w+)[{ ]", text, re.MULTILINE)}
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    for rule in rules:
        for name in re.findall(r"\bsmoke_[\w:]+", rule["expr"]):
            assert name in exported | recorded, name
        if "alert" in rule:
            assert rule["annotations"]["remedy"]
