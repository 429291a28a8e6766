"""The champion on recorded fire tests, as an asset with checks.

Belongs here: the asset, its checks, and what its outcome means. Does not: the run (``adapters.external_validation``),
mapping and pairing (``domain.external_validation``).

The goals warn: a model that hears a fire later than a commercial alarm is worth a look, and no reason to stop. An alarm
before ignition is an error: nothing burned.
"""

from datetime import UTC, datetime
from typing import Final

import dagster as dg  # its annotations are looked at when assets are made, so none is postponed here

from smoke_platform.adapters import external_validation as program
from smoke_platform.adapters.external_validation_page import page_data, pair_rows, share_rows, validation_page
from smoke_platform.domain.external_validation import AlarmKind, Validation
from smoke_platform.orchestration import names
from smoke_platform.orchestration.monitoring import Step, tell
from smoke_platform.orchestration.monitors import NotEvaluated, Outcome, Verdict, champion, store
from smoke_platform.settings import Settings

#: Share of pairs in which ours is to be the earlier one.
GOALS: Final = {AlarmKind.PHOTOELECTRIC: 0.90, AlarmKind.IONISATION: 0.50}
CHECKS: Final = {
    AlarmKind.PHOTOELECTRIC: "photoelectric_won_at_least_90",
    AlarmKind.IONISATION: "ionisation_won_at_least_50",
}
BEFORE_IGNITION = "no_alarm_before_ignition"
KIND_OF_REPORT = "external-validation"


def definitions(settings: Settings) -> dg.Definitions:
    """The asset with its checks. It has no schedule: its outcome changes with the champion alone."""
    return dg.Definitions(assets=[_asset(settings)])


def external_validation(settings: Settings, now: datetime) -> Outcome | NotEvaluated:
    """Runs the champion over the tests and stores a report.

    Raises:
        SmokeError: for tests that are not in the format, or a champion that must not be believed.
    """
    if settings.data_dir is None:
        return NotEvaluated("SMOKE_DATA_DIR is not set: it names the folder of the example data")
    folder = settings.data_dir / program.FOLDER
    if not folder.is_dir():
        return NotEvaluated(f"SMOKE_DATA_DIR holds no folder {program.FOLDER}")
    # A check must not train a model in passing, as the command does.
    if isinstance(scorer := champion(settings), NotEvaluated):
        return scorer
    validation = program.run(folder, settings).validation
    made = f"By the asset {names.EXTERNAL_VALIDATION.to_user_string()} on {now:%Y-%m-%d %H:%M} UTC."
    report = store(settings).write(KIND_OF_REPORT, validation_page(validation, made), page_data(validation), moment=now)
    numbers: dict[str, float | int | str] = {
        "model": validation.model,
        "pairs": len(validation.pairs),
        "before_ignition": validation.before_ignition,
    }
    for kind in AlarmKind:
        share = validation.share_won(kind)
        numbers |= {} if share is None else {f"{kind}_won": share}
    verdicts, unjudged = _verdicts(validation)
    tables = {"shares": share_rows(validation), "pairs": pair_rows(validation)}
    return Outcome(report, numbers, tables, verdicts, unjudged)


def _verdicts(validation: Validation) -> tuple[tuple[Verdict, ...], dict[str, str]]:
    verdicts: list[Verdict] = []
    unjudged: dict[str, str] = {}
    for kind, name in CHECKS.items():
        share, counted = validation.share_won(kind), len(validation.counted(kind))
        if share is None:
            unjudged[name] = f"no pair with a {kind} alarm counts"
            continue
        words = f"earlier than the {kind} alarm in {share:.1%} of {counted} pairs (goal {GOALS[kind]:.0%})"
        verdicts.append(Verdict(name, share >= GOALS[kind], "WARN", words, {"share": share, "pairs": counted}))
    count = validation.before_ignition
    early = [f"{d.place.test} {d.place.name}" for d, heard in validation.devices if heard.before_ignition]
    words = f"before ignition at {', '.join(early)}" if early else f"none of {len(validation.devices)} devices"
    verdicts.append(Verdict(BEFORE_IGNITION, not count, "ERROR", words, {"before_ignition": count}))
    return tuple(verdicts), unjudged


def _asset(settings: Settings) -> dg.AssetsDefinition:
    key = names.EXTERNAL_VALIDATION

    @dg.multi_asset(
        name=key.path[-1],
        specs=[
            dg.AssetSpec(
                key,
                deps=[dg.AssetDep(names.CHAMPION_MODEL)],
                group_name=names.GROUP_MODELS,
                description="The champion on recorded fire tests, against the commercial alarms that hung there",
                kinds={"onnx"},
                skippable=True,
            )
        ],
        check_specs=[dg.AssetCheckSpec(name, asset=key) for name in (*CHECKS.values(), BEFORE_IGNITION)],
        # Only so may asset and checks be left out where nothing could be judged.
        can_subset=True,
    )
    def external_validation_asset(context: dg.AssetExecutionContext) -> Step:
        yield from tell(context, settings, key, external_validation(settings, datetime.now(UTC)))

    return external_validation_asset
