"""Detects values that are read or written without torch's ops while a function is recorded."""

from __future__ import annotations

import sys
from types import CellType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastnn._replaced import is_own
from fastnn._torch_internals import TensorBase
from fastnn.capture.recording import Recording

# The recording would not see the values that these read or write.
_UNSEEN: dict[Any, str] = {
    Tensor.tolist: "tolist",
    Tensor.numpy: "numpy",
    Tensor.__array__: "numpy",
    Tensor.data.__set__: "data =",  # type: ignore[attr-defined]
}
_GRADIENT: Any = Tensor.grad.__get__  # type: ignore[union-attr]
# Where distributions read values to validate their arguments.
_VALIDATING = {
    f"torch.distributions.{name}"
    for name in ("distribution", "constraints", "geometric", "continuous_bernoulli")
}


def _wrapped_by(func: FunctionType, caller: FrameType) -> Any:
    """The torch function that has been entered, if a user's function wraps it: torch passes a mode the
    function now under that name, and calling the wrapper again would repeat its side effects."""
    if caller.f_code.co_filename != torch.overrides.__file__:  # a method in C++, which has no Python frame
        names = [name for name, value in vars(Tensor).items() if value is func]
        return getattr(TensorBase, names[0], func) if names else func
    running = caller.f_back
    if running is None or running.f_code is func.__code__:  # a function of another library, for modes to see
        return func
    code, given = running.f_code, running.f_locals
    positional, parameters = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    original = FunctionType(
        code,
        running.f_globals,
        code.co_name,
        tuple(given[name] for name in code.co_varnames[:positional]),  # torch does not pass all of them on
        tuple(CellType(given[name]) for name in code.co_freevars),
    )
    original.__kwdefaults__ = {name: given[name] for name in code.co_varnames[positional:parameters]}
    return original


class Unseen(TorchFunctionMode):
    """Used with a Recorder: ends the recording where values are read or written without torch's ops."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, FunctionType) and not is_own(func):
            func = _wrapped_by(func, sys._getframe(1))
        noted = self._recording
        noted.function = getattr(func, "__name__", None)
        if not noted.paused and func in _UNSEEN:
            noted.refuse(f"values are read or written without torch's ops: .{_UNSEEN[func]}")
        if not noted.paused and noted.refused is None and args and isinstance(args[0], Tensor):
            noted.is_asked(args[0])
            if func == _GRADIENT:
                noted.asked.add(id(args[0]))
        if func is Tensor.__bool__ and sys._getframe(1).f_globals.get("__name__") in _VALIDATING:
            with self._recording.pause():
                return func(*args)
        return func(*args, **(kwargs or {}))
