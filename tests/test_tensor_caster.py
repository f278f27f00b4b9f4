"""How tensors are passed to the compiled module: what it reads, and that the rest is an error, not a
crash."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def rectify(x: Tensor) -> Tensor:
    """The binding itself, without the checks of the Python layer."""
    out = torch.empty(x.shape, dtype=x.dtype)
    _dispatch.cpu.relu_forward(x, out)
    return out


class Tagged(Tensor):
    pass


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(9, 4)[::3][:1],
        torch.randn(3, 9)[:, ::3][:1, :1],
        torch.randn(70)[1:],
        torch.randn(()),
        torch.randn(0, 3),
        torch.randn(3, 0),
        torch.randn([1, 2] * 4),
        torch.nn.Parameter(torch.randn(3)),
        torch.randn(3, requires_grad=True),
        torch.randn(3).as_subclass(Tagged),
    ],
    ids=lambda x: f"{type(x).__name__}{tuple(x.shape)}{x.stride()}",
)
def test_every_layout_is_read(x: Tensor) -> None:
    assert torch.equal(rectify(x), x.detach().clamp_min(0).as_subclass(Tensor))


def test_types_alternate_and_are_not_confused() -> None:
    kinds = [type(f"Kind{i}", (Tensor,), {}) for i in range(6)]  # more types than the cache holds
    for _ in range(3):
        for kind in [Tensor, torch.nn.Parameter, *kinds]:
            x = torch.randn(5)
            wrapped = torch.nn.Parameter(x) if kind is torch.nn.Parameter else x.as_subclass(kind)
            assert torch.equal(rectify(wrapped), x.clamp_min(0))
            with pytest.raises(TypeError):
                rectify_raw(object())


def rectify_raw(x: object) -> None:
    _dispatch.cpu.relu_forward(x, torch.empty(1))


@pytest.mark.parametrize("x", [None, 1.0, [1.0], "x", torch.Tensor, torch.Size([1]), memoryview(b"1234")])
def test_no_tensor_is_a_type_error(x: object) -> None:
    with pytest.raises(TypeError):
        rectify_raw(x)


def test_storage_resized_to_zero() -> None:
    x = torch.randn(4)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"shape \(4,\) has no memory"):
        rectify_raw(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FakeTensorMode().from_tensor(torch.randn(3)),
        lambda: torch._efficientzerotensor(3),
        lambda: torch._to_functional_tensor(torch.randn(3)),
        lambda: torch.empty(3, device="meta"),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.eye(3).to_mkldnn(),
    ],
    ids=["fake", "zero", "functional", "meta", "sparse", "csr", "mkldnn"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_tensors_without_plain_memory_are_errors(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((RuntimeError, BufferError, ValueError)):
        rectify_raw(make())


def test_too_many_dimensions() -> None:
    with pytest.raises(RuntimeError, match="9 dimensions, kernels take at most 8"):
        rectify_raw(torch.randn([1] * 9))


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (torch.randn(3), torch.empty(4), r"relu: output has shape \(4,\), expected \(3,\)"),
        (torch.randn(3), torch.empty(3, 1), r"relu: output has shape \(3, 1\), expected \(3,\)"),
        (torch.randn(()), torch.empty(1), r"relu: output has shape \(1,\), expected \(\)"),
        (torch.randn(3), torch.empty(3).double(), "relu: output has dtype float64, expected float32"),
        (torch.ones(3).long(), torch.ones(3).long(), "relu: input has dtype int64, expected a floating"),
        (torch.randn(6)[::2], torch.empty(3), "relu: input must be contiguous"),
        (torch.ones(3) > 0, torch.empty(3), "dtype bool"),
        (torch.ones(3) * 1j, torch.empty(3), "do not take tensors of dtype complex64"),
    ],
)
def test_messages_name_op_expectation_and_what_was_given(x: Tensor, out: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        _dispatch.cpu.relu_forward(x, out)
