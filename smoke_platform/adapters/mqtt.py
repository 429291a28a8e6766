"""One connection to an MQTT broker whose messages are acknowledged by hand.

Belongs here: paho's client in MQTT 5, the session that outlives a connection, the broker's refusals in words. Does not:
what a topic or payload means (``domain.mqtt_topics``), when a message is acknowledged and when to connect again
(``streaming.mqtt_bridge``).

A connection is used once. An acknowledgement names a message by a number that the next connection gives anew, and so it
may reach the connection only that brought the message: each has a client of its own, and what is acknowledged after its
end goes nowhere. The broker then sends the message again.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

#: Default ports of MQTT and of MQTT over TLS.
PORTS = {"mqtt": 1883, "mqtts": 8883}
KEEP_ALIVE_S = 30
#: How long the broker may take for each step of connecting.
ANSWER_S = 10.0
#: How long the last acknowledgements may take to leave.
_FAREWELL_S = 5.0
QOS = 1
#: MQTT 5, table 3-1 and 3.14.2.1.
_TAKEN_OVER = 0x8E
_REMEDIES = {
    "Bad user name or password": "set SMOKE_MQTT_USER and SMOKE_MQTT_PASSWORD to an account of the broker",
    "Not authorized": "set SMOKE_MQTT_USER and SMOKE_MQTT_PASSWORD, and let the account read SMOKE_MQTT_TOPICS",
    "Client identifier not valid": "set SMOKE_MQTT_CLIENT_ID to one that the broker takes",
    "Unsupported protocol version": "use a broker that speaks MQTT 5",
}


class MqttUnreachable(SmokeError):
    """No connection now; trying again may help."""


class MqttRefused(SmokeError):
    """The broker answered and said no; trying again with the same settings will not help."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the broker is, as ``SMOKE_MQTT_URL`` says it."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


