"""Float32 state and masters in checkpoints, copies and pickles, beside torch's optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from half_precision import (
    MASTERS,
    OPTIMIZERS,
    STATE,
    assert_same,
    every_half,
    every_optimizer,
    masters,
    parameters,
    set_gradients,
    twins,
)

either = pytest.mark.parametrize("extra", [STATE, MASTERS], ids=str)


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file)
    return loaded


def train(optimizer: torch.optim.Optimizer, params: list[Any], steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        torch.manual_seed(step)
        set_gradients(params)
        optimizer.step()


def begin(name: str, extra: dict[str, Any], params: list[Any]) -> Any:
    cls, _, options = OPTIMIZERS[name]
    return cls(params, lr=0.01, **extra, **options)


def state_of(optimizer: torch.optim.Optimizer, params: list[Any]) -> list[dict[str, Any]]:
    return [dict(optimizer.state.get(p, {})) for p in params]


def assert_states_equal(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    for ours, expected in zip(a, b, strict=True):
        assert list(ours) == list(expected)
        assert_same(list(ours.values()), list(expected.values()))


@pytest.mark.parametrize("how", ["file", "deepcopy", "pickle", "memory"])
@either
@every_half
@every_optimizer
def test_resumes_exactly(name: str, dtype: torch.dtype, extra: dict[str, Any], how: str) -> None:
    params = parameters([(5, 7), 3], dtype)
    unbroken = [nn.Parameter(p.detach().clone()) for p in params]
    whole = begin(name, extra, unbroken)
    train(whole, unbroken, 8)
    optimizer = begin(name, extra, params)
    train(optimizer, params, 4)
    before = state_of(optimizer, params)
    if how in ("deepcopy", "pickle"):
        pair = (params, optimizer)
        params, optimizer = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    else:
        saved = optimizer.state_dict()
        optimizer = begin(name, extra, params)
        optimizer.load_state_dict(through_file(saved) if how == "file" else saved)
    assert_states_equal(state_of(optimizer, params), before)
    train(optimizer, params, 4, start=4)
    assert_same(params, unbroken)
    assert_states_equal(state_of(optimizer, params), state_of(whole, unbroken))


@either
@every_half
@every_optimizer
def test_groups_of_a_checkpoint_are_torchs(name: str, dtype: torch.dtype, extra: dict[str, Any]) -> None:
    _, reference, options = OPTIMIZERS[name]
    params = parameters([3], dtype)
    mine, theirs = begin(name, extra, params), reference(params, lr=0.01, **options)
    assert mine.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    assert repr(mine) == repr(theirs)


@either
@every_half
@every_optimizer
def test_into_an_optimizer_without_the_option(name: str, dtype: torch.dtype, extra: dict[str, Any]) -> None:
    """State is rounded to the parameter's dtype, as torch does; masters are dropped."""
    params = parameters([(5, 7), 3], dtype)
    wide = begin(name, extra, params)
    train(wide, params, 3)
    plain = begin(name, {}, params)
    plain.load_state_dict(through_file(wide.state_dict()))
    for p in params:
        state = wide.state.get(p, {})
        assert plain.state.get(p, {}).keys() == state.keys() - {"master_param"}
        for key, value in plain.state.get(p, {}).items():
            assert_same([value], [state[key] if key == "step" else state[key].to(dtype)])
    train(plain, params, 2)
    assert all(v.dtype is dtype for p in params for key, v in plain.state.get(p, {}).items() if key != "step")


@pytest.mark.parametrize("torchs", [False, True])
@either
@every_half
@every_optimizer
def test_from_an_optimizer_without_the_option(
    name: str, dtype: torch.dtype, extra: dict[str, Any], torchs: bool
) -> None:
    """State is widened, masters begin as the parameters."""
    ours, reference, options = OPTIMIZERS[name]
    params = parameters([(5, 7), 3], dtype)
    plain = (reference if torchs else ours)(params, lr=0.01, **options)
    train(plain, params, 3)
    expected = [
        {key: value if key == "step" else value.float() for key, value in state.items()}
        for state in state_of(plain, params)
    ]
    wide = begin(name, extra, params)
    wide.load_state_dict(through_file(plain.state_dict()))
    assert_states_equal(state_of(wide, params), expected)
    others = twins(params)
    full = begin(name, {}, others)
    full.load_state_dict({**plain.state_dict(), "state": dict(enumerate(copy.deepcopy(expected)))})
    train(wide, params, 1)
    set_gradients_like(others, params)
    full.step()
    if extra is MASTERS:
        assert_same(masters(wide, params), others)
    assert_same(params, [q.detach().to(dtype) for q in others])


