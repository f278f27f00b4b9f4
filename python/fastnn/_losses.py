"""The losses that a native training step computes, by the names of torch's functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Any, Tensor], Tensor]


class Kind(NamedTuple):
    """The properties of a loss.

    Attributes:
        module: torch's class for it.
        takes_classes: whether its target may be class indices.
        threshold: the option that is beta of the smooth L1 loss and delta of the Huber loss; None for others.
    """

    module: type[torch.nn.Module]
    takes_classes: bool = False
    threshold: str | None = None


KINDS: dict[str, Kind] = {
    "cross_entropy": Kind(torch.nn.CrossEntropyLoss, takes_classes=True),
    "nll_loss": Kind(torch.nn.NLLLoss, takes_classes=True),
    "mse_loss": Kind(torch.nn.MSELoss),
    "l1_loss": Kind(torch.nn.L1Loss),
    "smooth_l1_loss": Kind(torch.nn.SmoothL1Loss, threshold="beta"),
    "huber_loss": Kind(torch.nn.HuberLoss, threshold="delta"),
    "binary_cross_entropy_with_logits": Kind(torch.nn.BCEWithLogitsLoss),
}
_names: dict[Any, str] = {
    **{getattr(F, name): name for name in KINDS},
    **{kind.module: name for name, kind in KINDS.items()},
}


def add_twin(of: object, twin: object) -> None:
    """Let a function or class of fastnn have the name of the one of torch that it replaces."""
    _names[twin] = _names[of]


def name_of(loss: Loss) -> str | None:
    """The name of a loss of torch or fastnn, module or function; None for any other."""
    try:
        return _names.get(type(loss) if isinstance(loss, torch.nn.Module) else loss)
    except TypeError:  # not hashable
        return None
