"""``smoke dlq``: list, show and replay the messages that were no readings.

Belongs here: options, tables, the question before a replay. Does not: reading the topic and sending messages
(``adapters.dead_letters``), reasons and corrections (``domain.dead_letters``).
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from smoke_platform.domain.dead_letters import DeadLetter, explained, parse_correction, printable
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.offsets import MessageId
from smoke_platform.domain.readings import RejectReason
from smoke_platform.settings import Settings, load_settings

if TYPE_CHECKING:
    from smoke_platform.adapters.dead_letters import LetterFilter, LetterIndex, LetterReader, ReplayReport
    from smoke_platform.adapters.kafka import DeliveryFailed

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_UNIT = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class _Moment(click.ParamType[datetime]):
    """ISO 8601 (UTC where no zone is given), or how long ago, such as ``2h``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        try:
            if ago := _AGO.fullmatch(text):
                return datetime.now(UTC) - timedelta(**{_UNIT[ago[2]]: float(ago[1])})
            moment = datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is neither a time (2026-05-01T12:00Z) nor a while ago (90s, 30m, 2h, 7d)", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--device", help="Only messages with this key."),
        click.option("--until", type=_Moment(), help="Only messages that came before this time."),
        click.option("--since", type=_Moment(), help="Only messages that came at this time or later: ISO 8601, or 2h."),
        click.option(
            "--reason",
            "reasons",
            multiple=True,
            type=click.Choice([str(reason) for reason in RejectReason]),
            help="Only this reason; more than one may be named.",
        ),
    ):
        command = option(command)
    return command


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def dlq() -> None:
    """List, show and replay the messages that were no readings (dead letters).

    \b
    Example:
      smoke dlq list --since 2h
      smoke dlq replay --reason timestamp --since 1d
    """


def _filter(
    reasons: tuple[str, ...], since: datetime | None, until: datetime | None, device: str | None
) -> LetterFilter:
    from smoke_platform.adapters.dead_letters import LetterFilter

    if since is not None and until is not None and since >= until:
        raise click.UsageError("--since is not before --until")
    return LetterFilter(frozenset(reasons), since, until, device)


def _reader(settings: Settings) -> LetterReader:
    from smoke_platform.adapters.dead_letters import LetterReader

    return LetterReader(settings.brokers, settings.topic_dead_letters)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _speaking() -> Iterator[None]:
    """Gives the remedy to an outage of the broker, which long-running programs only wait out."""
    from smoke_platform.adapters.kafka_bulk import KafkaUnreachable

    try:
        yield
    except KafkaUnreachable as error:
        raise SmokeError(
            error.message, error.remedy or "start the broker (`smoke up`), or set KAFKA_BOOTSTRAP_SERVERS to yours"
        ) from None


def _find(reader: LetterReader, filter_: LetterFilter) -> LetterIndex:
    with _speaking(), _progress("reading letters") as progress:
        return reader.find(filter_, progress=progress)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _identity_text(letter: DeadLetter) -> str:
    return str(letter.identity) if letter.identity is not None else ""


