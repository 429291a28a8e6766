"""History: what the whole lake says, put together.

Belongs here: the material of all days -> the history, as an object and as plain values. Does not: the steps to it
(``history_summary``: a part of a day; ``history_devices``: the hours of a device; ``history_trends``,
``history_alarms``, ``history_copies``), sentences (``history_words``), reading and running
(``adapters.history_tables``, ``streaming.history``), the drawn report (``adapters.history_page``).

Everything is kept apart by source, so that what a simulator was told to do is not reported as a habit of real
buildings. Days, hours and weekdays are those of event time in a given zone. Correlations are between sensors only: the
label is what they ought to tell, not one of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np
import polars as pl

from smoke_platform.domain import history_alarms, history_trends
from smoke_platform.domain.history_copies import Copy
from smoke_platform.domain.history_devices import EXAMPLES, DeviceSummary
from smoke_platform.domain.history_summary import PAIRS
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES

WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
#: Correlations are reported as strong from here on.
STRONG_CORRELATION: Final = 0.7
#: A pattern is rare when it makes up at most this share of the hours judged, or a single one.
RARE_SHARE: Final = 0.001
MOST_RARE_PATTERNS: Final = 20

_OVERVIEW = ("rows", "duplicates", "late", "labelled", "fires", "fires_in_clean_air", "smoke_without_fire")


@dataclass(frozen=True, slots=True)
class Material:
    """What a history is made of, whatever engine made it.

    Attributes:
        overview: of ``overview``.
        moments: rows of ``history_summary.MOMENTS_SCHEMA``, of any number of days.
        devices: merged (``merge_devices``).
        copies: as compared; ``unexplored``: stretches that look alike and were not compared, beyond a bound.
        alarms: ``history_alarms.ALARMS_SCHEMA``, ``None`` where no alarm has landed yet.
        hits: rows of ``history_alarms.HITS_SCHEMA``, ``None`` where no prediction has landed yet.
        sites: device id -> site, as far as known.
    """

    overview: pl.DataFrame
    moments: pl.DataFrame
    devices: DeviceSummary
    copies: Sequence[Copy]
    unexplored: int
    alarms: pl.DataFrame | None
    hits: pl.DataFrame | None
    sites: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class History:
    """The history.

    Attributes:
        zone: of days, hours and weekdays.
        overview: a row for each source: counts, devices, first and last reading.
        days: a row for each source, device and local day: rows, fires, and mean, min, max, baseline of each sensor.
        by_day: a row for each source and local day: devices, rows, fires.
        by_hour: a row for each source and hour 0..23 that has readings: rows, fires, mean of each sensor.
        by_weekday: the same for each weekday, 1 = Monday.
        daily, weekly: rhythms (``history_trends.RHYTHM_SCHEMA``).
        trends, site_trends, ageing: see ``history_trends``.
        correlations: a row for each source and pair of sensors: Pearson's ``r`` over ``rows`` readings, and
            ``r_within`` about the mean of each device's day.
        patterns: how often each pattern of deviation occurs (``rare`` or not), the rarest first.
        rare: examples of the rare ones, with evidence.
        judged: how many hours of how many devices were looked at.
        odd: signals that stand still or are too smooth.
        copies, unexplored: see ``Material``.
        causes, alarm_devices, alarm_sites, models, rule_hits: see ``history_alarms``; ``None`` without a table.
    """

    zone: str
    overview: pl.DataFrame
    days: pl.DataFrame
    by_day: pl.DataFrame
    by_hour: pl.DataFrame
    by_weekday: pl.DataFrame
    daily: pl.DataFrame
    weekly: pl.DataFrame
    trends: pl.DataFrame
    site_trends: pl.DataFrame
    ageing: pl.DataFrame
    correlations: pl.DataFrame
    patterns: pl.DataFrame
    rare: pl.DataFrame
    judged: pl.DataFrame
    odd: pl.DataFrame
    copies: Sequence[Copy]
    unexplored: int
    alarms: pl.DataFrame | None
    causes: pl.DataFrame | None
    alarm_devices: pl.DataFrame | None
    alarm_sites: pl.DataFrame | None
    models: pl.DataFrame | None
    rule_hits: pl.DataFrame | None

    @property
    def sources(self) -> list[str]:
        return self.overview["source"].to_list()

    @property
    def first_day(self) -> date:
        """Local day of the earliest reading."""
        days: list[date] = self.by_day["day"].to_list()
        return min(days)

    @property
    def last_day(self) -> date:
        """Local day of the latest reading."""
        days: list[date] = self.by_day["day"].to_list()
        return max(days)

    @property
    def rows(self) -> int:
        return int(self.overview["rows"].sum())

    def peak_hour(self, source: str, sensor: str) -> int | None:
        """The hour 0..23 with the highest mean of ``sensor``, or ``None`` where it was never measured."""
        return _peak(self.by_hour, "hour", source, sensor)

    def peak_weekday(self, source: str, sensor: str) -> str | None:
        """The name of the weekday with the highest mean of ``sensor``."""
        number = _peak(self.by_weekday, "weekday", source, sensor)
        return None if number is None else WEEKDAYS[number - 1]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the findings, and the tables they come from but for the days of each device."""
        return {
            "zone": self.zone,
            "rows": self.rows,
            "first_day": self.first_day,
            "last_day": self.last_day,
            "sources": {source: self._findings(source) for source in self.sources},
            "repeated_recordings": [copy_as_dict(copy) for copy in self.copies],
            "repeated_stretches_not_compared": self.unexplored,
            "odd_signals": self.odd.to_dicts(),
            "alarms": None
            if self.alarms is None
            else {
                "count": self.alarms.height,
                "causes": _records(self.causes),
                "devices": _records(self.alarm_devices, 20),
                "sites": _records(self.alarm_sites, 20),
            },
            "predictions": None
            if self.models is None
            else {"models": _records(self.models), "rule_hits": _records(self.rule_hits)},
            "by_hour": self.by_hour.to_dicts(),
            "by_weekday": self.by_weekday.to_dicts(),
        }

    def _findings(self, source: str) -> dict[str, Any]:
        mine = pl.col("source") == source
        counts = self.overview.row(by_predicate=mine, named=True)
        judged = self.judged.filter(mine)
        return {
            **{name: counts[name] for name in (*_OVERVIEW, "devices")},
            "fire_rows": counts["fires"],
            "days": self.by_day.filter(mine).height,
            "first_reading": counts["first_event"],
            "last_reading": counts["last_event"],
            "peak_hour": {name: self.peak_hour(source, name) for name in ALL_SENSOR_NAMES},
            "peak_weekday": {name: self.peak_weekday(source, name) for name in ALL_SENSOR_NAMES},
            "daily_rhythm": self.daily.filter(mine).drop("source").to_dicts(),
            "weekly_rhythm": self.weekly.filter(mine).drop("source").to_dicts(),
            "strongest_correlations": self.correlations.filter(mine).head(10).to_dicts(),
            "steepest_trends": self.trends.filter(mine).head(20).to_dicts(),
            "site_trends": self.site_trends.filter(mine).head(20).to_dicts(),
            "ageing": self.ageing.filter(mine).head(20).to_dicts(),
            "hours_judged_for_patterns": int(judged["hours"].sum()),
            "patterns": self.patterns.filter(mine).drop("source").to_dicts(),
            "rare_patterns": [
                {**row, "evidence": json.loads(row["evidence"])}
                for row in self.rare.filter(mine).drop("source").iter_rows(named=True)
            ],
        }


