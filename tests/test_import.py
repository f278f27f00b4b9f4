"""`import fastnn` in fresh processes: what it loads, what it starts, and how the environment affects it."""

from __future__ import annotations

import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import fastnn
from fastnn import _dispatch
from fresh import PACKAGE, Fresh, output

native = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


@pytest.fixture(scope="module")
def uncompiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package as a source checkout has it: without the compiled module."""
    root = tmp_path_factory.mktemp("uncompiled")
    shutil.copytree(PACKAGE, root / "fastnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return root


@native
def test_the_best_instruction_set_is_taken(run_fresh: Fresh) -> None:
    code = "import fastnn; print(fastnn.info().isa)"
    assert output(run_fresh(code)) == _dispatch.cpu.best_isa
    assert output(run_fresh(code, FASTNN_CPU_ISA="")) == _dispatch.cpu.best_isa


@native
def test_each_instruction_set_can_be_forced(run_fresh: Fresh, isa: str) -> None:
    code = """
import torch, fastnn
print(fastnn.info().isa, fastnn.functional.relu(torch.tensor([-1., 2.])).tolist())
"""
    assert output(run_fresh(code, FASTNN_CPU_ISA=isa)) == f"{isa} [0.0, 2.0]"


@native
def test_an_unknown_instruction_set_is_an_error(run_fresh: Fresh) -> None:
    done = run_fresh("import fastnn", FASTNN_CPU_ISA="avx9000")
    assert done.status != 0
    assert "ValueError: FASTNN_CPU_ISA=avx9000: expected one of" in done.stderr


@pytest.mark.parametrize(
    ("value", "native_on"),
    [("1", False), ("yes", False), ("0", True), ("", True), ("Off", True), ("false", True)],
)
@native
def test_disable_variable(run_fresh: Fresh, value: str, native_on: bool) -> None:
    code = "import fastnn; i = fastnn.info(); print(i.native, i.why_not_native)"
    want = "True None" if native_on else "False fastnn is disabled"
    assert output(run_fresh(code, FASTNN_DISABLE=value)) == want


def test_without_the_compiled_module(run_fresh: Fresh, uncompiled: Path) -> None:
    code = """
import warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import fastnn
    import torch
    x = torch.tensor([[-1.0, 2.0]], requires_grad=True)
    fastnn.functional.relu(x).sum().backward()
    fastnn.nn.MLP([2, 3, 1])(x).sum().backward()
ours = [w for w in seen if "fastnn" in str(w.message)]
assert len(ours) == 1, ours
print(ours[0].category.__name__, "|", ours[0].message, "|", x.grad.shape)
print(fastnn.info())
print(fastnn.explain(fastnn.functional.relu, x))
"""
    text = output(run_fresh(code, uncompiled))
    reason = "the compiled module fastnn._cpu is not built in this installation"
    assert f"RuntimeWarning | fastnn runs on plain torch ops: {reason}." in text
    assert f"off: {reason}" in text
    assert text.splitlines()[-1].endswith(reason)


def test_a_compiled_module_that_does_not_load(run_fresh: Fresh, uncompiled: Path, tmp_path: Path) -> None:
    shutil.copytree(uncompiled / "fastnn", tmp_path / "fastnn", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fastnn" / f"_cpu{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a shared object")
    code = (
        "import warnings; warnings.simplefilter('ignore'); import fastnn; print(fastnn.info().why_not_native)"
    )
    assert "the compiled module fastnn._cpu does not load: " in output(run_fresh(code, tmp_path))


@pytest.mark.parametrize("name", ["_has_storage", "_functorch.peek_interpreter_stack"])
def test_a_torch_without_a_private_check_costs_the_kernels_only(run_fresh: Fresh, name: str) -> None:
    code = f"""
import torch, warnings
del torch._C.{name}
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import fastnn
print(len(seen), fastnn.functional.relu(torch.tensor([-1.0, 2.0])).tolist(), fastnn.info().why_not_native)
"""
    text = output(run_fresh(code))
    assert text.startswith(f"1 [0.0, 2.0] torch {torch.__version__} lacks a check")
    assert name.split(".")[-1] in text


def test_a_torch_without_the_exchange_interface_costs_the_kernels_only(run_fresh: Fresh) -> None:
    code = """
