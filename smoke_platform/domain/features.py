"""The features a model sees: one definition, for training, detector, API and the batch engines alike.

Belongs here: what each feature is, the state a device carries from reading to reading, the one kernel that turns
readings into features, and the hash that names this definition. Does not: where readings come from or go to
(``adapters.lake``), the model (``adapters.trainer``), rules and alarms.

The kernel takes state and readings in and gives float32 out. It uses only addition, subtraction, multiplication,
division, minimum and maximum, which IEEE 754 rounds in one way only: exponentials and logarithms are avoided on
purpose, because NumPy's vectorised ones may differ in the last bit with an array's length or alignment. The numbers
are therefore equal bit by bit however the readings are split into batches and however devices are interleaved.

What is left out, and why: time of day, sequence number, absolute air pressure and the device's identity tell a model
which recording it looks at instead of whether something burns. The absolute level of the two raw gas signals is a
property of the single sensor chip, so only its deviation from the device's own baseline is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smoke_platform.domain.readings import ALL_SENSOR_NAMES

if TYPE_CHECKING:
    # Loaded by the functions that need it: the detector, which does not, is back in half the time after a crash.
    import polars as pl

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

#: Raised when the arithmetic changes without a change of any name or constant below.
KERNEL_REVISION = 1

#: Time constants of the three baselines, in seconds of event time.
FAST_S = 10.0
MEDIUM_S = 60.0
SLOW_S = 1_800.0
#: After this long without a measurement a sensor's baselines start anew.
RESET_GAP_S = 900.0
#: A baseline speaks for a sensor that is silent, or for a reading that comes late, for this long.
HOLD_S = 30.0
#: Baselines say nothing before they have followed the sensor for this long.
WARM_S = 60.0
#: Readings of this length before a day leave of an earlier state less than exp(-8) = 0.034% of its difference.
WARM_UP_S = 8 * SLOW_S


@dataclass(frozen=True, slots=True)
class Tracked:
    """A sensor that is followed over time; ``floor``: noise in its unit below which a deviation means nothing."""

    sensor: str
    floor: float


TRACKED: tuple[Tracked, ...] = (
    Tracked("temperature_c", 0.5),
    Tracked("humidity_pct", 1.0),
    Tracked("tvoc_ppb", 25.0),
    Tracked("eco2_ppm", 25.0),
    Tracked("raw_h2", 25.0),
    Tracked("raw_ethanol", 25.0),
    Tracked("pm1_0", 1.0),
    Tracked("pm2_5", 1.0),
    Tracked("nc0_5", 5.0),
    Tracked("co_ppm", 1.0),
)
TRACKED_NAMES: tuple[str, ...] = tuple(tracked.sensor for tracked in TRACKED)

#: Sensors whose present value is a feature.
CURRENT: tuple[str, ...] = (
    "temperature_c",
    "humidity_pct",
    "tvoc_ppb",
    "eco2_ppm",
    "pm1_0",
    "pm2_5",
    "nc0_5",
    "nc1_0",
    "nc2_5",
    "co_ppm",
)
#: Sensors that a fire raises; how many of them are up at once is a feature.
RAISED_BY_FIRE: tuple[str, ...] = ("temperature_c", "tvoc_ppb", "eco2_ppm", "pm2_5", "nc0_5", "co_ppm")
#: A sensor counts as raised when its score exceeds this: three spreads above its baseline.
RAISED_SCORE = 0.75

#: Feature -> its meaning; the order is the model's input order. With x the present value, F, M, S the fast, medium
#: and slow baseline and A the slow mean absolute deviation of x from S.
DEFINITIONS: dict[str, str] = {
    **{name: f"{name} as measured" for name in CURRENT},
    "fine_fraction": "pm1_0 / (pm2_5 + 1): smoke is fine, dust and steam are coarse",
    "coarse_fraction": "nc2_5 / (nc0_5 + 1): the same from particle counts",
    **{f"{name}_rise": f"F - S of {name}, in its unit" for name in TRACKED_NAMES},
    **{f"{tracked.sensor}_score": f"z / (1 + |z|) with z = (F - S) / (A + {tracked.floor:g})" for tracked in TRACKED},
    **{f"{name}_rate": f"(F - M) / {MEDIUM_S - FAST_S:g} s of {name}, per minute" for name in TRACKED_NAMES},
    "smoke_and_gas": "least of the scores of pm2_5 and tvoc_ppb: both must rise",
    "smoke_and_heat": "least of the scores of pm2_5 and temperature_c",
    "smoke_and_co": "least of the scores of pm2_5 and co_ppm",
    "dry_heat": "score of temperature_c - score of humidity_pct: fire dries the air, steam does not",
    "raised_sensors": f"how many of {', '.join(RAISED_BY_FIRE)} have a score above {RAISED_SCORE:g}",
}
FEATURE_NAMES: tuple[str, ...] = tuple(DEFINITIONS)
FEATURE_COUNT = len(FEATURE_NAMES)

_MEMORYLESS = len(CURRENT) + 2
#: The features that need earlier readings; they are NaN while a device is cold.
MEMORY_FEATURES: tuple[str, ...] = FEATURE_NAMES[_MEMORYLESS:]


def _definition_hash() -> str:
    definition = {
        "revision": KERNEL_REVISION,
        "features": DEFINITIONS,
        "tracked": [(tracked.sensor, tracked.floor) for tracked in TRACKED],
        "constants": [FAST_S, MEDIUM_S, SLOW_S, RESET_GAP_S, HOLD_S, WARM_S, RAISED_SCORE],
    }
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


#: SHA-256 of the definition above, and the short name that manifests and tables carry.
FEATURE_SET_HASH = _definition_hash()
FEATURE_SET_VERSION = f"{KERNEL_REVISION}-{FEATURE_SET_HASH[:12]}"

#: Feature -> the sensors without any of which there is no such number; ``raised_sensors`` counts those that are there.
_RESTS_ON: dict[str, frozenset[str]] = {
    **{name: frozenset((name,)) for name in CURRENT},
    "fine_fraction": frozenset(("pm1_0", "pm2_5")),
    "coarse_fraction": frozenset(("nc0_5", "nc2_5")),
    **{f"{name}_{what}": frozenset((name,)) for name in TRACKED_NAMES for what in ("rise", "score", "rate")},
    "smoke_and_gas": frozenset(("pm2_5", "tvoc_ppb")),
    "smoke_and_heat": frozenset(("pm2_5", "temperature_c")),
    "smoke_and_co": frozenset(("pm2_5", "co_ppm")),
    "dry_heat": frozenset(("temperature_c", "humidity_pct")),
    "raised_sensors": frozenset(),
}

_T = len(TRACKED)
_SENSOR_PLACE = {name: place for place, name in enumerate(ALL_SENSOR_NAMES)}
_TRACKED_COLUMNS = np.array([_SENSOR_PLACE[name] for name in TRACKED_NAMES])
_CURRENT_COLUMNS = np.array([_SENSOR_PLACE[name] for name in CURRENT])
_FLOORS: Floats = np.array([tracked.floor for tracked in TRACKED])
_TRACK = {name: place for place, name in enumerate(TRACKED_NAMES)}

# Columns of a device's row: its clock, then blocks of one number for each tracked sensor.
_CLOCK = 0
_LAST, _START, _FAST, _MEDIUM, _SLOW, _SPREAD = (slice(1 + block * _T, 1 + (block + 1) * _T) for block in range(6))
STATE_WIDTH = 1 + 6 * _T
#: Rows worked on at once: as many as stay in the processor's cache.
_BLOCK_ROWS = 2_048


class FeatureState:
    """What the features remember of each device, one row of plain float64 for each slot.

    A slot is a number that the caller gives a device. Row layout (``STATE_WIDTH`` numbers): greatest event time in
    epoch seconds, then for each tracked sensor the time of its last and of its first measurement, the fast, medium
    and slow baseline and the mean absolute deviation. -inf stands for "never", NaN for "no baseline".
    """

    __slots__ = ("table",)

    def __init__(self, capacity: int = 0) -> None:
        self.table: Floats = _blank(capacity)

    @property
    def capacity(self) -> int:
        return len(self.table)

    def ensure(self, capacity: int) -> None:
        """Makes room for slots below ``capacity``; grows by at least half so that repeated calls stay cheap."""
        missing = capacity - self.capacity
        if missing > 0:
            self.table = np.concatenate([self.table, _blank(max(missing, self.capacity // 2))])

    def clock(self, slot: int) -> float:
        """Greatest event time of this slot in epoch seconds, -inf before its first reading."""
        return float(self.table[slot, _CLOCK])

    def clocks(self, slots: Integers) -> Floats:
        """The same of several slots: float64 ``[k]``."""
        clocks: Floats = self.table[slots, _CLOCK]
        return clocks

    def clear(self, slots: Integers) -> None:
        """Forgets what is known of these slots."""
        self.table[slots] = _blank(1)

    def export(self, slots: Integers) -> Floats:
        """The rows of ``slots``: float64 ``[k, STATE_WIDTH]``, to be kept elsewhere."""
        return self.table[slots]

    def restore(self, slots: Integers, rows: Floats) -> None:
        """Puts rows from ``export`` back, of this or of another state.

        Raises:
            ValueError: for rows of another width, that is, of another feature definition.
        """
        if rows.ndim != 2 or rows.shape[1] != STATE_WIDTH:
            raise ValueError(f"rows have shape {rows.shape}; this definition keeps {STATE_WIDTH} numbers a device")
        self.ensure(int(slots.max(initial=-1)) + 1)
        self.table[slots] = rows


def _blank(rows: int) -> Floats:
    table = np.full((rows, STATE_WIDTH), np.nan)
    table[:, _CLOCK] = -np.inf
    table[:, _LAST] = -np.inf
    table[:, _START] = -np.inf
    return table


def step(state: FeatureState, slots: Integers, event_time_s: Floats, sensors: Floats) -> Features:
    """Takes readings in the order given, moves the state on, and gives the features of each.

    Args:
        state: moved on in place; it grows to hold every slot.
        slots: int64 ``[n]``, which device each reading is of.
        event_time_s: float64 ``[n]``, epoch seconds. A reading older than its device's clock gets features but
            leaves the state as it is; so does a repeated one.
        sensors: float64 ``[n, 13]`` in the order of ``readings.ALL_SENSOR_NAMES``; NaN means not measured.

    Returns:
        float32 ``[n, FEATURE_COUNT]`` in the order of ``FEATURE_NAMES``; NaN where a sensor was not measured, and in
        the features with memory while the device is cold.
    """
    count = len(slots)
    _check_shapes(count, event_time_s, sensors)
    answer = np.empty((count, FEATURE_COUNT), dtype=np.float32)
    if count == 0:
        return answer
    state.ensure(int(slots.max()) + 1)
    # -0.0 becomes 0.0 here and in the result: minimum and maximum may pick either of the two.
    values = sensors + 0.0
    for low in range(0, count, _BLOCK_ROWS):
        block = slice(low, low + _BLOCK_ROWS)
        rows = _follow(state.table, slots[block], event_time_s[block], values[block, _TRACKED_COLUMNS])
        answer[block] = _features(event_time_s[block], values[block], rows)
    return answer


def single_reading_features(sensors: Floats) -> Features:
    """Features of readings that stand alone (their devices unknown): those with memory are NaN, "cold".

    Args:
        sensors: float64 ``[n, 13]``; NaN means not measured.

    Returns:
        float32 ``[n, FEATURE_COUNT]``, equal to what a device's first reading gets from ``step``.
    """
    # Nothing is known of any device, so nothing with memory is worked out: six times as fast as through ``_features``.
    answer = np.full((len(sensors), FEATURE_COUNT), np.nan, dtype=np.float32)
    _write_memoryless(answer, sensors + 0.0)
    answer[np.isnan(answer)] = np.float32(np.nan)
    return answer


def one_device_features(event_time_s: Floats, sensors: Floats) -> Features:
    """Features of one device's readings, in the order given and from a blank state; shapes as in ``step``."""
    return step(FeatureState(1), np.zeros(len(event_time_s), dtype=np.int64), event_time_s, sensors)


