"""What monitors do, without Dagster: read the lake, ask the domain, store a report, say what it means.

Belongs here: what all monitors share, data quality and history, how much is read and how it is bounded, thresholds at
which somebody is told. Does not: drift (``drift_monitor``), model performance (``performance_monitor``), the figures
(``domain``), files and drawing (``adapters.reports``), assets and schedules (``monitoring``).

A monitor that has nothing to judge returns ``NotEvaluated`` with its reason: a green tick would be a lie, and a red
run every day on a platform that is still empty would teach its owner to look away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import numpy as np
import polars as pl

from smoke_platform.adapters import history_page
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.reports import ReportStore, Section, StoredReport, markdown_table, page, shown
from smoke_platform.adapters.scorer import ModelRefused, OnnxScorer, Refusal, read_champion
from smoke_platform.domain import history_words, quality
from smoke_platform.domain.features import FEATURE_NAMES
from smoke_platform.settings import Settings
from smoke_platform.streaming import history

FEATURES = "features"
SAMPLE_SEED = 20_220_601

QUALITY_WINDOW = timedelta(hours=24)
#: Readings of the last minute may still be on their way.
IN_FLIGHT = timedelta(minutes=1)
#: From this many readings on, the window is read one Kafka partition after the other.
QUALITY_ROWS_AT_ONCE = 5_000_000
SCORE_LIMIT = 70.0
COMPLETENESS_LIMIT = 0.90
VALIDITY_LIMIT = 0.90


@dataclass(frozen=True, slots=True)
class Verdict:
    """An asset check's result: whether it passed, how grave a failure is, in words, and the numbers behind."""

    name: str
    passed: bool
    severity: Literal["ERROR", "WARN"]
    description: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a monitor found.

    Attributes:
        numbers: figures that Dagster draws over time.
        tables: title -> rows, shown with the asset.
        verdicts: of the checks that could be judged.
        unjudged: check -> why it could not be.
    """

    report: StoredReport
    numbers: Mapping[str, float | int | str]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    verdicts: tuple[Verdict, ...]
    unjudged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotEvaluated:
    """Why there was nothing to judge."""

    reason: str


def store(settings: Settings) -> ReportStore:
    return ReportStore(settings.reports_dir, settings.report_retention)


# -- reading -----------------------------------------------------------------------------------------------------


def sample(frame: pl.LazyFrame, rows: int) -> tuple[pl.DataFrame, int]:
    """About ``rows`` rows chosen by a hash of their place in Kafka, and how many there are in all.

    A hash, not every k-th offset: devices take turns in a partition, so a step that divides their number would
    choose the same devices for ever. The choice is the same whenever the same rows are looked at.
    """
    total = int(frame.select(pl.len()).collect(engine="streaming").item())
    if total > rows:
        places = pl.struct("topic_id", "partition", "offset").hash(seed=SAMPLE_SEED)
        frame = frame.filter(places < pl.lit(int(2**64 * (rows / total)), pl.UInt64))
    return frame.collect(engine="streaming"), total


def days_of(lake: Lake, name: str) -> list[date]:
    """The UTC days of event time that the table has files for, the oldest first."""
    days = {partition["event_date"] for partition in lake.open(name).partitions()}
    return sorted(date.fromisoformat(str(day)) for day in days if day)


def of_day(lake: Lake, name: str, day: date) -> pl.LazyFrame:
    return lake.scan(name).filter(pl.col("event_date") == day)


def champion(settings: Settings) -> OnnxScorer | NotEvaluated:
    """The champion, or that there is none; one that is published but unusable is an error.

    Raises:
        ModelRefused: for a champion that must not be believed.
    """
    try:
        return OnnxScorer.load(settings.models_dir, read_champion(settings.models_dir))
    except ModelRefused as refusal:
        if refusal.reason is Refusal.NO_CHAMPION:
            return NotEvaluated(f"{refusal.message}; the first training publishes one")
        raise


def matrix_of(frame: pl.DataFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
    # Row by row in memory, as the scorer wants it; nulls (no such feature yet) become NaN.
    columns = frame.select(pl.col(FEATURE_NAMES).cast(pl.Float32).fill_null(float("nan")))
    return np.ascontiguousarray(columns.to_numpy(), dtype=np.float32)


# -- data quality ------------------------------------------------------------------------------------------------


def data_quality(
    settings: Settings, now: datetime, count_rejected: Callable[[], Mapping[str, int] | None]
) -> Outcome | NotEvaluated:
    """Judges the readings that arrived in the last 24 hours.

    Args:
        count_rejected: gives the dead letters of ``quality_window(now)`` by reason, ``None`` where they can't be read.
    """
    lake = Lake(settings.lake)
    if not lake.exists(READINGS):
        return NotEvaluated("no reading has landed yet")
    start, end = quality_window(now)
    rejected = count_rejected()
    found = quality.assess(
        _hours(_arrived(lake, start, end)),
        start,
        end,
        rejected=rejected,
        known=quality.known_devices(_arrived(lake, start - QUALITY_WINDOW, start)).collect(engine="streaming"),
    )
    if found is None:
        return NotEvaluated(f"nothing arrived between {start:%d %b %H:%M} and {end:%d %b %H:%M} UTC, nor was expected")
    factors = [
        {"factor": name, "value": getattr(found.score, name)}
        for name in ("completeness", "measured", "validity", "plausibility", "uniqueness")
    ]
    worst = _device_rows(found.devices.head(50))
    letters = [{"reason": name, "messages": count} for name, count in sorted((rejected or {}).items())]
    headline = f"score {found.score.score:.1f} of 100"
    html = page(
        "Data quality",
        f"Readings that arrived from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC",
        headline,
        [
            Section(
                "Factors", factors, "Their product times 100 is the score: the share of the expected that is usable."
            ),
            Section("Dead letters", letters, "" if rejected is not None else "The topic could not be read."),
            Section("Devices, the worst first", worst),
        ],
    )
    report = store(settings).write("quality", html, found.as_dict(), moment=now)
    return _quality_outcome(report, found, {"factors": factors, "dead letters": letters, "devices": worst[:10]})


def quality_window(now: datetime) -> tuple[datetime, datetime]:
    """The 24 hours of the broker's append time that end at the last whole minute of which all has landed."""
    end = (now.astimezone(UTC) - IN_FLIGHT).replace(second=0, microsecond=0)
    return end - QUALITY_WINDOW, end


