"""Rules: what raises a fire alarm without any model, what does not, and that batching changes nothing."""

from __future__ import annotations

import numpy as np

from smoke_platform.domain import features, rules
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

CALM = {"temperature_c": 21.0, "humidity_pct": 45.0, "tvoc_ppb": 80.0, "eco2_ppm": 450.0, "pm1_0": 4.0, "pm2_5": 5.0}


def judge(times, **series):
    """Verdicts on one device's readings: calm air but for the sensors that are given."""
    sensors = np.full((len(times), len(ALL_SENSOR_NAMES)), np.nan)
    for name, values in {**CALM, **series}.items():
        sensors[:, ALL_SENSOR_NAMES.index(name)] = values
    times = np.asarray(times, dtype=np.float64) + 1.7e9
    slots = np.zeros(len(times), dtype=np.int64)
    rows = features.step(features.FeatureState(1), slots, times, sensors)
    return rules.evaluate(rules.RuleState(1), slots, times, sensors, rows, np.full(len(times), np.nan), None)


def test_heat_that_stays_is_a_fire_alarm():
    """A room at 60 degC must raise HIGH within seconds, without a model and in a device that has just started."""
    verdicts = judge(np.arange(5.0), temperature_c=60.0)
    assert verdicts.fire_level.tolist() == [0, 0, 3, 3, 3]
    assert rules.rule_names(int(verdicts.hits[2])) == ("heat",)
