"""The notifier against a real broker, a real webhook and a mail conversation: delivery, hanging, crashes, commands."""

from __future__ import annotations

import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from smoke_platform.adapters.kafka import Cluster, ReadingProducer
from smoke_platform.adapters.notifier import AppriseChannel, Drawer, LogChannel, NotAccepted
from smoke_platform.domain.alarms import AlarmRecord, Event, Kind, State, alarm_key, encode
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.notifications import Message, Post, Words, plan_of
from smoke_platform.domain.topics import ALARMS, TopicSpec
from smoke_platform.local.broker import EmbeddedBroker
from smoke_platform.settings import Settings
from smoke_platform.streaming.notify import Dispatcher, Notifier, metrics

pytestmark = pytest.mark.integration
SMOKE = [str(Path(sys.executable).parent / "smoke")]
LIMIT_S = 120.0


def wait_for(condition: Callable[[], Any], deadline_s: float = LIMIT_S) -> Any:
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {deadline_s} s"
        time.sleep(0.02)
    return found


class Webhook:
    """A real HTTP server that keeps what it is sent; it can be told to refuse or to hang."""

    def __init__(self) -> None:
        self.received: list[tuple[float, dict[str, Any]]] = []
        self.status = 200
        self.hangs = threading.Event()
        self.release = threading.Event()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if webhook.hangs.is_set():
                    webhook.release.wait(LIMIT_S)
                if webhook.status == 200:
                    webhook.received.append((time.time(), json.loads(content)))
                self.send_response(webhook.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's own name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.port}/hook"

    def titles(self) -> list[str]:
        return [content["title"] for _, content in self.received]

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    yield server
    server.close()


def record(device: str, severity: str = "critical", position: int = 1, **other: Any) -> AlarmRecord:
    values: dict[str, Any] = {
        "kind": Kind.FIRE,
        "alarm_id": f"id-{device}",
        "event": Event.RAISED,
        "state": State.ACTIVE,
        "revision": position,
        "topic_id": "readings-1",
        "partition": 0,
        "cause": 1,
        "at": time.time(),
        "site": "hq",
        **other,
    }
    return AlarmRecord(device_id=device, severity=severity, position=position, **values)


class Alarms:
    """A topic of alarms of its own, with a producer."""

    def __init__(self, brokers: str, topic: str) -> None:
        self.topic = topic
        self.group = f"notify-{topic}"
        self._producer = ReadingProducer(brokers, topic, linger_ms=0)

    def write(self, *records: AlarmRecord) -> None:
        for each in records:
            self._producer.send(alarm_key(each.device_id, each.kind), encode(each))
        self._producer.flush(30)
        self._producer.raise_failures()

    def write_raw(self, key: bytes, value: bytes | None) -> None:
        self._producer.send(key, value)
        self._producer.flush(30)

    def close(self) -> None:
        self._producer.close()


@pytest.fixture
def alarms(broker: EmbeddedBroker, make_topic: Callable[..., str]) -> Iterator[Alarms]:
    made = Alarms(broker.bootstrap_servers, make_topic(partitions=2, cleanup_policy="compact"))
    yield made
    made.close()


class Running:
    """A notifier in a thread of this process."""

    def __init__(self, settings: Settings, alarms: Alarms) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.notifier = Notifier(settings, stop=self.stop, topic=alarms.topic, group=alarms.group)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.notifier.run()
        except SmokeError as error:
            self.error = error

    def ready(self) -> Running:
        wait_for(lambda: self.error or self.notifier.standing.state in ("running", "failing"))
        assert self.error is None
        return self

    def end(self) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def running(
    tmp_path: Path, broker: EmbeddedBroker, settings_for: Callable[..., Settings], alarms: Alarms
) -> Iterator[Callable[..., Running]]:
    """Starts a notifier of the test's topic; each has the same folder, as after a restart."""
    started: list[Running] = []

    def start(**environment: Any) -> Running:
        settings = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers, **environment)
        started.append(Running(settings, alarms))
        return started[-1]

    yield start
    for each in started:
        each.end()


