"""A small training that processes share: its network, its batch, and the result of a single process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastnn
from processes import SIZE

STEPS = 6


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same each time; a layer does not split evenly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fastnn.nn.MLP([32, 65, 10]).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 32, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(10, (16,), generator=generator)


def share(rank: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A process's part of the batch, of equal size."""
    x, y = batch(dtype)
    return x.chunk(SIZE)[rank], y.chunk(SIZE)[rank]


def loop(
    trained: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int = STEPS
) -> None:
    """Steps of the usual training loop."""
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        optimizer.step()


def reference(make: Callable[..., torch.optim.Optimizer], steps: int = STEPS, **options: Any) -> nn.Module:
    """The result of plain torch on the whole batch in one process."""
    trained = fastnn.revert(model())
    loop(trained, make(trained.parameters(), lr=0.01, **options), *batch(), steps=steps)
    return trained


def whole(tensor: Tensor) -> Tensor:
    """A DTensor's full tensor."""
    return getattr(tensor, "full_tensor", lambda: tensor)().detach()


def difference(one: nn.Module, other: nn.Module) -> float:
    """The largest difference over all parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((whole(p) - whole(q)).abs().max().item() for p, q in pairs)
