"""A run: what its steps compute, and that a resumed one is the same as an uninterrupted one."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from fastnn import _dispatch
from fastnn.data import Batches, Dataset, normalise
from fastnn.training.checkpoint import Checkpoint
from fastnn.training.model import Parts, Steps, describe, fastnn_steps, rehearse, torch_steps
from fastnn.training.run import Run

BOTH = pytest.mark.parametrize("native", [False, True], ids=["fastnn", "torch"])


def finish(run: Run) -> Run:
    while not run.finished:
        if run.test_due:
            run.test()
        else:
            run.advance(4)
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.parts.model.state_dict().items()}


def first_batch(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    rows = run.batches.rows(0, 1)
    return run.batches.images[rows], run.batches.labels[rows]


def assert_bitwise(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_torch_and_fastnn_start_from_the_same_weights_and_see_the_same_batches(make_run) -> None:
    ours, theirs = make_run(), make_run(native=True)
    assert_bitwise(weights(ours), weights(theirs))
    assert list(weights(ours)) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    (bytes_, labels), (images, same) = first_batch(ours), first_batch(theirs)
    assert torch.equal(labels, same)
    assert bytes_.dtype == torch.uint8
    assert torch.equal(normalise(bytes_, ours.data.mean, ours.data.std, torch.float32), images)


def test_torch_and_fastnn_train_alike(make_run) -> None:
    ours, theirs = (finish(make_run(native=native, dtype="float64", epochs=19)) for native in (False, True))
    # 209 steps in float64: only the order of sums differs of some 64 terms, far below 1e-8 even
    # after Adam has divided by small second moments.
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-8, atol=1e-8)
    assert ours.history[-1].test_accuracy == theirs.history[-1].test_accuracy


def test_the_pure_torch_run_has_nothing_of_fastnn(make_run) -> None:
    parts = make_run(native=True).parts
    for part in (*parts.model.modules(), parts.loss, parts.optimizer):
        assert type(part).__module__.startswith("torch.")
    assert parts.optimizer.defaults["fused"]


def test_building_a_run_leaves_the_global_generator_alone(make_run) -> None:
    before = torch.get_rng_state()
    make_run()
    assert torch.equal(before, torch.get_rng_state())


@BOTH
def test_a_step_is_that_of_float64(make_run, native: bool) -> None:
    """Loss and weights after one step of plain gradient descent on normalised pixels."""
    run = make_run(native=native, dtype="float64")
    model = copy.deepcopy(run.parts.model)
    images, labels = first_batch(run)
    if not native:
        images = (images.double() - run.data.mean) / run.data.std
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    sgd = torch.optim.SGD(run.parts.model.parameters(), lr=0.1)
    parts = run.parts._replace(optimizer=sgd)
    take = torch_steps(parts) if native else fastnn_steps(parts, run.data.mean, run.data.std)
    (told,) = take(run.batches, 0, [0.5])
    assert not told.requires_grad
    torch.testing.assert_close(told, loss.detach())
    for before, after in zip(model.parameters(), run.parts.model.parameters(), strict=True):
        torch.testing.assert_close(after.detach(), (before - 0.5 * before.grad).detach())


@BOTH
def test_it_learns_the_digits(make_run, native: bool) -> None:
    run = finish(make_run(native=native, epochs=5, hidden=(32,), train_samples=None))
    assert [epoch.epoch for epoch in run.history] == [1, 2, 3, 4, 5]
    assert run.history[-1].test_accuracy > 0.85
    assert run.history[-1].train_loss < run.history[0].train_loss / 2
    assert len(run.losses) == run.step == run.steps == 5 * 45
    assert sum(epoch.train_seconds for epoch in run.history) == pytest.approx(run.train_seconds)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("stop", [0, 1, 7, 11, 22, 29, 33])
def test_resumed_equals_uninterrupted_bit_for_bit(
    make_run, tmp_path: Path, native: bool, dtype: str, stop: int
) -> None:
    """Stops before the first step, within an epoch, at its end, and after the last step."""
    whole = finish(make_run(native=native, dtype=dtype))
    first = make_run(native=native, dtype=dtype)
    while first.step < stop:
        if first.test_due:
            first.test()
        first.advance(stop - first.step)
    first.checkpoint().save(tmp_path / "c")
    resumed = make_run(Checkpoint.load(tmp_path / "c"), native=native, dtype=dtype)
    assert resumed.step == stop
    finish(resumed)
    assert_bitwise(weights(whole), weights(resumed))
    assert resumed.losses == whole.losses
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert replace(one, train_seconds=0) == replace(other, train_seconds=0)
    ours, theirs = (run.parts.optimizer.state_dict() for run in (whole, resumed))
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in ours["state"].items():
        assert_bitwise(state, theirs["state"][index])


def test_a_constant_rate_can_be_continued_for_longer(make_run, tmp_path: Path) -> None:
    whole = finish(make_run(schedule="constant", epochs=3))
    finish(make_run(schedule="constant", epochs=1)).checkpoint().save(tmp_path / "c")
    resumed = finish(make_run(Checkpoint.load(tmp_path / "c"), schedule="constant", epochs=3))
    assert_bitwise(weights(whole), weights(resumed))


def test_advance_stops_at_the_epochs_end_at_the_last_step_and_when_asked(make_run) -> None:
    run = make_run(epochs=1)
    calls = iter([False, False, True])

    def interrupted() -> bool:
        time.sleep(0.02)  # after a slow step it asks again after the next one
        return next(calls)

    assert run.advance(100, interrupted) == 3
    assert run.advance(100) == 8
    assert run.test_due
    run.test()
    assert run.finished
    assert run.advance(100) == 0


def test_a_rehearsal_changes_nothing(make_run) -> None:
    run = make_run()
    run.advance(3)
    before, state = weights(run), run.checkpoint().optimizer["state"][0]["exp_avg"].clone()
    stepping = partial(fastnn_steps, mean=run.data.mean, std=run.data.std)
    rehearse(run.parts, stepping, run.batches)
    assert_bitwise(before, weights(run))
    assert torch.equal(state, run.parts.optimizer.state_dict()["state"][0]["exp_avg"])
    stepping(run.parts)(run.batches, 0, [1e-3])
    assert not torch.equal(before["0.weight"], weights(run)["0.weight"])


def test_the_backend_is_reported_as_observed(make_run) -> None:
    assert make_run(native=True).backend == "torch"
    if _dispatch.cpu is not None:
        assert make_run().backend.startswith(f"fastnn {_dispatch.cpu.isa}, ")
        assert "torch for" not in make_run().backend
    with _dispatch.disabled():
        assert make_run().backend == "torch (fastnn is disabled)"


def test_a_reason_of_the_first_step_alone_is_not_reported(make_run) -> None:
    """The optimizer creates its state in it, so it may run differently."""
    if _dispatch.cpu is None:
        pytest.skip("needs the compiled module")
    reasons = iter(["the first step", None])

    def stepping(parts: Parts) -> Steps:
        def take(batches: Batches, first: int, rates: Sequence[float]) -> torch.Tensor:
            _dispatch.decide("train_step", next(reasons))
            return torch.zeros(1)

        return take

    run = make_run()
    words = rehearse(run.parts, stepping, run.batches)
    assert words == f"fastnn {_dispatch.cpu.isa}, one call a step"


def test_the_backend_in_words() -> None:
    assert describe([]) == "torch"
    assert describe([_dispatch.Decision("linear", "no kernel")]) == "torch (no kernel)"
    whole, not_whole = _dispatch.Decision("train_step", None), _dispatch.Decision("train_step", "because")
    assert describe([not_whole]) == "torch (because)"
    assert describe([not_whole, _dispatch.Decision("linear", "no kernel")]) == "torch (no kernel)"
    if _dispatch.cpu is not None:
        mixed = [_dispatch.Decision("linear", None), _dispatch.Decision("adam", "why")]
        isa = _dispatch.cpu.isa
        assert describe([whole]) == f"fastnn {isa}, one call a step"
        epoch, no_epoch = (
            _dispatch.Decision("train_epoch", None),
            _dispatch.Decision("train_epoch", "a reason"),
        )
        assert describe([epoch]) == f"fastnn {isa}, many steps a call"
        assert describe([no_epoch, whole]) == f"fastnn {isa}, one call a step"
        recorded = [_dispatch.Decision("chain_step", "no chain"), whole]
        assert describe(recorded) == f"fastnn {isa}, one call a step"
        assert describe([not_whole, mixed[0]]) == f"fastnn {isa}, op by op (because)"
        assert describe([not_whole, *mixed]) == f"fastnn {isa}, op by op (because); torch for adam (why)"


def test_evaluation_counts_and_measures_against_torch(make_run, digits: Dataset) -> None:
    run = finish(make_run())
    evaluation = run.evaluate()
    pixels = torch.from_numpy(digits.test_images).float()
    logits = run.parts.model((pixels - digits.mean) / digits.std)
    labels = torch.from_numpy(digits.test_labels)
    assert evaluation.accuracy == (logits.argmax(1) == labels).double().mean().item()
    expected = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    assert evaluation.loss == pytest.approx(expected, rel=1e-4)
    assert evaluation.losses.shape == evaluation.predicted.shape == labels.shape
