"""``smoke alarms``: see the alarms and handle them.

Belongs here: options, tables, the answers on the terminal. Does not: how the alarms are known and commands travel
(``adapters.alarm_log``), words and checks (``domain.alarm_words``), what a command does (the detector).
"""

from __future__ import annotations

import getpass
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smoke_platform.domain.alarm_board import GROUPS, Wanted, is_complete, rank, states_of
from smoke_platform.domain.alarm_words import (
    age,
    duration,
    event_words,
    kind_words,
    make_command,
    moment,
    outcome,
    place,
    printable,
    state_words,
    why,
)
from smoke_platform.domain.alarms import LIVE, AlarmCommand, AlarmRecord, Event, Kind, Severity, State, Verb, Verdict
from smoke_platform.domain.errors import SmokeError
from smoke_platform.settings import Settings, load_settings

#: How long a command waits for the detector's answer.
ANSWER_S = 10.0
#: Rows that a list shows before it only counts.
MOST_ROWS = 500
_STYLES = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan"}
_ALARM_ID = re.compile(r"[0-9a-f]{20}")
_VERDICTS = {"true": Verdict.TRUE_ALARM, "false": Verdict.FALSE_ALARM, "test": Verdict.TEST, "unknown": Verdict.UNKNOWN}
#: What somebody asks of the alarm that he sees, and of no other one that may have come since.
_OF_ONE_ALARM = frozenset({Verb.ACKNOWLEDGE, Verb.RESET, Verb.SNOOZE, Verb.WAKE, Verb.VERDICT, Verb.COMMENT})

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def alarms() -> None:
    """See the alarms and handle them.

    \b
    Example:
      smoke alarms list
      smoke alarms ack kitchen-1 --by ann --reason "on my way"
    """


# -- seeing --------------------------------------------------------------------------------------------------


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--device", default="", help="Only devices whose id holds this."),
        click.option(
            "--state",
            type=click.Choice([*GROUPS, *(state.value for state in State)]),
            default="live",
            show_default=True,
            help="Only this state, or group of states.",
        ),
        click.option("--severity", type=click.Choice([each.label for each in Severity]), help="Only this one."),
        click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Only this one."),
        click.option("--site", help="Only this one."),
    ):
        command = option(command)
    return command


def _wanted(site: str | None, kind: str | None, severity: str | None, state: str, device: str) -> Wanted:
    return Wanted(states_of(state), site, None if kind is None else Kind(kind), severity, device)


@alarms.command(name="list")
@click.option("--all", "every", is_flag=True, help="Also those that are over or out of service.")
@_filters
@json_option
def list_alarms(
    every: bool, site: str | None, kind: str | None, severity: str | None, state: str, device: str, as_json: bool
) -> None:
    """List the alarms that somebody should look at, the worst first.

    \b
    Example:
      smoke alarms list
      smoke alarms list --state aside
      smoke alarms list --all --site north --json
    """
    from smoke_platform.adapters.alarm_log import AlarmLog

    wanted = _wanted(site, kind, severity, "all" if every else state, device)
    settings = load_settings()
    with AlarmLog(settings) as log:
        log.require_ready()
        found, counts, partitions = log.records(wanted), log.counts(), log.partitions or 0
    _note_unjudged(settings, partitions)
    if as_json:
        click.echo(json.dumps([_facts(record) for record in found], indent=2))
        return
    if found:
        _show_table(found[:MOST_ROWS])
    if len(found) > MOST_ROWS:
        click.echo(f"and {len(found) - MOST_ROWS:,} more: narrow the list with --site, --kind, --severity or --device")
    live = sum(number for (_, its_state, _), number in counts.items() if its_state in LIVE)
    aside = sum(counts.values()) - live
    click.echo(f"{len(found):,} shown; {live:,} live alarms, {aside:,} shelved or disabled")


def _note_unjudged(settings: Settings, partitions: int) -> None:
    """An empty list means little while nobody judges the readings."""
    import asyncio

    from smoke_platform.serving.alarms import DetectorProbe, uncertainty

    doubt = uncertainty(asyncio.run(DetectorProbe(settings).look()), partitions)
    if doubt:
        click.echo(f"note: {doubt}", err=True)


