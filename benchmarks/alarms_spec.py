"""What each measured process of the alarm suite is told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """Where a process reads and writes.

    Attributes:
        topic, topic_id, partitions: the readings'.
        alarms: topic of the answers.
        trace: file for a line an acknowledged alarm: partition, offset of the causing reading, nanoseconds since the
            epoch. Only a process that learns of the acknowledgement can write it.
        ready: file that the process makes when it has its partitions, where it can tell.
        plain: whether the echo uses kafka-python alone instead of the detector's clients.
    """

    brokers: str
    topic: str
    topic_id: str
    partitions: int
    alarms: str
    group: str
    models: str
    trace: str
    ready: str
    plain: bool = False

    @classmethod
    def read(cls, file: Path) -> ChildSpec:
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
