"""linear on CUDA: specific to its kernels (tensor cores, torch's products), on a GPU and emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from linear_cases import SIXTEEN_BITS, check, check_special_values, problem
from reference import DTYPES, laid_out, tf32_allowed
from torch import Tensor

import fastnn.functional as FF
from captured import assert_capturable
from cuda_emulation import Emulation
from fastnn import _dispatch
from fastnn.ops import _cuda_limits
from fastnn.ops.linear import ACTIVATIONS, torch_activation

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


# The last is about the smallest float32 product on the tensor cores, and in whole packs.
LARGE = [(1500, 1403, 300), (2048, 1024, 256), (64, 128, 50_000), (9000, 40, 64), (512, 512, 520)]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_shapes_match_float64(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(*problem(shape, dtype, "cuda"), "relu")
    check(*problem(shape, dtype, "cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations_far_out(activation: str, dtype: torch.dtype, cuda_device: torch.device) -> None:
    # Errors as stated in activation_math.h, doubled for anything but a single exponential.
    z = torch.cat([torch.linspace(-40, 40, 4001, dtype=torch.float64), torch.tensor([0.0, -0.0])]).to(dtype)
    one = torch.ones(1, 1, dtype=dtype, device=cuda_device)
    y = FF.linear(z.to(cuda_device)[:, None], one, None, activation)
    wide = z.double()
    want = torch_activation(wide, activation)
    if activation in ("gelu", "gelu_tanh"):  # torch's own lose digits on the left
        cdf = torch.special.erfc(-wide / 2**0.5) / 2
        w = (8 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
        want = wide * (cdf if activation == "gelu" else torch.sigmoid(w))
    eps = torch.finfo(dtype).eps
    bound = 8 * eps * (1 + wide.square()) * want.abs() + (1e-37 if dtype == torch.float32 else 1e-300)
    assert bool(((y[:, 0].cpu().double() - want).abs() <= bound).all())


@pytest.fixture(params=["tf32", "tf32_3x"])
def tensor_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """float32 on the tensor cores for products of any size."""
    kind: str = request.param
    monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_FROM", 0)
    monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_SIDE", 0)
    with tf32_allowed(kind == "tf32"):
        yield kind


@pytest.mark.each_value
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (4, 3, 0), (33, 65, 15), (129, 66, 130), (64, 10, 300), (128, 64, 48)]
)
def test_float32_on_tensor_cores(
    tensor_cores: str, shape: tuple[int, int, int], cuda_device: torch.device
) -> None:
    # A factor of tf32 is rounded by up to 2^-11; three products leave 2^-21 in all, see csrc/gemm/cuda.
    rounding = 2.0**-11 if tensor_cores == "tf32" else 2.0**-22
    x, w, b, dy = problem(shape, torch.float32)
    for layout in ("contiguous", "transposed", "misaligned", "ends inside a pack"):
        strided = [laid_out(t, layout, cuda_device) for t in (x, w, dy)]
        check(*strided[:2], b.to(cuda_device), strided[2], None, rounding)
    check(*problem(shape, torch.float32, cuda_device), "relu", rounding)
    if tensor_cores == "tf32_3x" and shape[2] >= 15:  # and no worse than float32's own sums
        check(*problem(shape, torch.float32, cuda_device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(130, 70, 203), (40, 33, 300), (9, 129, 64)])
def test_lines_that_end_inside_a_pack(
    shape: tuple[int, int, int], dtype: torch.dtype, cuda_device: torch.device
) -> None:
    """They are aligned, so whole slices are copied in packs; they are surrounded by NaN."""
    x, w, b, dy = problem(shape, dtype)
    x, w, dy = (laid_out(t, "ends inside a pack", cuda_device) for t in (x, w, dy))
    check(x, w, None if b is None else b.to(cuda_device), dy)


def test_tf32_is_rounded(tensor_cores: str, cuda_device: torch.device) -> None:
    # 1 + 2^-12 is not a tf32 number, and its two parts are.
    x = torch.full((40, 40), 1 + 2.0**-12, device=cuda_device)
    y = FF.linear(x, torch.eye(40, device=cuda_device))
    assert torch.equal(y, x if tensor_cores == "tf32_3x" else torch.ones_like(x))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_special_values_of_float32_in_parts(
    special: float, tensor_cores: str, cuda_device: torch.device
) -> None:
    if tensor_cores == "tf32_3x":
        check_special_values(special, torch.float32, cuda_device, few=True)


def test_what_float32_in_parts_leaves_out_does_not_add_up(
    tensor_cores: str, cuda_device: torch.device
) -> None:
    if tensor_cores == "tf32":
        pytest.skip("is rounded to 11 bits")
    x, w = torch.rand(100, 64), torch.rand(80, 64)
    y, exact = FF.linear(x.to(cuda_device), w.to(cuda_device)).cpu(), x.double() @ w.double().t()
    assert abs(((y - exact) / exact).mean()) < 2 * 2.0**-24  # it would be 5 of them with truncation


def test_a_nan_whose_bits_are_all_ones(tensor_cores: str, cuda_device: torch.device) -> None:
    x, w = torch.randn(5, 40), torch.randn(6, 40)
    x[2, 7] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    y = FF.linear(x.to(cuda_device), w.to(cuda_device)).cpu()
    assert y[2].isnan().all()
    assert y.isnan().sum() == 6


def test_the_largest_numbers_do_not_overflow(tensor_cores: str, cuda_device: torch.device) -> None:
    if tensor_cores == "tf32":
        pytest.skip("the largest of 11 bits is smaller")
    x, w = torch.randn(9, 31), torch.randn(50, 31).clamp(-4, 4) / 16
    x[3, 16] = torch.finfo(torch.float32).max
    y = FF.linear(x.to(cuda_device), w.to(cuda_device)).cpu()
    torch.testing.assert_close(y, (x.double() @ w.double().t()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_torch_product_for_large_ones(
    dtype: torch.dtype, activation: str | None, cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_limits, "choose", lambda *_: (True, _cuda_limits.PLAIN))
    called = []
    for name in ("mm", "addmm"):
        own = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *args, own=own, **more: (called.append(1), own(*args, **more))[1]
        )
    # 16-bit products are rounded before the bias is added; |x W^T| is about sqrt(K).
    for shape in ((300, 48, 33), (5, 7, 3), (129, 513, 2), (4, 3, 0), (0, 4, 3)):
        x, w, b, dy = problem(shape, dtype, cuda_device)
        rounding = torch.finfo(dtype).eps if dtype in SIXTEEN_BITS else 0.0
        check(x, w, b, dy, activation, rounding)
        check(x, w, None, laid_out(dy.cpu(), "both apart", cuda_device), activation, rounding)
    assert len(called) == 5 * 2 * 3


@pytest.mark.parametrize("tf32", [False, True])
def test_each_size_takes_its_product(tf32: bool) -> None:
    choose, limits = _cuda_limits.choose, _cuda_limits
    with tf32_allowed(tf32):
        assert choose(torch.float32, 64, 128, 784) == (False, limits.PLAIN)
        assert choose(torch.float32, 64, 2**20, 64) == (False, limits.PLAIN)
        assert choose(torch.float32, 512, 512, 512) == (False, limits.TF32 if tf32 else limits.TF32_3X)
        assert choose(torch.float32, 4096, 4096, 4096)[0] == tf32
        assert choose(torch.bfloat16, 512, 512, 512)[0] is False
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            assert choose(dtype, 4096, 4096, 4096)[0] is True


@pytest.mark.cuda
def test_a_cuda_graph_gives_the_same() -> None:
    *tensors, dy = problem((64, 128, 784), torch.float32, "cuda")
    leaves = [t.requires_grad_() for t in tensors if t is not None]

    def run() -> list[Tensor]:
        y = FF.linear(*leaves, activation="gelu")
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    assert_capturable(run)


def test_bad_calls_are_refused(emulated: Emulation) -> None:
    x, w, y = torch.randn(4, 300), torch.randn(5, 300), torch.empty(4, 5)
    kernels = emulated.cuda
    needed = kernels.linear_forward(x, w, None, None, y, None, 0, None)
    assert needed > 0
    for bad in (torch.empty(needed - 1, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)):
        assert kernels.linear_forward(x, w, None, None, y, None, 0, bad) == needed
    with pytest.raises(RuntimeError, match="linear: workspace has dtype float32"):
        kernels.linear_forward(x, w, None, None, y, None, 0, torch.empty(needed))
    with pytest.raises(ValueError, match="float32 must be 0, 1 or 2, got 3"):
        kernels.linear_forward(x, w, None, None, y, None, 3, None)
    with pytest.raises(RuntimeError, match="linear: input has K=300, weight expects 3"):
        kernels.linear_forward(x, torch.randn(5, 3), None, None, y, None, 0, None)
