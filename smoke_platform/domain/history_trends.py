"""What changes over days: trends of devices and sites, ageing of sensors, daily and weekly rhythm.

Belongs here: days and local hours (``domain.history_devices``) -> slopes, drifts and rhythms, each with what tells it
from chance. Does not: reading anything, words.

Three ways in which chance looks like a finding are kept out. Many things are looked at, so a bound holds for all of
them together (Bonferroni, ``FAMILY_ERROR``). Days resemble the day before, so intervals widen by the residuals' own
lag-1 correlation, and a rhythm is compared with the same days turned by random hours. And weather moves all devices of
a place alike, so a sensor ages only where it leaves the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.readings import ALL_SENSOR_NAMES

#: A slope through fewer days is a rumour.
LEAST_DAYS_FOR_TREND: Final = 3
#: From so many days on it can be told from the days' own spread.
LEAST_DAYS_TO_JUDGE: Final = 14
#: Chance of any false finding of a kind among all that are looked at: one report in a hundred.
FAMILY_ERROR: Final = 0.01
#: Of each reported interval.
CONFIDENCE: Final = 0.95
#: A device is compared with the others of its site, or of its source, where there are so many that day.
LEAST_FLEET: Final = 5
#: A drift that is smaller than this many of the days' own robust spreads is no reason to calibrate.
LEAST_SPREADS_OF_DRIFT: Final = 3.0
#: More days than this are put together evenly before slopes are taken between all pairs of them.
MOST_POINTS: Final = 120
#: How strongly a room follows the others before its days are looked at: as they do, give or take this.
GAIN_SPREAD: Final = 0.3
#: Autocorrelation beyond this would make intervals meaningless; there the days are too few for a verdict.
_LARGEST_CORRELATION: Final = 0.9

PERMUTATIONS: Final = 999
PERMUTATION_SEED: Final = 20_220_601
#: Days that a daily rhythm needs, and weeks that a weekly one does.
LEAST_DAYS_FOR_RHYTHM: Final = 5
LEAST_WEEKS_FOR_RHYTHM: Final = 3

_Floats = npt.NDArray[np.float64]


def long_days(days: pl.DataFrame, what: str) -> pl.DataFrame:
    """``source, device_id, day, sensor, value`` of one statistic (``mean``, ``baseline``) of the days, where it is."""
    return (
        days.unpivot(
            on=[f"{name}_{what}" for name in ALL_SENSOR_NAMES],
            index=["source", "device_id", "day"],
            variable_name="sensor",
            value_name="value",
        )
        .drop_nulls("value")
        .with_columns(pl.col("sensor").str.strip_suffix(f"_{what}"))
    )


# -- trends ------------------------------------------------------------------------------------------------------


def device_trends(days: pl.DataFrame) -> pl.DataFrame:
    """Least-squares slope of the daily mean of each device and sensor, in its unit a day, the steepest first.

    Returns:
        ``source, device_id, sensor, days, slope_per_day, spread`` (of the daily means), ``spreads_per_day`` (the slope
        in them, by which the rows are ordered) and ``clear``: whether it stands out from the days' own spread.
    """
    return _fitted(long_days(days, "mean"), ("source", "device_id", "sensor"))


def site_trends(days: pl.DataFrame, sites: Mapping[str, str]) -> pl.DataFrame:
    """As ``device_trends``, for sites: of the mean over a site's devices of what a day is above their own mean.

    So a device that joins does not look like a change of the air.

    Args:
        sites: device id -> site; devices without one are left out.
    """
    named = pl.DataFrame(
        {"device_id": list(sites), "site": list(sites.values())}, schema={"device_id": pl.String, "site": pl.String}
    ).filter(pl.col("site") != "")
    deviation = pl.col("value") - pl.col("value").mean().over("source", "device_id", "sensor")
    of_site = (
        long_days(days, "mean")
        .join(named, on="device_id")
        .with_columns(deviation)
        .group_by("source", "site", "sensor", "day")
        .agg(pl.col("value").mean(), pl.col("device_id").n_unique().alias("devices"))
    )
    most = of_site.group_by("source", "site", "sensor").agg(pl.col("devices").max().cast(pl.Int64))
    return _fitted(of_site, ("source", "site", "sensor")).join(
        most, on=["source", "site", "sensor"], maintain_order="left"
    )


def _fitted(values: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    x = pl.col("x") - pl.col("x").mean()
    y = pl.col("value") - pl.col("value").mean()
    slope = (x * y).sum() / (x * x).sum()
    left = y - slope * x
    found = (
        values.sort(*key, "day")
        .with_columns(x=pl.col("day").cast(pl.Int32).cast(pl.Float64))
        .group_by(key, maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("days"),
            slope.alias("slope_per_day"),
            pl.col("value").std().alias("spread"),
            (left * left).sum().alias("left"),
            ((left * left.shift(1)).sum() / (left * left).sum()).fill_nan(0.0).alias("again"),
            (x * x).sum().alias("width"),
        )
        .filter(pl.col("days") >= LEAST_DAYS_FOR_TREND)
    )
    # Of a constant only rounding is left, which has a slope of its own.
    moves = pl.col("spread") > 1e-9 * pl.max_horizontal(pl.lit(1.0), pl.col("spread"))
    again = pl.col("again").clip(0.0, _LARGEST_CORRELATION)
    error = (pl.col("left") / (pl.col("days") - 2) / pl.col("width")).sqrt() * ((1 + again) / (1 - again)).sqrt()
    judged = found.filter(pl.col("days") >= LEAST_DAYS_TO_JUDGE).height
    bounds = {int(n): _student(1 - FAMILY_ERROR / 2 / max(1, judged), int(n) - 2) for n in found["days"].unique()}
    bound = pl.col("days").replace_strict(list(bounds), list(bounds.values()), return_dtype=pl.Float64)
    return (
        found.with_columns(
            spreads_per_day=pl.when(moves).then(pl.col("slope_per_day") / pl.col("spread")),
            clear=moves & (pl.col("days") >= LEAST_DAYS_TO_JUDGE) & (pl.col("slope_per_day").abs() > bound * error),
        )
        .drop("left", "again", "width")
        .sort(pl.col("spreads_per_day").abs(), *key, descending=[True, *(False for _ in key)], nulls_last=True)
    )


def _student(probability: float, freedom: int) -> float:
    """Quantile of Student's t after Abramowitz and Stegun 26.7.5, good to 2% where it is used (12 and more)."""
    z = NormalDist().inv_cdf(min(probability, 1 - 1e-15))
    n = max(freedom, 1)
    terms = (
        (z**3 + z) / 4 / n,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96 / n**2,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / n**3,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160 / n**4,
    )
    return z + math.fsum(terms)


