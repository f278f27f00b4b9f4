"""The page in a real browser: what a user does with it, by mouse and keyboard."""

from __future__ import annotations

import math
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import fastnn
from browser import Page, served
from fastnn.data import Dataset
from fastnn.data.digits import load_digits

safetensors = pytest.importorskip("safetensors.torch")

ZERO = [(0.5 + 0.2 * math.sin(a / 4), 0.5 - 0.3 * math.cos(a / 4)) for a in range(26)]
SEVEN = [(0.3, 0.22), (0.7, 0.22), (0.46, 0.82)]


def python_probabilities(model: torch.nn.Module, data: Dataset, seen: list[int]) -> list[float]:
    """The predictions of `model` for an image that the page shows."""
    pixels = torch.tensor(seen, dtype=torch.float32) * (data.white / 255)
    return torch.softmax(model(((pixels.round() - data.mean) / data.std)[None]), 1)[0].tolist()


def predicted(page: Page) -> list[float]:
    """The probabilities as soon as they are shown."""
    page.until(lambda: page.says("verdict", "It is"))
    return page.probabilities()


def saved(page: Page, file: Path) -> bytes:
    """The file saved by the button, under the expected name."""
    file.unlink(missing_ok=True)
    page["save"].click()
    # The browser makes the file before it fills it.
    return page.until(lambda: file.read_bytes() if file.exists() else b"")


def test_it_learns_a_line(page: Page) -> None:
    assert page["line-y"].text == "?"
    page["line-train"].click()
    page.until(lambda: page["line-train"].text == "Train again")
    assert page.until(lambda: page["line-y"].text != "?" and float(page["line-y"].text)) == pytest.approx(
        9, abs=0.1
    )
    page.fill("line-x", "-10")
    page.until(lambda: float(page["line-y"].text) == pytest.approx(-21, abs=0.3))


def test_learns_the_bundled_digits_and_says_that_they_are_not_mnist(page: Page) -> None:
    assert "not MNIST" in page["data"].text
    assert "1,437 images to train on and 360 to test with" in page["data"].text
    assert page.train(60) >= 0.9
    assert page["epoch"].text == "60.0"
    assert float(page["rate"].text.replace(",", "")) > 0
    assert "last 9" in page.script("return document.querySelector('#accuracy-chart svg').ariaLabel")
    assert "128 hidden units" in page["filters"].get_attribute("aria-label")
    colours = "const c = document.getElementById('filters'); const d = c.getContext('2d')"
    colours += ".getImageData(0, 0, c.width, c.height).data; return new Set(d).size"
    assert page.script(colours) > 50


@pytest.mark.long
def test_each_optimizer_and_several_layers_learn(page: Page) -> None:
    for optimizer in ("Adam", "AdamW", "SGD", "SGD, momentum 0.9"):
        page["optimizer"].send_keys(optimizer)
        page.fill("hidden", "64-32")
        assert page.train(40) >= 0.85, optimizer
        assert page["hidden-note"].text.startswith("64-64-32-10: 6,570 parameters")
        page["anew"].click()
        page.until(lambda: page["go"].text == "Start" and page["hidden"].is_enabled())


def test_pauses_continues_and_starts_over(page: Page) -> None:
    page.fill("hidden", "512-512")
    page.fill("epochs", "1000")
    page["go"].click()
    page.until(lambda: page["go"].text == "Pause" and page["epoch"].text not in ("–", "0.00"))
    page["go"].click()
    page.until(lambda: page.says("digits-status", "Paused"))
    before = float(page["epoch"].text)
    page.fill("lr", "0.0001")
    page.fill("epochs", "2")
    page["go"].click()
    page.until(lambda: page.says("digits-status", "Done"))
    assert float(page["epoch"].text) == math.floor(before) + 2
    page["anew"].click()
    page.until(lambda: page["go"].text == "Start")
    assert page["hidden"].is_enabled()


@pytest.mark.long
def test_a_test_of_a_wide_network_is_interrupted_by_messages(page: Page) -> None:
    """Nothing that the worker does between two messages takes as long as a test of all images."""
    counted = page.script("""
        const { Mlp } = await import("./fastnn.js");
        const { Training } = await import("./page/training.js");
        const { turn } = await import("./page/rpc.js");
        const fastnn = await (await import("./fastnn.js")).load();
        const part = (rows) => ({ rows, images: new Uint8Array(rows * 64), labels: new Uint8Array(rows) });
        const data = { side: 8, mean: 0, std: 1, train: part(64), test: part(1000) };
        const training = new Training(fastnn, data, () => {});
        const optimizer = { name: "sgd", lr: 0.1 };
        training.begin({ hidden: [2048, 2048], optimizer, batchSize: 64, seed: 0 });
        const asked = Mlp.prototype.lossAndAccuracy;
        let parts = 0;
        Mlp.prototype.lossAndAccuracy = function (data) {
          ++parts;
          if (parts === 3) training.pause();
          return asked.call(this, data);
        };
        const end = await training.train(1);
        const first = parts;
        const again = await training.train(1);
        return [end, first, again, parts];
    """)
    end, first, again, parts = counted
    assert end == "paused"
    assert 3 <= first < 16
    assert again == "done"
    assert parts > 16


