"""What the workloads of the JAX peer share. Imported in its process only."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any
Run = Callable[[], list[Array]]
Update = Callable[[Any, Array, list[Array]], tuple[Any, Array]]


def adam(
    values: list[Array], grads: list[Array], moments: Any, count: Array, lr: float = 1e-3, eps: float = 1e-8
) -> tuple[list[Array], Any]:
    """Kingma and Ba in torch's order of operations: new values and moments."""
    beta1, beta2 = 0.9, 0.999

    def one(value: Array, grad: Array, m: Array, v: Array) -> tuple[Array, Array, Array]:
        m = m + (1 - beta1) * (grad - m)
        v = beta2 * v + (1 - beta2) * grad * grad
        denominator = jnp.sqrt(v) / jnp.sqrt(1 - beta2**count) + eps
        return value - lr / (1 - beta1**count) * (m / denominator), m, v

    new = [one(*each) for each in zip(values, grads, *moments, strict=True)]
    return [n[0] for n in new], ([n[1] for n in new], [n[2] for n in new])


def zero_moments(values: list[Array]) -> Any:
    """Adam's initial moments."""
    return tuple([jnp.zeros(each.shape, each.dtype) for each in values] for _ in range(2))


def clipped(grads: list[Array], max_norm: float) -> list[Array]:
    """Clipped by the global norm, by the formula of torch's `clip_grad_norm_`."""
    norm = jnp.sqrt(sum(jnp.sum(grad * grad) for grad in grads))
    scale = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
    return [grad * scale for grad in grads]


def mlp(values: list[Array], x: Array, activation: Callable[[Array], Array]) -> Array:
    """Linear layers with an activation between them, from their weights and biases."""
    *hidden, last = zip(values[::2], values[1::2], strict=True)
    for w, b in hidden:
        x = activation(x @ w.T + b)
    w, b = last
    return x @ w.T + b


def cross_entropy(logits: Array, target: Array) -> Array:
    """The mean over rows, of class indices."""
    chosen = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()


def mse(prediction: Array, target: Array) -> Array:
    """The mean of squared errors."""
    return jnp.mean((prediction - target) ** 2)


def as_data(array: Array) -> Array:
    """Values, or class indices as JAX has them by default."""
    return jnp.asarray(array.astype(np.int32) if array.dtype.kind == "i" else array)


def as_state(values: Any) -> Any:
    """Arrays that may be donated, in the lists that they are in."""
    return jax.tree.map(jnp.array, values)


def new_key() -> Array:
    """A key for random numbers; a typed one takes longer to pass into a jitted function."""
    return jax.random.PRNGKey(0)


def running(update: Update, state: Any, *batches: list[Array]) -> Run:
    """Calls of a jitted update, starting from a state, which is donated, with one batch after another."""
    step = jax.jit(update, donate_argnums=0)
    forever = itertools.cycle([[as_data(each) for each in batch] for batch in batches])
    held, count = [state], itertools.count(1)

    def run() -> list[Array]:
        held[0], loss = step(held[0], np.float32(next(count)), next(forever))
        return [jax.block_until_ready(loss)]

    return run
