"""Small figures as SVG: lines, curves, columns, bars, a matrix, intervals, spans, tracks, traces. Text in and out.

Belongs here: scales and shapes. Does not: what is drawn (``adapters.history_page`` and others), the page
(``adapters.reports``).

Colours are those of the page (``currentColor``), so that a figure is readable in light and dark, but for the series,
which have hues of middle lightness. Every figure has a title that screen readers read and a pointer shows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 14, 12, 24
#: Told apart by people with the usual kinds of colour blindness, too (after Okabe and Ito).
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
_GRID = 'stroke="currentColor" stroke-opacity=".18"'
_FAINT = 'fill="currentColor" fill-opacity=".7"'


def _svg(title: str, height: float, body: str, width: float = WIDTH) -> str:
    safe = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
        f'aria-label="{safe}" font-size="11" font-family="system-ui,sans-serif" fill="currentColor">'
        f"<title>{safe}</title>{body}</svg>"
    )


def _text(x: float, y: float, words: str, anchor: str = "start", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{html.escape(words)}</text>'


def short(value: float) -> str:
    """A number as an axis has it: 1.2k, 3M, 0.05.

    >>> short(1234567), short(0.0512), short(-20)
    ('1.235M', '0.051', '-20')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.4g}"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from ``low`` to ``high``, about so many."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Iterable[float | None], *, zero: bool = False) -> tuple[float, float]:
    present = [value for value in values if value is not None and math.isfinite(value)] or [0.0]
    low, high = min(present), max(present)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    return low, high


def _axes(height: float, low: float, high: float, labels: Sequence[str]) -> tuple[str, float, float]:
    """The grid with its numbers, and (scale, offset) of y: ``y = offset - value * scale``."""
    top, bottom = _TOP, height - _BOTTOM
    scale = (bottom - top) / (high - low)
    offset = bottom + low * scale
    body = ""
    for tick in ticks(low, high):
        y = offset - tick * scale
        body += f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {_GRID}/>'
        body += _text(_LEFT - 6, y + 4, short(tick), "end", _FAINT)
    every = max(1, math.ceil(len(labels) / 8))
    for place in range(0, len(labels), every):
        body += _text(_x(place, len(labels)), height - 6, labels[place], "middle", _FAINT)
    return body, scale, offset


def _x(place: float, count: int) -> float:
    return _LEFT + (place + 0.5) * (WIDTH - _LEFT - _RIGHT) / max(1, count)


def lines(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float | None]], height: float = 180) -> str:
    """Series over labels in even steps; a ``None`` leaves a gap. At most as many series as there are ``HUES``."""
    chosen = dict(list(series.items())[: len(HUES)])
    legend = 18 if len(chosen) > 1 else 0
    body, scale, offset = _axes(height, *_range(value for values in chosen.values() for value in values), labels)
    for (name, values), hue in zip(chosen.items(), HUES, strict=False):
        path, pen = "", "M"
        for place, value in enumerate(values):
            if value is None or not math.isfinite(value):
                pen = "M"
                continue
            path += f"{pen}{_x(place, len(labels)):.1f} {offset - value * scale:.1f}"
            pen = "L"
        body += (
            f'<path d="{path}" fill="none" stroke="{hue}" stroke-width="1.8" stroke-linejoin="round" '
            f'stroke-linecap="round"><title>{html.escape(name)}</title></path>'
        )
    if legend:
        x = float(_LEFT)
        for name, hue in zip(chosen, HUES, strict=False):
            body += f'<rect x="{x:.0f}" y="{height + 4:.0f}" width="10" height="10" rx="2" fill="{hue}"/>'
            body += _text(x + 14, height + 13, name)
            x += 24 + 6.6 * len(name)
    return _svg(title, height + legend, body)


