"""The process of a self-test may crash, hang or lose its device: then one test fails, and the others
continue."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastnn import _dispatch
from fastnn._proof import FAILED, PASSED, Row, Subject
from fastnn.selftest import child, parent
from fastnn.selftest.cases import Case

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

Command = Callable[..., list[str]]

# A child whose tests are given by a list of names.
CHILD = """
import ctypes, os, signal, sys, time
import torch
from fastnn.selftest import child
from fastnn.selftest.cases import Case

def good(device): pass
def bad(device): raise ValueError("it is bad\\nmore of it")
def crash(device): os.kill(os.getpid(), signal.SIGSEGV)
def leave(device): sys.stderr.write("first line\\nlast words\\n"); sys.stderr.flush(); os._exit(7)
def hang(device): time.sleep(600)
def lose(device):
    child._is_lost = lambda device: True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
def dirty(device):
    print("printed on the way")
    os.write(1, b"not JSON\\n3\\n")

def environment(device):
    wanted = {"FASTNN_CUDA_UNPROVEN": "1", "FASTNN_ALWAYS_NATIVE": "1", "FASTNN_DISABLE": ""}
    assert all(os.environ[k] == v for k, v in wanted.items())
    assert torch.empty(2).isnan().all()

cases = [Case(name, "", globals()[name]) for name in NAMES]
sys.exit(child.main(sys.argv[1:], cases))
"""

# One that runs no tests and only prints what such a child would: it starts immediately.
TOLD = """
import json, os, signal, sys, time

def tell(**what): print(json.dumps(what), flush=True)

tell(subject=None)
for number, name in [*enumerate(NAMES)][int(sys.argv[2]):]:
    tell(begin=number, op=name, what="")
    if name == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if name == "leave": sys.exit("first line\\nlast words")
    if name == "hang": time.sleep(600)
    tell(outcome="passed", why="")
    if name == "lose":
        tell(lost=number)
        time.sleep(600)
