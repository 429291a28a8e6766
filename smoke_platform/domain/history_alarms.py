"""What raised alarms: the rules in their evidence, and how often each rule hit a reading.

Belongs here: rows of ``lake/alarms`` and ``lake/predictions`` -> counts by cause. Does not: what makes an alarm
(``domain.rules``, ``domain.alarm_machine``), reading the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from smoke_platform.domain.alarms import Event, Severity, Verdict
from smoke_platform.domain.rules import RULES, rule_names

#: Of an alarm that rests on no rule (offline, for one), in place of a rule's name.
NO_RULE: Final = "(no rule)"

ALARMS_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "alarm_id": pl.String(),
    "device_id": pl.String(),
    "site": pl.String(),
    "kind": pl.String(),
    "peak": pl.String(),
    "rules": pl.List(pl.String()),
    "raised": pl.Datetime("us", "UTC"),
    "verdict": pl.String(),
}
HITS_SCHEMA: Final[Mapping[str, pl.DataType]] = {
    "model_version": pl.String(),
    "hits": pl.Int64(),
    "readings": pl.Int64(),
    "scored": pl.Int64(),
    "score_sum": pl.Float64(),
    "score_max": pl.Float64(),
    "over": pl.Int64(),
}
_COUNTS: Final = ("readings", "scored", "score_sum", "over")


def alarms_of(records: pl.LazyFrame) -> pl.LazyFrame:
    """``ALARMS_SCHEMA``: a row for each alarm, out of its records in ``lake/alarms``.

    The rules are those of the record that raised it and of those that made it worse; ``peak`` and ``verdict`` are the
    latest. ``raised`` is the device's clock, or the broker's where no reading led to it.
    """
    reasons = pl.col("event").is_in([str(Event.RAISED), str(Event.ESCALATED)])
    return (
        records.filter(pl.col("alarm_id") != "")
        .sort("revision")
        .group_by("alarm_id", "device_id", "kind")
        .agg(
            pl.col("site").last(),
            pl.col("peak").filter(pl.col("peak") != "").last(),
            pl.col("rules").filter(reasons).explode().drop_nulls().unique().sort().alias("rules"),
            pl.coalesce(pl.col("raised_event_time").first(), pl.col("raised_at").first()).alias("raised"),
            pl.col("verdict").drop_nulls().last(),
        )
        .select(pl.col(name).cast(kind) for name, kind in ALARMS_SCHEMA.items())
        .sort("raised", "alarm_id")
    )


def causes(alarms: pl.DataFrame) -> pl.DataFrame:
    """How many alarms each rule was behind, the most frequent first. An alarm with three rules counts for each.

    Returns:
        ``kind, cause, alarms, devices, critical`` (that came so far), ``confirmed, false_alarms`` (by operators).
    """
    rules = pl.when(pl.col("rules").list.len() > 0).then("rules").otherwise(pl.lit([NO_RULE]))
    return (
        alarms.with_columns(cause=rules)
        .explode("cause")
        .group_by("kind", "cause")
        .agg(_counts(pl.col("alarm_id").n_unique()))
        .sort("alarms", "kind", "cause", descending=[True, False, False])
    )


def of_places(alarms: pl.DataFrame, place: str) -> pl.DataFrame:
    """``kind``, the ``place`` (``site`` or ``device_id``) and the counts of ``causes``, the most alarms first."""
    return (
        alarms.group_by("kind", place)
        .agg(_counts(pl.len()))
        .sort("alarms", "kind", place, descending=[True, False, False])
    )


def _counts(alarms: pl.Expr) -> list[pl.Expr]:
    critical, confirmed, false = (
        (pl.col(name) == value).sum().cast(pl.Int64)
        for name, value in (
            ("peak", Severity.CRITICAL.label),
            ("verdict", str(Verdict.TRUE_ALARM)),
            ("verdict", str(Verdict.FALSE_ALARM)),
        )
    )
    return [
        alarms.cast(pl.Int64).alias("alarms"),
        pl.col("device_id").n_unique().cast(pl.Int64).alias("devices"),
        critical.alias("critical"),
        confirmed.alias("confirmed"),
        false.alias("false_alarms"),
    ]


# -- predictions -------------------------------------------------------------------------------------------------


def summarise_predictions(predictions: pl.LazyFrame) -> pl.DataFrame:
    """``HITS_SCHEMA``: counts and sums of some of ``lake/predictions`` by model and set of rules that hit."""
    over = (pl.col("score") >= pl.col("threshold")).fill_null(False)
    return (
        predictions.group_by("model_version", "hits")
        .agg(
            pl.len().alias("readings"),
            pl.col("score").count().alias("scored"),
            pl.col("score").sum().alias("score_sum"),
            pl.col("score").max().alias("score_max"),
            over.sum().alias("over"),
        )
        .select(pl.col(name).cast(kind) for name, kind in HITS_SCHEMA.items())
        .collect(engine="streaming")
        .sort("model_version", "hits")
    )


def models(hits: pl.DataFrame) -> pl.DataFrame:
    """``model_version, readings, scored, over`` (scores at or above the model's own threshold), mean and highest score.

    Args:
        hits: rows of ``summarise_predictions``, of any number of days.
    """
    return (
        hits.group_by("model_version")
        .agg(pl.col(_COUNTS).sum(), pl.col("score_max").max())
        .with_columns(mean_score=pl.when(pl.col("scored") > 0).then(pl.col("score_sum") / pl.col("scored")))
        .drop("score_sum")
        .sort("model_version", nulls_last=True)
    )


def rule_hits(hits: pl.DataFrame) -> pl.DataFrame:
    """``rule, readings, share``: in how many readings each rule hit, the most frequent first, none without any.

    Args:
        hits: rows of ``summarise_predictions``, of any number of days.
    """
    total = int(hits["readings"].sum())
    counts = dict.fromkeys((rule.name for rule in RULES), 0)
    for mask, readings in hits.group_by("hits").agg(pl.col("readings").sum()).iter_rows():
        for name in rule_names(mask):
            counts[name] += readings
    rows: list[tuple[Any, ...]] = [(name, count, count / total) for name, count in counts.items() if count]
    return pl.DataFrame(rows, schema={"rule": pl.String, "readings": pl.Int64, "share": pl.Float64}, orient="row").sort(
        "readings", "rule", descending=[True, False]
    )
