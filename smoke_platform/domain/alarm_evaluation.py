"""From scores to alarms and from alarms to outcomes: detectors judged by what they would have done.

Belongs here: readings of devices with their truth, their replay through the rules of the detector, what it did to each
episode, the threshold for a budget of false alarms, intervals. Does not: the outcomes themselves
(``domain.alarm_outcomes``), the rules (``domain.rules``), folds and figures per reading (``domain.evaluation``),
running a model (``adapters.trainer``).

Readings are replayed at the rate at which they were sent: a model that calls every fifteenth reading right says nothing
about persistence. ``replay`` goes through ``rules.evaluate``, the code of the detector; ``model_rule`` is the same
rule for one threshold in a few array operations, for searching among many.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain import rules
from smoke_platform.domain.alarm_outcomes import DAYS_PER_YEAR, AlarmOutcomes, EpisodeOutcome
from smoke_platform.domain.alarm_replay import FIRE_ALARM, SECONDS_PER_DAY, alarm_begins, watched_s
from smoke_platform.domain.features import FEATURE_COUNT, Features
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.uint8]

#: False alarms in quiet air that a threshold may lead to, in a year of one device.
QUIET_ALARMS_PER_DEVICE_YEAR = 1.0
#: Thresholds that are tried: even steps of the logit from 0.047 to 0.9999.
THRESHOLDS: Final[Floats] = 1.0 / (1.0 + np.exp(-np.linspace(-3.0, 9.0, 97)))
#: Share of the validation's nuisances, none of a family that was learnt, that may be taken for fire where the rules do
#: not take them for one anyway. With none at all, scores that only the densest smoke reaches would be asked for.
NUISANCE_SHARE = 0.02
#: As many nuisances beyond the budget as one fire that nobody is told of weighs: judgement. Rules included, it is rare.
FIRE_WORTH = 10
#: Readings handed to the rules at once.
_CHUNK_ROWS = 100_000
_MODEL = next(rule for rule in rules.RULES if rule.name == "model")


# -- readings with their truth -------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Episode:
    """One fire or nuisance at one device. Times in epoch seconds.

    Attributes:
        onset, end: of a fire the first and last reading that is labelled, of a nuisance its first and last one.
        whole: whether it was seen from its beginning to its end; others are nobody's success or failure.
    """

    name: str
    kind: Literal["fire", "nuisance"]
    family: str
    device: str
    onset: float
    end: float
    whole: bool


@dataclass(frozen=True)
class Watched:
    """All readings of some devices with their truth, ordered by device and time.

    Attributes:
        devices: by slot.
        slots: int64 ``[n]``; ``seconds``: float64 ``[n]``, event time.
        episode: int64 ``[n]``, place in ``episodes``, -1 in quiet air.
        matrix: float32 ``[n, F]``, the features.
        sensors: float64 ``[n, 13]``, or ``None`` where only the model is to be judged.
        label: bool ``[n]``.
        unaided: uint8 ``[n]``, the severity that the rules assert without a model; ``None`` where it is not known.
    """

    devices: tuple[str, ...]
    slots: Integers
    seconds: Floats
    label: Booleans
    episode: Integers
    episodes: tuple[Episode, ...]
    matrix: Features
    sensors: Floats | None = None
    unaided: Levels | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def of(self, devices: Sequence[str]) -> Watched:
        """The readings of these devices."""
        wanted = set(devices)
        kept = np.array([name in wanted for name in self.devices], dtype=np.bool_)
        return self.rows(kept[self.slots])

    def rows(self, mask: Booleans) -> Watched:
        """The readings of a mask; episodes keep their places."""
        return replace(
            self,
            slots=self.slots[mask],
            seconds=self.seconds[mask],
            label=self.label[mask],
            episode=self.episode[mask],
            matrix=self.matrix[mask],
            sensors=None if self.sensors is None else self.sensors[mask],
            unaided=None if self.unaided is None else self.unaided[mask],
        )


def watched(
    device: pl.Series,
    seconds: Floats,
    label: Booleans,
    episode: pl.Series,
    kind: pl.Series,
    family: pl.Series,
    matrix: Features,
    sensors: Floats | None = None,
) -> Watched:
    """Readings as ``Watched``.

    Args:
        device, episode, kind, family: str ``[n]``; the last three null in quiet air.
        seconds, label, matrix, sensors: as in ``Watched``.

    Raises:
        ValueError: where the rows are not ordered by device and time.
    """
    slots = (device.rank("dense").cast(pl.Int64) - 1).to_numpy()
    new = np.diff(slots)
    if len(slots) and ((new < 0) | ((new == 0) & (np.diff(seconds) < 0))).any():
        raise ValueError("readings are not ordered by device and time")
    names = tuple(device.unique().sort().to_list())
    frame = pl.DataFrame(
        {
            "row": np.arange(len(slots)),
            "slot": slots,
            "at": seconds,
            "label": label,
            "episode": episode,
            "kind": kind,
            "family": family,
        }
    )
    spans = frame.group_by("slot", maintain_order=True).agg(
        pl.col("row").min().alias("opens"), pl.col("row").max().alias("closes")
    )
    burning = pl.col("at").filter("label")
    found = (
        frame.filter(pl.col("episode").is_not_null())
        .group_by("slot", "episode", maintain_order=True)
        .agg(
            pl.col("kind").first(),
            pl.col("family").first().fill_null(""),
            pl.when(pl.col("kind").first() == "fire").then(burning.min()).otherwise(pl.col("at").min()).alias("onset"),
            pl.when(pl.col("kind").first() == "fire").then(burning.max()).otherwise(pl.col("at").max()).alias("end"),
            pl.col("row").min().alias("first"),
            pl.col("row").max().alias("last"),
        )
        .join(spans, on="slot", how="left", maintain_order="left")
        .with_row_index("place")
    )
    places = frame.select("slot", "episode").join(
        found.select("slot", "episode", pl.col("place").cast(pl.Int64)),
        on=["slot", "episode"],
        how="left",
        maintain_order="left",
    )
    episodes = tuple(
        Episode(
            row["episode"],
            row["kind"],
            row["family"],
            names[row["slot"]],
            # A fire that never became detectable has no onset.
            math.inf if row["onset"] is None else row["onset"],
            -math.inf if row["end"] is None else row["end"],
            row["onset"] is not None and row["first"] > row["opens"] and row["last"] < row["closes"],
        )
        for row in found.iter_rows(named=True)
    )
    return Watched(names, slots, seconds, label, places["place"].fill_null(-1).to_numpy(), episodes, matrix, sensors)


# -- the detector --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Replayed:
    """The worst severity that is asserted after each reading, uint8 ``[n]``.

    Attributes:
        together: of all rules, the model's among them.
        hits: uint32 ``[n]``, the asserted rules, as in ``rules.Verdicts``.
    """

    together: Levels
    hits: npt.NDArray[np.uint32]

    @property
    def model(self) -> Levels:
        """Of the model's rule alone."""
        return self._of(["model"])

    @property
    def rules(self) -> Levels:
        """Of the others, as if there were no model; rules do not depend on one another."""
        return self._of([rule.name for rule in rules.RULES if rule.name not in ("model", "agreement")])

    def _of(self, names: Sequence[str]) -> Levels:
        levels = np.zeros(len(self.hits), dtype=np.uint8)
        for bit, rule in enumerate(rules.RULES):
            if rule.name in names:
                np.maximum(
                    levels, np.where(self.hits >> np.uint32(bit) & 1, rule.severity, 0), out=levels, casting="unsafe"
                )
        return levels


