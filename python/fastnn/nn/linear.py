"""The affine layer, with an activation fused into its product if asked."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _dispatch, _replaced, functional
from fastnn._torch_internals import PARAMETERS
from fastnn.ops.linear import check_activation, torch_activation
from fastnn.ops.sizes import DEEP, SMALL, TINY_LAYER

_is_compiling = torch.compiler.is_compiling
_is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]
_torch_forward = _replaced.original(torch.nn.Linear, "forward")


def parameters_of(layer: torch.nn.Linear) -> tuple[Tensor, Tensor | None]:
    """`layer.weight` and `layer.bias`, without the microsecond that each takes through Module.__getattr__."""
    state = layer.__dict__
    own = state[PARAMETERS]
    if "weight" in own and "bias" in own and "weight" not in state and "bias" not in state:
        return own["weight"], own["bias"]
    return layer.weight, layer.bias  # pruned, a replica of DataParallel, replaced by a user


class Linear(torch.nn.Linear):
    r"""Affine layer :math:`y = \phi(x W^T + b)`, a drop-in for :class:`torch.nn.Linear`.

    Parameters, their initialisation, state_dict keys and errors are torch's; the product, the bias and the
    activation run as one kernel through :func:`fastnn.functional.linear`.

    Args:
        in_features: size K of each input sample.
        out_features: size N of each output sample.
        bias: whether to add a learnable bias.
        device: the device of the parameters.
        dtype: dtype of the parameters.
        activation: None for the identity, ``"relu"``, ``"sigmoid"``, ``"tanh"``, ``"gelu"``,
            ``"gelu_tanh"`` or ``"silu"``.

    Shape:
        input ``(*, K)``, output ``(*, N)``; weight ``(N, K)``, bias ``(N,)``.

    Raises:
        TypeError: ``bias`` is a str.
        ValueError: an unknown ``activation``.
    """

    __constants__ = ["in_features", "out_features", "activation"]  # noqa: RUF012
    # On the class, so that a module whose class fastnn.convert changes has it too.
    activation: str | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        check_activation("Linear", activation)
        flag: Any = bias  # of any type
        if isinstance(flag, str):
            raise TypeError(f"Linear: bias must be a bool, got {bias!r}; name the activation by keyword")
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        if activation is not None:
            self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to `input` of shape ``(*, K)``."""
        # TorchScript compiles the first branch only.
        if _is_scripting():
            output = F.linear(input, self.weight, self.bias)
            return torch_activation(output, self.activation)
        else:
            if not _is_compiling() and _unchanged():
                weight, bias = parameters_of(self)
                state = self.__dict__  # attributes of a module take three times as long
                work = input.numel() * state["out_features"] if type(input) is Tensor else None
                if (
                    type(work) is int  # under torch.jit.trace it is a tensor
                    and work <= TINY_LAYER
                    and state["in_features"] < DEEP
                    and input.dtype is torch.float32
                    and input.is_cpu
                    and self.activation is None
                ):
                    _dispatch.decide("linear", SMALL)
                    return F.linear(input, weight, bias)
                return functional.linear(input, weight, bias, self.activation)
            theirs = torch.nn.Linear.forward
            if theirs is not _torch_forward and theirs is not Linear.forward:
                return torch_activation(theirs(self, input), self.activation)
            return functional.linear(input, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        """As torch's, and the activation where one is set."""
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation!r}"


_replaced.add_calls(Linear)
_unchanged = _replaced.classes.of(Linear).unchanged
