"""The updates of ``programs/`` that have a twin in JAX. Imported in a peer's process only.

Each is one jitted function of all parameters, optimizer states and the batch, the state donated.
"""

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

GAMMA, TAU = 0.99, 0.005


def _adam(values: Any, grads: Any, moments: Any, count: Array, lr: float, eps: float = 1e-8) -> Any:
    """Kingma and Ba in torch's order of operations: new values and moments."""
    beta1, beta2 = 0.9, 0.999

    def one(value: Array, grad: Array, m: Array, v: Array) -> tuple[Array, Array, Array]:
        m = m + (1 - beta1) * (grad - m)
        v = beta2 * v + (1 - beta2) * grad * grad
        denominator = jnp.sqrt(v) / jnp.sqrt(1 - beta2**count) + eps
        return value - lr / (1 - beta1**count) * (m / denominator), m, v

    new = [one(*each) for each in zip(values, grads, *moments, strict=True)]
    return [n[0] for n in new], ([n[1] for n in new], [n[2] for n in new])


def _moments(values: list[Array]) -> Any:
    return tuple([jnp.zeros_like(each) for each in values] for _ in range(2))


def _mlp(values: list[Array], x: Array, activation: Callable[[Array], Array]) -> Array:
    *hidden, last = zip(values[::2], values[1::2], strict=True)
    for w, b in hidden:
        x = activation(x @ w.T + b)
    return x @ last[0].T + last[1]


def _running(update: Update, state: Any, data: list[Array]) -> Run:
    """Calls of an update, jitted, from a state on."""
    step = jax.jit(update, donate_argnums=0)
    batch = [jnp.asarray(each.astype(np.int32) if each.dtype.kind == "i" else each) for each in data]
    held, count = [state], itertools.count(1)

    def run() -> list[Array]:
        held[0], loss = step(held[0], np.float32(next(count)), batch)
        return [jax.block_until_ready(loss)]

    return run


def _arrays(networks: list[list[Array]]) -> list[list[Array]]:
    return [[jnp.array(each) for each in values] for values in networks]


# ---- SAC ----


def _act(actor: list[Array], x: Array, key: Array) -> tuple[Array, Array]:
    hidden = jax.nn.relu(jax.nn.relu(x @ actor[0].T + actor[1]) @ actor[2].T + actor[3])
    mean, log_std = hidden @ actor[4].T + actor[5], jnp.tanh(hidden @ actor[6].T + actor[7])
    log_std = -5 + 0.5 * (2 + 5) * (log_std + 1)
    noise = jax.random.normal(key, mean.shape)
    action = jnp.tanh(mean + noise * jnp.exp(log_std))
    log_prob = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - jnp.log(1 - action**2 + 1e-6)
    return action, log_prob.sum(1, keepdims=True)


def _critic(values: list[Array], x: Array, action: Array) -> Array:
    return _mlp(values, jnp.concatenate([x, action], 1), jax.nn.relu)


