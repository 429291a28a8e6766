"""The warehouse's tables: columns, types and meaning, and the dbt files that are written from them.

Belongs here: what a column of a dbt model is, made from the sensors of ``domain.readings``, the features of
``domain.features`` and the windows of ``domain.windows`` so that ranges and names have one definition. Does not: the
models' SQL (``dbt_project``), building and publishing (``adapters.warehouse``).
``python -m smoke_platform.adapters.warehouse_schema`` writes the files anew; a test fails while they are not current.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, READINGS_SCHEMA, storage_schema
from smoke_platform.adapters.windows import WINDOW_COLUMNS, WINDOWS
from smoke_platform.domain.features import DEFINITIONS, FEATURE_NAMES
from smoke_platform.domain.lake_records import ALARM_COLUMNS, DAY, PREDICTION_COLUMNS
from smoke_platform.domain.readings import ALL_SENSORS, SENSORS, Source
from smoke_platform.domain.windows import DEFAULT, WINDOW_SCHEMA

PROJECT_DIR = Path(__file__).resolve().parents[2] / "dbt_project"

STAGING = "stg_readings"
MINUTE = "fct_device_minute"
DAILY = "fct_device_daily"
WINDOW_MINUTES = "stg_window_minutes"
WINDOW = "fct_device_window"
EXAMPLES = "training_examples"
#: How far a window that begins in the last minute of a day reaches into the next one.
WINDOW_REACH = DEFAULT.length - DEFAULT.slide
#: The work tables of one build.
WORK_TABLES: tuple[str, ...] = (STAGING, WINDOW_MINUTES)
#: The models that are published for readers.
MARTS: tuple[str, ...] = (MINUTE, DAILY, WINDOW, EXAMPLES)

_TIMESTAMP = pl.Datetime("us", "UTC")
#: dbt's name of a type -> what a reader of the Parquet file gets.
POLARS_TYPES: Mapping[str, pl.DataType] = {
    "date": pl.Date(),
    "varchar": pl.String(),
    "timestamp with time zone": _TIMESTAMP,
    "double": pl.Float64(),
    "float": pl.Float32(),
    "boolean": pl.Boolean(),
    "bigint": pl.Int64(),
    "integer": pl.Int32(),
}
_DBT_TYPES: Mapping[pa.DataType, str] = {
    pa.date32(): "date",
    pa.string(): "varchar",
    pa.large_string(): "varchar",
    pa.timestamp("us", "UTC"): "timestamp with time zone",
    pa.float64(): "double",
    pa.float32(): "float",
    pa.bool_(): "boolean",
    pa.int64(): "bigint",
    pa.int32(): "integer",
}

#: Neither Delta nor dbt's contract has unsigned numbers.
_SIGNED: Mapping[pl.DataType, pl.DataType] = {pl.UInt8(): pl.Int32()}

#: What the warehouse reads of ``lake/features``; a column that a table does not have yet is read as null.
FEATURES_SCHEMA: pa.Schema = pa.schema(
    [
        (PARTITION_COLUMN, pa.date32()),
        ("device_id", pa.string()),
        ("event_time", pa.timestamp("us", "UTC")),
        ("sequence", pa.int64()),
        ("source", pa.string()),
        ("topic_id", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("fire_alarm", pa.bool_()),
        ("feature_version", pa.string()),
        *((name, pa.float32()) for name in FEATURE_NAMES),
    ]
)
#: The same of ``lake/predictions`` and ``lake/alarms``, which are partitioned by the day of their own arrival.
PREDICTIONS_SCHEMA: pa.Schema = storage_schema({DAY: pl.Date(), **PREDICTION_COLUMNS})
ALARMS_SCHEMA: pa.Schema = storage_schema(
    {
        DAY: pl.Date(),
        **{name: ALARM_COLUMNS[name] for name in ("device_id", "kind", "alarm_id", "event", "raised_event_time")},
    }
)
WINDOWS_SCHEMA: pa.Schema = storage_schema({name: _SIGNED.get(kind, kind) for name, kind in WINDOW_COLUMNS.items()})


@dataclass(frozen=True, slots=True)
class LakeSource:
    """A table of the lake that dbt reads.

    Attributes:
        schema: what is read of it.
        description: for the documentation.
        days_after: how many days beyond those of a build are read.
        by_arrival: whether it is partitioned by the day of arrival, so that the days of a build do not say which files
            matter; those of their readings do.
    """

    schema: pa.Schema
    description: str
    days_after: int = 0
    by_arrival: bool = False


#: Source of dbt -> what it is. In this order their snapshots are taken: what follows from the readings first, so that
#: a build never finds a window whose readings it does not see.
SOURCES: Mapping[str, LakeSource] = {
    WINDOWS: LakeSource(WINDOWS_SCHEMA, "Statistics of each device and window; the row of the highest revision holds."),
    "predictions": LakeSource(
        PREDICTIONS_SCHEMA, "What the detector thought of each reading, of the readings being built.", by_arrival=True
    ),
    "alarms": LakeSource(
        ALARMS_SCHEMA, "Every event of every alarm, since the readings being built arrived.", by_arrival=True
    ),
    "features": LakeSource(FEATURES_SCHEMA, "Model features of every reading, written by the feature kernel."),
    # The windows that begin in the last minutes of a day end in the next one.
    READINGS: LakeSource(READINGS_SCHEMA, "Every accepted reading, landed exactly once from Kafka.", days_after=1),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a model; ``required`` columns are never null."""

    name: str
    type: str
    description: str
    required: bool = False


