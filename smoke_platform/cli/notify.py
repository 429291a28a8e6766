"""``smoke notify``: run the notifier, try its channels, see how it is, look after messages that were given up.

Belongs here: options and tables. Does not: what is told when (``domain.notifications``), the loop
(``streaming.notify``), the channels (``adapters.notifier``).
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from smoke_platform.adapters.notifier import (
    Channel,
    NotAccepted,
    drawer_for,
    open_channels,
    read_plan,
    words_for,
)
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.notifications import Message, clean
from smoke_platform.settings import Settings, load_settings

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def notify() -> None:
    """Tell people of alarms: by webhook, e-mail, chat and whatever else Apprise knows.

    \b
    Example:
      SMOKE_NOTIFY_URLS="ops=mailto://user:password@example.org" smoke notify test
      smoke notify status
    """


@notify.command()
def run() -> None:
    """Read the alarms and deliver notifications, without end; part of the embedded platform.

    \b
    Example:
      SMOKE_NOTIFY_CONFIG=notify.yaml SMOKE_NOTIFY_URLS="ops=jsons://example.org/hook" smoke notify run
    """
    from smoke_platform.streaming.notify import Notifier

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("smoke_platform").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    notifier = Notifier(load_settings(), stop=stop)
    click.echo(f"notifying: {', '.join(notifier.plan.channels)}", err=True)
    notifier.run()


@notify.command()
@click.option("--channel", "names", multiple=True, help="Only this one; may be given several times.")
@json_option
def test(names: tuple[str, ...], as_json: bool) -> None:
    """Send a message that is marked as a test; exits with 1 where a channel does not accept it.

    \b
    Example:
      smoke notify test
      smoke notify test --channel ops
    """
    settings = load_settings()
    channels = _channels(settings, names)
    moment = datetime.now(UTC)
    body = (
        "This is a test of the smoke-detection platform's notifications. Nothing is wrong, nothing is to be done.\n"
        f"Sent at {moment:%Y-%m-%d %H:%M:%S} UTC by `smoke notify test`.\n\nAll alarms: {words_for(settings).link}"
    )
    outcomes = {
        name: _attempt(channel, "TEST, no alarm", body, "info", _deadline(settings))
        for name, channel in channels.items()
    }
    if as_json:
        click.echo(json.dumps({name: {"accepted": why is None, "error": why} for name, why in outcomes.items()}))
    else:
        for name, why in outcomes.items():
            click.echo(f"{name}: {'accepted' if why is None else f'NOT accepted: {why}'}")
    if any(outcomes.values()):
        sys.exit(1)


@notify.command()
@json_option
def status(as_json: bool) -> None:
    """Show the running notifier's channels; exits with 1 where it does not run or a channel fails.

    \b
    Example:
      smoke notify status --json
    """
    import httpx

    settings = load_settings()
    address = f"http://{settings.near_host}:{settings.notify_port}"
    try:
        # It is on this machine: no proxy of the surroundings stands between.
        facts = httpx.get(f"{address}/health", timeout=5, trust_env=False).json()
        channels = facts["channels"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise SmokeError(
            f"no notifier answers at {address} ({type(error).__name__})",
            "start it with `smoke up` or `smoke notify run`; SMOKE_NOTIFY_PORT says where it listens",
        ) from None
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(f"{facts['state']}{': ' if facts['detail'] else ''}{facts['detail']}")
        click.echo(f"{facts['alarms']:,} records read, {facts['lag']:,} not read yet, {facts['failed']:,} dead letters")
        table = Table(box=None, pad_edge=False)
        for title in ("channel", "delivered", "pending", "alarms waiting", "failed attempts", "last delivery", "error"):
            table.add_column(title, justify="right" if title in _NUMBERS else "left")
        for name, counts in channels.items():
            numbers = (counts["delivered"], counts["pending"], counts["waiting_alarms"], counts["failed_attempts"])
            wrong = counts["last_error"] if counts["failures_in_a_row"] else ""
            table.add_row(name, *(f"{number:,}" for number in numbers), _moment(counts["last_delivery_at"]), wrong)
        Console(markup=False).print(table)
    if facts["state"] not in ("running", "restoring"):
        sys.exit(1)


_NUMBERS = ("delivered", "pending", "alarms waiting", "failed attempts")


@notify.group()
def failed() -> None:
    """List or send again the messages that no attempt could deliver.

    \b
    Example:
      smoke notify failed list
    """


@failed.command(name="list")
@json_option
def list_failed(as_json: bool) -> None:
    """List the messages that were given up, the oldest first.

    \b
    Example:
      smoke notify failed list
    """
    settings = load_settings()
    words = words_for(settings)
    rows = [
        {
            "id": message.message_id,
            "channel": message.channel,
            "formed_at": _moment(message.formed_at),
            "alarms": len(message.notes),
            "attempts": message.attempts,
            "error": message.last_error,
            "title": words.title(message),
        }
        for message in drawer_for(settings).failed()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("no message was given up")
        return
    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        # The id is what `retry` wants to be given, so it is never cut.
        width = 16 if title == "id" else None
        table.add_column(title, justify="right" if title in ("alarms", "attempts") else "left", min_width=width)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(markup=False).print(table)


@failed.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them.")
@json_option
def retry(ids: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Send messages that were given up again, with their old ids; what is accepted is taken off the list.

    \b
    Example:
      smoke notify failed retry 1f3a5c7e9b2d4f60
      smoke notify failed retry --all
    """
    if bool(ids) == every:
        raise click.UsageError("name ids, or give --all")
    settings = load_settings()
    drawer, words = drawer_for(settings), words_for(settings)
    kept = {message.message_id: message for message in drawer.failed()}
    if unknown := [name for name in ids if name not in kept]:
        raise SmokeError(f"there is no dead letter {clean(unknown[0])}", "`smoke notify failed list` shows them")
    chosen = list(kept.values()) if every else [kept[name] for name in dict.fromkeys(ids)]
    channels = _channels(settings, ())
    deadline_s = _deadline(settings)
    outcomes: dict[str, str | None] = {}
    for message in chosen:
        outcomes[message.message_id] = why = _resend(message, channels, words, deadline_s)
        if why is None:
            drawer.remove_failed(message.message_id)
        if not as_json:
            click.echo(f"{message.message_id}: {'accepted' if why is None else f'NOT accepted: {why}'}")
    if as_json:
        click.echo(json.dumps({name: {"accepted": why is None, "error": why} for name, why in outcomes.items()}))
    if any(outcomes.values()):
        sys.exit(1)


