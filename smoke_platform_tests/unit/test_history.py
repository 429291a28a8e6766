"""History: rhythms, trends, correlations and patterns on data whose answer is known."""

from __future__ import annotations

import json
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from smoke_platform.domain import history, history_alarms, history_summary, history_words
from smoke_platform.domain.history_devices import least_z
from smoke_platform.domain.history_trends import ageing, device_trends, site_trends, theil_sen
from smoke_platform.domain.readings import ALL_SENSOR_NAMES, SENSOR_NAMES
from smoke_platform_tests.history_parts import MONDAY, alarm_rows, history_of, landed, readings, same
from smoke_platform_tests.monitoring_lake import as_landed, simulated


@pytest.mark.parametrize("peak", [0, 3, 17, 23])
def test_the_peak_hour_is_the_hour_of_the_peak(peak: int) -> None:
    """Or somebody plans by an hour that is an artefact (seconds read as nanoseconds put every peak at midnight)."""
    assert history_of(readings(days=3, peak=peak)).peak_hour("device", "temperature_c") == peak


def test_hours_and_weekdays_are_those_of_the_zone() -> None:
    """Or a peak at five in the afternoon is reported as four."""
    found = history_of(readings(days=3, peak=17), "Europe/Vienna")
    assert found.peak_hour("device", "temperature_c") == 18
    late = readings(peak=17, humidity_pct=pl.when(pl.col("event_time").dt.hour() == 23).then(90.0).otherwise(10.0))
    assert history_of(late, "Europe/Vienna").peak_weekday("device", "humidity_pct") == "Tuesday"
    assert history_of(late, "UTC").peak_weekday("device", "humidity_pct") == "Monday"


def test_a_zone_of_half_hours_loses_nothing() -> None:
    """Or in Kathmandu a quarter of each hour counts for its neighbour."""
    frame = readings(days=2, peak=17)
    found = history_of(frame, "Asia/Kathmandu")
    local = frame["event_time"].dt.convert_time_zone("Asia/Kathmandu")
    expected = frame.group_by(local.dt.hour().alias("hour")).agg(pl.col("temperature_c").mean(), pl.len()).sort("hour")
    assert found.by_hour["rows"].to_list() == expected["len"].to_list()
    assert found.by_hour["temperature_c"].to_numpy() == pytest.approx(expected["temperature_c"].to_numpy())


def test_a_sensor_that_is_not_fitted_has_no_season() -> None:
    """Or CO peaks at midnight in buildings without a CO sensor."""
    found = history_of(readings())
    assert found.peak_hour("device", "co_ppm") is None
    assert found.as_dict()["sources"]["device"]["peak_weekday"]["co_ppm"] is None


def test_the_mean_of_days_weighs_readings() -> None:
    """Or a day with ten readings counts as much as one with ten thousand."""
    few = readings(MONDAY, temperature_c=pl.lit(10.0)).head(10)
    many = readings(MONDAY + timedelta(days=1), temperature_c=pl.lit(20.0)).head(30)
    found = history_of(pl.concat([few, many]))
    midnight = found.by_hour.filter(pl.col("hour") == 0).row(0, named=True)
    assert midnight["temperature_c"] == pytest.approx((10 * 10 + 30 * 20) / 40)
    assert found.days["day"].to_list() == [date(2026, 3, 2), date(2026, 3, 3)]
    assert set(ALL_SENSOR_NAMES) <= set(found.by_hour.columns)


def test_sources_are_kept_apart() -> None:
    """Or what the simulator was told to do is reported as a habit of real buildings."""
    both = pl.concat([readings(peak=5), readings(peak=15, device="s", source="simulator")])
    found = history_of(both)
    assert found.peak_hour("device", "temperature_c") == 5
    assert found.peak_hour("simulator", "temperature_c") == 15


