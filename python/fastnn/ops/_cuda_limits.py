"""Which kernels compute a matrix product on CUDA: fastnn's own or torch's, and in which arithmetic.

All numbers here are derived from data sheets. None has been measured on a device: `benchmarks/gpu_sweep.py`
is there to measure them.
"""

from __future__ import annotations

import torch

# How fastnn's kernels multiply float32, numbered as in csrc/gemm/cuda/product.h; other dtypes ignore it.
PLAIN, TF32, TF32_3X = range(3)

# Multiply-adds of a product above which torch's, i.e. cuBLAS's, is used, with one pass of ours for what it
# does not fuse. cuBLAS uses instructions that fastnn's kernels do not, on an H100 about 1.6 times as fast for
# 16-bit types and tf32 (wgmma), twice for float64. The pass reads and writes the M N values once more, and is
# one launch more, some 2 us. At 1024^3 gain and loss are about equal; for float64, which is 15 times slower,
# at 256^3. For float32 three products in tf32 are expected to be ahead of cuBLAS's float32: never torch's.
TORCH_FROM = {
    torch.bfloat16: 2**30,
    torch.float16: 2**30,
    torch.float64: 2**24,
}
TORCH_FROM_TF32 = 2**30

# From about 512^3 on, a float32 product fills a device with blocks of 128 x 128 on the tensor cores. Where a
# side is shorter than three quarters of such a block, plain float32 in smaller ones wastes less.
TENSOR_CORES_FROM = 2**27
TENSOR_CORES_SIDE = 96


def _tf32_allowed() -> bool:
    # `allow_tf32` is derived from this setting, and raises if it was set through the newer interface.
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def choose(dtype: torch.dtype, *sides: int) -> tuple[bool, int]:
    """Whether torch should compute the products of a layer, and else how fastnn should multiply float32.

    Args:
        dtype: of all factors.
        sides: M, N and K; forward and backward have products of the same three.

    Returns:
        Whether torch's product is to be used, and PLAIN, TF32 or TF32_3X.
    """
    m, n, k = sides
    work = m * n * k
    if dtype is not torch.float32:
        return work >= TORCH_FROM[dtype], PLAIN
    if work < TENSOR_CORES_FROM or min(sides) < TENSOR_CORES_SIDE:
        return False, PLAIN
    if _tf32_allowed():
        return work >= TORCH_FROM_TF32, TF32
    return False, TF32_3X
