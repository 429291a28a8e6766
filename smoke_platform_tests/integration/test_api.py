"""The API over real HTTP: what it answers, what it refuses, and that swapping models costs no request."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from smoke_platform.adapters.lake import READINGS, READINGS_SCHEMA, Lake
from smoke_platform.adapters.reports import ReportStore
from smoke_platform.adapters.scorer import OnnxScorer, read_champion
from smoke_platform.domain import features
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, CANONICAL_NAME
from smoke_platform.serving import examples
from smoke_platform.serving.app import create_app
from smoke_platform.serving.requests import LARGEST_BODY_BYTES, MOST_READINGS
from smoke_platform.settings import Settings
from smoke_platform_tests.scorer_models import logistic_model, publish

pytestmark = pytest.mark.integration

TOKEN = "a-token-for-this-test-only"  # noqa: S105 - it opens nothing but this test's own server
HIDDEN = "hidden-word"
SMOKE_SENSITIVE = {"pm2_5": 0.02, "pm2_5_score": 4.0}


@dataclass
class Served:
    """A running API: client, settings, application."""

    client: httpx.Client
    settings: Settings
    app: FastAPI

    @property
    def models_dir(self) -> Path:
        return self.settings.models_dir


@contextmanager
def serving(settings: Settings, extend: Callable[[FastAPI], None] | None = None) -> Iterator[Served]:
    """A real uvicorn server with the application, on a free port."""
    app = create_app(settings)
    if extend:
        extend(app)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        _until(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            yield Served(client, settings, app)
    finally:
        server.should_exit = True
        thread.join(20)


def _until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]) -> Iterator[Served]:
    """One server with a model, for the tests that change neither."""
    settings = settings_for(
        tmp_path_factory.mktemp("api"), SMOKE_API_TOKEN=TOKEN, POSTGRES_PASSWORD=HIDDEN,
        SMOKE_MLFLOW_URI=f"postgresql://smoke:{HIDDEN}@db/mlflow",
    )  # fmt: skip
    publish(settings.models_dir, 1, logistic_model(SMOKE_SENSITIVE, -2.0))
    with serving(settings) as served:
        yield served


@pytest.fixture
def own(tmp_path: Path, settings_for: Callable[..., Settings]) -> Iterator[Served]:
    """A server of the test's own, without a model and without a token."""
    with serving(settings_for(tmp_path)) as served:
        yield served


