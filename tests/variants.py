"""The variants of the CPU kernels, one for each instruction set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastnn import _backend


def runnable_isas() -> list[str]:
    """Names of the CPU variants that this build has and this machine can run; without a build, of torch's."""
    if _backend.cpu is None:
        return ["torch"]
    active, names = _backend.cpu.isa, []
    for name in ("sse2", "neon", "generic", "avx2", "avx512", "avx512_bf16"):
        try:
            _backend.cpu.select_isa(name)
        except ValueError:
            continue
        names.append(name)
    _backend.cpu.select_isa(active)
    return names


@contextlib.contextmanager
def selected(name: str) -> Iterator[None]:
    """Use a variant inside the block."""
    if _backend.cpu is None:
        yield
        return
    active = _backend.cpu.isa
    _backend.cpu.select_isa(name)
    try:
        yield
    finally:
        _backend.cpu.select_isa(active)
