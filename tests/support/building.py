"""How tests compile what they need besides the package."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


class CannotBuildError(RuntimeError):
    """A tool that the build needs is missing."""


def tool(name: str) -> str:
    """The path of a program: next to Python, or on PATH; raises CannotBuildError if there is none."""
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        raise CannotBuildError(f"{name} is missing")
    return found


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Only one process at a time builds in `folder`; other test processes then find it built."""
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        yield


def run(*command: str) -> None:
    """Run a program; raises RuntimeError with its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