# -- channels ------------------------------------------------------------------------------------------------
def test_a_webhook_gets_title_and_text(webhook: Webhook) -> None:
    """The message would arrive empty, or as something that a chat cannot show."""
    AppriseChannel("ops", webhook.url).send("CRITICAL fire: a <b> & c", "line one\nline two", "failure")
    ((_, content),) = webhook.received
    assert content["title"] == "CRITICAL fire: a <b> & c"
    assert content["message"] == "line one\nline two"
    assert content["type"] == "failure"


def test_what_a_webhook_does_not_take_is_no_delivery(webhook: Webhook) -> None:
    """A message would count as delivered that nobody got."""
    webhook.status = 503
    with pytest.raises(NotAccepted, match="503"):
        AppriseChannel("ops", webhook.url).send("title", "body", "failure")
    # Apprise itself counts a service that is marked optional as a success.
    with pytest.raises(NotAccepted):
        AppriseChannel("ops", f"{webhook.url}?optional=yes").send("title", "body", "failure")


class MailServer(socketserver.ThreadingTCPServer):
    """Stands in for a mail server: speaks as much SMTP as a delivery needs, and keeps the mails."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], str]] = []
        super().__init__(("127.0.0.1", 0), _MailConversation)


class _MailConversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, MailServer)
        sender, receivers = "", []
        self.wfile.write(b"220 test ESMTP\r\n")
        while line := self.rfile.readline():
            command = line.decode().strip()
            verb = command[:4].upper()
            if verb == "MAIL":
                sender = command
            elif verb == "RCPT":
                receivers.append(command)
            elif verb == "DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (part := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(part.decode())
                server.mails.append((sender, receivers, "".join(lines)))
            self.wfile.write(b"221 bye\r\n" if verb == "QUIT" else b"250 ok\r\n")
            if verb == "QUIT":
                return


def test_a_mail_arrives() -> None:
    """E-mail is the channel that every place has."""
    import email
    import email.header

    with MailServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        url = f"mailto://127.0.0.1:{port}?from=alarms@example.org&to=night@example.org&mode=insecure"
        AppriseChannel("mail", url).send("CRITICAL fire: kitchen-1", "since 02:13\nalarm id-1", "failure")
        server.shutdown()
    ((sender, receivers, text),) = server.mails
    assert "alarms@example.org" in sender
    assert "night@example.org" in receivers[0]
    mail = email.message_from_string(text)
    assert str(email.header.make_header(email.header.decode_header(mail["Subject"]))) == "CRITICAL fire: kitchen-1"
    parts = [part.get_payload(decode=True).decode() for part in mail.walk() if not part.is_multipart()]  # type: ignore[union-attr] # bytes, since decode
    assert any("alarm id-1" in part for part in parts)


def test_the_log_is_lines_of_json(tmp_path: Path) -> None:
    """The log is what a program reads that has no webhook."""
    channel = LogChannel("log", tmp_path / "logs" / "notifications.jsonl")
    channel.send("one", "a\nb", "info")
    channel.send("two", "c", "failure")
    lines = [json.loads(line) for line in channel.path.read_text(encoding="utf-8").splitlines()]
    assert [line["title"] for line in lines] == ["one", "two"]
    assert lines[0]["body"] == "a\nb"


# -- the whole path ------------------------------------------------------------------------------------------
def test_a_critical_alarm_reaches_the_webhook_and_others_are_gathered(
    webhook: Webhook, alarms: Alarms, running: Callable[..., Running]
) -> None:
    """The reason why there is a notifier at all."""
    program = running(SMOKE_NOTIFY_URLS=f"ops={webhook.url}").ready()
    alarms.write(record("fire-1"), *(record(f"low-{number}", "low") for number in range(20)))
    wait_for(lambda: len(webhook.received) == 2)
    assert webhook.titles() == ["CRITICAL fire: fire-1 (site hq)", "20 alarms (20 LOW) at hq"]
    alarms.write(record("low-99", "low"))
    alarms.write_raw(b"broken/fire", b"no record")
    alarms.write_raw(b"gone/fire", None)
    wait_for(lambda: program.notifier.standing.alarms == 24)
    health = httpx.get(f"http://127.0.0.1:{program.notifier.settings.notify_port}/health").json()
    assert (health["state"], health["unreadable"]) == ("running", 1)
    wait_for(lambda: program.notifier.standing.channels["ops"]["waiting_alarms"] == 1)
    text = httpx.get(f"http://127.0.0.1:{program.notifier.settings.notify_port}/metrics").text
    assert 'smoke_notify_delivered_total{channel="ops"} 2.0' in text
    assert 'smoke_notify_waiting_alarms{channel="ops"} 1.0' in text
    assert len(webhook.received) == 2
    log = program.notifier.settings.logs_dir / "notifications.jsonl"
    wait_for(lambda: "fire-1" in log.read_text(encoding="utf-8"))


def test_a_hanging_channel_delays_no_other(
    tmp_path: Path, webhook: Webhook, alarms: Alarms, running: Callable[..., Running]
) -> None:
    """One dead webhook would silence every channel."""
    hung = Webhook()
    hung.hangs.set()
    try:
        program = running(SMOKE_NOTIFY_URLS=f"dead={hung.url}?rto=600 ops={webhook.url}").ready()
        alarms.write(record("fire-1"))
        wait_for(lambda: webhook.received)
        alarms.write(record("fire-2"))
        wait_for(lambda: len(webhook.received) == 2)
        assert hung.received == []
        assert program.notifier.standing.channels["dead"]["pending"] >= 1
    finally:
        hung.close()


def test_a_refused_message_is_tried_again_with_its_id(
    webhook: Webhook, alarms: Alarms, running: Callable[..., Running]
) -> None:
    """A short outage of a chat service would swallow a fire."""
    webhook.status = 500
    program = running(SMOKE_NOTIFY_URLS=f"ops={webhook.url}").ready()
    alarms.write(record("fire-1"))
    wait_for(lambda: program.notifier.standing.channels["ops"]["failures_in_a_row"])
    wait_for(lambda: program.notifier.standing.state == "failing")
    assert "500" in program.notifier.standing.channels["ops"]["last_error"]
    webhook.status = 200
    wait_for(lambda: webhook.received)
    wait_for(lambda: program.notifier.standing.state == "running")
    assert len(webhook.received) == 1


def test_the_first_start_tells_what_stands_and_a_restart_tells_nothing_twice(
    webhook: Webhook, alarms: Alarms, running: Callable[..., Running]
) -> None:
    """An upgrade of the platform would send last week's alarms to everybody."""
    over = record("old", event=Event.CLOSED, state=State.NORMAL, position=2)
    alarms.write(record("old"), over, record("burns"))
    program = running(SMOKE_NOTIFY_URLS=f"ops={webhook.url}")
    wait_for(lambda: webhook.received)
    assert webhook.titles() == ["CRITICAL fire: burns (site hq)"]
    program.end()
    alarms.write(record("missed"))
    again = running(SMOKE_NOTIFY_URLS=f"ops={webhook.url}").ready()
    wait_for(lambda: len(webhook.received) == 2)
    assert "missed" in webhook.titles()[1]
    assert again.notifier.standing.alarms == 1


