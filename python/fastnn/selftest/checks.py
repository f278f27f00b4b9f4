"""What the tests of a self-test have in common: memory that reveals what is not written, and comparisons."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fastnn import _dispatch
from fastnn._dispatch import Decision
from fastnn._torch_internals import idle_on_device

# Allowed rounding errors, in units of the dtype's eps and of the largest value expected. Sums of a
# thousand products in float32 are off by about 3; TF32 would be off by some 300. 16-bit types are summed
# in float32 and rounded once, by half a unit.
_UNITS = {torch.float32: 32, torch.float64: 32, torch.bfloat16: 1, torch.float16: 1}


class Fault(Exception):
    """What a test has found."""


class LeftOut(Exception):
    """Why a test does not apply to a device."""


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Make torch fill the memory of new tensors, including results and workspaces, with NaN and large
    integers, to reveal what a kernel does not write, or reads before writing."""
    settings: Any = torch.utils.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled()
    only_warns, fills = (
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=only_warns)
        settings.fill_uninitialized_memory = fills


@contextlib.contextmanager
def natively(*ops: str) -> Iterator[None]:
    """Check that every op in the block runs natively, and that each of `ops` runs."""
    seen: list[Decision] = []
    with _dispatch.recording(seen.append):
        yield
    for op, reason in seen:
        if reason is not None:
            raise Fault(f"{op} ran on torch: {reason}")
    if missing := set(ops) - {op for op, _ in seen}:
        raise Fault(f"{', '.join(sorted(missing))} did not run")


def compare(
    name: str,
    actual: Tensor | None,
    expected: Tensor,
    units: float = 1.0,
    rounded: torch.dtype | None = None,
) -> None:
    """Raise `Fault` unless `actual` is `expected`, which is float64 on the CPU, up to rounding errors.

    If TF32 is allowed, which has the precision of float16, float32 need not be more precise than that.

    Args:
        name: of the tensor in the message.
        actual: on any device.
        expected: of the same shape.
        units: multiplies what is allowed, where values are rounded more than once.
        rounded: the dtype of what `actual` was computed from, if that is not its own.
    """
    if actual is None:
        raise Fault(f"{name} is missing")
    if actual.shape != expected.shape:
        raise Fault(f"{name} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    found = actual.detach().cpu().double()
    unlike = (found.isfinite() != expected.isfinite()) | (found.isnan() != expected.isnan())
    if unlike.any():
        raise Fault(
            f"{name}: {int(unlike.sum())} of {unlike.numel()} values are not finite or have not been written"
        )
    finite = expected.isfinite()
    if not finite.any():
        return
    largest = expected[finite].abs().max()
    error = (found[finite] - expected[finite]).abs().max()
    dtype = rounded or actual.dtype
    if dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        dtype = torch.float16
    allowed = units * _UNITS[dtype] * torch.finfo(dtype).eps * largest
    if error > allowed:
        raise Fault(
            f"{name} is off by {error:.1e} where the largest value is {largest:.1e}, allowed {allowed:.1e}"
        )


def at_the_same_time(
    device: torch.device, works: Sequence[Callable[[], Any]], rounds: int
) -> Iterator[list[Any]]:
    """What the functions return in each round, each run on a stream of its own, on the CPU in a thread.

    The streams are held back until all work has been queued, which must not wait for it; if queueing took
    longer, they are held back longer in the next round.
    """
    if device.type != "cuda":
        with ThreadPoolExecutor(len(works)) as threads:
            for _ in range(rounds):
                yield list(threads.map(lambda work: work(), works))
        return
    streams, cycles = [torch.cuda.Stream(device) for _ in works], 2**24
    for _ in range(rounds):
        idle_on_device(cycles)
        begin = torch.cuda.current_stream(device).record_event()
        results = []
        for stream, work in zip(streams, works, strict=True):
            stream.wait_event(begin)
            with torch.cuda.stream(stream):
                results.append(work())
        if begin.query():
            cycles *= 4
        torch.cuda.synchronize(device)
        yield results
