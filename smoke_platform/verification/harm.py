"""``kill -9`` at seeded moments: what a power cut, an operator's mistake or the kernel's memory killer would do.

Belongs here: whom to kill and when. Does not: bringing anything back, which is the platform's own business.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from smoke_platform.domain.errors import SmokeError


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill that happened: ``run_id`` names the Dagster run it hit, where it hit one."""

    target: str
    pid: int
    after_s: float
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Something to kill: its name, and how its process (and the Dagster run in it) is found at that moment."""

    name: str
    find: Callable[[], tuple[int, str] | None]


class Harm:
    """Kills the targets in turn, ``kills`` times in all, with seeded pauses of ``shortest_s`` to ``longest_s``.

    A target that is not there at its moment (still coming back) is waited for, so that no kill is spent on nothing.
    """

    def __init__(
        self,
        targets: list[Target],
        kills: int,
        seed: int,
        *,
        shortest_s: float = 1.0,
        longest_s: float = 9.0,
        say: Callable[[str], None],
    ) -> None:
        self._targets = targets
        self._kills = kills
        self._chance = random.Random(seed)  # noqa: S311 - a seeded, repeatable choice, not a secret
        self._pause = (shortest_s, longest_s)
        self._say = say
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="harm", daemon=True)
        self.done: list[Kill] = []

    def start(self) -> None:
        self._began = time.monotonic()
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Returns when all kills were made, at the latest after so many seconds."""
        self._thread.join(seconds)

    def stop(self) -> None:
        """Ends it, whether or not all kills were made."""
        self._stop.set()
        self._thread.join(30)

    def _work(self) -> None:
        for number in range(self._kills):
            target = self._targets[number % len(self._targets)]
            if self._stop.wait(self._chance.uniform(*self._pause)):
                return
            while not self._strike(target):
                if self._stop.wait(0.1):
                    return

    def _strike(self, target: Target) -> bool:
        """Kills the target if it is there now; one that ends by itself between the look and the blow was not killed."""
        found = self._find(target)
        if found is None:
            return False
        pid, run_id = found
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        kill = Kill(target.name, pid, time.monotonic() - self._began, run_id)
        self.done.append(kill)
        self._say(f"kill -9 {target.name} (pid {pid}) after {kill.after_s:.1f} s")
        return True

    @staticmethod
    def _find(target: Target) -> tuple[int, str] | None:
        try:
            return target.find()
        except (SmokeError, OSError):
            return None  # what would tell us is down as well; ask again
