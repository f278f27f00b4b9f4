"""The weights of the network on the page: saved for Python, and loaded from there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastnn
from browser import SEVEN, ZERO, Page
from fastnn.data import Dataset
from fastnn.data.digits import load_digits

safetensors = pytest.importorskip("safetensors.torch")


def python_probabilities(model: torch.nn.Module, data: Dataset, seen: list[int]) -> list[float]:
    """The predictions of `model` for an image that the page shows."""
    pixels = torch.tensor(seen, dtype=torch.float32) * (data.white / 255)
    return torch.softmax(model(((pixels.round() - data.mean) / data.std)[None]), 1)[0].tolist()


def saved(page: Page, file: Path) -> bytes:
    """The file saved by the button, under the expected name."""
    file.unlink(missing_ok=True)
    page["save"].click()
    # The browser makes the file before it fills it.
    return page.until(lambda: file.read_bytes() if file.exists() else b"")


def test_weights_go_to_python(page: Page, downloads: Path) -> None:
    page.fill("hidden", "48-24")
    page.train(20)
    model = fastnn.nn.MLP([64, 48, 24, 10])
    model.load_state_dict(safetensors.load(saved(page, downloads / "mlp-64-48-24-10.safetensors")))
    data = load_digits()
    for stroke in (ZERO, SEVEN):
        page.draw(stroke)
        shown = page.predicted()
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
    before = page.predicted()
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
    before = page.predicted()
    file = downloads / "mlp-64-40-10.safetensors"
    weights = saved(page, file)
    page["anew"].click()
    page.until(lambda: page["hidden"].is_enabled())
    page["clear"].click()
    page.train(1)
    page.draw(SEVEN)
    assert page.predicted() != before
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
