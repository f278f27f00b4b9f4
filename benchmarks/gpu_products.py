"""The cases of `benchmarks.gpu` that are matrix products, and the sweep that the choice between fastnn's
product and torch's is to be set by.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import functional
from fastnn.ops import _cuda_limits

Op = Callable[..., Tensor]
Calls = dict[str, Callable[[], object]]
Case = tuple[str, int, Calls]  # name, bytes that must move, one call for each contender

LAYERS = ((64, 128, 784), (128, 512, 784), (512, 1024, 1024), (4096, 4096, 4096))  # M, N, K
GRAMS = ((1, 64, 50176), (1, 512, 784), (16, 256, 3136))  # B, C, L
CLASSIFIERS = ((1024, 768, 32000), (8192, 2048, 32000))  # N, K, C
CUBES = (256, 512, 1024, 2048, 4096)


def _torch_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.linear(x, weight, bias))


def _torch_gram(x: Tensor) -> Tensor:
    return x @ x.mT


def _with_gradients(op: Op, leaves: tuple[Tensor, ...], dy: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(op(*leaves), leaves, dy)


def _leaves(dtype: torch.dtype, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes)


def _layers() -> list[Case]:
    found: list[Case] = []
    for dtype in (torch.float32, torch.bfloat16):
        for m, n, k in LAYERS:
            leaves = _leaves(dtype, (m, k), (n, k), (n,))
            dy = torch.randn(m, n, device="cuda").to(dtype)
            ours = partial(functional.linear, activation="relu")
            contenders: dict[str, Op] = {
                "fastnn": ours,
                "torch": _torch_layer,
                "compile": torch.compile(_torch_layer),
            }
            calls = {name: _with_gradients(op, leaves, dy) for name, op in contenders.items()}
            # x, W and dY are read twice, y is written and read, dX and dW are written.
            moved = (3 * m * k + 3 * n * k + 4 * m * n) * dtype.itemsize
            found.append((f"linear + relu {m}x{n}x{k} {dtype}, with gradients", moved, calls))
    return found


def _grams() -> list[Case]:
    found: list[Case] = []
    for dtype in (torch.float32, torch.bfloat16):
        for b, c, length in GRAMS:
            leaves = _leaves(dtype, (b, c, length))
            dy = torch.randn(b, c, c, device="cuda").to(dtype)
            contenders: dict[str, Op] = {"fastnn": functional.gram_matrix, "torch": _torch_gram}
            calls = {name: _with_gradients(op, leaves, dy) for name, op in contenders.items()}
            moved = (3 * b * c * length + 2 * b * c * c) * dtype.itemsize
            found.append((f"gram {b}x{c}x{length} {dtype}, with gradient", moved, calls))
    return found


def _torch_classifier(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), target)


def _classifiers() -> list[Case]:
    found: list[Case] = []
    for dtype in (torch.float32, torch.bfloat16):
        for n, k, classes in CLASSIFIERS:
            leaves = _leaves(dtype, (n, k), (classes, k))
            target = torch.randint(classes, (n,), device="cuda")
            dy = torch.ones((), device="cuda", dtype=dtype)
            contenders: dict[str, Op] = {
                "fastnn": partial(functional.linear_cross_entropy, target=target),
                "torch": partial(_torch_classifier, target=target),
            }
            calls = {name: _with_gradients(op, leaves, dy) for name, op in contenders.items()}
            # x and W are read twice, dX and dW are written; nothing says that logits need be.
            moved = 3 * (n + classes) * k * dtype.itemsize
            found.append((f"linear_cross_entropy {n}x{k}x{classes} {dtype}, with gradients", moved, calls))
    return found


def _sweep() -> list[Case]:
    """A layer's forward with each of the choices that `_cuda_limits.choose` has."""
    choices = {"plain": (False, _cuda_limits.PLAIN), "torch product": (True, _cuda_limits.PLAIN)}
    float32_choices = choices | {
        "3 x tf32": (False, _cuda_limits.TF32_3X),
        "tf32": (False, _cuda_limits.TF32),
    }

    def run(choice: tuple[bool, int], x: Tensor, weight: Tensor, bias: Tensor) -> None:
        with torch.no_grad(), mock.patch.object(_cuda_limits, "choose", return_value=choice):
            functional.linear(x, weight, bias, "relu")

    found: list[Case] = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for side in CUBES[:-1] if dtype is torch.float64 else CUBES:
            tensors = _leaves(dtype, (side, side), (side, side), (side,))
            named = float32_choices if dtype is torch.float32 else choices
            calls: Calls = {name: partial(run, choice, *tensors) for name, choice in named.items()}
            found.append(
                (f"linear + relu {side}^3 {dtype}, forward", 3 * side * side * dtype.itemsize, calls)
            )
    return found


def cases() -> list[Case]:
    """Layers, Gram matrices and classifiers against torch's, then the sweep."""
    return _layers() + _grams() + _classifiers() + _sweep()
