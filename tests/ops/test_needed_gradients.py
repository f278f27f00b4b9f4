"""Backward computes only the gradients that the caller asked for, even if only autograd knows which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastnn
import fastnn.functional as FF
from fastnn import _dispatch
from fastnn.ops import _function
from fastnn.ops.linear import LinearFunction
from fastnn.ops.linear_cross_entropy import LinearCrossEntropyFunction
from fastnn.ops.mlp import Layer, MlpFunction, mlp

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

TARGET = torch.tensor([0, 2, 1, 0])


class Critic:
    """A native function after an actor, and what each of its backwards computed."""

    def __init__(self, kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
        def leaf(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64).to(device).requires_grad_()

        self.actor, self.state = leaf(6, 6), torch.randn(4, 6, dtype=torch.float64).to(device)
        self.parameters = [leaf(5, 6), leaf(5)] + ([leaf(3, 5), leaf(3)] if kind == "mlp" else [])
        self.kind = kind
        self.computed: list[list[bool]] = []
        functions: dict[str, Any] = {
            "linear": LinearFunction,
            "mlp": MlpFunction,
            "linear_cross_entropy": LinearCrossEntropyFunction,
        }
        # A native call writes exactly the gradients for which there is memory.
        self.order = [0, 2, 4, 3, 5] if kind == "mlp" else [0, 1, 2]
        original = functions[kind].backward

        def backward(ctx: Any, *grads: Any) -> Any:
            given = original(ctx, *grads)
            self.computed.append([given[i] is not None for i in self.order])
            return given

        monkeypatch.setattr(functions[kind], "backward", staticmethod(backward))

    @property
    def everything(self) -> list[bool]:
        return [True] * (1 + len(self.parameters))

    def action(self) -> Tensor:
        return self.state @ self.actor

    def value(self, x: Tensor) -> Tensor:
        w, b, *more = self.parameters
        if self.kind == "linear":
            return FF.linear(x, w, b, "gelu")
        if self.kind == "mlp":
            return mlp(x, [Layer(w, b, "silu"), Layer(more[0], more[1], None)])
        target = TARGET.to(x.device)
        return FF.linear_cross_entropy(x, w, target, linear_bias=b, reduction="none")

    def torch_value(self, x: Tensor) -> Tensor:
        with fastnn.disabled():
            return self.value(x)

    def loss(self) -> Tensor:
        return self.value(self.action()).square().sum()

    def torch_gradients(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.torch_value(self.action()).square().sum(), tensors)


@pytest.fixture(autouse=True)
def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore what other tests found out about torch's answers."""
    monkeypatch.setattr(_function, "_calls_to_pass", 0)


