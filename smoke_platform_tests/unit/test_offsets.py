"""Positions, gaps and identities, against brute-force oracles."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from smoke_platform.domain.offsets import (
    MessageId,
    OffsetRange,
    advanced,
    after,
    app_id,
    described,
    lag,
    ranges_of,
    start_points,
)

offsets = st.integers(0, 40)


@given(
    st.dictionaries(st.integers(0, 3), st.none() | offsets),
    st.dictionaries(st.integers(0, 3), st.tuples(offsets, offsets)),
)
def test_every_message_is_landed_reported_lost_or_below_the_position(
    committed: dict[int, int | None], marks: dict[int, tuple[int, int]]
) -> None:
    """After a long outage no message may go missing without being named."""
    watermarks = {number: (min(pair), max(pair)) for number, pair in marks.items()}
    points = start_points(committed, watermarks)
    assert set(points.positions) == set(watermarks)
    for number, (low, high) in watermarks.items():
        landed_before = set(range(committed.get(number) or 0)) if committed.get(number) is not None else set()
        still_there = set(range(low, high))
        will_be_read = {offset for offset in still_there if offset >= points.positions[number]}
        lost = {offset for each in points.lost if each.partition == number for offset in range(each.first, each.end)}
        ever = set(range(high)) if committed.get(number) is not None else still_there
        assert ever <= landed_before | will_be_read | lost
        assert not lost & (landed_before | will_be_read)
        assert not landed_before & will_be_read
        truncated = [entry for entry in points.beyond if entry[0] == number]
        assert bool(truncated) == ((committed.get(number) or 0) > high)
    assert all(count >= 0 for count in lag(points.positions, watermarks).values())


@given(st.lists(st.tuples(st.integers(0, 2), offsets)), st.dictionaries(st.integers(0, 2), offsets))
def test_position_is_behind_the_last_message_and_past_empty_ends(
    messages: list[tuple[int, int]], ends: dict[int, int]
) -> None:
    """Gaps that compaction and transactions leave must neither be waited for nor read again and again."""
    messages.sort(key=lambda message: message[1])
    found = after([number for number, _ in messages], [offset for _, offset in messages], ends)
    for number in {number for number, _ in messages} | set(ends):
        last = max((offset + 1 for each, offset in messages if each == number), default=0)
        assert found[number] == max(last, ends.get(number, 0))


@given(st.dictionaries(st.integers(0, 3), offsets, min_size=1), st.dictionaries(st.integers(0, 5), offsets))
def test_a_position_never_goes_back(positions: dict[int, int], further: dict[int, int]) -> None:
    """A position that went back would land its readings twice."""
    moved = advanced(positions, further)
    assert set(moved) == set(positions)
    assert all(moved[number] == max(place, further.get(number, 0)) for number, place in positions.items())


@given(st.lists(offsets))
def test_ranges_name_exactly_the_offsets(found: list[int]) -> None:
    """What is reported as missing or lost must be neither more nor less."""
    ranges = ranges_of(1, found)
    assert [offset for each in ranges for offset in range(each.first, each.end)] == sorted(set(found))
    assert all(one.end < other.first for one, other in itertools.pairwise(ranges))


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.integers(0, 9999), st.integers(0, 2**53))
def test_identity_survives_its_text(topic_id: str, partition: int, offset: int) -> None:
    """A replay's header must lead back to the very message it repairs."""
    identity = MessageId(topic_id, partition, offset)
    assert MessageId.parse(str(identity)) == identity


@given(st.text(max_size=30))
def test_other_text_is_no_identity_or_reads_back(text: str) -> None:
    """A stranger's header must not be taken for an identity, nor stop landing."""
    identity = MessageId.parse(text)
    assert identity is None or MessageId.parse(str(identity)) == identity


def test_topic_made_anew_has_another_app_id() -> None:
    """Under the old name, the new topic's first messages would be skipped in silence."""
    assert app_id("cluster", "old", 0) != app_id("cluster", "new", 0)
    assert app_id("cluster", "old", 1) != app_id("cluster", "old", 11)


def test_many_ranges_are_summed_up() -> None:
    """An operator sees what is lost without a screen full of ranges."""
    text = described([OffsetRange(number, 0, 5) for number in range(9)], most=2)
    assert text == "partition 0, offsets 0 to 4 (5); partition 1, offsets 0 to 4 (5); and 7 more"
