"""The performance monitor without Dagster: logged scores beside the truth, the API's answers, the health score.

Belongs here: how much is read and how it is bounded, the probes, thresholds at which somebody is told, the report. Does
not: the figures (``domain.performance``), whose truth counts and what is a fire (``domain.live_performance``), the
asset (``orchestration.monitoring``).

What is judged is what the detector wrote down at the time (``lake/predictions``), each row by the threshold of its own
model. Where the champion has logged too little of known truth (no detector runs, or it was promoted a moment ago), the
features are scored anew by the champion, and the report says so: such figures are of the model and not of the service.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.reports import Section, page
from smoke_platform.adapters.scorer import OnnxScorer
from smoke_platform.domain import live_performance as live
from smoke_platform.domain import performance
from smoke_platform.domain.features import FEATURE_NAMES
from smoke_platform.domain.lake_records import READING
from smoke_platform.domain.performance import Figures, Latency, Probe
from smoke_platform.orchestration.monitors import (
    FEATURES,
    NotEvaluated,
    Outcome,
    Verdict,
    champion,
    days_of,
    matrix_of,
    of_day,
    sample,
    store,
)
from smoke_platform.settings import Settings

ALARMS, PREDICTIONS = "alarms", "predictions"
PERFORMANCE_WINDOW = timedelta(hours=12)
#: Rows that are judged at most, chosen by a hash; alarms and fires are counted whole.
PERFORMANCE_ROWS = 500_000
#: Days looked at for readings with known truth, from the newest back, and for alarms that operators have judged.
PERFORMANCE_DAYS_BACK = 30
#: With fewer logged rows of known truth the champion's figures would be those of a moment.
LEAST_LOGGED_ROWS = 100
#: Judged alarms whose readings are looked up, the newest.
MOST_HOLDS = 200
ACCURACY_LIMIT = 0.70
HEALTH_LIMIT = 50.0
MOST_INDICATORS = 3
#: A drift report that is older says nothing about the model of today.
INDICATORS_AGE = timedelta(days=2)
PROBES = 3
PROBE_TIMEOUT_S = 10.0

LOGGED, ANEW = "logged by the detector at the time", "scored anew from the features"

CHECKS = (
    "accuracy_at_least_70",
    "api_answers_within_5_s",
    "scores_within_5_s",
    "drift_indicators_at_most_3",
    "health_at_least_50",
)

#: What a label of each source is worth.
TRUTH_OF = {
    "simulator": "simulated: the simulator knows whether it lit a fire",
    "operator": "an operator's verdict on the alarm",
    "csv": "recorded: the label of the recording",
    "device": "sent by the device",
    "mqtt": "sent by the device",
}


@dataclass(frozen=True)
class _Measured:
    """What was found about the champion.

    Attributes:
        overall: rows with labels, ``None`` without any; ``by_source``: the same by whose truth counts.
        judged_rows: readings that operators' verdicts cover, ``None`` without any.
        by_version: what was logged, by model version.
        alarms: fires and alarms of the window; ``judged``: alarms with a verdict, by model version.
        basis: ``LOGGED`` or ``ANEW``.
    """

    overall: Figures | None
    by_source: Mapping[str, Figures]
    judged_rows: Figures | None
    by_version: Mapping[str, Figures]
    alarms: live.AlarmFigures | None
    judged: Mapping[str, live.JudgedAlarms]
    latency: Latency | None
    probes: Sequence[Probe]
    indicators: Sequence[str] | None
    basis: str

    @property
    def health(self) -> performance.Health:
        return performance.health(
            self.overall,
            self.probes,
            caught=None if self.alarms is None else self.alarms.caught,
            scoring_seconds=None if self.latency is None else self.latency.median_s,
        )


def model_performance(settings: Settings, now: datetime) -> Outcome | NotEvaluated:
    """Judges the latest 12 hours whose truth is known, and the alarms that operators have judged; probes the API.

    Raises:
        ModelRefused: for a champion that must not be believed.
    """
    scorer = champion(settings)
    if isinstance(scorer, NotEvaluated):
        return scorer
    lake = Lake(settings.lake)
    if not lake.exists(FEATURES):
        return NotEvaluated("no features have been built yet")
    window = _window(lake, now)
    holds = _holds(lake, now)
    judged = [hold for hold in holds if hold.truth is not None][-MOST_HOLDS:]
    if window is None and not judged:
        return NotEvaluated(
            f"none of the last {PERFORMANCE_DAYS_BACK} days of features has readings of known truth, and no operator "
            "has judged an alarm"
        )
    rows = _rows_of_known_truth(lake, window, judged)
    measured, total = _measure(settings, lake, scorer, rows, window, holds, now)
    data = _data(scorer, measured, window, total)
    return _outcome(settings, now, data, measured)


# -- reading -----------------------------------------------------------------------------------------------------


def _window(lake: Lake, now: datetime) -> tuple[datetime, datetime] | None:
    """The 12 hours that end with the newest labelled reading."""
    known = pl.col("fire_alarm").is_not_null() & (pl.col("event_time") <= pl.lit(now, pl.Datetime("us", "UTC")))
    for day in reversed(days_of(lake, FEATURES)[-PERFORMANCE_DAYS_BACK:]):
        labelled = of_day(lake, FEATURES, day).filter(known)
        newest: datetime | None = labelled.select(pl.col("event_time").max()).collect(engine="streaming").item()
        if newest is not None:
            return newest - PERFORMANCE_WINDOW, newest
    return None


def _within(window: tuple[datetime, datetime]) -> pl.Expr:
    start, end = (pl.lit(moment, pl.Datetime("us", "UTC")) for moment in window)
    moment = pl.col("event_time")
    days = pl.col("event_date").is_between(window[0].date(), window[1].date())
    return days & (moment > start) & (moment <= end)


def _holds(lake: Lake, now: datetime) -> list[live.Hold]:
    """Holds of fire alarms that had a record in the last days; verdicts come late, so more than the window's."""
    if not lake.exists(ALARMS):
        return []
    recent = pl.col("append_date") >= (now - timedelta(days=PERFORMANCE_DAYS_BACK)).date()
    records = lake.scan(ALARMS).filter(recent).select(live.ALARM_COLUMNS).collect(engine="streaming")
    return live.holds_of(records)


