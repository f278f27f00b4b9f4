"""The page in a real browser: what a user does with it, by mouse and keyboard."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from browser import SEVEN, ZERO, Page


def test_it_learns_a_line(page: Page) -> None:
    assert page["line-y"].text == "?"
    page["line-train"].click()
    page.until(lambda: page["line-train"].text == "Train again")
    # No number: not trained yet, or no x is entered at this moment.
    y = page.until(lambda: page["line-y"].text.strip("?"))
    assert float(y) == pytest.approx(9, abs=0.1)
    page.fill("line-x", "-10")
    page.until(lambda: float(page["line-y"].text.strip("?") or "nan") == pytest.approx(-21, abs=0.3))


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
    first = page.predicted()
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
    assert page.predicted() != pytest.approx(first, abs=1e-3)


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
    assert sum(page.predicted()) == pytest.approx(1, abs=1e-5)
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
    page.predicted()
    alone = page.seen()
    page["clear"].click()
    other = [("pointermove", 2, 0.8, y / 10) for y in range(3, 8)]
    both = [event for pair in zip(stroke, other, strict=True) for event in pair]
    page.script(touch, [("pointerdown", 1, 0.3, 0.2), ("pointerdown", 2, 0.8, 0.2), *both])
    assert page.seen() == alone


def test_draws_by_keyboard_and_shows_test_images(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page["pad"].send_keys(Keys.SPACE, *[Keys.ARROW_DOWN] * 14, Keys.SPACE)
    page.predicted()
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
    page.predicted()
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
    page.predicted()
    ink = np.array(page.seen()).reshape(8, 8)
    assert (ink.max(axis=1) > 0).all()  # the stroke went on, and did not scroll the page