def _records(frame: pl.DataFrame | None, most: int = 100) -> list[dict[str, Any]]:
    return [] if frame is None else frame.head(most).to_dicts()


def copy_as_dict(copy: Copy) -> dict[str, Any]:
    """A copy as plain values; lags in seconds."""
    return {
        "first": {
            "source": copy.first_source,
            "device_id": copy.first_device,
            "from": copy.first_from,
            "to": copy.first_to,
        },
        "copy": {"source": copy.copy_source, "device_id": copy.copy_device, "from": copy.copy_from, "to": copy.copy_to},
        "rows": copy.rows,
        "lag_s": [lag.total_seconds() for lag in copy.lag],
        "agreeing": list(copy.agreeing),
        "differing": {name: copy.equal[name] for name in copy.differing},
        "labels_equal": copy.labels_equal,
        "whole": copy.whole,
    }


def overview(days: pl.LazyFrame) -> pl.LazyFrame:
    """A row for each source, of rows of ``history_summary.DAYS_SCHEMA``: counts, devices, first and last reading."""
    return (
        days.group_by("source")
        .agg(
            pl.col(_OVERVIEW).sum(),
            pl.col("device_id").n_unique().cast(pl.Int64).alias("devices"),
            pl.col("first_event").min(),
            pl.col("last_event").max(),
        )
        .sort("source")
    )


