"""What the ops keep for their backward: what torch's own layers keep, and no more.

Between forward and backward a program may write to tensors that torch does not read again, and unneeded ones
are freed. Here every set of tensors that require a gradient is tried against torch's own program.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn.functional as FF
from fastnn import _dispatch
from fastnn.ops.linear import ACTIVATIONS, torch_activation
from fastnn.ops.mlp import Layer, mlp

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

T = TypeVar("T")
Program = Callable[..., Tensor]
ROWS, WIDTHS = 3, [4, 5, 6, 2]  # all different, so that the number of elements identifies a tensor
CHANGED = "modified by an inplace operation"


def chain(activation: str | None) -> tuple[Program, Program, list[Tensor]]:
    """Three layers of x and W, b, W, b, W, b, natively and in torch's ops."""
    activations = (activation, activation, activation)

    def layers(parameters: Sequence[Tensor]) -> list[Layer]:
        return [Layer(*parameters[2 * i : 2 * i + 2], activations[i]) for i in range(3)]

    def theirs(x: Tensor, *parameters: Tensor) -> Tensor:
        for layer in layers(parameters):
            x = torch_activation(F.linear(x, layer.weight, layer.bias), layer.activation)
        return x

    shapes = [(ROWS, WIDTHS[0])]
    for k, n in itertools.pairwise(WIDTHS):
        shapes += [(n, k), (n,)]
    return lambda x, *p: mlp(x, layers(p)), theirs, values(shapes)


def one_layer(activation: str | None) -> tuple[Program, Program, list[Tensor]]:
    return (
        lambda x, w, b: FF.linear(x, w, b, activation),
        lambda x, w, b: torch_activation(F.linear(x, w, b), activation),
        values([(ROWS, 4), (5, 4), (5,)]),
    )


