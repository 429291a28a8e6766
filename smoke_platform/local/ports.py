"""Ports of this machine: whether one is free, who has it, and the message that says so.

Belongs here: nothing but that. Does not: which ports there are (settings.py).
"""

from __future__ import annotations

import contextlib
import random
import socket

import psutil

from smoke_platform.domain.errors import SmokeError

#: Below the range from which Linux takes the near end of outgoing connections (32,768 to 60,999). A server's port from
#: within that range is taken by some client while the server is down: even by the client that tries to reach it again,
#: which then talks to itself.
FREE_RANGE = range(20_000, 32_000)


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on ``host:port`` now; connections that are still closing don't count."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports that are free now, drawn from ``FREE_RANGE``.

    Raises:
        SmokeError: where so many are not to be found.
    """
    found: set[int] = set()
    for _ in range(1_000 + 10 * count):
        if len(found) == count:
            break
        port = random.SystemRandom().choice(FREE_RANGE)
        if port not in found and is_free(host, port):
            found.add(port)
    if len(found) < count:
        raise SmokeError(f"fewer than {count} ports from {FREE_RANGE.start} to {FREE_RANGE.stop - 1} are free")
    return list(found)


def answers(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((reachable(host), port), timeout=timeout_s):
        return True
    return False


def reachable(host: str) -> str:
    """The address under which this machine reaches a server that listens on ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - read, not bound


def holder(port: int) -> psutil.Process | None:
    """The process that listens on ``port``, where the system tells us."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return None
    for connection in connections:
        # An address is (host, port), or empty where the system hides it.
        near = tuple(connection.laddr)
        if connection.status == psutil.CONN_LISTEN and near[1:2] == (port,) and connection.pid:
            with contextlib.suppress(psutil.Error):
                return psutil.Process(connection.pid)
    return None


def require_free(host: str, port: int, setting: str, purpose: str) -> None:
    """Refuses a port that is taken.

    Raises:
        SmokeError: names the port, who has it where that is known, and the setting that moves it.
    """
    if is_free(host, port):
        return
    process = holder(port)
    by = ""
    if process is not None:
        with contextlib.suppress(psutil.Error):
            by = f" by process {process.pid} ({process.name()})"
    raise SmokeError(
        f"port {port}, which {purpose} needs on {host}, is taken{by}",
        f"stop what uses it, or set {setting} to another port",
    )
