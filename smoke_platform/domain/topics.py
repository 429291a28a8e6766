"""The platform's topics: what each is for and how the broker must keep it. Pure data.

Belongs here: names, partition counts, broker-side configuration with its reasons, and the comparison of what a
topic is with what it should be. Does not: talking to a broker (``adapters.kafka``), message formats
(``domain.readings`` and the modules of the other messages).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Default name of the readings' topic; the setting KAFKA_TOPIC_SMOKE gives another one.
READINGS = "smoke_sensor_data"
DEAD_LETTERS = "smoke_dead_letters"
ALARMS = "smoke_alarms"
ALARM_COMMANDS = "smoke_alarm_commands"
DETECTOR_STATE = "smoke_detector_state"
PREDICTIONS = "smoke_predictions"
DEVICES = "smoke_devices"

_DAY_MS = 86_400_000

#: The broker's own default, written out because the dead letters' limit is derived from it. The broker
#: compares it with a batch as it travels, that is compressed.
READING_MAX_BYTES = 1_048_588
#: A dead letter is the original bytes and some headers. A batch that was accepted with one codec may grow under
#: another one (LZ4 compresses worse than zstd), so the limit leaves a factor of 16.
DEAD_LETTER_MAX_BYTES = 16 * 1024 * 1024
#: What a client that writes dead letters has to allow for one request *before* compression: clients check their
#: own limit on the uncompressed bytes, and a megabyte of LZ4 may hold a hundred of them.
DEAD_LETTER_REQUEST_BYTES = 256 * 1024 * 1024
#: Time for the landing of the alarms' history before compaction may drop a record's predecessors.
ALARM_COMPACTION_LAG_MS = 7 * _DAY_MS
#: Faults are looked at later than readings: dead letters stay at least this long.
DEAD_LETTER_DAYS = 30.0


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic must be.

    Attributes:
        config: broker-side configuration by Kafka's names; whatever is not named keeps the broker's default.
        purpose: one line for people.
    """

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class TopicState:
    """What a topic is, as the broker describes it; ``config`` holds the values in force, defaults included."""

    name: str
    topic_id: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicProblem:
    """A difference between what a topic is and what it must be.

    Attributes:
        blocking: whether the platform would lose or misplace data if it went on.
        remedy: the command or setting that mends it.
    """

    topic: str
    what: str
    remedy: str
    blocking: bool

    def __str__(self) -> str:
        return f"topic {self.topic}: {self.what}\n  -> {self.remedy}"


def topic_specs(
    readings: str = "smoke_sensor_data",
    dead_letters: str = DEAD_LETTERS,
    *,
    partitions: int = 6,
    replication: int = 1,
    retention_days: float = 7.0,
) -> tuple[TopicSpec, ...]:
    """Every topic of the platform.

    All carry the broker's append time: with the event time as a record's timestamp, retention (and the
    compaction lag) would judge a replay of old readings by their age and delete it at the first check. All
    have the readings' partition count, since a record about a device stands in the partition that its readings
    are in.

    Args:
        readings, dead_letters: names of the two that are settings.
        partitions, replication: of each topic.
        retention_days: how long readings and predictions stay.
    """
    base = {"message.timestamp.type": "LogAppendTime"}
    retention = {"cleanup.policy": "delete", "retention.ms": str(round(retention_days * _DAY_MS))}
    compacted = {"cleanup.policy": "compact"}

    def spec(name: str, purpose: str, **config: Mapping[str, str]) -> TopicSpec:
        merged = {**base, **{key: value for part in config.values() for key, value in part.items()}}
        return TopicSpec(name, partitions, replication, merged, purpose)

    dead_letter_days = max(retention_days, DEAD_LETTER_DAYS)
    return (
        spec(
            readings,
            "Readings as the devices send them, keyed by device",
            retention=retention,
            size={"max.message.bytes": str(READING_MAX_BYTES)},
        ),
        spec(
            dead_letters,
            "Messages that are no readings: original bytes, with place and reason in the headers",
            retention={"cleanup.policy": "delete", "retention.ms": str(round(dead_letter_days * _DAY_MS))},
            size={"max.message.bytes": str(DEAD_LETTER_MAX_BYTES)},
        ),
        spec(
            ALARMS,
            "Alarms and their transitions, latest per alarm",
            compaction=compacted,
            # Until then every transition is there to be landed as history.
            lag={"min.compaction.lag.ms": str(ALARM_COMPACTION_LAG_MS)},
        ),
        spec(ALARM_COMMANDS, "Acknowledge, silence and test commands to the detector", retention=retention),
        spec(DETECTOR_STATE, "Snapshots of the detector's state per partition", compaction=compacted),
        spec(PREDICTIONS, "Scores and rule hits per poll and partition", retention=retention),
        spec(DEVICES, "The device registry, latest per device", compaction=compacted),
    )


def compare(spec: TopicSpec, state: TopicState) -> list[TopicProblem]:
    """What is wrong with an existing topic, the worst first; empty where it is as it must be.

    A topic is never changed behind its owner's back: partitions decide where a device's readings go, and the
    timestamp's type decides what retention deletes.
    """
    problems: list[TopicProblem] = []
    if state.partitions != spec.partitions:
        problems.append(
            TopicProblem(
                spec.name,
                f"has {state.partitions} partitions, the platform is set to {spec.partitions}",
                f"set SMOKE_KAFKA_PARTITIONS={state.partitions}, or delete the topic (its messages are lost) and run "
                "`smoke topics create`; adding partitions would send a device's readings elsewhere than before",
                blocking=True,
            )
        )
    for key, wanted in spec.config.items():
        found = state.config.get(key)
        if found is None or found == wanted or _roomy_enough(key, found, wanted):
            continue
        problems.append(
            TopicProblem(
                spec.name,
                f"{key} is {found}, expected {wanted}{_CONSEQUENCE.get(key, '')}",
                "run `smoke topics create --alter`, which changes it on the broker",
                blocking=key in _CONSEQUENCE,
            )
        )
    return sorted(problems, key=lambda problem: not problem.blocking)


#: What goes wrong where a configuration differs that the platform depends on.
_CONSEQUENCE = {
    "message.timestamp.type": ": retention would delete a replay of old readings",
    "cleanup.policy": ": the broker would drop what is needed, or keep what is not",
    "max.message.bytes": ": the largest messages would be refused",
}


def _roomy_enough(key: str, found: str, wanted: str) -> bool:
    return key == "max.message.bytes" and int(found) >= int(wanted)


def blocking(problems: Sequence[TopicProblem]) -> list[TopicProblem]:
    """Those of ``problems`` with which the platform must not go on."""
    return [problem for problem in problems if problem.blocking]