# -- ageing ------------------------------------------------------------------------------------------------------

AGEING_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "source": pl.String(),
    "device_id": pl.String(),
    "sensor": pl.String(),
    "days": pl.Int64(),
    "first_day": pl.Date(),
    "last_day": pl.Date(),
    "per_week": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "drift": pl.Float64(),
    "spread": pl.Float64(),
    "compared_with": pl.String(),
    "ages": pl.Boolean(),
}


def ageing(days: pl.DataFrame, sites: Mapping[str, str]) -> pl.DataFrame:
    """Drift of each sensor's quiet baseline, against the other devices where there are enough of them.

    The baseline of a day is the median of its hourly medians, which no episode of less than half a day moves. What the
    others did is taken off as strongly as this sensor follows them from day to day: a damp cellar answers to the
    weather otherwise than a dry attic, and neither is a fault. The slope of what is left is Theil and Sen's; the
    interval is Sen's, with the variance widened by the residuals' correlation from day to day, and by as much as the
    strength of following is uncertain, which counts where the others have a trend themselves.

    Args:
        sites: device id -> site.

    Returns:
        ``AGEING_SCHEMA``, only of ``LEAST_DAYS_TO_JUDGE`` days and more: ``per_week`` with ``low`` and ``high`` (95%),
        ``drift`` over all of the days, ``spread`` of the days about the line, ``compared_with`` (``site``, ``source``
        or ``nothing``: then season and weather are in it), and ``ages``: the interval for all sensors together excludes
        zero, the drift is at least ``LEAST_SPREADS_OF_DRIFT`` spreads, and there was something to compare with.
    """
    table = long_days(days, "baseline").with_columns(
        site=pl.col("device_id").replace_strict(list(sites), list(sites.values()), default="", return_dtype=pl.String)
        if sites
        else pl.lit("")
    )
    enough = table.filter(pl.len().over("source", "device_id", "sensor") >= LEAST_DAYS_TO_JUDGE)
    if enough.is_empty():
        return pl.DataFrame(schema=dict(AGEING_SCHEMA))
    found = _all_aged(_against_others(enough, pl.DataFrame(schema=dict.fromkeys(_SENSOR, pl.String))))
    drifting = found.filter("ages").select(_SENSOR)
    if drifting.height:
        # One that drifts has pulled the others' median along; without it they are judged again.
        found = _all_aged(_against_others(enough, drifting))
    return found.sort(
        pl.col("ages").cast(pl.Int8),
        pl.when(pl.col("spread") > 0).then((pl.col("drift") / pl.col("spread")).abs()),
        "source",
        "device_id",
        "sensor",
        descending=[True, True, False, False, False],
        nulls_last=True,
    )


