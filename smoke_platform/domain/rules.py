"""The rules that raise a fire alarm without any model, and their evaluation over a batch of readings.

Belongs here: each rule with its limits, persistence, source and meaning; what a device's rules remember; the one pass
that turns readings into verdicts, sensor faults and data quality included. Does not: limits of single values
(``domain.levels``), the tables of faults and quality (``domain.faults``), what becomes of an alarm once its condition
is asserted (``domain.alarm_machine``).

A rule compares one or two signals with a raise limit. It is asserted when the limits have been reached in enough
readings and for long enough (event time), and stays so until a signal has fallen below its clear limit. A sensor that
is not measured neither raises nor clears.

Only comparisons, additions, multiplications and divisions of one device's numbers are used, so that verdicts are equal
bit by bit however readings are split into batches and devices interleaved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from smoke_platform.domain import faults as f
from smoke_platform.domain.alarms import Severity
from smoke_platform.domain.faults import DRIFTING, FAULTS, MOVING, NOISE_LIMITS
from smoke_platform.domain.features import FEATURE_NAMES, FEATURE_SET_HASH, RESET_GAP_S, rounds
from smoke_platform.domain.levels import LEVELS, SMOKE_ALARM, SMOKE_DENSE, SMOKE_WARNING, levels
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, RejectReason

__all__ = [
    "FAULTS",
    "LEVELS",
    "RULES",
    "RULES_VERSION",
    "Rule",
    "RuleState",
    "Term",
    "Verdicts",
    "evaluate",
    "fault_names",
    "levels",
    "reject",
    "rule_names",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: Raised when the arithmetic changes without a change of any table.
KERNEL_REVISION = 1

#: After a silence longer than this a condition that has not been asserted yet is counted anew, as features begin anew:
#: a device that reports more rarely can't be judged by persistence.
GAP_S = RESET_GAP_S
#: A rule whose sensors are not measured keeps its state for this long.
HOLD_S = 300.0


#: How fast the reference of ``warmer`` follows the temperature: slower than any rate of rise that is a sign of fire.
FOLLOW_K_PER_MIN = 2.0


@dataclass(frozen=True, slots=True)
class Term:
    """A signal and its two limits. Signals: a sensor, a feature, ``smoke``, ``model`` or ``warmer``.

    ``smoke`` is the greater of pm1_0 and pm2_5, as far as measured, in ug/m3; ``model`` is score / threshold;
    ``warmer`` is the present temperature less a reference that follows it by ``FOLLOW_K_PER_MIN``: rates of rise
    smooth over ten seconds, so that one spike is in them for longer than it lasted.
    """

    signal: str
    raises_at: float
    clears_below: float
    unit: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        name: as it stands in an alarm's evidence.
        severity: LOW and MEDIUM are warnings; HIGH and CRITICAL are fire alarms.
        group: what it rests on; HIGH rules of two groups together are CRITICAL (rule ``agreement``).
        terms: all must be reached. Empty for ``agreement``, which follows from the others.
        persist_s, readings: both must be reached: event time since the condition began, and readings in which it held.
    """

    name: str
    severity: Severity
    group: str
    terms: tuple[Term, ...]
    persist_s: float
    readings: int
    source: str
    meaning: str


def _heat(raises_at: float, clears_below: float) -> Term:
    return Term("temperature_c", raises_at, clears_below, "degC")


def _heat_rate(raises_at: float, clears_below: float) -> Term:
    return Term("temperature_c_rate", raises_at, clears_below, "K/min")


_WARMER = Term("warmer", 1.0, 0.5, "K")


def _smoke(raises_at: float, clears_below: float) -> Term:
    return Term("smoke", raises_at, clears_below, "ug/m3")


def _co(raises_at: float, clears_below: float) -> Term:
    return Term("co_ppm", raises_at, clears_below, "ppm")


#: How long smoke must last. One reading proves nothing; beyond that, waiting up to half a minute spared hardly one
#: simulated nuisance (toast lasts), and each second of it is lost in a flaming fire.
SMOKE_PERSIST_S = 3.0

_LOW, _MEDIUM, _HIGH, _CRITICAL = Severity
_A1 = "EN 54-5 class A1: static response 54 to 65 degC"
_CO_SOURCE = "EN 50291-1"
_OBSCURATION = "{} dB/m at 8.7 m2/g (EN 14604, EN 54-7; Mulholland and Croarkin 2000)"