def test_parts_and_days_add_up_to_the_whole() -> None:
    """Or the history says something else as soon as a day is spread over executors."""
    frame = as_landed(simulated(5, MONDAY, 60))
    whole, cut = history_of(frame), history_of(frame.sample(fraction=1.0, shuffle=True, seed=1), parts=4)
    assert same(whole.as_dict(), cut.as_dict()) == []
    assert whole.days.equals(cut.days)
    assert whole.rows == frame.height


def test_repeats_of_a_reading_count_once() -> None:
    """Or a producer that retries makes its hours weigh double."""
    frame = landed(readings())
    again = frame.head(100).with_columns(offset=pl.col("offset") + 10_000, temperature_c=pl.lit(99.0))
    found = history_of(pl.concat([again, frame]))
    assert found.overview.select("rows", "duplicates").row(0) == (1440, 100)
    assert found.days["temperature_c_max"].to_list() < [30.0]


# -- rhythm ------------------------------------------------------------------------------------------------------


def test_a_daily_rhythm_is_told_from_a_wandering_value() -> None:
    """Or every random walk of a few days is sold as a habit of the building."""
    walk = pl.Series(np.random.default_rng(3).normal(0, 1, 8 * 1440).cumsum())
    found = history_of(readings(days=8, peak=15, pressure_hpa=900 + walk))
    rhythm = {row["sensor"]: row for row in found.daily.iter_rows(named=True)}
    assert rhythm["temperature_c"]["clear"]
    assert (rhythm["temperature_c"]["highest"], rhythm["temperature_c"]["lowest"]) == (15, 3)
    assert rhythm["temperature_c"]["swing"] == pytest.approx(10, rel=0.05)
    assert {name for name, row in rhythm.items() if row["clear"]} == {"temperature_c"}


def test_recordings_at_other_hours_are_no_rhythm() -> None:
    """Or two recordings, one in the morning and one in the evening, make a peak in the evening."""
    frames = [
        readings(MONDAY + timedelta(days=day, hours=10 * (day % 2)), 0.3, raw_h2=pl.col("raw_h2") + 50 * (day % 2))
        for day in range(10)
    ]
    found = history_of(pl.concat(frames))
    assert found.daily.is_empty()
    assert any("daily rhythm cannot be judged" in sentence for sentence in history_words.sentences(found))


def test_a_weekly_rhythm_is_found_and_not_invented() -> None:
    """Or weekly habits of a building are read off the wrong day, or off chance."""
    saturday = pl.col("event_time").dt.weekday() == 6
    frame = readings(days=28, every_s=600, raw_h2=pl.col("raw_h2") + pl.when(saturday).then(5.0).otherwise(0.0))
    weekly = {row["sensor"]: row for row in history_of(frame).weekly.iter_rows(named=True)}
    assert weekly["raw_h2"]["clear"]
    assert weekly["raw_h2"]["highest"] == 6
    assert [name for name, row in weekly.items() if row["clear"]] == ["raw_h2"]


# -- trends and ageing -------------------------------------------------------------------------------------------


def test_a_trend_is_the_slope_of_the_daily_means() -> None:
    """Or a sensor that drifts by a unit a day is not told from one that jitters."""
    rising = readings(days=5, pressure_hpa=900 + 1.5 * (pl.col("event_time").dt.ordinal_day() - 61).cast(pl.Float64))
    found = history_of(rising).trends.filter(pl.col("sensor") == "pressure_hpa").row(0, named=True)
    assert found["slope_per_day"] == pytest.approx(1.5)
    assert (found["days"], found["clear"]) == (5, False)
    assert history_of(readings(days=2)).trends.is_empty()


def days_of(values: dict[str, np.ndarray], what: str = "mean", sensor: str = "temperature_c") -> pl.DataFrame:
    """Days of devices of which one statistic of one sensor is known."""
    frames = [
        pl.DataFrame(
            {
                "source": "device",
                "device_id": device,
                "day": [MONDAY.date() + timedelta(days=day) for day in range(len(series))],
                **{f"{name}_{what}": series if name == sensor else None for name in ALL_SENSOR_NAMES},
            },
            schema_overrides={f"{name}_{what}": pl.Float64 for name in ALL_SENSOR_NAMES},
        )
        for device, series in values.items()
    ]
    return pl.concat(frames)


