"""Memory of other types, gradients, and what is left of them when a call fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from twins import same


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_after_an_error(set_to_none: bool) -> None:
    """They are those of before the call, or those that torch has left."""
    models = [nn.Linear(3, 4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())

    def make(model: nn.Linear) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Tensor, i: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=set_to_none)
            model(x).square().sum().backward()
            optimizer.step()
            return model(x).detach().gather(1, i)

        return step

    eager, captured = make(models[0]), fastnn.capture(make(models[1]), keep_grad=True, native=True)
    i = torch.zeros(2, 1, dtype=torch.int64)
    for _ in range(4):
        x = torch.randn(2, 3)
        same(captured(x, i), eager(x, i))
    before = [p.grad.clone() for p in models[1].parameters() if p.grad is not None]
    for step in (eager, captured):
        with pytest.raises(RuntimeError, match="index 9 is out of bounds for dimension 1 with size 4"):
            step(x, i + 9)
    same(list(models[1].parameters()), list(models[0].parameters()))
    same([p.grad for p in models[1].parameters()], before if set_to_none else
         [p.grad for p in models[0].parameters()])  # fmt: skip
