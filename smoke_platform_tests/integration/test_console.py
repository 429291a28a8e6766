"""The console and the API page: everything they need comes from the service, and they work in a real browser.

Needs Chromium (Debian: chromium); what opens it is reported as skipped without it.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from smoke_platform.adapters.kafka import partition_of
from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.domain.alarms import Evidence, Kind, State, Verb
from smoke_platform.serving.app import STATIC_DIR
from smoke_platform.settings import Settings
from smoke_platform_tests.alarm_parts import (
    PARTITIONS,
    Obeying,
    later,
    make_topics,
    patient_serving,
    private_broker,
    record,
    write,
)
from smoke_platform_tests.integration.test_alarms_api import HEALTHY, detector_health
from smoke_platform_tests.integration.test_api import SMOKE_SENSITIVE, TOKEN, Served, _landed, _until, serving
from smoke_platform_tests.scorer_models import logistic_model, publish

pytestmark = pytest.mark.integration

__all__ = ["patient_serving"]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, settings_for: Callable[..., Settings]) -> Iterator[Served]:
    """A service with a model and two devices whose readings landed just now."""
    settings = settings_for(tmp_path_factory.mktemp("console"))
    publish(settings.models_dir, 1, logistic_model(SMOKE_SENSITIVE, -2.0))
    now = datetime.now(UTC)
    Lake(settings.lake).append(READINGS, _landed(["attic", "<b>kitchen</b>"], now, now), ("event_date",))
    with serving(settings) as served:
        yield served


class Page:
    """One page in a headless browser, driven through its debugging protocol."""

    def __init__(self, link: ClientConnection) -> None:
        self._link = link
        self._numbers = itertools.count(1)
        self.problems: list[str] = []
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._link.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._link.recv(timeout=60))
            if message.get("id") == number:
                answer: dict[str, Any] = message.get("result", {})
                return answer
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed"):
                self.problems.append(json.dumps(message["params"])[:500])

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.value(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"))

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).click()")


@contextmanager
def _browser(folder: Path) -> Iterator[Page]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    process = subprocess.Popen(
        [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
            f"--user-data-dir={folder}", "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port_file = folder / "DevToolsActivePort"
        _until(lambda: port_file.exists() and len(port_file.read_text().split()) == 2, 60)
        port = port_file.read_text().split()[0]
        pages: list[dict[str, Any]] = []

        def opened() -> bool:
            answer = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=60)
            pages[:] = [it for it in answer.json() if it["type"] == "page"]
            return bool(pages)

        _until(opened)
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None, open_timeout=60) as link:
            yield Page(link)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_the_pages_need_nothing_from_elsewhere(api: Served) -> None:
    """On a closed network a page that waits for a CDN stays white."""
    files = {path.name: path.read_text(encoding="utf-8") for path in STATIC_DIR.iterdir() if path.is_file()}
    assert {"index.html", "docs.html", "console.js", "console.css", "docs.js"} <= set(files)
    for name, text in files.items():
        without_namespace = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://[a-z]|@import|\burl\(", without_namespace), name
    for path in ("/", "/docs"):
        page = api.client.get(path)
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "<script>" not in page.text, "the policy forbids scripts in the page"
        assert " style=" not in page.text, "the policy forbids styles in the page"
        for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
            answer = api.client.get(asset)
            assert answer.status_code == 200, asset
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_outside_the_static_folder_is_served(api: Served) -> None:
    """A path that climbs out would give the sources and the settings away."""
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
        assert api.client.get(path).status_code == 404, path


def test_the_console_shows_the_platform_and_tries_a_reading(api: Served, tmp_path: Path) -> None:
    """The first page a newcomer opens must show life and answer a click, without a fault in the browser's log."""
    with _browser(tmp_path) as page:
        page.call("Page.navigate", url=str(api.client.base_url))
        _until(lambda: page.text("#model-version") == "version 1")
        assert page.text("#overall") == "ok"
        _until(lambda: "attic" in page.text("#device-rows"))
        assert "<b>kitchen</b>" in page.text("#device-rows"), "what devices send is shown as text"
        assert page.value("document.querySelectorAll('#device-rows b').length") == 0
        assert page.value("document.querySelectorAll('#fields input').length") == 13
        _until(lambda: page.value("document.querySelector('#try').elements['pm2_5'].value") == "4")
        page.click("#try button[type=submit]")
        _until(lambda: page.text("#verdict-label") == "No fire")
        page.click("#play-fire")
        _until(lambda: page.text("#verdict-label") == "Fire")
        _until(lambda: "example-bedroom" in page.text("#recent-rows"))
        assert page.problems == []
        # An impossible value is answered with its field and remedy; the browser notes the refused request itself.
        page.value("document.querySelector('#try').elements['humidity_pct'].value = '130'")
        page.click("#try button[type=submit]")
        _until(lambda: page.text("#verdict-label") == "humidity_pct")
        assert page.value("document.querySelector('#try').elements['humidity_pct'].className") == "wrong"
        page.value("document.querySelector('#device-filter').value = 'att'")
        page.value("document.querySelector('#device-filter').dispatchEvent(new Event('input'))")
        assert page.value("document.querySelectorAll('#device-rows tr').length") == 1


