"""The stubs of the compiled modules agree with the modules' own signatures."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import fastnn
from cuda_emulation import Emulation
from fastnn import _dispatch

Signature = tuple[list[tuple[str, bool]], str]
"""The type of each argument and whether it may be left out, and the type of the result."""

# Types as written by pybind11, and as a caller would write them.
TAKEN = {
    "typing.SupportsFloat | typing.SupportsIndex": "float",
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "torch.Tensor": "Tensor",
    "collections.abc.": "",
}
BUILT_IN = {"Callable", "dict", "frozenset", "list", "tuple", "type"}


class _Plain(ast.NodeTransformer):
    """Removes what pybind11 does not know: the element types of Python containers."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if isinstance(node.value, ast.Name) and node.value.id in BUILT_IN:
            return node.value
        node.slice = self.visit(node.slice)
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name("object") if node.id == "Any" else node


def _plain(annotation: ast.expr | None) -> str:
    assert annotation is not None
    return ast.unparse(_Plain().visit(annotation))


def _signature(function: ast.FunctionDef, method: bool) -> Signature:
    arguments = [*function.args.posonlyargs, *function.args.args][method:]
    optional = len(arguments) - len(function.args.defaults)
    taken = [(_plain(each.annotation), i >= optional) for i, each in enumerate(arguments)]
    return taken, _plain(function.returns)


def _said_by_itself(function: Any, method: bool) -> Signature:
    """The signature from the first line of the docstring by pybind11."""
    line = function.__doc__.splitlines()[0].replace(": fastnn._", ": _")
    for written, meant in TAKEN.items():
        line = line.replace(written, meant)
    (parsed,) = ast.parse(f"def {line}: ...").body
    assert isinstance(parsed, ast.FunctionDef)
    return _signature(parsed, method)


def _functions(tree: ast.Module) -> dict[str, tuple[ast.FunctionDef, bool]]:
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node, False
        elif isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            found |= {f"{node.name}.{each.name}": (each, True) for each in methods if not each.decorator_list}
        elif isinstance(node, ast.Assign):  # another name of a function
            found[ast.unparse(node.targets[0])] = found[ast.unparse(node.value)]
    return found


def _names(tree: ast.Module) -> set[str]:
    variables = {ast.unparse(node.target) for node in tree.body if isinstance(node, ast.AnnAssign)}
    return variables | {path.split(".")[0] for path in _functions(tree)}


def check(name: str, module: Any) -> None:
    tree = ast.parse(Path(fastnn.__file__).with_name(f"{name}.pyi").read_text(encoding="utf-8"))
    assert _names(tree) == {each for each in vars(module) if not each.startswith("__")}
    for path, (function, method) in _functions(tree).items():
        said: Any = module
        for part in path.split("."):
            said = getattr(said, part)
        assert _signature(function, method) == _said_by_itself(said, method), path


@pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")
def test_stub_of_the_cpu_module() -> None:
    check("_cpu", _dispatch.cpu)


def test_stub_of_the_cuda_module(emulated: Emulation) -> None:
    check("_cuda", emulated.cuda)
