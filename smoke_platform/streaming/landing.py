"""Landing: from the readings' topic into ``lake/readings``, every message exactly once, in micro-batches.

Belongs here: the loop that reads, decodes, commits and tidies, and what can be asked about it. Does not: the decisions
it carries out (``domain.landing``, ``domain.offsets``, ``domain.decoding``), when a run is started and how it is shown
(``orchestration.landing``), the command line.

Three threads work on three batches at once: this one reads, one decodes, one commits. Their order is that of the log.

Exactly once rests on one thing: the position of each partition is committed in the same Delta commit as its rows, on
the very snapshot from which the position was read. Nothing is ever stored in Kafka. Whoever dies between two commits
leaves no trace but files that no commit names; dead letters may then be sent twice, which is why their identity is
that of the message.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import ColumnProperties, CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError

from smoke_platform.adapters.kafka_bulk import (
    BulkConsumer,
    DeadLetterProducer,
    KafkaUnreachable,
    Letter,
    MessageBatch,
    OffsetLost,
    TopicFacts,
    TopicWatcher,
)
from smoke_platform.adapters.lake import (
    PARTITION_COLUMN,
    READINGS,
    READINGS_SCHEMA,
    Lake,
    writer_properties,
)
from smoke_platform.adapters.lake_files import WrittenFile
from smoke_platform.adapters.lease import Lease
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.landing import (
    CLOCK_SCHEMA,
    BatchPlan,
    CompactionPlan,
    DeviceClocks,
)
from smoke_platform.domain.offsets import (
    OffsetRange,
    StartPoints,
    advanced,
    after,
    app_id,
    described,
    lag,
    start_points,
)
from smoke_platform.settings import Settings
from smoke_platform.streaming.preparing import PartitionTally, Preparer, stored_replays

log = logging.getLogger(__name__)

#: One poll of the client: the longest pause between two looks at the clock.
POLL_S = 0.1
#: How often the caller is asked whether the run is still wanted, and the pause flag is looked at.
WANTED_EVERY_S = 10.0
PAUSE_EVERY_S = 0.5
BEAT_EVERY_S = 0.5
#: How long a run that would end asks whether messages wait: the lease is not renewed meanwhile.
ENDS_TIMEOUT_S = 3.0
#: Commits between two looks at the table's files.
TIDY_EVERY_COMMITS = 60
#: A reader may hold on to a version this long; afterwards the files that only it needs may vanish.
TOMBSTONES_KEPT = timedelta(hours=2)
VACUUM_EVERY = timedelta(hours=1)
CLOCKS_SAVED_EVERY_S = 60.0
#: Batches that wait for decoding or committing; beyond it, reading waits.
MOST_PENDING = 2
#: A step that takes longer than this is taken for stuck: the lease is no longer renewed, and the sensor steps in.
STEP_BUDGET_S: Mapping[str, float] = {"letters": 70.0, "commit": 30.0, "tidy": 300.0, "clocks": 600.0, "topic": 70.0}

#: The log of the table is kept short: landing commits once a second, and nobody travels back in it.
TABLE_CONFIGURATION: Mapping[str, str] = {
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": "interval 6 hours",
    "delta.deletedFileRetentionDuration": f"interval {int(TOMBSTONES_KEPT.total_seconds() // 3600)} hours",
    # What readers filter by. Statistics on all columns cost as much as a third of the write.
    "delta.dataSkippingStatsColumns": "event_time,append_time,ingest_time,partition,offset,replay_of",
}

_REPEATING = ("device_id", "source", "topic", "topic_id", "append_time", "ingest_time", "partition", "late")


class Fenced(SmokeError):
    """Another writer has gone on; this one has nothing more to do."""


class LostReadings(SmokeError):
    """Readings were deleted from the log before they were landed."""


class Outdated(Exception):
    """Another writer has moved a mark: what is to be committed has to be worked out anew."""


class _BatchMissing(Exception):
    """The batch before this one was not committed, so this one must not be either."""


class TopicChanged(Exception):
    """The topic was made anew or got more partitions: this run knows the old one only."""


# -- where things stand ----------------------------------------------------------------------------------


def lease_path(settings: Settings) -> Path:
    return settings.run_dir / f"landing-{settings.topic_readings}.lease"


def pause_path(settings: Settings) -> Path:
    """Landing is paused while this file is there; it holds who paused it, when and why."""
    return settings.home / "landing" / "paused.json"


def _clocks_path(settings: Settings) -> Path:
    return settings.home / "landing" / f"clocks-{settings.topic_readings}.parquet"


def pause(settings: Settings, reason: str) -> None:
    """Asks a running landing to end after its current batch, and keeps a new one from starting."""
    path = pause_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"at": datetime.now(UTC).isoformat(), "reason": reason}), encoding="utf-8")
    new.replace(path)


def resume(settings: Settings) -> bool:
    """Takes the pause back; says whether there was one."""
    there = pause_path(settings).exists()
    pause_path(settings).unlink(missing_ok=True)
    return there


def paused(settings: Settings) -> str | None:
    """Why landing is paused, ``None`` where it is not."""
    try:
        return str(json.loads(pause_path(settings).read_text(encoding="utf-8"))["reason"]) or "no reason given"
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):
        return f"{pause_path(settings)} is there, but holds no reason"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far landing is: positions against the log.

    Attributes:
        topic_id: ``None`` where the topic does not exist.
        positions: partition -> offset of the next message to land.
        watermarks: partition -> (first offset still there, offset after the last).
        lost: ranges deleted before they were landed; landing stands still until they are accepted.
        beyond: (partition, position, end) where the log ends before the position.
        what: the messages in a word.
    """

    topic_id: str | None
    positions: dict[int, int] = field(default_factory=dict)
    watermarks: dict[int, tuple[int, int]] = field(default_factory=dict)
    lost: tuple[OffsetRange, ...] = ()
    beyond: tuple[tuple[int, int, int], ...] = ()
    what: str = "readings"

    @property
    def lag(self) -> dict[int, int]:
        return lag(self.positions, self.watermarks)

    @property
    def fault(self) -> LostReadings | None:
        """What keeps landing from going on, if anything does."""
        return fault_of(StartPoints(self.positions, self.lost, self.beyond), self.what)


