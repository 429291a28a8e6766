"""Engine ``spark``: landing of readings by Structured Streaming, into the same tables and by the same rules.

Belongs here: the driver: the query, one micro-batch of it, the commit, what makes a run end. Does not: what executors
do with messages (``streaming.spark_tasks``), windows (``streaming.spark_windows``), who starts a run
(``orchestration``, ``cli.spark``).

Exactly once rests on what it rests on in engine ``local``: the position of each partition is committed in the same
Delta commit as its rows, on the snapshot from which the positions were read. Spark's own notes of how far it is (the
checkpoint) are made anew for each run and thrown away after it: a second truth could only contradict the first. So the
engines may take turns, and a checkpoint may vanish at any time.

Executors write the files and report them; this process alone commits. Dead letters are acknowledged before.
"""

from __future__ import annotations

import json
import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from smoke_platform.adapters import spark as spark_adapter
from smoke_platform.adapters.jars import Progress as Telling
from smoke_platform.adapters.jars import silent
from smoke_platform.adapters.kafka_bulk import KafkaUnreachable, TopicWatcher
from smoke_platform.adapters.lake import PARTITION_COLUMN, READINGS, Lake
from smoke_platform.adapters.lake_files import FileShape
from smoke_platform.adapters.lease import Lease
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.landing import CLOCK_SCHEMA
from smoke_platform.domain.offsets import advanced, start_points
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import (
    BEAT_EVERY_S,
    CLOCKS_SAVED_EVERY_S,
    PAUSE_EVERY_S,
    TABLE_CONFIGURATION,
    WANTED_EVERY_S,
    Companion,
    Companions,
    LandedTable,
    LandingReport,
    Progress,
    TopicChanged,
    fault_of,
    lease_path,
    load_clocks,
    paused,
    require_same_topic,
    save_clocks,
    stamps_folder,
    topic_facts,
)
from smoke_platform.streaming.preparing import PartitionTally
from smoke_platform.streaming.spark_reading import REPORT_SCHEMA, from_ipc, to_ipc
from smoke_platform.streaming.spark_tasks import MESSAGE_COLUMNS, LandedPart, LandingTask, land_messages
from smoke_platform.streaming.spark_windows import SparkWindows
from smoke_platform.streaming.windows import WindowTally

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

#: The driver looks at everything but batches this often.
LOOK_EVERY_S = 0.1
#: A step that takes longer is taken for stuck: the lease is no longer renewed, and the supervisor steps in. A batch may
#: hold a million readings and wait for executors that are being started.
STEP_BUDGET_S: Mapping[str, float] = {"start": 300.0, "batch": 900.0, "windows": 900.0, "end": 120.0}
#: How long a batch that is under way may take when the run is to end.
PATIENCE_S = 600.0
#: The columns of the readings' files; as in ``streaming.landing``, files that are compacted soon are cheap to write.
_DICTIONARIES = (
    *("device_id", "source", "topic", "topic_id", "append_time", "ingest_time", "partition", "late"),
    "replay_of",
)


def readings_files(lake: Lake) -> FileShape:
    """How executors write files of ``lake/readings``."""
    indexed = tuple(TABLE_CONFIGURATION["delta.dataSkippingStatsColumns"].split(","))
    return FileShape(lake.address(READINGS), PARTITION_COLUMN, indexed, "lz4", _DICTIONARIES)


