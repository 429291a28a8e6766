"""The history as a page, and as rows for machines.

Belongs here: which figures and tables, in which order; one row of ``lake/history_findings`` for each finding. Does not:
the figures' shapes (``adapters.svg``), sentences (``domain.history_words``), files (``adapters.reports``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from smoke_platform.adapters import svg
from smoke_platform.adapters.history_tables import FINDINGS_SCHEMA
from smoke_platform.adapters.reports import Section, page, to_json
from smoke_platform.domain.history import WEEKDAYS, History, copy_as_dict
from smoke_platform.domain.history_devices import LEAST_Z
from smoke_platform.domain.history_trends import LEAST_DAYS_TO_JUDGE, LEAST_SPREADS_OF_DRIFT
from smoke_platform.domain.history_words import sentences
from smoke_platform.domain.readings import SENSOR_BY_NAME, SENSOR_NAMES

#: Rows of a table on the page; the JSON and the lake have more.
ROWS = 15
#: Lines in a figure, and figures of a kind for a source.
LINES = 5

Rows = list[dict[str, Any]]


def history_page(history: History, made: str) -> str:
    """The page, complete in itself.

    Args:
        made: how it was made, in a sentence.
    """
    return page(
        "History",
        f"{history.first_day} to {history.last_day}; days, hours and weekdays in {history.zone}",
        f"{history.rows:,} readings",
        [
            Section("What it says", None, lines=sentences(history)),
            *sections(history),
            Section("How it was made", None, made),
        ],
    )


def sections(history: History) -> list[Section]:
    """The sections with figures and tables, those of all sources first."""
    found = [_sources(history), _copies(history), _odd(history), *_alarms(history)]
    for source in history.sources:
        mine = pl.col("source") == source
        found += [
            *_rhythms(history, source, mine),
            *_trends(history, source, mine),
            _ageing(history, source, mine),
            _correlations(history, source, mine),
            *_patterns(history, source, mine),
        ]
    return found


def _unit(sensor: str) -> str:
    return SENSOR_BY_NAME[sensor].unit


# -- of all sources ----------------------------------------------------------------------------------------------


def _sources(history: History) -> Section:
    names = ("source", "rows", "devices", "duplicates", "late", "labelled", "fires")
    rows = [
        {
            **{name: row[name] for name in names},
            "labelled fire in clean air": row["fires_in_clean_air"],
            "labelled no fire in smoke": row["smoke_without_fire"],
            "first": _minute(row["first_event"], history.zone),
            "last": _minute(row["last_event"], history.zone),
        }
        for row in history.overview.iter_rows(named=True)
    ]
    figures = [
        svg.columns(
            f"Readings a day, source {source}",
            [str(day) for day in own["day"]],
            own["rows"].to_list(),
        )
        for (source,), own in history.by_day.group_by("source", maintain_order=True)
    ]
    note = "Rows without repeats of the same reading. Clean air: PM2.5 of at most 10; smoke: above 100 ug/m3."
    return Section("Sources, and readings a day", rows, note, "".join(figures))


def _minute(moment: datetime, zone: str) -> str:
    return f"{moment.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M}"


def _copies(history: History) -> Section:
    rows, bars = [], []
    for number, copy in enumerate(history.copies):
        rows.append(
            {
                "copy": copy.copy_device,
                "of": copy.first_device,
                "readings": copy.rows,
                "copy from": _minute(copy.copy_from, history.zone),
                "to": _minute(copy.copy_to, history.zone),
                "later by": str(copy.lag[0]),
                "differs in": ", ".join(f"{name} (equal in {copy.equal[name]:,})" for name in copy.differing) or "time",
                "labels equal": copy.labels_equal,
                "agrees in": ", ".join(copy.agreeing),
            }
        )
        for device, start, end in (
            (copy.first_device, copy.first_from, copy.first_to),
            (f"{copy.copy_device} (copy)", copy.copy_from, copy.copy_to),
        ):
            bars.append((device, start.timestamp(), end.timestamp(), number))
    shown = bars[: 2 * ROWS]
    figure = ""
    if shown:
        low, high = min(bar[1] for bar in shown), max(bar[2] for bar in shown)
        labels = [
            (moment, f"{datetime.fromtimestamp(moment, ZoneInfo(history.zone)):%d %b %H:%M}")
            for moment in (low + (high - low) * part / 4 for part in range(5))
        ]
        figure = svg.spans("Recordings and their copies, one colour a pair", shown, labels)
    note = (
        "Found by marks of all sensors but temperature, whenever the readings were, and then compared reading by "
        "reading. A copy is no independent evidence: training and validation must not hold both."
    )
    return Section("Repeated recordings", rows[: 2 * ROWS], note, figure)


def _odd(history: History) -> Section:
    rows = [
        {
            "signal": f"{row['sensor']} of {row['device_id']}",
            "day": row["event_date"],
            "what": "too smooth" if row["kind"] == "smooth" else "stands still",
            "bends / steps": row["value"] if row["kind"] == "smooth" else None,
            "value": row["value"] if row["kind"] == "constant" else None,
            "readings": row["rows"],
        }
        for row in history.odd.head(2 * ROWS).iter_rows(named=True)
    ]
    note = (
        "A sensor has noise: the second differences of its readings add up to a third of the first ones at least. A "
        "curve that somebody computed has hardly any."
    )
    return Section("Signals that no sensor gives", rows, note)


def _alarms(history: History) -> Iterator[Section]:
    if history.causes is not None and history.alarms is not None:
        causes = history.causes.head(ROWS)
        figure = svg.bars(
            "Alarms by cause", [(f"{row['cause']} ({row['kind']})", row["alarms"]) for row in causes.to_dicts()]
        )
        note = f"{history.alarms.height:,} alarms. An alarm that rests on three rules counts for each of them."
        yield Section("Top causes of alarms", causes.to_dicts(), note, figure if causes.height else "")
        for title, places in (("Alarms by device", history.alarm_devices), ("Alarms by site", history.alarm_sites)):
            if places is not None:
                yield Section(title, places.head(ROWS).to_dicts())
    if history.models is not None and history.rule_hits is not None:
        note = "Of all readings that the detector judged: how often each rule hit, and what each model said."
        yield Section("Rules that hit readings", history.rule_hits.head(ROWS).to_dicts(), note)
        yield Section("Models", history.models.to_dicts(), "Over: scores at or above the model's own threshold.")


# -- of a source -------------------------------------------------------------------------------------------------


def _rhythms(history: History, source: str, mine: pl.Expr) -> Iterator[Section]:
    daily = history.daily.filter(mine)
    hours = history.by_hour.filter(mine)
    figures = []
    for row in daily.filter("clear").head(LINES).iter_rows(named=True):
        by_hour = dict(hours.select("hour", row["sensor"]).iter_rows())
        title = f"{row['sensor']} in {_unit(row['sensor'])} by hour of the day"
        figures.append(
            svg.lines(title, [f"{hour:02d}" for hour in range(24)], {title: [by_hour.get(hour) for hour in range(24)]})
        )
    rows = [
        {
            "sensor": row["sensor"],
            "clear": row["clear"],
            "explained": row["explained"],
            "chance": row["chance"],
            "highest from": f"{row['highest']:02d}:00",
            "lowest from": f"{row['lowest']:02d}:00",
            "between": row["swing"],
            "unit": _unit(row["sensor"]),
            "days": row["days"],
        }
        for row in daily.iter_rows(named=True)
    ]
    note = (
        "What an hour is above its device's mean of the day, on whole days. Explained: share of what varies within a "
        "day. Chance: how often the same days, each turned by a random number of hours, are explained as well; clear: "
        "so seldom that none is expected among all sensors."
    )
    yield Section(f"Daily rhythm ({source})", rows, note, "".join(_labelled(figures)))
    weekly = [
        {
            "sensor": row["sensor"],
            "clear": row["clear"],
            "explained": row["explained"],
            "chance": row["chance"],
            "highest on": WEEKDAYS[row["highest"] - 1],
            "lowest on": WEEKDAYS[row["lowest"] - 1],
            "between": row["swing"],
            "unit": _unit(row["sensor"]),
            "days": row["days"],
        }
        for row in history.weekly.filter(mine).iter_rows(named=True)
    ]
    yield Section(
        f"Weekly rhythm ({source})",
        weekly,
        "What a day is above its device's mean. Chance: how often the same days in random order are explained as well.",
    )


def _labelled(figures: Sequence[str]) -> Iterator[str]:
    """Each figure below its own title, which the SVG itself keeps for pointers and screen readers."""
    for figure in figures:
        title = figure.split("<title>", 1)[1].split("</title>", 1)[0]
        yield f'<p class="muted" style="margin:.8rem 0 0">{title}</p>{figure}'


def _trends(history: History, source: str, mine: pl.Expr) -> Iterator[Section]:
    trends = history.trends.filter(mine).sort("clear", descending=True, maintain_order=True)
    figures = [
        _course(history, source, row["device_id"], row["sensor"], "mean")
        for row in trends.filter(pl.col("spreads_per_day").is_not_null()).head(3).iter_rows(named=True)
    ]
    note = (
        "Least-squares slope of the daily means. Spreads a day: the slope in standard deviations of those means. "
        "Clear: beyond what the days' own spread gives by chance, all trends taken together, from "
        f"{LEAST_DAYS_TO_JUDGE} days on."
    )
    rows = [_trend(row, "device_id") for row in trends.head(ROWS).iter_rows(named=True)]
    yield Section(f"Trends of devices ({source})", rows, note, "".join(_labelled(figures)))
    sites = history.site_trends.filter(mine).sort("clear", descending=True, maintain_order=True)
    yield Section(
        f"Trends of sites ({source})",
        [{**_trend(row, "site"), "devices": row["devices"]} for row in sites.head(ROWS).iter_rows(named=True)],
        "Of the mean over a site's devices of what a day is above their own mean. Sites stand in the device registry.",
    )


def _trend(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        name: row[name],
        "sensor": row["sensor"],
        "clear": row["clear"],
        "a day": row["slope_per_day"],
        "unit": _unit(row["sensor"]),
        "spreads a day": row["spreads_per_day"],
        "days": row["days"],
    }


def _course(history: History, source: str, device: str, sensor: str, what: str) -> str:
    days = history.days.filter(pl.col("source") == source, pl.col("device_id") == device).select(
        "day", value=f"{sensor}_{what}"
    )
    title = f"{sensor} of {device} in {_unit(sensor)}, {'mean' if what == 'mean' else 'quiet baseline'} of each day"
    return svg.lines(title, [str(day) for day in days["day"]], {title: days["value"].to_list()})


def _ageing(history: History, source: str, mine: pl.Expr) -> Section:
    ageing = history.ageing.filter(mine)
    # Sensors of different units share an axis in their own spreads.
    drawn = ageing.filter(pl.col("spread") > 0).head(ROWS)
    span = (pl.col("last_day") - pl.col("first_day")).dt.total_days() / 7 / pl.col("spread")
    bars = [
        (f"{device} {sensor}", low, middle, high, ages)
        for device, sensor, low, middle, high, ages in drawn.select(
            "device_id", "sensor", pl.col("low") * span, pl.col("per_week") * span, pl.col("high") * span, "ages"
        ).iter_rows()
    ]
    rows = [
        {
            "device": row["device_id"],
            "sensor": row["sensor"],
            "ages": row["ages"],
            "a week": row["per_week"],
            "low": row["low"],
            "high": row["high"],
            "over all days": row["drift"],
            "unit": _unit(row["sensor"]),
            "spread of days": row["spread"],
            "days": row["days"],
            "compared with": row["compared_with"],
        }
        for row in ageing.head(ROWS).iter_rows(named=True)
    ]
    note = (
        "Slope of the quiet baseline (median of a day's hourly medians) against the other devices, by Theil and Sen, "
        "with the 95% interval; the others are taken off as strongly as the sensor follows them from day to day. It "
        "ages where the interval for all sensors together leaves out zero and the drift is at least "
        f"{LEAST_SPREADS_OF_DRIFT:g} of the days' own spreads. From {LEAST_DAYS_TO_JUDGE} days on. The figure has "
        "drifts over all days in those spreads."
    )
    figure = svg.intervals("Drift over all days, in spreads of the days, with 95% intervals", bars) if bars else ""
    return Section(f"Ageing of sensors ({source})", rows, note, figure)


def _correlations(history: History, source: str, mine: pl.Expr) -> Section:
    found = history.correlations.filter(mine)
    values = {
        (row["sensor"], row["other"]): row["r_within"] for row in found.drop_nulls("r_within").iter_rows(named=True)
    }
    moving = [name for name in SENSOR_NAMES if any(name in pair for pair in values)]
    figure = svg.matrix("Correlations within a device's day", moving, values) if moving else ""
    rows = [
        {name: row[name] for name in ("sensor", "other", "r", "r_within", "rows")}
        for row in found.head(ROWS).iter_rows(named=True)
    ]
    note = (
        "Pearson's r of readings in which all twelve sensors are. In the figure and as r within: about the mean of "
        "each device's day, so that differences between devices and seasons are no correlation. Labels are not among "
        "them."
    )
    return Section(f"Correlations ({source})", rows, note, figure)


def _patterns(history: History, source: str, mine: pl.Expr) -> Iterator[Section]:
    hours = int(history.judged.filter(mine)["hours"].sum())
    rows = [
        {
            "pattern": row["pattern"],
            "seen in hours": row["seen"],
            "of devices": row["devices"],
            "strongest at": row["device_id"],
            "hour": _minute(row["hour"], history.zone),
            "rows labelled fire": row["fires"],
            "evidence": "; ".join(
                f"{fact['sensor']} {fact['mean']:g} (usually {fact['usual']:g}, z {fact['z']:g})"
                for fact in json.loads(row["evidence"])
            ),
        }
        for row in history.rare.filter(mine).iter_rows(named=True)
    ]
    note = (
        f"{hours:,} hours judged. Robust z of a device's hourly means against its own median and MAD, deviating from "
        f"{LEAST_Z:g} on; what deviates together is a pattern, and rare is one in a thousand hours or a single one. "
        "The bound leaves less than one false deviation for Gaussian noise; air is not Gaussian, so this is a list to "
        "look at, not of faults."
    )
    yield Section(f"Rare patterns ({source})", rows, note)
    common = [
        {name: row[name] for name in ("pattern", "hours", "devices", "share", "rare")}
        for row in history.patterns.filter(mine).sort("hours", descending=True).head(ROWS).iter_rows(named=True)
    ]
    yield Section(f"All patterns ({source})", common)


# -- for machines ------------------------------------------------------------------------------------------------


def findings(history: History, run: str, made_at: datetime) -> pl.DataFrame:
    """The findings as rows of ``lake/history_findings``; ``value`` is the figure, ``detail`` all else as JSON."""
    rows: Rows = []

    def add(kind: str, frame: pl.DataFrame | None, value: str, **names: str) -> None:
        for place, row in enumerate(frame.to_dicts() if frame is not None else ()):
            taken = {column: row.get(name) for column, name in names.items()}
            taken |= {column: row[column] for column in ("source", "device_id", "sensor") if column in row}
            sensor = str(taken.get("sensor"))
            rows.append(
                {
                    **dict.fromkeys(FINDINGS_SCHEMA),
                    **{"run": run, "made_at": made_at, "kind": kind, "place": place, "value": _float(row[value])},
                    **{
                        column: _moment(cell) if column in ("since", "until") else cell
                        for column, cell in taken.items()
                    },
                    "unit": _unit(sensor) if sensor in SENSOR_BY_NAME else None,
                    "detail": to_json(row),
                }
            )

    add("source", history.overview, "rows", rows="rows", since="first_event", until="last_event")
    add("trend", history.trends, "slope_per_day")
    add("site_trend", history.site_trends, "slope_per_day", site="site")
    add("ageing", history.ageing, "per_week", low="low", high="high", since="first_day", until="last_day")
    add("daily_rhythm", history.daily, "explained")
    add("weekly_rhythm", history.weekly, "explained")
    add("correlation", history.correlations, "r", other="other", rows="rows")
    add("rare_pattern", history.rare, "z", since="hour", other="pattern", rows="seen")
    add("odd_signal", history.odd, "value", since="event_date", other="kind", rows="rows")
    add("alarm_cause", history.causes, "alarms", other="cause", rows="alarms")
    add("rule_hits", history.rule_hits, "share", other="rule", rows="readings")
    copies = [
        {
            **copy_as_dict(copy),
            **{"source": copy.copy_source, "device_id": copy.copy_device, "other": copy.first_device},
            **{"since": copy.copy_from, "until": copy.copy_to},
        }
        for copy in history.copies
    ]
    for place, copy_row in enumerate(copies):
        rows.append(
            {
                **dict.fromkeys(FINDINGS_SCHEMA),
                **{"run": run, "made_at": made_at, "kind": "repeated_recording", "place": place},
                **{name: copy_row[name] for name in ("source", "device_id", "other", "rows", "since", "until")},
                **{"value": float(copy_row["rows"]), "detail": to_json(copy_row)},
            }
        )
    return pl.DataFrame(rows, schema=dict(FINDINGS_SCHEMA))


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _moment(value: Any) -> Any:
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time(), UTC)
    return value
