"""The relative links of README.md and the pages that it leads to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "*/README.md",
    "benchmarks/NOTES.md",
    "docs/**/*.md",
)
PAGES = sorted(path for name in _NAMES for path in ROOT.glob(name))
_LINK = re.compile(r"""\]\(([^)\s]+)\)|\b(?:src|href)="([^"]+)\"""")


def anchors(page: Path) -> set[str]:
    """Those of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.skipif(not PAGES, reason="needs the checkout")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = ["".join(pair) for pair in _LINK.findall(page.read_text(encoding="utf-8"))]
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        # The names in the API reference are made when the site is built, which checks them.
        assert not anchor or "api" in target.parts or anchor in anchors(target), link


def test_readme_fits_two_screens_and_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    assert "\nmake train" in text
    assert "\nmake test" in text
