"""Code in a process where torch is imported and fastnn is not."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import fastnn

PACKAGE = Path(fastnn.__file__).parent

# Importing torch takes seconds, so one process does it and all code runs in forks of that.
SERVER = """
import json, os, sys, traceback
import torch
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for name, target in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT), target)
        os.environ.update(job["environment"])
        sys.path.insert(0, job["path"])
        status = 0
        try:
            exec(job["code"], {"__name__": "__main__"})
        except SystemExit as ended:
            status = 1 if ended.code else 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Run(NamedTuple):
    """How a process ended, and its output."""

    status: int
    stdout: str
    stderr: str


class Fresh:
    """A process that forks; it starts with the first call."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, itertools.count()
        self._server: subprocess.Popen[str] | None = None

    def __call__(self, code: str, path: Path = PACKAGE.parent, **environment: str) -> Run:
        """Run it with these additional variables; `path` is where fastnn is found."""
        if self._server is None:
            self._server = self._start()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        number = next(self._count)
        out, err = self._folder / f"{number}.out", self._folder / f"{number}.err"
        job = {"code": code, "path": str(path), "environment": environment}
        print(json.dumps(job | {"stdout": str(out), "stderr": str(err)}), file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        return Run(status, out.read_text().strip(), err.read_text().strip())

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FASTNN_", "PYTHONPATH"))
        }
        env["FASTNN_ALWAYS_NATIVE"] = "1"  # tensors are small
        return subprocess.Popen(
            [sys.executable, "-c", SERVER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        """End the process, if it runs."""
        if self._server is not None:
            self._server.communicate()


def script(path: Path, folder: Path, *arguments: str) -> str:
    """Code that runs a script with these arguments, in a folder, as its own process would."""
    return f"""
import os, runpy, sys
os.chdir({str(folder)!r})
sys.argv = {[str(path), *arguments]!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def output(done: Run) -> str:
    """The output of a process that must have succeeded."""
    assert done.status == 0, done.stderr
    return done.stdout
