"""What each measured process of the windows suite is told, and what it answers."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

#: The topic whose readings the input is; there is no broker behind it.
CLUSTER_ID, TOPIC_ID = "bench", "windows-of-the-bench"

#: Exit code of a process whose engine cannot be started on this machine, such as Spark without a JDK.
NOT_TO_BE_HAD = 3


@dataclass(frozen=True, slots=True)
class WindowsSpec:
    """What to compute from what.

    Attributes:
        home: of a platform whose ``lake/readings`` is the input, in it the files below.
        files: the table's Parquet files in the order in which they landed.
        csv: the same rows as CSV, for whoever cannot read Parquet.
        partitions: of the topic.
        slide_s: from one window to the next; each is 300 s long.
        sample: devices whose windows are written to ``result``.
        result: Arrow IPC file, columns of ``domain.windows.WINDOW_SCHEMA``.
        share: (number, of how many): only the devices of this share are taken, for several processes beside each other.
    """

    home: str
    files: list[str]
    csv: str
    partitions: int
    sample: list[str]
    result: str
    slide_s: int = 60
    share: tuple[int, int] = (0, 1)

    @classmethod
    def read(cls, file: Path) -> WindowsSpec:
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")


class Measured:
    """Times from the first reading that is asked for to the last window that is there."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._ended: float | None = None
        self._cpu_s = 0.0
        self.readings = 0
        self.windows = 0

    def begin(self) -> None:
        """Starts the clock; later calls do nothing."""
        if self._began is None:
            self._began, self._cpu_s = time.time(), time.process_time()

    def end(self) -> None:
        """Stops it; later calls do nothing."""
        if self._ended is None:
            self._ended, self._cpu_s = time.time(), time.process_time() - self._cpu_s

    def answer(self) -> str:
        """Stops it if it runs; one line of JSON."""
        self.end()
        found = {
            "began": self._began,
            "ended": self._ended,
            "cpu_s": self._cpu_s,
            "readings": self.readings,
            "windows": self.windows,
        }
        return json.dumps(found)
