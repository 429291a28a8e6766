"""The environment in which the peers run: other stream processors, apart from the platform's own dependencies.

Belongs here: making it from ``peers-requirements.txt``. Does not: what is measured (the suites).
"""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import click

PEERS_LOCK = Path(__file__).with_name("peers-requirements.txt")


def peer_python(cache_dir: Path, left_out: str) -> str | None:
    """The interpreter of the peers' environment, made where it is not there yet; None where it cannot be had.

    Args:
        cache_dir: where it is kept.
        left_out: what is not measured then, as it is told.
    """
    lock = sha256(PEERS_LOCK.read_bytes()).hexdigest()[:12]
    folder = cache_dir / f"bench-peers-{lock}"
    python = folder / "bin" / "python"
    if python.exists() and (folder / "complete").exists():
        return str(python)
    uv = str(Path(sys.executable).with_name("uv"))
    for command in (
        [uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "-q", "--python", str(python), "--require-hashes", "-r", str(PEERS_LOCK)],
    ):
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            told = " ".join(answer.stderr.split())[-300:]
            click.echo(f"  {left_out} are left out, they cannot be installed: {told}", err=True)
            return None
    (folder / "complete").touch()
    return str(python)
