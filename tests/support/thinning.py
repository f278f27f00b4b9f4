"""Fewer combinations of a test's parameters: all pairs of values still occur, but not all triples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pytest

Row = Mapping[str, Hashable]


def thinned(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """For each test, items that cover every pair of parameter values that occurs in any item.

    For a test with the mark ``each_value``, items that cover every value once. Of the items that will be
    skipped, which cover nothing, one is kept to show the reason.
    """
    tests: dict[tuple[object, str, bool], list[pytest.Item]] = defaultdict(list)
    for item in items:
        skipped = item.get_closest_marker("skip") is not None
        tests[item.parent, getattr(item, "originalname", item.name), skipped].append(item)
    chosen: list[pytest.Item] = []
    for (*_, skipped), same in tests.items():
        if skipped:
            chosen.append(same[0])
            continue
        strength = 1 if same[0].get_closest_marker("each_value") else 2
        chosen += [same[i] for i in covering(varying([_values(item) for item in same]), strength)]
    return chosen


def _values(item: pytest.Item) -> Row:
    """The value of each parameter, identified across the items of a test."""
    parameters = getattr(item, "callspec", None)
    return {} if parameters is None else {name: id(value) for name, value in parameters.params.items()}


def covering(rows: Sequence[Row], strength: int = 2) -> list[int]:
    """Indices of rows that have every combination of `strength` values that any row has.

    Greedy and deterministic: of the rows that add the most new combinations, the first; for single values,
    the first of the rows whose values were used least. Columns of a, b and c values need about as many rows
    as the product of the larger two, instead of a b c.
    """
    shown = [set(combinations(sorted(row.items()), min(strength, len(row)))) for row in rows]
    missing = set().union(*shown)
    used: Counter[tuple[str, Hashable]] = Counter()

    def worth(i: int) -> tuple[int, int]:
        often = sum(used[value] for value in rows[i].items()) if strength == 1 else 0
        return len(shown[i] & missing), -often

    chosen: list[int] = []
    while missing:
        best = max(range(len(rows)), key=worth)
        chosen.append(best)
        used.update(rows[best].items())
        missing -= shown[best]
    return sorted(chosen)


def varying(rows: Sequence[Row]) -> list[Row]:
    """The same rows without constant columns, and without columns that duplicate another: those of parameters
    given together."""
    columns: dict[tuple[Hashable, ...], str] = {}
    for name in rows[0]:
        columns.setdefault(tuple(row[name] for row in rows), name)
    names = [name for column, name in columns.items() if len(set(column)) > 1]
    return [{name: row[name] for name in names} for row in rows]
