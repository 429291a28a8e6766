"""Every setting of the platform: name, default, legal values, meaning. Read once, frozen after.

Belongs here: what comes from the environment or from ``.env``, and the places derived from it. Does not:
constants of the domain (they stand beside what they govern), secrets' values, anything that opens a file.
``.env.example`` is written from this module (``smoke settings --example``) and a test holds the two together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.topics import DEAD_LETTERS, READINGS

#: Names with this prefix belong to the platform, so an unknown one is a mistyped one.
OWN_PREFIX = "SMOKE_"
EMBEDDED_NOTE = "none is needed in the embedded mode"


def _setting(name: str, default: Any, description: str, *, section: str, **limits: Any) -> Any:
    return Field(default=default, alias=name, description=description, json_schema_extra={"section": section}, **limits)


class Settings(BaseModel):
    """The platform's settings; each field's alias is its name in the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    # -- places ------------------------------------------------------------------------------------------
    mode: Literal["embedded", "server"] = _setting(
        "SMOKE_MODE",
        "embedded",
        "embedded: everything on this machine; server: parts run elsewhere",
        section="Places",
    )
    home: Path = _setting(
        "SMOKE_HOME", Path(".smoke"), "Folder of all state of the embedded platform", section="Places"
    )
    cache_dir: Path = _setting(
        "SMOKE_CACHE_DIR",
        Path("~/.cache/smoke-platform"),
        "Downloads shared by all platforms of this user",
        section="Places",
    )
    data_dir: Path | None = _setting(
        "SMOKE_DATA_DIR",
        None,
        "Example data (recordings); what needs it is skipped where it is missing",
        section="Places",
    )
    lake_url: str = _setting(
        "SMOKE_LAKE_URL",
        "",
        "Folder or object-store URL of the lake; empty: lake/ in SMOKE_HOME",
        section="Places",
    )
    mlflow_uri: str = _setting(
        "SMOKE_MLFLOW_URI",
        "",
        "MLflow's store; empty: SQLite in SMOKE_HOME, in server mode PostgreSQL",
        section="Places",
    )
    bind_host: str = _setting("SMOKE_BIND_HOST", "127.0.0.1", "Address the services listen on", section="Places")
    api_port: int = _setting("SMOKE_API_PORT", 5000, "API and console", section="Places", ge=1, le=65535)
    api_token: SecretStr | None = _setting(
        "SMOKE_API_TOKEN",
        None,
        "Token for the API's changing endpoints; they are switched off without one",
        section="Places",
    )
    dagster_port: int = _setting("SMOKE_DAGSTER_PORT", 3000, "Dagster's UI", section="Places", ge=1, le=65535)
    dagster_grpc_port: int = _setting(
        "SMOKE_DAGSTER_GRPC_PORT", 4266, "Dagster's code server", section="Places", ge=1, le=65535
    )
    ml_api_url: str = _setting(
        "ML_API_URL",
        "",
        "Where the command line and the monitors find the API; empty: the port above",
        section="Places",
    )

    # -- Kafka -------------------------------------------------------------------------------------------
    kafka_bootstrap_servers: str = _setting(
        "KAFKA_BOOTSTRAP_SERVERS",
        "",
        "Brokers, host:port,host:port; empty: the embedded broker",
        section="Kafka",
    )
    kafka_port: int = _setting("SMOKE_KAFKA_PORT", 9092, "Port of the embedded broker", section="Kafka", ge=1, le=65535)
    kafka_controller_port: int = _setting(
        "SMOKE_KAFKA_CONTROLLER_PORT",
        9093,
        "Port of the embedded broker's controller",
        section="Kafka",
        ge=1,
        le=65535,
    )
    topic_readings: str = _setting(
        "KAFKA_TOPIC_SMOKE",
        READINGS,
        "Topic of the readings",
        section="Kafka",
        pattern=r"^[a-zA-Z0-9._-]{1,200}$",
    )
    kafka_partitions: int = _setting(
        "SMOKE_KAFKA_PARTITIONS", 6, "Partitions of a topic that is made", section="Kafka", ge=1, le=10_000
    )
    kafka_replication: int = _setting(
        "SMOKE_KAFKA_REPLICATION", 1, "Replicas of a topic that is made", section="Kafka", ge=1, le=9
    )
    kafka_retention_days: float = _setting(
        "SMOKE_KAFKA_RETENTION_DAYS", 7.0, "How long the readings stay in Kafka", section="Kafka", gt=0
    )

    # -- simulator ---------------------------------------------------------------------------------------
    simulate: bool = _setting(
        "SMOKE_SIMULATE", True, "Whether the embedded platform runs simulated devices", section="Simulator"
    )
    simulate_devices: int = _setting(
        "SMOKE_SIMULATE_DEVICES",
        20,
        "Simulated devices, one reading a second each",
        section="Simulator",
        ge=1,
        le=100_000,
    )
    simulate_seed: int = _setting("SMOKE_SIMULATE_SEED", 7, "Seed of the simulated devices", section="Simulator", ge=0)

    # -- landing -----------------------------------------------------------------------------------------
    batch_seconds: float = _setting(
        "SMOKE_BATCH_SECONDS",
        1.0,
        "A micro-batch is committed after this time at the latest",
        section="Landing",
        gt=0,
        le=60,
    )
    batch_rows: int = _setting(
        "SMOKE_BATCH_ROWS",
        100_000,
        "or as soon as it has this many readings",
        section="Landing",
        ge=1,
        le=5_000_000,
    )
    stream_idle_seconds: float = _setting(
        "SMOKE_STREAM_IDLE_SECONDS",
        60.0,
        "The streaming run ends after this long without a reading",
        section="Landing",
        gt=0,
    )
    stream_max_seconds: float = _setting(
        "SMOKE_STREAM_MAX_SECONDS",
        3000.0,
        "The streaming run ends after this time, and is started anew",
        section="Landing",
        gt=0,
        le=3300,
    )
    lateness_minutes: float = _setting(
        "SMOKE_LATENESS_MINUTES",
        10.0,
        "A reading further behind its device's clock is late",
        section="Landing",
        ge=0,
    )
    prediction_days: int = _setting(
        "SMOKE_PREDICTION_DAYS",
        90,
        "How many days the detector's predictions stay in the lake",
        section="Landing",
        ge=1,
    )
    first_day: date = _setting(
        "SMOKE_FIRST_DAY", date(2022, 6, 1), "First UTC day of the daily partitions", section="Landing"
    )

    # -- windows -----------------------------------------------------------------------------------------
    window_seconds: float = _setting(
        "SMOKE_WINDOW_SECONDS",
        5.0,
        "Windows that are over are appended this often",
        section="Windows",
        gt=0,
        le=60,
    )

    # -- engine ------------------------------------------------------------------------------------------
    engine: Literal["local", "spark"] = _setting(
        "SMOKE_ENGINE",
        "local",
        "What lands readings and computes windows: local, one process; spark, when one machine is outgrown",
        section="Engine",
    )
    spark_master: str = _setting(
        "SPARK_MASTER",
        "local[*]",
        "Where Spark runs: local[*] on this machine, spark://host:7077 on a cluster",
        section="Engine",
        pattern=r"^(local|local\[(\*|[1-9]\d{0,3})\]|spark://[A-Za-z0-9._-]+:\d{1,5}(,[A-Za-z0-9._-]+:\d{1,5})*)$",
    )
    spark_ui_port: int = _setting(
        "SPARK_UI_PORT", 4040, "Spark's own UI while its driver runs; 0: none", section="Engine", ge=0, le=65535
    )
    spark_driver_host: str = _setting(
        "SPARK_DRIVER_HOST",
        "",
        "Name by which a cluster's workers reach the driver; empty: this machine's own",
        section="Engine",
        pattern=r"^[A-Za-z0-9._-]*$",
    )
    spark_driver_memory: str = _setting(
        "SPARK_DRIVER_MEMORY",
        "1g",
        "Heap of Spark's driver; with local[*] all of Spark's",
        section="Engine",
        pattern=r"^[1-9]\d*[mg]$",
    )
    spark_executor_memory: str = _setting(
        "SPARK_EXECUTOR_MEMORY",
        "1g",
        "Heap of each executor on a cluster",
        section="Engine",
        pattern=r"^[1-9]\d*[mg]$",
    )
    spark_cores: int = _setting(
        "SPARK_CORES",
        0,
        "Cores of a cluster that one run takes at most, so that another has some; 0: all",
        section="Engine",
        ge=0,
        le=100_000,
    )
    spark_batch_seconds: float = _setting(
        "SPARK_BATCH_SECONDS",
        2.0,
        "Spark begins a micro-batch no sooner than this after the one before",
        section="Engine",
        gt=0,
        le=300,
    )
    spark_batch_rows: int = _setting(
        "SPARK_BATCH_ROWS",
        1_000_000,
        "Readings that one micro-batch of Spark takes at most",
        section="Engine",
        ge=1,
        le=100_000_000,
    )

    # -- schedules ---------------------------------------------------------------------------------------
    timezone: str = _setting("SMOKE_TIMEZONE", "UTC", "Zone of the schedules' clock times", section="Schedules")
    build_minutes: float = _setting(
        "SMOKE_BUILD_MINUTES",
        10.0,
        "Days that received readings are built again this often",
        section="Schedules",
        gt=0,
    )
    report_retention: int = _setting(
        "SMOKE_REPORT_RETENTION", 30, "Reports of a kind that are kept", section="Schedules", ge=1
    )
    event_log_days: float = _setting(
        "SMOKE_EVENT_LOG_DAYS",
        14.0,
        "Finished Dagster runs older than this are pruned",
        section="Schedules",
        gt=0,
    )

    # -- history -----------------------------------------------------------------------------------------
    history_engine: Literal["auto", "spark", "local"] = _setting(
        "SMOKE_HISTORY_ENGINE",
        "auto",
        "What the weekly history runs on: spark, local (one process), or auto: Spark wherever a JDK for it is found",
        section="History",
    )
    history_part_rows: int = _setting(
        "SMOKE_HISTORY_PART_ROWS",
        1_000_000,
        "Readings of a day that one task of the history takes at most; some 800 MB of memory for a million",
        section="History",
        ge=1_000,
        le=100_000_000,
    )

    # -- detector ----------------------------------------------------------------------------------------
    detector_port: int = _setting(
        "SMOKE_DETECTOR_PORT", 5001, "Health and metrics of the detector", section="Detector", ge=1, le=65535
    )
    detector_address: str = _setting(
        "SMOKE_DETECTOR_URL",
        "",
        "Where the console finds the detector; empty: the port above on this machine",
        section="Detector",
    )
    detector_member: str = _setting(
        "SMOKE_DETECTOR_MEMBER",
        "detector-0",
        "Name of this replica; a restarted one of the same name has its partitions back at once",
        section="Detector",
        pattern=r"^[a-zA-Z0-9._-]{1,200}$",
    )
    snapshot_seconds: float = _setting(
        "SMOKE_SNAPSHOT_SECONDS",
        4.0,
        "Every device's state is saved at least this often",
        section="Detector",
        gt=0,
        le=60,
    )

    # -- notifications -----------------------------------------------------------------------------------
    notify_port: int = _setting(
        "SMOKE_NOTIFY_PORT", 5002, "Health and metrics of the notifier", section="Notifications", ge=1, le=65535
    )
    notify_config: Path | None = _setting(
        "SMOKE_NOTIFY_CONFIG",
        None,
        "YAML file of channels and routes; empty: every channel gets everything",
        section="Notifications",
    )
    notify_urls: SecretStr | None = _setting(
        "SMOKE_NOTIFY_URLS",
        None,
        "Channels' Apprise URLs, name=url pairs with white space between; console and log need none",
        section="Notifications",
    )

    # -- MQTT --------------------------------------------------------------------------------------------
    mqtt_url: str = _setting(
        "SMOKE_MQTT_URL", "", "MQTT broker of the bridge, mqtt://host:1883 or mqtts://host:8883", section="MQTT"
    )
    mqtt_topics: str = _setting(
        "SMOKE_MQTT_TOPICS",
        "sensors/{device_id}/readings",
        "Topics of the readings, with commas in between; + and # as MQTT has them",
        section="MQTT",
    )
    mqtt_user: str = _setting("SMOKE_MQTT_USER", "", "Account at the MQTT broker", section="MQTT")
    mqtt_password: SecretStr | None = _setting("SMOKE_MQTT_PASSWORD", None, "Its password", section="MQTT")
    mqtt_client_id: str = _setting(
        "SMOKE_MQTT_CLIENT_ID",
        "smoke-bridge",
        "Name of the session that the MQTT broker keeps; each bridge needs its own",
        section="MQTT",
        pattern=r"^[a-zA-Z0-9._-]{1,200}$",
    )
    mqtt_ca_file: Path | None = _setting(
        "SMOKE_MQTT_CA_FILE",
        None,
        "Authority of the MQTT broker's certificate, PEM; empty: the system's",
        section="MQTT",
    )
    mqtt_session_hours: float = _setting(
        "SMOKE_MQTT_SESSION_HOURS",
        168.0,
        "So long the MQTT broker keeps messages for a bridge that is away",
        section="MQTT",
        gt=0,
        le=8760,
    )
    mqtt_receive_maximum: int = _setting(
        "SMOKE_MQTT_RECEIVE_MAXIMUM",
        1000,
        "Messages taken from the MQTT broker that Kafka does not have yet",
        section="MQTT",
        ge=1,
        le=65_535,
    )
    mqtt_metrics_port: int = _setting(
        "SMOKE_MQTT_METRICS_PORT", 0, "Metrics of the bridge; 0: none", section="MQTT", ge=0, le=65535
    )

    # -- model -------------------------------------------------------------------------------------------
    auto_train_on_startup: bool = _setting(
        "ML_AUTO_TRAIN_ON_STARTUP", True, "Train a first model where there is no champion", section="Model"
    )
    training_interval_hours: int = _setting(
        "ML_TRAINING_INTERVAL_HOURS",
        24,
        "24: daily at 02:00; else every so many hours",
        section="Model",
        ge=1,
        le=24,
    )
    gate_min_accuracy: float = _setting(
        "SMOKE_GATE_MIN_ACCURACY", 0.80, "Least grouped accuracy of a champion", section="Model", ge=0, le=1
    )
    gate_min_f1: float = _setting(
        "SMOKE_GATE_MIN_F1", 0.75, "Least grouped F1 (fire class) of a champion", section="Model", ge=0, le=1
    )
    drift_retrain_cooldown_hours: float = _setting(
        "SMOKE_DRIFT_RETRAIN_COOLDOWN_HOURS",
        24.0,
        "Drift asks for a training run no sooner than this after the one it asked for before; 0: never",
        section="Model",
        ge=0,
        le=8760,
    )
    gate_min_fires: int = _setting(
        "SMOKE_GATE_MIN_FIRES",
        20,
        "Least held-out fires on which a candidate is compared with the champion; fewer refuse it",
        section="Model",
        ge=1,
    )
    shadow_hours: float = _setting(
        "SMOKE_SHADOW_HOURS",
        0.0,
        "Device-hours that a version is watched beside the champion before it is promoted; 0: it is promoted at once",
        section="Model",
        ge=0,
    )
    auto_rollback: bool = _setting(
        "SMOKE_AUTO_ROLLBACK",
        True,
        "Go back to the champion before by itself when the live performance falls",
        section="Model",
    )
    model_retention: int = _setting(
        "SMOKE_MODEL_RETENTION",
        10,
        "Versions of the model that are kept, beside champion, challenger and the way back",
        section="Model",
        ge=1,
        le=10_000,
    )
    training_seed: int = _setting(
        "SMOKE_TRAINING_SEED", 7, "Seed of training and of its simulated set", section="Model", ge=0
    )

    # -- PostgreSQL (server mode) ------------------------------------------------------------------------
    postgres_host: str = _setting("POSTGRES_HOST", "postgres", "Host of PostgreSQL", section="PostgreSQL")
    postgres_port: int = _setting("POSTGRES_PORT", 5432, "Its port", section="PostgreSQL", ge=1, le=65535)
    postgres_db: str = _setting("POSTGRES_DB", "smoke", "Its database", section="PostgreSQL")
    postgres_user: str = _setting("POSTGRES_USER", "smoke", "Its user", section="PostgreSQL")
    postgres_password: SecretStr | None = _setting(
        "POSTGRES_PASSWORD",
        None,
        f"Its password; required in server mode, {EMBEDDED_NOTE}",
        section="PostgreSQL",
    )

    @field_validator("home", "cache_dir", "data_dir", "notify_config", "mqtt_ca_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("no such time zone; use a name such as UTC or Europe/Vienna") from None
        return value

    @model_validator(mode="after")
    def _server_mode_names_its_parts(self) -> Settings:
        if self.mode == "server":
            if not self.kafka_bootstrap_servers:
                raise ValueError("KAFKA_BOOTSTRAP_SERVERS is required where SMOKE_MODE=server")
            if self.postgres_password is None or not self.postgres_password.get_secret_value():
                raise ValueError("POSTGRES_PASSWORD is required where SMOKE_MODE=server; there is no default")
        return self

    # -- derived -----------------------------------------------------------------------------------------
    @property
    def near_host(self) -> str:
        """Where this machine reaches what listens on ``SMOKE_BIND_HOST``: a wildcard is no address to connect to."""
        return "127.0.0.1" if self.bind_host in ("", "0.0.0.0", "::") else self.bind_host  # noqa: S104 - compared with

    @property
    def brokers(self) -> str:
        """Bootstrap servers, the embedded broker's where none are named."""
        return self.kafka_bootstrap_servers or f"{self.near_host}:{self.kafka_port}"

    @property
    def api_url(self) -> str:
        return self.ml_api_url.rstrip("/") or f"http://{self.near_host}:{self.api_port}"

    @property
    def detector_url(self) -> str:
        return self.detector_address.rstrip("/") or f"http://{self.near_host}:{self.detector_port}"

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @property
    def topic_dead_letters(self) -> str:
        """Topic of the rejects; readings in a topic of another name have their own, so that the two never mix."""
        if self.topic_readings == READINGS:
            return DEAD_LETTERS
        return f"{self.topic_readings}_dead_letters"

    @cached_property
    def lake(self) -> str:
        """Folder or URL below which every Delta table lies, without a slash at the end."""
        return self.lake_url.rstrip("/") or str(self.home / "lake")

    def table(self, name: str) -> str:
        """Address of the Delta table ``name``, such as ``readings``."""
        return f"{self.lake}/{name}"

    @property
    def warehouse_file(self) -> Path:
        return self.home / "warehouse" / "smoke.duckdb"

    @property
    def marts_dir(self) -> Path:
        """Where the warehouse's marts are published as Parquet for readers."""
        return self.home / "marts"

    @property
    def models_dir(self) -> Path:
        """Holds ``champion.json`` and a folder for each version."""
        return self.home / "models"

    @property
    def reports_dir(self) -> Path:
        return self.home / "reports"

    @property
    def run_dir(self) -> Path:
        """Sockets, process ids and leases: worthless after a restart of the machine."""
        return self.home / "run"

    @property
    def logs_dir(self) -> Path:
        return self.home / "logs"

    @property
    def dagster_home(self) -> Path:
        return self.home / "dagster"

    @property
    def registry_uri(self) -> str:
        """MLflow's store; in server mode a database beside Dagster's, since both keep a table named ``runs``."""
        if self.mlflow_uri:
            return self.mlflow_uri
        if self.mode == "server" and self.postgres_password is not None:
            # Put together here, so that the password stands in no file and on no command line.
            login = f"{quote(self.postgres_user, '')}:{quote(self.postgres_password.get_secret_value(), '')}"
            return f"postgresql://{login}@{self.postgres_host}:{self.postgres_port}/{self.postgres_db}_mlflow"
        return f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"

    def environment(self) -> dict[str, str]:
        """The settings as environment variables, so that a child process reads the same ones.

        Secrets are left out: a child inherits them from the environment itself.
        """
        values: dict[str, str] = {}
        for field_name, info in type(self).model_fields.items():
            value = getattr(self, field_name)
            if info.alias is None or value is None or value == "" or isinstance(value, SecretStr):
                continue
            values[info.alias] = str(value).lower() if isinstance(value, bool) else str(value)
        return values


def legal_names() -> list[str]:
    """The names of all settings, as the environment has them."""
    return sorted(info.alias for info in Settings.model_fields.values() if info.alias)


def load_settings(
    environment: Mapping[str, str] | None = None, env_file: Path | None = None, **overrides: Any
) -> Settings:
    """Reads the settings: ``overrides`` by environment name, then the environment, then ``.env``, then defaults.

    Args:
        environment: in place of the process's own.
        env_file: in place of ``.env`` in the current folder.

    Raises:
        SmokeError: for an unknown ``SMOKE_*`` name or an illegal value; it lists what is legal.
    """
    surroundings = os.environ if environment is None else environment
    file_values = {name: value for name, value in dotenv_values(env_file or Path(".env")).items() if value is not None}
    merged = {**file_values, **surroundings}
    names = set(legal_names())

    unknown = sorted(name for name in {*merged, *overrides} if name.startswith(OWN_PREFIX) and name not in names)
    if unknown:
        raise SmokeError(f"unknown setting {', '.join(unknown)}", f"the legal names are {', '.join(legal_names())}")
    # An empty value means "not set", as compose passes a variable that nobody has given.
    chosen: dict[str, Any] = {name: merged[name] for name in names if merged.get(name, "") != ""}
    chosen.update({name: value for name, value in overrides.items() if value is not None})
    try:
        return Settings(**chosen)
    except ValidationError as error:
        raise SmokeError("illegal setting: " + "; ".join(_complaint(fault) for fault in error.errors())) from None


def _complaint(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    text = str(fault["msg"]).removeprefix("Value error, ")
    return f"{place}={fault['input']!r}: {text}" if place and "PASSWORD" not in place else f"{place} {text}".strip()


def example_file() -> str:
    """The text of ``.env.example``: every setting with its meaning, commented out at its default."""
    lines = ["# Copy to .env and uncomment what you change. Every setting of the platform stands here.", ""]
    section = ""
    for info in Settings.model_fields.values():
        extra = info.json_schema_extra
        title = str(extra["section"]) if isinstance(extra, dict) else ""
        if title != section:
            section = title
            lines += ["", f"# --- {section} ---"]
        default = info.default
        shown = "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        lines += [f"# {info.description}", f"# {info.alias}={shown}"]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"
