"""The HTTP API and the console.

Belongs here: the routes, what each documents about itself, and the life of what they share. Does not: parsing and
limits (``serving.requests``), scoring (``serving.predictor``), metrics (``serving.telemetry``), the lake's view
(``serving.live``).

The endpoints take and give bytes themselves. A model-validation layer would cost several times what features and
model do, and would be a second opinion on what a reading is; the OpenAPI description is written out instead.
"""

from __future__ import annotations

import gc
import hmac
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio.to_thread
import msgspec
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.staticfiles import StaticFiles

from smoke_platform import __version__
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.scorer import ChampionWatcher
from smoke_platform.domain import features
from smoke_platform.domain.alarm_board import Wanted, states_of
from smoke_platform.domain.alarms import Kind
from smoke_platform.domain.readings import (
    CANONICAL_NAME,
    ReadingRejected,
    RejectReason,
    json_schema,
    reading_from_mapping,
)
from smoke_platform.serving import examples
from smoke_platform.serving.alarms import (
    ANSWER_S,
    MOST_ALARMS,
    MOST_HISTORY,
    AlarmDesk,
    AlarmMetrics,
    AlarmPage,
    AlarmView,
    CommandAnswer,
    CommandBody,
    History,
    shown,
)
from smoke_platform.serving.live import LiveReadings
from smoke_platform.serving.predictor import Prediction, Predictor
from smoke_platform.serving.requests import (
    LARGEST_BODY_BYTES,
    MOST_READINGS,
    RequestFault,
    count_checked,
    decode,
    decode_carefully,
    rejected,
)
from smoke_platform.serving.telemetry import METRICS_TYPE, Outermost, Telemetry, too_large
from smoke_platform.serving.windows import MOST_WINDOWS, DeviceWindows, WindowDesk, WindowMetrics
from smoke_platform.settings import Settings

POLL_SECONDS = 1.0
STATIC_DIR = Path(__file__).with_name("static")

#: Everything the pages need comes from this service, so nothing else is allowed to load.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
#: Evidently's pages carry their scripts within themselves; the sandbox keeps those from this site and from any other.
_REPORT_HEADERS = {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_JSON = "application/json"
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


def _json(answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(answer), status_code=status, media_type=_JSON, headers=headers)


def _fault(fault: RequestFault, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": fault.as_json()}, fault.status, headers)


async def _body(request: Request) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > LARGEST_BODY_BYTES:
        raise too_large()
    return await request.body()


def create_app(settings: Settings) -> FastAPI:
    """The application for ``settings``; it loads and watches the champion while it runs."""
    watcher = ChampionWatcher(settings.models_dir, poll_seconds=POLL_SECONDS)
    predictor = Predictor(watcher)
    live = LiveReadings(Lake(settings.lake))
    telemetry = Telemetry(predictor)
    desk = AlarmDesk(settings)
    telemetry.registry.register(AlarmMetrics(desk.log))
    telemetry.registry.register(WindowMetrics(Lake(settings.lake)))

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        with watcher, desk:
            # What was imported lives as long as the process: collecting it again and again only adds pauses.
            gc.collect()
            gc.freeze()
            try:
                yield
            finally:
                gc.unfreeze()

    app = FastAPI(
        title="Smoke detection platform",
        version=__version__,
        description="Fire predictions for readings of multi-sensor smoke detectors, and the state of the platform.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.predictor = predictor
    app.state.telemetry = telemetry
    app.state.alarms = desk
    app.add_middleware(Outermost, telemetry=telemetry)
    _handle_faults(app)
    _add_predictions(app, predictor)
    _add_model(app, settings, predictor)
    _add_readings(app, live)
    _add_windows(app, WindowDesk(Lake(settings.lake)))
    _add_alarms(app, settings, desk)
    _add_operations(app, settings, predictor, live, telemetry, desk)
    _add_reports(app, settings)
    _add_pages(app)
    return app


def _handle_faults(app: FastAPI) -> None:
    @app.exception_handler(RequestFault)
    async def _request_fault(_request: Request, fault: Exception) -> Response:
        assert isinstance(fault, RequestFault)  # noqa: S101 - Starlette hands over what was registered
        return _fault(fault, {"WWW-Authenticate": "Bearer"} if fault.status == 401 else None)

    @app.exception_handler(HTTPException)
    async def _http_fault(_request: Request, fault: Exception) -> Response:
        assert isinstance(fault, HTTPException)  # noqa: S101 - Starlette hands over what was registered
        headers = dict(fault.headers or {})
        if fault.status_code == 404:
            return _fault(RequestFault(404, "not_found", "there is no such page", "GET /docs lists what there is"))
        if fault.status_code == 405:
            allowed = headers.get("Allow") or headers.get("allow") or "another method"
            return _fault(
                RequestFault(405, "method_not_allowed", "not with this method", f"use {allowed}; see GET /docs"),
                headers,
            )
        return _fault(RequestFault(fault.status_code, "http", str(fault.detail), "see GET /docs"), headers)

    @app.exception_handler(RequestValidationError)
    async def _parameter_fault(_request: Request, fault: Exception) -> Response:
        assert isinstance(fault, RequestValidationError)  # noqa: S101 - Starlette hands over what was registered
        first = fault.errors()[0]
        return _fault(
            RequestFault(
                422,
                "parameter",
                str(first["msg"]),
                "GET /docs gives the parameter's type and range",
                field=str(first["loc"][-1]),
            )
        )


# -- what the endpoints document about themselves ------------------------------------------------------------


def _prediction_schema() -> dict[str, Any]:
    """The reading's schema for predictions: device and time are optional there."""
    schema = {key: value for key, value in json_schema().items() if key not in ("$schema", "required", "title")}
    aliases: dict[str, list[str]] = {}
    for alias, name in CANONICAL_NAME.items():
        if alias != name:
            aliases.setdefault(name, []).append(alias)
    for name, names in aliases.items():
        field = schema["properties"][name]
        field["description"] = f"{field.get('description', '')} (also accepted as {', '.join(names)})".strip()
    return schema


def _takes(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema, "example": example}}}}


