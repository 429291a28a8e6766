"""From labelled rows to a champion: the steps that Dagster and the command line both take.

Belongs here: training and registering a candidate with its data's audit, judging a version, comparing two, promoting
one through the gate or having it watched in shadow first, pruning old ones. Does not: how each is done
(``adapters.trainer``, ``adapters.data_audit``, ``adapters.registry``, ``domain.promotion``), when
(``orchestration.models``, ``orchestration.model_watch``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from smoke_platform.adapters import data_audit, evaluation_page, feature_tables, model_replay, trainer
from smoke_platform.adapters.feature_tables import Examples, Progress, TrainingWorld, silent
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.registry import Registry, read_changes
from smoke_platform.adapters.scorer import OnnxScorer, read_champion
from smoke_platform.domain import features, paired_comparison, promotion, shadow
from smoke_platform.domain.alarm_outcomes import AlarmOutcomes
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.paired_comparison import PairedComparison
from smoke_platform.domain.promotion import Figures, Limits, RollbackDecision, Verdict
from smoke_platform.domain.shadow import ChallengerDecision
from smoke_platform.settings import Settings

#: What the alarms of a model (artifact, threshold) do to the fires, nuisances and quiet air of some rows.
OutcomesOf = Callable[[bytes, float, Examples], AlarmOutcomes]


held_out_outcomes: OutcomesOf = trainer.held_out_outcomes

#: Balanced accuracy on live readings by which an earlier version must beat the champion before it takes its place.
CLEARLY_BETTER = 0.02


class GateRefused(SmokeError):
    """A version that does not meet the gate's conditions; the champion stays."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered version with its manifest."""

    number: int
    manifest: dict[str, Any]


def limits(settings: Settings) -> Limits:
    return Limits(settings.gate_min_accuracy, settings.gate_min_f1, least_fires=settings.gate_min_fires)


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

    Where a champion with the same features is there, both are judged on the groups that no version was trained on:
    their readings and, more to the point, what their alarms do to the very same fires and nuisances.

    Raises:
        SmokeError: for an unknown or tampered version, or when the rows to compare on are gone.
    """
    manifest, artifact = registry.manifest(number), registry.artifact(number)
    champion = _comparable_champion(registry, number)
    held = None if champion is None else _held_out(settings, manifest["trained_on"]["kind"])
    found = replace(
        trainer.figures(manifest, artifact, held, champion),
        audit=promotion.audit_of(manifest),
        unknown=promotion.unknown_origin(manifest),
    )
    if champion is not None:
        found = _beside(found, (artifact, float(manifest["threshold"])), champion, held)
    verdict = promotion.judge(found, limits(settings))
    registry.note_verdict(number, verdict.passed, verdict.reasons)
    return verdict


def _beside(found: Figures, mine: tuple[bytes, float], champion: tuple[bytes, float], held: Examples | None) -> Figures:
    """The figures with the paired comparison, or with why there is none: then the gate refuses."""
    try:
        return replace(found, paired=_paired(mine, champion, held))
    except (SmokeError, ValueError) as error:
        return replace(found, uncompared=error.message if isinstance(error, SmokeError) else str(error))


def _paired(mine: tuple[bytes, float], other: tuple[bytes, float], held: Examples | None) -> PairedComparison:
    if held is None or not len(held):
        raise SmokeError("no rows are held out to compare on")
    return paired_comparison.compare(held_out_outcomes(*mine, held), held_out_outcomes(*other, held))


def compare(settings: Settings, registry: Registry, number: int, other: int) -> PairedComparison:
    """Version ``number`` beside ``other`` (as if it were the champion) on the fires that no version was trained on.

    Raises:
        SmokeError: for an unknown or tampered version, one of other features, or where there is nothing to compare on.
    """
    sides = []
    for version in (number, other):
        manifest = registry.manifest(version)
        if manifest["feature_version"] != features.FEATURE_SET_VERSION:
            raise SmokeError(
                f"version {version} sees features {manifest['feature_version']}, this platform computes "
                f"{features.FEATURE_SET_VERSION}",
                "smoke models show gives its figures of old",
            )
        sides.append((registry.artifact(version), float(manifest["threshold"])))
    try:
        return _paired(sides[0], sides[1], _held_out(settings, registry.manifest(number)["trained_on"]["kind"]))
    except ValueError as error:
        raise SmokeError(f"versions {number} and {other} cannot be compared: {error}") from None


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


def promote(
    settings: Settings, registry: Registry, number: int, *, reason: str, automatic: bool = False
) -> dict[str, Any]:
    """Judges a version and makes it champion if it passes.

    Args:
        automatic: whether no person asked for it.

    Returns:
        What was published.

    Raises:
        GateRefused: naming each condition that failed and by how much; the champion stays.
    """
    verdict = judge(settings, registry, number)
    if not verdict.passed:
        raise _refused(number, verdict)
    return registry.promote(number, reason=reason, automatic=automatic)


@dataclass(frozen=True, slots=True)
class Advance:
    """What became of a version that passed the gate, and what was published of it if anything was."""

    outcome: Literal["champion", "challenger", "waits"]
    reason: str
    published: dict[str, Any] | None = None


def advance(settings: Settings, registry: Registry, number: int) -> Advance:
    """Takes a candidate on: to champion, or into the shadow first where ``SMOKE_SHADOW_HOURS`` asks for it.

    Where there is no usable champion it is promoted at once: nothing else scores the readings. A challenger that is
    watched stays, and the candidate waits, since a new one every night would never be watched for long enough. A
    version that was rolled back by itself is never promoted by itself again.

    Raises:
        GateRefused: naming each condition that failed and by how much; the champion stays.
    """
    if number in promotion.withdrawn(read_changes(registry.models_dir)):
        return Advance("waits", f"version {number} was rolled back by itself; only a person may promote it again")
    if settings.shadow_hours == 0 or _comparable_champion(registry, number) is None:
        published = promote(settings, registry, number, reason="passed the gate", automatic=True)
        return Advance("champion", "passed the gate", published)
    verdict = judge(settings, registry, number)
    if not verdict.passed:
        raise _refused(number, verdict)
    watched = registry.challenger()
    if watched is not None and int(watched["version"]) != number and registry.version(int(watched["version"])).whole:
        return Advance("waits", f"version {watched['version']} is watched in shadow; version {number} waits")
    published = registry.challenge(number, reason="passed the gate; watched in shadow first")
    return Advance("challenger", f"watched in shadow for {settings.shadow_hours:g} device-hours first", published)


def _refused(number: int, verdict: Verdict) -> GateRefused:
    return GateRefused(
        f"version {number} is refused: " + "; ".join(verdict.reasons),
        "the champion stays; --force --reason WHY promotes it all the same",
    )


def prune(settings: Settings, registry: Registry) -> list[int]:
    """Removes versions beyond ``SMOKE_MODEL_RETENTION``; gives their numbers."""
    return registry.prune(settings.model_retention)


def prepare_simulated(settings: Settings, world: TrainingWorld | None = None, progress: Progress = silent) -> bool:
    """Builds the simulated training set unless it is there already; returns whether it was built."""
    lake, chosen = Lake(settings.lake), world or training_world(settings)
    if feature_tables.is_current(lake, chosen):
        return False
    feature_tables.build_simulated(lake, chosen, progress)
    return True


# -- models in use -----------------------------------------------------------------------------------------------


def act_on(settings: Settings, registry: Registry, decision: ChallengerDecision, challenger: int) -> Advance | None:
    """Does what was decided about a challenger; ``None`` where it is watched on.

    Promotion goes through the gate again, beside the champion of this moment, and only where ``SMOKE_SHADOW_HOURS``
    asks for shadows: a challenger that a person set while it is 0 waits for that person.

    Raises:
        GateRefused: when the gate refuses it now; it is no challenger any more and the champion stays.
    """
    if decision.action == "drop":
        registry.drop_challenger(reason=decision.reason)
        return Advance("waits", f"version {challenger} is dropped: {decision.reason}")
    if decision.action == "watch" or settings.shadow_hours == 0:
        return None
    try:
        published = promote(settings, registry, challenger, reason=f"shadow: {decision.reason}", automatic=True)
    except GateRefused as refusal:
        registry.drop_challenger(reason=refusal.message)
        raise
    return Advance("champion", decision.reason, published)


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback by itself came to: what was published, ``None`` where nothing was; and why, in words."""

    published: dict[str, Any] | None
    reason: str


