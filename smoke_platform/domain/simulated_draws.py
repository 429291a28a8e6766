"""How the simulated world draws its random numbers.

Belongs here: what a random number belongs to, and the generator that follows from it. Does not: what is drawn.

Whatever is random is drawn from a generator that is seeded with the place it belongs to (a device, a device's slot of
time, a device's block of samples), never from one that runs on. This is what makes the world a pure function of
(seed, device, time).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Of(IntEnum):
    """What a random number belongs to."""

    DEVICE = 0
    FIRES = 1
    NUISANCES = 2
    FAULTS = 3
    NOISE = 4
    WEATHER = 5
    ROOM = 6


def draw(seed: int, *place: int) -> np.random.Generator:
    """The generator of a place: an ``Of``, then numbers such as device and slot of time."""
    # Negative parts (times before 1970) are folded, since a seed sequence takes only naturals.
    return np.random.default_rng([seed, *(int(part) if part >= 0 else 2**62 - part for part in place)])
