"""The updates of ``programs/reinforcement.py`` in JAX. Imported in a peer's process only.

Each is one jitted function of all parameters, optimizer states and the batch, the state donated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax_training import Array, Run, adam, as_state, clipped, mlp, mse, new_key, running, zero_moments

GAMMA, TAU = 0.99, 0.005


# ---- SAC ----


def _sampled(actor: list[Array], x: Array, key: Array) -> tuple[Array, Array]:
    hidden = jax.nn.relu(jax.nn.relu(x @ actor[0].T + actor[1]) @ actor[2].T + actor[3])
    mean, log_std = hidden @ actor[4].T + actor[5], jnp.tanh(hidden @ actor[6].T + actor[7])
    log_std = -5 + 0.5 * (2 + 5) * (log_std + 1)
    noise = jax.random.normal(key, mean.shape)
    action = jnp.tanh(mean + noise * jnp.exp(log_std))
    log_prob = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - jnp.log(1 - action**2 + 1e-6)
    return action, log_prob.sum(1, keepdims=True)


def _critic(values: list[Array], x: Array, action: Array) -> Array:
    return mlp(values, jnp.concatenate([x, action], 1), jax.nn.relu)


def _sac_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    actor, critics, targets, log_alpha, (of_actor, of_critics, of_alpha), key = state
    x, action, reward, following, done = data
    key, first, second, third = jax.random.split(key, 4)
    alpha = jnp.exp(log_alpha)
    next_action, next_log_pi = _sampled(actor, following, first)
    smaller = jnp.minimum(*(_critic(target, following, next_action) for target in targets))
    value = reward + (1 - done) * GAMMA * (smaller - alpha * next_log_pi)[:, 0]

    def critic_loss(critics: Any) -> Array:
        return sum(mse(_critic(critic, x, action)[:, 0], value) for critic in critics)

    loss, grads = jax.value_and_grad(critic_loss)(critics)
    flat, of_critics = adam([*critics[0], *critics[1]], [*grads[0], *grads[1]], of_critics, count, 1e-3)
    critics = [flat[: len(flat) // 2], flat[len(flat) // 2 :]]

    def actor_loss(actor: Any) -> Array:
        pi, log_pi = _sampled(actor, x, second)
        return jnp.mean(alpha * log_pi - jnp.minimum(*(_critic(critic, x, pi) for critic in critics)))

    actor, of_actor = adam(actor, jax.grad(actor_loss)(actor), of_actor, count, 3e-4)
    _, log_pi = _sampled(actor, x, third)
    target_entropy = -float(action.shape[1])
    slope = jax.grad(lambda a: jnp.mean(-jnp.exp(a) * (log_pi + target_entropy)))(log_alpha)
    (log_alpha,), of_alpha = adam([log_alpha], [slope], of_alpha, count, 1e-3)
    targets = jax.tree.map(lambda t, c: TAU * c + (1 - TAU) * t, targets, critics)
    return (actor, critics, targets, log_alpha, (of_actor, of_critics, of_alpha), key), loss


def _sac(networks: list[list[Array]], data: list[Array]) -> Run:
    actor, *others = as_state(networks)
    log_alpha = jnp.zeros(1)
    states = zero_moments(actor), zero_moments(others[0] + others[1]), zero_moments([log_alpha])
    return running(_sac_step, (actor, others[:2], others[2:], log_alpha, states, new_key()), data)


# ---- PPO ----


def _ppo_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    values, moments = state
    x, action, old_log_prob, advantage, returns, old_value = data
    clip = 0.2
    advantage = (advantage - advantage.mean()) / (jnp.std(advantage, ddof=1) + 1e-8)

    def loss_of(values: Any) -> Array:
        half = len(values) // 2
        log_probs = jax.nn.log_softmax(mlp(values[:half], x, jnp.tanh))
        chosen = jnp.take_along_axis(log_probs, action[:, None], 1)[:, 0]
        ratio = jnp.exp(chosen - old_log_prob)
        pg_loss = jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1 - clip, 1 + clip)).mean()
        value = mlp(values[half:], x, jnp.tanh)[:, 0]
        near = old_value + jnp.clip(value - old_value, -clip, clip)
        v_loss = 0.5 * jnp.maximum((value - returns) ** 2, (near - returns) ** 2).mean()
        entropy = -(jnp.exp(log_probs) * log_probs).sum(1).mean()
        return pg_loss - 0.01 * entropy + 0.5 * v_loss

    loss, grads = jax.value_and_grad(loss_of)(values)
    return adam(values, clipped(grads, 0.5), moments, count, 2.5e-4, 1e-5), loss


def _ppo(networks: list[list[Array]], data: list[Array]) -> Run:
    policy, value = as_state(networks)
    return running(_ppo_step, (policy + value, zero_moments(policy + value)), data)


# ---- DQN ----


def _dqn_step(state: Any, count: Array, data: list[Array]) -> tuple[Any, Array]:
    values, moments, target = state
    x, action, reward, following, done = data
    wanted = reward + GAMMA * mlp(target, following, jax.nn.relu).max(1) * (1 - done)

    def loss_of(values: Any) -> Array:
        got = jnp.take_along_axis(mlp(values, x, jax.nn.relu), action, 1)[:, 0]
        off = jnp.abs(got - wanted)
        return jnp.mean(jnp.where(off < 1, 0.5 * off * off, off - 0.5))

    loss, grads = jax.value_and_grad(loss_of)(values)
    return (*adam(values, grads, moments, count, 2.5e-4), target), loss


def _dqn(networks: list[list[Array]], data: list[Array]) -> Run:
    network, target = as_state(networks)
    return running(_dqn_step, (network, zero_moments(network), target), data)


# ---- act ----


def _act(networks: list[list[Array]], data: list[Array], noise: list[Array]) -> Run:
    """An action for an environment. The first calls get given noise, so that they can be compared."""
    x, values = jnp.asarray(data[0]), as_state(networks)

    def action_of(values: Any, x: Array, noise: Array) -> Array:
        mean, log_std = (mlp(each, x, jax.nn.relu) for each in values)
        return jnp.tanh(mean + jnp.exp(jnp.clip(log_std, -5, 2)) * noise)

    @partial(jax.jit, donate_argnums=0)
    def act(key: Array, values: Any, x: Array) -> tuple[Array, Array]:
        key, drawing = jax.random.split(key)
        return key, action_of(values, x, jax.random.normal(drawing, noise[0].shape))

    with_noise = jax.jit(action_of)

    def answers() -> Iterator[list[Array]]:
        for each in noise:
            yield [with_noise(values, x, each)]
        key = new_key()
        while True:
            key, action = act(key, values, x)
            yield [jax.block_until_ready(action)]

    return answers().__next__


OPERATIONS: dict[str, Callable[..., Run]] = {
    "sac_update": _sac,
    "ppo_update": _ppo,
    "dqn_update": _dqn,
    "act": _act,
}
