"""The label against smoke and gas, and whether there are enough of both classes and enough independent fires.

Belongs here: the findings of the families ``physics``, ``balance`` and ``coverage``. Does not: what of a reading is
clean air or smoke (``domain.history_summary``, which counts it every week).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.audit_findings import Finding, named
from smoke_platform.domain.history_summary import CLEAN_PM2_5, SMOKY_PM2_5
from smoke_platform.domain.history_words import DOUBTFUL_SHARE
from smoke_platform.domain.readings import SENSOR_BY_NAME, SENSOR_NAMES

#: Fewer rows of a kind are the moments in which smoke comes or goes.
LEAST_ROWS_TO_JUDGE: Final = 60
#: The gas sensor's output ends here (Sensirion SGP30 data sheet: 60,000 ppb).
GAS_LIMIT_PPB: Final = 60_000.0
#: After a fire its smoke lingers, and is rightly labelled quiet, for so long.
LINGERS_S: Final = 3_600.0
#: Share of the quiet rows with smoke and gas at their ends, far from any fire, from which on the label is wrong.
UNLABELLED_SMOKE_SHARE: Final = 0.5
#: The chance that a fire row has more smoke than a quiet row of its recording, 1/2 where neither knows of the other:
#: below this the label moves against the smoke.
AGAINST_SMOKE: Final = 0.4
#: Labels that fit smoke so well, and better by so much than as they are given, when they are ...
FITS_SMOKE: Final = 0.7
LEAST_GAIN: Final = 0.1
#: ... moved by at least so long, were late or early. Smoke needs some minutes to the ceiling, and as long to clear.
LEAST_DELAY_S: Final = 900.0
LONGEST_DELAY_S: Final = 7_200.0
DELAY_STEP_S: Final = 60.0
#: Fires that the chance is read off; fewer are single cases.
LEAST_FIRES_TO_JUDGE: Final = 3

#: A class with a smaller share cannot be told from mistakes in labelling it: one row in two thousand.
LEAST_CLASS_SHARE: Final = 0.0005
LEAST_CLASS_ROWS: Final = 100
#: Where more than half of the rows burn, whoever always says fire is right more often than not.
MOST_FIRE_SHARE: Final = 0.5

#: Folds of the validation, each of which needs a fire nobody was trained on, and one for those held out for ever.
LEAST_RECORDINGS_WITH_FIRE: Final = 5
#: A recording has a fire when so many rows in a row say so; two are a slip of the hand.
LEAST_FIRE_ROWS: Final = 30
#: Hours of the day that no reading is from are told from here on.
MOST_HOURS_MISSING: Final = 12
#: A label that switches more often within an hour flickers.
MOST_SWITCHES_AN_HOUR: Final = 12.0

_Floats = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]


# -- physics -----------------------------------------------------------------------------------------------------


def physics(frame: pl.DataFrame) -> list[Finding]:
    """Labels that smoke and gas contradict.

    Args:
        frame: ``recording, event_time, fire_alarm`` and the sensors; each recording's rows one after the other, in
            order of time.
    """
    return [*_fire_in_clean_air(frame), *_smoke_without_fire(frame), *_moved(frame)]


def _fire_in_clean_air(frame: pl.DataFrame) -> Iterator[Finding]:
    fires = frame.filter(pl.col("fire_alarm") & pl.col("pm2_5").is_not_null())
    clean = fires.filter(pl.col("pm2_5") <= CLEAN_PM2_5)
    if clean.height < max(LEAST_ROWS_TO_JUDGE, DOUBTFUL_SHARE * fires.height):
        return
    yield Finding(
        "physics",
        "fire_in_clean_air",
        "blocking",
        f"{clean.height / fires.height:.1%} of the rows labelled fire have PM2.5 of at most {CLEAN_PM2_5:g} ug/m3, "
        "which is clean air",
        {
            "fire_rows": fires.height,
            "of_them_in_clean_air": clean.height,
            "median_pm2_5_of_fire_rows": float(np.median(fires["pm2_5"].to_numpy())),
        },
        "The label does not say what burns: a model that learns it learns to raise alarms in clean air.",
        tuple(clean["recording"].unique(maintain_order=True)),
        clean.height,
    )


def _smoke_without_fire(frame: pl.DataFrame) -> Iterator[Finding]:
    smoky = (pl.col("pm2_5") > SMOKY_PM2_5) & (pl.col("tvoc_ppb") >= GAS_LIMIT_PPB)
    # Two rows in a recording's first seconds are no fire whose smoke might linger.
    lasts = pl.len().over(pl.struct("recording", "fire_alarm").rle_id()) >= LEAST_FIRE_ROWS
    rows = frame.select("recording", "event_time", "pm2_5", smoky=smoky, fire_alarm=pl.col("fire_alarm") & lasts)
    burning = pl.when("fire_alarm").then("event_time")
    rows = rows.with_columns(
        since=pl.col("event_time") - burning.forward_fill().over("recording"),
        until=burning.backward_fill().over("recording") - pl.col("event_time"),
    )
    lingers = pl.duration(seconds=int(LINGERS_S))
    near = (pl.col("since") <= lingers).fill_null(False) | (pl.col("until") <= lingers).fill_null(False)
    extreme = rows.filter("smoky")
    contradicting = extreme.filter(~pl.col("fire_alarm") & ~near)
    if contradicting.height < max(LEAST_ROWS_TO_JUDGE, UNLABELLED_SMOKE_SHARE * extreme.height):
        return
    names = tuple(contradicting["recording"].unique(maintain_order=True))
    yield Finding(
        "physics",
        "smoke_without_fire",
        "blocking",
        f"{contradicting.height:,} rows of {named(names)} have PM2.5 above {SMOKY_PM2_5:g} ug/m3 and TVOC at its limit "
        f"of {GAS_LIMIT_PPB:,.0f} ppb, and are labelled quiet with no fire within an hour",
        {
            "rows": contradicting.height,
            "all_rows_with_such_smoke_and_gas": extreme.height,
            "greatest_pm2_5": float(np.max(contradicting["pm2_5"].to_numpy())),
        },
        "A model that learns this learns to keep quiet in the thickest smoke.",
        names,
        contradicting.height,
    )


def _moved(frame: pl.DataFrame) -> Iterator[Finding]:
    """Labels that move against smoke, or fit it at another time."""
    smoke = _Smoke(frame)
    if smoke.fires < LEAST_FIRES_TO_JUDGE:
        return
    now = smoke.chance(0)
    if now is None:
        return
    delay, moved = smoke.best()
    if abs(delay) >= LEAST_DELAY_S and moved >= max(FITS_SMOKE, now + LEAST_GAIN):
        yield Finding(
            "physics",
            "label_delayed" if delay > 0 else "label_early",
            "blocking",
            f"The label fits the smoke {abs(delay) / 60:.0f} minutes {'earlier' if delay > 0 else 'later'} than given",
            {"chance_of_more_smoke": now, "moved_by_that_much": moved, "minutes": delay / 60, "fires": smoke.fires},
            "Clocks of labels and readings differ: the first minutes of each fire, which decide, are labelled wrongly.",
            rows=smoke.rows,
        )
    elif now < AGAINST_SMOKE:
        yield Finding(
            "physics",
            "label_against_smoke",
            "blocking",
            f"The label moves against the smoke: a row labelled fire has more PM2.5 than a quiet row of its recording "
            f"with a chance of {now:.2f}, less than a half",
            {"chance_of_more_smoke": now, "fires": smoke.fires},
            "Inverted or meaningless labels: a model that fits them calls smoke quiet.",
            rows=smoke.rows,
        )


class _Smoke:
    """How well labels, moved along their recordings, go with smoke.

    Ranks of PM2.5 within each recording, so that one with foul air does not decide for all; the chance is the area
    under the ROC curve by Mann and Whitney's U, each recording weighing as much as it has fire rows.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        judged = frame.select("recording", "event_time", "fire_alarm", "pm2_5").filter(pl.col("pm2_5").is_not_null())
        judged = judged.with_columns(
            rank=(pl.col("pm2_5").rank("average").over("recording") - 0.5) / pl.len().over("recording")
        )
        self._parts: list[tuple[_Flags, _Floats, float]] = []
        self.fires = self.rows = 0
        for part in judged.partition_by("recording", maintain_order=True):
            label = part["fire_alarm"].to_numpy().astype(np.bool_)
            if label.all() or label.sum() < LEAST_FIRE_ROWS or not _moves(part["pm2_5"]):
                continue
            interval = float(np.median(np.diff(part["event_time"].dt.epoch("us").to_numpy())) / 1e6)
            self._parts.append((label, part["rank"].to_numpy(), max(interval, 1e-3)))
            self.fires += int((np.diff(label.astype(np.int8)) == 1).sum()) + int(label[0])
            self.rows += int(label.sum())

    def best(self) -> tuple[float, float]:
        """(delay in s, chance) of the labels' move that fits best; of equal ones the shortest."""
        steps = range(1, int(LONGEST_DELAY_S / DELAY_STEP_S) + 1)
        tried = [0.0, *(sign * step * DELAY_STEP_S for step in steps for sign in (1, -1))]
        known = [(chance, delay) for delay in tried if (chance := self.chance(delay)) is not None]
        chance, delay = max(known, key=lambda one: one[0], default=(0.0, 0.0))
        return delay, chance

    def chance(self, delay_s: float) -> float | None:
        """With the labels given ``delay_s`` earlier; ``None`` where no recording has both classes then."""
        total = weight = 0.0
        for label, rank, interval in self._parts:
            shift = round(delay_s / interval)
            if abs(shift) >= len(label):
                continue
            moved, beside = (label[shift:], rank[: len(rank) - shift]) if shift >= 0 else (label[:shift], rank[-shift:])
            fire = int(moved.sum())
            if fire < LEAST_FIRE_ROWS or fire == len(moved):
                continue
            area = float(beside[moved].mean() - beside[~moved].mean()) + 0.5
            total += fire * area
            weight += fire
        # A shift that pushes most fires out of their recordings is judged by a few of them.
        return total / weight if weight >= 0.5 * self.rows else None


