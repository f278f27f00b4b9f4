"""What a program is, and what the programs share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import torch_mlp as mlp

__all__ = ["Program", "Update", "mlp", "seeded", "training_flops", "values_of", "weights"]

Update = Callable[..., Tensor]


@dataclass(frozen=True)
class Program:
    """A training update as its users write it, in plain PyTorch.

    `make` gives an update and the arguments to call it with, from the same weights and data each time; the
    update trains what it holds and returns a loss, detached. `flops` is its compulsory work: 2 for each
    weight and sample of a forward pass, of each gradient of a weight and of each gradient of an input that is
    needed. `random` says that the update draws numbers. `twin` names an operation of the JAX peer and gives
    its arguments.
    """

    name: str
    make: Callable[[], tuple[Update, tuple[Tensor, ...]]]
    flops: int
    random: bool = False
    quick: bool = False
    tolerance: float = 1e-3
    twin: str = ""
    twin_arguments: Callable[[], Mapping[str, Any]] = field(default=dict)


def seeded() -> None:
    """Makes the weights and data that follow the same in every call of a `make`."""
    torch.manual_seed(20)


def weights(widths: Sequence[int]) -> int:
    """Number of weights between layers of these widths."""
    return sum(wide * narrow for wide, narrow in itertools.pairwise(widths))


def training_flops(batch: int, *widths: int) -> int:
    """Forward and backward, less the gradient of the input."""
    return batch * (6 * weights(widths) - 2 * widths[0] * widths[1])


def values_of(*modules: nn.Module) -> list[list[Tensor]]:
    """The parameters of each, for another library."""
    return [[p.detach().clone() for p in module.parameters()] for module in modules]
