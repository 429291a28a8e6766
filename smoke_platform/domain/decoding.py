"""Decoding of whole batches of messages into columns, in the very terms of ``domain.readings.parse_reading``.

Belongs here: the fast paths and the rule for when they may decide. Does not: what a reading is (``domain.readings``),
where messages come from or where the columns go.

There are three paths, each for what the one before could not settle:

1. *Vectorised*: many messages are read at once by Polars' JSON reader, outside Python's lock. It is lenient in a few
   ways (unknown and repeated keys, numbers as text), so a certificate over the whole text must first show that no
   message in it makes use of them.
2. *Strict*: msgspec reads each message into a closed structure.
3. ``parse_reading``, message by message.

The first two only ever *accept*: canonical names, right types, values in range, the usual time format. The third alone
rejects. So the paths can only differ where a fast one accepts what ``parse_reading`` refuses or reads otherwise, and
the property tests look for exactly that.

The few messages that one poll of a live stream brings are decoded by ``domain.live_decoding``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from smoke_platform.domain.live_decoding import SOURCES, USUAL_TIME, append_moment, usual_device_id
from smoke_platform.domain.readings import (
    ALL_SENSOR_NAMES,
    ALL_SENSORS,
    EARLIEST_EVENT_TIME,
    LARGEST_CLOCK_LEAD,
    LARGEST_SEQUENCE,
    SCHEMA_VERSION,
    ReadingRejected,
    Source,
    parse_reading,
)

_TIME = pl.Datetime("us", "UTC")

#: Columns of a decoded batch; ``row`` is the message's index in the batch.
DECODED_SCHEMA: dict[str, pl.DataType] = {
    "row": pl.UInt32(),
    "device_id": pl.String(),
    "event_time": _TIME,
    **{name: pl.Float64() for name in ALL_SENSOR_NAMES},
    "fire_alarm": pl.Boolean(),
    "sequence": pl.Int64(),
    "schema_version": pl.Int32(),
    "source": pl.String(),
}
_DECODED = list(DECODED_SCHEMA)
#: As the fast paths read a message, before its values are judged.
_RAW_SCHEMA: dict[str, pl.DataType] = {
    **{name: kind for name, kind in DECODED_SCHEMA.items() if name != "row"},
    "event_time": pl.String(),
    "schema_version": pl.Int64(),
}
#: Messages that are read at once: their text stays in the processor's cache, and memory needn't be asked for.
_LARGE_PIECE = 16_384
#: A piece that holds something unusual is cut into pieces of this size, so that few usual messages share its detour.
_SMALL_PIECE = 512

_STRICT = msgspec.json.Decoder(
    msgspec.defstruct(
        "_StrictReading",
        [
            ("device_id", str),
            ("event_time", str),
            *((name, float | None, None) for name in ALL_SENSOR_NAMES),
            ("fire_alarm", bool | None, None),
            ("sequence", int | None, None),
            ("schema_version", int, SCHEMA_VERSION),
            ("source", str | None, None),
        ],
        # An alias beside its canonical name would hide among unknown fields.
        forbid_unknown_fields=True,
        # Millions of short-lived objects without cycles: the collector has nothing to find in them.
        gc=False,
    )
)


def decode_batch(
    values: Sequence[bytes | None], append_times_ms: Sequence[int]
) -> tuple[pl.DataFrame, list[tuple[int, ReadingRejected]]]:
    """Decides for each message whether it is a reading, as ``parse_reading`` would.

    Args:
        values: the messages' bytes; ``None`` is a tombstone and no reading.
        append_times_ms: when the broker appended each, in epoch milliseconds; negative where unknown, and then "too
            far in the future" is not judged.

    Returns:
        The readings in the order of ``values`` (columns of ``DECODED_SCHEMA``; zero may carry a sign), and the rejected
        messages as (index, why), in the same order.
    """
    accepted: list[pl.DataFrame] = [pl.DataFrame(schema=DECODED_SCHEMA)]
    open_places: list[int] = []
    for piece in _pieces(values, append_times_ms):
        frame, doubtful = _read(*piece)
        accepted.append(frame)
        open_places.extend(doubtful)
    rejects: list[tuple[int, ReadingRejected]] = []
    if open_places:
        frame, rejects = _decide_each(sorted(open_places), values, append_times_ms)
        accepted.append(frame)
    decoded = pl.concat(accepted)
    return (decoded if decoded["row"].is_sorted() else decoded.sort("row")), rejects


Rows = npt.NDArray[np.uint32]


def _pieces(
    values: Sequence[bytes | None], append_times_ms: Sequence[int]
) -> Iterator[tuple[Sequence[bytes | None], Rows, Sequence[int]]]:
    """What to read at once, with its rows; messages with a null apart, as they break the certificate of the others."""
    for begin in range(0, len(values), _LARGE_PIECE):
        piece, appended = values[begin : begin + _LARGE_PIECE], append_times_ms[begin : begin + _LARGE_PIECE]
        rows = np.arange(begin, begin + len(piece), dtype=np.uint32)
        with_null = np.fromiter((value is not None and b"null" in value for value in piece), np.bool_, len(piece))
        if not with_null.any():
            yield piece, rows, appended
            continue
        for chosen in (with_null, ~with_null):
            places = np.flatnonzero(chosen).tolist()
            if places:
                yield [piece[place] for place in places], rows[places], [appended[place] for place in places]


def _read(values: Sequence[bytes | None], rows: Rows, append_times_ms: Sequence[int]) -> tuple[pl.DataFrame, list[int]]:
    """Reads these messages by the first path, or, where something among them is unusual, in small pieces."""
    found = _vectorised(values, rows, append_times_ms)
    if found is not None:
        return found
    frames: list[pl.DataFrame] = []
    left: list[int] = []
    for start in range(0, len(rows), _SMALL_PIECE):
        part = slice(start, start + _SMALL_PIECE)
        pieces = values[part], rows[part], append_times_ms[part]
        frame, doubtful = _vectorised(*pieces) or _strict(*pieces)
        frames.append(frame)
        left.extend(doubtful)
    return pl.concat(frames), left


def _vectorised(
    values: Sequence[bytes | None], rows: Rows, append_times_ms: Sequence[int]
) -> tuple[pl.DataFrame, list[int]] | None:
    """The first path; ``None`` where the certificate fails for these messages as a whole."""
    try:
        text = b"\n".join(values)  # type: ignore[arg-type] # a tombstone raises, and so fails the certificate
    except TypeError:
        return None
    octets = np.frombuffer(text, dtype=np.uint8)
    breaks = np.flatnonzero(octets == ord("\n"))
    if not _one_flat_object_a_line(text, octets, breaks, len(values)):
        return None
    try:
        raw = pl.read_ndjson(text, schema=_RAW_SCHEMA)
    except pl.exceptions.ComputeError:
        return None  # not JSON, or a value of another type: which message it is, the next path finds out
    if raw.height != len(values) or not _nothing_but_what_was_read(text, octets, breaks, raw):
        return None
    return _judge(raw, rows, append_times_ms)


Octets = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


def _one_flat_object_a_line(text: bytes, octets: Octets, breaks: Places, count: int) -> bool:
    """Whether each of the joined messages is one line ``{...}`` without nested objects, arrays or escapes."""
    return (
        len(breaks) == count - 1
        and text.startswith(b"{")
        and text.endswith(b"}")
        and bool((octets[breaks - 1] == ord("}")).all())
        and bool((octets[breaks + 1] == ord("{")).all())
        and _occurrences(octets, "{") == count
        and _occurrences(octets, "}") == count
        and b"\\" not in text
        and b"[" not in text
    )


def _occurrences(octets: Octets, character: str) -> int:
    return int(np.count_nonzero(octets == ord(character)))


def _nothing_but_what_was_read(text: bytes, octets: Octets, breaks: Places, raw: pl.DataFrame) -> bool:
    """Whether every key in the text is a known one that occurs once and whose value was read as written.

    A message that is as it should be has two quotation marks for each value that was read, and two more for each text.
    A key that is unknown, repeated or null, or a text that was not recognised, adds marks; the only thing that takes
    any away is a device id that is no text (two marks), and then ``"device_id":"`` is missing once. For that count to
    come out right, another message must have it twice, which adds four. So the sums agree only if each message does.
    """
    present = sum(raw.height - raw[name].null_count() for name in _RAW_SCHEMA)
    texts = raw.select(
        pl.col("device_id").is_not_null().sum(),
        pl.col("event_time").str.contains(USUAL_TIME).sum(),
        pl.col("source").is_in(SOURCES).sum(),
    ).row(0)
    return _occurrences(octets, '"') == 2 * (present + sum(texts)) and (
        _begin_with_text_id(text, octets, breaks) or text.count(_TEXT_ID[1:]) == raw.height
    )


_TEXT_ID = b'{"device_id":"'


def _begin_with_text_id(text: bytes, octets: Octets, breaks: Places) -> bool:
    """Whether each line begins with a device id that is a text, as nearly all do: far cheaper than to count."""
    return text.startswith(_TEXT_ID) and all(
        bool((octets[breaks + 1 + place] == octet).all()) for place, octet in enumerate(_TEXT_ID)
    )


def _strict(
    values: Sequence[bytes | None], rows: Rows, append_times_ms: Sequence[int]
) -> tuple[pl.DataFrame, list[int]]:
    """The second path: messages it can't read are left open."""
    structs = []
    places: list[int] = []
    left: list[int] = []
    for place, value in enumerate(values):
        try:
            structs.append(_STRICT.decode(value))  # type: ignore[arg-type] # a tombstone raises: that is its way out
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
            left.append(int(rows[place]))
        else:
            places.append(place)
    if not structs:
        return pl.DataFrame(schema=DECODED_SCHEMA), left
    columns = dict(zip(_RAW_SCHEMA, zip(*map(msgspec.structs.astuple, structs), strict=True), strict=True))
    # Beyond what the columns hold: such a number can't be accepted, so any illegal one may stand for it.
    columns["sequence"] = tuple(-1 if n is not None and n > LARGEST_SEQUENCE else n for n in columns["sequence"])
    columns["schema_version"] = tuple(n if n == SCHEMA_VERSION else 0 for n in columns["schema_version"])
    raw = pl.DataFrame([pl.Series(name, columns[name], dtype=kind) for name, kind in _RAW_SCHEMA.items()])
    frame, doubtful = _judge(raw, rows[places], [append_times_ms[place] for place in places])
    return frame, left + doubtful


