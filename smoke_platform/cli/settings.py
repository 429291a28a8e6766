"""``smoke settings``: what the platform is set to, and the template of ``.env``."""

from __future__ import annotations

import json

import click

from smoke_platform.settings import example_file, load_settings


@click.command()
@click.option("--example", is_flag=True, help="Print the template that stands in .env.example.")
@click.option("--json", "as_json", is_flag=True, help="Print name and value as JSON; secrets are left out.")
def settings(example: bool, as_json: bool) -> None:
    """Show every setting and its value.

    \b
    Example:
      smoke settings
      smoke settings --example > .env
    """
    if example:
        click.echo(example_file(), nl=False)
        return
    values = load_settings().environment()
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    width = max(map(len, values))
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value}")
