"""Rounding errors compared with torch's, both against float64. Nothing is timed, so the machine may be
busy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

import fastnn
from fastnn import functional

from .case import OURS
from .machine import describe, versions

Run = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    """`run` returns the result that is measured. All sides get the same `inputs`, in a dtype of their own."""

    name: str
    inputs: Sequence[Tensor]
    run: Run
    dtype: torch.dtype = torch.float32


def _gradient(of: Callable[..., Tensor], which: int) -> Run:
    """The gradient of the input `which` of an op; the last input is that of its result."""

    def run(inputs: Sequence[Tensor]) -> Tensor:
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs[:-1]]
        return torch.autograd.grad(of(*leaves), leaves[which], inputs[-1])[0]

    return run


def _activation(name: str, inputs: Sequence[Tensor]) -> Tensor:
    values, identity = inputs
    return functional.linear(values, identity, None, name)


def _adam(inputs: Sequence[Tensor]) -> Tensor:
    """How far 100 steps move parameters."""
    start, gradients = inputs
    parameter = torch.nn.Parameter(start.clone())
    optimizer = fastnn.optim.Adam([parameter], lr=1e-2)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach().double() - start.double()


def _train_step(inputs: Sequence[Tensor]) -> Tensor:
    """How far ten steps move the weights of the first layer of 784-128-10."""
    images, labels, *parameters = inputs
    model = fastnn.nn.MLP([784, 128, 10]).to(images.dtype)
    with torch.no_grad():
        for own, given in zip(model.parameters(), parameters, strict=True):
            own.copy_(given)
    step = fastnn.TrainStep(model, torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    for x, y in zip(images, labels, strict=True):
        step(x, y)
    return next(model.parameters()).detach().double() - parameters[0].double()


def cases() -> list[Case]:
    """What is measured, from a seed."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    def positive(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random)

    made = []
    for m, n, k in ((64, 128, 784), (512, 512, 512), (1024, 1024, 1024)):
        made.append(
            Case(
                f"product, {m} x {n} x {k}",
                [normal(m, k), normal(n, k)],
                lambda t: functional.linear(t[0], t[1]),
            )
        )
    made.append(
        Case("product of positive values, 1024^3", [positive(1024, 1024), positive(1024, 1024)], made[0].run)
    )
    layer = [
        normal(256, 784),
        normal(512, 784),
        normal(256, 512),
    ]
    made += [
        Case("its dX, 256 x 512 x 784", layer, _gradient(functional.linear, 0)),
        Case("its dW, 256 x 512 x 784", layer, _gradient(functional.linear, 1)),
    ]
    bfloat16 = [t.bfloat16() for t in (normal(512, 512), normal(512, 512))]
    made.append(Case("product, 512 x 512 x 512", bfloat16, made[0].run, torch.bfloat16))
    values, identity = 3 * normal(65536, 16), torch.eye(16)
    for activation in ("sigmoid", "tanh", "gelu", "gelu_tanh", "silu"):
        made.append(
            Case(
                f"{activation} of 1M values",
                [values, identity],
                partial(_activation, activation),
            )
        )
    for rows, classes in ((4096, 10), (512, 32000)):
        logits, indices = 3 * normal(rows, classes), torch.randint(classes, (rows,), generator=random)
        made += [
            Case(
                f"cross-entropy, {rows} x {classes}, losses",
                [logits, indices],
                lambda t: functional.cross_entropy(t[0], t[1], reduction="none"),
            ),
            Case(
                "the same, gradient",
                [logits, indices, torch.ones(())],
                _gradient(functional.cross_entropy, 0),
            ),
        ]
    features, outer = normal(64, 12544), normal(64, 64)
    made += [
        Case("Gram matrix, 64 x 12544", [features], lambda t: functional.gram_matrix(t[0])),
        Case("the same, gradient", [features, outer], _gradient(functional.gram_matrix, 0)),
        Case(
            "change of 10,000 parameters by 100 steps of Adam", [normal(10_000), normal(100, 10_000)], _adam
        ),
        Case(
            "change of weights by ten training steps, 784-128-10",
            [
                positive(10, 64, 784),
                torch.randint(10, (10, 64), generator=random),
                *(0.05 * normal(*shape) for shape in ((128, 784), (128,), (10, 128), (10,))),
            ],
            _train_step,
        ),
    ]
    return made


def _native(case: Case) -> Tensor:
    """The result of fastnn.

    Raises:
        RuntimeError: torch ran part of it.
    """
    explanation = fastnn.explain(case.run, _as(case, case.dtype))
    if reasons := {each.reason for each in explanation.decisions if each.reason is not None}:
        raise RuntimeError(f"{case.name}: {', '.join(reasons)}")
    result: Tensor = explanation.result
    return result


def _as(case: Case, dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype) if t.is_floating_point() else t for t in case.inputs]


def errors(case: Case) -> dict[str, dict[str, float]]:
    """By side, the rms and the largest error, in units of eps times the rms of the exact result."""
    with fastnn.disabled():
        exact = case.run(_as(case, torch.float64)).double()
        torchs = case.run(_as(case, case.dtype))
    unit = torch.finfo(case.dtype).eps * exact.square().mean().sqrt()
    found = {}
    for side, result in ((OURS, _native(case)), ("torch", torchs)):
        error = result.double() - exact
        found[side] = {
            "rms": (error.square().mean().sqrt() / unit).item(),
            "largest": (error.abs().max() / unit).item(),
        }
    return found


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The document of all cases.

    Raises:
        RuntimeError: torch ran part of one.
    """
    results = [
        {"case": case.name, "dtype": str(case.dtype).removeprefix("torch."), "sides": errors(case)}
        for case in cases()
    ]
    return {
        "schema": 1,
        "machine": describe(),
        "versions": versions(),
        "settings": settings,
        "results": results,
    }


def _shown(error: float) -> str:
    return f"{error:.0f}" if error >= 10 else f"{error:.1f}" if error >= 1 else f"{error:.2f}"


def rows(document: Mapping[str, Any]) -> list[list[str]]:
    """For each case, its name and the errors of fastnn and torch."""
    return [
        [
            result["case"] + ("" if result["dtype"] == "float32" else f", {result['dtype']}"),
            *(_shown(result["sides"][side][what]) for what in ("rms", "largest") for side in (OURS, "torch")),
        ]
        for result in document.get("results", ())
    ]


HEADERS = ("errors in eps", "fastnn, rms", "torch, rms", "fastnn, largest", "torch, largest")


def to_markdown(document: Mapping[str, Any]) -> str:
    """The report as a page."""
    machine, found = document["machine"], document["versions"]
    lines = [
        f"- {machine['cpu']}, {machine['isa']}; fastnn {found['fastnn']}, torch {found['torch']}",
        "- against float64, in eps of the dtype times the root mean square of the result",
    ]
    table = tabulate(rows(document), HEADERS, tablefmt="github", disable_numparse=True)
    return "\n".join(["# Rounding errors", "", *lines, "", table, ""])
