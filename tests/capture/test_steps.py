"""Captured training steps do what torch does."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import fastnn
from twins import Twins, batch, classify, net, same

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adam-amsgrad": functools.partial(torch.optim.Adam, amsgrad=True, weight_decay=0.1),
    "adamw": torch.optim.AdamW,
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "sgd-momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": functools.partial(torch.optim.RMSprop, centered=True, momentum=0.5),
    "adagrad": torch.optim.Adagrad,
    "fastnn-adam": fastnn.optim.Adam,
    "fastnn-sgd": functools.partial(fastnn.optim.SGD, lr=0.1, momentum=0.9),
    "nadam": torch.optim.NAdam,
    "foreach": functools.partial(torch.optim.Adam, foreach=True),
    "fused": functools.partial(torch.optim.Adam, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_each_optimizer_steps_as_torchs(optimizer: Any) -> None:
    twins = Twins(classify, net(), optimizer)
    for _ in range(6):
        twins.call(*batch())
    assert len(twins.programs) == 1
    states = [o.state_dict()["state"] for o in twins.optimizers]
    same(states[1], states[0])


@pytest.mark.parametrize(
    "extra",
    [[nn.Dropout(0.3)], [nn.BatchNorm1d(16)], [nn.LayerNorm(16), nn.GELU()], [nn.Tanh(), nn.Linear(16, 16)]],
    ids=["dropout", "batchnorm", "layernorm", "tanh"],
)
def test_each_model_trains_as_in_torch(extra: list[nn.Module]) -> None:
    twins = Twins(classify, net(*extra), torch.optim.Adam)
    for _ in range(6):
        twins.call(*batch())
    assert len(twins.programs) == 1


def test_clipping_and_a_schedule() -> None:
    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        def step(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            return loss.detach(), norm

        return step

    twins = Twins(make, net(), functools.partial(torch.optim.SGD, lr=0.1))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.7) for o in twins.optimizers]
    for _ in range(6):
        twins.call(*batch())
        for schedule in schedules:
            schedule.step()
    assert len(twins.programs) == 1


def test_several_models_and_steps_in_one_call() -> None:
    """Two optimizers, one of which steps twice; a target that is updated softly."""

    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        torch.manual_seed(1)
        target = net()
        other = torch.optim.SGD(target.parameters(), lr=0.01)

        def step(x: torch.Tensor, y: torch.Tensor) -> Any:
            with torch.no_grad():
                wanted = target(x).softmax(-1)
            losses = []
            for _ in range(2):
                loss = nn.functional.cross_entropy(model(x), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            for p, t in zip(model.parameters(), target.parameters(), strict=True):
                t.data.copy_(0.05 * p.data + 0.95 * t.data)
            other.zero_grad()
            (target(x) - model(x).detach()).square().mean().backward()
            other.step()
            return {"losses": losses, "weights": [p.detach().clone() for p in target.parameters()]}

        return step

    twins = Twins(make, net(), torch.optim.Adam)
    for _ in range(6):
        twins.call(*batch())
    assert len(twins.programs) == 1


def test_random_numbers_are_torchs() -> None:
    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        generator = torch.Generator().manual_seed(3)

        def sample(x: torch.Tensor) -> Any:
            with torch.no_grad():
                mean = model(x)
                noise = torch.distributions.Normal(mean, torch.ones_like(mean)).sample()
                return noise + torch.randn(mean.shape, generator=generator) + torch.rand_like(mean)

        return sample

    twins = Twins(make, net(), torch.optim.Adam)
    for _ in range(6):
        twins.call(batch()[0])
    assert len(twins.programs) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_gives_what_torch_gives(mode: Any) -> None:
    model = net()
    act = fastnn.capture(model)
    for _ in range(5):
        x = torch.randn(1, 8)
        with mode():
            got = act(x)
            same(got, model(x))
            assert got.is_inference() == (mode is torch.inference_mode)
    assert len(act.programs) == 1
    assert not got.requires_grad


def test_number_of_threads() -> None:
    """Results are bitwise the same."""
    weights = []
    for threads in (1, 2):
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        model = nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 3)
        )
        step = fastnn.capture(classify(model, torch.optim.Adam(model.parameters())), check=False)
        fixed = torch.randn(256, 64), torch.randint(0, 3, (256,))
        with fastnn.disabled():
            pass
        for _ in range(2):  # by torch, with a fixed number of threads
            torch.set_num_threads(1)
            step(*fixed)
        torch.set_num_threads(threads)
        for _ in range(5):
            step(*fixed)
        assert len(step.programs) == 1
        weights.append([p.detach().clone() for p in model.parameters()])
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("outer", [True, False])
def test_inference_mode_within(inner: bool, outer: bool) -> None:
    model = net()

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode(inner), torch.no_grad():
            y = model(x)
            return [y, y[1:], torch.complex(y, y), y.argmax(-1), y[:0], x[0], x]

    act = fastnn.capture(run, native=True)
    for _ in range(6):
        x = torch.randn(4, 8)
        with torch.inference_mode(outer):
            got, expected = act(x), run(x)
        same(got, expected)
        assert [t.is_inference() for t in got] == [t.is_inference() for t in expected]
    assert act.programs[0].native.runs > 2


@torch.inference_mode()
def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_inference_mode_as_a_decorator() -> None:
    act = fastnn.capture(_double, native=True)
    for _ in range(5):
        assert act(torch.ones(3)).is_inference()
