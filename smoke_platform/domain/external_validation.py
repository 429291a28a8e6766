"""External validation: recordings of fires that others made, as readings, and who heard the fire first.

Belongs here: from a place's channels to readings (units, sensors' limits, the choice of a channel), the detector's
engine over them, a commercial alarm and ours as a pair, the shares. Does not: files (``adapters.nist_recordings``),
which model scores (``adapters.external_validation``), the page.

The mapping stands apart from everything that is tuned: nothing of features, rules, simulator or training reads this
module, and each of its numbers has a reason of physics or a publication beside it. It was fixed before any time to
alarm had been computed; ``docs/external-validation.md`` says in which order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from smoke_platform.domain.alarms import AlarmRecord, Kind, Severity
from smoke_platform.domain.detection import Batch, Engine, Scorer
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.levels import EXTINCTION_M2_PER_G
from smoke_platform.domain.readings import Reading
from smoke_platform.domain.simulator import ParticleMode

Floats = npt.NDArray[np.float64]

#: The first sample is held for so long before ignition, so that baselines are warm as a mounted device's are.
HELD_S = 600.0
#: Event time of ignition; no feature knows the time of day, so any moment does.
IGNITION: Final = datetime(2020, 1, 1, 12, tzinfo=UTC)

#: Soot as an optical sensor sees it. Median and spread of flaming smoke: Mulholland, SFPE Handbook, "Smoke Production
#: and Properties"; low effective density, since soot is chains. The extinction coefficient is of the same smoke.
SOOT: Final = ParticleMode(count_median_um=0.17, spread=1.9, density=1.0)
#: Limits of the sensors that the device is taken to have, those of the simulated devices: a laser sensor, a chip for
#: temperature, an electrochemical cell.
MOST_UG_M3, MOST_PER_CM3 = 30_000.0, 60_000.0
COLDEST_C, HOTTEST_C = -40.0, 125.0
MOST_CO_PPM = 5_000.0
PPM_PER_PERCENT = 10_000.0


class AlarmKind(StrEnum):
    """Of a commercial alarm."""

    PHOTOELECTRIC = "photoelectric"
    IONISATION = "ionisation"


class Quantity(StrEnum):
    """What a channel measures: optical density 1/m, gas temperature degC, CO volume %."""

    SMOKE = "smoke"
    TEMPERATURE = "temperature"
    CO = "co"


@dataclass(frozen=True, slots=True)
class _Limits:
    """When a channel counts as connected, and when as moving.

    Attributes:
        low, high: of its first sample, taken before anything burns.
        moves: span that its samples must have.
    """

    low: float
    high: float
    moves: float


#: Smoke: no meter of a path of some decimetres tells densities beyond 10/m apart, and less than none is drift; 0.01/m
#: is 0.1 dB/m, at which smoke alarms respond (EN 14604): a meter that stays below it shows its own noise. Temperature:
#: what the device's chip can measure; 1 K is more than the noise of a thermocouple. CO: air that nothing has burnt in
#: has less than the 30 ppm below which EN 50291-1 lets no alarm sound; a span above none, since a channel that shows
#: one number throughout shows no air.
_LIMITS: Final[Mapping[Quantity, _Limits]] = {
    Quantity.SMOKE: _Limits(-0.1, 10.0, 0.01),
    Quantity.TEMPERATURE: _Limits(COLDEST_C, HOTTEST_C, 1.0),
    Quantity.CO: _Limits(-30 / PPM_PER_PERCENT, 30 / PPM_PER_PERCENT, 0.0),
}


@dataclass(frozen=True, slots=True)
class Channel:
    """A column of a recording.

    Attributes:
        name: of the column.
        values: ``[n]``, in the unit of its quantity; NaN where nothing was recorded.
    """

    name: str
    values: Floats


@dataclass(frozen=True, slots=True)
class Place:
    """What was recorded at one place of one test.

    Attributes:
        times_s: ``[n]``, seconds from ignition, ascending, at least two.
        channels: of each quantity, the uppermost first.
    """

    test: str
    name: str
    times_s: Floats
    channels: Mapping[Quantity, Sequence[Channel]]

    @property
    def device_id(self) -> str:
        return f"{self.test}-{self.name}"

    @property
    def ends_s(self) -> float:
        return float(self.times_s[-1])


@dataclass(frozen=True, slots=True)
class CommercialAlarm:
    """An alarm that hung beside the instruments; ``sounded_s`` is ``None`` where it never did."""

    test: str
    place: str
    name: str
    kind: AlarmKind
    sounded_s: float | None


@dataclass(frozen=True, slots=True)
class Device:
    """A place as a device: the channels it takes, by name, and why others above them were left out."""

    place: Place
    taken: Mapping[Quantity, Channel]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heard:
    """What the detector made of a device's readings; seconds from ignition, negative before it.

    Attributes:
        alarm_s: the first fire alarm, HIGH or CRITICAL; ``first_warning_s``: the first one of LOW or MEDIUM before it.
        rules: those that stood behind the alarm.
    """

    alarm_s: float | None = None
    first_warning_s: float | None = None
    rules: tuple[str, ...] = ()

    @property
    def before_ignition(self) -> bool:
        return self.alarm_s is not None and self.alarm_s < 0


@dataclass(frozen=True, slots=True)
class Pair:
    """A commercial alarm and ours at the same place.

    Attributes:
        won: whether ours was strictly earlier; ``None``: listed, not counted, and ``note`` says why.
    """

    alarm: CommercialAlarm
    ours_s: float | None
    first_warning_s: float | None
    won: bool | None
    note: str = ""

    def as_dict(self) -> dict[str, str | float | bool | None]:
        return {
            "test": self.alarm.test,
            "place": self.alarm.place,
            "alarm": self.alarm.name,
            "kind": str(self.alarm.kind),
            "alarm_s": self.alarm.sounded_s,
            "ours_s": self.ours_s,
            "won": self.won,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Validation:
    """The outcome of one run.

    Attributes:
        model: what scored, in words.
        devices: with what was heard of each.
        silent_places: (test, place) -> why there is no device.
    """

    model: str
    pairs: tuple[Pair, ...]
    devices: tuple[tuple[Device, Heard], ...]
    silent_places: Mapping[tuple[str, str], str]

    @property
    def before_ignition(self) -> int:
        """Devices that raised a fire alarm before anything burned."""
        return sum(heard.before_ignition for _, heard in self.devices)

    def counted(self, kind: AlarmKind) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.alarm.kind is kind and pair.won is not None)

    def share_won(self, kind: AlarmKind) -> float | None:
        """Of the pairs that count; ``None`` where none does."""
        counted = self.counted(kind)
        return sum(bool(pair.won) for pair in counted) / len(counted) if counted else None

    def as_dict(self) -> dict[str, object]:
        return {
            "pairs": [pair.as_dict() for pair in self.pairs],
            "won": {str(kind): self.share_won(kind) for kind in AlarmKind},
            "before_ignition": self.before_ignition,
        }


# -- channels ------------------------------------------------------------------------------------------------------


def device_of(place: Place) -> Device:
    """The device at a place: of each quantity the uppermost channel that is connected and moves.

    Where none moves, the smoke has not come, or the channel is as dead as the others: the uppermost connected one
    stands for the place, but for CO, which is then not measured.
    """
    taken: dict[Quantity, Channel] = {}
    left_out: dict[str, str] = {}
    for quantity, channels in place.channels.items():
        limits = _LIMITS[quantity]
        still: list[Channel] = []
        for channel in channels:
            fault = _unconnected(channel, limits)
            if fault:
                left_out[channel.name] = fault
            elif _span(channel) > 0 and _span(channel) >= limits.moves:
                taken[quantity] = channel
                break
            else:
                still.append(channel)
        if quantity not in taken and still and quantity is not Quantity.CO:
            taken[quantity] = still.pop(0)
        left_out |= {channel.name: f"does not move: spans {_span(channel):.4g}" for channel in still}
    return Device(place, taken, left_out)


def _span(channel: Channel) -> float:
    return float(np.nanmax(channel.values) - np.nanmin(channel.values))


def _unconnected(channel: Channel, limits: _Limits) -> str:
    present = channel.values[np.isfinite(channel.values)]
    if not len(present):
        return "not connected: no value"
    first = float(present[0])
    if not limits.low <= first <= limits.high:
        return f"not connected: {first:.4g} at the start is no ambient value"
    return ""


def smoke_mass(optical_density: Floats) -> Floats:
    """Mass of smoke in ug/m3 at an optical density in 1/m (of the decadic logarithm).

    One coefficient for every fire, 8.7 m2/g (Mulholland and Croarkin 2000: 8.7 +- 1.1, flaming, 633 nm): which fire it
    is, a device does not know. Smouldering smoke extinguishes about half as much for each gram (Mulholland: 4.4), so
    that its mass would be twice as great and ours earlier: the choice errs to the late side.
    """
    extinction = math.log(10.0) * np.maximum(optical_density, 0.0)
    return extinction / EXTINCTION_M2_PER_G * 1e6


def sensor_columns(taken: Mapping[Quantity, Channel]) -> dict[str, Floats]:
    """What the device's sensors say of the channels: canonical name -> ``[n]``, NaN where not measured.

    Not measured at all are humidity, pressure, TVOC and the raw gas signals, which nobody recorded, and eCO2: that is
    what a chip computes from hydrogen, so that CO2 in its place would be a sensor that no such device has.
    """
    columns: dict[str, Floats] = {}
    if (temperature := taken.get(Quantity.TEMPERATURE)) is not None:
        columns["temperature_c"] = np.clip(temperature.values, COLDEST_C, HOTTEST_C)
    if (smoke := taken.get(Quantity.SMOKE)) is not None:
        mass = smoke_mass(smoke.values)
        pm1_0, nc0_5, nc1_0, nc2_5 = (mass * part for part in SOOT.per_mass())
        columns["pm2_5"] = np.minimum(mass, MOST_UG_M3)
        columns["pm1_0"] = np.minimum(pm1_0, columns["pm2_5"])
        columns["nc0_5"] = np.minimum(nc0_5, MOST_PER_CM3)
        columns["nc1_0"] = np.minimum(nc1_0, columns["nc0_5"])
        columns["nc2_5"] = np.minimum(nc2_5, columns["nc1_0"])
    if (co := taken.get(Quantity.CO)) is not None:
        columns["co_ppm"] = np.clip(co.values * PPM_PER_PERCENT, 0.0, MOST_CO_PPM)
    # The sensors tell two decimals at best; adding zero turns -0.0 into 0.0.
    return {name: np.round(values, 2) + 0.0 for name, values in columns.items()}


def readings_of(device: Device) -> list[tuple[float, Reading]]:
    """(seconds from ignition, reading), ascending: the held first sample, then the recorded ones at their times.

    The device reports as often as was recorded, ``HELD_S`` before ignition already. A moment at which nothing was
    recorded has no reading.
    """
    times = device.place.times_s
    step = float(np.median(np.diff(times)))
    held = max(0, math.floor((float(times[0]) + HELD_S) / step))
    moments = np.concatenate([times[0] - step * np.arange(held, 0, -1), times])
    rows = np.concatenate([np.zeros(held, dtype=np.int64), np.arange(len(times))])
    columns = sensor_columns(device.taken)
    found: list[tuple[float, Reading]] = []
    for moment, row in zip(moments.tolist(), rows.tolist(), strict=True):
        values = {name: float(column[row]) for name, column in columns.items() if math.isfinite(column[row])}
        if values:
            found.append((moment, Reading(device.place.device_id, IGNITION + timedelta(seconds=moment), values)))
    return found


# -- the detector --------------------------------------------------------------------------------------------------


def hear(devices: Sequence[Device], scorer: Scorer | None) -> dict[str, Heard]:
    """What the detector says to the devices' readings: device id -> what was heard.

    The readings travel as messages through the engine that the detector runs, in the order of their time.

    Raises:
        SmokeError: a mapped value is no reading; that would be a fault of this module.
    """
    messages = sorted(
        (
            (moment, reading.device_id, reading.to_json())
            for device in devices
            for moment, reading in readings_of(device)
        ),
        key=lambda message: message[:2],
    )
    engine = Engine("external-validation")
    engine.add_partition(0)
    records: dict[str, list[AlarmRecord]] = defaultdict(list)
    batch, begun = Batch(), -math.inf
    for offset, (moment, device_id, value) in enumerate(messages):
        if moment > begun and batch.values:
            _take(engine, batch, scorer, records)
            batch = Batch()
        begun = moment
        batch.values.append(value)
        batch.keys.append(device_id.encode())
        batch.partitions.append(0)
        batch.offsets.append(offset)
        batch.append_times_ms.append(round((IGNITION.timestamp() + moment) * 1000))
    if batch.values:
        _take(engine, batch, scorer, records)
    return {device.place.device_id: _heard(records[device.place.device_id]) for device in devices}


def _take(engine: Engine, batch: Batch, scorer: Scorer | None, records: dict[str, list[AlarmRecord]]) -> None:
    outcome = engine.take(batch, scorer)
    if outcome.rejects:
        raise SmokeError(
            f"mapped values are no readings: {dict(outcome.rejects)}", "report it: the mapping is at fault"
        )
    for record in outcome.records:
        if record.kind is Kind.FIRE:
            records[record.device_id].append(record)


def _heard(records: Iterable[AlarmRecord]) -> Heard:
    """An alarm in the sense of EN 54 is HIGH or CRITICAL; what is less grave is a warning."""
    warned: float | None = None
    for record in records:
        if record.event_time is None:
            continue
        moment = round(record.event_time - IGNITION.timestamp(), 3)
        if Severity.of(record.severity) >= Severity.HIGH:
            return Heard(moment, warned, record.evidence.rules)
        warned = moment if warned is None else warned
    return Heard(None, warned)


# -- pairs ---------------------------------------------------------------------------------------------------------


def pair(alarm: CommercialAlarm, heard: Heard | None, ends_s: float | None, remark: str = "") -> Pair:
    """Who was first.

    Args:
        heard: of the device at the alarm's place, ``None`` where there is none.
        ends_s: when the recording ends, seconds from ignition.
        remark: why there is no device, or what it lacks.
    """
    ours = None if heard is None else heard.alarm_s
    warned = None if heard is None else heard.first_warning_s

    def told(won: bool | None, note: str = "") -> Pair:
        return Pair(alarm, ours, warned, won, "; ".join(part for part in (note, remark) if part))

    if heard is None:
        return told(None, "" if remark else "no device at this place")
    if alarm.sounded_s is None:
        return told(None, "the alarm never sounded")
    if ours is None:
        if ends_s is not None and ends_s < alarm.sounded_s:
            return told(None, f"the recording ends at {ends_s:g} s, before the alarm; ours had not sounded")
        return told(False, "ours never sounded")
    if heard.before_ignition:
        # It was no fire that it heard, so it is no win.
        return told(False, "ours sounded before ignition")
    return told(ours < alarm.sounded_s)


def validate(
    places: Sequence[Place], alarms: Sequence[CommercialAlarm], scorer: Scorer | None, model: str
) -> Validation:
    """Runs the detector over all places and pairs it with the commercial alarms.

    Args:
        alarms: in the order in which they are to be listed; those of a test or place that was not recorded are listed
            with the reason.
        model: what ``scorer`` is, in words.
    """
    devices: list[Device] = []
    silent: dict[tuple[str, str], str] = {}
    for place in places:
        device = device_of(place)
        if device.taken:
            devices.append(device)
        else:
            silent[place.test, place.name] = f"no channel at place {place.name} is connected"
    heard = hear(devices, scorer)
    by_place = {(device.place.test, device.place.name): device for device in devices}
    tests = {place.test for place in places}
    pairs: list[Pair] = []
    for alarm in alarms:
        key = (alarm.test, alarm.place)
        hung_beside = by_place.get(key)
        if hung_beside is not None:
            remark = "" if Quantity.SMOKE in hung_beside.taken else "no smoke channel here"
            pairs.append(pair(alarm, heard[hung_beside.place.device_id], hung_beside.place.ends_s, remark))
            continue
        missing = f"place {alarm.place} has no channel" if alarm.test in tests else f"no recording of {alarm.test}"
        silent.setdefault(key, missing)
        pairs.append(pair(alarm, None, None, silent[key]))
    return Validation(model, tuple(pairs), tuple((d, heard[d.place.device_id]) for d in devices), silent)