def cold(features: Features) -> npt.NDArray[np.bool_]:
    """Which rows have no feature with memory at all: bool ``[n]``."""
    answer: npt.NDArray[np.bool_] = np.all(np.isnan(features[:, _MEMORYLESS:]), axis=1)
    return answer


def as_cold(features: Features) -> Features:
    """The same rows as if each reading stood alone."""
    copy = features.copy()
    copy[:, _MEMORYLESS:] = np.nan
    return copy


def rests_on(feature: str, sensors: Sequence[str]) -> bool:
    """Whether a feature is computed from any of these sensors."""
    if feature == "raised_sensors":
        return not set(sensors).isdisjoint(RAISED_BY_FIRE)
    return not _RESTS_ON[feature].isdisjoint(sensors)


def without(features: Features, sensors: Sequence[str]) -> Features:
    """The same rows as if a device had never had these sensors: equal to what ``step`` gives for it.

    Args:
        features: float32 ``[n, FEATURE_COUNT]``.
        sensors: of ``readings.ALL_SENSOR_NAMES``.
    """
    copy = features.copy()
    absent = set(sensors)
    for name in FEATURE_NAMES:
        if _RESTS_ON[name] & absent:
            copy[:, FEATURE_NAMES.index(name)] = np.nan
    scores = [FEATURE_NAMES.index(f"{name}_score") for name in RAISED_BY_FIRE if name not in absent]
    known = ~np.isnan(copy[:, scores])
    raised = np.where(known.any(axis=1), (known & (copy[:, scores] > RAISED_SCORE)).sum(axis=1), np.nan)
    copy[:, FEATURE_NAMES.index("raised_sensors")] = raised
    return copy


