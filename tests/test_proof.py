"""CUDA kernels run where they have passed their self-test, and nowhere else."""

from __future__ import annotations

import ast
import dataclasses
import errno
import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastnn
from fastnn import _dispatch, _proof, _torch_internals
from fastnn._proof import FAILED, LEFT_OUT, PASSED, Result, Row, Subject
from fastnn.selftest.cases import cases_for
from fastnn.selftest.results import keep
from fresh import Fresh, output

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

SUBJECT = Subject("NVIDIA X1", "GPU-1", "9.0", "580.1, CUDA 13.0", "0 abc")
ROWS = (
    Row("relu", "float32", PASSED, ""),
    Row("linear", "float32", PASSED, ""),
    Row("linear", "bfloat16", FAILED, "y is off by 1"),
    Row("train_epoch", "float32", LEFT_OUT, "no clusters"),
)
UNTESTED = (
    "fastnn's CUDA kernels have not passed their self-test on this NVIDIA X1: "
    "run `fastnn selftest` and start Python again"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTNN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def why_not(op: str, subject: Subject = SUBJECT, index: int = 0) -> str | None:
    return _proof.Proof(subject, index).why_not(op)


def test_nothing_runs_before_its_self_test() -> None:
    assert why_not("relu") == UNTESTED
    assert why_not("relu", index=2) == UNTESTED.replace("selftest`", "selftest --device cuda:2`")


def test_what_has_failed_is_off_and_the_rest_is_on() -> None:
    keep(SUBJECT, ROWS)
    assert why_not("relu") is None
    assert why_not("linear") == (
        "the self-test of linear (bfloat16) failed on NVIDIA X1: y is off by 1 "
        "(to test it again: `fastnn selftest` and start Python again)"
    )
    assert "left out train_epoch: no clusters" in str(why_not("train_epoch"))
    assert "left out adam" in str(why_not("adam"))


def test_a_later_result_replaces_an_earlier_one() -> None:
    keep(SUBJECT, ROWS)
    keep(SUBJECT, (Row("linear", "bfloat16", PASSED, ""),))
    assert why_not("linear") is None
    assert why_not("relu") is not None


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Subject)])
def test_a_result_is_valid_for_one_device_driver_and_build(field: str) -> None:
    keep(SUBJECT, ROWS)
    other = dataclasses.replace(SUBJECT, **{field: "another"})
    assert "have not passed" in str(why_not("relu", other))
    keep(other, ())
    assert why_not("relu") is None
    assert len(_proof.all_kept()[0]) == 2


def _change(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps({**json.loads(text), **fields}).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"\xff\xfe\x00",
        lambda text: b"[1, 2]",
        lambda text: b"null",
        lambda text: b"[" * 200_000,
        _change(format=0),
        _change(when=3),
        _change(rows=None),
        _change(rows=[{"op": "relu"}]),
        _change(rows=[{"op": "relu", "what": "x", "outcome": "fine", "why": ""}]),
        _change(rows=[{"op": "relu", "what": "x", "outcome": PASSED, "why": None}]),
        _change(subject={"name": "NVIDIA X1"}),
        _change(subject={**dataclasses.asdict(SUBJECT), "uuid": "GPU-2"}),
        _change(subject={**dataclasses.asdict(SUBJECT), "more": "x"}),
    ],
)
def test_a_broken_or_foreign_file_is_a_reason(change: Callable[[bytes], bytes]) -> None:
    path = keep(SUBJECT, ROWS)
    assert why_not("relu") is None
    path.write_bytes(change(path.read_bytes()))
    reason = why_not("relu", index=1)
    assert reason is not None
    assert re.fullmatch(
        rf"the result kept at {path} cannot be read \(it is .*\): "
        "run `fastnn selftest --device cuda:1` and start Python again",
        reason,
    )
    assert why_not("adam", index=1) == reason
    assert _proof.all_kept() == ([], [reason[: reason.index(": run")]])
    assert _proof.kept(SUBJECT) is None
    keep(SUBJECT, ROWS)  # as the next self-test does
    assert why_not("relu") is None


def test_a_file_that_is_not_a_file(cache: Path) -> None:
    _proof.path_of(SUBJECT).mkdir(parents=True)
    assert "cannot be read (Is a directory): run `fastnn selftest` and start Python" in str(why_not("relu"))
    (cache / "selftest" / "x.json").write_text("{}")
    results, unreadable = _proof.all_kept()
    assert results == []
    assert len(unreadable) == 2


