"""A whole training step in one call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastnn._losses import Loss
from fastnn.step.epoch import run_epoch
from fastnn.step.processes import warn_where_local
from fastnn.step.runner import Runner
from fastnn.step.spec import ARGUMENTS, StepSpec

_PARTS = ("model", "loss", "optimizer")
_LAST: Any = object()  # the target is the last positional argument


def _name(part: object) -> str:
    return getattr(part, "__name__", type(part).__name__)


class TrainStep:
    r"""A training step as one call: forward, loss, backward, gradient clipping and update.

    ``loss = step(x, y)`` does what this does::

        model.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)  # if asked for
        optimizer.step()
        loss = loss.detach()

    All arguments but the last are the model's: ``step(obs, act, y)``. Parameters and optimizer state stay in
    model and optimizer, so evaluate, save, load, schedule and change options (the step's too) between calls.

    A chain of ``Linear`` layers and activations with one of the usual losses and Adam, AdamW, SGD, RMSprop or
    Adagrad, in float32 or float64 on the CPU, is one native call from the first one on; on a CUDA device its
    step is captured in a CUDA graph. Any other model is recorded as by :func:`fastnn.capture`: the first
    three calls with each kind of batch run eagerly, and it is recorded again when anything that it depends on
    has changed. Hooks, and whatever cannot be recorded, make steps eager, with one warning for each reason
    (:class:`fastnn.EagerStepWarning`); ``fastnn.explain(step, x, y)``, which takes a step, says why. Native
    steps give the same bits for every number of threads, and torch's numbers within rounding; subnormal
    numbers are flushed to zero. ``docs/train-step.md`` has the details.

    Args:
        model: any module.
        loss: called with the model's output and the target; a module or a function that returns a scalar.
        optimizer: of the model's parameters; not LBFGS.
        max_norm: clips the norm of all gradients, as :func:`torch.nn.utils.clip_grad_norm_` does.
        keep_grad: whether ``.grad`` holds the (clipped) gradients after the call, in tensors that the next
            call may overwrite. Otherwise it is None.
        mean: of images given as uint8, which become :math:`(x / 255 - \text{mean}) / \text{std}`; in units
            after the division, so pass ``data.mean / 255`` of a ``fastnn.data.Dataset``.
        std: see `mean`.
        native: raise RuntimeError, with the reason, where a step would have to run eagerly. Nothing has
            changed then, unless the step could not be recorded, which is found out by taking it.

    Raises:
        TypeError: `model` is not a module, `loss` not callable, or `optimizer` not an optimizer, or LBFGS.
        ValueError: `max_norm` is negative, `mean` or `std` not finite, `std` 0, or `optimizer` has no
            parameter of `model`.
    """

    model: torch.nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    max_norm: float | None
    keep_grad: bool
    mean: float
    std: float
    native: bool
    _runner: Runner
    _lock: threading.RLock  # the plan's buffers and the parameters' .grad serve one call at a time

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        max_norm: float | None = None,
        keep_grad: bool = False,
        mean: float = 0.0,
        std: float = 1.0,
        native: bool = False,
    ) -> None:
        self._use(StepSpec(model, loss, optimizer, max_norm, keep_grad, mean, std, native))
        own = {id(p) for p in model.parameters()}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("TrainStep: the optimizer holds none of the model's parameters")
        warn_where_local(model)

    def __setattr__(self, name: str, value: Any) -> None:
        """Change an argument for the calls to come."""
        if name not in ARGUMENTS:
            raise AttributeError(f"TrainStep has no attribute {name!r}; it has {', '.join(ARGUMENTS)}")
        self._use(replace(self._runner.spec, **{name: value}))

    def _use(self, spec: StepSpec) -> None:
        told = self.__dict__.setdefault("_told", set())
        self.__dict__.setdefault("_lock", threading.RLock())
        self.__dict__.update(vars(spec), _runner=Runner(spec, told))

    def __repr__(self) -> str:
        rest = ", ".join(f"{name}={getattr(self, name)!r}" for name in ARGUMENTS if name not in _PARTS)
        parts = ", ".join(_name(getattr(self, name)) for name in _PARTS)
        return f"TrainStep({parts}, {rest})"

    @property
    def programs(self) -> tuple[Any, ...]:
        """The recordings of a step that is not a chain, as :func:`fastnn.capture` has them."""
        return self._runner.recorded.programs

    def __getstate__(self) -> dict[str, Any]:
        return vars(self._runner.spec).copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._use(StepSpec(**state))

    def __call__(self, input: Any, *rest: Any, target: Any = _LAST) -> Tensor:
        """Take one step on a batch: ``step(x, y)``, or ``step(obs, act, y)`` for a model of several inputs.

        Args:
            input: the model's input, or uint8 images of the same shape, which are normalised.
            rest: the model's other positional inputs, if it takes several, and last the target.
            target: the loss's target, if it is passed by name.

        Returns:
            The loss before the update, detached.

        Raises:
            TypeError: the target is missing.
            IndexError: a class index is out of range; nothing has been updated. On CUDA the index may be one
                of an earlier call, which has updated the parameters (docs/train-step.md).
            RuntimeError: the step cannot run natively, and `native` is set.
            Exception: whatever else model, loss and optimizer raise.
        """
        if target is not _LAST:
            inputs = (input, *rest)
        elif rest:
            inputs, target = (input, *rest[:-1]), rest[-1]
        else:
            raise TypeError("TrainStep: expected the model's inputs and the target, got one argument")
        with self._lock:
            return self._runner.take(inputs, target)

    def epoch(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        permutation: Tensor | None = None,
        *,
        lr: Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        """Take a step on each batch of a data set, as ``step(images[rows], labels[rows])`` in a loop does.

        The model has one input. To keep the order of the images, pass ``torch.arange(N)`` as `permutation`.

        On the CPU one native call gathers the batches and takes many steps, bit for bit those of the loop,
        with no Python between them, which for a small network is half of a step's time. It does so if the
        step is native and each row of `images` and `labels` is contiguous (all of `images`, if a chain
        flattens its input); a recorded step also must have no part that torch runs. Ctrl-C takes effect
        between such calls, some 50 ms or one step apart.

        On a CUDA device of compute capability 9.0 one launch takes all steps (tested on an emulator, not yet
        on a GPU), and weights and optimizer state stay on the chip between steps if they fit: for
        ``Linear``, ReLU, ``Linear`` up to about 784-128-10 with biases in float32, plain mean cross-entropy
        over at most 32 classes, contiguous uint8 images, int64 labels, and Adam or AdamW with one group, a
        number as lr and no amsgrad; without `max_norm` and `keep_grad`. It gives the same bits in every run.
        Anything else runs as the loop, and :func:`fastnn.explain` says why.

        Args:
            images: `(N, ...)`, the model's inputs, or uint8 images.
            labels: `(N,)`, or `(N, ...)` if the loss takes such targets; on the device of `images`.
            batch_size: images per step. The last batch is smaller if it does not divide N.
            permutation: int64 `(P,)`, the rows of `images` in the order in which they are used, on their
                device; by default a new ``torch.randperm(N)``. Rows may be left out or repeated:
                ``torch.arange(N).repeat(k)`` is k passes in one call.
            lr: the learning rate of each step, `(ceil(P / batch_size),)`, used for all groups of the
                optimizer in this call only; by default each group's own. Only the rate: torch's
                ``OneCycleLR`` also changes Adam's beta1, unless ``cycle_momentum=False``.

        Returns:
            The loss of each step before its update, detached: `(ceil(P / batch_size),)`, on the device of
            the loss.

        Raises:
            TypeError: an argument is of the wrong type, or `permutation` is not int64.
            ValueError: there are no images, lengths or devices differ, `batch_size` is not positive, or a
                rate is negative.
            IndexError: a class index or an entry of `permutation` is out of range; the steps before it have
                been taken. Where one launch takes all steps, none has: the losses are NaN, and a later call
                of a fastnn function raises (under ``FASTNN_CHECK=1`` this one). Step counts that the
                optimizer keeps on the host include the epoch until the error is raised.
            Exception: whatever else model, loss and optimizer raise.
        """
        with self._lock:
            return run_epoch(self._runner, images, labels, batch_size, permutation, lr)
