"""The ops that have CUDA kernels, against float64 on the CPU: the same cases on every device there is."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import check_cross_entropy
from reference import DTYPES
from torch import Tensor

from captured import assert_capturable
from fastnn import _backend, functional

pytestmark = pytest.mark.skipif(_backend.cpu is None, reason="needs the compiled module")


# Around the limits between the kernels (64, 512), not multiples of a pack, and longer than shared memory.
CLASSES = [1, 2, 10, 63, 64, 65, 511, 512, 513, 1000, 4099, 32_001, 262_147]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_class_counts(classes: int, dtype: torch.dtype, device: torch.device) -> None:
    rows = 70 if classes < 512 else 3
    x = (3 * torch.randn(rows, classes)).to(dtype)
    target = torch.randint(classes, (rows,))
    check_cross_entropy(x, target, device)
    target[0] = -100
    check_cross_entropy(x, target, device, reduction="sum")


@pytest.mark.parametrize("classes", [10, 300, 1500])
@pytest.mark.parametrize(
    ("reduction", "smoothing", "weighted", "kind"),
    list(
        itertools.product(
            ["mean", "sum", "none"], [0.0, 0.1], [False, True], ["index", "uint8", "probabilities"]
        )
    ),
)
def test_cross_entropy_options(
    classes: int, reduction: str, smoothing: float, weighted: bool, kind: str, device: torch.device
) -> None:
    x = 3 * torch.randn(40, classes)
    target = torch.randint(min(classes, 256), (40,))
    target[::7] = 5
    options: dict[str, object] = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = torch.rand(classes) + 0.1
    if kind == "probabilities":
        target = torch.softmax(torch.randn(40, classes), 1)
    else:
        options["ignore_index"] = 5
        target = target.to(torch.uint8) if kind == "uint8" else target
    check_cross_entropy(x, target, device, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_strided(dtype: torch.dtype, device: torch.device) -> None:
    check_cross_entropy(torch.randn(3, 7, 5, 11).to(dtype), torch.randint(7, (3, 5, 11)), device)
    long = torch.randn(6, 2003).to(dtype)
    check_cross_entropy(long, torch.randint(1999, (6,)), device, slice(1, 2000))


def test_cross_entropy_z_loss(device: torch.device) -> None:
    for classes in (10, 2000):
        x, target = torch.randn(20, classes, dtype=torch.float64), torch.randint(classes, (20,))
        mine = functional.cross_entropy(x.to(device), target.to(device), z_loss=0.1)
        want = F.cross_entropy(x, target) + 0.1 * torch.logsumexp(x, 1).square().mean()
        assert torch.allclose(mine.cpu(), want, rtol=1e-12)


def test_cross_entropy_of_nothing(device: torch.device) -> None:
    for classes in (3, 1000):
        x = torch.randn(4, classes, device=device, requires_grad=True)
        ignored = torch.full((4,), -100, device=device)
        loss = functional.cross_entropy(x, ignored)
        assert loss.isnan()
        assert functional.cross_entropy(x, ignored, reduction="sum") == 0
        assert torch.autograd.grad(loss, x)[0].eq(0).all()
        for bad in (float("nan"), float("inf")):
            y = x.detach().clone()
            y[1, 2] = bad
            assert functional.cross_entropy(y, torch.zeros(4, dtype=torch.int64, device=device)).isnan()


def test_a_target_out_of_range_is_told_at_the_next_call(cuda_device: torch.device) -> None:
    x = torch.randn(4, 10, device=cuda_device)
    bad, good = (torch.tensor([0, 1, k, 2], device=cuda_device) for k in (10, 9))
    loss = functional.cross_entropy(x, bad)
    if cuda_device.type == "cuda":
        torch.cuda.synchronize()
    assert loss.isnan()
    with pytest.raises(IndexError, match=r"Target 10 is out of bounds\."):
        functional.cross_entropy(x, good)
    assert functional.cross_entropy(x, good).isfinite()


def test_a_target_out_of_range_is_told_at_once_on_request(
    monkeypatch: pytest.MonkeyPatch, cuda_device: torch.device
) -> None:
    monkeypatch.setattr(_backend, "check_at_once", True)
    with pytest.raises(IndexError, match=r"Target -1 is out of bounds\."):
        functional.cross_entropy(
            torch.randn(1, 10, device=cuda_device), torch.tensor([-1], device=cuda_device)
        )


@pytest.mark.cuda
def test_capture_and_streams() -> None:
    x = torch.randn(64, 1000, device="cuda", requires_grad=True)
    target = torch.randint(1000, (64,), device="cuda")

    def run() -> list[Tensor]:
        loss = functional.cross_entropy(functional.relu(x), target)
        return [loss.detach(), *torch.autograd.grad(loss, x)]

    assert_capturable(run)
