"""The notifier: reads ``smoke_alarms`` and delivers what is to be told, for as long as it is let.

Belongs here: the loop, the consumer, the attempts' threads and deadlines, what is saved when, metrics and health. Does
not: which alarm is told when and in which words (``domain.notifications``), the channels and files
(``adapters.notifier``), options (``cli.notify``).

One thread owns the consumer and the notes. Each attempt runs in a thread of its own, which is given up at its deadline,
so that no channel waits for another. A message is saved before its first attempt and forgotten after it was accepted:
after a crash it is sent again with the same id, and never a second one of its group. The position committed to Kafka
stays behind everything that is not delivered yet, so that even without the saved state no alarm is lost.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from smoke_platform.adapters.kafka import BrokerUnreachable, Cluster, TopicMissing
from smoke_platform.adapters.notifier import (
    Channel,
    Drawer,
    NotAccepted,
    drawer_for,
    open_channels,
    read_plan,
    words_for,
)
from smoke_platform.domain.alarms import decode_record
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.notifications import Message, Plan, Post, Words
from smoke_platform.domain.topics import ALARMS
from smoke_platform.settings import Settings

log = logging.getLogger(__name__)

GROUP = "smoke-notify"
#: The loop looks at its clock at least this often.
TICK_S = 0.1
#: What was read is saved and committed this often, also when nothing is sent; less often where saving takes long.
SAVE_EVERY_S = 2.0
SHARE_OF_SAVING = 0.05
#: After a restart no message is made before what was missed is read, so that alarms that were acknowledged meanwhile
#: are not told; but a critical alarm does not wait longer for it.
LONGEST_CATCH_UP_S = 3.0
#: The first start ever reads the whole topic before it says which alarms stand.
LONGEST_FIRST_READ_S = 300.0
#: Threads of one channel that may hang in attempts that were given up; beyond it, attempts fail at once.
MOST_HANGING = 8
#: An orderly stop waits this long for attempts that are under way.
STOP_WAIT_S = 5.0
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0)


@dataclass
class ChannelCounts:
    """What became of a channel's messages since this process started; times are epoch seconds."""

    delivered: int = 0
    delivered_critical: int = 0
    failed_attempts: int = 0
    dead_letters: int = 0
    failures_in_a_row: int = 0
    last_delivery_at: float | None = None
    last_failure_at: float | None = None
    last_error: str = ""


@dataclass
class _Attempt:
    message: Message
    deadline: float
    first_critical: bool
    given_up: bool = False


@dataclass
class Standing:
    """What ``/health`` says; written by the loop, read by the server's threads."""

    state: str = "waiting"
    detail: str = ""
    lag: int = 0
    alarms: int = 0
    outdated: int = 0
    unreadable: int = 0
    failed: int = 0
    channels: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "detail": self.detail,
            "lag": self.lag,
            "alarms": self.alarms,
            "outdated": self.outdated,
            "unreadable": self.unreadable,
            "failed": self.failed,
            "channels": self.channels,
        }


