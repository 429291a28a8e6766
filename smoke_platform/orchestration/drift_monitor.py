"""The drift monitor without Dagster: a day of features, whole, beside the champion's own training snapshot.

Belongs here: how the day is read part by part, what Evidently is given, thresholds at which somebody is told, the
report. Does not: distances and verdicts (``domain.drift``), drawing (``adapters.reports``), the asset
(``orchestration.monitoring``), what follows from drift (``orchestration.retraining``).

Every row of the day is looked at, in parts of whole devices, so that memory is bounded by a part and not by the day.
Evidently draws a bounded sample of the same rows; both verdicts stand in the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.reports import DrawnDrift, Section, draw_drift, headed
from smoke_platform.adapters.scorer import OnnxScorer
from smoke_platform.domain import drift
from smoke_platform.domain.drift import DayDrift, DeviceDrift, FleetTally, Ordered
from smoke_platform.domain.features import FEATURE_NAMES
from smoke_platform.orchestration.monitors import (
    FEATURES,
    SAMPLE_SEED,
    NotEvaluated,
    Outcome,
    Verdict,
    champion,
    matrix_of,
    of_day,
    sample,
    store,
)
from smoke_platform.settings import Settings

#: Rows of each side that Evidently gets, and of the snapshot: more only makes it slower.
DRIFT_ROWS = 10_000
#: Rows of the day in memory at once, below a kilobyte each; a device that has more is read whole all the same.
ROWS_AT_ONCE = 250_000
#: A few hours differ from training by the time of day alone.
DRIFT_LEAST_HOURS = 6.0
DRIFT_LEAST_ROWS = drift.LEAST_VALUES
#: Passes over the columns whose bounds have the threshold in between; each makes them 64 times as narrow.
FINER_PASSES = 3

#: Checks that speak of the fleet: where one fails, training anew is asked for.
FLEET_CHECKS = ("drift_within_limits", "predictions_within_limits", "targets_within_limits")
CHECKS = (*FLEET_CHECKS, "no_odd_devices")

_Columns = Mapping[str, npt.NDArray[np.floating[Any]]]


def drift_report(settings: Settings, day: date, now: datetime) -> Outcome | NotEvaluated:
    """Compares a day's features with the snapshot that the champion was trained on.

    Raises:
        ModelRefused: for a champion that must not be believed.
    """
    scorer = champion(settings)
    if isinstance(scorer, NotEvaluated):
        return scorer
    reference_file = (settings.models_dir / scorer.champion.path).parent / "reference.parquet"
    if not reference_file.is_file():
        return NotEvaluated(f"the champion {scorer.version} has no training snapshot ({reference_file} does not exist)")
    lake = Lake(settings.lake)
    if not lake.exists(FEATURES):
        return NotEvaluated("no features have been built yet")
    rows = of_day(lake, FEATURES, day)
    total = int(rows.select(pl.len()).collect(engine="streaming").item())
    if total < DRIFT_LEAST_ROWS:
        return NotEvaluated(f"{day} has {total} feature rows, too few for a comparison ({DRIFT_LEAST_ROWS})")
    snapshot = _snapshot(reference_file, scorer)
    found, reference = _whole_day(rows, scorer, snapshot)
    drawn = _drawn(rows, scorer, reference, found)
    hours = rows.select(pl.col("event_time").dt.truncate("1h").n_unique()).collect(engine="streaming").item()
    data = {
        "day": day,
        "champion": scorer.version,
        "rows_of_the_day": total,
        "hours_covered": hours,
        "compared": reference.compared,
        **found.as_dict(),
        "evidently": drawn.as_dict(found),
    }
    tables = _tables(found, drawn)
    sections = [Section(title, table) for title, table in tables.items()]
    lead = f"{day} ({total:,} rows, {hours} hours) beside the training snapshot of champion {scorer.version}"
    page = headed(drawn.drawn.page, "Drift", lead, _headline(found), sections)
    report = store(settings).write("drift", page, data, moment=now, label=day.isoformat())
    few = hours < DRIFT_LEAST_HOURS
    reason = f"the day's rows cover {hours} hours, fewer than {DRIFT_LEAST_HOURS:g}: the time of day alone would differ"
    unjudged = dict.fromkeys(CHECKS, reason) if few else _unjudged(found)
    verdicts = () if few else _verdicts(found, scorer.version)
    return Outcome(report, _numbers(found, drawn, data), tables, verdicts, unjudged)


# -- the snapshot ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reference:
    """The training snapshot as it is compared with.

    Attributes:
        frame: its rows, with the champion's ``prediction``.
        quiet_only: whether only rows are compared that the champion doesn't call fire.
    """

    frame: pl.DataFrame
    threshold: float
    quiet_only: bool

    @property
    def compared(self) -> str:
        few = "all rows, as too few are not called fire"
        return "rows that the model does not call fire" if self.quiet_only else few

    @cached_property
    def rows(self) -> pl.DataFrame:
        return self.frame.filter(pl.col(FleetTally.SCORE) < self.threshold) if self.quiet_only else self.frame

    @cached_property
    def columns(self) -> _Columns:
        return _columns(matrix_of(self.rows), self.rows[FleetTally.SCORE].to_numpy())

    @cached_property
    def ordered(self) -> dict[str, Ordered]:
        return {name: drift.ordered(values) for name, values in self.columns.items()}

    @property
    def fire_share(self) -> float:
        return float(np.mean(self.frame[FleetTally.SCORE].to_numpy() >= self.threshold))

    @property
    def labels(self) -> npt.NDArray[np.bool_] | None:
        """Whether each row was labelled fire; ``None`` in a snapshot from before labels were kept."""
        if "label" not in self.frame.columns:
            return None
        return self.frame["label"].drop_nulls().to_numpy().astype(np.bool_)


def _snapshot(file: Path, scorer: OnnxScorer) -> _Reference:
    wanted = [name for name in pl.read_parquet_schema(file) if name in (*FEATURE_NAMES, "label")]
    frame = pl.read_parquet(file, columns=wanted)
    if frame.height > DRIFT_ROWS:
        frame = frame.sample(DRIFT_ROWS, seed=SAMPLE_SEED)
    # Scored anew on both sides, so that the same model draws the line through both.
    frame = frame.with_columns(pl.Series(FleetTally.SCORE, scorer.score(matrix_of(frame))))
    quiet = frame.filter(pl.col(FleetTally.SCORE) < scorer.threshold).height
    return _Reference(frame, scorer.threshold, quiet >= DRIFT_LEAST_ROWS)


def _columns(matrix: npt.NDArray[np.float32], scores: npt.NDArray[np.float64]) -> _Columns:
    by_column = np.ascontiguousarray(matrix.T)
    return {**dict(zip(FEATURE_NAMES, by_column, strict=True)), FleetTally.SCORE: scores}


# -- the day -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Some devices' rows of the day, in the devices' order."""

    frame: pl.DataFrame
    matrix: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float64]
    compared: npt.NDArray[np.bool_]

    def columns(self, rows: npt.NDArray[np.bool_]) -> _Columns:
        chosen = rows & self.compared
        return _columns(self.matrix[chosen], self.scores[chosen])

    def of(self, devices: Sequence[str]) -> npt.NDArray[np.bool_]:
        return self.frame["device_id"].is_in(list(devices)).to_numpy()


