"""Torch's own samples and erroneous samples of the functions and modules that the ops replace."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import fastnn
import fastnn.functional as FF
from torch_samples import DTYPES, list_of

OPS = ["relu", "linear", "cross_entropy", "linear_cross_entropy"]
MODULES = ["Linear", "ReLU", "CrossEntropyLoss"]

pytestmark = pytest.mark.filterwarnings("ignore")


def leaves(value: Any) -> Any:
    """The same with tensors of their own."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)):
        return type(value)(map(leaves, value))
    return {k: leaves(v) for k, v in value.items()} if isinstance(value, dict) else value


def results(function: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Its result, and the gradients of all leaves among its arguments."""
    args, kwargs = leaves(args), leaves(kwargs)
    y = function(*args, **kwargs)
    wanted = [t for t in [*args, *kwargs.values()] if isinstance(t, Tensor) and t.requires_grad]
    if not y.requires_grad:
        return [y]
    return [y, *torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)]


def check_derivatives(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """First and second derivatives against finite differences."""
    args, kwargs = leaves(args), leaves(kwargs)
    inputs = tuple(t for t in args if isinstance(t, Tensor) and t.requires_grad)

    def of_inputs(*given: Tensor) -> Tensor:
        new = iter(given)
        result: Tensor = function(
            *(next(new) if isinstance(t, Tensor) and t.requires_grad else t for t in args), **kwargs
        )
        return result

    if not inputs or not all(t.numel() for t in inputs):
        return
    y = of_inputs(*inputs)
    if y.requires_grad and y.isfinite().all():
        assert torch.autograd.gradcheck(of_inputs, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(of_inputs, inputs, fast_mode=True)


def tolerances(dtype: torch.dtype) -> dict[str, float]:
    """Torch rounds a loss to 16 bits after each of its ops, fastnn once."""
    return {"rtol": 0.03, "atol": 0.03} if dtype is torch.bfloat16 else {}


def torchs(name: str) -> list[Any]:
    """torch's entries for one of its functions, in all variants; older versions lack some."""
    return [op for op in list_of("op_db", "common_methods_invocations") if op.name == f"nn.functional.{name}"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_functions_pass_torchs_samples(name: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    ours = getattr(FF, name)
    ops = [op for op in torchs(name) if dtype in op.supported_backward_dtypes("cpu")]
    if not ops:
        pytest.skip(f"this torch has no samples of {name} in {dtype}")
    all_of_them = request.config.getoption("--all")
    for op in ops:
        samples = [*op.sample_inputs("cpu", dtype, requires_grad=True)]
        assert samples
        # Only some of hundreds that differ in one option each; all of them in one dtype.
        step = 1 if all_of_them or dtype is torch.float32 else 1 + len(samples) // 100
        for i, sample in enumerate(samples[::step]):
            args = (sample.input, *sample.args)
            torch.testing.assert_close(
                results(ours, *args, **sample.kwargs),
                results(op.op, *args, **sample.kwargs),
                equal_nan=True,
                **tolerances(dtype),
            )
            if dtype is torch.float64 and (all_of_them or i % 4 == 0):
                check_derivatives(ours, args, sample.kwargs)


def test_mistakes_in_functions() -> None:
    """torch has none for most functions."""
    mistakes = [
        (name, error)
        for name in OPS
        for op in torchs(name)
        if op.error_inputs_func is not None
        for error in op.error_inputs("cpu")
    ]
    if not mistakes:
        pytest.skip("this torch has no erroneous samples of these functions")
    for name, error in mistakes:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            getattr(FF, name)(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_modules_pass_torchs_samples(name: str, dtype: torch.dtype, training: bool) -> None:
    theirs_class = getattr(torch.nn, name)
    (info,) = [info for info in list_of("module_db", "common_modules") if info.module_cls is theirs_class]
    ours = getattr(fastnn.nn, name)
    options = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training}
    for sample in info.module_inputs_func(info, **options):
        made, given = sample.constructor_input, sample.forward_input
        theirs = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
        mine = ours(*made.args, **made.kwargs).to(dtype).train(training)
        mine.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(
            *(results(module, *given.args, **given.kwargs) for module in (mine, theirs)),
            equal_nan=True,
            **tolerances(dtype),
        )
        if dtype is torch.float64:
            check_derivatives(mine, given.args, given.kwargs)
    for error in info.module_error_inputs_func(info, **options) if info.module_error_inputs_func else []:
        made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        with pytest.raises(error.error_type, match=error.error_regex):
            ours(*made.args, **made.kwargs)(*given.args, **given.kwargs)


# The mistakes that cross-entropy tells apart: torch's message, and what we add.
MISTAKES: dict[str, tuple[tuple[int, ...], Tensor, dict[str, Any]]] = {
    "batch": ((4, 3), torch.zeros(5, dtype=torch.int64), {}),
    "a scalar for a batch": ((4, 3), torch.zeros((), dtype=torch.int64), {}),
    "a matrix for a vector": ((4, 3), torch.zeros(4, 1, dtype=torch.int64), {}),
    "indices of the shape of probabilities": ((4, 3), torch.zeros(4, 3, dtype=torch.int64), {}),
    "two indices for one row": ((3,), torch.zeros(1, 1, dtype=torch.int64), {}),
    "pixels": ((4, 3, 2), torch.zeros(4, 3, dtype=torch.int64), {}),
    "no pixels": ((4, 3, 2), torch.zeros(4, dtype=torch.int64), {}),
    "rows of pixels": ((4, 3, 2, 2), torch.zeros(4, 2, 3, dtype=torch.int64), {}),
    "voxels": ((4, 3, 2, 2, 2), torch.zeros(4, 2, 2, dtype=torch.int64), {}),
    "class weights": ((4, 3), torch.zeros(4, dtype=torch.int64), {"weight": torch.ones(4)}),
    "class weights of a matrix": ((4, 3), torch.zeros(4, dtype=torch.int64), {"weight": torch.ones(3, 1)}),
    "class weights of pixels": ((4, 3, 2), torch.zeros(4, 2, dtype=torch.int64), {"weight": torch.ones(4)}),
    "probabilities": ((4, 3), torch.ones(4, 2), {}),
    "probabilities of another batch": ((4, 3), torch.ones(5, 3), {}),
    "probabilities of pixels": ((4, 3, 2), torch.ones(4, 3, 3), {}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_shape_errors_of_cross_entropy(mistake: str, grad: bool, label_smoothing: float) -> None:
    shape, target, options = MISTAKES[mistake]
    x = torch.zeros(shape, requires_grad=grad)
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        torch.nn.functional.cross_entropy(x, target, label_smoothing=label_smoothing, **options)
    ours = r"\ncross_entropy: (target|weight) .* expected "
    with pytest.raises(theirs.type, match=re.escape(str(theirs.value)) + ours):
        FF.cross_entropy(x, target, label_smoothing=label_smoothing, **options)


@pytest.mark.parametrize("grad", [False, True])
def test_shape_errors_of_linear(grad: bool) -> None:
    w, b = torch.ones(4, 3, requires_grad=grad), torch.ones(4)
    for x, bias, ours in [
        (torch.ones(2, 5), b, "linear: input has K=5, weight expects 3"),
        (torch.ones(2, 2, 5), None, "linear: input has K=5, weight expects 3"),
        (torch.ones(2, 3), torch.ones(5), r"linear: bias has shape \(5,\), expected \(4,\)"),
    ]:
        with pytest.raises(RuntimeError) as theirs:
            torch.nn.functional.linear(x, w, bias)
        with pytest.raises(RuntimeError, match=f"{re.escape(str(theirs.value))}\n{ours}"):
            FF.linear(x, w, bias)


def test_shape_errors_of_the_target_of_linear_cross_entropy() -> None:
    x, w = torch.ones(4, 3), torch.ones(5, 3)
    for shape in [(5,), (), (4, 1), (4, 2)]:
        target = torch.zeros(shape, dtype=torch.int64)
        with pytest.raises((RuntimeError, ValueError)) as theirs:
            torch.nn.functional.cross_entropy(x @ w.T, target)
        ours = r"\nlinear_cross_entropy: target has shape .* expected class indices \(4,\)"
        with pytest.raises(theirs.type, match=re.escape(str(theirs.value)) + ours):
            FF.linear_cross_entropy(x, w, target)
