"""Asks each program of the platform, from outside and by its own protocol, whether it does its work.

Belongs here: the questions and what counts as a good answer. Does not: process states (supervisor.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from smoke_platform.domain.errors import SmokeError
from smoke_platform.local import ports
from smoke_platform.local.broker import is_ready
from smoke_platform.local.programs import LOCATION, Program
from smoke_platform.settings import Settings

_WORKSPACE = """
query { workspaceOrError { __typename
  ... on PythonError { message }
  ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename
    ... on PythonError { message } } } } } }
"""
_DAEMONS = """
query { instance { daemonHealth { allDaemonStatuses {
  daemonType required healthy lastHeartbeatErrors { message } } } } }
"""


#: Stands in the detail where waiting does not help: the code itself is at fault.
LOAD_FAILURE = "did not load"
#: What a part of the API calls itself when there is nothing to say about it.
GOOD_STATES = ("ok", None)


@dataclass(frozen=True)
class Health:
    """An answer: ``ok`` is None where a program has nothing that could be asked."""

    ok: bool | None
    detail: str = ""


class Prober:
    """Asks the programs of one platform. Use it as a context manager; it keeps connections open meanwhile."""

    def __init__(self, settings: Settings, timeout_s: float = 3.0) -> None:
        self._settings = settings
        self._dagster = f"http://{ports.reachable(settings.bind_host)}:{settings.dagster_port}"
        # The services are on this machine: no proxy of the surroundings stands between.
        self._http = httpx.Client(timeout=timeout_s, trust_env=False)
        self._questions: dict[str, Callable[[Program], Health]] = {
            "kafka": self._kafka,
            "code_server": self._code_server,
            "daemon": self._daemon,
            "webserver": self._webserver,
            "api": self._api,
            "detector": self._detector,
            "notify": self._notify,
        }

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_fault: object) -> None:
        self._http.close()

    def ask(self, program: Program) -> Health:
        """How the program is, as far as it tells; a program that doesn't answer is not well, whatever the reason."""
        question = self._questions.get(program.name)
        if question is None:
            return Health(None)
        try:
            return question(program)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as fault:
            return Health(False, f"{type(fault).__name__}: {fault}")

    def _kafka(self, program: Program) -> Health:
        ready = is_ready(program.address)
        return Health(ready, "" if ready else "does not answer a metadata request")

    def _code_server(self, program: Program) -> Health:
        host, _, port = program.address.rpartition(":")
        if not ports.answers(host, int(port)):
            return Health(False, "does not accept connections")
        return Health(True)

    def _webserver(self, program: Program) -> Health:
        answer = self._http.get(f"{program.address}/server_info")
        if answer.status_code != httpx.codes.OK:
            return Health(False, f"/server_info answered {answer.status_code}")
        return self.location()

    def location(self) -> Health:
        """Whether the web server has loaded the code location, and if not, with which error."""
        space = self._graphql(_WORKSPACE)["workspaceOrError"]
        if space["__typename"] != "Workspace":
            return Health(False, f"the workspace {LOAD_FAILURE}: {space.get('message', space['__typename'])}")
        for entry in space["locationEntries"]:
            if entry["name"] != LOCATION:
                continue
            result = entry["locationOrLoadError"] or {}
            if result.get("__typename") == "PythonError":
                return Health(False, f"the code location {LOAD_FAILURE}: {str(result['message']).strip()}")
            loaded = entry["loadStatus"] == "LOADED"
            return Health(loaded, "" if loaded else "the code location is loading")
        return Health(False, "the web server does not know the code location")

    def _daemon(self, _program: Program) -> Health:
        statuses = self._graphql(_DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
        required = [status for status in statuses if status["required"]]
        ill = [status for status in required if not status["healthy"]]
        if not required:
            return Health(False, "no daemon has reported yet")
        faults = [
            str(error["message"]).strip().splitlines()[-1] for s in ill for error in s["lastHeartbeatErrors"] or []
        ]
        names = ", ".join(str(status["daemonType"]).lower() for status in ill)
        return Health(not ill, f"no recent heartbeat of {names} {'; '.join(faults[:2])}".strip() if ill else "")

    def _graphql(self, query: str) -> Any:
        answer = self._http.post(f"{self._dagster}/graphql", json={"query": query})
        answer.raise_for_status()
        body = answer.json()
        if body.get("errors"):
            raise ValueError(str(body["errors"][0].get("message")))
        return body["data"]

    def _detector(self, program: Program) -> Health:
        answer = self._http.get(f"{program.address}/health")
        if answer.status_code != httpx.codes.OK:
            return Health(False, f"/health answered {answer.status_code}: {answer.text[:200]}")
        report = answer.json()
        running = report["state"] == "running"
        return Health(running, report["model_refused"] or "" if running else str(report["state"]))

    def _notify(self, program: Program) -> Health:
        report = self._http.get(f"{program.address}/health").json()
        # A channel that does not accept is not the notifier's fault; a restart would not mend it.
        well = report["state"] in ("running", "failing")
        return Health(well, str(report["detail"] or ("" if well else report["state"])))

    def _api(self, program: Program) -> Health:
        answer = self._http.get(f"{program.address}/health")
        if answer.status_code != httpx.codes.OK:
            return Health(False, f"/health answered {answer.status_code}: {answer.text[:200]}")
        # A part of it that is not well yet, such as a model that is still being trained, is no reason to restart it.
        parts = answer.json().get("parts", {})
        unwell = [
            f"{name}: {part.get('state')}" for name, part in parts.items() if part.get("state") not in GOOD_STATES
        ]
        return Health(True, ", ".join(unwell))


def require_brokers(settings: Settings) -> None:
    """Raises SmokeError where the brokers that ``KAFKA_BOOTSTRAP_SERVERS`` names do not answer."""
    if not is_ready(settings.brokers, timeout_s=10):
        raise SmokeError(
            f"no Kafka broker answers at {settings.brokers}",
            "correct KAFKA_BOOTSTRAP_SERVERS, or leave it empty for the embedded broker",
        )
