"""The watcher of a topic's ends, through a restart of the broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smoke_platform.adapters.kafka import ensure_topics
from smoke_platform.adapters.kafka_bulk import KafkaUnreachable, TopicWatcher
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings

pytestmark = pytest.mark.integration


def test_the_ends_are_told_again_after_the_broker_was_killed(
    tmp_path: Path, settings_for: Callable[..., Settings], cache_dir: Path
) -> None:
    """A detector that never learns the ends again calls no device silent, however long it is."""
    settings = settings_for(tmp_path)
    broker = EmbeddedBroker(tmp_path / "broker", settings.kafka_port, settings.kafka_controller_port, cache_dir)
    broker.prepare()
    broker.start()
    try:
        ensure_topics(settings)
        watcher = TopicWatcher(settings.brokers, settings.topic_readings)
        before = watcher.watermarks([0, 1])
        broker.kill()
        broker.start()
        deadline = time.monotonic() + 120
        while True:
            try:
                assert watcher.watermarks([0, 1], 2.0) == before
                break
            except KafkaUnreachable:
                assert time.monotonic() < deadline, "the ends were never told again"
                time.sleep(0.1)
    finally:
        broker.stop()
