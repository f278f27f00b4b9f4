"""Arguments of the wrong type, and numbers at the limits of their range: torch's own errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn
import fastnn.functional as FF
from fastnn import _dispatch
from fastnn.ops.mlp import Layer, mlp

WRONG = [None, 1, 1.5, True, "a", b"x", [1.0], {}, object(), 2**63, -(2**63) - 1, 2**63 - 1, float("nan")]
LARGE = [2**63 - 1, 2**62 + 1, -(2**63), -1, 0]

TARGET = torch.tensor([0, 1, 2, 1])
ARGUMENTS: dict[str, dict[str, Any]] = {
    "relu": {"input": torch.ones(2, 3)},
    "linear": {"input": torch.ones(2, 3), "weight": torch.ones(4, 3), "bias": torch.ones(4)},
    "cross_entropy": {
        "input": torch.ones(4, 3),
        "target": TARGET,
        "weight": None,
        "ignore_index": -100,
        "reduction": "mean",
        "label_smoothing": 0.0,
    },
}
LINEAR_CROSS_ENTROPY: dict[str, Any] = {
    "input": torch.ones(4, 3),
    "linear_weight": torch.ones(5, 3),
    "target": TARGET,
    "linear_bias": torch.ones(5),
}


def outcome(function: Any, arguments: dict[str, Any]) -> Tensor | type[Exception]:
    try:
        return function(**arguments)  # type: ignore[no-any-return]
    except Exception as error:
        return type(error)


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, arguments in ARGUMENTS.items() for name in arguments]
)
@pytest.mark.parametrize("grad", [False, True])
def test_an_argument_of_the_wrong_type(op: str, name: str, grad: bool) -> None:
    for wrong in WRONG:
        arguments = {**ARGUMENTS[op], name: wrong}
        if grad:
            arguments = {
                k: v.clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
                for k, v in arguments.items()
            }
        expected = outcome(getattr(F, op), arguments)
        got = outcome(getattr(FF, op), arguments)
        with fastnn.disabled():
            assert type(outcome(getattr(FF, op), arguments)) is type(got)
        if isinstance(expected, Tensor):
            torch.testing.assert_close(got, expected, equal_nan=True)
        else:
            assert got is expected, (op, name, wrong)


@pytest.mark.parametrize("name", LINEAR_CROSS_ENTROPY)
@pytest.mark.parametrize("wrong", [1, 1.5, "a", [1.0], object()], ids=["1", "1.5", "a", "[1.0]", "object"])
def test_linear_cross_entropy_takes_tensors(name: str, wrong: object) -> None:
    with pytest.raises(TypeError, match=f"linear_cross_entropy: {name} must be a Tensor, got"):
        FF.linear_cross_entropy(**{**LINEAR_CROSS_ENTROPY, name: wrong})


@pytest.mark.parametrize("name", ["label_smoothing", "z_loss"])
@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (None, "NoneType"),
        ("a", "str"),
        ([1.0], "list"),
        (torch.zeros(2), r"Tensor of shape \(2,\)"),
        (np.zeros((2, 1)), r"ndarray of shape \(2, 1\)"),
    ],
    ids=["None", "a", "list", "tensor", "array"],
)
def test_an_option_of_a_loss_is_a_number(name: str, wrong: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f"^cross_entropy: {name} must be a number, got {got}$"):
        FF.cross_entropy(torch.ones(4, 3), TARGET, **{name: wrong})
    with pytest.raises(TypeError, match=f"^linear_cross_entropy: {name} must be a number, got {got}$"):
        FF.linear_cross_entropy(**LINEAR_CROSS_ENTROPY, **{name: wrong})


@pytest.mark.parametrize("name", ["label_smoothing", "z_loss"])
def test_an_option_of_a_loss_may_be_a_tensor_of_one_value(name: str) -> None:
    for op, arguments in (
        (FF.cross_entropy, {"input": torch.randn(4, 3), "target": TARGET}),
        (FF.linear_cross_entropy, LINEAR_CROSS_ENTROPY),
    ):
        given = op(**arguments, **{name: torch.tensor(0.5)})
        torch.testing.assert_close(given, op(**arguments, **{name: 0.5}), rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [torch.zeros(2), "a"], ids=["tensor", "str"])
def test_an_ignore_index_of_the_wrong_type_raises_the_error_of_torch(wrong: Any) -> None:
    x = torch.ones(200, 100)  # large enough for the kernel
    for target in (torch.zeros(200, dtype=torch.long), torch.full((200, 100), 0.01)):
        with pytest.raises(TypeError, match=r"argument 'ignore_index' .* must be int"):
            FF.cross_entropy(x, target, ignore_index=wrong)


@pytest.mark.parametrize("wrong", [None, 1, [1.0]], ids=str)
def test_gram_matrix_takes_a_tensor(wrong: Any) -> None:
    with pytest.raises(TypeError, match="gram_matrix: input must be a Tensor, got"):
        FF.gram_matrix(wrong)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("wrong", [1, "a", [1.0]], ids=str)
def test_a_chain_takes_tensors(place: int, wrong: Any) -> None:
    parts: list[Any] = [torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)]
    parts[place] = wrong
    with pytest.raises(TypeError):
        mlp(parts[0], [Layer(parts[1], parts[2], None)])


@pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")
@pytest.mark.parametrize("number", LARGE)
class TestNumbersAtTheBinding:
    """Values that Python checks or never passes: no number may reach a kernel that cannot take it."""

    def run(self, ignore_index: int = -100, reduction: int = 1, chunk_rows: int = 4) -> tuple[Tensor, Tensor]:
        x, w, loss, dw = torch.ones(4, 3), torch.ones(5, 3), torch.empty(()), torch.empty(5, 3)
        _dispatch.cpu.linear_cross_entropy(
            *(x, w, None, TARGET, None, loss, None, None, dw, None),
            *(ignore_index, reduction, 0.0, 0.0, chunk_rows),
        )
        return loss, dw

    def test_chunk_rows_are_taken_if_positive(self, number: int) -> None:
        if number > 0:
            torch.testing.assert_close(self.run(chunk_rows=number), self.run())
        else:
            with pytest.raises(RuntimeError, match="linear_cross_entropy: chunk_rows must be positive, got"):
                self.run(chunk_rows=number)

    def test_ignore_index_may_be_any_number(self, number: int) -> None:
        loss, _ = self.run(ignore_index=number)
        expected = F.cross_entropy(torch.zeros(4, 5), TARGET, ignore_index=number)
        torch.testing.assert_close(loss, expected)

    def test_another_reduction_is_refused(self, number: int) -> None:
        number = max(-(2**31), min(number or 3, 2**31 - 1))
        with pytest.raises(
            ValueError, match=f"linear_cross_entropy: reduction must be 0, 1 or 2, got {number}"
        ):
            self.run(reduction=number)
        arguments = (torch.ones(4, 3), TARGET, None, torch.empty(()), None, -100, number, 0.0, 0.0)
        with pytest.raises(ValueError, match=f"cross_entropy: reduction must be 0, 1 or 2, got {number}"):
            _dispatch.cpu.cross_entropy_forward(*arguments)
