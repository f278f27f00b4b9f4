"""Activations as modules, and the names that linear layers know them by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _replaced, functional

_torch_forward = _replaced.original(torch.nn.ReLU, "forward")


class ReLU(torch.nn.ReLU):
    """Rectified linear unit, a drop-in for :class:`torch.nn.ReLU`; see :func:`fastnn.functional.relu`.

    Args:
        inplace: write the result over the input.

    Shape:
        input ``(*)``, output ``(*)``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the unit to each element of `input`."""
        # TorchScript compiles the first branch only.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.relu(input, inplace=self.inplace)
        else:
            theirs = torch.nn.ReLU.forward
            if theirs is not _torch_forward and theirs is not ReLU.forward:
                return theirs(self, input)
            return functional.relu(input, inplace=self.inplace)


_replaced.add_calls(ReLU)

_GELU_FORMS = {"none": "gelu", "tanh": "gelu_tanh"}
# By type; where there are several, by the attribute `approximate`.
NAMES: dict[type, str | dict[str, str]] = {
    ReLU: "relu",
    torch.nn.ReLU: "relu",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.Tanh: "tanh",
    torch.nn.SiLU: "silu",
    torch.nn.GELU: _GELU_FORMS,
}


def gelu_name(approximate: object) -> str | None:
    """The name of the form of GELU that `approximate` selects, None if there is none."""
    return _GELU_FORMS.get(approximate) if isinstance(approximate, str) else None


def activation_of(module: torch.nn.Module) -> str | None:
    """The name of the activation that `module` is, None if it is not one of them by exact type."""
    name = NAMES.get(type(module))
    return gelu_name(module.approximate) if isinstance(name, dict) else name


def module_of(activation: str) -> torch.nn.Module:
    """A new module of the activation of this name."""
    if activation in _GELU_FORMS.values():
        return torch.nn.GELU("tanh" if activation == "gelu_tanh" else "none")
    module: torch.nn.Module = next(kind for kind, name in NAMES.items() if name == activation)()
    return module
