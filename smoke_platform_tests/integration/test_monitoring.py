"""The monitoring assets through real Dagster jobs, on Delta tables and a real ONNX champion."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import uvicorn
from fastapi import FastAPI

from smoke_platform.adapters.reports import DrawnDrift
from smoke_platform.adapters.scorer import ModelRefused
from smoke_platform.domain.features import FEATURE_NAMES
from smoke_platform.orchestration import drift_monitor, monitoring, monitors, names, performance_monitor
from smoke_platform.serving.app import create_app
from smoke_platform.settings import Settings
from smoke_platform_tests import monitoring_lake
from smoke_platform_tests.monitoring_lake import (
    as_landed,
    land,
    log_alarm,
    log_predictions,
    publish_champion,
    report_data,
    simulated,
    today,
)

pytestmark = pytest.mark.integration


@dataclass
class Told:
    """What a run told Dagster: metadata of the materialisation (or observation), and check -> passed."""

    success: bool
    materialised: Mapping[str, Any] | None
    observed: Mapping[str, Any] | None
    checks: Mapping[str, bool]


@dataclass
class Bench:
    settings: Settings
    instance: dg.DagsterInstance

    def run(self, job: str, partition: str | None = None) -> Told:
        defs = monitoring.definitions(self.settings)
        result = defs.resolve_job_def(job).execute_in_process(instance=self.instance, partition_key=partition)
        materialised = observed = None
        checks = {}
        for event in result.all_events:
            if event.is_step_materialization:
                materialised = _values(event.step_materialization_data.materialization.metadata)
            elif event.event_type is dg.DagsterEventType.ASSET_OBSERVATION:
                observed = _values(event.asset_observation_data.asset_observation.metadata)
            elif event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                evaluation = event.asset_check_evaluation_data
                checks[evaluation.check_name] = evaluation.passed
        return Told(result.success, materialised, observed, checks)


def _values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.value for name, value in metadata.items()}


@pytest.fixture
def bench(tmp_path: Path, settings_for: Callable[..., Settings], free_port: Callable[[], int]) -> Iterator[Bench]:
    # Nothing listens on the API's port; what an API that is there answers has a test of its own.
    settings = settings_for(
        tmp_path,
        ML_API_URL=f"http://127.0.0.1:{free_port()}",
        SMOKE_REPORT_RETENTION="2",
        # The engines are compared elsewhere; Spark takes seconds to start.
        SMOKE_HISTORY_ENGINE="local",
    )
    with dg.DagsterInstance.ephemeral() as instance:
        yield Bench(settings, instance)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves Evidently out, which takes seconds, where the verdict on the whole day is what matters."""
    monkeypatch.setattr(drift_monitor, "draw_drift", lambda *_args, **_more: DrawnDrift("", {}, 0.0, {}))


#: The simulator tells the same of the same days. On some other days its chance has an ordinary day look like drift.
START = datetime(2024, 5, 14, tzinfo=UTC)
DAY = START.date()


def _training() -> pl.DataFrame:
    return simulated(8, START - timedelta(days=8), 24, fires_per_device_day=6)


def _the_day(devices: int = 6, **more: Any) -> pl.DataFrame:
    return as_landed(simulated(devices, START, 24, **more))


@pytest.mark.parametrize("job", [names.JOB_DRIFT, names.JOB_QUALITY, names.JOB_PERFORMANCE, names.JOB_HISTORY])
def test_an_empty_platform_is_neither_red_nor_green(bench: Bench, job: str) -> None:
    """Or a newcomer's first day is full of failed runs, or of ticks that nothing stands behind."""
    told = bench.run(job, DAY.isoformat() if job == names.JOB_DRIFT else None)
    assert told.success
    assert told.materialised is None
    assert told.checks == {}
    assert told.observed is not None
    assert told.observed["evaluated"] is False
    assert told.observed["reason"]


