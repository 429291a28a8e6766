"""What a detector decides of itself without a broker; what it does with one is tested with a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smoke_platform.domain.detection import Engine
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings
from smoke_platform.streaming import detector as module
from smoke_platform.streaming.detector import STALLED_S, Detector


def test_the_time_in_which_a_group_decides_is_no_standstill(
    tmp_path: Path, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector would end in the middle of a fire because another replica was lost."""
    clock = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    detector: Any = Detector(settings_for(tmp_path), "one")
    # Stand-ins for what speaks with a broker: readings wait, it answers, and nothing is fetched.
    detector._engine = Engine("topic")
    detector._probe = SimpleNamespace(answers=True, lag=lambda _engine: 7, partitions=[])
    detector._live = SimpleNamespace(assign=lambda _positions: None)
    detector._out = SimpleNamespace(begin_snapshots=lambda _partitions: None)
    detector._require_progress(clock[0])
    clock[0] += 3 * STALLED_S
    detector.assigned(set(), set())
    detector._require_progress(clock[0])
    clock[0] += STALLED_S + 1
    with pytest.raises(SmokeError, match="7 readings wait"):
        detector._require_progress(clock[0])
