"""The proof of the models: fires, devices and nuisances of kinds that the model being judged has never seen.

Belongs here: the held-out protocols over a simulated world of its own, the plain threshold they are compared with,
quiet air over years, training twice. Does not: how a model is trained and chosen (``smoke_platform.adapters.trainer``),
how alarms are replayed and counted (``smoke_platform.domain.alarm_evaluation``).

In every protocol all that is chosen (algorithm, parameters, threshold) is chosen inside the training rows, and each
reading is scored by a model that has not seen what the protocol holds out. Everything is simulated by the same physics
as the training set: what is unseen is a device, a season, a way of burning or a disturbance, not another world.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.adapters import feature_tables, trainer
from smoke_platform.adapters.feature_tables import Examples, TrainingWorld
from smoke_platform.adapters.fitting import OnnxModel
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.trainer import Choice
from smoke_platform.domain import alarm_evaluation as alarms
from smoke_platform.domain import evaluation, features
from smoke_platform.domain.alarm_evaluation import Watched
from smoke_platform.domain.alarm_outcomes import DAYS_PER_YEAR, AlarmOutcomes
from smoke_platform.domain.alarm_replay import FIRE_ALARM
from smoke_platform.domain.readings import ALL_SENSOR_NAMES
from smoke_platform.domain.simulator import simulate

_Result = TypeVar("_Result")
Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

#: Other devices, other fires than those of the platform's own training set, and more of them.
WORLD = TrainingWorld(seed=101, fires_per_device_day=12.0, nuisances_per_device_day=18.0)
LEAST_FIRES = 135
DEVICE_FOLDS = 4
FLEET_FOLDS = 3
#: Devices are halved for each family: what is judged is unseen in kind and in place.
FAMILY_HALVES = 2
#: Quiet air: (devices, days, seconds between readings).
QUIET = ((16, 1.0, 1.0), (64, 5.75, 10.0))
#: Devices that are replayed at once.
QUIET_BATCH = 16
FIRST_QUIET_DEVICE = 700_000
#: The reference trained with a grid of 890 fits; on two cores that took about 50 minutes.
REFERENCE_FITS, REFERENCE_MINUTES = 890, 50
#: Sensors that a device may lack.
BUILT_WITHOUT: dict[str, tuple[str, ...]] = {
    "no gas sensor": ("tvoc_ppb", "eco2_ppm", "raw_h2", "raw_ethanol"),
    "no CO cell": ("co_ppm",),
    "temperature, PM2.5 and CO only": tuple(
        name for name in ALL_SENSOR_NAMES if name not in ("temperature_c", "pm2_5", "co_ppm")
    ),
}


def _say(text: str) -> None:
    click.echo(f"  {text}", err=True)


# -- a world of its own --------------------------------------------------------------------------------------
def _world(world: TrainingWorld, folder: Path) -> tuple[Examples, Watched]:
    """Training rows and all readings of all of its devices, those included that no version of the platform learns."""
    lake = Lake(str(folder))
    feature_tables.build_simulated(lake, world)
    examples = feature_tables.simulated_examples(lake)
    watch = feature_tables.FullRate(lake).watched(examples.device.unique().to_list(), sensors=True)
    quiet = examples.kind.is_null().to_numpy()
    every = np.where(quiet, world.quiet_every, world.episode_every)
    kept = ~examples.holdout | (np.round(examples.seconds).astype(np.int64) % every == 0)
    sampled = replace(
        examples,
        weight=np.where(examples.holdout, every, examples.weight),
        holdout=np.zeros(len(examples), dtype=np.bool_),
        full_rate=None,
    )
    return sampled.only(kept), watch


def _choose(examples: Examples, watch: Watched, seed: int) -> Choice:
    devices = set(examples.device.unique().to_list())
    return trainer.choose(examples, seed, watch=watch.of(sorted(devices)))


def _ratio(choice: Choice, watch: Watched, rows: Booleans) -> Floats:
    return choice.fitted.model.score(watch.matrix[rows]) / choice.threshold


def _found(watch: Watched, ratio: Floats) -> dict[str, AlarmOutcomes]:
    """What the model's rule does alone, and what all rules do."""
    replayed = alarms.replay(watch, ratio, sensors=True)
    return {
        "model": alarms.outcomes(watch, replayed.model),
        "together": alarms.outcomes(watch, replayed.together),
        "rules": alarms.outcomes(watch, replayed.rules),
    }


