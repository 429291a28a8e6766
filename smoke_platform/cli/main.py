"""The ``smoke`` command's root: which sub-commands there are and how a fault is shown.

Belongs here: the list of commands and the way errors leave the process. Does not: any command's body (one
module a subject beside this one, imported only when called, so that ``smoke --help`` is quick).
"""

from __future__ import annotations

import importlib
import sys

import click

from smoke_platform import __version__
from smoke_platform.domain.errors import SmokeError

#: Command -> (module below smoke_platform.cli, attribute, line of help shown in the list).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": ("platform", "up", "Start the embedded platform and say where everything is."),
    "down": ("platform", "down", "Stop the embedded platform."),
    "status": ("platform", "status", "Show what runs, since when, and whether it is healthy."),
    "logs": ("platform", "logs", "Show or follow the logs of the platform's programs."),
    "doctor": ("platform", "doctor", "Check Java, ports, disk, memory and versions; name each remedy."),
    "kafka": ("platform", "kafka", "Run the embedded Kafka broker alone."),
    "topics": ("topics", "topics", "Create, list and describe the platform's topics."),
    "produce": ("produce", "produce", "Send readings: from a CSV file, a simulator or standard input."),
    "simulate": ("simulate", "simulate", "Compare the simulated world with recordings."),
    "detect": ("detect", "detect", "Raise alarms from the readings as they arrive."),
    "alarms": ("alarms", "alarms", "See the alarms, acknowledge and silence them, follow them live."),
    "mqtt-bridge": ("mqtt", "mqtt_bridge", "Take readings from an MQTT broker into Kafka."),
    "land": ("landing", "land", "Show, pause, resume or run the landing of readings in the lake."),
    "windows": ("windows", "windows", "See the windows' statistics, follow them, compute past days anew."),
    "spark": ("spark", "spark", "Land and compute windows on Spark, score the past; a cluster by hand."),
    "devices": ("devices", "devices", "List, show, set and import what is known of the devices."),
    "dlq": ("dlq", "dlq", "List, show and replay the messages that were no readings."),
    "models": ("models", "models", "List, show, audit, train, promote and roll back models."),
    "history": ("history", "history", "Tell what the whole lake says: trends, rhythms, copies, ageing."),
    "api": ("serve", "api", "Run the HTTP API and the console."),
    "notify": ("notify", "notify", "Tell people of alarms: run, test, status, failed messages."),
    "verify": ("verify", "verify", "Prove the platform end to end, on a private one or the running one."),
    "settings": ("settings", "settings", "Show every setting, its value and its meaning."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"smoke_platform.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, _, help_line) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="smoke")
def root() -> None:
    """Smoke-detection data platform.

    \b
    Example:
      smoke up              start everything on this machine
      smoke status          see what runs
      smoke verify          prove it end to end
    """


def main() -> None:
    """Runs the command line; a ``SmokeError`` becomes its message on stderr and exit code 1."""
    try:
        root()
    except SmokeError as error:
        click.echo(f"smoke: {error}", err=True)
        sys.exit(1)
