"""The feature tables of the lake, and the labelled rows that training takes from them.

Belongs here: ``lake/features`` by UTC day, the simulated training set (``lake/simulated_readings`` and
``lake/simulated_features``), and the choice of what to train on. Does not: what the features are
(``domain.features``), the simulated world (``domain.simulator``), fitting a model (``adapters.trainer``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake
from smoke_platform.domain import alarm_evaluation, evaluation, features, simulator
from smoke_platform.domain.alarm_evaluation import Watched
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, Source
from smoke_platform.domain.simulator import simulate
from smoke_platform.settings import Settings

FEATURES = "features"
SIMULATED_READINGS = "simulated_readings"
SIMULATED_FEATURES = "simulated_features"

#: Columns of ``lake/features`` before the features themselves.
IDENTITY = ("device_id", "event_time", "sequence", "source", "topic_id", "partition", "offset", "fire_alarm")

Progress = Callable[[str], None]


def silent(_message: str) -> None:
    return


# -- lake/features -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class DayOfFeatures:
    """What building a day took and gave: rows written, readings taken to warm up, duplicates left out."""

    rows: int
    devices: int
    warm_up_rows: int
    duplicates: int
    version: int


def build_day(lake: Lake, day: date) -> DayOfFeatures:
    """Writes one UTC day of ``lake/features`` anew, from ``lake/readings``.

    Each device starts blank ``features.WARM_UP_S`` (4 hours) before the day and takes its readings in the order in
    which they arrived, as the detector does. What a longer history would change is less than exp(-8) = 0.034% of
    the difference between the states, and nothing at all where the device was silent for ``RESET_GAP_S`` in
    between. Repeated readings (device, event time, sequence) count once, the first of them.

    Raises:
        SmokeError: when there are no readings yet.
    """
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    warm = begin - timedelta(seconds=features.WARM_UP_S)
    readings = (
        lake.scan(READINGS)
        .filter(pl.col(PARTITION_COLUMN).is_in([day - timedelta(days=1), day]) & (pl.col("event_time") >= warm))
        .select(*IDENTITY, "append_time", *ALL_SENSOR_NAMES)
        .collect()
    )
    unique = _first_of_each(readings)
    of_day = pl.col("event_time") >= begin
    table = features.features_of_frame(_in_order_of_arrival(unique)).filter(of_day)
    written = table.select(
        pl.lit(day).alias(PARTITION_COLUMN), *IDENTITY, "feature_version", *features.FEATURE_NAMES
    ).sort("device_id", "event_time", "topic_id", "partition", "offset")
    version = lake.replace_where(FEATURES, written, {PARTITION_COLUMN: day}, (PARTITION_COLUMN,))
    before = int(readings.select((~of_day).sum()).item())
    return DayOfFeatures(
        rows=written.height,
        devices=written["device_id"].n_unique(),
        warm_up_rows=before,
        duplicates=readings.height - before - written.height,
        version=version,
    )


def _first_of_each(readings: pl.DataFrame) -> pl.DataFrame:
    identity = ["topic_id", "partition", "offset"]
    return readings.sort(identity).unique(["device_id", "event_time", "sequence"], keep="first", maintain_order=True)


def _in_order_of_arrival(readings: pl.DataFrame) -> pl.DataFrame:
    # A topic that was made anew counts its offsets from 0 again: its readings come after those of the old one.
    began = pl.col("append_time").min().over("topic_id")
    return readings.sort(began, "topic_id", "partition", "offset").drop("append_time")


# -- the simulated training set ------------------------------------------------------------------------------
#: Numbers of the simulated training devices begin here, so that none of them is one of the live simulator's.
FIRST_TRAINING_DEVICE = 500_000
TRAINING_FLEETS = 12
DEVICES_PER_FLEET = 6
HOURS_PER_DEVICE = 6
#: Far more often than in life: a fire is what the model is to learn from.
FIRES_PER_DEVICE_DAY = 6.0
NUISANCES_PER_DEVICE_DAY = 12.0
#: Of the training devices every so many-th reading is kept; the devices held out for ever keep all of theirs.
QUIET_EVERY = 60
EPISODE_EVERY = 15


@dataclass(frozen=True, slots=True)
class TrainingWorld:
    """How large a simulated training set is. The fleets start on days three weeks apart, at differing hours."""

    fleets: int = TRAINING_FLEETS
    devices_per_fleet: int = DEVICES_PER_FLEET
    hours: float = HOURS_PER_DEVICE
    seed: int = 7
    quiet_every: int = QUIET_EVERY
    episode_every: int = EPISODE_EVERY
    fires_per_device_day: float = FIRES_PER_DEVICE_DAY
    nuisances_per_device_day: float = NUISANCES_PER_DEVICE_DAY

    def key(self) -> str:
        """Names the rows that come of it: two worlds with one key are the same, down to the last bit."""
        first = FIRST_TRAINING_DEVICE
        return hashlib.sha256(
            f"{self}{first}{features.FEATURE_SET_HASH}".encode() + simulator.source_code()
        ).hexdigest()[:16]

    def starts(self) -> list[datetime]:
        first = datetime(2023, 1, 9, tzinfo=UTC)
        return [first + timedelta(days=21 * fleet, hours=(5 * fleet) % 24) for fleet in range(self.fleets)]


@dataclass(frozen=True, slots=True)
class SimulatedSet:
    """What was written: readings, feature rows kept of them, and the tables' versions."""

    readings: int
    feature_rows: int
    devices: int
    fires: int
    nuisances: int
    readings_version: int
    features_version: int


