# SPDX-License-Identifier: Apache-2.0
"""The public names of a module with their signatures and docstrings, read from its source.

A name is public if its module defines it and no part of its dotted name starts with an underscore;
special methods count if they have a docstring. Attributes are the fields of a class and everything
that its methods assign to `self`. A string below an assignment documents it; the assignments
directly above it, if there are any, belong to the same group. The comment above a group of
constants is their heading.

Sources are read, not imported: so annotations are shown as they are written, even those that exist
for type checkers only. A native module has two sources that complement each other: its types come
from the stub, its docstrings from the compiled module, where `help()` finds them.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from pyvmm_docs.api_names import (
    Namespace,
    namespace,
    parse,
    public_name,
)

_Assignment = ast.Assign | ast.AnnAssign
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Item:
    """One public name."""

    kind: str
    """The object type of Sphinx's Python domain: class, function, method, attribute, ..."""
    module: str
    """The module by which users reach the name."""
    name: str
    """The dotted name in its module."""
    defined_in: str
    """The module that defines the name."""
    doc: str = ""
    heading: str = ""
    """The comment above the group of constants to which the item belongs."""
    parameters: ast.arguments | None = None
    """Parameters of the call, without `self`; None for what is not called."""
    type: str = ""
    """Type of an attribute or of a function's result, with full names."""
    value: str = ""
    modifiers: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    """Full names of the base classes."""
    members: list[Item] = field(default_factory=list)
    group: list[Item] = field(default_factory=list, repr=False)
    """The assignments directly above and below, itself included: they share documentation."""

    @property
    def full_name(self) -> str:
        """Return the dotted name by which users reach the object."""
        return f"{self.module}.{self.name}"

    def walk(self) -> Iterator[Item]:
        """Yield the item and all its members."""
        yield self
        for member in self.members:
            yield from member.walk()


@dataclass
class Module:
    """A module, its docstring, and its public items in the order of the source."""

    name: str
    doc: str
    items: list[Item]
    namespace: Namespace

    @property
    def is_package(self) -> bool:
        """Return whether the module contains others."""
        return self.namespace.path.name == "__init__.py"

    def walk(self) -> Iterator[Item]:
        """Yield all items and their members."""
        for item in self.items:
            yield from item.walk()


@functools.cache
def read_module(name: str) -> Module:
    """Return the public names of module `name`; ModuleNotFoundError if it has no source."""
    names, tree = namespace(name), parse(name)
    lines = names.path.read_text().splitlines()
    items = list(_Reader(names, lines).items(tree.body, None))
    module = Module(name, ast.get_docstring(tree) or "", items, names)
    if names.path.suffix == ".pyi":
        _take_docstrings(module)
    return module


def _take_docstrings(module: Module) -> None:
    """Give the items of a stub the docstrings of the compiled module."""
    compiled = importlib.import_module(module.name)
    module.doc = inspect.getdoc(compiled) or ""
    for item in module.walk():
        value: object = compiled
        for part in item.name.split("."):
            value = getattr(value, part, None)
        # An instance, such as an integer, has the docstring of its class.
        if item.kind != "data" and value is not None:
            item.doc = inspect.cleandoc(value.__doc__ or "") or item.doc


