"""How well the champion does on readings whose truth is known, and how quickly it is answered for.

Belongs here: the figures and the health score. Does not: scoring (``adapters.scorer``), measuring the API, thresholds
at which somebody is told (``orchestration.monitoring``), the gate that a new model has to pass.

The truth of a row comes from a simulator, a recording's label, a device or an operator (``domain.live_performance``).
The figures are given for each source too, so that nobody takes success on simulated fires for success on real ones.

The health score is the weighted mean of what could be measured, times 100::

    weight  part
    0.50    detection       balanced accuracy; plain accuracy where the truth holds one class only
    0.15    alarms          share of the labelled fires that were alarmed
    0.10    confidence      1 - share of rows with confidence below 0.6
    0.15    responsiveness  1 up to 0.1 s of response time, falling on a straight line to 0 at 5 s; of the API's and
                            the detector's the slower one counts
    0.10    availability    share of the probes that the API answered

A part that could not be measured drops out with its weight and is named; without detection there is no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]

LOW_CONFIDENCE = 0.6
QUICK_S = 0.1
SLOW_S = 5.0
WEIGHTS: Mapping[str, float] = {
    "detection": 0.50,
    "alarms": 0.15,
    "confidence": 0.10,
    "responsiveness": 0.15,
    "availability": 0.10,
}


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one set of rows; ``None`` where the rows cannot tell (no fire: no recall).

    Attributes:
        false_alarm_rate: share of the rows without fire that are called fire.
        mean_confidence: mean of the probability given to the class that was chosen.
    """

    rows: int
    fires: int
    true_positives: int
    false_positives: int
    accuracy: float
    recall: float | None
    precision: float | None
    f1: float | None
    false_alarm_rate: float | None
    mean_confidence: float
    low_confidence_share: float

    @property
    def detection(self) -> float:
        """Balanced accuracy, or accuracy where the truth holds one class only; 0..1."""
        if self.recall is None or self.false_alarm_rate is None:
            return self.accuracy
        return (self.recall + 1.0 - self.false_alarm_rate) / 2


@dataclass(frozen=True, slots=True)
class Probe:
    """One request to the API: seconds until its answer, or what went wrong instead."""

    path: str
    seconds: float | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """The health score, 0..100, the parts it consists of (0..1) and those that could not be measured."""

    score: float | None
    parts: Mapping[str, float]
    unmeasured: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "parts": dict(self.parts),
            "weights": dict(WEIGHTS),
            "unmeasured": list(self.unmeasured),
        }


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from a reading's arrival at the broker until its score was written, over some rows."""

    rows: int
    median_s: float
    p95_s: float
    p99_s: float


def latency(seconds: npt.NDArray[np.float64]) -> Latency | None:
    """The latency of some rows, seconds ``[n]``; ``None`` for no rows."""
    if not len(seconds):
        return None
    median, p95, p99 = (float(value) for value in np.quantile(seconds, [0.5, 0.95, 0.99]))
    return Latency(len(seconds), median, p95, p99)


def figures(probability: Probabilities, truth: Truth, threshold: float | Probabilities) -> Figures:
    """Figures of the rows.

    Args:
        probability: of fire, shape (n,), n >= 1.
        truth: whether it burns, shape (n,).
        threshold: probability from which on a row is called fire, 0..1; one for all rows, or one of each.

    Raises:
        ValueError: for no rows, or shapes that differ.
    """
    if len(probability) == 0 or probability.shape != truth.shape:
        raise ValueError(f"{probability.shape} probabilities and {truth.shape} truths: give one of each a row")
    called = probability >= threshold
    confidence = np.where(called, probability, 1.0 - probability)
    tp = int(np.sum(called & truth))
    fp = int(np.sum(called & ~truth))
    fires = int(np.sum(truth))
    quiet = len(truth) - fires
    return Figures(
        rows=len(truth),
        fires=fires,
        true_positives=tp,
        false_positives=fp,
        accuracy=float(np.mean(called == truth)),
        recall=tp / fires if fires else None,
        precision=tp / (tp + fp) if tp + fp else None,
        f1=2 * tp / (fires + tp + fp) if fires else None,
        false_alarm_rate=fp / quiet if quiet else None,
        mean_confidence=float(np.mean(confidence)),
        low_confidence_share=float(np.mean(confidence < LOW_CONFIDENCE)),
    )


def figures_by_source(
    probability: Probabilities, truth: Truth, source: Sequence[str], threshold: float | Probabilities
) -> dict[str, Figures]:
    """``figures`` of each source's rows, by its name."""
    names = np.asarray(source, dtype=str)
    lines = np.broadcast_to(threshold, probability.shape)
    return {
        str(name): figures(probability[rows], truth[rows], lines[rows])
        for name in np.unique(names)
        for rows in [names == name]
    }


def response_seconds(probes: Sequence[Probe]) -> float | None:
    """Median response time of the probes that were answered, in seconds, or ``None`` where none was."""
    times = [probe.seconds for probe in probes if probe.seconds is not None]
    return float(np.median(times)) if times else None


def health(
    found: Figures | None,
    probes: Sequence[Probe],
    *,
    caught: float | None = None,
    scoring_seconds: float | None = None,
) -> Health:
    """The health score by the formula above.

    Args:
        found: figures of all rows whose truth is known, or ``None`` where there are none.
        probes: requests made to the API; empty where it was not probed.
        caught: share of the labelled fires that were alarmed, ``None`` where there was none.
        scoring_seconds: median time of the detector's scores, ``None`` where none was logged.
    """
    parts: dict[str, float] = {}
    if found is not None:
        parts["detection"] = found.detection
        parts["confidence"] = 1.0 - found.low_confidence_share
    if caught is not None:
        parts["alarms"] = caught
    if probes:
        parts["availability"] = sum(probe.seconds is not None for probe in probes) / len(probes)
    times = [seconds for seconds in (response_seconds(probes), scoring_seconds) if seconds is not None]
    if times:
        parts["responsiveness"] = float(np.clip((SLOW_S - max(times)) / (SLOW_S - QUICK_S), 0.0, 1.0))
    weight = sum(WEIGHTS[name] for name in parts)
    score = 100.0 * sum(WEIGHTS[name] * value for name, value in parts.items()) / weight if found is not None else None
    return Health(score, parts, tuple(name for name in WEIGHTS if name not in parts))
