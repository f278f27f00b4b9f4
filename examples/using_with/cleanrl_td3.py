"""CleanRL: its TD3 with one native call for each critic's step, and the same in plain torch.

The networks and the update are those of CleanRL's `td3_continuous_action.py`; the environment is a point that
is to be pushed to the origin. Checks that both train the same weights, that every step of a critic was
native, and that the agent comes closer than chance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn

OBS, ACT, BATCH, GAMMA, TAU, LR = 4, 2, 128, 0.95, 0.005, 1e-3
POLICY_NOISE, NOISE_CLIP, POLICY_FREQUENCY = 0.2, 0.5, 2


class QNetwork(nn.Module):
    """A critic."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(OBS + ACT, 256), nn.Linear(256, 256), nn.Linear(256, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        """Values `(N, 1)` of actions in states."""
        x = torch.cat([x, a], 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Actor(nn.Module):
    """A deterministic policy."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc_mu = nn.Linear(OBS, 256), nn.Linear(256, 256), nn.Linear(256, ACT)

    def forward(self, x: Tensor) -> Tensor:
        """Actions `(N, ACT)` in [-1, 1]."""
        return torch.tanh(self.fc_mu(F.relu(self.fc2(F.relu(self.fc1(x))))))


class Batch(NamedTuple):
    """Transitions."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    rewards: Tensor


class Agent:
    """CleanRL's update in plain torch; no state of the environment ends an episode."""

    def __init__(self) -> None:
        self.actor, self.qf1, self.qf2 = Actor(), QNetwork(), QNetwork()
        self.target_actor, self.qf1_target, self.qf2_target = map(
            copy.deepcopy, (self.actor, self.qf1, self.qf2)
        )
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=LR)
        self.q_optimizer = torch.optim.Adam([*self.qf1.parameters(), *self.qf2.parameters()], lr=LR)

    def target(self, data: Batch) -> Tensor:
        """What the critics learn, `(N,)`."""
        with torch.no_grad():
            noise = (torch.randn_like(data.actions) * POLICY_NOISE).clamp(-NOISE_CLIP, NOISE_CLIP)
            next_actions = (self.target_actor(data.next_observations) + noise).clamp(-1, 1)
            qf1_next = self.qf1_target(data.next_observations, next_actions)
            qf2_next = self.qf2_target(data.next_observations, next_actions)
            return data.rewards.flatten() + GAMMA * torch.min(qf1_next, qf2_next).view(-1)

    def update_critics(self, data: Batch) -> None:
        """Take a step with the critics."""
        next_q_value = self.target(data)
        qf1_loss = F.mse_loss(self.qf1(data.observations, data.actions).view(-1), next_q_value)
        qf2_loss = F.mse_loss(self.qf2(data.observations, data.actions).view(-1), next_q_value)
        self.q_optimizer.zero_grad()
        (qf1_loss + qf2_loss).backward()
        self.q_optimizer.step()

    def update_actor(self, data: Batch) -> None:
        """Take a step with the actor, and let the targets follow."""
        actor_loss = -self.qf1(data.observations, self.actor(data.observations)).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        for net, target in self.pairs():
            for param, target_param in zip(net.parameters(), target.parameters(), strict=True):
                target_param.data.copy_(TAU * param.data + (1 - TAU) * target_param.data)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each network and its target."""
        return [
            (self.actor, self.target_actor),
            (self.qf1, self.qf1_target),
            (self.qf2, self.qf2_target),
        ]


class FastAgent(Agent):
    """The same update with fastnn."""

    def __init__(self) -> None:
        super().__init__()
        for net, target in self.pairs():
            fastnn.convert(net)
            fastnn.convert(target)
        fastnn.convert(self.actor_optimizer)
        # An optimizer for each: a step is native where its optimizer has the parameters of one model.
        self.qf1_step, self.qf2_step = (
            fastnn.TrainStep(qf, F.mse_loss, fastnn.optim.Adam(qf.parameters(), lr=LR))
            for qf in (self.qf1, self.qf2)
        )
        self.networks = [p for net, _ in self.pairs() for p in net.parameters()]
        self.targets = [p for _, target in self.pairs() for p in target.parameters()]

    def update_critics(self, data: Batch) -> None:
        """Take a step with the critics."""
        next_q_value = self.target(data).unsqueeze(1)  # (N, 1), as the critics' output
        self.qf1_step(data.observations, data.actions, next_q_value)
        self.qf2_step(data.observations, data.actions, next_q_value)

    def update_actor(self, data: Batch) -> None:
        """Take a step with the actor, and let the targets follow."""
        actor_loss = -self.qf1(data.observations, self.actor(data.observations)).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward(inputs=list(self.actor.parameters()))  # no gradients of the critic
        self.actor_optimizer.step()
        fastnn.optim.polyak_(self.targets, self.networks, TAU)


def push(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """The states `(N, OBS)`, place and speed, a moment later, and rewards `(N,)`."""
    place, speed = state.split(2, dim=1)
    speed = 0.8 * speed + 0.2 * action
    place = (place + speed).clamp(-2, 2)
    return torch.cat([place, speed], 1), -place.norm(dim=1)


def mean_reward(act: Callable[[Tensor], Tensor]) -> float:
    """Of an episode of 30 moments, over 64 beginnings."""
    state = torch.randn(64, OBS, generator=torch.Generator().manual_seed(1))
    total = torch.zeros(64)
    for _ in range(30):
        state, reward = push(state, act(state))
        total += reward
    return total.mean().item()


def train(agent: Agent, updates: int) -> None:
    """Update on transitions of random pushes."""
    torch.manual_seed(2)
    for step in range(updates):
        state, action = torch.randn(BATCH, OBS), torch.rand(BATCH, ACT) * 2 - 1
        data = Batch(state, action, *push(state, action))
        agent.update_critics(data)
        if step % POLICY_FREQUENCY == 0:
            agent.update_actor(data)


def main() -> None:
    torch.manual_seed(0)
    plain = Agent()
    torch.manual_seed(0)
    fast = FastAgent()

    train(plain, 40)
    seen = fastnn.explain(train, fast, 40)
    reasons = [d.reason for d in seen.decisions if d.op == "train_step"]
    assert reasons[6:] == [None] * 74, seen  # after three steps of each critic that are recorded
    for mine, theirs in zip(fast.pairs(), plain.pairs(), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=1e-3, atol=1e-4)
    print("74 of 80 steps of critics native, weights and targets as without fastnn")

    train(fast, 400)
    with torch.no_grad():
        learnt, at_rest = mean_reward(fast.actor), mean_reward(lambda state: torch.zeros(64, ACT))
    assert learnt > at_rest + 5, (learnt, at_rest)
    print(f"reward {learnt:.1f}, doing nothing {at_rest:.1f}")


if __name__ == "__main__":
    main()