class _Reader:
    """Reads the items of one module."""

    def __init__(self, names: Namespace, lines: list[str]) -> None:
        self._names = names
        self._lines = lines

    def items(self, body: list[ast.stmt], owner: Item | None) -> Iterator[Item]:
        """Yield the public items that the statements of a module or class define."""
        group: list[Item] = []  # assignments directly above
        end, heading = 0, ""
        for node in body:
            if node.lineno > end + 1:
                group, heading = [], self._comment_above(node)
            end = node.end_lineno or 0
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    if _is_public(node):
                        yield self._function(node, owner)
                case ast.ClassDef() if not node.name.startswith("_"):
                    yield self._class(node, owner)
                case ast.Assign() | ast.AnnAssign():
                    for target, value in _assignments(node):
                        if isinstance(target, ast.Name) and not target.id.startswith("_"):
                            item = self._variable(target.id, node, value, owner)
                            item.group, item.heading = group, heading
                            group.append(item)
                            yield item
                case ast.Expr(value=ast.Constant(value=str(text))) if group:
                    group[-1].doc = inspect.cleandoc(text)
                    group = []

    def _item(self, kind: str, name: str, owner: Item | None) -> Item:
        defined_in = self._names.module
        if owner is not None:
            return Item(kind, owner.module, f"{owner.name}.{name}", defined_in)
        module, _, _ = public_name(f"{defined_in}.{name}").rpartition(".")
        return Item(kind, module, name, defined_in)

    def _function(self, node: _Function, owner: Item | None) -> Item:
        item = self._item("function" if owner is None else "method", node.name, owner)
        item.doc = ast.get_docstring(node) or ""
        item.type = self._type(node.returns)
        decorators = [ast.unparse(each).rpartition(".")[2] for each in node.decorator_list]
        kinds = ("abstractmethod", "classmethod", "staticmethod")
        item.modifiers = tuple(each for each in kinds if each in decorators)
        if "property" in decorators or "cached_property" in decorators:
            item.kind = "property"
            return item
        if isinstance(node, ast.AsyncFunctionDef):
            item.modifiers += ("async",)
        item.parameters = self._parameters(node.args, bound=owner is not None)
        return item

    def _class(self, node: ast.ClassDef, owner: Item | None) -> Item:
        item = self._item("class", node.name, owner)
        item.doc = ast.get_docstring(node) or ""
        item.bases = tuple(self._type(base) for base in node.bases)
        if any(base.endswith(("Error", "Exception")) for base in item.bases):
            item.kind = "exception"
        members = list(self.items(node.body, item))
        fields = {each.name: each for each in members if each.kind == "attribute"}
        for method in (each for each in node.body if isinstance(each, _Function)):
            for attribute in self._attributes(method, item):
                fields.setdefault(attribute.name, attribute)
            if method.name == "__init__":
                item.parameters = self._parameters(method.args, bound=True)
                item.doc = f"{item.doc}\n\n{ast.get_docstring(method) or ''}".rstrip()
        methods = {each.name: each for each in members if each.kind != "attribute"}
        item.members = [*({**fields, **methods}).values()]
        if item.parameters is None and _has_generated_constructor(node):
            item.parameters = self._generated_parameters(node)
        return item

    def _attributes(self, method: _Function, owner: Item) -> Iterator[Item]:
        """Yield the public attributes that a method assigns to `self`."""
        types = {each.arg: each.annotation for each in _arguments(method.args)}
        item: Item | None = None
        for node in method.body:
            match node:
                case ast.Assign() | ast.AnnAssign():
                    for target, value in _assignments(node):
                        match target:
                            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                                if name.startswith("_"):
                                    continue
                                item = self._variable(name, node, None, owner)
                                item.type = item.type or self._evident_type(value, types)
                                yield item
                case ast.Expr(value=ast.Constant(value=str(text))) if item is not None:
                    item.doc = inspect.cleandoc(text)
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                item = None

    def _evident_type(self, value: ast.expr | None, parameters: dict[str, ast.expr | None]) -> str:
        """Return the type of a value that is a parameter, a number or text, or an instance."""
        match value:
            case ast.Name(id=name):
                return self._type(parameters.get(name))
            case ast.Constant(value=bool() | int() | float() | str() | bytes() as constant):
                return type(constant).__name__
            case ast.Call(func=ast.Name(id=name) as function) if name[0].isupper():
                return self._type(function)
            case ast.BoolOp(op=ast.Or(), values=[*_, last]):
                return self._evident_type(last, parameters)
        return ""

    def _variable(
        self,
        name: str,
        node: ast.Assign | ast.AnnAssign,
        value: ast.expr | None,
        owner: Item | None,
    ) -> Item:
        item = self._item("data" if owner is None else "attribute", name, owner)
        item.value = self._source_of(value)
        item.type = self._type(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        return item

    def _source_of(self, value: ast.expr | None) -> str:
        """Return an expression as it is written, or "" if it takes more than one line."""
        if value is None or value.lineno != value.end_lineno:
            return ""
        line = self._lines[value.lineno - 1].encode()  # offsets count bytes
        return line[value.col_offset : value.end_col_offset].decode()

    def _comment_above(self, node: ast.stmt) -> str:
        """Return the comment that ends directly above a statement of a module, or ""."""
        above = reversed(self._lines[: node.lineno - 1])
        comment = [line[2:] for line in takewhile(lambda line: line.startswith("# "), above)]
        return " ".join(reversed(comment))

    def _parameters(self, arguments: ast.arguments, *, bound: bool) -> ast.arguments:
        for each in _arguments(arguments):
            if each.annotation is not None:
                each.annotation = self._names.qualify(each.annotation)
        first = arguments.posonlyargs or arguments.args
        if bound and first and first[0].arg in ("self", "cls"):
            del first[0]
        # Sphinx cannot show a function that is a default.
        arguments.defaults = [_without_lambda(each) for each in arguments.defaults]
        arguments.kw_defaults = [each and _without_lambda(each) for each in arguments.kw_defaults]
        return arguments

    def _generated_parameters(self, node: ast.ClassDef) -> ast.arguments:
        """Return the parameters of a dataclass or NamedTuple: its fields."""
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        source = f"def init({', '.join(ast.unparse(each) for each in fields)}): ..."
        function = ast.parse(source).body[0]
        assert isinstance(function, ast.FunctionDef)
        return self._parameters(function.args, bound=False)

    def _type(self, node: ast.expr | None) -> str:
        return "" if node is None else ast.unparse(self._names.qualify(node))


def _is_public(node: _Function) -> bool:
    """Return whether a function is a public name of its own; a setter belongs to its property."""
    if any(ast.unparse(each).endswith((".setter", "overload")) for each in node.decorator_list):
        return False
    if node.name.startswith("__") and node.name != "__init__":
        return ast.get_docstring(node) is not None
    return not node.name.startswith("_")


def _without_lambda(default: ast.expr) -> ast.expr:
    return ast.Constant(...) if isinstance(default, ast.Lambda) else default


def _has_generated_constructor(node: ast.ClassDef) -> bool:
    marks = [ast.unparse(each) for each in (*node.bases, *node.decorator_list)]
    return any(each == "NamedTuple" or each.startswith("dataclass") for each in marks)


def _assignments(node: _Assignment) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Yield (target, value) of an assignment, those of tuples one by one."""
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        match target, node.value:
            case ast.Tuple(elts=targets), ast.Tuple(elts=values):
                yield from zip(targets, values, strict=True)
            case ast.Tuple(elts=targets), _:
                yield from ((each, None) for each in targets)
            case _, value:
                yield target, value


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    extra = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]


def parameter_names(item: Item) -> set[str]:
    """Return the names of the parameters of what `item` describes."""
    return set() if item.parameters is None else {each.arg for each in _arguments(item.parameters)}
