"""What engine ``spark`` says when it can't go on: each fault names what a person should do next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from pyspark.errors import PySparkException

from smoke_platform.adapters.kafka_bulk import TopicFacts, TopicWatcher
from smoke_platform.adapters.scorer import Champion
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings
from smoke_platform.streaming import history_spark
from smoke_platform.streaming.spark_landing import SparkLanding, planned_ends
from smoke_platform.streaming.spark_score_tasks import Model, _scorer


def test_a_broker_that_does_not_answer_is_told_with_what_to_do(free_port: Callable[[], int]) -> None:
    """Half of all faults are this one, and it left the reader alone with it."""
    watcher = TopicWatcher(f"127.0.0.1:{free_port()}", "readings")
    for question in (lambda: watcher.facts(0.3), lambda: watcher.watermarks((0,), 0.3)):
        with pytest.raises(SmokeError, match="does not answer") as fault:
            question()
        assert "KAFKA_BOOTSTRAP_SERVERS" in fault.value.remedy


def test_what_spark_gave_up_at_is_told_with_what_to_do(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """A line of Java at three in the morning says neither whether anything is lost nor where to look."""
    landing = SparkLanding(settings_for(tmp_path), "test")
    landing._facts = TopicFacts("c", "t", (0,))
    parts: dict[str, Any] = {
        "_watcher": SimpleNamespace(watermarks=lambda _: {0: (0, 9)}),
        "_table": SimpleNamespace(positions={0: 3}),
    }
    for name, part in parts.items():
        setattr(landing, name, part)
    told = landing._explained(PySparkException("no executor\nat java.lang"))
    assert isinstance(told, SmokeError)
    assert told.message == "Spark gave up: no executor"
    assert "nothing that was committed is lost" in told.remedy


def test_a_plan_that_is_not_understood_names_the_version() -> None:
    """It comes of another pyspark than the one that was tried, and nobody would think of that."""
    with pytest.raises(SmokeError, match="nothing of topic readings") as fault:
        planned_ends('v1\n{"other":{"0":3}}', "readings")
    assert "pyspark" in fault.value.remedy


def test_a_model_that_arrives_changed_names_the_machine() -> None:
    """One bad machine of a cluster would be looked for in vain."""
    champion = Champion(
        version=7, sha256="0", path="m", manifest_sha256="0", feature_version="1", feature_names=(), threshold=0.5
    )
    with pytest.raises(SmokeError, match=r"did not reach the executor on .+ as it left the driver") as fault:
        _scorer(msgspec.msgpack.encode(Model(champion=champion, manifest={}, artifact=b"x")))
    assert "run it again" in fault.value.remedy


def test_a_piece_of_the_history_that_fails_names_the_way_without_spark() -> None:
    """The weekly report would be missing until somebody finds out that it can be had otherwise."""

    def fail(*_: Any) -> Any:
        raise PySparkException("Traceback\n  File\nKeyError: 'x'")

    session = SimpleNamespace(range=fail)
    with pytest.raises(SmokeError, match="KeyError: 'x'") as fault:
        history_spark._map(session, [SimpleNamespace(do=dict)])  # type: ignore[list-item]
    assert "--engine local" in fault.value.remedy
