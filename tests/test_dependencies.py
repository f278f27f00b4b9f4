"""Imports and includes point down the layers, never up or in a circle: CONTRIBUTING.md has the lists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

import fastnn

PACKAGE = Path(fastnn.__file__).parent
SOURCES = Path(__file__).parents[1] / "csrc"

# Each may import those above it, and itself.
PYTHON = [
    ("_version", "_losses", "_torch_internals", "_cache"),
    ("_replaced", "_labels", "_proof"),
    ("_dispatch",),
    ("ops",),
    ("functional",),
    ("nn", "optim"),
    ("_diagnostics", "_info", "convert"),
    ("capture",),
    ("step",),
    ("training", "data"),
    ("selftest",),
    ("cli", "__main__"),
    ("benchmarks",),  # where it is installed
]
CPP = [("core",), ("gemm",), ("ops",), ("program",), ("dispatch",), ("bindings",)]


def _levels(layers: list[tuple[str, ...]]) -> dict[str, int]:
    return {name: level for level, names in enumerate(layers) for name in names}


def _imports(path: Path) -> set[str]:
    """The modules of fastnn that a file imports when it runs; not what only type checkers read."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.startswith("fastnn."))
        elif isinstance(node, ast.ImportFrom) and node.module == "fastnn":
            found.update(f"fastnn.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastnn."):
            found.add(node.module or "")
    return found


def _room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.skipif(not SOURCES.exists(), reason="only in a checkout")
def test_python_imports_down() -> None:
    levels = _levels(PYTHON)
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room == "__init__":
            continue
        for module in _imports(path):
            if _room(module) in levels and levels[_room(module)] > levels[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    edges: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("fastnn", *path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] != "__init__":
            edges[".".join(parts)] = _imports(path)
    left = dict(edges)
    while ready := [name for name, needs in left.items() if not (needs & left.keys()) - {name}]:
        for name in ready:
            del left[name]
    assert not left


@pytest.mark.skipif(not SOURCES.exists(), reason="only in a checkout")
def test_sources_include_down() -> None:
    levels = _levels(CPP)
    wrong = []
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        room = path.relative_to(SOURCES).parts[0]
        for included in re.findall(r'#include "(\w+)/', path.read_text(encoding="utf-8")):
            if included in levels and levels[included] > levels[room]:
                wrong.append(f"{path.relative_to(SOURCES)} includes {included}/")
    assert not wrong


# Attributes and functions of fastnn whose names torch's objects happen to have too.
OURS = {"_values", "_addmm_activation", "_op", "_name"}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _private_attributes() -> set[str]:
    """Private names of torch's objects."""
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)])
    objects = [
        *(torch.ones(1), torch.ones(1, requires_grad=True).exp().grad_fn, torch.ops.aten.add.Tensor),
        *(torch.nn.Module(), torch.nn.Sequential(), optimizer, StepLR(optimizer, 1)),
    ]
    return {name for each in objects for name in dir(each) if _is_private(name)}


def _chain(node: ast.AST) -> list[str]:
    """For ``a.b.c`` a, b and c; empty for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def _private_names_of_torch(source: str, private: set[str]) -> list[str]:
    """Where a source uses non-public names of torch.

    That is anything imported from torch or reached from there by dots or ``getattr``, and attributes, strings
    and methods with one of the names `private`.
    """
    tree = ast.parse(source)
    theirs: set[str] = set()  # names bound to something from torch
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "torch":
                    theirs.add(alias.asname or "torch")
                    found += [(node.lineno, alias.name) for part in parts if _is_private(part)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for alias in node.names:
                theirs.add(alias.asname or alias.name)
                path = f"{node.module}.{alias.name}"
                found += [(node.lineno, path) for part in path.split(".") if _is_private(part)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = (_chain(node) or [""])[0]
            if _is_private(node.attr) and (root in theirs or node.attr in private):
                found.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            last = node.value.rpartition(".")[2]
            if node.value in private or (node.value.startswith("torch.") and _is_private(last)):
                found.append((node.lineno, node.value))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in private:
            found.append((node.lineno, node.name))
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            root, name = (_chain(node.args[0]) or [""])[0], node.args[1]
            if (
                root in theirs
                and isinstance(name, ast.Constant)
                and isinstance(name.value, str)
                and _is_private(name.value)
            ):
                found.append((node.lineno, name.value))
    return [f"{line}: {name}" for line, name in sorted(set(found))]


def test_private_names_of_torch_are_in_one_file() -> None:
    internals = PACKAGE / "_torch_internals.py"
    nodes = [*ast.walk(ast.parse(internals.read_text(encoding="utf-8")))]
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    named |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    private = (_private_attributes() | {name for name in named if _is_private(name)}) - OURS
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        installed_beside = path.is_relative_to(PACKAGE / "benchmarks")  # they also measure torch's internals
        if path != internals and not installed_beside:
            found = _private_names_of_torch(path.read_text(encoding="utf-8"), private)
            wrong += [f"{path.relative_to(PACKAGE)}:{each}" for each in found]
    assert not wrong


# Public despite such names: compiled modules, the methods of NamedTuple, and sys._getframe.
FOR_OTHERS = {"_cpu", "_cuda", "_make", "_replace", "_getframe"}


def _bound(tree: ast.AST) -> set[str]:
    """Names that a module gives to functions, classes, variables and attributes of its own objects."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_on_itself(node):
            found.add(node.attr)
    return found