def _arrived(lake: Lake, start: datetime, end: datetime) -> pl.LazyFrame:
    time_type = pl.Datetime("us", "UTC")
    return lake.scan(READINGS).filter(
        pl.col("append_time") >= pl.lit(start, time_type), pl.col("append_time") < pl.lit(end, time_type)
    )


def _hours(readings: pl.LazyFrame) -> pl.DataFrame:
    counts = readings.group_by("partition").agg(pl.len()).collect(engine="streaming")
    if counts["len"].sum() <= QUALITY_ROWS_AT_ONCE:
        return quality.hourly_statistics(readings).collect(engine="streaming")
    # A device's readings are all in one partition, so the parts need no merging.
    return pl.concat(
        quality.hourly_statistics(readings.filter(pl.col("partition") == number)).collect(engine="streaming")
        for number in counts["partition"].sort()
    )


def _device_rows(devices: pl.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "device": row["device_id"],
            "completeness": row["completeness"],
            "readings": row["distinct_rows"],
            "expected": row["expected"],
            "interval s": row["interval_s"],
            "last reading": row["last_event"],
            "stale": row["stale"],
            "stuck hours": row["stuck_hours"],
            "inconsistent": row["inconsistent"],
            "late": row["late"],
        }
        for row in devices.iter_rows(named=True)
    ]