def _rows_of_known_truth(
    lake: Lake, window: tuple[datetime, datetime] | None, judged: Sequence[live.Hold]
) -> pl.LazyFrame:
    known = pl.lit(False)
    if window is not None:
        known |= _within(window) & pl.col("fire_alarm").is_not_null()
    for hold in judged:
        span = hold.begins - timedelta(microseconds=1), hold.covered_until
        known |= _within(span) & (pl.col("device_id") == hold.device_id)
    return lake.scan(FEATURES).filter(known)


def _logged(lake: Lake, rows: pl.LazyFrame) -> pl.LazyFrame | None:
    """The rows' scores as they were logged; ``None`` where nothing was."""
    if not lake.exists(PREDICTIONS):
        return None
    spans = rows.group_by("topic_id", "partition").agg(
        pl.col("offset").min().alias("first"), pl.col("offset").max().alias("last")
    )
    near = pl.lit(False)
    # Files of other offsets are skipped, so that months of predictions cost nothing.
    for topic_id, partition, first, last in spans.collect(engine="streaming").iter_rows():
        of_partition = (pl.col("topic_id") == topic_id) & (pl.col("partition") == partition)
        near |= of_partition & pl.col("offset").is_between(first, last)
    scores = (
        lake.scan(PREDICTIONS)
        .filter(near & pl.col("score").is_not_null() & pl.col("model_version").is_not_null())
        .select(*READING, "score", "threshold", "model_version", "at")
    )
    needed = (*READING, "device_id", "event_time", "source", "fire_alarm")
    return rows.select(needed).join(scores, on=list(READING), how="inner")


def _latency(lake: Lake, logged: pl.DataFrame) -> Latency | None:
    """From a reading's append time until its score was written, over the logged rows."""
    if logged.is_empty() or not lake.exists(READINGS):
        return None
    days = logged["event_time"].dt.date()
    arrived = (
        lake.scan(READINGS)
        .filter(pl.col("event_date").is_in(days.unique().to_list()))
        .select(*READING, "append_time")
        .join(logged.lazy().select(*READING, "at"), on=list(READING), how="inner")
        .select(((pl.col("at") - pl.col("append_time")).dt.total_microseconds() / 1e6).alias("seconds"))
        .drop_nulls()
        .collect(engine="streaming")
    )
    return performance.latency(arrived["seconds"].to_numpy())


# -- measuring ---------------------------------------------------------------------------------------------------


