"""torch functions that have been wrapped by another function run once, not twice."""

from __future__ import annotations

from collections import UserList
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastnn
from twins import same

_FUNCTIONS = {
    "mse_loss": lambda x: F.mse_loss(x, torch.zeros_like(x)),
    "l1_loss": lambda x: F.l1_loss(x, torch.zeros_like(x)),
    "layer_norm": lambda x: F.layer_norm(x, (3,), eps=0.5),
    "softmax": lambda x: F.softmax(x, dim=-1),
}


def _called(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> UserList[int]:
    """Wrap a torch function in one that doubles its results; returns how often it was called."""
    usual, calls = getattr(owner, name), UserList([0])  # because a list would be watched

    def twice(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        result = usual(*args, **kwargs)
        return None if result is None else 2 * result

    monkeypatch.setattr(owner, name, twice)
    return calls


def _is_applied_once(fn: Any, calls: UserList[int]) -> None:
    captured = fastnn.capture(fn)
    for call in range(5):
        x = torch.randn(2, 3)
        calls[0] = 0
        got = captured(x)
        assert [*calls] == [1 if call < 3 else 0]
        same(got, fn(x))
    assert len(captured.programs) == 1


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_functions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _is_applied_once(_FUNCTIONS[name], _called(F, name, monkeypatch))


def test_functions_of_several_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _called(torch.functional, "einsum", monkeypatch)
    _is_applied_once(lambda x: torch.functional.einsum("ij,kj->ik", x, x), calls)


@pytest.mark.parametrize("name", ["exp", "norm", "relu"])
def test_methods(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In C++ and in Python."""
    _is_applied_once(lambda x: getattr(x, name)(), _called(Tensor, name, monkeypatch))


def test_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(3, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        weight.grad = None
        (weight * x).sum().backward()
        return weight.grad.detach().clone()

    _is_applied_once(step, _called(Tensor, "backward", monkeypatch))


def test_a_loss_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [nn.Linear(3, 1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x[:, :1])
        loss.backward()
        optimizer.step()
        return loss.detach()

    _called(F, "mse_loss", monkeypatch)
    eager, updated = (torch.optim.SGD(model.parameters(), lr=0.1) for model in models)
    captured = fastnn.capture(lambda x: step(models[1], updated, x), native=True)
    for _ in range(6):
        x = torch.randn(4, 3)
        same(captured(x), step(models[0], eager, x))
    same(list(models[1].parameters()), list(models[0].parameters()))


def test_functions_that_modes_may_see() -> None:
    """Third-party ones, as in libraries of tensor types."""

    def double(x: Tensor) -> Tensor:
        if torch.overrides.has_torch_function_unary(x):
            return torch.overrides.handle_torch_function(double, (x,), x)
        return x * 2

    captured = fastnn.capture(double, native=True)
    for _ in range(4):
        captured(torch.ones(3))
    assert len(captured.programs) == 1