def _judge(raw: pl.DataFrame, rows: Rows, append_times_ms: Sequence[int]) -> tuple[pl.DataFrame, list[int]]:
    """Of strictly read messages those that are readings beyond doubt, and the rows of the others."""
    ids = raw["device_id"].unique()
    good_ids = [device_id for device_id in ids if device_id is not None and usual_device_id(device_id)]
    parsed = raw.with_columns(
        pl.Series("row", rows, dtype=pl.UInt32),
        pl.Series("_appended", append_times_ms, dtype=pl.Int64),
        _moments(raw["event_time"]),
        source=pl.col("source").fill_null(str(Source.DEVICE)),
        schema_version=pl.col("schema_version").fill_null(SCHEMA_VERSION).cast(pl.Int32, strict=False),
    )
    decided = parsed.select(_DECODED)
    if len(good_ids) == len(ids) and all(parsed.select(**_ALL_SURE).row(0)):
        return decided, []
    verdict = parsed.select(
        pl.all_horizontal(*_SURE, pl.col("device_id").is_in(good_ids).fill_null(value=False))
    ).to_series()
    return decided.filter(verdict), parsed["row"].filter(~verdict).to_list()


def _moments(texts: pl.Series) -> pl.Series:
    """The moments of the usual form, null for any other."""
    usual = texts.str.contains(USUAL_TIME)
    if not usual.all() or usual.null_count():
        texts = texts.to_frame().select(pl.when(usual).then(pl.col("event_time")).alias("event_time")).to_series()
    whole_seconds = texts.str.len_bytes().max() == len("2022-06-09T00:08:51Z")
    # Devices report at the same seconds, and only this form lets the parser remember the texts it has seen.
    form = "%Y-%m-%dT%H:%M:%SZ" if whole_seconds else "%Y-%m-%dT%H:%M:%S%.fZ"
    return texts.str.strptime(pl.Datetime("us"), form, strict=False, cache=True).dt.replace_time_zone("UTC")


