"""Copies: found by what was measured, whatever was done to names, times and one channel, and never invented."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from smoke_platform.domain import history_words
from smoke_platform.domain.history_copies import Copy, confirmed
from smoke_platform.domain.history_summary import ANCHOR_EVERY, FAMILIES, row_hashes, summarise
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform_tests.history_parts import MONDAY, history_of, landed, readings

#: Ten hours at one reading in ten seconds.
RECORDING = readings(MONDAY + timedelta(hours=2), 10 / 24, every_s=10)


def copy_of(frame: pl.DataFrame, device: str = "copy", later: timedelta = timedelta(days=2, hours=17)) -> pl.DataFrame:
    """The same readings by another name; with the usual shift they lie across midnight."""
    return frame.with_columns(pl.col("event_time") + later, device_id=pl.lit(device))


def copies_in(*frames: pl.DataFrame) -> list[Copy]:
    return list(history_of(pl.concat(frames), parts=2).copies)


def test_a_copy_with_other_times_and_temperature_is_found_whole() -> None:
    """Or half of a data set is the other half, and training and validation hold the same readings."""
    copied = copy_of(RECORDING).with_columns(temperature_c=20 + pl.int_range(pl.len()) * 0.001)
    assert copied["event_time"].dt.date().n_unique() == 2
    [found] = copies_in(RECORDING, copied, readings(device="other", every_s=10))
    assert (found.first_device, found.copy_device, found.rows) == ("d", "copy", RECORDING.height)
    assert (found.copy_from, found.copy_to) == (copied["event_time"].min(), copied["event_time"].max())
    assert found.lag == (timedelta(days=2, hours=17),) * 2
    assert found.agreeing == tuple(name for name in SENSOR_NAMES if name != "temperature_c")
    assert found.differing == ("temperature_c",)
    assert found.labels_equal == RECORDING.height
    told = history_words.copy_sentence(found, "UTC")
    assert "copy repeats d: its 3,600 readings from 2026-03-04 19:00:00 to 2026-03-05 04:59:50" in told
    assert "they differ in time (2 days, 17:00:00 later) and temperature_c" in told


@pytest.mark.parametrize("channel", [name for name in SENSOR_NAMES if name != "temperature_c"])
def test_one_changed_channel_does_not_hide_a_copy(channel: str) -> None:
    """Or it takes no more than a little noise on one sensor to pass a copy off as new."""
    chance = pl.Series(np.random.default_rng(4).normal(0, 1, RECORDING.height))
    [found] = copies_in(RECORDING, copy_of(RECORDING).with_columns(pl.col(channel) + chance))
    assert found.rows == RECORDING.height
    assert found.differing == (channel,)


def test_lost_readings_and_another_pace_do_not_hide_a_copy() -> None:
    """Or a copy that was sent over a bad line, or played at ten times the speed, counts as new."""
    kept = np.random.default_rng(6).random(RECORDING.height) > 0.004
    slower = copy_of(RECORDING).filter(pl.Series(kept))
    [lossy] = copies_in(RECORDING, slower)
    assert lossy.rows > 0.9 * slower.height
    faster = copy_of(RECORDING).with_columns(
        pl.lit(MONDAY).dt.offset_by("30h") + pl.int_range(pl.len()) * timedelta(seconds=1)
    )
    faster = faster.with_columns(event_time=pl.col("literal").cast(RECORDING.schema["event_time"])).drop("literal")
    assert sum(copy.rows for copy in copies_in(RECORDING, faster)) == RECORDING.height


def test_a_loop_repeats_its_first_pass() -> None:
    """Or a recording that is played for a week looks like seven quiet days of one device."""
    loop = [copy_of(RECORDING, "d", timedelta(hours=10 * number)) for number in range(3)]
    found = copies_in(*loop)
    assert [copy.copy_device for copy in found] == ["d", "d"]
    assert sorted(copy.lag[0] for copy in found) == [timedelta(hours=10), timedelta(hours=20)]
    assert [copy.rows for copy in found] == [RECORDING.height] * 2
    assert {copy.first_from for copy in found} == {RECORDING["event_time"].min()}


def test_a_recording_sent_twice_in_one_day_is_noticed_in_any_order() -> None:
    """Or training and validation hold the same readings under two names."""
    once = readings(every_s=20)
    copied = once.with_columns(device_id=pl.lit("copy")).sample(fraction=1.0, shuffle=True, seed=1)
    [found] = copies_in(once, copied, readings(device="other"))
    assert {found.first_device, found.copy_device} == {"copy", "d"}
    assert (found.lag, found.differing) == ((timedelta(0),) * 2, ())
    assert "they differ in nothing else" in history_words.copy_sentence(found, "UTC")


def test_what_stands_still_or_is_short_is_no_copy() -> None:
    """Or two dead sensors, or two devices in the same quiet minute, are called a forgery."""
    dead = {name: pl.lit(1.0) for name in SENSOR_NAMES}
    assert copies_in(readings(device="a", **dead), readings(device="b", **dead)) == []
    missing = {name: pl.lit(None, pl.Float64) for name in SENSOR_NAMES if name != "humidity_pct"}
    assert copies_in(readings(device="a", **missing), readings(device="b", **missing)) == []
    short = copy_of(RECORDING.slice(1000, 50))
    assert copies_in(RECORDING, short) == []


def test_marks_are_one_in_so_many_and_move_with_the_readings() -> None:
    """Or marks outgrow the lake, or those of a copy lie elsewhere in it."""
    part = landed(readings(every_s=1))
    anchors = summarise(part).anchors
    share = anchors.height / part.height / len(FAMILIES)
    assert share == pytest.approx(1 / ANCHOR_EVERY, rel=0.15)
    cut = summarise(part.slice(10_007)).anchors
    later = anchors.filter(pl.col("event_time") >= part["event_time"][10_007])
    assert cut.equals(later)


def test_hashes_are_of_values() -> None:
    """Or a reading with -0.0 or a missing sensor is no longer equal to itself."""
    rows = np.array([[0.0, np.nan], [-0.0, -np.float64("nan")], [np.nan, 0.0], [0.0, 1e-300]])
    hashes = row_hashes(rows)
    assert hashes[0] == hashes[1]
    assert len(set(hashes.tolist())) == 3
    # Stored marks are compared with those of later versions, so these numbers must never change.
    assert row_hashes(np.array([[1.0, 2.5]])).tolist() == [14_429_178_806_595_484_934]


def test_pieces_of_a_copy_that_was_found_are_not_counted_as_left() -> None:
    """Or the report says that stretches were left although each is named, and people look for copies in vain."""
    [copy] = copies_in(RECORDING, copy_of(RECORDING))
    row = {
        "first_source": copy.first_source,
        "first_device": copy.first_device,
        "copy_source": copy.copy_source,
        "copy_device": copy.copy_device,
        "copy_from": copy.copy_from,
        "copy_to": copy.copy_to,
    }
    unknown = [{**row, "copy_device": name} for name in ("x", "y")]
    likely = pl.DataFrame([row, row, unknown[0], row, *unknown, row])
    assert confirmed(likely, lambda each: copy if each["copy_device"] == "copy" else None, 2) == ([copy], 2)
