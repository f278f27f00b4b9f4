"""Seeing through a module's own ``forward``: which modules and torch ops it runs, and what that hangs on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fastnn._purity import Attribute, Guard, Refusal, check_function, check_value

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
        return tuple(self.table)


class _Tracer(fx.proxy.GraphAppendingTracer):
    def __init__(self, training: bool | None) -> None:
        super().__init__(fx.Graph())
        self.training = training  # what modules say of themselves, None for the truth
        self.reads_training = False
        self.modules: dict[str, _Module] = {}
        self.guards: list[Guard] = []
        self.refusal: Refusal | None = None
        self._views: dict[int, _View] = {}
        self._attributes: dict[str, fx.Proxy] = {}

    def refuse(self, reason: str) -> Refusal:
        """Give the exception to raise; the traced code may catch it, so it is kept."""
        self.refusal = Refusal(reason)
        return self.refusal

    def view(self, module: _Module, path: str) -> _View:
        view = self._views.get(id(module))
        if view is None:
            kind = _Container if type(module) in _CONTAINERS else _View
            view = self._views[id(module)] = kind(self, module, path)
        return view

    def tensor(self, path: str) -> fx.Proxy:
        """A parameter, buffer or plain tensor, read anew at each call."""
        if path not in self._attributes:
            proxy: fx.Proxy = self.create_proxy("get_attr", path, (), {})
            self._attributes[path] = proxy
        return self._attributes[path]

    def create_arg(self, a: Any) -> Any:
        """As torch.fx does, save for a tensor, which can only come from where nobody looks again."""
        if isinstance(a, (Tensor, _View)):
            raise self.refuse(f"an operation takes a {type(a).__name__.lstrip('_')} that is no input")
        return super().create_arg(a)


class _View:
    """Stands for a module while its forward, or that of a module above it, is traced.

    The module itself is neither called nor touched. Calling the view records a call of the module; reading an
    attribute gives a view, a stand-in of a tensor, a constant, or a method that is followed.
    """

    def __init__(self, tracer: _Tracer, module: _Module, path: str) -> None:
        self.__dict__.update(_tracer=tracer, _module=module, _path=path)

    def __call__(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if not self._path:
            raise self._tracer.refuse("it calls itself")
        self._tracer.modules[self._path] = self._module
        return self._tracer.create_proxy("call_module", self._path, args, kwargs)

    def __setattr__(self, name: str, value: object) -> None:
        raise self._tracer.refuse(f"it writes the attribute {name}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._read(name)
        except Refusal as refusal:
            self._tracer.refusal = refusal
            raise

    def _read(self, name: str) -> Any:
        tracer, module = self._tracer, self._module
        path = f"{self._path}.{name}" if self._path else name
        state = module.__dict__
        if name == "training" and tracer.training is not None:
            tracer.reads_training = True
            tracer.guards.append(Guard(state, name, tracer.training, path))
            return tracer.training
        if name in state:
            if isinstance(state[name], Tensor):
                return tracer.tensor(path)
            return self._value(state, name, path)
        for kind in ("_parameters", "_buffers", "_modules"):
            if name in state[kind]:
                return self._registered(kind, name, path)
        return self._of_class(name, path)

    def _value(self, holder: Any, key: str, path: str) -> Any:
        value = holder.get(key, None)
        self._tracer.guards += [*check_value(value, f"self.{path}"), Guard(holder, key, value, path)]
        return value

    def _registered(self, kind: str, name: str, path: str) -> Any:
        holder = self._module.__dict__[kind]
        value = holder[name]
        if isinstance(value, Tensor):
            return self._tracer.tensor(path)
        self._tracer.guards.append(Guard(self._module.__dict__, kind, holder, f"{path} (its table)"))
        self._tracer.guards.append(Guard(holder, name, value, path))
        return None if value is None else self._tracer.view(value, path)

    def _of_class(self, name: str, path: str) -> Any:
        kind = type(self._module)
        found = inspect.getattr_static(kind, name, None)
        if isinstance(found, staticmethod):
            found = found.__func__
            self._tracer.guards += check_function(found)
            return found
        if isinstance(found, property) and found.fget is not None:
            self._tracer.guards += check_function(found.fget)
            return found.fget(self)
        if isinstance(found, FunctionType):
            self._tracer.guards += check_function(found)
            return MethodType(found, self)
        if found is None and not hasattr(kind, name):
            if kind.__getattr__ is not _Module.__getattr__:
                raise Refusal(f"{kind.__name__} has its own __getattr__")
            raise AttributeError(f"'{kind.__name__}' object has no attribute '{name}'")
        return self._value(Attribute(self._module), name, path)


class _Container(_View):
    """Stands for a module that does nothing but hold others."""

    def _children(self) -> dict[str, Any]:
        table = self._module.__dict__["_modules"]
        path = f"{self._path}.*" if self._path else "*"
        # The children themselves are guarded as they are read, their number and names here.
        self._tracer.guards.append(Guard(Keys(table), None, tuple(table), path))
        return {key: self._read(key) for key in table}

    def __call__(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        raise self._tracer.refuse(f"it calls {self._path}, which cannot be called")

    def __iter__(self) -> Iterator[Any]:
        children = self._children()
        return iter(children if type(self._module) is torch.nn.ModuleDict else children.values())

    def __len__(self) -> int:
        return len(self._children())

    def __contains__(self, key: object) -> bool:
        return key in list(self)

    def __getitem__(self, key: Any) -> Any:
        children = self._children()
        return children[key] if isinstance(key, str) else list(children.values())[key]

    def __getattr__(self, name: str) -> Any:
        if name in ("keys", "values", "items") and type(self._module) is torch.nn.ModuleDict:
            return partial(getattr(dict, name), self._children())
        return super().__getattr__(name)


_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict)


def own_forward(module: _Module) -> Callable[..., Any] | None:
    """The forward that the author of a module wrote; None where it is torch's or fastnn's.

    Raises:
        Refusal: calling the module does more than to call that.
    """
    kind = type(module)
    forward: Any = inspect.getattr_static(kind, "forward")
    if (getattr(forward, "__module__", None) or "").partition(".")[0] in ("torch", "fastnn"):
        return None
    original = getattr(kind, "_fastnn_original", kind)
    for name in ("__call__", "_call_impl", "_wrapped_call_impl", "__getattribute__"):
        if getattr(original, name) is not getattr(_Module, name):
            raise Refusal(f"{kind.__name__} has its own {name}")
    return forward  # type: ignore[no-any-return]


def trace(module: _Module, forward: Callable[..., Any]) -> list[Trace]:
    """The ways through `forward`, a method of `module`: one, or two where the training flag is asked.

    The arguments without a default value stand for tensors, the others keep their default values. Neither
    the module nor anything global is touched.

    Raises:
        Refusal: the forward cannot be seen through.
    """
    try:
        one, reads_training = _trace(module, forward, module.training)
        return [one, _trace(module, forward, not module.training)[0]] if reads_training else [one]
    except Refusal:
        raise
    except Exception as error:  # whatever the code of a forward raises when it meets stand-ins
        text = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise Refusal(f"{type(error).__name__}: {text}") from error


def _trace(module: _Module, forward: Callable[..., Any], training: bool) -> tuple[Trace, bool]:
    tracer = _Tracer(training)
    tracer.guards += check_function(forward)
    names = []
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise Refusal("it takes any number of arguments")
        if parameter.default is parameter.empty:
            if parameter.kind is parameter.KEYWORD_ONLY:
                raise Refusal(f"it wants {parameter.name} as a keyword")
            names.append(parameter.name)
    inputs = [tracer.create_proxy("placeholder", name, (), {}) for name in names]
    try:
        output = forward(tracer.view(module, ""), *inputs)
        tracer.create_proxy("output", "output", (output,), {})
    finally:
        if tracer.refusal is not None:
            raise tracer.refusal
    return Trace(tracer.graph, tracer.modules, tracer.guards, len(names)), tracer.reads_training
