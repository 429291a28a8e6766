"""Turns a request's body into readings, or into an answer that says what to mend.

Belongs here: decoding JSON quickly, the limits of a request, faults with field and remedy. Does not: what a reading
is (``domain.readings`` decides; nothing is checked twice here), scoring, HTTP routing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from smoke_platform.domain.readings import (
    ALL_SENSOR_NAMES,
    CANONICAL_NAME,
    SENSOR_NAMES,
    Reading,
    ReadingRejected,
    RejectReason,
    load_json,
    reading_from_mapping,
)

#: 1,000 readings under the dataset's long column names are about 0.4 MB.
LARGEST_BODY_BYTES = 2 * 1024 * 1024
#: One device's readings in a ``/predict``, and independent rows in a ``/predict/batch``.
MOST_READINGS = 1000
#: At most this many names are quoted in a warning, and so many characters of each.
_QUOTED_NAMES, _QUOTED_LENGTH = 8, 40

Floats = NDArray[np.float64]

_NAN = float("nan")
#: Stand-ins where a prediction's reading names no device or time: the same rules then judge the rest.
_ANONYMOUS: dict[str, Any] = {"device_id": "-"}
_UNDATED: dict[str, Any] = {"event_time": 1_000_000_000}
#: Without event times, a device's readings are taken to be this far apart.
ASSUMED_INTERVAL_S = 1.0

_REMEDIES: Mapping[RejectReason, str] = {
    RejectReason.NOT_JSON: "send a JSON object, or a list of them, in UTF-8; GET /predict/sample shows one",
    RejectReason.SCHEMA_VERSION: "leave schema_version out, or send the one that GET /sensors/schema names",
    RejectReason.MISSING_FIELD: "add the field; GET /sensors/schema lists names and aliases",
    RejectReason.WRONG_TYPE: "send the type that GET /sensors/schema gives for this field",
    RejectReason.NOT_FINITE: "leave out a sensor that was not measured, or send null",
    RejectReason.OUT_OF_RANGE: "check unit and wiring of the sensor; GET /sensors/schema gives the range",
    RejectReason.TIMESTAMP: "set the device's clock; times are ISO 8601 with a zone, or epoch seconds",
}


class RequestFault(Exception):
    """A request that cannot be answered as it is.

    Attributes:
        status: the HTTP status to answer with.
        reason: a short fixed word for programs.
        field: canonical name of the field at fault, or an empty string.
        detail: what was found.
        remedy: what to do about it.
        index: which reading of a list is at fault, from 0, or ``None``.
    """

    def __init__(
        self, status: int, reason: str, detail: str, remedy: str, *, field: str = "", index: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.field = field
        self.detail = detail
        self.remedy = remedy
        self.index = index

    def as_json(self) -> dict[str, Any]:
        """The object under ``error`` in an answer."""
        answer: dict[str, Any] = {
            "reason": self.reason,
            "field": self.field,
            "detail": printable(self.detail),
            "remedy": self.remedy,
        }
        if self.index is not None:
            answer["index"] = self.index
        return answer


def rejected(fault: ReadingRejected, index: int | None = None) -> RequestFault:
    """The answer to a reading that the domain rejects: 400 where it is not JSON, else 422."""
    status = 400 if fault.reason is RejectReason.NOT_JSON else 422
    return RequestFault(
        status, str(fault.reason), fault.detail, _REMEDIES[fault.reason], field=fault.field, index=index
    )


def printable(text: str) -> str:
    """``text`` such that it can always be written as UTF-8: lone surrogates become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def decode(body: bytes) -> Any:
    """The body's JSON, decided as ``domain.readings.load_json`` does.

    Raises:
        RequestFault: 400, where it is not JSON.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # The quick decoder knows no bare NaN; the careful one tells that from a body that is no JSON at all.
        return decode_carefully(body)


def decode_carefully(body: bytes) -> Any:
    """As ``decode``, by the domain's own decoder alone."""
    try:
        return load_json(body)
    except ReadingRejected as fault:
        raise rejected(fault) from None


