"""Figures: well-formed, complete in themselves, and true to scale."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from smoke_platform.adapters import svg

SVG = "{http://www.w3.org/2000/svg}"

FIGURES = {
    "lines": svg.lines("a <b>", ["0", "1", "2"], {"x & y": [1.0, None, 3.0], "z": [0.0, math.nan, 1.0]}),
    "flat": svg.lines("flat", ["0", "1"], {"x": [5.0, 5.0]}),
    "nothing": svg.lines("nothing", ["0"], {"x": [None]}),
    "curves": svg.curves("curves", {"a < b": [(0.0, 0.0), (math.nan, 1.0), (0.5, 1.0)]}, "x & y", "up", diagonal=True),
    "columns": svg.columns("columns", ["a", "b"], [0.0, 2.0]),
    "bars": svg.bars("bars", [("<script>", 3.0), ("b", 6.0)]),
    "matrix": svg.matrix("matrix", ["a", "b", "c"], {("a", "b"): -0.5, ("c", "a"): 0.25}),
    "intervals": svg.intervals("intervals", [("a", -1.0, 0.5, 2.0, True), ("b", -math.inf, 0.0, math.inf, False)]),
    "tracks": svg.tracks("tracks", [("<a>", 0.0, 10.0, [(2.0, 3.0), (5.0, 5.0)]), ("b", 0.0, 4.0, [])], " h"),
    "spans": svg.spans("spans", [("a", 0.0, 10.0, 0), ("b", 5.0, 5.0, 7)], [(5.0, "noon"), (99.0, "outside")]),
    "traces": svg.traces("traces", [0.0, 5.0, 20.0], [0.0, None, 2.0], [(10.0, "<alarm>", 1), (99.0, "outside", 0)]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_well_formed_and_brings_nothing_along(name: str) -> None:
    """Or a device's name breaks the page, or the report asks another server for something."""
    figure = FIGURES[name]
    root = ElementTree.fromstring(figure)  # noqa: S314 - our own text
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title") is not None
    assert not re.search(r"<script|href|url\(|nan|inf\b", figure)


def test_bars_and_columns_are_to_scale() -> None:
    """Or the eye is told something else than the numbers."""
    widths = [float(rect.attrib["width"]) for rect in ElementTree.fromstring(FIGURES["bars"]).iter(f"{SVG}rect")]  # noqa: S314
    assert widths[1] == pytest.approx(2 * widths[0])
    heights = [float(rect.attrib["height"]) for rect in ElementTree.fromstring(FIGURES["columns"]).iter(f"{SVG}rect")]  # noqa: S314
    assert heights[0] == 0
    assert heights[1] > 50


def test_a_matrix_finds_a_pair_in_either_order() -> None:
    """Or half of the correlations are drawn as missing."""
    assert FIGURES["matrix"].count("0.25<") == 2
    assert FIGURES["matrix"].count("-0.50<") == 2


def test_ticks_are_round_and_inside() -> None:
    """Or axes are labelled 13.37."""
    assert svg.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert svg.ticks(-0.03, 0.05) == pytest.approx([-0.02, 0, 0.02, 0.04])
    assert svg.ticks(5, 5) == [5]
    assert [svg.short(value) for value in (1_234_567, 20_050, 950, 0.0512, -20)] == [
        "1.235M",
        "20.05k",
        "950",
        "0.051",
        "-20",
    ]


def test_a_mark_stands_at_its_moment() -> None:
    """Or an alarm seems to come before the smoke that raised it; one outside would be drawn over text."""
    root = ElementTree.fromstring(FIGURES["traces"])  # noqa: S314
    marks = [line for line in root.iter(f"{SVG}line") if line.find(f"{SVG}title") is not None]
    path = next(root.iter(f"{SVG}path")).attrib["d"]
    first, last = (float(part.split()[0]) for part in path.split("M")[1:])
    assert [float(mark.attrib["x1"]) for mark in marks] == [pytest.approx((first + last) / 2, abs=0.1)]
