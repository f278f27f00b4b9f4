"""Layer and batch normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from against_torch import Covered, assert_as_torch, assert_close
from fastnn import _dispatch
from fastnn.capture.ir import Storage, View
from fastnn.capture.lowering.table import Lowering, lower
from one_op import run_nodes

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

# Gradients of weights are sums over hundreds of rows, which torch adds in float32 one after the other.
ROUNDED: dict[str, Any] = {"exact": False, "rounding": 100}

DTYPES = [torch.float32, torch.float64]
aten = torch.ops.aten


def trained(module: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> None:
    """Forward and backward, with gradients of all kinds."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = x.detach().requires_grad_()
    y = (run or module)(x)
    y.backward(torch.randn(y.shape, dtype=y.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", ["both", "weight", "none"])
@pytest.mark.parametrize(
    ("shape", "over"),
    [((4, 3), 1), ((256, 64), 1), ((5, 7, 33), 2), ((1, 5000), 1), ((130, 17), 1), ((0, 6), 1), ((3, 2), 1)],
)
def test_layer_norm_gives_what_torch_gives(
    isa: str, shape: tuple[int, ...], over: int, affine: str, dtype: torch.dtype
) -> None:
    layer = nn.LayerNorm(
        shape[-over:], elementwise_affine=affine != "none", bias=affine == "both", dtype=dtype
    )
    x = torch.randn(shape, dtype=dtype) * 3 + 2
    assert_as_torch(lambda: trained(layer, x), "native_layer_norm", **ROUNDED)


def test_layer_norm_of_strided_and_of_some_gradients(isa: str) -> None:
    layer = nn.LayerNorm(6)
    x = torch.randn(6, 9)
    assert_as_torch(lambda: trained(layer, x, lambda x: layer(x.t())), "native_layer_norm", **ROUNDED)
    layer.weight.requires_grad_(False)
    assert_as_torch(lambda: trained(layer, x, lambda x: layer(x.t())), "native_layer_norm", **ROUNDED)
    layer.bias.requires_grad_(False)
    results = assert_as_torch(lambda: layer(x.t().requires_grad_()).sum().backward(), "native", **ROUNDED)
    assert [name for name, *_ in results if "norm" in name] == [
        "native_layer_norm.default",
        "native_layer_norm_backward.default",
    ]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_layer_norm_of_what_is_not_finite(isa: str, bad: float) -> None:
    x = torch.randn(5, 20)
    x[2, 19], x[3] = bad, 7.0
    with Covered() as mode:
        trained(nn.LayerNorm(20), x)
    norms = [result for result in mode.results if "layer_norm" in result[0]]
    assert len(norms) == 2
    for name, theirs, ours in norms:
        # torch's mean of a row that is not finite is NaN or infinite, depending on where the infinity is.
        assert_close(ours[0], theirs[0].detach(), **ROUNDED, name=name)


def test_layer_norm_far_from_zero(isa: str) -> None:
    """As mean square minus squared mean, the variance would cancel entirely."""
    x = torch.randn(64, 100) + 1000
    y, mean, rstd = torch.empty(64, 100), torch.empty(64), torch.empty(64)
    _dispatch.cpu.testing.run_instruction("layer_norm", [y, mean, rstd, x], [1e-5], [0, 0])
    exact = F.layer_norm(x.double(), (100,))
    theirs = (F.layer_norm(x, (100,)) - exact).square().mean().sqrt()
    assert (y - exact).square().mean().sqrt() <= 1.5 * theirs


SHAPES = [(4, 3), (256, 64), (33, 130), (7, 5, 9), (2, 20, 4, 5), (1, 3, 40), (3, 2, 2, 2, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_gives_what_torch_gives(
    isa: str, training: bool, shape: tuple[int, ...], affine: bool, dtype: torch.dtype
) -> None:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    layer = kind(shape[1], affine=affine, dtype=dtype).train(training)
    x = torch.randn(shape, dtype=dtype) * 3 + 2
    assert_as_torch(lambda: trained(layer, x), "native_batch_norm", **ROUNDED)


def test_batch_norm_without_running_statistics(isa: str) -> None:
    layer = nn.BatchNorm1d(17, track_running_stats=False)
    assert_as_torch(lambda: trained(layer, torch.randn(9, 17)), "native_batch_norm", **ROUNDED)


def test_batch_norm_of_other_layouts(isa: str) -> None:
    layer, x = nn.BatchNorm2d(6), torch.randn(3, 6, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    assert_as_torch(lambda: trained(layer, last), "native_batch_norm", **ROUNDED)
    assert_as_torch(lambda: trained(layer, x[..., ::2]), "native_batch_norm", **ROUNDED)
    rows = nn.BatchNorm1d(6)
    assert_as_torch(
        lambda: trained(rows, torch.randn(6, 8), lambda x: rows(x.t())),
        "native",
        **ROUNDED,
    )
    with Covered() as mode:
        layer(last.requires_grad_()).sum().backward()
    assert not mode.refused


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_batch_norm_of_what_is_not_finite(isa: str, bad: float) -> None:
    for x in (torch.randn(8, 20), torch.randn(8, 20, 3)):
        x[2, 19], x[:, 3] = bad, 0.0
        layer = nn.BatchNorm1d(20)
        assert_as_torch(lambda x=x, layer=layer: trained(layer, x), "native", **ROUNDED)


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0])
@pytest.mark.parametrize("shape", [(256, 40), (5, 3, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics(isa: str, dtype: torch.dtype, shape: tuple[int, ...], momentum: float) -> None:
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    running = [torch.randn(shape[1], dtype=dtype), torch.rand(shape[1], dtype=dtype)]
    ours = [t.clone() for t in running]
    y, mean, inverse = aten.native_batch_norm(x, None, None, *running, True, momentum, 1e-3)
    results = [torch.empty_like(t) for t in (y, mean, inverse)]
    _lowered("native_batch_norm.default", results, (x, None, None, *ours, True, momentum, 1e-3))
    for a, b in zip([*results, *ours], [y, mean, inverse, *running], strict=True):
        assert_close(a, b, exact=False, rounding=4, name="batch norm")


def _lowered(name: str, outs: list[Tensor], args: tuple[Any, ...]) -> None:
    def view(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        storage = Storage(x.untyped_storage().nbytes(), x)
        return View(storage, x.storage_offset(), tuple(x.shape), x.stride(), x.dtype)

    low = Lowering()
    assert lower(low, name, [view(out) for out in outs], tuple(view(a) for a in args), {})
    run_nodes(low.nodes, {})


@pytest.mark.parametrize(
    "op", ["_native_batch_norm_legit", "_batch_norm_with_update", "_batch_norm_no_update"]
)
def test_other_forms_of_batch_norm(isa: str, op: str) -> None:
    x, w, b, m, v = torch.randn(9, 6), torch.randn(6), torch.randn(6), torch.randn(6), torch.rand(6)
    training = [True] if op == "_native_batch_norm_legit" else []

    def run() -> None:
        y, mean, inverse, *reserve = getattr(aten, op)(x, w, b, m, v, *training, 0.1, 1e-5)
        if op == "_native_batch_norm_legit":
            aten._native_batch_norm_legit.no_stats(x, w, b, True, 0.1, 1e-5)
        elif op == "_batch_norm_with_update":
            aten.batch_norm_backward(y, x, w, m, v, mean, inverse, True, 1e-5, [True, False, True], *reserve)

    if op == "_native_batch_norm_legit":
        assert_as_torch(run, op, **ROUNDED)
    else:
        _without_reserve(run, op)


def _without_reserve(run: Callable[[], None], op: str) -> None:
    """The fourth result is an empty tensor."""
    with Covered() as mode:
        run()
    assert mode.results[0][0] == f"{op}.default"
    for name, theirs, ours in mode.results:
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            if b is not None and b.numel():
                assert_close(a, b, **ROUNDED, name=name)


@pytest.mark.parametrize("shape", [(300, 257), (60, 30, 40)])
def test_normalisation_does_not_depend_on_threads(isa: str, shape: tuple[int, ...]) -> None:
    x, dy = torch.randn(shape), torch.randn(shape)
    channels, rows = shape[1], x.flatten(0, -2).shape[0]
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            run, empty = _dispatch.cpu.testing.run_instruction, torch.empty_like
            y, mean, spread = empty(x), torch.empty(channels), torch.empty(channels)
            run("batch_norm", [y, mean, spread, x], [1e-5, 0.1], [1, 0, 0, 0])
            dx, dw, db = empty(x), torch.empty(channels), torch.empty(channels)
            run("batch_norm_backward", [dx, dw, db, dy, x, mean, spread], [1e-5], [1 | 2 | 4 | 16])
            lines, means, rstds = empty(x), torch.empty(rows), torch.empty(rows)
            run("layer_norm", [lines, means, rstds, x], [1e-5], [0, 0])
            width = shape[-1]
            dlines, dweight, dbias = empty(x), torch.empty(width), torch.empty(width)
            ins = [dy, x, means, rstds]
            run("layer_norm_backward", [dlines, dweight, dbias, *ins], [], [7, width])
            seen.append([y, mean, spread, dx, dw, db, lines, means, rstds, dlines, dweight, dbias])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