def sensor_matrix(frame: pl.DataFrame) -> Floats:
    """The sensors of a frame as float64 ``[n, 13]``; a null or an absent column is NaN."""
    import polars as pl

    columns = [
        pl.col(name).cast(pl.Float64).fill_null(np.nan) if name in frame.columns else pl.lit(np.nan).alias(name)
        for name in ALL_SENSOR_NAMES
    ]
    matrix: Floats = np.ascontiguousarray(frame.select(columns).to_numpy(), dtype=np.float64)
    return matrix


def event_seconds(frame: pl.DataFrame) -> Floats:
    """The column ``event_time`` as epoch seconds, float64 ``[n]``."""
    microseconds = frame["event_time"].dt.timestamp("us").to_numpy()
    seconds: Floats = microseconds / 1e6
    return seconds


def features_of_frame(frame: pl.DataFrame, *, chunk_rows: int = 100_000) -> pl.DataFrame:
    """``frame`` with the features added, each device from a blank state.

    Args:
        frame: ``device_id``, ``event_time`` (datetime, UTC) and the sensors; each device's rows in the order in which
            they are to be taken.
        chunk_rows: bounds the memory; the result does not depend on it.

    Returns:
        The frame without the sensors, with ``FEATURE_NAMES`` (float32, NaN kept as NaN) and ``feature_version``.
    """
    import polars as pl

    state = FeatureState(frame["device_id"].n_unique())
    # All devices' k-th readings together: the rounds are as wide as can be, and the bits do not depend on it.
    ranks = frame.select(pl.int_range(pl.len()).over("device_id")).to_series().to_numpy()
    order = np.argsort(ranks, kind="stable")
    slots = (frame["device_id"].rank("dense").cast(pl.Int64) - 1).to_numpy()[order]
    times = event_seconds(frame)[order]
    features = np.empty((frame.height, FEATURE_COUNT), dtype=np.float32)
    for low in range(0, frame.height, chunk_rows):
        chunk = slice(low, low + chunk_rows)
        features[order[chunk]] = step(state, slots[chunk], times[chunk], sensor_matrix(frame[order[chunk]]))
    table = pl.DataFrame({name: features[:, place] for place, name in enumerate(FEATURE_NAMES)})
    kept = [name for name in frame.columns if name not in ALL_SENSOR_NAMES]
    return frame.select(kept).with_columns(pl.lit(FEATURE_SET_VERSION).alias("feature_version")).hstack(table)


