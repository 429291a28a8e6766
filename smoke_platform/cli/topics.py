"""``smoke topics``: make, list and describe the platform's topics.

Belongs here: options and tables. Does not: what the topics are (``domain.topics``) or how they are made
(``adapters.kafka``).
"""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from smoke_platform.adapters.kafka import Cluster, TopicMissing, ensure_topics, specs_for
from smoke_platform.domain.topics import compare
from smoke_platform.settings import load_settings

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def topics() -> None:
    """Create, list and describe the platform's topics.

    \b
    Example:
      smoke topics create
      smoke topics list
    """


@topics.command()
@click.option("--alter", is_flag=True, help="Also change the configuration of existing topics to what is expected.")
@as_json_option
def create(alter: bool, as_json: bool) -> None:
    """Make the topics that are missing; existing ones are compared and left alone.

    \b
    Example:
      smoke topics create
      smoke topics create --alter
    """
    report = ensure_topics(load_settings(), alter=alter)
    if as_json:
        problems = [{"topic": it.topic, "problem": it.what, "remedy": it.remedy} for it in report.problems]
        click.echo(json.dumps({"created": report.created, "altered": report.altered, "problems": problems}))
        return
    for name in report.created:
        click.echo(f"created  {name}")
    for name in report.altered:
        click.echo(f"altered  {name}")
    if not report.created and not report.altered:
        click.echo("all topics are there")
    for problem in report.problems:
        click.echo(f"note: {problem}", err=True)


@topics.command(name="list")
@as_json_option
def list_topics(as_json: bool) -> None:
    """List the platform's topics with their messages.

    \b
    Example:
      smoke topics list --json
    """
    settings = load_settings()
    rows: list[dict[str, Any]] = []
    with Cluster(settings.brokers) as cluster:
        specs = specs_for(settings)
        states = cluster.describe(spec.name for spec in specs)
        for spec in specs:
            state = states.get(spec.name)
            marks = cluster.watermarks(spec.name) if state else {}
            rows.append(
                {
                    "topic": spec.name,
                    "exists": state is not None,
                    "partitions": state.partitions if state else None,
                    "messages": sum(high - low for low, high in marks.values()) if state else None,
                    "problems": [it.what for it in compare(spec, state)] if state else [],
                    "purpose": spec.purpose,
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("topic", "partitions", "offsets kept", "state", "purpose"):
        table.add_column(title, justify="right" if title in ("partitions", "offsets kept") else "left")
    for row in rows:
        state_text = "; ".join(row["problems"]) or "ok" if row["exists"] else "missing: smoke topics create"
        numbers = [f"{row[name]:,}" if row["exists"] else "" for name in ("partitions", "messages")]
        table.add_row(row["topic"], *numbers, state_text, row["purpose"])
    Console().print(table)


@topics.command()
@click.argument("name", required=False)
@as_json_option
def describe(name: str | None, as_json: bool) -> None:
    """Show a topic's id, partitions, offsets and configuration (of the readings' topic where none is named).

    \b
    Example:
      smoke topics describe smoke_dead_letters
    """
    settings = load_settings()
    topic = name or settings.topic_readings
    wanted = {spec.name: spec for spec in specs_for(settings)}
    with Cluster(settings.brokers) as cluster:
        states = cluster.describe([topic])
        if topic not in states:
            raise TopicMissing(f"there is no topic {topic}", "`smoke topics create` makes the platform's own")
        marks = cluster.watermarks(topic)
        cluster_name = cluster.cluster_id()
    state = states[topic]
    named = sorted(wanted[topic].config) if topic in wanted else ["cleanup.policy", "retention.ms"]
    config = {key: state.config.get(key) for key in named}
    if as_json:
        click.echo(
            json.dumps(
                {
                    "topic": topic,
                    "topic_id": state.topic_id,
                    "cluster_id": cluster_name,
                    "partitions": [
                        {"partition": part, "low": low, "high": high} for part, (low, high) in marks.items()
                    ],
                    "replication": state.replication,
                    "config": config,
                    "problems": [it.what for it in compare(wanted[topic], state)] if topic in wanted else [],
                },
                indent=2,
            )
        )
        return
    click.echo(f"{topic}  id {state.topic_id}  cluster {cluster_name}  replicas {state.replication}")
    for key, value in config.items():
        click.echo(f"  {key} = {value}")
    table = Table(box=None, pad_edge=False)
    for title in ("partition", "first offset", "next offset", "kept"):
        table.add_column(title, justify="right")
    for part, (low, high) in marks.items():
        table.add_row(str(part), f"{low:,}", f"{high:,}", f"{high - low:,}")
    Console().print(table)
    if topic in wanted:
        for problem in compare(wanted[topic], state):
            click.echo(f"note: {problem}", err=True)