def test_the_console_shows_the_windows_of_a_device(api: Served, tmp_path: Path) -> None:
    """Who sees a value that is out of the ordinary wants to know what the device said before."""
    kitchen = "[...document.querySelectorAll('#device-rows button')].find((it) => it.textContent === '<b>kitchen</b>')"
    with _browser(tmp_path) as page:
        page.call("Page.navigate", url=str(api.client.base_url))
        _until(lambda: "kitchen" in page.text("#device-rows"))
        assert page.value("document.querySelector('#windows').hidden") is True
        page.value(f"{kitchen}.click()")
        _until(lambda: ", open" in page.text("#windows-rows"))
        assert page.text("#windows-device") == "<b>kitchen</b>"
        assert "still open" in page.text("#windows-note")
        assert page.value("document.querySelectorAll('#windows-rows tr').length") == 1
        assert page.problems == []
        page.click("#windows-close")
        assert page.value("document.querySelector('#windows').hidden") is True


def test_the_api_page_lists_every_endpoint(api: Served, tmp_path: Path) -> None:
    """It is the only reference on a machine without internet."""
    with _browser(tmp_path) as page:
        page.call("Page.navigate", url=f"{api.client.base_url}/docs")
        paths = api.client.get("/openapi.json").json()["paths"]
        operations = sum(len(item) for item in paths.values())
        _until(lambda: page.value("document.querySelectorAll('details').length") == operations)
        shown = page.text("#groups")
        for path in paths:
            assert path in shown
        assert page.problems == []


def test_a_lost_service_is_told(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """A console that goes on showing old figures in green hides an outage."""
    with _browser(tmp_path / "profile") as page:
        with serving(settings_for(tmp_path)) as served:
            page.call("Page.navigate", url=str(served.client.base_url))
            _until(lambda: page.text("#overall") == "degraded")
            assert "No model" in page.text("#notice")
        _until(lambda: page.text("#overall") == "not reachable")


# -- alarms ----------------------------------------------------------------------------------------------------

TRICKY = "<script>window.hit=1</script><img src=x onerror=window.hit=2>"


@pytest.fixture
def with_alarms(
    tmp_path: Path, free_port: Callable[[], int], settings_for: Callable[..., Settings]
) -> Iterator[Served]:
    """A service with a broker of its own, a model and a token; nothing has happened yet."""
    with private_broker(tmp_path / "broker", free_port) as embedded:
        settings = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=embedded.bootstrap_servers, SMOKE_API_TOKEN=TOKEN)
        make_topics(settings)
        publish(settings.models_dir, 1, logistic_model(SMOKE_SENSITIVE, -2.0))
        with serving(settings) as served:
            yield served


def _picture(page: Page, path: Path) -> None:
    """Keeps what is to be seen, for whoever looks after a failed test."""
    page.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    path.write_bytes(base64.b64decode(page.call("Page.captureScreenshot")["data"]))


def _set(page: Page, selector: str, value: str, event: str = "input") -> None:
    place = f"document.querySelector({json.dumps(selector)})"
    page.value(f"{place}.value = {json.dumps(value)}; {place}.dispatchEvent(new Event({json.dumps(event)}))")


def test_calm_is_told_only_while_it_is_known(with_alarms: Served, tmp_path: Path) -> None:
    """A green page over a detector that does not run is how a fire is missed."""
    with _browser(tmp_path / "profile") as page:
        with detector_health(with_alarms.settings.detector_port, HEALTHY):
            page.call("Page.navigate", url=f"{with_alarms.client.base_url}/#alarms")
            _until(lambda: page.text("#alarm-empty").startswith("No live alarms."))
            assert page.value("document.querySelector('#alarm-problems').hidden") is True
            assert page.value("document.querySelector('#alarm-empty').className") == "empty good"
            _picture(page, tmp_path / "calm.png")
        _until(lambda: "No detector answers" in page.text("#alarm-problems"))
        assert "cannot be relied on" in page.text("#alarm-empty")
        assert page.value("document.querySelector('#alarm-empty').className") == "empty unsure"
        assert page.value("document.querySelector('#alarm-problems').hidden") is False
        with detector_health(with_alarms.settings.detector_port, {**HEALTHY, "lag": 54_321}):
            _until(lambda: "54,321 readings behind" in page.text("#alarm-problems"))
            assert "cannot be relied on" in page.text("#alarm-empty")


