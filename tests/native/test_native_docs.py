# SPDX-License-Identifier: Apache-2.0
"""The native modules have docstrings at run time, and the same public names as their stubs."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import pyvmm_native

FOLDER = Path(pyvmm_native.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.pyx"))
Names = dict[str, ast.stmt]


def declared(body: list[ast.stmt]) -> Names:
    """Return the public names that a stub, or a class in it, declares."""
    names: Names = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names[statement.name] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names[statement.target.id] = statement
    return {name: item for name, item in names.items() if not name.startswith("_")}


def stub_of(name: str) -> Names:
    names = declared(ast.parse((FOLDER / f"{name}.pyi").read_text()).body)
    return {name: item for name, item in names.items() if not is_protocol(item)}


def is_protocol(item: ast.stmt) -> bool:
    """Protocols are for type checkers only: the module does not have them."""
    return isinstance(item, ast.ClassDef) and any(ast.unparse(b) == "Protocol" for b in item.bases)


def native(name: str) -> ModuleType:
    return importlib.import_module(f"pyvmm_native.{name}")


def defined(module: ModuleType) -> set[str]:
    """Return the public names that `module` defines, as opposed to those it imports."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            isinstance(value, int | tuple) or getattr(value, "__module__", None) == module.__name__
        )
    }


def classes() -> list[tuple[str, str]]:
    return [
        (module, name)
        for module in MODULES
        for name, item in stub_of(module).items()
        if isinstance(item, ast.ClassDef)
    ]


@pytest.mark.parametrize("name", MODULES)
def test_stub_and_module_have_the_same_public_names(name: str) -> None:
    assert set(stub_of(name)) == defined(native(name))


@pytest.mark.parametrize(("module", "name"), classes())
def test_stub_and_class_have_the_same_public_names(module: str, name: str) -> None:
    item, cls = stub_of(module)[name], getattr(native(module), name)
    assert isinstance(item, ast.ClassDef)
    if issubclass(cls, Exception | tuple):  # their attributes belong to instances, or are inherited
        return
    assert set(declared(item.body)) == {name for name in vars(cls) if not name.startswith("_")}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_function_has_a_docstring(name: str) -> None:
    module = native(name)
    assert inspect.getdoc(module)
    for function in (n for n, item in stub_of(name).items() if isinstance(item, ast.FunctionDef)):
        assert inspect.getdoc(getattr(module, function)), function


@pytest.mark.parametrize(("module", "name"), classes())
def test_every_class_documents_itself_and_its_members(module: str, name: str) -> None:
    item, cls = stub_of(module)[name], getattr(native(module), name)
    assert isinstance(item, ast.ClassDef)
    text = cls.__doc__
    assert text
    for member in declared(item.body):
        documented = getattr(cls, member, None).__doc__
        assert documented or f"`{member}`" in text, f"{name}.{member}"


@pytest.mark.parametrize("name", MODULES)
def test_stub_and_module_name_the_parameters_alike(name: str) -> None:
    pairs = [(item, native(name)) for item in [*stub_of(name).values()]]
    for module, cls in classes():
        item = stub_of(module)[cls]
        if module == name and isinstance(item, ast.ClassDef):
            pairs += [
                (method, getattr(native(name), cls)) for method in declared(item.body).values()
            ]
    for item, owner in pairs:
        if not isinstance(item, ast.FunctionDef) or item.decorator_list:
            continue
        arguments = item.args
        expected = [a.arg for a in [*arguments.args, *arguments.kwonlyargs]]
        expected += [arguments.kwarg.arg] if arguments.kwarg else []
        assert list(inspect.signature(getattr(owner, item.name)).parameters) == expected
