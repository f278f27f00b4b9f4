"""What `TrainStep` may be given."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import torch


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
            "TrainStep: expected an optimizer that evaluates the loss once a step, got "
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


CHECKS: dict[str, Callable[[Any], None]] = {
    "model": _check_model,
    "loss": _check_loss,
    "optimizer": _check_optimizer,
    "max_norm": _check_max_norm,
    "keep_grad": partial(_check_flag, "keep_grad"),
    "mean": _check_mean,
    "std": _check_std,
    "native": partial(_check_flag, "native"),
}
