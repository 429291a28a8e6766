"""A standalone Spark cluster on this machine: a master and workers, each a process of its own.

Belongs here: starting them and waiting until the master knows its workers. Does not: what is run on them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings

#: Three Java processes start on what may be two busy cores.
PATIENCE_S = 120.0


@dataclass(slots=True)
class Cluster:
    """A cluster that runs.

    Attributes:
        url: for ``SPARK_MASTER``.
        workers: their processes.
    """

    url: str
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)


@contextmanager
def standalone(
    settings: Settings, port: int, ui_port: int, *, workers: int = 2, cores: int = 1, memory: str = "1g"
) -> Iterator[Cluster]:
    """A master on these ports and workers that have joined it; all are ended afterwards.

    Args:
        settings: whose home has their logs and scratch folders.
        cores, memory: of each worker.

    Raises:
        SmokeError: where one of them does not start.
    """
    with ExitStack() as stack:
        url = f"spark://{settings.near_host}:{port}"
        arguments = ["master", "--port", str(port), "--ui-port", str(ui_port)]
        stack.callback(_end, _start(settings, "spark-master", arguments))
        cluster = Cluster(url)
        state = f"http://{settings.near_host}:{ui_port}/json/"
        _wait(state, 0)
        for number in range(workers):
            arguments = ["worker", url, "--ui-port", "0", "--cores", str(cores), "--memory", memory]
            process = _start(settings, f"spark-worker-{number}", arguments)
            stack.callback(_end, process)
            cluster.workers.append(process)
        _wait(state, workers)
        yield cluster


def _start(settings: Settings, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    settings.logs_dir.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("smoke")), "spark", *arguments]
    with (settings.logs_dir / f"{name}.log").open("ab") as log:
        environment = {**os.environ, **settings.environment()}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _wait(address: str, workers: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with urlopen(address, timeout=5) as answer:  # noqa: S310 - an address of our own making
                if int(json.load(answer).get("aliveworkers", 0)) >= workers:
                    return
        except (URLError, OSError, ValueError):
            pass
        time.sleep(0.2)
    raise SmokeError(f"the cluster at {address} has no {workers} workers after {PATIENCE_S:g} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
