"""The step as written: torch's and fastnn's ops one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnn import _losses, _replaced
from fastnn.nn.utils import clip_grad_norm_
from fastnn.step.parameters import ParameterList, clears_by_itself, drop_gradients
from fastnn.step.spec import StepSpec


class EagerStep:
    """Takes the step of a spec eagerly.

    Attributes:
        parameters: the model's.
    """

    def __init__(self, spec: StepSpec) -> None:
        self.parameters = ParameterList(spec.model)
        self._spec = spec

    def take(self, inputs: tuple[Any, ...], target: Any) -> Tensor:
        """Take the step; returns its loss."""
        spec = self._spec
        if not self.clear():
            spec.model.zero_grad()
        if torch.is_grad_enabled():
            loss = self._differentiate(inputs, target)
        else:
            with torch.enable_grad():
                loss = self._differentiate(inputs, target)
        params = self.parameters.now()
        if spec.max_norm is not None:
            clip = clip_grad_norm_ if _replaced.losses.unchanged() else torch.nn.utils.clip_grad_norm_
            clip(params, spec.max_norm)
        spec.optimizer.step()
        if not spec.keep_grad:
            drop_gradients(params)
        return loss.detach()

    def clear(self) -> bool:
        """Drop the gradients, unless the model has a way of its own."""
        if clears_by_itself(self._spec.model):
            return False
        drop_gradients(self.parameters.now())
        return True

    def _differentiate(self, inputs: tuple[Any, ...], target: Any) -> Tensor:
        """The loss; afterwards the parameters have its gradients."""
        spec = self._spec
        if isinstance(target, Tensor) and target.dtype is torch.uint8 and _takes_classes(spec.loss):
            target = target.long()  # torch accepts uint8 with some options only, and reads -100 as 156
        first, *others = inputs
        loss = spec.loss(spec.model(spec.normalised(first), *others), target)
        loss.backward()
        return loss


def _takes_classes(loss: _losses.Loss) -> bool:
    name = _losses.name_of(loss)
    return name is not None and _losses.KINDS[name].takes_classes
