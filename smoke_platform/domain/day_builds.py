"""Which UTC days are to be built anew, given when the lake received rows for them and what was asked for before.

Belongs here: the decision, as a pure function of what is known. Does not: reading the Delta log
(``adapters.warehouse``), requesting runs (``orchestration.warehouse``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

#: Table of the lake -> a version of it.
Versions = Mapping[str, int]

#: A failed build is tried again after twice the time of the try before, at most this often.
LONGEST_BACK_OFF = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Rows for ``day`` became visible in ``version`` of ``table`` at ``at`` (UTC)."""

    day: date
    table: str
    version: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows that no build has seen: the latest versions that brought some, the first and the last arrival (UTC)."""

    versions: Versions
    since: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Asked:
    """The last build that was asked for: for which versions, when, and how many in a row did not come about."""

    versions: Versions
    at: datetime
    tries: int


@dataclass(frozen=True, slots=True)
class Policy:
    """When a day is due.

    Attributes:
        quiet: a day that received nothing for this long is complete for now, such as after a replay passed it.
        patience: a day that keeps receiving is built this often.
        first_patience: the same before its first build, so that a new platform shows something soon.
        limit: most builds that are under way at once.
    """

    quiet: timedelta
    patience: timedelta
    first_patience: timedelta
    limit: int


@dataclass(frozen=True, slots=True)
class DayBuilds:
    """What is remembered from one decision to the next."""

    waiting: Mapping[date, Waiting] = field(default_factory=dict)
    asked: Mapping[date, Asked] = field(default_factory=dict)

    def with_arrivals(self, arrivals: Iterable[Arrival]) -> DayBuilds:
        """Takes in rows that arrived; the order of ``arrivals`` does not matter."""
        waiting = dict(self.waiting)
        for arrival in arrivals:
            known = waiting.get(arrival.day, Waiting({}, arrival.at, arrival.at))
            version = max(known.versions.get(arrival.table, -1), arrival.version)
            waiting[arrival.day] = Waiting(
                {**known.versions, arrival.table: version}, min(known.since, arrival.at), max(known.last, arrival.at)
            )
        return replace(self, waiting=waiting)

    def without_tables(self, tables: Collection[str]) -> DayBuilds:
        """Forgets what concerns ``tables``, such as those that were made anew and count their versions from 0 again."""

        def kept(versions: Versions) -> Versions:
            return {name: version for name, version in versions.items() if name not in tables}

        waiting = {day: replace(wait, versions=kept(wait.versions)) for day, wait in self.waiting.items()}
        asked = {day: replace(ask, versions=kept(ask.versions)) for day, ask in self.asked.items()}
        return DayBuilds({day: wait for day, wait in waiting.items() if wait.versions}, asked)

    def without_built(self, built: Mapping[date, Versions], now: datetime, policy: Policy) -> DayBuilds:
        """Forgets what successful builds have seen, and requests that no longer matter.

        Args:
            built: day -> versions of the tables that its last successful build has seen.
            now: UTC.
            policy: a request is remembered for its patience at least, so that a day on which a reading trickles in
                every minute is not built every minute.
        """
        waiting = {day: wait for day, wait in self.waiting.items() if not _covers(built.get(day), wait.versions)}
        asked = {
            day: replace(ask, tries=0) if _covers(built.get(day), ask.versions) else ask
            for day, ask in self.asked.items()
            if day in waiting or now - ask.at < policy.patience
        }
        return DayBuilds(waiting, asked)

    def due(
        self, *, now: datetime, under_way: AbstractSet[date], built: AbstractSet[date], policy: Policy
    ) -> list[date]:
        """The days to build now, those that wait longest first; a day that has not begun (UTC) is left for later.

        Args:
            now: UTC.
            under_way: days whose build has been asked for and has not ended; they are left alone.
            built: days that have been built at least once.
            policy: when a day is due.
        """
        room = policy.limit - len(under_way)
        candidates = sorted(
            (wait.since, day)
            for day, wait in self.waiting.items()
            if day <= now.date() and day not in under_way and self._is_due(day, wait, now, day in built, policy)
        )
        return [day for _, day in candidates[: max(room, 0)]]

    def after_asking(self, days: Iterable[date], now: datetime) -> DayBuilds:
        """Notes that builds of ``days`` are asked for; ``Asked.tries`` counts those without a success since."""
        asked = dict(self.asked)
        for day in days:
            before = asked.get(day)
            asked[day] = Asked(self.waiting[day].versions, now, (before.tries if before else 0) + 1)
        return replace(self, asked=asked)

    @staticmethod
    def _rest(ask: Asked, policy: Policy) -> timedelta:
        longest = max(LONGEST_BACK_OFF, policy.patience)
        rest = policy.patience
        for _ in range(ask.tries - 1):
            rest = min(rest * 2, longest)
        return rest

    def _is_due(self, day: date, wait: Waiting, now: datetime, built_before: bool, policy: Policy) -> bool:
        ask = self.asked.get(day)
        if ask is not None and now - ask.at < self._rest(ask, policy):
            return False
        patience = policy.patience if built_before else min(policy.first_patience, policy.patience)
        return now - wait.last >= policy.quiet or now - wait.since >= patience


def _covers(seen: Versions | None, wanted: Versions) -> bool:
    """Whether a build that has seen these versions has seen what is wanted; ``None``: there was no build."""
    return seen is not None and all(seen.get(table, -1) >= version for table, version in wanted.items())
