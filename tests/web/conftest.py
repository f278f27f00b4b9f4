"""Fixtures for the kernels in a browser, and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser import PATIENCE, NoBrowserError, Page, chromium, served
from building import CannotBuildError
from web_build import Node, site

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The kernels in WebAssembly, run by Node; compiled for the first test that uses them."""
    try:
        process = Node()
    except CannotBuildError as error:
        pytest.skip(str(error))
    yield process
    process.close()


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of static files made by `make web`."""
    try:
        return site()
    except CannotBuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the browser saves files."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def _chromium(downloads: Path) -> Iterator[Chrome]:
    try:
        with chromium(downloads) as browser:
            browser.set_script_timeout(PATIENCE)
            yield browser
    except NoBrowserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _address(built: Path) -> Iterator[str]:
    with served(built) as address:
        yield address


@pytest.fixture
def page(_chromium: Chrome, _address: str) -> Page:
    """The page, just loaded, with the bundled digits."""
    page = Page(_chromium, _address)
    page.open()
    return page
