"""A simulated training set small enough for tests, and one model trained on it; each made once a session."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from smoke_platform.adapters import feature_tables, fitting, trainer
from smoke_platform.adapters.feature_tables import Examples, TrainingWorld
from smoke_platform.adapters.lake import Lake

WORLD = TrainingWorld(fleets=4, devices_per_fleet=5, hours=4, seed=3, quiet_every=60, episode_every=20)
SEED = 5
#: The platform's algorithms with fewer trees.
QUICK = tuple(
    replace(algorithm, parameters={**algorithm.parameters, **smaller}, grid=({},))
    for algorithm, smaller in zip(
        fitting.ALGORITHMS, ({}, {"max_iter": 25}, {"n_estimators": 8, "max_depth": 8}), strict=True
    )
)


@cache
def small_lake() -> Path:
    """The root of a lake with the small training set; kept until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="smoke-small-lake-"))
    feature_tables.build_simulated(Lake(str(folder)), WORLD)
    return folder


@cache
def small_examples() -> Examples:
    return feature_tables.simulated_examples(Lake(str(small_lake())))


@cache
def small_model() -> trainer.Trained:
    return trainer.train(small_examples(), SEED, algorithms=QUICK)
