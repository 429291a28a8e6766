"""Two documented example requests, worked out from plain physics, the same for ever.

Belongs here: the payloads behind ``GET /predict/sample`` and ``GET /predict/fire-scenario``. Does not: the simulator,
on whose fires models are trained: an example independent of it shows more about a model than one of its own kind.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from smoke_platform.domain.readings import format_event_time

_BEGIN = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
_INTERVAL_S = 5
_CALM_S = 300
_FIRE_S = 300
#: A bedroom-sized room, in cubic metres.
_ROOM_M3 = 40.0
#: Fire load of upholstery: soot and carbon monoxide yield, grams per gram burned (orders of magnitude as in the SFPE
#: Handbook's table of yields for flexible polyurethane foam), and heat of combustion that reaches the air, kJ per gram.
_SOOT_YIELD, _CO_YIELD, _HEAT_KJ_G = 0.10, 0.03, 18.0
#: Share of the heat that stays in the air of the upper layer; the rest goes into walls and leaves with the flow.
_HEAT_KEPT = 0.15
_AIR_KJ_PER_K = _ROOM_M3 * 1.2 * 1.005


def sample() -> dict[str, Any]:
    """One reading of a quiet room."""
    return _reading(0, 0.0)


def fire_scenario() -> list[dict[str, Any]]:
    """Ten minutes of one device, a reading every 5 s: five quiet, then a smouldering sofa that takes fire."""
    return [_reading(second, _burned_g(second - _CALM_S)) for second in range(0, _CALM_S + _FIRE_S, _INTERVAL_S)]


def _burned_g(seconds: float) -> float:
    """Mass burned after ``seconds``: a smoulder of 0.02 g/s that grows with the square of time from 60 s on."""
    if seconds <= 0:
        return 0.0
    flaming = max(0.0, seconds - 60.0)
    return 0.02 * seconds + 0.00002 * flaming**3 / 3.0


def _reading(second: int, burned_g: float) -> dict[str, Any]:
    # Two slow waves and a quick one stand for ventilation and sensor noise, so that the example never changes.
    slow, quick = math.sin(second / 97.0), math.sin(second * 1.7)
    soot_ug_m3 = burned_g * _SOOT_YIELD * 1e6 / _ROOM_M3
    # 1 mg/m3 of CO is 0.873 ppm at 20 degC and 1013 hPa.
    co_ppm = burned_g * _CO_YIELD * 1e3 / _ROOM_M3 * 0.873
    warming = burned_g * _HEAT_KJ_G * _HEAT_KEPT / _AIR_KJ_PER_K
    # Pyrolysis gases go with CO, and metal-oxide sensors answer them with the logarithm of the concentration.
    tvoc = 90.0 + 15.0 * slow + 60.0 * co_ppm
    gas_signal = 350.0 * math.log1p(co_ppm)
    pm2_5 = 4.0 + 0.6 * slow + 0.3 * quick + soot_ug_m3
    pm1_0 = 3.2 + 0.5 * slow + 0.2 * quick + 0.93 * soot_ug_m3
    nc0_5 = 22.0 + 3.0 * slow + quick + 6.0 * soot_ug_m3
    return {
        "device_id": "example-bedroom",
        "event_time": format_event_time(_BEGIN + timedelta(seconds=second)),
        "temperature_c": round(21.5 + 0.2 * slow + 0.02 * quick + warming, 2),
        "humidity_pct": round(max(5.0, 45.0 + 0.5 * slow - 1.2 * warming), 2),
        "tvoc_ppb": round(min(tvoc, 60_000.0)),
        "eco2_ppm": round(min(430.0 + 20.0 * slow + 9.0 * co_ppm, 60_000.0)),
        "raw_h2": round(13_200.0 + 8.0 * slow - gas_signal),
        "raw_ethanol": round(20_100.0 + 10.0 * slow - 1.4 * gas_signal),
        "pressure_hpa": round(1_012.4 + 0.1 * slow, 2),
        "pm1_0": round(min(pm1_0, 90_000.0), 2),
        "pm2_5": round(min(pm2_5, 90_000.0), 2),
        "nc0_5": round(min(nc0_5, 90_000.0), 1),
        "nc1_0": round(min(0.16 * nc0_5, 90_000.0), 1),
        "nc2_5": round(min(0.006 * nc0_5, 90_000.0), 2),
        "co_ppm": round(0.2 + 0.05 * slow + co_ppm, 2),
    }
