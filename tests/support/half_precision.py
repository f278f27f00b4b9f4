"""What the tests of float32 state and masters share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastnn import _dispatch, optim

HALF = [torch.bfloat16, torch.float16]
# Ours, torch's, options. An eps that keeps quotients well conditioned: errors grow at most 1 / eps-fold.
OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adam": (optim.Adam, torch.optim.Adam, {"weight_decay": 0.1, "eps": 0.1}),
    "amsgrad": (optim.Adam, torch.optim.Adam, {"amsgrad": True, "maximize": True, "eps": 0.1}),
    "adamw": (optim.AdamW, torch.optim.AdamW, {"weight_decay": 0.1, "eps": 0.1}),
    "sgd": (optim.SGD, torch.optim.SGD, {"weight_decay": 0.1, "maximize": True}),
    "momentum": (optim.SGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "nesterov": (optim.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adagrad": (
        optim.Adagrad,
        torch.optim.Adagrad,
        {"lr_decay": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 0.1},
    ),
    "rmsprop": (optim.RMSprop, torch.optim.RMSprop, {"weight_decay": 0.1, "eps": 0.1}),
    "centered": (optim.RMSprop, torch.optim.RMSprop, {"centered": True, "eps": 0.1}),
    "centered momentum": (
        optim.RMSprop,
        torch.optim.RMSprop,
        {"centered": True, "momentum": 0.9, "eps": 0.1, "maximize": True},
    ),
}

needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
every_half = pytest.mark.parametrize("dtype", HALF, ids=str)
MASTERS: dict[str, Any] = {"master_weights": True}
STATE: dict[str, Any] = {"state_dtype": torch.float32}


def decisions(optimizer: torch.optim.Optimizer) -> list[str | None]:
    """The reasons (None: native) of the updates of one step."""
    seen: list[str | None] = []
    with _dispatch.recording(lambda decision: seen.append(decision.reason)):
        optimizer.step()
    return seen


def step_natively(optimizer: torch.optim.Optimizer) -> None:
    assert set(decisions(optimizer)) == {None}


def parameters(
    shapes: list[Any], dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype).to(device)) for shape in shapes]


def twins(params: list[Any], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """The same numbers in another dtype."""
    return [nn.Parameter(p.detach().to(dtype)) for p in params]


def set_gradients(params: list[Any], *others: list[Any]) -> None:
    """New random gradients, rounded to the dtype of `params`, the same numbers for all."""
    for same in zip(params, *others, strict=True):
        grad = torch.randn(same[0].shape, dtype=torch.float64).to(same[0].dtype)
        for p in same:
            p.grad = grad.to(p.dtype).to(p.device)


def master(optimizer: torch.optim.Optimizer, param: Any) -> Tensor:
    found: Tensor = optimizer.state[param]["master_param"]
    return found


def masters(optimizer: torch.optim.Optimizer, params: list[Any]) -> list[Tensor]:
    return [master(optimizer, p) for p in params]


def assert_same(a: list[Any], b: list[Any]) -> None:
    """Bit by bit, where NaN is NaN."""
    for p, q in zip(a, b, strict=True):
        assert p.dtype is q.dtype
        torch.testing.assert_close(p.detach().cpu(), q.detach().cpu(), rtol=0, atol=0, equal_nan=True)


def assert_follows_float32(mine: Any, params: list[Any], theirs: Any, others: list[Any]) -> None:
    """State and masters are those of a float32 optimizer, the parameters its parameters rounded."""
    assert_same(params, [q.detach().to(p.dtype) for p, q in zip(params, others, strict=True)])
    for p, q in zip(params, others, strict=True):
        state = dict(mine.state.get(p, {}))
        if "master_param" in state:
            assert_same([state.pop("master_param")], [q.detach()])
        expected = theirs.state.get(q, {})
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            assert_same([state[key]], [value])
