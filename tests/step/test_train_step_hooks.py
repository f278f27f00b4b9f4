"""Any registered hook runs: a native step, which has no autograd, then leaves the step to torch."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge, register_multi_grad_hook, saved_tensors_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fastnn
from fastnn import _torch_internals
from train_steps import (
    LOSSES,
    OPTIMIZERS,
    TOLERANCE,
    Kept,
    accumulator,
    chain,
    classes_of,
    eager_step,
    model_for,
    native,
    reason,
    recorded,
    started,
)

Call = Callable[..., None]


class Entered:
    """A context that is exited by `remove`."""

    def __init__(self, context: AbstractContextManager[Any]) -> None:
        self.context = context
        context.__enter__()

    def remove(self) -> None:
        self.context.__exit__(None, None, None)


def _pack(call: Call) -> Callable[[Tensor], Tensor]:
    def pack(t: Tensor) -> Tensor:
        call()
        return t

    return pack


HOOKS: dict[str, Callable[[Any, Call], Any]] = {
    "accumulator": lambda s, call: Kept(accumulator(s.model[0].weight), "register_hook", call),
    "accumulator before": lambda s, call: Kept(accumulator(s.model[2].bias), "register_prehook", call),
    "gradient edge": lambda s, call: Kept(get_gradient_edge(s.model[2].weight).node, "register_hook", call),
    "parameter": lambda s, call: s.model[0].bias.register_hook(call),
    "accumulated": lambda s, call: s.model[0].bias.register_post_accumulate_grad_hook(call),
    "all of several": lambda s, call: register_multi_grad_hook(list(s.model.parameters()), call),
    "any of several": lambda s, call: register_multi_grad_hook(list(s.model.parameters()), call, mode="any"),
    "module": lambda s, call: s.model[1].register_forward_hook(call),
    "module before": lambda s, call: s.model.register_forward_pre_hook(call),
    "module backward": lambda s, call: s.model[2].register_full_backward_hook(call),
    "module before backward": lambda s, call: s.model[2].register_full_backward_pre_hook(call),
    "loss": lambda s, call: s.loss.register_forward_hook(call),
    "all modules": lambda s, call: nn.modules.module.register_module_forward_hook(call),
    "all modules backward": lambda s, call: nn.modules.module.register_module_full_backward_hook(call),
    "optimizer": lambda s, call: s.optimizer.register_step_post_hook(call),
    "all optimizers": lambda s, call: register_optimizer_step_pre_hook(call),
    "all optimizers after": lambda s, call: register_optimizer_step_post_hook(call),
    "saved tensors": lambda s, call: Entered(saved_tensors_hooks(_pack(call), lambda t: t)),
    "saved on the CPU": lambda s, call: Entered(torch.autograd.graph.save_on_cpu()),
}


@pytest.fixture(params=["adam", "sgd"])
def step(request: pytest.FixtureRequest) -> Any:
    model = chain([6, 8, 5])
    return fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS[request.param](model.parameters()))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_hook_makes_the_step_eager(kind: str, steps: int, step: Any) -> None:
    for _ in range(steps):
        native(step, *batch())
    calls: list[int] = []
    hook = HOOKS[kind](step, lambda *_: calls.append(1))
    try:
        for i in range(2):
            assert "hook" in reason(step, *batch())
            assert len(calls) > i or kind == "saved on the CPU"
    finally:
        hook.remove()
    for _ in range(4):  # with a hook in the model, its removal is not checked in every call
        step(*batch())
    count = len(calls)
    native(step, *batch())
    assert len(calls) == count


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_of_an_input_makes_the_step_eager(register: str, step: Any) -> None:
    x, y = batch()
    calls: list[int] = []
    getattr(x.requires_grad_(), register)(lambda _: calls.append(1))
    for i in range(6):
        assert reason(step, x, y) is not None
        assert len(calls) == i + 1


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_of_a_parameter_that_only_the_loss_reaches(register: str) -> None:
    judge, model = nn.Linear(5, 1, dtype=torch.float64), chain([6, 8, 5])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = fastnn.TrainStep(
        model, lambda output, y: judge(output).mean() + F.cross_entropy(output, y), optimizer
    )
    recorded(step, *batch())
    native(step, *batch())
    calls: list[int] = []
    getattr(judge.weight, register)(lambda _: calls.append(1))
    for _ in range(6):
        step(*batch())
    assert len(calls) == 6


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("where", ["loss", "last module"])
def test_a_hook_of_every_loss_is_run(name: str, where: str, register: str) -> None:
    case = LOSSES[name]
    model = model_for(case, [6, 8, 5])
    step = fastnn.TrainStep(model, case.make(5), OPTIMIZERS["sgd"](model.parameters()))
    x, y = torch.randn(7, 6, dtype=torch.float64), case.target(7, 5)
    native(step, x, y)
    calls: list[int] = []
    hooked = step.loss if where == "loss" else model[-1]
    hook = getattr(hooked, register)(lambda *_: calls.append(1))
    assert "hook" in reason(step, x, y)
    assert calls == [1]
    hook.remove()
    for _ in range(4):
        step(x, y)
    native(step, x, y)


@pytest.mark.parametrize("steps", [0, 1])
def test_an_optimizer_in_the_backward(steps: int) -> None:
    """As in torchtune and torchao: each gradient is used and dropped as soon as it arrives."""
    model = chain([6, 8, 5])
    twin = copy.deepcopy(model)

    def in_backward(m: nn.Module) -> list[Any]:
        nodes = []
        for p in m.parameters():
            node = accumulator(p)

            def update(*_: Any, p: Any = p) -> None:
                with torch.no_grad():
                    p.sub_(p.grad, alpha=0.1)
                p.grad = None

            node.register_hook(update)
            nodes.append(node)
        return nodes

    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.01))
    theirs = torch.optim.SGD(twin.parameters(), lr=0.01)
    for i in range(steps + 3):
        if i == steps:
            nodes = in_backward(model), in_backward(twin)
        x, y = batch()
        torch.testing.assert_close(
            step(x, y), eager_step(twin, F.cross_entropy, theirs, x, y), rtol=TOLERANCE, atol=TOLERANCE
        )
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)
    del nodes


def test_a_graph_that_is_kept_does_no_harm(step: Any) -> None:
    """An actor's loss keeps the accumulators of the critic alive, without hooks."""
    x, y = batch()
    for _ in range(3):
        loss = F.cross_entropy(step.model(x), y)
        native(step, x, y)
        loss = F.cross_entropy(step.model(x), y)
        loss.backward(inputs=[step.model[0].weight])
        native(step, x, y)
    del loss
    native(step, x, y)