def build_simulated(lake: Lake, world: TrainingWorld, progress: Progress = silent) -> SimulatedSet:
    """Simulates the training set and replaces both of its tables. The same world gives the same rows."""
    frames = []
    for fleet, start in enumerate(world.starts()):
        progress(f"simulating devices, fleet {fleet + 1} of {world.fleets}")
        frames.append(
            simulate(
                world.devices_per_fleet,
                start,
                int(world.hours * 3600),
                world.seed,
                fires_per_device_day=world.fires_per_device_day,
                nuisances_per_device_day=world.nuisances_per_device_day,
                first_device=FIRST_TRAINING_DEVICE + fleet * world.devices_per_fleet,
            )
        )
    readings = pl.concat(frames)
    progress(f"computing the features of {readings.height:,} readings")
    table = _kept_rows(features.features_of_frame(readings), world).with_columns(pl.lit(world.key()).alias("world"))
    progress("writing the simulated tables")
    day = pl.col("event_time").dt.date().alias(PARTITION_COLUMN)
    readings_version = lake.replace_where(SIMULATED_READINGS, readings.select(day, pl.all()), "true")
    features_version = lake.replace_where(SIMULATED_FEATURES, table.select(day, pl.all()), "true")
    events = readings.select("event_kind", "event_id").unique()["event_kind"]
    return SimulatedSet(
        readings=readings.height,
        feature_rows=table.height,
        devices=readings["device_id"].n_unique(),
        fires=int((events == "fire").sum()),
        nuisances=int((events == "nuisance").sum()),
        readings_version=readings_version,
        features_version=features_version,
    )


def is_current(lake: Lake, world: TrainingWorld) -> bool:
    """Whether the simulated tables hold just this world already."""
    if not (lake.exists(SIMULATED_READINGS) and lake.exists(SIMULATED_FEATURES)):
        return False
    table = lake.scan(SIMULATED_FEATURES)
    if "world" not in table.collect_schema().names():
        return False
    return table.select(pl.col("world").first()).collect().to_series().to_list() == [world.key()]


def _kept_rows(table: pl.DataFrame, world: TrainingWorld) -> pl.DataFrame:
    """All rows of the devices held out, a regular sample of the others, each with how many readings it stands for."""
    devices = table["device_id"].unique().to_list()
    held = pl.col("device_id").is_in([device for device in devices if evaluation.in_holdout(device)])
    every = pl.when(pl.col("event_id").is_null()).then(world.quiet_every).otherwise(world.episode_every)
    marked = table.with_columns(
        held.alias("holdout"), pl.when(held).then(1).otherwise(every).cast(pl.Int32).alias("sample_weight")
    )
    return marked.filter(pl.col("sequence") % pl.col("sample_weight") == 0)


