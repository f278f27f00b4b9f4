"""The fallback contract: when an op must run on torch, that it says why, and that the result is right there
too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastnn
from fastnn import _dispatch, functional
from fastnn._dispatch import Decision

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


# torch scripts its own formulas when forward-mode AD is first used, and warns that scripting is deprecated.
torch_warns_in_jvp = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")


def _torch_gram(x: Tensor) -> Tensor:
    return x @ x.mT


# Each op as a function of one matrix (4, 3), with its torch twin.
OPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (functional.relu, F.relu),
    "linear": (lambda x: functional.linear(x, x, None), lambda x: F.linear(x, x, None)),
    "gram_matrix": (functional.gram_matrix, _torch_gram),
    "cross_entropy": (
        lambda x: functional.cross_entropy(x, torch.tensor([0, 2, 1, 2], device=x.device)),
        lambda x: F.cross_entropy(x, torch.tensor([0, 2, 1, 2], device=x.device)),
    ),
}
# Those that torch runs on integers, and on FakeTensors only.
WITHOUT_TARGET = ["relu", "linear", "gram_matrix"]


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest) -> str:
    return request.param


def reasons(fn: Callable[..., object], *args: object) -> list[str | None]:
    return [decision.reason for decision in fastnn.explain(fn, *args).decisions]


def check_falls_back(op: str, x: Tensor, reason: str) -> None:
    ours, theirs = OPS[op]
    explanation = fastnn.explain(ours, x)
    assert [d.op for d in explanation.decisions] == [op]
    assert reason in str(explanation.decisions[0].reason)
    want = theirs(x)
    assert type(explanation.result) is type(want)
    assert explanation.result.shape == want.shape
    assert explanation.result.dtype == want.dtype


def test_plain_tensors_run_natively(op: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert reasons(OPS[op][0], torch.randn(4, 3).to(dtype)) == [None]
    assert reasons(OPS[op][0], torch.nn.Parameter(torch.randn(4, 3))) == [None]


@pytest.mark.parametrize("op", WITHOUT_TARGET)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8])
def test_an_uncovered_dtype_is_left_to_torch(op: str, dtype: torch.dtype) -> None:
    check_falls_back(op, torch.ones(4, 3, dtype=dtype), f"no kernels for dtype {dtype}")


@pytest.mark.parametrize("op", WITHOUT_TARGET)
def test_complex_numbers_are_left_to_torch(op: str) -> None:
    if op == "relu":
        with pytest.raises(RuntimeError, match="complex"):
            functional.relu(torch.ones(4, 3, dtype=torch.complex64))
    else:
        check_falls_back(op, torch.ones(4, 3, dtype=torch.complex64), "no kernels for dtype torch.complex64")


class Tagged(Tensor):
    """A subclass that changes nothing, and must survive."""


def test_a_subclass_is_left_to_torch(op: str) -> None:
    check_falls_back(op, torch.randn(4, 3).as_subclass(Tagged), "Tagged is a tensor subclass")


def test_meta_tensors_are_left_to_torch(op: str) -> None:
    check_falls_back(op, torch.empty(4, 3, device="meta"), "no kernels for device meta")


@pytest.mark.parametrize("op", WITHOUT_TARGET)
def test_fake_tensors_are_left_to_torch(op: str) -> None:
    fake = FakeTensorMode().from_tensor(torch.randn(4, 3))
    check_falls_back(op, fake, "FakeTensor is a tensor subclass")


def test_plain_tensor_inside_fake_mode(op: str) -> None:
    x = torch.randn(4, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert reasons(OPS[op][0], x) == ["a torch dispatch mode is active"]


def test_sparse_tensors_are_left_to_torch() -> None:
    x = torch.eye(3).to_sparse()
    explanation = fastnn.explain(functional.relu, x)
    assert explanation.decisions == (Decision("relu", "no kernels for layout torch.sparse_coo"),)
    assert torch.equal(explanation.result.to_dense(), torch.eye(3))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_left_to_torch() -> None:
    x = torch.nested.nested_tensor([torch.randn(2), torch.randn(3)])
    explanation = fastnn.explain(functional.relu, x)
    assert explanation.decisions == (Decision("relu", "the tensor is nested"),)
    for mine, theirs in zip(explanation.result.unbind(), x.unbind(), strict=True):
        assert torch.equal(mine, F.relu(theirs))


def test_a_negated_view_is_left_to_torch(op: str) -> None:
    x = torch.randn(4, 3, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    check_falls_back(op, x, "lazily negated")
    assert torch.allclose(OPS[op][0](x), OPS[op][1](x.resolve_neg()), rtol=1e-5)


def _leaked_from(transform: Callable[..., Callable[[Tensor], Tensor]]) -> Tensor:
    """What a functorch transform wraps its argument in, kept after the transform."""
    leaked: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        leaked.append(t)
        return t.sum()

    transform(keep)(torch.randn(4, 3))
    return leaked[0]


def _without_memory() -> Tensor:
    x = torch.randn(4, 3)
    x.untyped_storage().resize_(0)
    return x


# Each kind of argument that is not plain, with the reason why torch runs it. If there is none, the kernel is
# called, which has nothing to do for an empty tensor and refuses one without memory.
SPECIAL: dict[str, tuple[Callable[[], object], str | None]] = {
    "no tensor": (lambda: 3, "int is not a tensor"),
    "None": (lambda: None, "NoneType is not a tensor"),
    "subclass": (lambda: torch.randn(3).as_subclass(Tagged), "Tagged is a tensor subclass"),
    "fake": (lambda: FakeTensorMode().from_tensor(torch.randn(3)), "FakeTensor is a tensor subclass"),
    "meta": (lambda: torch.empty(3, device="meta"), "no kernels for device meta"),
    "coo": (lambda: torch.eye(3).to_sparse(), "no kernels for layout torch.sparse_coo"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "no kernels for layout torch.sparse_csr"),
    "nested": (lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]), "the tensor is nested"),
    "negated": (
        lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
        "the tensor is a lazily negated view",
    ),
    "conjugated": (
        lambda: torch.randn(3, dtype=torch.complex64).conj(),
        "no kernels for dtype torch.complex64",
    ),
    "int64": (lambda: torch.ones(3, dtype=torch.int64), "no kernels for dtype torch.int64"),
    "uint8": (lambda: torch.ones(3, dtype=torch.uint8), "no kernels for dtype torch.uint8"),
    "bool": (lambda: torch.ones(3, dtype=torch.bool), "no kernels for dtype torch.bool"),
    "float8": (
        lambda: torch.ones(3).to(torch.float8_e4m3fn),
        "no kernels for dtype torch.float8_e4m3fn",
    ),
    "batched": (lambda: _leaked_from(torch.func.vmap), "the tensor is batched by a transform"),
    "of a gradient": (lambda: _leaked_from(torch.func.grad), "the tensor is batched by a transform"),
    "functional": (lambda: torch._to_functional_tensor(torch.randn(3)), None),
    "zero": (lambda: torch._efficientzerotensor(3), None),
    "without memory": (_without_memory, None),
    "empty": (lambda: torch.empty(0, 3), None),
}


@pytest.fixture
def gate() -> Callable[[tuple[object, ...]], bool]:
    """A separate one: after torch could not read an argument, it defers to Python for a while."""
    gate: Callable[[tuple[object, ...]], bool] = _dispatch._plain_call()
    return gate


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:Sparse CSR")
@pytest.mark.parametrize("kind", SPECIAL)
def test_the_quick_answer_is_no_for_what_is_special(
    kind: str, gate: Callable[[tuple[object, ...]], bool]
) -> None:
    make, reason = SPECIAL[kind]
    special, plain = make(), torch.randn(3)
    assert not gate((special,))
    assert _dispatch._plain_call()((plain, special)) == (special is None)
    assert _dispatch.torch_reason(special) == reason
    if special is not None:
        assert _dispatch.torch_reason(plain, special) == reason


def test_the_quick_answer_is_yes_for_plain_tensors(gate: Callable[[tuple[object, ...]], bool]) -> None:
    for dtype in _dispatch.DTYPES:
        x = torch.ones(4, 3, dtype=dtype)
        for t in (
            x,
            torch.nn.Parameter(x),
            x.t(),
            x[1:, ::2],
            x[0, 0],
            x.expand(9, 4, 3),
            x.view(*[1] * 8, 12),
        ):
            assert gate((t,))
        assert gate((x, None, x))
    assert gate(())
    assert not gate((torch.ones(1), torch.ones(1, dtype=torch.float64)))
    assert not gate((torch.ones(1), None, torch.ones(1, dtype=torch.float64)))


def test_the_quick_answer_comes_back(gate: Callable[[tuple[object, ...]], bool]) -> None:
    x = torch.ones(1)
    assert gate((x,))
    assert not gate((torch.eye(3).to_sparse(),))
    assert not gate((x,))  # left to Python for a while
    assert any(gate((x,)) for _ in range(2000))


def test_the_quick_answer_needs_every_state_as_expected() -> None:
    def broken() -> object:
        raise RuntimeError

    def answer(*functions: Callable[[], object]) -> bool:
        return _dispatch.cpu.PlainCall(_dispatch.PLAIN_TYPES, [(f, None) for f in functions])(
            (torch.ones(1),)
        )

    assert answer(lambda: None, lambda: None)
    assert not answer(lambda: None, lambda: 0)
    assert not answer(lambda: 0, lambda: None)
    assert not answer(broken)


def test_disabled_everything_runs_on_torch(op: str) -> None:
    x = torch.randn(4, 3)
    with fastnn.disabled():
        check_falls_back(op, x, "fastnn is disabled")
        with fastnn.disabled():
            pass
        assert reasons(OPS[op][0], x) == ["fastnn is disabled"]
    assert reasons(OPS[op][0], x) == [None]
    with pytest.raises(KeyError), fastnn.disabled():
        raise KeyError
    assert reasons(OPS[op][0], x) == [None]


def test_mixed_dtypes_are_left_to_torch() -> None:
    x, w = torch.randn(4, 3), torch.randn(5, 3, dtype=torch.float64)
    assert "mixed" in str(_dispatch.torch_reason(x, w))
    with pytest.raises(RuntimeError, match="same dtype"):
        functional.linear(x, w)


def test_mixed_devices_are_left_to_torch() -> None:
    x, w = torch.randn(4, 3), torch.randn(5, 3, device="meta")
    assert reasons(functional.linear, x, w) == ["no kernels for device meta"]


def test_autocast_is_left_to_torch(op: str) -> None:
    x = torch.randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_falls_back(op, x, "autocast is active")
    with torch.autocast("cpu", enabled=False):
        assert reasons(OPS[op][0], x) == [None]


def test_vmap_is_left_to_torch(op: str) -> None:
    ours, theirs = OPS[op]
    x = torch.randn(2, 4, 3)
    explanation = fastnn.explain(torch.func.vmap(ours), x)
    assert {d.reason for d in explanation.decisions} == {"a functorch transform is active"}
    assert torch.allclose(explanation.result, torch.stack([theirs(row) for row in x]), atol=1e-6)


def test_func_grad_and_per_sample_gradients(op: str) -> None:
    ours, theirs = OPS[op]
    x = torch.randn(2, 4, 3)
    for transform in (torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f))):
        sample = x[0] if transform is torch.func.grad else x
        mine = transform(lambda t: ours(t).square().sum())(sample)
        want = transform(lambda t: theirs(t).square().sum())(sample)
        assert torch.allclose(mine, want, atol=1e-5)


@torch_warns_in_jvp
def test_func_jvp_and_hessian(op: str) -> None:
    ours, theirs = OPS[op]
    x, v = torch.randn(4, 3), torch.randn(4, 3)
    mine, want = torch.func.jvp(ours, (x,), (v,)), torch.func.jvp(theirs, (x,), (v,))
    assert torch.allclose(mine[1], want[1], atol=1e-5)
    mine_h = torch.func.hessian(lambda t: ours(t).square().sum())(x)
    assert torch.allclose(mine_h, torch.func.hessian(lambda t: theirs(t).square().sum())(x), atol=1e-4)


@torch_warns_in_jvp
def test_forward_mode_ad(op: str) -> None:
    ours, theirs = OPS[op]
    x, v = torch.randn(4, 3), torch.randn(4, 3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, v)
        explanation = fastnn.explain(ours, dual)
        assert [d.reason for d in explanation.decisions] == ["forward-mode AD is active"]
        mine, want = forward_ad.unpack_dual(explanation.result), forward_ad.unpack_dual(theirs(dual))
        assert torch.allclose(mine.tangent, want.tangent, atol=1e-6)


def test_batched_gradients(op: str) -> None:
    ours, theirs = OPS[op]
    x = torch.randn(4, 3, requires_grad=True)
    y = ours(x)
    dy = torch.randn(5, *y.shape)
    explanation = fastnn.explain(lambda: torch.autograd.grad(y, x, dy, is_grads_batched=True)[0])
    assert all("batched" in str(d.reason) for d in explanation.decisions)
    assert explanation.decisions
    want = torch.stack([torch.autograd.grad(theirs(x), x, one)[0] for one in dy])
    assert torch.allclose(explanation.result, want, atol=1e-5)


def test_vectorized_jacobian(op: str) -> None:
    ours, theirs = OPS[op]
    x = torch.randn(4, 3)
    mine = torch.autograd.functional.jacobian(ours, x, vectorize=True)
    assert torch.allclose(mine, torch.autograd.functional.jacobian(theirs, x), atol=1e-5)


def test_a_graph_of_the_gradient_is_left_to_torch(op: str) -> None:
    ours, _ = OPS[op]
    x = torch.randn(4, 3, requires_grad=True)
    y = ours(x)
    seen = reasons(lambda: torch.autograd.grad(y.sum(), x, create_graph=True))
    assert seen == ["create_graph is set"]
    y = ours(x)
    assert reasons(lambda: torch.autograd.grad(y.sum(), x)) == [None]


class CountFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_function_mode_sees_the_torch_op() -> None:
    with CountFunctions() as mode:
        assert reasons(functional.relu, torch.randn(3)) == ["a torch function mode is active"]
    assert "relu" in mode.names


def test_dispatch_mode_sees_the_torch_op() -> None:
    with CountOps() as mode:
        assert reasons(functional.relu, torch.randn(3)) == ["a torch dispatch mode is active"]
    assert "relu.default" in mode.names


def test_a_default_device_is_not_a_reason(op: str) -> None:
    with torch.device("cpu"):
        assert reasons(OPS[op][0], torch.randn(4, 3)) == [None]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_is_left_to_torch(op: str) -> None:
    ours, theirs = OPS[op]
    traced = torch.jit.trace(ours, torch.randn(4, 3))
    x = torch.randn(4, 3)
    assert torch.allclose(traced(x), theirs(x), atol=1e-6)
    assert "PythonOp" not in str(traced.graph)


@pytest.mark.filterwarnings("ignore")
def test_compile_fullgraph(op: str) -> None:
    ours, theirs = OPS[op]
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, requires_grad=True)
    y = compiled(x)
    assert torch.allclose(y, theirs(x), atol=1e-6)
    (mine,) = torch.autograd.grad(y.square().sum(), x)
    (want,) = torch.autograd.grad(theirs(x).square().sum(), x)
    assert torch.allclose(mine, want, atol=1e-5)


def test_saved_tensor_hooks_and_checkpointing(op: str) -> None:
    ours, theirs = OPS[op]
    x = torch.randn(4, 3, requires_grad=True)
    packed: list[torch.Size] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t.shape)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = ours(x)
    assert packed
    (mine,) = torch.autograd.grad(y.square().sum(), x)
    again = torch.utils.checkpoint.checkpoint(ours, x, use_reentrant=False)
    (recomputed,) = torch.autograd.grad(again.square().sum(), x)
    (want,) = torch.autograd.grad(theirs(x).square().sum(), x)
    assert torch.allclose(mine, want, atol=1e-5)
    assert torch.equal(mine, recomputed)


def test_recording_nests_and_ends() -> None:
    outer: list[Decision] = []
    inner: list[Decision] = []
    with _dispatch.recording(outer.append):
        functional.relu(torch.randn(1))
        with _dispatch.recording(inner.append):
            functional.relu(torch.randn(1))
    functional.relu(torch.randn(1))
    assert len(outer) == 2
    assert len(inner) == 1


def test_a_quick_method_checks_what_it_is_given() -> None:
    watch = _dispatch.cpu.Watch()
    assert watch.unchanged() is True
    with pytest.raises(TypeError, match="expected 0 arguments, got 1"):
        watch.unchanged(1)
    with pytest.raises(TypeError):
        _dispatch.cpu.Watch.unchanged(object())
    with pytest.raises(TypeError, match="not initialised"):
        _dispatch.cpu.Watch.__new__(_dispatch.cpu.Watch).unchanged()
    with pytest.raises(TypeError, match="expected a tuple"):
        _dispatch._plain_call()([])
