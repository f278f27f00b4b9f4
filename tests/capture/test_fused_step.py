"""Whole training steps: what has rules is fused, and torch does the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import covered  # noqa: F401 (rules register themselves)
from fastnn import _dispatch
from fastnn._dispatch import Unsupported
from fastnn.capture.fusion import fuse
from fastnn.capture.ir import Instruction, Island, Node, Storage, View
from fastnn.capture.lowering.table import Lowering, lower
from one_op import _as_tensor, _views

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def mapped(x: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(x, kind):
        return change(x)
    if isinstance(x, (list, tuple)):
        return [mapped(part, kind, change) for part in x]
    return {key: mapped(part, kind, change) for key, part in x.items()} if isinstance(x, dict) else x


class Recorder(TorchDispatchMode):
    """Lowers the ops of a step; memory passed to the step is the user's, everything else is planned."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.low = Lowering()
        self.storages: dict[int, Storage] = {}
        self.alive: list[Tensor] = []
        for t in given:
            self.view(t).storage.tensor = t.detach()

    def view(self, t: Tensor) -> View:
        self.alive.append(t)
        base = t.untyped_storage()
        storage = self.storages.setdefault(base._cdata, Storage(base.nbytes()))
        return View(storage, t.storage_offset(), tuple(t.shape), tuple(t.stride()), t.dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        arguments, named = (mapped(x, Tensor, self.view) for x in (args, kwargs))
        outs = mapped(result, Tensor, self.view)
        name = f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}"
        reads = _views([arguments, named])
        is_alias = all(any(out.storage is x.storage for x in reads) for out in _views([outs]))
        if name.startswith("empty") or (is_alias and not func._schema.is_mutable):
            return result
        try:
            if lower(self.low, name, outs, tuple(arguments), named):
                return result
        except Unsupported:
            pass
        if func._schema.is_mutable:
            island = Island(func, tuple(arguments), named, [], reads, [arguments[0]], False, "")
        else:
            island = Island(func, tuple(arguments), named, _views([outs]), reads, [], False, "")
        self.low.nodes.append(island)
        return result


def execute(nodes: list[Node], memory: dict[int, Tensor]) -> None:
    for node in nodes:
        if isinstance(node, Instruction):
            operands = [_as_tensor(v, memory) for v in [*node.outs, *node.ins]]
            _dispatch.cpu.testing.run_instruction(node.name, operands, node.numbers, node.code)
        else:
            assert isinstance(node, Island)
            args, kwargs = (
                mapped(x, View, lambda v: _as_tensor(v, memory)) for x in (node.args, node.kwargs)
            )
            result = node.op(*args, **kwargs)
            parts = [p for p in (result if isinstance(result, (list, tuple)) else [result]) if p is not None]
            for view, value in zip(node.results, parts, strict=False):
                assert view is not None
                _as_tensor(view, memory).copy_(value)


def tanh_normal(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    mean, log_std = net(x).chunk(2, -1)
    std = log_std.clamp(-5, 2).exp()
    noise = y[:, :3]
    action = torch.tanh(mean + std * noise)
    log_prob = -0.5 * noise**2 - log_std - torch.log(1 - action**2 + 1e-6)
    return (0.2 * log_prob.sum(-1) - action.pow(2).mean(-1)).mean()


def classifier(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(x), y.sigmoid()) + F.smooth_l1_loss(net(x), y)


def ppo(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out = net(x)
    ratio = (out[:, :3] - y[:, :3]).sum(1).exp()
    advantage = y[:, 3]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = torch.min(advantage * ratio, advantage * ratio.clamp(0.8, 1.2))
    return -surrogate.mean() + 0.5 * F.mse_loss(out[:, 4], y[:, 4]) + out[:, 5].abs().max()


@pytest.mark.parametrize("loss", [tanh_normal, classifier, ppo])
def test_fused_steps_train_as_torch_does(loss: Callable[..., Tensor], isa: str) -> None:
    net = nn.Sequential(nn.Linear(5, 17), nn.GELU(), nn.Linear(17, 17), nn.ReLU(), nn.Linear(17, 6))
    parameters = list(net.parameters())
    x, y = torch.randn(37, 5), torch.randn(37, 6)

    def step() -> list[Tensor]:
        value = loss(net, x, y)
        gradients = torch.autograd.grad(value, parameters)
        norms = torch._foreach_norm(list(gradients))
        scale = (1 / (torch.stack(norms).norm() + 1e-6)).clamp(max=1)
        torch._foreach_mul_(list(gradients), scale)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.add_(g, alpha=-0.1)
        return [value.detach(), *gradients]

    given = [*parameters, x, y]
    before = [t.detach().clone() for t in given]
    with Recorder(given) as recorder:
        expected = step()
    after = [t.detach().clone() for t in given]
    results = [recorder.view(t) for t in expected]
    program = fuse(recorder.low.nodes, [view.storage for view in results])
    with torch.no_grad():
        for t, value in zip(given, before, strict=True):
            t.copy_(value)
        memory: dict[int, Tensor] = {}
        for _ in range(2):  # leftovers of a first run in memory have no effect
            for t, value in zip(given, before, strict=True):
                t.copy_(value)
            execute(program, memory)
    for view, value in zip(results, expected, strict=True):
        torch.testing.assert_close(_as_tensor(view, memory), value, rtol=1e-4, atol=1e-5)
    for t, value in zip(given, after, strict=True):
        torch.testing.assert_close(t.detach(), value, rtol=1e-4, atol=1e-5)
    fused = [node for node in program if isinstance(node, Instruction)]
    assert len(fused) < len([n for n in recorder.low.nodes if not isinstance(n, Island)]) * 0.7
