"""The reading: what a smoke detector reports, about once a second. The one definition of its schema.

Belongs here: fields, units, physical ranges, accepted aliases, the closed list of reject reasons, and the
decision whether one message is a reading. Does not: vectorised decoding of whole batches
(``domain.decoding``, which is tested to decide alike), storage types (``adapters.lake``), model features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")

SCHEMA_VERSION = 1

#: A reading from before this moment is taken for a broken clock (no device of this kind existed).
EARLIEST_EVENT_TIME = datetime(2000, 1, 1, tzinfo=UTC)
#: A device's clock may run ahead of the broker's by this much; old readings (replays) are always welcome.
LARGEST_CLOCK_LEAD = timedelta(minutes=5)
LONGEST_DEVICE_ID = 128
#: 2**53: the largest integer that JSON readers in other languages keep exactly.
LARGEST_SEQUENCE = 9_007_199_254_740_992


@dataclass(frozen=True, slots=True)
class Sensor:
    """One measured quantity: canonical name, unit, closed range of physically possible values, aliases."""

    name: str
    unit: str
    low: float
    high: float
    description: str
    aliases: tuple[str, ...] = ()


#: The twelve sensors every device of the public dataset has. The ranges say what is physically possible,
#: not what is normal: every row of that dataset lies within them.
SENSORS: tuple[Sensor, ...] = (
    Sensor("temperature_c", "degC", -60.0, 300.0, "Air temperature", ("Temperature[C]",)),
    Sensor("humidity_pct", "%RH", 0.0, 100.0, "Relative humidity", ("Humidity[%]",)),
    Sensor("tvoc_ppb", "ppb", 0.0, 65_535.0, "Total volatile organic compounds", ("TVOC[ppb]",)),
    Sensor("eco2_ppm", "ppm", 0.0, 65_535.0, "CO2 equivalent, computed by the gas sensor", ("eCO2[ppm]",)),
    Sensor("raw_h2", "raw", 0.0, 65_535.0, "Raw hydrogen signal, uncompensated", ("Raw H2",)),
    Sensor("raw_ethanol", "raw", 0.0, 65_535.0, "Raw ethanol signal, uncompensated", ("Raw Ethanol",)),
    Sensor("pressure_hpa", "hPa", 300.0, 1_100.0, "Air pressure", ("Pressure[hPa]",)),
    Sensor("pm1_0", "ug/m3", 0.0, 100_000.0, "Particulate matter below 1.0 um", ("PM1.0",)),
    Sensor("pm2_5", "ug/m3", 0.0, 100_000.0, "Particulate matter below 2.5 um", ("PM2.5",)),
    Sensor("nc0_5", "1/cm3", 0.0, 100_000.0, "Particle number concentration below 0.5 um", ("NC0.5",)),
    Sensor("nc1_0", "1/cm3", 0.0, 100_000.0, "Particle number concentration below 1.0 um", ("NC1.0",)),
    Sensor("nc2_5", "1/cm3", 0.0, 100_000.0, "Particle number concentration below 2.5 um", ("NC2.5",)),
)
#: Fitted in some devices only.
CARBON_MONOXIDE = Sensor("co_ppm", "ppm", 0.0, 100_000.0, "Carbon monoxide", ("CO[ppm]",))

ALL_SENSORS: tuple[Sensor, ...] = (*SENSORS, CARBON_MONOXIDE)
SENSOR_NAMES: tuple[str, ...] = tuple(sensor.name for sensor in SENSORS)
ALL_SENSOR_NAMES: tuple[str, ...] = tuple(sensor.name for sensor in ALL_SENSORS)
SENSOR_BY_NAME: Mapping[str, Sensor] = {sensor.name: sensor for sensor in ALL_SENSORS}

#: Every name under which a field may enter -> its canonical name.
CANONICAL_NAME: Mapping[str, str] = {
    **{alias: sensor.name for sensor in ALL_SENSORS for alias in (sensor.name, *sensor.aliases)},
    "device_id": "device_id",
    "event_time": "event_time",
    "UTC": "event_time",
    "sequence": "sequence",
    "CNT": "sequence",
    "fire_alarm": "fire_alarm",
    "Fire Alarm": "fire_alarm",
    "source": "source",
    "schema_version": "schema_version",
}


class Source(StrEnum):
    """Where a reading comes from; training and history choose by it."""

    DEVICE = "device"
    CSV = "csv"
    SIMULATOR = "simulator"
    MQTT = "mqtt"


class RejectReason(StrEnum):
    """Why a message is no reading. Of several that apply, the first in this order is reported."""

    NOT_JSON = "not_json"
    SCHEMA_VERSION = "schema_version"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"
    OUT_OF_RANGE = "out_of_range"
    TIMESTAMP = "timestamp"


_PRECEDENCE = {reason: place for place, reason in enumerate(RejectReason)}


class ReadingRejected(ValueError):
    """A message that is no reading.

    Attributes:
        reason: one of the closed list.
        field: canonical name of the field at fault, or an empty string for the message as a whole.
        detail: what was found and what is expected instead.
    """

    def __init__(self, reason: RejectReason, field_name: str, detail: str) -> None:
        super().__init__(f"{reason}: {field_name + ': ' if field_name else ''}{detail}")
        self.reason = reason
        self.field = field_name
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Reading:
    """One report of one device. An absent sensor was not measured (``None``)."""

    device_id: str
    event_time: datetime
    sensors: Mapping[str, float] = field(default_factory=dict)
    fire_alarm: bool | None = None
    sequence: int | None = None
    source: Source = Source.DEVICE
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """The message as it travels: UTF-8 JSON, canonical names, absent fields left out."""
        message: dict[str, Any] = {
            "device_id": self.device_id,
            "event_time": format_event_time(self.event_time),
            **{name: value for name, value in self.sensors.items() if value is not None},
        }
        if self.fire_alarm is not None:
            message["fire_alarm"] = self.fire_alarm
        if self.sequence is not None:
            message["sequence"] = self.sequence
        message["source"] = str(self.source)
        message["schema_version"] = self.schema_version
        return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()


def format_event_time(moment: datetime) -> str:
    """``2022-06-09T00:08:51Z``, with microseconds only where there are any."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


