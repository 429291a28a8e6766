"""Engine ``spark`` as a Dagster run has it: the driver as a child process that reports through Pipes.

Belongs here: starting, watching and ending that process, and what it tells. Does not: what is landed
(``streaming.spark_landing``), the assets, the job and the sensor, which are those of engine ``local``
(``orchestration.landing``).

``PipesSubprocessClient`` is not used: it hands over what was reported only when the process has ended, and a landing
takes an hour. Nor is ``open_pipes_session``, which insists on one result for each asset of the run; a table that got
nothing has none. Both are built on the handler and the session that are used here.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
from dagster_pipes import PipesContextData

from smoke_platform.domain.errors import SmokeError
from smoke_platform.orchestration.spark_messages import Message, decode
from smoke_platform.settings import Settings
from smoke_platform.streaming.landing import WANTED_EVERY_S, LandingReport, Progress
from smoke_platform.streaming.records_landing import RecordTally
from smoke_platform.streaming.windows import WindowTally

COMMAND = (sys.executable, "-m", "smoke_platform.orchestration.spark_child")
LOOK_EVERY_S = 0.2
#: What the driver may take to end after a batch; then it is killed, by which nothing is lost.
ENDING_S = 60.0


class SparkRun:
    """A landing in a child process, with what it told since somebody asked last."""

    def __init__(self, context: dg.AssetExecutionContext, settings: Settings) -> None:
        self._context = context
        self._settings = settings
        self._records: dict[str, RecordTally] = {}
        self._windows = WindowTally()
        self._read = 0
        self._last: Message | None = None

    def drain_records(self) -> dict[str, RecordTally]:
        """As ``RecordsLanding.drain``."""
        drained, self._records = self._records, {}
        return drained

    def drain_windows(self) -> WindowTally:
        """As ``WindowEngine.drain``."""
        drained, self._windows = self._windows, WindowTally()
        return drained

    def run(self, on_commit: Callable[[Progress], None], wanted: Callable[[], bool]) -> LandingReport:
        """Lands until the child has a reason to end.

        Args:
            on_commit: called after each commit.
            wanted: asked every 10 s; when it says no, the child ends after its batch.

        Raises:
            LeaseHeld, Fenced, LostReadings, SmokeError: what made the child end; also, where it was killed.
        """
        with self._session() as session:
            process = subprocess.Popen(
                COMMAND,
                env={**os.environ, **self._settings.environment(), **session.get_bootstrap_env_vars()},
                stdin=subprocess.DEVNULL,
            )
            try:
                asked = time.monotonic()
                while process.poll() is None:
                    self._take(session, on_commit)
                    if time.monotonic() - asked >= WANTED_EVERY_S:
                        asked = time.monotonic()
                        if not wanted():
                            process.terminate()
                    time.sleep(LOOK_EVERY_S)
            finally:
                _end(process)
        # What came last was read when the session was closed.
        self._take(session, on_commit)
        last = self._last
        if last is not None and last.report is not None:
            return last.report
        if last is not None and last.fault is not None:
            raise last.fault.error()
        raise SmokeError(
            f"Spark's driver ended with code {process.returncode} and did not say why",
            "the sensor starts another one; its output is in the log of Dagster's code server",
        )

    @contextmanager
    def _session(self) -> Iterator[dg.PipesSession]:
        handler = dg.PipesMessageHandler(self._context, dg.PipesTempFileMessageReader())
        # The assets stay on this side; the child reports tables and offsets.
        told = PipesContextData(
            asset_keys=None,
            code_version_by_asset_key=None,
            provenance_by_asset_key=None,
            partition_key=None,
            partition_key_range=None,
            partition_time_window=None,
            run_id=self._context.run.run_id,
            job_name=self._context.run.job_name,
            retry_number=self._context.retry_number,
            extras={"parent": os.getpid()},
        )
        with (
            dg.PipesTempFileContextInjector().inject_context(told) as injected,
            handler.handle_messages() as reading,
        ):
            yield dg.PipesSession(
                context_data=told,
                message_handler=handler,
                context_injector_params=injected,
                message_reader_params=reading,
                context=self._context,
            )

    def _take(self, session: dg.PipesSession, on_commit: Callable[[Progress], None]) -> None:
        payloads = session.get_custom_messages()
        fresh, self._read = payloads[self._read :], len(payloads)
        for payload in fresh:
            message = decode(payload)
            for name, tally in message.records.items():
                self._records.setdefault(name, RecordTally()).add(tally)
            if message.windows is not None:
                self._windows.add(message.windows)
                self._windows.behind, self._windows.fault = message.windows.behind, message.windows.fault
            if message.progress is not None:
                on_commit(message.progress)
            if message.report is not None or message.fault is not None:
                self._last = message


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