def _measure(
    settings: Settings,
    lake: Lake,
    scorer: OnnxScorer,
    rows: pl.LazyFrame,
    window: tuple[datetime, datetime] | None,
    holds: Sequence[live.Hold],
    now: datetime,
) -> tuple[_Measured, int]:
    """The figures, and of how many rows with known truth those of the champion were chosen."""
    logged, by_version = pl.DataFrame(), {}
    found = _logged(lake, rows)
    total = 0
    if found is not None:
        logged, total = sample(found, PERFORMANCE_ROWS)
        logged = live.with_truth(logged, holds)
        by_version = _by(logged.filter(pl.col("fire_alarm").is_not_null()), "model_version")
    own = logged.filter(pl.col("model_version") == scorer.version) if logged.height else logged
    labelled = int(own["fire_alarm"].is_not_null().sum()) if own.height else 0
    basis = LOGGED
    if labelled < LEAST_LOGGED_ROWS:
        basis = ANEW
        own, total = _scored_anew(rows, scorer, holds)
    complete, verdicts = (own.filter(pl.col(name).is_not_null()) for name in ("fire_alarm", "verdict_truth"))
    # The window's alarms; a fire's truth is the label.
    alarms = None
    if window is not None and lake.exists(ALARMS):
        minutes = live.minutes_of(lake.scan(FEATURES).filter(_within(window))).collect(engine="streaming")
        alarms = live.alarm_figures(live.outcomes(minutes, holds))
    measured = _Measured(
        overall=_figures(complete, "truth"),
        by_source=_by(complete, "truth_source"),
        judged_rows=_figures(verdicts, "verdict_truth"),
        by_version=by_version,
        alarms=alarms,
        judged=live.judged_alarms(holds),
        latency=_latency(lake, logged),
        probes=probe_api(settings.api_url, scorer.version),
        indicators=_indicators(settings, scorer.version, now),
        basis=basis,
    )
    return measured, total


def _scored_anew(rows: pl.LazyFrame, scorer: OnnxScorer, holds: Sequence[live.Hold]) -> tuple[pl.DataFrame, int]:
    needed = [*FEATURE_NAMES, "device_id", "event_time", "fire_alarm", "source", *READING]
    chosen, total = sample(rows.select(needed), PERFORMANCE_ROWS)
    scored = chosen.select("device_id", "event_time", "fire_alarm", "source", *READING).with_columns(
        pl.Series("score", scorer.score(matrix_of(chosen)), dtype=pl.Float64), threshold=pl.lit(scorer.threshold)
    )
    return live.with_truth(scored, holds), total


def _figures(rows: pl.DataFrame, truth: str) -> Figures | None:
    if rows.is_empty():
        return None
    return performance.figures(
        rows["score"].to_numpy(), rows[truth].to_numpy().astype(np.bool_), rows["threshold"].to_numpy()
    )


def _by(rows: pl.DataFrame, column: str) -> dict[str, Figures]:
    if rows.is_empty():
        return {}
    return performance.figures_by_source(
        rows["score"].to_numpy(),
        rows["truth"].to_numpy().astype(np.bool_),
        rows[column].to_list(),
        rows["threshold"].to_numpy(),
    )


def _indicators(settings: Settings, version: str, now: datetime) -> list[str] | None:
    """The signs of drift in the newest report, ``None`` where there is none that is of this champion and fresh."""
    latest = store(settings).latest("drift")
    if latest is None or str(latest.get("champion")) != version or "indicators" not in latest:
        return None
    day = datetime.fromisoformat(str(latest["day"])).replace(tzinfo=UTC)
    return list(latest["indicators"]) if now - day <= INDICATORS_AGE + timedelta(days=1) else None


