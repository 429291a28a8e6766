"""The programs' logs: their last lines, and their growth.

Belongs here: reading the files, across their rotation. Does not: writing them (supervisord does) or colouring them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from smoke_platform.domain.errors import SmokeError
from smoke_platform.local.programs import log_file, programs
from smoke_platform.local.supervisor import platform_broker
from smoke_platform.settings import Settings

BLOCK_BYTES = 64 * 1024


def log_files(settings: Settings) -> dict[str, Path]:
    """Each log by the name of its program; the supervisor's own is among them.

    Kafka writes its log itself, beside its data; what supervisord catches of it is only what went wrong before.
    """
    names = [program.name for program in programs(settings)]
    files = {name: log_file(settings, name) for name in [*names, "simulator", "supervisord"]}
    if "kafka" in files:
        files["kafka"] = platform_broker(settings).log_file
    return files


def choose(settings: Settings, program: str | None) -> dict[str, Path]:
    """The logs to be shown: one, or all.

    Raises:
        SmokeError: for a name that no program has; it lists those there are.
    """
    files = log_files(settings)
    if program is None:
        return files
    if program not in files:
        raise SmokeError(f"no program {program!r}", f"the programs are {', '.join(files)}")
    return {program: files[program]}


def last_lines(path: Path, count: int) -> list[str]:
    """The last ``count`` lines of a file, read from its end; none where there is no file."""
    if count <= 0 or not path.is_file():
        return []
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        tail = b""
        while position > 0 and tail.count(b"\n") <= count:
            step = min(BLOCK_BYTES, position)
            position = file.seek(position - step)
            tail = file.read(step) + tail
    return tail.decode("utf-8", errors="replace").splitlines()[-count:]


@dataclass
class _Followed:
    """An open log: what was read of it, and the beginning of a line that is still being written."""

    path: Path
    file: BinaryIO | None = None
    rest: bytes = b""

    def open_at_end(self) -> None:
        if self.path.is_file():
            self.file = self.path.open("rb")
            self.file.seek(0, os.SEEK_END)

    def new_lines(self) -> list[str]:
        lines = self._read()
        if self._rotated():
            if self.file is not None:
                self.file.close()
            self.file = self.path.open("rb")
            lines += self._read()
        return lines

    def _rotated(self) -> bool:
        """Whether the name now leads to another file, or to the same one cut short."""
        try:
            now = self.path.stat()
        except OSError:
            return False
        if self.file is None:
            return True
        mine = os.fstat(self.file.fileno())
        return (mine.st_ino, mine.st_dev) != (now.st_ino, now.st_dev) or now.st_size < self.file.tell()

    def _read(self) -> list[str]:
        if self.file is None:
            return []
        *whole, self.rest = (self.rest + self.file.read()).split(b"\n")
        return [line.decode("utf-8", errors="replace") for line in whole]


def follow(files: dict[str, Path], poll_seconds: float = 0.2) -> Iterator[tuple[str, str]]:
    """Yields (program, line) as they are written, for ever; a rotated file is followed into its successor."""
    followed = {name: _Followed(path) for name, path in files.items()}
    for entry in followed.values():
        entry.open_at_end()
    while True:
        quiet = True
        for name, entry in followed.items():
            for line in entry.new_lines():
                quiet = False
                yield name, line
        if quiet:
            time.sleep(poll_seconds)
