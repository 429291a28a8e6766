"""A bounded HTTP load client, and the API with an endpoint that does nothing beside its own.

Belongs here: raw keep-alive requests with as little client cost as possible, timed one by one; the peer endpoint that
``/predict`` is held against. Does not: which figures are published (``benchmarks.suite_serving``).

The peer is a route of the same application: same server, same routing, same middleware, same client, in the same run.
Its body does nothing, so what differs is validation, features, model and the answer.

Example:
    python -m benchmarks.http_load --home .smoke        /predict beside the empty endpoint, for the platform there
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click
import numpy as np

NOTHING = "/bench/nothing"


@dataclass(frozen=True, slots=True)
class Load:
    """What one endpoint answered.

    Attributes:
        requests: how many were sent.
        failed: how many were not answered with 200.
        seconds: wall-clock time of all of them.
        p50_ms, p90_ms, p99_ms, max_ms: time from sending to the whole answer, in ms.
    """

    requests: int
    failed: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


class Connection:
    """One keep-alive connection, one request at a time."""

    def __init__(self, base_url: str, timeout_s: float = 10.0) -> None:
        parts = urlsplit(base_url)
        self._host = f"{parts.hostname}:{parts.port}"
        self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The bytes of a request, to be sent any number of times."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        return head.encode() + b"\r\n" + body

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Sends ``request``; gives status and body."""
        self._socket.sendall(request)
        received = self._socket.recv(65_536)
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        )
        while len(body) < length:
            body += self._more()
        return int(head[9:12]), body

    def _more(self) -> bytes:
        received = self._socket.recv(65_536)
        if not received:
            raise ConnectionError("the server closed the connection")
        return received

    def close(self) -> None:
        self._socket.close()


def compare(
    base_url: str,
    targets: Mapping[str, tuple[str, str, bytes]],
    requests: int,
    *,
    connections: int = 1,
    block: int = 50,
    warm_up: int = 200,
) -> dict[str, Load]:
    """Times ``targets`` in turns of ``block`` requests, so that what disturbs the machine disturbs all alike.

    Args:
        base_url: of the server.
        targets: name -> (method, path, body).
        requests: for each target, over all connections; this bounds the run.
        connections: kept open at once, each with one request under way.
        block: requests of one target before the next target's turn.
        warm_up: requests of each target that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in targets}
    failed = dict.fromkeys(targets, 0)
    lock = threading.Lock()

    def work(share: int, warming: int) -> None:
        connection = Connection(base_url)
        ready = {name: connection.request(*target) for name, target in targets.items()}
        mine: dict[str, list[float]] = {name: [] for name in targets}
        bad = dict.fromkeys(targets, 0)
        for request in ready.values():
            for _ in range(warming):
                connection.exchange(request)
        while any(len(taken) < share for taken in mine.values()):
            for name, request in ready.items():
                taken = mine[name]
                for _ in range(min(block, share - len(taken))):
                    began = time.perf_counter()
                    status, _ = connection.exchange(request)
                    taken.append(time.perf_counter() - began)
                    bad[name] += status != 200
        connection.close()
        with lock:
            for name in targets:
                times[name] += mine[name]
                failed[name] += bad[name]

    threads = [
        threading.Thread(target=work, args=(requests // connections, warm_up // connections))
        for _ in range(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: _load(np.array(times[name]), failed[name], connections) for name in targets}


def _load(seconds: np.ndarray, failed: int, connections: int) -> Load:
    p50, p90, p99 = (float(np.percentile(seconds, quantile)) * 1e3 for quantile in (50, 90, 99))
    return Load(len(seconds), failed, float(seconds.sum()) / connections, p50, p90, p99, float(seconds.max()) * 1e3)


@contextmanager
def api_with_nothing(home: Path, *, timeout_s: float = 30.0) -> Iterator[str]:
    """Runs the API of the platform in ``home``, with the empty endpoint, as a process of its own; gives its URL."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.http_load", "--home", str(home), "--serve"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    connection = Connection(url)
                    connection.exchange(connection.request("GET", NOTHING))
                    connection.close()
                    break
                except (OSError, ValueError):
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise RuntimeError(f"the API did not start:\n{log.read().decode()}") from None
                    time.sleep(0.05)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _serve(home: Path) -> None:
    import uvicorn
    from starlette.responses import Response

    from smoke_platform.serving.app import create_app
    from smoke_platform.settings import load_settings

    app = create_app(load_settings(SMOKE_HOME=str(home)))

    @app.post(NOTHING, include_in_schema=False)
    @app.get(NOTHING, include_in_schema=False)
    async def nothing() -> Response:
        return Response(b"{}", media_type="application/json")

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])


def predict_beside_nothing(url: str, requests: int, connections: int = 1) -> dict[str, Load]:
    """``/predict`` with one full reading beside the empty endpoint, which gets the same body."""
    from smoke_platform.serving import examples

    body = json.dumps(examples.sample()).encode()
    targets = {"predict": ("POST", "/predict", body), "nothing": ("POST", NOTHING, body)}
    return compare(url, targets, requests, connections=connections)


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True, help="SMOKE_HOME of a platform with a model.")
@click.option("--requests", default=5000, show_default=True, help="Of each endpoint.")
@click.option("--connections", default=1, show_default=True, help="Kept open at once.")
@click.option("--serve", is_flag=True, help="Only run the API with the empty endpoint.")
def main(home: Path, requests: int, connections: int, serve: bool) -> None:
    """Time /predict beside an endpoint that does nothing."""
    if serve:
        _serve(home)
        return
    with api_with_nothing(home) as url:
        found = predict_beside_nothing(url, requests, connections)
    for name, load in found.items():
        print(
            f"{name:8} p50 {load.p50_ms:.3f}  p90 {load.p90_ms:.3f}  p99 {load.p99_ms:.3f}  max {load.max_ms:.2f} ms  "
            f"{load.per_second:,.0f}/s  failed {load.failed}"
        )
    ratio = {q: getattr(found["predict"], q) / getattr(found["nothing"], q) for q in ("p50_ms", "p99_ms")}
    print(f"ratio    p50 {ratio['p50_ms']:.2f}  p99 {ratio['p99_ms']:.2f}")


if __name__ == "__main__":
    main()
