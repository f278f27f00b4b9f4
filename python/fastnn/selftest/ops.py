"""The tests of the ops: forward and backward against float64, and two concurrent calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _dispatch, functional
from fastnn.ops.linear import FROM_PREACTIVATION, torch_activation, torch_activation_gradient
from fastnn.ops.mlp import Layer, mlp
from fastnn.selftest.checks import Fault, at_the_same_time, compare, natively


def made(dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers of a dtype on the CPU."""
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype)


def placed(t: Tensor, device: torch.device, ahead: int = 0) -> Tensor:
    """A copy on the device, `ahead` elements after an alignment boundary."""
    memory = torch.empty(ahead + t.numel(), dtype=t.dtype, device=device)
    return memory[ahead:].view(t.shape).copy_(t)


def leaf(t: Tensor, device: torch.device, ahead: int = 0) -> Tensor:
    """The same, requiring a gradient."""
    return placed(t, device, ahead).requires_grad_()


def reference(t: Tensor) -> Tensor:
    """A float64 copy that requires a gradient."""
    return t.detach().to(torch.float64, copy=True).requires_grad_()


def relu(dtype: torch.dtype, device: torch.device) -> None:
    """Whole packs and a remainder, with NaN; in place; strides of a transposed matrix; no packs."""
    special = torch.tensor([float("nan"), -0.0, 1], dtype=dtype)
    for x, ahead in ((made(dtype, 4099), 0), (made(dtype, 33, 70).t(), 0), (special, 0), (special, 1)):
        given, dy = leaf(x, device, ahead), made(dtype, *x.shape)
        with natively("relu", "relu_backward"):
            y = functional.relu(given)
            y.backward(placed(dy, device, ahead))
        expected = F.relu(x.double())
        compare("y", y, expected)
        compare("dX", given.grad, torch.ops.aten.threshold_backward(dy.double(), expected, 0))
        changed = x.to(device, copy=True)
        with natively("relu"):
            functional.relu(changed, inplace=True)
        compare("y in place", changed, expected)


