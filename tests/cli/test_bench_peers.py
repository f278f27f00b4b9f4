"""The peers of `fastnn bench`: their processes, their answers, and what is said about those left out."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastnn
from fastnn import _dispatch
from fastnn.cli import bench
from fastnn.cli.main import main

case_module = bench.load_benchmarks("case")
cases = bench.load_benchmarks("cases")
remote = bench.load_benchmarks("peers.remote")
roster_module = bench.load_benchmarks("peers.roster")
runner = bench.load_benchmarks("runner")

needs_native = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

FAKE = """
import os

print("what a library prints")


def setup(threads):
    return f"fake of {threads} with {os.environ['FAKE_FLAG']}"


def double(x):
    return lambda: [2 * x]


def fail(x):
    raise ValueError("no such thing")


def die(x):
    os._exit(3)


def count(start):
    state = [start]

    def run():
        state[0] += 1.0
        return [state[0]]

    return run


OPERATIONS = {"double": double, "fail": fail, "die": die, "count": count}
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "fake_peer.py").write_text(FAKE)
    return {"PYTHONPATH": str(tmp_path), "FAKE_FLAG": "a flag"}


@pytest.fixture
def worker(environment: dict[str, str]) -> Iterator[Any]:
    made = remote.Worker("fake_peer", 1, environment)
    yield made
    made.close()


def test_a_worker_says_what_it_is_and_answers(worker: Any) -> None:
    assert worker.description == "fake of 1 with a flag"
    assert worker.operations == ["count", "die", "double", "fail"]
    call = worker.build(case_module.Foreign("double", {"x": torch.tensor([1.0, 2.0])}))
    (answer,) = call()
    assert answer.tolist() == [2.0, 4.0]
    wall, cpu = call.sample(1000, 0.0)
    assert 0 < wall < 0.1
    assert 0 <= cpu < 0.1


def test_a_sample_makes_so_many_calls(worker: Any) -> None:
    call = worker.build(case_module.Foreign("count", {"start": 0.0}))
    call.sample(5, 0.0)
    assert call()[0].item() == 7  # one call before the clock starts, and this one


def test_a_worker_calls_until_its_threads_have_settled(worker: Any) -> None:
    call = worker.build(case_module.Foreign("count", {"start": 0.0}))
    call.sample(1, 0.1)
    assert call()[0].item() > 3


def test_errors_of_a_worker_are_reported(worker: Any) -> None:
    with pytest.raises(remote.PeerError, match="ValueError: no such thing"):
        worker.build(case_module.Foreign("fail", {"x": 1}))
    worker.build(case_module.Foreign("double", {"x": 1}))  # it keeps running
    with pytest.raises(remote.PeerError, match="exit code 3"):
        worker.build(case_module.Foreign("die", {"x": 1}))


def run_with(roster: Any, *, foreign: Any, learners: frozenset[str] = frozenset()) -> Any:
    calls = {"fastnn": lambda: torch.ones(2), "torch": lambda: torch.ones(2)}
    workload = case_module.Workload(calls, 1e-6, foreign=foreign, learners=learners)
    case = case_module.Case("fake", "2", lambda: workload, flops=1000)
    return runner.run_case(case, 1, roster=roster)


def test_a_peer_takes_part_where_it_knows_the_work(environment: dict[str, str]) -> None:
    with roster_module.Roster() as roster:
        roster.add("fake", "fake_peer", 1, environment)
        roster.add("missing", "no_such_peer", 1, {})
        assert set(roster.present) == {"fake"}
        assert "ModuleNotFoundError" in roster.absent["missing"]
        half = torch.full((2,), 0.5)
        result = run_with(roster, foreign=case_module.Foreign("double", {"x": half}))
        assert list(result.speedups) == ["torch", "fake"]
        assert list(run_with(roster, foreign=case_module.Foreign("other", {})).speedups) == ["torch"]
        assert list(run_with(roster, foreign=None).speedups) == ["torch"]


def test_a_wrong_peer_is_refused(environment: dict[str, str]) -> None:
    with roster_module.Roster() as roster:
        roster.add("fake", "fake_peer", 1, environment)
        wrong = run_with(roster, foreign=case_module.Foreign("double", {"x": torch.ones(2)}))
        assert "fastnn and fake differ by 1" in wrong.refused
        failing = run_with(roster, foreign=case_module.Foreign("fail", {"x": 1}))
        assert "no such thing" in failing.refused