#: In the order of the bits of ``Verdicts.hits``.
RULES: Final[tuple[Rule, ...]] = (
    Rule("heat", _HIGH, "heat", (_heat(54, 50),), 2, 2, _A1, "too hot for any room"),
    Rule("heat_extreme", _CRITICAL, "heat", (_heat(65, 60),), 2, 2, _A1, "upper end of the class's response"),
    Rule(
        "heat_rise",
        _HIGH,
        "heat",
        (_heat_rate(8.3, 4.0), Term("temperature_c_rise", 5.0, 2.5, "K"), _WARMER),
        3,
        2,
        "NFPA 72: 15 degF (8.3 K) a minute. That it must have risen by 5 K in all: judgement",
        "it becomes hot fast",
    ),
    Rule(
        "smoke_warning",
        _MEDIUM,
        "smoke",
        (_smoke(SMOKE_WARNING, SMOKE_WARNING / 2),),
        10,
        2,
        _OBSCURATION.format(0.05),
        "half of what a smoke alarm needs",
    ),
    Rule(
        "smoke_growth",
        _LOW,
        "smoke",
        (Term("pm2_5_score", 0.9, 0.75, ""), Term("pm2_5_rise", SMOKE_WARNING / 2, SMOKE_WARNING / 4, "ug/m3")),
        10,
        3,
        "judgement: nine spreads above the device's own normal, and a quarter of what a smoke alarm needs",
        "far more smoke than this device is used to",
    ),
    Rule(
        "smoke",
        _HIGH,
        "smoke",
        (_smoke(SMOKE_ALARM, SMOKE_WARNING),),
        SMOKE_PERSIST_S,
        2,
        _OBSCURATION.format(0.1),
        "smoke at which a smoke alarm sounds",
    ),
    Rule(
        "smoke_dense",
        _CRITICAL,
        "smoke",
        (_smoke(SMOKE_DENSE, SMOKE_ALARM),),
        SMOKE_PERSIST_S,
        2,
        _OBSCURATION.format(0.2),
        "smoke at which the least sensitive smoke alarm must have sounded",
    ),
    Rule(
        "smoke_and_heat",
        _HIGH,
        "heat",
        (_heat_rate(2.5, 1.0), _smoke(100, 50), _WARMER),
        3,
        2,
        "judgement, after multi-sensor detectors: a third of the rate of rise suffices beside particles",
        "smoke, and it becomes warm faster than a bath or a stove makes it",
    ),
    Rule(
        "smoke_and_co",
        _HIGH,
        "co",
        (_co(30, 15), _smoke(SMOKE_WARNING / 2, SMOKE_WARNING / 4)),
        SMOKE_PERSIST_S,
        2,
        "judgement: the lowest level of EN 50291-1 and a quarter of what a smoke alarm needs",
        "smoke that comes from incomplete burning",
    ),
    Rule(
        "smoke_and_gas",
        _HIGH,
        "gas",
        (Term("eco2_ppm", 5_000, 2_500, "ppm"), _smoke(SMOKE_WARNING / 2, SMOKE_WARNING / 4)),
        SMOKE_PERSIST_S,
        2,
        "judgement: the chip takes eCO2 from hydrogen, which burning frees; 5,000 ppm is beyond what people exhale",
        "the same without a CO cell",
    ),
    Rule("co_warning", _MEDIUM, "co", (_co(30, 15),), 300, 3, _CO_SOURCE + ": 30 ppm, no alarm", "CO is present"),
    Rule("co_50", _HIGH, "co", (_co(50, 40),), 3_600, 3, _CO_SOURCE + ": 50 ppm in 60 to 90 min", "CO poisons"),
    Rule("co_100", _HIGH, "co", (_co(100, 80),), 600, 3, _CO_SOURCE + ": 100 ppm in 10 to 40 min", "CO poisons"),
    Rule("co_300", _CRITICAL, "co", (_co(300, 240),), 60, 2, _CO_SOURCE + ": 300 ppm within 3 min", "CO poisons soon"),
    Rule(
        "gas_eco2",
        _LOW,
        "gas",
        (Term("eco2_ppm", 5_000, 2_500, "ppm"),),
        600,
        3,
        "8 h occupational limit of CO2; the time: judgement",
        "foul air, or something smoulders",
    ),
    Rule(
        "gas_tvoc",
        _LOW,
        "gas",
        (Term("tvoc_ppb", 20_000, 10_000, "ppb"),),
        600,
        3,
        "judgement: beyond what cleaning leaves for long",
        "solvents, or something smoulders",
    ),
    Rule(
        "model",
        _HIGH,
        "model",
        (Term("model", 1.0, 0.8, "of the threshold"),),
        2,
        3,
        "the champion's own threshold; persistence: judgement",
        "the model takes the readings for a fire",
    ),
    Rule(
        "agreement",
        _CRITICAL,
        "",
        (),
        0,
        0,
        "judgement: sensors that rest on different physics are not fooled together",
        "HIGH rules of two groups are asserted at once",
    ),
)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the rules say after each message, arrays ``[n]``.

    Attributes:
        fire_level: uint8, 0 to 4: the worst severity that is asserted.
        fire_hold: bool: a rule of MEDIUM or worse is still asserted, so that a fire alarm is not over.
        hits: uint32, the asserted rules; bit k is ``RULES[k]``.
        fault_level, fault_hold, faults: the same of sensor faults, over ``FAULTS``.
        quality_level: uint8, 0 (good) to 3.
        quality_hold: bool: the quality is not good yet.
    """

    fire_level: npt.NDArray[np.uint8]
    fire_hold: Flags
    hits: npt.NDArray[np.uint32]
    fault_level: npt.NDArray[np.uint8]
    fault_hold: Flags
    faults: npt.NDArray[np.uint32]
    quality_level: npt.NDArray[np.uint8]
    quality_hold: Flags


def rule_names(mask: int) -> tuple[str, ...]:
    """Names of the rules whose bits are set."""
    return tuple(rule.name for bit, rule in enumerate(RULES) if mask >> bit & 1)


def fault_names(mask: int) -> tuple[str, ...]:
    """Names of the faults whose bits are set."""
    return tuple(fault.name for bit, fault in enumerate(FAULTS) if mask >> bit & 1)


# -- the tables as arrays --------------------------------------------------------------------------------
_R = len(RULES) - 1
_A = _R + len(DRIFTING)
_M = len(MOVING)
_PLACE = {name: place for place, name in enumerate(ALL_SENSOR_NAMES)}
_PM1_0, _PM2_5 = _PLACE["pm1_0"], _PLACE["pm2_5"]
_MOVING_COLUMNS = np.array([_PLACE[name] for name in MOVING])


def _conditions() -> list[tuple[Term, Term, float, int]]:
    """First and second term (the same where there is one), seconds and readings of each asserted condition."""
    found = []
    for rule in RULES[:_R]:
        # ``warmer`` rests on the device's state and is looked at apart.
        terms = [term for term in rule.terms if term is not _WARMER]
        found.append((terms[0], terms[-1], rule.persist_s, rule.readings))
    for fault in DRIFTING:
        prefix = "" if fault.direction > 0 else "-"
        raises_at, holds_from = fault.direction * fault.raises_at, fault.direction * fault.holds_from
        term = Term(prefix + fault.sensor, raises_at, holds_from, fault.unit)
        found.append((term, term, fault.persist_s, fault.readings))
    return found


_CONDITIONS = _conditions()
_BOTH_TERMS = [first for first, *_ in _CONDITIONS] + [second for _, second, *_ in _CONDITIONS]
_USED = sorted({term.signal for term in _BOTH_TERMS} - {"smoke", "model"})
_OF_SENSORS = [name for name in _USED if name in _PLACE]
_OF_FEATURES = [name for name in _USED if name in FEATURE_NAMES and name not in _PLACE]
_NEGATED = [name for name in _USED if name.startswith("-")]
_SIGNALS = [*_OF_SENSORS, *_OF_FEATURES, *_NEGATED, "smoke", "model"]
_SENSOR_PART, _FEATURE_PART = len(_OF_SENSORS), len(_OF_SENSORS) + len(_OF_FEATURES)
_SIGNAL_SENSORS = np.array([_PLACE[name] for name in _OF_SENSORS])
_SIGNAL_FEATURES = np.array([FEATURE_NAMES.index(name) for name in _OF_FEATURES])
_SIGNAL_NEGATED = np.array([_PLACE[name[1:]] for name in _NEGATED])
_TERMS = np.array([_SIGNALS.index(term.signal) for term in _BOTH_TERMS])
_RAISE = np.array([term.raises_at for term in _BOTH_TERMS], dtype=np.float64)
_CLEAR = np.array([term.clears_below for term in _BOTH_TERMS], dtype=np.float64)
_PERSIST = np.array([seconds for *_, seconds, _ in _CONDITIONS], dtype=np.float64)
_READINGS = np.array([readings for *_, readings in _CONDITIONS], dtype=np.float64)
_NEED_WARMER = np.array([_WARMER in rule.terms for rule in RULES[:_R]] + [False] * len(DRIFTING))
_TEMPERATURE = MOVING.index("temperature_c")
_RAISED_SENSORS = FEATURE_NAMES.index("raised_sensors")

_WARNS = np.flatnonzero([rule.severity >= Severity.MEDIUM for rule in RULES[:_R]])
_BASE = 64.0
_SEVERITY_SUMS = np.array([_BASE**severity for severity in Severity])
_GROUPS = sorted({rule.group for rule in RULES if rule.group})
_AGREEMENT_BIT = float(1 << _R)


def _summing() -> Floats:
    """What asserted conditions are multiplied by: bits as rules, bits as faults, severities, HIGH ones of each group.

    Everything is a whole number below 2**53, so that sums are exact in whatever order they are taken. Severities are
    digits to the base ``_BASE``, which is more than there are rules: the highest digit that is not zero is the worst.
    """
    table = np.zeros((_A, 3 + len(_GROUPS)))
    for row, rule in enumerate(RULES[:_R]):
        table[row, 0] = 1 << row
        table[row, 2] = _BASE**rule.severity
        if rule.severity >= Severity.HIGH:
            table[row, 3 + _GROUPS.index(rule.group)] = 1
    for row in range(len(DRIFTING)):
        table[_R + row, 1] = 1 << row
    return table


_SUMMING = _summing()
_STUCK_BITS = np.array([float(1 << len(DRIFTING) + k) for k in range(_M)])
_NOISY_BITS = np.zeros(_M)
_NOISE_RAISE = np.full(_M, np.inf)
for _bit, _sensor in enumerate(NOISE_LIMITS, start=len(DRIFTING) + _M):
    _NOISY_BITS[MOVING.index(_sensor)] = float(1 << _bit)
    _NOISE_RAISE[MOVING.index(_sensor)] = NOISE_LIMITS[_sensor]
_NOISE_HOLD = _NOISE_RAISE * f.NOISE_HOLD
_NOISE_MOST = np.where(np.isfinite(_NOISE_RAISE), f.NOISE_CAP * _NOISE_RAISE, 0.0)
_OUT_BIT = float(1 << len(FAULTS) - 1)
_SERIOUS_FAULTS = sum(1 << bit for bit, fault in enumerate(FAULTS) if fault.severity >= Severity.MEDIUM)

# Of how many limits the quality is not below -> its level.
_QUALITY_EDGES = np.array(sorted(f.QUALITY_LEVELS))
_QUALITY_STEPS = np.arange(len(_QUALITY_EDGES), -1, -1, dtype=np.uint8)

_SENSOR_BITS = np.array([float(1 << place) for place in range(len(ALL_SENSOR_NAMES))])
_BITS_SET = np.array([bits.bit_count() for bits in range(1 << len(ALL_SENSOR_NAMES))], dtype=np.float64)
_AT_LEAST_ONE = np.maximum(_BITS_SET, 1.0)

# Columns of a device's row: its clock; for each condition the readings in which it held (inf: asserted), since when,
# and when its sensors last said something; for each moving sensor its last value, how often and since when that
# repeats, its last step, its zigzag; the sensors seen so far as bits, the shares of quality, refused values, and the
# reference of ``warmer``.
_CLOCK = 0
_COUNT, _SINCE, _KNOWN = (slice(1 + k * _A, 1 + (k + 1) * _A) for k in range(3))
_FROM = 1 + 3 * _A
_VALUE, _SAME, _SAME_SINCE, _STEP, _ZIGZAG = (slice(_FROM + k * _M, _FROM + (k + 1) * _M) for k in range(5))
_SEEN, _MISSING, _REJECTED, _LATE, _OUT = range(_FROM + 5 * _M, _FROM + 5 * _M + 5)
_REFERENCE = _OUT + 1
STATE_WIDTH = _REFERENCE + 1

_READING, _REFUSED, _IMPOSSIBLE = 0, 1, 2
#: A threshold of zero takes everything for a fire; it is divided by.
_LEAST_THRESHOLD = 1e-9
_IMPOSSIBLE_REASONS = frozenset({RejectReason.OUT_OF_RANGE, RejectReason.NOT_FINITE})
#: Rows worked on at once: as many as stay in the processor's cache.
_BLOCK_ROWS = 1_024


def _version() -> str:
    parts = (
        [KERNEL_REVISION, GAP_S, HOLD_S, FOLLOW_K_PER_MIN, FEATURE_SET_HASH, STATE_WIDTH],
        [astuple(rule) for rule in RULES],
        [astuple(fault) for fault in FAULTS],
        [MOVING, f.NOISE_READINGS, f.NOISE_CAP, f.OUT_OF_RANGE_LEAK, f.OUT_OF_RANGE_MOST],
        [f.QUALITY_READINGS, f.QUALITY_LEVELS, f.QUALITY_HOLD],
    )
    return f"{KERNEL_REVISION}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"


#: Names rules, faults and quality as they are here. State that was kept under another version means something else.
RULES_VERSION = _version()


class RuleState:
    """What the rules remember of each device, one row of ``STATE_WIDTH`` float64 for each slot."""

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

    def clear(self, slots: Integers) -> None:
        """Forgets what is known of these slots."""
        self.table[slots] = _blank(1)

    def export(self, slots: Integers) -> Floats:
        """The rows of ``slots``: float64 ``[k, STATE_WIDTH]``, to be kept elsewhere."""
        return self.table[slots]

    def restore(self, slots: Integers, rows: Floats) -> None:
        """Puts rows from ``export`` back, of this or of another state.

        Raises:
            ValueError: for rows of another width, that is, of other rules.
        """
        if rows.ndim != 2 or rows.shape[1] != STATE_WIDTH:
            raise ValueError(f"rows have shape {rows.shape}; these rules keep {STATE_WIDTH} numbers a device")
        self.ensure(int(slots.max(initial=-1)) + 1)
        self.table[slots] = rows


def _blank(rows: int) -> Floats:
    table = np.zeros((rows, STATE_WIDTH))
    table[:, _CLOCK] = -np.inf
    table[:, _KNOWN] = -np.inf
    table[:, _VALUE] = np.nan
    table[:, _REFERENCE] = np.nan
    return table


# -- evaluation ------------------------------------------------------------------------------------------
def evaluate(
    state: RuleState,
    slots: Integers,
    event_time_s: Floats,
    sensors: Floats,
    features: npt.NDArray[np.float32],
    scores: Floats,
    threshold: float | None,
    *,
    refused: Sequence[RejectReason | None] | None = None,
) -> Verdicts:
    """Takes readings in the order given, moves the state on, and says what is the case after each.

    Args:
        state: moved on in place; it grows to hold every slot.
        slots: int64 ``[n]``, which device each reading is of.
        event_time_s: float64 ``[n]``, epoch seconds. A reading that is not newer than its device's newest one gets
            the verdict that stands; an older one counts for the data quality, a repeated one for nothing.
        sensors: float64 ``[n, 13]`` in the order of ``readings.ALL_SENSOR_NAMES``; NaN means not measured.
        features: float32 ``[n, 47]``, as ``features.step`` gives them for these readings.
        scores: float64 ``[n]``, the model's fire probability; NaN where there is none.
        threshold: the model's own; ``None`` without a model.
        refused: of each row why it is no reading, or ``None`` where it is one. It lets a caller keep messages that
            were refused in their place among a device's readings; their times, sensors and features are not looked at.
    """
    codes = None if refused is None else np.array([_code(reason) for reason in refused], dtype=np.uint8)
    return _judged(state, slots, event_time_s, sensors, features, scores, threshold, codes)


def reject(state: RuleState, slots: Integers, reasons: Sequence[RejectReason]) -> Verdicts:
    """Takes messages that were no readings, of devices known by their keys, and says what is the case after each.

    Args:
        state: moved on in place.
        slots: int64 ``[n]``, which device each message is of.
        reasons: why each was refused.
    """
    count = len(slots)
    nothing = np.full((count, len(ALL_SENSOR_NAMES)), np.nan)
    no_features = np.full((count, len(FEATURE_NAMES)), np.nan, dtype=np.float32)
    codes = np.array([_code(reason) for reason in reasons], dtype=np.uint8)
    return _judged(state, slots, np.full(count, np.nan), nothing, no_features, np.full(count, np.nan), None, codes)


def _code(reason: RejectReason | None) -> int:
    if reason is None:
        return _READING
    return _IMPOSSIBLE if reason in _IMPOSSIBLE_REASONS else _REFUSED


def _judged(
    state: RuleState,
    slots: Integers,
    times: Floats,
    sensors: Floats,
    features: npt.NDArray[np.float32],
    scores: Floats,
    threshold: float | None,
    codes: npt.NDArray[np.uint8] | None,
) -> Verdicts:
    count = len(slots)
    _check_shapes(count, times, sensors, features, scores)
    if count:
        state.ensure(int(slots.max()) + 1)
    if codes is not None:
        times = np.where(codes == _READING, times, np.nan)
    if count <= _BLOCK_ROWS:
        return _verdicts(_follow(state.table, slots, times, sensors, features, scores, threshold, codes))
    parts = []
    for low in range(0, count, _BLOCK_ROWS):
        block = slice(low, low + _BLOCK_ROWS)
        part_codes = None if codes is None else codes[block]
        rows = _follow(
            state.table,
            slots[block],
            times[block],
            sensors[block],
            features[block],
            scores[block],
            threshold,
            part_codes,
        )
        parts.append(_verdicts(rows))
    return Verdicts(*(np.concatenate([getattr(part, name) for part in parts]) for name in Verdicts.__slots__))


def _check_shapes(
    count: int, times: Floats, sensors: Floats, features: npt.NDArray[np.float32], scores: Floats
) -> None:
    expected = ((count,), (count, len(ALL_SENSOR_NAMES)), (count, len(FEATURE_NAMES)), (count,))
    found = (times.shape, sensors.shape, features.shape, scores.shape)
    if found != expected:
        raise ValueError(f"times, sensors, features, scores have shapes {found}, expected {expected}")


def _signals(sensors: Floats, features: npt.NDArray[np.float32], scores: Floats, threshold: float | None) -> Floats:
    """What the conditions compare, first terms and then second ones: float64 ``[n, 2 A]``; NaN: not known."""
    signals = np.empty((len(sensors), len(_SIGNALS)))
    signals[:, :_SENSOR_PART] = sensors[:, _SIGNAL_SENSORS]
    signals[:, _SENSOR_PART:_FEATURE_PART] = features[:, _SIGNAL_FEATURES]
    signals[:, _FEATURE_PART:-2] = -sensors[:, _SIGNAL_NEGATED]
    signals[:, -2] = np.fmax(sensors[:, _PM1_0], sensors[:, _PM2_5])
    signals[:, -1] = np.nan if threshold is None else scores / max(threshold, _LEAST_THRESHOLD)
    return np.take(signals, _TERMS, axis=1)


def _follow(
    table: Floats,
    slots: Integers,
    times: Floats,
    sensors: Floats,
    features: npt.NDArray[np.float32],
    scores: Floats,
    threshold: float | None,
    codes: npt.NDArray[np.uint8] | None,
) -> Floats:
    """Each message's row of the table as it is after that message, float64 ``[n, STATE_WIDTH]``."""
    if len(slots) == 0:
        return np.empty((0, STATE_WIDTH))
    signals = _signals(sensors, features, scores, threshold)
    over = signals >= _RAISE
    over = over[:, :_A] & over[:, _A:]
    ended = signals < _CLEAR
    ended = ended[:, :_A] | ended[:, _A:]
    absent = np.isnan(signals)
    silent = (absent[:, :_A] | absent[:, _A:]) & ~ended
    values = sensors[:, _MOVING_COLUMNS]
    present = ((~np.isnan(sensors)) @ _SENSOR_BITS).astype(np.int64)
    quiet = ~(features[:, _RAISED_SENSORS] >= 2)  # NaN is quiet: a device that is cold has nothing to say
    columns = [times, over, ended, silent, values, present, quiet]
    if codes is not None:
        columns.append(codes)
    order, bounds = rounds(slots)
    if len(bounds) == 2:
        return _advance(table, slots, *columns)
    slots = slots[order]
    columns = [column[order] for column in columns]
    after = np.empty((len(slots), STATE_WIDTH))
    for low, high in pairwise(bounds):
        after[low:high] = _advance(table, slots[low:high], *(column[low:high] for column in columns))
    rows = np.empty_like(after)
    rows[order] = after
    return rows


