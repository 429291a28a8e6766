"""What a landing on Spark tells the Dagster run that started it, through Pipes.

Belongs here: the message and its form. Does not: who sends (spark_child.py), who reads (spark.py). No Dagster here: the
child does without importing it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from smoke_platform.adapters.lease import LeaseHeld
from smoke_platform.domain.errors import SmokeError
from smoke_platform.streaming.landing import Fenced, LandingReport, LostReadings, Progress
from smoke_platform.streaming.records_landing import RecordTally
from smoke_platform.streaming.windows import WindowTally

#: Faults that the run treats in a way of their own; every other one is a ``SmokeError``.
_KINDS: dict[str, type[SmokeError]] = {kind.__name__: kind for kind in (LeaseHeld, Fenced, LostReadings)}


@dataclass(slots=True)
class Fault:
    """Why the child gave up; ``kind`` is the name of the error's class."""

    kind: str
    message: str
    remedy: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        if isinstance(error, SmokeError):
            return cls(type(error).__name__, error.message, error.remedy)
        return cls(type(error).__name__, f"{type(error).__name__}: {error}")

    def error(self) -> SmokeError:
        return _KINDS.get(self.kind, SmokeError)(self.message, self.remedy)


@dataclass(slots=True)
class Message:
    """One message: a commit of readings with what was done beside it since the last, or how it all ended."""

    progress: Progress | None = None
    records: dict[str, RecordTally] = field(default_factory=dict)
    windows: WindowTally | None = None
    report: LandingReport | None = None
    fault: Fault | None = None


def encode(message: Message) -> Any:
    """The message as plain JSON types."""
    return msgspec.to_builtins(message, str_keys=True)


def decode(payload: Any) -> Message:
    """The message that ``encode`` wrote."""
    return msgspec.convert(payload, Message, str_keys=True)
