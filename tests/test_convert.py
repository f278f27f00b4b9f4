"""convert and revert: same numbers, same parameters, same modules, and back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize, prune

import fastnn
from fastnn import nn


class Net(torch.nn.Module):
    """Layers as attributes, in a list, in a dict, shared, and called functionally."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Dropout(0.0))
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(5, 5), torch.nn.ReLU(inplace=True)])
        self.named = torch.nn.ModuleDict({"out": torch.nn.Linear(5, 3, bias=False)})
        self.shared = self.blocks[0]
        self.norm = torch.nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        return self.named["out"](self.norm(torch.relu(self.shared(x))))


def types_of(model: torch.nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_convert_swaps_classes_and_revert_restores_them() -> None:
    model = Net()
    x = torch.randn(4, 6)
    want, before_types, before_repr = model(x), types_of(model), repr(model)
    before_modules, before_parameters = list(model.modules()), list(model.parameters())
    pickled_state = {key: value.clone() for key, value in model.state_dict().items()}

    assert fastnn.convert(model) is model
    assert type(model.head) is nn.Sequential
    assert type(model.head[0]) is nn.Linear
    assert type(model.blocks[1]) is nn.ReLU
    assert model.blocks[1].inplace
    assert type(model.named["out"]) is nn.Linear
    assert model.shared is model.blocks[0]
    assert type(model.norm) is torch.nn.LayerNorm
    assert all(a is b for a, b in zip(model.modules(), before_modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), before_parameters, strict=True))
    assert repr(model) == before_repr
    close(model(x), want)

    converted_types = types_of(model)
    fastnn.convert(model)
    assert types_of(model) == converted_types

    assert fastnn.revert(model) is model
    assert types_of(model) == before_types
    assert repr(model) == before_repr
    assert torch.equal(model(x), want)
    assert all(torch.equal(value, pickled_state[key]) for key, value in model.state_dict().items())
    assert pickle.dumps(model) == pickle.dumps(fastnn.revert(fastnn.convert(model)))
    fastnn.revert(model)
    assert types_of(model) == before_types


@pytest.mark.parametrize(
    ("root", "want"),
    [
        (torch.nn.Linear(3, 2), nn.Linear),
        (torch.nn.ReLU(), nn.ReLU),
        (torch.nn.Sequential(), nn.Sequential),
        (torch.nn.CrossEntropyLoss(), nn.CrossEntropyLoss),
    ],
)
def test_the_root_is_converted(root: torch.nn.Module, want: type) -> None:
    original = type(root)
    assert fastnn.convert(root) is root
    assert type(root) is want
    assert type(fastnn.revert(root)) is original


@pytest.mark.parametrize("bad", [None, 3, torch.nn.Linear, torch.zeros(2), [torch.nn.ReLU()]])
def test_neither_module_nor_optimizer(bad: object) -> None:
    kinds = "a torch.nn.Module or torch.optim.Optimizer"
    for op in ("convert", "revert"):
        with pytest.raises(TypeError, match=rf"{op}: expected {kinds}, got {type(bad).__name__}$"):
            getattr(fastnn, op)(bad)


