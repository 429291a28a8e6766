"""``smoke api``: runs the HTTP API and the console."""

from __future__ import annotations

import socket

import click

from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import load_settings


@click.command()
@click.option("--host", help="Address to listen on; default: SMOKE_BIND_HOST.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; default: SMOKE_API_PORT. 0 takes a free one.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much is logged.",
)
def api(host: str | None, port: int | None, log_level: str) -> None:
    """Run the HTTP API and the console until stopped.

    \b
    Example:
      smoke api
      smoke api --host 0.0.0.0 --port 8080
    """
    settings = load_settings()
    address = (host or settings.bind_host, settings.api_port if port is None else port)
    listener = _listen(*address)

    import uvicorn

    from smoke_platform.serving.app import create_app

    bound = listener.getsockname()
    shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    click.echo(f"console and API on http://{shown}:{bound[1]}", err=True)
    config = uvicorn.Config(
        create_app(settings), log_level=log_level, access_log=False, server_header=False, timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, bound before anything heavy is imported, so that a taken port is told at once.

    Raises:
        SmokeError: naming address, port and the setting that moves it.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        raise SmokeError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            "choose another with SMOKE_API_PORT and SMOKE_BIND_HOST, or with --port and --host",
        ) from None
    listener.set_inheritable(True)
    return listener
