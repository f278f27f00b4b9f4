"""What the tests of convert on modules with a forward of their own share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn

T = torch.nn


class Net(T.Module):
    """A relu chain as most reinforcement learning code writes it, with a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = T.Linear(6, 5), T.Linear(5, 4), T.Linear(4, 2)
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x) * self.scale


def ops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    """The ops that ran natively."""
    return [op for op, reason in fastnn.explain(fn, *args, **kwargs).decisions if reason is None]


def reasons(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    return [reason for _, reason in fastnn.explain(fn, *args, **kwargs).decisions if reason is not None]


def close(a: Any, b: Any) -> None:
    # Sums of at most 8 products of values of order 1: 1e-6 is ten units in the last place.
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def twins(kind: type[T.Module]) -> tuple[Any, Any]:
    """A converted model, and torch's with the same parameters."""
    model = kind()
    reference = copy.deepcopy(model)
    assert fastnn.convert(model) is model
    return model, reference