def _error(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error["detail"]
    assert error["remedy"]
    return error


# -- predictions ---------------------------------------------------------------------------------------------


def test_a_single_reading_is_scored_as_in_training(api: Served) -> None:
    """If the API's features differed from training's, every answer would be quietly wrong."""
    message = examples.sample()
    answer = api.client.post("/predict", json=message).json()
    sensors = np.array([[message[name] for name in ALL_SENSOR_NAMES]])
    scorer = OnnxScorer.load(api.models_dir, read_champion(api.models_dir))
    expected = float(scorer.score(features.single_reading_features(sensors))[0])
    assert answer["probability"] == expected
    assert answer["confidence"] == {"no_fire": 1.0 - expected, "fire": expected}
    assert answer["label"] == ("fire" if expected >= answer["threshold"] else "no_fire")
    assert answer["cold"] is True
    assert answer["model_version"] == "1"
    assert answer["processing_ms"] > 0
    assert answer["warnings"] == []


def test_a_series_is_scored_bit_by_bit_as_in_training(api: Served) -> None:
    """A list must bring the features with memory in, in the order of event time, however it was sent."""
    series = examples.fire_scenario()
    times = np.array([datetime.fromisoformat(row["event_time"]).timestamp() for row in series])
    sensors = np.array([[row[name] for name in ALL_SENSOR_NAMES] for row in series])
    scorer = OnnxScorer.load(api.models_dir, read_champion(api.models_dir))
    expected = scorer.score(features.one_device_features(times, sensors)).tolist()
    answer = api.client.post("/predict", json=series).json()
    assert answer["probabilities"] == expected
    assert answer["probability"] == expected[-1]
    assert answer["readings"] == len(series)
    assert answer["cold"] is False
    assert answer["label"] == "fire"
    shuffled = api.client.post("/predict", json=series[::-1]).json()
    assert shuffled["probabilities"] == expected
    assert "sorted" in shuffled["warnings"][0]


def test_dataset_names_are_accepted(api: Served) -> None:
    """Whoever sends the public dataset's rows as they are must get the same answer."""
    alias = {name: other for other, name in CANONICAL_NAME.items() if other != name}
    message = examples.sample()
    renamed = {alias.get(name, name): value for name, value in message.items() if name != "event_time"}
    assert "Temperature[C]" in renamed
    first = api.client.post("/predict", json=message).json()
    assert api.client.post("/predict", json=renamed).json()["probability"] == first["probability"]


@pytest.mark.parametrize(
    ("body", "status", "reason", "field"),
    [
        (b"", 400, "not_json", ""),
        (b"{", 400, "not_json", ""),
        (b"\xff\xfe", 400, "not_json", ""),
        (b"[" * 100_000, 400, "not_json", ""),
        (b"null", 422, "wrong_type", ""),
        (b"[]", 422, "empty", ""),
        (b"{}", 422, "missing_field", "sensors"),
        (b'{"temperature_c": NaN}', 422, "not_finite", "temperature_c"),
        (b'{"temperature_c": -Infinity}', 422, "not_finite", "temperature_c"),
        (b'{"temperature_c": 1e999}', 422, "not_finite", "temperature_c"),
        (b'{"temperature_c": 1' + b"0" * 400 + b"}", 422, "not_finite", ""),
        (b'{"Humidity[%]": 130}', 422, "out_of_range", "humidity_pct"),
        (b'{"pm2_5": "12"}', 422, "wrong_type", "pm2_5"),
        (b'{"pm2_5": true}', 422, "wrong_type", "pm2_5"),
        (b'{"pm2_5": [1]}', 422, "wrong_type", "pm2_5"),
        (b'{"pm2_5": 3, "device_id": 7}', 422, "wrong_type", "device_id"),
        (b'{"pm2_5": 3, "event_time": "1970-01-01T00:00:00Z"}', 422, "timestamp", "event_time"),
        (b'{"pm2_5": 3, "schema_version": 99}', 422, "schema_version", "schema_version"),
        (b'{"PM2.5": 3, "pm2_5": 4}', 422, "wrong_type", "pm2_5"),
        (b'[{"pm2_5": 3}, {"pm2_5": -1}]', 422, "out_of_range", "pm2_5"),
        (b'[{"pm2_5": 3, "device_id": "a"}, {"pm2_5": 3, "device_id": "b"}]', 422, "several_devices", "device_id"),
        (b'[{"pm2_5": 3, "event_time": "2026-01-01T00:00:00Z"}, {"pm2_5": 3}]', 422, "missing_field", "event_time"),
        (json.dumps([{"pm2_5": 1}] * (MOST_READINGS + 1)).encode(), 422, "too_many", ""),
        (b" " * (LARGEST_BODY_BYTES + 1), 413, "too_large", ""),
    ],
)
def test_what_cannot_be_answered_names_field_and_remedy(
    api: Served, body: bytes, status: int, reason: str, field: str
) -> None:
    """A caller who is not told what is wrong with a reading cannot mend the device."""
    answer = api.client.post("/predict", content=body)
    error = _error(answer)
    assert (answer.status_code, error["reason"], error["field"]) == (status, reason, field)


def test_a_body_beyond_the_limit_is_refused_however_it_is_sent(api: Served) -> None:
    """A chunked body announces no length; without counting it would fill the memory."""

    def endless() -> Iterator[bytes]:
        for _ in range(LARGEST_BODY_BYTES // 65_536 + 2):
            yield b" " * 65_536

    answer = api.client.post("/predict", content=endless())
    assert answer.status_code == 413
    assert _error(answer)["reason"] == "too_large"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**18, 10**320) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.dictionaries(st.sampled_from(sorted(CANONICAL_NAME)) | st.text(max_size=6), JSON_VALUES, max_size=7)
BODIES = (
    st.binary(max_size=80)
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | MESSAGES.map(lambda value: json.dumps(value).encode())
    | st.lists(MESSAGES, max_size=4).map(lambda value: json.dumps(value).encode())
)


@hypothesis_settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, path=st.sampled_from(["/predict", "/predict/batch", "/validate"]))
@example(body=b'{"pm2_5": 1, "\\ud800": 1}', path="/predict")
@example(body=b'{"pm2_5": 1, "device_id": "\\ud800"}', path="/predict")
@example(body=b'[{"pm2_5": 1, "event_time": "\\ud800"}]', path="/predict/batch")
@example(body=b'{"device_id": "x", "event_time": "\\ud800", "pm2_5": 1}', path="/validate")
def test_no_body_makes_it_fail(api: Served, body: bytes, path: str) -> None:
    """A body that causes an internal fault is a way to hide readings, or to stop the service."""
    answer = api.client.post(path, content=body)
    assert answer.status_code in (200, 400, 413, 422), answer.text
    parsed = answer.json()
    if answer.status_code != 200:
        assert _error(answer)["reason"]
    elif path == "/predict":
        assert 0.0 <= parsed["probability"] <= 1.0
        assert parsed["label"] in ("fire", "no_fire")


