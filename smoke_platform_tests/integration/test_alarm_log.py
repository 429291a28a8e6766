"""The alarm log, commands and ``smoke alarms`` on a real broker: current, never wrong, whole after a restart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from smoke_platform.adapters.alarm_log import AlarmCommands, AlarmLog, joined, read_lake, read_topic, wait_for
from smoke_platform.adapters.kafka import partition_of
from smoke_platform.adapters.lake import Lake
from smoke_platform.cli import alarms as cli
from smoke_platform.cli.main import root
from smoke_platform.domain.alarm_board import Wanted, states_of
from smoke_platform.domain.alarm_words import make_command
from smoke_platform.domain.alarms import Event, Kind, State, Verb, Verdict, alarm_key, decode_command, encode
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.lake_records import RECORD_TABLES, Message, decode_messages
from smoke_platform.domain.topics import ALARM_COMMANDS
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings
from smoke_platform_tests.alarm_parts import (
    PARTITIONS,
    Obeying,
    later,
    make_topics,
    private_broker,
    record,
    until,
    write,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[EmbeddedBroker]:
    with private_broker(tmp_path_factory.mktemp("alarms-broker"), free_port) as embedded:
        yield embedded


@pytest.fixture
def settings(tmp_path: Path, own_broker: EmbeddedBroker, settings_for: Callable[..., Settings]) -> Settings:
    made = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap_servers)
    make_topics(made)
    return made


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A function that runs ``smoke alarms`` with these arguments."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    # What the terminal is wide must not cut what is looked for.
    monkeypatch.setenv("COLUMNS", "250")

    def call(*arguments: str, typed: str = "") -> Result:
        return CliRunner().invoke(root, ["alarms", *arguments], input=typed)

    return call


def _devices(log: AlarmLog) -> set[str]:
    return {it.device_id for it in log.records()}


# -- the log -------------------------------------------------------------------------------------------------


def test_the_log_shows_what_holds_and_follows(settings: Settings, make_alarm_topic: Callable[[], str]) -> None:
    """Whoever looks sees what stands now: not a late record of a paused detector, and not the state of a minute ago."""
    topic = make_alarm_topic()
    first = record("a")
    over = later(first, Event.CLOSED, state=State.NORMAL)
    write(settings, first, over, record("b", severity="critical"), record("c", state=State.SHELVED), topic=topic)
    with AlarmLog(settings, topic=topic) as log:
        log.require_ready(30)
        assert [it.device_id for it in log.records()] == ["b"]
        assert [it.device_id for it in log.records(Wanted(states_of("aside")))] == ["c"]
        assert log.counts() == {
            (Kind.FIRE, State.ACTIVE, "critical"): 1,
            (Kind.FIRE, State.SHELVED, "high"): 1,
        }
        assert [it.record.event for it in log.history("a", Kind.FIRE)] == [Event.RAISED, Event.CLOSED]
        seen = log.version
        write(settings, first, later(over, Event.RAISED, state=State.ACTIVE, alarm_id="f" * 20), topic=topic)
        until(lambda: log.by_id("f" * 20) is not None)
        assert log.version == seen + 1, "the late record counts for nothing"
        happened, gap = log.since(seen)
        assert [it.record.alarm_id for it in happened] == ["f" * 20]
        assert not gap
        past = log.by_id(first.alarm_id)
        assert past == over, "an alarm that is over is still known by its id"
        until(lambda: log.behind == 0)


@pytest.fixture(scope="module")
def make_alarm_topic(own_broker: EmbeddedBroker) -> Callable[..., str]:
    """A function that makes a topic as that of the alarms is; of this name, where one is given."""
    import uuid

    from confluent_kafka.admin import NewTopic

    admin = AdminClient({"bootstrap.servers": own_broker.bootstrap_servers})

    def make(name: str = "") -> str:
        topic = name or f"alarms-{uuid.uuid4().hex[:8]}"
        admin.create_topics([NewTopic(topic, PARTITIONS, 1, config={"message.timestamp.type": "LogAppendTime"})])[
            topic
        ].result(30)
        until(lambda: topic in admin.list_topics(timeout=10).topics)
        return topic

    return make


def test_a_message_that_is_no_record_is_passed_over(settings: Settings, make_alarm_topic: Callable[[], str]) -> None:
    """One bad message must not hide the alarms behind it."""
    from confluent_kafka import Producer

    topic = make_alarm_topic()
    producer = Producer({"bootstrap.servers": settings.brokers})
    alarm = record("a")
    for value in (b"\xff{", b"[]", encode(alarm)):
        producer.produce(topic, value, alarm_key("a", Kind.FIRE), alarm.partition)
    assert producer.flush(30) == 0
    with AlarmLog(settings, topic=topic) as log:
        log.require_ready(30)
        assert log.records() == [alarm]
        assert log.unreadable == 2


def test_a_topic_made_anew_is_read_anew(
    settings: Settings, own_broker: EmbeddedBroker, make_alarm_topic: Callable[..., str]
) -> None:
    """Alarms of a topic that is gone must not stay for ever, and those of its successor must not be missed."""
    topic = make_alarm_topic()
    write(settings, record("old"), topic=topic)
    admin = AdminClient({"bootstrap.servers": own_broker.bootstrap_servers})
    with AlarmLog(settings, topic=topic) as log:
        log.require_ready(30)
        seen = log.version
        admin.delete_topics([topic])[topic].result(30)
        until(lambda: log.behind is None)
        assert _devices(log) == {"old"}, "until the new one is read, the last known holds"
        until(lambda: topic not in admin.list_topics(timeout=10).topics)
        make_alarm_topic(topic)
        write(settings, record("new"), topic=topic)
        until(lambda: _devices(log) == {"new"}, 60)
        until(lambda: log.behind == 0)
        assert log.since(seen)[1], "a follower is told that it has missed something"


def test_the_log_outlives_a_restart_of_the_broker(
    tmp_path: Path, free_port: Callable[[], int], settings_for: Callable[..., Settings]
) -> None:
    """After an outage the console must go on by itself, and must have said meanwhile that it is not current."""
    with private_broker(tmp_path / "broker", free_port) as embedded:
        settings = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=embedded.bootstrap_servers)
        make_topics(settings)
        write(settings, record("before"))
        with AlarmLog(settings) as log:
            log.require_ready(30)
            embedded.kill()
            until(lambda: log.fault is not None)
            assert log.behind is None
            assert _devices(log) == {"before"}
            embedded.start()
            write(settings, record("after"))
            until(lambda: _devices(log) == {"before", "after"}, 60)
            until(lambda: log.behind == 0)


def test_without_a_broker_it_says_so_and_ends_at_once(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    """A command that hangs for a minute without a word is taken to be broken."""
    with AlarmLog(settings_for(tmp_path)) as log:
        with pytest.raises(SmokeError, match="no Kafka broker") as caught:
            log.require_ready(2)
        assert "smoke up" in caught.value.remedy
        assert not log.ready


# -- commands ------------------------------------------------------------------------------------------------


def test_a_command_stands_in_the_partition_of_the_devices_readings(settings: Settings) -> None:
    """Only the detector that owns the device may carry it out; in another partition nobody would."""
    sender = AlarmCommands(settings)
    commands = [make_command(Verb.ACKNOWLEDGE, f"d{n}", Kind.FIRE, by="ann", now=time.time()) for n in range(50)]
    places = sender.send_all([(command, None) for command in commands])
    assert [partition for partition, _ in places] == [partition_of(it.device_id, PARTITIONS) for it in commands]
    group = make_command(Verb.ACKNOWLEDGE, "pipeline:north/4", Kind.PIPELINE, by="ann", now=time.time())
    assert sender.send(group, 4)[0] == 4
    with pytest.raises(SmokeError, match="partition 99"):
        sender.send(group, 99)
    consumer = Consumer({"bootstrap.servers": settings.brokers, "group.id": "looking"})
    try:
        for command, (partition, offset) in zip(commands, places, strict=True):
            consumer.assign([TopicPartition(ALARM_COMMANDS, partition, offset)])
            (message,) = consumer.consume(1, 30)
            assert message.key() == command.device_id.encode()
            assert decode_command(message.value()) == command
    finally:
        consumer.close()


def test_the_answer_of_a_command_is_found(settings: Settings) -> None:
    """Whoever acknowledges has to learn whether it was done."""
    alarm = record("answered")
    write(settings, alarm)
    with Obeying(settings) as detector, AlarmLog(settings) as log:
        detector.knows(alarm)
        log.require_ready(30)
        until(lambda: log.get("answered", Kind.FIRE) is not None)
        for identity, event in (("", Event.ACKNOWLEDGED), ("0" * 20, Event.REFUSED)):
            command = make_command(
                Verb.ACKNOWLEDGE, "answered", Kind.FIRE, by="ann", now=time.time(), alarm_id=identity
            )
            AlarmCommands(settings).send(command)
            answer = wait_for(log, command.command_id, 30)
            assert answer is not None
            assert answer.event is event
        assert wait_for(log, "never sent", 0.05) is None


# -- the audit trail -----------------------------------------------------------------------------------------


def test_the_trail_joins_lake_and_kafka(settings: Settings) -> None:
    """What was compacted away in Kafka is in the lake, what has not landed is in Kafka; an inquiry needs both."""
    (table,) = [it for it in RECORD_TABLES if it.name == "alarms"]
    lake, now = Lake(settings.lake), datetime.now(UTC)
    assert read_lake(lake, device_id="trail") == []
    raised = record("trail", site="north", at=1_700_000_000.25)
    steps = [raised, later(raised, Event.ACKNOWLEDGED, acknowledged=True, by="ann", command_id="k"),
             later(later(raised, Event.CLEARED), Event.VERDICT, verdict=Verdict.TEST)]  # fmt: skip
    write(settings, *steps)
    in_kafka = read_topic(settings, "trail")
    assert [it.record for it in in_kafka] == steps
    topic_id, partition, offset = in_kafka[0].place
    old = later(raised, Event.RAISED, revision=0)
    messages = [
        Message(partition, offset - 1, in_kafka[0].append_ms - 1, None, encode(old)),
        Message(partition, offset, in_kafka[0].append_ms, None, encode(raised)),
    ]
    rows, unreadable = decode_messages(table, topic_id, messages, now)
    assert unreadable.is_empty()
    lake.append("alarms", rows, ("append_date",))
    landed = read_lake(lake, device_id="trail")
    assert landed[1].record == raised
    assert [it.record for it in read_lake(lake, alarm_id=raised.alarm_id, limit=1)] == [raised]
    assert [it.record for it in joined(landed, in_kafka)] == [old, *steps]


# -- the command line ----------------------------------------------------------------------------------------


def test_the_list_shows_live_alarms_and_filters(settings: Settings, run: Callable[..., Result]) -> None:
    """The first thing somebody does at night."""
    odd = record("li\x1b[2Jst", severity="critical", site="list-site", room="hall")
    over = record("list-over", state=State.NORMAL, site="list-site")
    shelved = record("list-shelved", state=State.SHELVED, until=2e9, site="list-site")
    write(settings, odd, over, shelved, record("list-other"))
    shown = run("list", "--site", "list-site")
    assert shown.exit_code == 0, shown.output
    assert "li?[2Jst" in shown.output, "a device's name must not clear the screen"
    assert "CRITICAL" in shown.output
    assert "list-site / hall" in shown.output
    assert "heat: too hot for any room" in shown.output
    assert "list-over" not in shown.output
    assert "list-shelved" not in shown.output
    assert "No detector answers" in shown.stderr, "a list without a detector proves nothing"
    facts = json.loads(run("list", "--all", "--site", "list-site", "--json").stdout)
    assert {it["device_id"] for it in facts} == {"li\x1b[2Jst", "list-over", "list-shelved"}
    assert "shelved until 2033-05-18" in run("list", "--state", "aside", "--device", "LIST-").output
    assert run("list", "--severity", "loud").exit_code == 2


def test_commands_are_carried_out_and_told_in_words(settings: Settings, run: Callable[..., Result]) -> None:
    """An operator must read what was done, and a script must see by the exit code what was not."""
    alarm = record("cli-1")
    over = record("cli-2", state=State.LATCHED)
    write(settings, alarm, over)
    with Obeying(settings) as detector:
        detector.knows(alarm, over)
        for arguments, said in (
            (("ack", "cli-1", "--by", "ann"), "done: the fire alarm of cli-1 is now acknowledged"),
            (("snooze", alarm.alarm_id, "--for", "10m", "--reason", "there"), "snoozed until"),
            (("wake", "cli-1"), "is now acknowledged"),
            (("comment", "cli-1", "called them"), "the comment is noted"),
            (("verdict", "cli-1", "false", "--reason", "toast"), "the verdict is noted"),
            (("reset", "cli-2"), "is now over"),
            (("shelve", "cli-new", "--for", "8h", "--reason", "paint"), "is now shelved until"),
            (("unshelve", "cli-new"), "is now over"),
            (
                ("disable", "cli-new", "--kind", "offline", "--reason", "gone"),
                "offline alarm of cli-new is now disabled",
            ),
            (("enable", "cli-new", "--kind", "offline"), "is now over"),
        ):
            done = run(*arguments)
            assert done.exit_code == 0, (arguments, done.output, done.exception)
            assert said in done.output, (arguments, done.output)
        refused = run("ack", "cli-1")
        assert isinstance(refused.exception, SmokeError)
        assert "it is acknowledged already" in refused.exception.message
        assert detector.commands[0][1].by == "ann"
        assert "@" in detector.commands[2][1].by
        assert detector.commands[1][1].alarm_id == alarm.alarm_id
    shown = run("show", "cli-1")
    for words in ("acknowledged by ann", "snoozed by", "comment", "called them", "verdict false alarm", "refused by"):
        assert words in shown.output, (words, shown.output)
    assert "no longer kept" not in shown.output
    by_id = json.loads(run("show", alarm.alarm_id, "--json").output)
    assert [it["event"] for it in by_id][:3] == ["raised", "acknowledged", "snoozed"]
    nowhere = run("show", "no-such-device")
    assert isinstance(nowhere.exception, SmokeError)
    unknown = run("ack", "no-such-device")
    assert isinstance(unknown.exception, SmokeError)
    assert "--kind" in unknown.exception.remedy


def test_without_a_detector_the_command_is_queued_and_that_is_said(
    settings: Settings, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Acknowledged" without a detector would be a lie; to send it again would be a second command."""
    monkeypatch.setattr(cli, "ANSWER_S", 0.3)
    write(settings, record("unheard"))
    asked = run("ack", "unheard")
    assert isinstance(asked.exception, SmokeError)
    assert asked.exit_code == 1
    assert "no detector answered" in asked.exception.message
    assert f"partition {partition_of('unheard', PARTITIONS)}" in asked.exception.message
    assert "smoke detect" in asked.exception.remedy


