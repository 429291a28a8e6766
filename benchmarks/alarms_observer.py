"""Sees alarms from outside: notes when each raised alarm reached a consumer of the alarms' topic.

The peers' libraries do not tell when the broker acknowledged a record, so beside them everybody is measured by this.
Started as ``python -m benchmarks.alarms_observer SPEC.json``; ends on SIGTERM. Writes ``<trace>.seen``, a line a raised
alarm: partition, offset of the causing reading, nanoseconds since the epoch.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.alarms_spec import ChildSpec


class _Seen(msgspec.Struct):
    partition: int
    cause: int
    event: str


def observe(spec: ChildSpec) -> None:
    """Notes until it is told to end."""
    from confluent_kafka import Consumer, TopicPartition

    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    consumer = Consumer(
        {"bootstrap.servers": spec.brokers, "group.id": "observer", "enable.auto.commit": False, "fetch.min.bytes": 1}
    )
    consumer.assign([TopicPartition(spec.alarms, number, 0) for number in range(spec.partitions)])
    decoder = msgspec.json.Decoder(_Seen)
    with Path(f"{spec.trace}.seen").open("w", encoding="ascii", buffering=1) as seen:
        while not stopping:
            message = consumer.poll(0.2)
            if message is None or message.error() is not None:
                continue
            moment = time.time_ns()
            record = decoder.decode(message.value())
            if record.event == "raised":
                seen.write(f"{record.partition} {record.cause} {moment}\n")
    consumer.close()


if __name__ == "__main__":
    observe(ChildSpec.read(Path(sys.argv[1])))