def test_a_batch_answers_each_row_alone(api: Served) -> None:
    """One faulty row must not cost the others their answers, nor change them."""
    rows: list[Any] = [examples.sample(), {"pm2_5": -1}, "text", examples.fire_scenario()[-1], {"PM2.5": 5}]
    answer = api.client.post("/predict/batch", json=rows).json()
    assert [result["index"] for result in answer["results"]] == [0, 1, 2, 3, 4]
    assert answer["results"][1]["error"]["field"] == "pm2_5"
    assert answer["results"][2]["error"]["reason"] == "wrong_type"
    for index in (0, 3, 4):
        alone = api.client.post("/predict", json=rows[index]).json()
        assert answer["results"][index]["label"] == alone["label"]
        assert answer["results"][index]["probability"] == pytest.approx(alone["probability"], abs=1e-6)
    assert answer["summary"]["rows"] == 5
    assert answer["summary"]["rejected"] == 2
    assert api.client.post("/predict/batch", json={"readings": rows}).json()["summary"] == answer["summary"]


def test_the_batch_limit_holds(api: Served) -> None:
    """An unbounded batch would keep every other caller waiting."""
    row = {"pm2_5": 1.0}
    full = api.client.post("/predict/batch", json=[row] * MOST_READINGS)
    assert full.status_code == 200
    assert full.json()["summary"]["predicted"] == MOST_READINGS
    beyond = api.client.post("/predict/batch", json=[row] * (MOST_READINGS + 1))
    assert beyond.status_code == 422
    assert _error(beyond)["reason"] == "too_many"


def test_examples_are_scored_and_differ(api: Served) -> None:
    """Examples that give one and the same answer would teach newcomers that the service is broken."""
    quiet, fire = (api.client.get(f"/predict/{name}").json() for name in ("sample", "fire-scenario"))
    assert quiet["request"] != fire["request"]
    assert quiet["response"]["label"] == "no_fire"
    assert fire["response"]["label"] == "fire"
    again = api.client.post("/predict", json=fire["request"]).json()
    assert again["probability"] == fire["response"]["probability"]


def test_statistics_count_what_was_answered(own: Served) -> None:
    """The console shows these counts; examples must not count as predictions."""
    publish(own.models_dir, 1, logistic_model(SMOKE_SENSITIVE, -2.0))
    _until(lambda: own.client.get("/ready").status_code == 200)
    own.client.get("/predict/sample")
    own.client.post("/predict", json={**examples.sample(), "device_id": "kitchen"})
    own.client.post("/predict", json={"pm2_5": 90_000})
    own.client.post("/predict/batch", json=[{"pm2_5": 1}, {"pm2_5": "x"}])
    stats = own.client.get("/predictions/stats").json()
    assert stats["by_label"] == {"no_fire": 2, "fire": 1}
    assert stats["predictions"] == 3
    assert stats["batch_requests"] == 1
    assert stats["rejected_rows"] == 1
    assert [entry["device_id"] for entry in stats["recent"]] == ["", "kitchen"]
    assert stats["processing_ms"]["p99"] >= stats["processing_ms"]["p50"] > 0