def test_an_ordinary_day_has_not_drifted(bench: Bench) -> None:
    """Or the check wakes somebody every morning."""
    publish_champion(bench.settings, _training())
    land(bench.settings, _the_day())
    told = bench.run(names.JOB_DRIFT, DAY.isoformat())
    assert told.checks == dict.fromkeys(drift_monitor.CHECKS, True)
    assert told.materialised is not None
    page = Path(told.materialised["file"])
    assert page.stat().st_size > 1_000_000
    assert told.materialised["report"] == f"{bench.settings.api_url}/reports/drift/{page.name}"
    assert "drift_within_limits" in told.materialised["summary"]
    data: Any = report_data(bench.settings, "drift")
    assert data["day"] == DAY.isoformat()
    assert {column["column"] for column in data["columns"]} == set(FEATURE_NAMES)
    evidently = data["evidently"]
    # On the same rows the two agree; on the whole day ours differs by what a sample is off.
    drawn = {name: distance for name, distance in evidently["distances"].items() if name != "prediction"}
    assert drawn == pytest.approx(evidently["ours_on_the_same_rows"], rel=1e-3, abs=1e-6)
    assert evidently["shares"]["called fire"] == pytest.approx(data["prediction"]["called"]["distance"], abs=0.05)
    assert evidently["same_verdict_as_the_whole_day"] is True
    assert data["current_rows"] > 10_000
    assert (data["indicators"], len(data["devices"])) == ([], 6)


def test_a_day_of_other_sensors_has_drifted(bench: Bench) -> None:
    """Or a model trained for one kind of sensor goes on judging another in silence."""
    publish_champion(bench.settings, _training())
    odd = _the_day().with_columns(
        pl.col("temperature_c") + 15,
        pl.col("humidity_pct") * 0.3,
        *(pl.col(name) * 4 + 20 for name in ("pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5")),
        *(pl.lit(None, pl.Float64).alias(name) for name in ("tvoc_ppb", "raw_h2", "raw_ethanol")),
    )
    land(bench.settings, odd)
    told = bench.run(names.JOB_DRIFT, DAY.isoformat())
    assert told.success
    assert told.checks["drift_within_limits"] is False
    # The fleet has drifted, which is no oddity of any one device.
    assert told.checks["no_odd_devices"] is True
    data: Any = report_data(bench.settings, "drift")
    assert {"temperature_c", "humidity_pct", "tvoc_ppb"} <= set(data["drifted_columns"])
    sensors = {sensor["sensor"]: sensor for sensor in data["sensors"]}
    assert sensors["tvoc_ppb"]["silent"]
    assert sensors["temperature_c"]["drifted"] == ["temperature_c"]
    assert {"data", "silent sensors"} <= set(data["indicators"])


@pytest.mark.usefixtures("undrawn")
def test_one_odd_device_is_named_and_does_not_make_the_fleet_drift(bench: Bench) -> None:
    """Or one detector that somebody has put above a stove lets the whole fleet be trained anew."""
    publish_champion(bench.settings, _training())
    frame = _the_day()
    moved = pl.col("device_id") == frame["device_id"].min()
    odd = frame.with_columns(
        pl.when(moved).then(pl.col(name) * 5 + 60).otherwise(pl.col(name)).alias(name)
        for name in ("temperature_c", "pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5", "eco2_ppm")
    ).with_columns(
        pl.when(moved).then(None).otherwise(pl.col(name)).alias(name)
        for name in ("tvoc_ppb", "raw_h2", "raw_ethanol", "humidity_pct")
    )
    land(bench.settings, odd)
    told = bench.run(names.JOB_DRIFT, DAY.isoformat())
    assert told.checks["no_odd_devices"] is False
    assert told.checks["drift_within_limits"] is True
    data: Any = report_data(bench.settings, "drift")
    assert data["odd_devices"] == [frame["device_id"].min()]
    worst = data["devices"][0]
    assert worst["device"] == frame["device_id"].min()
    assert {"tvoc_ppb", "pm2_5"} <= set(worst["sensors"])


@pytest.mark.usefixtures("undrawn")
def test_a_day_in_parts_is_judged_like_the_day_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a large fleet, which is read part by part, gets another verdict than a small one."""
    publish_champion(bench.settings, _training())
    land(bench.settings, _the_day(devices=3))
    drift_monitor.drift_report(bench.settings, DAY, datetime.now(UTC))
    whole: Any = report_data(bench.settings, "drift")
    monkeypatch.setattr(drift_monitor, "ROWS_AT_ONCE", 9_000)
    drift_monitor.drift_report(bench.settings, DAY, datetime.now(UTC))
    parts: Any = report_data(bench.settings, "drift")
    assert len(parts["devices"]) == 3
    assert _numbers(parts) == pytest.approx(_numbers(whole), rel=1e-9)
    assert parts["devices"] == whole["devices"]


@pytest.mark.usefixtures("undrawn")
def test_a_model_that_calls_everything_fire_is_still_compared(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the worst of all models leaves no quiet row to compare, and so no report."""
    monkeypatch.setattr(monitoring_lake, "BIAS", 50.0)
    publish_champion(bench.settings, _training())
    land(bench.settings, _the_day(devices=2))
    told = bench.run(names.JOB_DRIFT, DAY.isoformat())
    assert told.checks["predictions_within_limits"] is False
    assert told.materialised is not None
    assert told.materialised["rows_compared"] == told.materialised["rows_of_the_day"]
    data: Any = report_data(bench.settings, "drift")
    assert data["compared"] == "all rows, as too few are not called fire"