def _quality_outcome(
    report: StoredReport, found: quality.QualityReport, tables: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Outcome:
    score = found.score
    numbers: dict[str, float | int | str] = {
        "score": score.score,
        "completeness": score.completeness,
        "measured": score.measured,
        "plausibility": score.plausibility,
        "uniqueness": score.uniqueness,
        "readings": found.readings,
        "expected": found.expected,
        "duplicates": found.duplicates,
        "late": found.late,
        "devices": found.devices.height,
        "stale_devices": len(found.stale),
        "stuck_sensor_hours": found.stuck,
        "inconsistent_values": found.inconsistent,
    }
    verdicts = [
        Verdict(
            "score_at_least_70",
            score.score >= SCORE_LIMIT,
            "ERROR",
            f"score {score.score:.1f} of 100 (limit {SCORE_LIMIT:g})",
            {"score": score.score},
        ),
        Verdict(
            "completeness_at_least_90",
            score.completeness >= COMPLETENESS_LIMIT,
            "WARN",
            f"{score.completeness:.1%} of the expected readings arrived (limit {COMPLETENESS_LIMIT:.0%})",
            {"completeness": score.completeness},
        ),
        Verdict(
            "no_stale_devices",
            not found.stale,
            "WARN",
            f"{len(found.stale)} devices are silent: {', '.join(found.stale[:10])}" if found.stale else "all report",
            {"stale_devices": len(found.stale)},
        ),
        Verdict(
            "sensors_plausible",
            found.stuck == 0 and found.inconsistent == 0,
            "WARN",
            f"{found.stuck} sensor-hours without any movement, {found.inconsistent} readings with PM1.0 above PM2.5",
            {"stuck_sensor_hours": found.stuck, "inconsistent_values": found.inconsistent},
        ),
    ]
    unjudged: dict[str, str] = {}
    if score.validity is None:
        unjudged["rejects_below_10"] = "the dead-letter topic could not be read, so validity is not in the score"
    else:
        bad = sum((found.rejected or {}).values())
        numbers |= {"validity": score.validity, "rejected": bad}
        verdicts.append(
            Verdict(
                "rejects_below_10",
                score.validity >= VALIDITY_LIMIT,
                "WARN",
                f"{bad} messages were no readings, {1 - score.validity:.1%} of all (limit {1 - VALIDITY_LIMIT:.0%})",
                {"rejected": bad, "validity": score.validity},
            )
        )
    return Outcome(report, numbers, tables, tuple(verdicts), unjudged)


# -- history -----------------------------------------------------------------------------------------------------


def whole_history(settings: Settings, now: datetime) -> Outcome | NotEvaluated:
    """Makes the history of the whole lake, on the engine of the settings.

    Raises:
        SmokeError: Spark is asked for and can't be had.
    """
    told = history.run(settings, now)
    if told is None:
        return NotEvaluated("no reading has landed yet")
    found, copies = told.history, len(told.history.copies)
    numbers: dict[str, float | int | str] = {
        "readings": found.rows,
        "days": found.by_day["day"].n_unique(),
        "devices": found.days["device_id"].n_unique(),
        "repeated_recordings": copies,
        "aged_sensors": int(found.ageing["ages"].sum()),
        "clear_trends": int(found.trends["clear"].sum()),
        "odd_signals": found.odd.height,
        "engine": told.effort.engine,
        "days_read": told.effort.days_read,
    }
    sentences = history_words.sentences(found)
    tables = {section.title: section.rows for section in history_page.sections(found) if section.rows}
    verdict = Verdict(
        "no_repeated_recordings",
        not copies,
        "WARN",
        " ".join(history_words.copy_sentence(copy, found.zone) for copy in found.copies[:5])
        if copies
        else "no recording repeats another one",
        {"repeated_recordings": copies},
    )
    rows = {"what it says": [{"finding": sentence} for sentence in sentences], **tables}
    return Outcome(told.report, numbers, rows, (verdict,))


def summary_markdown(outcome: Outcome) -> str:
    """The outcome as a person reads it in Dagster: verdicts first, then the short tables."""
    judged = [{"check": v.name, "passed": v.passed, "what": v.description} for v in outcome.verdicts] + [
        {"check": name, "passed": None, "what": f"not evaluated: {why}"} for name, why in outcome.unjudged.items()
    ]
    parts = ["**Checks**", markdown_table(judged)]
    for title, rows in outcome.tables.items():
        parts += [f"**{title}**", markdown_table(rows[:15])]
        if len(rows) > 15:
            parts.append(f"and {shown(len(rows) - 15)} more in the report")
    return "\n\n".join(parts)
