"""The page that says how good a model is: alarms, families, curves, calibration, what it rests on.

Belongs here: what of a manifest and its curves is shown, in which order, in which words; where the page of a version
lies. Does not: the figures (``domain.alarm_evaluation``, ``domain.evaluation``), drawing (``adapters.svg``), the page's
frame and its store (``adapters.reports``).

A page is kept beside the reports of the monitors, not in ``models/<version>/``, which never changes once it is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smoke_platform.adapters import svg
from smoke_platform.adapters.reports import ReportStore, Section, StoredReport, page
from smoke_platform.settings import Settings

KIND = "evaluation"
_DETECTORS = {"model": "the model's rule alone", "rules": "rules without a model", "together": "all rules together"}


def write(settings: Settings, number: int, manifest: Mapping[str, Any], curves: Mapping[str, Any]) -> StoredReport:
    """Stores the page of a version.

    Args:
        number: of the version.
        curves: as ``evaluation.curves`` gives them; empty where there are none.
    """
    store = ReportStore(settings.reports_dir, settings.report_retention)
    data = {"version": number, "sha256": manifest["sha256"], "validation": manifest["validation"], "curves": curves}
    return store.write(KIND, render(number, manifest, curves), data, moment=datetime.now(UTC), label=_label(number))


def find(settings: Settings, number: int) -> Path | None:
    """The page of a version, ``None`` where it was never made or made room for newer ones."""
    pages = ReportStore(settings.reports_dir, settings.report_retention).list(KIND)
    return next((found for found in reversed(pages) if found.stem.endswith(f"_{_label(number)}")), None)


def _label(number: int) -> str:
    return f"version-{number}"


def render(number: int, manifest: Mapping[str, Any], curves: Mapping[str, Any]) -> str:
    """The page, as HTML."""
    alarms = manifest["validation"].get("alarms")
    if alarms:
        headline = f"{alarms['missed']} of {alarms['fires']} fires missed, {_false(alarms)} false alarms"
    else:
        headline = f"F1 {manifest['validation']['grouped']['f1']:.4f} per reading"
    lead = (
        f"{manifest['algorithm']}, threshold {manifest['threshold']:.4f}, created {manifest['created_at']}. "
        f"{manifest['trained_on']['statement']}"
    )
    return page(f"Model version {number}", lead, headline, _sections(manifest, curves))


def _false(alarms: Mapping[str, Any]) -> int:
    return int(alarms["nuisances_alarmed"]) + int(alarms["quiet_alarms"])


def _sections(manifest: Mapping[str, Any], curves: Mapping[str, Any]) -> Iterator[Section]:
    validation = manifest["validation"]
    alarms = validation.get("alarms")
    holdout = validation.get("holdout") or {}
    if alarms:
        rows = [{"readings of": "folds of held-out devices, model's rule alone", **_row(alarms)}]
        rows += [
            {"readings of": f"devices never trained on, {_DETECTORS[name]}", **_row(found)}
            for name, found in (holdout.get("alarms") or {}).items()
        ]
        yield Section(
            "Fire alarms",
            rows,
            "All readings of the devices, replayed through the rules of the detector. Delay: from the first reading "
            "that is labelled fire. Missed at most: upper end of the exact one-sided 95% interval; an interval of "
            "figures that were drawn anew is of whole fires.",
        )
        yield from _families(alarms)
    yield _per_reading(validation, holdout)
    if curves:
        yield from _curves(curves)
    if validation.get("importances"):
        lost = validation["importances"]
        yield Section(
            "What it rests on",
            [{"sensors": name, "F1 lost": value} for name, value in lost.items()],
            "F1 on devices that it was not trained on, less F1 when these sensors are those of another reading.",
            svg.bars("F1 lost, in thousandths", [(name, max(value, 0.0) * 1_000) for name, value in lost.items()]),
        )
    yield _compared(manifest)


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    low, high = found.get("intervals_95", {}).get("median_delay_s", (None, None))
    upper = found["missed_upper_95"]
    return {
        "fires": found["fires"],
        "missed": found["missed"],
        "missed at most": None if upper is None else f"{100 * upper:.1f}%",
        "median delay (s)": found["median_delay_s"],
        "its 95% interval": None if low is None or high is None else f"{low:.0f} to {high:.0f}",
        "90% within (s)": found["p90_delay_s"],
        "nuisances": found["nuisances"],
        "taken for fire": found["nuisances_alarmed"],
        "quiet device-days": found["quiet_device_days"],
        "alarms in quiet air": found["quiet_alarms"],
        "at most, a device-year": found["false_alarms_per_device_year_upper_95"],
    }


def _families(alarms: Mapping[str, Any]) -> Iterator[Section]:
    for kind, title, note in (
        (
            "fire",
            "Fires by family",
            "Seconds from the first reading that is labelled fire; a missed one is late for ever.",
        ),
        ("nuisance", "Nuisances by family", "Taken for fire: a fire alarm began in it."),
    ):
        families = {name: entry for name, entry in alarms["by_family"].items() if entry["kind"] == kind}
        if not families:
            continue
        rows = []
        for name, entry in families.items():
            row = {"family": name, "episodes": entry["episodes"]}
            if kind == "fire":
                row |= {
                    "missed": entry["episodes"] - entry["alarmed"],
                    "median delay (s)": entry["median_delay_s"],
                    "90% within (s)": entry["p90_delay_s"],
                }
            else:
                row |= {"taken for fire": entry["alarmed"]}
            rows.append(row)
        figure = ""
        if kind == "fire":
            told = [(name, entry["median_delay_s"]) for name, entry in families.items() if entry["median_delay_s"]]
            figure = svg.bars("Median seconds to the alarm", told) if told else ""
        yield Section(title, rows, note, figure)


def _per_reading(validation: Mapping[str, Any], holdout: Mapping[str, Any]) -> Section:
    parts = {
        f"{validation['kind']}, at the greatest F1": validation["grouped"],
        f"{validation['kind']}, at the threshold for alarms": validation["grouped_at_threshold"],
        **({"devices never trained on": holdout} if holdout else {}),
        **({"the same, each reading alone": holdout["single_readings"]} if holdout else {}),
        "random split: flatters, decides nothing": validation["random_split"],
    }
    names = ("accuracy", "f1", "precision", "recall", "true_fire", "missed_fire", "false_fire", "true_quiet")
    rows = [{"readings of": title, **{name: part[name] for name in names}} for title, part in parts.items()]
    return Section(
        "Readings, one by one",
        rows,
        "Confusion, weighted back to all readings; on devices never trained on at the threshold for alarms. A split by "
        "reading has the same minute on both sides: it measures memory.",
    )


def _curves(curves: Mapping[str, Any]) -> Iterator[Section]:
    roc = svg.curves("ROC", {"model": curves["roc"]}, "share of quiet readings called fire", "recall", diagonal=True)
    precision = svg.curves("Precision and recall", {"model": curves["pr"]}, "recall", "precision")
    yield Section(
        "ROC, precision and recall",
        [{"area below ROC": curves["roc_area"], "average precision": curves["pr_area"]}],
        "Readings of the folds' held-out devices, scored by models that have not seen them.",
        roc + precision,
    )
    said = [(entry[0], entry[1]) for entry in curves["calibration"]]
    yield Section(
        "Calibration",
        [
            {"mean score": entry[0], "share that burns": entry[1], "readings": round(entry[2])}
            for entry in curves["calibration"]
        ],
        f"Brier score {curves['brier']:.4f}. Classes are weighted in training, because fire is rare: scores rank "
        "readings and are compared with the threshold; they are not chances of a fire.",
        svg.curves("Calibration", {"model": said}, "mean score", "share that burns", diagonal=True),
    )


def _compared(manifest: Mapping[str, Any]) -> Section:
    budget = manifest["validation"].get("threshold")
    lines = []
    if budget:
        within = budget["within_budget"]
        lines.append(
            "Threshold on validation fires: "
            + ("none is within the budget" if within is None else f"within the budget from {within:.4f} on")
            + f", no fire missed up to {budget['without_miss']:.4f}."
        )
    rows = [
        {"candidate": name, "F1": entry["f1"], "accuracy": entry["accuracy"], "fit (s)": entry["fit_seconds"]}
        for name, entry in manifest["validation"]["compared"].items()
    ]
    note = (
        "Compared within the training devices on families and devices that none of them had seen. Of those that are "
        "as good, the first is taken."
    )
    return Section("Candidates", rows, note, lines=lines)