def curves(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    across: str,
    up: str,
    *,
    diagonal: bool = False,
    width: float = 360,
) -> str:
    """Curves through points (x, y) of shares, on a square from 0 to 1.

    Args:
        across, up: what the axes are.
        diagonal: whether the line y = x is drawn, to which a curve is compared.
    """
    side = width - _LEFT - _RIGHT
    top, bottom = _TOP, _TOP + side
    body = ""
    for tick in ticks(0.0, 1.0):
        x, y = _LEFT + tick * side, bottom - tick * side
        body += f'<line x1="{_LEFT}" x2="{_LEFT + side:.1f}" y1="{y:.1f}" y2="{y:.1f}" {_GRID}/>'
        body += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom:.1f}" {_GRID}/>'
        body += _text(_LEFT - 6, y + 4, short(tick), "end", _FAINT) + _text(
            x, bottom + 14, short(tick), "middle", _FAINT
        )
    if diagonal:
        body += (
            f'<line x1="{_LEFT}" x2="{_LEFT + side:.1f}" y1="{bottom:.1f}" y2="{top}" {_GRID} stroke-dasharray="4 4"/>'
        )
    for (name, points), hue in zip(series.items(), HUES, strict=False):
        placed = [
            (_LEFT + min(max(x, 0.0), 1.0) * side, bottom - min(max(y, 0.0), 1.0) * side)
            for x, y in points
            if math.isfinite(x) and math.isfinite(y)
        ]
        path = "".join(f"{'L' if place else 'M'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(placed))
        body += (
            f'<path d="{path}" fill="none" stroke="{hue}" stroke-width="1.8"><title>{html.escape(name)}</title></path>'
        )
        if len(placed) <= 20:
            body += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{hue}"/>' for x, y in placed)
    body += _text(_LEFT + side / 2, bottom + 30, across, "middle")
    turned = f'transform="translate(24 {top + side / 2:.0f}) rotate(-90)"'
    body += f'<text {turned} text-anchor="middle">{html.escape(up)}</text>'
    x = float(_LEFT)
    if len(series) > 1:
        for name, hue in zip(series, HUES, strict=False):
            body += f'<rect x="{x:.0f}" y="{bottom + 38:.0f}" width="10" height="10" rx="2" fill="{hue}"/>'
            body += _text(x + 14, bottom + 47, name)
            x += 24 + 6.6 * len(name)
    return _svg(title, bottom + (54 if len(series) > 1 else 36), body, width)


def columns(title: str, labels: Sequence[str], values: Sequence[float], height: float = 140) -> str:
    """A column for each label, from zero."""
    low, high = _range(values, zero=True)
    body, scale, offset = _axes(height, low, high, labels)
    width = 0.8 * (WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    for place, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = offset - max(value, 0.0) * scale
        body += (
            f'<rect x="{_x(place, len(values)) - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{abs(value) * scale:.1f}" fill="{HUES[0]}">'
            f"<title>{html.escape(label)}: {short(value)}</title></rect>"
        )
    return _svg(title, height, body)


def bars(title: str, rows: Sequence[tuple[str, float]]) -> str:
    """A named bar for each row, from zero to the right; values are not negative."""
    most = max((value for _, value in rows), default=0.0) or 1.0
    left, step = 220, 20
    body = ""
    for place, (name, value) in enumerate(rows):
        y = _TOP + place * step
        width = (WIDTH - left - 70) * value / most
        body += _text(left - 8, y + 11, name, "end")
        body += f'<rect x="{left}" y="{y}" width="{max(width, 1):.1f}" height="14" rx="2" fill="{HUES[0]}"/>'
        body += _text(left + width + 6, y + 11, f"{value:,.0f}", style=_FAINT)
    return _svg(title, _TOP + len(rows) * step + 4, body)


def matrix(title: str, names: Sequence[str], values: Mapping[tuple[str, str], float]) -> str:
    """A square of correlations (-1 to 1): blue together, orange against each other, the number in each field."""
    left, cell, top = 120, 48, 78
    body = ""
    for place, name in enumerate(names):
        x = left + (place + 0.5) * cell
        body += _text(left - 8, top + (place + 0.5) * cell * 0.55 + 4, name, "end")
        body += (
            f'<text transform="translate({x:.0f} {top - 6}) rotate(-40)" text-anchor="start">{html.escape(name)}</text>'
        )
        for other, second in enumerate(names):
            value = 1.0 if name == second else values.get((name, second)) or values.get((second, name))
            x, y = left + other * cell, top + place * cell * 0.55
            if value is None:
                body += _text(x + cell / 2, y + cell * 0.35, "-", "middle", _FAINT)
                continue
            hue = HUES[0] if value >= 0 else HUES[1]
            body += (
                f'<rect x="{x:.0f}" y="{y:.1f}" width="{cell - 2}" height="{cell * 0.55 - 2:.1f}" rx="2" fill="{hue}" '
                f'fill-opacity="{min(abs(value), 1.0) * 0.75:.2f}"><title>{html.escape(name)}, '
                f"{html.escape(second)}: {value:.3f}</title></rect>"
            )
            body += _text(x + cell / 2 - 1, y + cell * 0.35, f"{value:.2f}", "middle")
    return _svg(title, top + len(names) * cell * 0.55 + 6, body, left + len(names) * cell + 40)


def intervals(title: str, rows: Sequence[tuple[str, float, float, float, bool]]) -> str:
    """(name, low, middle, high, marked) of each row on an axis of their own scale, with zero drawn in."""
    left, step = 220, 20
    low, high = _range([value for _, first, _, last, _ in rows for value in (first, last)], zero=True)
    scale = (WIDTH - left - _RIGHT - 20) / (high - low)
    bottom = _TOP + len(rows) * step
    body = ""
    for tick in ticks(low, high, 6):
        x = left + (tick - low) * scale
        weight = 'stroke="currentColor" stroke-opacity=".6"' if tick == 0 else _GRID
        body += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{bottom}" {weight}/>'
        body += _text(x, bottom + 14, short(tick), "middle", _FAINT)
    for place, (name, first, middle, last, marked) in enumerate(rows):
        y = _TOP + place * step + 6
        hue = HUES[1] if marked else HUES[0]
        ends = [left + (min(max(value, low), high) - low) * scale for value in (first, middle, last)]
        body += _text(left - 8, y + 4, name, "end")
        body += f'<line x1="{ends[0]:.1f}" x2="{ends[2]:.1f}" y1="{y}" y2="{y}" stroke="{hue}" stroke-width="3"/>'
        body += f'<circle cx="{ends[1]:.1f}" cy="{y}" r="4" fill="{hue}"/>'
    return _svg(title, bottom + 20, body)


def tracks(title: str, rows: Sequence[tuple[str, float, float, Sequence[tuple[float, float]]]], unit: str = "") -> str:
    """(name, start, end, marked stretches) of each row along one axis: a faint bar, the stretches in a hue upon it."""
    left, step = 220, 20
    low, high = _range([value for _, start, end, _ in rows for value in (start, end)])
    scale = (WIDTH - left - _RIGHT - 20) / (high - low)
    bottom = _TOP + len(rows) * step
    body = ""
    for tick in ticks(low, high, 6):
        x = left + (tick - low) * scale
        body += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{bottom}" {_GRID}/>'
        body += _text(x, bottom + 14, f"{short(tick)}{unit}", "middle", _FAINT)
    for place, (name, start, end, marked) in enumerate(rows):
        y = _TOP + place * step
        body += _text(left - 8, y + 11, name, "end")
        body += _bar(left + (start - low) * scale, y, (end - start) * scale, 'fill="currentColor" fill-opacity=".18"')
        for begin, stop in marked:
            body += _bar(left + (begin - low) * scale, y, (stop - begin) * scale, f'fill="{HUES[1]}"')
    return _svg(title, bottom + 20, body)


def _bar(x: float, y: float, width: float, style: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:g}" width="{max(width, 1.5):.1f}" height="13" {style}/>'


def spans(title: str, rows: Sequence[tuple[str, float, float, int]], labels: Sequence[tuple[float, str]]) -> str:
    """(name, start, end, hue) of each row along one time axis; spans of one hue belong together.

    Args:
        labels: (place, text) along the axis, in the unit of the spans.
    """
    left, step = 220, 20
    low, high = _range([value for _, start, end, _ in rows for value in (start, end)])
    scale = (WIDTH - left - _RIGHT - 20) / (high - low)
    bottom = _TOP + len(rows) * step
    body = ""
    for place, label in labels:
        if low <= place <= high:
            x = left + (place - low) * scale
            body += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{bottom}" {_GRID}/>'
            body += _text(x, bottom + 14, label, "middle", _FAINT)
    for place, (name, start, end, hue) in enumerate(rows):
        x, y = left + (start - low) * scale, _TOP + place * step
        body += _text(left - 8, y + 11, name, "end")
        body += (
            f'<rect x="{x:.1f}" y="{y}" width="{max((end - start) * scale, 3):.1f}" height="13" rx="2" '
            f'fill="{HUES[hue % len(HUES)]}"/>'
        )
    return _svg(title, bottom + 20, body)


def traces(
    title: str,
    times: Sequence[float],
    values: Sequence[float | None],
    marks: Sequence[tuple[float, str, int]] = (),
    height: float = 130,
) -> str:
    """One quantity over time, with moments marked by dashed lines.

    Args:
        times: of the values, ascending; they need not be even.
        values: a ``None`` or NaN leaves a gap.
        marks: (time, name, hue); those outside of the times are left out. A pointer shows the name.
    """
    body, scale, offset = _axes(height, *_range(values, zero=True), [])
    first, last = _range(times)
    across = (WIDTH - _LEFT - _RIGHT) / (last - first)
    for tick in ticks(first, last, 8):
        body += _text(_LEFT + (tick - first) * across, height - 6, short(tick), "middle", _FAINT)
    for time, name, hue in marks:
        if first <= time <= last:
            x = _LEFT + (time - first) * across
            body += (
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" stroke="{HUES[hue % len(HUES)]}" '
                f'stroke-width="1.6" stroke-dasharray="4 3"><title>{html.escape(name)}</title></line>'
            )
    path, pen = "", "M"
    for time, value in zip(times, values, strict=True):
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        path += f"{pen}{_LEFT + (time - first) * across:.1f} {offset - value * scale:.1f}"
        pen = "L"
    body += f'<path d="{path}" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linejoin="round"/>'
    body += _text(_LEFT + 4, _TOP + 8, title, style=_FAINT)
    return _svg(title, height, body)
