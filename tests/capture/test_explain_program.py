"""What `fastnn.explain` says about a captured function's programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastnn

X = torch.linspace(-1.0, 1.0, 64).reshape(8, 8)
EYE = 3 * torch.eye(8)


def explained(fn: Callable[[Tensor], Any]) -> str:
    """The report's first line, without the part that differs between machines: the bytes."""
    captured = fastnn.capture(fn)
    for _ in range(4):
        captured(X)
    first, *_ = str(fastnn.explain(captured, X)).partition("\n")
    return first.partition(": ")[2].rpartition("; ")[0].rpartition("; ")[0]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: x @ x, "1 native instruction; 0 ops run by torch"),
        (
            lambda x: x.exp() + 1,
            "1 native instruction, including 1 group of fused elementwise ops; 0 ops run by torch",
        ),
        (
            lambda x: ((x.exp() + 1) @ x).cos(),
            "3 native instructions, including 2 groups of fused elementwise ops; 0 ops run by torch",
        ),
        (
            lambda x: torch.linalg.inv_ex(x + EYE)[0] @ x,
            "2 native instructions, including 1 group of fused elementwise ops; 1 op run by torch",
        ),
    ],
    ids=["no groups", "one group", "two groups", "one op of torch's"],
)
def test_counts_agree_in_number_with_their_nouns(fn: Callable[[Tensor], Any], expected: str) -> None:
    assert explained(fn) == expected


def test_ops_of_a_call_that_is_recorded_say_so() -> None:
    layer, x = fastnn.nn.Linear(512, 512), torch.randn(512, 512)  # large enough to be native on its own
    captured = fastnn.capture(lambda x: layer(x).detach())
    reasons = []
    for _ in range(4):
        report = fastnn.explain(captured, x)
        reasons.append([decision.reason for decision in report.decisions if decision.op == "linear"])
    recorded = "a captured function is being recorded"
    assert reasons == [[recorded], [recorded], [None], []]  # surveyed, recorded, compared, replayed


def test_of_several_recordings_the_last_used_is_listed_first() -> None:
    scale = 1.0
    captured = fastnn.capture(lambda x: x @ x if scale == 1.0 else (x @ x).exp())

    def told() -> list[str]:
        for _ in range(4):
            captured(X)
        return str(fastnn.explain(captured, X)).split("\n\n")

    assert [line.partition(" native")[0] for line in told()] == ["for float32 (8, 8): 1"]
    scale = 2.0
    title, current, older = told()
    assert title == "recordings, the last used first:"
    assert "elementwise" in current
    assert "elementwise" not in older
    scale = 1.0
    assert told() == [title, older, current]
