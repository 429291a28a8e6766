"""What the detector tells of itself: Prometheus metrics and a health report, over HTTP.

Belongs here: metrics with labels from closed sets, the two pages that show them. Does not: when something is counted
(``streaming.detector``). No label carries what a device sent.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter as Tally
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from smoke_platform.domain.alarms import AlarmRecord, Event, Kind, State
from smoke_platform.domain.detection import Engine, Outcome
from smoke_platform.domain.errors import SmokeError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY = (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WORK = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)


class DetectorMetrics:
    """The metrics of one detector, in a registry of their own.

    Attributes:
        state: ``waiting`` (for the broker or for partitions), ``restoring`` or ``running``.
        recent_per_second: readings a second, over the last second or so.
    """

    def __init__(self) -> None:
        # The extra series with each child's time of birth double what is scraped and tell nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call] # the package leaves it untyped
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.state = "waiting"
        self.recent_per_second = 0.0
        self._lock = threading.Lock()
        self._facts: dict[str, Any] = {}
        self._counted = 0
        self._counted_at = time.monotonic()
        self._saved_at: float | None = None
        self._readings = Counter("smoke_detector_readings", "Readings judged", registry=registry)
        self._skipped = Counter(
            "smoke_detector_skipped_readings", "Readings that the restored state already knew", registry=registry
        )
        self._rejects = Counter(
            "smoke_detector_rejects", "Messages that were no readings", ["reason"], registry=registry
        )
        self._work = Histogram(
            "smoke_detector_poll_seconds",
            "Time from a poll's readings to their last alarm handed over",
            buckets=_WORK,
            registry=registry,
        )
        self._age = Histogram(
            "smoke_detector_reading_age_seconds",
            "Time from the append of a poll's oldest reading to its judgement",
            buckets=_LATENCY,
            registry=registry,
        )
        self._alarm_seconds = Histogram(
            "smoke_detector_alarm_seconds",
            "Time from the append of the causing reading to the raised alarm's acknowledgement by the broker",
            ["kind"],
            buckets=_LATENCY,
            registry=registry,
        )
        self._records = Counter(
            "smoke_detector_alarm_records", "Alarm records acknowledged", ["kind", "event"], registry=registry
        )
        self._alarms = Gauge("smoke_detector_alarms", "Alarms now", ["kind", "state"], registry=registry)
        self._devices = Gauge("smoke_detector_devices", "Devices now", ["state"], registry=registry)
        self._lag = Gauge("smoke_detector_lag_readings", "Readings appended and not yet judged", registry=registry)
        self._partitions = Gauge("smoke_detector_partitions", "Partitions that this replica holds", registry=registry)
        self._swaps = Gauge("smoke_detector_model_swaps", "Models taken in since the start", registry=registry)
        self._refusals = Gauge(
            "smoke_detector_model_refusals", "Published models refused since the start", registry=registry
        )
        self._model = Gauge(
            "smoke_detector_model_loaded", "Whether a model scores, beside the rules", registry=registry
        )
        self._snapshot_age = Gauge(
            "smoke_detector_snapshot_age_seconds", "Time since the last whole snapshot", registry=registry
        )
        self._restore = Histogram(
            "smoke_detector_restore_seconds",
            "Time to put partitions' state back",
            buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
            registry=registry,
        )
        for kind in Kind:
            self._alarm_seconds.labels(kind.value)

    def judged(self, outcome: Outcome, seconds: float, append_times_ms: Sequence[int]) -> None:
        """Counts a poll's readings."""
        count = len(outcome.offsets)
        self._readings.inc(count)
        self._counted += count
        if outcome.skipped:
            self._skipped.inc(outcome.skipped)
        for reason, number in outcome.rejects.items():
            self._rejects.labels(reason.value).inc(number)
        self._work.observe(seconds)
        self._age.observe(max(0.0, time.time() - min(append_times_ms) / 1000.0))

    def acknowledged(self, record: AlarmRecord, moment: float) -> None:
        """Counts a record that the broker has; ``moment``: epoch seconds of its acknowledgement."""
        self._records.labels(record.kind.value, record.event.value).inc()
        if record.event is Event.RAISED:
            self._alarm_seconds.labels(record.kind.value).observe(max(0.0, moment - record.at))

    def restored(self, seconds: float, devices: int) -> None:
        self._restore.observe(seconds)
        with self._lock:
            self._facts |= {"restored_devices": devices, "restore_seconds": round(seconds, 3)}

    def saved(self) -> None:
        self._saved_at = time.monotonic()

    def observe(self, engine: Engine, champion: Any, lag: int) -> None:
        """Takes stock, about once a second."""
        now = time.monotonic()
        self.recent_per_second = self._counted / max(1e-3, now - self._counted_at)
        self._counted, self._counted_at = 0, now
        tally = Tally((kind.value, alarm.state.value) for _, kind, alarm in engine.alarms())
        for kind in Kind:
            for state in State:
                if state is not State.NORMAL:
                    self._alarms.labels(kind.value, state.value).set(tally[kind.value, state.value])
        live, offline = engine.device_states()
        self._devices.labels("live").set(live)
        self._devices.labels("offline").set(offline)
        self._lag.set(lag)
        self._partitions.set(len(engine.partitions))
        status = None if champion.watcher is None else champion.watcher.status
        version = None if status is None else status.version
        self._model.set(version is not None)
        if status is not None:
            self._swaps.set(status.swaps)
            self._refusals.set(sum(status.refusals.values()))
        age = None if self._saved_at is None else now - self._saved_at
        if age is not None:
            self._snapshot_age.set(age)
        with self._lock:
            self._facts |= {
                "partitions": engine.partitions,
                "lag": lag,
                "readings_per_second": round(self.recent_per_second, 1),
                "devices": {"live": live, "offline": offline},
                "alarms": {f"{kind}/{state}": number for (kind, state), number in sorted(tally.items())},
                "model_version": version,
                "model_refused": "" if status is None else status.refused_detail,
                "snapshot_age_s": None if age is None else round(age, 1),
            }

    def health(self) -> dict[str, Any]:
        """The report of ``/health``."""
        with self._lock:
            facts = dict(self._facts)
        facts.setdefault("partitions", [])
        facts.setdefault("lag", None)
        return {"state": self.state, **facts}


class TelemetryServer:
    """Serves ``/metrics`` and ``/health`` in threads of its own; use it as a context manager.

    Raises:
        SmokeError: from the constructor, where the port is taken.
    """

    def __init__(self, metrics: DetectorMetrics, host: str, port: int) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(metrics))
        except OSError as error:
            raise SmokeError(
                f"cannot listen on {host}:{port}: {error.strerror}", "choose another port with SMOKE_DETECTOR_PORT"
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="telemetry", daemon=True)

    def __enter__(self) -> TelemetryServer:
        self._thread.start()
        return self

    def __exit__(self, *_fault: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(metrics: DetectorMetrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, METRICS_TYPE, generate_latest(metrics.registry))
            elif path == "/health":
                self._answer(200, "application/json", json.dumps(metrics.health()).encode())
            else:
                self._answer(404, "application/json", b'{"error": "there are /metrics and /health"}')

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_parts: Any) -> None:
            """Scrapes are no news."""

    return Handler
