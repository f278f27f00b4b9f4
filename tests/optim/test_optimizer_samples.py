"""The options and mistakes that PyTorch tests its own optimizers with (``optim_db``)."""

from __future__ import annotations

import copy
import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from optimizer_cases import KINDS
from torch_samples import DTYPES, list_of

pytestmark = pytest.mark.filterwarnings("ignore")  # some are of options that torch advises against
SHAPES = [(4, 3), (5,), (), (0, 2)]


def info_of(name: str) -> Any:
    """torch's entry for one of its optimizers."""
    return next(i for i in list_of("optim_db", "common_optimizers") if i.optim_cls is KINDS[name].torchs)


class Trained(NamedTuple):
    optimizer: Any
    params: list[Tensor]
    before: list[Tensor]


def trained(kind: Any, options: dict[str, Any], dtype: torch.dtype, sparse: bool) -> Trained:
    """An optimizer after three steps, its parameters, and what they were before."""
    generator = torch.Generator().manual_seed(0)

    def numbers(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    # Small compared with the steps, so that these are not all lost in rounding.
    params = [torch.nn.Parameter(numbers(shape) / 16) for shape in SHAPES]
    before = [p.detach().clone() for p in params]
    optimizer = kind(params, **copy.deepcopy(options))
    for _ in range(3):
        for p in params:
            grad = numbers(p.shape)
            p.grad = grad.to_sparse() if sparse and p.dim() else grad
        optimizer.step()
    return Trained(optimizer, params, before)


def assert_same_state(mine: dict[int, Any], theirs: dict[int, Any], dtype: torch.dtype) -> None:
    if dtype is not torch.bfloat16:
        torch.testing.assert_close(mine, theirs)
        return
    assert mine.keys() == theirs.keys()
    for ours, wanted in ((mine[i], theirs[i]) for i in theirs):
        assert ours.keys() == wanted.keys()
        for key, value in wanted.items():
            scale = float(value.abs().max()) if isinstance(value, Tensor) and value.numel() else 0.0
            torch.testing.assert_close(ours[key], value, rtol=0.02, atol=0.02 * scale)


def assert_same_updates(mine: Trained, theirs: Trained) -> None:
    """The parameters have changed, and by the same amount."""
    if theirs.params[0].dtype is not torch.bfloat16:
        torch.testing.assert_close(mine.params, theirs.params)
    for ours, wanted, before in zip(mine.params, theirs.params, theirs.before, strict=True):
        ours, wanted, before = (t.detach().double() for t in (ours, wanted, before))
        if not wanted.numel():
            continue
        assert not torch.equal(ours, before)
        # Torch rounds to 16 bits after each of about ten operations of a step, fastnn once.
        ulps = torch.finfo(torch.bfloat16).eps * torch.maximum(wanted.abs(), before.abs())
        error, update = (ours - wanted).abs(), (wanted - before).abs()
        assert (error <= 2 * ulps + 0.02 * update.max()).all(), (ours, wanted, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_optimizers_pass_torchs_samples(name: str, dtype: torch.dtype) -> None:
    info = info_of(name)
    flags = [flag for flag in info.supported_impls if flag != "fused" or "cpu" in info.supports_fused_on]
    impls: list[dict[str, Any]] = [{}, *({flag: True} for flag in flags)]
    for sample, impl in itertools.product(info.optim_inputs_func(device="cpu"), impls):
        options = {**sample.kwargs, **impl}
        found = []
        for kind in (KINDS[name].ours, KINDS[name].torchs):
            try:
                found.append(trained(kind, options, dtype, sparse=False))
            except (RuntimeError, ValueError) as error:  # incompatible options
                found.append(type(error))
        if isinstance(found[1], type):
            assert found[0] is found[1], options
            continue
        mine, theirs = found
        assert_same_updates(mine, theirs)
        states = mine.optimizer.state_dict(), theirs.optimizer.state_dict()
        assert_same_state(states[0]["state"], states[1]["state"], dtype)
        assert states[0]["param_groups"] == states[1]["param_groups"]


@pytest.mark.parametrize("name", KINDS)
def test_sparse_gradients(name: str) -> None:
    if not info_of(name).supports_sparse:
        for kind in (KINDS[name].ours, KINDS[name].torchs):
            with pytest.raises(RuntimeError, match="sparse"):
                trained(kind, {}, torch.float64, sparse=True)
        return
    assert_same_updates(
        *(trained(kind, {}, torch.float64, sparse=True) for kind in (KINDS[name].ours, KINDS[name].torchs))
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_mistakes_raise_what_torch_raises(name: str, dtype: torch.dtype) -> None:
    kind = KINDS[name].ours
    for error in info_of(name).optim_error_inputs_func("cpu", dtype):
        sample = error.optimizer_error_input
        params = [torch.nn.Parameter(torch.ones(2, dtype=dtype))] if sample.params is None else sample.params

        def make(params: Any = params, options: dict[str, Any] = sample.kwargs) -> Any:
            return kind(params, **options)

        if issubclass(error.error_type, Warning):
            with pytest.warns(error.error_type, match=error.error_regex):
                make()
        elif error.error_on.name == "CONSTRUCTION_ERROR":
            with pytest.raises(error.error_type, match=error.error_regex):
                make()
        else:
            optimizer = make()
            with pytest.raises(error.error_type, match=error.error_regex):
                optimizer.step()