@pytest.fixture(params=["linear", "mlp", "linear_cross_entropy"])
def critic(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Critic:
    return Critic(request.param, device, monkeypatch)


def test_plain_backward_computes_everything(critic: Critic) -> None:
    critic.loss().backward()
    leaves = [critic.actor, *critic.parameters]
    torch.testing.assert_close(tuple(t.grad for t in leaves), critic.torch_gradients(leaves))
    assert critic.computed == [critic.everything]


@pytest.mark.parametrize("way", ["backward", "grad"])
def test_an_actor_needs_no_gradients_of_its_critic(critic: Critic, way: str) -> None:
    if way == "backward":
        critic.loss().backward(inputs=[critic.actor])
        (grad,) = [critic.actor.grad]
    else:
        (grad,) = torch.autograd.grad(critic.loss(), [critic.actor])
    torch.testing.assert_close((grad,), critic.torch_gradients([critic.actor]))
    assert critic.computed == [[True] + [False] * len(critic.parameters)]
    assert all(parameter.grad is None for parameter in critic.parameters)


def test_a_single_parameter(critic: Critic) -> None:
    for at, parameter in enumerate(critic.parameters, 1):
        critic.loss().backward(inputs=[parameter])
        torch.testing.assert_close((parameter.grad,), critic.torch_gradients([parameter]))
        assert critic.computed.pop() == [i == at for i in range(1 + len(critic.parameters))]


def test_a_leaf_that_is_returned(critic: Critic) -> None:
    """Torch raises an exception, which is slow: it is not queried again for some calls."""
    parameter = critic.parameters[-1]
    (grad,) = torch.autograd.grad(critic.loss(), [parameter])
    torch.testing.assert_close((grad,), critic.torch_gradients([parameter]))
    for _ in range(70):
        critic.loss().backward(inputs=[critic.actor])
    pause = critic.computed.index([True] + [False] * len(critic.parameters))
    assert pause > 10
    assert critic.computed[:pause] == [critic.everything] * pause


def test_a_frozen_last_parameter(critic: Critic) -> None:
    critic.parameters[-1].requires_grad_(False)
    critic.loss().backward(inputs=[critic.actor])
    critic.loss().backward()
    last = len(critic.parameters)
    assert critic.computed == [
        [True] + [False] * last,
        [i < last for i in range(last + 1)],
    ]


def test_parameters_that_are_computed(critic: Critic) -> None:
    """Their nodes are not leaves: one of them is an input, and one leads to a leaf that is."""
    leaf = critic.parameters[0]
    critic.parameters[0] = leaf + 1
    critic.parameters[1] = moved = critic.parameters[1] + 1
    wanted = [leaf, moved]
    got = torch.autograd.grad(critic.loss(), wanted)
    torch.testing.assert_close(got, critic.torch_gradients(wanted))
    assert critic.computed == [[i in (1, 2) for i in range(1 + len(critic.parameters))]]


def test_the_input_is_a_leaf(critic: Critic) -> None:
    x = critic.state.requires_grad_()
    (got,) = torch.autograd.grad(critic.value(x).square().sum(), [x])
    torch.testing.assert_close((got,), torch.autograd.grad(critic.torch_value(x).square().sum(), [x]))
    assert critic.computed == [[True] + [False] * len(critic.parameters)]


def test_a_graph_that_is_retained(critic: Critic) -> None:
    loss = critic.loss()
    loss.backward(inputs=[critic.actor], retain_graph=True)
    loss.backward()
    leaves = [critic.actor, *critic.parameters]
    expected = list(critic.torch_gradients(leaves))
    expected[0] = 2 * expected[0]
    torch.testing.assert_close([t.grad for t in leaves], expected)
    assert critic.computed == [[True] + [False] * len(critic.parameters), critic.everything]


def test_double_backward(critic: Critic) -> None:
    """A penalty on the actor's gradient, whose gradient goes to the critic's weight."""

    def second(loss: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(loss, [critic.actor], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [critic.parameters[0]])[0]

    expected = second(critic.torch_value(critic.action()).square().sum())
    torch.testing.assert_close(second(critic.loss()), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(critic: Critic, reentrant: bool) -> None:
    def loss() -> Tensor:
        value = checkpoint(critic.value, critic.action(), use_reentrant=reentrant)
        assert isinstance(value, Tensor)
        return value.square().sum()

    leaves = [critic.actor, *critic.parameters]
    loss().backward()
    torch.testing.assert_close(tuple(t.grad for t in leaves), critic.torch_gradients(leaves))
    if not reentrant:  # torch refuses it together with inputs
        (got,) = torch.autograd.grad(loss(), [critic.actor])
        torch.testing.assert_close((got,), critic.torch_gradients([critic.actor]))
        assert critic.computed[-1] == [True] + [False] * len(critic.parameters)


def test_batched_gradients(critic: Critic) -> None:
    value = critic.value(critic.action()).sum(0)
    eye = torch.eye(max(value.numel(), 1), dtype=value.dtype, device=value.device).view(-1, *value.shape)
    (got,) = torch.autograd.grad(value, [critic.actor], eye, is_grads_batched=True)
    expected = torch.autograd.grad(
        critic.torch_value(critic.action()).sum(0), [critic.actor], eye, is_grads_batched=True
    )
    torch.testing.assert_close((got,), expected)


def refuse(node: object) -> bool:
    raise RuntimeError("another torch")


@pytest.mark.parametrize("answer", [None, refuse], ids=["missing", "raises"])
def test_a_torch_that_does_not_say(
    critic: Critic, answer: Callable[..., bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_function, "_will_run", answer)
    (grad,) = torch.autograd.grad(critic.loss(), [critic.actor])
    torch.testing.assert_close((grad,), critic.torch_gradients([critic.actor]))
    assert critic.computed == [critic.everything]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own
def test_compiled_autograd() -> None:
    """It traces the backward, where no queries are possible."""
    actor, critic = (fastnn.nn.MLP([4, 4, 4]) for _ in range(2))
    x = torch.randn(3, 4)
    parameters = list(actor.parameters())

    def loss() -> Tensor:
        result: Tensor = F.mse_loss(critic(actor(x)), x)
        return result

    expected = torch.autograd.grad(loss(), parameters)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss().backward(inputs=parameters)
    torch.testing.assert_close(tuple(p.grad for p in parameters), expected)
    torch._dynamo.reset()