def test_validation_says_what_landing_would(api: Served) -> None:
    """A device maker who trusts a laxer verdict here would find the readings among the dead letters."""
    good = examples.sample()
    verdict = api.client.post("/validate", json=good).json()
    assert verdict["valid"] is True
    assert verdict["reading"]["device_id"] == good["device_id"]
    without_device = {name: value for name, value in good.items() if name != "device_id"}
    late_clock = {**good, "event_time": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    answer = api.client.post("/validate", json=[good, without_device, late_clock]).json()
    assert answer["valid"] is False
    assert [entry.get("error", {}).get("reason") for entry in answer["readings"]] == [
        None,
        "missing_field",
        "timestamp",
    ]


# -- model: liveness, swaps, refusals -----------------------------------------------------------------------


def test_without_a_model_it_lives_but_is_not_ready(own: Served) -> None:
    """A restart loop cannot train a model: liveness and readiness must be told apart."""
    health = own.client.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "degraded"
    assert health.json()["parts"]["model"]["refused_reason"] == "no_champion"
    for answer in (
        own.client.get("/ready"),
        own.client.get("/model/info"),
        own.client.post("/predict", json=examples.sample()),
        own.client.post("/predict/batch", json=[examples.sample()]),
    ):
        assert answer.status_code == 503
        assert "smoke models train" in _error(answer)["remedy"]


def test_models_are_swapped_under_load_without_a_failed_request(own: Served) -> None:
    """Promotion and rollback must be free for whoever is asking, and each answer wholly of one model."""
    biases = {1: -2.0, 2: -1.0, 3: 0.5, 4: 2.0}
    expected = {str(version): 1.0 / (1.0 + np.exp(-bias)) for version, bias in biases.items()}
    publish(own.models_dir, 1, logistic_model(bias=biases[1]))
    _until(lambda: own.client.get("/ready").status_code == 200)
    failures: list[str] = []
    answered: dict[str, int] = {}
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=own.client.base_url, timeout=20) as client:
            while not done.is_set():
                answer = client.post("/predict", json={"pressure_hpa": 1000.0})
                if answer.status_code != 200:
                    failures.append(answer.text)
                    continue
                found = answer.json()
                version = found["model_version"]
                answered[version] = answered.get(version, 0) + 1
                if abs(found["probability"] - expected[version]) > 1e-6:
                    failures.append(f"version {version} answered {found['probability']}")

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        for version in (2, 3, 4, 1):
            publish(own.models_dir, version, logistic_model(bias=biases[version]))
            before = answered.get(str(version), 0)
            _until(lambda version=version, before=before: answered.get(str(version), 0) > before + 5)  # type: ignore[misc] # binds the loop's values
    finally:
        done.set()
        for caller in callers:
            caller.join()
    assert failures == []
    assert set(answered) == set(expected)


def test_a_tampered_champion_is_refused_and_the_old_one_serves_on(own: Served) -> None:
    """Whoever can write into the models folder must not be able to silence alarms."""
    publish(own.models_dir, 1, logistic_model(bias=2.0))
    _until(lambda: own.client.get("/ready").status_code == 200)
    publish(own.models_dir, 2, logistic_model(bias=-5.0), sha256="f" * 64)
    _until(lambda: own.client.get("/health").json()["parts"]["model"]["state"] == "refused")
    model = own.client.get("/health").json()["parts"]["model"]
    assert model["version"] == "1"
    assert model["refused_version"] == "2"
    assert model["refused_reason"] == "hash_mismatch"
    assert own.client.get("/health").json()["status"] == "degraded"
    assert own.client.get("/ready").json()["model_version"] == "1"
    assert own.client.post("/predict", json={"pm2_5": 1}).json()["label"] == "fire"
    metrics = own.client.get("/metrics").text
    assert 'smoke_model_refusals_total{reason="hash_mismatch"} 1.0' in metrics
    assert "smoke_model_refused 1.0" in metrics
    publish(own.models_dir, 2, logistic_model(bias=-5.0))
    _until(lambda: own.client.get("/ready").json()["model_version"] == "2")
    assert own.client.get("/health").json()["status"] == "ok"


def test_model_info_says_what_serves(api: Served) -> None:
    """Operators judge an answer by the model behind it: its training, figures, threshold and hash."""
    info = api.client.get("/model/info").json()
    champion = json.loads((api.models_dir / "champion.json").read_text())
    assert info["version"] == "1"
    assert info["sha256"] == champion["sha256"]
    assert info["feature_names"] == list(features.FEATURE_NAMES)
    assert info["algorithm"] == "logistic test model"
    assert info["trained_on"]["kind"] == "simulated"
    assert info["metrics"]["f1"] == 0.8
    assert info["threshold"] == 0.5
    assert info["promoted_at"] == champion["published_at"]


