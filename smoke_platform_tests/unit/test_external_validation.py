"""External validation: what a recording is as readings, who heard a fire first, and what a broken folder is told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke_platform.adapters import external_validation, external_validation_page
from smoke_platform.adapters.nist_recordings import read_folder
from smoke_platform.cli.main import root
from smoke_platform.domain import external_validation as ev
from smoke_platform.domain import features
from smoke_platform.domain.errors import SmokeError
from smoke_platform.domain.external_validation import AlarmKind, Channel, CommercialAlarm, Heard, Place, Quantity
from smoke_platform.domain.levels import smoke_of_obscuration
from smoke_platform.domain.readings import parse_reading
from smoke_platform_tests.fire_tests import (
    TIMES,
    air,
    room,
    smoke_from,
    warming,
    write_activations,
    write_fire,
    write_recording,
)


def validated(folder: Path) -> ev.Validation:
    """With the rules alone."""
    found = read_folder(folder)
    return ev.validate(found.places, found.alarms, None, "the rules alone")


def pairs_of(folder: Path) -> dict[str, ev.Pair]:
    return {f"{pair.alarm.test}-{pair.alarm.name}": pair for pair in validated(folder).pairs}


def place(**channels: list[Channel]) -> Place:
    return Place("T", "A", np.array(TIMES), {Quantity(name): tuple(found) for name, found in channels.items()})


def channel(name: str, signal) -> Channel:
    values = [signal(time) for time in TIMES]
    return Channel(name, np.array([math.nan if value is None else value for value in values]))


# -- mapping -------------------------------------------------------------------------------------------------------


def test_an_optical_density_is_the_mass_that_the_rules_take_it_for() -> None:
    """The same smoke would count as more or less in a recording than in the limits of the rules."""
    # 0.1 dB/m is 0.01 1/m of the decadic logarithm.
    assert ev.smoke_mass(np.array([0.01]))[0] == pytest.approx(smoke_of_obscuration(0.1))
    assert ev.smoke_mass(np.array([0.01]))[0] == pytest.approx(2_646.7, rel=1e-4)
    assert ev.smoke_mass(np.array([-0.02]))[0] == 0


def test_sensors_end_where_a_device_s_do_and_say_nothing_of_what_was_not_measured() -> None:
    """A fire room of 500 degC would be refused as no reading, and a dead channel would be a value."""
    device = ev.device_of(
        place(
            smoke=[channel("SMA_1", smoke_from(10, 0.5))],
            temperature=[channel("TCA_1", lambda time: 20 + 5 * time)],
            co=[channel("GASA_1", lambda time: time * 0.02 if time != 30 else None)],
        )
    )
    readings = [reading for _, reading in ev.readings_of(device)]
    last = readings[-1].sensors
    assert (last["temperature_c"], last["pm2_5"], last["nc0_5"], last["co_ppm"]) == (125, 30_000, 60_000, 5_000)
    assert last["pm1_0"] <= last["pm2_5"]
    assert last["nc2_5"] <= last["nc1_0"] <= last["nc0_5"]
    assert set(last) == {"temperature_c", "pm1_0", "pm2_5", "nc0_5", "nc1_0", "nc2_5", "co_ppm"}
    assert [r for r in readings if "co_ppm" not in r.sensors] == [readings[300 + 15]]
    for reading in readings:
        parse_reading(reading.to_json())


def test_the_first_sample_is_held_for_ten_minutes_at_the_device_s_own_interval() -> None:
    """The baselines would be cold at ignition, or an alarm before it could not be seen."""
    times = np.array(TIMES) + 1.0
    device = ev.device_of(Place("T", "A", times, {Quantity.TEMPERATURE: (channel("TCA_1", warming(10)),)}))
    found = ev.readings_of(device)
    moments = [moment for moment, _ in found]
    assert moments[0] == -599.0
    assert set(np.diff(moments)) == {2.0}
    held = [reading.sensors for moment, reading in found if moment < 1]
    assert len(held) == 300
    assert all(values == found[300][1].sensors for values in held)
    # A recording that begins before ignition needs less of it.
    earlier = Place("T", "A", times - 101, {Quantity.TEMPERATURE: (channel("TCA_1", warming(10)),)})
    assert [moment for moment, _ in ev.readings_of(ev.device_of(earlier))][:2] == [-600.0, -598.0]


def test_the_uppermost_channel_that_is_connected_and_moves_is_taken() -> None:
    """A dead meter under the ceiling would stand for a room full of smoke."""
    flicker = channel("SMA_1", lambda time: 0.004 * (int(time) % 4 == 0))
    smoke = channel("SMA_3", smoke_from(40))
    device = ev.device_of(
        place(
            smoke=[flicker, smoke, channel("SMA_5", smoke_from(20))],
            temperature=[channel("TCA_1", lambda _: 1_370.0), channel("TCA_2", warming(40))],
            co=[channel("GASA_1", lambda time: 0.0585 + time * 1e-4)],
        )
    )
    assert {str(quantity): taken.name for quantity, taken in device.taken.items()} == {
        "smoke": "SMA_3",
        "temperature": "TCA_2",
    }
    assert "not connected" in device.left_out["TCA_1"]
    assert "not connected" in device.left_out["GASA_1"]
    assert "does not move" in device.left_out["SMA_1"]
    # Where no smoke comes none moves, and the place is still a device.
    assert ev.device_of(place(smoke=[flicker, channel("SMA_3", air)])).taken[Quantity.SMOKE].name == "SMA_1"


# -- pairs ---------------------------------------------------------------------------------------------------------

SECONDS = st.integers(0, 400).map(float)


@settings(max_examples=200, deadline=None)
@given(
    st.none() | SECONDS,
    st.none() | st.integers(-600, 400).map(float),
    SECONDS,
    st.booleans(),
)
def test_a_pair_is_won_only_by_an_alarm_that_is_strictly_earlier_and_of_the_fire(
    theirs: float | None, ours: float | None, ends: float, device: bool
) -> None:
    """A tie, a false alarm or a recording that is too short would be counted in our favour, or against us."""
    alarm = CommercialAlarm("T", "A", "Pho1A", AlarmKind.PHOTOELECTRIC, theirs)
    found = ev.pair(alarm, Heard(ours) if device else None, ends if device else None)
    if not device or theirs is None:
        assert found.won is None
    elif ours is None:
        assert found.won is (None if ends < theirs else False)
    else:
        assert found.won is (0 <= ours < theirs)
    assert bool(found.note) is (found.won is None or ours is None or ours < 0)
    assert found.as_dict()["ours_s"] == (ours if device else None)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(AlarmKind)), st.none() | st.booleans()), max_size=30))
def test_shares_are_of_the_pairs_that_count(outcomes: list[tuple[AlarmKind, bool | None]]) -> None:
    """Pairs that could not be judged would dilute the share, or one kind's pairs would count for the other."""
    pairs = tuple(ev.Pair(CommercialAlarm("T", "A", "x", kind, 1.0), 0.0, None, won) for kind, won in outcomes)
    found = ev.Validation("m", pairs, (), {})
    for kind in AlarmKind:
        mine = [won for other, won in outcomes if other is kind and won is not None]
        assert found.share_won(kind) == (sum(mine) / len(mine) if mine else None)


