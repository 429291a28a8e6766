"""The console and the API page: everything they need comes from the service, and they work in a real browser.

Needs Chromium (Debian: chromium); what opens it is reported as skipped without it.
"""

from __future__ import annotations

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

from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.serving.app import STATIC_DIR
from smoke_platform.settings import Settings
from smoke_platform_tests.integration.test_api import SMOKE_SENSITIVE, Served, _landed, _until, serving
from smoke_platform_tests.scorer_models import logistic_model, publish

pytestmark = pytest.mark.integration


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
            message = json.loads(self._link.recv(timeout=20))
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
        pages = [it for it in httpx.get(f"http://127.0.0.1:{port}/json/list").json() if it["type"] == "page"]
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as link:
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
        _until(lambda: page.text("#model-version") == "version 1", 30)
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


def test_the_api_page_lists_every_endpoint(api: Served, tmp_path: Path) -> None:
    """It is the only reference on a machine without internet."""
    with _browser(tmp_path) as page:
        page.call("Page.navigate", url=f"{api.client.base_url}/docs")
        paths = api.client.get("/openapi.json").json()["paths"]
        operations = sum(len(item) for item in paths.values())
        _until(lambda: page.value("document.querySelectorAll('details').length") == operations, 30)
        shown = page.text("#groups")
        for path in paths:
            assert path in shown
        assert page.problems == []


def test_a_lost_service_is_told(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """A console that goes on showing old figures in green hides an outage."""
    with _browser(tmp_path / "profile") as page:
        with serving(settings_for(tmp_path)) as served:
            page.call("Page.navigate", url=str(served.client.base_url))
            _until(lambda: page.text("#overall") == "degraded", 30)
            assert "No model" in page.text("#notice")
        _until(lambda: page.text("#overall") == "not reachable", 30)
