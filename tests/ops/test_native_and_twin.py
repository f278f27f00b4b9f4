"""The same call gives the same result wherever it runs: each op natively and under `fastnn.disabled()`.

Random calls from the whole space of accepted inputs, and beyond it: dtypes (of which only some run natively),
layouts, empty and one-element dimensions, mismatched shapes, options in and out of range. Values, gradients
and errors agree; if a kernel's binding refuses, its error starts with torch's own message.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn
import fastnn.functional as FF
from fastnn import _dispatch
from fastnn.ops.linear import ACTIVATIONS
from fastnn.ops.mlp import Layer, mlp

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OTHERS = [torch.int64, torch.uint8, torch.int32, torch.bool, torch.complex64]
LAYOUTS = ["contiguous", "transposed", "gaps", "expanded", "misaligned", "odd strides"]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 8e-2, torch.float16: 2e-2}


class Call(NamedTuple):
    """A function, and what creates the same new tensors for it each time."""

    run: Callable[..., Tensor]
    tensors: list[Tensor]

    def outcome(self) -> tuple[list[Any], str | None]:
        """Result and gradients, or an error's type and text."""
        mine = [again(t).requires_grad_(t.requires_grad) for t in self.tensors]
        try:
            y = self.run(*mine)
            leaves = [t for t in mine if t.requires_grad]
            grads: Sequence[Any] = []
            if leaves and y.requires_grad:
                grads = torch.autograd.grad(y, leaves, torch.full_like(y, 0.5), allow_unused=True)
            return [y.requires_grad, y.detach(), *grads], None
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            return [type(error)], str(error)


def again(t: Tensor) -> Tensor:
    """A copy of `t` and of the memory that contains it."""
    memory = t.detach().untyped_storage().clone()
    empty: Any = torch.empty(0, dtype=t.dtype)
    return empty.set_(memory, t.storage_offset(), t.shape, t.stride())  # type: ignore[no-any-return]


def pick(rng: random.Random, usual: Sequence[Any], unusual: Sequence[Any], odds: float = 0.08) -> Any:
    return rng.choice(unusual if rng.random() < odds else usual)