def test_a_learner_must_learn(environment: dict[str, str]) -> None:
    with roster_module.Roster() as roster:
        roster.add("fake", "fake_peer", 1, environment)
        rising = case_module.Foreign("count", {"start": 0.0})
        refused = run_with(roster, foreign=rising, learners=frozenset({"fake"})).refused
        assert "fake does not learn: its loss goes from 8.5 to 40.5" in refused


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    peers = ("jax", "sklearn", "threadpoolctl")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in peers else find_spec(name, *rest)
    )
    with roster_module.assemble(1, quick=True) as roster:
        assert roster.absent["JAX"] == "jax is not installed"
        assert roster.absent["OpenBLAS"] == "threadpoolctl is not installed"
        assert roster.absent["scikit-learn"] == "sklearn is not installed"
        assert roster.absent["torch.compile"] == "not in a quick run"
        assert not {"JAX", "OpenBLAS", "scikit-learn"} & set(roster.present)


@pytest.fixture(scope="module")
def peers() -> Iterator[Any]:
    """Those installed here; torch.compile, which is slow, is left out."""
    with roster_module.assemble(1, quick=True) as roster:
        yield roster


def _some_cases() -> list[Any]:
    wanted = ("64x28x784", "17-64-64-6", "critic", "64x12544", "64x10 ", "adam 784")
    return [
        case
        for case in cases.all_cases()
        if case.quick and case.group == "ops" and any(text in case.label for text in wanted)
    ]


@needs_native
@pytest.mark.parametrize("case", _some_cases(), ids=lambda case: case.label)
def test_the_peers_agree(peers: Any, case: Any) -> None:
    torch.manual_seed(0)
    workload = case.build()
    calls = peers.calls(workload)
    able = set(workload.optional) | (set(peers.present) if workload.foreign else set())
    assert set(calls) <= able
    if workload.foreign is not None and workload.foreign.op == "linear":
        assert set(calls) >= able - {"scikit-learn"}
    runner.check(case_module.Workload(**{**vars(workload), "calls": {**workload.calls, **calls}}))


def test_openblas_with_more_threads_than_granted_is_left_out() -> None:
    pytest.importorskip("threadpoolctl")
    with roster_module.Roster() as roster:
        roster.add("OpenBLAS", "numpy_peer", 3, {"OPENBLAS_NUM_THREADS": "1"})
        assert "OpenBLAS" in roster.absent
        assert not roster.present


@needs_native
@pytest.mark.usefixtures("quick_probe")
def test_the_sweep_has_its_own_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sweep", "--quick", "--no-peers", "--threads", "1", "--rounds", "1"]
    assert main(["bench", *options, "--out", str(tmp_path), "--name", "s"]) == 0
    table = capsys.readouterr().out
    assert all(f"step over {what}" in table for what in ("batch", "width", "depth"))
    assert [path.name for path in tmp_path.glob("*.svg")] == ["s-lines.svg"]
    assert "\n![s-lines](s-lines.svg)\n" in (tmp_path / "s.md").read_text()


