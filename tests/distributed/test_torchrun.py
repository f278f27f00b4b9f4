"""``fastnn train`` in two processes of its own, by torchrun and without it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastnn
from fastnn.cli.main import main
from fastnn.training.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("processes")  # skipped if those cannot run; they do not start

TRAIN = ["train", "--no-progress", "--device", "cpu", "--layers", "16", "--train-samples", "331"]
TRAIN += ["--batch-size", "33", "--dtype", "float64"]
PATIENCE = 300  # seconds: no test is about them


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Without the user's data or the network."""
    monkeypatch.delenv("FASTNN_DATA_DIR", raising=False)
    monkeypatch.setenv("FASTNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FASTNN_MIRRORS", "")
    monkeypatch.chdir(tmp_path)
    return {**os.environ, "PYTHONPATH": str(Path(fastnn.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.mark.long  # test_shared_run.py has the numbers
def test_torchrun_gives_what_one_process_gives(tmp_path: Path, environment: dict[str, str]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "fastnn", *TRAIN, "--epochs", "2", "--out", "two"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy  seconds") == 1  # one process reports
    assert "1 thread in each of 2 processes" in done.stdout
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["processes"] == 2
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "checkpoint.safetensors",
        "curves.png",
        "digits.png",
        "metrics.json",
    ]
    assert main([*TRAIN, "--epochs", "2", "--out", "one"]) == 0
    two, one = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("two", "one"))
    torch.testing.assert_close(two, one, rtol=1e-8, atol=1e-8)


@pytest.fixture
def pair(environment: dict[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that train for very long, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "fastnn", *TRAIN, "--out", "out"]
    command += ["--schedule", "constant", "--epochs", "1000000"]
    both = [
        subprocess.Popen(
            command,
            env={**environment, **group, "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    yield both
    for process in both:
        process.kill()
        process.communicate()


def wait_for(path: Path, pair: list[subprocess.Popen[str]]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not path.exists():
        assert [process.poll() for process in pair] == [None, None]
        assert time.monotonic() < give_up
        time.sleep(0.1)


# The first is the one that writes.
@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_killed_process_ends_the_other(
    killed: int, tmp_path: Path, pair: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "out" / "checkpoint.safetensors"
    wait_for(path, pair)
    pair[killed].send_signal(signal.SIGKILL)
    left = 1 - killed
    _, err = pair[left].communicate(timeout=PATIENCE)
    assert pair[left].returncode == 1
    assert f"fastnn train: error: process {left} of 2 lost its connection to the others: one has ended" in err
    assert "Traceback" not in err
    step = Checkpoint.load(path).step
    assert step > 0
    assert step % 11 == 0
    # And one process continues from there.
    assert main(["train", "--no-progress", "--resume", str(path), "--epochs", str(step // 11 + 1)]) == 0
    assert Checkpoint.load(path).step == step + 11


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number, as torchrun sets it, got 'two'"),
        (
            {"WORLD_SIZE": "2", "RANK": "1"},
            "the 2 processes cannot connect to each other",
        ),  # MASTER_ADDR is missing
    ],
)
def test_a_launch_that_lacks_something(
    variables: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*TRAIN, "--out", "out"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_one_process_needs_no_group(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*TRAIN, "--out", "out", "--epochs", "1"]) == 0
    assert json.loads(Path("out/metrics.json").read_text())["processes"] == 1


@pytest.mark.usefixtures("environment")
def test_each_process_needs_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["train", "--no-progress", "--out", "out"]) == 1
    expected = "process 1 of this machine needs a CUDA device of its own; there are 1"
    assert expected in capsys.readouterr().err
