"""Below measured sizes torch's own op runs; the environment can still request the kernels."""

from __future__ import annotations

import pytest

from fastnn import _dispatch
from fresh import Fresh, output

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

# Runs in a process of its own: the tests of this one have requested the kernels.
SCRIPT = """
import torch, fastnn
from fastnn import functional as N

def ran(fn, *args, **options):
    decisions = fastnn.explain(fn, *args, **options).decisions
    return [d.op for d in decisions if d.reason is None]

def tensor(*shape, grad=False, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype).requires_grad_(grad)

w = {n: tensor(n, 64, grad=True) for n in (3, 1024)}
b = tensor(3, grad=True)
layer = fastnn.nn.Linear(64, 3)
mlp, wide = fastnn.nn.MLP([2, 2, 2]), fastnn.nn.MLP([1024, 1024, 8])
"""

FOUND = """
found = {
    "linear": [ran(N.linear, tensor(1, 64), w[3], b), ran(N.linear, tensor(1024, 64), w[1024])],
    "layer": [ran(layer, tensor(1, 64)), ran(layer, tensor(1 << 18, 64))],
    "one row": [
        ran(N.linear, tensor(1, 4096), tensor(4096, 4096, grad=True)),
        ran(N.linear, tensor(1, 4096), tensor(4096, 4096)),
    ],
    "gelu": [ran(N.linear, tensor(2, 64), w[3], b, "gelu"), ran(N.linear, tensor(64, 64), w[3], b, "gelu")],
    "bfloat16": [
        ran(N.linear, tensor(8, 64, dtype=torch.bfloat16), tensor(8, 64, dtype=torch.bfloat16)),
        ran(N.linear, tensor(64, 64, dtype=torch.bfloat16), tensor(64, 64, dtype=torch.bfloat16)),
    ],
    "relu": [ran(N.relu, tensor(1000)), ran(N.relu, torch.zeros(9 << 20))],
    "relu_": [ran(N.relu, tensor(1000), inplace=True), ran(N.relu, torch.zeros(9 << 20), inplace=True)],
    "gram": [ran(N.gram_matrix, tensor(8, 64)), ran(N.gram_matrix, tensor(64, 784))],
    "cross_entropy": [
        ran(N.cross_entropy, tensor(4, 4), torch.zeros(4, dtype=torch.int64)),
        ran(N.cross_entropy, tensor(256, 10), torch.zeros(256, dtype=torch.int64)),
    ],
    "with gradients": [
        ran(N.cross_entropy, tensor(63, 10, grad=True), torch.zeros(63, dtype=torch.int64)),
        ran(N.cross_entropy, tensor(64, 10, grad=True), torch.zeros(64, dtype=torch.int64)),
    ],
    "many classes": [
        ran(N.cross_entropy, tensor(128, 100, grad=True), torch.zeros(128, dtype=torch.int64)),
        ran(N.cross_entropy, tensor(256, 100, grad=True), torch.zeros(256, dtype=torch.int64)),
    ],
    "linear_cross_entropy": [
        ran(N.linear_cross_entropy, tensor(2, 64), w[3], torch.zeros(2, dtype=torch.int64)),
        ran(N.linear_cross_entropy, tensor(1024, 64), w[3], torch.zeros(1024, dtype=torch.int64)),
    ],
}
options = [
    ran(N.cross_entropy, tensor(4, 4), torch.zeros(4, dtype=torch.int64), **given)
    for given in ({"z_loss": 0.1}, {"label_smoothing": 0.1}, {"weight": torch.ones(4)})
]
gelu = fastnn.nn.MLP([16, 32, 2], activation="gelu")
index = torch.zeros(64, dtype=torch.int64)
after_a_chain = [
    ran(lambda: N.cross_entropy(net(tensor(64, width)), index)) for net, width in ((mlp, 2), (wide, 1024))
]
found["chain"] = [ran(mlp, tensor(64, 2)), ran(wide, tensor(64, 1024))]
found["slow chain"] = [ran(gelu, tensor(2, 16)), ran(gelu, tensor(64, 16))]
with torch.no_grad():
    found["rows"] = [ran(mlp, tensor(31, 2)), ran(mlp, tensor(32, 2))]
    wide_rows = [ran(wide, tensor(rows, 1024)) for rows in (1, 2)]
"""