class _NonFinite:
    """Stands for a bare NaN or Infinity token, which is not JSON but what many devices send."""

    def __repr__(self) -> str:
        return "NaN"


def parse_reading(value: bytes | None, *, append_time: datetime | None = None) -> Reading:
    """Decides whether one message is a reading.

    Args:
        value: the message's bytes; ``None`` (a tombstone) is no reading.
        append_time: when the broker appended it (UTC); without it "too far in the future" is not judged.

    Raises:
        ReadingRejected: with the first reason of ``RejectReason`` that applies.
    """
    return reading_from_mapping(load_json(value), append_time=append_time)


def load_json(value: bytes | None) -> Any:
    """The parsed message; bare NaN and Infinity tokens become markers that are rejected as not finite.

    Raises:
        ReadingRejected: reason ``not_json``.
    """
    if value is None:
        raise ReadingRejected(RejectReason.NOT_JSON, "", "the message has no value")
    try:
        return json.loads(
            value.decode("utf-8"),
            parse_constant=lambda _token: _NonFinite(),
            parse_int=lambda digits: int(digits) if len(digits) <= 20 else float(digits),
        )
    except UnicodeDecodeError as error:
        raise ReadingRejected(RejectReason.NOT_JSON, "", f"not UTF-8: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise ReadingRejected(RejectReason.NOT_JSON, "", f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ReadingRejected(RejectReason.NOT_JSON, "", "nested too deeply") from None


def reading_from_mapping(message: Any, *, append_time: datetime | None = None) -> Reading:
    """As ``parse_reading``, for a message that is already parsed (HTTP, CSV).

    Raises:
        ReadingRejected: with the first reason of ``RejectReason`` that applies.
    """
    if not isinstance(message, Mapping):
        raise ReadingRejected(RejectReason.WRONG_TYPE, "", f"a reading is a JSON object, not {_type_name(message)}")
    faults: list[ReadingRejected] = []
    fields = _canonical_fields(message, faults)

    version = fields.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        raise ReadingRejected(
            RejectReason.SCHEMA_VERSION,
            "schema_version",
            f"{version!r}: this platform reads {SCHEMA_VERSION}",
        )

    device_id = _take(faults, "", _device_id, fields.get("device_id"))
    event_time = _take(faults, EARLIEST_EVENT_TIME, _event_time, fields.get("event_time"), append_time)
    sensors = sensor_values(fields, faults)
    if not any(fields.get(name) is not None for name in ALL_SENSOR_NAMES):
        faults.append(_missing("sensors", f"at least one of {', '.join(ALL_SENSOR_NAMES)}"))
    label = _take(faults, None, _label, fields.get("fire_alarm"))
    sequence = _take(faults, None, _sequence, fields.get("sequence"))
    source = _take(faults, Source.DEVICE, _source, fields.get("source"))

    if faults:
        raise min(faults, key=lambda fault: _PRECEDENCE[fault.reason])
    return Reading(device_id, event_time, sensors, label, sequence, source)


def sensor_values(fields: Mapping[str, Any], faults: list[ReadingRejected]) -> dict[str, float]:
    """The measured sensors of a message with canonical names; whatever is wrong is added to ``faults``."""
    values: dict[str, float] = {}
    for sensor in ALL_SENSORS:
        raw = fields.get(sensor.name)
        if raw is None:
            continue
        try:
            values[sensor.name] = _number(sensor, raw)
        except ReadingRejected as fault:
            faults.append(fault)
    return values


def first_fault(faults: Iterable[ReadingRejected]) -> ReadingRejected | None:
    """Of several faults the one to report, or ``None`` where there is none."""
    return min(faults, key=lambda fault: _PRECEDENCE[fault.reason], default=None)


def _canonical_fields(message: Mapping[Any, Any], faults: list[ReadingRejected]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in message.items():
        canonical = CANONICAL_NAME.get(name)
        if canonical is None or value is None:
            continue  # unknown fields are a newer device's business; null is "not measured"
        if canonical in fields and fields[canonical] != value:
            faults.append(
                ReadingRejected(
                    RejectReason.WRONG_TYPE, canonical, f"given twice with different values, once as {name!r}"
                )
            )
            continue
        fields[canonical] = value
    return fields


def _take(faults: list[ReadingRejected], default: T, parse: Callable[..., T], *arguments: Any) -> T:
    try:
        return parse(*arguments)
    except ReadingRejected as fault:
        faults.append(fault)
        return default


def _missing(name: str, expected: str) -> ReadingRejected:
    return ReadingRejected(RejectReason.MISSING_FIELD, name, f"missing; expected {expected}")


def _wrong_type(name: str, value: Any, expected: str) -> ReadingRejected:
    return ReadingRejected(RejectReason.WRONG_TYPE, name, f"{_type_name(value)} instead of {expected}")


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    return "NaN" if isinstance(value, _NonFinite) else type(value).__name__


def _refuse_non_finite(name: str, value: Any) -> None:
    if isinstance(value, _NonFinite):
        raise ReadingRejected(RejectReason.NOT_FINITE, name, "not a finite number")


def _device_id(value: Any) -> str:
    if value is None or value == "":
        raise _missing("device_id", "a non-empty string")
    _refuse_non_finite("device_id", value)
    if not isinstance(value, str):
        raise _wrong_type("device_id", value, "a string")
    if len(value) > LONGEST_DEVICE_ID or not value.isprintable() or value != value.strip():
        raise ReadingRejected(
            RejectReason.WRONG_TYPE,
            "device_id",
            f"at most {LONGEST_DEVICE_ID} printable characters without space at the ends",
        )
    return value


def _event_time(value: Any, append_time: datetime | None) -> datetime:
    if value is None:
        raise _missing("event_time", "ISO 8601 with a zone, or epoch seconds")
    _refuse_non_finite("event_time", value)
    if isinstance(value, str):
        moment = _iso_time(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        moment = _epoch_time(value)
    elif isinstance(value, datetime) and value.tzinfo is not None:
        moment = value.astimezone(UTC)
    else:
        raise _wrong_type("event_time", value, "ISO 8601 with a zone, or epoch seconds")
    if moment < EARLIEST_EVENT_TIME:
        raise ReadingRejected(
            RejectReason.TIMESTAMP, "event_time", f"{moment.isoformat()} is before {EARLIEST_EVENT_TIME.year}"
        )
    if append_time is not None and moment > append_time + LARGEST_CLOCK_LEAD:
        raise ReadingRejected(
            RejectReason.TIMESTAMP,
            "event_time",
            f"{moment.isoformat()} is more than {LARGEST_CLOCK_LEAD} after it arrived: set the device's clock",
        )
    return moment


def _iso_time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ReadingRejected(RejectReason.WRONG_TYPE, "event_time", f"{text[:40]!r} is not ISO 8601") from None
    if moment.tzinfo is None:
        raise ReadingRejected(
            RejectReason.WRONG_TYPE, "event_time", f"{text[:40]!r} has no zone: end it with Z for UTC"
        )
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ReadingRejected(RejectReason.TIMESTAMP, "event_time", f"{text[:40]} is no usable time") from None


def _epoch_time(seconds: float) -> datetime:
    if isinstance(seconds, float) and not math.isfinite(seconds):
        raise ReadingRejected(RejectReason.NOT_FINITE, "event_time", "not a finite number")
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise ReadingRejected(RejectReason.TIMESTAMP, "event_time", f"{seconds} is no usable time") from None


def _number(sensor: Sensor, value: Any) -> float:
    _refuse_non_finite(sensor.name, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(sensor.name, value, f"a number in {sensor.unit}")
    number = float(value)
    if not math.isfinite(number):
        raise ReadingRejected(RejectReason.NOT_FINITE, sensor.name, "not a finite number")
    if not sensor.low <= number <= sensor.high:
        raise ReadingRejected(
            RejectReason.OUT_OF_RANGE,
            sensor.name,
            f"{number:g} {sensor.unit} is outside {sensor.low:g}..{sensor.high:g}",
        )
    return number


def _label(value: Any) -> bool | None:
    _refuse_non_finite("fire_alarm", value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value in ("0", "1"):
        return value == "1"
    raise _wrong_type("fire_alarm", value, "true, false, 0 or 1")


def _sequence(value: Any) -> int | None:
    if value is None:
        return None
    _refuse_non_finite("sequence", value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type("sequence", value, "a whole number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ReadingRejected(RejectReason.NOT_FINITE, "sequence", "not a finite number")
    if value != int(value):
        raise _wrong_type("sequence", value, "a whole number")
    if not 0 <= value <= LARGEST_SEQUENCE:
        raise ReadingRejected(RejectReason.OUT_OF_RANGE, "sequence", f"outside 0..{LARGEST_SEQUENCE}")
    return int(value)


def _source(value: Any) -> Source:
    if value is None:
        return Source.DEVICE
    _refuse_non_finite("source", value)
    try:
        return Source(value)
    except ValueError:
        raise ReadingRejected(
            RejectReason.WRONG_TYPE, "source", f"{value!r} instead of one of {', '.join(Source)}"
        ) from None


def json_schema() -> dict[str, Any]:
    """The reading as a JSON Schema (draft 2020-12), for device makers and for the docs."""
    sensors = {
        sensor.name: {
            "type": ["number", "null"],
            "minimum": sensor.low,
            "maximum": sensor.high,
            "description": f"{sensor.description} [{sensor.unit}]",
        }
        for sensor in ALL_SENSORS
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Reading",
        "type": "object",
        "required": ["device_id", "event_time"],
        "anyOf": [{"required": [sensor.name]} for sensor in ALL_SENSORS],
        "properties": {
            "device_id": {"type": "string", "minLength": 1, "maxLength": LONGEST_DEVICE_ID},
            "event_time": {
                "description": "ISO 8601 with a zone, or epoch seconds",
                "anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}],
            },
            **sensors,
            "fire_alarm": {"enum": [True, False, 0, 1, "0", "1", None], "description": "Label, where known"},
            "sequence": {"type": ["integer", "null"], "minimum": 0, "maximum": LARGEST_SEQUENCE},
            "source": {"enum": [*map(str, Source), None]},
            "schema_version": {"const": SCHEMA_VERSION},
        },
    }