def replay(watch: Watched, scores: Floats | None, threshold: float | Floats = 1.0, *, sensors: bool) -> Replayed:
    """What the detector's rules say after each reading.

    Args:
        scores: float64 ``[n]``; ``None``: there is no model.
        threshold: of the model, or one for each reading, ``[n]``, where several models shared the devices.
        sensors: whether the physical rules see the sensors too; otherwise the model's rule is alone.

    Raises:
        ValueError: when sensors are asked for that ``watch`` does not have.
    """
    if sensors and watch.sensors is None:
        raise ValueError("these readings came without their sensors")
    ratio = np.full(len(watch), np.nan) if scores is None else scores / threshold
    # All devices' k-th readings together: the rules work on as many devices at once as there are.
    first = np.searchsorted(watch.slots, watch.slots, side="left")
    order = np.argsort(np.arange(len(watch)) - first, kind="stable")
    state = rules.RuleState(len(watch.devices))
    levels, hits = np.empty(len(watch), dtype=np.uint8), np.empty(len(watch), dtype=np.uint32)
    for low in range(0, len(watch), _CHUNK_ROWS):
        rows = order[low : low + _CHUNK_ROWS]
        measured = (
            watch.sensors[rows]
            if sensors and watch.sensors is not None
            else np.full((len(rows), len(ALL_SENSOR_NAMES)), np.nan)
        )
        known = watch.matrix[rows] if sensors else np.full((len(rows), FEATURE_COUNT), np.nan, dtype=np.float32)
        limit = None if scores is None else 1.0
        verdicts = rules.evaluate(state, watch.slots[rows], watch.seconds[rows], measured, known, ratio[rows], limit)
        levels[rows], hits[rows] = verdicts.fire_level, verdicts.hits
    return Replayed(levels, hits)