_DAY = Column("event_date", "date", "UTC day of the event time", required=True)
_DEVICE = Column("device_id", "varchar", "The device that measured", required=True)
_IDENTITY = (
    Column("topic_id", "varchar", "Kafka topic id; with partition and offset the identity of a row", required=True),
    Column("partition", "integer", "Kafka partition", required=True),
    Column("offset", "bigint", "Kafka offset", required=True),
)
_MEANING = {
    "event_date": _DAY.description,
    "device_id": _DEVICE.description,
    "event_time": "When the device measured",
    "fire_alarm": "Label, where known",
    "sequence": "The device's own count, where it sends one",
    "schema_version": "Version of the reading's schema",
    "source": "Where the reading comes from",
    "late": "Further behind the device's clock than the lateness setting, decided once at landing",
    "topic": "Kafka topic",
    "append_time": "When the broker appended the message",
    "ingest_time": "When landing wrote the row",
    "replay_of": "Identity of the dead letter that a replayed message repairs",
    "feature_version": "Version of the feature definition that wrote the row",
    **{column.name: column.description for column in _IDENTITY},
    **{sensor.name: f"{sensor.description} [{sensor.unit}]; null: not measured" for sensor in ALL_SENSORS},
    **{name: f"Feature: {meaning}; NaN: unknown" for name, meaning in DEFINITIONS.items()},
}
_WINDOW_MEANING = {
    "event_date": "UTC day on which the window begins",
    "device_id": _DEVICE.description,
    "window_start": "Begin of the window, a UTC minute; included",
    "window_end": "End of the window; not included",
    "revision": "Readings that the window rests on, duplicates among them: the later of two rows has more",
    "record_count": "Readings in the window that came in time, duplicates not counted",
    "duplicate_count": "Further copies of these readings, left out",
    "expected_count": "Readings that the device's reporting interval calls for",
    "completeness": "record_count / expected_count, at most 1",
    "label_count": "Readings that carry a label",
    "fire_label_count": "Readings labelled as fire",
    "first_event_time": "First reading in the window",
    "last_event_time": "Last reading in the window",
    "quality_score": "100 * completeness * validity * plausibility * freshness; a fire never lowers it",
    "validity": "Values present / values that the sensors seen in the window should have given",
    "plausibility": "1 - values of a frozen device or of contradicting particle channels / values present",
    "freshness": "1 - share of the window that passed after its last reading, beyond one interval",
    "level": "Worst level of the sensors' means: 0 none, 1 LOW, 2 MEDIUM, 3 HIGH, 4 CRITICAL",
    "level_sensor": "First sensor at that level; null at level 0",
    "written_at": "When the engine wrote the row",
}
_STATISTIC_MEANING = {
    "mean": "Mean",
    "std": "Standard deviation (n - 1)",
    "variance": "Variance (n - 1)",
    "min": "Least value",
    "max": "Greatest value",
    "median": "Median",
    "p05": "5th percentile",
    "p25": "25th percentile",
    "p75": "75th percentile",
    "p95": "95th percentile",
    "range": "Greatest minus least value",
    "first": "First value",
    "last": "Last value",
    "slope_per_min": "Slope by least squares, per minute,",
    "missing": "Readings without a value",
}
_WINDOW_MEANING |= {
    f"{sensor.name}_{statistic}": f"{meaning} of {sensor.name}"
    + ("" if statistic == "missing" else f" [{sensor.unit}]")
    for sensor in SENSORS
    for statistic, meaning in _STATISTIC_MEANING.items()
}
#: Null where a window has no value of a sensor, or too few of them.
_MAY_BE_NULL_IN_WINDOWS = {
    "level_sensor",
    *(f"{sensor.name}_{statistic}" for sensor in SENSORS for statistic in _STATISTIC_MEANING if statistic != "missing"),
}
_REQUIRED = {"event_date", "device_id", "event_time", "source", "late", "topic_id", "partition", "offset"}