def parse_url(url: str) -> Address:
    """The address in ``mqtt://host[:port]`` or ``mqtts://host[:port]``.

    Raises:
        SmokeError: for anything else; a password in the URL is refused and not repeated.
    """
    remedy = "write it as mqtt://host:1883, or mqtts://host:8883 for TLS"
    if not url:
        raise SmokeError("SMOKE_MQTT_URL is not set: it names the MQTT broker", remedy)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SmokeError(f"SMOKE_MQTT_URL is no address: {error}", remedy) from None
    if parts.username is not None or parts.password is not None:
        raise SmokeError(
            "SMOKE_MQTT_URL holds a user or a password, which would show in logs",
            "put them into SMOKE_MQTT_USER and SMOKE_MQTT_PASSWORD",
        )
    if parts.scheme not in PORTS or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise SmokeError(f"SMOKE_MQTT_URL={url!r} is no address of an MQTT broker", remedy)
    return Address(parts.hostname, port or PORTS[parts.scheme], parts.scheme == "mqtts")


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it came.

    Attributes:
        number: what acknowledges it on its connection; ``None`` for QoS 0, which nothing acknowledges.
        again: the broker says that it has sent it before.
    """

    topic: str
    payload: bytes
    number: int | None
    again: bool


class MqttConnection:
    """Connects, subscribes, and hands each message on; close it.

    Args:
        filters: what to subscribe to.
        on_message: called on the client's thread for each message; it must not wait.

    Raises:
        MqttUnreachable: from the constructor, where trying again may help.
        MqttRefused: from the constructor, where it will not.
    """

    def __init__(self, settings: Settings, filters: Sequence[str], on_message: Callable[[Incoming], None]) -> None:
        self.address = parse_url(settings.mqtt_url)
        self.fault: Exception | None = None
        self.resumed = False
        self._on_message = on_message
        self._settings = settings
        self._connected = threading.Event()
        self._subscribed = threading.Event()
        self._refusal: Any = None
        self._granted: list[Any] = []
        self._gone: Any = None
        self._client = self._new_client()
        try:
            self._open(filters)
        except BaseException:
            self._end()
            raise

    def _new_client(self) -> Client:
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion

        settings = self._settings
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.mqtt_client_id,
            protocol=MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        if settings.mqtt_user or settings.mqtt_password is not None:
            password = None if settings.mqtt_password is None else settings.mqtt_password.get_secret_value()
            client.username_pw_set(settings.mqtt_user or None, password)
        if self.address.tls:
            client.tls_set_context(_tls_context(settings.mqtt_ca_file))
        client.on_connect = self._note_connect
        client.on_subscribe = self._note_subscribe
        client.on_disconnect = self._note_disconnect
        client.on_message = self._note_message
        return client

    def _open(self, filters: Sequence[str]) -> None:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties
        from paho.mqtt.subscribeoptions import SubscribeOptions

        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
        properties.SessionExpiryInterval = round(self._settings.mqtt_session_hours * 3600)
        properties.ReceiveMaximum = self._settings.mqtt_receive_maximum
        address = self.address
        try:
            self._client.connect(
                address.host, address.port, keepalive=KEEP_ALIVE_S, clean_start=False, properties=properties
            )
        except ssl.SSLCertVerificationError as error:
            raise MqttRefused(
                f"the certificate of {address} is not trusted: {error.verify_message}",
                "set SMOKE_MQTT_CA_FILE to the authority that signed it, and name the host as the certificate does",
            ) from None
        except ssl.SSLError as error:
            raise MqttUnreachable(
                f"TLS with {address} fails: {error.reason or error}",
                "check that this port speaks TLS; mqtt:// is for one that does not",
            ) from None
        except OSError as error:
            raise MqttUnreachable(
                f"no MQTT broker answers at {address} ({error.strerror or error})", "check SMOKE_MQTT_URL"
            ) from None
        self._client.loop_start()
        self._await(self._connected, "the connection")
        if self._refusal is not None:
            reason = str(self._refusal)
            kind = MqttRefused if reason in _REMEDIES else MqttUnreachable
            raise kind(f"{address} refuses the connection: {reason}", _REMEDIES.get(reason, "see the broker's log"))
        # The last value that a topic retains is a reading from some time ago: what is new comes without it.
        options = SubscribeOptions(qos=QOS, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        self._client.subscribe([(each, options) for each in filters])
        self._await(self._subscribed, "the subscription")
        for filter_, code in zip(filters, self._granted, strict=False):
            if code.is_failure:
                raise MqttRefused(f"{address} refuses the topics {filter_!r}: {code}", _REMEDIES["Not authorized"])
            if code.value < QOS:
                raise MqttRefused(
                    f"{address} delivers {filter_!r} without acknowledgement (QoS 0), so that messages could be lost",
                    "allow QoS 1 on the broker",
                )

    def _await(self, event: threading.Event, what: str) -> None:
        deadline = time.monotonic() + ANSWER_S
        while not event.wait(0.05):
            if self.fault is not None:
                raise self.fault
            # A refusal closes the connection, too: what was said counts, not that it is closed.
            if self._gone is not None and not event.is_set():
                raise self.why()
            if time.monotonic() > deadline:
                raise MqttUnreachable(f"{self.address} did not answer to {what} within {ANSWER_S:g} s")

    # -- the client's thread -----------------------------------------------------------------------------
    def _note_connect(self, _client: Client, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refusal = reason
        self.resumed = bool(flags.session_present)
        self._connected.set()

    def _note_subscribe(self, _client: Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        self._granted = reasons
        self._subscribed.set()

    def _note_disconnect(self, _client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        # The broker's own words come first; that the connection is closed is told after them.
        self._gone = self._gone or reason

    def _note_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            number = message.mid if message.qos > 0 else None
            self._on_message(Incoming(message.topic, bytes(message.payload), number, bool(message.dup)))
        except Exception as error:  # noqa: BLE001 - the client would end its thread without a word; the loop raises it
            self.fault = error

    # -- the bridge's thread -----------------------------------------------------------------------------
    @property
    def alive(self) -> bool:
        return self._gone is None and self._client.is_connected()

    def why(self) -> SmokeError:
        """Why the connection ended."""
        if self._gone is not None and getattr(self._gone, "value", 0) == _TAKEN_OVER:
            return MqttRefused(
                f"another client took over the session of {self._settings.mqtt_client_id!r} at {self.address}",
                "give each bridge a SMOKE_MQTT_CLIENT_ID of its own",
            )
        return MqttUnreachable(f"the connection to {self.address} ended: {self._gone or 'no answer'}")

    def acknowledge(self, number: int) -> bool:
        """Tells the broker that the message is safe; says whether there was still a connection to do so."""
        if not self.alive:
            return False
        self._client.ack(number, QOS)
        return True

    def close(self) -> None:
        """Sends what is acknowledged and ends the connection; the session stays on the broker."""
        deadline = time.monotonic() + _FAREWELL_S
        while self.alive and self._client.want_write() and time.monotonic() < deadline:
            time.sleep(0.005)
        self._end()

    def _end(self) -> None:
        self._client.disconnect()
        with suppress(AttributeError):  # paho looks at its thread twice, and it may have ended in between
            self._client.loop_stop()


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise SmokeError(
            f"SMOKE_MQTT_CA_FILE={ca_file} cannot be read: {getattr(error, 'strerror', None) or error}",
            "name a file with the certificate of the authority, in PEM",
        ) from None