def test_alarms_are_shown_and_an_acknowledgement_travels(with_alarms: Served, tmp_path: Path) -> None:
    """Somebody sees the alarm, clicks, and the detector knows who has seen it; a device's name is never markup."""
    settings = with_alarms.settings
    evidence = Evidence(rules=("heat", "smoke"), score=0.97, threshold=0.6, values={"temperature_c": 71.0})
    fire = record("kitchen-1", severity="critical", site="north", room="kitchen", evidence=evidence)
    tricky = record(TRICKY, site="<b>site</b>")
    set_aside = record("shelved-1", state=State.SHELVED, until=2e9, alarm_id="")
    with (
        detector_health(settings.detector_port, HEALTHY),
        Obeying(settings) as detector,
        _browser(tmp_path / "profile") as page,
    ):
        detector.knows(fire, tricky, set_aside)
        write(settings, fire, tricky, set_aside, record("attic", Kind.OFFLINE, severity="low"))
        page.call("Page.navigate", url=str(with_alarms.client.base_url))
        _until(lambda: page.value("document.querySelectorAll('#alarm-rows tr').length") == 3)
        first = page.text("#alarm-rows tr:first-child")
        for words in (
            "critical",
            "fire",
            "kitchen-1",
            "north / kitchen",
            "active",
            "too hot for any room",
            "model 0.97",
        ):
            assert words in first, (words, first)
        _until(lambda: "3 live (1 critical, 1 high, 1 low), 3 not acknowledged; 1 shelved" in page.text("#alarm-count"))
        assert page.value("document.title").startswith("(3)")
        assert TRICKY in page.text("#alarm-rows")
        assert page.value("document.querySelectorAll('#alarm-rows script, #alarm-rows img, #alarm-rows b').length") == 0
        assert page.value("window.hit") is None
        _picture(page, tmp_path / "alarms.png")
        page.click("#alarm-rows tr:first-child button[data-verb=acknowledge]")
        assert page.text("#alarm-dialog-title") == "Acknowledge: fire alarm of kitchen-1"
        page.click("#alarm-send")
        assert "name is needed" in page.text("#alarm-fault")
        assert page.problems == []
        _set(page, "#alarm-by", "ann")
        _set(page, "#alarm-reason", "on my way")
        _set(page, "#alarm-token", "wrong")
        _picture(page, tmp_path / "dialog.png")
        page.click("#alarm-send")
        _until(lambda: "token is missing or wrong" in page.text("#alarm-fault"))
        _set(page, "#alarm-token", TOKEN)
        page.click("#alarm-send")
        _until(lambda: "is now acknowledged" in page.text("#alarm-said"))
        assert page.value("document.querySelector('#alarm-dialog').open") is False
        _until(lambda: "acknowledged" in page.text("#alarm-rows tr:first-child"))
        partition, command = detector.commands[0]
        assert partition == partition_of("kitchen-1", PARTITIONS)
        assert (command.verb, command.by, command.reason) == (Verb.ACKNOWLEDGE, "ann", "on my way")
        assert page.value("sessionStorage.getItem('alarm-token')") == TOKEN
        assert page.value("localStorage.length") == 0
        # What has no alarm of its own is handled by device and kind.
        _set(page, "#alarm-state", "aside", "change")
        _until(lambda: "shelved until 2033" in page.text("#alarm-rows"))
        page.click("#alarm-rows button[data-verb=unshelve]")
        page.click("#alarm-send")
        _until(lambda: len(detector.commands) == 2)
        assert detector.commands[1][1].verb is Verb.UNSHELVE
        _until(lambda: page.text("#alarm-empty") == "None is shelved or disabled.")
        # What is over disappears, and what is new is told to those who listen.
        _set(page, "#alarm-state", "live", "change")
        write(settings, record("new-1"), later(tricky, record().event, state=State.NORMAL))
        _until(lambda: "new-1" in page.text("#alarm-rows") and TRICKY not in page.text("#alarm-rows"))


def test_a_flood_of_alarms_does_not_stop_the_page(with_alarms: Served, tmp_path: Path) -> None:
    """When everything alarms at once the console must still answer and show the worst first."""
    settings = with_alarms.settings
    with detector_health(settings.detector_port, HEALTHY), _browser(tmp_path / "profile") as page:
        page.call("Page.navigate", url=str(with_alarms.client.base_url))
        write(
            settings,
            *(record(f"flood-{n}", Kind.OFFLINE, severity="low") for n in range(10_000)),
            record("fire-1", severity="critical"),
        )
        _until(lambda: "10,001 live" in page.text("#alarm-count"), 60)
        assert page.value("document.querySelectorAll('#alarm-rows tr').length") == 200
        assert "fire-1" in page.text("#alarm-rows tr:first-child")
        assert "10,000 offline" in page.text("#alarm-more")
        _picture(page, tmp_path / "flood.png")
        _set(page, "#alarm-filter", "flood-77")
        _until(lambda: "flood-77" in page.text("#alarm-rows tr:first-child"))
        assert page.problems == []


def test_alarms_that_cannot_be_read_are_not_called_calm(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """Without Kafka, or without the service itself, nothing is known; the page has to say so."""
    with _browser(tmp_path / "profile") as page:
        with serving(settings_for(tmp_path)) as served:
            page.call("Page.navigate", url=str(served.client.base_url))
            _until(lambda: "not been read yet" in page.text("#alarm-empty"))
            assert "no Kafka broker" in page.text("#alarm-problems")
            assert page.text("#alarm-count") == "not known yet"
        _until(lambda: "Whether there are alarms is not known" in page.text("#alarm-empty"))
