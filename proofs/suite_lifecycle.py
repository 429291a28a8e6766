"""Promotions and rollbacks under load: no request fails, and a tampered model is refused while the old one serves on.

The API runs as a process of its own on a free port; requests come at a steady rate, whether or not earlier ones were
answered quickly. Champions are changed through the real registry. Every answer must be wholly of one model: its
probability is compared with what the version that it names gives for the very same reading.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import polars as pl

from benchmarks.http_load import Connection, api_with_nothing
from smoke_platform.adapters import fitting, trainer
from smoke_platform.adapters.registry import ARTIFACT, Registry, publish
from smoke_platform.domain import features
from smoke_platform.domain.errors import SmokeError
from smoke_platform.serving import examples
from smoke_platform.serving.requests import one_reading, sensor_row
from smoke_platform.settings import load_settings

#: The watcher looks once a second; on a busy machine its turn may come late.
PATIENCE_S = 30.0
#: Share of the requests asked for that must have been sent for the rate to count as kept.
RATE_KEPT = 0.95


@dataclass(frozen=True, slots=True)
class Plan:
    """How hard and how long: requests a second over so many connections, seconds at least, changes of champion."""

    per_second: int = 500
    seconds: float = 60.0
    changes: int = 12
    connections: int = 8


@dataclass
class Answers:
    """What was answered: times in seconds, answers by version, and everything that was wrong, in words."""

    times: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def seen(self, version: str) -> int:
        return self.versions[version]

    def add(self, seconds: float, version: str, fault: str) -> None:
        with self.lock:
            self.times.append(seconds)
            if fault:
                self.failures.append(fault)
            else:
                self.versions[version] += 1


def suite() -> dict[str, Any]:
    """500 requests a second for a minute while champions are promoted and rolled back: none fails."""
    return prove(Plan(), lambda text: click.echo(f"  {text}", err=True))


def prove(plan: Plan, say: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
    """One run on a private platform.

    Returns:
        ``ok``, and the figures that it rests on.
    """
    with tempfile.TemporaryDirectory(prefix="smoke-lifecycle-") as folder:
        home = Path(folder)
        registry = Registry(load_settings({"SMOKE_HOME": str(home)}, home / "no.env"))
        registry.migrate()
        for number in (1, 2, 3):
            _register(registry, number)
        registry.promote(1, reason="the first")
        reading = examples.sample()
        expected = {str(number): _probability(registry, number, reading) for number in (1, 2, 3)}
        with api_with_nothing(home) as url:
            _until(lambda: _model(url).get("version") == "1", "the first model is served")
            with _load(url, plan, reading, expected) as answers:
                began = time.monotonic()
                changes = _change(registry, plan, answers, began, say)
                tampered = _tamper(registry, url, answers)
                say(f"tampered model: {tampered}")
                time.sleep(max(0.0, plan.seconds - (time.monotonic() - began)))
                seconds = time.monotonic() - began
    return _result(plan, answers, changes, tampered, seconds)


def _register(registry: Registry, seed: int) -> None:
    """A version of its own: a small model fitted to made-up rows."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(10.0, 5.0, (400, features.FEATURE_COUNT)).astype(np.float32)
    artifact = fitting.fit(fitting.ALGORITHMS[0], matrix, matrix[:, seed] > 10.0, seed).artifact
    figures = {"accuracy": 0.9, "f1": 0.9, "precision": 0.9, "recall": 0.9}
    manifest = {
        "sha256": hashlib.sha256(artifact).hexdigest(),
        "algorithm": fitting.ALGORITHMS[0].name,
        "parameters": {},
        "feature_version": features.FEATURE_SET_VERSION,
        "feature_sha256": features.FEATURE_SET_HASH,
        "feature_names": list(features.FEATURE_NAMES),
        "threshold": 0.5,
        "trained_on": {"kind": "simulated", "statement": "made-up rows of a proof", "rows": 400, "fingerprint": "none"},
        "validation": {"kind": "none", "grouped": figures, "random_split": figures},
        "seed": seed,
        "code_version": trainer.code_version(),
        "created_at": datetime.now(UTC).isoformat(),
    }
    registry.register(artifact, manifest, pl.DataFrame({"probability": [0.5]}))


def _probability(registry: Registry, number: int, reading: dict[str, Any]) -> float:
    row = np.array([sensor_row(one_reading(reading))], dtype=np.float64)
    return float(registry.scorer(number).score(features.single_reading_features(row))[0])


# -- requests ----------------------------------------------------------------------------------------------------


