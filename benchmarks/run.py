"""``make bench``: runs the suites, prints their tables and writes ``benchmarks/results/<suite>.json``.

Example:
    python -m benchmarks.run            every suite
    python -m benchmarks.run landing    one of them
"""

from __future__ import annotations

import importlib
import sys

import click

from benchmarks.figures import machine, show, write
from smoke_platform.domain.errors import SmokeError

#: Suite -> what it measures. Each is the module ``benchmarks.suite_<name>`` with ``run() -> list[Figure]``.
SUITES = {
    "landing": "producer and landing rates, time until a reading is queryable",
    "serving": "/predict beside an endpoint that does nothing",
    "alarms": "from a reading to its alarm, beside a bare echo and two stream processors",
    "windows": "window statistics: both engines beside Bytewax and Pathway",
    "models": "the drift verdict beside Evidently's, a full retrain beside a grid search",
    "startup": "from `up` to the first landed reading, memory of each process",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("suites", nargs=-1, type=click.Choice(sorted(SUITES)))
def main(suites: tuple[str, ...]) -> None:
    """Run the benchmark SUITES (all where none is named).

    \b
    Example:
      python -m benchmarks.run landing
    """
    for name in suites or tuple(SUITES):
        click.echo(f"== {name}: {SUITES[name]}", err=True)
        described = machine()
        figures = importlib.import_module(f"benchmarks.suite_{name}").run()
        show(name, figures)
        click.echo(f"written: {write(name, figures, described).name}")


if __name__ == "__main__":
    try:
        main()
    except SmokeError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
