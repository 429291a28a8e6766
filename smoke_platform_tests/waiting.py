"""Waiting for a condition, with a deadline: what every test that watches another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Returns when the condition holds; fails after so many seconds, which a busy machine may need."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {seconds:g} s"
        time.sleep(0.02)
