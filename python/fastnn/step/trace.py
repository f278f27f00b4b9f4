"""Seeing through a module's own ``forward``: which modules and torch ops it runs, and what that hangs on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.proxy import TraceError

from fastnn._dispatch import Unsupported
from fastnn.nn.mlp import Sequential
from fastnn.step.purity import MISSING, Attribute, Guard, check_function, check_value

_Module = torch.nn.Module


class Trace(NamedTuple):
    """One way through a forward.

    Attributes:
        graph: its ops; modules are called by their paths from the root.
        modules: those modules.
        guards: what must stay as it is for the graph to be right.
        inputs: the number of tensors that the forward takes.
    """

    graph: fx.Graph
    modules: dict[str, _Module]
    guards: list[Guard]
    inputs: int


class Keys:
    """The keys of a table in their order, read as a mapping for a `Guard`."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.table = table

    def get(self, _: object, default: object) -> tuple[str, ...]:
        """The keys, as a dict would give a value."""
        return tuple(self.table)


class _Tensor(fx.Proxy):
    """Stands for a tensor, or what is computed from tensors, and has no text."""

    tracer: _Tracer

    def __str__(self) -> str:
        raise self.tracer.refuse("it makes text of a tensor")

    def __format__(self, _: str) -> str:
        return str(self)


class _Tracer(fx.proxy.GraphAppendingTracer):
    def __init__(self) -> None:
        super().__init__(fx.Graph())
        self.modules: dict[str, _Module] = {}
        self.guards: list[Guard] = []
        self.refusal: Unsupported | None = None
        self._views: dict[int, _View] = {}

    def refuse(self, reason: str) -> Unsupported:
        """Give the exception to raise; the traced code may catch it, so it is kept."""
        self.refusal = Unsupported(reason)
        return self.refusal

    def forget(self) -> None:
        """Let go of what points back here: no cycle keeps the module until garbage is collected."""
        self._views.clear()

    def view(self, module: _Module, path: str) -> _View:
        view = self._views.get(id(module))
        if view is None:
            kind = _Container if type(module) in _CONTAINERS else _View
            view = self._views[id(module)] = kind(self, module, path)
        return view

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """As torch.fx does, in our class."""
        return _Tensor(node, self)

    def create_arg(self, a: Any) -> Any:
        """As torch.fx does, save for a tensor, which can only come from where nobody looks again."""
        if isinstance(a, (Tensor, _View)):
            raise self.refuse(f"an operation takes a {type(a).__name__.lstrip('_')} that is no input")
        return super().create_arg(a)


