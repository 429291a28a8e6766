"""``smoke detect``: runs the detector."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType

import click

from smoke_platform.settings import load_settings


@click.command()
@click.option("--member", help="Name of this replica in the group; default: SMOKE_DETECTOR_MEMBER.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Health and metrics; default: SMOKE_DETECTOR_PORT.")
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False), hidden=True, help="For benchmarks.")
def detect(member: str | None, port: int | None, trace: Path | None) -> None:
    """Raise alarms from the readings until stopped.

    Any number of replicas share the readings' partitions; each needs a name of its own. /health and /metrics are served
    on SMOKE_DETECTOR_PORT.

    \b
    Example:
      smoke detect
      smoke detect --member detector-1 --port 5011
    """
    settings = load_settings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The client tells of each reconnection; what matters of it is told here in the platform's own words.
    logging.getLogger("kafka").setLevel(logging.ERROR)

    from smoke_platform.streaming.detector import Detector
    from smoke_platform.streaming.detector_metrics import TelemetryServer

    detector = Detector(settings, member or settings.detector_member, trace=trace)

    def end(_number: int, _frame: FrameType | None) -> None:
        detector.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with TelemetryServer(detector.metrics, settings.bind_host, settings.detector_port if port is None else port):
        detector.run()
