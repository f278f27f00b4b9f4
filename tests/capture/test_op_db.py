"""Rules on the samples that PyTorch tests its own ops with.

Only the first sample of each op in a default run; with ``--all`` all, also in float64, and some in int64 and
bool.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from against_torch import Covered
from fastnn import _dispatch
from torch_samples import list_of
from variants import runnable_isas, selected

if TYPE_CHECKING:
    from torch.testing._internal.opinfo.core import OpInfo, SampleInput

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

# Not all of their results are defined by their arguments.
UNDEFINED = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "resize_",
    "resize_as_",
)
OPS = [op for op in list_of("op_db", "common_methods_invocations") if op.name not in UNDEFINED]

# In addition to the tolerances of torch.testing: rounding units of the largest value of a result.
ROUNDING = 32
# A row of one value has a deviation of 0, and rounding is divided by the square root of eps.
WIDER = {"native_layer_norm_backward.default": 100.0, "native_batch_norm_backward.default": 100.0}


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.formatted_name)
def test_the_first_sample_gives_what_torch_gives(op: OpInfo) -> None:
    _sweep(op, torch.float32, 1, [_dispatch.cpu.isa])


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.formatted_name)
def test_all_samples_give_what_torch_gives(op: OpInfo, dtype: torch.dtype) -> None:
    _sweep(op, dtype, None, runnable_isas())


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.formatted_name)
def test_samples_of_other_types_give_what_torch_gives(op: OpInfo, dtype: torch.dtype) -> None:
    _sweep(op, dtype, 12, runnable_isas())


def _sweep(op: OpInfo, dtype: torch.dtype, most: int | None, isas: list[str]) -> None:
    """The samples cycle through the instruction sets."""
    if dtype not in op.supported_dtypes("cpu"):
        return
    differentiable = op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = op.sample_inputs("cpu", dtype, requires_grad=differentiable)
        for sample, isa in zip(itertools.islice(samples, most), itertools.cycle(isas)):
            if not _runs(op, sample):
                continue
            with selected(isa), Covered() as mode:
                torch.manual_seed(0)
                _run(op, sample)
            _compare(mode, sample)
            if op.inplace_variant is not None and not sample.broadcasts_input:
                with selected(isa), Covered() as mode, torch.no_grad():
                    _run_in_place(op, sample)
                _compare(mode, sample)


def _runs(op: OpInfo, sample: SampleInput) -> bool:
    """Whether torch itself accepts the sample, backward and in place included."""
    try:
        _run(op, sample)
        if op.inplace_variant is not None and not sample.broadcasts_input:
            with torch.no_grad():
                _run_in_place(op, sample)
    except Exception:
        return False
    return True


def _run(op: OpInfo, sample: SampleInput) -> None:
    """Forward, and backward to what requires gradients."""
    outputs = [
        out
        for out in _tensors(op(sample.input, *sample.args, **sample.kwargs))
        if out.requires_grad and out.is_floating_point()
    ]
    inputs = [t for t in _tensors([sample.input, sample.args, sample.kwargs]) if t.requires_grad]
    if outputs and inputs:
        generator = torch.Generator().manual_seed(0)
        grads = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outputs]
        torch.autograd.grad(outputs, inputs, grads, allow_unused=True)


def _run_in_place(op: OpInfo, sample: SampleInput) -> None:
    x = sample.input
    copied = [t.clone() for t in x] if isinstance(x, (list, tuple)) else x.clone()
    op.inplace_variant(copied, *sample.args, **sample.kwargs)


def _compare(mode: Covered, sample: SampleInput) -> None:
    for name, expected, actual in mode.results:
        for theirs, ours in zip(_tensors(expected), _tensors(actual), strict=True):
            assert (ours.shape, ours.stride()) == (theirs.shape, theirs.stride()), name
            _assert_close(ours, theirs.detach(), name, sample)


def _assert_close(ours: Tensor, theirs: Tensor, name: str, sample: SampleInput) -> None:
    if not theirs.is_floating_point():
        assert torch.equal(ours, theirs), f"{name} of {sample}"
        return
    rtol, atol = (1.3e-6, 1e-5) if theirs.dtype == torch.float32 else (1e-7, 1e-7)
    finite = theirs[theirs.isfinite()]
    if finite.numel():
        atol += ROUNDING * torch.finfo(theirs.dtype).eps * float(finite.abs().max())
    wider = WIDER.get(name, 1.0)
    torch.testing.assert_close(
        ours,
        theirs,
        rtol=wider * rtol,
        atol=wider * atol,
        equal_nan=True,
        msg=lambda m: f"{name} of {sample}: {m}",
    )


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))
    elif isinstance(x, (list, tuple)):
        for each in x:
            yield from _tensors(each)
