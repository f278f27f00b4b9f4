"""Modules with a forward of their own whose chains of linear layers run as one op each."""

from __future__ import annotations

import abc
import copyreg
import typing
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fastnn import _backend
from fastnn._chain import LINEAR_TYPES, activation_of_node
from fastnn._purity import MISSING, Refusal
from fastnn._trace import Trace, own_forward, trace
from fastnn.nn import mlp as _mlp
from fastnn.nn.linear import Linear
from fastnn.ops.linear import ACTIVATIONS, linear
from fastnn.ops.mlp import Layer, mlp

_Module = torch.nn.Module
_PLANS = "_fastnn_plans"  # where a module keeps what `plan` found
_ORIGINAL = "_fastnn_original"  # where a class made here keeps the user's
_NAMED = 4  # so many obstacles make a reason, not a listing


class Plan:
    """A traced forward with its chains fused, and everything that it hangs on; a copy of it is None."""

    def __init__(self, module: _Module, seen: Trace, chains: list[list[fx.Node]]) -> None:
        self._inputs = seen.inputs
        self._owner = weakref.ref(module)
        guards = {(id(guard.holder), guard.key): guard for guard in seen.guards}
        # The state of the module itself is looked up at each call: kept here it would close a cycle.
        self._own = [
            guard._replace(holder=None) for guard in guards.values() if guard.holder is module.__dict__
        ]
        others = [guard for guard in guards.values() if guard.holder is not module.__dict__]
        self._others = [(guard.holder.get, guard.key, guard.value, guard) for guard in others]
        self._watched: list[tuple[_Module, type, str, str, str | None]] = []
        for chain in chains:
            self._fuse(seen, chain)
        self.run = _compile(seen.graph, type(module).__qualname__)

    def __reduce__(self) -> tuple[Callable[..., None], tuple[()]]:
        return _none, ()  # a copy of the module makes its own

    def _fuse(self, seen: Trace, nodes: list[fx.Node]) -> None:
        layers: list[tuple[Any, str | None]] = []
        for node in nodes:
            module: Any = seen.modules.get(str(node.target)) if node.op == "call_module" else None
            if module is not None:
                self._watch(module, str(node.target))
            if isinstance(module, LINEAR_TYPES):
                layers.append((module, _own_activation(module)))
            else:
                layers[-1] = layers[-1][0], activation_of_node(node, seen.modules)
        # Where the first layer was: whatever changes the input in place later comes later still.
        with seen.graph.inserting_before(nodes[0]):
            fused = seen.graph.call_function(_runner(layers), nodes[0].args)
        nodes[-1].replace_all_uses_with(fused)
        for node in reversed(nodes):
            seen.graph.erase_node(node)

    def _watch(self, module: Any, path: str) -> None:
        option = next((name for name in ("activation", "approximate") if hasattr(module, name)), "")
        self._watched.append((module, type(module), path, option, getattr(module, option, None)))

    def refusal(self, module: _Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why the module's own forward must run for this call, or None."""
        if self._owner() is not module:
            return "it is a replica"
        if kwargs or len(args) != self._inputs:
            return f"it was called with something else than its {self._inputs} positional tensors"
        for argument in args:
            if type(argument) not in _PLAIN_TYPES:
                return f"it was called with a {type(argument).__name__}"
        if _mlp._anything_global():
            return "a hook for all modules is registered"
        if not _mlp._only_forward(module):
            return "it has a hook, a replaced forward or a compiled one"
        for layer, kind, path, option, value in self._watched:
            if type(layer) is not kind or (option and getattr(layer, option) != value):
                return f"{path} has changed since convert"
            if not _mlp._only_forward(layer):
                return f"{path} has a hook, a replaced forward or a compiled one"
        for get, key, value, guard in self._others:
            if get(key, MISSING) is not value and not guard.holds():
                return f"{guard.name} has changed since convert"
        state = module.__dict__
        for guard in self._own:
            if state.get(guard.key, MISSING) is not guard.value and not guard._replace(holder=state).holds():
                return f"{guard.name} has changed since convert"
        return _backend.torch_reason()


_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def _own_activation(module: _Module) -> str | None:
    return module.activation if isinstance(module, Linear) else None


def _runner(layers: list[tuple[Any, str | None]]) -> Callable[[Tensor], Tensor]:
    if len(layers) == 1:
        ((only, activation),) = layers

        def run_layer(input: Tensor) -> Tensor:
            return linear(input, only.weight, only.bias, activation)

        return run_layer

    def run_chain(input: Tensor) -> Tensor:
        return mlp(input, [Layer(layer.weight, layer.bias, activation) for layer, activation in layers])

    return run_chain


def _compile(graph: fx.Graph, name: str) -> Callable[..., Any]:
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, f"<forward of {name}, fused by fastnn>", "exec"), names)
    forward: Callable[..., Any] = names["forward"]
    return forward


