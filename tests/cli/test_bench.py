"""`fastnn bench`: what is timed, in which order, what is refused, and what is written."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import fastnn
from fastnn import _dispatch
from fastnn.cli import bench
from fastnn.cli.main import main

case_module = bench.load_benchmarks("case")
report = bench.load_benchmarks("report")
runner = bench.load_benchmarks("runner")

needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


class FakeMachine:
    """A clock, and calls that advance it by a given time and are logged."""

    def __init__(self) -> None:
        self.now = 0.0
        self.diary: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, seconds: float, answer: Any = None) -> Callable[[], Any]:
        def run() -> Any:
            self.now += seconds
            self.diary.append(name)
            return torch.ones(2) if answer is None else answer

        return run


def make_case(*, tolerance: float = 1e-6, checked_calls: int = 1, **calls: Callable[[], Any]) -> Any:
    workload = case_module.Workload(calls, tolerance, checked_calls)
    return case_module.Case("fake", "2", lambda: workload, flops=1000)


def test_rounds_alternate_in_order() -> None:
    machine = FakeMachine()
    calls = {"fastnn": machine.call("a", 1.0), "torch": machine.call("b", 1.0)}
    samples = runner.measure(calls, 3, machine.clock)
    assert machine.diary == [*"aabb", *"aabbbbaaaabb"]  # calibrations, then rounds, each with a warm-up
    assert samples["torch"].seconds == (1.0, 1.0, 1.0)
    assert samples["torch"].repeats == 1


def test_a_short_call_is_repeated_until_the_clock_is_precise_enough() -> None:
    machine = FakeMachine()
    (samples,) = runner.measure({"fastnn": machine.call("a", 1e-6)}, 2, machine.clock).values()
    assert samples.repeats * 1e-6 == pytest.approx(runner.MIN_SAMPLE_SECONDS, rel=0.25)
    assert samples.seconds == pytest.approx((1e-6, 1e-6))


def test_quartiles_are_those_of_the_ratios() -> None:
    quartiles = runner.Quartiles.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert quartiles == runner.Quartiles(q1=2.0, median=3.0, q3=4.0)
    assert runner.Quartiles.of([7.0]) == runner.Quartiles(7.0, 7.0, 7.0)


def test_speedup_is_the_median_of_the_ratios_within_rounds() -> None:
    machine = FakeMachine()
    # A calibration, then three rounds, each after a call that is not timed.
    ours, theirs = iter([1, 1, 9, 1, 9, 2, 9, 4]), iter([1, 1, 9, 4, 9, 2, 9, 6])

    def timed(times: Any) -> Callable[[], Any]:
        def run() -> Any:
            machine.now += next(times)
            return torch.ones(2)

        return run

    case = make_case(fastnn=timed(ours), torch=timed(theirs), checked_calls=0)
    result = runner.run_case(case, 3, machine.clock)
    assert result.speedups["torch"].median == 1.5  # the median of 4, 1 and 1.5; the ratio of the medians is 2
    assert result.speedups["torch"].q3 == 2.75
    assert result.samples["fastnn"].quartiles.median == 2.0


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (torch.tensor([1.0, 1.1]), "differ by 0.1"),
        (torch.tensor([1.0, float("nan")]), "differ by nan"),
        (torch.ones(3), "of shape"),
        (torch.ones(2, dtype=torch.float64), "float64"),
        ((torch.ones(2), torch.ones(2)), "gives 1 tensors"),
    ],
)
def test_a_wrong_result_is_refused_and_not_timed(answer: Any, told: str) -> None:
    machine = FakeMachine()
    case = make_case(fastnn=machine.call("a", 1.0), torch=machine.call("b", 1.0, answer))
    result = runner.run_case(case, 3, machine.clock)
    assert told in result.refused
    assert machine.diary == ["a", "b"]
    assert not result.samples
    assert not result.speedups


def test_an_answer_that_goes_wrong_in_a_later_call_is_refused() -> None:
    machine = FakeMachine()
    answers = iter([torch.ones(2), torch.ones(2), torch.zeros(2)])
    case = make_case(
        fastnn=machine.call("a", 1.0), torch=lambda: next(answers), tolerance=1e-6, checked_calls=3
    )
    assert "differ" in runner.run_case(case, 1, machine.clock).refused


def test_an_op_that_torch_ran_is_reported() -> None:
    def ours() -> torch.Tensor:
        _dispatch.decide("fake_op", "of a reason")
        return torch.ones(2)

    result = runner.run_case(make_case(fastnn=ours, torch=lambda: torch.ones(2)), 1)
    assert result.fallbacks == ("fake_op: of a reason",)


def report_of(*results: Any) -> Any:
    peaks = {1: bench.load_benchmarks("machine").Peaks(1, 1e11, 5e10, 1e10, "a stub", 1)}
    about = {"cpu": "a stub", "cores": 2, "isa": "avx2", "caches": {}, "load_average": 0.1}
    settings = {"threads": 1, "rounds": 4, "date": "today"}
    return report.Report(about, {}, settings, peaks, results, cache_bytes=0)


WIDE = "wide: quartiles more than 25% of the median apart, 1 of 1: these speed-ups are rough"
STARVED = (
    "NOT RELIABLE: other processes took the processors in 1 of 1 cases; measure again on an idle machine"
)


@pytest.mark.parametrize(
    ("theirs", "busy", "told"),
    [
        ((2.0, 2.0, 2.1, 2.2), 1.0, []),
        ((1.0, 2.0, 2.0, 4.0), 1.0, [WIDE]),
        ((2.0, 2.0, 2.1, 2.2), 0.9, [STARVED]),
    ],
)
def test_figures_to_be_doubted_are_named(theirs: tuple[float, ...], busy: float, told: list[str]) -> None:
    samples = {
        "fastnn": runner.Samples((1.0,) * 4, 1, (1.0,) * 4),
        "torch": runner.Samples(theirs, 1, (busy,) * 4),
    }
    case = make_case(fastnn=lambda: None, torch=lambda: None)
    made = report_of(runner.Result(case, samples, {"torch": runner.Quartiles.of(theirs)}))
    for text in (report.to_text(made), report.to_markdown(made)):
        lines = [line.removeprefix("- ") for line in text.splitlines()]
        assert [line for line in (WIDE, STARVED) if line in lines] == told
        assert ("wide: 1.75 - 2.50" in text) == (told == [WIDE])


def test_a_case_counts_either_flops_or_bytes() -> None:
    for work in ({}, {"flops": 1, "bytes": 1}):
        with pytest.raises(ValueError, match="either flops or bytes"):
            case_module.Case("fake", "2", lambda: None, **work)


def test_cases_are_registered_once_each() -> None:
    cases = bench.load_benchmarks("cases").all_cases()
    labels = [case.label for case in cases]
    assert len(labels) == len(set(labels))
    ops = {case.op.split()[0] for case in cases if case.group != "programs"}
    optimizers = {"adam", "sgd", "adagrad", "rmsprop"}
    losses = {"cross_entropy", "linear_cross_entropy"}
    others = {"clip_grad_norm", "converted", "polyak", "training", "critic", "step", "epoch"}
    assert ops == {"product", "linear", "relu", "gram", *losses, *optimizers, *others}
    assert {case.op.split()[0] for case in cases if case.quick and case.group != "programs"} == ops


@needs_native
def test_a_step_beside_one_thread_gives_the_same_bits_and_the_threads_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "step beside one thread 17-64-64-6, batch 32 float32"
    assert run("--list", "--threads", "2", "--filter", name) == 0
    assert capsys.readouterr().out == f"{name}\n"
    assert run("--list", "--threads", "1", "--filter", name) == 0
    assert name not in capsys.readouterr().out

    (case,) = [case for case in bench.load_benchmarks("cases").all_cases() if case.label == name]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        workload = case.build()
        counts = []
        for call in workload.calls.values():
            call()
            counts.append(torch.get_num_threads())
        assert counts == [2, 1]
        torch.set_num_threads(2)
        result = runner.run_case(case, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert workload.tolerance == 0
    assert result.refused is None
    assert not result.fallbacks
    assert list(result.speedups) == ["fastnn, 1 thread"]


def run(*options: str) -> int:
    return main(["bench", *options])


def allowed_processors() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@needs_native
def test_the_command_measures_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads, processors = torch.get_num_threads(), allowed_processors()
    out = tmp_path / "new"
    options = ["--quick", "--no-peers", "--rounds", "2", "--threads", "1"]
    assert run(*options, "--filter", "relu forward", "--out", str(out)) == 0
    assert torch.get_num_threads() == threads
    assert allowed_processors() == processors
    table = capsys.readouterr().out
    assert "relu forward" in table
    assert "measured peak" in table

    document = json.loads((out / "bench.json").read_text())
    whole = {"schema", "machine", "versions", "settings", "peers", "left_out", "peaks", "results", "memory"}
    assert set(document) == whole
    assert document["peers"] == document["left_out"] == {}
    assert document["settings"]["threads"] == 1
    assert document["versions"]["torch"] == torch.__version__
    assert document["machine"]["isa"] == _dispatch.cpu.isa
    for peaks in document["peaks"]:
        assert min(peaks["fma_float32"], peaks["fma_float64"], peaks["copy"]) > 0
    for result in document["results"]:
        assert result["refused"] is None
        assert "relu" in result["op"]
        ours = result["times"]["fastnn"]
        assert set(ours["seconds"]) == {"q1", "median", "q3"}
        assert ours["threads_busy"] > 0
        assert ours["samples"] == 2
        assert result["speedups"]["torch"]["median"] > 0

    assert (out / "bench.md").read_text().startswith("# fastnn benchmark\n")
    plots = ["bench-memory.svg", "bench-products.svg", "bench-roofline.svg"]
    assert sorted(path.name for path in out.glob("*.svg")) == plots
    texts = ElementTree.parse(out / "bench-memory.svg").iter("{http://www.w3.org/2000/svg}text")
    assert "relu forward  1M" in {text.text for text in texts}


@needs_native
@pytest.mark.usefixtures("quick_probe")
def test_json_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--no-peers", "--rounds", "1", "--threads", "1", "--json"]
    assert run(*options, "--filter", "relu forward 1M") == 0
    document = json.loads(capsys.readouterr().out)
    assert {result["shape"] for result in document["results"]} == {"1M"}


@needs_native
@pytest.mark.usefixtures("quick_probe")
def test_a_refused_case_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = make_case(fastnn=lambda: torch.ones(2), torch=lambda: torch.zeros(2))
    monkeypatch.setattr(bench.load_benchmarks("cases"), "all_cases", lambda: [wrong])
    assert run("--no-peers", "--threads", "1", "--rounds", "1", "--filter", wrong.label) == 1
    table = capsys.readouterr().out
    assert "refused" in table
    assert "differ by 1" in table


def test_list_names_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list", "--filter", "relu forward 1M") == 0
    assert capsys.readouterr().out == "relu forward 1M float32\n"


def test_nothing_to_run_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--filter", "no such case") == 1
    assert "no case contains 'no such case'" in capsys.readouterr().err


def test_missing_benchmarks_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when the package was copied without the folder next to it."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "fastnn.benchmarks" else find_spec(name, *rest),
    )
    monkeypatch.setattr(fastnn, "__file__", str(tmp_path / "python" / "fastnn" / "__init__.py"))
    assert run("--filter", "relu") == 1
    assert "fastnn bench: error: the benchmarks are not installed" in capsys.readouterr().err


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tabulate" else find_spec(name, *rest),
    )
    assert run("--filter", "relu") == 1
    assert (
        'fastnn bench: error: tabulate not installed: pip install "fastnn[bench]"' in capsys.readouterr().err
    )


def test_torch_against_torch_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with fastnn.disabled():
        assert run("--filter", "relu") == 1
    assert "fastnn is disabled" in capsys.readouterr().err


NOT_WRITABLE = Path("/proc")  # not even by root


@needs_native
@pytest.mark.parametrize("option", ["--quick", "--numerics", "--all"])
@pytest.mark.parametrize(
    "folder",
    [
        "file/folder",
        pytest.param(
            NOT_WRITABLE, marks=pytest.mark.skipif(not NOT_WRITABLE.exists(), reason="needs Linux's /proc")
        ),
    ],
    ids=["cannot be made", "cannot be written"],
)
def test_a_folder_that_cannot_be_used_is_an_error_at_once(
    folder: str | Path,
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Without these nothing is measured, here or in another process.
    monkeypatch.setattr(torch, "set_num_threads", None)
    monkeypatch.setattr(bench.subprocess, "run", None)
    (tmp_path / "file").touch()
    assert main(["bench", option, "--out", str(tmp_path / folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fastnn bench: error: cannot write the results to {tmp_path / folder}: ")


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_counts_are_whole_and_positive(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--rounds", value)
    assert f"--rounds: expected a whole number of at least 1, got '{value}'" in capsys.readouterr().err