class StandingProbe:
    """Tells the standing again and again at little cost; its connections are kept. For one thread at a time.

    Args:
        topic, table, what: of something else than the readings, that is landed by the same means.
    """

    def __init__(
        self, settings: Settings, *, topic: str | None = None, table: str = READINGS, what: str = "readings"
    ) -> None:
        self._watcher = TopicWatcher(settings.brokers, topic or settings.topic_readings)
        self._lake = Lake(settings.lake)
        self._name = table
        self._what = what
        self._table: DeltaTable | None = None

    def standing(self, timeout_s: float = 3.0) -> Standing:
        """Where landing stands now.

        Raises:
            KafkaUnreachable: when the broker does not answer within ``timeout_s``.
        """
        facts = self._watcher.facts(timeout_s)
        if facts is None:
            return Standing(None, what=self._what)
        watermarks = self._watcher.watermarks(facts.partitions, timeout_s)
        points = start_points(self._committed(facts), watermarks)
        return Standing(facts.topic_id, points.positions, watermarks, points.lost, points.beyond, self._what)

    def _committed(self, facts: TopicFacts) -> dict[int, int | None]:
        if self._table is None:
            if not self._lake.exists(self._name):
                return {}
            self._table = self._lake.open(self._name)
        else:
            self._table.update_incremental()
        return committed_positions(self._table, facts)


def committed_positions(table: DeltaTable, facts: TopicFacts) -> dict[int, int | None]:
    """Partition -> the position in this snapshot of the table, ``None`` where nothing was landed yet."""
    return {
        partition: table.transaction_version(app_id(facts.cluster_id, facts.topic_id, partition))
        for partition in facts.partitions
    }


def fault_of(points: StartPoints, what: str = "readings") -> LostReadings | None:
    """What a person has to decide before landing goes on; ``what`` names the messages."""
    if points.beyond:
        partition, position, end = points.beyond[0]
        return LostReadings(
            f"the log of partition {partition} ends at {end}, but {what} up to {position - 1} have been landed: "
            "the broker lost messages, and new ones would be mistaken for them",
            "make the topic anew (it gets another id) and produce again what is missing",
        )
    if points.lost:
        return LostReadings(
            f"{what} were deleted from the topic before they were landed: {described(points.lost)}",
            "`smoke land accept-loss` goes on without them; a longer SMOKE_KAFKA_RETENTION_DAYS gives it time",
        )
    return None


# -- the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TableShape:
    """What a landed table is, and how its files are written.

    Attributes:
        name: below the lake.
        schema: of its rows.
        day: its partition column, a date.
        configuration: by Delta's names.
        properties: of the files that a commit adds; compaction has its own.
    """

    name: str
    schema: pa.Schema
    day: str
    configuration: Mapping[str, str]
    properties: WriterProperties


def _landing_properties() -> WriterProperties:
    """Parquet settings for files that are compacted soon: cheap to write. Dictionaries only where values repeat."""
    return WriterProperties(
        compression="LZ4_RAW",
        default_column_properties=ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE"),
        column_properties={
            **{name: ColumnProperties(dictionary_enabled=True, statistics_enabled="NONE") for name in _REPEATING},
            **{
                name: ColumnProperties(dictionary_enabled=False, statistics_enabled="CHUNK")
                for name in ("event_time", "offset", "replay_of")
            },
            **{
                name: ColumnProperties(dictionary_enabled=True, statistics_enabled="CHUNK")
                for name in ("partition", "append_time", "ingest_time")
            },
        },
    )


