"""torch's own tools around a converted model: compiling, parallel wrappers, saving, quantization.

Checks that each gives what it gives without fastnn.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import fastnn

WITHOUT_FASTNN = """
import sys
sys.modules["fastnn"] = None  # as where it is not installed
import torch
torch.load(sys.argv[1], weights_only=False)
"""


def classifier() -> nn.Sequential:
    """The same network each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def check_compile(x: torch.Tensor, y: torch.Tensor) -> None:
    """Compile a converted model in one graph; train a model natively that is compiled for evaluation."""
    model = fastnn.convert(classifier())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), classifier()(x))

    model = classifier()
    evaluate = torch.compile(model, backend="aot_eager")
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters()))
    before = evaluate(x)
    seen = fastnn.explain(step, x, y)
    assert [d.reason for d in seen.decisions] == [None], seen
    assert not torch.equal(before, evaluate(x))
    torch.testing.assert_close(evaluate(x), model(x))
    print("compiled, without a graph break, and trained natively before it is called compiled")


def check_parallel(x: torch.Tensor, y: torch.Tensor, folder: Path) -> None:
    """Train under the wrappers."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    trained = []
    for wrap in (nn.Sequential, DataParallel, DistributedDataParallel):
        model = wrap(fastnn.convert(classifier()))
        optimizer = fastnn.optim.Adam(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        trained.append(dict(zip("0123", model.parameters(), strict=True)))
    torch.distributed.destroy_process_group()
    torch.testing.assert_close(trained[1], trained[0])
    torch.testing.assert_close(trained[2], trained[0])
    print("trained under DataParallel and DistributedDataParallel")


def check_saving(x: torch.Tensor, y: torch.Tensor, folder: Path) -> None:
    """Save weights, a whole model, and a step with its model."""
    model = fastnn.convert(classifier())
    torch.save(model.state_dict(), folder / "weights.pt")
    classifier().load_state_dict(torch.load(folder / "weights.pt"))

    torch.save(fastnn.revert(copy.deepcopy(model)), folder / "model.pt")  # loads where fastnn is not
    subprocess.run([sys.executable, "-c", WITHOUT_FASTNN, str(folder / "model.pt")], check=True)

    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters()))
    model, step = pickle.loads(pickle.dumps((model, step)))  # together, or the step has a model of its own
    before = model(x)
    step(x, y)
    assert step.model is model
    assert not torch.equal(before, model(x))
    print("saved and loaded")


def check_quantization(x: torch.Tensor) -> None:
    """Quantize the linear layers."""
    model = fastnn.convert(classifier())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that torchao is to take its place
        quantized = torch.ao.quantization.quantize_dynamic(fastnn.revert(model))
        assert type(quantized[0]) is torch.ao.nn.quantized.dynamic.Linear
        assert torch.equal(quantized(x), torch.ao.quantization.quantize_dynamic(classifier())(x))
    print("quantized")


def main() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(16, 32), torch.randint(10, (16,))
    with tempfile.TemporaryDirectory() as folder:
        check_compile(x, y)
        check_parallel(x, y, Path(folder))
        check_saving(x, y, Path(folder))
        check_quantization(x)


if __name__ == "__main__":
    main()