def _is_on_itself(node: ast.Attribute) -> bool:
    """Whether it is an attribute of the method's own object or class, or of a base class."""
    return ast.unparse(node.value) in ("self", "cls", "super()")


def _is_module(path: str) -> bool:
    place = PACKAGE.parent.joinpath(*path.split("."))
    return place.is_dir() or place.with_suffix(".py").exists()


def _names_of_others(source: str, package: str) -> list[str]:
    """Where a source in `package` uses private names of another module of fastnn, or of another package.

    A module with such a name belongs to its package, whose modules may use its names.
    """
    tree = ast.parse(source)
    bound = _bound(tree) | FOR_OTHERS
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for path in (f"{prefix}{alias.name}" for alias in node.names):
                parts = path.split(".")
                for i, part in enumerate(parts):
                    home = ".".join(parts[:i])
                    shared = _is_module(f"{home}.{part}") and f"{package}.".startswith(f"{home}.")
                    if parts[0] == "fastnn" and _is_private(part) and part not in FOR_OTHERS and not shared:
                        found.append((node.lineno, path))
        elif isinstance(node, ast.Attribute):
            if _is_private(node.attr) and node.attr not in bound and not _is_on_itself(node):
                found.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and _is_private(name.value) and name.value not in bound:
                found.append((node.lineno, name.value))
    return [f"{line}: {name}" for line, name in sorted(set(found))]


def test_nothing_uses_private_names_of_another_module() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if place.parts[0] not in ("_torch_internals.py", "benchmarks"):  # torch's; those installed alongside
            package = ".".join(("fastnn", *place.parts[:-1]))
            found = _names_of_others(path.read_text(encoding="utf-8"), package)
            wrong += [f"{place}:{each}" for each in found]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from fastnn.step.plan import _plan", ["fastnn.step.plan._plan"]),
        ("from fastnn.step import plan\nplan._plan", ["plan._plan"]),
        ("from fastnn.optim._hooks import Step", ["fastnn.optim._hooks.Step"]),
        ("from fastnn.optim import _hooks", ["fastnn.optim._hooks"]),
        ("import fastnn.optim._hooks", ["fastnn.optim._hooks"]),
        ("def f(step):\n    return step._lock", ["step._lock"]),
        ("def f(step):\n    return step.runner._told.x", ["step.runner._told"]),
        ("def f(step):\n    step._lock = 1", ["step._lock"]),
        ("getattr(step, '_lock', None)", ["_lock"]),
        ("from fastnn import _cpu, _dispatch, _replaced as r\nfrom fastnn._dispatch import cpu", []),
        ("from fastnn.ops import _function\nfrom fastnn.ops._function import refused", []),
        ("class A:\n    def __init__(self): self._x = 1\n    def f(self, o): return o._x, self._y", []),
        ("import sys\nsys._getframe(), _function.x, super()._x, x.__dict__", []),
    ],
)
def test_a_private_name_of_another_module_is_found(source: str, names: list[str]) -> None:
    found = _names_of_others(source, "fastnn.ops")
    assert [each.partition(": ")[2] for each in found] == names


@pytest.mark.skipif(not SOURCES.exists(), reason="only in a checkout")
def test_private_names_of_torch_are_in_one_source() -> None:
    private = _private_attributes()
    using = {
        path.name
        for path in SOURCES.rglob("*.cpp")
        if private & set(re.findall(r'"(\w+)"', path.read_text(encoding="utf-8")))
    }
    assert using == {"accumulator_hooks.cpp"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch\nx = torch._C.f", ["torch._C"]),
        ("import torch\nx = torch.utils._pytree.tree_map(1)", ["torch.utils._pytree"]),
        ("from torch.utils._pytree import tree_map", ["torch.utils._pytree.tree_map"]),
        ("from torch.nn import _reduction as r", ["torch.nn._reduction"]),
        ("import torch._dynamo", ["torch._dynamo"]),
        ("import sys\nx = sys.modules.get('torch._dynamo')", ["torch._dynamo"]),
        ("from torch.nn import functional as F\nx = getattr(F, '_private', None)", ["_private"]),
        ("def f(module):\n    return module._parameters", ["module._parameters"]),
        ("def f(module):\n    return module.__dict__['_parameters']", ["_parameters"]),
        ("class A:\n    def _parameters(self): pass", ["_parameters"]),
        ("import torch\nx = torch.nn.Module().__dict__, fastnn._dispatch, self._own, '_own'", []),
    ],
)
def test_a_private_name_is_found(source: str, names: list[str]) -> None:
    found = _private_names_of_torch(source, {"_parameters"})
    assert [each.partition(": ")[2] for each in found] == names