class Dispatcher:
    """Sends the messages of a ``Post`` over its channels; knows nothing of Kafka.

    Args:
        save: makes the post durable; called before a new message is tried and after something was settled.
        clock: epoch seconds.
    """

    def __init__(
        self,
        post: Post,
        channels: Mapping[str, Channel],
        drawer: Drawer,
        words: Words,
        save: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.post = post
        self.counts = {name: ChannelCounts() for name in channels}
        self._channels = channels
        self._drawer = drawer
        self._words = words
        self._save = save
        self._clock = clock
        self._attempts: dict[str, list[_Attempt]] = {name: [] for name in channels}
        self._outcomes: queue.SimpleQueue[tuple[_Attempt, str | None]] = queue.SimpleQueue()

    def step(self, *, form: bool = True) -> None:
        """Takes what became of attempts, makes the messages that are due, starts the next attempts."""
        now = self._clock()
        changed = self._settle(now)
        if form and self.post.form(now):
            changed = True
        if changed:
            # Only what is saved may be sent: after a crash, nobody would know that the group's window runs.
            self._save()
        for name in self._channels:
            self._start(name, now)

    def _settle(self, now: float) -> bool:
        changed = False
        with suppress(queue.Empty):
            while True:
                attempt, why = self._outcomes.get_nowait()
                self._attempts[attempt.message.channel].remove(attempt)
                if why is None:
                    changed |= self._accepted(attempt.message, now)
                elif not attempt.given_up:
                    self._refused(attempt.message, why, now)
                    changed = True
        for name, attempts in self._attempts.items():
            for attempt in attempts:
                if not attempt.given_up and now >= attempt.deadline:
                    attempt.given_up = True
                    limit = self.post.plan.retry.deadline_s
                    self._refused(attempt.message, f"no answer within {limit:g} s", now)
                    log.warning("channel %s hangs", name)
                    changed = True
        return changed

    def _accepted(self, message: Message, now: float) -> bool:
        if not self.post.accepted(message, now):
            return False
        counts = self.counts[message.channel]
        counts.delivered += 1
        counts.delivered_critical += message.urgent
        counts.failures_in_a_row = 0
        counts.last_delivery_at = now
        return True

    def _refused(self, message: Message, why: str, now: float) -> None:
        counts = self.counts[message.channel]
        counts.failed_attempts += 1
        counts.failures_in_a_row += 1
        counts.last_failure_at, counts.last_error = now, why
        log.warning(
            "channel %s, message %s, attempt %d: %s", message.channel, message.message_id, message.attempts, why
        )
        if self.post.refused(message, why, now):
            self._drawer.add_failed(message)
            counts.dead_letters += 1
            log.error("channel %s: message %s is a dead letter now", message.channel, message.message_id)

    def _start(self, name: str, now: float) -> None:
        while (message := self.post.next_urgent(name, now)) is not None:
            self._run(message, now, first_critical=True)
        busy = any(not attempt.given_up and not attempt.first_critical for attempt in self._attempts[name])
        if not busy and (message := self.post.next_other(name, now)) is not None:
            self._run(message, now, first_critical=False)

    def _run(self, message: Message, now: float, *, first_critical: bool) -> None:
        self.post.begin(message)
        attempt = _Attempt(message, now + self.post.plan.retry.deadline_s, first_critical)
        self._attempts[message.channel].append(attempt)
        hanging = sum(each.given_up for each in self._attempts[message.channel])
        if hanging >= MOST_HANGING:
            self._outcomes.put((attempt, f"{hanging} earlier attempts still hang"))
            return
        # Written now and not in the thread, which must not see the notes change.
        title, body, tone = self._words.title(message), self._words.body(message), message.tone
        channel = self._channels[message.channel]
        # A daemon: one that hangs must not keep the process from ending.
        threading.Thread(
            target=self._send, args=(channel, attempt, title, body, tone), name=f"notify-{channel.name}", daemon=True
        ).start()

    def _send(self, channel: Channel, attempt: _Attempt, title: str, body: str, tone: str) -> None:
        why: str | None = None
        try:
            channel.send(title, body, tone)
        except NotAccepted as error:
            why = error.message or "not accepted"
        except Exception as error:  # noqa: BLE001 - a plugin's own fault is a failed attempt; its text may hold the URL
            why = f"the channel failed with {type(error).__name__}"
        self._outcomes.put((attempt, why))

    def under_way(self) -> int:
        """Attempts that may still end well."""
        return sum(not attempt.given_up for attempts in self._attempts.values() for attempt in attempts)

    def drain(self, limit_s: float) -> None:
        """Waits for attempts that are under way, starts none."""
        until = time.monotonic() + limit_s
        while self.under_way() and time.monotonic() < until:
            time.sleep(0.02)
            self._settle(self._clock())
        self._settle(self._clock())

    def view(self) -> dict[str, dict[str, Any]]:
        """Per channel: counts, pending messages and alarms that wait."""
        shown = {}
        for name, counts in self.counts.items():
            pending, waiting = self.post.pending(name)
            shown[name] = {
                **vars(counts),
                "pending": pending,
                "waiting_alarms": waiting,
                "withdrawn": self.post.withdrawn[name],
            }
        return shown


#: A group that was formed while its topic was being made may have no partitions; it is joined anew after this long.
REJOIN_S = 10.0


class Notifier:
    """The long-running program.

    Args:
        topic, group: other than the platform's, for tests and proofs.

    Raises:
        SmokeError: from the constructor, for a configuration at fault, before anything is started.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stop: threading.Event | None = None,
        topic: str = ALARMS,
        group: str = GROUP,
        channels: Mapping[str, Channel] | None = None,
        plan: Plan | None = None,
    ) -> None:
        if plan is None:
            plan, urls = read_plan(settings)
            channels = open_channels(plan, urls, settings)
        self.settings = settings
        self.plan = plan
        self.stop = stop or threading.Event()
        self.standing = Standing()
        self._topic = topic
        self._group = group
        self._drawer = drawer_for(settings)
        self._post = Post(plan)
        self._positions: dict[int, int] = {}
        self._topic_id = ""
        self._saved_at = 0.0
        self._save_pause_s = SAVE_EVERY_S
        self._changed = False
        self._committed: dict[Any, Any] = {}
        self._first = False
        self._dispatcher = Dispatcher(self._post, channels or {}, self._drawer, words_for(settings), self._save)

    def run(self) -> None:
        """Runs until ``stop`` is set.

        Raises:
            SmokeError: where another notifier works on the same folder or has taken over the group.
        """
        with self._drawer.locked(), _Server(self.settings, self.standing):
            # Before anything is waited for: a file that is not ours is a fault that a person has to mend.
            snapshot = self._drawer.load()
            topic_id = self._wait_for_topic()
            if topic_id is None:
                return
            self._topic_id = topic_id
            if snapshot is not None:
                if snapshot.topic_id == topic_id:
                    self._positions = dict(snapshot.positions)
                for orphan in self._post.restore(snapshot, topic_id, time.time()):
                    self._drawer.add_failed(orphan)
                    log.error("channel %s is no longer configured: %s kept", orphan.channel, orphan.message_id)
            while not self.stop.is_set():
                self._consume()

    def _wait_for_topic(self) -> str | None:
        attempt = 0
        while not self.stop.is_set():
            try:
                with Cluster(self.settings.brokers, timeout_s=5.0) as cluster:
                    return cluster.topic_id(self._topic)
            except (BrokerUnreachable, TopicMissing) as error:
                pause = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
                self.standing.detail = error.message
                log.warning("%s; next attempt in %g s", error.message, pause)
                self.stop.wait(pause)
                attempt += 1
        return None

    def _consume(self) -> None:
        from kafka import errors

        try:
            consumer = self._consumer()
        except errors.KafkaError as error:
            self._pause(error)
            return
        try:
            # The member that leads the group hands out what it knows of: without this, nothing of a topic just made.
            while not consumer.partitions_for_topic(self._topic) and not self.stop.wait(0.1):
                pass
            consumer.subscribe([self._topic])
            self._loop(consumer)
        except errors.FencedInstanceIdError:
            raise SmokeError(
                f"another `smoke notify run` has taken over the consumer group {self._group}",
                "run one notifier for a cluster, wherever it runs",
            ) from None
        except errors.KafkaError as error:
            self._pause(error)
        finally:
            self._dispatcher.drain(STOP_WAIT_S)
            self._save()
            with suppress(errors.KafkaError):  # the state is saved; without the commit it is the same after a restart
                if consumer.assignment():
                    consumer.commit(self._committable(), timeout_ms=3000)
            consumer.close(autocommit=False)

    def _pause(self, error: Exception) -> None:
        self.standing.state, self.standing.detail = "waiting", f"{type(error).__name__}: {error}"
        log.warning("%s; connecting anew", self.standing.detail)
        self.stop.wait(1.0)

    def _consumer(self) -> Any:
        from kafka import KafkaConsumer

        return KafkaConsumer(
            bootstrap_servers=self.settings.brokers.split(","),
            client_id="smoke-notify",
            group_id=self._group,
            # A static member: a restarted notifier has its partitions back at once, and a second one takes over from
            # the first instead of sharing with it, since groups and windows must be in one hand.
            group_instance_id=f"{self._group}-0",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=10_000,
            max_poll_records=2000,
            reconnect_backoff_max_ms=1000,
            allow_auto_create_topics=False,
            metadata_max_age_ms=10_000,
            metrics_enabled=False,
        )

    def _loop(self, consumer: Any) -> None:
        assigned: set[Any] = set()
        ends: dict[Any, int] = {}
        began = time.monotonic()
        caught_up = False
        rejoin_at = began + REJOIN_S
        while not self.stop.is_set():
            polled = consumer.poll(timeout_ms=round(TICK_S * 1000))
            now = time.time()
            if not assigned and not consumer.assignment() and time.monotonic() > rejoin_at:
                log.warning("no partition of %s was assigned for %g s: joining the group anew", self._topic, REJOIN_S)
                consumer.unsubscribe()
                consumer.subscribe([self._topic])
                rejoin_at = time.monotonic() + REJOIN_S
            if consumer.assignment() != assigned:
                assigned = set(consumer.assignment())
                if assigned:
                    # What this poll brought came from the committed position; it is read again from the saved one.
                    polled = {}
                    ends = consumer.end_offsets(list(assigned))
                    self._seek(consumer, assigned)
                    log.info("reads %d partitions of %s", len(assigned), self._topic)
                    began, caught_up = time.monotonic(), False
            for where, records in polled.items():
                for record in records:
                    self._take(record, now)
                # After a rebalance the client may begin at the committed position again: known records are ignored.
                read = records[-1].offset + 1
                self._positions[where.partition] = max(read, self._positions.get(where.partition, 0))
                self._changed = True
            if assigned and not caught_up:
                behind = any(consumer.position(each) < end for each, end in ends.items())
                limit = LONGEST_FIRST_READ_S if self._first else LONGEST_CATCH_UP_S
                caught_up = not behind or time.monotonic() - began > limit
                if caught_up:
                    self._positions.update({each.partition: consumer.position(each) for each in assigned})
                    if self._first:
                        self._first = False
                        self._post.tell_standing(now)
                        self._save()
                    log.info("caught up with %s", self._topic)
            self._dispatcher.step(form=caught_up)
            if now - self._saved_at >= self._save_pause_s and assigned and not self._first:
                self._saved_at = now
                if self._changed:
                    self._save()
                offsets = self._committable()
                if offsets != self._committed:
                    consumer.commit_async(offsets, callback=self._note_commit)
            self._show(consumer, assigned, caught_up=caught_up)

    def _seek(self, consumer: Any, assigned: set[Any]) -> None:
        """Goes to the saved positions; where there are none, to the committed ones; else to the beginning."""
        committed = {each: consumer.committed(each) for each in assigned}
        self._first = not self._positions and all(offset is None for offset in committed.values())
        lows = consumer.beginning_offsets(list(assigned))
        for each in assigned:
            wanted = self._positions.get(each.partition)
            if wanted is None:
                wanted = committed[each]
            consumer.seek(each, max(lows[each], wanted if wanted is not None else lows[each]))

    def _take(self, record: Any, now: float) -> None:
        self.standing.alarms += 1
        if record.value is None:
            return  # the key was deleted; nothing is known of the alarm any more, and nothing is to be told
        try:
            if not self._post.take(decode_record(record.value), record.partition, record.offset, now, past=self._first):
                self.standing.outdated += 1
        except SmokeError as error:
            # It stays in the topic; a record of a newer version must not keep every other alarm from being told.
            self.standing.unreadable += 1
            log.error("%s, partition %d, offset %d: %s", self._topic, record.partition, record.offset, error.message)

    def _committable(self) -> dict[Any, Any]:
        from kafka import TopicPartition
        from kafka.structs import OffsetAndMetadata

        lowest = self._post.unsettled()
        return {
            TopicPartition(self._topic, partition): OffsetAndMetadata(
                min(position, lowest.get(partition, position)), "", -1
            )
            for partition, position in self._positions.items()
        }

    def _save(self) -> None:
        if self._first or not self._topic_id:
            return  # the first read is not finished; after a crash it is the first again
        now, began = time.time(), time.monotonic()
        self._drawer.save(self._post.snapshot(self._topic_id, self._positions, now))
        self._saved_at, self._changed = now, False
        self._save_pause_s = max(SAVE_EVERY_S, (time.monotonic() - began) / SHARE_OF_SAVING)

    def _note_commit(self, offsets: Any, answer: Any) -> None:
        if isinstance(answer, Exception):
            # The saved state is what a restart goes by; the commit is its fallback and is tried again.
            log.warning("positions could not be committed: %s", answer)
        else:
            self._committed = dict(offsets)

    def _show(self, consumer: Any, assigned: set[Any], *, caught_up: bool) -> None:
        standing = self.standing
        standing.channels = self._dispatcher.view()
        lag = 0
        for each in assigned:
            high = consumer.highwater(each)
            if high is not None:
                lag += max(0, high - self._positions.get(each.partition, high))
        standing.lag = lag
        failing = [name for name, counts in self._dispatcher.counts.items() if counts.failures_in_a_row]
        if not assigned:
            standing.state, standing.detail = "waiting", "for the broker to hand out the partitions"
        elif not caught_up:
            standing.state, standing.detail = "restoring", "reading what was missed"
        elif failing:
            standing.state, standing.detail = "failing", f"channels that do not accept: {', '.join(failing)}"
        else:
            standing.state, standing.detail = "running", ""


class _Server:
    """``/health`` as JSON and ``/metrics`` for Prometheus.

    Raises:
        SmokeError: where the port is taken.
    """

    def __init__(self, settings: Settings, standing: Standing) -> None:
        drawer = drawer_for(settings)

        def facts() -> dict[str, Any]:
            standing.failed = drawer.count_failed()
            return standing.as_dict()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/health":
                    shown = facts()
                    status = 200 if shown["state"] in ("running", "restoring", "failing") else 503
                    self._answer(status, "application/json", json.dumps(shown).encode())
                elif self.path == "/metrics":
                    self._answer(200, "text/plain; version=0.0.4; charset=utf-8", metrics(facts()))
                else:
                    self._answer(404, "text/plain", b"/health and /metrics\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(ConnectionError):  # whoever asked has left
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's own name
                log.debug(format, *args)

        try:
            self._server = ThreadingHTTPServer((settings.bind_host, settings.notify_port), Handler)
        except OSError as error:
            raise SmokeError(
                f"port {settings.notify_port} of {settings.bind_host} cannot be used: {error.strerror}",
                "choose another with SMOKE_NOTIFY_PORT",
            ) from None
        self._server.daemon_threads = True

    def __enter__(self) -> _Server:
        self._thread = threading.Thread(target=self._server.serve_forever, name="notify-http", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_fault: object) -> None:
        self._server.shutdown()
        self._server.server_close()


#: Type, name, meaning and key in ``Standing.channels``; the only labels are the configured channels' names.
_CHANNEL_METRICS = (
    ("counter", "delivered", "Messages that the channel accepted", "delivered"),
    ("counter", "delivered_critical", "Of these, messages of critical alarms", "delivered_critical"),
    ("counter", "failed_attempts", "Attempts that were refused or took too long", "failed_attempts"),
    ("counter", "dead_letters", "Messages that were given up", "dead_letters"),
    ("counter", "withdrawn", "Alarms that were acknowledged or set aside before they were told", "withdrawn"),
    ("gauge", "pending", "Messages that are to be delivered", "pending"),
    ("gauge", "waiting_alarms", "Alarms that wait for their group's next message", "waiting_alarms"),
    ("gauge", "failures_in_a_row", "Failed attempts since the last good one", "failures_in_a_row"),
    ("gauge", "last_delivery_timestamp_seconds", "When the channel last accepted a message", "last_delivery_at"),
)
_COMMON_METRICS = (
    ("counter", "alarms", "Records that were read"),
    ("counter", "outdated", "Records older than the one known"),
    ("counter", "unreadable", "Records that could not be read"),
    ("gauge", "lag", "Records that are not read yet"),
    ("gauge", "failed", "Dead letters that are kept"),
)


def metrics(facts: Mapping[str, Any]) -> bytes:
    """What ``/health`` says, in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector

    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}

    class Facts(Collector):
        def collect(self) -> Iterator[Metric]:
            for kind, name, text, key in _CHANNEL_METRICS:
                family = kinds[kind](f"smoke_notify_{name}", text, labels=["channel"])
                for channel, counts in facts["channels"].items():
                    if counts[key] is not None:
                        family.add_metric([channel], counts[key])
                yield family
            for kind, name, text in _COMMON_METRICS:
                yield kinds[kind](f"smoke_notify_{name}", text, value=facts[name])
            yield GaugeMetricFamily("smoke_notify_up", "1 while alarms are read", value=facts["state"] != "waiting")

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Facts())
    return generate_latest(registry)
