"""convert of modules with a forward of their own that can be seen through, and when it runs as written."""

from __future__ import annotations

import abc
import copy
import io
import pickle
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn
from fastnn.ops.linear import ACTIVATIONS
from functional_nets import Net, close, ops, reasons, twins

T = torch.nn
LIMIT = 1.0


class Critic(T.Module):
    """Two inputs, and twin heads that are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.a1, self.a2 = T.Linear(8, 5), T.Linear(5, 1)
        self.b1, self.b2 = T.Linear(8, 5), T.Linear(5, 1)

    def forward(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([obs, act], 1)
        a = self.a1(both).relu()
        b = self.b1(both).relu_()
        return self.a2(a), self.b2(b)


class Actor(T.Module):
    """A trunk shared by two heads, a buffer, and an argument with a default value."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = T.ModuleList([T.Linear(6, 5), T.Linear(5, 5)])
        self.relu = T.ReLU(inplace=True)
        self.mean, self.log_std = T.Linear(5, 2), T.Linear(5, 2)
        self.register_buffer("limit", torch.tensor([1.0, 3.0]))

    def forward(self, obs: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        for layer in self.trunk:
            obs = self.relu(layer(obs))
        mean = torch.tanh(self.mean(obs)) * self.limit
        if noise is not None:
            mean = mean + noise
        return {"mean": mean, "log_std": self.log_std(obs).clamp(-5, 2)}


class Agent(T.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = Actor(), Critic()

    def forward(self, obs: Tensor) -> Tensor:
        return torch.minimum(*self.critic(obs, self.actor(obs)["mean"]))


def gradients(model: T.Module, loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [*inputs, *model.parameters()], allow_unused=True))


def test_values_gradients_and_identity() -> None:
    model = Net()
    reference, parameters = copy.deepcopy(model), list(model.parameters())
    keys, text = list(model.state_dict()), repr(model)
    assert fastnn.convert(model) is model
    assert isinstance(model, Net)
    assert type(model).__name__ == "Net"
    assert repr(model) == text
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    x = torch.randn(3, 7, 6, requires_grad=True)
    assert ops(model, x) == ["mlp"]
    close(model(x), reference(x))
    close(gradients(model, model(x).square().sum(), x), gradients(reference, reference(x).square().sum(), x))
    converted = type(model)
    assert type(fastnn.convert(model)) is converted
    assert ops(model, x) == ["mlp"]
    assert type(fastnn.revert(model)) is Net
    assert vars(model).keys() == vars(reference).keys()
    assert torch.equal(model(x), reference(x))
    assert ops(model, x) == []


def test_actor_critic() -> None:
    agent, reference = twins(Agent)
    obs = torch.randn(9, 6)
    assert ops(agent, obs).count("mlp") == 3  # the trunk and both heads of the critic
    close(agent.actor(obs), reference.actor(obs))
    for model in (agent, reference):
        model.critic.requires_grad_(False)
        (-model(obs).mean()).backward()  # the actor's gradient through the critic
    for (name, mine), theirs in zip(agent.named_parameters(), reference.parameters(), strict=True):
        assert (mine.grad is None) == name.startswith(("critic", "actor.log_std"))
        close(mine.grad, theirs.grad)
    close(agent.actor(obs, torch.ones(2)), reference.actor(obs, torch.ones(2)))
    agent.actor.limit.mul_(2)
    reference.actor.limit.mul_(2)
    close(agent(obs), reference(obs))


ACTIVATED: dict[str, list[Callable[..., Any]]] = {
    "relu": [F.relu, torch.relu, lambda z: z.relu(), torch.relu_, T.ReLU(), T.ReLU(inplace=True)],
    "sigmoid": [F.sigmoid, torch.sigmoid, lambda z: z.sigmoid(), T.Sigmoid()],
    "tanh": [F.tanh, torch.tanh, lambda z: z.tanh(), T.Tanh()],
    "gelu": [F.gelu, T.GELU()],
    "gelu_tanh": [T.GELU("tanh")],
    "silu": [F.silu, T.SiLU(), T.SiLU(inplace=True)],
}


class Activated(T.Module):
    def __init__(self, activation: Callable[..., Any]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.activation = T.Linear(6, 5), T.Linear(5, 4), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.fc2(self.activation(self.fc1(x))))


@pytest.mark.parametrize(
    ("name", "activation"), [(name, f) for name, functions in ACTIVATED.items() for f in functions]
)
def test_activations(name: str, activation: Callable[..., Any]) -> None:
    model, x = Activated(activation), torch.randn(4, 6, requires_grad=True)
    reference = copy.deepcopy(model)
    fastnn.convert(model)
    close(model(x), reference(x))
    close(gradients(model, model(x).sum(), x), gradients(reference, reference(x).sum(), x))
    assert (ops(model, x) == ["mlp"]) == (name in ACTIVATIONS)


class GeluTanh(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.fc2(F.gelu(self.fc1(x), approximate="tanh")))


class SingleLayer(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(input=F.relu(self.fc1(x)))


class SeenTwice(Net):
    """What comes out of fc1 is used by two, so only the layers behind it are a chain."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.fc1(x)
        return self.fc3(F.relu(self.fc2(F.relu(h)))), h


class ChangesItsInput(Net):
    """The input changes between the first layer and its activation."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        x.zero_()
        return F.relu(h) + x.sum()


class Iterates(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net = T.Sequential(T.Linear(6, 5), T.ReLU(), T.Linear(5, 4), T.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return self.net[2](F.pad(x, (0, 1)))


Pair = namedtuple("Pair", ["first", "second"])


def shifted(x: Tensor, by: float = 0.5) -> Tensor:
    return x + by


class Helpers(Net, abc.ABC):
    """Methods, properties, functions and named tuples of the user's."""

    gain = 3.0

    @property
    def twice(self) -> float:
        return self.gain * 2

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return F.relu(x)

    def trunk(self, x: Tensor) -> Tensor:
        return self.activate(self.fc2(self.activate(self.fc1(x))))

    def forward(self, x: Tensor) -> Pair:
        first, second = self.fc3(self.trunk(x)).chunk(2, dim=-1)
        return Pair(shifted(first) * self.twice, [second * LIMIT])


@pytest.mark.parametrize(
    ("kind", "native"),
    [
        (GeluTanh, None),
        (SingleLayer, ["linear"]),
        (SeenTwice, ["linear", "mlp"]),
        (ChangesItsInput, ["linear"]),
        (Iterates, ["mlp", "linear"]),
        (Helpers, ["mlp"]),
    ],
)
def test_forms(kind: type[T.Module], native: list[str] | None) -> None:
    model, reference = twins(kind)
    assert reasons(model, torch.randn(4, 6)) == []
    x = torch.randn(4, 6)
    mine, theirs = x.clone(), x.clone()
    close(model(mine), reference(theirs))
    assert type(model(x.clone())) is type(reference(x.clone()))
    close(mine, theirs)
    if native is not None:
        assert ops(model, x.clone()) == native


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc2(F.relu(self.fc1(x))), 0.5, self.training)


def test_the_training_flag() -> None:
    model, reference = twins(Dropping)
    x = torch.randn(40, 6)
    for training in (True, False, True):
        model.train(training)
        reference.train(training)
        assert ops(model, x) == ["mlp"]
        torch.manual_seed(1)
        want = reference(x)
        torch.manual_seed(1)
        close(model(x), want)


@pytest.mark.parametrize("kind", [Net, Agent])
def test_copies(kind: type[T.Module]) -> None:
    model, reference = twins(kind)
    x = torch.randn(4, 6)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(model),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),
        pickle.loads(pickle.dumps(model, protocol=0)),
        torch.load(buffer, weights_only=False),
    ]
    want = ops(model, x)
    for twin in copies:
        assert type(twin) is type(model)
        assert ops(twin, x) == want
        close(twin(x), reference(x))
        assert type(fastnn.revert(twin)) is kind
    deep = copy.deepcopy(model)
    for parameter in deep.parameters():
        parameter.data.zero_()
    close(model(x), reference(x))
    assert deep(x).abs().max() == 0
    model.double()
    close(model(x.double()).float(), reference(x))
    model.load_state_dict(reference.state_dict())
