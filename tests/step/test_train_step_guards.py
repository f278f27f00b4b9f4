"""What a training step refuses, runs eagerly, or must notice between calls."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from fastnn import _dispatch
from train_steps import (
    ELEMENTWISE,
    LOSSES,
    OPTIMIZERS,
    chain,
    classes_of,
    model_for,
    native,
    reason,
    started,
)


def test_disabled_and_reasons() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    with fastnn.disabled():
        assert reason(step, x, y) == "fastnn is disabled"
    native(step, x, y)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (torch.randn(7, 6), classes_of(7, 5), "the input is float32, the model float64"),
        (torch.randn(2, 7, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64), "not a matrix"),
        (torch.randn(0, 6, dtype=torch.float64), classes_of(0, 5), "the batch is empty"),
        (
            torch.randn(7, 6, dtype=torch.float64),
            classes_of(7, 5).int(),
            "the target: fastnn: kernels do not take tensors of dtype int32",
        ),
        (
            torch.randn(7, 6, dtype=torch.float64),
            classes_of(6, 5),
            "the target has shape (6,), class indices of this batch (7,)",
        ),
        (torch.randn(7, 3, dtype=torch.float64), classes_of(7, 5), "as many features"),
        (torch.randn(7, 6, dtype=torch.float64, requires_grad=True), classes_of(7, 5), "requires grad"),
        (torch.randn(7, 6, dtype=torch.complex128).conj().imag, classes_of(7, 5), "negated"),
    ],
)
def test_batches_that_run_eagerly(x: Tensor, y: Tensor, why: str) -> None:
    model = chain([6, 8, 5])
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    seen: list[Any] = []
    # torch's own error in the eager step is suppressed.
    with _dispatch.recording(seen.append), contextlib.suppress(RuntimeError, ValueError):
        step(x, y)
    reasons = [d.reason for d in seen if d.op == "chain_step"]
    assert why in str(reasons)


def _freeze(step: fastnn.TrainStep) -> None:
    step.model[0].weight.requires_grad_(False)


def _hook_module(step: fastnn.TrainStep) -> None:
    step.model[1].register_forward_hook(lambda *_: None)


def _hook_parameter(step: fastnn.TrainStep) -> None:
    step.model[0].weight.register_hook(lambda g: g * 2)


def _hook_accumulation(step: fastnn.TrainStep) -> None:
    step.model[0].weight.register_post_accumulate_grad_hook(lambda _: None)


def _hook_optimizer(step: fastnn.TrainStep) -> None:
    step.optimizer.register_step_pre_hook(lambda *_: None)


def _hook_loss(step: fastnn.TrainStep) -> None:
    step.loss.register_forward_hook(lambda *_: None)


def _replace_step(step: fastnn.TrainStep) -> None:
    usual = step.optimizer.step
    step.optimizer.step = lambda *a: usual(*a)  # type: ignore[method-assign]


def _insert_module(step: fastnn.TrainStep) -> None:
    step.model.append(nn.Dropout(0.5))


def _other_loss(step: fastnn.TrainStep) -> None:
    step.loss = nn.MultiMarginLoss()


def _loss_of_log_softmax(step: fastnn.TrainStep) -> None:
    step.loss = nn.NLLLoss()


def _log_softmax(step: fastnn.TrainStep) -> None:
    step.model.append(nn.LogSoftmax(1))


def _no_reduction(step: fastnn.TrainStep) -> None:
    step.loss.reduction = "none"


def _more_parameters(step: fastnn.TrainStep) -> None:
    step.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


def _capturable(step: fastnn.TrainStep) -> None:
    step.optimizer.param_groups[0]["differentiable"] = True


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_freeze, "frozen"),
        (_hook_module, "hook"),
        (_hook_parameter, "a parameter has a hook"),
        (_hook_accumulation, "a parameter has a hook"),
        (_hook_optimizer, "step hook"),
        (_hook_loss, "hook"),
        (_replace_step, "step is replaced"),
        (_insert_module, "Dropout"),
        (
            _other_loss,
            "no native loss for MultiMarginLoss: native are CrossEntropyLoss, NLLLoss, MSELoss, L1Loss",
        ),
        (
            _loss_of_log_softmax,
            "NLLLoss is native only if the model ends in log_softmax, and this one does not",
        ),
        (_log_softmax, "after log_softmax only NLLLoss is native, not CrossEntropyLoss"),
        (_no_reduction, "not reduced"),
        (_more_parameters, "parameters that the chain lacks"),
        (_capturable, "differentiable"),
    ],
)
def test_what_is_watched_or_changed_runs_eagerly(
    change: Callable[[fastnn.TrainStep], None], why: str
) -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    native(step, x, y)
    change(step)
    seen: list[Any] = []
    # torch's own error in the eager step is suppressed.
    with _dispatch.recording(seen.append), contextlib.suppress(RuntimeError):
        step(x, y)
    assert why in next(d.reason for d in seen if d.op == "chain_step")


@pytest.mark.parametrize(
    ("make", "option"),
    [
        ("adam", "capturable"),
        ("rmsprop", "capturable"),
        ("rmsprop", "differentiable"),
        ("adagrad", "differentiable"),
    ],
)
def test_options_that_are_left_to_torch(make: str, option: str) -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS[make], x, y)
    step.optimizer.param_groups[0][option] = True
    seen: list[Any] = []
    # torch's own error in the eager step is suppressed.
    with _dispatch.recording(seen.append), contextlib.suppress(RuntimeError, AssertionError):
        step(x, y)
    assert f"{option}=True is set" in next(d.reason for d in seen if d.op == "chain_step")


@pytest.mark.parametrize(
    ("make", "key"),
    [
        ("adam", "exp_avg_sq"),
        ("sgd-momentum", "momentum_buffer"),
        ("rmsprop", "square_avg"),
        ("rmsprop-momentum", "momentum_buffer"),
        ("rmsprop-centered", "grad_avg"),
        ("adagrad", "sum"),
    ],
)
def test_state_of_another_layout_runs_eagerly(make: str, key: str) -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS[make], x, y)
    state = step.optimizer.state[step.model[0].weight]
    state[key] = state[key].t().contiguous().t()
    assert f"{key} has other strides" in reason(step, x, y)
    state[key] = state[key].contiguous()
    native(step, x, y)


def test_momentum_that_the_state_lacks_is_torchs_error() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["rmsprop"], x, y)
    step.optimizer.param_groups[0]["momentum"] = 0.9
    kept = [p.detach().clone() for p in step.model.parameters()]
    with pytest.raises(KeyError, match="momentum_buffer"):
        step(x, y)
    assert all(torch.equal(p, q) for p, q in zip(step.model.parameters(), kept, strict=True))


@pytest.mark.parametrize("base", [torch.optim.RMSprop, fastnn.optim.RMSprop, torch.optim.Adagrad])
def test_an_optimizer_of_the_users_runs_eagerly(base: Any) -> None:
    class Own(base):
        pass

    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), Own, x, y)
    assert reason(step, x, y) == "no native update for Own"


def test_a_removed_hook_lets_it_run_natively_again() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    calls: list[int] = []
    hook = step.model[1].register_forward_hook(lambda *_: calls.append(1))
    reason(step, x, y)
    hook.remove()
    for _ in range(8):
        step(x, y)
    native(step, x, y)
    assert len(calls) == 1
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        hook = getattr(step.model[0].weight, register)(lambda *_: None)
        assert reason(step, x, y) == "a parameter has a hook"
        hook.remove()
        native(step, x, y)


def test_a_replaced_parameter_is_seen() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    old = step.model[0].weight
    kept = old.detach().clone()
    step.model[0].weight = nn.Parameter(torch.randn_like(old))
    assert "parameters that the chain lacks" in reason(step, x, y)
    assert torch.equal(old, kept)


def test_a_changed_dtype_is_seen() -> None:
    model = chain([6, 8, 5])
    y = classes_of(7, 5)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    native(step, torch.randn(7, 6, dtype=torch.float64), y)
    model.float()
    assert native(step, torch.randn(7, 6), y).dtype == torch.float32


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.float32)


def _of_one_column(t: Tensor) -> Tensor:
    return t[:, :1]


def _of_one_row(t: Tensor) -> Tensor:
    return t[:1]


def _vector(t: Tensor) -> Tensor:
    return t[:, 0]


def _of_more_dimensions(t: Tensor) -> Tensor:
    return t[None]


def _differentiable_target(t: Tensor) -> Tensor:
    return t.clone().requires_grad_()


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_wide, "the target is float32, the model float64"),
        (_of_one_column, "the target has shape (7, 1), the output (7, 5)"),
        (_of_one_row, "the target has shape (1, 5), the output (7, 5)"),
        (_vector, "the target has shape (7,), the output (7, 5)"),
        (_of_more_dimensions, "the target has shape (1, 7, 5), the output (7, 5)"),
        (_differentiable_target, "the target requires grad"),
    ],
)
@pytest.mark.parametrize("name", [*ELEMENTWISE, "probabilities"])
def test_targets_that_run_eagerly(name: str, change: Callable[[Tensor], Tensor], why: str) -> None:
    case = LOSSES[name]
    model = chain([6, 8, 5])
    step = fastnn.TrainStep(model, case.make(5), OPTIMIZERS["sgd"](model.parameters()))
    x, y = torch.randn(7, 6, dtype=torch.float64), case.target(7, 5)
    native(step, x, y)
    seen: list[Any] = []
    # torch's own error in the eager step is suppressed.
    with _dispatch.recording(seen.append), contextlib.suppress(RuntimeError, ValueError):
        step(x, change(y))
    assert next(d.reason for d in seen if d.op == "chain_step") == why


@pytest.mark.parametrize(
    ("loss", "options", "why"),
    [
        (nn.SmoothL1Loss(), {"beta": -1.0}, "beta=-1.0"),
        (nn.SmoothL1Loss(), {"beta": float("nan")}, "beta=nan"),
        (nn.HuberLoss(), {"delta": 0.0}, "delta=0.0"),
        (nn.HuberLoss(), {"delta": float("inf")}, "beta or delta of the loss is nearly 0 or infinite"),
        (nn.SmoothL1Loss(), {"beta": 1e-320}, "beta or delta of the loss is nearly 0 or infinite"),
        (nn.L1Loss(), {"reduction": ["mean"]}, "an option of the loss: unhashable"),
        (nn.CrossEntropyLoss(), {"label_smoothing": torch.tensor(0.1)}, "label_smoothing=0.1"),
        (nn.HuberLoss(), {"delta": "1"}, "delta='1'"),
        (nn.L1Loss(), {"reduction": "none"}, "the loss is not reduced to one number"),
        (nn.BCEWithLogitsLoss(), {"reduction": "most"}, "reduction='most'"),
        (nn.BCEWithLogitsLoss(), {"weight": torch.ones(5)}, "a weight of the loss has another dtype"),
        (nn.BCEWithLogitsLoss(), {"weight": torch.ones(7, 5).double()}, "neither a number nor one for each"),
        (nn.BCEWithLogitsLoss(), {"weight": torch.ones(7, 1).double()}, "neither a number nor one for each"),
        (nn.BCEWithLogitsLoss(), {"pos_weight": torch.ones(1, 5).double()}, "neither a number nor one for"),
        (
            nn.BCEWithLogitsLoss(),
            {"pos_weight": torch.ones(5).double().requires_grad_()},
            "a weight of the loss requires grad",
        ),
        (nn.CrossEntropyLoss(), {"ignore_index": 2}, "ignore_index with class probabilities"),
        (nn.CrossEntropyLoss(), {"weight": torch.ones(5)}, "a weight of the loss has another dtype"),
        (
            nn.CrossEntropyLoss(),
            {"weight": torch.ones(1).double()},
            "the class weights do not fit the classes",
        ),
    ],
)
def test_options_that_run_eagerly(loss: Any, options: dict[str, Any], why: str) -> None:
    model = chain([6, 8, 5])
    step = fastnn.TrainStep(model, loss, OPTIMIZERS["sgd"](model.parameters()))
    x, y = torch.randn(7, 6, dtype=torch.float64), LOSSES["probabilities"].target(7, 5)
    native(step, x, y)
    for name, value in options.items():
        setattr(loss, name, value)
    seen: list[Any] = []
    # torch's own error in the eager step is suppressed.
    with _dispatch.recording(seen.append), contextlib.suppress(Exception):
        step(x, y)
    assert why in next(d.reason for d in seen if d.op == "chain_step")


def test_probabilities_are_not_classes_of_nll_loss() -> None:
    model = model_for(LOSSES["nll"], [6, 8, 5])
    step = fastnn.TrainStep(model, nn.NLLLoss(), OPTIMIZERS["sgd"](model.parameters()))
    x, y = torch.randn(7, 6, dtype=torch.float64), LOSSES["probabilities"].target(7, 5)
    seen: list[Any] = []
    with (
        _dispatch.recording(seen.append),
        pytest.raises(RuntimeError, match="0D or 1D target tensor expected"),  # torch's own
    ):
        step(x, y)
    assert seen[0].reason == "the target holds no class indices of int64 or uint8"
    y = classes_of(7, 5)
    native(step, x, y)
    y[2] = 5
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        step(x, y)


class Backwards(nn.Sequential):
    def __iter__(self) -> Any:
        return reversed(list(self._modules.values()))


def test_a_sequential_with_an_order_of_its_own_runs_eagerly() -> None:
    model = Backwards(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    reason(step, torch.randn(4, 5), classes_of(4, 5))


def test_groups_that_share_memory_run_eagerly() -> None:
    memory = torch.randn(36, dtype=torch.float64)
    model = chain([6, 6, 6], bias=False)
    model[0].weight, model[2].weight = (nn.Parameter(memory.view(6, 6)) for _ in range(2))
    groups = [{"params": [p]} for p in model.parameters()]
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(groups, lr=0.1))
    assert "share memory" in reason(step, torch.randn(4, 6, dtype=torch.float64), classes_of(4, 6))


def test_gradients_kept_in_shared_memory_run_eagerly() -> None:
    model = chain([6, 8])
    memory = torch.zeros(48, dtype=torch.float64)
    x, y = torch.randn(8, 6, dtype=torch.float64), classes_of(8, 8)
    step = fastnn.TrainStep(
        model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()), keep_grad=True
    )
    model[0].weight.grad, model[0].bias.grad = memory.view(8, 6), memory[:8]
    assert "share memory" in reason(step, x, y)
    kept = x.clone()
    model[0].weight.grad = x
    reason(step, x, y)
    assert torch.equal(x, kept)


def test_two_threads_in_one_step() -> None:
    """They wait for each other, even if one step runs eagerly: with a rate of 0 every loss is known."""
    model = chain([300, 400, 5], dtype=torch.float32)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.0))
    batches = [(torch.randn(m, 300), classes_of(m, 5)) for m in (64, 256)]
    batches.append((batches[0][0].clone().requires_grad_(), batches[0][1]))  # runs eagerly
    expected = [F.cross_entropy(model(x), y).item() for x, y in batches]
    wrong: list[float] = []

    def run(i: int) -> None:
        for _ in range(40):
            loss = step(*batches[i]).item()
            if abs(loss - expected[i]) > 1e-4:
                wrong.append(loss)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inference_mode_runs_eagerly() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    seen: list[Any] = []
    with torch.inference_mode(), _dispatch.recording(seen.append), contextlib.suppress(RuntimeError):
        step(x, y)
    assert "inference mode" in seen[0].reason
    with torch.no_grad():
        native(step, x, y)


def test_memory_shared_with_a_parameter_runs_eagerly() -> None:
    x, y = torch.randn(6, 6, dtype=torch.float64), classes_of(6, 6)
    model = chain([6, 6])
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    native(step, x, y)
    assert "share memory" in reason(step, model[0].weight.detach(), y)


LBFGS = torch.optim.LBFGS([nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"loss": "mse"}, TypeError, "loss must be callable, got str"),
        ({"optimizer": None}, TypeError, "optimizer must be a torch.optim.Optimizer, got NoneType"),
        ({"optimizer": LBFGS}, TypeError, "once per step, got LBFGS, which does so several times"),
        ({"max_norm": -1.0}, ValueError, "max_norm must be at least 0, got -1.0"),
        ({"max_norm": "1"}, TypeError, "max_norm must be a number, got str"),
        ({"std": 0.0}, ValueError, "std must be finite and not 0, got 0.0"),
        ({"std": float("nan")}, ValueError, "std must be finite and not 0, got nan"),
        ({"mean": float("inf")}, ValueError, "mean must be finite, got inf"),
        ({"loss": nn.MSELoss}, TypeError, "loss must be an instance, got the class MSELoss"),
        ({"keep_grad": 1}, TypeError, "keep_grad must be a bool, got int"),
        ({"mean": None}, TypeError, "mean must be a number, got NoneType"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    model = chain([6, 5])
    good = {"model": model, "loss": nn.MSELoss(), "optimizer": OPTIMIZERS["sgd"](model.parameters())}
    with pytest.raises(error, match=text):
        fastnn.TrainStep(**{**good, **arguments})
    step = fastnn.TrainStep(**good)
    for name, value in arguments.items():
        with pytest.raises(error, match=text):
            setattr(step, name, value)


def test_a_misspelt_option_and_a_foreign_optimizer() -> None:
    model = chain([6, 5])
    step = fastnn.TrainStep(model, nn.MSELoss(), OPTIMIZERS["sgd"](model.parameters()))
    with pytest.raises(AttributeError, match="no attribute 'max_nrom'; it has model, loss"):
        step.max_nrom = 0.5  # type: ignore[attr-defined]
    assert repr(step).startswith("TrainStep(Sequential, MSELoss, SGD, max_norm=None, keep_grad=False")
    with pytest.raises(ValueError, match="none of the model's parameters"):
        fastnn.TrainStep(chain([6, 5]), nn.MSELoss(), step.optimizer)


def test_layers_that_the_optimizer_lacks_keep_no_gradient() -> None:
    model = chain([6, 8, 5])
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"](model[2].parameters()))
    assert "does not have every parameter" in reason(step, x, y)
    assert all(p.grad is None for p in model.parameters())


def test_a_target_that_requires_grad_gets_its_gradient() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    step = started(chain([6, 5]), nn.MSELoss(), OPTIMIZERS["sgd"], x, y)
    assert "the target requires grad" in reason(step, x, y.requires_grad_())
    assert y.grad is not None


def test_a_model_that_holds_its_step_is_collected() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    model = chain([6, 8, 5])
    model.step = started(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"], x, y, keep_grad=True)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
