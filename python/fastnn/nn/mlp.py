"""Chains of layers that run a run of Linear and activation as one op."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import index
from typing import Any, SupportsIndex, overload

import torch
from torch import Tensor

from fastnn import _dispatch, _replaced
from fastnn._torch_internals import MODULES, any_hook_of_all_modules, is_only_forward, module_names_known
from fastnn.nn.activation import activation_of, module_of
from fastnn.nn.linear import Linear, parameters_of
from fastnn.ops.linear import check_activation, linear
from fastnn.ops.mlp import mlp_chain

_never_fuses = (
    _dispatch.cpu_missing if module_names_known else "this torch keeps hooks where fastnn does not find them"
)
_is_compiling = torch.compiler.is_compiling
_unchanged = _replaced.classes.unchanged
_torch_forward = torch.nn.Sequential.forward


def why_nothing_fuses() -> str | None:
    """What stands against passing any layer's call by, or None."""
    if _is_compiling():
        return "torch.compile is tracing"
    if any_hook_of_all_modules():
        return "a hook for all modules is registered"
    return _never_fuses if _never_fuses is not None or _unchanged() else _replaced.replaced_class()


def _chain(
    layers: list[torch.nn.Module], start: int
) -> tuple[list[Tensor], list[Tensor | None], list[str | None], int]:
    """Weights, biases and activations of the linear layers from `start` on that run as one op, and where the
    modules after them begin."""
    weights, biases, activations = [], [], []
    i = start
    while i < len(layers):
        layer = layers[i]
        if type(layer) is not Linear or not is_only_forward(layer):
            break
        activation = layer.activation
        i += 1
        following = activation_of(layers[i]) if i < len(layers) and is_only_forward(layers[i]) else None
        # A layer's own activation stays; relu(relu(z)) = relu(z).
        if following is not None and (activation is None or activation == following == "relu"):
            activation = following
            i += 1
        weight, bias = parameters_of(layer)
        weights.append(weight)
        biases.append(bias)
        activations.append(activation)
    return weights, biases, activations, i


def fused_runs(layers: list[torch.nn.Module]) -> list[range]:
    """The places of the layers that a call of a `Sequential` runs together, each run as one op."""
    if why_nothing_fuses() is not None:
        return []
    runs, i = [], 0
    while i < len(layers):
        end = max(_chain(layers, i)[-1], i + 1)
        if end - i > 1:
            runs.append(range(i, end))
        i = end
    return runs


def _run(layers: list[torch.nn.Module], input: Any) -> Any:
    i = 0
    while i < len(layers):
        weights, biases, activations, end = _chain(layers, i)
        if len(weights) > 1:
            input = mlp_chain(input, weights, biases, activations)
        elif weights:
            input = linear(input, weights[0], biases[0], activations[0])
        else:
            input = layers[i](input)
            end = i + 1
        i = end
    return input


class Sequential(torch.nn.Sequential):
    """A drop-in for :class:`torch.nn.Sequential` that runs each stretch of `Linear` and activation as one op.

    The modules keep their places, names and parameters; only the call differs: consecutive `Linear`
    modules, each with the activation after it, are one node of the autograd graph, forward and backward in
    one native call each. Activations are `ReLU` and torch's ``ReLU``, ``Sigmoid``, ``Tanh``, ``GELU`` and
    ``SiLU``. A module that anyone watches (a hook, a replaced ``forward``, a subclass) is called as
    in torch.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Pass `input` through the modules in turn."""
        # TorchScript compiles the first branch only.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            for module in self:
                input = module(input)
            return input
        else:
            layers = list(self.__dict__[MODULES].values())
            if why_nothing_fuses() is not None:
                theirs = torch.nn.Sequential.forward
                output: Tensor = (_torch_forward if theirs is Sequential.forward else theirs)(self, input)
                return output
            output = _run(layers, input)
            return output


class MLP(Sequential):
    """Multi-layer perceptron: `Linear` layers with an activation between them, none after the last.

    ``MLP([784, 128, 10])`` is ``Sequential(Linear(784, 128), ReLU(), Linear(128, 10))``: the same initial
    values for the same seed, the same state_dict keys (``0.weight``, ``0.bias``, ``2.weight`` ...), and the
    same modules for hooks, indexing and editing. A slice is a `Sequential`.

    Args:
        sizes: features of the input, of each hidden layer and of the output; at least two.
        activation: ``"relu"``, ``"sigmoid"``, ``"tanh"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``, a module
            between the layers; or None for a purely affine chain (keys ``0.weight``, ``1.weight`` ...).
        bias: whether each layer has a bias.
        device: where the parameters are made.
        dtype: dtype of the parameters.

    Shape:
        input ``(*, sizes[0])``, output ``(*, sizes[-1])``.

    Raises:
        TypeError: `sizes` is not a list of ints.
        ValueError: fewer than two sizes, or an unknown ``activation``.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | None = "relu",
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        given: Any = sizes  # whatever the annotation says
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise TypeError(f"MLP: sizes must be a list of ints, got {given!r}")
        sizes = list(sizes)
        check_activation("MLP", activation)
        if any(isinstance(size, bool) or not isinstance(size, SupportsIndex) for size in sizes):
            raise TypeError(f"MLP: sizes must be a list of ints, got {sizes}")
        sizes = [index(size) for size in sizes]
        if len(sizes) < 2:
            raise ValueError(f"MLP: sizes must name at least an input and an output size, got {sizes}")
        layers: list[torch.nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            if layers and activation is not None:
                layers.append(module_of(activation))
            layers.append(Linear(fan_in, fan_out, bias=bias, device=device, dtype=dtype))
        super().__init__(*layers)

    @overload
    def __getitem__(self, idx: slice) -> torch.nn.Sequential: ...
    @overload
    def __getitem__(self, idx: int) -> torch.nn.Module: ...
    def __getitem__(self, idx: slice | int) -> torch.nn.Module:
        """Return one module, or a `Sequential` of a slice of them under their own names."""
        if isinstance(idx, slice):
            return Sequential(OrderedDict(list(self.__dict__[MODULES].items())[idx]))
        return super().__getitem__(idx)
