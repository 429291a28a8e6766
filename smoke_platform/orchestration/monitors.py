"""What each monitor does, without Dagster: read the lake, ask the domain, store a report, say what it means.

Belongs here: how much is read and how it is bounded, thresholds at which somebody is told, the reports' pages. Does
not: the figures (``domain``), files and drawing (``adapters.reports``), assets and schedules (``monitoring``).

A monitor that has nothing to judge returns ``NotEvaluated`` with its reason: a green tick would be a lie, and a red
run every day on a platform that is still empty would teach its owner to look away.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from smoke_platform.adapters import history_page
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.reports import ReportStore, Section, StoredReport, draw_drift, markdown_table, page, shown
from smoke_platform.adapters.scorer import ModelRefused, OnnxScorer, Refusal, read_champion
from smoke_platform.domain import drift, history_words, performance, quality
from smoke_platform.domain.features import FEATURE_NAMES
from smoke_platform.settings import Settings
from smoke_platform.streaming import history

FEATURES = "features"
SAMPLE_SEED = 20_220_601

#: Rows of each side of the drift report: more only makes Evidently slower, the distances are steady by then.
DRIFT_ROWS = 10_000
#: From this share of drifted columns on, or this share of a day called fire, somebody should look.
DRIFT_SHARE_LIMIT = 0.3
FIRE_SHARE_LIMIT = 0.2
#: A few hours differ from training by the time of day alone.
DRIFT_LEAST_HOURS = 6.0
DRIFT_LEAST_ROWS = drift.LEAST_VALUES

QUALITY_WINDOW = timedelta(hours=24)
#: Readings of the last minute may still be on their way.
IN_FLIGHT = timedelta(minutes=1)
#: From this many readings on, the window is read one Kafka partition after the other.
QUALITY_ROWS_AT_ONCE = 5_000_000
SCORE_LIMIT = 70.0
COMPLETENESS_LIMIT = 0.90
VALIDITY_LIMIT = 0.90

PERFORMANCE_WINDOW = timedelta(hours=12)
PERFORMANCE_ROWS = 500_000
#: Days looked at for readings with known truth, from the newest back.
PERFORMANCE_DAYS_BACK = 30
ACCURACY_LIMIT = 0.70
HEALTH_LIMIT = 50.0
PROBES = 3
PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """An asset check's result: whether it passed, how grave a failure is, in words, and the numbers behind."""

    name: str
    passed: bool
    severity: Literal["ERROR", "WARN"]
    description: str
    numbers: Mapping[str, float | int] = field(default_factory=dict)


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


def _of_day(lake: Lake, name: str, day: date) -> pl.LazyFrame:
    return lake.scan(name).filter(pl.col("event_date") == day)


def _champion(settings: Settings) -> OnnxScorer | NotEvaluated:
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