# -- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_fire_is_heard_after_its_smoke_and_compared_place_by_place(tmp_path: Path, end: str) -> None:
    """The figures would not be of the place where the alarm hung, or Windows' line ends would break the folder."""
    write_fire(tmp_path, end=end)
    found = pairs_of(tmp_path)
    # 0.01 1/m is reached at 42.5 s; the rule asks for 3 s of it.
    assert found["FIRE1-Pho1A"].ours_s == 48.0
    assert found["FIRE1-Pho1A"].won is True
    assert found["FIRE1-Ion1A"].won is False
    assert (found["FIRE1-Ion1B"].ours_s, found["FIRE1-Ion1B"].won) == (None, False)
    assert (found["FIRE1-Pho1B"].won, found["FIRE1-Pho1B"].note) == (None, "the alarm never sounded")
    outcome = validated(tmp_path)
    assert outcome.share_won(AlarmKind.PHOTOELECTRIC) == 1.0
    assert outcome.share_won(AlarmKind.IONISATION) == 0.0
    assert outcome.before_ignition == 0


@pytest.mark.parametrize("nothing", ["-1", "", "NaN", "-1.00E+00"])
def test_an_alarm_that_never_sounded_is_listed_and_not_counted(tmp_path: Path, nothing: str) -> None:
    """An alarm that failed would be one that we were later than."""
    write_fire(tmp_path)
    write_activations(tmp_path, {"FIRE1-Pho1A": nothing, "FIRE1-Ion1A": 60})
    outcome = validated(tmp_path)
    assert [pair.won for pair in outcome.pairs] == [None, True]
    assert outcome.pairs[0].alarm.sounded_s is None
    assert outcome.share_won(AlarmKind.PHOTOELECTRIC) is None


