"""The whole platform, proved as a person would prove it: a small, seeded part of ``make prove``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMOKE = Path(sys.executable).with_name("smoke")


@pytest.mark.end_to_end
@pytest.mark.timeout(900)
def test_a_private_platform_is_proved_while_its_parts_are_killed(tmp_path, cache_dir):
    """Readings would be lost or doubled by a crash, or a stage be joined to the next in name only."""
    environment = {**os.environ, "SMOKE_CACHE_DIR": str(cache_dir)}
    command = [str(SMOKE), "verify", "--poison", "120", "--kills", "3", "--seed", "5", "--json"]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    findings = {finding["what"]: finding for finding in json.loads(answer.stdout or "[]")}
    wrong = {what: finding["found"] for what, finding in findings.items() if not finding["ok"]}
    assert (answer.returncode, wrong) == (0, {}), answer.stderr[-3000:]
    kills = findings["kill -9 while readings flowed"]["kills"]
    assert {kill["target"] for kill in kills} == {"streaming run", "broker", "Dagster daemon"}
    assert findings["acknowledged readings = landed readings"]["acknowledged"] > 5_000
    assert findings["acknowledged bad messages = dead letters"]["acknowledged"] == 120


def test_kills_are_refused_on_the_running_platform(tmp_path):
    """A proof would take down the platform that people rely on."""
    command = [str(SMOKE), "verify", "--running", "--kills", "1"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "--kills" in answer.stderr
