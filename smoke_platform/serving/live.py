"""What landed lately: the last reading of each device, read from the lake.

Belongs here: a cheap, cached look at the newest files of ``lake/readings``. Does not: history (the marts), open
windows, alarms, anything that would open the warehouse's file.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import msgspec
import polars as pl
from deltalake import DeltaTable

from smoke_platform.adapters.lake import READINGS, Lake
from smoke_platform.domain.readings import ALL_SENSOR_NAMES

WINDOW = timedelta(minutes=5)
#: A view is used again for this long: many browsers then cost what one costs.
FRESH_S = 2.0
#: A request waits this long for a new view, then it gets the old one.
PATIENCE_S = 1.5
#: Devices in one answer; the number of all stands beside them.
MOST_DEVICES = 1000

_COLUMNS = ["device_id", "event_time", *ALL_SENSOR_NAMES, "fire_alarm", "sequence", "source", "ingest_time"]
_log = logging.getLogger(__name__)


class LiveView(msgspec.Struct, kw_only=True):
    """The lake's newest readings, as of ``at``.

    Attributes:
        state: ``ok``; ``idle``, when nothing landed within the window; ``missing``, when nothing ever did; ``error``.
        detail: why, for a person; empty while all is well.
        at: when this was read, UTC.
        window_s: how far back it looks, by landing time.
        readings: how many landed within the window.
        per_second: the same, per second since the first of them: a platform that has just started has no whole window.
        last_landed: when the newest one landed.
        devices: how many devices reported.
        last: the last reading of each, by event time, at most ``MOST_DEVICES``, ordered by device.
    """

    state: str
    detail: str
    at: datetime
    window_s: float
    readings: int = 0
    per_second: float = 0.0
    last_landed: datetime | None = None
    devices: int = 0
    last: list[dict[str, Any]] = msgspec.field(default_factory=list)


class LiveReadings:
    """Keeps a view of the newest readings; belongs to one event loop, the reading itself is done in a thread."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._table: DeltaTable | None = None
        self._view: LiveView | None = None
        self._read_at = -FRESH_S
        self._refresh: asyncio.Task[LiveView] | None = None

    async def view(self) -> LiveView:
        """The present view, at most ``FRESH_S`` old where the lake answers within ``PATIENCE_S``."""
        if self._view is not None and monotonic() - self._read_at < FRESH_S:
            return self._view
        refresh = self._refresh
        if refresh is None:
            refresh = self._refresh = asyncio.create_task(self._renew())
        done, _ = await asyncio.wait({refresh}, timeout=PATIENCE_S)
        if not done and self._view is not None:
            return self._view
        return await asyncio.shield(refresh)

    async def _renew(self) -> LiveView:
        try:
            self._view = await asyncio.to_thread(self.read)
            self._read_at = monotonic()
            return self._view
        finally:
            self._refresh = None

    def read(self) -> LiveView:
        """Reads the lake now; a fault becomes a view that says so, since a console must go on showing the rest."""
        now = datetime.now(UTC)
        try:
            return self._read(now)
        except Exception as error:  # noqa: BLE001 - deltalake, polars and the object store raise what they like
            _log.exception("the lake's newest readings could not be read")
            self._table = None
            return LiveView(
                state="error",
                detail=f"{type(error).__name__} while reading the lake; the service's log has more",
                at=now,
                window_s=WINDOW.total_seconds(),
            )

    def _read(self, now: datetime) -> LiveView:
        empty = LiveView(state="missing", detail="no reading has landed yet", at=now, window_s=WINDOW.total_seconds())
        if self._table is None:
            if not self._lake.exists(READINGS):
                return empty
            self._table = self._lake.open(READINGS)
        else:
            self._table.update_incremental()
        since = now - WINDOW
        # By landing time, not event time: a replay of old readings is live too. The files' statistics answer it.
        files = self._table.file_uris(file_pruning_predicate=f"ingest_time >= '{since.isoformat()}'")
        frame = _newest(files, since) if files else None
        if frame is None or frame.is_empty():
            empty.state, empty.detail = "idle", f"nothing landed within {WINDOW.total_seconds() / 60:g} minutes"
            return empty
        last = frame.sort("event_time").group_by("device_id").last().sort("device_id")
        newest = frame["ingest_time"].max()
        return LiveView(
            state="ok",
            detail="",
            at=now,
            window_s=WINDOW.total_seconds(),
            readings=frame.height,
            per_second=frame.height / _span_s(frame, now),
            last_landed=newest if isinstance(newest, datetime) else None,
            devices=last.height,
            last=last.head(MOST_DEVICES).to_dicts(),
        )


def _span_s(frame: pl.DataFrame, now: datetime) -> float:
    oldest = frame["ingest_time"].min()
    return max(1.0, (now - oldest).total_seconds()) if isinstance(oldest, datetime) else 1.0


def _newest(files: list[str], since: datetime) -> pl.DataFrame:
    return (
        pl.scan_parquet(files, hive_partitioning=False)
        .select(_COLUMNS)
        .filter(pl.col("ingest_time") >= since)
        .collect()
    )
