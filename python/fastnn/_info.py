"""What this installation of fastnn is made of and runs on."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

import torch

from fastnn import _dispatch, _proof
from fastnn._version import __version__


@dataclasses.dataclass(frozen=True)
class Info:
    """Versions, CPU kernels, CUDA kernels and threads; ``str()`` of it is a table.

    Attributes:
        fastnn: version of fastnn.
        torch: version of torch.
        python: version of Python.
        platform: operating system and machine.
        native: whether ops run on native kernels where they can.
        why_not_native: the reason if they do not, else None.
        compiler: what compiled the CPU module; None without one.
        isa: instruction set in use; None without a CPU module.
        best_isa: the best instruction set that this build and this machine share; None without a CPU module.
        cuda: what the CUDA module is built for and what the driver supports, or why there is none.
        cuda_proven: on which devices the CUDA kernels have passed `fastnn selftest`, when, and which ops
            failed or were left out; None without a CUDA module.
        threads: how many threads an op may use.
    """

    fastnn: str
    torch: str
    python: str
    platform: str
    native: bool
    why_not_native: str | None
    compiler: str | None
    isa: str | None
    best_isa: str | None
    cuda: str
    cuda_proven: str | None
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict of JSON types."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = {
            "fastnn": self.fastnn,
            "torch": self.torch,
            "python": self.python,
            "platform": self.platform,
            "native kernels": "on" if self.native else f"off: {self.why_not_native}",
        }
        if self.isa is not None:
            forced = "" if self.isa == self.best_isa else f" (the best here is {self.best_isa})"
            rows["instruction set"] = f"{self.isa}{forced}"
            rows["compiler"] = str(self.compiler)
        rows["CUDA"] = self.cuda
        if self.cuda_proven is not None:
            rows["CUDA proven"] = self.cuda_proven
        rows["threads"] = str(self.threads)
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _version_text(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _cuda_text() -> str:
    """What CUDA supports here, or why not; makes no CUDA context."""
    module, missing = _dispatch.load_cuda()
    if module is None:
        return f"none, CUDA tensors run on torch's kernels: {missing}"
    driver = module.driver_version()
    parts = [
        f"kernels for {module.architectures} (CUDA {_version_text(module.runtime_version)})",
        f"driver for CUDA {_version_text(driver)}" if driver else "no driver",
    ]
    if torch.version.cuda is None:
        parts.append("this torch has no CUDA")
    return ", ".join(parts)


def _proven_text() -> str | None:
    """On which devices this build has passed its self-test; makes no CUDA context, so of any device and
    driver."""
    module, missing = _dispatch.load_cuda()
    if missing is not None:
        return None
    if _dispatch.cuda_unproven:
        return "not asked, FASTNN_CUDA_UNPROVEN is set"
    build = _proof.build_of(module)
    parts = [f"compute capability {capability}" for capability in sorted(_proof.VERIFIED_CAPABILITIES)]
    results, unreadable = _proof.all_kept()
    for result in results:
        if result.subject.build == build:
            off = [f"{op} ({outcome})" for op, outcome in result.off().items()]
            but = f" but {', '.join(off)}" if off else ""
            where = f"{result.subject.name} {result.subject.uuid}, driver {result.subject.driver}"
            parts.append(f"on {where}{but}, {result.when} UTC")
    nowhere = "nowhere, CUDA tensors run on torch's kernels: run `fastnn selftest` and start Python again"
    return "; ".join([*(parts or [nowhere]), *unreadable])


def info() -> Info:
    """Describe this installation: versions, instruction set, CUDA module or why there is none, threads."""
    cpu, reason = _dispatch.cpu, _dispatch.torch_reason()
    return Info(
        fastnn=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        native=reason is None,
        why_not_native=reason,
        compiler=None if cpu is None else cpu.compiler,
        isa=None if cpu is None else cpu.isa,
        best_isa=None if cpu is None else cpu.best_isa,
        cuda=_cuda_text(),
        cuda_proven=_proven_text(),
        threads=torch.get_num_threads() if cpu is None else cpu.max_threads(),
    )
