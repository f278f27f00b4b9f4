"""JAX, every workload one jitted function. Imported in a peer's process only."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax_programs
import numpy as np

Array = Any
Run = Callable[[], list[Array]]


def setup(threads: int) -> str:
    """Name the version. Flags and processors that this process was started with hold it to `threads`."""
    # Otherwise a call hands its work to another thread and waits for it: slower at every size measured.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return f"jax {jax.__version__}, jit, results waited for, synchronous dispatch, {os.environ['XLA_FLAGS']}"


def _jitted(function: Callable[..., Any], *inputs: Any) -> Run:
    compiled = jax.jit(function).lower(*inputs).compile()
    arrays = [jnp.asarray(each) for each in inputs]

    def run() -> list[Array]:
        answer = jax.block_until_ready(compiled(*arrays))
        return list(answer) if isinstance(answer, tuple) else [answer]

    return run


def _linear(x: Array, w: Array) -> Run:
    return _jitted(lambda x, w: x @ w.T, x, w)


def _linear_dx(dy: Array, w: Array) -> Run:
    return _jitted(lambda dy, w: dy @ w, dy, w)


def _linear_dw(dy: Array, x: Array) -> Run:
    return _jitted(lambda dy, x: dy.T @ x, dy, x)


def _linear_relu(x: Array, w: Array, b: Array) -> Run:
    return _jitted(lambda x, w, b: jax.nn.relu(x @ w.T + b), x, w, b)


def _gram(features: Array) -> Run:
    return _jitted(lambda features: features @ features.T, features)


def _cross_entropy_of(logits: Array, target: Array) -> Array:
    chosen = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()


def _mse_of(prediction: Array, target: Array) -> Array:
    return jnp.mean((prediction - target) ** 2)


def _cross_entropy(logits: Array, target: Array) -> Run:
    return _jitted(jax.value_and_grad(_cross_entropy_of), logits, target.astype(np.int32))


def _adam(
    parameter: Array, grad: Array, m: Array, v: Array, step: Array, eps: float
) -> tuple[Array, Array, Array]:
    """Kingma and Ba with torch's defaults and in torch's order of operations."""
    lr, beta1, beta2 = 1e-3, 0.9, 0.999
    m = m + (1 - beta1) * (grad - m)
    v = beta2 * v + (1 - beta2) * grad * grad
    denominator = jnp.sqrt(v) / jnp.sqrt(1 - beta2**step) + eps
    return parameter - lr / (1 - beta1**step) * (m / denominator), m, v


def _adam_update(
    parameters: Any, grads: Any, m: Any, v: Any, step: Array, eps: float = 1e-8
) -> tuple[Any, Any, Any]:
    updated = [_adam(*each, step, eps) for each in zip(parameters, grads, m, v, strict=True)]
    new = [list(part) for part in zip(*updated, strict=True)]
    return new[0], new[1], new[2]


def _adam_step(values: list[Array], grads: list[Array]) -> Run:
    """One update of all parameters; old parameters and state are donated to the new ones."""
    update = jax.jit(_adam_update, donate_argnums=(0, 2, 3))
    held = [jnp.asarray(each) for each in grads]
    state = [
        [jnp.array(each) for each in values],
        *([jnp.zeros_like(each) for each in held] for _ in range(2)),
    ]
    count = itertools.count(1)

    def run() -> list[Array]:
        state[:] = update(state[0], held, state[1], state[2], np.float32(next(count)))
        parameters: list[Array] = jax.block_until_ready(state[0])
        return parameters

    return run


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"ReLU": jax.nn.relu, "Tanh": jnp.tanh}


def _output(parameters: list[Array], x: Array, activation: str) -> Array:
    *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
    for w, b in hidden:
        x = _ACTIVATIONS[activation](x @ w.T + b)
    w, b = last
    return x @ w.T + b


def _clipped(grads: list[Array], max_norm: float) -> list[Array]:
    """By the norm of all, by the formula of torch's `clip_grad_norm_`."""
    norm = jnp.sqrt(sum(jnp.sum(grad * grad) for grad in grads))
    scale = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
    return [grad * scale for grad in grads]


def _loss_and_update(
    parameters: Any,
    m: Any,
    v: Any,
    count: Array,
    x: Array,
    target: Array,
    *,
    loss_of: Callable[[Array, Array], Array] = _cross_entropy_of,
    activation: str = "ReLU",
    eps: float = 1e-8,
    max_norm: float | None = None,
) -> Any:
    def loss_at(parameters: Any) -> Array:
        return loss_of(_output(parameters, x, activation), target)

    loss, grads = jax.value_and_grad(loss_at)(parameters)
    if max_norm is not None:
        grads = _clipped(grads, max_norm)
    return (*_adam_update(parameters, grads, m, v, count, eps), loss)


def _initial_state(values: list[Array]) -> list[Any]:
    """Parameters and both moments."""
    zeros = [[jnp.zeros(each.shape, each.dtype) for each in values] for _ in range(2)]
    return [[jnp.array(each) for each in values], *zeros]


def _training_step(values: list[Array], inputs: list[Array], targets: list[Array], **settings: Any) -> Run:
    """Forward, loss, backward and Adam in one jitted function; the state is donated.

    `settings` are those of `_loss_and_update`.
    """
    step = jax.jit(partial(_loss_and_update, **settings), donate_argnums=(0, 1, 2))
    batches = itertools.cycle(
        [(jnp.asarray(x), _as_target(target)) for x, target in zip(inputs, targets, strict=True)]
    )
    state = _initial_state(values)
    count = itertools.count(1)

    def run() -> list[Array]:
        *updated, loss = step(*state, np.float32(next(count)), *next(batches))
        state[:] = updated
        return [jax.block_until_ready(loss)]

    return run


def _as_target(target: Array) -> Array:
    """Class indices as JAX has them by default, or values."""
    return jnp.asarray(target.astype(np.int32) if target.dtype.kind == "i" else target)


def _training_epoch(values: list[Array], x: Array, target: Array, orders: list[Array]) -> Run:
    """All steps of an epoch in one jitted function, a scan over the batches of an order `(steps, batch)`."""

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def epoch(parameters: Any, m: Any, v: Any, first: Array, x: Array, target: Array, order: Array) -> Any:
        def body(state: Any, rows: Array) -> Any:
            parameters, m, v, count = state
            *updated, loss = _loss_and_update(parameters, m, v, count, x[rows], target[rows])
            return (*updated, count + 1), loss

        (*updated, _), losses = jax.lax.scan(body, (parameters, m, v, first), order)
        return (*updated, losses)

    data = jnp.asarray(x), _as_target(target)
    forever = itertools.cycle([jnp.asarray(order.astype(np.int32)) for order in orders])
    state = _initial_state(values)
    count = itertools.count(1, len(orders[0]))

    def run() -> list[Array]:
        *updated, losses = epoch(*state, np.float32(next(count)), *data, next(forever))
        state[:] = updated
        return [jax.block_until_ready(losses)]

    return run


OPERATIONS: dict[str, Callable[..., Run]] = {
    "linear": _linear,
    "linear_dx": _linear_dx,
    "linear_dw": _linear_dw,
    "linear_relu": _linear_relu,
    "gram": _gram,
    "cross_entropy": _cross_entropy,
    "adam": _adam_step,
    "training_step": _training_step,
    "regression_step": partial(_training_step, loss_of=_mse_of),
    "training_epoch": _training_epoch,
    **jax_programs.OPERATIONS,
}
