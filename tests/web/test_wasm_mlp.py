"""JavaScript's Mlp against torch's, and the exchange of weights between the two."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from web_build import Node, WebError

safetensors = pytest.importorskip("safetensors.torch")

EPS = torch.finfo(torch.float32).eps


def torch_mlp(sizes: list[int], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.ReLU()] * (i > 0) + [nn.Linear(sizes[i], sizes[i + 1])]
    return nn.Sequential(*layers)


def parameters_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().flatten() for p in model.parameters()]


def read_parameters(depth: int) -> list[list[Any]]:
    return [[which, layer] for layer in range(depth) for which in ("weight", "bias")]


@pytest.mark.parametrize("seed", [0, 1, 2**31])
@pytest.mark.parametrize("sizes", [[1, 1], [784, 128, 10], [3, 300, 7, 2]], ids=str)
def test_begins_with_torchs_weights(sizes: list[int], seed: int, node: Node) -> None:
    got = node("mlp", sizes, {"seed": seed}, read_parameters(len(sizes) - 1))
    for ours, theirs in zip(got, parameters_of(torch_mlp(sizes, seed)), strict=True):
        assert torch.equal(ours, theirs)


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3, "betas": (0.8, 0.99), "eps": 1e-6}),
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd-momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd-dampening": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "sgd-nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
}


def web_optimizer(name: str) -> dict[str, Any]:
    options = {
        key.replace("weight_decay", "weightDecay"): value for key, value in OPTIMIZERS[name][1].items()
    }
    return {"name": name.partition("-")[0], **options}


def steps_of_torch(
    model: nn.Module, optimizer: str, loss: str, batches: list[tuple[Tensor, Tensor]]
) -> list[float]:
    cls, options = OPTIMIZERS[optimizer]
    stepper = cls(model.parameters(), **options)
    dtype = next(model.parameters()).dtype
    losses = []
    for x, y in batches:
        output = model(x.to(dtype))
        value = F.mse_loss(output, y.to(dtype)) if loss == "mse" else F.cross_entropy(output, y.long())
        stepper.zero_grad()
        value.backward()
        stepper.step()
        losses.append(value.item())
    return losses


def assert_as_exact(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """Within three times the total error of torch's float32, or a few eps: tests/step says why."""
    allowed = 3 * (theirs - exact).norm(1) + 4 * EPS * exact.norm(1)
    assert (ours - exact).norm(1) <= allowed


def batches_for(loss: str, sizes: list[int], rows: list[int]) -> list[tuple[Tensor, Tensor]]:
    def target(m: int) -> Tensor:
        return (
            torch.randn(m, sizes[-1]) if loss == "mse" else torch.randint(sizes[-1], (m,), dtype=torch.int32)
        )

    return [(torch.randn(m, sizes[0]), target(m)) for m in rows]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("sizes", [[100, 48, 32, 10], [7, 5], [33, 129, 3]], ids=str)
def test_trains_as_torch_does(sizes: list[int], loss: str, optimizer: str, node: Node) -> None:
    model = torch_mlp(sizes)
    exact = copy.deepcopy(model).double()
    batches = batches_for(loss, sizes, [64, 64, 64, 1, 33, 64, 7, 64])
    depth = len(sizes) - 1
    calls = [["trainStep", x, y] for x, y in batches]
    got = node(
        "mlp", sizes, {"loss": loss, "optimizer": web_optimizer(optimizer)}, calls + read_parameters(depth)
    )
    theirs, want = (
        torch.tensor(steps_of_torch(m, optimizer, loss, batches)).double() for m in (model, exact)
    )
    assert_as_exact(torch.tensor(got[: len(calls)]).double(), theirs, want)
    all_parameters = (got[len(calls) :], parameters_of(model), parameters_of(exact))
    assert_as_exact(*(torch.cat([p.double().flatten() for p in each]) for each in all_parameters))