def test_a_hook_on_an_accumulator_that_a_graph_keeps(step: Any) -> None:
    x, y = batch()
    loss = step.model(x).sum()
    native(step, x, y)
    calls: list[int] = []
    hook = accumulator(step.model[0].weight).register_hook(lambda *_: calls.append(1))
    assert reason(step, x, y) == "a parameter has a hook"
    assert calls == [1]
    hook.remove()
    native(step, x, y)
    accumulator(step.model[0].weight).register_hook(lambda *_: calls.append(1))
    del loss  # and the accumulator, with its hook
    native(step, x, y)
    assert calls == [1]


def test_a_view_that_is_kept_does_no_harm(step: Any) -> None:
    with torch.no_grad():
        views = [p.view(-1) for p in step.model.parameters()]
    for _ in range(2):
        native(step, *batch())
    kept = Kept(accumulator(step.model[0].weight), "register_hook", lambda *_: None)
    assert reason(step, *batch()) == "a parameter has a hook"
    assert len(views) == 4
    kept.remove()


@pytest.mark.parametrize("graph", [False, True])
def test_the_accumulators_that_a_conversion_makes(graph: bool, step: Any) -> None:
    """torch drops an accumulator when the dtype of its parameter changes."""
    x, y = batch()
    native(step, x, y)
    loss = step.model(x).sum() if graph else None
    native(step, x, y)
    step.model.float().double()
    hooks = [Kept(accumulator(p), "register_hook", lambda *_: None) for p in step.model.parameters()]
    assert reason(step, x, y) == "a parameter has a hook"
    for hook in hooks:
        hook.remove()
    native(step, x, y)
    del loss


