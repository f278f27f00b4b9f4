"""docs/works-with.md: every line has a test, and every test a line."""

from __future__ import annotations

import importlib
from pathlib import Path

import page


def test_lines_and_tests_match() -> None:
    for path in Path(__file__).parent.glob("test_works_*.py"):
        importlib.import_module(path.stem)
    assert set(page.table()) == page.tested


def test_every_line_says_something() -> None:
    assert all(page.table().values())
