"""A calm room and a steep fire as a device would report them: what the proofs and benchmarks of alarms feed.

Belongs here: the numbers of the two and their noise. Does not: the simulated world that models are trained on
(``domain.simulator``), where a fire grows as slowly as it likes and nobody can say when an alarm is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from smoke_platform.domain.readings import Reading

#: Sensor -> (calm, burning, noise to either side). Far from every limit of ``domain.rules`` on both sides.
_SCENE: dict[str, tuple[float, float, float]] = {
    "temperature_c": (22.0, 75.0, 0.2),
    "humidity_pct": (45.0, 20.0, 0.4),
    "tvoc_ppb": (120.0, 9_000.0, 8.0),
    "eco2_ppm": (450.0, 6_000.0, 6.0),
    "raw_h2": (12_900.0, 11_500.0, 5.0),
    "raw_ethanol": (19_700.0, 17_500.0, 5.0),
    "pressure_hpa": (1_000.0, 1_000.0, 0.05),
    "pm1_0": (2.0, 900.0, 0.2),
    "pm2_5": (2.5, 1_000.0, 0.25),
    "nc0_5": (14.0, 6_000.0, 1.2),
    "nc1_0": (2.2, 950.0, 0.2),
    "nc2_5": (0.5, 20.0, 0.05),
    "co_ppm": (1.0, 250.0, 0.15),
}
_NAMES = tuple(_SCENE)
_CALM, _FIRE, _NOISE = (np.array([numbers[place] for numbers in _SCENE.values()]) for place in range(3))


class Scenes:
    """Readings of the two scenes; the same seed gives the same noise."""

    def __init__(self, seed: int) -> None:
        # A prime number of rows, so that devices that report in turn do not share their noise.
        self._noise = np.random.default_rng(seed).uniform(-1.0, 1.0, (997, len(_NAMES))) * _NOISE

    def message(self, device_id: str, moment: datetime, sequence: int, *, burning: bool, salt: int = 0) -> bytes:
        """The message of one reading; ``salt`` tells the noise of devices apart."""
        base = _FIRE if burning else _CALM
        values: Sequence[float] = np.round(base + self._noise[(sequence * 31 + salt) % len(self._noise)], 3).tolist()
        return Reading(device_id, moment, dict(zip(_NAMES, values, strict=True)), sequence=sequence).to_json()
