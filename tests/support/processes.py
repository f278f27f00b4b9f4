"""Two processes with a process group, which run functions for tests."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SIZE = 2
_PATIENCE = 300  # seconds: no test is about them


class Processes:
    """They start with the first call and stay, because importing torch takes longer than a test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starts = 0
        self._pipes: list[Connection] = []
        self._workers: list[Any] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function(rank, *arguments)``, of a module's top level, returns in each process.

        Raises:
            AssertionError: it raised something in one of them; its traceback is the text.
        """
        if not self._workers:
            self._start()
        # As plain bytes: multiprocessing would make the processes share the memory of tensors.
        call = pickle.dumps((function, arguments))
        for pipe in self._pipes:
            pipe.send_bytes(call)
        answers: dict[int, Any] = {}
        while len(answers) < SIZE:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            ready = wait(waiting, timeout=_PATIENCE)
            if not ready:
                self.stop()
                raise AssertionError(f"no answer within {_PATIENCE} s")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    error, answers[rank] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    error = "it has ended"
                if error:  # the others may wait for this one
                    self.stop()
                    raise AssertionError(f"process {rank}: {error}")
        return [answers[rank] for rank in range(SIZE)]

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._starts += 1
        store = self._folder / f"store{self._starts}"
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(rank, str(store), theirs), daemon=True)
            worker.start()
            theirs.close()
            self._pipes.append(ours)
            self._workers.append(worker)

    def stop(self) -> None:
        """End them, whatever they are doing."""
        for worker in self._workers:
            worker.kill()
            worker.join()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._workers = [], []


def _work(rank: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE)
    while True:
        try:
            function, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            answer = None, function(rank, *arguments)
        except BaseException:
            answer = traceback.format_exc(), None
        pipe.send_bytes(pickle.dumps(answer))