def _parts(rows: pl.LazyFrame, scorer: OnnxScorer, quiet_only: bool) -> Iterator[_Part]:
    counts = rows.group_by("device_id").len().sort("device_id").collect(engine="streaming")
    chosen: list[str] = []
    held = 0
    groups = []
    for device, count in counts.iter_rows():
        if chosen and held + count > ROWS_AT_ONCE:
            groups.append(chosen)
            chosen, held = [], 0
        chosen.append(device)
        held += count
    groups.append(chosen)
    for group in groups:
        # All devices in one part: no filter, which would have to be matched against each row.
        some = rows if len(groups) == 1 else rows.filter(pl.col("device_id").is_in(group))
        frame = some.select("device_id", "event_time", "fire_alarm", *FEATURE_NAMES).sort("device_id").collect()
        matrix = matrix_of(frame)
        scores = np.asarray(scorer.score(matrix), dtype=np.float64)
        compared = scores < scorer.threshold if quiet_only else np.ones(len(scores), dtype=np.bool_)
        yield _Part(frame.select("device_id", "event_time", "fire_alarm"), matrix, scores, compared)


def _whole_day(rows: pl.LazyFrame, scorer: OnnxScorer, reference: _Reference) -> tuple[DayDrift, _Reference]:
    devices: list[DeviceDrift] = []
    of_odd, of_others = FleetTally(reference.ordered), FleetTally(reference.ordered)
    for part in _parts(rows, scorer, reference.quiet_only):
        found = list(_devices(part, reference, scorer.threshold))
        devices += found
        odd = part.of([device.device for device in found if device.odd])
        for tally, chosen in ((of_odd, odd), (of_others, ~odd)):
            _add(tally, part, chosen, scorer.threshold)
    if reference.quiet_only and of_odd.compared_rows + of_others.compared_rows < DRIFT_LEAST_ROWS:
        return _whole_day(rows, scorer, _Reference(reference.frame, reference.threshold, False))
    set_aside = drift.odd_ones(devices)
    fleet = of_others if set_aside else of_others.merge(of_odd)
    _decide(fleet, rows, scorer, reference, set_aside)
    labels = reference.labels
    day = fleet.day(
        fire_share_reference=reference.fire_share,
        label_share_reference=None if labels is None or not len(labels) else float(labels.mean()),
        devices=devices,
        odd=set_aside,
    )
    return day, reference


