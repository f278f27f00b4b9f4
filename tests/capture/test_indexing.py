"""Ops that read and write at indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from against_torch import assert_as_torch
from fastnn import _dispatch
from fastnn._dispatch import Unsupported
from fastnn.capture.ir import Storage, View, contiguous_strides
from fastnn.capture.lowering.table import ERRORS, RULES, Lowering, lower

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

aten = torch.ops.aten
FLOATS = [torch.float32, torch.float64]
ROWS = 19


def below(n: int, *shape: int) -> Tensor:
    return torch.randint(n, shape)


def every(n: int, *shape: int) -> Tensor:
    """Positive and negative indices."""
    return torch.randint(-n, n, shape)


def _first_word(case: str) -> str:
    return case.replace(",", "").split()[0]


READS: dict[str, Callable[[Tensor], object]] = {
    "gather a column": lambda x: aten.gather(x, 1, below(x.shape[1], len(x), 1)),
    "gather fewer rows": lambda x: aten.gather(x, -1, below(x.shape[1], 3, 5)),
    "gather along rows": lambda x: aten.gather(x, 0, below(len(x), 4, x.shape[1])),
    "gather, expanded index": lambda x: aten.gather(x, 1, below(x.shape[1], len(x), 1).expand(-1, 3)),
    "gather of transposed": lambda x: aten.gather(x.t(), 0, below(x.shape[1], len(x), 2).t()),
    "gather scalar": lambda x: aten.gather(x[0, 0], 0, torch.tensor(0)),
    "gather nothing": lambda x: aten.gather(x, 1, below(1, len(x), 0)),
    "index_select rows": lambda x: aten.index_select(x, 0, below(len(x), 31)),
    "index_select columns": lambda x: aten.index_select(x, 1, below(x.shape[1], 6)),
    "index_select by scalar": lambda x: aten.index_select(x, 0, torch.tensor(2)),
    "index_select of strided": lambda x: aten.index_select(x[:, ::2], 0, below(len(x), 8)[::2]),
    "index_select of a scalar": lambda x: aten.index_select(x[0, 0], 0, torch.tensor([0])),
    "embedding": lambda x: aten.embedding(x, below(len(x), 3, 4)),
    "embedding, padded": lambda x: aten.embedding(x, below(len(x), 5), 2),
    "embedding, one": lambda x: aten.embedding(x, torch.tensor(1)),
    "rows": lambda x: x[every(len(x), 40)],
    "rows in a table": lambda x: x[every(len(x), 3, 4)],
    "columns": lambda x: x[:, every(x.shape[1], 9)],
    "row and column": lambda x: x[torch.arange(len(x)), every(x.shape[1], len(x))],
    "outer product": lambda x: x[every(len(x), 4, 1), every(x.shape[1], 5)],
    "three": lambda x: x.view(-1, 1, x.shape[1])[every(4, 6), torch.tensor(0), every(2, 6)],
    "apart": lambda x: x.view(-1, 1, x.shape[1])[every(4, 6), :, every(2, 6)],
    "inside": lambda x: x.view(1, *x.shape, 1)[:, every(4, 6), every(2, 6)],
    "none": lambda x: x[below(1, 0)],
    "scalar index": lambda x: aten.index(x, [torch.tensor(-1)]),
}


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.bool])
@pytest.mark.parametrize("width", [2, 16, 37])
@pytest.mark.parametrize("case", READS)
def test_reading_by_index_gives_what_torch_gives(isa: str, case: str, width: int, dtype: torch.dtype) -> None:
    x = torch.randn(ROWS, width).mul(9).to(dtype) if dtype != torch.bool else torch.rand(ROWS, width) < 0.5
    op = _first_word(case) if _first_word(case) in ERRORS else "index"
    assert_as_torch(lambda: READS[case](x), op)


def _scattered(x: Tensor) -> Tensor:
    """Indices without duplicates."""
    return torch.stack([torch.randperm(x.shape[1])[:2] for _ in range(len(x))])


WRITES: dict[str, Callable[[Tensor], object]] = {
    "scatter": lambda x: aten.scatter(x, 1, _scattered(x), torch.ones(len(x), 5, dtype=x.dtype)),
    "scatter expanded": lambda x: aten.scatter(x, 1, _scattered(x), x[:1, :1].expand(len(x), 2)),
    "scatter fewer rows": lambda x: aten.scatter_(x, -1, _scattered(x)[:3], torch.zeros_like(x)),
    "scatter a value": lambda x: aten.scatter_(x, 1, _scattered(x), 3.5),
    "scatter in columns": lambda x: aten.scatter_(x.t(), 0, _scattered(x).t(), 3.5),
    "scatter nothing": lambda x: aten.scatter(x, 1, below(1, 0, 2), x),
    "scatter_add": lambda x: aten.scatter_add(x, 1, below(x.shape[1], len(x), 2), torch.randn_like(x)),
    "scatter_add rows": lambda x: aten.scatter_add_(x, 0, below(3, *x.shape), torch.randn_like(x)),
    "scatter_add, expanded": lambda x: aten.scatter_add(
        x, 1, below(x.shape[1], len(x), 1), x[:1, :1].expand(len(x), 1)
    ),
    "scatter_add scalars": lambda x: aten.scatter_add(x[0, 0], 0, torch.tensor(0), x[1, 1]),
    "index_add rows": lambda x: aten.index_add(x, 0, below(4, 40), torch.randn(40, x.shape[1]).to(x)),
    "index_add columns": lambda x: aten.index_add_(x, 1, below(2, 5), torch.randn(len(x), 5).to(x)),
    "index_add with alpha": lambda x: aten.index_add(x, 0, below(4, 8), torch.ones_like(x)[:8], alpha=-2),
    "index_copy": lambda x: aten.index_copy(x, 0, torch.randperm(len(x))[:4], torch.ones_like(x)[:4]),
    "index_fill": lambda x: aten.index_fill(x, 1, every(x.shape[1], 3), -1.5),
    "index_fill_": lambda x: aten.index_fill_(x, 0, every(len(x), 3), torch.tensor(2.0, dtype=x.dtype)),
    "put rows": lambda x: aten.index_put(x, [torch.randperm(len(x))[:4] - 3], torch.ones_like(x)[:4]),
    "put one value": lambda x: aten.index_put_(x, [every(len(x), 9)], torch.tensor(7.0, dtype=x.dtype)),
    "put columns": lambda x: aten.index_put_(x, [None, every(x.shape[1], 1)], torch.ones_like(x)[:, :1]),
    "put row and column": lambda x: aten.index_put_(
        x, [torch.arange(len(x)), every(x.shape[1], len(x))], torch.randn(len(x)).to(x)
    ),
    "add rows": lambda x: aten.index_put(x, [every(3, 33)], torch.randn(33, x.shape[1]).to(x), True),
    "add row and column": lambda x: aten.index_put_(
        x, [every(3, 50), every(2, 50)], torch.randn(50).to(x), True
    ),
    "add expanded": lambda x: aten.index_put_(x, [every(3, 50)], torch.ones(1, dtype=x.dtype), True),
    "add columns": lambda x: aten.index_put(x, [None, every(2, 7)], torch.randn(len(x), 7).to(x), True),
    "add apart": lambda x: aten.index_put(
        x.view(len(x), 1, -1), [every(3, 5), None, every(2, 5)], torch.randn(5, 1).to(x), True
    ),
    "embedding backward": lambda x: aten.embedding_dense_backward(x, below(6, len(x)), 7, 2, False),
    "embedding backward, table": lambda x: aten.embedding_dense_backward(
        x.expand(2, *x.shape), below(6, 2, len(x)), 7, -1, False
    ),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [2, 16, 37])
@pytest.mark.parametrize("case", WRITES)
def test_writing_by_index_gives_what_torch_gives(isa: str, case: str, width: int, dtype: torch.dtype) -> None:
    x = torch.randn(ROWS, width, dtype=dtype)
    x[0, 0], x[1, 0] = torch.nan, torch.inf
    # Sums of few values, which torch adds in an order of its own.
    exact = "add" not in case and "backward" not in case
    op = _first_word(case) if case[0] in "sie" else "index_put"
    assert_as_torch(lambda: WRITES[case](x), op, exact=exact, rounding=8)


@pytest.mark.parametrize(("dtype", "value"), [(torch.int64, 1), (torch.bool, True)])
def test_one_hot_gives_what_torch_gives(isa: str, dtype: torch.dtype, value: float) -> None:
    zeros, index = torch.zeros(9, 5, dtype=dtype), below(5, 9, 1)
    assert_as_torch(lambda: aten.scatter_(zeros, 1, index, value), "scatter_")
    if dtype == torch.int64:
        ones = torch.ones(9, 3, dtype=dtype)
        assert_as_torch(lambda: aten.scatter_add_(zeros, 1, index.expand(-1, 3), ones), "scatter_add_")


def run(name: str, outs: list[Tensor], ins: list[Tensor], numbers: list[float], code: list[int]) -> None:
    _dispatch.cpu.testing.run_instruction(name, [*outs, *ins], numbers, code)


@pytest.mark.parametrize("width", [1, 3, 256])
def test_sums_do_not_depend_on_threads(isa: str, width: int) -> None:
    count, rows, flag = 70_000 // width, 40, torch.empty(1, dtype=torch.int64)
    source, index = torch.randn(count, width), below(rows, count)
    along_rows = index[:, None].expand(count, width)
    columns = below(width, count)[:, None].expand(count, width)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results = [torch.zeros(rows, width) for _ in range(3)]
            run("index_add", [results[0], flag], [source, along_rows], [1.5], [1, 0, ~0, 1])
            run("embedding_add", [results[1]], [source, along_rows], [], [1, 0, ~0, 1, 7])
            run("index_put_add", [results[2], flag], [source, along_rows, columns], [1.0], [2, 1, ~0, ~1])
            y = torch.zeros(count, width)
            run("index", [y, flag], [results[0], along_rows], [], [1, 1, ~0, 1])
            seen.append([*results, y])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0][3], seen[0][0][index])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


OUTSIDE: dict[str, Callable[[Tensor, int], object]] = {
    "gather": lambda x, bad: aten.gather(x, 1, torch.tensor([[0, bad]])),
    "index_select": lambda x, bad: aten.index_select(x, 0, torch.tensor([0, bad, 1])),
    "index_select of columns": lambda x, bad: aten.index_select(x, 1, torch.tensor([0, bad, 1])),
    "index_select in the middle": lambda x, bad: aten.index_select(x[:, :, None], 1, torch.tensor([0, bad])),
    "index_select of a vector": lambda x, bad: aten.index_select(x[0], 0, torch.tensor([0, bad])),
    "embedding": lambda x, bad: aten.embedding(x, torch.tensor([1, bad])),
    "index": lambda x, bad: x[torch.tensor([0, bad])],
    "index of both": lambda x, bad: x[torch.tensor([0, 1]), torch.tensor([0, bad])],
    "scatter": lambda x, bad: aten.scatter(x, 0, torch.tensor([[bad, 0]]), x),
    "scatter_add": lambda x, bad: aten.scatter_add(x, 0, torch.tensor([[0], [bad]]), x),
    "index_add": lambda x, bad: aten.index_add(x, 0, torch.tensor([1, bad]), x[:2]),
    "index_add of a vector": lambda x, bad: aten.index_add(x[0], 0, torch.tensor([1, bad]), x[0, :2]),
    "index_copy": lambda x, bad: aten.index_copy(x, 0, torch.tensor([1, bad]), x[:2]),
    "index_put": lambda x, bad: aten.index_put(x, [torch.tensor([1, bad])], x[:2]),
    "index_put_add": lambda x, bad: aten.index_put(x, [torch.tensor([1, bad])], x[:2], True),
}


class _Record(TorchDispatchMode):
    """The instructions of ops whose indices torch would refuse: torch gets other ones."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, low = f"{func._schema.name[6:]}.{func._overloadname}", Lowering()
        if name not in RULES:
            return func(*args, **(kwargs or {}))
        out = func(*[_clamped(a) for a in args], **(kwargs or {}))
        lower(low, name, _swapped(out), _swapped(list(args)), {})
        self.nodes += low.nodes
        return out


