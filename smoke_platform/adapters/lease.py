"""The lease: at most one landing run at a time on this machine, held by the kernel and not by good manners.

Belongs here: taking, keeping, probing and breaking the lease. Does not: who may start a run (``orchestration.landing``)
or what the run does. Correctness of the lake does not rest on it (a second writer is refused by the table itself); it
saves the work of the second and tells the sensor whether the first lives.

The lease is an ``flock`` on a file: the kernel drops it when the process dies, however it dies. The file's text is a
heartbeat. Landing that spreads over several hosts needs the same methods on a database that all of them reach.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import psutil

from smoke_platform.domain.errors import SmokeError

#: Start times of one process as two readers see them differ by rounding only.
_SAME_START_S = 0.05


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """What the holder last wrote. Times are epoch seconds.

    Attributes:
        run_id: Dagster's id of the run, or a name of its own for one started by hand.
        started: when the process with ``pid`` started; tells it from a later one with the same pid.
        at: when the beat was written.
        progressed: when a run last committed something, that of an earlier holder included; 0 before the first.
        ended: the holder left in good order.
    """

    run_id: str
    pid: int
    started: float
    at: float
    progressed: float = 0.0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class LeaseState:
    """``held``: a living process holds the lease. ``beat``: the last one written, ``None`` where there is none."""

    held: bool
    beat: Beat | None


class LeaseHeld(SmokeError):
    """Another process holds the lease."""


class Lease:
    """The lease at ``path``, for one process; a context manager that takes it and gives it back.

    Raises:
        LeaseHeld: on entering, when another process holds it for longer than ``patience_s``.
    """

    def __init__(self, path: Path, run_id: str, patience_s: float = 2.0) -> None:
        self._path = path
        self._run_id = run_id
        self._patience_s = patience_s
        self._file: int | None = None
        self._started = psutil.Process().create_time()
        self._progressed = 0.0

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + self._patience_s
        while not _lock(file, fcntl.LOCK_EX):
            # A probe holds it for a moment, so the first refusal does not yet mean a second writer.
            if time.monotonic() > deadline:
                beat = _read(file)
                os.close(file)
                who = f"run {beat.run_id}, process {beat.pid}" if beat else "another process"
                raise LeaseHeld(
                    f"landing is already running ({who} holds {self._path})",
                    "leave it to work, or `smoke land pause` first",
                )
            time.sleep(0.02)
        before = _read(file)
        self._progressed = before.progressed if before else 0.0
        self._file = file
        self.beat()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._write(ended=True)
            os.close(self._file)
            self._file = None

    def beat(self, *, progressed: bool = False) -> None:
        """Writes a heartbeat; ``progressed`` says that something was committed since the last one."""
        if progressed:
            self._progressed = time.time()
        self._write(ended=False)

    def _write(self, *, ended: bool) -> None:
        if self._file is None:
            raise RuntimeError("the lease is not held")
        beat = Beat(
            run_id=self._run_id,
            pid=os.getpid(),
            started=self._started,
            at=time.time(),
            progressed=self._progressed,
            ended=ended,
        )
        # One write of one length: a reader sees the old beat or the new one.
        os.pwrite(self._file, msgspec.json.encode(beat).ljust(_BEAT_BYTES), 0)


_BEAT_BYTES = 512


def probe(path: Path) -> LeaseState:
    """Whether a living process holds the lease, and what it last wrote. Takes it for a moment where nobody does."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return LeaseState(held=False, beat=None)
    try:
        return LeaseState(held=not _lock(file, fcntl.LOCK_SH), beat=_read(file))
    finally:
        os.close(file)


def kill_holder(beat: Beat) -> bool:
    """Ends the process that wrote ``beat`` as ``kill -9`` does, after making sure that it is still that process.

    Returns:
        Whether it was there to be ended.
    """
    try:
        process = psutil.Process(beat.pid)
        if abs(process.create_time() - beat.started) > _SAME_START_S:
            return False
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: int) -> Beat | None:
    text = os.pread(file, _BEAT_BYTES, 0).strip()
    try:
        return msgspec.json.decode(text, type=Beat)
    except msgspec.DecodeError:
        return None  # nobody has written a beat yet
