"""Models that are nothing but a chain of linear layers with activations, by the modules they consist of."""

from __future__ import annotations

from typing import Any

import torch

from fastnn import _replaced
from fastnn._dispatch import Unsupported, refuse
from fastnn._torch_internals import MODULES, is_only_forward
from fastnn.capture.watch import watch_module
from fastnn.nn import linear as _linear
from fastnn.nn import mlp as _mlp
from fastnn.nn.activation import activation_of

LINEAR_TYPES = (torch.nn.Linear, _linear.Linear)
_SEQUENTIAL = (torch.nn.Sequential.forward, _mlp.Sequential.forward)


class LinearChain(list[tuple[torch.nn.Linear, str | None]]):
    """The layers of a model that is nothing but a chain, each with the name of its activation or None.

    Attributes:
        flatten: whether the input is flattened first, all its dimensions after the first into one.
        log_softmax: whether the output is the log_softmax of what the last layer gives, along its last
            dimension.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flatten = False
        self.log_softmax = False
        self._watched: list[torch.nn.Module] = []
        # Attributes that determine what a module computes.
        self._options: list[tuple[torch.nn.Module, str, Any]] = []

    def watch(self, watch: Any) -> None:
        """Register with a `Watch` that the model is this chain, and that its modules have no hooks."""
        for module in self._watched:
            watch_module(watch, module)
            watch.content(module.__dict__[MODULES])
        for module, name, value in self._options:
            if name in module.__dict__:
                watch.item(module.__dict__, name, value)
            else:
                watch.attribute(module, name, value)

    def _module(self, module: torch.nn.Module, path: str) -> None:
        kind = type(module)
        name = f"{path} ({kind.__name__})" if path else kind.__name__
        if not is_only_forward(module):
            raise Unsupported(f"{name} has a hook, a replaced forward or a compiled one")
        self._watched.append(module)
        activation = activation_of(module)
        if kind in LINEAR_TYPES:
            self._linear(module, name)
        elif activation is not None:
            if activation.startswith("gelu"):
                self._options.append((module, "approximate", module.approximate))
            self._activation(activation, name)
        elif kind is torch.nn.LogSoftmax:
            self._options.append((module, "dim", module.dim))
            self._log_softmax(module.dim, name)
        elif kind is torch.nn.Flatten:
            self._options += [(module, key, module.__dict__[key]) for key in ("start_dim", "end_dim")]
            self._flatten(module.start_dim, module.end_dim, name)
        elif (
            kind.forward in _SEQUENTIAL
            and kind.__call__ is torch.nn.Module.__call__
            and getattr(kind, "__iter__", None) is torch.nn.Sequential.__iter__
        ):
            for key, child in module.__dict__[MODULES].items():
                self._module(child, f"{path}.{key}" if path else key)
        elif kind is not torch.nn.Identity:
            raise Unsupported(f"{name} is not a layer of a chain")

    def _linear(self, module: Any, name: str) -> None:
        activation = None
        if type(module) is _linear.Linear:
            activation = module.activation
            self._options.append((module, "activation", activation))
        if self and self[-1][0].out_features != module.in_features:
            raise Unsupported(f"{name} does not take as many features as the layer before it gives")
        if any(p is q for p in module.parameters() for layer, _ in self for q in layer.parameters()):
            raise Unsupported(f"{name} shares a parameter with another layer")
        if self.log_softmax:
            raise Unsupported(f"{name} comes after log_softmax")
        self.append((module, activation))

    def _activation(self, activation: str, name: str) -> None:
        if not self:
            raise Unsupported(f"{name} comes before any linear layer")
        if self.log_softmax:
            raise Unsupported(f"{name} comes after log_softmax")
        if self[-1][1] is not None:
            raise Unsupported(f"{name} is a second activation in a row")
        self[-1] = self[-1][0], activation

    def _log_softmax(self, dim: object, name: str) -> None:
        if not self:
            raise Unsupported(f"{name} comes before any linear layer")
        if self.log_softmax:
            raise Unsupported(f"{name} comes after log_softmax")
        if type(dim) is not int or dim not in (1, -1):
            raise Unsupported(f"{name} is not along the last of two dimensions")
        self.log_softmax = True

    def _flatten(self, start: object, end: object, name: str) -> None:
        if self or (start, end) != (1, -1):
            raise Unsupported(f"{name} does not flatten the dimensions after the first")
        self.flatten = True


def linear_chain(model: torch.nn.Module) -> LinearChain:
    """The layers of `model` in order, if it is nothing but a chain of them.

    A chain is ``Linear``, or several in turn, each with or without an activation (ReLU, sigmoid, tanh, either
    GELU, SiLU) after it, in a ``Sequential`` (nested ones and ``nn.MLP`` included); ``Identity`` anywhere,
    ``Flatten()`` in front and a log_softmax along the last dimension at the end are allowed. What is watched
    or replaced is not a chain: hooks (global ones too), a replaced ``forward``, a compiled module, a subclass
    of a layer, parameters that layers share.

    Args:
        model: any module.

    Returns:
        A list of ``(linear module, activation)``, the activation one of None, ``"relu"``, ``"sigmoid"``,
        ``"tanh"``, ``"gelu"``, ``"gelu_tanh"`` and ``"silu"``.

    Raises:
        Unsupported: it is something else; the text says what.
    """
    refuse(_mlp.why_nothing_fuses() or _replaced.replaced_class())
    chain = LinearChain()
    chain._module(model, "")
    if not chain:
        raise Unsupported("it has no linear layer")
    return chain
