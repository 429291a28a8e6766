"""Channels: how a message reaches people, and the files that the notifier keeps.

Belongs here: Apprise (webhook, e-mail, chats by URL), the console, the log file, the configuration file, the state of
the notifier and its dead letters on disk. Does not: what is sent when and in which words (``domain.notifications``),
threads and deadlines (``streaming.notify``).

The state is a file and no topic: it is small, has one writer and one reader, and a topic would have to be made,
compacted and read to its end before the first critical alarm can go out. What may be lost with it is only the memory of
what was told: the position in Kafka is committed behind what is delivered, so that no alarm is.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.notifications import (
    Message,
    Plan,
    Snapshot,
    Words,
    clean,
    decode_message,
    decode_snapshot,
    default_plan,
    encode_message,
    parse_urls,
    plan_of,
)
from smoke_platform.settings import Settings

LOG_FILE = "notifications.jsonl"
LOG_BYTES = 10 * 1024 * 1024
#: A part of a URL that is shorter is no secret worth the name, and taking it out would garble a complaint.
SHORTEST_SECRET = 4
LONGEST_COMPLAINT = 300


class NotAccepted(SmokeError):
    """A channel did not take a message; the text holds no secret."""


class Channel(Protocol):
    """Something that takes messages. ``send`` may be called from several threads at once."""

    name: str

    def send(self, title: str, body: str, tone: str) -> None:
        """Returns once the message is accepted.

        Args:
            tone: ``failure``, ``warning`` or ``info``.

        Raises:
            NotAccepted: with what the other side said.
        """


class ConsoleChannel:
    """Writes messages to standard output."""

    def __init__(self, name: str, stream: IO[str] | None = None) -> None:
        self.name = name
        self._stream = stream

    def send(self, title: str, body: str, tone: str) -> None:
        stream = self._stream or sys.stdout
        indented = "\n".join(f"  {line}" if line else "" for line in body.splitlines())
        try:
            # One call, so that what two threads write does not mingle.
            stream.write(f"[{tone}] {title}\n{indented}\n")
            stream.flush()
        except (OSError, ValueError) as error:
            raise NotAccepted(f"standard output: {error}") from None


class LogChannel:
    """Appends messages to a file, one JSON object a line; at 10 MiB the file becomes ``.1``."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    def send(self, title: str, body: str, tone: str) -> None:
        from datetime import UTC, datetime

        entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "tone": tone, "title": title, "body": body}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size > LOG_BYTES:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            with self.path.open("ab") as file:
                file.write(msgspec.json.encode(entry) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise NotAccepted(f"{self.path}: {error.strerror or error}") from None


class AppriseChannel:
    """A service that Apprise knows, by its URL.

    Each message has a service object of its own: one that hangs in an attempt that was given up on shares nothing with
    the next attempt.

    Raises:
        SmokeError: from the constructor, for a URL that Apprise does not understand. The URL is not quoted.
    """

    def __init__(self, name: str, url: str, link: str = "") -> None:
        self.name = name
        self._url = url
        self._link = link
        # Its complaints come back with each result, and are shown without secrets.
        logging.getLogger("apprise").propagate = False
        self._service()

    def _service(self) -> tuple[Any, Any]:
        from apprise import Apprise, AppriseAsset
        from apprise.common import OverflowMode

        # Without async_mode the call runs in the thread that makes it, and not in a pool that all channels share.
        asset = AppriseAsset(
            app_id="smoke-platform",
            app_desc="Smoke-detection platform",
            app_url=self._link,
            async_mode=False,
            secure_logging=True,
        )
        service = Apprise.instantiate(self._url, asset=asset)
        if service is None:
            raise SmokeError(
                f"SMOKE_NOTIFY_URLS: the URL of channel {self.name} is none that Apprise understands",
                "see https://github.com/caronc/apprise/wiki for the URL of each service",
            )
        if "overflow=" not in self._url:
            # A service with a shorter limit would refuse the whole; what matters most stands first.
            service.overflow_mode = OverflowMode.TRUNCATE
        return service, asset

    def send(self, title: str, body: str, tone: str) -> None:
        from apprise import Apprise
        from apprise.result import AppriseResultStatus

        service, asset = self._service()
        sender = Apprise(asset=asset)
        sender.add(service)
        result = sender.notify(body=body, title=title, notify_type=tone, body_format="text")
        # Apprise counts a service that is marked optional as a success whatever became of it.
        if any(attempt.status is AppriseResultStatus.SUCCESS for each in result.results for attempt in each.attempts):
            return
        said = " ".join(dict.fromkeys(entry.message.strip() for entry in result.logs()))
        raise NotAccepted(self.redacted(said) or "not accepted, without a reason")

    def redacted(self, text: str) -> str:
        """``text`` on one line and without what the URL holds beyond scheme and host."""
        from urllib.parse import unquote, urlsplit

        parts = urlsplit(self._url)
        host = (parts.hostname or "") if "@" in parts.netloc or parts.scheme.startswith(("json", "xml", "form")) else ""
        pieces = {piece for whole in (self._url, unquote(self._url)) for piece in re.split(r"[/:@?&=,;#+\s]+", whole)}
        for piece in sorted(pieces - {parts.scheme, host, ""}, key=len, reverse=True):
            if len(piece) >= SHORTEST_SECRET and not piece.isdigit():
                text = text.replace(piece, "***")
        return clean(text.replace("\n", " "), LONGEST_COMPLAINT)


# -- configuration ---------------------------------------------------------------------------------------


def read_plan(settings: Settings) -> tuple[Plan, dict[str, str]]:
    """The plan and the channels' URLs, as the settings say.

    Raises:
        SmokeError: naming the setting, or the file and its field, at fault.
    """
    import yaml

    urls = parse_urls(settings.notify_urls.get_secret_value()) if settings.notify_urls is not None else {}
    path = settings.notify_config
    if path is None:
        return default_plan(urls), urls
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SmokeError(f"SMOKE_NOTIFY_CONFIG: {path}: {error.strerror}", "name a file that can be read") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise SmokeError(f"{path}{place}: not YAML: {getattr(error, 'problem', None) or error}") from None
    return plan_of(document, urls, str(path)), urls


def open_channels(plan: Plan, urls: Mapping[str, str], settings: Settings) -> dict[str, Channel]:
    """The channels of a plan by name.

    Raises:
        SmokeError: for a URL that Apprise does not understand.
    """
    channels: dict[str, Channel] = {}
    for name, spec in plan.channels.items():
        if spec.type == "console":
            channels[name] = ConsoleChannel(name)
        elif spec.type == "log":
            channels[name] = LogChannel(name, settings.logs_dir / LOG_FILE)
        else:
            channels[name] = AppriseChannel(name, urls[name], settings.api_url)
    return channels


def words_for(settings: Settings) -> Words:
    """How messages are written on this platform."""
    return Words(settings.zone, f"{settings.api_url}/#alarms")


# -- files -----------------------------------------------------------------------------------------------


class Drawer:
    """The notifier's folder: its state, its dead letters, and the lock that keeps a second notifier out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_file = folder / "state.json"
        self.failed_folder = folder / "failed"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; the kernel lets go when it dies.

        Raises:
            SmokeError: where another process holds it.
        """
        self.failed_folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SmokeError(
                    f"another `smoke notify run` works with {self.folder}", "stop it first; `smoke status` shows it"
                ) from None
            yield

    def load(self) -> Snapshot | None:
        """What was saved last; ``None`` before the first time.

        Raises:
            SmokeError: for a file that is none of ours.
        """
        try:
            value = self.state_file.read_bytes()
        except FileNotFoundError:
            return None
        return decode_snapshot(value, str(self.state_file))

    def save(self, snapshot: bytes) -> None:
        """Replaces the state; after a crash there is the old one or the new one, never a part."""
        _replace(self.state_file, snapshot)

    def add_failed(self, message: Message) -> None:
        """Keeps a dead letter, durably."""
        self.failed_folder.mkdir(parents=True, exist_ok=True)
        _replace(self._failed_file(message.message_id), encode_message(message))

    def failed(self) -> list[Message]:
        """All dead letters, the oldest first.

        Raises:
            SmokeError: for a file that is none.
        """
        found = []
        for path in self.failed_folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):  # a retry that ran meanwhile has delivered it
                found.append(decode_message(path.read_bytes(), str(path)))
        return sorted(found, key=lambda message: (message.formed_at, message.message_id))

    def count_failed(self) -> int:
        return sum(1 for _ in self.failed_folder.glob("*.json"))

    def remove_failed(self, message_id: str) -> None:
        """Forgets a dead letter that has been delivered after all."""
        self._failed_file(message_id).unlink(missing_ok=True)

    def _failed_file(self, message_id: str) -> Path:
        return self.failed_folder / f"{message_id}.json"


def drawer_for(settings: Settings) -> Drawer:
    return Drawer(settings.home / "notify")


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Messages name devices and places; nobody else on this machine needs them.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