def _show_table(found: Sequence[AlarmRecord]) -> None:
    now = time.time()
    table = Table(box=None, pad_edge=False)
    for title in ("severity", "kind", "device", "site / room", "state", "since", "why", "id"):
        table.add_column(title, no_wrap=title in ("severity", "since", "id"), overflow="fold")
    for record in found:
        since = record.raised_at if record.raised_at is not None else record.at
        table.add_row(
            *(
                Text(cell, style)
                for cell, style in (
                    (record.severity.upper(), _STYLES.get(record.severity, "")),
                    (kind_words(record.kind), ""),
                    (printable(record.device_id, 40), ""),
                    (printable(place(record), 40), ""),
                    (state_words(record), ""),
                    (age(now - since), ""),
                    (why(record), ""),
                    (record.alarm_id, ""),
                )
            )
        )
    Console().print(table)


def _facts(record: AlarmRecord) -> dict[str, Any]:
    import msgspec

    facts: dict[str, Any] = msgspec.to_builtins(record)
    return facts | {"why": why(record)}


@alarms.command()
@click.argument("target", metavar="ID|DEVICE")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Only this one of a device.")
@json_option
def show(target: str, kind: str | None, as_json: bool) -> None:
    """Show an alarm, or all of a device, with the whole audit trail: what happened, when, by whom and why.

    The trail is read from Kafka, and from the lake as far as it has landed there.

    \b
    Example:
      smoke alarms show kitchen-1
      smoke alarms show 1ca4cd48cb4e2fec2daf --json
    """
    from smoke_platform.adapters.alarm_log import joined, read_lake, read_topic
    from smoke_platform.adapters.lake import Lake

    settings = load_settings()
    lake = Lake(settings.lake)
    device_id, alarm_id, partition = target, "", None
    known = _known(settings, target)
    if known is not None:
        device_id, kind, alarm_id, partition = known.device_id, known.kind.value, target, known.partition
    elif _ALARM_ID.fullmatch(target) and (landed := read_lake(lake, alarm_id=target, limit=1)):
        record = landed[0].record
        device_id, kind, alarm_id, partition = record.device_id, record.kind.value, target, record.partition
    elif target.startswith("pipeline:"):
        partition = _partition_of_group(settings, target)
    trail = joined(read_lake(lake, device_id=device_id), read_topic(settings, device_id, partition=partition))
    records = [
        entry.record
        for entry in trail
        if (kind is None or entry.record.kind == kind) and (not alarm_id or entry.record.alarm_id == alarm_id)
    ]
    if not records:
        raise SmokeError(
            f"nothing is known of {printable(target)!r}",
            "give an alarm's id or a device's: `smoke alarms list --all` shows those there are",
        )
    if as_json:
        click.echo(json.dumps([_facts(record) for record in records], indent=2))
        return
    for each in Kind:
        if of_kind := [record for record in records if record.kind is each]:
            _show_trail(of_kind)


def _known(settings: Settings, target: str) -> AlarmRecord | None:
    """The latest record of the alarm with that id, where it is one and still in Kafka."""
    from smoke_platform.adapters.alarm_log import AlarmLog

    if not _ALARM_ID.fullmatch(target):
        return None
    with AlarmLog(settings) as log:
        log.require_ready()
        return log.by_id(target)


def _partition_of_group(settings: Settings, name: str) -> int | None:
    from smoke_platform.adapters.alarm_log import AlarmLog

    with AlarmLog(settings) as log:
        log.require_ready()
        found = log.get(name, Kind.PIPELINE)
    return None if found is None else found.partition


def _show_trail(records: Sequence[AlarmRecord]) -> None:
    last = records[-1]
    evidence = last.evidence
    click.echo(f"{kind_words(last.kind)} alarm of {printable(last.device_id)}")
    measured = ", ".join(f"{name} {value:g}" for name, value in sorted(evidence.values.items()))
    for name, text in (
        ("id", last.alarm_id or "none: no alarm is standing"),
        ("state", state_words(last)),
        ("severity", f"{last.severity}, {last.peak} at its worst" if last.peak else last.severity),
        ("since", moment(last.raised_at)),
        ("where", printable(place(last))),
        ("why", why(last)),
        ("model", f"version {evidence.model_version}" if evidence.model_version else ""),
        ("rests on", _readings(last)),
        ("measured", measured),
        ("verdict", last.verdict.value.replace("_", " ") if last.verdict else ""),
    ):
        if text:
            click.echo(f"  {name:<9} {text}")
    click.echo("  trail" + ("" if is_complete(records) else "     (older records are no longer kept)"))
    for record in records:
        label = f"{record.severity} -> {record.state.value}"
        click.echo(f"    {moment(record.at):<21} {label:<24} {event_words(record)}")


