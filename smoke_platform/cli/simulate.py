"""``smoke simulate``: what the simulated world is worth.

Belongs here: options, and how the comparison is shown. Does not: sending simulated readings (``smoke produce
simulate``), the comparison (``domain.marginals``), the page (``adapters.marginals_page``).
"""

from __future__ import annotations

from pathlib import Path

import click
import polars as pl


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def simulate() -> None:
    """Compare the simulated world with recordings.

    \b
    Example:
      smoke simulate compare smoke_detection_iot.csv --out marginals.html
    """


@simulate.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="marginals.html",
    show_default=True,
    help="The page, with plots, complete in itself.",
)
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Of the simulated world.")
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
def compare(file: Path, out: Path, seed: int, as_json: bool) -> None:
    """Lay simulated readings beside a recording in the public dataset's format (.csv, .gz or .zip).

    Clean air and smoke are compared apart: quantiles, distances of the distributions, noise, and how pairs of sensors
    are related. Copies within the recording and signals that no sensor gives are named and left out.

    \b
    Example:
      smoke simulate compare smoke_detection_iot.csv
      smoke simulate compare smoke_detection_iot.csv --json | jq .sentences
    """
    from smoke_platform.adapters.marginals_page import as_dict, marginals_page
    from smoke_platform.adapters.reports import to_json
    from smoke_platform.domain import marginals
    from smoke_platform.domain.errors import SmokeError
    from smoke_platform.domain.recordings import BadRow, RecordingFile

    def named(bad: BadRow) -> None:
        click.echo(f"{file}, {bad}", err=True)

    chunks = list(RecordingFile(file, named).chunks())
    if not chunks:
        raise SmokeError(f"{file} holds no readings")
    recorded = pl.concat(chunks)
    simulated = marginals.simulated_for_comparison(seed)
    found = marginals.compare(simulated, recorded)
    made = (
        f"{simulated.height:,} readings of {found.devices[0]} simulated devices (seed {seed}) beside "
        f"{recorded.height:,} of {file.name}"
    )
    try:
        out.write_text(marginals_page(found, made), "utf-8")
    except OSError as error:
        raise SmokeError(f"{out} cannot be written: {error.strerror or error}") from None
    if as_json:
        click.echo(to_json(as_dict(found)))
        return
    for sentence in marginals.sentences(found):
        click.echo(f"- {sentence}")
    click.echo(f"\n{out}")
