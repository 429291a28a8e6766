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

from smoke_platform.adapters.scorer import ModelRefused
from smoke_platform.domain.features import FEATURE_NAMES
from smoke_platform.orchestration import monitoring, monitors, names
from smoke_platform.serving.app import create_app
from smoke_platform.settings import Settings
from smoke_platform_tests.monitoring_lake import as_landed, land, publish_champion, report_data, simulated, today

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


def _training() -> pl.DataFrame:
    return simulated(8, today() - timedelta(days=9), 24, fires_per_device_day=6)


def _yesterday(devices: int = 6, **more: Any) -> pl.DataFrame:
    return as_landed(simulated(devices, today() - timedelta(days=1), 24, **more))


YESTERDAY = (today() - timedelta(days=1)).date()


@pytest.mark.parametrize("job", [names.JOB_DRIFT, names.JOB_QUALITY, names.JOB_PERFORMANCE, names.JOB_HISTORY])
def test_an_empty_platform_is_neither_red_nor_green(bench: Bench, job: str) -> None:
    """Or a newcomer's first day is full of failed runs, or of ticks that nothing stands behind."""
    told = bench.run(job, YESTERDAY.isoformat() if job == names.JOB_DRIFT else None)
    assert told.success
    assert told.materialised is None
    assert told.checks == {}
    assert told.observed is not None
    assert told.observed["evaluated"] is False
    assert told.observed["reason"]


def test_an_ordinary_day_has_not_drifted(bench: Bench) -> None:
    """Or the check wakes somebody every morning."""
    publish_champion(bench.settings, _training())
    land(bench.settings, _yesterday())
    told = bench.run(names.JOB_DRIFT, YESTERDAY.isoformat())
    assert told.checks == {"drift_within_limits": True}
    assert told.materialised is not None
    page = Path(told.materialised["file"])
    assert page.stat().st_size > 1_000_000
    assert told.materialised["report"] == f"{bench.settings.api_url}/reports/drift/{page.name}"
    assert "drift_within_limits" in told.materialised["summary"]
    data: Any = report_data(bench.settings, "drift")
    assert data["day"] == YESTERDAY.isoformat()
    assert {column["column"] for column in data["columns"]} == set(FEATURE_NAMES)
    ours = {c["column"]: c["distance"] for c in data["columns"] if c["distance"] is not None}
    assert data["evidently"]["distances"] == pytest.approx(ours, rel=1e-3, abs=1e-6)


def test_a_day_of_other_sensors_has_drifted(bench: Bench) -> None:
    """Or a model trained for one kind of sensor goes on judging another in silence."""
    publish_champion(bench.settings, _training())
    odd = _yesterday().with_columns(
        pl.col("temperature_c") + 15,
        pl.col("humidity_pct") * 0.3,
        *(pl.col(name) * 4 + 20 for name in ("pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5")),
        *(pl.lit(None, pl.Float64).alias(name) for name in ("tvoc_ppb", "raw_h2", "raw_ethanol")),
    )
    land(bench.settings, odd)
    told = bench.run(names.JOB_DRIFT, YESTERDAY.isoformat())
    assert told.success
    assert told.checks == {"drift_within_limits": False}
    data: Any = report_data(bench.settings, "drift")
    assert {"temperature_c", "humidity_pct", "tvoc_ppb"} <= set(data["drifted_columns"])


def test_a_few_hours_make_a_report_but_no_verdict(bench: Bench) -> None:
    """Or the first hour of a new platform is compared with whole days, and fails for the time of day."""
    publish_champion(bench.settings, _training())
    land(bench.settings, as_landed(simulated(6, today() - timedelta(hours=24), 1)))
    told = bench.run(names.JOB_DRIFT, YESTERDAY.isoformat())
    assert told.materialised is not None
    assert told.materialised["hours_covered"] == 1
    assert told.checks == {}
    assert "not evaluated" in told.materialised["summary"]


def test_a_champion_without_a_snapshot_and_a_tampered_one(bench: Bench) -> None:
    """Or drift is measured against nothing, or with a model that somebody has changed."""
    publish_champion(bench.settings, None)
    land(bench.settings, _yesterday(devices=1))
    told = bench.run(names.JOB_DRIFT, YESTERDAY.isoformat())
    assert told.observed is not None
    assert "training snapshot" in told.observed["reason"]
    model = bench.settings.models_dir / "1" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(ModelRefused):
        monitors.drift_report(bench.settings, YESTERDAY, datetime.now(UTC))


def test_reports_are_kept_in_a_bounded_number(bench: Bench) -> None:
    """Or the reports of a year fill the disk."""
    land(bench.settings, _yesterday(devices=1))
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
    land(bench.settings, _yesterday(fires_per_device_day=6))
    told = bench.run(names.JOB_PERFORMANCE)
    assert told.materialised is not None
    assert told.materialised["accuracy"] > 0.9
    assert told.materialised["recall"] > 0.5
    assert told.checks["accuracy_at_least_70"]
    assert told.checks["api_answers_within_5_s"] is False
    data: Any = report_data(bench.settings, "performance")
    assert data["truth"] == {"simulator": "simulated: the simulator knows whether it lit a fire"}
    assert data["health"]["unmeasured"] == ["responsiveness"]
    end, start = (datetime.fromisoformat(data[name]) for name in ("window_end", "window_start"))
    assert end - start == timedelta(hours=12)


def test_a_model_that_is_wrong_fails_gravely(bench: Bench) -> None:
    """Or a useless champion is a yellow mark among others."""
    publish_champion(bench.settings, None)
    frame = _yesterday(devices=3)
    land(bench.settings, frame.with_columns(fire_alarm=pl.lit(True)))
    outcome = monitors.model_performance(bench.settings, datetime.now(UTC))
    assert isinstance(outcome, monitors.Outcome)
    verdict = next(v for v in outcome.verdicts if v.name == "accuracy_at_least_70")
    assert (verdict.passed, verdict.severity) == (False, "ERROR")


def test_readings_without_truth_are_not_scored(bench: Bench) -> None:
    """Or live devices, which know no truth, count as a model that is always right."""
    publish_champion(bench.settings, None)
    land(bench.settings, _yesterday(devices=1).with_columns(fire_alarm=pl.lit(None, pl.Boolean)))
    told = bench.run(names.JOB_PERFORMANCE)
    assert told.observed is not None
    assert "known truth" in told.observed["reason"]


def test_history_of_the_whole_lake(bench: Bench) -> None:
    """Or the weekly report leaves out days."""
    land(bench.settings, as_landed(simulated(2, today() - timedelta(days=4), 72)))
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
    once = simulated(1, today() - timedelta(days=4), 20)
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
        probes = monitors.probe_api(url, "1")
        assert [probe.fault for probe in probes] == [""] * (2 * monitors.PROBES)
        assert all(probe.seconds is not None and probe.seconds > 0 for probe in probes)
        stale = monitors.probe_api(url, "2")
        assert {probe.fault for probe in stale if probe.path == "/health"} == {"it serves model 1, the champion is 2"}


def test_another_program_on_the_port_is_not_the_api(free_port: Callable[[], int]) -> None:
    """Or whatever answers on port 5000 passes for a healthy API."""
    other = FastAPI()
    other.get("/health")(lambda: "ok")
    with _serving(other, free_port()) as url:
        faults = {probe.path: probe.fault for probe in monitors.probe_api(url, "1")}
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
