"""What two calls must have in common to be replayed by one program."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastnn._dispatch import Unsupported

# Numbers of DType in csrc/core/dtype.h.
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
    """Of one call.

    Attributes:
        key: equal for calls that a program may serve alike.
        spec: the same as csrc/bindings/arguments.h takes it.
        tensors: those among the arguments, in order.
    """

    key: Hashable
    spec: tuple[Any, ...]
    tensors: list[Tensor]


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
    """The signature of a call; raises `Unsupported` for what no program takes."""
    tensors: list[Tensor] = []
    spec = _spec((args, kwargs), tensors)
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    return Signature((_key(spec), modes), spec, tensors)


def strides_that_matter(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides with 0 for dimensions of size 1, where they say nothing."""
    return tuple(0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True))


def _spec(x: Any, tensors: list[Tensor]) -> tuple[Any, ...]:
    if isinstance(x, Tensor):
        if x.requires_grad and x.is_leaf:
            return ("value", x)  # a parameter: the program is made for this one
        return _tensor_spec(x, tensors)
    if isinstance(x, (tuple, list)):
        return ("sequence", type(x), tuple(_spec(part, tensors) for part in x))
    if type(x) is dict:
        return ("dict", tuple(x), tuple(_spec(part, tensors) for part in x.values()))
    try:
        hash(x)
    except TypeError:
        raise Unsupported(f"an argument is a {type(x).__name__}, which is not hashable") from None
    return ("value", x)


def _tensor_spec(x: Tensor, tensors: list[Tensor]) -> tuple[Any, ...]:
    if type(x) is not Tensor:
        raise Unsupported(f"an argument is a {type(x).__name__}, a tensor subclass")
    if x.requires_grad:
        raise Unsupported("an argument has an autograd graph from before the call")
    if not x.is_cpu or x.layout is not torch.strided:
        raise Unsupported(f"an argument is on {x.device}, of layout {x.layout}")
    if x.dtype not in DTYPES:
        raise Unsupported(f"an argument has dtype {x.dtype}")
    if x.dim() > 8:
        raise Unsupported(f"an argument has {x.dim()} dimensions")
    tensors.append(x)
    shape = tuple(x.shape)
    return ("tensor", DTYPES[x.dtype], shape, strides_that_matter(shape, x.stride()))


def _key(spec: tuple[Any, ...]) -> Hashable:
    kind = spec[0]
    if kind == "value":
        value = spec[1]
        # 1, 1.0 and True are equal, and so are 0.0 and -0.0.
        return (kind, type(value), repr(value) if isinstance(value, float) else _Same(value))
    if kind == "tensor":
        return spec
    return (kind, spec[1], tuple(map(_key, spec[2])))


class _Same:
    """Tensors by identity, other values by equality."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        a, b = self.value, other.value
        return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and bool(a == b))
