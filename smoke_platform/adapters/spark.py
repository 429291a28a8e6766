"""Spark: the session with its settings, and a cluster's processes by hand.

Belongs here: which Java, which jars, how much memory, where the UI listens; what is the same for every job. Does not:
what a job does (``streaming.spark_landing`` and its siblings), which jars those are (``adapters.spark_jars``).

PySpark is imported by the functions that need it: importing it takes half a second, and most commands do without.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoke_platform.adapters.jars import Progress, silent
from smoke_platform.adapters.java import Java, find_jdk
from smoke_platform.adapters.spark_jars import CONNECTOR
from smoke_platform.adapters.spark_scratch import Scratch
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Rows that a Python function on an executor sees at once.
ARROW_ROWS = 65_536
_APPLICATION_DATA_S = 86_400
WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, not bound
#: So long a cluster may take until it gives an application its first executor; starting one takes some seconds.
EXECUTOR_WITHIN_S = 60.0
#: That of the one session which a process has at a time; empty without one.
_scratch: list[Scratch] = []
#: The JVM ends within a second when it is told to.
CLOSING_S = 20.0
#: Several tasks share an executor's cores, so that each of these libraries may have one thread.
ONE_THREAD: Mapping[str, str] = {
    "POLARS_MAX_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}


def is_cluster(settings: Settings) -> bool:
    """Whether ``SPARK_MASTER`` names a cluster, and not this machine alone."""
    return settings.spark_master.startswith("spark://")


def configuration(settings: Settings, name: str, progress: Progress = silent, *, kafka: bool = True) -> dict[str, str]:
    """The session's configuration, by Spark's names. Fetches the connector's jars where they are not in the cache.

    Args:
        name: of the application, as Spark's UI shows it.
        kafka: whether it reads from Kafka, which takes the connector.

    Raises:
        SmokeError: no JDK that is fit for Spark, or the jars can't be had.
    """
    jars = CONNECTOR.ensure(settings.cache_dir, progress, find_jdk()) if kafka else []
    scratch = settings.home / "spark"
    chosen = {
        "spark.app.name": name,
        "spark.master": settings.spark_master,
        "spark.jars": ",".join(map(str, jars)),
        "spark.driver.memory": settings.spark_driver_memory,
        "spark.executor.memory": settings.spark_executor_memory,
        "spark.driver.bindAddress": settings.bind_host,
        "spark.ui.enabled": str(settings.spark_ui_port > 0).lower(),
        "spark.ui.port": str(settings.spark_ui_port or 4040),
        # The UI asks nobody for a password, so it shows and does not act.
        "spark.ui.killEnabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.ui.retainedJobs": "200",
        "spark.ui.retainedStages": "200",
        "spark.sql.ui.retainedExecutions": "100",
        "spark.log.level": "WARN",
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(ARROW_ROWS),
        # A copy of a task that is thought slow would write its files a second time.
        "spark.speculation": "false",
        "spark.sql.streaming.noDataMicroBatches.enabled": "false",
        "spark.sql.streaming.numRecentProgressUpdates": "10",
        "spark.sql.streaming.minBatchesToRetain": "2",
        "spark.pyspark.python": sys.executable,
        **{f"spark.executorEnv.{variable}": value for variable, value in ONE_THREAD.items()},
    }
    if settings.spark_cores and is_cluster(settings):
        chosen["spark.cores.max"] = str(settings.spark_cores)
    if settings.spark_driver_host:
        chosen["spark.driver.host"] = settings.spark_driver_host
    elif not is_cluster(settings) or settings.bind_host not in WILDCARDS:
        # What listens on one address is reached there; else a cluster is told this machine's name.
        chosen["spark.driver.host"] = settings.near_host
    return chosen


def open_session(
    settings: Settings,
    name: str,
    *,
    progress: Progress = silent,
    more: Mapping[str, str] | None = None,
    kafka: bool = True,
    executor_within_s: float = EXECUTOR_WITHIN_S,
) -> SparkSession:
    """A Spark session, to be closed with ``close_session``. A process has one at a time.

    Args:
        name: of the application, as Spark's UI shows it.
        kafka: whether it reads from Kafka, which takes the connector.
        more: further configuration by Spark's names.
        executor_within_s: how long to wait for the first executor of a cluster.

    Raises:
        SmokeError: no JDK, no jars, Spark does not start (a master that does not answer, a heap that is too large), or
            the cluster gives it nothing to run on.
    """
    chosen = {**configuration(settings, name, progress, kafka=kafka), **(more or {})}
    progress(f"starting Spark on {settings.spark_master}")
    if not _scratch:
        _scratch.append(Scratch(settings.home / "spark" / "tmp"))
    try:
        return _opened(settings, chosen, _scratch[0], executor_within_s)
    except BaseException:
        _remove_scratch()
        raise


def _opened(settings: Settings, chosen: dict[str, str], scratch: Scratch, executor_within_s: float) -> SparkSession:
    with _environment(settings, find_jdk(), scratch):
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession

        try:
            spark = SparkSession.builder.config(map=chosen).getOrCreate()
        except (PySparkException, _py4j_error(), OSError) as error:
            raise SmokeError(
                f"Spark does not start on {settings.spark_master}: {first_line(error)}",
                "check SPARK_MASTER, SPARK_DRIVER_MEMORY and SPARK_UI_PORT (`smoke doctor`)",
            ) from error
    if is_cluster(settings):
        try:
            _wait_for_executor(spark, settings, executor_within_s)
        except BaseException:
            close_session(spark)
            raise
    return spark


def _remove_scratch() -> None:
    while _scratch:
        _scratch.pop().remove()


def _wait_for_executor(spark: SparkSession, settings: Settings, within_s: float) -> None:
    """Waits until the cluster has given the session something to run on.

    A master that has no core to spare lets an application wait for ever, and says so nowhere.
    """
    tracker = spark.sparkContext._jsc.sc().statusTracker()
    deadline = time.monotonic() + within_s
    # The driver counts as one of them.
    while len(tracker.getExecutorInfos()) < 2:
        if time.monotonic() > deadline:
            raise SmokeError(
                f"{settings.spark_master} has given no executor within {within_s:g} s: it has no worker, or others "
                "have all of its cores or memory",
                "start a worker (`smoke spark worker`), or set SPARK_CORES for the landing to less than there is (0 "
                "takes all cores for as long as it runs) and start it again",
            )
        time.sleep(0.2)


@contextmanager
def session(
    settings: Settings,
    name: str,
    *,
    progress: Progress = silent,
    more: Mapping[str, str] | None = None,
    kafka: bool = True,
    executor_within_s: float = EXECUTOR_WITHIN_S,
) -> Iterator[SparkSession]:
    """``open_session`` as a context manager that closes it at the end."""
    spark = open_session(settings, name, progress=progress, more=more, kafka=kafka, executor_within_s=executor_within_s)
    try:
        yield spark
    finally:
        close_session(spark)


def close_session(spark: SparkSession) -> None:
    """Stops the session and its JVM, which PySpark would keep, with all its memory, until this process ends."""
    from pyspark import SparkContext

    gateway = SparkContext._gateway
    try:
        spark.stop()
        if gateway is not None and gateway.proc is not None:
            _end_jvm(gateway)
    finally:
        _remove_scratch()


def _end_jvm(gateway: Any) -> None:
    from pyspark import SparkContext

    with contextlib.suppress(_py4j_error(), OSError):
        gateway.shutdown()
    # PySpark starts another one with the next session.
    SparkContext._gateway = SparkContext._jvm = None
    if gateway.proc.stdin is not None:
        gateway.proc.stdin.close()
    try:
        gateway.proc.wait(CLOSING_S)
    except subprocess.TimeoutExpired:
        gateway.proc.kill()


@contextmanager
def _environment(settings: Settings, java: Java, scratch: Scratch) -> Iterator[None]:
    """What PySpark takes from the environment when it starts its JVM; afterwards it is as it was."""
    wanted = {
        "JAVA_HOME": str(java.home),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        **_local_address(settings),
        "SPARK_HOME": str(spark_home()),
        "SPARK_LOCAL_DIRS": str(scratch.folder),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _local_address(settings: Settings) -> dict[str, str]:
    """Where the UIs listen; Spark has no setting of its own for it.

    A wildcard would also be told to others as the address of this machine, so it is left out: all addresses are what
    Spark listens on by itself.
    """
    return {} if settings.bind_host in WILDCARDS else {"SPARK_LOCAL_IP": settings.bind_host}


def spark_home() -> Path:
    """The folder of pyspark, which is a whole Spark."""
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise SmokeError("pyspark is not installed", "install it as setup.py pins it")
    return Path(spec.origin).parent


def _py4j_error() -> type[Exception]:
    from py4j.protocol import Py4JError

    found: type[Exception] = Py4JError
    return found


def first_line(error: BaseException) -> str:
    """What a Java exception says, without its stack."""
    java = getattr(error, "java_exception", None)
    text = str(java.getMessage() if java is not None else error) or repr(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), repr(error))


# -- a standalone cluster --------------------------------------------------------------------------------


def master_command(host: str, port: int, ui_port: int) -> list[str]:
    """The command line of a standalone cluster's master, to be run with ``cluster_environment``.

    Args:
        host: name or address on which it listens and under which workers and drivers know it; a wildcard stands for
            this machine's own name.
    """
    return [
        *(str(find_jdk().command), "-Xmx512m", "-cp", f"{spark_home() / 'jars'}/*"),
        "org.apache.spark.deploy.master.Master",
        *_known_as(host),
        *("--port", str(port), "--webui-port", str(ui_port)),
    ]


def _known_as(host: str) -> list[str]:
    return [] if host in WILDCARDS else ["--host", host]


def worker_command(
    settings: Settings, master: str, host: str, ui_port: int, *, cores: int | None = None, memory: str = ""
) -> list[str]:
    """The command line of a worker that joins ``master`` (``spark://host:port``).

    Args:
        cores, memory: what it offers; by default all cores, and all memory but 1 GB.
    """
    command = [
        *(str(find_jdk().command), "-Xmx512m", "-cp", f"{spark_home() / 'jars'}/*"),
        # What applications leave goes after a day; Spark's own limit is a week.
        *("-Dspark.worker.cleanup.enabled=true", f"-Dspark.worker.cleanup.appDataTtl={_APPLICATION_DATA_S}"),
        "org.apache.spark.deploy.worker.Worker",
        *_known_as(host),
        *("--webui-port", str(ui_port)),
        # Of its own: workers on several machines may share the platform's home.
        *("--work-dir", str(settings.home / "spark" / f"work-{socket.gethostname()}")),
    ]
    if cores is not None:
        command += ["--cores", str(cores)]
    if memory:
        command += ["--memory", memory]
    return [*command, master]


def cluster_environment(settings: Settings) -> dict[str, str]:
    """The environment of master and worker: what executors inherit is that of the worker."""
    return {
        **os.environ,
        "JAVA_HOME": str(find_jdk().home),
        "SPARK_HOME": str(spark_home()),
        **_local_address(settings),
        "SPARK_SCALA_VERSION": "2.13",
    }


def scratch_folder(settings: Settings, name: str) -> Path:
    """A new folder for one run below the platform's home."""
    parent = settings.home / "spark"
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))


def parallelism(spark: Any) -> int:
    """How many tasks the session runs at once, by what it knows now."""
    return max(1, int(spark.sparkContext.defaultParallelism))
