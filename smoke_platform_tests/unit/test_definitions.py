"""The code location as a whole: what an operator finds in Dagster's UI."""

from __future__ import annotations

import subprocess
import sys

import dagster as dg
import pytest

from smoke_platform.orchestration import names
from smoke_platform.orchestration.build import build_definitions

#: Job -> cron string, as the README's table says it.
SCHEDULES = {
    names.JOB_TRAINING: "0 2 * * *",
    names.JOB_SHADOW: "20 * * * *",
    names.JOB_PRUNE: "0 4 * * *",
    names.JOB_BATCH: "0 6 * * *",
    names.JOB_DRIFT: "30 6 * * *",
    names.JOB_QUALITY: "0 */6 * * *",
    names.JOB_PERFORMANCE: "0 */12 * * *",
    names.JOB_HISTORY: "0 3 * * 0",
}


@pytest.fixture(scope="module")
def definitions(tmp_path_factory, module_settings) -> dg.Definitions:
    return build_definitions(module_settings)


@pytest.fixture(scope="module")
def module_settings(tmp_path_factory):
    from smoke_platform.settings import load_settings

    home = tmp_path_factory.mktemp("home")
    return load_settings({"SMOKE_HOME": str(home), "SMOKE_TIMEZONE": "Europe/Vienna"}, home / "no.env")


def _schedules(definitions: dg.Definitions) -> dict[str, dg.ScheduleDefinition]:
    return {schedule.job_name: schedule for schedule in definitions.get_repository_def().schedule_defs}


def test_the_code_location_loads(definitions):
    """Dagster's UI would show an error in place of the assets."""
    dg.Definitions.validate_loadable(definitions)


def test_every_schedule_runs_by_default_in_the_set_time_zone(definitions):
    """The nightly training or the batch would wait for somebody to switch it on, or come at another hour."""
    found = _schedules(definitions)
    assert {job: schedule.cron_schedule for job, schedule in found.items()} == SCHEDULES
    assert {schedule.execution_timezone for schedule in found.values()} == {"Europe/Vienna"}
    assert {schedule.default_status for schedule in found.values()} == {dg.DefaultScheduleStatus.RUNNING}


def test_training_comes_every_n_hours_where_that_is_set(tmp_path):
    """ML_TRAINING_INTERVAL_HOURS would be read and ignored."""
    from smoke_platform.settings import load_settings

    settings = load_settings({"SMOKE_HOME": str(tmp_path), "ML_TRAINING_INTERVAL_HOURS": "6"}, tmp_path / "no.env")
    assert _schedules(build_definitions(settings))[names.JOB_TRAINING].cron_schedule == "0 */6 * * *"


def test_one_graph_leads_from_the_topic_to_every_report(definitions):
    """An operator could not see what a broken stage takes down with it."""
    graph = definitions.resolve_asset_graph()
    below = {names.TOPIC_READINGS}
    frontier = [names.TOPIC_READINGS]
    while frontier:
        children = graph.get(frontier.pop()).child_keys - below
        below |= children
        frontier += children
    stages = [
        names.READINGS,
        names.FEATURES,
        names.TRAINING_EXAMPLES,
        names.CANDIDATE_MODEL,
        names.CHAMPION_MODEL,
        names.EXTERNAL_VALIDATION,
        names.CHALLENGER_MODEL,
        names.SHADOW_COMPARISON,
        names.DRIFT_REPORT,
        names.DATA_QUALITY,
        names.MODEL_PERFORMANCE,
        names.HISTORY,
    ]
    assert [key for key in stages if key not in below] == []


def test_every_asset_stands_in_one_of_the_four_groups_with_a_description(definitions):
    """The graph would fall apart into unnamed heaps."""
    graph = definitions.resolve_asset_graph()
    groups = {names.GROUP_LANDING, names.GROUP_FEATURES, names.GROUP_MODELS, names.GROUP_MONITORING}
    nodes = [graph.get(key) for key in graph.get_all_asset_keys()]
    assert {node.group_name for node in nodes} == groups
    assert [node.key for node in nodes if not node.description] == []


def test_every_job_but_landing_leaves_landing_its_slot(definitions):
    """Batch runs would fill the queue while readings wait."""
    jobs = {job.name: job for job in definitions.resolve_all_job_defs()}
    batch = {name for name in jobs if not name.startswith("__") and name != names.JOB_LANDING}
    assert batch == {*SCHEDULES, names.JOB_ROLLBACK}
    for name in batch:
        assert jobs[name].run_tags.get(names.KIND_TAG) == "batch", name


def test_loading_the_code_location_imports_nothing_heavy():
    """Every run would take seconds longer to start, and hold hundreds of megabytes more."""
    heavy = ["sklearn", "evidently", "mlflow", "pyspark", "skl2onnx", "pandas", "dbt.cli.main"]
    program = (
        "import sys\nfrom smoke_platform.orchestration.build import build_definitions\nbuild_definitions()\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip().splitlines()[-1] == "[]"
