"""How close a training step is to exact arithmetic, and that threads do not change a single bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from train_steps import (
    ELEMENTWISE,
    LOSSES,
    OPTIMIZERS,
    LossCase,
    Optimizer,
    chain,
    classes_of,
    model_for,
    native,
    target_for,
)

CASES = LOSSES | {"cross-entropy": LossCase(lambda n, **options: nn.CrossEntropyLoss(**options), classes_of)}
RATES: dict[str, Optimizer] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adam-rl": lambda p: fastnn.optim.Adam(p, lr=3e-4, eps=1e-5),
    "adamw": lambda p: fastnn.optim.AdamW(p, lr=1e-3, weight_decay=0.1, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    # Without eps their first step is the sign of the gradient. With the default eps, rounding decides it for
    # the odd weight whose gradient is nearly 0, in either path, and that weight dominates the error: of 150
    # parameters, 11 had more than three times torch's error, and 11 less than a third of it.
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, weight_decay=0.01, eps=1e-4),
    "rmsprop-centered": lambda p: fastnn.optim.RMSprop(p, lr=1e-3, centered=True, eps=1e-4),
    "adagrad": lambda p: fastnn.optim.Adagrad(p, lr=1e-2, lr_decay=0.1, eps=1e-4),
}


def check_exactness(
    sizes: list[int], activation: str, case: LossCase, make: Optimizer, images: bool, **options: Any
) -> None:
    """Native steps in float32 against eager ones in float32 and in float64.

    Both in float32 round each of the same sums once per term; they differ in the order of terms, which
    changes the error of a parameter by a small factor. The floor is for parameters of few values, for which
    torch's may be small by chance. Errors are summed without squaring: Adam divides by the root of a moment,
    which blows up that of the odd weight whose gradient is nearly 0, in either.
    """
    model = model_for(case, sizes, torch.float32, activation)
    twins = copy.deepcopy(model), copy.deepcopy(model).double()
    ours, theirs, exact = (
        fastnn.TrainStep(
            m,
            case.make(sizes[-1]).to(next(m.parameters()).dtype),
            make(m.parameters()),
            **{"mean": 0.2, "std": 0.3, **options},
        )
        for m in (model, *twins)
    )
    losses = []
    for _ in range(10):
        x = torch.randint(256, (64, sizes[0]), dtype=torch.uint8) if images else torch.randn(64, sizes[0])
        y = target_for(case, 64, sizes[-1], torch.float32)
        batches = (x, y), (x if images else x.double(), y.double() if y.is_floating_point() else y)
        losses.append([native(ours, *batches[0])])
        with fastnn.disabled():
            losses[-1] += [theirs(*batches[0]), exact(*batches[1])]
    results = [torch.tensor(values, dtype=torch.float64) for values in zip(*losses, strict=True)]
    for p, q, r in [
        *zip(*(m.parameters() for m in (model, *twins)), strict=True),
        results,
    ]:
        allowed = 3 * (q - r).norm(1) + 4 * torch.finfo(torch.float32).eps * r.norm(1)
        assert (p - r).norm(1) <= allowed


@pytest.mark.parametrize("images", [False, True], ids=["float", "bytes"])
@pytest.mark.parametrize("max_norm", [None, 0.05], ids=["plain", "clip"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
@pytest.mark.parametrize("make", RATES)
def test_float32_is_as_exact_as_torchs(
    make: str, loss: str, activation: str, max_norm: float | None, images: bool
) -> None:
    check_exactness([100, 48, 32, 10], activation, CASES[loss], RATES[make], images, max_norm=max_norm)


@pytest.mark.parametrize("loss", CASES)
@pytest.mark.parametrize("make", ["adam", "sgd"])
def test_every_loss_is_as_exact_as_torchs(make: str, loss: str) -> None:
    check_exactness([100, 48, 32, 10], "tanh", CASES[loss], RATES[make], False)


@pytest.mark.parametrize(
    ("loss", "activation"), [("cross-entropy", "relu"), ("mse", "tanh"), ("bce-both", "tanh")]
)
@pytest.mark.parametrize("make", ["sgd", "rmsprop", "rmsprop-centered", "adagrad"])
def test_every_variant_is_as_exact_as_torchs(isa: str, make: str, loss: str, activation: str) -> None:
    check_exactness([784, 128, 10], activation, CASES[loss], RATES[make], False)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_loss_by_itself_is_as_exact_as_torchs(isa: str, name: str, spread: float, reduction: str) -> None:
    """Its value, and the gradient of the outputs, which are the bias.

    The value is a single number, and torch's may be close to it by chance.
    """
    case, n = ELEMENTWISE[name], 5000
    loss, exact = (case.make(n, reduction=reduction).to(dtype) for dtype in (torch.float32, torch.float64))
    model = nn.Linear(1, n)
    outputs, y = spread * torch.randn(1, n), target_for(case, 1, n, torch.float32)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(outputs[0])
    step = fastnn.TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.0), keep_grad=True)
    ours = native(step, torch.ones(1, 1), y), model.bias.grad[None]  # type: ignore[index]
    results = []
    for module, dtype in ((loss, torch.float32), (exact, torch.float64)):
        leaf = outputs.to(dtype).requires_grad_()
        value = module(leaf, y.to(dtype))
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    for p, q, r, floor in zip(ours, *results, (2.0, 0.5), strict=True):
        allowed = 1.5 * (q - r).norm() + floor * torch.finfo(torch.float32).eps * r.norm()
        assert (p - r).norm() <= allowed


def check_bits(
    start: nn.Module, loss: nn.Module, make: Optimizer, x: Tensor, y: Tensor, **options: Any
) -> None:
    """The same steps, bit for bit, with any number of threads."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5, 2):
            torch.set_num_threads(threads)
            model = copy.deepcopy(start)
            step = fastnn.TrainStep(model, loss, make(model.parameters()), **options)
            losses = [native(step, x, y) for _ in range(4)]
            results.append([torch.stack(losses), *(p.detach() for p in model.parameters())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [([40, 605, 301, 33], 65), ([785, 512, 10], 128), ([70, 1500, 1900, 10], 100)],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.1}], ids=["plain", "clip"])
