"""What the detector thought of each reading at the time, beside what turned out to be true.

Belongs here: which readings an operator's verdict covers, which truth counts where there are several, fires and alarms
as episodes. Does not: the figures of rows (``domain.performance``), reading tables (``orchestration``).

Truth comes from four sources, and each is worth something else:

``simulator``   the simulator knows whether it lit a fire; nobody overrules it.
``operator``    a verdict on a fire alarm covers that device's readings from the one that raised the alarm to the last
                one before the condition was gone (the off-delay after it left out), and again from where the condition
                came back. ``true_alarm``: it burned; ``false_alarm``: it did not; ``test`` and ``unknown`` say
                nothing. An alarm that still stands is covered up to its newest record.
``csv``         the label of the recording; overruled by an operator's verdict.
``device``      what the device sent along, ``mqtt`` too; overruled likewise.

Verdicts alone never make an accuracy: only alarms get them, so that a model which alarms falsely once a year would look
as if it was always wrong, and one that sleeps through every fire as if it had no fault. Their figures stand apart.

Fires and false alarms are counted by episode and device-day (``domain.alarm_outcomes``): readings a second apart are
all but copies. A fire alarm is one of severity high or worse; what is below is a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from smoke_platform.domain.alarm_outcomes import AlarmOutcomes, EpisodeOutcome
from smoke_platform.domain.alarm_policies import POLICIES
from smoke_platform.domain.alarms import Event, Kind, Severity, Verdict

SIMULATOR, OPERATOR = "simulator", "operator"
#: Columns of ``lake/alarms`` that ``holds_of`` needs.
ALARM_COLUMNS = (
    "device_id",
    "kind",
    "alarm_id",
    "event",
    "severity",
    "revision",
    "topic_id",
    "event_time",
    "holds",
    "verdict",
    "model_version",
)
_LABEL_OF = {str(Verdict.TRUE_ALARM): True, str(Verdict.FALSE_ALARM): False}
_ALARMING = frozenset(map(str, (Event.RAISED, Event.RETURNED, Event.ESCALATED)))
_HIGH = frozenset(severity.label for severity in Severity if severity >= Severity.HIGH)

#: Labelled fire with a longer pause than this is two fires.
EPISODE_GAP = timedelta(minutes=2)
#: An alarm this long after the last burning reading still belongs to the fire.
GRACE = timedelta(minutes=1)
_MINUTES_A_DAY = 1440


# -- alarms ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hold:
    """A stretch of time in which the condition of a fire alarm held. Times of the device's clock.

    Attributes:
        ends: the last moment before it was gone; ``None`` while it holds.
        seen_until: of its newest record.
        alarmed_at: when it first was a fire alarm (severity high); ``None`` for a warning.
        verdict: the operators' latest on this alarm.
        model_version: of the model whose score stands in its evidence.
    """

    device_id: str
    alarm_id: str
    begins: datetime
    ends: datetime | None
    seen_until: datetime
    alarmed_at: datetime | None
    verdict: str | None
    model_version: str | None

    @property
    def truth(self) -> bool | None:
        """Whether it burned, as far as an operator has said so."""
        return _LABEL_OF.get(self.verdict or "")

    @property
    def covered_until(self) -> datetime:
        return self.ends or self.seen_until


def holds_of(records: pl.DataFrame) -> list[Hold]:
    """The holds of fire alarms, out of their records in any order (``ALARM_COLUMNS``), by device and time."""
    fires = records.filter((pl.col("kind") == str(Kind.FIRE)) & (pl.col("alarm_id") != ""))
    given = fires.filter(pl.col("verdict").is_not_null()).sort("revision")
    verdicts = dict(zip(given["alarm_id"], given["verdict"], strict=True))
    found: list[Hold] = []
    for _, rows in fires.sort("topic_id", "device_id", "revision").group_by(
        "topic_id", "device_id", maintain_order=True
    ):
        found += _holds_of_device(rows.iter_rows(named=True))
    # A verdict is given when the alarm is over, so that it stands in a later record than those that it is about.
    told = [replace(hold, verdict=verdicts.get(hold.alarm_id)) for hold in found]
    return sorted(told, key=lambda hold: (hold.device_id, hold.begins))


def _holds_of_device(records: Iterable[Mapping[str, Any]]) -> Iterable[Hold]:
    off_delay = timedelta(seconds=POLICIES[Kind.FIRE].off_delay_s)
    open_hold: Hold | None = None
    for record in records:
        moment: datetime | None = record["event_time"]
        if moment is None:
            continue
        if record["holds"] and (open_hold is None or open_hold.alarm_id != record["alarm_id"]):
            if open_hold is not None:
                yield replace(open_hold, ends=open_hold.seen_until)
            open_hold = Hold(
                record["device_id"], record["alarm_id"], moment, None, moment, None, None, record["model_version"]
            )
        if open_hold is None:
            continue
        alarming = record["event"] in _ALARMING and record["severity"] in _HIGH
        open_hold = replace(
            open_hold,
            seen_until=max(open_hold.seen_until, moment),
            alarmed_at=open_hold.alarmed_at or (moment if alarming else None),
        )
        if not record["holds"]:
            yield replace(open_hold, ends=max(open_hold.begins, moment - off_delay))
            open_hold = None
    if open_hold is not None:
        yield open_hold


@dataclass(frozen=True, slots=True)
class JudgedAlarms:
    """How many fire alarms operators have judged, and how. ``precision``: confirmed / judged true or false."""

    confirmed: int
    false: int
    tests: int
    unknown: int

    @property
    def precision(self) -> float | None:
        judged = self.confirmed + self.false
        return self.confirmed / judged if judged else None


def judged_alarms(holds: Sequence[Hold]) -> dict[str, JudgedAlarms]:
    """Of each model version, and of "all", the alarms that operators have judged; each alarm counts once."""
    latest = {hold.alarm_id: hold for hold in holds if hold.verdict is not None}
    groups: dict[str, list[str | None]] = {"all": []} if latest else {}
    for hold in latest.values():
        for name in ("all", hold.model_version or "rules alone"):
            groups.setdefault(name, []).append(hold.verdict)
    return {name: _count(verdicts) for name, verdicts in sorted(groups.items())}


def _count(verdicts: Sequence[str | None]) -> JudgedAlarms:
    order = (Verdict.TRUE_ALARM, Verdict.FALSE_ALARM, Verdict.TEST, Verdict.UNKNOWN)
    return JudgedAlarms(*(sum(verdict == str(kind) for verdict in verdicts) for kind in order))


# -- the truth of a reading --------------------------------------------------------------------------------------


def with_truth(rows: pl.DataFrame, holds: Sequence[Hold]) -> pl.DataFrame:
    """The rows with ``truth``, ``truth_source`` and ``verdict_truth`` (an operator's alone).

    Args:
        rows: with ``device_id, event_time, source, fire_alarm``.
        holds: any; those without a verdict that says something are passed over.

    Returns:
        The rows in the order of ``event_time``. ``truth`` is null where neither a label nor a verdict is known.
    """
    judged = [hold for hold in holds if hold.truth is not None]
    spans = pl.DataFrame(
        [(hold.device_id, hold.begins, hold.covered_until, hold.truth) for hold in judged],
        schema={
            "device_id": pl.String,
            "begins": pl.Datetime("us", "UTC"),
            "until": pl.Datetime("us", "UTC"),
            "said": pl.Boolean,
        },
        orient="row",
    ).sort("begins")
    # Holds of one device don't overlap, so the latest that has begun is the only one that may cover a reading.
    joined = rows.sort("event_time").join_asof(
        spans, left_on="event_time", right_on="begins", by="device_id", strategy="backward", check_sortedness=False
    )
    said = pl.when(pl.col("event_time") <= pl.col("until")).then(pl.col("said"))
    knows = (pl.col("source") == SIMULATOR) & pl.col("fire_alarm").is_not_null()
    by_operator = pl.col("verdict_truth").is_not_null() & ~knows
    return (
        joined.with_columns(verdict_truth=said)
        .with_columns(
            truth=pl.when(by_operator).then("verdict_truth").otherwise("fire_alarm"),
            truth_source=pl.when(by_operator).then(pl.lit(OPERATOR)).otherwise("source"),
        )
        .drop("begins", "until", "said")
    )


# -- fires -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fire:
    """A labelled fire as one device saw it; ``onset`` is its first burning reading, ``last`` its last."""

    device_id: str
    onset: datetime
    last: datetime


def minutes_of(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Labelled readings by device and minute: ``first``, ``burns_from`` and ``burns_until`` (null without fire).

    Args:
        rows: ``device_id, event_time, fire_alarm``; those without a label are left out.
    """
    burning = pl.col("event_time").filter(pl.col("fire_alarm"))
    return (
        rows.filter(pl.col("fire_alarm").is_not_null())
        .group_by("device_id", pl.col("event_time").dt.truncate("1m").alias("minute"))
        .agg(
            pl.col("event_time").min().alias("first"),
            burning.min().alias("burns_from"),
            burning.max().alias("burns_until"),
        )
    )


def fires_of(minutes: pl.DataFrame) -> list[Fire]:
    """The fires in ``minutes_of``'s rows whose onset was seen: a labelled quiet reading stands shortly before it."""
    before = pl.col("minute").shift(1).over("device_id")
    ended = pl.col("burns_until").forward_fill().shift(1).over("device_id")
    ordered = minutes.sort("device_id", "minute")
    burning = (
        ordered.with_columns(
            seen=(pl.col("first") < pl.col("burns_from")) | (pl.col("minute") - before <= EPISODE_GAP).fill_null(False),
            new=((pl.col("burns_from") - ended) > EPISODE_GAP).fill_null(True),
        )
        .filter(pl.col("burns_from").is_not_null())
        .with_columns(number=pl.col("new").cum_sum().over("device_id"))
    )
    episodes = burning.group_by("device_id", "number", maintain_order=True).agg(
        pl.col("burns_from").min(), pl.col("burns_until").max(), pl.col("seen").first()
    )
    return [
        Fire(device, onset, last)
        for device, onset, last, seen in episodes.select("device_id", "burns_from", "burns_until", "seen").iter_rows()
        if seen
    ]


def outcomes(minutes: pl.DataFrame, holds: Sequence[Hold]) -> AlarmOutcomes:
    """What the alarms did to the labelled fires, and how many there were in labelled quiet air.

    An alarm counts for a fire from its onset until ``GRACE`` after its last burning reading; one that stood already
    counts without a delay. Quiet are the device-minutes with labels and without fire.
    """
    fires = fires_of(minutes)
    of_device: dict[str, list[Hold]] = {}
    for hold in holds:
        if hold.alarmed_at is not None:
            of_device.setdefault(hold.device_id, []).append(hold)
    quiet = minutes.filter(pl.col("burns_from").is_null())
    quiet_minutes = set(quiet.select("device_id", "minute").iter_rows()) if of_device else set()
    burning: dict[str, list[tuple[datetime, datetime]]] = {}
    rows = minutes.filter(pl.col("burns_from").is_not_null())
    for device, begins, until in rows.select("device_id", "burns_from", "burns_until").iter_rows():
        burning.setdefault(device, []).append((begins, until + GRACE))
    quiet_alarms = sum(
        (device, hold.alarmed_at.replace(second=0, microsecond=0)) in quiet_minutes
        and not any(begins <= hold.alarmed_at <= until for begins, until in burning.get(device, ()))
        for device, of_this in of_device.items()
        for hold in of_this
        if hold.alarmed_at is not None
    )
    return AlarmOutcomes(
        episodes=tuple(_outcome(fire, of_device.get(fire.device_id, ())) for fire in fires),
        quiet_alarms=quiet_alarms,
        quiet_device_days=quiet.height / _MINUTES_A_DAY,
    )


def _outcome(fire: Fire, holds: Sequence[Hold]) -> EpisodeOutcome:
    name = f"{fire.device_id}@{fire.onset.isoformat()}"
    begun = [h.alarmed_at for h in holds if h.alarmed_at and fire.onset <= h.alarmed_at <= fire.last + GRACE]
    stood = any(h.alarmed_at and h.alarmed_at < fire.onset <= h.covered_until for h in holds)
    delay = (min(begun) - fire.onset).total_seconds() if begun and not stood else None
    return EpisodeOutcome(name, "fire", "labelled", fire.device_id, bool(begun) or stood, delay)


@dataclass(frozen=True, slots=True)
class AlarmFigures:
    """Fires and alarms of the window in numbers; ``None`` where nothing could tell.

    Attributes:
        median_delay_s, longest_delay_s: from a fire's onset to its first alarm.
        false_alarms_per_device_day: alarms in labelled quiet air.
    """

    fires: int
    missed: int
    median_delay_s: float | None
    longest_delay_s: float | None
    false_alarms: int
    quiet_device_days: float
    false_alarms_per_device_day: float | None

    @property
    def caught(self) -> float | None:
        """Share of the fires that were alarmed, 0..1."""
        return 1.0 - self.missed / self.fires if self.fires else None


def alarm_figures(found: AlarmOutcomes) -> AlarmFigures:
    """The outcomes in numbers."""
    delays = [outcome.delay_s for outcome in found.episodes if outcome.delay_s is not None]
    days = found.quiet_device_days
    return AlarmFigures(
        fires=len(found.of("fire")),
        missed=len(found.missed),
        median_delay_s=float(np.median(delays)) if delays else None,
        longest_delay_s=max(delays) if delays else None,
        false_alarms=found.quiet_alarms,
        quiet_device_days=days,
        false_alarms_per_device_day=found.quiet_alarms / days if days > 0 else None,
    )