tell(done=True)
"""


@pytest.fixture
def tests_named(tmp_path: Path) -> Command:
    def make(names: str, child: str = CHILD) -> list[str]:
        script = tmp_path / "child.py"
        script.write_text(f"NAMES = {names.split()!r}\n{child}")
        return [sys.executable, str(script)]

    return make


def rows(command: list[str], **options: float) -> dict[str, tuple[str, str]]:
    told: list[Row] = []
    found = parent.run("cpu", told.append, command, **options)
    assert found.subject is None
    assert tuple(told) == found.rows
    return {row.op: (row.outcome, row.why) for row in found.rows}


def test_tests_that_end(tests_named: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTNN_DISABLE", "1")  # the user's, not the self-test's
    assert rows(tests_named("good bad dirty environment")) == {
        "good": (PASSED, ""),
        "bad": (FAILED, "ValueError: it is bad"),
        "dirty": (PASSED, ""),
        "environment": (PASSED, ""),
    }


def test_a_child_that_ends_does_not_end_the_others(tests_named: Command) -> None:
    assert rows(tests_named("good crash leave good hang lose good", TOLD), answers_within=2.0) == {
        "good": (PASSED, ""),
        "crash": (FAILED, "the process was ended by SIGSEGV"),
        "leave": (FAILED, "the process ended with exit code 1: last words"),
        "hang": (FAILED, "it has not ended within 2 seconds"),
        "lose": (PASSED, ""),
    }


@pytest.mark.long
def test_a_crash_fails_one_test_and_the_others_continue(tests_named: Command) -> None:
    assert rows(tests_named("good crash environment leave lose dirty")) == {
        "good": (PASSED, ""),
        "crash": (FAILED, "the process was ended by SIGSEGV"),
        "environment": (PASSED, ""),
        "leave": (FAILED, "the process ended with exit code 7: last words"),
        "lose": (FAILED, "RuntimeError: CUDA error: an illegal memory access was encountered"),
        "dirty": (PASSED, ""),
    }


@pytest.mark.long
def test_a_test_that_hangs_is_ended(tests_named: Command) -> None:
    assert rows(tests_named("hang good"), answers_within=4.0) == {
        "hang": (FAILED, "it has not ended within 4 seconds"),
        "good": (PASSED, ""),
    }


def test_kernels_that_are_compiled_when_they_are_launched_have_longer() -> None:
    begin = [{"subject": FIELDS}, {"slow": True}, {"begin": 0, "op": "relu", "what": "float32"}]
    end = [{"outcome": PASSED, "why": ""}, {"done": True}]
    program = (
        "import json, time\n"
        f"for line in {begin!r}: print(json.dumps(line), flush=True)\n"
        "time.sleep(2)\n"
        f"for line in {end!r}: print(json.dumps(line), flush=True)"
    )
    found = parent.run("cuda:0", command=[sys.executable, "-c", program], answers_within=0.5)
    assert found.rows == (Row("relu", "float32", PASSED, ""),)


def test_a_process_that_does_not_start() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such library')"]
    with pytest.raises(parent.Unusable, match="exit code 1: no such library"):
        parent.run("cpu", command=command)


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(parent.Unusable, match=r"not built|no GPU|CUDA error"):
        parent.run("cuda:0")


def test_the_subject_is_reported() -> None:
    lines = [{"subject": FIELDS}, {"begin": 0, "op": "relu", "what": "float32"}]
    lines += [{"outcome": PASSED, "why": ""}, {"done": True}]
    program = f"import json\nfor line in {lines!r}: print(json.dumps(line), flush=True)"
    found = parent.run("cuda:0", command=[sys.executable, "-c", program])
    assert found.subject == Subject("NAME", "UUID", "CAPABILITY", "DRIVER", "BUILD")
    assert found.rows == (Row("relu", "float32", PASSED, ""),)


def test_an_ending_between_tests_is_not_an_endless_loop() -> None:
    program = 'print("""{"subject": null}""", flush=True)'
    with pytest.raises(parent.Unusable, match="ended between two tests: the process ended with exit code 0"):
        parent.run("cpu", command=[sys.executable, "-c", program])


FIELDS = {name: name.upper() for name in ("name", "uuid", "capability", "driver", "build")}


def test_a_device_that_is_unusable_later_is_reported_with_what_was_found(tmp_path: Path) -> None:
    """Like one that has fallen off the bus, and can no longer be identified."""
    script = tmp_path / "child.py"
    lines = [{"subject": FIELDS}, {"begin": 0, "op": "relu", "what": "float32"}]
    lines += [{"outcome": FAILED, "why": "CUDA error"}, {"lost": 0}]
    later = [{"subject": None}, {"unusable": "no devices"}]
    script.write_text(
        "import json, sys\n"
        f"for line in {lines!r} if sys.argv[2] == '0' else {later!r}: print(json.dumps(line), flush=True)"
    )
    with pytest.raises(parent.Unusable, match="no devices") as unusable:
        parent.run("cuda:0", command=[sys.executable, str(script)])
    assert unusable.value.found == (Subject(**FIELDS), (Row("relu", "float32", FAILED, "CUDA error"),))


def test_an_interruption_says_what_was_found(tests_named: Command) -> None:
    def interrupt(row: Row) -> None:
        if row.op == "bad":
            raise KeyboardInterrupt

    with pytest.raises(parent.Interrupted) as interrupted:
        parent.run("cpu", interrupt, tests_named("good bad hang"))
    assert [row.op for row in interrupted.value.found.rows] == ["good", "bad"]


class Driver:
    """A CUDA module on a machine whose driver says this of its devices."""

    __file__ = __file__

    def __init__(self, unusable: str) -> None:
        self._unusable = unusable

    def why_unusable(self, index: int) -> str:
        return self._unusable

    def driver_version(self) -> int:
        return 13000

    def compiles_at_launch(self, index: int) -> bool:
        return index == 1


def told(
    monkeypatch: pytest.MonkeyPatch, index: int, *, unusable: str = "", known: bool = True
) -> list[dict[str, Any]]:
    """What a child without tests says of that GPU."""

    def properties(index: int) -> object:
        if not known:
            raise AssertionError("Invalid device id")
        return SimpleNamespace(name="NVIDIA X", uuid="GPU-1", major=9, minor=0)

    monkeypatch.setattr(_dispatch, "load_cuda", lambda: (Driver(unusable), None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    said: list[dict[str, Any]] = []
    child.run(torch.device("cuda", index), [], 0, said.append)
    return said


def test_a_device_that_is_newer_than_the_kernels_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for index, slow in ((0, []), (1, [{"slow": True}])):
        subject, *more = told(monkeypatch, index)
        assert subject["subject"]["name"] == "NVIDIA X"
        assert more == [*slow, {"done": True}]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("unusable", ["", "no limits"])
def test_a_device_says_what_it_is_before_it_is_found_unusable(
    unusable: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told(monkeypatch, 0, unusable=unusable, known=known)
    assert said[0].keys() == {"subject"}
    assert (said[0]["subject"] is None) is not known
    why = unusable or (None if known else "Invalid device id")
    assert said[1:] == [{"done": True} if why is None else {"unusable": why}]


def test_nothing_is_lost_on_the_cpu() -> None:
    said: list[dict[str, object]] = []

    def fail(device: torch.device) -> None:
        raise RuntimeError("bad")

    child.run(torch.device("cpu"), [Case("a", "", fail), Case("b", "", lambda _: None)], 0, said.append)
    assert [line.get("outcome") for line in said if "outcome" in line] == [FAILED, PASSED]
    assert said[-1] == {"done": True}