@pytest.mark.parametrize("graph", [False, True])
def test_parameters_that_are_swapped(graph: bool, step: Any) -> None:
    """`swap_tensors` leaves a hook that raises on an accumulator that is alive."""
    x, y = batch()
    native(step, x, y)
    if graph:
        loss = step.model(x).sum()
        native(step, x, y)
        del loss
    for linear in (step.model[0], step.model[2]):
        torch.utils.swap_tensors(linear.weight, nn.Parameter(torch.randn_like(linear.weight)))
    for _ in range(3):
        native(step, x, y)
    step.model[0].register_forward_hook(lambda *_: None)
    assert "hook" in reason(step, x, y)


def test_parameters_that_a_conversion_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain([6, 8, 5])
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    x, y = batch()
    native(step, x, y)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.float()
        native(step, x.float(), y)
        model.double()
        native(step, x, y)
        reason(step, x.requires_grad_(), y)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_copies_have_no_hooks(step: Any) -> None:
    """torch copies no hooks of accumulators."""
    native(step, *batch())
    hook = Kept(accumulator(step.model[0].weight), "register_hook", lambda *_: None)
    reason(step, *batch())
    for twin in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        native(twin, *batch())
        assert reason(step, *batch()) == "a parameter has a hook"
    hook.remove()
    native(copy.deepcopy(step), *batch())


def test_a_parameter_that_is_frozen_for_a_while(step: Any) -> None:
    weight = step.model[0].weight
    native(step, *batch())
    weight.requires_grad_(False)
    assert "frozen" in reason(step, *batch())
    weight.requires_grad_(True)
    native(step, *batch())
    kept = Kept(accumulator(weight), "register_hook", lambda *_: None)
    weight.requires_grad_(False)
    assert "frozen" in reason(step, *batch())
    weight.requires_grad_(True)
    assert "a parameter has a hook" in reason(step, *batch())
    kept.remove()


def test_hooks_of_a_process_group_are_not_seen(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DistributedDataParallel` hooks accumulators from C++."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    native(step, *batch())
    nodes = [accumulator(p) for p in step.model.parameters()]
    assert reason(step, *batch()) == "a parameter has a hook"
    del nodes
    native(step, *batch())


@pytest.mark.parametrize("hooked", [False, True])
def test_a_cycle_through_a_parameter_is_freed(hooked: bool) -> None:
    x, y = batch()
    model = chain([6, 8, 5])
    step = started(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"], x, y)
    model[0].weight.owner = model.step = step
    loss = model(x).sum()
    native(step, x, y)  # checks the live accumulators
    if hooked:
        kept = Kept(accumulator(model[0].weight), "register_hook", lambda *_, owner=model: None)
        reason(step, x, y)
        kept.remove()
        del kept
    gone = weakref.ref(model)
    del loss, model, step
    gc.collect()
    assert gone() is None


def test_an_epoch_runs_hooks(step: Any) -> None:
    x, y = torch.randn(21, 6, dtype=torch.float64), classes_of(21, 5)
    step.epoch(x, y, 7)
    calls: list[int] = []
    kept = Kept(accumulator(step.model[0].weight), "register_hook", lambda *_: calls.append(1))
    step.epoch(x, y, 7)
    assert len(calls) == 3
    with saved_tensors_hooks(_pack(lambda: calls.append(1)), lambda t: t):
        step.epoch(x, y, 7)
    assert len(calls) > 6
    kept.remove()


def test_a_torch_that_has_other_names(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_internals, "names_known", False)
    assert "does not find them" in reason(step, *batch())


def test_started_by_a_hooked_step() -> None:
    """A hook that precedes the plan, and the state left by a refused step."""
    model = chain([6, 8, 5])
    kept = Kept(accumulator(model[0].weight), "register_prehook", lambda *_: None)
    step = started(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"], *batch())
    assert reason(step, *batch()) == "a parameter has a hook"
    kept.remove()
    assert reason(step, *batch()) == "a parameter has a hook"  # after two refusals, assumed for one call
    native(step, *batch())
