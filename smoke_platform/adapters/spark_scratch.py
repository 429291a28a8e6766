"""Where a Spark session keeps what it needs only while it runs: a folder of its own, so that a crash leaves nothing.

Belongs here: making, locking and removing these folders, those of crashed sessions too. Does not: the session
(``adapters.spark``), the checkpoint of a landing (``streaming.spark_landing``).

Spark removes its folders when its JVM ends in good order, and never those of a JVM that was killed. A session's folder
is locked for as long as its process lives: the kernel drops the lock however that dies, so that the next session
knows what nobody uses any longer, and leaves alone what a history or ``smoke spark score`` is at work with.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "run-"
_LOCK = "lock"
#: Folders without a lock are of earlier versions, whose runs ended after an hour.
_STRAY_AFTER_S = 86_400.0


class Scratch:
    """A folder below ``parent`` that is this process's until ``remove``, or until the process dies.

    What sessions that died have left there is removed first.
    """

    def __init__(self, parent: Path) -> None:
        with _alone(parent):
            _remove_left(parent)
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Keeps others from taking a folder that is made, and not locked yet, for one that was left."""
    parent.mkdir(parents=True, exist_ok=True)
    file = os.open(parent / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _remove_left(parent: Path) -> None:
    """Removes below ``parent`` what sessions that died have left, and nothing of a living one."""
    for folder in parent.iterdir():
        if folder.is_dir() and not _is_used(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_used(folder: Path) -> bool:
    try:
        if not folder.name.startswith(_PREFIX):
            return time.time() - folder.stat().st_mtime < _STRAY_AFTER_S
        file = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        # Whoever died while it was being made or removed; it is locked before another one may look.
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
