"""Windows: the statistics against a brute force of their own, and what must not change a bit of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smoke_platform.domain import window_kernel
from smoke_platform.domain import windows as module
from smoke_platform.domain.readings import SENSOR_BY_NAME, SENSOR_NAMES
from smoke_platform.domain.recordings import RecordingFile
from smoke_platform.domain.window_words import summary_line, window_line
from smoke_platform.domain.windows import ROW_COLUMNS, STATISTICS, WINDOW_SCHEMA, WindowSpec, compute
from smoke_platform_tests import window_oracle as oracle

START = datetime(2026, 3, 2, 10, tzinfo=UTC)
ROW_SCHEMA: dict[str, Any] = {
    "device_id": pl.String(),
    "event_time": pl.Datetime("us", "UTC"),
    "sequence": pl.Int64(),
    "topic_id": pl.String(),
    "partition": pl.Int32(),
    "offset": pl.Int64(),
    **dict.fromkeys(SENSOR_NAMES, pl.Float64()),
    "fire_alarm": pl.Boolean(),
}
assert tuple(ROW_SCHEMA) == ROW_COLUMNS
SPECS = [WindowSpec(), WindowSpec(300, 5), WindowSpec(60, 20), WindowSpec(7, 7)]


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    filled = [{"topic_id": "t", "partition": 0, "offset": place, **row} for place, row in enumerate(rows)]
    return pl.DataFrame([{name: row.get(name) for name in ROW_SCHEMA} for row in filled], schema=ROW_SCHEMA)


def minute_of_heat(device_id: str = "hall-3", seconds: int = 300) -> pl.DataFrame:
    """Once a second, one degree more each minute; a humidity that is not measured."""
    return frame(
        [
            {
                "device_id": device_id,
                "event_time": START + timedelta(seconds=second),
                "sequence": second,
                "temperature_c": 20.0 + second / 60.0,
                "pressure_hpa": 980.25,
                "fire_alarm": second >= 240,
            }
            for second in range(seconds)
        ]
    )


def test_a_ramp_has_the_statistics_that_can_be_worked_out_by_hand() -> None:
    """Or every figure that people see about their rooms is wrong."""
    found = compute(minute_of_heat(), windows=pl.DataFrame({"device_id": ["hall-3"], "window_start": [START]}))
    row = found.row(0, named=True)
    assert found.schema == pl.Schema(WINDOW_SCHEMA)
    assert (row["record_count"], row["duplicate_count"], row["revision"], row["expected_count"]) == (300, 0, 300, 300)
    assert (row["label_count"], row["fire_label_count"], row["level"], row["level_sensor"]) == (300, 60, 0, None)
    assert row["temperature_c_slope_per_min"] == pytest.approx(1.0, abs=1e-9)
    assert row["temperature_c_median"] == pytest.approx(20.0 + 149.5 / 60)
    assert row["temperature_c_p05"] == pytest.approx(20.0 + 14.95 / 60)
    assert row["temperature_c_variance"] == pytest.approx((300 * 301 / 12) / 3600)
    assert (row["temperature_c_first"], row["temperature_c_min"]) == (20.0, 20.0)
    assert row["temperature_c_range"] == pytest.approx(299 / 60)
    assert (row["pressure_hpa_variance"], row["pressure_hpa_slope_per_min"]) == (0.0, 0.0)
    assert row["humidity_pct_missing"] == 300
    assert all(row[f"humidity_pct_{name}"] is None for name in STATISTICS if name != "missing")
    assert row["quality_score"] == 100.0


def test_each_reading_is_in_five_windows() -> None:
    """Or a minute is missing from the picture, or counted twice."""
    found = compute(minute_of_heat(seconds=1))
    assert found["window_start"].to_list() == [START - timedelta(minutes=4 - step) for step in range(5)]
    assert found["record_count"].to_list() == [1] * 5
    assert found["temperature_c_variance"].to_list() == [None] * 5
    assert found["temperature_c_slope_per_min"].to_list() == [None] * 5


def test_a_window_in_words() -> None:
    """The line that people follow in a terminal."""
    windows = pl.concat([compute(minute_of_heat(name)) for name in ("hall-3", "hall-4")])
    full = windows.filter(window_start=START)
    assert window_line(full.row(0, named=True)) == (
        "Window Analytics (10:00:00 - 10:05:00): Records: 300, Temp: 22.5 degC, Quality: 100, Fire labels: 60, "
        "Device: hall-3"
    )
    assert summary_line(full) == (
        "Window Analytics (10:00:00 - 10:05:00): Records: 600, Temp: 22.5 degC, Quality: 100, Fire labels: 120, "
        "Devices: 2"
    )


def test_a_line_shows_a_level_and_leaves_out_what_was_not_measured() -> None:
    """Or a hot room reads like any other, and a device that names itself with control characters writes on screens."""
    hot = minute_of_heat("hall\n3").with_columns(temperature_c=pl.lit(66.04), fire_alarm=pl.lit(None, pl.Boolean))
    window = compute(hot).filter(window_start=START)
    assert window_line(window.row(0, named=True)) == (
        "Window Analytics (10:00:00 - 10:05:00): Records: 300, Temp: 66.0 degC, Quality: 0, Level: CRITICAL (Temp), "
        "Device: hall?3"
    )
    many = pl.concat([window.with_columns(device_id=pl.lit(f"d{nth}")) for nth in range(4)])
    mild = many.with_columns(
        level=pl.Series([4, 0, 1, 1], dtype=pl.UInt8),
        record_count=pl.Series([300, 300, 300, 347]),
        temperature_c_mean=pl.Series([60.0, None, 20.0, 20.0]),
        pm2_5_mean=pl.Series([1_234.56, None, None, None]),
    )
    assert summary_line(mild) == (
        "Window Analytics (10:00:00 - 10:05:00): Records: 1,247, Temp: 32.7 degC, PM2.5: 1,234.6 ug/m3, Quality: 0, "
        "CRITICAL: 1, LOW: 2, Devices: 4"
    )


# -- against the oracle ------------------------------------------------------------------------------------------

#: Usual value, and how far values go from it.
NATURES = {
    "temperature_c": (21.0, 0.5),
    "humidity_pct": (45.0, 1.0),
    "tvoc_ppb": (180.0, 300.0),
    "eco2_ppm": (450.0, 60.0),
    "raw_h2": (12_900.0, 40.0),
    "raw_ethanol": (19_700.0, 30.0),
    "pressure_hpa": (980.0, 0.01),
    "pm1_0": (2.0, 30_000.0),
    "pm2_5": (2.0, 30_000.0),
    "nc0_5": (11.0, 2.0),
    "nc1_0": (2.0, 0.000_1),
    "nc2_5": (0.05, 0.0),
}


def stream(
    seed: int, *, devices: int = 2, seconds: int = 700, irregular: float = 0.0, missing: float = 0.0, again: float = 0.0
) -> pl.DataFrame:
    """Rows of devices that report once a second, in the order in which they arrived.

    Args:
        irregular: share of the seconds without a reading; at another such share of them a whole minute is lost, or a
            reading is not on the second, or two are of the same moment.
        missing: share of the values that were not measured.
        again: share of the readings that are sent again, most of them with other values.
    """
    rng = random.Random(seed)  # noqa: S311
    rows: list[dict[str, Any]] = []
    for device in range(devices):
        skew = timedelta(microseconds=rng.choice([0, 1, 250_000, -3_600_000_000, 26 * 86_400_000_000]))
        unfitted = set(rng.sample(SENSOR_NAMES, rng.choice([0, 0, 1, 4]))) if missing else set()
        shape = rng.choice([lambda t: 0.0, lambda t: t / 300, lambda t: float(t > 200), lambda t: rng.choice([0, 1])])
        numbered = rng.random() < 0.7
        silent_until = 0
        for second in range(seconds):
            if rng.random() < irregular / 10:
                silent_until = second + rng.choice([20, 70, 400])
            if second < silent_until or rng.random() < irregular:
                continue
            off = rng.randrange(-400_000, 400_000) if rng.random() < irregular else 0
            row: dict[str, Any] = {
                "device_id": f"device-{device}",
                "event_time": START + skew + timedelta(seconds=second, microseconds=off),
                "sequence": second if numbered and rng.random() >= irregular else None,
                "fire_alarm": rng.choice([None, True, False]) if irregular else None,
            }
            for name, (usual, spread) in NATURES.items():
                if name not in unfitted and rng.random() >= missing:
                    value = usual + spread * (shape(second) + rng.gauss(0, 0.3))
                    row[name] = min(max(value, SENSOR_BY_NAME[name].low), SENSOR_BY_NAME[name].high)
            rows.append(row)
            while rng.random() < again:
                other = dict(row)
                if rng.random() < 0.7:
                    other |= {name: value + 1 for name, value in row.items() if name in SENSOR_NAMES and value < 20_000}
                if rng.random() < 0.3:
                    other["sequence"] = rng.choice([None, second, second + 1])
                rows.append(other)
    rng.shuffle(rows)
    for place, row in enumerate(rows):
        row |= {"topic_id": rng.choice(["a", "b"]), "partition": rng.randrange(3), "offset": place}
    return frame(rows)


def judge(
    rows: pl.DataFrame, spec: WindowSpec, found: pl.DataFrame, intervals_s: Mapping[str, float] | None = None
) -> None:
    expected = oracle.windows(rows.to_dicts(), length_s=spec.length_s, slide_s=spec.slide_s, intervals_s=intervals_s)
    assert oracle.differences(found.iter_rows(named=True), expected) == []
    assert list(zip(found["device_id"], found["window_start"], strict=True)) == list(expected)


@st.composite
def few_rows(draw: st.DrawFn) -> pl.DataFrame:
    """Rows that crowd together, repeat, miss values and lie far apart."""
    around = st.sampled_from([0, 0, 0, 59, 60, 299, 300, 601, 86_400 * 400])
    value = st.one_of(
        st.none(),
        st.sampled_from([0.0, 1.0, 40.0, 980.25, 19_000.0, float("nan")]),
        st.floats(0, 100, allow_subnormal=False),
        st.integers(0, 65_535).map(float),
    )
    rows = []
    for place in range(draw(st.integers(1, 14))):
        moment = START + timedelta(
            seconds=draw(around) + draw(st.integers(-2, 2)), milliseconds=draw(st.sampled_from([0, 0, 1, 500]))
        )
        rows.append(
            {
                "device_id": draw(st.sampled_from(["a", "b", "\u00e4"])),
                "event_time": moment,
                "sequence": draw(st.sampled_from([None, 0, 1, 9_007_199_254_740_992])),
                "topic_id": draw(st.sampled_from(["s", "t"])),
                "partition": draw(st.integers(0, 1)),
                "offset": place,
                "fire_alarm": draw(st.sampled_from([None, True, False])),
                **{name: draw(value) for name in draw(st.sampled_from([SENSOR_NAMES, SENSOR_NAMES[:3]]))},
            }
        )
    return frame(draw(st.permutations(rows)))


@settings(max_examples=150, deadline=None)
@given(few_rows(), st.sampled_from(SPECS), st.sampled_from([0.3, 1.0, 7.0, 1_000.0]))
def test_few_rows_have_the_statistics_that_the_definition_gives(
    rows: pl.DataFrame, spec: WindowSpec, interval_s: float
) -> None:
    """Or a figure is wrong where a device has just begun, repeats itself or has its clock set."""
    intervals_s = {"a": interval_s}
    judge(rows, spec, compute(rows, spec, intervals_s), intervals_s)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.sampled_from([0.0, 0.01, 0.4]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
@example(1, 0.0, 0.0, 0.0)
@example(2, 0.02, 0.01, 0.05)
def test_streams_have_the_statistics_that_the_definition_gives(
    seed: int, irregular: float, missing: float, again: float
) -> None:
    """Or the figures people act on are wrong: whole, lossy, repeating and skewed streams, minutes long."""
    rows = stream(seed, irregular=irregular, missing=missing, again=again)
    judge(rows, WindowSpec(), compute(rows))


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("faults", [{}, {"irregular": 0.05, "missing": 0.02, "again": 0.05}])
def test_short_slides_are_as_exact(seed: int, faults: dict[str, float]) -> None:
    """Or the bench compares a fast engine that is wrong with slow ones that are right."""
    rows = stream(seed, devices=1, seconds=400, **faults)
    spec = WindowSpec(300, 5)
    judge(rows, spec, compute(rows, spec))


def test_the_real_recordings_have_the_statistics_that_the_definition_gives(needs_data: Path) -> None:
    """Or it all holds for made-up numbers only."""
    recording = RecordingFile(needs_data / "kaggle_smoke" / "smoke_detection_iot.csv", on_bad_row=pytest.fail)
    readings = pl.concat(list(recording.chunks()))
    rows = readings.with_columns(topic_id=pl.lit("t"), partition=0, offset=pl.int_range(pl.len())).select(ROW_COLUMNS)
    found = compute(rows)
    # The oracle takes its time: a window of each recording in seven.
    some = found.gather_every(7).select("device_id", "window_start")
    part = compute(rows, windows=some)
    assert part.equals(found.join(some, on=some.columns, how="semi"))
    inside = rows.join_where(
        some.with_columns(end=pl.col("window_start") + WindowSpec().length, device=pl.col("device_id")),
        pl.col("device_id") == pl.col("device"),
        pl.col("event_time") >= pl.col("window_start"),
        pl.col("event_time") < pl.col("end"),
    ).select(ROW_COLUMNS)
    expected = oracle.windows(inside.unique().to_dicts())
    assert oracle.differences(part.iter_rows(named=True), {key: expected[key] for key in some.rows()}) == []


@pytest.mark.parametrize("offset", [0.0, 980.0, 19_000.0, 65_000.0])
def test_a_large_offset_costs_no_digits(offset: float) -> None:
    """Or the variance of pressure is noise: squares of 980 hPa leave nothing of a hundredth of it."""
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 1e-4, 300)
    rows = minute_of_heat().with_columns(raw_ethanol=pl.Series(offset + noise))
    spec = WindowSpec(300, 300)
    found = compute(rows, spec).row(0, named=True)
    judge(rows, spec, compute(rows, spec))
    assert found["raw_ethanol_variance"] == pytest.approx(1e-8, rel=0.3)


# -- to the bit --------------------------------------------------------------------------------------------------


def same_bits(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Equal with null where null is, and 0.0 told from -0.0."""
    return one.equals(other) and one.hash_rows(seed=3).equals(other.hash_rows(seed=3))


