"""The comparison of memory in `fastnn bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastnn import _dispatch
from fastnn.cli import bench
from fastnn.cli.main import main

memory = bench.load_benchmarks("memory")

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")

OPTIONS = ["--no-peers", "--threads", "1", "--rounds", "1", "--filter", memory.LABEL]


@needs_proc
def test_torch_holds_the_logits_and_the_gradients_are_distinguished() -> None:
    n, k, c = 1024, 16, 32000
    (comparison,) = memory.measure(1, (n, k, c), ["float32"])
    assert comparison.shape == "1024x16x32000"
    ours, theirs = comparison.sides["fastnn"], comparison.sides["torch"]
    assert ours.gradients == theirs.gradients == 4 * (n * k + c * k)
    assert ours.peak - ours.rest == ours.gradients
    logits = 4 * n * c
    assert theirs.rest > logits > ours.rest > 0


@needs_proc
def test_a_process_that_fails_is_reported() -> None:
    with pytest.raises(RuntimeError, match=r"fastnn ends with 1: .*no_such_type"):
        memory.measure(1, (2, 3, 4), ["no_such_type"])


@pytest.mark.usefixtures("quick_probe")
def test_it_is_part_of_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(threads: int) -> list[Any]:
        side = memory.Memory(peak=3 << 20, gradients=1 << 20)
        return [memory.Comparison("op", "2x3x4", "bfloat16", {"fastnn": side})]

    monkeypatch.setattr(memory, "measure", measured)
    assert main(["bench", *OPTIONS, "--out", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["op", "2x3x4", "bfloat16", "fastnn", "3", "MB", "2", "MB"] in lines
    rows = [line.split() for line in (tmp_path / "bench.md").read_text().splitlines()]
    assert ["|", "op", "|", "2x3x4", "bfloat16", "|", "fastnn", "|", "3", "MB", "|", "2", "MB", "|"] in rows
    (told,) = json.loads((tmp_path / "bench.json").read_text())["memory"]
    sides = {"fastnn": {"peak": 3 << 20, "gradients": 1 << 20}}
    assert told == {"op": "op", "shape": "2x3x4", "dtype": "bfloat16", "sides": sides}


@pytest.mark.usefixtures("quick_probe")
def test_without_proc_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert main(["bench", *OPTIONS]) == 0
    assert f"left out: {memory.LABEL}, no /proc" in capsys.readouterr().out


def test_it_is_listed_where_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--filter", memory.LABEL]) == 0
    assert capsys.readouterr().out == f"{memory.LABEL}\n"
    assert main(["bench", "--list", "--quick"]) == 0
    assert memory.LABEL not in capsys.readouterr().out
