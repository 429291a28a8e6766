"""The device registry: what is known of a device beyond its readings.

Belongs here: a device's entry, its defaults, the entry as a message of the compacted topic ``smoke_devices`` (keyed by
device id). Does not: where entries are kept (``adapters.device_registry``), alarms.
"""

from __future__ import annotations

import msgspec

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES

#: A device of which nothing is known reports this often, in seconds.
DEFAULT_INTERVAL_S = 1.0


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
    if not 0 < device.interval_s <= 86_400:
        raise SmokeError(f"interval_s: {device.interval_s} is not between 0 and 86400 seconds")
    unknown = sorted(set(device.sensors) - set(ALL_SENSOR_NAMES))
    if unknown:
        raise SmokeError(f"sensors: unknown {', '.join(unknown)}", f"use {', '.join(ALL_SENSOR_NAMES)}")
    return device