@dataclass(frozen=True)
class FullRate:
    """Every reading of the simulated set, to be replayed as the detector would see it."""

    lake: Lake

    def watched(self, devices: Sequence[str], *, sensors: bool = False) -> Watched:
        """All readings of these devices with their features and what the rules say of them.

        Takes 190 bytes a reading, 104 more with the sensors.
        """
        frame = (
            self.lake.scan(SIMULATED_READINGS)
            .filter(pl.col("device_id").is_in(list(devices)))
            .drop(PARTITION_COLUMN)
            .collect()
            .sort("device_id", "event_time")
        )
        return alarm_evaluation.with_rules(watched_frame(frame), keep_sensors=sensors)


def watched_frame(frame: pl.DataFrame) -> Watched:
    """Simulated readings, ordered by device and time, with the features of each device from a blank state."""
    return alarm_evaluation.watched(
        frame["device_id"],
        features.event_seconds(frame),
        frame["fire_alarm"].to_numpy().astype(np.bool_),
        frame["event_id"],
        frame["event_kind"],
        frame["event_family"],
        features.feature_matrix(features.features_of_frame(frame)),
        features.sensor_matrix(frame),
    )


def _labelled_spans(
    device: pl.Series, seconds: npt.NDArray[np.float64], label: npt.NDArray[np.bool_]
) -> tuple[pl.Series, pl.Series]:
    """Names and kinds of the stretches labelled fire, null elsewhere."""
    frame = pl.DataFrame({"device": device, "at": seconds, "label": label, "row": np.arange(len(seconds))})
    begins = (pl.col("at").diff().fill_null(np.inf) > features.RESET_GAP_S).over("device")
    fires = (
        frame.filter("label")
        .with_columns(begins.cum_sum().over("device").alias("number"))
        .select("row", pl.format("{}/fire/{}", "device", "number").alias("name"))
    )
    named = frame.select("row").join(fires, on="row", how="left", maintain_order="left")["name"]
    kinds = pl.DataFrame({"name": named}).select(
        pl.when(pl.col("name").is_not_null()).then(pl.lit("fire")).alias("kind")
    )
    return named, kinds["kind"]


# -- labelled rows for training ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Examples:
    """Labelled feature rows.

    Attributes:
        matrix: float32 ``[n, F]``.
        label: bool ``[n]``, whether it burns.
        group: str ``[n]``, what must stay together in validation: a device or a recording.
        weight: float64 ``[n]``, how many readings a row stands for.
        holdout: bool ``[n]``, rows of groups that no version trains on.
        seconds: float64 ``[n]``, event time.
        episode, kind, family: str or null ``[n]``: which fire or nuisance, where it is known.
        device: str ``[n]``.
        origin: what the rows are, as the manifest's ``trained_on`` has it.
        full_rate: where all readings are of which the rows are a sample; ``None`` where there is no such place.
    """

    matrix: features.Features
    label: npt.NDArray[np.bool_]
    group: npt.NDArray[np.str_]
    weight: npt.NDArray[np.float64]
    holdout: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.float64]
    episode: pl.Series
    kind: pl.Series
    family: pl.Series
    device: pl.Series
    origin: dict[str, Any]
    full_rate: FullRate | None = None

    def __len__(self) -> int:
        return len(self.label)

    def only(self, rows: npt.NDArray[np.bool_]) -> Examples:
        """The rows of a mask."""
        mask = pl.Series(rows)
        return Examples(
            self.matrix[rows],
            self.label[rows],
            self.group[rows],
            self.weight[rows],
            self.holdout[rows],
            self.seconds[rows],
            self.episode.filter(mask),
            self.kind.filter(mask),
            self.family.filter(mask),
            self.device.filter(mask),
            self.origin,
            self.full_rate,
        )

    def watched(self) -> Watched:
        """The rows as readings in time, for alarms; of use where they are all readings of their devices.

        Where episodes are not known, what is labelled fire without a break of ``features.RESET_GAP_S`` is a fire, and
        the rest is quiet air.
        """
        order = np.lexsort((self.seconds, self.device.rank("dense").to_numpy()))
        rows = pl.Series(order)
        device, seconds, label = self.device.gather(rows), self.seconds[order], self.label[order]
        episode, kind = self.episode.gather(rows), self.kind.gather(rows)
        if kind.null_count() == len(kind):
            episode, kind = _labelled_spans(device, seconds, label)
        return alarm_evaluation.watched(
            device, seconds, label, episode, kind, self.family.gather(rows), self.matrix[order]
        )

    def counts(self) -> dict[str, int | None]:
        """How much there is of what; fires and nuisances are ``None`` where the source does not tell them apart."""
        known = self.kind.null_count() < len(self.kind)
        return {
            "rows": len(self),
            "readings_represented": round(float(self.weight.sum())),
            "fire_rows": int(self.label.sum()),
            "groups": len(np.unique(self.group)),
            "devices": self.device.n_unique(),
            "fires": self.episode.filter(self.kind == "fire").n_unique() if known else None,
            "nuisances": self.episode.filter(self.kind == "nuisance").n_unique() if known else None,
        }

    def fingerprint(self) -> str:
        """SHA-256 of everything that training sees of the rows, in their order."""
        digest = hashlib.sha256(features.FEATURE_SET_HASH.encode())
        for part in (self.matrix, self.label, self.weight, self.holdout):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update("\n".join(self.group.tolist()).encode())
        return digest.hexdigest()