def merge_devices(parts: Sequence[DeviceSummary]) -> DeviceSummary:
    """The summaries of disjoint sets of devices as one.

    Raises:
        ValueError: for none.
    """
    if not parts:
        raise ValueError("nothing to merge: summarise at least one part")
    kind = ("source", "pattern")
    rhythm_key = ("source", "local_date", "weekday", "local_hour")
    return DeviceSummary(
        days=pl.concat([part.days for part in parts]).sort("source", "device_id", "day"),
        rhythm=pl.concat([part.rhythm for part in parts])
        .group_by(rhythm_key, maintain_order=True)
        .agg(pl.all().sum())
        .sort("source", "local_date", "local_hour"),
        patterns=pl.concat([part.patterns for part in parts]).group_by(kind).agg(pl.all().sum()).sort(kind),
        examples=pl.concat([part.examples for part in parts])
        .sort(*kind, "z", "device_id", "hour", descending=[False, False, True, False, False])
        .group_by(kind, maintain_order=True)
        .head(EXAMPLES),
        judged=pl.concat([part.judged for part in parts]).group_by("source").agg(pl.all().sum()).sort("source"),
        odd=pl.concat([part.odd for part in parts]).sort("kind", "source", "device_id", "sensor", "event_date"),
    )


def merge(material: Material, zone: str = "UTC") -> History:
    """Puts the material together; ``zone`` is the one it was made with.

    Raises:
        ValueError: where there are no readings at all.
    """
    if material.overview.is_empty():
        raise ValueError("no day to merge: summarise at least one")
    days, rhythm = material.devices.days, material.devices.rhythm
    patterns = _patterns(material.devices.patterns, material.devices.judged)
    alarms, hits = material.alarms, material.hits
    return History(
        zone=zone,
        overview=material.overview,
        days=days,
        by_day=days.group_by("source", "day")
        .agg(pl.col("device_id").n_unique().cast(pl.Int64).alias("devices"), pl.col("rows", "fires").sum())
        .sort("source", "day"),
        by_hour=_season(rhythm.rename({"local_hour": "hour"}), "hour"),
        by_weekday=_season(rhythm, "weekday"),
        daily=history_trends.daily_rhythm(rhythm),
        weekly=history_trends.weekly_rhythm(days),
        trends=history_trends.device_trends(days),
        site_trends=history_trends.site_trends(days, material.sites),
        ageing=history_trends.ageing(days, material.sites),
        correlations=_correlations(material.moments),
        patterns=patterns,
        rare=_rare(patterns, material.devices.examples),
        judged=material.devices.judged,
        odd=material.devices.odd,
        copies=material.copies,
        unexplored=material.unexplored,
        alarms=alarms,
        causes=None if alarms is None else history_alarms.causes(alarms),
        alarm_devices=None if alarms is None else history_alarms.of_places(alarms, "device_id"),
        alarm_sites=None if alarms is None else history_alarms.of_places(alarms, "site"),
        models=None if hits is None else history_alarms.models(hits),
        rule_hits=None if hits is None else history_alarms.rule_hits(hits),
    )