READINGS_SHAPE = TableShape(READINGS, READINGS_SCHEMA, PARTITION_COLUMN, TABLE_CONFIGURATION, _landing_properties())


def stamps_folder(settings: Settings) -> Path:
    """Where landing keeps small facts that outlive a run."""
    return settings.home / "landing"


class LandedTable:
    """This writer's hold on a landed table: commits rows with positions, and notices any other writer.

    Args:
        lake: where the table lies; it is made if it isn't there.
        facts: the topic whose partitions are landed.
        shape: which table.
        stamps: folder that keeps the time of the last vacuum, since a run ends before the next one is due; ``None``:
            no vacuum by itself.
    """

    def __init__(
        self, lake: Lake, facts: TopicFacts, shape: TableShape = READINGS_SHAPE, *, stamps: Path | None = None
    ) -> None:
        self._lake = lake
        self._facts = facts
        self.shape = shape
        self._table = lake.create(shape.name, shape.schema, [shape.day], shape.configuration)
        self.positions: dict[int, int | None] = committed_positions(self._table, facts)
        self._plan = CompactionPlan()
        self._commits = 0
        self._touched: set[object] = set()
        self._stamp = None if stamps is None else stamps / f"vacuumed-{shape.name}"

    @property
    def version(self) -> int:
        return int(self._table.version())

    @property
    def snapshot(self) -> DeltaTable:
        """The table as it is when the next commit is made; to be read only, and not kept."""
        return self._table

    def refresh(self) -> None:
        """Sees what others have changed in the table; whoever moved a position is told of it at the next commit."""
        self._table = self._lake.open(self.shape.name)

    def mark(self, name: str) -> int:
        """The number that was last committed under this name of the caller's, 0 where there is none."""
        return self._table.transaction_version(name) or 0

    def rows(self) -> pl.LazyFrame:
        """The table's rows in the snapshot on which the next commit is made."""
        return pl.scan_delta(self._table)

    def commit(
        self,
        rows: pa.Table,
        positions: Mapping[int, int],
        metadata: Mapping[str, Any] | None = None,
        marks: Mapping[str, int] | None = None,
    ) -> int:
        """Adds the rows (there may be none) and moves the positions, in one commit.

        Args:
            marks: numbers under names of the caller's, kept in the same commit.

        Returns:
            The table's version after it.

        Raises:
            Fenced: when another writer has moved a position; nothing was written.
            Outdated: when another writer has moved one of these marks; nothing was written.
        """

        def write(table: DeltaTable, properties: CommitProperties) -> None:
            write_deltalake(
                table, rows, mode="append", writer_properties=self.shape.properties, commit_properties=properties
            )

        return self._commit(write, positions, metadata, marks)

    def commit_files(
        self,
        files: Sequence[WrittenFile],
        positions: Mapping[int, int],
        metadata: Mapping[str, Any] | None = None,
        marks: Mapping[str, int] | None = None,
    ) -> int:
        """The same for files that somebody has written below the table's folder already: ``adapters.lake_files``."""

        def write(table: DeltaTable, properties: CommitProperties) -> None:
            table.create_write_transaction(
                [file.action() for file in files],
                "append",
                table.schema(),
                [self.shape.day],
                commit_properties=properties,
            )
            # It leaves the object as it was, unlike the other way of writing.
            table.update_incremental()

        return self._commit(write, positions, metadata, marks)

    def _commit(
        self,
        write: Callable[[DeltaTable, CommitProperties], None],
        positions: Mapping[int, int],
        metadata: Mapping[str, Any] | None,
        marks: Mapping[str, int] | None,
    ) -> int:
        moved = {number: place for number, place in positions.items() if place > (self.positions.get(number) or -1)}
        known = {name: self.mark(name) for name in marks or {}}
        properties = CommitProperties(
            app_transactions=[
                Transaction(
                    app_id(self._facts.cluster_id, self._facts.topic_id, number), place, int(time.time() * 1000)
                )
                for number, place in moved.items()
            ]
            + [Transaction(name, number, int(time.time() * 1000)) for name, number in (marks or {}).items()],
            custom_metadata=dict(metadata) if metadata else None,
        )
        while True:
            # On this snapshot, and nothing refreshes it before the write: a later commit with any of our application
            # ids makes the write fail, an earlier one shows here.
            self._require_own_positions()
            try:
                write(self._table, properties)
            except CommitFailedError as refusal:
                log.warning("commit refused: %s", refusal)
                self._table = self._lake.open(self.shape.name)
                self._require_own_positions()
                if any(self.mark(name) != number for name, number in known.items()):
                    raise Outdated from None
                continue
            self.positions.update(moved)
            # The table has refreshed itself: whatever another writer did meanwhile is in this snapshot.
            self._require_own_positions()
            self._commits += 1
            return self.version

    def _require_own_positions(self) -> None:
        found = committed_positions(self._table, self._facts)
        strange = {number: place for number, place in found.items() if place != self.positions.get(number)}
        if strange:
            number, place = next(iter(strange.items()))
            raise Fenced(
                f"another writer has landed partition {number} up to {place}; this one stood at "
                f"{self.positions.get(number)}",
                "nothing is wrong with the lake; let one landing run at a time (`smoke land status`)",
            )

    def tidy(self, days: set[object]) -> list[tuple[object, int]]:
        """Notes the days that got rows, and now and then compacts files and removes those nobody needs.

        Returns:
            (day, target size in bytes) of each compaction that was done.
        """
        self._touched |= days
        if self._commits < TIDY_EVERY_COMMITS:
            return []
        self._commits = 0
        done = []
        for day, target in self._plan.chosen(live_files(self._table, self.shape.day), self._touched):
            self._table.optimize.compact(
                partition_filters=[(self.shape.day, "=", str(day))],
                target_size=target,
                writer_properties=writer_properties(),
            )
            done.append((day, target))
        self._touched.clear()
        self.vacuum_when_due()
        return done

    def vacuum_when_due(self) -> None:
        """Vacuums where the last time is longer ago than ``VACUUM_EVERY``, over all runs."""
        if self._stamp is None:
            return
        if not self._stamp.exists():
            self._stamp.parent.mkdir(parents=True, exist_ok=True)
            self._stamp.touch()
        elif time.time() - self._stamp.stat().st_mtime > VACUUM_EVERY.total_seconds():
            self._stamp.touch()
            self.vacuum()

    def vacuum(self) -> int:
        """Deletes files that no version of the last ``TOMBSTONES_KEPT`` names, those of killed writers too."""
        return len(self._table.vacuum(dry_run=False, full=True))

    def forget_before(self, day: date) -> int:
        """Removes the rows of days before ``day``; returns how many files went. The next vacuum deletes them."""
        old = live_files(self._table, self.shape.day).filter(pl.col("day") < day).height
        if old:
            self._require_own_positions()
            self._table.delete(f"{self.shape.day} < '{day.isoformat()}'")
        return old


