"""A whole training step in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastnn import _backend
from fastnn._step_plan import Loss, Refused, StepPlan, make_plan


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

    One native call does all of it, in one parallel region and without allocating memory for the largest
    batch seen a second time, where

    - the model is a chain of ``Linear``, each with or without ReLU, sigmoid, tanh, GELU or SiLU behind it:
      ``Sequential``, :class:`fastnn.nn.MLP`, or a ``forward`` that can be traced; ``Flatten()`` may come
      first,
    - the loss is cross-entropy with class indices, or the mean squared error, reduced by mean or sum; as
      module or as function,
    - the optimizer is Adam, AdamW or SGD, fastnn's or torch's own, and has the parameters of the chain and
      no other,
    - input, parameters and gradients are float32 or float64 tensors on the CPU.

    Anything else the same object runs eagerly, and :func:`fastnn.explain` says why. Whether the native call
    is possible is looked at in every call, so hooks, frozen layers or replaced parameters are respected. The
    first step is eager where the optimizer has yet to make its state.

    Results are the same, bit by bit, for every number of threads and from run to run.

    Args:
        model: any module.
        loss: called with the model's output and the target; a module or a function that returns a scalar.
        optimizer: of the model's parameters.
        max_norm: clips the gradients to this norm over all of them, as
            :func:`torch.nn.utils.clip_grad_norm_` does; None leaves them as they are.
        keep_grad: whether the parameters' ``.grad`` holds the (clipped) gradients after the call, in the same
            tensors from call to call. Otherwise it is None.
        mean: of images given as uint8, which become :math:`(x / 255 - \text{mean}) / \text{std}` in the dtype
            of the model's parameters.
        std: see `mean`.

    Raises:
        TypeError: `model` is no module or `optimizer` no optimizer.
        ValueError: `max_norm` is negative or `std` is 0.
    """

    _plan: StepPlan | Refused | None

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

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        super().__setattr__("_plan", None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}

    def __call__(self, input: Tensor, target: Tensor) -> Tensor:
        """Take one step on a batch.

        Args:
            input: the model's input, or uint8 images of the same shape.
            target: the loss's target.

        Returns:
            The loss before the update, detached.

        Raises:
            IndexError: a class index is out of range. This, and whatever else model, loss and optimizer
                raise, comes before anything is updated.
        """
        outcome = _backend.torch_reason()
        if outcome is None:
            loss = self._native(input, target)
            if not isinstance(loss, str):
                _backend.decide("train_step", None)
                return loss
            outcome = loss
        _backend.decide("train_step", outcome)
        return self._eager(input, target)

    def _native(self, input: Tensor, target: Tensor) -> Tensor | str:
        """Take the step natively, or leave everything as it is and say why that cannot be."""
        plan = self._plan
        if not isinstance(plan, StepPlan) or not plan.holds():
            plan = make_plan(self, plan)
            super().__setattr__("_plan", plan)
            if isinstance(plan, Refused):
                return plan.reason
        options = plan.loss_options()
        if isinstance(options, str):
            return options
        loss: Tensor = plan.scalar.new_empty(())
        written = plan.native.run(
            self.optimizer.param_groups, self.optimizer.state, input, target, loss, *options
        )
        if type(written) is list:
            increment_version(written)
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # what schedulers look for
            return loss
        return "the optimizer has no state yet" if written is None else str(written)

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