# -- protocols -----------------------------------------------------------------------------------------------
def _by_group(
    examples: Examples, watch: Watched, fold: Integers, seed: int
) -> tuple[Floats, list[tuple[Choice, Booleans]], dict[str, Any]]:
    """Scores over thresholds of all readings by models that have not seen their fold of devices, ``[n]``."""
    fold_of = dict(zip(examples.device.to_list(), fold.tolist(), strict=True))
    of_row = np.array([fold_of[name] for name in watch.devices])[watch.slots]
    ratio = np.empty(len(watch))
    probability, called = np.empty(len(examples)), np.empty(len(examples), dtype=np.bool_)
    choices = []
    for number in range(int(fold.max()) + 1):
        choice = _choose(examples.only(fold != number), watch, seed)
        rows = of_row == number
        ratio[rows] = _ratio(choice, watch, rows)
        probability[fold == number] = choice.fitted.model.score(examples.matrix[fold == number])
        called[fold == number] = probability[fold == number] >= choice.for_readings
        choices.append((choice, rows))
    per_reading = evaluation.confusion(examples.label, called, examples.weight).as_dict()
    brier = evaluation.curves(examples.label, probability, examples.weight)["brier"]
    return ratio, choices, {**per_reading, "brier": brier}


def _by_family(examples: Examples, watch: Watched, ratio: Floats, seed: int) -> tuple[Floats, list[dict[str, Any]]]:
    """``ratio`` with that of each episode from a model which has seen neither its family nor its device.

    One family of fires is left out at a time, and with it one or two of nuisances: fewer trainings, and a harder task.
    """
    answer = ratio.copy()
    half = evaluation.group_folds(examples.group.tolist(), examples.label, FAMILY_HALVES, seed)
    half_of = dict(zip(examples.device.to_list(), half.tolist(), strict=True))
    of_row = np.array([half_of[name] for name in watch.devices])[watch.slots]
    of_episode = np.array([*(episode.family for episode in watch.episodes), ""])[watch.episode]
    fires = sorted({episode.family for episode in watch.episodes if episode.kind == "fire"})
    nuisances = sorted({episode.family for episode in watch.episodes if episode.kind == "nuisance"})
    models = []
    for place, fire in enumerate(fires):
        out = [fire, *nuisances[place :: len(fires)]]
        mine = np.isin(of_episode, out)
        other = ~examples.family.is_in(out).fill_null(False).to_numpy()
        for number in range(FAMILY_HALVES):
            began = time.monotonic()
            choice = _choose(examples.only(other & (half != number)), watch.rows(~mine), seed)
            rows = mine & (of_row == number)
            answer[rows] = _ratio(choice, watch, rows)
            taken = time.monotonic() - began
            models.append({"without": out, "half": number, **_told(choice), "seconds": round(taken, 1)})
        _say(f"without {', '.join(out)}: {taken:.1f} s a model")
    return answer, models


def _told(choice: Choice) -> dict[str, Any]:
    return {"algorithm": choice.fitted.algorithm.name, "threshold": round(choice.threshold, 4)}


def _sensors(watch: Watched) -> Floats:
    if watch.sensors is None:
        raise ValueError("the readings came without their sensors")
    return watch.sensors


def _plain_threshold(watch: Watched, most: int, sensor: str = "pm2_5") -> dict[str, Any]:
    """The least limit of one sensor with no more false alarms than ``most``, with the persistence of the model's rule.

    It is chosen on the very readings that it is judged on, which the models' thresholds are not.
    """
    value = _sensors(watch)[:, ALL_SENSOR_NAMES.index(sensor)]
    for limit in np.geomspace(10.0, 30_000.0, 60):
        asserted = alarms.model_rule(watch.slots, watch.seconds, value / limit)
        found = alarms.outcomes(watch, asserted.astype(np.uint8) * np.uint8(FIRE_ALARM))
        if found.false_alarms <= most:
            return {"sensor": sensor, "limit": round(float(limit), 1), **alarms.summary(found)}
    return {"sensor": sensor, "limit": None}