def _readings(record: AlarmRecord) -> str:
    evidence = record.evidence
    if evidence.last_offset < 0:
        return ""
    return f"readings {evidence.first_offset} to {evidence.last_offset} of partition {record.partition}"


@alarms.command()
@_filters
@click.option("--for", "for_", help="End after this long, such as 10m.")
@json_option
def watch(
    site: str | None, kind: str | None, severity: str | None, state: str, device: str, for_: str | None, as_json: bool
) -> None:
    """Follow the alarms: one line for each thing that happens, until stopped.

    \b
    Example:
      smoke alarms watch
      smoke alarms watch --site north --severity critical
    """
    from smoke_platform.adapters.alarm_log import AlarmLog

    # What becomes over belongs to what a watcher wants to see, whatever the states asked for.
    wanted = _wanted(site, kind, severity, "all" if state == "live" else state, device)
    seconds = duration(for_) if for_ else float("inf")
    with AlarmLog(load_settings()) as log:
        log.require_ready()
        deadline = time.monotonic() + seconds
        seen = log.version
        click.echo(f"{len(log.records()):,} live alarms; what happens from now on:", err=True)
        told = ""
        while time.monotonic() < deadline:
            log.wait_change(seen, min(1.0, max(0.0, deadline - time.monotonic())))
            fault = log.fault
            if fault is not None and fault.message != told:
                click.echo(f"note: not current: {fault.message}", err=True)
            told = "" if fault is None else fault.message
            occurrences, gap = log.since(seen, 10_000)
            if gap:
                click.echo("note: some events are missing here; `smoke alarms list` shows what holds", err=True)
            seen = occurrences[-1].sequence if occurrences else log.version if gap else seen
            for record in wanted.chosen(occurrence.record for occurrence in occurrences):
                click.echo(json.dumps(_facts(record)) if as_json else _line(record))


def _line(record: AlarmRecord) -> str:
    where = f" ({printable(place(record))})" if place(record) else ""
    reasons = f" - {why(record)}" if record.event in (Event.RAISED, Event.ESCALATED, Event.RETURNED) else ""
    return (
        f"{moment(record.at)}  {record.severity.upper():<8} {kind_words(record.kind)}  {printable(record.device_id)}"
        f"{where}  {event_words(record)}{reasons}  [{record.state.value}]  {record.alarm_id}"
    )


# -- handling ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a person asks for, apart from the alarm."""

    verb: Verb
    by: str
    reason: str = ""
    until: float | None = None
    verdict: Verdict | None = None


