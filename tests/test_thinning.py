"""Which of many combinations of parameters remain."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thinning import covering, thinned, varying


@pytest.mark.parametrize("sizes", [(29, 4, 6), (3, 3, 3, 3), (2, 1, 5), (7,), (2, 2)])
def test_any_two_values_meet(sizes: tuple[int, ...]) -> None:
    rows = [dict(zip("abcd", values, strict=False)) for values in product(*map(range, sizes))]
    chosen = [rows[i] for i in covering(varying(rows))]
    for one, other in combinations("abcd"[: len(sizes)], 2):
        assert {(row[one], row[other]) for row in chosen} == {(row[one], row[other]) for row in rows}
    if len(sizes) > 2 and 1 not in sizes:
        assert len(chosen) < len(rows)


def test_only_combinations_that_were_there_are_asked_for() -> None:
    rows = [{"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 0}]
    assert covering(rows) == [0, 1, 2]


def test_each_value_once() -> None:
    rows = [{"a": a, "b": b} for a in range(3) for b in range(4)]
    chosen = [rows[i] for i in covering(rows, 1)]
    assert len(chosen) == 4
    assert {row["a"] for row in chosen} == {0, 1, 2}
    assert {row["b"] for row in chosen} == {0, 1, 2, 3}


def test_values_are_used_alike() -> None:
    rows = [{"a": a, "b": b} for a in range(10) for b in range(2)]
    chosen = [rows[i] for i in covering(rows, 1)]
    assert len(chosen) == 10
    assert sum(row["b"] for row in chosen) == 5


def test_parameters_given_together_are_one() -> None:
    rows = [{"x": i, "y": i, "dtype": d} for i in range(3) for d in range(2)]
    assert covering(varying(rows)) == [0, 1, 2, 3, 4, 5]
    assert covering(varying([{"same": 1}, {"same": 1}])) == [0]


def test_one_skipped_item_says_why() -> None:
    def item(a: int, b: int, device: str) -> Any:
        def marker(name: str) -> bool | None:
            return True if name == "skip" and device == "cuda" else None

        parameters = SimpleNamespace(params={"a": a, "b": b, "device": device})
        return SimpleNamespace(parent=None, name="test", callspec=parameters, get_closest_marker=marker)

    devices = [
        chosen.callspec.params["device"]
        for chosen in thinned([item(*row) for row in product(range(2), range(3), ("cpu", "cuda"))])
    ]
    assert devices == ["cpu"] * 6 + ["cuda"]


@pytest.mark.long
def test_what_a_default_run_leaves_out_is_the_rest() -> None:
    def collected(*options: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/ops/test_gram.py", *options]
        root, environment = Path(__file__).parents[1], {**os.environ, "PYTEST_ADDOPTS": ""}
        found = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        return [line for line in found.stdout.splitlines() if "::" in line]

    default, rest = collected(), collected("--rest")
    assert default
    assert rest
    assert sorted(default + rest) == sorted(collected("--all"))
