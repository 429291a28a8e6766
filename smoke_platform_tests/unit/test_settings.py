"""Settings: a mistyped name or an illegal value must stop the start, and the template must tell the truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings, example_file, legal_names, load_settings

ROOT = Path(__file__).resolve().parents[2]


def load(environment: dict[str, str], tmp_path: Path, env_file: str = "") -> Settings:
    file = tmp_path / ".env"
    file.write_text(env_file, encoding="utf-8")
    return load_settings(environment, file)


def test_the_template_is_what_the_code_reads():
    """A person would set a name from .env.example that nothing reads."""
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == example_file()


def test_the_template_uncommented_is_legal(tmp_path):
    """Copying .env.example and removing the comment signs would not start."""
    lines = [line.removeprefix("# ") for line in example_file().splitlines()]
    uncommented = "\n".join(line for line in lines if line.split("=")[0] in legal_names())
    assert load({}, tmp_path, uncommented) == load({}, tmp_path)


@pytest.mark.parametrize("where", ["environment", "file"])
def test_an_unknown_name_stops_the_start_and_lists_the_legal_ones(tmp_path, where):
    """A mistyped setting would be ignored and the platform run otherwise than its owner believes."""
    name = "SMOKE_API_PROT"
    with pytest.raises(SmokeError, match=name) as caught:
        load({name: "1"}, tmp_path) if where == "environment" else load({}, tmp_path, f"{name}=1\n")
    assert "SMOKE_API_PORT" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMOKE_API_PORT", "99999"),
        ("SMOKE_MODE", "cloud"),
        ("SMOKE_TIMEZONE", "Mars/Olympus"),
        ("ML_TRAINING_INTERVAL_HOURS", "0"),
        ("SMOKE_GATE_MIN_F1", "75"),
        ("KAFKA_TOPIC_SMOKE", "no spaces"),
        ("SMOKE_ENGINE", "flink"),
        ("SPARK_MASTER", "yarn"),
        ("SPARK_MASTER", "local[0]"),
        ("SPARK_DRIVER_MEMORY", "1"),
    ],
)
def test_an_illegal_value_is_named_with_its_setting(tmp_path, name, value):
    """The start would fail later, in a part that knows nothing of the setting."""
    with pytest.raises(SmokeError, match=name):
        load({name: value}, tmp_path)


def test_the_environment_outranks_the_file_and_an_empty_value_is_not_set(tmp_path):
    """A value given for one call would lose against the file, or an unset compose variable stop the start."""
    chosen = load({"SMOKE_API_PORT": "6001", "SMOKE_KAFKA_PORT": ""}, tmp_path, "SMOKE_API_PORT=6000\n")
    assert (chosen.api_port, chosen.kafka_port) == (6001, 9092)


def test_server_mode_has_no_default_password(tmp_path):
    """A composed platform would come up with a password that everyone knows."""
    environment = {"SMOKE_MODE": "server", "KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}
    with pytest.raises(SmokeError, match="POSTGRES_PASSWORD"):
        load(environment, tmp_path)
    with pytest.raises(SmokeError, match="KAFKA_BOOTSTRAP_SERVERS"):
        load({"SMOKE_MODE": "server", "POSTGRES_PASSWORD": "given"}, tmp_path)
    assert load({**environment, "POSTGRES_PASSWORD": "given"}, tmp_path).mode == "server"


def test_a_childs_environment_gives_the_same_settings_without_secrets(tmp_path):
    """A supervised program would run with other settings than the command that started it."""
    chosen = load({"SMOKE_HOME": str(tmp_path), "SMOKE_SIMULATE": "false", "POSTGRES_PASSWORD": "hidden"}, tmp_path)
    handed = chosen.environment()
    assert "hidden" not in " ".join(handed.values())
    again = load(handed, tmp_path)
    assert again == chosen.model_copy(update={"postgres_password": None})
    assert Path(handed["SMOKE_HOME"]).is_absolute()


def test_settings_cannot_be_changed_after_the_start(tmp_path):
    """Two parts of one process would run with different settings."""
    with pytest.raises(ValueError, match="frozen"):
        load({}, tmp_path).api_port = 1  # type: ignore[misc]
