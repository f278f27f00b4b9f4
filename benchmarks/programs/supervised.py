"""Updates of supervised and unsupervised learning."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .program import Program, Update, mlp, training_flops, weights


def _step(optimizer: torch.optim.Optimizer, loss_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def update(*data: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(*data)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return update


_MNIST = (784, 28, 10)


def _mnist_parts() -> tuple[list[nn.Sequential], tuple[Tensor, ...]]:
    return [mlp(_MNIST)], (torch.randn(64, 784), torch.randint(10, (64,)))


def _mnist(model: nn.Module) -> Update:
    optimizer = torch.optim.Adam(model.parameters())
    return _step(optimizer, lambda x, y: F.nll_loss(F.log_softmax(model(x), dim=1), y))


def _sine_parts() -> tuple[list[nn.Sequential], tuple[Tensor, ...]]:
    x = torch.linspace(-1, 1, 20).view(-1, 1)
    return [mlp((1, 2, 1), nn.Sigmoid)], (x, torch.sin(3 * x))


def _sine(model: nn.Module) -> Update:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return _step(optimizer, lambda x, y: (model(x) - y).abs().sum())


class Tabular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(54, 256), nn.BatchNorm1d(256), nn.GELU(), nn.Dropout(0.1))
        self.outer = nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(self.inner(x))
        return y.view(-1)


def _tabular_parts() -> tuple[list[Tabular], tuple[Tensor, ...]]:
    return [Tabular()], (torch.randn(256, 54), (torch.rand(256) < 0.5).float())


def _tabular(model: nn.Module) -> Update:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return _step(optimizer, lambda x, y: F.binary_cross_entropy_with_logits(model(x), y))


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


def _vae_parts() -> tuple[list[Vae], tuple[Tensor, ...]]:
    return [Vae()], (torch.rand(128, 784),)


def _vae(model: nn.Module) -> Update:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss_of(x: Tensor) -> Tensor:
        logits, mean, log_var = model(x)
        likeness = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        divergence = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
        return (likeness + divergence) / len(x)

    return _step(optimizer, loss_of)


def _distillation_parts() -> tuple[list[nn.Sequential], tuple[Tensor, ...]]:
    teacher, student = mlp((784, 256, 10)), mlp((784, 32, 10))
    return [teacher, student], (torch.randn(128, 784), torch.randint(10, (128,)))


def _distillation(teacher: nn.Module, student: nn.Module) -> Update:
    optimizer = torch.optim.Adam(student.parameters())
    heat = 4.0

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            soft = F.softmax(teacher(x) / heat, dim=1)
        logits = student(x)
        divergence = F.kl_div(F.log_softmax(logits / heat, dim=1), soft, reduction="batchmean")
        return 0.7 * heat * heat * divergence + 0.3 * F.cross_entropy(logits, y)

    return _step(optimizer, loss_of)


def _ensemble_parts() -> tuple[list[nn.Sequential], tuple[Tensor, ...]]:
    models = [mlp((8, 64, 64, 1)) for _ in range(10)]
    return models, (torch.randn(64, 8), torch.randn(64, 1))


def _ensemble(*models: nn.Module) -> Update:
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

    return update


PROGRAMS = [
    Program(
        "MNIST 784-28-10, batch 64",
        _mnist_parts,
        _mnist,
        training_flops(64, *_MNIST),
        twin="training_step",
        quick=True,
        twin_arguments=lambda networks, data: {
            "values": networks[0],
            "inputs": [data[0]],
            "targets": [data[1]],
        },
    ),
    Program(
        "sigmoid 1-2-1, 20 rows",
        _sine_parts,
        _sine,
        training_flops(20, 1, 2, 1),
        twin="sine_update",
        quick=True,
    ),
    Program(
        "tabular 54-256-256-1, batch 256",
        _tabular_parts,
        _tabular,
        training_flops(256, 54, 256, 256, 1),
        twin="tabular_update",
        random=True,
    ),
    Program(
        "VAE 784-256-20, batch 128",
        _vae_parts,
        _vae,
        training_flops(128, 784, 256, 40) + 128 * 6 * weights((20, 256, 784)),
        twin="vae_update",
        random=True,
    ),
    Program(
        "distillation 784-256-10 to 784-32-10, batch 128",
        _distillation_parts,
        _distillation,
        training_flops(128, 784, 32, 10) + 128 * 2 * weights((784, 256, 10)),
        twin="distillation_update",
    ),
    Program(
        "ten nets 8-64-64-1, batch 64",
        _ensemble_parts,
        _ensemble,
        10 * training_flops(64, 8, 64, 64, 1),
        twin="ensemble_update",
    ),
]
