"""Commands run in an empty directory, without the user's data or the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastnn.cli import bench


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FASTNN_DATA_DIR", raising=False)
    monkeypatch.setenv("FASTNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FASTNN_MIRRORS", "")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks that need no measuring."""
    machine = bench.load_benchmarks("machine")
    monkeypatch.setattr(
        machine, "probe", lambda threads: machine.Peaks(threads, 1e11, 5e10, 1e10, "a stub", 1)
    )