def _resend(message: Message, channels: dict[str, Channel], words: Any, deadline_s: float) -> str | None:
    if message.channel not in channels:
        return f"there is no channel {message.channel} any more; channels are {', '.join(channels)}"
    title = f"Late: {words.title(message)}"
    return _attempt(channels[message.channel], title, words.body(message), message.tone, deadline_s)


def _channels(settings: Settings, names: tuple[str, ...]) -> dict[str, Channel]:
    plan, urls = read_plan(settings)
    channels = open_channels(plan, urls, settings)
    if unknown := [name for name in names if name not in channels]:
        raise SmokeError(f"there is no channel {clean(unknown[0])}", f"channels are {', '.join(channels)}")
    return {name: channel for name, channel in channels.items() if not names or name in names}


def _deadline(settings: Settings) -> float:
    return read_plan(settings)[0].retry.deadline_s


def _attempt(channel: Channel, title: str, body: str, tone: str, deadline_s: float) -> str | None:
    """Why the channel did not take it; ``None`` where it did."""
    outcome: list[str | None] = []
    thread = threading.Thread(target=_guarded(channel, title, body, tone, outcome), daemon=True)
    thread.start()
    thread.join(deadline_s)
    return outcome[0] if outcome else f"no answer within {deadline_s:g} s"


def _guarded(channel: Channel, title: str, body: str, tone: str, outcome: list[str | None]) -> Callable[[], None]:
    def send() -> None:
        try:
            channel.send(title, body, tone)
            outcome.append(None)
        except NotAccepted as error:
            outcome.append(error.message or "not accepted")
        except Exception as error:  # noqa: BLE001 - a plugin's own fault; its text may hold the URL
            outcome.append(f"the channel failed with {type(error).__name__}")

    return send


def _moment(at: float | None) -> str:
    return "" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
