"""The emulator of CUDA detects faults in kernels, and runs correct ones correctly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_emulation import ORDERS, Emulation


@pytest.fixture
def checks(emulated: Emulation) -> Any:
    return emulated.checks


def in_all_orders(checks: Any, kernel: str, n: int, *more: object) -> list[Tensor]:
    results = []
    for order in ORDERS:
        checks.set_order(*order)
        values, out = torch.arange(float(n)), torch.full((n,), -1.0)
        getattr(checks, kernel)(values.data_ptr(), out.data_ptr(), *more)
        results.append(out)
    return results


def test_a_barrier_holds_in_every_order(checks: Any) -> None:
    for out in in_all_orders(checks, "reverse_block", 96, 96, True):
        assert torch.equal(out, torch.arange(95.0, -1, -1))
    for out in in_all_orders(checks, "sum_warp", 32, True):
        assert torch.equal(out, torch.full((32,), 496.0))


@pytest.mark.parametrize(("kernel", "n", "more"), [("reverse_block", 96, (96,)), ("sum_warp", 32, ())])
def test_a_missing_barrier_shows(checks: Any, kernel: str, n: int, more: tuple[int, ...]) -> None:
    results = in_all_orders(checks, kernel, n, *more, False)
    assert all(out.isnan().any() for out in results)  # values read before they were written
    assert len({tuple(out.isnan().tolist()) for out in results}) > 1 or kernel == "sum_warp"


def test_waiting_without_result_is_an_error(checks: Any) -> None:
    with pytest.raises(RuntimeError, match=r": 31 threads have ended, 33 threads wait at __syncthreads"):
        checks.some_wait(33)
    checks.some_wait(64)
    checks.some_wait(0)
    with pytest.raises(RuntimeError, match="lanes of a warp have come to different places"):
        checks.lanes_part()
    with pytest.raises(
        RuntimeError,
        match="32 threads wait at __syncthreads, 31 threads wait at __syncwarp",
    ):
        checks.warps_part()


def test_memory_out_of_bounds_is_an_error(checks: Any) -> None:
    checks.write_shared(63)
    with pytest.raises(RuntimeError, match="beyond its 256 bytes of dynamic shared memory, at byte 256"):
        checks.write_shared(64)
    values, out = torch.arange(8.0), torch.empty(1)
    checks.read_pack(values.data_ptr() + 16, out.data_ptr())
    assert out == 4
    with pytest.raises(RuntimeError, match="misaligned access to a value of type 'const struct float4'"):
        checks.read_pack(values.data_ptr() + 4, out.data_ptr())
    checks.index_array(3, out.data_ptr())
    assert out == 4
    with pytest.raises(RuntimeError, match="index out of bounds of an array"):
        checks.index_array(4, out.data_ptr())


def test_blocks_of_a_cluster_see_each_others_memory(checks: Any) -> None:
    want = torch.tensor([6.0 + rank for rank in range(4)] + [22.0 + rank for rank in range(4)])
    for order in ORDERS:
        checks.set_order(*order)
        out = torch.empty(8, 32)
        checks.sum_cluster(out.data_ptr(), True)
        assert torch.equal(out, want[:, None].expand(8, 32))


def test_a_block_that_has_ended_has_no_memory(checks: Any) -> None:
    for order in ORDERS:
        checks.set_order(*order)
        with pytest.raises(RuntimeError, match="whose shared memory is looked at has ended"):
            checks.sum_cluster(torch.empty(8, 32).data_ptr(), False)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1025, 0, 1), "a block of 1025 threads"),
        ((0, 32, 0, 1), "an empty grid"),
        ((1, 32, 48 * 1024 + 1, 1), "49153 bytes of dynamic shared memory, allowed are 49152"),
        ((4, 32, 0, 3), "clusters of 3 blocks in a grid of 4"),
        ((16, 32, 0, 16), "clusters of 16 blocks"),
    ],
)
def test_a_launch_that_a_gpu_refuses_is_refused(checks: Any, shape: tuple[int, ...], message: str) -> None:
    before = checks.launches()
    with pytest.raises(RuntimeError, match=message):
        checks.shape(*shape)
    assert checks.launches() == before
    checks.shape(16, 1024, 48 * 1024, 8)
    assert checks.launches() == before + 1


def test_parameters_must_fit(checks: Any) -> None:
    with pytest.raises(RuntimeError, match="4097 bytes of parameters"):
        checks.large_parameters()


def test_a_device_newer_than_the_kernels(emulated: Emulation) -> None:
    assert [emulated.cuda.compiles_at_launch(device) for device in range(4)] == [False, False, False, True]


def test_a_device_that_does_not_tell_its_limits_is_unusable(emulated: Emulation) -> None:
    """Detected at the first query about the device, not by every op."""
    assert emulated.cuda.why_unusable(0) == ""
    for _ in range(2):
        assert emulated.cuda.why_unusable(4) == "fastnn: CUDA error: no answer (emulated)"
