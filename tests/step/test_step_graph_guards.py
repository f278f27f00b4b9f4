"""What a captured training step must notice between calls, refuse or run eagerly."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn import _dispatch
from fastnn._dispatch import Unsupported
from fastnn.capture import cuda_graph
from fastnn.step.graphs import CAPTURE_AFTER, MOST_GRAPHS
from step_graphs import Batch, Graphs, Pair, adam, classes, reason
from train_steps import OPTIMIZERS, Kept, Optimizer, accumulator, chain

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def test_states_are_saved_and_loaded_between_calls(graphs: Graphs) -> None:
    pair = Pair(graphs, make=lambda p: adam(p, amsgrad=True))
    pair.capture(classes(7))
    saved = [copy.deepcopy(o.state_dict()) for o in (pair.optimizer, pair.theirs)]
    weights = copy.deepcopy(pair.twin.state_dict())
    for _ in range(3):
        pair.replay(classes(7))
    for model in (pair.model, pair.twin):  # written in place
        model.load_state_dict(weights)
    pair.replay(classes(7))
    for model, optimizer, state in zip(
        (pair.model, pair.twin), (pair.optimizer, pair.theirs), saved, strict=True
    ):
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    pair.again(classes(7))
    assert float(pair.optimizer.state[pair.model[0].weight]["step"]) > 3


def test_a_state_that_is_set_between_calls(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))

    def set_step(optimizer: torch.optim.Optimizer) -> None:
        for state in optimizer.state.values():
            state["step"].fill_(100)
            state["exp_avg"].mul_(0.5)

    pair.both(set_step)
    pair.replay(classes(7))

    def replace(optimizer: torch.optim.Optimizer) -> None:
        for state in optimizer.state.values():
            state["exp_avg_sq"] = state["exp_avg_sq"] * 2

    pair.both(replace)
    pair.again(classes(7))
    pair.both(lambda optimizer: optimizer.state.clear())
    pair.again(classes(7))


def test_memory_that_is_replaced(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    for model in (pair.model, pair.twin):
        model[0].weight.data = model[0].weight.data * 2
    pair.again(classes(7))
    for optimizer in (pair.optimizer, pair.theirs):
        state = next(iter(optimizer.state.values()))
        state["exp_avg"].data = state["exp_avg"].data * 2
    pair.again(classes(7))


def test_a_layer_that_is_frozen(graphs: Graphs) -> None:
    pair = Pair(graphs, chain([20, 9, 8, 5]), max_norm=0.05)
    for model in (pair.model, pair.twin):
        model[0].requires_grad_(False)
    pair.capture(classes(7))
    pair.replay(classes(7))
    for model in (pair.model, pair.twin):
        model[0].requires_grad_(True)
        model[2].bias.requires_grad_(False)
    pair.again(classes(7))
    pair.replay(classes(7))


def test_a_replaced_parameter(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    value = torch.randn(33, dtype=torch.float64)
    for model in (pair.model, pair.twin):
        model[0].bias = nn.Parameter(value.to(model[0].weight.device))  # not updated by any optimizer
    pair.again(classes(7))


def test_other_settings_of_the_step(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    pair.step.max_norm = pair.max_norm = 0.01
    pair.again(classes(7))
    pair.step.keep_grad = True
    pair.again(classes(7))
    pair.step.loss.label_smoothing = pair.loss.label_smoothing = 0.1
    pair.again(classes(7))


def test_counts_of_kinds_are_bounded(graphs: Graphs) -> None:
    pair = Pair(graphs)
    for size in range(1, 100):
        pair.take(classes(size))
    assert len(pair.step._runner.planned.find().graphs._seen) <= 64
    assert graphs.captures == 0


def _module_hook(pair: Pair) -> Any:
    return pair.model[1].register_forward_hook(lambda *_: None)


def _parameter_hook(pair: Pair) -> Any:
    return pair.model[0].weight.register_hook(lambda g: g)


def _accumulation_hook(pair: Pair) -> Any:
    return pair.model[0].weight.register_post_accumulate_grad_hook(lambda _: None)


def _accumulator_hook(pair: Pair) -> Any:
    return Kept(accumulator(pair.model[2].bias), "register_prehook", lambda *_: None)


def _optimizer_hook(pair: Pair) -> Any:
    return pair.optimizer.register_step_pre_hook(lambda *_: None)


@pytest.mark.parametrize(
    "add", [_module_hook, _parameter_hook, _accumulation_hook, _accumulator_hook, _optimizer_hook]
)
def test_a_hook_that_comes_later(add: Callable[[Pair], Any], graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    hook = add(pair)
    assert "hook" in str(pair.take(classes(7)))
    hook.remove()
    for _ in range(12):
        pair.take(classes(7))
    pair.replay(classes(7))


def test_hooks_for_saved_tensors(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert pair.take(classes(7)) == "a hook for saved tensors is set"
    pair.replay(classes(7))


def test_a_gradient_of_a_parameter_that_only_the_optimizer_has(graphs: Graphs) -> None:
    pair = Pair(graphs)
    others = [nn.Parameter(torch.ones(3, dtype=torch.float64, device=d)) for d in ("cpu", graphs.device)]
    for optimizer, other in zip((pair.theirs, pair.optimizer), others, strict=True):
        optimizer.add_param_group({"params": [other]})
    pair.capture(classes(7))
    before = others[1].detach().clone()
    pair.replay(classes(7))
    assert torch.equal(others[1], before)
    others[1].grad = torch.ones_like(before)
    for _ in range(8):
        x, y = (t.to(graphs.device) for t in classes(7))
        assert reason(pair.step, x, y) is not None
        assert (others[1] < before).all()
        before = others[1].detach().clone()
    assert others[1].grad is not None


def test_the_steps_before_a_capture_are_no_surprise(graphs: Graphs) -> None:
    pair = Pair(graphs, native=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fastnn.EagerStepWarning)
        pair.capture(classes(7))
        pair.replay(classes(7))
    pair.step.native = False
    pair.model.append(nn.Dropout(0.0).to(graphs.device))
    x, y = (t.to(graphs.device) for t in classes(7))
    with pytest.warns(fastnn.EagerStepWarning, match="Dropout"):
        pair.step(x, y)


def test_a_class_out_of_range(graphs: Graphs) -> None:
    pair = Pair(graphs, loss=fastnn.nn.CrossEntropyLoss())
    pair.capture(classes(7))
    x, y = (t.to(graphs.device) for t in classes(7))
    assert pair.step(x, y.clone().fill_(5)).isnan()
    if graphs.device == "cuda":
        torch.cuda.synchronize()
    weight, steps = pair.model[0].weight.clone(), float(next(iter(pair.optimizer.state.values()))["step"])
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        pair.step(x, y)
    torch.testing.assert_close(pair.model[0].weight, weight, rtol=0, atol=0, equal_nan=True)
    assert float(next(iter(pair.optimizer.state.values()))["step"]) == steps
    assert reason(pair.step, x, y) is None


def test_a_class_out_of_range_before_the_capture(graphs: Graphs) -> None:
    pair = Pair(graphs, loss=fastnn.nn.CrossEntropyLoss())
    x, y = (t.to(graphs.device) for t in classes(7))
    for _ in range(CAPTURE_AFTER - 1):
        pair.step(x, y)
    pair.step(x, y.clone().fill_(5))
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        pair.step(x, y)
    assert graphs.captures == 1
    assert reason(pair.step, x, y) is None


def test_a_bad_index_raises_at_once_under_fastnn_check(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(graphs, loss=fastnn.nn.CrossEntropyLoss())
    pair.capture(classes(7))
    monkeypatch.setattr(_dispatch, "check_at_once", True)
    assert pair.take(classes(7)) == "FASTNN_CHECK is set"
    x, y = (t.to(graphs.device) for t in classes(7))
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        pair.step(x, y.fill_(5))


def test_a_capture_that_fails(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: Any, rehearse: Callable[[], object], settled: Any, body: Any) -> Any:
        rehearse()
        raise RuntimeError("CUDA error: no graphs today\nand more of it")

    monkeypatch.setattr(cuda_graph, "capture", fails)
    pair = Pair(graphs, max_norm=0.05)
    for _ in range(CAPTURE_AFTER):
        pair.take(classes(7))
    assert pair.take(classes(7)) == "it cannot be captured: CUDA error: no graphs today"
    monkeypatch.setattr(cuda_graph, "capture", None)  # must not be tried again
    assert pair.take(classes(7)) == "it cannot be captured: CUDA error: no graphs today"


def test_captures_of_other_kinds_that_fail(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no graphs today")

    monkeypatch.setattr(cuda_graph, "capture", fails)
    pair = Pair(graphs)
    for size in range(1, 1 + MOST_GRAPHS):
        for _ in range(1 + CAPTURE_AFTER):
            why = pair.take(classes(size))
        assert why == "it cannot be captured: no graphs today"
    why = pair.take(classes(9))
    assert why == "captures of other kinds of batches have failed: it cannot be captured: no graphs today"


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more of it"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[:24])
def test_a_capture_that_lacks_memory_is_tried_again(
    error: RuntimeError, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For more kinds of batches than can be captured, with twice as many calls in between each time."""
    capture, tried = cuda_graph.capture, []

    def fails(*_: object) -> None:
        tried.append(error)
        raise error

    monkeypatch.setattr(cuda_graph, "capture", fails)
    pair = Pair(graphs)
    sizes = range(1, 3 + MOST_GRAPHS)
    for size in sizes:
        tried.clear()
        for call in range(1, 9):
            why = str(pair.take(classes(size)))
            assert len(tried) == (call >= 3) + (call >= 8)  # after 2 calls, and after 4 more
            assert ("ran out of memory" in why) == (call >= 3)
            assert "other kinds" not in why
        assert why.startswith("a capture ran out of memory, the next one is after 8 such calls: CUDA")
        assert "\n" not in why
    monkeypatch.setattr(cuda_graph, "capture", capture)
    for _ in range(8):
        assert "ran out of memory" in str(pair.take(classes(1)))
    pair.replay(classes(1))
    assert graphs.captures == 1


