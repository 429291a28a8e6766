"""The challenger in shadow: what it would have done on the readings that arrived since it was last looked at.

Belongs here: which stretch of time is compared next, the sums since it became challenger, the report's page. Does not:
the figures and the decision (``domain.shadow``), scoring (``adapters.model_replay``), acting on the decision
(``adapters.model_lifecycle``), when (``orchestration.model_watch``).

The sums stand in the newest report, so that nothing else has to be kept: a report of another challenger, another
champion or another publication of the same one begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from smoke_platform.adapters import model_replay, svg
from smoke_platform.adapters.lake import Lake
from smoke_platform.adapters.model_replay import LiveReadings
from smoke_platform.adapters.registry import CHALLENGER_FILE
from smoke_platform.adapters.reports import ReportStore, Section, StoredReport, page
from smoke_platform.adapters.scorer import OnnxScorer, read_champion
from smoke_platform.domain import shadow
from smoke_platform.domain.alarm_replay import Replay
from smoke_platform.domain.shadow import CLASSES, ChallengerDecision, ShadowFigures, ShadowWindow
from smoke_platform.settings import Settings

KIND = "shadow"
#: Readings of the last minute may still be on their way into the lake.
IN_FLIGHT = timedelta(minutes=1)
LONGEST_WINDOW = timedelta(hours=12)
#: Device-hours before a challenger that a person set is recommended, where no setting says how many.
LEAST_DEVICE_HOURS = 24.0
#: Alarms of only one of the two that a report names.
MOST_NAMED = 100


@dataclass(frozen=True)
class Watched:
    """One comparison.

    Attributes:
        champion, challenger: versions.
        so_far: sums since it became challenger, this window included.
    """

    report: StoredReport
    champion: str
    challenger: str
    window: ShadowFigures
    so_far: ShadowFigures
    decision: ChallengerDecision


def watch(settings: Settings, now: datetime) -> Watched | str:
    """Compares challenger and champion on the readings that arrived since the last comparison.

    Returns:
        The comparison, or why there was none.

    Raises:
        ModelRefused: for a challenger or champion that must not be believed; ``version`` says which one.
    """
    if not (settings.models_dir / CHALLENGER_FILE).exists():
        return "no version is watched in shadow"
    challenger = OnnxScorer.load(settings.models_dir, read_champion(settings.models_dir, CHALLENGER_FILE))
    champion = OnnxScorer.load(settings.models_dir, read_champion(settings.models_dir))
    store = ReportStore(settings.reports_dir, settings.report_retention)
    key = {
        "champion": champion.version,
        "challenger": challenger.version,
        "since": challenger.champion.published_at,
    }
    before = _before(store, key)
    live = _next_readings(Lake(settings.lake), before, challenger, now)
    if live is None:
        return f"nothing has arrived since version {challenger.version} was last looked at"
    replays = model_replay.replay(live, champion), model_replay.replay(live, challenger)
    found = shadow.compare(live.readings, *replays, live.truth)
    so_far = ShadowFigures.of(before["so_far"]) + found.figures if before else found.figures
    decision = shadow.challenger_decision(so_far, settings.shadow_hours or LEAST_DEVICE_HOURS)
    named = _named(live, found, *replays)
    data = {
        **key,
        "start": live.start,
        "end": live.end,
        "devices": len(live.devices),
        "all_devices": live.all_devices,
        "window": found.figures.as_dict(),
        "so_far": so_far.as_dict(),
        "decision": decision.action,
        "reason": decision.reason,
        "score_difference_classes": found.classes,
        "alarms_of_one_alone": named,
    }
    report = store.write(KIND, _page(live, data, found, so_far, named), data, moment=now)
    return Watched(report, champion.version, challenger.version, found.figures, so_far, decision)


def _before(store: ReportStore, key: Mapping[str, str]) -> dict[str, Any] | None:
    latest = store.latest(KIND)
    return latest if latest and all(latest.get(name) == value for name, value in key.items()) else None


def _next_readings(
    lake: Lake, before: Mapping[str, Any] | None, challenger: OnnxScorer, now: datetime
) -> LiveReadings | None:
    """The next stretch of at most ``LONGEST_WINDOW`` in which something arrived."""
    since = before["end"] if before else challenger.champion.published_at
    start = datetime.fromisoformat(since).astimezone(UTC)
    last = (now.astimezone(UTC) - IN_FLIGHT).replace(second=0, microsecond=0)
    while start < last:
        end = min(start + LONGEST_WINDOW, last)
        live = model_replay.load(lake, start, end)
        if live is not None:
            return live
        start = end
    return None


def _named(live: LiveReadings, found: ShadowWindow, champion: Replay, challenger: Replay) -> list[dict[str, Any]]:
    readings = live.readings
    words = {1.0: "fire", 0.0: "no fire"}
    return [
        {
            "device": live.devices[int(readings.slots[row])],
            "event time (UTC)": f"{datetime.fromtimestamp(readings.seconds[row], UTC):%Y-%m-%d %H:%M:%S}",
            "alarm of": whose,
            "champion's score": float(champion.scores[row]),
            "challenger's score": float(challenger.scores[row]),
            "truth": words.get(float(live.truth[row]), "not known"),
        }
        for row, whose in found.disagreements[:MOST_NAMED]
    ]


def _page(
    live: LiveReadings,
    data: Mapping[str, Any],
    found: ShadowWindow,
    so_far: ShadowFigures,
    named: list[dict[str, Any]],
) -> str:
    left_out = live.all_devices - len(live.devices)
    return page(
        "Challenger in shadow",
        f"Version {data['challenger']} beside champion {data['champion']} on the readings that arrived from "
        f"{live.start:%Y-%m-%d %H:%M} to {live.end:%Y-%m-%d %H:%M} UTC; {len(live.devices)} devices"
        + (f", {left_out} left out for their number" if left_out else ""),
        {"promote": "ready to be promoted", "watch": "watched on", "drop": "dropped"}[data["decision"]],
        [
            Section("Decision", None, lines=[data["reason"]]),
            Section("Since it became challenger", sides(so_far)),
            Section("This window", sides(found.figures)),
            Section(
                "How far the scores are apart",
                None,
                "Readings of this window by the difference of the two probabilities.",
                svg.columns(
                    "Readings by difference of score",
                    [f"{place / CLASSES:.2f}" for place in range(CLASSES)],
                    [float(count) for count in found.classes],
                ),
            ),
            Section("Alarms that only one of the two raised", named, f"The first {MOST_NAMED} at most."),
        ],
    )


def sides(figures: ShadowFigures) -> list[dict[str, Any]]:
    """Champion and challenger side by side, as rows of a table."""

    def share(count: int, of: int) -> float | None:
        return count / of if of else None

    f = figures
    rows: list[tuple[str, Any, Any]] = [
        ("device-hours", f.device_hours, f.device_hours),
        ("readings", f.readings, f.readings),
        ("called fire", f.champion_calls, f.challenger_calls),
        ("fire alarms", f.champion_alarms, f.challenger_alarms),
        ("alarms a device-day", f.per_device_day(f.champion_alarms), f.per_device_day(f.challenger_alarms)),
        ("alarms that the other did not raise", f.only_champion, f.only_challenger),
        ("of them in known fires", f.only_champion_in_fire, f.only_challenger_in_fire),
        ("of them where it is known not to burn", f.only_champion_in_quiet, f.only_challenger_in_quiet),
        (
            "seconds later than the other, in known fires",
            -f.later_in_fire_s / f.both_in_fire if f.both_in_fire else None,
            f.later_in_fire_s / f.both_in_fire if f.both_in_fire else None,
        ),
        ("accuracy where the truth is known", share(f.champion_right, f.known), share(f.challenger_right, f.known)),
        (
            "recall in known fires",
            share(f.champion_fires_called, f.known_fires),
            share(f.challenger_fires_called, f.known_fires),
        ),
        ("readings without a usable score", 0, f.unscored),
        ("readings called otherwise by the other", f.call_disagreements, f.call_disagreements),
        ("mean difference of the scores", share_of(f), share_of(f)),
    ]
    return [{"figure": name, "champion": champion, "challenger": challenger} for name, champion, challenger in rows]


def share_of(figures: ShadowFigures) -> float | None:
    """Mean difference of the scores, 0..1; ``None`` without readings."""
    return figures.difference_sum / figures.readings if figures.readings else None