def _numbers(data: Any) -> dict[str, float]:
    return {
        f"{column['column']} {name}": value
        for column in data["columns"]
        for name, value in column.items()
        if isinstance(value, float)
    }


@pytest.mark.usefixtures("undrawn")
def test_more_labelled_fire_than_in_training_is_target_drift(bench: Bench) -> None:
    """Or the world burns more often than the model was told, and nobody asks why."""
    publish_champion(bench.settings, _training())
    land(bench.settings, _the_day(devices=2).with_columns(fire_alarm=pl.col("event_time").dt.hour() < 8))
    told = bench.run(names.JOB_DRIFT, DAY.isoformat())
    assert told.checks["targets_within_limits"] is False
    assert told.materialised is not None
    assert told.materialised["labelled_fire_share"] == pytest.approx(1 / 3, abs=0.01)


def test_a_few_hours_make_a_report_but_no_verdict(bench: Bench) -> None:
    """Or the first hour of a new platform is compared with whole days, and fails for the time of day."""
    publish_champion(bench.settings, _training())
    land(bench.settings, as_landed(simulated(6, START, 1)))
    told = bench.run(names.JOB_DRIFT, DAY.isoformat())
    assert told.materialised is not None
    assert told.materialised["hours_covered"] == 1
    assert told.checks == {}
    assert "not evaluated" in told.materialised["summary"]


def test_a_champion_without_a_snapshot_and_a_tampered_one(bench: Bench) -> None:
    """Or drift is measured against nothing, or with a model that somebody has changed."""
    publish_champion(bench.settings, None)
    land(bench.settings, _the_day(devices=1))
    told = bench.run(names.JOB_DRIFT, DAY.isoformat())
    assert told.observed is not None
    assert "training snapshot" in told.observed["reason"]
    model = bench.settings.models_dir / "1" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(ModelRefused):
        drift_monitor.drift_report(bench.settings, DAY, datetime.now(UTC))


def test_reports_are_kept_in_a_bounded_number(bench: Bench) -> None:
    """Or the reports of a year fill the disk."""
    land(bench.settings, _the_day(devices=1))
    told = [bench.run(names.JOB_HISTORY) for _ in range(3)]
    assert [t.materialised and t.materialised["reports_removed"] for t in told] == [0, 0, 1]
    assert len(list((bench.settings.reports_dir / "history").glob("*.html"))) == 2


def test_quality_of_the_last_day(bench: Bench) -> None:
    """Or silence, repeats and nonsense in the readings stay unseen until a fire."""
    now = datetime.now(UTC)
    hours = (now - today()).total_seconds() / 3600 + 24
    good = as_landed(simulated(4, today() - timedelta(days=1), hours))
    land(bench.settings, good)
    healthy = monitors.data_quality(bench.settings, now, lambda: {})
    assert isinstance(healthy, monitors.Outcome)
    assert all(verdict.passed for verdict in healthy.verdicts), healthy.verdicts
    assert (
        healthy.numbers["readings"]
        == good.filter(pl.col("append_time").is_between(*monitors.quality_window(now), closed="left")).height
    )

    flood = monitors.data_quality(bench.settings, now, lambda: {"not_json": 10**6})
    assert isinstance(flood, monitors.Outcome)
    assert {verdict.name for verdict in flood.verdicts if not verdict.passed} == {
        "score_at_least_70",
        "rejects_below_10",
    }

    told = bench.run(names.JOB_QUALITY)
    # No broker runs here: validity is unknown, which must not read as "no rejects".
    assert "rejects_below_10" not in told.checks
    assert told.checks["score_at_least_70"]
    assert told.materialised is not None
    assert told.materialised["score"] > 95


def test_a_fleet_gone_silent_fails_the_checks(bench: Bench) -> None:
    """Or a landing that stands still for a day scores 100."""
    land(bench.settings, as_landed(simulated(3, datetime.now(UTC) - timedelta(hours=30), 10)))
    found = monitors.data_quality(bench.settings, datetime.now(UTC), lambda: {})
    assert isinstance(found, monitors.Outcome)
    failed = {verdict.name for verdict in found.verdicts if not verdict.passed}
    assert {"completeness_at_least_90", "no_stale_devices", "score_at_least_70"} <= failed