_LATEST = pl.from_epoch("_appended", time_unit="ms").cast(pl.Datetime("us")).dt.replace_time_zone("UTC") + (
    LARGEST_CLOCK_LEAD
)
#: What makes a message a reading beyond doubt, row by row.
_SURE: tuple[pl.Expr, ...] = (
    (pl.col("event_time") >= EARLIEST_EVENT_TIME).fill_null(value=False),
    (pl.col("_appended") < 0) | (pl.col("event_time") <= _LATEST).fill_null(value=False),
    pl.any_horizontal(pl.col(name).is_not_null() for name in ALL_SENSOR_NAMES),
    *(pl.col(sensor.name).is_between(sensor.low, sensor.high).fill_null(value=True) for sensor in ALL_SENSORS),
    pl.col("sequence").is_between(0, LARGEST_SEQUENCE).fill_null(value=True),
    (pl.col("schema_version") == SCHEMA_VERSION).fill_null(value=False),
    pl.col("source").is_in(SOURCES).fill_null(value=False),
)


def _within(name: str, low: float, high: float) -> pl.Expr:
    """Whether no value of the column lies outside; nulls don't count, NaN does."""
    return (pl.col(name).min() >= low).fill_null(value=True) & (pl.col(name).max() <= high).fill_null(value=True)


