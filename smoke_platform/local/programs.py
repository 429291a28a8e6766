"""Which programs make up the embedded platform, how each is started, and the files that say so.

Belongs here: command lines, environment, supervisord's configuration, Dagster's workspace. Everything is a pure
function of the settings. Does not: starting or asking anything (supervisor.py, health.py).
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

import smoke_platform
from smoke_platform.local import ports
from smoke_platform.settings import Settings, legal_names

#: Every process of a platform carries it with SMOKE_HOME as its value, and only those do: thereby what outlived a
#: killed supervisor is found, and nothing else is ever stopped.
MARKER = "PLATFORM_SUPERVISED_HOME"
LOCATION = "smoke_platform"
#: An address of a UNIX socket holds 107 characters, and supervisord appends its process id while it makes it.
LONGEST_SOCKET_PATH = 94
RPC_FACTORY = "supervisor.rpcinterface_factory"
START_RETRIES = 100
LOG_BYTES = 10 * 1024 * 1024
LOG_BACKUPS = 3


@dataclass(frozen=True)
class Program:
    """One supervised program.

    Attributes:
        name: supervisord's and ``smoke logs``'s name of it.
        purpose: what a person knows it as.
        command: its command line, every path absolute.
        address: what a person opens or connects to, empty where there is nothing.
        port: where it listens, with the setting that moves it; None where it does not.
        priority: started in rising, stopped in falling order.
        start_seconds: one that ends earlier has failed to start, and the next attempt waits a little longer; so it is
            longer than the imports that may fail.
        stop_seconds: after this long a stop becomes SIGKILL.
        environment: what it gets beyond the common environment.
    """

    name: str
    purpose: str
    command: tuple[str, ...]
    address: str = ""
    port: tuple[int, str] | None = None
    priority: int = 500
    start_seconds: int = 5
    stop_seconds: int = 10
    environment: Mapping[str, str] = field(default_factory=dict)


def embeds_kafka(settings: Settings) -> bool:
    """Whether the platform brings its own broker; not, where ``KAFKA_BOOTSTRAP_SERVERS`` names others."""
    return not settings.kafka_bootstrap_servers


def programs(settings: Settings) -> tuple[Program, ...]:
    """The programs of the platform, in the order in which they are started."""
    host = settings.bind_host
    near = ports.reachable(host)
    smoke = (sys.executable, str(_bin() / "smoke"))
    # These two only pass work on; a pool of linear-algebra threads in each of them costs memory for nothing.
    few_threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    chosen: list[Program] = []
    if embeds_kafka(settings):
        chosen.append(
            Program(
                "kafka",
                "Kafka broker",
                (*smoke, "kafka"),
                address=f"{near}:{settings.kafka_port}",
                port=(settings.kafka_port, "SMOKE_KAFKA_PORT"),
                priority=100,
                stop_seconds=30,
            )
        )
    chosen += [
        Program(
            "detector",
            "Detector",
            (*smoke, "detect"),
            address=f"http://{near}:{settings.detector_port}",
            port=(settings.detector_port, "SMOKE_DETECTOR_PORT"),
            # After the broker and before everything else: alarms wait for nobody.
            priority=150,
            start_seconds=3,
            stop_seconds=15,
            environment=few_threads,
        ),
        Program(
            "code_server",
            "Dagster code server",
            (
                *(sys.executable, "-m", "dagster", "api", "grpc", "-m", "smoke_platform.definitions"),
                *("--host", "127.0.0.1", "--port", str(settings.dagster_grpc_port), "--location-name", LOCATION),
            ),
            address=f"127.0.0.1:{settings.dagster_grpc_port}",
            port=(settings.dagster_grpc_port, "SMOKE_DAGSTER_GRPC_PORT"),
            priority=200,
            start_seconds=15,
            stop_seconds=15,
        ),
        Program(
            "daemon",
            "Dagster daemon",
            (sys.executable, str(_bin() / "dagster-daemon"), "run", "-w", str(workspace_file(settings))),
            priority=300,
            start_seconds=15,
            environment=few_threads,
        ),
        Program(
            "webserver",
            "Dagster UI",
            (
                *(sys.executable, str(_bin() / "dagster-webserver"), "-h", host, "-p", str(settings.dagster_port)),
                *("-w", str(workspace_file(settings))),
            ),
            address=f"http://{near}:{settings.dagster_port}",
            port=(settings.dagster_port, "SMOKE_DAGSTER_PORT"),
            priority=310,
            start_seconds=15,
            environment=few_threads,
        ),
        Program(
            "api",
            "API and console",
            (*smoke, "api"),
            address=f"http://{near}:{settings.api_port}",
            port=(settings.api_port, "SMOKE_API_PORT"),
            priority=400,
        ),
    ]
    chosen.append(
        Program(
            "notify",
            "Notifications",
            (*smoke, "notify", "run"),
            address=f"http://{near}:{settings.notify_port}",
            port=(settings.notify_port, "SMOKE_NOTIFY_PORT"),
            priority=450,
            environment=few_threads,
        )
    )
    if settings.simulate:
        chosen.append(
            Program("simulator", "Simulated devices", (*smoke, "produce", "simulate", "--forever"), priority=500)
        )
    return tuple(chosen)


def required_ports(settings: Settings) -> list[tuple[str, int, str, str]]:
    """Every port that the platform needs, as (host, port, setting that moves it, purpose)."""
    needed: list[tuple[str, int, str, str]] = []
    for program in programs(settings):
        if program.port is not None:
            host = "127.0.0.1" if program.name == "code_server" else settings.bind_host
            needed.append((host, *program.port, f"the {program.purpose}"))
    if embeds_kafka(settings):
        controller = (settings.kafka_controller_port, "SMOKE_KAFKA_CONTROLLER_PORT")
        needed.append(("127.0.0.1", *controller, "the Kafka controller"))
    return needed


def environment(settings: Settings, surroundings: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every program: ``surroundings`` with the settings, made explicit, in front.

    A setting that has no value is passed as an empty one, so that no ``.env`` near a program can fill it in; the
    secrets are passed on from wherever they were read, and are written to no file.
    """
    values = dict(os.environ if surroundings is None else surroundings)
    values.update(dict.fromkeys(legal_names(), ""))
    values.update(settings.environment())
    for field_name, info in type(settings).model_fields.items():
        secret = getattr(settings, field_name)
        if isinstance(secret, SecretStr) and info.alias:
            values[info.alias] = secret.get_secret_value()
    inherited_path = [entry for entry in values.get("PATH", "").split(os.pathsep) if entry]
    values.update(
        {
            MARKER: str(settings.home),
            "DAGSTER_HOME": str(settings.dagster_home),
            "PATH": os.pathsep.join(dict.fromkeys([str(_bin()), *inherited_path])),
            "PYTHONUNBUFFERED": "1",
            # Threads that allocate get an arena each; with the default of 8 a core, freed memory stays scattered.
            "MALLOC_ARENA_MAX": values.get("MALLOC_ARENA_MAX", "2"),
        }
    )
    return values


