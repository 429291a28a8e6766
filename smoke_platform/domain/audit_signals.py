"""Signals that no sensor gives: computed curves, sensors that never move or stood still for long.

Belongs here: the findings of the families ``synthetic`` and ``stuck``. Does not: what counts as too smooth
(``domain.history_devices``) and which sensors never rest (``domain.quality``), which are theirs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from smoke_platform.domain.audit_findings import Finding, named
from smoke_platform.domain.history_devices import LEAST_STEPS_TO_JUDGE, SMOOTH_BELOW
from smoke_platform.domain.history_summary import steps_and_bends
from smoke_platform.domain.quality import LEAST_READINGS_TO_JUDGE, RESTLESS_SENSORS
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_BY_NAME

#: A curve that was computed and rounded has bends, but hardly ever turns: 0.0% of the steps of the computed temperature
#: of the public recordings, and at least 5% of those of every sensor that was measured.
TURNING_BELOW: Final = 0.01
#: Steps that are no zeros, to judge by.
LEAST_TURNS_TO_JUDGE: Final = 200
#: Increments are repeated when so many steps of a recording are of one size, up to the sensor's rounding. The rest of a
#: measured signal is spread over the size of its noise.
REPEATED_SHARE: Final = 0.95
#: A sensor that stood still this long, in the recordings' own readings, did not measure: ten minutes at 1 Hz.
LEAST_STUCK_ROWS: Final = LEAST_READINGS_TO_JUDGE
#: Stuck values of a sensor are a finding that blocks from this share of all its values on; fewer are a note.
STUCK_SHARE: Final = 0.01


def synthetic(frame: pl.DataFrame) -> list[Finding]:
    """Signals too smooth to be measured, one finding a sensor.

    Args:
        frame: ``recording`` and all sensors, each recording's rows in their order.
    """
    by_recording = frame.group_by("recording", maintain_order=True)
    table = by_recording.agg(
        pl.len().alias("rows"),
        *(expr for name in ALL_SENSOR_NAMES for expr in steps_and_bends(name)),
        *(expr for name in ALL_SENSOR_NAMES for expr in _turns(name)),
    )
    found = []
    for name in ALL_SENSOR_NAMES:
        judged = table.select(
            "recording",
            "rows",
            steps=pl.col(f"{name}_steps"),
            bend=pl.col(f"{name}_bend_sum") / pl.col(f"{name}_step_sum"),
            moving=pl.col(f"{name}_moving"),
            turning=pl.col(f"{name}_turning") / pl.col(f"{name}_moving"),
            repeated=pl.col(f"{name}_repeated") / pl.col(f"{name}_moving"),
        ).filter((pl.col("steps") >= LEAST_STEPS_TO_JUDGE) & (pl.col("moving") >= LEAST_TURNS_TO_JUDGE))
        smooth = pl.col("bend") < SMOOTH_BELOW
        straight = pl.col("turning") < TURNING_BELOW
        ramp = (pl.col("repeated") >= REPEATED_SHARE) & (pl.col("turning") < SMOOTH_BELOW)
        odd = judged.filter(smooth | straight | ramp)
        if odd.height:
            found.append(_computed(name, odd, frame))
    return found


def _turns(name: str) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """``_moving``, how many steps are no zeros; ``_turning``, how many of them go the other way than the one before;
    ``_repeated``, how many are of the most frequent size or a rounding beside it."""
    step = pl.col(name).diff()
    moves = step.filter(step.is_not_null() & (step != 0))
    sizes = moves.abs().round(4)
    usual = sizes.mode().min()
    return (
        moves.len().cast(pl.Int64).alias(f"{name}_moving"),
        (moves.sign().diff() != 0).sum().cast(pl.Int64).alias(f"{name}_turning"),
        ((sizes - usual).abs() <= 0.0011).sum().cast(pl.Int64).alias(f"{name}_repeated"),
    )


def _computed(name: str, odd: pl.DataFrame, frame: pl.DataFrame) -> Finding:
    names = odd["recording"].to_list()
    values = frame.filter(pl.col("recording").is_in(names))[name]
    unit = SENSOR_BY_NAME[name].unit
    return Finding(
        "synthetic",
        f"computed_{name}",
        "blocking",
        f"{name} of {named(names)} is a computed curve and was not measured: it has no noise, and hardly ever turns",
        {
            "second_by_first_differences": [round(value, 4) for value in odd["bend"].to_list()],
            "measured_ones_have_at_least": 0.36,
            "steps_that_turn": [round(value, 4) for value in odd["turning"].to_list()],
            f"least_{unit}": float(np.min(values.drop_nulls().to_numpy())),
            f"greatest_{unit}": float(np.max(values.drop_nulls().to_numpy())),
        },
        f"Whatever a model learns of {name} is a formula of time: it names the recording and no fire.",
        tuple(names),
        int(odd["rows"].sum()),
    )


def stuck(frame: pl.DataFrame) -> list[Finding]:
    """Sensors that never rest by nature and stood still, one finding a sensor.

    Args:
        frame: ``recording`` and all sensors, each recording's rows in their order.
    """
    found = []
    for name in RESTLESS_SENSORS:
        ends = SENSOR_BY_NAME[name].low, SENSOR_BY_NAME[name].high
        present = frame.select("recording", value=pl.col(name)).filter(pl.col("value").is_not_null())
        runs = (
            present.with_columns(run=pl.struct("recording", "value").rle_id())
            .group_by("run", maintain_order=True)
            .agg(pl.first("recording"), pl.first("value"), pl.len().alias("length"))
            # At the end of its range a sensor rests, as humidity does in steam.
            .filter((pl.col("length") >= LEAST_STUCK_ROWS) & pl.col("value").is_between(*ends, closed="none"))
        )
        if runs.is_empty():
            continue
        whole = (
            present.group_by("recording")
            .agg(pl.col("value").n_unique().alias("values"), pl.len().alias("length"))
            .filter((pl.col("values") == 1) & pl.col("recording").is_in(runs["recording"].to_list()))
        )
        found.append(_stood(name, runs, whole["recording"].sort().to_list(), present.height))
    return found


def _stood(name: str, runs: pl.DataFrame, constant: list[str], total: int) -> Finding:
    names = runs["recording"].unique(maintain_order=True).to_list()
    rows = int(runs["length"].sum())
    longest = runs.row(int(runs["length"].arg_max() or 0), named=True)
    how = "never moves" if constant else "stood still"
    return Finding(
        "stuck",
        f"{'constant' if constant else 'stuck'}_{name}",
        "blocking" if rows >= STUCK_SHARE * total else "note",
        f"{name} of {named(constant or names)} {how}: {longest['length']:,} readings in a row are {longest['value']:g}",
        {
            "readings_that_stand_still": rows,
            "share_of_its_readings": rows / total,
            "longest_run": int(longest["length"]),
            "value": float(longest["value"]),
        },
        f"A sensor that does not measure teaches a model to do without it, or that {longest['value']:g} is what quiet "
        "looks like.",
        tuple(names),
        rows,
    )
