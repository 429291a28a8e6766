"""External validation of a model on a folder of fire tests: which model, and the run.

Belongs here: choosing the scorer (champion, rules alone, a version), training the start-up model where there is no
champion. Does not: files (``adapters.nist_recordings``), mapping and pairing (``domain.external_validation``), the page
(``adapters.external_validation_page``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from smoke_platform.adapters.feature_tables import Progress, silent
from smoke_platform.adapters.nist_recordings import read_folder
from smoke_platform.adapters.scorer import (
    MANIFEST_FILE,
    Champion,
    ModelRefused,
    OnnxScorer,
    Refusal,
    read_champion,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.external_validation import Validation, validate
from smoke_platform.settings import Settings

CHAMPION, RULES = "champion", "rules"
#: Below SMOKE_DATA_DIR.
FOLDER = "nist_smoke_alarms"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run: what came out, and the names in the activation file that are no smoke alarm."""

    validation: Validation
    ignored: tuple[str, ...]


def run(folder: Path, settings: Settings, model: str = CHAMPION, progress: Progress = silent) -> Outcome:
    """Runs the detector over a folder of tests.

    Args:
        model: ``champion``, ``rules`` or the number of a version. Without a champion the start-up model is trained
            first, and becomes champion.

    Raises:
        SmokeError: for a folder that is not in the format, an unknown model, one that must not score.
    """
    # What is wrong with the folder is told before minutes go into training.
    found = read_folder(folder)
    scorer = choose(settings, model, progress)
    progress("running the detector")
    words = "the rules alone" if scorer is None else f"the rules and model version {scorer.version}"
    return Outcome(validate(found.places, found.alarms, scorer, words), found.ignored)


def choose(settings: Settings, model: str, progress: Progress = silent) -> OnnxScorer | None:
    """The scorer that ``model`` names, ``None`` for the rules alone.

    Raises:
        SmokeError: for an unknown model, or one that must not score.
    """
    if model == RULES:
        return None
    if model != CHAMPION:
        return _version(settings, model)
    try:
        return OnnxScorer.load(settings.models_dir, read_champion(settings.models_dir))
    except ModelRefused as refusal:
        if refusal.reason is not Refusal.NO_CHAMPION:
            raise
    _train(settings, progress)
    return OnnxScorer.load(settings.models_dir, read_champion(settings.models_dir))


def _version(settings: Settings, model: str) -> OnnxScorer:
    from smoke_platform.adapters.registry import ARTIFACT, Registry

    if not model.isdecimal():
        raise SmokeError(
            f"unknown model {model!r}", "use champion, rules or the number of a version: smoke models list"
        )
    registry, number = Registry(settings), int(model)
    manifest = registry.manifest(number)
    folder = settings.models_dir / str(number)
    return OnnxScorer.load(
        settings.models_dir,
        Champion(
            version=number,
            sha256=manifest["sha256"],
            path=f"{number}/{ARTIFACT}",
            manifest_sha256=hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest(),
            feature_version=manifest["feature_version"],
            feature_names=tuple(manifest["feature_names"]),
            threshold=manifest["threshold"],
        ),
    )


def _train(settings: Settings, progress: Progress) -> None:
    """What the start-up sensor does on a new platform."""
    from smoke_platform.adapters import model_lifecycle
    from smoke_platform.adapters.registry import Registry

    progress("there is no champion: training the start-up model")
    registry = Registry(settings)
    registry.migrate()
    model_lifecycle.prepare_simulated(settings, progress=progress)
    candidate = model_lifecycle.train_candidate(settings, registry, source="simulated", progress=progress)
    progress("judging")
    model_lifecycle.promote(settings, registry, candidate.number, reason="smoke models validate: there was no champion")
