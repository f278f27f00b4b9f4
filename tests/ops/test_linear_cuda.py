"""linear on CUDA: every kernel and layout against float64, on a GPU and on the emulator."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES, assert_close_sum
from torch import Tensor

import fastnn
import fastnn.functional as FF
from cuda_emulation import ORDERS, Emulation
from fastnn import _backend, _cuda_limits
from fastnn.ops.linear import ACTIVATIONS, torch_activation, torch_activation_gradient
from fastnn.ops.mlp import Layer, mlp

pytestmark = pytest.mark.skipif(_backend.cpu is None, reason="needs the compiled module")

SIXTEEN_BITS = (torch.bfloat16, torch.float16)

# M, N, K: degenerate; around tiles of 32, 64 and 128 and steps of 16 and 32; aligned for 128-bit copies and
# not; K long enough to be split. On the emulator, which has 16 multiprocessors, they reach every tile.
SHAPES = [
    (1, 1, 1),
    (0, 4, 3),
    (4, 0, 3),
    (4, 3, 0),
    (0, 0, 0),
    (7, 31, 33),
    (32, 32, 32),
    (33, 65, 15),
    (63, 17, 16),
    (64, 10, 300),
    (127, 7, 40),
    (129, 130, 300),
    (200, 200, 17),
    (256, 16, 64),
    (10, 3, 1000),
]


def make(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def place(t: Tensor, device: torch.device, layout: str = "contiguous") -> Tensor:
    """`t` on the device, in memory laid out as told, with NaN around it: what reads beside it shows."""
    rows, columns = t.shape
    if layout == "contiguous":
        return t.to(device, copy=True)
    if layout == "transposed":
        return t.t().contiguous().to(device).t()
    room, at = {
        "misaligned": ((rows, columns), None),
        "rows apart": ((rows, columns + 3), (slice(None), slice(3, None))),
        "rows and packs apart": ((rows, columns + 16), (slice(None), slice(8, columns + 8))),
        "both apart": ((2 * rows + 1, 3 * columns + 1), (slice(1, None, 2), slice(1, None, 3))),
    }[layout]
    flat = torch.full((room[0] * room[1] + 1,), float("nan"), dtype=t.dtype, device=device)
    whole = flat[1:].view(room) if at is None else flat[:-1].view(room)[at]
    return whole.copy_(t)


LAYOUTS = ["contiguous", "transposed", "misaligned", "rows apart", "rows and packs apart", "both apart"]


def check(
    device: torch.device,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    dy: Tensor,
    activation: str | None = None,
    layouts: Sequence[str] = ("contiguous",) * 3,
    rounding: float = 0.0,
) -> list[Tensor]:
    """Forward and gradients against float64; `rounding` is the relative error of one factor."""
    (m, k), n = x.shape, w.shape[0]
    ours = [place(t, device, layout).requires_grad_() for t, layout in zip((x, w), layouts, strict=False)]
    leaves = [*ours, None if b is None else b.to(device).requires_grad_()]
    wanted = [t for t in leaves if t is not None]

    def run() -> list[Tensor]:
        y = FF.linear(*leaves, activation)
        saved.append(y.grad_fn.saved_tensors[2])  # type: ignore[union-attr]
        return [y.detach(), *torch.autograd.grad(y, wanted, place(dy, device, layouts[2]))]

    saved: list[Tensor | None] = []
    seen = fastnn.explain(run)
    assert [(d.op, d.reason) for d in seen.decisions] == [("linear", None), ("linear_backward", None)]
    y, dx, dw, *db = (t.cpu() for t in seen.result)
    x64, w64, dy64 = x.double(), w.double(), dy.double()
    z, magnitude = x64 @ w64.t(), x64.abs() @ w64.abs().t()
    if b is not None:
        z, magnitude = z + b.double(), magnitude + b.double().abs()
    smooth = activation not in (None, "relu")
    # The magnitudes count what a few eps more come from: see assert_close_sum. Slopes are up to 1.13.
    more = 1 + 2 * rounding / torch.finfo(torch.float32).eps
    expected = torch_activation(z, activation)
    assert_close_sum(y, expected, more * (1.2 * magnitude + 1 if smooth else magnitude), k)

    g, g_magnitude = dy64, dy64.abs()
    if activation is not None:
        assert saved[0] is not None
        g = torch_activation_gradient(dy64, saved[0].detach().cpu().double(), activation)
        if smooth:
            # In float64 the reference errs, too: by 17 eps for gelu_tanh. 16-bit types round g.
            g_magnitude = 8 * dy64.abs()
            if x.dtype in SIXTEEN_BITS:
                g_magnitude = dy64.abs() * (torch.finfo(x.dtype).eps / torch.finfo(torch.float32).eps)
        else:
            g_magnitude = g.abs()
    assert_close_sum(dx, g @ w64, more * (g_magnitude @ w64.abs()), n)
    assert_close_sum(dw, g.t() @ x64, more * (g_magnitude.t() @ x64.abs()), m)
    if b is not None:
        assert_close_sum(db[0], g.sum(0), g_magnitude.sum(0), m)
    return seen.result


def problem(
    m: int, n: int, k: int, dtype: torch.dtype, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    return make((m, k), dtype), make((n, k), dtype), make((n,), dtype) if bias else None, make((m, n), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, int, int], dtype: torch.dtype, cuda_device: torch.device) -> None:
    check(cuda_device, *problem(*shape, dtype), "relu")
    check(cuda_device, *problem(*shape, dtype, bias=False))
    if max(shape) < 129:
        check(cuda_device, *problem(*shape, dtype))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1500, 1403, 300), (2048, 1024, 256), (64, 128, 50_000), (9000, 40, 64)])
def test_large_shapes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(torch.device("cuda"), *problem(*shape, dtype), "relu")
    check(torch.device("cuda"), *problem(*shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, cuda_device: torch.device) -> None:
    for shape in ((40, 48, 72), (70, 30, 200)):
        for position in range(3):
            layouts = ["contiguous"] * 3
            layouts[position] = layout
            check(cuda_device, *problem(*shape, dtype), "gelu" if position == 2 else None, layouts)
        check(cuda_device, *problem(*shape, dtype), "relu", [layout] * 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations(activation: str, dtype: torch.dtype, cuda_device: torch.device) -> None:
    check(cuda_device, *problem(33, 40, 20, dtype), activation)
    check(cuda_device, *problem(70, 9, 200, dtype), activation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_activations_far_out(activation: str, dtype: torch.dtype, cuda_device: torch.device) -> None:
    # Errors as activation_math.h states them, twice as large for what is not an exponential alone.
    z = torch.cat([torch.linspace(-40, 40, 4001, dtype=torch.float64), torch.tensor([0.0, -0.0])]).to(dtype)
    y = FF.linear(
        z.to(cuda_device)[:, None], torch.ones(1, 1, dtype=dtype, device=cuda_device), None, activation
    )
    wide = z.double()
    want = torch_activation(wide, activation)
    if activation in ("gelu", "gelu_tanh"):  # torch's own lose digits on the left
        cdf = torch.special.erfc(-wide / 2**0.5) / 2
        w = (8 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
        want = wide * (cdf if activation == "gelu" else torch.sigmoid(w))
    eps = torch.finfo(dtype).eps
    bound = 8 * eps * (1 + wide.square()) * want.abs() + (1e-37 if dtype == torch.float32 else 1e-300)
    assert bool(((y[:, 0].cpu().double() - want).abs() <= bound).all())
    special = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype, device=cuda_device)
    got = FF.linear(special[:, None], torch.ones(1, 1, dtype=dtype, device=cuda_device), None, activation)
    expected = torch_activation(special.cpu().double(), activation)
    torch.testing.assert_close(got[:, 0].cpu().double(), expected, equal_nan=True)


@pytest.fixture(params=["tf32", "tf32_3x"])
def tensor_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """float32 on the tensor cores, however small the product."""
    kind: str = request.param
    monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_FROM", 0)
    monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_SIDE", 0)
    monkeypatch.setattr(_cuda_limits, "_tf32_allowed", lambda: kind == "tf32")
    return kind


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (4, 3, 0), (33, 65, 15), (129, 66, 130), (64, 10, 300), (128, 64, 48)]
)
def test_float32_on_tensor_cores(
    tensor_cores: str, shape: tuple[int, int, int], cuda_device: torch.device
) -> None:
    # A factor of tf32 is rounded by up to 2^-11; three products leave 3 * 2^-22 in all, see csrc/gemm/cuda.
    rounding = 2.0**-11 if tensor_cores == "tf32" else 1.5 * 2.0**-22
    for layouts in (["contiguous"] * 3, ["transposed"] * 3, ["misaligned"] * 3):
        check(cuda_device, *problem(*shape, torch.float32), None, layouts, rounding)
    check(cuda_device, *problem(*shape, torch.float32), "relu", rounding=rounding)
    if tensor_cores == "tf32_3x" and shape[2] >= 15:  # and no worse than float32's own sums
        check(cuda_device, *problem(*shape, torch.float32))


def test_tf32_is_rounded(tensor_cores: str, cuda_device: torch.device) -> None:
    # 1 + 2^-12 is not a tf32 number, and its two parts are.
    x = torch.full((40, 40), 1 + 2.0**-12, device=cuda_device)
    y = FF.linear(x, torch.eye(40, device=cuda_device))
    assert torch.equal(y, x if tensor_cores == "tf32_3x" else torch.ones_like(x))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["plain", "tf32_3x", "bf16", "f16", "f64"])
def test_special_values(
    special: float, kind: str, cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}.get(kind, torch.float32)
    if kind == "tf32_3x":
        monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_FROM", 0)
        monkeypatch.setattr(_cuda_limits, "TENSOR_CORES_SIDE", 0)
    for k in (31, 400):
        # Numbers that are whole: infinity meets rests of 0.
        x, w = (torch.randint(-3, 4, (rows, k)).to(dtype) for rows in (9, 50))
        x[3, 16] = x[8, 30] = special
        w[5, 7] = special
        b = torch.randn(50).to(dtype)
        for activation in (None, "relu", "sigmoid"):
            got = FF.linear(x.to(cuda_device), w.to(cuda_device), b.to(cuda_device), activation).cpu()
            want = torch_activation(F.linear(x.double(), w.double(), b.double()), activation).to(dtype)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(got, want, equal_nan=True, rtol=8 * eps, atol=400 * 9 * 1.2e-7)


def test_the_largest_numbers_do_not_overflow(tensor_cores: str, cuda_device: torch.device) -> None:
    if tensor_cores == "tf32":
        pytest.skip("the largest of 11 bits is smaller")
    x, w = torch.randn(9, 31), torch.randn(50, 31).clamp(-4, 4) / 16
    x[3, 16] = torch.finfo(torch.float32).max
    y = FF.linear(x.to(cuda_device), w.to(cuda_device)).cpu()
    torch.testing.assert_close(y, (x.double() @ w.double().t()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_torch_product_for_large_ones(
    dtype: torch.dtype, activation: str | None, cuda_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_limits, "choose", lambda *_: (True, _cuda_limits.PLAIN))
    called = []
    for name in ("mm", "addmm"):
        own = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *args, own=own, **more: (called.append(1), own(*args, **more))[1]
        )
    # 16-bit products are rounded before the bias is added; |x W^T| is about sqrt(K).
    for shape in ((300, 48, 33), (5, 7, 3), (129, 513, 2), (4, 3, 0), (0, 4, 3)):
        x, w, b, dy = problem(*shape, dtype)
        rounding = torch.finfo(dtype).eps if dtype in SIXTEEN_BITS else 0.0
        check(cuda_device, x, w, b, dy, activation, rounding=rounding)
        check(cuda_device, x, w, None, dy, activation, ["contiguous", "contiguous", "both apart"], rounding)
    assert len(called) == 5 * 2 * 3


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    choose, limits = _cuda_limits.choose, _cuda_limits
    for tf32 in (False, True):
        monkeypatch.setattr(limits, "_tf32_allowed", lambda tf32=tf32: tf32)
        assert choose(torch.float32, 64, 128, 784) == (False, limits.PLAIN)
        assert choose(torch.float32, 64, 2**20, 64) == (False, limits.PLAIN)
        assert choose(torch.float32, 512, 512, 512) == (False, limits.TF32 if tf32 else limits.TF32_3X)
        assert choose(torch.float32, 4096, 4096, 4096)[0] == tf32
        assert choose(torch.bfloat16, 512, 512, 512)[0] is False
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            assert choose(dtype, 4096, 4096, 4096)[0] is True


def test_torch_says_whether_tf32_is_allowed() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, allowed in (("tf32", True), ("ieee", False)):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert _cuda_limits._tf32_allowed() is allowed
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def all_results(device: torch.device) -> list[Tensor]:
    results = []
    for dtype in DTYPES:
        for shape in ((40, 66, 130), (33, 17, 70)):
            torch.manual_seed(1)
            x, w, b, dy = (t.to(device) for t in problem(*shape, dtype) if t is not None)
            leaves = [t.requires_grad_() for t in (x, w, b)]
            for activation in (None, "gelu"):
                y = FF.linear(*leaves, activation=activation)
                results += [y.detach(), *torch.autograd.grad(y, leaves, dy)]
    return results


def test_same_bits_in_every_order_of_threads(emulated_cuda: Emulation) -> None:
    runs = []
    for order in ORDERS:
        emulated_cuda.checks.set_order(*order)
        runs.append(all_results(torch.device("cpu")))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.cuda
def test_same_bits_in_every_run() -> None:
    first, second = all_results(torch.device("cuda")), all_results(torch.device("cuda"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wants_input", [True, False])
@pytest.mark.parametrize(
    "activations", [["relu", "relu", None], ["gelu", None, "tanh"], ["silu", "sigmoid", "relu"]]
)
def test_chains(
    activations: list[str | None], wants_input: bool, dtype: torch.dtype, cuda_device: torch.device
) -> None:
    sizes = [20, 33, 40, 7]
    x = make((50, 20), dtype).to(cuda_device).requires_grad_(wants_input)
    layers = [
        Layer(
            (make((n, k), dtype) / k**0.5).to(cuda_device).requires_grad_(),
            make((n,), dtype).to(cuda_device).requires_grad_(i != 1),
            activation,
        )
        for i, (k, n, activation) in enumerate(zip(sizes, sizes[1:], activations, strict=False))
    ]
    leaves = [x, *(t for layer in layers for t in layer[:2])]
    wanted = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
    dy = make((50, 7), dtype)

    def run() -> list[Tensor]:
        y = mlp(x, layers)
        return [y.detach(), *torch.autograd.grad(y, wanted, dy.to(cuda_device))]

    seen = fastnn.explain(run)
    assert [(d.op, d.reason) for d in seen.decisions] == [("mlp", None), ("mlp_backward", None)]
    wide = {id(t): t.detach().cpu().double().requires_grad_(t.requires_grad) for t in leaves if t is not None}
    h = wide[id(x)]
    for layer in layers:
        assert layer.bias is not None
        h = torch_activation(F.linear(h, wide[id(layer.weight)], wide[id(layer.bias)]), layer.activation)
    want = [h.detach(), *torch.autograd.grad(h, [wide[id(t)] for t in wanted], dy.double())]
    # Between layers values are rounded to the dtype; where that moves a ReLU over 0, the gradient of one of
    # 50 rows is lost there.
    for ours, theirs in zip(seen.result, want, strict=True):
        error = (ours.cpu().double() - theirs).norm() / theirs.norm()
        assert error <= (8 * torch.finfo(dtype).eps if dtype not in SIXTEEN_BITS else 0.05)


@pytest.mark.cuda
def test_capture() -> None:
    x, w, b, dy = (t.cuda() for t in problem(64, 128, 784, torch.float32) if t is not None)
    leaves = [t.requires_grad_() for t in (x, w, b)]

    def run() -> list[Tensor]:
        y = FF.linear(*leaves, activation="gelu")
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    want = run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, want, strict=True))


def test_bad_calls(emulated: Emulation) -> None:
    x, w, y = torch.randn(4, 300), torch.randn(5, 300), torch.empty(4, 5)
    kernels = emulated.cuda
    needed = kernels.linear_forward(x, w, None, None, y, None, 0, None)
    assert needed > 0
    for bad in (torch.empty(needed - 1, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)):
        assert kernels.linear_forward(x, w, None, None, y, None, 0, bad) == needed
    with pytest.raises(RuntimeError, match="linear: workspace has dtype float32"):
        kernels.linear_forward(x, w, None, None, y, None, 0, torch.empty(needed))
    with pytest.raises(ValueError, match="float32 must be 0, 1 or 2, got 3"):
        kernels.linear_forward(x, w, None, None, y, None, 3, None)
    with pytest.raises(RuntimeError, match="linear: input has K=300, weight expects 3"):
        kernels.linear_forward(x, torch.randn(5, 3), None, None, y, None, 0, None)
