"""Cross-entropy with a row per cluster of blocks: on a GPU, and emulated with little shared memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import check
from reference import DTYPES
from torch import Tensor

from captured import assert_capturable
from cuda_emulation import EMULATED, ORDERS, Emulation
from every_kernel import place
from fastnn import _dispatch, functional

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

# The emulated devices (tests/cuda_emulator/runtime.cpp): on all but the first a block holds 974 packs of 16
# bytes.
LARGE, SMALL, WITHOUT_CLUSTERS, COMPILED_FOR_ANOTHER = range(4)
KEPT = 974
# Packs of a row for one block alone, and shared by 2, 4 and 8; the last are more than those can hold.
LENGTHS = [(KEPT, 1), (KEPT + 1, 2), (2 * KEPT, 2), (2 * KEPT + 1, 4), (8 * KEPT, 8), (8 * KEPT + 99, 8)]
ROWS = 3  # enough that the 4 multiprocessors have no more blocks for a row
ONE_ORDER = pytest.mark.parametrize("small", EMULATED[:1], indirect=True)


@pytest.fixture(params=EMULATED)
def small(request: pytest.FixtureRequest) -> Iterator[Emulation]:
    """Kernels on the small device, in very different thread orders."""
    place(request)
    emulated: Emulation = request.getfixturevalue("emulated")
    emulated.checks.put_tensors_on(SMALL)
    yield emulated
    emulated.checks.put_tensors_on(LARGE)


def classes_of(packs: int, dtype: torch.dtype, more: int = 0) -> int:
    return packs * (16 // dtype.itemsize) + more


def cluster_of(emulated: Emulation, x: Tensor, target: Tensor) -> int:
    """Blocks of each cluster that a forward pass with gradient was launched in."""
    functional.cross_entropy(x.detach().requires_grad_(), target)
    clusters, blocks, _, _ = emulated.checks.last_launch()
    assert clusters == len(x)
    return int(blocks)


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("packs", "cluster", "dtype"),
    [(*length, dtype) for length in LENGTHS for dtype in (torch.float32, torch.bfloat16)]
    + [(3 * KEPT, 4, torch.float64), (3 * KEPT, 4, torch.float16)],
)
def test_every_length_matches_float64(packs: int, cluster: int, dtype: torch.dtype, small: Emulation) -> None:
    # One class less than another pack: the largest number of single classes.
    classes = classes_of(packs, dtype, 16 // dtype.itemsize - 1)
    x, target = (3 * torch.randn(ROWS, classes)).to(dtype), torch.randint(classes, (ROWS,))
    target[:2] = torch.tensor([classes - 1, -100])
    assert cluster_of(small, x, target) == cluster
    assert small.checks.last_launch()[3] == 16 * 1024 or packs < KEPT * cluster
    check(x, target)


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("reduction", "smoothing", "weighted", "kind"),
    list(itertools.product(["mean", "none"], [0.0, 0.1], [False, True], ["index", "uint8", "probabilities"])),
)
def test_every_option_matches_float64(
    reduction: str, smoothing: float, weighted: bool, kind: str, small: Emulation
) -> None:
    classes = classes_of(KEPT + 9, torch.float32, 1)
    x, target = 3 * torch.randn(ROWS, classes), torch.randint(200, (ROWS,))
    target[::4] = 5
    options: dict[str, object] = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = torch.rand(classes) + 0.1
    if kind == "probabilities":
        target = torch.softmax(torch.randn(ROWS, classes), 1)
    else:
        options["ignore_index"] = 5
        target = target.to(torch.uint8) if kind == "uint8" else target
    check(x, target, **options)


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("before", [1, 2, 7])
def test_odd_addresses_match_float64(dtype: torch.dtype, before: int, small: Emulation) -> None:
    """Rows of an odd length start at every distance from an aligned address."""
    classes = classes_of(KEPT + 5, dtype, before % 2)
    x = torch.randn(ROWS, classes + before).to(dtype)
    check(x[:, before:], torch.randint(classes, (ROWS,)))


def test_several_rows_of_a_cluster(small: Emulation) -> None:
    """At most 8 blocks per multiprocessor are launched: 4 clusters of 8, with 3 rows each."""
    x = torch.randn(12, classes_of(4 * KEPT + 1, torch.float32), requires_grad=True)
    target = torch.randint(x.shape[1], (12,))
    target[5] = -100
    loss = functional.cross_entropy(x, target)
    assert small.checks.last_launch()[:2] == (4, 8)
    wide = x.detach().double().requires_grad_()
    want = F.cross_entropy(wide, target)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
    gradients = (torch.autograd.grad(one, t)[0].double() for one, t in ((loss, x), (want, wide)))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)


@ONE_ORDER
def test_small_losses_beside_large_ones(small: Emulation) -> None:
    """One thread adds up three rows: a loss of 2^25, and two below its last bit in float32."""
    x = torch.full((12, classes_of(4 * KEPT + 1, torch.float32)), -1e9)
    x[:, 0], x[:, 1] = 0.0, 1.8
    x[:4, 0], x[:4, 1] = -(2.0**25), 0.0
    loss = functional.cross_entropy(x.requires_grad_(), torch.zeros(12).long(), reduction="sum")
    assert small.checks.last_launch()[:2] == (4, 8)
    assert loss == 2.0**27 + 16  # 8 x 1.95, in steps of 16


@pytest.mark.each_value
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_over_the_logits(smoothing: float, small: Emulation) -> None:
    """Each row's target is in a different block's part, which reads it before it is overwritten."""
    classes = classes_of(8 * KEPT + 50, torch.float32, 3)
    x = torch.randn(ROWS, classes)
    target = torch.linspace(0, classes - 1, ROWS).long()
    wide = x.double().requires_grad_()
    want = F.cross_entropy(wide, target, label_smoothing=smoothing)
    (want_gradient,) = torch.autograd.grad(want, wide)
    loss = torch.empty(())
    scratch = torch.empty(small.cuda.cross_entropy_scratch, dtype=torch.float64)
    small.cuda.cross_entropy_forward(x, target, None, loss, x, -100, 1, smoothing, 0.0, scratch, False)
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(x.double(), want_gradient, rtol=1e-4, atol=1e-8)


def test_z_loss_matches_float64(small: Emulation) -> None:
    classes = classes_of(5 * KEPT, torch.float64)
    x, target = torch.randn(ROWS, classes, dtype=torch.float64), torch.randint(classes, (ROWS,))
    target[1] = -100
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine = functional.cross_entropy(ours, target, z_loss=0.1)
    squares = torch.logsumexp(theirs, 1).square()[target != -100]
    want = F.cross_entropy(theirs, target) + 0.1 * squares.mean()
    torch.testing.assert_close(mine, want, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(loss, t)[0] for loss, t in ((mine, ours), (want, theirs)))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-15)


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite(dtype: torch.dtype, small: Emulation) -> None:
    classes = classes_of(4 * KEPT, dtype, 1)
    x = torch.randn(9, classes).to(dtype)
    target = torch.full((9,), classes - 2)
    x[0, : classes // 2] = -torch.inf  # the first two blocks have nothing else
    x[1, :-2], x[1, -1] = -torch.inf, -torch.inf  # only the target is left
    x[2] = -torch.inf
    x[3, 7], x[4, -2], x[5, classes // 2] = torch.nan, torch.nan, torch.inf
    x[6, classes // 2 : classes // 2 + 20] = -torch.inf
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    loss = functional.cross_entropy(x, target, reduction="none")
    want = F.cross_entropy(wide, target, reduction="none")
    assert (
        loss.isnan().tolist() == want.isnan().tolist() == [False, False, True, True, True, True] + [False] * 3
    )
    torch.testing.assert_close(loss.double(), want, rtol=0.01, atol=1e-6, equal_nan=True)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    (want_gradient,) = torch.autograd.grad(want.sum(), wide)
    good = [0, 1, 6, 7, 8]
    torch.testing.assert_close(gradient.double()[good], want_gradient[good], rtol=0.01, atol=1e-7)
    assert gradient[2:6].isnan().all(1).all()


def test_a_target_out_of_range(small: Emulation) -> None:
    classes = classes_of(4 * KEPT, torch.float32)
    x = torch.randn(ROWS, classes, requires_grad=True)
    target = torch.randint(classes, (ROWS,))
    bad = target.clone()
    bad[1] = classes
    loss = functional.cross_entropy(x, bad, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert gradient[1].isnan().all()
    assert gradient[::2].isfinite().all()
    with pytest.raises(IndexError, match=f"Target {classes} is out of bounds"):
        functional.cross_entropy(x, target)
    check(x.detach(), target)


def test_all_ignored_gives_what_torch_gives(small: Emulation) -> None:
    classes = classes_of(2 * KEPT, torch.float32)
    x = torch.randn(ROWS, classes, requires_grad=True)
    loss = functional.cross_entropy(x, torch.full((ROWS,), -100))
    assert loss.isnan()
    assert torch.autograd.grad(loss, x)[0].eq(0).all()


@ONE_ORDER  # for now
def test_the_same_bits_in_every_order(small: Emulation) -> None:
    x = torch.randn(ROWS, classes_of(4 * KEPT, torch.float32, 3), requires_grad=True)
    target = torch.randint(x.shape[1], (ROWS,))

    def run() -> tuple[Tensor, Tensor]:
        loss = functional.cross_entropy(x, target, label_smoothing=0.1)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    first = run()
    for order in [*ORDERS, ("threads", 7)]:
        small.checks.set_order(*order)
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


# Of 16 multiprocessors; a block has at least 1024 packs.
@pytest.mark.parametrize(
    ("rows", "packs", "cluster"),
    [
        (1, 2047, 1),
        (1, 2048, 2),
        (1, 8188, 4),
        (1, 8192, 8),
        (4, 8192, 4),
        (5, 8192, 2),
        (8, 2048, 2),
        (9, 8192, 1),
    ],
)
def test_few_rows_get_more_blocks(rows: int, packs: int, cluster: int, emulated_cuda: Emulation) -> None:
    x = torch.randn(rows, classes_of(packs, torch.float32))
    target = torch.randint(x.shape[1], (rows,))
    assert cluster_of(emulated_cuda, x, target) == cluster
    check(x, target)
    functional.cross_entropy(x, target)  # without a gradient
    assert emulated_cuda.checks.last_launch()[:2] == (rows, cluster)


@pytest.mark.parametrize("device", [WITHOUT_CLUSTERS, COMPILED_FOR_ANOTHER])
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_clusters_the_rest_is_read_twice(dtype: torch.dtype, device: int, small: Emulation) -> None:
    small.checks.put_tensors_on(device)
    x = torch.randn(3, classes_of(3 * KEPT, dtype, 1)).to(dtype)
    target = torch.randint(x.shape[1], (3,))
    assert cluster_of(small, x, target) == 1
    check(x, target)


# On an H100 (227 KB a block, 132 multiprocessors): rows of 67 are no few; 2, 4, 8 blocks, more than 8 keep.
CASES: list[Any] = [
    (67, torch.float32, 100_003),
    (67, torch.bfloat16, 128_256),
    (67, torch.float32, 200_003),
    (67, torch.float64, 200_003),
    (67, torch.float32, 400_003),
    (67, torch.float32, 600_003),
    (8, torch.float32, 32_000),
    (1, torch.bfloat16, 250_001),
]


@pytest.mark.cuda
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "dtype", "classes"), CASES)
def test_a_gpu_gives_what_torch_gives(rows: int, dtype: torch.dtype, classes: int, smoothing: float) -> None:
    x = torch.randn(rows, classes + 1).to(dtype)
    target = torch.randint(classes, (rows,))
    target[rows // 2] = -100 if rows > 1 else 0
    check(x.cuda()[:, 1:], target.cuda(), label_smoothing=smoothing)


@pytest.mark.cuda
def test_a_cuda_graph_gives_the_same() -> None:
    x = torch.randn(67, 200_000, device="cuda", requires_grad=True)
    target = torch.randint(200_000, (67,), device="cuda")

    def run() -> list[Tensor]:
        loss = functional.cross_entropy(x, target)
        return [loss.detach(), *torch.autograd.grad(loss, x)]

    assert_capturable(run)
