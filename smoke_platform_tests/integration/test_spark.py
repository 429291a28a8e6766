"""Engine ``spark`` with a real Spark and a real broker: the same rows as engine ``local``, whatever dies or changes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smoke_platform.adapters.spark import close_session, open_session
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import (
    Landing,
    LandingReport,
    StandingProbe,
)
from smoke_platform.streaming.spark_landing import SparkLanding
from smoke_platform.streaming.windows import WindowEngine
from smoke_platform_tests.spark_parts import check, landed, letters, produce, rough_stream, windows

pytestmark = pytest.mark.integration

PARTITIONS = 3
#: `make prove` runs more of them, with other seeds.
KILLS = 3
SEED = int(os.environ.get("PROVE_SEED", "1"))


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]) -> Iterator[Any]:
    """One session for all tests of this file: it takes ten seconds to start."""
    session = open_session(settings_for(tmp_path_factory.mktemp("spark"), **SPARK), "tests")
    yield session
    close_session(session)


SPARK = {"SPARK_MASTER": "local[2]", "SPARK_UI_PORT": 0, "SPARK_BATCH_SECONDS": 0.1, "SMOKE_WINDOW_SECONDS": 0.05}


@pytest.fixture
def platform(
    tmp_path: Path, broker: EmbeddedBroker, make_topic: Callable[..., str], settings_for: Callable[..., Settings]
) -> Settings:
    """Settings of a platform with a topic and a lake of its own, and small, quick batches."""
    topic = make_topic(partitions=PARTITIONS, message_timestamp_type="LogAppendTime")
    settings = settings_for(
        tmp_path,
        KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers,
        KAFKA_TOPIC_SMOKE=topic,
        SMOKE_KAFKA_PARTITIONS=PARTITIONS,
        SMOKE_BATCH_SECONDS=0.05,
        SMOKE_BATCH_ROWS=700,
        SPARK_BATCH_ROWS=4000,
        **SPARK,
    )
    make_topic(partitions=2, name=settings.topic_dead_letters, max_message_bytes=16 * 1024 * 1024)
    return settings


def on_spark(settings: Settings, spark: Any, **arguments: Any) -> LandingReport:
    """Lands what is there on Spark, with windows."""
    return SparkLanding(settings, "test", once=True, spark=spark, **arguments).run()


def locally(settings: Settings) -> LandingReport:
    """The same on engine ``local``."""
    return Landing(settings, "test", once=True, companions=[WindowEngine(settings)]).run()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_the_same_rows_as_engine_local(platform: Settings, spark: Any, tmp_path: Path) -> None:
    """Whoever moves to Spark must find the same readings, windows and dead letters as before."""
    other = platform.model_copy(update={"home": tmp_path / "other"})
    produce(platform, rough_stream(SEED))
    report = on_spark(platform, spark)
    check(platform)
    rejected = letters(platform)
    twin = locally(other)
    check(other)
    assert landed(platform).equals(landed(other))
    assert windows(platform).equals(windows(other))
    assert letters(platform) == rejected
    assert report.total().late > 0
    assert (report.total(), report.reasons, report.positions) == (twin.total(), twin.reasons, twin.positions)
    assert (report.ended, report.commits > 1) == ("caught up", True)


def test_the_engines_take_turns(platform: Settings, spark: Any) -> None:
    """An engine is changed while readings come in; nothing may be lost or doubled, no window computed in part."""
    stream = rough_stream(SEED + 1)
    sending = threading.Thread(
        target=lambda: [produce(platform, stream[low : low + 400]) for low in range(0, len(stream), 400)]
    )
    sending.start()
    try:
        for engine in (locally, lambda settings: on_spark(settings, spark), locally):
            before = landed(platform).height
            engine(platform)
            wait_for(
                lambda before=before: not sending.is_alive() or sum(StandingProbe(platform).standing().lag.values()) > 0
            )
            assert landed(platform).height >= before
    finally:
        sending.join()
    on_spark(platform, spark)
    locally(platform)
    check(platform)
