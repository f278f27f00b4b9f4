"""Every optimizer in checkpoints, copies and pickles, with torch's, and with or without float32 state."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from optimizer_cases import (
    CASES,
    FUSED,
    HALF,
    KINDS,
    MASTERS,
    STATE,
    Case,
    Options,
    assert_networks_close,
    assert_same,
    either,
    every_case,
    every_half,
    masters,
    needs_state_begun_late,
    network,
    parameters,
    set_gradients,
    through_file,
    train,
    train_network,
    twins,
)


def begin(case: Case, extra: Options, params: list[Any]) -> Any:
    return case.ours(params, lr=0.01, **extra, **case.options)


def state_of(optimizer: torch.optim.Optimizer, params: list[Any]) -> list[Options]:
    return [dict(optimizer.state.get(p, {})) for p in params]


def assert_states_equal(a: list[Options], b: list[Options]) -> None:
    for ours, expected in zip(a, b, strict=True):
        assert list(ours) == list(expected)
        assert_same(list(ours.values()), list(expected.values()))


WITH_DEFAULTS = {name: Case(kind.ours, kind.torchs, {}) for name, kind in KINDS.items()} | CASES
CHOICES = [
    pytest.param(case, flags, id=f"{name}-{flags}")
    for name, case in WITH_DEFAULTS.items()
    for flags in ({}, {"foreach": True}, {"fused": True})
    if not flags.get("fused") or name in FUSED or name in KINDS.keys() - {"RMSprop"}
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("case", "flags"), CHOICES)
def test_same_state_dict_and_repr(case: Case, flags: Options, dtype: torch.dtype) -> None:
    model, twin = network(dtype), network(dtype)
    options = {**case.options, **flags}
    mine, theirs = case.ours(model.parameters(), **options), case.torchs(twin.parameters(), **options)
    train_network(model, mine, 2)
    train_network(twin, theirs, 2)
    assert repr(mine) == repr(theirs)
    assert isinstance(mine, case.torchs)
    a, b = mine.state_dict(), theirs.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for index, expected in b["state"].items():
        assert list(a["state"][index]) == list(expected)
        for key, value in expected.items():
            ours = a["state"][index][key]
            assert (ours.dtype, ours.shape, ours.stride()) == (value.dtype, value.shape, value.stride())


@either
@every_half
@every_case
def test_float32_state_is_not_in_the_groups(case: Case, dtype: torch.dtype, extra: Options) -> None:
    params = parameters([3], dtype)
    mine, theirs = begin(case, extra, params), case.torchs(params, lr=0.01, **case.options)
    assert mine.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    assert repr(mine) == repr(theirs)


@pytest.mark.parametrize("swap", [False, True])
@every_case
def test_checkpoints_load_in_torch_and_in_fastnn(case: Case, swap: bool) -> None:
    first, second = (case.torchs, case.ours) if swap else (case.ours, case.torchs)
    model, unbroken = network(), network()
    options = {**case.options, "lr": 0.01}
    train_network(unbroken, case.torchs(unbroken.parameters(), **options), 30)
    before = first(model.parameters(), **options)
    train_network(model, before, 15)
    resumed = network()
    resumed.load_state_dict(model.state_dict())
    after = second(resumed.parameters(), lr=9.0)
    after.load_state_dict(through_file(before.state_dict()))
    train_network(resumed, after, 15, start=15)
    assert_networks_close(resumed, unbroken)


KEPT = [(torch.float32, {}), *((half, extra) for half in HALF for extra in (STATE, MASTERS))]


@pytest.mark.parametrize("how", ["file", "deepcopy", "pickle", "memory"])
@pytest.mark.parametrize(("dtype", "extra"), KEPT, ids=str)
@every_case
def test_training_resumes_exactly(case: Case, dtype: torch.dtype, extra: Options, how: str) -> None:
    params = parameters([(5, 7), 3], dtype)
    unbroken = twins(params)
    whole = begin(case, extra, unbroken)
    train(whole, unbroken, 8)
    optimizer = begin(case, extra, params)
    train(optimizer, params, 4)
    before = state_of(optimizer, params)
    if how in ("deepcopy", "pickle"):
        pair = (params, optimizer)
        params, optimizer = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    else:
        saved = optimizer.state_dict()
        optimizer = case.ours(params, **extra)
        optimizer.load_state_dict(through_file(saved) if how == "file" else saved)
    assert type(optimizer) is case.ours
    assert_states_equal(state_of(optimizer, params), before)
    train(optimizer, params, 4, start=4)
    assert_same(params, unbroken)
    assert_states_equal(state_of(optimizer, params), state_of(whole, unbroken))


@either
@every_half
@every_case
def test_into_an_optimizer_without_the_option(case: Case, dtype: torch.dtype, extra: Options) -> None:
    """State is rounded to the parameter's dtype, as torch does; master weights are dropped."""
    params = parameters([(5, 7), 3], dtype)
    wide = begin(case, extra, params)
    train(wide, params, 3)
    plain = begin(case, {}, params)
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
@every_case
def test_from_an_optimizer_without_the_option(
    case: Case, dtype: torch.dtype, extra: Options, torchs: bool
) -> None:
    """State is widened, master weights start as the parameters."""
    params = parameters([(5, 7), 3], dtype)
    plain = (case.torchs if torchs else case.ours)(params, lr=0.01, **case.options)
    train(plain, params, 3)
    expected = [
        {key: value if key == "step" else value.float() for key, value in state.items()}
        for state in state_of(plain, params)
    ]
    wide = begin(case, extra, params)
    wide.load_state_dict(through_file(plain.state_dict()))
    assert_states_equal(state_of(wide, params), expected)
    others = twins(params, torch.float32)
    full = begin(case, {}, others)
    full.load_state_dict({**plain.state_dict(), "state": dict(enumerate(copy.deepcopy(expected)))})
    set_gradients(params, others)
    wide.step()
    full.step()
    if extra is MASTERS:
        assert_same(masters(wide, params), others)
    assert_same(params, [q.detach().to(dtype) for q in others])