@pytest.mark.parametrize(
    ("dtype", "make"),
    [
        (torch.uint8, OPTIMIZERS["adam"]),
        (torch.float32, OPTIMIZERS["adam-amsgrad"]),
        (torch.float32, OPTIMIZERS["adamw"]),
        (
            torch.float32,
            lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.1, maximize=True),
        ),
        (torch.float32, OPTIMIZERS["rmsprop-all"]),
        (torch.float32, OPTIMIZERS["adagrad-decay"]),
    ],
)
def test_bits_do_not_depend_on_threads(
    sizes: list[int], batch: int, options: dict[str, Any], dtype: torch.dtype, make: Optimizer
) -> None:
    images = torch.randint(256, (batch, sizes[0]), dtype=torch.uint8)
    x, y = images if dtype is torch.uint8 else images / 255, classes_of(batch, sizes[-1])
    check_bits(chain(sizes, "gelu", dtype=torch.float32), nn.CrossEntropyLoss(), make, x, y, **options)


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.01, "keep_grad": True}], ids=["plain", "clip"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "bce-weight", "probabilities-options"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hidden", [[23, 64, 64], [23, 256, 256], [301, 517]], ids=str)
def test_bits_of_other_losses_and_dtypes(
    hidden: list[int], dtype: torch.dtype, loss: str, activation: str, options: dict[str, Any]
) -> None:
    case, sizes = CASES[loss], [*hidden, 1 if loss == "mse" else 10]
    x, y = torch.randn(256, sizes[0], dtype=dtype), target_for(case, 256, sizes[-1], dtype)
    model = model_for(case, sizes, dtype, activation)
    check_bits(model, case.make(sizes[-1]).to(dtype), RATES["adam-rl"], x, y, **options)
