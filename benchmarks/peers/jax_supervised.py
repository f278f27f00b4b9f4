"""The updates of ``programs/supervised.py`` in JAX. Imported in a peer's process only.

Each is one jitted function of all parameters, optimizer states and the batch, the state donated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax_training import (
    Array,
    Run,
    adam,
    as_state,
    cross_entropy,
    mlp,
    mse,
    new_key,
    running,
    zero_moments,
)


def _binary_cross_entropy(logits: Array, target: Array) -> Array:
    """The loss of each element."""
    return jax.nn.softplus(logits) - logits * target


# ---- sigmoid ----


def _sine_step(values: list[Array], count: Array, data: list[Array]) -> tuple[Any, Array]:
    x, y = data
    loss, grads = jax.value_and_grad(lambda at: jnp.abs(mlp(at, x, jax.nn.sigmoid) - y).sum())(values)
    return jax.tree.map(lambda value, grad: value - 1e-3 * grad, values, grads), loss


def _sine(networks: list[list[Array]], data: list[Array]) -> Run:
    return running(_sine_step, as_state(networks[0]), data)


# ---- tabular ----


def _normalised(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """Normalised by mean and variance along `axis`, which are also returned."""
    mean, variance = x.mean(axis, keepdims=True), x.var(axis, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5), mean, variance


def _tabular_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    values, moments, running_mean, running_variance, key = state
    x, y = data
    key, drawing = jax.random.split(key)
    gelu = partial(jax.nn.gelu, approximate=False)

    def loss_of(values: Any) -> tuple[Array, tuple[Array, Array]]:
        w1, b1, scale1, shift1, w2, b2, scale2, shift2, w3, b3 = values
        hidden, mean, variance = _normalised(x @ w1.T + b1, 0)
        hidden = gelu(hidden * scale1 + shift1)
        hidden = jnp.where(jax.random.bernoulli(drawing, 0.9, hidden.shape), hidden / 0.9, 0.0)
        hidden, *_ = _normalised(hidden @ w2.T + b2, 1)
        logits = gelu(hidden * scale2 + shift2) @ w3.T + b3
        return _binary_cross_entropy(logits[:, 0], y).mean(), (mean[0], variance[0])

    (loss, (mean, variance)), grads = jax.value_and_grad(loss_of, has_aux=True)(values)
    rows = len(x)
    running_mean = 0.9 * running_mean + 0.1 * mean
    running_variance = 0.9 * running_variance + 0.1 * variance * (rows / (rows - 1))
    lr, decay = 1e-3, 1e-2  # AdamW: Loshchilov and Hutter
    values, moments = adam([value * (1 - lr * decay) for value in values], grads, moments, count, lr)
    return (values, moments, running_mean, running_variance, key), loss


def _tabular(networks: list[list[Array]], data: list[Array]) -> Run:
    (values,) = as_state(networks)
    width = values[2].shape
    state = (values, zero_moments(values), jnp.zeros(width), jnp.ones(width), new_key())
    return running(_tabular_step, state, data)


# ---- VAE ----


def _vae_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    values, moments, key = state
    (x,) = data
    key, drawing = jax.random.split(key)

    def loss_of(values: Any) -> Array:
        w, b, w_mean, b_mean, w_log_var, b_log_var, *back = values
        hidden = jax.nn.relu(x @ w.T + b)
        mean, log_var = hidden @ w_mean.T + b_mean, hidden @ w_log_var.T + b_log_var
        z = mean + jax.random.normal(drawing, mean.shape) * jnp.exp(0.5 * log_var)
        likeness = _binary_cross_entropy(mlp(back, z, jax.nn.relu), x).sum()
        divergence = -0.5 * jnp.sum(1 + log_var - mean**2 - jnp.exp(log_var))
        return (likeness + divergence) / len(x)

    loss, grads = jax.value_and_grad(loss_of)(values)
    return (*adam(values, grads, moments, count), key), loss


def _vae(networks: list[list[Array]], data: list[Array]) -> Run:
    (values,) = as_state(networks)
    return running(_vae_step, (values, zero_moments(values), new_key()), data)


# ---- distillation ----


def _distillation_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    values, moments, teacher = state
    x, y = data
    heat = 4.0
    soft = jax.nn.log_softmax(mlp(teacher, x, jax.nn.relu) / heat)

    def loss_of(values: Any) -> Array:
        logits = mlp(values, x, jax.nn.relu)
        divergence = (jnp.exp(soft) * (soft - jax.nn.log_softmax(logits / heat))).sum() / len(x)
        return 0.7 * heat * heat * divergence + 0.3 * cross_entropy(logits, y)

    loss, grads = jax.value_and_grad(loss_of)(values)
    return (*adam(values, grads, moments, count), teacher), loss


def _distillation(networks: list[list[Array]], data: list[Array]) -> Run:
    teacher, student = as_state(networks)
    return running(_distillation_step, (student, zero_moments(student), teacher), data)


# ---- ten nets ----


def _ensemble_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    values, moments = state
    x, y = data
    of_one = jax.value_and_grad(lambda values: mse(mlp(values, x, jax.nn.relu), y))
    losses, grads = jax.vmap(of_one)(values)
    return adam(values, grads, moments, count), losses.sum()


def _ensemble(networks: list[list[Array]], data: list[Array]) -> Run:
    values = [jnp.stack(same) for same in zip(*networks, strict=True)]
    return running(_ensemble_step, (values, zero_moments(values)), data)


OPERATIONS: dict[str, Callable[..., Run]] = {
    "sine_update": _sine,
    "tabular_update": _tabular,
    "vae_update": _vae,
    "distillation_update": _distillation,
    "ensemble_update": _ensemble,
}