def test_chance_makes_no_clear_trend() -> None:
    """Or out of a thousand sensors fifty are said to rise, every week other ones."""
    chance = np.random.default_rng(5)
    # Each day remembers the day before, as weather does.
    shocks = chance.normal(size=(400, 60))
    walks = np.zeros_like(shocks)
    for day in range(1, 60):
        walks[:, day] = 0.5 * walks[:, day - 1] + shocks[:, day]
    noise = {f"d{row}": walks[row] for row in range(400)}
    assert device_trends(days_of(noise))["clear"].sum() <= 1
    rising = {**noise, "rising": walks[0] + 0.3 * np.arange(60)}
    found = device_trends(days_of(rising)).filter("clear")
    assert found["device_id"][0] == "rising"
    assert found["slope_per_day"][0] == pytest.approx(0.3, abs=0.05)


def test_a_device_that_joins_is_no_trend_of_its_site() -> None:
    """Or a site is said to warm up because a detector was hung above its boiler."""
    steady = np.random.default_rng(1).normal(20, 0.1, 40)
    days = days_of({"a": steady, "b": steady[::-1].copy(), "boiler": 45 + steady})
    joined = days.filter((pl.col("device_id") != "boiler") | (pl.col("day") >= MONDAY.date() + timedelta(days=20)))
    sites = {"a": "north", "b": "north", "boiler": "north", "elsewhere": "south"}
    found = site_trends(joined, sites).row(0, named=True)
    assert (found["site"], found["devices"], found["clear"]) == ("north", 3, False)
    assert abs(found["slope_per_day"]) < 0.01
    warming = days.with_columns(pl.col("temperature_c_mean") + 0.1 * (pl.col("day") - MONDAY.date()).dt.total_days())
    assert site_trends(warming, sites)["clear"].to_list() == [True]


def test_the_slope_is_theil_and_sens() -> None:
    """Or one wild day turns a sensor's drift around."""
    chance = np.random.default_rng(2)
    x = np.arange(40.0)
    y = 0.5 * x + chance.normal(0, 0.3, 40)
    pairs = [(y[j] - y[i]) / (x[j] - x[i]) for i in range(40) for j in range(i + 1, 40)]
    slope, spread, [(low, high)] = theil_sen(x, y, [0.95])
    assert slope == pytest.approx(float(np.median(pairs)))
    assert low < 0.5 < high
    assert spread == pytest.approx(0.3, rel=0.5)
    y[[3, 17, 30]] = 500.0
    assert theil_sen(x, y, [0.95])[0] == pytest.approx(0.5, abs=0.05)
    assert theil_sen(x[:3], y[:3], [1 - 1e-9])[2] == [(-np.inf, np.inf)]
    # Years of days are put together, and say the same.
    assert theil_sen(np.arange(1000.0), np.arange(1000.0) * 0.5, [0.95])[0] == pytest.approx(0.5)


def test_a_sensor_ages_when_it_leaves_the_others() -> None:
    """Or spring is taken for ten broken thermometers, and the broken one is not found among them."""
    chance = np.random.default_rng(8)
    spring = 0.2 * np.arange(42) + chance.normal(0, 1, 42)
    values = {f"d{number}": 20 + spring + chance.normal(0, 0.1, 42) for number in range(10)}
    values["d3"] = values["d3"] - 0.05 * np.arange(42)
    found = ageing(days_of(values, "baseline"), {})
    assert found.filter("ages")["device_id"].to_list() == ["d3"]
    aged = found.row(0, named=True)
    assert aged["low"] < -0.35 < aged["high"]
    assert aged["drift"] == pytest.approx(-0.05 * 41, rel=0.2)
    assert aged["compared_with"] == "source"
    # Alone, a device cannot be told from the weather.
    alone = ageing(days_of({"d3": values["d3"]}, "baseline"), {})
    assert (alone["compared_with"][0], alone["ages"][0]) == ("nothing", False)
    assert ageing(days_of({"d3": values["d3"][:10]}, "baseline"), {}).is_empty()