#: Real readings are trained on from this much evidence on; below it a model of them would be a model of chance.
LEAST_GROUPS = 10
LEAST_GROUPS_WITH_FIRE = 10
LEAST_ROWS_OF_A_CLASS = 5_000
#: Sources whose readings come from the world. A simulator's do not, and the public recordings' labels contradict
#: their own sensors, so neither is ever taken for real by the automatic choice.
REAL_SOURCES = (Source.DEVICE, Source.MQTT)

SIMULATED_STATEMENT = (
    "Simulated readings only: rooms, fires and nuisances are computed from physics with known truth. No real fire was "
    "seen in training or validation, and no certification of any kind follows from these figures."
)
_DEVICES_STATEMENT = "Labelled readings of real devices; readings of simulators were left out."
_CSV_STATEMENT = (
    "Recordings replayed from a CSV file. In the public dataset the labels contradict the physics and half of the rows "
    "are copies: figures from it say little about fires."
)


def load_examples(settings: Settings, source: str = "auto") -> Examples:
    """The rows to train on.

    Args:
        source: ``auto`` takes labelled readings of real devices where there are enough of them (``LEAST_GROUPS``
            devices, ``LEAST_GROUPS_WITH_FIRE`` of them with fire, ``LEAST_ROWS_OF_A_CLASS`` rows of each class), else
            the simulated set; ``devices``, ``csv`` and ``simulated`` insist on one.

    Raises:
        SmokeError: when there are no such rows.
    """
    if source in ("auto", "devices"):
        real = _published(settings, tuple(map(str, REAL_SOURCES)), "devices", "group_id", _DEVICES_STATEMENT)
        if real is not None and (source == "devices" or _enough(real)):
            return real
    if source == "csv":
        recordings = _published(settings, (str(Source.CSV),), "csv", "recording_id", _CSV_STATEMENT)
        if recordings is not None:
            return recordings
    if source in ("devices", "csv"):
        raise SmokeError(
            f"there are no labelled readings of source {source!r} in the mart training_examples",
            "it is published by the batch job; smoke models train --source simulated needs none",
        )
    return simulated_examples(Lake(settings.lake))


def training_kind(settings: Settings, source: str = "auto") -> str:
    """What ``load_examples`` takes for ``source``: ``devices``, ``csv`` or ``simulated``.

    Raises:
        SmokeError: as ``load_examples``.
    """
    if source in ("csv", "simulated"):
        return source
    return str(load_examples(settings, source).origin["kind"])


def _enough(examples: Examples) -> bool:
    groups = np.unique(examples.group)
    with_fire = np.unique(examples.group[examples.label])
    fires = int(examples.label.sum())
    return (
        len(groups) >= LEAST_GROUPS
        and len(with_fire) >= LEAST_GROUPS_WITH_FIRE
        and min(fires, len(examples) - fires) >= LEAST_ROWS_OF_A_CLASS
    )


