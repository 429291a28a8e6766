"""A detector's place in its group: which partitions it holds, and the checkpoints that the group keeps for it.

Belongs here: the group member, on a thread of its own, and what it has to tell the loop. Does not: reading (the member
fetches nothing), what is done with a partition (``streaming.detector``), what a checkpoint says
(``adapters.detector_state``).

The loop never waits for the member, since a poll of it takes milliseconds. So two things have to be kept apart: while
the group decides anew, nobody here may judge; and what has been judged must be acknowledged before others go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition, errors
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.structs import OffsetAndMetadata

from smoke_platform.adapters.kafka import Cluster
from smoke_platform.domain.errors import SmokeError

log = logging.getLogger(__name__)

#: A member that is not heard of for this long loses its partitions; a restarted one of the same name has them at once.
SESSION_TIMEOUT_S = 6.0
#: One look at the group: heartbeats go on between two looks, a decision is noticed at the next one.
LOOK_S = 0.05
#: First and longest pause before a replica without partitions joins the group anew.
REJOIN_S, REJOIN_MOST_S = 10.0, 600.0
#: The group itself is asked this often what it has given to this replica. A client that sees it otherwise for longer
#: than a session lasts, or waits longer for a decision than any was seen to take, is replaced: frozen for some seconds
#: while it joined, one was seen to hold for ever what others held as well.
CHECK_S, DIFFERS_S, UNDECIDED_S = 2.0, SESSION_TIMEOUT_S, 20.0
#: While both agree the question is put ever more rarely, up to this: each answer takes milliseconds from the alarms.
CHECK_MOST_S = 30.0
#: A member whose looks lie this far apart was frozen, and asks at once.
FROZEN_S = 1.0
#: How long an answer may take.
ANSWER_S = 2.0
#: How long the records under way may take to be acknowledged when partitions are given up.
FLUSH_S = 30.0

_SETTINGS: Mapping[str, Any] = {
    # The topics have the same partitions, so that ranges give a device's readings and commands to one member.
    "partition_assignment_strategy": [RangePartitionAssignor],
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "session_timeout_ms": round(SESSION_TIMEOUT_S * 1000),
    # A member learns by its heartbeat that the group decides anew, so this is part of every take-over.
    "heartbeat_interval_ms": 1_000,
    "max_poll_interval_ms": 300_000,
    "reconnect_backoff_ms": 20,
    "reconnect_backoff_max_ms": 500,
    "retry_backoff_ms": 50,
    "allow_auto_create_topics": False,
    # A group that was formed while a topic was being made has no partitions of it until the client looks again.
    "metadata_max_age_ms": 10_000,
    "metrics_enabled": False,
}


class Membership(ConsumerRebalanceListener):  # type: ignore[misc] # the package ships no types
    """One static member; a context manager that joins and, at the end, leaves its partitions to its successor.

    Args:
        brokers, group, member: of that name; two members must not share one.
        topics: all with the same partitions; the first one's committed offsets carry the checkpoints.
        flush: waits at most so many seconds until everything that was judged has been acknowledged.
        stop: ends waiting for the broker.

    Attributes:
        judging: whoever judges holds it, and looks at ``undecided`` first.
        undecided: the partitions may be somebody else's already; until ``decided`` is called.
    """

    def __init__(
        self,
        brokers: str,
        group: str,
        member: str,
        topics: Sequence[str],
        flush: Callable[[float], None],
        stop: threading.Event,
    ) -> None:
        self.judging = threading.Lock()
        self.undecided = False
        self._member = member
        self._topics = tuple(topics)
        self._flush = flush
        self._stop = stop
        self._ending = threading.Event()
        self._changes: list[dict[str, set[int]] | None] = []
        self._error: Exception | None = None
        self._rejoin_at, self._rejoin_s = 0.0, 0.0
        self._brokers, self._group = brokers, group
        self._cluster: Cluster | None = None
        self._due = threading.Event()
        self._answers: list[tuple[bool, set[tuple[str, int]]] | None] = []
        self._check_s, self._looked_at = CHECK_S, time.monotonic()
        self._check_at = self._looked_at + CHECK_S
        self._differs_from: float | None = None
        self._undecided_from: float | None = None
        self._consumer = self._new_client()
        self._thread = threading.Thread(target=self._follow, name="group", daemon=True)
        self._asking = threading.Thread(target=self._ask, name="group-check", daemon=True)

    def _new_client(self) -> Any:
        return KafkaConsumer(
            bootstrap_servers=self._brokers.split(","),
            client_id=f"smoke-detector-{self._member}",
            group_id=self._group,
            group_instance_id=self._member,
            **_SETTINGS,
        )

    def __enter__(self) -> Self:
        self._thread.start()
        self._asking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._due.set()
        self._thread.join(5.0)
        self._asking.join(5.0)
        # A static member keeps its partitions: a restart within the session's time moves nothing.
        self._consumer.close(autocommit=False, timeout_ms=2_000)
        if self._cluster is not None:
            self._cluster.close()

    # -- what the loop asks ------------------------------------------------------------------------------

    def changes(self) -> list[dict[str, set[int]] | None]:
        """What the group has decided since the last call: topic -> partitions now held, or ``None`` for all lost.

        Raises:
            SmokeError: where another member has joined under this name.
        """
        if self._error is not None:
            if isinstance(self._error, errors.FencedInstanceIdError):
                raise SmokeError(
                    f"another detector has joined under the name {self._member}",
                    "give each replica a name of its own: SMOKE_DETECTOR_MEMBER or --member",
                ) from None
            raise self._error
        found: list[dict[str, set[int]] | None] = []
        while self._changes:
            found.append(self._changes.pop(0))
        return found

    def decided(self) -> None:
        """Says that the loop has done what ``changes`` told it."""
        with self.judging:
            self.undecided = bool(self._changes)

    def committed(self, partition: int) -> str | None:
        """The text that was committed with the position of a partition."""
        found = self._consumer.committed(TopicPartition(self._topics[0], partition), metadata=True)
        return None if found is None or not found.metadata else str(found.metadata)

    def commit(self, places: Mapping[int, tuple[int, str]], *, wait: bool = False) -> None:
        """Has the group keep (position, text) of some partitions.

        Args:
            wait: until it has, or for two seconds; else it is on its way.

        Raises:
            SmokeError: where it waited and the group has not kept them; it keeps none while it decides anew.
        """
        offsets = {
            TopicPartition(self._topics[0], number): OffsetAndMetadata(position, text, -1)
            for number, (position, text) in places.items()
        }
        if not wait:
            self._consumer.commit_async(offsets)
            return
        try:
            self._consumer.commit(offsets, timeout_ms=2_000)
        except errors.KafkaError as error:
            raise SmokeError(f"the checkpoints were not kept: {error}") from None

    def first_since(self, partition: int, moment: float) -> int:
        """Offset of the first message appended at ``moment`` (epoch seconds) or later; the log's end without any."""
        place = TopicPartition(self._topics[0], partition)
        found = self._consumer.offsets_for_times({place: round(moment * 1000)})[place]
        return int(found.offset) if found is not None else int(self._consumer.end_offsets([place])[place])

    # -- the member's thread -----------------------------------------------------------------------------

    def _follow(self) -> None:
        try:
            # The member that leads the group hands out what it knows of: without this, nothing of a topic just made.
            for topic in self._topics:
                while not self._consumer.partitions_for_topic(topic) and not self._ended(LOOK_S):
                    pass
            self._consumer.subscribe(list(self._topics), listener=self)
            while not self._ended():
                self._consumer.poll(timeout_ms=round(LOOK_S * 1000))
                if not self._consumer.assignment():
                    self._rejoin()
                self._check()
        except Exception as error:  # noqa: BLE001 - raised again by changes(), in the loop
            self._error = error

    def _ended(self, wait_s: float = 0.0) -> bool:
        return self._ending.wait(wait_s) or self._stop.is_set()

    def _rejoin(self) -> None:
        """Joins anew now and then.

        A spare replica has nothing to do. But a group that was formed while the topics were being made was seen to stay
        without partitions; joining anew mends that, ever more rarely, so that a spare one disturbs nobody.
        """
        now = time.monotonic()
        if now < self._rejoin_at:
            self._ended(LOOK_S)
            return
        if self._rejoin_s:
            log.warning("no partition was assigned for %.0f s: joining the group anew", self._rejoin_s)
            self._consumer.unsubscribe()
            self._consumer.subscribe(list(self._topics), listener=self)
        self._rejoin_s = min(REJOIN_MOST_S, max(REJOIN_S, 2 * self._rejoin_s))
        self._rejoin_at = now + self._rejoin_s

    def _check(self) -> None:
        """Compares what the client believes to hold with what the group says; see ``CHECK_S``."""
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if now - before > FROZEN_S:
            self._check_s, self._check_at = CHECK_S, now
        if self._answers:
            self._compare(self._answers.pop(), now)
        elif now >= self._check_at:
            self._due.set()

    def _compare(self, answer: tuple[bool, set[tuple[str, int]]] | None, now: float) -> None:
        if answer is None:
            self._differs_from = self._undecided_from = None
            self._check_at = now + CHECK_S
            return
        decided, given = answer
        held = self._held()
        if decided and given == held:
            self._differs_from = self._undecided_from = None
            self._check_at = now + self._check_s
            self._check_s = min(CHECK_MOST_S, 2 * self._check_s)
            return
        self._check_s, self._check_at = CHECK_S, now + CHECK_S
        # While the group has not decided others may keep it waiting; only a client can tell that it is not itself.
        self._differs_from = (self._differs_from or now) if decided else None
        self._undecided_from = None if decided else (self._undecided_from or now)
        if now - (self._differs_from or now) > DIFFERS_S or now - (self._undecided_from or now) > UNDECIDED_S:
            log.warning(
                "the group gave %d places to this replica, its client holds %d: a new client", len(given), len(held)
            )
            self._replace()

    def _held(self) -> set[tuple[str, int]]:
        """The (topic, partition) that the client believes to hold."""
        return {(place.topic, place.partition) for place in self._consumer.assignment()}

    def _ask(self) -> None:
        """Puts the question when it is due, on a thread of its own: a group that decides anew must not wait for it."""
        while True:
            self._due.wait()
            if self._ended():
                return
            try:
                answer = self._given()
            except SmokeError as error:
                log.debug("%s", error)
                answer = None
            # The next question is due when this answer has been looked at.
            self._due.clear()
            self._answers.append(answer)

    def _given(self) -> tuple[bool, set[tuple[str, int]]]:
        """Whether the group has decided, and the (topic, partition) that it gave to this member.

        kafka-python asks: librdkafka ended the whole process by an assertion when the broker was killed while it
        waited for such an answer.

        Raises:
            SmokeError: where the broker does not answer.
        """
        try:
            if self._cluster is None:
                self._cluster = Cluster(self._brokers, timeout_s=ANSWER_S)
            return self._cluster.given_to(self._group, self._member)
        except Exception as error:
            if self._cluster is not None:
                self._cluster.close()
            self._cluster = None
            if isinstance(error, SmokeError):
                raise
            # Whatever goes wrong with a question must not end the one who asks.
            raise SmokeError(f"the group could not be asked: {error!r}") from None

    def _replace(self) -> None:
        """Gives up what is held and joins with a new client."""
        with self.judging:
            self.undecided = True
            self._changes.append(None)
        old, self._consumer = self._consumer, self._new_client()
        old.close(autocommit=False, timeout_ms=2_000)
        self._consumer.subscribe(list(self._topics), listener=self)
        self._differs_from = self._undecided_from = None

    # -- what the client calls, on yet another thread --------------------------------------------------------

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        if revoked:
            with self.judging:
                self.undecided = True
            # Whoever gets a partition next must find every record of it.
            self._flush(FLUSH_S)

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        with self.judging:
            self.undecided = True
            self._changes.append(None)

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        places = list(assigned)
        self._consumer.pause(*places)
        held = {topic: {place.partition for place in places if place.topic == topic} for topic in self._topics}
        with self.judging:
            self.undecided = True
            self._changes.append(held)
        self._check_s, self._check_at = CHECK_S, time.monotonic() + CHECK_S