def test_changing_endpoints_need_the_token(api: Served, own: Served) -> None:
    """Without a token nobody may change anything; with one only who knows it."""
    switched_off = own.client.post("/model/reload")
    assert switched_off.status_code == 403
    assert "SMOKE_API_TOKEN" in _error(switched_off)["remedy"]
    for given_token in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"},
                        {"Authorization": "Bearer \xe4".encode("latin-1")}):  # fmt: skip
        answer = api.client.post("/model/reload", headers=given_token)  # type: ignore[arg-type] # bytes on purpose
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    allowed = api.client.post("/model/reload", headers={"Authorization": f"Bearer {TOKEN}"})
    assert allowed.status_code == 200
    assert allowed.json()["published_is_in_use"] is True


# -- readings -------------------------------------------------------------------------------------------------


def _landed(devices: list[str], at: datetime, event_time: datetime) -> pl.DataFrame:
    count = len(devices)
    columns: dict[str, Any] = {
        "event_date": [event_time.date()] * count,
        "device_id": devices,
        "event_time": [event_time] * count,
        **{name: [float(place)] * count for place, name in enumerate(ALL_SENSOR_NAMES)},
        "fire_alarm": [None] * count,
        "sequence": list(range(count)),
        "schema_version": [1] * count,
        "source": ["device"] * count,
        "late": [False] * count,
        "topic": ["t"] * count,
        "topic_id": ["i"] * count,
        "partition": [0] * count,
        "offset": list(range(count)),
        "append_time": [at] * count,
        "ingest_time": [at] * count,
        "replay_of": [None] * count,
    }
    return pl.from_arrow(pl.DataFrame(columns).to_arrow().cast(READINGS_SCHEMA))  # type: ignore[return-value] # a table gives a frame


def test_devices_shows_the_last_reading_of_each(own: Served) -> None:
    """The console's table: newly landed replays count as live, what landed long ago does not."""
    assert own.client.get("/devices").json()["state"] == "missing"
    lake, now = Lake(own.settings.lake), datetime.now(UTC)
    partitions = ("event_date",)
    lake.append(READINGS, _landed(["gone"], now - timedelta(hours=2), now - timedelta(hours=2)), partitions)
    _until(lambda: own.client.get("/devices").json()["state"] == "idle")
    lake.append(READINGS, _landed(["a", "b"], now, now - timedelta(seconds=10)), partitions)
    replayed = datetime(2022, 6, 9, 0, 8, tzinfo=UTC)
    lake.append(READINGS, _landed(["b", "replay"], now, replayed), partitions)
    _until(lambda: own.client.get("/devices").json()["devices"] == 3)
    view = own.client.get("/devices").json()
    assert view["state"] == "ok"
    assert view["readings"] == 4
    assert [entry["device_id"] for entry in view["last"]] == ["a", "b", "replay"]
    assert datetime.fromisoformat(view["last"][1]["event_time"]) > now - timedelta(minutes=1)
    assert view["last"][0]["humidity_pct"] == 1.0
    landing = own.client.get("/health").json()["parts"]["landing"]
    assert landing["state"] == "ok"
    assert landing["devices"] == 3


def test_reports_open_in_a_browser_and_nothing_else_does(own: Served) -> None:
    """The link in Dagster's metadata would lead nowhere, or out of the reports' folder."""
    store = ReportStore(own.settings.reports_dir, keep=5)
    report = store.write("drift", "<h1>drift</h1>", {}, moment=datetime.now(UTC), label="2024-05-01")
    (own.settings.home / "secret.html").write_text("secret", encoding="utf-8")
    page = own.client.get(report.route)
    assert (page.status_code, page.text) == (200, "<h1>drift</h1>")
    assert page.headers["content-type"].startswith("text/html")
    assert "sandbox" in page.headers["content-security-policy"]
    assert own.client.get("/reports").json() == {"drift": [report.route]}
    for path in ("/reports/../secret.html", "/reports/%2e%2e/secret.html", "/reports/drift/none.html"):
        assert own.client.get(path).status_code == 404, path


