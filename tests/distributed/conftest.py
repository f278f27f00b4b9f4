"""Two processes for all tests here; skipped if torch has no gloo."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from processes import Processes

HAS_GLOO = dist.is_available() and dist.is_gloo_available()


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    if not HAS_GLOO:
        pytest.skip("this torch has no gloo")
    made = Processes(tmp_path_factory.mktemp("processes"))
    yield made
    made.stop()
