"""Simulated beside recorded readings: what differs is found, what is doubtful in a recording is named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.adapters.marginals_page import as_dict, marginals_page
from smoke_platform.adapters.reports import to_json
from smoke_platform.cli.main import root
from smoke_platform.domain import marginals
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.marginals import Marginals, compare, ks_distance, sentences
from smoke_platform.domain.recordings import RecordingFile
from smoke_platform.domain.simulator import simulate

START = datetime(2026, 1, 5, 12, tzinfo=UTC)


def world(first_device: int = 0, seconds: int = 1800) -> pl.DataFrame:
    """Six quiet rooms with clean air."""
    frame = simulate(
        6, START, seconds, 5, fires_per_device_day=0, nuisances_per_device_day=0, first_device=first_device
    )
    return frame.filter(pl.col("pm2_5") <= 10)


@pytest.fixture(scope="module")
def ours() -> pl.DataFrame:
    """The simulated side."""
    return world()


def distance(found: Marginals, sensor: str, state: str = "clean air") -> float:
    """The distance of a sensor's distributions."""
    return float(found.distances.filter(sensor=sensor, state=state)["distance"].item())


def test_a_planted_shift_is_found_and_nothing_else(ours: pl.DataFrame) -> None:
    """A comparison that misses a sensor off by an offset would vouch for a wrong world."""
    same = compare(ours, ours)
    assert same.distances["distance"].max() == 0
    assert same.pairs.drop_nulls().select((pl.col("simulated") - pl.col("recorded")).abs().max()).item() == 0
    shifted = compare(ours, ours.with_columns(pl.col("raw_h2") + 2_000))
    assert distance(shifted, "raw_h2") == 1.0
    assert shifted.distances.filter(pl.col("sensor") != "raw_h2")["distance"].max() == 0
    row = shifted.distances.filter(sensor="raw_h2").row(0, named=True)
    assert row["outside"] == 1.0
    assert row["simulated_noise"] == pytest.approx(row["recorded_noise"])
    said = " ".join(sentences(shifted))
    assert "raw_h2 (1.00)" in said
    assert "100% of raw_h2" in said


def test_a_broken_relation_is_found_though_the_marginals_agree(ours: pl.DataFrame) -> None:
    """Two sensors that no longer go together look right one by one."""
    turned = ours.with_columns(pl.col("nc0_5").reverse().over("device_id"))
    found = compare(ours, turned)
    assert distance(found, "nc0_5") == 0
    pair = found.pairs.filter(first="pm2_5", second="nc0_5").row(0, named=True)
    assert pair["simulated"] > 0.9
    assert pair["recorded"] < pair["simulated"] - 0.2


def test_what_is_doubtful_in_a_recording_is_named_and_left_out(ours: pl.DataFrame) -> None:
    """The public set's copies, computed temperatures and labels would be taken for evidence."""
    first = ours.filter(pl.col("device_id") == "sim-0001").with_columns(recording=1, fire_alarm=True)
    again = first.with_columns(pl.col("event_time") + timedelta(days=1), pl.col("temperature_c") + 0.01, recording=2)
    curve = pl.Series("temperature_c", 20 + 5 * np.sin(np.arange(first.height) / 300))
    found = compare(ours, pl.concat([first.with_columns(curve), again]))
    assert found.doubts.copies == first.height
    assert found.doubts.smooth == (("1", "temperature_c"),)
    assert found.doubts.fires == found.doubts.fires_in_clean_air == 2 * first.height
    assert found.rows["clean air"][1] == first.height
    assert found.distances.filter(sensor="temperature_c").height == 0
    said = " ".join(sentences(found))
    assert "repeat an earlier one" in said
    assert "temperature_c of 1" in said
    assert "100.0% of the rows labelled as fire" in said
    assert "smoke: " in said
    assert "too few to compare" in said


def test_the_public_recordings_are_seen_for_what_they_are(ours: pl.DataFrame, needs_data: Path) -> None:
    """Half of them are copies, two temperatures are computed, and nearly all "fire" lies in clean air."""
    chunks = RecordingFile(needs_data / "kaggle_smoke" / "smoke_detection_iot.csv", lambda _bad: None).chunks()
    doubts = compare(ours, pl.concat(list(chunks))).doubts
    assert doubts.rows == 62_630
    assert 24_994 + 5_744 <= doubts.copies < 31_000
    assert [name for _, name in doubts.smooth] == ["temperature_c", "temperature_c"]
    assert doubts.fires == 44_757
    assert doubts.fires_in_clean_air / doubts.fires == pytest.approx(0.991, abs=0.001)


def test_recordings_that_cannot_be_compared_are_refused(ours: pl.DataFrame) -> None:
    """An empty page would look like agreement."""
    with pytest.raises(SmokeError, match=r"pm2_5"):
        compare(ours, ours.with_columns(pl.lit(None, pl.Float64).alias("pm2_5")))
    with pytest.raises(SmokeError, match="fewer than"):
        compare(ours, ours.head(50))


@given(
    first=st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30),
    second=st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30),
)
def test_the_distance_is_the_greatest_gap_of_the_distribution_functions(
    first: list[float], second: list[float]
) -> None:
    """Ties and unequal numbers of rows are where such code goes wrong."""
    gaps = [
        abs(sum(one <= at for one in first) / len(first) - sum(one <= at for one in second) / len(second))
        for at in (*first, *second)
    ]
    assert ks_distance(np.array(first), np.array(second)) == pytest.approx(max(gaps), abs=1e-12)


def test_the_page_has_figures_and_stands_alone(ours: pl.DataFrame) -> None:
    """A report that loads from elsewhere is empty where there is no network."""
    found = compare(ours, world(first_device=50))
    text = marginals_page(found, "made <so>")
    # A figure for each sensor, and a matrix for each side.
    assert text.count("<svg") == found.distances.height + 2
    assert "made &lt;so&gt;" in text
    assert "<script" not in text
    assert "href" not in text
    assert '"distances"' in to_json(as_dict(found))


def test_the_command_compares_a_recording(ours: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one way in for users: a CSV in, a page and sentences out."""
    monkeypatch.setattr(marginals, "simulated_for_comparison", lambda _seed: ours)
    file, page = tmp_path / "own.csv", tmp_path / "page.html"
    times = {"event_time": pl.col("event_time").dt.epoch("s")}
    own = ours.filter(pl.col("device_id") == "sim-0001").with_columns(**times)
    own.select("event_time", "sequence", "temperature_c", "pm2_5", "raw_h2", "fire_alarm").write_csv(file)
    answer = CliRunner().invoke(root, ["simulate", "compare", str(file), "--out", str(page)])
    assert answer.exit_code == 0, answer.output
    assert "clean air: " in answer.output
    assert "Rank correlations" in page.read_text("utf-8")
    answer = CliRunner().invoke(root, ["simulate", "compare", str(file), "--out", str(tmp_path / "no" / "page.html")])
    assert isinstance(answer.exception, SmokeError)