def test_a_double_click_starts_one_training(page: Page) -> None:
    page.fill("epochs", "2")
    page.script("""
        window.asked = [];
        const post = Worker.prototype.postMessage;
        Worker.prototype.postMessage = function (message) {
          window.asked.push(message.method);
          post.call(this, message);
        };
        document.getElementById("go").click();
        document.getElementById("go").click();
    """)
    page.until(lambda: page.says("digits-status", "Done"))
    assert page.script("return window.asked") == ["begin", "train"]


def test_start_over_ends_a_training_that_runs(page: Page) -> None:
    page.fill("hidden", "512-512")
    page.fill("epochs", "1000")
    page["go"].click()
    page.until(lambda: page["go"].text == "Pause")
    page["anew"].click()
    page.until(lambda: page["go"].text == "Start")
    page.fill("hidden", "16")
    assert page.train(1) > 0
    assert page["epoch"].text == "1.00"


def test_start_over_is_with_other_weights_and_without_old_readings(page: Page) -> None:
    page.fill("hidden", "8")
    page.draw(ZERO)
    first = predicted(page)
    page.train(1)
    page["anew"].click()
    page.until(lambda: page["go"].text == "Start")
    assert {page[id].text for id in ("accuracy", "rate", "loss", "epoch", "seconds")} == {"–"}
    chart = "return document.querySelector('#accuracy-chart svg').ariaLabel"
    page.until(lambda: page.script(chart) == "Test accuracy by epoch; nothing yet")
    page.until(lambda: page.says("verdict", "There is no network now"))
    page["clear"].click()
    page.until(lambda: page.says("verdict", "Draw"))
    page.draw(ZERO)
    assert predicted(page) != pytest.approx(first, abs=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden", "4000", "Hidden layers"),
        ("hidden", "many", "Hidden layers"),
        ("hidden", "1-2-3-4-5", "Hidden layers"),
        ("lr", "0", "Learning rate"),
        ("lr", "-1", "Learning rate"),
        ("lr", "", "Learning rate"),
        ("epochs", "0", "Epochs"),
        ("epochs", "2.5", "Epochs"),
        ("epochs", "1001", "Epochs"),
    ],
)
def test_a_bad_setting_is_named(field: str, value: str, said: str, page: Page) -> None:
    page.fill(field, value)
    page["go"].click()
    page.until(lambda: page.says("digits-status", said))
    assert page[field].get_attribute("aria-invalid") == "true"
    assert "digits-status" in page[field].get_attribute("aria-describedby").split()
    assert page.browser.switch_to.active_element == page[field]
    assert page["go"].text == "Start"


@pytest.mark.parametrize(("field", "value", "note"), [("hidden", "16", "hidden-note"), ("lr", "0.01", None)])
def test_a_setting_that_is_corrected_is_no_longer_blamed(
    field: str, value: str, note: str | None, page: Page
) -> None:
    page.fill(field, "0")
    page["go"].click()
    page.until(lambda: page[field].get_attribute("aria-invalid") == "true")
    page.fill(field, value)
    assert page[field].get_attribute("aria-invalid") is None
    assert page[field].get_attribute("aria-describedby") == note
    assert page["digits-status"].text == ""
    assert page.train(1) > 0


def test_a_bad_setting_does_not_keep_from_pausing(page: Page) -> None:
    page.fill("hidden", "512-512")
    page.fill("epochs", "1000")
    page["go"].click()
    page.until(lambda: page["go"].text == "Pause")
    page.fill("epochs", "0")
    page["go"].click()
    page.until(lambda: page.says("digits-status", "Paused"))


