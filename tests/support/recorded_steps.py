"""Models that are not a chain, and their steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from train_steps import OPTIMIZERS, classes_of

DOUBLE = torch.float64


class Net(nn.Module):
    """Layers for the forwards below."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 5, dtype=DOUBLE), nn.Linear(5, 4, dtype=DOUBLE)
        self.scale, self.settings, self.table = 1.0, [1.0], {"gain": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


def batch(m: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randn(m, 6, dtype=DOUBLE), classes_of(m, 4)


def step_of(model: nn.Module, make: str = "adam", loss: Any = F.cross_entropy, **options: Any) -> Any:
    return fastnn.TrainStep(model, loss, OPTIMIZERS[make](model.parameters()), **options)


class WithNorms(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(
            6, 5, bias=False, dtype=DOUBLE
        )  # the gradient of a bias before a norm is pure rounding error
        self.bn, self.ln = nn.BatchNorm1d(5, dtype=DOUBLE), nn.LayerNorm(5, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.ln(self.bn(self.fc1(x)))))