def test_performance_on_readings_of_known_truth(bench: Bench) -> None:
    """Or a model that has stopped finding fires keeps its place."""
    publish_champion(bench.settings, None)
    land(bench.settings, _the_day(fires_per_device_day=6))
    told = bench.run(names.JOB_PERFORMANCE)
    assert told.materialised is not None
    assert told.materialised["accuracy"] > 0.9
    assert told.materialised["recall"] > 0.5
    assert told.checks["accuracy_at_least_70"]
    assert told.checks["api_answers_within_5_s"] is False
    data: Any = report_data(bench.settings, "performance")
    assert data["basis"] == performance_monitor.ANEW
    assert data["truth"] == {"simulator": "simulated: the simulator knows whether it lit a fire"}
    assert data["health"]["unmeasured"] == ["alarms", "responsiveness"]
    end, start = (datetime.fromisoformat(data[name]) for name in ("window_end", "window_start"))
    assert end - start == timedelta(hours=12)


def test_what_the_detector_logged_is_judged_and_not_what_the_model_would_say_today(bench: Bench) -> None:
    """Or a detector that served an old or broken model all night is judged by a model it never had."""
    publish_champion(bench.settings, None)
    frame = _the_day(devices=2, fires_per_device_day=6)
    land(bench.settings, frame)
    late = frame["event_time"] > frame["event_time"].max() - timedelta(hours=6)
    # The champion, version 1, wrote nonsense for the last six hours; version 0 before it was right.
    log_predictions(bench.settings, frame.filter(late), (~frame.filter(late)["fire_alarm"]).cast(pl.Float64))
    log_predictions(bench.settings, frame.filter(~late), frame.filter(~late)["fire_alarm"].cast(pl.Float64), "0")
    told = bench.run(names.JOB_PERFORMANCE)
    assert told.materialised is not None
    assert told.materialised["accuracy"] == 0.0
    assert told.materialised["champion"] == "1"
    assert told.materialised["rows"] == late.sum()
    assert told.materialised["scoring_seconds"] == pytest.approx(0.2)
    assert told.checks["accuracy_at_least_70"] is False
    assert told.checks["scores_within_5_s"] is True
    data: Any = report_data(bench.settings, "performance")
    assert data["basis"] == performance_monitor.LOGGED
    assert {version: entry["accuracy"] for version, entry in data["by_version"].items()} == {"0": 1.0, "1": 0.0}


def test_an_operators_verdict_overrules_what_a_device_says(bench: Bench) -> None:
    """Or a device that calls steam a fire makes the model wrong that did not fall for it."""
    publish_champion(bench.settings, None)
    frame = _the_day(devices=1).with_columns(source=pl.lit("device"), fire_alarm=pl.lit(False))
    begins, ends = (frame["event_time"].min() + timedelta(hours=hour) for hour in (20, 21))
    covered = frame["event_time"].is_between(begins, ends)
    land(bench.settings, frame.with_columns(fire_alarm=pl.Series(covered)))
    log_predictions(bench.settings, frame, 0.01)
    log_alarm(bench.settings, frame["device_id"][0], begins, ends, "false_alarm")
    told = bench.run(names.JOB_PERFORMANCE)
    assert told.materialised is not None
    assert told.materialised["accuracy"] == 1.0
    assert told.materialised["alarms_judged_false"] == 1
    data: Any = report_data(bench.settings, "performance")
    assert data["by_source"]["operator"]["rows"] == covered.sum()
    assert data["readings_of_judged_alarms"]["rows"] == covered.sum()


def test_verdicts_alone_make_no_accuracy(bench: Bench) -> None:
    """Or one false alarm a year on devices without labels reads as a model that is always wrong."""
    publish_champion(bench.settings, None)
    frame = _the_day(devices=1).with_columns(source=pl.lit("device"), fire_alarm=pl.lit(None, pl.Boolean))
    land(bench.settings, frame)
    begins = frame["event_time"].min() + timedelta(hours=20)
    log_alarm(bench.settings, frame["device_id"][0], begins, begins + timedelta(minutes=5), "false_alarm")
    told = bench.run(names.JOB_PERFORMANCE)
    assert told.materialised is not None
    assert "accuracy" not in told.materialised
    assert told.materialised["alarms_judged_false"] == 1
    assert set(told.checks) == {"api_answers_within_5_s"}


