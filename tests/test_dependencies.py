"""Imports and includes point down the layers, never up or in a circle: CONTRIBUTING.md has the lists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastnn

PACKAGE = Path(fastnn.__file__).parent
SOURCES = Path(__file__).parents[1] / "csrc"

# Each may import what stands above it, and itself.
PYTHON = [
    ("_version", "_losses"),
    ("_replaced", "_torch_internals"),
    ("_dispatch",),
    ("ops",),
    ("functional",),
    ("nn", "optim"),
    ("_diagnostics", "_info", "convert"),
    ("capture",),
    ("step",),
    ("training", "data"),
    ("cli", "__main__"),
    ("benchmarks",),  # where it is installed
]
CPP = [("core",), ("gemm",), ("ops",), ("program",), ("dispatch",), ("bindings",)]


def _levels(layers: list[tuple[str, ...]]) -> dict[str, int]:
    return {name: level for level, names in enumerate(layers) for name in names}


def _imports(path: Path) -> set[str]:
    """The modules of fastnn that a file imports when it runs; not what only type checkers read."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.startswith("fastnn."))
        elif isinstance(node, ast.ImportFrom) and node.module == "fastnn":
            found.update(f"fastnn.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastnn."):
            found.add(node.module or "")
    return found


def _room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.skipif(not SOURCES.exists(), reason="only in a checkout")
def test_python_imports_down() -> None:
    levels = _levels(PYTHON)
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room == "__init__":
            continue
        for module in _imports(path):
            if _room(module) in levels and levels[_room(module)] > levels[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    edges: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("fastnn", *path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] != "__init__":
            edges[".".join(parts)] = _imports(path)
    left = dict(edges)
    while ready := [name for name, needs in left.items() if not (needs & left.keys()) - {name}]:
        for name in ready:
            del left[name]
    assert not left


@pytest.mark.skipif(not SOURCES.exists(), reason="only in a checkout")
def test_sources_include_down() -> None:
    levels = _levels(CPP)
    wrong = []
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        room = path.relative_to(SOURCES).parts[0]
        for included in re.findall(r'#include "(\w+)/', path.read_text(encoding="utf-8")):
            if included in levels and levels[included] > levels[room]:
                wrong.append(f"{path.relative_to(SOURCES)} includes {included}/")
    assert not wrong