_SENSOR: Final = ("source", "device_id", "sensor")


def _against_others(table: pl.DataFrame, left_out: pl.DataFrame) -> pl.DataFrame:
    """What the others of the site, else of the source, did that day.

    Adds ``own`` (the value less its median), ``reference`` (the others' median of that, 0 where there are too few),
    ``doubt`` (variance of the reference, by how far the others are apart) and ``compared_with``, which says whom.

    Args:
        left_out: sensors (``source, device_id, sensor``) that no other is compared with.
    """
    own = pl.col("value") - pl.col("value").median().over(_SENSOR)
    marked = left_out.with_columns(out=pl.lit(True))
    table = table.join(marked, on=list(_SENSOR), how="left").with_columns(
        own=own, judge=pl.when(pl.col("out").is_null()).then(own)
    )
    near, wide = ("source", "site", "sensor", "day"), ("source", "sensor", "day")
    judges = pl.col("judge")
    table = table.with_columns(
        near=pl.when((pl.col("site") != "") & (judges.count().over(near) >= LEAST_FLEET)).then(
            judges.median().over(near)
        ),
        wide=pl.when(judges.count().over(wide) >= LEAST_FLEET).then(judges.median().over(wide)),
        # Of a median of n with a robust spread s: (1.25 s)^2 / n.
        near_doubt=((judges - judges.median()).abs().median().over(near) * 1.86) ** 2 / judges.count().over(near),
        wide_doubt=((judges - judges.median()).abs().median().over(wide) * 1.86) ** 2 / judges.count().over(wide),
    )
    # One reference for a device's whole life: a change of reference would be a step.
    compared = (
        pl.when(pl.col("near").is_not_null().all().over(_SENSOR))
        .then(pl.lit("site"))
        .when(pl.col("wide").is_not_null().all().over(_SENSOR))
        .then(pl.lit("source"))
        .otherwise(pl.lit("nothing"))
    )

    def chosen(suffix: str) -> pl.Expr:
        return (
            pl.when(pl.col("compared_with") == "site")
            .then(f"near{suffix}")
            .when(pl.col("compared_with") == "source")
            .then(f"wide{suffix}")
            .otherwise(0.0)
        )

    return table.with_columns(compared_with=compared).with_columns(reference=chosen(""), doubt=chosen("_doubt"))


def _all_aged(compared: pl.DataFrame) -> pl.DataFrame:
    groups = compared.sort(*_SENSOR, "day").partition_by(_SENSOR, maintain_order=True)
    # Of those that stand still there is nothing to ask.
    moving = [group for group in groups if group["own"].n_unique() > 1]
    rows = [_aged(group, len(moving)) for group in moving]
    return pl.DataFrame(rows, schema=dict(AGEING_SCHEMA), orient="row")


def _aged(group: pl.DataFrame, tests: int) -> tuple[Any, ...]:
    """A row of ``AGEING_SCHEMA`` of the days of one sensor."""
    x = group["day"].cast(pl.Int32).to_numpy().astype(np.float64)
    own, reference, doubt = (group[name].to_numpy().astype(np.float64) for name in ("own", "reference", "doubt"))
    gain, uncertain = _following(x, own, reference, float(doubt.mean()))
    confidences = (CONFIDENCE, 1 - FAMILY_ERROR / max(1, tests))
    slope, spread, intervals = theil_sen(x, own - gain * reference, confidences)
    common = uncertain * float(np.polyfit(x - x.mean(), reference, 1)[0])
    (low, high), (all_low, all_high) = (
        _widened(slope, interval, common * NormalDist().inv_cdf(0.5 + confidence / 2))
        for interval, confidence in zip(intervals, confidences, strict=True)
    )
    drift = slope * float(x[-1] - x[0])
    ages = (
        not all_low <= 0 <= all_high
        and abs(drift) >= LEAST_SPREADS_OF_DRIFT * spread
        and group["compared_with"][0] != "nothing"
    )
    return (
        *group.select("source", "device_id", "sensor").row(0),
        group.height,
        group["day"][0],
        group["day"][-1],
        *(7 * value for value in (slope, low, high)),
        drift,
        spread,
        group["compared_with"][0],
        ages,
    )


