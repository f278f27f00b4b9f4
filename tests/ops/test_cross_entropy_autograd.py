"""Cross-entropy under autograd, transforms and modes: what is saved, what falls back, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastnn import _dispatch
from fastnn import functional as FF

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "z_loss": 0.1},
    {
        "label_smoothing": 0.3,
        "z_loss": 0.2,
        "weight": torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64),
    },
]


def logits(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["index", "probabilities", "images"])
def test_gradcheck_and_gradgradcheck(options: dict[str, Any], kind: str) -> None:
    x = logits(2, 4, 3) if kind == "images" else logits(5, 4)
    if kind == "probabilities":
        t = torch.rand(5, 4, dtype=torch.float64)
    else:
        t = torch.randint(4, (2, 3) if kind == "images" else (5,))
        t.view(-1)[1] = -100

    def loss(x: Tensor) -> Tensor:
        return FF.cross_entropy(x, t, **options)

    assert torch.autograd.gradcheck(loss, (x,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(loss, (x,))


def recorded(*args: Any, **kwargs: Any) -> tuple[Tensor, list[str | None]]:
    decisions: list[_dispatch.Decision] = []
    with _dispatch.recording(decisions.append):
        result = FF.cross_entropy(*args, **kwargs)
    return result, [d.reason for d in decisions]


def test_the_users_logits_are_left_alone() -> None:
    x, t = logits(6, 5), torch.randint(5, (6,))
    before, version = x.detach().clone(), x._version
    FF.cross_entropy(x, t).backward()
    assert torch.equal(x, before)
    assert x._version == version


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_twice_and_leaf_gradient_edited_between(reduction: str) -> None:
    x, t = logits(6, 5), torch.randint(5, (6,))
    loss = FF.cross_entropy(x, t, reduction=reduction).sum()
    loss.backward(retain_graph=True)
    assert x.grad is not None
    first = x.grad.clone()
    x.grad.zero_()
    (3 * loss).backward()
    torch.testing.assert_close(x.grad, 3 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_logits_may_change_after_the_loss_as_in_torch() -> None:
    results = []
    for f in (F.cross_entropy, FF.cross_entropy):
        torch.manual_seed(1)
        x, t = logits(4, 3), torch.randint(3, (4,))
        y = x * 1
        loss = f(y, t)
        y.data.zero_()
        loss.backward()
        results.append(x.grad)
    torch.testing.assert_close(results[0], results[1])


def test_float16_gradients_under_a_loss_scale_do_not_vanish(isa: str) -> None:
    rows = 4096
    x = torch.randn(rows, 10).half().requires_grad_()
    t = torch.randint(10, (rows,))
    (FF.cross_entropy(x, t).float() * 32768).backward()
    wide = x.detach().double().requires_grad_()
    (F.cross_entropy(wide, t) * 32768).backward()
    assert x.grad is not None
    assert wide.grad is not None
    # Kept unscaled, a gradient of a row is at most 1 and exact to eps / 2 or half a subnormal step.
    bound = 32768 / rows * 4 * torch.finfo(torch.float16).eps
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=0, atol=bound)


def test_gradients_of_target_and_weight_come_from_torch() -> None:
    x, p = logits(4, 3), torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.rand(3, dtype=torch.float64, requires_grad=True)
    cases = [
        ((x, p), (x, p), "the target requires grad"),
        ((x, p.detach(), w), (x, w), "the class weight requires grad"),
    ]
    for args, wanted, reason in cases:
        loss, reasons = recorded(*args)
        if _dispatch.cpu is not None:
            assert reasons == [reason]
        expected = torch.autograd.grad(F.cross_entropy(*args), wanted)
        torch.testing.assert_close(torch.autograd.grad(loss, wanted), expected)


def test_vmap_and_grad_give_what_torch_gives() -> None:
    x, t = torch.randn(3, 6, 4), torch.randint(4, (3, 6))
    torch.testing.assert_close(
        torch.func.vmap(FF.cross_entropy)(x, t), torch.func.vmap(F.cross_entropy)(x, t)
    )
    for transform in (torch.func.grad, torch.func.jacrev):
        ours, theirs = transform(FF.cross_entropy)(x[0], t[0]), transform(F.cross_entropy)(x[0], t[0])
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # from torch's own decomposition
def test_forward_mode_gives_what_torch_gives() -> None:
    x, t = torch.randn(6, 4), torch.randint(4, (6,))
    pushed = [
        torch.func.jvp(lambda v, f=f: f(v, t), (x,), (torch.ones_like(x),))
        for f in (FF.cross_entropy, F.cross_entropy)
    ]
    torch.testing.assert_close(*pushed)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_compile_fullgraph(z_loss: float) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return FF.cross_entropy(x, t, label_smoothing=0.1, z_loss=z_loss)

    x, t = logits(6, 4, dtype=torch.float32), torch.randint(4, (6,))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)(x, t)
    torch.testing.assert_close(compiled, loss(x, t))
    torch.testing.assert_close(torch.autograd.grad(compiled, x), torch.autograd.grad(loss(x, t), x))


def test_autocast_gives_torchs_dtype() -> None:
    x, t = torch.randn(6, 4, dtype=torch.bfloat16), torch.randint(4, (6,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, theirs = FF.cross_entropy(x, t), F.cross_entropy(x, t)
    assert loss.dtype == theirs.dtype
    torch.testing.assert_close(loss, theirs)


class CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_torchs_ops() -> None:
    x, t = torch.randn(6, 4), torch.randint(4, (6,))
    with CountOps() as mode:
        loss = FF.cross_entropy(x, t)
    assert mode.count > 0
    torch.testing.assert_close(loss, FF.cross_entropy(x, t))


def test_meta_tensors_have_the_right_shape() -> None:
    x = torch.empty(6, 4, device="meta", requires_grad=True)
    loss = FF.cross_entropy(x, torch.empty(6, dtype=torch.long, device="meta"), reduction="none", z_loss=0.1)
    assert loss.is_meta
    assert loss.shape == (6,)


def test_disabled_runs_torch() -> None:
    x, t = torch.randn(6, 4), torch.randint(4, (6,))
    with _dispatch.disabled():
        loss, reasons = recorded(x, t)
    assert reasons == ["fastnn is disabled"]
    torch.testing.assert_close(loss, FF.cross_entropy(x, t))


def test_mixed_dtypes_are_left_to_torch() -> None:
    x = torch.randn(6, 4)
    t = torch.rand(6, 4, dtype=torch.float64)
    assert FF.cross_entropy(x, t).dtype == F.cross_entropy(x, t).dtype == torch.float64


def test_float16_rows_that_are_all_ignored_have_gradient_zero(isa: str) -> None:
    x = torch.randn(6, 5).half().requires_grad_()
    FF.cross_entropy(x, torch.full((6,), -100)).backward()
    assert x.grad is not None
    assert not x.grad.any()
