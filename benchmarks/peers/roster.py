"""Which peers take part in a run, how they are limited to its threads, and why others are left out."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import ExitStack
from types import ModuleType

import torch

from ..case import Call, Workload
from . import compiled, onednn
from .remote import PeerError, Worker


class Roster(ExitStack):
    """The peers of a run besides torch eager; a context manager that ends their processes.

    Attributes:
        present: description of each peer, by name.
        absent: why a peer is left out, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.present: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}

    def add(self, name: str, module: str, threads: int, environment: Mapping[str, str]) -> None:
        """Start a peer; one that does not load is noted as absent."""
        try:
            worker = Worker(module, threads, environment)
        except PeerError as error:
            self.absent[name] = str(error)
            return
        self.callback(worker.close)
        self._workers[name] = worker
        self.present[name] = worker.description

    def add_local(self, name: str, peer: ModuleType) -> None:
        """Add a peer within torch, unless it says that it is absent."""
        reason = peer.reason_absent()
        if reason is None:
            self.present[name] = peer.describe()
        else:
            self.absent[name] = reason

    def calls(self, workload: Workload) -> dict[str, Call]:
        """The callables of all peers that can do the work of `workload`.

        Raises:
            PeerError: one of them fails.
        """
        calls = {name: make() for name, make in workload.optional.items() if name in self.present}
        if (work := workload.foreign) is not None:
            for name, worker in self._workers.items():
                if work.op in worker.operations:
                    calls[name] = worker.build(work)
        return calls


def assemble(threads: int, *, quick: bool = False) -> Roster:
    """All peers that are installed, each limited to `threads`.

    Under `quick` torch.compile is left out: it compiles for some seconds before its first step.
    """
    roster = Roster()
    roster.add_local(onednn.NAME, onednn)
    if quick:
        roster.absent[compiled.NAME] = "not in a quick run"
    else:
        roster.add_local(compiled.NAME, compiled)
    blas = {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    if _missing(roster, "OpenBLAS", "threadpoolctl") is None:
        roster.add("OpenBLAS", "numpy_peer", threads, blas)
        # By default OpenBLAS uses its AVX2 kernels on processors newer than itself.
        has_avx512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
        if has_avx512 and "SkylakeX" not in roster.present.get("OpenBLAS", "SkylakeX"):
            name = "OpenBLAS AVX-512"
            roster.add(name, "numpy_peer", threads, {**blas, "OPENBLAS_CORETYPE": "SKYLAKEX"})
    if _missing(roster, "JAX", "jax") is None:
        roster.add("JAX", "jax_peer", threads, _xla(threads))
    if _missing(roster, "scikit-learn", "sklearn", "threadpoolctl") is None:
        roster.add("scikit-learn", "sklearn_peer", threads, blas)
    return roster


def _xla(threads: int) -> dict[str, str]:
    flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "NPROC": str(threads)}


def _missing(roster: Roster, name: str, *modules: str) -> str | None:
    """The first of `modules` that is not installed, noted as the reason why `name` is absent; or None."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            roster.absent[name] = f"{module} is not installed"
            return module
    return None