def test_a_room_that_answers_more_strongly_does_not_age() -> None:
    """Or in spring the attic's thermometers are sent in for calibration, and one that drifts in it is not."""
    chance = np.random.default_rng(12)
    spring = 0.2 * np.arange(42) + chance.normal(0, 1, 42)
    gains = (1.0, 0.9, 1.1, 1.0, 1.0, 0.95, 1.05, 1.6, 0.5, 1.0)
    values = {f"d{n}": 20 + gain * spring + chance.normal(0, 0.1, 42) for n, gain in enumerate(gains)}
    assert ageing(days_of(values, "baseline"), {})["ages"].sum() == 0
    values["d7"] = values["d7"] + 0.05 * np.arange(42)
    found = ageing(days_of(values, "baseline"), {}).filter("ages")
    assert found["device_id"].to_list() == ["d7"]
    assert found["low"][0] < 0.35 < found["high"][0]


def test_days_that_remember_each_other_do_not_age() -> None:
    """Or a room whose air changes slowly has a new broken sensor in every report."""
    chance = np.random.default_rng(11)
    shocks = chance.normal(size=(60, 45))
    walks = np.zeros_like(shocks)
    for day in range(1, 45):
        walks[:, day] = 0.8 * walks[:, day - 1] + shocks[:, day]
    found = ageing(days_of({f"d{row}": walks[row] for row in range(60)}, "baseline"), {})
    assert found["ages"].sum() <= 1


def test_others_of_the_same_site_come_first() -> None:
    """Or a heated hall is compared with a cold store two towns away."""
    chance = np.random.default_rng(9)
    cooling, warming = -0.2 * np.arange(30), 0.2 * np.arange(30)
    values = {f"hall{number}": 20 + warming + chance.normal(0, 0.1, 30) for number in range(5)}
    values |= {f"store{number}": 4 + cooling + chance.normal(0, 0.1, 30) for number in range(20)}
    sites = {name: name.rstrip("0123456789") for name in values}
    assert ageing(days_of(values, "baseline"), sites)["ages"].sum() == 0
    assert ageing(days_of(values, "baseline"), {})["ages"].sum() >= 5


# -- correlations ------------------------------------------------------------------------------------------------


def test_correlations_agree_with_numpy() -> None:
    """Or sums over days lose what the readings say."""
    frame = as_landed(simulated(3, MONDAY, 48))
    found = history_of(frame)
    rows = frame.drop_nulls(SENSOR_NAMES)
    expected = np.corrcoef(rows.select(SENSOR_NAMES).to_numpy().T)
    day = ["device_id", pl.col("event_time").dt.date()]
    centred = rows.select(pl.col(name) - pl.col(name).mean().over(day) for name in SENSOR_NAMES)
    within = np.corrcoef(centred.to_numpy().T)
    pairs = {(row["sensor"], row["other"]): row for row in found.correlations.iter_rows(named=True)}
    assert len(pairs) == 66
    for (a, b), row in pairs.items():
        place = SENSOR_NAMES.index(a), SENSOR_NAMES.index(b)
        assert row["r"] == pytest.approx(expected[place], abs=1e-6)
        assert row["r_within"] == pytest.approx(within[place], abs=1e-6)
    assert found.correlations["rows"][0] == rows.height


def test_the_label_is_not_among_its_own_indicators() -> None:
    """Or the report's best indicator of fire is that there is a fire."""
    found = history_of(as_landed(simulated(3, MONDAY, 6, fires_per_device_day=12)))
    assert set(found.correlations["sensor"]) | set(found.correlations["other"]) <= set(SENSOR_NAMES)


