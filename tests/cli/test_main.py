"""The shell of the command line: help, versions, errors, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastnn import __version__
from fastnn.cli import train
from fastnn.cli.errors import CliError, UsageError, require
from fastnn.cli.main import main


def test_version_is_printed(capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"fastnn {__version__}\n"


def test_help_lists_the_commands(capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert train.HELP in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["--bogus"]])
def test_bad_commands_end_with_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: fastnn" in capsys.readouterr().err


def test_an_unknown_option_shows_the_usage_of_its_command(capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["train", "--bogus", "--epochs", "1"])
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: fastnn train [-h]")
    assert err.endswith("fastnn train: error: unrecognized arguments: --bogus\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CliError("mend this"), 1, "fastnn train: error: mend this\n"),
        (KeyboardInterrupt(), 130, "fastnn train: interrupted\n"),
    ],
)
def test_errors_become_exit_codes(monkeypatch, capsys, error: BaseException, code: int, said: str) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(train, "run", fail)
    assert main(["train"]) == code
    assert capsys.readouterr().err.endswith(said)


def test_a_usage_error_shows_the_usage_and_ends_with_2(monkeypatch, capsys) -> None:
    def fail(args: object) -> int:
        raise UsageError("not both")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(SystemExit) as exit:
        main(["train"])
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert "usage: fastnn train" in err
    assert err.endswith("fastnn train: error: not both\n")


def test_missing_extras_are_named_with_the_remedy() -> None:
    require("train", "json")
    with pytest.raises(CliError, match=r'no_such_a, no_such_b not installed: pip install "fastnn\[train\]"'):
        require("train", "json", "no_such_a", "no_such_b")


def test_help_imports_none_of_the_heavy_parts() -> None:
    program = """
import sys
from fastnn.cli.main import main
try:
    main(["train", "--help"])
except SystemExit:
    pass
print([name for name in ("matplotlib", "sklearn", "tensorboard", "safetensors") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--batch-size" in result.stdout
    assert result.stdout.endswith("[]\n")


@pytest.mark.each_value
@pytest.mark.skipif(os.name == "nt", reason="pipes of Unix")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["info"], ["bench", "--list"]])
def test_a_closed_pipe_ends_it_quietly(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fastnn", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