class SparkLanding:
    """One landing run on Spark; the counterpart of ``streaming.landing.Landing``.

    Args:
        settings: which topic, which lake, which Spark.
        run_id: written into the lease.
        once: end when everything that was there at the start has landed.
        stop: set it from another thread or a signal handler to end after the current batch.
        on_commit: called after each commit, in the thread that called ``run``.
        wanted: asked every 10 s; when it says no, the run ends after the current batch.
        windows: whether windows are appended after each batch.
        companions: work beside it, as with ``Landing``; they are told of no batch, since none comes through here.
        spark: a session to use; without one the run has its own.
        telling: is told what is being done until the first batch.
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
        windows: bool = True,
        companions: Sequence[Companion] = (),
        spark: SparkSession | None = None,
        telling: Telling = silent,
    ) -> None:
        self._settings = settings
        self._run_id = run_id
        self._once = once
        self._stop = stop or threading.Event()
        self._on_commit = on_commit
        self._wanted = wanted
        self._companions = Companions(companions)
        self._windows = SparkWindows(settings, alive=self._go_on) if windows else None
        self._given = spark
        self._telling = telling
        self._lake = Lake(settings.lake)
        self._watcher = TopicWatcher(settings.brokers, settings.topic_readings)
        self._progress: queue.SimpleQueue[Progress] = queue.SimpleQueue()
        #: Held while a batch is under way.
        self._batch = threading.Lock()
        self._ending = False
        self._fault: BaseException | None = None
        self._step: tuple[str, float] | None = None
        self._last_message = time.monotonic()
        self._clocks_saved = time.monotonic()

    def run(self) -> LandingReport:
        """Lands until there is a reason to end.

        Raises:
            LeaseHeld: another run is at work.
            Fenced: another writer has gone on.
            LostReadings: the log no longer holds what was to be landed next.
            SmokeError: the topic does not exist, the broker does not answer, Spark does not start, dead letters are
                not acknowledged.
        """
        begun = time.monotonic()
        with Lease(lease_path(self._settings), self._run_id) as lease, self._beating(lease):
            with self._timed("start"):
                facts = topic_facts(self._settings, self._watcher)
                self._facts = facts
                self._table = LandedTable(self._lake, facts, stamps=stamps_folder(self._settings))
                report = LandingReport(facts.cluster_id, facts.topic_id)
                points = start_points(self._table.positions, self._watcher.watermarks(facts.partitions))
                if fault := fault_of(points):
                    raise fault
                self._positions = dict(points.positions)
                report.positions = dict(points.positions)
                self._clocks = load_clocks(self._settings, facts, self._table.positions)
            with self._session() as spark, self._checkpoint() as checkpoint:
                self._spark, self._folder = spark, checkpoint
                self._companions.start(facts)
                if self._windows is not None:
                    self._windows.start(spark, facts)
                try:
                    report.ended = self._land(report)
                    self._dismiss(finish=self._once)
                except TopicChanged as change:
                    report.ended = str(change)
                finally:
                    self._dismiss(finish=False, checked=False)
            self._save_clocks()
            report.seconds = time.monotonic() - begun
            return report

    def drain_windows(self) -> WindowTally:
        """What was appended to ``lake/window_statistics`` since the last call."""
        return WindowTally() if self._windows is None else self._windows.drain()

    # -- the query ---------------------------------------------------------------------------------------
    def _land(self, report: LandingReport) -> str:
        with self._timed("start"):
            query = self._started()
        try:
            ending = self._watch(query, report)
        finally:
            self._end(query)
            self._tell(report)
        if self._fault is not None:
            raise self._explained(self._fault)
        if self._windows is not None:
            with self._timed("windows"):
                self._windows.append(finish=True, strict=self._once)
        return ending

    def _started(self) -> Any:
        settings = self._settings
        begins = {settings.topic_readings: {str(number): place for number, place in self._positions.items()}}
        messages = (
            self._spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", settings.brokers)
            .option("subscribe", settings.topic_readings)
            .option("startingOffsets", json.dumps(begins))
            .option("includeHeaders", "true")
            .option("maxOffsetsPerTrigger", settings.spark_batch_rows)
            # Anything else would jump over a lost range without a word.
            .option("failOnDataLoss", "true")
            .load()
            .select(*MESSAGE_COLUMNS)
        )
        writer = messages.writeStream.foreachBatch(self._on_batch).option("checkpointLocation", self._folder.as_uri())
        every: dict[str, Any] = {"processingTime": f"{settings.spark_batch_seconds} seconds"}
        if self._once:
            every = {"availableNow": True}
        self._telling("landing")
        self._last_message = time.monotonic()
        return writer.queryName(f"landing of {settings.topic_readings}").trigger(**every).start()

    def _watch(self, query: Any, report: LandingReport) -> str:
        """Waits until there is a reason to end; says which."""
        started = asked = looked = time.monotonic()
        ending = ""
        while not ending:
            self._tell(report)
            now = time.monotonic()
            if not query.isActive and self._fault is None:
                self._fault = query.exception()
                ending = "caught up"
            if self._fault is not None:
                ending = "a fault"
            self._companions.check()
            self._append_between_batches()
            ending = ending or self._reason_to_end(now, started)
            if not ending and now - looked >= PAUSE_EVERY_S:
                looked = now
                ending = "paused" if paused(self._settings) is not None else ""
            if not ending and now - asked >= WANTED_EVERY_S:
                asked = now
                ending = "no longer wanted" if self._wanted is not None and not self._wanted() else ""
            if not ending:
                self._stop.wait(LOOK_EVERY_S)
        return ending

    def _append_between_batches(self) -> None:
        """Looks for windows while no reading comes: those of a device that fell silent."""
        if self._windows is None or not self._windows.is_due or not self._batch.acquire(blocking=False):
            return
        try:
            with self._timed("windows"):
                self._windows.append()
        finally:
            self._batch.release()

    def _reason_to_end(self, now: float, started: float) -> str:
        if self._stop.is_set():
            return "stopped"
        if now - started >= self._settings.stream_max_seconds:
            return "time is up"
        quiet = not self._batch.locked() and self._companions.quiet
        if quiet and not self._once and now - self._last_message >= self._settings.stream_idle_seconds:
            if not self._messages_wait():
                return "idle"
            # Spark has not come to them yet: its first batch may take longer than the idle time.
            self._last_message = now
        return ""

    def _messages_wait(self) -> bool:
        """Whether the topic holds what has not been landed; so it is where the broker does not say."""
        try:
            marks = self._watcher.watermarks(self._facts.partitions)
        except KafkaUnreachable:
            return True
        return any(end > max(start, self._positions.get(number, 0)) for number, (start, end) in marks.items())

    def _end(self, query: Any) -> None:
        """Stops the query between two batches: one that is under way ends in good order."""
        self._ending = True
        if not self._batch.acquire(timeout=PATIENCE_S):
            log.warning("the batch under way did not end within %.0f s; it is left to itself", PATIENCE_S)
        try:
            with self._timed("end"):
                query.stop()
        finally:
            if self._batch.locked():
                self._batch.release()

    def _tell(self, report: LandingReport) -> None:
        while True:
            try:
                progress = self._progress.get_nowait()
            except queue.Empty:
                return
            report.commits += 1
            for number, tally in progress.partitions.items():
                report.partitions.setdefault(number, PartitionTally()).add(tally)
            for reason, count in progress.reasons.items():
                report.reasons[reason] = report.reasons.get(reason, 0) + count
            report.positions.update({n: place for n, place in self._table.positions.items() if place is not None})
            if self._on_commit is not None:
                self._on_commit(progress)

    # -- one batch ---------------------------------------------------------------------------------------
    def _on_batch(self, messages: DataFrame, number: int) -> None:
        """Called by Spark. What goes wrong is kept for ``run``: raised here it would come back wrapped in Java."""
        with self._batch:
            if self._ending or self._fault is not None:
                # The checkpoint believes that this batch was landed; nobody will ever read it.
                return
            try:
                with self._timed("batch"):
                    self._land_batch(messages, number)
            except Exception as fault:
                log.debug("batch %d", number, exc_info=True)
                self._fault = fault

    def _land_batch(self, messages: DataFrame, number: int) -> None:
        ends = self._planned_ends(number)
        parts = self._parts_of(messages)
        tallies = _tallies(parts)
        self._require_plausible(tallies, ends)
        moved = {partition: end for partition, end in ends.items() if end > self._positions.get(partition, 0)}
        if not moved:
            return
        require_same_topic(self._watcher, self._facts, self._stop)
        files = [file for part in parts for file in part.files]
        version = self._table.commit_files(files, moved)
        self._positions = advanced(self._positions, moved)
        self._follow_clocks(parts)
        self._table.tidy({datetime.fromisoformat(file.day).date() for file in files})
        if time.monotonic() - self._clocks_saved > CLOCKS_SAVED_EVERY_S:
            self._save_clocks()
        if tallies:
            self._last_message = time.monotonic()
        reasons: dict[str, int] = {}
        for part in parts:
            for reason, count in part.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + count
        self._beat_progress = True
        self._progress.put(Progress(version, tallies, reasons))
        if self._windows is not None:
            self._windows.take(parts, self._positions)
            if self._windows.is_due:
                self._go_on()
                self._windows.append()

    def _planned_ends(self, number: int) -> dict[int, int]:
        """Partition -> offset after the batch, as Spark wrote it down before it began.

        The messages alone do not tell: the last offsets of a range may hold none (ends of transactions).
        """
        plan = (self._folder / "offsets" / str(number)).read_text(encoding="utf-8")
        return planned_ends(plan, self._settings.topic_readings)

    def _parts_of(self, messages: DataFrame) -> list[LandedPart]:
        """Lets the executors land the messages; a second time where two partitions bring the same replay."""
        elsewhere: dict[int, frozenset[str]] = {}
        while True:
            parts = self._run_task(messages, elsewhere)
            doubles = _replayed_twice(parts)
            if not doubles:
                return parts
            for partition, identities in doubles.items():
                elsewhere[partition] = elsewhere.get(partition, frozenset()) | identities

    def _run_task(self, messages: DataFrame, elsewhere: Mapping[int, frozenset[str]]) -> list[LandedPart]:
        settings = self._settings
        task = LandingTask(
            brokers=settings.brokers,
            topic=settings.topic_readings,
            topic_id=self._facts.topic_id,
            dead_letters=settings.topic_dead_letters,
            shape=readings_files(self._lake),
            version=self._table.version,
            positions=dict(self._positions),
            lateness=timedelta(minutes=settings.lateness_minutes),
            now=datetime.now(UTC),
            elsewhere=dict(elsewhere),
        )
        clocks = self._spark.sparkContext.broadcast(to_ipc(self._clocks))

        def land(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return land_messages(task, clocks.value, batches)

        try:
            # Whole partitions are put together, so that a batch has no more files than there are cores.
            tasks = messages.coalesce(spark_adapter.parallelism(self._spark))
            rows = tasks.mapInArrow(land, REPORT_SCHEMA).collect()
        finally:
            clocks.destroy()
        parts = [msgspec.msgpack.decode(bytes(row.report), type=LandedPart) for row in rows]
        for part in parts:
            if part.fault is not None:
                raise SmokeError(*part.fault)
        return parts

    def _require_plausible(self, tallies: Mapping[int, PartitionTally], ends: Mapping[int, int]) -> None:
        for partition, tally in tallies.items():
            if tally.first_offset < self._positions.get(partition, 0) or tally.last_offset >= ends.get(partition, 0):
                raise RuntimeError(
                    f"partition {partition}: offsets {tally.first_offset} to {tally.last_offset} were landed, planned "
                    f"was {self._positions.get(partition, 0)} to {ends.get(partition, 0) - 1}"
                )

    def _follow_clocks(self, parts: Sequence[LandedPart]) -> None:
        fresh = [from_ipc(part.clocks, CLOCK_SCHEMA) for part in parts if part.clocks]
        if fresh:
            self._clocks = (
                pl.concat([self._clocks.select(list(CLOCK_SCHEMA)), *fresh])
                .group_by("partition", "device_id")
                .agg(pl.col("clock").max())
            )

    def _save_clocks(self) -> None:
        self._clocks_saved = time.monotonic()
        save_clocks(self._settings, self._facts, self._table.positions, self._clocks)

    def _explained(self, fault: BaseException) -> BaseException:
        """What a person can make use of: a loss as a loss, a Java exception in one line."""
        if isinstance(fault, SmokeError | TopicChanged):
            return fault
        try:
            watermarks = self._watcher.watermarks(self._facts.partitions)
        except KafkaUnreachable as unreachable:
            return unreachable
        lost = fault_of(start_points(self._table.positions, watermarks))
        if lost is not None:
            return lost
        if type(fault).__module__.startswith(("pyspark", "py4j")):
            log.warning("Spark: %s", fault)
            return SmokeError(
                f"Spark gave up: {spark_adapter.first_line(fault)}",
                "nothing that was committed is lost: start it again (Dagster's sensor does so by itself). If it gives "
                "up again, all of Java's message is in the log (`smoke logs code_server`), and SMOKE_ENGINE=local "
                "lands the same rows without Spark",
            )
        return fault

    # -- beside the query --------------------------------------------------------------------------------
    @contextmanager
    def _beating(self, lease: Lease) -> Iterator[None]:
        """Renews the lease from a thread of its own, unless a step takes too long."""
        done = threading.Event()
        self._beat_progress = False

        def beat() -> None:
            while not done.wait(BEAT_EVERY_S):
                if not self._stuck():
                    progressed, self._beat_progress = self._beat_progress, False
                    lease.beat(progressed=progressed)

        heart = threading.Thread(target=beat, name="landing-lease", daemon=True)
        heart.start()
        try:
            yield
        finally:
            done.set()
            heart.join()
            if self._beat_progress:
                lease.beat(progressed=True)

    def _stuck(self) -> bool:
        if self._companions.stuck:
            return True
        step = self._step
        return step is not None and time.monotonic() - step[1] > STEP_BUDGET_S[step[0]]

    def _go_on(self) -> None:
        """Says that the step under way is one of several and has done something."""
        if self._step is not None:
            self._step = (self._step[0], time.monotonic())

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        self._step = (step, time.monotonic())
        try:
            yield
        finally:
            self._step = None

    def _dismiss(self, *, finish: bool, checked: bool = True) -> None:
        self._companions.stop(finish=finish)
        while not self._companions.ended(BEAT_EVERY_S):
            pass
        if checked:
            self._companions.check()

    @contextmanager
    def _session(self) -> Iterator[SparkSession]:
        with self._timed("start"):
            opened = (
                nullcontext(self._given)
                if self._given is not None
                else spark_adapter.session(self._settings, "smoke landing", progress=self._telling)
            )
            spark = opened.__enter__()
        try:
            yield spark
        finally:
            opened.__exit__(None, None, None)

    @contextmanager
    def _checkpoint(self) -> Iterator[Path]:
        prefix = f"checkpoint-{self._settings.topic_readings}"
        for left in (self._settings.home / "spark").glob(f"{prefix}-*"):
            # Of a run that was killed; whoever holds the lease is the only one.
            shutil.rmtree(left, ignore_errors=True)
        folder = spark_adapter.scratch_folder(self._settings, prefix)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _tallies(parts: Sequence[LandedPart]) -> dict[int, PartitionTally]:
    tallies: dict[int, PartitionTally] = {}
    for part in parts:
        for partition, tally in part.tallies.items():
            if partition in tallies:
                # Lateness and replays are decided in the order of offsets, which two tasks do not keep.
                raise RuntimeError(f"partition {partition} was landed by two tasks at once")
            tallies[partition] = tally
    return tallies


def _replayed_twice(parts: Sequence[LandedPart]) -> dict[int, frozenset[str]]:
    """Partition -> identities that a lower partition of the same batch has, too."""
    first: dict[str, int] = {}
    for partition, _, identity in sorted(found for part in parts for found in part.replays):
        first.setdefault(identity, partition)
    again: dict[int, set[str]] = {}
    for part in parts:
        for partition, _, identity in part.replays:
            if first[identity] != partition:
                again.setdefault(partition, set()).add(identity)
    return {partition: frozenset(identities) for partition, identities in again.items()}


def planned_ends(plan: str, topic: str) -> dict[int, int]:
    """Partition -> offset after a batch, out of Spark's plan of it (a file of the checkpoint's folder ``offsets``).

    Raises:
        SmokeError: where the plan is none that is understood.
    """
    for line in plan.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get(topic), dict):
            return {int(partition): int(end) for partition, end in found[topic].items()}
    raise SmokeError(
        f"Spark's plan of a batch says nothing of topic {topic}: {plan!r:.500}",
        "install the version of pyspark that setup.py pins (`make setup`): another one may write its plans differently",
    )
