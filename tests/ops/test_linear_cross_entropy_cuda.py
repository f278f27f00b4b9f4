"""linear_cross_entropy on CUDA: specific to its kernels, on a GPU and on the emulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linear_cross_entropy_cases import CHUNK, CLASSES, FEW, check, example
from reference import DTYPES
from torch import Tensor

from captured import assert_capturable
from cuda_emulation import Emulation
from fastnn import _dispatch
from fastnn import functional as FF
from fastnn.ops import _cuda_limits
from fastnn.ops import _cuda_linear_cross_entropy as on_cuda
from fastnn.ops import linear_cross_entropy as module
from fastnn.ops._cuda_linear_cross_entropy import whole_tiles

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

MANY = 515  # classes, for which each row has its own block


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 0)
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", CHUNK)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("classes", "features"), [(FEW, 7), (48, 16)])
def test_long_chunks_whose_sums_are_split(
    classes: int,
    features: int,
    dtype: torch.dtype,
    cuda_device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 300)
    sizes = {"input": (600, features), "linear_weight": (classes, features), "linear_bias": (classes,)}
    tensors = {name: torch.randn(size).to(dtype).to(cuda_device) for name, size in sizes.items()}
    check({**tensors, "target": torch.randint(classes, (600,), device=cuda_device)})


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_product_for_large_ones(
    dtype: torch.dtype, cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_limits, "choose", lambda *_: (True, _cuda_limits.PLAIN))
    for bias in (True, False):
        for reduction in ("mean", "none"):
            check(example(3 * CHUNK - 1, CLASSES, dtype, bias, cuda_device), reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_adds_the_weight_gradient_to_float32(
    dtype: torch.dtype, emulated_cuda: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for torch's `addmm`, which has `out_dtype` on CUDA only: this shows the arguments of
    the call, not that torch accepts them."""
    monkeypatch.setattr(_cuda_limits, "choose", lambda *_: (True, _cuda_limits.PLAIN))
    monkeypatch.setattr(on_cuda, "adds_to_float32", lambda device: True)
    own, added = torch.addmm, []

    def addmm(total: Tensor, a: Tensor, b: Tensor, **options: Any) -> Tensor:
        if "out_dtype" not in options:
            return own(total, a, b, **options)
        assert (total.dtype, a.dtype, b.dtype) == (torch.float32, dtype, dtype)
        assert options == {"out_dtype": torch.float32, "out": total}
        added.append(total)
        return own(total, a.float(), b.float(), out=total)

    monkeypatch.setattr(torch, "addmm", addmm)
    check(example(3 * CHUNK - 1, CLASSES, dtype))
    assert len(added) % 3 == 0
    assert added


def test_where_torch_adds_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, adds in (("2.10.1", False), ("2.11.0a0", False), ("2.11.0+cu130", True), ("2.13.0", True)):
        monkeypatch.setattr(torch, "__version__", version)
        assert on_cuda.adds_to_float32(torch.device("cuda", 1)) is adds
        assert not on_cuda.adds_to_float32(torch.device("cpu"))


def test_float32_on_tensor_cores(cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda_limits, "choose", lambda *_: (False, _cuda_limits.TF32_3X))
    check(example(3 * CHUNK - 1, CLASSES, torch.float32, device=cuda_device))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_target_out_of_range_is_reported_at_the_next_call(
    reduction: str, cuda_device: torch.device
) -> None:
    tensors = example(3 * CHUNK, CLASSES, torch.float32, device=cuda_device)
    bad = tensors["target"].clone()
    bad[CHUNK + 1] = CLASSES
    loss = FF.linear_cross_entropy(**{**tensors, "target": bad}, reduction=reduction)
    if cuda_device.type == "cuda":
        torch.cuda.synchronize()
    assert loss.isnan().sum() == 1
    with pytest.raises(IndexError, match=r"Target 67 is out of bounds\."):
        FF.linear_cross_entropy(**tensors, reduction=reduction)
    assert FF.linear_cross_entropy(**tensors, reduction=reduction).isfinite().all()


@pytest.mark.cuda
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_capture_and_no_wait(reduction: str) -> None:
    tensors = example(3 * CHUNK, MANY, torch.float32, device="cuda")
    names = ("input", "linear_weight", "linear_bias")
    leaves = [tensors[name].requires_grad_() for name in names]
    factor = torch.rand((3 * CHUNK,) if reduction == "none" else (), device="cuda")

    def run() -> list[Tensor]:
        loss = FF.linear_cross_entropy(**tensors, reduction=reduction)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, factor)]

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_capturable(run)


@pytest.mark.cuda
def test_large_and_in_a_tenth_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows, features, classes = 1024, 768, 32000
    x = torch.randn(rows, features, device="cuda", requires_grad=True)
    w = (torch.randn(classes, features, device="cuda") / features**0.5).requires_grad_()
    target = torch.randint(classes, (rows,), device="cuda")

    def measured(call: Callable[..., Tensor]) -> tuple[Any, int]:
        """The results, and the peak memory, not counting them and what existed before."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = call(x, w, target)
        results = (loss.detach(), *torch.autograd.grad(loss, (x, w)))
        return results, torch.cuda.max_memory_allocated() - before - sum(t.nbytes for t in results)

    ours, extra = measured(FF.linear_cross_entropy)
    theirs, torchs_extra = measured(lambda x, w, target: F.cross_entropy(F.linear(x, w), target))
    for a, e in zip(ours, theirs, strict=True):
        assert float((a - e).norm() / e.norm()) < 1e-5
    assert extra <= 0.1 * torchs_extra


def test_chunks_are_whole_tiles() -> None:
    assert [whole_tiles(rows) for rows in (64, 127, 128, 196, 393)] == [64, 127, 128, 128, 384]


def test_bad_calls_are_refused(emulated: Emulation) -> None:
    kernels = emulated.cuda
    dy, x, dw = torch.randn(4, 5), torch.randn(4, 3), torch.zeros(5, 3)
    with pytest.raises(RuntimeError, match="linear: grad_weight"):
        kernels.linear_add_gradients(dy, x, dw.t(), None, 0, None)
    with pytest.raises(RuntimeError, match="linear: grad_weight has dtype bfloat16, expected float32"):
        kernels.linear_add_gradients(dy.bfloat16(), x.bfloat16(), dw.bfloat16(), None, 0, None)
    with pytest.raises(RuntimeError, match="linear: grad_bias"):
        kernels.linear_add_gradients(dy, x, dw, torch.zeros(4), 0, None)
    with pytest.raises(RuntimeError, match="linear: input has no columns"):
        kernels.linear_add_gradients(dy, x[:, :0], dw[:, :0], None, 0, None)
    logits, target = torch.randn(4, 5), torch.zeros(10, dtype=torch.int64)
    scratch = torch.empty(kernels.cross_entropy_scratch, dtype=torch.float64)
    options = (-100, 1, 0.0, 0.0, scratch, False)
    for begin in (-1, 7):
        with pytest.raises(RuntimeError, match=f"4 rows from {begin} on of a batch of 10"):
            kernels.cross_entropy_chunk(logits, begin, target, None, torch.empty(()), None, *options)
    rowwise = (-100, 0, *options[2:])
    with pytest.raises(RuntimeError, match="loss has shape"):
        kernels.cross_entropy_chunk(logits, 0, target, None, torch.empty(4), None, *rowwise)
