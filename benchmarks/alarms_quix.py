"""The same work as a Quix Streams application: one function, called for each message, as its API offers.

The state stays in the process's memory, which spares it Quix's state store and changelog. Started in an environment of
its own as ``python -m benchmarks.alarms_quix SPEC.json``; ends on SIGTERM.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.alarms_spec import ChildSpec
from benchmarks.alarms_work import Work
from smoke_platform.domain.alarms import encode
from smoke_platform.domain.detection import Batch


def run(spec: ChildSpec) -> None:
    """Processes until it is told to end."""
    from quixstreams import Application, message_context

    work = Work(spec, range(spec.partitions))
    with tempfile.TemporaryDirectory() as state:
        application = Application(
            broker_address=spec.brokers,
            consumer_group=spec.group,
            auto_offset_reset="earliest",
            auto_create_topics=False,
            use_changelog_topics=False,
            state_dir=state,
            producer_extra_config={"linger.ms": 0, "acks": "all"},
            loglevel="WARNING",
        )
        readings = application.topic(spec.topic, key_deserializer="bytes", value_deserializer="bytes")
        alarms = application.topic(spec.alarms, key_serializer="bytes", value_serializer="bytes")

        def detect(value: bytes, key: Any, timestamp: int, _headers: Any) -> list[bytes]:
            context = message_context()
            batch = Batch([value], [key], [context.partition], [context.offset], [timestamp])
            return [encode(record) for record in work.take(batch)]

        frame = application.dataframe(readings).apply(detect, expand=True, metadata=True)
        frame.to_topic(alarms)  # under the reading's key, the device
        application.run()


if __name__ == "__main__":
    run(ChildSpec.read(Path(sys.argv[1])))
