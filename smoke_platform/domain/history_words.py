"""The history in sentences: what a person should know of it before any table.

Belongs here: which findings are worth a sentence, and the sentence. Does not: the findings (``domain.history``), the
page.

A sentence claims what was counted or what chance does not explain, and where nothing could be judged it says so:
silence would read as "all is well".
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from smoke_platform.domain.history import WEEKDAYS, History
from smoke_platform.domain.history_copies import Copy
from smoke_platform.domain.history_devices import GROUPS, LEAST_HOURS_TO_JUDGE
from smoke_platform.domain.history_summary import CLEAN_PM2_5
from smoke_platform.domain.history_trends import LEAST_DAYS_FOR_RHYTHM, LEAST_DAYS_TO_JUDGE
from smoke_platform.domain.readings import SENSOR_BY_NAME

#: Findings of a kind that are told one by one; the rest stand in the tables.
MOST_TOLD = 5
#: Labels are called doubtful where so many of them are.
DOUBTFUL_SHARE = 0.5


def sentences(history: History) -> list[str]:
    """What the history says, the gravest first."""
    told = _copies(history) + _odd(history)
    for source in history.sources:
        told += _of_source(history, source)
    return told + _alarms(history)


def copy_sentence(copy: Copy, zone: str) -> str:
    """Which readings repeat which, in what they agree and in what not."""
    where = ZoneInfo(zone)
    agreeing, differing = copy.agreeing, copy.differing
    same = f"equal in {len(agreeing)} sensors ({', '.join(agreeing)})"
    if copy.labels_equal is not None:
        labels = "in every label" if copy.labels_equal == copy.rows else f"in {copy.labels_equal:,} labels"
        same += f" and {labels}"
    other = [f"{name} (equal in {copy.equal[name]:,})" for name in differing]
    if copy.lag[1] != timedelta(0):
        other.insert(0, f"time ({_lag(copy)})")
    rows = f"{'' if copy.whole else 'at least '}{copy.rows:,} readings"
    return (
        f"{copy.copy_device} repeats {copy.first_device}: its {rows} from {_moment(copy.copy_from, where)} to "
        f"{_moment(copy.copy_to, where)} are those from {_moment(copy.first_from, where)} to "
        f"{_moment(copy.first_to, where)}, {same}"
        + (f"; they differ in {' and '.join(other)}." if other else "; they differ in nothing else.")
    )


def _moment(moment: datetime, zone: ZoneInfo) -> str:
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S}"


def _lag(copy: Copy) -> str:
    low, high = copy.lag
    return f"{low} later" if low == high else f"{low} to {high} later"


def _copies(history: History) -> list[str]:
    told = [copy_sentence(copy, history.zone) for copy in history.copies[:MOST_TOLD]]
    if len(history.copies) > MOST_TOLD:
        told.append(f"{len(history.copies) - MOST_TOLD} more recordings repeat earlier ones.")
    if history.unexplored:
        told.append(f"{history.unexplored:,} more stretches look like copies and were not compared.")
    for row in history.overview.iter_rows(named=True):
        copied = sum(copy.rows for copy in history.copies if copy.copy_source == row["source"])
        if copied:
            told.append(
                f"{copied:,} of the {row['rows']:,} readings of source {row['source']}, {copied / row['rows']:.0%}, "
                "are copies. The figures below count them again; no model should be judged on them."
            )
    return told or ["No recording of the lake repeats another one."]


def _odd(history: History) -> list[str]:
    grouped = history.odd.group_by("kind", "source", "device_id", "sensor", maintain_order=True).agg(
        pl.col("event_date").min().alias("since"), pl.len().alias("days"), pl.col("value").mean()
    )
    told = []
    for row in grouped.head(2 * MOST_TOLD).iter_rows(named=True):
        when = f"on {row['since']}" if row["days"] == 1 else f"on {row['days']} days from {row['since']} on"
        if row["kind"] == "smooth":
            told.append(
                f"{row['sensor']} of {row['device_id']} {when} is too smooth to be measured: its second differences "
                f"add up to {row['value']:.0%} of its first ones, those of a sensor with noise to a third and more."
            )
        else:
            told.append(f"{row['sensor']} of {row['device_id']} {when} stood still at {row['value']:g}.")
    if grouped.height > 2 * MOST_TOLD:
        told.append(f"{grouped.height - 2 * MOST_TOLD} more signals stand still or are too smooth.")
    return told


def _of_source(history: History, source: str) -> list[str]:
    mine = pl.col("source") == source
    row = history.overview.row(by_predicate=mine, named=True)
    days = history.by_day.filter(mine)
    told = [
        f"Source {source}: {row['rows']:,} readings of {row['devices']:,} devices on {days.height:,} days, "
        f"{days['day'][0]} to {days['day'][-1]}; {row['duplicates']:,} repeats were left out, "
        f"{row['late']:,} came late."
    ]
    if row["fires"] and row["fires_in_clean_air"] >= DOUBTFUL_SHARE * row["fires"]:
        told.append(
            f"{row['fires_in_clean_air'] / row['fires']:.1%} of its readings labelled as fire have PM2.5 of at most "
            f"{CLEAN_PM2_5:g} ug/m3: the label does not say what the sensors say."
        )
    told += _rhythms(history, mine) + _trends(history, mine) + _ageing(history, mine)
    return told + _correlations(history, mine) + _patterns(history, mine)


def _amount(value: float, sensor: str) -> str:
    return f"{value:.3g} {SENSOR_BY_NAME[sensor].unit}"


def _rhythms(history: History, mine: pl.Expr) -> list[str]:
    daily, weekly = history.daily.filter(mine), history.weekly.filter(mine)
    if daily.is_empty():
        told = [f"A daily rhythm cannot be judged: it takes {LEAST_DAYS_FOR_RHYTHM} whole days."]
    else:
        told = [
            f"{row['sensor']} has a daily rhythm: highest in the hour from {row['highest']:02d}:00, lowest from "
            f"{row['lowest']:02d}:00, {_amount(row['swing'], row['sensor'])} between them; the hour explains "
            f"{row['explained']:.0%} of what varies within a day ({row['days']} days)."
            for row in daily.filter("clear").head(MOST_TOLD).iter_rows(named=True)
        ] or ["No sensor has a daily rhythm that chance does not explain."]
    told += [
        f"{row['sensor']} has a weekly rhythm: highest on {WEEKDAYS[row['highest'] - 1]}s, lowest on "
        f"{WEEKDAYS[row['lowest'] - 1]}s, {_amount(row['swing'], row['sensor'])} between them."
        for row in weekly.filter("clear").head(MOST_TOLD).iter_rows(named=True)
    ]
    if weekly.height and not weekly["clear"].any():
        told.append("No sensor has a weekly rhythm that chance does not explain.")
    return told


def _trends(history: History, mine: pl.Expr) -> list[str]:
    told = []
    for name, trends in (("device_id", history.trends.filter(mine)), ("site", history.site_trends.filter(mine))):
        what = "device" if name == "device_id" else "site"
        judged = trends.filter(pl.col("days") >= LEAST_DAYS_TO_JUDGE)
        clear = judged.filter("clear")
        told += [_trend(row, name) for row in clear.head(MOST_TOLD).iter_rows(named=True)]
        if clear.height > MOST_TOLD:
            told.append(f"{clear.height - MOST_TOLD} more trends of a {what} stand out.")
        if judged.height and clear.is_empty():
            told.append(f"None of {judged.height:,} trends of a {what} stands out from how much its days differ.")
        if name == "device_id" and judged.is_empty():
            told.append(f"Trends and ageing cannot be judged: that takes {LEAST_DAYS_TO_JUDGE} days of a device.")
    return told


def _trend(row: dict[str, Any], name: str) -> str:
    way = "rises" if row["slope_per_day"] > 0 else "falls"
    place = f"site {row['site']}" if name == "site" else row["device_id"]
    return (
        f"{row['sensor']} of {place} {way} by {_amount(abs(row['slope_per_day']), row['sensor'])} a day over "
        f"{row['days']} days."
    )


def _ageing(history: History, mine: pl.Expr) -> list[str]:
    ageing = history.ageing.filter(mine)
    compared = ageing.filter(pl.col("compared_with") != "nothing")
    if ageing.is_empty():
        return []
    if compared.is_empty():
        return [
            "Ageing cannot be told from season and weather: no device has four others beside it on all of its days."
        ]
    found = compared.filter("ages")
    told = [
        f"{row['sensor']} of {row['device_id']} drifts by {_amount(row['per_week'], row['sensor'])} a week against the "
        f"other devices of its {row['compared_with']} (95%: {row['low']:.3g} to {row['high']:.3g}), "
        f"{_amount(row['drift'], row['sensor'])} over {row['days']} days: check or calibrate it."
        for row in found.head(MOST_TOLD).iter_rows(named=True)
    ]
    if found.height > MOST_TOLD:
        told.append(f"{found.height - MOST_TOLD} more sensors age.")
    return told or [f"None of {compared.height:,} quiet baselines drifts away from those of the other devices."]


def _correlations(history: History, mine: pl.Expr) -> list[str]:
    group = {sensor: name for name, sensors in GROUPS.items() for sensor in sensors}
    pairs = history.correlations.filter(mine).drop_nulls("r_within")
    across = [row for row in pairs.iter_rows(named=True) if group[row["sensor"]] != group[row["other"]]]
    if not across:
        return []
    best = max(across, key=lambda row: abs(row["r_within"]))
    way = "together" if best["r_within"] > 0 else "against each other"
    return [
        f"Of sensors that sense different things {best['sensor']} and {best['other']} move most {way} within a "
        f"device's day (r = {best['r_within']:.2f}; over all readings {best['r']:.2f})."
    ]


def _patterns(history: History, mine: pl.Expr) -> list[str]:
    judged, patterns = history.judged.filter(mine), history.patterns.filter(mine)
    if judged.is_empty():
        return [
            f"Rare patterns cannot be judged: no device has {LEAST_HOURS_TO_JUDGE} hours to be compared with itself."
        ]
    hours = int(judged["hours"].sum())
    rare = patterns.filter("rare")
    told = f"Of {hours:,} hours of devices {int(patterns['hours'].sum()):,} deviate, in {patterns.height} patterns"
    if rare.is_empty():
        return [f"{told}; none of these is rare."]
    first = rare.row(0, named=True)
    return [
        f"{told}; {rare.height} are rare, the rarest '{first['pattern']}' in {first['hours']} hours of "
        f"{first['devices']} devices."
    ]


def _alarms(history: History) -> list[str]:
    if history.alarms is None or history.causes is None:
        return ["Causes of alarms cannot be told: no alarm has landed yet."]
    told = []
    for (kind,), rows in history.alarms.group_by("kind", maintain_order=True):
        causes = history.causes.filter(pl.col("kind") == kind).head(3)
        behind = ", ".join(f"{row['cause']} ({row['alarms']:,})" for row in causes.iter_rows(named=True))
        false = int((rows["verdict"] == "false_alarm").sum())
        judged = f"; operators called {false:,} of them false" if false else ""
        told.append(f"{rows.height:,} alarms of kind {kind}; most often behind them: {behind}{judged}.")
    return told or ["No alarm was raised."]
