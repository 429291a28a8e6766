"""What the topics are, how a difference is judged, and the sets of acknowledged offsets."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.adapters.kafka import AcknowledgedOffsets, partition_of
from smoke_platform.domain.topics import (
    ALARM_COMMANDS,
    ALARMS,
    DEAD_LETTER_MAX_BYTES,
    DETECTOR_STATE,
    DEVICES,
    READING_MAX_BYTES,
    TopicState,
    blocking,
    compare,
    topic_specs,
)

SPECS = {spec.name: spec for spec in topic_specs(partitions=4, retention_days=2)}


def state_of(name: str, **changes: str) -> TopicState:
    """A topic exactly as asked for, but for ``changes`` of its configuration."""
    spec = SPECS[name]
    config = {**spec.config, "segment.ms": "604800000"}
    config.update({key.replace("_", "."): value for key, value in changes.items()})
    return TopicState(name, "id", spec.partitions, spec.replication, config)


def test_every_topic_keeps_records_by_their_arrival() -> None:
    """With event time, the broker deletes a replay of 2022 at its first retention check."""
    assert {spec.config["message.timestamp.type"] for spec in SPECS.values()} == {"LogAppendTime"}


def test_topics_about_devices_have_the_readings_partitions() -> None:
    """A detector that holds a partition of readings holds the same one of states and alarms."""
    assert {spec.partitions for spec in SPECS.values()} == {4}


def test_histories_outlive_their_landing() -> None:
    """Compaction may not drop an alarm's transitions before they are landed."""
    assert SPECS[ALARMS].config["cleanup.policy"] == "compact"
    assert int(SPECS[ALARMS].config["min.compaction.lag.ms"]) == 7 * 86_400_000
    assert SPECS[DETECTOR_STATE].config["cleanup.policy"] == SPECS[DEVICES].config["cleanup.policy"] == "compact"
    assert SPECS[ALARM_COMMANDS].config["cleanup.policy"] == "delete"


def test_retention_is_the_setting_and_dead_letters_stay_longer() -> None:
    """A fault is looked at after the weekend."""
    assert SPECS["smoke_sensor_data"].config["retention.ms"] == str(2 * 86_400_000)
    assert int(SPECS["smoke_dead_letters"].config["retention.ms"]) == 30 * 86_400_000
    longer = {spec.name: spec for spec in topic_specs(retention_days=90)}
    assert int(longer["smoke_dead_letters"].config["retention.ms"]) == 90 * 86_400_000


def test_a_dead_letter_has_room_for_the_largest_reading() -> None:
    """A message that fits nowhere would stop landing."""
    assert DEAD_LETTER_MAX_BYTES > 2 * READING_MAX_BYTES


@pytest.mark.parametrize("name", list(SPECS))
def test_a_topic_as_asked_for_has_no_problem(name: str) -> None:
    """A second start must be silent."""
    assert compare(SPECS[name], state_of(name)) == []


@pytest.mark.parametrize("partitions", [1, 3, 5])
def test_another_number_of_partitions_is_reported_with_the_setting(partitions: int) -> None:
    """Partitions decide where a device's readings go; they are never changed in silence."""
    state = dataclasses.replace(state_of("smoke_sensor_data"), partitions=partitions)
    (problem,) = blocking(compare(SPECS["smoke_sensor_data"], state))
    assert f"SMOKE_KAFKA_PARTITIONS={partitions}" in problem.remedy


def test_only_what_loses_data_blocks() -> None:
    """Another retention is the owner's right; another timestamp type deletes a replay."""
    name = "smoke_sensor_data"
    assert blocking(compare(SPECS[name], state_of(name, retention_ms="1000"))) == []
    assert len(compare(SPECS[name], state_of(name, retention_ms="1000"))) == 1
    for wrong in (
        {"message_timestamp_type": "CreateTime"},
        {"cleanup_policy": "compact"},
        {"max_message_bytes": "1000"},
    ):
        (problem,) = blocking(compare(SPECS[name], state_of(name, **wrong)))
        assert "smoke topics create --alter" in str(problem)
    assert compare(SPECS[name], state_of(name, max_message_bytes="20000000")) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40))))
def test_acknowledged_offsets_are_a_set(pairs: list[tuple[int, int]]) -> None:
    """`verify` compares it with what landed; retries and other producers make it come in any order."""
    acknowledged = AcknowledgedOffsets()
    for partition, offset in pairs:
        acknowledged.add(partition, offset)
    assert list(acknowledged.pairs()) == sorted(set(pairs))
    assert acknowledged.count == len(pairs)
    assert acknowledged.distinct == len(set(pairs))
    for place in [(partition, offset) for partition in range(4) for offset in range(42)]:
        assert (place in acknowledged) == (place in set(pairs))
    for ranges in acknowledged.ranges().values():
        assert all(high < low for (_, high), (low, _) in pairwise(ranges))


@pytest.mark.parametrize(
    ("key", "hash_"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_partitions_follow_the_java_clients_murmur2(key: bytes, hash_: int) -> None:
    """The test vectors of Kafka's own client: other producers write to the same topics."""
    assert partition_of(key, 1000) == (hash_ & 0x7FFFFFFF) % 1000