def live_files(table: DeltaTable, day: str = PARTITION_COLUMN) -> pl.DataFrame:
    """The table's live files: columns day (its partition column), size (bytes)."""
    files = pa.table(table.get_add_actions(flatten=True))
    return pl.DataFrame(
        {"day": files[f"partition.{day}"].to_pylist(), "size": files["size_bytes"].to_pylist()},
        schema={"day": pl.Date, "size": pl.Int64},
    )


# -- the clocks' cache -----------------------------------------------------------------------------------


def load_clocks(settings: Settings, facts: TopicFacts, positions: Mapping[int, int | None]) -> pl.DataFrame:
    """The devices' clocks at these positions: from the cache, and from the rows landed since it was written.

    The cache only saves time. Without a usable one, three columns of the topic's rows are read; measured figures are in
    docs/landing.md.
    """
    known = pl.DataFrame(schema=CLOCK_SCHEMA)
    since: dict[int, int] = {}
    path = _clocks_path(settings)
    if path.exists():
        stored = pq.read_table(path)
        facts_then = json.loads((stored.schema.metadata or {}).get(b"smoke", b"{}"))
        then = {int(number): place for number, place in facts_then.get("positions", {}).items()}
        behind = all((positions.get(number) or 0) >= place for number, place in then.items())
        if facts_then.get("topic_id") == facts.topic_id and behind:
            frame = pl.from_arrow(stored)
            assert isinstance(frame, pl.DataFrame)  # noqa: S101 - tells the type checker what a table becomes
            known, since = frame.cast(pl.Schema(CLOCK_SCHEMA)), then
    changed = {
        number: since.get(number, 0) for number, place in positions.items() if (place or 0) > since.get(number, 0)
    }
    if not changed:
        return known
    newer = (
        Lake(settings.lake)
        .scan(READINGS)
        .filter(
            pl.col("offset") >= min(changed.values()),
            pl.col("topic_id") == facts.topic_id,
            pl.any_horizontal(
                (pl.col("partition") == number) & (pl.col("offset") >= place) for number, place in changed.items()
            ),
        )
        .group_by("partition", "device_id")
        .agg(pl.col("event_time").max().alias("clock"))
        .collect(engine="streaming")
    )
    return pl.concat([known, newer]).group_by("partition", "device_id").agg(pl.col("clock").max())


def save_clocks(
    settings: Settings, facts: TopicFacts, positions: Mapping[int, int | None], clocks: pl.DataFrame
) -> None:
    """Writes the cache that ``load_clocks`` reads."""
    path = _clocks_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"topic_id": facts.topic_id, "positions": {n: place for n, place in positions.items() if place is not None}}
    new = path.with_suffix(".new")
    pq.write_table(clocks.to_arrow().replace_schema_metadata({"smoke": json.dumps(note)}), new)
    new.replace(path)


