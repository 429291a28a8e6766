"""Fixtures that all tests share: a real broker, topics, free ports, settings of a private platform.

Belongs here: what more than one part's tests need. Does not: fixtures of one part.

All fixtures but the topics' factory are safe to use from hypothesis tests: none is function-scoped.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from smoke_platform.local import ports
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.local.ports import free_ports
from smoke_platform.settings import Settings, load_settings

# How fast an example runs says how busy the machine is; the benchmarks measure speed. The same examples each time, so
# that a change is judged by what it changes; `pytest --hypothesis-profile=search` looks for new ones.
PATIENCE: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("patient", derandomize=True, **PATIENCE)
hypothesis.settings.register_profile("search", **PATIENCE)
hypothesis.settings.load_profile("patient")

#: Read before the guard below empties the environment: they say where this machine keeps large files.
DATA_DIR = os.environ.get("SMOKE_DATA_DIR", "")
#: "1/3": the second of three processes that run tests side by side; see deploy/run-tests.
NUMBER, _, OF = os.environ.get("SMOKE_TEST_PORTS", "0/1").partition("/")
ports.FREE_RANGE = ports.FREE_RANGE[int(NUMBER) :: int(OF)]
CACHE_DIR = Path(os.environ.get("SMOKE_CACHE_DIR", "") or "~/.cache/smoke-platform").expanduser().absolute()
OWN_VARIABLES = ("SMOKE_", "KAFKA_", "ML_", "POSTGRES_", "DAGSTER_", "MLFLOW_", "SPARK_")


@pytest.fixture(scope="session", autouse=True)
def _untouched_by_the_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads this machine's settings: no variable of ours, and no ``.env`` in the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(OWN_VARIABLES)]:
            patch.delenv(name)
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _patient_probes() -> Iterator[None]:
    """Where landing stands is waited for: a busy machine's broker may take longer to answer than a sensor waits."""
    from smoke_platform.streaming.landing import StandingProbe
    from smoke_platform.streaming.records_landing import RecordsProbe
    from smoke_platform.streaming.windows import WindowsProbe

    with pytest.MonkeyPatch.context() as patch:
        for method in (StandingProbe.standing, RecordsProbe.standings, WindowsProbe.standing):
            # Their only default is the timeout in seconds.
            assert method.__defaults__ == (3.0,)
            patch.setattr(method, "__defaults__", (60.0,))
        yield


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that gives a port that is free now, and another one each time."""
    given: set[int] = set()

    def next_port() -> int:
        while (port := free_ports(1)[0]) in given:
            pass
        given.add(port)
        return port

    return next_port


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The folder of downloads that all platforms of this user share, so that tests fetch nothing twice."""
    return CACHE_DIR


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[EmbeddedBroker]:
    """A real Apache Kafka broker, one for the whole session; tests that kill one start their own."""
    embedded = EmbeddedBroker(tmp_path_factory.mktemp("broker"), free_port(), free_port(), CACHE_DIR)
    embedded.prepare()
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture(scope="session")
def make_topic(broker: EmbeddedBroker) -> Callable[..., str]:
    """A function that makes a new topic on ``broker`` and gives its name once every partition has a leader.

    ``make_topic(partitions=1, name=None, **config)``; underscores in a config's name stand for its dots.
    """
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})

    def make(partitions: int = 1, name: str | None = None, **config: Any) -> str:
        topic = name or f"test-{uuid.uuid4().hex[:12]}"
        options = {key.replace("_", "."): str(value) for key, value in config.items()}
        request = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=options)
        admin.create_topics([request])[topic].result(30)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = admin.list_topics(topic, timeout=10).topics[topic].partitions
            if len(found) == partitions and all(entry.leader >= 0 for entry in found.values()):
                return topic
            time.sleep(0.02)
        raise TimeoutError(f"{topic} has no leaders after 30 s")

    return make


@pytest.fixture(scope="session")
def settings_for(free_port: Callable[[], int]) -> Callable[..., Settings]:
    """A function that gives the settings of a private platform: ``settings_for(folder, **environment)``.

    Its state lies below ``folder``, its ports are free ones, downloads come from the shared cache. Values may be of
    any type: ``settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers, SMOKE_SIMULATE=False)``.
    """

    def build(folder: Path, **environment: Any) -> Settings:
        values: dict[str, Any] = {"SMOKE_HOME": folder / "home", "SMOKE_CACHE_DIR": CACHE_DIR, **environment}
        for name in ("KAFKA", "KAFKA_CONTROLLER", "API", "DAGSTER", "DAGSTER_GRPC", "DETECTOR", "NOTIFY"):
            values.setdefault(f"SMOKE_{name}_PORT", free_port())
        return load_settings({name: str(value) for name, value in values.items()}, env_file=folder / "no-such-file.env")

    return build


@pytest.fixture(scope="session")
def needs_data() -> Path:
    """The folder of example data; a test that asks for it is skipped where ``SMOKE_DATA_DIR`` names none."""
    if not DATA_DIR:
        pytest.skip("SMOKE_DATA_DIR is not set: it names the folder of the example recordings")
    folder = Path(DATA_DIR).expanduser().absolute()
    if not folder.is_dir():
        pytest.skip(f"SMOKE_DATA_DIR={DATA_DIR} is no folder")
    return folder
