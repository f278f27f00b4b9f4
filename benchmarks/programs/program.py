"""The definition of a program, and what programs share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastnn.training.model import torch_mlp as mlp

__all__ = ["CHECKED_CALLS", "Program", "Update", "mlp", "training_flops", "weights"]

# The answers of this many calls are compared. A random update uses the call's number as its seed.
CHECKED_CALLS = 3

Update = Callable[..., Tensor]
Parts = Callable[[], tuple[Sequence[nn.Module], tuple[Tensor, ...]]]


def _networks_and_data(networks: list[list[Tensor]], data: list[Tensor]) -> Mapping[str, Any]:
    return {"networks": networks, "data": data}


@dataclass(frozen=True)
class Program:
    """A training update as its users write it, in plain PyTorch.

    `parts` returns modules and the arguments to call the update with; `updating` takes the modules and
    returns the update, which trains what it holds and returns a loss, detached, if it `learns`. `flops` is
    its compulsory work: 2 per weight and sample for a forward pass, for each gradient of a weight and for
    each gradient of an input that is needed. `random` says that the update draws numbers. `twin` names an
    operation of other libraries, and `twin_arguments` returns its arguments, from the values of each module
    and the arguments.
    """

    name: str
    parts: Parts
    updating: Callable[..., Update]
    flops: int
    twin: str
    random: bool = False
    learns: bool = True
    quick: bool = False
    tolerance: float = 1e-3
    twin_arguments: Callable[[list[list[Tensor]], list[Tensor]], Mapping[str, Any]] = _networks_and_data

    def make(self) -> tuple[Update, tuple[Tensor, ...]]:
        """The update, and its arguments: with the same weights and data each time."""
        modules, data = self._made()
        return self.updating(*modules), data

    def for_others(self) -> Mapping[str, Any]:
        """The arguments of the twin, with the same weights and data."""
        modules, data = self._made()
        values = [[p.detach().clone() for p in module.parameters()] for module in modules]
        return self.twin_arguments(values, list(data))

    def _made(self) -> tuple[Sequence[nn.Module], tuple[Tensor, ...]]:
        torch.manual_seed(20)
        return self.parts()


def weights(widths: Sequence[int]) -> int:
    """Number of weights between layers of these widths."""
    return sum(wide * narrow for wide, narrow in itertools.pairwise(widths))


def training_flops(batch: int, *widths: int) -> int:
    """Forward and backward, without the gradient of the input."""
    return batch * (6 * weights(widths) - 2 * widths[0] * widths[1])
