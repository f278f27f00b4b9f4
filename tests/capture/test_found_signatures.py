"""Which calls are equal for a captured function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import fastnn
from twins import same


@dataclass(frozen=True)
class Config:
    """Options as one argument."""

    value: Any


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.float64(0.0), np.float64(-0.0)),
        (np.float32(0.0), np.float32(-0.0)),
        (np.int64(1), np.float64(1.0)),
        (0j, -0j),
        (range(0), range(1, 1)),
        (frozenset([1]), frozenset([True])),
        (frozenset([Config(1)]), frozenset([Config(1.0)])),
        (Config(1), Config(True)),
        (Config(0.0), Config(-0.0)),
        (Config(Config((1,))), Config(Config((1.0,)))),
        ({1: 2}, {True: 2}),
        ({(1,): 2}, {(True,): 2}),
    ],
    ids=repr,
)
def test_values_that_are_equal_but_not_the_same(a: Any, b: Any) -> None:
    tell = fastnn.capture(lambda x, v: (x + 1, repr(v)), native=True)
    for _ in range(4):
        for v in (a, b):
            assert tell(torch.zeros(2), v)[1] == repr(v)
    assert len(tell.programs) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: float("nan"),
        lambda: np.float64("nan"),
        lambda: np.float64(2.5),
        lambda: Config(float("nan")),
        lambda: frozenset([1, 2]),
        lambda: complex(1, 2),
        lambda: {"a": [1, (2.0, "b")]},
    ],
)
def test_values_that_are_made_again(make: Any) -> None:
    tell = fastnn.capture(lambda x, v: x + 1, native=True)
    for _ in range(5):
        tell(torch.zeros(2), make())
    assert len(tell.programs) == 1


def test_parameters_of_one_element_are_not_compared_by_value() -> None:
    double = fastnn.capture(lambda p: p.detach() * 2, native=True)
    a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
    for _ in range(4):
        double(a)
    double(b)  # not by the program of `a`
    with torch.no_grad():
        a.fill_(5.0)
    for _ in range(4):
        same([double(a), double(b)], [torch.tensor([10.0]), torch.tensor([2.0])])
    assert len(double.programs) == 2


class _Unhashable:
    __hash__ = None  # type: ignore[assignment]


class _Raising:
    def __hash__(self) -> int:
        raise ValueError("no")


def _cyclic(kind: type) -> Any:
    made = kind()
    if kind is dict:
        made["itself"] = made
    else:
        made.append(made)
    return made


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        (_cyclic(dict), "contains itself"),
        (_cyclic(list), "contains itself"),
        (_Unhashable(), "not hashable"),
        (_Raising(), "not hashable"),
        (Config([1]), "not hashable"),
    ],
    ids=["dict", "list", "unhashable", "raising", "dataclass"],
)
def test_arguments_that_no_signature_has(argument: Any, reason: str) -> None:
    captured = fastnn.capture(lambda x, other: x + 1)
    with pytest.warns(fastnn.EagerStepWarning, match=reason):
        captured(torch.ones(2), argument)
    for _ in range(3):  # reported once
        assert captured(torch.ones(2), argument).tolist() == [2.0, 2.0]


def test_parameters_that_are_others_at_every_call() -> None:
    double = fastnn.capture(lambda p: (p * 2).detach())
    for _ in range(8):
        double(torch.ones(3, requires_grad=True))
    with pytest.warns(fastnn.EagerStepWarning, match="a different tensor in every call"):
        double(torch.ones(3, requires_grad=True))
    kept = torch.ones(3, requires_grad=True)
    for _ in range(5):  # one that recurs is recorded all the same
        double(kept)
        double(torch.ones(3, requires_grad=True))
    assert len(double.programs) == 1


def test_signatures_of_long_ago_are_forgotten() -> None:
    double = fastnn.capture(lambda x: x * 2)
    for rows in range(64):
        double(torch.ones(rows))
    with pytest.warns(fastnn.EagerStepWarning, match="64 different signatures"):
        double(torch.ones(100))
    for _ in range(4):
        x = torch.randn(100)
        same(double(x), x * 2)
    assert len(double.programs) == 1
