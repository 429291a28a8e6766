"""Training on a small simulated set, with the real scikit-learn, converter and ONNX runtime."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from smoke_platform.adapters import feature_tables, fitting, trainer
from smoke_platform.adapters.lake import Lake
from smoke_platform.domain import alarm_evaluation, evaluation, features
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.promotion import Audit, Limits, judge
from smoke_platform_tests.integration.small_models import QUICK, SEED, WORLD, small_examples, small_lake, small_model

pytestmark = pytest.mark.integration


def test_the_trained_model_is_whole_and_says_what_it_is() -> None:
    """Whoever reads the manifest must learn that no real fire was ever seen, and which rows it was trained on."""
    trained = small_model()
    manifest = trained.manifest
    assert manifest["sha256"] == hashlib.sha256(trained.artifact).hexdigest()
    assert manifest["feature_names"] == list(features.FEATURE_NAMES)
    assert manifest["trained_on"]["kind"] == "simulated"
    assert manifest["trained_on"]["simulated"] is True
    assert "No real fire" in manifest["trained_on"]["statement"]
    assert manifest["trained_on"]["fingerprint"] == small_examples().fingerprint()
    assert manifest["trained_on"]["sampling"]["quiet_air_one_in"] == WORLD.quiet_every
    learned = ~small_examples().holdout
    assert manifest["trained_on"]["rows"] == int(learned.sum())
    assert manifest["trained_on"]["held_out"]["rows"] == int((~learned).sum())
    assert manifest["validation"]["kind"] == "4 folds grouped by device_id"
    assert 0.0 < manifest["threshold"] < 1.0
    assert trained.reference.height <= trainer.REFERENCE_ROWS
    assert set(features.FEATURE_NAMES) < set(trained.reference.columns)


def test_the_gate_lets_it_pass_on_the_strength_of_its_onnx_outputs() -> None:
    """The start-up model must pass the very gate that later ones face, parity on 100,000 rows with NaN included."""
    trained = small_model()
    figures = trainer.figures(trained.manifest, trained.artifact, None, None)
    assert figures.parity.rows >= 100_000
    assert figures.parity.rows_with_nan > 20_000
    # The data are audited by whoever registers the version.
    figures = replace(figures, audit=Audit(clean=True))
    assert judge(figures, Limits(min_accuracy=0.80, min_f1=0.75)).reasons == ()


def test_the_same_rows_and_seed_give_the_same_bytes() -> None:
    """A version that cannot be made again cannot be examined."""
    learning = small_examples().only(~small_examples().holdout)
    again = trainer.choose(learning, SEED, algorithms=QUICK)
    assert again.fitted.artifact == small_model().artifact
    assert round(again.threshold, 6) == small_model().manifest["threshold"]


@pytest.mark.parametrize("algorithm", QUICK, ids=lambda algorithm: algorithm.name)
def test_every_algorithm_keeps_parity_on_rows_with_missing_sensors(algorithm: fitting.Algorithm) -> None:
    """An exported forest once was wrong on 44% of the rows with NaN, without a word."""
    examples = small_examples()
    rows = examples.only(~examples.holdout)
    fitted = fitting.fit(algorithm, rows.matrix, rows.label, SEED)
    rng = np.random.default_rng(1)
    matrix = np.where(rng.random(rows.matrix.shape) < 0.3, np.float32(np.nan), rows.matrix)
    matrix = np.concatenate([rows.matrix, matrix, np.full((1, features.FEATURE_COUNT), np.nan, np.float32)])
    found = evaluation.parity(fitted.trained_probability(matrix), fitted.model.score(matrix), len(matrix))
    assert found.share_beyond <= 1e-4, found
    assert found.largest_difference <= 0.1
    if algorithm.binned:
        # Its limits are values that were seen, so that no row is rounded to the other side of one.
        assert found.beyond_tolerance == 0, found


@pytest.mark.parametrize("algorithm", QUICK, ids=lambda algorithm: algorithm.name)
def test_a_fleet_that_never_measured_a_sensor_can_be_trained_on(algorithm: fitting.Algorithm) -> None:
    """Nobody's devices have every sensor; a column without any value made scikit-learn's boosting fail."""
    examples = small_examples()
    rows = examples.only(~examples.holdout)
    fitted = fitting.fit(algorithm, features.without(rows.matrix, ("co_ppm", "pm1_0")), rows.label, SEED)
    # A device that has the sensor all the same is scored, too.
    found = evaluation.parity(fitted.trained_probability(rows.matrix), fitted.model.score(rows.matrix), len(rows))
    assert found.share_beyond <= 1e-4, found
    assert fitted.model.score(rows.matrix)[rows.label].mean() > 0.5


def test_every_device_can_be_left_out_once() -> None:
    """A model must know fire on devices it has never seen; with as many folds as devices each is left out alone."""
    examples = small_examples()
    learning = examples.only(~examples.holdout)
    devices = np.unique(learning.group)
    fold = evaluation.group_folds(learning.group.tolist(), learning.label, len(devices), SEED)
    algorithm = QUICK[1]
    probability = np.zeros(len(learning))
    for number in range(len(devices)):
        held = fold == number
        assert len(np.unique(learning.group[held])) == 1
        seen = learning.only(~held)
        assert not set(seen.group) & set(learning.group[held])
        probability[held] = fitting.fit(algorithm, seen.matrix, seen.label, SEED).model.score(learning.matrix[held])
    counts = evaluation.confusion(learning.label, probability >= 0.5, learning.weight)
    assert counts.f1 > 0.7, counts


def test_alarms_of_the_held_out_devices_are_in_the_manifest() -> None:
    """A version is judged by fires told and missed; a figure per reading alone hides a fire that nobody is told of."""
    trained, held = small_model(), small_examples().only(small_examples().holdout)
    validation = trained.manifest["validation"]
    for found in (validation["alarms"], *validation["holdout"]["alarms"].values()):
        assert found["fires"] > 0
        assert (
            found["missed"]
            + sum(family["alarmed"] for family in found["by_family"].values() if family["kind"] == "fire")
            == found["fires"]
        )
        assert found["quiet_device_days"] > 0
    assert set(validation["holdout"]["alarms"]) == {"model", "rules", "together"}
    assert validation["alarms"]["missed"] <= validation["alarms"]["fires"] // 4
    found = trainer.held_out_outcomes(trained.artifact, trained.manifest["threshold"], held)
    assert alarm_evaluation.summary(found) == validation["holdout"]["alarms"]["model"]
    assert {outcome.device for outcome in found.episodes} <= set(held.group)


def test_a_reading_that_stands_alone_can_be_called_fire() -> None:
    """No reading without history scores as high as an alarm needs: the API would answer `no_fire` to all of them."""
    alone = small_model().manifest["validation"]["holdout"]["single_readings"]
    assert 0.0 < small_model().manifest["threshold_single"] < 1.0
    assert alone["recall"] > 0.2
    assert alone["precision"] > 0.2


def test_two_models_are_judged_on_the_same_fires() -> None:
    """The gate compares a candidate with the champion fire by fire; a fire that only one was shown decides nothing."""
    held = small_examples().only(small_examples().holdout)
    careless, deaf = (trainer.held_out_outcomes(small_model().artifact, limit, held) for limit in (0.001, 0.999999))
    assert [outcome.episode for outcome in careless.episodes] == [outcome.episode for outcome in deaf.episodes]
    assert careless.quiet_device_days == deaf.quiet_device_days
    assert len(careless.missed) < len(deaf.missed)


def test_fires_of_a_labelled_recording_are_its_stretches_of_fire() -> None:
    """Readings of real devices do not tell their episodes, and their fires must count all the same."""
    held = small_examples().only(small_examples().holdout)
    nothing = pl.Series([None] * len(held), dtype=pl.String)
    blind = replace(held, episode=nothing, kind=nothing, family=nothing)
    known, found = held.watched(), blind.watched()
    onsets = {(one.device, one.onset) for one in known.episodes if one.kind == "fire" and one.whole}
    assert onsets
    assert onsets <= {(one.device, one.onset) for one in found.episodes}
    assert all(one.kind == "fire" for one in found.episodes)


def test_what_is_chosen_is_chosen_on_families_that_were_not_learnt() -> None:
    """A threshold for fires and nuisances known by heart is too low for a nuisance that nobody thought of."""
    learning = small_examples().only(~small_examples().holdout)
    inner, families = trainer._inner(learning, SEED)
    assert set(families) == set(learning.family.drop_nulls().unique())
    for fold in range(trainer.INNER_FOLDS):
        learnt, checked = inner.learnt(fold), inner.checked(fold)
        assert not (learnt & checked).any()
        assert not set(learning.family.filter(pl.Series(learnt)).drop_nulls()) & {
            family for family, of in families.items() if of == fold
        }
        quiet = checked & learning.family.is_null().to_numpy()
        assert not set(learning.group[learnt]) & set(learning.group[quiet])
    assert (sum(inner.checked(fold).astype(int) for fold in range(trainer.INNER_FOLDS)) == 1).all()


@pytest.mark.parametrize("absent", trainer.LACKING[:3], ids=["no gas", "no CO", "neither"])
def test_a_device_that_lacks_a_chip_still_alarms(absent: tuple[str, ...]) -> None:
    """A device without gas sensors is sold too, and whoever hangs it up relies on it."""
    held = small_examples().only(small_examples().holdout)
    lacking = replace(held, matrix=features.without(held.matrix, absent))
    found = trainer.held_out_outcomes(small_model().artifact, small_model().manifest["threshold"], lacking)
    assert len(found.missed) <= len(found.of("fire")) // 2


def test_labels_without_meaning_do_not_pass_the_gate() -> None:
    """If shuffled labels passed, the figures would measure a leak and not a skill."""
    examples = small_examples()
    shuffled = np.random.default_rng(0).permutation(examples.label)
    trained = trainer.train(replace(examples, label=shuffled), SEED, parity_rows=1_000, algorithms=QUICK[:1])
    verdict = judge(
        trainer.figures(trained.manifest, trained.artifact, None, None),
        Limits(min_accuracy=0.80, min_f1=0.75, parity_rows=1_000),
    )
    assert not verdict.passed
    assert any(reason.startswith("grouped F1") for reason in verdict.reasons)


def test_held_out_devices_are_never_trained_on() -> None:
    """Comparing versions on rows that one of them knows by heart is no comparison."""
    examples = small_examples()
    held = set(examples.group[examples.holdout])
    assert held
    assert all(evaluation.in_holdout(name) for name in held)
    assert not held & set(examples.group[~examples.holdout])
    assert not held & set(small_model().reference["device_id"].to_list())


def test_one_class_or_one_group_is_refused_in_words() -> None:
    """A user with one recording must be told what is lacking, not see a stack trace."""
    examples = small_examples()
    one = examples.only(examples.group == examples.group[0])
    with pytest.raises(SmokeError, match="at least three"):
        trainer.train(one, SEED)
    with pytest.raises(SmokeError, match="one class"):
        fitting.fit(fitting.ALGORITHMS[0], examples.matrix[:9], np.zeros(9, dtype=bool), SEED)


def test_the_simulated_set_is_made_once_and_is_the_same_each_time(tmp_path: object) -> None:
    """Nightly training must not simulate anew what is there, and a new machine must get the same rows."""
    lake = Lake(f"{tmp_path}/lake")
    assert not feature_tables.is_current(lake, WORLD)
    feature_tables.build_simulated(lake, WORLD)
    assert feature_tables.is_current(lake, WORLD)
    assert not feature_tables.is_current(lake, replace(WORLD, seed=WORLD.seed + 1))
    assert feature_tables.simulated_examples(lake).fingerprint() == small_examples().fingerprint()
    assert small_lake().is_dir()
