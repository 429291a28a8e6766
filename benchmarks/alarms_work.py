"""The work that the alarm suite's peers do in place of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.alarms_spec import ChildSpec
from smoke_platform.adapters.scorer import OnnxScorer, read_champion
from smoke_platform.domain.alarms import AlarmRecord
from smoke_platform.domain.detection import Batch, Engine


class Work:
    """The detector's work without its process: decoding, checks, features, rules, model, alarms of some partitions.

    What it leaves out is the detector's alone: snapshots, recovery, silence, commands, metrics, published scores.
    """

    def __init__(self, spec: ChildSpec, partitions: Sequence[int]) -> None:
        models = Path(spec.models)
        self._scorer = OnnxScorer.load(models, read_champion(models))
        self._engine = Engine(spec.topic_id)
        for partition in partitions:
            self._engine.add_partition(partition)

    def take(self, batch: Batch) -> list[AlarmRecord]:
        """Messages in, alarm records out."""
        return self._engine.take(batch, self._scorer).records
