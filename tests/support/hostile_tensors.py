"""Unexpected tensors, each described by a few plain values from which it can be recreated."""

from __future__ import annotations

import ctypes
import math
import mmap
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OTHERS = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
PLAIN_LAYOUTS = (
    *("contiguous", "transposed", "apart", "far apart", "misaligned", "expanded", "guarded after"),
    "guarded before",
)
OTHER_LAYOUTS = ("negated", "sparse", "subclass", "parameter", "overlapping")
VALUES = ("normal", "special", "zeros", "small")

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE


def guarded(t: Tensor, after: bool = True) -> Tensor:
    """A copy of a contiguous tensor whose memory ends (or starts) where a page starts (or ends) that may be
    neither read nor written: a kernel that goes further ends the process."""
    size = max(t.numel() * t.element_size(), 1)
    pages = math.ceil(size / _PAGE)
    memory = mmap.mmap(-1, (pages + 2) * _PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (start, start + (pages + 1) * _PAGE):
        if _libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(_PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    if t.numel() == 0:
        return torch.empty_like(t)
    first = _PAGE + (pages * _PAGE - size if after else 0)
    copied: Tensor = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=first).view(t.shape)
    return copied.copy_(t)


class Subclass(Tensor):
    pass


@dataclass(frozen=True)
class Recipe:
    """How to create a tensor; the same one each time."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    values: str = "normal"
    grad: bool = False
    seed: int = 0
    below: int = 4  # of integers

    def _dense(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        if self.dtype == torch.bool or not (self.dtype.is_floating_point or self.dtype.is_complex):
            low = 0 if self.values != "special" or self.dtype in (torch.bool, torch.uint8) else -101
            below = 2 if self.dtype == torch.bool else self.below
            t = torch.randint(low, below, self.shape, generator=generator)
            if self.values == "outside" and t.numel():
                value = (-1, below, below + 100, 2**62, -100)[self.seed % 5]
                t.view(-1)[int(torch.randint(t.numel(), (), generator=generator))] = value
            return t.to(self.dtype)
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        t = torch.randn(self.shape, generator=generator, dtype=wide)
        if self.values == "zeros":
            t = torch.zeros_like(t)
        elif self.values == "small":
            t = t * 1e-3
        elif self.values == "positive":
            t = t.abs()
        elif self.values == "special" and t.numel():
            for value in (math.nan, math.inf, -math.inf, -0.0):
                t.view(-1)[int(torch.randint(t.numel(), (), generator=generator))] = value
        return t.to(self.dtype)

    def make(self) -> Tensor:
        t = _laid_out(self._dense(), self.layout)
        if self.layout == "parameter":
            return torch.nn.Parameter(t, requires_grad=self.grad and t.is_floating_point())
        return t.requires_grad_() if self.grad and t.is_floating_point() else t


def _laid_out(t: Tensor, layout: str) -> Tensor:
    if layout.startswith("guarded"):
        return guarded(t, layout == "guarded after")
    if layout == "meta":
        return t.to("meta")
    if layout == "sparse":
        return t.to_sparse() if t.dim() else t
    if layout == "subclass":
        return t.as_subclass(Subclass)
    if layout == "negated":
        return torch.complex(torch.zeros_like(t), -t).conj().imag if t.dtype in FLOATING[:2] else t
    if t.dim() == 0 or t.numel() == 0 or layout in ("contiguous", "parameter"):
        return t
    if layout == "transposed":
        return t.mT.contiguous().mT if t.dim() > 1 else t
    if layout == "misaligned":
        whole = t.new_zeros(t.numel() + 1)[1:].view(t.shape)
        return whole.copy_(t)
    if layout in ("apart", "far apart"):
        step = 2 if layout == "apart" or t.numel() > 256 else 4099
        filler = math.nan if t.is_floating_point() else 1
        whole = t.new_full((*t.shape[:-1], t.shape[-1] * step + 1), filler)
        return whole[..., 1::step][..., : t.shape[-1]].copy_(t)
    if layout == "rows apart":
        whole = t.new_zeros(*t.shape[:-1], t.shape[-1] + 3)
        return whole[..., : t.shape[-1]].copy_(t)
    if layout == "expanded":
        return t[:1].expand_as(t)
    assert layout == "overlapping"
    strides = [1] * t.dim()  # one step in any direction is the adjacent element
    return torch.as_strided(t.contiguous(), t.shape, strides)


def recipes(shape: tuple[int, ...], dtype: torch.dtype, layouts: tuple[str, ...] = PLAIN_LAYOUTS) -> Any:
    """Tensors of that shape and dtype."""
    return st.builds(
        Recipe,
        shape=st.just(shape),
        dtype=st.just(dtype),
        layout=st.sampled_from(layouts),
        values=st.sampled_from(VALUES),
        grad=st.booleans(),
        seed=st.integers(0, 99),
    )


def finite(recipe: Recipe) -> Recipe:
    """The same without infinities and NaN."""
    return replace(recipe, values="normal") if recipe.values == "special" else recipe


def indices(
    shape: tuple[int, ...],
    below: int,
    dtype: torch.dtype = torch.int64,
    layouts: tuple[str, ...] = PLAIN_LAYOUTS,
) -> Any:
    """Class indices, of which one may be out of range."""
    return st.builds(
        Recipe,
        shape=st.just(shape),
        dtype=st.just(dtype),
        layout=st.sampled_from(layouts),
        values=st.sampled_from(["normal", "normal", "normal", "outside"]),
        seed=st.integers(0, 99),
        below=st.just(max(below, 1)),
    )


# Sizes around a vector, none, and one.
SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33])
ANY_SHAPE = st.lists(SIZES, max_size=4).map(tuple)
ANY_DTYPE = st.sampled_from([*FLOATING, *OTHERS])
NO_TENSORS = st.sampled_from(
    [None, 1, -1, 1.5, True, "a", b"x", (), [1.0], 2**63, -(2**70), math.nan, math.inf]
)


def spoilt(good: Recipe) -> Any:
    """An argument passed instead of `good`: nearly the same, or anything at all."""
    return st.one_of(
        st.sampled_from(PLAIN_LAYOUTS + OTHER_LAYOUTS).map(lambda layout: replace(good, layout=layout)),
        ANY_DTYPE.map(lambda dtype: replace(good, dtype=dtype)),
        ANY_SHAPE.map(lambda shape: replace(good, shape=shape)),
        st.permutations(good.shape).map(lambda shape: replace(good, shape=tuple(shape))),
        NO_TENSORS,
    )


def on_meta(argument: Any) -> Any:
    """The same argument without memory."""
    if isinstance(argument, list):
        return [on_meta(each) for each in argument]
    return replace(argument, layout="meta") if isinstance(argument, Recipe) else argument


def made(argument: Any) -> Any:
    """An argument with tensors instead of recipes."""
    if isinstance(argument, Recipe):
        return argument.make()
    if isinstance(argument, list):
        return [made(each) for each in argument]
    return argument