def _stored(field: pa.Field) -> Column:
    return Column(field.name, _DBT_TYPES[field.type], _MEANING[field.name], required=field.name in _REQUIRED)


def _sensor_facts(period: str) -> tuple[Column, ...]:
    return tuple(
        Column(f"{sensor.name}_{kind}", type_, f"{meaning} of {sensor.name} in the {period}")
        for sensor in ALL_SENSORS
        for kind, type_, meaning in (
            ("mean", "double", f"Mean [{sensor.unit}]"),
            ("min", "double", f"Least value [{sensor.unit}]"),
            ("max", "double", f"Greatest value [{sensor.unit}]"),
            ("nulls", "bigint", "Readings without a value"),
        )
    )


def _counts(period: str) -> tuple[Column, ...]:
    return (
        Column("readings", "bigint", f"Readings in the {period}, duplicates not counted", required=True),
        Column("duplicate_readings", "bigint", "Further copies of these readings, left out", required=True),
        Column("late_readings", "bigint", "Readings that came late; they are part of the facts", required=True),
        Column("labelled_readings", "bigint", "Readings that carry a label", required=True),
        Column("fire_readings", "bigint", "Readings labelled as fire", required=True),
        Column("fire_share", "double", "fire_readings / labelled_readings; null where nothing is labelled"),
        Column("first_event_time", "timestamp with time zone", f"First reading in the {period}", required=True),
        Column("last_event_time", "timestamp with time zone", f"Last reading in the {period}", required=True),
    )


def _window_columns() -> tuple[Column, ...]:
    """The engines' columns, with what the mart joins to them before those of the single sensors."""
    types = {field.name: _DBT_TYPES[field.type] for field in WINDOWS_SCHEMA}
    own = [
        Column(name, types[name], _WINDOW_MEANING[name], required=name not in _MAY_BE_NULL_IN_WINDOWS)
        for name in WINDOW_SCHEMA
    ]
    place = [column.name for column in own].index(f"{SENSORS[0].name}_mean")
    return (*own[:place], *_JOINED_TO_WINDOWS, *own[place:])


_JOINED_TO_WINDOWS = (
    Column("late_count", "bigint", "Readings that came too late for the window, which does not hold them", True),
    Column("judged_count", "bigint", "Readings of record_count that the detector has judged", required=True),
    Column("score_mean", "double", "Mean fire probability of the judged readings; null where no model scored one"),
    Column("score_max", "double", "Greatest fire probability of them; null where no model scored one"),
    Column("rule_hits", "bigint", "How often a rule hit one of them; null where none was judged"),
    Column("alarm_count", "bigint", "Alarms of the device, of any kind, raised at an event time in the window", True),
)


