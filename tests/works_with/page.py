"""The table of docs/works-with.md, and which test belongs to which line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "works-with.md"
COLUMNS = {
    "ops and modules": "modules",
    "optimizers": "optimizers",
    "`TrainStep`": "step",
    "`capture`": "capture",
}
NOTHING = "–"  # in a cell: the two are unrelated


class Cell(NamedTuple):
    """What the page says about one column for one feature.

    Attributes:
        column: one of the values of `COLUMNS`.
        verdict: ``"native"``; ``"torch"`` (for ops and optimizers) or ``"eager"`` (for steps) if torch does
            the work; ``"refused"`` if there is an error.
        reason: why it is not native: a part of what `fastnn.explain` or the error says.
    """

    column: str
    verdict: str
    reason: str


tested: set[str] = set()


def table() -> dict[str, list[Cell]]:
    """The nonempty cells of each feature."""
    text = PAGE.read_text().partition("\n## ")[0]
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    head, _, *body = [re.split(r"\s*\|\s*", line) for line in lines]
    assert head[1:] == list(COLUMNS)
    found: dict[str, list[Cell]] = {}
    for feature, *cells in body:
        assert feature not in found, f"{feature} has two lines"
        assert len(cells) == len(COLUMNS), f"{feature} has {len(cells)} cells"
        found[feature] = [
            _cell(column, text)
            for column, text in zip(COLUMNS.values(), cells, strict=True)
            if text != NOTHING
        ]
    return found


def _cell(column: str, text: str) -> Cell:
    match = re.fullmatch(r"(native)|(torch|eager|refused): (.+)", text)
    assert match, f"{text!r} is no verdict"
    return Cell(column, match[1] or match[2], (match[3] or "").replace("`", ""))


def line(feature: str) -> Callable[[Any], Any]:
    """Assign a test to a line of the page: it runs for each cell, passed as `cell`."""
    tested.add(feature)
    cells = table().get(feature, [])
    return pytest.mark.parametrize("cell", cells, ids=[cell.column for cell in cells])
