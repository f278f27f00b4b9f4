"""A training step of a model that takes several inputs, as a critic takes observation and action."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from fastnn import _dispatch
from train_steps import (
    OPTIMIZERS,
    TOLERANCE,
    Optimizer,
    chain,
    classes_of,
    compare,
    eager_step,
    native,
    reason,
    recorded,
    started,
)

Forward = Callable[[Any, Tensor, Tensor], Tensor]


class Critic(nn.Module):
    def __init__(self, activation: str = "relu", dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.net = chain([9, 16, 8, 1], activation, dtype=dtype)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.net(torch.cat([obs, act], 1))


class ActFirst(Critic):
    """Its inputs are concatenated in another order than passed."""

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        x = torch.cat((act, obs), dim=-1)
        return self.net(x)


class Keywords(Critic):
    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.net(torch.cat(dim=1, tensors=(obs, act)))


class Concat(Critic):
    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.net(torch.concat([obs, act], -1)).squeeze(-1)


class Concatenate(Critic):
    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        x = torch.concatenate([obs, act], dim=1)
        return self.net(x.view(x.size(0), -1))


class ByLayers(Critic):
    """As written in most reinforcement learning code."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(9, 16, dtype=torch.float64), nn.Linear(16, 1, dtype=torch.float64)
        del self.net

    def forward(self, obs: Tensor, act: Tensor, scale: float = 1.0) -> Tensor:
        x = torch.cat([obs, act], 1)
        x = F.relu(self.fc1(x))
        return self.fc2(x)


class Goal(Critic):
    def forward(self, obs: Tensor, act: Tensor, goal: Tensor) -> Tensor:
        return self.net(torch.cat([goal, obs, act], 1))


def batch_of(m: int = 7, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(m, 6, dtype=dtype), torch.randn(m, 3, dtype=dtype), torch.randn(m, 1, dtype=dtype)


def step_of(model: nn.Module, **options: Any) -> fastnn.TrainStep:
    return fastnn.TrainStep(model, nn.MSELoss(), OPTIMIZERS["sgd"](model.parameters()), **options)


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.05, "keep_grad": True}], ids=["plain", "clip-grad"])
@pytest.mark.parametrize("make", [OPTIMIZERS["adam-l2"], OPTIMIZERS["sgd-momentum"]], ids=["adam", "sgd"])
@pytest.mark.parametrize("kind", [Critic, ActFirst, Keywords, Concatenate, ByLayers])
def test_several_inputs_train_natively(kind: type[Critic], make: Optimizer, options: dict[str, Any]) -> None:
    compare(kind(), nn.MSELoss(), make, [batch_of(m) for m in (7, 33)], TOLERANCE, recorded=True, **options)


def test_a_squeezed_output_and_strided_inputs() -> None:
    wide = torch.randn(20, 30, dtype=torch.float64)
    batches = [
        (wide[::2, :6], wide[::2, 7:13:2], wide[::2, 20]),
        (wide.t()[:9, :6], wide[:9, 3:6].expand(9, 3), wide[:9, 0]),
        (wide[:1, :6], wide[:1, :3].conj(), wide[:1, 0]),
    ]
    compare(Concat(), nn.MSELoss(), OPTIMIZERS["adam-l2"], batches, TOLERANCE, recorded=True)


def test_three_inputs_and_classes() -> None:
    model = Goal()
    model.net = chain([9, 16, 5], "tanh")
    batches = [(*torch.randn(3, 11, 3, dtype=torch.float64), classes_of(11, 5)) for _ in range(3)]
    compare(model, nn.CrossEntropyLoss(), OPTIMIZERS["adamw"], batches, TOLERANCE, recorded=True)


def test_a_converted_model() -> None:
    model = fastnn.convert(ByLayers())
    compare(model, F.mse_loss, OPTIMIZERS["adam-l2"], [batch_of(7)], TOLERANCE, recorded=True, max_norm=0.1)


def test_names_of_arguments() -> None:
    obs, act, y = batch_of()
    step = recorded(step_of(Critic()), obs, act, y)
    assert native(step, obs, act, y) > 0
    seen = fastnn.explain(step, obs, act, target=y)
    assert dict(seen.decisions)["train_step"] is None
    one = step_of(chain([6, 1]))
    for called in ({"input": obs, "target": y}, {"target": y, "input": obs}):
        assert dict(fastnn.explain(one, **called).decisions) == {"train_step": None}
    assert dict(fastnn.explain(one, obs, target=y).decisions) == {"train_step": None}


def test_too_few_arguments() -> None:
    step = step_of(Critic())
    with pytest.raises(TypeError, match="expected the model's inputs and the target, got one argument"):
        step(torch.randn(7, 6))
    with pytest.raises(TypeError, match="'input'"):
        step()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'act'"):  # torch's own, of the model's forward
        step(torch.randn(7, 6), torch.randn(7, 1))
    with pytest.raises(TypeError, match="'goal'"):
        step(*batch_of(), goal=3)  # type: ignore[call-arg]


class Subclass(Tensor):
    pass


def _in(number: int, change: Callable[[Tensor], Any]) -> Callable[..., list[Any]]:
    return lambda *batch: [change(t) if i == number else t for i, t in enumerate(batch)]