def _advance(
    table: Floats,
    slots: Integers,
    times: Floats,
    over: Flags,
    ended: Flags,
    silent: Flags,
    values: Floats,
    present: Integers,
    quiet: Flags,
    codes: npt.NDArray[np.uint8] | None = None,
) -> Floats:
    """Moves the rows of ``slots`` (each once) on by one message and returns them, float64 ``[m, STATE_WIDTH]``."""
    before = table.take(slots, axis=0)
    clock = before[:, _CLOCK]
    newer = np.asarray(times > clock)
    if np.count_nonzero(newer) == len(newer):
        after = _advance_reading(before, times, over, ended, silent, values, present, quiet)
    else:
        after = before.copy()
        places = np.flatnonzero(newer)
        after[places] = _advance_reading(
            before[places],
            times[places],
            over[places],
            ended[places],
            silent[places],
            values[places],
            present[places],
            quiet[places],
        )
        late = times < clock
        after[:, _LATE] += np.where(late, (1.0 - before[:, _LATE]) / f.QUALITY_READINGS, 0.0)
        after[:, _REJECTED] -= np.where(late, before[:, _REJECTED] / f.QUALITY_READINGS, 0.0)
    if codes is not None:
        # In a fire a sensor may leave its range: what it sends then is no fault.
        counted = (codes != _READING) & ~_burning(before)
        after[:, _REJECTED] += np.where(counted, (1.0 - before[:, _REJECTED]) / f.QUALITY_READINGS, 0.0)
        impossible = counted & (codes == _IMPOSSIBLE)
        after[:, _OUT] = np.where(impossible, np.minimum(before[:, _OUT] + 1.0, f.OUT_OF_RANGE_MOST), after[:, _OUT])
    table[slots] = after
    return after


