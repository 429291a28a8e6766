"""Dagster as a person's browser sees it: over HTTP.

Belongs here: launching jobs, waiting for runs, reading their outcome. Does not: anything that imports
Dagster, so that a proof sees what the web server says and not what a library would.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from smoke_platform.domain.errors import SmokeError

UNFINISHED = frozenset({"QUEUED", "NOT_STARTED", "MANAGED", "STARTING", "STARTED", "CANCELING"})

_LOCATION = """
query { repositoriesOrError { __typename
  ... on RepositoryConnection { nodes { name location { name } } }
  ... on PythonError { message } } }
"""
_LAUNCH = """
mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on PipelineNotFoundError { message } } }
"""
_RUNS = """
query($limit: Int!) { runsOrError(limit: $limit) { __typename
  ... on Runs { results { runId jobName status tags { key value } } }
  ... on PythonError { message } } }
"""
_STEP_FAILURES = """
query($runId: ID!) { logsForRun(runId: $runId) { __typename
  ... on EventConnection { events {
    __typename
    ... on ExecutionStepFailureEvent { stepKey error { message } }
    ... on RunFailureEvent { error { message } message } } } } }
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One Dagster run."""

    run_id: str
    job: str
    status: str
    tags: Mapping[str, str]

    @property
    def partition(self) -> str:
        return self.tags.get("dagster/partition", "")

    @property
    def finished(self) -> bool:
        return self.status not in UNFINISHED


class DagsterHttp:
    """A client of Dagster's web server at ``url``."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def _ask(self, query: str, **variables: Any) -> Any:
        try:
            answer = self._http.post("/graphql", json={"query": query, "variables": variables})
            answer.raise_for_status()
            body = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise SmokeError(
                f"Dagster at {self._http.base_url} does not answer: {error}", "see `smoke status`"
            ) from None
        if body.get("errors"):
            raise SmokeError(f"Dagster refused a query: {body['errors'][0].get('message')}")
        (result,) = body["data"].values()
        return result

    def location(self) -> tuple[str, str]:
        """Names of the repository and of its code location.

        Raises:
            SmokeError: where the code location is not loaded.
        """
        result = self._ask(_LOCATION)
        nodes = result.get("nodes") or []
        if not nodes:
            raise SmokeError(
                f"Dagster has no code location loaded: {result.get('message', '')}", "see `smoke logs code_server`"
            )
        return nodes[0]["name"], nodes[0]["location"]["name"]

    def launch(self, job: str, partition: str | None = None) -> str:
        """Starts ``job`` (for one partition) and returns the run's id."""
        repository, location = self.location()
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        result = self._ask(
            _LAUNCH,
            params={
                "selector": {"repositoryLocationName": location, "repositoryName": repository, "jobName": job},
                "runConfigData": {},
                "executionMetadata": {"tags": [*tags, {"key": "smoke/caused_by", "value": "verify"}]},
            },
        )
        if result["__typename"] != "LaunchRunSuccess":
            raise SmokeError(f"Dagster did not start {job}: {result}")
        return str(result["run"]["runId"])

    def runs(self, limit: int = 1000) -> list[Run]:
        """The newest ``limit`` runs, newest first."""
        result = self._ask(_RUNS, limit=limit)
        return [
            Run(
                row["runId"],
                row["jobName"],
                row["status"],
                {tag["key"]: tag["value"] for tag in row["tags"]},
            )
            for row in result.get("results", [])
        ]

    def wait(self, run_id: str, timeout_s: float) -> Run:
        """The finished run.

        Raises:
            SmokeError: where it is not finished in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for run in self.runs():
                if run.run_id == run_id and run.finished:
                    return run
            time.sleep(0.5)
        raise SmokeError(f"Dagster run {run_id} is not finished after {timeout_s:.0f} s", "see it in Dagster's UI")

    def failure_of(self, run_id: str) -> str:
        """The first error of a failed run, in one line; empty where it names none."""
        result = self._ask(_STEP_FAILURES, runId=run_id)
        for event in result.get("events", []):
            message = (event.get("error") or {}).get("message") or event.get("message")
            if message:
                return str(message).strip().splitlines()[0][:300]
        return ""