def test_fires_missed_and_the_delay_of_alarms_are_counted(bench: Bench) -> None:
    """Or a detector that answers after ten minutes, or never, looks as good as its rows."""
    publish_champion(bench.settings, None)
    frame = _the_day(devices=1)
    noon = frame["event_time"].min().replace(hour=13, minute=0, second=0, microsecond=0)
    fires = [(noon + timedelta(hours=h), noon + timedelta(hours=h, minutes=10)) for h in (0, 2, 4)]
    burns = pl.any_horizontal(pl.col("event_time").is_between(*fire) for fire in fires)
    land(bench.settings, frame.with_columns(fire_alarm=burns))
    device = frame["device_id"][0]
    log_alarm(bench.settings, device, fires[0][0] + timedelta(seconds=30), fires[0][1])
    log_alarm(bench.settings, device, fires[1][0] + timedelta(seconds=50), fires[1][1])
    quiet = noon + timedelta(hours=6)
    log_alarm(bench.settings, device, quiet, quiet + timedelta(minutes=1))
    told = bench.run(names.JOB_PERFORMANCE)
    assert told.materialised is not None
    assert (told.materialised["fires_labelled"], told.materialised["fires_missed"]) == (3, 1)
    assert told.materialised["alarm_delay_s"] == pytest.approx(40, abs=10)
    days = (12 * 60 - 33) / 1440
    assert told.materialised["false_alarms_per_device_day"] == pytest.approx(1 / days, rel=0.02)
    data: Any = report_data(bench.settings, "performance")
    assert data["health"]["parts"]["alarms"] == pytest.approx(2 / 3)


def test_many_signs_of_drift_are_told_beside_the_performance(bench: Bench) -> None:
    """Or the two reports say that all is well and that nothing is, and nobody reads both."""
    publish_champion(bench.settings, None)
    land(bench.settings, _the_day(devices=1))
    assert "drift_indicators_at_most_3" not in bench.run(names.JOB_PERFORMANCE).checks
    now = datetime.now(UTC)
    reports = monitors.store(bench.settings)
    signs = ["data", "scores", "calls", "target"]
    # Of the real yesterday: older reports say nothing of the model as it is.
    yesterday = (today() - timedelta(days=1)).date()
    reports.write("drift", "", {"day": yesterday, "champion": "1", "indicators": signs}, moment=now)
    assert bench.run(names.JOB_PERFORMANCE).checks["drift_indicators_at_most_3"] is False
    reports.write("drift", "", {"day": yesterday, "champion": "0", "indicators": signs}, moment=now)
    assert "drift_indicators_at_most_3" not in bench.run(names.JOB_PERFORMANCE).checks


def test_a_model_that_is_wrong_fails_gravely(bench: Bench) -> None:
    """Or a useless champion is a yellow mark among others."""
    publish_champion(bench.settings, None)
    frame = _the_day(devices=3)
    land(bench.settings, frame.with_columns(fire_alarm=pl.lit(True)))
    outcome = performance_monitor.model_performance(bench.settings, datetime.now(UTC))
    assert isinstance(outcome, monitors.Outcome)
    verdict = next(v for v in outcome.verdicts if v.name == "accuracy_at_least_70")
    assert (verdict.passed, verdict.severity) == (False, "ERROR")


def test_readings_without_truth_are_not_scored(bench: Bench) -> None:
    """Or live devices, which know no truth, count as a model that is always right."""
    publish_champion(bench.settings, None)
    land(bench.settings, _the_day(devices=1).with_columns(fire_alarm=pl.lit(None, pl.Boolean)))
    told = bench.run(names.JOB_PERFORMANCE)
    assert told.observed is not None
    assert "known truth" in told.observed["reason"]


def test_history_of_the_whole_lake(bench: Bench) -> None:
    """Or the weekly report leaves out days."""
    land(bench.settings, as_landed(simulated(2, START, 72)))
    told = bench.run(names.JOB_HISTORY)
    assert told.materialised is not None
    assert (told.materialised["days"], told.materialised["devices"]) == (3, 2)
    assert told.checks == {"no_repeated_recordings": True}
    data: Any = report_data(bench.settings, "history")
    assert len(data["by_hour"]) == 24
    assert data["rows"] == told.materialised["readings"]
    assert "what it says" in told.materialised["summary"]
    assert "Source simulator" in told.materialised["summary"]


