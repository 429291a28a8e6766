"""Fire tests in the format of NIST's home smoke alarm tests: a folder of CSV files, read and checked.

Belongs here: files, columns' names, cells. Does not: which channel is used and what it means as a reading
(``domain.external_validation``).

A folder holds a CSV file for each test, named after it (``NIST_Smoke_Alarms_SDC02.csv`` is SDC02), and
``Activation_Times.csv``: a row of names such as SDC02-Ion3A (test, kind, number, place) and a row of seconds from
ignition. Of a test's columns TIME, ``TC<place>_<n>``, ``SM<place>_<n>`` and ``GAS<place>_1`` are read, n = 1 being
nearest the ceiling; all others are left alone.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.external_validation import (
    AlarmKind,
    Channel,
    CommercialAlarm,
    Floats,
    Place,
    Quantity,
)

ACTIVATIONS = "Activation_Times.csv"
TIME = "TIME"
FORMAT = "docs/external-validation.md describes the format"

_CHANNEL = re.compile(r"(TC|SM|GAS)([A-Z]+)_(\d+)")
_ALARM = re.compile(r"(.+)-(Ion|Pho)(\d*)([A-Z]+)")
_QUANTITY = {"TC": Quantity.TEMPERATURE, "SM": Quantity.SMOKE, "GAS": Quantity.CO}
_KIND = {"Ion": AlarmKind.IONISATION, "Pho": AlarmKind.PHOTOELECTRIC}
#: Of a gas station's numbers the one that is CO; 3 is CO2, 5 is O2.
_CO = 1
#: How a cell says that there is no number.
_NOTHING = frozenset({"", "nan", "na", "n/a", "null", "none"})


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder holds.

    Attributes:
        places: of all tests, by test and place.
        alarms: in the order of their file.
        ignored: names in the activation file that are neither an ionisation nor a photoelectric alarm.
    """

    places: tuple[Place, ...]
    alarms: tuple[CommercialAlarm, ...]
    ignored: tuple[str, ...]


def read_folder(folder: Path) -> Folder:
    """Reads all tests and the alarms' times.

    Raises:
        SmokeError: naming file, column and remedy.
    """
    if not folder.is_dir():
        raise SmokeError(f"{folder} is no folder", f"name a folder of fire tests; {FORMAT}")
    activations = folder / ACTIVATIONS
    if not activations.is_file():
        raise SmokeError(f"{folder} holds no {ACTIVATIONS}", f"put the alarms' times there; {FORMAT}")
    alarms, ignored = _alarms(activations)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".csv" and file.name != ACTIVATIONS)
    if not files:
        raise SmokeError(f"{folder} holds no CSV file of a test", f"put the tests' recordings there; {FORMAT}")
    places: list[Place] = []
    for test, file in sorted(_tests(files, {alarm.test for alarm in alarms}).items()):
        places += _places(test, file)
    return Folder(tuple(places), alarms, ignored)


def _tests(files: Iterable[Path], named: set[str]) -> dict[str, Path]:
    """Test -> its file: the test that the activations name, or what stands behind the last underscore."""
    found: dict[str, Path] = {}
    for file in files:
        matching = [name for name in named if file.stem == name or file.stem.endswith(f"_{name}")]
        test = max(matching, key=len) if matching else file.stem.rsplit("_", 1)[-1]
        if test in found:
            raise SmokeError(
                f"{found[test].name} and {file.name} are both test {test}", "leave one of them in the folder"
            )
        found[test] = file
    return found


