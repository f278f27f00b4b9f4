"""`fastnn selftest`: its table, its exit status, and what it stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastnn import _dispatch, _proof
from fastnn._proof import FAILED, LEFT_OUT, PASSED, Row, Subject
from fastnn.cli.main import main
from fastnn.selftest import parent, results

SUBJECT = Subject("NVIDIA X1", "GPU-1", "9.0", "580.1, CUDA 13.0", "0 abc")
GOOD = (Row("relu", "float32", PASSED, ""), Row("linear", "float32", PASSED, ""))
BAD = (
    Row("relu", "float32", PASSED, ""),
    Row("linear", "float32", PASSED, ""),
    Row("linear", "bfloat16", FAILED, "y is off"),
    Row("train_epoch", "float32", LEFT_OUT, "no clusters"),
)


def given(monkeypatch: pytest.MonkeyPatch, subject: Subject | None, rows: tuple[Row, ...]) -> list[str]:
    asked: list[str] = []

    def run(device: str, notify: Any) -> parent.Found:
        asked.append(device)
        for row in rows:
            notify(row)
        return parent.Found(subject, rows)

    monkeypatch.setattr(parent, "run", run)
    return asked


@pytest.mark.long
@pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")
def test_the_kernels_of_the_cpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The whole self-test, in its own process."""
    assert main(["selftest", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["op", "test", "outcome", "why"]
    passed = {line.split()[0] for line in lines if " passed" in line}
    assert {"relu", "linear", "adam", "train_step", "train_epoch"} <= passed
    assert lines[-1].endswith(" tests on cpu: none failed")
    assert _proof.all_kept() == ([], [])


def test_a_result_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = given(monkeypatch, SUBJECT, GOOD)
    assert main(["selftest"]) == 0
    assert asked == ["cuda:0"]
    out = capsys.readouterr().out
    assert out.startswith(
        "op      test  outcome        why\n"
        "relu    all   1 of 1 passed\n"
        "linear  all   1 of 1 passed\n"
        "\n2 tests on cuda:0, NVIDIA X1 (driver 580.1, CUDA 13.0): none failed\n"
    )
    kept = _proof.kept(SUBJECT)
    assert kept is not None
    assert kept.rows == GOOD
    assert str(_proof.path_of(SUBJECT)) in out


def test_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given(monkeypatch, SUBJECT, BAD)
    assert main(["selftest", "--device", "cuda:1"]) == 1
    assert capsys.readouterr().out.startswith(
        "op           test      outcome        why\n"
        "relu         all       1 of 1 passed\n"
        "linear                 1 of 2 passed\n"
        "             bfloat16  failed         y is off\n"
        "train_epoch            0 of 1 passed\n"
        "             float32   left out       no clusters\n"
        "\n4 tests on cuda:1, NVIDIA X1 (driver 580.1, CUDA 13.0): 1 failed\n"
    )
    kept = _proof.kept(SUBJECT)
    assert kept is not None
    assert kept.why_off("relu") is None


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given(monkeypatch, SUBJECT, BAD)
    assert main(["selftest", "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert Subject(**found["subject"]) == SUBJECT
    assert tuple(Row(**row) for row in found["rows"]) == BAD
    assert found["unusable"] is None
    assert found["info"]["torch"] == torch.__version__  # needed by whoever receives the report
    assert "4 tests on cuda:0, NVIDIA X1 (driver 580.1, CUDA 13.0): 1 failed\n" in captured.err
    stopped(monkeypatch, parent.Unusable("no devices", parent.Found(SUBJECT, BAD[:3])))
    assert main(["selftest", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["unusable"] == "no devices"
    assert tuple(Row(**row) for row in found["rows"]) == BAD[:3]


def test_a_place_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("FASTNN_CACHE_DIR", str(tmp_path / "file"))
    given(monkeypatch, SUBJECT, GOOD)
    assert main(["selftest"]) == 1
    captured = capsys.readouterr()
    assert "2 tests on cuda:0" in captured.out
    assert "the result cannot be stored, so CUDA kernels stay off" in captured.err
    assert "FASTNN_CACHE_DIR" in captured.err


def test_an_earlier_result_that_cannot_be_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results.keep(SUBJECT, GOOD)

    def keep(*_: object) -> Path:
        raise PermissionError("read-only")

    monkeypatch.setattr(results, "keep", keep)
    given(monkeypatch, SUBJECT, BAD)
    assert main(["selftest"]) == 1
    assert (
        f"the result of an earlier one is valid until you remove {path}: read-only" in capsys.readouterr().err
    )


def test_nothing_to_test(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(monkeypatch, parent.Unusable("no driver", parent.Found(None, ())))
    assert main(["selftest"]) == 1
    said = capsys.readouterr().err
    expected = "fastnn selftest: error: nothing can be tested on cuda:0: no driver"
    assert said == f"{expected} (for the CPU's kernels: --device cpu)\n"


def stopped(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(device: str, notify: Any) -> parent.Found:
        raise error

    monkeypatch.setattr(parent, "run", run)


def test_an_unusable_device_invalidates_earlier_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results.keep(SUBJECT, GOOD)
    unusable = parent.Unusable("no devices", parent.Found(SUBJECT, GOOD[:1]))
    stopped(monkeypatch, parent.Unusable("no driver", parent.Found(None, ())))
    assert main(["selftest"]) == 1  # for an unknown device
    assert _proof.kept(SUBJECT) is not None
    stopped(monkeypatch, unusable)
    _proof.path_of(SUBJECT).write_text("{")  # unreadable for this user, maybe not for another
    for more in ("; the result of an earlier self-test on it is no longer valid\n", "\n"):
        capsys.readouterr()
        assert main(["selftest"]) == 1
        said = capsys.readouterr().err
        assert said.endswith(f"nothing can be tested on cuda:0 after 1 test: no devices{more}")
        assert _proof.kept(SUBJECT) is None


def test_an_interrupted_run_leaves_valid_what_it_does_not_refute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(monkeypatch, parent.Interrupted(parent.Found(SUBJECT, BAD)))
    assert main(["selftest"]) == 130
    assert "ended after 4 tests; their results are not stored\n" in capsys.readouterr().err
    assert _proof.kept(SUBJECT) is None
    results.keep(SUBJECT, GOOD)
    before = _proof.kept(SUBJECT)
    assert before is not None
    stopped(monkeypatch, parent.Interrupted(parent.Found(SUBJECT, GOOD[:1])))
    assert main(["selftest"]) == 130
    assert f"ended after 1 test; the result of {before.when} UTC remains valid\n" in capsys.readouterr().err
    assert _proof.kept(SUBJECT) == before
    stopped(monkeypatch, parent.Interrupted(parent.Found(SUBJECT, BAD)))
    assert main(["selftest"]) == 130
    assert "remains valid, except for what failed: linear\n" in capsys.readouterr().err
    after = _proof.kept(SUBJECT)
    assert after is not None
    assert after.off() == {"linear": FAILED}


def test_the_names_of_devices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = given(monkeypatch, None, GOOD)
    assert main(["selftest", "--device", "cuda"]) == 0
    assert main(["selftest", "--device", "cuda:12"]) == 0
    assert asked == ["cuda:0", "cuda:12"]
    for wrong in ("gpu", "cuda:x", "cuda:"):
        with pytest.raises(SystemExit) as exit:
            main(["selftest", "--device", wrong])
        assert exit.value.code == 2
    assert "expected cpu, cuda or cuda:<number>, got 'gpu'" in capsys.readouterr().err
