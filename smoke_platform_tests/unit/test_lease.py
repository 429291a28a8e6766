"""The lease: one holder, dropped by death, read by the supervisor."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from smoke_platform.adapters.lease import Beat, Lease, LeaseHeld, kill_holder, probe

HOLD = """
import sys, time
from pathlib import Path
from smoke_platform.adapters.lease import Lease
with Lease(Path(sys.argv[1]), "other"):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_nobody_holds_a_lease_that_was_never_taken(tmp_path: Path) -> None:
    """On a fresh machine the sensor must start a run."""
    state = probe(tmp_path / "x.lease")
    assert not state.held
    assert state.beat is None


def test_held_while_in_use_and_marked_when_given_back(tmp_path: Path) -> None:
    """A run that ends in good order must not be taken for a dead one."""
    path = tmp_path / "run" / "x.lease"
    with Lease(path, "mine") as lease:
        lease.beat(progressed=True)
        state = probe(path)
        assert state.held
        assert state.beat is not None
        assert (state.beat.run_id, state.beat.ended) == ("mine", False)
        with pytest.raises(LeaseHeld, match="mine"):
            Lease(path, "second", patience_s=0.1).__enter__()
    state = probe(path)
    assert not state.held
    assert state.beat is not None
    assert state.beat.ended
    with Lease(path, "next"):
        after = probe(path).beat
    assert after is not None
    assert after.progressed == state.beat.progressed > 0


def test_death_drops_the_lease_at_once(tmp_path: Path) -> None:
    """After kill -9 the next run must be able to start within the second."""
    path = tmp_path / "x.lease"
    process = start_holder(path)
    try:
        state = probe(path)
        assert state.held
        assert state.beat is not None
        assert state.beat.pid == process.pid
        assert kill_holder(state.beat)
        process.wait(10)
        deadline = time.monotonic() + 5
        while probe(path).held:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not kill_holder(state.beat)
        with Lease(path, "heir"):
            pass
    finally:
        process.kill()
        process.wait()


def test_another_process_with_the_same_pid_is_spared(tmp_path: Path) -> None:
    """Pids are used again: the supervisor must never kill a stranger."""
    process = start_holder(tmp_path / "x.lease")
    try:
        beat = Beat(run_id="r", pid=process.pid, started=time.time() - 10_000, at=0.0)
        assert not kill_holder(beat)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_probe_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    """The sensor probes five times a second; a starting run must get through."""
    path = tmp_path / "x.lease"
    with Lease(path, "first"):
        pass
    script = (
        "import sys,time\nfrom pathlib import Path\nfrom smoke_platform.adapters.lease import probe\n"
        "print('on', flush=True)\nend=time.monotonic()+3\nwhile time.monotonic()<end: probe(Path(sys.argv[1]))"
    )
    prober = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert prober.stdout is not None
        prober.stdout.readline()
        for name in range(20):
            with Lease(path, str(name)):
                pass
    finally:
        prober.kill()
        prober.wait()
