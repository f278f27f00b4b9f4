"""Linear, ReLU and GramMatrix as modules: everything that torch's have."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import Tensor

import fastnn
from fastnn import functional, nn


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value: rounding gives about K eps for sums of K terms."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


PAIRS = [
    (lambda m: m.Linear(5, 3), (4, 5)),
    (lambda m: m.Linear(5, 3, bias=False), (2, 4, 5)),
    (lambda m: m.Linear(5, 3, dtype=torch.float64), (5,)),
    (lambda m: m.Linear(5, 3, True, "cpu", torch.float32), (4, 5)),
    (lambda m: m.ReLU(), (4, 5)),
    (lambda m: m.ReLU(inplace=True), (4, 5)),
]


@pytest.mark.parametrize(("make", "shape"), PAIRS)
def test_layers_are_twins_of_torchs(make, shape) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    mine = make(nn)
    torch.manual_seed(3)
    theirs = make(torch.nn)
    assert isinstance(mine, type(theirs))
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[key], value)
    dtype = next((p.dtype for p in mine.parameters()), torch.float32)
    x = torch.randn(shape, dtype=dtype)
    a, b = x.clone(), x.clone()
    assert gap(mine(a), theirs(b)) < 20 * torch.finfo(dtype).eps
    assert torch.equal(a, b)  # both wrote in place, or neither
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())


@pytest.mark.parametrize(("ours", "theirs"), [(nn.Linear, torch.nn.Linear), (nn.ReLU, torch.nn.ReLU)])
def test_signatures_begin_with_torchs(ours: type, theirs: type) -> None:
    mine = list(inspect.signature(ours).parameters.values())
    for own, other in zip(mine, inspect.signature(theirs).parameters.values(), strict=False):
        assert (own.name, own.kind, own.default) == (other.name, other.kind, other.default)


def test_linear_gradients_equal_torchs() -> None:
    mine, x = nn.Linear(7, 5), torch.randn(6, 7)
    theirs = torch.nn.Linear(7, 5)
    theirs.load_state_dict(mine.state_dict())
    for module in (mine, theirs):
        module(x).square().sum().backward()
    assert gap(mine.weight.grad, theirs.weight.grad) < 20 * torch.finfo(torch.float32).eps
    assert gap(mine.bias.grad, theirs.bias.grad) < 20 * torch.finfo(torch.float32).eps


def test_linear_with_activation() -> None:
    layer, x = nn.Linear(5, 3, activation="relu"), torch.randn(4, 5)
    assert repr(layer) == "Linear(in_features=5, out_features=3, bias=True, activation='relu')"
    want = torch.relu(torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert gap(layer(x), want) < 20 * torch.finfo(torch.float32).eps
    assert list(layer.state_dict()) == ["weight", "bias"]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert torch.equal(twin(x), layer(x))
    layer.activation = None
    assert repr(layer) == "Linear(in_features=5, out_features=3, bias=True)"


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match=r"Linear: activation must be None, .* or 'silu', got 'elu'"):
        nn.Linear(2, 2, activation="elu")


def test_wrong_input_is_torchs_error() -> None:
    with pytest.raises(RuntimeError):
        nn.Linear(5, 3)(torch.randn(4, 6))
    with pytest.raises(TypeError):
        nn.Linear(5, 3)(None)


def test_the_activation_is_not_state() -> None:
    plain, fused = torch.nn.Linear(4, 4), nn.Linear(4, 4, activation="relu")
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())
    assert "activation" not in vars(nn.Linear(4, 4))  # pickles like torch's, without extra attributes


@pytest.mark.parametrize("make", [lambda **k: nn.Linear(4, 3, **k), lambda **k: nn.MLP([4, 6, 3], **k)])
def test_meta_construction_and_to_empty(make) -> None:  # type: ignore[no-untyped-def]
    module = make(device="meta")
    assert all(p.is_meta for p in module.parameters())
    assert module(torch.empty(2, 4, device="meta")).shape == (2, 3)
    module = module.to_empty(device="cpu")
    module.load_state_dict(make().state_dict())
    assert module(torch.randn(2, 4)).shape == (2, 3)


def test_skip_init_leaves_weights_alone() -> None:
    layer = torch.nn.utils.skip_init(nn.Linear, 4, 3, activation="relu", dtype=torch.float64)
    assert layer.weight.shape == (3, 4)
    assert layer.weight.dtype is torch.float64
    assert len(torch.nn.utils.skip_init(nn.MLP, [4, 5, 3])) == 3


def test_weights_are_saved_and_loaded() -> None:
    module, file = nn.MLP([3, 4, 2]), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = torch.randn(5, 3)
    assert torch.equal(loaded(x), module(x))


def test_the_module_gives_what_the_function_gives() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(nn.GramMatrix()(x), functional.gram_matrix(x))
    assert torch.equal(nn.GramMatrix(normalize=True)(x), functional.gram_matrix(x, normalize=True))
    assert repr(nn.GramMatrix(True)) == "GramMatrix(normalize=True)"
    assert nn.GramMatrix().state_dict() == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_and_symbolic_trace() -> None:
    model = nn.Sequential(nn.MLP([4, 6, 3]), nn.Linear(3, 2, activation="relu"), nn.ReLU())
    x = torch.randn(5, 4)
    for compiled in (torch.jit.script(model), torch.jit.trace(model, x), torch.fx.symbolic_trace(model)):
        assert torch.allclose(compiled(x), model(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("normalize", [False, True])
def test_script_of_the_gram_matrix(shape: tuple[int, ...], normalize: bool) -> None:
    module, x = nn.GramMatrix(normalize), torch.randn(shape)
    assert torch.allclose(torch.jit.script(module)(x), module(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_compile_fullgraph_and_export() -> None:
    model = nn.Sequential(nn.MLP([4, 6, 3]), nn.Linear(3, 2, activation="relu"), nn.GramMatrix())
    x = torch.randn(5, 4)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-5)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.allclose(torch.export.export(model, (x,)).module()(x), model(x), atol=1e-5)


def test_functional_call_uses_the_given_parameters() -> None:
    model = nn.MLP([3, 4, 2])
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert torch.func.functional_call(model, zeros, torch.randn(2, 3)).abs().sum() == 0


def test_modules_run_natively() -> None:
    if not fastnn.info().native:
        pytest.skip("needs the compiled module")
    model = nn.Sequential(nn.MLP([4, 6, 3]), nn.ReLU(), nn.GramMatrix())
    seen = fastnn.explain(lambda: model(torch.randn(5, 4)).sum().backward()).decisions
    assert [d.op for d in seen if d.reason is None] == [
        *("mlp", "relu", "gram_matrix"),
        *("gram_backward", "relu_backward", "mlp_backward"),
    ]
    assert [d for d in seen if d.reason is not None] == []