def probe_api(url: str, version: str) -> list[Probe]:
    """Asks the API a few times how it is and for a prediction that it doesn't count; faults are part of the answer.

    Args:
        url: of the API.
        version: of the champion, which it should be serving.
    """
    import httpx

    probes = []
    with httpx.Client(base_url=url, timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
        for path in ["/health", "/predict/sample"] * PROBES:
            began = time.perf_counter()
            try:
                answer = client.get(path)
            except httpx.HTTPError as error:
                probes.append(Probe(path, None, str(error) or type(error).__name__))
                continue
            seconds = time.perf_counter() - began
            fault = "" if answer.is_success else f"status {answer.status_code}"
            if path == "/health" and not fault:
                fault = _health_fault(answer.content, version)
            probes.append(Probe(path, None if fault else seconds, fault))
    return probes


def _health_fault(body: bytes, version: str) -> str:
    try:
        served = str(json.loads(body)["parts"]["model"]["version"])
    except (ValueError, KeyError, TypeError):
        return "what answers is not the platform's API"
    return "" if served == version else f"it serves model {served}, the champion is {version}"


# -- telling -----------------------------------------------------------------------------------------------------


def _data(
    scorer: OnnxScorer, measured: _Measured, window: tuple[datetime, datetime] | None, total: int
) -> dict[str, Any]:
    state = measured.health
    return {
        "champion": scorer.version,
        "threshold": scorer.threshold,
        "basis": measured.basis,
        "window_start": None if window is None else window[0],
        "window_end": None if window is None else window[1],
        "rows_with_truth": total,
        "rows_scored": 0 if measured.overall is None else measured.overall.rows,
        "truth": {name: TRUTH_OF.get(name, "label sent with the reading") for name in measured.by_source},
        "overall": None if measured.overall is None else asdict(measured.overall),
        "by_source": {name: asdict(entry) for name, entry in measured.by_source.items()},
        "readings_of_judged_alarms": None if measured.judged_rows is None else asdict(measured.judged_rows),
        "by_version": {name: asdict(entry) for name, entry in measured.by_version.items()},
        "judged_alarms": {
            name: {**asdict(entry), "precision": entry.precision} for name, entry in measured.judged.items()
        },
        "alarms": None if measured.alarms is None else asdict(measured.alarms),
        "scoring_latency": None if measured.latency is None else asdict(measured.latency),
        "drift_indicators": None if measured.indicators is None else list(measured.indicators),
        "health": state.as_dict(),
        "response_seconds": performance.response_seconds(measured.probes),
        "probes": [asdict(probe) for probe in measured.probes],
    }


def _outcome(settings: Settings, now: datetime, data: Mapping[str, Any], measured: _Measured) -> Outcome:
    tables = _tables(measured)
    overall, state = measured.overall, measured.health
    headline = "health not known" if state.score is None else f"health {state.score:.1f} of 100"
    start, end = data["window_start"], data["window_end"]
    when = "no labelled readings"
    if start is not None:
        when = f"rows of known truth from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
    lead = f"Champion {data['champion']}, {measured.basis}; {when}; {0 if overall is None else overall.rows:,} judged"
    sections = [Section(title, rows) for title, rows in tables.items()]
    report = store(settings).write("performance", page("Model performance", lead, headline, sections), data, moment=now)
    verdicts, unjudged = _verdicts(settings, measured)
    return Outcome(report, _numbers(measured, str(data["champion"])), tables, verdicts, unjudged)


def _tables(measured: _Measured) -> dict[str, list[dict[str, Any]]]:
    by_source = [] if measured.overall is None else [_row("source", "all", measured.overall)]
    by_source += [
        {**_row("source", name, entry), "truth": TRUTH_OF.get(name, "label sent with the reading")}
        for name, entry in measured.by_source.items()
    ]
    tables = {
        "by source of truth": [{"truth": "", **row} for row in by_source],
        "by model version, as logged": [_row("version", name, entry) for name, entry in measured.by_version.items()],
        "alarms judged by operators": [
            {"model": name, **asdict(entry), "precision": entry.precision} for name, entry in measured.judged.items()
        ],
        "fires and alarms": [] if measured.alarms is None else [asdict(measured.alarms)],
        "scoring latency": [] if measured.latency is None else [asdict(measured.latency)],
        "health": [
            {"part": name, "weight": weight, "value": measured.health.parts.get(name)}
            for name, weight in performance.WEIGHTS.items()
        ],
        "API": [{"path": p.path, "seconds": p.seconds, "fault": p.fault} for p in measured.probes],
    }
    if measured.judged_rows is not None:
        tables["by source of truth"].append(
            # Of readings inside of alarms alone: recall and false-alarm rate would be figures of the choice.
            {
                **dict.fromkeys(
                    tables["by source of truth"][0] if by_source else _row("source", "", measured.judged_rows)
                ),
                "source": "judged alarms only",
                "truth": TRUTH_OF["operator"],
                "rows": measured.judged_rows.rows,
                "fires": measured.judged_rows.fires,
                "precision": measured.judged_rows.precision,
                "confidence": measured.judged_rows.mean_confidence,
            }
        )
    return tables


def _row(column: str, name: str, entry: Figures) -> dict[str, Any]:
    return {
        column: name,
        "rows": entry.rows,
        "fires": entry.fires,
        "accuracy": entry.accuracy,
        "recall": entry.recall,
        "precision": entry.precision,
        "F1": entry.f1,
        "false alarms": entry.false_alarm_rate,
        "confidence": entry.mean_confidence,
        "low confidence": entry.low_confidence_share,
    }


def _numbers(measured: _Measured, version: str) -> dict[str, float | int | str]:
    """What Dagster draws; ``accuracy, recall, false_alarm_rate, rows, fires`` are of the champion's own rows."""
    overall, alarms, latency = measured.overall, measured.alarms, measured.latency
    operators = measured.judged.get("all")
    optional: dict[str, float | int | None] = {
        "health": measured.health.score,
        "response_seconds": performance.response_seconds(measured.probes),
        "drift_indicators": None if measured.indicators is None else len(measured.indicators),
        "alarms_judged_true": None if operators is None else operators.confirmed,
        "alarms_judged_false": None if operators is None else operators.false,
    }
    if overall is not None:
        optional |= {
            "accuracy": overall.accuracy,
            "recall": overall.recall,
            "precision": overall.precision,
            "f1": overall.f1,
            "false_alarm_rate": overall.false_alarm_rate,
            "mean_confidence": overall.mean_confidence,
            "low_confidence_share": overall.low_confidence_share,
        }
    if alarms is not None:
        optional |= {
            "fires_labelled": alarms.fires,
            "fires_missed": alarms.missed,
            "alarm_delay_s": alarms.median_delay_s,
            "false_alarms_per_device_day": alarms.false_alarms_per_device_day,
        }
    if latency is not None:
        optional |= {"scoring_seconds": latency.median_s, "scoring_seconds_p99": latency.p99_s}
    return {
        "champion": version,
        "basis": measured.basis,
        "rows": 0 if overall is None else overall.rows,
        "fires": 0 if overall is None else overall.fires,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _verdicts(settings: Settings, measured: _Measured) -> tuple[tuple[Verdict, ...], dict[str, str]]:
    overall, score, latency = measured.overall, measured.health.score, measured.latency
    verdicts = [_api_verdict(settings, measured.probes)]
    unjudged: dict[str, str] = {}
    if overall is None or score is None:
        reason = "only operators' verdicts are known, which say nothing of the readings that no alarm was raised for"
        unjudged |= {"accuracy_at_least_70": reason, "health_at_least_50": reason}
    else:
        verdicts += [
            Verdict(
                "accuracy_at_least_70",
                overall.accuracy >= ACCURACY_LIMIT,
                "ERROR",
                f"accuracy {overall.accuracy:.1%} (limit {ACCURACY_LIMIT:.0%}), {overall.rows} rows, {measured.basis}",
                {"accuracy": overall.accuracy, "alert": "critical"},
            ),
            Verdict(
                "health_at_least_50",
                score >= HEALTH_LIMIT,
                "WARN",
                f"health {score:.1f} of 100 (limit {HEALTH_LIMIT:g})",
                {"health": score, "alert": "warning"},
            ),
        ]
    if latency is None:
        unjudged["scores_within_5_s"] = "the detector has logged no score of a reading of known truth"
    else:
        verdicts.append(
            Verdict(
                "scores_within_5_s",
                latency.median_s <= performance.SLOW_S,
                "WARN",
                f"from a reading's arrival to its score: median {latency.median_s:.3f} s, p99 {latency.p99_s:.3f} s",
                {"scoring_seconds": latency.median_s, "alert": "warning"},
            )
        )
    if measured.indicators is None:
        unjudged["drift_indicators_at_most_3"] = "there is no fresh drift report about this champion"
    else:
        signs = list(measured.indicators)
        verdicts.append(
            Verdict(
                "drift_indicators_at_most_3",
                len(signs) <= MOST_INDICATORS,
                # Dagster has nothing below a warning; the description says how grave it is.
                "WARN",
                f"for information: {len(signs)} signs of drift{': ' + ', '.join(signs) if signs else ''}",
                {"drift_indicators": len(signs), "alert": "info"},
            )
        )
    return tuple(verdicts), unjudged


def _api_verdict(settings: Settings, probes: Sequence[Probe]) -> Verdict:
    seconds = performance.response_seconds(probes)
    faults = sorted({probe.fault for probe in probes if probe.fault})
    return Verdict(
        "api_answers_within_5_s",
        seconds is not None and seconds <= performance.SLOW_S and not faults,
        "WARN",
        f"median {seconds:.3f} s" + (f"; faults: {'; '.join(faults)}" if faults else "")
        if seconds is not None
        else f"{settings.api_url} did not answer: {'; '.join(faults)}",
        {"alert": "warning"} if seconds is None else {"response_seconds": seconds, "alert": "warning"},
    )