def test_a_recording_that_ends_before_the_alarm_counts_only_if_ours_sounded(tmp_path: Path) -> None:
    """An alarm after the end would be a loss that nobody saw."""
    write_recording(tmp_path / "X1.csv", {"SMA_1": smoke_from(40), "SMB_1": smoke_from(118), "TCB_1": room})
    write_activations(tmp_path, {"X1-Pho1A": 150, "X1-Pho1B": 150, "X1-Ion1B": 120})
    found = pairs_of(tmp_path)
    assert found["X1-Pho1A"].won is True
    assert found["X1-Pho1B"].won is None
    assert "ends at 120 s" in found["X1-Pho1B"].note
    assert found["X1-Ion1B"].won is False


def test_alarms_without_a_channel_or_a_recording_are_listed_with_the_reason(tmp_path: Path) -> None:
    """A place that nobody measured would count as a fire that we missed."""
    write_recording(tmp_path / "X1.csv", {"SMA_1": smoke_from(40), "GASC_3": air, "SMD_1": lambda _: None})
    write_activations(tmp_path, {"X1-Pho1C": 90, "X1-Pho1D": 90, "X2-Ion1A": 90, "X1-Heat1A": 70, "X1-Pho2A": 90})
    found = pairs_of(tmp_path)
    assert {name: pair.won for name, pair in found.items()} == {
        "X1-Pho1C": None,
        "X1-Pho1D": None,
        "X2-Ion1A": None,
        "X1-Pho2A": True,
    }
    assert found["X1-Pho1C"].note == "place C has no channel"
    assert found["X1-Pho1D"].note == "no channel at place D is connected"
    assert found["X2-Ion1A"].note == "no recording of X2"
    assert read_folder(tmp_path).ignored == ("X1-Heat1A",)


def test_dense_smoke_in_the_first_sample_is_an_alarm_before_ignition_and_no_win(tmp_path: Path) -> None:
    """A detector that cries wolf all day would be the first one at every fire."""
    write_recording(tmp_path / "X1.csv", {"SMA_1": lambda time: 0.3 if time < 2 else 0.5, "TCA_1": room})
    write_activations(tmp_path, {"X1-Pho1A": 90})
    outcome = validated(tmp_path)
    assert outcome.before_ignition == 1
    assert outcome.pairs[0].won is False
    assert outcome.pairs[0].ours_s is not None
    assert outcome.pairs[0].ours_s < 0
    assert outcome.pairs[0].note == "ours sounded before ignition"


def test_a_warning_is_told_and_is_no_alarm(tmp_path: Path) -> None:
    """Half of a smoke alarm's smoke would be a fire that was found."""
    write_recording(tmp_path / "X1.csv", {"SMA_1": lambda time: min(max(0.0, time - 40) * 0.004, 0.007), "TCA_1": room})
    write_activations(tmp_path, {"X1-Pho1A": 90})
    pair = validated(tmp_path).pairs[0]
    assert pair.ours_s is None
    assert pair.won is False
    assert pair.first_warning_s is not None
    assert pair.first_warning_s > 40