# -- the run ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LandingReport:
    """What a run did, and why it ended."""

    cluster_id: str
    topic_id: str
    ended: str = ""
    commits: int = 0
    seconds: float = 0.0
    positions: dict[int, int] = field(default_factory=dict)
    partitions: dict[int, PartitionTally] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)

    def total(self) -> PartitionTally:
        total = PartitionTally()
        for tally in self.partitions.values():
            total.add(tally)
        return total


@dataclass(slots=True)
class Progress:
    """What one commit landed: partition -> tally; ``version`` is the table's after it."""

    version: int
    partitions: dict[int, PartitionTally]
    reasons: dict[str, int]


@dataclass(slots=True)
class _Prepared:
    begins: dict[int, int]
    rows: pa.Table
    days: set[object]
    letters: list[Letter]
    positions: dict[int, int]
    tallies: dict[int, PartitionTally]
    reasons: dict[str, int]
    clocks: pl.DataFrame


@dataclass(frozen=True, slots=True)
class LandedBatch:
    """What one commit has landed.

    Attributes:
        rows: columns ``READINGS_COLUMNS``; there may be none.
        begins: partition -> position before it, of every partition.
        positions: partition -> position after it, of those that it moved.
    """

    rows: pa.Table
    begins: Mapping[int, int]
    positions: Mapping[int, int]


class Companion(Protocol):
    """What works beside the landing of readings, on threads of its own, for as long as the run holds the lease."""

    def start(self, facts: TopicFacts) -> None:
        """Begins; called once, when the lease is held. ``facts``: the readings' topic, the same for the whole run."""

    def landed(self, batch: LandedBatch) -> None:
        """Told of each commit, in the thread that commits: it returns at once, and raises nothing."""

    def check(self) -> None:
        """Raises what has made it end."""

    @property
    def quiet(self) -> bool:
        """Whether it has nothing to do: the run may end for want of readings."""

    @property
    def stuck(self) -> bool:
        """Whether it does not come back from a step: then the lease is no longer renewed."""

    def stop(self, *, finish: bool = False) -> None:
        """Asks it to end after what it is doing; ``finish``: when everything that is there has been done."""

    def ended(self, timeout_s: float) -> bool:
        """Waits at most ``timeout_s`` for its end; says whether it has come."""


