"""The probes do the work that they report."""

from __future__ import annotations

import pytest
import torch

from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

VECTOR_BYTES = {"sse2": 16, "neon": 16, "generic": 16, "avx2": 32, "avx512": 64, "avx512_bf16": 64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fma_counts_its_operations(isa: str, dtype: torch.dtype) -> None:
    out = torch.empty(1, dtype=dtype)
    threads = _dispatch.cpu.max_threads()
    lanes = VECTOR_BYTES[isa] // dtype.itemsize
    one = _dispatch.cpu.probe_fma(1, out)
    assert one > 0
    assert one % (2 * lanes * threads) == 0
    chains = one // (2 * lanes * threads)
    assert _dispatch.cpu.probe_fma(1000, out) == 1000 * one

    # Chain c starts at c and every lane follows x -> 0.999 x + 0.001, whose fixed point is 1.
    start = torch.arange(chains, dtype=torch.float64)
    expected = lanes * (1 + (start - 1) * 0.999**1000).sum()
    # Each of the 1000 roundings moves a value of at most `chains` by half an eps of it.
    torch.testing.assert_close(out[0].double(), expected, rtol=1000 * torch.finfo(dtype).eps, atol=0)


def test_fma_counts_every_thread() -> None:
    out, threads = torch.empty(1), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _dispatch.cpu.probe_fma(10, out)
        torch.set_num_threads(2)
        assert _dispatch.cpu.probe_fma(10, out) == 2 * one
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("numel", [0, 1, 1000, 300_001])
def test_copy_copies_everything(isa: str, numel: int) -> None:
    source, target = torch.randn(numel), torch.zeros(numel)
    _dispatch.cpu.probe_copy(source, target)
    assert torch.equal(source, target)


def test_probes_refuse_what_they_cannot_do() -> None:
    with pytest.raises(RuntimeError, match="probe_fma: out must be float32 or float64, got int64"):
        _dispatch.cpu.probe_fma(1, torch.empty(1, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"probe_fma: out must hold one element, got shape \(2,\)"):
        _dispatch.cpu.probe_fma(1, torch.empty(2))
    with pytest.raises(ValueError, match="probe_fma: rounds must be positive, got 0"):
        _dispatch.cpu.probe_fma(0, torch.empty(1))
    with pytest.raises(RuntimeError, match="probe_copy"):
        _dispatch.cpu.probe_copy(torch.empty(2), torch.empty(3))
