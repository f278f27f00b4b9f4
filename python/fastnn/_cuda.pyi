# The CUDA kernels; tensors, reductions and results as in _cpu.pyi. `float32` is one of the numbers of
# ops/_cuda_limits.py. A workspace is given in bytes: if it is too small, the function does nothing and
# returns how many it needs, else 0.
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

compiler: str
architectures: str
runtime_version: int
cross_entropy_scratch: int

def driver_version() -> int: ...
def why_unusable(device: int, /) -> str: ...
def compiles_at_launch(device: int, /) -> bool: ...
def on_bad_index(callback: Callable[[], Any], /) -> None: ...
def raise_bad_index(on: Tensor, /) -> None: ...
def raise_told_bad_index() -> None: ...
def relu_forward(x: Tensor, y: Tensor, /) -> None: ...
def relu_backward(dy: Tensor, y: Tensor, dx: Tensor, /) -> None: ...
def gram_forward(f: Tensor, scale: float, g: Tensor, float32: int, workspace: Tensor | None, /) -> int: ...
def gram_backward(
    dg: Tensor, f: Tensor, scale: float, df: Tensor, float32: int, workspace: Tensor | None, /
) -> int: ...
def linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    y: Tensor,
    preactivation: Tensor | None,
    float32: int,
    workspace: Tensor | None,
    /,
) -> int: ...
def linear_backward(
    dy: Tensor,
    saved: Tensor | None,
    activation: str | None,
    x: Tensor | None,
    weight: Tensor | None,
    below_saved: Tensor | None,
    below_activation: str | None,
    dx: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
    float32: int,
    workspace: Tensor | None,
    /,
) -> int: ...
def linear_finish(
    y: Tensor, bias: Tensor | None, activation: str | None, preactivation: Tensor | None, /
) -> None: ...
def linear_gradient(
    dy: Tensor,
    saved: Tensor | None,
    activation: str | None,
    gradient: Tensor | None,
    db: Tensor | None,
    workspace: Tensor | None,
    /,
) -> int: ...
def linear_add_gradients(
    dy: Tensor, x: Tensor, dw: Tensor, db: Tensor | None, float32: int, workspace: Tensor | None, /
) -> int: ...
def cross_entropy_forward(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    loss: Tensor,
    gradient: Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    z_loss: float,
    scratch: Tensor,
    check_at_once: bool,
    /,
) -> None: ...
def cross_entropy_chunk(
    x: Tensor,
    begin: int,
    target: Tensor,
    weight: Tensor | None,
    loss: Tensor,
    gradient: Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    z_loss: float,
    scratch: Tensor,
    check_at_once: bool,
    /,
) -> None: ...
def cross_entropy_scale_gradient(gradient: Tensor, dy: Tensor, scratch: Tensor, /) -> None: ...
def epoch_scratch_bytes(steps: int, /) -> int: ...
def why_no_epoch(w1: Tensor, w2: Tensor, batch: int, cluster: int, /) -> str: ...
def train_epoch(
    images: Tensor,
    labels: Tensor,
    order: Tensor,
    batch: int,
    scale: float,
    shift: float,
    ignore_index: int,
    parameters: Sequence[tuple[Any, ...]],
    lr: float,
    rates: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    not_taken: Tensor | None,
    losses: Tensor,
    scratch: Tensor,
    cluster: int,
    /,
) -> None: ...

# None, or a str that says why torch must do it.
def clip_grad_norm(grads: list[Tensor], max_norm: float, only_finite: bool, /) -> Any: ...
def adam_step(
    group: dict[str, Any],
    state: dict[Any, Any],
    match_layout: Callable[..., Any],
    grad_scale: object = None,
    found_inf: object = None,
    float_state: bool = False,
    masters: bool = False,
    numbers: object = None,
) -> Any: ...

adagrad_step = adam_step
rmsprop_step = adam_step
sgd_step = adam_step
