"""The tests of `fastnn selftest`: correct kernels pass them, also emulated, and wrong ones do not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastnn
from cuda_emulation import Emulation
from fastnn import _dispatch
from fastnn._proof import FAILED, LEFT_OUT, PASSED
from fastnn.ops import _cuda_limits, _cuda_linear_cross_entropy, linear_cross_entropy
from fastnn.selftest import checks, ops, training
from fastnn.selftest.cases import Case, cases_for, large_cases, small_cases
from fastnn.selftest.checks import Fault, LeftOut, compare, poisoned
from fastnn.selftest.child import try_case
from fastnn.step import epoch
from step_graphs import Graphs

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

CPU = torch.device("cpu")
OPS = [case for case in small_cases(True) if not case.op.startswith("train_")]
OPS += [case for case in large_cases() if case.what == "two at the same time"]
STEPS = [case for case in small_cases(True) if case.op == "train_step"]
(EPOCH,) = (case for case in small_cases(False) if case.op == "train_epoch")


def tried(case: Case) -> tuple[str, str]:
    with poisoned():
        return try_case(case, CPU)


@pytest.fixture
def hidden_number(emulated_cuda: Emulation, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A number on the device cannot be read by the host."""

    def number_on(device: torch.device, value: float) -> Tensor:
        number = torch.tensor(value, dtype=torch.float64)
        emulated_cuda.checks.hide_from_host(number.data_ptr())
        return number

    monkeypatch.setattr(training, "number_on", number_on)
    yield
    emulated_cuda.checks.hide_from_host(0)


@pytest.mark.usefixtures("hidden_number")
@pytest.mark.parametrize("case", OPS, ids=lambda case: f"{case.op}, {case.what}")
def test_emulated_kernels_pass(case: Case, emulated_cuda: Emulation) -> None:
    emulated_cuda.checks.set_order("reverse", 0)
    assert tried(case) == (PASSED, "")


@pytest.mark.parametrize("graphs", ["recorded"], indirect=True)
@pytest.mark.parametrize("case", STEPS, ids=lambda case: case.what)
def test_a_recorded_step_passes(case: Case, graphs: Graphs) -> None:
    assert tried(case) == (PASSED, "")
    assert graphs.captures == 1


@pytest.fixture
def emulated_epoch(emulated_cuda: Emulation, monkeypatch: pytest.MonkeyPatch) -> Emulation:
    monkeypatch.setattr(epoch, "_has_kernels", lambda _: True)
    return emulated_cuda


def test_the_emulated_epoch_passes(emulated_epoch: Emulation) -> None:
    launches = emulated_epoch.checks.launches()
    assert tried(EPOCH) == (PASSED, "")
    assert emulated_epoch.checks.launches() > launches
    emulated_epoch.checks.put_tensors_on(2)
    try:
        outcome, why = tried(EPOCH)
    finally:
        emulated_epoch.checks.put_tensors_on(0)
    assert outcome == LEFT_OUT
    assert "9.0" in why


class Broken:
    """The kernels of a module, some of which are wrong."""

    def __init__(self, kernels: Any, **others: Callable[..., Any]) -> None:
        self._kernels, self._others = kernels, others

    def __getattr__(self, name: str) -> Any:
        return self._others.get(name) or getattr(self._kernels, name)

    def __eq__(self, other: object) -> bool:
        return other is self._kernels

    __hash__ = None


def find(op: str, what: str) -> Case:
    return next(case for case in cases_for(CPU) if (case.op, case.what) == (op, what))


def test_what_is_not_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "native", lambda _: Broken(_dispatch.cpu, relu_forward=lambda x, y: None))
    outcome, why = tried(find("relu", "float32"))
    assert outcome == FAILED
    assert why == "y: 4099 of 4099 values are not finite or have not been written"


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("op", "kernel", "wrong", "said"),
    [
        ("relu", "relu_backward", lambda dy, y, dx: dx.copy_(dy), "dX"),
        ("linear", "linear_backward", lambda *a: (_dispatch.cpu.linear_backward(*a), a[-1].mul_(1.1)), "db"),
        ("gram_matrix", "gram_forward", lambda f, s, g: torch.bmm(f, f.mT, out=g), "y of"),
        ("clip_grad_norm", "clip_grad_norm", lambda grads, *_: grads[0].new_ones(()), "norm"),
        ("cross_entropy", "cross_entropy_scale_gradient", lambda *_: None, "dX of"),
    ],
)
def test_what_is_wrong_is_found(
    op: str, kernel: str, wrong: Callable[..., Any], said: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "native", lambda _: Broken(_dispatch.cpu, **{kernel: wrong}))
    outcome, why = tried(find(op, dtype))
    assert outcome == FAILED
    assert said in why


def test_an_update_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def not_the_last(*arguments: Any) -> Any:
        calls.append(1)
        before = [p.detach().clone() for p in arguments[0]["params"]]
        written = _dispatch.cpu.sgd_step(*arguments)
        if len(calls) == 3:
            for p, old in zip(arguments[0]["params"], before, strict=True):
                p.detach().copy_(old)
        return written

    monkeypatch.setattr(_dispatch, "native", lambda _: Broken(_dispatch.cpu, sgd_step=not_the_last))
    outcome, why = tried(find("sgd", "bfloat16"))
    assert outcome == FAILED
    assert "parameters is off" in why


