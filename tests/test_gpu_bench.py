"""`benchmarks.gpu` without a GPU: all cases in small sizes on the CPU, and how figures are computed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastnn import _dispatch
from fastnn.cli.bench import load_benchmarks
from fresh import Fresh, output

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")

gpu, gpu_sweep, gpu_timing = (load_benchmarks(name) for name in ("gpu", "gpu_sweep", "gpu_timing"))
Case, Ceilings, measured, timed = (
    getattr(gpu_timing, name) for name in ("Case", "Ceilings", "measured", "timed")
)
REHEARSAL = gpu_timing.Place(torch.device("cpu"), rehearsal=True)


@pytest.mark.parametrize("what", list(gpu.GROUPS))
def test_every_case_runs(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_timing, "SPENT", 0.0)
    monkeypatch.setattr(gpu_timing, "LEAST_CALLS", 1)
    gpu.report(what, REHEARSAL, 600, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    expected = [case.name for group in gpu.GROUPS[what] for case in group(REHEARSAL)]
    assert [row["case"] for row in found["cases"]] == expected
    assert len(set(expected)) == len(expected)
    for row in found["cases"]:
        assert next(iter(row["seconds"])).startswith("fastnn")
        assert all(row["seconds"].values()), row
        assert row["floor"] > 0
        assert not row["not native"], row  # conftest.py lifts the limits of small work


def test_a_machine_with_a_gpu_needs_no_optional_packages(run_fresh: Fresh) -> None:
    code = """
import sys
sys.modules |= dict.fromkeys(("tabulate", "tqdm", "matplotlib", "sklearn", "pooch", "jax"))
from fastnn.cli.bench import load_benchmarks
load_benchmarks("gpu")
"""
    output(run_fresh(code))


def test_what_there_is_no_time_for_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.report("sweep", REHEARSAL, 0, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["cases"]
    assert len(found["no time left"]) == len(gpu_sweep.cases(REHEARSAL))
    assert "no time left for" in capsys.readouterr().out


def test_the_floor_is_the_larger_of_two() -> None:
    ceiling = Ceilings(bandwidth=100.0, flops={"float32": 10.0, "bfloat16": 20.0})

    def case(moved: int, flops: int, arithmetic: str = "float32") -> Any:
        return Case("", dict, moved, flops, arithmetic)

    assert ceiling.floor(case(200, 10)) == (2.0, "bytes")
    assert ceiling.floor(case(200, 40)) == (4.0, "FLOPs")
    assert ceiling.floor(case(200, 60, "bfloat16")) == (3.0, "FLOPs")


def test_sets_of_inputs_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_timing.Place, "cache", 1000)
    sets = [Case("", dict, moved).sets(REHEARSAL) for moved in (1, 100, 1000, 2999, 3000, 10_000)]
    assert sets == [gpu_timing.MOST_SETS, 30, 3, 2, 1, 1]
    assert Case("", dict, 100, by_graph=False).sets(REHEARSAL) == 1


class FakeGraphs:
    """CUDA's graphs and events without a device: a graph calls the captured functions, the clock is a
    counter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: str | None = None) -> None:
        self.captures, self.replays, self.clock = 0, 0, 0.0
        outer = self

        class Graph:
            def replay(self) -> None:
                outer.replays += 1
                outer.clock += 8.0

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = outer.clock

            def synchronize(self) -> None: ...

            def elapsed_time(self, end: Any) -> float:
                found: float = end.at - self.at
                return found

        @contextlib.contextmanager
        def capture(graph: Graph, stream: object = None) -> Iterator[None]:
            outer.captures += 1
            yield
            if error is not None and stream is not None:
                raise RuntimeError(error)

        stand_ins = {"CUDAGraph": Graph, "Event": Event, "graph": capture, "current_stream": object}
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)


# A device without hardware: only what `timed` uses.
CUDA: Any = SimpleNamespace(is_cuda=True, device="cpu")


def turns(calls: int, seen: list[int]) -> list[Callable[[], object]]:
    return [lambda i=i: seen.append(i) for i in range(calls)]  # type: ignore[misc]


def test_a_graph_has_each_set_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, seen = FakeGraphs(monkeypatch), list[int]()
    found = timed(turns(3, seen), CUDA)
    # Once for one-time work, once to measure the duration, then in the graph: at least ten.
    assert seen == [0, 1, 2] * (1 + 1 + 4)
    assert graphs.captures == 1
    assert graphs.replays > 3
    assert found.how == "graph"
    assert found.seconds == pytest.approx(8e-3 / 12)


def test_what_cannot_be_captured_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, seen = FakeGraphs(monkeypatch, error="operation not permitted\nwhile capturing"), list[int]()
    found = timed(turns(2, seen), CUDA)
    assert found.how == "calls: operation not permitted"
    assert graphs.captures == 2  # the second resets torch's generator
    assert not graphs.replays
    assert len(seen) > 2 * (1 + 1 + 5 + 5)
    assert timed(turns(2, seen), CUDA, by_graph=False).how == "calls"
    assert graphs.captures == 2


def test_a_contender_that_fails_does_not_end_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> object:
        raise RuntimeError("out of order")

    case = Case("a case", lambda: {"fastnn": fail, "torch": lambda: None}, 100)
    row = measured(case, REHEARSAL, Ceilings(1.0, {"float32": 1.0}))
    assert row["seconds"]["fastnn"] is None
    assert row["seconds"]["torch"] > 0
    assert "a case, fastnn: out of order" in capsys.readouterr().out
    assert "fastnn" not in gpu_timing.to_text(row).partition(";")[2]


def test_where_torch_takes_over() -> None:
    def row(side: int, ours: float, torchs: float, what: str = "forward") -> dict[str, Any]:
        seconds = {"fastnn": ours, "torch": torchs}
        return {"sides": (side,) * 3, "arithmetic": "float16", "seconds": seconds, "case": f"float16, {what}"}

    rows = [row(256, 1.0, 0.5), row(512, 1.0, 0.99), row(2048, 1.0, 0.5), row(1024, 1.0, 0.9)]
    rows += [row(256, 1.0, 2.0, "with gradients"), {**row(512, 9.0, 1.0), "sides": (512, 512, 64)}]
    lines = gpu_sweep.crossings(rows)
    assert "float16, forward: torch ahead of fastnn from 1024^3 on" in lines
    assert "float16, with gradients: torch ahead of fastnn nowhere" in lines