def test_an_optimizer_stays_valid_and_training_equals_torchs() -> None:
    theirs = Net()
    mine = copy.deepcopy(theirs)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (mine, theirs)]
    fastnn.convert(mine)
    for _ in range(20):
        x = torch.randn(8, 6)
        for model, optimizer in zip((mine, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        close(a, b)


def test_state_training_flag_attributes_and_frozen_parameters_survive() -> None:
    model = Net().eval()
    model.named["out"].weight.requires_grad_(False)
    model.head[0].note = "kept"
    model.head[0].register_buffer("extra", torch.ones(1))
    fastnn.convert(model)
    assert not any(module.training for module in model.modules())
    assert not model.named["out"].weight.requires_grad
    assert model.head[0].note == "kept"
    assert "head.0.extra" in model.state_dict()
    Net().load_state_dict(fastnn.convert(Net()).state_dict())
    fastnn.convert(Net()).load_state_dict(Net().state_dict())


class Doubling(torch.nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_subclasses_are_left_alone() -> None:
    model = torch.nn.Sequential(Doubling(4, 4), torch.nn.LazyLinear(3), torch.nn.MultiheadAttention(4, 2))
    fastnn.convert(model)
    assert type(model[0]) is Doubling
    assert type(model[1]) is torch.nn.LazyLinear
    assert type(model[2].out_proj) is torch.nn.modules.linear.NonDynamicallyQuantizableLinear
    x = torch.randn(2, 4)
    close(model[0](x), 2 * torch.nn.functional.linear(x, model[0].weight, model[0].bias))
    model[1](x)  # becomes a torch.nn.Linear
    assert type(model[1]) is torch.nn.Linear
    assert type(fastnn.convert(model)[1]) is nn.Linear


@pytest.mark.parametrize("training", [False, True])
def test_transformer_layer(training: bool) -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(training)
    x = torch.randn(2, 5, 8)
    want = layer(x)
    fastnn.convert(layer)
    assert type(layer.linear1) is nn.Linear
    close(layer(x), want)
    with torch.no_grad():
        close(layer(x), want)


def test_hooks_survive_conversion() -> None:
    model, calls = Net(), []
    model.head[0].register_forward_pre_hook(lambda module, args: calls.append("pre"))
    model.head[1].register_forward_hook(lambda module, args, output: output * 3)
    model.head[0].register_full_backward_hook(lambda *args: calls.append("backward"))
    model.head.register_state_dict_pre_hook(lambda *args: calls.append("state"))
    x = torch.randn(4, 6, requires_grad=True)
    want = model(x)
    fastnn.convert(model)
    close(model(x), want)
    calls.clear()
    model(x).sum().backward()
    model.state_dict()
    assert calls == ["pre", "backward", "state"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["parametrize", "weight_norm", "old weight_norm", "spectral_norm", "prune"])
def test_reparametrized_modules(order: str, kind: str) -> None:
    apply, remove = {
        "parametrize": (
            lambda layer: parametrize.register_parametrization(layer, "weight", torch.nn.Tanh()),
            lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        ),
        "weight_norm": (
            torch.nn.utils.parametrizations.weight_norm,
            lambda layer: parametrize.remove_parametrizations(layer, "weight"),
        ),
        "old weight_norm": (torch.nn.utils.weight_norm, torch.nn.utils.remove_weight_norm),
        "spectral_norm": (torch.nn.utils.spectral_norm, torch.nn.utils.remove_spectral_norm),
        "prune": (
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
            lambda layer: prune.remove(layer, "weight"),
        ),
    }[kind]
    model = Net().eval()
    x = torch.randn(4, 6)
    if order == "after":
        fastnn.convert(model)
    apply(model.head[0])
    want = model(x)
    if order == "before":
        fastnn.convert(model)
    close(model(x), want)
    model(x).sum().backward()
    remove(model.head[0])
    close(model(x), want)
    fastnn.revert(model)
    assert type(model.head[0]) is torch.nn.Linear
    close(model(x), want)


def test_revert_of_modules_made_as_fastnn_ones() -> None:
    model = torch.nn.Sequential(nn.MLP([4, 5, 3]), nn.Linear(3, 3, activation="relu"), nn.GramMatrix())
    x = torch.randn(2, 4)
    want = model(x)
    fastnn.revert(model)
    assert types_of(model[0]) == [torch.nn.Sequential, torch.nn.Linear, torch.nn.ReLU, torch.nn.Linear]
    assert type(model[1]) is nn.Linear  # no torch module is a Linear with an activation
    assert model[1].activation == "relu"
    assert type(model[2]) is nn.GramMatrix
    close(model(x), want)


def test_a_loss_keeps_its_options() -> None:
    weight = torch.rand(3)
    loss = torch.nn.CrossEntropyLoss(weight, ignore_index=1, reduction="sum", label_smoothing=0.1)
    model = torch.nn.ModuleDict({"loss": loss})
    x, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 2])
    want, text = loss(x, target), repr(model)
    fastnn.convert(model)
    assert type(loss) is nn.CrossEntropyLoss
    assert loss.weight is weight
    assert repr(model) == text
    close(loss(x, target), want)
    assert type(fastnn.revert(model)["loss"]) is torch.nn.CrossEntropyLoss
    with_z_loss = nn.CrossEntropyLoss(z_loss=0.5)
    assert type(fastnn.revert(with_z_loss)) is nn.CrossEntropyLoss


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_left_alone() -> None:
    inner = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()))
    model = torch.nn.Sequential(inner, torch.nn.Linear(4, 2))
    x = torch.randn(3, 4)
    want, before = model(x), types_of(inner)
    fastnn.convert(model)
    assert types_of(inner) == before
    assert type(model[1]) is nn.Linear
    close(model(x), want)