def one_reading(message: Any, index: int | None = None) -> Reading:
    """A reading of which only the sensors are required; device and time are checked where they are given.

    Raises:
        RequestFault: 422, naming the field.
    """
    if isinstance(message, dict):
        if message.get("device_id") is None:
            message = {**message, **_ANONYMOUS}
        if message.get("event_time") is None and message.get("UTC") is None:
            message = {**message, **_UNDATED}
    try:
        return reading_from_mapping(message)
    except ReadingRejected as fault:
        raise rejected(fault, index) from None
    except OverflowError:
        # An integer of hundreds of digits is no double; the quick decoder lets it pass as an integer.
        raise rejected(
            ReadingRejected(RejectReason.NOT_FINITE, "", "a number is too large to be represented"), index
        ) from None


def count_checked(rows: list[Any]) -> list[Any]:
    """``rows``, if there are between 1 and ``MOST_READINGS`` of them.

    Raises:
        RequestFault: 422.
    """
    if not rows:
        raise RequestFault(422, "empty", "the list holds no reading", "send at least one reading")
    if len(rows) > MOST_READINGS:
        raise RequestFault(
            422,
            "too_many",
            f"{len(rows)} readings in one request; at most {MOST_READINGS} are taken",
            f"send them in requests of up to {MOST_READINGS}",
        )
    return rows


def sensor_row(reading: Reading) -> list[float]:
    """The sensors in the order of ``ALL_SENSOR_NAMES``, NaN where not measured."""
    get = reading.sensors.get
    return [get(name, _NAN) for name in ALL_SENSOR_NAMES]


def warnings_for(message: Any, reading: Reading) -> list[str]:
    """What the sender may not have meant, although the reading is valid."""
    warnings = []
    missing = [name for name in SENSOR_NAMES if name not in reading.sensors]
    if missing:
        warnings.append(f"not measured: {', '.join(missing)}")
    unknown = [name for name in message if name not in CANONICAL_NAME]
    if unknown:
        quoted = ", ".join(printable(str(name))[:_QUOTED_LENGTH] for name in unknown[:_QUOTED_NAMES])
        more = f" and {len(unknown) - _QUOTED_NAMES} more" if len(unknown) > _QUOTED_NAMES else ""
        warnings.append(f"unknown fields ignored: {quoted}{more}")
    return warnings


def has_time(message: Any) -> bool:
    """Whether a message gives its event time, under whichever name."""
    return isinstance(message, dict) and (message.get("event_time") is not None or message.get("UTC") is not None)


def device_series(rows: list[Any], readings: list[Reading]) -> tuple[Floats, Floats, int, list[str]]:
    """One device's readings as arrays, oldest first.

    Args:
        rows: the messages, as they came.
        readings: the same, parsed.

    Returns:
        Event times in epoch seconds, float64 (n,); sensors, float64 (n, 13); index of the latest; warnings.

    Raises:
        RequestFault: 422, where they are of several devices or only some of them have a time.
    """
    devices = {reading.device_id for reading in readings}
    if len(devices) > 1:
        raise RequestFault(
            422,
            "several_devices",
            f"the list holds readings of {len(devices)} devices",
            "send one device's readings, or independent readings to POST /predict/batch",
            field="device_id",
        )
    dated = [has_time(row) for row in rows]
    sensors = np.array([sensor_row(reading) for reading in readings], dtype=np.float64)
    if not any(dated):
        times = np.arange(len(rows), dtype=np.float64) * ASSUMED_INTERVAL_S
        assumed = f"no event_time: readings taken to be {ASSUMED_INTERVAL_S:g} s apart, oldest first"
        return times, sensors, len(rows) - 1, [assumed]
    if not all(dated):
        raise RequestFault(
            422,
            str(RejectReason.MISSING_FIELD),
            "some readings of the list have an event_time and this one has none",
            "give every reading an event_time, or none",
            field="event_time",
            index=dated.index(False),
        )
    times = np.array([reading.event_time.timestamp() for reading in readings], dtype=np.float64)
    if (np.diff(times) >= 0).all():
        return times, sensors, len(rows) - 1, []
    order = np.argsort(times, kind="stable")
    sorted_note = "readings were not in the order of event_time; they were sorted"
    return times[order], sensors[order], int(order[-1]), [sorted_note]
