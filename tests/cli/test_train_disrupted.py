"""If `fastnn train` is killed, or cannot write, what it has saved is kept."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from fastnn.cli.main import main
from fastnn.data import atomic
from fastnn.data.digits import load_digits
from fastnn.training.checkpoint import Checkpoint
from fastnn.training.run import Run

OUT, SAVED = Path("out"), Path("out/checkpoint.safetensors")
SETTINGS = ["--layers", "16", "--train-samples", "640", "--schedule", "constant", "--out", str(OUT)]
COMMAND = ["train", "--no-progress", *SETTINGS]
FOREVER = ["--epochs", "1000000"]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="makes its processes with fork")


def run(environment: dict[str, str], arguments: list[str]) -> None:
    """Run the command in a fork of a process that other tests started with another environment."""
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(main(arguments))


@pytest.fixture
def start() -> Callable[..., BaseProcess]:
    """Starts ``fastnn train`` in a process of its own, a fork of one that has imported what takes time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastnn.cli.main", "fastnn.training.run", "sklearn.datasets"])

    def start(*options: str) -> BaseProcess:
        process = context.Process(target=run, args=(dict(os.environ), [*COMMAND, *options]))
        process.start()
        return process

    return start


def wait_for_another_file(before: os.stat_result, process: BaseProcess) -> None:
    """Wait until the checkpoint of `before` has been replaced."""
    while SAVED.stat().st_ino == before.st_ino:
        assert process.is_alive()
        time.sleep(0.001)


@needs_fork
@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.long)])
def test_the_checkpoint_of_a_killed_run_always_loads(start: Callable[..., BaseProcess], kills: int) -> None:
    """And resumes: at the end the weights are, bit for bit, those of an undisturbed run."""
    assert main([*COMMAND, "--epochs", "1"]) == 0
    moments = random.Random(kills)
    steps = Checkpoint.load(SAVED).step
    for number in range(kills):
        before = SAVED.stat()
        process = start("--resume", str(SAVED), *FOREVER)
        if number % 2 == 0:  # while it trains and saves; otherwise mostly while it starts
            wait_for_another_file(before, process)
            time.sleep(moments.uniform(0, 0.02))
        else:
            time.sleep(moments.uniform(0, 2))
        process.kill()
        process.join()
        assert Checkpoint.load(SAVED).step >= steps
        steps = Checkpoint.load(SAVED).step
    last = Checkpoint.load(SAVED)
    undisturbed = Run(last.config, load_digits(), torch.device("cpu"))
    while undisturbed.step < last.step:
        if undisturbed.test_due:
            undisturbed.test()
        undisturbed.advance(last.step - undisturbed.step)
    for name, value in undisturbed.parts.model.state_dict().items():
        assert torch.equal(value, last.model[name]), name


def fail(code: int) -> Callable[..., None]:
    def failing(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return failing


@pytest.mark.parametrize(
    ("module", "name", "code"),
    [
        (atomic, "open", errno.EROFS),
        (os, "fsync", errno.ENOSPC),
        (os, "replace", errno.ENOSPC),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else None,
)
def test_a_checkpoint_that_cannot_be_written_is_an_error_and_the_last_one_stays(
    module: Any, name: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulates a full disk and a read-only folder, which are mounted in the tests below."""
    assert main([*COMMAND, "--epochs", "1"]) == 0
    capsys.readouterr()
    good, files = SAVED.read_bytes(), sorted(OUT.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail(code), raising=False)  # `open` is found in the builtins
        assert main([*COMMAND, "--resume", str(SAVED), "--epochs", "3"]) == 1
    said = capsys.readouterr()
    assert said.err.endswith(
        f"\nfastnn train: error: cannot write the results: [Errno {code}] {os.strerror(code)}\n"
    )
    assert "Traceback" not in said.err
    assert "2/3" not in said.out
    assert SAVED.read_bytes() == good
    assert sorted(OUT.iterdir()) == files
    assert main([*COMMAND, "--resume", str(SAVED), "--epochs", "3"]) == 0
    assert Checkpoint.load(SAVED).step > 0


def in_a_small_file_system(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `out` is a file system of its own, that is not visible to others."""
    OUT.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size=64k none {OUT} && "
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("mounts with Linux's unshare")
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*namespace, f"{mount} true"], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    return subprocess.run([*namespace, mount + script], capture_output=True, text=True, timeout=120)


TRAIN = " ".join([sys.executable, "-m", "fastnn.cli.main", *COMMAND])


@pytest.mark.long
def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays() -> None:
    assert main([*COMMAND, "--epochs", "1"]) == 0
    shutil.copy(SAVED, "good")
    done = in_a_small_file_system(
        f"cp good {SAVED} && head -c 1M /dev/zero > {OUT}/full; {TRAIN} --resume {SAVED} --epochs 3; "
        f"code=$?; cmp good {SAVED} && ls -A {OUT} && exit $code"
    )
    assert "error: cannot write the results: [Errno 28] No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [SAVED.name, "full"]


@pytest.mark.long
def test_a_read_only_folder_is_an_error_and_the_last_checkpoint_stays() -> None:
    assert main([*COMMAND, "--epochs", "1"]) == 0
    shutil.copy(SAVED, "good")
    done = in_a_small_file_system(
        f"cp good {SAVED} && mount -o remount,ro {OUT}; {TRAIN} --resume {SAVED} --epochs 3; "
        f"code=$?; cmp good {SAVED} && exit $code"
    )
    assert "error: cannot write the results: " in done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert "1/3" not in done.stdout
    assert "2/3" not in done.stdout