def simulated_examples(lake: Lake) -> Examples:
    """The simulated set as it stands in the lake.

    Raises:
        SmokeError: when it was not built, or for another feature definition.
    """
    frame = lake.scan(SIMULATED_FEATURES).drop(PARTITION_COLUMN).collect()
    versions = frame["feature_version"].unique().to_list()
    if versions != [features.FEATURE_SET_VERSION]:
        raise SmokeError(
            f"lake/{SIMULATED_FEATURES} holds features {', '.join(versions) or '(no rows)'}, this platform's are "
            f"{features.FEATURE_SET_VERSION}",
            "materialise simulated_readings again, or: smoke models train",
        )
    frame = frame.sort("device_id", "event_time")
    quiet = pl.col("event_id").is_null()
    sampling = frame.select(
        pl.col("sample_weight").filter(quiet).max().alias("quiet_air_one_in"),
        pl.col("sample_weight").filter(~quiet).max().alias("episodes_one_in"),
    ).row(0, named=True)
    return _examples(
        frame,
        group=frame["device_id"],
        weight=frame["sample_weight"],
        holdout=frame["holdout"],
        episode=frame["event_id"],
        kind=frame["event_kind"],
        family=frame["event_family"],
        full_rate=FullRate(lake) if lake.exists(SIMULATED_READINGS) else None,
        origin={
            "kind": "simulated",
            "simulated": True,
            "statement": SIMULATED_STATEMENT,
            "table": f"lake/{SIMULATED_FEATURES}",
            "delta_version": lake.version(SIMULATED_FEATURES),
            "grouped_by": "device_id",
            "sampling": {
                **sampling,
                "held_out_devices": "every reading",
                "figures": "weighted back to all readings",
            },
        },
    )


#: Rows taken of published examples at most, as a regular sample: more make training slower, not better.
MOST_PUBLISHED_ROWS = 300_000


def _published(settings: Settings, sources: tuple[str, ...], kind: str, group: str, statement: str) -> Examples | None:
    from smoke_platform.adapters import warehouse

    rows = warehouse.read_mart(settings, "training_examples").filter(
        pl.col("source").is_in(sources) & (pl.col("feature_version") == features.FEATURE_SET_VERSION)
    )
    count = int(rows.select(pl.len()).collect().item())
    if count == 0:
        return None
    every = -(-count // MOST_PUBLISHED_ROWS)
    frame = rows.sort(group, "event_time", "topic_id", "partition", "offset").gather_every(every).collect()
    groups = frame[group]
    held = {name for name in groups.unique().to_list() if evaluation.in_holdout(name)}
    # With few groups every one of them is needed; the folds then are all there is to compare by.
    enough = groups.n_unique() >= 2 * LEAST_GROUPS
    no_episode = pl.Series([None] * frame.height, dtype=pl.String)
    return _examples(
        frame,
        group=groups,
        weight=pl.Series([every] * frame.height),
        holdout=groups.is_in(list(held)) if enough else pl.Series([False] * frame.height),
        episode=no_episode,
        kind=no_episode,
        family=no_episode,
        origin={
            "kind": kind,
            "simulated": False,
            "statement": statement,
            "table": "marts/training_examples",
            "delta_version": Lake(settings.lake).version(FEATURES),
            "grouped_by": group,
            "sampling": {"one_row_in": every},
        },
    )


def _examples(
    frame: pl.DataFrame,
    *,
    group: pl.Series,
    weight: pl.Series,
    holdout: pl.Series,
    episode: pl.Series,
    kind: pl.Series,
    family: pl.Series,
    origin: dict[str, Any],
    full_rate: FullRate | None = None,
) -> Examples:
    label_name = "label" if "label" in frame.columns else "fire_alarm"
    examples = Examples(
        matrix=features.feature_matrix(frame),
        label=frame[label_name].to_numpy().astype(np.bool_),
        group=group.to_numpy().astype(np.str_),
        weight=weight.to_numpy().astype(np.float64),
        holdout=holdout.to_numpy().astype(np.bool_),
        seconds=features.event_seconds(frame),
        episode=episode,
        kind=kind,
        family=family,
        device=frame["device_id"],
        origin={},
        full_rate=full_rate,
    )
    described = {
        **origin,
        **examples.counts(),
        "from": str(frame["event_time"].min()),
        "to": str(frame["event_time"].max()),
        "fingerprint": examples.fingerprint(),
    }
    return replace(examples, origin=described)
