"""The options and mistakes that PyTorch tests its own optimizers with (its ``optim_db``)."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from optimizer_cases import KINDS
from torch_samples import DTYPES, list_of

pytestmark = pytest.mark.filterwarnings("ignore")  # some are of options that torch advises against
SHAPES = [(4, 3), (5,), (), (0, 2)]


def info_of(name: str) -> Any:
    """What torch knows of one of its optimizers."""
    return next(i for i in list_of("optim_db", "common_optimizers") if i.optim_cls is KINDS[name].torchs)


def trained(kind: Any, options: dict[str, Any], dtype: torch.dtype, sparse: bool) -> tuple[Any, list[Tensor]]:
    """An optimizer after three steps, and its parameters."""
    generator = torch.Generator().manual_seed(0)

    def numbers(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    params = [torch.nn.Parameter(numbers(shape)) for shape in SHAPES]
    optimizer = kind(params, **copy.deepcopy(options))
    for _ in range(3):
        for p in params:
            grad = numbers(p.shape)
            p.grad = grad.to_sparse() if sparse and p.dim() else grad
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_optimizers_pass_torchs_samples(name: str, dtype: torch.dtype) -> None:
    info = info_of(name)
    flags = [flag for flag in info.supported_impls if flag != "fused" or "cpu" in info.supports_fused_on]
    impls: list[dict[str, Any]] = [{}, *({flag: True} for flag in flags)]
    # Torch rounds to 16 bits after each of about ten operations of a step, fastnn once.
    close = {"rtol": 0.05, "atol": 0.05} if dtype is torch.bfloat16 else {}
    for sample, impl in itertools.product(info.optim_inputs_func(device="cpu"), impls):
        options = {**sample.kwargs, **impl}
        found = []
        for kind in (KINDS[name].ours, KINDS[name].torchs):
            try:
                found.append(trained(kind, options, dtype, sparse=False))
            except (RuntimeError, ValueError) as error:  # options that do not go together
                found.append(type(error))
        if isinstance(found[1], type):
            assert found[0] is found[1], options
            continue
        (mine, params), (theirs, wanted) = found
        torch.testing.assert_close(params, wanted, **close, msg=lambda m, options=options: f"{options}: {m}")
        states = mine.state_dict(), theirs.state_dict()
        torch.testing.assert_close(states[0]["state"], states[1]["state"], **close)
        assert states[0]["param_groups"] == states[1]["param_groups"]


@pytest.mark.parametrize("name", KINDS)
def test_sparse_gradients(name: str) -> None:
    if not info_of(name).supports_sparse:
        for kind in (KINDS[name].ours, KINDS[name].torchs):
            with pytest.raises(RuntimeError, match="sparse"):
                trained(kind, {}, torch.float64, sparse=True)
        return
    (_, params), (_, wanted) = (
        trained(kind, {}, torch.float64, sparse=True) for kind in (KINDS[name].ours, KINDS[name].torchs)
    )
    torch.testing.assert_close(params, wanted)


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