def linear(
    shapes: Sequence[tuple[int, int, int]],
    activations: Sequence[str | None],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Layers of (M, N, K) with bias and activation, and their three gradients."""
    for m, n, k in shapes:
        x, w, b, dy = made(dtype, m, k), made(dtype, n, k, scale=k**-0.5), made(dtype, n), made(dtype, m, n)
        z = F.linear(x.double(), w.double(), b.double())
        for activation in activations:
            input, weight, bias = leaves = [leaf(t, device) for t in (x, w, b)]
            with natively("linear", "linear_backward"):
                y = functional.linear(input, weight, bias, activation)
                y.backward(dy.to(device))
            expected = torch_activation(z, activation)
            name = f"{activation or 'linear'} {m}x{n}x{k}"
            compare(f"{name}: y", y, expected, 2)  # torch's product is rounded before the activation
            # If ReLU's input is within its rounding error of 0, the sign of the output decides.
            came = y.detach().cpu().double() if activation == "relu" else expected
            g = torch_activation_gradient(
                dy.double(), z if activation in FROM_PREACTIVATION else came, activation
            )
            for what, grad, want in zip(
                ("dX", "dW", "db"),
                (t.grad for t in leaves),
                (g @ w.double(), g.t() @ x.double(), g.sum(0)),
                strict=True,
            ):
                compare(f"{name}: {what}", grad, want, 4)


def tf32_allowed(run: Callable[[torch.device], None], device: torch.device) -> None:
    """A test of float32 with TF32 allowed."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "tf32"
    try:
        run(device)
    finally:
        settings.fp32_precision = before


def chain(dtype: torch.dtype, device: torch.device) -> None:
    """Three layers as one op, with an activation that has no kink."""
    sizes = [45, 70, 33, 10]
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    x, dy = made(dtype, 37, 45), made(dtype, 37, 10)
    weights = [made(dtype, n, k, scale=k**-0.5) for n, k in shapes]
    biases = [made(dtype, n) for n, _ in shapes]
    tensors = [x, *weights, *biases]
    leaves = [leaf(t, device) for t in tensors]
    with natively("mlp", "mlp_backward"):
        y = mlp(leaves[0], [*map(Layer, leaves[1:4], leaves[4:], ("tanh", "tanh", None))])
        y.backward(dy.to(device))
    twins = [reference(t) for t in tensors]
    h = twins[0]
    for i, (w, b) in enumerate(zip(twins[1:4], twins[4:], strict=True)):
        h = F.linear(h, w, b) if i == len(weights) - 1 else F.linear(h, w, b).tanh()
    h.backward(dy.double())
    compare("y", y, h.detach(), 4)
    for i, (ours, twin) in enumerate(zip(leaves, twins, strict=True)):
        assert twin.grad is not None
        compare(f"gradient {i}", ours.grad, twin.grad, 4)


def cross_entropy(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> None:
    """Rows of few, many and an intermediate number of classes; one ignored, class weights and smoothing;
    probabilities."""
    for shape in shapes:
        rows, classes, *inner = shape
        x, dy = made(dtype, *shape, scale=3.0), made(torch.float64, rows, *inner)
        index = torch.randint(classes, (rows, *inner))
        index[0] = -100
        share = torch.softmax(made(torch.float64, *shape), 1).to(dtype)
        weight = torch.rand(classes, dtype=torch.float64).add(0.5).to(dtype)
        name = "x".join(map(str, shape))
        options: dict[str, Any]
        for target, smoothing, w in ((index, 0.0, None), (index, 0.1, weight), (share, 0.0, None)):
            given, on_device = leaf(x, device), None if w is None else w.to(device)
            options = {"label_smoothing": smoothing, "reduction": "none" if w is None else "mean"}
            with natively("cross_entropy", "cross_entropy_backward"):
                loss = functional.cross_entropy(given, target.to(device), on_device, **options)
                grad = dy.to(loss) if loss.dim() else torch.ones_like(loss)
                loss.backward(grad)
            twin = reference(x)
            labels = target if target.dtype is torch.int64 else target.double()
            expected = F.cross_entropy(twin, labels, None if w is None else w.double(), **options)
            expected.backward(grad.cpu().double())
            assert twin.grad is not None
            compare(f"loss of {name}", loss, expected.detach())
            compare(f"dX of {name}", given.grad, twin.grad, 2)


def linear_cross_entropy(
    shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: torch.device
) -> None:
    """Of (rows, classes, features), in chunks if there are many rows; logits and their gradient are
    rounded to the dtype."""
    for rows, classes, features in shapes:
        x, b = made(dtype, rows, features), made(dtype, classes)
        w = made(dtype, classes, features, scale=features**-0.5)
        target = torch.randint(classes, (rows,))
        input, weight, bias = leaves = [leaf(t, device) for t in (x, w, b)]
        with natively("linear_cross_entropy", "linear_cross_entropy_backward"):
            loss = functional.linear_cross_entropy(input, weight, target.to(device), linear_bias=bias)
            loss.backward()
        twins = [reference(t) for t in (x, w, b)]
        expected = F.cross_entropy(F.linear(*twins), target)
        expected.backward()
        name = f"{rows}x{classes}x{features}"
        compare(f"loss of {name}", loss, expected.detach(), 2)
        for what, ours, twin in zip(("dX", "dW", "db"), leaves, twins, strict=True):
            assert twin.grad is not None
            compare(f"{what} of {name}", ours.grad, twin.grad, 4)


def gram_matrix(shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: torch.device) -> None:
    """Batches of products of a matrix with its own transpose, in both memory orders."""
    for shape in shapes:
        x, dy = made(dtype, *shape), made(dtype, shape[0], shape[1], shape[1])
        for order in ("rows", "columns"):
            given = leaf(x if order == "rows" else x.mT, device)
            with natively("gram_matrix", "gram_backward"):
                y = functional.gram_matrix(given if order == "rows" else given.mT, normalize=True)
                y.backward(dy.to(device))
            twin = reference(x)
            expected = twin @ twin.mT / (shape[1] * shape[2])
            expected.backward(dy.double())
            assert twin.grad is not None
            grad = given.grad if order == "rows" or given.grad is None else given.grad.mT
            compare(f"y of {shape} by {order}", y, expected.detach())
            compare(f"dX of {shape} by {order}", grad, twin.grad, 2)


def index_out_of_range(loss: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> None:
    """An IndexError, for a kernel on a device at the next call; and the call after that is right."""
    x, target = made(torch.float32, 5, 7), torch.tensor([0, 6, 3, 2, 1])
    given, bad = x.to(device), target.to(device).index_fill(0, torch.tensor(1, device=device), 7)
    try:
        came = loss(given, bad)
        if _dispatch.native(given) == _dispatch.cpu:
            raise Fault("the CPU kernel did not raise")
        if not came.isnan():  # waits for the device
            raise Fault("the loss of an index out of range is not NaN")
        loss(given, target.to(device))
    except IndexError:
        pass
    else:
        raise Fault("an index out of range was not raised")
    compare("the loss after that", loss(given, target.to(device)), loss(x.double(), target))


def _classifier(x: Tensor, target: Tensor) -> Tensor:
    if x.dtype is torch.float64:
        return F.cross_entropy(x, target)
    return functional.cross_entropy(x, target)


def _fused_classifier(x: Tensor, target: Tensor) -> Tensor:
    w = torch.eye(7, dtype=x.dtype, device=x.device)
    if x.dtype is torch.float64:
        return F.cross_entropy(x @ w, target)
    return functional.linear_cross_entropy(x, w, target)


cross_entropy_index = partial(index_out_of_range, _classifier)
linear_cross_entropy_index = partial(index_out_of_range, _fused_classifier)


Work = Callable[[Tensor], list[Tensor]]  # calls on a tensor; none waits for the device
_REPEATS = 5  # so that streams that start slightly apart overlap


def _both_ways(op: Callable[[Tensor], Tensor], given: Tensor) -> list[Tensor]:
    x = given.detach().requires_grad_()
    y = op(x)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    return [y.detach(), x.grad]


def two_at_once(op: str, work: Work, device: torch.device) -> None:
    """Two streams give the same bits as one: no memory is shared by mistake."""

    def repeated(x: Tensor) -> list[Tensor]:
        return [t for _ in range(_REPEATS) for t in work(x)]

    works = [partial(repeated, made(torch.float32, 4, 48, 64).to(device)) for _ in range(2)]
    with natively(op):
        alone = [work() for work in works]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        for results in at_the_same_time(device, works, rounds=3):
            for came, expected in zip(results, alone, strict=True):
                if not all(torch.equal(a, b) for a, b in zip(came, expected, strict=True)):
                    raise Fault("two calls at the same time differ from one after the other")


def _layer(x: Tensor) -> Tensor:
    return functional.linear(x, x[0, :, :].detach(), None, "gelu")


def _rows(x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    return functional.cross_entropy(rows, torch.arange(len(rows), device=x.device) % rows.shape[1])


def _fused_rows(x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    target = torch.arange(len(rows), device=x.device) % 48
    return functional.linear_cross_entropy(rows, x[0].detach(), target)


TWO_AT_ONCE: dict[str, Work] = {
    "relu": partial(_both_ways, functional.relu),
    "linear": partial(_both_ways, _layer),
    "cross_entropy": partial(_both_ways, _rows),
    "linear_cross_entropy": partial(_both_ways, _fused_rows),
    "gram_matrix": partial(_both_ways, functional.gram_matrix),
}