def test_no_capture_after_one_that_broke(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    device = pair.model[0].weight.device
    monkeypatch.setattr(cuda_graph, "_failed", {device: "CUDA error: no graphs today"})
    for _ in range(4):
        assert pair.take(classes(8)) == f"a capture has failed on {device}: CUDA error: no graphs today"
    pair.replay(classes(7))
    assert graphs.captures == 1


def test_an_autograd_graph_that_is_kept(graphs: Graphs) -> None:
    pair = Pair(graphs)
    kept = pair.model(classes(7)[0].to(graphs.device)).sum()  # its nodes belong to the current stream
    pair.capture(classes(7))
    pair.replay(classes(7))
    assert kept.requires_grad


@pytest.mark.parametrize("fails", [False, True])
def test_layers_have_their_parameters_back(
    fails: bool, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chain([20, 8, 5])
    model[-1].bias.requires_grad_(False)
    pair = Pair(graphs, model)
    params = list(pair.model.parameters())
    differentiated: list[Tensor] = []
    grad = torch.autograd.grad

    def spy(loss: Tensor, inputs: list[Tensor]) -> Any:
        differentiated.extend(inputs)
        assert pair.model[-1].bias is params[-1]
        if fails:
            raise RuntimeError("no gradients today")
        return grad(loss, inputs)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    for _ in range(CAPTURE_AFTER):
        pair.take(classes(7))
    why = pair.take(classes(7))
    assert why == ("it cannot be captured: no gradients today" if fails else None)
    assert len(differentiated) == (3 if fails else 6)
    assert not {id(p) for p in params} & {id(leaf) for leaf in differentiated}
    assert [id(p) for p in pair.model.parameters()] == [id(p) for p in params]
    assert pair.take(classes(7)) == why


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "convert",
    [
        Tensor.to_sparse_csr,
        Tensor.to_sparse_coo,
        lambda x: torch.nested.nested_tensor(list(x)),
        lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    ],
    ids=["csr", "coo", "nested", "jagged"],
)
def test_tensors_without_strides(convert: Callable[[Tensor], Tensor], graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    x, y = (t.to(graphs.device) for t in classes(7))
    plan = pair.step._runner.planned.find()
    odd = convert(x)
    words = "not strided" if type(odd) is Tensor else "not a plain tensor"
    for batch in ((odd, y), (x, odd)):
        with pytest.raises(Unsupported, match=words):
            plan.graphs.take(plan, *batch)


def test_a_graph_of_the_users_is_left_alone(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    monkeypatch.setattr(cuda_graph, "why_not_now", lambda _: "a CUDA graph is being captured already")
    assert pair.take(classes(7)) == "a CUDA graph is being captured already"


def test_on_another_stream_it_is_captured_again(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    monkeypatch.setattr(cuda_graph, "current_stream", lambda _: "another stream")
    pair.again(classes(7))


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (
            (torch.randn(7, 20, dtype=torch.float64, requires_grad=True), torch.zeros(7).long()),
            "requires grad",
        ),
        ((nn.Parameter(torch.randn(7, 20).double(), False), torch.zeros(7).long()), "not a plain tensor"),
    ],
)
def test_batches_that_run_eagerly(batch: Batch, why: str, graphs: Graphs) -> None:
    pair = Pair(graphs)
    x, y = batch
    x = x.detach().to(graphs.device).requires_grad_(x.requires_grad)
    x = x if type(batch[0]) is Tensor else nn.Parameter(x, False)
    for _ in range(4):
        assert why in str(reason(pair.step, x, y.to(graphs.device)))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: torch.optim.RMSprop(p, lr=0.01), "no captured update for RMSprop"),
        (lambda p: fastnn.optim.Adagrad(p, lr=0.01), "no captured update for Adagrad"),
    ],
)
def test_optimizers_that_run_eagerly(make: Optimizer, why: str, graphs: Graphs) -> None:
    pair = Pair(graphs, make=make)
    x, y = (t.to(graphs.device) for t in classes(7))
    for _ in range(4):
        assert why in str(reason(pair.step, x, y))