def feature_matrix(frame: pl.DataFrame) -> Features:
    """The feature columns of a frame as float32 ``[n, FEATURE_COUNT]``; null is NaN."""
    import polars as pl

    columns = [pl.col(name).cast(pl.Float32).fill_null(np.nan) for name in FEATURE_NAMES]
    matrix: Features = np.ascontiguousarray(frame.select(columns).to_numpy(), dtype=np.float32)
    return matrix


def describe() -> dict[str, Any]:
    """The definition as manifests carry it."""
    return {"version": FEATURE_SET_VERSION, "sha256": FEATURE_SET_HASH, "features": DEFINITIONS}


def _check_shapes(count: int, event_time_s: Floats, sensors: Floats) -> None:
    if event_time_s.shape != (count,) or sensors.shape != (count, len(ALL_SENSOR_NAMES)):
        raise ValueError(
            f"{count} slots, times of shape {event_time_s.shape}, sensors of shape {sensors.shape}: expected "
            f"({count},) and ({count}, {len(ALL_SENSOR_NAMES)})"
        )


def _follow(table: Floats, slots: Integers, times: Floats, values: Floats) -> Floats:
    """Each reading's row of the table as it is after that reading, float64 ``[n, STATE_WIDTH]``."""
    order, bounds = rounds(slots)
    if len(bounds) == 2:
        return _advance(table, slots, times, values)
    slots, times, values = slots[order], times[order], values[order]
    after = np.empty((len(slots), STATE_WIDTH))
    for low, high in pairwise(bounds):
        after[low:high] = _advance(table, slots[low:high], times[low:high], values[low:high])
    rows = np.empty_like(after)
    rows[order] = after
    return rows


