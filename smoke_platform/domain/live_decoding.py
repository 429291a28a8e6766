"""Decoding of the few messages that one poll of a live stream brings, in the very terms of ``readings.parse_reading``.

Belongs here: the short path into arrays and the rule for when it may decide. Does not: whole batches into frames
(``domain.decoding``), what a reading is (``domain.readings``).

The vectorised reader of ``domain.decoding`` costs milliseconds a call, whatever the number of messages, and its library
a good part of a second at start: longer than an alarm may take. Here each message is read into a closed structure; what
that does not settle beyond doubt is left to ``parse_reading``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import numpy as np
import numpy.typing as npt

from smoke_platform.domain.readings import (
    ALL_SENSOR_NAMES,
    ALL_SENSORS,
    EARLIEST_EVENT_TIME,
    LARGEST_CLOCK_LEAD,
    LARGEST_SEQUENCE,
    LONGEST_DEVICE_ID,
    SCHEMA_VERSION,
    Reading,
    ReadingRejected,
    Source,
    parse_reading,
)

#: The form in which nearly all devices write time; any other is left to ``datetime.fromisoformat``. The digits are
#: spelt out because chrono takes fewer of them and second 60, which Python does not.
USUAL_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9](\.[0-9]{1,6})?Z$"
SOURCES = sorted(map(str, Source))
_LOWS = np.array([sensor.low for sensor in ALL_SENSORS])
_HIGHS = np.array([sensor.high for sensor in ALL_SENSORS])
_EARLIEST_S = EARLIEST_EVENT_TIME.timestamp()
_LEAD_S = LARGEST_CLOCK_LEAD.total_seconds()
_is_usual_time = re.compile(USUAL_TIME).fullmatch


@dataclass(frozen=True, slots=True)
class ReadingArrays:
    """Readings as arrays, each of length n.

    Attributes:
        rows: int64, the message's index in the batch, rising.
        device_ids: text.
        event_time_s: float64, epoch seconds.
        sensors: float64 ``[n, 13]`` in the order of ``ALL_SENSOR_NAMES``; NaN means not measured.
    """

    rows: npt.NDArray[np.int64]
    device_ids: list[str]
    event_time_s: npt.NDArray[np.float64]
    sensors: npt.NDArray[np.float64]


def decode_arrays(
    values: Sequence[bytes | None], append_times_ms: Sequence[int]
) -> tuple[ReadingArrays, list[tuple[int, ReadingRejected]]]:
    """Decides for each message whether it is a reading, as ``parse_reading`` would, with next to no fixed cost.

    Args:
        values: the messages' bytes; ``None`` is a tombstone and no reading.
        append_times_ms: when the broker appended each, in epoch milliseconds; negative where unknown.

    Returns:
        The readings in the order of ``values``, and the rejected messages as (index, why), in the same order.
    """
    rows: list[int] = []
    ids: list[str] = []
    times: list[float] = []
    measured: list[tuple[float | None, ...]] = []
    open_places: list[int] = []
    for place, value in enumerate(values):
        try:
            found = _LEAN.decode(value)  # type: ignore[arg-type] # a tombstone raises: that is its way out
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
            open_places.append(place)
            continue
        device_id, text = found.device_id, found.event_time
        if not _lean_is_sure(found) or not usual_device_id(device_id) or not _is_usual_time(text):
            open_places.append(place)
            continue
        try:
            moment = datetime.fromisoformat(text).timestamp()
        except ValueError:
            open_places.append(place)
            continue
        rows.append(place)
        ids.append(device_id)
        times.append(moment)
        measured.append(_sensors_of(found))
    sensors = np.array(measured, dtype=np.float64).reshape(len(rows), len(ALL_SENSOR_NAMES))
    moments = np.array(times, dtype=np.float64)
    places = np.array(rows, dtype=np.int64)
    appended = np.array([append_times_ms[row] for row in rows], dtype=np.float64)
    sure = (
        (moments >= _EARLIEST_S)
        # A millisecond short of the limit, so that no rounding of these numbers can decide.
        & ((appended < 0) | (moments <= appended / 1000.0 + _LEAD_S - 1e-3))
        & ~np.isnan(sensors).all(axis=1)
        & ~((sensors < _LOWS) | (sensors > _HIGHS)).any(axis=1)
    )
    if not sure.all():
        open_places += places[~sure].tolist()
        ids = [device_id for device_id, good in zip(ids, sure.tolist(), strict=True) if good]
        places, moments, sensors = places[sure], moments[sure], sensors[sure]
    decoded = ReadingArrays(places, ids, moments, sensors)
    return (decoded, []) if not open_places else _with_open(decoded, sorted(open_places), values, append_times_ms)


class _Lean(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message as ``decode_arrays`` reads it; what else is in it leaves it open."""

    device_id: str
    event_time: str
    temperature_c: float | None = None
    humidity_pct: float | None = None
    tvoc_ppb: float | None = None
    eco2_ppm: float | None = None
    raw_h2: float | None = None
    raw_ethanol: float | None = None
    pressure_hpa: float | None = None
    pm1_0: float | None = None
    pm2_5: float | None = None
    nc0_5: float | None = None
    nc1_0: float | None = None
    nc2_5: float | None = None
    co_ppm: float | None = None
    fire_alarm: bool | None = None
    sequence: int | None = None
    schema_version: int = SCHEMA_VERSION
    source: str | None = None


_sensors_of = operator.attrgetter(*ALL_SENSOR_NAMES)
_LEAN = msgspec.json.Decoder(_Lean)


def _lean_is_sure(found: _Lean) -> bool:
    return (
        found.schema_version == SCHEMA_VERSION
        and (found.source is None or found.source in SOURCES)
        and (found.sequence is None or 0 <= found.sequence <= LARGEST_SEQUENCE)
    )


def _with_open(
    decoded: ReadingArrays, open_places: list[int], values: Sequence[bytes | None], append_times_ms: Sequence[int]
) -> tuple[ReadingArrays, list[tuple[int, ReadingRejected]]]:
    """Decides the messages that the short path left open, one by one, and puts them in their places."""
    rejects: list[tuple[int, ReadingRejected]] = []
    found: list[tuple[int, Reading]] = []
    for place in open_places:
        try:
            found.append((place, parse_reading(values[place], append_time=append_moment(append_times_ms[place]))))
        except ReadingRejected as reject:
            rejects.append((place, reject))
    if not found:
        return decoded, rejects
    rows = np.concatenate([decoded.rows, [place for place, _ in found]]).astype(np.int64)
    order = np.argsort(rows, kind="stable")
    ids = decoded.device_ids + [reading.device_id for _, reading in found]
    measured = [[reading.sensors.get(name) for name in ALL_SENSOR_NAMES] for _, reading in found]
    sensors = np.concatenate([decoded.sensors, np.array(measured, dtype=np.float64)])
    moments = np.concatenate([decoded.event_time_s, [reading.event_time.timestamp() for _, reading in found]])
    return ReadingArrays(rows[order], [ids[place] for place in order.tolist()], moments[order], sensors[order]), rejects


def usual_device_id(device_id: str) -> bool:
    """Whether a device's id is legal beyond doubt."""
    return 0 < len(device_id) <= LONGEST_DEVICE_ID and device_id.isprintable() and device_id == device_id.strip()


def append_moment(append_time_ms: int) -> datetime | None:
    """A broker's append time as a moment, ``None`` where it is negative (unknown)."""
    if append_time_ms < 0:
        return None
    seconds, milliseconds = divmod(append_time_ms, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=milliseconds * 1000)