def test_without_its_state_it_goes_on_from_the_committed_position(
    webhook: Webhook, alarms: Alarms, running: Callable[..., Running]
) -> None:
    """On a new machine, alarms that were not told yet would be lost with the old disk."""
    program = running(SMOKE_NOTIFY_URLS=f"ops={webhook.url}").ready()
    alarms.write(record("one", "low"))
    wait_for(lambda: len(webhook.received) == 1)
    alarms.write(record("two", "low", site="hq"))
    wait_for(lambda: program.notifier.standing.channels["ops"]["waiting_alarms"])
    program.end()
    Drawer(program.notifier.settings.home / "notify").state_file.unlink()
    running(SMOKE_NOTIFY_URLS=f"ops={webhook.url}")
    wait_for(lambda: len(webhook.received) == 2)
    assert "two" in webhook.titles()[1]


def test_a_second_notifier_is_refused(webhook: Webhook, alarms: Alarms, running: Callable[..., Running]) -> None:
    """Two would each send a message per window."""
    running(SMOKE_NOTIFY_URLS=f"ops={webhook.url}").ready()
    second = running(SMOKE_NOTIFY_URLS=f"ops={webhook.url}")
    wait_for(lambda: second.error)
    assert "another" in str(second.error)


def test_it_survives_an_outage_of_the_broker(
    tmp_path: Path,
    webhook: Webhook,
    settings_for: Callable[..., Settings],
    free_port: Callable[[], int],
    cache_dir: Path,
) -> None:
    """After the broker's restart, fires would be told to nobody."""
    own = EmbeddedBroker(tmp_path / "broker", free_port(), free_port(), cache_dir)
    own.prepare()
    settings = settings_for(
        tmp_path, KAFKA_BOOTSTRAP_SERVERS=own.bootstrap_servers, SMOKE_NOTIFY_URLS=f"ops={webhook.url}"
    )
    stop = threading.Event()
    notifier = Notifier(settings, stop=stop)
    program = threading.Thread(target=notifier.run, daemon=True)
    program.start()  # before the broker, as all programs of the platform start together
    try:
        wait_for(lambda: "no Kafka broker" in notifier.standing.detail)
        own.start()
        with Cluster(own.bootstrap_servers) as cluster:
            cluster.create([TopicSpec(ALARMS, 2, 1, {"cleanup.policy": "compact"})])
        alarms = Alarms(own.bootstrap_servers, ALARMS)
        wait_for(lambda: notifier.standing.state == "running")
        alarms.write(record("before"))
        wait_for(lambda: len(webhook.received) == 1)
        own.kill()
        own.start()
        alarms.write(record("after"))
        wait_for(lambda: len(webhook.received) == 2)
        assert "after" in webhook.titles()[1]
        alarms.close()
    finally:
        stop.set()
        program.join(30)
        own.stop()
    assert not program.is_alive()


