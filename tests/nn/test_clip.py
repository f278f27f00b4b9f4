"""nn.utils.clip_grad_norm_: values against float64 and torch, edges, what is left to torch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from cuda_emulation import EMULATED, Emulation
from every_kernel import kernels_of
from fastnn import _dispatch
from fastnn.nn.utils import clip_grad_norm_
from variants import runnable_isas

torch_clip = torch.nn.utils.clip_grad_norm_
needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Around the widths of vectors (4 to 16 lanes), twice that, and the chunks that work is cut into.
SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 1023, 1024, 1025, 5000]


@pytest.fixture(params=[*runnable_isas(), *EMULATED])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each CPU variant, and the CUDA kernels in very different thread orders."""
    with kernels_of(request):
        yield request.param


def parameters(
    shapes: list[Any], dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for p in params:
        p.grad = (torch.randn(p.shape, dtype=torch.float64) * scale).to(dtype)
    return params


def gradients(params: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad.clone() for p in params if p.grad is not None]


def reasons(run: Callable[[], Any]) -> list[str | None]:
    seen: list[str | None] = []
    with _dispatch.recording(lambda decision: seen.append(decision.reason)):
        run()
    return seen


def clip_natively(params: Any, max_norm: float, **options: Any) -> Tensor:
    norms: list[Tensor] = []
    assert reasons(lambda: norms.append(clip_grad_norm_(params, max_norm, **options))) == [None]
    return norms[0]


def factor(norm: Tensor, max_norm: float) -> Tensor:
    """torch's factor for this norm."""
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)


def assert_clipped(params: list[nn.Parameter], before: list[Tensor], norm: Tensor, max_norm: float) -> None:
    """Gradients have torch's bits for that norm."""
    by = factor(norm, max_norm)
    for now, then in zip(gradients(params), before, strict=True):
        torch.testing.assert_close(now, then * by, rtol=0, atol=0, equal_nan=True)


@needs_native
@every_dtype
@pytest.mark.parametrize("max_norm", [0.5, 30.0, 1e4])
def test_values_against_float64(isa: str, dtype: torch.dtype, max_norm: float) -> None:
    params = parameters(SIZES, dtype)
    before = gradients(params)
    norm = clip_natively(params, max_norm)
    reference = torch.cat([g.double().flatten() for g in before]).norm()
    assert norm.shape == ()
    assert norm.dtype == dtype
    assert not norm.requires_grad
    # Summed in double and rounded once: half an eps, and in float64 some eps of the sum, of which the root
    # takes half.
    bound = (8 if dtype == torch.float64 else 0.5001) * torch.finfo(dtype).eps
    assert abs(norm.double() - reference) <= bound * reference
    assert_clipped(params, before, norm, max_norm)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES[1:])
def test_each_size_equals_torch(isa: str, dtype: torch.dtype, size: int) -> None:
    params = parameters([size], dtype)
    twin = copy.deepcopy(params)
    twin[0].grad = gradients(params)[0]
    norm, theirs = clip_natively(params, 0.1), torch_clip(twin, 0.1)
    # torch sums in the dtype itself, with rounding errors that are independent: sqrt(n) eps, and some more.
    bound = 4 * (1 + size**0.5) * torch.finfo(dtype).eps
    torch.testing.assert_close(norm, theirs, rtol=bound, atol=0)
    torch.testing.assert_close(params[0].grad, twin[0].grad, rtol=2 * bound, atol=0)


