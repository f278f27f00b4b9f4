"""The variants of the CPU kernels, one for each instruction set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastnn import _dispatch


def runnable_isas() -> list[str]:
    """Names of the CPU variants that this build has and this machine can run; without a build, those of
    torch."""
    if _dispatch.cpu is None:
        return ["torch"]
    active, names = _dispatch.cpu.isa, []
    for name in ("sse2", "neon", "generic", "avx2", "avx512", "avx512_bf16"):
        try:
            _dispatch.cpu.select_isa(name)
        except ValueError:
            continue
        names.append(name)
    _dispatch.cpu.select_isa(active)
    return names


@contextlib.contextmanager
def selected(name: str) -> Iterator[None]:
    """Use a variant inside the block."""
    if _dispatch.cpu is None:
        yield
        return
    active = _dispatch.cpu.isa
    _dispatch.cpu.select_isa(name)
    try:
        yield
    finally:
        _dispatch.cpu.select_isa(active)
