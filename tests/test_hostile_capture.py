"""Hostile calls of captured functions: recorded, compared and replayed, they do the same as the function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastnn
from apart import PARTS, holds
from hostile_outcomes import Call, check
from hostile_tensors import ANY_DTYPE, ANY_SHAPE, FLOATING, NO_TENSORS, SIZES, Recipe, recipes, spoilt

# Steps of two arguments, the first of which is the previous result, recorded in different ways.
STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "divide": lambda x, y: x / y,
    "compare": lambda x, y: torch.where(x > y, x, y * 2),
    "relu": lambda x, y: torch.relu(x),
    "exp": lambda x, y: x.exp(),
    "power": lambda x, y: x**2,
    "number": lambda x, y: x * 3 - 0.5,
    "matmul": lambda x, y: x @ y,
    "linear": F.linear,
    "sum": lambda x, y: x.sum(),
    "sum of rows": lambda x, y: x.sum(-1, keepdim=True),
    "mean": lambda x, y: x.mean(0),
    "largest": lambda x, y: x.max(),
    "softmax": lambda x, y: x.softmax(-1),
    "log softmax": lambda x, y: x.log_softmax(0),
    "norm": lambda x, y: F.layer_norm(x, x.shape[-1:]),
    "loss": F.mse_loss,
    "index": lambda x, y: x[y],
    "first": lambda x, y: x[0],
    "turned": lambda x, y: x.mT,
    "flat": lambda x, y: x.reshape(-1),
    "joined": lambda x, y: torch.cat([x, y]),
    "stacked": lambda x, y: torch.stack([x, x]),
    "sorted": lambda x, y: x.sort(-1)[0],
    "cast": lambda x, y: x.to(y.dtype),
    "dropout": lambda x, y: F.dropout(x, 0.5),
    "noise": lambda x, y: x + torch.randn_like(x),
    "in place": lambda x, y: x.add_(1),
    "copy": lambda x, y: x.copy_(y),
    "written elsewhere": lambda x, y: y.mul_(2),
    "zero": lambda x, y: x.zero_(),
    "detached": lambda x, y: x.detach(),
    "item": lambda x, y: x * y.sum().item(),
    "shape": lambda x, y: x * x.shape[0],
    "branch": lambda x, y: x if y.any() else -x,
    "nothing": lambda x, y: x,
    "other": lambda x, y: y,
}


def capture(steps: list[str], calls: list[Any], check: Any, keep_grad: Any) -> Any:
    """All results, and the arguments afterwards."""
    torch.manual_seed(0)

    def function(x: Any, y: Any) -> Any:
        for step in steps:
            x = STEPS[step](x, y)
        return x

    captured = fastnn.capture(function, check=check, keep_grad=keep_grad)
    results = [captured(x, y) for x, y in calls]
    return [results, [t.detach() for pair in calls for t in pair if isinstance(t, Tensor)]]


OPS = {"capture": capture}


@st.composite
def calls(draw: Any) -> Call:
    """The same call again and again, until it is replayed, with a different one in between."""
    dtype, other_dtype = draw(st.sampled_from(FLOATING)), draw(ANY_DTYPE)
    n, k = draw(SIZES), draw(SIZES)
    shapes = draw(
        st.sampled_from([((n, k), (n, k)), ((n, k), (k, n)), ((n, k), (k,)), ((n, n), (n, n)), ((n,), ())])
        | st.tuples(ANY_SHAPE, ANY_SHAPE)
    )
    dtypes = dtype, dtype if draw(st.integers(0, 3)) else other_dtype
    usual = [draw(recipes(shape, of)) for shape, of in zip(shapes, dtypes, strict=True)]
    place = draw(st.integers(0, 1))
    other: list[Any] = usual[:]
    other[place] = draw(spoilt(usual[place]))
    if isinstance(other[place], Recipe) and other[place].layout == "meta":
        other = usual
    several = [usual[:] for _ in range(5)]
    if draw(st.booleans()):
        several[draw(st.integers(0, 4))] = other
    if draw(st.integers(0, 9)) == 0:
        several = [[draw(NO_TENSORS), draw(NO_TENSORS)]] * 4
    arguments = {
        "steps": draw(st.lists(st.sampled_from([*STEPS]), max_size=4)),
        "calls": several,
        "check": draw(st.booleans()),
        "keep_grad": draw(st.booleans()),
    }
    return Call("capture", arguments)


@given(calls())
def as_the_function_does(call: Call) -> None:
    check(OPS, call)


@pytest.mark.parametrize(("calls", "seed"), PARTS)
def test_hostile_calls_of_captured_functions(calls: int, seed: int, tmp_path: Path) -> None:
    holds(as_the_function_does, calls, seed, tmp_path)