def test_enter_in_a_field_applies_it_and_does_not_pause(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.fill("hidden", "512-512")  # or they may end before the next key
    page.fill("epochs", "1000")
    page["lr"].send_keys(Keys.ENTER)
    page.until(lambda: page["go"].text == "Pause")
    page["optimizer"].send_keys("SGD")
    page.fill("lr", "1e6")
    page["lr"].send_keys(Keys.ENTER)
    page.until(lambda: page.says("digits-status", "Diverged"))


def test_a_training_that_diverges_stops_and_is_reported(page: Page) -> None:
    page["optimizer"].send_keys("SGD")
    page.fill("lr", "1e6")
    page.fill("epochs", "1000")
    page["go"].click()
    page.until(lambda: page.says("digits-status", "Diverged"))
    assert "Start over with a lower learning rate" in page["digits-status"].text
    assert float(page["epoch"].text) < 5
    assert page["go"].text == "Continue"
    page.draw(ZERO)
    page.until(lambda: "weights are no numbers" in page["verdict"].text)


def test_reads_digits_that_are_drawn(page: Page) -> None:
    assert page.train(60) >= 0.9
    for digit, stroke in ((0, ZERO), (7, SEVEN)):
        page.draw(stroke)
        page.until(lambda digit=digit: page.says("verdict", f"It is a {digit}"))
        probabilities = page.probabilities()
        assert int(np.argmax(probabilities)) == digit
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert max(page.seen()) > 200
        page["clear"].click()
        page.until(lambda: page.says("verdict", "Draw"))


def test_a_drawing_before_any_training_is_answered(page: Page) -> None:
    page.script("document.getElementById('pad').scrollIntoView({block: 'center'})")
    top = "return document.getElementById('pad').getBoundingClientRect().top"
    before = page.script(top)
    page.draw(ZERO)
    assert sum(predicted(page)) == pytest.approx(1, abs=1e-5)
    assert "The network is untrained" in page["verdict"].text
    assert page["go"].text == "Start"
    page.script("for (let i = 0; i < 3; ++i) await new Promise(requestAnimationFrame)")
    assert page.script(top) == before  # the pad stays under the pen
    page.train(1)
    page.until(lambda: "untrained" not in page["verdict"].text)


def test_a_drawing_that_no_network_can_answer_says_why(page: Page) -> None:
    page.fill("hidden", "many")
    page.draw(ZERO)
    page.until(lambda: page.says("verdict", "Hidden layers"))


def test_a_second_finger_draws_nothing(page: Page) -> None:
    touch = """
        const pad = document.getElementById("pad");
        pad.setPointerCapture = () => {};
        const box = pad.getBoundingClientRect();
        for (const [kind, pointerId, x, y] of args[0])
          pad.dispatchEvent(new PointerEvent(kind, {
            pointerId, button: 0, clientX: box.x + x * box.width, clientY: box.y + y * box.height}));
    """
    stroke = [("pointermove", 1, 0.3, y / 10) for y in range(3, 8)]
    page.script(touch, [("pointerdown", 1, 0.3, 0.2), *stroke, ("pointerup", 1, 0.3, 0.7)])
    predicted(page)
    alone = page.seen()
    page["clear"].click()
    other = [("pointermove", 2, 0.8, y / 10) for y in range(3, 8)]
    both = [event for pair in zip(stroke, other, strict=True) for event in pair]
    page.script(touch, [("pointerdown", 1, 0.3, 0.2), ("pointerdown", 2, 0.8, 0.2), *both])
    assert page.seen() == alone


def test_draws_by_keyboard_and_shows_test_images(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page["pad"].send_keys(Keys.SPACE, *[Keys.ARROW_DOWN] * 14, Keys.SPACE)
    predicted(page)
    ink = np.array(page.seen()).reshape(8, 8)
    assert (ink.max(axis=1) > 0).all()
    assert (ink[:, [0, 1, 6, 7]] == 0).all()
    page["pad"].send_keys(Keys.ESCAPE)
    page.until(lambda: page.says("verdict", "Draw"))
    page["sample"].click()
    page.until(lambda: "The label says" in page["verdict"].text)


def test_a_screen_reader_is_told_about_another_digit_alone(page: Page) -> None:
    assert page["pad"].get_attribute("role") == "application"
    assert "arrow keys move the pen" in page["pad"].accessible_name
    page.draw(ZERO)
    predicted(page)
    page.script("""
        const shown = document.getElementById("verdict");
        window.shown = [];
        new MutationObserver(() => window.shown.push(shown.textContent)).observe(shown, { childList: true });
        const said = document.getElementById("verdict-said");
        window.said = [said.textContent];
        new MutationObserver(() => window.said.push(said.textContent)).observe(said, { childList: true });
    """)
    for epochs in range(2, 22, 2):
        page.train(2)
        page.until(lambda e=epochs: float(page["epoch"].text) == e and page["go"].text == "Continue")
    page.until(lambda: page.says("verdict", "It is a 0"))
    shown, said = page.script("return [window.shown, window.said]")
    assert len(set(shown)) > len(said)
    assert all(before != after for before, after in pairwise(said))
    assert said[-1] == "It is a 0."


def test_a_finger_draws_a_digit(page: Page) -> None:
    page.script("document.getElementById('pad').scrollIntoView({block: 'center'})")
    box = page.script(
        "const b = document.getElementById('pad').getBoundingClientRect(); return [b.x, b.y, b.width]"
    )
    for kind, points in (("touchStart", SEVEN[:1]), *(("touchMove", [p]) for p in SEVEN), ("touchEnd", [])):
        touches = [{"x": box[0] + x * box[2], "y": box[1] + y * box[2]} for x, y in points]
        page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    predicted(page)
    ink = np.array(page.seen()).reshape(8, 8)
    assert (ink.max(axis=1) > 0).all()  # the stroke went on, and did not scroll the page


def test_weights_go_to_python(page: Page, downloads: Path) -> None:
    page.fill("hidden", "48-24")
    page.train(20)
    model = fastnn.nn.MLP([64, 48, 24, 10])
    model.load_state_dict(safetensors.load(saved(page, downloads / "mlp-64-48-24-10.safetensors")))
    data = load_digits()
    for stroke in (ZERO, SEVEN):
        page.draw(stroke)
        shown = predicted(page)
        assert shown == pytest.approx(python_probabilities(model, data, page.seen()), abs=1e-5)
        page["clear"].click()
        page.until(lambda: page.says("verdict", "Draw"))
    with torch.no_grad():
        logits = model((torch.from_numpy(data.test_images).float() - data.mean) / data.std)
    accuracy = (logits.argmax(1).numpy() == data.test_labels).mean()
    assert page["accuracy"].text == f"{accuracy:.2%}"


def test_weights_come_from_python(page: Page, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = fastnn.nn.MLP([64, 100, 10])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    file = tmp_path / "from python.safetensors"
    safetensors.save_file(model.state_dict(), file)
    page.draw(ZERO)
    before = predicted(page)
    page["file"].send_keys(str(file))
    page.until(lambda: page.says("weights-status", "Loaded 64-100-10: test accuracy"))
    expected = python_probabilities(model, load_digits(), page.seen())
    page.until(lambda: page.probabilities() != before)
    assert page["go"].text == "Continue"
    page.until(lambda: "untrained" not in page["verdict"].text)
    assert page.probabilities() == pytest.approx(expected, abs=1e-5)
    assert page["hidden-note"].text.startswith("64-100-10")
    assert page.train(40) > 0.85  # it continues from there


def test_weights_that_were_saved_are_loaded_back(page: Page, downloads: Path) -> None:
    page.fill("hidden", "40")
    page.train(10)
    accuracy = page["accuracy"].text
    page.draw(SEVEN)
    before = predicted(page)
    file = downloads / "mlp-64-40-10.safetensors"
    weights = saved(page, file)
    page["anew"].click()
    page.until(lambda: page["hidden"].is_enabled())
    page["clear"].click()
    page.train(1)
    page.draw(SEVEN)
    assert predicted(page) != before
    file.write_bytes(weights)
    page["file"].send_keys(str(file))
    page.until(lambda: page.says("weights-status", f"Loaded 64-40-10: test accuracy {accuracy}"))
    page.until(lambda: page.probabilities() == before)


def test_a_network_that_the_form_could_not_make_is_trained(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "deep.safetensors"
    safetensors.save_file(fastnn.nn.MLP([64, 2100, 16, 16, 16, 16, 10]).state_dict(), file)
    page.fill("hidden", "many")  # not used
    page["file"].send_keys(str(file))
    page.until(lambda: page.says("weights-status", "Loaded 64-2100-16-16-16-16-10"))
    assert page.train(1) > 0


@pytest.mark.parametrize(
    ("sizes", "said"),
    [([784, 128, 10], "must begin with 64"), ([64, 7], "end with 10"), (None, "no safetensors file")],
)
def test_a_file_that_does_not_fit_changes_nothing(
    sizes: list[int] | None, said: str, page: Page, tmp_path: Path, downloads: Path
) -> None:
    page.fill("hidden", "20")
    page.train(1)
    before = saved(page, downloads / "mlp-64-20-10.safetensors")
    file = tmp_path / "other.safetensors"
    if sizes:
        safetensors.save_file(fastnn.nn.MLP(sizes).state_dict(), file)
    else:
        file.write_text("something else")
    page["file"].send_keys(str(file))
    page.until(lambda: said in page["weights-status"].text)
    assert page["hidden-note"].text.startswith("64-20-10")
    assert saved(page, downloads / "mlp-64-20-10.safetensors") == before


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
        predicted(other)
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
