"""Reports as files: Evidently's drawn drift report, pages of our own, and the store that keeps a bounded number.

Belongs here: turning figures into HTML and JSON, where the files lie, how many are kept. Does not: the figures (the
``domain`` modules), when a report is made (``orchestration.monitoring``), serving the files (``serving``).

Layout: ``<reports_dir>/<kind>/<moment>[_<label>].html`` and ``.json`` beside it, ``latest.json`` naming the newest.
Names sort by time.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoke_platform.domain.errors import SmokeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LATEST_FILE = "latest.json"
_SAFE = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report on disk.

    Attributes:
        kind: such as ``drift``; the folder's name.
        page: the HTML file; ``data``: the JSON file beside it.
        removed: how many older reports of the kind made room.
    """

    kind: str
    page: Path
    data: Path
    removed: int = 0

    @property
    def route(self) -> str:
        """Path of the page below the API's address."""
        return f"/reports/{self.kind}/{self.page.name}"


class ReportStore:
    """Keeps the newest ``keep`` reports of each kind below ``root``."""

    def __init__(self, root: Path, keep: int) -> None:
        self._root = root
        self._keep = keep

    def write(
        self, kind: str, page: str, data: Mapping[str, Any], *, moment: datetime, label: str = ""
    ) -> StoredReport:
        """Stores a report, then removes the oldest ones beyond the number to keep.

        Each file appears whole or not at all.

        Args:
            kind: such as ``drift``.
            page: HTML.
            data: what JSON can hold, and dates.
            moment: when it was made, with a zone.
            label: such as the partition; letters, digits, dot, dash and underscore.

        Raises:
            SmokeError: for a kind or label that is no file name.
        """
        for text in (kind, label or "x"):
            if not _SAFE.fullmatch(text):
                raise SmokeError(f"{text!r} cannot be part of a report's name", "use letters, digits, '.', '-' and '_'")
        folder = self._root / kind
        folder.mkdir(parents=True, exist_ok=True)
        stem = moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ") + (f"_{label}" if label else "")
        place, beside = folder / f"{stem}.html", folder / f"{stem}.json"
        _write(beside, to_json(data))
        _write(place, page)
        _write(folder / LATEST_FILE, to_json({"page": place.name, "data": beside.name, "made_at": moment}))
        return StoredReport(kind, place, beside, self._prune(folder))

    def list(self, kind: str) -> list[Path]:
        """The pages of a kind, the oldest first."""
        return sorted((self._root / kind).glob("*.html"))

    def latest(self, kind: str) -> dict[str, Any] | None:
        """The data of the newest report of a kind, or ``None`` where there is none."""
        pages = self.list(kind)
        if not pages:
            return None
        found: dict[str, Any] = json.loads(pages[-1].with_suffix(".json").read_text("utf-8"))
        return found

    def _prune(self, folder: Path) -> int:
        outdated = sorted(folder.glob("*.html"))[: -self._keep]
        for page in outdated:
            page.unlink(missing_ok=True)
            page.with_suffix(".json").unlink(missing_ok=True)
        return len(outdated)


def _write(place: Path, text: str) -> None:
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)


def to_json(data: Any) -> str:
    """JSON with dates in ISO 8601, paths as text and NaN as null."""
    return json.dumps(_plain(data), ensure_ascii=False, indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# -- Evidently ---------------------------------------------------------------------------------------------------

#: Fixed for every sample size: Evidently's own choice changes its method at 1,000 rows, and its verdict with it.
DRIFT_METHOD = "wasserstein"
SHARE_METHOD = "jensenshannon"

_Column = Mapping[str, "npt.NDArray[np.floating[Any]]"]


@dataclass(frozen=True, slots=True)
class DrawnDrift:
    """Evidently's report.

    Attributes:
        page: HTML, about 4.5 MB whatever the data, complete in itself.
        distances: column -> normed Wasserstein distance as Evidently computes it, those drawn beside included.
        drifted_share: Evidently's share of drifted columns, 0..1.
        shares: name -> Jensen-Shannon distance as Evidently computes it.
    """

    page: str
    distances: Mapping[str, float]
    drifted_share: float
    shares: Mapping[str, float]


def draw_drift(
    reference: _Column,
    current: _Column,
    columns: Sequence[str],
    *,
    threshold: float,
    drifted_share: float,
    beside: Sequence[str] = (),
    shares: Mapping[str, tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]] | None = None,
    share_threshold: float = 0.1,
) -> DrawnDrift:
    """Evidently's drift report of ``columns``, one named method for all of them.

    Takes about 7 s for the import and 2 s for 47 columns of 10,000 rows.

    Args:
        reference: column -> values; NaN (not measured) is left out. Each column needs values on both sides.
        current: the same for the day.
        threshold: distance from which on a column counts as drifted.
        drifted_share: share of drifted columns from which on the page calls the data set drifted.
        beside: more columns, drawn and measured alike but not counted in the share.
        shares: name -> whether it is so in each row of training and of the day, bool ``[n]``; of any rows.
        share_threshold: Jensen-Shannon distance from which on one of them counts as drifted.
    """
    # Evidently sends usage statistics unless this is set before it is imported.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.presets import DataDriftPreset

    names = [*columns, *beside]
    definition = DataDefinition(numerical_columns=names)
    before, now = (
        Dataset.from_pandas(pd.DataFrame({name: side[name] for name in names}), data_definition=definition)
        for side in (reference, current)
    )
    preset = DataDriftPreset(
        columns=list(columns), num_method=DRIFT_METHOD, num_threshold=threshold, drift_share=drifted_share
    )
    alone = [ValueDrift(column=name, method=DRIFT_METHOD, threshold=threshold) for name in beside]
    with warnings.catch_warnings():
        # A column that is constant (a sensor at its floor all day) makes its correlation plot divide by zero.
        warnings.simplefilter("ignore", RuntimeWarning)
        drawn = Report([preset, *alone]).run(now, before)
    found = _value_drifts(drawn)
    share = next(
        float(entry["value"]["share"])
        for entry in drawn.dict()["metrics"]
        if entry["config"]["type"] == "evidently:metric_v2:DriftedColumnsCount"
    )
    of_shares: dict[str, float] = {}
    for name, sides in (shares or {}).items():
        words = [pd.DataFrame({name: ["yes" if so else "no" for so in side.tolist()]}) for side in sides]
        kind = DataDefinition(categorical_columns=[name])
        was, is_now = (Dataset.from_pandas(frame, data_definition=kind) for frame in words)
        metric = ValueDrift(column=name, method=SHARE_METHOD, threshold=share_threshold)
        of_shares |= _value_drifts(Report([metric]).run(is_now, was))
    return DrawnDrift(drawn.get_html_str(as_iframe=False), found, share, of_shares)