def _swapped(x: Any) -> Any:
    if isinstance(x, Tensor):
        storage = Storage(x.untyped_storage().nbytes(), x)
        return View(storage, x.storage_offset(), tuple(x.shape), x.stride(), x.dtype)
    return [_swapped(e) for e in x] if isinstance(x, list) else x


def _clamped(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clamp(0, 1) if x.dtype == torch.int64 else x
    return [_clamped(e) for e in x] if isinstance(x, list) else x


@pytest.mark.parametrize("bad", [7, -1, -30, 2**62])
@pytest.mark.parametrize("case", OUTSIDE)
def test_an_index_outside_is_reported(isa: str, case: str, bad: int) -> None:
    x = torch.randn(4, 3)
    with _Record() as record:
        OUTSIDE[case](x, bad)
    (node,) = [n for n in record.nodes if n.name in ERRORS]

    def tensor(view: View) -> Tensor:
        if view.storage.tensor is None:
            view.storage.tensor = torch.zeros(view.numel, dtype=view.dtype)
        base = view.storage.tensor.untyped_storage()
        return torch.empty(0, dtype=view.dtype).set_(base, view.offset, view.shape, view.strides)

    run(node.name, [tensor(v) for v in node.outs], [tensor(v) for v in node.ins], node.numbers, node.code)
    flag = int(tensor(node.outs[-1]).item())
    if bad == -1 and node.code[1]:
        assert flag == -1
        return
    assert flag == (bad if bad != -1 else torch.iinfo(torch.int64).min)
    error = ERRORS[node.name](node, bad)
    with pytest.raises((IndexError, RuntimeError)) as theirs:
        OUTSIDE[case](x, bad)
    assert type(error) is theirs.type
    said = str(theirs.value).splitlines()[0]
    if case == "index of both":  # outside both dimensions: the index does not tell which one
        assert str(error)[:30] == said[:30]
    else:
        assert str(error) == said


def test_what_is_left_to_torch() -> None:
    view = View(Storage(48), 0, (4, 3), contiguous_strides((4, 3)), torch.float32)
    mask = View(Storage(4), 0, (4,), (1,), torch.bool)
    short = View(Storage(4), 0, (4,), (1,), torch.int32)
    row = View(Storage(32), 0, (4,), (1,), torch.int64)
    for args in ((view, [mask]), (view, [short]), (view, [None])):
        with pytest.raises(Unsupported):
            lower(Lowering(), "index.Tensor", view, args, {})
    with pytest.raises(Unsupported, match="shares memory"):
        lower(Lowering(), "index_put_.default", view, (view, [row], view), {})
    low = Lowering()
    with pytest.raises(Unsupported):
        lower(low, "scatter.src", view, (view, 0, short, view), {})
    assert not low.nodes
