"""A headless Chromium that selenium drives, for measuring in a browser and for the tests of the page."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync disable-dev-shm-usage window-size=1280,900"
)


class NoBrowserError(RuntimeError):
    """Chromium, its driver or selenium is missing."""


@contextmanager
def chromium(downloads: Path | None = None) -> Iterator[Any]:
    """Selenium's ``Chrome``, which saves files in `downloads` if given.

    Raises:
        NoBrowserError: saying what is missing.
    """
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    has_selenium = importlib.util.find_spec("selenium") is not None
    present = {
        "chromium": binary,
        "chromedriver (Debian's chromium-driver)": driver,
        "selenium": has_selenium,
    }
    if missing := [name for name, found in present.items() if not found]:
        raise NoBrowserError(f"a browser needs {', '.join(missing)}")

    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(binary)
    for flag in _FLAGS.split():
        options.add_argument(f"--{flag}")
    if downloads:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def evaluate(browser: Any, body: str, *args: Any) -> Any:
    """What the body of an async JavaScript function returns in the page.

    Raises:
        RuntimeError: with what it threw.
    """
    call = (
        "const done = arguments[arguments.length - 1];"
        f"(async (...args) => {{{body}}})(...arguments)"
        ".then((value) => done({value}), (error) => done({error: `${error}`}))"
    )
    answer = browser.execute_async_script(call, *args)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer.get("value")