@needs_native
@every_dtype
def test_bitwise_the_same_for_every_thread_count(dtype: torch.dtype) -> None:
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            params = parameters([40_000, 3, 1025, 0, 9_999], dtype)
            results.append([clip_natively(params, 1.0), *gradients(params)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_native
def test_layouts_that_fill_one_block_and_are_not_aligned(isa: str) -> None:
    params = parameters([(30, 40), (2, 3, 4, 5), (17,), (1, 3, 1)])
    params[0].grad = torch.randn(40, 30).t()
    params[1].grad = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    params[2].grad = torch.randn(18)[1:]
    before = gradients(params)
    norm = clip_natively(params, 1.0)
    torch.testing.assert_close(norm, torch.cat([g.flatten() for g in before]).norm(), rtol=1e-5, atol=0)
    assert_clipped(params, before, norm, 1.0)


@needs_native
def test_more_tensors_than_fit_one_launch(isa: str) -> None:
    params = parameters([(7 * i) % 23 for i in range(300)])
    before = gradients(params)
    norm = clip_natively(params, 1.0)
    reference = torch.cat([g.double() for g in before]).norm()
    assert abs(norm.double() - reference) <= 0.5001 * torch.finfo(torch.float32).eps * reference
    assert_clipped(params, before, norm, 1.0)


@needs_native
def test_a_tensor_an_iterable_and_a_generator(isa: str) -> None:
    for wrap in (lambda p: p[0], tuple, iter, lambda p: (each for each in p)):
        params = parameters([100])
        before = gradients(params)
        assert_clipped(params, before, clip_natively(wrap(params), 1.0), 1.0)


@needs_native
def test_parameters_without_gradient_are_skipped(isa: str) -> None:
    params = [nn.Parameter(torch.ones(3)), *parameters([5, (), 0]), nn.Parameter(torch.ones(2))]
    before = gradients(params)
    assert_clipped(params, before, clip_natively(params, 0.5), 0.5)
    assert params[0].grad is None


def test_nothing_to_clip() -> None:
    none: list[Tensor] = []
    for params in (none, [nn.Parameter(torch.ones(3))], parameters([0])):
        assert torch.equal(clip_grad_norm_(params, 1.0), torch.tensor(0.0))
    with pytest.warns(UserWarning, match="empty generator"):
        assert torch.equal(clip_grad_norm_((p for p in none), 1.0), torch.tensor(0.0))


INF, NAN = float("inf"), float("nan")
MAX_NORMS = [1.0, 0.0, -1.0, 1e-30, 1e30, INF, NAN]


@needs_native
@every_dtype
@pytest.mark.parametrize("special", [0.0, INF, -INF, NAN, 1e-40])
def test_nan_infinity_and_zero_as_in_torch(isa: str, dtype: torch.dtype, special: float) -> None:
    for max_norm, others in itertools.product(MAX_NORMS, (0.0, 1.0, -INF)):
        params = parameters([6, 40], dtype, scale=0.0)
        for p in params:
            p.grad = torch.full_like(p, others)
        params[1].grad[33] = special
        twin = copy.deepcopy(params)
        for p, q in zip(params, twin, strict=True):
            q.grad = p.grad.clone()
        norm, theirs = clip_natively(params, max_norm), torch_clip(twin, max_norm)
        bound = 4 * torch.finfo(dtype).eps
        # The square of 1e-40 vanishes where torch sums.
        torch.testing.assert_close(norm, theirs, rtol=bound, atol=1e-39, equal_nan=True)
        torch.testing.assert_close(gradients(params), gradients(twin), rtol=bound, atol=0, equal_nan=True)


@needs_native
def test_squares_that_float32_cannot_hold(isa: str) -> None:
    for value in (1e30, 1e-30):
        params = parameters([4])
        params[0].grad = torch.full((4,), value)
        torch.testing.assert_close(clip_natively(params, 1e35), torch.tensor(2 * value), rtol=1e-6, atol=0)


@needs_native
@pytest.mark.parametrize("special", [INF, NAN])
def test_error_if_nonfinite(isa: str, special: float) -> None:
    params = parameters([5, 7])
    assert_clipped(params, gradients(params), clip_natively(params, 1e3, error_if_nonfinite=True), 1e3)
    params[1].grad[2] = special
    before = gradients(params)
    with pytest.raises(RuntimeError, match=r"total norm of order 2.0 .* is non-finite"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    torch.testing.assert_close(gradients(params), before, rtol=0, atol=0, equal_nan=True)


@needs_native
@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_what_is_written_is_seen_by_autograd(isa: str, max_norm: float) -> None:
    params = parameters([3])
    product = (params[0].grad * torch.ones(3, requires_grad=True)).sum()
    clip_natively(params, max_norm)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@needs_native
def test_gradients_that_require_a_gradient() -> None:
    p = nn.Parameter(torch.randn(4))
    (p.grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    before = p.grad.detach().clone()
    norm = clip_natively(p, 0.1)
    assert not norm.requires_grad
    assert torch.equal(p.grad.detach(), before * factor(norm, 0.1))


class _Subclass(Tensor):
    pass


def _set(grads: list[Any]) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.zeros(g.shape, dtype=g.dtype)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return params


def _twice() -> list[nn.Parameter]:
    grad = torch.randn(5)
    return _set([grad, grad])


def _overlapping() -> list[nn.Parameter]:
    memory = torch.randn(6)
    return _set([memory[:4], memory[2:]])


LEFT_TO_TORCH: dict[str, tuple[Callable[[], list[nn.Parameter]], dict[str, Any], str]] = {
    "norm of type 1": (lambda: parameters([5]), {"norm_type": 1}, "type 1"),
    "norm of type inf": (lambda: parameters([5]), {"norm_type": "inf"}, "type inf"),
    "gaps": (lambda: _set([torch.randn(4, 6)[:, ::2]]), {}, "one block"),
    "the same tensor twice": (_twice, {}, "share memory"),
    "overlapping": (_overlapping, {}, "share memory"),
    "mixed dtypes": (lambda: parameters([3]) + parameters([3], torch.float64), {}, "mixed"),
    "complex": (lambda: _set([torch.randn(4, dtype=torch.complex64)]), {}, "dtype"),
    "subclass": (lambda: _set([torch.randn(4), torch.randn(4).as_subclass(_Subclass)]), {}, "subclass"),
    "sparse": (lambda: _set([torch.tensor([0.0, 2.0]).to_sparse()]), {"foreach": False}, ""),
}


@needs_native
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own
@pytest.mark.parametrize("case", LEFT_TO_TORCH)
def test_what_is_not_covered_is_left_to_torch(case: str) -> None:
    make, options, expected = LEFT_TO_TORCH[case]
    torch.manual_seed(1)
    params = make()
    torch.manual_seed(1)
    twin = make()
    norms: list[Any] = []

    def both() -> None:
        for clip, of in ((clip_grad_norm_, params), (torch_clip, twin)):
            try:
                norms.append(clip(of, 0.1, **options))
            except (RuntimeError, NotImplementedError) as error:
                norms.append(str(error))

    (why,) = reasons(both)
    assert why is not None
    assert expected in why
    assert norms[0] == norms[1]
    for p, q in zip(params, twin, strict=True):
        assert torch.equal(p.grad.to_dense(), q.grad.to_dense())


def test_errors_are_those_of_torch() -> None:
    params = parameters([3])
    for arguments in ((None,), ("many",), (1.0, None), (1.0, "many")):
        with pytest.raises((TypeError, ValueError)) as theirs:
            torch_clip(params, *arguments)
        with pytest.raises(theirs.type):
            clip_grad_norm_(params, *arguments)


def test_disabled_gives_what_torch_gives() -> None:
    params = parameters([50, (3, 4)])
    twin = _set(gradients(params))
    with fastnn.disabled():
        (why,) = reasons(lambda: clip_grad_norm_(params, 0.1))
    torch_clip(twin, 0.1)
    assert why == "fastnn is disabled"
    assert all(map(torch.equal, gradients(params), gradients(twin)))


def test_what_exceeds_one_launch_is_clipped_in_two(emulated_cuda: Emulation) -> None:
    params = parameters([50, 3, 1000, 7])
    before = emulated_cuda.checks.launches()
    clip_natively(params, 1.0)
    assert emulated_cuda.checks.launches() - before == 2


@pytest.mark.cuda
def test_on_a_gpu_and_captured() -> None:
    params = [nn.Parameter(p.cuda()) for p in parameters([300, 5000, 7])]
    starts = [torch.randn_like(p) for p in params]
    for p, start in zip(params, starts, strict=True):
        p.grad = start.clone()
    norm = clip_natively(params, 1.0)
    assert norm.is_cuda
    assert_clipped(params, starts, norm, 1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = clip_natively(params, 1.0)
    for p, start in zip(params, starts, strict=True):
        p.grad.copy_(start * 2)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, norm * 2)
    assert_clipped(params, [start * 2 for start in starts], captured, 1.0)