def test_a_sensor_that_never_moves_has_no_correlation() -> None:
    """Or rounding is reported as a law of nature."""
    found = history_of(readings(pressure_hpa=pl.lit(940.0)))
    assert not (pl.Series(["pressure_hpa"]).is_in(found.correlations["sensor"].to_list())).any()


# -- patterns and odd signals ------------------------------------------------------------------------------------


def test_a_rare_pattern_is_named_with_its_evidence() -> None:
    """Or the one hour in a month that somebody should look at is lost in a table."""
    hour = MONDAY + timedelta(days=4, hours=9)
    during = pl.col("event_time").is_between(pl.lit(hour), pl.lit(hour + timedelta(hours=1)), closed="left")
    warm = pl.col("temperature_c") + pl.when(during).then(40.0).otherwise(0.0)
    damp = pl.col("humidity_pct") - pl.when(during).then(50.0).otherwise(0.0)
    frame = pl.concat([readings(days=10, temperature_c=warm, humidity_pct=damp), readings(days=10, device="e")])
    found = history_of(frame)
    assert found.judged["hours"].to_list() == [480]
    assert found.patterns.select("pattern", "hours", "devices", "rare").rows() == [
        ("heat up, humidity down", 1, 1, True)
    ]
    rare = found.rare.row(0, named=True)
    assert (rare["device_id"], rare["hour"]) == ("d", hour)
    evidence = {fact["sensor"]: fact for fact in json.loads(rare["evidence"])}
    assert evidence["humidity_pct"]["mean"] == pytest.approx(50, abs=1)
    assert evidence["humidity_pct"]["usual"] == pytest.approx(100, abs=1)
    assert set(evidence) == {"temperature_c", "humidity_pct"}


def test_noise_makes_no_pattern() -> None:
    """Or every report lists twenty oddities, and nobody reads the twenty-first."""
    frame = pl.concat([readings(days=20, every_s=100, device=f"d{number}") for number in range(6)])
    assert history_of(frame).patterns.is_empty()
    assert least_z(10) == least_z(1000) < least_z(10**12)


def test_a_computed_signal_and_a_dead_one_are_named() -> None:
    """Or a curve that somebody drew, or a sensor that died at 21.5, passes for a measurement."""
    curve = 20 + 10 * (pl.int_range(pl.len()) / 400.0).sin()
    frame = pl.concat(
        [
            readings(device="drawn", every_s=30, humidity_pct=curve),
            readings(device="dead", every_s=30, temperature_c=pl.lit(21.5)),
            readings(device="well", every_s=30, raw_h2=pl.col("raw_h2").round(0)),
        ]
    )
    found = history_of(frame)
    odd = found.odd.select("device_id", "sensor", "kind").rows()
    assert sorted(odd) == [("dead", "temperature_c", "constant"), ("drawn", "humidity_pct", "smooth")]
    told = " ".join(history_words.sentences(found))
    assert "humidity_pct of drawn on 2026-03-02 is too smooth" in told
    assert "temperature_c of dead on 2026-03-02 stood still at 21.5" in told


def test_labels_that_contradict_the_sensors_are_counted() -> None:
    """Or a model learns from a label that says fire in clean air."""
    frame = readings(
        fire_alarm=pl.int_range(pl.len()) < 700, pm2_5=pl.when(pl.int_range(pl.len()) < 690).then(1.0).otherwise(500.0)
    )
    found = history_of(frame)
    assert found.overview.select("fires", "fires_in_clean_air", "smoke_without_fire").row(0) == (700, 690, 740)
    assert any("98.6% of its readings labelled as fire" in sentence for sentence in history_words.sentences(found))


# -- alarms ------------------------------------------------------------------------------------------------------


