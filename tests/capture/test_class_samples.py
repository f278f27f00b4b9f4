"""torch's own samples of products, softmax and classifiers' losses, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastnn.capture.lowering.products
import fastnn.capture.lowering.softmax  # noqa: F401 (registers its rules)
from fastnn import _dispatch
from fastnn._dispatch import Unsupported
from fastnn.capture.lowering.table import RULES
from one_op import Native
from torch_samples import list_of

pytestmark = [
    pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled extension"),
    pytest.mark.filterwarnings("ignore"),
]

NAMES = [
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "mv",
    "addmv",
    "addr",
    "dot",
    "vdot",
    "matmul",
    "nn.functional.linear",
    "softmax",
    "log_softmax",
    "nn.functional.softmin",
    "nn.functional.nll_loss",
    "nn.functional.cross_entropy",
]
OURS = {
    name
    for name, rule in RULES.items()
    if rule.__module__ in ("fastnn.capture.lowering.products", "fastnn.capture.lowering.softmax")
}


class Lenient(Native):
    """Runs ops with a rule here natively, and leaves the rest to torch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}"
        if name in OURS:
            try:
                return super().__torch_dispatch__(func, types, args, kwargs)
            except Unsupported:
                pass
        return func(*args, **(kwargs or {}))


def tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    return [t for part in x for t in tensors(part)] if isinstance(x, (list, tuple)) else []


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_captured_it_gives_what_torch_gives(name: str, dtype: torch.dtype, isa: str) -> None:
    compared = 0
    for op in (op for op in list_of("op_db", "common_methods_invocations") if op.name == name):
        for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
            mode = Lenient()
            with mode:
                out = op(sample.input, *sample.args, **sample.kwargs)
                if out.requires_grad:
                    inputs = [t for t in tensors([sample.input, *sample.args]) if t.requires_grad]
                    torch.autograd.grad(out, inputs, torch.randn_like(out), allow_unused=True)
            for op_name, theirs, ours in mode.results:
                for a, b in zip(tensors(ours), tensors(theirs), strict=True):
                    # Sums in another order, of values up to tens; torch may have squeezed its own since.
                    eps = torch.finfo(b.dtype).eps
                    torch.testing.assert_close(
                        a.flatten(),
                        b.flatten(),
                        rtol=50 * eps,
                        atol=500 * eps,
                        equal_nan=True,
                        msg=lambda m, op=op_name: f"{op}: {m}",
                    )
                    compared += 1
    assert compared
