"""One measured process of the windows suite: an engine of the platform on ``lake/readings``, without a broker.

``python -m benchmarks.windows_child WHAT SPEC.json``, where WHAT is one of

- ``local``: engine local as it works when readings come faster than it takes them: it reads the lake in large portions;
- ``commits``: the same engine as it works when it keeps up: told of each commit, it appends what is due;
- ``live``: ``commits``, of a second of readings each;
- ``spark``: engine spark, all readings in one batch; the session is started before;
- ``core``: the windows of engine local without its tables, for other slides than the platform's.

It prints one line of JSON (``windows_spec.Measured``) and writes the sample's windows to the spec's ``result``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click
import polars as pl

from benchmarks.windows_spec import CLUSTER_ID, NOT_TO_BE_HAD, TOPIC_ID, Measured, WindowsSpec
from smoke_platform.adapters.kafka_bulk import TopicFacts
from smoke_platform.adapters.lake import READINGS_COLUMNS, Lake
from smoke_platform.adapters.windows import WINDOWS, latest
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.window_emission import APPENDED, OpenWindows, within
from smoke_platform.domain.windows import ROW_COLUMNS, WINDOW_SCHEMA, WindowSpec, compute
from smoke_platform.settings import Settings, load_settings
from smoke_platform.streaming.landing import LandedBatch
from smoke_platform.streaming.windows import WindowCut

#: After all silence: every window that has a reading is due.
END_OF_TIME = datetime(2100, 1, 1, tzinfo=UTC)


def facts_of(spec: WindowsSpec) -> TopicFacts:
    """The topic from which the readings would have come."""
    return TopicFacts(CLUSTER_ID, TOPIC_ID, tuple(range(spec.partitions)))


def settings_of(spec: WindowsSpec) -> Settings:
    """Settings of the platform whose lake is the input."""
    return load_settings({"SMOKE_HOME": spec.home}, Path(spec.home) / "no.env")


def local(spec: WindowsSpec, measured: Measured) -> None:
    """Engine local from the lake."""
    measured.begin()
    cut = WindowCut(settings_of(spec), facts_of(spec), dict, lambda: datetime.now(UTC))
    ends = cut.landed()
    more = True
    while more:
        more = cut.take_from_lake(ends)
        _append(cut, None, measured)
    _append(cut, END_OF_TIME, measured)
    measured.readings = sum(ends.values())


def commits(spec: WindowsSpec, measured: Measured, cut_up: Callable[[pl.DataFrame], Iterator[pl.DataFrame]]) -> None:
    """Engine local beside landing; ``cut_up`` makes of what one file holds what one commit has landed."""
    measured.begin()
    cut = WindowCut(settings_of(spec), facts_of(spec), dict, lambda: datetime.now(UTC))
    positions = dict.fromkeys(range(spec.partitions), 0)
    for file in spec.files:
        for rows in cut_up(pl.read_parquet(file, columns=list(READINGS_COLUMNS), hive_partitioning=True)):
            moved = dict(rows.group_by("partition").agg(pl.col("offset").max() + 1).iter_rows())
            table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
            cut.take(LandedBatch(table, dict(positions), moved))
            positions.update(moved)
            measured.readings += rows.height
            _append(cut, None, measured)
    _append(cut, END_OF_TIME, measured)


def _append(cut: WindowCut, until: datetime | None, measured: Measured) -> None:
    tally = cut.append(until)
    measured.windows += tally.windows if tally else 0


def seconds(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The rows by the second in which they were appended."""
    yield from rows.with_columns(second=pl.col("append_time").dt.truncate("1s")).partition_by(
        "second", maintain_order=True, include_key=False
    )


def spark(spec: WindowsSpec, measured: Measured) -> None:
    """Engine spark; the session and its first Python worker are there before the clock starts."""
    from smoke_platform.adapters.spark import session
    from smoke_platform.streaming.spark_windows import SparkWindows

    settings = settings_of(spec)
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(session(settings, "windows of the bench"))
        except SmokeError as error:
            click.echo(error.message, err=True)
            sys.exit(NOT_TO_BE_HAD)
        opened.range(4, numPartitions=4).mapInArrow(lambda batches: batches, "id long").collect()
        engine = SparkWindows(settings)
        engine.start(opened, facts_of(spec))
        engine._heard = _All()  # type: ignore[assignment] # a stand-in for what asks the broker
        measured.begin()
        engine.append(finish=True, strict=True)
        measured.end()
        measured.windows = engine.drain().windows
        measured.readings = sum(len(pl.read_parquet(file, columns=["offset"])) for file in spec.files)


class _All:
    """Says without asking a broker that everything was heard, long ago."""

    def until(self, _positions: Mapping[int, int]) -> datetime:
        return END_OF_TIME


class _Memory:
    """The past of ``OpenWindows``, in memory: what was taken, of which nothing was ever appended elsewhere."""

    def __init__(self) -> None:
        self.taken: list[pl.DataFrame] = []

    def rows(self, spans: pl.DataFrame) -> pl.DataFrame:
        return within(pl.concat(self.taken), spans).select(*ROW_COLUMNS, "ingest_time")

    def appended(self, _since: pl.DataFrame) -> pl.DataFrame:
        return pl.DataFrame(schema=dict(APPENDED))


def core(spec: WindowsSpec, measured: Measured) -> pl.DataFrame:
    """The windows at the spec's slide; returns those of the sample."""
    window = WindowSpec(slide_s=spec.slide_s)
    past = _Memory()
    measured.begin()
    opened = OpenWindows(past, window)
    kept: list[pl.DataFrame] = []

    def append(until: datetime | None) -> None:
        due = opened.due(until)
        for rows, wanted in opened.batches(due):
            found = compute(rows, window, windows=wanted)
            measured.windows += found.height
            kept.append(found.filter(pl.col("device_id").is_in(spec.sample)))
        opened.settle(due)

    for file in spec.files:
        rows = pl.read_parquet(file, columns=list(READINGS_COLUMNS), hive_partitioning=True)
        opened.take(rows)
        past.taken.append(rows.filter(~pl.col("late")))
        measured.readings += rows.height
        append(None)
    append(END_OF_TIME)
    return (
        pl.concat(kept)
        .sort("device_id", "window_start", "revision")
        .unique(["device_id", "window_start"], keep="last", maintain_order=True)
    )


def main(what: str, spec: WindowsSpec) -> None:
    """Measures, prints, and writes the sample."""
    measured = Measured()
    if what == "core":
        found = core(spec, measured)
        print(measured.answer(), flush=True)
    else:
        work: Mapping[str, Callable[[], None]] = {
            "local": lambda: local(spec, measured),
            "commits": lambda: commits(spec, measured, lambda rows: iter([rows])),
            "live": lambda: commits(spec, measured, seconds),
            "spark": lambda: spark(spec, measured),
        }
        work[what]()
        print(measured.answer(), flush=True)
        rows = Lake(settings_of(spec).lake).scan(WINDOWS).filter(pl.col("device_id").is_in(spec.sample))
        found = latest(rows).select(list(WINDOW_SCHEMA)).collect()
    found.write_ipc(spec.result)


if __name__ == "__main__":
    main(sys.argv[1], WindowsSpec.read(Path(sys.argv[2])))
