"""optim.polyak_: values against float64 and torch, edges, errors, what is left to torch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from every_kernel import assert_reproducible
from fastnn import _dispatch
from fastnn.optim import polyak_

needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
TAUS = [0.0, 0.005, 0.3, 0.5, 0.995, 1.0]
# Around the widths of vectors (4 to 16 lanes) and of the chunks that work is cut into.
SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 1023, 1024, 1025, 5000]
INF, NAN = float("inf"), float("nan")


def randoms(shapes: list[Any], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def reasons(run: Callable[[], Any]) -> list[str | None]:
    seen: list[str | None] = []
    with _dispatch.recording(lambda decision: seen.append(decision.reason)):
        run()
    return seen


def natively(targets: Any, sources: Any, tau: float) -> None:
    assert reasons(lambda: polyak_(targets, sources, tau)) == [None]


def by_torch(targets: Any, sources: Any, tau: float, expected: str) -> None:
    (why,) = reasons(lambda: polyak_(targets, sources, tau))
    assert why is not None
    assert expected in why


def assert_moved(now: list[Tensor], then: list[Tensor], sources: list[Tensor], tau: float) -> None:
    for t, old, s in zip(now, then, sources, strict=True):
        exact = old.double() + tau * (s.double() - old.double())
        stored, computed = torch.finfo(t.dtype), torch.finfo(torch.promote_types(t.dtype, torch.float32))
        # Rounding of tau, of the difference and of the product, of numbers up to twice the larger end; then
        # that of the store.
        inner = 2 * computed.eps * torch.maximum(old.double().abs(), s.double().abs())
        last = stored.eps / 2 * exact.abs() * (1 + stored.eps) + stored.smallest_normal * stored.eps
        assert ((t.double() - exact).abs() <= inner + last).all()


@needs_native
@every_dtype
@pytest.mark.parametrize("tau", TAUS)
def test_values_against_float64(isa: str, dtype: torch.dtype, tau: float) -> None:
    targets, sources = randoms(SIZES, dtype), randoms(SIZES, dtype)
    before, given = copy.deepcopy(targets), copy.deepcopy(sources)
    natively(targets, sources, tau)
    assert_moved(targets, before, given, tau)
    assert all(map(torch.equal, sources, given))
    if tau in (0, 1):
        assert all(map(torch.equal, targets, sources if tau else before))


@needs_native
@every_dtype
def test_one_step_is_cleanrls_and_stable_baselines_but_for_their_rounding(
    isa: str, dtype: torch.dtype
) -> None:
    (target,), (source,) = randoms([500], dtype), randoms([500], dtype)
    cleanrl = 0.005 * source + (1 - 0.005) * target
    before = target.clone()
    stable_baselines = target.clone().mul_(1 - 0.005).add_(source, alpha=0.005)
    natively(target, source, 0.005)
    for other in (cleanrl, stable_baselines):
        rounding = torch.finfo(dtype).eps * (before.double().abs() + source.double().abs())
        assert ((target.double() - other.double()).abs() <= 2 * rounding).all()


@needs_native
@every_dtype
def test_equal_tensors_stay_and_a_fixed_source_is_approached(isa: str, dtype: torch.dtype) -> None:
    (source,) = randoms([100], dtype)
    target = source.clone()
    for _ in range(100):
        natively(target, source, 0.005)
    assert torch.equal(target, source)
    target.zero_()
    for _ in range(10):
        natively(target, source, 0.3)
    assert ((target - source).abs() <= 0.04 * source.abs() + 4 * torch.finfo(dtype).eps * source.abs()).all()


@needs_native
@every_dtype
@pytest.mark.parametrize("tau", TAUS)
def test_nan_and_infinity_as_in_lerp_and_not_at_the_ends(isa: str, dtype: torch.dtype, tau: float) -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -2.0, INF, -INF, NAN], dtype=dtype)
    target, source = (each.flatten() for each in torch.meshgrid(special, special, indexing="ij"))
    target, source = target.clone(), source.clone()
    expected = {0.0: target.clone(), 1.0: source}.get(tau, torch.lerp(target, source, tau))
    natively(target, source, tau)
    torch.testing.assert_close(target, expected, rtol=0, atol=2 * torch.finfo(dtype).eps, equal_nan=True)
    if tau in (0, 1):
        assert torch.equal(target.signbit(), expected.signbit())


@needs_native
@every_dtype
@pytest.mark.parametrize("tau", [0.005, 0.7, 1.0])
def test_bitwise_the_same_for_every_thread_count(dtype: torch.dtype, tau: float) -> None:
    shapes = [40_000, 3, 1025, 0, 9_999]
    targets, sources = randoms(shapes, dtype), randoms(shapes, dtype)

    def run() -> list[Tensor]:
        moved = copy.deepcopy(targets)
        natively(moved, sources, tau)
        return moved

    assert_reproducible(run, torch.device("cpu"))


@needs_native
@pytest.mark.parametrize("tau", [0.005, 1.0])
def test_layouts_that_fill_one_block_and_are_not_aligned(isa: str, tau: float) -> None:
    def tensors() -> list[Tensor]:
        return [
            torch.randn(40, 30).t(),
            torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            torch.randn(18)[1:],
            torch.randn(1, 3, 1),
            torch.randn(()),
        ]

    targets, sources = tensors(), tensors()
    before = [t.clone() for t in targets]
    natively(targets, sources, tau)
    assert_moved(targets, before, sources, tau)


@needs_native
def test_dtypes_are_mixed_as_they_come(isa: str) -> None:
    targets, sources = ([randoms([33], dtype)[0] for dtype in DTYPES] for _ in range(2))
    before = copy.deepcopy(targets)
    natively(targets, sources, 0.1)
    assert_moved(targets, before, sources, 0.1)


@needs_native
def test_nets_generators_and_a_tensor() -> None:
    net, target = nn.Linear(5, 3), nn.Linear(5, 3)
    before = [p.detach().clone() for p in target.parameters()]
    natively(target.parameters(), net.parameters(), 0.25)
    assert_moved(list(target.parameters()), before, list(net.parameters()), 0.25)
    assert all(p.requires_grad and p.grad is None and p.is_leaf for p in target.parameters())
    natively(tuple(target.parameters()), (p for p in net.parameters()), 1)
    assert torch.equal(target.weight, net.weight)
    natively(target.weight, torch.zeros(3, 5), 1.0)  # not row by row
    assert not target.weight.any()


def test_nothing_to_do_is_no_error() -> None:
    assert reasons(lambda: polyak_([], [], 0.5)) == []


@needs_native
def test_what_is_written_is_seen_by_autograd() -> None:
    target, source = nn.Parameter(torch.randn(3)), torch.randn(3)
    product = (target * torch.ones(3, requires_grad=True)).sum()
    natively(target, source, 0.0)
    product.backward(retain_graph=True)  # nothing was written
    natively(target, source, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@needs_native
def test_the_same_tensor_as_target_and_source(isa: str) -> None:
    for tau in TAUS:
        (tensor,) = randoms([100])
        before = tensor.clone()
        natively([tensor], [tensor], tau)
        assert torch.equal(tensor, before)


@needs_native
def test_one_source_of_several_targets(isa: str) -> None:
    (source,), targets = randoms([100]), randoms([100, 100])
    before = copy.deepcopy(targets)
    natively(targets, [source, source], 0.1)
    assert_moved(targets, before, [source, source], 0.1)


class _Subclass(Tensor):
    pass


def _shared() -> list[Tensor]:
    memory = torch.randn(6)
    return [memory[:4], memory[2:]]


# What creates the targets, and part of the reason why they are left to torch. Sources are copies.
LEFT_TO_TORCH: dict[str, tuple[Callable[[], list[Tensor]], str]] = {
    "gaps": (lambda: [torch.randn(4, 6)[:, ::2]], "one block"),
    "the same target twice": (lambda: [torch.randn(5)] * 2, "share memory"),
    "overlapping targets": (_shared, "share memory"),
    "complex": (lambda: [torch.randn(3), torch.randn(4, dtype=torch.complex64)], "dtype"),
    "subclass": (lambda: [torch.randn(3), torch.randn(4).as_subclass(_Subclass)], "subclass"),
    "negated": (lambda: [torch.randn(3), torch.randn(4, dtype=torch.complex64).conj().imag], "negated"),
    "many dimensions": (lambda: [torch.randn(3), torch.randn([2] * 9)], "dimensions"),
    "sparse": (lambda: [torch.randn(3), torch.tensor([0.0, 2.0]).to_sparse()], ""),
}


@needs_native
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own
@pytest.mark.parametrize("case", LEFT_TO_TORCH)
@pytest.mark.parametrize("tau", [0.25, 0.75, 1.0])
def test_what_is_not_covered_is_left_to_torch(case: str, tau: float) -> None:
    make, expected = LEFT_TO_TORCH[case]
    torch.manual_seed(1)
    targets = make()
    torch.manual_seed(1)
    twins = make()  # those that share memory share it here too
    sources = [2 * t.clone() + 1 if t.layout is torch.strided else 3 * t for t in targets]
    by_torch(targets, sources, tau, expected)
    for t, s in zip(twins, sources, strict=True):
        t.copy_(s if tau == 1 else t + tau * (s - t))
    for t, twin in zip(targets, twins, strict=True):
        torch.testing.assert_close(t.to_dense(), twin.to_dense())


def test_other_strides_are_left_to_torch_and_gaps_stay() -> None:
    memory, (source,) = torch.zeros(4, 6), randoms([(3, 4)])
    polyak_(memory[:, ::2].t(), source, 0.5)
    assert torch.equal(memory[:, ::2].t(), source / 2)
    assert not memory[:, 1::2].any()


def test_counts_are_copied() -> None:
    target, source = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    source(torch.randn(8, 4))
    mean = source.running_mean
    assert mean is not None
    polyak_(target.state_dict().values(), source.state_dict().values(), 0.0)
    assert target.num_batches_tracked == 0
    polyak_(target.state_dict().values(), source.state_dict().values(), 0.5)
    assert target.num_batches_tracked == 1
    torch.testing.assert_close(target.running_mean, mean / 2)


@pytest.mark.parametrize("tau", TAUS)
def test_disabled_gives_what_torch_gives(tau: float) -> None:
    targets, sources = randoms([50, (3, 4)]), randoms([50, (3, 4)])
    expected = [
        source if tau == 1 else torch.lerp(t, source, tau) for t, source in zip(targets, sources, strict=True)
    ]
    with fastnn.disabled():
        by_torch(targets, sources, tau, "fastnn is disabled")
    assert all(map(torch.equal, targets, expected))


ERRORS: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], type[Exception], str]] = {
    "too few": (lambda: (randoms([2, 3]), randoms([2]), 0.5), ValueError, "2 targets and 1 sources"),
    "too many": (lambda: (randoms([2]), iter(randoms([2, 3])), 0.5), ValueError, "1 targets and 2 sources"),
    "shape": (
        lambda: (randoms([2, 3]), randoms([2, 1]), 0.5),
        RuntimeError,
        r"\[1\] has shape \(1,\), expected .* \(3,\)",
    ),
    "dtype": (
        lambda: (randoms([2, 3]), [*randoms([2]), *randoms([3], torch.float64)], 0.5),
        RuntimeError,
        r"\[1\] has dtype torch.float64, expected .* torch.float32",
    ),
    "device": (
        lambda: (randoms([2, 3]), [*randoms([2]), torch.empty(3, device="meta")], 0.5),
        RuntimeError,
        r"\[1\] has device meta, expected .* cpu",
    ),
    "tau below 0": (lambda: (randoms([2]), randoms([2]), -0.1), ValueError, "tau must be in"),
    "tau above 1": (lambda: (randoms([2]), randoms([2]), 1.1), ValueError, "tau must be in"),
    "tau is NaN": (lambda: (randoms([2]), randoms([2]), NAN), ValueError, "tau must be in"),
    "nothing is given": (
        lambda: (randoms([2]), None, 0.5),
        TypeError,
        "sources must be a tensor or tensors, got NoneType",
    ),
    "tau is no number": (
        lambda: (randoms([2]), randoms([2]), None),
        TypeError,
        "tau must be a number, got NoneType",
    ),
    "tau is a word": (lambda: (randoms([2]), randoms([2]), "a"), TypeError, "tau must be a number, got str"),
    "no tensor": (
        lambda: (randoms([2, 3]), [*randoms([2]), 1.0], 0.5),
        TypeError,
        r"sources\[1\] must be a tensor",
    ),
    "no tensors": (
        lambda: ({"a": 1}, {"a": 1}, 0.5),
        TypeError,
        r"targets\[0\] must be a tensor, but is a str",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("enabled", [True, False])
def test_errors_come_before_anything_is_written(case: str, enabled: bool) -> None:
    make, error, message = ERRORS[case]
    targets, sources, tau = make()
    before = copy.deepcopy(targets)
    switched = contextlib.nullcontext() if enabled else fastnn.disabled()
    with switched, pytest.raises(error, match=message):
        polyak_(targets, sources, tau)
    for t, old in zip(targets, before, strict=True):
        assert t == old if isinstance(t, str) else torch.equal(t, old)


@pytest.mark.cuda
@every_dtype
@pytest.mark.parametrize("tau", TAUS)
def test_a_gpu_gives_what_torch_gives(dtype: torch.dtype, tau: float) -> None:
    targets, sources = ([t.cuda() for t in randoms(SIZES, dtype)] for _ in range(2))
    before = copy.deepcopy(targets)
    by_torch(targets, sources, tau, "no kernels for device cuda")
    assert_moved(targets, before, sources, tau)