def _lacking(watch: Watched, choices: Sequence[tuple[Choice, Booleans]]) -> dict[str, Any]:
    """The same held-out devices as if they had been built without some sensors: the model's rule alone, all rules."""
    answer: dict[str, Any] = {}
    for name, absent in BUILT_WITHOUT.items():
        sensors = _sensors(watch).copy()
        sensors[:, [ALL_SENSOR_NAMES.index(sensor) for sensor in absent]] = np.nan
        lacking = replace(watch, matrix=features.without(watch.matrix, absent), sensors=sensors)
        ratio = np.empty(len(watch))
        for choice, rows in choices:
            ratio[rows] = _ratio(choice, lacking, rows)
        answer[name] = {detector: alarms.summary(found) for detector, found in _found(lacking, ratio).items()}
    return answer


def _quiet(model: OnnxModel, threshold: float, seed: int) -> list[dict[str, Any]]:
    """Alarms of all rules in quiet air: devices that nothing happens to, but weather, people and faults."""
    answer = []
    first = FIRST_QUIET_DEVICE
    for devices, days, interval_s in QUIET:
        found = []
        for low in range(0, devices, QUIET_BATCH):
            start = datetime(2025, 1, 6, tzinfo=UTC) + timedelta(days=68 * (low // QUIET_BATCH))
            frame = simulate(
                min(QUIET_BATCH, devices - low),
                start,
                days * 86_400,
                seed,
                interval_s=interval_s,
                fires_per_device_day=0,
                nuisances_per_device_day=0,
                first_device=first + low,
            )
            watch = feature_tables.watched_frame(frame)
            levels = alarms.replay(watch, model.score(watch.matrix), threshold, sensors=True)
            found.append(alarms.outcomes(watch, levels.together))
        first += devices
        pooled = alarms.joined(found)
        years = pooled.quiet_device_days / DAYS_PER_YEAR
        answer.append(
            {
                "seconds_between_readings": interval_s,
                "device_days": round(pooled.quiet_device_days, 1),
                "alarms": pooled.quiet_alarms,
                "alarms_per_device_year": round(pooled.quiet_alarms / years, 3),
                "upper_95": round(alarms.upper_count(pooled.quiet_alarms) / years, 3),
            }
        )
    return answer


def _twice(folder: Path) -> dict[str, Any]:
    """The platform's own start-up set: a training with all figures that the gate asks for, and its model once more."""
    lake, seed = Lake(str(folder)), TrainingWorld().seed
    feature_tables.build_simulated(lake, TrainingWorld())
    began = time.monotonic()
    trained = trainer.train(feature_tables.simulated_examples(lake), seed)
    taken = time.monotonic() - began
    examples = feature_tables.simulated_examples(lake)
    again = trainer.choose(examples.only(~examples.holdout), seed)
    sha256 = hashlib.sha256(again.fitted.artifact).hexdigest()
    manifest = trained.manifest
    return {
        "sha256": [manifest["sha256"], sha256],
        "thresholds": [manifest["threshold"], round(again.threshold, 6)],
        "same": manifest["sha256"] == sha256 and manifest["threshold"] == round(again.threshold, 6),
        "algorithm": manifest["algorithm"],
        "fits": trainer.FITS_OF_A_TRAINING,
        "seconds": round(taken, 1),
        "processor_seconds": manifest["training_cpu_seconds"],
        "load": round(os.getloadavg()[0], 1),
        "validation": {name: manifest["validation"][name] for name in ("grouped", "random_split", "alarms", "holdout")},
        "reference": {"fits": REFERENCE_FITS, "minutes": REFERENCE_MINUTES, "cores": 2},
    }


# -- the suite -----------------------------------------------------------------------------------------------
def suite(world: TrainingWorld = WORLD) -> dict[str, Any]:
    """Held-out fire families, nuisance families, devices and seasons over at least 135 fires; training twice."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="smoke-models-") as folder:
        answer = _proved(world, Path(folder))
    return {**answer, "seconds": round(time.monotonic() - began, 1), "load_at_end": round(os.getloadavg()[0], 1)}


def _proved(world: TrainingWorld, folder: Path) -> dict[str, Any]:
    began = time.monotonic()

    def timed(what: str, make: Callable[..., _Result]) -> _Result:
        _say(f"{time.monotonic() - began:6.0f} s  {what}")
        return make()

    seed = world.seed
    twice = timed("training twice", lambda: _twice(folder / "twice"))
    examples, watch = timed("simulating", lambda: _world(world, folder / "world"))
    groups, labels = examples.group.tolist(), examples.label
    device_fold = evaluation.group_folds(groups, labels, DEVICE_FOLDS, seed)
    ratio, choices, per_reading = timed("devices held out", lambda: _by_group(examples, watch, device_fold, seed))
    fleet = examples.device.str.extract(r"(\d+)$").cast(pl.Int64) - 1 - feature_tables.FIRST_TRAINING_DEVICE
    fleet_names = (fleet // world.devices_per_fleet).cast(pl.String).to_list()
    fleet_fold = evaluation.group_folds(fleet_names, labels, FLEET_FOLDS, seed)
    season_ratio, _, _ = timed("recordings held out", lambda: _by_group(examples, watch, fleet_fold, seed))
    family_ratio, models = timed("families held out", lambda: _by_family(examples, watch, ratio, seed))
    final = timed("a model of all of it", lambda: _choose(examples, watch, seed))
    everything = np.ones(len(watch), dtype=np.bool_)
    known = _ratio(final, watch, everything)

    found = {
        name: timed(f"replaying: {name}", lambda ratio=scores: _found(watch, ratio))
        for name, scores in (
            ("family_held_out", family_ratio),
            ("device_held_out", ratio),
            ("recording_held_out", season_ratio),
            ("nothing_held_out", known),
        )
    }
    of_families, of_devices = found["family_held_out"], found["device_held_out"]
    random_split = timed("random split", lambda: trainer.random_split(examples, final.fitted.algorithm, seed))
    baselines = {
        f"as many false alarms as {name}": _plain_threshold(watch, outcome.false_alarms)
        for name, outcome in (
            ("the model, families held out", of_families["model"]),
            ("the model, devices held out", of_devices["model"]),
            ("all rules, devices held out", of_devices["together"]),
        )
    }
    lacking = timed("devices built without some sensors", lambda: _lacking(watch, choices))
    quiet = timed("quiet air", lambda: _quiet(final.fitted.model, final.threshold, seed))
    together = of_families["together"]
    goals = {
        "at least 135 held-out fires": len(together.of("fire")) >= LEAST_FIRES,
        "no fire missed, family and device unseen, all rules": not together.missed,
        "no fire missed, family and device unseen, the model's rule alone": not of_families["model"].missed,
        "no alarm on nuisances of unseen families, all rules": not any(one.alarmed for one in together.of("nuisance")),
        "at most one false alarm in a device-year of quiet air": all(
            part["alarms_per_device_year"] <= alarms.QUIET_ALARMS_PER_DEVICE_YEAR for part in quiet
        ),
        "training twice gives the same model": twice["same"],
        "a training within 60 s": twice["seconds"] <= 60,
    }
    return {
        # A goal that is missed is a result; what must hold is that the proof itself is one.
        "ok": goals["at least 135 held-out fires"] and goals["training twice gives the same model"],
        "goals": goals,
        "world": {
            "seed": seed,
            "devices": len(watch.devices),
            "readings": len(watch),
            "key": world.key(),
            "code": trainer.code_version(),
            "statement": feature_tables.SIMULATED_STATEMENT,
        },
        "protocols": {
            name: {detector: alarms.summary(outcome, seed) for detector, outcome in parts.items()}
            for name, parts in found.items()
        },
        "readings": {"device_held_out": per_reading, "random_split": random_split},
        "threshold_of_pm2_5": baselines,
        "built_without": lacking,
        "quiet_air": quiet,
        "training": twice,
        "models": {"device_folds": [_told(choice) for choice, _ in choices], "families": models, "all": _told(final)},
    }
