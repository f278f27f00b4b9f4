"""The reports of a machine in one file, and the plots that are drawn from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastnn.cli import bench

plots, summary = (bench.load_benchmarks(name) for name in ("plots", "summary"))


def quartiles(median: float) -> dict[str, float]:
    return {"q1": median, "median": median, "q3": median}


def report(**differing: Any) -> dict[str, Any]:
    """A report of one step, and of one product in a sweep."""
    step = {
        "op": "training step",
        "shape": "2-3-4, batch 5",
        "dtype": "float32",
        "flops": 10**6,
        "bytes": 0,
        "traffic": 10**4,
        "at": 0,
        "refused": None,
        "times": {name: {"seconds": quartiles(1e-3)} for name in ("fastnn", "torch")},
        "speedups": {"torch": quartiles(1.25)},
    } | differing
    return {
        "machine": {"cpu": "A Processor", "isa": "avx2"},
        "versions": {"fastnn": "1", "torch": "2"},
        "settings": {"threads": 1},
        "peaks": [{"threads": 1, "fma_float32": 1e11, "copy": 1e10}],
        "results": [step],
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1234567.0, 1235000.0),
        (-0.000123456, -0.0001235),
        (0.0, 0.0),
        (1234567, 1234567),
        ({"a": (1.00004, None, True, "1.23456")}, {"a": [1.0, None, True, "1.23456"]}),
    ],
)
def test_floats_have_four_digits_and_all_else_stays(value: Any, expected: Any) -> None:
    assert summary.rounded(value) == expected


def test_the_text_is_the_document_with_a_line_for_each_result() -> None:
    document = {"settings": {"threads": 1}, "results": [{"a": [1, 2]}, {"a": []}], "memory": []}
    text = summary.to_text(document)
    assert json.loads(text) == document
    assert [line for line in text.splitlines() if line.startswith('{"a"')] == ['{"a": [1, 2]},', '{"a": []}']


def test_a_report_replaces_only_its_older_version(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    assert summary.reports(path) == {}
    summary.add(path, {"b": {"x": 1.23456}, "a": {"x": 1}})
    summary.add(path, {"a": {"x": 2}})
    assert summary.reports(path) == {"a": {"x": 2}, "b": {"x": 1.235}}


def test_plots_have_sides_without_a_colour_in_the_order_of_the_report() -> None:
    others = [f"side {i}" for i in range(20)]
    assert plots._ordered([*others, "torch", *others]) == ["torch", *others]


def test_plots_are_drawn_from_a_summary(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    side = {"curves": [{"seconds": [0, 1], "accuracy": [0.9, 0.98]}], "median_to_target": 1.0}
    settings = {"network": [1], "batch": 1, "epochs": 1, "highest_rate": 1, "target": 0.98}
    accuracy = report() | settings | {"sides": {"fastnn": side}}
    accuracy["settings"] |= {"rounds": 1, "date": "today"}
    sweep = report(op="step over batch", at=5)
    summary.add(path, {"1thread": report(), "1thread-sweep": sweep, "a": accuracy, "web": {"results": []}})
    assert plots.main([str(path)]) == 0
    names = ["m-1thread-roofline.svg", "m-1thread-step.svg", "m-1thread-sweep-lines.svg", "m-a.svg"]
    assert sorted(each.name for each in tmp_path.glob("*.svg")) == names
    first = {name: (tmp_path / name).read_text() for name in names}
    assert ">training step  2-3-4, batch 5</text>" in first["m-1thread-step.svg"]
    assert ">1.25</text>" in first["m-1thread-step.svg"]
    assert ">fastnn: 1.00 s</text>" in first["m-a.svg"]
    plots.main([str(path)])
    assert {name: (tmp_path / name).read_text() for name in names} == first
