"""MLP and Sequential: the numbers and behaviour of torch's chain, with pairs fused while unobserved."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import prune

import fastnn
from fastnn import nn

Chain = torch.nn.Sequential


def torch_chain(sizes: list[int], **options: object) -> Chain:
    layers: list[torch.nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers += [torch.nn.ReLU()] * (i > 0)
        layers.append(torch.nn.Linear(fan_in, fan_out, **options))
    return Chain(*layers)


def pair(sizes: list[int], **options: object) -> tuple[nn.MLP, Chain]:
    torch.manual_seed(1)
    mine = nn.MLP(sizes, **options)  # type: ignore[arg-type]
    torch.manual_seed(1)
    return mine, torch_chain(sizes, **options)


def ops_of(fn: Callable[[], object]) -> list[str]:
    return [decision.op for decision in fastnn.explain(fn).decisions]


@pytest.mark.parametrize("sizes", [[4, 3], [6, 5, 4], [7, 6, 5, 4, 3]])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dtype": torch.float64}])
def test_equals_torchs_chain(sizes: list[int], options: dict[str, object]) -> None:
    mine, theirs = pair(sizes, **options)
    assert repr(mine) == repr(theirs).replace("Sequential(", "MLP(")
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(5, sizes[0], dtype=next(mine.parameters()).dtype)
    a, b = mine(x), theirs(x)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_keys_and_activation() -> None:
    assert list(nn.MLP([3, 4, 2]).state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    affine = nn.MLP([3, 4, 2], activation=None)
    assert list(affine.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    with pytest.raises(ValueError, match=r"MLP: activation must be None, .* or 'silu', got 'softplus'"):
        nn.MLP([3, 4], activation="softplus")
    for sizes in ([], [3]):
        with pytest.raises(ValueError, match="at least an input and an output size"):
            nn.MLP(sizes)
    for bad in ([True, 3], [3.0, 2], "32", ["3", 2]):
        with pytest.raises(TypeError, match="MLP: sizes must be a list of ints, got"):
            nn.MLP(bad)  # type: ignore[arg-type]


def test_sizes_may_be_numpy_numbers() -> None:
    model = nn.MLP([np.array((3, 4)).prod(), np.int64(5), 2])
    assert [type(layer.in_features) for layer in model if isinstance(layer, nn.Linear)] == [int, int]
    assert model(torch.randn(3, 12)).shape == (3, 2)


def test_fuses_runs_of_layers() -> None:
    model, x = nn.MLP([4, 5, 6, 2]), torch.randn(3, 4)
    assert ops_of(lambda: model(x)) == ["mlp"]
    assert ops_of(lambda: model[:2](x)) == ["linear"]
    assert ops_of(lambda: model[1:](torch.randn(3, 5))) == ["relu", "mlp"]
    model.insert(2, torch.nn.Tanh())
    assert ops_of(lambda: model(x)) == ["linear", "mlp"]


@pytest.mark.parametrize("part", [slice(0, 1), slice(0, 2), slice(1, 3), slice(2, None), slice(0, 9, 2)])
def test_slices_equal_torchs(part: slice) -> None:
    mine, theirs = pair([4, 4, 4, 4])
    x = torch.randn(3, 4)
    torch.testing.assert_close(mine[part](x), theirs[part](x))
    assert repr(mine[part]) == repr(theirs[part])
    assert list(mine[part].state_dict()) == list(theirs[part].state_dict())
    assert mine[part][0] is mine[part.start or 0]


def test_indexing_and_stepping_through_equal_the_whole() -> None:
    model, x = nn.MLP([4, 5, 2]), torch.randn(3, 4)
    y = x
    for i in range(len(model)):
        y = model[i](y)
    torch.testing.assert_close(y, model(x))
    assert model[-1] is model[2]
    with pytest.raises(IndexError):
        model[3]


def test_an_edited_chain_computes_what_it_holds() -> None:
    mine, theirs = pair([4, 4, 4])
    x = torch.randn(3, 4)
    for model in (mine, theirs):
        model.append(torch.nn.Tanh())
        model.insert(0, torch.nn.Identity())
        model[2] = torch.nn.Sigmoid()
        del model[3]
        model.extend([torch.nn.ReLU()])
    torch.testing.assert_close(mine(x), theirs(x))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    both = nn.MLP([4, 4]) + nn.MLP([4, 2])
    assert both(x).shape == (3, 2)
    assert mine.pop(0) is not None


def _register(kind: str, module: torch.nn.Module, calls: list[str]) -> Callable[[], None]:
    def hook(*args: object) -> None:
        calls.append(kind)

    register = {
        "forward": module.register_forward_hook,
        "forward_pre": module.register_forward_pre_hook,
        "backward": module.register_full_backward_hook,
        "backward_pre": module.register_full_backward_pre_hook,
    }[kind]
    return register(hook).remove


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "backward", "backward_pre"])
@pytest.mark.parametrize("place", [0, 1])
def test_hooks_on_inner_modules_fire(kind: str, place: int) -> None:
    mine, theirs = pair([4, 5, 2])
    x = torch.randn(3, 4, requires_grad=True)
    calls: list[str] = []
    removes = [_register(kind, model[place], calls) for model in (mine, theirs)]
    results = [torch.autograd.grad(model(x).sum(), x)[0] for model in (mine, theirs)]
    torch.testing.assert_close(*results)
    assert calls == [kind] * 2
    for remove in removes:
        remove()
    assert ops_of(lambda: mine(x)) == ["mlp"]


def test_a_hook_sees_the_value_before_the_activation() -> None:
    model, x = nn.MLP([4, 5, 2]), torch.randn(3, 4)
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    torch.testing.assert_close(seen[0], torch.nn.functional.linear(x, model[0].weight, model[0].bias))
    assert (seen[0] < 0).any()


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_global_hooks_fire_for_every_module(kind: str) -> None:
    model, x = nn.MLP([4, 5, 2]), torch.randn(3, 4, requires_grad=True)
    seen: list[str] = []
    register = getattr(torch.nn.modules.module, f"register_module_{kind}")
    handle = register(lambda module, *rest: seen.append(type(module).__name__))
    try:
        model(x).sum().backward()
    finally:
        handle.remove()
    assert sorted(seen) == ["Linear", "Linear", "MLP", "ReLU"]


def test_a_replaced_forward_and_a_subclass_are_called() -> None:
    model, x = nn.MLP([4, 5, 2]), torch.randn(3, 4)
    model[1].forward = torch.tanh  # type: ignore[method-assign]
    torch.testing.assert_close(model(x), model[2](torch.tanh(model[0](x))))

    class Doubling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    chain = nn.Sequential(Doubling(4, 4), nn.ReLU())
    want = 2 * torch.nn.functional.linear(x, chain[0].weight, chain[0].bias)
    torch.testing.assert_close(chain(x), want.relu())


def test_a_layer_with_its_own_activation_keeps_it() -> None:
    chain, x = nn.Sequential(nn.Linear(4, 4, activation="relu"), nn.ReLU()), torch.randn(3, 4)
    torch.testing.assert_close(chain(x), chain[0](x).relu())
    assert ops_of(lambda: chain(x)) == ["linear"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_reparametrized_layers() -> None:
    x = torch.randn(3, 4)
    for change in (
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ):
        model = nn.MLP([4, 5, 2]).eval()
        change(model[0])
        layer = model[0]
        hidden = layer(x)
        torch.testing.assert_close(hidden, torch.nn.functional.linear(x, layer.weight, layer.bias))
        torch.testing.assert_close(model(x), model[2](hidden.relu()))


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("way", ["attribute", "buffer", "shadow", "parameter"])
def test_replaced_parameters_are_used(name: str, way: str) -> None:
    model = nn.MLP([5, 4, 3])
    layer = model[0]
    other = torch.randn_like(getattr(layer, name))
    if way == "shadow":
        layer.__dict__[name] = other  # found before the parameter, which is kept
    else:
        delattr(layer, name)
        if way == "buffer":
            layer.register_buffer(name, other)
        else:
            setattr(layer, name, torch.nn.Parameter(other) if way == "parameter" else other)
    x = torch.randn(2, 5)
    want = F.linear(F.relu(F.linear(x, layer.weight, layer.bias)), model[2].weight, model[2].bias)
    assert getattr(layer, name).data_ptr() == other.data_ptr()
    assert ops_of(lambda: model(x)) == ["mlp"]
    assert torch.allclose(model(x), want, atol=1e-6)


def test_copies_are_independent() -> None:
    model, x = nn.MLP([4, 5, 2]), torch.randn(3, 4)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is nn.MLP
        assert torch.equal(twin(x), model(x))
        assert ops_of(lambda twin=twin: twin(x)) == ["mlp"]
        assert twin[0].weight is not model[0].weight


def test_inputs_that_are_not_tensors_pass_as_in_torch() -> None:
    class Pair(torch.nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] + pair[1]

    assert nn.Sequential(Pair(), nn.ReLU())((torch.ones(2), torch.ones(2))).tolist() == [2.0, 2.0]
    assert nn.Sequential()(3) == 3


# torch's modules for the activations of a chain.
MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "relu": torch.nn.ReLU,
    "sigmoid": torch.nn.Sigmoid,
    "tanh": torch.nn.Tanh,
    "gelu": torch.nn.GELU,
    "gelu_tanh": lambda: torch.nn.GELU(approximate="tanh"),
    "silu": torch.nn.SiLU,
}


def assert_same_training(mine: torch.nn.Module, theirs: torch.nn.Module, x: Tensor) -> None:
    results = []
    for model in (mine, theirs):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *model.parameters()])])
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("activation", MODULES)
def test_each_activation_is_fused(activation: str) -> None:
    mine, x = nn.MLP([6, 5, 4, 3], activation=activation), torch.randn(7, 6)
    module = MODULES[activation]
    theirs = Chain(*(torch.nn.Linear(6, 5), module(), torch.nn.Linear(5, 4), module(), torch.nn.Linear(4, 3)))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert repr(mine) == repr(theirs).replace("Sequential(", "MLP(")
    theirs.load_state_dict(mine.state_dict())
    assert_same_training(mine, theirs, x)
    assert ops_of(lambda: mine(x)) == ["mlp"]
    assert ops_of(lambda: fastnn.convert(theirs)(x)) == ["mlp"]
    assert type(fastnn.revert(theirs)[1]) is type(module())
    for place in (0, 1):
        seen: list[Tensor] = []
        handle = mine[place].register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(output)
        )
        assert_same_training(mine, theirs, x)
        handle.remove()
        torch.testing.assert_close(seen[0], theirs[: place + 1](x))
    layer = nn.Linear(6, 5, activation=activation)
    theirs = Chain(torch.nn.Linear(6, 5), module())
    theirs[0].load_state_dict(layer.state_dict())
    assert_same_training(layer, theirs, x)
    torch.testing.assert_close(torch.jit.script(layer)(x), theirs(x))
    torch.testing.assert_close(torch.jit.script(mine)(x), mine(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_mixed_activations_in_place_and_not(inplace: bool) -> None:
    theirs = Chain(
        *(torch.nn.Linear(6, 5), torch.nn.SiLU(inplace=inplace), torch.nn.Linear(5, 4), torch.nn.Tanh()),
        *(torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=inplace), torch.nn.Linear(4, 4), torch.nn.GELU()),
    )
    mine, x = fastnn.convert(copy.deepcopy(theirs)), torch.randn(7, 6)
    assert ops_of(lambda: mine(x)) == ["mlp"]
    assert_same_training(mine, theirs, x)
    # With a hook, the layer runs alone, and its output may be changed in place as in torch.
    for model in (mine, theirs):
        model[0].register_forward_hook(lambda module, args, output: output * 2)
    assert_same_training(mine, theirs, x)
    assert ops_of(lambda: mine(x)) == ["linear", "mlp"]


def test_a_second_activation_is_applied_too() -> None:
    x = torch.randn(7, 6)
    mine = nn.Sequential(nn.Linear(6, 5, activation="tanh"), torch.nn.ReLU(inplace=False), nn.Linear(5, 4))
    theirs = Chain(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.ReLU(), torch.nn.Linear(5, 4))
    theirs[0].load_state_dict(mine[0].state_dict())
    theirs[3].load_state_dict(mine[2].state_dict())
    assert_same_training(mine, theirs, x)


def test_a_subclass_of_an_activation_is_called() -> None:
    class Doubling(torch.nn.SiLU):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    chain, x = nn.Sequential(nn.Linear(4, 4), Doubling(), nn.Linear(4, 2)), torch.randn(3, 4)
    torch.testing.assert_close(chain(x), chain[2](2 * torch.nn.functional.silu(chain[0](x))))
