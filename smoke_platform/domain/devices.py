"""The device registry: what is known of a device beyond its readings.

Belongs here: a device's entry, its defaults, the entry as a message of the compacted topic ``smoke_devices`` (keyed by
device id), which of two entries holds, entries as lines of a CSV file. Does not: where entries are kept
(``adapters.device_registry``), alarms.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, CANONICAL_NAME, LONGEST_DEVICE_ID, SENSOR_NAMES

#: A device of which nothing is known reports this often, in seconds.
DEFAULT_INTERVAL_S = 1.0
LONGEST_INTERVAL_S = 86_400.0
#: Longest site, room or type, in characters.
LONGEST_TEXT = 200

FIRST_SEEN = "first_seen"
OPERATOR = "operator"
IMPORT = "import"


class Device(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """One device's entry.

    Attributes:
        device_id: as in its readings.
        site, room: where it hangs; empty: unknown.
        type: maker's name of the model; free text.
        interval_s: how often it reports, in seconds.
        sensors: what is fitted, by the readings' names.
        in_service: a device that is not raises no alarm (being built in, being repaired, given away).
        source: who entered it: ``first_seen`` by its first reading, ``operator`` or ``import``.
        updated_at: epoch seconds.
    """

    device_id: str
    site: str = ""
    room: str = ""
    type: str = ""
    interval_s: float = DEFAULT_INTERVAL_S
    sensors: tuple[str, ...] = SENSOR_NAMES
    in_service: bool = True
    source: str = "first_seen"
    updated_at: float = 0.0


_DECODER = msgspec.json.Decoder(Device)


def encode(device: Device) -> bytes:
    """The entry as it travels."""
    return msgspec.json.encode(device)


def decode(value: bytes) -> Device:
    """The entry that ``encode`` wrote.

    Raises:
        SmokeError: naming the field at fault.
    """
    try:
        device = _DECODER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SmokeError(f"not a valid device entry: {error}", "see docs/devices.md for the fields") from None
    check(device)
    return device


def decode_message(key: bytes | None, value: bytes | None) -> tuple[str, Device | None]:
    """(device id, entry) of one message of the topic; no entry where the message removes the device.

    Raises:
        SmokeError: naming what is wrong, a key that names another device included: compaction goes by the key.
    """
    try:
        device_id = (key or b"").decode()
    except UnicodeDecodeError:
        raise SmokeError("the key of a device entry is no text") from None
    if not device_id:
        raise SmokeError("a device entry without a key", "its key is the device id")
    if value is None:
        return device_id, None
    device = decode(value)
    if device.device_id != device_id:
        raise SmokeError(f"device_id: the entry is of {device.device_id!r}, its key names {device_id!r}")
    return device_id, device


def check(device: Device) -> None:
    """Raises ``SmokeError`` naming the first field that holds no legal value."""
    if not 0 < len(device.device_id) <= LONGEST_DEVICE_ID:
        raise SmokeError(f"device_id: must have 1 to {LONGEST_DEVICE_ID} characters")
    for name in ("site", "room", "type"):
        if len(getattr(device, name)) > LONGEST_TEXT:
            raise SmokeError(f"{name}: longer than {LONGEST_TEXT} characters")
    if not 0 < device.interval_s <= LONGEST_INTERVAL_S:
        raise SmokeError(f"interval_s: {device.interval_s} is not between 0 and {LONGEST_INTERVAL_S:g} seconds")
    unknown = sorted(set(device.sensors) - set(ALL_SENSOR_NAMES))
    if unknown:
        raise SmokeError(f"sensors: unknown {', '.join(unknown)}", f"use {', '.join(ALL_SENSOR_NAMES)}")
    if not device.sensors:
        raise SmokeError("sensors: a device has at least one", f"use {', '.join(ALL_SENSOR_NAMES)}")


def first_seen(device_id: str, sensors: Iterable[str], at: float) -> Device:
    """The entry of a device that nobody has entered: defaults, and the sensors of its first reading.

    Args:
        sensors: canonical names; none means that nothing is known, which gives the usual ones.
        at: epoch seconds.
    """
    seen = set(sensors)
    fitted = tuple(name for name in ALL_SENSOR_NAMES if name in seen) or SENSOR_NAMES
    return Device(device_id=device_id, sensors=fitted, source=FIRST_SEEN, updated_at=at)


# -- which entry holds -----------------------------------------------------------------------------------


def holding(known: Device | None, later: Device | None) -> Device | None:
    """Which of two entries of one device holds: the later one in the log, but ``first_seen`` never against another.

    Every reader folds the log with it, so that an entry by first reading that was under way while a person entered the
    device changes nothing.

    Args:
        known: what held so far, ``None`` for nothing.
        later: what comes after it in the log, ``None`` where the device is removed.
    """
    if later is None or known is None:
        return later
    return known if later.source == FIRST_SEEN and known.source != FIRST_SEEN else later


def worth_writing(known: Device | None, entry: Device) -> bool:
    """Whether an entry is to be written at all, given what is known: ``first_seen`` only where there is nothing."""
    return known is None or entry.source != FIRST_SEEN


@dataclass(slots=True)
class Roll:
    """The devices of a topic as far as it was read. Entries of one device must come in the order of the log.

    Attributes:
        devices: device id -> the entry that holds.
        overlaid: device id -> the entry that holds although a ``first_seen`` one stands after it in the log. Compaction
            would keep that one alone, so whoever writes to the topic writes these again.
    """

    devices: dict[str, Device]
    overlaid: dict[str, Device]

    @classmethod
    def empty(cls) -> Roll:
        return cls({}, {})

    def take(self, device_id: str, entry: Device | None) -> bool:
        """Notes the next entry of the log; says whether anything changed."""
        known = self.devices.get(device_id)
        held = holding(known, entry)
        if held is None:
            self.overlaid.pop(device_id, None)
            return self.devices.pop(device_id, None) is not None
        if held is entry:
            self.overlaid.pop(device_id, None)
        else:
            self.overlaid[device_id] = held
        self.devices[device_id] = held
        return held != known


# -- entries by hand -------------------------------------------------------------------------------------


def changed(known: Device | None, device_id: str, changes: Mapping[str, Any], *, source: str, at: float) -> Device:
    """The entry after ``changes`` (field -> value); what they do not name stays, or is the default.

    Raises:
        SmokeError: naming the field at fault.
    """
    device = msgspec.structs.replace(known or Device(device_id=device_id), **changes, source=source, updated_at=at)
    check(device)
    return device


def parse_sensors(text: str) -> tuple[str, ...]:
    """Sensors from a list with commas, semicolons or blanks between them, in the usual order.

    >>> parse_sensors("pm2_5, temperature_c")
    ('temperature_c', 'pm2_5')

    Raises:
        SmokeError: for an unknown one, listing the legal ones.
    """
    # The data set's names hold blanks ("Raw H2"), so they are looked for where nothing but commas separates.
    parts = [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]
    named = [name for part in parts for name in ([part] if part in CANONICAL_NAME else part.split())]
    found = {CANONICAL_NAME.get(name, name) for name in named}
    unknown = sorted(found - set(ALL_SENSOR_NAMES))
    if unknown:
        raise SmokeError(f"sensors: unknown {', '.join(unknown)}", f"use {', '.join(ALL_SENSOR_NAMES)}")
    if not found:
        raise SmokeError("sensors: a device has at least one", f"use {', '.join(ALL_SENSOR_NAMES)}")
    return tuple(name for name in ALL_SENSOR_NAMES if name in found)


_YES = frozenset({"true", "yes", "1"})
_NO = frozenset({"false", "no", "0"})


def _parse_truth(text: str) -> bool:
    word = text.lower()
    if word not in _YES | _NO:
        raise SmokeError(f"in_service: {text!r} is neither true nor false", "use true, false, yes, no, 1 or 0")
    return word in _YES


def _parse_interval(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SmokeError(f"interval_s: {text!r} is no number") from None


_PARSERS = {
    "site": str,
    "room": str,
    "type": str,
    "interval_s": _parse_interval,
    "sensors": parse_sensors,
    "in_service": _parse_truth,
}
#: Columns of a CSV file of devices.
CSV_COLUMNS: tuple[str, ...] = ("device_id", *_PARSERS)
_DEFAULTS = Device(device_id="default")


def read_csv(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line, device id, changes) of each row of a CSV file with a header.

    A column that the file does not have leaves its field as it is; an empty cell sets it to the default.

    Raises:
        SmokeError: naming line and field.
    """
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
    header: list[str] | None = None
    lines: dict[str, int] = {}
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = _header([cell.strip() for cell in row])
                continue
            device_id, changes = _changes(header, row, rows.line_num)
            if device_id in lines:
                raise SmokeError(
                    f"line {rows.line_num}, device_id: {device_id!r} stands in line {lines[device_id]} too"
                )
            lines[device_id] = rows.line_num
            yield rows.line_num, device_id, changes
    except csv.Error as error:
        raise SmokeError(f"line {rows.line_num}: {error}") from None
    if header is None:
        raise SmokeError("the file is empty", f"its first line names the columns: {','.join(CSV_COLUMNS)}")