def _matrix(frame: pl.DataFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
    # Row by row in memory, as the scorer wants it; nulls (no such feature yet) become NaN.
    columns = frame.select(pl.col(FEATURE_NAMES).cast(pl.Float32).fill_null(float("nan")))
    return np.ascontiguousarray(columns.to_numpy(), dtype=np.float32)


# -- drift -------------------------------------------------------------------------------------------------------


def drift_report(settings: Settings, day: date, now: datetime) -> Outcome | NotEvaluated:
    """Compares a day's features with the snapshot that the champion was trained on.

    Raises:
        ModelRefused: for a champion that must not be believed.
    """
    scorer = _champion(settings)
    if isinstance(scorer, NotEvaluated):
        return scorer
    reference_file = (settings.models_dir / scorer.champion.path).parent / "reference.parquet"
    if not reference_file.is_file():
        return NotEvaluated(f"the champion {scorer.version} has no training snapshot ({reference_file} does not exist)")
    lake = Lake(settings.lake)
    if not lake.exists(FEATURES):
        return NotEvaluated("no features have been built yet")
    current, total = sample(_of_day(lake, FEATURES, day), DRIFT_ROWS)
    if current.height < DRIFT_LEAST_ROWS:
        return NotEvaluated(f"{day} has {total} feature rows, too few for a comparison ({DRIFT_LEAST_ROWS})")
    reference = _bounded_reference(reference_file)
    # Scored anew on both sides, so that the same model draws the line through both.
    reference, current = (frame.with_columns(prediction=scorer.score(_matrix(frame))) for frame in (reference, current))

    summary, sides, compared = _compare(reference, current, scorer.threshold)
    drawn = draw_drift(
        *sides,
        [column.column for column in summary.columns if column.distance is not None],
        threshold=drift.DISTANCE_THRESHOLD,
        drifted_share=DRIFT_SHARE_LIMIT,
    )
    hours = current["event_time"].dt.truncate("1h").n_unique()
    data = {
        "day": day,
        "champion": scorer.version,
        "rows_of_the_day": total,
        "hours_covered": hours,
        "compared": compared,
        **summary.as_dict(),
        "evidently": {"distances": drawn.distances, "drifted_share": drawn.drifted_share},
    }
    report = store(settings).write("drift", drawn.page, data, moment=now, label=day.isoformat())
    return _drift_outcome(report, summary, data)


def _bounded_reference(file: Path) -> pl.DataFrame:
    snapshot = pl.read_parquet(file, columns=list(FEATURE_NAMES))
    return snapshot if snapshot.height <= DRIFT_ROWS else snapshot.sample(DRIFT_ROWS, seed=SAMPLE_SEED)


_Side = Mapping[str, np.ndarray[Any, np.dtype[np.floating[Any]]]]


def _compare(
    reference: pl.DataFrame, current: pl.DataFrame, threshold: float
) -> tuple[drift.DriftSummary, tuple[_Side, _Side], str]:
    quiet = pl.col("prediction") < threshold
    before, now = reference.filter(quiet), current.filter(quiet)
    compared = "rows that the model does not call fire"
    if min(before.height, now.height) < DRIFT_LEAST_ROWS:
        before, now, compared = reference, current, "all rows, as too few are not called fire"
    sides = _columns(before), _columns(now)
    summary = drift.compare(
        *sides,
        FEATURE_NAMES,
        fire_share_reference=1.0 - reference.filter(quiet).height / max(1, reference.height),
        fire_share_current=1.0 - current.filter(quiet).height / current.height,
    )
    return summary, sides, compared


def _columns(frame: pl.DataFrame) -> _Side:
    return {name: frame[name].cast(pl.Float32).fill_null(float("nan")).to_numpy() for name in FEATURE_NAMES}


def _drift_outcome(report: StoredReport, summary: drift.DriftSummary, data: Mapping[str, Any]) -> Outcome:
    numbers: dict[str, float | int | str] = {
        "share_of_drifted_columns": summary.share,
        "drifted_columns": len(summary.drifted),
        "fire_share_of_the_day": summary.fire_share_current,
        "fire_share_in_training": summary.fire_share_reference,
        "rows_compared": summary.current_rows,
        "rows_of_the_day": int(data["rows_of_the_day"]),
        "hours_covered": int(data["hours_covered"]),
        "champion": str(data["champion"]),
    }
    rows = [
        {
            "column": c.column,
            "drifted": c.cause or "no",
            "distance": c.distance,
            "ks": c.ks,
            "mean in training": c.mean_reference,
            "mean of the day": c.mean_current,
            "missing in training": c.missing_reference,
            "missing that day": c.missing_current,
        }
        for c in summary.columns
    ]
    few = data["hours_covered"] < DRIFT_LEAST_HOURS
    verdicts = () if few else (_drift_verdict(summary),)
    unjudged = {
        "drift_within_limits": f"the day's rows cover {data['hours_covered']} hours, fewer than {DRIFT_LEAST_HOURS:g}: "
        "the time of day alone would make a difference"
    }
    return Outcome(report, numbers, {"columns": rows}, verdicts, unjudged if few else {})


def _drift_verdict(summary: drift.DriftSummary) -> Verdict:
    share, fire = summary.share, summary.fire_share_current
    faults = []
    if share >= DRIFT_SHARE_LIMIT:
        worst = ", ".join(summary.drifted[:5])
        faults.append(f"{share:.0%} of the features have drifted (limit {DRIFT_SHARE_LIMIT:.0%}), most of all {worst}")
    if fire >= FIRE_SHARE_LIMIT:
        faults.append(f"the model calls {fire:.0%} of the day fire (limit {FIRE_SHARE_LIMIT:.0%})")
    return Verdict(
        "drift_within_limits",
        not faults,
        "WARN",
        "; ".join(faults) or f"{share:.0%} of the features have drifted, {fire:.1%} of the day is called fire",
        {"share_of_drifted_columns": share, "fire_share_of_the_day": fire},
    )


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


# -- model performance -------------------------------------------------------------------------------------------


def model_performance(settings: Settings, now: datetime) -> Outcome | NotEvaluated:
    """Scores the latest 12 hours of features whose truth is known, and probes the API.

    Raises:
        ModelRefused: for a champion that must not be believed.
    """
    scorer = _champion(settings)
    if isinstance(scorer, NotEvaluated):
        return scorer
    lake = Lake(settings.lake)
    if not lake.exists(FEATURES):
        return NotEvaluated("no features have been built yet")
    labelled = _labelled(lake, now)
    if labelled is None:
        return NotEvaluated(f"none of the last {PERFORMANCE_DAYS_BACK} days of features has readings of known truth")
    rows, total, start, end = labelled
    probability = scorer.score(_matrix(rows))
    truth = rows["fire_alarm"].to_numpy().astype(np.bool_)
    overall = performance.figures(probability, truth, scorer.threshold)
    by_source = performance.figures_by_source(probability, truth, rows["source"].to_list(), scorer.threshold)
    probes = probe_api(settings.api_url, scorer.version)
    measured = _Measured(overall, by_source, probes, performance.health(overall, probes))
    data = {
        "champion": scorer.version,
        "threshold": scorer.threshold,
        "window_start": start,
        "window_end": end,
        "rows_with_truth": total,
        "rows_scored": rows.height,
        "truth": {name: TRUTH_OF.get(name, "label sent with the reading") for name in by_source},
        **performance.performance_dict(overall, by_source, probes, measured.health),
    }
    return _performance_outcome(settings, now, data, measured)


#: What a label of each source is worth.
TRUTH_OF = {
    "simulator": "simulated: the simulator knows whether it lit a fire",
    "csv": "recorded: the label of the recording",
    "device": "sent by the device",
    "mqtt": "sent by the device",
}


def _labelled(lake: Lake, now: datetime) -> tuple[pl.DataFrame, int, datetime, datetime] | None:
    """Rows with known truth of the 12 hours that end with the newest such row, how many there are, and the window."""
    known = pl.col("fire_alarm").is_not_null() & (pl.col("event_time") <= pl.lit(now, pl.Datetime("us", "UTC")))
    for day in reversed(days_of(lake, FEATURES)[-PERFORMANCE_DAYS_BACK:]):
        of_day = _of_day(lake, FEATURES, day).filter(known)
        newest: datetime | None = of_day.select(pl.col("event_time").max()).collect(engine="streaming").item()
        if newest is None:
            continue
        start = newest - PERFORMANCE_WINDOW
        window = lake.scan(FEATURES).filter(
            pl.col("event_date").is_between(start.date(), newest.date()),
            known,
            pl.col("event_time") > pl.lit(start, pl.Datetime("us", "UTC")),
            pl.col("event_time") <= pl.lit(newest, pl.Datetime("us", "UTC")),
        )
        needed = [*FEATURE_NAMES, "fire_alarm", "source", "topic_id", "partition", "offset"]
        rows, total = sample(window.select(needed), PERFORMANCE_ROWS)
        return rows, total, start, newest
    return None


def probe_api(url: str, champion: str) -> list[performance.Probe]:
    """Asks the API a few times how it is and for a prediction that it doesn't count; faults are part of the answer.

    Args:
        url: of the API.
        champion: the version that it should be serving.
    """
    import httpx

    probes = []
    with httpx.Client(base_url=url, timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
        for path in ["/health", "/predict/sample"] * PROBES:
            began = time.perf_counter()
            try:
                answer = client.get(path)
            except httpx.HTTPError as error:
                probes.append(performance.Probe(path, None, str(error) or type(error).__name__))
                continue
            seconds = time.perf_counter() - began
            fault = "" if answer.is_success else f"status {answer.status_code}"
            if path == "/health" and not fault:
                fault = _health_fault(answer.content, champion)
            probes.append(performance.Probe(path, None if fault else seconds, fault))
    return probes


def _health_fault(body: bytes, champion: str) -> str:
    try:
        served = str(json.loads(body)["parts"]["model"]["version"])
    except (ValueError, KeyError, TypeError):
        return "what answers is not the platform's API"
    return "" if served == champion else f"it serves model {served}, the champion is {champion}"


@dataclass(frozen=True, slots=True)
class _Measured:
    overall: performance.Figures
    by_source: Mapping[str, performance.Figures]
    probes: Sequence[performance.Probe]
    health: performance.Health


def _performance_outcome(settings: Settings, now: datetime, data: Mapping[str, Any], measured: _Measured) -> Outcome:
    overall, by_source, probes, state = measured.overall, measured.by_source, measured.probes, measured.health
    seconds = performance.response_seconds(probes)
    sources = [
        {
            "source": name,
            "truth": data["truth"].get(name, ""),
            "rows": entry.rows,
            "fires": entry.fires,
            "accuracy": entry.accuracy,
            "recall": entry.recall,
            "F1": entry.f1,
            "false alarms": entry.false_alarm_rate,
            "confidence": entry.mean_confidence,
            "low confidence": entry.low_confidence_share,
        }
        for name, entry in [("all", overall), *by_source.items()]
    ]
    parts = [
        {"part": name, "weight": weight, "value": state.parts.get(name)} for name, weight in performance.WEIGHTS.items()
    ]
    asked = [{"path": p.path, "seconds": p.seconds, "fault": p.fault} for p in probes]
    score = state.score if state.score is not None else 0.0
    html = page(
        "Model performance",
        f"Champion {data['champion']} on rows of known truth from {data['window_start']:%Y-%m-%d %H:%M} to "
        f"{data['window_end']:%Y-%m-%d %H:%M} UTC; {overall.rows} of {data['rows_with_truth']} scored",
        f"health {score:.1f} of 100",
        [Section("By source", sources), Section("Health", parts), Section("API", asked)],
    )
    report = store(settings).write("performance", html, data, moment=now)
    numbers: dict[str, float | int | str] = {
        "health": score,
        "accuracy": overall.accuracy,
        "mean_confidence": overall.mean_confidence,
        "low_confidence_share": overall.low_confidence_share,
        "rows": overall.rows,
        "fires": overall.fires,
        "champion": str(data["champion"]),
    }
    optional = {
        "recall": overall.recall,
        "f1": overall.f1,
        "false_alarm_rate": overall.false_alarm_rate,
        "response_seconds": seconds,
    }
    numbers |= {name: value for name, value in optional.items() if value is not None}
    faults = sorted({p.fault for p in probes if p.fault})
    verdicts = (
        Verdict(
            "accuracy_at_least_70",
            overall.accuracy >= ACCURACY_LIMIT,
            "ERROR",
            f"accuracy {overall.accuracy:.1%} on {overall.rows} rows (limit {ACCURACY_LIMIT:.0%})",
            {"accuracy": overall.accuracy},
        ),
        Verdict(
            "api_answers_within_5_s",
            seconds is not None and seconds <= performance.SLOW_S and not faults,
            "WARN",
            f"median {seconds:.3f} s" + (f"; faults: {'; '.join(faults)}" if faults else "")
            if seconds is not None
            else f"{settings.api_url} did not answer: {'; '.join(faults)}",
            {} if seconds is None else {"response_seconds": seconds},
        ),
        Verdict(
            "health_at_least_50",
            score >= HEALTH_LIMIT,
            "WARN",
            f"health {score:.1f} of 100 (limit {HEALTH_LIMIT:g})",
            {"health": score},
        ),
    )
    return Outcome(report, numbers, {"by source": sources, "health": parts, "API": asked}, verdicts)


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