def with_rules(watch: Watched, *, keep_sensors: bool = False) -> Watched:
    """The readings with what the rules say without a model, and without their sensors unless they are kept."""
    unaided = replay(watch, None, sensors=True).together
    return replace(watch, unaided=unaided, sensors=watch.sensors if keep_sensors else None)


def model_rule(slots: Integers, seconds: Floats, ratio: Floats) -> Booleans:
    """Where the rule ``model`` is asserted, bool ``[n]``: as ``replay`` has it, many times as fast.

    Args:
        slots, seconds: ``[n]``, ordered by device and time.
        ratio: float64 ``[n]``, score over threshold; NaN neither raises nor clears.

    A silence longer than ``rules.GAP_S`` ends what was asserted here; the detector waits for a reading that says so.
    """
    term = _MODEL.terms[0]
    over, ended = ratio >= term.raises_at, ratio < term.clears_below
    opens = ended.copy()
    if len(opens):
        opens[0] = True
        opens[1:] |= (np.diff(slots) != 0) | (np.diff(seconds) > rules.GAP_S)
    part = np.cumsum(opens) - 1
    counted = _running(over, opens, part)
    since = np.full(int(part[-1]) + 1 if len(part) else 0, np.inf)
    begins = over & (counted == 1)
    since[part[begins]] = seconds[begins]
    done = over & (counted >= _MODEL.readings) & (seconds - since[part] >= _MODEL.persist_s)
    return np.asarray(_running(done, opens, part) > 0)


def _running(flags: Booleans, opens: Booleans, part: Integers) -> Integers:
    """How many flags were set in each part up to each row."""
    total: Integers = np.cumsum(flags)
    before: Integers = (total - flags)[opens]
    return np.asarray(total - before[part])


def outcomes(watch: Watched, levels: Levels) -> AlarmOutcomes:
    """What these severities, uint8 ``[n]``, did to each whole episode and to quiet air.

    A fire counts as alarmed when a fire alarm sounds from its ignition to the last reading that is labelled fire;
    sounding before the first one is a delay of 0 s. A nuisance counts as alarmed when a fire alarm begins in it: one
    that goes on from a fire before it was raised rightly.
    """
    tally = _tally(watch, levels)
    present = np.bincount(watch.episode[watch.episode >= 0], minlength=len(watch.episodes)) > 0
    found = []
    for place, episode in enumerate(watch.episodes):
        if not (episode.whole and present[place]):
            continue
        fire = episode.kind == "fire"
        alarmed = bool(np.isfinite(tally.sounds[place]) if fire else tally.begins[place])
        delay = max(0.0, float(tally.sounds[place]) - episode.onset) if fire and alarmed else None
        found.append(EpisodeOutcome(episode.name, episode.kind, episode.family, episode.device, alarmed, delay))
    return AlarmOutcomes(tuple(found), tally.quiet_alarms, quiet_days(watch))


@dataclass(frozen=True, slots=True)
class _Tally:
    """Of each episode when a fire alarm first sounds in it (inf: never) and whether one begins in it."""

    sounds: Floats
    begins: Booleans
    quiet_alarms: int


def _tally(watch: Watched, levels: Levels) -> _Tally:
    begun_in = watch.episode[alarm_begins(watch.slots, watch.seconds, levels)]
    count = len(watch.episodes)
    inside = watch.episode >= 0
    ends = np.array([episode.end for episode in watch.episodes] or [0.0])
    sounding = (levels >= FIRE_ALARM) & inside
    sounding[sounding] = watch.seconds[sounding] <= ends[watch.episode[sounding]]
    first = np.full(count, np.inf)
    np.minimum.at(first, watch.episode[sounding], watch.seconds[sounding])
    begins = np.bincount(begun_in[begun_in >= 0], minlength=count) > 0
    return _Tally(first, begins, int((begun_in < 0).sum()))


def quiet_days(watch: Watched) -> float:
    """Days of 86,400 s between readings in quiet air, summed over devices."""
    quiet = watch.episode < 0
    both = quiet[:-1] & quiet[1:]
    return float(watched_s(watch.slots, watch.seconds)[:-1][both].sum() / SECONDS_PER_DAY)