def _following(x: _Floats, own: _Floats, reference: _Floats, doubt: float) -> tuple[float, float]:
    """How strongly ``own`` follows ``reference`` from day to day, and how uncertain that is.

    Both without their own trend over ``x``, so that a drift is not taken for a weaker response. A wavering reference
    makes the response look weaker than it is; its share of ``doubt`` counts as uncertainty. Where the days say little,
    it is 1, give or take ``GAIN_SPREAD``.
    """
    first, second = (side - np.polyval(np.polyfit(x - x.mean(), side, 1), x - x.mean()) for side in (reference, own))
    squares = float(first @ first)
    if squares <= 0:
        return 1.0, GAIN_SPREAD
    seen = float(first @ second) / squares
    left = second - seen * first
    error = float(left @ left) / max(1, len(x) - 3) / squares * _widening(left)
    variance = error + (seen * doubt * len(x) / squares) ** 2
    weight, before = 1 / max(variance, 1e-12), 1 / GAIN_SPREAD**2
    return (seen * weight + before) / (weight + before), 1 / math.sqrt(weight + before)


def _widening(left: _Floats) -> float:
    """By how much a variance grows because residuals resemble those of the day before."""
    squares = float(left @ left)
    again = min(max(float(left[1:] @ left[:-1]) / squares, 0.0), _LARGEST_CORRELATION) if squares > 0 else 0.0
    return (1 + again) / (1 - again)


def _widened(slope: float, interval: tuple[float, float], more: float) -> tuple[float, float]:
    low, high = interval
    return slope - math.hypot(slope - low, more), slope + math.hypot(high - slope, more)


def theil_sen(x: _Floats, y: _Floats, confidences: Sequence[float]) -> tuple[float, float, list[tuple[float, float]]]:
    """The median of the slopes between all pairs of points, which a few wild points do not move.

    Args:
        x: rising, in any unit; ``y``: as many.
        confidences: of the intervals wanted, 0..1.

    Returns:
        (slope, robust spread of the points about the line, interval for each confidence).
    """
    if len(x) > MOST_POINTS:
        pieces = np.array_split(np.arange(len(x)), MOST_POINTS)
        x, y = (np.array([np.median(side[piece]) for piece in pieces]) for side in (x, y))
    first, second = np.triu_indices(len(x), 1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    slope = float(np.median(slopes))
    left = y - slope * x
    left = left - np.median(left)
    spread = 1.4826 * float(np.median(np.abs(left)))
    n = len(x)
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18 * _widening(left))
    intervals = []
    for confidence in confidences:
        reach = NormalDist().inv_cdf(0.5 + confidence / 2) * deviation
        low = math.floor((len(slopes) - reach) / 2)
        # Where the pairs are too few for so much confidence, nothing is excluded.
        intervals.append(
            (float(slopes[low]), float(slopes[len(slopes) - 1 - low])) if low >= 0 else (-math.inf, math.inf)
        )
    return slope, spread, intervals


# -- rhythm ------------------------------------------------------------------------------------------------------

RHYTHM_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "source": pl.String(),
    "sensor": pl.String(),
    "days": pl.Int64(),
    "explained": pl.Float64(),
    "chance": pl.Float64(),
    "swing": pl.Float64(),
    "highest": pl.Int64(),
    "lowest": pl.Int64(),
    "clear": pl.Boolean(),
}


def daily_rhythm(rhythm: pl.DataFrame) -> pl.DataFrame:
    """Whether the hour of the day tells a sensor's value, over the mean of a source's devices.

    Looked at is what an hour is above its device's mean of the day, on whole days, so that devices that report at some
    hours only do not make a rhythm. ``chance`` is how often the same days, each turned by a random number of hours, are
    explained as well.

    Args:
        rhythm: of ``history_devices.DeviceSummary``, merged.

    Returns:
        ``RHYTHM_SCHEMA``: ``explained`` share of what varies within a day, ``swing`` between the ``highest`` and the
        ``lowest`` hour; sensors with fewer than ``LEAST_DAYS_FOR_RHYTHM`` whole days are left out.
    """
    found = []
    for (source,), group in rhythm.group_by("source", maintain_order=True):
        table = group.sort("local_date", "local_hour")
        for sensor in ALL_SENSOR_NAMES:
            matrix = _by_day(table, sensor)
            if len(matrix) >= LEAST_DAYS_FOR_RHYTHM and np.ptp(matrix) > 0:
                found.append((str(source), sensor, len(matrix), *_told(matrix, _turned), None))
    return _judged(found)


