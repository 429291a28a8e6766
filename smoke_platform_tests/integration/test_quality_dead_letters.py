"""Dead letters counted for the data quality of a window, on a real broker."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from smoke_platform.adapters.dead_letters import UNREAD, count_by_reason
from smoke_platform.adapters.kafka_bulk import DeadLetterProducer, KafkaUnreachable, Letter
from smoke_platform.domain.landing import letter_headers
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.readings import ReadingRejected, RejectReason
from smoke_platform.local.broker import EmbeddedBroker

pytestmark = pytest.mark.integration


def _letter(offset: int, reason: RejectReason, moment: datetime) -> Letter:
    identity = MessageId("t0", 0, offset)
    headers = letter_headers(
        ReadingRejected(reason, "", "a test"),
        identity,
        topic="readings",
        append_time_ms=int(moment.timestamp() * 1000),
        key=None,
    )
    return Letter(str(identity).encode(), b"{", headers)


def test_letters_of_the_window_count_once_by_reason(broker: EmbeddedBroker, make_topic: Callable[..., str]) -> None:
    """Or a letter that was sent twice, or is about last week, lowers today's score."""
    topic = make_topic(partitions=3)
    now = datetime.now(UTC)
    inside, before = now - timedelta(minutes=5), now - timedelta(days=2)
    letters = [_letter(offset, RejectReason.NOT_JSON, inside) for offset in range(20)]
    letters += [_letter(offset, RejectReason.TIMESTAMP, inside) for offset in range(100, 107)]
    letters += [_letter(offset, RejectReason.NOT_FINITE, before) for offset in range(200, 203)]
    DeadLetterProducer(broker.bootstrap_servers, topic).send([*letters, *letters[:5]])

    found = count_by_reason(broker.bootstrap_servers, topic, now - timedelta(hours=1), now)
    assert found == {"not_json": 20, "timestamp": 7}


def test_a_flood_of_letters_is_counted_without_being_read(
    broker: EmbeddedBroker, make_topic: Callable[..., str]
) -> None:
    """Or a device gone mad fills the monitor's memory."""
    topic = make_topic(partitions=2)
    now = datetime.now(UTC)
    letters = [_letter(offset, RejectReason.NOT_JSON, now) for offset in range(100)]
    DeadLetterProducer(broker.bootstrap_servers, topic).send(letters)
    found = count_by_reason(
        broker.bootstrap_servers, topic, now - timedelta(hours=1), now + timedelta(hours=1), most=30
    )
    assert (found["not_json"], found[UNREAD]) == (30, 70)


def test_no_letters_and_no_topic_are_no_rejects(broker: EmbeddedBroker, make_topic: Callable[..., str]) -> None:
    """Or a platform without a single reject has no data quality."""
    now = datetime.now(UTC)
    for topic in (make_topic(partitions=2), "smoke_no_such_topic"):
        assert count_by_reason(broker.bootstrap_servers, topic, now - timedelta(hours=1), now) == {}


def test_a_broker_that_is_down_is_named(free_port: Callable[[], int]) -> None:
    """Or "no rejects" is reported while nobody knows."""
    now = datetime.now(UTC)
    with pytest.raises(KafkaUnreachable):
        count_by_reason(f"127.0.0.1:{free_port()}", "letters", now - timedelta(hours=1), now, timeout_s=1.0)