# -- the threshold -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Chosen:
    """A threshold and why it is this one.

    Attributes:
        within_budget: the least threshold that keeps to the budget; ``None``: none does.
        without_miss: the greatest threshold that misses no fire which the least of all sees.
        missed, nuisances_alarmed, quiet_alarms: at the threshold, on the readings that it was chosen on; of all rules,
            and what the model alone adds to the rules.
    """

    threshold: float
    within_budget: float | None
    without_miss: float
    missed: int
    nuisances_alarmed: int
    quiet_alarms: int


def threshold_for_budget(watch: Watched, scores: Floats) -> Chosen:
    """The least threshold within the budget of false alarms, which is the one that alarms earliest.

    The budget: ``QUIET_ALARMS_PER_DEVICE_YEAR`` in quiet air, and ``NUISANCE_SHARE`` of the nuisances taken for fire by
    the model alone. The first holds, the second gives way where fires would be missed: of the thresholds with the least
    ``FIRE_WORTH`` times fires missed plus nuisances beyond the share, it is the lowest. Where ``watch.unaided`` is
    known, a fire that the rules tell is not missed.

    Args:
        scores: float64 ``[n]``, of models that have seen none of these readings.
    """
    allowed = math.floor(QUIET_ALARMS_PER_DEVICE_YEAR * quiet_days(watch) / DAYS_PER_YEAR)
    present = np.bincount(watch.episode[watch.episode >= 0], minlength=len(watch.episodes)) > 0
    judged = present & np.array([episode.whole for episode in watch.episodes], dtype=np.bool_)
    fires = judged & np.array([episode.kind == "fire" for episode in watch.episodes], dtype=np.bool_)
    kept = _that_matter(watch, scores)
    part, part_scores = watch.rows(kept), scores[kept]
    unaided = np.zeros(len(part), dtype=np.uint8) if part.unaided is None else part.unaided
    before = _tally(part, unaided)
    nuisances = judged & ~fires & ~before.begins
    counts = np.empty((len(THRESHOLDS), 3), dtype=np.int64)
    for place, threshold in enumerate(THRESHOLDS):
        asserted = model_rule(part.slots, part.seconds, part_scores / threshold)
        tally = _tally(part, np.maximum(unaided, asserted.astype(np.uint8) * np.uint8(FIRE_ALARM)))
        missed = int((fires & np.isinf(tally.sounds)).sum())
        quiet_alarms = max(0, tally.quiet_alarms - before.quiet_alarms)
        counts[place] = missed, int((nuisances & tally.begins).sum()), quiet_alarms
    # At a low threshold a single alarm may span what are several at a higher one: it is no better for that.
    counts[:, 1:] = np.maximum.accumulate(counts[::-1, 1:])[::-1]
    spare = NUISANCE_SHARE * float(nuisances.sum())
    noisy = counts[:, 2] > allowed
    cost = FIRE_WORTH * counts[:, 0] + np.maximum(counts[:, 1] - spare, 0.0)
    place = len(THRESHOLDS) - 1 if noisy.all() else int(np.argmin(np.where(noisy, np.inf, cost)))
    within = np.flatnonzero(~noisy & (counts[:, 1] <= spare))
    sure = int(np.flatnonzero(counts[:, 0] == counts[0, 0])[-1])
    least = float(THRESHOLDS[within[0]]) if len(within) else None
    return Chosen(float(THRESHOLDS[place]), least, float(THRESHOLDS[sure]), *map(int, counts[place]))


def _that_matter(watch: Watched, scores: Floats) -> Booleans:
    """Readings of which no threshold makes the same: nearly all of quiet air is below every one of them.

    Of a stretch below, its first and its last reading stay, by which an alarm is over or not.
    """
    above: Booleans = ~(scores < THRESHOLDS[0] * _MODEL.terms[0].clears_below)
    if watch.unaided is not None:
        above |= watch.unaided > 0
    kept: Booleans = above.copy()
    kept[1:] |= above[:-1]
    kept[:-1] |= above[1:]
    return kept


# -- figures -------------------------------------------------------------------------------------------------
def delay_quantile(fires: Sequence[EpisodeOutcome], share: float) -> float | None:
    """Seconds within which this share of the fires was told; ``None`` where so many were missed."""
    if not fires:
        return None
    delays = sorted(math.inf if fire.delay_s is None else fire.delay_s for fire in fires)
    delay = delays[max(0, math.ceil(share * len(delays)) - 1)]
    return delay if math.isfinite(delay) else None


