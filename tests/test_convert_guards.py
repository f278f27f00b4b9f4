"""convert of modules with a forward of their own: whatever the trace hung on is noticed when it changes."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

import fastnn
from functional_nets import Net, close, ops, reasons, twins

T = torch.nn
LIMIT = 1.0


def hook(*_: Any) -> None:
    """Change nothing."""


def tripling(_: T.Module, args: Any, output: Tensor) -> Tensor:
    return output * 3


# Each changes what the forward computes, or who watches it, in a way that the trace does not know.
CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "forward hook": (lambda m: m.fc2.register_forward_hook(tripling), "fc2 has a hook"),
    "pre-hook": (lambda m: m.fc1.register_forward_pre_hook(lambda m, a: (a[0] * 2,)), "fc1 has a hook"),
    "backward hook": (lambda m: m.fc2.register_full_backward_hook(hook), "fc2 has a hook"),
    "root hook": (lambda m: m.register_forward_hook(tripling), "it has a hook"),
    "layer's forward": (
        lambda m: setattr(m.fc1, "forward", lambda x: x[:, :5]),
        "fc1 has a hook, a replaced",
    ),
    "forward": (lambda m: setattr(m, "forward", torch.sin), "it has a hook, a replaced forward"),
    "layer": (lambda m: setattr(m, "fc1", T.Linear(6, 5)), "fc1 has changed since convert"),
    "layer's class": (lambda m: fastnn.revert(m.fc2), "fc2 has changed since convert"),
    "layer's activation": (lambda m: setattr(m.fc2, "activation", "relu"), "fc2 has changed since convert"),
    "attribute": (lambda m: setattr(m, "scale", 5.0), "scale has changed since convert"),
    "attribute's sign": (lambda m: setattr(m, "shift", -0.0), "shift has changed since convert"),
    "attribute's type": (lambda m: setattr(m, "kind", True), "kind has changed since convert"),
    "class attribute": (lambda m: setattr(Guarded, "gain", 4.0), "gain has changed since convert"),
    "absent attribute": (lambda m: setattr(m, "extra", 4.0), "extra has changed since convert"),
    "method": (lambda m: setattr(m, "activate", torch.sin), "activate has changed since convert"),
    "None": (lambda m: setattr(m, "nothing", torch.sin), "nothing has changed since convert"),
    "buffer": (lambda m: setattr(m, "offset", None), "offset has changed since convert"),
    "global": (lambda m: globals().update(LIMIT=4.0), "LIMIT has changed since convert"),
    "longer list": (lambda m: m.more.append(T.Linear(2, 2)), r"more.* has changed since convert"),
}


class Guarded(Net):
    gain = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.kind, self.nothing = 0.0, 1, None
        self.more = T.ModuleList([T.Linear(2, 2)])
        self.register_buffer("offset", torch.ones(2))

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(self.activate(self.fc1(x)))
        if self.nothing is not None:
            x = self.nothing(x)
        x = self.fc3(x) * self.scale * self.gain * LIMIT * getattr(self, "extra", 1.0)
        if self.offset is not None:
            x = x + self.offset
        for layer in self.more:
            x = layer(x)
        return torch.where(x > 0, x, x.new_ones(()) / (x.detach() * 0 + self.shift)) * self.kind


@pytest.mark.parametrize("change", CHANGES)
def test_guards(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LIMIT", LIMIT)
    monkeypatch.setattr(Guarded, "gain", Guarded.gain)
    model, reference = twins(Guarded)
    x = torch.rand(4, 6)
    close(model(x), reference(x))
    assert "mlp" in ops(model, x)
    do, reason = CHANGES[change]
    do(model)
    if change == "layer's activation":
        reference.fc2.register_forward_hook(lambda module, args, output: F.relu(output))
    elif change == "layer":
        reference.fc1 = model.fc1
    elif change == "longer list":
        reference.more.append(model.more[1])
    else:
        do(reference)
    close(model(x), reference(x))
    assert "mlp" not in ops(model, x)
    assert any(re.search(reason, text) for text in reasons(model, x)), reasons(model, x)


def test_converting_again_follows_a_change() -> None:
    model, reference = twins(Net)
    x = torch.randn(4, 6)
    model.scale = reference.scale = 7.0
    assert ops(model, x) == ["linear"] * 3
    fastnn.convert(model)
    assert ops(model, x) == ["mlp"]
    close(model(x), reference(x))


def test_global_hooks() -> None:
    model, reference = twins(Net)
    x, seen = torch.randn(4, 6), []
    handle = register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        close(model(x), reference(x))
        assert seen[:4] == [model.fc1, model.fc2, model.fc3, model]
    finally:
        handle.remove()
    assert ops(model, x) == ["mlp"]


def test_other_arguments() -> None:
    model, reference = twins(Net)
    x = torch.randn(4, 6)
    close(model(x=x), reference(x=x))
    assert "positional tensors" in reasons(model, x=x)[0]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        model()

    class Mine(Tensor):
        pass

    assert type(model(x.as_subclass(Mine))) is Mine
    assert "a Mine" in reasons(model, x.as_subclass(Mine))[0]


@pytest.mark.filterwarnings("ignore")
def test_transforms_run_the_forward_as_written() -> None:
    torch._dynamo.reset()
    model, reference = twins(Net)
    x = torch.randn(4, 6)
    want = reference(x)
    with fastnn.disabled():
        assert torch.equal(model(x), want)
    close(torch.compile(model, backend="eager", fullgraph=True)(x), want)
    close(torch.vmap(model)(x), want)
    state = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    close(torch.func.functional_call(model, state, (x,)), torch.zeros(4, 2))
    traced = torch.fx.symbolic_trace(T.Sequential(model))
    assert [node.target for node in traced.graph.nodes].count(F.relu) == 2
    close(traced(x), want)
    close(torch.jit.trace(model, x)(x), want)
    close(torch.jit.script(model)(x), want)
    in_place = copy.deepcopy(model)
    in_place.compile(backend="eager")
    close(in_place(x), want)


def test_a_converted_model_is_freed_at_once() -> None:
    model = fastnn.convert(Guarded())
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_parametrized_modules() -> None:
    model, reference = Net(), Net()
    reference.load_state_dict(model.state_dict())
    x = torch.randn(4, 6)
    for net in (model, reference):
        net.register_parameter("free", T.Parameter(torch.ones(2)))
    fastnn.convert(model)
    for net in (model, reference):
        parametrize.register_parametrization(net, "free", T.Tanh())
        parametrize.register_parametrization(net.fc1, "weight", T.Tanh())
    close(model(x), reference(x))
    assert reasons(fastnn.convert, model) != []  # a class made of a class that torch will take away again
    for net in (model, reference):
        parametrize.remove_parametrizations(net, "free")
        parametrize.remove_parametrizations(net.fc1, "weight")
    close(model(x), reference(x))
    assert ops(model, x) == ["mlp"]
    assert type(fastnn.revert(model)) is Net


def test_a_replica_runs_the_forward_as_written() -> None:
    model, x = fastnn.convert(Net()), torch.randn(4, 6)
    replica = model._replicate_for_data_parallel()
    replica._modules = model._modules
    close(replica(x), model(x))
    assert "it is a replica" in reasons(replica, x)