#: Model -> its columns in order.
TABLES: Mapping[str, tuple[Column, ...]] = {
    STAGING: (
        *(_stored(field) for field in READINGS_SCHEMA),
        Column("copies", "bigint", "How often this reading landed: 1 without duplicates", required=True),
    ),
    MINUTE: (
        _DAY,
        _DEVICE,
        Column("minute", "timestamp with time zone", "Begin of the UTC minute", required=True),
        *_counts("minute"),
        *_sensor_facts("minute"),
    ),
    DAILY: (
        _DAY,
        _DEVICE,
        *_counts("day"),
        Column("minutes_with_data", "bigint", "UTC minutes with at least one reading", required=True),
        Column("seconds_with_data", "bigint", "Reporting intervals with at least one reading", required=True),
        Column("expected_readings", "bigint", "Intervals from the first to the last reading", required=True),
        Column("completeness", "double", "seconds_with_data / expected_readings", required=True),
        Column("day_completeness", "double", "seconds_with_data / intervals of a whole day", required=True),
        *_sensor_facts("day"),
    ),
    WINDOW_MINUTES: (
        _DEVICE,
        Column("minute_number", "bigint", "UTC minutes since 1970", required=True),
        Column("rows_in_time", "bigint", "Readings that came in time, duplicates among them", required=True),
        Column("readings", "bigint", "The same without duplicates", required=True),
        Column("late_readings", "bigint", "Readings that came late", required=True),
        Column("judged", "bigint", "Readings with a prediction", required=True),
        Column("scored", "bigint", "Readings with a score of the model", required=True),
        Column("score_sum", "double", "Sum of the scores; null where none was scored"),
        Column("score_max", "double", "Greatest score; null where none was scored"),
        Column("rule_hits", "bigint", "How often a rule hit one of the readings", required=True),
        Column("last_ingest_time", "timestamp with time zone", "When the last one that came in time was landed"),
    ),
    WINDOW: _window_columns(),
    EXAMPLES: (
        _DAY,
        _DEVICE,
        Column("event_time", "timestamp with time zone", "When the device measured", required=True),
        Column("sequence", "bigint", "The device's own count, where it sends one"),
        Column("source", "varchar", "Where the reading comes from", required=True),
        *_IDENTITY,
        Column("group_id", "varchar", "source:device_id, for validation on devices never trained on", required=True),
        Column("recording_id", "varchar", "group_id@begin of its unbroken stretch of readings", required=True),
        Column("label", "boolean", "Whether it burns", required=True),
        Column("feature_version", "varchar", "Version of the feature definition", required=True),
        *(Column(name, "float", _MEANING[name]) for name in FEATURE_NAMES),
    ),
}

_DESCRIPTIONS: Mapping[str, str] = {
    STAGING: (
        "The readings of the days being built, each once: of several rows with the same device, event time and "
        "sequence the first by topic id, partition and offset counts. A work table: it holds only the days of the "
        "last build, since the lake is where readings are kept."
    ),
    MINUTE: "Readings of a device in a UTC minute: counts, means, extremes and missing values of each sensor.",
    DAILY: "Readings of a device on a UTC day: completeness at the reporting interval, and the same facts.",
    WINDOW_MINUTES: (
        "What readings and predictions say of each device and minute that a window of the days being built covers, "
        "those of the next day's first minutes included. A work table of one build."
    ),
    WINDOW: (
        "The latest revision of each device's windows that begin on the day, as the engines wrote it, with what other "
        "tables know of its readings. What has not been landed yet (predictions, alarms) counts as not there: "
        "judged_count and alarm_count are 0, scores and rule_hits null."
    ),
    EXAMPLES: (
        "Labelled rows of the feature table, each once. Late readings are left out: their features describe a moment "
        "that the device's state had already passed. So are those of the simulator: training has its own simulated set."
    ),
}
_UNIQUE: Mapping[str, tuple[str, ...]] = {
    STAGING: ("device_id", "event_time", "sequence"),
    MINUTE: ("device_id", "minute"),
    DAILY: ("event_date", "device_id"),
    WINDOW_MINUTES: ("device_id", "minute_number"),
    WINDOW: ("device_id", "window_start"),
    EXAMPLES: ("topic_id", "partition", "offset"),
}
_OTHER_MEANINGS: Mapping[str, Mapping[str, str]] = {
    WINDOWS: _WINDOW_MEANING,
    "predictions": {
        DAY: "UTC day on which the broker appended the prediction",
        "score": "The model's fire probability; null where no model scored",
        "level": "Severity that rules and model together gave, 0 for none",
        "hits": "Bit mask of the rules that hit",
        "model_version": "Version of the model; null where none scored",
        "threshold": "The model's own threshold",
        "at": "When the detector wrote it",
    },
    "alarms": {
        DAY: "UTC day on which the broker appended the record",
        "device_id": "Whose alarm",
        "kind": "What it is about",
        "alarm_id": "The same in all records of one alarm; empty where there is none",
        "event": "What happened to it",
        "raised_event_time": "The device's clock when it was raised; null where no reading led to it",
    },
}
_GENERATED = "written by `python -m smoke_platform.adapters.warehouse_schema`: change the definitions there"


def polars_schema(model: str) -> pl.Schema:
    """What a reader of the published model gets."""
    return pl.Schema({column.name: POLARS_TYPES[column.type] for column in TABLES[model]})


def project_files() -> dict[str, str]:
    """The generated files of the dbt project: path below it -> text."""
    return {
        "models/sources.yml": _sources_yaml(),
        "models/models.yml": _models_yaml(),
        "macros/definitions.sql": _macros(),
    }


