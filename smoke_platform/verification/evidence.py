"""What was acknowledged against what arrived: comparisons of sets, never of totals.

Belongs here: pure comparisons on frames. Does not: fetching either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

IDENTITY = ("topic_id", "partition", "offset")


@dataclass(frozen=True, slots=True)
class SetComparison:
    """How a landed set of identities differs from the acknowledged one; ``sample`` names a few culprits."""

    acknowledged: int
    landed: int
    missing: int
    unexpected: int
    doubled: int
    sample: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return self.missing == self.unexpected == self.doubled == 0

    def sentence(self) -> str:
        if self.equal:
            return f"{self.acknowledged:,} acknowledged = {self.landed:,} landed, each once"
        return (
            f"{self.acknowledged:,} acknowledged, {self.landed:,} landed: {self.missing:,} missing, "
            f"{self.unexpected:,} unexpected, {self.doubled:,} more than once; e.g. {', '.join(self.sample)}"
        )


def compare_sets(acknowledged: pl.DataFrame, landed: pl.DataFrame) -> SetComparison:
    """Compares two frames by ``IDENTITY``.

    Args:
        acknowledged: what the broker said it has; one row an identity.
        landed: what was found in the lake; a repeated identity counts as doubled.
    """
    columns = list(IDENTITY)
    distinct = landed.select(columns).unique()
    missing = acknowledged.join(distinct, on=columns, how="anti")
    unexpected = distinct.join(acknowledged, on=columns, how="anti")
    doubled = landed.group_by(columns).len().filter(pl.col("len") > 1)
    culprits = pl.concat([frame.select(columns).head(2) for frame in (missing, unexpected, doubled)])
    return SetComparison(
        acknowledged.height,
        landed.height,
        missing.height,
        unexpected.height,
        doubled.height,
        tuple(f"partition {row['partition']} offset {row['offset']}" for row in culprits.iter_rows(named=True)),
    )


def differing_columns(together: pl.DataFrame, columns: Sequence[str]) -> dict[str, int]:
    """Per column, the rows in which the found value is not exactly the expected one (null equals null).

    Args:
        together: expected rows joined with found ones; ``<column>`` was expected, ``<column>_found`` was found.
    """
    counts = together.select(
        (~pl.col(name).eq_missing(pl.col(f"{name}_found"))).sum().alias(name) for name in columns
    ).row(0, named=True)
    return {name: int(count) for name, count in counts.items() if count}


def wrong_reasons(expected: pl.DataFrame, letters: pl.DataFrame) -> pl.DataFrame:
    """Identities whose dead letter names another ``reason`` than expected, with both reasons."""
    return (
        expected.join(letters.unique(subset=list(IDENTITY)), on=list(IDENTITY), how="inner", suffix="_found")
        .filter(pl.col("reason") != pl.col("reason_found"))
        .select(*IDENTITY, "reason", "reason_found")
    )