def _add(tally: FleetTally, part: _Part, rows: npt.NDArray[np.bool_], threshold: float) -> None:
    if not rows.any():
        return
    labels = part.frame["fire_alarm"].filter(pl.Series(rows)).drop_nulls()
    tally.add(
        part.columns(rows),
        rows=int(rows.sum()),
        called=int((part.scores[rows] >= threshold).sum()),
        labelled=len(labels),
        labelled_fires=int(labels.sum()),
    )


def _devices(part: _Part, reference: _Reference, threshold: float) -> Iterator[DeviceDrift]:
    names = part.frame["device_id"]
    runs = part.frame.select(pl.col("device_id").rle()).unnest("device_id")
    stops = runs["len"].cum_sum().to_list()
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        rows = slice(start, stop)
        compared = part.compared[rows]
        summary = None
        if compared.sum() >= DRIFT_LEAST_ROWS:
            columns = _columns(part.matrix[rows][compared], part.scores[rows][compared])
            summary = drift.compare(reference.ordered, columns, FEATURE_NAMES)
        yield drift.of_device(
            str(names[start]),
            summary,
            rows=stop - start,
            hours=part.frame["event_time"][rows].dt.truncate("1h").n_unique(),
            fire_share=float(np.mean(part.scores[rows] >= threshold)),
        )


def _decide(
    fleet: FleetTally, rows: pl.LazyFrame, scorer: OnnxScorer, reference: _Reference, set_aside: Sequence[str]
) -> None:
    """Gives the values once more to the columns that could not be judged, which is rarely any."""
    for _ in range(FINER_PASSES):
        finer = {name: fleet.columns[name].finer() for name in fleet.undecided}
        if not finer:
            return
        for part in _parts(rows, scorer, reference.quiet_only):
            columns = part.columns(~part.of(set_aside))
            for name, tally in finer.items():
                tally.add(columns[name])
        fleet.columns.update(finer)


# -- Evidently ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """Evidently's report of a sample, and our exact distances on the same rows."""

    drawn: DrawnDrift
    ours: drift.DriftSummary
    rows: int

    @property
    def drifted(self) -> bool:
        return self.drawn.drifted_share >= drift.DRIFTED_SHARE_LIMIT

    def as_dict(self, found: DayDrift) -> dict[str, Any]:
        far = [name for name, d in self.drawn.distances.items() if d >= drift.DISTANCE_THRESHOLD]
        return {
            "rows": self.rows,
            "distances": self.drawn.distances,
            "shares": self.drawn.shares,
            "drifted_columns": sorted(far),
            "drifted_share": self.drawn.drifted_share,
            "drifted": self.drifted,
            "ours_on_the_same_rows": {c.column: c.distance for c in self.ours.columns if c.distance is not None},
            "same_verdict_as_the_whole_day": self.drifted == found.data_drifted,
        }


