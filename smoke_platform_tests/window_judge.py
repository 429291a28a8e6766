"""What stands in a lake's table of windows, held to the brute force of ``window_oracle``.

Belongs here: which windows a lake must have, and the comparison. Does not: what a window says (the oracle), the kernel
of the engines, against which nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import polars as pl

from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.adapters.windows import WindowTable
from smoke_platform.settings import Settings
from smoke_platform_tests import window_oracle as oracle

#: The oracle takes a second for so many. Of more readings, it looks at the first devices by name.
MOST_READINGS = 3000


def faults_of_windows(
    settings: Settings,
    *,
    silent: bool = False,
    over_only: bool = False,
    intervals_s: Mapping[str, float] | None = None,
    most: int = MOST_READINGS,
) -> list[str]:
    """What is wrong with the windows at their latest revision; an empty list where nothing is.

    Args:
        silent: whether all devices have fallen silent, so that each of their windows must be there; else those must
            whose end their device's clock has passed, and no others.
        over_only: whether windows whose end no clock has passed may be there.
        intervals_s: device -> seconds between its reports, one for the others.
        most: readings to look at; of the first device all are.
    """
    lake = Lake(settings.lake)
    taken = lake.scan(READINGS).filter(~pl.col("late")).collect()
    counts = taken.group_by("device_id").len().sort("device_id").with_columns(pl.col("len").cum_sum())
    chosen = counts.filter((pl.col("len") <= most) | (pl.int_range(pl.len()) == 0))["device_id"].to_list()
    rows = taken.filter(pl.col("device_id").is_in(chosen)).to_dicts()
    found = list(WindowTable(lake).between(None, None).filter(pl.col("device_id").is_in(chosen)).iter_rows(named=True))
    clocks: dict[str, datetime] = {}
    for row in rows:
        clocks[row["device_id"]] = max(row["event_time"], clocks.get(row["device_id"], row["event_time"]))
    expected = oracle.windows(rows, intervals_s=intervals_s)
    if not silent:
        expected = {key: row for key, row in expected.items() if row["window_end"] <= clocks[key[0]]}
    if over_only:
        found = [row for row in found if row["window_end"] <= clocks[row["device_id"]]]
    if not expected:
        return ["there is no window to look at"] if found else []
    return oracle.differences(found, expected)