def _rows(file: Path) -> list[list[str]]:
    """The rows with their cells stripped; rows of empty cells are left out, but for their number."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            return [[cell.strip() for cell in row] for row in csv.reader(text)]
    except UnicodeDecodeError as error:
        raise SmokeError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}", "save it as CSV") from None
    except csv.Error as error:
        raise SmokeError(f"{file} is not CSV: {error}", "save it as CSV") from None
    except OSError as error:
        raise SmokeError(f"{file} cannot be read: {error.strerror or error}") from None


def _header(file: Path, rows: list[list[str]]) -> list[str]:
    if not rows or not any(rows[0]):
        raise SmokeError(f"{file} has no row of column names", FORMAT)
    names = rows[0]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise SmokeError(f"{file}: column {twice[0]} stands there twice", "rename or remove one of them")
    return names


def _number(file: Path, line: int, column: str, cell: str) -> float:
    if cell.lower() in _NOTHING:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise SmokeError(
            f"{file}, line {line}, column {column}: {cell[:40]!r} is no number",
            "write a number with a decimal point, or leave the cell empty",
        ) from None


# -- alarms --------------------------------------------------------------------------------------------------------


def _alarms(file: Path) -> tuple[tuple[CommercialAlarm, ...], tuple[str, ...]]:
    rows = _rows(file)
    names = _header(file, rows)
    values = [(line, row) for line, row in enumerate(rows[1:], start=2) if any(row)]
    if len(values) != 1:
        raise SmokeError(
            f"{file} has {len(values)} rows of times, expected one",
            "one row of names, one row of seconds from ignition",
        )
    line, cells = values[0]
    if len(cells) > len(names):
        raise SmokeError(f"{file}, line {line}: {len(cells)} cells under {len(names)} names", "remove what has no name")
    alarms: list[CommercialAlarm] = []
    ignored: list[str] = []
    for place, name in enumerate(names):
        parts = _ALARM.fullmatch(name)
        if parts is None:
            # The first column only says what the row is.
            if place and name:
                ignored.append(name)
            continue
        test, kind, number, where = parts.groups()
        seconds = _number(file, line, name, cells[place] if place < len(cells) else "")
        # A time before ignition stands for an alarm that never sounded, as an empty cell does.
        sounded = seconds if math.isfinite(seconds) and seconds >= 0 else None
        alarms.append(CommercialAlarm(test, where, f"{kind}{number}{where}", _KIND[kind], sounded))
    if not alarms:
        raise SmokeError(
            f"{file}: no column names an alarm; found {', '.join(names[:5])}",
            "name columns as SDC02-Ion3A: test, Ion or Pho, number, place",
        )
    return tuple(alarms), tuple(ignored)


# -- recordings ----------------------------------------------------------------------------------------------------


def _places(test: str, file: Path) -> list[Place]:
    rows = _rows(file)
    names = _header(file, rows)
    if TIME not in names:
        raise SmokeError(
            f"{file}: column {TIME} is missing; found {', '.join(names[:5])}", f"name the seconds from ignition {TIME}"
        )
    channels = _channels(names)
    if not channels:
        raise SmokeError(f"{file}: no column TC<place>_<n>, SM<place>_<n> or GAS<place>_1", FORMAT)
    lines = [(line, row) for line, row in enumerate(rows[1:], start=2) if any(row)]
    if len(lines) < 2:
        raise SmokeError(f"{file} has {len(lines)} rows of values, expected at least two", "record for longer")
    for line, row in lines:
        if len(row) > len(names):
            raise SmokeError(
                f"{file}, line {line}: {len(row)} cells under {len(names)} names", "remove what has no name"
            )

    def column(name: str) -> Floats:
        place = names.index(name)
        return np.array([_number(file, line, name, row[place] if place < len(row) else "") for line, row in lines])

    times = _times(file, [line for line, _ in lines], column(TIME))
    return [
        Place(
            test,
            place,
            times,
            {
                quantity: tuple(Channel(name, _finite(column(name))) for _, name in sorted(numbered))
                for quantity, numbered in quantities.items()
            },
        )
        for place, quantities in sorted(channels.items())
    ]


def _channels(names: Iterable[str]) -> Mapping[str, Mapping[Quantity, list[tuple[int, str]]]]:
    """Place -> quantity -> (number from the ceiling, name)."""
    found: dict[str, dict[Quantity, list[tuple[int, str]]]] = {}
    for name in names:
        parts = _CHANNEL.fullmatch(name)
        if parts is None:
            continue
        instrument, place, number = parts.groups()
        if instrument == "GAS" and int(number) != _CO:
            continue
        found.setdefault(place, {}).setdefault(_QUANTITY[instrument], []).append((int(number), name))
    return found


def _times(file: Path, lines: list[int], times: Floats) -> Floats:
    odd = np.flatnonzero(~np.isfinite(times))
    if len(odd):
        raise SmokeError(
            f"{file}, line {lines[odd[0]]}, column {TIME}: no time", "give each row its seconds from ignition"
        )
    back = np.flatnonzero(np.diff(times) <= 0)
    if len(back):
        at = int(back[0]) + 1
        raise SmokeError(
            f"{file}, line {lines[at]}, column {TIME}: {times[at]:g} does not follow {times[at - 1]:g}",
            "sort the rows by time and remove repeated ones",
        )
    return times


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)
