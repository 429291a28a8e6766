"""Who is called silent: single devices, and groups that fell silent at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.domain import silence
from smoke_platform.domain.silence import GRACE_S, MISSED_REPORTS, judge, overdue

SITES = ["", "mill", "school"]


def fleet(quiet: list[float], site: int = 0, interval: float = 1.0, partitions: int = 1) -> dict[str, np.ndarray]:
    """Arguments of ``judge`` for devices that were heard so long ago."""
    count = len(quiet)
    return {
        "quiet_s": np.array(quiet, dtype=np.float64),
        "interval_s": np.full(count, interval),
        "offline": np.zeros(count, dtype=np.bool_),
        "partition": np.arange(count, dtype=np.int64) % partitions,
        "site": np.full(count, site, dtype=np.int64),
    }


def test_one_device_of_many_is_missed_after_two_reports_and_a_second() -> None:
    """A dead detector must be found within two reports, and not while it is merely late."""
    late = fleet([0.1] * 5 + [MISSED_REPORTS + GRACE_S])
    gone = fleet([0.1] * 5 + [MISSED_REPORTS + GRACE_S + 0.01])
    assert judge(**late, site_names=SITES).gone.tolist() == []
    found = judge(**gone, site_names=SITES)
    assert found.gone.tolist() == [5]
    assert found.groups == ()


def test_a_slow_reporter_is_given_its_own_interval() -> None:
    """A device that reports each minute must not be called dead after three seconds."""
    assert judge(**fleet([0.1, 0.2, 0.3, 119.0], interval=60.0), site_names=SITES).gone.tolist() == []
    assert judge(**fleet([0.1, 0.2, 0.3, 122.0], interval=60.0), site_names=SITES).gone.tolist() == [3]


def test_a_site_that_falls_silent_is_one_alarm() -> None:
    """A failed gateway must not wake somebody once for each of its devices."""
    quiet = fleet([3.01, 2.9, 2.1, 2.5] + [0.2] * 8, partitions=3)
    quiet["site"] = np.array([1] * 4 + [2] * 8)
    found = judge(**quiet, site_names=SITES)
    assert found.gone.tolist() == []
    assert [(group.name, group.down, group.missing, group.members) for group in found.groups] == [
        ("pipeline:mill/0", True, 4, 4)
    ]


def test_everything_silent_is_one_alarm_and_not_one_a_partition() -> None:
    """A failed producer must be one alarm, however many partitions and sites it fed."""
    found = judge(**fleet([3.5] * 12, site=1, partitions=6), site_names=SITES)
    assert [(group.name, group.members) for group in found.groups] == [("pipeline:all/0", 12)]
    assert found.gone.tolist() == []


def test_who_stays_silent_when_the_group_is_back_is_missed_alone() -> None:
    """After an outage a device that did not survive it must be found."""
    found = judge(**fleet([9.0] + [0.2] * 7), site_names=SITES, open_groups=["pipeline:partition-0"])
    assert found.gone.tolist() == [0]
    assert [(group.name, group.down) for group in found.groups] == [("pipeline:partition-0", False)]


def test_two_devices_are_no_group() -> None:
    """Two detectors with flat batteries in a small flat are two alarms, each with its room."""
    found = judge(**fleet([4.0, 4.0], site=1), site_names=SITES)
    assert found.gone.tolist() == [0, 1]
    assert found.groups == ()


def test_a_group_that_nobody_can_judge_any_more_is_over() -> None:
    """An alarm for a partition that another replica holds now must not stay open here for ever."""
    found = judge(**fleet([0.1] * 4), site_names=SITES, open_groups=["pipeline:partition-7"])
    assert [(group.name, group.down) for group in found.groups] == [("pipeline:partition-7", False)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([-np.inf, 0.0, 1.4, 1.6, 2.9, 3.1, 50.0]),
            st.booleans(),
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        max_size=20,
    )
)
def test_every_missed_device_is_told_once_alone_or_within_one_group(
    devices: list[tuple[float, bool, int, int]],
) -> None:
    """A silent device that is neither named nor covered by a group's alarm is a room without a detector."""
    quiet = np.array([entry[0] for entry in devices], dtype=np.float64)
    offline = np.array([entry[1] for entry in devices], dtype=np.bool_)
    partition = np.array([entry[2] for entry in devices], dtype=np.int64)
    site = np.array([entry[3] for entry in devices], dtype=np.int64)
    interval = np.ones(len(devices))
    found = judge(quiet, interval, offline, partition, site, SITES)
    covered = np.zeros(len(devices), dtype=np.bool_)
    for group in found.groups:
        assert group.down
        assert group.missing > silence.GROUP_SILENT * group.members
        scope = group.name.removeprefix("pipeline:").partition("/")[0]
        if scope == "all":
            mask = np.ones(len(devices), dtype=np.bool_)
        elif scope.startswith("partition-"):
            mask = partition == int(scope.removeprefix("partition-"))
        else:
            mask = site == SITES.index(scope)
        covered |= mask & (quiet > -np.inf) & ~offline
    alone = np.zeros(len(devices), dtype=np.bool_)
    alone[found.gone] = True
    missed = overdue(quiet, interval) & ~offline
    assert not (alone & covered).any()
    assert ((alone | covered) & missed).tolist() == missed.tolist()
    assert (alone & ~missed).sum() == 0
    assert set(found.back.tolist()) == set(np.flatnonzero(offline & (quiet > -np.inf) & ~overdue(quiet, interval)))
