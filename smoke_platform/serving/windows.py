"""The windows of a device over HTTP, and their metrics.

Belongs here: what the endpoint answers, which devices it knows, how old the newest window is. Does not: the route
(``serving.app``), reading the table (``adapters.windows``), the statistics (``domain.windows``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import anyio.to_thread
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from anyio import CapacityLimiter
from deltalake import DeltaTable
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.windows import WINDOWS, WRITTEN_AT, Intervals, WindowTable, open_windows
from smoke_platform.domain.alarms import Severity
from smoke_platform.domain.readings import SENSOR_NAMES
from smoke_platform.domain.windows import STATISTICS, WINDOW_SCHEMA
from smoke_platform.serving.requests import RequestFault

#: Windows in one answer: a day of them is 1,440.
MOST_WINDOWS = 1500
INTERVALS_EVERY_S = 60.0
#: Each question reads files of the lake; more at once would only wait for the same disk.
QUESTIONS_AT_ONCE = 4

_log = logging.getLogger(__name__)
_FACTS = tuple(
    name
    for name in WINDOW_SCHEMA
    if name not in ("event_date", "device_id", "level")
    and not any(name.startswith(f"{sensor}_") and name[len(sensor) + 1 :] in STATISTICS for sensor in SENSOR_NAMES)
)


class WindowView(msgspec.Struct, kw_only=True):
    """One window of a device.

    Attributes:
        open: whether it is not over: it was computed for this answer and still grows.
        revision: how many readings it rests on; a later answer may have a higher one.
        level, level_sensor: the worst level of a mean, and whose: none, low, medium, high or critical.
        sensors: sensor -> statistic -> value, of the sensors that measured anything.
        written_at: when it was appended to the lake, ``None`` where it is open.
    """

    window_start: datetime
    window_end: datetime
    open: bool
    revision: int
    record_count: int
    duplicate_count: int
    expected_count: int
    completeness: float
    label_count: int
    fire_label_count: int
    first_event_time: datetime
    last_event_time: datetime
    quality_score: float
    validity: float
    plausibility: float
    freshness: float
    level: str
    level_sensor: str | None
    sensors: dict[str, dict[str, float | None]]
    written_at: datetime | None


class DeviceWindows(msgspec.Struct, kw_only=True):
    """A device's windows, the newest first, each at its latest revision."""

    device_id: str
    windows: list[WindowView]


def view(row: dict[str, Any], *, is_open: bool) -> WindowView:
    """A row of windows as it is answered."""
    sensors = {
        sensor: {statistic: row[f"{sensor}_{statistic}"] for statistic in STATISTICS}
        for sensor in SENSOR_NAMES
        if row[f"{sensor}_mean"] is not None
    }
    return WindowView(
        **{name: row[name] for name in _FACTS},
        open=is_open,
        level=Severity(row["level"]).label if row["level"] else "none",
        sensors=sensors,
        written_at=row.get(WRITTEN_AT),
    )


class WindowDesk:
    """Answers questions for windows out of the lake."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._table = WindowTable(lake)
        self._intervals = Intervals(lake, every_s=INTERVALS_EVERY_S, monotonic=monotonic)
        self._slots = CapacityLimiter(QUESTIONS_AT_ONCE)

    async def of_device(
        self, device_id: str, since: datetime | None, until: datetime | None, limit: int, *, with_open: bool
    ) -> DeviceWindows:
        """The newest ``limit`` windows of the device that start at ``since`` or later and before ``until``.

        Raises:
            RequestFault: 404 for a device that is not known, 422 for a time that ends before it begins.
        """
        since, until = _in_utc(since), _in_utc(until)
        if since is not None and until is not None and until <= since:
            raise RequestFault(
                422, "parameter", "until is not after since", "windows start at since or later", field="until"
            )

        def read() -> DeviceWindows:
            return self._read(device_id, since, until, limit, with_open=with_open)

        return await anyio.to_thread.run_sync(read, limiter=self._slots)

    def _read(
        self, device_id: str, since: datetime | None, until: datetime | None, limit: int, *, with_open: bool
    ) -> DeviceWindows:
        found = []
        if with_open:
            growing = open_windows(
                self._lake, device_id, now=datetime.now(UTC), intervals_s=self._intervals.current()
            ).to_dicts()
            found = [
                view(row, is_open=True)
                for row in growing
                if (since is None or row["window_start"] >= since) and (until is None or row["window_start"] < until)
            ]
        rows = self._table.of_device(device_id, since, until, limit)
        # A window that silence has ended stands in the table although its device has come back to it.
        shown = {each.window_start for each in found}
        found += [view(row, is_open=False) for row in rows.to_dicts() if row["window_start"] not in shown]
        if not found and not self._knows(device_id):
            raise RequestFault(
                404,
                "no_such_device",
                "no window of such a device is known",
                "GET /devices lists those that report; a first window is over after five minutes",
                field="device_id",
            )
        return DeviceWindows(device_id=device_id, windows=found[:limit])

    def _knows(self, device_id: str) -> bool:
        return device_id in self._intervals.current() or self._table.knows(device_id)


def _in_utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class WindowMetrics(Collector):
    """How much stands in the table and when it was written last, from the table's own log: no file is opened."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._table: DeltaTable | None = None

    def collect(self) -> Iterable[Metric]:
        try:
            rows, newest = self._look()
        except Exception:  # noqa: BLE001 - deltalake and the object store raise what they like; the rest is exported
            _log.exception("the table of windows could not be looked at")
            self._table = None
            return
        yield GaugeMetricFamily("smoke_window_rows", "Rows of lake/window_statistics, all revisions", rows)
        if newest is not None:
            yield GaugeMetricFamily(
                "smoke_window_written_timestamp_seconds", "When the newest window was appended", newest.timestamp()
            )

    def _look(self) -> tuple[int, datetime | None]:
        if self._table is None:
            if not self._lake.exists(WINDOWS):
                return 0, None
            self._table = self._lake.open(WINDOWS)
        else:
            self._table.update_incremental()
        files = pa.table(self._table.get_add_actions(flatten=True))
        if not files.num_rows:
            return 0, None
        stated = f"max.{WRITTEN_AT}"  # it is missing where whoever made the table does not keep this statistic
        newest = pc.max(files[stated]).as_py() if stated in files.column_names else None
        return int(pc.sum(files["num_records"]).as_py() or 0), _in_utc(newest)
