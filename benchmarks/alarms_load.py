"""The load of the alarm suite: one process that sends readings at an even rate and notes when each is acknowledged.

Every device reports calmly until its turn comes; from then on it reports a steep fire, so that each device raises one
fire alarm and the turns are spread evenly over the measured time. Event times begin in the past and run at one reading
a second for each device, however fast the readings are sent, so that what needs seconds of a device's clock
(persistence, baselines) is the same at every rate.

Started as ``python -m benchmarks.alarms_load SPEC.json``; prints one line of JSON when it is done.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from smoke_platform.verification.scenes import Scenes

#: The load wakes up this often, and sends what has fallen due.
PULSE_S = 0.002


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to send.

    Attributes:
        rate: readings a second, over all devices.
        warm_seconds: before the first fire; fires then begin over ``fire_seconds``, and the load goes on for
            ``tail_seconds`` so that the last of them completes.
        fires: how many devices burn; at most ``devices``.
        acknowledged: file (``.npy``) for int64 ``[n, 3]``: partition, offset, nanoseconds of the wall clock.
        go: the load begins when this file exists, so that what is measured has started.
    """

    brokers: str
    topic: str
    rate: int
    devices: int
    warm_seconds: float
    fire_seconds: float
    tail_seconds: float
    fires: int
    seed: int
    acknowledged: str
    go: str = ""
    linger_ms: float = 5.0

    @property
    def seconds(self) -> float:
        return self.warm_seconds + self.fire_seconds + self.tail_seconds

    @property
    def count(self) -> int:
        return round(self.rate * self.seconds)


def device_name(number: int) -> str:
    return f"bench-{number:05d}"


def messages(spec: LoadSpec) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each reading in the order in which they are sent: the devices in turn, again and again."""
    chance = np.random.default_rng(spec.seed)
    per_device = spec.count // spec.devices + 1
    # A past that is long enough for all readings: none may lie in the future.
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=per_device + 60)
    chosen = chance.permutation(spec.devices)[: spec.fires]
    begins = np.full(spec.devices, np.iinfo(np.int64).max)
    first, span = spec.rate * spec.warm_seconds, spec.rate * spec.fire_seconds
    begins[chosen] = (first + span * (np.arange(len(chosen)) + 0.5) / max(1, len(chosen))).astype(np.int64)
    scenes = Scenes(spec.seed)
    names = [device_name(number) for number in range(spec.devices)]
    for number in range(spec.count):
        turn, device = divmod(number, spec.devices)
        moment = start + timedelta(seconds=turn)
        burning = number >= begins[device]
        yield names[device].encode(), scenes.message(names[device], moment, turn, burning=burning, salt=device)


def send(spec: LoadSpec) -> dict[str, Any]:
    """Sends it all, evenly, and writes the acknowledgements; what the load itself was like is returned."""
    from confluent_kafka import KafkaError, Message, Producer

    ready = list(messages(spec))
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection in the middle would hold the load back, which is not what is measured
    acknowledged = np.zeros((len(ready), 3), dtype=np.int64)
    done = 0
    failed: list[str] = []
    now_ns = time.time_ns

    def note(error: KafkaError | None, message: Message) -> None:
        nonlocal done
        if error is not None:
            failed.append(str(error))
            return
        acknowledged[done] = message.partition(), message.offset(), now_ns()
        done += 1

    producer = Producer(
        {
            "bootstrap.servers": spec.brokers,
            "linger.ms": spec.linger_ms,
            "acks": "all",
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 1_000_000,
            "on_delivery": note,
        }
    )
    producer.list_topics(spec.topic, timeout=30)
    while spec.go and not Path(spec.go).exists():
        time.sleep(0.01)
    clock, pause = time.perf_counter, 1.0 / spec.rate
    began = clock()
    late_s = np.zeros(len(ready))
    produce, poll = producer.produce, producer.poll
    for number, (key, value) in enumerate(ready):
        due = began + number * pause
        while (ahead := due - clock()) > 0:
            poll(0)
            # What falls due meanwhile goes together: waking for each would take the cores from what is measured.
            time.sleep(max(ahead, PULSE_S))
        late_s[number] = -ahead
        produce(spec.topic, value, key)
    sent_s = clock() - began
    producer.flush(60)
    np.save(spec.acknowledged, acknowledged[:done])
    return {
        "sent": len(ready),
        "acknowledged": done,
        "failed": failed[:3],
        "rate": len(ready) / sent_s,
        "late_p99_ms": float(np.percentile(late_s, 99) * 1e3),
        "late_max_ms": float(late_s.max() * 1e3),
        "message_bytes": sum(len(value) for _, value in ready[:1000]) / min(1000, len(ready)),
    }


def write_spec(spec: LoadSpec, file: Path) -> None:
    file.write_text(json.dumps(asdict(spec)), encoding="utf-8")


if __name__ == "__main__":
    print(json.dumps(send(LoadSpec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))))
