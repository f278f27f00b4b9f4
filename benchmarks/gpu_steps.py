"""The cases of `benchmarks.gpu` that are training steps, or the part of optimizers and clipping in one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn
import fastnn.nn
import fastnn.optim
from fastnn.training.model import torch_mlp

from . import gpu_accuracy
from .cases.recipe import eager_step
from .gpu_timing import Call, Calls, Case, Place

Make = Callable[..., torch.optim.Optimizer]

MLP = (100352, 128, 1280, 10)  # numbers in the parameters of 784-128-10
MANY = (100_000,) * 100
SHAPES = {"MLP 784-128-10": MLP, "10M in 100": MANY, "100M": (10**8,)}
# Options, and bytes that each number takes in float32: p, g and the state read, p and the state written.
OPTIMIZERS: dict[str, tuple[dict[str, Any], int]] = {
    "Adam": ({}, 28),
    "SGD": ({"momentum": 0.9}, 20),
    "Adagrad": ({}, 20),
    "RMSprop": ({}, 20),
}


def _with_gradients(place: Place, sizes: Sequence[int], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(place.randn(n, dtype=dtype)) for n in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def _stepper(place: Place, make: Make, sizes: Sequence[int], by_graph: bool) -> Call:
    """A call that takes one step with existing gradients."""
    options = {}
    if by_graph and place.is_cuda and "capturable" in inspect.signature(make).parameters:
        options["capturable"] = True
    return make(_with_gradients(place, sizes, torch.float32), **options).step


def _optimizer(place: Place, name: str, sizes: Sequence[int], by_graph: bool) -> Calls:
    options, _ = OPTIMIZERS[name]
    theirs = getattr(torch.optim, name)
    makes: dict[str, Make] = {"fastnn": partial(getattr(fastnn.optim, name), **options)}
    makes["torch"] = partial(theirs, **options)
    if "fused" in inspect.signature(theirs).parameters:
        makes["torch fused"] = partial(theirs, fused=True, **options)
    return {side: _stepper(place, make, sizes, by_graph) for side, make in makes.items()}


def optimizer_cases(place: Place) -> list[Case]:
    """Steps alone, with and without Python's overhead."""
    found: list[Case] = []
    for name, (_, bytes_a_number) in OPTIMIZERS.items():
        for shape, sizes in SHAPES.items():
            for by_graph in (True, False):
                if by_graph or (sizes is not SHAPES["100M"]):
                    make = partial(_optimizer, place, name, sizes, by_graph)
                    text = f"{name} {shape}{'' if by_graph else ', from Python'}"
                    found.append(Case(text, make, bytes_a_number * sum(sizes), by_graph=by_graph))
    return found


def _masters(place: Place) -> Calls:
    halves = _with_gradients(place, MANY, torch.bfloat16)
    capturable = place.is_cuda
    ours = fastnn.optim.Adam(halves, master_weights=True, capturable=capturable)
    masters = [torch.nn.Parameter(half.detach().float()) for half in halves]
    copies = [half.detach().clone() for half in halves]
    gradients = [half.grad for half in halves if half.grad is not None]
    for wide in masters:
        wide.grad = torch.empty_like(wide)
    wide_gradients = [wide.grad for wide in masters if wide.grad is not None]
    theirs = torch.optim.Adam(masters, fused=True, capturable=capturable)

    def torch_step() -> None:
        torch._foreach_copy_(wide_gradients, gradients)
        theirs.step()
        torch._foreach_copy_(copies, [wide.detach() for wide in masters])

    return {"fastnn": ours.step, "torch fused": torch_step}


def master_cases(place: Place) -> list[Case]:
    """Adam on bfloat16 with float32 masters: g is read, p written, m, v and the master both: 28 bytes.

    Torch keeps masters as parameters of their own: gradients are cast to float32 and masters are cast back.
    """
    return [Case("Adam 10M in 100, bf16 with masters", partial(_masters, place), 28 * sum(MANY))]


def _lowering(call: Callable[[float], object], bound: float) -> Call:
    """Calls with a bound that each lowers slightly, so that every call has to scale."""

    def lower() -> object:
        nonlocal bound
        bound *= 0.999
        return call(bound)

    return lower