def test_causes_are_counted_by_rule() -> None:
    """Or the rule that raises most false alarms is never named."""
    alarms = alarm_rows(
        alarm_id=["1", "2", "3", "4"],
        device_id=["a", "a", "b", "c"],
        site=["n", "n", "n", ""],
        kind=["fire", "fire", "fire", "offline"],
        peak=["high", "critical", "high", "medium"],
        rules=[["smoke"], ["smoke", "heat"], ["smoke"], []],
        raised=[MONDAY] * 4,
        verdict=["false_alarm", None, "true_alarm", None],
    )
    found = history_of(readings(), alarms=alarms)
    assert found.causes is not None
    assert found.causes.rows() == [
        ("fire", "smoke", 3, 2, 1, 1, 1),
        ("fire", "heat", 1, 1, 1, 0, 0),
        ("offline", history_alarms.NO_RULE, 1, 1, 0, 0, 0),
    ]
    told = history_words.sentences(found)
    assert (
        "3 alarms of kind fire; most often behind them: smoke (3), heat (1); operators called 1 of them false." in told
    )


def test_an_alarm_is_one_however_many_records_it_has() -> None:
    """Or an alarm that was acknowledged and closed counts three times."""
    columns = {
        "alarm_id": ["1"] * 3 + ["", "2"],
        "device_id": ["a"] * 5,
        "kind": ["fire"] * 5,
        "site": ["n"] * 5,
        "revision": [3, 1, 2, 4, 5],
        "event": ["verdict", "raised", "escalated", "shelved", "raised"],
        "peak": ["critical", "high", "critical", "", "high"],
        "rules": [["other"], ["smoke"], ["heat", "smoke"], [], ["model"]],
        "raised_event_time": [MONDAY, MONDAY, MONDAY, None, None],
        "raised_at": [MONDAY] * 5,
        "verdict": ["true_alarm", None, None, None, None],
    }
    found = history_alarms.alarms_of(pl.LazyFrame(columns)).collect().sort("alarm_id")
    assert found.select("alarm_id", "peak", "rules", "verdict").rows() == [
        ("1", "critical", ["heat", "smoke"], "true_alarm"),
        ("2", "high", ["model"], None),
    ]


def test_rule_hits_of_days_add_up() -> None:
    """Or the detector's work of a week is that of its last day."""
    day = pl.LazyFrame(
        {
            "model_version": ["7", "7", "7", None],
            "hits": [0, 1, 3, 1],
            "score": [0.1, 0.9, 0.8, None],
            "threshold": [0.5, 0.5, 0.5, None],
        },
        schema_overrides={"hits": pl.Int64},
    )
    hits = pl.concat([history_alarms.summarise_predictions(day)] * 2)
    found = history_of(readings(), hits=hits)
    assert found.rule_hits is not None
    assert found.models is not None
    first, second = history_alarms.rule_names(3)
    assert found.rule_hits.rows() == [(first, 6, 0.75), (second, 2, 0.25)]
    model = found.models.row(0, named=True)
    assert (model["readings"], model["over"], model["score_max"]) == (6, 4, 0.9)
    assert model["mean_score"] == pytest.approx(0.6)


# -- words -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_judged_is_said() -> None:
    """Or silence about ageing reads as: nothing ages."""
    told = " ".join(history_words.sentences(history_of(readings())))
    for words in ("rhythm cannot be judged", "ageing cannot be judged", "patterns cannot be judged", "cannot be told"):
        assert words in told
    assert "No recording of the lake repeats another one" in told


def test_nothing_to_merge_is_refused() -> None:
    """Or an empty lake has a history."""
    with pytest.raises(ValueError, match="nothing to merge"):
        history.merge_devices([])


def test_a_devices_bucket_never_changes() -> None:
    """Or the hours that were stored last year are no longer found."""
    assert [history_summary.bucket_of(name) for name in ("sim-0001", "kitchen-1", "ä")] == [229, 201, 131]
