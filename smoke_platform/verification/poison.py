"""Messages that are no readings, each with the reason it must be rejected for.

The reasons stand here by construction, written down apart from the parser, so that a proof compares two
opinions and not one with itself.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from smoke_platform.domain.readings import RejectReason


def _good(chance: random.Random) -> dict[str, Any]:
    return {
        "device_id": f"poison-{chance.randrange(50):03d}",
        "event_time": f"2022-06-0{chance.randint(1, 9)}T12:00:{chance.randrange(60):02d}Z",
        "temperature_c": round(chance.uniform(15, 30), 2),
        "humidity_pct": round(chance.uniform(20, 80), 2),
        "pm2_5": round(chance.uniform(0, 20), 2),
    }


def _changed(chance: random.Random, **fields: Any) -> bytes:
    message = {**_good(chance), **fields}
    return json.dumps({name: value for name, value in message.items() if value is not ...}).encode()


#: reason -> ways in which a message comes to deserve it.
_WAYS: dict[RejectReason, tuple[Callable[[random.Random], bytes], ...]] = {
    RejectReason.NOT_JSON: (
        lambda chance: _changed(chance)[: chance.randint(1, 40)],
        lambda chance: chance.randbytes(chance.randint(1, 60)) + b"\xff",
        lambda _chance: b"",
        lambda chance: _changed(chance) + b"\n" + _changed(chance),
        lambda chance: _changed(chance).replace(b'"', b"'"),
    ),
    RejectReason.SCHEMA_VERSION: (
        lambda chance: _changed(chance, schema_version=2),
        lambda chance: _changed(chance, schema_version="one", device_id=...),
    ),
    RejectReason.MISSING_FIELD: (
        lambda chance: _changed(chance, device_id=...),
        lambda chance: _changed(chance, event_time=None),
        lambda chance: _changed(chance, temperature_c=..., humidity_pct=None, pm2_5=...),
        lambda chance: _changed(chance, device_id=..., temperature_c="hot"),
    ),
    RejectReason.WRONG_TYPE: (
        lambda chance: _changed(chance, temperature_c="21.5"),
        lambda chance: _changed(chance, humidity_pct=True),
        lambda chance: _changed(chance, device_id=17),
        lambda chance: _changed(chance, event_time="yesterday"),
        lambda chance: _changed(chance, event_time="2022-06-09T00:00:00"),
        lambda chance: json.dumps([_good(chance)]).encode(),
        lambda chance: _changed(chance, pm2_5={"value": 3}, temperature_c=9_999),
    ),
    RejectReason.NOT_FINITE: (
        lambda chance: _changed(chance, temperature_c=float("nan")),
        lambda chance: _changed(chance, pm2_5=float("inf")),
        lambda chance: _changed(chance).replace(b'"pm2_5": ', b'"pm10": 1, "nc0_5": 1e999, "pm2_5": '),
    ),
    RejectReason.OUT_OF_RANGE: (
        lambda chance: _changed(chance, temperature_c=9_999),
        lambda chance: _changed(chance, humidity_pct=-0.1),
        lambda chance: _changed(chance, pm2_5=100_000.5),
        lambda chance: _changed(chance, sequence=-1, event_time="1970-01-01T00:00:00Z"),
    ),
    RejectReason.TIMESTAMP: (
        lambda chance: _changed(chance, event_time="1999-12-31T23:59:59Z"),
        lambda chance: _changed(chance, event_time=0),
        lambda chance: _changed(chance, event_time="2999-01-01T00:00:00Z"),
        lambda chance: _changed(chance, event_time=1e17),
    ),
}


def poisoned_messages(count: int, seed: int) -> Iterator[tuple[bytes, RejectReason]]:
    """``count`` messages with the reason each deserves; every way of every reason comes up in turn."""
    chance = random.Random(seed)  # noqa: S311 - a seeded, repeatable choice, not a secret
    ways = [(reason, way) for reason, several in _WAYS.items() for way in several]
    for number in range(count):
        reason, way = ways[number % len(ways)]
        yield way(chance), reason