class Nervous:
    """A model that takes any smoke for fire."""

    version = "9"
    threshold = 0.5

    def score(self, rows: features.Features) -> np.ndarray:
        level = rows[:, features.FEATURE_NAMES.index("pm2_5")]
        return np.where(np.nan_to_num(level) > 100, 0.9, 0.1)


def test_a_model_is_asked_as_the_detector_asks_it(tmp_path: Path) -> None:
    """The report would be of the rules, whatever model it names."""
    write_fire(tmp_path)
    found = read_folder(tmp_path)
    outcome = ev.validate(found.places, found.alarms, Nervous(), "nervous")
    (heard,) = [heard for device, heard in outcome.devices if device.place.name == "A"]
    # Three readings and 2 s: 42, 44, 46.
    assert (heard.alarm_s, heard.rules) == (46.0, ("model",)) or "model" in heard.rules
    assert heard.alarm_s is not None
    assert heard.alarm_s < 50


BROKEN = {
    "no time": ("X1.csv", "Time,SMA_1\n0,0\n2,0\n", "column TIME is missing; found Time, SMA_1"),
    "no channel": ("X1.csv", "TIME,SMG\n0,0\n2,0\n", "no column TC<place>_<n>"),
    "no number": ("X1.csv", "TIME,SMA_1\n0,0\n2,x1\n", "line 3, column SMA_1: 'x1' is no number"),
    "no moment": ("X1.csv", "TIME,SMA_1\n0,0\n,0\n", "line 3, column TIME: no time"),
    "back in time": ("X1.csv", "TIME,SMA_1\n0,0\n4,0\n\n2,0\n", "line 5, column TIME: 2 does not follow 4"),
    "one row": ("X1.csv", "TIME,SMA_1\n0,0\n", "has 1 rows of values"),
    "empty": ("X1.csv", "", "has no row of column names"),
    "a column twice": ("X1.csv", "TIME,SMA_1,SMA_1\n0,0,0\n2,0,0\n", "column SMA_1 stands there twice"),
    "more cells": ("X1.csv", "TIME,SMA_1\n0,0,7\n2,0\n", "line 2: 3 cells under 2 names"),
    "not text": ("X1.csv", b"TIME,SMA_1\n\xff\xfe\n", "is not UTF-8 text"),
    "no alarm": ("Activation_Times.csv", "Act,Heat1\n-1,5\n", "no column names an alarm; found Act, Heat1"),
    "no times": ("Activation_Times.csv", "Act,X1-Ion1A\n", "has 0 rows of times"),
    "a bad time": ("Activation_Times.csv", "Act,X1-Ion1A\n-1,soon\n", "line 2, column X1-Ion1A: 'soon' is no number"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_line_column_and_remedy(tmp_path: Path, case: str) -> None:
    """A stack trace, or silence, in place of what to mend."""
    name, text, told = BROKEN[case]
    write_recording(tmp_path / "X1.csv", {"SMA_1": smoke_from(40)})
    write_activations(tmp_path, {"X1-Pho1A": 90})
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SmokeError) as caught:
        read_folder(tmp_path)
    assert told in caught.value.message
    assert name in caught.value.message
    assert caught.value.remedy


def test_a_folder_without_its_files_is_named(tmp_path: Path) -> None:
    """A mistyped folder would be a validation of nothing."""
    for folder, told in ((tmp_path / "none", "is no folder"), (tmp_path, "holds no Activation_Times.csv")):
        with pytest.raises(SmokeError, match=told):
            read_folder(folder)
    write_activations(tmp_path, {"X1-Pho1A": 90})
    with pytest.raises(SmokeError, match="no CSV file of a test"):
        read_folder(tmp_path)
    write_recording(tmp_path / "a_X1.csv", {"SMA_1": air})
    write_recording(tmp_path / "b_X1.csv", {"SMA_1": air})
    with pytest.raises(SmokeError, match=r"a_X1\.csv and b_X1\.csv are both test X1"):
        read_folder(tmp_path)


# -- command and page ----------------------------------------------------------------------------------------------


def call(tmp_path: Path, *words: str) -> Result:
    environment = {"SMOKE_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    return CliRunner().invoke(root, ["models", "validate", *words], env=environment)


def test_the_command_prints_json_of_the_agreed_shape_and_a_table(tmp_path: Path) -> None:
    """Whoever reads the JSON would break on the next version."""
    folder = tmp_path / "tests"
    folder.mkdir()
    write_fire(folder)
    answer = call(tmp_path, str(folder), "--model", "rules", "--json", "--out", str(tmp_path / "report.html"))
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert set(told) == {"pairs", "won", "before_ignition"}
    assert told["won"] == {"photoelectric": 1.0, "ionisation": 0.0}
    assert told["before_ignition"] == 0
    assert told["pairs"][0] == {
        "test": "FIRE1",
        "place": "A",
        "alarm": "Ion1A",
        "kind": "ionisation",
        "alarm_s": 44.0,
        "ours_s": 48.0,
        "won": False,
        "note": "",
    }
    assert told["pairs"][3]["won"] is None
    assert told["pairs"][3]["alarm_s"] is None
    page = (tmp_path / "report.html").read_text("utf-8")
    for words in ("8.7 m2/g", "FIRE1, place A", "ours 48 s", "no smouldering", "the alarm never sounded"):
        assert words in page
    table = call(tmp_path, str(folder), "--model", "rules")
    assert table.exit_code == 0
    for words in ("Pho1A", "photoelectric", "before ignition: 0"):
        assert words in table.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [(["{folder}/nowhere"], "is no folder"), (["{folder}", "--model", "best"], "unknown model 'best'")],
)
def test_the_command_fails_with_words_on_bad_input(tmp_path: Path, words: list[str], told: str) -> None:
    """A script would take nothing for a result."""
    write_fire(tmp_path)
    answer = call(tmp_path, *(word.format(folder=tmp_path) for word in words))
    assert answer.exit_code != 0
    assert isinstance(answer.exception, SmokeError)
    assert told in answer.exception.message


def test_the_page_s_data_has_warnings_channels_and_rules(tmp_path: Path) -> None:
    """The stored report could not say which channel and which rule a time comes from."""
    write_fire(tmp_path)
    data = external_validation_page.page_data(validated(tmp_path))
    first = data["devices"][0]
    assert first["channels"] == {"temperature": "TCA_1", "smoke": "SMA_1", "co": "GASA_1"}
    assert "smoke" in first["rules"]
    json.dumps(data, allow_nan=False)


# -- the real tests ------------------------------------------------------------------------------------------------


def test_the_rules_on_nist_s_recordings(needs_data: Path) -> None:
    """The format would have been guessed: no alarm of the published tests could be paired."""
    folder = needs_data / external_validation.FOLDER
    if not folder.is_dir():
        pytest.skip(f"SMOKE_DATA_DIR holds no folder {external_validation.FOLDER}")
    outcome = validated(folder)
    assert {device.place.test for device, _ in outcome.devices} == {"SDC02", "SDC07", "SDC33", "SDC38"}
    assert len(outcome.pairs) == 71
    assert all(pair.alarm.sounded_s is not None for pair in outcome.pairs)
    assert all(Quantity.SMOKE in device.taken and Quantity.TEMPERATURE in device.taken for device, _ in outcome.devices)
    # SDC02's gas station F reads 585 ppm of CO before anything burns.
    (far,) = [device for device, _ in outcome.devices if device.place.device_id == "SDC02-F"]
    assert Quantity.CO not in far.taken
    # No figure of ours is asserted but that the fires are heard at all: a figure in a test would be tuned to.
    assert any(pair.won for pair in outcome.pairs)
