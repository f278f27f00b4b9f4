"""Sequences of layers that run consecutive Linear layers and activations as one op."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import index
from typing import Any, SupportsIndex, overload

import torch
from torch import Tensor

from fastnn import _dispatch, _replaced
from fastnn._torch_internals import (
    COMPILED_CALL,
    MODULE_HOOKS,
    MODULES,
    PARAMETERS,
    any_hook_of_all_modules,
    module_names_known,
)
from fastnn.nn.activation import NAMES, module_of
from fastnn.nn.linear import Linear
from fastnn.ops.linear import check_activation, linear
from fastnn.ops.mlp import mlp_chain

_never_fuses = (
    _dispatch.cpu_missing if module_names_known else "this torch keeps hooks where fastnn does not find them"
)
_is_compiling = torch.compiler.is_compiling
_torch_forward = torch.nn.Sequential.forward


def why_nothing_fuses() -> str | None:
    """Why every layer must run by its own call, or None."""
    if _is_compiling():
        return "torch.compile is tracing"
    if any_hook_of_all_modules():
        return "a hook for all modules is registered"
    return _never_fuses or _calls.replaced()


def fused_runs(layers: list[torch.nn.Module]) -> list[range]:
    """The positions of layers that a call of a `Sequential` fuses, one range per op."""
    if why_nothing_fuses() is not None:
        return []
    runs, i = [], 0
    while i < len(layers):
        end = max(_read(layers, i)[-1], i + 1)
        if end - i > 1:
            runs.append(range(i, end))
        i = end
    return runs


def _run(layers: list[torch.nn.Module], input: Any) -> Any:
    i = 0
    while i < len(layers):
        weights, biases, activations, end = _read(layers, i)
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
    """A drop-in for :class:`torch.nn.Sequential` that runs consecutive `Linear` and activations as one op.

    The modules keep their places, names and parameters; only the call differs: consecutive `Linear`
    modules, each with the activation after it, are one node of the autograd graph, with one native call
    forward and one backward. Activations are `ReLU` and torch's ``ReLU``, ``Sigmoid``, ``Tanh``, ``GELU`` and
    ``SiLU``. A module with a hook or a replaced ``forward``, or of a subclass, is called as in torch.
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


_replaced.add_calls(Sequential)
_calls = _replaced.classes.of(Sequential)
if _dispatch.cpu is not None:
    _read = _dispatch.cpu.LayerReader(
        Linear,
        NAMES,
        {kind: _replaced.classes.of(kind).unchanged for kind in (Linear, *NAMES)},
        PARAMETERS,
        MODULE_HOOKS,
        COMPILED_CALL,
    ).read


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
        device: the device of the parameters.
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
        given: Any = sizes  # of any type
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
