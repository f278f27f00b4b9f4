"""ReLU: values on every dtype, layout, CPU variant and with the CUDA kernels, gradients, in-place writes.

ReLU rounds nothing, so every comparison is exact: with the explicit float64 definition, and bit for bit
(including the sign of zero) with torch for layouts and edge cases.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES
from torch import Tensor

import fastnn
from every_kernel import assert_reproducible, emulating
from fastnn import _dispatch
from fastnn.functional import relu

# Around every vector length (2 to 32 lanes), a pack of 16 bytes, the work of one CUDA block, and beyond one
# and the grain at which threads are used.
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 1023, 4096, 8192, 100_003]


def reference(x: Tensor) -> Tensor:
    wide = x.double()
    return torch.where(wide < 0, 0.0, wide).to(x.dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.isnan(), b.isnan())  # the sign of NaN does not matter
        and torch.equal(a.nan_to_num(nan=7.0).signbit(), b.nan_to_num(nan=7.0).signbit())
        and torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))
    )


def strides(t: Tensor) -> list[int]:
    """The strides of dimensions where they matter."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size != 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradient(n: int, dtype: torch.dtype, every_device: torch.device) -> None:
    for offset in (0, 1, 3):
        x, dy = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
        x[:3] = torch.tensor([float("nan"), -0.0, float("inf")])[:n]
        memory = torch.full((n + offset,), -1.0, dtype=dtype, device=every_device)
        ours = memory[offset:].copy_(x).requires_grad_()
        upstream = dy.to(every_device)
        seen = fastnn.explain(lambda: torch.autograd.grad(relu(ours), ours, upstream)[0])  # noqa: B023
        if _dispatch.cpu is not None:
            assert {d.reason for d in seen.decisions} == {None}
        assert same_bits(seen.result.cpu(), torch.where(x <= 0, torch.zeros_like(dy), dy))
        y = relu(ours.detach())
        assert same_bits(y.cpu(), reference(x))
        relu(memory.detach()[offset:], inplace=True)
        assert same_bits(memory.detach()[offset:].cpu(), y.cpu())
        assert memory[:offset].eq(-1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_infinity_and_zero_are_torchs(dtype: torch.dtype, every_device: torch.device) -> None:
    info = torch.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), info.max, info.min, info.tiny]
    values += [-info.tiny, info.smallest_normal / 2, -info.smallest_normal / 2]
    # Long enough for full vectors and a tail.
    x = torch.tensor(values * 3, dtype=dtype, device=every_device, requires_grad=True)
    mine, theirs = relu(x), F.relu(x)
    assert same_bits(mine, theirs)
    dy = torch.arange(1, len(x) + 1, dtype=dtype, device=every_device)
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


def made(layout: str, device: torch.device) -> Tensor:
    with device:  # created on the device: a copy from the CPU would have no gaps
        return LAYOUTS[layout]()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", ["contiguous", "expanded"])
def test_layouts_equal_torch(layout: str, grad_layout: str, device: torch.device) -> None:
    x = made(layout, device).requires_grad_()
    dy = torch.randn(x.shape, device=device)
    if grad_layout == "expanded":
        dy = torch.tensor(2.0, device=device).expand(x.shape)
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
def test_in_place_it_writes_its_input(layout: str, grad: bool, device: torch.device) -> None:
    source = made(layout, device)
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


def test_inplace_keeps_what_is_between_strided_elements(device: torch.device) -> None:
    base = -torch.ones(4, 6, device=device)
    relu(base[:, ::2], inplace=True)
    assert torch.equal(base.cpu(), torch.tensor([0.0, -1.0]).repeat(4, 3))


def test_inplace_on_a_view_reaches_the_gradient_of_its_base(device: torch.device) -> None:
    leaf = torch.randn(4, 4, device=device, requires_grad=True)
    base = leaf * 1
    relu(base[0], inplace=True)
    base.sum().backward()
    want = torch.ones(4, 4, device=device)
    want[0] = (leaf[0] > 0).float()
    assert torch.equal(leaf.grad, want)


def test_inplace_invalidates_what_backward_had_saved(device: torch.device) -> None:
    x = torch.randn(4, device=device, requires_grad=True)
    y = x.exp()  # saves its result
    relu(y.detach(), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("view", [False, True])
def test_inplace_on_a_leaf_raises_and_writes_nothing(view: bool, device: torch.device) -> None:
    x = torch.full((3,), -1.0, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        relu(x[:2] if view else x, inplace=True)
    assert x.eq(-1.0).all()


def test_inplace_on_shared_memory_raises(device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="single memory location"), torch.no_grad():
        relu(torch.randn(1, device=device).expand(3), inplace=True)


def test_inplace_in_and_out_of_inference_mode(device: torch.device) -> None:
    with torch.inference_mode():
        x = torch.tensor([-1.0, 2.0], device=device)
        assert relu(x, inplace=True) is x
        assert x.tolist() == [0.0, 2.0]
    with pytest.raises(RuntimeError, match="inference tensor"):
        relu(x, inplace=True)
    assert relu(x).tolist() == [0.0, 2.0]


def test_modifying_the_result_before_backward_raises(device: torch.device) -> None:
    x = torch.randn(4, device=device, requires_grad=True)
    y = relu(x)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def _away_from_zero(device: torch.device, *shape: int) -> Tensor:
    x = torch.randn(*shape, dtype=torch.float64, device=device)
    return (x + x.sign() * 0.1).requires_grad_()


def test_gradients_pass_gradcheck(device: torch.device) -> None:
    assert torch.autograd.gradcheck(relu, _away_from_zero(device, 4, 5), check_batched_grad=True)
    assert torch.autograd.gradcheck(lambda x: relu(x * 1, inplace=True), _away_from_zero(device, 3, 3))


def test_second_derivatives_pass_gradgradcheck(device: torch.device) -> None:
    assert torch.autograd.gradgradcheck(
        lambda x: relu(x) * x, _away_from_zero(device, 4, 5), check_batched_grad=True
    )


def test_second_derivative_passes_through_the_mask(device: torch.device) -> None:
    x = torch.randn(10, device=device, requires_grad=True)
    (first,) = torch.autograd.grad((relu(x) ** 3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(second, 6 * x.clamp_min(0).detach())


def test_no_gradient_wanted_makes_no_graph(device: torch.device) -> None:
    x = torch.randn(3, device=device)
    assert relu(x).grad_fn is None
    with torch.no_grad():
        assert not relu(x.requires_grad_()).requires_grad
    assert relu(x).grad_fn is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype, device: torch.device) -> None:
    n = 20_001 if emulating() else 200_001
    x = torch.randn(n).to(dtype).to(device).requires_grad_()
    dy = torch.randn(n).to(dtype).to(device)

    def run() -> list[Tensor]:
        y = relu(x)
        return [y.detach(), *torch.autograd.grad(y, x, dy)]

    assert_reproducible(run, device)


@pytest.mark.parametrize("bad", [3.0, None, [1.0]])
def test_no_tensor_is_a_type_error(bad: object) -> None:
    with pytest.raises(TypeError):
        relu(bad)  # type: ignore[arg-type]
    with pytest.raises((TypeError, AttributeError)):
        F.relu(bad)