@pytest.mark.parametrize(
    "change",
    [
        _in(1, lambda t: t.to(torch.uint8)),
        _in(0, lambda t: t.to(torch.uint8)),
        _in(1, lambda t: t.long()),
        _in(1, lambda t: t.float()),
        lambda *batch: [t.float() for t in batch],
        _in(1, lambda t: t[0]),
        _in(0, lambda t: t[None]),
        lambda o, a, y: (o[0], a[0], y[0]),
        lambda o, a, y: (o[None], a[None], y[None]),
        _in(1, lambda t: None),
        _in(1, lambda t: 3.0),
        _in(1, lambda t: t[:, :2]),
        lambda *batch: [t[:0] for t in batch],
        _in(0, lambda t: t.requires_grad_()),
        _in(1, lambda t: t.as_subclass(Subclass)),
        _in(1, lambda t: t.to_sparse()),
        _in(1, lambda t: torch.complex(t, t).conj().imag),
        _in(2, lambda t: t.requires_grad_()),
        lambda o, a, y: (o, a, a, y),
        lambda o, a, y: (torch.cat([o, a], 1), y),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_odd_batches_are_left_to_torch(change: Callable[..., list[Any]]) -> None:
    """The same loss, or an error of the same type, each time."""
    batch = change(*batch_of())
    results = []
    for off in (False, True):
        torch.manual_seed(0)
        step = recorded(step_of(Critic()), *(torch.ones(7, n, dtype=torch.float64) for n in (6, 3, 1)))
        for _ in range(5):
            try:
                with fastnn.disabled() if off else contextlib.nullcontext():
                    results.append(step(*batch))
            except (RuntimeError, TypeError, IndexError) as error:
                results.append(type(error))
    for ours, theirs in zip(results[:5], results[5:], strict=True):
        if isinstance(theirs, type):
            assert ours is theirs
        else:
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def test_rows_that_do_not_fit() -> None:
    obs, act, y = batch_of()
    step = started(Critic(), nn.MSELoss(), OPTIMIZERS["adam"], obs, act, y)
    before = copy.deepcopy((step.model.state_dict(), step.optimizer.state_dict()))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):  # torch's own
        step(obs, act[:5], y)
    after = step.model.state_dict(), step.optimizer.state_dict()
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_one_input_where_the_model_takes_one() -> None:
    step = step_of(chain([9, 1]))
    obs, act, y = batch_of()
    seen: list[Any] = []
    with _dispatch.recording(seen.append), pytest.raises(TypeError):
        step(obs, act, y)
    assert seen[0].reason == "the model is given 2 inputs"


def test_gradients_reach_inputs() -> None:
    obs, act, y = batch_of()
    step = started(Critic(), nn.MSELoss(), OPTIMIZERS["sgd"], obs, act, y)
    with torch.no_grad():  # so that torch.cat records nothing
        step(obs, act.requires_grad_(), y)
    assert act.grad is not None


def test_bytes_are_normalised_one_by_one() -> None:
    model = Critic()
    twin = copy.deepcopy(model)
    step = step_of(model, mean=0.1, std=0.3)
    _, act, y = batch_of()
    image = torch.randint(256, (7, 6), dtype=torch.uint8)
    step(image, act, y)
    eager_step(
        twin, F.mse_loss, OPTIMIZERS["sgd"](twin.parameters()), (image.double() / 255 - 0.1) / 0.3, act, y
    )
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)


def test_only_the_first_input_is_an_image() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1, dtype=torch.float64)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(x) * mask

    model = Masked()
    x, _, y = batch_of()
    mask = torch.randint(4, (7, 1), dtype=torch.uint8)
    step = fastnn.TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.0))
    recorded(step, x, mask, y)
    for _ in range(2):
        torch.testing.assert_close(step(x, mask, y), F.mse_loss(model(x, mask), y).detach())


def test_kept_gradients_in_the_memory_of_an_input() -> None:
    obs, act, y = batch_of(16)
    model = Critic()
    model.net[0] = nn.Linear(9, 6, dtype=torch.float64)
    model.net[2] = nn.Linear(6, 16, dtype=torch.float64)
    model.net[4] = nn.Linear(16, 1, dtype=torch.float64)
    kept = obs.clone()
    for keep_grad in (True, False):
        step = recorded(step_of(model, keep_grad=keep_grad), obs, act, y)
        native(step, obs, act, y)
        model.net[2].weight.grad = obs
        step(obs, act, y)
        assert torch.equal(obs, kept)


def test_an_input_in_the_memory_of_a_parameter() -> None:
    """It is read before the parameter is written."""
    model = Critic()
    model.net[2] = nn.Linear(16, 6, dtype=torch.float64)
    model.net[4] = nn.Linear(6, 1, dtype=torch.float64)
    twin = copy.deepcopy(model)
    _, act, y = batch_of(6)
    step, theirs = step_of(model), OPTIMIZERS["sgd"](twin.parameters())
    for _ in range(5):
        step(model.net[2].weight.detach()[:, :6], act, y)
        eager_step(twin, F.mse_loss, theirs, twin.net[2].weight.detach()[:, :6].clone(), act, y)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)


def test_transforms_and_modes_run_eagerly() -> None:
    batch = batch_of()
    step = recorded(step_of(Critic()), *batch)
    with fastnn.disabled():
        assert reason(step, *batch) == "fastnn is disabled"
    with torch.autocast("cpu"):
        assert "autocast" in reason(step, *batch)
    with torch.autograd.set_detect_anomaly(True):
        assert "anomaly" in str(dict(fastnn.explain(step, *batch).decisions)["train_step"])
    native(step, *batch)


def test_an_epoch_has_one_input() -> None:
    model = Critic()
    step = step_of(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="'act'"):
        step.epoch(torch.randn(20, 9, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64), 5)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
