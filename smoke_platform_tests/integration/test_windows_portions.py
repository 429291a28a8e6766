"""How much engine local takes at once where devices report seldom and have more windows than readings."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from smoke_platform.adapters.kafka_bulk import TopicFacts
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.windows import WINDOWS, latest
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.simulator import simulate
from smoke_platform.domain.window_emission import TAKEN_COLUMNS
from smoke_platform.domain.windows import WINDOW_SCHEMA, compute
from smoke_platform.settings import Settings, load_settings
from smoke_platform.streaming import windows as engine
from smoke_platform.streaming.landing import LandedBatch, LandedTable
from smoke_platform_tests.monitoring_lake import as_landed

START = datetime(2026, 3, 2, tzinfo=UTC)
END_OF_TIME = datetime(2100, 1, 1, tzinfo=UTC)
FACTS = TopicFacts("cluster", "t0", (0,))
MOST, DEVICES, OPEN = 300, 4, 5


@pytest.fixture
def landed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, pl.DataFrame]:
    """A lake with a day of devices that report every ten minutes; each reading is in five windows of its own."""
    monkeypatch.setattr(engine, "MOST_DUE", MOST)
    settings = load_settings({"SMOKE_HOME": str(tmp_path)}, tmp_path / "no.env")
    rows = as_landed(simulate(DEVICES, START, 86_400, 7, interval_s=600.0)).with_columns(partition=pl.lit(0, pl.Int32))
    LandedTable(Lake(settings.lake), FACTS).commit(rows.to_arrow(), {0: rows.height})
    return settings, rows


def cut_of(settings: Settings) -> engine.WindowCut:
    return engine.WindowCut(settings, FACTS, dict, lambda: datetime.now(UTC))


def test_what_is_read_from_the_lake_makes_a_bounded_number_of_windows_due(
    landed: tuple[Settings, pl.DataFrame],
) -> None:
    """A year of minute data would need more memory than there is, and again after each crash."""
    settings, rows = landed
    cut = cut_of(settings)
    sizes, more = [], True
    while more:
        more = cut.take_from_lake({0: rows.height})
        tally = cut.append(None)
        sizes.append(tally.windows if tally else 0)
    assert len(sizes) > 3
    assert max(sizes) <= MOST + DEVICES * OPEN
    cut.append(END_OF_TIME)
    check(settings, rows)


def test_what_waits_in_memory_is_appended_before_too_much_is_due(landed: tuple[Settings, pl.DataFrame]) -> None:
    """After a pause of landing the windows of everything that waits would be computed at once."""
    settings, rows = landed
    cut = cut_of(settings)
    writer = engine.WindowEngine(settings)
    for first in range(0, rows.height, 20):
        part = rows.slice(first, 20)
        writer.landed(LandedBatch(part.select(TAKEN_COLUMNS).to_arrow(), {0: first}, {0: first + part.height}))
    sizes = []
    while writer._waiting:
        assert not writer._take_waiting(cut)
        tally = cut.append(None)
        sizes.append(tally.windows if tally else 0)
    assert len(sizes) > 3
    # The batch that makes it full is taken as a whole.
    assert max(sizes) <= MOST + (DEVICES + 20) * OPEN
    cut.append(END_OF_TIME)
    check(settings, rows)


def check(settings: Settings, rows: pl.DataFrame) -> None:
    found = latest(Lake(settings.lake).scan(WINDOWS)).select(list(WINDOW_SCHEMA)).collect()
    expected = compute(rows)
    assert len(SENSOR_NAMES) < expected.height == found.height
    assert found.sort("device_id", "window_start").equals(expected)