@dlq.command(name="list")
@_filters
@click.option(
    "--limit", type=click.IntRange(0, 100_000), default=20, show_default=True, help="Letters shown; all count."
)
@as_json_option
def list_letters(
    reasons: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    device: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Count the letters by reason and list them, newest first; one line a message, however often it was sent.

    \b
    Example:
      smoke dlq list --since 2h
      smoke dlq list --reason out_of_range --device hall-1 --json
    """
    from smoke_platform.adapters.dead_letters import landed_replays
    from smoke_platform.adapters.lake import Lake

    settings = load_settings()
    reader = _reader(settings)
    index = _find(reader, _filter(reasons, since, until, device))
    landed = landed_replays(Lake(settings.lake)) if len(index) else {}
    repaired = int(index.landed(landed).sum())
    rows = index.newest(limit)
    found = {(letter.partition, letter.offset): letter for letter in reader.letters(rows)}
    # A letter may have expired since the search.
    letters = [found[place] for row in rows if (place := (int(row["partition"]), int(row["offset"]))) in found]
    states = [_state(letter, landed) for letter in letters]
    counts = index.counts()
    if as_json:
        shown = [{**_facts(letter), "state": state} for letter, state in zip(letters, states, strict=True)]
        answer = {"letters": len(index), "landed": repaired, "reasons": counts, "shown": shown}
        click.echo(json.dumps(answer, indent=2))
        return
    if not counts:
        click.echo("No dead letters" + (" there." if not (reasons or since or until or device) else " are like that."))
        return
    summary = Table(box=None, pad_edge=False)
    summary.add_column("reason")
    summary.add_column("letters", justify="right")
    summary.add_column("what it means")
    for reason, count in counts.items():
        summary.add_row(reason, f"{count:,}", explained(reason)[0])
    console = Console()
    console.print(summary)
    console.print(f"{len(index):,} letters; {repaired:,} of them were replayed and have landed.\n")
    for letter, state in zip(letters, states, strict=True):
        # One line each that a pipe does not break: identities are copied from here.
        about = " ".join(filter(None, (letter.field + ":" if letter.field else "", letter.detail)))
        click.echo(
            f"{_iso(letter.append_time)}  {_identity_text(letter)}  {letter.device or '-'}  {letter.reason}"
            f"  {state}  {about}"
        )
    if len(letters) < len(index):
        click.echo(f"... {len(index) - len(letters):,} older ones; --limit shows more")


def _state(letter: DeadLetter, landed: Any) -> str:
    identity = letter.identity
    if identity is not None and identity.offset in landed.get((identity.topic_id, identity.partition), ()):
        return "landed"
    return "rejected-again" if letter.replayed_as is not None else "open"


def _facts(letter: DeadLetter) -> dict[str, Any]:
    return {
        "identity": _identity_text(letter) or None,
        "reason": letter.reason,
        "field": letter.field,
        "detail": letter.detail,
        "topic": letter.topic,
        "append_time": _iso(letter.append_time),
        "key": letter.device or None,
        "replayed_as": str(letter.replayed_as) if letter.replayed_as else None,
        "bytes": None if letter.value is None else len(letter.value),
        "letter": {"partition": letter.partition, "offset": letter.offset},
    }


def _parse_identity(text: str) -> MessageId:
    identity = MessageId.parse(text)
    if identity is None:
        raise SmokeError(
            f"{text!r} is no identity",
            "it is topic id/partition/offset, as `smoke dlq list` shows it, such as Zt3/0/17",
        )
    return identity


def _letters_of(reader: LetterReader, identity: MessageId) -> list[DeadLetter]:
    from smoke_platform.adapters.dead_letters import letters_of

    with _speaking(), _progress("looking for the letter") as progress:
        return letters_of(reader, identity, progress)


def _no_letter(identity: MessageId) -> SmokeError:
    return SmokeError(
        f"there is no dead letter {identity}",
        "`smoke dlq list` shows those there are; they expire with the topic's retention",
    )


@dlq.command()
@click.argument("identity")
@as_json_option
def show(identity: str, as_json: bool) -> None:
    """Show one letter: its facts, the message's bytes, what helps, and what became of it.

    \b
    Example:
      smoke dlq show Zt3YQ0bNTCe8y7sTq2bXfw/0/17
    """
    from smoke_platform.adapters.dead_letters import landed_reading
    from smoke_platform.adapters.lake import Lake

    settings = load_settings()
    wanted = _parse_identity(identity)
    history = _letters_of(_reader(settings), wanted)
    if not history:
        raise _no_letter(wanted)
    first, last = history[0], history[-1]
    reading = landed_reading(Lake(settings.lake), wanted)
    meaning, remedy = explained(last.reason)
    again = [letter for letter in history if letter.replayed_as is not None]
    if as_json:
        answer = {
            **_facts(last),
            "meaning": meaning,
            "remedy": remedy,
            "value_base64": _base64(first.value),
            "last_value_base64": _base64(last.value),
            "letters": [_facts(letter) for letter in history],
            "landed": None if reading is None else {name: _plain(found) for name, found in reading.items()},
        }
        click.echo(json.dumps(answer, indent=2))
        return
    for name, text in _facts(last).items():
        if name != "letter":
            click.echo(f"{name:<12} {'' if text is None else text}")
    click.echo(f"{'letter':<12} {settings.topic_dead_letters} partition {last.partition} offset {last.offset}")
    click.echo(f"\n{meaning}\n{remedy}\n")
    for letter in again:
        click.echo(f"Replayed as {letter.replayed_as} and rejected again: {letter.reason}: {letter.detail}")
    if reading is not None:
        place = MessageId(reading["topic_id"], reading["partition"], reading["offset"])
        click.echo(
            f"Replayed as {place} and landed as a reading of {reading['device_id']} at {_iso(reading['event_time'])}."
        )
    elif again:
        click.echo("No replay has landed as a reading.")
    else:
        click.echo("No replay has been judged yet (`smoke land status` shows how far landing is).")
    click.echo(f"\n{printable(first.value)}")
    if last.value != first.value:
        click.echo(f"\nAs it was replayed last:\n{printable(last.value)}")


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _plain(value: Any) -> Any:
    return _iso(value) if isinstance(value, datetime) else value


@dlq.command()
@click.argument("identities", nargs=-1, metavar="[IDENTITY]...")
@_filters
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help="Send with this field changed or added.")
@click.option("--drop", "drops", multiple=True, metavar="NAME", help="Send without this field.")
@click.option("--anyway", is_flag=True, help="Also send what would be rejected again.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
def replay(
    identities: tuple[str, ...],
    reasons: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    device: str | None,
    sets: tuple[str, ...],
    drops: tuple[str, ...],
    anyway: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send the messages of letters again, as they were or corrected; each lands once, however often it is sent.

    A message that would be rejected again is left out, and the exit code is 1. One that has landed is left out too.

    \b
    Example:
      smoke dlq replay Zt3YQ0bNTCe8y7sTq2bXfw/0/17 --set temperature_c=21.5
      smoke dlq replay --reason timestamp --since 1d --dry-run
      smoke dlq replay --reason not_finite --device hall-1 --drop co_ppm --yes
    """
    from smoke_platform.adapters.dead_letters import Replayer, landed_replays
    from smoke_platform.adapters.kafka import Cluster, DeliveryFailed, ReadingProducer, TopicMissing
    from smoke_platform.adapters.lake import Lake

    filtered = bool(reasons or since or until or device)
    if bool(identities) == filtered:
        raise click.UsageError("name identities, or say which letters by --reason, --since, --until or --device")
    correction = parse_correction(sets, drops)
    wanted = [_parse_identity(text) for text in dict.fromkeys(identities)]
    settings = load_settings()
    reader = _reader(settings)
    with Cluster(settings.brokers) as cluster:
        states = cluster.describe([settings.topic_readings])
    if settings.topic_readings not in states:
        raise TopicMissing(f"there is no topic {settings.topic_readings}", "run `smoke topics create`")

    missing: list[MessageId] = []
    chosen: Iterator[DeadLetter]
    if wanted:
        named: list[DeadLetter] = []
        for identity in wanted:
            history = _letters_of(reader, identity)
            named += history[-1:]
            missing += [] if history else [identity]
        count, chosen = len(named), iter(named)
    else:
        index = _find(reader, _filter(reasons, since, until, device))
        count, chosen = len(index), reader.letters(index.rows)
    for identity in missing:
        click.echo(f"smoke: {_no_letter(identity)}", err=True)
    if count and not (yes or dry_run):
        click.confirm(f"Replay {count:,} letters into {settings.topic_readings}?", abort=True, err=True)

    # A letter that is missing does not keep the others from being sent.
    producer = None if dry_run or not count else ReadingProducer(settings.brokers, settings.topic_readings)
    landed = landed_replays(Lake(settings.lake)) if count else {}
    replayer = Replayer(producer, states[settings.topic_readings].partitions, landed, correction, anyway=anyway)
    failure: DeliveryFailed | None = None
    try:
        with _progress("replaying") as progress:
            for number, letter in enumerate(chosen, 1):
                replayer.replay(letter)
                progress(number, count)
        replayer.finish()
    except DeliveryFailed as error:
        failure = error
    finally:
        if producer is not None:
            producer.close()
    _report(replayer.report, missing, failure, dry_run=dry_run, as_json=as_json)
    if replayer.report.left_out or missing or failure is not None:
        sys.exit(1)


def _report(
    report: ReplayReport,
    missing: list[MessageId],
    failure: DeliveryFailed | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    if as_json:
        answer = {
            "dry_run": dry_run,
            "replayed": report.acknowledged,
            "already_landed": report.already,
            "would_be_rejected_again": dict(report.hopeless),
            "refused": dict(report.refused),
            "not_acknowledged": report.sent - report.acknowledged,
            "no_such_letter": [str(identity) for identity in missing],
            "examples": report.examples,
            "failure": None if failure is None else str(failure),
        }
        click.echo(json.dumps(answer, indent=2))
        return
    done = "would be replayed" if dry_run else "replayed; landing takes them within seconds"
    click.echo(f"{report.acknowledged:,} {done}.")
    if report.already:
        click.echo(f"{report.already:,} left out: their replay has landed already.")
    if report.hopeless:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.hopeless.most_common())
        click.echo(
            f"{report.hopeless.total():,} left out: landing would reject them again ({reasons}).\n"
            "  -> correct them with --set NAME=VALUE or --drop NAME; --anyway sends them as they are",
            err=True,
        )
    for why, count in report.refused.most_common():
        click.echo(f"{count:,} left out: {why}", err=True)
    for identity, why in report.examples.items():
        click.echo(f"  {identity}: {why}", err=True)
    if failure is not None:
        click.echo(f"smoke: {failure}\n  -> run the same command again; what has landed is left out", err=True)