def test_a_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(SUBJECT, ROWS)

    def denied(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "cannot be read (Permission denied): run `fastnn selftest`" in str(why_not("relu"))


def test_a_file_that_cannot_be_read_speaks_against_a_verified_capability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_proof, "VERIFIED_CAPABILITIES", frozenset({"9.0"}))
    keep(SUBJECT, ROWS).write_text("{")  # it may have said that an op failed here
    assert "cannot be read" in str(why_not("relu"))


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="needs a user who may not write")
def test_a_cache_that_can_only_be_read(cache: Path) -> None:
    keep(SUBJECT, ROWS)
    directory = cache / "selftest"
    directory.chmod(0o500)
    try:
        assert why_not("relu") is None
        with pytest.raises(OSError, match="denied"):
            keep(SUBJECT, ROWS)
    finally:
        directory.chmod(0o700)


def test_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTNN_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        keep(SUBJECT, ROWS)
    assert why_not("relu") == UNTESTED

    def none() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(_proof, "cache_dir", none)
    assert why_not("relu") == UNTESTED
    assert _proof.all_kept() == ([], [])


def test_a_capability_that_is_verified_needs_no_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_proof, "VERIFIED_CAPABILITIES", frozenset({"9.0"}))
    assert why_not("relu") is None
    assert "have not passed" in str(why_not("relu", dataclasses.replace(SUBJECT, capability="9.1")))
    keep(SUBJECT, ROWS)  # results on the user's own device take precedence
    assert "failed" in str(why_not("linear"))


STATUS = Path(__file__).parents[1] / "docs" / "gpu-status.md"


@pytest.mark.skipif(not STATUS.exists(), reason="needs the checkout")
def test_a_capability_is_verified_where_the_status_has_a_result() -> None:
    _, _, table = STATUS.read_text(encoding="utf-8").partition("| compute capability |")
    rows = table.partition("\n\n")[0].splitlines()[2:]
    capabilities = {row.split("|")[1].strip() for row in rows}
    assert capabilities - {"none yet"} == _proof.VERIFIED_CAPABILITIES


def test_the_build_is_the_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one.so", tmp_path / "other.so"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    builds = [_proof.build_of(SimpleNamespace(__file__=str(path))) for path in (one, one, other)]
    assert builds[0] == builds[1] != builds[2]
    assert all(build.startswith(fastnn.__version__) for build in builds)


class Module:
    """The part of the CUDA module that is used."""

    __file__ = __file__
    unusable = ""
    architectures, runtime_version = "90-real", 13000

    def driver_version(self) -> int:
        return 13000

    def why_unusable(self, index: int) -> str:
        return self.unusable