def write_project_files(project: Path = PROJECT_DIR) -> list[Path]:
    """Writes the generated files below ``project`` and returns their paths."""
    written = []
    for name, text in project_files().items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _sources_yaml() -> str:
    lines = [f"# {_GENERATED}", "version: 2", "sources:", "  - name: lake"]
    lines += [
        "    description: Delta tables of the lake, read for the days being built only.",
        "    config: {meta: {plugin: warehouse_source}}",
        "    tables:",
    ]
    for name, source in SOURCES.items():
        lines += [f"      - name: {name}", f"        description: {_quoted(source.description)}"]
        lines += ["        columns:"]
        meaning = {**_MEANING, **_OTHER_MEANINGS.get(name, {})}
        lines += [
            f"          - {{name: {field.name}, description: {_quoted(meaning[field.name])}}}"
            for field in source.schema
        ]
    return "\n".join(lines) + "\n"


def _models_yaml() -> str:
    lines = [f"# {_GENERATED}", "version: 2", "models:"]
    for model, columns in TABLES.items():
        required = ", ".join(column.name for column in columns if column.required)
        whole = "" if "event_date" in {column.name for column in columns} else ", whole: true"
        lines += [
            f"  - name: {model}",
            f"    description: {_quoted(_DESCRIPTIONS[model])}",
            "    config: {contract: {enforced: true}}",
            "    data_tests:",
            f"      - required_columns: {{name: {model}_has_required_values, "
            f"arguments: {{columns: [{required}]{whole}}}}}",
            f"      - unique_together: {{name: {model}_is_unique, "
            f"arguments: {{columns: [{', '.join(_UNIQUE[model])}]{whole}}}}}",
        ]
        if model == STAGING:
            lines += [
                f"      - sensors_in_range: {{name: {model}_is_physically_possible}}",
                f"      - known_values: {{name: {model}_has_known_sources, "
                f"arguments: {{column: source, values: [{', '.join(Source)}]}}}}",
            ]
        if model in (MINUTE, DAILY):
            lines += [
                f"      - facts_in_range: {{name: {model}_is_physically_possible}}",
                f"      - counts_every_reading: {{name: {model}_counts_every_reading}}",
            ]
        if model == WINDOW:
            lines += [
                f"      - windows_in_range: {{name: {model}_is_physically_possible}}",
                f"      - windows_add_up: {{name: {model}_adds_up}}",
                f"      - windows_rest_on_readings: {{name: {model}_rests_on_readings}}",
                f"      - windows_are_complete: {{name: {model}_is_complete, config: {{severity: warn}}}}",
            ]
        lines += ["    columns:"]
        lines += [
            f"      - {{name: {column.name}, data_type: {column.type}, quote: true, "
            f"description: {_quoted(column.description)}}}"
            for column in columns
        ]
    return "\n".join(lines) + "\n"


def _macros() -> str:
    sensors = ",\n".join(
        f'    {{"name": "{sensor.name}", "low": {sensor.low}, "high": {sensor.high}}}' for sensor in ALL_SENSORS
    )
    readings = ", ".join(f'"{field.name}"' for field in READINGS_SCHEMA)
    features = ",\n".join(f'    "{name}"' for name in FEATURE_NAMES)
    windows = ", ".join(f'"{name}"' for name in WINDOW_SCHEMA)
    of_windows = ", ".join(f'"{sensor.name}"' for sensor in SENSORS)
    return (
        f"{{# {_GENERATED} #}}\n\n"
        f"{{% macro sensors() %}}{{{{ return([\n{sensors}\n]) }}}}{{% endmacro %}}\n\n"
        f"{{% macro reading_columns() %}}{{{{ return([{readings}]) }}}}{{% endmacro %}}\n\n"
        f"{{% macro feature_names() %}}{{{{ return([\n{features}\n]) }}}}{{% endmacro %}}\n\n"
        f"{{% macro window_columns() %}}{{{{ return([{windows}]) }}}}{{% endmacro %}}\n\n"
        f"{{% macro window_sensors() %}}{{{{ return([{of_windows}]) }}}}{{% endmacro %}}\n\n"
        "{# How far a window that begins in the last minute of a day reaches into the next one. #}\n"
        f"{{% macro window_reach_s() %}}{{{{ return({WINDOW_REACH.total_seconds():g}) }}}}{{% endmacro %}}\n"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


if __name__ == "__main__":
    write_project_files()
