"""Random numbers from torch's generator, and uninitialised memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastnn._dispatch import Unsupported
from fastnn.capture.bernoulli import bernoulli
from fastnn.capture.ir import Island, View
from fastnn.capture.lowering.table import Lowering, lowers

_REASON = "random numbers are torch's"


@lowers(
    "empty.memory_format",
    "empty_like.default",
    "empty_strided.default",
    "new_empty.default",
    "new_empty_strided.default",
)
def _nothing(low: Lowering, out: View, /, *args: Any, **kwargs: Any) -> None:
    """The memory is written before it is read."""


def _draw(low: Lowering, out: View, draw: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    native = draw is bernoulli
    low.nodes.append(Island(draw, (out, *args), kwargs, [None], [out], [out], True, _REASON, native))


def _generator(kwargs: dict[str, Any]) -> dict[str, Any]:
    given = kwargs.get("generator")
    return {} if given is None else {"generator": given}


@lowers("randn_like.default", "randn.default", "randn.generator")
def _randn(low: Lowering, out: View, /, *args: Any, **kwargs: Any) -> None:
    _draw(low, out, torch.Tensor.normal_, **_generator(kwargs))


@lowers("rand_like.default", "rand.default", "rand.generator")
def _rand(low: Lowering, out: View, /, *args: Any, **kwargs: Any) -> None:
    _draw(low, out, torch.Tensor.uniform_, **_generator(kwargs))


@lowers("normal_.default")
def _normal(low: Lowering, out: View, /, x: View, mean: float = 0, std: float = 1, **kwargs: Any) -> None:
    _draw(low, out, torch.Tensor.normal_, mean, std, **_generator(kwargs))


@lowers("uniform_.default")
def _uniform(low: Lowering, out: View, /, x: View, start: float = 0, to: float = 1, **kwargs: Any) -> None:
    _draw(low, out, torch.Tensor.uniform_, start, to, **_generator(kwargs))


@lowers("bernoulli_.float")
def _bernoulli(low: Lowering, out: View, /, x: View, p: float = 0.5, **kwargs: Any) -> None:
    native = out.is_contiguous and out.dtype in (torch.float32, torch.float64)
    _draw(low, out, bernoulli if native else torch.Tensor.bernoulli_, p, **_generator(kwargs))


@lowers("randint.default", "randint.low")
def _randint(low: Lowering, out: View, /, *args: Any, **kwargs: Any) -> None:
    bounds = [a for a in args if not isinstance(a, (list, tuple))]
    if out.dtype is not torch.int64 or not all(isinstance(b, int) for b in bounds):
        raise Unsupported("random integers of another dtype")
    _draw(low, out, torch.Tensor.random_, *([0] if len(bounds) == 1 else []), *bounds)
