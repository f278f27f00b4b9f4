"""Linear classifier and cross-entropy in one op against torch in float64, with every kernel."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linear_cross_entropy_cases import CHUNK, CLASSES, FEATURES, FEW, check, example, gradients, wide
from reference import DTYPES, layouts
from torch import Tensor

import fastnn
from every_kernel import assert_reproducible, emulating
from fastnn import _dispatch
from fastnn import functional as FF
from fastnn.ops import linear_cross_entropy as module
from fastnn.ops.linear_cross_entropy import linear_cross_entropy_torch

MANY = 515  # classes, for which each row has its own block on CUDA

native_only = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 0)
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", CHUNK)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [FEW, CLASSES, MANY])
def test_options_crossed(classes: int, dtype: torch.dtype, every_device: torch.device) -> None:
    weight = (torch.rand(classes) + 0.5).to(dtype).to(every_device)
    crossed = itertools.product(
        ("mean", "sum", "none"), (0.0, 0.2), (0.0, 0.01), (None, weight), (True, False)
    )
    # Emulated kernels are slow, and those for other numbers of classes and dtypes differ only within a row.
    few = classes != CLASSES or (emulating() and dtype != torch.float32)
    for reduction, smoothing, z_loss, w, bias in itertools.islice(crossed, 0, None, 7 if few else 1):
        tensors = example(CHUNK + 3 if emulating() else 3 * CHUNK - 1, classes, dtype, bias, every_device)
        tensors["target"][::4] = -1
        options = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss, "weight": w}
        check(tensors, ignore_index=-1, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 3])
def test_chunk_boundaries(every_device: torch.device, dtype: torch.dtype, reduction: str, rows: int) -> None:
    check(example(rows, CLASSES, dtype, device=every_device), reduction=reduction, z_loss=0.01)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_empty_batch_is_left_to_torch(reduction: str, device: torch.device) -> None:
    tensors = example(0, CLASSES, torch.float32, device=device)
    options = {"reduction": reduction}
    ours, theirs = (
        gradients(f, tensors, None, options) for f in (FF.linear_cross_entropy, linear_cross_entropy_torch)
    )
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_chunks_of_ignored_rows_add_nothing(
    every_device: torch.device, dtype: torch.dtype, reduction: str
) -> None:
    tensors = example(4 * CHUNK, CLASSES, dtype, device=every_device)
    for ignored in (slice(0, CHUNK), slice(CHUNK, 3 * CHUNK), slice(3 * CHUNK, None), slice(None)):
        target = tensors["target"].clone()
        target[ignored] = -100
        check({**tensors, "target": target}, reduction=reduction)


@native_only
def test_chunks_change_only_the_order_of_sums(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = example(50, CLASSES, torch.float64, device=device)
    results = []
    for rows in (1, 7, 50, 1000):
        monkeypatch.setattr(module, "MIN_CHUNK_ROWS", rows)
        results.append(gradients(FF.linear_cross_entropy, tensors, None, {"label_smoothing": 0.1}))
    for other in results[:-1]:
        torch.testing.assert_close(other, results[-1], rtol=1e-12, atol=1e-14)


def test_chunk_rows_keep_to_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert module.chunk_rows(32000, torch.float32) == 196
    assert module.chunk_rows(32000, torch.bfloat16) == 393
    assert module.chunk_rows(10**7, torch.float64) == 64


@pytest.mark.parametrize("which", ["input", "linear_weight"])
def test_every_layout_matches_float64(every_device: torch.device, which: str) -> None:
    rows = 2 * CHUNK + 3
    for layout in layouts(
        rows if which == "input" else CLASSES, FEATURES, torch.float32, every_device
    ).values():
        check({**example(rows, CLASSES, torch.float32, device=every_device), which: layout})


def test_strided_bias_target_and_class_weight(every_device: torch.device) -> None:
    tensors = example(2 * CHUNK, CLASSES, torch.float32, device=every_device)
    tensors["linear_bias"] = torch.randn(2 * CLASSES, device=every_device)[::2]
    tensors["target"] = torch.randint(CLASSES, (4 * CHUNK,), device=every_device)[::2]
    check(tensors, weight=torch.rand(3 * CLASSES, device=every_device)[::3])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3, 4)])
def test_every_batch_shape_matches_float64(
    batch: tuple[int, ...], reduction: str, device: torch.device
) -> None:
    x = torch.randn(*batch, FEATURES, device=device, requires_grad=True)
    w, t = torch.randn(CLASSES, FEATURES, device=device), torch.randint(CLASSES, batch, device=device)
    loss = FF.linear_cross_entropy(x, w, t, reduction=reduction)
    logits = F.linear(x, w).reshape(-1, CLASSES)
    expected = F.cross_entropy(logits, t.reshape(-1), reduction=reduction)
    expected = expected.view(batch) if reduction == "none" else expected
    torch.testing.assert_close(loss, expected)
    pair = [torch.autograd.grad(value.sum(), x)[0] for value in (loss, expected)]
    torch.testing.assert_close(*pair)


def test_only_wanted_gradients_and_uint8_targets(every_device: torch.device) -> None:
    tensors = example(2 * CHUNK, CLASSES, torch.float32, device=every_device)
    tensors["target"] = tensors["target"].to(torch.uint8)
    everything = gradients(FF.linear_cross_entropy, tensors, None, {"reduction": "sum"})
    for position, name in enumerate(("input", "linear_weight", "linear_bias")):
        leaf = tensors[name].clone().requires_grad_()
        loss = FF.linear_cross_entropy(**{**tensors, name: leaf}, reduction="sum")
        # Alone, the bias's gradient may be summed in another order.
        torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], everything[position + 1])


@pytest.mark.parametrize(("classes", "dtype"), [(1000, torch.float32), (MANY, torch.bfloat16)])
def test_the_same_bits_every_time(
    classes: int, dtype: torch.dtype, every_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not emulating():
        monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 60)
    rows = 3 * CHUNK - 1 if emulating() else 150
    tensors = example(
        rows, CLASSES if emulating() and classes == 1000 else classes, dtype, True, every_device
    )
    options = {"label_smoothing": 0.1}
    assert_reproducible(lambda: gradients(FF.linear_cross_entropy, tensors, None, options), every_device)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum", "label_smoothing": 0.1},
        {"reduction": "none", "z_loss": 0.1},
        {"z_loss": 0.2, "weight": torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)},
    ],
)
def test_gradcheck_and_gradgradcheck(
    options: dict[str, Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 2)
    rows = 3
    x, w, b = (
        torch.randn(s, dtype=torch.float64, device=device, requires_grad=True)
        for s in ((rows, 2), (4, 2), (4,))
    )
    t = torch.tensor([1, -100, 3], device=device)
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}

    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return FF.linear_cross_entropy(x, w, t, linear_bias=b, **options)

    assert torch.autograd.gradcheck(loss, (x, w, b), check_batched_grad=True, fast_mode=emulating())
    assert torch.autograd.gradgradcheck(loss, (x, w, b), fast_mode=emulating())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_twice_with_the_first_gradient_edited_between(reduction: str, device: torch.device) -> None:
    tensors = example(2 * CHUNK, CLASSES, torch.float32, device=device)
    w = tensors["linear_weight"].requires_grad_()
    loss = FF.linear_cross_entropy(**tensors, reduction=reduction).sum()
    loss.backward(retain_graph=True)
    first = w.grad.clone()
    w.grad.zero_()
    (3 * loss).backward()
    torch.testing.assert_close(w.grad, 3 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_float16_gradients_under_a_loss_scale_do_not_vanish(
    every_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 128)
    tensors = example(1024, FEW, torch.float16, device=every_device)
    tensors["linear_weight"] /= 256  # so that dX would be subnormal
    ours = gradients(lambda **k: FF.linear_cross_entropy(**k).float() * 32768, tensors, None, {})
    theirs = gradients(lambda **k: linear_cross_entropy_torch(**k) * 32768, wide(tensors), None, {})
    eps = torch.finfo(torch.float16).eps
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu().double(), e, rtol=0, atol=8 * eps * float(e.abs().max()))


def test_what_runs_as_torch_ops() -> None:
    x, w = torch.randn(6, 4, requires_grad=True), torch.randn(3, 4)
    indices = torch.randint(3, (6,))
    probabilities = torch.rand(6, 3)
    torch.testing.assert_close(
        FF.linear_cross_entropy(x, w, probabilities), F.cross_entropy(F.linear(x, w), probabilities)
    )
    with fastnn.disabled():
        loss = FF.linear_cross_entropy(x, w, indices, reduction="none")
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(x, w), indices, reduction="none"))
    images, wide = torch.randint(3, (6, 5)), torch.randn(3, 5, 4)
    torch.testing.assert_close(
        FF.linear_cross_entropy(x, wide, images, reduction="none", options=None),
        F.cross_entropy(F.linear(x, wide.view(15, 4)).view(6, 3, 5), images, reduction="none"),
    )
    compiled = torch.compile(FF.linear_cross_entropy, backend="eager", fullgraph=True)(x, w, indices)
    torch.testing.assert_close(compiled, FF.linear_cross_entropy(x, w, indices))
    ours, theirs = (
        torch.func.grad(f, argnums=(0, 1))(x, w, indices)
        for f in (FF.linear_cross_entropy, lambda x, w, t: F.cross_entropy(F.linear(x, w), t))
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="newer than this torch")
def test_torchs_own_function_takes_the_same_call() -> None:
    tensors = example(3 * CHUNK, CLASSES, torch.float64)
    options = {"weight": torch.rand(CLASSES, dtype=torch.float64), "label_smoothing": 0.1, "ignore_index": 3}
    ours, theirs = (
        gradients(f, tensors, None, options) for f in (FF.linear_cross_entropy, F.linear_cross_entropy)
    )
    torch.testing.assert_close(ours, theirs)


def test_errors_are_of_torchs_types(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "check_at_once", True)
    tensors = example(5, CLASSES, torch.float32, device=device)
    x, w, t = tensors["input"], tensors["linear_weight"], tensors["target"]
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (IndexError, r"Target 67 is out of bounds", (x, w, torch.full_like(t, CLASSES)), {}),
        (IndexError, r"Target -1 is out of bounds", (x, w, torch.full_like(t, -1)), {"reduction": "none"}),
        (ValueError, r"target has shape \(4,\)", (x, w, t[:4]), {}),
        (RuntimeError, r"target has shape \(5, 2\)", (x, w, x[:, :2]), {}),
        (RuntimeError, r"K=12, linear_weight expects 13", (x[:, 1:], w, t), {}),
        (RuntimeError, r"linear_bias has shape \(1,\)", (x, w, t), {"linear_bias": x.new_zeros(1)}),
        (RuntimeError, r"weight has shape \(2,\)", (x, w, t), {"weight": x.new_ones(2)}),
        (RuntimeError, r"linear_weight \(C, K\)", (x, w[0], t), {}),
        (RuntimeError, r"expected input \(N, K\)", (x[0], w[None], t[0]), {}),
        (RuntimeError, "class probabilities", (x, w, x.new_ones(5, CLASSES)), {"ignore_index": 1}),
        (RuntimeError, "Long or Byte, but got Int|Long but found Int", (x, w, t.int()), {}),
        (RuntimeError, "dtype", (x, w.double(), t), {}),
        (RuntimeError, "label_smoothing", (x, w, t), {"label_smoothing": 1.5}),
        (ValueError, "median", (x, w, t), {"reduction": "median"}),
    ]
    for error, message, args, options in cases:
        with pytest.raises(error, match=message):
            FF.linear_cross_entropy(*args, **options)


MEASURE = """
import torch, fastnn.functional as FF
torch.manual_seed(0)
torch.set_num_threads(1)  # beside other processes threads wait for each other in vain
rows, features, classes = {shape}
x, w = (torch.randn(n, features, requires_grad=True) for n in (rows, classes))
t = torch.randint(classes, (rows,))
FF.linear_cross_entropy(*(v[:64].detach().requires_grad_() for v in (x, w)), t[:64] % 64).backward()
def status(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(key))
before = status("VmRSS")
FF.linear_cross_entropy(x, w, t).backward()
# VmHWM, not ru_maxrss, which begins with that of the parent process.
print(status("VmHWM") - before - x.grad.nbytes - w.grad.nbytes)
"""


@native_only
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_less_than_a_fifth_of_the_logits() -> None:
    """Not counting the gradients, which are results: a chunk of 24 MiB, packed copies."""
    shape = rows, _, classes = 1024, 64, 32000
    command = [sys.executable, "-c", MEASURE.format(shape=shape)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(answer.stdout) < 0.19 * rows * classes * 4
