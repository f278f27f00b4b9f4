"""JAX, every workload one jitted function. Imported in a peer's process only."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax_reinforcement
import jax_supervised
import numpy as np
from jax_training import (
    Array,
    Run,
    adam,
    as_data,
    as_state,
    clipped,
    cross_entropy,
    mlp,
    mse,
    running,
    zero_moments,
)


def setup(threads: int) -> str:
    """Name the version. The flags and CPU affinity of this process limit it to `threads`."""
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


def _cross_entropy(logits: Array, target: Array) -> Run:
    return _jitted(jax.value_and_grad(cross_entropy), logits, target.astype(np.int32))


def _adam_step(values: list[Array], grads: list[Array]) -> Run:
    """One update of all parameters; old parameters and state are donated to the new ones."""
    update = jax.jit(adam, donate_argnums=(0, 2))
    held, parameters, count = as_state(grads), as_state(values), itertools.count(1)
    state = [parameters, zero_moments(parameters)]

    def run() -> list[Array]:
        state[:] = update(state[0], held, state[1], np.float32(next(count)))
        updated: list[Array] = jax.block_until_ready(state[0])
        return updated

    return run


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"ReLU": jax.nn.relu, "Tanh": jnp.tanh}


def _loss_and_update(
    state: Any,
    count: Array,
    batch: list[Array],
    *,
    loss_of: Callable[[Array, Array], Array] = cross_entropy,
    activation: str = "ReLU",
    eps: float = 1e-8,
    max_norm: float | None = None,
) -> tuple[Any, Array]:
    parameters, moments = state
    x, target = batch

    def loss_at(parameters: Any) -> Array:
        return loss_of(mlp(parameters, x, _ACTIVATIONS[activation]), target)

    loss, grads = jax.value_and_grad(loss_at)(parameters)
    if max_norm is not None:
        grads = clipped(grads, max_norm)
    return adam(parameters, grads, moments, count, eps=eps), loss


def _training_step(values: list[Array], inputs: list[Array], targets: list[Array], **settings: Any) -> Run:
    """Forward, loss, backward and Adam in one jitted function; `settings` are those of `_loss_and_update`."""
    batches = [list(batch) for batch in zip(inputs, targets, strict=True)]
    parameters = as_state(values)
    return running(partial(_loss_and_update, **settings), (parameters, zero_moments(parameters)), *batches)


def _training_epoch(values: list[Array], x: Array, target: Array, orders: list[Array]) -> Run:
    """All steps of an epoch in one jitted function, a scan over the batches of an order `(steps, batch)`."""

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, first: Array, x: Array, target: Array, order: Array) -> Any:
        def body(carried: Any, rows: Array) -> Any:
            state, count = carried
            state, loss = _loss_and_update(state, count, [x[rows], target[rows]])
            return (state, count + 1), loss

        (state, _), losses = jax.lax.scan(body, (state, first), order)
        return state, losses

    data = as_data(x), as_data(target)
    forever = itertools.cycle([as_data(order) for order in orders])
    parameters, count = as_state(values), itertools.count(1, len(orders[0]))
    held = [(parameters, zero_moments(parameters))]

    def run() -> list[Array]:
        held[0], losses = epoch(held[0], np.float32(next(count)), *data, next(forever))
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
    "regression_step": partial(_training_step, loss_of=mse),
    "training_epoch": _training_epoch,
    **jax_reinforcement.OPERATIONS,
    **jax_supervised.OPERATIONS,
}