class Companions:
    """All that works beside a run, as one."""

    def __init__(self, companions: Sequence[Companion]) -> None:
        self._all = tuple(companions)

    def start(self, facts: TopicFacts) -> None:
        for each in self._all:
            each.start(facts)

    def landed(self, batch: LandedBatch) -> None:
        for each in self._all:
            each.landed(batch)

    def check(self) -> None:
        for each in self._all:
            each.check()

    @property
    def quiet(self) -> bool:
        return all(each.quiet for each in self._all)

    @property
    def stuck(self) -> bool:
        return any(each.stuck for each in self._all)

    def stop(self, *, finish: bool) -> None:
        for each in self._all:
            each.stop(finish=finish)

    def ended(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        return all(each.ended(max(0.0, deadline - time.monotonic())) for each in self._all)


class Landing:
    """One landing run.

    Args:
        settings: which topic, which lake, how large a batch.
        run_id: written into the lease.
        once: end when everything that was there at the start has landed.
        stop: set it from another thread or a signal handler to end after the current batch.
        on_commit: called after each commit, in the thread that called ``run``.
        wanted: asked every 10 s; when it says no, the run ends after the current batch.
        companions: work beside it. What one of them raises is the run's fault, and the run ends for want of readings
            only when all are quiet.
    """

    def __init__(
        self,
        settings: Settings,
        run_id: str,
        *,
        once: bool = False,
        stop: threading.Event | None = None,
        on_commit: Callable[[Progress], None] | None = None,
        wanted: Callable[[], bool] | None = None,
        companions: Sequence[Companion] = (),
    ) -> None:
        self._settings = settings
        self._companions = Companions(companions)
        self._run_id = run_id
        self._once = once
        self._stop = stop or threading.Event()
        self._on_commit = on_commit
        self._wanted = wanted
        self._plan = BatchPlan(settings.batch_rows, settings.batch_seconds)
        self._lake = Lake(settings.lake)
        self._watcher = TopicWatcher(settings.brokers, settings.topic_readings)
        self._step: tuple[str, float] | None = None
        self._clocks_saved = time.monotonic()

    def run(self) -> LandingReport:
        """Lands until there is a reason to end.

        Raises:
            LeaseHeld: another run is at work.
            Fenced: another writer has gone on.
            LostReadings: the log no longer holds what was to be landed next.
            SmokeError: the topic does not exist, the broker does not answer, dead letters are not acknowledged.
        """
        begun = time.monotonic()
        with (
            Lease(lease_path(self._settings), self._run_id) as lease,
            _quiet_collector(),
            ThreadPoolExecutor(1, "landing-decode") as decoder,
            ThreadPoolExecutor(1, "landing-commit") as committer,
        ):
            facts = topic_facts(self._settings, self._watcher)
            self._table = LandedTable(self._lake, facts, stamps=stamps_folder(self._settings))
            self._facts_at_start = facts
            report = LandingReport(facts.cluster_id, facts.topic_id)
            watermarks = self._watcher.watermarks(facts.partitions)
            points = start_points(self._table.positions, watermarks)
            if fault := fault_of(points):
                raise fault
            loading = decoder.submit(self._timed, "clocks", self._load_clocks)
            self._await(loading, lease)
            self._letters = DeadLetterProducer(self._settings.brokers, self._settings.topic_dead_letters)
            self._reached = dict(points.positions)  # of what was read
            self._positions = dict(points.positions)  # of what was handed to the decoder
            self._committed = dict(points.positions)  # of what is in the table; the committing thread's
            report.positions = dict(points.positions)
            goal = {number: high for number, (_, high) in watermarks.items()} if self._once else None
            pending: deque[Future[Progress]] = deque()
            self._companions.start(facts)
            try:
                report.ended = self._loop(lease, (decoder, committer), pending, report, goal)
                while pending:
                    self._await(pending[0], lease)
                    self._settle(pending, report, lease)
                self._dismiss(lease, finish=self._once)
            except TopicChanged as change:
                report.ended = str(change)
            except OffsetLost as loss:
                raise self._explained(loss) from None
            finally:
                # The commit that is under way ends in good order; what has not begun is read again by the next run.
                for future in list(pending)[1:]:
                    future.cancel()
                decoder.shutdown(wait=True, cancel_futures=True)
                committer.shutdown(wait=True, cancel_futures=True)
                self._dismiss(lease, finish=False, checked=False)
            self._save_clocks()
            report.seconds = time.monotonic() - begun
            return report

    # -- reading -----------------------------------------------------------------------------------------
    def _loop(
        self,
        lease: Lease,
        stages: tuple[ThreadPoolExecutor, ThreadPoolExecutor],
        pending: deque[Future[Progress]],
        report: LandingReport,
        goal: dict[int, int] | None,
    ) -> str:
        settings = self._settings
        decoder, committer = stages
        started = self._last_message = asked = looked = beaten = time.monotonic()
        growing, oldest = MessageBatch(), started
        ending = ""
        with BulkConsumer(settings.brokers, settings.topic_readings, report.positions) as consumer:
            while True:
                full = len(growing) >= self._plan.rows
                if not full:
                    chunk = consumer.take(POLL_S, self._plan.rows - len(growing))
                    self._reached = advanced(self._reached, _after(chunk))
                    if len(chunk):
                        self._last_message = time.monotonic()
                        oldest = oldest if len(growing) else self._last_message
                        growing.extend(chunk)
                    else:
                        growing.ends.update(chunk.ends)
                elif len(pending) >= MOST_PENDING:
                    self._wait_a_little(pending[0])
                self._settle(pending, report, lease)

                now = time.monotonic()
                if now - beaten >= BEAT_EVERY_S and not self._stuck():
                    lease.beat()
                    beaten = now
                ending = ending or self._reason_to_end(now, started, growing, pending)
                if not ending and now - looked >= PAUSE_EVERY_S:
                    looked = now
                    ending = "paused" if paused(settings) is not None else ""
                if not ending and now - asked >= WANTED_EVERY_S:
                    asked = now
                    ending = "no longer wanted" if self._wanted is not None and not self._wanted() else ""
                if not ending and goal is not None:
                    ending = "caught up" if all(self._reached[number] >= end for number, end in goal.items()) else ""

                due = self._plan.due(len(growing), now - oldest, writer_free=not pending)
                if (due and len(pending) < MOST_PENDING) or ending or (not len(growing) and self._gap(growing)):
                    if len(growing) or self._gap(growing):
                        decoding = decoder.submit(self._timed, "decode", self._prepare, growing, self._positions)
                        pending.append(committer.submit(self._commit, decoding))
                        self._positions = dict(self._reached)
                    growing = MessageBatch()
                    if ending:
                        return ending

    def _reason_to_end(
        self, now: float, started: float, growing: MessageBatch, pending: deque[Future[Progress]]
    ) -> str:
        self._companions.check()
        if self._stop.is_set():
            return "stopped"
        if now - started >= self._settings.stream_max_seconds:
            return "time is up"
        quiet = not len(growing) and not pending and self._companions.quiet
        if quiet and not self._once and now - self._last_message >= self._settings.stream_idle_seconds:
            if not self._messages_wait():
                return "idle"
            # The consumer has not come to them yet: its first fetch may take longer than the idle time.
            self._last_message = now
        return ""

    def _messages_wait(self) -> bool:
        """Whether the topic holds what was not read yet; so it is not where the broker does not say."""
        try:
            marks = self._watcher.watermarks(self._facts_at_start.partitions, ENDS_TIMEOUT_S)
        except KafkaUnreachable:
            # The topic may be gone for good; the next run is told of it when it begins.
            return False
        return any(end > max(start, self._reached.get(number, 0)) for number, (start, end) in marks.items())

    def _gap(self, growing: MessageBatch) -> bool:
        """Whether a partition ends with offsets that hold no message: the position moves past them."""
        return any(end > self._positions.get(number, end) for number, end in growing.ends.items())

    def _settle(self, pending: deque[Future[Progress]], report: LandingReport, lease: Lease) -> None:
        while pending and pending[0].done():
            progress = pending.popleft().result()
            lease.beat(progressed=True)
            report.commits += 1
            for number, tally in progress.partitions.items():
                report.partitions.setdefault(number, PartitionTally()).add(tally)
            for reason, count in progress.reasons.items():
                report.reasons[reason] = report.reasons.get(reason, 0) + count
            report.positions.update({n: place for n, place in self._table.positions.items() if place is not None})
            if self._on_commit is not None:
                self._on_commit(progress)

    def _dismiss(self, lease: Lease, *, finish: bool, checked: bool = True) -> None:
        """Ends the companions; what made one end by itself is raised, unless the run ends by a fault already."""
        self._companions.stop(finish=finish)
        while not self._companions.ended(BEAT_EVERY_S):
            if not self._stuck():
                lease.beat()
        if checked:
            self._companions.check()

    def _await(self, future: Future[Any], lease: Lease) -> None:
        while not future.done():
            self._wait_a_little(future)
            if not self._stuck():
                lease.beat()
        future.result()

    @staticmethod
    def _wait_a_little(future: Future[Any]) -> None:
        ready = threading.Event()
        future.add_done_callback(lambda _future: ready.set())
        ready.wait(BEAT_EVERY_S)

    def _timed(self, step: str, work: Callable[..., Any], *arguments: Any) -> Any:
        if step not in STEP_BUDGET_S:
            return work(*arguments)
        self._step = (step, time.monotonic())
        try:
            return work(*arguments)
        finally:
            self._step = None

    def _stuck(self) -> bool:
        if self._companions.stuck:
            return True
        step = self._step
        return step is not None and time.monotonic() - step[1] > STEP_BUDGET_S[step[0]]

    # -- decoding ----------------------------------------------------------------------------------------
    def _prepare(self, batch: MessageBatch, begins: dict[int, int]) -> _Prepared:
        found = self._preparer.prepare(batch, datetime.now(UTC))
        return _Prepared(
            begins=begins,
            rows=found.rows.to_arrow(),
            days=set(found.rows[PARTITION_COLUMN].unique()),
            letters=found.letters,
            positions=_after(batch),
            tallies=found.tallies,
            reasons=found.reasons,
            clocks=self._preparer.clocks.frame,
        )

    # -- committing --------------------------------------------------------------------------------------
    def _commit(self, decoding: Future[_Prepared]) -> Progress:
        prepared = decoding.result()
        if prepared.begins != self._committed:
            # The batch before failed: committing this one would move the position past messages that nobody has.
            raise _BatchMissing(f"the batch begins at {prepared.begins}, the table ends at {self._committed}")
        self._timed("topic", self._require_same_topic)
        if prepared.letters:
            # Before the commit: a reject whose position is behind us must be in the dead letters.
            self._timed("letters", self._letters.send, prepared.letters)
        version = self._timed("commit", self._table.commit, prepared.rows, prepared.positions)
        self._companions.landed(LandedBatch(prepared.rows, prepared.begins, prepared.positions))
        self._committed = advanced(self._committed, prepared.positions)
        self._committed_clocks = prepared.clocks
        self._timed("tidy", self._table.tidy, prepared.days)
        if time.monotonic() - self._clocks_saved > CLOCKS_SAVED_EVERY_S:
            self._save_clocks()
        return Progress(version, prepared.tallies, prepared.reasons)

    def _require_same_topic(self) -> None:
        require_same_topic(self._watcher, self._facts_at_start, self._stop)

    # -- start and end -----------------------------------------------------------------------------------
    def _load_clocks(self) -> None:
        known = load_clocks(self._settings, self._facts_at_start, self._table.positions)
        self._preparer = Preparer(
            self._settings.topic_readings,
            self._facts_at_start.topic_id,
            DeviceClocks(timedelta(minutes=self._settings.lateness_minutes), known),
            lambda: stored_replays(self._lake.scan(READINGS)),
        )
        self._committed_clocks = known

    def _save_clocks(self) -> None:
        self._clocks_saved = time.monotonic()
        save_clocks(self._settings, self._facts_at_start, self._table.positions, self._committed_clocks)

    def _explained(self, loss: OffsetLost) -> SmokeError:
        facts = topic_facts(self._settings, self._watcher)
        points = start_points(self._table.positions, self._watcher.watermarks(facts.partitions))
        return fault_of(points) or loss


def topic_facts(settings: Settings, watcher: TopicWatcher) -> TopicFacts:
    """The topic that ``watcher`` looks at.

    Raises:
        SmokeError: there is none.
    """
    facts = watcher.facts()
    if facts is None:
        raise SmokeError(
            f"there is no topic {watcher.topic} at {settings.brokers}", "make it with `smoke topics create`"
        )
    return facts


def require_same_topic(watcher: TopicWatcher, facts: TopicFacts, stop: threading.Event) -> None:
    """Raises TopicChanged unless every message read so far came from the topic that ``facts`` describe.

    A topic's id is never used again, so if it is the same now it was the same all the time.
    """
    deadline = time.monotonic() + STEP_BUDGET_S["topic"] - 10
    while True:
        try:
            found = watcher.facts(5.0)
            break
        except KafkaUnreachable:
            if time.monotonic() > deadline or stop.is_set():
                raise
    if found is None or (found.topic_id, found.cluster_id) != (facts.topic_id, facts.cluster_id):
        raise TopicChanged("the topic was made anew")
    if found.partitions != facts.partitions:
        raise TopicChanged("the topic got more partitions")


def _after(batch: MessageBatch) -> dict[int, int]:
    return after(batch.partitions, batch.offsets, batch.ends)


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """Millions of message objects without cycles pass through; the collector would look at them again and again."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def accept_loss(settings: Settings) -> tuple[OffsetRange, ...]:
    """Moves the positions past what the log has deleted, and records the ranges in the table's history.

    Returns:
        The ranges that are given up; empty where nothing was lost.

    Raises:
        LeaseHeld: landing is running. LostReadings: the log ends before a position, which this does not mend.
    """
    with Lease(lease_path(settings), f"accept-loss-{os.getpid()}"):
        watcher = TopicWatcher(settings.brokers, settings.topic_readings)
        facts = topic_facts(settings, watcher)
        return give_up_lost(LandedTable(Lake(settings.lake), facts), facts, watcher)


def give_up_lost(
    table: LandedTable, facts: TopicFacts, watcher: TopicWatcher, what: str = "readings"
) -> tuple[OffsetRange, ...]:
    """``accept_loss`` for one table whose lease the caller holds; ``what`` names its messages."""
    points = start_points(table.positions, watcher.watermarks(facts.partitions))
    if points.beyond:
        fault = fault_of(points, what)
        raise fault if fault is not None else AssertionError
    if points.lost:
        lost = [{"partition": r.partition, "first": r.first, "end": r.end} for r in points.lost]
        note = {"smoke_accepted_loss": json.dumps({"topic_id": facts.topic_id, "ranges": lost})}
        moved = {each.partition: each.end for each in points.lost}
        table.commit(table.shape.schema.empty_table(), moved, note)
    return points.lost


@dataclass(frozen=True, slots=True)
class Audit:
    """Rows that were looked at, how many of them are doubles, and how many lie beyond the committed position."""

    rows: int = 0
    doubles: int = 0
    beyond: int = 0


#: Offsets of each partition that an audit looks at, the latest ones: bounded work however long a run lasts.
AUDITED_OFFSETS = 200_000


def audit(settings: Settings, report: LandingReport | None) -> Audit:
    """Looks in the table for the latest messages that this run landed: each must be there once."""
    if report is None or not report.partitions:
        return Audit()
    parts = [
        (number, max(tally.first_offset, tally.last_offset + 1 - AUDITED_OFFSETS))
        for number, tally in report.partitions.items()
    ]
    table = Lake(settings.lake).open(READINGS)
    committed = committed_positions(table, TopicFacts(report.cluster_id, report.topic_id, tuple(report.partitions)))
    found = (
        pl.scan_delta(table)
        .filter(
            pl.col("offset") >= min(first for _, first in parts),
            pl.col("topic_id") == report.topic_id,
            pl.any_horizontal((pl.col("partition") == number) & (pl.col("offset") >= first) for number, first in parts),
        )
        .group_by("partition")
        .agg(pl.len(), pl.col("offset").n_unique().alias("distinct"), pl.col("offset").max().alias("last"))
        .collect()
    )
    return Audit(
        rows=int(found["len"].sum()),
        doubles=int((found["len"] - found["distinct"]).sum()),
        beyond=sum(last >= (committed[number] or 0) for number, last in found.select("partition", "last").iter_rows()),
    )
