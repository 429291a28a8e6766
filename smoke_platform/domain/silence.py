"""Who has fallen silent: single devices, and groups that fell silent at once.

Belongs here: when a device is missed, and when many missed ones are one fault of the way to them instead of many
faults. Does not: the alarms that follow (``domain.detection``), how often a device should report (``domain.devices``).

A device that stops is found after two missed reports and a second of grace. Where more than half of a group misses a
report at that moment, something they share has failed (a gateway, a site's line, the producer): that is one alarm,
and the devices get none of their own unless they stay silent when the group is back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MISSED_REPORTS = 2.0
GRACE_S = 1.0
#: A device that missed one report and this much more counts as falling silent with its group.
GROUP_GRACE_S = 0.5
#: Fewer devices than this are no group: two detectors with flat batteries are two alarms.
SMALLEST_GROUP = 3
#: A group is silent when more than this share of it misses a report, and is back below the second share.
GROUP_SILENT = 0.5
GROUP_BACK = 0.25


@dataclass(frozen=True, slots=True)
class Group:
    """A group that is silent, or was until now.

    Attributes:
        name: the ``device_id`` of its alarm; it holds the partition, since several detectors may see parts of a site.
        partition: in which its alarm is kept.
        down: whether it is silent now.
        missing, members: how many devices miss a report, of how many.
    """

    name: str
    partition: int
    down: bool
    missing: int
    members: int


@dataclass(frozen=True, slots=True)
class Silence:
    """What was found.

    Attributes:
        gone: rows of the devices that fell silent by themselves, not yet known to be offline.
        back: rows of the devices known to be offline that have been heard again.
        groups: those that are silent, and those of ``open_groups`` that are not any more.
    """

    gone: Integers
    back: Integers
    groups: tuple[Group, ...]


def overdue(quiet_s: Floats, interval_s: Floats) -> Flags:
    """Which devices are missed.

    Args:
        quiet_s: float64 ``[n]``, seconds since each was heard while somebody listened; -inf: not to be missed.
        interval_s: float64 ``[n]``, how often each reports.
    """
    missed: Flags = quiet_s > MISSED_REPORTS * interval_s + GRACE_S
    return missed


def judge(
    quiet_s: Floats,
    interval_s: Floats,
    offline: Flags,
    partition: Integers,
    site: Integers,
    site_names: Sequence[str],
    open_groups: Collection[str] = (),
) -> Silence:
    """Who is silent, and together with whom.

    Args:
        quiet_s, interval_s: as in ``overdue``.
        offline: bool ``[n]``, devices that are known to be offline already.
        partition: int64 ``[n]``.
        site: int64 ``[n]``, index into ``site_names``; a nameless site is no group.
        open_groups: names of the groups that are known to be silent.
    """
    counted = quiet_s > -np.inf
    missed = overdue(quiet_s, interval_s)
    open_now = set(open_groups)
    groups: list[Group] = []
    left = counted & ~offline
    if open_now or (missed & left).any():
        missing = left & (quiet_s > interval_s + GROUP_GRACE_S)
        for name, home, mask in _groups(partition, site, site_names, counted):
            members = mask & left
            size, silent = int(members.sum()), int((missing & members).sum())
            known = name in open_now
            open_now.discard(name)
            limit = GROUP_BACK if known else GROUP_SILENT
            down = size >= SMALLEST_GROUP and silent > limit * size and (known or bool((missed & members).any()))
            if down or known:
                groups.append(Group(name, home, down, silent, size))
            if down:
                left = left & ~members
        # Partitions come and go: a group that nobody can judge any more is over.
        groups += [Group(name, -1, False, 0, 0) for name in sorted(open_now)]
    gone = np.flatnonzero(missed & left)
    back = np.flatnonzero(counted & offline & ~missed)
    return Silence(gone, back, tuple(groups))


def _groups(
    partition: Integers, site: Integers, site_names: Sequence[str], counted: Flags
) -> list[tuple[str, int, Flags]]:
    """(name, home partition, members) from the largest to the smallest."""
    found: list[tuple[str, int, Flags]] = []
    partitions = np.unique(partition[counted])
    if len(partitions) > 1:
        home = int(partitions[0])
        found.append((f"pipeline:all/{home}", home, counted))
    for number in np.unique(site[counted]).tolist():
        if site_names[number]:
            members = counted & (site == number)
            home = int(partition[members].min())
            found.append((f"pipeline:{site_names[number]}/{home}", home, members))
    for number in partitions.tolist():
        found.append((f"pipeline:partition-{number}", number, counted & (partition == number)))
    return found
