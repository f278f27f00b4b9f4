"""The cases of `benchmarks.gpu` that are matrix products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import functional

from .gpu_timing import Call, Calls, Case, Place

LAYERS = ((64, 128, 784), (128, 512, 784), (512, 1024, 1024), (4096, 4096, 4096))  # M, N, K
COMPILED = (512, 1024, 1024)  # also against torch.compile, which takes seconds to compile
GRAMS = ((1, 64, 50176), (1, 512, 784), (16, 256, 3136))  # B, C, L
CLASSIFIERS = ((1024, 768, 32000), (8192, 2048, 32000))  # N, K, C
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def _torch_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.linear(x, weight, bias))


def _torch_gram(x: Tensor) -> Tensor:
    return x @ x.mT


def _torch_classifier(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), target)


def _with_gradients(op: Callable[..., Tensor], leaves: tuple[Tensor, ...], dy: Tensor) -> Call:
    return lambda: torch.autograd.grad(op(*leaves), leaves, dy)


def _layer(place: Place, dtype: torch.dtype, sides: tuple[int, int, int]) -> Calls:
    m, n, k = sides
    leaves = tuple(place.leaf(*shape, dtype=dtype) for shape in ((m, k), (n, k), (n,)))
    ops: dict[str, Callable[..., Tensor]] = {
        "fastnn": partial(functional.linear, activation="relu"),
        "torch": _torch_layer,
    }
    if sides == COMPILED:
        ops["compile"] = place.compiled(_torch_layer)
    dy = place.randn(m, n, dtype=dtype)
    return {name: _with_gradients(op, leaves, dy) for name, op in ops.items()}


def _gram(place: Place, dtype: torch.dtype, b: int, c: int, length: int) -> Calls:
    leaves = (place.leaf(b, c, length, dtype=dtype),)
    dy = place.randn(b, c, c, dtype=dtype)
    ops: dict[str, Callable[..., Tensor]] = {"fastnn": functional.gram_matrix, "torch": _torch_gram}
    return {name: _with_gradients(op, leaves, dy) for name, op in ops.items()}


def _classifier(place: Place, dtype: torch.dtype, n: int, k: int, classes: int) -> Calls:
    leaves = place.leaf(n, k, dtype=dtype), place.leaf(classes, k, dtype=dtype)
    target = place.randint(classes, n)
    dy = torch.ones((), device=place.device, dtype=dtype)
    ops: dict[str, Callable[..., Tensor]] = {
        "fastnn": partial(functional.linear_cross_entropy, target=target),
        "torch": partial(_torch_classifier, target=target),
    }
    return {name: _with_gradients(op, leaves, dy) for name, op in ops.items()}


def cases(place: Place) -> list[Case]:
    """Layers, Gram matrices and classifiers, each with gradients."""
    found: list[Case] = []
    for dtype, name in NAMES.items():
        for m, n, k in LAYERS:
            # x, W and dY are read twice, y is written and read, dX and dW are written.
            moved = (3 * m * k + 3 * n * k + 4 * m * n) * dtype.itemsize
            make = partial(_layer, place, dtype, (m, n, k))
            found.append(Case(f"linear + relu {m}x{n}x{k} {name}", make, moved, 6 * m * n * k, name))
        for b, c, length in GRAMS:
            moved = (3 * b * c * length + 2 * b * c * c) * dtype.itemsize
            make = partial(_gram, place, dtype, b, c, length)
            # Forward needs one triangle, the gradient all of (dG + dG^T) F.
            found.append(Case(f"gram {b}x{c}x{length} {name}", make, moved, 3 * b * c * c * length, name))
        for n, k, classes in CLASSIFIERS:
            # x and W are read twice, dX and dW are written; logits need not be stored.
            moved = 3 * (n + classes) * k * dtype.itemsize
            make = partial(_classifier, place, dtype, n, k, classes)
            case = f"linear_cross_entropy {n}x{k}x{classes} {name}"
            found.append(Case(case, make, moved, 6 * n * k * classes, name))
    return found
