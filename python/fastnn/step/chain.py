"""Models that are nothing but a chain of linear layers with activations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fastnn._dispatch import Unsupported
from fastnn.nn import linear as _linear
from fastnn.nn import mlp as _mlp
from fastnn.nn.activation import activation_of, gelu_name
from fastnn.step.purity import Attribute, Guard
from fastnn.step.trace import Keys, own_forward, trace

LINEAR_TYPES = (torch.nn.Linear, _linear.Linear)

_FUNCTIONS: dict[Callable[..., Any], str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), "relu"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_), "tanh"),
    F.gelu: "gelu",
    F.silu: "silu",
}
_LOG_SOFTMAX = (F.log_softmax, torch.log_softmax, "log_softmax")
_CATS = (torch.cat, torch.concat, torch.concatenate)
_METHODS = ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_")
_SEQUENTIAL = (torch.nn.Sequential.forward, _mlp.Sequential.forward)


def activation_of_node(node: fx.Node, modules: dict[str, torch.nn.Module]) -> str | None:
    """The name of the activation that `node` applies to its first argument and nothing else, or None."""
    if len(node.args) != 1:
        return None
    options = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    approximate = options.pop("approximate", "none")
    if options:
        return None
    if node.op == "call_module" and not node.kwargs:
        return activation_of(modules[str(node.target)])
    if node.op == "call_method" and not node.kwargs and node.target in _METHODS:
        return str(node.target).rstrip("_")
    if node.op == "call_function" and callable(node.target):
        name = _FUNCTIONS.get(node.target)
        return gelu_name(approximate) if name == "gelu" else name
    return None


class LinearChain(list[tuple[torch.nn.Linear, str | None]]):
    """The layers of a model that is nothing but a chain, each with the name of its activation or None.

    Attributes:
        flatten: whether the input is flattened first, all its dimensions behind the first into one.
        squeeze: whether the last dimension of the output is dropped where it is 1.
        log_softmax: whether the output is the log_softmax of what the last layer gives, along its last
            dimension.
        order: that in which `torch.cat` joins the model's inputs along dimension 1, by their numbers, before
            anything else; ``(0,)`` where it takes one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flatten = False
        self.squeeze = False
        self.log_softmax = False
        self.order: tuple[int, ...] = (0,)
        self._modules: list[tuple[torch.nn.Module, type]] = []
        self._guards: list[Guard] = []

    def holds(self) -> bool:
        """Whether the model still is this chain, and nobody watches its modules; takes a few microseconds."""
        if _mlp._anything_global():
            return False
        for module, kind in self._modules:
            if type(module) is not kind or not _mlp._only_forward(module):
                return False
        return all(guard.holds() for guard in self._guards)

    def _module(self, module: torch.nn.Module, path: str) -> None:
        kind = type(module)
        name = f"{path} ({kind.__name__})" if path else kind.__name__
        if not _mlp._only_forward(module):
            raise Unsupported(f"{name} has a hook, a replaced forward or a compiled one")
        self._modules.append((module, kind))
        activation = activation_of(module)
        if kind in LINEAR_TYPES:
            self._linear(module, name)
        elif activation is not None:
            if activation.startswith("gelu"):
                self._guards.append(Guard(module.__dict__, "approximate", module.approximate, name))
            self._activation(activation, name)
        elif kind is torch.nn.LogSoftmax:
            self._guards.append(Guard(module.__dict__, "dim", module.dim, f"{path}.dim"))
            self._log_softmax(module.dim, name)
        elif kind is torch.nn.Flatten:
            for key in ("start_dim", "end_dim"):
                self._guards.append(Guard(module.__dict__, key, module.__dict__[key], f"{path}.{key}"))
            self._flatten(module.start_dim, module.end_dim, name)
        elif (
            kind.forward in _SEQUENTIAL
            and kind.__call__ is torch.nn.Module.__call__
            and getattr(kind, "__iter__", None) is torch.nn.Sequential.__iter__
        ):
            self._sequential(module, path)
        elif kind is not torch.nn.Identity:
            self._own(module, name, path)

    def _linear(self, module: Any, name: str) -> None:
        activation = None
        if type(module) is _linear.Linear:
            activation = module.activation
            self._guards.append(Guard(Attribute(module), "activation", activation, f"{name}: activation"))
        if self and self[-1][0].out_features != module.in_features:
            raise Unsupported(f"{name} does not take as many features as the layer before it gives")
        if any(p is q for p in module.parameters() for layer, _ in self for q in layer.parameters()):
            raise Unsupported(f"{name} shares a parameter with another layer")
        self._refuse_after_the_output(name)
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
        self._refuse_after_the_output(name)
        if type(dim) is not int or dim not in (1, -1):
            raise Unsupported(f"{name} is not along the last of two dimensions")
        self.log_softmax = True

    def _refuse_after_the_output(self, name: str) -> None:
        if self.squeeze or self.log_softmax:
            raise Unsupported(f"{name} comes after {'a squeeze' if self.squeeze else 'log_softmax'}")

    def _flatten(self, start: object, end: object, name: str) -> None:
        if self or (start, end) != (1, -1):
            raise Unsupported(f"{name} is no flattening of the input's dimensions behind the first")
        self.flatten = True

    def _sequential(self, module: torch.nn.Module, path: str) -> None:
        table = module.__dict__["_modules"]
        self._guards.append(Guard(module.__dict__, "_modules", table, path))
        self._guards.append(Guard(Keys(table), None, tuple(table), path))
        for key, child in table.items():
            below = f"{path}.{key}" if path else key
            self._guards.append(Guard(table, key, child, below))
            self._module(child, below)

    def _own(self, module: torch.nn.Module, name: str, path: str) -> None:
        """Follow a forward written by the user: one tensor that passes through one layer after the other."""
        forward = own_forward(module)
        if forward is None:
            raise Unsupported(f"{name} is no layer of a chain")
        try:
            seen = trace(module, forward)
        except Unsupported as refusal:
            raise Unsupported(f"{name} cannot be traced: {refusal}") from None
        self._guards += seen.guards
        node, *nodes = seen.graph.nodes
        if seen.inputs != 1:
            if path or not seen.inputs:
                raise Unsupported(f"{name} takes {seen.inputs} tensors")
            inputs, (node, *nodes) = [node, *nodes[: seen.inputs - 1]], nodes[seen.inputs - 1 :]
            self.order = _cat_order(node, inputs, name)
        shapes: set[fx.Node] = set()
        rows: set[fx.Node] = set()
        for following in nodes:
            if _is_shape(following, node):
                shapes.add(following)
                continue
            if _is_row_count(following, node, shapes):
                rows.add(following)
                continue
            if set(following.all_input_nodes) - rows != {node}:
                raise Unsupported(f"{name} does not pass one tensor from layer to layer")
            if following.args[:1] != (node,):
                raise Unsupported(f"{following.name} in {name} takes the tensor behind another argument")
            node = following
            if node.op != "output":
                self._node(node, seen.modules, rows, name, path)

    def _node(
        self, node: fx.Node, modules: dict[str, torch.nn.Module], rows: set[fx.Node], name: str, path: str
    ) -> None:
        activation = activation_of_node(node, modules)
        if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
            below = f"{path}.{node.target}" if path else str(node.target)
            self._module(modules[str(node.target)], below)
        elif node.op == "call_module":  # whose name may be that of a method
            raise Unsupported(f"{node.target} in {name} is given more than a tensor")
        elif activation is not None:
            self._activation(activation, f"{activation} in {name}")
        elif node.target in (torch.flatten, "flatten"):
            given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
            self._flatten(given.get("start_dim", 0), given.get("end_dim", -1), f"flatten in {name}")
        elif _is_view_as_rows(node, rows):
            self._flatten(1, -1, f"{node.target} in {name}")
        elif node.target in _LOG_SOFTMAX:
            given = dict(zip(("dim",), node.args[1:], strict=False)) | node.kwargs
            given.pop("_stacklevel", None)
            if len(node.args) > 2 or given.pop("dtype", None) is not None:
                raise Unsupported(f"log_softmax in {name} has a dtype")
            self._log_softmax(given.get("dim"), f"log_softmax in {name}")
        elif node.target in (torch.squeeze, "squeeze") and self:
            dims = (*node.args[1:], *node.kwargs.values())
            self._refuse_after_the_output(f"squeeze in {name}")
            if dims not in ((-1,), (1,)):
                raise Unsupported(f"squeeze in {name} drops more than the last dimension of the output")
            self.squeeze = True
        else:
            called = getattr(node.target, "__name__", node.target)
            raise Unsupported(f"{called} in {name} is no layer of a chain")