def _is_linear(node: fx.Node, seen: Trace) -> bool:
    return (
        node.op == "call_module"
        and type(seen.modules[str(node.target)]) in LINEAR_TYPES
        and len(node.args) == 1
        and isinstance(node.args[0], fx.Node)
        and not node.kwargs
    )


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _chain_from(node: fx.Node, seen: Trace) -> list[fx.Node]:
    """The nodes from a linear one on that run as one op: nobody else sees what passes between them."""
    nodes = [node]
    while True:
        following = _only_user(nodes[-1])
        if following is None:
            return nodes
        last = seen.modules.get(str(nodes[-1].target)) if nodes[-1].op == "call_module" else None
        activates = isinstance(last, LINEAR_TYPES) and _own_activation(last) is None
        activation = activation_of_node(following, seen.modules) if activates else None
        if not _is_linear(following, seen) and (activation is None or activation not in ACTIVATIONS):
            return nodes
        nodes.append(following)


def _chains(seen: Trace) -> list[list[fx.Node]]:
    chains: list[list[fx.Node]] = []
    taken: set[fx.Node] = set()
    for node in seen.graph.nodes:
        if node not in taken and _is_linear(node, seen):
            nodes = _chain_from(node, seen)
            if len(nodes) > 1:
                chains.append(nodes)
                taken.update(nodes)
    return chains


class _NothingFuses(Refusal):
    """A forward was seen through, and none of its linear layers starts a chain."""


def _refuse_what_does_not_fuse(traces: Iterable[Trace]) -> None:
    """Raise _NothingFuses where a trace calls a linear layer, and name what it has in the way of chains."""
    behind = [node for seen in traces for node in seen.graph.nodes if _is_linear(node, seen)]
    found = list(dict.fromkeys(" and ".join(map(_in_words, node.users)) or "nothing" for node in behind))
    if len(found) > _NAMED:
        found[_NAMED:] = ["..."]
    if found:
        raise _NothingFuses(
            "no Linear is followed, directly and only, by a Linear or an activation that fuses "
            f"(found: {'; '.join(found)})"
        )


def _in_words(node: fx.Node) -> str:
    """Such as ``leaky_relu(fc1)``."""
    arguments = [str(a) for a in node.args] + [f"{key}={value}" for key, value in node.kwargs.items()]
    if node.op == "output":
        return "return"
    if node.op == "call_method":
        return f"{arguments[0]}.{node.target}({', '.join(arguments[1:])})"
    return f"{getattr(node.target, '__name__', node.target)}({', '.join(arguments)})"


