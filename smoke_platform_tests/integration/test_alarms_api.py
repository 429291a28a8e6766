"""The alarm endpoints over real HTTP and a real broker: what they show, what they send, what they do not hide."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from smoke_platform.adapters.kafka import partition_of
from smoke_platform.domain.alarms import Event, Evidence, Kind, State, Verb
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.serving import alarms as serving_alarms
from smoke_platform.settings import Settings
from smoke_platform_tests.alarm_parts import (
    PARTITIONS,
    Obeying,
    later,
    make_topics,
    patient_serving,
    private_broker,
    record,
    until,
    write,
)
from smoke_platform_tests.integration.test_api import SMOKE_SENSITIVE, TOKEN, Served, serving
from smoke_platform_tests.scorer_models import logistic_model, publish

pytestmark = pytest.mark.integration

__all__ = ["patient_serving"]

BEARER = {"Authorization": f"Bearer {TOKEN}"}
HEALTHY = {"state": "running", "partitions": list(range(PARTITIONS)), "lag": 3, "readings_per_second": 50.0}


@contextmanager
def detector_health(port: int, report: Any) -> Iterator[None]:
    """Something that answers as the detector's health page does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(report).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's own name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[EmbeddedBroker]:
    with private_broker(tmp_path_factory.mktemp("api-broker"), free_port) as embedded:
        yield embedded


@pytest.fixture(scope="module")
def api(
    tmp_path_factory: pytest.TempPathFactory, own_broker: EmbeddedBroker, settings_for: Callable[..., Settings]
) -> Iterator[Served]:
    """One server with a broker, a model and a token."""
    settings = settings_for(
        tmp_path_factory.mktemp("alarms-api"),
        KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap_servers,
        SMOKE_API_TOKEN=TOKEN,
    )
    make_topics(settings)
    publish(settings.models_dir, 1, logistic_model(SMOKE_SENSITIVE, -2.0))
    with serving(settings) as served:
        until(lambda: served.client.get("/alarms").json()["ready"])
        yield served


def _alarms(api: Served, **filters: Any) -> list[dict[str, Any]]:
    answer = api.client.get("/alarms", params=filters)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["alarms"]
    return found


def test_alarms_are_listed_filtered_and_paged(api: Served) -> None:
    """What is missing in this list nobody goes to."""
    worst = record("list-1", severity="critical", site="one", room="hall")
    write(
        api.settings, worst, record("list-2", site="one"), record("list-3", Kind.OFFLINE, severity="low", site="one"),
        record("list-4", state=State.SHELVED, site="one", until=2e9), record("list-5", state=State.NORMAL, site="one"),
    )  # fmt: skip
    until(lambda: len(_alarms(api, site="one", state="all")) == 5)
    assert [it["device_id"] for it in _alarms(api, site="one")] == ["list-1", "list-2", "list-3"]
    first = _alarms(api, site="one")[0]
    assert first["why"] == "heat: too hot for any room"
    assert first["live"] is True
    assert first["since"].endswith("Z")
    assert first["values"] == {"temperature_c": 61.5}
    assert [it["device_id"] for it in _alarms(api, site="one", limit=1, offset=1)] == ["list-2"]
    assert [it["device_id"] for it in _alarms(api, site="one", kind="offline")] == ["list-3"]
    assert [it["device_id"] for it in _alarms(api, site="one", severity="critical")] == ["list-1"]
    assert [it["device_id"] for it in _alarms(api, device="LIST-4", state="aside")] == ["list-4"]
    page = api.client.get("/alarms", params={"site": "one", "limit": 2}).json()
    assert page["matching"] == 3
    assert page["counts"]["live"] >= 3
    assert page["counts"]["severity"]["critical"] >= 1
    for wrong in ({"limit": 0}, {"limit": 100_000}, {"kind": "noise"}, {"state": "loud"}, {"severity": "7"}):
        answer = api.client.get("/alarms", params=wrong)
        assert answer.status_code == 422, wrong
        assert answer.json()["error"]["field"] == next(iter(wrong))


