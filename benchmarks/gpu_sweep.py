"""Products of fastnn and torch over their sizes, from which `fastnn.ops._cuda_limits` is to be set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastnn import functional
from fastnn.ops import _cuda_limits
from fastnn.ops._cuda_limits import PLAIN, TF32, TF32_3X

from .gpu_timing import Calls, Case, Place, float32_products

CUBES = (256, 384, 512, 768, 1024, 1536, 2048, 4096)
# M, N, K with a short side, for TENSOR_CORES_SIDE.
SHORT = ((64, 1024, 1024), (96, 1024, 1024), (128, 1024, 1024), (4096, 64, 1024), (4096, 96, 1024))

# What `choose` may return, by arithmetic: whether the product is torch's, and how ours multiplies float32.
_TORCH = (True, PLAIN)
CHOICES: dict[str, tuple[torch.dtype, dict[str, tuple[bool, int]]]] = {
    "bfloat16": (torch.bfloat16, {"fastnn": (False, PLAIN), "torch": _TORCH}),
    "float32": (
        torch.float32,
        {"fastnn": (False, PLAIN), "fastnn 3 x tf32": (False, TF32_3X), "torch": _TORCH},
    ),
    "tf32": (torch.float32, {"fastnn": (False, TF32), "torch": _TORCH}),
    "float16": (torch.float16, {"fastnn": (False, PLAIN), "torch": _TORCH}),
    "float64": (torch.float64, {"fastnn": (False, PLAIN), "torch": _TORCH}),
}
AHEAD = 0.98  # of the other's time: a smaller difference is noise


def _run(
    choice: tuple[bool, int], precision: str, leaves: tuple[Tensor, Tensor, Tensor], dy: Tensor | None
) -> object:
    with mock.patch.object(_cuda_limits, "choose", return_value=choice), float32_products(precision):
        y = functional.linear(*leaves, "relu")
        return y if dy is None else torch.autograd.grad(y, leaves, dy)


def _make(place: Place, arithmetic: str, sides: tuple[int, int, int], with_gradients: bool) -> Calls:
    dtype, choices = CHOICES[arithmetic]
    m, n, k = sides
    new = place.leaf if with_gradients else place.randn
    leaves = new(m, k, dtype=dtype), new(n, k, dtype=dtype), new(n, dtype=dtype)
    dy = place.randn(m, n, dtype=dtype) if with_gradients else None
    precision = "tf32" if arithmetic == "tf32" else "ieee"
    return {name: partial(_run, choice, precision, leaves, dy) for name, choice in choices.items()}


def cases(place: Place) -> list[Case]:
    """A layer with ReLU, forward and with all gradients; the most used arithmetic first."""
    found: list[Case] = []
    for arithmetic, (dtype, _) in CHOICES.items():
        cubes = [(side, side, side) for side in CUBES if arithmetic != "float64" or side <= 2048]
        for sides in [*cubes, *(SHORT if arithmetic == "float32" else ())]:
            m, n, k = sides
            for with_gradients in (False, True):
                # x, W and dY are read twice, y is written and read, dX and dW are written.
                moved = 3 * m * k + 3 * n * k + 4 * m * n if with_gradients else m * k + n * k + m * n
                found.append(
                    Case(
                        f"{arithmetic} {m}x{n}x{k}, {'with gradients' if with_gradients else 'forward'}",
                        partial(_make, place, arithmetic, sides, with_gradients),
                        moved * dtype.itemsize,
                        (6 if with_gradients else 2) * m * n * k,
                        arithmetic,
                        sides=sides,
                    )
                )
    return found


def crossings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The cube from which, in all measured ones, another contender is faster than fastnn's first."""
    lines = []
    for arithmetic, (_, (first, *others)) in CHOICES.items():
        for what in ("forward", "with gradients"):
            cubes = sorted(
                (row["sides"][0], row["seconds"])
                for row in rows
                if row["arithmetic"] == arithmetic
                and row["case"].endswith(what)
                and len({*row["sides"]}) == 1
            )
            for other in others:
                ahead = [
                    (side, bool(taken[first] and taken[other] and taken[other] < AHEAD * taken[first]))
                    for side, taken in cubes
                ]
                behind = [side for side, is_ahead in ahead if not is_ahead]
                sides = [side for side, _ in ahead if not behind or side > behind[-1]]
                found = f"from {sides[0]}^3 on" if sides else "nowhere"
                lines.append(f"{arithmetic}, {what}: {other} ahead of {first} {found}")
    return lines
