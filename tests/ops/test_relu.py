"""ReLU: values on every dtype, instruction set and layout, gradients, in-place writes.

ReLU rounds nothing, so every comparison is exact: with the float64 definition where it is written out, and
bit by bit (the sign of zero included) with torch where a layout or an edge is at stake.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _backend
from fastnn.functional import relu

native = pytest.mark.skipif(_backend.cpu is None, reason="needs the compiled module")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Around every vector length there is (2 to 32 lanes), and past the grain at which threads are used.
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 100_003]


def reference(x: Tensor) -> Tensor:
    wide = x.double()
    return torch.where(wide < 0, 0.0, wide).to(x.dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.isnan(), b.isnan())  # NaN has no sign that means anything
        and torch.equal(a.nan_to_num(nan=7.0).signbit(), b.nan_to_num(nan=7.0).signbit())
        and torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))
    )


def strides(t: Tensor) -> list[int]:
    """Of the dimensions where a stride means something."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size != 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradient(n: int, dtype: torch.dtype, isa: str) -> None:
    x = torch.randn(n).to(dtype).requires_grad_()
    dy = torch.randn(n).to(dtype)
    y = relu(x)
    assert same_bits(y, reference(x.detach()))
    (dx,) = torch.autograd.grad(y, x, dy)
    assert same_bits(dx, torch.where(x.detach() > 0, dy, torch.zeros_like(dy)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype: torch.dtype, isa: str) -> None:
    info = torch.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), info.max, info.min, info.tiny]
    values += [-info.tiny, info.smallest_normal / 2, -info.smallest_normal / 2]
    x = torch.tensor(values * 3, dtype=dtype, requires_grad=True)  # long enough for full vectors and a tail
    mine, theirs = relu(x), F.relu(x)
    assert same_bits(mine, theirs)
    dy = torch.arange(1, len(x) + 1, dtype=dtype)
    (got,), (want,) = torch.autograd.grad(mine, x, dy), torch.autograd.grad(theirs, x, dy)
    assert same_bits(got, want)
    assert got[6] == dy[6]  # the gradient passes at NaN
    assert got[0] == 0  # and not at 0


