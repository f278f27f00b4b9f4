# The CPU kernels, which write into tensors that the caller allocated. What they compute, shapes, dtypes and
# what may alias are in the contracts, csrc/ops/<op>/<op>.h. A reduction is 0 for none, 1 for mean, 2 for sum.
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

isa: str
best_isa: str
compiler: str
is_intel: bool  # whether Intel made the processor
testing: ModuleType  # used by tests only

def max_threads() -> int: ...
def select_isa(name: str, /) -> None: ...
def probe_copy(source: Tensor, target: Tensor, /) -> None: ...
def probe_fma(rounds: int, out: Tensor, /) -> int: ...
def bernoulli(x: Tensor, p: float, generator: object, /) -> None: ...
def relu_forward(x: Tensor, y: Tensor, /) -> None: ...
def relu_backward(dy: Tensor, y: Tensor, dx: Tensor, /) -> None: ...
def gram_forward(f: Tensor, scale: float, g: Tensor, /) -> None: ...
def gram_backward(dg: Tensor, f: Tensor, scale: float, df: Tensor, /) -> None: ...
def linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    y: Tensor,
    preactivation: Tensor | None,
    /,
) -> None: ...
def linear_backward(
    dy: Tensor,
    saved: Tensor | None,
    activation: str | None,
    x: Tensor | None,
    weight: Tensor | None,
    dx: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
    /,
) -> None: ...
def mlp_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str | None],
    outputs: Sequence[Tensor],
    preactivations: Sequence[Tensor | None],
    /,
) -> None: ...
def mlp_backward(
    dy: Tensor,
    x: Tensor | None,
    weights: Sequence[Tensor | None],
    outputs: Sequence[Tensor | None],
    preactivations: Sequence[Tensor | None],
    activations: Sequence[str | None],
    dx: Tensor | None,
    dweights: Sequence[Tensor | None],
    dbiases: Sequence[Tensor | None],
    /,
) -> None: ...
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
    /,
) -> float: ...
def cross_entropy_scale_gradient(gradient: Tensor, dy: Tensor, scale: float, /) -> None: ...
def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    loss: Tensor,
    dy: Tensor | None,
    dx: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    z_loss: float,
    chunk_rows: int,
    /,
) -> None: ...

# None, or a str that says why torch must do it.
def clip_grad_norm(grads: list[Tensor], max_norm: float, only_finite: bool, /) -> Any: ...
def polyak(targets: list[Tensor], sources: list[Tensor], tau: float, /) -> Any: ...
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

class ChainStep:
    def __init__(
        self,
        layers: Sequence[tuple[dict[str, Tensor | None], str | None]],
        optimizer: str,
        flatten: bool,
        max_norm: float | None,
        keep_grad: bool,
        mean: float,
        std: float,
        match_layout: Callable[..., Any],
        accumulator_hooks: Callable[..., Any],
        /,
    ) -> None: ...
    def run(
        self,
        groups: list[dict[str, Any]],
        state: dict[Any, Any],
        input: object,
        target: object,
        loss: Tensor,
        options: tuple[Any, ...],
        /,
    ) -> Any: ...
    def run_batches(
        self,
        groups: list[dict[str, Any]],
        state: dict[Any, Any],
        images: object,
        labels: object,
        losses: Tensor,
        options: tuple[Any, ...],
        rows: Tensor,
        rates: Tensor | None,
        /,
    ) -> Any: ...

class PlainCall:
    def __init__(
        self, types: frozenset[type], states: Sequence[tuple[Callable[[], Any], object]], /
    ) -> None: ...
    def __call__(self, tensors: tuple[Any, ...], /) -> bool: ...

class Program:
    def __init__(
        self,
        states: Sequence[tuple[object, object]],
        watch: object,
        arguments: tuple[Any, ...],
        buffers: list[Any],
        outputs: Sequence[object],
        nodes: list[Any],
        absent: Sequence[object],
        cleared: Sequence[object],
        kept: Sequence[tuple[object, int]],
        written: list[Any],
        written_inputs: Sequence[int],
        shared_inputs: Sequence[tuple[int, int, int]],
        optimizers: Sequence[tuple[object, list[Any]]],
        result: object,
        match_layout: Callable[..., Any],
        /,
    ) -> None: ...
    @property
    def running(self) -> bool: ...
    @property
    def runs(self) -> int: ...
    @property
    def thread(self) -> int: ...
    def run(self, arguments: tuple[Any, ...], /) -> Any: ...
    def run_batches(
        self,
        arguments: tuple[Any, ...],
        gathered: Sequence[tuple[Tensor, Tensor]],
        rows: Tensor,
        losses: Tensor,
        groups: list[Any],
        rates: Tensor | None,
        /,
    ) -> int: ...

class LayerReader:
    def __init__(
        self,
        linear: type,
        activations: dict[type, str | dict[str, str]],
        unchanged: dict[type, Callable[[], bool]],
        parameters: str,
        hooks: tuple[str, ...],
        compiled: str,
    ) -> None: ...
    def read(
        self, modules: list[Any], start: int, /
    ) -> tuple[list[Any], list[Any], list[str | None], int]: ...

class SmallLayers:
    def __init__(
        self,
        types: frozenset[type],
        jit_state: object,
        functions: dict[str, Any],
        activate: object,
        layers: dict[str | None, tuple[int, int]],
        chains: dict[str | None, tuple[int, int]],
        limits: dict[str, int],
    ) -> None: ...
    def layer(self, input: object, weight: object, bias: object, activation: object, /) -> Any: ...
    def chain(self, input: object, weights: object, biases: object, activations: object, /) -> Any: ...

class Watch:
    def __init__(self) -> None: ...
    def item(self, container: dict[Any, Any], key: object, value: object, /) -> None: ...
    def absent(self, container: dict[Any, Any], key: object, /) -> None: ...
    def attribute(self, object: object, name: object, value: object, /) -> None: ...
    def content(self, container: dict[Any, Any], /) -> None: ...
    def elements(self, list: list[Any], /) -> None: ...
    def function(self, function: Callable[..., Any], /) -> None: ...
    def class_item(self, type: type, name: object, value: object, /) -> None: ...
    def class_absent(self, type: type, name: object, /) -> None: ...
    def type(self, object: object, /) -> None: ...
    def unhooked(self, param: object, look: Callable[..., Any], /) -> None: ...
    def unchanged(self) -> bool: ...