def _burning(rows: Floats) -> Flags:
    """Where a rule of MEDIUM or worse is asserted or on its way."""
    return np.asarray(rows[:, _COUNT][:, _WARNS].any(axis=1))


def _advance_reading(
    rows: Floats,
    times: Floats,
    over: Flags,
    ended: Flags,
    silent: Flags,
    values: Floats,
    present: Integers,
    quiet: Flags,
) -> Floats:
    now = times[:, None]
    gap = now - rows[:, :1] > GAP_S
    count, known = rows[:, _COUNT], rows[:, _KNOWN]
    calm = quiet[:, None]
    temperature, reference = values[:, _TEMPERATURE], rows[:, _REFERENCE]
    most = (times - rows[:, _CLOCK]) * (FOLLOW_K_PER_MIN / 60.0)
    followed = reference + np.minimum(np.maximum(temperature - reference, -most), most)
    # NaN, where there is no temperature or no reference, is passed on by both.
    reference = np.where(
        np.isnan(followed) | gap[:, 0], np.where(np.isnan(temperature), reference, temperature), followed
    )
    rows[:, _REFERENCE] = reference
    # Nearly always nothing is beyond a limit or on its way, and then none of this would change anything.
    # (Counting is several times as fast as ``any`` on arrays of this size.)
    if np.count_nonzero(over) or np.count_nonzero(count):
        warmer = (temperature - reference)[:, None]
        over = over & ~(_NEED_WARMER & ~(warmer >= _WARMER.raises_at))
        ended = ended | (_NEED_WARMER & (warmer < _WARMER.clears_below))
        # The band between the limits keeps what is; silence keeps it too, but not for ever.
        kept = ~ended & ~(silent & (now - known > HOLD_S)) & ((count == np.inf) | ~gap)
        count = np.where(kept, count, 0.0)
        since = np.where(over & (count == 0.0), now, rows[:, _SINCE])
        count += over
        done = over & (count >= _READINGS) & (now - since >= _PERSIST)
        count[done] = np.inf
        rows[:, _COUNT], rows[:, _SINCE] = count, since
        calm = calm & ~_burning(rows)[:, None]
    rows[:, _KNOWN] = np.where(silent, known, now)

    last, step = rows[:, _VALUE], rows[:, _STEP]
    absent = np.isnan(values)
    moved = values - last
    same = moved == 0.0
    renewed = ~(same | absent) | gap
    rows[:, _SAME] = np.where(renewed, 0.0, rows[:, _SAME] + (same & calm))
    rows[:, _SAME_SINCE] = np.where(renewed, now, rows[:, _SAME_SINCE])
    turned = np.minimum(np.minimum(np.abs(moved), np.abs(step)), _NOISE_MOST)
    zigzag = np.where(moved * step < 0.0, turned, 0.0)
    unknown = np.isnan(moved)
    zigzag_before = rows[:, _ZIGZAG]
    rows[:, _ZIGZAG] = np.where(
        calm & ~(unknown | gap), zigzag_before + (zigzag - zigzag_before) / f.NOISE_READINGS, zigzag_before
    )
    rows[:, _STEP] = np.where(unknown, step, moved)
    rows[:, _VALUE] = np.where(absent, last, values)

    seen = rows[:, _SEEN].astype(np.int64) | present
    missing = 1.0 - _BITS_SET[present] / _AT_LEAST_ONE[seen]
    rows[:, _SEEN] = seen
    rows[:, _MISSING] += calm[:, 0] * ((missing - rows[:, _MISSING]) / f.QUALITY_READINGS)
    shares = rows[:, _REJECTED : _LATE + 1]
    shares -= shares / f.QUALITY_READINGS
    rows[:, _OUT] = np.maximum(rows[:, _OUT] - f.OUT_OF_RANGE_LEAK, 0.0)
    rows[:, _CLOCK] = times
    return rows