class _View:
    """Stands for a module while its forward, or that of a module above it, is traced.

    The module itself is neither called nor touched. Calling the view records a call of the module; reading an
    attribute gives a view, a constant, or a method that is followed; a tensor that a module has is refused.
    """

    def __init__(self, tracer: _Tracer, module: _Module, path: str) -> None:
        self.__dict__.update(_fastnn_tracer=tracer, _fastnn_module=module, _fastnn_path=path)

    def __call__(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if not self._fastnn_path:
            raise self._fastnn_tracer.refuse("it calls itself")
        self._fastnn_tracer.modules[self._fastnn_path] = self._fastnn_module
        output: fx.Proxy = self._fastnn_tracer.create_proxy("call_module", self._fastnn_path, args, kwargs)
        return output

    def __setattr__(self, name: str, value: object) -> None:
        raise self._fastnn_tracer.refuse(f"it writes the attribute {name}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._fastnn_read(name)
        except Unsupported as refusal:
            self._fastnn_tracer.refusal = refusal
            raise

    def _fastnn_read(self, name: str) -> Any:
        module = self._fastnn_module
        path = f"{self._fastnn_path}.{name}" if self._fastnn_path else name
        state, found = module.__dict__, inspect.getattr_static(type(module), name, MISSING)
        if name in state and not isinstance(found, property):
            return self._fastnn_value(state, name, path)
        if found is not MISSING:
            return self._fastnn_of_class(found, name, path)
        for kind in ("_parameters", "_buffers", "_modules"):
            if name in state[kind]:
                return self._fastnn_registered(kind, name, path)
        if type(module).__getattr__ is not _Module.__getattr__:
            raise Unsupported(f"{type(module).__name__} has its own __getattr__")
        # The code may ask for a default value, or whether there is such an attribute.
        self._fastnn_guard(Attribute(module), name, MISSING, path)
        raise AttributeError(f"'{type(module).__name__}' object has no attribute '{name}'")

    def _fastnn_guard(self, holder: Any, key: Any, value: object, path: str) -> None:
        self._fastnn_tracer.guards.append(Guard(holder, key, value, path))

    def _fastnn_value(self, holder: Any, key: str, path: str) -> Any:
        value = holder.get(key, None)
        self._fastnn_tracer.guards += check_value(value, f"self.{path}")
        self._fastnn_guard(holder, key, value, path)
        return value

    def _fastnn_registered(self, kind: str, name: str, path: str) -> Any:
        table = self._fastnn_module.__dict__[kind]
        value = table[name]
        if isinstance(value, Tensor):
            raise Unsupported(f"it reads the tensor self.{path}")
        self._fastnn_guard(self._fastnn_module.__dict__, kind, table, path)
        self._fastnn_guard(table, name, value, path)
        return None if value is None else self._fastnn_tracer.view(value, path)

    def _fastnn_of_class(self, found: Any, name: str, path: str) -> Any:
        function = found
        if isinstance(found, staticmethod):
            function = found.__func__
        elif isinstance(found, property):
            function = found.fget
        if not isinstance(function, FunctionType):
            return self._fastnn_value(Attribute(self._fastnn_module), name, path)
        self._fastnn_tracer.guards += check_function(function)
        self._fastnn_guard(self._fastnn_module.__dict__, name, MISSING, path)
        kind = type(self._fastnn_module)
        self._fastnn_guard(Attribute(kind), name, getattr(kind, name), path)
        if isinstance(found, staticmethod):
            return function
        return function(self) if isinstance(found, property) else MethodType(function, self)


class _Container(_View):
    """Stands for a module that holds others, which may be iterated over."""

    def _fastnn_children(self) -> dict[str, Any]:
        table = self._fastnn_module.__dict__["_modules"]
        path = f"{self._fastnn_path}.*" if self._fastnn_path else "*"
        # The children themselves are guarded as they are read, their number and names here.
        self._fastnn_guard(self._fastnn_module.__dict__, "_modules", table, path)
        self._fastnn_guard(Keys(table), None, tuple(table), path)
        return {key: self._fastnn_read(key) for key in table}

    def __call__(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if type(self._fastnn_module) in _LISTS:
            raise self._fastnn_tracer.refuse(f"it calls {self._fastnn_path}, which cannot be called")
        return super().__call__(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        children = self._fastnn_children()
        return iter(children if type(self._fastnn_module) is torch.nn.ModuleDict else children.values())

    def __len__(self) -> int:
        return len(self._fastnn_children())

    def __contains__(self, key: object) -> bool:
        return key in list(self)

    def __getitem__(self, key: Any) -> Any:
        children = self._fastnn_children()
        return children[key] if isinstance(key, str) else list(children.values())[key]

    def __getattr__(self, name: str) -> Any:
        if name in ("keys", "values", "items") and type(self._fastnn_module) is torch.nn.ModuleDict:
            return partial(getattr(dict, name), self._fastnn_children())
        return super().__getattr__(name)


_LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict)
_CONTAINERS = (*_LISTS, torch.nn.Sequential, Sequential)


def own_forward(module: _Module) -> Callable[..., Any] | None:
    """The forward that the author of a module wrote; None where it is torch's or fastnn's.

    Raises:
        Unsupported: calling the module does more than to call that.
    """
    kind = type(module)
    forward: Any = inspect.getattr_static(kind, "forward")
    if (getattr(forward, "__module__", None) or "").partition(".")[0] in ("torch", "fastnn"):
        return None
    for name in ("__call__", "_call_impl", "_wrapped_call_impl", "__getattribute__"):
        if getattr(kind, name) is not getattr(_Module, name):
            raise Unsupported(f"{kind.__name__} has its own {name}")
    return forward  # type: ignore[no-any-return]


def trace(module: _Module, forward: Callable[..., Any]) -> Trace:
    """The way through `forward`, a method of `module`.

    The arguments without a default value stand for tensors, the others keep their default values. Neither
    the module nor anything global is touched.

    Raises:
        Unsupported: the forward cannot be seen through.
    """
    try:
        return _trace(module, forward)
    except Unsupported:
        raise
    except Exception as error:  # whatever the code of a forward raises when it meets stand-ins
        text = str(error).strip().partition("\n")[0].partition(". ")[0]
        if isinstance(error, TraceError) and "control flow" in text:
            raise Unsupported("it branches on a tensor or on its shape") from error
        raise Unsupported(f"{type(error).__name__}: {text}") from error


def _trace(module: _Module, forward: Callable[..., Any]) -> Trace:
    tracer = _Tracer()
    tracer.guards += check_function(forward)
    tracer.guards.append(Guard(Attribute(type(module)), "forward", forward, "forward"))
    names = []
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise Unsupported("it takes any number of arguments")
        if parameter.default is parameter.empty:
            if parameter.kind is parameter.KEYWORD_ONLY:
                raise Unsupported(f"it wants {parameter.name} as a keyword")
            names.append(parameter.name)
    inputs = [tracer.create_proxy("placeholder", name, (), {}) for name in names]
    try:
        output = forward(tracer.view(module, ""), *inputs)
        tracer.create_proxy("output", "output", (output,), {})
    finally:
        tracer.forget()
        if tracer.refusal is not None:
            raise tracer.refusal
    return Trace(tracer.graph, tracer.modules, tracer.guards, len(names))
