"""The embedded platform as a whole: set up, started, watched and stopped, with supervisord over its programs.

Belongs here: the order of the set-up, the talk with supervisord, the recovery of what a killed supervisor left
behind. Does not: which programs there are (programs.py), whether one does its work (health.py), how it is shown on
a terminal (the command line).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

import psutil
from supervisor.xmlrpc import SupervisorTransport

from smoke_platform.adapters.java import find_java
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local import ports
from smoke_platform.local.broker import EmbeddedBroker, refuse_odd_path
from smoke_platform.local.health import LOAD_FAILURE, Prober, require_brokers
from smoke_platform.local.programs import (
    MARKER,
    Program,
    embeds_kafka,
    environment,
    instance_template,
    log_file,
    programs,
    required_ports,
    socket_file,
    supervisord_config,
    workspace,
    workspace_file,
)
from smoke_platform.settings import Settings

#: Until every program answers; on two busy cores a first start was seen to take a quarter of it.
READY_TIMEOUT_S = 240.0
#: A program that ended so often while it was waited for is reported; supervisord goes on trying.
FAILED_STARTS = 2
POLL_SECONDS = 0.2
STOPPED_STATES = ("STOPPED", "EXITED", "FATAL", "UNKNOWN")


class Reporter(Protocol):
    """Is told what a set-up does. Steps may overlap, and come from several threads."""

    def step(self, title: str) -> AbstractContextManager[Callable[[str], None]]:
        """A step that lasts as long as the context; what it gives takes lines about the progress within."""
        ...


class Silent:
    """The reporter of those who don't look."""

    def step(self, _title: str) -> AbstractContextManager[Callable[[str], None]]:
        return nullcontext(lambda _line: None)


@dataclass(frozen=True)
class ProgramStatus:
    """A program as it is now.

    Attributes:
        state: supervisord's word: RUNNING, STARTING, BACKOFF, STOPPED, EXITED, FATAL; or NOT RUNNING without it.
        uptime_s: seconds since its last start, None while it does not run.
        healthy: its own answer, None where it has nothing that could be asked.
    """

    name: str
    purpose: str
    state: str
    pid: int | None
    uptime_s: float | None
    address: str
    healthy: bool | None
    detail: str
    rss_mb: float | None = None

    @property
    def well(self) -> bool:
        """Whether it does its work; one that answers does, even where supervisord still waits to call it started."""
        return self.healthy is True or (self.healthy is None and self.state == "RUNNING")

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "well": self.well}


