"""Three of the seeded kills of the windows' proof, and that its judgement sees what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.windows import ROW_COLUMNS, compute
from smoke_platform.settings import Settings
from smoke_platform.verification import window_kills
from smoke_platform.verification.window_kills import WindowKillPlan, faults_of, stream_of
from smoke_platform_tests.window_judge import faults_of_windows

pytestmark = pytest.mark.integration

#: The windows of the devices whose readings come late and doubled, by brute force.
definition = partial(faults_of_windows, over_only=True, most=5000)
PLAN = WindowKillPlan(engine="local", seed=11, kills=3, devices=8, seconds=1500)


@pytest.mark.timeout(900)
def test_a_killed_engine_leaves_the_table_of_an_undisturbed_one(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """A window would be lost, doubled, or computed from half of its readings because a process died."""
    findings = window_kills.run(
        PLAN, tmp_path / "proof", settings_for(tmp_path), lambda _text: None, definition=definition
    )
    assert findings.faults == []
    assert len(findings.kills) == PLAN.kills
    assert findings.late > 0
    assert findings.corrected > 0
    assert any(kill.reflected < kill.sent for kill in findings.kills), "nothing was left to do at any kill"


@pytest.fixture(scope="module")
def some_windows() -> pl.DataFrame:
    plan = WindowKillPlan(engine="local", seed=1, kills=1, devices=2, seconds=200)
    rows = [
        {
            **dict.fromkeys(ROW_COLUMNS),
            "device_id": one.device_id,
            "event_time": one.event_time,
            "topic_id": "t",
            "partition": 0,
            "offset": offset,
            **one.sensors,
            "fire_alarm": one.fire_alarm,
        }
        for offset, one in enumerate(stream_of(plan))
    ]
    kinds = {**dict.fromkeys(SENSOR_NAMES, pl.Float64), "sequence": pl.Int64, "event_time": pl.Datetime("us", "UTC")}
    return compute(pl.DataFrame(rows, schema_overrides=kinds, infer_schema_length=None))


def test_the_judgement_sees_what_is_missing_strange_or_different(some_windows: pl.DataFrame) -> None:
    """A proof that overlooks a lost window proves nothing."""
    assert faults_of(some_windows, some_windows) == []
    assert "1 windows are missing" in faults_of(some_windows.slice(1), some_windows)[0]
    assert "1 windows should not be there" in faults_of(some_windows, some_windows.slice(1))[0]
    other = some_windows.with_columns(temperature_c_mean=pl.col("temperature_c_mean") + 1e-12)
    assert "differ in temperature_c_mean" in faults_of(other, some_windows)[0]