def make(rng: random.Random, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of some layout, with or without gradient."""
    t = torch.randn(tuple(shape), dtype=torch.float64).mul(2)
    t = laid_out(rng, (t.abs() if dtype == torch.uint8 else t).to(dtype))
    return t.requires_grad_(rng.random() < 0.5 and (dtype.is_floating_point or dtype.is_complex))


def laid_out(rng: random.Random, t: Tensor) -> Tensor:
    layout = rng.choice(LAYOUTS)
    if layout == "transposed" and t.dim() > 1:
        return t.mT.contiguous().mT
    if layout == "gaps" and t.dim():
        return t.new_empty(*t.shape[:-1], 2 * t.shape[-1])[..., ::2].copy_(t)
    if layout == "expanded" and t.dim() and t.shape[-1]:
        return t[..., :1].expand(t.shape)
    if layout == "misaligned":
        return t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)
    if layout == "odd strides":  # of dimensions where they do not matter
        return t.as_strided(t.shape, [7 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)])
    return t


def relu(rng: random.Random) -> Call:
    shape = rng.choices([0, 1, 2, 5], k=rng.randrange(5))
    x, inplace = make(rng, shape, pick(rng, FLOATS, OTHERS)), rng.random() < 0.3
    copied = rng.random() < 0.5
    return Call(lambda x: FF.relu(x * 1 if copied else x, inplace=inplace), [x])


def gram_matrix(rng: random.Random) -> Call:
    shape, normalize = rng.choices([0, 1, 2, 5], k=rng.randrange(1, 6)), rng.random() < 0.5
    return Call(lambda x: FF.gram_matrix(x, normalize), [make(rng, shape, pick(rng, FLOATS, OTHERS))])


def layer(rng: random.Random, k: int, n: int, dtype: torch.dtype) -> list[Tensor]:
    """Weight and bias, possibly mismatched."""
    weight = pick(rng, [(n, k)], [(k,), (), (2, n, k), (n, k + 1)])
    bias = pick(rng, [(n,)], [(1,), (), (n + 1,), (1, n)])
    return [make(rng, shape, pick(rng, [dtype], FLOATS, 0.03)) for shape in (weight, bias)]


def linear(rng: random.Random) -> Call:
    k, n, dtype = rng.choice([0, 1, 3, 4]), rng.choice([0, 1, 2, 5]), pick(rng, FLOATS, OTHERS)
    x = make(rng, [*rng.choices([0, 1, 2, 3], k=rng.choice([0, 1, 1, 1, 2, 3])), k], dtype)
    activation, biased = pick(rng, ACTIVATIONS, ["elu", []], 0.02), rng.random() < 0.8
    return Call(
        lambda x, w, b: FF.linear(x, w, b if biased else None, activation), [x, *layer(rng, k, n, dtype)]
    )


def chain(rng: random.Random) -> Call:
    k, m, n = rng.choice([0, 1, 3]), rng.choice([0, 1, 2, 5]), rng.choice([1, 3])
    dtype = pick(rng, FLOATS, OTHERS)
    x = make(rng, [*rng.choices([0, 1, 2, 3], k=rng.choice([0, 1, 1, 1, 2, 3])), k], dtype)
    first, second = (pick(rng, ACTIVATIONS, ["elu", []], 0.02) for _ in range(2))
    return Call(
        lambda x, v, a, w, b: mlp(x, [Layer(v, a, first), Layer(w, b, second)]),
        [x, *layer(rng, k, m, dtype), *layer(rng, m, n, dtype)],
    )


def loss_options(rng: random.Random) -> dict[str, Any]:
    return {
        "reduction": pick(rng, ["mean", "sum", "none"], ["avg", None, []], 0.03),
        "ignore_index": pick(rng, [-100], [0, 1, 255, 156, -1, -(2**63), 2**63, True, 1.0], 0.3),
        "label_smoothing": pick(rng, [0.0, 0.1, 1.0], [1.5, -0.1], 0.03),
        "z_loss": rng.choice([0.0, 0.0, 0.3]),
    }


def indices(rng: random.Random, shape: Sequence[int], classes: int, ignore_index: Any) -> Tensor:
    top = pick(rng, [max(classes, 1)], [classes + 1])
    dtype = pick(rng, [torch.int64, torch.uint8], [torch.int32, torch.bool, torch.float32])
    target = torch.randint(0, top, tuple(shape)).to(dtype)
    if target.numel() and rng.random() < 0.3 and (target.dtype == torch.int64 or 0 <= ignore_index < 256):
        target.view(-1)[0] = min(ignore_index, 2**63 - 1)
    return laid_out(rng, target)


def cross_entropy(rng: random.Random) -> Call:
    classes, dtype = rng.choice([0, 1, 2, 3, 4]), pick(rng, FLOATS, OTHERS)
    rest = rng.choices([0, 1, 2, 3], k=rng.choice([0, 0, 0, 1, 2]))
    batch = rng.choice([0, 1, 2, 3])
    logits, of_indices = pick(rng, [([batch, classes, *rest], [batch, *rest])], [([classes], [])], 0.15)
    options = loss_options(rng)
    if rng.random() < 0.25:
        target = laid_out(rng, torch.rand(logits, dtype=torch.float64).to(pick(rng, [dtype], FLOATS)))
    else:
        wrong = [[1], [], [*of_indices, 1], [batch + 1, *rest], [batch, *(n + 1 for n in rest)], logits]
        target = indices(rng, pick(rng, [of_indices], wrong), classes, options["ignore_index"])
    weight = make(rng, [pick(rng, [classes], [classes + 1])], pick(rng, [dtype], FLOATS))
    if weight.requires_grad and rng.random() < 0.8:
        weight.requires_grad_(False)
    weighted = rng.random() < 0.3
    return Call(
        lambda x, t, w: FF.cross_entropy(x, t, w if weighted else None, **options),
        [make(rng, logits, dtype), target, weight],
    )


def linear_cross_entropy(rng: random.Random) -> Call:
    k, classes, dtype = rng.choice([0, 1, 3]), rng.choice([0, 1, 2, 4]), pick(rng, FLOATS, OTHERS)
    batch = rng.choices([0, 1, 2, 3], k=rng.choice([0, 1, 1, 1, 2]))
    options = loss_options(rng)
    if rng.random() < 0.2:
        target = torch.rand([*batch, classes], dtype=torch.float64).to(pick(rng, [dtype], FLOATS))
    else:
        target = indices(rng, pick(rng, [batch], [[*batch, 1], [7]]), classes, options["ignore_index"])
    if options["ignore_index"] == -100:
        options["ignore_index"] = None
    weight = make(rng, [classes], dtype).detach()
    biased, weighted = rng.random() < 0.5, rng.random() < 0.3
    return Call(
        lambda x, w, b, t, c: FF.linear_cross_entropy(
            x, w, t, linear_bias=b if biased else None, weight=c if weighted else None, **options
        ),
        [
            make(rng, [*batch, k], dtype),
            make(rng, pick(rng, [[classes, k]], [[classes, k + 1], [k], [classes, 2, k]]), dtype),
            make(rng, pick(rng, [[classes]], [[classes + 1]]), dtype),
            target,
            weight,
        ],
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("op", [relu, gram_matrix, linear, chain, cross_entropy, linear_cross_entropy])
@pytest.mark.filterwarnings("ignore")
def test_native_and_torch_agree_on_random_calls(op: Callable[[random.Random], Call], seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for case in range(200):
        call = op(rng)
        got, text = call.outcome()
        with fastnn.disabled():
            expected, torch_text = call.outcome()
        assert (text is None) == (torch_text is None), (case, text, torch_text)
        if torch_text is not None:
            assert got == expected, (case, text, torch_text)
            assert str(text).startswith(torch_text)
            continue
        for mine, theirs in zip(got, expected, strict=True):
            tolerance = TOLERANCE.get(theirs.dtype, 1e-4) if isinstance(theirs, Tensor) else 0
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (3,), (0, 3), (0, 3, 2), (4, 3, 0)])
@pytest.mark.parametrize("way", ["disabled", "autocast", "compile", "vmap", "second derivative", "func"])
@pytest.mark.filterwarnings("ignore")
def test_uint8_indices_work_wherever_it_runs(shape: tuple[int, ...], way: str) -> None:
    """Like int64 ones, even if torch's own function accepts them for some shapes only."""
    x = torch.randn(shape, dtype=torch.float64)
    of_indices = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(0, 3, of_indices)
    if target.numel():
        target.view(-1)[0] = 156 if target.dim() else 1  # which is -100 as an int8
    options: dict[str, Any] = {"ignore_index": 156, "z_loss": 0.1, "label_smoothing": 0.1}

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return FF.cross_entropy(x, target, **options)

    def run(target: Tensor) -> Tensor:
        if way == "vmap":
            return torch.vmap(loss, (0, None))(torch.stack([x, 2 * x]), target)
        if way == "func":
            return torch.func.grad(loss)(x, target)
        if way == "second derivative":
            leaf = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(loss(leaf, target), leaf, create_graph=True)
            return torch.autograd.grad(grad.square().sum(), leaf)[0]
        if way == "compile":
            torch._dynamo.reset()
            return torch.compile(loss, backend="aot_eager", fullgraph=True)(x, target)
        if way == "autocast":
            with torch.autocast("cpu"):
                return loss(x, target)
        with fastnn.disabled():
            return loss(x, target)

    torch.testing.assert_close(run(target.to(torch.uint8)), run(target), equal_nan=True)


def test_uint8_indices_of_a_linear_classifier() -> None:
    x, w = torch.randn(2, 2, 3), torch.randn(4, 3)
    for target in (torch.randint(0, 4, (2, 2)), torch.zeros(0, dtype=torch.int64)):
        rows = x if target.numel() else x[:0, 0]
        expected = FF.linear_cross_entropy(rows, w, target, reduction="sum")
        with fastnn.disabled():
            got = FF.linear_cross_entropy(rows, w, target.to(torch.uint8), reduction="sum")
        torch.testing.assert_close(got, expected)


def empties() -> dict[str, Tensor]:
    """Tensors without elements, with strides that would leave gaps if there were any."""
    return {
        "every second column": torch.zeros(0, 8)[:, ::2],
        "no rows of a part": torch.zeros(6, 8)[:0, 2:6],
        "expanded": torch.zeros(0, 1).expand(0, 4),
        "transposed": torch.zeros(8, 0).t()[:, ::2],
        "three dimensions": torch.zeros(2, 0, 8)[..., ::2],
    }


@pytest.mark.parametrize("name", empties())
def test_empty_views_work_wherever_it_runs(name: str, device: torch.device) -> None:
    x = empties()[name].to(device)
    w, b = torch.randn(3, 4, device=device), torch.randn(3, device=device)
    ops: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (FF.relu, F.relu),
        (lambda t: FF.relu(t * 1, inplace=True), F.relu),
        (lambda t: FF.linear(t, w, b, "gelu"), lambda t: F.gelu(F.linear(t, w, b))),
        (lambda t: mlp(t, [Layer(w, b, "relu")]), lambda t: F.linear(t, w, b).relu()),
        (FF.gram_matrix, lambda t: t @ t.mT),
    ]
    for ours, theirs in ops:
        leaf = x.detach().requires_grad_()
        y, expected = ours(leaf), theirs(leaf)
        torch.testing.assert_close(y, expected)
        for dy in (torch.ones_like(y), torch.zeros(1, device=device).expand(y.shape)):
            (grad,) = torch.autograd.grad(y, leaf, dy, retain_graph=True)
            assert grad.shape == x.shape