def test_a_repeated_recording_fails_the_check_by_name(bench: Bench) -> None:
    """Or somebody trains on copies because a check said no more than that it failed."""
    once = simulated(1, START, 20)
    again = once.with_columns(pl.col("event_time") + timedelta(hours=40), device_id=pl.lit("copy"))
    land(bench.settings, as_landed(pl.concat([once, again])))
    told = bench.run(names.JOB_HISTORY)
    assert told.checks == {"no_repeated_recordings": False}
    assert told.materialised is not None
    assert told.materialised["repeated_recordings"] == 1
    assert "copy repeats sim-0001" in told.materialised["summary"]


def test_a_sample_is_bounded_steady_and_fair() -> None:
    """Or a day of a large fleet is loaded whole, or always the same devices are looked at."""
    frame = pl.DataFrame(
        {"topic_id": ["t"] * 20_000, "partition": [0] * 20_000, "offset": range(20_000)},
    ).with_columns(device=pl.col("offset") % 20)
    some, total = monitors.sample(frame.lazy(), 2_000)
    assert total == 20_000
    assert 1_700 < some.height < 2_300
    assert some.group_by("device").len()["len"].min() > 50  # type: ignore[operator] # a number: the group is not empty
    again, _ = monitors.sample(frame.sample(fraction=1.0, shuffle=True, seed=1).lazy(), 2_000)
    assert again.sort("offset").equals(some)
    assert monitors.sample(frame.lazy(), 50_000)[0].height == 20_000


def test_schedules_run_by_default_in_the_zone_of_the_settings(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """Or monitoring waits for somebody to switch it on, at a time that nobody meant."""
    defs = monitoring.definitions(settings_for(tmp_path, SMOKE_TIMEZONE="Europe/Vienna"))
    dg.Definitions.validate_loadable(defs)
    crons = {
        "drift_schedule": "30 6 * * *",
        "data_quality_schedule": "0 */6 * * *",
        "model_performance_schedule": "0 */12 * * *",
        "history_schedule": "0 3 * * 0",
    }
    for name, cron in crons.items():
        schedule = defs.resolve_schedule_def(name)
        assert schedule.cron_schedule == cron
        assert schedule.execution_timezone == "Europe/Vienna"
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
        job = defs.resolve_job_def(schedule.job_name)
        assert job.tags[names.KIND_TAG] == "batch"


@pytest.mark.parametrize(
    ("moment", "day"),
    [("2026-03-02T06:30:00+00:00", "2026-03-01"), ("2026-03-02T06:30:00+12:00", "2026-02-28")],
)
def test_the_drift_schedule_takes_the_last_complete_utc_day(
    tmp_path: Path, settings_for: Callable[..., Settings], moment: str, day: str
) -> None:
    """Or east of Greenwich a day is judged before it is over."""
    defs = monitoring.definitions(settings_for(tmp_path))
    context = dg.build_schedule_context(
        scheduled_execution_time=datetime.fromisoformat(moment), repository_def=defs.get_repository_def()
    )
    found = defs.resolve_schedule_def("drift_schedule").evaluate_tick(context)
    assert [request.partition_key for request in found.run_requests or []] == [day]
    assert monitoring.last_complete_day(datetime.fromisoformat(moment)) == date.fromisoformat(day)


def test_the_real_api_is_probed(bench: Bench, free_port: Callable[[], int]) -> None:
    """Or response times are those of a stand-in, and an API that serves an old model passes."""
    publish_champion(bench.settings, None)
    with _serving(create_app(bench.settings), free_port()) as url:
        probes = performance_monitor.probe_api(url, "1")
        assert [probe.fault for probe in probes] == [""] * (2 * performance_monitor.PROBES)
        assert all(probe.seconds is not None and probe.seconds > 0 for probe in probes)
        stale = performance_monitor.probe_api(url, "2")
        assert {probe.fault for probe in stale if probe.path == "/health"} == {"it serves model 1, the champion is 2"}


def test_another_program_on_the_port_is_not_the_api(free_port: Callable[[], int]) -> None:
    """Or whatever answers on port 5000 passes for a healthy API."""
    other = FastAPI()
    other.get("/health")(lambda: "ok")
    with _serving(other, free_port()) as url:
        faults = {probe.path: probe.fault for probe in performance_monitor.probe_api(url, "1")}
    assert faults == {"/health": "what answers is not the platform's API", "/predict/sample": "status 404"}


@contextmanager
def _serving(app: FastAPI, port: int) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server was not ready in 30 s"
        thread.join(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