def _cat_order(node: fx.Node, inputs: list[fx.Node], name: str) -> tuple[int, ...]:
    """The numbers of `inputs` as `node` joins them, each once, along the last of two dimensions."""
    given: dict[str, Any] = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
    tensors, dim = given.pop("tensors", None), given.pop("dim", 0)
    known = node.target in _CATS and len(node.args) <= 2 and not given
    if known and isinstance(tensors, (list, tuple)) and type(dim) is int and dim in (1, -1):
        order = tuple(inputs.index(t) for t in tensors if t in inputs)
        if len(order) == len(tensors) and sorted(order) == list(range(len(inputs))):
            return order
    raise Unsupported(f"{name} does not begin with torch.cat([...], 1) of all its {len(inputs)} inputs")


def _is_shape(node: fx.Node, tensor: fx.Node) -> bool:
    """Whether it is ``tensor.shape`` or ``tensor.size()``."""
    method = node.op == "call_method" and (node.target, node.args) == ("size", (tensor,)) and not node.kwargs
    return method or (node.target is getattr and node.args == (tensor, "shape"))


def _is_row_count(node: fx.Node, tensor: fx.Node, shapes: set[fx.Node]) -> bool:
    """Whether it is ``tensor.size(0)``, or the first of one of `shapes`."""
    if node.target is operator.getitem:
        return node.args[0] in shapes and type(node.args[1]) is int and node.args[1] == 0
    return node.op == "call_method" and (node.target, node.args) == ("size", (tensor, 0)) and not node.kwargs