def _whoami() -> str:
    """``$USER@host``: somebody is always named in the audit trail."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _handling(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--by", default=_whoami, show_default="$USER@host", help="Who asks."),
        click.option(
            "--kind",
            type=click.Choice([kind.value for kind in Kind]),
            default=Kind.FIRE.value,
            show_default=True,
            help="Which alarm of a device; an alarm's id says it itself.",
        ),
        click.argument("target", metavar="ID|DEVICE"),
    ):
        command = option(command)
    return command


_reason = click.option("--reason", default="", help="Why, for the audit trail.")
_needed_reason = click.option("--reason", required=True, help="Why, for the audit trail.")
_period = click.option("--for", "for_", required=True, help="How long: 30m, 8h, 1h30m, 2d.")


def _end_of(for_: str) -> float:
    return time.time() + duration(for_)


@alarms.command()
@click.argument("target", metavar="ID|DEVICE", required=False)
@click.option("--all-matching", is_flag=True, help="Every live alarm that the filters let through, after a question.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
@click.option("--by", default=_whoami, show_default="$USER@host", help="Who asks.")
@_reason
@_filters
def ack(
    target: str | None,
    all_matching: bool,
    yes: bool,
    by: str,
    reason: str,
    site: str | None,
    kind: str | None,
    severity: str | None,
    state: str,
    device: str,
) -> None:
    """Acknowledge an alarm: somebody has seen it. It stays until its condition is over.

    With --all-matching: every live alarm that --site, --kind, --severity and --device let through and nobody has
    acknowledged yet.

    \b
    Example:
      smoke alarms ack kitchen-1 --reason "on my way"
      smoke alarms ack --all-matching --site north --kind offline --reason "power cut"
    """
    if all_matching == (target is not None):
        raise SmokeError("which alarms?", "give either an alarm's id or a device, or --all-matching with filters")
    asked = _Asked(Verb.ACKNOWLEDGE, by, reason)
    if target is not None:
        _handle(target, kind or Kind.FIRE.value, asked)
        return
    _acknowledge_all(_wanted(site, kind, severity, state, device), asked, yes)


@alarms.command()
@_handling
@_reason
def reset(target: str, kind: str, by: str, reason: str) -> None:
    """Reset an alarm that stays after its condition is over.

    \b
    Example:
      smoke alarms reset kitchen-1 --reason "toast, aired"
    """
    _handle(target, kind, _Asked(Verb.RESET, by, reason))


@alarms.command()
@_handling
@_period
@_needed_reason
def snooze(target: str, kind: str, by: str, for_: str, reason: str) -> None:
    """Silence an alarm for a while; it wakes by itself, or if it becomes worse.

    \b
    Example:
      smoke alarms snooze kitchen-1 --for 10m --reason "somebody is there"
    """
    _handle(target, kind, _Asked(Verb.SNOOZE, by, reason, _end_of(for_)))


@alarms.command()
@_handling
@_reason
def wake(target: str, kind: str, by: str, reason: str) -> None:
    """End a snooze.

    \b
    Example:
      smoke alarms wake kitchen-1
    """
    _handle(target, kind, _Asked(Verb.WAKE, by, reason))


@alarms.command()
@_handling
@_period
@_needed_reason
def shelve(target: str, kind: str, by: str, for_: str, reason: str) -> None:
    """Take an alarm out of service until a time.

    \b
    Example:
      smoke alarms shelve kitchen-1 --for 8h --reason "the ceiling is painted"
    """
    _handle(target, kind, _Asked(Verb.SHELVE, by, reason, _end_of(for_)))


@alarms.command()
@_handling
@_reason
def unshelve(target: str, kind: str, by: str, reason: str) -> None:
    """Put a shelved alarm back in service.

    \b
    Example:
      smoke alarms unshelve kitchen-1
    """
    _handle(target, kind, _Asked(Verb.UNSHELVE, by, reason))


@alarms.command()
@_handling
@_needed_reason
def disable(target: str, kind: str, by: str, reason: str) -> None:
    """Take an alarm out of service until it is enabled again.

    \b
    Example:
      smoke alarms disable kitchen-1 --kind data_quality --reason "old model, known to lose messages"
    """
    _handle(target, kind, _Asked(Verb.DISABLE, by, reason))


@alarms.command()
@_handling
@_reason
def enable(target: str, kind: str, by: str, reason: str) -> None:
    """Put a disabled alarm back in service.

    \b
    Example:
      smoke alarms enable kitchen-1 --kind data_quality
    """
    _handle(target, kind, _Asked(Verb.ENABLE, by, reason))


@alarms.command()
@_handling
@click.argument("finding", type=click.Choice(list(_VERDICTS)))
@_needed_reason
def verdict(target: str, kind: str, by: str, finding: str, reason: str) -> None:
    """Say what was found: models are judged by it later.

    \b
    Example:
      smoke alarms verdict kitchen-1 false --reason "toast"
    """
    _handle(target, kind, _Asked(Verb.VERDICT, by, reason, verdict=_VERDICTS[finding]))


@alarms.command()
@_handling
@click.argument("text")
def comment(target: str, kind: str, by: str, text: str) -> None:
    """Add a comment to the audit trail.

    \b
    Example:
      smoke alarms comment kitchen-1 "fire brigade is informed"
    """
    _handle(target, kind, _Asked(Verb.COMMENT, by, text))


def _handle(target: str, kind: str, asked: _Asked) -> None:
    """Sends one command, waits for the detector and says what came of it; leaves with 1 unless it was done."""
    from smoke_platform.adapters.alarm_log import AlarmCommands, AlarmLog, wait_for

    settings = load_settings()
    with AlarmLog(settings) as log:
        log.require_ready()
        found = log.by_id(target) if _ALARM_ID.fullmatch(target) else None
        wanted = Kind.PIPELINE if target.startswith("pipeline:") else Kind(kind)
        if found is None:
            found = log.get(target, wanted)
        command = _command(target, wanted, found, asked)
        place_ = AlarmCommands(settings).send(command, None if found is None else found.partition)
        record = wait_for(log, command.command_id, ANSWER_S)
    if record is None:
        raise SmokeError(_unanswered(f"the command stands in Kafka (partition {place_[0]}, offset {place_[1]})"),
                         _START)  # fmt: skip
    if record.event is Event.REFUSED:
        raise SmokeError(outcome(record, asked.verb), f"smoke alarms show {record.alarm_id or record.device_id}")
    click.echo(outcome(record, asked.verb))


def _command(target: str, kind: Kind, found: AlarmRecord | None, asked: _Asked) -> AlarmCommand:
    of_one = asked.verb in _OF_ONE_ALARM
    if found is None and (of_one or _ALARM_ID.fullmatch(target)):
        raise SmokeError(
            f"{printable(target)!r} is no alarm that is known, and no device with an alarm of kind {kind.value}",
            "`smoke alarms list --all` shows those there are; --kind names another kind than fire",
        )
    return make_command(
        asked.verb,
        found.device_id if found else target,
        found.kind if found else kind,
        by=asked.by,
        now=time.time(),
        reason=asked.reason,
        until=asked.until,
        verdict=asked.verdict,
        alarm_id=found.alarm_id if found and of_one else "",
    )


def _unanswered(what: str) -> str:
    return f"no detector answered within {ANSWER_S:g} s; {what} and will be carried out as soon as one runs"


_START = "see whether one runs: smoke status; start one: smoke up, or smoke detect"


def _acknowledge_all(wanted: Wanted, asked: _Asked, yes: bool) -> None:
    from smoke_platform.adapters.alarm_log import AlarmCommands, AlarmLog

    settings = load_settings()
    with AlarmLog(settings) as log:
        log.require_ready()
        found = [record for record in log.records(wanted) if record.state in LIVE and not record.acknowledged]
        if not found:
            click.echo("no live alarm that nobody has acknowledged fits")
            return
        _show_table(found[:10])
        if len(found) > 10:
            click.echo(f"and {len(found) - 10:,} more")
        critical = sum(rank(record.severity) >= Severity.CRITICAL for record in found)
        warning = f", {critical:,} of them CRITICAL" if critical else ""
        if not yes:
            click.confirm(f"Acknowledge {len(found):,} alarms{warning}, as {asked.by}?", abort=True)
        commands = [(_command(record.device_id, record.kind, record, asked), record.partition) for record in found]
        AlarmCommands(settings).send_all(commands)
        answers = _collect(log, [command.command_id for command, _ in commands])
    refused = [record for record in answers if record.event is Event.REFUSED]
    click.echo(f"{len(answers) - len(refused):,} acknowledged")
    for record in refused[:10]:
        click.echo(outcome(record, asked.verb), err=True)
    missing = len(commands) - len(answers)
    if missing:
        raise SmokeError(_unanswered(f"{missing:,} of {len(commands):,} commands stand in Kafka unanswered"), _START)
    if refused:
        click.echo(f"{len(refused):,} refused, since their alarms have changed meanwhile", err=True)
        sys.exit(1)


def _collect(log: Any, command_ids: Sequence[str]) -> list[AlarmRecord]:
    """The answers that come while answers come: the time limit is for the pause between two of them."""
    answers: list[AlarmRecord] = []
    for command_id in command_ids:
        record = log.wait_answer(command_id, ANSWER_S)
        if record is None:
            # The others, too, have had all the time there was.
            return [found for each in command_ids if (found := log.answer(each)) is not None]
        answers.append(record)
    return answers