def test_ignored_rows_do_not_change_the_result(node: Node) -> None:
    x, y = batches_for("cross_entropy", [9, 4], [12])[0]
    y[::3] = -100
    loss, weight = node(
        "mlp", [9, 4], {"optimizer": web_optimizer("sgd")}, [["trainStep", x, y], ["weight", 0]]
    )
    model = torch_mlp([9, 4]).double()
    (want,) = steps_of_torch(model, "sgd", "cross_entropy", [(x, y)])
    assert loss == pytest.approx(want, rel=1e-6)
    torch.testing.assert_close(weight.double(), parameters_of(model)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_rows_of_a_dataset_are_batches(loss: str, node: Node) -> None:
    """Bit for bit: named rows, of which the last batch has fewer, are the same steps."""
    sizes, (x, y) = [19, 17, 6], batches_for(loss, [19, 6], [50])[0]
    order = torch.randperm(50, dtype=torch.int32)
    data = {"dataset": {"x": x, "features": 19, ("targets" if loss == "mse" else "labels"): y}}
    options = {"loss": loss, "optimizer": web_optimizer("adam")}
    got = node("mlp", sizes, options, [["trainRows", data, order, 16], *read_parameters(2)])
    steps = [["trainStep", x[rows], y[rows]] for rows in order.long().split(16)]
    want = node("mlp", sizes, options, steps + read_parameters(2))
    assert got[0].tolist() == want[:4]
    for ours, theirs in zip(got[1:], want[4:], strict=True):
        assert torch.equal(ours, theirs)


def test_an_epoch_takes_every_row_once(node: Node) -> None:
    (x, y) = batches_for("cross_entropy", [5, 3], [50])[0]
    data = {"dataset": {"x": x, "features": 5, "labels": y}}
    still = {"optimizer": {"name": "sgd", "lr": 0}}  # the loss does not change
    calls = [["trainEpoch", data, {"batchSize": 7, "random": {"random": 3}}], ["lossAndAccuracy", data]]
    epoch, after = node("mlp", [5, 3], still, calls)
    assert epoch == pytest.approx(after["loss"], rel=1e-6)


def test_bytes_are_normalised(node: Node) -> None:
    images, labels = (
        torch.randint(256, (40, 30), dtype=torch.uint8),
        torch.randint(4, (40,), dtype=torch.int32),
    )
    x = (images.double() / 255 - 0.2) / 0.3
    scaling = {"mean": 0.2, "std": 0.3}
    model = torch_mlp([30, 16, 4]).double()
    want = model(x).detach()
    losses = steps_of_torch(model, "sgd", "cross_entropy", [(x, labels)] * 3)
    options = {"optimizer": web_optimizer("sgd")}
    calls = [["predict", images, scaling], *[["trainStep", images, labels, scaling]] * 3]
    predicted, *got = node("mlp", [30, 16, 4], options, calls)
    torch.testing.assert_close(predicted.view(40, 4).double(), want, rtol=1e-5, atol=1e-5)
    assert got == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 600])
