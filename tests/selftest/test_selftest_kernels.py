"""The self-test launches every kernel of the CUDA module, on a device of any size."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cuda_emulation import Emulation
from fastnn import _dispatch
from fastnn.ops import _cuda_linear, _cuda_linear_cross_entropy, gram
from fastnn.selftest import ops, training
from fastnn.selftest.cases import large_cases, small_cases
from fastnn.selftest.checks import Fault
from fastnn.step import epoch

sass = pytest.importorskip("benchmarks.sass", reason="needs the checkout")
pytestmark = [
    pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module"),
    pytest.mark.skipif(shutil.which("nm") is None, reason="needs the binutils"),
]

# The emulated devices (tests/cuda_emulator/runtime.cpp) of 16 to 160 multiprocessors.
SIZES = range(5, 64)


class Launched(NamedTuple):
    """The launches of the self-test.

    Attributes:
        kernels: by their names in the table of machine code.
        products: of each op, those of each device, and whether another kernel adds up parts of K.
        added_to_float32: the dtypes of the products that torch has added to float32.
    """

    kernels: set[str]
    products: dict[str, dict[int, set[tuple[str, bool]]]]
    added_to_float32: set[torch.dtype]


def _names(module: str) -> dict[int, str]:
    """The functions of a module, by their offset in its file."""
    listed = subprocess.run(["nm", "-C", module], capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^([0-9a-f]+) \w (.*)$", listed, re.MULTILINE)
    return {int(place, 16): sass.plain_name(name) for place, name in lines}


@functools.cache
def _in_the_table() -> set[str]:
    _, rows = sass.read_table(sass.TABLE.read_text(encoding="utf-8"))
    return {name for name, _ in rows} - {"probe"}  # never launched


def _products() -> set[str]:
    return {name for name in _in_the_table() if re.match(r"(tensor|plain)_product<", name)}


@pytest.fixture(scope="module")
def launched(emulated: Emulation) -> Launched:
    """Kernels are only recorded and torch's products skipped, so nothing is compared either."""
    checks = emulated.checks
    names, products = _names(emulated.cuda.__file__), _products()
    found = Launched(set(), defaultdict(lambda: defaultdict(set)), set())
    calls: list[Callable[[], None]] = []
    with_workspace = _cuda_linear.with_workspace

    def note(call: Callable[..., int], like: Tensor, *args: Any) -> None:
        calls.append(lambda: with_workspace(call, like, *args))
        with_workspace(call, like, *args)

    def addmm(total: Tensor, a: Tensor, b: Tensor, *, out_dtype: Any = None, out: Tensor) -> None:
        if out_dtype is not None:
            assert out_dtype == total.dtype == torch.float32
            found.added_to_float32.add(a.dtype)

    def number_on(device: torch.device, value: float) -> Tensor:
        number = torch.tensor(value, dtype=torch.float64)
        checks.hide_from_host(number.data_ptr())
        return number

    def take_noted() -> list[str]:
        return [names[place] for place in checks.take_noted()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "native", lambda _: emulated.cuda)
        patch.setattr(epoch, "_has_kernels", lambda _: True)
        patch.setattr(training, "number_on", number_on)
        patch.setattr(_cuda_linear_cross_entropy, "adds_to_float32", lambda _: True)
        patch.setattr(torch, "addmm", addmm)
        patch.setattr(torch, "mm", lambda *_, out: None)  # large ones
        for module in (ops, training):
            patch.setattr(module, "compare", lambda *_: None)
        for module in (_cuda_linear, gram):
            patch.setattr(module, "with_workspace", note)
        checks.only_note(True)
        try:
            for op, _, run in (*small_cases(True), *large_cases()):
                if op == "train_step":  # it uses the kernels of other ops, and of torch
                    continue
                with contextlib.suppress(Fault):  # no kernel finds an error in an index
                    run(torch.device("cpu"))
                found.kernels.update(take_noted())
                for size in SIZES:
                    checks.put_tensors_on(size)
                    for call in calls:
                        call()
                    for kernel, following in pairwise((*take_noted(), "")):
                        if kernel in products:
                            in_parts = following.startswith("sum_splits<")
                            found.products[op][size].add((kernel, in_parts))
                checks.put_tensors_on(0)
                calls.clear()
        finally:
            checks.only_note(False)
            checks.put_tensors_on(0)
            checks.hide_from_host(0)
    return found


def test_every_kernel_is_launched(launched: Launched) -> None:
    assert _in_the_table() - launched.kernels == set()


@pytest.mark.parametrize("op", ["linear", "linear_cross_entropy", "gram_matrix"])
def test_every_op_computes_its_products_by_every_kernel(op: str, launched: Launched) -> None:
    for size in SIZES:
        assert _products() - {kernel for kernel, _ in launched.products[op][size]} == set(), size


def test_sums_are_whole_and_in_parts(launched: Launched) -> None:
    wanted = {(kernel, in_parts) for kernel in _products() for in_parts in (False, True)}
    for size in SIZES:
        assert wanted - launched.products["linear"][size] == set(), size


def test_torch_adds_products_of_16_bits_to_float32(launched: Launched) -> None:
    assert launched.added_to_float32 == {torch.bfloat16, torch.float16}
