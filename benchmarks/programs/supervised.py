"""Updates of supervised and unsupervised learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .program import Program, Update, mlp, seeded, training_flops, values_of, weights


def _step(optimizer: torch.optim.Optimizer, loss_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def update(*data: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(*data)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return update


_MNIST = (784, 28, 10)


def _mnist_parts() -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    seeded()
    return mlp(_MNIST), (torch.randn(64, 784), torch.randint(10, (64,)))


def _mnist() -> tuple[Update, tuple[Tensor, ...]]:
    model, data = _mnist_parts()
    optimizer = torch.optim.Adam(model.parameters())
    return _step(optimizer, lambda x, y: F.nll_loss(F.log_softmax(model(x), dim=1), y)), data


def _mnist_arguments() -> Mapping[str, Any]:
    model, data = _mnist_parts()
    return {"values": values_of(model)[0], "inputs": [data[0]], "targets": [data[1]]}


def _sine() -> tuple[Update, tuple[Tensor, ...]]:
    seeded()
    model = mlp((1, 2, 1), nn.Sigmoid)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.linspace(-1, 1, 20).view(-1, 1)
    return _step(optimizer, lambda x, y: (model(x) - y).abs().sum()), (x, torch.sin(3 * x))


class Tabular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(54, 256), nn.BatchNorm1d(256), nn.GELU(), nn.Dropout(0.1))
        self.outer = nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(self.inner(x))
        return y.view(-1)


def _tabular() -> tuple[Update, tuple[Tensor, ...]]:
    seeded()
    model = Tabular()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.randn(256, 54), (torch.rand(256) < 0.5).float()
    return _step(optimizer, lambda x, y: F.binary_cross_entropy_with_logits(model(x), y)), data


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(784, 256)
        self.to_mean, self.to_log_var = nn.Linear(256, 20), nn.Linear(256, 20)
        self.back = mlp((20, 256, 784))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(self.into(x))
        mean, log_var = self.to_mean(hidden), self.to_log_var(hidden)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
        return self.back(z), mean, log_var


def _vae() -> tuple[Update, tuple[Tensor, ...]]:
    seeded()
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss_of(x: Tensor) -> Tensor:
        logits, mean, log_var = model(x)
        likeness = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        divergence = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
        return (likeness + divergence) / len(x)

    return _step(optimizer, loss_of), (torch.rand(128, 784),)


def _distillation() -> tuple[Update, tuple[Tensor, ...]]:
    seeded()
    teacher, student = mlp((784, 256, 10)), mlp((784, 32, 10))
    optimizer = torch.optim.Adam(student.parameters())
    heat = 4.0

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            soft = F.softmax(teacher(x) / heat, dim=1)
        logits = student(x)
        divergence = F.kl_div(F.log_softmax(logits / heat, dim=1), soft, reduction="batchmean")
        return 0.7 * heat * heat * divergence + 0.3 * F.cross_entropy(logits, y)

    return _step(optimizer, loss_of), (torch.randn(128, 784), torch.randint(10, (128,)))


def _ensemble() -> tuple[Update, tuple[Tensor, ...]]:
    seeded()
    models = [mlp((8, 64, 64, 1)) for _ in range(10)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in models]

    def update(x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros(())
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            total = total + loss.detach()
        return total

    return update, (torch.randn(64, 8), torch.randn(64, 1))


PROGRAMS = [
    Program(
        "MNIST 784-28-10, batch 64",
        _mnist,
        training_flops(64, *_MNIST),
        quick=True,
        twin="training_step",
        twin_arguments=_mnist_arguments,
    ),
    Program("sigmoid 1-2-1, 20 rows", _sine, training_flops(20, 1, 2, 1), quick=True),
    Program("tabular 54-256-256-1, batch 256", _tabular, training_flops(256, 54, 256, 256, 1), random=True),
    Program(
        "VAE 784-256-20, batch 128",
        _vae,
        training_flops(128, 784, 256, 40) + 128 * 6 * weights((20, 256, 784)),
        random=True,
    ),
    Program(
        "distillation 784-256-10 to 784-32-10, batch 128",
        _distillation,
        training_flops(128, 784, 32, 10) + 128 * 2 * weights((784, 256, 10)),
    ),
    Program("ten nets 8-64-64-1, batch 64", _ensemble, 10 * training_flops(64, 8, 64, 64, 1)),
]
