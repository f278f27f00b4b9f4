"""What happens to ``.grad``."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastnn
from twins import Twins, batch, classify, net, same


def _grads(model: nn.Module) -> list[torch.Tensor | None]:
    return [p.grad for p in model.parameters()]


def test_not_kept_where_the_function_drops_them() -> None:
    twins = Twins(classify, net(), torch.optim.Adam)
    for _ in range(5):
        twins.call(*batch())
    assert _grads(twins.nets[1]) == [None] * 4


def test_keep_grad_leaves_gradients_in_place() -> None:
    twins = Twins(classify, net(), torch.optim.Adam, keep_grad=True)
    seen = []
    for _ in range(5):
        twins.call(*batch())
        same(_grads(twins.nets[1]), _grads(twins.nets[0]))
        seen.append(twins.nets[1][0].weight.grad)
    assert len({t.data_ptr() for t in seen}) == len(seen), (
        "a gradient that somebody holds is not written again"
    )
    assert len(twins.programs) == 1


class _SharedEncoder:
    """Two functions with an optimizer each; the second accumulates into gradients left by the first."""

    def __init__(self, wrap: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
        torch.manual_seed(0)
        self.encoder, value, policy = nn.Linear(4, 3), nn.Linear(3, 1), nn.Linear(3, 2)
        of_value = torch.optim.SGD([*self.encoder.parameters(), *value.parameters()], 0.1)
        of_policy = torch.optim.SGD([*self.encoder.parameters(), *policy.parameters()], 0.1)

        def critic() -> None:
            of_value.zero_grad()
            value(self.encoder(torch.ones(5, 4))).square().mean().backward()
            of_value.step()

        def actor() -> None:
            policy.zero_grad()
            policy(self.encoder(torch.ones(5, 4))).abs().mean().backward()
            of_policy.step()

        self.critic, self.actor = wrap(critic), wrap(actor)


def test_another_function_steps_on_what_is_left() -> None:
    ours, theirs = _SharedEncoder(functools.partial(fastnn.capture, native=True)), _SharedEncoder(lambda f: f)
    for _ in range(6):
        for pair in (ours, theirs):
            pair.critic()
            pair.actor()
        same(list(ours.encoder.parameters()), list(theirs.encoder.parameters()))


def test_another_function_that_cannot_be_recorded_steps_on_what_is_left() -> None:
    def reading(f: Callable[..., None]) -> Callable[..., None]:
        def reads() -> None:
            torch.ones(1).item()
            f()

        return fastnn.capture(reads if f.__name__ == "actor" else f)

    ours, theirs = _SharedEncoder(reading), _SharedEncoder(lambda f: f)
    with pytest.warns(fastnn.EagerStepWarning, match="a value is read"):
        ours.actor()
    theirs.actor()
    for _ in range(6):
        for pair in (ours, theirs):
            pair.critic()
            pair.actor()
        same(list(ours.encoder.parameters()), list(theirs.encoder.parameters()))


def test_another_function_that_comes_late_is_warned_about() -> None:
    pair = _SharedEncoder(fastnn.capture)
    for _ in range(5):
        pair.critic()
    assert pair.encoder.weight.grad is None
    told = "critic.* eagerly: .*actor.* takes a step with gradients"
    with pytest.warns(fastnn.EagerStepWarning, match=told):
        pair.actor()
    for _ in range(3):
        pair.critic()
        assert pair.encoder.weight.grad is not None


def test_inference_beside_a_function_that_drops_them() -> None:
    model = net()
    twins = Twins(classify, model, torch.optim.Adam)
    for _ in range(5):
        twins.call(*batch())
    act = fastnn.capture(twins.nets[1])
    x, _ = batch()
    for _ in range(4):
        with torch.inference_mode():
            same(act(x), twins.nets[0](x))
    assert len(act.programs) == 1
    assert _grads(twins.nets[1]) == [None] * 4


def _in_a_thread(call: Callable[[], None], count: int) -> None:
    def calls() -> None:
        for _ in range(count):
            call()

    thread = threading.Thread(target=calls)
    thread.start()
    thread.join()


def test_what_another_thread_works_with_is_left_alone() -> None:
    elsewhere = _SharedEncoder(fastnn.capture)
    _in_a_thread(elsewhere.critic, 5)
    assert elsewhere.encoder.weight.grad is None
    seen = []

    @fastnn.capture
    def actor() -> None:
        seen.append(elsewhere.encoder.weight.grad)
        _SharedEncoder(lambda f: f).actor()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastnn.EagerStepWarning)
        for _ in range(3):
            actor()
    assert seen == [None] * 3


def test_a_function_of_another_thread_is_warned_about_who_steps_on_what_it_leaves() -> None:
    pair = _SharedEncoder(fastnn.capture)
    _in_a_thread(pair.critic, 5)
    with pytest.warns(fastnn.EagerStepWarning, match="critic.* eagerly: .*actor.* takes a step"):
        pair.actor()
    for _ in range(3):
        _in_a_thread(pair.critic, 1)
        assert pair.encoder.weight.grad is not None


def _backward(model: nn.Module, optimizer: Any) -> Any:
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return step


def test_accumulation_with_a_step_outside() -> None:
    """Each first call of four finds no gradients, the others accumulate."""
    twins = Twins(_backward, net(), torch.optim.Adam)
    for _ in range(5):
        for _ in range(4):
            twins.call(*batch())
            same(_grads(twins.nets[1]), _grads(twins.nets[0]))
        for optimizer in twins.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert len(twins.programs) == 2


def test_gradients_that_are_zeroed() -> None:
    twins = Twins(_backward, net(), torch.optim.Adam)
    for _ in range(6):
        twins.call(*batch())
        same(_grads(twins.nets[1]), _grads(twins.nets[0]))
        for optimizer in twins.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert len(twins.programs) == 1


def test_zeroed_in_the_function() -> None:
    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=False)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    twins = Twins(make, net(), torch.optim.Adam)
    for _ in range(6):
        twins.call(*batch())
        same(_grads(twins.nets[1]), _grads(twins.nets[0]))


def _two_optimizers(first: Callable[[torch.optim.Optimizer], None]) -> Callable[..., Any]:
    """A step of two optimizers of the same parameters: before its gradients, `first` is called with the one,
    while the other drops the gradients."""

    def make(model: nn.Module, one: torch.optim.Optimizer) -> Callable[..., torch.Tensor]:
        other = torch.optim.SGD(model.parameters(), 0.1)

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            first(one)
            nn.functional.cross_entropy(model(x), y).backward()
            one.step()
            return classify(model, other)(x, y)

        return step

    return make


@pytest.mark.parametrize("keep_grad", [False, True])
def test_zeroed_by_one_optimizer_and_dropped_by_another(keep_grad: bool) -> None:
    make = _two_optimizers(lambda one: one.zero_grad(set_to_none=False))
    twins = Twins(make, net(), torch.optim.Adam, native=True, keep_grad=keep_grad)
    for _ in range(6):
        twins.call(*batch())
        if keep_grad:
            same(_grads(twins.nets[1]), _grads(twins.nets[0]))
    assert len(twins.programs) == 1


def test_refused_if_a_step_uses_what_a_call_left_and_then_it_is_dropped() -> None:
    twins = Twins(_two_optimizers(lambda one: None), net(), torch.optim.Adam)
    twins.call(*batch())
    with pytest.warns(fastnn.EagerStepWarning, match="from before the call is read, and then dropped"):
        twins.call(*batch())
    twins.call(*batch())


def test_dropped_after_the_step() -> None:
    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    twins = Twins(make, net(), torch.optim.Adam)
    for _ in range(6):
        twins.call(*batch())
    assert len(twins.programs) == 1
    twins.nets[1][0].weight.grad = torch.ones(16, 8)
    twins.nets[0][0].weight.grad = torch.ones(16, 8)
    for _ in range(4):  # the first adds to it
        twins.call(*batch())


def test_what_nobody_reads_is_not_computed() -> None:
    """A critic's weight gradients in an actor's loss."""
    actor, critic = nn.Linear(64, 64), nn.Linear(64, 64)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (actor, critic)]

    def step(x: torch.Tensor) -> None:
        for optimizer, loss in zip(
            optimizers, (lambda: critic(actor(x)).mean(), lambda: critic(x).square().mean()), strict=True
        ):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    captured = fastnn.capture(step)
    for _ in range(5):
        captured(torch.randn(32, 64))
    (program,) = captured.programs
    # Of the actor's loss, the gradients of the critic's input and of the actor's weight; of the critic's, its
    # output and the gradient of its weight. The actor's loss itself is not needed.
    assert program.instructions.count("product") == 4


def test_autograd_grad_is_native() -> None:
    model = net()

    def penalty(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x)
        return slope.norm()

    captured = fastnn.capture(penalty)
    for _ in range(5):
        x = torch.randn(4, 8)
        same(captured(x), penalty(x))
    assert len(captured.programs) == 1
    assert _grads(model) == [None] * 4


def test_version_counters() -> None:
    model = net(nn.BatchNorm1d(16))
    step = fastnn.capture(classify(model, torch.optim.Adam(model.parameters())))
    for _ in range(4):
        step(*batch())
    before = [t._version for t in model.state_dict(keep_vars=True).values()]
    step(*batch())
    assert all(t._version > v for t, v in zip(model.state_dict(keep_vars=True).values(), before, strict=True))