def _value_drifts(drawn: Any) -> dict[str, float]:
    return {
        entry["config"]["column"]: float(entry["value"])
        for entry in drawn.dict()["metrics"]
        if entry["config"]["type"] == "evidently:metric_v2:ValueDrift"
    }


def headed(drawn: str, title: str, lead: str, headline: str, sections: Iterable[Section]) -> str:
    """A page that another program has drawn, with a summary of ours above it; the arguments are those of ``page``."""
    head = (
        f'<div class="smoke-summary"><style>{_scoped(_STYLE)}</style><h1>{html.escape(title)}</h1>'
        f'<p class="muted">{html.escape(lead)}</p><p class="score">{html.escape(headline)}</p>'
        f"{''.join(_section(section) for section in sections)}</div>"
    )
    return drawn.replace("<body>", f"<body>{head}", 1) if "<body>" in drawn else head + drawn


def _scoped(style: str) -> str:
    """The style for the summary alone: what is drawn below has its own."""
    rules = [rule for rule in style.strip().split("}") if rule.strip()]
    scoped = []
    for rule in rules:
        selectors, _, body = rule.strip().partition("{")
        places = [
            ".smoke-summary" if name in (":root", "body") else f".smoke-summary {name}" for name in selectors.split(",")
        ]
        scoped.append(f"{','.join(places)}{{{body}}}")
    return "".join(scoped)


# -- pages of our own --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a note, sentences, a figure and a table.

    Attributes:
        rows: of the table, mappings with the same keys; ``None`` for a section without one.
        note: what the section is, in small.
        figure: SVG of ``adapters.svg``, taken as it is.
        lines: sentences, as a list.
    """

    title: str
    rows: Sequence[Mapping[str, Any]] | None
    note: str = ""
    figure: str = ""
    lines: Sequence[str] = ()


_STYLE = """
:root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}
body{margin:2rem auto;max-width:70rem;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.1rem;margin:2rem 0 .3rem}
.score{font-size:2.4rem;font-weight:650}.muted{opacity:.7}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
li{margin:.25rem 0}svg{display:block;max-width:100%;height:auto;margin:.6rem 0}
"""


def page(title: str, lead: str, headline: str, sections: Iterable[Section]) -> str:
    """A page without scripts or anything from elsewhere.

    Args:
        title: the subject.
        lead: what was looked at, in a sentence.
        headline: the one figure, such as ``score 97.2``.
        sections: tables below it.
    """
    body = "".join(_section(section) for section in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f'<h1>{html.escape(title)}</h1><p class="muted">{html.escape(lead)}</p>'
        f'<p class="score">{html.escape(headline)}</p>{body}</body></html>\n'
    )


def _section(section: Section) -> str:
    note = f'<p class="muted">{html.escape(section.note)}</p>' if section.note else ""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in section.lines)
    heading = f"<h2>{html.escape(section.title)}</h2>{note}{f'<ul>{lines}</ul>' if lines else ''}{section.figure}"
    if section.rows is None:
        return heading
    if not section.rows:
        return f"{heading}<p>none</p>"
    names = list(section.rows[0])
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(shown(row.get(name)))}</td>" for name in names) + "</tr>"
        for row in section.rows
    )
    return f'{heading}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, for Dagster's metadata; "none" for no rows."""
    if not rows:
        return "none"
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(shown(row.get(name)).replace("|", "\\|") for name in names) + " |" for row in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value as a person reads it: four significant digits, a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    return str(value)