def _by_day(table: pl.DataFrame, sensor: str) -> _Floats:
    """float64 ``[whole days, 24]``: mean deviation of each hour."""
    value = pl.when(pl.col(f"{sensor}_an") > 0).then(pl.col(f"{sensor}_asum") / pl.col(f"{sensor}_an"))
    wide = (
        table.select("local_date", "local_hour", value=value)
        .pivot("local_hour", index="local_date", values="value")
        .drop_nulls()
    )
    hours = [str(hour) for hour in range(24)]
    if not set(hours) <= set(wide.columns):
        return np.zeros((0, 24))
    return wide.select(hours).to_numpy().astype(np.float64)


def weekly_rhythm(days: pl.DataFrame) -> pl.DataFrame:
    """As ``daily_rhythm``, for weekdays (1 = Monday): of what a day is above its device's own mean.

    ``chance`` is how often the same days in random order are explained as well. From ``LEAST_WEEKS_FOR_RHYTHM`` whole
    weeks on.
    """
    values = (
        long_days(days, "mean")
        .with_columns(pl.col("value") - pl.col("value").mean().over("source", "device_id", "sensor"))
        .group_by("source", "sensor", "day")
        .agg(pl.col("value").mean())
        .sort("source", "sensor", "day")
    )
    found = []
    for (source, sensor), group in values.group_by("source", "sensor", maintain_order=True):
        weekdays = group["day"].dt.weekday().to_numpy()
        counts = np.bincount(weekdays, minlength=8)[1:]
        y = group["value"].to_numpy()
        if counts.min() >= LEAST_WEEKS_FOR_RHYTHM and np.ptp(y) > 0:
            found.append((str(source), str(sensor), len(y), *_told_by_weekday(weekdays, y), None))
    return _judged(found)


def _judged(found: list[tuple[Any, ...]]) -> pl.DataFrame:
    bound = FAMILY_ERROR / max(1, len(found))
    # With so many permutations chance cannot be told to be smaller than this.
    bound = max(bound, 1 / (PERMUTATIONS + 1))
    table = pl.DataFrame(found, schema=dict(RHYTHM_SCHEMA), orient="row")
    return table.with_columns(clear=pl.col("chance") <= bound).sort(
        "explained", "source", "sensor", descending=[True, False, False]
    )


def _turned(matrix: _Floats, rng: np.random.Generator) -> _Floats:
    turns = rng.integers(0, matrix.shape[1], len(matrix))
    places = (np.arange(matrix.shape[1]) + turns[:, None]) % matrix.shape[1]
    return np.take_along_axis(matrix, places, axis=1)


def _told(matrix: _Floats, shuffled: Any) -> tuple[float, float, float, int, int]:
    rng = np.random.default_rng(PERMUTATION_SEED)
    total = float((matrix**2).sum())

    def explained(of: _Floats) -> float:
        return float(len(of) * (of.mean(axis=0) ** 2).sum() / total)

    real = explained(matrix)
    as_good = sum(explained(shuffled(matrix, rng)) >= real for _ in range(PERMUTATIONS))
    means = matrix.mean(axis=0)
    return real, (1 + as_good) / (1 + PERMUTATIONS), float(np.ptp(means)), int(means.argmax()), int(means.argmin())


def _told_by_weekday(weekdays: npt.NDArray[Any], y: _Floats) -> tuple[float, float, float, int, int]:
    rng = np.random.default_rng(PERMUTATION_SEED)
    y = y - y.mean()
    total = float(y @ y)
    members = np.stack([weekdays == day for day in range(1, 8)]).astype(np.float64)
    counts = members.sum(axis=1)

    def explained(of: _Floats) -> float:
        return float((((members @ of) ** 2) / counts).sum() / total)

    real = explained(y)
    as_good = sum(explained(rng.permutation(y)) >= real for _ in range(PERMUTATIONS))
    means = members @ y / counts
    chance = (1 + as_good) / (1 + PERMUTATIONS)
    return real, chance, float(np.ptp(means)), int(means.argmax()) + 1, int(means.argmin()) + 1