def set_gradients_like(params: list[Any], others: list[Any]) -> None:
    for p, q in zip(params, others, strict=True):
        p.grad = q.grad.to(p.dtype)


@every_half
@every_optimizer
def test_through_an_optimizer_of_torch_and_back(name: str, dtype: torch.dtype) -> None:
    """torch keeps rounded masters while it trains; the parameters are believed then."""
    _, reference, options = OPTIMIZERS[name]
    params = parameters([(5, 7), 3], dtype)
    mine = begin(name, MASTERS, params)
    train(mine, params, 3)
    theirs = reference(params, lr=0.01, **options)
    theirs.load_state_dict(through_file(mine.state_dict()))
    train(theirs, params, 20, start=3)
    back = begin(name, MASTERS, params)
    back.load_state_dict(through_file(theirs.state_dict()))
    reached = [p.detach().double() for p in params]
    train(back, params, 1, start=23)
    for p, old, new in zip(params, reached, masters(back, params), strict=True):
        # One step of lr 0.01 with quotients below ten.
        torch.testing.assert_close(new.double(), old, rtol=0, atol=0.2)
        assert_same([p], [new.to(dtype)])


@either
@every_optimizer
def test_from_a_model_of_another_dtype(name: str, extra: dict[str, Any]) -> None:
    half = parameters([(5, 7), 3])
    full = twins(half)
    to_half, to_full = begin(name, extra, half), begin(name, extra, full)
    train(to_full, full, 2)
    to_half.load_state_dict(through_file(to_full.state_dict()))
    assert_states_equal(state_of(to_half, half), state_of(to_full, full))
    train(to_half, half, 2)
    back = begin(name, extra, full)
    back.load_state_dict(through_file(to_half.state_dict()))
    for p, q in zip(full, half, strict=True):
        expected = {key: value for key, value in to_half.state[q].items() if key != "master_param"}
        assert_states_equal([dict(back.state.get(p, {}))], [expected])


@every_optimizer
def test_load_hooks_see_float32(name: str) -> None:
    params = parameters([3])
    optimizer = begin(name, MASTERS, params)
    train(optimizer, params, 2)
    saved = optimizer.state_dict()
    fresh = begin(name, MASTERS, params)
    seen: list[Any] = []

    def doubled(_: Any, found: dict[str, Any]) -> dict[str, Any]:
        state = {i: {k: 2 * v for k, v in entries.items()} for i, entries in found["state"].items()}
        return {**found, "state": state}

    fresh.register_load_state_dict_pre_hook(doubled)
    fresh.register_load_state_dict_post_hook(
        lambda o: seen.append(o.state[params[0]]["master_param"].clone())
    )
    fresh.load_state_dict(saved)
    assert_same(seen, [2 * optimizer.state[params[0]]["master_param"]])
    train(optimizer, params, 2)
    fresh.load_state_dict(optimizer.state_dict())  # of the first one nothing is left behind
    assert_same(seen[1:], [2 * optimizer.state[params[0]]["master_param"]])
    assert_same(masters(fresh, params), seen[1:])


def test_an_old_pickle_has_no_options() -> None:
    params = parameters([3])
    optimizer = begin("adam", {}, params)
    attributes = optimizer.__getstate__()
    del attributes["state_dtype"], attributes["master_weights"]
    old = type(optimizer).__new__(type(optimizer))
    old.__setstate__(attributes)
    set_gradients(params)
    old.step()
    assert old.state[params[0]]["exp_avg"].dtype is torch.bfloat16


@either
@every_half
def test_adagrad_begins_with_what_is_asked_for(dtype: torch.dtype, extra: dict[str, Any]) -> None:
    params = parameters([3, 4], dtype)
    optimizer = begin("adagrad", extra, params[:1])
    optimizer.add_param_group({"params": params[1:]})
    exact = torch.tensor(0.3)
    assert_same([optimizer.state[params[0]]["sum"]], [exact.expand(3)])
    set_gradients(params)
    for p in params:
        p.grad.zero_()
    optimizer.param_groups[0]["weight_decay"] = optimizer.param_groups[1]["weight_decay"] = 0.0
    optimizer.step()
    assert_same([optimizer.state[p]["sum"] for p in params], [exact.expand(3), exact.expand(4)])
