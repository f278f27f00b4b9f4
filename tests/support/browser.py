"""A headless Chromium, and the page of `fastnn demo` in it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastnn.cli.bench import load_benchmarks
from fastnn.cli.demo import HOST
from fastnn.cli.demo_server import Server

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

PATIENCE = 120  # seconds that anything may take on a busy machine
T = TypeVar("T")

# Strokes of digits: points from 0 to 1 across the pad.
ZERO = [(0.5 + 0.2 * math.sin(a / 4), 0.5 - 0.3 * math.cos(a / 4)) for a in range(26)]
SEVEN = [(0.3, 0.22), (0.7, 0.22), (0.46, 0.82)]

_chromium = load_benchmarks("chromium")
NoBrowserError, chromium = _chromium.NoBrowserError, _chromium.chromium


@contextmanager
def served(site: Path, mnist: Path | None = None) -> Iterator[str]:
    """The address at which `fastnn demo`'s server shows a folder."""
    with Server((HOST, 0), site, mnist) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class Page:
    """The page, by the ids of its elements."""

    def __init__(self, browser: Chrome, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self) -> None:
        """Reload it, and wait until it is ready."""
        self.browser.get(self.address)
        self.until(lambda: self["go"].is_enabled() and self["save"].is_enabled())

    def __getitem__(self, id: str) -> WebElement:
        return self.browser.find_element("id", id)

    def until(self, condition: Callable[[], T]) -> T:
        """The result of `condition` as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < end, f"nothing came of it; the page says: {self['digits-status'].text}"
            time.sleep(0.05)
        return value

    def script(self, body: str, *args: Any) -> Any:
        """Run JavaScript, which may wait, and return what it returns."""
        return _chromium.evaluate(self.browser, body, *args)

    def fill(self, id: str, text: str) -> None:
        """Enter text into a field, as if typed."""
        self[id].clear()
        self[id].send_keys(text)

    def says(self, id: str, start: str) -> bool:
        """Whether an element's text starts with `start`."""
        return self[id].text.startswith(start)

    def train(self, epochs: int) -> float:
        """Train, and return the test accuracy that is shown."""
        self.fill("epochs", str(epochs))
        self["go"].click()
        self.until(lambda: self.says("digits-status", "Done"))
        return float(self["accuracy"].text.rstrip("%")) / 100

    def draw(self, *strokes: list[tuple[float, float]]) -> None:
        """Draw with the mouse: points are from 0 to 1 across the pad."""
        self.script("document.getElementById('pad').scrollIntoView({block: 'center'})")
        box = self.script(
            "const box = document.getElementById('pad').getBoundingClientRect();"
            "return [box.x, box.y, box.width, box.height]"
        )
        for stroke in strokes:
            self._mouse("mousePressed", box, stroke[0])
            for point in stroke[1:]:
                self._mouse("mouseMoved", box, point)
            self._mouse("mouseReleased", box, stroke[-1])

    def _mouse(self, kind: str, box: list[float], point: tuple[float, float]) -> None:
        x, y = box[0] + point[0] * box[2], box[1] + point[1] * box[3]
        event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": int(kind != "mouseReleased")}
        self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", event | {"clickCount": 1})

    def seen(self) -> list[int]:
        """The input image of the network, as the page shows it: from 0 to 255."""
        return self.script(
            "const c = document.getElementById('seen');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return Array.from(d).filter((_, i) => i % 4 === 0)"
        )

    def probabilities(self) -> list[float]:
        """The probabilities of the ten digits, in full precision."""
        return self.script(
            "return [...document.querySelectorAll('#bars li')].map((b) => Number(b.dataset.value))"
        )

    def predicted(self) -> list[float]:
        """The probabilities as soon as they are shown."""
        self.until(lambda: self.says("verdict", "It is"))
        return self.probabilities()
