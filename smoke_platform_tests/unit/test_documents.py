"""What the documents say must be true of what is committed beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from smoke_platform.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def _figures() -> dict[str, dict[str, float]]:
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))["figures"]]
    return {row["id"]: row for row in rows}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_project_leads_somewhere(page):
    """A reader would click into nothing."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_exists(page):
    """A reader would type a command that the platform does not have."""
    shown = set(re.findall(r"(?:`|bin/)smoke ([a-z]+(?:-[a-z]+)*)", page.read_text(encoding="utf-8")))
    assert shown <= set(COMMANDS)


def test_the_figures_of_the_readme_are_the_measured_ones():
    """A figure would outlive the code that it was measured on."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = _figures()
    for shown in (
        f"{found['P2']['value']:,.0f} rows/s",
        f"{found['P2']['peer_value']:,.0f} (bare poll loop",
        f"{found['P2.tuned']['peer_value']:,.0f} (the same",
        f"| {found['P5']['value']:.2f} s | {found['P5']['peer_value']:.2f} s",
        f"| {found['P4.p50']['value']:.2f} / {found['P4']['value']:.2f} ms",
        f"| {found['P9']['value']:.1f} s | {found['P9']['peer_value']:.1f} s",
        f"| {found['P9.memory']['value'] / 1024:.1f} GiB",
    ):
        assert shown in text, shown