#: The same for all rows at once, by extremes: several times cheaper, and nearly always true.
_ALL_SURE: dict[str, pl.Expr] = {
    "event_time": (pl.col("event_time").min() >= EARLIEST_EVENT_TIME) & (pl.col("event_time").null_count() == 0),
    "appended": ((pl.col("_appended") < 0) | (pl.col("event_time") <= _LATEST)).all(),
    "measured": pl.any_horizontal(pl.col(name).null_count() == 0 for name in ALL_SENSOR_NAMES),
    **{sensor.name: _within(sensor.name, sensor.low, sensor.high) for sensor in ALL_SENSORS},
    "sequence": _within("sequence", 0, LARGEST_SEQUENCE),
    "schema_version": _within("schema_version", SCHEMA_VERSION, SCHEMA_VERSION)
    & (pl.col("schema_version").null_count() == 0),
    "source": pl.col("source").is_in(SOURCES).all(),
}


def _decide_each(
    places: list[int], values: Sequence[bytes | None], append_times_ms: Sequence[int]
) -> tuple[pl.DataFrame, list[tuple[int, ReadingRejected]]]:
    rows: list[tuple[object, ...]] = []
    rejects: list[tuple[int, ReadingRejected]] = []
    for place in places:
        try:
            reading = parse_reading(values[place], append_time=append_moment(append_times_ms[place]))
        except ReadingRejected as reject:
            rejects.append((place, reject))
            continue
        rows.append(
            (
                place,
                reading.device_id,
                reading.event_time,
                *(reading.sensors.get(name) for name in ALL_SENSOR_NAMES),
                reading.fire_alarm,
                reading.sequence,
                reading.schema_version,
                str(reading.source),
            )
        )
    return pl.DataFrame(rows, schema=DECODED_SCHEMA, orient="row"), rejects
