"""`fused=True` where torch updates: what its fused kernels would mistake is right all the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn import optim

OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adam": (optim.Adam, torch.optim.Adam, {}),
    "amsgrad": (optim.Adam, torch.optim.Adam, {"amsgrad": True}),
    "adamw": (optim.AdamW, torch.optim.AdamW, {}),
    "sgd": (optim.SGD, torch.optim.SGD, {}),
    "momentum": (optim.SGD, torch.optim.SGD, {"momentum": 0.9}),
    "adagrad": (optim.Adagrad, torch.optim.Adagrad, {}),
}
MARK = 7.0  # what lies between the elements


def _columns(memory: Tensor) -> Tensor:
    return memory[:24].view(4, 6)[:, ::2]


def _as_strided(memory: Tensor) -> Tensor:
    return memory.as_strided((4, 3), (2, 9), 1)


def _transposed(memory: Tensor) -> Tensor:
    return memory[:12].view(3, 4).t()


def _plain(memory: Tensor) -> Tensor:
    return memory[:12].view(4, 3)


def _negated(grad: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(grad), -grad).conj().imag


def _turned(grad: Tensor) -> Tensor:
    return grad.t().contiguous().t()


def _with_gaps(grad: Tensor) -> Tensor:
    return torch.stack([grad, torch.full_like(grad, MARK)], -1)[..., 0]


LAYOUTS = [_plain, _transposed, _columns, _as_strided]
GRADIENTS = [torch.clone, _turned, _with_gaps, _negated]


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("scaled", [None, 0.0, 1.0])
@pytest.mark.parametrize("make_grad", GRADIENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_layout(
    name: str,
    layout: Callable[[Tensor], Tensor],
    make_grad: Callable[[Tensor], Tensor],
    scaled: float | None,
    disabled: bool,
) -> None:
    """As torch's optimizer on one block of memory, and nothing between the elements is written.

    `scaled` is what a GradScaler found, if there is one.
    """
    cls, reference, options = OPTIMIZERS[name]
    memory = torch.full((40,), MARK)
    p = nn.Parameter(layout(memory))
    q = nn.Parameter(torch.randn(p.shape))
    p.data.copy_(q)
    mine, theirs = cls([p], lr=0.1, fused=True, **options), reference([q], lr=0.1, **options)
    for _ in range(3):
        grad = torch.randn(p.shape)
        q.grad = grad.clone()
        p.grad = make_grad(grad if scaled is None else 8 * grad)
        if scaled is not None:
            mine.grad_scale, mine.found_inf = torch.tensor(8.0), torch.tensor(scaled)
        with fastnn.disabled() if disabled else contextlib.nullcontext():
            mine.step()
        if not scaled:
            theirs.step()
            torch.testing.assert_close(p.grad, q.grad)
    torch.testing.assert_close(p.data, q.data)
    if not scaled:
        for key, value in theirs.state[q].items():
            torch.testing.assert_close(mine.state[p][key], value)
    between = torch.ones(40, dtype=torch.bool)
    layout(between).zero_()
    assert (memory[between] == MARK).all()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "sgd"])
def test_state_of_other_strides(name: str) -> None:
    """As a checkpoint may bring it."""
    cls, reference, options = OPTIMIZERS[name]
    p = nn.Parameter(torch.randn(4, 3))
    q = nn.Parameter(p.detach().clone())
    mine, theirs = cls([p], lr=0.1, fused=True, **options), reference([q], lr=0.1, **options)
    for _ in range(3):
        p.grad = torch.randn(4, 3)
        q.grad = p.grad.clone()
        mine.step()
        theirs.step()
        for key, value in mine.state[p].items():
            if value.dim() == 2:
                mine.state[p][key] = _turned(value)
    torch.testing.assert_close(p.data, q.data)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_masters(name: str) -> None:
    cls, reference, options = OPTIMIZERS[name]
    memory = torch.full((40,), MARK, dtype=torch.bfloat16)
    p = nn.Parameter(_columns(memory))
    q = nn.Parameter(torch.randn(4, 3).bfloat16().float())
    p.data.copy_(q)
    mine = cls([p], lr=0.1, fused=True, master_weights=True, **options)
    theirs = reference([q], lr=0.1, **options)
    for _ in range(3):
        p.grad = _with_gaps(torch.randn(4, 3).bfloat16())
        q.grad = p.grad.float()
        mine.step()
        theirs.step()
    torch.testing.assert_close(p.data, q.data.bfloat16())
    assert (memory[:24].view(4, 6)[:, 1::2] == MARK).all()
    assert (memory[24:] == MARK).all()
