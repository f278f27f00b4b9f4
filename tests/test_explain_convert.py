"""explain(convert, ...): a line for each module, which says what it became, or why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

import fastnn

T = torch.nn


class Wider(T.Linear):
    pass


class Net(T.Module):
    """A Sequential with two fusable runs inside a model, with other layers next to it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = T.Sequential(
            *(T.Linear(4, 5), T.ReLU(), T.Linear(5, 4), T.Dropout()),
            T.Sequential(T.Linear(4, 4), T.Tanh()),
        )
        self.norm = T.LayerNorm(4)
        self.head = Wider(4, 2)
        self.again = self.net[0]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.head(self.norm(self.net(x))))


def lines(fn: Callable[..., Any], *args: Any) -> dict[str, list[Any]]:
    """Class, new class and note of each module, by its name."""
    return {name: rest for name, *rest in map(list, fastnn.explain(fn, *args).conversions)}


def test_each_module_has_its_line() -> None:
    seen = fastnn.explain(fastnn.convert, Net())
    assert seen.decisions == ()
    assert str(seen).splitlines() == [
        "name     class       became                why not, or what fuses",
        "(root)   Net         -                     no counterpart",
        "net      Sequential  fastnn.nn.Sequential  one op: 0 to 2",
        "net.0    Linear      fastnn.nn.Linear",
        "net.1    ReLU        fastnn.nn.ReLU",
        "net.2    Linear      fastnn.nn.Linear",
        "net.3    Dropout     -                     no counterpart",
        "net.4    Sequential  fastnn.nn.Sequential  one op: 0 to 1",
        "net.4.0  Linear      fastnn.nn.Linear",
        "net.4.1  Tanh        -                     no counterpart; fuses after a Linear in a Sequential",
        "norm     LayerNorm   -                     no counterpart",
        "head     Wider       -                     a subclass of torch.nn.Linear",
    ]


def test_what_it_says_fuses_is_what_fuses() -> None:
    blocks = [layer for _ in range(2) for layer in (T.Linear(4, 4), T.ReLU(), T.Dropout(0.0))]
    model = T.Sequential(*blocks, T.Linear(4, 4), T.Linear(4, 4))
    assert lines(fastnn.convert, model)[""][-1] == "one op: 0 to 1, 3 to 4, 6 to 7"
    x = torch.randn(2, 4)
    assert [op for op, _ in fastnn.explain(model, x).decisions] == ["linear", "linear", "mlp"]
    model[1].register_forward_hook(lambda *_: None)
    found = lines(fastnn.convert, model)
    assert found[""][-1].endswith("one op: 3 to 4, 6 to 7")
    assert found["1"][-1].endswith("never fuses: it has a hook, a replaced forward or a compiled one")
    assert [op for op, _ in fastnn.explain(model, x).decisions] == ["linear", "relu", "linear", "mlp"]


def test_a_hook_for_all_modules_is_named() -> None:
    handle = register_module_forward_hook(lambda *_: None)
    try:
        found = lines(fastnn.convert, T.Sequential(T.Linear(3, 3), T.ReLU()))
    finally:
        handle.remove()
    assert found[""][-1] == "a hook for all modules is registered"


def test_repeated_convert_and_revert_are_reported() -> None:
    model = fastnn.convert(T.Sequential(T.Linear(3, 3), fastnn.nn.GramMatrix()))
    assert lines(fastnn.convert, model) == {
        "": ["Sequential", None, "it is fastnn's already; nothing in it fuses"],
        "0": ["Linear", None, "it is fastnn's already"],
        "1": ["GramMatrix", None, "it is fastnn's already"],
    }
    model[0].activation = "relu"
    assert lines(fastnn.revert, model) == {
        "": ["Sequential", "torch.nn.Sequential", ""],
        "0": ["Linear", None, "torch's has no activation"],
        "1": ["GramMatrix", None, "no counterpart"],
    }
    assert lines(fastnn.revert, T.Tanh()) == {"": ["Tanh", None, "it is torch's already"]}
    loss = fastnn.nn.CrossEntropyLoss(z_loss=0.5)
    assert lines(fastnn.revert, loss)[""] == ["CrossEntropyLoss", None, "torch's has no z_loss"]


def test_an_mlp_is_reported_as_already_fastnns() -> None:
    found = lines(fastnn.convert, fastnn.nn.MLP([3, 4, 2]))
    assert found[""] == ["MLP", None, "it is fastnn's already; one op: 0 to 2"]
    assert set(found["0"][1:]) == {None, "it is fastnn's already"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_left_alone_says_why() -> None:
    parametrized = T.Linear(3, 3)
    parametrize.register_parametrization(parametrized, "weight", T.Tanh())
    compiled = T.Sequential(T.Linear(3, 3))
    compiled.compile(backend="eager")
    model = T.ModuleDict(
        {
            "script": torch.jit.script(T.ReLU()),
            "param": parametrized,
            "compiled": compiled,
            "lazy": T.LazyLinear(3),
        }
    )
    found = {name: note for name, (_, became, note) in lines(fastnn.convert, model).items() if became is None}
    assert found["script"] == "it is scripted"
    assert found["param"] == "a subclass of torch.nn.Linear"
    assert found["compiled"] == found["compiled.0"] == "it is compiled"
    assert found["lazy"] == "a subclass of torch.nn.Linear"


def optimizer_of(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return kind(T.Linear(3, 3).parameters())


class OwnAdam(torch.optim.Adam):
    pass


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (optimizer_of(torch.optim.NAdam), "NAdam (no counterpart)"),
        (optimizer_of(OwnAdam), "OwnAdam (a subclass of torch.optim.Adam)"),
        (T.Tanh(), "Tanh (no counterpart)"),
        (T.ModuleList([Wider(4, 2), T.Tanh()]), "ModuleList (no counterpart, a subclass of torch.nn.Linear)"),
    ],
)
def test_a_convert_that_changes_nothing_warns(target: Any, why: str) -> None:
    with pytest.warns(UserWarning, match="changed nothing") as warned:
        assert fastnn.convert(target) is target
    assert [str(w.message) for w in warned] == [f"fastnn.convert changed nothing in {why}"]
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = str(fastnn.explain(fastnn.convert, target))  # which says so itself
        fastnn.revert(target)
    assert "-       no counterpart" in seen or "-       a subclass of torch" in seen


@pytest.mark.parametrize("target", [Net(), fastnn.nn.MLP([3, 2]), optimizer_of(torch.optim.Adam)])
def test_a_convert_of_which_something_is_fastnns_is_quiet(target: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastnn.convert(fastnn.convert(target))


def test_inside_a_function() -> None:
    def prepare() -> T.Module:
        model = fastnn.convert(T.Sequential(T.Linear(3, 3), T.ReLU()))
        model(torch.ones(1, 3))
        return model

    tables = str(fastnn.explain(prepare)).split("\n\n")
    assert [table.splitlines()[-1].split()[0] for table in tables] == ["1", "linear"]