def _moves(values: pl.Series) -> bool:
    return values.n_unique() > 1


# -- balance and coverage ----------------------------------------------------------------------------------------


def balance(frame: pl.DataFrame) -> list[Finding]:
    """Whether either class is too rare, or fire the rule.

    Args:
        frame: ``fire_alarm``.
    """
    fires = int(frame["fire_alarm"].sum())
    quiet = frame.height - fires
    least, share = min(fires, quiet), fires / frame.height
    evidence = {"fire_rows": fires, "quiet_rows": quiet, "fire_share": share}
    if least < LEAST_CLASS_ROWS or least < LEAST_CLASS_SHARE * frame.height:
        rare = "fire" if fires < quiet else "quiet"
        return [
            Finding(
                "balance",
                "rare_class",
                "blocking",
                f"Only {least:,} of {frame.height:,} rows are labelled {rare}",
                evidence,
                f"Nothing can be learnt of {rare}, and accuracy is high whatever a model says.",
                rows=least,
            )
        ]
    if share > MOST_FIRE_SHARE:
        return [
            Finding(
                "balance",
                "mostly_fire",
                "note",
                f"{share:.1%} of the rows are labelled fire",
                evidence,
                f"Whoever always says fire has an accuracy of {share:.1%}; in life fires are rare.",
                rows=fires,
            )
        ]
    return []


