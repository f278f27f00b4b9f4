"""Updates of reinforcement learning, in the form of CleanRL's single files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from .program import CHECKED_CALLS, Program, Update, mlp, training_flops, weights

OBSERVATION, ACTION = 11, 3
GAMMA, TAU = 0.99, 0.005


class Actor(nn.Module):
    """A Gaussian squashed by tanh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(OBSERVATION, width)
        self.fc2 = nn.Linear(width, width)
        self.fc_mean = nn.Linear(width, ACTION)
        self.fc_logstd = nn.Linear(width, ACTION)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        log_std = torch.tanh(self.fc_logstd(x))
        return self.fc_mean(x), -5 + 0.5 * (2 + 5) * (log_std + 1)

    def act(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """An action and the logarithm of its density."""
        mean, log_std = self(x)
        normal = Normal(mean, log_std.exp(), validate_args=False)
        drawn = normal.rsample()
        action = torch.tanh(drawn)
        log_prob = normal.log_prob(drawn) - torch.log(1 - action.pow(2) + 1e-6)
        return action, log_prob.sum(1, keepdim=True)


class Critic(nn.Module):
    """The value of an action."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = mlp((OBSERVATION + ACTION, width, width, 1))

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.net(torch.cat([x, action], 1))
        return value


def _transitions(batch: int) -> tuple[Tensor, ...]:
    x, following = torch.randn(batch, OBSERVATION), torch.randn(batch, OBSERVATION)
    action, reward = torch.rand(batch, ACTION) * 2 - 1, torch.randn(batch)
    return x, action, reward, following, (torch.rand(batch) < 0.1).float()


def _sac_parts(width: int, batch: int) -> tuple[list[nn.Module], tuple[Tensor, ...]]:
    actor, *critics = Actor(width), *(Critic(width) for _ in range(4))
    for critic, target in ((critics[0], critics[2]), (critics[1], critics[3])):
        target.load_state_dict(critic.state_dict())
    return [actor, *critics], _transitions(batch)


def _sac(actor: Actor, qf1: Critic, qf2: Critic, qf1_target: Critic, qf2_target: Critic) -> Update:
    q_optimizer = torch.optim.Adam([*qf1.parameters(), *qf2.parameters()], lr=1e-3)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True)
    alpha_optimizer = torch.optim.Adam([log_alpha], lr=1e-3)
    target_entropy = -float(ACTION)

    def update(x: Tensor, action: Tensor, reward: Tensor, following: Tensor, done: Tensor) -> Tensor:
        with torch.no_grad():
            alpha = log_alpha.exp()
            next_action, next_log_pi = actor.act(following)
            smaller = torch.min(qf1_target(following, next_action), qf2_target(following, next_action))
            value = reward + (1 - done) * GAMMA * (smaller - alpha * next_log_pi).view(-1)
        qf1_loss = F.mse_loss(qf1(x, action).view(-1), value)
        qf2_loss = F.mse_loss(qf2(x, action).view(-1), value)
        qf_loss = qf1_loss + qf2_loss
        q_optimizer.zero_grad()
        qf_loss.backward()
        q_optimizer.step()

        pi, log_pi = actor.act(x)
        actor_loss = (alpha * log_pi - torch.min(qf1(x, pi), qf2(x, pi))).mean()
        actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_optimizer.step()

        with torch.no_grad():
            _, log_pi = actor.act(x)
        alpha_loss = (-log_alpha.exp() * (log_pi + target_entropy)).mean()
        alpha_optimizer.zero_grad()
        alpha_loss.backward()
        alpha_optimizer.step()

        with torch.no_grad():
            for critic, target in ((qf1, qf1_target), (qf2, qf2_target)):
                for p, t in zip(critic.parameters(), target.parameters(), strict=True):
                    t.copy_(TAU * p + (1 - TAU) * t)
        return qf_loss.detach()

    return update


def _sac_flops(width: int, batch: int) -> int:
    critic = weights((OBSERVATION + ACTION, width, width, 1))
    actor = weights((OBSERVATION, width, width, 2 * ACTION))
    first = width * (OBSERVATION + ACTION), width * OBSERVATION
    trained = 2 * (6 * critic - 2 * first[0]) + 6 * actor - 2 * first[1]
    # Targets forward; critics forward and to their input for the actor; the actor forward twice as well.
    return batch * (trained + 2 * 2 * critic + 2 * 4 * critic + 2 * 2 * actor)


def _ppo_parts() -> tuple[list[nn.Sequential], tuple[Tensor, ...]]:
    batch, observation, actions = 64, 8, 4
    policy, value = mlp((observation, 64, 64, actions), nn.Tanh), mlp((observation, 64, 64, 1), nn.Tanh)
    x = torch.randn(batch, observation)
    action = torch.randint(actions, (batch,))
    with torch.no_grad():
        log_prob = Categorical(logits=policy(x)).log_prob(action) + 0.1 * torch.randn(batch)
        values = value(x).view(-1) + 0.1 * torch.randn(batch)
    advantage = torch.randn(batch)
    return [policy, value], (x, action, log_prob, advantage, values + advantage, values)


def _ppo(policy: nn.Module, value: nn.Module) -> Update:
    parameters = [*policy.parameters(), *value.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2.5e-4, eps=1e-5)
    clip = 0.2

    def update(
        x: Tensor, action: Tensor, old_log_prob: Tensor, advantage: Tensor, returns: Tensor, values: Tensor
    ) -> Tensor:
        chosen = Categorical(logits=policy(x), validate_args=False)
        ratio = (chosen.log_prob(action) - old_log_prob).exp()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        pg_loss = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip)).mean()
        new_value = value(x).view(-1)
        clipped = values + torch.clamp(new_value - values, -clip, clip)
        v_loss = 0.5 * torch.max((new_value - returns) ** 2, (clipped - returns) ** 2).mean()
        loss = pg_loss - 0.01 * chosen.entropy().mean() + v_loss * 0.5
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        answer: Tensor = loss.detach()
        return answer

    return update


_DQN = (4, 120, 84, 2)


def _dqn_parts() -> tuple[list[nn.Sequential], tuple[Tensor, ...]]:
    batch = 128
    network, target = mlp(_DQN), mlp(_DQN)
    target.load_state_dict(network.state_dict())
    x, following = torch.randn(batch, 4), torch.randn(batch, 4)
    action, reward = torch.randint(2, (batch, 1)), torch.ones(batch)
    return [network, target], (x, action, reward, following, (torch.rand(batch) < 0.1).float())


def _dqn(network: nn.Module, target: nn.Module) -> Update:
    optimizer = torch.optim.Adam(network.parameters(), lr=2.5e-4)

    def update(x: Tensor, action: Tensor, reward: Tensor, following: Tensor, done: Tensor) -> Tensor:
        with torch.no_grad():
            best, _ = target(following).max(dim=1)
            value = reward + GAMMA * best * (1 - done)
        loss = F.smooth_l1_loss(network(x).gather(1, action).squeeze(1), value)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return update


_ACTOR = (OBSERVATION, 256, 256, ACTION)


def _act_parts() -> tuple[list[nn.Sequential], tuple[Tensor, ...]]:
    return [mlp(_ACTOR), mlp(_ACTOR)], (torch.randn(1, OBSERVATION),)


def _act(mean: nn.Module, log_std: nn.Module) -> Update:
    @torch.no_grad()
    def act(x: Tensor) -> Tensor:
        m, s = mean(x), torch.clamp(log_std(x), -5, 2)
        return torch.tanh(m + s.exp() * torch.randn_like(m))

    return act


def _act_arguments(networks: list[list[Tensor]], data: list[Tensor]) -> Mapping[str, Any]:
    """Arguments including the noise of the compared calls."""
    noise = []
    for call in range(CHECKED_CALLS):
        torch.manual_seed(call)
        noise.append(torch.randn(1, ACTION))
    return {"networks": networks, "data": data, "noise": noise}


def _sac_program(width: int) -> Program:
    batch = 256
    return Program(
        f"SAC {width}x{width}, batch {batch}",
        partial(_sac_parts, width, batch),
        _sac,
        _sac_flops(width, batch),
        twin="sac_update",
        random=True,
        quick=width == 64,
    )


PROGRAMS = [
    _sac_program(64),
    _sac_program(256),
    Program(
        "PPO 64x64, batch 64",
        _ppo_parts,
        _ppo,
        training_flops(64, 8, 64, 64, 4) + training_flops(64, 8, 64, 64, 1),
        twin="ppo_update",
        quick=True,
    ),
    Program(
        "DQN 4-120-84-2, batch 128",
        _dqn_parts,
        _dqn,
        training_flops(128, *_DQN) + 128 * 2 * weights(_DQN),
        twin="dqn_update",
        quick=True,
    ),
    Program(
        "act 11-256-256-3, one row",
        _act_parts,
        _act,
        2 * 2 * weights(_ACTOR),
        twin="act",
        random=True,
        learns=False,
        twin_arguments=_act_arguments,
    ),
]