def properties(index: int) -> Any:
    return SimpleNamespace(name=f"NVIDIA X{index}", uuid=f"GPU-{index}", major=9, minor=0)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    """A CUDA module that is never run, with any number of GPUs."""
    made = Module()
    monkeypatch.setattr(_dispatch, "load_cuda", lambda: (made, None))
    monkeypatch.setattr(_dispatch, "cuda", None)
    monkeypatch.setattr(_dispatch, "cuda_unproven", False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    for name in ("_device_reason", "_proof_on", "_kernels_reason"):
        monkeypatch.setattr(_dispatch, name, functools.cache(getattr(_dispatch, name).__wrapped__))
    return made


def tensor(index: int = 0) -> Any:
    return SimpleNamespace(device=torch.device("cuda", index))


def reason(op: str, index: int = 0) -> str | None:
    return _dispatch._cuda_reason(op, (tensor(index), None))


def test_the_gate(module: Module) -> None:
    keep(_proof.subject_of(module, 1), ROWS)
    assert "have not passed their self-test on this NVIDIA X0: run `fastnn selftest`" in str(reason("relu"))
    assert reason("relu", 1) is None
    assert "the self-test of linear (bfloat16) failed on NVIDIA X1" in str(reason("linear", 1))


class OnCuda:
    """The part of a CUDA tensor that the decision reads."""

    is_cuda, is_cpu, is_nested, dtype, layout = True, False, False, torch.float32, torch.strided
    device = torch.device("cuda", 1)

    def is_neg(self) -> bool:
        return False


def test_the_reason_is_that_of_the_op(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "PLAIN_TYPES", _dispatch.PLAIN_TYPES | {OnCuda})
    monkeypatch.setattr(_torch_internals, "has_storage", lambda t: True)
    seen: list[_dispatch.Decision] = []
    with _dispatch.recording(seen.append), pytest.raises(TypeError):  # torch accepts no such tensor
        fastnn.functional.relu(OnCuda())  # type: ignore[arg-type]
    assert seen == [_dispatch.Decision("relu", UNTESTED.replace("selftest`", "selftest --device cuda:1`"))]


def test_a_device_is_asked_about_once(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(_proof.subject_of(module, 0), ROWS)
    assert reason("relu") is None
    monkeypatch.setattr(_proof, "kept", lambda subject: pytest.fail("asked again"))
    monkeypatch.setattr(_proof, "subject_of", lambda *_: pytest.fail("asked again"))
    assert reason("relu") is None
    assert reason("linear") is not None


@pytest.mark.parametrize("error", [RuntimeError("no driver"), FileNotFoundError("no module"), AssertionError])
def test_what_is_not_known_of_a_device_is_a_reason(
    module: Module, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def unknown(*_: object) -> Subject:
        raise error

    monkeypatch.setattr(_proof, "subject_of", unknown)
    for _ in range(2):
        assert "device, driver or build cannot be determined" in str(reason("relu"))


def test_a_device_that_is_unusable_is_so_first(module: Module) -> None:
    keep(_proof.subject_of(module, 0), ROWS)
    module.unusable = "no limits"
    assert reason("relu") == "no limits"


def test_unproven_kernels_are_asked_for(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "cuda_unproven", True)
    assert reason("relu") is None
    module.unusable = "no limits"
    assert reason("relu", 1) == "no limits"
    assert "FASTNN_CUDA_UNPROVEN" in str(fastnn.info().cuda_proven)


@pytest.mark.parametrize(("value", "unproven"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_variable_of_the_environment(value: str | None, unproven: bool, run_fresh: Fresh) -> None:
    environment = {} if value is None else {"FASTNN_CUDA_UNPROVEN": value}
    code = "from fastnn import _dispatch; print(_dispatch.cuda_unproven)"
    assert output(run_fresh(code, **environment)) == str(unproven)


def test_info_says_what_has_passed_where_and_when(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastnn.info().cuda_proven == (
        "nowhere, CUDA tensors run on torch's kernels: run `fastnn selftest` and start Python again"
    )
    subject = _proof.subject_of(module, 3)
    path = keep(subject, ROWS[:2])
    path.write_text(Result(subject, "2030-01-02 03:04", ROWS[:2]).as_json())
    keep(dataclasses.replace(subject, build="an older one"), ROWS)
    found = "on NVIDIA X3 GPU-3, driver CUDA 13.0"
    assert (
        str(fastnn.info().cuda_proven).replace(subject.driver, "CUDA 13.0")
        == f"{found}, 2030-01-02 03:04 UTC"
    )
    path.write_text(Result(subject, "2030-01-02 03:04", ROWS).as_json())
    assert " but linear (failed), train_epoch (left out), 2030-01-02 03:04 UTC" in str(fastnn.info())
    monkeypatch.setattr(_proof, "VERIFIED_CAPABILITIES", frozenset({"8.0", "9.0"}))
    said = str(fastnn.info().cuda_proven)
    assert said.startswith("compute capability 8.0; compute capability 9.0; on NVIDIA X3 GPU-3")
    monkeypatch.setattr(_proof, "VERIFIED_CAPABILITIES", frozenset())
    path.write_text("{")
    unreadable = f"; the result kept at {path} cannot be read (it is not what this version of fastnn writes)"
    said = str(fastnn.info().cuda_proven)
    assert said.startswith("nowhere, ")
    assert said.endswith(unreadable)


def test_info_without_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "load_cuda", lambda: (None, "not built"))
    assert fastnn.info().cuda_proven is None
    assert "CUDA proven" not in str(fastnn.info())


def _names() -> dict[str, str]:
    """The values of `cuda` passed to `torch_reason` in the sources, and where."""
    found = {}
    for path in Path(fastnn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "cuda" and isinstance(node.value, ast.Constant):
                found[str(node.value.value)] = path.name
    return found


def test_every_op_that_has_cuda_kernels_is_tested() -> None:
    updates = {"adam", "sgd", "adagrad", "rmsprop"}
    names = _names()
    assert {"relu", "linear", "train_epoch"} <= names.keys()
    assert names.keys() | updates == {case.op for case in cases_for(torch.device("cuda"))}
    for kind in (fastnn.optim.Adam, fastnn.optim.SGD, fastnn.optim.Adagrad, fastnn.optim.RMSprop):
        assert kind._op in updates