def _header(names: list[str]) -> list[str]:
    remedy = f"the columns are {', '.join(CSV_COLUMNS)}; device_id is required"
    for name in names:
        if name not in CSV_COLUMNS:
            raise SmokeError(f"line 1: unknown column {name!r}", remedy)
        if names.count(name) > 1:
            raise SmokeError(f"line 1: column {name!r} comes twice", remedy)
    if "device_id" not in names:
        raise SmokeError("line 1: there is no column 'device_id'", remedy)
    return names


def _changes(header: list[str], row: list[str], line: int) -> tuple[str, dict[str, Any]]:
    if len(row) != len(header):
        raise SmokeError(f"line {line}: {len(row)} cells, the header has {len(header)}")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    device_id = cells.pop("device_id")
    try:
        changes = {
            name: _PARSERS[name](cell) if cell else getattr(_DEFAULTS, name)  # type: ignore[operator] # one of each type
            for name, cell in cells.items()
        }
        changed(None, device_id, changes, source=IMPORT, at=0.0)
    except SmokeError as error:
        raise SmokeError(f"line {line}, {error.message}", error.remedy) from None
    return device_id, changes


def write_csv(devices: Iterable[Device]) -> str:
    """The entries as a CSV file that ``read_csv`` reads: nothing but source and time of the entry is lost."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for device in devices:
        writer.writerow(
            [
                device.device_id,
                device.site,
                device.room,
                device.type,
                repr(device.interval_s),
                " ".join(device.sensors),
                str(device.in_service).lower(),
            ]
        )
    return out.getvalue()
