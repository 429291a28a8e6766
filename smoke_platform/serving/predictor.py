"""Answers predictions: readings in, fire probability and everything a caller needs to judge it out.

Belongs here: the answer's shape, the counts since start, the last predictions. Does not: features
(``domain.features``, the same kernel that training uses), the model (``adapters.scorer``), HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import msgspec
import numpy as np

from smoke_platform.adapters.scorer import ChampionWatcher, OnnxScorer
from smoke_platform.domain import features
from smoke_platform.domain.readings import Reading
from smoke_platform.serving.requests import (
    RequestFault,
    count_checked,
    device_series,
    one_reading,
    sensor_row,
    warnings_for,
)

LABELS = ("no_fire", "fire")
#: Readings after which a long request lets others have their turn; about 1 ms of work.
_BREATH = 32
_REMEMBERED = 1000


class Confidence(msgspec.Struct, frozen=True):
    """Probability of each class; they sum to 1."""

    no_fire: float
    fire: float


class Prediction(msgspec.Struct, kw_only=True):
    """The answer to ``POST /predict``.

    Attributes:
        prediction: 1 for fire, 0 for none.
        label: ``fire`` or ``no_fire``.
        probability: of fire.
        confidence: of both classes.
        threshold: probability from which on the answer is fire.
        cold: whether no feature with memory was available: a single reading, or a series too short.
        readings: how many readings were given; the answer is for the last of them.
        model_version: the registry's version of the model.
        feature_version: of the feature set.
        processing_ms: time inside this service, without the network.
        warnings: what the sender may not have meant.
        probabilities: for a list, that of each reading in the order of event time.
    """

    prediction: int
    label: str
    probability: float
    confidence: Confidence
    threshold: float
    cold: bool
    readings: int
    model_version: str
    feature_version: str
    processing_ms: float
    warnings: list[str]
    probabilities: list[float] | None = None


class Remembered(msgspec.Struct, frozen=True):
    """One answered prediction, for the console and the statistics."""

    at: datetime
    device_id: str
    label: str
    probability: float
    cold: bool
    model_version: str
    processing_ms: float


class Predictor:
    """Scores readings with the present champion. Belongs to one event loop; its counts need no lock."""

    def __init__(self, watcher: ChampionWatcher) -> None:
        self.watcher = watcher
        self.started_at = datetime.now(UTC)
        self.recent: deque[Remembered] = deque(maxlen=_REMEMBERED)
        self.by_label = dict.fromkeys(LABELS, 0)
        self.cold = 0
        self.batch_requests = 0
        self.rejected_rows = 0

    def scorer(self) -> OnnxScorer:
        """The present champion.

        Raises:
            RequestFault: 503, with the reason why there is none.
        """
        scorer = self.watcher.current
        if scorer is None:
            status = self.watcher.status
            raise RequestFault(
                503,
                "no_model",
                status.refused_detail.split("\n")[0] or "no model is loaded",
                "train one (smoke models train) or promote a good version (smoke models promote VERSION)",
            )
        return scorer

    async def predict(self, payload: Any, *, counted: bool = True) -> Prediction:
        """One reading, or a list of one device's readings.

        Args:
            payload: the messages, parsed.
            counted: whether it enters the statistics.

        Raises:
            RequestFault: what is wrong with them, or that there is no model.
        """
        if isinstance(payload, list):
            return await self._series(payload, counted)
        return self.predict_one(payload, counted)

    def predict_one(self, message: Any, counted: bool = True) -> Prediction:
        """One reading whose device's past is not known: features with memory are missing, the answer is cold.

        Raises:
            RequestFault: what is wrong with it, or that there is no model.
        """
        began = perf_counter()
        scorer = self.scorer()
        reading = one_reading(message)
        rows = features.single_reading_features(np.array([sensor_row(reading)], dtype=np.float64))
        probability = float(scorer.score(rows)[0])
        return self._answer(
            scorer,
            probability,
            True,
            began=began,
            counted=counted,
            device=_device(message),
            warnings=warnings_for(message, reading),
        )

    async def _series(self, payload: list[Any], counted: bool) -> Prediction:
        began = perf_counter()
        scorer = self.scorer()
        rows = count_checked(payload)
        readings: list[Reading] = []
        for index, row in enumerate(rows):
            readings.append(one_reading(row, index))
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
        times, sensors, latest, warnings = device_series(rows, readings)
        state = features.FeatureState(1)
        parts = []
        for low in range(0, len(rows), _BREATH):
            high = min(low + _BREATH, len(rows))
            parts.append(features.step(state, np.zeros(high - low, dtype=np.int64), times[low:high], sensors[low:high]))
            await asyncio.sleep(0)
        table = np.concatenate(parts)
        probabilities = scorer.score(table)
        answer = self._answer(
            scorer,
            float(probabilities[-1]),
            bool(features.cold(table[-1:])[0]),
            began=began,
            counted=counted,
            device=_device(rows[latest]),
            warnings=[*warnings, *warnings_for(rows[latest], readings[latest])],
        )
        answer.readings = len(rows)
        answer.probabilities = probabilities.tolist()
        return answer

    async def predict_batch(self, payload: Any) -> dict[str, Any]:
        """Independent readings; a faulty row is answered by its error and harms no other.

        Raises:
            RequestFault: where the list as a whole is wrong, or there is no model.
        """
        began = perf_counter()
        scorer = self.scorer()
        if isinstance(payload, dict) and isinstance(payload.get("readings"), list):
            payload = payload["readings"]
        if not isinstance(payload, list):
            raise RequestFault(
                422,
                "wrong_type",
                "a batch is a list of readings",
                'send [{...}, {...}] or {"readings": [...]}; a single reading belongs to POST /predict',
            )
        rows = count_checked(payload)
        self.batch_requests += 1
        results: list[dict[str, Any]] = []
        good: list[int] = []
        sensors: list[list[float]] = []
        for index, row in enumerate(rows):
            try:
                reading = one_reading(row, index)
            except RequestFault as fault:
                self.rejected_rows += 1
                results.append({"index": index, "error": fault.as_json()})
            else:
                good.append(index)
                sensors.append(sensor_row(reading))
                results.append({"index": index})
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
        fires = 0
        if good:
            table = features.single_reading_features(np.array(sensors, dtype=np.float64))
            for index, probability in zip(good, scorer.score(table).tolist(), strict=True):
                fire = probability >= scorer.single_threshold
                fires += fire
                results[index] |= {
                    "prediction": int(fire),
                    "label": LABELS[fire],
                    "probability": probability,
                    "confidence": {"no_fire": 1.0 - probability, "fire": probability},
                }
            self.by_label["fire"] += fires
            self.by_label["no_fire"] += len(good) - fires
            self.cold += len(good)
        return {
            "results": results,
            "summary": {
                "rows": len(rows),
                "predicted": len(good),
                "rejected": len(rows) - len(good),
                "fire": fires,
                "no_fire": len(good) - fires,
            },
            "threshold": scorer.single_threshold,
            "cold": True,
            "model_version": scorer.version,
            "feature_version": features.FEATURE_SET_VERSION,
            "processing_ms": (perf_counter() - began) * 1000.0,
        }

    def _answer(
        self,
        scorer: OnnxScorer,
        probability: float,
        cold: bool,
        *,
        began: float,
        counted: bool,
        device: str,
        warnings: list[str],
    ) -> Prediction:
        # A reading without history never scores as one of a fire that was seen to grow.
        threshold = scorer.single_threshold if cold else scorer.threshold
        fire = probability >= threshold
        label = LABELS[fire]
        elapsed_ms = (perf_counter() - began) * 1000.0
        if counted:
            self.by_label[label] += 1
            self.cold += cold
            self.recent.append(
                Remembered(datetime.now(UTC), device, label, probability, cold, scorer.version, elapsed_ms)
            )
        return Prediction(
            prediction=int(fire),
            label=label,
            probability=probability,
            confidence=Confidence(1.0 - probability, probability),
            threshold=threshold,
            cold=cold,
            readings=1,
            model_version=scorer.version,
            feature_version=features.FEATURE_SET_VERSION,
            processing_ms=elapsed_ms,
            warnings=warnings,
        )

    def statistics(self) -> dict[str, Any]:
        """Counts since start, and the spread of the last answers' processing time."""
        times = np.array([entry.processing_ms for entry in self.recent])
        spread = (
            {f"p{quantile}": float(np.percentile(times, quantile)) for quantile in (50, 90, 99)} if len(times) else {}
        )
        return {
            "since": self.started_at,
            "predictions": sum(self.by_label.values()),
            "by_label": dict(self.by_label),
            "cold": self.cold,
            "batch_requests": self.batch_requests,
            "rejected_rows": self.rejected_rows,
            "processing_ms": {"of_last": len(times), **spread},
            "recent": list(self.recent)[-20:][::-1],
        }


def _device(message: Any) -> str:
    """The device a valid message names, or an empty string."""
    device = message.get("device_id") if isinstance(message, dict) else None
    return device if isinstance(device, str) else ""