def test_all_that_match_are_acknowledged_after_a_question(settings: Settings, run: Callable[..., Result]) -> None:
    """After a power cut nobody types a thousand names; without the question one slip silences a house."""
    flood = [record(f"bulk-{n}", Kind.OFFLINE, site="bulk", severity="critical") for n in range(300)]
    write(settings, *flood, record("bulk-fire", site="bulk"))
    with Obeying(settings) as detector:
        detector.knows(*flood)
        no = run("ack", "--all-matching", "--site", "bulk", "--kind", "offline", typed="n\n")
        assert no.exit_code == 1
        assert "300 alarms, 300 of them CRITICAL" in no.output
        assert detector.commands == []
        yes = run("ack", "--all-matching", "--site", "bulk", "--kind", "offline", typed="y\n")
        assert yes.exit_code == 0, (yes.output, yes.exception)
        assert "300 acknowledged" in yes.output
        assert {it.device_id for _, it in detector.commands} == {it.device_id for it in flood}
        again = run("ack", "--all-matching", "--site", "bulk", "--kind", "offline", "--yes")
        assert "no live alarm" in again.output
        both = run("ack", "bulk-fire", "--all-matching")
        assert isinstance(both.exception, SmokeError)


def test_watch_shows_what_happens(settings: Settings, run: Callable[..., Result]) -> None:
    """A terminal on the wall: one line an event, as it happens."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run("watch", "--device", "watched", "--for", "6s")))
    thread.start()
    number = 0
    while thread.is_alive():
        number += 1
        write(settings, record(f"watched-{number}", severity="critical"), record("not-this-one"))
        thread.join(0.5)
    (result,) = results
    assert result.exit_code == 0, result.exception
    assert "CRITICAL fire  watched-" in result.output
    assert "raised - heat: too hot for any room  [active]" in result.output
    assert "not-this-one" not in result.output