def workspace_file(settings: Settings) -> Path:
    return settings.run_dir / "workspace.yaml"


def workspace(settings: Settings) -> str:
    """Dagster's workspace of the supervised platform: the code server, by its port."""
    return (
        "load_from:\n"
        "  - grpc_server:\n"
        "      host: 127.0.0.1\n"
        f"      port: {settings.dagster_grpc_port}\n"
        f"      location_name: {LOCATION}\n"
    )


def instance_template() -> Path:
    """``dagster.yaml`` as it stands beside the package."""
    return Path(smoke_platform.__file__).parent.parent / "dagster.yaml"


def socket_file(settings: Settings) -> Path:
    """supervisord's socket: in the run folder, or in a folder of this user's own where that path is too long.

    The same in every shell of the user, so it depends on no variable of the session.
    """
    usual = settings.run_dir / "supervisor.sock"
    if len(os.fsencode(usual)) <= LONGEST_SOCKET_PATH:
        return usual
    name = f"{hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:16]}.sock"
    return Path("/tmp") / f"smoke-platform-{os.getuid()}" / name  # noqa: S108 - a folder of mode 0700, owner checked


def log_file(settings: Settings, program: str) -> Path:
    """Where the output of a program is kept; the broker writes its own log beside its data."""
    return settings.logs_dir / f"{program}.log"


def supervisord_config(settings: Settings) -> str:
    """supervisord's configuration: a private socket, no password because nobody else may open it, no TCP."""
    sections = [
        _section("unix_http_server", {"file": socket_file(settings), "chmod": "0700"}),
        _section("rpcinterface:supervisor", {RPC_FACTORY: "supervisor.rpcinterface:make_main_rpcinterface"}),
        _section(
            "supervisord",
            {
                "logfile": log_file(settings, "supervisord"),
                "logfile_maxbytes": LOG_BYTES,
                "logfile_backups": LOG_BACKUPS,
                "pidfile": settings.run_dir / "supervisord.pid",
                "directory": settings.home,
                "umask": "022",
                "strip_ansi": "true",
            },
        ),
    ]
    for program in programs(settings):
        values: dict[str, object] = {
            "command": shlex.join(program.command),
            "directory": settings.home,
            # `smoke up` starts them in order, each when what it needs answers; from then on supervisord does.
            "autostart": "false",
            "autorestart": "true",
            "startsecs": program.start_seconds,
            "startretries": START_RETRIES,
            "priority": program.priority,
            "stopsignal": "TERM",
            "stopwaitsecs": program.stop_seconds,
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": log_file(settings, program.name),
            "stdout_logfile_maxbytes": LOG_BYTES,
            "stdout_logfile_backups": LOG_BACKUPS,
        }
        if program.environment:
            values["environment"] = ",".join(f'{name}="{value}"' for name, value in program.environment.items())
        sections.append(_section(f"program:{program.name}", values))
    return "\n".join(sections)


def _section(name: str, values: Mapping[str, object]) -> str:
    # supervisord expands %(names)s, so that a path with a percent sign has to say it twice.
    lines = [f"{key} = {str(value).replace('%', '%%')}" for key, value in values.items()]
    return "\n".join([f"[{name}]", *lines, ""])


def _bin() -> Path:
    """The folder of the programs that were installed beside this interpreter."""
    return Path(sys.executable).parent