_FAULT_SCHEMA = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "required": ["reason", "field", "detail", "remedy"],
            "properties": {
                "reason": {"type": "string", "description": "a short fixed word for programs"},
                "field": {"type": "string", "description": "canonical name of the field at fault, or empty"},
                "detail": {"type": "string"},
                "remedy": {"type": "string"},
                "index": {"type": "integer", "description": "which reading of a list is at fault, from 0"},
            },
        }
    },
}


def _answers(description: str, schema: dict[str, Any] | None = None, **faults: str) -> dict[int | str, dict[str, Any]]:
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": description, "content": {_JSON: {"schema": schema or {"type": "object"}}}}
    }
    for status, meaning in faults.items():
        answers[int(status[1:])] = {"description": meaning, "content": {_JSON: {"schema": _FAULT_SCHEMA}}}
    return answers


def _inlined(kind: type) -> dict[str, Any]:
    """JSON Schema of a msgspec type without references, as OpenAPI has no place for its definitions."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template="{name}")

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            return resolve(components[node["$ref"]]) if "$ref" in node else {k: resolve(v) for k, v in node.items()}
        return [resolve(entry) for entry in node] if isinstance(node, list) else node

    answer: dict[str, Any] = resolve(schema)
    return answer


_NO_MODEL = "No usable model; the remedy is named"
_NOT_JSON = "The body is not JSON"
_TOO_LARGE = f"The body is larger than {LARGEST_BODY_BYTES} bytes"


# -- predictions -----------------------------------------------------------------------------------------------


def _add_predictions(app: FastAPI, predictor: Predictor) -> None:
    reading = _prediction_schema()
    series = {"type": "array", "items": reading, "minItems": 1, "maxItems": MOST_READINGS}
    prediction = _inlined(Prediction)

    @app.post(
        "/predict",
        tags=["predictions"],
        summary="Fire or not: one reading, or a list of one device's readings",
        description=(
            "Only sensors are required. With a single reading nothing is known of the device's past: features with "
            "memory are missing and the answer says `cold: true`. A list is taken as one device's readings; the "
            "answer is for the latest."
        ),
        openapi_extra=_takes({"oneOf": [reading, series]}, examples.sample()),
        responses=_answers(
            "The prediction", prediction, _400=_NOT_JSON, _413=_TOO_LARGE, _422="A field is wrong", _503=_NO_MODEL
        ),
    )
    async def predict(request: Request) -> Response:
        payload = decode(await _body(request))
        if isinstance(payload, list):
            return Response(_encode(await predictor.predict(payload)), media_type=_JSON)
        return Response(_encode(predictor.predict_one(payload)), media_type=_JSON)

    @app.post(
        "/predict/batch",
        tags=["predictions"],
        summary=f"Up to {MOST_READINGS} independent readings",
        description="Each row stands alone (cold). A faulty row is answered by its own error and harms no other.",
        openapi_extra=_takes(series, [examples.sample()]),
        responses=_answers(
            "One result a row, and a summary",
            None,
            _400=_NOT_JSON,
            _413=_TOO_LARGE,
            _422="The list as a whole is wrong",
            _503=_NO_MODEL,
        ),
    )
    async def predict_batch(request: Request) -> Response:
        return _json(await predictor.predict_batch(decode(await _body(request))))

    @app.get(
        "/predict/sample",
        tags=["predictions"],
        summary="A quiet room as an example request, scored now",
        responses=_answers("Request and its answer", None, _503=_NO_MODEL),
    )
    async def predict_sample() -> Response:
        payload = examples.sample()
        return _json(
            {
                "about": "one reading of a quiet room; POST the request to /predict",
                "request": payload,
                "response": await predictor.predict(payload, counted=False),
            }
        )

    @app.get(
        "/predict/fire-scenario",
        tags=["predictions"],
        summary="A beginning fire as an example request, scored now",
        responses=_answers("Request and its answer", None, _503=_NO_MODEL),
    )
    async def predict_fire_scenario() -> Response:
        payload = examples.fire_scenario()
        return _json(
            {
                "about": "ten minutes of one device: five quiet, then a smouldering sofa; POST the request to /predict",
                "request": payload,
                "response": await predictor.predict(payload, counted=False),
            }
        )

    @app.get(
        "/predictions/stats",
        tags=["predictions"],
        summary="Counts since start, processing times, the last predictions",
        responses=_answers("The counts"),
    )
    async def predictions_stats() -> Response:
        return _json(predictor.statistics())


# -- model -----------------------------------------------------------------------------------------------------


def _model_status(predictor: Predictor) -> dict[str, Any]:
    status, scorer = predictor.watcher.status, predictor.watcher.current
    state = "missing" if scorer is None else "refused" if status.refused_reason else "ok"
    return {
        "state": state,
        "version": scorer.version if scorer else None,
        "detail": status.refused_detail.replace("\n  -> ", "; "),
        "refused_reason": status.refused_reason,
        "refused_version": status.refused_version or None,
        "refused_at": status.refused_at,
        "loaded_at": status.loaded_at,
        "swaps": status.swaps,
        "refusals": {str(reason): count for reason, count in status.refusals.items()},
    }


def _add_model(app: FastAPI, settings: Settings, predictor: Predictor) -> None:
    @app.get(
        "/model/info",
        tags=["model"],
        summary="The model in use: version, algorithm, training, metrics, features, threshold, hash",
        responses=_answers("What its manifest says, and how it was taken in", None, _503=_NO_MODEL),
    )
    async def model_info() -> Response:
        scorer = predictor.scorer()
        champion, manifest = scorer.champion, scorer.manifest
        return _json(
            {
                "version": scorer.version,
                "algorithm": manifest.get("algorithm"),
                "trained_on": manifest.get("trained_on") or champion.trained_on,
                "metrics": champion.metrics,
                "threshold": scorer.threshold,
                "sha256": champion.sha256,
                "feature_version": champion.feature_version,
                "feature_names": champion.feature_names,
                "features": features.DEFINITIONS,
                "promoted_at": champion.published_at,
                "previous": champion.previous,
                "loaded_at": scorer.loaded_at,
                "manifest": manifest,
                "status": _model_status(predictor),
            }
        )

    @app.post(
        "/model/reload",
        tags=["model"],
        summary="Look at the published champion now (needs the token)",
        description="A new champion is noticed within a second by itself; this is for those who will not wait.",
        responses=_answers("What is in use now", None, _401="The token is wrong", _403="No token is set"),
        openapi_extra={"security": [{"token": []}]},
    )
    async def model_reload(request: Request) -> Response:
        _need_token(request, settings)
        in_use = await anyio.to_thread.run_sync(lambda: predictor.watcher.check(force=True))
        return _json({"published_is_in_use": in_use, "model": _model_status(predictor)})


def _need_token(request: Request, settings: Settings) -> None:
    """Lets changing requests through only with the token of the settings.

    Raises:
        RequestFault: 403 where none is set, else 401.
    """
    token = settings.api_token.get_secret_value() if settings.api_token else ""
    if not token:
        raise RequestFault(
            403,
            "switched_off",
            "changing endpoints are switched off while no token is set",
            "set SMOKE_API_TOKEN and start the service again; models are promoted with: smoke models promote VERSION",
        )
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise RequestFault(
            401, "unauthorized", "the token is missing or wrong", "send Authorization: Bearer <SMOKE_API_TOKEN>"
        )


# -- readings --------------------------------------------------------------------------------------------------


def _add_readings(app: FastAPI, live: LiveReadings) -> None:
    @app.get(
        "/sensors/schema",
        tags=["readings"],
        summary="The reading as a JSON Schema, and the aliases of its fields",
        responses=_answers("JSON Schema, draft 2020-12"),
    )
    async def sensors_schema() -> Response:
        aliases = {alias: name for alias, name in CANONICAL_NAME.items() if alias != name}
        return _json({**json_schema(), "x-aliases": aliases})

    @app.post(
        "/validate",
        tags=["readings"],
        summary="Would this message be accepted as a reading? Says why not",
        description="Judges as landing does: device and time are required, the clock may lead by five minutes.",
        openapi_extra=_takes({"oneOf": [json_schema(), {"type": "array", "items": json_schema()}]}, examples.sample()),
        responses=_answers("The verdict, for a list one for each", None, _400=_NOT_JSON, _413=_TOO_LARGE),
    )
    async def validate(request: Request) -> Response:
        # The domain's own decoder, so that the verdict is landing's in every detail.
        payload = decode_carefully(await _body(request))
        if isinstance(payload, list):
            verdicts = [_verdict(row) for row in count_checked(payload)]
            return _json({"valid": all(verdict["valid"] for verdict in verdicts), "readings": verdicts})
        return _json(_verdict(payload))

    @app.get(
        "/devices",
        tags=["readings"],
        summary="The last reading of each device that reported within the last minutes",
        responses=_answers("The newest readings in the lake, by landing time"),
    )
    async def devices() -> Response:
        return _json(await live.view())


# -- windows ---------------------------------------------------------------------------------------------------

_SINCE = "windows that start at this moment or later; ISO 8601, in UTC where no offset is given"
_Since = Annotated[datetime | None, Query(description=_SINCE)]
_Until = Annotated[datetime | None, Query(description="windows that start before this moment")]
_WithOpen = Annotated[bool, Query(description="with the window that is not over yet", alias="open")]


def _add_windows(app: FastAPI, desk: WindowDesk) -> None:
    @app.get(
        "/devices/{device_id:path}/windows",
        tags=["readings"],
        summary="Statistics of a device's readings over five minutes, a window each minute, the newest first",
        description=(
            "Each window at its latest revision: a reading that comes late, but within the allowed time, gives it a "
            "higher one. The window that is not over is computed for the answer and marked `open`; a device has one "
            "while its readings land."
        ),
        responses=_answers(
            "The windows",
            _inlined(DeviceWindows),
            _404="No window of such a device is known",
            _422="A parameter is wrong",
        ),
    )
    async def device_windows(
        device_id: str,
        limit: Annotated[int, Query(ge=1, le=MOST_WINDOWS)] = 60,
        since: _Since = None,
        until: _Until = None,
        with_open: _WithOpen = True,
    ) -> Response:
        return _json(await desk.of_device(device_id, since, until, limit, with_open=with_open))


def _verdict(message: Any) -> dict[str, Any]:
    try:
        reading = reading_from_mapping(message, append_time=datetime.now(UTC))
    except ReadingRejected as fault:
        return {"valid": False, "error": rejected(fault).as_json()}
    except OverflowError:
        overflow = ReadingRejected(RejectReason.NOT_FINITE, "", "a number is too large to be represented")
        return {"valid": False, "error": rejected(overflow).as_json()}
    return {"valid": True, "reading": msgspec.Raw(reading.to_json())}


# -- alarms ----------------------------------------------------------------------------------------------------

_Severity = Literal["low", "medium", "high", "critical"]
_StateFilter = Literal[
    "live", "aside", "all", "normal", "active", "acknowledged", "cleared", "latched", "snoozed", "shelved", "disabled"
]
_STATES = "a state, or: live (somebody should look), aside (shelved, disabled), all"
_Site = Annotated[str | None, Query(max_length=256, description="only this site; empty: those without one")]
_KindFilter = Annotated[Kind | None, Query(description="only this kind")]
_SeverityFilter = Annotated[_Severity | None, Query(description="only this severity")]
_StatesFilter = Annotated[_StateFilter, Query(description=_STATES)]
_Device = Annotated[str, Query(max_length=256, description="a part of the device's id, whatever the case")]
_Limit = Annotated[int, Query(ge=1, le=MOST_ALARMS)]
_Offset = Annotated[int, Query(ge=0, le=10_000_000)]
_FAULT_CONTENT = {_JSON: {"schema": _FAULT_SCHEMA}}
_COMMAND_EXAMPLE = {"verb": "acknowledge", "by": "ann", "reason": "on my way"}
_COMMAND_FAULTS = {
    "_401": "The token is missing or wrong",
    "_403": "No token is set",
    "_409": "The detector has refused it; the reason is named",
    "_422": "A field is wrong",
    "_503": "Kafka does not answer",
}


def _add_alarms(app: FastAPI, settings: Settings, desk: AlarmDesk) -> None:
    _add_alarm_views(app, desk)
    _add_alarm_commands(app, settings, desk)


def _add_alarm_views(app: FastAPI, desk: AlarmDesk) -> None:
    born = f"{datetime.now(UTC).timestamp():.6f}"

    @app.get(
        "/alarms",
        tags=["alarms"],
        summary="The alarms that stand, the most pressing first",
        description=(
            "Live ones unless `state` says otherwise; `counts` are of all live ones whatever the filters. `ready: "
            "false` means that nothing is known yet; GET /alarms/status says whether the list is current and whether "
            "the readings are judged."
        ),
        responses=_answers("The alarms from `offset` on", _inlined(AlarmPage), _422="A filter is wrong"),
    )
    async def alarms(
        site: _Site = None,
        kind: _KindFilter = None,
        severity: _SeverityFilter = None,
        state: _StatesFilter = "live",
        device: _Device = "",
        limit: _Limit = 200,
        offset: _Offset = 0,
        if_none_match: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        tag = f'W/"{born}-{desk.log.ready}-{desk.log.version}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if if_none_match == tag:
            return Response(status_code=304, headers=headers)
        page = await desk.page(Wanted(states_of(state), site, kind, severity, device), limit, offset)
        # The list may be newer than the tag, never older: then the next question brings it once more.
        return _json(page, headers=headers)

    @app.get(
        "/alarms/status",
        tags=["alarms"],
        summary="Whether the list of alarms is current, and whether the detector judges the readings",
        description="Only while both are true does an empty list mean that there is no alarm; `problems` says why not.",
        responses=_answers("State of the alarm log and of the detector on this machine"),
    )
    async def alarms_status() -> Response:
        return _json(await desk.status())

    @app.get(
        "/alarms/stream",
        tags=["alarms"],
        summary="What happens to alarms, as it happens (server-sent events)",
        description=(
            "`event: alarm` carries one record as GET /alarms shows it, its `id` the version after it. `event: reset` "
            "means that some were missed: ask GET /alarms. A comment comes every 15 s while nothing happens. A client "
            "that comes back with Last-Event-ID goes on where it was."
        ),
        responses={200: {"description": "Events without end", "content": {"text/event-stream": {}}},
                   503: {"description": "Too many streams are open", "content": {_JSON: {"schema": _FAULT_SCHEMA}}}},
    )  # fmt: skip
    async def alarms_stream(
        site: _Site = None,
        kind: _KindFilter = None,
        severity: _SeverityFilter = None,
        state: _StatesFilter = "all",
        device: _Device = "",
        last_event_id: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        after = int(last_event_id) if last_event_id.isascii() and last_event_id.isdigit() else None
        return StreamingResponse(
            desk.stream(Wanted(states_of(state), site, kind, severity, device), after),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @app.get(
        "/alarms/{alarm_id}",
        tags=["alarms"],
        summary="One alarm, live or over",
        responses=_answers("Its latest record", _inlined(AlarmView), _404="No such alarm is known"),
    )
    async def alarm(alarm_id: str) -> Response:
        return _json(shown(await desk.one(alarm_id)))

    @app.get(
        "/alarms/{alarm_id}/history",
        tags=["alarms"],
        summary="What happened to an alarm: when, by whom, why",
        description="From the lake as far as it has landed, and from memory. `complete` says whether it has a hole.",
        responses=_answers("Its records, oldest first", _inlined(History), _404="No such alarm is known"),
    )
    async def alarm_history(
        alarm_id: str, limit: Annotated[int, Query(ge=1, le=MOST_HISTORY)] = MOST_HISTORY
    ) -> Response:
        return _json(await desk.history(alarm_id, limit))

    @app.get(
        "/devices/{device_id:path}/alarms",
        tags=["alarms"],
        summary="What is known of a device's alarms, one of each kind that it ever had",
        responses=_answers("The latest record of each kind", {"type": "array", "items": _inlined(AlarmView)}),
    )
    async def device_alarms(device_id: str) -> Response:
        return _json(desk.of_device(device_id))


def _add_alarm_commands(app: FastAPI, settings: Settings, desk: AlarmDesk) -> None:
    body = _takes(_inlined(CommandBody), _COMMAND_EXAMPLE) | {"security": [{"token": []}]}
    answer = _inlined(CommandAnswer)

    def described() -> dict[int | str, dict[str, Any]]:
        answers = _answers("The detector has done it", answer, **_COMMAND_FAULTS)
        queued = "No detector has answered yet; it is carried out as soon as one runs"
        return answers | {202: {"description": queued, "content": {_JSON: {"schema": answer}}}}

    def told(result: CommandAnswer) -> Response:
        return _json(result, 200 if result.status == "done" else 202)

    @app.post(
        "/alarms/{alarm_id}/commands",
        tags=["alarms"],
        summary="Acknowledge, snooze, reset, ... an alarm (needs the token)",
        description=(
            f"Waits up to {ANSWER_S:g} s for the detector's answer. `by` says who asks; `reason` is required to "
            "snooze, shelve, disable, comment and for a verdict; `until` or `for_s` to snooze and shelve."
        ),
        openapi_extra=body,
        responses=described() | {404: {"description": "No such alarm is known", "content": _FAULT_CONTENT}},
    )
    async def alarm_command(alarm_id: str, request: Request) -> Response:
        _need_token(request, settings)
        found = await desk.one(alarm_id)
        return told(await desk.command(found, found.device_id, found.kind, await _body(request)))

    @app.post(
        "/devices/{device_id:path}/alarms/{kind}/commands",
        tags=["alarms"],
        summary="The same for a device and kind, also without an alarm: shelve, disable, ... (needs the token)",
        openapi_extra=body,
        responses=described(),
    )
    async def device_command(device_id: str, kind: Kind, request: Request) -> Response:
        _need_token(request, settings)
        return told(await desk.command(None, device_id, kind, await _body(request)))


# -- operations ------------------------------------------------------------------------------------------------

_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def _add_operations(
    app: FastAPI,
    settings: Settings,
    predictor: Predictor,
    live: LiveReadings,
    telemetry: Telemetry,
    desk: AlarmDesk,
) -> None:
    @app.get(
        "/health",
        tags=["operations"],
        summary="Whether the service lives, and the state of its parts",
        description=(
            "Always 200 while the process can answer; `status` is `ok` or `degraded` and each part says why. "
            "A restart would not mend a degraded service: use /ready to decide about traffic."
        ),
        responses=_answers("Status and parts"),
    )
    async def health() -> Response:
        view = await live.view()
        model = _model_status(predictor)
        healthy = model["state"] == "ok" and view.state != "error"
        now = datetime.now(UTC)
        return _json(
            {
                "status": "ok" if healthy else "degraded",
                "version": __version__,
                "uptime_s": (now - predictor.started_at).total_seconds(),
                "parts": {
                    "model": model,
                    "landing": {
                        "state": view.state,
                        "detail": view.detail,
                        "last_landed": view.last_landed,
                        "seconds_ago": (now - view.last_landed).total_seconds() if view.last_landed else None,
                        "per_second": view.per_second,
                        "devices": view.devices,
                    },
                },
            }
        )

    @app.get(
        "/ready",
        tags=["operations"],
        summary="Whether predictions can be answered",
        description="`alarms` says whether the alarm log has been read; predictions need neither it nor Kafka.",
        responses=_answers("They can", None, _503=_NO_MODEL),
    )
    async def ready() -> Response:
        alarms = {"ready": desk.log.ready, "behind": desk.log.behind}
        return _json({"ready": True, "model_version": predictor.scorer().version, "alarms": alarms})

    @app.get(
        "/config",
        tags=["operations"],
        summary="The settings in force, without secrets",
        responses=_answers("Settings by name, limits, endpoints"),
    )
    async def config() -> Response:
        values = {
            name: _CREDENTIALS_IN_URL.sub("***@", value) for name, value in sorted(settings.environment().items())
        }
        endpoints = [f"{method.upper()} {path}" for path, item in app.openapi()["paths"].items() for method in item]
        return _json(
            {
                "settings": values,
                "limits": {"body_bytes": LARGEST_BODY_BYTES, "readings": MOST_READINGS},
                "changing_endpoints": "with token" if settings.api_token else "switched off",
                "endpoints": sorted(endpoints),
            }
        )

    @app.get(
        "/metrics",
        tags=["operations"],
        summary="Metrics in Prometheus's text format",
        responses={200: {"description": "Metrics", "content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        return Response(telemetry.exposition(), media_type=METRICS_TYPE)


def _add_reports(app: FastAPI, settings: Settings) -> None:
    @app.get(
        "/reports",
        tags=["operations"],
        summary="The monitors' reports that are kept, the newest first",
        responses=_answers("Kind -> addresses of its pages"),
    )
    async def reports() -> Response:
        folders = sorted(folder for folder in settings.reports_dir.glob("*") if folder.is_dir())
        pages = {folder.name: sorted((page.name for page in folder.glob("*.html")), reverse=True) for folder in folders}
        return _json({kind: [f"/reports/{kind}/{name}" for name in found] for kind, found in pages.items()})

    app.mount("/reports", _Files(_REPORT_HEADERS, settings.reports_dir), name="reports")


class _Files(StaticFiles):
    """Files of a folder, which need not exist yet, with ``headers`` on every answer."""

    def __init__(self, headers: Mapping[str, str], directory: Path) -> None:
        super().__init__(directory=directory, check_dir=False)
        self._headers = headers

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(self._headers)
        return response


def _add_pages(app: FastAPI) -> None:
    pages = {"/": "index.html", "/docs": "docs.html"}
    for path, name in pages.items():
        _add_page(app, path, (STATIC_DIR / name).read_bytes())

    app.mount("/static", _Files(_PAGE_HEADERS, STATIC_DIR), name="static")


def _add_page(app: FastAPI, path: str, content: bytes) -> None:
    @app.get(path, include_in_schema=False)
    async def page() -> Response:
        return Response(content, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)