@pytest.mark.filterwarnings("ignore")
def test_compiled_modules_are_left_alone() -> None:
    torch._dynamo.reset()
    inner = Net()
    model = torch.nn.Sequential(torch.compile(inner, backend="eager"), torch.nn.Linear(3, 2))
    in_place = torch.nn.Linear(3, 3)
    in_place.compile(backend="eager")
    x = torch.randn(3, 6)
    want, before = model(x), types_of(inner)
    fastnn.convert(model)
    fastnn.convert(in_place)
    assert types_of(inner) == before
    assert type(in_place) is torch.nn.Linear
    assert type(model[1]) is nn.Linear
    close(model(x), want)


@pytest.mark.filterwarnings("ignore")
def test_converted_models_compile_and_revert_under_compilation() -> None:
    torch._dynamo.reset()
    model, x = fastnn.convert(Net()), torch.randn(3, 6)
    want = model(x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    close(compiled(x), want)
    fastnn.revert(model)
    close(compiled(x), want)


def test_copies_of_a_converted_model() -> None:
    model, x = fastnn.convert(Net()), torch.randn(3, 6)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert types_of(twin) == types_of(model)
        assert torch.equal(twin(x), model(x))


def test_a_module_that_contains_itself_ends() -> None:
    model = Net()
    model.__dict__["_modules"]["me"] = model
    fastnn.convert(model)
    assert type(model.head) is nn.Sequential
    fastnn.revert(model)
    assert type(model.head) is torch.nn.Sequential


class Critic(torch.nn.Module):
    """Layers that a forward calls one after the other, with in-place writes in between."""

    def __init__(self, kind: type[torch.nn.Linear] = torch.nn.Linear) -> None:
        super().__init__()
        self.fc1, self.fc2 = kind(6, 5), kind(5, 4)


class Clamps(Critic):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(x))
        self.fc2.weight.data.clamp_(min=0)
        return self.fc2(h)


class Copies(Critic):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(x))
        self.fc2.bias.data.copy_(h.data.mean(0)[:4])
        return self.fc2(h)


class ClampsOut(Critic):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(x))
        torch.clamp(self.fc2.weight.detach(), min=0, out=self.fc2.weight.data)
        return self.fc2(h)


class WritesItsInput(Critic):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        x.data.zero_()
        return self.fc2(torch.relu(h)) + x[:, :4]


class ChangesOptions(Critic):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc1(x))
        object.__setattr__(self.fc2, "bias", None)
        return self.fc2(h)


WRITERS = [Clamps, Copies, ClampsOut, WritesItsInput, ChangesOptions]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_forward_written_by_hand_runs_as_written(kind: type[Critic]) -> None:
    theirs = kind()
    mine, by_layers = fastnn.convert(copy.deepcopy(theirs)), kind(nn.Linear)
    by_layers.load_state_dict(theirs.state_dict())
    assert type(mine) is kind
    start = torch.randn(7, 6)
    found = []
    for model in (mine, by_layers, theirs):
        x = start.clone().requires_grad_()
        y = model(x)
        y.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([y.detach(), x.detach(), x.grad, *gradients, *model.state_dict().values()])
    for a, b, want in zip(*found, strict=True):
        assert torch.equal(a, b)
        close(a, want)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_dynamic_quantization_after_revert() -> None:
    theirs = Net().eval()
    mine = fastnn.revert(fastnn.convert(copy.deepcopy(theirs)))
    quantized = [torch.ao.quantization.quantize_dynamic(model, dtype=torch.qint8) for model in (mine, theirs)]
    assert type(quantized[0].head[0]) is torch.ao.nn.quantized.dynamic.Linear
    assert types_of(quantized[0]) == types_of(quantized[1])
    x = torch.randn(4, 6)
    assert torch.equal(quantized[0](x), quantized[1](x))
