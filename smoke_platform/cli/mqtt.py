"""``smoke mqtt-bridge``: take readings from an MQTT broker into Kafka.

Belongs here: signals and the last line. Does not: the bridge (``streaming.mqtt_bridge``).
"""

from __future__ import annotations

import logging
import signal
import threading

import click

from smoke_platform.settings import load_settings


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def mqtt_bridge() -> None:
    """Take readings from an MQTT broker into Kafka; each is acknowledged once Kafka has it.

    The broker, its topics and the account are settings (SMOKE_MQTT_*). Ctrl-C or SIGTERM waits for what is under way.

    \b
    Example:
      SMOKE_MQTT_URL=mqtt://127.0.0.1:1883 smoke mqtt-bridge
      SMOKE_MQTT_URL=mqtts://broker:8883 SMOKE_MQTT_TOPICS='site/+/{device_id}/readings' smoke mqtt-bridge
    """
    from smoke_platform.streaming.mqtt_bridge import Bridge

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Kafka's clients tell every attempt to connect; the bridge says what matters of it.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    bridge = Bridge(load_settings(), stop)
    bridge.run()
    click.echo(f"Stopped. {bridge.summary()}.")