@every_half
@every_case
def test_through_an_optimizer_of_torch_and_back(case: Case, dtype: torch.dtype) -> None:
    """torch keeps rounded master weights while it trains; the parameters take precedence then."""
    params = parameters([(5, 7), 3], dtype)
    mine = begin(case, MASTERS, params)
    train(mine, params, 3)
    theirs = case.torchs(params, lr=0.01, **case.options)
    theirs.load_state_dict(through_file(mine.state_dict()))
    train(theirs, params, 20, start=3)
    back = begin(case, MASTERS, params)
    back.load_state_dict(through_file(theirs.state_dict()))
    reached = [p.detach().double() for p in params]
    train(back, params, 1, start=23)
    for p, old, new in zip(params, reached, masters(back, params), strict=True):
        # One step of lr 0.01 with quotients below ten.
        torch.testing.assert_close(new.double(), old, rtol=0, atol=0.2)
        assert_same([p], [new.to(dtype)])


@either
@every_case
def test_from_a_model_of_another_dtype(case: Case, extra: Options) -> None:
    half = parameters([(5, 7), 3], torch.bfloat16)
    full = twins(half, torch.float32)
    to_half, to_full = begin(case, extra, half), begin(case, extra, full)
    train(to_full, full, 2)
    to_half.load_state_dict(through_file(to_full.state_dict()))
    assert_states_equal(state_of(to_half, half), state_of(to_full, full))
    train(to_half, half, 2)
    back = begin(case, extra, full)
    back.load_state_dict(through_file(to_half.state_dict()))
    for p, q in zip(full, half, strict=True):
        expected = {key: value for key, value in to_half.state[q].items() if key != "master_param"}
        assert_states_equal([dict(back.state.get(p, {}))], [expected])


@every_case
def test_load_hooks_see_float32(case: Case) -> None:
    params = parameters([3], torch.bfloat16)
    optimizer = begin(case, MASTERS, params)
    train(optimizer, params, 2)
    saved = optimizer.state_dict()
    fresh = begin(case, MASTERS, params)
    seen: list[Any] = []

    def doubled(_: Any, found: Options) -> Options:
        state = {i: {k: 2 * v for k, v in entries.items()} for i, entries in found["state"].items()}
        return {**found, "state": state}

    fresh.register_load_state_dict_pre_hook(doubled)
    fresh.register_load_state_dict_post_hook(
        lambda o: seen.append(o.state[params[0]]["master_param"].clone())
    )
    fresh.load_state_dict(saved)
    assert_same(seen, [2 * optimizer.state[params[0]]["master_param"]])
    train(optimizer, params, 2)
    fresh.load_state_dict(optimizer.state_dict())  # nothing of the first one remains
    assert_same(seen[1:], [2 * optimizer.state[params[0]]["master_param"]])
    assert_same(masters(fresh, params), seen[1:])


def test_an_old_pickle_has_no_options() -> None:
    params = parameters([3], torch.bfloat16)
    attributes = begin(CASES["adam"], {}, params).__getstate__()
    del attributes["state_dtype"], attributes["master_weights"]
    ours = CASES["adam"].ours
    old = ours.__new__(ours)
    old.__setstate__(attributes)
    set_gradients(params)
    old.step()
    assert old.state[params[0]]["exp_avg"].dtype is torch.bfloat16


@either
@every_half
def test_adagrad_begins_with_what_is_asked_for(dtype: torch.dtype, extra: Options) -> None:
    needs_state_begun_late(torch.optim.Adagrad)
    params = parameters([3, 4], dtype)
    optimizer = begin(CASES["adagrad"], extra, params[:1])
    optimizer.add_param_group({"params": params[1:]})
    exact = torch.tensor(0.3)
    assert_same([optimizer.state[params[0]]["sum"]], [exact.expand(3)])
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["weight_decay"] = optimizer.param_groups[1]["weight_decay"] = 0.0
    optimizer.step()
    assert_same([optimizer.state[p]["sum"] for p in params], [exact.expand(3), exact.expand(4)])
