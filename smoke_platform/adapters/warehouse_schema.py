"""The warehouse's tables: columns, types and meaning, and the dbt files that are written from them.

Belongs here: what a column of a dbt model is, made from the sensors of ``domain.readings`` and the features of
``domain.features`` so that ranges and names have one definition. Does not: the models' SQL (``dbt_project``),
building and publishing (``adapters.warehouse``). ``python -m smoke_platform.adapters.warehouse_schema`` writes the
files anew; a test fails while they are not current.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS_SCHEMA
from smoke_platform.domain.features import DEFINITIONS, FEATURE_NAMES
from smoke_platform.domain.readings import ALL_SENSORS, Source

PROJECT_DIR = Path(__file__).resolve().parents[2] / "dbt_project"

STAGING = "stg_readings"
MINUTE = "fct_device_minute"
DAILY = "fct_device_daily"
EXAMPLES = "training_examples"
#: The models that are published for readers; ``stg_readings`` is the work table of one build.
MARTS: tuple[str, ...] = (MINUTE, DAILY, EXAMPLES)

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
    pa.timestamp("us", "UTC"): "timestamp with time zone",
    pa.float64(): "double",
    pa.float32(): "float",
    pa.bool_(): "boolean",
    pa.int64(): "bigint",
    pa.int32(): "integer",
}

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
#: Source of dbt -> its schema in the lake.
SOURCES: Mapping[str, pa.Schema] = {"readings": READINGS_SCHEMA, "features": FEATURES_SCHEMA}


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
    EXAMPLES: (
        "Labelled rows of the feature table, each once. Late readings are left out: their features describe a moment "
        "that the device's state had already passed. So are those of the simulator: training has its own simulated set."
    ),
}
_UNIQUE: Mapping[str, tuple[str, ...]] = {
    STAGING: ("device_id", "event_time", "sequence"),
    MINUTE: ("device_id", "minute"),
    DAILY: ("event_date", "device_id"),
    EXAMPLES: ("topic_id", "partition", "offset"),
}
_SOURCE_DESCRIPTIONS: Mapping[str, str] = {
    "readings": "Every accepted reading, landed exactly once from Kafka.",
    "features": "Model features of every reading, written by the feature kernel.",
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
    for name, schema in SOURCES.items():
        lines += [f"      - name: {name}", f"        description: {_quoted(_SOURCE_DESCRIPTIONS[name])}"]
        lines += ["        columns:"]
        lines += [
            f"          - {{name: {field.name}, description: {_quoted(_MEANING[field.name])}}}" for field in schema
        ]
    return "\n".join(lines) + "\n"


def _models_yaml() -> str:
    lines = [f"# {_GENERATED}", "version: 2", "models:"]
    for model, columns in TABLES.items():
        required = ", ".join(column.name for column in columns if column.required)
        lines += [
            f"  - name: {model}",
            f"    description: {_quoted(_DESCRIPTIONS[model])}",
            "    config: {contract: {enforced: true}}",
            "    data_tests:",
            f"      - required_columns: {{name: {model}_has_required_values, arguments: {{columns: [{required}]}}}}",
            f"      - unique_together: {{name: {model}_is_unique, "
            f"arguments: {{columns: [{', '.join(_UNIQUE[model])}]}}}}",
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
    return (
        f"{{# {_GENERATED} #}}\n\n"
        f"{{% macro sensors() %}}{{{{ return([\n{sensors}\n]) }}}}{{% endmacro %}}\n\n"
        f"{{% macro reading_columns() %}}{{{{ return([{readings}]) }}}}{{% endmacro %}}\n\n"
        f"{{% macro feature_names() %}}{{{{ return([\n{features}\n]) }}}}{{% endmacro %}}\n"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


if __name__ == "__main__":
    write_project_files()