LAYOUTS = {
    "transposed": lambda: torch.randn(5, 7).t(),
    "every other": lambda: torch.randn(11, 14)[:, ::2],
    "misaligned": lambda: torch.randn(70)[1:],
    "expanded": lambda: torch.randn(5, 1).expand(5, 6),
    "0-d": lambda: torch.randn(()),
    "empty": lambda: torch.randn(3, 0, 2),
    "size-1 dimensions with odd strides": lambda: torch.randn(9, 4)[::3][:1],
    "channels_last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "permuted with gaps": lambda: torch.randn(4, 6, 8).permute(2, 0, 1)[::2],
    "nine dimensions": lambda: torch.randn([2] * 9),
    "nine dimensions permuted": lambda: torch.randn([2] * 9).permute(8, 7, 6, 5, 4, 3, 2, 1, 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", ["contiguous", "expanded"])
def test_layouts_equal_torch(layout: str, grad_layout: str) -> None:
    x = LAYOUTS[layout]().requires_grad_()
    dy = torch.randn(x.shape) if grad_layout == "contiguous" else torch.tensor(2.0).expand(x.shape)
    mine, theirs = relu(x), F.relu(x)
    assert same_bits(mine, theirs)
    assert strides(mine) == strides(theirs)
    (got,), (want,) = torch.autograd.grad(mine, x, dy), torch.autograd.grad(theirs, x, dy)
    assert same_bits(got, want)
    with torch.no_grad():
        plain = relu(x)
    assert same_bits(plain, theirs)
    assert strides(plain) == strides(theirs)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("grad", [False, True])
def test_inplace(layout: str, grad: bool) -> None:
    source = LAYOUTS[layout]()
    base = source.clone().requires_grad_() if grad else source
    x = base * 1 if grad else base
    want = F.relu(x.detach().clone())
    version = x._version
    result = relu(x, inplace=True)
    assert result is x
    assert x._version > version
    assert same_bits(x.detach(), want)
    if grad:
        (got,) = torch.autograd.grad(x, base, torch.ones_like(x))
        assert torch.equal(got, (base.detach() > 0).to(got.dtype))


def test_inplace_keeps_what_lies_between_strided_elements() -> None:
    base = -torch.ones(4, 6)
    relu(base[:, ::2], inplace=True)
    assert torch.equal(base, torch.tensor([0.0, -1.0]).repeat(4, 3))


def test_inplace_on_a_view_reaches_the_gradient_of_its_base() -> None:
    leaf = torch.randn(4, 4, requires_grad=True)
    base = leaf * 1
    relu(base[0], inplace=True)
    base.sum().backward()
    want = torch.ones(4, 4)
    want[0] = (leaf[0] > 0).float()
    assert torch.equal(leaf.grad, want)


def test_inplace_invalidates_what_backward_had_saved() -> None:
    x = torch.randn(4, requires_grad=True)
    y = x.exp()  # saves its result
    relu(y.detach(), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("view", [False, True])
def test_inplace_on_a_leaf_raises_and_writes_nothing(view: bool) -> None:
    x = torch.full((3,), -1.0, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        relu(x[:2] if view else x, inplace=True)
    assert torch.equal(x.detach(), torch.full((3,), -1.0))


def test_inplace_on_shared_memory_raises() -> None:
    with pytest.raises(RuntimeError, match="single memory location"), torch.no_grad():
        relu(torch.randn(1).expand(3), inplace=True)


def test_inplace_in_and_out_of_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.tensor([-1.0, 2.0])
        assert relu(x, inplace=True) is x
        assert x.tolist() == [0.0, 2.0]
    with pytest.raises(RuntimeError, match="inference tensor"):
        relu(x, inplace=True)
    assert relu(x).tolist() == [0.0, 2.0]


def test_modifying_the_result_before_backward_raises() -> None:
    x = torch.randn(4, requires_grad=True)
    y = relu(x)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def _away_from_zero(*shape: int) -> Tensor:
    x = torch.randn(*shape, dtype=torch.float64)
    return (x + x.sign() * 0.1).requires_grad_()


def test_gradcheck(isa: str) -> None:
    assert torch.autograd.gradcheck(relu, _away_from_zero(4, 5), check_batched_grad=True)
    assert torch.autograd.gradcheck(lambda x: relu(x * 1, inplace=True), _away_from_zero(3, 3))


def test_gradgradcheck() -> None:
    assert torch.autograd.gradgradcheck(lambda x: relu(x) * x, _away_from_zero(4, 5), check_batched_grad=True)


def test_second_derivative_passes_through_the_mask() -> None:
    x = torch.randn(10, requires_grad=True)
    (first,) = torch.autograd.grad((relu(x) ** 3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(second, 6 * x.clamp_min(0).detach())


def test_no_gradient_wanted_makes_no_graph() -> None:
    x = torch.randn(3)
    assert relu(x).grad_fn is None
    with torch.no_grad():
        assert not relu(x.requires_grad_()).requires_grad
    assert relu(x).grad_fn is not None


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_does_not_depend_on_the_thread_count(dtype: torch.dtype) -> None:
    x, dy = torch.randn(200_001).to(dtype).requires_grad_(), torch.randn(200_001).to(dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = relu(x)
            results.append((y.detach(), *torch.autograd.grad(y, x, dy)))
    finally:
        torch.set_num_threads(threads)
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dx, results[0][1])


@pytest.mark.parametrize("bad", [3.0, None, [1.0]])
def test_no_tensor_is_a_type_error(bad: object) -> None:
    with pytest.raises(TypeError):
        relu(bad)  # type: ignore[arg-type]
    with pytest.raises((TypeError, AttributeError)):
        F.relu(bad)
