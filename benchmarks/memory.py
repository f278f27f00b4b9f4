"""Peak extra memory of linear_cross_entropy, forward and backward, against torch's logits and loss.

Each figure comes from a process of its own: memory that an allocator keeps from one call would be available
to the next. It is the resident memory reported by Linux, so that it covers every allocator; the peak
is reset before the call.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import fastnn.functional

from .case import OURS
from .cases.linear_cross_entropy import LARGE, OP, torch_loss

LABEL = f"memory {OP}"

_SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    OURS: fastnn.functional.linear_cross_entropy,
    "torch": torch_loss,
}
_PROC = Path("/proc/self")
_RESET_PEAK = "5"  # of proc(5): the peak becomes what is resident now
_CHILD = """
import sys
from fastnn.cli.bench import load_benchmarks
print(load_benchmarks("memory").measure_here(*sys.argv[1:3], *map(int, sys.argv[3:])))
"""


@dataclass(frozen=True)
class Memory:
    """Bytes beyond those resident before the call: at the peak, and of them the gradients, its results."""

    peak: int
    gradients: int

    @property
    def rest(self) -> int:
        """The peak without the gradients."""
        return self.peak - self.gradients


@dataclass(frozen=True)
class Comparison:
    """The memory of each side for one op, shape and dtype."""

    op: str
    shape: str
    dtype: str
    sides: dict[str, Memory]


def _resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = (_PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure_here(side: str, dtype: str, threads: int, n: int, k: int, c: int) -> int:
    """Peak bytes of one forward and backward in this process, which should do nothing else."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind: torch.dtype = getattr(torch, dtype)
    x = torch.randn(n, k).to(kind)
    w = torch.empty(c, k, dtype=kind).normal_(0, k**-0.5)
    target = torch.randint(c, (n,))
    # What a library sets up at its first call does not belong to the call.
    few = min(n, 64)
    small = x[:few].clone().requires_grad_(), w[:few].clone().requires_grad_()
    _SIDES[side](*small, target[:few] % min(c, few)).backward()
    x.requires_grad_()
    w.requires_grad_()
    (_PROC / "clear_refs").write_text(_RESET_PEAK)
    before = _resident("VmRSS")
    _SIDES[side](x, w, target).backward()
    return _resident("VmHWM") - before


def _measure(side: str, dtype: str, threads: int, shape: Sequence[int]) -> Memory:
    n, k, c = shape
    arguments = [side, dtype, *map(str, (threads, n, k, c))]
    told = subprocess.run(
        [sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise RuntimeError(f"{side} ends with {told.returncode}: {told.stderr.strip().splitlines()[-1:]}")
    gradients = (n * k + c * k) * getattr(torch, dtype).itemsize
    return Memory(int(told.stdout), gradients)


def measure(
    threads: int, shape: Sequence[int] = LARGE, dtypes: Sequence[str] = ("float32", "bfloat16")
) -> list[Comparison]:
    """Both sides at `shape`, each in its own process.

    Raises:
        RuntimeError: it cannot be measured here, or a process fails; the message says why.
    """
    if not (_PROC / "clear_refs").exists():
        raise RuntimeError("no /proc that tells a peak of memory")
    name = "x".join(map(str, shape))
    return [
        Comparison(OP, name, dtype, {side: _measure(side, dtype, threads, shape) for side in _SIDES})
        for dtype in dtypes
    ]