def _sac_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    actor, critics, targets, log_alpha, (of_actor, of_critics, of_alpha), key = state
    x, action, reward, following, done = data
    key, first, second, third = jax.random.split(key, 4)
    alpha = jnp.exp(log_alpha)
    next_action, next_log_pi = _act(actor, following, first)
    smaller = jnp.minimum(*(_critic(target, following, next_action) for target in targets))
    value = reward + (1 - done) * GAMMA * (smaller - alpha * next_log_pi)[:, 0]

    def critic_loss(critics: Any) -> Array:
        return sum(jnp.mean((_critic(critic, x, action)[:, 0] - value) ** 2) for critic in critics)

    loss, grads = jax.value_and_grad(critic_loss)(critics)
    flat, of_critics = _adam([*critics[0], *critics[1]], [*grads[0], *grads[1]], of_critics, count, 1e-3)
    critics = [flat[: len(flat) // 2], flat[len(flat) // 2 :]]

    def actor_loss(actor: Any) -> Array:
        pi, log_pi = _act(actor, x, second)
        return jnp.mean(alpha * log_pi - jnp.minimum(*(_critic(critic, x, pi) for critic in critics)))

    actor, of_actor = _adam(actor, jax.grad(actor_loss)(actor), of_actor, count, 3e-4)
    _, log_pi = _act(actor, x, third)
    target_entropy = -float(action.shape[1])
    slope = jax.grad(lambda a: jnp.mean(-jnp.exp(a) * (log_pi + target_entropy)))(log_alpha)
    (log_alpha,), of_alpha = _adam([log_alpha], [slope], of_alpha, count, 1e-3)
    targets = jax.tree.map(lambda t, c: TAU * c + (1 - TAU) * t, targets, critics)
    return (actor, critics, targets, log_alpha, (of_actor, of_critics, of_alpha), key), loss


def _sac(networks: list[list[Array]], data: list[Array]) -> Run:
    actor, *others = _arrays(networks)
    log_alpha = jnp.zeros(1)
    states = _moments(actor), _moments(others[0] + others[1]), _moments([log_alpha])
    return _running(_sac_step, (actor, others[:2], others[2:], log_alpha, states, jax.random.key(0)), data)


# ---- PPO ----


def _ppo_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    values, moments = state
    x, action, old_log_prob, advantage, returns, old_value = data
    clip = 0.2
    advantage = (advantage - advantage.mean()) / (jnp.std(advantage, ddof=1) + 1e-8)

    def loss_of(values: Any) -> Array:
        half = len(values) // 2
        log_probs = jax.nn.log_softmax(_mlp(values[:half], x, jnp.tanh))
        chosen = jnp.take_along_axis(log_probs, action[:, None], 1)[:, 0]
        ratio = jnp.exp(chosen - old_log_prob)
        pg_loss = jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1 - clip, 1 + clip)).mean()
        value = _mlp(values[half:], x, jnp.tanh)[:, 0]
        clipped = old_value + jnp.clip(value - old_value, -clip, clip)
        v_loss = 0.5 * jnp.maximum((value - returns) ** 2, (clipped - returns) ** 2).mean()
        entropy = -(jnp.exp(log_probs) * log_probs).sum(1).mean()
        return pg_loss - 0.01 * entropy + 0.5 * v_loss

    loss, grads = jax.value_and_grad(loss_of)(values)
    norm = jnp.sqrt(sum(jnp.sum(grad * grad) for grad in grads))
    scale = jnp.minimum(0.5 / (norm + 1e-6), 1.0)
    return _adam(values, [grad * scale for grad in grads], moments, count, 2.5e-4, 1e-5), loss


def _ppo(networks: list[list[Array]], data: list[Array]) -> Run:
    policy, value = _arrays(networks)
    return _running(_ppo_step, (policy + value, _moments(policy + value)), data)


# ---- DQN ----


def _dqn_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    values, moments, target = state
    x, action, reward, following, done = data
    wanted = reward + GAMMA * _mlp(target, following, jax.nn.relu).max(1) * (1 - done)

    def loss_of(values: Any) -> Array:
        got = jnp.take_along_axis(_mlp(values, x, jax.nn.relu), action, 1)[:, 0]
        off = jnp.abs(got - wanted)
        return jnp.mean(jnp.where(off < 1, 0.5 * off * off, off - 0.5))

    loss, grads = jax.value_and_grad(loss_of)(values)
    return (*_adam(values, grads, moments, count, 2.5e-4), target), loss


def _dqn(networks: list[list[Array]], data: list[Array]) -> Run:
    network, target = _arrays(networks)
    return _running(_dqn_step, (network, _moments(network), target), data)


OPERATIONS: dict[str, Callable[..., Run]] = {
    "sac_update": _sac,
    "ppo_update": _ppo,
    "dqn_update": _dqn,
}