def test_all_runs_each_report_on_one_thread_and_on_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = []

    def fake_run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        commands.append(command[3:])
        stem = command[command.index("--name") + 1]
        if not stem.endswith("accuracy"):  # as if MNIST was not found
            (tmp_path / f"{stem}.json").write_text(json.dumps({"results": [stem]}))
        return subprocess.CompletedProcess(command, len(commands) == 2)

    (tmp_path / "m.json").write_text(json.dumps({"reports": {"web": {}, "1thread": {}}}))

    monkeypatch.setattr(subprocess, "run", fake_run)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert main(["bench", "--all", "--out", str(tmp_path), "--name", "m", "--rounds", "3"]) == 1
    names = [command[command.index("--name") + 1] for command in commands]
    of_cases = [f"m-{threads}{kind}" for threads in ("1thread", "4threads") for kind in ("", "-sweep")]
    assert names == [*of_cases, "m-1thread-programs", "m-4threads-accuracy", "m-1thread-numerics"]
    for name, command in zip(names, commands, strict=True):
        assert command[command.index("--threads") + 1] == ("1" if "1thread" in name else "4")
        assert ("--sweep" in command) == name.endswith("-sweep")
        assert ("--programs" in command) == name.endswith("-programs")
        assert ("--accuracy" in command) == name.endswith("-accuracy")
        assert ("--numerics" in command) == name.endswith("-numerics")
        # Rounds of an accuracy would be seeds, and errors are the same in each.
        assert ("--rounds" in command) != name.endswith(("-accuracy", "-numerics"))
    assert all(command[command.index("--rounds") + 1] == "3" for command in commands[:-2])
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]
    reports = json.loads((tmp_path / "m.json").read_text())["reports"]
    made = {name.removeprefix("m-"): {"results": [name]} for name in names if not name.endswith("-accuracy")}
    assert reports == {**made, "web": {}}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", "xeon"),
        ("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", "xeon-gold-6248"),
        ("13th Gen Intel(R) Core(TM) i7-13700K", "core-i7-13700k"),
        ("AMD EPYC 7763 64-Core Processor", "epyc-7763"),
        ("AMD Ryzen 7 PRO 4750U with Radeon Graphics", "ryzen-7-pro-4750u"),
        ("Apple M2 Pro", "apple-m2-pro"),
        ("a/b", "a-b"),
        ("", "processor"),
    ],
)
def test_all_is_named_after_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, name: str
) -> None:
    names = []

    def fake_run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        names.append(command[command.index("--name") + 1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", fake_run)
    monkeypatch.setattr(bench.load_benchmarks("machine"), "cpu_model", lambda: model)
    assert main(["bench", "--all", "--threads", "1", "--out", str(tmp_path)]) == 0
    reports = ("1thread", "1thread-sweep", "1thread-programs", "1thread-accuracy", "1thread-numerics")
    assert names == [f"{name}-{report}" for report in reports]


def test_all_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--all"])
    assert "argument --all: needs --out" in capsys.readouterr().err


def tiny_mnist(name: str) -> Any:
    """Two classes that are easily separated by their pixels."""
    from fastnn.data import Dataset

    labels = np.arange(300) % 2
    images = np.where(labels[:, None] == np.arange(4) % 2, 250, 5).astype(np.uint8)
    return Dataset(name, "nowhere", 2, 2, 2, 255, 127.5, 122.5, images, labels, images[:50], labels[:50])


def test_time_to_accuracy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy = bench.load_benchmarks("accuracy")
    monkeypatch.setattr(accuracy, "load", lambda folder, notify: tiny_mnist("mnist"))
    options = ["--accuracy", "--threads", "1", "--rounds", "2", "--out", str(tmp_path), "--name", "a"]
    assert main(["bench", *options]) == 0
    table = capsys.readouterr().out
    assert "not reached" not in table
    assert "100.00%" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.md", "a.svg"]
    assert "\n![a](a.svg)\n" in (tmp_path / "a.md").read_text()

    sides = {name: run.accuracy for name, run in accuracy.race(tiny_mnist("mnist"), 0).items()}
    assert {"fastnn eager", "torch fused"} <= set(sides)
    assert len({tuple(curve) for curve in sides.values()}) == 1  # same weights, same order


def test_no_time_to_accuracy_without_mnist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy = bench.load_benchmarks("accuracy")
    monkeypatch.setattr(accuracy, "load", lambda folder, notify: tiny_mnist("digits"))
    assert main(["bench", "--accuracy", "--threads", "1"]) == 0
    assert "MNIST was not found" in capsys.readouterr().err


def test_an_accuracy_that_is_never_reached() -> None:
    accuracy = bench.load_benchmarks("accuracy")
    assert accuracy.median_time([1.0, None, 3.0]) == 3.0
    assert accuracy.median_time([1.0, None, None]) is None


def test_rounding_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numerics = bench.load_benchmarks("numerics")
    few = [case for case in numerics.cases() if case.name.startswith(("its dX", "cross-entropy, 4096"))]
    monkeypatch.setattr(numerics, "cases", lambda: few)
    options = ["--numerics", "--threads", "1", "--out", str(tmp_path), "--name", "n"]
    assert main(["bench", *options]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.json", "n.md"]
    for result in json.loads((tmp_path / "n.json").read_text())["results"]:
        for errors in result["sides"].values():
            assert 0 < errors["rms"] <= errors["largest"] < 100


def test_errors_of_torchs_own_ops_are_not_fastnns() -> None:
    numerics = bench.load_benchmarks("numerics")
    with pytest.raises(RuntimeError, match="integers: "):
        numerics.errors(
            numerics.Case("integers", [torch.ones(2).int()], lambda t: fastnn.functional.relu(t[0]))
        )