def _is_view_as_rows(node: fx.Node, rows: set[fx.Node]) -> bool:
    """Whether it flattens each sample: ``x.view(-1, K)``, ``x.view(x.size(0), -1)`` or with K in the last.

    Where a sample has not K values, the rows of the flattened input do not fit the layer that takes K.
    """
    if node.op != "call_method" or node.target not in ("view", "reshape") or node.kwargs:
        return False
    height, width = node.args[1:] if len(node.args) == 3 else (None, None)
    if not isinstance(width, int):
        return False
    if isinstance(height, fx.Node):
        return height in rows and (width == -1 or width > 0)
    return isinstance(height, int) and height == -1 and width > 0


def linear_chain(model: torch.nn.Module) -> LinearChain | str:
    """The layers of `model` in order, where it is nothing but a chain of them; else the reason why it is not.

    A chain is ``Linear``, or several in turn, each with or without an activation (ReLU, sigmoid, tanh, either
    GELU, SiLU) behind it: a ``Sequential`` (nested ones and ``nn.MLP`` included), or a model whose own
    ``forward`` can be traced and passes its one input through such layers, or several that ``torch.cat`` has
    joined along dimension 1. ``Identity`` anywhere and ``Flatten()``, ``x.view(-1, K)`` or
    ``x.view(x.size(0), -1)`` in front and ``squeeze(-1)`` or a log_softmax along the last dimension at the
    end are allowed. What is watched or replaced is no chain: hooks (global ones too), a replaced ``forward``,
    a compiled module, a subclass of a layer, parameters that layers share.

    Args:
        model: any module.

    Returns:
        A list of ``(linear module, activation)``, the activation one of None, ``"relu"``, ``"sigmoid"``,
        ``"tanh"``, ``"gelu"``, ``"gelu_tanh"`` and ``"silu"``, with the attributes ``flatten``,
        ``squeeze``, ``log_softmax`` and ``order`` and the method ``holds``; or the reason as text.
    """
    reason = _mlp.why_nothing_fuses()
    if reason is not None:
        return reason
    chain = LinearChain()
    try:
        chain._module(model, "")
    except Unsupported as refusal:
        return str(refusal)
    return chain or "it has no linear layer"
