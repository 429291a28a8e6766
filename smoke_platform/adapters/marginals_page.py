"""The comparison of simulated and recorded readings as a page.

Belongs here: which figures and tables, in which order. Does not: the figures' shapes (``adapters.svg``), what is
compared and said (``domain.marginals``), files (``adapters.reports``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import polars as pl

from smoke_platform.adapters import svg
from smoke_platform.adapters.reports import Section, page
from smoke_platform.domain.marginals import QUANTILES, STATES, Marginals, sentences
from smoke_platform.domain.readings import SENSOR_BY_NAME

#: Sensors whose values spread over decades are drawn as log10(1 + value).
_DECADES = 100.0


def marginals_page(found: Marginals, made: str) -> str:
    """The page, complete in itself.

    Args:
        made: what was compared with what, in a sentence.
    """
    return page(
        "Simulated and recorded readings",
        made,
        f"median distance {_median_distance(found):.2f} in clean air",
        [
            Section("What it says", None, lines=sentences(found)),
            *(section for state in STATES for section in _state(found, state)),
        ],
    )


def as_dict(found: Marginals) -> dict[str, Any]:
    """The findings for machines."""
    doubts = found.doubts
    return {
        "sentences": sentences(found),
        "rows": {state: {"simulated": ours, "recorded": theirs} for state, (ours, theirs) in found.rows.items()},
        "distances": found.distances.to_dicts(),
        "quantiles": found.quantiles.to_dicts(),
        "pairs": found.pairs.to_dicts(),
        "doubts": {
            "rows": doubts.rows,
            "copies": doubts.copies,
            "smooth": [{"recording": device, "sensor": name} for device, name in doubts.smooth],
            "fires": doubts.fires,
            "fires_in_clean_air": doubts.fires_in_clean_air,
            "smoke_without_fire": doubts.smoke_without_fire,
        },
    }


def _median_distance(found: Marginals) -> float:
    value = found.distances.filter(pl.col("state") == STATES[0])["distance"].median()
    return float(value) if isinstance(value, float) else math.nan


def _state(found: Marginals, state: str) -> Iterator[Section]:
    mine = pl.col("state") == state
    distances = found.distances.filter(mine).sort("distance", descending=True)
    if distances.height == 0:
        return
    rows = [
        {
            "sensor": row["sensor"],
            "distance": row["distance"],
            "recorded outside, %": 100 * row["outside"],
            "noise simulated": row["simulated_noise"],
            "noise recorded": row["recorded_noise"],
            "unit": SENSOR_BY_NAME[row["sensor"]].unit,
        }
        for row in distances.iter_rows(named=True)
    ]
    ours, theirs = found.rows[state]
    note = (
        f"{ours:,} simulated and {theirs:,} recorded rows. Distance: of the distribution functions (Kolmogorov, "
        "Smirnov), 0 alike to 1 apart. Outside: beyond the middle 99% of the simulated ones. Noise: usual step from "
        "one reading to the next."
    )
    yield Section(f"Distances, {state}", rows, note)
    quantiles = found.quantiles.filter(mine)
    figures = "".join(_figure(own, str(name)) for (name,), own in quantiles.group_by("sensor", maintain_order=True))
    yield Section(f"Quantiles, {state}", None, "Value below which so many percent of the rows lie.", figures)
    pairs = found.pairs.filter(mine)
    names = quantiles["sensor"].unique(maintain_order=True).to_list()
    matrices = "".join(
        svg.matrix(
            f"Rank correlations, {side}, {state}",
            names,
            {(row["first"], row["second"]): row[side] for row in pairs.iter_rows(named=True) if row[side] is not None},
        )
        for side in ("simulated", "recorded")
    )
    yield Section(
        f"Relations of pairs, {state}",
        None,
        "Rank correlation within a device or recording, median over them: first the simulated, then the recorded ones.",
        matrices,
    )


def _figure(own: pl.DataFrame, name: str) -> str:
    unit = SENSOR_BY_NAME[name].unit
    values = {side: own[side].to_list() for side in ("simulated", "recorded")}
    present = [value for side in values.values() for value in side]
    wide = min(present) >= 0 and max(present) > _DECADES * (1 + min(present))
    title = f"log10(1 + {name} in {unit})" if wide else f"{name} in {unit}"
    drawn = {side: [math.log10(1 + value) if wide else value for value in side_] for side, side_ in values.items()}
    heading = f'<p class="muted">{title}</p>'
    return heading + svg.lines(title, [f"{100 * level:g}%" for level in QUANTILES], drawn, 150)
