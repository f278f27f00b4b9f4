"""convert and revert of optimizers: torch's become fastnn's in place, during training too, and back."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

import fastnn
from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

Optimizer = torch.optim.Optimizer
KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "Adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}),
}
kinds = pytest.mark.parametrize("name", KINDS)


def parameters() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in ((4, 3), (4,))]


def made(name: str) -> Optimizer:
    kind, options = KINDS[name]
    first, second = parameters()
    return kind([{"params": [first], "lr": 0.05}, {"params": [second]}], **options)


def params_of(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def step(optimizer: Optimizer, number: int) -> list[tuple[str, str | None]]:
    """Take a step with gradients that depend on its number; returns the decisions."""
    generator = torch.Generator().manual_seed(number)
    for param in params_of(optimizer):
        param.grad = torch.randn(param.shape, generator=generator)
    return list(fastnn.explain(optimizer.step).decisions)


def native(decisions: list[tuple[str, str | None]]) -> bool:
    return bool(decisions) and all(reason is None for _, reason in decisions)


def assert_same(mine: Optimizer, theirs: Optimizer) -> None:
    # A few steps with a few roundings each.
    torch.testing.assert_close(params_of(mine), params_of(theirs), rtol=1e-5, atol=1e-6)
    mine_state, their_state = mine.state_dict(), theirs.state_dict()
    assert mine_state["param_groups"] == their_state["param_groups"]
    torch.testing.assert_close(mine_state["state"], their_state["state"], rtol=1e-5, atol=1e-6)


@kinds
def test_convert_and_revert_during_training_match_torch(name: str) -> None:
    mine, theirs = made(name), made(name)
    identity = (mine, mine.state, mine.param_groups, mine.param_groups[0], mine.defaults)
    for number in range(9):
        if number == 3:
            assert fastnn.convert(mine) is mine
            assert type(mine) is getattr(fastnn.optim, name)
            assert fastnn.convert(mine) is mine
        if number == 6:
            assert fastnn.revert(mine) is mine
            assert type(mine) is KINDS[name][0]
        assert native(step(mine, number)) == (3 <= number < 6)
        step(theirs, number)
        assert_same(mine, theirs)
    now = (mine, mine.state, mine.param_groups, mine.param_groups[0], mine.defaults)
    assert all(a is b for a, b in zip(identity, now, strict=True))
    assert repr(mine) == repr(theirs)
    assert vars(mine).keys() == vars(theirs).keys()


def through_torch_save(optimizer: Optimizer) -> Optimizer:
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@kinds
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), through_torch_save]
)
def test_copies_stay_converted(name: str, copied: Callable[[Optimizer], Optimizer]) -> None:
    mine, theirs = fastnn.convert(made(name)), made(name)
    for optimizer in (mine, theirs):
        step(optimizer, 0)
    twin = copied(mine)
    assert type(twin) is type(mine)
    assert native(step(twin, 1))
    step(theirs, 1)
    assert_same(twin, theirs)
    fastnn.revert(twin)
    step(twin, 2)
    step(theirs, 2)
    assert_same(twin, theirs)


@kinds
def test_checkpoints_both_ways(name: str) -> None:
    mine, theirs = fastnn.convert(made(name)), made(name)
    for optimizer in (mine, theirs):
        step(optimizer, 0)
    for source, target in ((mine, made(name)), (theirs, fastnn.convert(made(name)))):
        for param, value in zip(params_of(target), params_of(source), strict=True):
            param.data.copy_(value.data)
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        for number in (1, 2):
            step(target, number)
        assert native(step(target, 3)) == (type(target) is not KINDS[name][0])
        continued = copy.deepcopy(theirs)
        for number in (1, 2, 3):
            step(continued, number)
        assert_same(target, continued)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad])
def test_sparse_gradients(kind: type[Optimizer]) -> None:
    layers = [torch.nn.Embedding(5, 3, sparse=True) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    mine, theirs = (kind(layer.parameters(), lr=0.1) for layer in layers)
    fastnn.convert(mine)
    for _ in range(2):
        for layer, optimizer in zip(layers, (mine, theirs), strict=True):
            optimizer.zero_grad()
            layer(torch.tensor([1, 3])).sum().backward()
            optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)
    refusing = fastnn.convert(torch.optim.Adam(layers[0].parameters()))
    with pytest.raises(RuntimeError, match="sparse gradients"):
        refusing.step()


def test_hooks_and_closures() -> None:
    mine, calls = made("Adam"), []
    mine.register_step_pre_hook(lambda *_: calls.append("pre"))
    mine.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
    fastnn.convert(mine)
    mine.register_step_post_hook(lambda *_: calls.append("post"))
    everybody = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    try:
        assert native(step(mine, 0))
        assert mine.step(lambda: 3.0) == 3.0
    finally:
        everybody.remove()
    mine.load_state_dict(mine.state_dict())
    assert calls == ["pre", "post", "global"] * 2 + ["load"]


@kinds
@pytest.mark.parametrize("first", ["scheduler", "convert"])
@pytest.mark.parametrize("reverted", [False, True])
def test_schedulers_continue(name: str, first: str, reverted: bool) -> None:
    mine, theirs = made(name), made(name)
    if first == "convert":
        fastnn.convert(mine)
    pairs = [(o, lr_scheduler.StepLR(o, 1, 0.5)) for o in (mine, theirs)]
    fastnn.convert(mine)
    assert type(mine) is getattr(fastnn.optim, name)
    if reverted:
        fastnn.revert(mine)
        assert type(mine) is KINDS[name][0]
    for number in range(3):
        for optimizer, scheduler in pairs:
            optimizer._opt_called = False  # set by the scheduler when a step was taken
            decisions = step(optimizer, number)
            assert optimizer._opt_called
            assert native(decisions) == (optimizer is mine and not reverted)
            scheduler.step()
        assert [g["lr"] for g in mine.param_groups] == [g["lr"] for g in theirs.param_groups]
    assert_same(mine, theirs)


def test_a_scheduler_warns_where_no_step_was_taken() -> None:
    mine = made("SGD")
    scheduler = lr_scheduler.StepLR(mine, 1)
    fastnn.convert(mine)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


def test_a_train_step_of_a_converted_optimizer_with_a_scheduler() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
    train = fastnn.TrainStep(model, torch.nn.MSELoss(), fastnn.convert(optimizer))
    seen = fastnn.explain(train, torch.ones(4, 3), torch.ones(4, 2))
    assert native(list(seen.decisions))
    scheduler.step()


class Mine(torch.optim.Adam):
    def step(self, closure: Any = None) -> Any:
        return None


def replaced_on_the_object() -> Optimizer:
    optimizer = made("Adam")
    optimizer.step = lambda: None  # type: ignore[method-assign]
    return optimizer


LEFT: dict[str, tuple[Callable[[], Optimizer], str]] = {
    "subclass": (lambda: Mine(parameters()), "a subclass of torch.optim.Adam"),
    "other": (lambda: torch.optim.Adamax(parameters()), "no counterpart"),
    "replaced": (replaced_on_the_object, "its step is replaced"),
    "fastnn's": (lambda: fastnn.optim.SGD(parameters()), "it is fastnn's already"),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_alone_and_explained(case: str) -> None:
    make, reason = LEFT[case]
    optimizer = make()
    kind = type(optimizer)
    seen = fastnn.explain(fastnn.convert, optimizer)
    assert seen.result is optimizer
    assert type(optimizer) is kind
    assert seen.conversions == (("", kind.__name__, None, reason),)


def test_each_kind_becomes_what_the_table_says() -> None:
    lines = str(fastnn.explain(fastnn.convert, made("AdamW"))).splitlines()
    assert lines[1].split() == ["(root)", "AdamW", "fastnn.optim.AdamW"]


def test_what_torch_has_not_is_not_reverted() -> None:
    kept = fastnn.optim.Adam(parameters(), master_weights=True)
    seen = fastnn.explain(fastnn.revert, kept)
    assert seen.conversions[0].note == "torch's has no state_dtype and no master_weights"
    assert type(kept) is fastnn.optim.Adam
    replaced = fastnn.convert(made("Adam"))
    replaced.step = lambda inner=replaced.step: inner()
    assert fastnn.explain(fastnn.revert, replaced).conversions[0].note == "its step is replaced"
    assert native(step(replaced, 0))
    assert type(fastnn.revert(fastnn.optim.SGD(parameters()))) is torch.optim.SGD
