"""What two calls must have in common to be replayed by one program."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastnn._dispatch import Unsupported, default_device

# The numbers of DType in csrc/core/dtype.h.
DTYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.uint8: 4,
    torch.int64: 5,
    torch.bool: 6,
}


class Signature(NamedTuple):
    """The signature of one call.

    Attributes:
        key: equal for calls that the same program may serve.
        family: the same, regardless of which parameters are among the arguments; None if there are none.
        spec: the key in the form of csrc/bindings/arguments.h, if all tensors are on the CPU.
        tensors: those among the arguments, in order.
        others: everything else in the arguments, including their tuples, lists and dicts.
    """

    key: Hashable
    family: Hashable
    spec: tuple[Any, ...]
    tensors: list[Tensor]
    others: list[Any]

    @property
    def takes(self) -> str:
        """The tensors, described in words."""
        said = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in self.tensors)
        return ", ".join(said) or "no tensors"


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
    """The signature of a call; raises `Unsupported` for what no program takes."""
    tensors: list[Tensor] = []
    others: list[Any] = []
    try:
        spec = _spec((args, kwargs), tensors, others)
    except RecursionError:
        raise Unsupported("an argument contains itself, or is nested too deeply") from None
    modes = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        default_device(),
    )
    key = _key(spec)
    family = _family(key)
    return Signature((key, modes), None if family == key else family, spec, tensors, others)


def strides_that_matter(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides with 0 for dimensions of size 1, where they do not matter."""
    return tuple(0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True))


def _spec(x: Any, tensors: list[Tensor], others: list[Any]) -> tuple[Any, ...]:
    if isinstance(x, Tensor):
        if x.requires_grad and x.is_leaf:
            return ("same", x)  # a parameter: the program is made for this one
        return _tensor_spec(x, tensors)
    if isinstance(x, (tuple, list)):
        return ("sequence", type(x), tuple(_spec(part, tensors, others) for part in x))
    if type(x) is dict:
        parts = tuple(_spec(part, tensors, others) for part in x.values())
        return ("dict", tuple(map(_value_spec, x)), parts)
    others.append(x)
    return _value_spec(x)


def _value_spec(x: Any) -> tuple[Any, ...]:
    try:
        hash(x)
        exact = _exact(x)
        hash(exact)
        simple = type(x) is float or exact == (type(x), x)
    except Exception as error:  # of any kind, since it is raised by the object's own code
        if isinstance(error, RecursionError):
            raise
        raise Unsupported(
            f"an argument is a {type(x).__name__}, which is not hashable: pass its tensors, in tuples, "
            "lists or dicts"
        ) from None
    if simple:
        return ("value", x)
    return ("like", exact, lambda other: type(other) is type(x) and _exact(other) == exact)


def _exact(x: Any) -> Any:
    """A key that is equal for identical values, including the types and signs of numbers."""
    kind: Any = type(x)
    if isinstance(x, Tensor):
        return _Identity(x)
    if kind in (float, complex):
        return (kind, repr(x))
    if isinstance(x, np.generic):
        return (kind, x.tobytes())
    if isinstance(x, (tuple, list)):
        return (kind, *map(_exact, x))
    if isinstance(x, frozenset):
        return (kind, frozenset(map(_exact, x)))
    if isinstance(x, range):
        return (kind, x.start, x.stop, x.step)
    if dataclasses.is_dataclass(x) and kind.__eq__ is not object.__eq__:
        return (kind, *(_exact(getattr(x, f.name)) for f in dataclasses.fields(x)))
    return (kind, x)


def _tensor_spec(x: Tensor, tensors: list[Tensor]) -> tuple[Any, ...]:
    if type(x) is not Tensor:
        raise Unsupported(f"an argument is a {type(x).__name__}, a tensor subclass")
    if x.requires_grad:
        raise Unsupported("an argument has an autograd graph from before the call")
    if not (x.is_cpu or x.is_cuda) or x.layout is not torch.strided:
        raise Unsupported(f"an argument is on {x.device}, of layout {x.layout}")
    if x.dtype not in DTYPES:
        raise Unsupported(f"an argument has dtype {x.dtype}: convert it, integers to int64")
    if x.dim() > 8:
        raise Unsupported(f"an argument has {x.dim()} dimensions")
    tensors.append(x)
    shape = tuple(x.shape)
    spec = ("tensor", DTYPES[x.dtype], shape, strides_that_matter(shape, x.stride()))
    return spec if x.is_cpu else (*spec, x.device)


def _key(spec: tuple[Any, ...]) -> tuple[Any, ...]:
    kind = spec[0]
    if kind in ("value", "same"):
        return (kind, _exact(spec[1]))
    if kind == "like":
        return spec[:2]
    if kind == "tensor":
        return spec
    return (kind, tuple(map(_key, spec[1])) if kind == "dict" else spec[1], tuple(map(_key, spec[2])))


def _family(key: tuple[Any, ...]) -> tuple[Any, ...]:
    kind = key[0]
    if kind in ("sequence", "dict"):
        return (kind, key[1], tuple(map(_family, key[2])))
    return (kind,) if kind == "same" else key


class _Identity:
    """A tensor, compared by identity."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __hash__(self) -> int:
        return id(self.tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.tensor is other.tensor