def _drawn(rows: pl.LazyFrame, scorer: OnnxScorer, reference: _Reference, found: DayDrift) -> _Drawn:
    others = rows.filter(~pl.col("device_id").is_in(list(found.odd))) if found.odd else rows
    current, _ = sample(others, DRIFT_ROWS)
    matrix = matrix_of(current)
    scores = np.asarray(scorer.score(matrix), dtype=np.float64)
    called = scores >= scorer.threshold
    chosen = ~called if reference.quiet_only else np.ones(len(scores), dtype=np.bool_)
    now = _columns(matrix[chosen], scores[chosen])
    ours = drift.compare(reference.ordered, now, FEATURE_NAMES)
    shares = {"called fire": (reference.frame[FleetTally.SCORE].to_numpy() >= scorer.threshold, called)}
    before, labels = reference.labels, current["fire_alarm"].drop_nulls().to_numpy().astype(np.bool_)
    if before is not None and len(before) and len(labels):
        shares["labelled fire"] = (before, labels)
    drawn = draw_drift(
        reference.columns,
        now,
        [column.column for column in ours.columns if column.distance is not None],
        threshold=drift.DISTANCE_THRESHOLD,
        drifted_share=drift.DRIFTED_SHARE_LIMIT,
        beside=[FleetTally.SCORE],
        shares=shares,
        share_threshold=drift.SHARE_THRESHOLD,
    )
    return _Drawn(drawn, ours, int(chosen.sum()))


# -- what it means -----------------------------------------------------------------------------------------------


def _headline(found: DayDrift) -> str:
    if not found.indicators:
        return "no sign of drift"
    return f"{len(found.indicators)} signs of drift: {', '.join(found.indicators)}"


def _tables(found: DayDrift, drawn: _Drawn) -> dict[str, list[dict[str, Any]]]:
    of_sample = drawn.drawn
    fleet: list[dict[str, Any]] = [
        {
            "what": "data: share of drifted features",
            "test": "wasserstein",
            "drifted": found.data_drifted,
            "in training": None,
            "that day": found.data.share,
            "distance": None,
            "Evidently, sample": of_sample.drifted_share,
        },
        {
            "what": "prediction: scores of quiet rows",
            "test": "wasserstein",
            "drifted": found.scores.drifted,
            "in training": found.scores.mean_reference,
            "that day": found.scores.mean_current,
            "distance": found.scores.distance,
            "Evidently, sample": of_sample.distances.get(FleetTally.SCORE),
        },
    ]
    fleet += [
        {
            "what": f"{kind}: {share.name}",
            "test": "jensenshannon",
            "drifted": share.drifted,
            "in training": share.reference,
            "that day": share.current,
            "distance": share.distance,
            "Evidently, sample": of_sample.shares.get(share.name),
        }
        for kind, share in (("prediction", found.called), ("target", found.target))
        if share is not None
    ]
    sensors = [
        {
            "sensor": s.sensor,
            "drifted features": len(s.drifted),
            "of": s.features,
            "worst": s.worst,
            "distance": s.distance,
            "missing more by": s.missing_change,
            "silent": s.silent,
        }
        for s in drift.by_sensor(found.data)
    ]
    devices = [
        {
            "device": d.device,
            "odd": d.device in found.odd,
            "drifted features": d.share,
            "worst sensors": ", ".join(d.sensors[:4]),
            "called fire": d.fire_share,
            "rows": d.rows,
            "hours": d.hours,
        }
        for d in found.devices
    ]
    columns = [
        {
            "column": c.column,
            "drifted": c.cause or "no",
            "distance": c.distance,
            "Evidently, sample": of_sample.distances.get(c.column),
            "ks": c.ks,
            "mean in training": c.mean_reference,
            "mean of the day": c.mean_current,
            "missing in training": c.missing_reference,
            "missing that day": c.missing_current,
        }
        for c in found.data.columns
    ]
    return {"fleet": fleet, "sensors": sensors, "devices, the oddest first": devices[:100], "columns": columns}


