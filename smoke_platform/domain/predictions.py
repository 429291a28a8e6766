"""What the detector thought of each reading, as it is published and landed.

Belongs here: the message of ``smoke_predictions``. Does not: how a score comes about (``domain.detection``).
"""

from __future__ import annotations

import msgspec

from smoke_platform.domain.errors import SmokeError


class PredictionRecord(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Scores of consecutive readings of one partition; the reading itself is found by its offset.

    Attributes:
        topic_id, partition: of the readings.
        offsets: of the readings, rising; rejected messages are left out.
        scores: the model's fire probability of each; empty where no model scored.
        levels: severity that rules and model together gave each, 0 for none.
        hits: bit mask of the rules that hit, in the order of ``domain.rules.RULES``.
        model_version, threshold: of the model; ``None`` where no model scored.
        feature_version: definition of the features that the model saw.
        at: when it was written, epoch seconds.
    """

    topic_id: str
    partition: int
    offsets: list[int]
    scores: list[float]
    levels: list[int]
    hits: list[int]
    feature_version: str
    at: float
    model_version: str | None = None
    threshold: float | None = None


_DECODER = msgspec.json.Decoder(PredictionRecord)


def encode(record: PredictionRecord) -> bytes:
    """The record as it travels: JSON."""
    return msgspec.json.encode(record)


def decode(value: bytes) -> PredictionRecord:
    """The record that ``encode`` wrote.

    Raises:
        SmokeError: naming the field at fault.
    """
    try:
        record = _DECODER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SmokeError(f"not a valid prediction record: {error}") from None
    if not len(record.offsets) == len(record.levels) == len(record.hits) or len(record.scores) not in (
        0,
        len(record.offsets),
    ):
        raise SmokeError("not a valid prediction record: its lists differ in length")
    return record