def _run(run_fresh: Fresh, checks: str) -> None:
    output(run_fresh(SCRIPT + checks, FASTNN_ALWAYS_NATIVE=""))


def test_small_work_is_left_to_torch(run_fresh: Fresh) -> None:
    _run(
        run_fresh,
        FOUND
        + """
for name, (small, large) in found.items():
    assert small == [], (name, small)
    assert len(large) == 1, (name, large)
assert all(options)
assert wide_rows == [[], ["mlp"]]
assert after_a_chain == [[], ["mlp", "cross_entropy"]], after_a_chain
""",
    )


def test_everything_covered_is_native_if_asked_for(run_fresh: Fresh) -> None:
    output(
        run_fresh(
            SCRIPT + FOUND + "assert all(small and large for small, large in found.values()), found",
            FASTNN_ALWAYS_NATIVE="1",
        )
    )


def test_the_reason_is_reported(run_fresh: Fresh) -> None:
    _run(
        run_fresh,
        """
x = tensor(1, 64)
said = fastnn.explain(layer, x)
assert "too little work" in str(said), said
assert torch.equal(said.result, torch.nn.functional.linear(x, layer.weight, layer.bias))
""",
    )


def test_small_layers_refuse_what_is_no_activation(run_fresh: Fresh) -> None:
    _run(
        run_fresh,
        """
from fastnn.ops.mlp import mlp
for dtype in (torch.float32, torch.bfloat16):
    x, weight = torch.ones(2, 3, dtype=dtype), torch.ones(3, 3, dtype=dtype)
    for activation in ("rleu", 3, []):
        one = mlp, x, [(weight, None, None), (weight, None, activation)]
        for call, *given in (one, (N.linear, x, weight, None, activation)):
            try:
                call(*given)
            except ValueError as error:
                assert "activation must be" in str(error), error
            else:
                raise AssertionError((dtype, activation))
""",
    )


def test_a_replaced_forward_runs_on_few_rows_too(run_fresh: Fresh) -> None:
    _run(
        run_fresh,
        """
torch.nn.Sequential.forward = lambda self, input: "mine"
assert mlp(tensor(1, 2)) == "mine"
""",
    )


def test_a_trace_is_asked_for_no_sizes(run_fresh: Fresh) -> None:
    """They are tensors there; torch warns if one of them is compared."""
    _run(
        run_fresh,
        """
import warnings
warnings.simplefilter("error", torch.jit.TracerWarning)
warnings.simplefilter("ignore", DeprecationWarning)
for rows in (2, 64):
    x, t = tensor(rows, 2), torch.zeros(rows, dtype=torch.int64)
    for module, given in ((mlp, (x,)), (fastnn.nn.CrossEntropyLoss(), (x, t))):
        torch.testing.assert_close(torch.jit.trace(module, given)(*given), module(*given))
""",
    )


def test_a_chain_of_few_rows_gives_torchs_bits(run_fresh: Fresh) -> None:
    """It runs torch's ops, and whatever observes or replaces a module is still called."""
    _run(
        run_fresh,
        """
theirs = torch.nn.Sequential(
    torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 6), torch.nn.GELU(), torch.nn.Linear(6, 2)
)
mine = fastnn.convert(__import__("copy").deepcopy(theirs))
assert type(mine) is fastnn.nn.Sequential
for shape in ((5,), (1, 5), (31, 5), (2, 3, 5), (0, 5)):
    a, b = mine(x := tensor(*shape)), theirs(x)
    assert torch.equal(a, b), shape
    grads = [torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((a, mine), (b, theirs))]
    assert all(map(torch.equal, *grads))
calls = []
mine[2].register_forward_hook(lambda *args: calls.append(args))
mine(tensor(2, 5))
assert len(calls) == 1
""",
    )
