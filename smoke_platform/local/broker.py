"""The embedded broker: a real Apache Kafka (KRaft, one node) as a process of this machine, with its data on disk.

Belongs here: its configuration, its first formatting, its start, its readiness and its end. Does not: topics
(adapters/kafka.py), where the jars come from (jars.py), who restarts it in the supervised platform (supervisor.py).
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import weakref
from pathlib import Path

from smoke_platform.adapters.jars import Progress, silent
from smoke_platform.adapters.java import Java, find_java
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local import ports
from smoke_platform.local.jars import BROKER, KAFKA_VERSION

NODE_ID = 1
#: After kill -9 the broker waits until its own old session has run out; Kafka's defaults are 9 s and 2 s.
SESSION_TIMEOUT_MS = 1500
HEARTBEAT_MS = 300
#: Enough for thousands of partitions' worth of a single machine's traffic; the log itself lives in the page cache.
HEAP_MB = 512
#: Kafka, Java's class path and supervisord each read one of these as a separator, a pattern or a comment.
REFUSED_IN_PATHS = "%,:;#"
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound


class EmbeddedBroker:
    """One Kafka broker, its own controller, on this machine.

    Args:
        home: folder of its data, configuration and log.
        port: where clients connect.
        controller_port: where the controller listens, on loopback.
        cache_dir: folder that holds the jars for all brokers of this user.
        host: address it listens on and tells its clients; with a wildcard, they are told the machine's own address.
        port_settings: names of the settings that move the two ports, for the message when one is taken.
    """

    def __init__(
        self,
        home: Path,
        port: int,
        controller_port: int,
        cache_dir: Path,
        *,
        host: str = "127.0.0.1",
        port_settings: tuple[str, str] = ("SMOKE_KAFKA_PORT", "SMOKE_KAFKA_CONTROLLER_PORT"),
    ) -> None:
        self.home = home.absolute()
        self.port = port
        self.controller_port = controller_port
        self.cache_dir = cache_dir
        self.host = host
        self._port_settings = port_settings
        self._class_path: list[Path] = []
        self._jvm_options: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"{ports.reachable(self.host)}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the broker that this object started, None while there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    @property
    def log_file(self) -> Path:
        return self.home / "logs" / "server.log"

    @property
    def formatted(self) -> bool:
        return (self.data_dir / "meta.properties").is_file()

    # -- preparation -------------------------------------------------------------------------------------
    def prepare(self, progress: Progress | None = None) -> None:
        """Fetches the jars where needed, writes the configuration, formats the data folder if it is new.

        Raises:
            SmokeError: no Java, no network for a first download, a jar that is not the one of the list, or another
                broker that runs on the folder.
        """
        if self.pid is not None:
            return
        say = progress or silent
        refuse_odd_path(self.home, "SMOKE_HOME")
        refuse_odd_path(self.cache_dir, "SMOKE_CACHE_DIR")
        java = find_java()
        self._class_path = BROKER.ensure(self.cache_dir, say, java)
        archive = class_archive(self.cache_dir, self._class_path, java, say)
        self._jvm_options = () if archive is None else (f"-XX:SharedArchiveFile={archive}",)
        self._lay_out(say)

    def _lay_out(self, say: Progress) -> None:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        lock = self.lock_folder()
        try:
            self._configure()
            if not self.formatted:
                say("formatting the broker's data folder")
                self._format()
        finally:
            os.close(lock)

    def _configure(self) -> None:
        _write_if_changed(self.home / "server.properties", self._properties(self.data_dir))
        _write_if_changed(self.home / "log4j2.properties", self._log_configuration())

    def _format(self) -> None:
        # Kafka writes several files; a folder in which it was interrupted counts as formatted and never gets a leader.
        staging = self.home / "data.new"
        shutil.rmtree(staging, ignore_errors=True)
        properties = self.home / "format.properties"
        _write_if_changed(properties, self._properties(staging))
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
        command = [
            *self._java_command(heap_mb=128), "kafka.tools.StorageTool", "format", "--standalone",
            f"--cluster-id={cluster_id}", "--config", str(properties),
        ]  # fmt: skip
        answer = subprocess.run(command, capture_output=True, text=True, check=False, env=java_environment())
        if answer.returncode != 0 or not (staging / "meta.properties").is_file():
            ending = " ".join((answer.stdout + answer.stderr).split()[-60:])
            raise SmokeError(f"the broker's data folder {self.data_dir} could not be formatted: {ending}")
        staging.rename(self.data_dir)
        properties.unlink()

    def _advertised_host(self) -> str:
        if self.host not in WILDCARDS:
            return self.host
        # Connecting a datagram socket sends nothing; it only asks the routing table for our own address.
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        return "127.0.0.1"

    def _properties(self, data_dir: Path) -> str:
        lines = {
            "process.roles": "broker,controller",
            "node.id": NODE_ID,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self.controller_port}",
            "listeners": f"PLAINTEXT://{self.host}:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self._advertised_host()}:{self.port},"
            f"CONTROLLER://127.0.0.1:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": data_dir,
            "broker.session.timeout.ms": SESSION_TIMEOUT_MS,
            "broker.heartbeat.interval.ms": HEARTBEAT_MS,
            # Topics are made on purpose, with a partition count; a typing slip must not make one.
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 8,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 4,
            # One consumer of a group is the usual case here; waiting 3 s for more of them delays every start.
            "group.initial.rebalance.delay.ms": 0,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.cleaner.dedupe.buffer.size": 33554432,
            # A dead letter carries the rejected bytes and the facts about them, so it outgrows the reading.
            "message.max.bytes": 10485760,
            "replica.fetch.max.bytes": 10485760,
        }
        return "".join(f"{name}={_escaped(value)}\n" for name, value in lines.items())

    def _log_configuration(self) -> str:
        return "\n".join(
            [
                "status=error",
                # Kafka stops in a shutdown hook of its own; log4j's would silence it before it has said how.
                "shutdownHook=disable",
                "appender.file.type=RollingFile",
                "appender.file.name=file",
                f"appender.file.fileName={_escaped(self.log_file)}",
                f"appender.file.filePattern={_escaped(self.log_file)}.%i",
                "appender.file.layout.type=PatternLayout",
                "appender.file.layout.pattern=%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX}{UTC} %p %m (%c)%n",
                "appender.file.policies.type=Policies",
                "appender.file.policies.size.type=SizeBasedTriggeringPolicy",
                "appender.file.policies.size.size=10MB",
                "appender.file.strategy.type=DefaultRolloverStrategy",
                "appender.file.strategy.max=3",
                "rootLogger.level=info",
                "rootLogger.appenderRef.file.ref=file",
                "logger.config.name=org.apache.kafka.common.config.AbstractConfig",
                "logger.config.level=warn",
                "",
            ]
        )

    def _java_command(self, heap_mb: int = HEAP_MB) -> list[str]:
        return [
            str(find_java().command), f"-Xmx{heap_mb}m", "-Xms64m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
            "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self.home / 'log4j2.properties'}", "-Dlog4j2.disable.jmx=true",
            *self._jvm_options, "-cp", os.pathsep.join(map(str, self._class_path)),
        ]  # fmt: skip

    def command(self) -> list[str]:
        """The command line of the prepared broker; SIGTERM to its process is a clean stop."""
        return [*self._java_command(), "kafka.Kafka", str(self.home / "server.properties")]

    def lock_folder(self) -> int:
        """Takes the folder for one broker process, to which the given file descriptor has to be handed down.

        Kafka locks its message log only, late, and not the metadata log: a second broker on the same folder was seen
        to end the first one with a fatal fault. The kernel drops this lock when the last process that holds it is dead.

        Raises:
            SmokeError: where another broker runs on it.
        """
        handle = os.open(self.home / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise SmokeError(f"another broker runs on {self.home} and holds its lock", "stop that one first") from None
        os.set_inheritable(handle, True)
        return handle

    # -- life --------------------------------------------------------------------------------------------
    def require_ports(self) -> None:
        """Raises SmokeError where one of the two ports is taken, with the setting that moves it."""
        ports.require_free(self.host, self.port, self._port_settings[0], "the Kafka broker")
        ports.require_free("127.0.0.1", self.controller_port, self._port_settings[1], "the Kafka controller")

    def start(self, timeout_s: float = 60) -> None:
        """Starts the broker and returns when it serves clients; it ends with this process at the latest.

        Raises:
            SmokeError: a port is taken, or the broker ended or was not ready in time (with its last log lines).
        """
        if self.pid is not None:
            return
        if not self._class_path:
            self.prepare()
        self.require_ports()
        command = self.command()
        # The tether is to a thread, in Linux's eyes: from a passing one it would end the broker too early.
        if threading.current_thread() is threading.main_thread():
            command = [
                sys.executable,
                "-I",
                "-S",
                str(Path(__file__).with_name("tethered.py")),
                str(os.getpid()),
                "KILL",
                *command,
            ]
        lock = self.lock_folder()
        try:
            self._configure()
            with (self.home / "logs" / "console.log").open("wb") as console:
                # A session of its own, so that Ctrl-C in a terminal reaches us first and we stop it cleanly.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    start_new_session=True,
                    env=java_environment(),
                    pass_fds=[lock],
                )
        finally:
            os.close(lock)
        atexit.register(_stop_at_exit, weakref.ref(self))
        try:
            self.wait_ready(timeout_s)
        except BaseException:
            self.kill()
            raise

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Waits until the broker answers Kafka's protocol and leads every partition it has.

        Raises:
            SmokeError: the broker ended, or the time is over; with its last log lines.
        """
        deadline = time.monotonic() + timeout_s
        while not is_ready(self.bootstrap_servers, NODE_ID):
            if self._process is not None and self._process.poll() is not None:
                raise SmokeError(f"the broker ended with code {self._process.returncode}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise SmokeError(f"the broker was not ready within {timeout_s:g} s: {self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        for file in (self.log_file, self.home / "logs" / "console.log"):
            with contextlib.suppress(OSError):
                lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
                telling = [line for line in lines if " ERROR " in line or " FATAL " in line or "Exception" in line]
                if telling or lines:
                    return "\n    ".join(["", *(telling or lines)[-8:], f"(from {file})"])
        return "it left no log"

    def stop(self, timeout_s: float = 30) -> None:
        """Stops it cleanly, by force where that takes longer than ``timeout_s``; nothing happens if none runs."""
        self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """Ends it as a power failure would: SIGKILL."""
        self._end(signal.SIGKILL, 10)

    def _end(self, how: signal.Signals, timeout_s: float) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        self._process = None


def class_archive(cache_dir: Path, class_path: list[Path], java: Java, say: Progress) -> Path | None:
    """An archive of the broker's classes as this Java has loaded them once, made where it is not in the cache yet.

    It halves the processor time of a start (measured: 4.7 s to 2.4 s), which after a kill on a busy machine decides
    whether the broker is back in time. Java checks it against class path and version, and does without where they
    differ.

    Returns:
        Its path; None where this Java cannot make one, which is remembered.
    """
    base = java.home / "lib" / "server" / "classes.jsa"
    if not base.is_file():
        return None
    stamp = base.stat()
    seal = "|".join([str(java.home), str(stamp.st_mtime_ns), str(stamp.st_size), *map(str, class_path)])
    name = f"kafka-{KAFKA_VERSION}-java{java.major}-{hashlib.sha256(seal.encode()).hexdigest()[:16]}.jsa"
    archive = cache_dir / name
    if not archive.exists():
        with (cache_dir / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not archive.exists():
                say(f"Kafka {KAFKA_VERSION}: loading its classes once, for quicker starts")
                _make_archive(archive, cache_dir, class_path, say)
    return archive if archive.stat().st_size > 0 else None


def _make_archive(archive: Path, cache_dir: Path, class_path: list[Path], say: Progress) -> None:
    """Lets a broker in a folder of its own serve a message and stop; at its end Java writes what it has loaded."""
    with tempfile.TemporaryDirectory(prefix="classes-", dir=cache_dir) as folder:
        target = Path(folder) / archive.name
        port, controller_port = ports.free_ports(2)
        trial = EmbeddedBroker(Path(folder) / "broker", port, controller_port, cache_dir)
        trial._class_path = class_path
        trial._lay_out(silent)
        trial._jvm_options = (f"-XX:ArchiveClassesAtExit={target}",)
        try:
            trial.start(120)
            _exchange_a_message(trial.bootstrap_servers)
        except SmokeError as fault:
            say(f"Kafka {KAFKA_VERSION}: starts will take longer, for its classes could not be kept: {fault.message}")
        finally:
            trial.stop(120)
        if not target.is_file():
            target.touch()  # this Java can't; an empty file says so to the next start
        target.rename(archive)


def _exchange_a_message(bootstrap_servers: str) -> None:
    from confluent_kafka import KafkaException, Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    try:
        admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
        admin.create_topics([NewTopic("trial", num_partitions=1, replication_factor=1)])["trial"].result(20)
        producer = Producer({"bootstrap.servers": bootstrap_servers, "log_level": 0})
        producer.produce("trial", b"message")
        producer.flush(10)
    except KafkaException as fault:
        raise SmokeError(f"the trial broker took no message: {fault}") from None


def java_environment() -> dict[str, str]:
    """The surroundings with a character set in which Java finds files of any name."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def refuse_odd_path(path: Path, setting: str) -> None:
    """Raises SmokeError for a folder whose name some part of the platform would read as something else."""
    odd = sorted({repr(one) for one in str(path) if one in REFUSED_IN_PATHS or not one.isprintable()})
    if odd:
        raise SmokeError(f"the folder {str(path)!r} holds {', '.join(odd)}", f"set {setting} to a path without")


def is_ready(bootstrap_servers: str, node_id: int | None = None, timeout_s: float = 1.0) -> bool:
    """Whether a broker answers a metadata request, names itself, and leads every partition that it names.

    A port that accepts connections is not enough: a broker that has just been restarted accepts them seconds before
    it serves.
    """
    host, _, port = bootstrap_servers.partition(",")[0].rpartition(":")
    if not ports.answers(host.strip("[]"), int(port)):
        return False
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0, "socket.timeout.ms": 1000})
    try:
        metadata = client.list_topics(timeout=timeout_s)
    except KafkaException:
        return False
    if not metadata.brokers or (node_id is not None and node_id not in metadata.brokers):
        return False
    return all(partition.leader >= 0 for topic in metadata.topics.values() for partition in topic.partitions.values())


def _stop_at_exit(reference: weakref.ref[EmbeddedBroker]) -> None:
    broker = reference()
    if broker is not None:
        broker.stop(10)


def _escaped(value: object) -> str:
    """A value as Java's properties files want it: the backslash doubled, what is not ASCII as UTF-16 units."""
    units = str(value).replace("\\", "\\\\").encode("utf-16-be")
    codes = [int.from_bytes(units[place : place + 2], "big") for place in range(0, len(units), 2)]
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)


def _write_if_changed(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    replacement = path.with_name(path.name + ".new")
    replacement.write_text(text, encoding="utf-8")
    replacement.replace(path)
