"""The tests of the updates, of clipping, and of whole training steps."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from fastnn import _dispatch, optim
from fastnn._replaced import torchs_class
from fastnn.nn.utils import clip_grad_norm_
from fastnn.optim.native import NativeOptimizer, update_name
from fastnn.selftest.checks import Fault, LeftOut, compare, natively
from fastnn.selftest.ops import Work, made

# Less than a pack, whole packs and a remainder, none, and more than one block.
FEW_SIZES = ((3,), (16, 33), (0,), (9_001,))
_SIZES = (*FEW_SIZES, *((7,),) * 90)  # more tensors than one launch takes
MANY_SIZES = ((5,),) * 1100  # more than two launches can count steps for


CAPTURABLE = (optim.Adam, optim.AdamW, optim.RMSprop)  # which count their steps on the device


def number_on(device: torch.device, value: float) -> Tensor:
    """A tensor with one number."""
    return torch.tensor(value, dtype=torch.float64, device=device)


def update(
    kind: type[NativeOptimizer],
    options: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    sizes: Sequence[tuple[int, ...]] = _SIZES,
    lr_on_device: bool = False,
    scaled: bool = False,
) -> None:
    """Three steps, and all state between them.

    Steps are as large as the parameters, so that 16 bits show them, and eps is so large that small gradients
    have no large quotients of rounding errors.

    Args:
        kind: the class of the optimizer.
        options: its other options.
        dtype: of the parameters.
        device: theirs.
        sizes: theirs.
        lr_on_device: whether the learning rate is a tensor there, which the host never reads.
        scaled: a `GradScaler` leaves the scale to the optimizer; before the last step one that it skips.
    """
    numbers: dict[str, Any] = {"lr": 0.5} if kind is optim.SGD else {"lr": 0.5, "eps": 0.1}
    ours = [nn.Parameter(made(dtype, *size).to(device)) for size in sizes]
    twins = [nn.Parameter(p.detach().to("cpu", torch.float64, copy=True)) for p in ours]
    lr = {"lr": number_on(device, 0.5)} if lr_on_device else {}
    optimizer: Any = kind(ours, **{**numbers, **options, **lr})
    known = inspect.signature(torchs_class(kind)).parameters.keys() - {"capturable", "fused"}
    twin = torchs_class(kind)(twins, **numbers, **{k: v for k, v in options.items() if k in known})
    scale = 4.0 if scaled else 1.0
    for taken in (True, True, False, True) if scaled else (True,) * 3:
        for p, q in zip(ours, twins, strict=True):
            grad = made(dtype, *p.shape)
            p.grad, q.grad = (grad * scale).to(device, copy=True), grad.double()
        if scaled:
            optimizer.grad_scale = torch.full((), scale, device=device)
            optimizer.found_inf = torch.full((), float(not taken), device=device)
        with natively(update_name(kind)):
            optimizer.step()
        if taken:
            twin.step()
    rounded = torch.float32 if options.get("master_weights") else dtype
    compare("parameters", _flat(ours), _flat(twins), 2)
    if "master_weights" in options:
        masters = [optimizer.state[p]["master_param"] for p in ours]
        compare("masters", _flat(masters), _flat(twins), 2, rounded)
    for key in twin.state[twins[0]]:
        kept = _flat([optimizer.state[p][key] for p in ours])
        compare(key, kept, _flat([twin.state[q][key] for q in twins]).double(), 2, rounded)


def _flat(tensors: list[Any]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def clip(dtype: torch.dtype, device: torch.device) -> None:
    """Norms above the bound and below it."""
    for bound in (1.0, 1e6):
        grads = [made(dtype, *size) for size in _SIZES]
        params = [nn.Parameter(torch.zeros_like(g, device=device)) for g in grads]
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.to(device, copy=True)
        with natively("clip_grad_norm"):
            norm = clip_grad_norm_(params, bound)
        expected = _flat(grads).double().norm()
        compare("norm", norm, expected, 2)
        factor = min(1.0, bound / (float(expected) + 1e-6))
        compare("gradients", _flat([p.grad for p in params]), _flat(grads).double() * factor, 3)


def _with_gradients(x: Tensor) -> list[nn.Parameter]:
    params = [nn.Parameter(part.clone()) for part in x]
    for p in params:
        p.grad = p.detach() * 3
    return params


def _steps(kind: Callable[..., NativeOptimizer], x: Tensor) -> list[Tensor]:
    params = _with_gradients(x)
    # If the device counts steps, values common to all parameters are in memory that each step allocates.
    capturable = {"capturable": True} if x.is_cuda and kind in CAPTURABLE else {}
    optimizer = kind(params, lr=0.5, **capturable)
    for _ in range(2):
        optimizer.step()
    return [p.detach() for p in params]


def _clipped(x: Tensor) -> list[Tensor]:
    params = _with_gradients(x)
    norm = clip_grad_norm_(params, 1.0)
    return [norm, *(p.grad for p in params if p.grad is not None)]


TWO_AT_ONCE: dict[str, Work] = {
    **{update_name(k): partial(_steps, k) for k in (optim.Adam, optim.SGD, optim.Adagrad, optim.RMSprop)},
    "clip_grad_norm": _clipped,
}


Maker = Callable[[Any], torch.optim.Optimizer]


def adam(params: Any) -> torch.optim.Optimizer:
    """Adam whose eps keeps float32 from magnifying rounding errors of small gradients."""
    return fastnn.optim.Adam(params, lr=0.01, eps=1e-3)


def sgd(params: Any) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return fastnn.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True)


def _twin_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    with fastnn.disabled():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.detach()


def _compare_models(ours: nn.Module, twin: nn.Module) -> None:
    for (name, p), q in zip(ours.named_parameters(), twin.parameters(), strict=True):
        compare(name, p, q.detach(), 8)


def step(make: Maker, dtype: torch.dtype, device: torch.device) -> None:
    """A chain trained by `TrainStep`: eager steps, their capture in a CUDA graph, and replays of it."""
    twin = nn.Sequential(nn.Linear(45, 70), nn.ReLU(), nn.Linear(70, 10))
    model = copy.deepcopy(twin).to(device, dtype)
    twin.load_state_dict(model.state_dict())
    twin.double()
    theirs, optimizer = make(twin.parameters()), make(model.parameters())
    train = fastnn.TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    why: str | None = None
    for _ in range(6):
        x, y = made(dtype, 37, 45), torch.randint(10, (37,))
        seen = fastnn.explain(train, x.to(device), y.to(device))
        why = next(d.reason for d in seen.decisions if d.op == "train_step")
        compare("loss", seen.result, _twin_step(twin, theirs, x.double(), y), 8)
        _compare_models(model, twin)
    if why is not None:
        raise Fault(f"the step was not captured: {why}")


def epoch(device: torch.device) -> None:
    """All steps of an epoch in one launch, the last of fewer rows; then an index out of range."""
    twin = nn.Sequential(nn.Linear(60, 48), nn.ReLU(), nn.Linear(48, 10)).double()
    model = copy.deepcopy(twin).to(device, torch.float32)
    twin.load_state_dict(model.state_dict())
    theirs, optimizer = adam(twin.parameters()), adam(model.parameters())
    images, labels = torch.randint(256, (100, 60), dtype=torch.uint8), torch.randint(10, (100,))
    order = torch.randperm(100)
    kernels = _dispatch.native(next(model.parameters()))
    if kernels != _dispatch.cpu:
        why = kernels.why_no_epoch(model[0].weight, model[2].weight, 32, 0)
        if why:
            raise LeftOut(why)
    train = fastnn.TrainStep(model, nn.CrossEntropyLoss(), optimizer, mean=0.3, std=0.5)
    given = images.to(device), labels.to(device), 32, order.to(device)
    for _ in range(2):
        with natively("train_epoch"):
            losses = train.epoch(*given)
        expected = [
            _twin_step(twin, theirs, (images[rows].double() / 255 - 0.3) / 0.5, labels[rows])
            for rows in order.split(32)
        ]
        compare("losses", losses, torch.stack(expected), 8)
        _compare_models(model, twin)
    wrong = labels.clone()
    wrong[order[40]] = 10
    try:
        train.epoch(given[0], wrong.to(device), *given[2:])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        train.epoch(*given)
    except IndexError:
        return
    raise Fault("a label out of range was not raised")
