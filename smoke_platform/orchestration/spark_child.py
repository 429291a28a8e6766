"""The process in which a Dagster run lands on Spark: ``python -m smoke_platform.orchestration.spark_child``.

Belongs here: what ties the landing to the run that started it. Does not: the landing (``streaming.spark_landing``), the
run's side of it (spark.py).

It holds the lease under the run's id, so the sensor looks after it as after any landing. It never outlives its run:
nobody would see what it does, and the sensor could not start another.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

from dagster_pipes import PipesContext, open_dagster_pipes

from smoke_platform.orchestration.spark_messages import Fault, Message, encode
from smoke_platform.settings import load_settings
from smoke_platform.streaming.landing import Progress
from smoke_platform.streaming.records_landing import RecordsLanding
from smoke_platform.streaming.spark_landing import SparkLanding

#: How soon it notices that its run is gone.
LOOK_EVERY_S = 0.5
#: Windows and records that came without a commit of readings are told this often.
TELL_EVERY_S = 5.0


def leave_with(parent: int) -> None:
    """Ends this process as soon as its parent is another one than ``parent``, as ``kill -9`` would.

    In good order it could take as long as a batch, and the lease would say that all is well.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def land(pipes: PipesContext) -> None:
    """Lands until there is a reason to end, and tells how it went."""
    leave_with(int(pipes.get_extra("parent")))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = load_settings()
    records = RecordsLanding(settings)

    def tell(progress: Progress | None) -> None:
        message = Message(progress=progress, records=records.drain(), windows=landing.drain_windows())
        pipes.report_custom_message(encode(message))

    landing = SparkLanding(
        settings, pipes.run_id, stop=stop, on_commit=tell, companions=[records], telling=pipes.log.info
    )
    ended = threading.Event()

    def tell_now_and_then() -> None:
        while not ended.wait(TELL_EVERY_S):
            tell(None)

    beside = threading.Thread(target=tell_now_and_then, name="tell", daemon=True)
    beside.start()
    try:
        last = Message(report=landing.run())
    except Exception as error:
        logging.getLogger(__name__).exception("the landing ended")
        last = Message(fault=Fault.of(error))
    ended.set()
    beside.join()
    tell(None)
    pipes.report_custom_message(encode(last))


def main() -> None:
    """Begins; the exit code is 0 also where the landing failed, since the run has been told why."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("py4j", "kafka"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with open_dagster_pipes() as pipes:
        land(pipes)


if __name__ == "__main__":
    main()