@fastnn.disabled()
def test_torchs_kernels_pass_no_test() -> None:
    for op in ("relu", "linear", "adam", "train_epoch"):
        case = find(op, "float32")
        assert tried(case)[0] == FAILED, op
        assert "fastnn is disabled" in tried(case)[1]


@pytest.mark.parametrize("op", {**ops.TWO_AT_ONCE, **training.TWO_AT_ONCE})
def test_memory_that_two_calls_share_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like scratch memory shared by all streams: the second call overwrites the first one's values."""
    at_once = ops.at_the_same_time

    def shared(*arguments: Any, **options: Any) -> Iterator[list[Any]]:
        for _, second in at_once(*arguments, **options):
            yield [second] * 2

    monkeypatch.setattr(ops, "at_the_same_time", shared)
    assert tried(find(op, "two at the same time")) == (
        FAILED,
        "two calls at the same time differ from one after the other",
    )


class Streams:
    """Streams that only record their calls, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
        self.noted: list[Any] = []
        self._late = late  # rounds that start before all work has been queued

        def stream(name: str) -> SimpleNamespace:
            return SimpleNamespace(
                wait_event=lambda event: self.noted.append((name, "waits", event.name)),
                record_event=lambda: self.event(name),
                name=name,
            )

        names = iter(("first", "second"))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream(next(names)))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream("current"))
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.noted.append("all wait"))
        monkeypatch.setattr(checks, "idle_on_device", lambda cycles: self.noted.append(cycles))

    def event(self, name: str) -> SimpleNamespace:
        self.noted.append((name, "records"))
        self._late -= 1
        late = self._late >= 0
        return SimpleNamespace(name=f"of {name}", query=lambda: late)

    @contextlib.contextmanager
    def on(self, stream: SimpleNamespace) -> Iterator[None]:
        self.noted.append(("on", stream.name))
        yield


def test_streams_are_held_back_until_all_work_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch, late=1)
    works = [lambda: streams.noted.append("a work")] * 2
    assert list(checks.at_the_same_time(torch.device("cuda", 0), works, rounds=3)) == [[None, None]] * 3
    a_round = [
        ("current", "records"),
        *(("first", "waits", "of current"), ("on", "first"), "a work"),
        *(("second", "waits", "of current"), ("on", "second"), "a work"),
        "all wait",
    ]
    cycles = [streams.noted[i] for i in range(0, len(streams.noted), len(a_round) + 1)]
    assert cycles == [2**24, 2**26, 2**26]  # longer after a round that started too early
    assert streams.noted == [entry for count in cycles for entry in (count, *a_round)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_that_torch_adds_wrongly_is_found(
    dtype: torch.dtype, emulated_cuda: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for torch's `addmm`, which has `out_dtype` on CUDA alone."""
    monkeypatch.setattr(_cuda_limits, "choose", lambda *_: (True, _cuda_limits.PLAIN))
    monkeypatch.setattr(_cuda_linear_cross_entropy, "adds_to_float32", lambda _: True)
    monkeypatch.setattr(linear_cross_entropy, "CHUNK_BYTES", 0)
    monkeypatch.setattr(linear_cross_entropy, "MIN_CHUNK_ROWS", 16)
    case = Case("", "", partial(ops.linear_cross_entropy, ((40, 33, 16),), dtype))
    own, kept = torch.addmm, 1.0

    def addmm(total: Tensor, a: Tensor, b: Tensor, *, out_dtype: Any = None, out: Tensor) -> Tensor:
        if out_dtype is None:
            return own(total, a, b, out=out)
        return own(total, a.float(), b.float(), beta=kept, out=out)

    monkeypatch.setattr(torch, "addmm", addmm)
    assert tried(case) == (PASSED, "")
    kept = 0.0  # only the last chunk's
    outcome, why = tried(case)
    assert outcome == FAILED
    assert why.startswith("dW of 40x33x16 is off")


@pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])
def test_an_index_that_is_not_raised_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = find(op, "index out of range")
    assert tried(case) == (PASSED, "")
    monkeypatch.setattr(ops.functional, op, lambda *_: torch.tensor(1.0))
    outcome, why = tried(Case(op, "", case.run))
    assert outcome == FAILED
    assert "did not raise" in why


def test_comparisons() -> None:
    good = torch.tensor([1.0, float("inf"), float("nan"), -8.0])
    compare("x", good, good.double())
    compare("x", good * (1 + 1e-6), good.double())
    wrong = [good[:2], good * 1.001, good.nan_to_num(), torch.full((4,), float("nan")), None]
    for actual in wrong:
        with pytest.raises(Fault, match=r"^x:? "):
            compare("x", actual, good.double())


def test_outcomes() -> None:
    def leave_out(device: torch.device) -> None:
        raise LeftOut("not here")

    def err(device: torch.device) -> None:
        raise RuntimeError("first line\nsecond")

    assert try_case(Case("a", "b", leave_out), CPU) == (LEFT_OUT, "not here")
    assert try_case(Case("a", "b", err), CPU) == (FAILED, "RuntimeError: first line")


def test_memory_is_poisoned_inside_only() -> None:
    with poisoned():
        assert torch.empty(5).isnan().all()
        assert (torch.empty(3, dtype=torch.uint8) == 255).all()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