def test_predictions_and_their_loss(rows: int, node: Node) -> None:
    sizes = [20, 33, 5]
    x, y = batches_for("cross_entropy", sizes, [rows])[0]
    y[: rows // 3] = -100
    data = {"dataset": {"x": x, "features": 20, "labels": y}}
    calls = [["predict", x], ["predict", data], ["probabilities", x], ["lossAndAccuracy", data]]
    predicted, again, probabilities, result = node("mlp", sizes, {}, calls)
    want = torch_mlp(sizes).double()(x.double()).detach()
    torch.testing.assert_close(predicted.view(rows, 5).double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, predicted)
    torch.testing.assert_close(probabilities.view(rows, 5).double(), want.softmax(1), rtol=1e-5, atol=1e-6)
    counted = y != -100
    assert result["loss"] == pytest.approx(F.cross_entropy(want, y.long()).item(), rel=1e-5, nan_ok=True)
    accuracy = (want.argmax(1) == y)[counted].double().mean().item()
    assert result["accuracy"] == pytest.approx(accuracy, nan_ok=True)


def test_the_mean_squared_error_of_a_dataset(node: Node) -> None:
    x, y = batches_for("mse", [20, 5], [300])[0]
    data = {"dataset": {"x": x, "features": 20, "targets": y}}
    (result,) = node("mlp", [20, 5], {"loss": "mse"}, [["lossAndAccuracy", data]])
    want = F.mse_loss(torch_mlp([20, 5]).double()(x.double()), y.double()).item()
    assert result == {"loss": pytest.approx(want, rel=1e-5), "accuracy": None}


@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_special_values_pass(special: float, node: Node) -> None:
    x, y = torch.randn(8, 20), torch.zeros(8, dtype=torch.int32)
    x[3, 4] = special
    loss, weight = node("mlp", [20, 6, 5], {}, [["trainStep", x, y], ["weight", 0]])
    assert math.isnan(loss)
    assert weight.isnan().any()


def test_the_learning_rate_changes_and_an_optimizer_begins_again(node: Node) -> None:
    x, y = batches_for("cross_entropy", [9, 4], [16])[0]
    step = ["trainStep", x, y]
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
    calls = [
        step,
        ["set lr", 0.5],
        ["lr"],
        step,
        ["setOptimizer", sgd],
        step,
        step,
        ["optimizer"],
        ["weight", 0],
    ]
    got = node("mlp", [9, 4], {"optimizer": sgd}, calls)
    assert got[2] == 0.5
    assert got[7] == {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "dampening": 0,
        "weightDecay": 0,
        "nesterov": False,
    }
    model = torch_mlp([9, 4]).double()
    for rates in ((0.1, 0.5), (0.1, 0.1)):
        optimizer = torch.optim.SGD(model.parameters(), lr=rates[0], momentum=0.9)
        for optimizer.param_groups[0]["lr"] in rates:
            optimizer.zero_grad()
            F.cross_entropy(model(x.double()), y.long()).backward()
            optimizer.step()
    torch.testing.assert_close(got[8].double(), parameters_of(model)[0], rtol=1e-5, atol=1e-6)


def test_the_line_of_the_tutorial(node: Node) -> None:
    step = ["trainStep", [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0], [-3.0, -1.0, 1.0, 3.0, 5.0, 7.0]]
    options = {"loss": "mse", "optimizer": {"name": "sgd", "lr": 0.01}}
    *_, y = node("mlp", [1, 1], options, [*[step] * 500, ["predict", [5.0]]])
    assert y.item() == pytest.approx(9, abs=0.1)


X, Y = torch.zeros(2, 3), torch.tensor([0, 1], dtype=torch.int32)
DATA = {"dataset": {"x": X, "features": 3, "labels": Y}}


@pytest.mark.parametrize(
    ("sizes", "options", "calls", "message"),
    [
        ([3], {}, [], "Error: Mlp: expected 2 to 33 sizes, got 1"),
        ([3] * 40, {}, [], "Error: Mlp: expected 2 to 33 sizes, got 40"),
        ([3, 0], {}, [], "RangeError: a size must be an integer of at least 1, got 0"),
        ([3, 1.5], {}, [], "RangeError: a size must be an integer of at least 1, got 1.5"),
        ([3, 2], {"loss": "hinge"}, [], "RangeError: loss must be one of cross_entropy, mse, got hinge"),
        (
            [3, 2],
            {"optimizer": {"name": "lion"}},
            [],
            "RangeError: optimizer must be one of adam, adamw, sgd",
        ),
        (
            [3, 2],
            {"optimizer": {"name": "adam", "momentum": 1}},
            [],
            "TypeError: adam has no option momentum",
        ),
        ([3, 2], {"optimizer": {"name": "adam", "lr": -1}}, [], "Error: Mlp: lr must be at least 0"),
        (
            [3, 2],
            {"optimizer": {"name": "adam", "betas": [1, 0]}},
            [],
            "Error: Mlp: betas must be at least 0",
        ),
        ([3, 2], {"optimizer": {"name": "sgd", "nesterov": True}}, [], "nesterov needs a momentum"),
        ([3, 2], {"seed": 0.5}, [], "TypeError: Random: seed must be an integer, got 0.5"),
        ([3, 2], {}, [["set lr", -1]], "Error: Mlp: lr must be at least 0"),
        ([3, 2], {}, [["trainStep", [], []]], "Error: Mlp: the batch is empty"),
        (
            [3, 2],
            {},
            [["trainStep", X, [0]]],
            "RangeError: labels has length 1, expected 2, one for each row",
        ),
        ([3, 2], {}, [["trainStep", X, [0, 2]]], "RangeError: Mlp: target 2 is out of bounds"),
        ([3, 2], {}, [["trainStep", X, [0, -1]]], "RangeError: Mlp: target -1 is out of bounds"),
        (
            [3, 2],
            {},
            [["trainStep", torch.zeros(5), [0, 1]]],
            "RangeError: x has 5 values, no multiple of 3 feat",
        ),
        ([3, 2], {}, [["trainStep", "text", [0]]], "TypeError: x must be an array of numbers"),
        ([3, 2], {"loss": "mse"}, [["trainStep", X, [0.0, 1.0]]], "RangeError: targets has 1 values a row"),
        (
            [3, 2],
            {"loss": "mse"},
            [["trainRows", DATA, [0], 1]],
            "TypeError: the loss mse needs a Dataset with",
        ),
        ([4, 2], {}, [["trainRows", DATA, [0], 1]], "RangeError: the rows have 3 features, the Mlp takes 4"),
        ([3, 2], {}, [["trainRows", DATA, [0, 2], 1]], "RangeError: Mlp: row 2 of 2"),
        ([3, 2], {}, [["trainRows", DATA, [0, -1], 1]], "RangeError: Mlp: row -1 of 2"),
        ([3, 2], {}, [["trainRows", DATA, [0], 0]], "RangeError: batchSize must be an integer of at least 1"),
        ([3, 2], {}, [["trainRows", X, [0], 1]], "TypeError: expected a Dataset"),
        ([3, 2], {}, [["weight", 1]], "RangeError: layer 1 of 1"),
        ([3, 2], {}, [["setBias", 0, [0.0]]], "RangeError: bias has 1 values, expected 2"),
        ([3, 2], {}, [["dispose"], ["predict", X]], "Error: the Mlp has been disposed of"),
    ],
)
def test_arguments_that_do_not_fit(
    sizes: list[Any], options: dict[str, Any], calls: list[list[Any]], message: str, node: Node
) -> None:
    with pytest.raises(WebError, match=message):
        node("mlp", sizes, options, calls)


def test_a_step_that_is_refused_changes_nothing(node: Node) -> None:
    """Even if the bad row or label comes late."""
    x, y = batches_for("cross_entropy", [3, 2], [10])[0]
    y[9] = 2
    data = {"dataset": {"x": x, "features": 3, "labels": y}}
    for rows in ([0, 1, 9], [0, 1, 10]):
        calls = [["trainRows", data, rows, 1]]
        with pytest.raises(WebError, match="RangeError"):
            node("mlp", [3, 2], {}, calls)


def test_memory_comes_back(node: Node) -> None:
    x, y = batches_for("cross_entropy", [784, 10], [64])[0]
    for count in range(30):
        node("mlp", [784, 512, 10], {}, [["trainStep", x, y], ["predict", x]])
        if count == 2:
            before = node("memoryBytes")
    assert node("memoryBytes") == before


@pytest.mark.parametrize("sizes", [[784, 128, 10], [1, 1], [5, 4, 3, 2]], ids=str)
def test_weights_go_to_python(sizes: list[int], node: Node, tmp_path: Path) -> None:
    x, y = batches_for("cross_entropy", sizes, [64])[0]
    if sizes[-1] == 1:
        y.zero_()
    *_, state, predicted = node("mlp", sizes, {}, [*[["trainStep", x, y]] * 3, ["stateDict"], ["predict", x]])
    path = tmp_path / "mlp.safetensors"
    path.write_bytes(node("writeSafetensors", state).numpy().tobytes())
    model = fastnn.nn.MLP(sizes)
    model.load_state_dict(safetensors.load_file(path))
    torch.testing.assert_close(model(x).detach().flatten(), predicted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [[784, 128, 10], [1, 1], [5, 4, 3, 2]], ids=str)
def test_weights_come_from_python(sizes: list[int], node: Node) -> None:
    model, x = fastnn.nn.MLP(sizes), torch.randn(64, sizes[0])
    state = node("readSafetensors", safetensors.save(dict(model.state_dict()), metadata={"epoch": "3"}))
    _, predicted = node("mlp", sizes, {"seed": 7}, [["loadStateDict", state], ["predict", x]])
    torch.testing.assert_close(model(x).detach().flatten(), predicted, rtol=1e-5, atol=1e-5)
    with pytest.raises(WebError, match=r"RangeError: the weights are those of an MLP of [0-9-]+, not 2-2"):
        node("mlp", [2, 2], {}, [["loadStateDict", state]])


def test_files_that_are_not_weights(node: Node) -> None:
    good = safetensors.save({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2)})
    for file, message in (
        (b"", "shorter than its header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "shorter than its header"),
        (good[:-1], "the safetensors file is damaged"),
        (good[:8] + b"!" + good[9:], "its header is no JSON"),
        ((10).to_bytes(8, "little") + b'{"a":null}', "a has dtype undefined"),
        (safetensors.save({"0.weight": torch.zeros(2).half()}), "0.weight has dtype F16, expected F32"),
    ):
        with pytest.raises(WebError, match=message):
            node("readSafetensors", file)
    for state in (
        {"a": torch.zeros(2), "b": torch.zeros(2)},
        {"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(3)},
        {},
    ):
        read = node("readSafetensors", safetensors.save(state))
        with pytest.raises(WebError, match=r"no MLP|layer 0 has a weight of shape 2,3"):
            node("mlp", [3, 2], {}, [["loadStateDict", read]])
