"""The audit of training data: what was planted is found, nothing else is, and the public recordings are called out."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.adapters import data_audit as pages
from smoke_platform.cli.models import models
from smoke_platform.domain import audit_leaks, data_audit
from smoke_platform.domain.audit_findings import FAMILIES, AuditReport, Finding
from smoke_platform.domain.data_audit import audit, with_recordings
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.simulator import simulate
from smoke_platform_tests.audit_data import SPOILT, burning, clean, noisy, of, renamed


def checks(report: AuditReport, severity: str = "") -> set[str]:
    return {f"{found.family}.{found.check}" for found in report.findings if severity in ("", found.severity)}


@pytest.fixture(scope="module")
def of_clean() -> AuditReport:
    return audit(clean(), "clean")


# -- clean sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_blocks_a_clean_set(seed: int) -> None:
    """Or nobody could train any more, whatever the data."""
    report = audit(clean(seed))
    assert checks(report, "blocking") == set()
    assert report.clean
    assert report.for_manifest()["blocking"] == 0


def test_nothing_blocks_a_day_of_the_live_world() -> None:
    """Or labelled readings of a building in which it rarely burns would be refused."""
    live = simulate(24, datetime(2024, 3, 4, tzinfo=UTC), 86_400, 5, interval_s=15.0, fires_per_device_day=1.0)
    assert checks(audit(live.with_columns(recording=pl.col("device_id"))), "blocking") == set()


# -- what was planted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", SPOILT)
def test_what_is_planted_is_found_and_only_there(check: str, of_clean: AuditReport) -> None:
    """Or a model is trained on data that lie in this way, or on none because the check cries wolf."""
    report = audit(SPOILT[check](clean()))
    assert check not in checks(of_clean)
    assert check in checks(report, "blocking")
    assert not report.clean
    found = next(one for one in report.findings if f"{one.family}.{one.check}" == check)
    assert found.finding
    assert found.consequence
    assert found.evidence_text


@pytest.mark.parametrize("change", ["cut", "half", "double", "warm"])
def test_an_altered_copy_is_found_however_it_was_altered(change: str) -> None:
    """Or a copy that is cut, played faster or recalibrated counts as a second fire."""
    first, second = (clean().filter(pl.col("recording") == name) for name in sorted(clean()["recording"].unique())[:2])
    altered = {
        "cut": lambda: noisy(first[333:3000], 0.5),
        "half": lambda: noisy(first.gather_every(2), 0.1),
        "double": lambda: noisy(first.select(pl.all().repeat_by(2).explode()), 0.1),
        "warm": lambda: noisy(first, 0.3).with_columns(pl.col("temperature_c") * 1.1 - 4),
    }[change]()
    found = audit(pl.concat([first, second, renamed(altered)])).of("duplicates", "near_copy")
    assert [set(one.recordings) for one in found] == [{first["recording"][0], "another"}]


def test_a_recording_and_its_copy_are_held_out_together() -> None:
    """Or a cheater is judged on the very rows it learnt, and passes for one that understood."""
    frame = clean()
    names = burning(frame)[:3]
    few = frame.filter(pl.col("recording").is_in(names))
    doubled = pl.concat([few, *(renamed(of(few, name), f"again-{name}") for name in names)])
    report = audit(doubled)
    assert {row.name: row.same_as for row in report.recordings if row.same_as} == {
        f"again-{name}": name for name in names
    }
    [found] = report.of("coverage", "too_few_fires")
    assert found.evidence["independent_recordings_with_fire"] == 3


def test_a_file_that_was_replayed_all_night_is_told_in_a_few_sentences() -> None:
    """Or the reason for a refusal drowns in a hundred like it."""
    part = of(clean(), clean()["recording"][0]).head(400)
    passes = [renamed(part, f"pass-{number:02d}", timedelta(hours=number)) for number in range(1, 16)]
    found = audit(pl.concat([part, *passes])).of("duplicates", "copied_recording")
    assert len(found) == 11
    assert found[-1].evidence == {"stretches": 5, "rows": 5 * 400}
    assert "5 more stretches" in found[-1].finding


def test_a_short_spell_is_a_note_and_the_end_of_the_range_is_none() -> None:
    """Or ten minutes of one detector's steam keep a fleet's model from being trained."""
    frame = clean()
    name = frame["recording"][0]
    spell = pl.col("recording").eq(name) & pl.int_range(pl.len()).over("recording").is_between(100, 800)
    stuck = audit(frame.with_columns(humidity_pct=pl.when(spell).then(40.0).otherwise("humidity_pct")))
    assert [found.severity for found in stuck.of("stuck")] == ["note"]
    assert stuck.clean
    steam = audit(frame.with_columns(humidity_pct=pl.when(spell).then(100.0).otherwise("humidity_pct")))
    assert steam.of("stuck") == []


def test_data_without_a_label_are_refused_and_not_called_clean() -> None:
    """Or an empty table passes for a good one."""
    report = audit(clean().head(100).with_columns(fire_alarm=pl.lit(None, pl.Boolean)))
    assert checks(report, "blocking") == {"coverage.no_labelled_rows"}


def test_a_set_too_large_is_cut_to_whole_recordings_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the nightly audit of a growing lake takes all memory, or leaves readings out without a word."""
    monkeypatch.setattr(data_audit, "MOST_READINGS", 20_000)
    report = audit(clean())
    sizes = dict(clean()["recording"].value_counts().iter_rows())
    assert report.rows <= 20_000
    assert {row.name: row.rows for row in report.recordings} == {row.name: sizes[row.name] for row in report.recordings}
    assert "of 20 recordings" in report.limits[0]


