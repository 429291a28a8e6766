"""Reports as files: Evidently's page, our own pages, and the store."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from smoke_platform.adapters import reports
from smoke_platform.adapters.reports import ReportStore, Section
from smoke_platform.domain import drift
from smoke_platform.domain.errors import SmokeError

NOW = datetime(2026, 3, 2, 6, 30, tzinfo=UTC)


def _sides(shift: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    chance = np.random.default_rng(3)
    before = {name: chance.normal(size=1500).astype(np.float32) for name in ("moved", "still", "flat")}
    now = {name: chance.normal(size=1500).astype(np.float32) for name in ("moved", "still", "flat")}
    now["moved"] += np.float32(shift)
    now["still"][:300] = np.nan
    before["flat"][:] = 0.0
    now["flat"][:] = 0.0
    return before, now


@pytest.mark.parametrize(("shift", "share"), [(0.0, 0.0), (2.0, 1 / 3)])
def test_evidently_finds_a_shift_and_only_that(shift: float, share: float) -> None:
    """Or the drawn report and the check in Dagster contradict each other."""
    before, now = _sides(shift)
    names = ["moved", "still", "flat"]
    drawn = reports.draw_drift(before, now, names, threshold=drift.DISTANCE_THRESHOLD, drifted_share=0.3)
    ours = drift.compare(before, now, names)
    assert drawn.drifted_share == pytest.approx(share)
    assert ours.share == pytest.approx(share)
    for column in ours.columns:
        assert drawn.distances[column.column] == pytest.approx(column.distance, rel=1e-4, abs=1e-6)
    assert drawn.page.lstrip().lower().startswith("<!doctype html>") or "<html" in drawn.page[:500].lower()
    assert "moved" in drawn.page


def test_evidently_measures_scores_and_shares_beside_the_features() -> None:
    """Or drift of the model's scores raises the share of drifted features, or is judged by another test than ours."""
    before, now = _sides(0.0)
    before["score"], now["score"] = before["moved"], now["moved"] + np.float32(5)
    was, is_now = np.arange(1000) < 50, np.arange(1000) < 300
    drawn = reports.draw_drift(
        before, now, ["moved"], threshold=0.5, drifted_share=0.3, beside=["score"], shares={"fire": (was, is_now)}
    )
    assert drawn.drifted_share == 0.0
    exact = drift.compare(before, now, ["score"]).columns[0]
    assert drawn.distances["score"] == pytest.approx(exact.distance, rel=1e-4)
    assert drawn.shares["fire"] == pytest.approx(drift.jensen_shannon(0.05, 0.3))
    assert drawn.page.count("<body>") == 1


def test_our_summary_stands_above_what_was_drawn() -> None:
    """Or the verdict on the whole day is hidden behind a sample's plots, or our style breaks them."""
    sections = [Section("devices", [{"device": "<b>x</b>"}])]
    page = reports.headed("<html><body><p>plots</p></body></html>", "Drift", "a day", "no sign", sections)
    assert page.index("no sign") < page.index("plots")
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    style = page[page.index("<style>") + 7 : page.index("</style>")]
    rules = [rule.partition("{")[0] for rule in style.split("}") if rule]
    assert all(selector.startswith(".smoke-summary") for rule in rules for selector in rule.split(","))


def test_evidently_does_not_report_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a fire-safety platform tells a third party that it runs."""
    from evidently import telemetry

    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    before, now = _sides(0.0)
    reports.draw_drift(before, now, ["moved"], threshold=0.5, drifted_share=0.3)
    assert not telemetry.event_logger.is_enabled()


def test_the_store_keeps_the_newest(tmp_path: Path) -> None:
    """Or reports of 4 MB a day fill the disk, or today's is the one that goes."""
    store = ReportStore(tmp_path, keep=3)
    written = [
        store.write("drift", f"<p>{day}", {"day": day}, moment=NOW + timedelta(days=day), label=f"d{day}")
        for day in range(5)
    ]
    assert [page.read_text() for page in store.list("drift")] == ["<p>2", "<p>3", "<p>4"]
    assert [report.removed for report in written] == [0, 0, 0, 1, 1]
    assert len(list((tmp_path / "drift").glob("2*.json"))) == 3
    assert store.latest("drift") == {"day": 4}
    assert json.loads((tmp_path / "drift" / "latest.json").read_text())["page"] == written[-1].page.name
    assert written[-1].route == f"/reports/drift/{written[-1].page.name}"


def test_each_kind_has_its_own_number(tmp_path: Path) -> None:
    """Or quality reports every six hours push out the weekly history."""
    store = ReportStore(tmp_path, keep=1)
    store.write("history", "h", {}, moment=NOW)
    for hour in range(3):
        store.write("quality", "q", {}, moment=NOW + timedelta(hours=hour))
    assert (len(store.list("history")), len(store.list("quality"))) == (1, 1)
    assert store.latest("performance") is None


def test_no_half_written_file_is_left(tmp_path: Path) -> None:
    """Or a reader gets half a report."""
    store = ReportStore(tmp_path, keep=2)
    with pytest.raises(TypeError):
        store.write("quality", "q", {"not json": object()}, moment=NOW)
    assert store.list("quality") == []
    assert not [file for file in (tmp_path / "quality").iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("name", ["../etc", "a/b", "", " "])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    """Or a label decides where a file is written."""
    with pytest.raises(SmokeError):
        ReportStore(tmp_path, keep=1).write(name, "", {}, moment=NOW)


def test_what_devices_say_is_text_not_markup() -> None:
    """Or a device's name runs as a script in the operator's browser."""
    name = "<script>alert(1)</script>"
    html = reports.page(name, name, name, [Section(name, [{name: name}], name)])
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") == 8


def test_numbers_that_json_lacks_become_null() -> None:
    """Or a report with a NaN can't be read by anything but Python."""
    text = reports.to_json({"a": float("nan"), "b": [float("inf"), 1.5], "day": NOW.date(), "n": None})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "day": "2026-03-02", "n": None}


def test_a_markdown_table_survives_its_content() -> None:
    """Or a bar in a name breaks the table in Dagster."""
    table = reports.markdown_table([{"device": "a|b", "share": 0.123456, "count": 12345, "on": True, "gone": None}])
    assert table.splitlines()[-1] == "| a\\|b | 0.1235 | 12,345 | yes | - |"
    assert reports.markdown_table([]) == "none"