@contextmanager
def _load(url: str, plan: Plan, reading: dict[str, Any], expected: dict[str, float]) -> Iterator[Answers]:
    answers, done = Answers(), threading.Event()
    began = time.perf_counter() + 0.1
    threads = [
        threading.Thread(target=_ask, args=(url, plan, place, began, reading, expected, answers, done))
        for place in range(plan.connections)
    ]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _ask(
    url: str,
    plan: Plan,
    place: int,
    began: float,
    reading: dict[str, Any],
    expected: dict[str, float],
    answers: Answers,
    done: threading.Event,
) -> None:
    """Every ``connections``-th request of the steady stream, each due at its own moment and timed from it."""
    connection = Connection(url)
    request = connection.request("POST", "/predict", json.dumps(reading).encode())
    number = place
    while not done.is_set():
        due = began + number / plan.per_second
        number += plan.connections
        wait = due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        version, fault = "", ""
        try:
            status, body = connection.exchange(request)
            if status == 200:
                found = json.loads(body)
                version = found["model_version"]
                if found["probability"] != expected.get(version):
                    fault = f"version {version} answered {found['probability']}, it gives {expected.get(version)}"
            else:
                fault = f"status {status}: {body[:200].decode(errors='replace')}"
        except (OSError, ValueError) as error:
            fault = repr(error)
            connection = Connection(url)
        answers.add(time.perf_counter() - due, version, fault)
    connection.close()


# -- changes -----------------------------------------------------------------------------------------------------


def _change(
    registry: Registry, plan: Plan, answers: Answers, began: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Promotes version 2 and rolls back to version 1 in turn, spread over four fifths of the time."""
    changes = []
    for number in range(plan.changes):
        due = began + 0.8 * plan.seconds * number / plan.changes
        time.sleep(max(0.0, due - time.monotonic()))
        started = time.monotonic()
        if number % 2 == 0:
            version = registry.promote(2, reason="a proof")["version"]
        else:
            version = registry.rollback(reason="a proof")["version"]
        published = time.monotonic()
        before = answers.seen(str(version))
        _until(lambda v=str(version), b=before: answers.seen(v) > b, f"version {version} answers")  # type: ignore[misc]
        entry = {
            "action": "promote" if number % 2 == 0 else "rollback",
            "version": version,
            "publishing_s": round(published - started, 3),
            "until_first_answer_s": round(time.monotonic() - published, 3),
        }
        say(f"{entry}")
        changes.append(entry)
    return changes


def _tamper(registry: Registry, url: str, answers: Answers) -> dict[str, Any]:
    """Changes a registered artifact, asks the registry to promote it, then publishes it past the registry."""
    champion = registry.champion() or {}
    other = {**champion, **_entry_of(registry, 3)}
    place = registry.models_dir / "3" / ARTIFACT
    content = place.read_bytes()
    place.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    try:
        registry.promote(3, reason="tampered")
        refused_by_registry = "it was promoted"
    except SmokeError as error:
        refused_by_registry = error.message
    publish(registry.models_dir, other)
    _until(lambda: _model(url).get("state") == "refused", "the API refuses the tampered model")
    model, before = _model(url), answers.seen(str(champion["version"]))
    _until(lambda: answers.seen(str(champion["version"])) > before + 50, "the old model serves on")
    publish(registry.models_dir, champion)
    _until(lambda: _model(url).get("state") == "ok", "the good model is accepted again")
    return {
        "refused_by_registry": refused_by_registry,
        "refused_by_api": model["refused_reason"],
        "served_meanwhile": model["version"],
        "answers_of_the_tampered_one": answers.seen("3"),
    }


def _entry_of(registry: Registry, number: int) -> dict[str, Any]:
    manifest = registry.manifest(number)
    text = (registry.models_dir / str(number) / "manifest.json").read_bytes()
    return {
        "version": number,
        "sha256": manifest["sha256"],
        "path": f"{number}/{ARTIFACT}",
        "manifest_sha256": hashlib.sha256(text).hexdigest(),
    }


def _model(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{url}/health", timeout=10, trust_env=False).json()["parts"]["model"]
    return answer


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SmokeError(f"not within {PATIENCE_S:g} s: {what}")
        time.sleep(0.01)


def _result(
    plan: Plan, answers: Answers, changes: list[dict[str, Any]], tampered: dict[str, Any], seconds: float
) -> dict[str, Any]:
    times = np.array(answers.times) * 1e3
    rate = len(times) / seconds
    shown = {f"p{q:g}_ms": round(float(np.percentile(times, q)), 3) for q in (50, 90, 99, 99.9)}
    good = (
        not answers.failures
        and rate >= RATE_KEPT * plan.per_second
        and len(changes) == plan.changes
        and {"1", "2"} == set(answers.versions)
        and "not what was registered" in tampered["refused_by_registry"]
        and tampered["refused_by_api"] == "hash_mismatch"
        and tampered["answers_of_the_tampered_one"] == 0
    )
    return {
        "ok": good,
        "plan": asdict(plan),
        "seconds": round(seconds, 1),
        "requests": len(times),
        "requests_per_second": round(rate, 1),
        "failed": len(answers.failures),
        "failures": answers.failures[:10],
        "answers_by_version": dict(sorted(answers.versions.items())),
        # Timed from the moment at which a request was due, so that a queue that forms counts.
        "from_due_to_answer": {**shown, "max_ms": round(float(times.max()), 3)},
        "promotions": sum(entry["action"] == "promote" for entry in changes),
        "rollbacks": sum(entry["action"] == "rollback" for entry in changes),
        "longest_until_first_answer_s": max((entry["until_first_answer_s"] for entry in changes), default=0.0),
        "tampered": tampered,
        "changes": changes,
    }
