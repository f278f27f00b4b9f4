"""Ops that move values without computing."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from against_torch import assert_as_torch
from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

aten = torch.ops.aten
DTYPES = [torch.float32, torch.float64, torch.int64, torch.bool]


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Distinct if the dtype allows it, with a NaN and an infinity."""
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    x = torch.randperm(max(torch.Size(shape).numel(), 1))[: torch.Size(shape).numel()].view(shape).to(dtype)
    if dtype.is_floating_point and x.numel() > 3:
        x.view(-1)[1], x.view(-1)[2] = torch.nan, torch.inf
    return x


def run(name: str, outs: list[Tensor], ins: list[Tensor], numbers: list[float], code: list[int]) -> None:
    _dispatch.cpu.testing.run_instruction(name, [*outs, *ins], numbers, code)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (17,), (5, 1), (16, 16), (33, 70), (3, 18, 35), (2, 3, 4, 5)])
def test_copy_between_any_layouts(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = values(*shape, dtype=dtype)
    orders = list(itertools.permutations(range(len(shape))))
    for into, of in itertools.product(orders[:8], orders[:8]):
        source = x.permute(of).contiguous().permute(torch.argsort(torch.tensor(of)).tolist())
        memory = torch.zeros([shape[d] for d in into], dtype=dtype)
        y = memory.permute(torch.argsort(torch.tensor(into)).tolist())
        run("copy", [y], [source], [], [])
        assert torch.equal(y.nan_to_num(-1), x.nan_to_num(-1)) if dtype != torch.bool else torch.equal(y, x)


def test_copy_leaves_what_is_between(isa: str) -> None:
    memory, x = torch.full((40, 50), -1.0), values(20, 17)
    run("copy", [memory[::2, 3:37:2]], [x], [], [])
    expected = torch.full((40, 50), -1.0)
    expected[::2, 3:37:2] = x
    assert torch.equal(memory.nan_to_num(-2), expected.nan_to_num(-2))
    run("fill", [memory[1::2, ::7]], [], [5.0], [])
    expected[1::2, ::7] = 5
    assert torch.equal(memory.nan_to_num(-2), expected.nan_to_num(-2))


def test_copy_does_not_depend_on_threads(isa: str) -> None:
    before, x = torch.get_num_threads(), torch.randn(3, 300, 401)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for source in (x, x.transpose(1, 2), x.permute(2, 0, 1), x[:, ::3]):
                y = torch.empty(source.shape)
                run("copy", [y], [source], [], [])
                assert torch.equal(y, source)
                run("flip", [y], [source], [], [0b101])
                assert torch.equal(y, source.flip(0, 2))
    finally:
        torch.set_num_threads(before)


def test_dimensions_of_size_0(isa: str) -> None:
    y = torch.empty(3, 0, 5)
    run("copy", [y], [torch.empty(5, 0, 3).permute(2, 1, 0)], [], [])
    run("flip", [y], [y], [], [7])
    run("fill", [y], [], [1.0], [])


CASES: dict[str, Callable[[Tensor], object]] = {
    "cat rows": lambda x: aten.cat([x, x[:3], x[1:]]),
    "cat columns": lambda x: aten.cat([x, x[:, ::2], x.new_empty(0), x[:, 1:2]], -1),
    "cat of transposed": lambda x: aten.cat([x.t(), x.t()], 1),
    "cat of expanded": lambda x: aten.cat([x[:1].expand(5, -1), x]),
    "stack": lambda x: aten.stack([x, x, x], 1),
    "stack last": lambda x: aten.stack([x.t(), x.t()], -1),
    "repeat": lambda x: aten.repeat(x, [2, 3]),
    "repeat in front": lambda x: aten.repeat(x, [2, 1, 1, 3]),
    "repeat no times": lambda x: aten.repeat(x, [0, 3]),
    "flip": lambda x: aten.flip(x, [0]),
    "flip both": lambda x: aten.flip(x.t(), [-1, 0]),
    "roll": lambda x: aten.roll(x, [2], [0]),
    "roll both": lambda x: aten.roll(x, [-1, 9], [0, -1]),
    "roll flat": lambda x: aten.roll(x, [5]),
    "constant_pad_nd": lambda x: aten.constant_pad_nd(x, [1, 2, 0, 3], 1.0),
    "constant_pad_nd, negative": lambda x: aten.constant_pad_nd(x, [-1, 2, 1, -1]),
    "constant_pad_nd nothing": lambda x: aten.constant_pad_nd(x, [0, 0]),
    "tril": lambda x: aten.tril(x),
    "tril far": lambda x: aten.tril(x, 100),
    "triu": lambda x: aten.triu(x.t(), -1),
    "triu of matrices": lambda x: aten.triu(x.new_ones(2, 3, 4, 5), 1),
    "tril in place": lambda x: aten.tril_(x.t(), -2),
    "select_backward": lambda x: aten.select_backward(x, [*x.shape, 4], -1, -2),
    "slice_backward": lambda x: aten.slice_backward(x, [2 * len(x), x.shape[1]], 0, 1, 2**63 - 1, 2),
    "slice_backward of some": lambda x: aten.slice_backward(x, [len(x), 50], 1, -48, x.shape[1] + 2, 1),
    "slice_backward of all": lambda x: aten.slice_backward(x, list(x.shape), 1, 0, 2**63 - 1, 1),
    "diagonal_backward": lambda x: aten.diagonal_backward(x[0], [x.shape[1] + 1] * 2, 1, 0, 1),
    "diag_embed": lambda x: aten.diag_embed(x, -1, 0, 2),
    "select_scatter": lambda x: aten.select_scatter(x, x[0], 0, -1),
    "slice_scatter": lambda x: aten.slice_scatter(x, x[:1], 0, 1, 2),
    "diagonal_scatter": lambda x: aten.diagonal_scatter(x, x.new_ones(min(x.shape))),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (4, 16), (17, 33)])
@pytest.mark.parametrize("case", CASES)
def test_moves_of_memory_give_what_torch_gives(
    isa: str, case: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x = values(*shape, dtype=dtype)
    assert_as_torch(lambda: CASES[case](x), case.replace(",", "").split()[0])


@pytest.mark.parametrize("shape", [(0, 7), (4, 0)])
@pytest.mark.parametrize(
    "case", ["cat rows", "stack", "repeat", "flip", "roll flat", "constant_pad_nd", "tril"]
)
def test_moves_of_nothing(isa: str, case: str, shape: tuple[int, int]) -> None:
    x = torch.empty(shape)
    assert_as_torch(lambda: CASES[case](x), case.replace(",", "").split()[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_arange_gives_what_torch_gives(isa: str, dtype: torch.dtype) -> None:
    for bounds in ((17,), (-3, 100, 7), (3, 3)):
        assert_as_torch(lambda bounds=bounds: torch.arange(*bounds, dtype=dtype), "arange")
    if dtype.is_floating_point:
        assert_as_torch(lambda: torch.arange(0.5, 3, 0.1, dtype=dtype), "arange", exact=False, rounding=1)
