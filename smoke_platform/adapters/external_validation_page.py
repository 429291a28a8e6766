"""The external validation as a page, and as data beside it.

Belongs here: which figures and tables, in which order, and what the page says of the mapping and of its limits. Does
not: the numbers (``domain.external_validation``), the figures' shapes (``adapters.svg``), files (``adapters.reports``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from smoke_platform.adapters import svg
from smoke_platform.adapters.reports import Section, page, shown
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.external_validation import (
    AlarmKind,
    Device,
    Heard,
    Pair,
    Quantity,
    Validation,
    sensor_columns,
)

_SENSOR: Final = {
    Quantity.SMOKE: ("pm2_5", "smoke, ug/m3"),
    Quantity.TEMPERATURE: ("temperature_c", "temperature, degC"),
    Quantity.CO: ("co_ppm", "CO, ppm"),
}
#: Places in ``svg.HUES``; ours is drawn last, above the others.
_HUE: Final = {AlarmKind.PHOTOELECTRIC: 0, AlarmKind.IONISATION: 2}
_OURS_HUE = 1

MAPPING: Final = (
    "Smoke: optical density times ln 10, over 8.7 m2/g (Mulholland and Croarkin 2000, flaming, 633 nm), for every "
    "fire. Smouldering smoke has about half of that, so that its mass is understated and ours comes later.",
    "Sizes: lognormal soot, median 0.17 um by number, geometric spread 1.9, 1 g/cm3 (Mulholland, SFPE Handbook).",
    "Temperature and CO as recorded; each sensor ends where a device's does (30,000 ug/m3, 125 degC, 5,000 ppm).",
    "Not measured: humidity, pressure, TVOC, raw gas signals; eCO2, which a chip computes from hydrogen, not from CO2.",
    "Of each quantity the uppermost channel that is connected and moves; the first sample is held for 10 minutes "
    "before ignition; readings at the recorded times.",
    "Ours: the first fire alarm of HIGH or CRITICAL; warnings are shown and do not count. Won: strictly earlier.",
)
LIMITS: Final = (
    "No test of the kind holds a nuisance: how often a detector cries wolf is not seen here, and a detector that is "
    "merely more sensitive wins.",
    "Few tests, and NIST's four are flaming fires of two sorts (chair, mattress) in one house: no smouldering.",
    "The smoke meters' noise is of the order of 0.001 to 0.01 1/m, 300 to 2,600 ug/m3 after mapping: near the limit of "
    "the smoke rule. Their heating feigns smoke as well (NIST TN 1455-1), which favours ours near the fire.",
    "The recordings are of the air; a real device's housing delays smoke, and its sensors lag. The commercial alarms "
    "had both. Alarms hung near the instruments, not at the same point.",
    "The gases' sampling lines lag by seconds, and CO analysers for fires are noisy by tens of ppm; one that swings "
    "from ignition on is not told from air by its first sample.",
)


def validation_page(validation: Validation, made: str) -> str:
    """The page, complete in itself.

    Args:
        made: how it was made, in a sentence.
    """
    shares = [_share_words(validation, kind) for kind in AlarmKind]
    return page(
        "External validation",
        f"Recorded fire tests through the detector's code: {validation.model}",
        "; ".join(shares),
        [
            Section("Shares", share_rows(validation), _before_words(validation)),
            Section(
                "Pairs", pair_rows(validation), "Seconds from ignition. Not counted: a dash under won, with a note."
            ),
            Section("How recordings become readings", None, lines=MAPPING),
            Section("What this cannot show", None, lines=LIMITS),
            *(_place(validation, device, heard) for device, heard in validation.devices),
            Section("Channels left out", _left_out(validation), "Looked at from the ceiling down."),
            Section("How it was made", None, made),
        ],
    )


def write(validation: Validation, place: Path, made: str) -> None:
    """Writes the page to a file.

    Raises:
        SmokeError: the file can't be written.
    """
    try:
        place.write_text(validation_page(validation, made), "utf-8")
    except OSError as error:
        raise SmokeError(f"{place} cannot be written: {error.strerror or error}", "name another file") from None


def page_data(validation: Validation) -> dict[str, Any]:
    """The validation with warnings and devices, for machines."""
    return {
        **validation.as_dict(),
        "model": validation.model,
        "devices": [
            {
                "test": device.place.test,
                "place": device.place.name,
                "channels": {str(quantity): channel.name for quantity, channel in device.taken.items()},
                "left_out": dict(device.left_out),
                "ends_s": device.place.ends_s,
                "ours_s": heard.alarm_s,
                "first_warning_s": heard.first_warning_s,
                "rules": list(heard.rules),
            }
            for device, heard in validation.devices
        ],
    }


def pair_rows(validation: Validation) -> list[dict[str, Any]]:
    """A row for each (test, alarm), in the order of the activation file."""
    rules = {(device.place.test, device.place.name): heard.rules for device, heard in validation.devices}
    return [
        {
            "test": pair.alarm.test,
            "place": pair.alarm.place,
            "alarm": pair.alarm.name,
            "kind": str(pair.alarm.kind),
            "alarm_s": pair.alarm.sounded_s,
            "ours_s": pair.ours_s,
            "first_warning_s": pair.first_warning_s,
            "won": pair.won,
            "note": pair.note,
            "by": ", ".join(rules.get((pair.alarm.test, pair.alarm.place), ())),
        }
        for pair in validation.pairs
    ]


def share_rows(validation: Validation) -> list[dict[str, Any]]:
    """A row for each kind: pairs, counted, won, share."""
    rows = []
    for kind in AlarmKind:
        counted = validation.counted(kind)
        rows.append(
            {
                "against": str(kind),
                "pairs": sum(pair.alarm.kind is kind for pair in validation.pairs),
                "counted": len(counted),
                "won": sum(bool(pair.won) for pair in counted),
                "share": _percent(validation.share_won(kind)),
                "earlier by, median s": _median_lead(counted),
            }
        )
    return rows


def _median_lead(pairs: tuple[Pair, ...]) -> float | None:
    """Of those in which both sounded after ignition; negative where ours was later."""
    leads = sorted(
        pair.alarm.sounded_s - pair.ours_s
        for pair in pairs
        if pair.alarm.sounded_s is not None and pair.ours_s is not None and pair.ours_s >= 0
    )
    middle = len(leads) // 2
    return None if not leads else leads[middle] if len(leads) % 2 else (leads[middle - 1] + leads[middle]) / 2


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _share_words(validation: Validation, kind: AlarmKind) -> str:
    return f"earlier than {_percent(validation.share_won(kind))} of the {kind} alarms"


def _before_words(validation: Validation) -> str:
    return f"{validation.before_ignition} of {len(validation.devices)} devices sounded before ignition."


def _place(validation: Validation, device: Device, heard: Heard) -> Section:
    place = device.place
    pairs = [pair for pair in validation.pairs if (pair.alarm.test, pair.alarm.place) == (place.test, place.name)]
    marks = [
        (pair.alarm.sounded_s, f"{pair.alarm.name} {pair.alarm.sounded_s:g} s", _HUE[pair.alarm.kind])
        for pair in pairs
        if pair.alarm.sounded_s is not None
    ]
    if heard.alarm_s is not None:
        marks.append((heard.alarm_s, f"ours {heard.alarm_s:g} s", _OURS_HUE))
    columns = sensor_columns(device.taken)
    figures = [
        svg.traces(f"{title} ({device.taken[quantity].name})", place.times_s.tolist(), columns[name].tolist(), marks)
        for quantity, (name, title) in _SENSOR.items()
        if quantity in device.taken
    ]
    said = "did not sound" if heard.alarm_s is None else f"at {shown(heard.alarm_s)} s by {', '.join(heard.rules)}"
    note = (
        f"Ours (orange) {said}; photoelectric alarms blue, ionisation alarms green. Recorded until {place.ends_s:g} s."
    )
    return Section(f"{place.test}, place {place.name}", None, note, "".join(figures))


def _left_out(validation: Validation) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = [
        {"test": device.place.test, "channel": name, "why": why}
        for device, _ in validation.devices
        for name, why in device.left_out.items()
    ]
    rows += [
        {"test": test, "channel": f"place {place}", "why": why}
        for (test, place), why in validation.silent_places.items()
    ]
    return rows