def values(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


PROGRAMS = {
    f"{make.__name__}-{activation}": (make, activation)
    for make in (one_layer, chain)
    for activation in ACTIVATIONS
}


# A chain keeps the result or the argument of an activation: one of each is in every run.
FEW = [name for name in PROGRAMS if not name.startswith("chain") or name.endswith(("None", "relu", "silu"))]


@pytest.fixture(
    params=[name if name in FEW else pytest.param(name, marks=pytest.mark.long) for name in PROGRAMS]
)
def programs(request: pytest.FixtureRequest) -> tuple[Program, Program, list[Tensor]]:
    make, activation = PROGRAMS[request.param]
    return make(activation)


def subsets(tensors: Sequence[Tensor]) -> Iterator[list[bool]]:
    """Every nonempty choice of those that require a gradient."""
    for wanted in itertools.product([False, True], repeat=len(tensors)):
        if any(wanted):
            yield list(wanted)


def leaves(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [t.clone().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]


def of(tensors: Sequence[T], wanted: Sequence[bool]) -> list[T]:
    return [t for t, want in zip(tensors, wanted, strict=True) if want]


def outcome(run: Callable[[], Sequence[Tensor]]) -> tuple[Tensor, ...] | None:
    """Its results, or None if torch detects an in-place change."""
    try:
        return tuple(run())
    except RuntimeError as error:
        if CHANGED not in str(error):
            raise
        return None


def changed_before_backward(
    program: Program, tensors: Sequence[Tensor], wanted: Sequence[bool], changed: int
) -> tuple[Tensor, ...] | None:
    """The gradients after tensor number `changed` was written into."""
    mine = leaves(tensors, wanted)
    y = program(*mine)
    with torch.no_grad():
        mine[changed].add_(1)
    return outcome(lambda: torch.autograd.grad(y, of(mine, wanted), torch.ones_like(y)))


def changed_before_second(
    program: Program, tensors: Sequence[Tensor], wanted: Sequence[bool], changed: int | None
) -> tuple[Tensor, ...] | None:
    """The gradients of a penalty on the gradients, after tensor `changed` was written into."""
    mine = leaves(tensors, wanted)
    (y, of_y) = program(*mine), torch.ones((), dtype=torch.float64, requires_grad=True)

    def penalty() -> Sequence[Tensor]:
        grads = torch.autograd.grad((y.square() * of_y).sum(), of(mine, wanted), create_graph=True)
        if changed is not None:
            with torch.no_grad():
                mine[changed].add_(1)
        second = torch.autograd.grad(
            sum(grad.square().sum() for grad in grads), [of_y, *of(mine, wanted)], allow_unused=True
        )
        return [*grads, *(torch.zeros(()) if grad is None else grad for grad in second)]

    return outcome(penalty)


def test_in_place_changes_are_allowed_where_torch_allows_them(
    programs: tuple[Program, Program, list[Tensor]],
) -> None:
    ours, theirs, tensors = programs
    for wanted in subsets(tensors):
        for changed in range(len(tensors)):
            expected = changed_before_backward(theirs, tensors, wanted, changed)
            got = changed_before_backward(ours, tensors, wanted, changed)
            assert (got is None) == (expected is None), (wanted, changed)
            if expected is not None:
                torch.testing.assert_close(got, expected)


def test_second_derivatives(programs: tuple[Program, Program, list[Tensor]]) -> None:
    """For every set of tensors, and after in-place changes: they match torch's, or its error."""
    ours, theirs, tensors = programs
    for wanted in subsets(tensors):
        for changed in (None, *range(len(tensors))) if sum(wanted) < 3 else (None,):
            expected = changed_before_second(theirs, tensors, wanted, changed)
            got = changed_before_second(ours, tensors, wanted, changed)
            assert (got is None) == (expected is None), (wanted, changed)
            if expected is not None:
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_inference_tensors_may_be_frozen(programs: tuple[Program, Program, list[Tensor]]) -> None:
    """If torch need not save them."""
    ours, theirs, tensors = programs

    def gradients(program: Program, wanted: Sequence[bool], frozen: int) -> tuple[Tensor, ...] | str:
        mine = leaves(tensors, wanted)
        with torch.inference_mode():
            mine[frozen] = tensors[frozen].clone()
        try:
            y = program(*mine)
        except RuntimeError as error:
            return str(error)
        return torch.autograd.grad(y, of(mine, wanted), torch.ones_like(y))

    for wanted in subsets(tensors):
        for frozen in range(len(tensors)):
            if not wanted[frozen]:
                expected = gradients(theirs, wanted, frozen)
                got = gradients(ours, wanted, frozen)
                if isinstance(expected, str):
                    assert got == expected
                else:
                    torch.testing.assert_close(got, expected)


def saved_sizes(program: Program, tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[int]:
    """The sizes of the tensors passed to hooks, each part of memory once."""
    shown: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        shown[t.data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = program(*leaves(tensors, wanted))
    assert y.requires_grad
    return sorted(t.numel() for t in shown.values())


def test_hooks_are_shown_what_torch_saves(programs: tuple[Program, Program, list[Tensor]]) -> None:
    ours, theirs, tensors = programs
    for wanted in subsets(tensors):
        assert saved_sizes(ours, tensors, wanted) == saved_sizes(theirs, tensors, wanted), wanted


def test_memory_that_torch_frees_is_freed(programs: tuple[Program, Program, list[Tensor]]) -> None:
    """Tensors that need a gradient may live until the graph is freed: double backward leads to them."""
    ours, theirs, tensors = programs

    def alive(program: Program, wanted: Sequence[bool], after_backward: bool) -> list[bool]:
        mine = [t * 1 for t in leaves(tensors, wanted)]
        y = program(*mine)
        if after_backward:
            y.sum().backward()
        references = [weakref.ref(t) for t in mine]
        mine.clear()
        assert y.requires_grad
        return [reference() is not None for reference in references]

    gc.disable()
    try:
        for wanted in subsets(tensors):
            frozen = [not want for want in wanted]
            got, expected = (of(alive(program, wanted, False), frozen) for program in (ours, theirs))
            assert got == expected, wanted
            assert not any(alive(ours, wanted, True)), wanted
    finally:
        gc.enable()


def test_the_graph_is_not_a_reference_cycle(programs: tuple[Program, Program, list[Tensor]]) -> None:
    ours, _, tensors = programs
    mine = leaves(tensors, [True] * len(tensors))
    gc.disable()
    try:
        y = ours(*mine)
        grad = torch.autograd.grad(y.sum(), mine, create_graph=True)
        references = [weakref.ref(t) for t in mine]
        del y, grad
        mine.clear()
        assert all(reference() is None for reference in references)
    finally:
        gc.enable()


def test_hidden_layers_of_more_than_one_batch_dimension() -> None:
    ours, theirs, tensors = chain("gelu")
    tensors[0] = torch.randn(2, 3, 4, dtype=torch.float64)
    for wanted in ([True] * 7, [False] * 2 + [True] * 5):
        expected = changed_before_second(theirs, tensors, wanted, None)
        got = changed_before_second(ours, tensors, wanted, None)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_outputs_may_be_changed_in_place(dims: int) -> None:
    x = torch.randn((2, 3, 4)[-dims:])
    w, b = torch.randn(5, 4, requires_grad=True), torch.randn(5, requires_grad=True)
    for y in (FF.linear(x, w, b), mlp(x, [Layer(w, b, None)]), FF.linear(x, w, b, "silu")):
        y.mul_(2).sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
class TestLinearCrossEntropy:
    def programs(self, reduction: str) -> tuple[Program, Program, list[Tensor]]:
        target = torch.tensor([0, 4, 2])

        def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return FF.linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction)

        def theirs(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return F.cross_entropy(F.linear(x, w, b), target, reduction=reduction)

        return ours, theirs, values([(ROWS, 4), (5, 4), (5,)])

    def test_in_place_changes(self, reduction: str) -> None:
        """Those that torch allows; and more, if the forward has computed the gradients."""
        ours, theirs, tensors = self.programs(reduction)
        for wanted in subsets(tensors):
            mine = leaves(tensors, wanted)
            y = theirs(*mine)
            expected = torch.autograd.grad(y, of(mine, wanted), torch.ones_like(y))
            for changed in range(3):
                got = changed_before_backward(ours, tensors, wanted, changed)
                allowed = changed == 2 or reduction != "none"
                assert (got is not None) == allowed, (wanted, changed)
                if got is not None:
                    torch.testing.assert_close(got, expected)

    def test_second_derivatives(self, reduction: str) -> None:
        ours, theirs, tensors = self.programs(reduction)
        for wanted in subsets(tensors):
            expected = changed_before_second(theirs, tensors, wanted, None)
            got = changed_before_second(ours, tensors, wanted, None)
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
            for changed in range(3):
                mine = leaves(tensors, wanted)
                y = ours(*mine)
                with torch.no_grad():
                    mine[changed].add_(1)
                with pytest.raises(RuntimeError, match=CHANGED):
                    torch.autograd.grad(y.sum(), of(mine, wanted), create_graph=True)

    def test_a_second_backward(self, reduction: str) -> None:
        ours, _, tensors = self.programs(reduction)
        mine = leaves(tensors, [True] * 3)
        y = ours(*mine)
        first, again = (torch.autograd.grad(y.sum(), mine, retain_graph=True) for _ in range(2))
        torch.testing.assert_close(again, first)

    def test_inference_tensors(self, reduction: str) -> None:
        ours, theirs, tensors = self.programs(reduction)
        mine = leaves(tensors, [False, True, False])
        with torch.inference_mode():
            mine[2] = tensors[2].clone()
        got, expected = (torch.autograd.grad(f(*mine).sum(), mine[1]) for f in (ours, theirs))
        torch.testing.assert_close(got, expected)