def _clip(place: Place, sizes: Sequence[int]) -> Calls:
    clips: dict[str, Callable[..., object]] = {
        "fastnn": fastnn.nn.utils.clip_grad_norm_,
        "torch": torch.nn.utils.clip_grad_norm_,
    }
    return {
        side: _lowering(partial(clip, _with_gradients(place, sizes, torch.float32)), sum(sizes) ** 0.5)
        for side, clip in clips.items()
    }


def clip_cases(place: Place) -> list[Case]:
    """Clipping by the norm: gradients are read for it, then read and written, since the bound is below it."""
    return [
        Case(f"clip_grad_norm_ {shape}", partial(_clip, place, sizes), 12 * sum(sizes), by_graph=False)
        for shape, sizes in SHAPES.items()
        if shape != "100M"
    ]


def _network(place: Place, sizes: Sequence[int], linear: type[torch.nn.Linear]) -> torch.nn.Sequential:
    return torch_mlp([place.size(n) for n in sizes], linear=linear).to(place.device)


def _epoch(place: Place, sizes: Sequence[int], rows: int, batch: int) -> Calls:
    model = _network(place, sizes, torch.nn.Linear)
    step = fastnn.TrainStep(model, F.cross_entropy, fastnn.optim.Adam(model.parameters()))
    shape = place.size(rows), place.size(sizes[0])
    images = torch.randint(256, shape, dtype=torch.uint8, device=place.device)
    labels = place.randint(sizes[-1], rows)
    order = torch.randperm(shape[0], device=place.device)
    return {"fastnn": partial(step.epoch, images, labels, place.size(batch), order)}


def epoch_cases(place: Place) -> list[Case]:
    """An epoch over 60,000 images, of which only the bytes must be moved."""
    sizes, rows = (784, 128, 10), 60000
    flops = 6 * rows * sum(k * n for k, n in pairwise(sizes))
    return [
        Case(
            f"epoch of 784-128-10, batch {batch}",
            partial(_epoch, place, sizes, rows, batch),
            rows * sizes[0],
            flops,
            by_graph=False,
        )
        for batch in (64, 128)
    ]


def _captured_by_hand(
    place: Place, model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Call:
    """A call that copies a batch and replays torch's own step, captured as torch's documentation advises."""
    batch, classes = x.clone(), y.clone()
    step = eager_step(model, F.cross_entropy, optimizer)
    replay_step = gpu_accuracy.capture(partial(step, batch, classes), place.device)

    def replay() -> None:
        batch.copy_(x)
        classes.copy_(y)
        replay_step()

    return replay


def _step(place: Place, sizes: Sequence[int], batch: int) -> Calls:
    x, y = place.randn(batch, sizes[0]), place.randint(sizes[-1], batch)
    ours = _network(place, sizes, fastnn.nn.Linear)
    plain, by_hand, compiled = (_network(place, sizes, torch.nn.Linear) for _ in range(3))
    step = fastnn.TrainStep(ours, fastnn.functional.cross_entropy, fastnn.optim.Adam(ours.parameters()))
    for _ in range(3):  # the third captures
        step(x, y)
    fused = partial(torch.optim.Adam, fused=True)
    return {
        "fastnn": partial(step, x, y),
        "torch fused": partial(eager_step(plain, F.cross_entropy, fused(plain.parameters())), x, y),
        "torch fused graph": _captured_by_hand(
            place, by_hand, fused(by_hand.parameters(), capturable=place.is_cuda), x, y
        ),
        "compile": partial(
            eager_step(place.compiled(compiled), F.cross_entropy, fused(compiled.parameters())), x, y
        ),
    }


def step_cases(place: Place) -> list[Case]:
    """Training steps from Python; parameters and Adam's state are read and written, the batch is read."""
    found: list[Case] = []
    for sizes, batch in (((784, 128, 10), 64), ((784, 1024, 1024, 10), 512)):
        weights = sum(k * n for k, n in pairwise(sizes))
        moved = 24 * (weights + sum(sizes[1:])) + 4 * batch * sizes[0]
        name = f"step {'-'.join(map(str, sizes))}, batch {batch}"
        make = partial(_step, place, sizes, batch)
        found.append(Case(name, make, moved, 6 * batch * weights, by_graph=False))
    return found