# -- the dispatcher alone ------------------------------------------------------------------------------------
class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Picky:
    """A channel that refuses, or hangs until it is let go."""

    def __init__(self, name: str, why: str = "", hang: threading.Event | None = None) -> None:
        self.name = name
        self.why = why
        self.hang = hang
        self.titles: list[str] = []

    def send(self, title: str, body: str, tone: str) -> None:
        if self.hang is not None:
            self.hang.wait(LIMIT_S)
        if self.why:
            raise NotAccepted(self.why)
        self.titles.append(title)


def dispatcher(folder: Path, clock: Clock, channel: Any, **retry: float) -> Dispatcher:
    document = {"channels": {"ops": {}}, "routes": [{"channels": ["ops"]}], "retry": retry}
    post = Post(plan_of(document, {"ops"}, "x"), chance=lambda: 0.0)
    words = Words(ZoneInfo("UTC"), "http://here")
    return Dispatcher(post, {"ops": channel}, Drawer(folder), words, lambda: None, clock)


def test_after_the_last_attempt_the_message_is_kept(tmp_path: Path) -> None:
    """A message that could not be delivered would vanish."""
    clock, channel = Clock(), Picky("ops", "mailbox full")
    sender = dispatcher(tmp_path, clock, channel, attempts=2)
    sender.post.take(record("fire-1"), 0, 0, clock.now)
    drawer = Drawer(tmp_path)

    def stepped() -> list[Message]:
        sender.step()
        clock.now += 1.0
        return drawer.failed()

    (kept,) = wait_for(stepped)
    assert (kept.attempts, kept.last_error) == (2, "mailbox full")
    assert kept.notes[0].device_id == "fire-1"
    assert sender.counts["ops"].dead_letters == 1
    assert sender.post.unsettled() == {}


def test_a_late_answer_settles_the_message(tmp_path: Path) -> None:
    """A slow service would get the same message again and again."""
    clock, letting = Clock(), threading.Event()
    channel = Picky("ops", hang=letting)
    sender = dispatcher(tmp_path, clock, channel, deadline_s=5)
    sender.post.take(record("fire-1"), 0, 0, clock.now)
    sender.step()
    clock.now += 5.5
    sender.step()
    assert sender.counts["ops"].last_error == "no answer within 5 s"
    letting.set()
    wait_for(lambda: channel.titles)
    wait_for(lambda: sender.step() or sender.counts["ops"].delivered)
    clock.now += 1000
    sender.step()
    assert len(channel.titles) == 1
    assert list(sender.post.messages()) == []