STREAMS = [
    {"irregular": 0.0, "missing": 0.0, "again": 0.0},
    {"irregular": 0.0, "missing": 0.02, "again": 0.0},
    {"irregular": 0.05, "missing": 0.01, "again": 0.05},
]


@pytest.mark.parametrize("spec", [WindowSpec(), WindowSpec(300, 5)])
@pytest.mark.parametrize("kind", STREAMS)
def test_neither_order_nor_company_changes_a_bit(kind: dict[str, float], spec: WindowSpec) -> None:
    """Or two engines, or one before and after a crash, write rows that differ for the same readings."""
    rows = stream(11, devices=5, seconds=500, **kind)
    whole = compute(rows, spec)
    assert same_bits(compute(rows.sample(fraction=1.0, shuffle=True, seed=1), spec), whole)
    assert same_bits(compute(rows.sort("device_id", "event_time", descending=True), spec, threads=2), whole)
    devices = [compute(group, spec) for _, group in rows.group_by("device_id")]
    assert same_bits(pl.concat(devices).sort("device_id", "window_start"), whole)
    for nth in (0, whole.height // 2, whole.height - 1):
        wanted = whole[nth].select("device_id", "window_start")
        start = wanted["window_start"].item()
        inside = rows.filter(
            pl.col("device_id") == wanted["device_id"].item(),
            pl.col("event_time").is_between(start, start + spec.length, closed="left"),
        )
        assert same_bits(compute(inside, spec, windows=wanted), whole[nth])
        assert same_bits(compute(rows, spec, windows=wanted), whole[nth])


@pytest.mark.parametrize("chunk", [1, 1 << 15])
@pytest.mark.parametrize("spec", [WindowSpec(), WindowSpec(300, 5), WindowSpec(300, 300)])
def test_some_windows_of_a_stream_with_silences_are_as_they_are_among_all(
    spec: WindowSpec, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a correction of a few windows says something else than what a rebuild of the day would."""
    second = pl.col("event_time").dt.epoch("s") - int(START.timestamp())
    rows = stream(13, devices=4, seconds=2_500, **STREAMS[2]).filter(
        ~second.is_between(130, 190) & ~second.is_between(600, 1_400) & (second < 2_300)
    )
    whole = compute(rows, spec)
    monkeypatch.setattr(module, "_CHUNK_ROWS", chunk)
    for part in (20, 3, 1):
        some = whole.sample(whole.height // part or 1, seed=5).sort("device_id", "window_start")
        assert same_bits(compute(rows, spec, windows=some.select("device_id", "window_start")), some)


@pytest.mark.parametrize("spec", [WindowSpec(), WindowSpec(300, 5)])
@pytest.mark.parametrize("kind", STREAMS)
def test_the_ways_to_the_order_statistics_agree_to_the_bit(
    kind: dict[str, float], spec: WindowSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a window's percentiles depend on how many others happened to be computed with it."""
    rows = stream(12, devices=3, seconds=1_300, **kind)
    found = []
    for overlap in (0.0, 1e9):
        monkeypatch.setattr(window_kernel, "_LEAST_OVERLAP", overlap)
        for chunk in (1, 1 << 15):
            monkeypatch.setattr(module, "_CHUNK_ROWS", chunk)
            found.append(compute(rows, spec))
    assert all(same_bits(one, found[0]) for one in found)


def test_values_that_differ_in_the_last_digit_only_are_ranked_rightly() -> None:
    """Or one spike of smoke blurs the percentiles of clean air: its range leaves 22 bits for the rest."""
    rng = np.random.default_rng(8)
    values = 2.0 + rng.permutation(900) * 1e-12
    values[450] = 30_000.0
    rows = minute_of_heat(seconds=900).with_columns(pm2_5=pl.Series(values))
    spec = WindowSpec(300, 60)
    judge(rows, spec, compute(rows, spec))
    found = compute(rows, spec)
    assert all((low < high) for low, high in zip(found["pm2_5_p25"], found["pm2_5_p75"], strict=True))


# -- which windows -----------------------------------------------------------------------------------------------


def test_only_the_windows_asked_for_are_given_and_only_where_there_are_readings() -> None:
    """Or the engine writes windows that are not due yet, or rows about nothing."""
    rows = minute_of_heat()
    wanted = pl.DataFrame(
        {
            "device_id": ["hall-3", "hall-3", "hall-3", "nobody"],
            "window_start": [START, START + timedelta(days=1), START + timedelta(seconds=1), START],
        }
    )
    assert compute(rows, windows=wanted).select("device_id", "window_start").rows() == [("hall-3", START)]
    assert compute(rows, windows=wanted.clear()).is_empty()
    nothing = compute(rows.clear())
    assert nothing.is_empty()
    assert nothing.schema == pl.Schema(WINDOW_SCHEMA)


@settings(max_examples=60, deadline=None)
@given(few_rows(), st.sampled_from(SPECS))
def test_touched_windows_are_those_that_hold_a_reading(rows: pl.DataFrame, spec: WindowSpec) -> None:
    """Or a correction is computed for too few windows."""
    touched = spec.touched(rows)
    assert touched.rows() == list(oracle.windows(rows.to_dicts(), length_s=spec.length_s, slide_s=spec.slide_s))
    assert touched.schema["window_start"] == WINDOW_SCHEMA["window_start"]


def test_a_slide_that_does_not_divide_the_length_is_refused() -> None:
    """Or a window is put together from panes that reach beyond it."""
    with pytest.raises(ValueError, match="300 s can't slide by 7 s"):
        WindowSpec(300, 7)


# -- quality and level -------------------------------------------------------------------------------------------


def row_of(rows: pl.DataFrame, **more: Any) -> dict[str, Any]:
    wanted = pl.DataFrame({"device_id": ["hall-3"], "window_start": [START]})
    return compute(rows, windows=wanted, **more).row(0, named=True)


def living(seconds: int = 300) -> pl.DataFrame:
    """A device all of whose sensors move."""
    return stream(21, devices=1, seconds=seconds).sort("event_time").with_columns(device_id=pl.lit("hall-3"))


def test_a_fire_does_not_lower_the_quality() -> None:
    """Or the more it burns the less the readings are believed."""
    rows = minute_of_heat().with_columns(
        pm1_0=pl.lit(80_000.0),
        pm2_5=pl.lit(90_000.0),
        tvoc_ppb=pl.lit(60_000.0),
        temperature_c=pl.col("temperature_c") * 5,
    )
    found = row_of(rows)
    assert found["quality_score"] == 100.0
    assert (found["level"], found["level_sensor"]) == (4, "temperature_c")


def test_each_factor_of_the_quality_counts_what_is_lost() -> None:
    """Or the documented formula and the number shown differ."""
    rows = minute_of_heat()
    assert row_of(rows.head(150))["completeness"] == 0.5
    assert row_of(rows.head(150))["freshness"] == pytest.approx(1 - 150 / 300)
    assert row_of(rows.gather_every(10), intervals_s={"hall-3": 10.0})["quality_score"] == 100.0
    holes = rows.with_columns(humidity_pct=pl.when(pl.int_range(pl.len()) < 30).then(50.0))
    assert row_of(holes)["validity"] == pytest.approx(630 / 900)
    odd = rows.with_columns(pm1_0=pl.lit(9.0), pm2_5=pl.when(pl.int_range(pl.len()) < 40).then(8.0).otherwise(9.0))
    assert row_of(odd)["plausibility"] == pytest.approx(1 - 40 / 1200)
    score = row_of(odd.head(290))
    factors = [score[name] for name in ("completeness", "validity", "plausibility", "freshness")]
    assert score["quality_score"] == pytest.approx(100 * np.prod(factors))


def test_a_frozen_device_is_worth_nothing() -> None:
    """Or a device whose processor hangs looks healthier than one that works."""
    frozen = minute_of_heat().with_columns(temperature_c=pl.lit(21.5))
    assert row_of(frozen)["quality_score"] == 0.0
    assert row_of(frozen.head(59))["plausibility"] == 1.0
    one_restless = frozen.with_columns(pressure_hpa=pl.lit(None, pl.Float64), eco2_ppm=pl.lit(400.0))
    assert row_of(one_restless)["plausibility"] == 1.0
    assert row_of(frozen.with_columns(eco2_ppm=pl.col("sequence").cast(pl.Float64)))["plausibility"] == 1.0


def test_of_repeated_readings_the_first_counts_and_all_raise_the_revision() -> None:
    """Or a message sent twice moves the mean, or a window that changed is not written again."""
    one = frame(
        [
            {"device_id": "hall-3", "event_time": START, "sequence": 4, "temperature_c": 1.0, "offset": 9},
            {"device_id": "hall-3", "event_time": START, "sequence": 4, "temperature_c": 2.0, "offset": 7},
            {"device_id": "hall-3", "event_time": START, "sequence": None, "temperature_c": 5.0, "offset": 20},
            {"device_id": "hall-3", "event_time": START, "sequence": None, "temperature_c": 6.0, "offset": 21},
            {
                "device_id": "hall-3",
                "event_time": START,
                "sequence": 4,
                "temperature_c": 3.0,
                "offset": 1,
                "partition": 1,
            },
        ]
    )
    found = row_of(one)
    assert (found["record_count"], found["duplicate_count"], found["revision"]) == (2, 3, 5)
    assert (found["temperature_c_first"], found["temperature_c_last"]) == (5.0, 2.0)


# -- the oracle itself -------------------------------------------------------------------------------------------


def landed(second: int, offset: int, *, late: bool = False, arrived: int | None = None) -> dict[str, Any]:
    return {
        "device_id": "d",
        "event_time": START + timedelta(seconds=second),
        "topic_id": "t",
        "partition": 0,
        "offset": offset,
        "late": late,
        "append_time": START + timedelta(seconds=second if arrived is None else arrived),
    }


def test_the_oracle_appends_a_window_when_the_clock_passes_it_and_again_when_it_changes() -> None:
    """Or both engines are held against a rule that nobody wrote down."""
    first = START - timedelta(minutes=4)
    moments = [
        oracle.Landing([landed(0, 0)]),
        oracle.Landing([landed(59, 1)]),
        oracle.Landing([landed(60, 2)]),
        oracle.Landing([landed(30, 3), landed(-700, 4, late=True)]),
        oracle.Landing([]),
    ]
    assert oracle.emissions(moments) == [{}, {}, {("d", first): 2}, {("d", first): 3}, {}]


def test_the_oracle_appends_the_windows_of_a_device_that_fell_silent() -> None:
    """Or the last minutes of a device that burned are never written."""
    quiet = START + timedelta(minutes=10)
    moments = [
        oracle.Landing([landed(0, 0)], now=quiet),
        oracle.Landing([], now=quiet + timedelta(microseconds=1), waiting={"d"}),
        oracle.Landing([], now=quiet + timedelta(microseconds=1)),
    ]
    before, waiting, after = oracle.emissions(moments)
    assert (before, waiting) == ({}, {})
    assert sorted(after) == [("d", START - timedelta(minutes=minute)) for minute in range(4, -1, -1)]


def test_the_oracle_calls_late_what_is_more_than_ten_minutes_behind() -> None:
    """Or the oracle counts rows that landing set aside."""
    rows = [landed(0, 0), landed(600, 1), landed(0, 2), landed(-1, 3)]
    assert oracle.lateness(rows) == [False, False, False, True]
    other = [
        landed(0, 0),
        {**landed(0, 1), "partition": 1},
        landed(601, 2),
        {**landed(0, 3), "partition": 1},
        landed(0, 4),
    ]
    assert oracle.lateness(other) == [False, False, False, False, True]
