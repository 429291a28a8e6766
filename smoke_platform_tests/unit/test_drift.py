"""Drift: the distances against other implementations, and what counts as drifted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from smoke_platform.domain import drift

VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)
NAN = float("nan")


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_distances_agree_with_scipy(a: list[float], b: list[float]) -> None:
    """Or the numbers in the check aren't what their names say."""
    one, other = np.array(a), np.array(b)
    assert drift.wasserstein(one, other) == pytest.approx(stats.wasserstein_distance(one, other), rel=1e-9, abs=1e-6)
    assert drift.kolmogorov_smirnov(one, other) == pytest.approx(
        stats.ks_2samp(one, other, method="asymp").statistic, abs=1e-12
    )


def _sample(shift: float = 0.0, seed: int = 0, missing: float = 0.0, rows: int = 3000) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    values = chance.normal(shift, 1.0, rows).astype(np.float32)
    values[chance.random(rows) < missing] = NAN
    return {"x": values}


def test_a_shift_is_found_and_none_is_not() -> None:
    """Or a day like any other wakes somebody, or a sensor that has moved does not."""
    assert drift.compare(_sample(), _sample(seed=1), ["x"]).share == 0.0
    found = drift.compare(_sample(), _sample(1.0, seed=1), ["x"])
    assert found.share == 1.0
    assert found.columns[0].cause == "distribution"
    assert found.columns[0].distance == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("rows", [200, 999, 1001, 20_000])
def test_the_verdict_does_not_depend_on_the_number_of_rows(rows: int) -> None:
    """Or a report changes its mind at a thousand rows."""
    for shift, drifted in ((0.0, False), (0.25, False), (1.0, True)):
        found = drift.compare(_sample(rows=rows), _sample(shift, seed=1, rows=rows), ["x"])
        assert bool(found.drifted) is drifted


def test_a_sensor_that_falls_silent_has_drifted() -> None:
    """Or the model goes on with a blind eye and the report, having nothing to compare, is green."""
    for gone in (_sample(missing=1.0), _sample(missing=0.6)):
        found = drift.compare(_sample(), gone, ["x"])
        assert found.columns[0].cause == "missing"
        assert found.share == 1.0


def test_what_was_never_measured_is_not_judged() -> None:
    """Or a sensor that no device has dilutes the share of drifted columns."""
    never = {"x": np.full(500, NAN)}
    found = drift.compare({**_sample(), "y": never["x"]}, {**_sample(2.0), "y": never["x"]}, ["x", "y"])
    assert found.share == 1.0
    assert [column.column for column in found.columns] == ["x", "y"]


def test_a_constant_column_does_not_divide_by_zero() -> None:
    """Or clean air (TVOC at 0 all day) breaks the report."""
    still = {"x": np.zeros(500)}
    assert drift.compare(still, still, ["x"]).columns[0].distance == 0.0
    assert drift.compare(still, {"x": np.ones(500)}, ["x"]).drifted == ("x",)