def test_a_damaged_lake_degrades_and_does_not_break(own: Served) -> None:
    """Predictions do not need the lake; a fault there must be told, not passed on."""
    log = Path(own.settings.lake) / "readings" / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020d}.json").write_text("no commit")
    _until(lambda: own.client.get("/devices").json()["state"] == "error")
    health = own.client.get("/health")
    assert health.status_code == 200
    assert health.json()["parts"]["landing"]["state"] == "error"
    assert str(own.settings.home) not in health.text


# -- operations -----------------------------------------------------------------------------------------------


def test_metrics_have_bounded_labels(api: Served) -> None:
    """Labels from what clients send grow without end and take the monitoring down."""
    for number in range(60):
        api.client.get(f"/unknown/{number}")
        api.client.request(("PROPFIND", "REPORT", "MKCOL")[number % 3], "/predict")
        api.client.post("/predict", json={f"field-{number}": 1, "pm2_5": 1, "device_id": f"dev-{number}"})
    text = api.client.get("/metrics").text
    assert "dev-5" not in text
    assert "field-5" not in text
    assert "/unknown" not in text
    lines = [line for line in text.splitlines() if line.startswith("smoke_api_requests_total")]
    assert any('route="unmatched"' in line and 'status="4xx"' in line for line in lines)
    assert any('route="/predict",status="2xx"' in line for line in lines)
    assert any('method="OTHER"' in line for line in lines)
    assert len(lines) < 60
    assert "smoke_api_request_duration_seconds_bucket" in text
    assert 'smoke_model_info{sha256="' in text


def test_faults_are_json_without_internals(
    tmp_path: Path, settings_for: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    """Traces belong into the log; a caller gets an id to quote."""

    def extend(app: FastAPI) -> None:
        @app.get("/broken")
        async def broken() -> None:
            raise RuntimeError("the secret inner workings")

    with serving(settings_for(tmp_path), extend) as served:
        answer = served.client.get("/broken")
        assert answer.status_code == 500
        assert "inner workings" not in answer.text
        assert _error(answer)["detail"].split()[-1] in caplog.text
        missing = served.client.get("/no-such-page")
        assert missing.status_code == 404
        assert _error(missing)["reason"] == "not_found"
        wrong = served.client.get("/predict")
        assert wrong.status_code == 405
        assert wrong.headers["allow"] == "POST"
        assert _error(wrong)["reason"] == "method_not_allowed"


def test_config_and_answers_give_no_secret_away(api: Served) -> None:
    """The settings page is open to every reader of the console."""
    config = api.client.get("/config")
    assert config.json()["settings"]["SMOKE_API_PORT"]
    assert "POST /predict" in config.json()["endpoints"]
    for path in ("/config", "/health", "/metrics", "/model/info", "/openapi.json"):
        text = api.client.get(path).text
        assert HIDDEN not in text, path
        assert TOKEN not in text, path


def test_other_origins_get_no_permission(api: Served) -> None:
    """A service that reflects any Origin lets every web page read what it says."""
    for method, path in (("GET", "/health"), ("OPTIONS", "/predict"), ("POST", "/predict")):
        answer = api.client.request(method, path, headers={"Origin": "https://evil.example"})
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


def test_the_description_covers_every_endpoint(api: Served) -> None:
    """Client generators and the API page live from it."""
    described = api.client.get("/openapi.json").json()
    for path in ("/predict", "/predict/batch", "/validate"):
        content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert api.client.post(path, json=content["example"]).status_code == 200
    assert "$ref" not in json.dumps(described["paths"]["/predict"])
    prediction = described["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    answer = api.client.post("/predict", json=examples.sample()).json()
    assert set(prediction["properties"]) == set(answer)
    schema = api.client.get("/sensors/schema").json()
    assert schema["x-aliases"]["PM2.5"] == "pm2_5"


# -- the command ----------------------------------------------------------------------------------------------


def _command(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from smoke_platform.cli.main import main; main()", "api", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={"SMOKE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )


def test_the_command_serves_and_stops_cleanly(tmp_path: Path) -> None:
    """A supervisor must be able to start it, reach it and stop it."""
    publish(tmp_path / "models", 4, logistic_model())
    process = _command(tmp_path, "--port", "0")
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/ready", timeout=30).json()["model_version"] == "4"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGTERM)


def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    """Two services on one port is the commonest fault of a first start."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = _command(tmp_path, "--port", str(taken.getsockname()[1]))
        _, message = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "SMOKE_API_PORT" in message
    assert "Traceback" not in message
