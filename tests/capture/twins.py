"""Captured functions and the same functions run by torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fastnn
from fastnn.capture.tape import tensors_in


class Twins:
    """A training step twice, from the same state: one runs eagerly, the other captured."""

    def __init__(
        self,
        make: Callable[[nn.Module, Any], Callable[..., Any]],
        net: nn.Module,
        optimizer: Any,
        **options: Any,
    ) -> None:
        self.nets = [net, copy.deepcopy(net)]
        self.optimizers = [optimizer(n.parameters()) for n in self.nets]
        eager, captured = (make(n, o) for n, o in zip(self.nets, self.optimizers, strict=True))
        self.eager = eager
        self.captured = fastnn.capture(captured, **options)

    def call(self, *args: Any, **kwargs: Any) -> None:
        """Call both from the same random numbers, and compare results and state."""
        state = torch.get_rng_state()
        expected = self.eager(*args, **kwargs)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        got = self.captured(*args, **kwargs)
        assert torch.equal(torch.get_rng_state(), after)
        same(got, expected)
        same([*self.nets[1].state_dict().values()], [*self.nets[0].state_dict().values()])

    @property
    def programs(self) -> Any:
        """The programs of the captured one."""
        return self.captured.programs


def same(got: Any, expected: Any, **tolerances: float) -> None:
    """Compare the tensors in nested results, up to rounding."""
    got, expected = list(tensors_in(got)), list(tensors_in(expected))
    assert len(got) == len(expected)
    tolerances = tolerances or {"rtol": 1e-4, "atol": 1e-5}
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, **tolerances)


def net(*extra: nn.Module) -> nn.Sequential:
    """A small network for (N, 8) inputs and 3 classes."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *extra, nn.Linear(16, 3))


def classify(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """The usual training step."""

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def batch(rows: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and classes."""
    return torch.randn(rows, 8), torch.randint(0, 3, (rows,))