def _class_for(original: type[_Module]) -> type[_Module]:
    """The class that instances of `original` get: the same in everything but its call.

    Raises:
        Refusal: deriving from it may have effects that its author did not mean.
    """
    for known in original.__subclasses__():
        if known.__dict__.get(_ORIGINAL) is original:
            return known
    if type(original) not in (type, abc.ABCMeta):
        raise Refusal(f"{original.__name__} has a metaclass")
    bases = [base for base in original.__mro__ if base not in (object, typing.Generic)]
    if any("__init_subclass__" in base.__dict__ for base in bases):
        raise Refusal(f"{original.__name__} has an __init_subclass__")

    def call(self: _Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            plan = self.__dict__.get(_PLANS, {}).get(self.training)
            if plan is not None:
                reason = plan.refusal(self, args, kwargs)
                if reason is None:
                    return plan.run(self, *args)
                _backend.decide(f"forward of {original.__name__}", reason)
        return original.__call__(self, *args, **kwargs)

    def reduce(self: _Module, protocol: Any) -> Any:
        made = original.__reduce_ex__(self, max(protocol, 2))
        if isinstance(made, tuple) and made[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_new, (original, *made[1][1:]), *made[2:])
        return made

    def setstate(self: _Module, state: Any) -> None:
        original.__setstate__(self, state)
        try:
            self.__dict__[_PLANS] = _plans(self)
        except Refusal:  # an attribute may have become another since convert
            self.__dict__[_PLANS] = {}

    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__slots__": (),
        "__call__": call,
        "__reduce_ex__": reduce,
        "__setstate__": setstate,
        _ORIGINAL: original,
    }
    metaclass: Any = type(original)
    derived: type[_Module] = metaclass(original.__name__, (original,), namespace)
    return derived


def _none() -> None:
    """What a pickled or copied plan becomes."""


def _new(original: type[_Module], *args: Any) -> _Module:
    """Make an empty instance of what `original` becomes, for pickle and copy."""
    try:
        kind = _class_for(original)
    except Refusal:  # the class is another now than it was when pickled
        kind = original
    return kind.__new__(kind, *args)


def _plans(module: _Module) -> dict[bool, Plan]:
    """What to run in place of the forward of `module`, by its training flag; nothing where nothing can fuse.

    Raises:
        Refusal: the forward cannot be seen through.
        _NothingFuses: it can, and calls linear layers, but none of them starts a chain.
    """
    if not any(isinstance(child, LINEAR_TYPES) for child in module.modules()):
        return {}
    forward = own_forward(module)
    if forward is None:
        return {}
    if "parametrizations" in module._modules:
        raise Refusal("it is parametrized, which torch undoes by the place of its class")
    if not _mlp._names_known:
        raise Refusal("this torch keeps hooks where fastnn does not find them")
    plans: dict[int, Plan] = {}
    traces = trace(module, forward)
    for seen in traces.values():
        chains = _chains(seen) if id(seen) not in plans else []
        if chains:
            plans[id(seen)] = Plan(module, seen, chains)
    if not plans:
        _refuse_what_does_not_fuse(traces.values())
    return {training: plans[id(seen)] for training, seen in traces.items() if id(seen) in plans}


refused: weakref.WeakKeyDictionary[_Module, _backend.Decision] = weakref.WeakKeyDictionary()


def fuse(module: _Module, name: str) -> None:
    """Make `module` run the chains of its own forward as one op each, where that can be seen through.

    Otherwise it is left as it is, and the reason goes to the log; into `refused` too where it cannot be.

    Args:
        module: any module; its layers are fastnn's already.
        name: its qualified name in the model, "" for the root.
    """
    unfuse(module)
    refused.pop(module, None)
    kind = type(module).__name__
    op = f"forward of {name} ({kind})" if name else f"forward of {kind}"
    try:
        plans = _plans(module)
        if plans:
            module.__class__ = _class_for(type(module))
            module.__dict__[_PLANS] = plans
            _backend.decide(op, None)
    except _NothingFuses as nothing:
        _backend.decide(op, str(nothing))  # not into `refused`: its layers run natively one by one
    except (Refusal, TypeError) as error:
        refused[module] = _backend.Decision(op, f"it cannot be traced: {error}")
        _backend.decide(*refused[module])


def unfuse(module: _Module) -> None:
    """Undo `fuse`."""
    refused.pop(module, None)
    original = type(module).__dict__.get(_ORIGINAL)
    if original is not None:
        module.__class__ = original
        module.__dict__.pop(_PLANS, None)