import torch, warnings
del torch.Tensor.__dlpack_c_exchange_api__
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import fastnn
print(len(seen), fastnn.functional.relu(torch.tensor([-1.0, 2.0])).tolist(), fastnn.info().why_not_native)
"""
    assert output(run_fresh(code)).startswith(
        f"1 [0.0, 2.0] torch {torch.__version__} does not hand tensors over"
    )


@native
@pytest.mark.parametrize("setting", ["torch.set_default_device('meta')", "FakeTensorMode().__enter__()"])
def test_an_import_under_another_default_keeps_the_kernels(run_fresh: Fresh, setting: str) -> None:
    code = f"import torch; from torch._subclasses.fake_tensor import FakeTensorMode; {setting}; import fastnn"
    assert output(run_fresh(f"{code}; print(fastnn._dispatch.cpu_missing)")) == "None"


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.modules.module._global_forward_hooks",
        "torch.nn.Module._compiled_call_impl",
        "torch.optim.Optimizer._accelerator_graph_capture_health_check",
        "sys.modules['torch.optim.optimizer']._global_optimizer_pre_hooks",
        "torch.autograd.profiler._is_profiler_enabled",
        "torch._C._will_engine_execute_node",
        "torch._C._autograd._get_current_graph_task_keep_graph",
        "torch._C._autograd._top_saved_tensors_default_hooks",
        "torch._foreach_lerp_",
        "torch._foreach_add_",
    ],
)
def test_a_torch_with_other_private_names_still_imports(run_fresh: Fresh, name: str) -> None:
    try:
        eval(name, {"sys": sys, "torch": torch})
    except AttributeError:
        pytest.skip("newer than this torch")
    code = f"""
import sys, torch
kept = {name}
del {name}
import fastnn
{name} = kept  # without which torch may fail itself
fastnn.optim.Adam(fastnn.nn.MLP([2, 3, 1]).parameters())
print(fastnn._torch_internals.module_names_known)
"""
    assert output(run_fresh(code)) == str("torch.nn" not in name)


def test_import_starts_nothing_and_loads_nothing_heavy(run_fresh: Fresh) -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("counts threads in /proc")
    code = """
import os, sys, torch
threads, modules = len(os.listdir("/proc/self/task")), set(sys.modules)
import fastnn
assert len(os.listdir("/proc/self/task")) == threads
assert not torch.cuda.is_initialized()
print(*(set(sys.modules) - modules))
"""
    loaded = set(output(run_fresh(code)).split())
    assert "fastnn.functional" in loaded
    heavy = ("tqdm", "matplotlib", "sklearn", "scipy", "pandas", "safetensors", "tensorboard", "sympy")
    heavy += ("tabulate", "torch._dynamo", "torch._inductor", "torch.utils.tensorboard", "fastnn.cli")
    assert [name for name in loaded if name.startswith(heavy)] == []


@native
def test_fork_after_a_parallel_region(run_fresh: Fresh) -> None:
    code = """
import os, signal
import torch, fastnn
from fastnn import functional as F
x, w, dy = torch.randn(1024, 512, requires_grad=True), torch.randn(512, 512), torch.randn(1024, 512)
def work():  # no torch op here: those wait for threads that the fork did not copy
    y = F.linear(F.relu(x), w, activation="relu")
    return torch.autograd.grad(y, x, dy)[0].numpy()
torch.set_num_threads(2)
want = work()
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    os._exit(0 if fastnn.info().threads == 1 and (work() == want).all() else 1)
print(os.waitpid(pid, 0)[1])
"""
    assert output(run_fresh(code)) == "0"


@native
def test_thread_count_is_torchs() -> None:
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 2):
            torch.set_num_threads(count)
            assert _dispatch.cpu.max_threads() == count
            assert fastnn.info().threads == count
    finally:
        torch.set_num_threads(threads)


@native
def test_thread_count_is_torchs_in_a_new_thread(run_fresh: Fresh) -> None:
    code = """
import threading, torch, fastnn
from fastnn import _dispatch
torch.set_num_threads(3)
def body():
    fastnn.functional.relu(torch.zeros(2))
    print(_dispatch.cpu.max_threads())
thread = threading.Thread(target=body)
thread.start()
thread.join()
"""
    assert run_fresh(code).stdout.split() == ["3"]


@native
def test_log_variable_logs_each_decision_once_on_stderr(run_fresh: Fresh) -> None:
    code = """
import torch, fastnn
for _ in range(3):
    fastnn.functional.relu(torch.zeros(2))
    fastnn.functional.relu(torch.zeros(2, dtype=torch.int64))
"""
    done = run_fresh(code, FASTNN_LOG="1")
    assert done.stderr.splitlines() == [
        "fastnn: relu ran on its native kernel",
        "fastnn: relu ran on torch (no kernels for dtype torch.int64)",
    ]
    assert run_fresh(code).stderr == ""
    assert run_fresh(code, FASTNN_LOG="0").stderr == ""


def test_the_log_obeys_the_users_logging(run_fresh: Fresh) -> None:
    code = """
import logging
logging.basicConfig(format="%(name)s %(message)s")
import torch, fastnn
fastnn.functional.relu(torch.zeros(2, device="meta"))
"""
    stderr = run_fresh(code, FASTNN_LOG="1").stderr
    assert stderr.splitlines()[-1].startswith("fastnn fastnn: relu ran on torch (")
