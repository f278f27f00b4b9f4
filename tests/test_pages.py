"""The relative links of README.md and the pages that it links to, and the files that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fastnn

ROOT = Path(__file__).resolve().parents[1]
_NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "*/README.md",
    "benchmarks/NOTES.md",
    "benchmarks/results/*.md",
    "docs/**/*.md",
)
PAGES = sorted(path for name in _NAMES for path in ROOT.glob(name))
RESULTS = ROOT / "benchmarks" / "results"
_LINK = re.compile(r"""\]\(([^)\s]+)\)|\b(?:src|href)="([^"]+)\"""")
# In backticks, to the first space; what follows a colon is a name or a line in it, and <op> stands for any.
_FILE = re.compile(r"`((?:python|csrc|tests|docs|benchmarks|examples|web|cmake)/[^`\s:]*)")
_BUILT = "web/dist"


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as made by GitHub and the site."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return ["".join(pair) for pair in _LINK.findall(page.read_text(encoding="utf-8"))]


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        # The names in the API reference are generated when the site is built, which checks them.
        assert not anchor or "api" in target.parts or anchor in anchors(target), link


@each_page
def test_files_that_a_page_names_are_there(page: Path) -> None:
    for name in _FILE.findall(page.read_text(encoding="utf-8")):
        pattern = re.sub(r"<\w+>", "*", name).rstrip("/")
        assert pattern.startswith(_BUILT) or any(ROOT.glob(pattern)), name


def test_every_report_and_plot_is_on_a_page() -> None:
    linked = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    assert {path for path in RESULTS.iterdir() if path.suffix != ".json"} <= linked


def test_the_citation_names_the_version() -> None:
    (version,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert version == fastnn.__version__


def test_readme_fits_two_screens_and_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    assert "\nmake train" in text
    assert "\nmake test" in text