def upper_share(hits: int, trials: int, confidence: float = 0.95) -> float:
    """Upper end of the one-sided exact interval of a share (Clopper and Pearson 1934); 3 / n for no hits in many."""
    if hits >= trials:
        return 1.0
    logs = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(hits + 1)]

    def at_most(share: float) -> float:
        return sum(
            math.exp(log + k * math.log(share) + (trials - k) * math.log1p(-share)) for k, log in enumerate(logs)
        )

    return _root(lambda share: at_most(share) > 1.0 - confidence, 1e-12, 1.0 - 1e-12)


def upper_count(events: int, confidence: float = 0.95) -> float:
    """Upper end of the one-sided exact interval of a Poisson mean (Garwood 1936); 3.0 for no events."""

    def at_most(mean: float) -> float:
        return sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(events + 1))

    return _root(lambda mean: at_most(mean) > 1.0 - confidence, 1e-9, 10.0 * (events + 5))


def _root(below: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def resampled(found: AlarmOutcomes, seed: int, times: int = 2_000) -> dict[str, tuple[float | None, float | None]]:
    """95% intervals by drawing whole fires anew, with all devices that saw one: share missed, median and p90 delay.

    Efron and Tibshirani (1993), percentile interval. Where no fire was missed the one of the share is 0 to 0, and
    ``upper_share`` is what bounds it.
    """
    fires = found.of("fire")
    names = sorted({fire.episode for fire in fires})
    if not names:
        return {}
    of_name = defaultdict(list)
    for fire in fires:
        of_name[fire.episode].append(math.inf if fire.delay_s is None else fire.delay_s)
    groups = [np.array(of_name[name]) for name in names]
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {"missed_share": [], "median_delay_s": [], "p90_delay_s": []}
    for _ in range(times):
        delays = np.sort(np.concatenate([groups[place] for place in rng.integers(0, len(groups), len(groups))]))
        drawn["missed_share"].append(float(np.isinf(delays).mean()))
        drawn["median_delay_s"].append(float(delays[max(0, math.ceil(0.5 * len(delays)) - 1)]))
        drawn["p90_delay_s"].append(float(delays[max(0, math.ceil(0.9 * len(delays)) - 1)]))
    ends = {}
    for name, values in drawn.items():
        ranked = sorted(values)
        ends[name] = tuple(
            value if math.isfinite(value) else None
            for value in (ranked[int(0.025 * times)], ranked[math.ceil(0.975 * times) - 1])
        )
    return ends  # type: ignore[return-value]  # a tuple of a generator over two


def summary(found: AlarmOutcomes, seed: int = 0) -> dict[str, Any]:
    """The outcomes as a manifest has them, families of fires and nuisances included. Delays in seconds.

    ``false_alarms_per_device_year`` is of quiet air alone, ``None`` without any; nuisances are counted one by one.
    """
    fires, nuisances = found.of("fire"), found.of("nuisance")
    years = found.quiet_device_days / DAYS_PER_YEAR
    families: dict[str, dict[str, Any]] = {}
    for kind, episodes in (("fire", fires), ("nuisance", nuisances)):
        for family in sorted({episode.family for episode in episodes}):
            mine = [episode for episode in episodes if episode.family == family]
            entry: dict[str, Any] = {
                "kind": kind,
                "episodes": len(mine),
                "alarmed": sum(episode.alarmed for episode in mine),
            }
            if kind == "fire":
                entry |= {"median_delay_s": _rounded(delay_quantile(mine, 0.5))}
                entry |= {"p90_delay_s": _rounded(delay_quantile(mine, 0.9))}
            families[family or "unknown"] = entry
    return {
        "fires": len(fires),
        "missed": len(found.missed),
        "missed_upper_95": round(upper_share(len(found.missed), len(fires)), 6) if fires else None,
        "median_delay_s": _rounded(delay_quantile(fires, 0.5)),
        "p90_delay_s": _rounded(delay_quantile(fires, 0.9)),
        "intervals_95": resampled(found, seed),
        "nuisances": len(nuisances),
        "nuisances_alarmed": sum(episode.alarmed for episode in nuisances),
        "by_family": families,
        "quiet_device_days": round(found.quiet_device_days, 4),
        "quiet_alarms": found.quiet_alarms,
        "false_alarms_per_device_year": round(found.quiet_alarms_per_device_year, 3) if years > 0 else None,
        "false_alarms_per_device_year_upper_95": round(upper_count(found.quiet_alarms) / years, 3) if years else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def joined(parts: Sequence[AlarmOutcomes]) -> AlarmOutcomes:
    """Outcomes on sets of episodes that have none in common, as one."""
    return AlarmOutcomes(
        tuple(outcome for part in parts for outcome in part.episodes),
        sum(part.quiet_alarms for part in parts),
        sum(part.quiet_device_days for part in parts),
    )