def rounds(slots: Integers) -> tuple[Integers, Integers]:
    """Row order in which each device's k-th reading comes in round k, and where the rounds begin and end."""
    count = len(slots)
    by_device = np.argsort(slots, kind="stable")
    in_order = slots[by_device]
    first = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]]))
    if len(first) == count:
        return by_device, np.array([0, count])
    lengths = np.diff(np.append(first, count))
    round_of = np.empty(count, dtype=np.int64)
    round_of[by_device] = np.arange(count) - np.repeat(first, lengths)
    order = np.argsort(round_of, kind="stable")
    return order, np.concatenate([[0], np.cumsum(np.bincount(round_of))])


def _advance(table: Floats, slots: Integers, times: Floats, values: Floats) -> Floats:
    """Moves the rows of ``slots`` (each once) on by one reading and returns them, float64 ``[m, STATE_WIDTH]``.

    The baselines are first-order low passes in implicit Euler form, B += dt / (tau + dt) * (x - B), with tau no
    longer than what the baseline has seen: until then it is the mean of all measurements.
    """
    rows = table[slots]
    now = times[:, None]
    measured = ~np.isnan(values) & (now >= rows[:, :1])
    elapsed = now - rows[:, _LAST]
    fresh = elapsed > RESET_GAP_S
    elapsed = np.where(measured & ~fresh, elapsed, 0.0)
    start = np.where(fresh, now, rows[:, _START])
    age = np.where(measured, now - start, 0.0)

    slow_before = rows[:, _SLOW]
    renewed = measured & fresh
    for block, tau in ((_FAST, FAST_S), (_MEDIUM, MEDIUM_S), (_SLOW, SLOW_S)):
        weight = elapsed / np.maximum(np.minimum(age, tau) + elapsed, 1e-9)
        baseline = rows[:, block]
        moved = np.where(renewed, values, baseline + weight * (values - baseline))
        if block is _SLOW:
            spread = rows[:, _SPREAD]
            distance = np.abs(values - slow_before)
            spread = np.where(renewed, 0.0, spread + weight * (distance - spread))
            rows[:, _SPREAD] = np.where(measured, spread, rows[:, _SPREAD])
        rows[:, block] = np.where(measured, moved, baseline)
    rows[:, _START] = np.where(measured, start, rows[:, _START])
    rows[:, _LAST] = np.where(measured, now, rows[:, _LAST])
    rows[:, _CLOCK] = np.maximum(rows[:, _CLOCK], times)
    table[slots] = rows
    return rows


