"""Tensors without elements, or with dimensions of size 1, at any strides: every op gives what torch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn.functional as FF
from fastnn import optim
from fastnn.nn.utils import clip_grad_norm_
from fastnn.ops.mlp import Layer, mlp

SHAPES = [
    *[(0,), (1,), (0, 2), (2, 0), (0, 0), (1, 0), (0, 1), (1, 3), (3, 1), (1, 1)],
    *[(0, 2, 3), (2, 0, 3), (2, 3, 0), (1, 0, 1), (1, 3, 1), (0, 1, 0, 2), (2, 1, 3, 1)],
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def views(shape: tuple[int, ...], dense: bool = False) -> list[Tensor]:
    """Tensors of `shape`: every other element of each dimension in turn, transposed, and with odd strides
    where no element needs them; unless `dense` also with gaps, and expanded."""
    odd = torch.empty(shape).stride()
    odd = tuple(s if size > 1 and 0 not in shape else 7 + s for s, size in zip(odd, shape, strict=True))
    made = [torch.randn(shape), torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))]
    made.append(torch.randn(1000).as_strided(shape, odd))
    if dense and 0 not in shape:
        return made
    made.append(torch.randn([1] * len(shape)).expand(shape))
    for d in range(len(shape)):
        wide = torch.randn(*shape[:d], 2 * shape[d], *shape[d + 1 :])
        made.append(wide[(slice(None),) * d + (slice(None, None, 2),)])
    return made


def results(f: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = f(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]


def compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *tensors: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours(*tensors), theirs(*tensors), equal_nan=True)
    torch.testing.assert_close(results(ours, *tensors), results(theirs, *tensors), equal_nan=True)


@every_shape
def test_relu_takes_empty_views(shape: tuple[int, ...]) -> None:
    for x in views(shape):
        compare(FF.relu, F.relu, x)
        compare(lambda x: FF.relu(x * 1, inplace=True), lambda x: F.relu(x * 1), x)
    for x in views(shape, dense=True):
        expected = F.relu(x)
        assert FF.relu(x, inplace=True) is x
        torch.testing.assert_close(x, expected)


@pytest.mark.each_value
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@every_shape
def test_linear_takes_empty_views(shape: tuple[int, ...], activation: str | None) -> None:
    act: dict[str | None, Callable[..., Tensor]] = {None: lambda z: z, "relu": F.relu, "gelu": F.gelu}
    for outputs in (0, 1, 2):
        for x in views(shape):
            for w in views((outputs, shape[-1])):
                for bias in ([], [torch.randn(2 * outputs)[::2]]):
                    compare(
                        lambda x, w, *b: FF.linear(x, w, *b, activation=activation),
                        lambda x, w, *b: act[activation](F.linear(x, w, *b)),
                        *(x, w, *bias),
                    )


@every_shape
def test_mlp_takes_empty_views(shape: tuple[int, ...]) -> None:
    for hidden in (0, 1, 4):
        for x in views(shape):
            for first, second in zip(views((hidden, shape[-1])), views((2, hidden)), strict=True):
                compare(
                    lambda x, a, b: mlp(x, [Layer(a, None, "relu"), Layer(b, None, None)]),
                    lambda x, a, b: F.linear(F.relu(F.linear(x, a)), b),
                    *(x, first, second),
                )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@every_shape
def test_cross_entropy_takes_empty_views(shape: tuple[int, ...], reduction: str) -> None:
    rows = (*shape[:1], *shape[2:]) if len(shape) > 1 else ()
    targets = [torch.rand(shape)]
    if shape[min(1, len(shape) - 1)] > 0 or 0 in rows:  # there is a class, or no row needs one
        apart = torch.zeros([2 * n for n in rows], dtype=torch.long)
        targets.append(apart[(slice(None, None, 2),) * len(rows)])
    for target in targets:
        for x in views(shape):
            compare(
                lambda x, t=target: FF.cross_entropy(x, t, reduction=reduction),
                lambda x, t=target: F.cross_entropy(x, t, reduction=reduction),
                x,
            )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) < 3], ids=str)
def test_linear_cross_entropy(shape: tuple[int, ...], reduction: str) -> None:
    target = torch.zeros(shape[:-1], dtype=torch.long)
    for x in views(shape):
        for w in views((1, shape[-1])) + views((3, shape[-1])):
            compare(
                lambda x, w: FF.linear_cross_entropy(x, w, target, reduction=reduction),
                lambda x, w: F.cross_entropy(F.linear(x, w), target, reduction=reduction),
                *(x, w),
            )


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) in (2, 3)], ids=str)
def test_gram_matrix_takes_empty_views(shape: tuple[int, ...]) -> None:
    for x in views(shape):
        compare(FF.gram_matrix, lambda x: x @ x.mT, x)


@every_shape
def test_polyak_takes_empty_views(shape: tuple[int, ...]) -> None:
    for target in views(shape, dense=True):
        for source in views(shape):
            expected = target.lerp(source, 0.3)
            optim.polyak_(target, source, 0.3)
            torch.testing.assert_close(target, expected)


@every_shape
def test_clip_grad_norm_takes_empty_views(shape: tuple[int, ...]) -> None:
    for view in views(shape):
        ours, theirs = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        ours.grad, theirs.grad = view.clone(), view.clone()
        for p in (ours, theirs):
            other = nn.Parameter(torch.zeros(2))
            other.grad = torch.ones(2)
            p.norm = (clip_grad_norm_ if p is ours else nn.utils.clip_grad_norm_)([p, other], 0.1)  # type: ignore[attr-defined]
        torch.testing.assert_close([ours.norm, ours.grad], [theirs.norm, theirs.grad])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"])
@every_shape
def test_optimizers_take_empty_views(name: str, shape: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01}
    for value in views(shape, dense=True):
        for grad in views(shape):
            stepped = []
            for kinds in (optim, torch.optim):
                layout = torch.empty_strided(value.shape, value.stride())
                p = nn.Parameter(layout.copy_(value))
                optimizer = getattr(kinds, name)([p], **options)
                for _ in range(2):
                    p.grad = grad
                    optimizer.step()
                stepped.append(p.detach())
            torch.testing.assert_close(*stepped)
