"""The service's metrics, and the outermost layer of every request: time, size limit, faults as JSON.

Belongs here: Prometheus metrics with labels from closed sets, the ASGI middleware. Does not: what an endpoint does.
No label ever carries what a client sent: a route is named by its template, an unknown path is ``unmatched``.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from time import perf_counter
from typing import Any

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smoke_platform.serving.predictor import Predictor
from smoke_platform.serving.requests import LARGEST_BODY_BYTES, RequestFault

_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_log = logging.getLogger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Telemetry:
    """The metrics of one application, in a registry of its own."""

    def __init__(self, predictor: Predictor) -> None:
        # The extra series with each child's time of birth double what is scraped and tell nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call] # the package leaves it untyped
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "smoke_api_requests", "Requests answered", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "smoke_api_request_duration_seconds",
            "Time from a request's head to the end of its answer",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        ProcessCollector(registry=self.registry)
        self.registry.register(_PredictorMetrics(predictor))

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts one answered request; ``status`` is reduced to its class."""
        key = (route, method if method in _METHODS else "OTHER", status // 100)
        children = self._children.get(key)
        if children is None:
            # Looking a labelled child up takes longer than counting with it.
            children = self._children[key] = (
                self._requests.labels(route, key[1], f"{key[2]}xx"),
                self._seconds.labels(route),
            )
        children[0].inc()
        children[1].observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"})


class _PredictorMetrics(Collector):
    """Reads the predictor's and the watcher's own counts when asked, so that nothing is counted twice."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def collect(self) -> Iterable[Metric]:
        predictor, status = self._predictor, self._predictor.watcher.status
        predictions = CounterMetricFamily("smoke_api_predictions", "Readings predicted, by answer", labels=["label"])
        for label, count in predictor.by_label.items():
            predictions.add_metric([label], count)
        yield predictions
        yield CounterMetricFamily("smoke_api_cold_predictions", "Predictions without a device's past", predictor.cold)
        yield CounterMetricFamily("smoke_api_rejected_rows", "Rows of batches refused", predictor.rejected_rows)
        yield GaugeMetricFamily("smoke_model_loaded", "1 while a model is loaded", float(status.version is not None))
        yield GaugeMetricFamily(
            "smoke_model_refused", "1 while the published champion is not used", float(bool(status.refused_reason))
        )
        yield CounterMetricFamily("smoke_model_swaps", "Models taken in since start", status.swaps)
        refusals = CounterMetricFamily(
            "smoke_model_refusals", "Published models refused since start", labels=["reason"]
        )
        for reason, count in status.refusals.items():
            refusals.add_metric([str(reason)], count)
        yield refusals
        scorer = predictor.watcher.current
        if scorer is not None:
            yield InfoMetricFamily(
                "smoke_model",
                "The model in use",
                {"version": scorer.version, "sha256": scorer.champion.sha256},
            )
            yield GaugeMetricFamily("smoke_model_threshold", "Probability from which on it says fire", scorer.threshold)


class Outermost:
    """ASGI middleware around everything: bounds the body, times the request, turns a fault into JSON."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        status = 0
        taken = 0

        async def bounded_receive() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > LARGEST_BODY_BYTES:
                    raise too_large()
            return message

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, bounded_receive, noting_send)
        except Exception:
            # The one place where anything unforeseen ends: the caller gets an id, the log gets the trace.
            fault_id = uuid.uuid4().hex[:12]
            _log.exception("request failed, fault %s", fault_id)
            if status:
                raise
            fault = RequestFault(
                500, "internal", f"internal fault {fault_id}", "quote this id; the service's log has the details"
            )
            await send_fault(fault, noting_send)
        finally:
            self._telemetry.observe(_template(scope), scope["method"], status or 500, perf_counter() - began)


def _template(scope: Scope) -> str:
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    return "/static" if scope["path"].startswith("/static/") else "unmatched"


def too_large() -> RequestFault:
    """The answer to a body beyond the limit."""
    return RequestFault(
        413,
        "too_large",
        f"the body is larger than {LARGEST_BODY_BYTES} bytes",
        "send fewer readings in a request",
    )


async def send_fault(fault: RequestFault, send: Send) -> None:
    """Sends ``fault`` as a whole response."""
    body = msgspec.json.encode({"error": fault.as_json()})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