def test_an_unchanged_list_is_not_sent_again(api: Served) -> None:
    """Every open console asks each second; in a flood that must stay cheap."""
    until(lambda: api.client.get("/alarms").headers["etag"] == api.client.get("/alarms").headers["etag"])
    tag = api.client.get("/alarms").headers["etag"]
    again = api.client.get("/alarms", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    write(api.settings, record("tagged"))
    until(lambda: api.client.get("/alarms", headers={"If-None-Match": tag}).status_code == 200)


def test_one_alarm_and_its_history(api: Served) -> None:
    """After an alarm the question is who knew what when."""
    first = record("past/1")
    steps = [first, later(first, Event.ACKNOWLEDGED, state=State.ACKNOWLEDGED, acknowledged=True, by="ann", reason="x")]
    steps.append(later(steps[1], Event.CLOSED, state=State.NORMAL))
    write(api.settings, *steps, later(steps[2], Event.RAISED, alarm_id="e" * 20))
    until(lambda: api.client.get(f"/alarms/{'e' * 20}").status_code == 200)
    latest = api.client.get(f"/alarms/{first.alarm_id}").json()
    assert (latest["event"], latest["live"]) == ("closed", False)
    history = api.client.get(f"/alarms/{first.alarm_id}/history").json()
    assert [it["what"] for it in history["records"]] == ["raised", "acknowledged by ann: x", "closed"]
    assert history["complete"] is True
    of_device = api.client.get(f"/devices/{quote('past/1')}/alarms").json()
    assert [it["alarm_id"] for it in of_device] == ["e" * 20]
    assert api.client.get("/devices/nobody/alarms").json() == []
    for path in ("/alarms/none", "/alarms/none/history"):
        missing = api.client.get(path)
        assert missing.status_code == 404
        assert missing.json()["error"]["reason"] == "no_such_alarm"


def test_a_command_reaches_the_detector_and_its_answer_comes_back(api: Served) -> None:
    """An operator must know whether the alarm is acknowledged, not whether a message was sent."""
    alarm = record("cmd-1")
    write(api.settings, alarm)
    until(lambda: api.client.get(f"/alarms/{alarm.alarm_id}").status_code == 200)
    path = f"/alarms/{alarm.alarm_id}/commands"
    with Obeying(api.settings) as detector:
        detector.knows(alarm)
        done = api.client.post(path, json={"verb": "acknowledge", "by": "ann"}, headers=BEARER)
        assert done.status_code == 200, done.text
        assert done.json()["alarm"]["state"] == "acknowledged"
        partition, command = detector.commands[0]
        assert partition == partition_of("cmd-1", PARTITIONS)
        assert (command.verb, command.by, command.alarm_id) == (Verb.ACKNOWLEDGE, "ann", alarm.alarm_id)
        again = api.client.post(path, json={"verb": "acknowledge", "by": "bob"}, headers=BEARER)
        assert again.status_code == 409
        assert "already" in again.json()["error"]["detail"]
        body = {"verb": "snooze", "by": "ann", "reason": "there", "for_s": 600}
        assert api.client.post(path, json=body, headers=BEARER).json()["alarm"]["state"] == "snoozed"
        shelved = api.client.post(
            f"/devices/{quote('room 1/a')}/alarms/fire/commands",
            json={"verb": "disable", "by": "ann", "reason": "paint"},
            headers=BEARER,
        )
        assert shelved.status_code == 200, shelved.text
        assert detector.commands[-1][1].device_id == "room 1/a"


def test_changing_needs_the_token_and_a_whole_command(api: Served) -> None:
    """Whoever can reach the port must not be able to silence a fire alarm."""
    alarm = record("guarded")
    write(api.settings, alarm)
    until(lambda: api.client.get(f"/alarms/{alarm.alarm_id}").status_code == 200)
    path = f"/alarms/{alarm.alarm_id}/commands"
    good = {"verb": "acknowledge", "by": "ann"}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert api.client.post(path, json=good, headers=headers).status_code == 401
    for body, field in (
        ({"by": "ann"}, ""),
        ({"verb": "acknowledge"}, ""),
        ({"verb": "shout", "by": "ann"}, "verb"),
        ({"verb": "acknowledge", "by": " "}, "by"),
        ({"verb": "snooze", "by": "ann", "reason": "r"}, "until"),
        ({"verb": "snooze", "by": "ann", "reason": "r", "until": "2030-01-01T00:00:00"}, "until"),
        ({"verb": "snooze", "by": "ann", "reason": "r", "for_s": 1e300}, "until"),
        ({"verb": "snooze", "by": "ann", "for_s": 60}, "reason"),
        ({"verb": "verdict", "by": "ann", "reason": "r"}, "verdict"),
        ({**good, "extra": 1}, ""),
        ([good], ""),
    ):
        answer = api.client.post(path, json=body, headers=BEARER)
        assert answer.status_code == 422, (body, answer.text)
        assert answer.json()["error"]["field"] == field, (body, answer.text)
    assert api.client.post(path, content=b"{", headers=BEARER).status_code == 400
    assert api.client.post("/alarms/none/commands", json=good, headers=BEARER).status_code == 404


def test_without_a_token_or_broker_nothing_is_changed_and_predictions_go_on(
    tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """A missing Kafka must not take predictions down, and must never look like "no alarms"."""
    with serving(settings_for(tmp_path / "a")) as served:
        refused = served.client.post("/devices/a/alarms/fire/commands", json={"verb": "enable", "by": "ann"})
        assert refused.status_code == 403
    settings = settings_for(tmp_path / "b", SMOKE_API_TOKEN=TOKEN)
    publish(settings.models_dir, 1, logistic_model(SMOKE_SENSITIVE, -2.0))
    with serving(settings) as served:
        until(lambda: served.client.get("/ready").status_code == 200)
        assert served.client.get("/ready").json()["alarms"] == {"ready": False, "behind": None}
        page = served.client.get("/alarms").json()
        assert (page["ready"], page["alarms"]) == (False, [])
        status = served.client.get("/alarms/status").json()
        assert (status["current"], status["judging"]) == (False, False)
        assert any("no Kafka broker" in problem for problem in status["problems"])
        unsent = served.client.post(
            "/devices/a/alarms/fire/commands", json={"verb": "enable", "by": "ann"}, headers=BEARER
        )
        assert unsent.status_code == 503
        assert unsent.json()["error"]["reason"] == "not_sent"
        assert "smoke_alarm_log_ready 0.0" in served.client.get("/metrics").text


def test_without_a_detector_a_command_is_queued(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "Done" would be a lie; an error would make people send it again."""
    monkeypatch.setattr(serving_alarms, "ANSWER_S", 0.2)
    alarm = record("queued")
    write(api.settings, alarm)
    until(lambda: api.client.get(f"/alarms/{alarm.alarm_id}").status_code == 200)
    answer = api.client.post(
        f"/alarms/{alarm.alarm_id}/commands", json={"verb": "acknowledge", "by": "ann"}, headers=BEARER
    )
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"
    assert answer.json()["partition"] == partition_of("queued", PARTITIONS)


@pytest.mark.parametrize(
    ("report", "judging", "problem"),
    [
        (HEALTHY, True, ""),
        ({**HEALTHY, "lag": 90_000}, False, "90,000 readings behind"),
        ({**HEALTHY, "state": "restoring"}, False, "restoring"),
        ({**HEALTHY, "partitions": []}, False, "no partitions"),
        ({**HEALTHY, "partitions": [0, 1]}, False, "2 of 6 partitions"),
        ({**HEALTHY, "lag": None}, False, "does not say"),
        ([1], False, "not understood"),
        (None, False, "No detector answers"),
    ],
)
def test_the_state_of_the_detector_is_told(api: Served, report: Any, judging: bool, problem: str) -> None:
    """An empty list means "no alarm" only while somebody judges the readings."""
    api.app.state.alarms.detector._at = float("-inf")
    if report is None:
        status = api.client.get("/alarms/status").json()
    else:
        with detector_health(api.settings.detector_port, report):
            status = api.client.get("/alarms/status").json()
    assert status["judging"] is judging
    assert status["current"] is True
    assert problem in " ".join(status["problems"])
    assert bool(status["problems"]) is not judging


def test_the_stream_tells_what_happens_and_goes_on_where_it_was(api: Served) -> None:
    """A wall display must neither miss an alarm nor show it twice."""
    seen: list[tuple[str, str]] = []
    url = f"{api.client.base_url}/alarms/stream?device=stream-"

    def follow(headers: dict[str, str], events: int, opened: Callable[[], None]) -> list[tuple[str, str, Any]]:
        found: list[tuple[str, str, Any]] = []
        with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "retry":
                    opened()
                if line:
                    fields[name] = value
                    continue
                if "event" in fields:
                    found.append((fields["event"], fields["id"], json.loads(fields["data"])))
                fields = {}
                if len(found) == events:
                    return found
        return found

    first, second = record("stream-1"), record("stream-2")
    got = follow({}, 1, lambda: write(api.settings, record("other"), first))
    seen += [(event, data["device_id"]) for event, _, data in got]
    write(api.settings, second)
    got = follow({"Last-Event-ID": got[0][1]}, 1, lambda: None)
    seen += [(event, data["device_id"]) for event, _, data in got]
    assert seen == [("alarm", "stream-1"), ("alarm", "stream-2")]
    ahead = follow({"Last-Event-ID": "999999999"}, 1, lambda: None)
    assert ahead[0][0] == "reset"


def test_streams_are_bounded(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that open streams and never close them must not use the service up."""
    monkeypatch.setattr(serving_alarms, "MOST_STREAMS", 1)
    monkeypatch.setattr(serving_alarms, "HEARTBEAT_S", 0.05)
    desk = api.app.state.alarms
    until(lambda: desk._streams == 0)
    with httpx.stream("GET", f"{api.client.base_url}/alarms/stream", timeout=30) as answer:
        lines = answer.iter_lines()
        while next(lines) != ": alive":
            pass
        refused = api.client.get("/alarms/stream")
        assert refused.status_code == 503
        assert refused.json()["error"]["reason"] == "too_many_streams"
    until(lambda: desk._streams == 0)


def test_metrics_count_alarms_with_bounded_labels(api: Served) -> None:
    """A record with an invented severity must not make a new series."""
    write(api.settings, record("metric-1", Kind.SENSOR_FAULT, severity="medium"),
          *(record(f"metric-odd-{n}", Kind.DATA_QUALITY, severity=f"odd{n}", peak="") for n in range(5)))  # fmt: skip
    wanted = 'smoke_alarms{kind="sensor_fault",severity="medium",state="active"} 1.0'
    until(lambda: wanted in _sorted_labels(api.client.get("/metrics").text))
    until(lambda: 'severity="other",state="active"} 5.0' in _sorted_labels(api.client.get("/metrics").text))
    text = api.client.get("/metrics").text
    assert "odd" not in text
    assert "metric-1" not in text
    assert "smoke_alarm_log_ready 1.0" in text
    assert "smoke_alarm_log_lag_records 0.0" in text


def _sorted_labels(text: str) -> str:
    lines = []
    for line in text.splitlines():
        name, brace, rest = line.partition("{")
        labels, _, value = rest.partition("}")
        lines.append(f"{name}{{{','.join(sorted(labels.split(',')))}}}{value}" if brace else line)
    return "\n".join(lines)


def test_a_flood_is_listed_in_part_and_counted_as_a_whole(api: Served) -> None:
    """Ten thousand alarms in one answer would take the browser and the service down when they are needed most."""
    evidence = Evidence(rules=("silent",))
    write(api.settings, *(record(f"flood-{n}", Kind.OFFLINE, severity="low", evidence=evidence) for n in range(10_000)))
    until(lambda: api.client.get("/alarms", params={"device": "flood-"}).json()["matching"] == 10_000, 60)
    page = api.client.get("/alarms", params={"device": "flood-"}).json()
    assert len(page["alarms"]) == 200
    assert page["counts"]["kind"]["offline"] >= 10_000
    assert len(api.client.get("/alarms", params={"device": "flood-", "offset": 9_990}).json()["alarms"]) == 10
