"""linear_cross_entropy on CUDA against torch in float64, in several chunks, on a GPU and on the emulator."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linear_cross_entropy_cases import CHUNK, CLASSES, FEATURES, FEW, check, example, gradients, on
from reference import DTYPES, layouts
from torch import Tensor

from cuda_emulation import ORDERS, Emulation
from fastnn import _backend, _cuda_limits
from fastnn import functional as FF
from fastnn.ops import linear_cross_entropy as module
from fastnn.ops._cuda_linear_cross_entropy import whole_tiles

pytestmark = pytest.mark.skipif(_backend.cpu is None, reason="needs the compiled module")

MANY = 515  # classes whose rows have a block of their own


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 0)
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", CHUNK)


ALL_OFF, ALL_ON = (0.0, 0.0, False), (0.2, 0.01, True)  # smoothing, z-loss, whether classes have weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_options(reduction: str, dtype: torch.dtype, cuda_device: torch.device) -> None:
    crossed = list(itertools.product(*zip(ALL_OFF, ALL_ON, strict=True)))
    ends = [ALL_OFF, ALL_ON]
    # Kernels for other numbers of classes and other dtypes differ within a row only.
    for classes, cases in (
        (FEW, ends),
        (CLASSES, crossed if dtype == torch.float32 else ends),
        (MANY, [ALL_ON]),
    ):
        for smoothing, z_loss, weighted in cases:
            weight = (torch.rand(classes) + 0.5).to(dtype) if weighted else None
            tensors = example(CHUNK + 3, classes, dtype, bias=z_loss == 0)
            tensors["target"][::4] = -1
            options = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss}
            check(tensors, cuda_device, ignore_index=-1, weight=weight, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, CHUNK + 1, 4 * CHUNK - 1])
def test_chunk_boundaries(rows: int, dtype: torch.dtype, cuda_device: torch.device) -> None:
    for reduction in ("mean", "none"):
        check(example(rows, CLASSES, dtype), cuda_device, reduction=reduction, z_loss=0.01)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_chunks(reduction: str, cuda_device: torch.device) -> None:
    tensors = example(3 * CHUNK, CLASSES, torch.float32)
    for ignored in (slice(0, CHUNK), slice(2 * CHUNK, None), slice(None)):
        target = tensors["target"].clone()
        target[ignored] = -100
        check({**tensors, "target": target}, cuda_device, reduction=reduction)


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
    x, w = torch.randn(600, features).to(dtype), torch.randn(classes, features).to(dtype)
    tensors = {"input": x, "linear_weight": w, "target": torch.randint(classes, (600,))}
    check({**tensors, "linear_bias": torch.randn(classes).to(dtype)}, cuda_device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_product_for_large_ones(
    dtype: torch.dtype, cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_limits, "choose", lambda *_: (True, _cuda_limits.PLAIN))
    for bias in (True, False):
        for reduction in ("mean", "none"):
            check(example(3 * CHUNK - 1, CLASSES, dtype, bias), cuda_device, reduction=reduction)


def test_float32_on_tensor_cores(cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda_limits, "choose", lambda *_: (False, _cuda_limits.TF32_3X))
    check(example(3 * CHUNK - 1, CLASSES, torch.float32), cuda_device)


@pytest.mark.parametrize("which", ["input", "linear_weight"])
def test_every_layout(which: str, cuda_device: torch.device) -> None:
    rows = 2 * CHUNK + 3
    for layout in layouts(rows if which == "input" else CLASSES, FEATURES, torch.float32).values():
        check({**example(rows, CLASSES, torch.float32), which: layout}, cuda_device)


def test_strided_vectors_and_more_dimensions(cuda_device: torch.device) -> None:
    tensors = example(2 * CHUNK, CLASSES, torch.float32)
    tensors["linear_bias"] = torch.randn(2 * CLASSES)[::2]
    tensors["target"] = torch.randint(CLASSES, (4 * CHUNK,))[::2]
    check(tensors, cuda_device, weight=torch.rand(3 * CLASSES)[::3])
    x, w = torch.randn(2, 3, 4, FEATURES), tensors["linear_weight"]
    target = torch.randint(CLASSES, (2, 3, 4))
    loss = FF.linear_cross_entropy(*(t.to(cuda_device) for t in (x, w, target)), reduction="none")
    expected = F.cross_entropy(F.linear(x, w).view(24, CLASSES), target.view(24), reduction="none")
    torch.testing.assert_close(loss.cpu(), expected.view(2, 3, 4))


def test_only_wanted_gradients_and_uint8_targets(cuda_device: torch.device) -> None:
    tensors = on(cuda_device, example(2 * CHUNK, CLASSES, torch.float32))
    tensors["target"] = tensors["target"].to(torch.uint8)
    everything = gradients(FF.linear_cross_entropy, tensors, None, {"reduction": "sum"})
    for position, name in enumerate(("input", "linear_weight", "linear_bias")):
        leaf = tensors[name].clone().requires_grad_()
        loss = FF.linear_cross_entropy(**{**tensors, name: leaf}, reduction="sum")
        # By itself the bias's gradient is summed in another order.
        torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], everything[position + 1])


def test_float16_gradients_under_a_loss_scale_do_not_vanish(
    cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 128)
    tensors = example(1024, FEW, torch.float16)
    tensors["linear_weight"] /= 256  # so that dX by itself would be subnormal
    ours = gradients(
        lambda **k: FF.linear_cross_entropy(**k).float() * 32768, on(cuda_device, tensors), None, {}
    )
    wide = {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}
    expected = gradients(lambda **k: 32768 * module.linear_cross_entropy_torch(**k), wide, None, {})
    eps = torch.finfo(torch.float16).eps
    for a, e in zip(ours, expected, strict=True):
        limit = 8 * eps * float(e.abs().max())
        torch.testing.assert_close(a.cpu().double(), e, rtol=0, atol=limit)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives_of_derivatives(
    reduction: str, cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 2)
    x, w, b = (
        torch.randn(s, dtype=torch.float64, device=cuda_device, requires_grad=True)
        for s in ((3, 2), (4, 2), (4,))
    )
    t = torch.tensor([1, -100, 3], device=cuda_device)

    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return FF.linear_cross_entropy(x, w, t, linear_bias=b, reduction=reduction, z_loss=0.1)

    assert torch.autograd.gradcheck(loss, (x, w, b), check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, (x, w, b), fast_mode=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_twice_with_the_first_gradient_edited_between(
    reduction: str, cuda_device: torch.device
) -> None:
    tensors = on(cuda_device, example(2 * CHUNK, CLASSES, torch.float32))
    w = tensors["linear_weight"].requires_grad_()
    loss = FF.linear_cross_entropy(**tensors, reduction=reduction).sum()
    loss.backward(retain_graph=True)
    first = w.grad.clone()
    w.grad.zero_()
    (3 * loss).backward()
    torch.testing.assert_close(w.grad, 3 * first)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_target_out_of_range_is_told_at_the_next_call(reduction: str, cuda_device: torch.device) -> None:
    tensors = on(cuda_device, example(3 * CHUNK, CLASSES, torch.float32))
    bad = tensors["target"].clone()
    bad[CHUNK + 1] = CLASSES
    loss = FF.linear_cross_entropy(**{**tensors, "target": bad}, reduction=reduction)
    if cuda_device.type == "cuda":
        torch.cuda.synchronize()
    assert loss.isnan().sum() == 1
    with pytest.raises(IndexError, match=r"Target 67 is out of bounds\."):
        FF.linear_cross_entropy(**tensors, reduction=reduction)
    assert FF.linear_cross_entropy(**tensors, reduction=reduction).isfinite().all()


def test_a_target_out_of_range_is_told_at_once_on_request(
    monkeypatch: pytest.MonkeyPatch, cuda_device: torch.device
) -> None:
    monkeypatch.setattr(_backend, "check_at_once", True)
    tensors = on(cuda_device, example(3 * CHUNK, CLASSES, torch.float32))
    tensors["target"][-1] = -1
    with pytest.raises(IndexError, match=r"Target -1 is out of bounds\."):
        FF.linear_cross_entropy(**tensors)


def all_results(device: torch.device) -> list[Tensor]:
    results = []
    for classes, dtype in ((CLASSES, torch.float32), (MANY, torch.bfloat16)):
        torch.manual_seed(1)
        tensors = on(device, example(3 * CHUNK - 1, classes, dtype))
        results += gradients(FF.linear_cross_entropy, tensors, None, {"label_smoothing": 0.1})
    return results


def same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_same_bits_in_every_order_of_threads(emulated_cuda: Emulation) -> None:
    runs = []
    for order in ORDERS:
        emulated_cuda.checks.set_order(*order)
        runs.append(all_results(torch.device("cpu")))
    assert all(same_bits(run, runs[0]) for run in runs[1:])


@pytest.mark.cuda
def test_same_bits_in_every_run() -> None:
    assert same_bits(all_results(torch.device("cuda")), all_results(torch.device("cuda")))


@pytest.mark.cuda
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_capture_and_no_wait(reduction: str) -> None:
    tensors = on("cuda", example(3 * CHUNK, MANY, torch.float32))
    names = ("input", "linear_weight", "linear_bias")
    leaves = [tensors[name].requires_grad_() for name in names]
    factor = torch.rand((3 * CHUNK,) if reduction == "none" else (), device="cuda")

    def run() -> list[Tensor]:
        loss = FF.linear_cross_entropy(**tensors, reduction=reduction)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, factor)]

    want = run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    assert same_bits(captured, want)


@pytest.mark.cuda
def test_large_and_in_a_tenth_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows, features, classes = 1024, 768, 32000
    x = torch.randn(rows, features, device="cuda", requires_grad=True)
    w = (torch.randn(classes, features, device="cuda") / features**0.5).requires_grad_()
    target = torch.randint(classes, (rows,), device="cuda")

    def measured(call: Callable[..., Tensor]) -> tuple[Any, int]:
        """The results, and the most memory at a time beside them and what was there before."""
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


def test_bad_calls(emulated: Emulation) -> None:
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