def coverage(frame: pl.DataFrame, group: Mapping[str, str], table: pl.DataFrame) -> list[Finding]:
    """Whether there are enough independent recordings with fire, and what the data never show.

    Args:
        frame: ``recording, event_time, fire_alarm`` and the sensors.
        group: recording -> the recording whose evidence it is.
        table: a row for each recording: ``recording, rows, fire_rows, longest_fire, switches, hours``.
    """
    return [*_independent(group, table), *_flicker(table), *_unseen(frame)]


def _independent(group: Mapping[str, str], table: pl.DataFrame) -> Iterator[Finding]:
    burning = table.filter(pl.col("longest_fire") >= LEAST_FIRE_ROWS)
    independent = {group[name] for name in burning["recording"].to_list()}
    groups = set(group.values())
    both = table.filter((pl.col("fire_rows") >= LEAST_FIRE_ROWS) & (pl.col("fire_rows") < pl.col("rows"))).height
    if len(independent) < LEAST_RECORDINGS_WITH_FIRE:
        yield Finding(
            "coverage",
            "too_few_fires",
            "blocking",
            f"Only {len(independent)} independent recordings have a fire of {LEAST_FIRE_ROWS} rows or more; "
            f"{LEAST_RECORDINGS_WITH_FIRE} are needed to hold some out",
            {
                "recordings": table.height,
                "independent_recordings": len(groups),
                "independent_recordings_with_fire": len(independent),
                "recordings_with_both_classes": both,
                "label_switches": [int(value) for value in table["switches"].head(12)],
            },
            "No fire can be held out without taking most of what there is to learn from: figures would be chance.",
            tuple(burning["recording"]),
            int(burning["fire_rows"].sum()),
        )


def _flicker(table: pl.DataFrame) -> Iterator[Finding]:
    flickering = table.filter(
        pl.col("switches") > MOST_SWITCHES_AN_HOUR * pl.max_horizontal(pl.col("hours"), pl.lit(1.0))
    ).sort("switches", descending=True)
    if flickering.is_empty():
        return
    names = flickering["recording"].to_list()
    yield Finding(
        "coverage",
        "flickering_label",
        "note",
        f"The label of {named(names)} switches up to {flickering['switches'][0]:,} times, more than "
        f"{MOST_SWITCHES_AN_HOUR:g} times an hour",
        {"recordings": len(names), "most_switches": int(flickering["switches"][0])},
        "No fire goes on and off by the minute: such a label is a threshold on some sensor, and a model learns that.",
        tuple(names),
        int(flickering["rows"].sum()),
    )


def _unseen(frame: pl.DataFrame) -> Iterator[Finding]:
    absent = [name for name in SENSOR_NAMES if frame[name].null_count() == frame.height]
    if absent:
        yield Finding(
            "coverage",
            "missing_sensors",
            "note",
            f"{named([SENSOR_BY_NAME[name].description for name in absent])} {_was(absent)} never measured",
            {"sensors": absent},
            "A model of these data cannot use them where they are there.",
            rows=frame.height,
        )
    seen = set(frame["event_time"].dt.hour().unique().to_list())
    unseen = [hour for hour in range(24) if hour not in seen]
    if len(unseen) >= MOST_HOURS_MISSING:
        yield Finding(
            "coverage",
            "hours_missing",
            "note",
            f"No reading is from {len(unseen)} of the 24 hours of the day (UTC)",
            {"hours_without_readings": unseen},
            "How quiet air looks at those hours was not seen.",
            rows=0,
        )


def _was(names: list[Any]) -> str:
    return "was" if len(names) == 1 else "were"