class Platform:
    """The embedded platform of one ``SMOKE_HOME``.

    Args:
        settings: of this platform; two platforms on one machine differ in home and ports.
        tether: whether it ends with the process that starts it, even if that is killed (for tests and proofs; only
            where it is started from the main thread of a process on Linux).
    """

    def __init__(self, settings: Settings, *, tether: bool = False) -> None:
        self.settings = settings
        self._tether = tether
        self._child: subprocess.Popen[bytes] | None = None

    # -- what there is -----------------------------------------------------------------------------------
    @property
    def programs(self) -> tuple[Program, ...]:
        return programs(self.settings)

    @property
    def settings_file(self) -> Path:
        """Holds the settings that the running platform was started with."""
        return self.settings.run_dir / "settings.json"

    def broker(self) -> EmbeddedBroker:
        """The platform's broker, not started by this object."""
        return platform_broker(self.settings)

    def is_supervised(self) -> bool:
        """Whether this platform's supervisord answers."""
        try:
            self._rpc().supervisor.getState()
        except (OSError, HTTPException, xmlrpc.client.Error):
            return False
        return True

    def _rpc(self) -> Any:
        address = f"unix://{socket_file(self.settings)}"
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=SupervisorTransport(None, None, address))

    def _states(self) -> dict[str, Mapping[str, Any]]:
        """supervisord's view by program name; empty where it does not answer."""
        try:
            return {info["name"]: info for info in self._rpc().supervisor.getAllProcessInfo()}
        except (OSError, HTTPException, xmlrpc.client.Error):
            return {}

    def supervisor_pid(self) -> int | None:
        try:
            return int(self._rpc().supervisor.getPID())
        except (OSError, HTTPException, xmlrpc.client.Error):
            return None

    def pids(self) -> dict[str, int]:
        """Process id of every program that runs now, by its name."""
        return {name: int(info["pid"]) for name, info in self._states().items() if info["pid"]}

    def status(self) -> list[ProgramStatus]:
        """Every program's state and health, in the order of their start."""
        states = self._states()
        with Prober(self.settings) as prober, ThreadPoolExecutor(8) as pool:
            return list(
                pool.map(lambda program: self._status_of(program, states.get(program.name), prober), self.programs)
            )

    def _status_of(self, program: Program, info: Mapping[str, Any] | None, prober: Prober) -> ProgramStatus:
        if info is None or not info["pid"]:
            state = "NOT RUNNING" if info is None else str(info["statename"])
            detail = str(info["spawnerr"]) if info else ""
            return ProgramStatus(program.name, program.purpose, state, None, None, program.address, False, detail)
        health = prober.ask(program)
        memory: float | None = None
        with contextlib.suppress(psutil.Error):
            memory = round(psutil.Process(info["pid"]).memory_info().rss / 1e6, 1)
        return ProgramStatus(
            name=program.name,
            purpose=program.purpose,
            state=str(info["statename"]),
            pid=int(info["pid"]),
            uptime_s=max(0.0, float(info["now"] - info["start"])),
            address=program.address,
            healthy=health.ok,
            detail=health.detail,
            rss_mb=memory,
        )

    # -- up ----------------------------------------------------------------------------------------------
    def up(self, progress: Reporter | None = None) -> list[ProgramStatus]:
        """Sets up what is missing, starts what does not run, and returns when every program answers.

        Raises:
            SmokeError: no Java, a port that is taken, settings other than those of the running platform, or a program
                that does not come up (with the end of its log). A set-up that fails leaves nothing running; where a
                program fails, the others stay up, to be looked at.
        """
        if self.settings.mode != "embedded":
            raise SmokeError("smoke up starts the embedded platform, and SMOKE_MODE=server", "use docker-compose up")
        refuse_odd_path(self.settings.home, "SMOKE_HOME")
        reporter = progress or Silent()
        self.settings.run_dir.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            if self.is_supervised():
                self._require_same_settings()
                current = self.status()
                if all(status.well for status in current):
                    return current
                return self._start_programs(reporter)
            self._make_ready(reporter)
            # The stores' preparation is mostly imports; it overlaps with the start of broker and code server.
            with ThreadPoolExecutor(1) as pool:
                warehouse = pool.submit(self._prepare_warehouse, reporter)
                registry = pool.submit(self._prepare_registry, reporter)
                with self._all_or_nothing():
                    self._set_up(reporter)
                    warehouse.result()  # the code location reads what it writes
                return self._start_programs(reporter, registry)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Stops everything where the set-up fails, so that the next `up` does not take it for done."""
        try:
            yield
        except BaseException:
            self.down()
            raise

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with (self.settings.run_dir / "up.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _require_same_settings(self) -> None:
        try:
            running: dict[str, str] = json.loads(self.settings_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        asked = self.settings.environment()
        changed = [
            f"{name}={asked.get(name, '')} (runs with {running.get(name, '')})"
            for name in sorted({*asked, *running})
            if asked.get(name) != running.get(name)
        ]
        if changed:
            raise SmokeError(f"the platform runs with other settings: {', '.join(changed)}", "run smoke down first")

    def _make_ready(self, reporter: Reporter) -> None:
        with reporter.step("Folders and configuration"):
            self._stop_strays()
            self._write_files()
        with reporter.step("Ports"):
            for needed in required_ports(self.settings):
                ports.require_free(*needed)

    def _set_up(self, reporter: Reporter) -> None:
        settings = self.settings
        if embeds_kafka(settings):
            with reporter.step("Java") as say:
                java = find_java()
                say(f"version {java.major}, from {java.origin}")
            with reporter.step("Kafka's jars and data folder") as say:
                self.broker().prepare(say)
        with reporter.step("Supervisor"):
            self._start_supervisor()
        with reporter.step("Kafka broker"):
            if embeds_kafka(settings):
                self._start("kafka")
                self._await_healthy({"kafka"}, 60)
            else:
                require_brokers(settings)
        with reporter.step("Topics"):
            from smoke_platform.adapters.kafka import ensure_topics

            ensure_topics(settings)

    def _write_files(self) -> None:
        settings = self.settings
        folders = (
            settings.logs_dir,
            settings.dagster_home,
            settings.models_dir,
            settings.reports_dir,
            settings.cache_dir,
        )
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        socket = socket_file(settings)
        socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if socket.parent != settings.run_dir and socket.parent.stat().st_uid != os.getuid():
            raise SmokeError(f"{socket.parent} belongs to somebody else", "set SMOKE_HOME to a shorter path")
        template = instance_template()
        if not template.is_file():
            raise SmokeError(f"{template} is missing", "run from a complete checkout of the platform")
        _write(settings.dagster_home / "dagster.yaml", template.read_text(encoding="utf-8"))
        _write(workspace_file(settings), workspace(settings))
        _write(settings.run_dir / "supervisord.conf", supervisord_config(settings))
        _write(self.settings_file, json.dumps(settings.environment(), indent=2))

    def _prepare_warehouse(self, reporter: Reporter) -> None:
        with reporter.step("Warehouse"):
            from smoke_platform.adapters import warehouse

            warehouse.prepare(self.settings)

    def _prepare_registry(self, reporter: Reporter) -> None:
        with reporter.step("Model registry"):
            from smoke_platform.adapters.registry import Registry

            registry = Registry(self.settings)
            registry.migrate()
            registry.reconcile()

    def _start_supervisor(self) -> None:
        command = [
            *(sys.executable, "-m", "supervisor.supervisord", "--nodaemon"),
            *("-c", str(self.settings.run_dir / "supervisord.conf")),
        ]
        # The death of a thread would cut the tether, so only the main one may hold it.
        if self._tether and threading.current_thread() is threading.main_thread():
            tether = Path(__file__).with_name("tethered.py")
            command = [sys.executable, "-I", "-S", str(tether), str(os.getpid()), "TERM", *command]
        console = self.settings.logs_dir / "supervisord-console.log"
        with console.open("wb") as output:
            self._child = subprocess.Popen(
                command,
                env=environment(self.settings),
                cwd=self.settings.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while not self.is_supervised():
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise SmokeError(f"the supervisor did not start: {_tail(console, 8)}")
            time.sleep(0.05)

    def _start(self, name: str) -> None:
        info = self._rpc().supervisor.getProcessInfo(name)
        if info["statename"] in STOPPED_STATES:
            self._rpc().supervisor.startProcess(name, False)

    def _start_programs(self, reporter: Reporter, registry: Future[None] | None = None) -> list[ProgramStatus]:
        names = [program.name for program in self.programs]
        # Daemon and web server load the code location when they start; were they first, they would find none, and the
        # daemon looks again only a minute later.
        first = [name for name in names if name not in ("daemon", "webserver")]
        with reporter.step("Code server, API, simulator"):
            for name in first:
                self._start(name)
            self._await_healthy({"code_server"}, READY_TIMEOUT_S)
        if registry is not None:
            with self._all_or_nothing():
                registry.result()  # with the daemon come the first runs, which open it
        with reporter.step("Dagster") as say:
            for name in names:
                self._start(name)
            self._await_healthy(set(names), READY_TIMEOUT_S, say)
        return self.status()

    def _await_healthy(self, names: set[str], timeout_s: float, say: Callable[[str], None] | None = None) -> None:
        waiting = {program.name: program for program in self.programs if program.name in names}
        starts: dict[str, set[int]] = {name: set() for name in waiting}
        details: dict[str, str] = {}
        deadline = time.monotonic() + timeout_s
        with Prober(self.settings) as prober:
            while True:
                states = self._states()
                if not states:
                    raise SmokeError(
                        f"the supervisor has ended{_tail_of(log_file(self.settings, 'supervisord'))}",
                        "run smoke up again",
                    )
                for name, program in list(waiting.items()):
                    state = str(states[name]["statename"])
                    starts[name].add(int(states[name]["start"]))
                    if state == "FATAL" or len(starts[name]) > FAILED_STARTS:
                        raise self._failure(program, f"does not start ({state.lower()})")
                    if state not in ("RUNNING", "STARTING"):
                        continue
                    health = prober.ask(program)
                    details[name] = health.detail
                    if LOAD_FAILURE in health.detail:
                        raise SmokeError(health.detail, "correct it; smoke logs code_server tells more")
                    if health.ok or (health.ok is None and state == "RUNNING"):
                        del waiting[name]
                if not waiting:
                    return
                if say is not None:
                    say(f"waiting for {', '.join(waiting)}")
                if time.monotonic() > deadline:
                    name, program = next(iter(waiting.items()))
                    raise self._failure(program, f"was not ready within {timeout_s:g} s: {details.get(name, '')}")
                time.sleep(POLL_SECONDS)

    def _failure(self, program: Program, what: str) -> SmokeError:
        logs = [log_file(self.settings, program.name)]
        if program.name == "kafka":
            logs.append(self.broker().log_file)
        ending = "".join(_tail_of(log) for log in logs)
        return SmokeError(f"{program.purpose} {what}{ending}", f"smoke logs {program.name}; smoke down stops the rest")

    # -- down --------------------------------------------------------------------------------------------
    def down(self, timeout_s: float = 90) -> list[str]:
        """Stops every process of this platform and returns when none is left; a second call finds nothing to do.

        Returns:
            A line for each thing that had to be stopped apart from the supervisor's orderly way.
        """
        supervisor = self.supervisor_pid()
        if supervisor is not None:
            deadline = time.monotonic() + timeout_s
            with contextlib.suppress(OSError, HTTPException, xmlrpc.client.Error):
                self._stop_all_but_kafka(deadline)
                self._rpc().supervisor.shutdown()
            while _alive(supervisor) and time.monotonic() < deadline:
                if self._child is not None:
                    self._child.poll()
                time.sleep(0.05)
        strays = self._stop_strays()
        if self._child is not None:
            self._child.wait(10)
            self._child = None
        for leftover in (socket_file(self.settings), self.settings.run_dir / "supervisord.pid", self.settings_file):
            leftover.unlink(missing_ok=True)
        return strays

    def _stop_all_but_kafka(self, deadline: float) -> None:
        """Stops them all at once, as supervisord itself would not; the broker takes what they still send."""
        names = [name for name in self._states() if name != "kafka"]
        for name in names:
            with contextlib.suppress(xmlrpc.client.Fault):  # it does not run anyway
                self._rpc().supervisor.stopProcess(name, False)
        while time.monotonic() < deadline:
            states = self._states()
            if not any(states[name]["pid"] for name in names if name in states):
                return
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Every process of this platform, found by the marker in its environment: supervisor, programs, runs."""
        home = str(self.settings.home)
        # Whoever calls from inside a platform, such as a test or a run, must not find itself.
        own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            if process.pid in own:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARKER) == home and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _stop_strays(self) -> list[str]:
        """Ends what a killed supervisor, or a killed program of its, left behind; asks first, then insists."""
        lines: list[str] = []
        for how, patience_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
            strays = self.processes()
            if not strays:
                break
            # A supervisor that came back would start the others again while they are stopped.
            for process in strays:
                with contextlib.suppress(psutil.Error):
                    lines.append(f"{how.name} to process {process.pid} ({' '.join(process.cmdline()[:4])})")
                    process.send_signal(how)
            psutil.wait_procs(strays, timeout=patience_s)
        return lines


def platform_broker(settings: Settings) -> EmbeddedBroker:
    """The broker of the platform with these settings."""
    return EmbeddedBroker(
        settings.home / "kafka",
        settings.kafka_port,
        settings.kafka_controller_port,
        settings.cache_dir,
        host=settings.bind_host,
    )


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    replacement = path.with_name(path.name + ".new")
    replacement.write_text(text, encoding="utf-8")
    replacement.replace(path)


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n    ".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _tail_of(path: Path) -> str:
    ending = _tail(path)
    return f"\n  the end of {path}:\n    {ending}" if ending else ""