def _write_memoryless(answer: Features, sensors: Floats) -> None:
    """Writes the features that need the present reading only."""
    answer[:, : len(CURRENT)] = sensors[:, _CURRENT_COLUMNS]
    pm1_0, pm2_5, nc0_5, nc2_5 = (sensors[:, _SENSOR_PLACE[name]] for name in ("pm1_0", "pm2_5", "nc0_5", "nc2_5"))
    answer[:, _MEMORYLESS - 2] = pm1_0 / (pm2_5 + 1.0)
    answer[:, _MEMORYLESS - 1] = nc2_5 / (nc0_5 + 1.0)


def _features(times: Floats, sensors: Floats, rows: Floats) -> Features:
    """The features of readings whose devices' rows, after the reading, are ``rows``."""
    answer = np.empty((len(sensors), FEATURE_COUNT), dtype=np.float32)
    _write_memoryless(answer, sensors)

    last = rows[:, _LAST]
    known = (last >= rows[:, _START] + WARM_S) & (np.abs(times[:, None] - last) <= HOLD_S)
    fast = np.where(known, rows[:, _FAST], np.nan)
    rise = fast - rows[:, _SLOW]
    ratio = rise / (rows[:, _SPREAD] + _FLOORS)
    score = ratio / (1.0 + np.abs(ratio))
    at = _MEMORYLESS
    answer[:, at : at + _T] = rise
    answer[:, at + _T : at + 2 * _T] = score
    answer[:, at + 2 * _T : at + 3 * _T] = (fast - rows[:, _MEDIUM]) * (60.0 / (MEDIUM_S - FAST_S))

    smoke = score[:, _TRACK["pm2_5"]]
    heat = score[:, _TRACK["temperature_c"]]
    raised_columns = [_TRACK[name] for name in RAISED_BY_FIRE]
    answer[:, at + 3 * _T] = np.minimum(smoke, score[:, _TRACK["tvoc_ppb"]])
    answer[:, at + 3 * _T + 1] = np.minimum(smoke, heat)
    answer[:, at + 3 * _T + 2] = np.minimum(smoke, score[:, _TRACK["co_ppm"]])
    answer[:, at + 3 * _T + 3] = heat - score[:, _TRACK["humidity_pct"]]
    raised = score[:, raised_columns]
    counted = np.where(known[:, raised_columns].any(axis=1), (raised > RAISED_SCORE).sum(axis=1), np.nan)
    answer[:, at + 3 * _T + 4] = counted
    answer += np.float32(0.0)
    # A NaN can carry a sign and a payload, which depend on the order of operands: one NaN for all.
    answer[np.isnan(answer)] = np.float32(np.nan)
    return answer