def _verdicts(rows: Floats) -> Verdicts:
    """What rows of the table say."""
    sums = (rows[:, _COUNT] == np.inf) @ _SUMMING
    agreed = np.count_nonzero(sums[:, 3:], axis=1) >= 2
    level = np.where(agreed, int(Severity.CRITICAL), np.searchsorted(_SEVERITY_SUMS, sums[:, 2], side="right"))
    hits = sums[:, 0] + agreed * _AGREEMENT_BIT
    fire = level >= Severity.HIGH

    zigzag, out = rows[:, _ZIGZAG], rows[:, _OUT]
    bits = sums[:, 1]
    stuck = (rows[:, _SAME] >= f.STUCK_READINGS) & (rows[:, :1] - rows[:, _SAME_SINCE] >= f.STUCK_S)
    if np.count_nonzero(stuck):
        bits = bits + stuck @ _STUCK_BITS
    held = np.zeros(len(rows), dtype=np.bool_)
    shaky = zigzag >= _NOISE_HOLD
    if np.count_nonzero(shaky):
        bits = bits + (zigzag >= _NOISE_RAISE) @ _NOISY_BITS
        held |= shaky.any(axis=1)
    if np.count_nonzero(out):
        bits = bits + (out >= f.OUT_OF_RANGE_RAISE) * _OUT_BIT
        held |= out >= f.OUT_OF_RANGE_HOLD
    faults = bits.astype(np.uint32)
    fault_level = np.zeros(len(rows), dtype=np.uint8)
    if np.count_nonzero(bits):
        held |= faults > 0
        serious = (faults & np.uint32(_SERIOUS_FAULTS)) > 0
        # A fire is never reported as a broken sensor.
        fault_level[(faults > 0) & ~fire] = Severity.LOW
        fault_level[serious & ~fire] = Severity.MEDIUM

    # Nor as bad data.
    quality = (1.0 - rows[:, _MISSING]) * (1.0 - rows[:, _REJECTED]) * (1.0 - rows[:, _LATE])
    quality_level = _QUALITY_STEPS[np.searchsorted(_QUALITY_EDGES, quality, side="right")]
    quality_level[fire] = 0
    return Verdicts(
        fire_level=level.astype(np.uint8),
        fire_hold=level >= Severity.MEDIUM,
        hits=hits.astype(np.uint32),
        fault_level=fault_level,
        fault_hold=held,
        faults=faults,
        quality_level=quality_level,
        quality_hold=quality < f.QUALITY_HOLD,
    )
