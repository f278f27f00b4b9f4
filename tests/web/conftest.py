"""Fixtures for the kernels in a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from web_build import CannotBuildError, Node


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The kernels in WebAssembly, run by Node; compiled with the first test that asks."""
    try:
        process = Node()
    except CannotBuildError as error:
        pytest.skip(str(error))
    yield process
    process.close()
