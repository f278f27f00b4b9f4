"""Models with little or nothing to fuse, unchanged and after `fastnn.convert`.

Converting must not make them slower. Backward is that of the sum of the outputs, with respect to parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import fastnn

from ..case import Call, Case, Workload


class _Actor(torch.nn.Module):
    """The policy of off-policy reinforcement learning: a body and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(11, 256), torch.nn.Linear(256, 256)
        self.mean, self.log_std = torch.nn.Linear(256, 3), torch.nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return torch.cat([self.mean(x), self.log_std(x)], -1)


class _Policy(torch.nn.Module):
    """Policy and value of on-policy reinforcement learning."""

    def __init__(self) -> None:
        super().__init__()
        body = [torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
        self.policy, self.value = torch.nn.Sequential(*body), copy.deepcopy(torch.nn.Sequential(*body))
        self.action_head, self.value_head = torch.nn.Linear(64, 2), torch.nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.action_head(self.policy(x)), self.value_head(self.value(x))], -1)


def _infer(model: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(x)
    return output


def _train(model: torch.nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(model(x).sum(), list(model.parameters()))


def _build(kind: Callable[[], torch.nn.Module], width: int, rows: int, backward: bool) -> Workload:
    model = kind()
    call = _train if backward else _infer
    x = torch.randn(rows, width)
    calls: dict[str, Call] = {
        "fastnn": partial(call, fastnn.convert(copy.deepcopy(model)), x),
        "torch": partial(call, model, x),
    }
    # Sums of up to 256 products, a few of them in a row.
    return Workload(calls, tolerance=256 * torch.finfo(torch.float32).eps)


def _weights(kind: Callable[[], torch.nn.Module]) -> int:
    return sum(p.numel() for p in kind().parameters() if p.dim() == 2)


CASES = [
    Case(
        f"converted {name} {direction}",
        f"{rows} rows" if rows > 1 else "1 row",
        partial(_build, kind, width, rows, backward),
        flops=(2 if backward else 1) * 2 * rows * _weights(kind),
        quick=quick,
    )
    for name, kind, width, rows, quick in (
        ("Linear 64-3", partial(torch.nn.Linear, 64, 3), 64, 1, True),
        ("Linear 64-64", partial(torch.nn.Linear, 64, 64), 64, 64, False),
        ("actor 11-256-256-3x2", partial(_Actor), 11, 1, False),
        ("actor 11-256-256-3x2", partial(_Actor), 11, 256, False),
        ("policy 4-64-64-2+1", partial(_Policy), 4, 1, False),
        ("policy 4-64-64-2+1", partial(_Policy), 4, 64, False),
    )
    for direction, backward in (("forward", False), ("forward+backward", True))
]
