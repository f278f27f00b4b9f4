"""A whole training step in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnn import _backend

Loss = Callable[[Any, Tensor], Tensor]


class TrainStep:
    r"""A training step as one call: forward, loss, backward, gradient clipping and update.

    ``loss = step(x, y)`` does what this does, in the same arithmetic up to rounding::

        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)  # if asked for
        optimizer.step()
        loss = loss.detach()

    Parameters, buffers and the optimizer's state stay where they are, in the model and the optimizer, and are
    valid after each call: evaluate, save, load, schedule the learning rate and change any option between
    calls as ever.

    Args:
        model: any module.
        loss: called with the model's output and the target; a module or a function that returns a scalar.
        optimizer: of the model's parameters.
        max_norm: clips the gradients to this norm over all of them, as
            :func:`torch.nn.utils.clip_grad_norm_` does; None leaves them as they are.
        keep_grad: whether the parameters' ``.grad`` holds the (clipped) gradients after the call. Otherwise
            it is None.
        mean: of images given as uint8, which become :math:`(x / 255 - \text{mean}) / \text{std}` in the dtype
            of the model's parameters.
        std: see `mean`.

    Raises:
        TypeError: `model` is no module or `optimizer` no optimizer.
        ValueError: `max_norm` is negative or `std` is 0.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        max_norm: float | None = None,
        keep_grad: bool = False,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"TrainStep: model must be a torch.nn.Module, got {type(model).__name__}")
        if not callable(loss):
            raise TypeError(f"TrainStep: loss must be callable, got {type(loss).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"TrainStep: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if max_norm is not None and not max_norm >= 0:
            raise ValueError(f"TrainStep: max_norm must be at least 0, got {max_norm}")
        if std == 0:
            raise ValueError("TrainStep: std must not be 0")
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.max_norm = max_norm
        self.keep_grad = keep_grad
        self.mean = mean
        self.std = std

    def __call__(self, input: Tensor, target: Tensor) -> Tensor:
        """Take one step on a batch.

        Args:
            input: the model's input, or uint8 images of the same shape.
            target: the loss's target.

        Returns:
            The loss before the update, detached.

        Raises:
            Whatever model, loss and optimizer raise; nothing has been updated then.
        """
        _backend.decide("train_step", "eager")
        return self._eager(input, target)

    def _eager(self, input: Tensor, target: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = self.loss(self.model(self._normalised(input)), target)
            loss.backward()
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        if not self.keep_grad:
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _normalised(self, input: Tensor) -> Tensor:
        if input.dtype is not torch.uint8:
            return input
        dtype = next((p.dtype for p in self.model.parameters()), torch.get_default_dtype())
        return input.to(dtype).mul_(1 / (255 * self.std)).sub_(self.mean / self.std)