def _numbers(found: DayDrift, drawn: _Drawn, data: Mapping[str, Any]) -> dict[str, float | int | str]:
    numbers: dict[str, float | int | str] = {
        "share_of_drifted_columns": found.data.share,
        "drifted_columns": len(found.data.drifted),
        "share_by_evidently": drawn.drawn.drifted_share,
        "fire_share_of_the_day": found.called.current,
        "fire_share_in_training": found.called.reference,
        "odd_devices": len(found.odd),
        "devices": len(found.devices),
        "indicators": len(found.indicators),
        "rows_compared": found.data.current_rows,
        "rows_of_the_day": int(data["rows_of_the_day"]),
        "hours_covered": int(data["hours_covered"]),
        "champion": str(data["champion"]),
    }
    if found.scores.distance is not None:
        numbers["score_distance"] = found.scores.distance
    if found.target is not None:
        numbers |= {"labelled_fire_share": found.target.current, "target_distance": found.target.distance}
    return numbers


def _unjudged(found: DayDrift) -> dict[str, str]:
    unjudged = {}
    if found.target is None:
        unjudged["targets_within_limits"] = "no reading of the day has a label, or the snapshot has none"
    if all(device.share is None for device in found.devices):
        unjudged["no_odd_devices"] = (
            f"no device has {drift.DEVICE_LEAST_ROWS} rows over {drift.DEVICE_LEAST_HOURS} hours to be judged by"
        )
    return unjudged


def _verdicts(found: DayDrift, version: str) -> tuple[Verdict, ...]:
    # The version goes along: a champion trained since makes the verdict one about its predecessor.
    verdicts = [_data_verdict(found, version), _prediction_verdict(found, version)]
    if found.target is not None:
        target = found.target
        verdicts.append(
            Verdict(
                "targets_within_limits",
                not target.drifted,
                "WARN",
                f"{target.current:.1%} of the labelled readings are fire, {target.reference:.1%} in training "
                f"(Jensen-Shannon {target.distance:.3f}, limit {drift.SHARE_THRESHOLD:g}, upwards)",
                {"distance": target.distance, "champion": version},
            )
        )
    if any(device.share is not None for device in found.devices):
        worst = [f"{d.device} ({', '.join(d.sensors[:2]) or 'fire'})" for d in found.devices if d.device in found.odd]
        verdicts.append(
            Verdict(
                "no_odd_devices",
                not found.odd,
                "WARN",
                f"{len(found.odd)} of {len(found.devices)} devices differ from training and from the others: "
                + ", ".join(worst[:10])
                if found.odd
                else "no device differs while the others do not",
                {"odd_devices": len(found.odd), "champion": version},
            )
        )
    return tuple(verdicts)


def _data_verdict(found: DayDrift, version: str) -> Verdict:
    data = found.data
    sensors = ", ".join(sensor.sensor for sensor in drift.by_sensor(data)[:5] if sensor.drifted)
    return Verdict(
        "drift_within_limits",
        not found.data_drifted,
        "WARN",
        f"{data.share:.0%} of the features have drifted (limit {drift.DRIFTED_SHARE_LIMIT:.0%})"
        + (f", most of all {', '.join(data.drifted[:5])}; sensors: {sensors}" if data.drifted else ""),
        {"share_of_drifted_columns": data.share, "champion": version},
    )


def _prediction_verdict(found: DayDrift, version: str) -> Verdict:
    called, scores = found.called, found.scores
    faults = []
    if scores.drifted:
        faults.append(f"the scores of quiet rows have moved by {scores.distance:.2f} spreads")
    if called.drifted:
        faults.append(f"{called.current:.1%} are called fire, {called.reference:.1%} in training")
    if called.current >= drift.FIRE_SHARE_LIMIT:
        faults.append(f"the model calls {called.current:.0%} of the day fire (limit {drift.FIRE_SHARE_LIMIT:.0%})")
    return Verdict(
        "predictions_within_limits",
        not faults,
        "WARN",
        "; ".join(faults) or f"{called.current:.1%} are called fire, {called.reference:.1%} in training",
        {"fire_share_of_the_day": called.current, "called_distance": called.distance, "champion": version},
    )
