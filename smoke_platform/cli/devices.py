"""``smoke devices``: list, show, set and import the entries of the device registry.

Belongs here: options, files and tables. Does not: what an entry is (``domain.devices``), where it is kept
(``adapters.device_registry``).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from smoke_platform.domain.devices import (
    IMPORT,
    OPERATOR,
    Device,
    changed,
    check,
    parse_sensors,
    read_csv,
    write_csv,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import ALL_SENSOR_NAMES
from smoke_platform.settings import load_settings

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def devices() -> None:
    """List, show, set and import what is known of the devices.

    \b
    Example:
      smoke devices list --site north
      smoke devices set kitchen-1 --site north --room kitchen
    """


def _facts(device: Device) -> dict[str, Any]:
    facts: dict[str, Any] = msgspec.to_builtins(device)
    # What stands at its default is left out of a message, not out of an answer.
    return {name: facts.get(name, getattr(device, name)) for name in Device.__struct_fields__}


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if at else ""


@devices.command(name="list")
@click.option("--site", help="Only devices of this site.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV that `smoke devices import` reads.")
@as_json_option
def list_devices(site: str | None, as_csv: bool, as_json: bool) -> None:
    """List the devices, those of one site or all.

    \b
    Example:
      smoke devices list --site north
      smoke devices list --csv > devices.csv
    """
    from smoke_platform.adapters.device_registry import DeviceRegistry

    with DeviceRegistry(load_settings()) as registry:
        registry.require_ready()
        found = sorted(registry.devices().values(), key=lambda device: (device.site, device.device_id))
    chosen = [device for device in found if site is None or device.site == site]
    if as_json:
        click.echo(json.dumps([_facts(device) for device in chosen], indent=2))
    elif as_csv:
        click.echo(write_csv(chosen), nl=False)
    else:
        _show_table(chosen)


def _show_table(chosen: Sequence[Device]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("device", "site", "room", "type", "interval s", "sensors", "in service", "source"):
        table.add_column(title, justify="right" if title in ("interval s", "sensors") else "left")
    for device in chosen:
        table.add_row(
            device.device_id,
            device.site,
            device.room,
            device.type,
            f"{device.interval_s:g}",
            f"{len(device.sensors)} of {len(ALL_SENSOR_NAMES)}",
            "yes" if device.in_service else "NO",
            device.source,
        )
    Console().print(table)
    click.echo(f"{len(chosen):,} devices")


@devices.command()
@click.argument("device_id")
@as_json_option
def show(device_id: str, as_json: bool) -> None:
    """Show all that is known of one device.

    \b
    Example:
      smoke devices show kitchen-1
    """
    from smoke_platform.adapters.device_registry import DeviceRegistry

    with DeviceRegistry(load_settings()) as registry:
        registry.require_ready()
        device = registry.devices().get(device_id)
    if device is None:
        raise SmokeError(
            f"there is no device {device_id!r} in the registry",
            "it enters with its first reading, or by `smoke devices set`; `smoke devices list` shows those there are",
        )
    _show_one(device, as_json)


def _show_one(device: Device, as_json: bool) -> None:
    facts = _facts(device)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    facts["sensors"] = " ".join(device.sensors)
    facts["in_service"] = "yes" if device.in_service else "no"
    facts["updated_at"] = _moment(device.updated_at)
    for name, value in facts.items():
        click.echo(f"{name:<11} {value}")


@devices.command(name="set")
@click.argument("device_id")
@click.option("--site", help="Where it hangs; an empty text: unknown.")
@click.option("--room", help="Room at the site.")
@click.option("--type", "type_", help="Maker's name of the model.")
@click.option("--interval", type=float, help="Seconds between two readings; after two missed ones it is offline.")
@click.option("--sensors", help="What is fitted, with commas in between.")
@click.option("--in-service/--out-of-service", default=None, help="Whether it may raise alarms.")
@as_json_option
def set_device(
    device_id: str,
    site: str | None,
    room: str | None,
    type_: str | None,
    interval: float | None,
    sensors: str | None,
    in_service: bool | None,
    as_json: bool,
) -> None:
    """Set what is known of a device; what is not named stays as it is.

    \b
    Example:
      smoke devices set kitchen-1 --site north --room kitchen --interval 2
      smoke devices set kitchen-1 --out-of-service
    """
    from smoke_platform.adapters.device_registry import DeviceRegistry

    given = {
        "site": site,
        "room": room,
        "type": type_,
        "interval_s": interval,
        "sensors": None if sensors is None else parse_sensors(sensors),
        "in_service": in_service,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise SmokeError("nothing to set", "name at least one of --site, --room, --type, --interval, --sensors, ...")
    check(changed(None, device_id, changes, source=OPERATOR, at=0.0))  # before anything is asked of a broker
    with DeviceRegistry(load_settings()) as registry:
        registry.require_ready()
        known = registry.devices().get(device_id)
        device = changed(known, device_id, changes, source=OPERATOR, at=time.time())
        registry.put([device])
    _show_one(device, as_json)


@devices.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@as_json_option
def import_devices(file: Path, as_json: bool) -> None:
    """Enter the devices of a CSV file; nothing is entered where any line is at fault.

    Columns: device_id, site, room, type, interval_s, sensors, in_service. A column that is not there leaves its
    field as it is, an empty cell sets the default. Sensors stand with blanks between them.

    \b
    Example:
      smoke devices import devices.csv
    """
    from smoke_platform.adapters.device_registry import DeviceRegistry

    try:
        lines = list(read_csv(file.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise SmokeError(f"{file}: is not UTF-8 ({error.reason} at byte {error.start})", "save it as UTF-8") from None
    except SmokeError as error:
        raise SmokeError(f"{file}, {error.message}", error.remedy) from None
    now = time.time()
    with DeviceRegistry(load_settings()) as registry:
        registry.require_ready()
        known = registry.devices()
        entries = [
            changed(known.get(device_id), device_id, changes, source=IMPORT, at=now) for _, device_id, changes in lines
        ]
        new = sum(entry.device_id not in known for entry in entries)
        with click.progressbar(length=len(entries), label="importing", file=sys.stderr) as bar:
            registry.put(entries, on_written=lambda: bar.update(1))
    if as_json:
        click.echo(json.dumps({"imported": len(entries), "new": new}))
    else:
        click.echo(f"{len(entries):,} devices imported, {new:,} of them new")