def test_hanging_attempts_are_bounded(tmp_path: Path) -> None:
    """A channel that hangs for hours would fill the process with threads."""
    clock, letting = Clock(), threading.Event()
    sender = dispatcher(tmp_path, clock, Picky("ops", hang=letting), deadline_s=1, attempts=100, longest_s=2)
    before = threading.active_count()
    for number in range(60):
        sender.post.take(record(f"fire-{number}"), 0, number, clock.now)
        sender.step()
        clock.now += 10
    assert threading.active_count() - before <= 10
    letting.set()


def test_metrics_are_prometheus_text_without_any_channel() -> None:
    """A scrape in the first second would fail."""
    from smoke_platform.streaming.notify import Standing

    assert b"smoke_notify_up 0.0" in metrics(Standing().as_dict())


# -- the command ---------------------------------------------------------------------------------------------
@pytest.fixture
def smoke(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``smoke notify ...`` as a person does."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        surroundings = {**os.environ, "SMOKE_HOME": str(tmp_path / "home"), **environment}
        command = [*SMOKE, "notify", *arguments]
        return subprocess.run(
            command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def test_the_test_message_says_which_channel_took_it(smoke: Any, webhook: Webhook, free_port: Any) -> None:
    """A mistyped token would be found at the first fire."""
    urls = f"ops={webhook.url} dead=json://user:hunter2@127.0.0.1:{free_port()}"
    done = smoke("test", SMOKE_NOTIFY_URLS=urls)
    assert done.returncode == 1
    assert "ops: accepted" in done.stdout
    assert "dead: NOT accepted" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
    assert webhook.titles() == ["TEST, no alarm"]
    done = smoke("test", "--channel", "ops", "--json", SMOKE_NOTIFY_URLS=urls)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"ops": {"accepted": True, "error": None}}
    assert "opps" in smoke("test", "--channel", "opps", SMOKE_NOTIFY_URLS=urls).stderr


def test_a_fault_in_the_settings_ends_the_command_before_it_starts(smoke: Any, tmp_path: Path) -> None:
    """It would run for weeks and tell nobody."""
    file = tmp_path / "notify.yaml"
    for text, named in (("channels: [", "not YAML"), ("channels: {ops: {}}\nroutes: []\n", "channels.ops")):
        file.write_text(text, encoding="utf-8")
        done = smoke("run", SMOKE_NOTIFY_CONFIG=str(file))
        assert done.returncode == 1
        assert named in done.stderr
        assert "Traceback" not in done.stderr
    done = smoke("run", SMOKE_NOTIFY_URLS="ops=nosuch://token-of-ours")
    assert done.returncode == 1
    assert "token-of-ours" not in done.stderr + done.stdout
    assert "channel ops" in done.stderr


def test_given_up_messages_are_listed_and_sent_again(
    smoke: Any, webhook: Webhook, tmp_path: Path, free_port: Any
) -> None:
    """After an outage somebody must be able to see and to deliver what was missed."""
    post = Post(plan_of({"channels": {"ops": {}}, "routes": [{"channels": ["ops"]}]}, {"ops"}, "x"))
    post.take(record("fire-1"), 0, 0, 1_700_000_000.0)
    (message,) = post.form(1_700_000_000.0)
    Drawer(tmp_path / "home" / "notify").add_failed(message)
    assert message.message_id in smoke("failed", "list").stdout
    dead = f"ops=json://127.0.0.1:{free_port()}"
    assert smoke("failed", "retry", message.message_id, SMOKE_NOTIFY_URLS=dead).returncode == 1
    assert smoke("failed", "retry", "--all", SMOKE_NOTIFY_URLS=f"ops={webhook.url}").returncode == 0
    ((_, content),) = webhook.received
    assert content["title"].startswith("Late: CRITICAL")
    assert message.message_id in content["message"]
    assert json.loads(smoke("failed", "list", "--json").stdout) == []
    assert smoke("failed", "retry", "nosuch").returncode == 1


def test_kill_in_a_flood_loses_no_fire_and_keeps_the_window(
    tmp_path: Path,
    webhook: Webhook,
    broker: EmbeddedBroker,
    smoke: Any,
    free_port: Callable[[], int],
) -> None:
    """kill -9 in the middle: each critical alarm is named, and no group gets a second message in its window."""
    with Cluster(broker.bootstrap_servers) as cluster:
        cluster.delete([ALARMS])
        cluster.create([TopicSpec(ALARMS, 3, 1, {"cleanup.policy": "compact"})])
    alarms = Alarms(broker.bootstrap_servers, ALARMS)
    port = free_port()
    environment = {
        "SMOKE_HOME": str(tmp_path / "home"),
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "SMOKE_NOTIFY_PORT": str(port),
        "SMOKE_NOTIFY_URLS": f"ops={webhook.url}",
    }
    programs: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with (tmp_path / "log").open("ab") as log:
            programs.append(
                subprocess.Popen(
                    [*SMOKE, "notify", "run"], env={**os.environ, **environment}, cwd=tmp_path, stdout=log, stderr=log
                )
            )

    try:
        start()
        wait_for(lambda: "running" in smoke("status", **environment).stdout)
        critical = []
        number = 0
        for burst in range(4):
            for _ in range(100):
                number += 1
                severity = "critical" if number % 20 == 0 else "low"
                if severity == "critical":
                    critical.append(f"id-d{number}")
                alarms.write(record(f"d{number}", severity, site=f"s{number % 2}"))
            if burst in (0, 2):
                # The first time its group's message is out, the second time it may be under way.
                wait_for(lambda: any("LOW" in title for title in webhook.titles()))
                programs[-1].send_signal(signal.SIGKILL)
                programs[-1].wait(10)
                start()
        wanted = set(critical)
        wait_for(lambda: wanted <= set(re.findall(r"id-d\d+", _texts(webhook))))
        wait_for(lambda: json.loads(smoke("status", "--json", **environment).stdout)["lag"] == 0)
        summaries = {
            (re.findall(r" at (s\d)", content["title"])[0], _message_id(content))
            for _, content in webhook.received
            if "LOW" in content["title"]
        }
        assert Counter(site for site, _ in summaries) == {"s0": 1, "s1": 1}
        programs[-1].send_signal(signal.SIGTERM)
        assert programs[-1].wait(30) == 0, (tmp_path / "log").read_text(encoding="utf-8")
    finally:
        for program in programs:
            program.kill()
            program.wait(10)
        alarms.close()
        with Cluster(broker.bootstrap_servers) as cluster:
            cluster.delete([ALARMS])


def test_a_small_flood_is_proved(
    tmp_path: Path, broker: EmbeddedBroker, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof itself would be wrong, or alarms would be lost or told twice between two runs of it."""
    from proofs import suite_flood
    from proofs.suite_flood import flood

    # How fast is for the proof to say, on a machine that does nothing else.
    monkeypatch.setattr(suite_flood, "CRITICAL_LIMIT_S", 120.0)
    with Cluster(broker.bootstrap_servers) as cluster:
        cluster.delete([ALARMS])
        cluster.create([TopicSpec(ALARMS, 3, 1, {"message.timestamp.type": "LogAppendTime"})])
    settings = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap_servers, SMOKE_KAFKA_PARTITIONS=3)
    try:
        found = flood(settings, seed=11, kills=1, count=1000, seconds=12.0, say=lambda _text: None)
    finally:
        with Cluster(broker.bootstrap_servers) as cluster:
            cluster.delete([ALARMS])
    assert found["ok"], found
    assert found["most_summaries_in_a_window"] == 1
    assert found["critical"] == 10


def _texts(webhook: Webhook) -> str:
    return "\n".join(content["message"] for _, content in webhook.received)


def _message_id(content: dict[str, Any]) -> str:
    return re.findall(r"Message ([0-9a-f]{16})", content["message"])[0]
