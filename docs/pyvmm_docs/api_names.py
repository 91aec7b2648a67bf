# SPDX-License-Identifier: Apache-2.0
"""Names in the sources of the packages that the API reference covers.

`Namespace` knows what each name in a module stands for, from its imports and definitions, without
importing it. A name that a package re-exports (`__all__`, or a star import) has two full names; the
reference uses the exported one, which `public_name` returns.
"""

from __future__ import annotations

import ast
import copy
import functools
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FOLDERS = {"pyvmm_native": ROOT / "cython_src"}
PACKAGES = ("pykvm", "devices", "pyvmm_native")
"""Packages of which every public module is documented."""
SCRIPTING = (
    "pyvmm.harness",
    "pyvmm.harness.blocking_guest",
    "pyvmm.harness.agent_config",
    "pyvmm.harness.completed_command",
    "pyvmm.harness.guest_session",
    "pyvmm.harness.console_guest",
    "pyvmm.harness.scripted_console",
    "pyvmm.harness.errors",
    "pyvmm.guest_agent.errors",
    "pyvmm.boot.image_config",
    "pyvmm.boot.errors",
    "pyvmm.config",
    "pyvmm.errors",
    "pyvmm.units",
    "pyvmm.vm",
    "pyvmm.machine.catalogue",
    "pyvmm.machine.exit_result",
    "pyvmm.machine.run_state",
    "pyvmm.balloon.statistics",
    "pyvmm.balloon.misc_requests",
    "pyvmm.balloon.free_page_hints",
    "pyvmm.balloon.guest_requests",
    "pyvmm.snapshot.saver",
    "pyvmm.snapshot.reader",
    "pyvmm.snapshot.errors",
    "pyvmm.migration.outgoing",
    "pyvmm.migration.errors",
    "pyvmm.sockets.addresses",
    "pyvmm.sockets.listener",
    "pyvmm.sockets.errors",
)
"""Modules of pyvmm that a script with a guest uses."""


@dataclass(frozen=True)
class Namespace:
    """The names of one module."""

    module: str
    path: Path
    names: dict[str, str]
    """Full name of each imported or defined name, as its own module defines it."""

    def full_name(self, name: str) -> str | None:
        """Return the public full name for a possibly dotted name, or None if it is not known."""
        first, dot, rest = name.partition(".")
        full = self.names.get(first)
        return None if full is None else public_name(full + dot + rest)

    def qualify(self, expression: ast.expr) -> ast.expr:
        """Return an annotation with all names that the module knows replaced by full ones."""
        return _Qualifier(self).visit(copy.deepcopy(expression))  # type: ignore[no-any-return]


class _Qualifier(ast.NodeTransformer):
    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._replace(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._replace(node, ast.unparse(node))

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """Replace a quoted annotation by its expression."""
        if not isinstance(node.value, str):
            return node
        try:
            return ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return node  # an element of Literal

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """Leave the elements of Literal alone."""
        if ast.unparse(node.value) in ("Literal", "typing.Literal"):
            node.value = self.visit(node.value)
            return node
        self.generic_visit(node)
        return node

    def _replace(self, node: ast.expr, name: str) -> ast.expr:
        full = self._namespace.full_name(name)
        is_private = name.startswith("_")
        return node if full is None or is_private else ast.parse(full, mode="eval").body


def source_of(module: str) -> Path:
    """Return the file that declares a module: a stub where there is one; ModuleNotFoundError."""
    folder = _FOLDERS.get(module.partition(".")[0], ROOT)
    path = folder / Path(*module.split("."))
    for candidate in (path.with_suffix(".pyi"), path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    raise ModuleNotFoundError(f"no source of {module}", name=module)


def modules_below(package: str) -> list[str]:
    """Return the public modules of `package`, itself included, sorted by name."""
    folder = source_of(package).parent
    found = {package}
    for path in (*folder.rglob("*.py"), *folder.rglob("*.pyi")):
        parts = path.relative_to(folder).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found.add(".".join([package, *parts]))
    return sorted(found)


@functools.cache
def documented_modules() -> frozenset[str]:
    """Return the names of all modules in the API reference."""
    return frozenset(SCRIPTING).union(*(modules_below(package) for package in PACKAGES))


@functools.cache
def parse(module: str) -> ast.Module:
    """Return the syntax tree of a module's source."""
    return ast.parse(source_of(module).read_text())


@functools.cache
def namespace(module: str) -> Namespace:
    """Return the namespace of a module."""
    names: dict[str, str] = {}
    for node in ast.walk(parse(module)):
        match node:
            case ast.ImportFrom(module=str(source)):
                for alias in node.names:
                    names[alias.asname or alias.name] = f"{source}.{alias.name}"
            case ast.Import():
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    names[name] = alias.name if alias.asname else name
    names |= {name: f"{module}.{name}" for name in defined(module)}
    return Namespace(module, source_of(module), names)


def defined(module: str) -> list[str]:
    """Return the names that the top level of a module defines, private ones included."""
    names: list[str] = []
    for node in parse(module).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.append(node.name)
            case ast.Assign():
                for target in node.targets:
                    names += [each.id for each in ast.walk(target) if isinstance(each, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
    return names


def public_name(full: str) -> str:
    """Return the name by which users reach what is defined as `full`, or one of its members."""
    return _renamed(full, _exports())


def defined_name(full: str) -> str:
    """Return the name at its definition of what users reach as `full`."""
    return _renamed(full, _definitions())


def _renamed(full: str, names: dict[str, str]) -> str:
    """Return `full` with the longest part at its front that is in `names` replaced."""
    parts = full.split(".")
    for count in range(len(parts), 1, -1):
        if other := names.get(".".join(parts[:count])):
            return ".".join([other, *parts[count:]])
    return full


@functools.cache
def _definitions() -> dict[str, str]:
    """Return exported full name → full name at the definition."""
    return {exported: definition for definition, exported in _exports().items()}


@functools.cache
def _exports() -> dict[str, str]:
    """Return full name at the definition → exported full name.

    A function that is exported with the name of its own module keeps the full name.
    """
    exports: dict[str, str] = {}
    for module in sorted(documented_modules()):
        for node in parse(module).body:
            match node:
                case ast.ImportFrom(module=str(source), names=[ast.alias(name="*")]):
                    exports |= {f"{source}.{name}": f"{module}.{name}" for name in defined(source)}
                case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                    names = namespace(module).names
                    exports |= {names[name]: f"{module}.{name}" for name in ast.literal_eval(value)}
    return {full: name for full, name in exports.items() if name not in documented_modules()}