NO_CHAIN = "the model is not a chain of linear layers: Critic is not a layer of a chain"


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = chain([20, 33, 5])

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.net(torch.cat([obs, act], 1))


def test_several_inputs_run_eagerly(graphs: Graphs) -> None:
    pair = Pair(graphs, Critic())
    x, y = (t.to(graphs.device) for t in classes(7))
    with pytest.raises(TypeError, match="'act'"):  # torch's own
        pair.step(x, y)
    for _ in range(4):
        assert reason(pair.step, x[:, :12], x[:, 12:], y) == NO_CHAIN
    assert graphs.captures == 0


def test_a_state_that_the_kernels_do_not_take(graphs: Graphs) -> None:
    pair = Pair(graphs, make=OPTIMIZERS["sgd-momentum"])
    pair.take(classes(7))

    def narrow(optimizer: torch.optim.Optimizer) -> None:
        state = next(iter(optimizer.state.values()))
        state["momentum_buffer"] = state["momentum_buffer"].float()

    pair.both(narrow)
    x, y = (t.to(graphs.device) for t in classes(7))
    whys = [str(reason(pair.step, x, y)) for _ in range(6)]
    assert "has momentum_buffer of float32" in whys[-1]
    assert graphs.captures == 1


def test_copies_and_pickles(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    x, y = (t.to(graphs.device) for t in classes(7))
    for other in (copy.deepcopy(pair.step), pickle.loads(pickle.dumps(pair.step))):
        before = [p.clone() for p in pair.model.parameters()]
        for _ in range(4):
            other(x, y)
        assert all(torch.equal(p, q) for p, q in zip(pair.model.parameters(), before, strict=True))
    pair.replay(classes(7))
    assert graphs.captures == 3


def test_a_step_is_freed(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.model.step = pair.step
    pair.capture(classes(7))
    gone = weakref.ref(pair.model), weakref.ref(pair.model[0].weight)
    del pair
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_step_that_nothing_else_holds_is_freed_at_once(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    held = weakref.ref(pair.step._runner.planned.find().graphs)
    gc.collect()
    gc.disable()
    try:
        del pair.step
        assert held() is None
    finally:
        gc.enable()


def test_switched_off_nothing_is_captured(graphs: Graphs) -> None:
    pair = Pair(graphs)
    pair.capture(classes(7))
    with fastnn.disabled():
        assert pair.take(classes(7)) == "fastnn is disabled"
    with torch.no_grad():
        x, y = (t.to(graphs.device) for t in classes(7))
        assert not pair.step(x, y).requires_grad


@pytest.mark.parametrize("kernels", ["train_step", "adam"])
def test_no_capture_with_kernels_that_have_not_passed_their_self_test(
    kernels: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _dispatch.torch_reason

    def torch_reason(*tensors: Any, cuda: str | None = None) -> str | None:
        return "its self-test failed" if cuda == kernels else asked(*tensors, cuda=cuda)

    monkeypatch.setattr(_dispatch, "torch_reason", torch_reason)
    pair = Pair(graphs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastnn.EagerStepWarning)
        for _ in range(CAPTURE_AFTER + 2):
            assert pair.take(classes(7)) == "its self-test failed"
    assert graphs.captures == 0
