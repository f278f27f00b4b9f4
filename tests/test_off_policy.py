"""Off-policy reinforcement learning as usually written, with TD3's update, at torch's own accuracy.

Twin critics are trained by `TrainStep`, an actor through the first of them, which is frozen meanwhile, and
slow copies of all three follow by Polyak averaging. The same update in plain torch in float64 is the
reference, and the same in float32 shows the effect of rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from train_steps import eager_step

OBS, ACT, BATCH, UPDATES = 17, 6, 256, 16
MAX_NORM, TAU, DISCOUNT = 0.5, 0.02, 0.99

Activation = Callable[[Tensor], Tensor]
Polyak = Callable[[list[nn.Parameter], list[nn.Parameter]], None]


class Critic(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(OBS + ACT, width), nn.Linear(width, width)
        self.fc3 = nn.Linear(width, 1)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        x = torch.cat([obs, act], 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class TanhCritic(Critic):
    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        x = torch.tanh(self.fc1(torch.cat([obs, act], dim=-1)))
        return self.fc3(torch.tanh(self.fc2(x)))


class Actor(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(OBS, width), nn.Linear(width, width), nn.Linear(width, ACT)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.fc3(F.relu(self.fc2(F.relu(self.fc1(obs))))))


class TanhActor(Actor):
    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(obs))))))


def _by_data(slow: list[nn.Parameter], fast: list[nn.Parameter]) -> None:
    for p, q in zip(slow, fast, strict=True):
        p.data.mul_(1 - TAU)
        p.data.add_(TAU * q.data)


def _by_foreach(slow: list[nn.Parameter], fast: list[nn.Parameter]) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(slow, fast, TAU)


WARM_UP = 3  # updates after which the critics' steps are recorded


class Agent:
    """TD3 in plain torch."""

    def __init__(self, nets: nn.ModuleDict, polyak: Polyak) -> None:
        self.nets: Any = nets
        self.polyak = polyak
        self.optimizers = {
            name: torch.optim.Adam(nets[name].parameters(), lr=1e-3, eps=1e-5)
            for name in ("actor", "q1", "q2")
        }

    def critic_step(self, name: str, obs: Tensor, act: Tensor, y: Tensor) -> Tensor:
        return eager_step(self.nets[name], F.mse_loss, self.optimizers[name], obs, act, y, max_norm=MAX_NORM)

    def update(self, i: int, batch: list[Tensor]) -> list[Tensor]:
        """One update of the critics, at every second one of the actor and the slow copies; the losses."""
        obs, act, following, reward, done, noise = batch
        nets = self.nets
        with torch.no_grad():
            acting = (nets.slow_actor(following) + noise).clamp(-1, 1)
            value = torch.minimum(nets.slow_q1(following, acting), nets.slow_q2(following, acting))
            y = reward + (1 - done) * DISCOUNT * value
        losses = [self.critic_step(name, obs, act, y) for name in ("q1", "q2")]
        if i % 2:
            losses.append(self.actor_step(obs))
            for name in ("actor", "q1", "q2"):
                self.polyak(list(nets[f"slow_{name}"].parameters()), list(nets[name].parameters()))
        return losses

    def actor_step(self, obs: Tensor) -> Tensor:
        critic, optimizer = self.nets.q1, self.optimizers["actor"]
        critic.requires_grad_(False)
        loss = -critic(obs, self.nets.actor(obs)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        critic.requires_grad_(True)
        return loss.detach()


class FusedAgent(Agent):
    """The same with fastnn."""

    def __init__(self, nets: nn.ModuleDict, polyak: Polyak) -> None:
        super().__init__(fastnn.convert(nets), polyak)
        self.steps = {
            name: fastnn.TrainStep(nets[name], nn.MSELoss(), self.optimizers[name], max_norm=MAX_NORM)
            for name in ("q1", "q2")
        }

    def critic_step(self, name: str, obs: Tensor, act: Tensor, y: Tensor) -> Tensor:
        return self.steps[name](obs, act, y)

    def update(self, i: int, batch: list[Tensor]) -> list[Tensor]:
        seen = fastnn.explain(super().update, i, batch)
        result: list[Tensor] = seen.result
        if i < WARM_UP:
            return result
        assert {decision.reason for decision in seen.decisions} == {None}
        ran = [decision.op for decision in seen.decisions]
        assert ran.count("train_step") == 2
        # The layers of three slow copies; of actor and critic, forward and backward.
        assert ran.count("linear") == 3 * (3 + 2 * (i % 2))
        assert ran.count("linear_backward") == 3 * 2 * (i % 2)
        return result


def batch_of() -> list[Tensor]:
    """Observation, action, next observation, reward, done, and noise on the next action."""
    reward, done = torch.randn(BATCH, 1), torch.rand(BATCH, 1).round()
    noise = (0.2 * torch.randn(BATCH, ACT)).clamp(-0.5, 0.5)
    obs, following = torch.randn(2, BATCH, OBS)
    return [obs, torch.randn(BATCH, ACT).tanh(), following, reward, done, noise]


def train(agents: list[Agent], dtypes: list[torch.dtype]) -> list[list[Tensor]]:
    """Update all agents on the same batches; their parameters and losses in float64."""
    losses: list[list[Tensor]] = [[] for _ in agents]
    for i in range(UPDATES):
        batch = batch_of()
        for agent, dtype, of in zip(agents, dtypes, losses, strict=True):
            of += agent.update(i, [t.to(dtype) for t in batch])
    return [
        [*(p.detach().double() for p in agent.nets.parameters()), torch.stack(of).double()]
        for agent, of in zip(agents, losses, strict=True)
    ]


def nets_of(kind: str) -> nn.ModuleDict:
    actor, critic = (Actor(256), Critic) if kind == "relu" else (TanhActor(64), TanhCritic)
    width = 256 if kind == "relu" else 64
    nets = nn.ModuleDict({"actor": actor, "q1": critic(width), "q2": critic(width)})
    nets.update({f"slow_{name}": copy.deepcopy(net) for name, net in list(nets.items())})
    return nets


@pytest.mark.parametrize("polyak", [_by_data, _by_foreach])
@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_float64_trains_as_torch_does(kind: str, polyak: Polyak) -> None:
    nets = nets_of(kind).double()
    agents = [FusedAgent(copy.deepcopy(nets), polyak), Agent(nets, polyak)]
    ours, exact = train(agents, [torch.float64] * 2)
    for p, r in zip(ours, exact, strict=True):
        # Sums of 256 products are off by some 16 units in the last place, with random rounding; each update
        # may add as much.
        assert (p - r).norm() <= 16 * UPDATES * torch.finfo(torch.float64).eps * r.norm()


@pytest.mark.parametrize("polyak", [_by_data, _by_foreach])
@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_float32_trains_as_torch_does(kind: str, polyak: Polyak) -> None:
    nets = nets_of(kind)
    agents = [
        FusedAgent(copy.deepcopy(nets), polyak),
        Agent(copy.deepcopy(nets), polyak),
        Agent(nets.double(), polyak),
    ]
    ours, theirs, exact = train(agents, [torch.float32, torch.float32, torch.float64])
    for p, q, r in zip(ours, theirs, exact, strict=True):
        allowed = 3 * (q - r).norm() + torch.finfo(torch.float32).eps * r.norm()
        assert (p - r).norm() <= allowed