def _season(rhythm: pl.DataFrame, by: str) -> pl.DataFrame:
    return (
        rhythm.group_by("source", by)
        .agg(
            pl.col("rows", "fires").sum(),
            pl.col("local_date").n_unique().cast(pl.Int64).alias("days"),
            *(
                pl.when(pl.col(f"{name}_n").sum() > 0)
                .then(pl.col(f"{name}_sum").sum() / pl.col(f"{name}_n").sum())
                .alias(name)
                for name in ALL_SENSOR_NAMES
            ),
        )
        .sort("source", by)
    )


def _peak(season: pl.DataFrame, by: str, source: str, sensor: str) -> int | None:
    found = season.filter(pl.col("source") == source, pl.col(sensor).is_not_null()).sort(
        sensor, by, descending=[True, False]
    )
    return int(found[by][0]) if found.height else None


def _correlations(moments: pl.DataFrame) -> pl.DataFrame:
    """Pearson's r of each pair of sensors; a sensor that never moves has none."""
    # In one order, so that the sums are the same to the last bit however the parts came.
    added = moments.sort(moments.columns).group_by("source", maintain_order=True).agg(pl.all().sum()).sort("source")
    found: list[tuple[Any, ...]] = []
    for row in added.iter_rows(named=True):
        n = row["n"]
        mean = {name: row[f"s_{name}"] / n for name in SENSOR_NAMES}
        total = {(a, b): row[f"p_{a}_{b}"] / n - mean[a] * mean[b] for a, b in PAIRS}
        within = {(a, b): row[f"w_{a}_{b}"] / n for a, b in PAIRS}
        # Of a constant sensor only rounding is left; a correlation with it would be made of that.
        least = {name: 1e-12 * max(1.0, row[f"p_{name}_{name}"] / n) for name in SENSOR_NAMES}
        for a, b in PAIRS:
            if a == b or min(total[a, a] - least[a], total[b, b] - least[b]) <= 0:
                continue
            moves = min(within[a, a] - least[a], within[b, b] - least[b]) > 0
            r_within = _pearson(within[a, b], within[a, a], within[b, b]) if moves else None
            found.append((row["source"], a, b, _pearson(total[a, b], total[a, a], total[b, b]), r_within, n))
    schema = {
        **{"source": pl.String, "sensor": pl.String, "other": pl.String},
        **{"r": pl.Float64, "r_within": pl.Float64, "rows": pl.Int64},
    }
    return pl.DataFrame(found, schema=schema, orient="row").sort(
        pl.col("r").abs(), "source", "sensor", "other", descending=[True, False, False, False]
    )


def _pearson(both: float, one: float, other: float) -> float:
    return float(np.clip(both / np.sqrt(one * other), -1.0, 1.0))


def _patterns(patterns: pl.DataFrame, judged: pl.DataFrame) -> pl.DataFrame:
    looked_at = judged.select("source", looked_at="hours")
    return (
        patterns.join(looked_at, on="source")
        .with_columns(share=pl.col("hours") / pl.col("looked_at"))
        .with_columns(rare=(pl.col("hours") == 1) | (pl.col("share") <= RARE_SHARE))
        .drop("looked_at")
        .sort("hours", "source", "pattern")
    )


def _rare(patterns: pl.DataFrame, examples: pl.DataFrame) -> pl.DataFrame:
    rare = patterns.filter("rare").select("source", "pattern", pl.col("hours").alias("seen"), "devices")
    strongest = examples.unique(["source", "pattern"], keep="first", maintain_order=True)
    return (
        strongest.join(rare, on=["source", "pattern"])
        .sort("seen", "z", "source", "pattern", descending=[False, True, False, False])
        .group_by("source", maintain_order=True)
        .head(MOST_RARE_PATTERNS)
    )
