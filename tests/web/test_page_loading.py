"""The page as a browser finds it: its data and files, what is missing, and how it is laid out."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from browser import ZERO, Page, served
from fastnn.data.digits import load_digits


def test_mnist_is_used_where_the_server_has_it(page: Page, built: Path, tmp_path: Path) -> None:
    digits = load_digits()

    def enlarged(images: np.ndarray) -> np.ndarray:
        """8 x 8 pixels from 0 to 16 as 28 x 28 from 0 to 255."""
        large = images.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2) * 15.9375
        return np.pad(large, ((0, 0), (2, 2), (2, 2)))

    for name, values in (
        ("train-images-idx3", enlarged(digits.train_images)),
        ("train-labels-idx1", digits.train_labels),
        ("t10k-images-idx3", enlarged(digits.test_images)),
        ("t10k-labels-idx1", digits.test_labels),
    ):
        header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        (tmp_path / f"{name}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
    with served(built, tmp_path) as address:
        other = Page(page.browser, address)
        other.open()
        assert other["data"].text.startswith("Data: MNIST, 1,437 images to train on")
        assert other.train(20) > 0.85
        other.draw(ZERO)
        other.predicted()
        ink = np.array(other.seen()).reshape(28, 28)
        assert (ink.max(axis=1) > 64).sum() in range(19, 22)  # a box of 20 pixels


def test_kernels_that_are_missing_are_named(page: Page, built: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(built, site)
    (site / "fastnn.wasm").unlink()
    with served(site) as address:
        page.browser.get(address)
        page.until(lambda: "fastnn.wasm could not be loaded: HTTP status 404" in page["trouble"].text)
        assert not page["go"].is_enabled()
        assert page["line-status"].text != "Ready."


@pytest.mark.parametrize("file", ["worker.js", "training.js"])
def test_a_worker_that_is_missing_is_reported(file: str, page: Page, built: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(built, site)
    (site / "page" / file).unlink()
    with served(site) as address:
        page.browser.get(address)
        page.until(lambda: "the worker could not be started" in page["trouble"].text)


def test_a_page_of_html_is_not_mnist(page: Page, built: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(built, site)
    (site / "data" / "mnist").mkdir()
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (site / "data" / "mnist" / f"{part}-{kind}-ubyte.gz").write_text("<!doctype html>")
    with served(site) as address:
        other = Page(page.browser, address)
        other.open()
        assert "not MNIST" in other["data"].text


@pytest.mark.parametrize(
    "lacking",
    [
        "WebAssembly.validate = () => false",
        "delete DecompressionStream",
        "delete Array.prototype.findLastIndex",
    ],
)
def test_a_browser_that_is_too_old_is_reported(lacking: str, page: Page) -> None:
    script = {"source": lacking}
    added = page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        page.browser.get(page.address)
        page.until(lambda: "Firefox from 114, Safari from 16.4" in page["trouble"].text)
        assert not page["experiments"].is_displayed()
    finally:
        page.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_nothing_is_loaded_from_elsewhere_and_nothing_fails(page: Page) -> None:
    page.browser.get_log("browser")
    page.open()
    page.train(2)
    names = page.script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert len(names) > 5
    assert all(name.startswith(page.address) for name in names)
    # If MNIST is missing, the requests for its files fail.
    assert [line for line in page.browser.get_log("browser") if "/data/mnist/" not in line["message"]] == []


def test_every_control_has_a_name(page: Page) -> None:
    page.train(1)
    controls = page.browser.find_elements("css selector", "button, input, select, canvas, a, svg")
    assert len(controls) > 20
    shown = [each for each in controls if each.is_displayed()]
    nameless = [each.get_attribute("outerHTML")[:80] for each in shown if not each.accessible_name]
    assert nameless == []


def test_fits_a_phone_and_follows_the_systems_scheme(page: Page) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = page.script(colour)
    metrics = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    try:
        page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        page.train(1)
        assert page.script("return document.documentElement.scrollWidth") == 360
        assert page.script(colour) != light
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