# -- the public recordings ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_public(needs_data: Path) -> AuditReport:
    return pages.audit_file(needs_data / "kaggle_smoke" / "smoke_detection_iot.csv")


def test_the_copies_of_the_public_recordings_are_named(of_public: AuditReport) -> None:
    """Or half of the best known data set is taken for evidence of its own."""
    told = {(found.evidence["first"], found.evidence["copy"]) for found in of_public.of("duplicates")}
    spans = {tuple(side.split("(")[1].split(" to ")[0] for side in pair) for pair in told}
    assert spans == {
        ("rows 0-24993, 2022-06-09 00:08:51", "rows 24994-49987, 2022-06-09 07:55:43"),
        ("rows 51142-56885, 2022-06-08 18:16:27", "rows 56886-62629, 2022-06-13 12:45:08"),
    }
    assert {(found.check, found.rows) for found in of_public.of("duplicates")} == {
        ("copied_recording", 24_994),
        ("copied_recording", 5_744),
    }


def test_the_leaks_of_the_public_recordings_are_named(of_public: AuditReport) -> None:
    """Or 99.9% is believed, which recognises the recording by its clock, counter and pressure."""
    assert {"event_time", "sequence", "pressure_hpa", "row_index"} <= {found.check for found in of_public.of("leaks")}
    clock = next(score for score in of_public.scores if score.column == "event_time")
    assert clock.random > 0.99
    assert clock.held_out is not None
    assert clock.held_out < 0.7
    assert {score.column for score in of_public.scores if score.column == "place"} == set()


def test_labels_and_temperature_of_the_public_recordings_are_called_wrong(of_public: AuditReport) -> None:
    """Or a model learns that clean air burns, from a temperature that nobody measured."""
    [clean_air] = of_public.of("physics", "fire_in_clean_air")
    assert clean_air.evidence["of_them_in_clean_air"] / clean_air.evidence["fire_rows"] == pytest.approx(
        0.991, abs=1e-3
    )
    [smoke] = of_public.of("physics", "smoke_without_fire")
    assert smoke.rows == 2 * 432
    [curve] = of_public.of("synthetic")
    assert (curve.check, curve.recordings) == ("computed_temperature_c", ("csv-recording-1", "csv-recording-5"))
    assert of_public.of("coverage", "too_few_fires")
    assert not of_public.clean


# -- cheaters -----------------------------------------------------------------------------------------------------


