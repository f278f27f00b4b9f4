"""What the numbers were measured on: processor, caches, peaks, versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import fastnn
from fastnn import _dispatch

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_SAMPLES = 7
# A round is a dozen or more FMAs, at least 4 ns: some milliseconds per sample.
_FMA_ROUNDS = 1_000_000


def cpu_model() -> str:
    """Name of the processor, as far as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        told = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if told.returncode == 0:
            return told.stdout.strip()
    return platform.processor() or platform.machine()


# What does not distinguish processors: trademarks, makers, clocks, core counts, generic words.
_NOISE = re.compile(
    r"\((?:r|tm|c)\)|@.*|\bwith .*|\b\d+(?:st|nd|rd|th) gen\b|\b\w+-core\b|\b(?:intel|amd|cpu|processor)\b"
)


def short_name() -> str:
    """The processor in a file's name: "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz" gives "xeon-gold-6248"."""
    words = re.findall(r"[a-z0-9]+", _NOISE.sub(" ", cpu_model().lower()))
    return "-".join(words) or "processor"


def caches() -> dict[str, int]:
    """Bytes of each data cache that one core sees, by name ("L1", "L2", ...); empty if unknown."""
    found = {}
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    try:
        for index in sorted(_CACHES.glob("index*")):
            if (index / "type").read_text().strip() == "Instruction":
                continue
            size = (index / "size").read_text().strip()
            found["L" + (index / "level").read_text().strip()] = int(size[:-1]) * units[size[-1]]
    except (OSError, ValueError, KeyError):
        return {}
    return found


def last_level_cache() -> int:
    """Bytes of the largest cache, 0 if unknown."""
    return max(caches().values(), default=0)


@dataclass(frozen=True)
class Peaks:
    """Best of several samples on `threads` threads: FLOP/s of independent FMAs, bytes/s of a large copy.

    The copy counts bytes read and written, by the faster of the C library's copy and torch's.
    """

    threads: int
    fma_float32: float
    fma_float64: float
    copy: float
    copy_by: str
    copy_bytes: int

    def best_of(self, other: Peaks) -> Peaks:
        """The higher of each, for the same threads."""
        copy = max(self, other, key=lambda peaks: peaks.copy)
        return Peaks(
            self.threads,
            max(self.fma_float32, other.fma_float32),
            max(self.fma_float64, other.fma_float64),
            copy.copy,
            copy.copy_by,
            self.copy_bytes,
        )


def _best(sample: Callable[[], float]) -> float:
    sample()
    return max(sample() for _ in range(_SAMPLES))


def _fma_peak(dtype: torch.dtype) -> float:
    out = torch.empty(1, dtype=dtype)

    def rate() -> float:
        start = time.perf_counter()
        flops: int = _dispatch.cpu.probe_fma(_FMA_ROUNDS, out)
        return flops / (time.perf_counter() - start)

    return _best(rate)


def _copy_peak() -> tuple[float, str, int]:
    # Several times the last-level cache, so that neither end of the copy stays in it.
    size = min(max(4 * last_level_cache(), 64 << 20), 256 << 20)
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)

    def rate(copy: Callable[[], object]) -> float:
        start = time.perf_counter()
        copy()
        return 2 * size / (time.perf_counter() - start)

    rates = {
        "memcpy": _best(lambda: rate(lambda: _dispatch.cpu.probe_copy(source, target))),
        "torch.copy_": _best(lambda: rate(lambda: target.copy_(source))),
    }
    fastest = max(rates, key=lambda name: rates[name])
    return rates[fastest], fastest, size


def probe(threads: int) -> Peaks:
    """Measure the peaks of this machine with the selected instruction set."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return Peaks(threads, _fma_peak(torch.float32), _fma_peak(torch.float64), *_copy_peak())
    finally:
        torch.set_num_threads(before)


def describe() -> dict[str, object]:
    """The machine, for the report."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "isa": _dispatch.cpu.isa,
        "caches": caches(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Versions of the measured software."""
    return {
        "fastnn": fastnn.__version__,
        "fastnn compiler": _dispatch.cpu.compiler,
        "torch": torch.__version__,
        "torch BLAS": "MKL" if torch.backends.mkl.is_available() else "other",
        "python": platform.python_version(),
    }
