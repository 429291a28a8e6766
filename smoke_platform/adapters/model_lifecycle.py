"""From labelled rows to a champion: the steps that Dagster and the command line both take.

Belongs here: training and registering a candidate with its data's audit, judging a version, promoting it through the
gate. Does not: how each is done (``adapters.trainer``, ``adapters.data_audit``, ``adapters.registry``,
``domain.promotion``), when (``orchestration.models``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smoke_platform.adapters import data_audit, evaluation_page, feature_tables, trainer
from smoke_platform.adapters.feature_tables import Examples, Progress, TrainingWorld, silent
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.registry import Registry
from smoke_platform.domain import features, promotion
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.promotion import Limits, Verdict
from smoke_platform.settings import Settings


class GateRefused(SmokeError):
    """A version that does not meet the gate's conditions; the champion stays."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered version with its manifest."""

    number: int
    manifest: dict[str, Any]


def limits(settings: Settings) -> Limits:
    return Limits(min_accuracy=settings.gate_min_accuracy, min_f1=settings.gate_min_f1)


def training_world(settings: Settings) -> TrainingWorld:
    return TrainingWorld(seed=settings.training_seed)


def train_candidate(
    settings: Settings, registry: Registry, *, source: str = "auto", progress: Progress = silent
) -> Candidate:
    """Trains on what ``feature_tables.load_examples`` chooses, registers a new version and writes its page.

    The manifest's ``audit`` is what ``data_audit.audit_source`` says of the readings behind the examples; it is for the
    gate to refuse a version whose data are not clean.

    Raises:
        SmokeError: when there is nothing to train on.
    """
    examples = feature_tables.load_examples(settings, source)
    progress(f"{len(examples):,} rows of {examples.origin['groups']} groups, {examples.origin['kind']}")
    trained = trainer.train(examples, settings.training_seed, progress)
    trained.manifest["audit"] = data_audit.audit_source(settings, examples.origin["kind"], progress).for_manifest()
    progress("registering the version")
    number = registry.register(trained.artifact, trained.manifest, trained.reference)
    manifest = registry.manifest(number)
    evaluation_page.write(settings, number, manifest, trained.curves)
    return Candidate(number, manifest)


def judge(settings: Settings, registry: Registry, number: int) -> Verdict:
    """The gate's verdict on a version, which is kept with it.

    Where a champion with the same features is there, both are scored on the groups that no version was trained on.

    Raises:
        SmokeError: for an unknown or tampered version, or when the rows to compare on are gone.
    """
    manifest, artifact = registry.manifest(number), registry.artifact(number)
    champion = _comparable_champion(registry, number)
    held = None if champion is None else _held_out(settings, manifest["trained_on"]["kind"])
    verdict = promotion.judge(trainer.figures(manifest, artifact, held, champion), limits(settings))
    registry.note_verdict(number, verdict.passed, verdict.reasons)
    return verdict


def _comparable_champion(registry: Registry, number: int) -> tuple[bytes, float] | None:
    champion = registry.champion()
    if champion is None or int(champion["version"]) == number:
        return None
    if champion["feature_version"] != features.FEATURE_SET_VERSION:
        return None
    try:
        return registry.artifact(int(champion["version"])), float(champion["threshold"])
    except SmokeError:
        # A champion whose files are damaged serves nobody: it must not keep its successor out.
        return None


def _held_out(settings: Settings, kind: str) -> Examples | None:
    """The rows of the groups held out for ever; all rows where a source has too few groups to hold any out."""
    examples = feature_tables.load_examples(settings, kind)
    return examples.only(examples.holdout) if examples.holdout.any() else examples


def promote(settings: Settings, registry: Registry, number: int, *, reason: str) -> dict[str, Any]:
    """Judges a version and makes it champion if it passes.

    Returns:
        What was published.

    Raises:
        GateRefused: naming each condition that failed and by how much; the champion stays.
    """
    verdict = judge(settings, registry, number)
    if not verdict.passed:
        raise GateRefused(
            f"version {number} is refused: " + "; ".join(verdict.reasons),
            "the champion stays; --force --reason WHY promotes it all the same",
        )
    return registry.promote(number, reason=reason)


def prepare_simulated(settings: Settings, world: TrainingWorld | None = None, progress: Progress = silent) -> bool:
    """Builds the simulated training set unless it is there already; returns whether it was built."""
    lake, chosen = Lake(settings.lake), world or training_world(settings)
    if feature_tables.is_current(lake, chosen):
        return False
    feature_tables.build_simulated(lake, chosen, progress)
    return True