def _scored(values: np.ndarray, label: np.ndarray) -> float:
    count = len(values)
    frame = pl.DataFrame(
        {
            "recording": np.repeat(["a", "b", "c", "d"], count // 4),
            "device_id": ["d"] * count,
            "event_time": pl.Series(np.full(count, 1_700_000_000_000_000)).cast(pl.Datetime("us", "UTC")),
            "fire_alarm": label,
            "place": np.zeros(count, dtype=np.int64),
            **{name: np.full(count, np.nan) for name in data_audit.ALL_SENSOR_NAMES},
        }
    ).with_columns(pl.col(name).fill_nan(None) for name in data_audit.ALL_SENSOR_NAMES)
    frame = frame.with_columns(pressure_hpa=pl.Series(values))
    groups = {name: name for name in "abcd"}
    return next(score.random for score in audit_leaks.scores(frame, groups) if score.column == "pressure_hpa")


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 50), st.booleans())
def test_a_cheater_sees_order_only_and_chance_gives_a_half(seed: int, power: float, falling: bool) -> None:
    """Or a column leaks by its unit, or noise is called a leak."""
    chance = np.random.default_rng(seed)
    values = chance.normal(0, 1, 4_000)
    label = chance.random(4_000) < 0.2
    assert abs(_scored(values, label) - 0.5) < 0.08
    told = np.abs(values) < 0.7
    stretched = np.sinh(values * 2) * power * (-1 if falling else 1)
    assert _scored(values, told) > 0.97
    assert _scored(stretched, told) == pytest.approx(_scored(values, told), abs=0.01)


# -- recordings, report, command ----------------------------------------------------------------------------------


def test_a_device_that_was_silent_for_long_begins_another_recording() -> None:
    """Or two sessions of one detector count as one and cannot be held apart."""
    part = of(clean(), clean()["recording"][0]).drop("recording").head(300)
    later = part.with_columns(pl.col("event_time") + timedelta(hours=9))
    found = with_recordings(pl.concat([later, part]))
    start = part["event_time"][0]
    assert found["recording"].unique(maintain_order=True).to_list() == [
        f"{part['device_id'][0]}@{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (start, start + timedelta(hours=9))
    ]


_TEXT = st.text(max_size=20)
_EVIDENCE = st.dictionaries(
    _TEXT, st.one_of(st.integers(-(2**40), 2**40), st.floats(-1e9, 1e9), _TEXT, st.lists(_TEXT))
)
_FINDINGS = st.builds(
    Finding,
    family=st.sampled_from(list(FAMILIES)),
    check=_TEXT,
    severity=st.sampled_from(["blocking", "note"]),
    finding=_TEXT,
    evidence=_EVIDENCE,
    consequence=_TEXT,
    recordings=st.lists(_TEXT, max_size=3).map(tuple),
    rows=st.integers(0, 2**40),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(_FINDINGS, max_size=3).map(tuple))
def test_a_report_survives_json_and_its_page_shows_every_finding(
    of_clean: AuditReport, found: tuple[Finding, ...]
) -> None:
    """Or the stored audit says something else than the one that was made, or a finding's text breaks the page."""
    report = AuditReport(
        of_clean.kind, of_clean.rows, found, of_clean.recordings[:2], of_clean.scores[:2], ("cut",), {"t": 1}
    )
    again = pages.from_text(pages.to_text(report))
    assert again == report
    assert again.clean == (not any(one.severity == "blocking" for one in found))
    page = pages.audit_page(again)
    assert page.count("<tr>") >= len(found)
    assert "<script" not in page


def test_other_json_is_no_report() -> None:
    """Or a mistyped file name ends in a stack trace."""
    with pytest.raises(SmokeError, match="no audit report"):
        pages.from_text('{"kind": 1}')


def _csv(folder: Path, frame: pl.DataFrame) -> Path:
    place = folder / "readings.csv"
    columns = [name for name in frame.columns if name not in ("recording", "source")]
    frame.select(columns).with_columns(
        pl.col("event_time").dt.epoch("s"), pl.col("fire_alarm").cast(pl.Int8)
    ).write_csv(place)
    return place


def test_the_command_tells_good_files_from_bad_by_its_exit_code(tmp_path: Path) -> None:
    """Or a script that audits before it trains goes on with bad data."""
    good = _csv(tmp_path, clean(fleets=4, devices=3))
    answer = CliRunner().invoke(models, ["audit", str(good), "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["clean"] is True
    bad = _csv(tmp_path, SPOILT["duplicates.copied_recording"](clean(fleets=4, devices=3)))
    page = tmp_path / "audit.html"
    refused = CliRunner().invoke(models, ["audit", str(bad), "--out", str(page)])
    assert isinstance(refused.exception, SmokeError)
    assert "blocking finding" in str(refused.exception)
    assert "another repeats" in page.read_text("utf-8")
