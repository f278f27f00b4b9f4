"""explain, info and `fastnn info`."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

import fastnn
from fastnn import _dispatch, functional
from fastnn._diagnostics import counted
from fastnn._dispatch import Decision
from fastnn.cli import info as info_command

native = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def step(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    y = functional.relu(functional.relu(x) * scale)
    functional.relu(torch.zeros(2, dtype=torch.int64))
    y.sum().backward()
    return y


@native
def test_explain_says_where_each_op_ran() -> None:
    seen = fastnn.explain(step, torch.ones(3, requires_grad=True), scale=2.0)
    assert seen.result.tolist() == [2.0] * 3
    integer = Decision("relu", "no kernels for dtype torch.int64")
    backward = Decision("relu_backward", None)
    assert seen.decisions == (Decision("relu", None),) * 2 + (integer,) + (backward,) * 2
    assert str(seen).splitlines() == [
        "op             calls  ran on  why not natively",
        "relu               2  native",
        "relu               1  torch   no kernels for dtype torch.int64",
        "relu_backward      2  native",
    ]


def test_explain_of_nothing_and_of_an_error() -> None:
    assert str(fastnn.explain(lambda: 3)) == "no fastnn op ran"
    with pytest.raises(KeyError):
        fastnn.explain(lambda: {}["x"])
    assert _dispatch._recorders == []
    with pytest.raises(TypeError):
        fastnn.explain(3)  # type: ignore[arg-type]


def test_explain_of_a_result() -> None:
    with pytest.raises(TypeError, match=r"as in explain\(step, x, y\), got Tensor"):
        fastnn.explain(torch.relu(torch.ones(2)))  # type: ignore[arg-type]


def test_info_describes_this_installation() -> None:
    info = fastnn.info()
    assert info.fastnn == fastnn.__version__
    assert info.torch == torch.__version__
    assert info.native == (_dispatch.torch_reason() is None)
    assert "CUDA" in info.cuda
    assert json.loads(json.dumps(info.as_dict())) == info.as_dict()
    text = str(info)
    for value in (info.fastnn, info.torch, info.python, info.cuda):
        assert value in text


@native
def test_info_reports_the_instruction_sets(isa: str) -> None:
    info = fastnn.info()
    assert (info.isa, info.best_isa) == (isa, _dispatch.cpu.best_isa)
    assert (f"the best here is {info.best_isa}" in str(info)) == (isa != info.best_isa)
    assert info.compiler


@native
def test_info_says_that_fastnn_is_off() -> None:
    assert fastnn.info().why_not_native is None
    with fastnn.disabled():
        assert fastnn.info().why_not_native == "fastnn is disabled"
        assert "off: fastnn is disabled" in str(fastnn.info())


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_info(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    info_command.add_arguments(parser)
    assert info_command.run(parser.parse_args(["--json"] if as_json else [])) == 0
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out) == fastnn.info().as_dict()
    else:
        assert out.strip() == str(fastnn.info())


@pytest.mark.parametrize(("number", "told"), [(0, "0 calls"), (1, "1 call"), (2000, "2,000 calls")])
def test_what_is_counted_has_its_plural(number: int, told: str) -> None:
    assert counted(number, "call") == told
