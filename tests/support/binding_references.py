"""The expected outputs of a binding, in float64, from its arguments before the call.

None stands for what is not written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn.ops.cross_entropy import cross_entropy_torch
from fastnn.ops.linear import FROM_PREACTIVATION, torch_activation, torch_activation_gradient


def copied(t: Any) -> Any:
    """As it is before the call, in float64."""
    if isinstance(t, list):
        return [copied(each) for each in t]
    if isinstance(t, torch.Generator):
        return t.clone_state()
    if not isinstance(t, Tensor):
        return t
    return t.detach().to(torch.float64, copy=True) if t.is_floating_point() else t.clone()


def relu_forward(x: Any, y: Any) -> Any:
    return [None, x.relu()]


def relu_backward(dy: Any, y: Any, dx: Any) -> Any:
    return [None, None, torch.ops.aten.threshold_backward(dy, y, 0)]


def linear_forward(x: Any, w: Any, b: Any, activation: Any, y: Any, z: Any) -> Any:
    product = F.linear(x, w, b)
    kept = product if activation in FROM_PREACTIVATION else None
    return [None, None, None, None, torch_activation(product, activation), kept]


def linear_backward(dy: Any, saved: Any, activation: Any, x: Any, w: Any, dx: Any, dw: Any, db: Any) -> Any:
    dz = torch_activation_gradient(dy, saved, activation)
    return [
        *[None] * 5,
        None if dx is None else dz @ w,
        None if dw is None else dz.t() @ x,
        None if db is None else dz.sum(0),
    ]


def mlp_forward(
    x: Any, weights: Any, biases: Any, activations: Any, ys: Any, zs: Any, *, dtype: torch.dtype
) -> Any:
    outputs, products = [], []
    for w, b, activation in zip(weights, biases, activations, strict=True):
        product = F.linear(x, w, b)
        products.append(product if activation in FROM_PREACTIVATION else None)
        outputs.append(torch_activation(product, activation))
        x = outputs[-1].to(dtype).double()  # as the next layer reads it
    return [None, None, None, None, outputs, products]


def mlp_backward(
    dy: Any,
    x: Any,
    weights: Any,
    outputs: Any,
    preactivations: Any,
    activations: Any,
    dx: Any,
    dweights: Any,
    dbiases: Any,
    *,
    dtype: torch.dtype,
) -> Any:
    inputs = [x, *outputs[:-1]]
    of_weights: list[Any] = [None] * len(weights)
    of_biases: list[Any] = [None] * len(weights)
    wanted = [
        i
        for i in range(len(weights))
        if dweights[i] is not None or dbiases[i] is not None or (dx is not None and i == 0)
    ]
    lowest = min(wanted, default=len(weights))
    for i in reversed(range(lowest, len(weights))):
        saved = (preactivations if activations[i] in FROM_PREACTIVATION else outputs)[i]
        # The last layer's is not rounded; for the others, what the layer above passes down is.
        dz = torch_activation_gradient(dy, saved, activations[i])
        if i + 1 < len(weights):
            dz = dz.to(dtype).double()
        of_weights[i] = None if dweights[i] is None else dz.t() @ inputs[i]
        of_biases[i] = None if dbiases[i] is None else dz.sum(0)
        if i > lowest or dx is not None:
            dy = dz @ weights[i]
    return [*[None] * 6, None if dx is None else dy, of_weights, of_biases]


def gram_forward(f: Any, scale: Any, g: Any) -> Any:
    return [None, None, f @ f.mT * scale]


def gram_backward(dg: Any, f: Any, scale: Any, df: Any) -> Any:
    return [None, None, None, (dg + dg.mT) @ f * scale]


REDUCTIONS = ("none", "mean", "sum")


def has_bad_index(target: Tensor, classes: int, ignored: int) -> bool:
    """Whether a class index is out of range."""
    if target.is_floating_point():
        return False
    index = target.long()
    return bool(((index != ignored) & ((index < 0) | (index >= classes))).any())


def _loss(
    x: Tensor, target: Any, weight: Any, ignored: int, reduction: int, smoothing: float, z: float
) -> Any:
    """The loss, and its gradient; of reduction none, each row's own.

    None, and the logits, for a smoothing that is out of range, refused by the caller.
    """
    if not 0 <= smoothing <= 1:
        return None, x
    target = target.long() if target.dtype == torch.uint8 else target
    options = {"ignore_index": int(ignored), "label_smoothing": smoothing, "reduction": REDUCTIONS[reduction]}
    if target.is_floating_point():
        del options["ignore_index"]
    x = x.detach().requires_grad_()
    loss = cross_entropy_torch(x, target, weight, z_loss=z, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    if not target.is_floating_point():  # torch's is NaN where the logits are
        gradient = gradient.masked_fill((target == ignored).unsqueeze(1), 0)
    return loss.detach(), gradient


def cross_entropy_forward(x: Any, target: Any, weight: Any, loss: Any, gradient: Any, *options: Any) -> Any:
    value, dx = _loss(x, target, weight, *options)
    return [None, None, None, value, None if value is None else dx]


def cross_entropy_scale_gradient(gradient: Any, dy: Any, scale: Any) -> Any:
    rows = dy if dy.numel() == 1 else dy.unsqueeze(0 if gradient.dim() == 1 else 1)
    return [gradient * (rows.reshape(()) if dy.numel() == 1 else rows) * scale]


def linear_cross_entropy(
    x: Any,
    w: Any,
    b: Any,
    target: Any,
    weight: Any,
    loss: Any,
    dy: Any,
    dx: Any,
    dw: Any,
    db: Any,
    *options: Any,
    dtype: torch.dtype,
) -> Any:
    logits = F.linear(x, w, b).to(dtype).double()  # as its contract says
    value, dz = _loss(logits, target, weight, *options[:4])
    if value is None:
        return []
    if dy is not None:
        dz = dz * dy[:, None]
    return [*[None] * 5, value, None, dz @ w, dz.t() @ x, dz.sum(0)]


def probe_copy(source: Any, destination: Any) -> Any:
    return [None, source]


def probe_fma(rounds: Any, out: Any) -> Any:
    return [None, None]


def exp(x: Any, y: Any) -> Any:
    return [None, x.exp()]


def bernoulli(x: Any, p: Any, generator: torch.Generator, *, dtype: torch.dtype) -> Any:
    if x.numel() == 0:
        return [None]  # the generator is not checked
    return [torch.empty(x.shape, dtype=dtype).bernoulli_(p, generator=generator).double()]


def polyak(targets: Any, sources: Any, tau: Any) -> Any:
    if not 0 <= tau <= 1:  # refused by the caller
        return []
    if tau == 1:  # an infinite difference times 0 would be NaN
        return [sources]
    return [[t if tau == 0 else t.lerp(s, tau) for t, s in zip(targets, sources, strict=True)]]


def norm_of(grads: Any) -> Any:
    return torch.cat([g.reshape(-1) for g in grads]).norm()


def clip_grad_norm(grads: Any, max_norm: Any, only_finite: Any) -> Any:
    return [[g * min(float(max_norm / (norm_of(grads) + 1e-6)), 1.0) for g in grads]]


def _optimizer_step(name: str) -> Callable[..., Any]:
    """A step of torch's optimizer of that name, given parameters, gradients, step counts, the names and the
    tensors of the state, and options."""

    def step(params: Any, grads: Any, steps: Any, names: Any, states: Any, options: Any) -> Any:
        leaves = [torch.nn.Parameter(p) for p in params]
        optimizer = getattr(torch.optim, name)(leaves)
        optimizer.param_groups[0].update(options, foreach=False, fused=None)
        for i, (leaf, grad, count) in enumerate(zip(leaves, grads, steps, strict=True)):
            leaf.grad = grad
            optimizer.state[leaf] = {key: tensors[i] for key, tensors in zip(names, states, strict=True)}
            if name != "SGD":
                optimizer.state[leaf]["step"] = torch.tensor(float(count))
        optimizer.step()
        after = [[optimizer.state[leaf][key] for leaf in leaves] for key in names]
        return [[leaf.detach() for leaf in leaves], None, None, None, after]

    return step


OPTIMIZERS = {"adam_step": "Adam", "sgd_step": "SGD", "adagrad_step": "Adagrad", "rmsprop_step": "RMSprop"}

# References that depend on the dtype in which the kernel computes.
ROUNDING: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (mlp_forward, mlp_backward, linear_cross_entropy, bernoulli)
}
REFERENCES: dict[str, Callable[..., Any]] = {
    **{
        f.__name__: f
        for f in (
            *(relu_forward, relu_backward, linear_forward, linear_backward, gram_forward, gram_backward),
            *(cross_entropy_forward, cross_entropy_scale_gradient, probe_copy, probe_fma, exp),
            *(polyak, clip_grad_norm),
        )
    },
    **ROUNDING,
    **{op: _optimizer_step(name) for op, name in OPTIMIZERS.items()},
}
