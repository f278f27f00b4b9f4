"""Bernoulli numbers of torch's generator, drawn by the kernel."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import fastnn
from fastnn import _dispatch
from fastnn.capture import bernoulli as drawing
from fastnn.capture.bernoulli import bernoulli


def _generators(seed: int, drawn: int) -> tuple[torch.Generator, torch.Generator]:
    """Two equal ones, from which that many 32-bit numbers have been drawn."""
    pair = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    for generator in pair:
        if drawn:
            torch.empty(drawn).random_(2**20, generator=generator)
    return pair


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("drawn", [0, 1, 2, 311, 623, 624, 625])
@pytest.mark.parametrize("n", [0, 1, 7, 311, 312, 313, 624, 5000])
def test_draws_what_torch_draws(isa: str, n: int, drawn: int, dtype: torch.dtype) -> None:
    torchs, ours = _generators(n + drawn, drawn)
    for p in (0.1, 0.5):
        theirs = torch.empty(n, dtype=dtype).bernoulli_(p, generator=torchs)
        x = torch.full((n + 1,), 7, dtype=dtype)
        _dispatch.cpu.bernoulli(x[:n], p, ours)
        torch.testing.assert_close(x[:n], theirs, rtol=0, atol=0)
        assert x[n] == 7
        assert torch.equal(ours.get_state(), torchs.get_state())


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0**-53, 1 - 2.0**-53, 5e-324, 1 / 3])
def test_extreme_probabilities(p: float) -> None:
    torchs, ours = _generators(3, 0)
    theirs, own = torch.empty(3000).bernoulli_(p, generator=torchs), torch.empty(3000)
    _dispatch.cpu.bernoulli(own, p, ours)
    assert torch.equal(own, theirs)


def test_normal_numbers_that_are_left_stay() -> None:
    torchs, ours = _generators(5, 0)
    for generator in (torchs, ours):
        torch.empty(3).normal_(generator=generator)
    torch.empty(10).bernoulli_(0.5, generator=torchs)
    _dispatch.cpu.bernoulli(torch.empty(10), 0.5, ours)
    assert torch.equal(ours.get_state(), torchs.get_state())
    a, b = (torch.empty(3).normal_(generator=generator) for generator in (torchs, ours))
    assert torch.equal(a, b)


def test_bad_calls_are_refused_and_draw_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    with pytest.raises(ValueError, match=r"0 <= p <= 1, got 1\.5"):
        _dispatch.cpu.bernoulli(torch.empty(3), 1.5, generator)
    with pytest.raises(ValueError, match="0 <= p <= 1"):
        _dispatch.cpu.bernoulli(torch.empty(3), float("nan"), generator)
    with pytest.raises(ValueError, match="contiguous x of float32 or float64"):
        _dispatch.cpu.bernoulli(torch.empty(4, 4)[:, ::2], 0.5, generator)
    with pytest.raises(ValueError, match="contiguous x of float32 or float64"):
        _dispatch.cpu.bernoulli(torch.empty(4, dtype=torch.int64), 0.5, generator)
    assert torch.equal(generator.get_state(), before)


def test_a_torch_that_draws_otherwise_draws_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def otherwise(x: torch.Tensor, p: float, generator: torch.Generator) -> None:
        x.fill_(0.5)

    monkeypatch.setattr(drawing, "_draws_alike", drawing._draws_alike.__wrapped__)
    with monkeypatch.context() as patch:
        patch.setattr(_dispatch.cpu, "bernoulli", otherwise)
        torchs, ours = _generators(2, 0)
        theirs = torch.empty(50).bernoulli_(0.5, generator=torchs)
        assert torch.equal(bernoulli(torch.empty(50), 0.5, generator=ours), theirs)


def test_what_threads_draw_at_once_is_drawn_once() -> None:
    """torch and the kernel draw from one generator in two threads: no number is drawn twice."""
    generator = torch.Generator().manual_seed(4)
    count, rounds = 40_000, 20
    barrier = threading.Barrier(2)

    def by_torch() -> None:
        for _ in range(rounds):
            barrier.wait()
            torch.empty(count).bernoulli_(0.5, generator=generator)

    def by_kernel() -> None:
        for _ in range(rounds):
            barrier.wait()
            _dispatch.cpu.bernoulli(torch.empty(count), 0.5, generator)

    threads = [threading.Thread(target=by_torch), threading.Thread(target=by_kernel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = torch.Generator().manual_seed(4)
    torch.empty(2 * rounds * count).bernoulli_(0.5, generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


def test_a_captured_dropout_is_drawn_natively() -> None:
    model = nn.Sequential(nn.Linear(8, 30), nn.Dropout(0.3), nn.Linear(30, 2))
    own = torch.Generator().manual_seed(3)

    @fastnn.capture(native=True)
    def update(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.empty(4, 4).bernoulli_(0.5, generator=own)
        model.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss.detach(), noise

    x = torch.randn(5, 8)
    for _ in range(4):
        state, ours = torch.get_rng_state(), own.get_state()
        found, noise = update(x)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        torch.testing.assert_close(found, model(x).square().mean())
        assert torch.equal(torch.get_rng_state(), after)
        twin = torch.Generator()
        twin.set_state(ours)
        assert torch.equal(noise, torch.empty(4, 4).bernoulli_(0.5, generator=twin))
    (program,) = update.programs
    assert program.instructions.count("bernoulli") == 2
    assert not program.islands
