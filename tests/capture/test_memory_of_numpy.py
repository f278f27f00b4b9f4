"""NumPy arrays from which a captured function makes tensors, or which it reads itself."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastnn
from twins import same

MAKE: dict[str, Callable[[Any], Tensor]] = {
    "from_numpy": torch.from_numpy,
    "as_tensor": torch.as_tensor,
    "tensor": torch.tensor,
    "asarray": torch.asarray,
    "another type": lambda array: torch.as_tensor(array, dtype=torch.float64),
    "part": lambda array: torch.as_tensor(array[10:90:2]),
}


def _rollout() -> Any:
    return np.random.default_rng(0).standard_normal(100).astype(np.float32)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_their_memory_is_read_in_each_call(make: Callable[[Any], Tensor]) -> None:
    holder = SimpleNamespace(array=_rollout(), table={"array": _rollout()})

    def fn(x: Tensor) -> Tensor:
        return make(holder.array).sum() * x + make(holder.table["array"]).mean()

    captured = fastnn.capture(fn, native=True)
    x = torch.ones(3)

    def compare() -> None:
        for _ in range(4):
            same(captured(x), fn(x))

    compare()
    holder.array *= 3
    holder.table["array"] += 1
    compare()
    assert len(captured.programs) == 1
    holder.array = _rollout()
    compare()
    holder.table["array"] = _rollout() * 2
    compare()
    assert len(captured.programs) == 3


def test_what_is_made_of_one_in_the_function() -> None:
    k = 2.0

    def fn(x: Tensor) -> Tensor:
        return x * torch.as_tensor(np.full(3, k, np.float32))

    captured = fastnn.capture(fn, native=True)
    for _ in range(6):
        same(captured(torch.ones(3)), torch.full((3,), 2.0))


@pytest.mark.parametrize("make", [torch.from_numpy, torch.as_tensor])
def test_their_memory_is_not_written(make: Callable[[Any], Tensor]) -> None:
    array = np.zeros(3, np.float32)

    def fn(x: Tensor) -> Tensor:
        return make(array).add_(x).sum()

    captured = fastnn.capture(fn)
    with pytest.warns(fastnn.EagerStepWarning, match="writes to the memory of a NumPy array"):
        _ = [captured(torch.ones(3)) for _ in range(6)]
    assert array.tolist() == [6.0] * 3


def test_an_argument_in_their_memory() -> None:
    array = np.ones(3, np.float32)
    captured = fastnn.capture(lambda x: x + torch.from_numpy(array))
    with pytest.warns(fastnn.EagerStepWarning, match="shares memory with a NumPy array"):
        got = [captured(torch.from_numpy(array)) for _ in range(4)]
    same(got, [torch.full((3,), 2.0)] * 4)
    same(captured(torch.zeros(3)), torch.ones(3))


def test_numbers_in_a_small_one() -> None:
    weights = np.ones(3)
    captured = fastnn.capture(lambda x: x * float(weights[1]) + weights[2], native=True)
    for weights[1:] in ((1.0, 0.0), (3.0, 0.0), (3.0, 2.0)):
        for _ in range(4):
            same(captured(torch.ones(3)), torch.full((3,), weights[1] + weights[2]))


def test_tensors_in_a_long_list() -> None:
    steps = [torch.full((3,), float(i)) for i in range(100)]
    captured = fastnn.capture(lambda x: x + torch.stack(steps[:90]).sum(0), native=True)

    def compare() -> None:
        for _ in range(4):
            same(captured(torch.ones(3)), torch.full((3,), 1 + sum(float(t[0]) for t in steps[:90])))

    compare()
    steps[5] = torch.full((3,), 100.0)
    compare()
    steps[95] = torch.full((3,), 100.0)  # not read by it
    steps.append(torch.zeros(3))
    compare()
    assert len(captured.programs) == 2
