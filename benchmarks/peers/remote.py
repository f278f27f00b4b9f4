"""A peer in a process of its own: started, called and timed from here.

The process is stopped while it has no request: the threads of an idle library keep spinning for a
while and would take a processor from the side that is measured next.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..case import Foreign

_WORKER = Path(__file__).with_name("worker.py")


class PeerError(Exception):
    """A peer cannot be used; the message says why."""


class Worker:
    """The process of one peer; a call does its workload once, and `sample` times that where it runs.

    Args:
        module: stem of the peer's file in this folder.
        threads: that the library may use.
        environment: variables that it reads when it is loaded.

    Raises:
        PeerError: the library does not load.

    Attributes:
        description: version and settings, as reported by the library itself.
        operations: what it supports.
    """

    def __init__(self, module: str, threads: int, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
        try:
            self.description, self.operations = self._ask("start", module, threads)
        except PeerError:
            self.close()
            raise

    def _ask(self, name: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            pickle.dump((name, arguments), self._process.stdin)
            self._process.stdin.flush()
            done, value = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            code = self._process.wait()
            raise PeerError(f"its process ended with exit code {code}") from None
        self._process.send_signal(signal.SIGSTOP)
        if not done:
            raise PeerError(value)
        return value

    def build(self, work: Foreign) -> Worker:
        """Give it a workload, which replaces the previous one; returns the worker."""
        arguments = {name: _as_numpy(value) for name, value in work.arguments.items()}
        self._ask("build", work.op, arguments)
        return self

    def __call__(self) -> list[Tensor]:
        """The answer of one call of the workload."""
        return [torch.from_numpy(part.copy()) for part in self._ask("call")]

    def sample(self, repeats: int, settle: float) -> tuple[float, float]:
        """Wall and CPU seconds of one call, means of `repeats`, by its own clock, after `settle` seconds."""
        seconds: tuple[float, float] = self._ask("sample", repeats, settle)
        return seconds

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def _as_numpy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().numpy()
    if isinstance(value, list | tuple):
        return [_as_numpy(each) for each in value]
    return value
