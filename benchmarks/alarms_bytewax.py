"""The same work as a Bytewax dataflow: a stateful step keyed by partition, which takes whole batches.

Keyed by device, each batch would hold a message or two; by partition it holds what one poll brought. Recovery is off.
Started in an environment of its own as ``python -m benchmarks.alarms_bytewax SPEC.json``; ends on SIGTERM.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.alarms_spec import ChildSpec
from benchmarks.alarms_work import Work
from smoke_platform.domain.alarms import alarm_key, encode
from smoke_platform.domain.detection import Batch


def run(spec: ChildSpec) -> None:
    """Processes until it is told to end."""
    import bytewax.operators as op
    from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSource, KafkaSourceMessage
    from bytewax.connectors.kafka import operators as kop
    from bytewax.dataflow import Dataflow
    from bytewax.testing import run_main
    from confluent_kafka import OFFSET_BEGINNING

    class Detect(op.StatefulBatchLogic):  # type: ignore[misc] # not installed where types are checked
        def __init__(self, _resume: None) -> None:
            self._work: Work | None = None

        def on_batch(self, values: list[KafkaSourceMessage]) -> tuple[list[KafkaSinkMessage], bool]:
            if self._work is None:  # its key is not told to the one who makes it
                self._work = Work(spec, [values[0].partition])
            batch = Batch(
                [message.value for message in values],
                [message.key for message in values],
                [message.partition for message in values],
                [message.offset for message in values],
                [message.timestamp[1] for message in values],
            )
            records = self._work.take(batch)
            return [
                KafkaSinkMessage(alarm_key(record.device_id, record.kind), encode(record), partition=record.partition)
                for record in records
            ], False

        def snapshot(self) -> None:
            """Nothing: recovery is off."""

    flow = Dataflow("alarms")
    source = KafkaSource(
        [spec.brokers],
        [spec.topic],
        starting_offset=OFFSET_BEGINNING,
        batch_size=2_000,
    )
    messages = op.input("readings", flow, source)
    good = op.filter("good", messages, lambda message: isinstance(message, KafkaSourceMessage))
    keyed = op.key_on("by partition", good, lambda message: str(message.partition))
    found = op.stateful_batch("detect", keyed, Detect)
    out = op.map("answers", found, lambda pair: pair[1])
    kop.output("alarms", out, brokers=[spec.brokers], topic=spec.alarms, add_config={"linger.ms": "0"})
    run_main(flow)


if __name__ == "__main__":
    run(ChildSpec.read(Path(sys.argv[1])))
