"""What `TrainStep` was given, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fastnn._losses import Loss


def _check_model(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"TrainStep: model must be a torch.nn.Module, got {type(model).__name__}")


def _check_loss(loss: object) -> None:
    if isinstance(loss, type):
        raise TypeError(f"TrainStep: loss must be an instance, got the class {loss.__name__}")
    if not callable(loss):
        raise TypeError(f"TrainStep: loss must be callable, got {type(loss).__name__}")


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"TrainStep: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "TrainStep: expected an optimizer that evaluates the loss once per step, got "
            f"{type(optimizer).__name__}, which does so several times"
        )


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"TrainStep: {name} must be a number, got {type(value).__name__}")


def _check_max_norm(max_norm: Any) -> None:
    if max_norm is not None:
        _check_number("max_norm", max_norm)
        if not max_norm >= 0:
            raise ValueError(f"TrainStep: max_norm must be at least 0, got {max_norm}")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"TrainStep: {name} must be a bool, got {type(value).__name__}")


def _check_mean(mean: Any) -> None:
    _check_number("mean", mean)
    if not math.isfinite(mean):
        raise ValueError(f"TrainStep: mean must be finite, got {mean}")


def _check_std(std: Any) -> None:
    _check_number("std", std)
    if std == 0 or not math.isfinite(std):
        raise ValueError(f"TrainStep: std must be finite and not 0, got {std}")


_CHECKS: dict[str, Callable[[Any], None]] = {
    "model": _check_model,
    "loss": _check_loss,
    "optimizer": _check_optimizer,
    "max_norm": _check_max_norm,
    "keep_grad": partial(_check_flag, "keep_grad"),
    "mean": _check_mean,
    "std": _check_std,
    "native": partial(_check_flag, "native"),
}
ARGUMENTS = tuple(_CHECKS)


@dataclass(frozen=True, eq=False)
class StepSpec:
    """The arguments of a `TrainStep`, which gets a new spec whenever one of them changes.

    So everything derived from them belongs to objects made for one spec, and is dropped with it.
    """

    model: torch.nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    max_norm: float | None
    keep_grad: bool
    mean: float
    std: float
    native: bool

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError for the first invalid argument."""
        for name, check in _CHECKS.items():
            check(getattr(self, name))

    def normalised(self, input: Any) -> Any:
        """The model's input: images in bytes are converted to floats, normalised by `mean` and `std`."""
        if not isinstance(input, Tensor) or input.dtype is not torch.uint8:
            return input
        dtype = next((p.dtype for p in self.model.parameters()), torch.get_default_dtype())
        return input.to(dtype).mul_(1 / (255 * self.std)).sub_(self.mean / self.std)
