"""A Spark session's scratch folder: gone when it ends, gone after a crash, and never taken from one that works."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smoke_platform.adapters import spark
from smoke_platform.adapters.spark_scratch import Scratch
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings

HOLDER = """
import sys, time
from pathlib import Path
from smoke_platform.adapters.spark_scratch import Scratch
print(Scratch(Path(sys.argv[1])).folder, flush=True)
time.sleep(600)
"""


def test_what_a_crash_left_goes_and_what_lives_stays(tmp_path: Path) -> None:
    """A disk would fill with the shuffles of each crash; or a history would lose its own while it works."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        theirs = Path(holder.stdout.readline().strip())
        (theirs / "blockmgr-1").mkdir()
        mine = Scratch(tmp_path)
        assert theirs.is_dir()
        assert mine.folder.is_dir()
    finally:
        holder.kill()
        holder.communicate()
    Scratch(tmp_path).remove()
    assert not theirs.exists()
    assert mine.folder.is_dir()
    mine.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_folders_of_earlier_versions_go_after_a_day(tmp_path: Path) -> None:
    """What was left before the folders had a lock would stay for ever; a run may still be at work with a fresh one."""
    for name, age_s in (("spark-old", 90_000), ("blockmgr-old", 90_000), ("spark-fresh", 60)):
        (tmp_path / name / "deep").mkdir(parents=True)
        moment = time.time() - age_s
        os.utime(tmp_path / name, (moment, moment))
    Scratch(tmp_path).remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "spark-fresh"]


def test_a_session_that_does_not_start_leaves_nothing(
    tmp_path: Path, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that is wrong is tried again and again, by the sensor too."""
    settings = settings_for(tmp_path)
    scratch = settings.home / "spark" / "tmp"

    def refuse(*_: object) -> object:
        assert len(list(scratch.glob("run-*"))) == 1
        raise SmokeError("no")

    monkeypatch.setattr(spark, "configuration", lambda *_, **__: {})
    monkeypatch.setattr(spark, "_opened", refuse)
    with pytest.raises(SmokeError, match="no"):
        spark.open_session(settings, "test")
    assert not list(scratch.glob("run-*"))


def test_a_worker_keeps_applications_for_a_day(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """A landing that starts each hour leaves an application each time; a week of them fills a worker's disk."""
    command = spark.worker_command(settings_for(tmp_path), "spark://x:1", "x", 0)
    assert "-Dspark.worker.cleanup.appDataTtl=86400" in command
    assert command.index("-Dspark.worker.cleanup.appDataTtl=86400") < command.index(
        "org.apache.spark.deploy.worker.Worker"
    )