def roll_back(settings: Settings, registry: Registry, decision: RollbackDecision, report: str) -> RolledBack:
    """Takes the champion back to the first of the decision's targets that is whole and does better on live readings.

    Where the world has changed for all models alike, an earlier one is no remedy: each target is scored beside the
    champion on the latest readings of known truth, and its balanced accuracy there has to be greater by
    ``CLEARLY_BETTER``.
    """
    champion = registry.champion()
    if champion is None:
        return RolledBack(None, "there is no champion")
    tried = []
    for target in decision.targets:
        try:
            verdict = _does_better(settings, registry, target)
        except SmokeError as error:
            verdict = error.message
        if not verdict:
            reason = f"by itself: {decision.reason}"
            return RolledBack(registry.rollback(target, reason=reason, automatic=True, report=report), reason)
        tried.append(f"version {target}: {verdict}")
    return RolledBack(None, f"{decision.reason}; nothing to go back to: {'; '.join(tried) or 'no target'}")


def _does_better(settings: Settings, registry: Registry, target: int) -> str:
    """Why an earlier version is no better than the champion on live readings; empty where it is.

    Raises:
        SmokeError: for a version that is not what was registered, or that sees other features.
    """
    live = model_replay.load_known(Lake(settings.lake))
    if live is None:
        return "there are no live readings of known truth to compare on"
    champion = OnnxScorer.load(settings.models_dir, read_champion(settings.models_dir))
    replays = model_replay.replay(live, champion), model_replay.replay(live, registry.scorer(target))
    found = shadow.compare(live.readings, *replays, live.truth).figures
    mine, its = found.detection("challenger"), found.detection("champion")
    if mine is not None and its is not None and mine > its + CLEARLY_BETTER:
        return ""
    return (
        f"not clearly better on {found.known} live readings of known truth ({_shown(mine)}, the champion {_shown(its)})"
    )


def _shown(value: float | None) -> str:
    return "no figure" if value is None else f"{value:.4f}"
